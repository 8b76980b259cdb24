"""The interfaces of the neighbourhood: odc-stac, stackstac, rioxarray, NetCDF, EOPF's groups,
TerraTorch; and latents."""

from __future__ import annotations

import subprocess
import sys
import types
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import dask.array
import numpy as np
import pandas as pd
import pytest
import rioxarray
import tiny
import xarray as xr
from cubes import BANDS, cube
from scenes import scene
from tec.codec import decode, latents

import xtec
from xtec.backend import XtecBackend
from xtec.reading import open_input, save

EXACT = {"max_error": 0}
pytestmark = [
    pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning"),  # affine 3
    pytest.mark.filterwarnings("ignore:Dask chunks.*:UserWarning"),
]


def opened(path: Path, **options: Any) -> xr.Dataset:
    return xr.open_dataset(path, engine=XtecBackend, chunks={}, decode_coords="all", **options)


# odc-stac and stackstac, as they make them (odc-stac 0.5.3, stackstac 0.5.1)


def odc(dims: tuple[str, str] = ("y", "x"), crs: str = "EPSG:32632") -> xr.Dataset:
    """What ``odc.stac.load(items, bands=["blue", ...], chunks={"time": 1})`` gives."""
    dn = scene(2, 3, 40, 48, nodata=True)
    ds = xr.Dataset(coords={"time": pd.to_datetime(["2022-06-12T10:15:59", "2022-06-17T10:15:59"])})
    steps = (-10.0, 10.0) if dims == ("y", "x") else (-1e-4, 1e-4)
    for dim, n, step in zip(dims, (40, 48), steps, strict=True):
        ds[dim] = (dim, 45.0 + step * (np.arange(n) + 0.5), {"resolution": step, "crs": crs})
    layers = {"blue": dn[:, 0], "nir": dn[:, 1], "swir16": dn[:, 2], "scl": dn[:, 0] % 12}
    for name, pixels in layers.items():
        dtype = "uint8" if name == "scl" else "uint16"
        data = dask.array.from_array(pixels.astype(dtype), chunks=(1, 40, 48))
        ds[name] = (("time", *dims), data, {"nodata": 0})
    ds = ds.rio.write_crs(crs).rio.set_spatial_dims(*dims[::-1])
    for name in ds.data_vars:
        ds[name].attrs.pop("grid_mapping", None)
        ds[name].encoding["grid_mapping"] = "spatial_ref"
    return ds


@pytest.mark.parametrize("dims", [("y", "x"), ("latitude", "longitude")])
def test_odc_stac(tmp_path: Path, dims: tuple[str, str]) -> None:
    ds = odc(dims, "EPSG:32632" if dims == ("y", "x") else "EPSG:4326")
    packed = ds.tec.compress(**EXACT)
    assert packed.reflectance.encoding["serializer"].config.bands == ("B02", "B08", "B11")
    packed.to_zarr(tmp_path / "a.zarr")
    back = opened(tmp_path / "a.zarr")
    xr.testing.assert_identical(back.drop_attrs().compute(), ds.drop_attrs().compute())
    assert back.rio.crs == ds.rio.crs
    assert back.blue.rio.transform() == ds.blue.rio.transform()
    assert back.blue.attrs["nodata"] == 0


class RasterSpec:
    """stackstac's, which no store can hold."""


def stacked(dtype: str = "float64", scale: float = 1.0, **coords: Any) -> xr.DataArray:
    """What ``stackstac.stack(items, assets=["blue", ...])`` gives, of items of Earth Search."""
    dn = scene(2, 3, 40, 48, nodata=True)
    values = np.where(dn == 0, np.nan, dn * scale) if dtype.startswith("f") else dn
    raster = {"nodata": 0, "data_type": "uint16", "scale": 0.0001, "offset": -0.1}
    objects = np.empty(3, object)
    objects[:] = [[raster], [raster], [raster]]
    return xr.DataArray(
        dask.array.from_array(values.astype(dtype), chunks=(1, 1, 40, 48)),
        dims=("time", "band", "y", "x"),
        coords={
            "time": pd.to_datetime(["2022-06-12T10:15:59", "2022-06-17T10:15:59"]),
            "id": ("time", ["S2A_1", "S2A_2"]),
            "band": ["blue", "nir", "swir16"],
            "x": 6e5 + 10.0 * np.arange(48),
            "y": 5e6 - 10.0 * np.arange(40),
            "raster:bands": ("band", objects),
            "proj:centroid": ((), np.array({"lat": 46.1, "lon": 11.5}, object)),
            "s2:processing_baseline": "04.00",
            "earthsearch:boa_offset_applied": True,
            "common_name": ("band", ["blue", "nir", "swir16"]),
            "center_wavelength": ("band", [0.49, 0.842, 1.61]),
            "epsg": 32632,
            **coords,
        },
        attrs={
            "spec": RasterSpec(),
            "crs": "epsg:32632",
            "transform": (10.0, 0.0, 6e5, 0.0, -10.0, 5e6),
            "resolution": 10,
        },
        name="stackstac-57029d0b6d054bbdd833f28e7d3ec15f",
    )


def remedied(data: xr.DataArray, error: pytest.ExceptionInfo, marker: str) -> xr.DataArray:
    """``data`` after the call that the message names, as it stands there."""
    text = str(error.value)
    call = text[text.index(marker) :]
    return eval("data" + call[: call.index(")") + 1], {"data": data})


@pytest.mark.filterwarnings("ignore:.*RasterSpec:UserWarning")
@pytest.mark.filterwarnings("ignore:.*raster.bands has an offset:UserWarning")
def test_stackstac_by_what_the_errors_say(tmp_path: Path) -> None:
    data = stacked(mixed=("time", np.array(["a", 1.0], object)))
    with pytest.raises(ValueError, match=r'float64.*astype\("float32"\).*rescale=False') as error:
        data.tec.compress(scale=1)
    data = remedied(data, error, ".astype")
    with pytest.raises(ValueError, match=r"scale=1e-4 if it holds reflectance"):
        data.tec.compress(max_error=0.01)
    with pytest.raises(
        ValueError, match=r"'raster:bands' holds lists; .*centroid' holds dicts; 'mixed' holds a m"
    ) as error:
        data.tec.compress(max_error=0.01, scale=1)
    data = remedied(data, error, ".drop_vars")
    packed = data.tec.compress(max_error=0.01, scale=1)
    assert packed.encoding["serializer"].config.bands == ("B02", "B08", "B11")
    packed.to_dataset().to_zarr(tmp_path / "a.zarr")
    back = xr.open_zarr(tmp_path / "a.zarr")[data.name]
    np.testing.assert_allclose(back, data, atol=0.01, rtol=0)
    assert int(np.isnan(back).sum()) == int(np.isnan(data).sum()) > 0
    assert (back.rio.crs, back.rio.transform()) == (data.rio.crs, data.rio.transform())
    assert set(back.coords) == set(data.coords)


@pytest.mark.filterwarnings("ignore:.*RasterSpec:UserWarning")
def test_stackstac_as_integers(tmp_path: Path) -> None:
    data = stacked("uint16").drop_vars(["raster:bands", "proj:centroid"])
    data.tec.to_zarr(tmp_path / "a.zarr", progress=False, **EXACT)
    back = xr.open_zarr(tmp_path / "a.zarr")[data.name]
    assert back.dtype == np.uint16
    np.testing.assert_array_equal(back, data)


def test_an_offset_that_was_applied_twice_is_told() -> None:
    data = stacked("float32", 1e-4).drop_attrs()
    with (
        pytest.warns(UserWarning, match=r"offset of -0\.1 as well.*rescale=False"),
        pytest.raises(ValueError, match="dicts"),
    ):
        data.tec.compress(scale=1e-4, **{"max_error": 1})


def test_missing_texts_are_told() -> None:
    names = np.array(["a", None], object)
    with pytest.warns(UserWarning, match=r"\['platform'\] have missing values"):
        cube().assign_coords(platform=("time", names)).tec.compress(model="fp")
    odd = cube().assign_coords(numbers=("time", np.array([1.5, None], object)))
    assert odd.tec.compress(model="fp").shape == odd.shape


# rioxarray and NetCDF


def test_rioxarray_before_and_after(tmp_path: Path) -> None:
    data = cube(y=32, x=32, nodata=0).drop_vars("spatial_ref").rio.write_crs("EPSG:32632")
    wanted = data.rio.transform()
    data.tec.compress(**EXACT).to_dataset().to_zarr(tmp_path / "a.zarr")
    for back in (
        xr.open_zarr(tmp_path / "a.zarr", decode_coords="all").s2,
        opened(tmp_path / "a.zarr").s2,
    ):
        assert (back.rio.crs, back.rio.transform()) == (data.rio.crs, wanted)
        back.isel(time=0).rio.to_raster(tmp_path / "a.tif")
        raster = rioxarray.open_rasterio(tmp_path / "a.tif")
        np.testing.assert_array_equal(raster, data.isel(time=0))
        assert (raster.rio.crs, raster.rio.transform()) == (data.rio.crs, wanted)
        assert raster.rio.nodata == 0
        raster.close()


def test_a_folder_of_geotiffs_and_back(tmp_path: Path) -> None:
    data = cube(y=32, x=32, nodata=0).drop_vars(["spatial_ref", "cloud"]).rio.write_crs(32632)
    save(data.to_dataset(), tmp_path / "in", progress=False)
    ds = open_input(tmp_path / "in")
    ds.tec.to_zarr(tmp_path / "a.zarr", progress=False, **EXACT)
    save(open_input(tmp_path / "a.zarr"), tmp_path / "out", progress=False)
    back = open_input(tmp_path / "out")
    for name in BANDS:
        np.testing.assert_array_equal(back[name], data.sel(band=name))
        assert back[name].rio.crs == data.rio.crs
        assert back[name].rio.transform() == data.rio.transform()
        assert back[name].attrs["nodata"] == 0


def test_netcdf_with_cf_packing_and_back(tmp_path: Path) -> None:
    packing = {"dtype": "uint16", "scale_factor": 1e-4, "add_offset": -0.1, "_FillValue": 0}
    dn = cube(y=32, x=32)
    floats = xr.where(dn == 0, np.nan, dn * 1e-4 - 0.1).transpose(*dn.dims).drop_vars("spatial_ref")
    floats.encoding = {}
    floats.to_dataset(name="s2").to_netcdf(tmp_path / "in.nc", encoding={"s2": packing})
    ds = open_input(tmp_path / "in.nc", chunked=True)
    codec = ds.tec.compress(**EXACT).s2.encoding["serializer"].config
    assert (codec.scale, codec.offset, codec.nodata) == (1.0, 1000.0, 0)
    ds.tec.to_zarr(tmp_path / "a.zarr", progress=False, **EXACT)
    save(open_input(tmp_path / "a.zarr"), tmp_path / "out.nc", progress=False)
    for raw in (True, False):
        with (
            xr.open_dataset(tmp_path / "in.nc", mask_and_scale=not raw) as wanted,
            xr.open_dataset(tmp_path / "out.nc", mask_and_scale=not raw) as back,
        ):
            xr.testing.assert_equal(back, wanted)
            attrs = back.s2.attrs if raw else back.s2.encoding
            for key in ("scale_factor", "add_offset", "_FillValue"):
                assert attrs[key] == packing[key]


# groups of several resolutions

SIZE = 48  # pixels of 10 m


def group(step: int, names: str, seed: int = 0, **layers: Any) -> xr.Dataset:
    n = 10 * SIZE // step
    pixels = scene(1, len(names.split()), n, n, seed=seed, nodata=True)[0]
    ds = xr.Dataset(
        {
            name: (("y", "x"), dask.array.from_array(image, chunks=n // 2), {"gsd": step})
            for name, image in zip(names.split(), pixels, strict=True)
        },
        coords={
            "y": ("y", 5e6 - step * (np.arange(n) + 0.5), {"units": "m"}),
            "x": ("x", 6e5 + step * (np.arange(n) + 0.5), {"units": "m"}),
            "spatial_ref": ((), 0, {"GeoTransform": f"600000 {step} 0 5000000 0 -{step}"}),
        },
        attrs={"resolution": step},
    )
    return ds.assign(layers)


def product() -> dict[str, xr.Dataset]:
    return {
        "r10m": group(10, "b02 b03"),
        "r20m": group(20, "b05 b11", 1),
        "r60m": group(60, "b09", 2),
    }


@pytest.mark.parametrize("tree", [False, True])
def test_groups_there_and_back(tmp_path: Path, tree: bool) -> None:
    groups = product()
    if tree:
        whole = {f"/measurements/reflectance/{name}": ds for name, ds in groups.items()}
        ds = xtec.from_groups(xr.DataTree.from_dict(whole)["measurements/reflectance"])
    else:
        ds = xtec.from_groups(groups)
    assert dict(ds.sizes) == {"y": SIZE, "x": SIZE}
    assert all(v.chunks == ((24, 24), (24, 24)) for v in ds.data_vars.values())
    for factor, name in ((2, "b11"), (6, "b09")):
        coarse = groups["r20m" if factor == 2 else "r60m"][name].values
        np.testing.assert_array_equal(ds[name], coarse.repeat(factor, 0).repeat(factor, 1))
    ds.tec.to_zarr(tmp_path / "a.zarr", progress=False, **EXACT)
    back = opened(tmp_path / "a.zarr")
    for found in (xtec.to_groups(ds), xtec.to_groups(back)):
        assert list(found) == list(groups)
        for name, wanted in groups.items():
            xr.testing.assert_identical(found[name].compute(), wanted.compute())
    part = xtec.to_groups(back.isel(x=slice(12, 36)))
    xr.testing.assert_equal(part["r60m"].compute(), groups["r60m"].isel(x=slice(2, 6)).compute())
    with pytest.raises(ValueError, match=r"begin 2 behind.*multiple of 6"):
        xtec.to_groups(back.isel(x=slice(2, 26)))


def test_repeated_pixels_of_a_network_come_back_repeated(tmp_path: Path) -> None:
    ds = xtec.from_groups({name: g.drop_attrs() for name, g in product().items()})
    weights = tiny.write(tmp_path / "tiny.safetensors", "fp")
    ds.tec.to_zarr(tmp_path / "a.zarr", progress=False, model="fp", weights=weights)
    back = opened(tmp_path / "a.zarr").compute()
    again = xtec.from_groups(xtec.to_groups(back))
    for name in ds.data_vars:
        np.testing.assert_array_equal(again[name], back[name])


def test_bands_of_several_groups_come_from_the_finest() -> None:
    groups = {"r10m": group(10, "b02"), "r20m": group(20, "b02 b05")}
    with pytest.warns(UserWarning, match=r"'r20m': 'b02' are in \['r10m'\] as well"):
        ds = xtec.from_groups(groups)
    assert ds.b02.attrs["gsd"] == 10
    assert list(xtec.to_groups(ds)["r20m"]) == ["b05"]


@pytest.mark.parametrize(
    ("groups", "error"),
    [
        (
            {"a": group(10, "b02"), "b": group(20, "b05").isel(x=slice(1, None))},
            "same whole",
        ),
        (
            {"a": group(10, "b02"), "b": group(20, "b05").assign_coords(x=np.arange(24.0))},
            r"do not nest along 'x'.*cut all groups",
        ),
        ({"a": group(10, "b02"), "b": group(20, "b05").drop_vars("x")}, "has coordinates 'x'"),
        ({"a": group(10, "b02"), "b": group(10, "b02")}, "of one resolution"),
        ({"a": xr.Dataset({"s": ("time", [1])})}, r"no group has variables.*measurements"),
        (group(10, "b02"), "from_groups takes a DataTree or"),
    ],
)
def test_groups_that_do_not_fit(groups: Any, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        xtec.from_groups(groups)


def test_trees_are_sent_to_from_groups() -> None:
    for groups in (product(), xr.DataTree.from_dict(product())):
        with pytest.raises(ValueError, match=r"xtec\.from_groups"):
            xtec.compress(groups)  # type: ignore[type-var]
    with pytest.raises(ValueError, match="no attribute 'xtec_groups'"):
        xtec.to_groups(group(10, "b02"))


def test_a_tile_is_not_loaded() -> None:
    blocks = dask.array.zeros((10980, 10980), "uint16", chunks=1830)
    coarse = dask.array.zeros((1830, 1830), "uint16", chunks=305)
    groups = {
        "r10m": xr.Dataset({"b02": (("y", "x"), blocks)}),
        "r60m": xr.Dataset({"b09": (("y", "x"), coarse)}),
    }
    ds = xtec.from_groups(groups)
    assert ds.b09.chunks == ds.b02.chunks
    assert xtec.to_groups(ds)["r60m"].b09.chunks == coarse.chunks


# latents


@pytest.mark.parametrize("shards", [None, {"y": 64, "x": 64}])
@pytest.mark.parametrize("model", ["fp", "tt"])
def test_latents_of_a_store_are_those_of_its_streams(
    tmp_path: Path, model: str, shards: Any
) -> None:
    weights = tiny.write(tmp_path / "tiny.safetensors", model)
    data = cube(time=3, y=70, x=40)
    data[2] = 0  # nothing is coded of it
    options = {"model": model, "weights": weights, "chunks": {"time": 2, "y": 32, "x": 32}}
    packed = data.tec.compress(shards=shards, **options)
    packed.to_dataset().to_zarr(tmp_path / "a.zarr")
    out = xtec.latents(tmp_path / "a.zarr")
    assert out.dims == ("time", "latent", "y", "x")
    assert (out.shape, out.dtype) == ((3, 8, 5, 3), np.float32)
    assert out.data.numblocks == ((2, 1, 2, 1) if shards else (2, 1, 3, 2))
    values = out.compute()
    assert np.isfinite(values[:2]).all()
    assert np.isnan(values[2]).all()
    np.testing.assert_array_equal(out.y[:2], 5e6 - 10.0 * np.array([7.5, 23.5]))
    np.testing.assert_array_equal(out.y[4:], [data.y.values[64:].mean()])
    np.testing.assert_array_equal(out.time, data.time)
    if not shards:
        stream = (tmp_path / "a.zarr" / "s2" / "c" / "0" / "0" / "1" / "0").read_bytes()
        wanted = np.stack(latents(stream, weights=str(weights)))
        np.testing.assert_array_equal(values[:2, :, 2:4, :2], wanted)
    again = data.tec.latents(shards=shards, **options)
    xr.testing.assert_equal(again.compute(), values)
    assert again.attrs == out.attrs


def test_no_pixel_is_decoded_for_latents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tec.models.compact import CompactElic

    weights = tiny.write(tmp_path / "tiny.safetensors", "elic")
    data = cube(time=1, y=32, x=32)
    data.tec.to_zarr(tmp_path / "a.zarr", progress=False, model="elic", weights=weights)
    monkeypatch.setattr(CompactElic, "synthesis", None)
    found = xtec.latents(tmp_path / "a.zarr").compute()
    assert found.shape == (1, 8, 2, 2)
    assert float(np.abs(found).max()) > 0


def test_latents_that_are_not_there(tmp_path: Path) -> None:
    cube(y=32, x=32).tec.to_zarr(tmp_path / "a.zarr", progress=False, **EXACT)
    with pytest.raises(ValueError, match=r"'s2' has no latents.*add compression="):
        xtec.latents(tmp_path / "a.zarr")
    with pytest.raises(ValueError, match=r"'s2' has no latents"):
        cube().tec.latents(**EXACT)
    with pytest.raises(ValueError, match=r"'model' cannot be chosen"):
        xtec.latents(tmp_path / "a.zarr", model="fp")
    with pytest.raises(ValueError, match=r"no compressed variable 'x'; it has \['s2'\]"):
        xtec.latents(tmp_path / "a.zarr", variable="x")


# TerraTorch


class Registry(dict):
    """As TerraTorch's: constructors by their names."""

    def register(self, constructor: Any) -> Any:
        self[constructor.__name__] = constructor
        return constructor


def test_terratorch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry(xtec_tt_s2l2a=len)
    stub = types.ModuleType("terratorch.registry")
    stub.TERRATORCH_FULL_MODEL_REGISTRY = registry  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "terratorch", types.ModuleType("terratorch"))
    monkeypatch.setitem(sys.modules, "terratorch.registry", stub)
    monkeypatch.delitem(sys.modules, "xtec.terratorch", raising=False)
    import torch

    import xtec.terratorch as module

    assert registry["xtec_tt_s2l2a"] is len
    assert {"xtec_fp_s2l2a", "xtec_elic_s2l2a", "xtec_tt_s2l1c"} <= set(registry)
    weights = str(tiny.write(tmp_path / "tiny.safetensors", "fp"))
    model = registry["xtec_fp_s2l2a"](weights=weights, standardised=False, pretrained=True)
    images = torch.from_numpy(scene(2, 12, 32, 32).astype("float32"))
    images[0, :, :3] = torch.nan
    out = model(images)
    assert out.shape == images.shape
    for image, found, bits in zip(images, out, model.bits(images)):
        stream = xtec.terratorch.encode_many([image[None].numpy()], model.config)[0]
        # two together and one alone: the same floats on some processors only
        np.testing.assert_allclose(found, decode(stream, weights=weights)[0], rtol=1e-5)
        assert bits == 8 * len(stream)
    normal = registry["xtec_fp_s2l2a"](weights=weights)
    mean, std = (torch.tensor(v)[:, None, None] for v in (model.sensor.mean, model.sensor.std))
    torch.testing.assert_close(
        normal((images - mean) / std) * std + mean, out, atol=0.5, rtol=0, equal_nan=True
    )
    series = registry["xtec_fp_s2l2a"](weights=weights, standardised=False)
    both = series(images.swapaxes(0, 1)[None])  # (1, band, time, y, x)
    torch.testing.assert_close(both[0].swapaxes(0, 1), out, equal_nan=True, atol=1, rtol=0)
    with pytest.raises(ValueError, match=r"must be \(n, 12, y, x\)"):
        model(images[:, :4])
    monkeypatch.setitem(sys.modules, "terratorch.registry", None)
    with pytest.raises(ImportError, match="pip install terratorch"):
        module.register()


_REAL = """
import sys
import torch
from terratorch.registry import FULL_MODEL_REGISTRY, MODEL_FACTORY_REGISTRY
import xtec.terratorch

options = {"weights": sys.argv[1], "standardised": False}
images = torch.full((2, 12, 32, 32), 1200.0)
for name in ("xtec_fp_s2l2a", "terratorch_xtec_fp_s2l2a"):
    assert name in FULL_MODEL_REGISTRY
    found = FULL_MODEL_REGISTRY.build(name, **options)
    assert found(images).shape == images.shape
factory = MODEL_FACTORY_REGISTRY.build("FullModelFactory")
made = factory.build_model(model="xtec_fp_s2l2a", pretrained=True, **options)
assert torch.equal(made(images), found(images))
print(type(made).__module__)
"""


@pytest.mark.slow
@pytest.mark.skipif(
    find_spec("terratorch") is None,
    reason="TerraTorch is not installed: pip install terratorch (0.9 GB beside torch)",
)
def test_terratorch_itself(tmp_path: Path) -> None:
    """Its registry and its factory, in a process of their own: importing it takes 20 s."""
    weights = str(tiny.write(tmp_path / "tiny.safetensors", "fp"))
    done = subprocess.run(
        [sys.executable, "-c", _REAL, weights], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().endswith("xtec.terratorch")
