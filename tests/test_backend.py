"""Reading at scale: what ``engine="xtec"`` gives, and how often a chunk is decoded."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import dask
import dask.array
import numpy as np
import pandas as pd
import pytest
import xarray as xr
import zarr
from cubes import BANDS, DIMS, band_variables, cube
from tec.config import CodecConfig

from xtec import cache, settings
from xtec.backend import LARGEST, XtecBackend, preferred
from xtec.bandvars import split
from xtec.chunks import ChunkCoder, batch_size
from xtec.zarr2 import XtecCodec2
from xtec.zarr3 import XtecCodec, together

CHUNKS = {"time": 2, "y": 16, "x": 16}
STORES: dict[str, dict[str, Any]] = {
    "format 3": {},
    "shards": {"shards": {"y": 32, "x": 32}},
    "format 2": {"zarr_format": 2},
}


def opened(path: Path, **options: Any) -> xr.Dataset:
    return xr.open_dataset(path, engine=XtecBackend, **options)


def write(data: xr.Dataset | xr.DataArray, path: Path, **options: Any) -> Path:
    """Without loss and without a network."""
    packed = data.tec.compress(max_error=0, **{"chunks": CHUNKS, **options})
    packed.to_zarr(path, zarr_format=options.get("zarr_format", 3))
    return path


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(settings, "cache", 0)
    cache.clear()
    yield
    cache.clear()


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter[bytes]:
    """How often each chunk was decoded."""
    seen: Counter[bytes] = Counter()
    inner = ChunkCoder.decode_chunks

    def spy(self: Any, data: Any, *rest: Any, **more: Any) -> Any:
        seen.update(data)
        return inner(self, data, *rest, **more)

    monkeypatch.setattr(ChunkCoder, "decode_chunks", spy)
    return seen


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Chunks of each pass."""
    seen: list[int] = []
    inner = ChunkCoder.decode_chunks

    def spy(self: Any, data: Any, *rest: Any, **more: Any) -> Any:
        seen.append(len(data))
        return inner(self, data, *rest, **more)

    monkeypatch.setattr(ChunkCoder, "decode_chunks", spy)
    return seen


# how often a chunk is decoded

SERIES = cube(time=4, y=40, x=48)  # 2 x 3 x 3 chunks
OPENERS: dict[str, Callable[[Path], xr.Dataset]] = {
    "zarr, Dask": lambda path: xr.open_zarr(path),
    "zarr": lambda path: xr.open_zarr(path, chunks=None),
    "xtec, Dask": lambda path: opened(path, chunks={}),
    "xtec": lambda path: opened(path),
}


def points(**places: list[int]) -> dict[str, xr.DataArray]:
    return {dim: xr.DataArray(at, dims="point") for dim, at in places.items()}


#: A selection, and the chunks that it needs.
SELECTIONS: dict[str, tuple[Callable[[xr.DataArray], xr.DataArray], int]] = {
    "whole": (lambda a: a, 18),
    "one band": (lambda a: a.sel(band="B03"), 18),
    "a date and a band": (lambda a: a.sel(time="2020-06-02", band="B04"), 9),
    "a pixel's series": (lambda a: a.isel(y=20, x=20), 2),
    "across chunks, with steps": (lambda a: a.isel(time=[1, 2], y=slice(10, 35, 3)), 18),
    "backwards": (lambda a: a.isel(time=slice(None, None, -1), x=slice(None, None, -2)), 18),
    "lists": (lambda a: a.isel(time=[3, 0, 3], band=[2, 0], y=[1, 39, 5, 1], x=[0, 47, 2]), 8),
    "points": (lambda a: a.isel(points(y=[0, 39, 3, 0], x=[47, 1, 2, 47])), 6),
    "points and dates": (lambda a: a.isel(points(time=[0, 3, 0], y=[1, 1, 2], x=[1, 2, 3])), 2),
    "a mask": (lambda a: a.isel(y=np.arange(40) % 39 == 0), 12),
}


@pytest.fixture(scope="module", params=STORES)
def series(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(SERIES, tmp_path_factory.mktemp("series") / "a.zarr", **STORES[request.param])


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("opener", OPENERS)
def test_each_chunk_that_is_needed_is_decoded_once(
    series: Path, opener: str, selection: str, decoded: Counter
) -> None:
    select, needed = SELECTIONS[selection]
    found = select(OPENERS[opener](series).s2).load()
    np.testing.assert_array_equal(found, select(SERIES))
    assert set(decoded.values()) == {1}
    # Dask picks single pixels out of whole blocks
    assert len(decoded) == needed or (opener == "xtec, Dask" and len(decoded) > needed)


@pytest.mark.parametrize("chunks", [{"y": 24, "x": 10, "time": 3}, {"y": 32, "x": -1}, {"band": 1}])
def test_dask_chunks_that_cut_chunks(series: Path, chunks: dict, decoded: Counter) -> None:
    lazy = opened(series, chunks=None).s2.chunk(chunks)
    starts = [np.cumsum((0, *sizes)) for sizes in lazy.chunks]
    units = (2, 3, 16, 16)
    touched = [
        sum(-(-b // n) - a // n for a, b in pairwise(at))
        for at, n in zip(starts, units, strict=True)
    ]
    with dask.config.set(scheduler="synchronous"):
        np.testing.assert_array_equal(lazy.values, SERIES)
        assert sum(decoded.values()) == np.prod(touched), "once a task"
        decoded.clear()
        settings.cache = "1 GB"
        np.testing.assert_array_equal(lazy.values, SERIES)
    assert set(decoded.values()) == {1}
    assert len(decoded) == 18


@pytest.mark.parametrize("dims", [("y", "x", "time", "band"), ("x", "band", "y", "time")])
@pytest.mark.parametrize("order", ["format 3", "C", "F"])
def test_other_orders_of_dimensions(
    dims: tuple, order: str, tmp_path: Path, decoded: Counter
) -> None:
    data = SERIES.transpose(*dims)
    chunks = tuple({**CHUNKS, "band": 3}[d] for d in dims)
    exact = CodecConfig(model="none", max_error=(0, 0, 0), bands=tuple(BANDS), nodata=0)
    if order == "format 3":
        codec = XtecCodec(exact, dims, chunks)
        encoding = {"serializer": codec, "compressors": (), "chunks": chunks, "fill_value": 0}
        data.drop_attrs().to_dataset().to_zarr(tmp_path, encoding={"s2": encoding})
    else:
        root = zarr.open_group(tmp_path, mode="w", zarr_format=2)
        array = root.create_array(
            "s2",
            shape=data.shape,
            chunks=chunks,
            dtype="uint16",
            compressors=XtecCodec2(exact, dims, chunks),
            filters=None,
            order=order,
            fill_value=None,  # which xarray would take for missing data
            attributes={"_ARRAY_DIMENSIONS": list(dims)},
        )
        array[:] = data.values
        named = xr.Dataset(coords={name: SERIES[name].variable for name in ("time", "band")})
        named.to_zarr(tmp_path, mode="a", zarr_format=2)
    for name, opener in OPENERS.items():
        for select, needed in SELECTIONS.values():
            decoded.clear()
            found = select(opener(tmp_path).s2)
            np.testing.assert_array_equal(found.values, select(data))
            assert set(decoded.values()) == {1}
            assert len(decoded) == needed or (name == "xtec, Dask" and len(decoded) > needed)


def test_batches_also_inside_shards(tmp_path: Path, passes: list) -> None:
    for name, options in STORES.items():
        path = write(SERIES.isel(x=slice(32), y=slice(32)), tmp_path / name, **options)
        for chunks in (None, {}):
            del passes[:]
            ds = pickle.loads(pickle.dumps(opened(path, chunks=chunks)))
            ds.load()
            together = [4] * 2 if chunks is not None or name == "shards" else [8]
            assert passes == ([1] * 8 if name == "format 2" else together)
            codec = ds.s2.encoding.get("serializer", ds.s2.encoding["compressors"][0:1])
            assert codec
        again = zarr.open_array(path / "s2")
        assert again.shards == ((2, 3, 32, 32) if "shards" in options else None)


def test_dask_chunks_fit_into_shards() -> None:
    codec = SERIES.tec.compress(max_error=0, chunks=CHUNKS).encoding["serializer"]
    assert preferred(codec) == preferred(codec, (2, 3, 32, 64)) == (2, 3, 32, 32)
    assert preferred(codec, (2, 3, 48, 48)) == preferred(codec, (2, 3, 32, 16)) == (2, 3, 16, 16)
    large = XtecCodec(codec.config, DIMS, (1, 3, LARGEST // 1024, 1024))
    assert preferred(large) == large.chunk_shape
    assert together(codec) == batch_size(2 * 16 * 16) > 4


# band variables


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("chunks", [None, {}])
def test_band_variables_come_back(store: str, chunks: Any, tmp_path: Path, decoded: Any) -> None:
    ds = band_variables()
    path = write(ds, tmp_path / "a.zarr", **STORES[store])
    back = opened(path, chunks=chunks)
    assert not decoded
    assert list(back.data_vars) == list(ds.data_vars)
    assert not {"band", "reflectance"} & {*back.variables, *back.dims}
    for name in BANDS:
        assert back[name].attrs == ds[name].attrs
        assert not {"serializer", "compressors", "chunks", "shards"} & set(back[name].encoding)
        assert back[name].encoding["preferred_chunks"] == {"time": 2, "y": 32, "x": 32}
        assert back[name].dtype == ds[name].dtype
        assert (back[name].chunks is None) == (chunks is None)
    assert back.B03.isel(y=3, x=5, time=1) == ds.B03[1, 3, 5]
    assert len(decoded) == 1, "the one chunk that is needed"
    xr.testing.assert_identical(back.load(), ds)
    xr.testing.assert_identical(split(back), ds)
    xr.testing.assert_identical(split(xr.open_zarr(path)).load(), ds)
    xr.testing.assert_identical(
        opened(path, drop_variables=["B03", "sun"]).load(), ds.drop_vars(["B03", "sun"])
    )


def test_the_stored_layout(tmp_path: Path) -> None:
    ds = band_variables()
    path = write(ds, tmp_path / "a.zarr")
    stored = opened(path, layout="stored")
    assert stored.reflectance.dims == DIMS
    xr.testing.assert_identical(stored.load(), xr.open_zarr(path).load())
    xr.testing.assert_identical(split(opened(path, layout="stored", chunks={})).load(), ds)
    with pytest.raises(ValueError, match="layout is 'bands': it must be 'compressed'"):
        opened(path, layout="bands")


def test_what_was_one_cube_stays_one(tmp_path: Path) -> None:
    path = write(cube(), tmp_path / "a.zarr")
    xr.testing.assert_identical(opened(path).load(), xr.open_zarr(path).load())
    assert "xtec" in opened(path).s2.attrs
    assert isinstance(opened(path).s2.encoding["serializer"], XtecCodec)


def test_packed_band_variables(tmp_path: Path) -> None:
    ds = band_variables()[BANDS]
    for name in BANDS:
        ds[name] = (ds[name] * np.float32(1e-4)).where(ds[name] != 0)
        ds[name].encoding = {"dtype": "uint16", "scale_factor": 1e-4, "_FillValue": 0}
    ds.to_zarr(tmp_path / "plain.zarr")
    ds = xr.open_zarr(tmp_path / "plain.zarr")
    back = opened(write(ds, tmp_path / "a.zarr"))
    for name in BANDS:
        xr.testing.assert_identical(back[name].load(), ds[name].load())
        kept = {"dtype": np.dtype("uint16"), "scale_factor": 1e-4, "_FillValue": 0}
        assert {k: back[name].encoding[k] for k in kept} == kept


def test_bands_in_another_order_of_dimensions_are_read_in_part(
    tmp_path: Path, decoded: Counter
) -> None:
    ds = band_variables()[BANDS]
    ds["B02"], ds["B04"] = ds.B02.transpose("y", "time", "x"), ds.B04.transpose("x", "y", "time")
    path = write(ds, tmp_path / "a.zarr", chunks={"time": 1, "y": 16, "x": 16})
    back = opened(path)
    assert [back[name].dims for name in BANDS] == [ds[name].dims for name in BANDS]
    selections: list[dict[str, Any]] = [
        {"time": 1, "y": 17, "x": 3},
        {"time": [1], "y": [5, 3], "x": slice(0, 9, 2)},
        points(y=[1, 2], x=[3, 4], time=[0, 0]),
    ]
    for name in BANDS:
        for selection in selections:
            decoded.clear()
            xr.testing.assert_identical(back[name].isel(selection).load(), ds[name].isel(selection))
            assert len(decoded) == 1
    xr.testing.assert_identical(pickle.loads(pickle.dumps(back)).load(), ds)


def test_saving_band_variables_again(tmp_path: Path) -> None:
    ds = band_variables()
    for chunks in (None, {}):
        back = opened(write(ds, tmp_path / f"{chunks}.zarr"), chunks=chunks)
        back.isel(x=slice(0, 16)).to_zarr(tmp_path / f"plain {chunks}.zarr")
        plain = zarr.open_array(tmp_path / f"plain {chunks}.zarr/B02")
        assert not isinstance(plain.serializer, XtecCodec)
        np.testing.assert_array_equal(plain[:], ds.B02[..., :16])
        back.to_netcdf(tmp_path / f"{chunks}.nc", engine="netcdf4")
        xr.testing.assert_equal(xr.load_dataset(tmp_path / f"{chunks}.nc"), ds)
        again = opened(write(back, tmp_path / f"again {chunks}.zarr"), chunks=chunks)
        xr.testing.assert_identical(again.load(), ds)


def test_many_bands_with_dask(tmp_path: Path, decoded: Counter) -> None:
    ds = band_variables()[BANDS]
    path = write(ds, tmp_path / "a.zarr", chunks={"time": 1, "y": 8, "x": 8})
    parts = ds.sizes["time"] * 3 * 3

    def ratio(found: xr.Dataset) -> xr.DataArray:
        return (found.B02.astype("f4") - found.B04) / (found.B02 + np.float32(1))

    def count(work: Callable[[], Any]) -> int:
        decoded.clear()
        work()
        return sum(decoded.values())

    with dask.config.set(scheduler="threads", num_workers=2):
        stored = opened(path, layout="stored", chunks={})
        assert count(lambda: split(stored).load()) == parts, "the bands share Dask's blocks"
        assert count(lambda: ratio(split(stored)).mean().compute()) == parts
        lazy = opened(path, chunks={})
        assert parts < count(lambda: ratio(lazy).mean().compute()) <= 2 * parts
        settings.cache = "1 MB"
        assert count(lambda: lazy[BANDS].compute()) == parts
        cache.clear()
        settings.cache = 2 * 2 * 4 * (8 * 8 * 3 * 2)  # what two tasks read, twice
        assert count(lambda: ratio(lazy).mean().compute()) == parts


# large and far away


def large(path: Path) -> Path:
    """The metadata of a cube of a million chunks."""
    size = 2**14
    zeros = dask.array.zeros((1024, size, size), chunks=(512, size, size), dtype="uint16")
    time = pd.date_range("1990-01-01", periods=1024)
    ds = xr.Dataset({name: (DIMS[:1] + DIMS[2:], zeros) for name in BANDS}, {"time": time})
    packed = ds.tec.compress(max_error=0, chunks={"time": 4, "y": 256, "x": 256})
    packed.to_zarr(path, compute=False)
    return path


@pytest.mark.filterwarnings("ignore:writing 'reflectance' takes .* a task:UserWarning")
def test_a_million_chunks_open_as_one_does(tmp_path: Path, decoded: Counter) -> None:
    path = large(tmp_path / "a.zarr")
    for layout, name in (("compressed", "B03"), ("stored", "reflectance")):
        lazy = opened(path, layout=layout, chunks={}, decode_times=False).drop_vars("time")
        assert np.prod(zarr.open_array(path / "reflectance").cdata_shape) == 2**20
        assert lazy[name].data.npartitions == 2**18, "2 x 2 chunks each"
        assert len(pickle.dumps(lazy)) < 20_000
        part = lazy[name].isel(time=slice(0, 40), y=slice(0, 8192), x=slice(0, 8192))
        graph = dask.optimize(part)[0].__dask_graph__()
        assert 2560 <= len(graph) < 3 * 2560, "what is not asked for is not in the graph"
    assert not decoded


def test_what_was_read_does_not_travel(tmp_path: Path) -> None:
    data = cube(y=64, x=64)
    path = write(data, tmp_path / "a.zarr")
    settings.cache = "1 MB"
    lazy = opened(path, chunks={})
    before = len(pickle.dumps(lazy))
    np.testing.assert_array_equal(lazy.s2.compute(), data)
    assert cache.held().bytes == data.nbytes > 40_000
    assert len(pickle.dumps(lazy)) < before + 3000, "what zarr and xarray note of an array"


def test_on_workers(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    ds = band_variables()
    path = write(ds, tmp_path / "a.zarr")
    options: dict[str, Any] = {"n_workers": 1, "threads_per_worker": 2, "dashboard_address": None}
    with (
        dask.config.set({"distributed.worker.multiprocessing-method": "spawn"}),
        distributed.LocalCluster(processes=True, **options) as cluster,
        distributed.Client(cluster),
    ):
        xr.testing.assert_identical(opened(path, chunks={}).compute(), ds)
        xr.testing.assert_identical(split(opened(path, layout="stored", chunks={})).compute(), ds)
