"""Weights for :mod:`tec.predictor`, as the encoder chooses them: least squares over some rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import float32, int32, int64, uint8, void

from .entropy.jit import kernel
from .predictor import ABOVE, BESIDE, FAR, LARGEST_WEIGHT, NEAR, NEW, SHIFT, Group

#: Of more pixels than these every second row is looked at: half of them say as much.
_MANY = 8192


def fit(
    plane: np.ndarray,
    planes: np.ndarray,
    rows: tuple[int, int],
    groups: Sequence[Group],
    holes: np.ndarray | None,
    bound: int,
    noise: float,
    copies: np.ndarray | None = None,
) -> tuple[list[bool], np.ndarray]:
    """Which groups to take, and their weights, by least squares over some rows.

    Parameters
    ----------
    plane : (y, x) int32, padded, the pixels that are to be coded
    planes : (1 + others, y, x) int32, padded; the others help to predict, the first is not read
    rows : first and last, exclusive
    groups : the first one is always taken
    holes : (y, x) bool, or None: pixels that say nothing
    bound : of the error
    noise : variance that the plane's decoded pixels differ by from these
    copies : (y, x), what pixels repeat, or None: those that do are not predicted
    """
    top, bottom = rows
    width = plane.shape[1] - 2 * BESIDE
    every = 2 if (bottom - top) * width > _MANY else 1
    usable = np.ones((bottom - top, width), bool)
    if holes is not None:
        around = np.pad(holes, ((1, 0), (1, 1)), mode="edge")
        bad = around[1:, 1:-1] | around[1:, :-2]
        bad |= around[:-1, 1:-1] | around[:-1, :-2] | around[:-1, 2:]
        usable &= ~bad[top:bottom]
    if copies is not None:
        usable &= copies[top:bottom] == NEW
    usable = usable[::every]

    # Twice a pixel less two neighbours (west and north); where these are the plane's own, the
    # noise of its decoded pixels is in them. The target comes last.
    taps: list[tuple[int, int, int, int]] = []
    loads, at = [], []
    near = {tap: i for i, tap in enumerate((*NEAR, *FAR))}
    for source, places, own in [*groups, Group(0, ((0, 0),), True)]:
        at.append(np.arange(len(taps), len(taps) + len(places)))
        for tap in places:
            taps.append((source, tap[0] + ABOVE, tap[1] + BESIDE, 0 if own else source))
            load = np.zeros(len(near))
            if own:
                load[[near[0, -1], near[-1, 0]]] -= 1
            if source == 0 and tap in near:
                load[near[tap]] += 2
            loads.append(load)
    features = np.empty((len(taps), *usable.shape), np.float32)
    root = np.empty(usable.shape, np.float32)
    _features(
        plane, planes, np.array(taps), top, every, bound, usable.view(np.uint8), features, root
    )
    flat = features.reshape(len(taps), -1)
    load = np.array(loads)
    matrix = (flat @ flat.T).astype(np.float64)
    matrix += noise * float(root.ravel() @ root.ravel()) * (load @ load.T)
    vector, energy = matrix[:-1, -1], matrix[-1, -1]
    count = every * int(np.count_nonzero(usable))

    def solved(taken: list[int]) -> tuple[float, np.ndarray]:
        some = np.concatenate([at[g] for g in taken])
        whole = matrix[some[:, None], some]
        ridged = whole.copy()
        diagonal = ridged.reshape(-1)[:: len(some) + 1]
        diagonal += 1e-5 * diagonal.mean() + 1e-12
        solution = np.linalg.solve(ridged, vector[some])
        rest = energy - 2 * solution @ vector[some] + solution @ whole @ solution
        return max(rest, 1e-9 * energy + 1e-30), solution

    taken = [0]
    rest, solution = solved(taken)
    for group in range(1, len(groups)):
        other, found = solved([*taken, group])
        if count / 2 * np.log2(rest / other) > 9 * len(groups[group].taps):
            taken.append(group)
            rest, solution = other, found
    quantised = np.rint(solution * (1 << SHIFT)).clip(-LARGEST_WEIGHT, LARGEST_WEIGHT)
    return [g in taken for g in range(len(groups))], quantised.astype(np.int64)


@kernel(
    void(
        int32[:, ::1],
        int32[:, :, ::1],
        int64[:, ::1],
        int64,
        int64,
        int64,
        uint8[:, :],
        float32[:, :, ::1],
        float32[:, ::1],
    )
)
def _features(plane, planes, taps, top, every, bound, usable, out, root):  # type: ignore[no-untyped-def]
    """What is seen of each pixel, times the root of its weight, which goes by the local activity.

    Parameters
    ----------
    taps : (k, 4), each one's plane, row and column from the padded pixel's, and the plane of the
        neighbours that are taken off; the first ones are `NEAR`
    usable : (y, x), pixels that count
    out : (k, y, x), filled in
    root : (y, x), filled in: the root of the weights
    """
    height, width = root.shape
    for i in range(height):
        row = top + i * every
        for x in range(width):
            root[i, x] = float32(8 + 8 * bound)
        for k in range(taps.shape[0]):
            source, y, left, base = taps[k, 0], taps[k, 1], taps[k, 2], taps[k, 3]
            seen = plane[row + y] if source == 0 else planes[source, row + y]
            north = plane[row + ABOVE - 1] if base == 0 else planes[base, row + ABOVE - 1]
            west = plane[row + ABOVE] if base == 0 else planes[base, row + ABOVE]
            for x in range(width):
                off = float32(2 * seen[x + left] - west[x + BESIDE - 1] - north[x + BESIDE])
                out[k, i, x] = off
            if k < len(NEAR):
                for x in range(width):
                    root[i, x] += abs(out[k, i, x])
        for x in range(width):
            half = np.sqrt(root[i, x])
            root[i, x] = 1 / (half * np.sqrt(half)) if usable[i, x] else float32(0)
        for k in range(taps.shape[0]):
            for x in range(width):
                out[k, i, x] *= root[i, x]
