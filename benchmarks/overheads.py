"""What a stream takes beyond the law of its network: rounding decisions, integer tables, frame.

    python benchmarks/overheads.py [--cube PATH] [--size 512] [--compression 0.4 20 700]
    python benchmarks/overheads.py --published [--small]     # needs requirements-oracle.txt

Built-in `elic` and `fp` code real or generated pixels. `tt` and `flex` of the published size have
random weights, which say nothing of pixels: they code two dates that are drawn from their own law.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import tec
import torch
from speed import Reference
from tec import codec, coder, stream, weights
from tec.config import TOKENS
from tec.entropy import portable, rans
from tec.models.coding import drive
from tec.models.densities import logistic_bits
from tec.sensors import SENSORS
from validation import chunk_of

SIDE = 16  # of drawn latents


def float_estimate(data: bytes) -> tuple[float, float]:
    """(bytes under the network's own float law, bytes under the integer tables) of all coded dates
    of a built-in elic or fp stream."""
    job = codec._Coded(data, None, None, "cpu")
    network: Any = job.network
    by_law = by_table = 0.0
    for date in job.dates:
        spy = mock.Mock(wraps=portable.Reader([date.decisions], network.grid))
        decoder = rans.Decoder(date.payload, network.tables)

        def symbols_of(step, spy=spy, decoder=decoder):
            nonlocal by_law, by_table
            mean, log_scale, *_ = spy.parameters.call_args.args
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
            less = {"skipped": date.skipped} if date.skipped else {}
            steps = network.steps((1, h, w), job.header.config.compression, spy, **less)
            drive(steps, symbols_of)
    return by_law, by_table


def of_pixels(chunk: np.ndarray, config: tec.CodecConfig) -> dict[str, float]:
    """Bytes of a stream, and its parts as shares of something."""
    data = codec.encode(chunk, config)
    _, specials, dates, _ = stream.unpack(data)
    payload = sum(len(date.payload) for date in dates)
    decisions = sum(len(date.decisions) for date in dates)
    law, table = float_estimate(data)
    return {
        "bytes": len(data),
        "bpppb": 8 * len(data) / chunk.size,
        "decisions": decisions / len(data),
        "specials": len(specials),
        "rest of the frame": len(data) - payload - decisions - len(specials),
        "payload on integer tables": payload / table - 1,
        "all on float estimate": len(data) / law - 1,
    }


@torch.inference_mode()
def of_own_law(network: Any, quality: int) -> dict[str, float]:
    """The same for two dates drawn from the network's own law: what it would see if it were
    trained."""
    history, random, ideal = network.history((1, SIDE, SIDE)), np.random.default_rng(0), []
    writer = mock.Mock(wraps=portable.Writer(1, network.grid, network.margin_at(1.0)))

    def draw(step):
        mean, log_scale = writer.parameters.call_args.args
        return np.rint(random.normal(mean, np.exp(log_scale))) - step.mean

    for _ in range(2):
        history.push(coder.drive(network.date(history, writer), draw).y_hat)

    def counted(symbols, index, tables, plain=rans.encode):
        ideal.append(tables.bits(index, symbols).sum() / 8)
        return plain(symbols, index, tables)

    ys = history.latents
    with mock.patch.object(rans, "encode", counted):
        (dates,), _ = coder.encode_series(network, ys, [1.0] * 2, [quality] * 2, "mean")
    with mock.patch.object(network, "analysis", return_value=torch.cat(ys)):
        x = torch.empty(1, 2, network.bands, 16 * SIDE, 16 * SIDE)
        law = float(network(x, quality)["bits"].sum()) / 8
    payload, decisions = (
        sum(len(getattr(d, part)) for d in dates) for part in ("payload", "decisions")
    )
    return {
        "bytes": payload + decisions,
        "decisions": decisions / (payload + decisions),
        "payload on integer tables": payload / sum(ideal) - 1,
        "all on float estimate": (payload + decisions) / law - 1,
    }


def published(small: bool) -> dict[str, dict[str, float]]:
    """`of_own_law` of tt and, at some qualities, of flex with the same weights."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "random.pt")
        Reference("tt", small).save(str(path))
        networks: Any = {model: weights.read(model, (path,)) for model in ("tt", "flex")}
    found = {"tt": of_own_law(networks["tt"], TOKENS)}
    for quality in (1, 2, 4, 8, TOKENS):
        found[f"flex, quality {quality}"] = of_own_law(networks["flex"], quality)
    return found


def line(name: str, found: dict[str, float]) -> str:
    shares = ("decisions", "payload on integer tables", "all on float estimate")
    parts = [f"{key} {v:+.2%}" if key in shares else f"{key} {v:g}" for key, v in found.items()]
    return f"{name}: {', '.join(parts)}"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--cube", type=Path, help="a Zarr cube; else a generated scene")
    parser.add_argument("--dates", type=int, default=4)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--compression", type=float, nargs="+", default=[0.4, 20.0, 700.0])
    parser.add_argument("--models", nargs="+", choices=("elic", "fp"), default=["elic", "fp"])
    parser.add_argument("--published", action="store_true", help="tt and flex, random weights")
    parser.add_argument("--small", action="store_true", help="these with few channels")
    args = parser.parse_args(argv)
    if args.published:
        from oracle import why_not

        if why_not():
            sys.exit(f"the reference package cannot be imported: {why_not()}")
        for name, found in published(args.small).items():
            print(line(name, found), flush=True)
        return
    chunk, offset = chunk_of(args.cube, args.dates, args.size)
    for model in args.models:
        for compression in args.compression:
            bands = SENSORS["S2L2A"].bands
            config = tec.CodecConfig(
                model=model, compression=compression, bands=bands, offset=offset
            )
            print(line(f"{model} λ {compression:g}", of_pixels(chunk, config)), flush=True)


if __name__ == "__main__":
    main()
