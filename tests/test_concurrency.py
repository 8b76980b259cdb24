"""The codec in threads and processes: the same bytes, no deadlock, and torch is left as it was."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import dask.array
import numpy as np
import pytest
import tec
import torch
import zarr
from arrays import CHUNK, chunk_files, codec, create, run
from checkers import encode
from scenes import scene
from tec.precision import full_precision

PIXELS = scene(4, 3, 64, 48, nodata=True)
#: Longest that anything here may wait for another thread or process.
PATIENCE = 120


def one_by_one() -> dict[str, bytes]:
    """The chunks of `PIXELS`, each encoded by itself."""
    return {
        f"c/{t}/0/{y}/{x}": encode(codec(), PIXELS[2 * t :, :, 16 * y :, 16 * x :][:2, :, :16, :16])
        for t, y, x in np.ndindex(2, 4, 3)
    }


# threads


@pytest.mark.parametrize("batch", [1, 5])
def test_zarr_writes_many_chunks_at_once(batch: int) -> None:
    with zarr.config.set({"async.concurrency": 16, "codec_pipeline.batch_size": batch}):
        array = create(PIXELS.shape)
        array[:] = PIXELS
        whole = array[:]
    assert chunk_files(array) == one_by_one()
    for part in (np.s_[:2], np.s_[:, :, 16:32], np.s_[..., 32:]):
        np.testing.assert_array_equal(array[part], whole[part])


def test_dask_threads() -> None:
    array = create(PIXELS.shape)
    lazy = dask.array.from_array(PIXELS, chunks=CHUNK)
    lazy.store(array, lock=False, scheduler="threads", num_workers=8)
    assert chunk_files(array) == one_by_one()
    back = dask.array.from_zarr(array).compute(scheduler="threads", num_workers=8)
    np.testing.assert_array_equal(back, array[:])


@pytest.mark.parametrize("model", ["fp", "elic", "tt", "flex"])
def test_threads_that_call_the_codec_directly(model: str) -> None:
    config = tec.CodecConfig(model=model, bands=("B02", "B03", "B04"), nodata=0)
    chunks = [scene(*CHUNK, seed=seed) for seed in range(8)]
    wanted = [tec.encode(chunk, config) for chunk in chunks]
    back = [tec.decode(data) for data in wanted]
    with ThreadPoolExecutor(4) as pool:
        encoded = list(pool.map(lambda chunk: tec.encode(chunk, config), chunks, timeout=PATIENCE))
        decoded = list(pool.map(tec.decode, wanted, timeout=PATIENCE))
    assert encoded == wanted
    for mine, its in zip(back, decoded):
        np.testing.assert_array_equal(mine, its)


# processes


def _work(pickled: bytes, chunk: np.ndarray) -> tuple[bytes, np.ndarray]:
    """In another process: a stream by the codec, and what it decodes to."""
    data = encode(pickle.loads(pickled), chunk)
    return data, tec.decode(data)


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_new_processes_write_the_same_bytes(method: str) -> None:
    coder, chunk = codec(model="tt"), scene(*CHUNK)
    wanted = encode(coder, chunk)  # used before it is pickled
    pixels = tec.decode(wanted)
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        for data, back in pool.map(_work, [pickle.dumps(coder)] * 3, [chunk] * 3, timeout=PATIENCE):
            assert data == wanted
            np.testing.assert_array_equal(back, pixels)


FORK = """
    import multiprocessing, os, threading, time
    import sys; sys.path.insert(0, {tests!r})
    import numpy as np, tec, torch
    from arrays import create, chunk_files
    from scenes import scene
    from xtec.chunks import run_pass
    torch.set_num_threads(2)
    config = tec.CodecConfig(model={model!r}, bands=("B02", "B03", "B04"), nodata=0)
    pixels = scene(2, 3, 64, 64)
    def work():
        data = {call}
        return data, tec.decode(data).tobytes()
    wanted = work()  # in the thread that forks, with two threads of OpenMP
    array = create((2, 3, 64, 64)); array[:] = scene(2, 3, 64, 64)
    def busy():
        while True:
            assert work() == wanted
    if {busy}:
        threading.Thread(target=busy, daemon=True).start()
    def child(queue):
        again = create((2, 3, 64, 64)); again[:] = scene(2, 3, 64, 64)
        queue.put((work() == wanted, chunk_files(again) == chunk_files(array)))
    context = multiprocessing.get_context("fork")
    for i in range(3 if {busy} else 1):  # where nothing runs, each is like the first
        time.sleep(0.02 * i)
        queue = context.Queue()
        process = context.Process(target=child, args=(queue,))
        process.start()
        assert queue.get(timeout=60) == (True, True)
        process.join(60)
        assert process.exitcode == 0
    assert work() == wanted
    os._exit(0)
"""


@pytest.mark.parametrize("busy", [False, True])
@pytest.mark.parametrize(
    "call",
    ["tec.encode(pixels, config)", "run_pass(tec.encode, pixels, config).result(timeout=60)"],
)
def test_a_forked_child_of_a_process_that_ran_networks(call: str, busy: bool) -> None:
    """OpenMP's threads do not survive a fork, and whose they were would wait for them for ever."""
    tests = str(Path(__file__).parent)
    code = FORK.format(tests=tests, model="elic", call=call, busy=busy)
    run(code, "-W", "ignore::DeprecationWarning")  # Python warns of forking beside threads


def test_locks_that_were_held_at_the_fork() -> None:
    """By a thread that was loading weights, compiling, or changing torch's settings."""
    run(
        """
        import os, threading
        import numpy as np, tec, torch
        from tec import codec, precision, weights
        held, go = threading.Event(), threading.Event()
        def hold():
            with weights._lock, precision._lock:
                held.set()
                go.wait()
        threading.Thread(target=hold, daemon=True).start()
        held.wait()
        config = tec.CodecConfig(model="fp", bands=("B02",))
        chunk = np.full((1, 1, 16, 16), 500, np.uint16)
        if (child := os.fork()) == 0:
            import faulthandler
            faulthandler.dump_traceback_later(60, exit=True)
            os._exit(42 if tec.decode(tec.encode(chunk, config)).shape == chunk.shape else 1)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os._exit(0 if status == 42 else 1)
        """,
        "-W",
        "ignore::DeprecationWarning",
    )


# torch's settings


def settings() -> dict[str, Any]:
    """What a process can set for all its threads, and a thread for itself."""
    backends: Any = torch.backends
    found = {
        "threads": torch.get_num_threads(),
        "interop threads": torch.get_num_interop_threads(),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul": torch.get_float32_matmul_precision(),
        "gradients": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "mkldnn": backends.mkldnn.enabled,
        "cudnn": (backends.cudnn.enabled, backends.cudnn.benchmark, backends.cudnn.deterministic),
        "cudnn tf32": backends.cudnn.allow_tf32,
        "cuda tf32": backends.cuda.matmul.allow_tf32,
        "sdp": (backends.cuda.flash_sdp_enabled(), backends.cuda.math_sdp_enabled()),
        "random": torch.get_rng_state().sum().item(),
        "numpy": np.geterr(),
    }
    if hasattr(backends, "fp32_precision"):
        for name in ("matmul", "conv"):
            found[f"mkldnn {name}"] = getattr(backends.mkldnn, name).fp32_precision
    return found


@contextmanager
def setting(get: Any, put: Any, value: Any) -> Iterator[None]:
    before = get()
    put(value)
    try:
        yield
    finally:
        put(before)


SURROUNDINGS: dict[str, Any] = {
    "nothing": nullcontext,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "gradients": torch.enable_grad,
    "another device": lambda: torch.device("meta"),
    "float64": lambda: setting(torch.get_default_dtype, torch.set_default_dtype, torch.float64),
    "bfloat16 products": lambda: setting(
        torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "medium"
    ),
    "deterministic": lambda: setting(
        torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms, True
    ),
    "numpy raises": lambda: np.errstate(all="raise"),
}


@pytest.mark.parametrize("model", ["fp", "elic", "tt", "flex"])
@pytest.mark.parametrize("name", SURROUNDINGS)
def test_nothing_around_the_codec_matters_or_changes(name: str, model: str) -> None:
    flex = {"quality": (16, 4), "forecast": "sample"} if model == "flex" else {}
    config = tec.CodecConfig(model=model, bands=("B02", "B03", "B04"), nodata=0, **flex)
    chunk = scene(2, 3, 64, 64, nodata=True)
    wanted = tec.encode(chunk, config)
    pixels = tec.decode(wanted)
    surroundings: AbstractContextManager = SURROUNDINGS[name]()
    with surroundings:
        before = settings()
        data = tec.encode(chunk, config)
        assert settings() == before
        back = tec.decode(wanted)
        with pytest.raises(tec.StreamError):
            tec.decode(wanted[:-1])
        with pytest.raises(tec.TecError):
            tec.encode(chunk.astype("f8"), config)
        assert settings() == before
    assert data == wanted
    np.testing.assert_array_equal(back, pixels)


def test_passes_at_one_time_share_one_change_of_settings() -> None:
    """The first to end must not undo what the others count on; the last one must."""
    with SURROUNDINGS["bfloat16 products"]():
        before = settings()
        first, second = full_precision("cpu"), full_precision("cpu")
        first.__enter__()
        inside = settings()
        second.__enter__()
        first.__exit__(None, None, None)
        assert settings() == inside != before
        second.__exit__(None, None, None)
        assert settings() == before


def test_settings_of_cuda_are_kept_too() -> None:
    """They can be set and read without a device."""
    with setting(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "high"):
        before = settings()
        with full_precision("cuda"):
            assert not torch.backends.cudnn.allow_tf32
            assert not torch.backends.cuda.matmul.allow_tf32
        assert settings() == before


def test_older_and_newer_settings_of_cuda_at_once() -> None:
    run(
        """
        import torch
        from tec.precision import full_precision
        if not hasattr(torch.backends, "fp32_precision"):  # before torch 2.9
            raise SystemExit
        torch.backends.fp32_precision = "tf32"
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        owners = torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn
        with full_precision("cuda"):
            assert [owner.fp32_precision for owner in owners] == ["ieee"] * 3
        assert [owner.fp32_precision for owner in owners] == ["tf32"] * 3
        assert torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32
        """
    )
