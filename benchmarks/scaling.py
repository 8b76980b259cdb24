"""Cubes of any size on Dask: throughput, memory, workers, recovery; and what limits large clusters.

Every figure comes from a process of its own. The codec's own rate, in a tight loop over the same
chunks, is measured before and after the others, since machines differ from minute to minute.

    python benchmarks/scaling.py [--gigabytes 0.5 2 8] [--model tt] [--only loop threads ...]

Parts: loop (the codec alone), threads (one process, Dask's threads), worker (a cluster of one
worker with as many threads as there are cores), workers (one single-threaded worker, then two),
recovery (a worker is killed midway), simulation (arithmetic from what was measured).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import endless
import psutil

HERE = Path(__file__)
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
#: What a worker may take; `distributed` kills one that takes 95 % of it.
LIMIT = "2.5GB"
MIB = 2**20


class Memory:
    """Peak of resident memory of some processes, in MB: altogether, and in thirds of the time."""

    def __init__(self, pids: Callable[[], list[int]]) -> None:
        self._pids, self._seen, self._stop = pids, [], threading.Event()  # type: ignore[var-annotated]
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.05):
            for pid in self._pids():
                try:
                    rss = psutil.Process(pid).memory_info().rss / 1e6
                except psutil.Error:
                    continue
                self._seen.append((time.perf_counter(), rss))

    def figures(self) -> dict[str, Any]:
        if not self._seen:
            return {}
        start, end = self._seen[0][0], self._seen[-1][0]
        thirds: list[float] = [0.0, 0.0, 0.0]
        for at, rss in self._seen:
            third = min(2, int(3 * (at - start) / max(end - start, 1e-9)))
            thirds[third] = max(thirds[third], rss)
        return {"peak": max(thirds), "thirds": thirds}


# each of these runs in a process of its own, and prints JSON


def loop(model: str, gigabytes: float) -> dict[str, Any]:
    """The codec alone, on chunks that are in memory, as many at one time as there are cores for."""
    from tec import threads

    from xtec.chunks import ROLES, run_pass
    from xtec.compression import codec_of

    packed = endless.cube(0.2).tec.compress(model=model)
    codec = codec_of(packed.encoding)
    _, _, high, wide = codec.chunk_shape
    assert codec.dims == ROLES
    chunks = [
        pixels[:, :, y : y + high, x : x + wide]
        for pixels in (endless.block((4, 12, 1024, 1024), seed) for seed in range(2))
        for y in range(0, 1024, high)
        for x in range(0, 1024, wide)
    ]
    run_pass(codec.encode_chunks, chunks[:1]).result()  # the weights, and compiled kernels
    times = max(1, round(gigabytes * 1e9 / sum(chunk.nbytes for chunk in chunks)))
    start = time.perf_counter()
    passes = [run_pass(codec.encode_chunks, [chunk]) for chunk in chunks * times]
    nbytes = sum(chunk.nbytes for chunk in chunks * times)
    for one in passes:
        one.result()
    seconds = time.perf_counter() - start
    return {"mb_per_s": nbytes / 1e6 / seconds, "passes": threads.passes()}


def on_threads(model: str, gigabytes: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder, Memory(lambda: [os.getpid()]) as memory:
        found = _write(model, gigabytes, folder)
    return {**found, **memory.figures()}


def on_workers(
    model: str, gigabytes: float, workers: int, threads: int, kill: bool = False
) -> dict[str, Any]:
    from distributed import Client, LocalCluster

    with (
        tempfile.TemporaryDirectory() as folder,
        LocalCluster(
            n_workers=workers,
            threads_per_worker=threads,
            memory_limit=LIMIT,
            dashboard_address=":0",
            local_directory=folder,
        ) as cluster,
        Client(cluster) as client,
    ):
        warm = endless.cube(0.1).tec.compress(model=model)
        warm.tec.to_zarr(Path(folder) / "warm.zarr", progress=False)
        pids = lambda: [w.pid for w in cluster.workers.values() if w.pid]  # noqa: E731
        if kill:
            victim = next(iter(client.run(os.getpid).values()))
            threading.Timer(kill, os.kill, (victim, 9)).start()
        with Memory(pids) as memory:
            found = _write(model, gigabytes, folder)
    return {**found, **memory.figures()}


def _write(model: str, gigabytes: float, folder: str) -> dict[str, Any]:
    cube = endless.cube(gigabytes)
    summary = cube.tec.to_zarr(Path(folder) / "a.zarr", model=model, progress=False)
    return {
        "gigabytes": cube.nbytes / 1e9,
        "seconds": summary.seconds,
        "mb_per_s": summary.mb_per_s,
        "bytes_out": summary.bytes_out,
    }


def scheduling(tasks: int = 5000) -> dict[str, Any]:
    """Tasks a second that the scheduler hands out, with nothing in them."""
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        client.gather(client.map(_nothing, range(100), pure=False))
        start = time.perf_counter()
        client.gather(client.map(_nothing, range(tasks), pure=False))
        return {"tasks_per_s": tasks / (time.perf_counter() - start)}


def _nothing(_: int) -> None:
    return None


PARTS: dict[str, Callable[..., dict[str, Any]]] = {
    "loop": loop,
    "threads": on_threads,
    "workers": on_workers,
    "scheduling": scheduling,
}


def apart(part: str, *arguments: Any) -> dict[str, Any]:
    """One of `PARTS` in a process of its own."""
    done = subprocess.run(
        [sys.executable, str(HERE), "--part", part, json.dumps(arguments)],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


# simulation


def simulate(
    rate: float, ratio: float, tasks_per_s: float, store: float, workers: int, block: float
) -> tuple[float, str]:
    """MB/s of so many workers, and what limits them.

    Parameters
    ----------
    rate : MB/s that a worker compresses
    ratio : how many times smaller
    tasks_per_s : of the scheduler; a block takes two (made or read, and written)
    store : MB/s that the store takes and gives, together
    block : MB of a Dask block
    """
    limits = {
        "the workers": workers * rate,
        "the scheduler": tasks_per_s / 2 * block,
        "the store": store / (1 + 1 / ratio),  # it is read from, and written to
    }
    least = min(limits, key=lambda name: limits[name])
    return limits[least], least


def show_simulation(rates: dict[str, float], ratio: float, tasks_per_s: float) -> None:
    print(
        f"\nsimulation: {tasks_per_s:.0f} tasks/s measured, two a block; {ratio:.0f} times smaller"
    )
    print("MB/s (and what limits it), by worker, MB a block, and GB/s of the store")
    counts = (1, 10, 100, 1000)
    print(f"{'':52s}" + "".join(f"{n:>24}" for n in counts))
    for name, rate in rates.items():
        for block in (100, 400):
            for store in (1, 10, 100):
                cells = []
                for n in counts:
                    mb, limit = simulate(rate, ratio, tasks_per_s, 1000 * store, n, block)
                    cells.append(f"{mb:12.0f} {limit.removeprefix('the '):>10}")
                label = f"{name} ({rate:.0f} MB/s), {block} MB, {store} GB/s"
                print(f"{label:52s}" + " ".join(cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[0.5, 2, 8])
    parser.add_argument("--model", default="tt")
    every = ["loop", "threads", "worker", "workers", "recovery", "simulation"]
    parser.add_argument("--only", nargs="+", choices=every, default=every)
    parser.add_argument(
        "--rate", type=float, action="append", default=[], help="MB/s of another kind of worker"
    )
    parser.add_argument("--part", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.part:
        print(json.dumps(PARTS[asked.part[0]](*json.loads(asked.part[1]))))
        return

    model, loops = asked.model, []
    ratio = 30.0

    def measure_loop() -> None:
        if "loop" in asked.only:
            loops.append(apart("loop", model, 0.6)["mb_per_s"])
            print(
                f"{'the codec alone, ' + str(CORES) + ' cores':44s} {loops[-1]:8.1f} MB/s",
                flush=True,
            )

    def show(name: str, found: dict[str, Any], beside: float | None = None) -> None:
        thirds = "/".join(f"{one:.0f}" for one in found["thirds"])
        against = "" if beside is None else f"  {found['mb_per_s'] / beside:5.2f} of {beside:.1f}"
        print(
            f"{name:44s} {found['mb_per_s']:8.1f} MB/s  peak {found['peak']:6.0f} MB "
            f"(thirds of the time {thirds})  {found['bytes_out'] / 1e6:7.1f} MB written{against}",
            flush=True,
        )

    measure_loop()
    for gigabytes in asked.gigabytes:
        before = loops[-1] if loops else None
        if "threads" in asked.only:
            found = apart("threads", model, gigabytes)
            ratio = found["gigabytes"] * 1e9 / found["bytes_out"]
            show(f"{gigabytes:g} GB, {CORES} threads", found, before)
        if "worker" in asked.only:
            found = apart("workers", model, gigabytes, 1, CORES)
            ratio = found["gigabytes"] * 1e9 / found["bytes_out"]
            show(f"{gigabytes:g} GB, a worker of {CORES} threads", found, before)
        measure_loop()
    one = None
    if "workers" in asked.only:
        size = min(asked.gigabytes[-1], 2)
        one = apart("workers", model, size, 1, 1)
        show(f"{size:g} GB, a worker of 1 thread", one)
        two = apart("workers", model, size, 2, 1)
        show(f"{size:g} GB, two workers of 1 thread", two, one["mb_per_s"])
    if "recovery" in asked.only:
        size = min(asked.gigabytes[-1], 1)
        calm = apart("workers", model, size, 2, 1)
        show(f"{size:g} GB, two workers of 1 thread", calm)
        killed = apart("workers", model, size, 2, 1, calm["seconds"] / 2)
        show(f"{size:g} GB, one of them killed midway", killed, calm["mb_per_s"])
        print(
            f"{'':44s} {killed['seconds'] - calm['seconds']:+8.1f} s, same bytes: "
            f"{killed['bytes_out'] == calm['bytes_out']}"
        )
    if "simulation" in asked.only:
        if one is None:
            one = apart("workers", model, 0.5, 1, 1)
        rates = {"a core": one["mb_per_s"]}
        rates.update({f"a worker of {rate:g} MB/s": rate for rate in asked.rate})
        show_simulation(rates, ratio, apart("scheduling")["tasks_per_s"])


if __name__ == "__main__":
    main()
