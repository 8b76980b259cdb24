"""What xarray shows of a cube <-> DN: which number is which reflectance, and which is none.

The same pixels show as packed integers or as floats, with an offset or without, with nodata as a
number or as NaN: to compare or to draw them, they are brought to reflectance x 10000.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from .chunks import ROLES
from .compression import codec_of
from .dims import dim_roles
from .grid import reading_blocks
from .layout import Cube, find_cube
from .stored import DTYPES, stored_form

#: Blocks of a cube that has none, by role; whole chunks of its file are read together.
_BLOCKS = {"time": 1, "y": 1024, "x": 1024}
#: Encoding of packed numbers, and what holds without it.
_PACKING = {"scale_factor": 1.0, "add_offset": 0.0}


@dataclass(frozen=True)
class Numbers:
    """What the numbers that xarray shows mean.

    Attributes
    ----------
    unit, offset : reflectance x 10000 = number / unit - offset
    nodata : number that means "no data", or None; NaN and infinite numbers always do
    near : how far from ``nodata`` a number may be to be it
    form : how the numbers are packed; of two equal forms equal numbers mean the same
    """

    unit: float = 1.0
    offset: float = 0.0
    nodata: float | None = None
    near: float = 0.0
    form: tuple[Any, ...] = ()

    def dn(self, numbers: np.ndarray) -> np.ndarray:
        """Reflectance x 10000 in float64; whatever it is where there is no data."""
        out = numbers.astype(np.float64)
        if self.unit != 1:
            out /= self.unit
        if self.offset != 0:
            out -= self.offset
        return out

    def valid(self, numbers: np.ndarray) -> np.ndarray:
        """Where there is data."""
        ok = np.isfinite(numbers)
        if self.nodata is None or math.isnan(self.nodata):
            return ok
        if self.near == 0:
            return ok & (numbers != self.nodata)
        with np.errstate(invalid="ignore"):
            return ok & (np.abs(numbers.astype(np.float64) - self.nodata) > self.near)


@dataclass(frozen=True)
class Values:
    """A cube and what its numbers mean.

    Attributes
    ----------
    data : (time, band, y, x) DataArray as xarray shows it, with these names; all four are there.
        Of the coordinates there are time, y and x, where the cube has them
    bands : canonical names
    numbers : what they mean
    """

    data: xr.DataArray
    bands: tuple[str, ...]
    numbers: Numbers

    def select(self, bands: Sequence[str]) -> Values:
        """With these bands, in this order."""
        if tuple(bands) == self.bands:
            return self
        order = [self.bands.index(band) for band in bands]
        return replace(self, data=self.data.isel(band=order), bands=tuple(bands))


class Pair(NamedTuple):
    """A cube and what was read back of it: the same dates and bands, in the same order.

    Attributes
    ----------
    source, back : these
    samples : values in all of what was read back
    left_out : bands and dates that only one of the two has, for people
    """

    source: Values
    back: Values
    samples: int
    left_out: tuple[str, ...]


def values_of(
    obj: xr.Dataset | xr.DataArray,
    *,
    bands: Mapping[str, str] | Sequence[str] | None = None,
    offset: float | None = None,
    scale: float | None = None,
    nodata: int | float | str | None = "auto",
    like: Numbers | None = None,
) -> Values:
    """The cube in ``obj``, lazily.

    Parameters
    ----------
    obj : anything that `compress` takes, or gives, or what was read back
    bands : as for `compress`; what ``obj`` names as Sentinel-2 does needs none
    offset, scale, nodata : as for `compress`, where nothing else says it
    like : what the numbers mean of what ``obj`` was made of, or became: the same where both are
        packed alike

    Raises
    ------
    ValueError
        There is no cube, or nothing says what its numbers mean.
    """
    return _values(_find(obj, bands), offset, scale, nodata, like)


def _values(
    cube: Cube,
    offset: float | None = None,
    scale: float | None = None,
    nodata: int | float | str | None = "auto",
    like: Numbers | None = None,
) -> Values:
    data, near = cube.data, 0.0
    codec = codec_of(data.encoding)
    if (offset, scale) == (None, None) and nodata == "auto":
        if like is not None and codec is None and _form(data) == like.form:
            return Values(_four(cube), cube.bands, like)
    else:
        codec = None
    if codec is not None:
        unit, total, none = codec.config.scale, codec.config.offset, codec.config.nodata
    else:
        with warnings.catch_warnings():
            # Of who stores integers: here it does no harm.
            warnings.filterwarnings("ignore", message=".* and has a _FillValue: xarray will read")
            stored = stored_form(_storable(data), offset=offset or 0, scale=scale, nodata=nodata)
        unit, total, none = stored.scale, stored.offset, stored.nodata
    factor, add = (data.encoding.get(key, default) for key, default in _PACKING.items())
    if (factor, add) != (1.0, 0.0):  # xarray has unpacked the numbers
        unit, none = unit * float(factor), None if none is None else none * factor + add
        total, near = total + float(add) / unit, float(factor) / 2
    numbers = Numbers(unit, total, none, near, _form(data))
    return Values(_four(cube), cube.bands, numbers)


def pair_of(
    source: xr.Dataset | xr.DataArray,
    back: xr.Dataset | xr.DataArray,
    *,
    bands: Mapping[str, str] | Sequence[str] | None = None,
    **form: Any,
) -> Pair:
    """A cube and what was read back of it, as far as both have it.

    Parameters
    ----------
    source, back : as for `values_of`
    bands, form : as for `values_of`; of ``source``

    Raises
    ------
    ValueError
        They lie on different grids, or share no date or no band.
    """
    one, other = _find(source, bands), _find(back, bands)
    if codec_of(other.data.encoding) is not None:
        b = _values(other)
        a = _values(one, like=b.numbers, **form)
    else:
        a = _values(one, **form)
        b = _values(other, like=a.numbers)
    _check_grid(a.data, b.data)
    common = [band for band in a.bands if band in b.bands]
    if not common:
        raise ValueError(
            f"the source has bands {', '.join(a.bands)}, what was read back has "
            f"{', '.join(b.bands)}: there is none to compare"
        )
    mine, theirs = _same_dates(a.select(common), b.select(common))
    left_out = [
        f"band {band}, which only {of} has"
        for of, all_bands in (("the source", a.bands), ("what was read back", b.bands))
        for band in all_bands
        if band not in common
    ]
    n = mine.data.sizes["time"]
    for of, dates in (
        ("the source", a.data.sizes["time"]),
        ("what was read back", b.data.sizes["time"]),
    ):
        if dates > n:
            left_out.append(f"{dates - n} of {dates} dates, which only {of} has")
    return Pair(mine, theirs, b.data.size, tuple(left_out))


def _check_grid(a: xr.DataArray, b: xr.DataArray) -> None:
    for dim in ("y", "x"):
        n, m = a.sizes[dim], b.sizes[dim]
        if n != m:
            raise ValueError(
                f"the source has {a.sizes['y']} x {a.sizes['x']} pixels (y, x), what was read back "
                f"has {b.sizes['y']} x {b.sizes['x']}: select the same part of both, such as "
                "source.sel(y=back.y, x=back.x)"
            )
        if dim not in a.coords or dim not in b.coords:
            continue
        one, other = a[dim].values, b[dim].values
        if one.dtype.kind not in "iuf" or other.dtype.kind not in "iuf":
            continue
        step = abs(float(one[-1]) - float(one[0])) / (n - 1) if n > 1 else 1.0
        if np.abs(one.astype(float) - other).max() > step / 100:
            raise ValueError(
                f"the coordinates {dim} of source and what was read back differ: from {one[0]} to "
                f"{one[-1]}, and from {other[0]} to {other[-1]}; select the same part of both, or "
                f"turn one round (.sortby({dim!r}))"
            )


def check_same_cube(source: xr.DataArray, back: xr.DataArray) -> None:
    """ValueError where both have coordinates of time, y or x and these differ.

    Sizes are compared elsewhere.
    """
    ours, theirs = dim_roles(source), dim_roles(back)
    for role in ("time", "y", "x"):
        if role not in ours or role not in theirs:
            continue
        a, b = source.indexes.get(ours[role]), back.indexes.get(theirs[role])
        if a is None or b is None or len(a) != len(b) or not len(a):
            continue
        if a.dtype.kind in "iuf" and b.dtype.kind in "iuf":
            step = abs(float(a[-1]) - float(a[0])) / max(1, len(a) - 1)
            differ = np.abs(a.to_numpy(float) - b.to_numpy(float)).max() > max(step / 100, 1e-9)
        elif a.dtype.kind == b.dtype.kind == "M":
            differ = np.abs(a - b).max() > np.timedelta64(1, "s")
        else:
            continue
        if differ:
            raise ValueError(
                f"the source is another cube: its {ours[role]} goes from {a[0]} to {a[-1]}, the "
                f"store's from {b[0]} to {b[-1]}; pass the cube that the store was made of"
            )


def _same_dates(a: Values, b: Values) -> tuple[Values, Values]:
    """Those that both have, by their time; by their place where there are no times."""
    ours, theirs = (v.data.indexes.get("time") for v in (a, b))
    if ours is None or theirs is None:
        n, m = a.data.sizes["time"], b.data.sizes["time"]
        if n != m:
            raise ValueError(
                f"the source has {n} dates, what was read back has {m}, and not both have a time "
                "coordinate to tell which are the same: select the same dates of both"
            )
        return a, b
    if ours.equals(theirs):
        return a, b
    if not (ours.is_unique and theirs.is_unique):
        raise ValueError(
            "times occur more than once and differ between source and what was read back: select "
            "the same dates of both (.isel(time=[...]))"
        )
    where = theirs.get_indexer(ours)
    found = np.flatnonzero(where >= 0)
    if not len(found):
        raise ValueError(
            f"no date is in both: the source has {ours[0]} to {ours[-1]}, what was read back has "
            f"{theirs[0]} to {theirs[-1]}"
        )
    return (
        replace(a, data=a.data.isel(time=found)),
        replace(b, data=b.data.isel(time=where[found])),
    )


def _find(obj: xr.Dataset | xr.DataArray, bands: Mapping[str, str] | Sequence[str] | None) -> Cube:
    if bands is not None:
        try:
            return find_cube(obj, bands=bands, blocks=_BLOCKS)
        except ValueError:  # they are the other cube's: bands that were selected, or renamed
            try:
                return find_cube(obj, blocks=_BLOCKS)
            except ValueError:
                pass
    return find_cube(obj, bands=bands, blocks=_BLOCKS)


def _form(data: xr.DataArray) -> tuple[Any, ...]:
    """How numbers are packed, in the store and as they are shown."""
    kind = np.dtype(data.encoding.get("dtype", data.dtype)).kind
    of = tuple(
        float(where.get(key, default))
        for where in (data.encoding, data.attrs)
        for key, default in _PACKING.items()
    )
    return (kind == "f", *of)


def _storable(data: xr.DataArray) -> xr.DataArray:
    """``data``, or where its dtype is none that the codec takes a stand-in of one that is: numbers
    can be compared that could not be stored."""
    dtype = np.dtype(data.encoding.get("dtype", data.dtype))
    kinds = {"f": "float32", "i": "int16", "u": "uint16"}
    if dtype.newbyteorder("=").name in DTYPES or dtype.kind not in kinds:
        return data
    pixel = data.isel({dim: slice(1) for dim in data.dims})
    stand_in = xr.zeros_like(pixel, dtype=kinds[dtype.kind])
    stand_in.encoding = {k: v for k, v in data.encoding.items() if k != "dtype"}
    return stand_in


def _four(cube: Cube) -> xr.DataArray:
    """(time, band, y, x), whatever was there."""
    data = cube.data
    names = {role: dim for dim, role in zip(data.dims, cube.roles, strict=True)}
    coords: dict[str, Any] = {}
    for role, dim in {"time": "time", **names}.items():
        if role != "band" and dim in data.coords and data.coords[dim].dims in ((), (dim,)):
            coords[role] = (role, np.atleast_1d(data.coords[dim].values))
    missing = [role for role in ROLES if role not in names]
    variable = data.variable
    if missing and variable.chunks is None and not variable._in_memory:
        # A new axis would load it.
        unit = {names[role]: _BLOCKS.get(role, -1) for role in names}
        variable = variable.chunk(reading_blocks(variable, unit))
    # A lazy variable as it is: its data would be all of its pixels.
    bare = xr.DataArray(variable.data if missing else variable, dims=list(names), name=data.name)
    if missing:
        bare = bare.expand_dims(missing)
    bare.encoding = {k: v for k, v in data.encoding.items() if k == "preferred_chunks"}
    return bare.transpose(*ROLES).assign_coords(coords)
