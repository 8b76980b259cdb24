"""Decoding steps of the published temporal models as CUDA graphs: one launch in place of some 150.

A step of few blocks is made of small kernels, and to start them takes longer than to run them. Its
shapes follow from the number of blocks and the token alone, so with buffers that stay where they
are each step is recorded once and then replayed: the same kernels on the same numbers. Encoders do
not come here. ``XTEC_CUDA_GRAPHS=1`` turns graphs on: until a GPU has shown them right they are no
default. Where a step cannot be recorded it runs as without, and no other is tried in this process.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakSet

import torch
from torch import Tensor

from .forks import in_child

if TYPE_CHECKING:
    from .models.temporal import Prediction, TemporalPrior, Unrolling

_log = logging.getLogger("tec.graphs")

#: Bytes of a context whose steps are recorded: larger ones keep a GPU busy by themselves.
LARGEST = 2**29
#: Contexts of one model that stay on a GPU, with their graphs.
KEPT = 4

_broken = False
_lock = threading.Lock()
_priors: WeakSet[TemporalPrior] = WeakSet()

#: Of a model, by shape and stream; None where steps ran once without. Who uses one takes it out.
Graphs = OrderedDict[Any, "Recorded | None"]


class _Step(NamedTuple):
    """A recorded one: what it reads, and what each replay overwrites."""

    graph: Any
    given: list[Tensor]
    found: Prediction


class Recorded:
    """The steps of an `Unrolling` of its own, whose context and caches never move."""

    def __init__(self, own: Unrolling) -> None:
        self._own = own
        self._steps: dict[int, _Step] = {}
        self._next = 0

    def begin(self, like: Unrolling) -> None:
        """Take over the context of another."""
        for mine, its in zip(self._own.context, like.context, strict=True):
            for buffer, values in zip(mine, its):
                buffer.copy_(values)
        self._next = 0

    def predict(self, values: Sequence[Tensor], count: int = 1) -> Prediction:
        """`Unrolling.predict` of one token."""
        at = self._next
        self._next += 1
        if at not in self._steps and not _broken:
            self._record(at, values)
        step = self._steps.get(at)
        if step is None:
            self._own.rewind(at)
            return self._own.predict(values)
        for buffer, value in zip(step.given, values, strict=True):
            buffer.copy_(value)
        step.graph.replay()
        return step.found._replace(features=step.found.features.clone())  # the others are read next

    def _record(self, at: int, values: Sequence[Tensor]) -> None:
        global _broken
        given = [value.clone() for value in values]

        def run() -> Prediction:
            self._own.rewind(at)
            return self._own.predict(given)

        try:
            graph, found = _capture(run, self._own.context[0].keys.device)
        except RuntimeError as error:  # running out of memory is one
            _broken = True
            _log.warning("CUDA graphs are left off: a step cannot be recorded (%s)", error)
        else:
            self._steps[at] = _Step(graph, given, found)


def _capture(run: Callable[[], Prediction], device: torch.device) -> tuple[Any, Prediction]:
    """A graph of what ``run`` does, and what it gives."""
    with torch.cuda.device(device):
        run()  # caches are made here
        here, beside, graph = (
            torch.cuda.current_stream(),
            torch.cuda.Stream(),
            torch.cuda.CUDAGraph(),
        )
        beside.wait_stream(here)
        with torch.cuda.stream(beside):
            run()  # libraries make ready what cannot be recorded
            # Other threads may allocate and wait meanwhile: one makes pixels of the date before.
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                found = run()
            finally:
                graph.capture_end()
        here.wait_stream(beside)
    return graph, found


@contextmanager
def replaying(plain: Unrolling, prior: TemporalPrior) -> Iterator[Unrolling | Recorded]:
    """The same steps, recorded where that pays: from the second time on that such blocks come."""
    keys = plain.context[0].keys
    nbytes = 2 * len(plain.context) * keys.numel() * keys.element_size()
    if _broken or nbytes > LARGEST or not _allowed(keys.device):
        yield plain
        return
    key = plain.batch, keys.shape, keys.dtype, keys.device, _stream(keys.device)
    with _lock:
        _priors.add(prior)
        kept = prior.graphs
        known = key in kept
        recorded = kept.pop(key, None)
        if not known:
            kept[key] = None
    if not known:
        yield plain
        return
    recorded = recorded or Recorded(plain.copy())
    recorded.begin(plain)
    try:
        yield recorded
    finally:
        with _lock:
            kept[key] = recorded
            for old in [k for k, graphs in kept.items() if graphs is not None][:-KEPT]:
                del kept[old]


def _allowed(device: torch.device) -> bool:
    wanted = os.environ.get("XTEC_CUDA_GRAPHS", "0") != "0"
    return wanted and device.type == "cuda" and not torch.is_grad_enabled()


def _stream(device: torch.device) -> int:
    """Buffers are filled and read in the order of one stream."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


def drop() -> None:
    """Let go of all graphs, since memory has run out."""
    with _lock:
        for prior in _priors:
            prior.graphs = OrderedDict()  # another: what is in use goes back to the old one


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()


in_child(_after_fork)
