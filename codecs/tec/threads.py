"""Cores that this process may use, and how passes share them.

A pass codes some chunks. A good part of it runs in one thread (the coder, masks, filling), so a few
passes side by side with a share of the cores each are faster than one that has them all: by a
quarter to a half on two cores. A Dask worker with a nanny starts PyTorch with one thread: there as
many passes run as the worker has threads.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from .forks import in_child

S = TypeVar("S")
T = TypeVar("T")

_limit: int | None = None
_share = threading.local()
_settling = threading.Lock()

#: Passes side by side where PyTorch would give each all cores: each takes some 300 MB.
_MOST = 4

#: What PyTorch's threads start from: builds with MKL take the second where both are set.
_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")

#: cgroup version 2, and version 1: microseconds of processor time in a period of so many.
_QUOTAS = (
    ("/sys/fs/cgroup/cpu.max",),
    ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu/cpu.cfs_period_us"),
)


def limit(cores: int | None) -> None:
    """This process may use so many cores, whatever the machine has; None: all that it is given.

    For who starts several processes on one machine and shares its cores among them, to call in each
    of them, first of all: PyTorch starts with no more threads if it is not imported yet, and is set
    to no more if it is.
    """
    global _limit
    if cores is not None and cores < 1:
        raise ValueError(f"a process needs a core, not {cores}: pass 1 or more, or None")
    _limit = cores
    if cores is None:
        return
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(min(cores, torch.get_num_threads()))
    else:
        for name in _VARIABLES:
            os.environ[name] = str(min(cores, _number(name) or cores))


@contextmanager
def limited(cores: int) -> Iterator[None]:
    """Passes that begin inside share so many cores. PyTorch's threads elsewhere stay as are."""
    global _limit
    before, _limit = _limit, cores
    try:
        yield
    finally:
        _limit = before


def allowed() -> int:
    """Cores that this process may use: what `limit` was told; else what the scheduler and the
    container give it, and no more than the threads of the Dask workers in it."""
    if _limit is not None:
        return _limit
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    for most in (_quota(), _workers_threads()):
        cores = min(cores, most or cores)
    return cores


def of_a_pass() -> int:
    """Threads that a pass takes."""
    cores = allowed()
    # None while another thread is importing it
    count = getattr(sys.modules.get("torch"), "get_num_threads", None)
    most = (_configured() if count is None else count()) or cores
    return min(most, -(-cores // _MOST))


def passes() -> int:
    """Passes that may run at one time on the processor."""
    return max(1, allowed() // of_a_pass())


@contextmanager
def sharing() -> Iterator[None]:
    """What runs inside, in this thread, is one of `passes`: it takes its share of the cores."""
    _share.threads = of_a_pass()
    try:
        yield
    finally:
        _share.threads = None


def of_the_coder(device: str) -> int:
    """Threads that may code rows of a pass: beside a GPU, which has one pass, all that there are;
    else those of the pass."""
    return of_a_pass() if device == "cpu" else allowed()


def side_by_side(work: Callable[[S], T], items: Sequence[S], most: int) -> list[T]:
    """What ``work`` makes of each item, in order, in up to ``most`` threads: this one, and some
    that all passes share. ``work`` must not call this."""
    parts = min(most, len(items))
    if parts < 2:
        return [work(item) for item in items]

    def part(first: int) -> list[T]:
        return [work(item) for item in items[first::parts]]

    others = [_helpers().submit(part, first) for first in range(1, parts)]
    try:
        own = part(0)
    finally:
        wait(others)
    out: list[Any] = [None] * len(items)
    for first, found in enumerate([own, *(other.result() for other in others)]):
        out[first::parts] = found
    return out


_pool: ThreadPoolExecutor | None = None
_making = threading.Lock()


def _helpers() -> ThreadPoolExecutor:
    global _pool
    with _making:
        if _pool is None:
            _pool = ThreadPoolExecutor(allowed(), thread_name_prefix="tec-coder")
        return _pool


def _after_fork() -> None:
    # Threads do not survive a fork.
    global _pool, _making
    _pool, _making = None, threading.Lock()


in_child(_after_fork)


def settle() -> None:
    """Have PyTorch take the share of this thread, if it has one, once PyTorch is there.

    In this thread alone: OpenMP keeps the number by thread. PyTorch keeps one more, for threads to
    come, which is put back.
    """
    import torch

    wanted = getattr(_share, "threads", None)
    if wanted is None or torch.get_num_threads() == wanted:
        return
    with _settling:
        usual = _elsewhere(torch.get_num_threads)
        torch.set_num_threads(wanted)
        _elsewhere(torch.set_num_threads, usual)


def _elsewhere(work: Callable[..., T], *args: Any) -> T:
    """In a thread that PyTorch has not seen."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work, *args).result()


def _configured() -> int | None:
    """Threads that the environment lets PyTorch start with, at most."""
    return max((n for n in map(_number, _VARIABLES) if n), default=None)


def _number(name: str) -> int | None:
    """Of a variable such as "4", or "4,2" of nested teams."""
    first = os.environ.get(name, "").split(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) else None


def _quota() -> int | None:
    """Cores that the container may keep busy, at least 1; None without a limit."""
    for files in _QUOTAS:
        try:
            text = " ".join(Path(file).read_text() for file in files)
            quota, period = map(int, text.split())
        except (OSError, ValueError):  # other systems; "max", no limit
            continue
        if quota > 0 and period > 0:
            return max(1, quota // period)
    return None


def _workers_threads() -> int | None:
    """Threads of the Dask workers that live in this process; None where there are none.

    Not `distributed.get_worker`, which knows the worker in the thread of a task only: chunks come
    from zarr's threads.
    """
    module = sys.modules.get("distributed.worker")
    workers = list(getattr(getattr(module, "Worker", None), "_instances", ()))
    return sum(w.state.nthreads for w in workers if w.status.name in _AT_WORK) or None


_AT_WORK = ("init", "running", "paused", "closing_gracefully")
