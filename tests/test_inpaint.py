"""Cloud inpainting: what is masked is replaced and has no say, all else stays bit for bit."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tec
import tiny
import xarray as xr
from cubes import BANDS, band_variables, cube
from data import real_cubes, requires_real
from scenes import scene
from tec.inpainting import COMPRESSION, DIRECTIONS, fillable, inpaint, missing

from xtec.inpainting import BEYOND

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import inpainting as benchmark

NAMES = tec.CodecConfig().bands


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("weights")
    files = {"compact": "tt.safetensors", "published": "tt.pt"}
    return {kind: str(tiny.write(folder / name, "tt")) for kind, name in files.items()}


def config(path: str, bands: int = 3, **settings: Any) -> tec.CodecConfig:
    return tec.CodecConfig(
        model="tt", weights=path, bands=NAMES[:bands], **{"nodata": 0, **settings}
    )


def series(time: int = 3, y: int = 40, x: int = 56) -> tuple[np.ndarray, np.ndarray]:
    """A scene with a swath edge, and clouds that move over it."""
    chunk = scene(time, 3, y, x, nodata=True)
    mask = np.zeros((time, y, x), bool)
    for t in range(time):
        mask[t, 4 : y // 2, 12 * t : 12 * t + 20] = True
    return chunk, mask


@pytest.mark.parametrize("kind", ["compact", "published"])
@pytest.mark.parametrize("mode", ["tokens", "rest"])
def test_only_what_is_filled_changes(weights: dict[str, str], kind: str, mode: str) -> None:
    chunk, mask = series()
    found = inpaint(chunk, mask, config(weights[kind]), mode=mode)
    where = np.broadcast_to(found.filled[:, None], chunk.shape)
    assert found.pixels.dtype == chunk.dtype
    np.testing.assert_array_equal(found.pixels[~where], chunk[~where])
    assert (found.pixels[where] != chunk[where]).mean() > 0.9
    assert (found.pixels[where] != 0).all()
    assert found.filled.any()


@pytest.mark.parametrize("kind", ["compact", "published"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_what_is_masked_has_no_say(weights: dict[str, str], kind: str, direction: str) -> None:
    chunk, mask = series()
    mask[1] = True  # a whole date, too
    hidden = np.broadcast_to(mask[:, None], chunk.shape) & (chunk != 0)
    other = np.where(hidden, 9999, chunk).astype(chunk.dtype)
    a, b = (inpaint(c, mask, config(weights[kind]), direction=direction) for c in (chunk, other))
    where = np.broadcast_to(a.filled[:, None], chunk.shape)
    np.testing.assert_array_equal(a.filled, b.filled)
    np.testing.assert_array_equal(a.pixels[where], b.pixels[where])
    np.testing.assert_array_equal(b.pixels[~where], other[~where])


def test_modes_differ(weights: dict[str, str]) -> None:
    chunk, mask = series()
    a, b = (
        inpaint(chunk, mask, config(weights["published"]), mode=mode).pixels
        for mode in ("tokens", "rest")
    )
    assert (a != b).any()


def test_dates_without_a_past_stay(weights: dict[str, str]) -> None:
    chunk, mask = series()
    found = inpaint(chunk, mask, config(weights["compact"]), direction="forward")
    np.testing.assert_array_equal(found.pixels[0], chunk[0])
    assert not found.filled[0].any()
    both = mask[0] & mask[1]
    assert both.any()
    assert not found.filled[1][both].any()  # hidden ever since the first date
    assert found.filled[2][~mask[0] & mask[2] & (chunk[2] != 0).all(axis=0)].all()


def test_fillable_says_what_the_slow_way_says() -> None:
    rng = np.random.default_rng(0)
    mask, gone = rng.random((2, 5, 6, 7)) < np.array([0.6, 0.3])[:, None, None, None]
    clear = ~(mask | gone)
    for direction in DIRECTIONS:
        expected = np.zeros_like(mask)
        for t in range(5):
            sides = {"forward": [clear[:t]], "backward": [clear[t + 1 :]]}
            seen = sides.get(direction, [clear[:t], clear[t + 1 :]])
            expected[t] = mask[t] & ~gone[t] & np.concatenate(seen).any(axis=0)
        np.testing.assert_array_equal(fillable(mask, gone, direction), expected)
        assert expected.any()
        assert (expected != mask).any()


def test_partly_missing_pixels_keep_their_nodata(weights: dict[str, str]) -> None:
    chunk, mask = series()
    chunk[1, 1, 8:12, 20:30] = 0
    assert mask[1, 8:12, 20:30].all()
    assert not missing(chunk, 0)[1, 8:12, 20:30].any()
    found = inpaint(chunk, mask, config(weights["compact"]))
    assert (found.pixels[1, 1, 8:12, 20:30] == 0).all()
    assert (found.pixels[1, 0, 8:12, 20:30] != chunk[1, 0, 8:12, 20:30]).any()


@pytest.mark.parametrize("dtype", ["int16", "float32", ">u2"])
def test_dtypes(weights: dict[str, str], dtype: str) -> None:
    chunk, mask = series()
    given = chunk.astype(dtype)
    settings = {"nodata": 0}
    if dtype == "float32":
        given[chunk == 0] = np.nan
        settings = {"nodata": np.nan}
    found = inpaint(given, mask, config(weights["compact"], **settings))
    same = inpaint(chunk, mask, config(weights["compact"]))
    assert found.pixels.dtype == given.dtype
    np.testing.assert_array_equal(found.filled, same.filled)
    where = np.broadcast_to(found.filled[:, None], chunk.shape)
    close = found.pixels[where].astype(float) - same.pixels[where]
    assert np.abs(close).max() <= 1


def test_nothing_to_do(weights: dict[str, str]) -> None:
    chunk, mask = series()
    for none in (np.zeros_like(mask), np.ones_like(mask)):
        found = inpaint(chunk, none, config(weights["compact"]))
        np.testing.assert_array_equal(found.pixels, chunk)
        assert not found.filled.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask": np.zeros((3, 40, 56), "u1")}, "it must be bool"),
        ({"mask": np.zeros((2, 40, 56), bool)}, r"\(3, 40, 56\)"),
        ({"direction": "sideways"}, "choose both"),
        ({"mode": "some"}, "choose tokens or rest"),
        ({"config": tec.CodecConfig(model="flex", bands=NAMES[:3])}, "only 'tt' inpaints"),
    ],
)
def test_errors(weights: dict[str, str], change: dict[str, Any], message: str) -> None:
    chunk, mask = series()
    given = {"chunk": chunk, "mask": mask, "config": config(weights["compact"]), **change}
    with pytest.raises(tec.TecError, match=message):
        inpaint(**given)


@requires_real
def test_better_than_the_date_before() -> None:
    path = real_cubes("train/l2a_gelos_v0407_000020.zarr")[0]
    real = xr.open_zarr(path, consolidated=False).reflectance
    chunk = real.values[:3]
    mask = np.zeros((3, 96, 96), bool)
    mask[2, 20:60, 30:80] = True
    hazy = chunk.copy()
    hazy[2, :, 20:60, 30:80] = 8000
    settings = tec.CodecConfig(
        model="tt", compression=COMPRESSION, offset=float(real.attrs["offset"]), nodata=0
    )
    filled = inpaint(hazy, mask, settings).pixels

    def error(found: np.ndarray) -> float:
        rest = found.astype(float) - chunk[2]
        return 10 * np.log10(np.square(rest[:, mask[2]]).mean())

    assert error(filled[2]) < error(chunk[1]) - 2


# Cubes -------------------------------------------------------------------------------------------


def cloudy(time: int = 3, **sizes: int) -> tuple[xr.DataArray, xr.DataArray]:
    data = cube(time=time, **sizes)
    scl = xr.full_like(data.isel(band=0, drop=True), 4).astype("u1").rename("SCL")
    for t in range(time):
        scl[t, 8:14, 4 * t : 4 * t + 8] = (3, 8, 9, 10)[t % 4]
    scl[:, 16:, :] = 11  # snow
    return data, scl


def test_a_cube_comes_back_as_it_was(weights: dict[str, str]) -> None:
    data, scl = cloudy()
    data.encoding["chunks"] = (1, 3, 20, 24)
    turned = data.transpose("y", "x", "band", "time")
    found = turned.tec.inpaint(scl, weights=weights["compact"], compression=20)
    assert found.chunks is not None
    assert found.dims == turned.dims
    assert found.dtype == data.dtype
    assert found.encoding == turned.encoding
    xr.testing.assert_identical(found.coords.to_dataset(), turned.coords.to_dataset())
    changed = (found != turned).any("band").transpose("time", "y", "x")
    where = turned.tec.inpainted(scl, weights=weights["compact"])
    assert where.dtype == bool
    assert not (changed & ~where).any()
    assert not (where & ~scl.isin([3, 8, 9, 10])).any()
    assert float(changed.sum()) > 0.9 * float(where.sum()) > 0
    told = json.loads(found.attrs["xtec_inpaint"])
    assert told["mask"] == "SCL"
    assert told["classes"] == [3, 8, 9, 10]
    assert told["dates"] == [round(6 * 8 / 480, 4)] * 3


def test_band_variables(weights: dict[str, str]) -> None:
    ds = band_variables()
    mask = ds.SCL.isin([3, 8])
    found = ds.tec.inpaint("SCL", classes=(3, 8), weights=weights["compact"], compression=20)
    assert list(found.data_vars) == list(ds.data_vars)
    xr.testing.assert_identical(found.SCL, ds.SCL)
    for name in BANDS:
        assert found[name].dims == ds[name].dims
        assert "xtec_inpaint" in found[name].attrs
        kept = found[name].where(~mask)
        np.testing.assert_array_equal(kept, ds[name].where(~mask))
    one = ds.tec.inpaint(lambda ds: ds.SCL.isin([3, 8]), weights=weights["compact"], compression=20)
    np.testing.assert_array_equal(one.B03, found.B03)


def test_coarse_masks(weights: dict[str, str]) -> None:
    data, scl = cloudy()
    fine = scl.isin([3, 8, 9, 10])
    coarse = xr.DataArray(scl.values[:, ::2, ::2], dims=("time", "y_20m", "x_20m"), name="SCL")
    how: dict[str, Any] = {"weights": weights["compact"], "compression": 20}
    np.testing.assert_array_equal(data.tec.inpaint(coarse, **how), data.tec.inpaint(fine, **how))
    there = coarse.rename(y_20m="y", x_20m="x")
    there = there.assign_coords(
        y=data.y.values.reshape(-1, 2).mean(1), x=data.x.values.reshape(-1, 2).mean(1)
    )
    assert data.tec.inpainted(there, **how).sum() == data.tec.inpainted(fine, **how).sum() > 0
    with pytest.raises(ValueError, match="lies elsewhere along 'x'"):
        data.tec.inpainted(there.assign_coords(x=there.x + 20))


def test_windows_and_overlaps(weights: dict[str, str]) -> None:
    data, scl = cloudy(time=16, y=100, x=120)
    how: dict[str, Any] = {"weights": weights["compact"], "compression": 20}
    blocks = {"time": 1, "band": 1, "y": 50, "x": 60}
    found = data.chunk(blocks).tec.inpaint(scl.chunk({"time": 1}), dates=8, **how)
    assert found.chunks[0] == (8, 8)
    assert found.chunks[2] == (50, 50)
    where = data.chunk(blocks).tec.inpainted(scl, dates=8, **how).compute()
    changed = (found != data).any("band").values
    assert not (changed & ~where.values).any()
    assert changed.sum() > 0.9 * where.sum() > 0
    np.testing.assert_array_equal(where, data.tec.inpainted(scl, **how))
    assert BEYOND == 8


def test_floats_as_they_are_shown(weights: dict[str, str], tmp_path: Path) -> None:
    data, scl = cloudy()
    data.encoding = {"scale_factor": 1e-4, "add_offset": -0.1, "_FillValue": 0, "dtype": "uint16"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shown = (data.where(data != 0) * 1e-4 - 0.1).astype("float64")
    shown.encoding = data.encoding
    how: dict[str, Any] = {"weights": weights["compact"], "compression": 20}
    found = shown.tec.inpaint(scl, **how)
    whole = data.copy()
    whole.encoding = {}
    same = whole.tec.inpaint(scl, offset=1000, **how)
    assert found.dtype == np.float64
    expected = (same.where(data != 0) * 1e-4 - 0.1).values
    np.testing.assert_allclose(found.values, expected, atol=1.01e-4)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(shown))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mask": "clouds"}, "there is no coordinate 'clouds'"),
        ({"mask": 3}, "mask is int"),
        (
            {"mask": lambda da: da.isel(band=0).values > 3},
            r"xr.DataArray\(mask, dims=\('time', 'y', 'x'\)\)",
        ),
        ({"mask": lambda da: da.isel(band=0, drop=True) * 1.0}, "it must be bool"),
        ({"mask": lambda da: da > 3}, "has a band axis"),
        ({"mask": lambda da: da.isel(band=0, time=0, drop=True) > 3}, "and no time"),
        ({"mask": lambda da: da.isel(band=0, drop=True, time=[0]) > 3}, "has 1 dates"),
        ({"mask": lambda da: da.isel(band=0, drop=True)[::-1] > 3}, "other dates"),
        ({"mask": lambda da: da.isel(band=0, drop=True, y=slice(7)) > 3}, "7 pixels along 'y'"),
        ({"model": "elic"}, "only 'tt'"),
        ({"direction": "up"}, "direction is 'up'"),
        ({"dates": 0}, "positive whole number"),
    ],
)
def test_what_is_refused(given: dict[str, Any], message: str) -> None:
    data, scl = cloudy()
    with pytest.raises(ValueError, match=message):
        data.tec.inpaint(**{"mask": scl, **given})


def test_a_single_date_is_refused() -> None:
    data, scl = cloudy()
    with pytest.raises(ValueError, match="and no time"):
        data.isel(time=0).tec.inpaint(scl.isel(time=0))


def test_compress_inpaints(weights: dict[str, str], tmp_path: Path) -> None:
    data, scl = cloudy()
    ds = xr.Dataset({"s2": data, "SCL": scl})
    how = {"mask": "SCL", "weights": weights["compact"], "compression": 20}
    packed = ds.tec.compress(max_error=0, inpaint=how)
    expected = ds.tec.inpaint(**how)
    ds.tec.to_zarr(tmp_path / "a.zarr", max_error=0, inpaint=how, progress=False)
    back = xr.open_zarr(tmp_path / "a.zarr")
    np.testing.assert_array_equal(back.s2, expected.s2)
    np.testing.assert_array_equal(back.inpainted, ds.tec.inpainted(**how))
    assert json.loads(packed.s2.attrs["xtec"])["inpaint"]["share"] == 0.1
    assert json.loads(back.s2.attrs["xtec"])["inpaint"]["direction"] == "both"
    with pytest.raises(ValueError, match="'lambda'"):
        ds.tec.compress(inpaint={"mask": "SCL", "lambda": 3})
    with pytest.raises(ValueError, match="variable 'inpainted'"):
        ds.assign(inpainted=scl).tec.compress(inpaint=how)


def test_the_benchmarks_other_ways() -> None:
    when = np.arange(6) / 6
    wave = 1000 + 200 * np.cos(2 * np.pi * when)
    pixels = np.broadcast_to(wave[:, None, None, None], (6, 2, 4, 4)).copy()
    pixels[:, 1] = 100 * np.arange(6)[:, None, None]
    hidden = np.zeros((6, 4, 4), bool)
    hidden[2:4, 1] = True
    dirty = np.where(hidden[:, None], 9e4, pixels)
    found = {name: way(dirty, hidden, when) for name, way in benchmark.PLAIN.items()}
    for filled in found.values():
        np.testing.assert_array_equal(filled[:, :, 2:], pixels[:, :, 2:])
    np.testing.assert_allclose(found["linear in time"][:, 1], pixels[:, 1])
    np.testing.assert_array_equal(found["previous clear date"][3, 1, 1], 100)
    np.testing.assert_array_equal(found["median of other dates"][3, 1, 1], (100 + 400) / 2)
    np.testing.assert_allclose(found["harmonic fit"][3, 0, 1], 1000 - 200, atol=100)
    shares = benchmark.masks((3, 64, 64), np.random.default_rng(0)).mean(axis=(1, 2))
    assert ((shares > 0.09) & (shares < 0.51)).all()


@pytest.mark.parametrize("dim", ["y", "x", "time"])
def test_a_mask_on_other_coordinates_says_what_helps(dim: str) -> None:
    """And that does help: the code in the message is run."""
    data, scl = cloudy()
    mask = scl.isin([3, 8, 9, 10]).rename(None)
    if dim == "time":
        days = 5 * np.arange(data.sizes["time"])
        times = (np.datetime64("2020-01-01") + days).astype("M8[ns]")
        cube = data.assign_coords(time=times)
        mask = mask.assign_coords(time=times + np.timedelta64(7, "s"))
        names = ("mask.reindex(time=cube.time, method='nearest')",)
        said = "the mask has other dates"
    else:
        places = 10.0 * np.arange(data.sizes[dim])
        cube = data.assign_coords({dim: places})
        mask = mask.assign_coords({dim: places + 8})
        names = (f"mask.reindex({dim}=cube.{dim}, method='nearest')", f"mask.drop_vars({dim!r})")
        said = f"the mask lies elsewhere along {dim!r}"
    with pytest.raises(ValueError, match=said) as caught:
        cube.tec.inpainted(mask)
    for code in names:
        assert code in str(caught.value)
        found = cube.tec.inpainted(eval(code, {"mask": mask, "cube": cube}))
        assert found.shape == mask.shape
