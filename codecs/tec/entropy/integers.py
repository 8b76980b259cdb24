"""Plainly rounded values, as the temporal models have them: integers under laws between integers.

A mean on its grid is an integer and a fraction. The integer is subtracted from the value, the
fraction and the scale's level choose the table. (Where values are rounded around their means
instead, see :mod:`tec.entropy.portable`, the fraction is always zero.)
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ..errors import TecError
from .portable import ScaleGrid
from .tables import MOST_SYMBOLS, TAIL, Tables, quantise_pmf

#: Of the published temporal models.
GRID = ScaleGrid(64, 0.04, 256.0, 0.0625, 0.25)
#: cumulative probability of the law of each level at (levels, k) distances from its mean
Law = Callable[[np.ndarray], np.ndarray]
_WITHIN = 16  # places inside a cell of the means' grid over which a table is averaged


class IntegerCoding:
    """Table index and integer part of means, for one grid.

    Parameters
    ----------
    tables : of `integer_tables` for the same grid: for each level, one for each fraction
    """

    def __init__(self, grid: ScaleGrid, tables: Tables) -> None:
        if len(tables) != int(fractions(grid).sum()):
            raise TecError(
                f"{len(tables)} tables for {fractions(grid).sum()} pairs of scale and fraction"
            )
        self.tables = tables
        self._count = fractions(grid)
        self._per_one = (1 / grid.steps).astype(np.float32)
        self._first = np.concatenate([[0], np.cumsum(self._count)[:-1]])

    def __call__(self, level: np.ndarray, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Level and mean on its grid -> index (uint16) and integer part (float32).

        symbol = value - integer part; fractions run from -1/2 up to, but not, 1/2.
        """
        whole = np.floor(mean + np.float32(0.5))
        at = (mean - whole) * self._per_one[level] + self._count[level] // 2
        return (self._first[level] + at.astype(np.int64)).astype(np.uint16), whole


def fractions(grid: ScaleGrid) -> np.ndarray:
    """(levels,) int64: how many fractions a mean can have at each level."""
    return np.maximum(1, np.rint(1 / grid.steps)).astype(np.int64)


# What follows makes tables, in float64, when a model is exported; it never runs while coding.


def integer_tables(grid: ScaleGrid, laws: list[Law]) -> Tables:
    """Tables of integers for each level and fraction.

    Parameters
    ----------
    laws : for each level its cumulative distribution, symmetric about a mean of zero

    Probabilities are averaged over the cell of the grid that a mean was rounded to.
    """
    tables = []
    for law, step, count in zip(laws, grid.steps, fractions(grid), strict=True):
        within = ((np.arange(_WITHIN) + 0.5) / _WITHIN - 0.5) * step
        for i in range(count):
            means = (i - count // 2) * step + within  # a single fraction is 0
            tables.append(_table(law, means))
    return Tables.from_cdfs(tables)


def _table(law: Law, means: np.ndarray) -> tuple[np.ndarray, int]:
    edges = np.arange(-(MOST_SYMBOLS // 2) - 1, MOST_SYMBOLS // 2 + 1) + 0.5
    # the smaller of both tails, so that far differences are exact
    above = np.stack([law(-(edges - m)) for m in means]).mean(0)
    below = np.stack([law(edges - m) for m in means]).mean(0)
    each = np.where(edges[:-1] > 0, above[:-1] - above[1:], below[1:] - below[:-1])
    kept = np.flatnonzero((each > TAIL / 2) | (np.abs(edges[:-1] + 0.5) < 0.75))
    low, high = kept[0], kept[-1] + 1
    escape = float(below[low] + above[high])
    return quantise_pmf(np.maximum(each[low:high], 0), escape), int(edges[low] + 0.5)


def gaussian(scale: float) -> Law:
    """Cumulative normal distribution."""
    erfc = np.vectorize(math.erfc, otypes=[np.float64])
    return lambda x: 0.5 * erfc(-x / (scale * math.sqrt(2)))
