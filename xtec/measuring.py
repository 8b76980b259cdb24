"""Some chunks of a cube, read, coded and decoded on this machine: how fast, how small, how well."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import xarray as xr

from . import settings
from .ratecontrol import MOST_BYTES, Goal, Probes, spread

MB = 1e6


class Measured(NamedTuple):
    """Chunks that were tried: their places in the sample, MB/s, and bytes."""

    probes: Probes
    chunks: list[int]
    rates: dict[str, float]  # "read", "encode", "decode"
    device: str
    cores: int
    block: int
    peak: int | None
    load: float  # of this machine, just before

    @property
    def machine(self) -> str:
        cores = f"{self.cores} core{'s' if self.cores > 1 else ''}"
        return cores if self.device == "cpu" else f"{self.device} and {cores}"


def measure(data: xr.DataArray, sample: int, cores: int) -> Measured:
    """Read, encode and decode some chunks, after one that is not timed."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    block = math.prod(map(max, data.chunks or ())) * data.dtype.itemsize
    read = _reading(data, min(cores, max(1, MOST_BYTES // block)))
    probes = Probes(data)
    config = probes.coder.config
    chunks = probes.sample(min(sample, probes.most))
    while not probes.with_pixels(chunks) and len(chunks) < probes.most:
        chunks = probes.sample(probes.larger(len(chunks)))
    if not probes.with_pixels(chunks):
        raise ValueError(
            f"none of the {len(chunks)} chunks that were tried (of {probes.total}) has a valid "
            "pixel, so there is nothing to measure: select the part that has data"
        )
    with _peak() as peak:
        probes.warm_up()
        probes.parts(config, Goal("ratio", 1), chunks)
        probes.parts(config, Goal("psnr", 0), chunks)
    nbytes = probes.nbytes(chunks)
    rates = {what: nbytes / MB / max(spent, 1e-9) for what, spent in probes.seconds.items()}
    device = "cpu"
    if config.model != "none":
        from tec.weights import resolve_device

        device = resolve_device(settings.device)
    most = peak()
    rss = None if most is None else most - nbytes
    return Measured(probes, chunks, {"read": read, **rates}, device, cores, block, rss, load)


def _reading(data: xr.DataArray, count: int) -> float:
    """MB/s of getting some of the blocks at once, where writing would get them from."""
    import dask

    places = islice(spread(data.data.numblocks), count)
    start = time.perf_counter()
    blocks = dask.compute(*(data.data.blocks[place] for place in places))
    spent = time.perf_counter() - start
    return sum(block.nbytes for block in blocks) / MB / max(spent, 1e-9)


def has_gpu() -> bool:
    from tec.weights import resolve_device

    return resolve_device("auto") != "cpu"


@contextmanager
def on_device(device: str) -> Iterator[None]:
    before, settings.device = settings.device, device
    try:
        yield
    finally:
        settings.device = before


@contextmanager
def _peak() -> Iterator[Callable[[], int | None]]:
    """Most bytes that this process holds in the meantime; None where a system does not tell."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        yield lambda: None
        return
    page, done, found = os.sysconf("SC_PAGE_SIZE"), threading.Event(), [0]

    def watch() -> None:
        over = False
        while not over:
            found[0] = max(found[0], int(statm.read_text().split()[1]) * page)
            over = done.wait(0.02)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield lambda: found[0]
    finally:
        done.set()
        watcher.join()
