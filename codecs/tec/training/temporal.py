"""Training of the built-in ``tt``: the context model, told of dates before; transforms stay."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from ..models.compact import TRUST, CompactElic, Group, interpolate
from ..models.compact_tt import DATES, CompactTT, CompactTTConfig
from ..models.densities import Rounding
from .data import Crops, Frame
from .run import Run, Schedule, half_precision
from .sequences import Pool, Series
from .train import EXTRA, curves, extend


@dataclass(frozen=True)
class TemporalRecipe(Schedule):
    """How to train.

    Attributes
    ----------
    positions : latent positions a step, about, over all dates
    sizes : edges of the crops, in latent positions
    partial : share of batches in which only the strongest channels of the last date are known, and
        the rest is what is predicted for it: what ``flex`` does
    stray : share of images that are told of another place: a date before may say nothing (clouds,
        snow), which is to be noticed while the first groups are decoded
    refresh : steps until one of the pool's entries is made anew
    """

    steps: int = 6000
    positions: int = 1152
    sizes: tuple[int, ...] = (6, 8, 12)
    partial: float = 0.15
    stray: float = 0.3
    learning_rate: float = 3e-4
    warm_up: int = 100
    flat: float = 0.15
    refresh: int = 6
    entries: int = 250
    model: CompactTTConfig = field(default_factory=CompactTTConfig)


@torch.no_grad()
def start_from_elic(tt: CompactTT, elic: CompactElic) -> None:
    """Its context model, and nothing told."""
    tt.transforms.load_state_dict(elic.transforms.state_dict())
    tt.log_scale.copy_(elic.log_scale)
    side = tt.sizes.side
    for mine, given in zip(tt.groups, elic.groups):
        own, known = mine.state_dict(), given.state_dict()
        weight = torch.zeros_like(own["trunk.0.weight"])
        source = known["trunk.0.weight"]
        weight[:, 0] = source[:, 0]
        at, k = 1 + side, 1
        for size in elic.config.groups:
            if k >= source.shape[1]:
                break
            weight[:, at : at + size] = source[:, k : k + size]
            at, k = at + 2 * size, k + size
        mine.load_state_dict({**own, **known, "trunk.0.weight": weight})


@torch.no_grad()
def fit_prediction(tt: CompactTT, pool: Pool, entries: int = 60) -> None:
    """Least squares of each latent from the same one a date and two dates before."""
    sums = torch.zeros(5, tt.config.latents, dtype=torch.float64)
    for _ in range(entries):
        pool.refresh()
        y = pool.latest().double().cpu()
        if len(y) < 3:
            continue
        b, a, x = y[:3]  # two dates before, one before, now
        pairs = ((a, a), (a, b), (b, b), (a, x), (b, x))
        # Places weigh alike, or a bright one would have the say.
        scale = x.square().mean((1, 2)) + 1e-3
        sums += torch.stack([(p * q).mean((1, 2)) / scale for p, q in pairs])
    aa, ab, bb, ax, bx = sums
    ridge = 0.02 * (aa + bb) + 1e-9
    aa, bb = aa + ridge, bb + ridge
    determinant = aa * bb - ab**2
    newer, older = (ax * bb - bx * ab) / determinant, (bx * aa - ax * ab) / determinant
    alone = ax / aa
    share = 1 / torch.sigmoid(torch.tensor(TRUST + 1.0))  # about what trust takes off
    tt.newer[0] = (alone.clamp(0, 1) * share).float()
    tt.newer[1] = (newer.clamp(-1, 1) * share).float()
    tt.older[:] = (older.clamp(-1, 1) * share).float()


@torch.no_grad()
def extend_tt(source: CompactTT, target: CompactTT, frames: list[Frame], sensor: str) -> None:
    """A ``tt`` for a sensor with more bands, before it is trained: see `train.extend`."""
    extend(source.transforms, target.transforms, ("S2L2A", sensor))
    own = source.state_dict()
    keep = {k: v for k, v in target.state_dict().items() if k.startswith("transforms.")}
    target.load_state_dict({**own, **keep})
    new = EXTRA * (target.config.bands - source.config.bands)
    x = torch.stack([c for _ in range(8) for c in Crops(frames, sensor=sensor).batch(8, 96)])
    spread = target.transforms.latent(x).std((0, 2, 3))[-new:]
    target.log_scale[-new:] = torch.log(0.4 * spread)
    last = cast(Group, target.groups[-1])
    size = target.config.groups[-1]
    for layer in (last.anchors, last.others):
        for first in (size - new, 2 * size - new):  # means, then scales
            for values in layer.parameters():
                values[first : first + new] = 0
    last.neighbours.weight[-new:] = 0
    target.newer[..., -new:] = 0.5
    target.older[..., -new:] = 0


class TemporalTrainer(Run):
    """Of the context model and of what reads the dates before. Transforms stay as they are.

    Parameters
    ----------
    start : what is trained further, or the ``elic`` that it starts from
    """

    recipe: TemporalRecipe

    def __init__(
        self,
        recipe: TemporalRecipe,
        start: CompactElic | CompactTT,
        places: list[Series],
        val: list[Series],
        folder: Path,
        device: str = "cpu",
    ) -> None:
        torch.manual_seed(recipe.seed)
        rng = np.random.default_rng(recipe.seed)
        self.val, self.alone = val, copy.deepcopy(start).to(device).eval()
        tt = start if isinstance(start, CompactTT) else CompactTT(recipe.model)
        if isinstance(start, CompactElic):
            start_from_elic(tt, start)
        tt.to(device)
        self.pool = Pool(places, tt.transforms, rng, entries=recipe.entries)
        if isinstance(start, CompactElic) and not (folder / "state.pt").exists():
            fit_prediction(tt, self.pool)
        tt.transforms.requires_grad_(False)
        tt.train()
        super().__init__(recipe, tt, folder, device, rng)
        self.typical = self._typical()

    @torch.no_grad()
    def _typical(self) -> Tensor:
        """Bits a position that a date takes by itself, at each rate: (rates,)."""
        y, _ = self.pool.batch(8, 8)
        out = []
        for rate in range(len(self.recipe.model.image.rates)):
            rates = torch.full((len(y),), float(rate), device=self.device)
            bits = by_itself(self.alone, y[:, 0].to(self.device) / self._step(rates), rates)
            out.append(bits.mean() / (y.shape[-1] * y.shape[-2]))
        return torch.stack(out)

    def _step(self, rate: Tensor) -> Tensor:
        return torch.exp(interpolate(self.module.transforms.log_step, rate))[:, :, None, None]

    def loss(self) -> Tensor:
        r, rng = self.recipe, self.rng
        if self.step % r.refresh == 0 or len(self.pool) < 60:
            self.pool.refresh()
        size = int(rng.choice(r.sizes))
        n = max(1, r.positions // (size**2 * self.pool.dates))
        seen, lengths = self.pool.batch(n, size)
        n, dates, _, h, w = seen.shape
        last = len(self.typical) - 1
        rate = torch.from_numpy(rng.uniform(0, last, n).astype(np.float32)).to(self.device)
        seen = seen.to(self.device)
        step = self._step(rate)[:, None]
        y = seen / step
        stray = torch.from_numpy(rng.random((n, 1, 1, 1, 1)) < r.stray).to(self.device)
        past = torch.where(stray, seen.roll(1, 0), seen) / step
        known = torch.round(past + 0.5 * (torch.rand_like(y) - 0.5))  # as if rounded around means
        if rng.random() < r.partial:
            sent = int(rng.choice(np.cumsum(r.model.image.groups)))
            known[:, :, sent:] = 0
        values = []
        # No, one and two dates before. (A batch of one length goes through the network at a time.)
        for t in range(dates):
            with half_precision(self.device):
                before = [known[:, i] for i in range(max(0, t - DATES), t)]
                told = self.module.told(before, (n, h, w), rate)
                bits = self.module.estimate(y[:, t], rate, Rounding(training=True), told)["bits"]
            typical = interpolate(self.typical.log()[:, None], rate).exp()[:, 0]
            # Logarithms, so that all rates and places weigh alike; nearly empty ones a little less.
            value = torch.log(bits / (h * w) / typical + 0.2)
            there = (lengths > t).to(value)
            values.append((value * there).sum() / n * (0.6 if t == 0 else 1.0))
        return torch.stack(values).sum() / 2.6

    def measure(self) -> tuple[dict, str]:
        self.average.eval()
        row: dict = {"tt": [], "alone": []}
        for rate in range(0, len(self.typical), 2) if self.val else ():
            tt, alone = compare(cast(CompactTT, self.average), self.alone, self.val, float(rate))
            row["tt"].append(tt)
            row["alone"].append(alone)
        pairs = zip(row["tt"], row["alone"])
        text = "  ".join(f"{a:.4f}/{b:.4f}={a / b:.3f}" for a, b in pairs)
        return row, f"tt/alone {text}"

    def plot(self, path: Path) -> None:
        if self.val:
            rows = [
                {**row, "ratio": [(b, a / b) for a, b in zip(row["tt"], row["alone"])]}
                for row in self.history
            ]
            curves(rows, "ratio", path, "size relative to dates by themselves")


def by_itself(model: CompactElic | CompactTT, y: Tensor, rate: Tensor) -> Tensor:
    """Bits (n,) of dates that are told nothing."""
    told = None
    if isinstance(model, CompactTT):
        told = model.told([], (len(y), *y.shape[2:]), rate)
    return model.estimate(y, rate, Rounding(training=False), told)["bits"]


@torch.inference_mode()
def compare(
    tt: CompactTT, alone: CompactElic | CompactTT, places: list[Series], rate: float
) -> tuple[float, float]:
    """bpppb of all dates but the first, estimated: of ``tt``, and of dates by themselves."""
    tt_bits = own_bits = samples = 0.0
    device = tt.log_scale.device
    for place in places:
        t, _, h, w = place.smooth.shape
        h, w = (min(s // 16 * 16, 256) for s in (h, w))
        x = torch.from_numpy(place.smooth[: min(t, 6), :, :h, :w]).to(device)
        rates = torch.full((len(x),), rate, device=device)
        y = tt.transforms.encode(x, rates)
        known = [part[None].round() for part in y]
        for i in range(1, len(x)):
            told = tt.told(known[max(0, i - DATES) : i], (1, *y.shape[2:]), rates[:1])
            out = tt.estimate(y[i : i + 1], rates[:1], Rounding(training=False), told)
            tt_bits += float(out["bits"].sum())
        own_bits += float(by_itself(alone, y[1:], rates[1:]).sum())
        samples += x[1:].numel()
    return tt_bits / samples, own_bits / samples
