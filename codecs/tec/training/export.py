"""From a training state to the files that ship: half precision, fitted tables, measured margins."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load, save

from ..entropy.portable import Margin, ScaleGrid, Writer
from ..entropy.tables import Tables
from ..errors import WeightsError
from ..models.coding import Past, drive
from ..models.compact import CompactConfig, CompactElic, CompactFactorized
from ..models.compact_tt import CompactTT, CompactTTConfig
from ..models.densities import Rounding
from .data import Crops, Frame
from .sequences import Pool, series
from .train import Pair

#: The file of each model.
_FILE = {"elic": "elic", "fp": "fp", "tt": "tt", "flex": "tt"}
Model = CompactElic | CompactFactorized | CompactTT
#: Kept in float32: everything that sets a scale or a level. (The linear transform is orthogonal to
#: 1e-4 in half precision: less than 0.1 DN.)
_FLOAT32 = (
    "log_step",
    "log_gain",
    "log_scale",
    "mean",
    "level",
    "unit",
    "zero",
    "klt.bias",
    "newer",
    "older",
)
_FACTORS = (0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 3.0, 6.0)
_LARGEST = 2047


def export(
    trained: Pair | CompactTT,
    frames: list[Frame],
    folder: Path,
    *,
    sensor: str = "S2L2A",
    batches: int = 60,
    alone: bool = False,
) -> dict:
    """Write checkpoints of one sensor to ``folder``.

    A pair gives ``elic`` and ``fp``, a ``tt`` itself (and ``flex``, where it has qualities). Their
    transforms are a file of their own, where a ``tt`` may find those of a pair, and a manifest
    names all; or, with ``alone``, each file has its own, and is what ``weights=`` takes.

    Tables and margins are measured on crops of ``frames``, with the weights as they are after
    rounding to half precision. Nothing is written before all is measured.

    Returns
    -------
    The entries of the manifest, by model.
    """
    _to_half(trained)
    models: dict[str, Model]
    if isinstance(trained, Pair):
        models, config = {"elic": trained.elic, "fp": trained.fp}, asdict(trained.elic.config)
    else:
        models, config = {"tt": trained}, asdict(trained.sizes)
    files = {
        name: _finished(name, model, Scenes(frames, sensor), config, batches, alone)
        for name, model in models.items()
    }
    if isinstance(trained, CompactTT) and trained.sizes.qualities:
        models["flex"] = trained
    if alone:
        for name, content in files.items():
            (folder / f"{name}.safetensors").write_bytes(content)
        return {name: {"file": str(folder / f"{_FILE[name]}.safetensors")} for name in models}
    shared = _bytes(next(iter(models.values())).transforms, "transforms.", {})
    return _write(folder, sensor, models, shared, files)


def _to_half(module: torch.nn.Module) -> None:
    for name, parameter in module.named_parameters():
        if not _keep(name):
            parameter.data = parameter.data.half().float()
    module.eval()


def _finished(
    name: str, model: Model, scenes: Scenes, config: dict, batches: int, whole: bool
) -> bytes:
    """A checkpoint, with or without the transforms."""
    model.tables = fit_tables(model, scenes, batches=batches)
    model.margins = measure_margins(model, scenes)
    metadata = {
        "model": name,
        "config": json.dumps(config),
        "margins": json.dumps([[m.absolute, m.relative] for m in model.margins]),
    }
    own = {f"tables.{k}": torch.from_numpy(v) for k, v in model.tables.to_arrays().items()}
    return _bytes(model, "", metadata, own, whole=whole)


def _write(
    folder: Path, sensor: str, models: dict[str, Model], shared: bytes, files: dict[str, bytes]
) -> dict:
    prefix = sensor.lower()
    transforms = folder / f"{prefix}-transforms.safetensors"
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text()) if path.exists() else {}
    same = transforms.exists() and transforms.read_bytes() == shared
    if "elic" in models or not same:
        manifest[sensor] = {}  # of other transforms, or a "tt" that leans on another "elic"
    elic = b""
    if "elic" in manifest.get(sensor, {}):
        elic = (folder / f"{prefix}-elic.safetensors").read_bytes()
    entry = {}
    for name, model in models.items():
        own = _FILE[name]
        parts = [("transforms", shared), ("elic", elic), (own, files[own])]
        parts = [(part, content) for part, content in parts if content]
        entry[name] = {
            "files": [f"{prefix}-{part}.safetensors" for part, _ in parts],
            "sha256": hashlib.sha256(b"".join(content for _, content in parts)).hexdigest(),
            "parameters": sum(p.numel() for p in model.parameters())
            + (_count(elic) if own == "tt" and elic else 0),
            "bands": model.config.bands,
            "compression": [model.config.rates[0], model.config.rates[-1]],
        }
    manifest.setdefault(sensor, {}).update(entry)
    transforms.write_bytes(shared)
    for name, content in files.items():
        (folder / f"{prefix}-{name}.safetensors").write_bytes(content)
    path.write_text(json.dumps(manifest, indent=1) + "\n")
    return entry


def _count(file: bytes) -> int:
    """Parameters in a checkpoint."""
    return sum(v.numel() for k, v in load(file).items() if not k.startswith("tables."))


def averaged(folder: Path) -> Pair | CompactTT:
    """What a run has trained, with the averaged weights."""
    if not (folder / "state.pt").exists():
        raise WeightsError(f"no training state in {folder}: run `python -m tec.training fit` first")
    state = torch.load(folder / "state.pt", weights_only=True, map_location="cpu")
    sizes = state["recipe"]["model"]
    found: Pair | CompactTT
    if "image" in sizes:
        found = CompactTT(CompactTTConfig.from_dict(sizes))
    else:
        found = Pair(CompactConfig.from_dict(sizes))
    found.load_state_dict(state["average"])
    return found


def _keep(name: str) -> bool:
    return any(part in name for part in _FLOAT32)


def _bytes(
    module: torch.nn.Module,
    prefix: str,
    metadata: dict[str, str],
    own: dict[str, torch.Tensor] | None = None,
    *,
    whole: bool = True,
) -> bytes:
    tensors = dict(own or {})
    for name, value in module.state_dict().items():
        if whole or not name.startswith("transforms."):
            tensors[prefix + name] = (value if _keep(name) else value.half()).contiguous().cpu()
    return save(tensors, metadata=metadata)


#: Bits of one 256 x 256 date of patch 0080717 at λ, by the published "elic" (model card).
_ELIC = {2: 12800, 10: 32544, 40: 68352}
#: The same by quality of the published "flex", through its bits at 1, 2 and 8: a · quality ** b.
_FLEX = (24368, 0.705)
#: What is coded takes a share more than what is estimated, and framing.
_CODED = (1.02, 400)


@torch.inference_mode()
def _spent(model: CompactElic | CompactTT, patch: list[Frame], rate: float) -> np.ndarray:
    """Estimated bits of each date and latent, (dates, latents), at a position between the rates."""
    rates = torch.full((1,), rate)
    known: list[torch.Tensor] = []
    bits = []
    for frame in patch:
        y = model.transforms.encode(torch.from_numpy(frame.smooth[None, :, :256, :256]), rates)
        told = None
        if isinstance(model, CompactTT):
            told = model.told(known[-2:], (1, *y.shape[2:]), rates)
        out = model.estimate(y, rates, Rounding(training=False), told)
        known.append(out["y_hat"])
        bits.append(out["by_channel"][0].double().numpy())
    return np.stack(bits)


def choose_rates(elic: CompactElic, patch: list[Frame]) -> tuple[float, ...]:
    """λ of each gain vector, such that the first date of ``patch`` (0080717) takes the bits that
    the published checkpoints take at the same λ."""
    at = np.linspace(0, len(elic.config.rates) - 1, 29)
    share, framing = _CODED
    bits = [share * _spent(elic, patch[:1], float(p)).sum() + framing for p in at]
    if not (bits[0] < min(_ELIC.values()) and max(_ELIC.values()) < bits[-1]):
        raise ValueError(
            f"the network takes {bits[0]:.0f} to {bits[-1]:.0f} bits of the patch, the published "
            f"one {', '.join(map(str, _ELIC.values()))}: it is not trained enough to be calibrated"
        )
    places = np.interp(np.log(list(_ELIC.values())), np.log(bits), at)
    slope, start = np.polyfit(places, np.log(list(_ELIC)), 1)
    return tuple(float(f"{math.exp(start + slope * k):.4g}") for k in range(len(elic.config.rates)))


def choose_qualities(tt: CompactTT, patch: list[Frame]) -> tuple[tuple[float, int], ...]:
    """λ and sent channels of each quality of ``flex``.

    λ such that the dates of ``patch`` (0080717) take the bits that the published checkpoint takes;
    channels such that those left out would have taken less than half a per cent of the bits.
    """
    rates = tt.config.rates
    at = np.arange(0, len(rates) - 0.99, 0.5)
    by_channel = np.stack([_spent(tt, patch, float(p)).mean(0) for p in at])  # (rates, latents)
    share, framing = _CODED
    total = share * by_channel.sum(1) + framing
    found = [(rates[0], 0)]
    for quality in range(1, 17):
        rate = np.interp(np.log(_FLEX[0] * quality ** _FLEX[1]), np.log(total), at)
        own = [np.interp(rate, at, column) for column in by_channel.T]
        sent = np.cumsum(own) / np.sum(own)
        lmbda = np.exp(np.interp(rate, np.arange(len(rates)), np.log(rates)))
        found.append((float(f"{lmbda:.4g}"), int(np.searchsorted(sent, 0.995)) + 1))
    return tuple(found)


class Scenes:
    """What tables and margins are measured on: crops of frames, and of series of dates."""

    def __init__(self, frames: list[Frame], sensor: str) -> None:
        self._frames, self._sensor = frames, sensor
        self._source: Crops | Pool | None = None

    def start(self, seed: int) -> np.random.Generator:
        """Begin anew; the generator that draws."""
        self._source = None
        self._rng = np.random.default_rng(seed)
        return self._rng

    @torch.inference_mode()
    def dates(self, model: Model, compression: float) -> Iterator[Date]:
        """Eight images of 8 x 8 positions; for ``tt``, three dates of each."""
        if isinstance(model, CompactTT):
            if not isinstance(self._source, Pool):
                places = list(series(self._frames))
                self._source = Pool(places, model.transforms, self._rng, entries=60)
            for _ in range(4):
                self._source.refresh()
            y, _ = self._source.batch(8, 8)
            past: list[torch.Tensor] = []
            step = model.remembered(torch.ones(8, 1, 1, 1), compression)  # of the quantiser
            for t in range(y.shape[1]):
                yield Date(model, compression, y[:, t] / step, past)
                past = [*past, step * (y[:, t] / step).round()][-2:]
        else:
            if not isinstance(self._source, Crops):
                self._source = Crops(self._frames, sensor=self._sensor)
                self._source.rng = self._rng
            x = self._source.batch(8, 128)
            yield Date(model, compression, model.analysis(x, compression), [])


@dataclass(frozen=True)
class Date:
    """Latents (n, latents, h, w) of some images, and of the dates before them."""

    model: Model
    compression: float
    y: torch.Tensor
    past: list[torch.Tensor]

    @torch.inference_mode()
    def run(self, rounder: Any, symbols_of: Callable, rows: slice, *, double: bool = False) -> None:
        """The autoregression over some of the images."""
        model = self.model
        n, _, h, w = self.y[rows].shape
        if double:
            model = copy.deepcopy(model).double()
        if isinstance(model, CompactTT):
            past = Past((n, h, w))
            past.latents = [p[rows].to(model.log_scale) for p in self.past]
            steps: Any = model.date(past, rounder, compression=self.compression)
        else:
            steps = model.steps((n, h, w), self.compression, rounder)
        drive(steps, symbols_of)

    def coded(self, rounder: Any) -> list[tuple[np.ndarray, np.ndarray]]:
        """(index, symbols) of every step."""
        seen: list[tuple[np.ndarray, np.ndarray]] = []

        def symbols_of(step: Any) -> np.ndarray:
            rest = step.select(self.y).double().numpy() - step.mean
            seen.append((step.index, np.rint(rest).astype(np.int32)))
            return seen[-1][1]

        self.run(rounder, symbols_of, slice(0, len(self.y)))
        return seen


def fit_tables(model: Model, scenes: Scenes, *, batches: int = 60, seed: int = 1) -> Tables:
    """Integer tables, one a level of the scale grid, fitted to the symbols met there.

    Each table is a mixture of logistic and Gaussian laws of several widths around the level's own;
    the weights are those of maximum likelihood, held together by a few hundred made-up symbols.
    """
    grid, rates = model.grid, model.config.rates
    counts = np.zeros((grid.levels, 2 * _LARGEST + 1))
    rng = scenes.start(seed)
    for _ in range(batches):
        at = rng.uniform(0, len(rates) - 1)
        compression = float(np.exp(np.interp(at, np.arange(len(rates)), np.log(rates))))
        for date in scenes.dates(model, compression):
            for index, symbols in date.coded(Writer(8, grid, Margin(0.0, 0.0))):
                place = np.clip(symbols, -_LARGEST, _LARGEST) + _LARGEST
                np.add.at(counts, (index.ravel(), place.ravel()), 1)
    return Tables.from_pmfs(
        [_fit(counts[level], grid.scales[level]) for level in range(grid.levels)]
    )


def _fit(counts: np.ndarray, scale: float) -> tuple[np.ndarray, int]:
    symbols = np.arange(-_LARGEST, _LARGEST + 1)
    laws = [_logistic(symbols, scale * f) for f in _FACTORS]
    laws += [_gaussian(symbols, 1.8 * scale * f) for f in _FACTORS]
    components = np.stack(laws)
    own = components[_FACTORS.index(1.0)]
    evidence = 0.5 * (counts + counts[::-1]) + 300 * own
    weights = np.full(len(components), 1 / len(components))
    for _ in range(200):
        mixture = weights @ components
        weights *= components @ (evidence / np.maximum(mixture, 1e-300)) / evidence.sum()
    pmf = weights @ components
    tail = np.cumsum(pmf[::-1])[::-1]
    half = int(np.searchsorted(-tail[_LARGEST + 1 :], -(2.0**-18)))
    half = max(1, min(half, _LARGEST))
    return pmf[_LARGEST - half : _LARGEST + half + 1], -half


def _logistic(symbols: np.ndarray, scale: float) -> np.ndarray:
    k = np.abs(symbols).astype(float)
    high, low = np.exp(-np.maximum(k - 0.5, 0) / scale), np.exp(-(k + 0.5) / scale)
    mass = high / (1 + high) - low / (1 + low)
    mass[k == 0] = math.tanh(0.25 / scale)
    return mass


def _gaussian(symbols: np.ndarray, sigma: float) -> np.ndarray:
    erfc = np.vectorize(math.erfc)
    k = np.abs(symbols).astype(float)
    mass = 0.5 * (erfc((k - 0.5) / sigma / math.sqrt(2)) - erfc((k + 0.5) / sigma / math.sqrt(2)))
    return mass


class _Asked(NamedTuple):
    """Parameters, and the sizes that their margins go by."""

    values: np.ndarray
    size: np.ndarray


class _Recorder:
    """A rounder that keeps the parameters it is asked about, and answers with another's
    decisions."""

    def __init__(self, n: int, grid: ScaleGrid, answers: list | None = None) -> None:
        self.writer = Writer(n, grid, Margin(0.0, 0.0))
        self.answers = iter(answers) if answers is not None else None
        self.asked: list[tuple[_Asked, _Asked]] = []
        self.given: list[tuple[np.ndarray, np.ndarray]] = []

    def parameters(
        self,
        mean: np.ndarray,
        log_scale: np.ndarray,
        size: Callable[[], np.ndarray] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        large = np.abs(mean) if size is None else np.maximum(np.abs(mean), size())
        self.asked.append(
            (
                _Asked(mean.astype(np.float64), large),
                _Asked(log_scale.astype(np.float64), np.abs(log_scale)),
            )
        )
        answer = (
            self.writer.parameters(mean, log_scale) if self.answers is None else next(self.answers)
        )
        self.given.append(answer)
        return answer

    def round(self, values: np.ndarray, step: float = 1.0) -> np.ndarray:
        return self.writer.round(values, step)


def measure_margins(
    model: Model, scenes: Scenes, *, seed: int = 2, safety: float = 4.0
) -> tuple[Margin, ...]:
    """For each rate a margin at least ``safety`` times the largest difference between evaluations.

    Compared are batches of 8 and of 1, one and two threads, and float64; agreed integers in,
    floats out.
    The absolute part is what small parameters need, the relative one what large means need more.
    """
    scenes.start(seed)
    threads = torch.get_num_threads()
    margins = []
    for compression in model.config.rates:
        size, difference = [], []
        for date in scenes.dates(model, compression):
            base = _Recorder(8, model.grid)
            symbols = [s for _, s in date.coded(base)]
            runs = [_again(date, base, symbols, slice(i, i + 1)) for i in (0, 5)]
            runs.append(_again(date, base, symbols, slice(0, 8), double=True))
            try:
                torch.set_num_threads(1)
                runs.append(_again(date, base, symbols, slice(0, 8)))
            finally:
                torch.set_num_threads(threads)
            for now, then in (pair for run in runs for pair in run):
                size.append(then.size.ravel())
                difference.append(np.abs(now.values - then.values).ravel())
        x, d = np.concatenate(size), np.concatenate(difference)
        absolute = _power(safety * d[x < 4].max(initial=2.0**-24))
        beyond = np.maximum(safety * d - absolute, 0) / np.maximum(x, 1)
        margins.append(Margin(absolute, _power(max(float(beyond.max()), 2.0**-22))))
    return tuple(margins)


def _power(x: float) -> float:
    """The power of two at or above x."""
    return 2.0 ** math.ceil(math.log2(x))


def _again(
    date: Date, base: _Recorder, symbols: list[np.ndarray], rows: slice, *, double: bool = False
) -> list[tuple[_Asked, _Asked]]:
    """Pairs of (parameters now, parameters then) of the same symbols and decisions, for some rows
    of the batch."""
    n = len(range(8)[rows])
    given = [(index[rows], mean[rows]) for index, mean in base.given]
    recorder = _Recorder(n, date.model.grid, given)
    answers = iter([s[rows] for s in symbols])
    date.run(recorder, lambda step: next(answers), rows, double=double)
    return [
        (now, _Asked(then.values[rows], then.size[rows]))
        for a, b in zip(recorder.asked, base.asked)
        for now, then in zip(a, b)
    ]
