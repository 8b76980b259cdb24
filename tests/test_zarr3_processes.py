"""The codec in batches, threads and other processes."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tec.codec
import zarr
from arrays import ERROR, create, run, same
from scenes import scene
from tec import threads
from zarr.storage import LocalStore, MemoryStore

from xtec.chunks import MissingChunkError


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """("encode" or "decode", number of chunks) of every pass of the network."""
    seen: list[tuple[str, int]] = []

    def spy(name: str, inner: Callable) -> Callable:
        def wrapper(chunks: list, *args: Any, **kwargs: Any) -> list:
            seen.append((name, len(chunks)))
            return inner(chunks, *args, **kwargs)

        return wrapper

    monkeypatch.setattr(tec.codec, "encode_many", spy("encode", tec.codec.encode_many))
    monkeypatch.setattr(tec.codec, "decode_many", spy("decode", tec.codec.decode_many))
    return seen


@pytest.mark.parametrize("shards", [None, (2, 3, 32, 64)])
def test_batches(passes: list, shards: tuple | None) -> None:
    store = MemoryStore()
    pixels = scene(2, 3, 32, 64)
    create(pixels.shape, store, shards=shards)
    with zarr.config.set({"codec_pipeline.batch_size": 8}):
        array = zarr.open_array(store)
        array[:] = pixels
        batched = array[:]
    assert passes == [("encode", 8), ("decode", 8)]
    del passes[:]
    array = zarr.open_array(store)
    np.testing.assert_allclose(array[:].astype(int), batched.astype(int), atol=1)
    assert passes == [("decode", 1)] * 8


def test_batch_size_belongs_to_the_open_array_but_not_inside_shards(passes: list) -> None:
    for shards, batched in ((None, [("decode", 4)]), ((2, 3, 32, 32), [("decode", 1)] * 4)):
        store = MemoryStore()
        create((2, 3, 32, 32), store, shards=shards)[:] = scene(2, 3, 32, 32)
        with zarr.config.set({"codec_pipeline.batch_size": 4}):
            array = zarr.open_array(store)
        del passes[:]
        array[:]
        assert passes == batched


@pytest.mark.parametrize("cores", [1, 2])
def test_as_many_passes_as_cores_and_zarr_stays_free(
    monkeypatch: pytest.MonkeyPatch, cores: int
) -> None:
    monkeypatch.setattr(threads, "passes", lambda: cores)
    inner, running, most = tec.codec.encode_many, 0, 0
    lock, started = threading.Lock(), threading.Event()

    def slow(*args: Any, **kwargs: Any) -> list[bytes]:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        started.set()
        time.sleep(0.02)
        data = inner(*args, **kwargs)
        with lock:
            running -= 1
        return data

    monkeypatch.setattr(tec.codec, "encode_many", slow)
    plain = zarr.create_array(MemoryStore(), data=np.arange(10))
    arrays = [create((2, 3, 64, 64)) for _ in range(2)]
    pixels = scene(2, 3, 64, 64)
    writers = [threading.Thread(target=a.__setitem__, args=(slice(None), pixels)) for a in arrays]
    for writer in writers:
        writer.start()
    started.wait()
    begin = time.perf_counter()
    assert plain[9] == 9
    waited = time.perf_counter() - begin
    assert any(writer.is_alive() for writer in writers)
    for writer in writers:
        writer.join()
    assert most == cores
    assert waited < 0.3  # 32 passes of 20 ms and more stood in line
    same(arrays[1][:], pixels)


def test_pickling_open_arrays(tmp_path: Path) -> None:
    pixels = scene(2, 3, 32, 32)
    for shards in (None, (2, 3, 32, 32)):
        array = create(pixels.shape, LocalStore(tmp_path / f"{shards}.zarr"), shards=shards)
        size = len(pickle.dumps(array))
        array[:] = pixels
        copy = pickle.loads(pickle.dumps(array))
        np.testing.assert_array_equal(copy[:], array[:])
        assert len(pickle.dumps(array)) == size


def test_the_queue_of_passes_survives_a_fork() -> None:
    run(
        """
        import os
        from xtec.chunks import run_pass
        assert run_pass(lambda: 1).result() == 1
        if (child := os.fork()) == 0:
            os._exit(run_pass(lambda: 42).result(timeout=20))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42
        """,
        "-W",
        "ignore::DeprecationWarning",  # Python warns of forking beside threads, which is the point
    )


def test_a_killed_writer_leaves_a_store_that_says_so(tmp_path: Path) -> None:
    array = create((6, 3, 16, 16), LocalStore(tmp_path / "a.zarr"))
    run(
        f"""
        import os, zarr, tec.codec
        array = zarr.open_array({str(tmp_path / "a.zarr")!r})
        inner, calls = tec.codec.encode_many, []
        def dies(*args, **kwargs):
            calls.append(1)
            if len(calls) == 2:
                os._exit(9)
            return inner(*args, **kwargs)
        tec.codec.encode_many = dies
        for t in (0, 2, 4):
            array[t : t + 2] = 1000 + t
        """,
        status=9,
    )
    # what a kill during the write of a file leaves behind
    (tmp_path / "a.zarr/c/1/0/0").mkdir(parents=True)
    (tmp_path / "a.zarr/c/1/0/0/0.0123456789abcdef.partial").write_bytes(b"XTEC")
    assert np.abs(array[:2].astype(int) - 1000).mean() < ERROR
    with pytest.raises(MissingChunkError, match=r"c/[12]/0/0/0 was never written"):
        array[:]


def test_reading_a_part_of_a_shard_decodes_only_that(passes: list) -> None:
    array = create((2, 3, 64, 64), shards=(2, 3, 64, 64))
    array[:] = scene(2, 3, 64, 64)
    del passes[:]
    array[:, :, 20:30, 40:60]
    assert passes == [("decode", 1)] * 2
