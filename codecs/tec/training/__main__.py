"""``python -m tec.training``: train the built-in networks on a folder of cubes, and export them."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch

from ..models.compact import CompactConfig, CompactElic
from ..models.compact_tt import CompactTT, CompactTTConfig
from ..weights import FOLDER, load
from .data import Frame, load_frames
from .published import PublishedRecipe, PublishedTrainer
from .sequences import series
from .temporal import TemporalRecipe, TemporalTrainer, extend_tt
from .train import Pair, Recipe, Trainer

LEVELS = {"S2L2A": ("L2A", "L1C"), "S2L1C": ("L1C",)}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tec.training", description=__doc__)
    parser.add_argument("--sensor", choices=sorted(LEVELS), default="S2L2A")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, what, steps in (
        ("fit", "transforms, elic and fp together", Recipe.steps),
        (
            "fit-tt",
            "tt over built-in transforms, from elic (S2L1C: from the tt of S2L2A)",
            TemporalRecipe.steps,
        ),
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
    published = commands.add_parser(
        "fit-published", help="train one checkpoint of the published size, end to end"
    )
    published.add_argument("model", choices=("fp", "elic", "tt", "flex"))
    published.add_argument("train", type=Path)
    published.add_argument("val", type=Path)
    published.add_argument("--out", type=Path, required=True)
    published.add_argument("--lambda", dest="lmbda", type=float, default=PublishedRecipe.lmbda)
    published.add_argument("--steps", type=int, default=PublishedRecipe.steps)
    published.add_argument("--batch", type=int, default=PublishedRecipe.batch)
    published.add_argument("--size", type=int, default=PublishedRecipe.size)
    published.add_argument("--minutes", type=float, default=math.inf)
    published.add_argument("--device", default="cpu")
    for name, what in (("export", "elic and fp"), ("export-tt", "tt and flex")):
        export = commands.add_parser(
            name, help=f"write the checkpoints of {what}, with tables and margins measured"
        )
        export.add_argument("train", type=Path)
        export.add_argument("--out", type=Path, required=True, help="folder of the run")
        export.add_argument("--weights", type=Path, default=FOLDER, help="where the files go")
        export.add_argument(
            "--rates", help="λ of the gain vectors, comma-separated, when calibrated anew"
        )
    args = parser.parse_args()
    torch.set_flush_denormal(True)
    smallest = 64 if args.command.endswith("-tt") else 96
    train = list(
        load_frames(args.train, sensor=args.sensor, levels=LEVELS[args.sensor], smallest=smallest)
    )
    {
        "fit": _fit,
        "fit-tt": _fit_tt,
        "fit-published": _fit_published,
        "export": _export,
        "export-tt": _export_tt,
    }[args.command](args, train)


def _val(args: argparse.Namespace) -> list[Frame]:
    levels = LEVELS[args.sensor][:1]
    return list(load_frames(args.val, sensor=args.sensor, levels=levels, smallest=64))


def _fit(args: argparse.Namespace, train: list[Frame]) -> None:
    val = _val(args)
    print(f"{len(train)} training frames, {len(val)} validation frames", flush=True)
    model = CompactConfig(bands=len(train[0].values))
    recipe = Recipe(steps=args.steps, sensor=args.sensor, model=model)
    Trainer(recipe, train, val, args.out, args.device).run(minutes=args.minutes)


def _fit_tt(args: argparse.Namespace, train: list[Frame]) -> None:
    places = list(series(train))
    val = [s for s in series(_val(args)) if len(s.smooth) > 1]
    print(f"{len(places)} training places, {len(val)} validation series", flush=True)
    start: Any
    if args.sensor == "S2L2A":
        start = cast(CompactElic, load("elic", device="cpu"))
        config = CompactTTConfig(image=start.config)
    else:
        source = cast(CompactTT, load("tt", device="cpu"))
        image = replace(source.config, bands=len(train[0].values))
        config = replace(source.sizes, image=image, qualities=())
        start = CompactTT(config)
        extend_tt(source, start, train, args.sensor)
    recipe = TemporalRecipe(steps=args.steps, model=config)
    trainer = TemporalTrainer(recipe, start, places, val, args.out, args.device)
    trainer.run(minutes=args.minutes)


def _fit_published(args: argparse.Namespace, train: list[Frame]) -> None:
    temporal = args.model in ("tt", "flex")
    data: list[Any] = [list(series(part)) if temporal else part for part in (train, _val(args))]
    recipe = PublishedRecipe(
        model=args.model,
        lmbda=args.lmbda,
        steps=args.steps,
        batch=args.batch,
        size=args.size,
        sensor=args.sensor,
    )
    trainer = PublishedTrainer(recipe, data[0], data[1], args.out, args.device)
    trainer.run(minutes=args.minutes)


def _image(args: argparse.Namespace, train: list[Frame]) -> CompactConfig:
    config = CompactConfig(bands=len(train[0].values))
    if args.rates:
        config = replace(config, rates=tuple(float(v) for v in args.rates.split(",")))
    return config


def _export(args: argparse.Namespace, train: list[Frame]) -> None:
    from .export import averaged, export

    pair = averaged(args.out, Pair(_image(args, train)))
    print(json.dumps(export(pair, train, args.weights, sensor=args.sensor), indent=1))


def _export_tt(args: argparse.Namespace, train: list[Frame]) -> None:
    from .export import averaged, choose_qualities, export

    image = _image(args, train)
    tt = averaged(args.out, CompactTT(CompactTTConfig(image=image)))
    if args.sensor == "S2L2A":
        tt.sizes = replace(tt.sizes, qualities=choose_qualities(tt, train))
    print(json.dumps(export(tt, train, args.weights, sensor=args.sensor), indent=1))


if __name__ == "__main__":
    main()
