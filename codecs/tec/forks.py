"""Forked processes: a child must not wait for threads that its parent had."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from typing import Any, TypeVar

T = TypeVar("T")

#: The thread that this process was forked in, and the one that runs networks in its place.
_forked: int | None = None
_other: ThreadPoolExecutor | None = None


def in_child(renew: Callable[[], None]) -> None:
    """Call ``renew`` in every process that is forked from this one: a lock that another thread held
    at that moment is held for ever."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=renew)


def runs_networks(work: Callable[..., T]) -> Callable[..., T]:
    """Decorate a function that runs a network: the thread that came through a fork hands it to
    another.

    GNU OpenMP keeps a team of threads for each thread that asked for one. A fork leaves the team
    behind; the thread that came through still counts on it, and would wait for ever. A new thread
    gets a new team.
    """

    @wraps(work)
    def call(*args: Any, **options: Any) -> T:
        global _other
        if threading.get_ident() != _forked:
            return work(*args, **options)
        if _other is None:
            _other = ThreadPoolExecutor(1, thread_name_prefix="tec-forked")
        return _other.submit(work, *args, **options).result()

    return call


def _after_fork() -> None:
    global _forked, _other
    _forked, _other = threading.get_ident(), None


in_child(_after_fork)
