"""What `speed.py` found, as tables in Markdown; and what large amounts come to."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from rivals import WAYS
from stages import STAGES
from tec import threads


def floor_text(rows: list[dict[str, Any]]) -> str:
    """The best rates that were met."""

    def most(kind: str, key: str) -> str:
        return f"{max(row[kind][key] for row in rows):.4g}"

    products = [
        f"{precision} {most('rates', precision)} GFLOP/s in one pass and "
        f"{most('rates of all', precision)} side by side"
        for precision in rows[0]["rates"]
        if precision != "copy"
    ]
    copies = f"{most('rates', 'copy')} and {most('rates of all', 'copy')} GB/s"
    return f"Matrix products run at up to: {', '.join(products)}; copies at {copies}."


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def both(row: dict[str, Any], form: Callable[[dict[str, Any]], str]) -> str:
    return " / ".join(form(row[way]) for way in WAYS)


def speed_table(rows: list[dict[str, Any]]) -> str:
    head = ["model", "device", "chunks", "bits, PSNR", "MB/s side by side", "cores busy"]
    head += ["MB/s, cores free", "of the floor", "MB/s one pass", "of the floor"]
    head += ["reference MB/s", "ours is"]
    lines = []
    for row in rows:
        psnr = f", {row['psnr']:.1f} dB" if "psnr" in row else ""
        beside = "reference" in row["encode"]
        line = [f"{row['model']}, {row['size']}", row["device"]]
        line += [f"{row['chunks in a call']} x {row['chunk']}", f"{row['bpppb']:.3f}{psnr}"]
        line += [both(row, lambda w: f"{w['side by side']:.4g}")]
        line += [both(row, lambda w: f"{w['cores busy']:.1f}")]
        line += [both(row, lambda w: f"{w['cores free']:.4g}")]
        line += [both(row, lambda w: f"{w['of the floor']:.0%}")]
        line += [both(row, lambda w: f"{w['one pass']:.4g}")]
        line += [both(row, lambda w: f"{w['of the floor, one pass']:.0%}")]
        line += [both(row, lambda w: f"{w['reference']:.3g}") if beside else ""]
        line += [both(row, lambda w: f"{w['ours is']:.3g} x") if beside else ""]
        lines.append(line)
    return table(head, lines)


def stage_table(rows: list[dict[str, Any]]) -> str:
    """ms for a MB, and the share of the rate of a matrix product."""

    def cell(found: dict[str, Any], stage: str) -> str:
        spent, share = found["stages"][stage], found["shares"].get(stage)
        return f"{spent:.2f}{f' ({share:.0%})' if share else ''}" if spent else ""

    head = ["ms for a MB", *(f"{r['model']} {way}" for r in rows for way in WAYS)]
    lines = []
    for stage in STAGES:
        cells = [cell(row[way], stage) for row in rows for way in WAYS]
        if any(cells):
            lines.append([stage, *cells])
    sums = [f"{sum(row[way]['stages'].values()):.2f}" for row in rows for way in WAYS]
    return table(head, [*lines, ["sum", *sums]])


def rival_table(rows: list[dict[str, Any]]) -> str:
    head = ["codec", "bits", "PSNR", "MB/s", "cores busy", "MB/s, cores free", "ours is"]
    lines = []
    for row in rows:
        line = [row["codec"], f"{row['bpppb']:.3f}", f"{row['psnr']:.2f}" if "psnr" in row else ""]
        line += [both(row, lambda w: f"{w['MB/s']:.4g}")]
        line += [both(row, lambda w: f"{w['cores busy']:.1f}")]
        line += [both(row, lambda w: f"{w['cores free']:.4g}")]
        line += [both(row, lambda w: f"{w['ours is']:.2f} x")]
        line += [both(row, lambda w: f"{w['ours is, cores free']:.2f} x")]
        lines.append(line)
    return table([*head, "cores free"], lines)


#: Bytes that there are to code
AMOUNTS = {
    "tile-year (10980 x 10980 x 12 x 73, uint16)": 10980 * 10980 * 12 * 73 * 2,
    "petabyte": 10**15,
}


def costs(rows: list[dict[str, Any]], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Hours and kWh of each amount, at the speeds with all cores free, or stated."""
    watts = {True: options.core_watts * threads.allowed(), False: options.gpu_watts}
    found = [
        (
            f"{row['model']}, {row['size']}",
            f"{row['device']}, measured",
            watts[row["device"] == "cpu"],
            {way: row[way]["cores free"] for way in WAYS},
        )
        for row in rows
    ]
    if options.gpu_rate:
        stated = dict(zip(WAYS, options.gpu_rate))
        found.append(("", "a GPU, stated, not measured", options.gpu_watts, stated))
    out = []
    for what, where, power, speeds in found:
        row: dict[str, Any] = {"what": what, "where": where, "watts": power, **speeds}
        for name, size in AMOUNTS.items():
            hours = {way: size / 1e6 / speed / 3600 for way, speed in speeds.items()}
            row[name] = {w: {"hours": h, "kWh": h * power / 1e3} for w, h in hours.items()}
        out.append(row)
    return out


def cost_table(rows: list[dict[str, Any]], options: argparse.Namespace) -> str:
    head = ["model", "where", "W", "MB/s"]
    for name in AMOUNTS:
        head += [f"{name}: hours", "kWh"]
    lines = []
    for row in rows:
        line = [row["what"], row["where"], f"{row['watts']:g}"]
        line.append(" / ".join(f"{row[way]:.4g}" for way in WAYS))
        for name in AMOUNTS:
            for unit in ("hours", "kWh"):
                line.append(" / ".join(f"{row[name][way][unit]:,.4g}" for way in WAYS))
        lines.append(line)
    powers = f"{options.core_watts:g} W a core, {options.gpu_watts:g} W a GPU"
    return f"{table(head, lines)}\n\nPower is assumed: {powers}, nothing for the rest of a machine."
