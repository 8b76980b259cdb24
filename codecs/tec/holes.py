"""Filling holes with something cheap to code: a membrane stretched between the valid pixels.

Only the encoder does this, and what it writes into a hole is never seen: it need not be portable.
"""

from __future__ import annotations

import numpy as np
from numba import boolean, float32, types, void

from .entropy.jit import kernel


def fill_holes(plane: np.ndarray, holes: np.ndarray) -> None:
    """Fill the holes of one plane in place, smoothly (pull, push, relax).

    Parameters
    ----------
    plane : (y, x) float32; what stands in the holes does not matter
    holes : (y, x) bool, at least one False
    """
    # Pull: halve until no hole is left. A coarse pixel is the mean of its valid children.
    levels = [(plane, np.ascontiguousarray(holes))]
    while levels[-1][1].any():
        levels.append(_halve(*levels[-1]))
    # Push: fill each level from the coarser one, and relax once (more brings next to nothing).
    for (fine, missing), (coarse, _) in zip(levels[-2::-1], levels[:0:-1], strict=True):
        _push(fine, missing, coarse)


@kernel(types.Tuple((float32[:, ::1], boolean[:, ::1]))(float32[:, :], boolean[:, ::1]))
def _halve(plane, holes):  # type: ignore[no-untyped-def]
    height, width = plane.shape
    coarse = np.zeros(((height + 1) // 2, (width + 1) // 2), np.float32)
    missing = np.zeros(coarse.shape, np.bool_)
    for y in range(coarse.shape[0]):
        for x in range(coarse.shape[1]):
            total, count = np.float32(0), 0
            for i in range(2 * y, min(2 * y + 2, height)):
                for j in range(2 * x, min(2 * x + 2, width)):
                    if not holes[i, j]:
                        total += plane[i, j]
                        count += 1
            if count > 0:
                coarse[y, x] = total / count
            else:
                missing[y, x] = True
    return coarse, missing


@kernel(void(float32[:, :], boolean[:, ::1], float32[:, ::1]))
def _push(plane, holes, coarse):  # type: ignore[no-untyped-def]
    height, width = plane.shape
    rows, columns = coarse.shape
    for y in range(height):
        i = y // 2
        k = min(max(i + 2 * (y % 2) - 1, 0), rows - 1)  # the second nearest coarse row
        for x in range(width):
            if holes[y, x]:
                j = x // 2
                m = min(max(j + 2 * (x % 2) - 1, 0), columns - 1)
                near = np.float32(0.75) * coarse[i, j] + np.float32(0.25) * coarse[i, m]
                far = np.float32(0.75) * coarse[k, j] + np.float32(0.25) * coarse[k, m]
                plane[y, x] = np.float32(0.75) * near + np.float32(0.25) * far
    for y in range(height):
        for x in range(width):
            if holes[y, x]:
                total, count = np.float32(0), 0
                if y > 0:
                    total += plane[y - 1, x]
                    count += 1
                if y + 1 < height:
                    total += plane[y + 1, x]
                    count += 1
                if x > 0:
                    total += plane[y, x - 1]
                    count += 1
                if x + 1 < width:
                    total += plane[y, x + 1]
                    count += 1
                if count > 0:
                    plane[y, x] = total / count
