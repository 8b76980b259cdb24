"""Case number i of a seed, always the same; and many of them, counted."""

from __future__ import annotations

import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from . import configs
from .corpus import Specimen
from .judging import judge
from .mutations import mutate

#: Cases of changed metadata, by kind; the share of all cases that each has.
_METADATA: dict[str, tuple[Callable[[np.random.Generator, Specimen], str], float]] = {
    "configuration": (configs.configuration, 0.06),
    "metadata": (configs.metadata, 0.04),
    "bytes of metadata": (configs.metadata_bytes, 0.02),
}


@dataclass
class Report:
    """What cases came to. ``findings`` are (case, kind, specimen, what)."""

    verdicts: Counter[tuple[str, str]] = field(default_factory=Counter)
    seconds: float = 0.0
    slowest: tuple[float, int, str] = (0.0, -1, "")
    findings: list[tuple[int, str, str, str]] = field(default_factory=list)


def run(
    seed: int,
    numbers: Iterable[int],
    corpus: Sequence[Specimen],
    each: Callable[[int], None] = lambda number: None,
) -> Report:
    """Try these cases; ``each`` is told of every one before it runs."""
    report = Report()
    for number in numbers:
        each(number)
        rng = np.random.default_rng([seed, number])
        began = time.perf_counter()
        kind, specimen, judge_it = draw(rng, corpus)
        name = specimen.name
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # zarr's, and those of foreign settings
                warnings.simplefilter("error", RuntimeWarning)  # numpy's
                verdict = judge_it()
        except Exception as error:
            verdict = f"FINDING {type(error).__name__}"
            what = "".join(traceback.format_exception(error))
            report.findings.append((number, kind, name, what))
        took = time.perf_counter() - began
        report.verdicts[kind, verdict] += 1
        report.seconds += took
        report.slowest = max(report.slowest, (took, number, f"{kind} of {name}"))
    return report


def draw(
    rng: np.random.Generator, corpus: Sequence[Specimen]
) -> tuple[str, Specimen, Callable[[], str]]:
    """A case: its kind, what it is made of, and what judges it."""
    at = rng.random()
    for kind, (judge_metadata, share) in _METADATA.items():
        if at < share:
            specimen = corpus[rng.integers(len(corpus))]
            return kind, specimen, partial(judge_metadata, rng, specimen)
        at -= share
    case = mutate(rng, corpus)
    return case.kind, case.specimen, partial(judge, case.specimen, case.data)
