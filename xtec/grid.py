"""The grid of chunks and shards, and Dask blocks that fit it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import xarray as xr

from .messages import warn

#: Chunk size where the user says nothing: four dates are what a temporal model looks at, 512 what a
#: CPU holds.
DEFAULT_CHUNKS = {"time": 4, "y": 512, "x": 512}


def _role_sizes(
    given: Mapping[Any, int], names: Mapping[str, Hashable], what: str
) -> dict[str, int]:
    """Sizes by the user's dimension names or by ours -> by ours."""
    known: dict[Any, str] = {role: role for role in names}
    known.update({dim: role for role, dim in names.items()})
    for dim in given:
        if dim not in known:
            raise ValueError(
                f"{what} names a dimension {dim!r} that is not there: there are "
                f"{list(names.values())}"
            )
    return {known[dim]: size for dim, size in given.items()}


def sizes_of(given: Mapping[Any, int] | None, what: str) -> dict[Any, int]:
    """``chunks`` or ``shards`` as a dict of whole numbers."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ValueError(
            f"{what} takes a mapping of dimension to size, such as {{'time': 4, 'y': 512, 'x': "
            f"512}}; got {given!r}"
        )
    for dim, size in given.items():
        if (
            not isinstance(size, (int, np.integer))
            or isinstance(size, bool)
            or (size < 1 and size != -1)
        ):
            raise ValueError(
                f"{what} of {dim!r} must be a positive whole number (or -1 for all), got {size!r}"
            )
    return {dim: int(size) for dim, size in given.items()}


def chunk_shape(
    sizes: dict[str, int], names: dict[str, Hashable], chunks: Mapping[Any, int] | None
) -> tuple[int, ...]:
    """Chunk shape; never larger than the array, all bands in one chunk."""
    wanted = {**DEFAULT_CHUNKS, **({} if chunks is None else _role_sizes(chunks, names, "chunks"))}
    band = wanted.pop("band", -1)
    if "band" in sizes and band not in (-1, sizes["band"]):
        raise ValueError(
            f"chunks of {band} bands, the array has {sizes['band']}: a chunk holds all bands, "
            "since they are coded together; "
            f"leave {names['band']!r} out of chunks"
        )
    return tuple(
        size if wanted.get(role, -1) == -1 else min(wanted[role], size)
        for role, size in sizes.items()
    )


def shard_shape(
    sizes: dict[str, int],
    names: dict[str, Hashable],
    chunk: tuple[int, ...],
    shards: Mapping[Any, int],
    zarr_format: int,
) -> tuple[int, ...]:
    if zarr_format != 3:
        raise ValueError(
            "shards exist in Zarr format 3 only: leave shards out, or use zarr_format=3"
        )
    wanted = _role_sizes(shards, names, "shards")
    shape = []
    for (role, size), unit in zip(sizes.items(), chunk, strict=True):
        whole = -(-size // unit) * unit
        n = wanted.get(role, unit)
        n = whole if n == -1 else min(n, whole)
        if n % unit:
            raise ValueError(
                f"shards of {names[role]!r} are {n}, not a whole number of its chunks ({unit}): "
                f"pass {n // unit * unit or unit}"
            )
        shape.append(n)
    return tuple(shape)


def align(data: xr.DataArray, unit: tuple[int, ...], roles: tuple[str, ...]) -> xr.DataArray:
    """Dask blocks of whole chunks: the user's where they fit, else (and it says so) the nearest."""
    if data.chunks is None:
        return _chunked(data, dict(zip(data.dims, unit, strict=True)))
    wanted: dict[Hashable, int] = {}
    told = []
    for dim, role, blocks, size in zip(data.dims, roles, data.chunks, unit, strict=True):
        if role == "band":
            wanted[dim] = -1  # one block always: bands come one by one from most readers
        elif any(edge % size for edge in np.cumsum(blocks)[:-1].tolist()):
            wanted[dim] = max(size, max(blocks) // size * size)
            told.append(f"{dim} {max(blocks)} -> {wanted[dim]}")
    if told:
        warn(
            f"Dask chunks of {data.name!r} were changed to whole multiples of what one write "
            "holds, "
            f"{dict(zip(data.dims, unit, strict=True))}: {', '.join(told)}. Pass chunks= to "
            "compress, or .chunk() the data, to choose otherwise"
        )
    return _chunked(data, wanted) if wanted else data


def _chunked(data: xr.DataArray, chunks: dict[Hashable, int]) -> xr.DataArray:
    """``data.chunk`` that leaves the coordinates alone."""
    return data.copy(data=data.variable.chunk(chunks).data)
