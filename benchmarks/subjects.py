"""Who takes part in `speed.py`: a model and its work, the threads that do it, and the reference
package's network."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import stages
import torch
from rivals import WAYS, psnr
from tec import CodecConfig, codec, threads, weights
from tec.config import TOKENS
from tec.sensors import SENSORS

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

MODELS = ("fp", "elic", "tt", "flex")
BUILT_IN, PUBLISHED = "built-in", "published"
#: What the reference package calls them
REFERENCES = dict(zip(MODELS, ("factorizedprior", "elic", "temporaltransformer", "flextec")))


@dataclass
class Subject:
    """A model on a device, and what each pass codes in one call.

    Attributes
    ----------
    size : "built-in" (trained weights) or "published" (its size, with random weights)
    chunks : of one pass; all passes have the same, each its own copy
    """

    model: str
    size: str
    device: str
    config: CodecConfig
    chunks: list[np.ndarray]
    passes: int
    streams: list[bytes] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.model}, {self.size}"

    @property
    def megabytes(self) -> float:
        """Of one pass."""
        return sum(chunk.nbytes for chunk in self.chunks) / 1e6

    @cached_property
    def given(self) -> list[list[np.ndarray]]:
        return [[chunk.copy() for chunk in self.chunks] for _ in range(self.passes)]

    @property
    def network(self) -> Any:
        model = codec.routed(self.config, len(self.chunks[0]))
        return weights.load(model, weights=self.config.weights, device=self.device)

    @cached_property
    def floor(self) -> tuple[dict[str, np.ndarray], list[tuple[int, ...]]]:
        """Of one chunk, as `stages.gflop` has it."""
        network, part, scale = self.network, self, 1.0
        if self.size == PUBLISHED:  # arithmetic goes by the pixels alone: a few will do
            side, (*_, height, width) = network.stride, self.chunks[0].shape
            scale = float(-(-height // side) * -(-width // side))
            part = replace(self, chunks=[self.chunks[0][:, :, :side, :side]], streams=[])
            part.warm()
        flop, products = stages.gflop({way: partial(part.run, way) for way in WAYS}, network)
        scale /= len(part.chunks)
        shapes = [(int(rows * scale * len(self.chunks)), *rest) for rows, *rest in products]
        return {stage: much * scale for stage, much in flop.items()}, shapes

    def run(self, way: str, number: int = 0) -> Any:
        """The work of one pass."""
        if way == "encode":
            return codec.encode_many(self.given[number], self.config, device=self.device)
        path = None if self.size == BUILT_IN else self.config.weights
        return codec.decode_many(self.streams, weights=path, device=self.device)

    def warm(self) -> dict[str, Any]:
        """Code once, and say what came of it."""
        self.streams = self.run("encode")
        back, chunk, data = self.run("decode")[0], self.chunks[0], self.streams[0]
        found = {"bytes": len(data), "bpppb": 8 * len(data) / chunk.size}
        return found | ({"psnr": psnr(chunk, back)} if self.size == BUILT_IN else {})


class Workers:
    """Threads that code side by side, as those of `xtec.passes` do."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.count = threads.passes() if device == "cpu" else 1
        self._pool = ThreadPoolExecutor(self.count)

    def alone(self, work: Callable[[], Any]) -> Any:
        """Work in one of the threads, which has one core."""

        def run() -> Any:
            with threads.limited(1), threads.sharing():
                threads.settle()
                return work()

        return self._pool.submit(run).result()

    def together(self, work: Callable[[int], Any]) -> list[Any]:
        """Work of each thread, told its number."""

        def run(number: int) -> Any:
            with threads.sharing():
                threads.settle()
                return work(number)

        return list(self._pool.map(run, range(self.count)))


class Reference:
    """The reference package's network with the weights of a `Subject` of the published size."""

    def __init__(self, model: str, small: bool) -> None:
        from oracle import build, build_small, randomise, randomise_temporal

        torch.manual_seed(0)
        self.series = model in codec.TEMPORAL
        self.quality = {"quality": TOKENS} if model == "flex" else {}
        self.network: Any
        if not self.series:
            self.network = build(REFERENCES[model], N=128, M=192)
            randomise(self.network, spread=1.0, scale=1.0)
        else:
            flex = model == "flex"
            self.network = build_small(flex=flex) if small else build(REFERENCES[model])
            randomise_temporal(self.network)

    def save(self, path: str) -> None:
        prefix = "" if self.series else "model."
        torch.save({prefix + k: v for k, v in self.network.state_dict().items()}, path)

    @torch.inference_mode()
    def speeds(self, chunk: np.ndarray, offset: float, device: str) -> dict[str, float]:
        """MB/s both ways, of standardised tensors, in one call; seconds are `stages.clock_of`'s."""
        sensor, network, clock = SENSORS["S2L2A"], self.network, stages.clock_of(device)
        mean, std = (np.array(v, np.float32)[:, None, None] for v in (sensor.mean, sensor.std))
        x = torch.from_numpy((chunk.astype(np.float32) - offset - mean) / std).to(device)
        if self.series:  # it makes its tables on the processor, then goes to its device
            network.cpu().device = torch.device(device)
            with redirect_stdout(sys.stderr):
                network.setup_model_for_compression()
        else:
            network.to(device)
        start = clock()
        coded = network.compress(x, **self.quality)
        middle = clock()
        network.decompress(*([coded] if self.series else (coded["strings"], coded["shape"])))
        mb = chunk.nbytes / 1e6
        return {"encode": mb / (middle - start), "decode": mb / (clock() - middle)}
