"""Valid streams to start from: small ones of every model, dtype and optional field."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from unittest import mock

import numpy as np

sys.path.append(str(Path(__file__).parents[1] / "tests"))

import golden
import tiny
from coarse_bands import repeat_bands
from scenes import scene
from tec import CodecConfig, codec, stream

from xtec.chunks import ROLES, ChunkCoder

RGB = ("B02", "B03", "B04")
FOUR = (*RGB, "B8A")


@dataclass(frozen=True)
class Specimen:
    """A valid stream.

    Attributes
    ----------
    data : the stream
    config : what it was encoded with
    pixels : what it decodes to
    weights : path of its checkpoint; None where it is built in
    share : how often it is drawn
    """

    name: str
    data: bytes
    config: CodecConfig
    pixels: np.ndarray
    weights: str | None
    share: float

    @cached_property
    def coder(self) -> ChunkCoder:
        """Of an array that this stream is a chunk of."""
        return ChunkCoder(self.config, ROLES, self.pixels.shape)


def build(folder: Path, *, builtin: bool = True) -> list[Specimen]:
    """The corpus. Tiny checkpoints are written to ``folder``, or found there.

    Without ``builtin`` it has no streams of the built-in networks, which take longest.
    """
    weights: dict[str, str | None] = {
        name: str(path if path.exists() else tiny.write(path, name.rpartition(" ")[2]))
        for name in ("fp", "elic", "tt", "published tt", "published flex")
        for path in [folder / f"{name}.{'pt' if name.startswith('p') else 'safetensors'}"]
    }
    weights |= {"flex": weights["tt"], "none": None}
    specimens = [
        _encoded(name, chunk, settings, weights[checkpoint], share)
        for name, chunk, checkpoint, settings, share in _inputs()
    ]
    if builtin:
        for model in ("fp", "elic", "tt"):
            settings = {"model": model, "bands": RGB, "nodata": 0}
            chunk = scene(2, 3, 20, 17, seed=5, nodata=True)
            specimens.append(_encoded(f"built-in {model}", chunk, settings, None, 0.2))
        specimens += _golden()
    return specimens


def _inputs() -> list[tuple[str, np.ndarray, str, dict, float]]:
    """(name, chunk, checkpoint, settings, share)."""
    dn = scene(2, 3, 16, 16, seed=1, nodata=True)
    holes = dn.copy()
    holes[:, :, 12:] = holes[1, :, :, 9:] = 0  # an extent, and masks that differ
    holes[0, 1, 3:7, 5:9] = 0
    floats = (scene(1, 3, 20, 18, seed=2) / 1e4).astype(np.float32)
    floats[0, 1, 4:9, 3:11] = np.nan
    kinds = floats.copy()
    kinds[0, 0, 0, :4] = np.inf, -np.inf, -9999, np.nan
    many = floats.copy()
    many.view(np.uint32)[0, 2, 1, :12] = 0x7FC00001 + np.arange(12)
    bands = ("B04", "B8A", "B02", "B11", "B05")
    order = [3, 8, 1, 10, 4]
    coarse = repeat_bands(scene(1, 12, 24, 24, seed=3)[:, order], bands, y=1, x=0)
    series = scene(1, 4, 20, 16, seed=13) + scene(3, 4, 20, 16, seed=15) // 50
    many_dates = np.concatenate([series, series])
    empty = np.zeros((3, 3, 40, 40), np.uint16)
    scaled = {"scale": 1e-4, "offset": -100.0}
    rgb = {"bands": RGB, "model": "fp"}
    exact = {"bands": RGB, "model": "none", "max_error": 0}
    turned = np.rint(np.add.outer(np.arange(16) * 0.5, np.arange(16) * 0.07)).astype(int)
    turned = dn[:, :, turned, np.roll(turned, 3)] // 4 * 4
    four = {"bands": FOUR}
    flex = {"model": "flex", "quality": [16, 3, 0], "forecast": "sample", **four}
    return [
        ("fp", dn, "fp", {**rgb, "nodata": 0}, 1),
        ("fp, holes", holes, "fp", {**rgb, "nodata": 0}, 2),
        ("fp, float32", floats, "fp", {**rgb, **scaled}, 1),
        ("fp, patterns", kinds, "fp", {**rgb, **scaled, "nodata": -9999.0}, 1),
        ("fp, many patterns", many, "fp", {**rgb, **scaled}, 1),
        ("fp, empty", empty, "fp", {**rgb, "nodata": 0}, 0.3),
        ("fp, int16", dn.astype("i2"), "fp", {**rgb, "nodata": 0, "offset": 1000.0}, 1),
        ("elic", coarse, "elic", {"model": "elic", "bands": bands}, 1),
        ("elic, holes", holes, "elic", {"model": "elic", "bands": RGB, "nodata": 0}, 0.5),
        ("tt", series, "tt", {"model": "tt", "compression": 60.0, **four}, 1),
        ("tt, six dates", many_dates, "tt", {"model": "tt", **four}, 0.3),
        ("flex", series, "flex", flex, 1),
        ("none", holes, "none", {**exact, "nodata": 0}, 2),
        ("none, turned", turned.astype("i2"), "none", exact, 1),
        (
            "none, coarse",
            coarse,
            "none",
            {**exact, "bands": bands, "max_error": [0, 1] * 2 + [9]},
            1,
        ),
        ("none, float32", floats, "none", {**exact, **scaled, "max_error": 3}, 1),
        ("fp, bound", holes, "fp", {**rgb, "nodata": 0, "max_error": 40}, 0.5),
        ("tt, bound", series, "tt", {"model": "tt", "max_error": 90, **four}, 0.3),
        ("published tt", series, "published tt", {"model": "tt", **four}, 0.1),
        ("published flex", series, "published flex", flex, 0.1),
    ]


def _encoded(
    name: str, chunk: np.ndarray, settings: dict, weights: str | None, share: float
) -> Specimen:
    config = CodecConfig(**settings, **({} if weights is None else {"weights": weights}))
    with mock.patch.object(codec, "_RANGES", 1):  # ranges, for which small streams have no room
        data = codec.encode(chunk, config, device="cpu")
    return _specimen(name, data, config, weights, share)


def _specimen(
    name: str, data: bytes, config: CodecConfig, weights: str | None, share: float
) -> Specimen:
    pixels = codec.decode(data, weights=weights, device="cpu")
    # As in a store, whose configuration knows the checkpoint.
    header = stream.peek(data)
    if header.model == config.model != "none":
        network = codec.weights.load(header.model, weights=weights or "builtin", device="cpu")
        config = replace(config, weights_sha256=network.sha256)
    return Specimen(name, data, config, pixels, weights, share)


def _golden() -> list[Specimen]:
    """The golden streams of this version of the format."""
    found = []
    for folder in sorted(golden.FOLDER.glob(f"*/{stream.VERSION}")):
        settings = json.loads((folder / "config.json").read_text())
        weights = golden.checkpoint(folder)
        weights = weights and str(weights)
        config = CodecConfig(**settings, weights=weights or "builtin")
        data = (folder / "encoded.bin").read_bytes()
        found.append(_specimen(f"golden {folder.parent.name}", data, config, weights, 0.05))
    return found
