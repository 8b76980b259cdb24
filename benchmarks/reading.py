"""How fast a store is read, and how often each of its chunks is decoded, by access pattern.

    python benchmarks/reading.py [--model elic] [--size 512] [--dates 8] [--cache "1 GB"]

Every pattern reads a generated cube of 12 band variables from a store on disk, with engine="xtec",
once with nothing kept and once with xtec.settings.cache. "Relative" is the time, as a multiple of
what reading the whole cube took in the same run, the only figure that compares between machines.
MB are those of the pixels that the reader gets.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import xarray as xr
import zarr
from tec.sensors import SENSORS

import xtec  # noqa: F401  registers ds.tec
from xtec import cache, settings
from xtec.backend import XtecBackend
from xtec.bandvars import split
from xtec.chunks import ChunkCoder
from xtec.synthetic import scene
from xtec.writing import quiet

BANDS = SENSORS["S2L2A"].bands


def patterns(path: Path) -> dict[str, Callable[[], xr.Dataset | xr.DataArray]]:
    """What is read, and by what way."""

    def bands(**options: Any) -> xr.Dataset:
        return xr.open_dataset(path, engine=XtecBackend, **options)

    def stored(**options: Any) -> xr.Dataset:
        return bands(layout="stored", **options)

    def index(ds: xr.Dataset) -> xr.DataArray:
        red, infrared = ds.B04.astype("f4"), ds.B08.astype("f4")
        return (infrared - red) / (infrared + red + 1)

    return {
        "whole, stored layout, Dask": lambda: stored(chunks={}),
        "all bands, split(stored), Dask": lambda: split(stored(chunks={})),
        "all bands, Dask": lambda: bands(chunks={}),
        "all bands": lambda: bands(),
        "B04 and B08, Dask": lambda: bands(chunks={})[["B04", "B08"]],
        "an index of B04 and B08, Dask": lambda: index(bands(chunks={})),
        "an index, split(stored), Dask": lambda: index(split(stored(chunks={}))),
        "one band, Dask": lambda: bands(chunks={}).B08,
        "one band": lambda: bands().B08,
        "one pixel's series of a band": lambda: bands().B08.isel(y=70, x=70),
        "one pixel's series of all bands": lambda: bands().isel(y=70, x=70),
        "the first date of a band": lambda: bands().B08.isel(time=0),
        "the last date of a band": lambda: bands().B08.isel(time=-1),
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="elic")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--dates", type=int, default=8)
    parser.add_argument("--cache", default="1 GB")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder, quiet(), _counted() as decodes:
        path = Path(folder) / "a.zarr"
        _write(path, args.model, args.dates, args.size)
        chunks = math.prod(zarr.open_array(path / "reflectance").cdata_shape)
        print(f"{args.model}, {chunks} chunks of 4 x 12 x 128 x 128, cache {args.cache}")
        print(f"{'':34}{'MB/s':>9}{'relative':>9}{'decodes':>9}   the same with the cache")
        ways = patterns(path)
        ways["whole, stored layout, Dask"]().compute()  # loads and compiles
        whole = None
        for name, read in ways.items():
            row = ""
            for kept in (0, args.cache):
                settings.cache = kept
                cache.clear()
                decodes.clear()
                begin = time.perf_counter()
                size = read().compute().nbytes
                seconds = time.perf_counter() - begin
                whole = whole or seconds
                often = len(decodes) / len(set(decodes))
                row += f"{size / 1e6 / seconds:9.3g}{seconds / whole:9.2f}{often:9.2f}   "
            print(f"{name:34}{row}", flush=True)


@contextmanager
def _counted() -> Iterator[list[bytes]]:
    """Every chunk that is decoded meanwhile; settings are put back."""
    seen: list[bytes] = []
    inner, kept = ChunkCoder.decode_chunks, settings.cache

    def spy(self: ChunkCoder, data: Any, *rest: Any, **more: Any) -> Any:
        seen.extend(data)
        return inner(self, data, *rest, **more)

    ChunkCoder.decode_chunks = spy  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        ChunkCoder.decode_chunks = inner  # type: ignore[method-assign]
        settings.cache = kept
        cache.clear()


def _write(path: Path, model: str, dates: int, size: int) -> None:
    options: dict[str, Any] = {"max_error": 20} if model == "none" else {"model": model}
    pixels = scene(size, dates).reflectance.values
    ds = xr.Dataset(
        {name: (("time", "y", "x"), pixels[:, k]) for k, name in enumerate(BANDS)},
        {"time": pd.date_range("2020-06-01", periods=dates)},
    )
    ds.tec.compress(chunks={"time": 4, "y": 128, "x": 128}, **options).to_zarr(path)


if __name__ == "__main__":
    main()
