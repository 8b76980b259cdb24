"""What shorter products cost: in the synthesis, where they are asked for (`precision="fast"`), in
DN and dB and what it saves; with ``--analysis``, in the encoder, which takes them where they are
quick, in bytes and dB.

L2A validation cubes; of the analysis, cubes of both levels that a model has weights for. One
thread, so that seconds are those of one core whatever else the machine does: the faster of several
runs of each chunk. Where nothing shorter is quick (fast: None) both are the same.

    python benchmarks/precision.py [--data ../shared/data/val] [--models elic tt] [--runs 3]
    python benchmarks/precision.py --analysis [--limit 3]
"""

from __future__ import annotations

import argparse
import time
from contextlib import nullcontext
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import tec
import torch
import validation
from rivals import PEAK, psnr
from tec import precision, weights


def seconds_of(data: bytes, how: str, device: str, runs: int) -> float:
    """Of a core on the CPU, by the clock on a GPU."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    found = []
    for _ in range(runs):
        start = clock()
        tec.decode(data, device=device, precision=how)
        found.append(clock() - start)
    return min(found)


def analysis(args: argparse.Namespace, device: str) -> None:
    """Bytes and PSNR of files with and without bfloat16."""
    for level, model in product(validation.LEVELS, args.models):
        if not weights.exists(model, "builtin", f"S2{level}"):
            continue
        cubes = list(validation.whole_cubes(args.data, level=level, limit=args.limit))
        for compression in args.compression:
            sizes, levels = np.zeros(2), []
            for _, chunks in cubes:
                errors, count = np.zeros(2), 0
                for chunk in chunks:
                    if not (seen := chunk.dn != 0).any():
                        continue
                    config = tec.CodecConfig(
                        model=model,
                        compression=compression,
                        offset=chunk.offset,
                        bands=chunk.bands,
                        sensor=f"S2{level}",
                    )
                    for i, quick in enumerate((False, True)):
                        with nullcontext() if quick else float32():
                            data = tec.encode(chunk.dn, config, device=device)
                        back = tec.decode(data, device=device)
                        sizes[i] += len(data)
                        errors[i] += ((back.astype(float) - chunk.dn)[seen] ** 2).sum()
                    count += seen.sum()
                levels.append(10 * np.log10(PEAK**2 * count / errors))
            lost = np.array(levels)[:, 0] - np.array(levels)[:, 1]
            print(
                f"{level} {model} λ {compression:g}: {len(lost)} cubes; bytes "
                f"{100 * (sizes[1] / sizes[0] - 1):+.3f} %; PSNR lost {lost.max():.4f} dB at most, "
                f"{lost.mean():.4f} on average",
                flush=True,
            )


def float32() -> Any:
    """As where bfloat16 is not quick."""
    return patch.object(precision, "quick_bfloat16", lambda device: False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--analysis", action="store_true", help="that of the encoder, instead")
    parser.add_argument("--limit", type=int, help="cubes of each level, at most (--analysis)")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/val"))
    parser.add_argument("--models", nargs="+", default=["elic", "fp", "tt"])
    parser.add_argument("--compression", type=float, nargs="+", default=[0.4, 20.0, 700.0])
    parser.add_argument("--frames", type=int, help="dates of each kind of cube, at most")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    torch.set_num_threads(1)
    device = weights.resolve_device(args.device)
    print(f"torch {torch.__version__}, {device}, fast: {precision.short(torch.device(device))}")
    if args.analysis:
        analysis(args, device)
        return
    found = list(validation.places(args.data, frames=args.frames))
    for model in args.models:
        for compression in args.compression:
            worst, total, count, lost, sizes, times = 0, 0, 0, [], 0, np.zeros(2)
            for _, place in found:
                for chunk in place.chunks():
                    config = tec.CodecConfig(
                        model=model, compression=compression, offset=chunk.offset, bands=chunk.bands
                    )
                    data = tec.encode(chunk.dn, config, device=device)
                    full, fast = (
                        tec.decode(data, device=device, precision=how) for how in ("full", "fast")
                    )
                    error = np.abs(full.astype(int) - fast)
                    worst, total = max(worst, error.max()), total + error.sum()
                    seen = chunk.dn != 0  # the rest is nodata
                    whole, short = (psnr(chunk.dn[seen], dn[seen]) for dn in (full, fast))
                    lost.append(whole - short)
                    count, sizes = count + error.size, sizes + chunk.dn.nbytes
                    times += [
                        seconds_of(data, how, device, args.runs) if args.runs else np.nan
                        for how in ("full", "fast")
                    ]
            speeds = " and ".join(f"{sizes / 1e6 / t:.1f}" for t in times)
            print(
                f"{model} λ {compression:g}: {len(lost)} chunks, {sizes / 1e6:.1f} MB; differences "
                f"{worst} DN at most, {total / count:.2f} on average; PSNR lost {max(lost):.4f} dB "
                f"at most, {np.mean(lost):.4f} on average; {speeds} MB/s of a core (full, fast)"
            )


if __name__ == "__main__":
    main()
