"""Through a store with xarray alone on both sides: the four lines of the design."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
import zarr
from cubes import BANDS, DIMS, band_variables, cube
from data import real_cubes, requires_real
from scenes import scene
from tec.sensors import SENSORS

from xtec.bandvars import split


def check_same(wrote: xr.DataArray, read: xr.DataArray, nodata: float) -> None:
    """Shape, dtype, coordinates and attributes equal, nodata bit for bit, pixels close."""
    assert read.shape == wrote.shape
    assert read.dims == wrote.dims
    assert read.dtype == wrote.dtype
    assert {k: v for k, v in read.attrs.items() if k != "xtec"} == wrote.attrs
    for name in wrote.coords:
        xr.testing.assert_identical(read[name].drop_vars(name), wrote[name].drop_vars(name))
    missing = np.isnan(wrote.values) if np.isnan(nodata) else wrote.values == nodata
    gone = np.isnan(read.values) if np.isnan(nodata) else read.values == nodata
    np.testing.assert_array_equal(gone, missing)
    assert missing.any()
    valid = wrote.values[~missing].astype("float64")
    assert np.abs(read.values[~missing] - valid).mean() < 0.1 * np.ptp(valid)


@pytest.mark.parametrize("zarr_format", [3, 2])
@pytest.mark.parametrize("chunks", [None, {"time": 2, "y": 16, "x": 16}])
def test_dataarray_through_a_store(tmp_path: Path, zarr_format: int, chunks: dict | None) -> None:
    data = cube(nodata=0, time=3)
    packed = data.tec.compress(model="elic", chunks=chunks, zarr_format=zarr_format)
    packed.to_zarr(tmp_path / "a.zarr", zarr_format=zarr_format)
    check_same(data, xr.open_zarr(tmp_path / "a.zarr").s2, 0)


@pytest.mark.parametrize("name", [None, "time"])
def test_odd_names_of_a_dataarray(tmp_path: Path, name: str | None) -> None:
    data = cube(nodata=0).rename(name)
    data.tec.compress(model="fp").to_zarr(tmp_path / "a.zarr")
    back = xr.open_dataarray(tmp_path / "a.zarr", engine="zarr")
    assert back.name == name
    check_same(data, back, 0)


def test_dataset_through_a_store(tmp_path: Path) -> None:
    ds = band_variables()
    ds.tec.compress(model="elic").to_zarr(tmp_path / "a.zarr")
    back = xr.open_zarr(tmp_path / "a.zarr")
    assert back.attrs == ds.attrs
    xr.testing.assert_identical(back.SCL.load(), ds.SCL)
    xr.testing.assert_identical(back.sun.load(), ds.sun)
    for name in BANDS:
        check_same(ds[name], split(back)[name], 0)


def test_shards_through_a_store(tmp_path: Path) -> None:
    data = cube(nodata=0, time=3)
    packed = data.tec.compress(model="fp", chunks={"y": 8, "x": 8, "time": 1}, shards={"y": 16})
    packed.to_zarr(tmp_path / "a.zarr")
    assert zarr.open_array(tmp_path / "a.zarr" / "s2").shards == (1, 3, 16, 8)
    check_same(data, xr.open_zarr(tmp_path / "a.zarr").s2, 0)


def test_packed_floats_through_a_store(tmp_path: Path) -> None:
    data = (cube() * np.float32(1e-4) - np.float32(0.1)).where(cube() != 0).assign_attrs(units="1")
    data.encoding = {
        "dtype": np.dtype("uint16"), "scale_factor": 1e-4, "add_offset": -0.1, "_FillValue": 0
    }  # fmt: skip
    data.to_zarr(tmp_path / "plain.zarr")
    data = xr.open_zarr(tmp_path / "plain.zarr").s2.load()
    packed = data.tec.compress(model="elic")
    assert packed.encoding["serializer"].config.offset == 1000
    packed.to_zarr(tmp_path / "a.zarr")
    assert zarr.open_array(tmp_path / "a.zarr" / "s2").dtype == "uint16"
    check_same(data, xr.open_zarr(tmp_path / "a.zarr").s2, np.nan)


def test_floats_through_a_store(tmp_path: Path) -> None:
    data = cube("float32", units="1").where(cube() != 0)
    data.tec.compress(model="elic", scale=1e-4).to_zarr(tmp_path / "a.zarr")
    check_same(data, xr.open_zarr(tmp_path / "a.zarr").s2, np.nan)


def test_big_endian_through_a_store(tmp_path: Path) -> None:
    for zarr_format in (3, 2):
        store = tmp_path / f"{zarr_format}.zarr"
        packed = cube().astype(">i2").tec.compress(model="fp", zarr_format=zarr_format)
        packed.to_zarr(store, zarr_format=zarr_format)
        check_same(cube().astype("int16"), xr.open_zarr(store).s2, 0)


def test_a_decoded_store_compresses_again(tmp_path: Path) -> None:
    ds = band_variables()
    ds.tec.compress(model="elic", compression=100).to_zarr(tmp_path / "a.zarr")
    again = xr.open_zarr(tmp_path / "a.zarr").isel(x=slice(0, 16))
    packed = again.tec.compress(model="fp", compression=5)
    config = packed.reflectance.encoding["serializer"].config
    assert (config.model, config.compression, config.nodata) == ("fp", 5, 0)
    packed.to_zarr(tmp_path / "b.zarr")
    back = xr.open_zarr(tmp_path / "b.zarr")

    assert list(split(back).data_vars) == list(ds.data_vars)
    check_same(ds.B03.isel(x=slice(0, 16)), split(back).B03, 0)


# the four lines of the design: writing in one process, reading in another

READER = """
import pickle, sys, xarray as xr
back = xr.open_zarr(sys.argv[1])
assert not any(m in sys.modules for m in ("torch", "numba")), "opening is light"
sys.stdout.buffer.write(pickle.dumps(back.load().drop_encoding()))
"""


def four_lines(
    ds: xr.Dataset | xr.DataArray, store: Path, zarr_format: int = 3, **options: Any
) -> xr.Dataset:
    packed = ds.tec.compress(model="elic", compression=20, zarr_format=zarr_format, **options)
    packed.to_zarr(store, zarr_format=zarr_format)
    done = subprocess.run([sys.executable, "-c", READER, str(store)], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return pickle.loads(done.stdout)


@pytest.mark.parametrize("zarr_format", [3, 2])
def test_four_lines_on_a_generated_scene(tmp_path: Path, zarr_format: int) -> None:
    pixels = scene(time=5, bands=12, y=70, x=53, nodata=True)

    data = xr.DataArray(
        pixels,
        dims=DIMS,
        coords={
            "time": pd.date_range("2020-01-01", periods=5),
            "band": list(SENSORS["S2L2A"].bands),
        },
        name="s2",
        attrs={"nodata": 0, "units": "DN"},
    )
    check_same(data, four_lines(data, tmp_path / "a.zarr", zarr_format).s2, 0)


@requires_real
def test_four_lines_on_a_real_cube(tmp_path: Path) -> None:
    path = real_cubes("val/l2a_ssl4eos12*.zarr")[0]
    ds = xr.open_zarr(path, consolidated=False, chunks=None).load().drop_encoding()
    ds.reflectance[..., :40, :30] = 0  # these cubes have no missing pixels of their own
    back = four_lines(ds, tmp_path / "a.zarr", offset=ds.reflectance.attrs["offset"])
    check_same(ds.reflectance, back.reflectance, 0)
    assert back.attrs == ds.attrs
    stored = sum(file.stat().st_size for file in (tmp_path / "a.zarr").rglob("*") if file.is_file())
    assert stored * 20 < ds.reflectance.nbytes, "20 times smaller at least"
