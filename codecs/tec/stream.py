"""The byte layout of one chunk, version 5: FORMAT.md is the norm, this module reads and writes it.

Light on purpose: nothing here imports torch or numba, so that tools can look at a stream cheaply.
"""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from .coarse import LAST_GRID
from .config import FORECASTS, TOKENS, CodecConfig
from .errors import StreamError
from .sensors import SENSORS

MAGIC = b"XTEC"
VERSION = 5
#: Versions that are read.
VERSIONS = (3, 4, 5)
MODELS = {"none": 0, "fp": 1, "elic": 2, "tt": 3, "flex": 4}
#: Models of which a date may leave out channel groups.
GROUPED = ("elic", "tt", "flex")
DTYPES = {"uint16": 1, "int16": 2, "float32": 3}
SENSOR_CODES = {"S2L2A": 1, "S2L1C": 2}
WEIGHTS_CODES = {"file": 0, "builtin": 1, "terracodec": 2, "terracodec:lronly": 3}

_NODATA, _OFFSET, _SCALE, _ORDER, _EXTENT, _GRIDS, _RANGES = 1, 2, 4, 8, 16, 32, 64
_RESIDUAL = 128
DIGEST = 8  # bytes of the sha256 of the weights that go into a stream
#: No chunk may declare more samples than this: 2**36 is 64 times a (100, 13, 8192, 8192) cube of
# one byte.
MAX_SAMPLES = 2**36
#: No error bound is larger, in steps.
MAX_BOUND = 2**24
#: What one step of floats is worth lies between these, exclusive.
STEPS = (1e-12, 1e12)
#: Nor is one decoded that declares more than this, unless the caller allows for it: 60 bytes may
#: declare a chunk of nodata of any size.
MAX_DECODED = 2**30


@dataclass(frozen=True)
class Date:
    """The coded latents of one date.

    Attributes
    ----------
    checksum : CRC-32 of the decoded latent, float32 little-endian, (channel, y, x) in C order
    decisions : the rounding decisions (`tec.entropy.portable`)
    payload : the rANS stream (`tec.entropy.rans`)
    skipped : channel groups of the latent, from the last, that are not coded: they are 0
    """

    checksum: int
    decisions: bytes
    payload: bytes
    skipped: int = 0

    @property
    def nbytes(self) -> int:
        """Of what is coded."""
        return len(self.decisions) + len(self.payload)


@dataclass(frozen=True)
class Residual:
    """What the lossy picture lacks, or all there is where there is none (`tec.residual`).

    Attributes
    ----------
    checksums : of each coded date, CRC-32 of its decoded pixels (band, y, x), little-endian
    decisions : of each coded date, the rounding decisions of the picture; empty without one
    data : what `tec.residual.encode` gave
    """

    checksums: tuple[int, ...]
    decisions: tuple[bytes, ...]
    data: bytes


class Parts(NamedTuple):
    """A stream taken apart."""

    header: Header
    specials: bytes
    dates: list[Date]
    residual: Residual | None


@dataclass(frozen=True)
class Header:
    """What a stream says of itself.

    Attributes
    ----------
    config : settings of the codec; ``weights`` is an id ("builtin", "terracodec",
        "terracodec:lronly", "file"), ``quality`` is ``how`` ((16,) where no date was coded)
    model : the model that coded this chunk; differs from ``config.model`` only where routing chose
    digest : first 8 bytes of the sha256 of the weights
    dtype : "uint16", "int16" or "float32"
    shape : (time, band, y, x) of the chunk
    extent : (time, y, x) that was coded, or (0, 0, 0); the rest is nodata
    margin : rounding margin, 2 bytes (`tec.entropy.portable.Margin`)
    how : for model "flex" the tokens sent of each coded date, 0 to 16; empty for the others
    told : for models "tt" and "flex" the dates before that each coded date is told of, 0 to 2;
        empty for the others
    grids : for each band the code of its grid (`tec.coarse`), 0 where it is that of the pixels;
        empty where all are
    bounds : with a residual, for each band how far a decoded value may lie from the true one, in
        steps; empty without
    step : with a residual, what one step is in stored units (1 for integers)
    ranges : for each band its lowest and highest valid value, in the dtype of the chunk: what is
        decoded stays within; empty where that is not told
    nbytes : length of the whole stream
    """

    config: CodecConfig
    model: str
    digest: bytes
    dtype: str
    shape: tuple[int, int, int, int]
    extent: tuple[int, int, int]
    margin: bytes = b"\0\0"
    how: tuple[int, ...] = ()
    told: tuple[int, ...] = ()
    grids: tuple[int, ...] = ()
    ranges: tuple[tuple[float, float], ...] = ()
    bounds: tuple[int, ...] = ()
    step: float = 1.0
    nbytes: int = field(default=0, compare=False)


def weights_id(weights: str) -> str:
    """The id a stream keeps: a path means nothing on another machine, so it becomes "file"."""
    return weights if weights in WEIGHTS_CODES else "file"


def pack(
    header: Header, specials: bytes, dates: list[Date], residual: Residual | None = None
) -> bytes:
    """Put a stream together.

    Parameters
    ----------
    header : ``nbytes`` is ignored
    specials : the pixels set aside (`tec.samples`)
    dates : one a coded date, ``header.extent[0]`` of them; none where the model is "none"
    residual : where ``header.bounds`` are there
    """
    config = header.config
    bands = SENSORS[config.sensor].bands
    places = [bands.index(b) for b in config.bands]
    t, _, y, x = header.shape
    in_order = places == sorted(places)
    flags = (
        (config.nodata is not None) * _NODATA
        | (config.offset != 0) * _OFFSET
        | (config.scale != 1) * _SCALE
        | (not in_order) * _ORDER
        | (header.extent != (t, y, x)) * _EXTENT
        | any(header.grids) * _GRIDS
        | bool(header.ranges) * _RANGES
        | bool(header.bounds) * _RESIDUAL
    )
    out = bytearray(MAGIC)
    out += bytes(
        [VERSION, MODELS[header.model], DTYPES[header.dtype], flags, SENSOR_CODES[config.sensor]]
    )
    if header.model != "none":
        out += header.margin + bytes([WEIGHTS_CODES[weights_id(config.weights)]]) + header.digest
        out += struct.pack("<f", config.compression)
    out += struct.pack("<H", sum(1 << p for p in places))
    if not in_order:
        out += bytes(places)
    if config.nodata is not None:
        out += np.array(config.nodata, _numpy_dtype(header.dtype)).tobytes()
    if config.offset != 0:
        out += _float(config.offset)
    if config.scale != 1:
        out += _float(config.scale)
    for n in (t, y, x) + (header.extent if flags & _EXTENT else ()):
        out += _varint(n)
    if any(header.grids):
        out += bytes(header.grids)
    out += pack_ranges(header.ranges, header.dtype)
    if header.model == "flex":
        out.append(FORECASTS.index(config.forecast))
    out += bytes(header.how) + bytes(header.told)
    if header.bounds:
        out += b"".join(map(_varint, header.bounds))
        if header.dtype == "float32":
            out += _float(header.step)
    out += _varint(len(specials))
    for date in dates:
        out += struct.pack("<I", date.checksum)
        out += bytes([date.skipped] if header.model in GROUPED else [])
        out += _varint(len(date.decisions)) + _varint(len(date.payload))
    if residual is not None:
        for checksum, decisions in zip(residual.checksums, residual.decisions, strict=True):
            out += struct.pack("<I", checksum)
            if header.model != "none":
                out += _varint(len(decisions))
        out += _varint(len(residual.data))
    out += specials
    for date in dates:
        out += date.decisions + date.payload
    if residual is not None:
        out += b"".join(residual.decisions) + residual.data
    return bytes(out + struct.pack("<I", zlib.crc32(out)))


def unpack(data: bytes | memoryview) -> Parts:
    """Take a stream apart. Raises StreamError unless every byte is in order."""
    view = memoryview(data).cast("B")
    _check_crc(view)
    reader = _Reader(view[:-4])
    header = _read_header(reader, len(view))
    lossy = header.model != "none"
    grouped = header.model in GROUPED and view[4] >= 5
    n_specials = reader.varint("length of the specials")
    sizes, checks = [], []
    for i in range(header.extent[0] if lossy else 0):
        (checksum,) = struct.unpack("<I", reader.take(4, f"checksum of date {i}"))
        sizes.append(
            (
                checksum,
                reader.take(1, f"groups left out of date {i}")[0] if grouped else 0,
                reader.varint("length of the decisions"),
                reader.varint("length of the payload"),
            )
        )
    n_residual = 0
    if header.bounds:
        for i in range(header.extent[0]):
            (checksum,) = struct.unpack("<I", reader.take(4, f"checksum of the pixels of date {i}"))
            checks.append((checksum, reader.varint("length of the decisions") if lossy else 0))
        n_residual = reader.varint("length of the residual")
    specials = bytes(reader.take(n_specials, "specials"))
    dates = [
        Date(
            checksum,
            bytes(reader.take(a, f"decisions of date {i}")),
            bytes(reader.take(b, f"payload of date {i}")),
            skipped,
        )
        for i, (checksum, skipped, a, b) in enumerate(sizes)
    ]
    residual = None
    if header.bounds:
        residual = Residual(
            tuple(checksum for checksum, _ in checks),
            tuple(bytes(reader.take(n, "decisions of the picture")) for _, n in checks),
            bytes(reader.take(n_residual, "residual")),
        )
    if reader.left:
        raise StreamError(
            f"{reader.left} bytes too many behind the last section: not a stream that xtec wrote"
        )
    return Parts(header, specials, dates, residual)


def peek(data: bytes | memoryview) -> Header:
    """The header of a stream, without checking or decoding the rest."""
    view = memoryview(data).cast("B")
    return _read_header(_Reader(view), len(view))


def _check_crc(view: memoryview) -> None:
    _check_magic(view)
    if len(view) < 8 or zlib.crc32(view[:-4]) != struct.unpack("<I", view[-4:])[0]:
        raise StreamError(
            f"checksum of the stream ({len(view)} bytes) does not match: it is damaged or "
            "truncated; read it again from another copy"
        )


def _check_magic(view: memoryview) -> None:
    if bytes(view[:4]) != MAGIC:
        raise StreamError(f"not an xtec stream: it starts with {bytes(view[:4])!r}, not {MAGIC!r}")
    if len(view) > 4 and view[4] not in VERSIONS:
        raise StreamError(
            f"stream format version {view[4]}, this xtec reads versions "
            f"{VERSIONS[0]} to {VERSION}: install another xtec"
        )


def _read_header(reader: _Reader, nbytes: int) -> Header:
    _check_magic(reader.view)
    reader.take(5, "magic")
    model_code, dtype_code, flags, sensor_code = reader.take(4, "header")
    model = _name(MODELS, model_code, "model")
    if reader.view[4] < 4 and (flags & _RESIDUAL or model == "none"):
        raise StreamError("a stream of version 3 holds no residual: it is damaged or made up")
    dtype = _name(DTYPES, dtype_code, "dtype")
    sensor = _name(SENSOR_CODES, sensor_code, "sensor")
    margin, weights, digest, compression = b"\0\0", "builtin", bytes(DIGEST), 20.0
    if model != "none":
        margin = bytes(reader.take(2, "margin"))
        weights = _name(WEIGHTS_CODES, reader.take(1, "weights")[0], "weights")
        digest = bytes(reader.take(DIGEST, "weights digest"))
        (compression,) = struct.unpack("<f", reader.take(4, "compression"))
    elif not flags & _RESIDUAL:
        raise StreamError("a stream without a network must hold a residual")
    if flags & _RESIDUAL and flags & (_GRIDS | _RANGES):
        raise StreamError("a stream with a residual needs no grids and ranges: it is made up")
    (mask,) = struct.unpack("<H", reader.take(2, "bands"))
    bands = SENSORS[sensor].bands
    places = [i for i in range(16) if mask >> i & 1]
    if flags & _ORDER:
        ordered = list(reader.take(len(places), "band order"))
        if sorted(ordered) != places:
            raise StreamError("the order of the bands in the header is not one of its bands")
        places = ordered
    if not places or max(places) >= len(bands):
        raise StreamError(f"band mask {mask:#x} does not fit sensor {sensor}")
    numpy_dtype = _numpy_dtype(dtype)
    nodata = None
    if flags & _NODATA:
        value = np.frombuffer(reader.take(numpy_dtype.itemsize, "nodata"), numpy_dtype)[0].item()
        nodata = value
    offset = reader.number("offset") if flags & _OFFSET else 0.0
    scale = reader.number("scale") if flags & _SCALE else 1.0
    t, y, x = (reader.varint("shape") for _ in range(3))
    extent = (t, y, x)
    if flags & _EXTENT:
        extent = (reader.varint("extent"), reader.varint("extent"), reader.varint("extent"))
    shape = (t, len(places), y, x)
    if (
        min(shape) < 1
        or t * len(places) * y * x > MAX_SAMPLES
        or any(e > n for e, n in zip(extent, (t, y, x)))
        or (0 in extent and any(extent))
    ):
        raise StreamError(f"impossible shape {shape} or extent {extent} in the header")
    grids: tuple[int, ...] = ()
    if flags & _GRIDS:
        grids = tuple(reader.take(len(places), "grids of the bands"))
        if not any(grids) or max(grids) > LAST_GRID:
            raise StreamError(f"unknown grids of bands {grids} in the header: install a newer xtec")
    ranges: tuple[tuple[float, float], ...] = ()
    if flags & _RANGES:
        ranges = tuple(_read_range(reader, numpy_dtype) for _ in places)
    how: tuple[int, ...] = ()
    flex: dict[str, Any] = {}
    if model == "flex":
        forecast = reader.take(1, "forecast")[0]
        if forecast >= len(FORECASTS):
            raise StreamError(f"unknown forecast {forecast} in the header: install a newer xtec")
        how = tuple(reader.take(extent[0], "quality of the dates"))
        if any(k > TOKENS for k in how):
            raise StreamError(f"unknown quality {max(how)} in the header: install a newer xtec")
        flex = {"quality": how or None, "forecast": FORECASTS[forecast]}
    told: tuple[int, ...] = ()
    if model in ("tt", "flex"):
        told = tuple(reader.take(extent[0], "dates told of"))
        if any(k not in (0, min(t, 2)) for t, k in enumerate(told)):
            raise StreamError(f"dates cannot be told of {told} dates before: install a newer xtec")
    bounds: tuple[int, ...] = ()
    step = 1.0
    if flags & _RESIDUAL:
        bounds = tuple(reader.varint("bound of the error") for _ in places)
        if max(bounds) > MAX_BOUND:
            raise StreamError(f"impossible bound {max(bounds)} of the error in the header")
        if dtype == "float32":
            step = reader.number("step of the values")
            if not STEPS[0] < step < STEPS[1]:
                raise StreamError(f"impossible step {step} of the values in the header")
    try:
        config = CodecConfig(
            model=model,
            compression=compression,
            weights=weights,
            sensor=sensor,
            bands=tuple(bands[p] for p in places),
            nodata=nodata,
            offset=offset,
            scale=scale,
            max_error=tuple(bound * step / scale for bound in bounds) or None,
            **flex,
        )
    except StreamError:
        raise
    except (ValueError, ArithmeticError) as error:  # a scale of 0
        raise StreamError(f"the header makes no sense: {error}") from error
    return Header(
        config=config,
        model=model,
        digest=digest,
        dtype=dtype,
        shape=shape,
        extent=extent,
        margin=margin,
        how=how,
        told=told,
        grids=grids,
        ranges=ranges,
        bounds=bounds,
        step=step,
        nbytes=nbytes,
    )


def pack_ranges(ranges: tuple[tuple[float, float], ...], dtype: str) -> bytes:
    """Header field ``ranges``: of integers the lowest (zigzag) and the width as varints."""
    if dtype == "float32":
        return np.array(ranges, "<f4").tobytes()
    pairs = ((int(low), int(high)) for low, high in ranges)
    return b"".join(_varint(low << 1 ^ low >> 63) + _varint(high - low) for low, high in pairs)


def _read_range(reader: _Reader, dtype: np.dtype) -> tuple[float, float]:
    what = "range of a band"
    if dtype.kind == "f":
        low, high = np.frombuffer(reader.take(8, what), dtype).tolist()
        fits = -math.inf < low <= high < math.inf
    else:
        code = reader.varint(what)
        low = code >> 1 ^ -(code & 1)
        high = low + reader.varint(what)
        limits = np.iinfo(dtype)
        fits = limits.min <= low and high <= limits.max
    if not fits:
        raise StreamError(f"impossible range of a band in the header: {low} to {high}")
    return low, high


def _name(codes: dict[str, int], code: int, what: str) -> str:
    for name, value in codes.items():
        if value == code:
            return name
    raise StreamError(f"unknown {what} code {code} in the header: install a newer xtec")


def _numpy_dtype(name: str) -> np.dtype:
    return np.dtype(name).newbyteorder("<")


def _varint(n: int) -> bytes:
    """LEB128: seven bits a byte, lowest first, the high bit says that more follow."""
    out = bytearray()
    while n >= 0x80:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    out.append(n)
    return bytes(out)


def _float(x: float) -> bytes:
    """float64 without its lowest bytes where they are zeros, after the number of those that are
    there."""
    data = struct.pack("<d", x).lstrip(b"\0")
    return bytes([len(data)]) + data


class _Reader:
    def __init__(self, view: memoryview) -> None:
        self.view = view
        self.at = 0

    @property
    def left(self) -> int:
        return len(self.view) - self.at

    def take(self, n: int, what: str) -> memoryview:
        if n > self.left:
            raise StreamError(
                f"truncated stream: {what} wants {n} bytes at {self.at}, {self.left} are left"
            )
        self.at += n
        return self.view[self.at - n : self.at]

    def number(self, what: str) -> float:
        n = self.take(1, what)[0]
        if n > 8:
            raise StreamError(f"{what} takes {n} bytes: a number has at most 8")
        return struct.unpack("<d", bytes(8 - n) + bytes(self.take(n, what)))[0]

    def varint(self, what: str) -> int:
        value = 0
        for shift in range(0, 63, 7):
            byte = self.take(1, what)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise StreamError(f"{what} is not a number of at most 63 bits")
