"""compare: metrics against plain formulas, on every layout and grid of blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask.array
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from cubes import DIMS
from scenes import scene

import xtec
from xtec import comparing, quality
from xtec.comparing import METRICS
from xtec.values import pair_of

BANDS = ["B02", "B03", "B04", "B08"]


@pytest.fixture
def pair() -> tuple[xr.DataArray, xr.DataArray]:
    """3 dates of 4 bands, 40 x 36 pixels: a swath edge; what came back has noise."""
    pixels = scene(time=3, bands=4, y=40, x=36, nodata=True)
    noise = np.random.default_rng(1).integers(-30, 40, pixels.shape)
    back = np.where(pixels == 0, 0, np.maximum(pixels + noise, 1)).astype("uint16")
    coords = {
        "time": pd.date_range("2020-06-01", periods=3),
        "band": BANDS,
        "y": 5e6 - 10.0 * np.arange(40),
        "x": 6e5 + 10.0 * np.arange(36),
    }
    a, b = (xr.DataArray(p, dims=DIMS, coords=coords, name="s2") for p in (pixels, back))
    return a, b


def compared(a: Any, b: Any, **options: Any) -> xr.Dataset:
    return xtec.compare(a, b, progress=False, **options)


# what the metrics are


def test_metrics_are_the_plain_formulas(pair: tuple) -> None:
    a, b = pair
    found = compared(a, b)
    assert set(found.data_vars) == set(METRICS) - {"ms_ssim", "bpppb"}
    x, y = a.values.astype(float), b.values.astype(float)
    ok = a.values != 0
    mean = {name: np.zeros((4, 3)) for name in ("square", "mae", "bias", "max_error")}
    for band in range(4):
        for date in range(3):
            e = (y - x)[date, band][ok[date, band]]
            mean["square"][band, date] = np.mean(e**2)
            mean["mae"][band, date] = np.mean(np.abs(e))
            mean["bias"][band, date] = np.mean(e)
            mean["max_error"][band, date] = np.abs(e).max()
    np.testing.assert_allclose(found.rmse, np.sqrt(mean["square"]))
    np.testing.assert_allclose(found.psnr, 10 * np.log10(1e8 / mean["square"]))
    for name in ("mae", "bias", "max_error"):
        np.testing.assert_allclose(found[name], mean[name])
    np.testing.assert_allclose(found.valid, ok.mean((2, 3)).T)
    e = (y - x)[ok]
    np.testing.assert_allclose(found.attrs["rmse"], np.sqrt(np.mean(e**2)))
    np.testing.assert_allclose(found.attrs["psnr"], 10 * np.log10(1e8 / np.mean(e**2)))
    assert found.attrs["max_error"] == np.abs(e).max()


def test_metrics_across_bands_are_the_plain_formulas(pair: tuple) -> None:
    a, b = pair
    found = compared(a, b, metrics=["sam", "ndvi_error", "ndwi_error"])
    assert list(found.data_vars) == ["sam", "ndvi_error", "ndwi_error"]
    x, y = a.values.astype(float), b.values.astype(float)
    for date in range(3):
        ok = (a.values[date] != 0).all(0)
        u, v = x[date][:, ok], y[date][:, ok]
        cosine = (u * v).sum(0) / np.sqrt((u**2).sum(0) * (v**2).sum(0))
        angle = np.degrees(np.arccos(np.minimum(cosine, 1)))
        np.testing.assert_allclose(found.sam[date], angle.mean(), rtol=1e-6)
        for name, (plus, minus) in {"ndvi_error": (3, 2), "ndwi_error": (1, 3)}.items():
            was, now = ((z[plus] - z[minus]) / (z[plus] + z[minus]) for z in (u, v))
            np.testing.assert_allclose(found[name][date], np.abs(was - now).mean())


def test_metrics_equal_those_of_scikit_image(pair: tuple) -> None:
    metrics = pytest.importorskip("skimage.metrics", reason="scikit-image is not installed")
    a, b = (x + 1 for x in pair)  # no pixel is nodata
    found = compared(a, b)
    for band, date in np.ndindex(4, 3):
        x, y = (z.values[date, band].astype(float) for z in (a, b))
        expected = metrics.peak_signal_noise_ratio(x, y, data_range=10000)
        np.testing.assert_allclose(found.psnr[band, date], expected)
        np.testing.assert_allclose(found.rmse[band, date] ** 2, metrics.mean_squared_error(x, y))


def test_ms_ssim_is_the_mean_over_tiles() -> None:
    pixels = scene(time=1, bands=2, y=520, x=300)
    back = pixels + np.random.default_rng(0).integers(0, 200, pixels.shape).astype("uint16")
    a, b = (xr.DataArray(p, dims=DIMS, coords={"band": BANDS[:2]}) for p in (pixels, back))
    found = compared(a, b, metrics=["ms_ssim"]).ms_ssim.values
    tiles = [quality.ms_ssim(pixels[0][:, s], back[0][:, s]) for s in np.s_[:260, 260:]]
    np.testing.assert_allclose(found[:, 0], np.mean(tiles, 0))


def test_ms_ssim_weighs_what_is_valid_and_leaves_out_the_rest() -> None:
    pixels = scene(time=1, bands=1, y=256, x=512)
    pixels[..., :256] = 0
    back = pixels + np.random.default_rng(0).integers(0, 90, pixels.shape).astype("uint16")
    back[pixels == 0] = 0
    a, b = (xr.DataArray(p, dims=DIMS, coords={"band": BANDS[:1]}) for p in (pixels, back))
    expected = quality.ms_ssim(pixels[0, 0, :, 256:], back[0, 0, :, 256:])
    np.testing.assert_allclose(compared(a, b, metrics=["ms_ssim"]).ms_ssim, [[expected]])
    small = compared(a[..., :10, :], b[..., :10, :], metrics=["ms_ssim"])
    assert np.isnan(small.ms_ssim).all()


def test_equal_cubes_lose_nothing(pair: tuple) -> None:
    a, _ = pair
    found = compared(a, a.copy(), metrics=[name for name in METRICS if name != "bpppb"])
    assert (found.psnr == np.inf).all()
    assert (found.ms_ssim == 1).all()
    zero = ("rmse", "mae", "bias", "max_error", "sam", "ndvi_error", "ndwi_error", "lost", "added")
    for name in zero:
        assert (found[name] == 0).all(), name
    assert found.attrs == {"psnr": np.inf, "rmse": 0, "max_error": 0}


def test_dates_and_bands_without_pixels(pair: tuple) -> None:
    a, b = (x.copy() for x in pair)
    for x in (a, b):
        x[0] = 0  # a date that was not acquired
        x[1, 2] = 0  # a band that is missing on one
    found = compared(a, b)
    assert np.isnan(found.rmse[:, 0]).all()
    assert np.isnan(found.max_error[2, 1])
    assert np.isnan(found.sam[0])
    assert np.isnan(found.ndvi_error[1]), "B04 is missing"
    assert found.ndwi_error[1] > 0
    rest = compared(*(x.isel(time=[1], band=[0, 1, 3]) for x in (a, b)))
    np.testing.assert_allclose(found.sam[1], rest.sam[0])
    assert (found.valid[:, 0] == 0).all()
    nothing = compared(a[:1], b[:1])
    assert np.isnan(nothing.psnr).all()
    assert nothing.attrs == {}


def test_pixels_that_only_one_has_are_counted_and_not_compared(pair: tuple) -> None:
    a, b = (x.copy() for x in pair)
    valid = a.values[1, 0] != 0
    b[1, 0] = np.where(np.arange(36) < 18, 0, b[1, 0])
    b[2, 1] = np.where(a[2, 1] == 0, 5000, b[2, 1])
    found = compared(a, b)
    assert found.lost[0, 1] == pytest.approx(valid[:, :18].sum() / valid.sum())
    assert found.added[1, 2] == 1
    assert found.lost.sum() == found.lost[0, 1]
    assert found.added.sum() == found.added[1, 2]
    assert found.max_error.max() < 41


def test_the_result_can_be_plotted(pair: tuple) -> None:
    matplotlib = pytest.importorskip("matplotlib", reason="matplotlib is optional")
    matplotlib.use("Agg")
    found = compared(*pair)
    for name, variable in found.data_vars.items():
        assert variable.attrs["long_name"], name
        assert variable.attrs["units"], name
    (line, *_) = found.sam.plot()
    assert line.axes.get_ylabel() == "mean spectral angle [degrees]"
    mesh = found.psnr.plot()
    assert mesh.colorbar.ax.get_ylabel().split() == ["peak", "signal-to-noise", "ratio", "[dB]"]
    matplotlib.pyplot.close("all")


# blocks


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"time": 1, "band": 1, "y": 20, "x": 36}, {"time": 3, "y": 8, "x": 12}),
        ({"time": 2, "y": 16, "x": 16}, {"time": 1, "y": 9, "x": 7}),
        ({"y": 16}, None),
        (None, {"time": 2, "band": 3}),
    ],
)
@pytest.mark.parametrize("bound", [comparing.TOGETHER, 1000])
def test_blocks_do_not_matter(
    pair: tuple, ours: Any, theirs: Any, bound: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparing, "TOGETHER", bound)
    expected = compared(*pair)
    a, b = (x if to is None else x.chunk(to) for x, to in zip(pair, (ours, theirs)))
    xr.testing.assert_allclose(compared(a, b), expected, rtol=1e-12)
    few = ["rmse", "valid"]
    xr.testing.assert_allclose(compared(a, b, metrics=few), expected[few], rtol=1e-12)


def counting(data: xr.DataArray, chunks: dict[str, int], seen: list[int]) -> xr.DataArray:
    def count(block: np.ndarray) -> np.ndarray:
        seen.append(block.size)
        return block

    chunked = data.chunk(chunks)
    blocks = chunked.data.map_blocks(count, dtype=data.dtype, meta=np.empty((0,) * 4, data.dtype))
    return chunked.copy(data=blocks)


def test_each_block_of_both_is_read_once_and_no_large_one_is_made(pair: tuple) -> None:
    ours: list[int] = []
    theirs: list[int] = []
    a = counting(pair[0], {"time": 1, "y": 20, "x": 36}, ours)
    b = counting(pair[1], {"time": 3, "y": 5, "x": 12}, theirs)
    compared(a, b)
    assert len(ours) == 3 * 2
    assert len(theirs) == 8 * 3
    first, _ = comparing._together(*pair_of(a, b)[:2], across=True)
    assert first.chunks == ((3,), (4,), (20, 20), (36,))


def test_later_it_is_the_same_in_one_pass(pair: tuple) -> None:
    seen: dict[str, list[int]] = {"ours": [], "theirs": []}
    chunks = {"time": 2, "band": 3, "y": 16, "x": 20}
    a, b = (counting(p, chunks, read) for p, read in zip(pair, seen.values(), strict=True))
    names = [name for name in METRICS if name != "bpppb"]
    later = compared(a, b, metrics=names, compute=False)
    assert seen == {"ours": [], "theirs": []}
    assert all(isinstance(v.data, dask.array.Array) for v in later.data_vars.values())
    now = later.compute()
    assert [sum(read) for read in seen.values()] == [a.size, b.size]
    expected = compared(*(x.chunk(chunks) for x in pair), metrics=names)  # tiles of MS-SSIM
    assert set(expected.attrs) - set(now.attrs) == {"psnr", "rmse", "max_error"}
    xr.testing.assert_allclose(now, expected.drop_attrs(deep=False))
    for name in names:
        assert now[name].attrs == expected[name].attrs
    assert now.max_error.equals(expected.max_error)


def test_blocks_too_large_to_join_are_cut_and_said() -> None:
    dates = dask.array.zeros((4, 12, 10980, 10980), dtype="uint16", chunks=(1, 1, 10980, 10980))
    small = dask.array.zeros(dates.shape, dtype="uint16", chunks=(4, 12, 1024, 1024))
    grids = [dates.chunks, small.chunks]
    blocks, cost = comparing._common(dates.shape, 2, grids, across=True)
    assert [max(sizes) for sizes in blocks] == [1, 12, 1024, 1024]
    assert cost == 2 * 12 * (10980**2 + 4 * 1024**2)
    blocks, cost = comparing._common(dates.shape, 2, grids, across=False)
    assert [max(sizes) for sizes in blocks] == [1, 1, 1024, 1024]
    assert cost == 2 * (10980**2 + 4 * 12 * 1024**2)
    nested = [small.chunks, dates.rechunk((1, 1, 512, 512)).chunks]
    blocks, _ = comparing._common(dates.shape, 2, nested, across=True)
    assert blocks == small.chunks
    bands = {"band": [f"B{n:02d}" for n in (*range(1, 10), 11, 12)] + ["B8A"]}
    a, b = (xr.DataArray(x, dims=DIMS, coords=bands) for x in (dates, small))
    with pytest.warns(UserWarning, match=r"3.0 GB of input a task.*leave sam"):
        comparing._together(*pair_of(a, b)[:2], across=True)


def test_a_lazy_file_without_dask_is_never_loaded_whole(pair: tuple, tmp_path: Path) -> None:
    a, b = pair
    a.to_dataset().chunk(time=1, y=8, x=36).to_zarr(tmp_path / "a.zarr", zarr_format=2)
    lazy = xr.open_zarr(tmp_path / "a.zarr", chunks=None)
    values = pair_of(lazy, b).source
    assert not values.data.variable._in_memory
    assert comparing._grid(values.data)[2] == (40,)
    xr.testing.assert_allclose(compared(lazy, b), compared(a, b))
    one = lazy.s2.isel(time=1).drop_vars("time")
    assert pair_of(one, b[1]).source.data.chunks is not None, "a new axis would load it"
    np.testing.assert_allclose(compared(one, b[1]).rmse[:, 0], compared(a, b).rmse[:, 1])


@pytest.mark.parametrize("processes", [False, True])
def test_a_cluster_finds_the_same(pair: tuple, processes: bool) -> None:
    distributed = pytest.importorskip("distributed", reason="the extra 'distributed' is optional")
    expected = compared(*pair)
    a, b = pair[0].chunk(time=1, y=8), pair[1].chunk(time=2, x=9)
    with (
        distributed.LocalCluster(
            1, processes=processes, threads_per_worker=2, dashboard_address=":0"
        ) as cluster,
        distributed.Client(cluster),
    ):
        found = compared(a, b)
    xr.testing.assert_allclose(found, expected, rtol=1e-12)


# layouts


def test_band_variables_other_orders_names_and_some_dates(pair: tuple) -> None:
    a, b = pair
    expected = compared(a, b)
    variables = xr.Dataset({name.lower(): a.sel(band=name, drop=True) for name in BANDS})
    turned = b.isel(band=[2, 0, 3, 1], time=[2, 0]).rename(time="t", y="lat", x="lon")
    turned = turned.transpose("lat", "band", "t", "lon")
    found = compared(variables, turned.to_dataset(name="other"))
    assert found.band.values.tolist() == BANDS
    assert found.attrs["left_out"] == "1 of 3 dates, which only the source has"
    xr.testing.assert_allclose(found.drop_attrs(), expected.isel(time=[0, 2]).drop_attrs())
    odd = a.assign_coords(band=["one", "two", "three", "four"])
    named = dict(zip(odd.band.values.tolist(), BANDS))
    xr.testing.assert_allclose(compared(odd, b, bands=named), expected)


def test_one_image_has_one_date(pair: tuple) -> None:
    a, b = (x.isel(time=1) for x in pair)
    found = compared(a, b)
    assert found.rmse.dims == ("band", "time")
    xr.testing.assert_allclose(found, compared(*pair).isel(time=[1]))
    assert compared(a.drop_vars("time"), b).sizes == {"band": 4, "time": 1}
    plane = compared(a.sel(band="B03"), b.sel(band="B03"), metrics=["mae"])
    np.testing.assert_allclose(plane.mae[0], found.mae[1])


def test_packed_numbers_shown_in_three_ways_are_the_same_dn(pair: tuple, tmp_path: Path) -> None:
    a, b = pair
    expected = compared(a, b)
    packing = {"scale_factor": 1e-4, "add_offset": -0.1, "_FillValue": 0}
    for name, x in (("a", a), ("b", b)):
        stored = xr.where(x == 0, 0, x + 1000).astype("uint16").assign_attrs(packing)
        stored.to_dataset(name="s2").to_zarr(tmp_path / f"{name}.zarr", zarr_format=2)
    shown, raw = (
        [xr.open_zarr(tmp_path / f"{n}.zarr", mask_and_scale=scaled) for n in "ab"]
        for scaled in (True, False)
    )
    assert shown[0].s2.dtype.kind == "f"
    assert raw[0].s2.dtype == "uint16"
    for one in (shown[0], raw[0]):
        for other in (shown[1], raw[1], b):
            xr.testing.assert_allclose(compared(one, other), expected, atol=1e-3)


def test_what_a_store_says_of_its_numbers_holds_for_the_source(pair: tuple, tmp_path: Path) -> None:
    a, _ = pair
    reflectance = ((a + 1000.0) * 1e-4).where(a != 0).astype("float32")
    packed = reflectance.tec.compress(
        model="none", max_error=15, scale=1e-4, offset=1000, chunks={"y": 16}
    )
    summary = packed.tec.to_zarr(tmp_path / "s.zarr", progress=False)
    back = xr.open_zarr(tmp_path / "s.zarr")
    found = compared(reflectance, back)
    assert 0.1 < found.max_error.max() <= 15.01
    assert found.bpppb == summary.bpppb
    plain = compared(a, back)
    for name in ("rmse", "sam", "ndvi_error"):
        np.testing.assert_allclose(plain[name], found[name], rtol=1e-3)
    alone = compared(reflectance, back.drop_encoding(), scale=1e-4, offset=1000)
    xr.testing.assert_allclose(alone, found.drop_vars("bpppb"))
    with pytest.raises(ValueError, match="says nothing of its scale: pass scale="):
        compared(reflectance, back.drop_encoding())


def test_dtypes_that_no_store_takes_can_be_compared(pair: tuple) -> None:
    a, b = pair
    expected = compared(a, b)
    for dtype in ("int32", "int64", "uint32"):
        xr.testing.assert_allclose(compared(a.astype(dtype), b.astype(dtype)), expected)
    floats = a.where(a != 0).astype("float64")
    xr.testing.assert_allclose(compared(floats, b, scale=1), expected)


# stores


def test_bpppb_is_that_of_the_store(pair: tuple, tmp_path: Path) -> None:
    a, _ = pair
    ds = a.to_dataset()
    summary = ds.tec.to_zarr(tmp_path / "s.zarr", max_error=10, progress=False)
    ds.tec.to_zarr(tmp_path / "s.zarr.zip", max_error=10, progress=False)
    opened = xr.open_zarr(tmp_path / "s.zarr")
    for back, options in (
        (tmp_path / "s.zarr", {}),
        (opened, {}),
        (opened.s2, {"stored": summary}),
        (opened.s2, {"stored": str(tmp_path / "s.zarr")}),
        (opened.s2, {"stored": summary.bytes_out}),
        (opened.isel(time=[1]), {}),
    ):
        found = ds.tec.compare(back, progress=False, **options)
        assert found.bpppb.dims == ()
        assert found.bpppb == summary.bpppb
        assert found.max_error.max() == 10
        assert "not known" in found.bpppb.attrs["comment"]
    zipped = compared(ds, tmp_path / "s.zarr.zip")
    xr.testing.assert_identical(zipped.mae, compared(ds, opened).mae)
    assert zipped.bpppb > 0
    assert "bpppb" not in compared(ds, opened.s2)


# what cannot be compared


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda b: b[..., :30], {}, r"40 x 36 pixels.*40 x 30: select the same part"),
        (lambda b: b.assign_coords(x=b.x + 10), {}, r"coordinates x of source.*differ"),
        (lambda b: b[..., ::-1, :], {}, r"coordinates y .*sortby\('y'\)"),
        (lambda b: b.assign_coords(time=b.time + 1), {}, "no date is in both"),
        (lambda b: b[:2].drop_vars("time"), {}, "3 dates, what was read back has 2"),
        (lambda b: b[[0, 0, 1]], {}, "times occur more than once"),
        (lambda b: b.assign_coords(band=["B05", "B06", "B07", "B8A"]), {}, "none to compare"),
        (lambda b: b, {"metrics": ["ssim"]}, r"metrics is \['ssim'\]: choose from psnr"),
        (lambda b: b, {"metrics": "psnr"}, r"pass a list, \['psnr'\]"),
        (lambda b: b, {"metrics": []}, "choose from"),
        (lambda b: b, {"metrics": ["bpppb"]}, "bpppb is known of stores only"),
        (lambda b: b, {"stored": "nowhere.zarr"}, "nowhere.zarr"),
    ],
)
def test_errors_say_what_and_what_to_do(
    pair: tuple, change: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises((ValueError, OSError), match=message):
        compared(pair[0], change(pair[1]), **options)


def test_bands_that_only_one_has_are_told(pair: tuple) -> None:
    a, b = pair
    with pytest.warns(UserWarning, match="not compared: band B04, which only the source") as told:
        found = compared(a, b.sel(band=["B02", "B03", "B08"]))
    assert told[0].filename == __file__
    assert "ndvi_error" not in found
    assert found.attrs["left_out"] == "band B04, which only the source has"
    with (
        pytest.raises(ValueError, match="ndvi_error needs bands B04 and B08"),
        pytest.warns(UserWarning, match="not compared"),
    ):
        compared(a, b.sel(band=["B02", "B03", "B08"]), metrics=["ndvi_error"])
    with pytest.raises(ValueError, match="sam needs two bands at least"):
        compared(a[:, :1], b[:, :1], metrics=["sam"])
