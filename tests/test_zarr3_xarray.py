"""The codec of Zarr format 3 under xarray and Dask."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from arrays import CHUNK, DIMS, codec, config, run, same
from data import real_cubes, requires_real
from scenes import scene
from tec.errors import TecError

from xtec.chunks import AlignmentError, MissingChunkError
from xtec.zarr3 import XtecCodec


def dataset(**sizes: int) -> xr.Dataset:
    sizes = {"time": 3, "band": 3, "y": 33, "x": 20, **sizes}
    pixels = scene(*sizes.values(), nodata=True)
    times = np.datetime64("2021-06-01", "ns") + np.arange(sizes["time"]) * np.timedelta64(5, "D")
    data = xr.DataArray(
        pixels,
        dims=DIMS,
        coords={
            "time": times,
            "band": np.arange(sizes["band"]),
            "y": np.arange(sizes["y"]) * -10.0,
        },
        attrs={"units": "DN"},
    )
    data.encoding = {
        "serializer": codec(),
        "chunks": CHUNK,
        "compressors": (),
        "filters": (),
        "fill_value": 0,
        "write_empty_chunks": True,
    }
    return data.to_dataset(name="reflectance")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "cube.zarr"


@pytest.fixture
def written(store: Path) -> Iterator[xr.Dataset]:
    """A dataset that was written to `store` and opened again."""
    dataset().to_zarr(store, consolidated=False)
    with xr.open_zarr(store, consolidated=False) as opened:
        yield opened


def check_same(opened: xr.Dataset, wanted: xr.Dataset) -> None:
    """All but the pixels is identical, and the pixels are what a codec may make of them."""
    assert opened.reflectance.dtype == wanted.reflectance.dtype
    loaded = opened.load()
    same(loaded.reflectance.values, wanted.reflectance.values)
    xr.testing.assert_identical(
        loaded.assign(reflectance=wanted.reflectance.copy(data=loaded.reflectance.values)), loaded
    )


def test_xarray_and_dask(store: Path) -> None:
    wanted = dataset()
    wanted.chunk(time=2, y=32, x=16).to_zarr(store, consolidated=False)
    opened = xr.open_zarr(store, consolidated=False)
    assert opened.reflectance.dtype == "uint16"  # nodata in fill_value, not in _FillValue
    assert opened.reflectance.encoding["serializer"] == codec()
    check_same(opened, wanted)


def test_another_process_reads_it_without_importing_xtec(store: Path) -> None:
    wanted = dataset()
    wanted.to_zarr(store, consolidated=False)
    out = store.with_name("out.npy")
    printed = run(
        f"""
        import sys, xarray as xr
        ds = xr.open_zarr({str(store)!r}, consolidated=False)
        heavy = {{"torch", "numba", "rioxarray", "rich", "huggingface_hub", "tec.codec"}}
        print(sorted(heavy & set(sys.modules)), ds.reflectance.shape, "xtec.zarr3" in sys.modules)
        import numpy as np
        np.save({str(out)!r}, ds.reflectance.values)
        print("tec.codec" in sys.modules)
        """
    )
    assert printed.splitlines() == ["[] (3, 3, 33, 20) True", "True"]
    same(np.load(out), wanted.reflectance.values)


def test_xarray_shards(store: Path) -> None:
    wanted = dataset()
    wanted.reflectance.encoding["shards"] = (2, 3, 32, 32)
    wanted.to_zarr(store, consolidated=False)
    opened = xr.open_zarr(store, consolidated=False)
    assert opened.reflectance.encoding["shards"] == (2, 3, 32, 32)
    assert opened.reflectance.encoding["serializer"] == codec()
    check_same(opened, wanted)
    again = xr.open_zarr(store, consolidated=False, chunks=None)
    again.to_zarr(store.with_name("again.zarr"), consolidated=False)
    check_same(xr.open_zarr(store.with_name("again.zarr"), consolidated=False), wanted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ds: ds.isel(band=[0, 1]), "has 2 bands"),
        (lambda ds: ds.isel(time=0), "has 3 dimensions"),
        (lambda ds: ds.transpose("y", "x", "time", "band"), "bands"),
        (lambda ds: ds.transpose("band", "time", "y", "x").isel(time=[0, 1]), "bands"),
        (lambda ds: xr.concat([ds, ds], "band"), "has 6 bands"),
    ],
    ids=["subset", "date", "transpose", "swap", "concat"],
)
def test_a_stale_encoding_is_refused_with_the_remedy(
    written: xr.Dataset, store: Path, change: Callable, message: str
) -> None:
    changed = change(written).load()
    assert "serializer" in changed.reflectance.encoding
    other = store.with_name("other.zarr")
    with pytest.raises(TecError, match=message) as error:
        changed.to_zarr(other, consolidated=False)
    assert "ds.drop_encoding()" in str(error.value)
    changed.drop_encoding().to_zarr(other, mode="w", consolidated=False)
    xr.testing.assert_equal(xr.open_zarr(other, consolidated=False), changed)


def test_a_subset_in_space_and_time_is_compressed_again(written: xr.Dataset, store: Path) -> None:
    part = written.isel(time=slice(1, 2), y=slice(5, 30)).load()
    part.to_zarr(store.with_name("part.zarr"), consolidated=False)
    back = xr.open_zarr(store.with_name("part.zarr"), consolidated=False)
    same(back.reflectance.values, part.reflectance.values)


@requires_real
def test_a_second_generation_costs_little(store: Path) -> None:
    path = real_cubes("val/l2a_ssl4eos12v11_val_*.zarr")[0]
    cube = xr.open_zarr(path, consolidated=False, chunks=None).isel(time=slice(0, 2))
    source = cube.reflectance[:, :, :128, :128].drop_encoding().load()
    bands = tuple(str(band) for band in source.band.values)

    def psnr(pixels: np.ndarray) -> float:
        return 10 * np.log10(1e8 / np.mean((pixels.astype(float) - source.values) ** 2))

    one = XtecCodec(config(model="elic", bands=bands), source.dims, (2, len(bands), 64, 64))
    source.encoding = {"serializer": one, "compressors": (), "chunks": one.chunk_shape}
    source.to_dataset(name="reflectance").to_zarr(store, consolidated=False)
    quality = []
    for generation in range(3):
        back = xr.open_zarr(store, consolidated=False, chunks=None).load()
        quality.append(psnr(back.reflectance.values))
        store = store.with_name(f"{generation}.zarr")
        back.to_zarr(store, consolidated=False)
    assert quality[0] > 30
    assert quality[2] > quality[0] - 0.1  # 0.01 to 0.03 dB on these cubes: most latents stay


@pytest.mark.parametrize("dask", [False, True])
def test_xarray_append(store: Path, dask: bool) -> None:
    wanted = dataset(time=5)
    source = wanted.chunk(time=1) if dask else wanted

    def append(first: int, stop: int) -> None:
        part = source.isel(time=slice(first, stop))
        part = part.chunk(time=-1) if dask else part
        part.to_zarr(store, append_dim="time", consolidated=False, safe_chunks=False)

    wanted.isel(time=slice(0, 2)).to_zarr(store, consolidated=False)
    append(2, 3)
    check_same(xr.open_zarr(store, consolidated=False), wanted.isel(time=slice(0, 3)))
    files = {p: p.read_bytes() for p in (store / "reflectance/c").rglob("*") if p.is_file()}
    with pytest.raises(AlignmentError, match="holds time 0:1"):
        append(3, 5)
    assert {p: p.read_bytes() for p in files} == files
    # xarray makes the arrays longer before it writes: take that back
    for name, array in zarr.open_group(store).arrays():
        if name in ("reflectance", "time"):
            assert array.shape[0] == 5 or not dask
            array.resize((3, *array.shape[1:]))
    check_same(xr.open_zarr(store, consolidated=False), wanted.isel(time=slice(0, 3)))


def test_xarray_regions(store: Path) -> None:
    wanted = dataset(y=32)
    wanted.chunk(time=2, y=16, x=16).to_zarr(store, compute=False, consolidated=False)
    bare = wanted.drop_vars(["time", "band", "y"])
    with pytest.raises(MissingChunkError):
        xr.open_zarr(store, consolidated=False).load()
    for start in (0, 16):
        rows = slice(start, start + 16)
        bare.isel(y=rows).to_zarr(store, region={"y": rows}, consolidated=False)
    check_same(xr.open_zarr(store, consolidated=False), wanted)
    rows = slice(8, 24)
    with pytest.raises(AlignmentError, match=r"y (8:16|0:8)"):
        bare.isel(y=rows).to_zarr(store, region={"y": rows}, consolidated=False)
    check_same(xr.open_zarr(store, consolidated=False), wanted)


def test_a_region_of_nodata_is_written(store: Path) -> None:
    # xarray opens the array anew for a region, without write_empty_chunks
    wanted = dataset(time=2, y=32, x=16)
    wanted.reflectance[:] = 0
    wanted.chunk(y=16).to_zarr(store, compute=False, consolidated=False)
    wanted.drop_vars(["time", "band", "y"]).to_zarr(
        store, region={"y": slice(0, 32)}, consolidated=False
    )
    check_same(xr.open_zarr(store, consolidated=False), wanted)


def test_cf_packing_hands_over_the_packed_integers(store: Path) -> None:
    wanted = dataset()
    packing = {"dtype": "uint16", "scale_factor": 1e-4, "add_offset": -0.1, "_FillValue": 0}
    packed = wanted.reflectance.astype("float64") * 1e-4 - 0.1
    packed = packed.where(wanted.reflectance != 0)
    packed.encoding = {**wanted.reflectance.encoding, **packing, "serializer": codec(offset=1000)}
    packed.to_dataset(name="reflectance").to_zarr(store, consolidated=False)
    raw = xr.open_zarr(store, consolidated=False, mask_and_scale=False)
    assert raw.reflectance.dtype == "uint16"
    same(raw.reflectance.values, wanted.reflectance.values)
    shown = xr.open_zarr(store, consolidated=False).reflectance.values
    np.testing.assert_array_equal(np.isnan(shown), wanted.reflectance.values == 0)
