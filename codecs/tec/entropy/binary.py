"""An adaptive binary arithmetic coder, in integers throughout: every machine writes and reads the
same. FORMAT.md ("Masks") describes it; masks and the residual layer are coded with it.

One function serves both directions: it takes a decision and returns it when it encodes, and returns
what it reads when it decodes, so that the two cannot differ.
"""

from __future__ import annotations

import numpy as np
from numba import boolean, int64, njit, uint8, void

from .jit import kernel

PATIENCE = 60  # how many decisions a probability averages over, at most
FLOOR = 24  # of 65536: no probability goes below
# Dividing 2 x < 2**17 by 2 count + 3, exactly: (2 x * _SHARES[count]) >> 32.
_SHARES = np.array([-(-(2**32) // (2 * count + 3)) for count in range(PATIENCE + 1)], np.int64)
#: Places in the coder's state.
LOW, HIGH, VALUE, AT = 0, 1, 2, 3
#: Contexts of one kind of number (`Coder.numbers`): is it 0, its sign, its length in bits.
NUMBER = 2 + 48


@njit(nogil=True, error_model="numpy")
def split(low, high, chance):  # type: ignore[no-untyped-def]
    """The end of the part of an interval that a 1 takes."""
    span = high - low
    return low + (span >> 16) * chance + (((span & 0xFFFF) * chance) >> 16)


@njit(nogil=True, error_model="numpy")
def adapted(chance, count, bit):  # type: ignore[no-untyped-def]
    """The chance of a 1 after this bit, which is one of so many."""
    if bit:
        chance += (2 * (65536 - chance) * _SHARES[count]) >> 32
    else:
        chance -= (2 * chance * _SHARES[count]) >> 32
    return min(max(chance, FLOOR), 65536 - FLOOR)


@njit(nogil=True, error_model="numpy")
def code(bit, context, chances, counts, state, data, encoding):  # type: ignore[no-untyped-def]
    """One binary decision: writes ``bit``, or reads and returns it.

    To hand arrays to a function costs more than the rest of it: `tec.predictor` does the same steps
    in place.
    """
    low, high, count = state[LOW], state[HIGH], counts[context]
    middle = split(low, high, chances[context])
    if not encoding:
        bit = 1 if state[VALUE] <= middle else 0
    if bit:
        high = middle
    else:
        low = middle + 1
    chances[context] = adapted(chances[context], count, bit)
    if count < PATIENCE:
        counts[context] = count + 1
    settle(low, high, state, data, encoding)
    return bit


@njit(nogil=True, error_model="numpy")
def raw(value, n, state, data, encoding):  # type: ignore[no-untyped-def]
    """The n lowest bits of a value, the highest first, each of even odds."""
    out = int64(0)
    for i in range(n - 1, -1, -1):
        low, high = state[LOW], state[HIGH]
        middle = low + ((high - low) >> 1)
        bit = (value >> i) & 1
        if not encoding:
            bit = int64(1) if state[VALUE] <= middle else int64(0)
        if bit:
            high = middle
        else:
            low = middle + 1
        settle(low, high, state, data, encoding)
        out = (out << 1) | bit
    return out


@njit(nogil=True, error_model="numpy")
def settle(low, high, state, data, encoding):  # type: ignore[no-untyped-def]
    """Write, or take in, the bytes in which the interval's ends agree."""
    while (low ^ high) & 0xFF000000 == 0:
        at = state[AT]
        if encoding:
            if at < data.size:
                data[at] = high >> 24
        else:
            byte = data[at + 4] if at + 4 < data.size else 0
            state[VALUE] = ((state[VALUE] << 8) & 0xFFFFFFFF) | byte
        state[AT] = at + 1
        low = (low << 8) & 0xFFFFFFFF
        high = ((high << 8) & 0xFFFFFFFF) | 0xFF
    state[LOW], state[HIGH] = low, high


@njit(nogil=True, error_model="numpy")
def start(state, data, encoding):  # type: ignore[no-untyped-def]
    """A fresh state: the whole interval, and the first bytes of what is read."""
    state[:] = 0
    state[HIGH] = 0xFFFFFFFF
    if not encoding:
        for i in range(4):
            state[VALUE] = state[VALUE] << 8 | (data[i] if i < data.size else 0)


@njit(nogil=True, error_model="numpy")
def finish(state, data, encoding):  # type: ignore[no-untyped-def]
    """One byte more says where in the last interval the code lies; the rest reads as zeros.

    Returns the bytes of the code, which may be more than ``data`` had room for.
    """
    at = state[AT]
    if encoding and at < data.size:
        data[at] = (state[LOW] >> 24) + 1 if state[LOW] > 0 else 0
    return at + 1


@njit(nogil=True, error_model="numpy")
def _number(value, context, chances, counts, state, data, encoding):  # type: ignore[no-untyped-def]
    if code(1 if value == 0 else 0, context, chances, counts, state, data, encoding):
        return int64(0)
    negative = code(1 if value < 0 else 0, context + 1, chances, counts, state, data, encoding)
    size = -value if value < 0 else value
    bits = int64(0)
    if encoding:
        while (size >> (bits + 1)) > 0:
            code(1, context + 2 + bits, chances, counts, state, data, encoding)
            bits += 1
        code(0, context + 2 + bits, chances, counts, state, data, encoding)
    else:
        while bits < NUMBER - 3 and code(
            0, context + 2 + bits, chances, counts, state, data, encoding
        ):
            bits += 1
    size = (int64(1) << bits) | raw(size, bits, state, data, encoding)
    return -size if negative else size


@kernel(
    void(int64[::1], int64, int64, int64[::1], int64[::1], int64[::1], uint8[::1], boolean),
)
def _numbers(values, first, chain, chances, counts, state, data, encoding):  # type: ignore[no-untyped-def]
    for i in range(values.size):
        context = first
        if i > 0:
            context += NUMBER * min(abs(values[i - 1]), chain)
        values[i] = _number(values[i], context, chances, counts, state, data, encoding)


@kernel(
    void(int64[::1], int64[::1], int64[::1], int64[::1], int64[::1], uint8[::1], boolean),
)
def _numbers_at(values, contexts, chances, counts, state, data, encoding):  # type: ignore[no-untyped-def]
    for i in range(values.size):
        values[i] = _number(values[i], contexts[i], chances, counts, state, data, encoding)


@kernel(void(int64[::1], uint8[::1], boolean))
def _start(state, data, encoding):  # type: ignore[no-untyped-def]
    start(state, data, encoding)


@kernel(int64(int64[::1], uint8[::1], boolean))
def _finish(state, data, encoding):  # type: ignore[no-untyped-def]
    return finish(state, data, encoding)


class Coder:
    """One code, being written or read, for kernels and for numbers between them.

    Parameters
    ----------
    contexts : how many contexts there are, those of numbers included
    data : what is read, or None to write
    room : bytes that may be written; what is beyond is counted and lost
    """

    def __init__(self, contexts: int, data: bytes | None = None, room: int = 0) -> None:
        self.encoding = data is None
        self.data = np.empty(room, np.uint8) if data is None else np.frombuffer(data, np.uint8)
        if data is not None:
            self.data = self.data.copy()
        self.chances = np.full(contexts, 32768, np.int64)
        self.counts = np.zeros(contexts, np.int64)
        self.state = np.zeros(4, np.int64)
        _start(self.state, self.data, self.encoding)

    @property
    def parts(self) -> tuple:
        """What kernels take."""
        return self.chances, self.counts, self.state, self.data, self.encoding

    @property
    def overread(self) -> bool:
        """Whether a damaged code has been read far beyond its end."""
        return not self.encoding and int(self.state[AT]) > self.data.size + 8

    def numbers(self, values: np.ndarray, context: int, chain: int = 0) -> np.ndarray:
        """Code (k,) int64 below 2**46 in size: in bits of even odds but for their lengths.

        ``values`` are what is written; when reading only their number counts. Each takes the
        `NUMBER` contexts after as many as the size of the one before, ``chain`` at most. Returns
        the values.
        """
        out = np.array(values, np.int64)
        _numbers(out, context, chain, *self.parts)
        return out

    def numbers_at(self, values: np.ndarray, contexts: np.ndarray) -> np.ndarray:
        """As `numbers`, each with contexts of its own from (k,) int64 on."""
        out = np.array(values, np.int64)
        _numbers_at(out, np.ascontiguousarray(contexts, np.int64), *self.parts)
        return out

    def number(self, value: int, context: int) -> int:
        return int(self.numbers(np.array([value], np.int64), context)[0])

    def finish(self) -> int:
        """Ends the code; how many bytes it has."""
        return int(_finish(self.state, self.data, self.encoding))
