"""A second decoder of the residual, written from FORMAT.md alone: plain Python integers, slow.

Planes are lists of rows. Nothing of the package is used, so that a fault there, or a sentence that
FORMAT.md lacks, shows as a difference.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

Plane = list[list[int]]

NEAR = [(0, -1), (-1, 0), (-1, -1), (-1, 1)]
FAR = [(0, -2), (-2, 0)]
CROSS = [(0, 0), (0, -1), (-1, 0), (0, 1), (1, 0)]
CORNERS = [(-1, -1), (-1, 1), (1, -1), (1, 1)]


def decode(
    data: bytes,
    shape: tuple[int, int, int, int],
    bounds: Sequence[int],
    *,
    special: Any = None,
    nodata: int | None = None,
    picture: Any = None,
    segment: int = 2**21,
    strip: int = 2**15,
) -> list[list[Plane]]:
    """[date][band][y][x]. ``special`` and ``picture`` are indexed the same way, or None."""
    times, bands, height, width = shape
    n = max(1, min(times * bands * height * width // segment, height // 32))
    edges = [i * height // n for i in range(n + 1)]
    lengths = [int.from_bytes(data[4 * i : 4 * i + 4], "little") for i in range(n)]
    assert 4 * n + sum(lengths) == len(data)
    out: list[list[Plane]] = [[[] for _ in range(bands)] for _ in range(times)]
    at = 4 * n
    for (top, bottom), length in zip(pairwise(edges), lengths):
        planes = _segment(
            Code(data[at : at + length]),
            (times, bands, bottom - top, width),
            bounds,
            None if special is None else [[p[top:bottom] for p in date] for date in special],
            nodata,
            None if picture is None else [[p[top:bottom] for p in date] for date in picture],
            strip,
        )
        at += length
        for date, rows in zip(out, planes):
            for whole, part in zip(date, rows):
                whole.extend(part)
    return out


class Code:
    """The binary coder of "Masks", reading."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 4
        self.low, self.high = 0, 2**32 - 1
        self.value = int.from_bytes(data[:4].ljust(4, b"\0"), "big")
        self.contexts: dict[Any, tuple[int, int]] = defaultdict(lambda: (32768, 0))

    def decision(self, *context: Any) -> int:
        p, c = self.contexts[context]
        s = self.high - self.low
        bit = self._take(self.low + (s >> 16) * p + (((s & 65535) * p) >> 16))
        p = p + 2 * (65536 - p) // (2 * c + 3) if bit else p - 2 * p // (2 * c + 3)
        self.contexts[context] = min(max(p, 24), 65512), min(c + 1, 60)
        return bit

    def even(self) -> int:
        return self._take(self.low + (self.high - self.low) // 2)

    def number(self, kind: int) -> int:
        if self.decision("number", kind, 0):
            return 0
        negative, bits = self.decision("number", kind, 1), 0
        while self.decision("number", kind, 2 + bits):
            bits += 1
        size = 1
        for _ in range(bits):
            size = 2 * size + self.even()
        return -size if negative else size

    def _take(self, middle: int) -> int:
        bit = int(self.value <= middle)
        self.low, self.high = (self.low, middle) if bit else (middle + 1, self.high)
        while self.low >> 24 == self.high >> 24:
            byte = self.data[self.at] if self.at < len(self.data) else 0
            self.at += 1
            self.low = self.low << 8 & 0xFFFFFFFF
            self.high = self.high << 8 & 0xFFFFFFFF | 255
            self.value = self.value << 8 & 0xFFFFFFFF | byte
        return bit


class Lattice(NamedTuple):
    """``rows`` and ``columns``: the first of each cell, or of the pixels nearest to a native one.
    ``grid``: factor and the rows and columns of the first native pixel that lie outside."""

    kind: int
    rows: list[int]
    columns: list[int]
    size: tuple[int, int]
    grid: tuple[int, int, int] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        beyond = 0 if self.grid is None else 2
        return len(self.rows) + beyond, len(self.columns) + beyond

    def cells(self) -> list[list[list[tuple[int, int]]]]:
        """The pixels of each cell."""
        rows = [range(*ends) for ends in pairwise([*self.rows, self.size[0]])]
        columns = [range(*ends) for ends in pairwise([*self.columns, self.size[1]])]
        return [[[(y, x) for y in r for x in c] for c in columns] for r in rows]

    def means(self, plane: Plane) -> Plane:
        found = []
        for row in self.cells():
            found.append([])
            for pixels in row:
                total, count = sum(plane[y][x] for y, x in pixels), len(pixels)
                found[-1].append((2 * total + count) // (2 * count))
        return found if self.grid is None else _widened(found)

    def special(self, plane: Any) -> list[list[bool]]:
        found = [[all(plane[y][x] for y, x in pixels) for pixels in row] for row in self.cells()]
        return found if self.grid is None else _widened(found)

    def pixels(self, cells: Plane) -> Plane:
        out = [[0] * self.size[1] for _ in range(self.size[0])]
        if self.grid is None:
            for row, values in zip(self.cells(), cells):
                for pixels, value in zip(row, values):
                    for y, x in pixels:
                        out[y][x] = value
            return out
        f, top, left = self.grid
        whole = (2 * f) ** 2
        for y in range(self.size[0]):
            i, a = divmod(2 * (y + top) + 1 + f, 2 * f)
            for x in range(self.size[1]):
                j, b = divmod(2 * (x + left) + 1 + f, 2 * f)
                total = (2 * f - a) * ((2 * f - b) * cells[i][j] + b * cells[i][j + 1])
                total += a * ((2 * f - b) * cells[i + 1][j] + b * cells[i + 1][j + 1])
                out[y][x] = (2 * total + whole) // (2 * whole)
        return out


def _widened(plane: list[list[Any]]) -> list[list[Any]]:
    """With the edges repeated once all around."""
    rows = [[row[0], *row, row[-1]] for row in plane]
    return [rows[0], *rows, rows[-1]]


class Band:
    def __init__(self, code: Code, index: int, bound: int, size: tuple[int, int]) -> None:
        self.index, self.bound = index, bound
        self.lattice = _lattice(code, size)
        self.lowest = code.number(0)
        self.highest = self.lowest + code.number(0)
        self.weights: dict[int, int] = defaultdict(int)
        self.cells: Plane = []
        self.copies: Plane | None = None


def _lattice(code: Code, size: tuple[int, int]) -> Lattice:
    kind = code.number(0)
    rows, columns = list(range(size[0])), list(range(size[1]))
    if kind == 1:
        starts = []
        for _ in range(2):
            found = [0]
            for _ in range(code.number(0)):
                found.append(found[-1] + code.number(1) + 1)
            starts.append(found)
        return Lattice(1, starts[0], starts[1], size)
    if kind != 2:
        assert kind in (0, 3)
        return Lattice(kind, rows, columns, size)
    number = code.number(0) - 49 - 1
    for f in (2, 3, 6):
        if number < f * f:
            break
        number -= f * f
    top, left = divmod(number, f)
    rows = [y for y in rows if y == 0 or (y + top) % f == 0]
    columns = [x for x in columns if x == 0 or (x + left) % f == 0]
    return Lattice(2, rows, columns, size, (f, top, left))


def _segment(
    code: Code,
    shape: tuple[int, int, int, int],
    bounds: Sequence[int],
    special: Any,
    nodata: int | None,
    picture: Any,
    strip: int,
) -> list[list[Plane]]:
    times, count, height, width = shape
    bands = [Band(code, b, bounds[b], (height, width)) for b in range(count)]
    order = sorted(bands, key=lambda b: (-b.lattice.shape[0] * b.lattice.shape[1], b.index))
    out: list[list[Plane]] = [[[] for _ in range(count)] for _ in range(times)]
    for t in range(times):
        done: list[Band] = []
        copied: Plane | None = None
        for band in order:
            helping = []
            if picture is not None:
                helping.append(band.lattice.means(picture[t][band.index]))

            def distance(other: Band, band: Band = band) -> tuple[bool, int]:
                return other.lattice != band.lattice, abs(other.index - band.index)

            for other in sorted(done, key=distance)[:3]:
                if other.lattice == band.lattice:
                    helping.append(other.cells)
                else:
                    helping.append(band.lattice.means(out[t][other.index]))
            if t:
                helping.append(band.cells)
            missing = None if special is None else band.lattice.special(special[t][band.index])
            before = copied if copied is not None else band.copies
            low, high = band.lowest, band.highest
            if band.lattice.kind != 2:
                reader = Reader(code, band, band.lattice.shape, (low, high), nodata)
                band.copies = reader.new_copies(before) if band.lattice.kind == 3 else None
                band.cells = reader.plane(helping, picture is not None, missing, strip)
                out[t][band.index] = band.lattice.pixels(band.cells)
                copied = band.copies if band.copies is not None else copied
            else:
                lowest = code.number(0)
                limits = lowest, lowest + code.number(0)
                reader = Reader(code, band, band.lattice.shape, limits, None)
                band.cells = reader.plane(helping, picture is not None, missing, strip)
                guess = band.lattice.pixels(band.cells)
                guess = [[min(max(v, low), high) for v in row] for row in guess]
                reader = Reader(code, band, (height, width), (low, high), nodata)
                out[t][band.index] = reader.corrected(guess)
            done.append(band)
    return out


class Reader:
    """One plane."""

    def __init__(
        self,
        code: Code,
        band: Band,
        shape: tuple[int, int],
        limits: tuple[int, int],
        nodata: int | None,
    ) -> None:
        self.code, self.band, self.nodata = code, band, nodata
        self.height, self.width = shape
        self.low, self.high = limits
        self.table: list[int] = []
        self.out = [[0] * self.width for _ in range(self.height)]
        self.sizes = [[0] * self.width for _ in range(self.height)]
        self.copies: Plane | None = None
        self.before: Plane | None = None
        self.which = "plane"

    def new_copies(self, before: Plane | None) -> Plane:
        self.copies, self.before = [[0] * self.width for _ in range(self.height)], before
        return self.copies

    def plane(self, helping: list[Plane], picture: bool, missing: Any, strip: int) -> Plane:
        code, weights = self.code, self.band.weights
        self.first = self.low + code.number(0)
        kind, last = 2, self.low - 1
        for _ in range(code.number(1)):
            number = code.number(kind)
            last += number + 1
            self.table.append(last)
            kind = 2 + min(number, 3)
        groups = [(None, NEAR), (None, FAR)]
        for i in range(len(helping)):
            groups.append((i, CROSS))
            if i == 0 or (picture and i == 1):
                groups.append((i, CORNERS))
        taps = [(g, i, tap) for g, (i, group) in enumerate(groups) for tap in group]
        strips = max(1, round(self.height * self.width / strip))
        edges = [i * self.height // strips for i in range(strips + 1)]
        for top, bottom in pairwise(edges):
            if top == bottom:
                continue
            mask = 2 * code.number(1) + 1
            taken = []
            for place, (g, i, tap) in enumerate(taps):
                if mask >> g & 1:
                    weights[place] += code.number(6 + place)
                    taken.append((weights[place], i, tap))
            for y in range(top, bottom):
                for x in range(self.width):
                    total = 0
                    for weight, i, (dy, dx) in [(1024, None, (0, 0)), *taken]:
                        own = i is None or (picture and i == 0)
                        source = None if own else helping[i]
                        base = self.tap(source, y, x, 0, -1) + self.tap(source, y, x, -1, 0)
                        if (dy, dx) == (0, 0) and i is None:
                            total += weight * base
                            continue
                        value = self.tap(None if i is None else helping[i], y, x, dy, dx)
                        total += weight * (2 * value - base)
                    self.pixel(y, x, total, missing is not None and missing[y][x])
        return self.out

    def corrected(self, guess: Plane) -> Plane:
        self.which = "interpolated"
        for y in range(self.height):
            for x in range(self.width):
                self.pixel(y, x, 2048 * guess[y][x], False)
        return self.out

    def tap(self, plane: Plane | None, y: int, x: int, dy: int, dx: int) -> int:
        if plane is not None:
            row = plane[min(max(y + dy, 0), len(plane) - 1)]
            return row[min(max(x + dx, 0), len(row) - 1)]
        out = self.out
        if y == 0:
            if (dy, dx) in ((0, -2), (-1, -1)):
                return out[0][x - 2] if x > 1 else self.first
            return out[0][x - 1] if x > 0 else self.first
        if (dy, dx) == (-2, 0) and y == 1:
            return out[0][x - 1] if x > 0 else self.first
        if x == 0 and dx < 0:
            return out[y - 1][0]
        if x == 1 and dx == -2:
            return out[y - 1][0]
        if x == self.width - 1 and dx == 1:
            return out[y - 1][x]
        return out[y + dy][x + dx]

    def size(self, y: int, x: int, dy: int, dx: int) -> int:
        if y + dy < 0:
            return 0
        if not 0 <= x + dx < self.width:
            return self.sizes[y - 1][x] if dy else 0
        return self.sizes[y + dy][x + dx]

    def pixel(self, y: int, x: int, total: int, missing: bool) -> None:
        code, step = self.code, 2 * self.band.bound + 1
        plain = (total + 1024) // 2048
        p = min(max(plain, self.low), self.high)
        if missing:
            self.out[y][x] = p
            self.sizes[y][x] = self.size(y, x, 0, -1)
            return
        side, entry = 2, 0
        if self.table:
            middles = [(a + b) // 2 for a, b in pairwise(self.table)]
            entry = bisect_left(middles, p)
            off, other = p - self.table[entry], entry + (1 if p > self.table[entry] else -1)
            if off and 0 <= other < len(self.table):
                gap = abs(self.table[other] - self.table[entry])
                side = min((5 * abs(off) + gap // 2) // gap, 2)
                side = 2 + side if off > 0 else 2 - side
        elif self.band.bound == 0 and p == plain:
            side = 5 * (total - 2048 * p + 1024) // 2048
        e = 3 * (self.size(y, x, 0, -1) + self.size(y, x, -1, 0))
        e += 2 * (self.size(y, x, -1, -1) + self.size(y, x, -1, 1))
        e += self.size(y, x, 0, -2) + self.size(y, x, -2, 0)
        level = e
        if e >= 4:
            b = e.bit_length() - 1
            level = min(4 * b - 4 + (e >> (b - 2) & 3), 55)
        if self.copies is not None and self.copied(y, x):
            return
        q = self.error(level, side)
        if self.table:
            value = self.table[min(max(entry + q, 0), len(self.table) - 1)]
        else:
            value = min(max(p + q * step, self.low), self.high)
            if value == self.nodata:
                value += 1 if code.decision("C") else -1
        self.out[y][x] = value
        self.sizes[y][x] = min(abs(q), 2**20)

    def copied(self, y: int, x: int) -> bool:
        assert self.copies is not None
        w = self.copies[y][x - 1] if x else 0
        n = self.copies[y - 1][x] if y else 0
        before = 3 if self.before is None else self.before[y][x]
        for kind, (dy, dx) in ((1, (0, -1)), (2, (-1, 0))):
            if self.code.decision("copy", kind, w, n, before):
                self.copies[y][x] = kind
                self.out[y][x] = self.tap(None, y, x, dy, dx)
                self.sizes[y][x] = self.size(y, x, dy, dx)
                return True
        return False

    def error(self, level: int, side: int) -> int:
        code, of = self.code, self.which
        if code.decision(of, "zero", level, side):
            return 0
        negative = code.decision(of, "negative", side)
        m = max((level - 9) // 4, 0)
        b = m
        if code.decision(of, "longer", level):
            b += 1
            while b < 30 and code.decision(of, "length", level, b):
                b += 1
        else:
            while b > 0 and code.decision(of, "length", level, b):
                b -= 1
        q, seen = 1, ()
        for i in range(b):
            bit = code.decision(of, "bit", level, b, *seen) if i < 2 else code.even()
            q, seen = 2 * q + bit, (bit,)
        return -q if negative else q
