"""Files without loss, and with a bound on the error, beside other codecs: sizes, then speeds.

    python benchmarks/lossless.py --data ../shared/data/val --json out.json
    python benchmarks/lossless.py --data ../shared/data/val --level L2A --cubes 3 --only sizes

Every size is that of real bytes; all are decoded, and the largest error is compared with the bound.
Ours codes chunks of up to 4 dates, all bands and 512 x 512 pixels with ``model="none"`` and
``nodata=0``, one stream a chunk; the others code every band of every date by itself. Bits are per
pixel and band (bpppb), the mean over cubes, each of which counts alike; so is PSNR (peak 10000 DN,
pixels other than nodata). Without ``--data`` there is one generated scene.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import tec
from planes import PLANE_CODECS, PlaneCodec
from tec.sensors import SENSORS
from validation import LEVELS, Chunk, chunk_of, whole_cubes

BOUNDS = (0, 2, 5, 10, 20)
#: In the table of pictures
LARGE_BOUNDS = (20, 50, 100, 200, 400)
#: Sources of the cubes of that table, one of each: coding and decoding take seconds per megapixel
PICTURED = ("ssl4eos12", "gelos", "hydro", "terramesh")
#: Whose speed is measured, too
REFERENCES = ("JPEG XL", "JPEG-LS")
SPEED_BOUNDS = (0, 5, 20)
WAYS = ("encode", "decode")
OURS = "ours"
PEAK = 10000.0
GROUPS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "L2A, SSL4EO-S12": lambda cube: cube["level"] == "L2A" and "ssl4eos12" in cube["place"],
    "L2A, GELOS": lambda cube: cube["level"] == "L2A" and "gelos" in cube["place"],
    "L2A, others": lambda cube: (
        cube["level"] == "L2A" and not any(s in cube["place"] for s in ("ssl4eos12", "gelos"))
    ),
    "L2A, all": lambda cube: cube["level"] == "L2A",
    "L1C, all": lambda cube: cube["level"] == "L1C",
}


def config_of(chunk: Chunk, bound: float, **settings: Any) -> tec.CodecConfig:
    """Of ours: no network unless ``settings`` name one."""
    settings = {"model": "none"} | settings
    sensor = "S2L2A" if set(chunk.bands) <= set(SENSORS["S2L2A"].bands) else "S2L1C"
    return tec.CodecConfig(
        sensor=sensor,
        bands=chunk.bands,
        nodata=0,
        offset=chunk.offset,
        max_error=bound,
        **settings,
    )


def pictured(bound: float) -> dict[str, Any]:
    """Settings of a picture that suits the bound: its error is some share of it."""
    compression = min(max(20 * (150 / bound) ** 1.3, 0.4), 700.0)
    return {"model": "tt", "compression": compression, "lossy": "always"}


class Tally:
    """Bytes and errors of the chunks of a cube."""

    def __init__(self) -> None:
        self.size = self.samples = self.count = self.worst = 0
        self.squares = 0.0

    def add(self, chunk: Chunk, size: int, back: np.ndarray) -> None:
        error = back.astype(np.int64) - chunk.dn
        self.worst = max(self.worst, int(np.abs(error).max(initial=0)))
        error = error[chunk.dn != 0]
        self.size += size
        self.samples += chunk.dn.size
        self.count += error.size
        self.squares += float((error * error).sum())

    def record(self, bound: int, name: str, place: str) -> dict[str, Any]:
        """SystemExit where the bound was not kept."""
        if self.worst > bound:
            sys.exit(f"{name} is off by {self.worst} DN on {place} where {bound} was the bound")
        psnr = None
        if self.squares:
            psnr = float(10 * np.log10(PEAK**2 * self.count / self.squares))
        return {"bpppb": 8 * self.size / self.samples, "worst": self.worst, "psnr": psnr}


def ours(chunks: Iterable[Chunk], bound: int, **settings: Any) -> dict[str, Any]:
    tally = Tally()
    for chunk in chunks:
        data = tec.encode(chunk.dn, config_of(chunk, bound, **settings))
        back = tec.decode(data)
        if not np.array_equal(back == 0, chunk.dn == 0):
            sys.exit(f"ours moved nodata on {chunk.name}, bound {bound}")
        tally.add(chunk, len(data), back)
        place = chunk.place
    return tally.record(bound, OURS, place)


def theirs(codec: PlaneCodec, chunks: Iterable[Chunk], bound: int) -> dict[str, Any]:
    tally = Tally()
    for chunk in chunks:
        parts = codec.there(chunk.dn, bound)
        tally.add(chunk, sum(map(len, parts)), codec.back(parts, chunk.dn.shape))
        place = chunk.place
    return tally.record(bound, codec.name, place)


def available() -> list[PlaneCodec]:
    return [codec for codec in PLANE_CODECS if not codec.missing()]


def sizes(cubes: list[tuple[str, list[Chunk]]], bounds: Iterable[int]) -> list[dict[str, Any]]:
    """Of each cube: level, place, and by bound and codec what `Tally.record` gives."""
    out = []
    start = time.monotonic()
    for level, chunks in cubes:
        found: dict[str, Any] = {"level": level, "place": chunks[0].place}
        for bound in bounds:
            found[str(bound)] = {OURS: ours(chunks, bound)} | {
                codec.name: theirs(codec, chunks, bound)
                for codec in available()
                if codec.keeps(bound)
            }
        out.append(found)
        print(f"  {time.monotonic() - start:5.0f} s: {found['place']}", file=sys.stderr)
    return out


def with_picture(cubes: list[tuple[str, list[Chunk]]]) -> list[dict[str, Any]]:
    """Of the first cube of each of PICTURED: bpppb and PSNR with and without a lossy picture."""
    out = []
    for source in PICTURED:
        found = (chunks for _, chunks in cubes if source in chunks[0].place)
        for chunks in list(found)[:1]:
            for bound in LARGE_BOUNDS:
                row = {"place": chunks[0].place, "bound": bound, "none": ours(chunks, bound)}
                out.append(row | {"tt": ours(chunks, bound, **pictured(bound))})
    return out


# Speed -------------------------------------------------------------------------------------------


def best(work: Callable[[], Any], runs: int) -> tuple[float, Any]:
    """Seconds of the fastest of some calls, after one that compiles; and what it gives."""
    result, times = work(), []
    for _ in range(runs):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times), result


def there_and_back(
    encode: Callable[[], Any], decode: Callable[[Any], Any], megabytes: float, runs: int
) -> tuple[dict[str, float], Any]:
    """MB/s of both ways, and the encoded."""
    took, data = best(encode, runs)
    back, _ = best(lambda: decode(data), runs)
    return {"encode": megabytes / took, "decode": megabytes / back}, data


def speeds(cube: Path | None, runs: int) -> list[dict[str, Any]]:
    """MB/s of uint16 on two cores: ours, JPEG XL and JPEG-LS in two threads, and copying."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    dn, offset = chunk_of(cube, 4, 512)
    name = cube.stem if cube else "generated scene"
    chunk = Chunk(name, (0, 1, 2, 3), dn, SENSORS["S2L2A"].bands, offset)
    megabytes, planes = dn.nbytes / 1e6, dn.reshape(-1, *dn.shape[2:])
    same = {"place": name, "copy": megabytes / best(dn.copy, 5)[0]}
    out = []
    for bound in SPEED_BOUNDS:
        encode = partial(tec.encode, dn, config_of(chunk, bound))
        speed, data = there_and_back(encode, tec.decode, megabytes, runs)
        out.append(same | {"codec": OURS, "bound": bound, "bpppb": 8 * len(data) / dn.size} | speed)
    with ThreadPoolExecutor(2) as pool:

        def each(work: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
            return list(pool.map(work, items))

        for codec, bound in product(available(), SPEED_BOUNDS):
            if codec.name in REFERENCES and codec.keeps(bound):
                encode = partial(each, partial(codec.encode, bound=bound), planes)
                decode = partial(each, partial(codec.decode, shape=planes.shape[1:]))
                speed, parts = there_and_back(encode, decode, megabytes, runs)
                bpppb = 8 * sum(map(len, parts)) / dn.size
                out.append(same | {"codec": codec.name, "bound": bound, "bpppb": bpppb} | speed)
    return out


# Tables ------------------------------------------------------------------------------------------


def mean(cubes: list[dict[str, Any]], bound: int, name: str, figure: str) -> float:
    return float(np.mean([cube[str(bound)][name][figure] for cube in cubes]))


def groups_of(cubes: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found = {name: list(filter(belongs, cubes)) for name, belongs in GROUPS.items()}
    found = {name: members for name, members in found.items() if members}
    return found or {"generated": cubes}


def size_tables(cubes: list[dict[str, Any]], bounds: Iterable[int]) -> str:
    lines = []
    groups = groups_of(cubes)
    head = " | ".join(f"{name} ({len(members)})" for name, members in groups.items())
    for bound in bounds:
        title = "Lossless" if bound == 0 else f"Bound {bound} DN"
        note = "" if bound == 0 else ", PSNR in dB"
        lines += ["", f"**{title}**: bpppb, what ours is smaller by{note}", ""]
        lines += [f"| | {head} | largest error |", "|---" * (len(groups) + 2) + "|"]
        for name in cubes[0][str(bound)]:
            cells = []
            for members in groups.values():
                rate, own = (mean(members, bound, n, "bpppb") for n in (name, OURS))
                cell = f"{rate:.3f}"
                if name != OURS:
                    cell += f", {100 * (1 - own / rate):+.1f} %"
                if all(cube[str(bound)][name]["psnr"] is not None for cube in members):
                    cell += f", {mean(members, bound, name, 'psnr'):.1f} dB"
                cells.append(cell)
            worst = max(cube[str(bound)][name]["worst"] for cube in cubes)
            lines.append(f"| {name} | {' | '.join(cells)} | {worst} |")
        lost = [
            f"{cube['place']} ({100 * (found[OURS]['bpppb'] / least['bpppb'] - 1):+.1f} %, {name})"
            for cube in cubes
            for found in [cube[str(bound)]]
            for name, least in [min(found.items(), key=lambda item: item[1]["bpppb"])]
            if name != OURS
        ]
        lines += ["", f"Ours is not the smallest on: {', '.join(lost) or 'none'}."]
    return "\n".join(lines)


def picture_table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "**With a lossy picture** (`tt`) under the residual, and without",
        "",
        "| cube | bound | without: bpppb | PSNR | with: bpppb | PSNR | bytes saved |",
        "|---" * 7 + "|",
    ]
    for row in rows:
        a, b = row["none"], row["tt"]
        lines.append(
            f"| {row['place']} | {row['bound']} | {a['bpppb']:.3f} | {a['psnr']:.1f} "
            f"| {b['bpppb']:.3f} | {b['psnr']:.1f} | {100 * (1 - b['bpppb'] / a['bpppb']):+.1f} % |"
        )
    return "\n".join(lines)


def speed_table(rows: list[dict[str, Any]]) -> str:
    """With ratios to JPEG XL on the same chunk: they depend less on the machine, and its load."""
    lines = [
        "**Speed** on two cores, a chunk of (4, 12, 512, 512), cubes that are smaller mirrored; in "
        "brackets as a multiple of JPEG XL's",
        "",
        "| chunk | codec | bound | bpppb | encode MB/s | decode MB/s |",
        "|---" * 6 + "|",
    ]
    for row in rows:
        same = [r for r in rows if r["place"] == row["place"] and r["codec"] == "JPEG XL"]
        ways = [f"{row[way]:.1f}" for way in WAYS]
        if same:
            ways = [f"{row[way]:.1f} ({row[way] / same[0][way]:.2f})" for way in WAYS]
        lines.append(
            f"| {row['place']} | {row['codec']} | {row['bound']} | {row['bpppb']:.3f} "
            f"| {' | '.join(ways)} |"
        )
    copies = ", ".join(sorted({f"{row['copy']:.0f}" for row in rows}))
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    return "\n".join([*lines, "", f"Copying: {copies} MB/s. Load of the machine: {load}."])


def generated() -> list[tuple[str, list[Chunk]]]:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    from scenes import scene

    dn = scene(4, 12, 128, 128, nodata=True)
    return [("", [Chunk("generated scene", (0, 1, 2, 3), dn, SENSORS["S2L2A"].bands, 0.0)])]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of cubes (*.zarr)")
    parser.add_argument("--level", choices=LEVELS, help="cubes of one level only")
    parser.add_argument("--cubes", type=int, help="at most so many of a level, of various sources")
    parser.add_argument("--bounds", type=int, nargs="+", default=BOUNDS, help="in DN")
    parser.add_argument("--only", nargs="+", choices=("sizes", "picture", "speed"))
    parser.add_argument(
        "--chunks", type=Path, nargs="+", default=[None], help="cubes whose speed is measured"
    )
    parser.add_argument("--runs", type=int, default=3, help="of speed: the best counts")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    parts = args.only or ("sizes", "picture", "speed")
    cubes = generated()
    if args.data:
        cubes = list(whole_cubes(args.data, level=args.level, limit=args.cubes))
    missing = {c.name: f"not available: {why}" for c in PLANE_CODECS if (why := c.missing())}
    result: dict[str, Any] = {"how": {c.name: c.how for c in PLANE_CODECS} | missing}
    print("\n".join(f"- {name}: {how}" for name, how in result["how"].items()), flush=True)
    if "sizes" in parts:
        result["sizes"] = sizes(cubes, args.bounds)
        print(size_tables(result["sizes"], args.bounds), flush=True)
    if "picture" in parts:
        result["picture"] = with_picture(cubes)
        print("\n" + picture_table(result["picture"]), flush=True)
    if "speed" in parts:
        result["speed"] = [row for cube in args.chunks for row in speeds(cube, args.runs)]
        print("\n" + speed_table(result["speed"]), flush=True)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
