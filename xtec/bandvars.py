"""Band variables (odc-stac style) -> one variable with a band axis, and back."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import xarray as xr

from .attributes import ATTRIBUTE, CF_ENCODING, common, plain, same, storable
from .dims import band_dim, dim_roles
from .grid import reading_blocks

#: Name of the variable that band variables become.
REFLECTANCE = "reflectance"
BAND = "band"


def stack(
    ds: xr.Dataset, names: list[Hashable], blocks: Mapping[Any, int]
) -> tuple[xr.DataArray, dict[str, Any]]:
    """Band variables -> one variable ``reflectance``, and what it takes to give them back (JSON).

    Parameters
    ----------
    ds : Dataset
    names : the band variables, in the order of the new axis
    blocks : size by dimension or role of the Dask blocks that variables get if they have none

    Raises
    ------
    ValueError
        The variables differ in grid, dtype, nodata or scale, or a name that is needed is taken.
    """
    first = ds[names[0]]
    dims = dim_roles(first)
    if "band" in dims:
        raise ValueError(
            f"variable {names[0]!r} is called like a band and has a band axis {dims['band']!r} as "
            "well: keep one of the two"
        )
    for taken in (REFLECTANCE, BAND):
        if taken in ds.variables or taken in ds.dims:
            raise ValueError(
                f"band variables are stacked into {REFLECTANCE!r} along a dimension {BAND!r}, but "
                f"there is a {taken!r} already: drop it (.drop_vars({taken!r})) or rename it"
            )
    _check_alike(ds, names)
    attrs = {name: storable(ds[name].attrs, f"variable {name!r}") for name in names}
    saved = {
        "order": [str(name) for name in ds.data_vars],
        "bands": {
            str(name): {"dims": list(map(str, ds[name].dims)), "attrs": plain(attrs[name])}
            for name in names
        },
    }
    order = tuple(dims.values())
    parts = [ds[name].variable.transpose(*order) for name in names]
    # xarray's concat would read bands without Dask into memory; stacking blocks reads nothing.
    import dask.array as da

    axis = order.index(dims["y"])
    sizes = {dim: blocks.get(dim, blocks.get(role, -1)) for role, dim in dims.items()}
    stacked = da.stack(
        [
            part.chunk(reading_blocks(part, sizes)).data if part.chunks is None else part.data
            for part in parts
        ],
        axis=axis,
    )
    variable = xr.Variable(
        (*order[:axis], BAND, *order[axis:]), stacked, common(list(attrs.values()))
    )
    data = xr.DataArray(variable, coords=first.coords, name=REFLECTANCE).assign_coords(
        {BAND: np.asarray([str(name) for name in names])}
    )
    data.encoding = common([dict(part.encoding) for part in parts])
    return data, saved


def _check_alike(ds: xr.Dataset, names: list[Hashable]) -> None:
    """Bands that differ in grid, dtype, nodata or scale cannot become one variable."""
    first = ds[names[0]]
    for name in names[1:]:
        other = ds[name]
        if set(other.dims) != set(first.dims):
            raise ValueError(
                f"bands {names[0]!r} and {name!r} lie on different grids: dimensions {first.dims} "
                f"and {other.dims}; bring all bands to one grid first (10 m, say), or compress "
                "them apart"
            )
        if other.dtype != first.dtype:
            raise ValueError(
                f"bands {names[0]!r} and {name!r} differ in dtype, {first.dtype} and "
                f"{other.dtype}: bring them to one with .astype"
            )
        for key in ("dtype", "scale_factor", "add_offset", "_FillValue", "missing_value", "nodata"):
            mine, theirs = (v.encoding.get(key, v.attrs.get(key)) for v in (first, other))
            if not same(mine, theirs):
                raise ValueError(
                    f"bands {names[0]!r} and {name!r} differ in {key}, {mine!r} and {theirs!r}: "
                    "bring them to one, or compress them apart (ds[['B02', 'B03']])"
                )


def split(ds: xr.Dataset) -> xr.Dataset:
    """Give band variables back, where ``compress`` was given a variable a band.

    Variables that were one cube from the start stay as they are; the attribute ``xtec`` goes in
    both cases. Coordinates of the band axis go with the axis.

    Examples
    --------
    >>> import xarray as xr
    >>> from xtec.bandvars import split
    >>> split(xr.Dataset({"a": ("x", [1, 2])})).data_vars
    Data variables:
        a        (x) int64 16B 1 2
    """
    ds = as_compressed(ds)
    for name in list(ds.data_vars):
        if isinstance(ds[name].attrs.get(ATTRIBUTE), str):
            ds = ds.assign({name: ds[name].copy(deep=False)})
            del ds[name].attrs[ATTRIBUTE]
    return ds


def as_compressed(ds: xr.Dataset) -> xr.Dataset:
    """As `split`; the attribute ``xtec`` stays on variables that were one cube from the start."""
    for name in list(ds.data_vars):
        text = ds[name].attrs.get(ATTRIBUTE)
        saved = json.loads(text).get("variables") if isinstance(text, str) else None
        if saved is not None:
            ds = _split_one(ds, name, saved)
    return ds


def _split_one(ds: xr.Dataset, name: Hashable, saved: Mapping[str, Any]) -> xr.Dataset:
    cube = ds[name]
    axis = band_dim(cube)
    if axis is None or axis not in cube.coords:
        return ds  # one band was selected, or the names are gone: there is nothing to split by
    parts = {}
    sizes = cube.encoding.get("preferred_chunks", {})
    for position, band in enumerate(cube[axis].values.tolist()):
        part = cube.isel({axis: position}, drop=True)
        info = saved["bands"].get(band, {"attrs": part.attrs, "dims": part.dims})
        part = _transposed(part, [dim for dim in info["dims"] if dim in part.dims])
        part.attrs = dict(info["attrs"])
        part.encoding = {k: v for k, v in cube.encoding.items() if k in CF_ENCODING}
        if sizes:
            part.encoding["preferred_chunks"] = {d: n for d, n in sizes.items() if d in part.dims}
        parts[band] = part.drop_vars(
            [c for c in part.coords if axis in ds[c].dims], errors="ignore"
        )
    rest = ds.drop_vars([name])
    if not any(axis in v.dims for v in rest.data_vars.values()):
        rest = rest.drop_dims([axis])
    out = rest.assign(parts)
    order = [n for n in saved["order"] if n in out.data_vars]
    return in_order(out, order + [n for n in out.data_vars if n not in order])


def _transposed(part: xr.DataArray, first: list[Hashable]) -> xr.DataArray:
    """``part.transpose(*first, ...)`` that stays lazy, and reads no pixel by its coordinates."""
    dims = (*first, *(dim for dim in part.dims if dim not in first))
    variable = part.variable
    if dims == variable.dims or variable.chunks is not None or variable._in_memory:
        return part.transpose(*dims)
    from .lazy import transposed

    return xr.DataArray(transposed(variable, dims), part.coords, name=part.name)


def in_order(ds: xr.Dataset, names: list[Hashable]) -> xr.Dataset:
    """``ds[names]`` that keeps all coordinates, also those of dimensions that no variable has."""
    out = ds[names]
    return out.assign_coords({c: ds[c].variable for c in ds.coords if c not in out.coords})
