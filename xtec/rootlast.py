"""A zarr store that holds back the root's metadata until everything else is written.

A store with metadata and without chunks opens, and reads as nodata. So what is written last must be
the root's metadata. Until then a mark stands in their place, for two reasons: zarr and xarray show
its text to whoever opens the store, and without it ``zarr.open`` (or an append) would give the
unfinished store new root metadata, and it would open.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any, Self

from zarr.abc.store import Store
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import StorePath, WrapperStore, ZipStore

from .remote import is_url, name_of, open_url, reliable
from .storeerrors import CLOSED, explained

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

ROOT_KEYS = ("zarr.json", ".zattrs", ".zmetadata", ".zgroup")
LEFT_OVER = ".partial"  # how zarr's LocalStore calls a file until it is whole
_NAMED = 3  # foreign files that a message names
_NODE_KEYS = ("zarr.json", ".zarray", ".zgroup")
#: What the mark of an unfinished store says, in the place of its format: zarr quotes it.
UNFINISHED = (
    "incomplete: xtec was interrupted while writing this store, or still writes it. Write it again "
    "with resume=True (xtec compress --resume), or with overwrite=True to start over"
)
_MARK_KEYS = {3: "zarr.json", 2: ".zgroup"}


class RootLast(WrapperStore[Store]):
    """Wraps a store; writes to the root's metadata stay in memory until :meth:`commit`."""

    def __init__(self, store: Store, held: dict[str, Buffer] | None = None) -> None:
        super().__init__(store)
        self._held = {} if held is None else held

    def _with_store(self, store: Store) -> Self:
        return type(self)(store, self._held)

    @property
    def supports_consolidated_metadata(self) -> bool:
        return getattr(self._store, "supports_consolidated_metadata", True)

    def mark(self, zarr_format: int) -> None:
        """Say that the store is unfinished, and take away root metadata that say otherwise."""
        key = _MARK_KEYS[zarr_format]
        text = json.dumps({"zarr_format": UNFINISHED, "node_type": "group"})

        async def write() -> None:
            try:
                await self._write(key, default_buffer_prototype().buffer.from_bytes(text.encode()))
            except OSError:
                raise
            except Exception:
                pass  # a store that reads metadata may refuse this: it is as well protected without
            for other in (".zattrs", ".zmetadata") if zarr_format == 2 else ():
                await self._store.delete(other)

        sync(write())

    def commit(self) -> None:
        """Write what was held back, over the mark. From here on the store opens."""

        async def write() -> None:
            for key in ROOT_KEYS:
                if key in self._held:
                    await self._write(key, self._held[key])

        sync(write())

    async def _write(self, key: str, value: Buffer) -> None:
        """Errors say where, and what to do."""
        try:
            await self._store.set(key, value)
        except OSError as error:
            better = explained(error, name_of(self._store), f"writing {key}")
            if better is error:
                raise
            raise better from error

    async def set(self, key: str, value: Buffer) -> None:
        if key in ROOT_KEYS:
            self._held[key] = value
        else:
            await self._write(key, value)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        if key in ROOT_KEYS:
            self._held.setdefault(key, value)
        else:
            await self._store.set_if_not_exists(key, value)

    async def _set_many(self, values: Iterable[tuple[str, Buffer]]) -> None:
        for key, value in values:
            await self.set(key, value)

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        if key in self._held:
            return self._held[key]  # metadata is read whole
        if key in ROOT_KEYS:
            return None  # the mark is not for us
        return await self._store.get(key, prototype, byte_range)

    async def exists(self, key: str) -> bool:
        return key in self._held or (key not in ROOT_KEYS and await self._store.exists(key))

    async def is_empty(self, prefix: str) -> bool:
        if prefix:
            return await self._store.is_empty(prefix)
        return await _is_empty(self._store, besides=ROOT_KEYS) and not self._held

    async def delete(self, key: str) -> None:
        if self._held.pop(key, None) is None and key not in ROOT_KEYS:
            await self._store.delete(key)


def says_unfinished(error: Exception) -> bool:
    """Whether opening a store failed because its root metadata are missing, or are the mark."""
    return isinstance(error, FileNotFoundError) or UNFINISHED in str(error)


def not_whole(store: Any) -> str:
    """What to tell whoever wants to read a store that is unfinished, or is none."""
    local = isinstance(store, (str, os.PathLike)) and not is_url(store)
    if (local and not os.path.exists(store)) or (isinstance(store, Store) and is_empty(store)):
        return f"there is nothing at {name_of(store)}: correct the name"
    if local and os.path.isfile(store):
        return f"{name_of(store)} is a file that is no Zarr store (.zip): correct the name"
    return (
        f"{name_of(store)} is not a whole Zarr store (it has no root metadata): was its writing "
        "interrupted? The same compress --resume (resume=True) goes on with it"
    )


def open_store(store: Any, storage_options: dict[str, Any] | None = None) -> Store:
    """A zarr Store for writing of a path, a URL or a Store; with retries, where it is remote."""
    from zarr.storage._common import make_store

    if isinstance(store, ZipStore):
        raise ValueError(
            "zarr's ZipStore cannot be written in parallel: pass the path of the .zip instead"
        )
    if isinstance(store, StorePath):
        raise ValueError(f"cannot write to {store}, a path inside a store: pass the store")
    if is_url(store):
        return open_url(store, storage_options)
    if store is None or store == "":
        raise ValueError(f"there is no store {store!r}: pass a path, a URL or a zarr Store")
    if isinstance(store, os.PathLike):
        store = os.fspath(store)
    if isinstance(store, str) and os.path.isfile(store):
        raise FileExistsError(f"{store} is a file: choose another name for the store")
    if isinstance(store, str) and os.path.isdir(store) and not os.access(store, os.W_OK | os.X_OK):
        raise PermissionError(f"{store}: {CLOSED}")
    try:
        return reliable(sync(make_store(store, mode="a", storage_options=storage_options)))
    except OSError as error:
        raise explained(error, str(store), "making the folder") from error


def is_empty(store: Store) -> bool:
    """Whether nothing is there."""
    return sync(_is_empty(store))


def prepare(store: Store, overwrite: bool) -> None:
    """Make room: an existing store goes if the user said so, and only if it is a Zarr store."""

    async def is_foreign(name: str) -> bool:
        if any([await store.exists(f"{name}/{key}") for key in _NODE_KEYS]):
            return False
        inside = [key async for key in store.list_prefix(f"{name}/")]
        return not inside or not all(key.endswith(LEFT_OVER) for key in inside)

    async def look() -> tuple[list[str], list[str], bool]:
        names = [name async for name in store.list_dir("")]
        foreign = []
        for name in names:
            if name in ROOT_KEYS or name.endswith(LEFT_OVER):
                continue
            if await is_foreign(name):
                foreign.append(name)
            if len(foreign) == _NAMED:
                break
        return names, foreign, await _has_root(store)

    names, foreign, whole = sync(look())
    if not names:
        return
    if not overwrite:
        if whole or foreign:
            state = "exists: pass"
        else:
            state = "holds what an interrupted write has left: pass resume=True to go on with it,"
        raise FileExistsError(
            f"{name_of(store)} {state} overwrite=True to replace it, or choose another name"
        )
    if foreign:
        raise FileExistsError(
            f"{name_of(store)} holds {sorted(foreign)}, which is no part of a Zarr store: it "
            "is not overwritten; choose another name"
        )

    async def clear() -> None:
        for key in ROOT_KEYS:  # first: what is half gone must not open
            await store.delete(key)
        await store.clear()

    sync(clear())


async def _is_empty(store: Store, besides: Collection[str] = ()) -> bool:
    async for key in store.list_dir(""):
        if key not in besides:
            return False
    return True


async def _has_root(store: Store) -> bool:
    """Whether there are root metadata, other than the mark."""
    prototype = default_buffer_prototype()
    found = [await store.get(key, prototype) for key in _MARK_KEYS.values()]
    mark = json.dumps(UNFINISHED).encode()
    return any(data is not None and mark not in data.to_bytes() for data in found)
