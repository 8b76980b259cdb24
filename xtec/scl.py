"""Masks of clouds on a cube's grid: the scene classification (SCL), an array, a function."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from .dims import dim_roles
from .grid import DEFAULT_CHUNKS, reading_blocks

#: Classes of SCL that hide the ground: cloud shadow, clouds of medium and of high probability, thin
#: cirrus. Saturated pixels (1) are bright ground more often than cloud, and snow (11) is no cloud.
CLOUDS = (3, 8, 9, 10)


@dataclass(frozen=True)
class Mask:
    """A mask on the grid of a cube.

    Attributes
    ----------
    data : (time, y, x) bool in some order, of the cube's dimensions
    name : what it was called, where it had a name
    classes : those that it was made of, or None
    """

    data: xr.DataArray
    name: str | None
    classes: list[int] | None


def cloud_mask(
    obj: xr.Dataset | xr.DataArray,
    data: xr.DataArray,
    dims: Mapping[str, Hashable],
    mask: str | xr.DataArray | Callable[[Any], xr.DataArray],
    classes: Sequence[int] = CLOUDS,
) -> Mask:
    """The mask that ``mask`` stands for; see `xtec.inpaint`.

    Parameters
    ----------
    obj : where its name is looked up, and what a function is given
    data : the cube
    dims : dimension of ``data`` by role

    Raises
    ------
    ValueError
        There is none of that name, or it is no mask of this cube.
    """
    found = _found(obj, mask, dims)
    name = None if found.name is None else str(found.name)
    called = "the mask" if name is None else f"mask {name!r}"
    if found.chunks is None and not found.variable._in_memory:  # isin would load it
        blocks = {dim: DEFAULT_CHUNKS["x"] for dim in found.dims[-2:]}
        found = found.copy(data=found.variable.chunk(reading_blocks(found.variable, blocks)).data)
    taken = None
    if found.dtype.kind in "iu":
        taken = [int(c) for c in classes]
        found = found.isin(taken)
    elif found.dtype != bool:
        raise ValueError(
            f"{called} is {found.dtype}: it must be bool, or whole numbers of which "
            f"classes= are masked, as SCL has them; make one, such as (mask > 0.5)"
        )
    own = _roles(found)
    if "band" in own:
        raise ValueError(f"{called} has a band axis {own['band']!r}: select one band of it")
    if "time" not in own:
        raise ValueError(
            f"{called} has dimensions {found.dims}, and no time: clouds move; give each "
            "date its mask, or mask.expand_dims(time=cube.time) if all dates have the same"
        )
    _check_times(found, own["time"], data, dims["time"], called)
    for role in ("y", "x"):
        found = _on_grid(found, own[role], data, dims[role], called)
    array = found.variable.transpose(*(own[role] for role in ("time", "y", "x")))
    on_cube = xr.DataArray(array.data, dims=[dims[role] for role in ("time", "y", "x")])
    return Mask(on_cube, name, taken)


def _found(obj: xr.Dataset | xr.DataArray, mask: Any, dims: Mapping[str, Hashable]) -> xr.DataArray:
    if isinstance(mask, str):
        there = obj.variables if isinstance(obj, xr.Dataset) else obj.coords
        if mask not in there:
            kind = "variable" if isinstance(obj, xr.Dataset) else "coordinate"
            raise ValueError(
                f"there is no {kind} {mask!r} to take as a mask, there are "
                f"{[str(name) for name in there]}: pass mask= a name, an array, or a function"
            )
        return obj[mask]
    found = mask(obj) if callable(mask) and not isinstance(mask, xr.DataArray) else mask
    if not isinstance(found, xr.DataArray) and hasattr(found, "shape"):
        names = tuple(str(dims[role]) for role in ("time", "y", "x"))
        raise ValueError(
            f"mask is {type(found).__name__} {found.shape}, and nothing says which axis is which: "
            f"pass xr.DataArray(mask, dims={names})"
        )
    if not isinstance(found, xr.DataArray):
        raise ValueError(
            f"mask is {type(found).__name__}: pass the name of a variable, an xarray DataArray, or "
            "a function that gives one"
        )
    return found


def _roles(mask: xr.DataArray) -> dict[str, Hashable]:
    """As `dim_roles`, where y20 and x_20m are a y and an x, too: beside bands of 10 m there is no
    other way to call them."""
    plain = {dim: re.sub(r"_?\d+m?$", "", str(dim)) for dim in mask.dims}
    names = {new: dim for dim, new in plain.items()}
    renamed = xr.DataArray(mask.variable, dims=list(plain.values()), name=mask.name)
    return {role: names[str(dim)] for role, dim in dim_roles(renamed).items()}


def _check_times(
    mask: xr.DataArray, own: Hashable, data: xr.DataArray, time: Hashable, called: str
) -> None:
    if mask.sizes[own] != data.sizes[time]:
        raise ValueError(
            f"{called} has {mask.sizes[own]} dates, the cube {data.sizes[time]}: select the "
            "same ones"
        )
    if own not in mask.coords or time not in data.coords:
        return
    for at, (here, there) in enumerate(zip(mask[own].values, data[time].values, strict=True)):
        if here != there:
            raise ValueError(
                f"{called} has other dates than the cube (number {at} is {here}, the cube's "
                f"{there}): bring it to them, with mask.sel({own}=cube.{time}), or "
                f"mask.reindex({own}=cube.{time}, method='nearest') if they mean the same days"
            )


def _on_grid(
    mask: xr.DataArray, own: Hashable, data: xr.DataArray, dim: Hashable, called: str
) -> xr.DataArray:
    """Along one dimension: pixels repeated where they are a whole number of the cube's wide."""
    n, wanted = mask.sizes[own], data.sizes[dim]
    times = wanted // n
    nearest = f"mask.reindex({own}=cube.{dim}, method='nearest')"
    if n * times != wanted:
        raise ValueError(
            f"{called} has {n} pixels along {own!r}, the cube {wanted} along {dim!r}: bring "
            f"it to the cube's grid first, with {nearest}"
        )
    if own in mask.coords and dim in data.coords and wanted > 1:
        ours = data[dim].values.astype(np.float64).reshape(n, times).mean(axis=1)
        pixel = abs(float(np.diff(data[dim].values[:2].astype(np.float64))[0]))
        if np.abs(mask[own].values.astype(np.float64) - ours).max() > pixel / 2:
            raise ValueError(
                f"{called} lies elsewhere along {own!r} than the cube: from "
                f"{mask[own].values[0]} to {mask[own].values[-1]}, where the cube's pixels have "
                f"their centres from {ours[0]} to {ours[-1]}; bring it to the cube's grid, with "
                f"{nearest}, or, where only the numbers differ, leave them out: "
                f"mask.drop_vars({own!r})"
            )
    if times == 1:
        return mask
    return mask.drop_vars([name for name, c in mask.coords.items() if own in c.dims]).isel(
        {own: np.repeat(np.arange(n), times)}
    )
