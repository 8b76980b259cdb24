"""Bands on coarser grids than their pixels: found exactly or not at all, and put back."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import tec
from chunks import LAYOUTS, laid_out
from coarse_bands import interpolated as between
from coarse_bands import repeat_bands, repeated
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scenes import scene
from tec import codec, stream
from tec.coarse import FACTORS, LAST_GRID, Grid, find_grids, interpolated, restored
from tec.sensors import SENSORS

ALL = SENSORS["S2L2A"].bands
BANDS = ("B02", "B05", "B09")  # of 10 m, 20 m and 60 m
PHASES = [(f, y, x) for f in FACTORS for y, x in product(range(f), repeat=2)]
DTYPES = ["uint16", "int16", "float32", ">u2", ">f4"]


def native(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Native pixels (..., i, j) of which neighbours differ."""
    i, j = np.indices(shape[-2:])
    return 500 + 300 * ((i + j) % 2) + rng.integers(0, 250, shape)


def repeated_chunk(
    rng: np.random.Generator, grid: Grid, shape: tuple[int, int], dates: int = 1
) -> np.ndarray:
    """(time, 1, y, x) on a grid, int64."""
    count = [n // grid.factor + 2 for n in shape]
    return repeated(native(rng, dates, 1, *count), grid.factor, grid.y, grid.x, shape)


def stored(dn: np.ndarray, dtype: str) -> tuple[np.ndarray, float]:
    """In stored units, and the value of one DN."""
    if np.dtype(dtype).kind == "f":
        return (dn * 1e-4).astype(dtype), 1e-4
    return (dn - 900 if dtype == "int16" else dn).astype(dtype), 1.0


def lines(grid: Grid, shape: tuple[int, int]) -> list[list[int]]:
    """Rows and columns of a chunk at which another native pixel starts."""
    firsts = (grid.y, grid.x)
    return [
        [i for i in range(1, n) if (i + first) % grid.factor == 0]
        for n, first in zip(shape, firsts)
    ]


def spread(band: np.ndarray, grid: Grid, mask: np.ndarray | None = None) -> float:
    """The largest difference of valid pixels (..., y, x) within a native pixel."""
    band = band.astype(np.float64)
    mask = np.zeros(band.shape, bool) if mask is None else mask
    high, low = np.where(mask, -np.inf, band), np.where(mask, np.inf, band)
    for axis, edges in zip((-2, -1), lines(grid, band.shape[-2:])):
        high = np.maximum.reduceat(high, [0, *edges], axis)
        low = np.minimum.reduceat(low, [0, *edges], axis)
    there = high > -np.inf
    return float((high[there] - low[there]).max(initial=0))


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    return Grid(*draw(st.sampled_from(PHASES)))


# codes


def test_codes_are_a_bijection():
    found = [Grid.from_code(code) for code in range(1, LAST_GRID + 1)]
    assert [grid.code for grid in found] == list(range(1, LAST_GRID + 1))
    every = {Grid(*phase, repeated=r) for phase in PHASES for r in (True, False)}
    assert set(found) == every
    assert len(every) == LAST_GRID < 256
    assert Grid.from_code(0) is None
    for code in range(LAST_GRID + 1, 256):
        with pytest.raises(ValueError, match=f"no grid of code {code}"):
            Grid.from_code(code)


# repeated pixels


@given(
    grids(),
    st.tuples(st.integers(1, 90), st.integers(1, 90)),
    st.integers(1, 3),
    st.sampled_from(DTYPES),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=150)
def test_repeated_pixels_of_any_size_are_found(grid, shape, dates, dtype, seed):
    """A chunk that is too small to tell grids apart has one that is as good."""
    dn = repeated_chunk(np.random.default_rng(seed), grid, shape, dates)
    chunk, scale = stored(dn, dtype)
    (found,) = find_grids(chunk, None, coarse=[False], scale=scale)
    if not any(lines(grid, shape)):
        assert found is None
        return
    assert found is not None
    assert found.repeated
    assert lines(found, shape) == lines(grid, shape)
    if min(map(len, lines(grid, shape))) > 1:
        assert found == grid


@given(
    grids(),
    st.tuples(st.integers(30, 100), st.integers(30, 100)),
    st.integers(1, 2),
    st.floats(0.01, 0.3),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=60)
def test_holes_do_not_hide_repeated_pixels(grid, shape, dates, share, seed):
    rng = np.random.default_rng(seed)
    dn = repeated_chunk(rng, grid, shape, dates)
    mask = rng.random(dn.shape) < share
    mask[0, 0, : shape[0] // 2, 8 : shape[1] // 2] = True
    chunk = np.where(mask, rng.integers(0, 65536, dn.shape), dn).astype(np.uint16)
    assert find_grids(chunk, mask, coarse=[False]) == (grid,)
    floats = np.where(mask, np.nan, dn).astype(np.float32)
    assert find_grids(floats, mask, coarse=[True]) == (grid,)


@given(
    grids(),
    st.tuples(st.integers(14, 80), st.integers(14, 80)),
    st.sampled_from([-1, 1, 40]),
    st.booleans(),
    st.data(),
)
@settings(max_examples=150)
def test_one_other_pixel_and_the_grid_is_not_found(grid, shape, change, holes, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    chunk = repeated_chunk(rng, grid, shape, 2)
    date, y, x = (data.draw(st.integers(0, n - 1)) for n in (2, *shape))
    first = y - (y + grid.y) % grid.factor, x - (x + grid.x) % grid.factor
    rows, columns = (slice(max(0, at), at + grid.factor) for at in first)
    assume(chunk[date, 0, rows, columns].size > 1)  # else there is no other pixel to differ from
    mask = None
    if holes:
        mask = rng.random(chunk.shape) < 0.1
        mask[date, 0, rows, columns] = False
    assert find_grids(chunk, mask, coarse=[False]) == (grid,)
    chunk[date, 0, y, x] += change
    (found,) = find_grids(chunk, mask, coarse=[False])
    assert found != grid
    if found is not None:  # in a corner, it may be a native pixel of a finer grid
        assert found.factor < grid.factor
        assert spread(chunk, found, mask) == 0


def test_one_other_pixel_in_the_middle():
    for f in FACTORS:
        chunk = repeated_chunk(np.random.default_rng(0), Grid(f, 1, 0), (130, 140), 3)
        chunk[2, 0, 110, 99] += 1  # beyond what is glanced at
        assert find_grids(chunk, None, coarse=[True]) == (None,)


def test_a_first_date_that_says_little_does_not_hide_repeated_pixels():
    grid = Grid(2, 1, 1)
    chunk = repeated_chunk(np.random.default_rng(0), grid, (150, 160), 2)
    for part in (np.s_[0, 0, :80, :90], np.s_[0]):
        flat = chunk.copy()
        flat[part] = 0
        assert find_grids(flat, flat == 0, coarse=[False]) == (grid,)
    flat = chunk.copy()
    flat[0, 0] = 1200  # all of one value
    assert find_grids(flat, None, coarse=[True]) == (grid,)


def test_holes_that_part_a_native_pixel_do_not_hide_that_its_pixels_differ():
    chunk = repeated_chunk(np.random.default_rng(0), Grid(3, 0, 0), (48, 48))
    mask = np.zeros(chunk.shape, bool)
    mask[0, 0, 21:24, 22] = True
    assert find_grids(chunk, mask, coarse=[False]) == (Grid(3, 0, 0),)
    chunk[0, 0, 21:24, 23] += 5
    assert find_grids(chunk, mask, coarse=[False]) == (None,)


def test_what_is_not_repeated_is_left_alone(tiny_elic):
    chunk = scene(2, 12, 50, 70, seed=3)
    assert find_grids(chunk, None, coarse=[True] * 12) == (None,) * 12
    assert find_grids(chunk, chunk < 1100, coarse=[True] * 12) == (None,) * 12
    data = codec.encode(chunk, tec.CodecConfig(weights=str(tiny_elic), bands=ALL))
    assert tec.peek(data).grids == ()
    flat = np.full((2, 1, 40, 40), 1200, np.uint16)
    assert find_grids(flat, None, coarse=[False]) == (None,)


@st.composite
def bands_on_grids(draw: st.DrawFn) -> tuple[np.ndarray, dict, tuple[Grid, Grid]]:
    """(time, B02 B05 B09, y, x) with the grids of the last two, and settings."""
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    shape = draw(st.integers(30, 44)), draw(st.integers(30, 44))
    dates = draw(st.integers(1, 2))
    dtype = draw(st.sampled_from(DTYPES))
    b05, b09 = (Grid(f, draw(st.integers(0, f - 1)), draw(st.integers(0, f - 1))) for f in (2, 6))
    dn = np.concatenate(
        [
            rng.integers(500, 1500, (dates, 1, *shape)),
            repeated_chunk(rng, b05, shape, dates),
            repeated_chunk(rng, b09, shape, dates),
        ],
        1,
    )
    chunk, scale = stored(dn, dtype)
    nodata = np.nan if scale != 1 else -32768 if dtype == "int16" else 0
    holes = rng.random(dn.shape) < draw(st.sampled_from([0, 0.05, 0.3]))
    if draw(st.booleans()):
        holes[:, :, -3:, :9] = True
    chunk[holes] = nodata
    settings_ = {"nodata": nodata, "scale": scale, "offset": -900 if dtype == "int16" else 0}
    return chunk, settings_, (b05, b09)


@given(bands_on_grids())
@settings(max_examples=25)
def test_repeated_pixels_come_back_repeated(tiny_elic, case):
    chunk, options, wanted = case
    config = tec.CodecConfig(weights=str(tiny_elic), bands=BANDS, **options)
    data = codec.encode(chunk, config)
    assert tuple(map(Grid.from_code, tec.peek(data).grids)) == (None, *wanted)
    back = codec.decode(data, weights=str(tiny_elic))
    assert back.shape == chunk.shape
    missing = np.isnan(chunk) if chunk.dtype.kind == "f" else chunk == config.nodata
    again = np.isnan(back) if chunk.dtype.kind == "f" else back == config.nodata
    np.testing.assert_array_equal(again, missing)
    for b, grid in enumerate(wanted, 1):
        assert spread(back[:, b], grid, missing[:, b]) == 0
    assert spread(back[:, 0], wanted[0], missing[:, 0]) > 0


def test_the_network_sees_repeated_pixels_interpolated(tiny_elic, monkeypatch):
    chunk = repeat_bands(scene(1, 12, 48, 64, seed=4), ALL, y=1, x=0)
    seen = []
    to_network = codec.to_network

    def noted(network, planes):
        seen.append(planes.numpy().copy())
        return to_network(network, planes)

    monkeypatch.setattr(codec, "to_network", noted)
    codec.encode(chunk, tec.CodecConfig(weights=str(tiny_elic), bands=ALL))
    ((planes,),) = seen
    for b, gsd in enumerate(SENSORS["S2L2A"].gsd):
        shown = (chunk[0, b] - SENSORS["S2L2A"].mean[b]) / SENSORS["S2L2A"].std[b]
        plane = shown.astype(np.float32)
        if gsd > 10:
            interpolated(plane, None, Grid(gsd // 10, 1, 0))
            assert np.abs(plane - shown).max() > 0.01
        np.testing.assert_allclose(planes[b], plane, atol=1e-4)


@pytest.mark.parametrize("model", ["tt", "compact flex"])
def test_series_of_repeated_pixels(model, tiny_checkpoints):
    """All 20 m and 60 m bands; what is not of their grid stays as it is without one."""
    path = str(tiny_checkpoints[model])
    chunk = repeat_bands(scene(3, 12, 40, 50, seed=8), ALL, y=1, x=2)
    config = tec.CodecConfig(model=model.rpartition(" ")[2], weights=path, bands=ALL)
    back = codec.decode(codec.encode(chunk, config), weights=path)
    for b, gsd in enumerate(SENSORS["S2L2A"].gsd):
        if gsd == 10:
            assert spread(back[:, b], Grid(2, 1, 0)) > 0
        else:
            f = gsd // 10
            assert spread(back[:, b], Grid(f, 1, 2 % f)) == 0


# interpolated pixels


def interpolated_chunk(
    rng: np.random.Generator, grid: Grid, shape: tuple[int, int], dates: int = 1
) -> np.ndarray:
    """(time, 1, y, x) interpolated on a grid, float64, contrast 300."""
    count = [n // grid.factor + 4 for n in shape]
    cells = 2000 + 300 * rng.standard_normal((dates, 1, *count))
    return between(cells, grid.factor, grid.y, grid.x, shape)


@pytest.mark.parametrize("factor", FACTORS)
def test_interpolated_pixels_are_found_with_their_phase(factor):
    rng = np.random.default_rng(factor)
    for y, x in product(range(factor), repeat=2):
        grid = Grid(factor, y, x, repeated=False)
        shape = (4 * factor + 21 + y, 4 * factor + 50 - x)
        exact = interpolated_chunk(rng, grid, shape, 2)
        chunk = np.rint(exact).astype(np.uint16)
        assert find_grids(chunk, None, coarse=[True]) == (grid,)
        assert find_grids(chunk, None, coarse=[False]) == (None,)
        floats = (exact * 1e-4).astype(np.float32)
        assert find_grids(floats, None, coarse=[True], scale=1e-4) == (grid,)
        plane = chunk[0, 0].astype(np.float32)
        restored(plane, grid)
        assert np.abs(plane - chunk[0, 0]).max() < 1.5  # its own rounding, at the edges too
        assert np.abs(plane - chunk[0, 0])[1:-1, 1:-1].mean() < 0.5


def test_interpolated_pixels_with_a_hole_or_with_one_that_is_not_are_left_alone():
    chunk = interpolated_chunk(np.random.default_rng(1), Grid(2, 0, 0), (80, 90), 2)
    chunk = np.rint(chunk).astype(np.int16)
    none = np.zeros(chunk.shape, bool)
    assert find_grids(chunk, none, coarse=[True]) == (Grid(2, 0, 0, repeated=False),)
    holes = none.copy()
    holes[1, 0, 70, 3] = True
    assert find_grids(chunk, holes, coarse=[True]) == (None,)
    for place in ((0, 0, 11, 30), (1, 0, 79, 40), (1, 0, 60, 89)):
        other = chunk.copy()
        other[place] += 30
        assert find_grids(other, None, coarse=[True]) == (None,)


def test_interpolated_pixels_come_back_interpolated(tiny_elic):
    rng = np.random.default_rng(2)
    shape, of = (50, 61), (Grid(2, 1, 0, repeated=False), Grid(6, 2, 5, repeated=False))
    parts = [rng.integers(500, 1500, (2, 1, *shape))]
    parts += [np.rint(interpolated_chunk(rng, grid, shape, 2)) for grid in of]
    chunk = np.concatenate(parts, 1).astype(np.uint16)
    data = codec.encode(chunk, tec.CodecConfig(weights=str(tiny_elic), bands=BANDS))
    assert tuple(map(Grid.from_code, tec.peek(data).grids)) == (None, *of)
    back = codec.decode(data, weights=str(tiny_elic))
    for b, grid in enumerate(of, 1):
        for plane in back[:, b]:
            again = plane.astype(np.float32)
            restored(again, grid)
            assert np.abs(again - plane).max() < 1.5
    again = back[0, 0].astype(np.float32)
    restored(again, of[0])
    assert np.abs(again - back[0, 0]).max() > 3  # of 10 m: not interpolated


@pytest.mark.parametrize("how", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_memory_layout_does_not_matter(how, dtype, tiny_elic):
    rng = np.random.default_rng(6)
    of = Grid(2, 1, 0), Grid(6, 2, 5, repeated=False)
    parts = [rng.integers(500, 1500, (2, 1, 40, 50)), repeated_chunk(rng, of[0], (40, 50), 2)]
    dn = np.concatenate([*parts, np.rint(interpolated_chunk(rng, of[1], (40, 50), 2))], 1)
    chunk, scale = stored(dn, dtype)
    found = find_grids(laid_out(chunk, how), None, coarse=[False, True, True], scale=scale)
    assert found == (None, *of)
    config = tec.CodecConfig(
        weights=str(tiny_elic), bands=BANDS, scale=scale, offset=-900 if dtype == "int16" else 0
    )
    assert codec.encode(laid_out(chunk, how), config) == codec.encode(chunk, config)


def test_chunks_without_a_pixel(tiny_elic):
    assert find_grids(np.zeros((0, 2, 0, 0), np.uint16), None, coarse=[True] * 2) == (None,) * 2
    empty = np.zeros((2, 12, 40, 40), np.uint16)
    data = codec.encode(empty, tec.CodecConfig(weights=str(tiny_elic), bands=ALL, nodata=0))
    assert tec.peek(data).grids == ()
    np.testing.assert_array_equal(codec.decode(data, weights=str(tiny_elic)), empty)


# there and back


@given(grids(), st.tuples(st.integers(1, 70), st.integers(1, 70)), st.integers(0, 2**32 - 1))
@settings(max_examples=100)
def test_restored_undoes_interpolated(grid, shape, seed):
    plane = repeated_chunk(np.random.default_rng(seed), grid, shape)[0, 0].astype(np.float32)
    shown = plane.copy()
    interpolated(shown, None, grid)
    assert plane.min() - 0.01 <= shown.min() <= shown.max() <= plane.max() + 0.01
    if len(lines(grid, shape)[0]) > 1 and grid.factor > 2:
        assert not np.array_equal(shown, plane)
    restored(shown, grid)
    np.testing.assert_allclose(shown, plane, atol=0.02)
    assert spread(shown, grid) == 0


@given(grids(), st.integers(0, 2**32 - 1), st.floats(0, 0.9))
@settings(max_examples=60)
def test_restored_undoes_interpolated_between_holes(grid, seed, share):
    rng = np.random.default_rng(seed)
    shape = (37, 52)
    plane = repeated_chunk(rng, grid, shape)[0, 0].astype(np.float32)
    holes = rng.random(shape) < share
    holes[:14, 20:45] = True
    shown = np.where(holes, np.float32(1e30), plane)
    interpolated(shown, holes, grid)
    assert np.isfinite(shown).all()
    assert plane[~holes].min() - 1 <= shown.min() <= shown.max() <= plane[~holes].max() + 1
    restored(shown, grid)
    np.testing.assert_allclose(shown[~holes], plane[~holes], atol=0.05)


def test_interpolation_is_bilinear_between_centres():
    """Against numpy's, beyond the outer centres constant."""
    for f, first in ((2, 0), (2, 1), (3, 2), (6, 4)):
        cells = np.array([3.0, 8.0, 1.0, 9.0, 4.0])
        row = cells.repeat(f)[first:].astype(np.float32)
        plane = np.tile(row, (7, 1))
        interpolated(plane, None, Grid(f, 0, first))
        at = (np.arange(len(row)) + first + 0.5) / f - 0.5
        np.testing.assert_allclose(plane[3], np.interp(at, np.arange(5), cells), atol=1e-5)
        columns = np.tile(row, (7, 1)).T.copy()
        interpolated(columns, None, Grid(f, first, 0))
        np.testing.assert_allclose(columns, plane.T, atol=1e-5)


def test_restored_is_least_squares():
    """Against numpy's solver, along rows and then along columns."""
    rng = np.random.default_rng(4)
    for grid in (Grid(2, 1, 0), Grid(3, 0, 2), Grid(6, 5, 1), Grid(3, 1, 1, repeated=False)):
        plane = rng.normal(2000, 400, (31, 26)).astype(np.float32)
        wanted = plane.astype(np.float64)
        sides = []
        for n, first in zip(plane.shape, (grid.y, grid.x)):
            cells = (n - 1 + first) // grid.factor + 1
            at = (np.arange(n) + first + 0.5) / grid.factor - 0.5
            if grid.repeated:
                centres = np.arange(cells)
            else:
                centres = np.arange(-1, cells + 1)
            matrix = np.stack([np.interp(at, centres, row) for row in np.eye(len(centres))], 1)
            show = np.eye(cells)[(np.arange(n) + first) // grid.factor]
            sides.append((show if grid.repeated else matrix) @ np.linalg.pinv(matrix))
        wanted = sides[0] @ wanted @ sides[1].T
        restored(plane, grid)
        np.testing.assert_allclose(plane, wanted, rtol=1e-4, atol=0.5)


@pytest.mark.parametrize("factor", FACTORS)
def test_least_squares_beats_averaging(factor):
    """On what a network gives back: the interpolation, with noise."""
    rng = np.random.default_rng(5)
    grid, shape = Grid(factor, 1, factor - 1), (90, 96)
    truth = repeated_chunk(rng, grid, shape)[0, 0].astype(np.float32)
    plane = truth.copy()
    interpolated(plane, None, grid)
    plane += 10 * rng.standard_normal(shape).astype(np.float32)
    means = plane.copy()
    for axis, edges in enumerate(lines(grid, shape)):
        starts = [0, *edges]
        size = np.diff([*starts, shape[axis]])
        sums = np.add.reduceat(means, starts, axis)
        means = (sums / (size[:, None] if axis == 0 else size)).repeat(size, axis)
    restored(plane, grid)
    errors = [np.sqrt(np.mean((found - truth) ** 2)) for found in (plane, means)]
    assert errors[0] < 0.5 * errors[1]
    assert errors[0] < 20


# parts and batches


def test_the_first_dates_alone(tiny_elic, tiny_checkpoints):
    for model, path in (("elic", tiny_elic), ("tt", tiny_checkpoints["tt"])):
        chunk = repeat_bands(scene(3, 12, 40, 50, seed=9), ALL, y=0, x=1)
        chunk[1, :, 4:9, 11] = 0
        config = tec.CodecConfig(model=model, weights=str(path), bands=ALL, nodata=0)
        data = codec.encode(chunk, config)
        whole = codec.decode(data, weights=str(path))
        part = codec.decode(data, dates=2, weights=str(path))
        assert np.abs(part.astype(int) - whole[:2]).max() <= 1
        np.testing.assert_array_equal(part == 0, chunk[:2] == 0)
        assert spread(part[:, ALL.index("B11")], Grid(2, 0, 1), chunk[:2, 0] == 0) == 0
        assert spread(part[:, ALL.index("B09")], Grid(6, 0, 1), chunk[:2, 0] == 0) == 0


def test_chunks_of_different_grids_in_one_batch(tiny_elic, monkeypatch):
    phases = [(0, 0), (1, 3), (5, 2), None]
    chunks, of = [], []
    for seed, phase in enumerate(phases):
        chunk = scene(2, 12, 40, 50, seed=seed)
        chunks.append(chunk if phase is None else repeat_bands(chunk, ALL, *phase))
        of.append(None if phase is None else [Grid(f, phase[0] % f, phase[1] % f) for f in (2, 6)])
    config = tec.CodecConfig(weights=str(tiny_elic), bands=ALL)
    streams = codec.encode_many(chunks, config)
    sizes = []
    batch = codec._decode_batch

    def noted(members):
        sizes.append(len(members))
        return batch(members)

    monkeypatch.setattr(codec, "_decode_batch", noted)
    together = codec.decode_many(streams, weights=str(tiny_elic))
    assert sizes == [8]  # four chunks of two dates
    for data, back, grid in zip(streams, together, of):
        alone = codec.decode(data, weights=str(tiny_elic))
        assert np.abs(alone.astype(int) - back).max() <= 1
        if grid is None:
            assert tec.peek(data).grids == ()
            assert spread(back[:, 5], Grid(2, 0, 0)) > 0
        else:
            for band, own in (("B05", grid[0]), ("B12", grid[0]), ("B01", grid[1])):
                assert spread(back[:, ALL.index(band)], own) == 0


def test_a_grid_that_no_decoder_knows_is_refused(tiny_elic):
    chunk = repeat_bands(scene(1, 12, 40, 50), ALL)
    data = codec.encode(chunk, tec.CodecConfig(weights=str(tiny_elic), bands=ALL))
    header, specials, dates, _ = stream.unpack(data)
    unknown = stream.pack(replace(header, grids=(LAST_GRID + 1,) * 12), specials, dates)
    with pytest.raises(tec.StreamError, match="unknown grids"):
        codec.decode(unknown, weights=str(tiny_elic))
