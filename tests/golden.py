"""Golden streams: written once for each version of the format, decoded by every later version.

    python tests/golden.py      # writes what is missing, never touches what is there

Each folder ``golden/<kind>/<version>`` holds the settings, the input, the stream, what it decodes
to, and (it or that of an earlier version) a tiny checkpoint of its own (random weights): it depends
on nothing that is trained.
"""

from __future__ import annotations

import json
from pathlib import Path
from unittest import mock

import numpy as np
import tec
import tiny
from coarse_bands import cells_of, interpolated, repeat_bands, repeated
from scenes import scene
from tec import codec, stream
from tec.sensors import SENSORS

FOLDER = Path(__file__).with_name("golden")


def inputs() -> dict[str, tuple[np.ndarray, dict]]:
    """(chunk, settings) for each kind; between them they use every field of the header."""
    dn = repeat_bands(scene(3, 12, 34, 37, seed=11), SENSORS["S2L2A"].bands, y=1, x=3)
    dn[..., np.add.outer(np.arange(34), np.arange(37)) < 8] = 0
    dn[1, 4, 9, 4:20], dn[2] = 0, 0
    dn[:, :, :, 35:] = 0
    bands = ("B08", "B02", "B8A", "B11", "B04")
    reflectance = scene(1, 12, 28, 32, seed=12)[:, [7, 1, 8, 10, 3]].astype(np.float64)
    reflectance[:, 2] = repeated(cells_of(reflectance[:, 1], 2), 2, 0, 0, (28, 32))
    wide = np.pad(reflectance[:, 3], [(0, 0), (4, 4), (4, 4)], mode="reflect")
    reflectance[:, 3] = np.rint(interpolated(cells_of(wide, 2), 2, 1, 0, (28, 32)))
    reflectance = (reflectance / 1e4).astype(np.float32)
    reflectance[0, 2, 5:9, 7:20] = np.nan
    four = ("B02", "B03", "B04", "B08")
    series = scene(1, 4, 40, 52, seed=13) + scene(4, 4, 40, 52, seed=15) // 50
    series[2] += 6000  # nothing like the others: what comes next is best told nothing of it
    exact = np.pad(dn[:2].astype(np.int16), [(0, 0), (0, 0), (0, 14), (0, 0)], mode="reflect")
    exact[:, 1] = exact[:, 1] // 4 * 4  # few values
    turned = np.rint(np.add.outer(np.arange(48) * 0.5, np.arange(37) * 0.07)).astype(int)
    turned = turned * 40 + np.rint(np.add.outer(np.arange(48) * -0.07, np.arange(37) * 0.5) + 4)
    exact[:, 2] = np.random.default_rng(16).integers(900, 2500, 4000)[turned.astype(int)]
    exact[:, 3] = scene(2, 1, 48, 37, seed=17)[:, 0]
    wide = np.pad(scene(2, 1, 48, 37, seed=18)[:, 0], [(0, 0), (4, 4), (4, 4)], mode="reflect")
    exact[:, 4] = np.rint(interpolated(cells_of(wide, 2), 2, 1, 0, (48, 37)))
    contrasts = scene(3, 4, 32, 48, seed=19).astype(np.int64)
    contrasts = 2000 + (contrasts - 2000) * np.array([1, 12, 4])[:, None, None, None] // 4
    contrasts = contrasts.clip(0, 60000).astype(np.uint16)
    return {
        "none": (exact, {"model": "none", "max_error": [0, 0, 0] + [3] * 9, "nodata": 0}),
        "none-float": (
            reflectance + np.float32(3e-5),
            {"model": "none", "max_error": 2.5, "bands": bands, "scale": 1e-4},
        ),
        "tt-bounded": (
            series,
            {"model": "tt", "compression": 60.0, "nodata": 0, "bands": four, "max_error": 90},
        ),
        "elic": (dn, {"compression": 20.0, "nodata": 0}),
        "elic-groups": (contrasts, {"compression": 20.0, "bands": four}),
        "tt": (series, {"compression": 60.0, "nodata": 0, "bands": four}),
        "flex": (series, {"quality": [16, 5, 0, 9], "forecast": "sample", "bands": four}),
        "fp": (
            reflectance,
            {"compression": 150.0, "bands": bands, "scale": 1e-4, "offset": -100.0},
        ),
    }


def encode(chunk: np.ndarray, config: tec.CodecConfig) -> bytes:
    """With the range of each band, for which streams as small as these have no room."""
    with mock.patch.object(codec, "_RANGES", 1):
        return codec.encode(chunk, config)


def checkpoint(folder: Path) -> Path | None:
    """That of the folder, or of an earlier version."""
    found = [*folder.glob("weights.*"), *sorted(folder.parent.glob("*/weights.*"))]
    return found[0] if found else None


def write(folder: Path, kind: str, chunk: np.ndarray, settings: dict) -> None:
    """One golden stream; refuses to overwrite."""
    folder.mkdir(parents=True)
    settings = {"model": kind.partition("-")[0], **settings}
    model, weights = settings["model"], checkpoint(folder)
    if weights is None and model != "none":
        seed = 20 if model == "tt" else 7  # one whose dates are told of others, and one not
        name = f"weights.{'pt' if model == 'flex' else 'safetensors'}"
        weights = tiny.write(folder / name, model, seed, 0.02 if kind == "elic-groups" else 1.0)
    config = tec.CodecConfig(weights=str(weights or "builtin"), **settings)
    data = encode(chunk, config)
    (folder / "config.json").write_text(json.dumps(settings, indent=1) + "\n")
    np.save(folder / "input.npy", chunk)
    (folder / "encoded.bin").write_bytes(data)
    np.save(folder / "decoded.npy", codec.decode(data, weights=weights and str(weights)))


if __name__ == "__main__":
    for name, (chunk, settings) in inputs().items():
        target = FOLDER / name / str(stream.VERSION)
        if not target.exists():
            write(target, name, chunk, settings)
