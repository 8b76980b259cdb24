"""Groups of several resolutions (EOPF products: r10m, r20m, r60m) <-> one Dataset on the finest.

Coarse pixels are repeated, which costs next to nothing: the codec finds repeated pixels, codes them
on their own grid, and gives them back repeated. So the way back is exact.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from .attributes import CF_ENCODING, plain, same, storable
from .dims import role_of
from .grid import reading_blocks
from .messages import warn

#: The attribute of a Dataset that tells which variables came from which group: a JSON text.
GROUPS = "xtec_groups"
#: How far from each other, in pixels of the finest grid, edges may lie that are the same.
_NEAR = 1e-3
_BLOCK = 2048  # rows and columns of the Dask blocks of what has none


@dataclass(frozen=True)
class _Group:
    """A Dataset of images on one grid; ``y`` and ``x`` are the names of its dimensions."""

    name: str
    ds: xr.Dataset
    y: Hashable
    x: Hashable

    @property
    def shape(self) -> tuple[int, int]:
        return self.ds.sizes[self.y], self.ds.sizes[self.x]


def from_groups(groups: xr.DataTree | Mapping[str, xr.Dataset]) -> xr.Dataset:
    """Bands of several resolutions on one grid, the finest, lazily: each coarse pixel is repeated.

    Parameters
    ----------
    groups : DataTree or mapping of names to Datasets
        Such as ``xr.open_datatree(product, engine="zarr", chunks={})["measurements/reflectance"]``
        of an EOPF product, or ``{"r10m": ds10, "r20m": ds20}``. What has y and x is repeated; what
        has not is kept. A variable that several groups have is taken from the finest, with a
        warning. Other dimensions (time) must be the same in all groups.

    Returns
    -------
    Dataset with Dask blocks as the groups have them (their number of pixels repeated), and an
    attribute ``xtec_groups`` by which `to_groups` gives the groups back, also after compression.

    Raises
    ------
    ValueError
        Two groups of one resolution have a variable in common, or grids do not nest: all groups
        must cover the same area, in whole pixels of the coarsest.

    Notes
    -----
    Chunks of the codec should hold whole coarse pixels, so multiples of 6 for 60 m on 10 m
    (``chunks={"y": 732, "x": 732}`` divides a tile of 10980): a coarse pixel on a border of two is
    coded twice, and comes back as its first part.

    Examples
    --------
    >>> import numpy as np, xarray as xr, xtec
    >>> fine = xr.Dataset({"b02": (("y", "x"), np.ones((4, 4), "uint16"))})
    >>> coarse = xr.Dataset({"b05": (("y", "x"), np.array([[1, 2], [3, 4]], "uint16"))})
    >>> ds = xtec.from_groups({"r10m": fine, "r20m": coarse})
    >>> ds["b05"].values[:2].tolist()
    [[1, 1, 2, 2], [1, 1, 2, 2]]
    >>> xtec.to_groups(ds)["r20m"]["b05"].values.tolist()
    [[1, 2], [3, 4]]
    """
    found = _found(groups)
    finest = found[0]
    out = finest.ds.assign_attrs(storable(finest.ds.attrs, f"group {finest.name!r}"))
    saved: dict[str, Any] = {}
    blocks = _fine_blocks(finest)
    owner = {name: finest for name in finest.ds.variables}
    for group in found:
        factor = _factor(group, finest)
        variables, left_out = _new(group, owner)
        for name in variables:
            owner[name] = group
        if left_out:
            warn(
                f"group {group.name!r}: {', '.join(map(repr, left_out))} are in "
                f"{sorted({owner[name].name for name in left_out})} as well, which is finer, and "
                "are left out here: to keep them, give them names of their own first"
            )
        names = {group.y: finest.y, group.x: finest.x}
        for name, variable in variables.items():
            if factor > 1 and {group.y, group.x} & set(variable.dims):
                variable = _repeated(variable, (group.y, group.x), factor, blocks)
            dims = tuple(names.get(dim, dim) for dim in variable.dims)
            out[name] = xr.Variable(dims, variable.data, variable.attrs, _cf(variable))
            if name in group.ds.coords:
                out = out.set_coords(name)
        saved[group.name] = _saved(group, finest, factor, owner)
    out.attrs[GROUPS] = json.dumps(saved)
    return out


def to_groups(ds: xr.Dataset) -> dict[str, xr.Dataset]:
    """The groups that `from_groups` was given, lazily: of each repeated pixel the first.

    Parameters
    ----------
    ds : Dataset of `from_groups`, before or after compression (band variables, as
        ``engine="xtec"`` and ``xtec.bandvars.split`` give them); parts of it have to begin and end
        with whole pixels of the coarsest group. Bands that are gone are left out.

    Returns
    -------
    dict of Datasets; ``xr.DataTree.from_dict`` makes a tree of it. Coordinates of coarse pixels are
    the middles of the fine ones that they hold.

    Raises
    ------
    ValueError
        ``ds`` has no attribute ``xtec_groups``, or holds parts of coarse pixels.
    """
    text = ds.attrs.get(GROUPS)
    if not isinstance(text, str):
        raise ValueError(
            f"the Dataset has no attribute {GROUPS!r}: xtec.to_groups takes what xtec.from_groups "
            'made, opened with engine="xtec" where it was compressed'
        )
    saved = json.loads(text)
    out = {}
    for name, info in saved.items():
        mine = [v for v in ds.data_vars if str(v) in info["variables"]]
        part = ds[mine]
        part.attrs = info["attrs"]
        part = _native(part, info)
        part = part.rename({a: b for a, b in info["dims"].items() if a != b and a in part.dims})
        part = part.drop_vars([c for c in part.coords if str(c) not in info["coords"]])
        for coord in part.coords:
            part[coord].attrs = info["coords"][str(coord)]
        out[name] = part
    return out


def _found(groups: xr.DataTree | Mapping[str, xr.Dataset]) -> list[_Group]:
    """Those that hold images, the finest first."""
    datasets: dict[str, Any]
    if isinstance(groups, xr.DataTree):
        top = groups.path.rstrip("/")
        datasets = {
            n.path.removeprefix(top).strip("/") or "/": n.to_dataset() for n in groups.subtree
        }
    elif isinstance(groups, Mapping) and not isinstance(groups, xr.Dataset):
        datasets = {str(name): ds for name, ds in groups.items()}
    else:
        raise ValueError(
            f"from_groups takes a DataTree or {{'r10m': Dataset, ...}}, not {type(groups).__name__}"
        )
    found, without = [], []
    for name, ds in datasets.items():
        dims = {role_of(d): d for v in ds.data_vars.values() for d in v.dims}
        if {"y", "x"} <= set(dims):
            found.append(_Group(name, ds, dims["y"], dims["x"]))
        elif ds.data_vars:
            without.append(name)
    if not found:
        raise ValueError(
            f"no group has variables with y and x; the groups are {list(datasets)}: pass the part "
            "of the tree that holds bands, such as tree['measurements/reflectance']"
        )
    if without:
        warn(f"groups {without} hold no images and are left out")
    return sorted(found, key=lambda group: -group.shape[0] * group.shape[1])


def _factor(group: _Group, finest: _Group) -> int:
    """Fine pixels of a pixel each way; ValueError where the grids do not nest."""
    factors = [n / m for n, m in zip(finest.shape, group.shape, strict=True)]
    factor = round(factors[0])
    if factor < 1 or any(f != factor for f in factors):
        raise ValueError(
            f"groups {finest.name!r} and {group.name!r} have {finest.shape} and {group.shape} "
            "pixels, which is not the same whole number of times both ways: cut all groups to one "
            "area, in whole pixels of the coarsest"
        )
    for mine, its in ((finest.y, group.y), (finest.x, group.x)):
        if (mine in finest.ds.coords) != (its in group.ds.coords):
            raise ValueError(
                f"one of the groups {finest.name!r} and {group.name!r} has coordinates {mine!r}, "
                "the other has not: assign them, or drop them in both"
            )
        if mine not in finest.ds.coords or finest.ds.sizes[mine] < 2:
            continue
        fine, coarse = (ds[d].values for ds, d in ((finest.ds, mine), (group.ds, its)))
        off = np.abs(_middles(fine, factor) - coarse).max() / abs(fine[1] - fine[0])
        if not off <= _NEAR:
            raise ValueError(
                f"groups {finest.name!r} and {group.name!r} do not nest along {mine!r}: pixels of "
                f"{group.name!r} lie up to {off:.3g} fine pixels beside the {factor} that they "
                "should hold; cut all groups to one area, in whole pixels of the coarsest"
            )
    return factor


def _middles(fine: np.ndarray, factor: int) -> np.ndarray:
    return (fine[::factor] + fine[factor - 1 :: factor]) / 2 if factor > 1 else fine


def _new(
    group: _Group, owner: Mapping[Hashable, _Group]
) -> tuple[dict[Hashable, xr.Variable], list[Hashable]]:
    """Variables of a group that no finer one has, and names of those that one has."""
    variables: dict[Hashable, xr.Variable] = {}
    left_out = []
    for name, data in group.ds.variables.items():
        if owner.get(name) is group:
            continue
        gridded = {group.y, group.x} & set(data.dims)
        if name in group.ds.coords or not gridded:
            if name in (group.y, group.x):
                continue
            if gridded:
                warn(
                    f"group {group.name!r}: coordinate {name!r} lies on its own grid and is left "
                    "out"
                )
            elif name not in owner:
                variables[name] = data
            elif not same(owner[name].ds[name].values, data.values):
                raise ValueError(
                    f"{name!r} differs in groups {owner[name].name!r} and {group.name!r}: select "
                    "what they have in common, or .drop_vars it"
                )
        elif name not in owner:
            variables[name] = data
        elif owner[name].shape == group.shape:
            raise ValueError(
                f"{name!r} is in {owner[name].name!r} and in {group.name!r}, of one resolution: "
                "pass the part of the tree that you mean, such as tree['measurements/reflectance']"
            )
        else:
            left_out.append(name)
    return variables, left_out


def _fine_blocks(finest: _Group) -> dict[str, tuple[int, ...]]:
    """Dask blocks of the finest images along y and x, where they have some."""
    for variable in finest.ds.data_vars.values():
        sizes = variable.chunksizes
        if finest.y in sizes and finest.x in sizes:
            return {"y": sizes[finest.y], "x": sizes[finest.x]}
    return {}


def _repeated(
    variable: xr.Variable,
    dims: tuple[Hashable, Hashable],
    factor: int,
    wanted: Mapping[str, tuple[int, ...]],
) -> xr.Variable:
    """Each pixel ``factor`` times each way, block by block; blocks of ``wanted`` where they hold
    whole pixels."""
    if variable.chunks is None:
        piece = {d: max(1, _BLOCK // factor) for d in dims}
        variable = variable.chunk(reading_blocks(variable, piece))
    for dim, role in zip(dims, ("y", "x"), strict=True):
        if dim in variable.dims and not any(n % factor for n in wanted.get(role, (1,))):
            variable = variable.chunk({dim: tuple(n // factor for n in wanted[role])})
    axes = tuple(variable.dims.index(dim) for dim in dims if dim in variable.dims)
    chunks = tuple(
        tuple(n * factor for n in sizes) if axis in axes else sizes
        for axis, sizes in enumerate(variable.chunks or ())
    )
    data = variable.data.map_blocks(
        _repeat, factor=factor, axes=axes, chunks=chunks, dtype=variable.dtype
    )
    return xr.Variable(variable.dims, data, variable.attrs, _cf(variable))


def _repeat(block: np.ndarray, factor: int, axes: tuple[int, ...]) -> np.ndarray:
    for axis in axes:
        block = np.repeat(block, factor, axis=axis)
    return block


def _cf(variable: xr.Variable) -> dict[str, Any]:
    return {key: value for key, value in variable.encoding.items() if key in CF_ENCODING}


def _saved(
    group: _Group, finest: _Group, factor: int, owner: Mapping[Hashable, _Group]
) -> dict[str, Any]:
    """What it takes to give a group back, as JSON values."""
    ds = group.ds
    return {
        "factor": factor,
        "dims": {str(finest.y): str(group.y), str(finest.x): str(group.x)},
        "grid": {
            str(d): [float(finest.ds[d][0]), float(finest.ds[d][1] - finest.ds[d][0])]
            for d in (finest.y, finest.x)
            if d in finest.ds.coords and finest.ds.sizes[d] > 1
        },
        "variables": [str(name) for name in ds.data_vars if owner[name] is group],
        "attrs": plain(storable(ds.attrs, f"group {group.name!r}")),
        "coords": {
            str(name): plain(storable(c.attrs, f"coordinate {name!r}"))
            for name, c in ds.coords.items()
        },
    }


def _native(part: xr.Dataset, info: Mapping[str, Any]) -> xr.Dataset:
    """Of each repeated pixel the first."""
    factor = info["factor"]
    dims = [dim for dim in info["dims"] if dim in part.dims]
    if factor == 1:
        return part
    for dim in dims:
        n, before = part.sizes[dim], 0
        if dim in part.coords and dim in info["grid"]:
            first, step = info["grid"][dim]
            before = round((float(part[dim][0]) - first) / step) % factor
        if n % factor or before:
            raise ValueError(
                f"{n} pixels along {dim!r} that begin {before} behind the border of a coarse pixel "
                f"are no whole number of coarse pixels, of {factor} each: select a multiple of "
                f"{factor} that begins at one"
            )
    middles = {
        dim: xr.Variable(dim, _middles(part[dim].values, factor), part[dim].attrs)
        for dim in dims
        if dim in part.coords
    }
    encodings = {name: _cf(part[name].variable) for name in part.data_vars}
    part = part.isel({dim: slice(None, None, factor) for dim in dims}).assign_coords(middles)
    for name, encoding in encodings.items():
        part[name].encoding = encoding
    return part
