"""From a training state to the files that ship: half precision, fitted tables, measured margins."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save

from ..entropy.portable import Margin, ScaleGrid, Writer
from ..entropy.tables import Tables
from ..errors import WeightsError
from ..models.coding import drive
from ..models.compact import CompactConfig, CompactElic, CompactFactorized
from .data import Crops, Frame
from .train import Pair

Model = CompactElic | CompactFactorized
#: Kept in float32: the linear transform and everything that sets a scale.
_FLOAT32 = (
    "klt.",
    "inverse.",
    "log_step",
    "log_gain",
    "log_scale",
    "mean",
    "z_mean",
    "z_log_scale",
)
_FACTORS = (0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 3.0, 6.0)
_LARGEST = 2047


def export(
    pair: Pair,
    config: CompactConfig,
    frames: list[Frame],
    folder: Path,
    *,
    sensor: str = "S2L2A",
    batches: int = 60,
) -> dict:
    """Write transforms, ``elic`` and ``fp`` of one sensor to ``folder``, and its manifest there.

    Tables and margins are measured on crops of ``frames``, with the weights as they are after
    rounding to half precision. Nothing is written before all is measured.

    Returns
    -------
    The entries of the manifest, by model.
    """
    for name, parameter in pair.named_parameters():
        if not _keep(name):
            parameter.data = parameter.data.half().float()
    pair.eval()
    prefix = sensor.lower()
    entry = {}
    shared = _bytes(pair.elic.transforms, "transforms.", {})
    files = {f"{prefix}-transforms.safetensors": shared}
    for name, model in (("elic", pair.elic), ("fp", pair.fp)):
        tables = fit_tables(model, frames, batches=batches)
        model.tables = tables
        margin = measure_margin(model, frames)
        metadata = {
            "model": name,
            "config": json.dumps(asdict(config)),
            "margin": json.dumps([margin.absolute, margin.relative]),
        }
        own = {f"tables.{k}": torch.from_numpy(v) for k, v in tables.to_arrays().items()}
        files[f"{prefix}-{name}.safetensors"] = data = _bytes(model, "", metadata, own)
        entry[name] = {
            "files": [f"{prefix}-transforms.safetensors", f"{prefix}-{name}.safetensors"],
            "sha256": hashlib.sha256(shared + data).hexdigest(),
            "parameters": sum(p.numel() for p in model.parameters()),
            "bands": config.bands,
            "compression": [config.rates[0], config.rates[-1]],
        }
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text()) if path.exists() else {}
    manifest.setdefault(sensor, {}).update(entry)
    files[path.name] = (json.dumps(manifest, indent=1) + "\n").encode()
    for file, content in files.items():
        (folder / file).write_bytes(content)
    return entry


def averaged(folder: Path, *, config: CompactConfig | None = None) -> Pair:
    """The averaged weights of a run; ``config`` may give its gain vectors other λ."""
    if not (folder / "state.pt").exists():
        raise WeightsError(f"no training state in {folder}: run `python -m tec.training fit` first")
    state = torch.load(folder / "state.pt", weights_only=True, map_location="cpu")
    pair = Pair(config or CompactConfig())
    pair.load_state_dict(state["average"])
    return pair


def _keep(name: str) -> bool:
    return any(part in name for part in _FLOAT32)


def _bytes(
    module: torch.nn.Module,
    prefix: str,
    metadata: dict[str, str],
    own: dict[str, torch.Tensor] | None = None,
) -> bytes:
    tensors = dict(own or {})
    for name, value in module.state_dict().items():
        if prefix or not name.startswith("transforms."):
            tensors[prefix + name] = (value if _keep(name) else value.half()).contiguous().cpu()
    return save(tensors, metadata=metadata)


@torch.inference_mode()
def _run(
    model: Model, planes: torch.Tensor, compression: float, rounder
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(index, symbols) of every step of a batch."""
    y = model.analysis(planes, compression)
    values = {"y": y, **model.side(y, compression)}
    seen: list[tuple[np.ndarray, np.ndarray]] = []

    def symbols_of(step):
        symbols = np.rint(step.select(values[step.latent]).double().numpy() - step.mean).astype(
            np.int32
        )
        seen.append((step.index, symbols))
        return symbols

    n, _, h, w = y.shape
    drive(model.steps((n, h, w), compression, rounder), symbols_of)
    return seen


def fit_tables(model: Model, frames: list[Frame], *, batches: int = 60, seed: int = 1) -> Tables:
    """Integer tables, one a level of the scale grid, fitted to the symbols met there.

    Each table is a mixture of logistic and Gaussian laws of several widths around the level's own;
    the weights are those of maximum likelihood, held together by a few hundred made-up symbols.
    """
    grid = model.grid
    counts = np.zeros((grid.levels, 2 * _LARGEST + 1))
    crops = Crops(frames, seed=seed)
    for _ in range(batches):
        rate = crops.rng.uniform(0, len(model.config.rates) - 1)
        compression = float(
            np.exp(np.interp(rate, np.arange(len(model.config.rates)), np.log(model.config.rates)))
        )
        rounder = Writer(8, grid, Margin(0.0, 0.0))
        for index, symbols in _run(model, crops.batch(8, 128), compression, rounder):
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


class _Recorder:
    """A rounder that keeps the parameters it is asked about, and answers with another's
    decisions."""

    def __init__(self, n: int, grid: ScaleGrid, answers: list | None = None) -> None:
        self.writer = Writer(n, grid, Margin(0.0, 0.0))
        self.answers = iter(answers) if answers is not None else None
        self.asked: list[tuple[np.ndarray, np.ndarray]] = []
        self.given: list[tuple[np.ndarray, np.ndarray]] = []

    def parameters(self, mean: np.ndarray, log_scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.asked.append((mean.astype(np.float64), log_scale.astype(np.float64)))
        answer = (
            self.writer.parameters(mean, log_scale) if self.answers is None else next(self.answers)
        )
        self.given.append(answer)
        return answer

    def round(self, values: np.ndarray, step: float = 1.0) -> np.ndarray:
        return self.writer.round(values, step)


def measure_margin(
    model: Model, frames: list[Frame], *, seed: int = 2, safety: float = 4.0
) -> Margin:
    """A margin at least ``safety`` times the largest difference between evaluations.

    Compared are batches of 8 and of 1, one and two threads, and float64; agreed integers in,
    floats out.
    The absolute part is what small parameters need, the relative one what large means need more.
    """
    crops = Crops(frames, seed=seed)
    threads = torch.get_num_threads()
    size, difference = [], []
    for compression in (
        model.config.rates[:: max(1, len(model.config.rates) // 4)] + model.config.rates[-1:]
    ):
        base = _Recorder(8, model.grid)
        symbols = [s for _, s in _run(model, crops.batch(8, 128), compression, base)]
        runs = [_again(model, base, symbols, compression, slice(i, i + 1)) for i in (0, 5)]
        runs.append(_again(_double(model), base, symbols, compression, slice(0, 8)))
        try:
            torch.set_num_threads(1)
            runs.append(_again(model, base, symbols, compression, slice(0, 8)))
        finally:
            torch.set_num_threads(threads)
        for now, then in (pair for run in runs for pair in run):
            size.append(np.abs(then).ravel())
            difference.append(np.abs(now - then).ravel())
    x, d = np.concatenate(size), np.concatenate(difference)
    absolute = _power(safety * d[x < 4].max(initial=2.0**-24))
    beyond = np.maximum(safety * d - absolute, 0) / np.maximum(x, 1)
    return Margin(absolute, _power(max(float(beyond.max()), 2.0**-22)))


def _power(x: float) -> float:
    """The power of two at or above x."""
    return 2.0 ** math.ceil(math.log2(x))


def _again(
    model: Model, base: _Recorder, symbols: list[np.ndarray], compression: float, rows: slice
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pairs of (parameters now, parameters then) of the same symbols and decisions, for some rows
    of the batch."""
    n = len(range(8)[rows])
    recorder = _Recorder(n, model.grid, [(index[rows], mean[rows]) for index, mean in base.given])
    given = iter([s[rows] for s in symbols])
    with torch.inference_mode():
        drive(model.steps((n, 8, 8), compression, recorder), lambda step: next(given))
    return [
        (now, then[rows]) for a, b in zip(recorder.asked, base.asked) for now, then in zip(a, b)
    ]


def _double(model: Model) -> Model:
    import copy

    return copy.deepcopy(model).double()
