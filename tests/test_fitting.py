"""Weights that the encoder of the residual layer fits: least squares, over what counts."""

from __future__ import annotations

import numpy as np
from tec import predictor
from tec.fitting import fit

HEIGHT, WIDTH = 90, 120
#: Of west, north, north-west, north-east; of here, west, north, east, south in another plane. West
#: and north are told of as their difference, once with each sign.
OWN = np.array([0.1, -0.1, -0.1, 0.05])
OTHER = np.array([0.5, 0.15, -0.15, 0.05, 0.02])
#: Pixels whose neighbours lie outside, in `planes` otherwise than where planes are coded.
EDGES = np.zeros((HEIGHT, WIDTH), bool)
EDGES[:, [0, 1, -2, -1]] = True


def planes(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A plane that follows from itself, from another one and noise, and that other one."""
    rng = np.random.default_rng(seed)
    other = rng.integers(0, 4000, (HEIGHT, WIDTH))
    known, plane = predictor.padded(other).astype(float), np.full((HEIGHT + 3, WIDTH + 4), 2000.0)
    near, cross = (group.taps for group in predictor.groups_of(1, False)[:3:2])
    for y in range(2, HEIGHT + 2):
        for x in range(2, WIDTH + 2):
            base, told = (p[y, x - 1] + p[y - 1, x] for p in (plane, known))
            own = np.array([2 * plane[y + i, x + j] - base for i, j in near])
            seen = np.array([2 * known[y + i, x + j] - told for i, j in cross])
            plane[y, x] = np.rint((base + OWN @ own + OTHER @ seen) / 2 + rng.normal(0, 2))
    return plane[2:-1, 2:-2].astype(np.int32), other.astype(np.int32)


def fitted(
    plane: np.ndarray, others: list[np.ndarray], **settings
) -> tuple[list[bool], list[np.ndarray]]:
    """Which groups are taken, and the weights of all, zeros where they are not."""
    groups = predictor.groups_of(len(others), False)
    known = np.stack([predictor.padded(p) for p in (np.zeros_like(plane), *others)])
    settings = {"holes": EDGES, "bound": 0, "noise": 0.0} | settings
    taken, weights = fit(predictor.padded(plane), known, (2, HEIGHT - 3), groups, **settings)
    assert weights.dtype == np.int64
    left = iter(weights / 1024)
    return taken, [
        np.array([next(left) if there else 0.0 for _ in group.taps])
        for group, there in zip(groups, taken)
    ]


def test_weights_are_found_again() -> None:
    plane, other = planes()
    unlike = np.random.default_rng(1).integers(0, 4000, plane.shape).astype(np.int32)
    taken, weights = fitted(plane, [other, unlike])
    assert taken[2:] == [True, False, False]  # neighbours farther away help before the other plane
    np.testing.assert_allclose(weights[0], OWN, atol=0.01)
    np.testing.assert_allclose(weights[1], 0, atol=0.01)
    np.testing.assert_allclose(weights[2], OTHER, atol=0.01)


def test_holes_and_copies_say_nothing() -> None:
    plane, other = planes()
    _, expected = fitted(plane, [other])
    holes = np.zeros(plane.shape, bool)
    holes[10:30, 20:60] = True
    holes[::7, ::5] = True
    spoilt = np.where(holes, 65535, plane)
    for settings in ({"holes": holes | EDGES}, {"copies": copies_of(holes)}):
        _, weights = fitted(spoilt, [other], **settings)
        np.testing.assert_allclose(np.concatenate(weights), np.concatenate(expected), atol=0.02)
    _, wrong = fitted(spoilt, [other])
    assert np.abs(wrong[0] - expected[0]).max() > 0.1


def copies_of(holes: np.ndarray) -> np.ndarray:
    """Marked as copies: holes, and all that see one west, north, north-west or north-east."""
    marked = holes.copy()
    for y, x in predictor.NEAR + predictor.FAR:
        marked |= np.roll(holes, (-y, -x), axis=(0, 1))
    return np.where(marked, predictor.AS_WEST, predictor.NEW).astype(np.uint8)


def test_noise_is_averaged_over_all_neighbours() -> None:
    plane, other = planes()
    taken, weights = fitted(plane, [other], noise=1e8)
    assert taken[1]
    # Each of the six counts as much as the others: west and north by what they have already.
    np.testing.assert_allclose(np.concatenate(weights[:2]), [0, 0, *[1 / 6] * 4], atol=0.01)
