"""From a training state of ``tt`` to the file that ships, with its tables, centroids and margin."""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save

from ..coder import Taken
from ..entropy.integers import IntegerCoding, Law, fractions, gaussian, integer_tables
from ..entropy.portable import Margin, Writer
from ..entropy.tables import Tables
from ..errors import WeightsError
from ..models.coding import drive
from ..models.compact import CompactElic, interpolate
from ..models.compact_tt import CompactPrior, CompactTT, CompactTTConfig
from ..models.temporal import History
from .export import _FACTORS, _power, _Recorder
from .sequences import Pool, Series
from .temporal import MIDDLE, predictions, quantised

_REACH = 2  # symbols on either side that have a centroid of their own
_WIDEST = 255  # symbols beyond it are not looked at when tables are fitted


def export_tt(
    prior: CompactPrior,
    config: CompactTTConfig,
    elic: CompactElic,
    places: list[Series],
    folder: Path,
    *,
    sensor: str = "S2L2A",
    batches: int = 60,
) -> dict:
    """Write ``tt`` of one sensor to ``folder`` and add it to the manifest there.

    Tables, centroids and margin are measured on series of ``places``, with the weights as they are
    after rounding to half precision. Nothing is written before all is measured.

    Returns
    -------
    The entry of the manifest.
    """
    for name, parameter in prior.named_parameters():
        if not _keep(name):
            parameter.data = parameter.data.half().float()
    network = CompactTT(config)
    network.intra, network.prior = elic, prior.eval().requires_grad_(False)
    pool = Pool(places, elic.transforms, seed=1)
    network.tables, network.centroids = fit(network, pool, batches)
    network.margin = measure_margin(network, pool)
    prefix = sensor.lower()
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    files = manifest[sensor]["elic"]["files"]
    metadata = {
        "model": "tt",
        "config": json.dumps(asdict(config)),
        "margin": json.dumps([network.margin.absolute, network.margin.relative]),
        "intra_margin": json.dumps([elic.margin.absolute, elic.margin.relative]),
    }
    tensors = {
        f"prior.{name}": (value if _keep(name) else value.half()).contiguous()
        for name, value in prior.state_dict().items()
    }
    arrays = {f"tt_tables.{k}": v for k, v in network.tables.to_arrays().items()}
    arrays["centroids"] = network.centroids
    tensors |= {k: torch.from_numpy(v) for k, v in arrays.items()}
    data = save(tensors, metadata=metadata)
    shared = b"".join((folder / name).read_bytes() for name in files)
    entry = {
        "files": [*files, f"{prefix}-tt.safetensors"],
        "sha256": hashlib.sha256(shared + data).hexdigest(),
        "parameters": sum(p.numel() for p in network.parameters()),
        "bands": config.image.bands,
        "compression": [config.image.rates[0], config.image.rates[-1]],
    }
    manifest[sensor]["tt"] = entry
    (folder / f"{prefix}-tt.safetensors").write_bytes(data)
    path.write_text(json.dumps(manifest, indent=1) + "\n")
    return entry


def averaged_tt(folder: Path, config: CompactTTConfig) -> CompactPrior:
    """The averaged weights of a run."""
    if not (folder / "state.pt").exists():
        raise WeightsError(
            f"no training state in {folder}: run `python -m tec.training fit-tt` first"
        )
    state = torch.load(folder / "state.pt", weights_only=True, map_location="cpu")
    prior = CompactPrior(config)
    prior.load_state_dict(state["average"])
    return prior


def _keep(name: str) -> bool:
    return name.startswith(("newer", "older", "log_scale", "energy", "spread"))


@torch.inference_mode()
def fit(network: CompactTT, pool: Pool, batches: int) -> tuple[Tables, np.ndarray]:
    """Tables for each level and fraction, and centroids: where values lie in their bins.

    The law of a level is a mixture of logistic and Gaussian laws of several widths around the
    level's own, of maximum likelihood for what is met there at all fractions.
    """
    grid = network.grid
    count = fractions(grid)
    first = np.concatenate([[0], np.cumsum(count)])
    rough = integer_tables(grid, [logistic(s) for s in grid.scales])
    coding = IntegerCoding(grid, rough)
    met = np.zeros((len(rough), 2 * _WIDEST + 1))
    sums = np.zeros((len(rough), 2 * _REACH + 1, 2))
    rates = len(network.config.image.rates)
    for _ in range(batches):
        pool.refresh()
        seen, _lengths = pool.batch(32)
        rate = torch.from_numpy(pool.rng.uniform(0, rates - 1, 32).astype(np.float32))
        step = interpolate(network.intra.transforms.log_step, rate).exp()[:, None, None]
        context, whole = quantised(seen / step)
        for t, (tokens, out) in enumerate(predictions(network.prior, context, whole, rate), 1):
            middle = (seen / step)[:, t][:, MIDDLE]
            values = torch.cat(tokens, 1).numpy()
            y = torch.cat(network.prior.layout.tokens(middle), 1).numpy()
            writer = Writer(32, grid, Margin(0.0, 0.0))
            index, integer = coding(
                *writer.parameters(
                    torch.cat(out.means, 1).numpy(), torch.cat(out.log_scales, 1).numpy()
                )
            )
            symbols = (values - integer).astype(np.int64)
            place = np.clip(symbols, -_WIDEST, _WIDEST) + _WIDEST
            np.add.at(met, (index.ravel(), place.ravel()), 1)
            near = np.clip(symbols, -_REACH, _REACH) + _REACH
            where = index.ravel().astype(np.int64) * (2 * _REACH + 1) + near.ravel()
            flat = sums.reshape(-1, 2)
            flat[:, 0] += np.bincount(where, (y - values).ravel(), len(flat))
            flat[:, 1] += np.bincount(where, minlength=len(flat))
    laws = [
        _fitted(met[a:b], scale, step)
        for a, b, scale, step in zip(first, first[1:], grid.scales, grid.steps)
    ]
    centroids = sums[..., 0] / (sums[..., 1] + 50.0)  # 50 made-up values at zero
    return integer_tables(grid, laws), centroids.astype(np.float32)


def _fitted(met: np.ndarray, scale: float, step: float) -> Law:
    """The mixture for one level; ``met`` counts (fraction, symbol)."""
    laws = [logistic(scale * f) for f in _FACTORS] + [gaussian(1.8 * scale * f) for f in _FACTORS]
    symbols = np.arange(-_WIDEST, _WIDEST + 1)
    means = (np.arange(len(met)) - len(met) // 2) * step
    within = ((np.arange(4) + 0.5) / 4 - 0.5) * step
    low, high = symbols - 0.5, symbols + 0.5
    components = np.stack(
        [
            np.stack(
                [np.mean([law(high - m - w) - law(low - m - w) for w in within], 0) for m in means]
            )
            for law in laws
        ]
    )  # (laws, fractions, symbols)
    own = components[_FACTORS.index(1.0)]
    # what is met on one side of zero will be met on the other
    mirrored = np.stack([met[(-i) % len(met)][::-1] for i in range(len(met))])
    evidence = 0.5 * (met + mirrored) + 300 * own / len(met)
    weights = np.full(len(laws), 1 / len(laws))
    for _ in range(200):
        mixture = np.tensordot(weights, components, 1)
        ratio = evidence / np.maximum(mixture, 1e-300)
        weights *= (components * ratio).sum((1, 2)) / evidence.sum()
    return lambda x: np.sum([w * law(x) for w, law in zip(weights, laws)], 0)


def logistic(scale: float) -> Law:
    """Cumulative logistic distribution."""
    return lambda x: 0.5 * (1 + np.tanh(x / (2 * scale)))


@torch.inference_mode()
def measure_margin(network: CompactTT, pool: Pool, *, safety: float = 4.0) -> Margin:
    """A margin at least ``safety`` times the largest difference between evaluations.

    The absolute part is in units of log scales, and of means relative to the scale of their level.

    Compared are: all tokens in one pass and one after another; batches of 4 and of 1; one and two
    threads; float32 and float64. Agreed integers in, floats out.
    """
    size, difference, scale = [], [], []
    threads = torch.get_num_threads()
    rates = network.config.image.rates
    for at in np.linspace(0, len(rates) - 1, 5):
        compression = float(np.exp(np.interp(at, np.arange(len(rates)), np.log(rates))))
        pool.refresh()
        ys = _four(network, pool, compression)
        base, units = _record(network, ys, compression, one_pass=True)
        others = [
            (_record(network, ys, compression), slice(None)),
            (_record(network, ys[:, 1:2], compression), slice(1, 2)),
            (_record(network, ys[:, 2:3], compression, one_pass=True), slice(2, 3)),
            (_record(copy.deepcopy(network).double(), ys.double(), compression), slice(None)),
        ]
        try:
            torch.set_num_threads(1)
            others.append((_record(network, ys, compression), slice(None)))
        finally:
            torch.set_num_threads(threads)
        for other, rows in others:
            for now, then, unit in zip(other[0], base, units):
                size.append(np.abs(then[rows]).ravel())
                difference.append(np.abs(now - then[rows]).ravel())
                scale.append(unit[rows].ravel())
    x, d, unit = np.concatenate(size), np.concatenate(difference), np.concatenate(scale)
    absolute = _power(safety * (d / unit)[x < 4].max(initial=2.0**-24))
    beyond = np.maximum(safety * d - absolute * unit, 0) / np.maximum(x, 1)
    return Margin(absolute, _power(max(float(beyond.max()), 2.0**-22)))


def _four(network: CompactTT, pool: Pool, compression: float) -> torch.Tensor:
    """Latents of four series of three dates: (dates, 4, latents, h, w), in quantiser steps."""
    history = network.history((1, 4, 4), compression)
    step = interpolate(network.intra.transforms.log_step, history.rate).exp()[0][:, None, None]  # type: ignore[arg-type]
    out: list[torch.Tensor] = []
    while len(out) < 4:
        pool.refresh()
        y = pool.latest()
        if len(y) >= 3:
            out.append(y[:3, :, :4, :4] / step)
    return torch.stack(out, 1)


def _record(
    network: CompactTT, ys: torch.Tensor, compression: float, *, one_pass: bool = False
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Means and log scales, in coding order, of all dates but the first; and their units."""
    dates, n, _, h, w = ys.shape
    history: History = network.history((n, h, w), compression)
    history.push(ys[0].round())
    found, units = [], []
    for t in range(1, dates):
        whole = ys[t].round()
        recorder = _Recorder(n, network.grid)
        steps = network.date(history, recorder, known=whole if one_pass else None)
        drive(steps, Taken({"y": whole}))
        for part in (0, 1):
            found.append(np.concatenate([asked[part] for asked in recorder.asked], 1))
        level = np.concatenate([given[0] for given in recorder.given], 1)
        units += [network.grid.scales[level], np.ones(level.shape)]
        history.push(whole)
    return found, units
