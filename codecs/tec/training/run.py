"""What every training run has: schedule, averaged weights, a state to resume from, a curve."""

from __future__ import annotations

import copy
import json
import math
import time
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def half_precision(device: str) -> AbstractContextManager:
    """bfloat16 where it is quick (GPUs, processors with matrix units for it), else float32.

    What sets the mean of a latent stays in float32: see the models.
    """
    kind = torch.device(device).type
    quick = kind != "cpu" or torch.cpu._is_amx_tile_supported()
    return torch.autocast(kind, torch.bfloat16, enabled=quick)


@dataclass(frozen=True)
class Schedule:
    """What every recipe says.

    Attributes
    ----------
    steps : optimiser steps of the whole schedule
    learning_rate, warm_up, flat : the highest, steps until it is reached, share of the schedule
        until it falls
    ema : share of the averaged weights that a step keeps
    """

    steps: int = 9000
    learning_rate: float = 5e-4
    warm_up: int = 200
    flat: float = 0.4
    ema: float = 0.998
    seed: int = 0


class Run(ABC):
    """A module in training; ``state.pt`` in ``folder`` is written every few minutes.

    Attributes
    ----------
    module, average : what is trained, and the moving average of its weights
    history : what `measure` found, row by row
    """

    def __init__(
        self, recipe: Schedule, module: nn.Module, folder: Path, device: str, rng: Any
    ) -> None:
        self.recipe, self.folder, self.device, self.rng = recipe, folder, device, rng
        self.module = module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = copy.deepcopy(module).requires_grad_(False)
        learnt = [p for p in module.parameters() if p.requires_grad]
        self.optimiser = torch.optim.Adam(learnt, lr=recipe.learning_rate, fused=True)
        self.step = 0
        self.seconds = 0.0
        self.history: list[dict] = []
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / "state.pt").exists():
            self._resume()

    @abstractmethod
    def loss(self) -> Tensor:
        """Of one batch, drawn with ``rng`` and torch's generator."""

    @abstractmethod
    def measure(self) -> tuple[dict, str]:
        """The averaged weights on the validation places: a row of the history, and a line."""

    @abstractmethod
    def plot(self, path: Path) -> None:
        """A picture of the history."""

    def _resume(self) -> None:
        # A state of our own making: tensors, numbers and the generator's dictionary.
        state = torch.load(self.folder / "state.pt", weights_only=True, map_location=self.device)
        self.module.load_state_dict(state["module"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.seconds, self.history = state["step"], state["seconds"], state["history"]
        self.rng.bit_generator.state = json.loads(state["numpy"])
        torch.set_rng_state(state["torch"].cpu())

    def save(self) -> None:
        """Write the state, whole or not at all."""
        state = {
            "recipe": asdict(self.recipe),
            "module": self.module.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "history": self.history,
            "numpy": json.dumps(self.rng.bit_generator.state),
            "torch": torch.get_rng_state(),
        }
        torch.save(state, self.folder / "state.pt.new")
        (self.folder / "state.pt.new").replace(self.folder / "state.pt")

    def learning_rate(self) -> float:
        """Warm-up, a flat part, then half a cosine."""
        r = self.recipe
        progress = self.step / r.steps
        decay = 1.0
        if progress >= r.flat:
            decay = 0.5 * (1 + math.cos(math.pi * (progress - r.flat) / (1 - r.flat)))
        return r.learning_rate * min(1.0, self.step / r.warm_up) * decay + 1e-7

    def one_step(self) -> float:
        """Train on one batch."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate()
        value = self.loss()
        self.optimiser.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(self.optimiser.param_groups[0]["params"], 1.0)
        self.optimiser.step()
        keep = min(self.recipe.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            now = [p.detach() for p in self.module.parameters()]
            torch._foreach_lerp_(list(self.average.parameters()), now, 1 - keep)
        self.step += 1
        return value.item()

    def run(self, *, minutes: float = math.inf, every: float = 5.0) -> None:
        """Train to the end of the schedule or for ``minutes``; report and save every few
        minutes."""
        start = last = time.monotonic()
        losses: list[float] = []
        while self.step < self.recipe.steps and time.monotonic() - start < 60 * minutes:
            losses.append(self.one_step())
            if not math.isfinite(losses[-1]):
                raise FloatingPointError(
                    f"loss is {losses[-1]} at step {self.step}: resume with a smaller learning rate"
                )
            if time.monotonic() - last > 60 * every:
                self.seconds += time.monotonic() - last
                self.report(losses)
                last, losses = time.monotonic(), []
        self.seconds += time.monotonic() - last
        self.report(losses)

    def report(self, losses: list[float]) -> None:
        """Measure; write history, curve and state."""
        row, line = self.measure()
        loss = sum(losses) / len(losses) if losses else None
        head = {"step": self.step, "seconds": round(self.seconds), "loss": loss}
        self.history.append({**head, "recipe": asdict(self.recipe), **row})
        (self.folder / "history.json").write_text(json.dumps(self.history, indent=1))
        self.plot(self.folder / "curve.png")
        self.save()
        about = "" if loss is None else f"  loss {loss:.4f}"
        print(f"step {self.step} ({self.seconds / 60:.0f} min){about}  {line}", flush=True)
