"""A zarr store that holds back the root's metadata until everything else is written.

A store without root metadata does not open; a store with metadata and without chunks does, and
reads as
nodata. So what is written last must be the root's metadata.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Self

from zarr.abc.store import Store
from zarr.core.sync import sync
from zarr.storage import StorePath, WrapperStore, ZipStore

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

ROOT_KEYS = ("zarr.json", ".zattrs", ".zmetadata", ".zgroup")
_NODE_KEYS = ("zarr.json", ".zarray", ".zgroup")


class RootLast(WrapperStore[Store]):
    """Wraps a store; writes to the root's metadata stay in memory until :meth:`commit`."""

    def __init__(self, store: Store, held: dict[str, Buffer] | None = None) -> None:
        super().__init__(store)
        self._held = {} if held is None else held

    def _with_store(self, store: Store) -> Self:
        return type(self)(store, self._held)

    def commit(self) -> None:
        """Write what was held back. From here on the store opens."""

        async def write() -> None:
            for key in ROOT_KEYS:
                if key in self._held:
                    await self._store.set(key, self._held[key])

        sync(write())

    async def set(self, key: str, value: Buffer) -> None:
        if key in ROOT_KEYS:
            self._held[key] = value
        else:
            await self._store.set(key, value)

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
        return await self._store.get(key, prototype, byte_range)

    async def exists(self, key: str) -> bool:
        return key in self._held or await self._store.exists(key)

    async def delete(self, key: str) -> None:
        if self._held.pop(key, None) is None:
            await self._store.delete(key)


def open_store(store: Any, storage_options: dict[str, Any] | None = None) -> Store:
    """A zarr Store for writing of a path, a URL or a Store."""
    from zarr.storage._common import make_store

    if isinstance(store, ZipStore):
        raise ValueError(
            "zarr's ZipStore cannot be written in parallel: pass the path of the .zip instead"
        )
    if isinstance(store, StorePath):
        raise ValueError(f"cannot write to {store}, a path inside a store: pass the store")
    if isinstance(store, os.PathLike):
        store = os.fspath(store)
    if isinstance(store, str) and os.path.isfile(store):
        raise FileExistsError(f"{store} is a file: choose another name for the store")
    return sync(make_store(store, mode="a", storage_options=storage_options))


def prepare(store: Store, overwrite: bool) -> None:
    """Make room: an existing store goes if the user said so, and only if it is a Zarr store."""

    async def look() -> tuple[list[str], list[str]]:
        names = [name async for name in store.list_dir("")]
        foreign = []
        for name in names:
            if name in ROOT_KEYS or name.endswith(".partial"):
                continue
            if not any([await store.exists(f"{name}/{key}") for key in _NODE_KEYS]):
                foreign.append(name)
        return names, foreign

    root = getattr(store, "root", None)
    names, foreign = sync(look())
    if not names:
        return
    if not overwrite:
        whole = any(key in names for key in ROOT_KEYS)
        state = "exists" if whole or foreign else "holds what an interrupted write has left"
        raise FileExistsError(
            f"{root or store} {state}: pass overwrite=True to replace it, or choose another name"
        )
    if foreign:
        raise FileExistsError(
            f"{root or store} holds {sorted(foreign)[:3]}, which is no part of a Zarr store: it "
            "is not overwritten; choose another name"
        )
    sync(store.clear())
