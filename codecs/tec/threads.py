"""Cores that this process may use, and how passes share them.

A pass codes some chunks. It takes as many threads as PyTorch takes for one operation, also where no
network runs (`tec.residual`), and as many passes may run at one time as there are cores for. A Dask
worker with a nanny starts PyTorch with one thread: as many passes as the worker has threads; in a
notebook PyTorch has all cores: one pass.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

_limit: int | None = None

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
    to no more if it is. Nothing else in tec changes PyTorch's threads.
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
    """Threads that a pass takes: PyTorch's, as it has them in this thread. Where nothing has
    imported it, as many as it would start with."""
    # None while another thread is importing it
    count = getattr(sys.modules.get("torch"), "get_num_threads", None)
    cores = allowed()
    return min(cores, (_configured() if count is None else count()) or cores)


def passes() -> int:
    """Passes that may run at one time on the processor."""
    return max(1, allowed() // of_a_pass())


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
