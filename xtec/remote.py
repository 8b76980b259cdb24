"""Stores behind a network: opened from URLs, and tried again when they fail for a moment.

A cube of 10 TB is a million requests and more, over hours: some of them fail. The clients (s3fs,
gcsfs, obstore) try again for seconds; here it is a minute, for every operation and client alike.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Self, TypeVar

from zarr.abc.store import Store
from zarr.storage import FsspecStore, LocalStore, ObjectStore, WrapperStore

from . import settings
from .storeerrors import StoreError, explained, kind, reason

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

T = TypeVar("T")
log = logging.getLogger("xtec.remote")

#: Seconds to wait before the first retry; the double before each further one, up to the longest.
FIRST_WAIT, LONGEST_WAIT = 0.25, 30.0
#: What fsspec needs for a protocol, and an extra of this package brings.
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}
_EXTRAS = {"s3fs": "s3", "gcsfs": "gcs", "obstore": "obstore"}
_NEAR = {"file", "local", "memory"}
_AT_ONCE = 1000  # keys that S3 deletes in one request


def is_url(store: Any) -> bool:
    """Whether this is a URL, and no path, no Store."""
    return isinstance(store, str) and ("://" in store or "::" in store)


def open_url(
    url: str, storage_options: dict[str, Any] | None = None, *, read_only: bool = False
) -> Store:
    """A Store for a URL, by fsspec or by obstore.

    Parameters
    ----------
    url : such as s3://bucket/cube.zarr
    storage_options : dict, optional
        For the file system of fsspec; with ``backend="obstore"`` among them (or where only obstore
        is installed) for ``obstore.store.from_url``.

    Raises
    ------
    ValueError
        On a URL of a ``.zip``, one without a bucket or of an unknown kind, and unknown options.
    ImportError
        A package is missing.
    """
    scheme, _, rest = url.partition("://")
    if url.endswith(".zip"):
        raise ValueError(
            f"{url} is a zip at a URL, which can neither be written nor read: name a .zarr there, "
            "or use a .zip on this machine"
        )
    if scheme in _PACKAGES and not rest.partition("/")[0]:
        raise ValueError(f"{url} names no bucket: write {scheme}://bucket/cube.zarr")
    options = dict(storage_options or {})
    backend = options.pop("backend", None)
    if backend not in (None, "fsspec", "obstore"):
        raise ValueError(f"backend is {backend!r}: choose 'fsspec' or 'obstore'")
    package = _PACKAGES.get(scheme)
    if backend is None and package and not _has(package) and _has("obstore"):
        backend = "obstore"
    if backend == "obstore":
        return reliable(_by_obstore(url, options, read_only))
    if package and not _has(package):
        raise _missing(url, package, ", or obstore")
    if package:
        # Workers write: what this process has seen once says nothing of what is there now.
        options = {"use_listings_cache": False, **options}
    if package == "s3fs":
        options = {"max_concurrency": 1, **options}  # else it asks for the size before each read
    try:
        found = FsspecStore.from_url(url, options or None, read_only)
    except ImportError as error:
        raise ImportError(f"{url} cannot be opened: {error}") from error
    return reliable(found)


def _by_obstore(url: str, options: dict[str, Any], read_only: bool) -> Store:
    if not _has("obstore"):
        raise _missing(url, "obstore")
    from obstore.exceptions import BaseError
    from obstore.store import from_url

    try:
        return ObjectStore(from_url(url, **options), read_only=read_only)
    except (BaseError, TypeError) as error:
        raise ValueError(
            f"obstore cannot open {url}: {reason(error)} (storage_options are those of "
            "obstore.store.from_url)"
        ) from error


def _has(package: str) -> bool:
    return find_spec(package) is not None


def _missing(url: str, package: str, other: str = "") -> ImportError:
    return ImportError(
        f"{url} needs {package}{other}: pip install {package} (or xtec[{_EXTRAS[package]}])"
    )


def for_reading(store: Any, storage_options: dict[str, Any] | None = None) -> Any:
    """What zarr and xarray open in place of ``store``: URLs and remote stores with retries."""
    if is_url(store):
        return open_url(store, storage_options, read_only=True)
    return reliable(store) if isinstance(store, Store) else store


def reliable(store: Store) -> Store:
    """With retries, if it is a store behind a network."""
    if isinstance(store, FsspecStore):
        protocol = store.fs.protocol
        near = _NEAR & ({protocol} if isinstance(protocol, str) else set(protocol))
    elif isinstance(store, ObjectStore):
        near = {"memory"} if type(store.store).__name__ in ("LocalStore", "MemoryStore") else set()
    else:
        return store
    return store if near else Retrying(store)


def name_of(store: Any) -> str:
    """The path or URL of a store, for messages."""
    if isinstance(store, WrapperStore):
        return name_of(store._store)
    if isinstance(store, LocalStore):
        return os.fspath(store.root)
    if isinstance(store, FsspecStore):
        return str(store.fs.unstrip_protocol(store.path))
    if isinstance(store, ObjectStore):
        scheme = {"S3Store": "s3", "GCSStore": "gs"}.get(type(store.store).__name__)
        if scheme is not None:
            parts = (store.store.config["bucket"], store.store.prefix)
            return f"{scheme}://" + "/".join(str(part).strip("/") for part in parts if part)
    return str(store)


class Retrying(WrapperStore[Store]):
    """Wraps an FsspecStore or an ObjectStore: what fails for a moment is tried again.

    How often is ``xtec.settings.retries`` where the store is opened; it goes along to workers.

    Raises
    ------
    StoreError, FileNotFoundError, PermissionError
        What failed in the end, or at once where trying again is no use; see `storeerrors`.
    """

    def __init__(self, store: Store, retries: int | None = None) -> None:
        super().__init__(store)
        self.retries = settings.retries if retries is None else retries

    def _with_store(self, store: Store) -> Self:
        return type(self)(store, self.retries)

    def __str__(self) -> str:
        return name_of(self)

    @property
    def supports_consolidated_metadata(self) -> bool:
        return getattr(self._store, "supports_consolidated_metadata", True)

    async def _try(self, doing: str, call: Callable[[], Awaitable[T]]) -> T:
        """Call until it goes well, or will not."""
        tries = 1
        while True:
            if isinstance(self._store, FsspecStore):
                self._store.fs.invalidate_cache()  # what was listed before says nothing
            try:
                return await call()
            except Exception as error:
                if kind(error) != "passing" or tries > self.retries:
                    better = explained(error, name_of(self), doing, tries=tries)
                    if better is error:
                        raise
                    raise better from error
                longest = min(FIRST_WAIT * 2 ** (tries - 1), LONGEST_WAIT)
                wait = longest * random.uniform(0.5, 1)  # else all come back at the same time
                log.info(
                    "%s: %s failed (%s); retry %d of %d in %.1f s",
                    name_of(self),
                    doing,
                    reason(error),
                    tries,
                    self.retries,
                    wait,
                )
            await asyncio.sleep(wait)
            tries += 1

    # reading

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        return await self._try(
            f"reading {key}", lambda: self._store.get(key, prototype, byte_range)
        )

    async def get_partial_values(
        self,
        prototype: BufferPrototype,
        key_ranges: Iterable[tuple[str, ByteRequest | None]],
    ) -> list[Buffer | None]:
        wanted = list(key_ranges)
        what = wanted[0][0] if wanted else "nothing"
        return await self._try(
            f"reading {what}", lambda: self._store.get_partial_values(prototype, wanted)
        )

    async def _get_many(
        self, requests: Iterable[tuple[str, BufferPrototype, ByteRequest | None]]
    ) -> AsyncGenerator[tuple[str, Buffer | None], None]:
        for key, prototype, byte_range in requests:
            yield key, await self.get(key, prototype, byte_range)

    async def exists(self, key: str) -> bool:
        return await self._try(f"looking for {key}", lambda: self._store.exists(key))

    async def getsize(self, key: str) -> int:
        return await self._try(f"looking for {key}", lambda: self._store.getsize(key))

    async def getsize_prefix(self, prefix: str) -> int:
        """From listings, where zarr would ask for each key."""
        inner = self._store

        async def add_up() -> int:
            if not isinstance(inner, FsspecStore):
                return await inner.getsize_prefix(prefix)
            found = await inner.fs._find(f"{inner.path}/{prefix}".rstrip("/"), detail=True)
            return sum(info["size"] or 0 for info in found.values())

        return await self._try(f"listing {prefix}", add_up)

    async def is_empty(self, prefix: str) -> bool:
        async for _ in self.list_dir(prefix):
            return False
        return True

    def list(self) -> AsyncIterator[str]:
        return self._listed("", self._store.list)

    def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        return self._listed(prefix, lambda: self._store.list_prefix(prefix))

    def list_dir(self, prefix: str) -> AsyncIterator[str]:
        return self._listed(prefix, lambda: self._store.list_dir(prefix))

    async def _listed(
        self, prefix: str, call: Callable[[], AsyncIterator[str]]
    ) -> AsyncIterator[str]:
        for key in await self._collected(prefix, call):
            if key and not key.endswith("/"):  # consoles put empty objects for folders
                yield key

    async def _collected(self, prefix: str, call: Callable[[], AsyncIterator[str]]) -> Any:
        """A listing as a whole: one that fails midway starts again."""

        async def collect() -> Any:
            return [key async for key in call()]

        return await self._try(f"listing {prefix}", collect)

    # writing

    async def set(self, key: str, value: Buffer) -> None:
        await self._try(f"writing {key}", lambda: self._store.set(key, value))

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        await self._try(f"writing {key}", lambda: self._store.set_if_not_exists(key, value))

    async def _set_many(self, values: Iterable[tuple[str, Buffer]]) -> None:
        await asyncio.gather(*(self.set(key, value) for key, value in values))

    async def delete(self, key: str) -> None:
        await self._try(f"deleting {key}", lambda: self._store.delete(key))

    async def delete_dir(self, prefix: str) -> None:
        """Many keys in a request, where zarr deletes one by one."""
        folder = f"{prefix.rstrip('/')}/" if prefix else ""
        inner, call = self._store, lambda: self._store.list_prefix(folder)
        if not folder:
            call = self._store.list
        keys = [key for key in await self._collected(prefix, call) if key]
        for start in range(0, len(keys), _AT_ONCE):
            some = keys[start : start + _AT_ONCE]
            await self._try(f"deleting {some[0]}", lambda some=some: _delete(inner, some))  # type: ignore[misc]
        left = await self._collected(prefix, call) if keys else []
        if any(left):  # s3fs does not tell
            raise StoreError(
                f"{self}: {len(left)} of {len(keys)} keys could not be deleted, such as {left[0]}: "
                "check what the credentials allow"
            )

    async def clear(self) -> None:
        await self.delete_dir("")


async def _delete(store: Store, keys: list[str]) -> None:
    with suppress(FileNotFoundError):  # when it is tried again
        if isinstance(store, FsspecStore):
            await store.fs._rm([f"{store.path}/{key}" for key in keys])
        elif isinstance(store, ObjectStore):
            import obstore

            await obstore.delete_async(store.store, keys)
