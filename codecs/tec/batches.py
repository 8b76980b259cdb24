"""What goes through a network together: as many pixels as the device's memory holds."""

from __future__ import annotations

import gc
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from . import memory
from .errors import TecError

T = TypeVar("T")

#: Most pixels (dates x height x width) that go through a network together.
PIXELS = {"cpu": 2**19, "cuda": 2**23}
#: Of devices whose memory has run out: what is tried there from then on.
_fewer: dict[str, int] = {}
#: What errors say that are no OutOfMemoryError: PyTorch on the processor, CUDA and its libraries.
_SAYINGS = ("not enough memory", "out of memory", "ALLOC_FAILED")
_END = object()


@dataclass(frozen=True)
class Unit:
    """Dates of one chunk that are coded one after another; units of equal ``key`` can share a
    batch. A key begins with height and width."""

    chunk: int
    dates: range
    key: tuple


Batch = list[Unit]


def in_batches(
    units: Sequence[Unit], device: str, run: Callable[[list[Batch]], Iterable[None]]
) -> None:
    """Put all units through a network.

    Parameters
    ----------
    device : "cpu", "cuda:0", ...
    run : takes batches, and yields when it is done with one. Where the device's memory runs out, it
        is called again with what is left, in batches of half as many units, and so is every later
        call in this process. What it did to a batch that failed must do no harm

    Raises
    ------
    TecError
        A single unit does not fit.
    """
    memory.keep()
    left = list(units)
    while left:
        batches, done = list(_batches(left, device)), 0
        try:
            for _ in run(batches):
                done += 1
        except (RuntimeError, MemoryError) as error:
            if not _is_shortage(error):
                raise
            _halve(batches[done], device, error)
        # Here, since the error kept what lay on the device.
        left = [unit for batch in batches[done:] for unit in batch]
        if left:
            _give_back(device)


@contextmanager
def alone(unit: Unit, device: str) -> Iterator[None]:
    """What runs inside takes one unit; TecError where that does not fit."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _is_shortage(error):
            raise
        _halve([unit], device, error)


def ahead(items: Generator[T, None, None], device: str) -> Iterator[T]:
    """The same items. Beside a GPU the next one is made in another thread while one is used: one of
    the two is the network's work and the other the processor's."""
    if not _is_gpu(device):
        yield from items
        return
    with ThreadPoolExecutor(1, thread_name_prefix="tec-ahead") as pool:
        coming: Future[Any] = pool.submit(_next, items)
        try:
            while (item := coming.result()) is not _END:
                coming = pool.submit(_next, items)
                yield item
        finally:
            coming = pool.submit(items.close)  # there: inference mode, say, belongs to a thread


def _next(items: Iterator[Any]) -> Any:
    return next(items, _END)


def _is_gpu(device: str) -> bool:
    return device != "cpu"


def _batches(units: Iterable[Unit], device: str) -> Iterator[Batch]:
    limit = _fewer.get(device, PIXELS["cuda" if _is_gpu(device) else "cpu"])
    groups: dict[tuple, list[Unit]] = {}
    for unit in units:
        groups.setdefault(unit.key, []).append(unit)
    for key, group in groups.items():
        size = max(1, limit // (key[0] * key[1]))
        for i in range(0, len(group), size):
            yield group[i : i + size]


def _halve(batch: Batch, device: str, error: BaseException) -> None:
    """Batches half as large, from now on."""
    height, width = batch[0].key[:2]
    if len(batch) == 1:
        dates = len(batch[0].dates)
        what = "one date" if dates == 1 else f"{dates} dates"
        remedy = (
            "use smaller chunks" if dates == 1 else "use smaller chunks, or ones of fewer dates"
        )
        more = "or device='cpu' (XTEC_DEVICE=cpu)" if _is_gpu(device) else "or fewer workers"
        raise TecError(
            f"{what} of {height} x {width} pixels, padded, do not fit into the memory of {device}, "
            f"alone in a batch: {remedy}, {more}"
        ) from error
    fewer = len(batch) // 2 * height * width
    _fewer[device] = min(fewer, _fewer.get(device, fewer))


def _is_shortage(error: BaseException) -> bool:
    import torch

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return any(saying in str(error) for saying in _SAYINGS)


def _give_back(device: str) -> None:
    """What is free but kept for later: pieces of other sizes are needed now."""
    gc.collect()  # errors and the frames that they show may hold each other
    if _is_gpu(device):
        import torch

        from . import graphs

        graphs.drop()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
