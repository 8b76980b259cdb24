"""Speed of every model, by stage, beside the least that it could take, the reference package and
other codecs.

    python benchmarks/speed.py [--cube PATH] [--quick] [--json out.json]
    python benchmarks/speed.py --models elic tt --sizes built-in --codecs --cost --cube PATH

MB are 10^6 bytes of uint16 input. "Side by side" is how the product codes: as many passes at one
time as `tec.threads` says, each with chunks of its own, on all cores; on a GPU one pass with as
many chunks as zarr hands over. "Cores free" is what that comes to without other work on the
machine: the speed for a second of a core, times cores. "One pass" has one thread, and its seconds
are those that it had a core for (on a GPU: seconds, the device synchronised around each stage).
The reference package has one thread, too, and is compared with one pass (on a GPU: side by side).
All contestants take turns, in some rounds. Speeds are the best of the rounds, ratios (to the floor,
see `stages`, and to others) the median of each round's.

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
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import rivals
import stages
import torch
from rivals import WAYS
from speed_tables import cost_table, costs, floor_text, rival_table, speed_table, stage_table
from subjects import BUILT_IN, MODELS, PUBLISHED, Reference, Subject, Workers
from tec import CodecConfig, codec, threads
from tec.batches import PIXELS
from tec.sensors import SENSORS
from validation import chunk_of

START = time.monotonic()


def say(text: str) -> None:
    print(f"  {time.monotonic() - START:5.0f} s: {text}", file=sys.stderr, flush=True)


def measure(subject: Subject, workers: Workers) -> dict[str, Any]:
    """One round: rates of products and copies just now, then both ways, alone and together."""
    clock = stages.clock_of(subject.device)
    # Seconds of a thread are seconds of a core where a pass has no more of them.
    several = subject.device == "cpu" and threads.of_a_pass() > 1
    clocked = time.perf_counter if several else clock
    size = min(2**28, subject.chunks[0].nbytes)
    short = ("bfloat16",) if subject.device == "cpu" else ("TF32", "bfloat16")
    precisions = "float32", *short
    shapes = subject.floor[1]

    def rates(clock: Callable[[], float]) -> dict[str, float]:
        found = {
            kind: stages.matrix_rate(shapes, subject.device, clock, kind) for kind in precisions
        }
        return found | {"copy": stages.copy_rate(size, subject.device, clock)}

    def floor(rates: dict[str, float], way: str) -> float:
        """Seconds of a call."""
        flop = sum(stages.needed(subject.floor[0], way).values()) * len(subject.chunks)
        products = (much / rates[kind] for much, kind in zip(flop, stages.PRECISIONS) if much)
        return sum(products) + 1e-3 * subject.megabytes / rates["copy"]

    def staged(way: str) -> dict[str, float]:
        with stages.Stages(clock, subject.network) as found:
            subject.run(way)
        return found.spent

    def one_way(way: str) -> dict[str, Any]:
        spent = workers.alone(lambda: staged(way))
        start, busy = time.perf_counter(), time.process_time()
        workers.together(lambda number: subject.run(way, number))
        took, busy = time.perf_counter() - start, time.process_time() - busy
        free = busy / threads.allowed() if subject.device == "cpu" else took
        alone, mb = sum(spent.values()), workers.count * subject.megabytes
        return {
            "one pass": subject.megabytes / alone,
            "side by side": mb / took,
            "of the floor, one pass": floor(own, way) / alone,
            "of the floor": workers.count * floor(shared, way) / free,
            "cores busy": busy / took,
            "cores free": mb / free,
            "stages": spent,
        }

    own = workers.alone(lambda: rates(clock))
    each = workers.together(lambda _: rates(clocked))
    shared = {key: sum(found[key] for found in each) for key in own}
    return {"rates": own, "rates of all": shared, **{way: one_way(way) for way in WAYS}}


def summary(subject: Subject, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Of some rounds: the best speeds, the median of ratios, the stages of the quickest round."""
    flop = subject.floor[0]
    out: dict[str, Any] = {
        "model": subject.model,
        "size": subject.size,
        "device": subject.device,
        "chunk": subject.chunks[0].shape,
        "chunks in a call": len(subject.chunks),
        "gflop": {k: dict(zip(stages.PRECISIONS, much.tolist())) for k, much in flop.items()},
    }
    for kind in ("rates", "rates of all"):  # GFLOP/s, and GB/s of copies
        out[kind] = {key: max(r[kind][key] for r in rounds) for key in rounds[0][kind]}
    for way in WAYS:
        each = [r[way] for r in rounds]
        best = max(each, key=lambda found: found["one pass"])
        out[way] = {
            key: max(e[key] for e in each) for key in ("one pass", "side by side", "cores free")
        }
        for key in ("of the floor, one pass", "of the floor", "cores busy"):
            out[way][key] = median(e[key] for e in each)
        if others := [r for r in rounds if "reference" in r]:
            ours = "one pass" if subject.device == "cpu" else "side by side"
            ratios = (r[way][ours] / r["reference"][way] for r in others)
            out[way]["reference"] = max(r["reference"][way] for r in others)
            out[way]["ours is"] = median(ratios)
        # ms for a MB, and the share of the floor where there is arithmetic
        out[way]["stages"] = {k: 1e3 * s / subject.megabytes for k, s in best["stages"].items()}
        out[way]["shares"] = {
            stage: sum(m / out["rates"][k] for m, k in zip(much, stages.PRECISIONS))
            * len(subject.chunks)
            / best["stages"][stage]
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
            # What zarr hands over in one call.
            count = PIXELS["cpu"] // pixels
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
    for subject in subjects:
        workers.alone(lambda subject=subject: subject.floor)  # which stays
    rounds: list[list[dict[str, Any]]] = [[] for _ in subjects]
    for number in range(options.runs):
        for i, subject in enumerate(subjects):
            slow = subject.size == PUBLISHED and subject.model in codec.TEMPORAL
            if slow and device == "cpu" and number >= options.slow_runs:
                continue
            found = measure(subject, workers)
            if subject.size == PUBLISHED and options.reference_dates and not (slow and number):
                found |= beside(references[subject.model], subject, options, workers)
            rounds[i].append(found)
            say(f"round {number + 1}: {subject.name} on {device}")
    return [summary(*found) | own for *found, own in zip(subjects, rounds, came)]


def beside(
    reference: Reference, subject: Subject, options: argparse.Namespace, workers: Workers
) -> dict[str, Any]:
    """Speeds of the reference package, if it runs on the device."""
    part, offset = subject.chunks[0][: options.reference_dates], subject.config.offset
    try:
        work = partial(reference.speeds, part, offset, subject.device)
        return {"reference": workers.alone(work)}
    except Exception as error:  # foreign code, and this benchmark is about ours
        say(f"the reference package fails at {subject.name} on {subject.device}: {error!r}")
        return {}


def beside_rivals(options: argparse.Namespace) -> list[dict[str, Any]]:
    """`elic` and other codecs at equal PSNR, on the processor."""
    workers, out = Workers("cpu"), []
    chunk, offset = chunk_of(options.cube, options.dates, options.side)
    for compression in options.codecs or (20.0, 100.0):
        bands = SENSORS["S2L2A"].bands
        config = CodecConfig(model="elic", compression=compression, bands=bands, offset=offset)
        subject = Subject("elic", BUILT_IN, "cpu", config, [chunk], workers.count)
        own = workers.alone(subject.warm)
        with ThreadPoolExecutor(threads.allowed()) as pool:
            teams = [rivals.Team(rival, chunk, pool) for rival in rivals.rivals()]
            found = [own, *(team.reach(own["psnr"]) for team in teams)]
            say(f"others at the PSNR of elic, λ {compression:g}")

            def ours(way: str, subject: Subject = subject) -> Any:
                return workers.together(lambda number: subject.run(way, number))

            name, mb = f"elic, λ {compression:g}", workers.count * subject.megabytes
            rows = rivals.turns(name, ours, mb, teams, options.runs)
        out += [{"compression": compression} | row | came for row, came in zip(rows, found)]
    return out


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
    parser.add_argument(
        "--codecs", type=float, nargs="*", metavar="λ", help="others beside elic (20 and 100)"
    )
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
    everywhere = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    result: dict[str, Any] = {"machine": machine(), "options": {**vars(options)}, "speed": []}
    print(f"{options.cube or 'A generated scene'}, uint16; {result['machine']}\n")
    references: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for device in options.devices or everywhere:
            found = on_device(options, device, references, folder)
            result["speed"] += found
            print(f"## {device}\n\nencode / decode. {floor_text(found)}\n\n{speed_table(found)}\n")
            for size in options.sizes:
                print(f"{size}\n\n{stage_table([r for r in found if r['size'] == size])}\n")
    if options.codecs is not None:
        result["codecs"] = beside_rivals(options)
        print(f"## At equal PSNR, encode / decode\n\n{rival_table(result['codecs'])}\n")
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


if __name__ == "__main__":
    main()
