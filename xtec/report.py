"""What is in a store: the codec's settings and what it saved."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import zarr
from zarr.codecs import ShardingCodec
from zarr.storage import ZipStore

from .attributes import ATTRIBUTE
from .chunks import ChunkCoder
from .embedded import summary
from .objects import called, stored_bytes
from .quality import bpppb
from .ratecontrol import target_of, target_text
from .remote import for_reading, name_of
from .rootlast import not_whole, says_unfinished
from .tables import Table, short
from .writing import human, model_text, quiet


def describe(
    store: str | os.PathLike[str], *, storage_options: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Settings and sizes of every variable that our codec has compressed, as JSON values.

    Decodes nothing and loads no network. ``store`` is a path or a URL.

    Raises
    ------
    ValueError
        ``store`` is no Zarr store, or none of its variables is compressed by xtec.
    """
    group, arrays, compressed = compressed_arrays(store, storage_options)
    return {
        "store": os.fspath(store),
        "zarr_format": group.metadata.zarr_format,
        "variables": [
            _describe(name, arrays[name], codec) for name, codec in sorted(compressed.items())
        ],
        "other_variables": sorted(set(arrays) - set(compressed)),
        "embedded_weights": summary(group),
    }


class Info(Table):
    """What `describe` has found, for a terminal or a notebook.

    Attributes
    ----------
    found : as `describe` returns it
    """

    def __init__(self, found: dict[str, Any]) -> None:
        self.found = found

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return self.found

    def rows(self) -> list[tuple[str, str]]:
        found = self.found
        rows = [("store", f"{found['store']} (Zarr format {found['zarr_format']})")]
        for variable in found["variables"]:
            rows += variable_rows(variable)
            rows += [("warning", remark) for remark in variable["warnings"]]
        if found["embedded_weights"] is not None:
            rows.append(("weights inside the store", weights_text(found["embedded_weights"])))
        if found["other_variables"]:
            rows.append(("not compressed by xtec", ", ".join(found["other_variables"])))
        return rows


def info(store: str | os.PathLike[str]) -> Info:
    """What is in a store: model, weights, bands, sizes. Decodes nothing.

    Raises
    ------
    ValueError
        As `describe`.
    """
    return Info(describe(store))


def compressed_arrays(
    store: Any, storage_options: dict[str, Any] | None = None
) -> tuple[zarr.Group, dict[str, zarr.Array], dict[str, ChunkCoder]]:
    """The group, its arrays, and our codec in those that have it; ValueError where none has."""
    place = for_reading(store, storage_options)
    if isinstance(place, (str, os.PathLike)) and os.fspath(place).endswith(".zip"):
        place = ZipStore(Path(place), mode="r")
    try:
        with quiet():
            group = zarr.open_group(place, mode="r", use_consolidated=False)
            arrays = dict(group.arrays())
    except (FileNotFoundError, ValueError) as error:
        if not says_unfinished(error):
            raise
        raise ValueError(not_whole(place)) from error
    found = {name: codec for name, a in arrays.items() if (codec := find_codec(a)) is not None}
    if not found:
        raise ValueError(
            f"{name_of(place)} holds no variable that xtec has compressed; its variables are "
            f"{sorted(arrays)}"
        )
    return group, arrays, found


def find_codec(array: zarr.Array) -> ChunkCoder | None:
    """Our codec among those of an array, also inside shards."""
    return next((codec for codec in _codecs(array) if isinstance(codec, ChunkCoder)), None)


def _codecs(array: zarr.Array) -> list[Any]:
    if array.metadata.zarr_format == 2:
        return [*(array.metadata.filters or ()), array.metadata.compressor]
    found: list[Any] = []
    for codec in array.metadata.codecs:
        found.extend(codec.codecs if isinstance(codec, ShardingCodec) else [codec])
    return found


def _describe(name: str, array: zarr.Array, codec: ChunkCoder) -> dict[str, Any]:
    (stored, extra), samples = stored_bytes(array), array.size
    config = codec.config.to_dict()
    others = [
        type(other).__name__ for other in _codecs(array) if other is not None and other is not codec
    ]
    remarks = []
    if others:
        remarks.append(
            f"{', '.join(others)} beside the codec: partial reads and the checks on writes are "
            "off; write again with compressors=() and filters=()"
        )
    if extra:
        remarks.append(
            f"{len(extra)} {called([array])} lie beyond its end (such as {extra[0]}), of an append "
            "that was interrupted or still runs: they are not counted here. The same append with "
            "resume=True goes on with them"
        )
    return {
        "name": name,
        **{
            key: config[key]
            for key in (
                "model",
                "compression",
                "quality",
                "forecast",
                "max_error",
                "lossy",
                "weights",
                "weights_sha256",
                "format",
                "sensor",
                "bands",
                "nodata",
            )
            if key in config  # not all models have a quality
        },
        **{key: config[key] for key in ("offset", "scale")},
        "dims": list(codec.dims),
        "shape": list(array.shape),
        "dtype": str(array.dtype),
        "chunks": list(array.chunks),
        "shards": None if array.shards is None else list(array.shards),
        "bytes_in": samples * array.dtype.itemsize,
        "bytes_out": stored,
        "ratio": samples * array.dtype.itemsize / stored,
        "bpppb": bpppb(stored, samples),
        "target": target_of(dict(array.attrs)),
        "written_by": _written_by(array),
        "warnings": remarks,
    }


def _written_by(array: zarr.Array) -> str | None:
    try:
        return json.loads(array.attrs[ATTRIBUTE])["version"]  # type: ignore[arg-type]
    except (KeyError, TypeError, ValueError):
        return None


def variable_rows(variable: dict[str, Any]) -> list[tuple[str, str]]:
    """What `describe` says of a variable, for people."""
    sha256 = variable["weights_sha256"] or "not known"
    size = f"{human(variable['bytes_in'])} -> {human(variable['bytes_out'])}"
    shape = ", ".join(
        f"{dim}={n}" for dim, n in zip(variable["dims"], variable["shape"], strict=True)
    )
    rows = [
        ("variable", variable["name"]),
        (
            "model",
            model_text(
                variable["model"],
                variable["compression"],
                variable.get("quality"),
                variable.get("max_error"),
            ),
        ),
        (
            "weights",
            "none"
            if variable["model"] == "none"
            else f"{variable['weights']} (sha256 {short(sha256)})",
        ),
        ("bands", f"{', '.join(variable['bands'])} ({variable['sensor']})"),
        ("shape", f"{shape} {variable['dtype']}"),
        ("chunks", " x ".join(map(str, variable["chunks"]))),
        (
            "shards",
            "none" if variable["shards"] is None else " x ".join(map(str, variable["shards"])),
        ),
        (
            "nodata, offset, scale",
            f"{variable['nodata']}, {variable['offset']:g}, {variable['scale']:g}",
        ),
        ("codec format", str(variable["format"])),
        ("size", f"{size} ({variable['ratio']:.1f} times smaller)"),
        ("bits per pixel per band", f"{variable['bpppb']:.4f}"),
    ]
    if variable["target"] is not None:
        rows.insert(2, ("target", target_text(variable["target"])))
    return rows


def weights_text(found: dict[str, Any]) -> str:
    """What `describe` says of weights inside the store, for people."""
    if found["bytes"] is None:
        return "damaged"
    models = sorted({model for models in found["checkpoints"].values() for model in models})
    return f"{', '.join(models)}, {human(found['bytes'])}"
