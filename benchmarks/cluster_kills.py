"""Kill workers and clients of a cluster at random moments (SIGKILL), and compare what is written.

A cluster of two processes writes a cube again and again. In every other run one of its workers is
killed: the run has to complete by itself. In the others the client is killed: the store must not
open, and the same call with ``resume=True`` has to complete it. Either way the store equals the one
of an undisturbed run, byte for byte.

Prints figures; exits with 1 if any of that is not so.

    python benchmarks/cluster_kills.py [--runs 20] [--model fp] [--seed 0] [--gigabytes 0.1]
        [--s3 SHARE | --store URL --storage-options JSON]

``--s3 0.05`` writes to an S3 server on this machine (moto), behind a proxy that spoils five in a
hundred requests: 500, 503, answers that take their time, cut connections.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import endless
import fsspec
import xarray as xr
from distributed import Client, LocalCluster

import xtec  # noqa: F401  # the accessor
from xtec.rootlast import UNFINISHED

HANGS = 600  # seconds that no run takes


def write(address: str, asked: argparse.Namespace, store: str, resume: bool) -> None:
    """In a process of its own: the client."""
    with Client(address):
        endless.cube(asked.gigabytes, 512).tec.to_zarr(
            store,
            model=asked.model,
            chunks={"time": 2, "y": 256, "x": 256},
            resume=resume,
            storage_options=asked.storage_options,
            progress=False,
        )


def client(arguments: list[str], address: str, store: str, resume: bool) -> subprocess.Popen:
    told = json.dumps([address, store, resume])
    return subprocess.Popen([sys.executable, __file__, *arguments, "--client", told])


def contents(store: str, options: dict[str, Any] | None) -> dict[str, bytes]:
    fs, root = fsspec.url_to_fs(store, **(options or {}))
    fs.invalidate_cache()
    return {path.removeprefix(root): data for path, data in fs.cat(fs.find(root)).items()}


def opens(store: str, options: dict[str, Any] | None) -> str:
    """Why not, or "" where it does."""
    try:
        xr.open_zarr(store, storage_options=options).close()
    except Exception as error:
        return str(error)
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--model", default="fp")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--gigabytes", type=float, default=0.1)
    parser.add_argument("--store", help="a folder or URL to write under; a temporary one if not")
    parser.add_argument("--storage-options", type=json.loads)
    parser.add_argument("--s3", type=float, metavar="SHARE", help="of the requests that fail")
    parser.add_argument("--client", type=json.loads, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.client:
        address, store, resume = asked.client
        write(address, asked, store, resume)
        return 0
    if asked.s3 is None:
        return run(asked)
    with flaky_s3(asked.s3, asked.seed) as (asked.store, asked.storage_options, network):
        code = run(asked)
        print(f"requests: {len(network.seen)}, of which spoilt: {network.spoilt}")
    return code


@contextmanager
def flaky_s3(share: float, seed: int) -> Iterator[tuple[str, dict[str, Any], Any]]:
    """URL, storage options and proxy of a bucket."""
    sys.path.append(str(Path(__file__).parents[1] / "tests"))
    import object_stores

    for name in filter(object_stores.is_of_networks, list(os.environ)):
        del os.environ[name]
    os.environ.update(AWS_ACCESS_KEY_ID="a", AWS_SECRET_ACCESS_KEY="b", AWS_REGION="us-east-1")
    with object_stores.s3_server() as port, object_stores.proxy(port) as network:
        object_stores.ask(port, "PUT", "/bucket")
        faults = ("InternalError", "SlowDown", "slow", "cut", "half")
        network.rule = object_stores.flaky(seed, share, *faults)
        yield "s3://bucket", {"endpoint_url": network.url}, network


def run(asked: argparse.Namespace) -> int:
    """All runs; 1 where anything was wrong."""
    rng = random.Random(asked.seed)
    arguments = ["--model", asked.model, "--gigabytes", str(asked.gigabytes)]
    if asked.storage_options:
        arguments += ["--storage-options", json.dumps(asked.storage_options)]
    figures: collections.Counter[str] = collections.Counter()
    wrong: list[str] = []
    started = time.perf_counter()
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=":0", local_directory=folder
        ) as cluster,
    ):
        under = (asked.store or folder).rstrip("/")
        start = time.perf_counter()
        for name in ("warm", "calm"):  # the first one compiles
            begun = time.perf_counter()
            if client(arguments, cluster.scheduler_address, f"{under}/{name}.zarr", False).wait():
                raise RuntimeError("an undisturbed run failed: see above")
            seconds = time.perf_counter() - begun
        wanted = contents(f"{under}/calm.zarr", asked.storage_options)
        head = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import xtec, distributed"], check=True)
        head = time.perf_counter() - head  # what a client takes before it does anything
        print(f"{len(wanted)} keys, undisturbed in {seconds:.1f} s", flush=True)
        for run in range(asked.runs):
            store = f"{under}/{run}.zarr"
            after = rng.uniform(head, seconds)
            start = time.perf_counter()
            job = client(arguments, cluster.scheduler_address, store, False)
            time.sleep(after)
            if run % 2:
                workers = [w.pid for w in cluster.workers.values() if w.pid]
                os.kill(rng.choice(workers), signal.SIGKILL)
                figures["workers killed"] += 1
            else:
                job.kill()
                figures["clients killed"] += 1
            code = job.wait(HANGS)
            if run % 2 and code:
                wrong.append(f"run {run}: the client ended with {code} after losing a worker")
            if code:
                error = opens(store, asked.storage_options)
                if not error:
                    figures["clients killed after the store opened"] += 1
                elif UNFINISHED in error:
                    figures["killed midway, the store says so"] += 1
                elif "No such file" in error or "No group found" in error or "exist" in error:
                    figures["killed before anything was written"] += 1
                else:
                    wrong.append(f"run {run}: it does not open, without a clear message: {error}")
                again = client(arguments, cluster.scheduler_address, store, True)
                if again.wait(HANGS):
                    wrong.append(f"run {run}: resuming failed")
                figures["resumed"] += 1
            figures["seconds lost"] += round(time.perf_counter() - start - seconds)
            found = contents(store, asked.storage_options)
            if found == wanted:
                figures["stores equal to the undisturbed one"] += 1
            else:
                keys = [k for k in found.keys() | wanted.keys() if found.get(k) != wanted.get(k)]
                wrong.append(f"run {run}: {sorted(keys)[:5]} differ")
    for name, count in sorted(figures.items()):
        print(f"{name}: {count}")
    print(f"seconds: {time.perf_counter() - started:.0f}")
    print(f"violations: {len(wrong)}")
    for text in wrong:
        print(f"  {text}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
