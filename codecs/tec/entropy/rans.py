"""The coder: range ANS with one 64-bit state, 32-bit words and 16-bit tables.

One state, and not several side by side: it codes around a hundred million symbols a second, far
above any network that feeds it, and can grow from 1. A stream then costs its symbols and two or
three bytes, where four states would cost sixteen.

Layout: little-endian uint32 words in the order in which they are read, then 0 to 3 bytes, the top
of the first state, lowest byte first. The state takes in words while it is below 2**31 and any are
left. It must end at 1 with every word used. No symbols are no bytes.

To decode: slot = state % 65536 lies in one interval [start, start + count) of the symbol's table;
the state becomes count * (state // 65536) + slot - start. A value v outside the table is the
escape's interval, then u = 2 * (v - highest - 1) above the table or 2 * (lowest - 1 - v) + 1 below
it, in bits of even odds through the same state: n = floor(log2(u + 1)) in 6 bits, then the n bits
of u + 1 below its leading one, the lower 16 first. b bits are one interval: count 2**(16 - b) and
start value * count.
"""

from __future__ import annotations

import numpy as np
from numba import int32, int64, njit, types, uint16, uint32, uint64

from ..errors import StreamError, TecError
from .jit import array, kernel
from .tables import Tables

_TABLES = (array(uint32), array(int64), array(int32))  # packed, starts, lowest
_LOW = uint64(1 << 31)  # a state that has taken in all its words is never below this
_INT32_MIN, _INT32_MAX = -(2**31), 2**31 - 1
# What a kernel returns first; when it is an error, the symbol's position follows.
_OK, _BAD_INDEX, _BAD_ESCAPE = 0, 1, 2


@njit(nogil=True, error_model="numpy")
def _push(x, f, c, out, p):
    """The interval of f counts from c on into state x; a full state gives a word to out[p - 1]."""
    if (x >> uint64(47)) >= f:
        p -= 1
        out[p] = uint32(x & uint64(0xFFFFFFFF))
        x >>= uint64(32)
    q = x // f
    return (q << uint64(16)) + (x - q * f) + c, p


@kernel(
    types.UniTuple(int64, 2)(
        array(int32),
        array(uint16),
        *_TABLES,
        array(uint32, writable=True),
        array(uint64, writable=True),
    )
)
def _encode(symbols, index, packed, starts, lowest, out, state):
    """Last symbol first, words from the end of out down: (error, symbol) or (0, first word)."""
    x, p = uint64(1), int64(out.size)
    tables = int64(lowest.size)
    for i in range(symbols.size - 1, -1, -1):
        t = int64(index[i])
        if t >= tables:
            return int64(_BAD_INDEX), int64(i)
        start = starts[t]
        escape = starts[t + 1] - start - 1
        k = int64(symbols[i]) - int64(lowest[t])
        if k < 0 or k >= escape:
            u = uint64(2 * (-1 - k) + 1 if k < 0 else 2 * (k - escape)) + uint64(1)
            n = uint64(0)
            while (u >> n) > uint64(1):
                n += uint64(1)
            rest = u - (uint64(1) << n)
            if n > uint64(16):
                f = uint64(1) << (uint64(32) - n)
                x, p = _push(x, f, (rest >> uint64(16)) * f, out, p)
                rest &= uint64(0xFFFF)
            f = uint64(1) << (uint64(16) - min(n, uint64(16)))
            x, p = _push(x, f, rest * f, out, p)
            x, p = _push(x, uint64(1 << 10), n << uint64(10), out, p)
            k = escape
        e = packed[start + k]
        x, p = _push(x, uint64(e >> uint32(16)) + uint64(1), uint64(e & uint32(0xFFFF)), out, p)
    state[0] = x
    return int64(_OK), p


@njit(nogil=True, error_model="numpy")
def _pull(x, p, words):
    """Take in a word where the state is low and one is left."""
    if x < _LOW and p < words.size:
        x = (x << uint64(32)) | uint64(words[p])
        p += 1
    return x, p


@njit(nogil=True, error_model="numpy")
def _pull_bits(x, p, words, n):
    """n bits (0 to 16) of even odds."""
    shift = uint64(16) - n
    value = (x & uint64(0xFFFF)) >> shift
    x = (x >> uint64(16) << shift) | (x & ((uint64(1) << shift) - uint64(1)))
    x, p = _pull(x, p, words)
    return value, x, p


@kernel(
    types.UniTuple(int64, 2)(
        array(uint16),
        *_TABLES,
        array(uint16),
        array(uint32),
        array(uint64, writable=True),
        array(int32, writable=True),
    )
)
def _decode(index, packed, starts, lowest, lookup, words, state, out):
    """Symbols for these indexes into out; state holds (x, words read) before and after."""
    x, p = state[0], int64(state[1])
    tables = int64(lowest.size)
    for i in range(index.size):
        t = int64(index[i])
        if t >= tables:
            return int64(_BAD_INDEX), int64(i)
        slot = uint32(x & uint64(0xFFFF))
        start = starts[t]
        j = start + int64(lookup[(t << 8) + int64(slot >> uint32(8))])
        e = packed[j]
        above = slot - (e & uint32(0xFFFF))
        while above > (e >> uint32(16)):  # at most to the last interval, which ends at 65536
            j += 1
            e = packed[j]
            above = slot - (e & uint32(0xFFFF))
        x = (uint64(e >> uint32(16)) + uint64(1)) * (x >> uint64(16)) + uint64(above)
        if x < _LOW and p < words.size:  # _pull, written out: the call takes twice as long
            x = (x << uint64(32)) | uint64(words[p])
            p += 1
        value = int64(lowest[t]) + j - start
        if j + 1 == starts[t + 1]:
            n, x, p = _pull_bits(x, p, words, uint64(6))
            if n > uint64(32):
                return int64(_BAD_ESCAPE), int64(i)
            rest, x, p = _pull_bits(x, p, words, min(n, uint64(16)))
            if n > uint64(16):
                high, x, p = _pull_bits(x, p, words, n - uint64(16))
                rest |= high << uint64(16)
            u = int64((uint64(1) << n) + rest - uint64(1))
            value = int64(lowest[t]) - 1 - (u >> 1) if u & 1 else value + (u >> 1)
            if value < _INT32_MIN or value > _INT32_MAX:
                return int64(_BAD_ESCAPE), int64(i)
        out[i] = int32(value)
    state[0] = x
    state[1] = uint64(p)
    return int64(_OK), p


def encode(symbols: np.ndarray, index: np.ndarray, tables: Tables) -> bytes:
    """Code symbols, each with its own table, into one stream.

    Parameters
    ----------
    symbols : integers of any shape, within int32
    index : integers of the same shape, the row of ``tables`` for each symbol
    tables : Tables

    Raises
    ------
    TecError : shapes differ, a symbol is not int32, an index has no table
    """
    symbols, index = np.asarray(symbols), _index(index, tables)
    if symbols.shape != index.shape:
        raise TecError(f"symbols {symbols.shape} and index {index.shape} differ in shape")
    if symbols.dtype != np.int32:
        if symbols.size and symbols.dtype.kind not in "iu":
            raise TecError(f"symbols must be integers, not {symbols.dtype}: round them first")
        if symbols.size and not _INT32_MIN <= symbols.min() <= symbols.max() <= _INT32_MAX:
            raise TecError(f"symbols from {symbols.min()} to {symbols.max()} do not fit int32")
        symbols = symbols.astype(np.int32)
    if not symbols.size:
        return b""
    # An escape is 54 bits at most; what is not written to costs no memory.
    out, state = np.empty(2 * symbols.size + 4, np.uint32), np.empty(1, np.uint64)
    error, p = _encode(
        np.ascontiguousarray(symbols).ravel(),
        np.ascontiguousarray(index).ravel(),
        tables.packed,
        tables.starts,
        tables.lowest,
        out,
        state,
    )
    if error:
        raise _index_error(index, p, tables)
    x = int(state[0])
    while x >= 1 << 24:
        p -= 1
        out[p] = x & 0xFFFFFFFF
        x >>= 32
    top = x.to_bytes((x.bit_length() + 7) // 8, "little")
    return out[p:].astype("<u4", copy=False).tobytes() + top


class Decoder:
    """Reads a stream piece by piece, in the order in which it was encoded.

    Parameters
    ----------
    data : what ``encode`` returned (bytes, or anything with a buffer of bytes)
    tables : the tables it was encoded with
    """

    def __init__(self, data: bytes | memoryview, tables: Tables) -> None:
        raw = np.frombuffer(data, np.uint8)
        self._tables = tables
        self._empty = raw.size == 0
        self._words = raw[: raw.size & ~3].view("<u4").astype(np.uint32)
        x, p = int.from_bytes(raw[raw.size & ~3 :].tobytes(), "little"), 0
        while x < 1 << 31 and p < self._words.size:
            x = x << 32 | int(self._words[p])
            p += 1
        self._state = np.array([1 if self._empty else x, p], np.uint64)

    def read(self, index: np.ndarray) -> np.ndarray:
        """The next symbols: int32, of the index's shape.

        Raises
        ------
        TecError : an index has no table
        StreamError : these bytes cannot come from ``encode``
        """
        index = _index(index, self._tables)
        out = np.empty(index.shape, np.int32)
        if not index.size:
            return out
        if self._empty:
            raise StreamError(f"the coded stream is empty, but {index.size} symbols are to be read")
        t = self._tables
        error, position = _decode(
            np.ascontiguousarray(index).ravel(),
            t.packed,
            t.starts,
            t.lowest,
            t.lookup,
            self._words,
            self._state,
            out.reshape(-1),
        )
        if error == _BAD_INDEX:
            raise _index_error(index, position, t)
        if error:
            raise StreamError(
                "the coded stream holds an impossible value: it is damaged, or has other tables"
            )
        return out

    def finish(self) -> None:
        """Check that the stream is used up exactly. A damaged one rarely is.

        Raises
        ------
        StreamError : bytes are left over or missing, or were not these
        """
        x, p = int(self._state[0]), int(self._state[1])
        if p != self._words.size:
            raise StreamError(
                f"{self._words.size - p} words of the coded stream are left after its last symbol: "
                "it is damaged, or has other tables"
            )
        if x != 1:
            raise StreamError("the coded stream ends in a wrong state: it is damaged or cut short")


def _index(index: np.ndarray, tables: Tables) -> np.ndarray:
    """As uint16; what does not fit cannot have a table."""
    index = np.asarray(index)
    if index.dtype == np.uint16:
        return index
    if index.size and index.dtype.kind not in "iu":
        raise TecError(f"an index must be of integers, not {index.dtype}")
    if index.size and not 0 <= index.min() <= index.max() < len(tables):
        raise TecError(f"index {index.min()} to {index.max()}, but there are {len(tables)} tables")
    return index.astype(np.uint16)


def _index_error(index: np.ndarray, position: int, tables: Tables) -> TecError:
    value = index.ravel()[position]
    return TecError(f"index {value} at position {position}, but there are {len(tables)} tables")
