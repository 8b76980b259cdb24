"""Numbers as pictures: PNG files in data URIs, colours for errors, histograms in SVG.

PNG is written here: it takes zlib and a page of code, and lossless WebP was no more than a fifth
smaller on images of Sentinel-2.
"""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np

#: Colours of errors from too dark over none to too bright (ColorBrewer's RdBu, turned round):
#: the two ends differ in lightness of hue for all common kinds of colour blindness.
_SIGNED = (
    (5, 48, 97),
    (33, 102, 172),
    (67, 147, 195),
    (146, 197, 222),
    (247, 247, 247),
    (244, 165, 130),
    (214, 96, 77),
    (178, 24, 43),
    (103, 0, 31),
)
#: How many colours errors get: odd, so that 0 has one.
STEPS = 33


def png(pixels: np.ndarray, palette: np.ndarray | None = None) -> bytes:
    """A PNG file in which 0 (in all channels) is transparent.

    Parameters
    ----------
    pixels : (y, x) or (y, x, 3) uint8
    palette : (n, 3) uint8, the colours of values 0 to n - 1; else (y, x) is grey
    """
    height, width = pixels.shape[:2]
    rgb = pixels.ndim == 3
    kind = 2 if rgb else 0 if palette is None else 3
    transparent = bytes(6 if rgb else 2 if palette is None else 1)
    chunks = [(b"IHDR", struct.pack(">2I5B", width, height, 8, kind, 0, 0, 0))]
    if palette is not None:
        chunks.append((b"PLTE", palette.astype(np.uint8).tobytes()))
    rows = _filtered(pixels.reshape(height, -1), 3 if rgb else 1)
    chunks += [(b"tRNS", transparent), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


def _filtered(rows: np.ndarray, step: int) -> bytes:
    """Each row by the filter that leaves the least (PNG specification, section 9), its number
    first; ``step`` : bytes a pixel."""
    x = rows.astype(np.int16)
    left, up, corner = (np.zeros_like(x) for _ in range(3))
    left[:, step:] = x[:, :-step]
    up[1:] = x[:-1]
    corner[1:, step:] = x[:-1, :-step]
    near_left, near_up, near_corner = (
        np.abs(left + up - corner - other) for other in (left, up, corner)
    )
    paeth = np.where(
        (near_left <= near_up) & (near_left <= near_corner),
        left,
        np.where(near_up <= near_corner, up, corner),
    )
    guesses = (np.zeros_like(x), left, up, (left + up) // 2, paeth)
    left_over = np.stack([x - guess for guess in guesses]).astype(np.uint8)
    cost = np.abs(left_over.astype(np.int8).astype(np.int32)).sum(axis=2)
    best = cost.argmin(axis=0)
    chosen = left_over[best, np.arange(len(x))]
    return np.concatenate([best[:, None].astype(np.uint8), chosen], axis=1).tobytes()


def uri(data: bytes) -> str:
    """A PNG file as the address of an image."""
    return "data:image/png;base64," + base64.b64encode(data).decode()


def stretch(planes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """DN that become black and white, for each plane of (n, y, x): the darkest and brightest 2 %
    are left out. At least 100 DN apart, so that noise on water stays noise."""
    low, high = np.zeros(len(planes)), np.full(len(planes), 100.0)
    for i, plane in enumerate(planes):
        there = plane[~np.isnan(plane)]
        if there.size:
            low[i], high[i] = np.percentile(there, (2, 98))
    wider = np.maximum(100.0 - (high - low), 0) / 2
    return low - wider, high + wider


def shown(planes: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """(n, y, x) DN -> (y, x) or (y, x, n) uint8 from 1 to 255; 0 where a plane is NaN."""
    low, high = low[:, None, None], high[:, None, None]
    with np.errstate(invalid="ignore"):
        levels = np.clip(np.rint(1 + 254 * (planes - low) / (high - low)), 1, 255)
    out = np.where(np.isnan(planes).any(axis=0), 0, levels).astype(np.uint8)
    return out[0] if len(out) == 1 else np.ascontiguousarray(out.transpose(1, 2, 0))


def colours() -> np.ndarray:
    """(STEPS + 1, 3) uint8: transparent, then errors from -limit to limit."""
    at = np.linspace(0, len(_SIGNED) - 1, STEPS)
    anchors = np.array(_SIGNED, float)
    steps = np.stack([np.interp(at, np.arange(len(_SIGNED)), c) for c in anchors.T], axis=1)
    return np.concatenate([[[0, 0, 0]], np.rint(steps)]).astype(np.uint8)


def signed(errors: np.ndarray, limit: float) -> np.ndarray:
    """(y, x) DN -> places in `colours`; what is beyond the limit gets the last colour."""
    half = STEPS // 2
    with np.errstate(invalid="ignore"):
        steps = np.clip(np.rint(errors / (limit or 1.0) * half), -half, half) + half + 1
    return np.where(np.isnan(errors), 0, steps).astype(np.uint8)


def nice(value: float) -> float:
    """The next larger one of 1, 2, 5, 10, 20, 50, ...; 0 stays 0.

    Examples
    --------
    >>> nice(34.0), nice(0.0), nice(500.0)
    (50.0, 0.0, 500.0)
    """
    if not value > 0:
        return 0.0
    power = 10.0 ** np.floor(np.log10(value))
    return float(next(m * power for m in (1, 2, 5, 10) if m * power >= value * (1 - 1e-9)))


def bars(counts: np.ndarray, logarithmic: bool) -> str:
    """Path of an SVG of 400 x 100 units: bars from the bottom up, of the same width."""
    heights = _heights(counts, logarithmic)
    width = 400 / len(heights)
    steps = "".join(f"V{100 - h:.1f}H{(i + 1) * width:.1f}" for i, h in enumerate(heights))
    return f"M0 100{steps}V100Z"


def line(counts: np.ndarray, top: float) -> str:
    """Path through the tops of such bars, the highest of which would be ``top``."""
    width = 400 / len(counts)
    points = (
        f"{(i + 0.5) * width:.1f} {100 - 100 * float(n) / (top or 1):.1f}"
        for i, n in enumerate(counts)
    )
    return "M" + "L".join(points)


def _heights(counts: np.ndarray, logarithmic: bool) -> np.ndarray:
    values = np.log1p(counts) if logarithmic else np.asarray(counts, float)
    return 100 * values / (values.max() or 1)


def fewer(counts: np.ndarray, first: int, last: int, most: int) -> tuple[np.ndarray, int]:
    """Bins from first to last (included) put together to at most so many, and how many make one.

    What is before the first and behind the last is left out.
    """
    some = counts[first : last + 1]
    n = -(-len(some) // most)
    return np.add.reduceat(some, np.arange(0, len(some), n)), n
