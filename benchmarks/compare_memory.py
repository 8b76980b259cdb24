"""Peak memory and speed of `xtec.compare` on Dask cubes of any size, each in a process of its own.

    python benchmarks/compare_memory.py [--gigabytes 1 8] [--threads 2] [--metrics psnr sam ...]

The cubes are generated block by block (endless.py), what was "read back" is the same with errors
of up to 15 DN, in smaller blocks. "generating" is the time that making both takes without comparing
them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dask
import endless
import numpy as np
import psutil
import xarray as xr
from scaling import Memory

#: Pixels each way of a block of the source, and of what was read back.
_SIDE, _BACK = 1024, 512


def _off(block: np.ndarray, block_info: Any = None) -> np.ndarray:
    """With errors that depend on the place only."""
    return block + (np.arange(block.size, dtype="uint16").reshape(block.shape) & 15)


def pair(gigabytes: float) -> tuple[xr.DataArray, xr.DataArray]:
    """Source and what was read back, of so many GB each."""
    source = endless.cube(gigabytes, _SIDE)
    back = source.data.map_blocks(_off, dtype="uint16")
    back = back.rechunk((-1, -1, _BACK, _BACK))
    return source, source.copy(data=back)


def one(gigabytes: float, threads: int, metrics: Sequence[str] | None) -> dict[str, Any]:
    """What one comparison takes."""
    import os

    import xtec

    endless.block((1, 12, 8, 8), 0)
    source, back = pair(gigabytes)
    with dask.config.set(scheduler="threads", num_workers=threads):
        start = time.perf_counter()
        dask.compute(source.data.map_blocks(_touch), back.data.map_blocks(_touch))
        generating = time.perf_counter() - start
        with Memory(lambda: [os.getpid()]) as memory:
            start = time.perf_counter()
            found = xtec.compare(source, back, metrics=metrics, progress=False)
            seconds = time.perf_counter() - start
    base = psutil.Process().memory_info().rss / 1e6
    return {
        "GB": source.nbytes / 1e9,
        "seconds": round(seconds, 1),
        "generating": round(generating, 1),
        "MB/s": round(source.nbytes / 1e6 / max(seconds - generating, 1e-9)),
        "peak MB": round(memory.figures()["peak"]),
        "after MB": round(base),
        "psnr": round(found.attrs["psnr"], 2),
    }


def _touch(block: np.ndarray) -> np.ndarray:
    return block[:1, :1, :1, :1].copy()  # a view would keep the block


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[1, 8])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--metrics", nargs="+")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.here:
        print(json.dumps(one(args.gigabytes[0], args.threads, args.metrics)))
        return
    for gigabytes in args.gigabytes:
        command = [sys.executable, str(Path(__file__)), "--here", "--gigabytes", str(gigabytes)]
        command += ["--threads", str(args.threads)]
        command += ["--metrics", *args.metrics] if args.metrics else []
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        print(done.stdout.splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
