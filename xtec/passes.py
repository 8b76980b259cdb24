"""The gate of passes: how many chunks are coded at one time, and how many in one call.

Whatever the number of readers and writers: zarr would run a pass in each of its executor's threads,
and each pass wants cores and memory of its own. Waiting chunks queue here with nothing but their
input, and leave zarr's threads to its input and output.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from tec import threads
from tec.batches import PIXELS

from xtec import settings

T = TypeVar("T")

#: Pixels that zarr hands over in one call: what goes through the network together, beyond which
#: nothing gets faster (docs/design.md); beside a GPU twice as many, for one half is made ready
#: while the other is there.
_CALL = {"cpu": PIXELS["cpu"], "cuda": 2 * PIXELS["cuda"]}
#: Chunks in one call, at most: it succeeds or fails as a whole.
_MOST = 128
#: More than there are cores.
_THREADS = 4096


def run_pass(work: Callable[..., T], *args: Any) -> Future[T]:
    """Queue `work` (an encode or a decode) for the device in `settings`.

    Passes on the processor run side by side and share its cores (`tec.threads`); on a GPU one at
    a time.
    """
    device = place(settings.device)
    with _gates_lock:
        gate = _gates.get(device)
        if gate is None:
            gate = _gates[device] = _Gate(device)
    return gate.add(work, args)


def batch_size(pixels: int) -> int:
    """Chunks that zarr shall hand over in one call, its setting ``codec_pipeline.batch_size``.

    Small chunks share a pass of the network, large ones fill one. Imports no network library.

    Parameters
    ----------
    pixels : dates x rows x columns of a chunk
    """
    kind = "cpu" if place(settings.device) == "cpu" else "cuda"
    return max(1, min(_MOST, _CALL[kind] // max(1, pixels)))


def place(device: str) -> str:
    """Where a pass runs that is told so: "cpu", or the GPU. PyTorch is asked only if something else
    has imported it."""
    if device == "auto":
        device = "cuda" if _sees_gpu() else "cpu"
    return "cuda:0" if device == "cuda" else device


def _sees_gpu() -> bool:
    available = getattr(getattr(sys.modules.get("torch"), "cuda", None), "is_available", None)
    if available is not None:
        return available()
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return False
    return any(map(os.path.exists, ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")))


class _Gate:
    """The queue of one device."""

    def __init__(self, device: str) -> None:
        self._device = device
        # Threads are made as they are needed, and used again: no more than run at one time.
        name = f"xtec-{device}"
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix=name)
        self._lock = threading.Lock()
        self._waiting: deque[tuple[Future, Callable, tuple]] = deque()
        self._running = 0

    def add(self, work: Callable[..., T], args: tuple) -> Future[T]:
        future: Future[T] = Future()
        # What PyTorch takes is not known before it is imported, so this is asked again each time.
        most = threads.passes() if self._device == "cpu" else 1
        with self._lock:
            self._waiting.append((future, work, args))
            if self._running < most:
                self._running += 1
                self._threads.submit(self._run)
        return future

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._running -= 1
                    return
                waiting = self._waiting.popleft()
            _settle(*waiting)
            del waiting  # a chunk and its result, while the next one runs


def _settle(future: Future, work: Callable, args: tuple) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        with threads.sharing():
            result = work(*args)
    except BaseException as error:
        future.set_exception(error)
        del future  # which the error's traceback would keep, and it the error
    else:
        future.set_result(result)


_gates: dict[str, _Gate] = {}
_gates_lock = threading.Lock()


def _after_fork() -> None:
    # Threads do not survive a fork: a queue without its threads would wait for ever.
    global _gates_lock
    _gates.clear()
    _gates_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
