"""Where the time of coding goes, and how little there could be: for `speed.py`.

The floor of a network is the arithmetic that cannot be avoided at the rate of a plain matrix
product of its own shapes in the precision used, and its input or output copied once.
"""

from __future__ import annotations

import inspect
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any, Self
from unittest import mock

import numpy as np
import torch
from tec import codec, coder, samples, stream
from tec.entropy import integers, portable, rans
from tec.models import compact, compact_tt, temporal, transformer, tt
from tec.precision import full_precision
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

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
    """

    def __init__(self, clock: Callable[[], Any], network: Any) -> None:
        self.spent: dict[str, Any] = dict.fromkeys(STAGES, 0.0)
        kind = type(network)
        own = [(kind, "analysis", ANALYSIS), (kind, "synthesis", SYNTHESIS)]
        own += [(kind, "side", ANALYSIS)] * hasattr(kind, "side")
        self._where = [*own, *_OF_NETWORKS, *_AROUND]
        self._clock = clock

    def __enter__(self) -> Self:
        self._thread, self._now, self._patches = threading.get_ident(), OTHER, ExitStack()
        for owner, name, stage in self._where:
            timed = self._timed(getattr(owner, name), stage)
            self._patches.enter_context(mock.patch.object(owner, name, timed))
        one_by_one = mock.patch.object(codec, "ahead", lambda items, _: items)
        self._patches.enter_context(one_by_one)
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


class Arithmetic(TorchDispatchMode):
    """Counts the matrix products that run inside, in this thread.

    Attributes
    ----------
    flop : 10^9 so far by PRECISIONS
    products : 10^9 of each (rows, inner, columns)
    """

    def __init__(self) -> None:
        super().__init__()
        self.flop = np.zeros(len(PRECISIONS))
        self.products: Counter[tuple[int, int, int]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        formula, kwargs = _FORMULAS.get(func.overloadpacket), kwargs or {}
        if formula is None:
            with self:  # what is made of others is counted there
                out = func.decompose(*args, **kwargs)
            return func(*args, **kwargs) if out is NotImplemented else out
        out = func(*args, **kwargs)
        flop = formula(*args, **kwargs, out_val=out) / 1e9
        self.flop[int(args[1].itemsize < 4)] += flop
        if isinstance(out, torch.Tensor):
            columns = out.shape[1]  # of (rows, columns) and of (n, columns, y, x)
            rows = out.numel() // columns
            self.products[rows, round(flop * 1e9 / (2 * out.numel())), columns] += flop
        return out


def _convolved(x: Any, weight: Any, *_: Any, out_val: Any, **__: Any) -> int:
    return 2 * out_val.numel() * weight[0].numel()


def _attended(query: Any, key: Any, *_: Any, out_val: Any, **__: Any) -> int:
    return 4 * query.numel() * key.shape[-2]


#: PyTorch's, and those of operators that it does not count
_FORMULAS = flop_registry | {
    torch.ops.aten.mkldnn_convolution: _convolved,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attended,
}
#: In which products are computed; the second is any of 16 bits
PRECISIONS = ("float32", "bfloat16")


def gflop(
    work: dict[str, Callable[[], Any]], network: Any
) -> tuple[dict[str, np.ndarray], list[tuple[int, ...]]]:
    """GFLOP of each stage by PRECISIONS, there and back, and (rows, inner, columns) of the products
    that most of it is.

    What is in an encoder's entropy parameters beyond those of the decoder (it tries) can be
    avoided, and does not count.

    Parameters
    ----------
    work : "encode" and "decode", the latter on what the former gave
    """
    found: dict[str, np.ndarray] = {}
    counter = Arithmetic()
    for way in ("encode", "decode"):
        with counter, Stages(lambda: counter.flop.copy(), network) as staged:
            work[way]()
        spent = {stage: much for stage, much in staged.spent.items() if np.any(much)}
        found |= {ANALYSIS: spent[ANALYSIS]} if way == "encode" else spent
    return found, [shape for shape, _ in counter.products.most_common(4)]


def needed(flop: dict[str, np.ndarray], way: str) -> dict[str, np.ndarray]:
    """Of `gflop` what one way takes."""
    other = SYNTHESIS if way == "encode" else ANALYSIS
    return {stage: much for stage, much in flop.items() if stage != other}


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
