"""Where the time of coding goes, and how little there could be: for `speed.py`.

The floor of a network is the arithmetic that cannot be avoided at the rate of a plain matrix
product of its own shapes in float32, and its input or output copied once.
"""

from __future__ import annotations

import copy
import inspect
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import wraps
from typing import Any, Self
from unittest import mock

import torch
from tec import codec, coder, samples, stream
from tec.entropy import integers, portable, rans
from tec.models import compact, compact_tt, densities, temporal, transformer, tt
from tec.precision import full_precision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

PIXELS, COPY, ANALYSIS, SYNTHESIS = "integers, planes", "copy, device", "analysis", "synthesis"
NETWORK, ROUNDING, RANS, FRAMING = "entropy parameters", "rounding", "rANS", "framing"
OTHER = "other"
#: Of the entropy parameters, where a model has them; NETWORK is what is left.
PARTS = ("dates before", "separate encoder", "joint encoder", "keys, values", "decoder, heads")
STAGES = (PIXELS, COPY, ANALYSIS, *PARTS, NETWORK, ROUNDING, RANS, SYNTHESIS, FRAMING, OTHER)
_OF_NETWORKS = [
    (compact.Transforms, "encode", ANALYSIS),
    (compact.Transforms, "decode", SYNTHESIS),
    (tt.TT, "_restored", SYNTHESIS),
    (compact_tt.CompactTT, "told", PARTS[0]),
    (temporal.TemporalPrior, "encode", PARTS[1]),
    (temporal.TemporalPrior, "join", PARTS[2]),
    (transformer.Stack, "contexts", PARTS[3]),
    (temporal.Unrolling, "predict", PARTS[4]),
    (densities.EntropyBottleneck, "forward", OTHER),  # estimates, which no stream needs
]
_AROUND = [
    *((samples, name, PIXELS) for name in ("extent", "pack_specials", "date_planes")),
    *((samples, name, PIXELS) for name in ("valid_ranges", "unpack_specials", "from_planes")),
    (codec, "grids_of", PIXELS),
    *((torch.Tensor, name, COPY) for name in ("cpu", "to", "pin_memory")),
    *((coder, f"encode_{what}", NETWORK) for what in ("images", "series")),
    *((coder, f"decode_{what}", NETWORK) for what in ("images", "series")),
    *((portable.Writer, name, ROUNDING) for name in ("parameters", "round", "getvalue")),
    *((portable.Reader, name, ROUNDING) for name in ("parameters", "round")),
    (integers.IntegerCoding, "__call__", ROUNDING),
    (rans, "encode", RANS),
    *((rans.Decoder, name, RANS) for name in ("__init__", "read", "finish")),
    *((stream, name, FRAMING) for name in ("pack", "unpack")),
    (coder, "checksums", FRAMING),
]

#: Products of each shape, the best of which counts
REPEATS = 12


class Stages:
    """What a clock counts while each of STAGES runs, in this thread: a context manager.

    Parameters
    ----------
    clock : seconds, or whatever else only grows
    network : whose methods are looked at
    whole : also what surrounds networks
    """

    def __init__(self, clock: Callable[[], float], network: Any, *, whole: bool = True) -> None:
        self.spent = dict.fromkeys(STAGES, 0.0)
        kind = type(network)
        own = [(kind, "analysis", ANALYSIS), (kind, "synthesis", SYNTHESIS)]
        own += [(kind, "side", ANALYSIS)] * hasattr(kind, "side")
        self._where = [*own, *_OF_NETWORKS, *(_AROUND if whole else [])]
        self._clock = clock

    def __enter__(self) -> Self:
        self._thread, self._now, self._patches = threading.get_ident(), OTHER, ExitStack()
        for owner, name, stage in self._where:
            timed = self._timed(getattr(owner, name), stage)
            self._patches.enter_context(mock.patch.object(owner, name, timed))
        if any(owner is codec for owner, _, _ in self._where):  # one thing after another
            self._patches.enter_context(mock.patch.object(codec, "ahead", lambda items, _: items))
        self._last = self._clock()
        return self

    def __exit__(self, *_: Any) -> None:
        self._go(OTHER)
        self._patches.close()

    def _go(self, stage: str) -> str:
        now, before = self._clock(), self._now
        self.spent[before] += now - self._last
        self._last, self._now = now, stage
        return before

    @contextmanager
    def inside(self, stage: str) -> Iterator[str]:
        before = self._go(stage)
        try:
            yield before
        finally:
            self._go(before)

    def _timed(self, function: Callable, stage: str) -> Callable:
        @wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != self._thread:
                return function(*args, **kwargs)
            with self.inside(stage) as before:
                # A function that is handed over is the work of who made it.
                made = [self._timed(a, before) if inspect.isfunction(a) else a for a in args]
                result = function(*made, **kwargs)
            return self._each(result, stage) if inspect.isgenerator(result) else result

        return run

    def _each(self, items: Iterator, stage: str) -> Iterator:
        end = object()
        while True:
            with self.inside(stage):
                item = next(items, end)
            if item is end:
                return
            yield item


def gflop(network: Any, dates: int, side: int) -> tuple[dict[str, float], list[tuple[int, ...]]]:
    """GFLOP of each stage that a chunk (dates, bands, side, side) cannot do without, there and
    back; and (rows, inner, columns) of the matrix products that most of it is.

    From one pass over all tokens, in which the entropy parameters of the decoder are the
    encoder's. The first date of a published ``tt`` has a constant context, which does not count,
    and nobody asks for the separate encoder of a last date. A built-in ``tt`` counts as if it
    told its first date of others, too: some per cent more.
    """
    there = [*network.parameters(), *network.buffers()]
    known = {id(t): nn.Parameter(t.to("meta"), False) for t in there}
    ghost = copy.deepcopy(network, known).eval()
    series = hasattr(network, "history")
    shape = (1, dates) if series else (dates,)
    products: Counter[tuple[int, ...]] = Counter()

    def note(layer: nn.Module, given: Any, out: torch.Tensor) -> None:
        weight: Any = layer.weight
        if isinstance(layer, nn.Linear):
            columns, rows = len(weight), out.numel() // len(weight)
        elif isinstance(layer, nn.ConvTranspose2d):
            columns, rows = weight[0].numel(), given[0].numel() // len(weight)
        else:
            columns, rows = len(weight), out.numel() // len(weight)
        products[rows, weight.numel() // columns, columns] += rows * weight.numel()

    for layer in ghost.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            layer.register_forward_hook(note)
    # Autocast, which networks switch off, knows no such device.
    without = mock.patch.object(torch, "autocast", return_value=nullcontext())
    with torch.inference_mode(), torch.device("meta"), without:
        x = torch.empty(*shape, network.bands, side, side)
        rate = {}
        if isinstance(ghost, (compact.CompactElic, compact.CompactFactorized)):
            rate = {"rate": torch.zeros(dates)}
        ghost(x[:, :1] if series else x, **rate)  # what happens once
        products.clear()
        with FlopCounterMode(display=False) as counter:
            clock = counter.get_total_flops
            with Stages(clock, ghost, whole=False) as stages, stages.inside(NETWORK):
                ghost(x, **rate)
    most = [shape for shape, _ in products.most_common(4)]
    return {stage: flop / 1e9 for stage, flop in stages.spent.items()}, most


def needed(flop: dict[str, float], way: str) -> dict[str, float]:
    """Of `gflop` what one way takes."""
    without = OTHER, SYNTHESIS if way == "encode" else ANALYSIS
    return {stage: much for stage, much in flop.items() if much and stage not in without}


def clock_of(device: str) -> Callable[[], float]:
    """Seconds of this thread on a processor; of a GPU, once it has done all that it was told."""
    if device == "cpu":
        return time.thread_time

    def clock() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return clock


def matrix_rate(
    shapes: list[tuple[int, ...]],
    device: str,
    clock: Callable[[], float],
    precision: str = "float32",
) -> float:
    """GFLOP/s of plain matrix products, the best of a few of each shape.

    ``precision`` may also be "TF32" or "bfloat16", on a GPU.
    """
    best, most = 0.0, 1e9 if device == "cpu" else 1e12  # FLOP of one product
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    with torch.inference_mode(), full_precision(torch.device(device).type), ExitStack() as short:
        if precision == "TF32":
            matmul = torch.backends.cuda.matmul
            short.callback(setattr, matmul, "allow_tf32", matmul.allow_tf32)
            matmul.allow_tf32 = True
        for rows, inner, columns in shapes:
            rows = max(1, min(rows, int(most / (2 * inner * columns))))
            a = torch.rand(rows, inner, device=device).to(dtype)
            b = torch.rand(inner, columns, device=device).to(dtype)
            torch.mm(a, b)
            for _ in range(REPEATS):
                start = clock()
                torch.mm(a, b)
                best = max(best, 2e-9 * rows * inner * columns / (clock() - start))
    return best


def copy_rate(nbytes: int, device: str, clock: Callable[[], float]) -> float:
    """GB/s at which so much is copied in memory, or from pinned memory to a GPU."""
    source = torch.ones(nbytes, dtype=torch.uint8)
    if device != "cpu":
        source = source.pin_memory()
    target, best = torch.empty(nbytes, dtype=torch.uint8, device=device), 0.0
    for _ in range(5):
        start = clock()
        target.copy_(source)
        best = max(best, 1e-9 * nbytes / (clock() - start))
    return best
