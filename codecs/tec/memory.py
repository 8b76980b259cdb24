"""What malloc does with free memory, and what passes need of it.

glibc gives large blocks back to the system as soon as they are free: each tensor of some MB then
comes from the system anew, and every page of it is a fault. Images of 1024 x 1024 pixels take a
third more time for it. So once a pass has run, malloc keeps some free memory, unless the process
was started with settings of its own (``MALLOC_TRIM_THRESHOLD_``, ``MALLOC_MMAP_THRESHOLD_``,
``GLIBC_TUNABLES``).

A nanny of Dask starts its worker with ``MALLOC_TRIM_THRESHOLD_=65536``, to keep nothing at all.
There memory is kept while a task runs, and given back when it is done.
"""

from __future__ import annotations

import ctypes
import re
from functools import cache
from pathlib import Path
from typing import Any

_SET_BY_DASK = b"MALLOC_TRIM_THRESHOLD_=65536"
_SETTINGS = re.compile(rb"MALLOC_(TRIM|MMAP)_THRESHOLD_=|(GLIBC_TUNABLES=.*)?glibc\.malloc\.")
#: glibc's parameters, and bytes: blocks up to the largest are taken from what is kept.
_TRIM, _MMAP = -1, -3
_KEPT, _LARGEST = 2**29, 2**28


def keep() -> None:
    """Before a pass: have malloc keep what passes use, unless somebody has set it."""
    is_set, by_dask = _is_set()
    if by_dask or not is_set:
        _set()


@cache
def _is_set() -> tuple[bool, bool]:
    """Whether malloc was set when this process began, which is when malloc looks, and whether it
    was Dask that did. A cluster that is made in a notebook leaves the variable in the notebook's
    environment, too. (glibc splits its tunables where they lie.)"""
    try:
        given = Path("/proc/self/environ").read_bytes().split(b"\0")
    except OSError:
        return False, False
    return any(map(_SETTINGS.match, given)), _SET_BY_DASK in given


@cache
def _set() -> None:
    libc = _libc()
    if libc is not None:
        libc.mallopt(_TRIM, _KEPT)
        libc.mallopt(_MMAP, _LARGEST)


def give_back() -> None:
    """After a task of Dask: what is free goes back to the system, as Dask wants it."""
    if _is_set()[1]:
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
