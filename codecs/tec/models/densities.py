"""Probability models of latents: a learned density a channel, the conditional Gaussian, a logistic.

The published ones keep integer tables as buffers, whose lengths differ between checkpoints. What is
coded comes from integers alone; floats serve estimates and training.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..entropy.tables import TOTAL, Tables, quantise_pmf
from ..errors import TecError, WeightsError
from .blocks import LowerBound, round_through
from .coding import Step

#: Probability outside the outer quantiles.
TAIL = 1e-9
#: No table reaches further than this from the median: what lies beyond is escaped.
REACH = 2048


def bits(*likelihoods: Tensor) -> Tensor:
    """Code length in bits per image, (n,), of likelihoods (n, ...)."""
    return -torch.stack([p.log2().flatten(1).sum(1) for p in likelihoods]).sum(0)


class _EntropyModel(nn.Module):
    """Integer tables, and a lower bound on likelihoods."""

    _offset: Tensor
    _quantized_cdf: Tensor
    _cdf_length: Tensor
    _resized: tuple[str, ...] = ("_offset", "_quantized_cdf", "_cdf_length")

    def __init__(self) -> None:
        super().__init__()
        for name in ("_offset", "_quantized_cdf", "_cdf_length"):
            self.register_buffer(name, torch.zeros(0, dtype=torch.int32))
        self.likelihood_lower_bound = LowerBound(1e-9)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        # torch copies into tensors of equal shape only; this is its hook for other ways of loading.
        for name in self._resized:
            if prefix + name in state_dict:
                loaded = state_dict[prefix + name]
                setattr(self, name, getattr(self, name).new_empty(loaded.shape))
        super()._load_from_state_dict(state_dict, prefix, *args)


class EntropyBottleneck(_EntropyModel):
    """A learned cumulative a channel (Balle et al. 2018, appendix 6.1).

    F(x) = sigmoid(f_5(...f_1(x))), f_k(x) = g_k(softplus(H_k) x + b_k),
    g_k(x) = x + tanh(a_k) tanh(x), with 3 inner channels; the last f has no g. ``quantiles``
    (channels, 1, 3) holds where the lower tail ends, the median, and where the upper tail starts.
    """

    target: Tensor

    def __init__(self, channels: int, *, init_scale: float = 10.0) -> None:
        super().__init__()
        widths = (1, 3, 3, 3, 3, 1)
        scale = init_scale ** (1 / 5)
        matrices, biases, factors = [], [], []
        for inner, outer in pairwise(widths):
            # softplus of this is 1 / (scale * outer): together the layers divide by init_scale
            start = math.log(math.expm1(1 / scale / outer))
            matrices.append(nn.Parameter(torch.full((channels, outer, inner), start)))
            biases.append(nn.Parameter(torch.rand(channels, outer, 1) - 0.5))
            factors.append(nn.Parameter(torch.zeros(channels, outer, 1)))
        quantiles = torch.tensor([-init_scale, 0.0, init_scale]).repeat(channels, 1, 1)
        self.quantiles = nn.Parameter(quantiles)
        edge = math.log(2 / TAIL - 1)
        self.register_buffer("target", torch.tensor([-edge, 0.0, edge]))
        self.matrices = nn.ParameterList(matrices)
        self.biases = nn.ParameterList(biases)
        self.factors = nn.ParameterList(factors[:-1])

    @property
    def channels(self) -> int:
        return self.quantiles.shape[0]

    @property
    def medians(self) -> Tensor:
        """(1, channels, 1, 1)."""
        return self.quantiles.detach()[:, 0, 1].reshape(1, -1, 1, 1)

    def logits(self, x: Tensor) -> Tensor:
        """logit F(x) for x (channels, 1, k), in the dtype and on the device of x."""
        for i, (matrix, bias) in enumerate(zip(self.matrices, self.biases, strict=True)):
            x = F.softplus(matrix.to(x)) @ x + bias.to(x)  # (channels, 3, k)
            if i < len(self.factors):
                x = x + torch.tanh(self.factors[i].to(x)) * torch.tanh(x)
        return x

    def _mass(self, x: Tensor) -> Tensor:
        """F(x + 1/2) - F(x - 1/2), computed in the tail where floats are dense."""
        lower, upper = self.logits(x - 0.5), self.logits(x + 0.5)
        side = torch.where(lower + upper > 0, -1.0, 1.0).to(x).detach()
        return (torch.sigmoid(side * upper) - torch.sigmoid(side * lower)).abs()

    def likelihood(self, values: Tensor) -> Tensor:
        """Mass of the unit interval around ``values`` (n, channels, h, w), at least 1e-9."""
        n, c, h, w = values.shape
        mass = self._mass(values.transpose(0, 1).reshape(c, 1, n * h * w))
        return self.likelihood_lower_bound(mass).reshape(c, n, h, w).transpose(0, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (n, channels, h, w) -> x rounded around its medians, and likelihoods.

        In training mode the likelihoods are those of x plus uniform noise.
        """
        rounded = round_through(x - self.medians) + self.medians
        noisy = x + torch.rand_like(x) - 0.5 if self.training else rounded
        return rounded, self.likelihood(noisy)

    def step(self, latent: str, n: int, size: int) -> Step:
        """All of a latent as one step: channel c has table c and its median as mean.

        ``size`` is the number of positions, height times width.
        """
        medians = self.medians.flatten().float().cpu().numpy()
        index = np.arange(self.channels, dtype=np.uint16)
        return Step(
            latent,
            slice(0, self.channels),
            np.tile(np.repeat(index, size), (n, 1)),
            np.tile(np.repeat(medians, size), (n, 1)),
        )

    def decoded(self, step: Step, symbols: np.ndarray, shape: tuple[int, ...]) -> Tensor:
        """Values of that step's symbols as a tensor of ``shape`` in the model's dtype."""
        values = symbols.astype(np.float32) + step.mean
        return torch.from_numpy(values).to(self.quantiles).reshape(shape).detach()

    def tables(self) -> Tables:
        """The integer tables, one a channel; WeightsError if they are absent or damaged."""
        buffers = self._quantized_cdf, self._cdf_length, self._offset
        found = [len(buffer) for buffer in buffers]
        if found != [self.channels] * 3:
            raise WeightsError(
                f"the checkpoint has {found[0]} integer tables for {self.channels} channels: "
                "make them with update() and save it again"
            )
        try:
            return Tables.from_padded(*(buffer.cpu().numpy() for buffer in buffers))
        except TecError as error:
            raise WeightsError(f"the checkpoint's integer tables are damaged: {error}") from error

    @torch.no_grad()
    def pmfs(self) -> tuple[list[np.ndarray], list[int]]:
        """Float64 probabilities of each channel's symbols, the tails' last, and the lowest symbols.

        A table reaches from the lower to the upper quantile. It is computed in float64, so that
        machines agree on the integers made of it.
        """
        quantiles = self.quantiles.cpu()[:, 0]  # (channels, 3)
        if not torch.isfinite(quantiles).all():
            raise WeightsError("quantiles of the density are not finite: the checkpoint is damaged")
        below = (quantiles[:, 1] - quantiles[:, 0]).ceil().clamp(0, REACH).int().tolist()
        above = (quantiles[:, 2] - quantiles[:, 1]).ceil().clamp(0, REACH).int().tolist()
        lowest = -max(below)
        grid = torch.arange(lowest, max(above) + 1, dtype=torch.float64)
        x = grid + quantiles[:, 1].double().reshape(-1, 1, 1)  # (channels, 1, k)
        mass = self._mass(x)[:, 0].numpy()
        under = torch.sigmoid(self.logits(x - 0.5))[:, 0].numpy()
        over = torch.sigmoid(-self.logits(x + 0.5))[:, 0].numpy()
        found = []
        for c, (b, a) in enumerate(zip(below, above, strict=True)):
            first, last = -b - lowest, a - lowest
            tails = under[c, first] + over[c, last]
            found.append(np.append(mass[c, first : last + 1], tails))
        return found, [-b for b in below]

    def update(self) -> None:
        """Make the integer tables from the density: after training, or where a file has none."""
        pmfs, lowest = self.pmfs()
        cdfs = [quantise_pmf(pmf[:-1], pmf[-1]) for pmf in pmfs]
        lengths = [len(cdf) for cdf in cdfs]
        table = np.zeros((len(cdfs), max(lengths)), np.int32)
        for row, cdf in zip(table, cdfs, strict=True):
            row[: len(cdf)] = cdf
        self._quantized_cdf = torch.from_numpy(table).to(self._quantized_cdf.device)
        self._cdf_length = self._offset.new_tensor(lengths)
        self._offset = self._offset.new_tensor(lowest)

    def stale(self, limit: float = 0.05) -> bool:
        """Whether tables are absent, or cost ``limit`` bits a symbol more than the density says.

        Tables are not trained but made afterwards: a file may hold those of an earlier density.
        """
        try:
            tables = self.tables()
        except WeightsError:
            return True
        pmfs, lowest = self.pmfs()
        if tables.lowest.tolist() != lowest:
            return True
        for pmf, start, end in zip(pmfs, tables.offsets[:-1], tables.offsets[1:], strict=True):
            share = np.diff(tables.cdf[start:end]) / TOTAL
            if share.shape != pmf.shape:
                return True
            some = pmf > 0
            if not (pmf[some] * np.log2(pmf[some] / share[some])).sum() <= limit:
                return True
        return False


class GaussianConditional(_EntropyModel):
    """Likelihood of rounded values under a Gaussian whose scale is predicted (Balle et al. 2018).

    Its own integer tables are loaded and saved, but not used: the package ships one set for all.
    """

    scale_table: Tensor
    scale_bound: Tensor
    _resized = ("_offset", "_quantized_cdf", "_cdf_length", "scale_table")

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale_table", torch.zeros(0))
        self.register_buffer("scale_bound", torch.tensor([0.11]))
        self.lower_bound_scale = LowerBound(0.11)

    def likelihood(self, distance: Tensor, scale: Tensor) -> Tensor:
        """Mass of the unit interval at ``distance`` from the mean, at least 1e-9.

        Scales count as 0.11 or more.
        """
        scale = self.lower_bound_scale(scale)
        distance = distance.abs()
        mass = _normal_cdf((0.5 - distance) / scale) - _normal_cdf((-0.5 - distance) / scale)
        return self.likelihood_lower_bound(mass)


def _normal_cdf(x: Tensor) -> Tensor:
    return 0.5 * torch.erfc(x * -math.sqrt(0.5))


class Rounding:
    """Quantisation as a network sees it: straight-through values, and bits of a logistic law.

    While training, the bits are those of the value plus uniform noise (Balle et al. 2017).
    """

    def __init__(self, *, training: bool) -> None:
        self.training = training

    @staticmethod
    def decoded(value: Tensor, mean: Tensor) -> Tensor:
        return round_through(value - mean) + mean

    def bits(self, value: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
        rest = value - mean
        rest = rest + torch.rand_like(rest) - 0.5 if self.training else rest.round()
        return logistic_bits(rest, log_scale)


def logistic_bits(rest: Tensor, log_scale: Tensor) -> Tensor:
    """Bits of integers ``rest`` under a zero-mean logistic law, integrated over unit bins."""
    scale, rest = torch.exp(log_scale.clamp(-3.3, 6.0)), rest.abs()
    mass = torch.sigmoid((0.5 - rest) / scale) - torch.sigmoid((-0.5 - rest) / scale)
    return -torch.log2(mass.clamp_min(1e-7))


def integer_bits(value: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Bits of integers under a logistic law with this mean, integrated over unit bins."""
    scale = torch.exp(log_scale.clamp(-3.5, 6.5))
    above, below = (value + 0.5 - mean) / scale, (value - 0.5 - mean) / scale
    # on the side where both tails are small, so that their difference is exact
    flip = torch.where(value > mean, -1.0, 1.0)
    mass = (torch.sigmoid(above * flip) - torch.sigmoid(below * flip)).abs()
    return -torch.log2(mass.clamp_min(1e-7))
