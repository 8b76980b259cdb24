"""Decoded chunks that several readers want: decoded once while they wait, and kept if asked to.

A read of zarr, and so a Dask task, asks for each chunk once; tasks that run side by side (bands of
one cube, Dask chunks that cut a chunk of the store) ask for the same one. Whoever comes while a
chunk is being decoded, or waits for its turn, shares what comes out. Beyond that,
``xtec.settings.cache`` bytes of what was decoded last are kept in this process.

A chunk is known by the bytes of its stream, not by its place, together with all else that its
pixels depend on: what is kept cannot be out of date, whoever writes to the store.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from . import settings
from .chunks import run_pass

if TYPE_CHECKING:
    from .chunks import ChunkCoder

#: Codec, dtype, device, precision and sha256 of the stream.
Key = tuple["ChunkCoder", str, str, str, bytes]


class Held(NamedTuple):
    """What this process keeps.

    Attributes
    ----------
    chunks : how many
    bytes : of their pixels
    """

    chunks: int
    bytes: int


class _Flight:
    """A chunk that is being decoded or will be, and those who wait for it."""

    def __init__(self, key: Key, data: bytes, where: str, dates: int) -> None:
        self.key, self.data, self.where, self.dates = key, data, where, dates
        self.readers: list[Future[np.ndarray]] = []
        self.started = False

    def join(self) -> Future[np.ndarray]:
        reader: Future[np.ndarray] = Future()
        self.readers.append(reader)
        return reader


_lock = threading.Lock()
_flights: dict[Key, _Flight] = {}
_kept: OrderedDict[Key, np.ndarray] = OrderedDict()  # the least recently used first
_bytes = 0


def decode(
    coder: ChunkCoder,
    data: Sequence[bytes],
    dtype: np.dtype,
    where: Sequence[str],
    dates: Sequence[int | None] | None = None,
) -> list[Future[np.ndarray]]:
    """Chunks of an array, decoded in one pass as far as nobody else has them or works on them.

    Parameters
    ----------
    coder, data, dtype, where, dates
        See `xtec.chunks.ChunkCoder.decode_chunks`.

    Returns
    -------
    list of Future
        One a chunk: an array that cannot be written to, of as many dates as were asked for or
        more. Its errors are those of ``decode_chunks``, and concern this chunk alone.

    Raises
    ------
    ValueError
        ``xtec.settings.cache`` is no size.
    """
    most, all_dates = limit(), coder.cube_shape[0]
    how = settings.device, settings.precision
    keys = [(coder, dtype.str, *how, hashlib.sha256(one).digest()) for one in data]
    wanted = [all_dates if n is None else min(n, all_dates) for n in dates or [None] * len(data)]
    out, new = [], []
    with _lock:
        _shrink(most)
        for key, one, name, n in zip(keys, data, where, wanted, strict=True):
            kept, flight = _kept.get(key), _flights.get(key)
            if kept is not None and _dates(coder, kept) >= n:
                _kept.move_to_end(key)
                out.append(_done(kept))
                continue
            if kept is not None:
                n = all_dates  # who comes back for more comes for the rest
            if flight is not None and not flight.started:
                flight.dates = max(flight.dates, n)
            if flight is None or flight.dates < n:
                flight = _flights[key] = _Flight(key, one, name, n)
                new.append(flight)
            out.append(flight.join())
    if new:
        run_pass(_pass, coder, dtype, new, most)
    return out


def limit() -> int:
    """Bytes that ``xtec.settings.cache`` allows.

    Raises
    ------
    ValueError
        It is no size.
    """
    return settings.cache_bytes(settings.cache)


def held() -> Held:
    """How much is kept."""
    with _lock:
        return Held(len(_kept), _bytes)


def clear() -> None:
    """Keep nothing of what was decoded until now."""
    with _lock:
        _shrink(0)


def _pass(coder: ChunkCoder, dtype: np.dtype, flights: list[_Flight], most: int) -> None:
    """What the thread of the device does with chunks that were asked for together."""
    with _lock:
        wanted = [f for f in flights if not all(reader.cancelled() for reader in f.readers)]
        for flight in flights:
            flight.started = True
            if flight not in wanted:
                _forget(flight)
    if not wanted:
        return
    data, where = [f.data for f in wanted], [f.where for f in wanted]
    dates = [f.dates if "time" in coder.dims else None for f in wanted]
    try:
        _, _, _, precision, _ = wanted[0].key  # as it was when they were asked for
        found = coder.decode_chunks(data, dtype, where, dates, precision=precision)
    except BaseException as error:  # whatever it is: others wait
        if len(wanted) == 1:
            _land(wanted[0], error, most)
            return
        for flight in wanted:  # one chunk's damage is no concern of who reads another
            _pass(coder, dtype, [flight], most)
        return
    for flight, chunk in zip(wanted, found, strict=True):
        _land(flight, chunk, most)


def _land(flight: _Flight, result: np.ndarray | BaseException, most: int) -> None:
    """Give out what came out."""
    with _lock:
        _forget(flight)
        if isinstance(result, np.ndarray):
            result.setflags(write=False)
            _keep(flight.key, result, most)
    for reader in flight.readers:  # nobody joins any more
        if not reader.set_running_or_notify_cancel():
            continue
        if isinstance(result, np.ndarray):
            reader.set_result(result)
        else:
            reader.set_exception(result)


def _forget(flight: _Flight) -> None:
    if _flights.get(flight.key) is flight:
        del _flights[flight.key]


def _keep(key: Key, chunk: np.ndarray, most: int) -> None:
    global _bytes
    before = _kept.get(key)
    if before is not None and before.nbytes > chunk.nbytes:
        return  # of more dates
    if (size := _size(chunk)) > most:
        return
    if before is not None:
        _bytes -= _size(_kept.pop(key))
    _kept[key] = chunk
    _bytes += size
    _shrink(most)


def _shrink(most: int) -> None:
    global _bytes
    while _bytes > most:
        _, chunk = _kept.popitem(last=False)
        _bytes -= _size(chunk)


def _size(chunk: np.ndarray) -> int:
    """Bytes that are held with an array: those of the memory that it is a view of."""
    while isinstance(chunk.base, np.ndarray):
        chunk = chunk.base
    return chunk.nbytes


def _dates(coder: ChunkCoder, chunk: np.ndarray) -> int:
    return chunk.shape[coder.dims.index("time")] if "time" in coder.dims else 1


def _done(chunk: np.ndarray) -> Future[np.ndarray]:
    future: Future[np.ndarray] = Future()
    future.set_result(chunk)
    return future


def _after_fork() -> None:
    # The lock may be held, and passes under way, by threads that the child does not have.
    global _lock, _bytes
    _lock, _bytes = threading.Lock(), 0
    _flights.clear()
    _kept.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
