"""Small arrays of Zarr format 3 that the codec codes, for tests."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from typing import Any

import numpy as np
import zarr
from checkers import check_pixels
from tec.config import CodecConfig
from zarr.core.buffer.cpu import Buffer
from zarr.storage import MemoryStore

from xtec.zarr3 import XtecCodec

DIMS = ("time", "band", "y", "x")
CHUNK = (2, 3, 16, 16)
ERROR = 150  # DN on average: far below the contrast of a scene, far above what the codec costs


def config(**changes: Any) -> CodecConfig:
    return CodecConfig(**{"model": "fp", "bands": ("B02", "B03", "B04"), "nodata": 0, **changes})


def codec(**changes: Any) -> XtecCodec:
    return XtecCodec(config(**changes), DIMS, CHUNK)


def create(shape: tuple[int, ...], store: Any = None, **changes: Any) -> zarr.Array:
    arguments = {
        "chunks": CHUNK,
        "dtype": "uint16",
        "serializer": codec(),
        "compressors": (),
        "filters": (),
        "fill_value": 0,
        "dimension_names": DIMS,
        **changes,
    }
    return zarr.create_array(MemoryStore() if store is None else store, shape=shape, **arguments)


def chunk_files(array: zarr.Array) -> dict[str, bytes]:
    """Every object of a MemoryStore but the metadata."""
    objects = array.store._store_dict
    return {key: b.to_bytes() for key, b in objects.items() if not key.endswith("zarr.json")}


def put(array: zarr.Array, key: str, data: bytes) -> None:
    array.store._store_dict[key] = Buffer.from_bytes(data)


def same(array: np.ndarray, wanted: np.ndarray) -> None:
    check_pixels(array, wanted, nodata=0, error=ERROR)


def run(code: str, *options: str, status: int = 0) -> str:
    """Run Python code in a process of its own; returns what it printed."""
    done = subprocess.run(
        [sys.executable, *options, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == status, done.stderr
    return done.stdout
