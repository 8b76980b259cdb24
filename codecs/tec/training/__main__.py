"""``python -m tec.training``: train the built-in networks on a folder of cubes, and export them."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import cast

import torch

from ..models.compact import CompactConfig, CompactElic
from ..models.compact_tt import CompactTTConfig
from ..weights import FOLDER, load
from .data import Frame, load_frames
from .sequences import series
from .temporal import TemporalRecipe, TemporalTrainer
from .train import Recipe, Trainer


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tec.training", description=__doc__)
    parser.add_argument(
        "--levels", default="L2A,L1C", help="product levels to train on, separated by commas"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, what, steps in (
        ("fit", "transforms, elic and fp together", Recipe.steps),
        ("fit-tt", "tt on the latents of the built-in transforms", TemporalRecipe.steps),
    ):
        fit = commands.add_parser(name, help=f"train {what}")
        fit.add_argument("train", type=Path, help="folder of training cubes (*.zarr)")
        fit.add_argument("val", type=Path, help="folder of validation cubes, other places")
        fit.add_argument(
            "--out", type=Path, required=True, help="state and curves; resumed when it exists"
        )
        fit.add_argument("--steps", type=int, default=steps)
        fit.add_argument(
            "--minutes", type=float, default=math.inf, help="stop after so long; run again to go on"
        )
        fit.add_argument("--device", default="cpu")
    for name, what in (("export", "elic and fp"), ("export-tt", "tt")):
        export = commands.add_parser(
            name, help=f"write the checkpoints of {what}, with tables and margins measured"
        )
        export.add_argument("train", type=Path)
        export.add_argument("--out", type=Path, required=True, help="folder of the run")
        export.add_argument("--weights", type=Path, default=FOLDER, help="where the files go")
        if name == "export":
            export.add_argument(
                "--rates", help="λ of the gain vectors, comma-separated, when calibrated anew"
            )
    args = parser.parse_args()
    torch.set_flush_denormal(True)
    smallest = 64 if args.command.endswith("-tt") else 96
    train = list(load_frames(args.train, levels=tuple(args.levels.split(",")), smallest=smallest))
    {"fit": _fit, "fit-tt": _fit_tt, "export": _export, "export-tt": _export_tt}[args.command](
        args, train
    )


def _fit(args: argparse.Namespace, train: list[Frame]) -> None:
    val = list(load_frames(args.val, smallest=64))
    print(f"{len(train)} training frames, {len(val)} validation frames", flush=True)
    trainer = Trainer(Recipe(steps=args.steps), train, val, args.out, args.device)
    trainer.run(minutes=args.minutes)


def _fit_tt(args: argparse.Namespace, train: list[Frame]) -> None:
    places = list(series(train))
    val = [s for s in series(list(load_frames(args.val, smallest=64))) if len(s.values) > 1]
    print(f"{len(places)} training places, {len(val)} validation series", flush=True)
    elic = cast(CompactElic, load("elic", device="cpu"))
    recipe = TemporalRecipe(steps=args.steps, model=CompactTTConfig(image=elic.config))
    TemporalTrainer(recipe, elic, places, val, args.out, args.device).run(minutes=args.minutes)


def _export(args: argparse.Namespace, train: list[Frame]) -> None:
    from .export import averaged, export

    config = None
    if args.rates:
        config = CompactConfig(rates=tuple(float(v) for v in args.rates.split(",")))
    pair = averaged(args.out, config=config)
    print(json.dumps(export(pair, pair.elic.config, train, args.weights), indent=1))


def _export_tt(args: argparse.Namespace, train: list[Frame]) -> None:
    from .export_tt import averaged_tt, export_tt

    elic = cast(CompactElic, load("elic", device="cpu"))
    config = CompactTTConfig(image=elic.config)
    prior = averaged_tt(args.out, config)
    print(json.dumps(export_tt(prior, config, elic, list(series(train)), args.weights), indent=1))


if __name__ == "__main__":
    main()
