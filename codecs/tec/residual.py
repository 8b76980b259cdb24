"""The layer that keeps a bound: integers, exactly or within a given error, on every machine.

A chunk of integers is cut into segments of rows, which are coded independently (in parallel). In a
segment the planes follow date by date; within a date the bands with the most pixels of their own
come first. A band whose pixels repeat, or interpolate, those of a coarser grid is coded on that
grid. Each plane is predicted from itself, from bands that came before, from the date before and,
where there is one, from the lossy picture of the chunk (:mod:`tec.predictor`). FORMAT.md has the
layout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from . import predictor, threads
from .coarse import Grid, find_grids, native
from .entropy.binary import NUMBER, Coder
from .errors import StreamError
from .fitting import fit
from .interpolation import interpolate, refine
from .predictor import GAPS, LENGTHS, NUMBERS, PLAIN, WEIGHTS, Group

#: Samples of a segment, about.
SEGMENT = 2**21
#: Pixels that have one set of weights, about.
STRIP = 2**15
#: No segment is lower than this.
_LOWEST = 32
#: Share of pixels that repeat a neighbour from where on that is asked of each.
_REPEATING = 0.3
#: Other bands that a band is predicted from.
_REFERENCES = 3
#: Values lie within +-LIMIT.
LIMIT = 2**28
_WIDEST_TABLE = 2**16
_NO_HOLES = np.zeros((0, 0), np.uint8)
_NO_PLANE = np.zeros((0, 0), np.int32)
_NO_TABLE = np.zeros(0, np.int32)
_NOTHING = np.zeros(0, np.int64)
_WHOLE, _REPEATED, _INTERPOLATED, _COPYING = 0, 1, 2, 3


def encode(
    values: np.ndarray,
    holes: np.ndarray | None,
    bounds: Sequence[int],
    *,
    nodata: int | None = None,
    picture: np.ndarray | None = None,
) -> tuple[bytes, np.ndarray]:
    """Code a chunk.

    Parameters
    ----------
    values : (time, band, y, x) integers within +-LIMIT, but in holes
    holes : (time, band, y, x) bool, pixels that are not coded; or None
    bounds : of each band, how far a decoded value may lie from its value
    nodata : a value that no pixel outside holes has, and none shall decode to
    picture : (time, band, y, x) int32, what a reader knows of the chunk already; or None

    Returns
    -------
    The bytes, and what they decode to, (time, band, y, x) int32; holes hold anything.
    """
    values = np.ascontiguousarray(values, np.int32)  # chunks may have any memory layout
    out = np.empty(values.shape, np.int32)
    rows = _segments(values.shape)

    def work(part: tuple[int, int]) -> bytes:
        some = np.s_[:, :, part[0] : part[1]]
        segment = _Segment(
            values[some].shape,
            None if holes is None else holes[some],
            nodata,
            None if picture is None else picture[some],
        )
        data, out[some] = segment.encode(values[some], [int(m) for m in bounds])
        return data

    parts = _each(work, rows)
    lengths = b"".join(len(part).to_bytes(4, "little") for part in parts)
    return lengths + b"".join(parts), out


def decode(
    data: bytes | memoryview,
    shape: tuple[int, int, int, int],
    holes: np.ndarray | None,
    bounds: Sequence[int],
    *,
    nodata: int | None = None,
    picture: np.ndarray | None = None,
    dates: int | None = None,
) -> np.ndarray:
    """The inverse of `encode`, for the first ``dates`` dates.

    Raises
    ------
    StreamError
        The bytes do not fit.
    """
    rows = _segments(shape)
    sizes = np.zeros(0, np.int64)
    if len(data) >= 4 * len(rows):
        sizes = np.frombuffer(data, "<u4", len(rows)).astype(np.int64)
    if len(sizes) != len(rows) or sizes.sum() != len(data) - 4 * len(rows):
        raise StreamError("the lengths of the residual's segments do not fit its bytes")
    n = shape[0] if dates is None else min(dates, shape[0])
    out = np.empty((n, *shape[1:]), np.int32)
    ends = 4 * len(rows) + np.cumsum(sizes)

    def work(item: tuple[tuple[int, int], int, int]) -> None:
        (top, bottom), start, stop = item
        some = np.s_[:n, :, top:bottom]
        segment = _Segment(
            (shape[0], shape[1], bottom - top, shape[3]),
            None if holes is None else holes[:, :, top:bottom],
            nodata,
            None if picture is None else picture[some],
        )
        out[some] = segment.decode(bytes(data[start:stop]), [int(m) for m in bounds], n)

    _each(work, list(zip(rows, ends - sizes, ends)))
    return out


def _segments(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """Rows of each segment; none where nothing is coded."""
    if 0 in shape:
        return []
    height = shape[2]
    count = max(1, min(int(np.prod(shape, dtype=np.int64)) // SEGMENT, height // _LOWEST))
    edges = [i * height // count for i in range(count + 1)]
    return list(pairwise(edges))


def _each(work: Callable[[Any], Any], items: list) -> list:
    together = min(threads.of_a_pass(), len(items))
    if together < 2:
        return [work(item) for item in items]
    with ThreadPoolExecutor(together) as pool:
        return list(pool.map(work, items))


@dataclass(frozen=True, eq=False)
class _Lattice:
    """Where the pixels of a band come from.

    Attributes
    ----------
    rows, columns : first row, or column, of each cell: all pixels of one show one value. Where
        pixels are interpolated, of the cells whose centres they are nearest to
    size : rows and columns
    grid : where pixels are interpolated
    copying : whether pixels repeat their neighbours, but not in rows and columns: a coarser grid
        that was resampled to one that is turned against it
    """

    rows: np.ndarray
    columns: np.ndarray
    size: tuple[int, int]
    grid: Grid | None = None
    copying: bool = False

    @property
    def plain(self) -> bool:
        return self.grid is None and (len(self.rows), len(self.columns)) == self.size

    @property
    def cells(self) -> int:
        return len(self.rows) * len(self.columns)

    @property
    def even(self) -> bool:
        """Whether cells are of one size, to within a pixel, but for those cut at the edges."""
        inside = [np.diff(starts)[1:] for starts in (self.rows, self.columns)]
        return all(not sizes.size or np.ptp(sizes) <= 1 for sizes in inside)

    @property
    def shape(self) -> tuple[int, int]:
        """Of the plane that is coded first."""
        beyond = 0 if self.grid is None else 2
        return len(self.rows) + beyond, len(self.columns) + beyond

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, _Lattice)
            and (self.grid, self.copying) == (other.grid, other.copying)
            and np.array_equal(self.rows, other.rows)
            and np.array_equal(self.columns, other.columns)
        )

    def spread(self, cells: np.ndarray) -> np.ndarray:
        """Cells to pixels."""
        if self.plain:
            return cells
        if self.grid is not None:
            return interpolate(cells, self.grid, self.size)
        heights = np.diff(self.rows, append=self.size[0])
        widths = np.diff(self.columns, append=self.size[1])
        return np.repeat(np.repeat(cells, heights, 0), widths, 1)

    def means(self, plane: np.ndarray) -> np.ndarray:
        """Pixels to cells: their mean, rounded."""
        if self.plain:
            return plane
        sums = np.add.reduceat(plane.astype(np.int64), self.rows, axis=0)
        sums = np.add.reduceat(sums, self.columns, axis=1)
        counts = np.diff(self.rows, append=self.size[0])[:, None] * np.diff(
            self.columns, append=self.size[1]
        )
        cells = (2 * sums + counts) // (2 * counts)
        if self.grid is not None:
            cells = np.pad(cells, 1, mode="edge")
        return cells.astype(np.int32)

    def all_of(self, holes: np.ndarray) -> np.ndarray:
        """Cells of nothing but holes."""
        if self.plain:
            return holes
        inside = np.logical_and.reduceat(holes, self.rows, axis=0)
        inside = np.logical_and.reduceat(inside, self.columns, axis=1)
        return inside if self.grid is None else np.pad(inside, 1, mode="edge")

    def take(self, plane: np.ndarray, holes: np.ndarray | None) -> np.ndarray:
        """The value of each cell; anything where all of it are holes."""
        if self.plain:
            return plane
        if self.grid is not None:
            cells = np.rint(native(plane.astype(np.float32), self.grid)).astype(np.int32)
            refine(cells, plane, self.grid)
            return cells
        if holes is None:
            return plane[self.rows[:, None], self.columns]
        plane = np.where(holes, np.int32(-LIMIT), plane)
        cells = np.maximum.reduceat(plane, self.rows, axis=0)
        return np.maximum.reduceat(cells, self.columns, axis=1)


def _lattice(band: np.ndarray, holes: np.ndarray | None) -> _Lattice:
    """The lattice of (time, y, x)."""
    size = band.shape[1], band.shape[2]
    whole = _Lattice(np.arange(size[0]), np.arange(size[1]), size)
    found = _repetition(band, holes, size)
    if found is None and (holes is None or not holes.any()):
        (grid,) = find_grids(band[:, None], None, coarse=[True])
        if grid is not None and not grid.repeated:
            found = _Lattice(*_nearest(size, grid), size, grid)
            cells = found.take(band[0], None)
            if (found.spread(cells) != band[0]).mean() > 0.1:
                found = None
    if found is not None and (found.grid is not None or found.even):
        return found
    # Dates differ where they were resampled differently; and a grid that is turned against the
    # chunk's can look like one of more and smaller cells.
    new = [
        (predictor.copies_of(plane, None if holes is None else holes[t]) == predictor.NEW).mean()
        for t, plane in enumerate(band)
    ]
    if found is None:
        return replace(whole, copying=bool(min(new) < 1 - _REPEATING))
    turned = 2 * np.mean(new) * size[0] * size[1] < found.cells
    return replace(whole, copying=True) if turned else found


def _repetition(
    band: np.ndarray, holes: np.ndarray | None, size: tuple[int, int]
) -> _Lattice | None:
    starts = []
    for axis in (1, 2):
        here = tuple(slice(1, None) if a == axis else slice(None) for a in range(3))
        there = tuple(slice(None, -1) if a == axis else slice(None) for a in range(3))
        new = np.zeros(size[axis - 1], bool)
        new[0] = True
        for t in range(len(band)):
            change = band[t][here[1:]] != band[t][there[1:]]
            if holes is not None:
                change &= ~(holes[t][here[1:]] | holes[t][there[1:]])
            new[1:] |= change.any(axis=2 - axis)
            if new.all():
                break
        starts.append(np.flatnonzero(new))
    found = _Lattice(starts[0], starts[1], size)
    if 4 * found.cells > 3 * size[0] * size[1]:
        return None
    if holes is not None:  # values may differ across holes
        for plane, missing in zip(band, holes):
            same = found.spread(found.take(plane, missing)) == plane
            if not (same | missing).all():
                return None
    return found


def _nearest(size: tuple[int, int], grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """First row and column of the pixels that are nearest to each cell's centre."""
    return tuple(  # type: ignore[return-value]
        np.unique(np.maximum(np.arange(-first, n, grid.factor), 0))
        for n, first in zip(size, (grid.y, grid.x))
    )


class _Segment:
    """Some rows of a chunk, coded or decoded.

    Parameters
    ----------
    shape : (time, band, y, x)
    holes, nodata, picture : see `encode`; of these rows
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        holes: np.ndarray | None,
        nodata: int | None,
        picture: np.ndarray | None,
    ) -> None:
        self.shape, self.holes, self.picture = shape, holes, picture
        self.nodata = 2 * LIMIT if nodata is None else int(nodata)

    def encode(self, values: np.ndarray, bounds: list[int]) -> tuple[bytes, np.ndarray]:
        room = values.nbytes + values.size + 4096
        while True:
            coder = Coder(predictor.CONTEXTS, room=room)
            out = self._walk(coder, bounds, values, self.shape[0])
            size = coder.finish()
            if size <= room:
                return coder.data[:size].tobytes(), out
            room = size  # noise can cost more than it takes

    def decode(self, data: bytes, bounds: list[int], dates: int) -> np.ndarray:
        coder = Coder(predictor.CONTEXTS, data)
        out = self._walk(coder, bounds, None, dates)
        if dates == self.shape[0] and coder.finish() != len(data):
            raise StreamError(
                f"a segment of the residual takes {coder.finish()} bytes, not the {len(data)} that "
                "are there: the stream is damaged; read it again from another copy"
            )
        return out

    def _walk(
        self, coder: Coder, bounds: list[int], values: np.ndarray | None, dates: int
    ) -> np.ndarray:
        _, count, *size = self.shape
        out = np.empty((dates, *self.shape[1:]), np.int32)
        bands = []
        for b in range(count):
            given = None if values is None else values[:, b]
            missing = None if self.holes is None else self.holes[:, b]
            bands.append(_Band(b, bounds[b], coder, given, missing, (size[0], size[1])))
        bands.sort(key=lambda band: (-band.lattice.shape[0] * band.lattice.shape[1], band.index))
        for t in range(dates):
            done: list[_Band] = []
            for band in bands:
                b = band.index
                others = []
                if self.picture is not None:
                    others.append(band.lattice.means(self.picture[t, b]))
                for other in self._references(band, done):
                    same = other.lattice == band.lattice
                    others.append(other.cells if same else band.lattice.means(out[t, other.index]))
                if t:
                    others.append(band.cells)
                holes = None if self.holes is None else self.holes[t, b]
                holes = None if holes is None or not holes.any() else holes
                plane = None if values is None else values[t, b]
                alike = next((o.copies for o in reversed(done) if o.lattice.copying), band.copies)
                out[t, b] = band.code(
                    plane, holes, others, self.picture is not None, self.nodata, alike
                )
                done.append(band)
                if coder.overread:
                    raise StreamError(
                        f"the residual ends too early, on date {t}: the stream is damaged; read it "
                        "again from another copy"
                    )
        return out

    @staticmethod
    def _references(band: _Band, done: list[_Band]) -> list[_Band]:
        def far(other: _Band) -> tuple[bool, int]:
            return other.lattice != band.lattice, abs(other.index - band.index)

        return sorted(done, key=far)[:_REFERENCES]


class _Band:
    """One band of a segment: where its pixels come from, and what is known of it so far.

    Attributes
    ----------
    cells : of the date that was coded last, decoded
    copies : what its pixels repeat, where they do
    """

    def __init__(
        self,
        index: int,
        bound: int,
        coder: Coder,
        values: np.ndarray | None,
        holes: np.ndarray | None,
        size: tuple[int, int],
    ) -> None:
        self.index, self.bound, self.coder, self.size = index, bound, coder, size
        lattice = None if values is None else _lattice(values, holes)
        self.lattice = self._code_lattice(lattice)
        self.range = self._code_range(values, holes)
        self.cells = _NO_PLANE
        self.copies = self.copies_before = _NO_HOLES
        self.weights = np.zeros(0, np.int64)

    def code(
        self,
        plane: np.ndarray | None,
        holes: np.ndarray | None,
        others: list[np.ndarray],
        picture: bool,
        nodata: int,
        copies_before: np.ndarray,
    ) -> np.ndarray:
        """The next date, (y, x); returns what it decodes to."""
        lattice = self.lattice
        self.copies_before, self.copies = copies_before, _NO_HOLES
        if lattice.copying:
            self.copies = np.zeros(self.size, np.uint8)
            if plane is not None:
                self.copies = predictor.copies_of(plane, holes)
        missing = None if holes is None else lattice.all_of(holes)
        cells = None if plane is None else lattice.take(plane, holes)
        if lattice.grid is None:
            self.cells = self._code_plane(
                cells, missing, others, picture, self.range, nodata, lattice.shape
            )
            return lattice.spread(self.cells)
        limits = self._pair(cells)
        self.cells = self._code_plane(
            cells, missing, others, picture, limits, 2 * LIMIT, lattice.shape
        )
        guess = lattice.spread(self.cells).clip(*self.range).astype(np.int32)
        work = np.zeros(self.size, np.int32) if plane is None else plane.astype(np.int32)
        errors = np.zeros((self.size[0] + 2, self.size[1] + 4), np.int32)
        planes = np.zeros((self.size[0] + 3) * (self.size[1] + 4), np.int32)
        settings = (0, self.size[0], 0, *self.range, self.bound, nodata)
        self._run(work, _NO_HOLES, planes, (_NOTHING, _NOTHING), guess, settings, errors)
        return work

    def _code_plane(
        self,
        cells: np.ndarray | None,
        holes: np.ndarray | None,
        others: list[np.ndarray],
        picture: bool,
        limits: tuple[int, int],
        nodata: int,
        shape: tuple[int, int],
    ) -> np.ndarray:
        coder, (low, high) = self.coder, limits
        height, width = shape
        groups = predictor.groups_of(len(others), picture)
        planes = np.zeros((1 + len(others), height + 3, width + 4), np.int32)
        for i, other in enumerate(others):
            planes[1 + i] = predictor.padded(other)
        flat = planes.reshape(-1)
        missing = _NO_HOLES if holes is None else np.ascontiguousarray(holes, np.uint8)
        table, first, original = None, low, None
        work = np.zeros(shape, np.int32)
        if cells is not None:
            work = np.ascontiguousarray(cells, np.int32).copy()
            if holes is not None:
                work[holes] = low
            table = _table(work if holes is None else work[~holes], self.bound, limits, nodata)
            first = int(work[0, 0])
            original = predictor.padded(work)
        first = low + coder.number(first - low, NUMBERS + PLAIN * NUMBER)
        table = self._code_table(table, low, high)
        if not low <= first <= high:
            raise StreamError("the residual holds a value out of range: the stream is damaged")
        nearest = _NO_TABLE if not table.size else _nearest_of(table, low, high)
        errors = np.zeros((height + 2, width + 4), np.int32)
        strips = max(1, round(height * width / STRIP))
        edges = [i * height // strips for i in range(strips + 1)]
        for top, bottom in pairwise(edges):
            if top == bottom:
                continue
            choice = None
            if original is not None:
                noise = self.bound**2 / 3
                if picture:
                    rest = (original - planes[1]).astype(np.float64)
                    noise = min(noise, float(np.mean(rest * rest)))
                repeats = self.copies if self.lattice.copying else None
                choice = fit(
                    original, planes, (top, bottom), groups, holes, self.bound, noise, repeats
                )
            taken, weights = self._code_weights(groups, choice)
            sums = predictor.linear(taken, weights, shape)
            settings = (top, bottom, first, low, high, self.bound, nodata)
            copies = self.copies, self.copies_before
            self._run(
                work, missing, flat, sums, _NO_PLANE, settings, errors, table, nearest, copies
            )
        return work

    def _run(
        self,
        work: np.ndarray,
        holes: np.ndarray,
        planes: np.ndarray,
        sums: tuple[np.ndarray, np.ndarray],
        predicted: np.ndarray,
        settings: tuple[int, ...],
        errors: np.ndarray,
        table: np.ndarray = _NO_TABLE,
        nearest: np.ndarray = _NO_TABLE,
        copies: tuple[np.ndarray, np.ndarray] = (_NO_HOLES, _NO_HOLES),
    ) -> None:
        predictor.walk(
            work,
            holes,
            planes,
            *sums,
            predicted,
            np.array(settings, np.int64),
            table,
            nearest,
            errors,
            *copies,
            *self.coder.parts,
        )

    def _code_weights(
        self, groups: list[Group], choice: tuple[list[bool], np.ndarray] | None
    ) -> tuple[list[Group], np.ndarray]:
        coder = self.coder
        count = len(groups)
        mask = 0 if choice is None else sum(1 << g for g in range(1, count) if choice[0][g]) >> 1
        mask = coder.number(mask, NUMBERS + LENGTHS * NUMBER)
        if not 0 <= mask < 1 << (count - 1):
            raise StreamError("the residual names neighbours that there are none of")
        taken = [g for g in range(count) if g == 0 or mask >> (g - 1) & 1]
        taps = np.cumsum([0, *(len(group.taps) for group in groups)])
        if len(self.weights) < taps[-1]:
            self.weights = np.pad(self.weights, (0, taps[-1] - len(self.weights)))
        chosen = np.concatenate([np.arange(taps[g], taps[g + 1]) for g in taken])
        steps = np.zeros(len(chosen), np.int64)
        if choice is not None:
            steps = choice[1] - self.weights[chosen]
        contexts = NUMBERS + (WEIGHTS + chosen) * NUMBER
        self.weights[chosen] += coder.numbers_at(steps, contexts)
        if np.abs(self.weights[chosen]).max() > predictor.LARGEST_WEIGHT:
            raise StreamError("the residual holds a weight out of range")
        return [groups[g] for g in taken], self.weights[chosen]

    def _code_table(self, table: np.ndarray | None, low: int, high: int) -> np.ndarray:
        coder = self.coder
        size = coder.number(0 if table is None else len(table), NUMBERS + LENGTHS * NUMBER)
        if not size:
            return _NO_TABLE
        if not (0 < size <= high - low + 1 <= _WIDEST_TABLE):
            raise StreamError("the residual lists more values than there can be")
        given: Any = np.zeros(size, np.int64)
        if table is not None:
            given = np.diff(table.astype(np.int64), prepend=low - 1) - 1
        gaps = coder.numbers(given, NUMBERS + GAPS * NUMBER, chain=3)
        found = low - 1 + np.cumsum(gaps.clip(-1, 2 * LIMIT) + 1)
        if gaps.min() < 0 or found[-1] > high:
            raise StreamError("the residual lists values out of range")
        return found.astype(np.int32)

    def _code_lattice(self, lattice: _Lattice | None) -> _Lattice:
        coder = self.coder
        whole = _Lattice(np.arange(self.size[0]), np.arange(self.size[1]), self.size)
        kind, place = _WHOLE, NUMBERS + PLAIN * NUMBER
        if lattice is not None and lattice.copying:
            kind = _COPYING
        elif lattice is not None and not lattice.plain:
            kind = _REPEATED if lattice.grid is None else _INTERPOLATED
        kind = coder.number(kind, place)
        if kind in (_WHOLE, _COPYING):
            return replace(whole, copying=kind == _COPYING)
        if kind == _INTERPOLATED:
            code = 0 if lattice is None or lattice.grid is None else lattice.grid.code
            try:
                grid = Grid.from_code(coder.number(code, place))
            except ValueError as error:
                raise StreamError(f"the residual names an unknown grid: {error}") from error
            if grid is None or grid.repeated:
                raise StreamError("the residual names a grid that nothing is interpolated on")
            return _Lattice(*_nearest(self.size, grid), self.size, grid)
        if kind != _REPEATED:
            raise StreamError(f"unknown kind {kind} of band in the residual: install a newer xtec")
        starts = []
        for axis in range(2):
            given: Any = None
            if lattice is not None:
                given = np.diff((lattice.rows, lattice.columns)[axis]) - 1
            count = coder.number(0 if given is None else len(given), place)
            if not 0 <= count < self.size[axis]:
                raise StreamError("the residual holds more cells than pixels")
            runs = np.zeros(count, np.int64) if given is None else given
            runs = coder.numbers(runs, NUMBERS + LENGTHS * NUMBER)
            begin = np.concatenate([[0], np.cumsum(runs.clip(-1, LIMIT) + 1)])
            if count and (runs.min() < 0 or begin[-1] >= self.size[axis]):
                raise StreamError("the residual holds cells that do not fit the chunk")
            starts.append(begin)
        return _Lattice(starts[0], starts[1], self.size)

    def _code_range(self, values: np.ndarray | None, holes: np.ndarray | None) -> tuple[int, int]:
        valid = values if values is None or holes is None else values[~holes]
        return self._pair(valid)

    def _pair(self, values: np.ndarray | None) -> tuple[int, int]:
        """Lowest and highest, coded."""
        low = high = 0
        if values is not None and values.size:
            low, high = int(values.min()), int(values.max())
        low, width = self.coder.numbers(
            np.array([low, high - low]), NUMBERS + PLAIN * NUMBER
        ).tolist()
        if not (-LIMIT <= low <= LIMIT and 0 <= width <= LIMIT - low):
            raise StreamError("the residual holds values out of range: the stream is damaged")
        return low, low + width


def _table(
    values: np.ndarray, bound: int, limits: tuple[int, int], nodata: int
) -> np.ndarray | None:
    """The few values that pixels take, or stand-ins within the bound, where sending them pays.

    Processing quantises bright pixels of the 10 m bands in steps of 2, 4 or 8 DN; other values
    never occur.
    """
    if bound > 8 or limits[1] - limits[0] >= _WIDEST_TABLE or values.size < 64:
        return None
    counts = np.bincount((values - limits[0]).ravel(), minlength=1)
    used = np.flatnonzero(counts)
    counts = counts[used]
    if len(used) < 2:
        return None
    if bound:
        stand_ins, members = [], []
        first = 0
        ends = np.searchsorted(used, used + 2 * bound, side="right")
        while first < len(used):
            last = int(ends[first]) - 1
            stand_ins.append((used[first] + used[last]) // 2)
            members.append(int(counts[first : last + 1].sum()))
            first = last + 1
        used, counts = np.array(stand_ins), np.array(members)
        if (used + limits[0] == nodata).any() or len(used) < 2:
            return None
    gaps = np.diff(used)
    if gaps.size and int(gaps.max()) == 1:
        return None
    reach = 16
    i = np.arange(len(used))
    a, b = np.maximum(i - reach, 0), np.minimum(i + reach, len(used) - 1)
    spacing = (used[b] - used[a]) / (b - a)
    gain = float((np.log2(spacing / (2 * bound + 1)) * counts).sum())
    if bound:
        gain -= 0.1 * float(counts.sum())  # predictions are not centred any more
    _, pairs = np.unique(
        np.minimum(gaps[:-1] - 1, 3) * 64 + np.minimum(gaps[1:], 63), return_counts=True
    )
    _, before = np.unique(np.minimum(gaps[:-1] - 1, 3), return_counts=True)
    cost = float((before * np.log2(before)).sum() - (pairs * np.log2(pairs)).sum())
    return (used + limits[0]).astype(np.int32) if gain > 1.2 * cost + 64 else None


def _nearest_of(table: np.ndarray, low: int, high: int) -> np.ndarray:
    """For each value from low to high the place of the nearest one of the table, the lower of
    two."""
    middles = (table[:-1].astype(np.int64) + table[1:]) // 2
    return np.searchsorted(middles, np.arange(low, high + 1), side="left").astype(np.int32)
