"""Speed, memory and overheads of the built-in models on one chunk, with the share of each part of
the stream.

Memory is the peak of the process above what it needed before the first chunk.

    python benchmarks/codec_speed.py [--cube ../shared/data/train/l1c... ] [--size 512]
    [--compression 20]
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

import numpy as np
import tec
import torch
from tec import codec, stream
from tec.entropy import portable, rans
from tec.models.coding import drive
from tec.models.densities import logistic_bits
from tec.sensors import SENSORS


def chunk_of(cube: Path | None, dates: int, size: int) -> tuple[np.ndarray, float]:
    """(dates, 12, size, size) uint16 and its offset: real pixels, mirrored where the cube is too
    small."""
    if cube is None:
        import sys

        sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
        from scenes import scene

        return scene(dates, 12, size, size), 0.0
    import xarray as xr

    data = xr.open_zarr(cube, consolidated=False).reflectance
    bands = [str(b) for b in data.band.values]
    dn = data.isel(band=[bands.index(b) for b in SENSORS["S2L2A"].bands]).values[:dates]
    pad = [(0, dates - len(dn)), (0, 0)] + [(0, max(0, size - n)) for n in dn.shape[2:]]
    while any(high > n - 1 for (_, high), n in zip(pad, dn.shape)):
        dn = np.pad(
            dn,
            [(0, min(high, max(n - 1, 0))) for (_, high), n in zip(pad, dn.shape)],
            mode="reflect",
        )
        dn = np.concatenate([dn] * 2)[:dates] if len(dn) < dates else dn
        pad = [(0, dates - len(dn)), (0, 0)] + [(0, max(0, size - n)) for n in dn.shape[2:]]
    return np.ascontiguousarray(np.pad(dn, pad, mode="reflect")[:, :, :size, :size]), float(
        data.attrs["offset"]
    )


def median_seconds(work, runs: int) -> float:
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def float_estimate(data: bytes) -> tuple[float, float]:
    """(bytes under the network's own float law, bytes under the integer tables) of all coded dates
    of an elic or fp stream."""
    job = codec._Coded(data, None, None, "cpu")
    network, by_law, by_table = job.network, 0.0, 0.0
    for date in job.dates:
        reader = portable.Reader([date.decisions], network.grid)
        asked = []

        class Spy:
            def parameters(self, mean, log_scale, size=None, reader=reader, asked=asked):
                asked.append((mean, log_scale))
                return reader.parameters(mean, log_scale)

        decoder = rans.Decoder(date.payload, network.tables)

        def symbols_of(step, asked=asked, decoder=decoder):
            nonlocal by_law, by_table
            mean, log_scale = asked[-1]
            symbols = decoder.read(step.index[0])[None]
            by_table += network.tables.bits(step.index[0], symbols[0]).sum() / 8
            k = symbols.shape[1] // mean.shape[1]
            # The float law sees the latent, which lies anywhere in the bin: its centre stands for
            # it.
            rest = symbols + step.mean - np.repeat(mean, k, axis=1)
            scale = torch.from_numpy(np.repeat(log_scale, k, axis=1))
            by_law += float(logistic_bits(torch.from_numpy(rest), scale).sum()) / 8
            return symbols

        h, w = (n // 16 for n in job.padded)
        with torch.inference_mode():
            drive(network.steps((1, h, w), job.header.config.compression, Spy()), symbols_of)
    return by_law, by_table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cube", type=Path)
    parser.add_argument("--dates", type=int, default=4)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--compression", type=float, nargs="+", default=[0.4, 20.0, 700.0])
    parser.add_argument("--models", nargs="+", default=["elic", "fp"])
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    chunk, offset = chunk_of(args.cube, args.dates, args.size)
    print(
        f"chunk {chunk.shape} {chunk.dtype}, {chunk.nbytes / 1e6:.1f} MB, "
        f"{torch.get_num_threads()} threads"
    )
    for model in args.models:
        for compression in args.compression:
            config = tec.CodecConfig(
                model=model, compression=compression, bands=SENSORS["S2L2A"].bands, offset=offset
            )
            codec.encode(chunk[:1, :, :64, :64], config)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            data = codec.encode(chunk, config)
            codec.decode(data)
            memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3
            encode = median_seconds(lambda: codec.encode(chunk, config), args.runs)  # noqa: B023
            decode = median_seconds(lambda: codec.decode(data), args.runs)  # noqa: B023
            _, specials, dates, _ = stream.unpack(data)
            payload = sum(len(d.payload) for d in dates)
            decisions = sum(len(d.decisions) for d in dates)
            frame = len(data) - payload - decisions - len(specials)
            law, table = float_estimate(data)
            print(
                f"{model} λ {compression:g}: encode {chunk.nbytes / 1e6 / encode:.1f} MB/s, "
                f"decode {chunk.nbytes / 1e6 / decode:.1f} MB/s, +{memory:.0f} MB; "
                f"{len(data)} bytes, {8 * len(data) / chunk.size:.4f} bpppb"
            )
            print(
                f"   decisions {100 * decisions / len(data):.2f} %, "
                f"specials {len(specials)} bytes, rest of the frame {frame} bytes; "
                f"payload {payload} bytes, "
                f"{100 * (payload / table - 1):+.2f} % on the integer tables; "
                f"all bytes {100 * (len(data) / law - 1):+.2f} % on the float estimate"
            )


if __name__ == "__main__":
    main()
