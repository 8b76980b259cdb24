"""The built-in ``tt`` and ``flex``: ``elic``'s context model, told of the two dates before.

Sentinel-2 images of a place lie on one grid, so what the dates before say of a position stands at
that position and around it. A small network makes features of their latents; each channel group
predicts its latents from them, as far as it trusts them (a cloud says nothing), and goes on as
``elic`` does. A date that is told nothing, as the first is, goes to ``elic`` itself where it is at
hand, else the same way.

``flex`` is the same network. A quality is a rate and a number of channels: what is not sent takes
the value that is predicted for it.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..entropy.portable import Margin
from ..entropy.tables import Tables
from ..errors import WeightsError
from .coding import Past, Rounder, Step
from .compact import (
    Autoregression,
    Bottleneck,
    CompactConfig,
    CompactElic,
    Pointwise,
    Told,
    asinh,
    interpolate,
)
from .densities import Rounding
from .tokens import TOKENS

#: Dates before that are seen.
DATES = 2


@dataclass(frozen=True)
class CompactTTConfig:
    """Sizes of the network.

    Attributes
    ----------
    image : of the transforms and of the context model
    width, depth : channels and residual blocks of the network that reads the dates before
    side : features that it gives to each group
    qualities : of ``flex``, from 0 to 16: λ, and the channels that are sent
    """

    image: CompactConfig = field(default_factory=CompactConfig)
    width: int = 192
    depth: int = 3
    side: int = 96
    qualities: tuple[tuple[float, int], ...] = ()

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CompactTTConfig:
        """From JSON values, where tuples have become lists."""
        rest = dict(values)
        rest["image"] = CompactConfig.from_dict(values["image"])
        rest["qualities"] = tuple((float(v), int(n)) for v, n in values.get("qualities", ()))
        return cls(**rest)


class Decoded(NamedTuple):
    """A date."""

    y_hat: Tensor


class CompactTT(Autoregression):
    """See :class:`tec.models.coding.TemporalModel`."""

    plain = False

    def __init__(self, config: CompactTTConfig) -> None:
        image, width = config.image, config.width
        super().__init__(image, (DATES, config.side))
        self.repacked = False  # "flex": set by tec.weights
        self.alone: CompactElic | None = None
        self.sizes = config
        rates, latents = len(image.rates), image.latents
        self.embed = Pointwise(latents, width)
        self.join = Pointwise(DATES * width, width)
        # What the rate, and having no, one or two dates before, mean to the features.
        self.rate_side = nn.Parameter(torch.zeros(rates, width))
        self.dates_side = nn.Parameter(torch.zeros(DATES + 1, width))
        self.read = nn.Sequential(
            *(Bottleneck(width) for _ in range(config.depth)), Pointwise(width, config.side)
        )
        # Of the newest date and the one before it: how much of each latent is left, by rate; with
        # one date and with two.
        self.newer = nn.Parameter(torch.full((DATES, rates, latents), 0.5))
        self.older = nn.Parameter(torch.zeros(rates, latents))

    def told(self, before: Sequence[Tensor], shape: tuple[int, int, int], rate: Tensor) -> Told:
        """What the dates before, (n, latents, h, w) in quantiser steps, the newest last, say."""
        n, h, w = shape
        latents = len(self.log_scale)
        none = self.log_scale.new_zeros(n, latents, h, w)
        older, newer = [none] * (DATES - len(before)) + list(before)
        seen = [self.embed(asinh(y)) for y in (newer, older)]
        hidden = self.join(torch.relu(torch.cat(seen, 1)))
        hidden = hidden + interpolate(self.rate_side, rate)[:, :, None, None]
        hidden = hidden + self.dates_side[len(before)][:, None, None]
        features = self.read(hidden)
        weights = [self.newer[max(len(before), 1) - 1], self.older]
        parts = [
            interpolate(table, rate)[:, :, None, None] * y
            for table, y in zip(weights, (newer, older))
        ]
        return Told(features.to(none.dtype), tuple(parts))

    def lean_on(self, elic: CompactElic) -> None:
        """Have ``elic``, which has the same transforms, code dates that are told nothing.

        It has learnt nothing else. Its tables come after those of this model.
        """
        if elic.config != self.config:
            raise WeightsError("'elic' has other sizes or rates than the 'tt' that leans on it")
        elic.transforms = self.transforms
        elic.first_table = len(self.tables)
        self.alone = elic
        self.tables = Tables.concatenate([self.tables, elic.tables])

    def margin_at(self, compression: float, dates: int = DATES) -> Margin:
        """Rounding margin that an encoder allows for on a date told of so many before it."""
        if self.alone is not None and not dates:
            return self.alone.margin_at(compression)
        return super().margin_at(compression)

    def compression(self, sent: int, compression: float) -> float:
        """λ of a date of which ``sent`` tokens are coded."""
        return self.sizes.qualities[sent][0] if self.repacked else compression

    def history(self, shape: tuple[int, int, int]) -> Past:
        """The dates before the first: none."""
        return Past(shape)

    def _step(self, rate: Tensor) -> Tensor:
        return torch.exp(interpolate(self.transforms.log_step, rate))[:, :, None, None]

    def date(
        self,
        history: Past,
        rounder: Rounder,
        *,
        compression: float,
        known: Tensor | None = None,
        sent: int = TOKENS,
        forecast: str = "mean",
        skipped: int = 0,
    ) -> Generator[Step, np.ndarray, Decoded]:
        """The autoregression over one date; see :class:`tec.models.coding.TemporalModel`."""
        n = history.shape[0]
        rate = self._rate(compression, n)
        channels = self.sizes.qualities[sent][1] if self.repacked else None
        random = history.random() if forecast == "sample" else None
        way: Any = {"channels": channels, "random": random, "skipped": skipped}
        if self.alone is not None and not history.latents:
            steps = self.alone.coded(history.shape, rate, rounder, **way)
        else:
            step = self._step(rate)
            told = self.told([y / step for y in history.latents], history.shape, rate)
            steps = self.coded(history.shape, rate, rounder, told, **way)
        return Decoded((yield from steps))

    def restored(self, out: Decoded) -> Tensor:
        """What the synthesis gets for a date."""
        return out.y_hat

    def remembered(self, y_hat: Tensor, compression: float) -> Tensor:
        """What a later date is told of a decoded one."""
        return y_hat * self._step(self._rate(compression, len(y_hat)))

    def forward(self, x: Tensor, compression: float = 20.0) -> dict[str, Tensor]:
        """Reconstruction and estimated rate, without a bitstream.

        Parameters
        ----------
        x : (n, dates, bands, h, w) float32, standardised; h and w multiples of 16

        Returns
        -------
        x_hat like x; y and y_hat (n, dates, latents, h/16, w/16); bits (n, dates), estimated from
        the parameters before they go to grids
        """
        rate = self._rate(compression, len(x))
        found: list[tuple[Tensor, ...]] = []
        for t in range(x.shape[1]):
            y = self.transforms.encode(x[:, t], rate)
            told = self.told([part[2] for part in found[-DATES:]], (len(x), *y.shape[2:]), rate)
            out = self.estimate(y, rate, Rounding(training=False), told)
            y_hat = out["y_hat"]
            found.append((self.transforms.decode(y_hat, rate), y, y_hat, out["bits"]))
        x_hat, ys, y_hat, bits = (torch.stack(part, 1) for part in zip(*found))
        return {"x_hat": x_hat, "y": ys, "y_hat": y_hat, "bits": bits}
