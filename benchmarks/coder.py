"""How fast and how tight the coder is, on one core: symbols, and the rounding of parameters.

    python benchmarks/coder.py [--symbols 1000000] [--repeats 9] [--json]

Times are those that the thread had the processor for, the best of some repeats: other work on the
machine only ever slows one down.
The speed at which numpy copies, measured before and after, says how fast the machine was just then:
"of copy" is the int32 symbols coded a second, as a part of those that could be copied.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import numpy as np
from tec.entropy import rans
from tec.entropy.portable import Margin, Reader, ScaleGrid, Writer
from tec.entropy.tables import Tables, shipped


def best(function: Callable[[], object], repeats: int) -> float:
    """Processor seconds of the fastest of some calls, after one that compiles."""
    function()
    times = []
    for _ in range(repeats):
        start = time.thread_time()
        function()
        times.append(time.thread_time() - start)
    return min(times)


def copy_speed(repeats: int) -> float:
    """10^6 int32 a second, copied 64 MB at a time."""
    a = np.ones(16_000_000, np.int32)
    b = np.empty_like(a)
    return a.size / best(lambda: np.copyto(b, a), repeats) / 1e6


def indexes(n: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Levels of the default grid, as different kinds of data have them."""
    mixed = np.clip(rng.gamma(1.0, 6.0, n), 0, 63)
    return {
        "certain": np.where(rng.random(n) < 0.999, 0, 20),
        "mixed": mixed,  # most symbols near-certain, some wide
        "mixed, 80 % low": np.where(rng.random(n) < 0.8, rng.integers(0, 6, n), mixed * 2 % 64),
        "scale 1": np.full(n, 18),
        "all levels alike": rng.integers(0, 64, n),
    }


def coder(name: str, tables: Tables, index: np.ndarray, symbols: np.ndarray, repeats: int) -> dict:
    """Encode and decode; bytes beside the ideal code length under the same integers."""
    data = rans.encode(symbols, index, tables)

    def decode() -> np.ndarray:
        decoder = rans.Decoder(data, tables)
        out = decoder.read(index)
        decoder.finish()
        return out

    if not np.array_equal(decode(), symbols):
        raise SystemExit(f"{name}: decoded symbols differ")
    bits = tables.bits(index, symbols).sum()
    return {
        "symbols": name,
        "bits/symbol": bits / symbols.size,
        "encode Msymbols/s": symbols.size
        / best(lambda: rans.encode(symbols, index, tables), repeats)
        / 1e6,
        "decode Msymbols/s": symbols.size / best(decode, repeats) / 1e6,
        "bytes": len(data),
        "bytes over ideal": len(data) - bits / 8,
        "within 1 % + 64": len(data) <= 1.01 * bits / 8 + 64,
    }


def rounding(dtype: type, n: int, margin: Margin, repeats: int, rng: np.random.Generator) -> dict:
    """Parameters of n symbols (a scale and a mean each), written and read in four rows."""
    grid, shape = ScaleGrid(), (4, n // 4)
    mean = rng.normal(size=shape).astype(dtype) * 3
    log_scale = rng.uniform(-2.5, 1.0, shape).astype(dtype)
    writer = Writer(4, grid, margin)
    writer.parameters(mean, log_scale)
    data = writer.getvalue()

    def write() -> None:
        w = Writer(4, grid, margin)
        w.parameters(mean, log_scale)
        w.getvalue()

    def read() -> None:
        r = Reader(data, grid)
        r.parameters(mean, log_scale)
        r.finish()

    bits = 8 * sum(map(len, data))
    return {
        "parameters": np.dtype(dtype).name,
        "margin": f"{margin.absolute:.1e} + {margin.relative:.1e} |x|",
        "write Msymbols/s": mean.size / best(write, repeats) / 1e6,
        "read Msymbols/s": mean.size / best(read, repeats) / 1e6,
        "flagged, one in": writer.values / max(writer.flagged, 1),
        "bits/decision": bits / max(writer.flagged, 1),
        "bits/symbol": bits / mean.size,
    }


def table(rows: list[dict]) -> str:
    """Aligned columns, two decimals."""
    cells = [list(rows[0])]
    cells += [[f"{v:.2f}" if isinstance(v, float) else str(v) for v in r.values()] for r in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in cells
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--symbols", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="one JSON object in place of tables")
    options = parser.parse_args()
    n, repeats = options.symbols, options.repeats
    rng = np.random.default_rng(options.seed)
    copied = copy_speed(repeats)

    coded = []
    tables, scales = shipped("gaussian"), ScaleGrid().scales
    for name, levels in indexes(n, rng).items():
        index = levels.astype(np.uint16)
        symbols = np.rint(rng.normal(size=n) * scales[index]).astype(np.int32)
        coded.append(coder(name, tables, index, symbols, repeats))
    escaped = np.where(rng.random(n) < 0.01, rng.integers(-(2**20), 2**20, n), symbols)
    coded.append(coder("1 % escapes", tables, index, escaped.astype(np.int32), repeats))
    channels = Tables.from_pmfs(
        [(rng.dirichlet(np.full(2 * r + 1, 0.3)), -r) for r in rng.integers(2, 30, 192)]
    )
    index = np.repeat(np.arange(192, dtype=np.uint16), n // 192 + 1)[:n]
    low, high = (
        channels.lowest[index],
        channels.lowest[index] + np.diff(channels.offsets)[index] - 3,
    )
    symbols = np.clip(np.rint(rng.normal(size=n) * 2), low, high).astype(np.int32)
    coded.append(coder("192 channels", channels, index, symbols, repeats))
    tiny = np.zeros(1000, np.int32)
    coded.append(coder("1000 certain", tables, tiny.astype(np.uint16), tiny, repeats))

    rounded = [
        rounding(dtype, n, Margin(2.0**exponent, 2.0 ** (exponent - 3)), repeats, rng)
        for dtype, exponent in ((np.float32, -14), (np.float32, -17), (np.float64, -14))
    ]
    copied = max(copied, copy_speed(repeats))
    for row in coded:
        for way in ("encode", "decode"):
            row[f"{way} of copy"] = row[f"{way} Msymbols/s"] / copied
    if options.json:
        print(
            json.dumps(
                {"copied Mint32/s": copied, "coder": coded, "rounding": rounded}, default=float
            )
        )
        return
    print(f"numpy copies {copied:.0f} million int32 a second\n")
    print(table(coded), table(rounded), sep="\n\n")


if __name__ == "__main__":
    main()
