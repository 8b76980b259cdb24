"""Arithmetic on rate-distortion curves: lists of (bpppb, PSNR in dB), in any order."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Curve = Sequence[tuple[float, float]]


def rate_at(curve: Curve, quality: float) -> float:
    """bpppb at a PSNR, interpolated in log rate; infinite outside the curve."""
    points = sorted((q, math.log(rate)) for rate, q in curve)
    q, log = zip(*points)
    return math.exp(np.interp(quality, q, log, math.inf, math.inf))


def quality_at(curve: Curve, rate: float) -> float:
    """PSNR at a rate in bpppb, interpolated in log rate; NaN outside the curve."""
    points = sorted((math.log(r), q) for r, q in curve)
    log, q = zip(*points)
    return float(np.interp(math.log(rate), log, q, math.nan, math.nan))


def best(curves: Sequence[Curve]) -> list[tuple[float, float]]:
    """At each PSNR that a point of any of the curves has, the lowest rate of them; without points
    that another one beats in both."""
    qualities = sorted({q for curve in curves for _, q in curve}, reverse=True)
    out: list[tuple[float, float]] = []
    for q in qualities:
        rate = min(rate_at(curve, q) for curve in curves)
        if not out or rate < out[-1][0]:
            out.append((rate, q))
    return out[::-1]


def bd_rate(reference: Curve, test: Curve) -> float:
    """How much larger files of ``test`` are on average at equal PSNR, in percent (negative:
    smaller).

    Bjøntegaard's delta rate (VCEG-M33, 2001) over the range of PSNR that both curves have, with
    monotone piecewise cubic (PCHIP) interpolation of the log rate in place of one cubic, as the
    common test conditions of JVET do (JVET-T2010). NaN where the curves share no range.
    """
    from scipy.interpolate import PchipInterpolator

    logs = []
    for curve in (reference, test):
        points = {q: math.log(rate) for rate, q in curve}
        if len(points) < 2:
            return math.nan
        q = sorted(points)
        logs.append((q[0], q[-1], PchipInterpolator(q, [points[x] for x in q])))
    low, high = max(x[0] for x in logs), min(x[1] for x in logs)
    if high <= low:
        return math.nan
    areas = [log.integrate(low, high) for *_, log in logs]
    return 100 * math.expm1(float(areas[1] - areas[0]) / (high - low))


def excess(reference: Curve, test: Curve, up_to: float = 45.0) -> tuple[float, float]:
    """Where ``test`` does worst against ``reference`` up to a PSNR: (percent larger, PSNR).

    Looked at every 0.1 dB of the range that both have; NaN where there is none.
    """
    low = max(min(q for _, q in curve) for curve in (reference, test))
    high = min([up_to, *(max(q for _, q in curve) for curve in (reference, test))])
    grid = np.arange(low, high + 1e-9, 0.1)
    worst = [(100 * (rate_at(test, q) / rate_at(reference, q) - 1), float(q)) for q in grid]
    return max(worst, default=(math.nan, math.nan))
