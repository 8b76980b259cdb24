"""Integers under laws between integers: tables, indexes, draws, and what they cost."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tec.entropy.integers import GRID, IntegerCoding, fractions, gaussian, integer_tables
from tec.entropy.portable import Margin, ScaleGrid, Writer
from tec.entropy.tables import TOTAL, Tables, shipped
from tec.errors import TecError

#: A grid with steps above one, where fractions are always zero, and one that has 1/16 everywhere.
COARSE = ScaleGrid(6, 0.05, 400.0, 0.0625, 0.25)
FINE = ScaleGrid(3, 0.07, 0.4)
MARGIN = Margin(2.0**-13, 2.0**-15)

erfc = np.vectorize(math.erfc, otypes=[np.float64])


def coding(grid: ScaleGrid) -> IntegerCoding:
    return IntegerCoding(grid, tables_of(grid))


def tables_of(grid: ScaleGrid) -> Tables:
    if grid is GRID:
        return shipped("gaussian-integers")
    return integer_tables(grid, [gaussian(s) for s in grid.scales])


def owners(grid: ScaleGrid) -> tuple[np.ndarray, np.ndarray]:
    """Level and fraction of each table."""
    count = fractions(grid)
    level = np.repeat(np.arange(grid.levels), count)
    place = np.arange(len(level)) - np.repeat(np.cumsum(count) - count, count)
    return level, np.where(count[level] > 1, place * grid.steps[level] - 0.5, 0.0)


@pytest.mark.parametrize("grid", [GRID, COARSE, FINE], ids=["published", "coarse", "fine"])
def test_index_and_integer_part(grid):
    """At every level, every mean on the grid within a few integers, and some far ones."""
    code = coding(grid)
    level_of, fraction_of = owners(grid)
    assert len(level_of) == len(tables_of(grid))
    seen = set()
    for level in range(grid.levels):
        step = grid.steps[level]
        k = np.concatenate([np.arange(-70, 71), [-(2**15) - 3, 2**15 + 5]])
        mean = (k * step).astype(np.float32)[None]
        levels = np.full(mean.shape, level, np.uint16)
        index, whole = code(levels, mean)
        assert index.dtype == np.uint16
        assert whole.dtype == np.float32
        assert (whole == np.rint(whole)).all()
        fraction = mean - whole
        assert fraction.min() >= -0.5
        assert fraction.max() < 0.5
        assert index.max() < len(level_of)
        assert (level_of[index] == level).all()
        assert np.array_equal(fraction_of[index], fraction)
        seen.update(index.ravel().tolist())
        values = np.rint(mean) + np.arange(-3, 4)[:, None]
        symbols = (values - whole).astype(np.int32)
        assert np.array_equal(symbols + whole, values)
    assert seen == set(range(len(level_of)))  # no table is there for nothing


@given(st.lists(st.tuples(st.floats(-1e4, 1e4), st.floats(-8, 8)), min_size=1, max_size=30))
def test_after_the_rounder(parameters):
    mean, log_scale = np.array(parameters, np.float32).T[:, None]
    level, grid_mean = Writer(1, GRID, MARGIN).parameters(mean, log_scale)
    index, whole = coding(GRID)(level, grid_mean)
    level_of, fraction_of = owners(GRID)
    assert (level_of[index] == level).all()
    assert np.array_equal(whole + fraction_of[index].astype(np.float32), grid_mean)


def test_fractions_are_half_open():
    index, whole = coding(FINE)(np.zeros((1, 4), int), np.array([[-0.5, 0.5, 0.4375, 1.5]], "f4"))
    assert whole.tolist() == [[0, 1, 0, 2]]
    assert index.tolist() == [[0, 0, 15, 0]]


def test_how_many_fractions():
    assert fractions(FINE).tolist() == [16, 16, 16]
    assert COARSE.steps.tolist() == [0.25, 0.0625, 0.25, 2, 16, 64]
    assert fractions(COARSE).tolist() == [4, 16, 4, 1, 1, 1]


def test_tables_must_fit_the_grid():
    with pytest.raises(TecError, match=r"tables for 27 pairs"):
        IntegerCoding(COARSE, tables_of(ScaleGrid(5, 0.05, 400.0, 0.0625, 0.25)))


def test_shipped_tables_are_those_of_the_grid():
    """Made anew for some levels; all of them take long. Another libm may move a count."""
    level_of, _ = owners(GRID)
    have = shipped("gaussian-integers")
    count = fractions(GRID)
    for level in (0, 5, 20, 40, 63):
        grid = ScaleGrid(2, GRID.scales[level], 1e5, GRID.certain, GRID.certain_step)
        assert grid.steps[0] == GRID.steps[level]
        made = integer_tables(grid, [gaussian(GRID.scales[level]), gaussian(1.0)])
        for i, row in enumerate(np.flatnonzero(level_of == level)):
            assert i < count[level]
            mine = made.cdf[made.offsets[i] : made.offsets[i + 1]]
            cdf = have.cdf[have.offsets[row] : have.offsets[row + 1]]
            assert made.lowest[i] == have.lowest[row]
            assert len(mine) == len(cdf)
            assert np.abs(mine - cdf).max() <= 1


@pytest.mark.parametrize("grid", [GRID, COARSE, FINE], ids=["published", "coarse", "fine"])
def test_tables_of_opposite_fractions_mirror_each_other(grid):
    tables = tables_of(grid)
    level_of, fraction_of = owners(grid)
    checked = 0
    for row in range(len(tables)):
        other = np.flatnonzero((level_of == level_of[row]) & (fraction_of == -fraction_of[row]))
        if not other.size:  # of -1/2: there is no 1/2
            continue
        (a, b) = (tables.cdf[tables.offsets[i] : tables.offsets[i + 1]] for i in (row, other[0]))
        counts, mirrored = np.diff(a)[:-1], np.diff(b)[-2::-1]
        assert len(counts) == len(mirrored)
        assert tables.lowest[row] == -(tables.lowest[other[0]] + len(mirrored) - 1)
        assert np.abs(counts - mirrored).max() <= 1  # who gets the last count
        checked += 1
    assert checked >= grid.levels


@pytest.mark.parametrize("grid", [COARSE, FINE], ids=["coarse", "fine"])
def test_tables_follow_the_law(grid):
    tables = tables_of(grid)
    level_of, fraction_of = owners(grid)
    for row, (level, fraction) in enumerate(zip(level_of, fraction_of)):
        cdf = tables.cdf[tables.offsets[row] : tables.offsets[row + 1]]
        symbols = tables.lowest[row] + np.arange(len(cdf) - 2)
        assert symbols[0] <= 0 <= symbols[-1]
        want, n = np.zeros(len(symbols)), 200
        for within in (np.arange(n) + 0.5) / n - 0.5:
            away = np.abs(symbols - fraction - within * grid.steps[level])
            want += mass(away, grid.scales[level]) / n
        atol = (len(cdf) + 2) / TOTAL  # each symbol has a count at least
        np.testing.assert_allclose(np.diff(cdf)[:-1] / TOTAL, want, atol=atol)


def mass(away: np.ndarray, scale: float | np.ndarray) -> np.ndarray:
    """Probability of the unit bin whose centre is this far from the mean."""
    return 0.5 * (
        erfc((away - 0.5) / (scale * math.sqrt(2))) - erfc((away + 0.5) / (scale * math.sqrt(2)))
    )


def test_cost_is_that_of_the_exact_law():
    """Bits of the tables against the entropy of the law, over random means and scales."""
    code, tables = coding(GRID), shipped("gaussian-integers")
    rng = np.random.default_rng(7)
    for low, high, allowed in ((0.07, 0.3, 0.006), (0.3, 3, 0.005), (3, 100, 0.007)):
        n = 300
        scale = np.exp(rng.uniform(math.log(low), math.log(high), (1, n)))
        mean = rng.uniform(-40, 40, (1, n))
        index, whole = code(*Writer(1, GRID, MARGIN).parameters(mean, np.log(scale)))
        reach = math.ceil(6 * high) + 1
        values = np.rint(mean.T) + np.arange(-reach, reach + 1)
        p = mass(np.abs(values - mean.T), scale.T)
        np.testing.assert_allclose(p.sum(1), 1, atol=1e-6)
        symbols = (values - whole.T).astype(int)
        cost = (p * tables.bits(np.broadcast_to(index.T, symbols.shape), symbols)).sum(1)
        entropy = -(p * np.log2(np.maximum(p, 1e-300))).sum(1)
        excess = cost - entropy
        assert excess.min() > -1e-3  # a law's own entropy is the least, up to the tail cut off
        assert 0 < excess.mean() < allowed


def test_certain_values_cost_little():
    """Below the smallest step: what counts is that means near integers stay cheap."""
    code, tables = coding(GRID), shipped("gaussian-integers")
    mean = np.linspace(-0.12, 0.12, 101)[None] + np.arange(-50, 51)
    index, whole = code(*Writer(1, GRID, MARGIN).parameters(mean, np.full(mean.shape, -5.0)))
    bits = tables.bits(index, (np.rint(mean) - whole).astype(int))
    assert bits.max() < 0.001
    wrong = tables.bits(index, (np.rint(mean) + 40 - whole).astype(int))
    assert wrong.max() < 40


def test_far_values_are_escaped_and_symmetric():
    tables = shipped("gaussian-integers")
    _, fraction_of = owners(GRID)
    middle = np.flatnonzero(fraction_of == 0)
    assert len(middle) == GRID.levels
    for k in (1, 7, 60, 3000, 10**6):
        above, below = (tables.bits(middle, np.full(len(middle), s * k)) for s in (1, -1))
        assert np.isfinite(above).all()
        np.testing.assert_allclose(above, below, atol=2)  # an escape tells signs apart


@pytest.mark.parametrize("grid", [GRID, COARSE, FINE], ids=["published", "coarse", "fine"])
def test_draws_are_the_table(grid):
    """Every 16-bit number once gives every symbol its count; the last has the escape's too."""
    tables = tables_of(grid)
    numbers = np.arange(TOTAL, dtype=np.uint64)[None]
    rows = range(len(tables)) if grid is not GRID else (0, 3, 100, 200, 300, len(tables) - 1)
    for row in rows:
        drawn = tables.draw(np.full((1, TOTAL), row, np.uint16), numbers)
        assert drawn.dtype == np.int32
        assert drawn.shape == (1, TOTAL)
        counts = np.diff(tables.cdf[tables.offsets[row] : tables.offsets[row + 1]])
        want = np.append(counts[:-2], counts[-2] + counts[-1])
        found = np.bincount(drawn[0] - tables.lowest[row])
        assert np.array_equal(found, want)


def test_draws_of_many_tables_at_once():
    tables = shipped("gaussian-integers")
    rng = np.random.default_rng(1)
    index = rng.integers(0, len(tables), (2, 500)).astype(np.uint16)
    random = rng.integers(0, TOTAL, (2, 500)).astype(np.uint64)
    drawn = tables.draw(index, random)
    for i in np.ndindex(index.shape):
        cdf = tables.cdf[tables.offsets[index[i]] : tables.offsets[index[i] + 1]]
        interval = np.searchsorted(cdf, random[i].astype(np.int64), side="right") - 1
        assert drawn[i] == tables.lowest[index[i]] + min(interval, len(cdf) - 3)
