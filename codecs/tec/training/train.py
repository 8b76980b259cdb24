"""Joint training of the built-in transforms, ``elic`` and ``fp``: all rates, from the KLT on."""

from __future__ import annotations

import copy
import json
import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn

from ..models.compact import CompactConfig, CompactElic, CompactFactorized
from ..models.densities import Rounding
from ..sensors import SENSORS
from .data import Crops, Frame, blocks


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes
    ----------
    steps : optimiser steps of the whole schedule
    lambdas : λ of the loss at the first and at the last gain vector; between them log-linear
    share_fp : share of batches on which the factorised prior, and plain rounding, are trained
    klt_rate : learning rate of the linear transform, relative to the rest
    """

    steps: int = 9000
    batch: int = 8
    lambdas: tuple[float, float] = (0.12, 600.0)
    learning_rate: float = 5e-4
    klt_rate: float = 0.1
    warm_up: int = 200
    flat: float = 0.4
    share_fp: float = 0.15
    ema: float = 0.998
    seed: int = 0
    model: CompactConfig = field(default_factory=CompactConfig)


class Pair(nn.Module):
    """``elic`` and ``fp`` over one set of transforms."""

    def __init__(self, config: CompactConfig) -> None:
        super().__init__()
        self.elic = CompactElic(config)
        self.fp = CompactFactorized(config)
        self.fp.transforms = self.elic.transforms


@torch.no_grad()
def start_from_klt(pair: Pair, samples: torch.Tensor) -> None:
    """Set the linear path to the KLT of ``samples`` (n, bands * 256), and the priors to its own
    scales."""
    t = pair.elic.transforms
    mean = samples.mean(0)
    centred = samples - mean
    if len(centred) < centred.shape[1]:  # a toy corpus: the same vectors, sooner
        basis = torch.linalg.svd(centred, full_matrices=False)[2].T
    else:
        basis = torch.linalg.eigh((centred.T @ centred).double())[1].flip(1).float()
    basis = basis[:, : t.klt.out_channels]
    t.klt.weight.copy_(basis.T.reshape(t.klt.weight.shape))
    bias = {n: p for n, p in t.named_parameters() if n.endswith("bias")}
    bias["klt.bias"].copy_(-(mean @ basis))
    t.inverse.weight.copy_(basis.T.reshape(t.inverse.weight.shape))
    bias["inverse.bias"].copy_(mean.reshape(t.inverse.out_channels, -1).mean(1))
    size = torch.log(0.75 * (centred @ basis).abs().mean(0) + 1e-3)
    pair.elic.log_scale.copy_(size)
    pair.fp.log_scale.copy_(size - t.log_step)


def loss_lambda(recipe: Recipe, rate: torch.Tensor) -> torch.Tensor:
    """λ of the loss at positions ``rate`` between the gain vectors."""
    low, high = (math.log(v) for v in recipe.lambdas)
    return torch.exp(low + rate / (len(recipe.model.rates) - 1) * (high - low))


def loss(x: torch.Tensor, out: dict[str, torch.Tensor], lmbda: torch.Tensor) -> torch.Tensor:
    """log(λ · squared error per pixel + bits per pixel), so that all rates weigh alike."""
    pixels = x.shape[2] * x.shape[3]
    error = ((out["x_hat"] - x) ** 2).sum((1, 2, 3)) / pixels
    return torch.log(lmbda * error + out["bits"] / pixels).mean()


class Trainer:
    """Holds everything that a resumed run needs; ``state.pt`` in ``folder`` is written every few
    minutes."""

    def __init__(
        self,
        recipe: Recipe,
        train: list[Frame],
        val: list[Frame],
        folder: Path,
        device: str = "cpu",
    ) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.val, self.folder, self.device = recipe, val, folder, device
        self.crops = Crops(train, seed=recipe.seed)
        self.pair = Pair(recipe.model)
        start_from_klt(
            self.pair, blocks(train, gsd=SENSORS["S2L2A"].gsd, per_frame=150, seed=recipe.seed)
        )
        self.pair.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = copy.deepcopy(self.pair).requires_grad_(False)
        linear = {
            id(p)
            for m in (self.pair.elic.transforms.klt, self.pair.elic.transforms.inverse)
            for p in m.parameters()
        }
        self.optimiser = torch.optim.Adam(
            [
                {
                    "params": [p for p in self.pair.parameters() if id(p) in linear],
                    "factor": recipe.klt_rate,
                },
                {
                    "params": [p for p in self.pair.parameters() if id(p) not in linear],
                    "factor": 1.0,
                },
            ],
            lr=recipe.learning_rate,
        )
        self.step = 0
        self.seconds = 0.0
        self.history: list[dict] = []
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / "state.pt").exists():
            self._resume()

    def _resume(self) -> None:
        # A state of our own making: tensors, numbers and the generator's dictionary.
        state = torch.load(self.folder / "state.pt", weights_only=True, map_location=self.device)
        self.pair.load_state_dict(state["pair"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.seconds, self.history = state["step"], state["seconds"], state["history"]
        self.crops.rng.bit_generator.state = json.loads(state["numpy"])
        torch.set_rng_state(state["torch"].cpu())

    def save(self) -> None:
        state = {
            "pair": self.pair.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "history": self.history,
            "numpy": json.dumps(self.crops.rng.bit_generator.state),
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
        return r.learning_rate * min(1.0, self.step / r.warm_up) * decay + 1e-7

    def one_step(self) -> float:
        r = self.recipe
        for group in self.optimiser.param_groups:
            group["lr"] = self._learning_rate() * group["factor"]
        rng = self.crops.rng
        x = self.crops.batch(r.batch, 128 if rng.random() < 0.7 else 96).to(self.device)
        rate = torch.from_numpy(
            rng.uniform(0, len(r.model.rates) - 1, r.batch).astype(np.float32)
        ).to(self.device)
        model = self.pair.fp if rng.random() < r.share_fp else self.pair.elic
        value = loss(x, model(x, rate, Rounding(training=True)), loss_lambda(r, rate))
        self.optimiser.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(self.pair.parameters(), 1.0)
        self.optimiser.step()
        keep = min(r.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for mean, now in zip(self.average.parameters(), self.pair.parameters()):
                mean.lerp_(now, 1 - keep)
        self.step += 1
        return value.item()

    def run(self, *, minutes: float = math.inf, every: float = 5.0) -> None:
        """Train to the end of the schedule or for ``minutes``; report and save every few
        minutes."""
        start = last = time.monotonic()
        while self.step < self.recipe.steps and time.monotonic() - start < 60 * minutes:
            value = self.one_step()
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"loss is {value} at step {self.step}: resume with a smaller learning rate"
                )
            if time.monotonic() - last > 60 * every:
                self.seconds += time.monotonic() - last
                self.report()
                self.save()
                last = time.monotonic()
        self.seconds += time.monotonic() - last
        self.report()
        self.save()

    def report(self) -> None:
        """Measure the averaged weights on the validation frames; write history and curve."""
        row: dict = {
            "step": self.step,
            "seconds": round(self.seconds),
            "recipe": asdict(self.recipe),
        }
        self.average.eval()
        row["elic"] = evaluate(
            self.average.elic, self.val, len(self.recipe.model.rates), self.device
        )
        row["fp"] = evaluate(
            self.average.fp, self.val[::4], len(self.recipe.model.rates), self.device
        )
        self.history.append(row)
        (self.folder / "history.json").write_text(json.dumps(self.history, indent=1))
        plot(self.history, self.folder / "curve.png")
        points = "  ".join(f"{b:.4f}:{p:.2f}" for b, p in row["elic"])
        print(f"step {self.step} ({self.seconds / 60:.0f} min)  elic {points}", flush=True)
        points = "  ".join(f"{b:.4f}:{p:.2f}" for b, p in row["fp"])
        print(f"{'':10}fp {points}", flush=True)


def plot(history: list[dict], path: Path) -> None:
    """Rate-distortion curves of ``elic`` on the validation frames, the last one darkest."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.add_subplot()
    for i, row in enumerate(history):
        rate, quality = zip(*row["elic"])
        share = (i + 1) / len(history)
        label = f"step {row['step']}" if i in (0, len(history) - 1) else None
        axes.semilogx(rate, quality, color="tab:blue", alpha=share**2, marker=".", label=label)
    axes.set_xlabel("bits per pixel per band")
    axes.set_ylabel("PSNR in dB, peak 10000 DN")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=100)


@torch.inference_mode()
def evaluate(
    model: nn.Module, frames: list[Frame], rates: int, device: str
) -> list[tuple[float, float]]:
    """(bpppb, mean PSNR in dB with peak 10000 DN) at each trained rate, estimated bits."""
    std = torch.tensor(SENSORS["S2L2A"].std, device=device)[:, None, None]
    rows = []
    for rate in range(rates):
        bits = samples = 0.0
        psnr = []
        for frame in frames:
            h, w = (min(s // 32 * 32, 256) for s in frame.values.shape[1:])
            x = torch.from_numpy(frame.values[None, :, :h, :w]).to(device)
            out = model(x, torch.full((1,), float(rate), device=device), Rounding(training=False))
            psnr.append(10 * math.log10(1e8 / float((((out["x_hat"] - x)[0] * std) ** 2).mean())))
            bits += float(out["bits"].sum())
            samples += x.numel()
        rows.append((bits / samples, float(np.mean(psnr))))
    return rows
