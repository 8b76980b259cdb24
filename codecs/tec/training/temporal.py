"""Training of the built-in ``tt`` on the latents of transforms that stay as they are."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
from torch import Tensor

from ..models.compact import CompactElic, interpolate
from ..models.compact_tt import CompactPrior, CompactTTConfig
from ..models.densities import Rounding, integer_bits
from ..models.temporal import Context, Prediction, Unrolling
from ..models.tokens import TOKENS, windows
from .sequences import Pool, Series

#: Of a window's 64 positions, those of the block.
MIDDLE = [8 * row + column for row in range(2, 6) for column in range(2, 6)]


@dataclass(frozen=True)
class TemporalRecipe:
    """How to train.

    Attributes
    ----------
    steps : optimiser steps of the whole schedule
    blocks : series of blocks in a batch
    refresh : steps after which one entry of the pool is made anew
    """

    steps: int = 6000
    blocks: int = 24
    refresh: int = 4
    learning_rate: float = 1e-3
    warm_up: int = 200
    flat: float = 0.3
    ema: float = 0.998
    seed: int = 0
    model: CompactTTConfig = field(default_factory=CompactTTConfig)


def quantised(y: Tensor, around_means: float = 0.5) -> tuple[Tensor, Tensor]:
    """The context that a decoder has of (b, dates, 64, latents), and integers.

    The first date is coded around means, not to integers; that is imitated in a share of the
    entries.
    """
    whole = y.round()
    first = y[:, :1] + torch.rand_like(y[:, :1]) - 0.5
    first = torch.where(torch.rand(len(y), 1, 1, 1) < around_means, first, whole[:, :1])
    return torch.cat([first, whole[:, 1:]], 1), whole


def predictions(
    prior: CompactPrior, context: Tensor, seen: Tensor, rate: Tensor
) -> Iterator[tuple[list[Tensor], Prediction]]:
    """Tokens of each date but the first, and what is predicted of them.

    Parameters
    ----------
    context : (b, dates, 64, latents) windows in quantiser steps, as a decoder has them
    seen : (b, dates, 64, latents), of which the middle is coded: integers
    rate : (b,)
    """
    b, dates = seen.shape[:2]
    column = rate[:, None, None]
    encoded = [prior.encode(context[:, t], column) for t in range(dates - 1)]
    for t in range(1, dates):
        older, newer = (context[:, max(t - age, 0)][:, MIDDLE] for age in (2, 1))
        joined = prior.join(encoded[max(t - 2, 0)], encoded[t - 1])
        given = Context(prior.decoder.contexts(joined), prior.prior(older, newer, column), column)
        tokens = prior.layout.tokens(seen[:, t][:, MIDDLE])
        yield tokens, Unrolling(prior, given, b).predict(tokens[:-1], TOKENS)


def series_bits(prior: CompactPrior, context: Tensor, seen: Tensor, rate: Tensor) -> Tensor:
    """Bits of each date but the first, (b, dates - 1); see `predictions`."""
    bits = []
    for tokens, out in predictions(prior, context, seen, rate):
        each = [integer_bits(v, m, s).sum(1) for v, m, s in zip(tokens, out.means, out.log_scales)]
        bits.append(torch.stack(each).sum(0))
    return torch.stack(bits, 1)


class TemporalTrainer:
    """``state.pt`` in ``folder`` is written every few minutes; a resumed run makes its pool of
    latents anew, so that it goes on like the first one, not exactly as it would have."""

    def __init__(
        self,
        recipe: TemporalRecipe,
        elic: CompactElic,
        train: list[Series],
        val: list[Series],
        folder: Path,
        device: str = "cpu",
    ) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.elic, self.val = recipe, elic, val
        self.folder, self.device = folder, device
        self.pool = Pool(train, elic.transforms, seed=recipe.seed)
        self.prior = CompactPrior(recipe.model)
        self.typical = self._start()
        self.prior.to(device)
        self.average = copy.deepcopy(self.prior).requires_grad_(False)
        plain = ("newer", "older", "log_scale", "energy.weight", "energy.bias")
        linear = [p for n, p in self.prior.named_parameters() if n in plain]
        spread = [p for n, p in self.prior.named_parameters() if n.startswith("spread")]
        other = [
            p
            for n, p in self.prior.named_parameters()
            if n not in plain and not n.startswith("spread")
        ]
        self.optimiser = torch.optim.AdamW(
            [
                {"params": linear, "factor": 2.0, "weight_decay": 0.0},
                {"params": spread, "factor": 0.3, "weight_decay": 0.0},
                {"params": other, "factor": 1.0, "weight_decay": 0.01},
            ],
            lr=recipe.learning_rate,
            betas=(0.9, 0.98),
        )
        self.step = 0
        self.seconds = 0.0
        self.history: list[dict] = []
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / "state.pt").exists():
            self._resume()

    @torch.no_grad()
    def _start(self, batches: int = 12) -> Tensor:
        """Set the linear part by least squares; returns typical bits of a block at each rate."""
        pairs = [self.pool.batch(64) for _ in range(batches)]
        for _ in range(2 * batches):
            self.pool.refresh()
        seen = torch.cat([s[n > 1][:, :3][:, :, MIDDLE] for s, n in pairs])  # (b, 3, 16, c)
        old, new, now = (seen[:, t].flatten(0, 1) for t in range(3))
        a, b, c = (new * new).mean(0), (old * old).mean(0), (new * old).mean(0)
        p, q = (now * new).mean(0), (now * old).mean(0)
        a, b = 1.05 * a + 1e-4, 1.05 * b + 1e-4
        determinant = a * b - c * c
        newer, older = (p * b - q * c) / determinant, (q * a - p * c) / determinant
        missed = (now - newer * new - older * old).abs().mean(0)
        log_step = self.elic.transforms.log_step
        self.prior.newer.copy_(newer.expand_as(self.prior.newer))
        self.prior.older.copy_(older.expand_as(self.prior.older))
        size = torch.log(0.7 * missed + 0.05 * log_step.exp()) - log_step
        self.prior.log_scale.copy_(size.clamp(-3.0, 6.0))
        typical = []
        for i in range(len(log_step)):
            rate = torch.full((64,), float(i))
            context, whole = self._quantised(pairs[i % batches][0], rate)
            typical.append(series_bits(self.prior, context, whole, rate).mean())
        return torch.stack(typical)

    def _quantised(self, seen: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
        step = interpolate(self.elic.transforms.log_step, rate).exp()[:, None, None]
        return quantised(seen / step)

    def _resume(self) -> None:
        # A state of our own making: tensors, numbers and the generator's dictionary.
        state = torch.load(self.folder / "state.pt", weights_only=True, map_location=self.device)
        self.prior.load_state_dict(state["prior"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.seconds, self.history = state["step"], state["seconds"], state["history"]
        self.pool.rng.bit_generator.state = json.loads(state["numpy"])
        torch.set_rng_state(state["torch"].cpu())

    def save(self) -> None:
        state = {
            "prior": self.prior.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "history": self.history,
            "numpy": json.dumps(self.pool.rng.bit_generator.state),
            "torch": torch.get_rng_state(),
        }
        torch.save(state, self.folder / "state.pt.new")
        (self.folder / "state.pt.new").replace(self.folder / "state.pt")

    def _learning_rate(self) -> float:
        r = self.recipe
        progress = self.step / r.steps
        decay = (
            1.0
            if progress < r.flat
            else 0.5 * (1 + math.cos(math.pi * (progress - r.flat) / (1 - r.flat)))
        )
        return r.learning_rate * min(1.0, (self.step + 1) / r.warm_up) * decay + 1e-7

    def one_step(self) -> float:
        r = self.recipe
        for group in self.optimiser.param_groups:
            group["lr"] = self._learning_rate() * group["factor"]
        if self.step % r.refresh == 0:
            self.pool.refresh()
        seen, lengths = self.pool.batch(r.blocks)
        rate = torch.rand(r.blocks) * (len(self.typical) - 1)
        context, whole = self._quantised(seen, rate)
        context, whole, rate = (v.to(self.device) for v in (context, whole, rate))
        bits = series_bits(self.prior, context, whole, rate)
        there = (torch.arange(1, seen.shape[1]) < lengths[:, None]).to(bits)
        typical = interpolate(self.typical.log()[:, None].to(bits), rate).exp()  # (b, 1)
        # Logarithms, so that all rates and places weigh alike; nearly empty ones a little less.
        value = (torch.log(bits / typical + 0.2) * there).sum() / there.sum()
        self.optimiser.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(self.prior.parameters(), 1.0)
        self.optimiser.step()
        keep = min(r.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for mean, now in zip(self.average.parameters(), self.prior.parameters()):
                mean.lerp_(now, 1 - keep)
        self.step += 1
        return value.item()

    def run(self, *, minutes: float = math.inf, every: float = 5.0) -> None:
        """Train to the end of the schedule or for ``minutes``; report and save every few
        minutes."""
        start = last = time.monotonic()
        recent: list[float] = []
        while self.step < self.recipe.steps and time.monotonic() - start < 60 * minutes:
            recent.append(self.one_step())
            if not math.isfinite(recent[-1]):
                raise FloatingPointError(
                    f"loss is {recent[-1]} at step {self.step}: resume with a smaller learning rate"
                )
            if time.monotonic() - last > 60 * every or self.step == self.recipe.steps:
                self.seconds += time.monotonic() - last
                self.report(float(np.mean(recent)))
                self.save()
                last, recent = time.monotonic(), []
        self.save()

    def report(self, loss: float) -> None:
        """Measure the averaged weights on the validation series, beside ``elic``."""
        row: dict = {
            "step": self.step,
            "seconds": round(self.seconds),
            "loss": loss,
            "recipe": asdict(self.recipe),
            "tt": [],
            "elic": [],
        }
        for rate in range(0, len(self.typical), 2) if self.val else ():
            tt, elic = compare(self.average, self.elic, self.val, float(rate))
            row["tt"].append(tt)
            row["elic"].append(elic)
        self.history.append(row)
        (self.folder / "history.json").write_text(json.dumps(self.history, indent=1))
        points = "  ".join(f"{a:.4f}/{b:.4f}={a / b:.3f}" for a, b in zip(row["tt"], row["elic"]))
        print(
            f"step {self.step} ({self.seconds / 60:.0f} min)  loss {loss:.4f}  tt/elic {points}",
            flush=True,
        )


@torch.inference_mode()
def compare(
    prior: CompactPrior, elic: CompactElic, places: list[Series], rate: float
) -> tuple[float, float]:
    """bpppb of all dates but the first, estimated: of ``tt``, where a date may be coded as by
    ``elic`` if that is smaller, and of ``elic`` alone."""
    tt_bits = elic_bits = samples = 0.0
    for place in places:
        t, _, h, w = place.values.shape
        h, w = (min(s // 64 * 64, 256) for s in (h, w))
        x = torch.from_numpy(place.values[:, :, :h, :w])
        rates = torch.full((t,), rate)
        out = elic(x, rates, Rounding(training=False))
        y = out["y"]
        context = torch.cat([out["y_hat"][:1], y[1:].round()])
        where = windows(*y.shape[2:])
        seen = y.round().flatten(2)[:, :, where].permute(2, 0, 3, 1)  # (blocks, t, 64, c)
        given = context.flatten(2)[:, :, where].permute(2, 0, 3, 1)
        bits = series_bits(prior, given, seen, torch.full((len(where),), rate)).sum(0)
        own = out["bits"][1:]
        tt_bits += float(torch.minimum(bits, own).sum())
        elic_bits += float(own.sum())
        samples += x[1:].numel()
    return tt_bits / samples, elic_bits / samples
