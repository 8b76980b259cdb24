"""Transformer layers whose keys and values can be kept from one token to the next.

Parameter names are those of the published checkpoints. Each layer attends and thinks twice: to its
own tokens, then to a context (in a decoder) or to its own tokens again (in an encoder).
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPSILON = 1e-6  # of the layer norms


class KeysValues(NamedTuple):
    """What queries attend to: (b, heads, tokens, width / heads) each."""

    keys: Tensor
    values: Tensor


class Cache:
    """Keys and values of the tokens so far, of one layer.

    Parameters
    ----------
    tokens : how many there will be
    """

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.known = 0
        self._all: KeysValues | None = None

    def append(self, new: KeysValues) -> KeysValues:
        """Everything known, ``new`` (tokens next in order) included."""
        if self._all is None:
            b, heads, _, size = new.keys.shape
            room = [new.keys.new_empty(b, heads, self.tokens, size) for _ in range(2)]
            self._all = KeysValues(*room)
        end = self.known + new.keys.shape[2]
        for kept, part in zip(self._all, new):
            kept[:, :, self.known : end] = part
        self.known = end
        return KeysValues(*(kept[:, :, :end] for kept in self._all))


class Attention(nn.Module):
    """Scaled dot-product attention with several heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (b, heads, tokens, size)

    def keys_values(self, x: Tensor) -> KeysValues:
        """(b, tokens, width) -> what can be attended to."""
        return KeysValues(self._split(self.k(x)), self._split(self.v(x)))

    def forward(self, x: Tensor, seen: KeysValues, *, causal: bool = False) -> Tensor:
        """(b, tokens, width) -> the same. ``seen`` of batch 1 serves the whole batch."""
        b, tokens, _ = x.shape
        q = self._split(self.q(x))
        shared = len(seen.keys) == 1 < b and not causal
        if shared:  # one long sequence of queries
            q = q.transpose(0, 1).flatten(1, 2)[None]  # (1, heads, b * tokens, size)
        out = F.scaled_dot_product_attention(q, *seen, is_causal=causal)
        if shared:
            out = out[0].unflatten(1, (b, tokens)).transpose(0, 1)
        return self.proj(out.transpose(1, 2).flatten(2))


class Perceptron(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Layer(nn.Module):
    """Attention and perceptron, twice, each behind a norm and beside a shortcut."""

    def __init__(self, width: int, heads: int, expansion: int) -> None:
        super().__init__()
        self.norm1a = nn.LayerNorm(width, eps=EPSILON)
        self.norm1b = nn.LayerNorm(width, eps=EPSILON)
        self.norm2a = nn.LayerNorm(width, eps=EPSILON)
        self.norm2b = nn.LayerNorm(width, eps=EPSILON)
        self.self_attention = Attention(width, heads)
        self.cross_attention = Attention(width, heads)
        self.mlp1 = Perceptron(width, width * expansion)
        self.mlp2 = Perceptron(width, width * expansion)

    def forward(
        self,
        x: Tensor,
        context: KeysValues | None = None,
        *,
        causal: bool = False,
        cache: Cache | None = None,
    ) -> Tensor:
        """(b, tokens, width) -> the same; with a ``cache``, x holds what is new."""
        inner = self.norm1a(x)
        own = self.self_attention.keys_values(inner)
        seen = own if cache is None else cache.append(own)
        x = x + self.self_attention(inner, seen, causal=causal)
        x = x + self.mlp1(self.norm1b(x))
        inner = self.norm2a(x)
        seen = self.cross_attention.keys_values(inner) if context is None else context
        x = x + self.cross_attention(inner, seen)
        return x + self.mlp2(self.norm2b(x))


class Stack(nn.Module):
    """Layers, one after another."""

    def __init__(self, layers: int, width: int, heads: int, expansion: int) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(
            {f"encoder_layer_{i}": Layer(width, heads, expansion) for i in range(layers)}
        )

    def _layers(self) -> list[Layer]:
        return cast("list[Layer]", list(self.layers.values()))

    def caches(self, tokens: int) -> list[Cache]:
        """One empty cache a layer."""
        return [Cache(tokens) for _ in self.layers]

    def contexts(self, x: Tensor) -> list[KeysValues]:
        """Keys and values of (b, tokens, width) for the cross-attention of each layer."""
        return [layer.cross_attention.keys_values(x) for layer in self._layers()]

    def forward(
        self,
        x: Tensor,
        contexts: list[KeysValues] | None = None,
        *,
        causal: bool = False,
        caches: list[Cache] | None = None,
    ) -> Tensor:
        """(b, tokens, width) -> the same."""
        for i, layer in enumerate(self._layers()):
            x = layer(
                x,
                None if contexts is None else contexts[i],
                causal=causal,
                cache=None if caches is None else caches[i],
            )
        return x


class Position(nn.Module):
    """A learned vector for each place in a sequence."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self._pos = nn.Parameter(0.02 * torch.randn(1, tokens, width))

    def forward(self, x: Tensor, first: int = 0) -> Tensor:
        """Add them to (b, tokens, width), whose first token has place ``first``."""
        return x + self._pos[:, first : first + x.shape[1]]
