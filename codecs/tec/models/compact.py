"""The built-in networks: small transforms that start from the KLT, one checkpoint for every rate.

Three ideas hold this file together. A linear stride-16 transform (at the start of training the
Karhunen-Loeve transform of the corpus, lapped) runs beside a small convolutional one, in the
analysis and mirrored in the synthesis, so that the network never is worse than the linear codec. A
gain vector per rate scales the latents before rounding, and is interpolated between rates (Cui et
al. 2021, "Asymmetric gained deep image compression"). The entropy model is ELIC's (He et al. 2022),
all in proportion to the transforms: uneven channel groups and a checkerboard in space. It has no
hyperprior: a hyperlatent, where there was one, took 0.1 % of the bits and told nothing.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

from .. import precision
from ..entropy.portable import Margin, ScaleGrid
from ..entropy.tables import Tables
from ..transfer import to_device, to_host
from .coding import Random, Rounder, Step, Steps, gather, scatter
from .densities import Rounding


@dataclass(frozen=True)
class CompactConfig:
    """Sizes of the built-in networks.

    Attributes
    ----------
    bands : channels of the image
    latents : channels of the latent, strongest first
    widths : channels of the convolutional path at strides 4, 8 and 16
    depths : its residual blocks there; the synthesis has one more at each
    groups : channel groups of the entropy model, in coding order; they sum to ``latents``
    hidden : channels of the context networks
    rates : λ of each gain vector, ascending
    scales : levels, smallest, largest and certain scale (`tec.entropy.portable.ScaleGrid`)
    """

    bands: int = 12
    latents: int = 768
    widths: tuple[int, int, int] = (96, 128, 192)
    depths: tuple[int, int, int] = (3, 3, 2)
    groups: tuple[int, ...] = (16, 24, 56, 128, 224, 320)
    hidden: int = 160
    rates: tuple[float, ...] = (0.18, 0.65, 2.4, 8.8, 32.0, 118.0, 434.0, 1594.0)
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


class Pointwise(nn.Conv2d):
    """1x1 convolution. In one thread PyTorch takes a plain matrix product for it, which oneDNN's
    convolution beats by a sixth to a half."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__(a, b, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        plain = torch.is_grad_enabled() or x.device.type != "cpu" or x.dtype != torch.float32
        if plain or not torch.backends.mkldnn.is_available() or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        return torch.mkldnn_convolution(x, self.weight, self.bias, (0, 0), (1, 1), (1, 1), 1)


class Bottleneck(nn.Module):
    """Residual block: 1x1 to half the width, 3x3, 1x1 back."""

    def __init__(self, n: int) -> None:
        super().__init__()
        half = n // 2
        self.body = nn.Sequential(
            Pointwise(n, half),
            nn.ReLU(),
            nn.Conv2d(half, half, 3, padding=1),
            nn.ReLU(),
            Pointwise(half, n),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x)


def _blocks(n: int, count: int) -> list[nn.Module]:
    return [Bottleneck(n) for _ in range(count)]


def _down(a: int, b: int) -> nn.Conv2d:
    return nn.Conv2d(a, b, 3, 2, 1)


def _up(a: int, b: int) -> nn.Module:
    return nn.Sequential(Pointwise(a, 4 * b), nn.PixelShuffle(2))


def _from_zero(layer: nn.Conv2d) -> nn.Conv2d:
    """Start a layer at zero, so that training sets out from what stands beside it."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class Transforms(nn.Module):
    """Analysis, synthesis and gains: shared by every built-in entropy model of a sensor.

    Bands are first put on one scale, unit · x + zero, in which all errors weigh alike.
    """

    lap: torch.Tensor
    unit: torch.Tensor
    zero: torch.Tensor

    def __init__(self, config: CompactConfig) -> None:
        super().__init__()
        self.config = config
        bands, m = config.bands, config.latents
        (a, b, c), (i, j, k) = config.widths, config.depths
        rates = len(config.rates)
        self.klt = nn.Conv2d(bands, m, BLOCK, BLOCK)
        self.register_buffer("lap", _lap(), persistent=False)
        self.register_buffer("unit", torch.ones(bands))
        self.register_buffer("zero", torch.zeros(bands))
        self.analysis = nn.Sequential(
            nn.PixelUnshuffle(4),
            Pointwise(16 * bands, a),
            *_blocks(a, i),
            _down(a, b),
            *_blocks(b, j),
            _down(b, c),
            *_blocks(c, k),
            _from_zero(Pointwise(c, m)),
        )
        self.level = nn.Parameter(torch.zeros(bands))
        self.expand = Pointwise(m, c)
        self.rate_bias = nn.Parameter(torch.zeros(rates, c))
        self.synthesis = nn.Sequential(
            *_blocks(c, k + 1),
            _up(c, b),
            *_blocks(b, j + 1),
            _up(b, a),
            *_blocks(a, i + 1),
            _from_zero(nn.Conv2d(a, 16 * bands, 3, padding=1)),
            nn.PixelShuffle(4),
        )
        log_step = torch.linspace(math.log(8.0), math.log(0.1), rates)[:, None].repeat(1, m)
        self.log_step = nn.Parameter(log_step)
        self.log_gain = nn.Parameter(log_step.clone())

    def latent(self, x: torch.Tensor, quick: bool = False) -> torch.Tensor:
        """(n, bands, h, w) standardised -> (n, latents, h/16, w/16), before gains; ``quick`` in
        bfloat16 but for what would be seen."""
        x = torch.addcmul(self.zero[:, None, None], x, self.unit[:, None, None])
        linear, deep = self._parts(x, quick)
        return linear + deep

    def _parts(self, x: torch.Tensor, quick: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """The linear and the convolutional path of the analysis."""
        linear = self._linear(x, quick)
        with torch.autocast(x.device.type, torch.bfloat16) if quick else nullcontext():
            return linear, self._deep(x)

    @torch.no_grad()
    def error(self, x: torch.Tensor) -> float:
        """Of either part of `latent`, if quick, as a share of what is right: on noise of the size
        of x, up to 512 x 512 pixels."""
        h, w = (min(size, 512) for size in x.shape[2:])
        noise = torch.randn(1, x.shape[1], 64, 64, generator=torch.Generator().manual_seed(0))
        noise = noise.repeat(1, 1, -(-h // 64), -(-w // 64))[:, :, :h, :w].to(x.device)
        noise = noise.contiguous(memory_format=torch.channels_last)
        exact, quick = (self._parts(noise, way) for way in (False, True))
        shares = [float((b - a).norm() / a.norm()) for a, b in zip(exact, quick) if a.any()]
        return max(shares, key=lambda share: math.inf if math.isnan(share) else share, default=0.0)

    def _linear(self, x: torch.Tensor, quick: bool) -> torch.Tensor:
        """The lapped KLT, in float32: bfloat16 has too few digits for strong latents.

        Written as a matrix product: what oneDNN makes of this convolution is wrong in bfloat16 on
        processors with AMX (docs/design.md, "Speed").
        """
        with torch.autocast(x.device.type, enabled=False):
            blocks, weight = to_blocks(lapped(x, self.lap)), _rows(self.klt.weight)
            bias = cast("torch.Tensor", self.klt.bias)
            strong = STRONG if quick else len(weight)
            flat = blocks.flatten(0, 2).flatten(1)
            linear = F.linear(flat, weight[:strong], bias[:strong])
            if strong < len(weight):
                # Without its level a bright block, snow or a cloud, keeps its digits.
                level = blocks.mean((3, 4))
                rest = (blocks - level[:, :, :, None, None]).bfloat16().view(flat.shape)
                of_level = weight[strong:].unflatten(1, (-1, x.shape[1])).sum(1)
                weak = F.linear(level.flatten(0, 2), of_level, bias[strong:])
                weak += F.linear(rest, weight[strong:].bfloat16()).float()
                linear = torch.cat([linear, weak], 1)
            return linear.view(*blocks.shape[:3], -1).permute(0, 3, 1, 2)

    def _deep(self, x: torch.Tensor) -> torch.Tensor:
        """The convolutional path of the analysis."""
        first = cast("nn.Conv2d", self.analysis[1])
        # 4 x 4 pixels become channels, and these a product: one convolution.
        h = F.conv2d(x, first.weight.view(first.out_channels, -1, 4, 4), first.bias, 4)
        for layer in list(self.analysis)[2:]:
            h = layer(h)
        return h

    def encode(self, x: torch.Tensor, rate: torch.Tensor, quick: bool = False) -> torch.Tensor:
        """(n, bands, h, w) standardised -> (n, latents, h/16, w/16) in quantiser steps; rate as
        `position`, quick as `latent`."""
        return self.latent(x, quick) / torch.exp(interpolate(self.log_step, rate))[:, :, None, None]

    def decode(self, y_hat: torch.Tensor, rate: torch.Tensor) -> torch.Tensor:
        """(n, latents, h/16, w/16) in quantiser steps -> (n, bands, h, w) standardised."""
        used = self._used(y_hat)
        gain = torch.exp(interpolate(self.log_gain, rate))[:, :used, None, None]
        y = y_hat[:, :used] * gain
        deep = F.conv2d(y, self.expand.weight[:, :used], self.expand.bias)
        deep = deep + interpolate(self.rate_bias, rate)[:, :, None, None]
        with torch.autocast(y.device.type, enabled=False):
            linear = lapped(self._pixels(y), self.lap.T)
        x = linear + self.synthesis(deep)
        # (x + level - zero) / unit
        zero = (self.level - self.zero) / self.unit
        x = torch.addcmul(zero[:, None, None], x, (1 / self.unit)[:, None, None])
        return x.contiguous()  # what reads it goes from band to band

    def _used(self, y_hat: torch.Tensor) -> int:
        """Latents up to which some are not 0, in steps of 64: at low rates half of them. All while
        training, and on GPUs, which would have to be waited for."""
        m = self.config.latents
        if torch.is_grad_enabled() or y_hat.device.type != "cpu":
            return m
        there = y_hat.abs().amax((0, 2, 3)).nonzero()
        return min(m, -(-(int(there[-1]) + 1) // 64) * 64) if len(there) else min(m, 64)

    def _pixels(self, y: torch.Tensor) -> torch.Tensor:
        """(n, the first m latents, h, w) -> (n, bands, 16 h, 16 w): the transposed convolution of
        ``klt``, as the matrix product that it is where blocks do not overlap."""
        n, m, h, w = y.shape
        blocks = y.permute(0, 2, 3, 1).reshape(-1, m) @ _rows(self.klt.weight[:m])
        return from_blocks(blocks.view(n, h, w, BLOCK, BLOCK, -1))


#: Pixels of a latent, each way.
BLOCK = 16
#: Latents, strongest first, that bfloat16 has too few digits for.
STRONG = 96
#: Error of bfloat16, as a share, beyond which it is no rounding: that is 0.007.
WRONG = 0.03


def _lap() -> torch.Tensor:
    """(16, 16) orthogonal: folds 8 pixels each side of a block's edge (Tran, Liang and Tu 2003,
    "Lapped transform via time-domain pre- and post-filtering", with V = J C2' C4 J)."""
    n = BLOCK // 2
    k, j = np.arange(n)[:, None], np.arange(n)[None]
    second = np.cos(np.pi * (2 * j + 1) * k / (2 * n)) * math.sqrt(2 / n)
    second[0] /= math.sqrt(2)
    fourth = np.cos(np.pi * (2 * j + 1) * (2 * k + 1) / (4 * n)) * math.sqrt(2 / n)
    one, flip, turn = np.eye(n), np.eye(n)[::-1], second.T @ fourth
    same, other = one + turn, one - turn
    fold = np.block([[same, other @ flip], [flip @ other, flip @ same @ flip]])
    return torch.from_numpy((fold / 2).astype(np.float32))


def lapped(x: torch.Tensor, lap: torch.Tensor) -> torch.Tensor:
    """(n, c, h, w) with its blocks' edges folded, so that a transform by blocks becomes a lapped
    one. Orthogonal: ``lap.T`` undoes it. The outer edges of the image stay as they are.

    In channels last, as what comes out is."""
    lap = lap.to(x.dtype)
    x = x.permute(0, 2, 3, 1)
    half, (n, h, w, c) = BLOCK // 2, x.shape
    if w > BLOCK:
        inner = lap @ x[:, :, half:-half].reshape(-1, BLOCK, c)
        x = torch.cat([x[:, :, :half], inner.view(n, h, w - BLOCK, c), x[:, :, -half:]], 2)
    if h > BLOCK:
        inner = lap @ x[:, half:-half].reshape(-1, BLOCK, w * c)
        x = torch.cat([x[:, :half], inner.view(n, h - BLOCK, w, c), x[:, -half:]], 1)
    return x.permute(0, 3, 1, 2)


def to_blocks(x: torch.Tensor) -> torch.Tensor:
    """(n, c, 16 h, 16 w) -> (n, h, w, 16, 16, c), contiguous."""
    blocks = x.unflatten(3, (-1, BLOCK)).unflatten(2, (-1, BLOCK))
    return blocks.permute(0, 2, 4, 3, 5, 1).contiguous()


def from_blocks(blocks: torch.Tensor) -> torch.Tensor:
    """The inverse of `to_blocks`, in channels last."""
    n, h, w, *_, c = blocks.shape
    x = blocks.transpose(2, 3).reshape(n, BLOCK * h, BLOCK * w, c)
    return x.permute(0, 3, 1, 2)


def _rows(weight: torch.Tensor) -> torch.Tensor:
    """Of a convolution of blocks, (m, c, 16, 16): its rows as `to_blocks` orders pixels. A view
    where it lies in channels last, as it does after loading."""
    return weight.permute(0, 2, 3, 1).flatten(1)


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

    tables: Tables  # came with the checkpoint, like the margins: set by tec.weights
    margins: tuple[Margin, ...]  # one for each rate: finer steps, larger numbers, larger errors
    sha256: str
    stride = 16

    def __init__(self, config: CompactConfig) -> None:
        super().__init__()
        self.config = config
        self.bands = config.bands
        self.grid = config.grid
        self.transforms = Transforms(config)
        self._right: dict[tuple, bool] = {}

    def _rate(self, compression: float, n: int) -> torch.Tensor:
        parameter = self.transforms.log_step
        return torch.full(
            (n,),
            position(self.config.rates, compression),
            dtype=parameter.dtype,
            device=parameter.device,
        )

    def margin_at(self, compression: float) -> Margin:
        """Rounding margin: that of the next higher rate."""
        return self.margins[math.ceil(position(self.config.rates, compression))]

    def analysis(self, x: torch.Tensor, compression: float) -> torch.Tensor:
        """(n, bands, h, w) float32, standardised -> y (n, latents, h/16, w/16) in quantiser
        steps.

        In bfloat16 where that is quick, for only the encoder sees it, and rounds it.
        """
        return self.transforms.encode(x, self._rate(compression, len(x)), self._is_quick(x))

    def _is_quick(self, x: torch.Tensor) -> bool:
        """Whether bfloat16 is quick for images like x; and right, which is tried once for each
        size: a library's kernel may be wrong on some processors, and nobody would know.

        Of convolutions with a stride whose result is one pixel wide that of oneDNN is, with AMX
        (https://github.com/pytorch/pytorch/issues/169688).
        """
        if x.dtype != torch.float32 or not precision.quick_bfloat16(x.device):
            return False
        if min(x.shape[2:]) <= self.stride:
            return False
        size = x.device, *x.shape[2:]
        if size not in self._right:
            error = self.transforms.error(x)
            self._right[size] = error < WRONG
            if not self._right[size]:
                warnings.warn(
                    f"products of bfloat16 are wrong on this {x.device.type} (by {error:.0%}): the "
                    "encoder takes float32, which is slower. Please report it, with your processor "
                    "and the version of PyTorch",
                    stacklevel=2,
                )
        return self._right[size]

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


#: Where trust in predictions starts, before the sigmoid: low, so that what is there is kept.
TRUST = -1.0


class Told(NamedTuple):
    """What is known of a latent before any of it is decoded.

    Attributes
    ----------
    features : (n, side, h, w)
    predictions : of the latent, in quantiser steps, (n, latents, h, w) each; a group takes of each
        as much as it trusts it
    """

    features: torch.Tensor
    predictions: tuple[torch.Tensor, ...]


def _more(n: int) -> nn.Module:
    """Two layers that start as nothing, beside which their input goes on."""
    return nn.Sequential(Pointwise(n, n), nn.ReLU(), _from_zero(Pointwise(n, n)))


class Group(nn.Module):
    """Mean and scale of one channel group: what came before, then the checkerboard's anchors."""

    def __init__(self, config: CompactConfig, known: int, size: int, told: int = 0) -> None:
        super().__init__()
        hidden = config.hidden
        self.trunk = nn.Sequential(
            Pointwise(known, hidden),
            nn.ReLU(),
            nn.Conv2d(hidden, hidden, 5, padding=2, groups=4),
        )
        self.rate = nn.Parameter(torch.zeros(len(config.rates), hidden))
        self.before = _more(hidden)
        self.anchors = _from_zero(Pointwise(hidden, 2 * size))
        narrow = min(size, 64)
        self.around = nn.Sequential(
            nn.Identity() if size == narrow else Pointwise(size, narrow),
            nn.Conv2d(narrow, hidden, 3, padding=1),
        )
        self.after = _more(hidden)
        self.others = _from_zero(Pointwise(hidden, 2 * size))
        # Neighbouring blocks share their mean level: a linear path that large values do not
        # saturate.
        self.neighbours = _from_zero(nn.Conv2d(size, size, 3, padding=1, groups=size, bias=False))
        self.trust = _from_zero(Pointwise(hidden, told)) if told else None

    def predictions(
        self, trunk: torch.Tensor, parts: tuple[torch.Tensor, ...]
    ) -> list[torch.Tensor]:
        """The predictions of this group's channels, as far as they are trusted."""
        if self.trust is None:
            return []
        shares = torch.sigmoid(self.trust(F.relu(trunk)).to(parts[0].dtype) + TRUST).split(1, 1)
        return [share * part for share, part in zip(shares, parts)]


class Autoregression(_Compact):
    """Channel groups and a checkerboard over the shared transforms.

    ``told``: how many predictions a `Told` brings, of how many features; (0, 0) for none.
    """

    first_table = 0  # of its own in the tables that its symbols are coded with

    def __init__(self, config: CompactConfig, told: tuple[int, int] = (0, 0)) -> None:
        super().__init__(config)
        known = np.concatenate([[0], np.cumsum(config.groups)[:-1]])
        twice = 2 if told[0] else 1
        self.groups = nn.ModuleList(
            Group(config, 1 + told[1] + twice * int(k), g, told[0])
            for k, g in zip(known, config.groups)
        )
        self.log_scale = nn.Parameter(torch.zeros(config.latents))  # of the latent before the gain

    def skippable(self, y: torch.Tensor) -> list[int]:
        """Of n latents (n, latents, h, w), in quantiser steps: how many groups, from the last, all
        round to 0. Low rates have many, and no symbol is cheaper than one that is not coded."""
        largest = y.abs().amax((2, 3)).cpu()
        near = [part.amax(1) < 0.5 for part in largest.split(self.config.groups, 1)]
        rows = torch.stack(near[::-1], 1).int()
        return rows.cumprod(1).sum(1).tolist()

    def passes(
        self,
        shape: tuple[int, int, int],
        rate: torch.Tensor,
        told: Told | None = None,
        skipped: int = 0,
    ):
        """The autoregression: yields (channels, parity, mean, log_scale, terms), receives decoded
        values.

        mean, log_scale and the values are (n, channels * positions), laid out as in
        :class:`tec.models.coding.Step`; ``terms`` is what the means of the group are the sum of,
        (n, channels, h, w) each. The last ``skipped`` groups are 0. Returns y_hat (n, latents, h,
        w), with shape = (n, h, w).
        """
        n, h, w = shape
        # Log scale that the networks correct, in quantiser steps: (n, latents, 1, 1).
        base = (self.log_scale - interpolate(self.transforms.log_step, rate))[:, :, None, None]
        seen = base.new_ones(n, 1, h, w)
        if told is not None:
            seen = torch.cat([seen, told.features], 1)
        done = []
        k = 0
        groups = cast("list[Group]", list(self.groups))
        for net, count in zip(groups[: len(groups) - skipped], self.config.groups):
            channels = slice(k, k + count)
            whole = (n, count, h, w)
            level = base[:, channels]
            trunk = net.trunk(seen) + interpolate(net.rate, rate)[:, :, None, None]
            trunk = trunk + net.before(F.relu(trunk))
            parts = () if told is None else tuple(p[:, channels] for p in told.predictions)
            terms = net.predictions(trunk, parts)
            near = sum(terms, 0.0)
            mean, log_scale = net.anchors(F.relu(trunk)).chunk(2, 1)
            asked = gather(mean + near, 0), gather(log_scale + level, 0)
            values = yield channels, 0, *asked, terms
            group = scatter(values, whole, 0)
            missed = group
            if isinstance(near, torch.Tensor):
                missed = group - scatter(gather(near, 0), whole, 0)
            hidden = F.relu(trunk + net.around(asinh(missed)))
            hidden = hidden + net.after(hidden)
            mean, log_scale = net.others(hidden).chunk(2, 1)
            with torch.autocast(missed.device.type, enabled=False):
                mean = mean + net.neighbours(missed) + near
            asked = gather(mean, 1), gather(log_scale + level, 1)
            values = yield channels, 1, *asked, [*terms, missed]
            group = group + scatter(values, whole, 1)
            done.append(group)
            seen = torch.cat([seen, asinh(group)], 1)
            if parts:
                seen = torch.cat([seen, asinh(group - near)], 1)
            k += count
        if skipped:
            done.append(base.new_zeros(n, self.config.latents - k, h, w))
        return torch.cat(done, 1)

    def coded(
        self,
        shape: tuple[int, int, int],
        rate: torch.Tensor,
        rounder: Rounder,
        told: Told | None = None,
        *,
        channels: int | None = None,
        random: Random | None = None,
        skipped: int = 0,
    ) -> Steps:
        """Anchors and others of each group: see :class:`tec.models.coding.Step`.

        The last ``skipped`` groups are 0. Of channels from ``channels`` on nothing is coded: they
        take their means, or what ``random`` draws.
        """
        sent = self.config.latents if channels is None else channels
        passes = self.passes(shape, rate, told, skipped)
        try:
            wanted = next(passes)
            while True:
                where, parity, mean, log_scale, terms = wanted
                around = _size(terms, parity) if terms else None
                asked = to_host(mean, log_scale)
                index, mean = rounder.parameters(asked[0], asked[1], around)
                symbols = np.zeros(mean.shape, np.int32)
                size = where.stop - where.start
                there = max(0, min(size, sent - where.start))
                k = there * mean.shape[1] // size
                if there:
                    part = slice(where.start, where.start + there)
                    table = index[:, :k] + np.uint16(self.first_table)
                    symbols[:, :k] = yield Step("y", part, table, mean[:, :k], parity)
                if random is not None and there < size:
                    drawn = random.numbers(mean.shape[1] - k)
                    symbols[:, k:] = self.tables.draw(index[:, k:], drawn)
                wanted = passes.send(_tensor(symbols + mean, rate))
        except StopIteration as end:
            return end.value

    def estimate(
        self, y: torch.Tensor, rate: torch.Tensor, rounding=None, told: Told | None = None
    ) -> dict[str, torch.Tensor]:
        """Of latents (n, latents, h, w): what is decoded; bits (n,), and by channel (n,
        latents)."""
        rounding = rounding or Rounding(training=self.training)
        n, _, h, w = y.shape
        spent = []
        passes = self.passes((n, h, w), rate, told)
        try:
            wanted = next(passes)
            while True:
                channels, parity, mean, log_scale, _ = wanted
                part = gather(y[:, channels], parity)
                size = channels.stop - channels.start
                spent.append(rounding.bits(part, mean, log_scale).unflatten(1, (size, -1)).sum(2))
                wanted = passes.send(rounding.decoded(part, mean))
        except StopIteration as end:
            each = [a + b for a, b in zip(spent[::2], spent[1::2])]  # anchors and others
            by_channel = torch.cat(each, 1)
            return {"y_hat": end.value, "bits": by_channel.sum(1), "by_channel": by_channel}


class CompactElic(Autoregression):
    """``elic``: each date on its own."""

    def side(self, y: torch.Tensor, compression: float) -> dict[str, torch.Tensor]:
        return {}

    def steps(
        self, shape: tuple[int, int, int], compression: float, rounder: Rounder, skipped: int = 0
    ) -> Steps:
        """Anchors and others of each group: see :class:`tec.models.coding.Step`."""
        rate = self._rate(compression, shape[0])
        return (yield from self.coded(shape, rate, rounder, skipped=skipped))

    def forward(
        self, x: torch.Tensor, rate: torch.Tensor, rounding=None
    ) -> dict[str, torch.Tensor]:
        """Reconstruction and estimated bits per image, (n,); ``rate`` (n,) as in `interpolate`."""
        y = self.transforms.encode(x, rate)
        out = self.estimate(y, rate, rounding)
        return {"x_hat": self.transforms.decode(out["y_hat"], rate), "y": y, **out}


def asinh(x: torch.Tensor) -> torch.Tensor:
    """As `torch.asinh`, which is seven times as slow on processors."""
    squares = x * x
    return torch.log1p(x.abs() + squares / (1 + torch.sqrt(1 + squares))).copysign(x)


def _size(terms: list[torch.Tensor], parity: int) -> Callable[[], np.ndarray]:
    """How large terms are, there and around: for `Rounder`."""
    return lambda: _numpy(gather(_around(torch.stack(terms).abs().sum(0)), parity))


def _around(x: torch.Tensor) -> torch.Tensor:
    """The largest of 3 x 3 positions: as `F.max_pool2d`, which looks for indexes too."""
    for axis in (2, 3):
        last = x.shape[axis] - 1
        out = x.clone()
        for to, of in ((1, 0), (0, 1)):
            part = out.narrow(axis, to, last)
            torch.maximum(part, x.narrow(axis, of, last), out=part)
        x = out
    return x


def _numpy(x: torch.Tensor) -> np.ndarray:
    return x.detach().cpu().numpy()


def _tensor(values: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    return to_device(values.astype(np.float32), like)
