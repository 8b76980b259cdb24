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
from tec.coarse import LAST_GRID, Grid
from tec.sensors import SENSORS

CONFIG = CodecConfig(model="elic", compression=20.0, bands=SENSORS["S2L2A"].bands, nodata=0)
HEADER = stream.Header(
    CONFIG, "elic", bytes(range(8)), "uint16", (2, 12, 40, 50), (2, 40, 50), b"\x0e\x0e"
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
    t, y, x = (draw(st.integers(1, 600)) for _ in range(3))
    extent = draw(
        st.sampled_from([(t, y, x), (0, 0, 0)])
        | st.tuples(st.integers(1, t), st.integers(1, y), st.integers(1, x))
    )
    model = draw(st.sampled_from(sorted(stream.MODELS)))
    weights = ["builtin", "terracodec"]
    how: list[int] = []
    told: list[int] = []
    if model in ("tt", "flex"):
        told = [draw(st.sampled_from([0, min(date, 2)])) for date in range(extent[0])]
    flex = {}
    if model == "flex":
        weights.append("terracodec:lronly")
        how = draw(st.lists(st.integers(0, 16), min_size=extent[0], max_size=extent[0]))
        flex = {"quality": how or None, "forecast": draw(st.sampled_from(["mean", "sample"]))}
    bounds: tuple[int, ...] = ()
    step = 1.0
    if model == "none" or draw(st.booleans()):
        bounds = tuple(draw(st.sampled_from([0, 1, 300])) for _ in bands)
        step = 0.125 if dtype == "float32" else 1.0
    if model == "none":
        weights = ["builtin"]
    scale = draw(st.sampled_from([1.0] if bounds else [1.0, 1e-4]))
    if bounds:
        flex["max_error"] = tuple(bound * step / scale for bound in bounds)
    lmbda = float(np.float32(draw(st.floats(0.5, 700, width=32))))
    config = CodecConfig(
        model=model,
        compression=20.0 if model == "none" else lmbda,
        weights=draw(st.sampled_from(weights)),
        sensor=sensor,
        bands=tuple(bands),
        nodata=nodata,
        offset=draw(st.sampled_from([0.0, 1000.0, -12.5, 1 / 3])),
        scale=scale,
        **flex,
    )
    digest = bytes(8) if model == "none" else draw(st.binary(min_size=8, max_size=8))
    codes = [0] if bounds else [0, 1, 17, LAST_GRID]
    grids = tuple(draw(st.sampled_from(codes)) for _ in bands)
    ranges = ()
    if not bounds and draw(st.booleans()):
        limits = None if dtype == "float32" else np.iinfo(dtype)
        values = (
            st.floats(width=32, allow_nan=False, allow_infinity=False)
            if limits is None
            else st.integers(int(limits.min), int(limits.max))
        )
        pairs = st.tuples(values, values).map(lambda pair: (min(pair), max(pair)))
        ranges = tuple(draw(pairs) for _ in bands)
    return stream.Header(
        config,
        model,
        digest,
        dtype,
        (t, len(bands), y, x),
        extent,
        b"\0\0" if model == "none" else b"\1\2",
        tuple(how),
        tuple(told),
        grids if any(grids) else (),
        ranges,
        bounds,
        step,
    )


@given(headers(), st.binary(max_size=30), st.binary(max_size=200))
@settings(max_examples=60, deadline=None)
def test_what_is_packed_comes_back(header, specials, payload):
    grouped = header.model in stream.GROUPED
    dates = [
        stream.Date(i, payload[:i], payload, i % 7 if grouped else 0)
        for i in range(header.extent[0])
    ]
    residual = None
    if header.bounds:
        checks = tuple(range(header.extent[0]))
        notes = tuple(b"" if header.model == "none" else payload[:i] for i in checks)
        residual = stream.Residual(checks, notes, payload)
    if header.model == "none":
        dates = []
    data = stream.pack(header, specials, dates, residual)
    back = stream.unpack(data)
    assert back == (header, specials, dates, residual)
    assert stream.peek(data) == header
    assert back.header.nbytes == len(data)


def test_older_versions_know_nothing_of_groups():
    """A stream of version 4 is one of version 5 without a byte a date."""
    data = stream.pack(HEADER, b"mask", DATES)
    plain = stream.pack(
        replace(HEADER, model="fp", config=replace(CONFIG, model="fp")), b"mask", DATES
    )
    assert len(data) == len(plain) + len(DATES)
    older = bytearray(plain[:-4])
    older[4:6] = 4, stream.MODELS["elic"]
    back = stream.unpack(seal(bytes(older)))
    assert back == (HEADER, b"mask", DATES, None)


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
        (8, 5, "sensor code 5"),
        (11, 9, "weights code 9"),
    ],
)
def test_what_this_version_does_not_know_is_named(place, value, says):
    body = bytearray(stream.pack(HEADER, b"", DATES)[:-4])
    body[place] = value
    with pytest.raises(StreamError, match=says):
        stream.unpack(seal(bytes(body)))


TT = replace(HEADER, config=replace(CONFIG, model="tt"), model="tt", told=(0, 1))
FLEX = replace(
    HEADER,
    config=replace(CONFIG, model="flex", quality=(16, 4)),
    model="flex",
    how=(16, 4),
    told=(0, 1),
)


def place_of(header: stream.Header, name: str) -> int:
    """Where the first byte of a field of one byte a date is."""
    values = getattr(header, name)
    body = stream.pack(header, b"", DATES)
    other = stream.pack(replace(header, **{name: (values[0] ^ 1, *values[1:])}), b"", DATES)
    return next(i for i, (a, b) in enumerate(zip(body, other)) if a != b)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_the_quality_of_a_date_is_read_or_refused(data):
    body = bytearray(stream.pack(FLEX, b"", DATES)[:-4])
    date, value = data.draw(st.integers(0, 1)), data.draw(st.integers(0, 255))
    body[place_of(FLEX, "how") + date] = value
    if value <= 16:
        assert stream.unpack(seal(bytes(body)))[0].how[date] == value
        return
    with pytest.raises(StreamError, match=f"unknown quality {value}"):
        stream.unpack(seal(bytes(body)))


@pytest.mark.parametrize("header", [TT, FLEX], ids=["tt", "flex"])
@given(st.data())
@settings(max_examples=60, deadline=None)
def test_dates_told_of_are_read_or_refused(header, data):
    body = bytearray(stream.pack(header, b"", DATES)[:-4])
    date, value = data.draw(st.integers(0, 1)), data.draw(st.integers(0, 255))
    body[place_of(header, "told") + date] = value
    if value in (0, date):
        assert stream.unpack(seal(bytes(body)))[0].told[date] == value
        return
    with pytest.raises(StreamError, match="cannot be told of"):
        stream.unpack(seal(bytes(body)))


def test_a_number_has_at_most_eight_bytes():
    config = replace(CONFIG, offset=1000.0)
    data = stream.pack(replace(HEADER, config=config), b"", DATES)
    assert len(data) == len(stream.pack(HEADER, b"", DATES)) + 4  # 2 bytes of 1000.0 are not 0
    body = bytearray(data[:-4])
    place = body.index(struct.pack("<d", 1000.0).lstrip(b"\0")) - 1
    body[place] = 9
    with pytest.raises(StreamError, match="offset takes 9 bytes"):
        stream.unpack(seal(bytes(body)))


def test_grids_are_read_or_refused():
    bands = len(CONFIG.bands)
    header = replace(HEADER, grids=(LAST_GRID, *(0,) * (bands - 1)))
    data = stream.pack(header, b"", DATES)
    assert stream.unpack(data)[0].grids == header.grids
    assert len(data) == len(stream.pack(HEADER, b"", DATES)) + bands
    place = data.index(bytes([LAST_GRID, *(0,) * (bands - 1)]))
    for value in (LAST_GRID + 1, 255, 0):  # 0: the flag promises one
        body = bytearray(data[:-4])
        body[place] = value
        with pytest.raises(StreamError, match="unknown grids"):
            stream.unpack(seal(bytes(body)))


@pytest.mark.parametrize(
    ("dtype", "field", "says"),
    [
        ("uint16", "feff07 01", "65535 to 65536"),
        ("uint16", "01 00", "-1 to -1"),
        ("int16", "feff03 02", "32767 to 32769"),
        ("int16", "ffff7f 00", "impossible range"),
        ("float32", "0000803f 0000003f", "1.0 to 0.5"),
        ("float32", "0000c07f 0000c07f", "nan to nan"),
        ("float32", "00000000 0000807f", "0.0 to inf"),
        ("uint16", "ffffffffffffffffff7f 00", "not a number"),
    ],
)
def test_a_range_is_possible_or_refused(dtype, field, says):
    header = replace(
        HEADER,
        config=replace(CONFIG, nodata=None),
        dtype=dtype,
        ranges=((5, 5),) * len(CONFIG.bands),
    )
    whole = stream.pack_ranges(header.ranges, dtype)
    body = stream.pack(header, b"", DATES)[:-4]
    assert stream.unpack(seal(body))[0].ranges == header.ranges
    other = bytes.fromhex(field) + whole[len(whole) // 12 :]
    with pytest.raises(StreamError, match=says):
        stream.unpack(seal(body.replace(whole, other)))


def test_the_forecast_is_read_or_refused():
    place = place_of(FLEX, "how") - 1
    for value in (0, 1, 2, 255):
        body = bytearray(stream.pack(FLEX, b"", DATES)[:-4])
        body[place] = value
        if value < 2:
            header = stream.unpack(seal(bytes(body))).header
            assert header.config.forecast == ("mean", "sample")[value]
            assert header.config.quality == (16, 4)
        else:
            with pytest.raises(StreamError, match=f"unknown forecast {value}"):
                stream.unpack(seal(bytes(body)))


def test_only_tt_and_flex_pay_for_their_fields():
    """A byte a date, for flex two, and one more for the forecast."""
    size = {
        header.model: len(stream.pack(header, b"", DATES))
        for header in (HEADER, replace(HEADER, config=replace(CONFIG, model="fp")), TT, FLEX)
    }
    assert size["tt"] == size["elic"] + 2
    assert size["flex"] == size["elic"] + 5


def test_a_missing_date_is_noticed():
    body = stream.pack(TT, b"", DATES)[:-4]
    place = place_of(TT, "told")
    with pytest.raises(StreamError):
        stream.unpack(seal(body[: place + 1] + body[place + 2 :]))
    with pytest.raises(StreamError, match="dates told of wants 2 bytes"):
        stream.peek(body[: place + 1])


def test_a_stream_names_no_file():
    """Whatever a path is called, a stream says "file"; there is no room for a path in it."""
    for path in ("terracodec.pt", "terracodec/lambda-20.pt", "some/where.pt"):
        header = replace(HEADER, config=replace(CONFIG, weights=path))
        data = stream.pack(header, b"", DATES)
        assert stream.peek(data).config.weights == "file"
        assert path.encode() not in data


def test_foreign_bytes_and_trailing_bytes():
    with pytest.raises(StreamError, match="not an xtec stream"):
        stream.unpack(b"\x89PNG\r\n\x1a\n" + bytes(100))
    with pytest.raises(StreamError, match="too many"):
        stream.unpack(seal(stream.pack(HEADER, b"", DATES)[:-4] + b"more"))
    with pytest.raises(StreamError):
        stream.unpack(b"")


@pytest.mark.parametrize("extent", [(2, 0, 50), (2, 40, 0), (2, 0, 0), (0, 40, 50), (0, 0, 1)])
def test_an_extent_is_of_no_pixels_or_of_some_on_each_axis(extent):
    """Dates without a pixel have no latents to decode."""
    data = stream.pack(replace(HEADER, extent=extent), b"", DATES[: extent[0]])
    with pytest.raises(StreamError, match="impossible shape"):
        stream.unpack(data)


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


@given(st.sampled_from([TT, FLEX]), st.integers(5, 55), st.binary(max_size=30))
@settings(max_examples=300, deadline=None)
def test_hostile_bytes_about_how_raise_only_stream_errors(header, kept, junk):
    whole = stream.pack(header, b"", DATES)[:-4]
    try:
        found, _, dates, _ = stream.unpack(seal(whole[:kept] + junk + whole[kept + len(junk) :]))
    except StreamError:
        return
    # Whatever got through is whole: one way and one date for each that the extent promises.
    assert len(found.told) == len(dates) == found.extent[0]


@given(st.integers(5, 70), st.binary(max_size=30))
@settings(max_examples=300, deadline=None)
def test_hostile_bytes_about_grids_raise_only_stream_errors(kept, junk):
    whole = stream.pack(replace(HEADER, grids=(0, 1, LAST_GRID) * 4), b"", DATES)[:-4]
    try:
        found, _, _, _ = stream.unpack(seal(whole[:kept] + junk + whole[kept + len(junk) :]))
    except StreamError:
        return
    assert not found.grids or (any(found.grids) and len(found.grids) == found.shape[1])
    for code in found.grids:
        grid = Grid.from_code(code)
        assert (0 if grid is None else grid.code) == code
