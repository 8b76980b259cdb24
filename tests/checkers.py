"""Checks that every codec of xtec goes through, and cubes to try them on."""

from __future__ import annotations

import asyncio
import json
import pickle
from typing import Any

import hypothesis.strategies as st
import numpy as np
from scenes import scene
from zarr.core.array_spec import ArrayConfig, ArraySpec
from zarr.core.buffer import default_buffer_prototype
from zarr.core.dtype import parse_dtype

from xtec.zarr2 import XtecCodec2
from xtec.zarr3 import XtecCodec

Codec = XtecCodec | XtecCodec2


def encode(codec: Codec, chunk: np.ndarray) -> bytes:
    """One chunk through the codec as zarr calls it."""
    if isinstance(codec, XtecCodec2):
        return codec.encode(chunk)
    spec = _spec(codec, chunk.dtype)
    buffer = spec.prototype.nd_buffer.from_numpy_array(chunk)
    return asyncio.run(codec._encode_single(buffer, spec)).to_bytes()


def decode(codec: Codec, data: bytes, dtype: Any = None) -> np.ndarray:
    """Mirror of `encode`; the chunk has the codec's shape."""
    if isinstance(codec, XtecCodec2):
        order = "F" if data[:1] == b"F" else "C"
        return codec.decode(data).reshape(codec.chunk_shape, order=order)
    spec = _spec(codec, np.dtype(dtype))
    buffer = spec.prototype.buffer.from_bytes(data)
    return asyncio.run(codec._decode_single(buffer, spec)).as_numpy_array()


def _spec(codec: XtecCodec, dtype: np.dtype) -> ArraySpec:
    nodata = codec.config.nodata
    return ArraySpec(
        shape=codec.chunk_shape,
        dtype=parse_dtype(dtype, zarr_format=3),
        fill_value=dtype.type(0 if nodata is None else nodata),
        config=ArrayConfig.from_dict({}),
        prototype=default_buffer_prototype(),
    )


def check_roundtrip(codec: Codec, chunk: np.ndarray, *, error: float) -> np.ndarray:
    """Shape and dtype come back, nodata bit for bit, valid pixels within `error` DN on average.

    Returns the decoded chunk.
    """
    given = chunk.copy()
    back = decode(codec, encode(codec, chunk), chunk.dtype)
    np.testing.assert_array_equal(chunk, given, err_msg="the codec changed its input")
    assert back.shape == chunk.shape
    assert back.dtype == chunk.dtype
    check_pixels(back, chunk, nodata=codec.config.nodata, error=error * codec.config.scale)
    return back


def check_pixels(back: np.ndarray, chunk: np.ndarray, *, nodata: Any, error: float) -> None:
    """`back` has nodata where `chunk` has, and only there, and differs by `error` on average."""
    missing = np.zeros(chunk.shape, bool)
    for marker in (nodata, np.nan):
        if marker is not None:
            missing |= np.isnan(chunk) if marker != marker else chunk == marker
    if nodata is not None:
        again = np.isnan(back) if nodata != nodata else back == nodata
        np.testing.assert_array_equal(again, missing)
    if not missing.all():
        off = back[~missing].astype(float) - chunk[~missing].astype(float)
        assert np.abs(off).mean() <= error


def check_config(codec: Codec) -> None:
    """The configuration is small JSON, makes the same codec again, and names no device."""
    if isinstance(codec, XtecCodec2):
        config = json.loads(json.dumps(codec.get_config(), allow_nan=False))
        assert config["id"] == "xtec"
        again = XtecCodec2.from_config({k: v for k, v in config.items() if k != "id"})
    else:
        config = json.loads(json.dumps(codec.to_dict(), allow_nan=False))
        assert config["name"] == "xtec"
        again = XtecCodec.from_dict(config)
    assert again == codec
    assert hash(again) == hash(codec)
    assert len(json.dumps(config)) < 1000
    assert "device" not in json.dumps(config)


def check_pickle_after_use(codec: Codec, chunk: np.ndarray) -> None:
    """A used codec pickles to as little as a new one; its copy writes and reads the same bytes."""
    before = pickle.dumps(codec)
    data = encode(codec, chunk)
    back = decode(codec, data, chunk.dtype)
    assert pickle.dumps(codec) == before
    copy = pickle.loads(before)
    assert copy == codec
    assert encode(copy, chunk) == data
    np.testing.assert_array_equal(decode(copy, data, chunk.dtype), back)


@st.composite
def cubes(draw: st.DrawFn, *, bands: int = 3, largest: int = 40) -> np.ndarray:
    """(time, bands, y, x) cubes that are awkward: one pixel, odd sizes, a single date, holes of 0,
    nothing but holes, other byte orders, views with gaps or of F order."""
    time, y, x = (
        draw(st.integers(1, 3)),
        draw(st.integers(1, largest)),
        draw(st.integers(1, largest)),
    )
    cube = scene(time, bands, y, x, seed=draw(st.integers(0, 99)))
    holes = draw(st.sampled_from(["none", "some", "all", "tail"]))
    if holes == "some":
        cube[np.random.default_rng(0).random(cube.shape) < 0.2] = 0
    elif holes == "all":
        cube[:] = 0
    elif holes == "tail":
        cube[:, :, y // 2 :] = 0
    layout = draw(st.sampled_from(["C", "F", "gaps", "reversed"]))
    if layout == "F":
        cube = np.asfortranarray(cube)
    elif layout == "gaps":
        cube = np.repeat(cube, 2, axis=-1)[..., ::2]
    elif layout == "reversed":
        cube = cube[:, :, ::-1]
    return cube.astype(draw(st.sampled_from(["<u2", ">u2", "<i2", "<f4", ">f4"])))
