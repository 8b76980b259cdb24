"""Lossless coding of masks: where pixels are missing, in a few bytes.

Contexts for the binary arithmetic coder of :mod:`tec.entropy.binary`. A mask is walked date by
date, band by band, in blocks of 32 x 32: most blocks are all valid, all missing, or the same as in
the band before, and cost hundredths of a bit. What is left goes pixel by pixel, each predicted from
its neighbours, the band and the date before.
"""

from __future__ import annotations

import numpy as np
from numba import boolean, int64, njit, uint8

from .entropy.binary import code, finish, start
from .entropy.jit import kernel
from .errors import StreamError

_BLOCK = 32
# Where the contexts of each kind of decision begin in one array of probabilities.
_SAME, _KIND, _PIXEL = 0, 16, 512
_CONTEXTS = _PIXEL + (1 << 13)
_VALID, _MISSING, _MIXED, _NONE = 0, 1, 2, 3


def encode_mask(mask: np.ndarray) -> bytes:
    """Code a mask.

    Parameters
    ----------
    mask : (time, band, y, x) bool, True where a pixel is set aside
    """
    pixels = np.ascontiguousarray(mask, bool).view(np.uint8)
    data = np.empty(256 + pixels.size // 8, np.uint8)
    length = _walk(pixels, data, True)
    if length > data.size:  # noise can cost more than a bit a pixel: now the length is known
        data = np.empty(length, np.uint8)
        length = _walk(pixels, data, True)
    return data[:length].tobytes()


def decode_mask(data: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of :func:`encode_mask`.

    Returns
    -------
    mask : shape (time, band, y, x) bool

    Raises
    ------
    StreamError
        The bytes are not the code of a mask of this shape.
    """
    pixels = np.empty(shape, np.uint8)
    length = _walk(pixels, np.frombuffer(data, np.uint8).copy(), False)
    if length != len(data):
        raise StreamError(
            f"the mask of missing pixels of a chunk {tuple(shape)} takes {length} bytes, not the "
            f"{len(data)} that are there: the stream is damaged; read it again from another copy"
        )
    return pixels.view(bool)


@njit(nogil=True, error_model="numpy")
def _look(now, before, top, bottom, left, right):  # type: ignore[no-untyped-def]
    """The kind of a block, and whether it equals that of the band before."""
    missing, same = 0, True
    for y in range(top, bottom):
        for x in range(left, right):
            missing += now[y, x]
            if now[y, x] != before[y, x]:
                same = False
    kind = _MIXED
    if missing == 0:
        kind = _VALID
    elif missing == (bottom - top) * (right - left):
        kind = _MISSING
    return kind, same


@njit(nogil=True, error_model="numpy")
def _context(now, before, y, x, reach, band):  # type: ignore[no-untyped-def]
    """Twelve bits: seven neighbours that are known, and five of the band before.

    ``reach``: how many columns of the row above are known. Outside the image the next best counts.
    """
    height, width = now.shape
    w = now[y, x - 1] if x > 0 else 0
    ww = now[y, x - 2] if x > 1 else w
    n = now[y - 1, x] if y > 0 else 0
    nn = now[y - 2, x] if y > 1 else n
    nw = now[y - 1, x - 1] if y > 0 and x > 0 else n
    ne = now[y - 1, x + 1] if y > 0 and x + 1 < reach else n
    nee = now[y - 1, x + 2] if y > 0 and x + 2 < reach else ne
    context = w | ww << 1 | n << 2 | nw << 3 | ne << 4 | nn << 5 | nee << 6
    if band > 0:
        here = before[y, x]
        e = before[y, x + 1] if x + 1 < width else here
        s = before[y + 1, x] if y + 1 < height else here
        w = before[y, x - 1] if x > 0 else here
        n = before[y - 1, x] if y > 0 else here
        context |= here << 7 | e << 8 | s << 9 | w << 10 | n << 11
    return context


@kernel(int64(uint8[:, :, :, ::1], uint8[::1], boolean))
def _walk(mask, data, encoding):  # type: ignore[no-untyped-def]
    """Code or decode ``mask`` (time, band, y, x) uint8 in place; the number of bytes it takes."""
    times, bands, height, width = mask.shape
    rows, columns = -(-height // _BLOCK), -(-width // _BLOCK)
    chances = np.full(_CONTEXTS, 32768, np.int64)
    counts = np.zeros(_CONTEXTS, np.int64)
    kinds = np.zeros((times, bands, rows + 1, columns + 1), np.uint8)  # a valid margin above, left
    state = np.zeros(4, np.int64)
    start(state, data, encoding)
    for time in range(times):
        for band in range(bands):
            now, before = mask[time, band], mask[time, max(band - 1, 0)]
            earlier = mask[max(time - 1, 0), band]
            for block in range(rows * columns):
                row, column = block // columns, block % columns
                top, left = row * _BLOCK, column * _BLOCK
                bottom, right = min(top + _BLOCK, height), min(left + _BLOCK, width)
                around = 3 * kinds[time, band, row + 1, column] + kinds[time, band, row, column + 1]
                below = kinds[time, band - 1, row + 1, column + 1] if band > 0 else _NONE
                past = kinds[time - 1, band, row + 1, column + 1] if time > 0 else _NONE
                kind, same = _MIXED, False
                if encoding:
                    kind, same = _look(now, before, top, bottom, left, right)
                if below == _MIXED:
                    bit = 1 if same else 0
                    if code(bit, _SAME + around, chances, counts, state, data, encoding):
                        kinds[time, band, row + 1, column + 1] = _MIXED
                        if not encoding:
                            now[top:bottom, left:right] = before[top:bottom, left:right]
                        continue
                context = _KIND + 2 * (16 * around + 4 * below + past)
                bit = 1 if kind == _MIXED else 0
                if code(bit, context, chances, counts, state, data, encoding):
                    kinds[time, band, row + 1, column + 1] = _MIXED
                    for y in range(top, bottom):
                        reach = width if y == top else right
                        for x in range(left, right):
                            context = _PIXEL + _context(now, before, y, x, reach, band)
                            if time > 0:
                                context += earlier[y, x] << 12
                            bit = 1 if now[y, x] else 0
                            bit = code(bit, context, chances, counts, state, data, encoding)
                            now[y, x] = bit
                    continue
                kind = code(kind, context + 1, chances, counts, state, data, encoding)
                kinds[time, band, row + 1, column + 1] = kind
                if not encoding:
                    now[top:bottom, left:right] = kind
    return finish(state, data, encoding)
