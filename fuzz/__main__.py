"""Many cases in a process that may crash or hang: it is started again behind the case that did."""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

#: Environment of a process whose memory is measured: glibc then gives back at once what is freed.
EXACT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
#: Seconds that one case may take. The largest shapes that are decoded take some.
LIMIT = 60
#: Cases between two reports of the worker.
BATCH = 500


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--case", type=int, help="run this one case here, with its traceback")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds a case may take")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return _work(args)
    with tempfile.TemporaryDirectory() as folder:
        args.folder = Path(folder)
        if args.case is not None:
            from . import cases, corpus

            report = cases.run(args.seed, [args.case], corpus.build(args.folder))
            print(*report.verdicts, *(what for *_, what in report.findings), sep="\n")
            return bool(report.findings)
        return _supervise(args)


def _work(args: argparse.Namespace) -> int:
    """Cases in this process: a line of JSON for each batch, the number of the case in a file."""
    from . import cases, corpus

    specimens = corpus.build(args.folder)
    with (args.folder / "case").open("r+b", buffering=0) as file:

        def each(number: int) -> None:
            os.pwrite(file.fileno(), b"%20d" % number, 0)
            faulthandler.dump_traceback_later(args.limit, exit=True)

        for start in range(args.first, args.first + args.cases, BATCH):
            stop = min(start + BATCH, args.first + args.cases)
            report = cases.run(args.seed, range(start, stop), specimens, each)
            faulthandler.cancel_dump_traceback_later()
            values = {
                "stop": stop,
                "verdicts": [[*key, n] for key, n in report.verdicts.items()],
                "slowest": report.slowest,
                "findings": report.findings,
                "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            }
            print(json.dumps(values), flush=True)
    return 0


def _supervise(args: argparse.Namespace) -> int:
    """All cases, in workers; prints findings as they come, a table at the end."""
    verdicts: Counter[tuple[str, str]] = Counter()
    findings, slowest, peak = 0, [0.0, -1, ""], 0
    began, environment = time.monotonic(), {**os.environ, **EXACT}
    todo = [(args.first, args.first + args.cases)]
    while todo:
        at, end = todo.pop()
        if at >= end:
            continue
        (args.folder / "case").write_bytes(b"%20d" % at)
        command = [sys.executable, "-m", "fuzz", "--worker", "--folder", str(args.folder)]
        command += ["--first", str(at), "--cases", str(end - at)]
        command += ["--seed", str(args.seed), "--limit", str(args.limit)]
        with (args.folder / "stderr").open("w+") as errors:
            worker = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
            )
            for line in worker.stdout or ():
                values = json.loads(line)
                at = values["stop"]
                verdicts.update({(kind, what): n for kind, what, n in values["verdicts"]})
                slowest, peak = max(slowest, values["slowest"]), max(peak, values["peak"])
                findings += len(values["findings"])
                for number, kind, name, what in values["findings"]:
                    print(f"case {number} ({kind} of {name}):\n{what}", flush=True)
                print(
                    f"{verdicts.total()} cases, {time.monotonic() - began:.0f} s", file=sys.stderr
                )
            if worker.wait():
                errors.seek(0)
                crashed = int((args.folder / "case").read_bytes())
                how = f"status {worker.returncode}\n{errors.read()[-4000:]}"
                print(f"case {crashed}: the process ended with {how}", flush=True)
                verdicts["?", "FINDING the process ended"] += 1
                findings += 1
                todo += [(crashed + 1, end), (at, crashed)]  # its batch was not reported
    _print_table(verdicts)
    took = time.monotonic() - began
    print(f"{verdicts.total()} cases of seed {args.seed} in {took:.0f} s, {findings} findings")
    print(f"slowest: case {slowest[1]} ({slowest[2]}), {slowest[0]:.2f} s")
    print(f"most memory of a process: {peak >> 20} MB")
    return int(findings > 0)


def _print_table(verdicts: Counter[tuple[str, str]]) -> None:
    """Cases by kind, with what became of them; then what the errors said."""
    groups = ("refused", "the same pixels", "another stream", "another image", "other", "FINDING")
    rows: dict[str, Counter[str]] = {}
    errors: Counter[str] = Counter()
    for (kind, what), n in verdicts.items():
        group = next((g for g in groups if what.startswith(g)), "other")
        if "Error" in what and group != "FINDING":
            group = "refused"
            errors[what] += n
        elif group in ("another image", "other"):
            errors[what] += n
        rows.setdefault(kind, Counter())[group] += n
    print(f"{'kind':24}{'cases':>8}" + "".join(f"{g:>17}" for g in groups))
    for kind, row in sorted(rows.items()):
        print(f"{kind:24}{row.total():8}" + "".join(f"{row[g]:17}" for g in groups))
    for what, n in errors.most_common(40):
        print(f"{n:8}  {what}")


if __name__ == "__main__":
    sys.exit(main())
