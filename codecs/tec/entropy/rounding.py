"""Kernels of :mod:`tec.entropy.portable`: round, note what is too close to call, code the notes.

All of it is in one file because numba's cache looks at the file of the outermost function only.

A decision is a pair (position, choice). Positions count the values that a row has rounded, from 0
(the scale and then the mean of one symbol, before the next symbol). A choice is the parity of the
integer, 0 or 1; or, where the margin is too wide for parity to tell, 2 + 4 * zigzag(integer). Each
decision in bits, the highest of a byte first:

- the gap to the position before (to -1 at first) as a Rice code: gap >> k zeros, a one, the low k
  bits of the gap; or 24 zeros, a one, the gap in 40 bits. k is the smallest with
  count << (k + 1) >= sum, over the gaps so far: sum starts at 1024 and count at 1, and both are
  halved (rounding down) when count reaches 64;
- the parity in one bit. A gap of 0, which no position has, comes before the gap of a choice that is
  an integer: zigzag(integer) then follows in 32 bits (0, -1, 1, -2 are 0, 1, 2, 3).

Zeros fill the last byte: fewer than 8, and no code is zeros only. No decisions are no bytes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numba import float32, float64, int32, int64, njit, types, uint8, uint16

from .jit import array, kernel

#: What kernels return when they fail; the position of the culprit follows.
OK, NOT_FINITE, TOO_LARGE, IMPOSSIBLE, MALFORMED = 0, 1, 2, 3, 4
#: Integers times a step are exact in float32 up to here.
MEAN_LIMIT = float(1 << 24)
#: Limit of plain rounding, well inside int32.
ROUND_LIMIT = float(1 << 30)
#: A row being read: bit, position of the next decision (-1 none, -2 malformed), choice, sum, count.
READER_STATE = 5

_LONG, _LONG_BITS = 24, 40
_FIRST_SUM, _WINDOW = 1024, 64
_WIDE = 0.4375  # a margin of this many steps or more: parity does not tell
_NEAR = 0.5 - 2.0**-36  # a boundary, less far more than the error of t in float64

_F64, _I64 = array(float64), array(int64)
_POSITIONS = (array(int64, writable=True), array(int64, writable=True))
_STATE = array(int64, writable=True)


# ---- decisions to bits and back


@njit(nogil=True)
def _parameter(total, count):
    k = 0
    while (count << (k + 1)) < total:
        k += 1
    return k


@njit(nogil=True)
def _adapt(total, count, gap):
    total, count = total + gap, count + 1
    if count == _WINDOW:
        total, count = total >> 1, count >> 1
    return total, count


@njit(nogil=True)
def _put(out, at, value, n):
    for i in range(n - 1, -1, -1):
        if (value >> i) & 1:
            out[at >> 3] |= uint8(128 >> (at & 7))
        at += 1
    return at


@njit(nogil=True)
def _put_gap(out, at, gap, k):
    if (gap >> k) < _LONG:
        at = _put(out, at + (gap >> k), 1, 1)  # out is zeros
        return _put(out, at, gap, k)
    at = _put(out, at + _LONG, 1, 1)
    return _put(out, at, gap, _LONG_BITS)


@kernel(int64(_I64, _I64, array(uint8, writable=True)))
def _pack(positions, choices, out):
    at, before = int64(0), int64(-1)
    total, count = int64(_FIRST_SUM), int64(1)
    for i in range(positions.size):
        gap = positions[i] - before
        before = positions[i]
        k = _parameter(total, count)
        if choices[i] > 1:
            at = _put_gap(out, at, int64(0), k)
            at = _put(out, _put_gap(out, at, gap, k), choices[i] >> 2, 32)
        else:
            at = _put(out, _put_gap(out, at, gap, k), choices[i], 1)
        total, count = _adapt(total, count, gap)
    return at


def pack(positions: np.ndarray, choices: np.ndarray) -> bytes:
    """(k,) int64 twice -> bytes; positions ascend and are below 2**40."""
    room = np.zeros(20 * positions.size, np.uint8)  # 46 bits for a gap of 0, 65 for a gap, and 32
    bits = _pack(positions, choices, room)
    return room[: (bits + 7) // 8].tobytes()


@njit(nogil=True)
def _get(data, at, n):
    """n bits from there on, or -1 where the data ends before."""
    if at + n > 8 * data.size:
        return int64(-1)
    value = int64(0)
    for i in range(at, at + n):
        value = (value << 1) | ((int64(data[i >> 3]) >> (7 - (i & 7))) & 1)
    return value


@njit(nogil=True)
def _get_gap(data, at, k):
    """(gap, next bit); a gap of -1: nothing but filling is left, -2: malformed."""
    zeros, bits = int64(0), 8 * data.size
    while at < bits and not (data[at >> 3] >> (7 - (at & 7))) & 1:
        zeros += 1
        at += 1
        if zeros > _LONG:
            return int64(-2), at
    if at == bits:
        return int64(-1) if zeros < 8 else int64(-2), at
    n = int64(_LONG_BITS) if zeros == _LONG else int64(k)
    low = _get(data, at + 1, n)
    if low < 0:
        return int64(-2), at
    return low if zeros == _LONG else (zeros << k) | low, at + 1 + n


@njit(nogil=True)
def _next(data, state):
    """Move state to the next decision."""
    at, before, _, total, count = state
    k = _parameter(total, count)
    gap, at = _get_gap(data, at, k)
    state[1] = gap
    if gap < 0:
        return
    whole = gap == 0
    if whole:
        gap, at = _get_gap(data, at, k)
    n = int64(32) if whole else int64(1)
    choice = _get(data, at, n)
    if gap < 1 or choice < 0:
        state[1] = -2
        return
    state[0], state[1], state[2] = at + n, before + gap, 2 + 4 * choice if whole else choice
    state[3], state[4] = _adapt(total, count, gap)


@kernel(types.void(array(uint8), _STATE))
def start(data, state):
    """Fill a reader's state from its row's bytes."""
    state[0], state[1], state[2], state[3], state[4] = 0, -1, 0, _FIRST_SUM, 1
    _next(data, state)


# ---- rounding


@njit(nogil=True)
def _zigzag(q):
    return (q << 1) ^ (q >> 63)


@njit(nogil=True)
def _note(q, margin, position, positions, choices, found):
    """Note integer q, chosen with this margin (in steps). Returns the number of notes so far."""
    if found < positions.size:  # a caller whose room was too small comes again with more
        n = int64(q)
        positions[found] = position
        choices[found] = n & 1 if margin < _WIDE else 2 + 4 * _zigzag(n)
    return found + 1


@njit(nogil=True)
def _decide(t, choice):
    """The integer that a decision means for value t."""
    if choice > 1:
        z = choice >> 2
        return np.float64((z >> 1) ^ -(z & 1))
    return 2.0 * np.rint(0.5 * (t - choice)) + choice


def _write_parameters(
    mean, log_scale, size, grid, steps, margin, position, index, mean_hat, positions, choices
):
    """Round one row; grid is (log of the smallest scale, levels per unit of log, levels), margin
    (absolute, relative), size how large the numbers are that a mean is the sum of.

    Returns (error, position) or (0, number of notes).
    """
    low, per_unit, top = grid[0], grid[1], grid[2] - 1.0
    absolute, relative = margin[0], margin[1]
    found = int64(0)
    for i in range(mean.size):
        x = float64(log_scale[i])
        if not abs(x) < np.inf:
            return int64(NOT_FINITE), int64(i)
        unclipped = (x - low) * per_unit
        t = min(max(unclipped, 0.0), top)
        q = np.rint(t)
        m = (absolute + relative * abs(x)) * per_unit - abs(unclipped - t)  # beyond an end: none
        if abs(t - q) + m > _NEAR:
            found = _note(q, m, position + 2 * i, positions, choices, found)
        level = int64(q)
        index[i] = uint16(level)

        x, step = float64(mean[i]), steps[level]
        per_step = 1.0 / step
        t = x * per_step  # exact: powers of two
        if not abs(t) <= MEAN_LIMIT:
            return int64(TOO_LARGE if abs(x) < np.inf else NOT_FINITE), int64(i)
        q = np.rint(t)
        m = (absolute + relative * max(abs(x), abs(float64(size[i])))) * per_step
        if abs(t - q) + m > _NEAR:
            found = _note(q, m, position + 2 * i + 1, positions, choices, found)
        mean_hat[i] = float32(float64(int64(q)) * step)
    return int64(OK), found


def _read_parameters(mean, log_scale, grid, steps, position, data, state, index, mean_hat):
    """The mirror of ``_write_parameters``. Returns (error, position)."""
    low, per_unit, top = grid[0], grid[1], grid[2] - 1.0
    at = state[1] - position  # of the next decision, counted within this call
    for i in range(mean.size):
        x = float64(log_scale[i])
        if not abs(x) < np.inf:
            return int64(NOT_FINITE), int64(i)
        t = min(max((x - low) * per_unit, 0.0), top)
        q = np.rint(t)
        if at == 2 * i:
            q = _decide(t, state[2])
            if not 0.0 <= q <= top:
                return int64(IMPOSSIBLE), int64(i)
            _next(data, state)
            at = state[1] - position
        level = int64(q)
        index[i] = uint16(level)

        x, step = float64(mean[i]), steps[level]
        t = x / step
        if not abs(x) < np.inf:
            return int64(NOT_FINITE), int64(i)
        q = np.rint(t)
        if at == 2 * i + 1:
            q = _decide(t, state[2])
            _next(data, state)
            at = state[1] - position
        if not abs(q) <= MEAN_LIMIT:
            return int64(TOO_LARGE), int64(i)
        mean_hat[i] = float32(float64(int64(q)) * step)
    return int64(MALFORMED if state[1] == -2 else OK), int64(0)


def _write_round(values, step, margin, position, out, positions, choices):
    """Round one row to multiples of a step. Returns as ``_write_parameters``."""
    absolute, relative = margin[0], margin[1]
    found = int64(0)
    for i in range(values.size):
        x = float64(values[i])
        t = x / step
        if not abs(t) <= ROUND_LIMIT:
            return int64(TOO_LARGE if abs(x) < np.inf else NOT_FINITE), int64(i)
        q = np.rint(t)
        m = (absolute + relative * abs(x)) / step
        if abs(t - q) + m > _NEAR:
            found = _note(q, m, position + i, positions, choices, found)
        out[i] = int32(q)
    return int64(OK), found


def _read_round(values, step, position, data, state, out):
    """The mirror of ``_write_round``. Returns (error, position)."""
    at = state[1] - position
    for i in range(values.size):
        x = float64(values[i])
        t = x / step
        if not abs(x) < np.inf:
            return int64(NOT_FINITE), int64(i)
        q = np.rint(t)
        if at == i:
            q = _decide(t, state[2])
            _next(data, state)
            at = state[1] - position
        if not abs(q) <= ROUND_LIMIT:
            return int64(TOO_LARGE), int64(i)
        out[i] = int32(q)
    return int64(MALFORMED if state[1] == -2 else OK), int64(0)


_PAIR = types.UniTuple(int64, 2)
_OUT = (array(uint16, writable=True), array(float32, writable=True))
_INTS = array(int32, writable=True)


def _for_floats(function: Callable, signature: Callable) -> dict[np.dtype, Callable]:
    """A kernel for each type of input, since most processes need only one compiled."""
    return {
        np.dtype(np.float32): kernel(signature(array(float32)))(function),
        np.dtype(np.float64): kernel(signature(array(float64)))(function),
    }


write_parameters = _for_floats(
    _write_parameters, lambda x: _PAIR(x, x, x, _F64, _F64, _F64, int64, *_OUT, *_POSITIONS)
)
read_parameters = _for_floats(
    _read_parameters, lambda x: _PAIR(x, x, _F64, _F64, int64, array(uint8), _STATE, *_OUT)
)
write_round = _for_floats(
    _write_round, lambda x: _PAIR(x, float64, _F64, int64, _INTS, *_POSITIONS)
)
read_round = _for_floats(
    _read_round, lambda x: _PAIR(x, float64, int64, array(uint8), _STATE, _INTS)
)
