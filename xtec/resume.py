"""Going on with an interrupted write: what a store holds, and what is left to write.

All of the store is looked at before anything in it is changed. What belongs there is known without
computing a block: the metadata and the variables in memory are written into memory first. So three
things can be told apart: what another job has written (an error), what is whole (it stays), and
what is missing or damaged (it is written again).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import xarray as xr
import zarr
from tec.errors import TecError
from zarr.core.sync import sync
from zarr.storage import MemoryStore

from .attributes import ATTRIBUTE
from .blocks import Job, Target, each
from .chunks import ChunkCoder
from .embedded import GROUP
from .objects import At, called, grid_of, keys_of, read, read_all, region_of, streams_in
from .rootlast import LEFT_OVER, ROOT_KEYS, UNFINISHED, RootLast
from .storeerrors import StoreError

if TYPE_CHECKING:
    from zarr.abc.store import Store
    from zarr.core.buffer import Buffer

#: Attributes (or entries of ours) and groups that are added once the chunks are there: what a store
#: has of them is no difference, and goes when it is written again.
ADDED_ATTRIBUTES: frozenset[str] = frozenset({"verified"})
ADDED_GROUPS: frozenset[str] = frozenset({GROUP})

_METADATA = ("zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata")


@dataclass(frozen=True)
class Resumed:
    """What a resumed write found.

    Attributes
    ----------
    whole : objects (chunks, or shards) that were there and stay
    written : objects that were missing or damaged; 0 where the store was complete
    unit : what these are, for people
    """

    whole: int
    written: int
    unit: str = field(default="chunks", compare=False)

    def __str__(self) -> str:
        if not self.written:
            return f"all {self.whole} {self.unit} were there and whole"
        total = self.whole + self.written
        return f"{self.whole} of {total} {self.unit} were there and whole, {self.written} written"


@dataclass(frozen=True)
class Found:
    """What a store holds of a job, see :func:`survey`.

    Attributes
    ----------
    target : the store
    root : key and content of the root metadata
    rooted : whether these are there
    outdated : key and content of other metadata, and of variables in memory, that are not there as
        they should be
    spoilt : keys of damaged chunks, and files that were left over
    left : what is to be done with each variable in blocks
    resumed : the figures
    """

    target: Store
    root: dict[str, Buffer]
    rooted: bool
    outdated: dict[str, Buffer]
    spoilt: list[str]
    left: list[Job]
    resumed: Resumed

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do but to delete files that were left over."""
        return self.rooted and not (self.outdated or self.resumed.written)


def survey(
    obj: xr.Dataset | xr.DataArray, name: str | None, target: Store, zarr_format: int
) -> Found:
    """Compare a store, which may be empty, with what writing ``obj`` would put there.

    Changes nothing.

    Parameters
    ----------
    obj : what ``compress`` has returned
    name : of its compressed variable in the store, if there is one
    target : may be read-only
    zarr_format : 2 or 3

    Raises
    ------
    ValueError
        The store holds something else, or what was written with other options.
    """
    obj = _in_blocks(obj, name)
    staged = _staged(obj, target, zarr_format)
    stored = set(sync(_keys(target)))
    _check_metadata(staged, target, stored)
    guarded = RootLast(target, dict(staged))  # the metadata as they should be, the chunks as found
    arrays = {}
    for path, variable in _dask_variables(obj, name):
        keep_empty = variable.encoding.get("write_empty_chunks", False)
        place = Target(guarded, path, zarr_format, keep_empty, target.read_only)
        arrays[path] = place, variable, keys_of(place.array, path)
    chunk_keys = {key for *_, keys in arrays.values() for key in keys.values()}
    _check_keys(stored, chunk_keys | staged.keys(), target)

    old = sorted(staged.keys() & stored)
    said = dict(zip(old, read_all(target, old), strict=True))
    outdated = {key: data for key, data in staged.items() if said.get(key) != data.to_bytes()}
    rooted = not any(key in ROOT_KEYS for key in outdated)
    spoilt = [key for key in stored if key.endswith(LEFT_OVER)]
    left = []
    whole = written = 0
    for place, variable, keys in arrays.values():
        there = [at for at, key in keys.items() if key in stored]
        damaged = [at for some in each(damaged_among, place, there) for at in some]
        spoilt += [keys[at] for at in damaged]
        todo = np.ones(grid_of(place.array), bool)
        for at in there:
            todo[at] = False
        for at in damaged:
            todo[at] = True
        left.append(Job(replace(place, store=RootLast(target)), variable.data, todo))
        whole += int(todo.size - todo.sum())
        written += int(todo.sum())
    return Found(
        target,
        {key: data for key, data in staged.items() if key in ROOT_KEYS},
        rooted,
        {key: data for key, data in outdated.items() if key not in ROOT_KEYS},
        spoilt,
        left,
        Resumed(whole, written, called(place.array for place, *_ in arrays.values())),
    )


def go_on(found: Found, zarr_format: int) -> RootLast:
    """Put in order what is there: all but the chunks that are left.

    Returns the store, unfinished until it is committed.
    """
    guarded = RootLast(found.target, dict(found.root))
    if not found.complete:
        guarded.mark(zarr_format)

    async def tidy() -> None:
        for key in found.spoilt:
            await found.target.delete(key)
        for key in sorted(found.outdated, key=_metadata_first):
            await found.target.set(key, found.outdated[key])

    sync(tidy())
    return guarded


def _metadata_first(key: str) -> tuple[bool, str]:
    return key.rpartition("/")[2] not in _METADATA, key


# what belongs there


class _Staged(MemoryStore):
    """A store in memory that takes the same metadata as another one."""

    def __init__(self, consolidated: bool) -> None:
        super().__init__()
        self._consolidated = consolidated

    @property
    def supports_consolidated_metadata(self) -> bool:
        return self._consolidated


def _staged(obj: xr.Dataset | xr.DataArray, target: Store, zarr_format: int) -> dict[str, Buffer]:
    """All keys that are written before the first Dask block is computed."""
    store = _Staged(RootLast(target).supports_consolidated_metadata)
    obj = _standing_in(obj)
    obj.to_zarr(store, mode="w-", zarr_format=zarr_format, compute=False)  # type: ignore[call-overload]
    return dict(store._store_dict)


def _standing_in(obj: Any) -> Any:
    """The same metadata over Dask arrays of one block, where the chunks in the store do not depend
    on it: xarray makes tasks of all blocks, which here nobody computes."""
    import dask.array as da

    def light(variable: Any) -> Any:
        if variable.chunks is None or not variable.encoding.get("chunks"):
            return variable
        return variable.copy(data=da.zeros(variable.shape, dtype=variable.dtype, chunks=-1))

    if isinstance(obj, xr.DataArray):
        return light(obj)
    return obj.assign({name: light(obj.variables[name]) for name in obj.variables})


def _in_blocks(obj: Any, name: str | None) -> Any:
    """The compressed variable as a Dask array whose blocks are whole objects: someone may have
    loaded it, or cut it otherwise, since it was compressed."""
    from .compression import codec_of
    from .grid import align

    if name is None:
        return obj
    data = obj if isinstance(obj, xr.DataArray) else obj[name]
    unit = data.encoding.get("shards") or data.encoding["chunks"]
    fitting = align(data, unit, codec_of(data.encoding).dims)  # type: ignore[union-attr]
    return fitting if data is obj else obj.assign({name: fitting.variable})


def _dask_variables(obj: Any, name: str | None) -> Iterator[tuple[str, xr.Variable]]:
    """Name and variable as xarray would store it: packed, scaled, in the stored dtype."""
    from xarray.backends.zarr import encode_zarr_variable

    ds = obj.to_dataset(name=name) if isinstance(obj, xr.DataArray) else obj
    for key, variable in ds.variables.items():
        if variable.chunks is not None and variable.size:
            yield str(key), encode_zarr_variable(variable, name=key)


async def _keys(store: Store) -> list[str]:
    return [key async for key in store.list()]


# whether it is the same job


def _check_metadata(staged: dict[str, Buffer], target: Store, stored: Iterable[str]) -> None:
    """Refuse metadata that differ, or that are no part of what is written."""
    for key in sorted(stored):
        last = key.rpartition("/")[2]
        # consolidated metadata repeat the others
        if last not in _METADATA or last == ".zmetadata" or _is_added(key):
            continue
        found = _json(read(target, key))
        if not found or found.get("zarr_format") == UNFINISHED:
            continue  # damaged, attributes that are still to come, or the mark
        wanted = _json(staged[key].to_bytes()) if key in staged else None
        if wanted is None:
            _refuse(target, f"{key} is no part of what is to be written")
        if not found.get("attributes"):  # xarray creates an array, then gives it attributes
            found["attributes"] = wanted.get("attributes")
        if differences := list(_differences(found, wanted, "")):
            _refuse(target, f"{key}: {'; '.join(differences[:3])}")


def _check_keys(stored: set[str], known: set[str], target: Store) -> None:
    """Refuse what this package has not written."""
    for key in sorted(stored - known):
        if not (key.endswith(LEFT_OVER) or _is_added(key)):
            _refuse(target, f"{key} is no part of what is to be written")


def _is_added(key: str) -> bool:
    return key.partition("/")[0] in ADDED_GROUPS


def _refuse(target: Store, what: str) -> NoReturn:
    raise ValueError(
        f"cannot resume writing {getattr(target, 'root', target)}, it holds something else: "
        f"{what}. Pass the data and the options of the interrupted run, or overwrite=True in place "
        "of resume=True to start over"
    )


def _json(data: bytes | None) -> dict[str, Any] | None:
    """The metadata, or None where they are damaged. Our attribute is taken apart, too."""

    def expand(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        out = dict(pairs)
        if isinstance(out.get(ATTRIBUTE), str):
            out[ATTRIBUTE] = _json(out[ATTRIBUTE].encode()) or out[ATTRIBUTE]
        return out

    try:
        found = json.loads(data or b"", object_pairs_hook=expand)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _differences(found: Any, wanted: Any, path: str) -> Iterator[str]:
    """ "attributes.units is 'K' there and '1' here", for all that differs."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in sorted(found.keys() | wanted.keys()):
            inner = f"{path}.{key}" if path else key
            if key not in ADDED_ATTRIBUTES and inner != "consolidated_metadata":
                yield from _differences(found.get(key), wanted.get(key), inner)
    elif isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        for i, (one, other) in enumerate(zip(found, wanted, strict=True)):
            yield from _differences(one, other, f"{path}[{i}]")
    elif found != wanted and not (found != found and wanted != wanted):
        yield f"{path} is {found!r} there and {wanted!r} here"


# which chunks are whole


def damaged_among(target: Target, places: list[At]) -> list[At]:
    """Which of the chunks (or shards) that are there are not whole.

    Those of ours are streams with checksums; those of a lossless variable are decoded.
    """
    from .report import find_codec

    array = target.array
    codec = find_codec(array)
    if codec is None:
        return [at for at in places if not _decodes(array, at)]
    keys = keys_of(array, target.path, places)
    return [
        at
        for at, data in zip(places, read_all(array.store, keys.values()), strict=True)
        if not _is_ours(data, array, codec, at)
    ]


def _decodes(array: zarr.Array, at: At) -> bool:
    try:
        array[region_of(array, at)]
    except StoreError:
        raise
    except Exception:  # each compressor has errors of its own
        return False
    return True


def _is_ours(data: bytes | None, array: zarr.Array, codec: ChunkCoder, at: At) -> bool:
    """Whether a chunk, or each one in a shard, is an undamaged stream with the codec's settings."""
    if data is None:
        return False
    try:
        streams = streams_in(data, array, at).values()
        return all(_has_settings(stream, codec, array.dtype) for stream in streams)
    except TecError:
        return False


def _has_settings(data: bytes, codec: ChunkCoder, dtype: np.dtype) -> bool:
    """Raises TecError on a stream that is damaged or of another array. Decodes nothing."""
    from tec import stream, weights

    header = codec.check_header(data, dtype, "a chunk")
    stream.unpack(data)
    config, sha256 = codec.config, codec.config.weights_sha256
    if header.model == "none":
        return True
    if header.model != config.model or sha256 is None:  # chunks of one date, see FORMAT.md
        sha256 = weights.sha256(
            header.model,
            weights=config.weights,
            sensor=config.sensor,
            compression=config.compression,
        )
    return (
        stream.weights_id(config.weights) == header.config.weights
        and header.digest.hex() == sha256[: 2 * stream.DIGEST]
    )
