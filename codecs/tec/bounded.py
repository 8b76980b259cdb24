"""Chunks with a bound on their error: stored pixels <-> integers, and the picture under them.

The residual layer (:mod:`tec.residual`) codes integers. Pixels of integer dtypes are integers;
floats are put on a grid of steps. The lossy picture that a network gives is evaluated in float64
and rounded, with the decisions of `tec.entropy.portable`, so that all machines start from the same
integers.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from . import residual
from .entropy.portable import Margin, Reader, ScaleGrid, Writer
from .errors import StreamError, TecError
from .samples import as_bits, nodata_value
from .sensors import SENSORS
from .stream import MAX_BOUND, STEPS, Header, Residual

#: Float64 evaluations of a picture differ by 1e-9 steps at most.
MARGIN = Margin(2.0**-16, 2.0**-40)
#: Steps of a grid for floats that are no whole DN, in the smallest bound.
_STEPS = 16
#: Floats this near to whole DN, in DN, are taken for such.
_WHOLE = 1e-3


def encode(
    header: Header,
    chunk: np.ndarray,
    mask: np.ndarray | None,
    planes: Iterable[np.ndarray] | None,
) -> tuple[Header, Residual]:
    """Code what the planes lack.

    Parameters
    ----------
    header : of the stream, without bounds
    chunk : (time, band, y, x), what is coded of it
    mask : (time, band, y, x) bool, special pixels; or None
    planes : of each date, what the network gave, (bands of the sensor, H, W) float64; or None

    Returns
    -------
    The header with bounds, and the residual.

    Raises
    ------
    TecError
        The bound cannot be kept in this dtype.
    """
    values, step, bounds = _values(chunk, mask, header)
    header = replace(header, step=step, bounds=bounds)
    pictures, decisions = None, [b""] * len(chunk)
    if planes is not None and len(chunk):
        writers = [Writer(1, ScaleGrid(), MARGIN) for _ in chunk]
        pairs = zip(planes, writers, strict=True)
        pictures = np.stack([picture(plane, header, writer) for plane, writer in pairs])
        decisions = [writer.getvalue()[0] for writer in writers]
    nodata = _nodata(header)
    data, found = residual.encode(values, mask, bounds, nodata=nodata, picture=pictures)
    out = np.empty(chunk.shape, header.dtype)
    _store(found, header, out)
    if mask is not None:
        as_bits(out)[mask] = as_bits(chunk.astype(header.dtype, copy=False))[mask]
    _check_bounds(chunk, out, mask, header)
    return header, Residual(tuple(map(_checksum, out)), tuple(decisions), data)


def decode(
    coded: Residual,
    header: Header,
    mask: np.ndarray | None,
    pictures: np.ndarray | None,
    out: np.ndarray,
) -> None:
    """The first dates, as many as ``out`` (time, band, y, x) has; special pixels get anything."""
    t, y, x = header.extent
    if t and not len(out):
        return
    shape = (t, out.shape[1], y, x)
    found = residual.decode(
        coded.data,
        shape,
        mask,
        header.bounds,
        nodata=_nodata(header),
        picture=pictures,
        dates=len(out),
    )
    _store(found, header, out)


def check(coded: Residual, out: np.ndarray, mask: np.ndarray | None, nodata: float | None) -> None:
    """StreamError unless the decoded dates are those that were written, and no valid pixel is
    nodata (which a made-up header may call what the pixels are)."""
    value: Any = nodata_value(nodata, out.dtype)
    for date, plane in enumerate(out if value is not None and np.isfinite(value) else ()):
        found = plane == value
        if found.any() and (mask is None or (found & ~mask[date]).any()):
            raise StreamError(
                f"date {date}: valid pixels decode to nodata ({nodata}): the stream is made up"
            )
    for date, (plane, checksum) in enumerate(zip(out, coded.checksums)):
        if _checksum(plane) != checksum:
            raise StreamError(
                f"date {date}: the checksum of the decoded pixels does not match, though the bytes "
                "are intact: the arithmetic of this machine differs, or the stream was made up; "
                "decode on another machine or device, and please report it"
            )


def reader(decisions: bytes) -> Reader:
    """For the `picture` of one date."""
    return Reader([decisions], ScaleGrid())


def picture(planes: np.ndarray, header: Header, rounder: Writer | Reader) -> np.ndarray:
    """What a network gave for a date as integers that all machines agree on.

    Parameters
    ----------
    planes : (bands of the sensor, H, W) float64, standardised

    Returns
    -------
    (band, y, x) int32, in steps
    """
    config, (_, y, x) = header.config, header.extent
    sensor = SENSORS[config.sensor]
    out = np.empty((len(config.bands), y, x), np.int32)
    for target, name in enumerate(config.bands):
        source = sensor.bands.index(name)
        plane = planes[source, :y, :x].astype(np.float64) * sensor.std[source]
        plane = (plane + (sensor.mean[source] + config.offset)) * (config.scale / header.step)
        plane = plane.clip(-residual.LIMIT / 2, residual.LIMIT / 2)
        out[target] = rounder.round(plane.reshape(1, -1)).reshape(y, x)
    return out


def _values(
    chunk: np.ndarray, mask: np.ndarray | None, header: Header
) -> tuple[np.ndarray, float, tuple[int, ...]]:
    """Integers, what one of them is worth in stored units, and the bounds."""
    config = header.config
    allowed = config.max_error or ()
    if chunk.dtype.kind != "f":
        # 0.3 * 10 is a little less than 3
        bounds = [math.floor(m * config.scale * (1 + 1e-12)) for m in allowed]
        return chunk.astype(np.int32), 1.0, tuple(min(m, MAX_BOUND) for m in bounds)
    smallest = min(allowed)
    if smallest <= 0:
        raise TecError(
            f"max_error=0 of {chunk.dtype} pixels cannot be kept: store integers, or allow an error"
        )
    valid = chunk if mask is None else np.where(mask, np.float32(0), chunk)
    whole = np.rint(valid.astype(np.float64) / config.scale)
    off = np.abs(valid - (whole * config.scale).astype(np.float32)).max(initial=0) / config.scale
    if off <= _WHOLE * min(smallest, 1):
        step = config.scale
        bounds = [math.floor(m * (1 - _WHOLE)) for m in allowed]
    else:
        step = config.scale * smallest / _STEPS
        whole = np.rint(valid.astype(np.float64) / step)
        bounds = [math.floor(m / smallest * _STEPS * 0.999 - 0.5) for m in allowed]
    if np.abs(whole).max(initial=0) >= residual.LIMIT:
        raise TecError(
            f"max_error={smallest:g} is too small for values up to {np.abs(valid).max():.3g}: "
            "float32 does not hold them so finely; allow a larger error"
        )
    if not STEPS[0] < step < STEPS[1]:
        raise TecError(
            f"max_error={smallest:g} with scale={config.scale:g} makes steps of {step:g} stored "
            f"units, and they must lie between {STEPS[0]:g} and {STEPS[1]:g}: check scale="
        )
    return whole.astype(np.int32), float(step), tuple(min(m, MAX_BOUND) for m in bounds)


def _nodata(header: Header) -> int | None:
    """The integer that decodes to nodata."""
    value: Any = nodata_value(header.config.nodata, header.dtype)
    if value is None or not np.isfinite(value):
        return None
    if header.dtype != "float32":
        return int(value)
    whole = round(float(value) / header.step)
    hits = abs(whole) < residual.LIMIT and np.float32(whole * header.step) == value
    return whole if hits else None


def _store(values: np.ndarray, header: Header, out: np.ndarray) -> None:
    if out.dtype.kind == "f":
        out[...] = values * header.step  # float64, then rounded once: the same everywhere
        return
    limits = np.iinfo(out.dtype)
    if values.size and (values.min() < limits.min or values.max() > limits.max):
        raise StreamError(f"the residual holds values that {out.dtype} cannot: it is damaged")
    np.copyto(out, values, casting="unsafe")


def _check_bounds(
    chunk: np.ndarray, out: np.ndarray, mask: np.ndarray | None, header: Header
) -> None:
    config = header.config
    nodata = nodata_value(config.nodata, header.dtype)
    for b, allowed in enumerate(config.max_error or ()):
        valid = np.s_[:] if mask is None else ~mask[:, b]
        error = chunk[:, b][valid].astype(np.float64) - out[:, b][valid]
        worst = np.abs(error).max(initial=0)
        if worst > allowed * config.scale * (1 + 1e-9):
            why = "this is a fault of xtec, please report it; nothing was written"
            if chunk.dtype.kind == "f":
                why = "float32 does not hold these values so finely; allow a larger error"
            raise TecError(
                f"band {config.bands[b]}: an error of {worst / config.scale:.6g} DN where "
                f"{allowed:g} was allowed: {why}"
            )
        if nodata is not None and (out[:, b][valid] == nodata).any():
            raise TecError(
                f"band {config.bands[b]}: pixels so near to nodata ({nodata}) that they would "
                "become it: float32 does not hold them finely enough; allow a larger error"
            )


def _checksum(date: np.ndarray) -> int:
    little = date.dtype.newbyteorder("<")
    return zlib.crc32(np.ascontiguousarray(date, little).view(np.uint8).data)
