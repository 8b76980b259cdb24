"""What a worker of Dask does to malloc, and what passes need of it.

A nanny starts its worker with ``MALLOC_TRIM_THRESHOLD_=65536``, so that freed memory goes back to
the system at once. With glibc that costs a pass 40 % of its time: each tensor comes from the system
anew, and every page of it is a fault. Here free memory is kept while passes run, and given back
when they are done.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

_SET_BY_DASK = b"MALLOC_TRIM_THRESHOLD_="
#: glibc's parameters, and bytes: blocks up to the largest are taken from what is kept.
_TRIM, _MMAP = -1, -3
_KEPT, _LARGEST = 2**30, 2**30


def keep() -> None:
    """Before a pass: where malloc was told to keep nothing, have it keep what passes use."""
    if _is_set():
        _set()


@cache
def _is_set() -> bool:
    """When this process began, which is when malloc looks: a cluster that is made in a notebook
    leaves the variable in the notebook's environment, too."""
    try:
        return _SET_BY_DASK in Path("/proc/self/environ").read_bytes()
    except OSError:
        return False


@cache
def _set() -> None:
    libc = _libc()
    if libc is not None:
        libc.mallopt(_TRIM, _KEPT)
        libc.mallopt(_MMAP, _LARGEST)


def give_back() -> None:
    """After a task: what is free goes back to the system."""
    if _is_set():
        trim()


def trim() -> None:
    """What malloc keeps for later goes back to the system, as far as glibc can."""
    if (libc := _libc()) is not None:
        libc.malloc_trim(0)


@cache
def _libc() -> Any | None:
    """glibc; None on systems with another one."""
    try:
        libc = ctypes.CDLL(None)
        return libc if libc.mallopt and libc.malloc_trim else None
    except (AttributeError, OSError, TypeError):
        return None
