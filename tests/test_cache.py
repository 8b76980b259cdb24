"""Decoded chunks that readers share: while they are decoded, and kept for later."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arrays import CHUNK, DIMS, config, create, put, run
from checkers import encode
from scenes import scene
from tec import threads
from tec.errors import StreamError, TecError
from zarr.codecs import ZstdCodec

from xtec import cache, settings
from xtec.chunks import ChunkCoder, run_pass
from xtec.zarr2 import XtecCodec2
from xtec.zarr3 import XtecCodec

PIXELS = scene(2, 3, 16, 16, nodata=True)
DTYPE = PIXELS.dtype
#: Longest that anything here may wait for another thread.
PATIENCE = 60
FOUR_CHUNKS = 4 * PIXELS.nbytes


def exact(**changes: Any) -> XtecCodec:
    """Needs no network, and gives the pixels back."""
    return XtecCodec(config(model="none", max_error=(0, 0, 0), **changes), DIMS, CHUNK)


def stream(number: int = 0) -> bytes:
    """Made without the thread of the device."""
    return exact().encode_chunks([PIXELS + np.uint16(number)])[0]


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(settings, "cache", 0)
    cache.clear()
    yield
    cache.clear()


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[list[int | None]]:
    """The dates of the chunks of each pass."""
    seen: list[list[int | None]] = []
    inner = ChunkCoder.decode_chunks

    def spy(self: Any, data: Any, dtype: Any, where: Any, dates: Any, **more: Any) -> Any:
        seen.append(list(dates))
        return inner(self, data, dtype, where, dates, **more)

    monkeypatch.setattr(ChunkCoder, "decode_chunks", spy)
    return seen


@pytest.fixture
def busy() -> Iterator[Callable[[], None]]:
    """Keeps the only pass from decoding, until it is called."""
    go = threading.Event()
    with threads.limited(1):
        run_pass(go.wait, PATIENCE)
        yield go.set
        go.set()


def ask(*data: bytes, dates: list[int | None] | None = None) -> list[Future[np.ndarray]]:
    return cache.decode(exact(), data, DTYPE, ["here"] * len(data), dates)


def get(*data: bytes, dates: list[int | None] | None = None) -> list[np.ndarray]:
    return [future.result(PATIENCE) for future in ask(*data, dates=dates)]


# readers at the same time


def test_readers_that_wait_for_one_chunk_share_its_decoding(busy: Any, decoded: list) -> None:
    readers = [ask(stream())[0] for _ in range(5)]
    readers += ask(stream(), stream(1), stream())
    busy()
    assert len(wait(readers, PATIENCE).done) == 8
    for reader in [*readers[:6], readers[7]]:
        np.testing.assert_array_equal(reader.result(), PIXELS)
    np.testing.assert_array_equal(readers[6].result(), PIXELS + np.uint16(1))
    assert decoded == [[2], [2]]
    get(stream())
    assert len(decoded) == 3, "nothing is kept"


def test_a_pass_under_way_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    inner, calls = ChunkCoder.decode_chunks, []
    begun, go = threading.Event(), threading.Event()

    def slow(self: Any, *args: Any, **more: Any) -> Any:
        calls.append(args[3])
        begun.set()
        assert go.wait(PATIENCE)
        return inner(self, *args, **more)

    monkeypatch.setattr(ChunkCoder, "decode_chunks", slow)
    first = ask(stream(), dates=[1])
    assert begun.wait(PATIENCE)
    same, more = ask(stream(), dates=[1]), ask(stream(), dates=[2])
    go.set()
    assert first[0].result(PATIENCE) is same[0].result(PATIENCE)
    np.testing.assert_array_equal(first[0].result(), PIXELS[:1])
    np.testing.assert_array_equal(more[0].result(PATIENCE), PIXELS)
    assert calls == [[1], [2]]


def test_a_chunk_in_the_queue_is_decoded_as_far_as_anyone_wants(busy: Any, decoded: list) -> None:
    few, all_dates = ask(stream(), dates=[1]), ask(stream(), dates=[None])
    busy()
    np.testing.assert_array_equal(few[0].result(PATIENCE)[:1], PIXELS[:1])
    np.testing.assert_array_equal(all_dates[0].result(PATIENCE), PIXELS)
    assert decoded == [[2]]


def test_who_gives_up_takes_nothing_from_others(busy: Any, decoded: list) -> None:
    (gone, stays, alone) = (*ask(stream()), *ask(stream()), *ask(stream(1)))
    assert gone.cancel()
    assert alone.cancel()
    busy()
    np.testing.assert_array_equal(stays.result(PATIENCE), PIXELS)
    np.testing.assert_array_equal(get(stream(1))[0], PIXELS + np.uint16(1))
    assert decoded == [[2], [2]], "for nobody nothing is decoded"


def test_damage_concerns_who_reads_the_damaged_chunk(busy: Any) -> None:
    whole = stream()
    damaged = whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:]
    good, bad = ask(whole, damaged)
    joined = ask(whole)[0]
    busy()
    with pytest.raises(StreamError, match=r"^here: "):
        bad.result(PATIENCE)
    np.testing.assert_array_equal(good.result(PATIENCE), PIXELS)
    np.testing.assert_array_equal(joined.result(PATIENCE), PIXELS)
    with pytest.raises(StreamError):
        get(damaged)


def test_whatever_goes_wrong_nobody_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **more: Any) -> None:
        raise SystemExit("strange")

    monkeypatch.setattr(ChunkCoder, "decode_chunks", fail)
    for future in ask(stream(), stream(1)):
        assert isinstance(future.exception(PATIENCE), SystemExit)
    monkeypatch.undo()
    np.testing.assert_array_equal(get(stream())[0], PIXELS)


# kept for later


def test_what_is_kept_is_not_decoded_again(decoded: list) -> None:
    settings.cache = FOUR_CHUNKS
    first = get(stream(), stream(1))
    assert get(stream())[0] is first[0]
    assert decoded == [[2, 2]]
    assert cache.held() == (2, 2 * PIXELS.nbytes)
    cache.clear()
    assert cache.held() == (0, 0)
    get(stream())
    assert len(decoded) == 2


def test_the_bound_holds_and_the_least_recently_used_goes(decoded: list) -> None:
    settings.cache = FOUR_CHUNKS + 100
    for number in range(4):
        get(stream(number))
    get(stream(0))
    for number in (4, 5):
        get(stream(number))
        assert cache.held() == (4, FOUR_CHUNKS)
    del decoded[:]
    get(stream(0), stream(3), stream(4), stream(5))
    assert decoded == []
    get(stream(1))
    assert decoded == [[2]]
    settings.cache = PIXELS.nbytes  # less, from the next read on
    get(stream(1))
    assert cache.held() == (1, PIXELS.nbytes)
    settings.cache = PIXELS.nbytes - 1  # too little for one
    get(stream(2))
    assert cache.held() == (0, 0)


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
@pytest.mark.parametrize("dims", [DIMS, ("y", "x", "time", "band"), ("x", "band", "time", "y")])
def test_the_bound_counts_the_memory_behind_an_array(dims: tuple, dtype: str) -> None:
    settings.cache = "1 GB"
    order = [DIMS.index(d) for d in dims]
    one = XtecCodec(exact().config, dims, [CHUNK[i] for i in order])
    pixels = PIXELS.transpose(order).astype(dtype)
    (chunk,) = cache.decode(one, [encode(one, pixels)], pixels.dtype, ["here"])
    np.testing.assert_array_equal(chunk.result(PATIENCE), pixels)
    owner = chunk.result()
    while owner.base is not None:
        owner = owner.base
    assert cache.held().bytes == owner.nbytes == pixels.nbytes


def test_more_dates_serve_who_wants_fewer(decoded: list) -> None:
    settings.cache = "1 MB"
    long = XtecCodec(exact().config, DIMS, (6, 3, 16, 16))
    pixels = scene(6, 3, 16, 16)
    data = encode(long, pixels)

    def read(dates: int) -> np.ndarray:
        (future,) = cache.decode(long, [data], DTYPE, ["here"], [dates])
        return future.result(PATIENCE)

    for dates in (2, 1, 2, 3, 6, 1, 5):
        np.testing.assert_array_equal(read(dates)[:dates], pixels[:dates])
    assert decoded == [[2], [6]], "who comes back for more comes for the rest"
    assert cache.held() == (1, pixels.nbytes)


def test_the_content_counts_not_the_place(decoded: list) -> None:
    settings.cache = "1 MB"
    array = create((2, 3, 16, 32), serializer=exact())
    array[..., :16] = PIXELS
    array[..., 16:] = PIXELS
    np.testing.assert_array_equal(array[..., 16:], array[..., :16])
    assert decoded == [[2]]
    array[..., 16:] = PIXELS + np.uint16(7)
    np.testing.assert_array_equal(array[..., 16:], PIXELS + np.uint16(7))
    put(array, "c/0/0/0/0", stream(9))  # by another process
    np.testing.assert_array_equal(array[..., :16], PIXELS + np.uint16(9))


def test_an_array_that_says_something_else_is_not_served(monkeypatch: pytest.MonkeyPatch) -> None:
    settings.cache = "1 MB"
    get(stream())
    for other, dtype in [
        (exact(offset=1000), DTYPE),
        (exact(nodata=5), DTYPE),
        (exact(), np.dtype("int16")),
    ]:
        with pytest.raises(StreamError, match="belongs to another array"):
            cache.decode(other, [stream()], dtype, ["here"])[0].result(PATIENCE)
    (swapped,) = cache.decode(exact(), [stream()], DTYPE.newbyteorder(), ["here"])
    assert swapped.result(PATIENCE).dtype == DTYPE.newbyteorder()


def test_readers_cannot_change_what_others_read() -> None:
    settings.cache = "1 MB"
    with pytest.raises(ValueError, match="read-only"):
        get(stream())[0][:] = 0
    old = XtecCodec2(exact().config, DIMS, CHUNK)
    for codec, given in [(old, PIXELS), (old, np.asfortranarray(PIXELS))]:
        data = codec.encode(given)
        for _ in range(2):
            flat = codec.decode(data)
            np.testing.assert_array_equal(flat, given.ravel(order="A"))
            flat[:] = 0
    arrays = [
        create(CHUNK, serializer=exact()),
        create(CHUNK, serializer=exact(), compressors=[ZstdCodec()]),
        create(CHUNK, serializer=exact(), shards=(4, 3, 32, 32)),
    ]
    for array in arrays:
        array[:] = PIXELS
        for _ in range(2):
            read = array[:]
            np.testing.assert_array_equal(read, PIXELS)
            read[:] = 0
    assert cache.held() == (2, 2 * PIXELS.nbytes), "one for each codec"


# settings


@pytest.mark.parametrize(
    ("text", "size"),
    [(0, 0), ("", 0), ("0", 0), (5000, 5000), ("1 GB", 10**9), ("2MiB", 2**21), ("1.5 kB", 1500)],
)
def test_sizes(text: Any, size: int) -> None:
    settings.cache = text
    assert cache.limit() == size


@pytest.mark.parametrize("text", ["much", -1, "-1 GB", "1 parsec", float("nan"), (5,)])
def test_what_is_no_size_is_refused_when_it_is_set(text: Any) -> None:
    settings.cache = "1 MB"
    with pytest.raises(ValueError, match=r"xtec.settings.cache .*must be a number of bytes") as e:
        settings.cache = text
    assert repr(text) in str(e.value)
    assert settings.cache == "1 MB"


def test_what_the_environment_says_is_looked_at_when_it_is_used() -> None:
    array = create(CHUNK, serializer=exact())
    array[:] = PIXELS
    vars(settings)["cache"] = "lots"
    with pytest.raises(ValueError, match=r"xtec.settings.cache \(XTEC_CACHE\) is 'lots'"):
        array[:]


def test_the_environment_says_how_much_too(tmp_path: Path) -> None:
    code = (
        "import os; os.environ['XTEC_CACHE'] = '3 MB'; from xtec import cache; print(cache.limit())"
    )
    assert run(code) == "3000000\n"


# forks


def test_a_forked_child_begins_with_nothing_kept_and_no_lock_held() -> None:
    run(
        f"""
        import os, sys, threading
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import test_cache as t
        from xtec import cache, settings
        settings.cache = "1 MB"
        t.get(t.stream())
        held, go = threading.Event(), threading.Event()
        def hold():
            with cache._lock:
                held.set()
                go.wait()
        t.run_pass(go.wait)
        waiting = t.ask(t.stream(1))
        threading.Thread(target=hold, daemon=True).start()
        held.wait()
        if (child := os.fork()) == 0:
            import faulthandler
            faulthandler.dump_traceback_later(60, exit=True)
            assert cache.held() == (0, 0)
            same = (t.get(t.stream(1))[0] == t.PIXELS + 1).all()
            os._exit(42 if same and cache.held().chunks == 1 else 1)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        go.set()
        assert waiting[0].result(60) is not None
        assert cache.held().chunks == 2
        os._exit(0 if status == 42 else 1)
        """,
        "-W",
        "ignore::DeprecationWarning",
    )


def test_many_threads_and_a_small_cache() -> None:
    """Pixels are right and the bound holds, whoever comes and goes."""
    settings.cache = 2 * PIXELS.nbytes
    data, wrong, most = [stream(n) for n in range(6)], Counter[str](), []

    def reader(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(20):
            numbers, dates = rng.integers(0, 6, 3), rng.integers(1, 3, 3).tolist()
            found = get(*(data[n] for n in numbers), dates=dates)
            for n, k, chunk in zip(numbers, dates, found, strict=True):
                wrong["pixels"] += int((chunk[:k] != PIXELS[:k] + np.uint16(n)).any())
            most.append(cache.held().bytes)

    threads = [threading.Thread(target=reader, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(most) == 6 * 20
    assert wrong["pixels"] == 0
    assert 0 < max(most) <= settings.cache
    assert not cache._flights


def test_errors_are_those_of_the_codec() -> None:
    with pytest.raises(TecError):
        get(b"no stream")
