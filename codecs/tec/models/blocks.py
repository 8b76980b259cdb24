"""What the networks are built of. Parameter names are those of the published checkpoints."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv(inputs: int, outputs: int, *, kernel: int = 5, stride: int = 2) -> nn.Conv2d:
    """Convolution that divides the size by ``stride``."""
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2)


def deconv(inputs: int, outputs: int, *, kernel: int = 5, stride: int = 2) -> nn.ConvTranspose2d:
    """Transposed convolution that multiplies the size by ``stride``."""
    return nn.ConvTranspose2d(
        inputs, outputs, kernel, stride, padding=kernel // 2, output_padding=stride - 1
    )


def channels_last(x: Tensor) -> Tensor:
    """The layout in which convolutions are quickest, on CPUs by up to a half."""
    return x.contiguous(memory_format=torch.channels_last)


def rows(x: Tensor) -> Tensor:
    """(n, c, h, w) -> (n, h * w, c): one row a position, for networks of 1 x 1 convolutions."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:  # type: ignore[override]
        return x.round()

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad


def round_through(x: Tensor) -> Tensor:
    """Rounding whose gradient is that of the identity."""
    return _Round.apply(x)


class _AtLeast(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, bound: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x < bound)
        return torch.maximum(x, bound)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        (below,) = ctx.saved_tensors
        # A step goes against the gradient: below the bound only those that lead up may pass.
        return grad.masked_fill(below & (grad > 0), 0.0), None


class LowerBound(nn.Module):
    """max(x, bound) that can be trained out of the bound again."""

    bound: Tensor

    def __init__(self, bound: float) -> None:
        super().__init__()
        self.register_buffer("bound", torch.tensor([bound], dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        return _AtLeast.apply(x, self.bound)


class _NonNegative(nn.Module):
    """Stores a parameter p >= minimum as sqrt(p + e^2), e = 2^-18: steps shrink with p."""

    pedestal: Tensor

    def __init__(self, minimum: float = 0.0) -> None:
        super().__init__()
        pedestal = (2.0**-18) ** 2
        self.register_buffer("pedestal", torch.tensor([pedestal], dtype=torch.float32))
        self.lower_bound = LowerBound((minimum + pedestal) ** 0.5)

    def stored(self, value: Tensor) -> Tensor:
        return torch.sqrt(torch.clamp(value, min=0) + self.pedestal)

    def forward(self, stored: Tensor) -> Tensor:
        return self.lower_bound(stored) ** 2 - self.pedestal


class GDN(nn.Module):
    """Generalised divisive normalisation (Balle et al. 2016).

    x_i / sqrt(beta_i + sum_j gamma_ij x_j^2); ``inverse`` multiplies instead, as syntheses do.
    """

    def __init__(self, channels: int, *, inverse: bool = False) -> None:
        super().__init__()
        self.inverse = inverse
        beta_reparam, gamma_reparam = _NonNegative(1e-6), _NonNegative()
        self.beta = nn.Parameter(beta_reparam.stored(torch.ones(channels)))
        self.gamma = nn.Parameter(gamma_reparam.stored(0.1 * torch.eye(channels)))
        self.beta_reparam = beta_reparam
        self.gamma_reparam = gamma_reparam

    def forward(self, x: Tensor) -> Tensor:
        gamma = self.gamma_reparam(self.gamma)
        energy = F.conv2d(x * x, gamma[:, :, None, None], self.beta_reparam(self.beta))
        return x * (torch.sqrt(energy) if self.inverse else torch.rsqrt(energy))


class ResidualBottleneck(nn.Module):
    """x + 1x1 -> 3x3 -> 1x1 at half the channels (He et al. 2022, section 3.2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = nn.Conv2d(channels, half, 1)
        self.conv2 = nn.Conv2d(half, half, 3, padding=1)
        self.conv3 = nn.Conv2d(half, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.conv1(x), inplace=True)
        inner = F.relu(self.conv2(inner), inplace=True)
        return self.conv3(inner) + x


class ResidualUnit(nn.Module):
    """The same, with a last ReLU and the names that the attention block gives it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv = nn.Sequential(
            nn.Conv2d(channels, half, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(half, half, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(half, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x) + x)


class AttentionBlock(nn.Module):
    """x + a(x) * sigmoid(b(x)): the attention of Cheng et al. 2020."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_a = nn.Sequential(*(ResidualUnit(channels) for _ in range(3)))
        self.conv_b = nn.Sequential(
            *(ResidualUnit(channels) for _ in range(3)), nn.Conv2d(channels, channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(x, self.conv_a(x), torch.sigmoid(self.conv_b(x)))


class CheckerboardConv2d(nn.Conv2d):
    """5 x 5 convolution that sees the other colour only: odd row + column, from its centre.

    Given the anchors of a latent, its output is meant for the other positions (He et al. 2021).
    """

    mask: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 5, padding=2)
        odd = (torch.arange(5)[:, None] + torch.arange(5)) % 2
        self.register_buffer("mask", odd.float().expand(outputs, inputs, 5, 5).clone())

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=2)
