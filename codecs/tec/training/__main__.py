"""``python -m tec.training``: train the built-in networks on a folder of cubes, and export them."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import torch

from ..models.compact import CompactConfig
from ..weights import FOLDER
from .data import load_frames
from .train import Recipe, Trainer


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tec.training", description=__doc__)
    parser.add_argument(
        "--levels", default="L2A,L1C", help="product levels to train on, separated by commas"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    fit = commands.add_parser("fit", help="train transforms, elic and fp together")
    fit.add_argument("train", type=Path, help="folder of training cubes (*.zarr)")
    fit.add_argument("val", type=Path, help="folder of validation cubes, other places")
    fit.add_argument(
        "--out", type=Path, required=True, help="state and curves; resumed when it exists"
    )
    fit.add_argument("--steps", type=int, default=Recipe.steps)
    fit.add_argument(
        "--minutes", type=float, default=math.inf, help="stop after so long; run again to go on"
    )
    fit.add_argument("--device", default="cpu")
    export = commands.add_parser(
        "export", help="write the checkpoints, with tables and margins measured"
    )
    export.add_argument("train", type=Path)
    export.add_argument("--out", type=Path, required=True, help="folder of the run")
    export.add_argument("--weights", type=Path, default=FOLDER, help="where the files go")
    export.add_argument(
        "--rates", help="λ of the gain vectors, comma-separated, when calibrated anew"
    )
    args = parser.parse_args()

    torch.set_flush_denormal(True)
    train = list(load_frames(args.train, levels=tuple(args.levels.split(","))))
    if args.command == "fit":
        val = list(load_frames(args.val, smallest=64))
        print(f"{len(train)} training frames, {len(val)} validation frames", flush=True)
        Trainer(Recipe(steps=args.steps), train, val, args.out, args.device).run(
            minutes=args.minutes
        )
        return

    from .export import averaged
    from .export import export as write

    config = (
        CompactConfig(rates=tuple(float(v) for v in args.rates.split(","))) if args.rates else None
    )
    pair = averaged(args.out, config=config)
    entry = write(pair, pair.elic.config, train, args.weights)
    print(json.dumps(entry, indent=1))


if __name__ == "__main__":
    main()
