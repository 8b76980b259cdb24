"""How the residual layer's encoder sees pixels that were resampled from a coarser grid."""

from __future__ import annotations

import numpy as np
from tec import residual

SIZE = 120


def size_of(values: np.ndarray) -> int:
    """Bytes of (time, band, y, x) without loss, once they have come back."""
    data, _ = residual.encode(values, None, [0] * values.shape[1])
    back = residual.decode(data, values.shape, None, [0] * values.shape[1])
    np.testing.assert_array_equal(back, values)
    return len(data)


def noise(seed: int, shape: tuple[int, ...] = (SIZE, SIZE)) -> np.ndarray:
    return np.random.default_rng(seed).integers(1000, 3000, shape).astype(np.int32)


def turned(seed: int, factor: float, slope: float) -> np.ndarray:
    """Nearest neighbours on a grid of larger pixels that is turned a little."""
    y, x = np.mgrid[:SIZE, :SIZE]
    rows, columns = (y + slope * x) / factor, (x - slope * y) / factor + 99
    return noise(seed, (SIZE, 2 * SIZE))[rows.astype(int), columns.astype(int)]


def test_dates_may_differ_in_how_they_were_resampled() -> None:
    dates = [noise(0), turned(1, 2, 0.02), noise(2)]
    apart = sum(size_of(date[None, None]) for date in dates)
    together = size_of(np.stack(dates)[:, None])
    assert apart < 0.8 * 3 * size_of(noise(0)[None, None])  # copies are seen
    assert together < 1.02 * apart


def test_a_turned_grid_is_no_grid_of_smaller_cells() -> None:
    plain = size_of(noise(0)[None, None])
    for slope, least in ((0, 30), (0.004, 15), (0.01, 15), (0.02, 15)):
        assert size_of(turned(1, 6, slope)[None, None]) < plain / least


def test_flat_pixels_on_a_straight_grid_stay_on_it() -> None:
    flat = turned(1, 2, 0).clip(1500, 1600)  # most neighbouring cells are alike
    everywhere = np.repeat(np.repeat(np.arange(SIZE // 2) % 2, 2)[:, None], SIZE, 1)
    lattice = residual._lattice((flat + everywhere)[None], None)
    assert lattice.shape == (SIZE // 2, SIZE // 2)
