"""One plane of integers, coded pixel by pixel within a bound: predicted, quantised, entropy coded.

In the spirit of CCSDS 123.0-B-2: each pixel is predicted as a weighted sum of its neighbours and of
the same place in other planes (bands, dates, a lossy picture), and what is missing to it is
quantised in steps of 2 bound + 1, in a closed loop. Unlike there, the weights are fitted by the
encoder (least squares, weighted by the local activity) and sent. The reader needs integers only,
so that all machines read the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numba import boolean, int32, int64, njit, uint8, void

from .entropy.binary import AT, HIGH, LOW, NUMBER, PATIENCE, VALUE, adapted, split
from .entropy.jit import array, kernel

#: Weights are multiples of 2**-SHIFT.
SHIFT = 10
#: Rows above and below a padded plane, columns at each side of it.
ABOVE, BELOW, BESIDE = 2, 1, 2
_LEVELS = 56  # of the errors around a pixel, four a factor of two
_SIDES = 5  # where a prediction lies between the values that can be
_BITS = 32  # of an error
_ZERO, _SIGN = 0, _LEVELS * _SIDES
_LENGTH = _SIGN + _SIDES
_TOP = _LENGTH + _LEVELS * _BITS
_BANK = _TOP + _LEVELS * _BITS * 3
#: Banks of contexts for pixels: predicted here, and predicted by whoever calls.
_BANKS = 2
#: Where the contexts of numbers begin, and kinds of them.
NUMBERS = _BANKS * _BANK
PLAIN, LENGTHS, GAPS, WEIGHTS = 0, 1, 2, 6
_MOST_TAPS = 64
_CHOICE = NUMBERS + (WEIGHTS + _MOST_TAPS) * NUMBER  # below or above nodata
_COPY = _CHOICE + 1
_COPIES = 3 * 3 * 4
CONTEXTS = _COPY + 2 * _COPIES
#: What a pixel repeats, where planes are known to repeat some.
NEW, AS_WEST, AS_NORTH, UNKNOWN = 0, 1, 2, 3
#: No weight is larger, in multiples of 2**-SHIFT.
LARGEST_WEIGHT = 1 << 15

# What a decision is about.
_IS_ZERO, _IS_NEGATIVE, _IS_LONGER, _UP, _DOWN = 0, 1, 2, 3, 4
_TOP_BIT, _SECOND_BIT, _THIRD_BIT, _DONE, _BESIDE = 5, 6, 7, 8, 9
_IS_WEST, _IS_NORTH = 10, 11

Tap = tuple[int, int]
#: Taps of the plane itself.
NEAR: tuple[Tap, ...] = ((0, -1), (-1, 0), (-1, -1), (-1, 1))
FAR: tuple[Tap, ...] = ((0, -2), (-2, 0))
_CROSS: tuple[Tap, ...] = ((0, 0), (0, -1), (-1, 0), (0, 1), (1, 0))
_CORNERS: tuple[Tap, ...] = ((-1, -1), (-1, 1), (1, -1), (1, 1))


class Group(NamedTuple):
    """Taps that are there together or not at all.

    Attributes
    ----------
    plane : 0 the plane itself, from 1 on the others
    taps : rows and columns from the pixel
    own : whether these are pictures of the plane itself, not of something that is like it
    """

    plane: int
    taps: tuple[Tap, ...]
    own: bool


def groups_of(others: int, picture: bool) -> list[Group]:
    """Groups of taps where so many other planes are there, the first a picture of the plane itself
    if ``picture`` says so. The first group is always taken."""
    found = [Group(0, NEAR, True), Group(0, FAR, True)]
    for plane in range(1, others + 1):
        own = picture and plane == 1
        found.append(Group(plane, _CROSS, own))
        if plane == 1 or (picture and plane == 2):
            found.append(Group(plane, _CORNERS, own))
    return found


def copies_of(plane: np.ndarray, holes: np.ndarray | None) -> np.ndarray:
    """What each pixel of (y, x) repeats: (y, x) uint8."""
    out = np.full(plane.shape, NEW, np.uint8)
    for kind, here, there in (
        (AS_NORTH, np.s_[1:], np.s_[:-1]),
        (AS_WEST, np.s_[:, 1:], np.s_[:, :-1]),
    ):
        alike = plane[here] == plane[there]
        if holes is not None:
            alike &= ~(holes[here] | holes[there])
        out[here][alike] = kind
    return out


def padded(plane: np.ndarray) -> np.ndarray:
    """(y, x) with its edges repeated, int32."""
    height, width = plane.shape
    out = np.empty((ABOVE + height + BELOW, width + 2 * BESIDE), np.int32)
    out[ABOVE : ABOVE + height, BESIDE : BESIDE + width] = plane
    out[:, :BESIDE] = out[:, BESIDE : BESIDE + 1]
    out[:, BESIDE + width :] = out[:, BESIDE + width - 1 : BESIDE + width]
    out[:ABOVE] = out[ABOVE]
    out[ABOVE + height :] = out[ABOVE + height - 1]
    return out


def linear(
    groups: Sequence[Group], weights: np.ndarray, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Groups and their weights as one weighted sum over padded planes, one after another in memory.

    Twice the pixel less the mean of two neighbours (west and north) is predicted from as much of
    other planes, so that an offset between planes changes nothing.

    Returns
    -------
    (k,) int64 twice: places in memory from the pixel's in plane 0, weights (2**(SHIFT + 1) is 1)
    """
    width = shape[1] + 2 * BESIDE
    size = (shape[0] + ABOVE + BELOW) * width
    sums = {-1: 1 << SHIFT, -width: 1 << SHIFT}
    at = 0
    for plane, taps, own in groups:
        base = 0 if own else plane * size
        for y, x in taps:
            weight = int(weights[at])
            at += 1
            place = plane * size + y * width + x
            sums[place] = sums.get(place, 0) + 2 * weight
            for neighbour in (base - 1, base - width):
                sums[neighbour] = sums.get(neighbour, 0) - weight
    places = sorted(sums)
    return np.array(places, np.int64), np.array([sums[p] for p in places], np.int64)


def _level_of(total: int) -> int:
    """Four levels a factor of two."""
    if total < 4:
        return total
    bits = total.bit_length() - 1
    return min(4 * bits - 4 + ((total >> (bits - 2)) & 3), _LEVELS - 1)


_LEVEL = np.array([_level_of(total) for total in range(1 << 12)], np.int64)


@njit(nogil=True, error_model="numpy")
def _level(total):  # type: ignore[no-untyped-def]
    above = int64(0)
    while total >= 1 << 12:
        total >>= 1
        above += 4
    return min(_LEVEL[total] + above, _LEVELS - 1)


@kernel(
    void(
        int32[:, ::1],
        uint8[:, ::1],
        array(int32, writable=True),
        array(int64),
        array(int64),
        int32[:, ::1],
        array(int64),
        array(int32),
        array(int32),
        int32[:, ::1],
        uint8[:, ::1],
        uint8[:, ::1],
        int64[::1],
        int64[::1],
        int64[::1],
        uint8[::1],
        boolean,
    )
)
def walk(  # type: ignore[no-untyped-def]
    values,
    holes,
    planes,
    places,
    weights,
    predicted,
    settings,
    table,
    nearest,
    errors,
    copies,
    copies_before,
    chances,
    counts,
    state,
    data,
    encoding,
):
    """Code or decode some rows of a plane.

    Parameters
    ----------
    values : (y, x), what is coded; becomes what is decoded
    holes : (y, x), or empty: pixels that are not coded, and become their prediction
    planes : padded planes, the first of them the decoded one, filled in here
    places, weights : as `linear` gives them
    predicted : (y, x), or empty: predictions in place of those
    settings : first and last row (exclusive), the first pixel's neighbours, lowest and highest
        value, bound, the value that no pixel may have (or one that none can)
    table, nearest : the values that pixels can have, and for each value from the lowest on the
        place of the nearest of these; empty where all are possible
    errors : (y + 2, x + 4), sizes of what was coded, for the contexts
    copies : (y, x), or empty: what each pixel repeats (NEW, AS_WEST, AS_NORTH)
    copies_before : (y, x), or empty: the same of another plane that may repeat alike
    """
    width = values.shape[1]
    across = width + 2 * BESIDE
    first, last, own = settings[0], settings[1], settings[2]
    lowest, highest, bound, nodata = settings[3], settings[4], settings[5], settings[6]
    low, high, word, done = state[LOW], state[HIGH], state[VALUE], state[AT]
    step, mapped, given = 2 * bound + 1, table.size > 0, predicted.size > 0
    bank = int64(_BANK if given else 0)
    half = int64(1) << SHIFT
    for y in range(first, last):
        for x in range(width):
            at = (y + ABOVE) * across + x + BESIDE
            if x == 0:  # the neighbours that lie outside
                if y == 0:
                    planes[at - across - 1] = own
                    planes[at - across] = own
                    planes[at - 2 * across] = own
                    planes[at - across + 1] = own
                    planes[at - 1] = own
                    planes[at - 2] = own
                else:
                    planes[at - 1] = planes[at - across]
                    planes[at - 2] = planes[at - across]
                    planes[at - across - 1] = planes[at - across]
                    last_above = planes[at - across + width - 1]
                    planes[at - across + width] = last_above
                    planes[at - across + width + 1] = last_above
            elif y == 0:
                planes[at - across] = planes[at - 1]
                planes[at - 2 * across] = planes[at - 1]
                planes[at - across + 1] = planes[at - 1]
            total = int64(0)
            if given:
                total = int64(predicted[y, x]) * (2 * half)
            else:
                for k in range(places.size):
                    total += weights[k] * int64(planes[at + places[k]])
            guess = (total + half) >> (SHIFT + 1)
            side = int64(2)
            if guess < lowest:
                guess = lowest
            elif guess > highest:
                guess = highest
            elif bound == 0 and not mapped:
                side = ((total - guess * 2 * half + half) * _SIDES) >> (SHIFT + 1)
            if holes.size > 0 and holes[y, x]:
                planes[at] = guess
                values[y, x] = guess
                errors[y + 2, x + 2] = errors[y + 2, x + 1]
                if copies.size > 0:
                    copies[y, x] = NEW
                continue
            place = int64(0)
            if mapped:
                place = int64(nearest[guess - lowest])
                off = guess - int64(table[place])
                gap = int64(0)
                if off > 0 and place + 1 < table.size:
                    gap = int64(table[place + 1]) - int64(table[place])
                elif off < 0 and place > 0:
                    gap = int64(table[place]) - int64(table[place - 1])
                if gap > 0:
                    away = min((5 * abs(off) + gap // 2) // gap, 2)
                    side = 2 + away if off > 0 else 2 - away
            around = 3 * (int64(errors[y + 2, x + 1]) + int64(errors[y + 1, x + 2]))
            around += 2 * (int64(errors[y + 1, x + 3]) + int64(errors[y + 1, x + 1]))
            around += int64(errors[y + 2, x]) + int64(errors[y, x + 2])
            level = _level(around)
            q = int64(0)
            if encoding:
                if mapped:
                    q = int64(nearest[int64(values[y, x]) - lowest]) - place
                else:
                    miss = int64(values[y, x]) - guess
                    q = (abs(miss) + bound) // step
                    q = -q if miss < 0 else q
            size, bits = abs(q), int64(0)
            while (size >> (bits + 1)) > 0:
                bits += 1
            # One decision a turn: is it 0, its sign, its length in bits (from what the neighbours
            # let expect, up or down), the two bits after the highest; last, below or above nodata.
            length, stage, number, value = int64(0), _IS_ZERO, int64(1), int64(0)
            negative = False
            context = bank + _ZERO + level * _SIDES + side
            bit = int64(1) if q == 0 else int64(0)
            if copies.size > 0:
                stage = _IS_WEST
                context = int64(copies[y, x - 1]) if x > 0 else int64(NEW)
                context = 3 * context + (int64(copies[y - 1, x]) if y > 0 else int64(NEW))
                alike = int64(copies_before[y, x]) if copies_before.size > 0 else int64(UNKNOWN)
                context = _COPY + 4 * context + alike
                bit = int64(1) if encoding and copies[y, x] == AS_WEST else int64(0)
            while True:
                middle, count = split(low, high, chances[context]), counts[context]
                if not encoding:
                    bit = int64(1) if word <= middle else int64(0)
                if bit:
                    high = middle
                else:
                    low = middle + 1
                chances[context] = adapted(chances[context], count, bit)
                if count < PATIENCE:
                    counts[context] = count + 1
                while (low ^ high) & 0xFF000000 == 0:
                    if encoding:
                        if done < data.size:
                            data[done] = high >> 24
                    else:
                        byte = int64(data[done + 4]) if done + 4 < data.size else int64(0)
                        word = ((word << 8) & 0xFFFFFFFF) | byte
                    done += 1
                    low = (low << 8) & 0xFFFFFFFF
                    high = ((high << 8) & 0xFFFFFFFF) | 0xFF
                if stage == _IS_ZERO:
                    if bit:
                        number, stage = int64(0), _DONE
                    else:
                        stage, context = _IS_NEGATIVE, bank + _SIGN + side
                        bit = int64(1) if q < 0 else int64(0)
                elif stage == _IS_NEGATIVE:
                    negative = bit == 1
                    length, stage = max((level - 9) // 4, int64(0)), _IS_LONGER
                    context = bank + _LENGTH + level * _BITS + _BITS - 1
                    bit = int64(1) if bits > length else int64(0)
                elif stage == _IS_LONGER or stage == _UP:  # noqa: SIM109
                    length += bit
                    if bit == 0 and stage == _IS_LONGER and length > 0:
                        stage = _DOWN
                        bit = int64(1) if bits < length else int64(0)
                    elif bit == 1 and length < _BITS - 2:
                        stage = _UP
                        bit = int64(1) if bits > length else int64(0)
                    else:
                        stage = _TOP_BIT
                    context = bank + _LENGTH + level * _BITS + length
                elif stage == _DOWN:
                    length -= bit
                    context -= bit
                    if bit == 0 or length == 0:
                        stage = _TOP_BIT
                    else:
                        bit = int64(1) if bits < length else int64(0)
                elif stage == _SECOND_BIT:
                    number, length = 2 + bit, length - 1
                    stage = _THIRD_BIT if length > 0 else _DONE
                    context += 1 + bit
                    bit = (size >> (length - 1)) & 1 if length > 0 else int64(0)
                elif stage == _THIRD_BIT:
                    number, length = (number << 1) | bit, length - 1
                    for i in range(length - 1, -1, -1):  # the others: even odds
                        middle = low + ((high - low) >> 1)
                        bit = (size >> i) & 1
                        if not encoding:
                            bit = int64(1) if word <= middle else int64(0)
                        if bit:
                            high = middle
                        else:
                            low = middle + 1
                        while (low ^ high) & 0xFF000000 == 0:
                            if encoding:
                                if done < data.size:
                                    data[done] = high >> 24
                            else:
                                byte = int64(data[done + 4]) if done + 4 < data.size else int64(0)
                                word = ((word << 8) & 0xFFFFFFFF) | byte
                            done += 1
                            low = (low << 8) & 0xFFFFFFFF
                            high = ((high << 8) & 0xFFFFFFFF) | 0xFF
                        number = (number << 1) | bit
                    stage = _DONE
                elif stage == _IS_WEST:
                    if bit:
                        copies[y, x] = AS_WEST
                        value, q = int64(planes[at - 1]), int64(errors[y + 2, x + 1])
                        break
                    stage, context = _IS_NORTH, context + _COPIES
                    bit = int64(1) if encoding and copies[y, x] == AS_NORTH else int64(0)
                elif stage == _IS_NORTH:
                    if bit:
                        copies[y, x] = AS_NORTH
                        value, q = int64(planes[at - across]), int64(errors[y + 1, x + 2])
                        break
                    copies[y, x] = NEW
                    stage, context = _IS_ZERO, bank + _ZERO + level * _SIDES + side
                    bit = int64(1) if q == 0 else int64(0)
                else:  # beside nodata
                    value += 2 * bit - 1
                    break
                if stage == _TOP_BIT:
                    stage = _SECOND_BIT if length > 0 else _DONE
                    context = bank + _TOP + (level * _BITS + length) * 3
                    bit = (size >> (length - 1)) & 1 if length > 0 else int64(0)
                if stage == _DONE:
                    q = -number if negative else number
                    if mapped:
                        value = int64(table[min(max(place + q, 0), table.size - 1)])
                        break
                    value = min(max(guess + q * step, lowest), highest)
                    if value != nodata:
                        break
                    stage, context = _BESIDE, _CHOICE
                    bit = int64(1) if int64(values[y, x]) > nodata else int64(0)
            planes[at] = value
            values[y, x] = value
            errors[y + 2, x + 2] = min(abs(q), 1 << 20)
        errors[y + 2, 1] = errors[y + 2, 2]
        errors[y + 2, width + 2] = errors[y + 2, width + 1]
    state[LOW], state[HIGH], state[VALUE], state[AT] = low, high, word, done
