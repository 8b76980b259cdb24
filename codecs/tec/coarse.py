"""Bands on a coarser grid than their pixels: 20 m and 60 m bands that were brought to 10 m.

Where each native pixel was *repeated* (odc-stac's and GDAL's default), that is recognised exactly
or not at all. The networks, which know bands that were interpolated, see the native pixels
interpolated bilinearly; what they give back is taken for that interpolation: the native pixels are
its least-squares solution, and each is repeated.

Where pixels were *interpolated* bilinearly (as in SSL4EO-S12), to within rounding, the networks see
them as they are, and what they give back is replaced by the nearest such interpolation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

#: Pixels of a native pixel each way: 60 m on 10 m and on 20 m, 20 m on 10 m.
FACTORS = (6, 3, 2)
#: Codes of repeated grids end here; those of interpolated ones follow.
_CODES = sum(f * f for f in FACTORS)
#: The highest `Grid.code`.
LAST_GRID = 2 * _CODES
_GLANCE = 64  # rows and columns of the first date that rule out most bands
_ROUNDING = 2.5  # DN that interpolated pixels may be off: they were rounded, perhaps twice


@dataclass(frozen=True)
class Grid:
    """Where the native pixels of a band lie.

    Attributes
    ----------
    factor : pixels of a native pixel each way
    y, x : rows and columns of the first native pixel that lie outside the chunk
    repeated : whether pixels repeat the native ones; else they are interpolated between them
    """

    factor: int
    y: int
    x: int
    repeated: bool = True

    @property
    def code(self) -> int:
        """One byte, never 0 (FORMAT.md)."""
        before = sum(f * f for f in FACTORS if f < self.factor)
        return 1 + before + self.y * self.factor + self.x + (0 if self.repeated else _CODES)

    @classmethod
    def from_code(cls, code: int) -> Grid | None:
        """None for 0; ValueError for what no grid has."""
        if not code:
            return None
        kind, rest = divmod(code - 1, _CODES)
        for factor in sorted(FACTORS):
            if rest < factor**2 and kind < 2:
                return cls(factor, *divmod(rest, factor), repeated=not kind)
            rest -= factor**2
        raise ValueError(f"there is no grid of code {code}")


def find_grids(
    chunk: np.ndarray, mask: np.ndarray | None, *, coarse: Sequence[bool], scale: float = 1.0
) -> tuple[Grid | None, ...]:
    """The grid of each band of a chunk, None for those that are left alone.

    Parameters
    ----------
    chunk : (time, band, y, x), stored units
    mask : (time, band, y, x) bool, True where a pixel is special and says nothing; or None
    coarse : of each band, whether its sensor has larger pixels in it than in others
    scale : the value of one DN
    """
    found = []
    for b, may in enumerate(coarse):
        band, holes = chunk[:, b], None if mask is None else mask[:, b]
        grid = _repeated_grid(band, holes)
        if grid is None and may and (holes is None or not holes.any()):
            grid = _interpolated_grid(band, _ROUNDING * scale)
        found.append(grid)
    return tuple(found)


def interpolated(plane: np.ndarray, holes: np.ndarray | None, grid: Grid) -> None:
    """Replace repeated pixels by the bilinear interpolation of the native ones, in place.

    Parameters
    ----------
    plane : (y, x) float32; what stands in the holes does not matter
    holes : (y, x) bool, at least one False; or None
    grid : nothing is done where pixels are not repeated
    """
    if not grid.repeated:
        return
    cells = _cells(plane if holes is None else np.where(holes, np.float32(-np.inf), plane), grid)
    missing = np.isneginf(cells)
    if missing.any():
        from .holes import fill_holes

        fill_holes(cells, missing)
    plane[:] = _interpolation(cells, grid, plane.shape)


def restored(plane: np.ndarray, grid: Grid) -> None:
    """What a network made of a band, (y, x) float32, put back on the band's grid, in place."""
    cells = native(plane, grid)
    if grid.repeated:
        plane[:] = _repetition(cells, grid, plane.shape)
    else:
        plane[:] = _interpolation(cells, grid, plane.shape)


def native(plane: np.ndarray, grid: Grid) -> np.ndarray:
    """The native pixels whose interpolation is nearest to (y, x) float32: float32, with one beyond
    each edge where pixels are interpolated."""
    cells = _solve(np.ascontiguousarray(plane), grid.y, grid)
    return np.ascontiguousarray(_solve(np.ascontiguousarray(cells.T), grid.x, grid).T)


def _repeated_grid(band: np.ndarray, mask: np.ndarray | None) -> Grid | None:
    glance = np.s_[:1, :_GLANCE, :_GLANCE]
    if _fitting(band[glance], None if mask is None else mask[glance]) == []:
        return None
    for grid in _fitting(band, mask) or ():
        if mask is None or all(map(_is_constant, band, mask, [grid] * len(band))):
            return grid
    return None


def _fitting(band: np.ndarray, mask: np.ndarray | None) -> list[Grid] | None:
    """Grids on whose lines all changes between valid neighbours (time, y, x) lie; None where
    nothing changes."""
    valid = None if mask is None else ~mask
    lines = []
    for axis in (1, 2):
        here = tuple(slice(1, None) if a == axis else slice(None) for a in range(3))
        there = tuple(slice(None, -1) if a == axis else slice(None) for a in range(3))
        change = band[here] != band[there]
        if valid is not None:
            change &= valid[here] & valid[there]
        lines.append(np.flatnonzero(change.any(axis=(0, 3 - axis))) + 1)
    if not any(map(len, lines)):
        return None
    found = []
    for factor in FACTORS:
        phases = [np.unique(at % factor) for at in lines]
        if all(len(p) <= 1 for p in phases):
            y, x = (-int(p[0]) % factor if len(p) else 0 for p in phases)
            found.append(Grid(factor, y, x))
    return found


def _is_constant(plane: np.ndarray, mask: np.ndarray, grid: Grid) -> bool:
    """Whether valid pixels of a native pixel agree even where holes part them."""
    cells = _cells(np.where(mask, -np.inf, plane), grid)
    return bool((mask | (_repetition(cells, grid, plane.shape) == plane)).all())


def _interpolated_grid(band: np.ndarray, tolerance: float) -> Grid | None:
    """The grid between whose native pixels all pixels of (time, y, x) are interpolated."""
    if not len(band):
        return None
    first = band[0, :_GLANCE, :_GLANCE].astype(np.float32, order="C")
    for factor in FACTORS:
        if min(first.shape) < 4 * factor:
            continue
        phases = []
        for rows in (first, np.ascontiguousarray(first.T)):
            for phase in range(factor):
                grid = Grid(factor, phase, 0, repeated=False)
                below, share, _ = _weights(len(rows), phase, grid)
                cells = _solve(rows, phase, grid)
                if np.abs(_between(cells, below, share, 0) - rows).max() <= tolerance:
                    phases.append(phase)
                    break
            else:
                break
        if len(phases) == 2:
            grid = Grid(factor, phases[0], phases[1], repeated=False)
            if all(_is_interpolated(plane, grid, tolerance) for plane in band):
                return grid
    return None


def _is_interpolated(plane: np.ndarray, grid: Grid, tolerance: float) -> bool:
    fitted = plane.astype(np.float32, order="C")
    restored(fitted, grid)
    return bool(np.abs(fitted - plane).max() <= tolerance)


def _cells(plane: np.ndarray, grid: Grid) -> np.ndarray:
    """The largest value in each native pixel."""
    for axis, first in enumerate((grid.y, grid.x)):
        starts = np.arange(-first, plane.shape[axis], grid.factor).clip(0)
        plane = np.maximum.reduceat(plane, starts, axis=axis)
    return plane


def _repetition(cells: np.ndarray, grid: Grid, shape: tuple[int, ...]) -> np.ndarray:
    rows, columns = (
        (np.arange(n) + first) // grid.factor for n, first in zip(shape, (grid.y, grid.x))
    )
    return cells[rows][:, columns]


def _interpolation(cells: np.ndarray, grid: Grid, shape: tuple[int, ...]) -> np.ndarray:
    for axis, first in enumerate((grid.y, grid.x)):
        below, share, _ = _weights(shape[axis], first, grid)
        cells = _between(cells, below, share, axis)
    return cells


def _between(cells: np.ndarray, below: np.ndarray, share: np.ndarray, axis: int) -> np.ndarray:
    share = share.astype(np.float32)
    share = share[:, None] if axis == 0 else share
    above = np.minimum(below + 1, cells.shape[axis] - 1)
    return cells.take(below, axis) * (1 - share) + cells.take(above, axis) * share


def _weights(size: int, first: int, grid: Grid) -> tuple[np.ndarray, np.ndarray, int]:
    """For each pixel the native pixel below its centre, and the share of the one above; and how
    many native pixels there are. Interpolated pixels may see one beyond each edge, repeated ones
    are shown without."""
    at = (np.arange(size) + first + 0.5) / grid.factor - 0.5
    last = (size - 1 + first) // grid.factor
    if grid.repeated:
        at = at.clip(0, last)
    else:
        at, last = at + 1, last + 2
    below = np.minimum(at.astype(np.int64), max(last - 1, 0))
    return below, at - below, last + 1


def _solve(values: np.ndarray, first: int, grid: Grid) -> np.ndarray:
    """Native rows (cells, k) float32 whose interpolation is nearest to the rows of ``values``."""
    from .tridiagonal import solve

    below, share, n = _weights(len(values), first, grid)
    diagonal, beside = np.zeros(n), np.zeros(n)
    np.add.at(diagonal, below, (1 - share) ** 2)
    np.add.at(diagonal, np.minimum(below + 1, n - 1), share**2)
    np.add.at(beside, below, share * (1 - share))
    diagonal[diagonal == 0] = 1  # beyond the edge, and seen by no pixel
    out = np.zeros((n, values.shape[1]), np.float32)
    solve(values, below, share, diagonal, beside, out)
    return out
