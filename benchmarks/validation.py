"""Validation cubes as chunks: which dates count, how they are cut, and what groups they form."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path

import numpy as np
import xarray as xr
from tec.sensors import SENSORS

#: Dates of a chunk of a series
DATES = 4
#: Pixels of a chunk each way, at most
SIDE = 512
LEVELS = ("L2A", "L1C")


@dataclass(frozen=True)
class Chunk:
    """Dates of one place.

    Attributes
    ----------
    place : name of the cube
    dates : which of its dates
    dn : (time, band, y, x) uint16
    bands : names of the bands
    offset : what the DN carry on top of reflectance x 10000
    series : whether the cube is a dense series (10 dates or more)
    """

    place: str
    dates: tuple[int, ...]
    dn: np.ndarray
    bands: tuple[str, ...]
    offset: float
    series: bool = False

    @property
    def name(self) -> str:
        return f"{self.place}[{','.join(map(str, self.dates))}]"

    @cached_property
    def key(self) -> str:
        """The name, and a checksum of the pixels."""
        return f"{self.name}#{zlib.crc32(np.ascontiguousarray(self.dn)):08x}"

    def part(self, start: int, stop: int) -> Chunk:
        return replace(self, dates=self.dates[start:stop], dn=self.dn[start:stop])

    def images(self) -> list[Chunk]:
        """Each date by itself."""
        return [self.part(i, i + 1) for i in range(len(self.dates))]

    def chunks(self) -> list[Chunk]:
        """Dates in fours, in their order."""
        return [self.part(i, i + DATES) for i in range(0, len(self.dates), DATES)]


def places(
    folder: Path, *, frames: int | None = None, dates: int | None = None
) -> Iterator[tuple[str, Chunk]]:
    """(kind, all dates that count) of each L2A cube.

    A date counts with less than 0.1 % of zeros (nodata). Pixels are cut to multiples of 32, at most
    256; cubes of less than 64 pixels are left out. The kind is "frames" for cubes of 12 bands,
    "dense" for dense series of fewer bands (which only our models are run on).

    Parameters
    ----------
    frames : at most so many dates of each kind, first from one cube of each source, then from the
        second ones, and so on
    dates : at most so many of one cube
    """
    left = {"frames": frames, "dense": frames}
    for path in _in_turns(sorted(folder.glob("l2a_*.zarr"))):
        cube = xr.open_zarr(path, consolidated=False).reflectance
        height, width = (min(cube.sizes[d] // 32 * 32, 256) for d in ("y", "x"))
        if cube.attrs["level"] != "L2A" or min(height, width) < 64:
            continue
        series = cube.sizes["time"] >= 10
        kind = "frames" if cube.sizes["band"] == 12 else "dense"
        if kind == "dense" and not series:
            continue
        dn = cube.values[:, :, :height, :width]
        whole = [i for i, date in enumerate(dn) if (date == 0).mean() < 0.001][:dates]
        if left[kind] is not None:
            whole = whole[: left[kind]]
            left[kind] -= len(whole)
        if whole:
            names = tuple(str(b) for b in cube.band.values)
            offset = float(cube.attrs["offset"])
            yield kind, Chunk(path.stem, tuple(whole), dn[whole], names, offset, series)


def whole_cubes(
    folder: Path, *, level: str | None = None, limit: int | None = None
) -> Iterator[tuple[str, list[Chunk]]]:
    """(level, chunks) of each cube, all of it, in chunks of 4 dates and 512 x 512 pixels.

    Parameters
    ----------
    level : "L2A" or "L1C"; both where it is left out
    limit : at most so many cubes of each level, first one of each source, then the second ones
    """
    for name in (level,) if level else LEVELS:
        for path in _in_turns(sorted(folder.glob(f"{name.lower()}_*.zarr")))[:limit]:
            cube = xr.open_zarr(path, consolidated=False).reflectance
            bands = tuple(str(b) for b in cube.band.values)
            times, _, height, width = cube.shape
            chunks = []
            for t, y, x in product(
                range(0, times, DATES), range(0, height, SIDE), range(0, width, SIDE)
            ):
                dn = cube.values[t : t + DATES, :, y : y + SIDE, x : x + SIDE]
                dates = tuple(range(t, t + len(dn)))
                chunks.append(
                    Chunk(path.stem, dates, dn, bands, float(cube.attrs["offset"]), times >= 10)
                )
            yield name, chunks


def chunk_of(cube: Path | None, dates: int, size: int) -> tuple[np.ndarray, float]:
    """(dates, 12, size, size) uint16 and its offset: real pixels, mirrored where the cube is too
    small; a generated scene where there is none."""
    if cube is None:
        sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
        from scenes import scene

        return scene(dates, 12, size, size), 0.0
    data = xr.open_zarr(cube, consolidated=False).reflectance
    dn = data.sel(band=list(SENSORS["S2L2A"].bands)).values[:dates, :, :size, :size]
    more = [(0, wanted - n) for wanted, n in zip((dates, 12, size, size), dn.shape)]
    return np.pad(dn, more, mode="reflect"), float(data.attrs["offset"])


def _in_turns(paths: list[Path]) -> list[Path]:
    """The first cube of each source, then the second of each, ..."""
    seen: dict[str, int] = {}
    turns = []
    for path in paths:
        source = path.stem.split("_")[1]
        turns.append(seen.setdefault(source, 0))
        seen[source] += 1
    return [path for _, path in sorted(zip(turns, paths))]


#: Groups of frames that figures are given for
GROUPS: dict[str, Callable[[Chunk], bool]] = {
    "SSL4EO-S12 places": lambda chunk: "ssl4eos12" in chunk.place,
    "all places": lambda chunk: True,
}
#: Groups of series, by source
SERIES: dict[str, Callable[[Chunk], bool]] = {
    "SSL4EO-S12, four seasons": GROUPS["SSL4EO-S12 places"],
    "GELOS": lambda chunk: "gelos" in chunk.place,
    "dense series": lambda chunk: chunk.series,
}


def unusual(chunk: Chunk) -> str:
    """Why a date is out of the ordinary; empty where it is not."""
    reflectance = chunk.dn.astype(np.int32) - int(chunk.offset)
    why = []
    if reflectance.max() > 12000:
        why.append(f"up to {reflectance.max()} DN")
    if "B08" in chunk.bands:
        dark = (reflectance[:, chunk.bands.index("B08")] < 100).mean()
        if dark > 0.05:
            why.append(f"{100 * dark:.0f} % dark water (B08 below 100 DN)")
    return ", ".join(why)
