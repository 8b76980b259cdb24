"""Pixels that hold no reflectance: found, cut off or set aside, and kept bit for bit.

Special are pixels equal to nodata and, in floats, NaN and infinite ones. Trailing dates, rows and
columns of nothing but fill are not coded at all (:func:`extent`); what else is special becomes a
mask and, where several bit patterns occur, their places (:func:`pack_specials`).
"""

from __future__ import annotations

import math
import struct
import zlib
from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from .errors import StreamError, TecError

DTYPES = ("uint16", "int16", "float32")
_REMEDIES = {
    "float64": 'use .astype("float32")',
    "float16": 'use .astype("float32")',
    "uint8": 'use .astype("uint16")',
    "int8": 'use .astype("int16")',
    "bool": "leave masks out of the cube of bands",
}
_CLASSES = 8  # more bit patterns than these are stored one by one


def dtype_name(dtype: DTypeLike) -> str:
    """ "uint16", "int16" or "float32", whatever the byte order; TecError for any other dtype."""
    dtype = np.dtype(dtype)
    if dtype.name not in DTYPES:
        remedy = _REMEDIES.get(dtype.name, 'use .astype("uint16"), "int16" or "float32"')
        raise TecError(f"dtype {dtype} is not supported ({', '.join(DTYPES)} are): {remedy}")
    return dtype.name


def nodata_value(nodata: float | None, dtype: DTypeLike) -> np.generic | None:
    """``nodata`` as a scalar of the (native) dtype, or None.

    Raises
    ------
    TecError
        No pixel of this dtype can have that value.
    """
    kind = np.dtype(dtype_name(dtype)).type
    if nodata is None:
        return None
    if kind is np.float32:
        with np.errstate(over="ignore"):
            value = np.float32(nodata)
        if np.isinf(value) and not math.isinf(nodata):
            raise TecError(f"nodata {nodata!r} is too large for float32: pass the value as stored")
        return value
    low, high = int(np.iinfo(kind).min), int(np.iinfo(kind).max)
    if not (low <= nodata <= high and nodata == int(nodata)):  # NaN fails the first
        raise TecError(
            f"nodata {nodata!r} cannot occur in {kind.__name__} ({low} to {high}): pass the value "
            "that is stored, or nodata=None where no pixel is missing"
        )
    return kind(int(nodata))


def fill_value(nodata: float | None, dtype: DTypeLike) -> np.generic:
    """What stands outside the :func:`extent` of a chunk: nodata, or 0 where there is none."""
    value = nodata_value(nodata, dtype)
    if value is None:
        return np.dtype(dtype_name(dtype)).type(0)
    return np.float32(np.nan) if np.isnan(value) else value  # one NaN of the many


def as_bits(array: np.ndarray) -> np.ndarray:
    """The same memory as unsigned integers: comparing and copying these never alters a NaN."""
    return array.view(np.dtype(f"u{array.itemsize}").newbyteorder(array.dtype.byteorder))


def check_chunk(chunk: np.ndarray, ndim: int = 4) -> None:
    """TecError unless the array has this many dimensions and a supported dtype."""
    if chunk.ndim != ndim:
        dims = ", ".join(("time", "band", "y", "x")[4 - ndim :])
        raise TecError(f"array of shape {chunk.shape}: it must be ({dims})")
    dtype_name(chunk.dtype)


def extent(chunk: np.ndarray, nodata: float | None) -> tuple[int, int, int]:
    """What is left once trailing dates, rows and columns of nothing but fill are cut off.

    Parameters
    ----------
    chunk : (time, band, y, x)
    nodata : as declared; without one, zeros are cut off (they come back as zeros)

    Returns
    -------
    (time, y, x); (0, 0, 0) for a chunk of nothing but fill. The rest is, bit for bit,
    :func:`fill_value`.
    """
    check_chunk(chunk)
    bits = as_bits(chunk)
    fill = int(as_bits(np.array(fill_value(nodata, chunk.dtype)))[()])
    times, _, height, width = chunk.shape
    t = y = x = 0
    for i in range(times - 1, -1, -1):  # the last date first: most chunks are full there
        for plane in bits[i]:
            if y < height:
                rows = np.flatnonzero((plane[y:] != fill).any(axis=1))
                y += int(rows[-1]) + 1 if rows.size else 0
            if x < width:
                columns = np.flatnonzero((plane[:, x:] != fill).any(axis=0))
                x += int(columns[-1]) + 1 if columns.size else 0
            if y == height and x == width:
                break
        if y and not t:
            t = i + 1
        if y == height and x == width:
            break
    return t, y, x


class Specials(NamedTuple):
    """The special pixels of a chunk.

    Attributes
    ----------
    mask : (time, band, y, x) bool, True where a pixel is special; None where none is
    values : one array a date, native dtype: () if all special pixels of the chunk are the same,
        else (k,), what stands where the date's mask is True, in C order; empty where none is
    """

    mask: np.ndarray | None
    values: list[np.ndarray]

    def pack(self) -> bytes:
        """Without loss, and small; b"" where no pixel is special."""
        if self.mask is None:
            return b""
        from .masks import encode_mask

        where = encode_mask(self.mask)
        same = not self.values[0].ndim
        codes = as_bits(self.values[0][None] if same else np.concatenate(self.values))
        patterns, inverse, counts = np.unique(codes, return_inverse=True, return_counts=True)
        if len(patterns) > _CLASSES:  # one by one, like bytes side by side
            raw = codes.astype(codes.dtype.newbyteorder("<")).view(np.uint8)
            raw = np.ascontiguousarray(raw.reshape(len(codes), -1).T)
            return b"\0" + struct.pack("<I", len(where)) + where + zlib.compress(raw.tobytes(), 9)
        out = bytes([len(patterns)])
        order = np.argsort(-counts, kind="stable")
        out += patterns[order].astype(patterns.dtype.newbyteorder("<")).tobytes()
        for pattern in order[1:]:  # the most frequent one takes what the others leave
            out += struct.pack("<I", len(where)) + where
            own = np.zeros_like(self.mask)
            own[self.mask] = inverse == pattern
            where = encode_mask(own)
        return out + where


def find_specials(chunk: np.ndarray, nodata: float | None) -> Specials:
    """Find the special pixels of a chunk.

    Parameters
    ----------
    chunk : (time, band, y, x) uint16, int16 or float32 of any byte order and memory layout
    nodata : the value that marks missing pixels, or None
    """
    check_chunk(chunk)
    value = nodata_value(nodata, chunk.dtype)
    mask = None
    if value is not None or chunk.dtype.kind == "f":
        for i in range(chunk.shape[0]):
            for j in range(chunk.shape[1]):  # plane by plane: it all stays in the cache
                special = _is_special(chunk[i, j], value)
                if special.any():
                    if mask is None:
                        mask = np.zeros(chunk.shape, np.bool_)
                    mask[i, j] = special
    if mask is None:
        return Specials(None, [])
    if chunk.dtype.kind != "f":
        return Specials(mask, [np.array(value)] * len(mask))
    bits = as_bits(chunk)
    codes = [date[where] for date, where in zip(bits, mask, strict=True)]
    first = next(c[0] for c in codes if c.size)
    if all((c == first).all() for c in codes):
        codes = [np.array(first)] * len(mask)
    native = np.dtype(dtype_name(chunk.dtype))
    return Specials(mask, [c.astype(f"u{native.itemsize}").view(native) for c in codes])


def pack_specials(chunk: np.ndarray, nodata: float | None) -> tuple[bytes, np.ndarray | None]:
    """The special pixels of a chunk as bytes, and where they are; see :func:`find_specials`.

    Returns
    -------
    data : b"" where no pixel is special
    mask : (time, band, y, x) bool, True where a pixel is special; None where none is
    """
    specials = find_specials(chunk, nodata)
    return specials.pack(), specials.mask


def unpack_specials(
    data: bytes, shape: tuple[int, ...], dtype: DTypeLike, nodata: float | None
) -> Specials:
    """The inverse of :func:`pack_specials`.

    Parameters
    ----------
    data : what :func:`pack_specials` gave
    shape : (time, band, y, x) of the chunk that was packed
    dtype, nodata : of that chunk

    Raises
    ------
    StreamError
        The bytes do not fit this shape, dtype and nodata. Memory is bounded by the shape.
    """
    native = np.dtype(dtype_name(dtype))
    unsigned = np.dtype(f"u{native.itemsize}")
    if not data:
        return Specials(None, [])
    reader, classes = _Reader(data, shape), data[0]
    if classes > _CLASSES:
        raise _damaged(f"they claim {classes} bit patterns")
    if classes:
        raw = reader.take(classes * native.itemsize)
        patterns = np.frombuffer(raw, unsigned.newbyteorder("<")).astype(unsigned)
        mask = reader.mask(last=classes == 1)
        codes = np.array(patterns[0])
        if classes > 1:
            codes = np.full(np.count_nonzero(mask), patterns[0])
        for i in range(1, classes):
            own = reader.mask(last=i == classes - 1)
            if (own & ~mask).any():
                raise _damaged("a bit pattern stands where no pixel is missing")
            codes[own[mask]] = patterns[i]
    else:
        mask = reader.mask(last=False)
        codes = _inflate(reader.rest(), int(np.count_nonzero(mask)), unsigned)
    values = codes.view(native)
    if not mask.any() or not _is_special(values, nodata_value(nodata, native)).all():
        raise _damaged("none is there, or one is neither nodata nor NaN nor infinite")
    if not values.ndim:
        return Specials(mask, [values] * len(mask))
    ends = np.cumsum([np.count_nonzero(date) for date in mask])
    return Specials(mask, np.split(values, ends[:-1]))


class _Reader:
    """Takes the bytes of the specials apart; running out of them is a StreamError."""

    def __init__(self, data: bytes, shape: tuple[int, ...]) -> None:
        self.data, self.shape, self.at = data, shape, 1

    def take(self, size: int) -> bytes:
        if size > len(self.data) - self.at:
            raise _damaged(f"they end after {len(self.data)} bytes")
        self.at += size
        return self.data[self.at - size : self.at]

    def rest(self) -> bytes:
        return self.take(len(self.data) - self.at)

    def mask(self, *, last: bool) -> np.ndarray:
        from .masks import decode_mask

        data = self.rest() if last else self.take(int.from_bytes(self.take(4), "little"))
        return decode_mask(data, self.shape)


def _is_special(values: np.ndarray, nodata: np.generic | None) -> np.ndarray:
    is_float = values.dtype.kind == "f"
    special = ~np.isfinite(values) if is_float else np.zeros(values.shape, np.bool_)
    if nodata is not None and np.isfinite(nodata):
        with np.errstate(invalid="ignore"):  # signalling NaN
            special |= values == nodata
    return special


def _inflate(data: bytes, count: int, unsigned: np.dtype) -> np.ndarray:
    """Bit patterns one by one, stored as planes of bytes, the lowest first."""
    inflater, size = zlib.decompressobj(), count * unsigned.itemsize
    try:
        raw = inflater.decompress(data, size + 1)
    except zlib.error as error:
        raise _damaged(str(error)) from error
    if len(raw) != size or not inflater.eof or inflater.unused_data:
        raise _damaged(f"{count} pixels do not take the bytes that are there")
    planes = np.frombuffer(raw, np.uint8).reshape(unsigned.itemsize, count)
    little = np.ascontiguousarray(planes.T).view(unsigned.newbyteorder("<"))
    return little.reshape(count).astype(unsigned)


def _damaged(what: str) -> StreamError:
    return StreamError(
        f"the missing pixels in the stream make no sense: {what}; read it again from another copy"
    )
