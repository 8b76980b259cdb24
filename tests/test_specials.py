"""Pixels without reflectance: bit for bit, in few bytes, and damaged bytes are errors."""

from __future__ import annotations

import re
import struct
import zlib

import numpy as np
import pytest
from chunks import chunks, native_bits, special
from hypothesis import given, settings
from hypothesis import strategies as st
from tec import StreamError, TecError
from tec.masks import decode_mask, encode_mask
from tec.specials import (
    as_bits,
    dtype_name,
    extent,
    fill_value,
    find_specials,
    nodata_value,
    pack_specials,
    unpack_specials,
)


@given(chunks())
@settings(deadline=None, max_examples=80)
def test_specials_come_back_bit_for_bit(case: tuple[np.ndarray, float | None]) -> None:
    chunk, nodata = case
    expected = special(chunk, nodata)
    data, mask = pack_specials(chunk, nodata)
    back = unpack_specials(data, chunk.shape, chunk.dtype, nodata)
    if not expected.any():
        assert data == b""
        assert mask is None
        assert back == (None, [])
        return
    assert mask is not None
    assert back.mask is not None
    assert mask.dtype == back.mask.dtype == np.bool_
    np.testing.assert_array_equal(mask, expected)
    np.testing.assert_array_equal(back.mask, expected)
    assert len(back.values) == len(chunk)
    bits = native_bits(chunk)
    for date, where, values in zip(bits, back.mask, back.values):
        assert values.dtype == np.dtype(dtype_name(chunk.dtype))
        own = as_bits(np.ascontiguousarray(values))
        assert values.shape in ((), (where.sum(),))
        np.testing.assert_array_equal(date[where], np.broadcast_to(own, where.sum()))


@given(chunks())
@settings(deadline=None, max_examples=60)
def test_bytes_depend_on_values_only(case: tuple[np.ndarray, float | None]) -> None:
    chunk, nodata = case
    plain = native_bits(chunk).view(np.dtype(dtype_name(chunk.dtype)))
    assert pack_specials(chunk, nodata)[0] == pack_specials(plain, nodata)[0]
    assert extent(chunk, nodata) == extent(plain, nodata)


@given(chunks())
@settings(deadline=None, max_examples=60)
def test_extent_is_tight_and_the_rest_is_fill(case: tuple[np.ndarray, float | None]) -> None:
    chunk, nodata = case
    t, y, x = extent(chunk, nodata)
    fill = as_bits(np.array(fill_value(nodata, chunk.dtype)))
    there = native_bits(chunk) != fill
    inside = np.zeros(chunk.shape, bool)
    inside[:t, :, :y, :x] = True
    assert not (there & ~inside).any()
    if not there.any():
        assert (t, y, x) == (0, 0, 0)
    else:
        assert there[t - 1].any()
        assert there[:, :, y - 1].any()
        assert there[..., x - 1].any()


def test_extent_of_an_edge_chunk() -> None:
    chunk = np.zeros((4, 3, 32, 32), "u2")
    assert extent(chunk, 0) == extent(chunk, None) == (0, 0, 0)
    chunk[0, 1, 4, 0] = 7
    assert extent(chunk, 0) == (1, 5, 1)
    chunk[2, 0, 0, 20] = 7
    assert extent(chunk, 0) == extent(chunk, None) == (3, 5, 21)
    assert extent(chunk, 65535) == (4, 32, 32)
    assert extent(np.full((2, 1, 3, 4), -9999, "i2"), -9999.0) == (0, 0, 0)
    assert extent(np.full((2, 1, 3, 4), np.nan, "f4"), np.nan) == (0, 0, 0)
    # only one NaN of the many is fill; the others are kept apart, bit for bit
    assert extent(-np.full((2, 1, 3, 4), np.nan, "f4"), np.nan) == (2, 3, 4)
    assert extent(np.full((2, 1, 3, 4), -0.0, "f4"), 0) == (2, 3, 4)
    assert extent(np.ones((0, 1, 3, 4), "u2"), 0) == (0, 0, 0)


def swath(slope: float = 0.2, *, shift: int = 0) -> np.ndarray:
    """(12, 256, 256): an edge, in each band ``shift`` pixels further than in the one before."""
    y, x = np.mgrid[:256, :256]
    return np.stack([x + slope * y > 120 + shift * band for band in range(12)])


def test_masks_are_cheap() -> None:
    """Bytes, for 4 dates of 12 bands of 256 x 256."""
    whole = np.zeros((4, 12, 256, 256), bool)

    def size(mask: np.ndarray) -> int:
        data = encode_mask(mask)
        np.testing.assert_array_equal(decode_mask(data, mask.shape), mask)
        return len(data)

    date = whole.copy()
    date[1] = True
    assert size(date) < 30
    band = whole.copy()
    band[:, 9] = True
    assert size(band) < 30
    one = whole.copy()
    one[2, 3, 100, 100] = True
    assert size(one) < 30
    edge = whole.copy()
    edge[0], edge[2] = swath(), swath(-0.1)
    assert size(edge) < 120
    edges = whole.copy()
    edges[0] = swath(shift=3)
    assert size(edges) < 400
    rng = np.random.default_rng(0)
    clouds = whole.copy()
    y, x = np.mgrid[:256, :256]
    for date, centres in zip(clouds, rng.uniform(0, 256, (4, 25, 2))):
        date[:] = np.any([(y - a) ** 2 + (x - b) ** 2 < a * b % 400 for a, b in centres], axis=0)
    packed = zlib.compress(np.packbits(clouds[:, 0]).tobytes(), 9)
    assert size(clouds) < len(packed) / 2
    noise = rng.random((2, 3, 64, 64)) < 0.5
    assert size(noise) < noise.size / 8 * 1.2


def test_nothing_special_is_no_bytes() -> None:
    chunk = np.ones((2, 3, 8, 8), "u2")
    assert pack_specials(chunk, 0) == pack_specials(chunk, None) == (b"", None)
    chunk[0, 0, 0, 0] = 0
    assert pack_specials(chunk, None) == (b"", None)  # without nodata every integer is valid
    assert len(pack_specials(chunk, 0)[0]) < 20
    zeros = np.array([0.0, -0.0], "f4").reshape(1, 1, 1, 2)
    assert pack_specials(zeros, None)[0] == b""  # -0.0 is an ordinary value
    assert pack_specials(zeros, -1.0)[0] == b""


def test_several_patterns_are_cheap_where_they_are_regions() -> None:
    chunk = np.ones((2, 12, 128, 128), "f4")
    chunk[0, :, :40] = -9999
    chunk[:, :, 100:] = np.nan
    chunk[1, 3, :, :7] = np.inf
    data, _ = pack_specials(chunk, -9999)
    assert len(data) < 200


@given(st.binary(max_size=60), st.sampled_from(["u2", "f4"]))
@settings(deadline=None, max_examples=150)
def test_any_bytes_are_an_error_or_a_mask(data: bytes, dtype: str) -> None:
    shape = (1, 2, 9, 35)
    try:
        mask, values = unpack_specials(data, shape, dtype, 0)
    except StreamError:
        return
    if mask is not None:
        assert mask.shape == shape
        assert all((v == 0).all() or not np.isfinite(v).any() for v in values if v.size)


def damaged_cases() -> list[bytes]:
    chunk = np.ones((1, 2, 40, 40), "f4")
    chunk[0, 0, 3:20, 5:] = 0
    chunk[0, 1, :7] = np.nan
    few = pack_specials(chunk, 0)[0]
    as_bits(chunk)[0, 1, 7] = np.arange(0x7FC00001, 0x7FC00001 + 40, dtype="u4")
    many = pack_specials(chunk, 0)[0]
    assert few[0] == 2
    assert many[0] == 0
    return [few, many]


@pytest.mark.parametrize("kind", [0, 1])
def test_truncated_or_longer_specials_are_errors(kind: int) -> None:
    data = damaged_cases()[kind]
    for end in range(1, len(data)):
        with pytest.raises(StreamError, match="missing pixels"):
            unpack_specials(data[:end], (1, 2, 40, 40), "f4", 0)
    with pytest.raises(StreamError, match="missing pixels"):
        unpack_specials(data + b"\0", (1, 2, 40, 40), "f4", 0)
    with pytest.raises(StreamError):
        unpack_specials(data, (1, 2, 40, 400), "f4", 0)


def test_hostile_specials() -> None:
    shape = (1, 1, 8, 8)
    where = encode_mask(np.ones(shape, bool))
    length = struct.pack("<I", len(where))
    bomb = zlib.compress(bytes(10**8), 9)
    nan = struct.pack("<I", 0x7FC00000)
    half = encode_mask(np.arange(64).reshape(shape) < 32)
    inf = struct.pack("<I", 0x7F800000)
    cases = {
        "bytes that are there": b"\0" + length + where + bomb,
        "do not take": b"\0" + length + where + zlib.compress(nan * 63),
        "claim 200": b"\xc8" + nan * 200 + where,
        "neither nodata nor NaN": b"\1" + struct.pack("<f", 3.0) + where,
        "where no pixel is missing": b"\2"
        + nan
        + inf
        + struct.pack("<I", len(half))
        + half
        + where,
        "end after": b"\2" + nan,
        "none is there": b"\1" + nan + encode_mask(np.zeros(shape, bool)),
    }
    for part, data in cases.items():
        with pytest.raises(StreamError, match=f"missing pixels.*{part}"):
            unpack_specials(data, shape, "f4", None)
    with pytest.raises(StreamError, match="neither nodata nor NaN"):
        unpack_specials(b"\1" + struct.pack("<H", 7) + where, shape, "u2", 0)


def test_damage_anywhere_never_escapes_as_another_error() -> None:
    rng = np.random.default_rng(0)
    for data in damaged_cases():
        for _ in range(150):
            bad = bytearray(data)
            bad[rng.integers(len(bad))] ^= 1 << rng.integers(8)
            try:
                mask, _ = unpack_specials(bytes(bad), (1, 2, 40, 40), "f4", 0)
            except StreamError:
                continue
            assert mask is None or mask.shape == (1, 2, 40, 40)


def test_masks_without_pixels() -> None:
    for shape in [(0, 3, 4, 5), (2, 3, 0, 5), (1, 1, 1, 1)]:
        mask = np.zeros(shape, bool)
        np.testing.assert_array_equal(decode_mask(encode_mask(mask), shape), mask)


def test_the_code_of_a_mask_does_not_change() -> None:
    """The bytes are part of the format: what is written must be readable for ever."""
    y, x = np.mgrid[:70, :45]
    mask = np.stack([(x * x + y * y) % 97 < 9, x + y > 60, x + y > 61])[None]
    mask = np.concatenate([mask, mask[:, ::-1]])
    data = encode_mask(mask)
    assert (len(data), zlib.crc32(data)) == (424, 0xD66922FF)
    np.testing.assert_array_equal(decode_mask(data, mask.shape), mask)


@pytest.mark.parametrize(
    ("dtype", "parts"),
    [
        ("f8", ["float64", '.astype("float32")']),
        ("f2", ["float16", '.astype("float32")']),
        ("u1", ["uint8", '.astype("uint16")']),
        ("i8", ["int64", "astype"]),
        ("?", ["bool", "masks"]),
        ("U3", ["<U3"]),
        ("O", ["object"]),
        ("M8[s]", ["datetime64"]),
    ],
)
def test_other_dtypes_name_the_remedy(dtype: str, parts: list[str]) -> None:
    with pytest.raises(TecError) as error:
        find_specials(np.empty((1, 1, 2, 2), dtype), None)
    for part in parts:
        assert part in str(error.value)


def test_dtype_names() -> None:
    for name in ("uint16", "int16", "float32"):
        assert {dtype_name(np.dtype(name).newbyteorder(o)) for o in "<>="} == {name}


@pytest.mark.parametrize(
    ("nodata", "dtype"),
    [
        (-9999, "uint16"),
        (65536, "uint16"),
        (0.5, "uint16"),
        (np.nan, "int16"),
        (np.inf, "int16"),
        (40000, "int16"),
        (1e39, "float32"),
    ],
)
def test_nodata_that_cannot_occur(nodata: float, dtype: str) -> None:
    with pytest.raises(TecError, match=rf"nodata {re.escape(str(nodata))} .*pass the value"):
        nodata_value(nodata, dtype)


def test_nodata_values() -> None:
    assert nodata_value(None, ">u2") is None
    assert nodata_value(0.0, ">u2") == 0
    assert type(nodata_value(0.0, ">u2")) is np.uint16
    assert nodata_value(0.1, "f4") == np.float32(0.1)
    assert np.isnan(nodata_value(np.nan, "f4"))
    assert nodata_value(-np.inf, "f4") == -np.inf
    assert fill_value(None, "f4") == 0
    assert as_bits(np.array(fill_value(-np.nan, "f4")))[()] == 0x7FC00000


def test_wrong_dims() -> None:
    for function in (extent, find_specials):
        with pytest.raises(TecError, match=r"\(3, 4, 5\).*time, band, y, x"):
            function(np.zeros((3, 4, 5), "u2"), 0)
