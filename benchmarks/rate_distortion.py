"""Rate and distortion of the built-in models beside other codecs, on places never trained on.

Every size is that of real bytes, every error that of decoded ones. PSNR has the peak 10000 DN, is
taken over all bands of a frame, and averaged over the frames. A frame is one date of a place;
``tt``, ``flex`` and HEVC code up to four dates of a place together, and their figures are means
over the same frames.

    python benchmarks/rate_distortion.py --data ../shared/data/val --json out.json
    python benchmarks/rate_distortion.py --data ../shared/data/val --quick

The JSON keeps every measurement: an interrupted run goes on where it was, and what depends on
weights, code or packages that have changed since is measured anew.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import report
import validation
from baselines import BASELINES
from comparing import summarise
from measuring import CODECS, MODELS, Results, jobs, settings_of
from validation import Chunk


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of validation cubes (*.zarr)"
    )
    parser.add_argument("--json", type=Path, help="figures, and measurements to go on from")
    parser.add_argument("--plot", type=Path, help="PNG of bpppb against PSNR")
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument(
        "--codecs", nargs="*", default=None, help="families of other codecs; none, one or more"
    )
    parser.add_argument("--frames", type=int, help="at most so many frames, of various sources")
    parser.add_argument(
        "--workers", type=int, default=1, help="processes; speeds count only with one"
    )
    parser.add_argument(
        "--quick", action="store_true", help="7 frames, every other setting: some two minutes"
    )
    args = parser.parse_args(argv)
    families = {codec.family for codec in BASELINES.values()}
    wanted = families if args.codecs is None else set(args.codecs)
    if wanted - families:
        parser.error(f"--codecs: choose from {', '.join(map(repr, sorted(families)))}")
    asked = [name for name, c in CODECS.items() if name in args.models or c.family in wanted]

    missing = {name: why for name in asked if (why := CODECS[name].missing())}
    names = [name for name in asked if name not in missing]
    found: dict[str, list[Chunk]] = {"frames": [], "dense": []}
    limit = args.frames or (7 if args.quick else None)
    for kind, place in validation.places(args.data, frames=limit, dates=2 if args.quick else None):
        found[kind].append(place)
    about = report.heading(names, missing, found["frames"])
    print(about)
    results = Results(args.json, args.workers)
    results.run(jobs(names, found["frames"], args.quick))
    ours = [name for name in names if name in MODELS]
    results.run(jobs([n for n in ours if n != "fp"], found["dense"], args.quick))
    summary = summarise(results, names, found, args.quick)
    print(report.text(summary))
    results.save(
        about=about.splitlines(),
        **summary,
        codecs={
            name: {
                "how": CODECS[name].how,
                "settings": settings_of(name, args.quick),
                "not available": missing.get(name),
            }
            for name in asked
        },
    )
    if args.plot:
        report.plot(summary, args.plot)


if __name__ == "__main__":
    main()
