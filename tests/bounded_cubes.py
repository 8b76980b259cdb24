"""Planes of every kind that the residual layer knows, and cubes of them, for hypothesis."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from chunks import LAYOUTS, PATTERNS, laid_out, special
from coarse_bands import interpolated, repeated
from hypothesis import strategies as st
from scenes import scene
from tec.specials import as_bits

#: What a band can be made of.
KINDS = (
    "scene",
    "noise",
    "constant",
    "gradient",
    "repeated 2",
    "repeated 6",
    "irregular",
    "interpolated 2",
    "interpolated 3",
    "interpolated 6",
    "turned",
    "steps of 2",
    "steps of 8",
    "sparse",
    "extremes",
)


def band(kind: str, shape: tuple[int, int, int], rng: np.random.Generator) -> np.ndarray:
    """(time, y, x) int64 of 0 to 12000; "extremes" of 0 to 65535."""
    time, y, x = shape
    name, _, number = kind.partition(" ")
    if name in ("scene", "steps"):
        pixels = scene(time, 1, y, x, seed=int(rng.integers(99)))[:, 0].astype(np.int64)
        step = int(number.split()[-1]) if number else 1
        return pixels // step * step
    if name == "noise":
        return rng.integers(0, 12000, shape)
    if name == "constant":
        return np.broadcast_to(rng.integers(0, 12000, (time, 1, 1)), shape).copy()
    if name == "gradient":
        slopes = rng.integers(0, 90, (3, time, 1, 1))
        return slopes[0] * np.arange(y)[:, None] + slopes[1] * np.arange(x) + slopes[2]
    if name in ("repeated", "interpolated"):
        f = int(number)
        top, left = rng.integers(0, f, 2)
        cells = scene(time, 1, y // f + 4, x // f + 4, seed=int(rng.integers(99)))[:, 0]
        if name == "repeated":
            return repeated(cells, f, top, left, (y, x)).astype(np.int64)
        return np.rint(interpolated(cells, f, top, left, (y, x))).astype(np.int64)
    if name == "irregular":
        rows, columns = (np.sort(rng.integers(0, max(1, n // 2), n)) for n in (y, x))
        return rng.integers(0, 3000, (time, max(1, y // 2), max(1, x // 2)))[:, rows][:, :, columns]
    if name == "turned":  # the nearest pixel of a grid twice as coarse and turned
        rows = np.rint(np.add.outer(np.arange(y) * 0.49, np.arange(x) * 0.07)).astype(int)
        columns = np.rint(np.add.outer(np.arange(y) * -0.07, np.arange(x) * 0.49)).astype(int)
        return rng.integers(900, 2500, (time, 64, 64))[:, rows % 64, columns % 64]
    if name == "sparse":
        return rng.choice(np.array([3, 4, 900, 7000, 7004, 11111]), shape)
    return rng.choice(np.array([0, 1, 2, 32767, 32768, 65533, 65534, 65535]), shape)


class Case(NamedTuple):
    """A chunk, what is missing in it, and the bound in DN.

    Attributes
    ----------
    settings : of `CodecConfig`: nodata, scale, max_error
    """

    chunk: np.ndarray
    settings: dict[str, Any]


@st.composite
def cases(
    draw: st.DrawFn, *, bands: int = 3, largest: int = 40, dtypes: tuple[str, ...] = ()
) -> Case:
    """Chunks of all kinds with all kinds of bounds."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = tuple(draw(st.integers(1, n)) for n in (3, bands, largest, largest))
    time, count, y, x = shape
    kinds = [draw(st.sampled_from(KINDS)) for _ in range(count)]
    values = np.stack([band(kind, (time, y, x), rng) for kind in kinds], 1)
    if draw(st.integers(0, 3)) == 0:  # one band alike another, and dates alike
        values[:, -1] = values[:, 0] // 2 + 7
        values[-1] = values[0] + rng.integers(-2, 3, values[0].shape)
    dtype = draw(st.sampled_from(dtypes or ("u2", "i2", "f4")))
    scale = 1.0
    if dtype == "u2":
        chunk = values.clip(0, 65535).astype(dtype)
        nodata = draw(st.sampled_from([None, 0, 65535, 1000, 7002, 32768]))
    elif dtype == "i2":
        chunk = (values - draw(st.sampled_from([0, 2000, 32768]))).clip(-32768, 32767).astype(dtype)
        nodata = draw(st.sampled_from([None, 0, -9999, -32768, 32767, 1000]))
    else:
        scale = draw(st.sampled_from([1.0, 1e-4]))
        off = draw(st.sampled_from([0.0, 0.3, 3.0])) * rng.random(shape)
        chunk = ((values - 1000 + off) * scale).astype(dtype)
        nodata = draw(st.sampled_from([None, 0.0, -9999.0, np.nan, np.inf, 1000 * scale]))
    holes = _holes(draw, shape, rng)
    if nodata is not None:
        chunk[holes] = nodata
    if dtype == "f4":
        patterns = draw(st.lists(st.sampled_from(PATTERNS), max_size=3, unique=True))
        if patterns:
            some = holes & (rng.random(shape) < 0.5)
            as_bits(chunk)[some] = rng.choice(np.array(patterns, "u4"), int(some.sum()))
    bounds = st.sampled_from([0, 0, 1, 2, 2.5, 5, 20, 200, 65535])
    if dtype == "f4":
        bounds = st.sampled_from([0.1, 1, 2.5, 5, 20, 200, 65535])
    each = draw(st.lists(bounds, min_size=count, max_size=count))
    max_error = draw(st.sampled_from([each, each[0]]))
    chunk = chunk.astype(chunk.dtype.newbyteorder(draw(st.sampled_from("<>"))))
    chunk = laid_out(chunk, draw(st.sampled_from(LAYOUTS)))
    return Case(chunk, {"nodata": nodata, "scale": scale, "max_error": max_error})


def _holes(draw: st.DrawFn, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """(time, band, y, x) bool: swaths, clouds, single pixels, whole dates or bands, all."""
    holes = np.zeros(shape, bool)
    what = draw(st.sampled_from(["none", "none", "swath", "boxes", "dots", "dense", "all"]))
    if what == "swath":
        y, x = shape[2:]
        holes[..., np.add.outer(np.arange(y), np.arange(x)) < (y + x) // 3] = True
    elif what == "boxes":
        for _ in range(3):
            box = (sorted(draw(st.tuples(st.integers(0, n), st.integers(0, n)))) for n in shape)
            holes[tuple(slice(*ends) for ends in box)] = True
    elif what in ("dots", "dense"):
        holes = rng.random(shape) < (0.02 if what == "dots" else 0.7)
    elif what == "all":
        holes[:] = True
    return holes


def check_bound(back: np.ndarray, case: Case) -> None:
    """All of the promise: the bound on valid pixels, special ones bit for bit and nowhere else."""
    chunk, nodata = case.chunk, case.settings["nodata"]
    assert back.shape == chunk.shape
    assert back.dtype == chunk.dtype.newbyteorder("=")
    missing = special(chunk, nodata)
    np.testing.assert_array_equal(special(back, nodata), missing)
    native = chunk.astype(back.dtype)
    np.testing.assert_array_equal(as_bits(back)[missing], as_bits(native)[missing])
    allowed = np.broadcast_to(np.array(case.settings["max_error"], float), chunk.shape[1:2])
    for b, bound in enumerate(allowed):
        valid = ~missing[:, b]
        off = np.abs(back[:, b][valid].astype(float) - native[:, b][valid].astype(float))
        assert off.max(initial=0) <= bound * case.settings["scale"] * (1 + 1e-9)
