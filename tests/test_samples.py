"""Stored pixels to the planes of the networks and back."""

from __future__ import annotations

import pickle
import tracemalloc

import numpy as np
import pytest
from chunks import LAYOUTS, chunks, laid_out, native_bits, special
from coarse_bands import repeat_bands
from data import real_cubes, requires_real
from hypothesis import given, settings
from hypothesis import strategies as st
from scenes import scene
from tec import CodecConfig, TecError
from tec.coarse import find_grids, interpolated
from tec.holes import fill_holes
from tec.samples import (
    Planes,
    date_planes,
    extent,
    from_planes,
    iter_planes,
    pack_specials,
    padded,
    to_planes,
    unpack_specials,
    valid_ranges,
)
from tec.sensors import SENSORS

L2A = SENSORS["S2L2A"]


def there_and_back(
    chunk: np.ndarray, config: CodecConfig, *, stride: int = 16, noise: float = 0, seed: int = 0
) -> np.ndarray:
    """What a codec does with a chunk, with noise in place of the networks."""
    rng = np.random.default_rng(seed)
    data, mask = pack_specials(chunk, config.nodata)
    t, _, height, width = chunk.shape
    back_mask, values = unpack_specials(data, chunk.shape, chunk.dtype, config.nodata)
    out = np.empty(chunk.shape, chunk.dtype)
    for i, x in enumerate(iter_planes(chunk, mask, config, stride)):
        assert x.dtype == np.float32
        assert np.isfinite(x).all()
        x_hat = x + np.float32(noise) * rng.standard_normal(x.shape, np.float32)
        own = (None, None) if back_mask is None else (back_mask[i], values[i])
        from_planes(x_hat, config, chunk.dtype, height, width, *own, out=out[i])
    assert i == t - 1
    return out


@given(
    chunks(largest=24),
    st.permutations(SENSORS["S2L1C"].bands),
    st.sampled_from([0, 0.01, 3]),
    st.sampled_from([0.0, 1000.0, -500.5]),
)
@settings(deadline=None, max_examples=80)
def test_what_comes_back(
    case: tuple[np.ndarray, float | None], bands: list[str], noise: float, offset: float
) -> None:
    """Specials bit for bit, nothing else is special, and without noise the pixels are equal."""
    chunk, nodata = case
    is_float = chunk.dtype.kind == "f"
    config = CodecConfig(
        sensor="S2L1C",
        bands=tuple(bands[: chunk.shape[1]]),
        nodata=nodata,
        offset=offset,
        scale=0.25 if is_float else 1,
    )
    out = there_and_back(chunk, config, noise=noise)
    expected = special(chunk, nodata)
    np.testing.assert_array_equal(native_bits(out)[expected], native_bits(chunk)[expected])
    np.testing.assert_array_equal(special(out, nodata), expected)
    if noise == 0:
        error = np.abs(out[~expected].astype(float) - chunk[~expected].astype(float))
        assert error.max(initial=0) <= (0.01 if is_float else 0)


@pytest.mark.parametrize(
    ("dtype", "nodata", "beside"),
    [
        ("u2", 0, 1),
        ("u2", 65535, 65534),
        ("u2", 500, 501),
        (">u2", 0, 1),
        ("i2", -9999, -9998),
        ("i2", -32768, -32767),
        ("i2", 32767, 32766),
        ("i2", 0, 1),
        ("f4", 0, np.finfo("f4").tiny),
        ("f4", -9999, np.nextafter(np.float32(-9999), np.float32(0))),
        ("f4", np.finfo("f4").max, np.nextafter(np.finfo("f4").max, np.float32(0))),
        ("f4", np.nan, None),
        ("f4", -np.inf, None),
    ],
)
def test_no_pixel_becomes_nodata_by_chance(dtype: str, nodata: float, beside: float | None) -> None:
    """The network's output lands on nodata, just beside it, and beyond the range of the dtype."""
    config = CodecConfig(bands=("B02",), nodata=nodata)
    target = nodata if np.isfinite(nodata) else 0
    mean, std = L2A.mean[1], L2A.std[1]
    x_hat = np.zeros((12, 4, 4), "f4")
    x_hat[1] = (target - mean) / std
    x_hat[1, 1] += np.float32(0.3 / std)
    x_hat[1, 2] -= np.float32(0.3 / std)
    x_hat[1, 3] = 0  # B02 at its mean
    if np.dtype(dtype).kind != "f":
        x_hat[1, 3, :2] = -1e6, 1e6
    out = from_planes(x_hat, config, dtype, 4, 4)
    assert out.dtype == np.dtype(dtype)
    assert not (out == nodata).any()
    assert np.isfinite(out).all()
    if beside is not None and abs(target) < 40000 and np.dtype(dtype).kind != "f":
        assert (out[0, :3] == beside).all()
    mask = np.zeros((1, 4, 4), bool)
    mask[0, 2, 1] = True
    out = from_planes(x_hat, config, dtype, 4, 4, mask, np.array(nodata, dtype[-2:]))
    np.testing.assert_array_equal(special(out, nodata), mask)


def test_float_nodata_is_avoided_exactly() -> None:
    """With a power of two as scale and B02's mean as offset, 0 in is 0 out: hit it exactly."""
    config = CodecConfig(bands=("B02",), nodata=0, offset=-L2A.mean[1])
    out = from_planes(np.zeros((12, 2, 2), "f4"), config, "f4", 2, 2)
    assert (out == np.finfo("f4").tiny).all()
    config = CodecConfig(bands=("B02",), nodata=None, offset=-L2A.mean[1])
    assert (from_planes(np.zeros((12, 2, 2), "f4"), config, "f4", 2, 2) == 0).all()


def test_clipping_and_rounding_half_to_even() -> None:
    config = CodecConfig(bands=("B02",), offset=-L2A.mean[1], scale=1 / L2A.std[1])  # value = x
    x = np.zeros((12, 1, 8), "f4")
    x[1, 0] = [0.5, 1.5, 2.5, -0.5, -3, 65534.5, 70000, 1e30]
    assert from_planes(x, config, "u2", 1, 8).tolist() == [[[0, 2, 2, 0, 0, 65534, 65535, 65535]]]
    x[1, 0] = [0.5, 1.5, 2.5, -0.5, -1.5, -40000, 40000, -1e30]
    expected = [[[0, 2, 2, 0, -2, -32768, 32767, -32768]]]
    assert from_planes(x, config, "i2", 1, 8).tolist() == expected


def test_all_clipped_onto_nodata() -> None:
    config = CodecConfig(bands=("B02",), nodata=0)
    assert (from_planes(np.full((12, 2, 2), -9, "f4"), config, "u2", 2, 2) == 1).all()
    config = CodecConfig(bands=("B02",), nodata=65535)
    assert (from_planes(np.full((12, 2, 2), 999, "f4"), config, "u2", 2, 2) == 65534).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("dtype", ["u2", "i2", "f4"])
def test_a_broken_network_is_an_error(bad: float, dtype: str) -> None:
    config = CodecConfig(bands=("B02", "B03"), nodata=0)
    x_hat = np.zeros((12, 4, 4), "f4")
    x_hat[2, 1, 2] = bad
    with pytest.raises(TecError, match=r"NaN or infinite values in 1 valid pixels of band B03"):
        from_planes(x_hat, config, dtype, 4, 4)
    mask = np.zeros((2, 4, 4), bool)
    mask[1, 1, 2] = True  # where nothing is shown it does no harm
    out = from_planes(x_hat, config, dtype, 4, 4, mask, np.zeros((), dtype))
    np.testing.assert_array_equal(out == 0, mask)
    assert from_planes(x_hat, CodecConfig(bands=("B04",)), dtype, 4, 4).shape == (1, 4, 4)


def test_bands_offset_and_scale() -> None:
    chunk = scene(1, 12, 32, 48)
    plain = to_planes(chunk, CodecConfig(), stride=16)
    assert isinstance(plain, Planes)
    assert plain.x.shape == (1, 12, 32, 48)
    assert (plain.height, plain.width, plain.specials) == (32, 48, b"")
    mean, std = (np.array(v)[:, None, None] for v in (L2A.mean, L2A.std))
    np.testing.assert_allclose(plain.x[0], (chunk[0] - mean) / std, atol=2e-6)
    # the same scene in another order, with an offset, as float reflectance
    order = np.random.default_rng(0).permutation(12)
    bands = tuple(L2A.bands[i] for i in order)
    shuffled = to_planes(chunk[:, order] + 1000, CodecConfig(bands=bands, offset=1000), stride=16)
    np.testing.assert_allclose(shuffled.x, plain.x, atol=2e-6)
    reflectance = (chunk[:, order] * 1e-4).astype("f4")
    floats = to_planes(reflectance, CodecConfig(bands=bands, scale=1e-4), stride=16)
    np.testing.assert_allclose(floats.x, plain.x, atol=2e-6)


def test_absent_bands_copy_their_neighbour() -> None:
    chunk = scene(1, 3, 16, 16)
    x = date_planes(chunk[0], None, CodecConfig(bands=("B11", "B02", "B08")), 16)
    own = dict(zip(L2A.bands, x))
    for copy, source in {
        "B01": "B02",
        "B03": "B02",
        "B05": "B08",
        "B09": "B08",
        "B12": "B11",
    }.items():
        np.testing.assert_array_equal(own[copy], own[source])
    assert not np.array_equal(own["B02"], own["B08"])


def test_a_band_that_is_wholly_missing_copies_its_neighbour() -> None:
    chunk = scene(2, 12, 16, 20)
    chunk[0, 3] = 0
    config = CodecConfig(nodata=0)
    first, second = to_planes(chunk, config, stride=4).x
    np.testing.assert_array_equal(first[3], first[4])  # B05 is nearer to B04 than B03
    assert not np.array_equal(second[3], second[4])
    np.testing.assert_array_equal(there_and_back(chunk, config), chunk)


def test_dates_that_are_wholly_missing() -> None:
    chunk = scene(4, 2, 16, 16)
    chunk[0] = chunk[2] = 0
    config = CodecConfig(nodata=0, bands=("B02", "B03"))
    _, mask = pack_specials(chunk, 0)
    flat = list(iter_planes(chunk, mask, config, 16))
    assert not flat[0].any()
    assert not flat[2].any()
    repeated = list(iter_planes(chunk, mask, config, 16, repeat_dates=True))
    np.testing.assert_array_equal(repeated[0], flat[1])
    np.testing.assert_array_equal(repeated[1], flat[1])
    np.testing.assert_array_equal(repeated[2], flat[1])  # the earlier of two that are as near
    np.testing.assert_array_equal(repeated[3], flat[3])
    chunk[:] = 0
    _, mask = pack_specials(chunk, 0)
    for x in iter_planes(chunk, mask, config, 16, repeat_dates=True):
        assert not x.any()
    np.testing.assert_array_equal(there_and_back(chunk, config), chunk)


@pytest.mark.parametrize("shape", [(1, 1), (1, 70), (33, 17), (64, 64), (63, 65)])
def test_padding_repeats_the_edge(shape: tuple[int, int]) -> None:
    chunk = scene(1, 2, 80, 80)[0, :, : shape[0], : shape[1]]
    config = CodecConfig(bands=("B02", "B03"))
    small = date_planes(chunk, None, config, 1)
    large = date_planes(chunk, None, config, 64)
    height, width = (padded(n, 64) for n in shape)
    assert large.shape == (12, height, width)
    pad = ((0, 0), (0, height - shape[0]), (0, width - shape[1]))
    np.testing.assert_array_equal(large, np.pad(small, pad, mode="edge"))
    assert [padded(n, 16) for n in (0, 1, 16, 17)] == [0, 16, 16, 32]


@pytest.mark.parametrize("how", LAYOUTS)
@pytest.mark.parametrize("dtype", ["<u2", ">u2", "<i2", ">i2", "<f4", ">f4"])
def test_layout_and_byte_order_do_not_matter(how: str, dtype: str) -> None:
    chunk = scene(1, 3, 21, 18, nodata=True)
    config = CodecConfig(bands=("B8A", "B03", "B04"), nodata=0)
    expected = to_planes(chunk, config, stride=16)
    other = laid_out(chunk.astype(dtype), how)
    planes = to_planes(other, config, stride=16)
    np.testing.assert_array_equal(planes.x, expected.x)
    back = there_and_back(other, config)
    assert back.dtype == np.dtype(dtype)
    np.testing.assert_allclose(back, chunk, atol=0.01 if "f" in dtype else 0)


def test_values_that_stand_apart_are_put_back_into_any_layout() -> None:
    values = np.array([0x7F800001, 0xFFC12345, 0x7FC00000], "u4")  # the first is signalling
    mask = np.zeros((1, 5, 6), bool)
    mask[0, 1, 2:5] = True
    config = CodecConfig(bands=("B02",))
    for dtype in ("<f4", ">f4"):
        for how in ("C", "F", "reversed"):
            out = laid_out(np.zeros((1, 1, 5, 6), dtype), how)[0]
            x_hat = np.zeros((12, 16, 16), "f4")
            back = from_planes(x_hat, config, dtype, 5, 6, mask, values.view("f4"), out=out)
            assert back is out
            np.testing.assert_array_equal(native_bits(out)[mask], values)


def test_holes_are_filled_smoothly() -> None:
    y, x = np.mgrid[:65, :50].astype("f4")
    plane = np.sin(x / 20) + y / 30
    truth = plane.copy()
    holes = (y - 30) ** 2 + (x - 20) ** 2 < 150
    holes |= (x + y) % 7 == 0
    plane[holes] = np.nan
    fill_holes(plane, holes)
    np.testing.assert_array_equal(plane[~holes], truth[~holes])
    assert np.abs(plane - truth).max() < 0.15  # the range of the plane is 3
    # a single valid pixel, and a plane of one pixel
    holes = np.ones((33, 40), bool)
    holes[20, 7] = False
    plane = np.where(holes, np.nan, 3).astype("f4")
    fill_holes(plane, holes)
    np.testing.assert_allclose(plane, 3, rtol=1e-6)
    plane = np.ones((1, 1), "f4")
    fill_holes(plane, np.zeros((1, 1), bool))
    assert plane[0, 0] == 1


def test_what_stands_in_holes_does_not_show() -> None:
    chunk = scene(1, 12, 40, 40, nodata=True).astype("f4")
    holes = chunk == 0
    expected = to_planes(chunk, CodecConfig(nodata=0), stride=16).x
    for anything in (np.nan, np.inf, -3.4e38, -9999):
        other = np.where(holes, np.float32(anything), chunk)
        planes = to_planes(other, CodecConfig(nodata=anything), stride=16)
        np.testing.assert_array_equal(planes.x, expected)
        # the fill stays within what surrounds it
        for full, part, hole in zip(expected[0], planes.x[0], holes[0]):
            inside = full[: hole.shape[0], : hole.shape[1]][~hole]
            assert inside.min() - 1e-5 <= part.min()
            assert part.max() <= inside.max() + 1e-5


def test_integers_that_look_like_per_cent_are_a_warning() -> None:
    percent = (scene(1, 2, 16, 16)[0] / 100).clip(1, 100).astype("u2")
    bands = ("B02", "B03")
    with pytest.warns(UserWarning, match=r"no pixel of a date is above \d+, .*pass scale=0.01"):
        date_planes(percent, None, CodecConfig(bands=bands), 16)
    date_planes(percent, None, CodecConfig(bands=bands, scale=0.01), 16)
    date_planes(percent, None, CodecConfig(bands=("B11", "B12")), 16)  # of water, say
    date_planes(np.zeros_like(percent), None, CodecConfig(bands=bands, nodata=None), 16)


@pytest.mark.parametrize(
    ("config", "value", "parts"),
    [
        (CodecConfig(bands=("B02",)), 9.96921e36, ["B02", "e+36", "nodata="]),
        (CodecConfig(bands=("B02",)), -3.4e38, ["B02", "e+38", "nodata="]),
        (CodecConfig(bands=("B02",), scale=1e-4), 5000, ["5000", "0.0001", "scale="]),
    ],
)
def test_values_that_are_no_reflectance(
    config: CodecConfig, value: float, parts: list[str]
) -> None:
    chunk = np.full((1, 1, 8, 8), 0.1, "f4")
    chunk[0, 0, 3, 3] = value
    with pytest.raises(TecError) as error:
        to_planes(chunk, config, stride=16)
    for part in parts:
        assert part in str(error.value)


def test_shapes_that_do_not_fit() -> None:
    config = CodecConfig(bands=("B02", "B03"))
    date = np.ones((2, 4, 4), "u2")
    with pytest.raises(TecError, match=r"3 bands.*set to 2 \(B02, B03\).*bands="):
        date_planes(np.ones((3, 4, 4), "u2"), None, config, 16)
    with pytest.raises(TecError, match=r"\(2, 4\).*band, y, x"):
        date_planes(date[:, 0], None, config, 16)
    with pytest.raises(TecError, match=r"\(2, 0, 4\) has no pixels"):
        date_planes(date[:, :0], None, config, 16)
    with pytest.raises(TecError, match="no pixels"):
        to_planes(date[None][:0], config, stride=16)
    with pytest.raises(TecError, match="mask has shape"):
        date_planes(date, np.zeros((2, 4, 5), bool), config, 16)
    with pytest.raises(TecError, match="uint8"):
        date_planes(date.astype("u1"), None, config, 16)
    x_hat = np.zeros((12, 16, 16), "f4")
    with pytest.raises(TecError, match="mask has shape"):
        from_planes(x_hat, config, "u2", 4, 4, np.zeros((2, 4, 5), bool), np.uint16(0))
    with pytest.raises(TecError, match="out has shape"):
        from_planes(x_hat, config, "u2", 4, 4, out=np.zeros((2, 4, 5), "u2"))
    for wrong in (x_hat[:10], x_hat[:, :3], x_hat[0]):
        with pytest.raises(TecError, match="12 bands of 4 x 4"):
            from_planes(wrong, config, "u2", 4, 4)


def test_memory_stays_within_one_date() -> None:
    chunk = scene(1, 12, 128, 128, nodata=True).repeat(4, axis=0)
    config = CodecConfig(nodata=0)
    _, mask = pack_specials(chunk, 0)
    one = 12 * 128 * 128 * 4
    for _ in iter_planes(chunk, mask, config, 64):  # compiles
        pass
    x_hat = np.zeros((12, 128, 128), "f4")
    tracemalloc.start()
    try:
        for planes in iter_planes(chunk, mask, config, 64):
            del planes
        assert tracemalloc.get_traced_memory()[1] < 1.5 * one
        tracemalloc.reset_peak()
        from_planes(x_hat, config, "u2", 128, 128)
        assert tracemalloc.get_traced_memory()[1] < one
    finally:
        tracemalloc.stop()


def test_a_scene_with_nodata_and_an_edge_chunk() -> None:
    whole = np.zeros((4, 12, 64, 64), "u2")
    whole[:3, :, :50, :41] = scene(3, 12, 50, 41, nodata=True)
    config = pickle.loads(pickle.dumps(CodecConfig(nodata=0)))
    t, y, x = extent(whole, 0)
    assert (t, y, x) == (3, 50, 41)
    inside = whole[:t, :, :y, :x]
    out = np.zeros_like(whole)
    out[:t, :, :y, :x] = there_and_back(inside, config, stride=64)
    np.testing.assert_array_equal(out, whole)
    lossy = there_and_back(inside, config, stride=64, noise=0.5)
    np.testing.assert_array_equal(lossy == 0, inside == 0)


def test_bands_on_coarser_grids_are_shown_interpolated_and_put_back() -> None:
    """Repeated 20 m and 60 m bands; the others and the edges as ever."""
    chunk = repeat_bands(scene(2, 12, 37, 50, seed=6), L2A.bands, y=1, x=2)
    chunk[0, :, 5:9, 30:37] = 0
    config = CodecConfig(nodata=0)
    _, mask = pack_specials(chunk, 0)
    assert mask is not None
    grids = find_grids(chunk, mask, coarse=[gsd > 10 for gsd in L2A.gsd])
    codes = [0 if grid is None else grid.factor for grid in grids]
    assert codes == [0 if gsd == 10 else gsd // 10 for gsd in L2A.gsd]
    plain = list(iter_planes(chunk, mask, config, 16))
    for i, x in enumerate(iter_planes(chunk, mask, config, 16, grids=grids)):
        assert x.shape == (12, 48, 64)
        np.testing.assert_array_equal(x, date_planes(chunk[i], mask[i], config, 16, grids))
        for b, grid in enumerate(grids):
            if grid is None:
                np.testing.assert_array_equal(x[b], plain[i][b])
                continue
            wanted = np.array((chunk[i, b] - L2A.mean[b]) / L2A.std[b], np.float32)
            interpolated(wanted, mask[i, b], grid)
            np.testing.assert_allclose(x[b, :37, :50], wanted, atol=1e-4)
            np.testing.assert_array_equal(x[b, 37:], x[b, 36:37].repeat(11, 0))
            rough = np.abs(np.diff(plain[i][b], axis=1)).max()
            assert np.abs(np.diff(x[b], axis=1)).max() < rough
        out = from_planes(x, config, "u2", 37, 50, mask[i], np.uint16(0), grids=grids)
        np.testing.assert_array_equal(out, chunk[i])
        rng = np.random.default_rng(i)
        noisy = x + 0.02 * rng.standard_normal(x.shape, np.float32)
        back = from_planes(noisy, config, "u2", 37, 50, mask[i], np.uint16(0), grids=grids)
        np.testing.assert_array_equal(back == 0, chunk[i] == 0)
        for b, grid in enumerate(grids):
            if grid is not None:
                there = np.where(mask[i, b], 0, back[b])
                assert find_grids(there[None, None], mask[i : i + 1, b : b + 1], coarse=[True]) == (
                    grid,
                )


def test_a_band_on_a_grid_that_is_wholly_missing() -> None:
    chunk = repeat_bands(scene(2, 12, 30, 36, seed=7), L2A.bands)
    chunk[1, L2A.bands.index("B11")] = 0
    config = CodecConfig(nodata=0)
    _, mask = pack_specials(chunk, 0)
    assert mask is not None
    grids = find_grids(chunk, mask, coarse=[True] * 12)
    assert grids[L2A.bands.index("B11")] == grids[L2A.bands.index("B12")]
    _, second = iter_planes(chunk, mask, config, 4, grids=grids)
    np.testing.assert_array_equal(second[10], second[11])  # B12 is nearest to B11
    out = from_planes(second, config, "u2", 30, 36, mask[1], np.uint16(0), grids=grids)
    np.testing.assert_array_equal(out, chunk[1])


@requires_real
def test_real_cubes_come_back_and_their_specials_are_cheap() -> None:
    xr = pytest.importorskip("xarray")
    patterns = ["val/l2a_gelos*3.zarr", "val/l2a_eotdl_ship*.zarr", "val/l1c_oscd*.zarr"]
    paths = [path for pattern in patterns for path in real_cubes(pattern)[:2]]
    assert paths
    for path in paths:
        reflectance = xr.open_zarr(path, consolidated=False)["reflectance"]
        chunk = reflectance.isel(x=slice(200), y=slice(200)).values
        config = CodecConfig(
            sensor="S2L1C" if reflectance.attrs["level"] == "L1C" else "S2L2A",
            bands=tuple(str(band) for band in reflectance["band"].values),
            nodata=0,
            offset=float(reflectance.attrs["offset"]),
        )
        np.testing.assert_array_equal(there_and_back(chunk, config), chunk)
        data, mask = pack_specials(chunk, 0)
        if mask is not None:
            assert 8 * len(data) / mask.size < 0.04  # bits a sample


@given(chunks(largest=24), st.sampled_from([0.1, 3]))
@settings(deadline=None, max_examples=40)
def test_decoded_pixels_keep_to_the_range_of_their_band(chunk, noise):
    dn, nodata = chunk
    config = CodecConfig(model="fp", bands=L2A.bands[: dn.shape[1]], nodata=nodata)
    _, mask = pack_specials(dn, nodata)
    ranges = valid_ranges(dn, mask)
    rng = np.random.default_rng(0)
    valid = ~special(dn, nodata)
    for x in iter_planes(dn, mask, config, 16):
        x_hat = x + np.float32(noise) * rng.standard_normal(x.shape, np.float32)
        out = from_planes(x_hat, config, dn.dtype, *dn.shape[2:], ranges=ranges)
        for band, (low, high) in enumerate(ranges):
            if valid[:, band].any():
                assert low == dn[:, band][valid[:, band]].min()
                assert high == dn[:, band][valid[:, band]].max()
                assert low <= out[band].min() <= out[band].max() <= high
            else:
                assert (low, high) == (0, 0)
