"""Weights inside a store: the checkpoints that its chunks need, in a group beside the variables.

``xtec_weights`` holds the files of the checkpoints, each once, as an array of bytes that is named
by its sha256. The attribute ``checkpoints`` of the group says which files make a checkpoint, by the
sha256 of these files one after another: {sha256: {"models": ["tt"], "files": [sha256, ...]}}.

Anyone may have written a store. What is read from it is bounded, and counts only where its sha256
is the one that the data were coded with; `tec.loading` runs no code.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
from tec import weights
from tec.errors import WeightsError
from tec.loading import LARGEST, hashed

if TYPE_CHECKING:
    import zarr
    from tec.config import CodecConfig
    from tec.stream import Header
    from zarr.abc.store import Store

    from .chunks import ChunkCoder

#: Name of the group.
GROUP = "xtec_weights"
#: Bytes of a file that are one chunk.
PIECE = 2**24
#: Files of one checkpoint: transforms, "elic" and "tt".
_MOST_FILES = 3
_SHA256 = re.compile("[0-9a-f]{64}")

#: A model, and how the sha256 of its checkpoint begins (None: any).
Need = tuple[str, str | None]


@dataclass(frozen=True)
class Checkpoint:
    """What the attribute says of one.

    Attributes
    ----------
    sha256 : of its files, one after another
    models : that it serves
    files : their sha256, in order
    """

    sha256: str
    models: tuple[str, ...]
    files: tuple[str, ...]


def embed_weights(store: Any, *, storage_options: dict[str, Any] | None = None) -> int:
    """Put the decoder's weights into a store that is already there.

    A machine that lacks them then takes them from the store: in chunks of Zarr format 3 by itself,
    in shards and in format 2 with ``xr.open_dataset(store, engine="xtec")``.

    Parameters
    ----------
    store : path, URL or zarr Store
        With arrays that xtec has compressed, at any depth. No ``.zip``: pass ``embed_weights=True``
        to :func:`xtec.to_zarr` for that.
    storage_options : dict, optional
        For URLs.

    Returns
    -------
    int
        Bytes of the checkpoints.

    Raises
    ------
    ValueError
        There is nothing of xtec's in the store.
    WeightsError
        A checkpoint cannot be had, or is another one than the data were coded with.
    """
    import zarr

    from .remote import name_of
    from .report import find_codec
    from .rootlast import open_store
    from .writing import quiet

    place = open_store(store, storage_options)
    with quiet():
        root = zarr.open_group(place, mode="r+", use_consolidated=False)
        arrays = [node for _, node in root.members(max_depth=None) if isinstance(node, zarr.Array)]
        codecs = [codec for array in arrays if (codec := find_codec(array)) is not None]
        if not codecs:
            raise ValueError(f"{name_of(place)} holds no variable that xtec has compressed")
        return embed(place, codecs)


def embed(store: Store, codecs: Iterable[ChunkCoder]) -> int:
    """Put the checkpoints of codecs into a store that has its metadata; returns their bytes."""
    import zarr

    root = zarr.open_group(store, mode="r+", use_consolidated=False)
    try:
        known = {checkpoint.sha256: checkpoint for checkpoint in _listed(root)}
    except WeightsError:
        known = {}  # damaged: here is who repairs it
    wanted: dict[str, Checkpoint] = {}
    paths: dict[str, Path] = {}
    for codec in codecs:
        for model, digest in needs(codec.config):
            try:
                # Who writes a store with published weights has asked for them.
                digest, found = weights.find(
                    model, **_place(codec.config), expect=digest, download=True
                )
            except WeightsError:
                if digest not in known:
                    raise
                files, models = known[digest].files, known[digest].models
            else:
                files, models = tuple(hashed((path,)) for path in found), (model,)
                paths.update(zip(files, found, strict=True))
            before = wanted[digest].models if digest in wanted else ()
            wanted[digest] = Checkpoint(digest, tuple(sorted({*before, *models})), files)
    if not wanted:
        return 0  # model "none" has no weights
    group = root.require_group(GROUP)
    for name, path in paths.items():
        _write(group, name, np.memmap(path, np.uint8, "r"))
    group.attrs["checkpoints"] = {
        one.sha256: {"models": list(one.models), "files": list(one.files)}
        for one in wanted.values()
    }
    if zarr.open_group(store, mode="r+").metadata.consolidated_metadata is not None:
        zarr.consolidate_metadata(store)
    return summary(root)["bytes"]  # type: ignore[index]


def summary(root: zarr.Group) -> dict[str, Any] | None:
    """Models by the sha256 of their weights in a store, and the bytes of these; None where it has
    none. Reads metadata only; ``bytes`` is None where these are damaged."""
    found: list[Checkpoint] = []
    size = None
    with suppress(Exception):  # metadata that are wrong fail in every way there is
        found = _listed(root)
        if not found:
            return None
        files = {name for checkpoint in found for name in checkpoint.files}
        size = sum(root[f"{GROUP}/{name}"].size for name in files)  # type: ignore[union-attr,misc]
    return {"bytes": size, "checkpoints": {one.sha256: list(one.models) for one in found}}


def needs(config: CodecConfig) -> list[Need]:
    """What may have coded the chunks of an array."""
    from tec.codec import routed

    if config.model == "none":
        return []
    alone = routed(config, 1)
    own: list[Need] = [(config.model, config.weights_sha256)]
    return own if alone == config.model else [*own, (alone, None)]


def needs_of(config: CodecConfig, headers: Iterable[Header]) -> list[Need]:
    """What has coded these chunks."""
    found = {(h.model, h.digest.hex()) for h in headers if h.extent[0] and h.model != "none"}
    whole = config.weights_sha256 or ""
    return [
        (model, whole if model == config.model and whole.startswith(digest) else digest)
        for model, digest in sorted(found)
    ]


async def bring(
    store: Store,
    path: str,
    config: CodecConfig,
    needed: Sequence[Need],
    zarr_format: int = 3,
) -> None:
    """Offer to tec what is needed, this machine lacks and the store has.

    Parameters
    ----------
    store, path : an array, or one of its chunks; the groups that it lies in are looked at
    config : of the array's codec
    needed : see `needs`
    zarr_format : of the array

    Raises
    ------
    WeightsError
        What the store has is damaged. Where it has nothing, tec says so when it decodes.
    """

    def lacking() -> list[Need]:
        return [
            (m, digest)
            for m, digest in needed
            if not weights.at_hand(m, **_place(config), expect=digest)
        ]

    if not await asyncio.to_thread(lacking):
        return
    async with _turn():
        missing = await asyncio.to_thread(lacking)
        if not missing:
            return
        for group in await _groups(store, path, zarr_format):
            for checkpoint in _checkpoints(group):
                if not any(
                    model in checkpoint.models and checkpoint.sha256.startswith(digest or "")
                    for model, digest in missing
                ):
                    continue
                model = checkpoint.models[0]
                if not weights.at_hand(model, **_place(config), expect=checkpoint.sha256):
                    await _offer(group, checkpoint)


_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()


def _turn() -> asyncio.Lock:
    """One at a time reads weights: the others find them afterwards."""
    return _turns.setdefault(asyncio.get_running_loop(), asyncio.Lock())


def _place(config: CodecConfig) -> dict[str, Any]:
    return {
        "weights": config.weights,
        "sensor": config.sensor,
        "compression": config.compression,
    }


def _write(group: zarr.Group, name: str, data: np.ndarray) -> None:
    dimension = f"byte_{name[:8]}"  # files differ in length, so they cannot share one
    more: dict[str, Any] = {"fill_value": 0, "dimension_names": [dimension]}
    if group.metadata.zarr_format == 2:  # where xarray takes a fill value for missing data
        more = {"fill_value": None, "attributes": {"_ARRAY_DIMENSIONS": [dimension]}}
    array = group.create_array(
        name,
        shape=data.shape,
        dtype=data.dtype,
        chunks=(min(PIECE, data.size),),
        filters=None,
        compressors=None,  # weights hardly compress, and what is read is as large as it says
        overwrite=True,
        **more,
    )
    array[:] = data


def _listed(root: zarr.Group) -> list[Checkpoint]:
    group = root.get(GROUP)
    return [] if group is None else _checkpoints(group)


def _checkpoints(group: Any) -> list[Checkpoint]:
    """What the attribute of the group says. WeightsError where it makes no sense."""
    listed = dict(group.attrs).get("checkpoints", {})
    try:
        found = [
            Checkpoint(str(digest), tuple(entry["models"]), tuple(entry["files"]))
            for digest, entry in listed.items()
        ]
        if not all(_SHA256.fullmatch(n) for one in found for n in (one.sha256, *one.files)):
            raise ValueError("names that are no sha256")
        if not all(one.models and 0 < len(one.files) <= _MOST_FILES for one in found):
            raise ValueError("a checkpoint without models, or not of 1 to 3 files")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _damaged(group, f"its attribute 'checkpoints' makes no sense ({error})") from error
    return found


async def _groups(store: Store, path: str, zarr_format: int) -> list[zarr.AsyncGroup]:
    """Groups of weights in the groups above ``path``, the nearest first."""
    from zarr import AsyncGroup
    from zarr.storage import StorePath

    parts = path.split("/")
    folders = ["/".join(parts[:n]) for n in range(len(parts) - 1, -1, -1)]

    async def look(folder: str) -> zarr.AsyncGroup | None:
        try:
            return await AsyncGroup.open(
                StorePath(store, folder) / GROUP,
                zarr_format=zarr_format,  # type: ignore[arg-type]
                use_consolidated=False,
            )
        except (FileNotFoundError, PermissionError):  # S3 may say so of what does not exist
            return None

    found = await asyncio.gather(*map(look, folders))
    return [group for group in found if group is not None]


async def _offer(group: zarr.AsyncGroup, checkpoint: Checkpoint) -> None:
    files: list[bytes] = []
    for name in checkpoint.files:
        files.append(await _read(group, name, LARGEST - sum(map(len, files))))
        digest = await asyncio.to_thread(hashlib.sha256, files[-1])
        if digest.hexdigest() != name:
            raise _damaged(group, f"the sha256 of {name[:16]}... is another one")
    if await asyncio.to_thread(weights.offer, files) != checkpoint.sha256:
        raise _damaged(group, f"the files of {checkpoint.sha256[:16]}... have another sha256")


async def _read(group: zarr.AsyncGroup, name: str, most: int) -> bytes:
    """A file of at most so many bytes."""
    try:
        array: Any = await group.getitem(name)
        size, *others = array.shape
        plain = not array.compressors and not array.filters and array.shards is None
        if others or not plain or array.dtype != np.uint8 or not array.chunks[0] <= 4 * PIECE:
            raise ValueError(f"{name[:16]}... is no array of bytes as xtec writes it")
        if size > most:
            raise ValueError(f"{name[:16]}... has {size} bytes")
        step = array.chunks[0]
        pieces = [await array.getitem(slice(k, k + step)) for k in range(0, size, step)]
    except KeyError as error:
        raise _damaged(group, f"{name[:16]}... is missing") from error
    except (AttributeError, NotImplementedError, TypeError, ValueError) as error:
        raise _damaged(group, str(error)) from error
    return b"".join(np.ascontiguousarray(piece).data for piece in pieces)


def _damaged(group: Any, what: str) -> WeightsError:
    return WeightsError(
        f"the weights inside the store, {group.store_path}, are damaged: {what}. Write them again "
        "with xtec.embed_weights(store) where they are, or pass weights= the path of the checkpoint"
    )
