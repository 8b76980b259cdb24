"""The codec in real arrays of Zarr format 2, by itself and under xarray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import tec.codec
import xarray as xr
import zarr
from checkers import check_config, check_pickle_after_use, check_pixels, check_roundtrip, cubes
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from scenes import scene
from tec.config import CodecConfig
from tec.errors import StreamError, TecError
from tec.stream import peek
from zarr.core.buffer.cpu import Buffer
from zarr.storage import MemoryStore

from xtec.zarr2 import XtecCodec2
from xtec.zarr3 import XtecCodec

DIMS = ("time", "band", "y", "x")
CHUNK = (2, 3, 16, 16)
ERROR = 150  # DN on average, see test_zarr3.py
CONFIG = CodecConfig(model="fp", bands=("B02", "B03", "B04"), nodata=0)


def codec(dtype: str = "<u2", **changes: Any) -> XtecCodec2:
    return XtecCodec2(CONFIG, DIMS, changes.get("chunk_shape", CHUNK), dtype)


def create(shape: tuple[int, ...], **changes: Any) -> zarr.Array:
    arguments = {"chunks": CHUNK, "dtype": "<u2", "fill_value": 0, "filters": None, **changes}
    arguments.setdefault("compressors", codec(arguments["dtype"]))
    return zarr.create_array(MemoryStore(), shape=shape, zarr_format=2, **arguments)


def chunk_files(array: zarr.Array) -> dict[str, bytes]:
    """Every object of a MemoryStore but the metadata."""
    return {k: b.to_bytes() for k, b in array.store._store_dict.items() if not k.startswith(".z")}


def same(array: np.ndarray, wanted: np.ndarray) -> None:
    check_pixels(array, wanted, nodata=0, error=ERROR)


@pytest.mark.parametrize("dtype", ["<u2", ">u2", "<i2", ">f4"])
def test_checks_of_every_codec(dtype: str) -> None:
    pixels = scene(2, 3, 16, 16, nodata=True).astype(dtype)
    check_config(codec(dtype))
    check_pickle_after_use(codec(dtype), pixels)
    check_roundtrip(codec(dtype), pixels, error=ERROR)


@hypothesis_settings(max_examples=20, deadline=None)
@given(cubes())
def test_awkward_cubes(cube: np.ndarray) -> None:
    check_roundtrip(XtecCodec2(CONFIG, DIMS, cube.shape, cube.dtype.str), cube, error=2000)


def test_numcodecs_finds_it_by_name() -> None:
    assert numcodecs.get_codec(codec(">i2").get_config()) == codec(">i2")
    with pytest.raises(TecError, match="lacks dtype"):
        numcodecs.get_codec({k: v for k, v in codec().get_config().items() if k != "dtype"})
    with pytest.raises(TecError, match="dtype float64 cannot be coded"):
        codec("<f8")


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<u2", ">u2", "<i2", ">f4"])
def test_both_orders_and_byte_orders(order: str, dtype: str) -> None:
    pixels = scene(3, 3, 33, 20, nodata=True).astype(dtype)
    array = create(pixels.shape, order=order, dtype=dtype)
    array[:] = pixels
    reopened = zarr.open_array(array.store, mode="r")
    assert reopened.order == order
    assert reopened.dtype == np.dtype(dtype)
    same(reopened[:], pixels)
    # the edge chunk was cut to its extent, in either order
    stream = chunk_files(array)["1.0.2.1"].removeprefix(b"F")
    assert peek(stream).extent == (1, 1, 4)
    np.testing.assert_array_equal(reopened[1, :, 5:7, 19], reopened[:][1, :, 5:7, 19])


@pytest.mark.parametrize("order", ["C", "F"])
def test_shapes_that_are_both_c_and_f(order: str) -> None:
    one = XtecCodec2(CONFIG, DIMS, (1, 3, 1, 1), "<u2")
    pixels = scene(2, 3, 2, 1)
    array = create(pixels.shape, chunks=(1, 3, 1, 1), compressors=one, order=order)
    array[:] = pixels
    same(array[:], pixels)


def test_the_same_bytes_as_format_3() -> None:
    pixels = scene(3, 3, 20, 20, nodata=True)
    two = create(pixels.shape)
    three = zarr.create_array(
        MemoryStore(),
        shape=pixels.shape,
        dtype="<u2",
        chunks=CHUNK,
        serializer=XtecCodec(CONFIG, DIMS, CHUNK),
        compressors=(),
        filters=(),
        fill_value=0,
    )
    two[:], three[:] = pixels, pixels
    for key, data in chunk_files(two).items():
        assert data == three.store._store_dict["c/" + key.replace(".", "/")].to_bytes()
    np.testing.assert_array_equal(two[:], three[:])


def test_what_does_not_fit_is_refused_at_the_first_chunk() -> None:
    for shape, changes, message in [
        ((2, 3, 32, 32), {"chunks": (2, 3, 32, 32)}, r"chunks of the array are \(2, 3, 32, 32\)"),
        ((2, 2, 16, 16), {"chunks": (2, 2, 16, 16)}, r"chunks of the array are \(2, 2, 16, 16\)"),
        (
            (2, 3, 16, 16),
            {"dtype": ">u2", "compressors": codec("<u2")},
            "dtype >u2, .*made for <u2",
        ),
        (
            (2, 3, 16, 16),
            {"dtype": "<i2", "compressors": codec("<u2")},
            "dtype <i2, .*made for <u2",
        ),
    ]:
        with pytest.raises(TecError, match=message):
            create(shape, **changes)[:] = 5


@pytest.mark.parametrize("dtype", [3, True, "NaN", "x" * 1000, ["y"], {"a": 1}, "(2", None, "O"])
def test_a_dtype_that_is_none(dtype: Any) -> None:
    with pytest.raises(TecError, match=r"dtype is .*as numpy writes it|dtype \w+ cannot be coded"):
        XtecCodec2.from_config({**codec().get_config(), "dtype": dtype})


def test_damaged_and_foreign_chunks() -> None:
    array = create(CHUNK)
    array[:] = scene(*CHUNK)
    good = chunk_files(array)["0.0.0.0"]
    foreign = codec("<i2").encode(scene(*CHUNK).astype("<i2"))
    for bad, message in [
        (good[:-20], "damaged or truncated"),
        (b"", "not an xtec stream"),
        (b"F", "not an xtec stream"),
        (foreign, "dtype int16, the array says uint16"),
    ]:
        array.store._store_dict["0.0.0.0"] = Buffer.from_bytes(bad)
        with pytest.raises(StreamError, match=message):
            array[:]


def test_a_read_of_one_date_decodes_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numcodecs hands over whole chunks, whatever is read."""
    array = create(CHUNK)
    array[:] = scene(*CHUNK)
    whole, inner, seen = array[:], tec.codec.decode_many, []

    def spy(streams: Any, *, dates: Any = None, **options: Any) -> list[np.ndarray]:
        seen.extend(dates or [None])
        return inner(streams, dates=dates, **options)

    monkeypatch.setattr(tec.codec, "decode_many", spy)
    np.testing.assert_array_equal(array[0], whole[0])
    assert seen == [CHUNK[0]]


def test_buffers_of_other_kinds() -> None:
    pixels = scene(*CHUNK)
    data = codec().encode(pixels)
    plain = codec().decode(data)
    assert plain.ndim == 1
    np.testing.assert_array_equal(codec().decode(memoryview(data)), plain)
    out = np.empty(CHUNK, "<u2")
    codec().decode(np.frombuffer(data, "u1"), out=out)
    np.testing.assert_array_equal(out.ravel(), plain)


def test_xarray(tmp_path: Path) -> None:
    pixels = scene(3, 3, 33, 20, nodata=True)
    data = xr.DataArray(pixels, dims=DIMS, coords={"band": np.arange(3)}, attrs={"units": "DN"})
    data.encoding = {"compressors": (codec(),), "chunks": CHUNK, "write_empty_chunks": True}
    wanted = data.to_dataset(name="reflectance")
    wanted.to_zarr(tmp_path / "a.zarr", zarr_format=2, consolidated=False)
    with xr.open_zarr(tmp_path / "a.zarr", consolidated=False, mask_and_scale=False) as opened:
        assert opened.reflectance.encoding["compressors"] == (codec(),)
        loaded = opened.load()
    same(loaded.reflectance.values, pixels)
    xr.testing.assert_identical(loaded.drop_vars("reflectance"), wanted.drop_vars("reflectance"))
