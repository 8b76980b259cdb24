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

PAIR = ("elic", "fp")
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
        fit.add_argument(
            "--further", action="store_true", help="start from the built-in weights of the models"
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
    export = commands.add_parser(
        "export", help="write the checkpoints of a run of fit or fit-tt: half precision, tables"
    )
    export.add_argument("train", type=Path, help="cubes on which tables and margins are measured")
    export.add_argument("--out", type=Path, required=True, help="folder of the run")
    export.add_argument(
        "--built-in",
        action="store_true",
        help="replace the weights of this package, in place of files in OUT for weights=",
    )
    export.add_argument(
        "--patch",
        type=Path,
        help="cube of patch 0080717, on which λ (of flex the qualities) are calibrated",
    )
    args = parser.parse_args()
    torch.set_flush_denormal(True)
    smallest = 96 if args.command == "fit" else 64
    train = list(
        load_frames(args.train, sensor=args.sensor, levels=LEVELS[args.sensor], smallest=smallest)
    )
    {
        "fit": _fit,
        "fit-tt": _fit_tt,
        "fit-published": _fit_published,
        "export": _export,
    }[args.command](args, train)


def _val(args: argparse.Namespace) -> list[Frame]:
    levels = LEVELS[args.sensor][:1]
    return list(load_frames(args.val, sensor=args.sensor, levels=levels, smallest=64))


def _fit(args: argparse.Namespace, train: list[Frame]) -> None:
    val = _val(args)
    print(f"{len(train)} training frames, {len(val)} validation frames", flush=True)
    model = CompactConfig(bands=len(train[0].values))
    start = None
    if args.further:
        known = {name: cast(Any, load(name, sensor=args.sensor, device="cpu")) for name in PAIR}
        model = known["elic"].config
        start = Pair(model)
        for name, network in known.items():
            getattr(start, name).load_state_dict(network.state_dict())
    recipe = Recipe(steps=args.steps, sensor=args.sensor, model=model)
    trainer = Trainer(recipe, train, val, args.out, args.device, start)
    trainer.run(minutes=args.minutes)


def _fit_tt(args: argparse.Namespace, train: list[Frame]) -> None:
    places = list(series(train))
    val = [s for s in series(_val(args)) if len(s.smooth) > 1]
    print(f"{len(places)} training places, {len(val)} validation series", flush=True)
    start: Any
    if args.further:
        start = cast(CompactTT, load("tt", sensor=args.sensor, device="cpu")).requires_grad_()
        config = start.sizes
    elif args.sensor == "S2L2A":
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


def _export(args: argparse.Namespace, train: list[Frame]) -> None:
    from .export import averaged, choose_qualities, choose_rates, export

    trained = averaged(args.out)
    patch = list(load_frames(args.patch, sensor=args.sensor)) if args.patch else []
    if patch and isinstance(trained, CompactTT):
        trained.sizes = replace(trained.sizes, qualities=choose_qualities(trained, patch))
    elif patch and isinstance(trained, Pair):
        rates = choose_rates(trained.elic, patch)
        for model in (trained.elic, trained.fp):
            model.config = replace(model.config, rates=rates)
    folder = FOLDER if args.built_in else args.out
    found = export(trained, train, folder, sensor=args.sensor, alone=not args.built_in)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
