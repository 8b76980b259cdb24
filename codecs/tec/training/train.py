"""Joint training of the built-in transforms, ``elic`` and ``fp``: all rates, from the KLT on."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn as nn

from ..models.compact import (
    BLOCK,
    CompactConfig,
    CompactElic,
    CompactFactorized,
    Transforms,
    lapped,
)
from ..models.densities import Rounding
from ..sensors import SENSORS
from .data import Crops, Frame
from .run import Run, Schedule, half_precision


@dataclass(frozen=True)
class Recipe(Schedule):
    """How to train.

    Attributes
    ----------
    batch, sizes : images a step, and the edges they are drawn from
    lambdas : λ of the loss at the first and at the last gain vector; between them log-linear
    share_fp : share of batches on which the factorised prior, and plain rounding, are trained
    sensor : whose bands and statistics
    band_weights : of each band in the loss, 1 where it says nothing
    """

    batch: int = 8
    sizes: tuple[int, ...] = (128, 128, 96)
    lambdas: tuple[float, float] = (0.12, 600.0)
    share_fp: float = 0.15
    sensor: str = "S2L2A"
    band_weights: tuple[float, ...] = ()
    model: CompactConfig = field(default_factory=CompactConfig)


class Pair(nn.Module):
    """``elic`` and ``fp`` over one set of transforms."""

    def __init__(self, config: CompactConfig) -> None:
        super().__init__()
        self.elic = CompactElic(config)
        self.fp = CompactFactorized(config)
        self.fp.transforms = self.elic.transforms


@torch.no_grad()
def start_from_klt(pair: Pair, crops: Crops, count: int = 1000) -> None:
    """Set the linear path to the lapped KLT of crops, and the priors to its own scales."""
    t = pair.elic.transforms
    size = t.klt.kernel_size[0]
    length = t.klt.in_channels * size**2
    moments, n = torch.zeros(length, length, dtype=torch.float64), 0
    total = moments[0].clone()
    for _ in range(-(-count // 8)):
        x = crops.batch(8, 96, vary=False)
        folded = lapped(x, t.lap)[:, :, size:-size, size:-size]  # the outer edges are another law
        rows = folded.unflatten(3, (-1, size)).unflatten(2, (-1, size))  # (n, c, i, 16, j, 16)
        rows = rows.permute(0, 2, 4, 1, 3, 5).flatten(0, 2).flatten(1).double()
        moments.addmm_(rows.T, rows)
        total, n = total + rows.sum(0), n + len(rows)
    level = (total / n).reshape(len(t.level), -1).mean(1)
    mean = level.repeat_interleave(size**2)
    covariance = moments / n - mean[:, None] * mean
    values, vectors = torch.linalg.eigh(covariance)
    basis = vectors.flip(1)[:, : t.klt.out_channels]
    t.klt.weight.copy_(basis.T.reshape(t.klt.weight.shape))
    assert t.klt.bias is not None
    t.klt.bias.copy_(-(mean @ basis))
    t.level.copy_(level)
    spread = values.flip(0)[: basis.shape[1]].clamp_min(1e-6).sqrt()
    scale = torch.log(0.4 * spread).float()
    pair.elic.log_scale.copy_(scale)
    pair.fp.log_scale.copy_(scale - t.log_step)


#: Latents that a band gets which the sensor before did not have.
EXTRA = 16


@torch.no_grad()
def extend(source: Transforms, target: Transforms, sensors: tuple[str, str]) -> None:
    """The transforms of one sensor (`sensors[0]`) as a start for another with more bands.

    Bands that both have are treated alike, in DN. A further band goes by itself: its own pixels'
    strongest cosines take the place of the weakest latents.
    """
    have, want = (SENSORS[name] for name in sensors)
    both = [want.bands.index(band) for band in have.bands]
    extra = [i for i in range(len(want.bands)) if i not in both]
    own, known = target.state_dict(), source.state_dict()
    for name, value in known.items():
        if own[name].shape == value.shape:
            own[name] = value.clone()
    unit, zero = own["unit"], own["zero"]
    for i, j in enumerate(both):
        unit[j] = want.std[j] / have.std[i] * known["unit"][i]
        zero[j] = (want.mean[j] - have.mean[i]) / have.std[i] + known["zero"][i]
    unit[extra] = 1.25  # B10 varies by a few DN, and by hundreds under cirrus
    for name in ("klt.weight", "level"):
        own[name].zero_()
    own["klt.weight"][:, both] = known["klt.weight"]
    own["level"][both] = known["level"]
    own["klt.bias"] = known["klt.bias"].clone()
    size = BLOCK
    cosines = sorted((i + j, i, j) for i in range(size) for j in range(size))[:EXTRA]
    x = (2 * torch.arange(size) + 1) * math.pi / (2 * size)
    wave = torch.stack([torch.cos(x * k) * math.sqrt((2 if k else 1) / size) for k in range(size)])
    last = len(own["klt.bias"])
    for band in extra:
        for row, (_, i, j) in zip(range(last - EXTRA, last), cosines):
            own["klt.weight"][row] = 0
            own["klt.weight"][row, band] = wave[i][:, None] * wave[j]
        last -= EXTRA
    weak = slice(last, None)
    outer = f"analysis.{len(target.analysis) - 1}"
    for name in ("klt.bias", f"{outer}.weight", f"{outer}.bias"):
        own[name][weak] = 0
    # What decodes them is no longer what the weak ones needed, shrunk and mixed into all bands.
    own["log_gain"][:, weak] = own["log_step"][:, weak]
    own["expand.weight"][:, weak] = 0
    # PixelUnshuffle and -Shuffle keep the 16 pixels of a band together.
    first, outer = "analysis.1.weight", f"synthesis.{len(target.synthesis) - 2}"
    own[first].zero_()
    own[first].unflatten(1, (-1, 16))[:, both] = known[first].unflatten(1, (-1, 16))
    for part in ("weight", "bias"):
        name = f"{outer}.{part}"
        own[name].zero_()
        own[name].unflatten(0, (-1, 16))[both] = known[name].unflatten(0, (-1, 16))
    target.load_state_dict(own)


def loss_lambda(recipe: Recipe, rate: torch.Tensor) -> torch.Tensor:
    """λ of the loss at positions ``rate`` between the gain vectors."""
    low, high = (math.log(v) for v in recipe.lambdas)
    return torch.exp(low + rate / (len(recipe.model.rates) - 1) * (high - low))


def loss(
    x: torch.Tensor, out: dict[str, torch.Tensor], lmbda: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """log(λ · squared error per pixel + bits per pixel), so that all rates weigh alike."""
    pixels = x.shape[2] * x.shape[3]
    error = ((out["x_hat"] - x).square().sum((2, 3)) * weights).sum(1) / pixels
    return torch.log(lmbda * error + out["bits"] / pixels).mean()


class Trainer(Run):
    """Of transforms, ``elic`` and ``fp``. The linear path stays the KLT that it starts from."""

    recipe: Recipe

    def __init__(
        self,
        recipe: Recipe,
        train: list[Frame],
        val: list[Frame],
        folder: Path,
        device: str = "cpu",
        start: Pair | None = None,
    ) -> None:
        torch.manual_seed(recipe.seed)
        self.val = val
        self.crops = Crops(train, sensor=recipe.sensor, seed=recipe.seed)
        pair = start or Pair(recipe.model)
        if start is None and not (folder / "state.pt").exists():
            start_from_klt(pair, self.crops)
        pair.elic.transforms.klt.requires_grad_(False)
        pair.train()
        self.pair = pair
        weights = recipe.band_weights or (1.0,) * recipe.model.bands
        self.weights = torch.tensor(weights, device=device)
        super().__init__(recipe, pair, folder, device, self.crops.rng)

    def loss(self) -> torch.Tensor:
        r, rng = self.recipe, self.rng
        x = self.crops.batch(r.batch, int(rng.choice(r.sizes))).to(self.device)
        last = len(r.model.rates) - 1
        rate = torch.from_numpy(rng.uniform(0, last, r.batch).astype(np.float32)).to(self.device)
        model = self.pair.fp if rng.random() < r.share_fp else self.pair.elic
        with half_precision(self.device):
            out = model(x, rate, Rounding(training=True))
        return loss(x, out, loss_lambda(r, rate), self.weights)

    def measure(self) -> tuple[dict, str]:
        self.average.eval()
        rates, sensor = len(self.recipe.model.rates), self.recipe.sensor
        pair = cast(Pair, self.average)
        elic = evaluate(pair.elic, self.val, rates, self.device, sensor)
        fp = evaluate(pair.fp, self.val[::4], rates, self.device, sensor)
        text = ["  ".join(f"{b:.4f}:{p:.2f}" for b, p in rows) for rows in (elic, fp)]
        return {"elic": elic, "fp": fp}, f"elic {text[0]}\n{'':10}fp {text[1]}"

    def plot(self, path: Path) -> None:
        curves(self.history, "elic", path)


def curves(
    history: list[dict], model: str, path: Path, what: str = "PSNR in dB, peak 10000 DN"
) -> None:
    """What the validation places show at each bpppb, the last report darkest."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.add_subplot()
    for i, row in enumerate(history):
        rate, quality = zip(*row[model])
        share = (i + 1) / len(history)
        label = f"step {row['step']}" if i in (0, len(history) - 1) else None
        axes.semilogx(rate, quality, color="tab:blue", alpha=share**2, marker=".", label=label)
    axes.set_xlabel("bits per pixel per band")
    axes.set_ylabel(what)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=100)


@torch.inference_mode()
def evaluate(
    model: nn.Module, frames: list[Frame], rates: int, device: str, sensor: str = "S2L2A"
) -> list[tuple[float, float]]:
    """(bpppb, mean PSNR in dB with peak 10000 DN) at each trained rate, estimated bits."""
    std = torch.tensor(SENSORS[sensor].std, device=device)[:, None, None]
    rows = []
    for rate in range(rates):
        bits = samples = 0.0
        psnr = []
        for frame in frames:
            h, w = (min(s // 32 * 32, 256) for s in frame.values.shape[1:])
            x = torch.from_numpy(frame.smooth[None, :, :h, :w]).to(device)
            out = model(x, torch.full((1,), float(rate), device=device), Rounding(training=False))
            psnr.append(10 * math.log10(1e8 / float((((out["x_hat"] - x)[0] * std) ** 2).mean())))
            bits += float(out["bits"].sum())
            samples += x.numel()
        rows.append((bits / samples, float(np.mean(psnr))))
    return rows
