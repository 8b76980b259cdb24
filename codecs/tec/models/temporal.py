"""A date coded from the dates before it: blocks, windows, tokens, and the order of coding.

Follows VCT (Mentzer et al. 2022, section 3) as TerraCodec has it (arXiv 2510.12670, section 3.3). A
latent is cut in blocks of 4 x 4 positions. Each block is a sequence of tokens, predicted one after
another from an 8 x 8 window around the block in the two dates before. Blocks do not see each other.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Generator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn

from .. import graphs
from ..entropy.integers import IntegerCoding
from ..errors import TecError
from ..transfer import to_device, to_host
from .coding import Past, Rounder
from .tokens import (
    BLOCK,
    CELLS,
    TOKENS,
    WINDOW,
    Layout,
    TokenStep,
    from_blocks,
    rows_of,
    to_blocks,
    tokens_of,
    windows,
)
from .transformer import KeysValues, Position, Stack

DATES = 2  # dates before that are seen
#: Blocks, in raster order, that are coded token by token together. Part of the stream format.
GROUP = 128
_PIECE = 2**23  # numbers inside one perceptron, at most


class Prediction(NamedTuple):
    """Of some tokens: features (b, tokens, width); mean and log scale (b, values) of each."""

    features: Tensor
    means: list[Tensor]
    log_scales: list[Tensor]


class TemporalPrior(nn.Module):
    """Encoders and decoder of the entropy model; what is embedded, and how, is its subclasses'.

    Parameters
    ----------
    layers : of the separate encoder, the joint encoder and the decoder
    """

    def __init__(
        self, layout: Layout, width: int, heads: int, layers: tuple[int, int, int], expansion: int
    ) -> None:
        super().__init__()
        separate, joint, decoder = layers
        self.layout = layout
        self.piece = max(1, _PIECE // (WINDOW * WINDOW * width * expansion))  # blocks
        self.encoder_sep = Stack(separate, width, heads, expansion)
        self.encoder_joint = Stack(joint, width, heads, expansion)
        self.decoder = Stack(decoder, width, heads, expansion)
        self.enc_position_sep = Position(WINDOW * WINDOW, width)
        self.enc_position_joint = Position(DATES * WINDOW * WINDOW, width)
        self.dec_position = Position(TOKENS, width)
        self._first: list[KeysValues] | None = None
        self.graphs: graphs.Graphs = OrderedDict()

    # what subclasses say

    def embed_window(self, windows: Tensor) -> Tensor:
        """(b, 64, channels) -> (b, 64, width)."""
        raise NotImplementedError

    def embed_start(self) -> Tensor:
        """(1, 1, width): what stands before the first token."""
        raise NotImplementedError

    def embed_tokens(self, values: Tensor) -> Tensor:
        """(b, tokens, values) -> (b, tokens, width)."""
        raise NotImplementedError

    def heads(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(b, tokens, width) -> mean and log scale, (b, tokens, values) each."""
        raise NotImplementedError

    def first_window(self) -> Tensor:
        """(1, 64, channels): what the first date sees in place of dates before."""
        raise NotImplementedError

    # what follows from it

    def encode(self, windows: Tensor) -> Tensor:
        """(b, 64, channels) of one date before -> (b, 64, width)."""

        def run(windows: Tensor) -> Tensor:
            return self.encoder_sep(self.enc_position_sep(self.embed_window(windows)))

        return _in_pieces(run, self.piece, windows)

    def join(self, older: Tensor, newer: Tensor) -> Tensor:
        """Two encoded dates (b, 64, width) -> (b, 128, width)."""

        def run(older: Tensor, newer: Tensor) -> Tensor:
            return self.encoder_joint(self.enc_position_joint(torch.cat([older, newer], 1)))

        return _in_pieces(run, max(1, self.piece // 2), older, newer)

    def first_context(self) -> list[KeysValues]:
        """What the first date sees, the same for all blocks; kept while weights cannot change."""
        if self._first is not None and not torch.is_grad_enabled():
            return self._first
        z = self.encode(self.first_window())
        first = self.decoder.contexts(self.join(z, z))
        if not (self.training or torch.is_grad_enabled()):
            self._first = first
        return first

    def train(self, mode: bool = True) -> Self:
        """Training mode or not, as of any module; forgets what followed from the weights."""
        self._forget()
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        self._forget()  # of another device or precision
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._forget()  # of other weights
        super()._load_from_state_dict(*args, **kwargs)

    def _forget(self) -> None:
        self._first = None
        self.graphs = OrderedDict()


class Unrolling:
    """The decoder on its way through the tokens of ``batch`` blocks.

    ``context`` is what they see of the dates before, for each layer of the decoder; of batch 1
    where it is the same for all blocks.
    """

    def __init__(self, prior: TemporalPrior, context: list[KeysValues], batch: int) -> None:
        self._prior = prior
        self.context = context
        self.batch = batch
        self._caches = prior.decoder.caches(TOKENS)
        self._next = 0

    def copy(self) -> Unrolling:
        """At the first token, with a context of its own."""
        context = [KeysValues(*(part.clone() for part in layer)) for layer in self.context]
        return Unrolling(self._prior, context, self.batch)

    def rewind(self, token: int) -> None:
        """Go on with a token that came before, or is next."""
        self._next = token
        for cache in self._caches:
            cache.known = token

    def predict(self, values: Sequence[Tensor], count: int = 1) -> Prediction:
        """The next ``count`` tokens, given the values (b, k) of the one before the first of them
        and, where several are asked for, of those among them but the last."""
        prior, first = self._prior, self._next
        embedded = [prior.embed_start()] if first == 0 else []
        if len(values):
            embedded.append(prior.embed_tokens(torch.stack(list(values), 1)))
        x = torch.cat([e.expand(self.batch, -1, -1) for e in embedded], 1)
        features = prior.decoder(
            prior.dec_position(x, first),
            self.context,
            causal=count > 1,
            caches=None if count == TOKENS else self._caches,  # nothing comes after all of them
        )
        means, log_scales = prior.heads(features)
        self._next += count
        return Prediction(features, list(means.unbind(1)), list(log_scales.unbind(1)))


def _in_pieces(run: Callable[..., Tensor], size: int, *tensors: Tensor) -> Tensor:
    """Run over the first axis, ``size`` entries at a time: memory stays bounded."""
    n = len(tensors[0])
    if n <= size:
        return run(*tensors)
    return torch.cat([run(*(t[i : i + size] for t in tensors)) for i in range(0, n, size)])


class History(Past):
    """The dates before, and what the separate encoder made of them."""

    def __init__(self, prior: TemporalPrior, shape: tuple[int, int, int]) -> None:
        super().__init__(shape)
        _, h, w = shape
        if h % BLOCK or w % BLOCK:
            raise TecError(
                f"latent of {h} x {w} positions, the temporal models need multiples of {BLOCK}: "
                f"pad images to multiples of {16 * BLOCK}"
            )
        self.prior = prior
        self._encoded: list[Tensor | None] = []

    def push(self, y_hat: Tensor, remembered: Tensor | None = None) -> None:
        """Add the date that was decoded last: (n, c, h, w)."""
        super().push(y_hat, remembered)
        self._encoded = [*self._encoded, None][-DATES:]

    def select(self, rows: Sequence[int]) -> History:
        """The same for some of the images."""
        if list(rows) == list(range(self.shape[0])):
            return self
        out = History(self.prior, (len(rows), *self.shape[1:]))
        out.latents = [y[list(rows)] for y in self.latents]
        out.last = None if self.last is None else self.last[list(rows)]
        out._encoded = [None if z is None else z[list(rows)] for z in self._encoded]
        return out

    def before(self, dates: Sequence[Tensor], now: range) -> History:
        """What each date of ``now`` is predicted from, all in one batch, date after date.

        ``dates`` are all dates from the first on; called on the history of the first.
        """
        n, h, w = self.shape
        out = History(self.prior, (n * len(now), h, w))
        needed = range(max(now.start - DATES, 0), now.stop - 1)
        encoded = {t: self._encoded_date(dates[t]) for t in needed}
        for age in range(DATES, 0, -1):
            seen = [max(t - age, 0) for t in now]
            out.latents.append(torch.cat([dates[t] for t in seen]))
            out._encoded.append(torch.cat([encoded[t] for t in seen]))
        return out

    @property
    def blocks(self) -> int:
        return self.shape[1] * self.shape[2] // CELLS

    def groups(self) -> list[slice]:
        """Blocks that are coded together."""
        return [slice(i, min(i + GROUP, self.blocks)) for i in range(0, self.blocks, GROUP)]

    def context(self, blocks: slice) -> list[KeysValues]:
        """For some blocks of every image, image by image."""
        if not self.latents:
            return self.prior.first_context()
        encoded = [self._encode(i)[:, blocks].flatten(0, 1) for i in range(len(self.latents))]
        return self.prior.decoder.contexts(self.prior.join(encoded[0], encoded[-1]))

    def _encode(self, i: int) -> Tensor:
        """One of the dates before, encoded once."""
        known = self._encoded[i]
        if known is None:
            known = self._encoded[i] = self._encoded_date(self.latents[i])
        return known

    def _encoded_date(self, y: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, blocks, 64, width)."""
        where = windows(*self.shape[1:]).to(y.device)
        seen = y.flatten(2).transpose(1, 2)[:, where].flatten(0, 1)  # (n * blocks, 64, c)
        return self.prior.encode(seen).unflatten(0, (len(y), -1))


@dataclass
class DateOut:
    """One date, decoded (or encoded).

    Attributes
    ----------
    y_hat : (n, c, h, w)
    features : (n, blocks, tokens, width)
    """

    y_hat: Tensor
    features: Tensor


DateSteps = Generator[TokenStep, np.ndarray, DateOut]


def date_steps(
    history: History,
    rounder: Rounder,
    coding: IntegerCoding,
    *,
    known: Tensor | None = None,
    sent: int = TOKENS,
    forecast: str = "mean",
) -> DateSteps:
    """One date: yields steps, receives their symbols, returns a `DateOut`.

    Parameters
    ----------
    known : (n, c, h, w) integers, when encoding: all tokens that are sent make one step, in one
        pass of the decoder; otherwise they make a step each
    sent : tokens that are coded; the others are predicted
    forecast : "mean", the rounded means; or "sample", drawn from the tables
    """
    prior = history.prior
    n, h, w = history.shape
    random = history.random() if forecast == "sample" else None
    done, all_features = [], []
    for blocks in history.groups():
        context = history.context(blocks)
        plain = Unrolling(prior, context, n * (blocks.stop - blocks.start))
        tokens: list[Tensor] = []
        features = []
        given = None
        if known is not None and sent:
            given = prior.layout.tokens(to_blocks(known)[:, blocks].flatten(0, 1))
        with graphs.replaying(plain, prior) if known is None else nullcontext(plain) as unrolling:
            while len(tokens) < TOKENS:
                at = len(tokens)
                count = sent if given is not None and at < sent else 1
                before = tokens[-1:] if given is None or at else given[: count - 1]
                found = unrolling.predict(before, count)
                mean, log_scale = to_host(rows_of(found.means, n), rows_of(found.log_scales, n))
                if at < sent or random is not None:
                    index, whole = coding(*rounder.parameters(mean, log_scale))
                    if random is not None and at >= sent:
                        symbols = coding.tables.draw(index, random.numbers(index.shape[1]))
                    else:
                        symbols = yield TokenStep(
                            index, whole, prior.layout, blocks, slice(at, at + count)
                        )
                    values = symbols + whole
                else:
                    values = rounder.round(mean).astype(np.float32)
                tokens += tokens_of(to_device(values, found.features), found.means)
                features.append(found.features)
        done.append(prior.layout.blocks(tokens).unflatten(0, (n, -1)))
        all_features.append(torch.cat(features, 1).unflatten(0, (n, -1)))
    y_hat = from_blocks(torch.cat(done, 1), h, w)
    return DateOut(y_hat, torch.cat(all_features, 1))
