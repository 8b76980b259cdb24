"""How far `xtec.plan` is off: its ratio, PSNR and time against those of writing the cube.

    python benchmarks/predictions.py [--data ../shared/data/val] [--sample 8]

Chunks are small, so that there are many more than are tried. Time is that of `to_zarr`, after the
plan: weights are loaded by then.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

import xtec

CUBES = ("l2a_ssl4eos12", "l1c_sen12mscrts", "l1c_oscd_", "l2a_openeo", "l2a_ftw")
SETTINGS: tuple[dict[str, Any], ...] = ({"model": "fp"}, {"max_error": 20})


def check(path: Path, sample: int, setting: dict[str, Any]) -> str:
    cube = xr.open_zarr(path, consolidated=False, chunks={"time": 4, "band": -1}).reflectance
    cube = cube.isel(time=slice(8), band=[b != "B10" for b in cube.band.values.tolist()])
    options = {
        "chunks": {"time": 1 if "model" in setting else 4, "y": 64, "x": 64},
        "offset": float(cube.attrs["offset"]),
        **setting,
    }
    found = xtec.plan(cube, sample=sample, **options)
    with tempfile.TemporaryDirectory() as folder:
        summary = xtec.to_zarr(cube, Path(folder) / "a.zarr", progress=False, **options)
        store = Path(folder) / "a.zarr" / "reflectance" / "c"
        size = sum(file.stat().st_size for file in store.rglob("*") if file.is_file())
        back = xr.open_zarr(Path(folder) / "a.zarr").reflectance.values.astype(float)
    dn = cube.values.astype(float)
    psnr = 10 * math.log10(1e8 / np.mean(np.square(back - dn)[dn != 0]))
    ratio = summary.bytes_in / size
    assert found.psnr is not None
    seconds = (found.compress_hours or math.nan) * 3600
    (how,) = setting.values()
    return (
        f"{path.stem[:32]:32} {how!s:5} {found.sampled:3d} of {found.of:4d}"
        f" {found.ratio:7.1f} {ratio:7.1f} {100 * (found.ratio / ratio - 1):+6.1f}"
        f" ({100 * (found.ratio_error or math.nan):4.1f})"
        f" {found.psnr:7.2f} {psnr:7.2f} {found.psnr - psnr:+6.2f} ({found.psnr_error:.2f})"
        f" {seconds:7.1f} {summary.seconds:7.1f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/val"))
    parser.add_argument("--sample", type=int, default=8)
    args = parser.parse_args()
    warnings.filterwarnings("ignore", message="Dask chunks of")
    print(
        "cube                             how        chunks   ratio  really  off % (2 se)  "
        "  PSNR  really  off dB (2 se)  seconds  really"
    )
    for name in CUBES:
        for path in sorted(args.data.glob(f"{name}*.zarr")):
            for setting in SETTINGS:
                print(check(path, args.sample, setting), flush=True)


if __name__ == "__main__":
    main()
