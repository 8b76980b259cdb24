"""Speed and memory of passes side by side: how many cores one takes, and how many run at one time.

Every row is a process of its own on two cores, which codes some chunks through the gate that zarr's
codecs use; then Dask workers do. MB/s are the best of some runs, and in brackets those for a second
of a core, to which other work on the machine matters little. Memory is the peak of a process (all
workers', summed).

    python benchmarks/threads.py [--models elic tt] [--sizes 512 256] [--no-cluster]
    python benchmarks/threads.py --sizes 64 --batches 1 4 16 64 256      # chunks in one call
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

CORES = 2
DATES = 4


def coder_of(model: str, size: int) -> Any:
    """Of chunks (4, 12, size, size)."""
    import tec
    from tec.sensors import SENSORS

    from xtec.chunks import ROLES, ChunkCoder

    bands = SENSORS["S2L2A"].bands
    exact: dict[str, Any] = {"max_error": 0.0} if model == "none" else {}
    config = tec.CodecConfig(model=model, compression=20.0, bands=bands, nodata=0, **exact)
    return ChunkCoder(config, ROLES, (DATES, len(bands), size, size))


def code(model: str, size: int, chunks: int, batch: int, runs: int) -> dict[str, Any]:
    """MB/s of uint16 both ways through the gate, the best of some runs, and what it let pass."""
    import numpy as np
    from scenes import scene
    from tec import threads

    from xtec.chunks import run_pass

    coder = coder_of(model, size)
    cube = scene(DATES, 12, size, size)
    inputs = [np.roll(cube, i, axis=-1) for i in range(chunks)]
    groups = [inputs[i : i + batch] for i in range(0, chunks, batch)]

    def encode() -> list[list[bytes]]:
        return [f.result() for f in [run_pass(coder.encode_chunks, group) for group in groups]]

    def decode(streams: list[list[bytes]]) -> None:
        dtype = np.dtype("u2")
        work = [run_pass(coder.decode_chunks, g, dtype, ["a chunk"] * len(g)) for g in streams]
        for future in work:
            future.result()

    first = coder.encode_chunks(inputs[:1])  # weights and kernels
    coder.decode_chunks(first, np.dtype("u2"), ["a chunk"])
    found: dict[str, Any] = {"passes": threads.passes(), "threads": threads.of_a_pass()}
    mb = cube.nbytes * chunks / 1e6
    wall: dict[str, list[float]] = {"encode": [], "decode": []}
    spent: dict[str, list[float]] = {"encode": [], "decode": []}
    streams: list[list[bytes]] = []
    for _ in range(runs):
        for way in wall:
            began, cpu = time.perf_counter(), time.process_time()
            if way == "encode":
                streams = encode()
            else:
                decode(streams)
            wall[way].append(time.perf_counter() - began)
            spent[way].append(time.process_time() - cpu)
    found.update({way: mb / min(times) for way, times in wall.items()}, memory=memory())
    return {**found, "spent": [mb / min(times) for times in spent.values()]}


def memory() -> float:
    """Peak of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def in_a_process(torch_threads: int, *options: str) -> dict[str, Any]:
    """`code` in a process of its own, PyTorch with so many threads."""
    command = [sys.executable, __file__, "--one", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch_threads)}
    return json.loads(
        subprocess.run(command, env=environment, check=True, capture_output=True).stdout
    )


def on_a_cluster(model: str, size: int, chunks: int, workers: int) -> dict[str, Any]:
    """The same by Dask workers that share the cores, a chunk a task."""
    import distributed

    each = CORES // workers
    with (
        distributed.LocalCluster(
            n_workers=workers, threads_per_worker=each, dashboard_address=":0"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        client.run(warm, model, size, sys.path[0])
        inputs = client.map(chunk_of, range(chunks), size=size)
        distributed.wait(inputs)
        start = time.perf_counter()
        streams = client.map(encode_one, inputs, model=model, size=size)
        distributed.wait(streams)
        middle = time.perf_counter()
        sums = client.map(decode_one, streams, model=model, size=size)
        distributed.wait(sums)
        end = time.perf_counter()
        client.gather(sums)
        mb = DATES * 12 * size * size * 2 * chunks / 1e6
        (passes, threads), *_ = client.run(shares).values()
        peak = sum(client.run(memory).values())
    found = {"passes": passes, "threads": threads, "memory": peak}
    return {**found, "encode": mb / (middle - start), "decode": mb / (end - middle)}


def warm(model: str, size: int, tests: str) -> None:
    """Weights and kernels."""
    sys.path.insert(0, tests)
    decode_one(encode_one(chunk_of(0, size), model, size), model, size)


def shares() -> tuple[int, int]:
    from tec import threads

    return threads.passes(), threads.of_a_pass()


def chunk_of(i: int, size: int) -> Any:
    import numpy as np
    from scenes import scene

    return np.roll(scene(DATES, 12, size, size), i, axis=-1)


def encode_one(chunk: Any, model: str, size: int) -> bytes:
    from xtec.chunks import run_pass

    return run_pass(coder_of(model, size).encode_chunks, [chunk]).result()[0]


def decode_one(data: bytes, model: str, size: int) -> int:
    import numpy as np

    from xtec.chunks import run_pass

    work = run_pass(coder_of(model, size).decode_chunks, [data], np.dtype("u2"), ["a chunk"])
    return int(work.result()[0].sum())


def show(name: str, found: dict[str, Any]) -> None:
    spent = found.get("spent")
    each = "" if spent is None else f" (a core's: {spent[0]:.1f}, {spent[1]:.1f})"
    print(
        f"{name:<26} {found['passes']} passes x {found['threads']} threads: "
        f"encode {found['encode']:5.1f} MB/s, decode {found['decode']:5.1f} MB/s{each}, "
        f"{found['memory']:5.0f} MB",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["elic", "tt", "fp", "none"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[512, 256])
    parser.add_argument("--pixels", type=float, default=2**22, help="dates x rows x columns coded")
    parser.add_argument("--no-cluster", action="store_true")
    parser.add_argument("--batches", nargs="+", type=int, help="chunks in one call")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        model, *numbers = args.one
        print(json.dumps(code(model, *map(int, numbers))))
        return
    for size in args.sizes:
        chunks = max(CORES, int(args.pixels) // (DATES * size * size))
        for model in args.models:
            for batch in args.batches or [1]:
                for torch_threads in (CORES, 1):
                    numbers = map(str, (size, chunks, batch, args.runs))
                    found = in_a_process(torch_threads, model, *numbers)
                    several = f", {batch} in a call" if args.batches else ""
                    show(f"{model} {size}{several}", found)
            if not (args.no_cluster or args.batches):
                for workers in (1, CORES):
                    show(
                        f"{model} {size}, {workers} worker(s)",
                        on_a_cluster(model, size, chunks, workers),
                    )


if __name__ == "__main__":
    main()
