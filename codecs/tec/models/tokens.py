"""Blocks, windows and tokens of a latent: how a date is cut up before it is coded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from ..errors import TecError

BLOCK, WINDOW = 4, 8
CELLS = BLOCK * BLOCK
TOKENS = 16  # a block


@dataclass(frozen=True)
class Layout:
    """How the values of a block are cut into tokens: channel groups, then positions.

    Attributes
    ----------
    groups : channels of each group, in coding order
    phases : positions (row * 4 + column) of each token within a group; each position once
    """

    groups: tuple[int, ...]
    phases: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        positions = sorted(p for phase in self.phases for p in phase)
        if positions != list(range(CELLS)) or self.steps != TOKENS or min(self.groups) < 1:
            raise TecError(
                f"channel groups {self.groups} and {len(self.phases)} phases do not make "
                f"{TOKENS} tokens that hold every position of a block once"
            )

    @property
    def steps(self) -> int:
        return len(self.groups) * len(self.phases)

    def split(self, blocks: Tensor) -> list[Tensor]:
        """(b, 16 positions, channels) -> for each group (b, phases, values of a token)."""
        order = [p for phase in self.phases for p in phase]
        parts = blocks[:, order].split(self.groups, -1)
        return [part.unflatten(1, (len(self.phases), -1)).flatten(2) for part in parts]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Mirror of `split`."""
        cells = CELLS // len(self.phases)
        parts = [part.unflatten(2, (cells, -1)).flatten(1, 2) for part in parts]
        back = np.argsort([p for phase in self.phases for p in phase]).tolist()
        return torch.cat(list(parts), -1)[:, back]

    def tokens(self, blocks: Tensor) -> list[Tensor]:
        """(b, 16 positions, channels) -> each token (b, values), in coding order."""
        return [token for part in self.split(blocks) for token in part.unbind(1)]

    def blocks(self, tokens: Sequence[Tensor]) -> Tensor:
        """Mirror of `tokens`."""
        k = len(self.phases)
        return self.join([torch.stack(list(tokens[i : i + k]), 1) for i in range(0, TOKENS, k)])


def to_blocks(y: Tensor) -> Tensor:
    """(n, c, h, w) -> (n, blocks, 16 positions, c); h and w multiples of 4."""
    n, c, h, w = y.shape
    y = y.reshape(n, c, h // BLOCK, BLOCK, w // BLOCK, BLOCK)
    return y.permute(0, 2, 4, 3, 5, 1).reshape(n, -1, CELLS, c)


def from_blocks(blocks: Tensor, h: int, w: int) -> Tensor:
    """Mirror of `to_blocks`."""
    n, _, _, c = blocks.shape
    y = blocks.reshape(n, h // BLOCK, w // BLOCK, BLOCK, BLOCK, c)
    return y.permute(0, 5, 1, 3, 2, 4).reshape(n, c, h, w)


@cache
def windows(h: int, w: int) -> Tensor:
    """(blocks, 64) int64: flat positions that each block's window sees, mirrored at the edges."""

    def along(n: int) -> np.ndarray:
        margin = (WINDOW - BLOCK) // 2
        inside = np.pad(np.arange(n), margin, mode="reflect")
        return np.stack([inside[i : i + WINDOW] for i in range(0, n, BLOCK)])

    rows, columns = along(h), along(w)
    flat = rows[:, None, :, None] * w + columns[None, :, None, :]
    with torch.inference_mode(False):  # kept, and perhaps needed for training
        return torch.from_numpy(flat.reshape(-1, WINDOW * WINDOW))


@dataclass(frozen=True)
class TokenStep:
    """Some tokens of some blocks of every image, see :class:`tec.models.coding.Step`.

    k runs over (token, block, value).
    """

    index: np.ndarray
    mean: np.ndarray
    layout: Layout
    blocks: slice
    tokens: slice
    latent: str = "y"

    def select(self, latent: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, k), the values that this step codes."""
        n = len(latent)
        cells = to_blocks(latent)[:, self.blocks].flatten(0, 1)
        return rows_of(self.layout.tokens(cells)[self.tokens], n)


def rows_of(tokens: Sequence[Tensor], n: int) -> Tensor:
    """Tokens (n * blocks, values) each -> (n, k)."""
    return torch.cat([token.reshape(n, -1) for token in tokens], 1)


def tokens_of(values: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Mirror of `_rows`."""
    sizes = [token.numel() // len(values) for token in like]
    return [v.reshape(t.shape) for v, t in zip(values.split(sizes, 1), like)]
