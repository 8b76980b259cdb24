"""The objects of an array in a store: chunks, or shards that hold several of them.

What is in a shard is read here without decoding it: resuming and verifying look at every stream.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING
from zipfile import BadZipFile

import numpy as np
from tec.errors import TecError
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from .zarr2 import F_ORDER

if TYPE_CHECKING:
    import zarr
    from zarr.abc.store import Store

At = tuple[int, ...]  # place of an object in the grid, or of a chunk in a shard
Region = tuple[slice, ...]

_NOT_THERE = 2**64 - 1  # offset in the index of a shard


def unit_of(array: zarr.Array) -> tuple[int, ...]:
    """Shape of what one object holds."""
    return array.shards or array.chunks


def called(arrays: Iterable[zarr.Array]) -> str:
    """What their objects are, for people: "chunks", "shards", or both."""
    found = {"chunks" if array.shards is None else "shards" for array in arrays}
    return " and ".join(sorted(found))


def grid_of(array: zarr.Array) -> tuple[int, ...]:
    """How many objects there are along each axis."""
    return tuple(-(-size // n) for size, n in zip(array.shape, unit_of(array), strict=True))


def region_of(array: zarr.Array, at: At) -> Region:
    """The pixels of an object that lie in the array."""
    return tuple(
        slice(i * n, min((i + 1) * n, size))
        for i, n, size in zip(at, unit_of(array), array.shape, strict=True)
    )


def keys_of(array: zarr.Array, path: str, places: Iterable[At] | None = None) -> dict[At, str]:
    """The key of each object (or of some), by its place in the grid."""
    encode = array.metadata.encode_chunk_key
    places = np.ndindex(*grid_of(array)) if places is None else places
    return {at: f"{path}/{encode(at)}" for at in places}


def left_over(array: zarr.Array) -> list[str]:
    """Keys of objects beyond the end of an array: an append that has not ended leaves some."""
    place, grid = array.store_path, grid_of(array)
    prefix = f"{place.path}/" if place.path else ""

    async def found() -> list[str]:
        keys = []
        async for key in place.store.list_prefix(prefix):
            parts = re.split("[/.]", key.removeprefix(prefix).removeprefix("c"))
            numbers = [int(part) for part in parts if part.isdecimal()]
            if len(numbers) == len(grid) and any(n >= m for n, m in zip(numbers, grid)):
                keys.append(key)
        return keys

    return sync(found())


def stored_bytes(array: zarr.Array) -> tuple[int, list[str]]:
    """Size of an array in its store, metadata included, and the keys that are `left_over`, which
    are not counted."""
    extra = left_over(array)
    return array.nbytes_stored() - total_size(array.store, extra), extra


def total_size(store: Store, keys: Sequence[str]) -> int:
    """Bytes of some keys, a thousand at a time."""

    async def added() -> int:
        size = 0
        for i in range(0, len(keys), 1000):
            size += sum(await asyncio.gather(*map(store.getsize, keys[i : i + 1000])))
        return size

    return sync(added())


def read(store: Store, key: str) -> bytes | None:
    """None where there is nothing, or nothing that can be read."""
    return read_all(store, [key])[0]


def read_all(store: Store, keys: Iterable[str]) -> list[bytes | None]:
    """As `read`, all of them at once."""

    async def one(key: str) -> bytes | None:
        try:
            data = await store.get(key, default_buffer_prototype())
        except BadZipFile:
            return None
        return None if data is None else data.to_bytes()

    async def gathered() -> list[bytes | None]:
        return await asyncio.gather(*map(one, keys))

    return sync(gathered())


def streams_in(data: bytes, array: zarr.Array, at: At) -> dict[At, bytes]:
    """The stream of each chunk in an object of ours, by its place in it.

    Raises TecError unless a shard is as one write leaves it. Its index is at the end: offset and
    length of each chunk, uint64, and a CRC-32C of all that.
    """
    if array.shards is None:
        return {(0,) * array.ndim: data.removeprefix(F_ORDER)}  # with which no stream begins
    import google_crc32c

    counts = _counts(array, array.shards)
    nbytes = 16 * int(np.prod(counts))
    index, checksum = data[-nbytes - 4 : -4], data[-4:]
    if len(index) < nbytes or google_crc32c.value(index) != int.from_bytes(checksum, "little"):
        raise TecError("the index of the shard is damaged")
    places = np.frombuffer(index, "<u8").reshape(*counts, 2)
    # chunks beyond the end of the array are never written
    there = [
        -(-(r.stop - r.start) // m) for r, m in zip(region_of(array, at), array.chunks, strict=True)
    ]
    wanted = np.zeros(counts, bool)
    wanted[tuple(map(slice, there))] = True
    lengths = places[wanted][:, 1]
    if ((places[..., 0] != _NOT_THERE) != wanted).any() or lengths.sum() + nbytes + 4 != len(data):
        raise TecError("the shard does not hold the chunks that it should")
    found = (data[start : start + length] for start, length in places[wanted].tolist())
    return dict(zip(np.ndindex(*there), found, strict=True))


def object_of(array: zarr.Array, streams: Mapping[At, bytes]) -> bytes:
    """The inverse of `streams_in`."""
    if array.shards is None:
        (data,) = streams.values()
        return F_ORDER + data if array.metadata.zarr_format == 2 and array.order == "F" else data
    import google_crc32c

    index = np.full((*_counts(array, array.shards), 2), _NOT_THERE, "<u8")
    at = 0
    for place, data in streams.items():
        index[place] = at, len(data)
        at += len(data)
    raw = index.tobytes()
    return b"".join((*streams.values(), raw, google_crc32c.value(raw).to_bytes(4, "little")))


def _counts(array: zarr.Array, shards: tuple[int, ...]) -> list[int]:
    """Chunks in a shard along each axis."""
    return [n // m for n, m in zip(shards, array.chunks, strict=True)]
