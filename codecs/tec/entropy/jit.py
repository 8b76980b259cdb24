"""Kernels compiled on first use, not at import, and kept on disk where there is room for that."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from numba import njit, types

from ..forks import in_child


def array(dtype: Any, *, writable: bool = False) -> types.Array:
    """Numba type of a C-contiguous vector; what is not written may be read-only in numpy too."""
    return types.Array(dtype, 1, "C", readonly=not writable)


def kernel(*signatures: Any) -> Callable[[Callable], Callable]:
    """Decorate a function that is compiled, for exactly these signatures, when it is first called.

    Compiling takes seconds, so the machine code is kept in numba's cache: beside the source, or in
    the user's cache folder where the package is read-only. Where neither can be written, numba
    refuses; then each process compiles for itself. (A shared folder such as the one for temporary
    files is no place for code that will be run.)

    The GIL is released while a kernel runs. Floating point stays strict (no ``fastmath``), and a
    division by zero is not checked for.
    """

    def decorate(function: Callable) -> Callable:
        lock = threading.Lock()
        compiled: Callable | None = None

        def renew_lock() -> None:
            nonlocal lock
            lock = threading.Lock()

        in_child(renew_lock)

        def call(*args: Any) -> Any:
            nonlocal compiled
            if compiled is None:
                with lock:
                    if compiled is None:
                        compiled = compile_kernel(function, signatures)
            return compiled(*args)

        call.__name__ = function.__name__
        call.__doc__ = function.__doc__
        return call

    return decorate


def compile_kernel(function: Callable, signatures: tuple[Any, ...]) -> Callable:
    """Compile with the cache if there can be one, else without."""
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    try:
        return njit(list(signatures), cache=True, **options)(function)
    except (RuntimeError, OSError):  # no folder to write to, or a full disk
        return njit(list(signatures), cache=False, **options)(function)
