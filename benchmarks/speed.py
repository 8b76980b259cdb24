"""Speed of every model, by stage, beside the least that it could take, the reference package and
other codecs.

    python benchmarks/speed.py [--cube PATH] [--quick] [--json out.json]
    python benchmarks/speed.py --models elic tt --sizes built-in --codecs --cost --cube PATH

MB are 10^6 bytes of uint16 input. "Side by side" is how the product codes: as many passes at one
time as `tec.threads` says, each with chunks of its own, on all cores; on a GPU one pass with as
many chunks as zarr hands over. "One pass" has one thread, and its seconds are those that it had a
core for (on a GPU: seconds, the device synchronised around each stage): other work on the machine
matters little to them. All contestants take turns, in some rounds. Speeds are the best of the
rounds, and so are those of the floor (`stages.gflop`); ratios are the median of each round's.

Networks of the published size have random weights, from the reference package:

    pip install --no-deps -r requirements-oracle.txt
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import stages
import torch
from tec import CodecConfig, codec, memory, threads, weights
from tec.batches import PIXELS
from tec.config import TOKENS
from tec.sensors import SENSORS
from validation import chunk_of

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

MODELS = ("fp", "elic", "tt", "flex")
BUILT_IN, PUBLISHED = "built-in", "published"
WAYS = ("encode", "decode")
#: What the reference package calls them
REFERENCES = dict(zip(MODELS, ("factorizedprior", "elic", "temporaltransformer", "flextec")))
PEAK = 10000.0


# Contestants -------------------------------------------------------------------------------------


@dataclass
class Subject:
    """A model on a device, and what each pass codes in one call.

    Attributes
    ----------
    size : "built-in" (trained weights) or "published" (its size, with random weights)
    chunks : of one pass; all passes have the same, each its own copy
    """

    model: str
    size: str
    device: str
    config: CodecConfig
    chunks: list[np.ndarray]
    passes: int
    streams: list[bytes] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.model}, {self.size}"

    @property
    def megabytes(self) -> float:
        """Of one pass."""
        return sum(chunk.nbytes for chunk in self.chunks) / 1e6

    @cached_property
    def given(self) -> list[list[np.ndarray]]:
        return [[chunk.copy() for chunk in self.chunks] for _ in range(self.passes)]

    @cached_property
    def network(self) -> Any:
        model = codec.routed(self.config, len(self.chunks[0]))
        return weights.load(model, weights=self.config.weights, device=self.device)

    @cached_property
    def floor(self) -> tuple[dict[str, float], list[tuple[int, ...]]]:
        """Of one chunk, as `stages.gflop` has it."""
        dates, _, side, _ = self.chunks[0].shape
        padded = -(-side // self.network.stride) * self.network.stride
        return stages.gflop(self.network, dates, padded)

    def run(self, way: str, number: int = 0) -> Any:
        """The work of one pass."""
        if way == "encode":
            return codec.encode_many(self.given[number], self.config, device=self.device)
        path = None if self.size == BUILT_IN else self.config.weights
        return codec.decode_many(self.streams, weights=path, device=self.device)

    def warm(self) -> dict[str, Any]:
        """Code once, and say what came of it."""
        self.streams = self.run("encode")
        back, chunk, data = self.run("decode")[0], self.chunks[0], self.streams[0]
        error = ((back - chunk.astype(np.float64)) ** 2).mean()
        found = {"bytes": len(data), "bpppb": 8 * len(data) / chunk.size}
        trained = {"psnr": float(10 * np.log10(PEAK**2 / error))}
        return found | (trained if self.size == BUILT_IN else {})


class Workers:
    """Threads that code side by side, as those of `xtec.passes` do."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.count = threads.passes() if device == "cpu" else 1
        self._pool = ThreadPoolExecutor(self.count)

    def alone(self, work: Callable[[], Any]) -> Any:
        """Work in one of the threads, which has one core."""

        def run() -> Any:
            memory.keep()
            with threads.limited(1), threads.sharing():
                threads.settle()
                return work()

        return self._pool.submit(run).result()

    def together(self, work: Callable[[int], Any]) -> list[Any]:
        """Work of each thread, told its number."""

        def run(number: int) -> Any:
            memory.keep()
            with threads.sharing():
                threads.settle()
                return work(number)

        return list(self._pool.map(run, range(self.count)))


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


class Reference:
    """The reference package's network with the weights of a `Subject` of the published size."""

    def __init__(self, model: str, small: bool) -> None:
        from oracle import build, build_small, randomise, randomise_temporal

        torch.manual_seed(0)
        self.series = model in codec.TEMPORAL
        self.quality = {"quality": TOKENS} if model == "flex" else {}
        self.network: Any
        if not self.series:
            self.network = build(REFERENCES[model], N=128, M=192)
            randomise(self.network, spread=1.0, scale=1.0)
        else:
            flex = model == "flex"
            self.network = build_small(flex=flex) if small else build(REFERENCES[model])
            randomise_temporal(self.network)

    def save(self, path: str) -> None:
        prefix = "" if self.series else "model."
        torch.save({prefix + k: v for k, v in self.network.state_dict().items()}, path)

    @torch.inference_mode()
    def times(self, chunk: np.ndarray, offset: float, device: str) -> dict[str, float]:
        """MB/s both ways, of standardised tensors, in one call with all of torch's threads."""
        sensor, clock = SENSORS["S2L2A"], stages.clock_of(device)
        clock = time.perf_counter if device == "cpu" else clock
        mean, std = (np.array(v, np.float32)[:, None, None] for v in (sensor.mean, sensor.std))
        x = torch.from_numpy((chunk - offset - mean) / std).to(device)
        network = self.network.to(device)
        if self.series:
            network.device = torch.device(device)
            network.setup_model_for_compression()
        start = clock()
        coded = network.compress(x, **self.quality)
        middle = clock()
        network.decompress(*([coded] if self.series else (coded["strings"], coded["shape"])))
        mb = chunk.nbytes / 1e6
        return {"encode": mb / (middle - start), "decode": mb / (clock() - middle)}


# Measurements ------------------------------------------------------------------------------------


def measure(subject: Subject, workers: Workers) -> dict[str, Any]:
    """One round: rates of products and copies just now, then both ways, alone and together."""
    clock = stages.clock_of(subject.device)
    wall = time.perf_counter if subject.device == "cpu" else clock
    shapes, size = subject.floor[1], min(2**28, subject.chunks[0].nbytes)

    def rates(clock: Callable[[], float]) -> tuple[float, float]:
        products = stages.matrix_rate(shapes, subject.device, clock)
        return products, stages.copy_rate(size, subject.device, clock)

    def staged(way: str) -> dict[str, float]:
        with stages.Stages(clock, subject.network) as found:
            subject.run(way)
        return found.spent

    own = workers.alone(lambda: rates(clock))
    shared = [sum(each) for each in zip(*workers.together(lambda _: rates(wall)))]
    found: dict[str, Any] = {"gflops": own[0], "copy": own[1], "gflops all": shared[0]}
    for way in WAYS:
        spent = workers.alone(lambda: staged(way))  # noqa: B023
        busy = time.process_time()
        took = seconds(lambda: workers.together(lambda number: subject.run(way, number)))  # noqa: B023
        busy = time.process_time() - busy
        flop = sum(stages.needed(subject.floor[0], way).values()) * len(subject.chunks)
        allowed = threads.allowed()
        alone, count, mb = sum(spent.values()), workers.count, subject.megabytes
        found[way] = {
            "one pass": mb / alone,
            "side by side": count * mb / took,
            "of the floor, one pass": (flop / own[0] + 1e-3 * mb / own[1]) / alone,
            "of the floor": count * (flop / shared[0] + 1e-3 * mb / shared[1]) / took,
            "cores busy": busy / took,
            "cores free": count * mb / (took if subject.device != "cpu" else busy / allowed),
            "stages": spent,
        }
    return found


def summary(subject: Subject, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Of some rounds: the best speeds, the median of ratios, the stages of the quickest round."""
    flop = subject.floor[0]
    out: dict[str, Any] = {
        "model": subject.model,
        "size": subject.size,
        "device": subject.device,
        "chunk": subject.chunks[0].shape,
        "chunks in a call": len(subject.chunks),
        "gflop": {stage: much for stage, much in flop.items() if much},
        **{key: max(r[key] for r in rounds) for key in ("gflops", "gflops all", "copy")},
    }
    for way in WAYS:
        each = [r[way] for r in rounds]
        best = max(each, key=lambda found: found["one pass"])
        out[way] = {
            key: max(e[key] for e in each) for key in ("one pass", "side by side", "cores free")
        }
        for key in ("of the floor, one pass", "of the floor", "cores busy"):
            out[way][key] = median(e[key] for e in each)
        # ms for a MB, and GFLOP/s where there is arithmetic
        out[way]["stages"] = {k: 1e3 * s / subject.megabytes for k, s in best["stages"].items()}
        out[way]["gflops"] = {
            stage: much * len(subject.chunks) / best["stages"][stage]
            for stage, much in stages.needed(flop, way).items()
            if best["stages"][stage]
        }
    return out


def subjects_of(
    options: argparse.Namespace, device: str, passes: int, references: dict[str, Any], folder: str
) -> Iterator[Subject]:
    """All that are to be measured on a device."""
    for size in options.sizes:
        side = options.side if size == BUILT_IN else options.published_side
        chunk, offset = chunk_of(options.cube, options.dates, side)
        pixels = options.dates * side * side
        for model in options.models:
            path = "builtin"
            if size == PUBLISHED:
                path = str(Path(folder, f"{model}.pt"))
                if model not in references:
                    references[model] = Reference(model, options.small)
                    references[model].save(path)
            # What zarr hands over in one call; of large networks on a processor, as little.
            count = PIXELS["cpu"] // pixels if size == BUILT_IN else 1
            if device != "cpu":
                count = min(128, 2 * PIXELS["cuda"] // pixels)
            config = CodecConfig(
                model=model,
                compression=options.compression,
                weights=path,
                bands=SENSORS["S2L2A"].bands,
                offset=offset,
            )
            yield Subject(model, size, device, config, [chunk] * max(1, count), passes)


def on_device(
    options: argparse.Namespace, device: str, references: dict[str, Any], folder: str
) -> list[dict[str, Any]]:
    """Everything that is asked for, on one device, the contestants in turns."""
    workers = Workers(device)
    subjects = list(subjects_of(options, device, workers.count, references, folder))
    came = [workers.alone(subject.warm) for subject in subjects]
    rounds: list[list[dict[str, Any]]] = [[] for _ in subjects]
    theirs: list[list[dict[str, float]]] = [[] for _ in subjects]
    for number in range(options.runs):
        for i, subject in enumerate(subjects):
            slow = subject.size == PUBLISHED and subject.model in codec.TEMPORAL
            if slow and device == "cpu" and number >= options.slow_runs:
                continue
            rounds[i].append(measure(subject, workers))
            if subject.size == PUBLISHED and options.reference_dates and not (slow and number):
                part = subject.chunks[0][: options.reference_dates]
                reference = references[subject.model]
                theirs[i].append(reference.times(part, subject.config.offset, device))
            say(f"round {number + 1}: {subject.name} on {device}")
    out = []
    for subject, found, each, own in zip(subjects, rounds, theirs, came):
        row = summary(subject, found) | own
        if each:
            row["reference"] = {
                way: {
                    "MB/s": max(e[way] for e in each),
                    "ours is times as fast": median(
                        mine[way]["side by side"] / e[way] for mine, e in zip(found, each)
                    ),
                }
                for way in WAYS
            }
        out.append(row)
    return out


def say(text: str) -> None:
    print(f"  {time.monotonic() - START:5.0f} s: {text}", file=sys.stderr, flush=True)


START = time.monotonic()


# Tables ------------------------------------------------------------------------------------------


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def both(row: dict[str, Any], form: Callable[[dict[str, Any]], str]) -> str:
    return " / ".join(form(row[way]) for way in WAYS)


def speed_table(rows: list[dict[str, Any]]) -> str:
    head = ["model", "device", "chunks", "bits, PSNR", "MB/s side by side", "of the floor"]
    head += ["cores busy", "MB/s, cores free", "MB/s one pass", "of the floor"]
    head += ["reference MB/s", "ours is"]
    lines = []
    for row in rows:
        psnr = f", {row['psnr']:.1f} dB" if "psnr" in row else ""
        theirs = row.get("reference")
        line = [f"{row['model']}, {row['size']}", row["device"]]
        line += [f"{row['chunks in a call']} x {row['chunk']}", f"{row['bpppb']:.3f}{psnr}"]
        line += [both(row, lambda w: f"{w['side by side']:.4g}")]
        line += [both(row, lambda w: f"{w['of the floor']:.0%}")]
        line += [both(row, lambda w: f"{w['cores busy']:.1f}")]
        line += [both(row, lambda w: f"{w['cores free']:.4g}")]
        line += [both(row, lambda w: f"{w['one pass']:.4g}")]
        line += [both(row, lambda w: f"{w['of the floor, one pass']:.0%}")]
        line += [both(theirs, lambda w: f"{w['MB/s']:.3g}") if theirs else ""]
        line += [both(theirs, lambda w: f"{w['ours is times as fast']:.3g} x") if theirs else ""]
        lines.append(line)
    return table(head, lines)


def stage_table(rows: list[dict[str, Any]]) -> str:
    """ms for a MB, and the share of the rate of a matrix product."""

    def cell(found: dict[str, Any], stage: str, rate: float) -> str:
        spent, flops = found["stages"][stage], found["gflops"].get(stage)
        share = "" if flops is None else f" ({flops / rate:.0%})"
        return f"{spent:.2f}{share}" if spent else ""

    head = ["ms for a MB", *(f"{r['model']} {way}" for r in rows for way in WAYS)]
    lines = []
    for stage in stages.STAGES:
        cells = [cell(row[way], stage, row["gflops"]) for row in rows for way in WAYS]
        if any(cells):
            lines.append([stage, *cells])
    sums = [f"{sum(row[way]['stages'].values()):.2f}" for row in rows for way in WAYS]
    return table(head, [*lines, ["sum", *sums]])


#: Bytes that there are to code
AMOUNTS = {
    "tile-year (10980 x 10980 x 12 x 73, uint16)": 10980 * 10980 * 12 * 73 * 2,
    "petabyte": 10**15,
}


def costs(rows: list[dict[str, Any]], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Hours and kWh of each amount, at the speeds with all cores free, or stated."""
    watts = {True: options.core_watts * threads.allowed(), False: options.gpu_watts}
    found = [
        (
            f"{row['model']}, {row['size']}",
            f"{row['device']}, measured",
            watts[row["device"] == "cpu"],
            {way: row[way]["cores free"] for way in WAYS},
        )
        for row in rows
    ]
    if options.gpu_rate:
        stated = dict(zip(WAYS, options.gpu_rate))
        found.append(("", "a GPU, stated, not measured", options.gpu_watts, stated))
    out = []
    for what, where, power, speeds in found:
        row: dict[str, Any] = {"what": what, "where": where, "watts": power, **speeds}
        for name, size in AMOUNTS.items():
            hours = {way: size / 1e6 / speed / 3600 for way, speed in speeds.items()}
            row[name] = {w: {"hours": h, "kWh": h * power / 1e3} for w, h in hours.items()}
        out.append(row)
    return out


def cost_table(rows: list[dict[str, Any]], options: argparse.Namespace) -> str:
    head = ["model", "where", "W", "MB/s"]
    for name in AMOUNTS:
        head += [f"{name}: hours", "kWh"]
    lines = []
    for row in rows:
        line = [row["what"], row["where"], f"{row['watts']:g}"]
        line.append(" / ".join(f"{row[way]:.4g}" for way in WAYS))
        for name in AMOUNTS:
            line += [both(row[name], lambda w, k=k: f"{w[k]:,.3g}") for k in ("hours", "kWh")]
        lines.append(line)
    powers = f"{options.core_watts:g} W a core, {options.gpu_watts:g} W a GPU"
    return f"{table(head, lines)}\n\nPower is assumed: {powers}, nothing for the rest of a machine."


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--cube", type=Path, help="a Zarr cube; else a generated scene")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--sizes", nargs="+", choices=(BUILT_IN, PUBLISHED))
    parser.add_argument("--devices", nargs="+", help="cpu and every CUDA device unless told")
    parser.add_argument("--compression", type=float, default=20.0, help="of built-in weights")
    parser.add_argument("--dates", type=int, default=4, help="of a chunk")
    parser.add_argument("--side", type=int, default=512, help="of its images, built-in weights")
    parser.add_argument("--published-side", type=int, default=256, help="the reference wants 256")
    parser.add_argument("--runs", type=int, default=3, help="rounds")
    parser.add_argument("--slow-runs", type=int, default=1, help="of large tt, flex on processors")
    parser.add_argument("--reference-dates", type=int, help="dates it codes; 0: without (1)")
    parser.add_argument("--small", action="store_true", help="published tt, flex of few channels")
    parser.add_argument("--quick", action="store_true", help="two dates, one round, no reference")
    parser.add_argument("--cost", action="store_true", help="hours and kWh of large amounts")
    parser.add_argument("--gpu-rate", type=float, nargs=2, metavar=("IN", "OUT"), help="MB/s")
    parser.add_argument("--core-watts", type=float, default=10.0)
    parser.add_argument("--gpu-watts", type=float, default=700.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    if options.quick:
        options.dates, options.runs = min(2, options.dates), 1
    if options.reference_dates is None:
        options.reference_dates = 0 if options.quick else 1
    from oracle import why_not

    if options.sizes is None:
        options.sizes = (BUILT_IN,) if why_not() else (BUILT_IN, PUBLISHED)
    if why_not():
        if PUBLISHED in options.sizes:
            sys.exit(f"the published sizes need the reference package: {why_not()}")
        print(f"Without published sizes: {why_not()}\n")
    devices = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    result: dict[str, Any] = {"machine": machine(), "options": {**vars(options)}, "speed": []}
    print(f"{options.cube or 'A generated scene'}, uint16; {result['machine']}\n")
    references: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for device in options.devices or devices:
            found = on_device(options, device, references, folder)
            result["speed"] += found
            print(f"## {device}\n\nencode / decode. {floor_text(found)}\n\n{speed_table(found)}\n")
            for size in options.sizes:
                print(f"{size}\n\n{stage_table([r for r in found if r['size'] == size])}\n")
    if options.cost:
        result["cost"] = costs(result["speed"], options)
        print(f"## Cost, encode / decode\n\n{cost_table(result['cost'], options)}\n")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1, default=str))


def machine() -> str:
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((ln.partition(": ")[2] for ln in lines if ln.startswith("model name")), cpu)
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    share = f"{threads.passes()} passes of {threads.of_a_pass()} threads"
    share += f" on {threads.allowed()} cores{load}"
    return f"{', '.join([cpu, *gpus])}, torch {torch.__version__}; {share}"


def floor_text(rows: list[dict[str, Any]]) -> str:
    found = {key: max(row[key] for row in rows) for key in ("gflops", "gflops all", "copy")}
    return (
        f"Matrix products run at up to {found['gflops']:.0f} GFLOP/s in one pass, "
        f"{found['gflops all']:.0f} in all, copies at {found['copy']:.1f} GB/s."
    )


if __name__ == "__main__":
    main()
