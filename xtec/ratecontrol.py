"""Rate control: the setting with which a cube reaches a PSNR or a ratio, found by trying chunks.

Chunks are tried as the store will hold them, through the codec and back. Few chunks: all of them.
Otherwise a sample that is spread evenly over time, y and x and grows until what it says of the
whole array is certain enough, or until it is as large as it may get.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import xarray as xr
from tec.config import COMPRESSION_RANGE, TOKENS, WEIGHTS, CodecConfig

from .attributes import ATTRIBUTE
from .chunks import ChunkCoder, batch_size, run_pass
from .messages import warn
from .quality import PEAK

#: Chunks that settle where the search starts; the sample says where it ends.
FEW = 4
#: Chunks of the smallest sample. An array with no more of them is tried as a whole.
SAMPLE = 16
#: Chunks of the largest sample, and the most bytes of pixels that it holds in memory.
MOST_CHUNKS, MOST_BYTES = 256, 2**30
#: Chunks with pixels from which on their spread tells how far off the whole array may be.
_ENOUGH = 8
#: From so many dB on a bound on the error can be smaller than a network's picture of equal PSNR.
_BOUNDS_FROM = 40.0
#: Batches whose decoded pixels are in memory together.
_TOGETHER = 8
#: How often λ is tried on the same chunks, at most.
_STEPS = 12
_LN10 = math.log(10)


@dataclass(frozen=True)
class Goal:
    """What was asked for. Values are in dB, or minus the logarithm of the ratio: both rise with λ.

    Attributes
    ----------
    name : "psnr" or "ratio"
    asked : the number that the user gave
    """

    name: str
    asked: float

    @property
    def value(self) -> float:
        return self.asked if self.name == "psnr" else -math.log(self.asked)

    @property
    def tolerance(self) -> float:
        """0.3 dB, or 5 %."""
        return 0.3 if self.name == "psnr" else math.log(1.05)

    @property
    def slope(self) -> float:
        """How much the value rises where λ is e times as large, on most images."""
        return 1.7 if self.name == "psnr" else 0.45

    def shown(self, value: float) -> str:
        return f"{value:.2f} dB" if self.name == "psnr" else f"a ratio of {math.exp(-value):.1f}"

    def difference(self, value: float) -> str:
        """A difference of values, for people."""
        return f"{value:.1f} dB" if self.name == "psnr" else f"{100 * math.expm1(value):.0f} %"


def goal_of(
    *, psnr: float | None, ratio: float | None, compression: Any, quality: Any
) -> Goal | None:
    """The one target among the arguments of ``compress``, or None.

    Raises
    ------
    ValueError
        There are two, it is no positive number, or what it would set is given as well.
    """
    given = {"psnr": psnr, "ratio": ratio, "compression": compression, "quality": quality}
    given = {name: value for name, value in given.items() if value is not None}
    target = next(iter(given), None)
    if target not in ("psnr", "ratio"):
        return None
    if len(given) > 1:
        raise ValueError(
            f"{' and '.join(f'{name}={value!r}' for name, value in given.items())} exclude each "
            f"other: psnr and ratio each say what compression (of model 'flex', quality) shall be; "
            "pass one of them"
        )
    value = given[target]
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float, np.integer, np.floating))
        or not 0 < value < math.inf
    ):
        unit = "decibels, such as 45" if target == "psnr" else "a factor, such as 30"
        raise ValueError(f"{target} is {value!r}: it must be a positive number, {unit}")
    return Goal(target, float(value))


def reach(packed: xr.DataArray, goal: Goal) -> tuple[CodecConfig, dict[str, Any]]:
    """The settings with which ``packed`` reaches ``goal``, and what the attribute says of it.

    Parameters
    ----------
    packed : variable with our codec in its encoding, in blocks of whole chunks. Of a Dask array no
        block is computed but those of the chunks that are tried, and each chunk once.

    Returns
    -------
    The codec's configuration with another ``compression`` (or ``quality``), and
    ``{goal: asked, "found": {"psnr", "ratio", "chunks", "of"}}``.

    Raises
    ------
    ValueError
        None of the chunks tried has a valid pixel, or the weights hold one rate only.
    """
    probes = Probes(packed)
    ladder = _ladder(probes.coder.config, goal)
    sample = probes.sample(probes.smallest)
    while not probes.with_pixels(sample) and len(sample) < probes.most:
        sample = probes.sample(probes.larger(len(sample)))
    found = probes.with_pixels(sample)
    if not found:
        raise ValueError(
            f"{goal.name}={goal.asked:g}: none of the {len(sample)} chunks that were tried (of "
            f"{probes.total}) has a valid pixel, so there is nothing to measure: pass "
            "compression=, or select the part that has data"
        )
    few = sample[: sample.index(found[:FEW][-1]) + 1]
    search: _Continuous | _Ladder
    if ladder is None:
        search = _Continuous(probes, goal)
    else:
        search = _Ladder(probes, goal, ladder)
    config = search.run(few, goal.tolerance / 2)
    fine = goal.tolerance / 6
    while True:
        margin = probes.margin(config, goal, sample)
        if margin <= goal.tolerance - fine or len(sample) == probes.most:
            break
        sample = probes.sample(probes.larger(len(sample)))
    config = search.run(sample, fine)
    if goal.name == "psnr" and ladder is None and goal.asked >= _BOUNDS_FROM:
        bounds = _Ladder(probes, goal, _bounds(probes, goal.asked))
        other = bounds.run(sample, fine)
        short = probes.value(config, goal, sample) < goal.value - goal.tolerance
        if short or probes.size(other, sample) < probes.size(config, sample):
            config, search = other, bounds
    if search.reached(config, sample) and margin > goal.tolerance:
        off = (
            "by an amount that so few chunks with pixels do not tell"
            if math.isinf(margin)
            else f"by up to {goal.difference(margin)} (two standard errors)"
        )
        warn(
            f"{goal.name}={goal.asked:g}: chunks differ so much that the {len(sample)} tried, of "
            f"{probes.total}, do not settle it to {goal.difference(goal.tolerance)}; the whole "
            f"array may miss it {off}. Larger chunks= or a part of the array give a better estimate"
        )
    return config, {goal.name: goal.asked, "found": probes.found(config, sample)}


def target_of(attrs: Mapping[Any, Any]) -> dict[str, Any] | None:
    """What rate control left in the attributes of a variable: as `reach` returns it, or None."""
    try:
        return json.loads(attrs[ATTRIBUTE]).get("target")
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def target_text(target: dict[str, Any]) -> str:
    """What was asked for and found, for people.

    Examples
    --------
    >>> target_text({"psnr": 45, "found": {"psnr": 45.1, "ratio": 21.3, "chunks": 12, "of": 40}})
    'psnr 45: found 45.1 dB, 21.3 times smaller, on 12 of 40 chunks'
    """
    found = target["found"]
    name = "psnr" if "psnr" in target else "ratio"
    quality = "no loss" if found["psnr"] is None else f"{found['psnr']:g} dB"
    return (
        f"{name} {target[name]:g}: found {quality}, {found['ratio']:g} times smaller, on "
        f"{found['chunks']} of {found['of']} chunks"
    )


@dataclass(frozen=True)
class _Chunk:
    """A chunk that was loaded: as the codec gets it, and where the array is in it."""

    values: np.ndarray
    inside: tuple[slice, ...]
    valid: np.ndarray  # of values[inside]

    @property
    def nbytes(self) -> int:
        """Of the part that lies in the array."""
        return self.valid.size * self.values.itemsize


class Probes:
    """The chunks of one array, tried out: nothing is loaded, encoded or decoded twice.

    Chunks are known by their place in the sample, 0 being the first.

    Parameters
    ----------
    packed : variable with our codec in its encoding

    Attributes
    ----------
    seconds : spent so far to "encode" and to "decode"
    """

    def __init__(self, packed: xr.DataArray) -> None:
        from .compression import codec_of

        codec: Any = codec_of(packed.encoding)
        self.coder = ChunkCoder(codec.config, codec.dims, codec.chunk_shape)
        self.fill = packed.encoding.get("fill_value", packed.encoding.get("_FillValue", 0))
        # What the store will get: scaled, shifted and of the stored dtype.
        self.stored = xr.conventions.encode_cf_variable(packed.variable)
        unit = self.coder.chunk_shape
        self.grid = tuple(-(-n // c) for n, c in zip(self.stored.shape, unit, strict=True))
        self.total = math.prod(self.grid)
        nbytes = math.prod(unit) * self.stored.dtype.itemsize
        self.most = min(self.total, MOST_CHUNKS, max(FEW, MOST_BYTES // max(nbytes, 1)))
        self._places = list(islice(spread(self.grid), self.most))
        self.seconds = {"encode": 0.0, "decode": 0.0}
        self._chunks: dict[int, _Chunk] = {}
        self._streams: dict[tuple[CodecConfig, int], bytes] = {}
        self._squares: dict[tuple[CodecConfig, int], float] = {}

    def sample(self, size: int) -> list[int]:
        """Load the first ``size`` chunks, each in the one go that first needs it."""
        import dask

        new = [i for i in range(size) if i not in self._chunks]
        where = [self.region(i) for i in new]
        for i, block in zip(new, dask.compute(*(self.stored.data[w] for w in where)), strict=True):
            self._chunks[i] = self._padded(np.asarray(block))
        return list(range(size))

    def region(self, i: int) -> tuple[slice, ...]:
        """Where a chunk lies in the array."""
        unit, shape = self.coder.chunk_shape, self.stored.shape
        return tuple(
            slice(k * c, min(k * c + c, n))
            for k, c, n in zip(self._places[i], unit, shape, strict=True)
        )

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[what] += time.perf_counter() - start

    def nbytes(self, sample: Sequence[int]) -> int:
        """Of the pixels of the sample."""
        return sum(self._chunks[i].nbytes for i in sample)

    def warm_up(self) -> None:
        """Code the first chunk and forget it: weights are loaded, kernels compiled."""
        chunk = self._chunks[0].values
        streams = run_pass(self.coder.encode_chunks, [chunk]).result()
        run_pass(self.coder.decode_chunks, streams, self.stored.dtype, ["a chunk"]).result()

    @property
    def smallest(self) -> int:
        """Chunks of the first sample."""
        return min(SAMPLE, self.most)

    def larger(self, size: int) -> int:
        """Chunks of the next sample: twice as many, or all where that is nearly all."""
        return self.most if 3 * size >= self.most else 2 * size

    def with_pixels(self, sample: Sequence[int]) -> list[int]:
        return [i for i in sample if self._chunks[i].valid.any()]

    def value(self, config: CodecConfig, goal: Goal, sample: Sequence[int]) -> float:
        """What ``goal`` is about, of all chunks of the sample together."""
        over, under = self.parts(config, goal, sample).sum(1)
        if goal.name == "ratio":
            return math.log(over / under)
        return 10 * math.log10(PEAK**2 * under / max(over, 1e-9))

    def margin(self, config: CodecConfig, goal: Goal, sample: Sequence[int]) -> float:
        """Two standard errors of `value`, for a sample of the whole array; inf where unknown."""
        if len(sample) == self.total:
            return 0.0
        over, under = self.parts(config, goal, sample)
        n = len(self.with_pixels(sample))
        if n < min(_ENOUGH, len(sample)) or n < 2:
            return math.inf
        if not over.sum():
            return 0.0
        rest = over - under * (over.sum() / under.sum())
        variance = (1 - len(sample) / self.total) * n / (n - 1) * np.square(rest).sum()
        relative = 2 * math.sqrt(variance) / over.sum()
        return 10 / _LN10 * relative if goal.name == "psnr" else relative

    def size(self, config: CodecConfig, sample: Sequence[int]) -> int:
        """Bytes of the streams of the sample."""
        self._encode(config, sample)
        return sum(len(self._streams[config, i]) for i in sample)

    def found(self, config: CodecConfig, sample: Sequence[int]) -> dict[str, Any]:
        """For the attribute."""
        psnr = self.value(config, Goal("psnr", 0), sample)
        ratio = math.exp(-self.value(config, Goal("ratio", 1), sample))
        lossless = not self.parts(config, Goal("psnr", 0), sample)[0].sum()
        return {
            "psnr": None if lossless else round(psnr, 2),
            "ratio": float(f"{ratio:.4g}"),
            "chunks": len(sample),
            "of": self.total,
        }

    def parts(self, config: CodecConfig, goal: Goal, sample: Sequence[int]) -> np.ndarray:
        """(2, chunks): squared errors and pixels, or bytes of the streams and of the pixels."""
        self._encode(config, sample)
        chunks = [self._chunks[i] for i in sample]
        if goal.name == "ratio":
            over: list[float] = [len(self._streams[config, i]) for i in sample]
            return np.array([over, [chunk.nbytes for chunk in chunks]], float)
        self._decode(config, sample)
        over = [self._squares.get((config, i), 0.0) for i in sample]
        return np.array([over, [np.count_nonzero(chunk.valid) for chunk in chunks]], float)

    def _encode(self, config: CodecConfig, sample: Sequence[int]) -> None:
        coder = replace(self.coder, config=config)
        parts = self._batches([i for i in sample if (config, i) not in self._streams])
        with self._timed("encode"):
            passes = [
                run_pass(coder.encode_chunks, [self._chunks[i].values for i in part])
                for part in parts
            ]
            for part, streams in zip(parts, passes, strict=True):
                self._streams.update({(config, i): s for i, s in zip(part, streams.result())})

    def _decode(self, config: CodecConfig, sample: Sequence[int]) -> None:
        coder = replace(self.coder, config=config)
        wanted = [i for i in self.with_pixels(sample) if (config, i) not in self._squares]

        def decoded(part: Sequence[int]) -> Future[list[np.ndarray]]:
            streams = [self._streams[config, i] for i in part]
            names = [f"the chunk at {self._places[i]}" for i in part]
            return run_pass(coder.decode_chunks, streams, self.stored.dtype, names)

        parts = self._batches(wanted)
        for start in range(0, len(parts), _TOGETHER):  # not all of their pixels at one time
            some = parts[start : start + _TOGETHER]
            with self._timed("decode"):
                passes = [future.result() for future in [decoded(part) for part in some]]
            for part, back in zip(some, passes, strict=True):
                for i, values in zip(part, back, strict=True):
                    self._squares[config, i] = _squares(self._chunks[i], values, config.scale)

    def _batches(self, items: Sequence[int]) -> list[Sequence[int]]:
        """Chunks that go through the network together."""
        time, _, y, x = self.coder.cube_shape
        size = batch_size(time * y * x)
        return [items[i : i + size] for i in range(0, len(items), size)]

    def _padded(self, block: np.ndarray) -> _Chunk:
        """As zarr hands it over: at the edges of the array filled up to a whole chunk."""
        unit, nodata = self.coder.chunk_shape, self.coder.config.nodata
        inside = tuple(slice(n) for n in block.shape)
        values = block
        if block.shape != unit:
            values = np.full(unit, self.fill, block.dtype)
            values[inside] = block
        valid = np.isfinite(block)
        if nodata is not None:
            valid &= block != nodata
        return _Chunk(values, inside, valid)


def _squares(chunk: _Chunk, back: np.ndarray, scale: float) -> float:
    """Squared error of the valid pixels, in DN."""
    a, b = chunk.values[chunk.inside], back[chunk.inside]
    total = 0.0
    for one, other, valid in zip(a, b, chunk.valid, strict=True):  # a date or band at a time
        total += float(np.square((one[valid].astype(float) - other[valid]) / scale).sum())
    return total


def spread(grid: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Every place of a grid once; the first so many are always spread evenly over it.

    Halves of halves of the grid, each visited as often as its size demands: as many places as
    there are halves are one from each. Where in its half a place lies is drawn, always the same.
    """
    draw = random.Random(0).random

    def visit(box: tuple[range, ...]) -> Iterator[tuple[int, ...]]:
        longest = max(
            range(len(box)), key=lambda axis: (len(box[axis]) > 1, len(box[axis]) / grid[axis])
        )
        side = box[longest]
        if len(side) == 1:
            yield tuple(r.start for r in box)
            return
        halves = side[: len(side) // 2], side[len(side) // 2 :]
        parts = [visit((*box[:longest], half, *box[longest + 1 :])) for half in halves]
        due = [(draw() / len(half), k) for k, half in enumerate(halves)]
        for _ in range(math.prod(map(len, box))):
            when, k = min(due)
            due[k] = (when + 1 / len(halves[k]), k)
            yield next(parts[k])

    return visit(tuple(map(range, grid)))


class _Continuous:
    """λ of weights that cover the range: a bracketing secant over log λ."""

    def __init__(self, probes: Probes, goal: Goal) -> None:
        self.probes, self.goal = probes, goal
        self.start, self.slope = math.log(CodecConfig().compression), goal.slope
        self.low, self.high = (math.log(v) for v in COMPRESSION_RANGE)

    def run(self, sample: Sequence[int], tolerance: float) -> CodecConfig:
        """The λ that comes nearest, once within the tolerance; where it ends, the next starts."""
        goal, x, slope = self.goal.value, self.start, self.slope
        tried: dict[float, float] = {}
        while len(tried) < _STEPS:
            x = math.log(_round(x))
            if x in tried:
                break
            value = tried[x] = self.probes.value(self._config(x), self.goal, sample)
            if abs(value - goal) <= tolerance:
                break
            below = max((t for t in tried if tried[t] < goal), default=None)
            above = min((t for t in tried if tried[t] >= goal), default=None)
            if below is not None and above is not None and below < above:
                slope = (tried[above] - tried[below]) / (above - below)
            elif len(tried) > 1:
                a, b = list(tried)[-2:]
                # A little too far, so that the goal lies between the next two.
                slope = max((tried[b] - tried[a]) / (b - a) / 1.5, self.goal.slope / 8)
            x = min(max(x + (goal - value) / slope, self.low), self.high)
        self.start, self.slope = min(tried, key=lambda t: abs(tried[t] - goal)), slope
        return self._config(self.start)

    def _config(self, x: float) -> CodecConfig:
        return replace(self.probes.coder.config, compression=_round(x))

    def reached(self, config: CodecConfig, sample: Sequence[int]) -> bool:
        """Warns where it is not."""
        value = self.probes.value(config, self.goal, sample)
        off = abs(value - self.goal.value) > self.goal.tolerance
        if off:
            _out_of_reach(self.goal, value, config, f"compression {config.compression:g}")
        return not off


class _Ladder:
    """Settings that come one by one: qualities of ``flex``, published checkpoints."""

    def __init__(self, probes: Probes, goal: Goal, ladder: Sequence[CodecConfig]) -> None:
        self.probes, self.goal, self.ladder = probes, goal, ladder
        self.start: int | None = None

    def run(self, sample: Sequence[int], tolerance: float) -> CodecConfig:
        """The quality that keeps the promise at the least price; the nearest checkpoint."""
        first = self._first(lambda i: self._value(i, sample) >= self.goal.value)
        last = len(self.ladder) - 1
        if self.ladder[0].model not in ("flex", "none"):
            near = [i for i in (first - 1, first) if 0 <= i <= last]
            chosen = min(near, key=lambda i: abs(self._value(i, sample) - self.goal.value))
        elif self.goal.name == "psnr":
            chosen = min(first, last)
        else:
            exact = first <= last and self._value(first, sample) == self.goal.value
            chosen = first if exact else max(first - 1, 0)
        self.start = first
        return self.ladder[chosen]

    def _value(self, i: int, sample: Sequence[int]) -> float:
        return self.probes.value(self.ladder[i], self.goal, sample)

    def _first(self, reaches: Callable[[int], bool]) -> int:
        """The lowest step that reaches the goal, or the number of steps."""
        if self.start is None:
            low, high = 0, len(self.ladder)
            while low < high:
                middle = (low + high) // 2
                low, high = (low, middle) if reaches(middle) else (middle + 1, high)
            return low
        first = self.start
        while first < len(self.ladder) and not reaches(first):
            first += 1
        while first > 0 and reaches(first - 1):
            first -= 1
        return first

    def reached(self, config: CodecConfig, sample: Sequence[int]) -> bool:
        """Warns where it is not; a quality beyond what was asked for has reached it."""
        value, goal = self.probes.value(config, self.goal, sample), self.goal
        at = self.ladder.index(config)
        flex = config.model in ("flex", "none")  # what is beyond the goal keeps the promise
        name = f"compression {config.compression:g}"
        if config.quality is not None:
            name = f"quality {config.quality[0]}"
        elif config.max_error is not None:
            name = f"max_error {config.max_error[0]:g}"
        # Below the largest bound there is the network's λ.
        ends = (at == 0 and value > goal.value and config.model != "none") or (
            at == len(self.ladder) - 1 and value < goal.value
        )
        off = abs(value - goal.value) > goal.tolerance
        if off and ends:
            _out_of_reach(goal, value, config, name)
        elif off and not flex:
            have = ", ".join(f"{step.compression:g}" for step in self.ladder)
            warn(
                f"{goal.name}={goal.asked:g}: published {config.model} checkpoints are for "
                f"compression {have}; the nearest, {config.compression:g}, gives "
                f"{goal.shown(value)}"
            )
        return not off or (flex and not ends)


def _round(x: float) -> float:
    """exp(x) as it is stored: λ of four digits."""
    return float(f"{math.exp(x):.4g}")


def _out_of_reach(goal: Goal, value: float, config: CodecConfig, used: str) -> None:
    better = goal.name == "psnr" and value < goal.value
    more = (
        ". max_error= goes further: 0 is lossless"
        if better or (goal.name == "ratio" and value < goal.value)
        else ""
    )
    warn(
        f"{goal.name}={goal.asked:g} is out of reach: the nearest that model {config.model!r} "
        f"(weights {config.weights!r}) gets on this cube is {goal.shown(value)}, with {used}, "
        f"which is taken{more}"
    )


def _bounds(probes: Probes, psnr: float) -> list[CodecConfig]:
    """Bounds on the error around the one that is as far off as this PSNR, in steps of a quarter of
    a dB: errors are spread evenly up to the bound, or are smaller where the bound is large."""
    config, exact = probes.coder.config, probes.stored.dtype.kind != "f"
    even = math.sqrt(3) * PEAK / 10 ** (psnr / 20)
    values = [even * 1.8 * 0.97**k for k in range(30)]
    if exact:
        values = [float(v) for v in sorted({round(v) for v in values} | {0}, reverse=True)]
    bands = len(config.bands)
    return [
        replace(config, model="none", weights="builtin", max_error=(v,) * bands) for v in values
    ]


def _ladder(config: CodecConfig, goal: Goal) -> list[CodecConfig] | None:
    """Settings there are to choose from, low rates first; None where λ is continuous."""
    if config.model == "flex":
        return [replace(config, quality=(k,)) for k in range(TOKENS + 1)]
    if config.weights in WEIGHTS[1:]:
        from tec.weights import PUBLISHED

        _, _, values = PUBLISHED.get(
            (config.weights, config.model, config.sensor), (None, None, (config.compression,))
        )
        return [replace(config, compression=value) for value in sorted(values)]
    if config.weights != "builtin" and not config.weights.endswith(".safetensors"):
        raise ValueError(
            f"{goal.name}={goal.asked:g}: the checkpoint {config.weights!r} has one rate, there is "
            "nothing to choose: leave it out, or use the built-in weights"
        )
    return None
