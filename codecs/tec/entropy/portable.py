"""Where a float that two machines compute becomes an integer that both agree on.

Networks give parameters that differ in the last bits between machines, batch sizes and thread
counts. The :class:`Writer` rounds them to coarse grids and notes the few that lie within a margin
of a rounding boundary; its bytes go into the stream. A :class:`Reader` whose floats differ from the
writer's by less than the margin then rounds to the same integers, always. The bits are described in
:mod:`tec.entropy.rounding`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..errors import StreamError, TecError
from . import rounding

_NO_MARGIN = -128  # in place of an exponent
_NONE = np.zeros(0, np.int64)


@dataclass(frozen=True)
class ScaleGrid:
    """Log-spaced levels for scales, and the step of the means at each.

    Attributes
    ----------
    levels : number of levels, 2 to 1024
    smallest, largest : scale of the first and the last level
    certain : below this scale a symbol is as good as certain, and its mean goes to halves: small
        means become 0, far from any boundary, so that there is nothing to decide
    certain_step : that step of the means; 1/4 where the mean's fraction chooses the table
    """

    levels: int = 64
    smallest: float = 0.11
    largest: float = 256.0
    certain: float = 0.0
    certain_step: float = 0.5

    def __post_init__(self) -> None:
        if not 2 <= self.levels <= 1024:
            raise TecError(f"a scale grid has 2 to 1024 levels, not {self.levels}")
        if not 1e-3 <= self.smallest < self.largest <= 1e6:
            raise TecError(
                f"scales must ascend from 0.001 to 1e6, not {self.smallest} to {self.largest}"
            )
        if self.certain_step not in (0.5, 0.25):
            raise TecError(
                f"means step by 1/2 or 1/4 where symbols are certain, not by {self.certain_step}"
            )

    # The logarithms are put on a dyadic grid: another libm, one bit off, makes the same level.

    @cached_property
    def log_smallest(self) -> float:
        """Natural logarithm of level 0."""
        return round(math.log(self.smallest) * 2**32) / 2**32

    @cached_property
    def levels_per_log(self) -> float:
        """Levels per unit of the natural logarithm."""
        return round((self.levels - 1) / math.log(self.largest / self.smallest) * 2**32) / 2**32

    @cached_property
    def scales(self) -> np.ndarray:
        """(levels,) float64, for making tables; nothing is coded with it."""
        span = math.log(self.largest / self.smallest)
        scales = self.smallest * np.exp(np.arange(self.levels) * (span / (self.levels - 1)))
        scales.flags.writeable = False
        return scales

    @cached_property
    def steps(self) -> np.ndarray:
        """(levels,) float64: the largest power of two up to scale / 4, but at least 1/16."""
        exponent = np.floor(np.log2(self.scales / 4) + 1e-6)  # 256.0 - 1e-14 is 256
        steps = np.maximum(np.exp2(exponent), 1 / 16)
        steps[self.scales < self.certain] = self.certain_step
        steps.flags.writeable = False
        return steps

    @cached_property
    def _arrays(self) -> tuple[np.ndarray, np.ndarray]:
        grid = [self.log_smallest, self.levels_per_log, self.levels]
        return np.array(grid, np.float64), self.steps


@dataclass(frozen=True)
class Margin:
    """How far two evaluations of a parameter x may lie apart: absolute + relative * abs(x), x being
    the largest of the numbers that a mean is the sum of.

    Both are powers of two between 2**-60 and 2**10, or 0.
    """

    absolute: float
    relative: float

    def __post_init__(self) -> None:
        _exponent(self.absolute)
        _exponent(self.relative)

    def __call__(self, x: np.ndarray | float) -> np.ndarray:
        return self.absolute + self.relative * np.abs(x)

    def wider(self, factor: float) -> Margin:
        """So many times as wide; the factor is a power of two."""
        return Margin(*(min(v * factor, 2.0**10) for v in (self.absolute, self.relative)))

    def to_bytes(self) -> bytes:
        """Two signed bytes, the exponents (-128: zero)."""
        return bytes(_exponent(v) & 255 for v in (self.absolute, self.relative))

    @classmethod
    def from_bytes(cls, data: bytes) -> Margin:
        """Inverse of ``to_bytes``; StreamError for bytes that it does not write."""
        exponents = [b - 256 * (b > 127) for b in data]
        if len(data) != 2 or not all(e == _NO_MARGIN or -60 <= e <= 10 for e in exponents):
            raise StreamError(f"a margin is two exponents between -60 and 10, not {data.hex()}")
        return cls(*(0.0 if e == _NO_MARGIN else 2.0**e for e in exponents))


def _exponent(value: float) -> int:
    mantissa, exponent = math.frexp(value)
    if value == 0:
        return _NO_MARGIN
    if mantissa != 0.5 or not -60 <= exponent - 1 <= 10:
        raise TecError(f"a margin is 0 or a power of two between 2**-60 and 2**10, not {value}")
    return exponent - 1


class Writer:
    """The encoder's side: rounds n rows and notes what a reader could round otherwise.

    Each row is a stream of its own: its notes depend on nothing but its own values.

    Parameters
    ----------
    n : number of rows
    grid : ScaleGrid
    margin : Margin, evaluated at the writer's value
    """

    def __init__(self, n: int, grid: ScaleGrid, margin: Margin) -> None:
        self._grid = grid
        self._margin = np.array([margin.absolute, margin.relative], np.float64)
        self._notes: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in range(n)]
        self._position = 0

    @property
    def values(self) -> int:
        """Values rounded so far, in all rows together."""
        return self._position * len(self._notes)

    @property
    def flagged(self) -> int:
        """Values so far that came within the margin of a boundary, in all rows together."""
        return sum(positions.size for row in self._notes for positions, _ in row)

    def parameters(
        self,
        mean: np.ndarray,
        log_scale: np.ndarray,
        size: Callable[[], np.ndarray] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scales to levels, then means to multiples of the step of their level.

        Parameters
        ----------
        mean, log_scale : (n, k) float32 or float64; the logarithm is the natural one
        size : gives (n, k), how large the numbers are that each mean is the sum of, where they are
            larger than it: the margin goes by it

        Returns
        -------
        index : (n, k) uint16, level of the grid; scales beyond its ends take the end
        mean_hat : (n, k) float32

        Raises
        ------
        TecError : a value is NaN or infinite, or a mean is beyond 2**24 of its steps
        """
        sizes = mean if size is None else size()
        mean, log_scale, sizes = _rows(len(self._notes), mean, log_scale, sizes)
        index, mean_hat = np.empty(mean.shape, np.uint16), np.empty(mean.shape, np.float32)
        kernel = rounding.write_parameters[mean.dtype]
        for i in range(len(mean)):
            inputs = mean[i], log_scale[i], sizes[i], *self._grid._arrays
            self._write(i, kernel, inputs, (index[i], mean_hat[i]))
        self._position += 2 * mean.shape[1]
        return index, mean_hat

    def round(self, values: np.ndarray, step: float = 1.0) -> np.ndarray:
        """Values as multiples of a step, which is a power of two.

        Parameters
        ----------
        values : (n, k) float32 or float64

        Returns
        -------
        (n, k) int32

        Raises
        ------
        TecError : a value is NaN or infinite, or beyond 2**30 steps
        """
        (values,) = _rows(len(self._notes), values)
        out = np.empty(values.shape, np.int32)
        for i in range(len(values)):
            self._write(i, rounding.write_round[values.dtype], (values[i], _step(step)), (out[i],))
        self._position += values.shape[1]
        return out

    def getvalue(self) -> list[bytes]:
        """The decisions of each row; no decisions are no bytes."""
        out = []
        for row in self._notes:
            positions, choices = zip(*row, strict=True) if row else ((_NONE,), (_NONE,))
            out.append(rounding.pack(np.concatenate(positions), np.concatenate(choices)))
        return out

    def _write(self, row: int, kernel: Callable, inputs: tuple, outputs: tuple) -> None:
        room = 64 + inputs[0].size // 16
        while True:
            positions, choices = np.empty((2, room), np.int64)
            notes = positions, choices
            error, found = kernel(*inputs, self._margin, self._position, *outputs, *notes)
            if error:
                raise TecError(_describe(error, row, found))
            if found <= room:
                break
            room = found
        if found:
            self._notes[row].append((positions[:found].copy(), choices[:found].copy()))


class Reader:
    """The decoder's side: the same calls in the same order give the writer's integers.

    Parameters
    ----------
    data : the decisions of each row, from ``Writer.getvalue``; any of its rows, in any batch
    grid : the writer's ScaleGrid
    """

    def __init__(self, data: Sequence[bytes], grid: ScaleGrid) -> None:
        self._grid = grid
        self._position = 0
        self._data = [np.frombuffer(d, np.uint8) for d in data]
        self._states = np.empty((len(data), rounding.READER_STATE), np.int64)
        for raw, state in zip(self._data, self._states, strict=True):
            rounding.start(raw, state)

    def parameters(
        self,
        mean: np.ndarray,
        log_scale: np.ndarray,
        size: Callable[[], np.ndarray] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """As ``Writer.parameters``; ``size`` is not asked.

        Raises
        ------
        StreamError : the decisions cannot belong to these values, which may be NaN or infinite
        """
        mean, log_scale = _rows(len(self._data), mean, log_scale)
        index, mean_hat = np.empty(mean.shape, np.uint16), np.empty(mean.shape, np.float32)
        kernel = rounding.read_parameters[mean.dtype]
        for i in range(len(mean)):
            inputs = mean[i], log_scale[i], *self._grid._arrays
            self._read(i, kernel, inputs, (index[i], mean_hat[i]))
        self._position += 2 * mean.shape[1]
        return index, mean_hat

    def round(self, values: np.ndarray, step: float = 1.0) -> np.ndarray:
        """As ``Writer.round``; StreamError as ``parameters``."""
        (values,) = _rows(len(self._data), values)
        out = np.empty(values.shape, np.int32)
        for i in range(len(values)):
            self._read(i, rounding.read_round[values.dtype], (values[i], _step(step)), (out[i],))
        self._position += values.shape[1]
        return out

    def finish(self) -> None:
        """Check that every decision was used; StreamError otherwise."""
        for row, state in enumerate(self._states):
            if state[1] != -1:
                what = "malformed" if state[1] == -2 else "left over"
                raise StreamError(
                    f"rounding decisions of row {row} are {what}: the stream is damaged, "
                    "or its parameters are not the ones that it was written with"
                )

    def _read(self, row: int, kernel: Callable, inputs: tuple, outputs: tuple) -> None:
        error, where = kernel(*inputs, self._position, self._data[row], self._states[row], *outputs)
        if error:
            raise StreamError(_describe(error, row, where))


def _rows(n: int, *arrays: np.ndarray) -> list[np.ndarray]:
    """C-contiguous (n, k), all float32 or all float64."""
    arrays = tuple(np.asarray(a) for a in arrays)
    if any(a.ndim != 2 or a.shape != arrays[0].shape or len(a) != n for a in arrays):
        shapes = ", ".join(str(a.shape) for a in arrays)
        raise TecError(f"need {n} rows of one length, got {shapes}")
    dtype = np.float32 if all(a.dtype == np.float32 for a in arrays) else np.float64
    return [np.ascontiguousarray(a, dtype) for a in arrays]


def _step(step: float) -> float:
    if not (0 < step < math.inf and math.frexp(step)[0] == 0.5):
        raise TecError(f"a step must be a power of two, not {step}")
    return float(step)


def _describe(error: int, row: int, where: int) -> str:
    place = f"(row {row}, value {where})"
    return {
        rounding.NOT_FINITE: f"the network gave a parameter that is NaN or infinite {place}: "
        "check the weights and the input",
        rounding.TOO_LARGE: f"the network gave a parameter too large to round exactly {place}: "
        "check the weights and the input",
        rounding.IMPOSSIBLE: f"a rounding decision does not fit its parameter {place}: the stream "
        "is damaged, or the network's result differs from the encoder's by more than the margin",
        rounding.MALFORMED: f"the rounding decisions of row {row} are malformed: "
        "the stream is damaged",
    }[error]
