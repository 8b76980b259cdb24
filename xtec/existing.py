"""A store that is there: what its readers see, and its metadata as they will be.

One key decides what the store holds: the root's, where it has consolidated metadata (xarray's
default), else that of the compressed variable. It is written last, so that whoever kills an append
leaves what was there before, or all of what is there afterwards.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self, cast

import numpy as np
import xarray as xr
import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from .attributes import ATTRIBUTE
from .chunks import ChunkCoder
from .messages import quiet
from .objects import keys_of, read_all
from .rootlast import ROOT_KEYS, RootLast, says_unfinished

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest, Store
    from zarr.core.buffer import Buffer, BufferPrototype

_METADATA = ("zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata")
_ARRAY_KEY: dict[int, str] = {3: "zarr.json", 2: ".zarray"}
_ATTRIBUTE_KEY: dict[int, str] = {3: "zarr.json", 2: ".zattrs"}
_CONSOLIDATED_KEY: dict[int, str] = {3: "zarr.json", 2: ".zmetadata"}


class Overlay(RootLast):
    """Other metadata over the chunks of a store; none of them reaches it.

    ``anew`` : keys of chunks that are written without a look at what stands there: nothing of that
        is to be kept
    """

    def __init__(
        self,
        store: Store,
        held: dict[str, Buffer] | None = None,
        anew: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__(store, held)
        self._anew = anew
        self._done: set[str] = set()

    def _with_store(self, store: Store) -> Self:
        return type(self)(store, self._held, self._anew)

    async def set(self, key: str, value: Buffer) -> None:
        if key.rpartition("/")[2] in _METADATA:
            self._held[key] = value
        else:
            await self._store.set(key, value)
            self._done.add(key)

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        if key in self._anew and key not in self._done:
            return None
        return await super().get(key, prototype, byte_range)


@dataclass(frozen=True)
class Existing:
    """A store with a variable that xtec has compressed.

    Attributes
    ----------
    store : it
    zarr_format : 2 or 3
    name, codec : of the compressed variable
    arrays : in the root, by name, as readers see them
    view : the same as xarray shows them; nothing but indexes is loaded
    documents : key and JSON of their metadata, and of the root's
    consolidated : whether the root repeats the metadata of the arrays
    attrs : of the compressed variable, as readers see them
    """

    store: Store
    zarr_format: Literal[2, 3]
    name: str
    codec: ChunkCoder
    arrays: dict[str, zarr.Array]
    view: xr.Dataset
    documents: dict[str, dict[str, Any]]
    consolidated: bool
    attrs: dict[str, Any]

    def __str__(self) -> str:
        return str(getattr(self.store, "root", self.store))

    @property
    def array(self) -> zarr.Array:
        return self.arrays[self.name]

    def dims(self, name: str) -> tuple[str, ...]:
        return tuple(map(str, self.view.variables[name].dims))

    def length(self, dim: str) -> int:
        """As the key that decides says it."""
        return int(self.array.shape[self.dims(self.name).index(dim)])

    def lengthened(
        self, dim: str, length: int, note: Mapping[str, Any] | None = None
    ) -> dict[str, dict[str, Any]]:
        """All metadata, for another length of a dimension; the key that decides comes last.

        ``note`` : in place of what `note` returns
        """
        key = _ARRAY_KEY[self.zarr_format]
        out = copy.deepcopy(self.documents)
        root = out.pop(_CONSOLIDATED_KEY[self.zarr_format], None)
        for name in self.arrays:
            documents = [out[f"{name}/{key}"]]
            if self.consolidated:
                assert root is not None
                documents.append(_repeated(root, name, key, self.zarr_format))
            if dim in self.dims(name):
                for document in documents:
                    document["shape"][self.dims(name).index(dim)] = length
        if note is not None:
            key = _ATTRIBUTE_KEY[self.zarr_format]
            documents = [out[f"{self.name}/{key}"]]
            if self.consolidated:
                documents.append(_repeated(cast(Any, root), self.name, key, self.zarr_format))
            for document in documents:
                attributes = document["attributes"] if self.zarr_format == 3 else document
                said = json.loads(attributes[ATTRIBUTE])
                attributes[ATTRIBUTE] = json.dumps({**said, "verified": note})
        # the compressed variable last; of format 2 its attributes before its shape, which decides
        last = f"{self.name}/{_ARRAY_KEY[self.zarr_format]}"
        own = f"{self.name}/"
        found = {k: out[k] for k in sorted(out, key=lambda k: (k == last, k.startswith(own), k))}
        if root is not None and self.consolidated:
            found[_CONSOLIDATED_KEY[self.zarr_format]] = root
        return found

    def note(self) -> dict[str, Any] | None:
        """What `verify` has left in the attribute of the variable, or None."""
        try:
            return json.loads(str(self.attrs[ATTRIBUTE])).get("verified")
        except (KeyError, ValueError):
            return None

    def overlay(
        self, dim: str | None = None, length: int = 0, anew: frozenset[str] = frozenset()
    ) -> Overlay:
        """The store as it will be once a dimension has this length."""
        documents = self.documents if dim is None else self.lengthened(dim, length)
        return _overlay(self.store, documents, anew)

    def commit(self, documents: Mapping[str, dict[str, Any]]) -> None:
        """Write metadata that are not there yet, in their order."""
        there = read_all(self.store, documents)

        async def write() -> None:
            for (key, document), found in zip(documents.items(), there, strict=True):
                if found is None or json.loads(found) != document:
                    await self.store.set(key, _buffer(document))

        sync(write())


def _repeated(root: dict[str, Any], name: str, key: str, zarr_format: int) -> dict[str, Any]:
    """Metadata of an array in the consolidated ones."""
    if zarr_format == 3:
        return root["consolidated_metadata"]["metadata"][name]
    return root["metadata"][f"{name}/{key}"]


def _buffer(document: Mapping[str, Any]) -> Buffer:
    return default_buffer_prototype().buffer.from_bytes(json.dumps(document, indent=2).encode())


def _overlay(
    store: Store, documents: Mapping[str, dict[str, Any]], anew: frozenset[str] = frozenset()
) -> Overlay:
    held = {key: _buffer(document) for key, document in documents.items()}
    roots = [key for key in ROOT_KEYS if key not in held]
    for key, data in zip(roots, read_all(store, roots), strict=True):
        if data is not None:
            held[key] = default_buffer_prototype().buffer.from_bytes(data)
    return Overlay(store, held, anew)


def look(store: Store, dim: str | None = None) -> Existing:
    """What a store holds.

    Parameters
    ----------
    store : not empty
    dim : an append along it may have been interrupted: arrays that are longer along it than the
        key that decides says are taken for as long as that

    Raises
    ------
    ValueError
        The store is unfinished, is none, or has no variable or several that xtec has compressed.
    """
    from .report import find_codec

    text = str(getattr(store, "root", store))
    with quiet():
        try:
            group = zarr.open_group(store, mode="r")
        except (FileNotFoundError, ValueError) as error:
            if not says_unfinished(error):
                raise
            raise ValueError(
                f"{text} is unfinished (or no Zarr store): finish it first, with the call that was "
                "interrupted and resume=True (without append_dim or region)"
            ) from error
        arrays = dict(group.arrays())
    codecs = {name: codec for name, a in arrays.items() if (codec := find_codec(a)) is not None}
    if len(codecs) != 1:
        raise ValueError(
            f"{text} holds {len(codecs) or 'no'} variables that xtec has compressed "
            f"({sorted(arrays)}): append_dim and region need a store with one; write others with "
            "xarray's to_zarr"
        )
    ((name, codec),) = codecs.items()
    attrs = dict(arrays[name].attrs)
    zarr_format = group.metadata.zarr_format
    consolidated = group.metadata.consolidated_metadata is not None
    wanted = {f"{n}/{_ARRAY_KEY[zarr_format]}" for n in arrays}
    wanted.add(f"{name}/{_ATTRIBUTE_KEY[zarr_format]}")
    keys = [*sorted(wanted), *([_CONSOLIDATED_KEY[zarr_format]] if consolidated else [])]
    documents = {
        key: json.loads(data)
        for key, data in zip(keys, read_all(store, keys), strict=True)
        if data is not None
    }
    dims = {n: _dims(array) for n, array in arrays.items()}
    if dim is not None and dim in dims[name]:
        length = arrays[name].shape[dims[name].index(dim)]
        for n in arrays:
            if dim in dims[n]:
                documents[f"{n}/{_ARRAY_KEY[zarr_format]}"]["shape"][dims[n].index(dim)] = length
    overlay = _overlay(store, documents)
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        view = xr.open_zarr(overlay, consolidated=False, chunks=None, zarr_format=zarr_format)
        arrays = dict(zarr.open_group(overlay, mode="r", use_consolidated=False).arrays())
    return Existing(store, zarr_format, name, codec, arrays, view, documents, consolidated, attrs)


def _dims(array: zarr.Array) -> Sequence[str]:
    if array.metadata.zarr_format == 3:
        return array.metadata.dimension_names or ()  # type: ignore[return-value]
    return cast(Sequence[str], array.attrs.get("_ARRAY_DIMENSIONS", ()))


def stored_in(
    store: Store, array: zarr.Array, places: Sequence[tuple[int, ...]], along: int
) -> set[str]:
    """Keys of those of some objects that are there. Lists as little as keys allow.

    ``along`` : axis in whose rows the places are
    """
    wanted = keys_of(array, array.path, places)
    encode = array.metadata.encode_chunk_key
    prefixes = {f"{array.path}/"}
    if along == 0 and array.ndim > 1:
        head = {at[0]: encode(at).rsplit("/", array.ndim - 1)[0] for at in places}
        if all("/" in encode(at) for at in places):
            prefixes = {f"{array.path}/{folder}/" for folder in head.values()}
    candidates = set(wanted.values())

    async def listed() -> set[str]:
        found = set()
        for prefix in sorted(prefixes):
            found |= {key async for key in store.list_prefix(prefix) if key in candidates}
        return found

    return sync(listed())


def same_values(a: Any, b: Any) -> np.ndarray:
    """Element by element; NaN equals NaN, NaT equals NaT."""
    a, b = np.asarray(a), np.asarray(b)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        equal = np.asarray(a == b)
        both = np.asarray((a != a) & (b != b))
    return np.broadcast_to(equal | both, np.broadcast_shapes(a.shape, b.shape))
