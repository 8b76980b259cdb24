"""Finding the reflectance in what people have, and giving band variables back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scenes import scene
from tec.errors import TecError
from tec.sensors import SENSORS
from xarray.backends import BackendArray
from xarray.core.indexing import LazilyIndexedArray

import xtec
from xtec.bandvars import split
from xtec.layout import find_cube

BANDS = ("B02", "B03", "B04")


def cube(names: Any = BANDS, dims: tuple[str, ...] = ("time", "band", "y", "x")) -> xr.DataArray:
    """(time, band, y, x) DN, transposed to ``dims``."""
    data = xr.DataArray(
        scene(time=2, bands=len(names), y=12, x=16), dims=("time", "band", "y", "x"), name="s2"
    )
    data = data.assign_coords(time=pd.date_range("2021-05-01", periods=2), band=list(names))
    return data.transpose(*dims)


def band_variables(names: tuple[str, ...] = BANDS, **others: Any) -> xr.Dataset:
    """As odc-stac loads them: a variable a band, SCL among them, a CRS."""
    pixels = scene(time=2, bands=len(names), y=12, x=16)
    dims = ("time", "y", "x")
    variables = {
        name: (dims, pixels[:, i], {"nodata": 0, "title": f"band {name}"})
        for i, name in enumerate(names)
    }
    return xr.Dataset(
        {
            "SCL": (dims, (pixels[:, 0] % 12).astype("uint8"), {"flag": [1, 2]}),
            **variables,
            "sun": ("time", [30.0, 40.0]),
            **others,
        },
        coords={
            "time": pd.date_range("2021-05-01", periods=2),
            "y": 10.0 * np.arange(12)[::-1],
            "x": 10.0 * np.arange(16),
            "orbit": ("orbit", [12, 65]),  # of no variable
            "spatial_ref": ((), 32632, {"crs_wkt": "WKT", "GeoTransform": "0 10 0 0 0 -10"}),
        },
        attrs={"collection": "sentinel-2-l2a"},
    )


def test_band_variables_become_one_cube_in_their_order() -> None:
    ds = band_variables(("red", "B8A", "blue"))
    found = find_cube(ds)
    assert found.data.name == "reflectance"
    assert found.data.dims == ("time", "band", "y", "x")
    assert found.roles == ("time", "band", "y", "x")
    assert found.names == ("red", "B8A", "blue")
    assert found.bands == ("B04", "B8A", "B02")
    assert found.data.attrs == {"nodata": 0}, "what all bands say is said of the cube"
    for name in found.names:
        np.testing.assert_array_equal(found.data.sel(band=name), ds[name])
    assert "spatial_ref" in found.data.coords


def test_band_variables_come_back_identical() -> None:
    ds = band_variables(("red", "B8A", "blue"))
    packed = ds.tec.compress(model="elic")
    assert list(packed.data_vars) == ["SCL", "reflectance", "sun"]
    back = split(packed)
    assert list(back.variables) != list(packed.variables)
    assert list(back.data_vars) == list(ds.data_vars)
    xr.testing.assert_identical(back, ds)
    for name in ds.variables:
        assert back[name].dtype == ds[name].dtype


def test_packing_of_band_variables_comes_back() -> None:
    ds = band_variables()
    packing = {"dtype": np.dtype("uint16"), "scale_factor": 1e-4, "_FillValue": 0}
    for name in BANDS:
        ds[name] = (ds[name] * np.float32(1e-4)).where(ds[name] > 0)
        ds[name].encoding = {**packing, "zlib": True, "grid_mapping": "spatial_ref"}
    packed = ds.tec.compress(model="elic")
    back = split(packed)
    for name in BANDS:
        assert back[name].encoding == {**packing, "grid_mapping": "spatial_ref"}


def test_selected_bands_come_back() -> None:
    ds = band_variables()
    packed = ds.tec.compress(model="elic")
    xr.testing.assert_identical(split(packed.sel(band=["B04", "B02"])), ds.drop_vars("B03"))


def test_split_leaves_cubes_as_they_are() -> None:
    ds = cube().to_dataset()
    back = split(ds.tec.compress(model="elic"))
    xr.testing.assert_identical(back, ds)


@settings(max_examples=20, deadline=None)
@given(
    names=st.lists(st.sampled_from(SENSORS["S2L2A"].bands), min_size=1, max_size=5, unique=True),
    dims=st.permutations(["time", "y", "x"]),
    time=st.booleans(),
    chunked=st.booleans(),
)
def test_any_band_variables_come_back(
    names: list[str], dims: list[str], time: bool, chunked: bool
) -> None:
    ds = band_variables(tuple(names))
    ds = ds.transpose(*dims, ...) if time else ds.isel(time=0)
    ds = ds.chunk(y=5) if chunked else ds
    packed = ds.tec.compress(model="fp", chunks={"y": 5})
    assert packed.reflectance.dims == (("time",) if time else ()) + ("band", "y", "x")
    xr.testing.assert_identical(split(packed), ds)


def test_lazily_read_bands_are_not_read() -> None:
    class Unreadable(BackendArray):
        shape, dtype = (2, 12, 16), np.dtype("uint16")

        def __getitem__(self, key: Any) -> Any:
            raise RuntimeError("pixels were read")

    variable = xr.Variable(("time", "y", "x"), LazilyIndexedArray(Unreadable()))
    ds = xr.Dataset({"B02": variable, "B03": variable, "SCL": variable})
    packed = ds.tec.compress(model="elic", chunks={"y": 8})
    assert packed.reflectance.chunks == ((2,), (2,), (8, 4), (16,))
    with pytest.raises(RuntimeError, match="pixels were read"):
        packed.reflectance.load()


@pytest.mark.parametrize(
    "dims",
    [("x", "y", "band", "time"), ("y", "x", "band"), ("band", "y", "x"), ("time", "y", "x")],
)
def test_any_order_becomes_time_band_y_x(dims: tuple[str, ...]) -> None:
    data = cube()
    data = data.isel({d: 0 for d in set(data.dims) - set(dims)}).transpose(*dims)
    found = find_cube(data)
    assert found.data.dims == tuple(d for d in ("time", "band", "y", "x") if d in dims)
    xr.testing.assert_identical(found.data.transpose(*dims), data)
    assert found.bands == (("B02", "B03", "B04") if "band" in dims else ("B02",))


def test_synonyms_keep_their_names() -> None:
    data = cube().rename(time="t", band="bands", y="latitude", x="longitude")
    found = find_cube(data)
    assert found.data.dims == ("t", "bands", "latitude", "longitude")
    assert found.roles == ("time", "band", "y", "x")
    assert find_cube(cube().rename(y="Y", x="X")).data.dims == ("time", "band", "Y", "X")


def test_names_from_a_coordinate_beside_the_axis() -> None:
    data = cube().drop_vars("band")
    stackstac = data.assign_coords(
        band=("band", ["asset-a", "asset-b", "asset-c"]),
        common_name=("band", ["blue", "green", "red"]),
        title=("band", ["Band 2", "?", "?"]),
    )
    found = find_cube(stackstac)
    assert found.names == ("blue", "green", "red")
    assert found.bands == BANDS
    rio = data.assign_coords(band=[1, 2, 3]).assign_attrs(long_name=("B4", "B3", "B2"))
    assert find_cube(rio).bands == ("B04", "B03", "B02")


def test_names_from_bands() -> None:
    data = cube().drop_vars("band")
    assert find_cube(data, bands=["B8A", "nir", "B12"]).bands == ("B8A", "B08", "B12")
    assert find_cube(data.to_dataset(), bands=["B8A", "nir", "B12"]).bands == ("B8A", "B08", "B12")
    landsat_like = band_variables().rename(B02="SR_B2", B03="SR_B3", B04="SR_B4")
    mapping = {"SR_B2": "B02", "SR_B3": "B03", "SR_B4": "B04"}
    found = find_cube(landsat_like, bands=mapping)
    assert found.names == ("SR_B2", "SR_B3", "SR_B4")
    assert found.bands == BANDS
    odd = cube(("one", "two", "B04"))
    assert find_cube(odd, bands={"one": "B11", "two": "B12"}).bands == ("B11", "B12", "B04")


def test_sensor_from_bands() -> None:
    assert find_cube(cube()).sensor == "S2L2A"
    assert find_cube(cube(("B02", "B10"))).sensor == "S2L1C"
    assert find_cube(cube(), sensor="S2L1C").sensor == "S2L1C"
    with pytest.raises(TecError, match=r"B10.*S2L1C"):
        find_cube(cube(("B02", "B10")), sensor="S2L2A")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.rename(time="member"), r"'member' is none of time.*isel\(member=0\)"),
        (lambda d: d.expand_dims("orbit"), r"'orbit' is none of time"),
        (lambda d: d.isel(y=0), r"needs y and x"),
        (lambda d: d.isel(x=slice(0)), r"nothing to compress in an empty array"),
        (lambda d: d.rename(time="date", band="t"), r"both taken for time"),
        (lambda d: d.assign_coords(band=["a", "b", "c"]), r"\['a', 'b', 'c'\].*bands=\['B02'"),
        (lambda d: d.drop_vars("band"), r"cannot tell which.*bands="),
        (lambda d: d.assign_coords(band=[2, 3, 4]), r"\[2, 3, 4\].*bands="),
        (lambda d: d.assign_coords(band=["B02", "B2", "B03"]), r"both mean band B02"),
        (lambda d: d.assign_coords(band=["B02", "B13", "B03"]), r"'B13' is unknown .did you mean"),
    ],
)
def test_wrong_arrays_say_what_to_do(change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_cube(change(cube()))


def test_wrong_bands_say_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"lists 2 names.*has 3 band"):
        find_cube(cube(), bands=["B02", "B03"])
    with pytest.raises(TecError, match=r"'B99' is unknown"):
        find_cube(cube(), bands=["B02", "B03", "B99"])
    with pytest.raises(ValueError, match=r"'SR_B9'.*not there.*'B02'"):
        find_cube(cube(), bands={"SR_B9": "B09"})
    with pytest.raises(ValueError, match=r"not list"):
        find_cube([1, 2])  # type: ignore[arg-type]


def test_no_or_two_candidates() -> None:
    with pytest.raises(ValueError, match=r"no reflectance found among.*'SCL'.*bands=\{"):
        find_cube(band_variables()[["SCL", "sun"]])
    two = cube().to_dataset(name="a").assign(b=cube())
    with pytest.raises(ValueError, match=r"\['a', 'b'\] all have a band axis.*ds\[\['a'\]\]"):
        find_cube(two)
    other = xr.Dataset({"s2": cube(), "s1": cube(("VV", "VH", "ratio")).rename(band="channel")})
    assert find_cube(other).data.name == "s2"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.astype("int16"), r"'B02' and 'B03' differ in dtype, uint16 and int16"),
        (lambda v: v.assign_attrs(nodata=9), r"differ in nodata, 0 and 9"),
        (lambda v: v.isel(time=0, drop=True), r"different grids"),
        (lambda v: v.rename(y="y20"), r"different grids.*one grid"),
    ],
)
def test_bands_that_differ_are_refused(change: Any, message: str) -> None:
    ds = band_variables()
    with pytest.raises(ValueError, match=message):
        find_cube(ds.drop_vars("B03").assign(B03=change(ds.B03)))


def test_packed_bands_that_differ_in_scale_are_refused() -> None:
    ds = band_variables()
    for name, factor in (("B02", 1e-4), ("B03", 1e-4), ("B04", 2e-4)):
        ds[name].encoding["scale_factor"] = factor
    with pytest.raises(ValueError, match="'B02' and 'B04' differ in scale_factor"):
        find_cube(ds)


def test_names_that_are_taken() -> None:
    with pytest.raises(ValueError, match=r"there is a 'reflectance' already.*drop_vars"):
        find_cube(band_variables(reflectance=("time", [1.0, 2.0])))
    with pytest.raises(ValueError, match=r"there is a 'band' already"):
        find_cube(band_variables().assign_coords(band=1))
    with pytest.raises(ValueError, match=r"'blue' is called like a band and has a band axis"):
        find_cube(cube().rename("blue").to_dataset())


def test_one_band_without_an_axis() -> None:
    image = cube().sel(band="B03", drop=True).isel(time=0, drop=True)
    with pytest.raises(ValueError, match="cannot tell which"):
        find_cube(image)
    assert find_cube(image, bands=["B03"]).bands == ("B03",)
    assert find_cube(image.rename("green")).bands == ("B03",)
    assert find_cube(cube().sel(band="B03")).bands == ("B03",), "a scalar coordinate says it"
    packed = xtec.compress(image.rename("green"), model="elic")
    assert packed.encoding["chunks"] == (12, 16)
    assert packed.encoding["serializer"].dims == ("y", "x")


def test_attributes_that_zarr_cannot_hold() -> None:
    class RasterSpec:
        pass

    data = cube().assign_attrs(spec=RasterSpec(), crs="EPSG:32632", shape=np.array([1, 2]))
    with pytest.warns(UserWarning, match=r"variable 's2'.*left out: 'spec' \(RasterSpec\)"):
        packed = data.tec.compress(model="elic")
    assert {k for k in packed.attrs} == {"crs", "shape", "xtec"}
    with pytest.raises(
        ValueError, match=r"'raster:bands' holds dicts.*drop_vars\('raster:bands'\)"
    ):
        cube().assign_coords({"raster:bands": ("band", [{}, {}, {}])}).tec.compress(model="elic")
