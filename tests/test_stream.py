"""The byte layout: what is packed comes back, and nothing else gets through."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tec import CodecConfig, StreamError, stream
from tec.sensors import SENSORS

CONFIG = CodecConfig(model="elic", compression=20.0, bands=SENSORS["S2L2A"].bands, nodata=0)
HEADER = stream.Header(
    CONFIG, "elic", bytes(range(16)), "uint16", (2, 12, 40, 50), (2, 40, 50), b"\x0e\x0e"
)
DATES = [stream.Date(1, b"ab", b"payload"), stream.Date(2**32 - 1, b"", b"x" * 300)]


def seal(body: bytes) -> bytes:
    """A stream whose last checksum fits, whatever else it holds."""
    return body + struct.pack("<I", zlib.crc32(body))


@st.composite
def headers(draw):
    sensor = draw(st.sampled_from(sorted(SENSORS)))
    bands = draw(st.lists(st.sampled_from(SENSORS[sensor].bands), min_size=1, unique=True))
    dtype = draw(st.sampled_from(["uint16", "int16", "float32"]))
    nodata = (
        draw(st.none() | st.integers(0, 30000))
        if dtype != "float32"
        else draw(st.none() | st.just(float("nan")))
    )
    config = CodecConfig(
        model=draw(st.sampled_from(["elic", "fp"])),
        compression=float(np.float32(draw(st.floats(0.5, 700, width=32)))),
        weights=draw(st.sampled_from(["builtin", "terracodec"])),
        sensor=sensor,
        bands=tuple(bands),
        nodata=nodata,
        offset=draw(st.sampled_from([0.0, 1000.0, -12.5])),
        scale=draw(st.sampled_from([1.0, 1e-4])),
    )
    t, y, x = (draw(st.integers(1, 600)) for _ in range(3))
    extent = draw(
        st.just((t, y, x)) | st.tuples(st.integers(0, t), st.integers(0, y), st.integers(0, x))
    )
    digest = draw(st.binary(min_size=16, max_size=16))
    return stream.Header(
        config, config.model, digest, dtype, (t, len(bands), y, x), extent, b"\1\2"
    )


@given(headers(), st.binary(max_size=30), st.binary(max_size=200))
@settings(max_examples=60, deadline=None)
def test_what_is_packed_comes_back(header, specials, payload):
    dates = [stream.Date(i, payload[:i], payload) for i in range(header.extent[0])]
    data = stream.pack(header, specials, dates)
    back, back_specials, back_dates = stream.unpack(data)
    assert (back, back_specials, back_dates) == (header, specials, dates)
    assert stream.peek(data) == header
    assert back.nbytes == len(data)


def test_a_header_is_small():
    assert len(stream.pack(replace(HEADER, extent=(0, 0, 0)), b"", [])) < 64


def test_every_flipped_bit_and_every_cut_is_noticed():
    data = stream.pack(HEADER, b"mask", DATES)
    for i in range(len(data)):
        broken = bytearray(data)
        broken[i] ^= 1 << (i % 8)
        with pytest.raises(StreamError):
            stream.unpack(bytes(broken))
        with pytest.raises(StreamError):
            stream.unpack(data[:i])
    with pytest.raises(StreamError):
        stream.unpack(data + b"\0")


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        (4, 2, "version 2"),
        (5, 9, "model code 9"),
        (6, 7, "dtype code 7"),
        (7, 128, "unknown flags"),
        (8, 5, "sensor code 5"),
    ],
)
def test_what_this_version_does_not_know_is_named(place, value, says):
    body = bytearray(stream.pack(HEADER, b"", DATES)[:-4])
    body[place] = value
    with pytest.raises(StreamError, match=says):
        stream.unpack(seal(bytes(body)))


def test_foreign_bytes_and_trailing_bytes():
    with pytest.raises(StreamError, match="not an xtec stream"):
        stream.unpack(b"\x89PNG\r\n\x1a\n" + bytes(100))
    with pytest.raises(StreamError, match="too many"):
        stream.unpack(seal(stream.pack(HEADER, b"", DATES)[:-4] + b"more"))
    with pytest.raises(StreamError):
        stream.unpack(b"")


def test_a_header_cannot_ask_for_unbounded_memory():
    huge = replace(HEADER, shape=(2**20, 12, 2**20, 2**20), extent=(0, 0, 0))
    with pytest.raises(StreamError, match="impossible shape"):
        stream.unpack(stream.pack(huge, b"", []))


@given(st.binary(max_size=120))
@settings(max_examples=200, deadline=None)
def test_hostile_headers_raise_only_stream_errors(junk):
    body = stream.pack(HEADER, b"", DATES)[:5] + junk
    with pytest.raises(StreamError):
        stream.unpack(seal(body))
