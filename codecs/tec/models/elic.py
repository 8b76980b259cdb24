"""ELIC: hyperprior, uneven channel groups, and a checkerboard in space (He et al. 2022).

The variant of the published weights: channel context comes from the first and the latest group
only. Each group is coded in two passes: anchors, where (row + column) is even, from hyperprior and
channel context; then the others, which see the anchors around them as well.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Self, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import TecError
from ..transfer import to_device, to_host
from .blocks import (
    AttentionBlock,
    CheckerboardConv2d,
    ResidualBottleneck,
    channels_last,
    conv,
    deconv,
    round_through,
    rows,
)
from .coding import Rounder, Step, Steps, gather, positions, scatter
from .densities import EntropyBottleneck, GaussianConditional, bits
from .published import PublishedModel, shapes

#: Below the first level of the scale grid all scales are one; this keeps their logarithms finite.
SMALLEST_SCALE = 0.01

#: Yields (channels, parity, mean, scale) and receives decoded values, all three of them
#: (n, channels * positions); returns y_hat.
Passes = Generator[tuple[slice, int, Tensor, Tensor], Tensor, Tensor]


@dataclass(frozen=True)
class ElicConfig:
    """Sizes of the network.

    Attributes
    ----------
    bands, N, M : channels of the image, of the transforms and the hyperlatent, of the latent
    groups : channels of each group, in coding order; their sum is M
    context : channels inside the channel context networks
    hidden : channels of the last layer but one of the parameter networks
    """

    bands: int = 12
    N: int = 128
    M: int = 192
    groups: tuple[int, ...] = (16, 16, 32, 64, 64)
    context: tuple[int, int] = (224, 128)
    hidden: int = 512

    def __post_init__(self) -> None:
        if sum(self.groups) != self.M or min(self.groups, default=0) < 1:
            raise TecError(
                f"channel groups {self.groups} do not sum to M={self.M}: "
                "pass groups of at least one channel each that do"
            )

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Tensor]) -> Self:
        """Read off the tensors' shapes; WeightsError where a tensor is absent."""
        found = shapes(state_dict)
        n, bands = found["g_a.0.weight"][:2]
        group = "latent_codec.y.latent_codec.y{}.{}.weight"
        groups: list[int] = []
        while (key := group.format(len(groups), "context_prediction")) in found:
            groups.append(found[key][1])
        context = "latent_codec.y.channel_context.y1.{}.weight"
        return cls(
            bands=bands,
            N=n,
            M=found["g_a.13.weight"][0],
            groups=tuple(groups),
            context=(found[context.format(0)][0], found[context.format(2)][0]),
            hidden=found[group.format(0, "entropy_parameters.2")][0],
        )


class _Group(nn.Module):
    """Mean and scale of one group's channels from all that is known at their position."""

    def __init__(self, config: ElicConfig, k: int) -> None:
        super().__init__()
        size, m = config.groups[k], config.M
        known = 2 * m + (2 * size if k else 0)  # hyperprior, channel context
        self.entropy_parameters = nn.Sequential(
            nn.Conv2d(2 * size + known, 2 * m, 1),
            nn.ReLU(),
            nn.Conv2d(2 * m, config.hidden, 1),
            nn.ReLU(),
            nn.Conv2d(config.hidden, 2 * size, 1),
        )
        self.context_prediction = CheckerboardConv2d(size, 2 * size)
        self.y = nn.ModuleDict({"gaussian_conditional": GaussianConditional()})

    def parameters_at(self, known: Tensor, around: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and scale, (n, size * p), from rows (n, p, channels) of p positions.

        Anchors have no context ``around`` them. It counts as zero, bias included: its columns of
        the first layer are skipped.
        """
        first, second, last = cast("list[nn.Conv2d]", list(self.entropy_parameters)[::2])
        x = known if around is None else torch.cat([around, known], -1)
        x = F.linear(x, first.weight.flatten(1)[:, -x.shape[-1] :], first.bias)
        x = F.linear(F.relu(x), second.weight.flatten(1), second.bias)
        x = F.linear(F.relu(x), last.weight.flatten(1), last.bias)
        mean, scale = x.transpose(1, 2).chunk(2, 1)  # (n, size, p) each
        return mean.flatten(1), scale.flatten(1)


class _Groups(nn.Module):
    """The networks of all groups."""

    def __init__(self, config: ElicConfig) -> None:
        super().__init__()
        groups = config.groups
        wide, narrow = config.context
        self.channel_context = nn.ModuleDict()
        self.latent_codec = nn.ModuleDict({f"y{k}": _Group(config, k) for k in range(len(groups))})
        for k in range(1, len(groups)):
            seen = groups[0] + (groups[k - 1] if k > 1 else 0)
            self.channel_context[f"y{k}"] = nn.Sequential(
                conv(seen, wide, stride=1),
                nn.ReLU(inplace=True),
                conv(wide, narrow, stride=1),
                nn.ReLU(inplace=True),
                conv(narrow, 2 * groups[k], stride=1),
            )

    def group(self, k: int) -> _Group:
        return cast(_Group, self.latent_codec[f"y{k}"])

    def context(self, k: int, done: list[Tensor]) -> Tensor:
        """What group k > 0 learns from the first and the latest group: (n, h * w, 2 * size)."""
        seen = done[0] if k == 1 else torch.cat([done[0], done[-1]], 1)
        return rows(self.channel_context[f"y{k}"](channels_last(seen)))


class _Hyper(nn.Module):
    """The hyperprior's transforms and the density of its latent z."""

    def __init__(self, config: ElicConfig) -> None:
        super().__init__()
        n, m = config.N, config.M
        self.entropy_bottleneck = EntropyBottleneck(n)
        self.h_a = nn.Sequential(
            conv(m, n, kernel=3, stride=1),
            nn.ReLU(inplace=True),
            conv(n, n),
            nn.ReLU(inplace=True),
            conv(n, n),
        )
        self.h_s = nn.Sequential(
            deconv(n, n),
            nn.ReLU(inplace=True),
            deconv(n, n * 3 // 2),
            nn.ReLU(inplace=True),
            conv(n * 3 // 2, 2 * m, kernel=3, stride=1),
        )


class _LatentCodec(nn.Module):
    """The entropy model, nested as the published names have it."""

    def __init__(self, config: ElicConfig) -> None:
        super().__init__()
        self.y = _Groups(config)
        self.hyper = _Hyper(config)


class Elic(PublishedModel):
    """``elic`` of the published weights: see :mod:`tec.models.coding` for the protocol."""

    stride = 64

    def __init__(self, config: ElicConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or ElicConfig()
        self.bands, self.latents = config.bands, config.M
        n, m = config.N, config.M
        self.g_a = nn.Sequential(
            conv(config.bands, n),
            *(ResidualBottleneck(n) for _ in range(3)),
            conv(n, n),
            *(ResidualBottleneck(n) for _ in range(3)),
            AttentionBlock(n),
            conv(n, n),
            *(ResidualBottleneck(n) for _ in range(3)),
            conv(n, m),
            AttentionBlock(m),
        )
        self.g_s = nn.Sequential(
            AttentionBlock(m),
            deconv(m, n),
            *(ResidualBottleneck(n) for _ in range(3)),
            deconv(n, n),
            AttentionBlock(n),
            *(ResidualBottleneck(n) for _ in range(3)),
            deconv(n, n),
            *(ResidualBottleneck(n) for _ in range(3)),
            deconv(n, config.bands),
        )
        self.latent_codec = _LatentCodec(config)

    @classmethod
    def from_published(cls, state_dict: Mapping[str, Tensor]) -> Self:
        """The model of a published state dict, key for key, in evaluation mode.

        Raises
        ------
        WeightsError
            Tensors are missing, unknown or of the wrong shape.
        """
        return cls(ElicConfig.from_state_dict(state_dict))._load(state_dict)

    @property
    def bottleneck(self) -> EntropyBottleneck:
        return self.latent_codec.hyper.entropy_bottleneck

    def analysis(self, x: Tensor, compression: float | None = None) -> Tensor:
        """(n, bands, h, w) standardised -> y (n, M, h/16, w/16). TecError if x does not fit."""
        self._check_image(x)
        return self.g_a(channels_last(x))

    def side(self, y: Tensor, compression: float | None = None) -> dict[str, Tensor]:
        """The hyperlatent: {"z": (n, N, h/64, w/64)}."""
        self._check_latent(y)
        return {"z": self.latent_codec.hyper.h_a(channels_last(y))}

    def synthesis(self, y_hat: Tensor, compression: float | None = None) -> Tensor:
        """y_hat (n, M, h, w) -> (n, bands, 16 h, 16 w). TecError if y_hat does not fit."""
        self._check_latent(y_hat)
        return self.g_s(channels_last(y_hat))

    def passes(self, z_hat: Tensor) -> Passes:
        """The autoregression over groups and colours, given decoded z_hat (n, N, h/4, w/4).

        Values are laid out as in :class:`tec.models.coding.Step`.
        """
        side = self.latent_codec.hyper.h_s(channels_last(z_hat))  # (n, 2 M, h, w)
        n, _, h, w = side.shape
        side = rows(side)
        colours = [torch.tensor(positions(h, w, parity), device=side.device) for parity in (0, 1)]
        done: list[Tensor] = []
        start = 0
        for k, size in enumerate(self.config.groups):
            channels = slice(start, start + size)
            start += size
            group = self.latent_codec.y.group(k)
            known = torch.cat([self.latent_codec.y.context(k, done), side], -1) if k else side
            values = yield channels, 0, *group.parameters_at(known[:, colours[0]], None)
            anchors = scatter(values, (n, size, h, w), 0)
            around = rows(group.context_prediction(channels_last(anchors)))[:, colours[1]]
            values = yield channels, 1, *group.parameters_at(known[:, colours[1]], around)
            done.append(anchors + scatter(values, (n, size, h, w), 1))
        return torch.cat(done, 1)

    @torch.no_grad()
    def steps(
        self, shape: tuple[int, int, int], compression: float | None, rounder: Rounder
    ) -> Steps:
        """The hyperlatent, then anchors and others of each group.

        Parameters
        ----------
        shape : images, height and width of y, the latter two multiples of 4
        compression : ignored, a published checkpoint has one rate
        rounder : decides means and table indexes, see :mod:`tec.entropy.portable`
        """
        n, h, w = shape
        if h % 4 or w % 4:
            raise TecError(
                f"latent of {h} x {w} positions, {type(self).__name__} needs multiples of 4"
            )
        step = self.bottleneck.step("z", n, h * w // 16)
        symbols = yield step
        z_hat = self.bottleneck.decoded(step, symbols, (n, self.config.N, h // 4, w // 4))
        passes = self.passes(z_hat)
        try:
            wanted = next(passes)
            while True:
                channels, parity, mean, scale = wanted
                # A NaN passes the clamp and is refused by the rounder.
                asked = to_host(mean, scale.clamp_min(SMALLEST_SCALE).log())
                index, on_grid = rounder.parameters(asked[0], asked[1])
                index = index + np.uint16(self.config.N)  # Gaussian tables follow the bottleneck's
                symbols = yield Step("y", channels, index, on_grid, parity)
                wanted = passes.send(to_device(symbols.astype(np.float32) + on_grid, mean))
        except StopIteration as end:
            return end.value

    def forward(self, x: Tensor) -> dict[str, Tensor | dict[str, Tensor]]:
        """Reconstruction and estimated rate, without a bitstream: means stay off any grid.

        Parameters
        ----------
        x : (n, bands, h, w) float32, standardised; h and w multiples of 64

        Returns
        -------
        x_hat like x; y, y_hat, means and scales (n, M, h/16, w/16); z and z_hat (n, N, h/64, w/64);
        likelihoods {"y": like y, "z": like z}; bits (n,). In training mode the likelihoods are
        those of the latents plus uniform noise; what is decoded is rounded always.
        """
        y = self.analysis(x)
        z = self.side(y)["z"]
        z_hat, z_likelihood = self.bottleneck(z)
        found = self._drive(z_hat, y, rounding=True)
        distance = found["y_hat"] - found["means"]
        if self.training:
            distance = y - found["means"] + torch.rand_like(y) - 0.5
        gaussian = cast(GaussianConditional, self.latent_codec.y.group(0).y["gaussian_conditional"])
        y_likelihood = gaussian.likelihood(distance, found["scales"])
        return {
            "x_hat": self.synthesis(found["y_hat"]),
            "y": y,
            "z": z,
            "z_hat": z_hat,
            **found,
            "likelihoods": {"y": y_likelihood, "z": z_likelihood},
            "bits": bits(y_likelihood, z_likelihood),
        }

    def parameters_of(self, y_hat: Tensor, z_hat: Tensor) -> tuple[Tensor, Tensor]:
        """Means and scales, (n, M, h, w) each, that coding meets where these are decoded."""
        found = self._drive(z_hat, y_hat, rounding=False)
        return found["means"], found["scales"]

    def _drive(self, z_hat: Tensor, y: Tensor, *, rounding: bool) -> dict[str, Tensor]:
        """Drive the passes with ``y``, rounded around each mean on request."""
        means: list[Tensor] = []
        scales: list[Tensor] = []
        passes = self.passes(z_hat)
        try:
            wanted = next(passes)
            while True:
                channels, parity, mean, scale = wanted
                part = y[:, channels]
                for found, new in ((means, mean), (scales, scale)):
                    spread = scatter(new, part.shape, parity)
                    found.append(found.pop() + spread if parity else spread)
                values = gather(part, parity)
                if rounding:
                    values = round_through(values - mean) + mean
                wanted = passes.send(values)
        except StopIteration as end:
            return {
                "y_hat": end.value,
                "means": torch.cat(means, 1),
                "scales": torch.cat(scales, 1),
            }
