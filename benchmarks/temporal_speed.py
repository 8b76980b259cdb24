"""TEC-TT and FlexTEC of the published size with random weights, then the built-in ``tt``.

    pip install --no-deps -r requirements-oracle.txt
    python benchmarks/temporal_speed.py [--quick] [--only published|compact] [--cube PATH] ...

The reference package and this project code the same standardised pixels with the same weights in
one process. The floor is the arithmetic that cannot be avoided at the rate of a plain matrix
product: a first date's context is constant, so its encoders do not count, nor does the separate
encoder of a last date. Peak memory is that of a process of its own (Linux). MB are 10^6 bytes of
uint16 input. A smaller ``--width 192 --layers 2,1,2`` is for trying this out.
"""

from __future__ import annotations

import argparse
import cProfile
import multiprocessing
import pstats
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any, cast
from unittest import mock

import numpy as np
import torch
from codec_speed import chunk_of
from tec import CodecConfig, codec, coder, weights
from tec.entropy import portable, rans
from tec.models import temporal, tt
from tec.sensors import SENSORS
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from scenes import scene

LAMBDA, SIZE, SIDE, DATES = 20.0, 256, 16, 4
PARTS = {  # module.function
    "integers to planes": "samples.date_planes samples.from_planes",
    "analysis": "tt.analysis compact.analysis",
    "separate encoder": "temporal.encode",
    "joint encoder": "temporal.join",
    "keys and values": "transformer.contexts",
    "decoder and heads": "temporal.predict",
    "portable rounding": "portable.parameters portable.getvalue integers.__call__",
    "rANS": "rans.encode rans.read",
    "dates before": "compact_tt.told",
    "dequantiser, synthesis": "tt.restored tt.synthesis compact.synthesis",
}


def seconds(work, runs: int = 1) -> tuple[float, Any]:
    """Median time, and the last result."""
    times: list[float] = []
    for _ in range(runs):
        start, result = time.perf_counter(), work()
        times.append(time.perf_counter() - start)
    return float(np.median(times)), result


def parts(work) -> dict[str, float]:
    """Seconds in each of PARTS."""
    profile, spent = cProfile.Profile(), dict.fromkeys(PARTS, 0.0)
    profile.runcall(work)
    for (file, _, name), (*_, total, _) in pstats.Stats(profile).stats.items():  # type: ignore
        for part, functions in PARTS.items():
            spent[part] += total * (f"{Path(file).stem}.{name}" in functions.split())
    return {part: took for part, took in spent.items() if took}


def matrix_rate(width: int) -> float:
    """GFLOP/s of a plain float32 matrix product of the network's shapes, the best of a few."""
    weight = torch.rand(width, 4 * width)
    xs = [torch.rand(rows, width) for rows in (1024, 2048, 4096) for _ in range(8)]
    return max(8e-9 * len(x) * width**2 / seconds(partial(torch.mm, x, weight))[0] for x in xs)


@torch.no_grad()
def gflop(config: Any, way: str, dates: int) -> dict[str, float]:
    """GFLOP of each of PARTS that a series of dates cannot do without."""
    out: dict[str, float] = {}

    def count(part, times, work, *args):
        with FlopCounterMode(display=False) as counter:
            result = work(*args)
        out[part] = counter.get_total_flops() / 1e9 * times
        return result

    blocks, c = SIDE**2 // temporal.CELLS, config.channels[3]
    with torch.device("meta"):
        network = tt.TT(config)
        prior, x = network.prior, torch.empty(1, config.bands, SIZE, SIZE)
        y = count("analysis", dates * (way == "encode"), network.analysis, x)
        z = count("separate encoder", dates - 1, prior.encode, torch.empty(blocks, 64, c))
        z = count("joint encoder", dates - 1, prior.join, z, z)
        z = count("keys and values", dates - 1, prior.decoder.contexts, z)
        unrolling = temporal.Unrolling(prior, z, blocks)
        z = count("decoder and heads", dates, unrolling.predict, [torch.empty(blocks, c)] * 15, 16)
        after = lambda: network.synthesis(network._restored(y, z.features[None]))  # noqa: E731
        count("dequantiser, synthesis", dates * (way == "decode"), after)
    return out


def pixels(patches: int, dates: int) -> torch.Tensor:
    """(patches, dates, 12, SIZE, SIZE), generated and standardised."""
    dn = np.stack([scene(dates, 12, SIZE, SIZE, seed=i) for i in range(patches)])
    sensor = SENSORS["S2L2A"]
    mean, std = (np.array(v, np.float32)[:, None, None] for v in (sensor.mean, sensor.std))
    return torch.from_numpy((dn - mean) / std)


def encode(network: Any, x: torch.Tensor) -> Any:
    with coder.exactly(network):
        ys = [network.analysis(date, LAMBDA) for date in x.unbind(1)]
        return coder.encode_series(network, ys, [LAMBDA] * len(ys), [16] * len(ys), "mean")


def decode(network: Any, coded: Any) -> list[torch.Tensor]:
    with coder.exactly(network):
        n = len(coded[0])
        dates = coder.decode_series(network, coded, (SIDE, SIDE), [LAMBDA] * n, [16] * n, "mean")
        return [network.synthesis(restored, LAMBDA) for _, restored in dates]


def peaks(path: str) -> tuple[float, ...]:
    """GB that this process takes at most: as it starts, loading weights, coding."""

    def peak() -> float:  # not ru_maxrss: that counts what the parent process had
        kilobytes = Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]
        Path("/proc/self/clear_refs").write_text("5")  # it begins anew
        return int(kilobytes) * 1024 / 1e9

    start, _, loading = peak(), weights.load("tt", weights=path, device="cpu"), peak()
    dn, config = scene(DATES, 12, SIZE, SIZE), CodecConfig(model="tt", weights=path)
    codec.decode(codec.encode(dn, config, device="cpu"), weights=path, device="cpu")
    return start, loading, peak()


@torch.inference_mode()
def overhead(network: Any, quality: int) -> str:
    """Of two dates drawn from the network's own law: what it would see if it were trained."""
    history, random, ideal = network.history((1, SIDE, SIDE)), np.random.default_rng(0), []
    writer = mock.Mock(wraps=portable.Writer(1, network.grid, network.margin_at(LAMBDA)))

    def draw(step):
        mean, log_scale = writer.parameters.call_args.args
        return np.rint(random.normal(mean, np.exp(log_scale))) - step.mean

    for _ in range(2):
        history.push(coder.drive(network.date(history, writer), draw).y_hat)

    def counted(symbols, index, tables, plain=rans.encode):
        ideal.append(tables.bits(index, symbols).sum() / 8)
        return plain(symbols, index, tables)

    with mock.patch.object(rans, "encode", counted):
        ys, rates = history.latents, [LAMBDA] * 2
        dates = coder.encode_series(network, ys, rates, [quality] * 2, "mean")[0]
    with mock.patch.object(network, "analysis", return_value=torch.cat(history.latents)):
        law = float(network(torch.empty(1, 2, 12, SIZE, SIZE), quality)["bits"].sum()) / 8
    p, d = (sum(len(getattr(date, k)) for date in dates) for k in ("payload", "decisions"))
    on_tables, on_law = p / sum(ideal) - 1, (p + d) / law - 1
    return f"{p} bytes, {on_tables:+.3%}; decisions {d / (p + d):.2%}; all {on_law:+.2%}"


def published(options: argparse.Namespace, path: str) -> None:
    from oracle import build, randomise_temporal
    from terracodec.temporaltransformer import pipeline

    torch.manual_seed(0)
    layers = ("num_layers_encoder_sep", "num_layers_encoder_joint", "num_layers_decoder")
    sizes = dict(zip(layers, options.layers), d_model=options.width, num_head=options.width // 48)
    name = "TerraCodecTTEntropyModel"
    with mock.patch.object(pipeline, name, partial(getattr(pipeline, name), **sizes)):
        reference: Any = build("temporaltransformer")
    randomise_temporal(reference)
    torch.save(reference.state_dict(), path)
    network, flex = (cast(Any, weights.read(model, (Path(path),))) for model in ("tt", "flex"))
    n, rate, ours = sum(p.numel() for p in network.parameters()) / 1e6, 0.0, {}
    print(f"TEC-TT, {n:.1f} M random parameters, {torch.get_num_threads()} threads")
    decode(network, encode(network, pixels(1, 2)))  # what happens once
    for patches, dates in ((1, 1), (1, 4), (4, 4), (1, 16), (16, 4))[: 3 if options.quick else 5]:
        given, rate = pixels(patches, dates), max(rate, matrix_rate(options.width))
        for way, run in (("encode", encode), ("decode", decode)):
            work = partial(run, network, given)
            took, given = seconds(work, options.runs if patches * dates <= DATES else 1)
            floor = {k: patches * g / rate for k, g in gflop(network.config, way, dates).items()}
            least, each = sum(floor.values()), took / patches / dates
            print(f"{way} {patches} x {dates} dates: {took:.2f} s, {each:.2f} a date; ", end="")
            print(f"{least * rate:.0f} GFLOP, {least:.2f} s at {rate:.0f}/s: {least / took:.0%}")
            if (patches, dates) == (1, DATES):
                ours[way] = each
                for part, s in parts(work).items():
                    print(f"   {part:23}{s:6.2f} s, {floor.get(part, 0) / s:.0%} of the rate")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        gb = pool.apply(peaks, (path,))
    print("peak memory: {:.2f} GB at the start, {:.2f} loading weights, {:.2f} coding".format(*gb))
    if count := options.reference_dates:
        x = pixels(1, count)
        reference.setup_model_for_compression()
        there, payload = seconds(lambda: reference.compress(x[0]))
        back, _ = seconds(lambda: reference.decompress(payload))
        size = sum(len(d.payload) + len(d.decisions) for d in encode(network, x)[0])
        print(f"reference, {count} dates: {sum(payload['bits']) // 8} bytes, ours {size}")
        for way, took in (("encode", there / count), ("decode", back / count)):
            print(f"   {way} {took:.1f} s a date, ours is {took / ours[way]:.1f} times as fast")
    print("coder, random weights: payload, on integer tables; decisions; all, on float estimate")
    print("   tt:", overhead(network, 16))
    for quality in (1, 2, 4, 8, 16):
        print(f"   flex, quality {quality}:", overhead(flex, quality))


def compact(options: argparse.Namespace) -> None:
    dn, offset = chunk_of(options.cube, DATES, 2 * SIZE)
    quarters = [dn[:, :, i : i + SIZE, j : j + SIZE] for i in (0, SIZE) for j in (0, SIZE)]
    print(f"built-in tt, {options.cube or 'a generated scene'}, chunks of {quarters[0].shape}")
    for compression in (0.4, 20.0, 700.0):
        config = CodecConfig(model="tt", compression=compression, offset=offset)
        for chunks in (quarters[:1], quarters):
            encoding = partial(codec.encode_many, chunks, config)
            decoding = partial(codec.decode_many, encoding())
            mb = sum(chunk.nbytes for chunk in chunks) / 1e6
            there, back = (mb / seconds(w, options.runs)[0] for w in (encoding, decoding))
            print(f"λ {compression:g}, {len(chunks)} chunks: {there:.1f}, back {back:.1f} MB/s")
        for way, work in (("encode", encoding), ("decode", decoding)):
            print(f"   {way}, seconds:", *(f"{p} {s:.2f};" for p, s in parts(work).items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--reference-dates", type=int, default=1, help="0: without the reference")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="without 16 dates and 16 patches")
    parser.add_argument("--width", type=int, default=768, help="a multiple of 48")
    parser.add_argument("--layers", default="6,4,5", type=lambda s: [int(k) for k in s.split(",")])
    parser.add_argument("--cube", type=Path, help="a Zarr cube for the built-in tt")
    parser.add_argument("--only", choices=("published", "compact"))
    options = parser.parse_args()
    if options.only != "compact":
        with tempfile.TemporaryDirectory() as folder:
            published(options, str(Path(folder, "random.pt")))
    if options.only != "published":
        compact(options)


if __name__ == "__main__":
    main()
