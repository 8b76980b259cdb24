"""What the measurements say: curves over groups of frames, and how they compare."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from curves import Curve, bd_rate, best, excess, rate_at
from measuring import CODECS, MODELS, Results, parts_of, settings_of
from validation import DATES, GROUPS, SERIES, Chunk, unusual

#: PSNR in dB at which sizes are compared
LEVELS = (36, 38, 40, 41, 42, 44, 45)
#: What the models have to stay below up to 45 dB
RIVALS = ("JPEG 2000", "JPEG 2000, all bands in one", "JPEG XL")
#: The place of the published figures, cut to 256 x 256 pixels
PATCH = "l2a_ssl4eos12v11_val_0080717"
#: Bits that the published checkpoints spend there, all dates together, and on how many dates:
#: TerraCodec's notebooks (`embed2scale`, Apache-2.0). Those of FlexTEC are means over four seasons.
PUBLISHED = (
    ("FP", "λ 2", 11584, 1),
    ("FP", "λ 10", 30944, 1),
    ("FP", "λ 40", 70080, 1),
    ("ELIC", "λ 2", 12800, 1),
    ("ELIC", "λ 10", 32544, 1),
    ("ELIC", "λ 40", 68352, 1),
    ("TT", "λ 20, first season", 53312, 1),
    ("TT", "λ 20", 53312 + 34144 + 48768 + 42720, 4),
    ("FlexTEC", "quality 1", 4 * 24368, 4),
    ("FlexTEC", "quality 2", 4 * 40280, 4),
    ("FlexTEC", "quality 8", 4 * 105512, 4),
)

#: Dates (a slice) of a chunk
Piece = tuple[Chunk, slice]
Points = list[dict[str, Any]]
Curves = dict[str, Curve]


# Curves ------------------------------------------------------------------------------------------


def point(
    results: Results, name: str, setting: float, pieces: Sequence[Piece], *, adds: bool = False
) -> dict[str, Any]:
    """Size, speed and mean measures of some dates at one setting.

    With ``adds`` a date counts what it adds to a stream, else chunks count whole.
    """
    size = samples = whole = 0
    seconds = {"encode": 0.0, "decode": 0.0}
    dates: list[dict[str, Any]] = []
    for chunk, part in pieces:
        record = results(name, setting, chunk)
        size += sum(record["adds"][part]) if adds else record["bytes"]
        samples += chunk.dn[part].size
        whole += chunk.dn.size
        for key in seconds:
            seconds[key] += record[key]
        dates += record["dates"][part]
    out: dict[str, Any] = {"setting": setting, "bpppb": 8 * size / samples}
    out["ratio"] = 16 / out["bpppb"]
    for key in ("psnr", "sam", "ms_ssim", "ndvi", "ndvi99"):
        out[key] = float(np.nanmean(np.array([date[key] for date in dates], np.float64)))
    for key in ("max", "overshoot"):
        out[key] = max(date[key] for date in dates)
    if len({len(date["bands"]) for date in dates}) == 1:
        out["bands"] = np.mean([date["bands"] for date in dates], axis=0).round(2).tolist()
    return out | {f"{key} MB/s": 2e-6 * whole / s for key, s in seconds.items()}


def points(results: Results, name: str, places: Sequence[Chunk], quick: bool) -> Points:
    """One `point` a setting, over all dates of some places."""
    pieces = [(chunk, slice(None)) for place in places for chunk in parts_of(name, place)]
    return [point(results, name, s, pieces) for s in settings_of(name, quick)]


def later_points(results: Results, name: str, places: Sequence[Chunk], quick: bool) -> Points:
    """The same over the dates from the second of each chunk on: what they add to a stream."""
    chunks = [c for place in places for c in place.chunks() if len(c.dates) > 1]
    if CODECS[name].series:
        pieces = [(chunk, slice(1, None)) for chunk in chunks]
    else:
        pieces = [(image, slice(None)) for chunk in chunks for image in chunk.images()[1:]]
    return [point(results, name, s, pieces, adds=True) for s in settings_of(name, quick)]


def curve(rows: Points) -> Curve:
    return [(row["bpppb"], row["psnr"]) for row in rows]


def families(curves: Curves) -> Curves:
    """The better of the modes of each codec, at each PSNR."""
    names: dict[str, list[Curve]] = {}
    for name, rows in curves.items():
        names.setdefault(CODECS[name].family, []).append(rows)
    return {family: best(rows) for family, rows in names.items()}


def larger(reference: Curve, test: Curve, level: float) -> float:
    """Percent that ``test`` is larger at a PSNR; NaN where one of them does not reach it."""
    rates = rate_at(reference, level), rate_at(test, level)
    return 100 * (rates[1] / rates[0] - 1) if all(map(math.isfinite, rates)) else math.nan


def at_level(rows: dict[str, Points], family: str, level: float) -> dict[str, Any] | None:
    """All measures of a codec at a PSNR, in its better mode there, interpolated in PSNR."""
    modes = {name: r for name, r in rows.items() if CODECS[name].family == family}
    rates = {name: rate_at(curve(r), level) for name, r in modes.items()}
    name = min(rates, key=rates.__getitem__)
    if not math.isfinite(rates[name]):
        return None
    chosen = sorted(modes[name], key=lambda row: row["psnr"])
    psnr = [row["psnr"] for row in chosen]
    out: dict[str, Any] = {"mode": name, "bpppb": rates[name], "ratio": 16 / rates[name]}
    for key in ("sam", "ms_ssim", "ndvi", "ndvi99", "max", "encode MB/s", "decode MB/s"):
        out[key] = float(np.interp(level, psnr, [row[key] for row in chosen]))
    bands = np.array([row["bands"] for row in chosen])
    out["bands"] = [round(float(np.interp(level, psnr, b)), 2) for b in bands.T]
    return out


# Comparisons -------------------------------------------------------------------------------------


def summarise(
    results: Results, names: Sequence[str], found: dict[str, list[Chunk]], quick: bool
) -> dict[str, Any]:
    """Everything that `text` prints and the JSON keeps."""
    frames, ours = found["frames"], [name for name in names if name in MODELS]
    out: dict[str, Any] = {"groups": {}, "series": {}}
    for title, belongs in GROUPS.items():
        chosen = [place for place in frames if belongs(place)]
        if chosen:
            out["groups"][title] = group(results, names, chosen, quick)
    if "elic" in ours:
        for title, belongs in SERIES.items():
            chosen = [p for p in frames + found["dense"] if belongs(p) and len(p.dates) > 1]
            models = [name for name in ours if MODELS[name].series]
            if chosen and models:
                out["series"][title] = series(results, models, chosen, quick)
    patch = [c for p in frames if p.place == PATCH for c in p.chunks() if c.dates == (0, 1, 2, 3)]
    out["published"] = published(results, ours, patch[0]) if patch and not quick else []
    out["unusual"] = out_of_range(results, ours, frames, quick)
    return out


def group(
    results: Results, names: Sequence[str], places: Sequence[Chunk], quick: bool
) -> dict[str, Any]:
    rows = {name: points(results, name, places, quick) for name in names}
    curves = {name: curve(r) for name, r in rows.items()}
    codecs = families(curves)
    ours = [name for name in names if name in MODELS]
    out: dict[str, Any] = {
        "frames": sum(len(place.dates) for place in places),
        "points": rows,
        "at": {
            level: {family: at_level(rows, family, level) for family in codecs} for level in LEVELS
        },
        "bd_rate": {
            rival: {n: bd_rate(codecs[rival], c) for n, c in codecs.items() if n != rival}
            for rival in RIVALS
            if rival in codecs
        },
        "worst": {
            name: {
                rival: {
                    "mean": excess(codecs[rival], curves[name]),
                    "frames": _frames(results, name, rival, names, places, quick),
                }
                for rival in RIVALS
                if rival in codecs
            }
            for name in ours
        },
        "larger": {
            f"{test} than {reference}": {
                level: larger(codecs[reference], codecs[test], level) for level in LEVELS
            }
            | {"BD-rate": bd_rate(codecs[reference], codecs[test])}
            for reference, test in (("elic", "fp"), ("tt", "flex"), ("elic", "tt"))
            if reference in codecs and test in codecs
        },
    }
    if "flex" in rows and "tt" in rows:
        out["flex"] = {
            row["setting"]: larger(codecs["tt"], [(row["bpppb"], row["psnr"])], row["psnr"])
            for row in rows["flex"]
        }
    return out


def _frames(
    results: Results,
    name: str,
    rival: str,
    names: Sequence[str],
    places: Sequence[Chunk],
    quick: bool,
) -> dict[str, tuple[float, float]]:
    """Frames that a model of images makes larger than a rival somewhere up to 45 dB: (percent,
    dB)."""
    modes = [n for n in names if CODECS[n].family == rival]
    if any(CODECS[n].series for n in (name, *modes)):
        return {}
    out = {}
    for image in (image for place in places for image in place.images()):
        own, *others = (curve(points(results, n, [image], quick)) for n in (name, *modes))
        worst = excess(best(others), own)
        if worst[0] > 0:
            out[image.name] = worst
    return out


def series(
    results: Results, models: Sequence[str], places: Sequence[Chunk], quick: bool
) -> dict[str, Any]:
    """Dates from the second of each chunk on, beside ``elic``."""
    rows = {name: later_points(results, name, places, quick) for name in ("elic", *models)}
    curves = {name: curve(r) for name, r in rows.items()}
    out: dict[str, Any] = {
        "places": len(places),
        "dates": sum(len(c.dates) - 1 for place in places for c in place.chunks()),
        "points": rows,
        "larger": {
            name: {level: larger(curves["elic"], curves[name], level) for level in LEVELS}
            | {"BD-rate": bd_rate(curves["elic"], curves[name])}
            for name in models
        },
    }
    if "tt" in models:
        chunks = [chunk for place in places for chunk in place.chunks()]
        out["told"] = {
            s: sum(told > 0 for chunk in chunks for told in results("tt", s, chunk)["told"])
            for s in settings_of("tt", quick)
        }
    return out


def published(results: Results, models: Sequence[str], patch: Chunk) -> list[dict[str, Any]]:
    """For each published bit count the setting at which ours spends as much, and the PSNR there."""
    out = []
    for model, setting, bits, dates in PUBLISHED:
        chunk = patch.part(0, dates)
        ours = {name: spending(results, name, chunk, bits) for name in models}
        out.append({"model": model, "setting": setting, "bits": bits, "dates": dates, "ours": ours})
    return out


def spending(results: Results, name: str, chunk: Chunk, bits: int) -> dict[str, float] | None:
    """λ (or the quality of ``flex`` that comes nearest), real bits of the chunk, and PSNR."""
    from scipy.optimize import brentq

    def excess_bits(log: float) -> float:
        return math.log(8 * results(name, rounded(log), chunk)["bytes"] / bits)

    def rounded(log: float) -> float:
        return float(f"{math.exp(log):.4g}")

    if name == "flex":
        setting = float(min(range(1, 17), key=lambda q: abs(excess_bits(math.log(q)))))
    else:
        low, high = (math.log(MODELS[name].settings[i]) for i in (0, -1))
        if excess_bits(low) > 0 or excess_bits(high) < 0:
            return None
        setting = rounded(brentq(excess_bits, low, high, xtol=0.004))
    record = results(name, setting, chunk)
    psnr = float(np.mean([date["psnr"] for date in record["dates"]]))
    return {"setting": setting, "bits": 8 * record["bytes"], "psnr": psnr}


def out_of_range(
    results: Results, models: Sequence[str], places: Sequence[Chunk], quick: bool
) -> list[dict[str, Any]]:
    """Frames with very bright or very dark pixels: by setting, (PSNR, DN beyond the range)."""
    out = []
    for place in places:
        for i, image in enumerate(place.images()):
            if not (why := unusual(image)):
                continue
            row: dict[str, Any] = {"frame": image.name, "why": why, "models": {}}
            for name in models:
                # the chunk that this date is in, and where
                chunk, at = image, 0
                if MODELS[name].series:
                    chunk, at = place.chunks()[i // DATES], i % DATES
                row["models"][name] = {
                    s: (date["psnr"], date["overshoot"])
                    for s in settings_of(name, quick)
                    for date in [results(name, s, chunk)["dates"][at]]
                }
            out.append(row)
    return out
