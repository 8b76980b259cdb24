"""Stored pixels <-> what the networks see: units, band order, holes, padding.

A chunk is (time, band, y, x) in stored units. The networks see one date at a time: all bands of the
sensor, DN standardised, float32, padded. Special pixels (:mod:`tec.specials`) are replaced by
something cheap to code on the way in, put back on the way out, and never produced by others.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from .coarse import Grid, interpolated, restored
from .config import CodecConfig
from .errors import TecError
from .sensors import SENSORS
from .specials import (
    Specials,
    as_bits,
    check_chunk,
    dtype_name,
    extent,
    fill_value,
    find_specials,
    nodata_value,
    pack_specials,
    unpack_specials,
)

__all__ = [
    "Planes",
    "Specials",
    "date_planes",
    "dtype_name",
    "extent",
    "fill_value",
    "find_specials",
    "from_planes",
    "iter_planes",
    "nodata_value",
    "pack_specials",
    "padded",
    "to_planes",
    "unpack_specials",
]

_LARGEST = 1e6  # |DN| of a valid pixel; beyond it only undeclared fill values and wrong units
#: Reflectance x 10000 that some pixel exceeds in one of these bands, unless the unit is per cent.
_DARK, _VISIBLE = 100, {"B01", "B02", "B03", "B04"}


@dataclass(frozen=True, eq=False)
class Planes:
    """A whole chunk as the networks see it.

    Attributes
    ----------
    x : (time, bands of the sensor, H, W) float32, standardised; H and W are multiples of the stride
    height, width : what of H and W is image
    specials : packed, for :func:`tec.specials.unpack_specials`
    """

    x: np.ndarray
    height: int
    width: int
    specials: bytes


def padded(size: int, stride: int) -> int:
    """The next multiple of the stride."""
    return -(-size // stride) * stride


def to_planes(chunk: np.ndarray, config: CodecConfig, *, stride: int) -> Planes:
    """A chunk at once; :func:`iter_planes` and :func:`date_planes` take less memory."""
    specials, mask = pack_specials(chunk, config.nodata)
    dates = list(iter_planes(chunk, mask, config, stride))
    if not dates:
        raise TecError(f"chunk of shape {chunk.shape} has no pixels")
    return Planes(np.stack(dates), chunk.shape[2], chunk.shape[3], specials)


def iter_planes(
    chunk: np.ndarray,
    mask: np.ndarray | None,
    config: CodecConfig,
    stride: int,
    *,
    grids: Sequence[Grid | None] = (),
    repeat_dates: bool = False,
) -> Iterator[np.ndarray]:
    """One date after the other as the networks see it; see :func:`date_planes`.

    Parameters
    ----------
    chunk : (time, band, y, x)
    mask : (time, band, y, x) bool, True where a pixel is special, or None
    repeat_dates : show the nearest date in place of one that is wholly missing, which is cheap to
        code where dates are predicted from each other; otherwise such a date is flat
    """
    check_chunk(chunk)
    there = [i for i in range(len(chunk)) if mask is None or not mask[i].all()]
    for i in range(len(chunk)):
        shown = min(there, key=lambda j: abs(j - i), default=i) if repeat_dates else i
        holes = None if mask is None else mask[shown]
        yield date_planes(chunk[shown], holes, config, stride, grids)


def date_planes(
    date: np.ndarray,
    mask: np.ndarray | None,
    config: CodecConfig,
    stride: int,
    grids: Sequence[Grid | None] = (),
) -> np.ndarray:
    """One date as the networks see it.

    Parameters
    ----------
    date : (band, y, x), stored units, any byte order and memory layout
    mask : (band, y, x) bool, True where a pixel is special, or None
    grids : of each band, where its pixels are repeated (`tec.coarse.find_grids`): they are shown
        interpolated

    Returns
    -------
    (bands of the sensor, H, W) float32, standardised. Holes are filled smoothly; bands that are
    absent or wholly missing are copies of their nearest neighbour in wavelength; a date that is
    wholly missing is 0. Bottom and right repeat the edge.

    Raises
    ------
    TecError
        Wrong shape or dtype, or a valid pixel that is no reflectance in these units.
    """
    check_chunk(date, 3)
    sensor, (bands, height, width) = SENSORS[config.sensor], date.shape
    if bands != len(config.bands):
        raise TecError(
            f"chunk has {bands} bands, the codec is set to {len(config.bands)} "
            f"({', '.join(config.bands)}): pass bands=['B02', ...], one for each band of the cube"
        )
    if not height or not width:
        raise TecError(f"date of shape {date.shape} has no pixels")
    if mask is not None and mask.shape != date.shape:
        raise TecError(f"mask has shape {mask.shape}, the date {date.shape}: they must be equal")
    planes = np.empty((len(sensor.bands), padded(height, stride), padded(width, stride)), "f4")
    image = planes[:, :height, :width]
    present, brightest = [], -math.inf
    for source, name in enumerate(config.bands):
        holes = None if mask is None else mask[source]
        if holes is None or not holes.all():
            present.append(name)
            grid, out = grids[source] if grids else None, image[sensor.bands.index(name)]
            brightest = max(brightest, _standardise(date[source], holes, grid, config, name, out))
    if not present:
        planes[:] = 0
        return planes
    if 10 < brightest - config.offset < _DARK + 1 and _VISIBLE & set(present):
        warnings.warn(
            f"no pixel of a date is above {brightest * config.scale:.4g}, a reflectance of 1 % at "
            "most: if these are per cent, pass scale=0.01; dark water may look so",
            stacklevel=2,
        )
    for target, nearest in enumerate(sensor.nearest(present)):
        source = sensor.bands.index(present[nearest])
        if source != target:
            image[target] = image[source]
    planes[:, :height, width:] = planes[:, :height, width - 1 : width]
    planes[:, height:] = planes[:, height - 1 : height]
    return planes


def _standardise(
    plane: np.ndarray,
    holes: np.ndarray | None,
    grid: Grid | None,
    config: CodecConfig,
    name: str,
    out: np.ndarray,
) -> float:
    """One band (y, x) to its standardised DN, holes filled; returns the largest DN."""
    mean, std = _statistics(config, name)
    with np.errstate(over="ignore", invalid="ignore"):  # in the holes anything may stand
        np.multiply(plane, np.float32(1 / (config.scale * std)), out=out)
        out -= np.float32((mean + config.offset) / std)
    if grid is not None:
        interpolated(out, holes, grid)
    elif holes is not None and holes.any():
        from .holes import fill_holes

        fill_holes(out, holes)
    low, high = (float(x) * std + mean + config.offset for x in (out.min(), out.max()))
    if not (low > -_LARGEST and high < _LARGEST):  # true for NaN
        worst = low if abs(low) > abs(high) else high
        raise TecError(
            f"band {name} holds {worst * config.scale:.4g}, which is no reflectance when one DN is "
            f"{config.scale:g} stored units: declare nodata= if it marks missing pixels, or set "
            "scale= right (1e-4 for reflectance from 0 to 1, 1 for DN)"
        )
    return high


def from_planes(
    x_hat: np.ndarray,
    config: CodecConfig,
    dtype: DTypeLike,
    height: int,
    width: int,
    mask: np.ndarray | None = None,
    values: np.ndarray | None = None,
    *,
    grids: Sequence[Grid | None] = (),
    ranges: Sequence[tuple[float, float]] = (),
    out: np.ndarray | None = None,
) -> np.ndarray:
    """One date from what a network gave, in stored units; the inverse of :func:`date_planes`.

    Integers are rounded half to even; what is outside the known range is clipped. A pixel that
    would equal nodata without being special becomes the next larger value (the next smaller where
    there is none).

    Parameters
    ----------
    x_hat : (bands of the sensor, at least height, at least width) float32, standardised
    dtype : of the result, any byte order
    mask, values : of this date, from :func:`tec.specials.unpack_specials`
    grids : of each band, where its pixels are to be repeated (`tec.coarse`)
    ranges : of each band, its lowest and highest value, where that is known
    out : (band, height, width) of that dtype, to be written to

    Returns
    -------
    (band, height, width) of ``dtype``; ``out`` if it was given

    Raises
    ------
    TecError
        A shape does not fit, or a pixel that is not special came out as NaN or infinite.
    """
    dtype, sensor = np.dtype(dtype), SENSORS[config.sensor]
    nodata = nodata_value(config.nodata, dtype)
    shape = (len(config.bands), height, width)
    out = np.empty(shape, dtype) if out is None else out
    for what, given in (("out", out), ("mask", mask)):
        if given is not None and given.shape != shape:
            raise TecError(f"{what} has shape {given.shape}: it must be {shape}")
    x_hat = x_hat[..., :height, :width]
    if x_hat.shape != (len(sensor.bands), height, width):
        raise TecError(
            f"the planes hold {x_hat.shape}, not {len(sensor.bands)} bands of {height} x {width}"
        )
    work = np.empty(shape[1:], np.float32)
    for target, name in enumerate(config.bands):
        mean, std = _statistics(config, name)
        with np.errstate(over="ignore", invalid="ignore"):  # caught below, by name
            plane = x_hat[sensor.bands.index(name)]
            np.multiply(plane, np.float32(std * config.scale), out=work, casting="same_kind")
            work += np.float32((mean + config.offset) * config.scale)
        grid = grids[target] if grids else None
        if grid is not None:
            restored(work, grid)
        limits = ranges[target] if ranges else _limits(dtype)
        _store(work, out[target], limits, nodata, None if mask is None else mask[target], name)
    if mask is not None and values is not None:
        as_bits(out)[mask] = as_bits(values)
    return out


def _statistics(config: CodecConfig, name: str) -> tuple[float, float]:
    sensor = SENSORS[config.sensor]
    index = sensor.bands.index(name)
    return sensor.mean[index], sensor.std[index]


def _limits(dtype: np.dtype) -> tuple[float, float]:
    """What a dtype holds."""
    limits = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
    return float(limits.min), float(limits.max)


def valid_ranges(chunk: np.ndarray, mask: np.ndarray | None) -> tuple[tuple[float, float], ...]:
    """Lowest and highest value of each band of (time, band, y, x) that is not special; (0, 0) where
    all are."""
    found = []
    for band in range(chunk.shape[1]):
        values = chunk[:, band] if mask is None else chunk[:, band][~mask[:, band]]
        found.append((values.min().item(), values.max().item()) if values.size else (0, 0))
    return tuple(found)


def _store(
    work: np.ndarray,
    out: np.ndarray,
    limits: tuple[float, float],
    nodata: Any,
    mask: np.ndarray | None,
    name: str,
) -> None:
    """Round, clip and keep off nodata: (y, x) float32 ``work``, which is used up, to ``out``."""
    if not work.size:
        return
    low, high = float(work.min()), float(work.max())  # NaN if any is
    if not (math.isfinite(low) and math.isfinite(high)):
        broken = ~np.isfinite(work)
        work[broken] = 0
        if mask is not None:
            broken &= ~mask
        if broken.any():
            raise TecError(
                f"the network gave NaN or infinite values in {np.count_nonzero(broken)} valid "
                f"pixels of band {name}: its weights or the device's arithmetic are broken; verify "
                "the weights, and try device='cpu'"
            )
        low, high = float(work.min()), float(work.max())
    if out.dtype.kind != "f":
        np.rint(work, out=work)
    if low < limits[0] or high > limits[1]:
        np.clip(work, *limits, out=work)
        low, high = (min(max(v, limits[0]), limits[1]) for v in (low, high))
    np.copyto(out, work, casting="unsafe")
    if nodata is not None and low - 1 <= nodata <= high + 1:
        out[work == nodata] = _beside(nodata)


def _beside(nodata: Any) -> Any:
    """The next larger value; the next smaller one where there is no larger one."""
    if isinstance(nodata, np.floating):
        if nodata == 0:  # not the smallest of all: some programs take subnormals for 0
            return np.finfo(np.float32).tiny
        last = nodata == np.finfo(np.float32).max
        return np.nextafter(nodata, np.float32(-np.inf if last else np.inf))
    return nodata - 1 if nodata == np.iinfo(nodata.dtype).max else nodata + 1
