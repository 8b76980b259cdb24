"""Dataset or DataArray <-> one (time, band, y, x) cube and back: names, order, attributes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from tec.sensors import canonical_band, canonical_bands, guess_sensor

from .bandvars import stack
from .dims import ROLES, band_dim, dim_roles, is_image

#: Where the names of a band axis may be, besides the dimension's own coordinate.
_NAME_COORDS = (
    "common_name",
    "eo:common_name",
    "band",
    "bands",
    "name",
    "band_name",
    "long_name",
    "title",
)


@dataclass(frozen=True)
class Cube:
    """One variable of reflectance, found and put in order.

    Attributes
    ----------
    data : DataArray with the dimensions that are there of (time, band, y, x), in this order, named
        as the user named them
    roles : ("time", "band", "y", "x") or a part of it, one for each dimension of ``data``
    names : the user's name of each band, in the order of the band axis
    bands : the same bands by their canonical names, ``("B02", ...)``
    sensor : "S2L2A" or "S2L1C"
    variables : what it takes to give band variables back (JSON), or None where there was one
        variable from the start
    sources : names of the variables that ``data`` was made from
    """

    data: xr.DataArray
    roles: tuple[str, ...]
    names: tuple[str, ...]
    bands: tuple[str, ...]
    sensor: str
    variables: dict[str, Any] | None = None
    sources: tuple[Hashable, ...] = ()


def find_cube(
    obj: xr.Dataset | xr.DataArray,
    *,
    bands: Mapping[str, str] | Sequence[str] | None = None,
    sensor: str | None = None,
    blocks: Mapping[Any, int] | None = None,
) -> Cube:
    """The reflectance in ``obj`` as one cube, lazily.

    Parameters
    ----------
    obj : Dataset of band variables, Dataset with one variable that has a band axis, or DataArray
    bands : mapping of the user's names to ours (``{"SR_B2": "B02"}``), or the names of a band axis
        that has none
    sensor : "S2L2A" or "S2L1C"; guessed from the bands when None
    blocks : size by dimension or role of the Dask blocks that band variables get if they have none

    Raises
    ------
    ValueError
        When there is no reflectance, or more than one candidate, or its dimensions are not time,
        band, y and x.
    """
    if isinstance(obj, xr.DataArray):
        return _one_variable(obj, bands, sensor)
    if isinstance(obj, (xr.DataTree, Mapping)) and not isinstance(obj, xr.Dataset):
        raise ValueError(
            f"compress takes an xarray Dataset or DataArray, not {type(obj).__name__}: bring "
            "groups of several resolutions to one grid with xtec.from_groups(...), or compress "
            "each by itself"
        )
    if not isinstance(obj, xr.Dataset):
        raise ValueError(
            f"compress takes an xarray Dataset or DataArray, not {type(obj).__name__}: open the "
            "data with xarray first"
        )
    listed = bands is not None and not isinstance(bands, Mapping)
    mapping = bands if isinstance(bands, Mapping) else None
    if not listed:
        # Two dimensions are enough: a band on a grid of its own must not pass as "no reflectance".
        named = [
            name
            for name, v in obj.data_vars.items()
            if v.ndim > 1 and v.dtype != bool and _is_band(name, mapping)
        ]
        if named:
            data, saved = stack(obj, named, blocks or {})
            spelled = tuple(map(str, named))
            sensor, canonical = _resolve(spelled, mapping, sensor)
            roles = tuple(role for role in ROLES if role in dim_roles(data))
            return Cube(data, roles, spelled, canonical, sensor, saved, tuple(named))
    axes = [name for name, v in obj.data_vars.items() if is_image(v) and band_dim(v) is not None]
    if len(axes) > 1 and not listed:
        axes = [name for name in axes if _names_or_none(obj[name], mapping)]
    if len(axes) == 1:
        return _one_variable(obj[axes[0]], bands, sensor)
    if len(axes) > 1:
        raise ValueError(
            f"variables {axes} all have a band axis: choose one, "
            f"ds[[{axes[0]!r}]].tec.compress(...)"
        )
    masks = [name for name, v in obj.data_vars.items() if v.dtype == bool]
    if any(_is_band(name, mapping) or band_dim(obj[name]) is not None for name in masks):
        raise ValueError(
            f"no reflectance found among the variables {list(obj.data_vars)}: {masks} are bool, "
            'which are masks; reflectance is uint16, int16 or float32 (.astype("uint16"))'
        )
    raise ValueError(
        f"no reflectance found among the variables {list(obj.data_vars)}: none is called like a "
        "Sentinel-2 band and none has a band dimension; name the variables with "
        "bands={'their name': 'B02', ...}"
    )


def _is_band(name: Hashable, mapping: Mapping[str, str] | None) -> bool:
    return name in (mapping or {}) or canonical_band(name) is not None


def _resolve(
    names: Sequence[str], mapping: Mapping[str, str] | None, sensor: str | None
) -> tuple[str, tuple[str, ...]]:
    """(sensor, canonical names); errors name what is unknown."""
    if mapping:
        unused = [name for name in mapping if name not in names]
        if unused:
            raise ValueError(f"bands= names {unused}, which are not there; there are {list(names)}")
    ours: dict[Any, str] = dict(mapping or {})
    if sensor is None:
        sensor = guess_sensor(names, mapping=ours)
    return sensor, canonical_bands(names, sensor=sensor, mapping=ours)


def _one_variable(
    data: xr.DataArray, bands: Mapping[str, str] | Sequence[str] | None, sensor: str | None
) -> Cube:
    dims = dim_roles(data)
    mapping = bands if isinstance(bands, Mapping) else None
    if bands is not None and mapping is None:
        names = tuple(bands) if not isinstance(bands, str) else (bands,)
        count = data.sizes[dims["band"]] if "band" in dims else 1
        if len(names) != count:
            raise ValueError(
                f"bands= lists {len(names)} names, variable {data.name!r} has {count} band(s): "
                "one name a band, in their order"
            )
    else:
        found = _names_or_none(data, mapping) or _names_or_none(data, mapping, any)
        if found is None:
            own = (
                data[dims["band"]].values.tolist()
                if "band" in dims and dims["band"] in data.coords
                else data.name
            )
            raise ValueError(
                f"variable {data.name!r}: cannot tell which Sentinel-2 bands these are ({own!r}); "
                "pass bands=['B02', ...] in the order of the band axis, or bands={'their name': "
                "'B02', ...}"
            )
        names = found
    sensor, canonical = _resolve(names, mapping, sensor)
    return Cube(
        data.transpose(*dims.values()), tuple(dims), names, canonical, sensor, None, (data.name,)
    )


def _names_or_none(
    data: xr.DataArray,
    mapping: Mapping[str, str] | None,
    enough: Callable[[Iterable[bool]], bool] = all,
) -> tuple[str, ...] | None:
    """The names of the bands, wherever they are: a coordinate of the band axis, an attribute.

    With ``any``, names of which some are wrong, for an error that says which.
    """
    for names in _candidates(data):
        if enough(_is_band(name, mapping) for name in names):
            return names
    return None


def _candidates(data: xr.DataArray) -> Iterable[tuple[str, ...]]:
    dim = band_dim(data)
    count = 1 if dim is None else data.sizes[dim]
    shape = () if dim is None else (dim,)
    for name in (dim, *_NAME_COORDS):
        if (
            name is not None
            and name in data.coords
            and data[name].dims == shape
            and data[name].dtype.kind in "UTSO"
        ):
            values = np.atleast_1d(data[name].values)
            yield tuple(
                value.decode() if isinstance(value, bytes) else str(value) for value in values
            )
    for name in ("long_name", "band_names", "common_name"):  # long_name: rioxarray
        value = data.attrs.get(name)
        listed = (value,) if isinstance(value, str) else value
        if isinstance(listed, (list, tuple)) and len(listed) == count:
            yield tuple(str(item) for item in listed)
    if dim is None and isinstance(data.name, str):
        yield (data.name,)
