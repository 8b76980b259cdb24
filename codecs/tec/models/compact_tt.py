"""The built-in ``tt``: a small temporal transformer over the built-in transforms, for every rate.

It corrects what can be said linearly: each latent is predicted from the same one on the two dates
before, and from how its neighbours in the block missed their own predictions. A date that the dates
before say little about, the first among them, is coded as by ``elic``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..entropy.integers import IntegerCoding
from ..entropy.portable import Margin, ScaleGrid, Writer
from ..entropy.tables import Tables
from .coding import Rounder, drive
from .compact import CompactConfig, CompactElic, interpolate, position
from .densities import Rounding, integer_bits
from .temporal import DateOut, DateSteps, History, Part, TemporalPrior, date_steps
from .tokens import BLOCK, CELLS, TOKENS, Layout, TokenStep, picture
from .transformer import EPSILON

#: Two by two interleaved grids of a block, diagonal neighbours first.
PHASES = tuple(
    tuple(BLOCK * row + column for row in (r, r + 2) for column in (c, c + 2))
    for r, c in ((0, 0), (1, 1), (0, 1), (1, 0))
)


@dataclass(frozen=True)
class CompactTTConfig:
    """Sizes of the network.

    Attributes
    ----------
    image : of the transforms and of ``elic``
    groups : channel groups in coding order, four tokens each; they sum to the latents
    width, heads, expansion : of the transformer
    layers : of its separate encoder, joint encoder and decoder
    lambdas : λ of the loss that the transforms were trained with, at the first and the last rate
    local : channels inside the networks that look at neighbouring positions
    scales : the fields of `tec.entropy.portable.ScaleGrid`
    """

    image: CompactConfig = field(default_factory=CompactConfig)
    groups: tuple[int, int, int, int] = (16, 48, 96, 224)
    width: int = 192
    heads: int = 6
    expansion: int = 2
    layers: tuple[int, int, int] = (1, 1, 4)
    local: int = 96
    lambdas: tuple[float, float] = (0.12, 600.0)
    scales: tuple[int, float, float, float, float, float, bool] = (
        *(40, 0.05, 400.0, 0.0625, 0.25, 2.0),
        True,
    )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CompactTTConfig:
        """From JSON values, where tuples have become lists."""
        rest: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        return cls(**{**rest, "image": CompactConfig.from_dict(values["image"])})

    @property
    def grid(self) -> ScaleGrid:
        return ScaleGrid(*self.scales)


class CompactTT(nn.Module):
    """``tt``: see :class:`tec.models.coding.TemporalModel`.

    Attributes
    ----------
    intra : the ``elic`` whose transforms these are, for dates coded by themselves
    centroids : (tables, 5) float32: where in its bin a latent lies on average, for symbols -2 to 2;
        what plain rounding of values with predicted means gives away
    """

    stride = 16 * BLOCK
    repacked = False
    tables: Tables  # came with the checkpoint, like all below: set by tec.weights
    margin: Margin
    sha256: str
    centroids: np.ndarray

    def __init__(self, config: CompactTTConfig) -> None:
        super().__init__()
        self.config = config
        self.bands = config.image.bands
        self.grid = config.grid
        self.intra = CompactElic(config.image)
        self.prior = CompactPrior(config)

    @cached_property
    def coding(self) -> IntegerCoding:
        """From means on the grid to table indexes."""
        return IntegerCoding(self.grid, self.tables)

    def analysis(self, x: Tensor, compression: float) -> Tensor:
        """(n, bands, h, w) float32, standardised -> y (n, latents, h/16, w/16) in quantiser
        steps."""
        return self.intra.analysis(x, compression)

    def history(self, shape: tuple[int, int, int], compression: float) -> History:
        """The dates before the first: none."""
        parameter = self.prior.start
        at = position(self.config.image.rates, compression)
        rate = torch.full(shape[:1], at, dtype=parameter.dtype, device=parameter.device)
        return History(self.prior, shape, rate)

    def date(
        self,
        history: History,
        rounder: Rounder,
        *,
        known: Tensor | None = None,
        sent: int = TOKENS,
        forecast: str = "mean",
    ) -> DateSteps:
        """The autoregression over one date: see `tec.models.temporal.date_steps`."""
        return date_steps(history, rounder, self.coding, known=known, sent=sent, forecast=forecast)

    def restored(self, out: DateOut) -> Tensor:
        """Latents at the centres of gravity of their bins."""
        reach = self.centroids.shape[1] // 2
        shifts = [
            self.centroids[step.index, np.clip(symbols, -reach, reach) + reach]
            for step, symbols in out.steps
        ]
        return out.y_hat + picture([step for step, _ in out.steps], shifts, out.y_hat)

    def distortion(self, y: Tensor, restored: Tensor, compression: float) -> Tensor:
        """λ times the squared error of the pixels, which the linear part of the transforms makes
        that of the latents: in bits, (n,)."""
        rates = self.config.image.rates
        at = position(rates, compression)
        low, high = (math.log(v) for v in self.config.lambdas)
        gain = interpolate(self.intra.transforms.log_gain, y.new_full((1,), at)).exp()
        error = (gain[..., None, None] * (y - restored)).square().sum((1, 2, 3))
        return math.exp(low + at / (len(rates) - 1) * (high - low)) * error

    def synthesis(self, y: Tensor, compression: float) -> Tensor:
        """(n, latents, h/16, w/16) -> (n, bands, h, w) float32, standardised."""
        return self.intra.synthesis(y, compression)

    @torch.no_grad()
    def forward(self, x: Tensor, compression: float = 20.0) -> dict[str, Tensor]:
        """Reconstruction and estimated rate, without a bitstream.

        Parameters
        ----------
        x : (n, dates, bands, h, w) float32, standardised; h and w multiples of 64

        Returns
        -------
        x_hat like x; y and y_hat (n, dates, latents, h/16, w/16); bits (n, dates), estimated from
        the parameters before they go to grids, each date coded the shorter way
        """
        n, dates = x.shape[:2]
        y = self.analysis(x.flatten(0, 1), compression).unflatten(0, (n, dates))
        history = self.history((n, *y.shape[3:]), compression)
        assert history.rate is not None
        found = []
        for t in range(dates):
            alone = self.intra.estimate(y[:, t], history.rate, Rounding(training=False))
            y_hat, restored, bits = alone["y_hat"], alone["y_hat"], alone["bits"]
            if t:
                rounder = _Noting(n, self.grid)
                whole = y[:, t].round()
                steps = self.date(history, rounder, known=whole)
                out = drive(steps, partial(_symbols, whole))
                own = rounder.bits([s.mean + symbols for s, symbols in out.steps])
                better = self.restored(out)
                gain, loss = (self.distortion(y[:, t], r, compression) for r in (restored, better))
                shorter = (own + loss < bits + gain)[:, None, None, None]
                y_hat = torch.where(shorter, out.y_hat, y_hat)
                restored = torch.where(shorter, better, restored)
                bits = torch.where(shorter.flatten(), own, bits)
            history.push(y_hat)
            found.append((self.synthesis(restored, compression), y_hat, bits))
        x_hat, y_hat, bits = (torch.stack(part, 1) for part in zip(*found))
        return {"x_hat": x_hat, "y": y, "y_hat": y_hat, "bits": bits}


def _symbols(whole: Tensor, step: TokenStep) -> np.ndarray:
    return (step.select(whole).numpy() - step.mean).astype(np.int32)


class _Noting:
    """A rounder that keeps the floats that it is asked about."""

    def __init__(self, n: int, grid: ScaleGrid) -> None:
        self._writer = Writer(n, grid, Margin(0.0, 0.0))
        self._asked: list[tuple[np.ndarray, np.ndarray]] = []

    def parameters(self, mean: np.ndarray, log_scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self._asked.append((mean, log_scale))
        return self._writer.parameters(mean, log_scale)

    def round(self, values: np.ndarray, step: float = 1.0) -> np.ndarray:
        return self._writer.round(values, step)

    def bits(self, values: list[np.ndarray]) -> Tensor:
        """Estimated bits (n,) of the integers (n, k) of each call."""
        parts = [
            integer_bits(*(torch.from_numpy(v) for v in (known, *asked))).sum(1)
            for known, asked in zip(values, self._asked, strict=True)
        ]
        return torch.stack(parts).sum(0)


class CompactPrior(TemporalPrior):
    """The entropy model. Values are in quantiser steps; ``rate`` as in `compact.position`."""

    def __init__(self, config: CompactTTConfig) -> None:
        layout = Layout(config.groups, PHASES)
        super().__init__(layout, config.width, config.heads, config.layers, config.expansion)
        width, latents = config.width, config.image.latents
        rates = len(config.image.rates)
        cells = CELLS // len(PHASES)
        self.bins = config.image.groups
        self.window_embedding = nn.Linear(2 * latents, width)
        self.window_norm = nn.LayerNorm(width, eps=EPSILON)
        self.token_embedding = nn.ModuleList(nn.Linear(3 * cells * g, width) for g in config.groups)
        self.token_norm = nn.LayerNorm(width, eps=EPSILON)
        self.start = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.rate_window = nn.Parameter(0.02 * torch.randn(rates, width))
        self.rate_token = nn.Parameter(0.02 * torch.randn(rates, width))
        self.head = nn.ModuleList(_head(width, 2 * cells * g) for g in config.groups)
        # What holds before the transformer says anything, for each rate: weight of the last date
        # and of the one before it, and the scale of what they miss.
        self.newer = nn.Parameter(torch.full((rates, latents), 0.5))
        self.older = nn.Parameter(torch.zeros(rates, latents))
        self.log_scale = nn.Parameter(torch.zeros(rates, latents))
        self.energy = nn.Linear(6 * len(self.bins), latents)
        nn.init.zeros_(self.energy.weight)
        nn.init.zeros_(self.energy.bias)
        # For each channel: how far a miss at one position (last axis) tells of another.
        self.spread = nn.ParameterList(torch.zeros(g, CELLS, CELLS) for g in config.groups)
        # What the stronger channels of a position and its neighbours, and the dates before, tell of
        # its weaker ones.
        known = [sum(config.groups[:i]) for i in range(len(config.groups))]
        self.local = nn.ModuleList(
            _local(2 * k + 3 * g, config.local, 2 * g) for k, g in zip(known, config.groups)
        )
        self.rate_local = nn.ParameterList(torch.zeros(rates, config.local) for _ in config.groups)
        behind = torch.arange(len(PHASES)).repeat_interleave(cells)
        self.register_buffer("earlier", (behind[:, None] > behind).float(), persistent=False)

    def _rate(self, table: Tensor, rate: Tensor | None) -> Tensor:
        assert rate is not None
        return interpolate(table, rate.flatten())[:, None]  # (b, 1, k)

    def embed_window(self, windows: Tensor, rate: Tensor | None) -> Tensor:
        x = torch.cat([torch.asinh(windows), torch.log1p(windows.abs())], -1)
        return self.window_norm(self.window_embedding(x) + self._rate(self.rate_window, rate))

    def embed_start(self, rate: Tensor | None) -> Tensor:
        return self.token_norm(self.start + self._rate(self.rate_token, rate))

    def embed_tokens(self, values: Tensor, part: Part) -> Tensor:
        missed = self._missed(values, part)
        x = torch.cat([torch.asinh(values), torch.asinh(missed), torch.log1p(missed.abs())], -1)
        x = self.token_embedding[part.group](x) + self._rate(self.rate_token, part.rate)
        return self.token_norm(x)

    def heads(
        self, features: Tensor, before: Sequence[Tensor], part: Part
    ) -> tuple[Tensor, Tensor]:
        mean, log_scale = _of(part)
        own = len(PHASES) * part.group
        if part.group not in part.kept:
            part.kept[part.group] = self._near(before[:own], part)
        near = part.kept[part.group][:, part.phases]
        shift, change = (self.head[part.group](features) + near).chunk(2, -1)
        if before[own:]:
            mean = mean + self._spread(torch.stack(list(before[own:]), 1), part)
        return mean + torch.exp(log_scale) * shift, log_scale + change

    def prior(self, older: Tensor, newer: Tensor, rate: Tensor | None) -> list[tuple[Tensor, ...]]:
        """For each group: mean and log scale (b, phases, values) that the networks correct; and for
        each position how large values are around it (b, 16, 3 channels)."""
        # Both terms may be large and cancel: in float64, so that machines agree on what is left.
        parts = (self._rate(self.newer, rate), newer, self._rate(self.older, rate), older)
        a, x, b, y = (part.double() for part in parts)
        mean = (a * x + b * y).to(newer.dtype)
        sizes = [d.abs() for d in (newer, older, newer - older)]
        energies = [
            torch.log(part.mean(-1, keepdim=True) + 0.05).expand(-1, CELLS, -1)
            for size in sizes
            for level in (size, size.mean(1, keepdim=True))
            for part in level.split(self.bins, -1)
        ]
        log_scale = self._rate(self.log_scale, rate) + self.energy(torch.cat(energies, -1))
        large = [torch.log(size + 0.05).split(self.layout.groups, -1) for size in sizes]
        near = [torch.cat(parts, -1) for parts in zip(*large)]
        return list(zip(self.layout.split(mean), self.layout.split(log_scale), near))

    def _missed(self, values: Tensor, part: Part) -> Tensor:
        mean, log_scale = _of(part)
        return (values - mean) * torch.exp(-log_scale)

    def _near(self, before: Sequence[Tensor], part: Part) -> Tensor:
        """What the local network says of a whole group, (b, phases, 2 values), given all stronger
        groups."""
        assert part.prior is not None
        phases, order = len(PHASES), [p for phase in PHASES for p in phase]
        parts = []
        for group in range(part.group):
            values = torch.stack(list(before[phases * group : phases * (group + 1)]), 1)
            missed = self._missed(values, part._replace(group=group, phases=slice(0, phases)))
            missed = missed.unflatten(2, (CELLS // phases, -1)).flatten(1, 2)
            missed = missed[:, np.argsort(order).tolist()]  # (b, 16, channels), row by row
            parts += [torch.asinh(missed), torch.log1p(missed.abs())]
        x = torch.cat([*parts, part.prior[part.group][2]], -1)
        x = x.transpose(1, 2).unflatten(2, (BLOCK, BLOCK))
        first, last = cast("list[nn.Conv2d]", list(cast(nn.ModuleList, self.local[part.group])))
        rate = self._rate(self.rate_local[part.group], part.rate)
        x = last(F.gelu(first(x) + rate.transpose(1, 2)[..., None]))  # (b, 2 channels, 4, 4)
        x = x.flatten(2).transpose(1, 2)[:, order].unflatten(1, (phases, -1))
        return torch.cat([half.flatten(2) for half in x.chunk(2, -1)], -1)

    def _spread(self, before: Tensor, part: Part) -> Tensor:
        """What earlier tokens (b, tokens, values) of the group add to the means of ``part``."""
        assert part.prior is not None
        cells = CELLS // len(PHASES)
        known, wanted = before.shape[1] * cells, slice(part.phases.start, part.phases.stop)
        rows = slice(wanted.start * cells, wanted.stop * cells)
        weight = (self.spread[part.group] * self.earlier)[:, rows, :known]
        missed = (before - part.prior[part.group][0][:, : before.shape[1]]).unflatten(
            2, (cells, -1)
        )
        missed = missed.flatten(1, 2)  # (b, positions, channels)
        added = torch.einsum("bjc,cij->bic", missed, weight)
        return added.unflatten(1, (-1, cells)).flatten(2)


def _of(part: Part) -> tuple[Tensor, Tensor]:
    """Mean and log scale, before the networks correct them, of some tokens."""
    assert part.prior is not None
    mean, log_scale, _ = part.prior[part.group]
    return mean[:, part.phases], log_scale[:, part.phases]


def _local(inputs: int, hidden: int, outputs: int) -> nn.ModuleList:
    last = nn.Conv2d(hidden, outputs, 1)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(cast(Tensor, last.bias))
    return nn.ModuleList([nn.Conv2d(inputs, hidden, 3, padding=1), last])


def _head(width: int, outputs: int) -> nn.Sequential:
    last = nn.Linear(width, outputs)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.LayerNorm(width, eps=EPSILON), nn.Linear(width, width), nn.GELU(), last)
