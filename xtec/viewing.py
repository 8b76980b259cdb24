"""What a report looks at: some blocks of a cube, as they were and as they are decoded.

Errors are counted over blocks that are spread evenly over the cube; some dates are drawn small over
the whole of it, or over a window where the whole would be too much to decode. Every task of Dask
looks at one block and returns figures and small pictures, never the block.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from tec.config import CodecConfig
from tec.specials import find_specials

from .chunks import ROLES, ChunkCoder
from .dims import dim_roles
from .layout import find_cube
from .quality import PEAK, ndvi_error, spectral_angle
from .ratecontrol import spread
from .values import check_same_cube
from .verifying import stored_source

#: Rows and columns of a picture of a whole date at most, and pixels of all dates together.
SIDE, PIXELS = 1024, 2**21
#: Rows and columns of a crop, and of the squares that crops are chosen from.
CROP = 128
#: Largest error that has a bin of its own (each is 1 DN wide).
REACH = 2048
#: Bins of DN: how many, how wide, and where the first begins.
BINS, WIDTH, FIRST = 4096, 16, -2048
#: Rows and columns that one task looks at, where chunks are smaller.
_UNIT = 512
#: Tasks whose results are held at a time.
_BATCH = 64


class Pair(NamedTuple):
    """A cube and its decoded form.

    Attributes
    ----------
    source : what the store was made of
    back : the decoded variable, lazy
    codec : of ``back``
    dims : role -> dimension of ``back``, and role -> dimension of ``source``
    """

    source: xr.Dataset | xr.DataArray
    back: xr.DataArray
    codec: ChunkCoder
    dims: tuple[dict[str, Hashable], dict[str, Hashable]]

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Of (time, band, y, x)."""
        mine = self.dims[0]
        time, band, y, x = (self.back.sizes[mine[r]] if r in mine else 1 for r in ROLES)
        return time, band, y, x

    @property
    def dtype(self) -> np.dtype:
        """As it is stored."""
        return np.dtype(self.back.encoding.get("dtype", self.back.dtype)).newbyteorder("=")

    def part(self, box: Box) -> tuple[Any, Any]:
        """The two as Dask arrays of one box, in their stored form; axes are the roles there are."""
        mine, theirs = self.dims
        some = self.back.isel({dim: box[r] for r, dim in mine.items() if r in box})
        order = [r for r in self.codec.dims if r in mine]
        like: Any = _Like(tuple(some.sizes[mine[r]] for r in order), self.dtype)
        given = self.source.isel({dim: box[r] for r, dim in theirs.items() if r in box})
        source = stored_source(given.chunk(), self.codec, like)
        source = source.transpose(*(source.dims[order.index(r)] for r in mine))
        decoded = some.chunk().copy(deep=False)
        encoded = xr.conventions.encode_cf_variable(
            xr.Variable(decoded.dims, decoded.data, {}, _packing(self.back.encoding))
        )
        return source.data, encoded.transpose(*mine.values()).data


class _Like(NamedTuple):
    """All that is asked of an array that a source is brought into the form of."""

    shape: tuple[int, ...]
    dtype: np.dtype


#: Role -> places on its axis; roles that are not there are whole.
Box = dict[str, slice]


def _packing(encoding: dict[Any, Any]) -> dict[Any, Any]:
    keys = ("dtype", "scale_factor", "add_offset", "_FillValue", "missing_value")
    return {key: encoding[key] for key in keys if key in encoding}


def pair(source: xr.Dataset | xr.DataArray, back: xr.DataArray, codec: ChunkCoder) -> Pair:
    """Put a cube beside its decoded form; ValueError where they are not of one size."""
    cube = find_cube(source, sensor=codec.config.sensor)
    dims = dim_roles(back), dict(zip(cube.roles, cube.data.dims))
    check_same_cube(cube.data, back)
    found = Pair(source, back, codec, dims)
    if tuple(dims[0]) != tuple(r for r in ROLES if r in codec.dims):
        raise ValueError(
            f"the decoded cube has dimensions {back.dims}, it was stored as {codec.dims}: pass the "
            "store, or slices of it (isel(time=slice(0, 1)))"
        )
    theirs = tuple(cube.data.sizes[dims[1][r]] if r in dims[1] else 1 for r in ROLES)
    time, _, y, x = found.sizes
    if (theirs[0], *theirs[2:]) != (time, y, x):
        raise ValueError(
            f"the source has (time, y, x) = {(theirs[0], *theirs[2:])}, the store {(time, y, x)}: "
            "pass the cube that the store was made of"
        )
    return found


class Block(NamedTuple):
    """What a task looks at.

    Attributes
    ----------
    at : first date, row and column
    box : all of them
    draw : the dates (of the block) to draw
    factor : pixels a side that become one of the picture
    """

    at: tuple[int, int, int]
    box: Box
    draw: tuple[int, ...] = ()
    factor: int = 1


class Tile(NamedTuple):
    """A square of a block that a crop can be made of; rmse over all bands, share of valid pixels"""

    time: int
    y: int
    x: int
    rmse: float
    valid: float


class Worst(NamedTuple):
    """The largest error in DN, and where it is."""

    error: float = 0.0
    time: int = 0
    band: int = 0
    y: int = 0
    x: int = 0


@dataclass
class Look:
    """What was seen of one block, errors being decoded - original in DN.

    Attributes
    ----------
    sums : (6, band, time) valid pixels, all pixels, sums of errors, of absolute ones, of squares,
        the largest absolute one
    errors : (band, 2 * REACH + 1) how many pixels have which error; the ends hold what is beyond
    values : (2, band, BINS) how many pixels have which DN, original and decoded
    angles, ndvi : pixels, sum, largest: spectral angle in degrees, error of the NDVI
    differ : pixels that are nodata in one of the two only
    drawn : date -> (3, band, rows, columns) float32: means, original and decoded, and the error
        that is largest; NaN where nothing is valid
    """

    sums: np.ndarray
    errors: np.ndarray
    values: np.ndarray
    angles: np.ndarray
    ndvi: np.ndarray
    differ: int
    worst: Worst
    tiles: list[Tile]
    drawn: dict[int, np.ndarray]


@dataclass
class Seen:
    """What was seen of a cube.

    Attributes
    ----------
    sums, errors, values, angles, ndvi, differ, worst, tiles : as in `Look`; ``sums`` of all dates
    places, of : blocks whose errors were counted, of all
    dates : that are drawn
    window : rows and columns that are drawn
    factor : pixels a side that became one of the picture
    pictures : (date, 3, band, rows, columns), see `Look.drawn`
    """

    sums: np.ndarray
    errors: np.ndarray
    values: np.ndarray
    of: int
    dates: tuple[int, ...]
    places: int = 0
    angles: np.ndarray = field(default_factory=lambda: np.zeros(3))
    ndvi: np.ndarray = field(default_factory=lambda: np.zeros(3))
    differ: int = 0
    worst: Worst = field(default_factory=Worst)
    tiles: list[Tile] = field(default_factory=list)
    window: tuple[slice, slice] = (slice(0), slice(0))
    factor: int = 1
    pictures: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))

    @property
    def whole(self) -> bool:
        """Whether every pixel was looked at."""
        return self.places == self.of

    def count(self, block: Block, look: Look) -> None:
        """Add what was seen of a block."""
        first = block.at[0]
        mine = self.sums[:, :, first : first + look.sums.shape[2]]
        mine[:5] += look.sums[:5]
        self.places += 1
        self.errors += look.errors
        self.values += look.values
        for total, part in ((self.angles, look.angles), (self.ndvi, look.ndvi)):
            total[:2] += part[:2]
            total[2] = max(total[2], part[2])
        self.tiles += look.tiles
        self.note(block, look)

    def note(self, block: Block, look: Look) -> None:
        """Take from a block what need not be spread evenly: what is wrong, the largest errors."""
        mine = self.sums[5, :, block.at[0] : block.at[0] + look.sums.shape[2]]
        np.maximum(mine, look.sums[5], out=mine)
        self.differ += look.differ
        self.worst = max(self.worst, look.worst)


def see(pair: Pair, *, dates: int, budget: float, advance: Any = None) -> Seen:
    """Look at as much of a cube as the budget allows.

    Parameters
    ----------
    pair : the cube and its decoded form
    dates : how many to draw; they are spread evenly
    budget : bytes of decoded pixels. Half of it goes into counting, half into drawing, unless all
        of the cube fits.
    advance : called with blocks done and blocks in all
    """
    times, bands, y, x = pair.sizes
    chunk = pair.codec.cube_shape
    unit = (min(chunk[0], times), _several(chunk[2], y), _several(chunk[3], x))
    grid = tuple(-(-n // u) for n, u in zip((times, y, x), unit, strict=True))
    nbytes = bands * math.prod(unit) * pair.dtype.itemsize
    some = int(min(max(budget // nbytes, 2), math.prod(grid)))
    chosen = tuple(np.unique(np.linspace(0, times - 1, min(dates, times)).round().astype(int)))
    chosen = tuple(int(t) for t in chosen)
    seen = Seen(
        np.zeros((6, bands, times)),
        np.zeros((bands, 2 * REACH + 1), np.int64),
        np.zeros((2, bands, BINS), np.int64),
        math.prod(grid),
        chosen,
    )
    whole = some == seen.of
    rows = columns = slice(0)
    factor = 1
    if whole:
        rows, columns = slice(0, y), slice(0, x)
        factor = _factor(y, x, len(chosen))
    canvas = _Canvas(seen, (rows, columns), unit, factor, bands)
    count = some if whole else -(-some // 2)
    best, valid = (0, 0), -1.0
    plans = (_block(at, unit, pair, chosen if whole else (), factor) for at in _spread(grid, count))
    for block, look in _looks(pair, plans, count, advance):
        seen.count(block, look)
        canvas.draw(block, look)
        share = look.sums[0].sum() / max(look.sums[1].sum(), 1)
        if share > valid:
            best, valid = (block.at[1], block.at[2]), share
    if not whole:
        stacks = sorted({t // unit[0] for t in chosen})
        rows, columns = _window(best, unit, (y, x), max(some // 2 // len(stacks), 1))
        factor = _factor(rows.stop - rows.start, columns.stop - columns.start, len(chosen))
        canvas = _Canvas(seen, (rows, columns), unit, factor, bands)
        blocks = list(_of_window(stacks, unit, (rows, columns), pair, chosen, factor))
        for block, look in _looks(pair, blocks, len(blocks), advance):
            seen.note(block, look)
            canvas.draw(block, look)
    return seen


def _several(side: int, size: int) -> int:
    """As many small chunks as make a block that is worth a task."""
    return min(side * max(1, _UNIT // side), -(-size // side) * side)


def _spread(grid: tuple[int, ...], count: int) -> Iterator[tuple[int, ...]]:
    return islice(spread(grid), count)


def _factor(y: int, x: int, dates: int) -> int:
    """Pixels a side that become one of the picture."""
    return max(1, -(-max(y, x) // SIDE), math.ceil(math.sqrt(y * x * dates / PIXELS)))


def _block(
    at: Sequence[int], unit: Sequence[int], pair: Pair, draw: Iterable[int], factor: int
) -> Block:
    sizes = pair.sizes[0], *pair.sizes[2:]
    starts = tuple(i * u for i, u in zip(at, unit, strict=True))
    ends = [min(s + u, n) for s, u, n in zip(starts, unit, sizes, strict=True)]
    box = {r: slice(s, e) for r, s, e in zip(("time", "y", "x"), starts, ends, strict=True)}
    time, y, x = starts
    wanted = tuple(t - time for t in draw if time <= t < ends[0])
    return Block((time, y, x), box, wanted, factor)


def _window(
    best: tuple[int, int], unit: Sequence[int], sizes: tuple[int, int], count: int
) -> tuple[slice, slice]:
    """Rows and columns of ``count`` units, nearly square, around the unit that begins at best."""
    grid = [-(-n // u) for n, u in zip(sizes, unit[1:], strict=True)]
    high = min(max(1, math.isqrt(count)), grid[0])
    wide = min(max(1, count // high), grid[1])
    high = min(max(1, count // wide), grid[0])
    out = []
    for start, u, n, g, size in zip(best, unit[1:], (high, wide), grid, sizes, strict=True):
        first = min(max(start // u - n // 2, 0), g - n)
        out.append(slice(first * u, min((first + n) * u, size)))
    return out[0], out[1]


def _of_window(
    stacks: Sequence[int],
    unit: Sequence[int],
    window: tuple[slice, slice],
    pair: Pair,
    dates: Sequence[int],
    factor: int,
) -> Iterator[Block]:
    """The blocks of a window, cut to the dates that are drawn."""
    ranges = [range(s.start // u, -(-s.stop // u)) for s, u in zip(window, unit[1:], strict=True)]
    for stack in stacks:
        mine = [t for t in dates if t // unit[0] == stack]
        for i in ranges[0]:
            for j in ranges[1]:
                whole = _block((stack, i, j), unit, pair, (), factor)
                box = {**whole.box, "time": slice(mine[0], mine[-1] + 1)}
                draw = tuple(t - mine[0] for t in mine)
                yield Block((mine[0], *whole.at[1:]), box, draw, factor)


class _Canvas:
    """Where drawn blocks are put together. Cells at the end of a block may be of fewer pixels."""

    def __init__(
        self,
        seen: Seen,
        window: tuple[slice, slice],
        unit: Sequence[int],
        factor: int,
        bands: int,
    ) -> None:
        self._seen, self._factor = seen, factor
        self._start = window[0].start or 0, window[1].start or 0
        self._unit = unit[1:]
        self._cells = [-(-u // factor) for u in self._unit]
        shape = []
        for s, u, c in zip(window, self._unit, self._cells, strict=True):
            full, rest = divmod(s.stop - (s.start or 0), u)
            shape.append(full * c + -(-rest // factor))
        seen.window, seen.factor = window, factor
        if all(shape):
            size = (len(seen.dates), 3, bands, *shape)
            seen.pictures = np.full(size, np.nan, np.float32)

    def draw(self, block: Block, look: Look) -> None:
        for t, drawn in look.drawn.items():
            y, x = (
                (at - start) // u * c
                for at, start, u, c in zip(
                    block.at[1:], self._start, self._unit, self._cells, strict=True
                )
            )
            date = self._seen.dates.index(block.at[0] + t)
            h, w = drawn.shape[-2:]
            self._seen.pictures[date, :, :, y : y + h, x : x + w] = drawn


def _looks(
    pair: Pair, blocks: Iterable[Block], count: int, advance: Any
) -> Iterator[tuple[Block, Look]]:
    """Each block and what was seen of it, some at a time."""
    import dask

    blocks, done = iter(blocks), 0
    while batch := list(islice(blocks, _BATCH)):
        look = dask.delayed(look_at, pure=False)
        tasks = [look(*pair.part(block.box), pair.codec.config, block) for block in batch]
        yield from zip(batch, dask.compute(*tasks), strict=True)
        done += len(batch)
        if advance is not None:
            advance(done, count)


def crops(pair: Pair, at: Sequence[tuple[int, int, int]]) -> list[tuple[np.ndarray, np.ndarray]]:
    """(original, decoded), each (band, y, x) DN with NaN where it is not valid, around pixels.

    at : date, row and column of each
    """
    import dask

    _, bands, *sizes = pair.sizes
    parts, shapes = [], []
    for t, *middle in at:
        box: Box = {"time": slice(t, t + 1)}
        for role, m, n in zip(("y", "x"), middle, sizes, strict=True):
            start = min(max(m - CROP // 2, 0), max(n - CROP, 0))
            box[role] = slice(start, min(start + CROP, n))
        parts.append(pair.part(box))
        shapes.append((bands, *(box[r].stop - box[r].start for r in ("y", "x"))))
    config, out = pair.codec.config, []
    for both, shape in zip(dask.compute(*parts), shapes, strict=True):
        original, decoded = (_dn(one.reshape(1, *shape), config)[0] for one in both)
        out.append((original, decoded))
    return out


def _dn(stored: np.ndarray, config: CodecConfig) -> np.ndarray:
    """Stored values -> DN without offset, float64, NaN where they are special."""
    stored = stored.astype(stored.dtype.newbyteorder("="), copy=False)
    mask = find_specials(stored, config.nodata).mask
    dn = stored.astype(np.float64) / config.scale - config.offset
    if mask is not None:
        dn[mask] = np.nan
    return dn


def look_at(original: np.ndarray, decoded: np.ndarray, config: CodecConfig, block: Block) -> Look:
    """Compare one block; axes as `Pair.part` gives them.

    One date at a time: temporary arrays are then a few times the size of a date of the block.
    """
    time, y, x = (block.box[r].stop - block.box[r].start for r in ("time", "y", "x"))
    shape = time, len(config.bands), y, x
    a, b = original.reshape(shape), decoded.reshape(shape)
    bands = list(config.bands)
    out = Look(
        np.zeros((6, len(bands), time)),
        np.zeros((len(bands), 2 * REACH + 1), np.int32),
        np.zeros((2, len(bands), BINS), np.int32),
        np.zeros(3),
        np.zeros(3),
        0,
        Worst(),
        [],
        {},
    )
    for t in range(time):
        was, now = _dn(a[t : t + 1], config)[0], _dn(b[t : t + 1], config)[0]
        error = now - was
        valid = ~np.isnan(error)
        out.differ += int((np.isnan(was) != np.isnan(now)).sum())
        _count(out, t, was, now, error, valid)
        _index_errors(out, was, now, valid, bands)
        _tiles(out, block, t, error, valid)
        if valid.any():
            size = np.abs(np.where(valid, error, 0.0))
            band, row, column = (int(i) for i in np.unravel_index(size.argmax(), size.shape))
            found = Worst(
                float(size.max()),
                block.at[0] + t,
                band,
                block.at[1] + row,
                block.at[2] + column,
            )
            out.worst = max(out.worst, found)
        if t in block.draw:
            out.drawn[t] = np.stack(
                [
                    means(was, block.factor),
                    means(now, block.factor),
                    extremes(error, block.factor),
                ]
            ).astype(np.float32)
    return out


def _count(
    out: Look, t: int, was: np.ndarray, now: np.ndarray, error: np.ndarray, valid: np.ndarray
) -> None:
    """Sums and histograms of a date, (band, y, x) each."""
    some = np.where(valid, error, 0.0)
    out.sums[0, :, t] = valid.sum((1, 2))
    out.sums[1, :, t] = valid[0].size
    out.sums[2, :, t] = some.sum((1, 2))
    out.sums[3, :, t] = np.abs(some).sum((1, 2))
    out.sums[4, :, t] = (some**2).sum((1, 2))
    out.sums[5, :, t] = np.abs(some).max((1, 2))
    for i, there in enumerate(valid):
        place = np.clip(np.rint(error[i][there]), -REACH, REACH).astype(int) + REACH
        out.errors[i] += np.bincount(place, minlength=2 * REACH + 1)
        for k, values in enumerate((was, now)):
            place = np.clip((values[i][there] - FIRST) // WIDTH, 0, BINS - 1).astype(int)
            out.values[k, i] += np.bincount(place, minlength=BINS)


def _index_errors(
    out: Look, was: np.ndarray, now: np.ndarray, valid: np.ndarray, bands: list[str]
) -> None:
    """Spectral angle and NDVI, over pixels whose bands are all valid."""
    figures = []
    if len(bands) > 1:
        figures.append((out.angles, spectral_angle(was, now)))
    if "B04" in bands and "B08" in bands:
        red, nir = bands.index("B04"), bands.index("B08")
        figures.append((out.ndvi, ndvi_error(was, now, red=red, nir=nir)))
    for total, values in figures:
        values = values[valid.all(0) & ~np.isnan(values)]
        if values.size:
            total += (values.size, values.sum(), 0.0)
            total[2] = max(total[2], values.max())


def _tiles(out: Look, block: Block, t: int, error: np.ndarray, valid: np.ndarray) -> None:
    """Errors of a date by squares, all bands together."""
    squares = np.where(valid, error, 0.0) ** 2
    n = np.maximum(_sums(valid.sum(0).astype(float), CROP), 1)
    rmse = np.sqrt(_sums(squares.sum(0), CROP) / n)
    share = _sums(valid.mean(0), CROP) / _sums(np.ones(error.shape[1:]), CROP)
    for i, j in np.ndindex(rmse.shape):
        left = error.shape[1] - i * CROP, error.shape[2] - j * CROP
        if any(at and n < CROP / 2 for at, n in zip((i, j), left, strict=True)):
            continue  # a sliver
        y, x = block.at[1] + i * CROP, block.at[2] + j * CROP
        tile = Tile(block.at[0] + t, y, x, float(rmse[i, j]), float(share[i, j]))
        out.tiles.append(tile)


def _cells(planes: np.ndarray, factor: int, combine: np.ufunc, nothing: float) -> np.ndarray:
    """Factor x factor pixels combined, (..., y, x); at the far ends of what is left.

    ``nothing`` : what changes no result
    """
    *rest, y, x = planes.shape
    padded = np.full((*rest, -(-y // factor) * factor, -(-x // factor) * factor), nothing)
    padded[..., :y, :x] = planes
    # Slices, since reduceat takes several times as long over few pixels.
    rows = reduce(combine, (padded[..., i::factor, :] for i in range(factor)))
    return reduce(combine, (rows[..., i::factor] for i in range(factor)))


def _sums(planes: np.ndarray, factor: int) -> np.ndarray:
    return _cells(planes, factor, np.add, 0.0)


def means(planes: np.ndarray, factor: int) -> np.ndarray:
    """Means of the valid ones of factor x factor pixels, (..., y, x); NaN where there are none.

    Examples
    --------
    >>> import numpy as np
    >>> means(np.array([[1.0, 3.0, np.nan]]), 2)
    array([[ 2., nan]])
    """
    if factor == 1:
        return planes
    valid = ~np.isnan(planes)
    with np.errstate(invalid="ignore"):
        return _sums(np.where(valid, planes, 0.0), factor) / _sums(valid.astype(float), factor)


def extremes(planes: np.ndarray, factor: int) -> np.ndarray:
    """Of factor x factor pixels the value that is farthest from 0; NaN where there is none.

    Examples
    --------
    >>> import numpy as np
    >>> extremes(np.array([[1.0, -3.0, np.nan]]), 2)
    array([[-3., nan]])
    """
    if factor == 1:
        return planes
    low, high = (_cells(planes, factor, f, np.nan) for f in (np.fmin, np.fmax))
    return farther(low, high)


def farther(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Of the lowest and the highest values those that are farther from 0."""
    return np.where(-low > high, low, high)


def psnr_of(squares: np.ndarray, count: np.ndarray) -> np.ndarray:
    """dB of sums of squared errors; inf where nothing was lost, NaN where nothing is valid."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return 10 * np.log10(PEAK**2 * np.asarray(count) / np.asarray(squares))


class Figures(NamedTuple):
    """Of each band (or of all together): share of valid pixels; dB; DN."""

    valid: np.ndarray
    psnr: np.ndarray
    rmse: np.ndarray
    bias: np.ndarray
    mean: np.ndarray
    largest: np.ndarray


def figures(sums: np.ndarray) -> Figures:
    """From the sums of `Look`, (6, ...)."""
    n, of, errors, sizes, squares, largest = sums
    with np.errstate(invalid="ignore", divide="ignore"):
        return Figures(
            n / of,
            psnr_of(squares, n),
            np.sqrt(squares / n),
            errors / n,
            sizes / n,
            np.where(n > 0, largest, np.nan),
        )


def together(sums: np.ndarray, axis: int) -> np.ndarray:
    """Sums of `Look` along an axis (1: bands, 2: dates)."""
    return np.concatenate([sums[:5].sum(axis), sums[5:].max(axis)])
