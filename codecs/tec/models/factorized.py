"""FP: convolutions with GDN and one learned density a latent channel (Balle et al. 2017)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from .blocks import GDN, channels_last, conv, deconv
from .coding import Rounder, Steps
from .densities import EntropyBottleneck, bits
from .published import PublishedModel, shapes


@dataclass(frozen=True)
class FactorizedConfig:
    """Sizes: channels of the image, of the transforms, of the latent."""

    bands: int = 12
    N: int = 128
    M: int = 192

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Tensor]) -> Self:
        """Read off the tensors' shapes; WeightsError where a tensor is absent."""
        found = shapes(state_dict)
        n, bands = found["g_a.0.weight"][:2]
        return cls(bands=bands, N=n, M=found["g_a.6.weight"][0])


class Factorized(PublishedModel):
    """``fp`` of the published weights: see :mod:`tec.models.coding` for the protocol."""

    stride = 16

    def __init__(self, config: FactorizedConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or FactorizedConfig()
        self.bands, self.latents = config.bands, config.M
        n = config.N
        self.entropy_bottleneck = EntropyBottleneck(config.M)
        self.g_a = nn.Sequential(
            conv(config.bands, n), GDN(n), conv(n, n), GDN(n), conv(n, n), GDN(n), conv(n, config.M)
        )
        self.g_s = nn.Sequential(
            deconv(config.M, n),
            GDN(n, inverse=True),
            deconv(n, n),
            GDN(n, inverse=True),
            deconv(n, n),
            GDN(n, inverse=True),
            deconv(n, config.bands),
        )

    @classmethod
    def from_published(cls, state_dict: Mapping[str, Tensor]) -> Self:
        """The model of a published state dict, key for key, in evaluation mode.

        Raises
        ------
        WeightsError
            Tensors are missing, unknown or of the wrong shape.
        """
        return cls(FactorizedConfig.from_state_dict(state_dict))._load(state_dict)

    @property
    def bottleneck(self) -> EntropyBottleneck:
        return self.entropy_bottleneck

    def analysis(self, x: Tensor, compression: float | None = None) -> Tensor:
        """(n, bands, h, w) standardised -> y (n, M, h/16, w/16). TecError if x does not fit."""
        self._check_image(x)
        return self.g_a(channels_last(x))

    def side(self, y: Tensor, compression: float | None = None) -> dict[str, Tensor]:
        return {}

    @torch.no_grad()
    def steps(
        self, shape: tuple[int, int, int], compression: float | None, rounder: Rounder
    ) -> Steps:
        """One step with everything. Medians and tables are constants: no need for ``rounder``."""
        n, h, w = shape
        step = self.bottleneck.step("y", n, h * w)
        symbols = yield step
        return self.bottleneck.decoded(step, symbols, (n, self.latents, h, w))

    def synthesis(self, y_hat: Tensor, compression: float | None = None) -> Tensor:
        """y_hat (n, M, h, w) -> (n, bands, 16 h, 16 w). TecError if y_hat does not fit."""
        self._check_latent(y_hat)
        return self.g_s(channels_last(y_hat))

    def forward(self, x: Tensor) -> dict[str, Tensor | dict[str, Tensor]]:
        """Reconstruction and estimated rate, without a bitstream.

        Parameters
        ----------
        x : (n, bands, h, w) float32, standardised; h and w multiples of 16

        Returns
        -------
        x_hat like x; y and y_hat (n, M, h/16, w/16); likelihoods {"y": like y}; bits (n,).
        In training mode the likelihoods are those of y plus uniform noise.
        """
        y = self.analysis(x)
        y_hat, likelihood = self.bottleneck(y)
        return {
            "x_hat": self.synthesis(y_hat),
            "y": y,
            "y_hat": y_hat,
            "likelihoods": {"y": likelihood},
            "bits": bits(likelihood),
        }
