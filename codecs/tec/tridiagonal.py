"""Least squares of an interpolation between two neighbours: one kernel."""

from __future__ import annotations

import numpy as np
from numba import float32, float64, int64, void

from .entropy.jit import kernel


@kernel(
    void(float32[:, ::1], int64[::1], float64[::1], float64[::1], float64[::1], float32[:, ::1])
)
def solve(values, below, share, diagonal, beside, out):  # type: ignore[no-untyped-def]
    """Solve the normal equations along rows, by Thomas' algorithm.

    Row i of ``values`` is (1 - share[i]) of the unknown row below[i] and share[i] of the next;
    ``diagonal`` (used up) and ``beside`` are those of the tridiagonal matrix; ``out`` starts at 0.
    """
    n, k = out.shape
    for i in range(values.shape[0]):
        j, w = below[i], np.float32(share[i])
        for c in range(k):
            out[j, c] += (np.float32(1) - w) * values[i, c]
        if w > 0:
            for c in range(k):
                out[j + 1, c] += w * values[i, c]
    for j in range(1, n):
        factor = beside[j - 1] / diagonal[j - 1]
        diagonal[j] -= factor * beside[j - 1]
        for c in range(k):
            out[j, c] -= np.float32(factor) * out[j - 1, c]
    for c in range(k):
        out[n - 1, c] /= np.float32(diagonal[n - 1])
    for j in range(n - 2, -1, -1):
        scale, up = np.float32(1 / diagonal[j]), np.float32(beside[j])
        for c in range(k):
            out[j, c] = (out[j, c] - up * out[j + 1, c]) * scale
