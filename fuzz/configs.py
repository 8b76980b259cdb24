"""Changed metadata: the codec's configuration, and the JSON of a small store."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import zarr
from tec import stream
from tec.specials import as_bits
from zarr.core.buffer.cpu import Buffer
from zarr.storage import MemoryStore

from xtec.chunks import ROLES, ChunkCoder
from xtec.zarr2 import XtecCodec2
from xtec.zarr3 import XtecCodec

from .corpus import Specimen
from .judging import Finding
from .mutations import Random, change_bytes

Objects = tuple[tuple[str, bytes], ...]

_VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    -1,
    0,
    1,
    2**31,
    2**63,
    2**70,
    1e400,
    -1e-400,
    float("nan"),
    0.5,
    "",
    "x" * 1000,
    "\0",
    "NaN",
    "fp",
    "B02",
    "time",
    "<u2",
    "O",
    "../../etc/passwd",
    [],
    [[]],
    {},
    {"a": []},
    ["y", "x"],
    [2**40] * 4,
    [1, 1, 1, 1],
)


def change_json(rng: Random, value: Any) -> Any:
    """A copy with one node, anywhere in it, replaced, removed, doubled or added."""
    value = json.loads(json.dumps(value))
    nodes: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        items = node.items() if isinstance(node, dict) else enumerate(node)
        for key, child in items:
            nodes.append((node, key))
            if isinstance(child, dict | list):
                walk(child)

    walk(value)
    parent, key = nodes[rng.integers(len(nodes))]
    how = rng.integers(8)
    if how == 0:
        del parent[key]
    elif how == 1 and isinstance(parent, dict):
        parent[str(_VALUES[rng.integers(len(_VALUES))])[:20]] = parent[key]
    elif how == 1:
        parent.append(parent[key])
    elif how == 2 and isinstance(parent[key], int | float):
        parent[key] = parent[key] * int(rng.integers(-3, 4)) + int(rng.integers(-2, 3))
    else:
        parent[key] = _VALUES[rng.integers(len(_VALUES))]
    return value


def configuration(rng: Random, specimen: Specimen) -> str:
    """A changed configuration, given to both codecs."""
    three = XtecCodec(specimen.config, ROLES, specimen.pixels.shape)
    two = XtecCodec2(
        specimen.config, ROLES, specimen.pixels.shape, f"<{specimen.pixels.dtype.str[1:]}"
    )
    if rng.random() < 0.5:
        changed = change_json(rng, three.to_dict())
        made = _ours(lambda: XtecCodec.from_dict(changed))
    else:
        changed = change_json(rng, two.get_config())
        made = _ours(lambda: XtecCodec2.from_config(changed))
    if isinstance(made, str):
        return made
    made.configuration()
    hash(made)
    return "accepted"


def metadata(rng: Random, specimen: Specimen) -> str:
    """The metadata of an array that holds this stream, changed as JSON."""
    version = int(rng.choice([2, 3]))
    objects = dict(_store(specimen.name, version, specimen.coder, specimen.data))
    name = "zarr.json" if version == 3 else ".zarray"
    objects[name] = json.dumps(change_json(rng, json.loads(objects[name]))).encode()
    return _ours(lambda: _read(objects, version, specimen.pixels))


def metadata_bytes(rng: Random, specimen: Specimen) -> str:
    """The same, changed in its bytes."""
    version = int(rng.choice([2, 3]))
    objects = dict(_store(specimen.name, version, specimen.coder, specimen.data))
    name = "zarr.json" if version == 3 else ".zarray"
    objects[name] = change_bytes(rng, objects[name])
    return _ours(lambda: _read(objects, version, specimen.pixels))


def _read(objects: dict[str, bytes], version: int, pixels: np.ndarray) -> str:
    store = MemoryStore({key: Buffer.from_bytes(data) for key, data in objects.items()})
    array = zarr.open_array(store, mode="r", zarr_format=version)
    part = tuple(slice(0, 8) for _ in array.shape)
    found = np.asarray(array[part])
    same = found.shape == pixels[part].shape and (as_bits(found) == as_bits(pixels[part])).all()
    # Metadata says what an array is: its shape, order, names of axes. Such pixels are not wrong.
    return "the same pixels" if same else "another array"


@cache
def _store(
    name: str, version: int, coder: ChunkCoder, data: bytes
) -> tuple[tuple[str, bytes], ...]:
    """The objects of a store of one array of one chunk, which is this stream."""
    config, shape = coder.config, coder.chunk_shape
    store = MemoryStore()
    dtype = np.dtype(stream.peek(data).dtype)
    fill = 0 if config.nodata is None else config.nodata
    codec: dict[str, Any]
    if version == 3:
        codec = {
            "serializer": XtecCodec(config, ROLES, shape),
            "compressors": (),
            "filters": (),
        }
    else:
        codec = {"compressors": XtecCodec2(config, ROLES, shape, dtype.str), "filters": None}
    zarr.create_array(
        store, shape=shape, chunks=shape, dtype=dtype, fill_value=fill, zarr_format=version, **codec
    )
    objects = {key: buffer.to_bytes() for key, buffer in store._store_dict.items()}
    objects["c/0/0/0/0" if version == 3 else "0.0.0.0"] = data
    return tuple(objects.items())


def _ours(work: Callable[[], Any]) -> Any:
    """What ``work`` gives, or in a few words its error; a Finding where that is not a ValueError
    and comes from us, not from zarr."""
    try:
        return work()
    except Exception as error:
        if isinstance(error, ValueError):
            if not str(error):
                raise Finding(f"{type(error).__name__} without a message") from error
            return f"{type(error).__name__}"
        files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
        origin = next(
            (
                package
                for file in reversed(files)
                for package in ("zarr", "numcodecs", "tec", "xtec")
                if f"/{package}/" in file
            ),
            "fuzz",
        )
        if origin in ("zarr", "numcodecs") and not isinstance(error, MemoryError | RecursionError):
            return f"{type(error).__name__} of {origin}"
        raise
