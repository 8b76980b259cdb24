"""The grid of chunks and shards, and Dask blocks that fit it."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Hashable, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from .autogrid import AUTO
from .messages import warn

#: Chunk size where the user says nothing: four dates are what a temporal model looks at, 512 what a
#: CPU holds.
DEFAULT_CHUNKS = {"time": 4, "y": 512, "x": 512}
#: Bytes that one task may read before that is worth a warning, and up to which chunks of a file
#: are read together rather than several times.
HEAVY, TOGETHER = 2e9, 500e6


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


def sizes_of(given: Mapping[Any, int] | str | None, what: str) -> dict[Any, int]:
    """``chunks`` or ``shards`` as a dict of whole numbers; empty where they are "auto"."""
    if given is None or (isinstance(given, str) and given == AUTO):
        return {}
    if not isinstance(given, Mapping):
        raise ValueError(
            f"{what} takes a mapping of dimension to size, such as {{'time': 4, 'y': 512, 'x': "
            f"512}}, or {AUTO!r}; got {given!r}"
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


class Task(NamedTuple):
    """What writing one Dask block takes: the largest of them.

    Attributes
    ----------
    blocks : blocks of the source that are read for it
    nbytes : bytes of these, as they lie in memory
    """

    blocks: int
    nbytes: int


def task_of(data: xr.DataArray, aligned: xr.DataArray) -> Task:
    """What the largest block of ``aligned`` needs of ``data``, which it was made from."""
    new = aligned.chunks or tuple((n,) for n in aligned.shape)
    old = source_blocks(data) or new
    covering = [_covering(*pair) for pair in zip(old, new, strict=True)]
    count, size = (math.prod(column) for column in zip(*covering, strict=True))
    return Task(count, size * data.dtype.itemsize)


def _covering(old: Sequence[int], new: Sequence[int]) -> tuple[int, int]:
    """(most blocks, most elements) of ``old`` that one of ``new`` touches, along one axis."""
    edges = [0, *accumulate(old)]
    count = size = 0
    for start, stop in pairwise([0, *accumulate(new)]):
        first, last = bisect_right(edges, start) - 1, bisect_left(edges, stop)
        count, size = max(count, last - first), max(size, edges[last] - edges[first])
    return count, size


def source_blocks(data: xr.DataArray) -> tuple[tuple[int, ...], ...] | None:
    """Blocks along each axis in which ``data`` is read: Dask's, else those of the file; None where
    it can be cut anywhere."""
    if data.chunks is not None:
        return data.chunks
    on_disk = _on_disk(data.variable)
    if not on_disk:
        return None
    return tuple(
        _split(n, on_disk.get(dim, n)) for dim, n in zip(data.dims, data.shape, strict=True)
    )


def _split(n: int, size: int) -> tuple[int, ...]:
    return (size,) * (n // size) + ((n % size,) if n % size else ())


def _on_disk(variable: xr.Variable) -> dict[Hashable, int]:
    """Chunks of the file that a lazy variable is read from, as far as xarray knows them."""
    found = {} if variable._in_memory else variable.encoding.get("preferred_chunks") or {}
    return {dim: int(np.max(size)) for dim, size in found.items()}


def reading_blocks(variable: xr.Variable, unit: Mapping[Hashable, int]) -> dict[Hashable, int]:
    """Dask blocks for a variable that has none: whole ``unit``, of which a file's chunk is read
    once as far as ``TOGETHER`` goes, where it is larger than a unit.

    ``unit`` : size by dimension; -1, or none, is all
    """
    sizes = {dim: n if unit.get(dim, -1) == -1 else unit[dim] for dim, n in variable.sizes.items()}
    on_disk = _on_disk(variable)
    for dim in reversed(variable.dims):
        whole = -(-min(on_disk.get(dim, 1), variable.sizes[dim]) // sizes[dim])
        room = TOGETHER / (math.prod(sizes.values()) * variable.dtype.itemsize)
        sizes[dim] *= max(1, min(whole, int(room)))
    return sizes


def align(
    data: xr.DataArray, unit: tuple[int, ...], roles: tuple[str, ...], tell: bool = True
) -> xr.DataArray:
    """Dask blocks of whole chunks: the user's where they fit, else (and it says so) the nearest.

    ``tell`` : whether to say so. What takes too much memory is said always.
    """
    if data.chunks is None:
        wanted = reading_blocks(data.variable, dict(zip(data.dims, unit, strict=True)))
        aligned = _chunked(data, wanted)
    else:
        wanted, told = _whole_chunks(data, unit, roles)
        if told and tell:
            warn(
                f"Dask chunks of {data.name!r} were changed to whole multiples of what one write "
                "holds, "
                f"{dict(zip(data.dims, unit, strict=True))}: {', '.join(told)}. Pass chunks= to "
                "compress, or .chunk() the data, to choose otherwise"
            )
        aligned = _chunked(data, wanted) if wanted else data
    if source_blocks(data) is not None:
        _check_memory(data, aligned, unit, roles)
    return aligned


def _whole_chunks(
    data: xr.DataArray, unit: tuple[int, ...], roles: tuple[str, ...]
) -> tuple[dict[Hashable, int], list[str]]:
    """New block sizes of the dimensions that need any, and what to tell of them."""
    wanted: dict[Hashable, int] = {}
    told = []
    for dim, role, blocks, size in zip(data.dims, roles, data.chunks or (), unit, strict=True):
        if role == "band":
            wanted[dim] = -1  # one block always: bands come one by one from most readers
        elif any(edge % size for edge in np.cumsum(blocks)[:-1].tolist()):
            wanted[dim] = max(size, max(blocks) // size * size)
            told.append(f"{dim} {max(blocks)} -> {wanted[dim]}")
    return wanted, told


def _check_memory(
    data: xr.DataArray, aligned: xr.DataArray, unit: tuple[int, ...], roles: tuple[str, ...]
) -> None:
    """Warn where one task needs more than a worker may have."""
    task = task_of(data, aligned)
    if task.nbytes <= HEAVY:
        return
    blocks = source_blocks(data) or ()
    dims = dict(zip(roles, data.dims, strict=True))
    smaller = {
        str(dims[role]): min(max(1, round(1024 / n)) * n, data.sizes[dims[role]])
        for role, n in zip(roles, unit, strict=True)
        if role in ("y", "x")
    }
    remedies = [f"open the data in smaller Dask blocks, such as chunks={smaller}"]
    at = roles.index("time") if "time" in roles else 0
    one, joined = max(blocks[at]), _covering(blocks[at], (aligned.chunks or ())[at])[1]
    if roles[at] == "time" and unit[at] > 1 and joined > one:
        remedies.append(
            f"pass chunks={{{str(data.dims[at])!r}: 1}}, which joins no dates "
            f"({task.nbytes // joined * one / 1e9:.1f} GB a task)"
        )
    warn(
        f"writing {data.name!r} takes {task.nbytes / 1e9:.1f} GB of input a task, times the tasks "
        f"that run at once: chunks {by_dim(data.dims, unit)} in blocks that are up to "
        f"{by_dim(data.dims, [max(b) for b in blocks])} need {task.blocks} of these "
        f"together. Either {', or '.join(remedies)}. An array that is open already keeps "
        "reading its blocks whole, whatever .chunk() makes of them"
    )


def by_dim(dims: Sequence[Hashable], sizes: Sequence[int]) -> str:
    """ "time 4 x y 512"."""
    return " x ".join(f"{dim} {n}" for dim, n in zip(dims, sizes, strict=True))


def _chunked(data: xr.DataArray, chunks: dict[Hashable, int]) -> xr.DataArray:
    """``data.chunk`` that leaves the coordinates alone."""
    return data.copy(data=data.variable.chunk(chunks).data)
