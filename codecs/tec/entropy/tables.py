"""Probability tables: integer CDFs of 16 bits. Nothing here computes one while coding.

A table gives the symbols ``lowest, lowest + 1, ...`` one interval each of [0, 65536) and ends with
the interval of the escape, behind which any other int32 follows (see :mod:`tec.entropy.rans`).
Tables are made when a model is exported, in float64, and shipped as integers from then on: the
machine's ``exp`` and ``erf`` differ in the last bits, and one count of difference is noise.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import TecError, WeightsError

PRECISION = 16
TOTAL = 1 << PRECISION
#: Bits that say how long an escaped value is.
ESCAPE_BITS = 6
#: Symbols that a table made by ``scale_tables`` may have.
MOST_SYMBOLS = 4095
#: Half of what one count is worth: probability that may be left outside a table.
TAIL = 2.0**-17
SHIPPED = Path(__file__).with_name("tables.npz")
SHIPPED_SHA256 = "b127a707d3736ebcf1c88d96c808211734fe1fb5115ffcb297d332668c41381a"
FAMILIES = ("gaussian", "logistic", "laplace")
SHIPPED_FAMILIES = ("gaussian", "logistic", "gaussian-integers")


@dataclass(frozen=True, eq=False)
class Tables:
    """Ragged integer CDFs in one index space.

    Attributes
    ----------
    cdf : (entries,) int32, table after table: 0, ..., 65536, strictly increasing
    offsets : (tables + 1,) int64, where each table starts in ``cdf``
    lowest : (tables,) int32, the symbol of each table's first interval; the last is the escape
    """

    cdf: np.ndarray
    offsets: np.ndarray
    lowest: np.ndarray

    def __post_init__(self) -> None:
        cdf, offsets, lowest = (
            _integers(getattr(self, n), n) for n in ("cdf", "offsets", "lowest")
        )
        if offsets.size != lowest.size + 1 or offsets[0] != 0 or offsets[-1] != cdf.size:
            raise TecError(
                f"{lowest.size} tables need {lowest.size + 1} offsets, from 0 to {cdf.size}"
            )
        if lowest.size > TOTAL:
            raise TecError(f"{lowest.size} tables, and an index has 16 bits: at most {TOTAL}")
        short = np.flatnonzero(np.diff(offsets) < 3)
        if short.size:
            raise TecError(
                f"table {short[0]} needs a symbol and the escape: at least 3 CDF entries"
            )
        ends = cdf[offsets[1:] - 1] if lowest.size else lowest
        steps = np.diff(cdf)
        steps[offsets[1:-1] - 1] = 1  # from one table to the next: no interval
        wrong = (cdf[offsets[:-1]] != 0) | (ends != TOTAL)
        if wrong.any():
            raise TecError(f"table {np.flatnonzero(wrong)[0]} must go from 0 to {TOTAL}")
        if (steps < 1).any():
            table = np.searchsorted(offsets, np.flatnonzero(steps < 1)[0], side="right") - 1
            raise TecError(
                f"table {table} does not increase: each symbol needs a count of 1 or more"
            )
        highest = lowest + np.diff(offsets) - 3
        if lowest.size and (lowest.min() < -(2**31) or highest.max() >= 2**31):
            raise TecError("the symbols of a table must be int32")
        for name, value, dtype in (
            ("cdf", cdf, np.int32),
            ("offsets", offsets, np.int64),
            ("lowest", lowest, np.int32),
        ):
            value = value.astype(dtype)
            value.flags.writeable = False
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return self.lowest.size

    def draw(self, index: np.ndarray, random: np.ndarray) -> np.ndarray:
        """Symbols (int32) that 16-bit random numbers stand for; the escape is the last symbol."""
        row = index.astype(np.int64)
        slot = random.astype(np.int64) + (row << PRECISION)
        k = np.searchsorted(self._stairs, slot, side="right") - 1 - self.starts[row]
        last = np.diff(self.starts)[row] - 2
        return (self.lowest[row] + np.minimum(k, last)).astype(np.int32)

    @cached_property
    def _stairs(self) -> np.ndarray:
        """Where each interval of each table starts, the tables one above another."""
        row = np.repeat(np.arange(len(self)), np.diff(self.starts))
        return (self.packed & np.uint32(TOTAL - 1)).astype(np.int64) + (row << PRECISION)

    @classmethod
    def from_cdfs(cls, tables: Iterable[tuple[Sequence[int] | np.ndarray, int]]) -> Tables:
        """From pairs (CDF from 0 to 65536 whose last interval is the escape, lowest symbol)."""
        cdfs, lowest = [], []
        for cdf, low in tables:
            cdfs.append(_integers(cdf, "cdf"))
            lowest.append(int(low))
        offsets = np.cumsum([0] + [c.size for c in cdfs])
        flat = np.concatenate(cdfs) if cdfs else np.zeros(0, np.int64)
        return cls(flat, offsets, np.array(lowest, np.int64))

    @classmethod
    def from_pmfs(
        cls,
        tables: Iterable[tuple[Sequence[float] | np.ndarray, int]],
        *,
        escape_mass: float = TAIL,
    ) -> Tables:
        """From pairs (probabilities, lowest symbol). For export, not while coding."""
        return cls.from_cdfs((quantise_pmf(pmf, escape_mass), lowest) for pmf, lowest in tables)

    @classmethod
    def from_padded(cls, cdf: np.ndarray, length: np.ndarray, offset: np.ndarray) -> Tables:
        """From one padded matrix, as CompressAI's state dicts hold them.

        Parameters
        ----------
        cdf : (n, L) integer, ``_quantized_cdf``: 16 bits, the last interval is overflow
        length : (n,) integer, ``_cdf_length``: entries of each row that count, 0 and 65536 included
        offset : (n,) integer, ``_offset``: the symbol of the first interval
        """
        cdf = np.asarray(cdf)
        length, offset = _integers(length, "length"), _integers(offset, "offset")
        if cdf.ndim != 2 or not len(cdf) == length.size == offset.size:
            shapes = f"{cdf.shape}, {length.shape}, {offset.shape}"
            raise TecError(f"need cdf (n, L), length (n,) and offset (n,), got {shapes}")
        if length.size and not 0 <= length.min() <= length.max() <= cdf.shape[1]:
            raise TecError(f"CDF lengths must lie between 0 and {cdf.shape[1]}")
        rows = zip(cdf, length, offset, strict=True)
        return cls.from_cdfs((row[:n], low) for row, n, low in rows)

    @classmethod
    def concatenate(cls, parts: Sequence[Tables]) -> Tables:
        """One index space: the second part's table 0 comes right after the first part's last."""
        offsets, end = [np.zeros(1, np.int64)], 0
        for part in parts:
            offsets.append(part.offsets[1:] + end)
            end += part.cdf.size
        return cls(
            np.concatenate([p.cdf for p in parts] or [np.zeros(0, np.int32)]),
            np.concatenate(offsets),
            np.concatenate([p.lowest for p in parts] or [np.zeros(0, np.int32)]),
        )

    def to_arrays(self) -> dict[str, np.ndarray]:
        """All there is: uint16 counts of all intervals, int32 size and lowest of each table."""
        counts = np.delete(np.diff(self.cdf), self.offsets[1:-1] - 1)
        return {
            "counts": counts.astype(np.uint16),  # at least two intervals a table, so below 65536
            "size": (np.diff(self.offsets) - 1).astype(np.int32),
            "lowest": self.lowest.copy(),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Tables:
        """Inverse of ``to_arrays``; other entries are ignored."""
        missing = {"counts", "size", "lowest"} - set(arrays)
        if missing:
            raise TecError(f"tables lack {', '.join(sorted(missing))}: write them with to_arrays")
        counts, size, lowest = (_integers(arrays[n], n) for n in ("counts", "size", "lowest"))
        if size.size != lowest.size or size.min(initial=0) < 0 or size.sum() != counts.size:
            raise TecError(f"sizes of {lowest.size} tables do not add up to {counts.size} counts")
        pieces = np.split(counts, np.cumsum(size)[:-1]) if size.size else []
        cdfs = [np.concatenate([[0], np.cumsum(p)]) for p in pieces]
        return cls.from_cdfs(zip(cdfs, lowest, strict=True))

    def bits(self, index: np.ndarray, symbols: np.ndarray) -> np.ndarray:
        """Code length of each symbol under these integer tables: float64, of the symbols' shape.

        Escaped values cost what the coder spends on them. The coder's own loss comes on top.
        """
        index, symbols = np.asarray(index).astype(np.int64), np.asarray(symbols).astype(np.int64)
        if index.shape != symbols.shape:
            raise TecError(f"index {index.shape} and symbols {symbols.shape} differ in shape")
        if index.size and not 0 <= index.min() <= index.max() < len(self):
            raise TecError(f"index up to {index.max()}, but there are {len(self)} tables")
        start = self.offsets[:-1][index]
        escape = np.diff(self.offsets)[index] - 2
        k = symbols - self.lowest[index]
        above, below = k - escape, -1 - k
        outside = (above >= 0) | (below >= 0)
        where = start + np.where(outside, escape, k)
        out = PRECISION - np.log2(self.cdf[where + 1] - self.cdf[where])
        u = np.where(below >= 0, 2 * below + 1, 2 * above)[outside]
        out[outside] += ESCAPE_BITS + np.floor(np.log2(u + 1))
        return out

    @cached_property
    def packed(self) -> np.ndarray:
        """(intervals,) uint32: the start of each interval, and its count less one above bit 16."""
        lower = np.delete(self.cdf, self.offsets[1:] - 1).astype(np.uint32)
        counts = np.delete(np.diff(self.cdf, append=0), self.offsets[1:] - 1).astype(np.uint32)
        return _frozen(lower | (counts - np.uint32(1)) << np.uint32(PRECISION))

    @cached_property
    def starts(self) -> np.ndarray:
        """(tables + 1,) int64: where each table starts in ``packed``."""
        return _frozen(self.offsets - np.arange(self.offsets.size))

    @cached_property
    def lookup(self) -> np.ndarray:
        """(tables * 256,) uint16: the interval of slot 256 * b, where the decoder starts."""
        slots = np.arange(0, TOTAL, 256)
        out = np.empty((len(self), 256), np.uint16)
        for i, (start, end) in enumerate(zip(self.offsets[:-1], self.offsets[1:], strict=True)):
            out[i] = np.searchsorted(self.cdf[start:end], slots, side="right") - 1
        return _frozen(out.ravel())


def _integers(values: object, name: str) -> np.ndarray:
    array = np.asarray(values)
    if array.size and array.dtype.kind not in "iu":
        raise TecError(f"{name} must hold integers, not {array.dtype}")
    if array.ndim != 1:
        raise TecError(f"{name} must have one dimension, not shape {array.shape}")
    return array.astype(np.int64)


def _frozen(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


@cache
def shipped(family: str) -> Tables:
    """The package's tables: "gaussian" or "logistic" for the default ScaleGrid, or
    "gaussian-integers" for `tec.entropy.integers.GRID`.

    Raises
    ------
    TecError : no such family
    WeightsError : the file in the package is not the one that was released
    """
    if family not in SHIPPED_FAMILIES:
        raise TecError(f"no shipped tables {family!r}: there are {', '.join(SHIPPED_FAMILIES)}")
    data = SHIPPED.read_bytes()
    if hashlib.sha256(data).hexdigest() != SHIPPED_SHA256:
        raise WeightsError(f"{SHIPPED.name} of the package is not the released one: reinstall it")
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        return Tables.from_arrays({n: file[f"{family}.{n}"] for n in ("counts", "size", "lowest")})


# What follows makes tables, in float64, when a model is exported; it never runs while coding.


def quantise_pmf(pmf: Sequence[float] | np.ndarray, escape_mass: float = TAIL) -> np.ndarray:
    """CDF of 16 bits for these probabilities and the escape: largest remainders, no count below 1.

    Parameters
    ----------
    pmf : (n,) probabilities, not negative; need not sum to one
    escape_mass : probability of everything else, on the same scale

    Returns
    -------
    cdf : (n + 2,) int32, 0 to 65536
    """
    p = np.append(np.asarray(pmf, np.float64).ravel(), float(escape_mass))
    if not np.isfinite(p).all() or p.min() < 0 or p.sum() <= 0:
        raise TecError("probabilities must be finite, not negative, and not all zero")
    if not 2 <= p.size <= TOTAL:
        raise TecError(f"a table has 1 to {TOTAL - 1} symbols, not {p.size - 1}")
    free = np.ones(p.size, bool)  # the others are worth less than one count and get one
    while True:
        ideal = p * (TOTAL - np.count_nonzero(~free)) / p[free].sum()
        poor = free & (ideal < 1)
        if not poor.any():
            break
        free &= ~poor
    counts = np.where(free, np.floor(ideal), 1).astype(np.int64)
    remainder = np.where(free, ideal - counts, -1)
    counts[np.argsort(-remainder, kind="stable")[: TOTAL - counts.sum()]] += 1
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)


def scale_tables(family: str, scales: Sequence[float] | np.ndarray) -> Tables:
    """One table a scale: integers around zero, P(k) = F(k + 1/2) - F(k - 1/2).

    Parameters
    ----------
    family : "gaussian" (scale: standard deviation), "logistic" or "laplace" (their own parameter)
    scales : (n,) positive

    A table ends where what is left is worth half a count, or a symbol a quarter of one, or at 4095
    symbols; the escape takes the rest.
    """
    if family not in FAMILIES:
        raise TecError(f"unknown family {family!r}: one of {', '.join(FAMILIES)}")
    scales = np.asarray(scales, np.float64).ravel()
    if not (np.isfinite(scales) & (scales > 0)).all():
        raise TecError("scales must be finite and positive")
    edges = np.arange(MOST_SYMBOLS // 2 + 1) + 0.5
    tables = []
    for scale in scales:
        beyond = _upper_tail(family, edges / scale)  # beyond[r]: probability above r + 1/2
        each = beyond[:-1] - beyond[1:]
        radius = max(1, int(np.count_nonzero((2 * beyond[:-1] > TAIL) & (each > TAIL / 2))))
        half = each[:radius]
        pmf = np.concatenate([half[::-1], [1 - 2 * beyond[0]], half])
        tables.append((quantise_pmf(pmf, 2 * beyond[radius]), -radius))
    return Tables.from_cdfs(tables)


def _upper_tail(family: str, z: np.ndarray) -> np.ndarray:
    """P(X > z) of the family at scale one, for z >= 0."""
    if family == "gaussian":
        return 0.5 * np.array([math.erfc(v / math.sqrt(2)) for v in z])
    if family == "logistic":
        return np.exp(-z) / (1 + np.exp(-z))
    return 0.5 * np.exp(-z)


def write_shipped(path: str | Path) -> str:
    """Make the shipped tables; returns the file's sha256. Other tables are a new stream version."""
    from .integers import GRID, gaussian, integer_tables
    from .portable import ScaleGrid

    tables = {f: scale_tables(f, ScaleGrid().scales) for f in ("gaussian", "logistic")}
    tables["gaussian-integers"] = integer_tables(GRID, [gaussian(s) for s in GRID.scales])
    arrays: dict[str, Any] = {
        f"{family}.{name}": values
        for family, made in tables.items()
        for name, values in made.to_arrays().items()
    }
    np.savez_compressed(path, **arrays)
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
