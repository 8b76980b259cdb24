"""The built-in networks: small transforms that start from the KLT, one checkpoint for every rate.

Three ideas hold this file together. A linear stride-16 transform (at the start of training the
Karhunen-Loeve transform of the corpus) runs beside a small convolutional one, in the analysis and
mirrored in the synthesis, so that the network never is worse than the linear codec. A gain vector
per rate scales the latents before rounding, and is interpolated between rates (Cui et al. 2021,
"Asymmetric gained deep image compression"). The entropy model is ELIC's (He et al. 2022): a
hyperprior, uneven channel groups, a checkerboard in space; all in proportion to the transforms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

from ..entropy.portable import Margin, ScaleGrid
from ..entropy.tables import Tables
from .coding import Rounder, Step, Steps, gather, scatter
from .densities import Rounding


@dataclass(frozen=True)
class CompactConfig:
    """Sizes of the built-in networks.

    Attributes
    ----------
    bands : channels of the image
    latents : channels of the latent, strongest first
    widths : channels of the convolutional path at strides 2, 4 and 8
    groups : channel groups of the entropy model, in coding order; they sum to ``latents``
    hyper, side, hidden : channels of the hyperlatent, of its synthesis and of the context networks
    hyper_widths : channels inside the hyper analysis (two) and the hyper synthesis (two)
    rates : λ of each gain vector, ascending
    scales : levels, smallest, largest and certain scale (`tec.entropy.portable.ScaleGrid`)
    """

    bands: int = 12
    latents: int = 384
    widths: tuple[int, int, int] = (48, 64, 96)
    groups: tuple[int, ...] = (16, 16, 32, 64, 128, 128)
    hyper: int = 48
    side: int = 192
    hidden: int = 160
    hyper_widths: tuple[int, int, int, int] = (96, 64, 96, 128)
    rates: tuple[float, ...] = (0.4, 1.16, 3.38, 9.82, 28.5, 82.9, 241.0, 700.0)
    scales: tuple[int, float, float, float] = (56, 0.06, 400.0, 0.0625)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CompactConfig:
        """From JSON values, where tuples have become lists."""
        tuples: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        return cls(**tuples)

    @property
    def grid(self) -> ScaleGrid:
        return ScaleGrid(*self.scales)


class Bottleneck(nn.Module):
    """Residual block: 1x1 to half the width, 3x3, 1x1 back."""

    def __init__(self, n: int) -> None:
        super().__init__()
        half = n // 2
        self.body = nn.Sequential(
            nn.Conv2d(n, half, 1),
            nn.ReLU(),
            nn.Conv2d(half, half, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(half, n, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x)


def _down(a: int, b: int) -> nn.Conv2d:
    return nn.Conv2d(a, b, 5, 2, 2)


def _up(a: int, b: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(a, b, 5, 2, 2, 1)


def _from_zero(layer: nn.Conv2d | nn.ConvTranspose2d) -> nn.Module:
    """Start a layer at zero, so that training sets out from what stands beside it."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class Transforms(nn.Module):
    """Analysis, synthesis and gains: shared by every built-in entropy model of a sensor."""

    def __init__(self, config: CompactConfig) -> None:
        super().__init__()
        bands, m = config.bands, config.latents
        a, b, c = config.widths
        rates = len(config.rates)
        self.klt = nn.Conv2d(bands, m, 16, 16)
        self.analysis = nn.Sequential(
            _down(bands, a),
            Bottleneck(a),
            _down(a, b),
            Bottleneck(b),
            _down(b, c),
            Bottleneck(c),
            _from_zero(_down(c, m)),
        )
        self.inverse = nn.ConvTranspose2d(m, bands, 16, 16)
        self.expand = _up(m, c)
        self.rate_bias = nn.Parameter(torch.zeros(rates, c))
        self.synthesis = nn.Sequential(
            Bottleneck(c),
            Bottleneck(c),
            _up(c, b),
            Bottleneck(b),
            Bottleneck(b),
            _up(b, a),
            Bottleneck(a),
            _from_zero(_up(a, bands)),
        )
        log_step = torch.linspace(math.log(8.0), math.log(0.1), rates)[:, None].repeat(1, m)
        self.log_step = nn.Parameter(log_step)
        self.log_gain = nn.Parameter(log_step.clone())

    def encode(self, x: torch.Tensor, rate: torch.Tensor) -> torch.Tensor:
        """(n, bands, h, w) standardised -> (n, latents, h/16, w/16) in quantiser steps; rate as
        `position`."""
        step = torch.exp(interpolate(self.log_step, rate))[:, :, None, None]
        return (self.klt(x) + self.analysis(x)) / step

    def decode(self, y_hat: torch.Tensor, rate: torch.Tensor) -> torch.Tensor:
        """(n, latents, h/16, w/16) in quantiser steps -> (n, bands, h, w) standardised."""
        y = y_hat * torch.exp(interpolate(self.log_gain, rate))[:, :, None, None]
        deep = self.expand(y) + interpolate(self.rate_bias, rate)[:, :, None, None]
        return self.inverse(y) + self.synthesis(deep)


def interpolate(table: torch.Tensor, rate: torch.Tensor) -> torch.Tensor:
    """Rows of (rates, k) between which ``rate`` (n,) in [0, rates - 1] lies, mixed linearly: (n,
    k)."""
    low = rate.floor().long().clamp(0, len(table) - 2)
    share = (rate - low).to(table.dtype)[:, None]
    return table[low] * (1 - share) + table[low + 1] * share


def position(rates: tuple[float, ...], compression: float) -> float:
    """Where λ lies between the trained rates: 0 at the first, len - 1 at the last, linear in log
    λ."""
    return float(np.interp(math.log(compression), np.log(rates), np.arange(len(rates))))


class _Compact(nn.Module):
    """What the built-in models share: the transforms, the rate, and tables that came with the
    weights."""

    tables: Tables  # came with the checkpoint, like the margin: set by tec.weights
    margin: Margin
    sha256: str

    def __init__(self, config: CompactConfig) -> None:
        super().__init__()
        self.config = config
        self.bands = config.bands
        self.grid = config.grid
        self.transforms = Transforms(config)

    def _rate(self, compression: float, n: int) -> torch.Tensor:
        parameter = self.transforms.log_step
        return torch.full(
            (n,),
            position(self.config.rates, compression),
            dtype=parameter.dtype,
            device=parameter.device,
        )

    def analysis(self, x: torch.Tensor, compression: float) -> torch.Tensor:
        """(n, bands, h, w) float32, standardised -> y (n, latents, h/16, w/16) in quantiser
        steps."""
        return self.transforms.encode(x, self._rate(compression, len(x)))

    def synthesis(self, y_hat: torch.Tensor, compression: float) -> torch.Tensor:
        """y_hat (n, latents, h/16, w/16) -> (n, bands, h, w) float32, standardised."""
        return self.transforms.decode(y_hat, self._rate(compression, len(y_hat)))

    def _channelwise(
        self, rounder: Rounder, mean: torch.Tensor, log_scale: torch.Tensor, size: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Decide one mean and scale a channel, (n, c) each, then repeat them over the positions:
        (n, c * size)."""
        index, on_grid = rounder.parameters(_numpy(mean), _numpy(log_scale))
        return np.repeat(index, size, axis=1), np.repeat(on_grid, size, axis=1)


class CompactFactorized(_Compact):
    """``fp``: every latent channel has one law, whatever surrounds it; its scale follows the
    rate."""

    stride = 16

    def __init__(self, config: CompactConfig) -> None:
        super().__init__(config)
        shape = len(config.rates), config.latents
        self.mean = nn.Parameter(torch.zeros(shape))
        self.log_scale = nn.Parameter(torch.zeros(shape))

    def side(self, y: torch.Tensor, compression: float) -> dict[str, torch.Tensor]:
        return {}

    def steps(self, shape: tuple[int, int, int], compression: float, rounder: Rounder) -> Steps:
        """One step: see :class:`tec.models.coding.Step`."""
        n, h, w = shape
        rate = self._rate(compression, n)
        m = self.config.latents
        index, mean = self._channelwise(
            rounder, interpolate(self.mean, rate), interpolate(self.log_scale, rate), h * w
        )
        symbols = yield Step("y", slice(0, m), index, mean)
        return _tensor(symbols + mean, rate).reshape(n, m, h, w)

    def forward(
        self, x: torch.Tensor, rate: torch.Tensor, rounding=None
    ) -> dict[str, torch.Tensor]:
        """Reconstruction and estimated bits per image, (n,); ``rate`` (n,) as in `interpolate`."""
        y = self.transforms.encode(x, rate)
        mean = interpolate(self.mean, rate)[:, :, None, None]
        log_scale = interpolate(self.log_scale, rate)[:, :, None, None]
        rounding = rounding or Rounding(training=self.training)
        y_hat = rounding.decoded(y, torch.zeros_like(mean) if self.training else mean)
        bits = rounding.bits(y, mean, log_scale).sum((1, 2, 3))
        return {"x_hat": self.transforms.decode(y_hat, rate), "y": y, "y_hat": y_hat, "bits": bits}


class Group(nn.Module):
    """Mean and scale of one channel group: what came before, then the checkerboard's anchors."""

    def __init__(self, config: CompactConfig, known: int, size: int) -> None:
        super().__init__()
        hidden = config.hidden
        self.trunk = nn.Sequential(
            nn.Conv2d(config.side + known, hidden, 1),
            nn.ReLU(),
            nn.Conv2d(hidden, hidden, 5, padding=2, groups=4),
            nn.ReLU(),
        )
        self.anchors = _from_zero(nn.Conv2d(hidden, 2 * size, 1))
        self.around = nn.Conv2d(size, hidden, 3, padding=1)
        self.others = _from_zero(nn.Conv2d(hidden, 2 * size, 1))
        # Neighbouring blocks share their mean level: a linear path that large values do not
        # saturate.
        self.neighbours = _from_zero(nn.Conv2d(size, size, 3, padding=1, groups=size, bias=False))


class CompactElic(_Compact):
    """``elic``: hyperprior, channel groups and a checkerboard over the shared transforms."""

    stride = 32

    def __init__(self, config: CompactConfig) -> None:
        super().__init__(config)
        m, z, side = config.latents, config.hyper, config.side
        rates = len(config.rates)
        a, b, c, d = config.hyper_widths
        self.hyper_analysis = nn.Sequential(
            nn.Conv2d(m, a, 3, padding=1),
            nn.ReLU(),
            _down(a, b),
            nn.ReLU(),
            nn.Conv2d(b, z, 3, padding=1),
        )
        self.hyper_synthesis = nn.Sequential(
            nn.Conv2d(z, c, 3, padding=1),
            nn.ReLU(),
            _up(c, d),
            nn.ReLU(),
            nn.Conv2d(d, side, 3, padding=1),
        )
        self.rate_side = nn.Parameter(torch.zeros(rates, side))
        known = np.concatenate([[0], np.cumsum(config.groups)[:-1]])
        self.groups = nn.ModuleList(Group(config, int(k), g) for k, g in zip(known, config.groups))
        self.log_scale = nn.Parameter(torch.zeros(m))  # of the latent before the gain
        self.z_mean = nn.Parameter(torch.zeros(rates, z))
        self.z_log_scale = nn.Parameter(torch.full((rates, z), -0.5))

    def side(self, y: torch.Tensor, compression: float) -> dict[str, torch.Tensor]:
        """The hyperlatent: {"z": (n, hyper, h/32, w/32)}."""
        return {"z": self.hyper_analysis(torch.asinh(y))}

    def _side_features(self, z_hat: torch.Tensor, rate: torch.Tensor) -> torch.Tensor:
        return self.hyper_synthesis(z_hat) + interpolate(self.rate_side, rate)[:, :, None, None]

    def _base(self, rate: torch.Tensor) -> torch.Tensor:
        """Log scale that the networks correct, in quantiser steps: (n, latents, 1, 1)."""
        return (self.log_scale - interpolate(self.transforms.log_step, rate))[:, :, None, None]

    def passes(self, z_hat: torch.Tensor, rate: torch.Tensor):
        """The autoregression: yields (channels, parity, mean, log_scale), receives decoded values.

        mean, log_scale and the values are (n, channels * positions), laid out as in
        :class:`tec.models.coding.Step`; returns y_hat (n, latents, h, w).
        """
        side = self._side_features(z_hat, rate)
        n, _, h, w = side.shape
        base = self._base(rate)
        seen = side
        done = []
        k = 0
        for net, size in zip(cast("list[Group]", self.groups), self.config.groups):
            channels = slice(k, k + size)
            shape = (n, size, h, w)
            level = base[:, channels]
            trunk = net.trunk(seen)
            mean, log_scale = net.anchors(trunk).chunk(2, 1)
            values = yield channels, 0, gather(mean, 0), gather(log_scale + level, 0)
            anchors = scatter(values, shape, 0)
            mean, log_scale = net.others(F.relu(trunk + net.around(torch.asinh(anchors)))).chunk(
                2, 1
            )
            mean = mean + net.neighbours(anchors)
            values = yield channels, 1, gather(mean, 1), gather(log_scale + level, 1)
            group = anchors + scatter(values, shape, 1)
            done.append(group)
            seen = torch.cat([seen, torch.asinh(group)], 1)
            k += size
        return torch.cat(done, 1)

    def steps(self, shape: tuple[int, int, int], compression: float, rounder: Rounder) -> Steps:
        """The hyperlatent, then anchors and others of each group: see
        :class:`tec.models.coding.Step`."""
        n, h, w = shape
        rate = self._rate(compression, n)
        size = (n, self.config.hyper, h // 2, w // 2)
        index, mean = self._channelwise(
            rounder,
            interpolate(self.z_mean, rate),
            interpolate(self.z_log_scale, rate),
            size[2] * size[3],
        )
        symbols = yield Step("z", slice(0, self.config.hyper), index, mean)
        passes = self.passes(_tensor(symbols + mean, rate).reshape(size), rate)
        try:
            wanted = next(passes)
            while True:
                channels, parity, mean, log_scale = wanted
                index, mean = rounder.parameters(_numpy(mean), _numpy(log_scale))
                symbols = yield Step("y", channels, index, mean, parity)
                wanted = passes.send(_tensor(symbols + mean, rate))
        except StopIteration as end:
            return end.value

    def forward(
        self, x: torch.Tensor, rate: torch.Tensor, rounding=None
    ) -> dict[str, torch.Tensor]:
        """Reconstruction and estimated bits per image, (n,); ``rate`` (n,) as in `interpolate`."""
        y = self.transforms.encode(x, rate)
        out = self.estimate(y, rate, rounding)
        return {"x_hat": self.transforms.decode(out["y_hat"], rate), "y": y, **out}

    def estimate(
        self, y: torch.Tensor, rate: torch.Tensor, rounding=None
    ) -> dict[str, torch.Tensor]:
        """Of latents (n, latents, h, w): what is decoded, and bits (n,)."""
        rounding = rounding or Rounding(training=self.training)
        z = self.hyper_analysis(torch.asinh(y))
        z_mean = interpolate(self.z_mean, rate)[:, :, None, None]
        z_log_scale = interpolate(self.z_log_scale, rate)[:, :, None, None]
        z_bits = rounding.bits(z, z_mean, z_log_scale).sum((1, 2, 3))
        bits = z_bits
        passes = self.passes(rounding.decoded(z, z_mean), rate)
        try:
            wanted = next(passes)
            while True:
                channels, parity, mean, log_scale = wanted
                part = gather(y[:, channels], parity)
                bits = bits + rounding.bits(part, mean, log_scale).sum(1)
                wanted = passes.send(rounding.decoded(part, mean))
        except StopIteration as end:
            return {"y_hat": end.value, "bits": bits, "z_bits": z_bits}


def _numpy(x: torch.Tensor) -> np.ndarray:
    return x.detach().cpu().numpy()


def _tensor(values: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.float32)).to(like)
