"""The comparison in words, as tables and as a plot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from comparing import LEVELS, PATCH, curve, families
from measuring import CODECS, MODELS
from validation import Chunk


def heading(names: Sequence[str], missing: dict[str, str], places: Sequence[Chunk]) -> str:
    import torch

    packages = sorted({package for name in names for package in CODECS[name].packages})
    lines = [
        "PSNR, SAM, NDVI errors and MS-SSIM (red, green, blue; five scales, or as many as fit in "
        "frames under 176 pixels): means over frames; largest errors: the largest of all frames",
        f"{sum(len(p.dates) for p in places)} frames of {len(places)} places; "
        f"torch on {torch.get_num_threads()} threads, other codecs on one; "
        + ", ".join(f"{package} {version(package)}" for package in packages),
        *(f"  {name}: {CODECS[name].how}" for name in names),
        *(f"  {name}: not available: {why}" for name, why in missing.items()),
    ]
    return "\n".join(lines)


def text(summary: dict[str, Any]) -> str:
    lines: list[str] = []
    for title, data in summary["groups"].items():
        lines += ["", f"{title}: {data['frames']} frames", *_group_lines(data)]
    for title, data in summary["series"].items():
        lines += ["", *_series_lines(title, data)]
    if summary["published"]:
        lines += ["", f"{PATCH}, 256 x 256: where ours spends as many bits as was published"]
        lines += map(_published_line, summary["published"])
    else:
        lines += ["", f"bit counts of {PATCH}: only without --quick, and with its four dates"]
    if summary["unusual"]:
        lines += ["", "frames out of the ordinary: setting: PSNR (DN beyond the frame's range)"]
    for row in summary["unusual"]:
        lines.append(f"  {row['frame']}: {row['why']}")
        for name, settings in row["models"].items():
            cells = (f"{s:g}: {psnr:.1f} ({over:.0f})" for s, (psnr, over) in settings.items())
            lines.append(f"    {name:5}" + "  ".join(cells))
    return "\n".join(lines)


def _number(value: float | None, form: str = ".2f", unit: str = "") -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:{form}}{unit}"


def _table(head: str, columns: Sequence[Any], rows: dict[str, Sequence[str]]) -> list[str]:
    lines = [f"  {head:29}" + "".join(f"{column!s:>9}" for column in columns)]
    return lines + [
        f"  {name:29}" + "".join(f"{c:>9}" for c in cells) for name, cells in rows.items()
    ]


def _group_lines(data: dict[str, Any]) -> list[str]:
    lines = ["", "  setting: bpppb, PSNR"]
    for name, rows in data["points"].items():
        cells = (f"{r['setting']:g}: {r['bpppb']:.4f} {r['psnr']:.2f}" for r in rows)
        lines.append(f"  {name:29}" + "  ".join(cells))
    codecs = list(data["at"][LEVELS[0]])
    ours = [name for name in codecs if name in MODELS]
    lines += ["", *_table(
        "bpppb at dB", LEVELS,
        {c: [_number((data["at"][q][c] or {}).get("bpppb"), ".4f") for q in LEVELS]
         for c in codecs},
    )]  # fmt: skip
    for name in ours:
        lines += ["", *_table(
            f"times smaller: {name}, at dB", LEVELS,
            {c: [_times(data["at"][q], c, name) for q in LEVELS] for c in codecs if c != name},
        )]  # fmt: skip
    lines += ["", *_table(
        "at 41 dB", ("bpppb", "ratio", "SAM °", "MS-SSIM", "NDVI", "NDVI 99%", "max DN", "enc MB/s",
                     "dec MB/s"),
        {c: _measures(data["at"][41][c]) for c in codecs},
    )]  # fmt: skip
    bands = [b for c in codecs if data["at"][41][c] for b in [data["at"][41][c]["bands"]]]
    if bands:
        lines += ["", *_table(
            "PSNR of each band at 41 dB", [f"band {i + 1}" for i in range(len(bands[0]))],
            {c: [_number(b, ".1f") for b in data["at"][41][c]["bands"]]
             for c in codecs if data["at"][41][c]},
        )]  # fmt: skip
    rivals = list(data["bd_rate"])
    lines += ["", *_table(
        "BD-rate in % against", [f"({i + 1})" for i in range(len(rivals))],
        {c: [_number(data["bd_rate"][r].get(c), ".1f") for r in rivals] for c in codecs},
    )]  # fmt: skip
    lines += [f"  ({i + 1}) {rival}" for i, rival in enumerate(rivals)] + [""]
    for name, worst in data["worst"].items():
        lines += [_worst_line(name, rival, w) for rival, w in worst.items()]
    for what, levels in data["larger"].items():
        lines.append(f"  {what}: larger by {_levels(levels)}")
    if "flex" in data:
        cells = (f"{_number(v, '+.1f')} % at {q:g}" for q, v in data["flex"].items())
        lines.append("  flex than tt at equal PSNR, by quality: larger by " + ", ".join(cells))
    return lines


def _levels(levels: dict[Any, float]) -> str:
    """Per cents, by PSNR or as BD-rate."""
    return ", ".join(
        f"{_number(v, '+.1f')} % {q if q == 'BD-rate' else f'at {q} dB'}" for q, v in levels.items()
    )


def _times(at: dict[str, Any], codec: str, name: str) -> str:
    if not at[codec] or not at[name]:
        return "-"
    return f"{at[codec]['bpppb'] / at[name]['bpppb']:.2f}x"


def _measures(row: dict[str, Any] | None) -> list[str]:
    forms = {"bpppb": ".4f", "ratio": ".1f", "sam": ".2f", "ms_ssim": ".5f", "ndvi": ".4f",
             "ndvi99": ".4f", "max": ".0f", "encode MB/s": ".1f", "decode MB/s": ".1f"}  # fmt: skip
    return [_number(row[key], form) if row else "-" for key, form in forms.items()]


def _worst_line(name: str, rival: str, worst: dict[str, Any]) -> str:
    percent, level = worst["mean"]
    word = "larger" if percent > 0 else "smaller"
    line = f"  {name} against {rival}, up to 45 dB: "
    if math.isnan(percent):
        return line + "no PSNR in common"
    line += f"{abs(percent):.0f} % {word} where it does worst ({level:.1f} dB)"
    if worst["frames"]:
        frame, (most, at) = max(worst["frames"].items(), key=lambda item: item[1][0])
        line += f"; larger somewhere on {len(worst['frames'])} frames (most: {most:.0f} % on "
        line += f"{frame} at {at:.1f} dB)"
    return line


def _series_lines(title: str, data: dict[str, Any]) -> list[str]:
    lines = [
        f"{title}: {data['places']} places, {data['dates']} dates from the second of a chunk on"
    ]
    for name, rows in data["points"].items():
        cells = (f"{r['setting']:g}: {r['bpppb']:.4f} {r['psnr']:.2f}" for r in rows)
        lines.append(f"  {name:5}" + "  ".join(cells))
    for name, levels in data["larger"].items():
        lines.append(f"  {name} against elic: {_levels(levels)}")
    if "told" in data:
        cells = (f"{s:g}: {n}" for s, n in data["told"].items())
        lines.append("  dates that tt codes with the dates before: " + "  ".join(cells))
    return lines


def _published_line(row: dict[str, Any]) -> str:
    cells = []
    for name, found in row["ours"].items():
        unit = "quality" if name == "flex" else "λ"
        cells.append(
            f"{name} {unit} {found['setting']:.3g}: {found['bits']} bits, {found['psnr']:.2f} dB"
            if found
            else f"{name}: out of reach"
        )
    what = f"{row['model']} {row['setting']}: {row['bits']} bits on {row['dates']} dates"
    return f"  {what:45}" + "   ".join(cells)


#: Colour and kind of line of each codec; the models are in reds
_LINES = {
    "elic": ("#c1121f", "-"),
    "fp": ("#f4845f", "-"),
    "tt": ("#780000", "--"),
    "flex": ("#b5179e", "--"),
    "JPEG 2000": ("tab:blue", "-"),
    "JPEG 2000, all bands in one": ("tab:blue", "--"),
    "HTJ2K": ("tab:cyan", "-"),
    "KLT + JPEG 2000": ("tab:blue", ":"),
    "JPEG XL": ("tab:green", "-"),
    "WebP": ("tab:olive", "-"),
    "HEVC": ("tab:orange", "-"),
    "HEVC, all in one video": ("tab:orange", "--"),
    "SZ3": ("tab:gray", "-"),
    "SPERR": ("tab:purple", "-"),
    "ZFP": ("tab:gray", "--"),
    "LERC": ("tab:gray", ":"),
}


def plot(summary: dict[str, Any], path: Path) -> None:
    """bpppb (log) against PSNR over all frames, the better mode of each codec."""
    from matplotlib.figure import Figure

    data = summary["groups"]["all places"]
    codecs = families({name: curve(rows) for name, rows in data["points"].items()})
    figure = Figure(figsize=(9.5, 5.5), layout="constrained")
    axes = figure.subplots()
    for name, rows in codecs.items():
        rates, psnr = zip(*sorted(rows))
        ours = {"marker": "o", "ms": 4, "lw": 2.4, "zorder": 3} if name in MODELS else {"lw": 1.4}
        color, kind = _LINES[name]
        axes.plot(rates, psnr, kind, color=color, label=name, **ours)
    axes.set_xscale("log")
    axes.set_ylim(30, 50)
    axes.set_xlim(0.005, 4)
    ticks = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 4)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.set_xlabel("bits per pixel per band")
    axes.set_ylabel("PSNR in dB (peak 10000 DN)")
    axes.set_title(f"Sentinel-2 L2A, 12 bands, {data['frames']} frames never trained on", size=11)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8, frameon=False)
    figure.savefig(path, dpi=130)
