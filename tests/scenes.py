"""Generated Sentinel-2-like scenes, so that the suite proves itself on a fresh clone."""

from __future__ import annotations

import numpy as np


def scene(
    time: int = 2, bands: int = 12, y: int = 64, x: int = 64, *, seed: int = 0, nodata: bool = False
) -> np.ndarray:
    """(time, bands, y, x) uint16 DN: smooth fields, parcels, noise; bands and dates correlate.

    With ``nodata`` a swath edge (0) runs through every date.
    """
    rng = np.random.default_rng(seed)
    fields = sum(
        _smooth(rng.standard_normal((3, max(2, y // s + 2), max(2, x // s + 2))), y, x) * s**0.5
        for s in (8, 24, 64)
    )
    parcels = rng.standard_normal(17)[
        (np.add.outer(np.arange(y) // 13 * 5, np.arange(x) // 17 * 3)) % 17
    ]
    mix = rng.uniform(0.2, 1.0, (bands, 3))
    out = np.empty((time, bands, y, x), np.float64)
    for t in range(time):
        season = 1 + 0.15 * rng.standard_normal((bands, 1, 1))
        texture = np.tensordot(mix, fields, 1) * 60 + 250 * parcels * mix[:, :1, None]
        out[t] = (1500 + 40 * np.arange(bands)[:, None, None] + texture) * season
        out[t] += 15 * rng.standard_normal((bands, y, x))
    dn = np.clip(np.rint(out), 1, 12000).astype(np.uint16)
    if nodata:
        dn[..., np.add.outer(np.arange(y), np.arange(x)) < min(y, x) // 3] = 0
    return dn


def _smooth(coarse: np.ndarray, y: int, x: int) -> np.ndarray:
    """Bilinear interpolation of (k, a, b) to (k, y, x)."""
    i = np.linspace(0, coarse.shape[1] - 1.001, y)
    j = np.linspace(0, coarse.shape[2] - 1.001, x)
    i0, j0 = i.astype(int), j.astype(int)
    u, v = (i - i0)[:, None], j - j0
    a = coarse[:, i0][:, :, j0] * (1 - v) + coarse[:, i0][:, :, j0 + 1] * v
    b = coarse[:, i0 + 1][:, :, j0] * (1 - v) + coarse[:, i0 + 1][:, :, j0 + 1] * v
    return a * (1 - u) + b * u
