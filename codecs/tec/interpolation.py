"""Bilinear interpolation of integers, as FORMAT.md defines it for the residual layer: exact."""

from __future__ import annotations

import numpy as np
from numba import int32, int64, njit, void

from .coarse import Grid
from .entropy.jit import kernel


def interpolate(cells: np.ndarray, grid: Grid, shape: tuple[int, int]) -> np.ndarray:
    """Pixels between native ones, rounded half up.

    Parameters
    ----------
    cells : (y, x) int32, with one beyond each edge
    shape : of what is returned, int32
    """
    out = np.empty(shape, np.int32)
    _interpolate(np.ascontiguousarray(cells, np.int32), grid.factor, grid.y, grid.x, out)
    return out


def refine(cells: np.ndarray, plane: np.ndarray, grid: Grid) -> None:
    """Move cells by one where more pixels then come out as they are, in place."""
    if grid.factor == 2:  # natives of 60 m are averages of so many pixels that they come out right
        _refine(cells, np.ascontiguousarray(plane, np.int32), grid.factor, grid.y, grid.x)


@njit(nogil=True, error_model="numpy")
def _pixel(cells, factor, top, left, y, x):  # type: ignore[no-untyped-def]
    double = int64(2 * factor)
    v, u = int64(2 * (y + top) + 1 + factor), int64(2 * (x + left) + 1 + factor)
    i, j = v // double, u // double
    v -= i * double
    u -= j * double
    above = (double - u) * int64(cells[i, j]) + u * int64(cells[i, j + 1])
    below = (double - u) * int64(cells[i + 1, j]) + u * int64(cells[i + 1, j + 1])
    total = (double - v) * above + v * below
    return (total + double * double // 2) // (double * double)


@kernel(void(int32[:, ::1], int64, int64, int64, int32[:, ::1]))
def _interpolate(cells, factor, top, left, out):  # type: ignore[no-untyped-def]
    for y in range(out.shape[0]):
        for x in range(out.shape[1]):
            out[y, x] = _pixel(cells, factor, top, left, y, x)


@njit(nogil=True, error_model="numpy")
def _misses(cells, plane, factor, top, left, i, j):  # type: ignore[no-untyped-def]
    """How many pixels that see a cell come out otherwise."""
    y, x = i * factor - (factor + 1) // 2 - top, j * factor - (factor + 1) // 2 - left
    count = 0
    for row in range(max(y - factor, 0), min(y + factor, plane.shape[0])):
        for column in range(max(x - factor, 0), min(x + factor, plane.shape[1])):
            if _pixel(cells, factor, top, left, row, column) != plane[row, column]:
                count += 1
    return count


@kernel(void(int32[:, ::1], int32[:, ::1], int64, int64, int64))
def _refine(cells, plane, factor, top, left):  # type: ignore[no-untyped-def]
    double = 2 * factor
    for _ in range(2):
        for y in range(plane.shape[0]):
            for x in range(plane.shape[1]):
                if _pixel(cells, factor, top, left, y, x) == plane[y, x]:
                    continue
                i = (2 * (y + top) + 1 + factor) // double
                j = (2 * (x + left) + 1 + factor) // double
                for k in range(8):  # the four cells that it lies between, one down and one up
                    row, column = i + ((k >> 1) & 1), j + (k >> 2)
                    before = _misses(cells, plane, factor, top, left, row, column)
                    cells[row, column] += 2 * (k & 1) - 1
                    if _misses(cells, plane, factor, top, left, row, column) < before:
                        break
                    cells[row, column] -= 2 * (k & 1) - 1
