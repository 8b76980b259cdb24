"""How many passes run at one time, each with how many threads, and how many chunks in a call."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import dask
import numpy as np
import pytest
import tec
import torch
from arrays import run
from scenes import scene
from tec import codec, coder, threads

from xtec import passes, settings
from xtec.chunks import batch_size, run_pass

#: Longest that anything here may wait for another thread.
PATIENCE = 30


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Sets the cores that the scheduler gives, and PyTorch's threads. No container, no workers."""

    def be(cores: int, torch_threads: int) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), False)
        monkeypatch.setattr(torch, "get_num_threads", lambda: torch_threads)

    monkeypatch.setattr(threads, "_limit", None)
    monkeypatch.setattr(threads, "_QUOTAS", ())
    monkeypatch.setattr(settings, "device", "cpu")
    return be


# cores and threads


@pytest.mark.parametrize(
    ("cores", "torch_threads", "at_once", "each"),
    [
        (1, 1, 1, 1),
        (2, 2, 2, 1),
        (2, 1, 2, 1),
        (8, 3, 4, 2),
        (8, 8, 4, 2),
        (8, 1, 8, 1),
        (16, 16, 4, 4),
        (64, 2, 32, 2),
        (6, 6, 3, 2),
        (7, 7, 3, 2),
        (2, 16, 2, 1),
    ],
)
def test_passes_share_the_cores(machine, cores, torch_threads, at_once, each) -> None:
    machine(cores, torch_threads)
    assert (threads.allowed(), threads.passes(), threads.of_a_pass()) == (cores, at_once, each)


@pytest.mark.parametrize(
    ("files", "allowed"),
    [
        (["max 100000\n"], 8),
        (["250000 100000\n"], 2),
        (["50000 100000\n"], 1),
        (["-1\n", "100000\n"], 8),
        (["300000\n", "100000\n"], 3),
        (["", "100000\n"], 8),
        ([], 8),
    ],
)
def test_a_container_has_fewer(machine, monkeypatch, tmp_path: Path, files, allowed) -> None:
    machine(8, 1)
    for i, text in enumerate(files):
        (tmp_path / str(i)).write_text(text)
    paths = tuple(str(tmp_path / str(i)) for i in range(max(1, len(files))))
    monkeypatch.setattr(threads, "_QUOTAS", ((str(tmp_path / "absent"),), paths))
    assert threads.allowed() == allowed


@pytest.mark.parametrize(
    ("workers", "allowed"),
    [
        ([], 8),
        ([("running", 2)], 2),
        ([("running", 2), ("paused", 1)], 3),
        ([("closed", 2)], 8),
        ([("closed", 1), ("running", 4)], 4),
        ([("running", 64)], 8),
    ],
)
def test_a_worker_has_its_threads(machine, monkeypatch, workers, allowed) -> None:
    machine(8, 1)
    instances = [
        SimpleNamespace(state=SimpleNamespace(nthreads=n), status=SimpleNamespace(name=status))
        for status, n in workers
    ]
    module = SimpleNamespace(Worker=SimpleNamespace(_instances=instances))
    monkeypatch.setitem(sys.modules, "distributed.worker", module)
    assert threads.allowed() == allowed
    assert threads.passes() == allowed


def test_workers_of_dask() -> None:
    """Theirs, not a stand-in: two threads and PyTorch's one, in a process that a nanny started."""
    distributed = pytest.importorskip("distributed", reason="the extra 'distributed' is optional")
    cores = min(2, threads.allowed())
    with (
        dask.config.set({"distributed.worker.multiprocessing-method": "spawn"}),
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=2, dashboard_address=":0"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        (found,) = client.run(_shares).values()
    assert found == (cores, cores, 1)


def _shares() -> tuple[int, int, int]:
    import torch  # noqa: F401

    return threads.allowed(), threads.passes(), threads.of_a_pass()


def test_a_limit_comes_first(machine, monkeypatch) -> None:
    machine(8, 8)
    seen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", seen.append)
    threads.limit(3)
    assert (threads.allowed(), threads.passes(), threads.of_a_pass(), seen) == (3, 3, 1, [3])
    threads.limit(None)
    assert threads.allowed() == 8
    with pytest.raises(ValueError, match="not 0"):
        threads.limit(0)


@pytest.mark.parametrize("before", ["", "import torch; torch.set_num_threads(4)"])
def test_a_limit_holds_for_torch(before: str) -> None:
    out = run(
        f"""
        import os
        os.environ.update(OMP_NUM_THREADS="4", MKL_NUM_THREADS="3")
        {before}
        from tec import threads
        threads.limit(2)
        print(threads.of_a_pass(), threads.passes())
        import torch
        print(torch.get_num_threads(), threads.of_a_pass(), threads.passes())
        """
    )
    assert out.split() == ["1", "2", "2", "1", "2"]


def test_before_torch_is_imported_the_environment_says() -> None:
    out = run(
        """
        import os, sys
        os.sched_getaffinity = lambda _: set(range(6))
        from tec import threads
        threads._QUOTAS = ()
        os.environ.pop("MKL_NUM_THREADS", None)  # which a LocalCluster leaves behind
        for value in ("1", "2,1", "", "many", "0", "100"):
            os.environ["OMP_NUM_THREADS"] = value
            print(threads.of_a_pass(), threads.passes())
        assert "torch" not in sys.modules
        """
    )
    assert out.split() == ["1", "6", *["2", "3"] * 5]


def test_only_passes_take_a_share() -> None:
    """PyTorch's threads of a pass; those of this thread, of threads to come, and of later ones."""
    out = run(
        """
        import os, torch
        from concurrent.futures import ThreadPoolExecutor
        os.sched_getaffinity = lambda _: set(range(6))
        from tec import threads
        threads._QUOTAS = ()
        torch.set_num_threads(5)

        def work():
            threads.settle()
            return torch.get_num_threads()

        def pass_():
            with threads.sharing():
                return work()

        print(work())
        with ThreadPoolExecutor(4) as pool:
            print(*{future.result() for future in [pool.submit(pass_) for _ in range(40)]})
        with ThreadPoolExecutor(1) as pool:
            print(pool.submit(work).result(), pool.submit(pass_).result(), work())
        """
    )
    assert out.split() == ["5", "2", "5", "2", "5"]


# the gate


@pytest.mark.parametrize(("device", "at_once"), [("cpu", 3), ("cuda:0", 1), ("cuda", 1)])
def test_passes_at_one_time(machine, monkeypatch, device, at_once) -> None:
    machine(7, 2)
    monkeypatch.setattr(settings, "device", device)
    together, lock = threading.Barrier(at_once), threading.Lock()
    running = most = 0

    def work() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        together.wait(PATIENCE)  # breaks unless so many run at one time
        with lock:
            running -= 1
        together.wait(PATIENCE)

    for future in [run_pass(work) for _ in range(4 * at_once)]:
        future.result(PATIENCE)
    assert most == at_once


def test_names_of_one_gpu_share_a_gate(monkeypatch) -> None:
    monkeypatch.setattr(passes, "_sees_gpu", lambda: True)
    assert {passes.place(d) for d in ("auto", "cuda", "cuda:0")} == {"cuda:0"}
    assert passes.place("cuda:1") == "cuda:1"
    monkeypatch.setattr(passes, "_sees_gpu", lambda: False)
    assert {passes.place(d) for d in ("auto", "cpu")} == {"cpu"}


def test_more_passes_once_there_are_more_cores(machine) -> None:
    machine(1, 1)
    go, begun = threading.Event(), threading.Event()
    first = run_pass(go.wait, PATIENCE)
    machine(2, 1)
    second = run_pass(begun.set)
    assert begun.wait(PATIENCE)
    go.set()
    assert first.result(PATIENCE)
    assert second.result(PATIENCE) is None


def test_what_work_raises_is_raised_and_what_is_cancelled_does_not_run(machine) -> None:
    machine(1, 1)
    go = threading.Event()
    first, second, third = (run_pass(work) for work in (go.wait, dict, lambda: 1 / 0))
    assert second.cancel()
    go.set()
    assert first.result(PATIENCE)
    assert second.cancelled()
    with pytest.raises(ZeroDivisionError):
        third.result(PATIENCE)


# chunks in a call


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_small_chunks_go_together_and_large_ones_do_not(monkeypatch, device) -> None:
    monkeypatch.setattr(settings, "device", device)
    sizes = [batch_size(4 * n * n) for n in (1, 64, 256, 512, 1024, 8192)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] >= sizes[1] >= 16
    assert sizes[-1] == 1
    assert batch_size(0) == sizes[0]


def test_a_gpu_takes_more_in_a_call(monkeypatch) -> None:
    monkeypatch.setattr(settings, "device", "cuda")
    on_gpu = batch_size(4 * 512 * 512)
    monkeypatch.setattr(settings, "device", "cpu")
    assert on_gpu > batch_size(4 * 512 * 512)


@pytest.mark.parametrize("visible", ["", "-1", None, "0"])
def test_the_size_of_a_call_needs_no_torch(visible: str | None) -> None:
    """Nor the devices of this machine, where the environment hides them."""
    run(
        f"""
        import os, sys
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        if {visible!r} is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = {visible!r}
        os.path.exists = lambda path: path == "/dev/nvidiactl"
        from xtec import passes
        from xtec.chunks import batch_size
        assert batch_size(2**14) > 1
        assert passes._sees_gpu() == ({visible!r} in (None, "0"))
        assert "torch" not in sys.modules
        """
    )


# the coder


def test_who_codes_rows_takes_its_share(machine) -> None:
    machine(16, 16)
    assert threads.of_the_coder("cpu") == threads.of_a_pass() == 4
    assert threads.of_the_coder("cuda") == 16


def test_rows_side_by_side(machine) -> None:
    machine(4, 4)
    barrier = threading.Barrier(3)
    seen = set()

    def work(item: int) -> int:
        seen.add(threading.get_ident())
        if item < 3:
            barrier.wait(PATIENCE)  # passes only if three are at it
        return item * item

    assert threads.side_by_side(work, range(10), 3) == [i * i for i in range(10)]
    assert len(seen) == 3
    assert threading.get_ident() in seen
    seen.clear()
    assert threads.side_by_side(work, range(3, 10), 1) == [i * i for i in range(3, 10)]
    assert threads.side_by_side(work, [], 4) == []
    assert seen == {threading.get_ident()}


@pytest.mark.parametrize("bad", [0, 1])
def test_errors_come_when_nobody_is_at_it_any_more(machine, bad: int) -> None:
    machine(4, 4)
    ended = []

    def work(item: int) -> None:
        if item == bad:
            raise ValueError("bad")
        time.sleep(0.05)
        ended.append(item)

    with pytest.raises(ValueError, match="bad"):
        threads.side_by_side(work, range(4), 4)
    assert sorted(ended) == [i for i in range(4) if i != bad]


@pytest.mark.parametrize("model", ["fp", "elic", "tt"])
def test_several_threads_code_the_same_bytes(model: str, monkeypatch) -> None:
    config = tec.CodecConfig(model=model, bands=("B02", "B03", "B04"), nodata=0)
    chunks = [scene(2, 3, 48, 32, seed=seed) for seed in range(5)]
    wanted = codec.encode_many(chunks, config, device="cpu")
    pixels = codec.decode_many(wanted, device="cpu")
    asked = []
    monkeypatch.setattr(coder, "_WORTH", 1)
    monkeypatch.setattr(threads, "of_the_coder", lambda device: asked.append(device) or 3)
    assert codec.encode_many(chunks, config, device="cpu") == wanted
    for mine, its in zip(codec.decode_many(wanted, device="cpu"), pixels, strict=True):
        np.testing.assert_array_equal(mine, its)
    assert set(asked) == {"cpu"}
    damaged = [*wanted[:3], wanted[3][:-9] + b"123456789"]
    with pytest.raises(tec.StreamError):
        codec.decode_many(damaged, device="cpu")


def test_a_forked_child_has_threads_for_its_coder() -> None:
    run(
        """
        import os
        from tec import threads
        def work(item):
            return item + 1
        assert threads.side_by_side(work, range(4), 2) == [1, 2, 3, 4]
        if (child := os.fork()) == 0:
            os._exit(42 if threads.side_by_side(work, range(4), 2) == [1, 2, 3, 4] else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42
        """,
        "-W",
        "ignore::DeprecationWarning",
    )
