"""xtec.plot: what is drawn is the right pixels, in the right place, and nodata is transparent."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from cubes import DIMS
from scenes import scene

import xtec

matplotlib = pytest.importorskip("matplotlib", reason="matplotlib is optional")
matplotlib.use("Agg")

BANDS = ["B02", "B03", "B04", "B08"]


@pytest.fixture(autouse=True)
def close() -> Any:
    yield
    import matplotlib.pyplot

    matplotlib.pyplot.close("all")


@pytest.fixture
def cube() -> xr.DataArray:
    """3 dates of 4 bands, 30 x 40 pixels of 10 m, with a swath edge."""
    return xr.DataArray(
        scene(time=3, bands=4, y=30, x=40, nodata=True),
        dims=DIMS,
        coords={
            "time": pd.date_range("2021-06-01", periods=3, freq="5D"),
            "band": BANDS,
            "y": 5e6 - 10.0 * np.arange(30),
            "x": 6e5 + 10.0 * np.arange(40),
        },
        name="s2",
    )


def drawn(ax: Any) -> np.ma.MaskedArray:
    return ax.images[0].get_array()


def test_import_needs_no_matplotlib() -> None:
    code = "import sys, xtec; xtec.plot.rgb; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_missing_matplotlib_is_told(cube: xr.DataArray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"pip install 'xtec\[plot\]'"):
        xtec.plot.rgb(cube)


def test_rgb_is_stretched_between_percentiles_and_clear_without_data(cube: xr.DataArray) -> None:
    picture = drawn(xtec.plot.rgb(cube, time=1, stretch=(10, 90)))
    pixels = cube.values[1, [2, 1, 0]].astype(float)
    valid = (pixels != 0).all(0)
    np.testing.assert_array_equal(picture[..., 3], valid)
    for k in range(3):
        low, high = np.percentile(pixels[k][valid], (10, 90))
        wanted = np.clip((pixels[k] - low) / (high - low), 0, 1)
        np.testing.assert_allclose(picture[..., k][valid], wanted[valid], atol=1e-9)
    fixed = drawn(xtec.plot.rgb(cube, time=1, limits=(0, 3000)))
    np.testing.assert_allclose(fixed[..., 0][valid], np.clip(pixels[0] / 3000, 0, 1)[valid])


def test_place_title_and_axes(cube: xr.DataArray) -> None:
    import matplotlib.pyplot as plt

    _, given = plt.subplots()
    ax = xtec.plot.false_colour(cube, time="2021-06-10", ax=given)
    assert ax is given
    assert ax.images[0].get_extent() == [6e5 - 5, 6e5 + 395, 5e6 - 295, 5e6 + 5]
    assert ax.get_title() == "2021-06-11: B08, B04, B03"
    bare = xtec.plot.rgb(cube.drop_vars(["x", "time"]))
    assert bare is not given
    assert bare.images[0].get_extent() == [-0.5, 39.5, 29.5, -0.5]
    assert bare.get_title() == "B04, B03, B02"


def test_what_was_read_back_has_the_colours_of_the_source(cube: xr.DataArray) -> None:
    brighter = xr.where(cube == 0, 0, cube + 500).astype("uint16")
    alike, own = (
        drawn(xtec.plot.rgb(brighter, like=like, stretch=(5, 60))) for like in (cube, None)
    )
    np.testing.assert_allclose(own, drawn(xtec.plot.rgb(cube, stretch=(5, 60))))
    valid = own[..., 3] == 1
    assert (alike[valid] >= own[valid]).all()
    assert (alike[valid] > own[valid]).any()


def test_large_images_are_thinned_and_only_one_date_is_read(cube: xr.DataArray) -> None:
    seen = []

    def count(block: np.ndarray) -> np.ndarray:
        seen.append(block.shape)
        return block

    blocks = cube.chunk(time=1, band=1).data.map_blocks(count, dtype="uint16", meta=np.empty(0))
    ax = xtec.plot.rgb(cube.copy(data=blocks), time=2, size=16)
    assert seen == [(1, 1, 30, 40)] * 3
    assert drawn(ax).shape == (10, 14, 4)
    np.testing.assert_array_equal(drawn(ax)[..., 3], cube.values[2, 0, ::3, ::3] != 0)


def test_error_map_is_decoded_less_original(cube: xr.DataArray) -> None:
    back = cube.copy(data=np.where(cube == 0, 0, cube + 7).astype("uint16"))
    back[1, 1, 20, 30] += 100
    ax = xtec.plot.error_map(cube, back, band="green", time=1)
    error = drawn(ax)
    np.testing.assert_array_equal(error.mask, cube.values[1, 1] == 0)
    assert error[20, 30] == 107
    assert error.min() == 7
    assert ax.get_title() == "2021-06-06: error of B03, largest 107 DN"
    assert ax.images[0].get_clim() == (-7, 7), "one pixel does not set the colours"
    assert ax.images[0].colorbar.ax.get_ylabel() == "B03: decoded - original (DN)"
    fixed = xtec.plot.error_map(cube, back, limit=50)
    assert fixed.images[0].get_clim() == (-50, 50)
    scaled = xtec.plot.error_map(cube * np.float32(1e-4), back, time=1, scale=1e-4, band="B03")
    np.testing.assert_allclose(drawn(scaled)[20, 30], 107, atol=0.01)


def test_dates_without_a_pixel_and_without_an_error_are_drawn(cube: xr.DataArray) -> None:
    empty = cube.copy()
    empty[0] = 0
    assert (drawn(xtec.plot.rgb(empty))[..., 3] == 0).all()
    assert "no valid pixel" in xtec.plot.error_map(empty, empty).get_title()
    assert "largest 0 DN" in xtec.plot.error_map(empty, empty, time=1).get_title()


def test_panels(cube: xr.DataArray, tmp_path: Path) -> None:
    cube.tec.to_zarr(tmp_path / "s.zarr", max_error=50, progress=False)
    axes = xtec.plot.panels(cube, xr.open_zarr(tmp_path / "s.zarr"), time=1)
    titles = ("original, 2021-06-06: B04, B03, B02", "decoded, 2021-06-06: B04, B03, B02")
    assert tuple(ax.get_title() for ax in axes[:2]) == titles
    assert np.abs(drawn(axes[2])).max() <= 50
    axes[0].figure.savefig(tmp_path / "panels.png")
    assert (tmp_path / "panels.png").stat().st_size > 10000


def test_rate_distortion(cube: xr.DataArray, tiny_elic: Path, tmp_path: Path) -> None:
    options = {"weights": tiny_elic, "chunks": {"time": 1, "y": 16, "x": 16}}
    found, ax = xtec.plot.rate_distortion(
        cube.chunk(time=1), models=["elic"], compressions=[1, 100], sample=18, **options
    )
    assert found.bpppb.sizes == {"model": 1, "compression": 2}
    assert found.bpppb[0, 1] > found.bpppb[0, 0] > 0
    assert found.psnr[0, 1] > found.psnr[0, 0]
    assert found.attrs["chunks"] == 18
    (line,) = ax.lines
    np.testing.assert_array_equal(line.get_xdata(), found.bpppb[0])
    packed = cube.tec.compress(model="elic", compression=100, **options)
    packed.tec.to_zarr(tmp_path / "s.zarr", progress=False)
    back = xr.open_zarr(tmp_path / "s.zarr")
    whole = cube.tec.compare(back, metrics=["psnr"], progress=False).attrs["psnr"]
    assert found.psnr[0, 1] == pytest.approx(whole)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"time": 3}, "time=3: there are 3 dates"),
        ({"bands": ("B04", "B03", "B12")}, "there is no band B12: there are B02"),
        ({"bands": ("B04",)}, "name three"),
        ({"stretch": (98, 2)}, "two percentiles"),
        ({"size": 0}, "size is 0"),
    ],
)
def test_errors(cube: xr.DataArray, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        xtec.plot.rgb(cube, **options)
    with pytest.raises(ValueError, match="the cube has no times"):
        xtec.plot.rgb(cube.drop_vars("time"), time="2021-06-01")
    with pytest.raises(ValueError, match="none of the 1 chunks that were tried"):
        xtec.plot.rate_distortion(cube * np.uint16(0), sample=1)
