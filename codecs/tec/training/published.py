"""Training at the published sizes: every network end to end, one λ a checkpoint, as in the paper.

What is saved has the names of the published files, so that it loads as they do
(``weights="run/checkpoint.pt"``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..models.densities import EntropyBottleneck
from ..models.elic import Elic, ElicConfig
from ..models.factorized import Factorized, FactorizedConfig
from ..models.tt import NAMES, TT, TTConfig
from ..sensors import SENSORS
from .data import Crops, Frame
from .run import Run, Schedule, half_precision
from .sequences import Series, SeriesCrops
from .train import curves


@dataclass(frozen=True)
class PublishedRecipe(Schedule):
    """How to train.

    Attributes
    ----------
    model : "fp", "elic", "tt" or "flex"
    lmbda : weighs the mean squared error of standardised bands against bits a pixel
    size, dates : of a crop; ``dates`` of "tt" and "flex"
    sizes : arguments of the network's configuration that differ from its own defaults
    """

    model: str = "elic"
    lmbda: float = 10.0
    steps: int = 200_000
    batch: int = 8
    size: int = 256
    dates: int = 4
    learning_rate: float = 1e-4
    warm_up: int = 1000
    flat: float = 0.6
    ema: float = 0.999
    sensor: str = "S2L2A"
    sizes: tuple[tuple[str, Any], ...] = ()


def build(recipe: PublishedRecipe) -> nn.Module:
    """The network, with random weights."""
    sizes = {"bands": len(SENSORS[recipe.sensor].bands), **dict(recipe.sizes)}
    if recipe.model == "fp":
        return Factorized(FactorizedConfig(**sizes))
    if recipe.model == "elic":
        return Elic(ElicConfig(**sizes))
    return TT(TTConfig(repacked=recipe.model == "flex", **sizes))


class PublishedTrainer(Run):
    """Of one checkpoint. ``train`` and ``val`` are frames for "fp" and "elic", else series."""

    recipe: PublishedRecipe

    def __init__(
        self,
        recipe: PublishedRecipe,
        train: Sequence[Frame] | Sequence[Series],
        val: Sequence[Frame] | Sequence[Series],
        folder: Path,
        device: str = "cpu",
    ) -> None:
        torch.manual_seed(recipe.seed)
        self.val = val
        self.temporal = recipe.model in ("tt", "flex")
        self.rng = np.random.default_rng(recipe.seed)
        if self.temporal:
            places = [p for p in train if isinstance(p, Series)]
            self.series = SeriesCrops(places, self.rng, dates=recipe.dates)
        else:
            frames = [f for f in train if isinstance(f, Frame)]
            self.crops = Crops(frames, sensor=recipe.sensor)
            self.crops.rng = self.rng
        network = build(recipe)
        network.train()
        super().__init__(recipe, network, folder, device, self.rng)

    def _batch(self) -> Tensor:
        r = self.recipe
        if not self.temporal:
            return self.crops.batch(r.batch, r.size)
        drawn = [self.series.draw(r.size, exactly=True) for _ in range(r.batch)]
        return torch.from_numpy(np.stack(drawn))

    def loss(self) -> Tensor:
        r = self.recipe
        x = self._batch().to(self.device)
        with half_precision(self.device):
            if r.model == "flex":  # one quality a batch, the high ones more often
                chance = np.arange(1, 17) / np.arange(1, 17).sum()
                quality = int(self.rng.choice(np.arange(1, 17), p=chance))
                out = self.module(x, quality, as_trained=True)
            else:
                out = self.module(x)
        value = cost(x, out, r.lmbda)
        # The tails of the learned densities have a loss of their own (Balle et al. 2018, 6.1).
        tails = [
            (m.logits(m.quantiles) - m.target).abs().sum()
            for m in self.module.modules()
            if isinstance(m, EntropyBottleneck)
        ]
        return value + sum(tails, value.new_zeros(()))

    def measure(self) -> tuple[dict, str]:
        """Bits a pixel and band, and PSNR in dB with peak 10000 DN."""
        r = self.recipe
        self.average.eval()
        std = torch.tensor(SENSORS[r.sensor].std, device=self.device)[:, None, None]
        bits = samples = error = 0.0
        for item in self.val:
            values = item.smooth[: r.dates] if self.temporal else item.smooth
            h, w = (min(s // 64 * 64, r.size) for s in values.shape[-2:])
            if not h or not w:
                continue
            x = torch.from_numpy(np.ascontiguousarray(values[None, ..., :h, :w])).to(self.device)
            with torch.inference_mode():
                out = self.average(x)
            bits += float(out["bits"].sum())
            error += float(((out["x_hat"] - x) * std).double().square().sum())
            samples += x.numel()
        if not samples:
            return {"curve": []}, ""
        point = (bits / samples, 10 * float(np.log10(1e8 * samples / max(error, 1e-9))))
        return {"curve": [point]}, f"{point[0]:.4f} bpppb, {point[1]:.2f} dB"

    def plot(self, path: Path) -> None:
        if all(row["curve"] for row in self.history):
            curves(self.history, "curve", path)

    def save(self) -> None:
        super().save()
        torch.save(published_state(self.average), self.folder / "checkpoint.pt")


def cost(x: Tensor, out: dict[str, Tensor], lmbda: float) -> Tensor:
    """λ · mean squared error + bits a pixel (TerraCodec, arXiv 2510.12670, section 3)."""
    pixels = x[..., 0, :, :].numel()
    return lmbda * (out["x_hat"] - x).square().mean() + out["bits"].sum() / pixels


@torch.no_grad()
def published_state(network: nn.Module) -> dict[str, Tensor]:
    """The weights under their published names, with integer tables where the model has any."""
    for module in network.modules():
        if isinstance(module, EntropyBottleneck):
            module.update()
    state = {}
    for key, value in network.state_dict().items():
        names = NAMES if isinstance(network, TT) else ()
        theirs = next((t + key[len(o) :] for t, o in names if key.startswith(o)), key)
        state["model." + theirs] = value.detach().cpu().clone()
    return state
