"""The demo: it runs, its figures are figures, and it notices when something is not equal."""

from __future__ import annotations

import doctest
import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from data import real_cubes, requires_real
from tec.sensors import SENSORS

from xtec import demo
from xtec.synthetic import scene


def figure(out: str, name: str) -> float:
    """The number beside ``name`` in a table."""
    (row,) = [
        line for line in out.splitlines() if re.search(rf"[│|]\s*{re.escape(name)}\s*[│|]", line)
    ]
    return float(re.findall(r"[-+]?\d+\.\d+|inf", row.split(name)[1])[0])


def test_scene_is_like_sentinel_2() -> None:
    ds = scene(96, 3)
    data = ds.reflectance
    assert data.dims == ("time", "band", "y", "x")
    assert data.shape == (3, 12, 96, 96)
    assert data.dtype == "uint16"
    assert data.attrs["nodata"] == 0
    assert (data == 0).any(), "a swath edge"
    assert data.indexes["time"].is_monotonic_increasing
    xr.testing.assert_identical(ds, scene(96, 3))
    assert not ds.equals(scene(96, 3, seed=1))
    values = data.astype("float64").where(data > 0)
    blue, green = values.sel(band="B02"), values.sel(band="B03")
    assert xr.corr(blue, green) > 0.8, "neighbouring bands belong together"
    means = values.mean(["time", "y", "x"])
    known = np.array(SENSORS["S2L2A"].mean)
    assert (means > 0.3 * known).all()
    assert (means < 2 * known).all()
    coarse = data.sel(band="B05").isel(time=0, y=slice(0, 96, 2), x=slice(0, 96, 2))
    fine = data.sel(band="B05").isel(time=0, y=slice(1, 96, 2), x=slice(1, 96, 2))
    np.testing.assert_array_equal(coarse, fine, "20 m bands are repeated pixels")


def test_demo_of_a_generated_scene(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(demo, "scene", lambda: scene(128, 2))
    assert demo.run(None, compression=50) == 0
    out = capsys.readouterr().out
    assert "generated scene" in out
    assert "real images differ" in out
    assert "tt, compression 50" in out
    ratio, bits = figure(out, "ratio"), figure(out, "bits per pixel per band")
    assert ratio == pytest.approx(16 / bits, rel=0.01)
    assert ratio > 10
    assert figure(out, "encode") > 0
    assert figure(out, "decode") > 0
    for band in SENSORS["S2L2A"].bands:
        assert 25 < figure(out, band) < 70
    assert "are equal, nodata is the same bit for bit" in " ".join(out.split())


def test_demo_of_packed_reflectance(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Band variables as floats with CF attributes: quality is in DN all the same."""
    ds = scene(64, 2)
    bands = {}
    for name in ("B02", "B03", "B8A"):
        data = ds.reflectance.sel(band=name, drop=True)
        bands[name] = (data * np.float32(1e-4)).where(data > 0)
        bands[name].encoding = {"dtype": "uint16", "scale_factor": 1e-4, "_FillValue": 0}
        bands[name].attrs = {"standard_name": "surface_bidirectional_reflectance"}
    xr.Dataset(bands).to_netcdf(tmp_path / "in.nc")
    assert demo.run(str(tmp_path / "in.nc"), model="fp") == 0
    out = capsys.readouterr().out
    assert "in.nc" in out
    assert "generated" not in out
    assert 25 < figure(out, "B8A") < 70


@requires_real
def test_demo_of_a_real_cube(capsys: pytest.CaptureFixture[str]) -> None:
    path = real_cubes("val/l2a_gelos*.zarr")[0]
    assert demo.run(str(path)) == 0
    out = capsys.readouterr().out
    assert path.name in out
    assert figure(out, "ratio") > 20
    assert 25 < figure(out, "all") < 60


def test_demo_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "xtec.demo", "nowhere.zarr"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("xtec: nowhere.zarr does not exist")


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda ds: ds, []),
        (lambda ds: ds.assign(reflectance=ds.reflectance + np.uint16(3)), ["reflectance: nodata"]),
        (
            lambda ds: ds.astype("float32", keep_attrs=True),
            ["reflectance: dtype float32, was uint16"],
        ),
        (lambda ds: ds.assign_attrs(title="x"), ["attributes of the dataset"]),
        (lambda ds: ds.assign_coords(x=ds.x + 1), ["x: values"]),
        (lambda ds: ds.isel(x=slice(1, None)), None),
        (lambda ds: ds.drop_vars("x"), None),
    ],
)
def test_differences_are_found(change: Any, found: list[str] | None) -> None:
    wrote = scene(32, 1)
    wrote.reflectance[0, :, 0, 0] = 0
    wrong = demo.differences(wrote, change(wrote.copy(deep=True)), "reflectance", 0)
    assert wrong == found if found is not None else wrong


def test_a_difference_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "scene", lambda: scene(64, 1))
    monkeypatch.setattr(demo, "differences", lambda *_: ["x: values"])
    assert demo.run(None, model="fp") == 1
    out = capsys.readouterr().out
    assert "not equal: x: values" in out
    assert "are equal" not in out


@pytest.mark.parametrize(
    "name",
    ["bandvars", "compression", "quality", "writing", "accessor", "layout", "markup", "__init__"],
)
def test_examples_in_docstrings(name: str) -> None:
    module = importlib.import_module("xtec" if name == "__init__" else f"xtec.{name}")
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0
