"""How large a chunk should be: speed, size and memory over its side and over its dates.

    OMP_NUM_THREADS=1 python benchmarks/chunk_sizes.py [--data FOLDER] [--only sides|dates]

Speeds are of one core: MB of pixels a second of processor time, whatever else runs.

Sides: the three SSL4EO-S12 places (4 dates, 12 bands, 264 x 264), mirrored at their borders to the
size that is needed; every side covers about 512 x 512 pixels, larger ones one chunk. Chunks go to
the codec by fours, as a writer hands them over. Memory is the peak of a process of its own for each
side, above what it needed after a small chunk.

Dates: the first dates of whole series in chunks of so many. Sizes are compared at equal PSNR: each
is measured at two λ, and log bytes go straight from one to the other.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from tec import CodecConfig
from tec.codec import decode_many, encode_many

SIDES = (64, 128, 256, 384, 512, 549, 768, 1024)
MODELS = {"tt": 4, "elic": 1, "fp": 1, "none": 4}
DATES = (1, 2, 3, 4, 6, 8, 12, 24)
SERIES = ("l2a_openeo", "l2a_worldcereal", "l1c_sen12mscrts")
LAMBDAS = (16.0, 24.0)
TOGETHER = 4
MB = 1e6


def config_of(model: str, cube: xr.DataArray, compression: float = 20.0) -> CodecConfig:
    bands = tuple(str(name) for name in cube.band.values)
    rate: dict[str, Any] = {"compression": compression}
    if model == "none":
        rate = {"max_error": (20.0,) * len(bands)}
    sensor = "S2L1C" if cube.attrs["level"] == "L1C" else "S2L2A"
    return CodecConfig(
        model=model,
        bands=bands,
        offset=float(cube.attrs["offset"]),
        sensor=sensor,
        nodata=0,
        **rate,
    )


def there_and_back(
    chunks: list[np.ndarray], config: CodecConfig
) -> tuple[int, float, float, float, int]:
    """(bytes, seconds to encode, to decode, sum of squared errors, valid pixels)"""
    size, encode, decode, squares, count = 0, 0.0, 0.0, 0.0, 0
    for i in range(0, len(chunks), TOGETHER):
        part = chunks[i : i + TOGETHER]
        start = time.process_time()
        streams = encode_many(part, config)
        middle = time.process_time()
        backs = decode_many(streams)
        encode, decode = encode + middle - start, decode + time.process_time() - middle
        size += sum(map(len, streams))
        for chunk, back in zip(part, backs, strict=True):
            valid = chunk != 0
            squares += float(np.square(back[valid].astype(float) - chunk[valid]).sum())
            count += int(valid.sum())
    return size, encode, decode, squares, count


def side(path: Path, model: str, n: int) -> tuple[float, ...]:
    """One side on one place: (raw bytes, bytes, seconds to encode, to decode, peak bytes)."""
    cube = xr.open_zarr(path, consolidated=False).reflectance
    config = config_of(model, cube)
    dn = cube.values[: MODELS[model]]
    there_and_back([dn[:, :, :64, :64]], config)  # weights, compiled kernels
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = max(1, 512 // n)
    pad = max(0, times * n - min(dn.shape[2:]))
    dn = np.pad(dn, [(0, 0), (0, 0), (0, pad), (0, pad)], mode="symmetric")
    chunks = [
        np.ascontiguousarray(dn[:, :, y * n : (y + 1) * n, x * n : (x + 1) * n])
        for y in range(times)
        for x in range(times)
    ]
    size, encode, decode, *_ = there_and_back(chunks, config)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    return sum(chunk.nbytes for chunk in chunks), size, encode, decode, peak


def sides(folder: Path) -> None:
    places = sorted(folder.glob("l2a_ssl4eos12*.zarr"))
    context = multiprocessing.get_context("spawn")
    for model, dates in MODELS.items():
        print(f"\n{model}, {dates} date(s), 12 bands")
        print("  side   MB/s in   MB/s out   bits per pixel per band   peak MB   chunk MB")
        for n in SIDES:
            rows = []
            for place in places:
                with ProcessPoolExecutor(1, context) as fresh:
                    rows.append(fresh.submit(side, place, model, n).result())
            raw, size, encode, decode, _ = np.sum(rows, axis=0)
            print(
                f"{n:6d} {raw / MB / encode:9.1f} {raw / MB / decode:10.1f} "
                f"{16 * size / raw:25.4f} {max(row[-1] for row in rows) / MB:9.0f} "
                f"{2 * dates * 12 * n * n / MB:10.1f}",
                flush=True,
            )


def dates(folder: Path) -> None:
    for name in SERIES:
        (path,) = folder.glob(f"{name}*.zarr")
        cube = xr.open_zarr(path, consolidated=False).reflectance
        dn = cube.values[:24]
        for model in ("tt", "none"):
            print(f"\n{model}, {path.stem}: {' x '.join(map(str, dn.shape))}")
            print("  dates   MB/s in   MB/s out   bytes at equal PSNR (4 dates: 100)")
            lines = {}
            for n in DATES:
                if n > len(dn):
                    continue
                chunks = [dn[i : i + n] for i in range(0, len(dn), n)]
                points, seconds = [], np.zeros(2)
                for compression in LAMBDAS if model == "tt" else LAMBDAS[:1]:
                    config = config_of(model, cube, compression)
                    size, *spent, squares, count = there_and_back(chunks, config)
                    points.append((10 * math.log10(1e8 * count / squares), math.log(size)))
                    seconds += np.array(spent) / dn.nbytes * MB
                lines[n] = points, len(points) / seconds
            goal = lines[4][0][0][0]
            at = {n: math.exp(_at(points, goal)) for n, (points, _) in lines.items()}
            for n, (_, rates) in lines.items():
                print(f"{n:7d} {rates[0]:9.1f} {rates[1]:10.1f} {100 * at[n] / at[4]:12.1f}")


def _at(points: list[tuple[float, float]], psnr: float) -> float:
    """Log bytes at this PSNR, on the line through the points."""
    if len(points) == 1:
        return points[0][1]
    slope, level = np.polyfit([p for p, _ in points], [b for _, b in points], 1)
    return float(slope * psnr + level)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/val"))
    parser.add_argument("--only", choices=("sides", "dates"))
    args = parser.parse_args()
    if args.only != "dates":
        sides(args.data)
    if args.only != "sides":
        dates(args.data)


if __name__ == "__main__":
    main()
