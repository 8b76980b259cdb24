"""Chunks of every dtype, byte order, memory layout and kind of hole, for hypothesis."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from tec.specials import as_bits

# NaN: quiet, negative, with payloads, signalling; then infinities.
PATTERNS = [0x7FC00000, 0xFFC00000, 0x7FC12345, 0xFFFFFFFF, 0x7F800001, 0x7F800000, 0xFF800000]
LAYOUTS = ["C", "F", "transposed", "reversed", "every other"]


def laid_out(array: np.ndarray, how: str) -> np.ndarray:
    """Equal values in another memory layout."""
    if how == "F":
        return np.asfortranarray(array)
    if how == "transposed":
        return np.ascontiguousarray(array.transpose(2, 3, 0, 1)).transpose(2, 3, 0, 1)
    if how == "reversed":
        return np.ascontiguousarray(array[:, ::-1, ::-1, ::-1])[:, ::-1, ::-1, ::-1]
    if how == "every other":
        wide = np.zeros((*array.shape[:3], 2 * array.shape[3]), array.dtype)
        as_bits(wide)[..., ::2] = as_bits(array)
        return wide[..., ::2]
    return array


@st.composite
def chunks(draw: st.DrawFn, largest: int = 40) -> tuple[np.ndarray, float | None]:
    """A chunk of any dtype, byte order and layout with many kinds of holes; its nodata."""
    kind = draw(st.sampled_from(["u2", "i2", "f4"]))
    shape = tuple(draw(st.integers(1, n)) for n in (3, 4, largest, largest))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    low, high = (-2000, 12000) if kind != "u2" else (0, 12000)
    chunk = rng.integers(low, high, shape).astype(kind)
    nodata: float | None = draw(
        st.sampled_from(
            {"u2": [None, 0, 65535, 500], "i2": [None, 0, -9999, -32768, 32767]}.get(
                kind, [None, 0.0, -9999.0, np.nan, np.inf, 0.1]
            )
        )
    )
    holes = np.zeros(shape, bool)
    for _ in range(draw(st.integers(0, 3))):
        part = tuple(
            slice(*sorted(draw(st.tuples(st.integers(0, n), st.integers(0, n))))) for n in shape
        )
        holes[part] = True
    holes |= rng.random(shape) < draw(st.sampled_from([0, 0, 0.01, 0.5, 1]))
    if kind == "f4":
        patterns = draw(st.lists(st.sampled_from(PATTERNS), max_size=len(PATTERNS), unique=True))
        patterns += [int(as_bits(np.array(nodata, "f4"))[()])] if nodata is not None else []
        patterns += [0x80000000] if nodata == 0 else []  # -0.0 equals 0.0
        if draw(st.integers(0, 9)) == 0:
            patterns += list(range(0x7FC00001, 0x7FC00040))
        if patterns:
            as_bits(chunk)[holes] = rng.choice(np.array(patterns, "u4"), int(holes.sum()))
    elif nodata is not None:
        chunk[holes] = nodata
    chunk = chunk.astype(chunk.dtype.newbyteorder(draw(st.sampled_from("<>"))))
    return laid_out(chunk, draw(st.sampled_from(LAYOUTS))), nodata


def special(chunk: np.ndarray, nodata: float | None) -> np.ndarray:
    """Which pixels are special, said in another way than the library says it."""
    values = chunk.astype(chunk.dtype.newbyteorder("="))
    where = np.isnan(values) | np.isinf(values) if values.dtype.kind == "f" else values != values
    if nodata is not None:
        with np.errstate(invalid="ignore"):
            where = where | (values == values.dtype.type(nodata))
    return where


def native_bits(chunk: np.ndarray) -> np.ndarray:
    bits = as_bits(chunk)
    return bits.astype(bits.dtype.newbyteorder("="))
