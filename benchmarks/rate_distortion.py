"""Rate and distortion of the built-in models beside JPEG 2000, on places never trained on.

Every size is that of real bytes. PSNR has the peak 10000 DN, is taken over all bands of a frame,
and averaged over the frames. JPEG 2000 (OpenJPEG, each band alone, irreversible wavelet) runs in
both of its modes, constant rate and constant quality; the comparison takes the better one.

    python benchmarks/rate_distortion.py --data ../shared/data/val [--json out.json]
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import tec
import xarray as xr
from PIL import Image
from tec.codec import decode_many, encode_many
from tec.sensors import SENSORS

LAMBDAS = (0.4, 1.0, 3.0, 10.0, 20.0, 40.0, 100.0, 250.0, 700.0)
#: OpenJPEG's compression ratios of 16 bit, and PSNR in dB of 16 bit
JPEG2000 = {
    "rates": (400, 240, 160, 110, 80, 60, 45, 36, 28, 22, 17),
    "dB": (44, 47, 50, 53, 56, 59, 62, 65),
}


def frames(folder: Path, pattern: str) -> Iterator[tuple[str, np.ndarray, float]]:
    """(name, (band, y, x) uint16, offset) of every 12-band L2A date without nodata, cut to a
    multiple of 32."""
    for path in sorted(folder.glob(pattern)):
        cube = xr.open_zarr(path, consolidated=False).reflectance
        if cube.attrs["level"] != "L2A" or cube.sizes["band"] != 12:
            continue
        h, w = (min(cube.sizes[d] // 32 * 32, 256) for d in ("y", "x"))
        if min(h, w) < 64:
            continue
        for i, dn in enumerate(cube.values[:, :, :h, :w]):
            if (dn == 0).mean() < 0.001:
                yield f"{path.stem}[{i}]", dn, float(cube.attrs["offset"])


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return 10 * math.log10(1e8 / np.mean((a.astype(float) - b) ** 2))


def jpeg2000(dn: np.ndarray, mode: str, setting: float) -> tuple[int, np.ndarray]:
    """Each band alone, without the file format around it."""
    size, back = 0, []
    for band in dn:
        file = io.BytesIO()
        Image.fromarray(band).save(
            file,
            "JPEG2000",
            quality_mode=mode,
            quality_layers=[setting],
            irreversible=True,
            no_jp2=True,
        )
        size += len(file.getvalue())
        back.append(np.asarray(Image.open(file), np.int32))
    return size, np.stack(back)


def ours(model: str, lmbda: float, dn: np.ndarray, offset: float) -> tuple[int, np.ndarray]:
    config = tec.CodecConfig(
        model=model, compression=lmbda, offset=offset, bands=SENSORS["S2L2A"].bands
    )
    (data,) = encode_many([dn[None]], config)
    return len(data), decode_many([data])[0][0]


def curve(code: Callable, settings: tuple, chosen: list) -> list[tuple[float, float, float]]:
    """(setting, bpppb, PSNR) for each setting."""
    rows = []
    for setting in settings:
        size = samples = 0
        quality = []
        for _, dn, offset in chosen:
            n, back = code(setting, dn, offset)
            size, samples = size + n, samples + dn.size
            quality.append(psnr(dn, back))
        rows.append((setting, 8 * size / samples, float(np.mean(quality))))
    return rows


def rate_at(rows: list[tuple[float, float, float]], quality: float) -> float:
    """bpppb at a PSNR, interpolated in log rate; infinite outside the curve."""
    rows = sorted(rows, key=lambda r: r[2])
    log = np.interp(
        quality, [r[2] for r in rows], [math.log(r[1]) for r in rows], math.inf, math.inf
    )
    return math.exp(log)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of validation cubes (*.zarr)"
    )
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    result = {}
    for title, pattern in (("SSL4EO-S12 places", "l2a_ssl4eo*"), ("all places", "l2a_*")):
        chosen = list(frames(args.data, pattern + ".zarr"))
        print(f"\n{title}: {len(chosen)} frames")
        curves = {}
        for mode, settings in JPEG2000.items():
            code = functools.partial(lambda mode, value, dn, _: jpeg2000(dn, mode, value), mode)
            curves[f"JPEG 2000 {mode}"] = curve(code, settings, chosen)
        for model in ("elic", "fp"):
            curves[model] = curve(functools.partial(ours, model), LAMBDAS, chosen)
        for name, rows in curves.items():
            print(f"{name:15}", "  ".join(f"{s:g}: {b:.4f} {p:.2f} dB" for s, b, p in rows))
        for quality in (36, 38, 40, 41, 42, 44, 45):
            base = min(rate_at(curves[f"JPEG 2000 {mode}"], quality) for mode in JPEG2000)
            ratios = "  ".join(
                f"{m} {base / rate:.2f}x" if math.isfinite(rate) else f"{m} does not reach it"
                for m in ("elic", "fp")
                for rate in [rate_at(curves[m], quality)]
            )
            print(f"  at {quality} dB JPEG 2000 needs {base:.3f} bpppb; smaller by {ratios}")
        result[title] = curves
    if args.json:
        args.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
