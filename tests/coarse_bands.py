"""Bands of a scene as they are when their native pixels are larger: repeated or interpolated."""

from __future__ import annotations

import numpy as np
from tec.sensors import SENSORS

#: Pixels of 10 m in a native one, each way.
FACTOR = dict(zip(SENSORS["S2L2A"].bands, (n // 10 for n in SENSORS["S2L2A"].gsd)))


def repeated(cells: np.ndarray, factor: int, y: int, x: int, shape: tuple[int, int]) -> np.ndarray:
    """(..., i, j) native pixels -> (..., *shape), the first pixel at (y, x) within the first."""
    pixels = cells.repeat(factor, -2).repeat(factor, -1)
    return pixels[..., y : y + shape[0], x : x + shape[1]]


def interpolated(
    cells: np.ndarray, factor: int, y: int, x: int, shape: tuple[int, int]
) -> np.ndarray:
    """The same, bilinear between centres, in float64; ``cells`` start one native pixel earlier, and
    one more is needed behind."""
    for axis, first, size in ((-2, y, shape[0]), (-1, x, shape[1])):
        at = (np.arange(size) + first + 0.5) / factor + 0.5
        below = at.astype(int)
        share = at - below if axis == -1 else (at - below)[:, None]
        cells = cells.take(below, axis) * (1 - share) + cells.take(below + 1, axis) * share
    return cells


def cells_of(plane: np.ndarray, factor: int) -> np.ndarray:
    """(..., y, x) -> every so manieth pixel: native pixels with the contrast of ``plane``."""
    return plane[..., ::factor, ::factor]


def repeat_bands(chunk: np.ndarray, bands: tuple[str, ...], y: int = 0, x: int = 0) -> np.ndarray:
    """A copy of (time, band, y, x) whose 20 m and 60 m bands repeat native pixels.

    The first native pixels lie y and x pixels of 10 m outside, or what is left of that.
    """
    out = chunk.copy()
    for b, name in enumerate(bands):
        f = FACTOR[name]
        if f > 1:
            wide = np.pad(chunk[:, b], [(0, 0), (f, f), (f, f)], mode="edge")
            out[:, b] = repeated(cells_of(wide, f), f, y % f, x % f, chunk.shape[2:])
    return out
