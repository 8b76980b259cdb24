"""The protocol between a model and the coder.

Autoregression is written once, and driven by the encoder and by the decoder alike.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from ..entropy.portable import Margin, ScaleGrid
from ..entropy.tables import Tables

T = TypeVar("T")


@dataclass(frozen=True)
class Step:
    """One group of symbols that are coded together, given all that came before.

    ``index`` and ``mean`` are what encoder and decoder must agree on to the bit: they come from
    integers and from :mod:`tec.entropy.portable`, never straight from a network.

    Attributes
    ----------
    latent : "y" or "z"
    channels : slice of that latent's channels
    index : (n, k) uint16, row of the model's ``tables`` for each symbol
    mean : (n, k) float32, on its grid; symbol = rint(value - mean), decoded value = symbol + mean
    parity : None for every position; 0 for the checkerboard's anchors, where (row + column) is
        even; 1 for the others

    k runs over (channel, row, column) in C order, restricted to the positions of ``parity``.
    """

    latent: str
    channels: slice
    index: np.ndarray
    mean: np.ndarray
    parity: int | None = None

    def select(self, latent: torch.Tensor) -> torch.Tensor:
        """(n, channels, h, w) -> (n, k), the values that this step codes."""
        return gather(latent[:, self.channels], self.parity)


#: Yields steps, receives their symbols (n, k) int32, returns the decoded latent y_hat (n, M, h, w)
# float32.
Steps = Generator[Step, np.ndarray, torch.Tensor]


class Rounder(Protocol):
    """The side of :mod:`tec.entropy.portable` that a model sees."""

    def parameters(
        self,
        mean: np.ndarray,
        log_scale: np.ndarray,
        size: Callable[[], np.ndarray] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """(n, k) float32 twice -> table index (n, k) uint16 and mean on its grid (n, k) float32.

        ``size`` gives (n, k), how large the numbers are that a mean is the sum of, to who asks.
        """

    def round(self, values: np.ndarray, step: float = 1.0) -> np.ndarray:
        """(n, k) float32 -> multiples of ``step``, (n, k) int32."""


class DateOut(Protocol):
    """One date, decoded or encoded; its model knows more of it."""

    y_hat: torch.Tensor  #: (n, latents, h, w)


class Past:
    """The dates before, of n images: what is remembered of each, the newest last.

    Attributes
    ----------
    shape : n, and height and width of the latents
    latents : (n, latents, h, w) each
    last : the newest date exactly as it was decoded, the same on every machine; None at first
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.shape = shape
        self.latents: list[torch.Tensor] = []
        self.last: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.latents)

    def push(self, y_hat: torch.Tensor, remembered: torch.Tensor | None = None) -> None:
        """Add the date that was decoded last, and what is remembered of it: y_hat itself, if
        nothing else."""
        self.last = y_hat
        self.latents = [*self.latents, y_hat if remembered is None else remembered][-2:]

    def select(self, rows: Sequence[int]) -> Past:
        """The same for some of the images."""
        if list(rows) == list(range(self.shape[0])):
            return self
        out = Past((len(rows), *self.shape[1:]))
        out.latents = [y[list(rows)] for y in self.latents]
        out.last = None if self.last is None else self.last[list(rows)]
        return out

    def random(self) -> Random:
        """Numbers for a forecast of the next date."""
        return Random(self)


class Random:
    """Numbers that encoder and decoder draw alike: Philox 4x64, keyed by the date before."""

    def __init__(self, past: Past) -> None:
        n = past.shape[0]
        last = [b""] * n if past.last is None else past.last.float().cpu().numpy()
        seeds = [zlib.crc32(np.ascontiguousarray(y, "<f4").data if len(y) else b"") for y in last]
        self._streams = [np.random.Philox(key=seed) for seed in seeds]

    def numbers(self, k: int) -> np.ndarray:
        """(n, k) of 16 bits."""
        return np.stack([stream.random_raw(k) >> np.uint64(48) for stream in self._streams])


def drive(steps: Generator[Any, np.ndarray, T], symbols_of: Callable[[Any], np.ndarray]) -> T:
    """Run a model's autoregression: ``symbols_of(step)`` gives symbols (n, k)."""
    try:
        step = next(steps)
        while True:
            step = steps.send(symbols_of(step))
    except StopIteration as end:
        return end.value


@lru_cache(64)
def positions(h: int, w: int, parity: int) -> np.ndarray:
    """Flat indexes of one colour of the checkerboard on an h x w grid, row by row."""
    where = np.flatnonzero(((np.arange(h)[:, None] + np.arange(w)) % 2 == parity).ravel())
    where.flags.writeable = False
    return where


def _halves(x: torch.Tensor, parity: int) -> Iterator[tuple[torch.Tensor, int]]:
    """Views of one colour of the checkerboard, (n, c, h, w) with even w, and their first row."""
    for row in (0, 1):
        yield x[:, :, row::2, (row + parity) % 2 :: 2], row


def gather(x: torch.Tensor, parity: int | None) -> torch.Tensor:
    """(n, c, h, w) -> (n, c * positions)."""
    n, c, h, w = x.shape
    if parity is None:
        return x.reshape(n, -1)
    if w % 2:
        where = torch.tensor(positions(h, w, parity), device=x.device)
        return x.flatten(2)[:, :, where].reshape(n, -1)
    out = x.new_empty(n, c, h, w // 2)
    for half, row in _halves(x, parity):  # three times as fast as indexes
        out[:, :, row::2] = half
    return out.reshape(n, -1)


def scatter(values: torch.Tensor, shape: tuple[int, ...], parity: int | None) -> torch.Tensor:
    """(n, c * positions) -> (n, c, h, w), zero elsewhere."""
    n, c, h, w = shape
    if parity is None:
        return values.reshape(shape)
    out = values.new_zeros(shape)
    if w % 2:
        where = torch.tensor(positions(h, w, parity), device=values.device)
        out.flatten(2)[:, :, where] = values.reshape(n, c, -1)
        return out
    rows = values.reshape(n, c, h, w // 2)
    for half, row in _halves(out, parity):
        half.copy_(rows[:, :, row::2])
    return out


class CodecModel(Protocol):
    """What :mod:`tec.codec` asks of a network."""

    stride: int  #: images are padded to multiples of it
    bands: int
    tables: Tables  #: all integer CDFs, one index space
    grid: ScaleGrid
    sha256: str  #: of the checkpoint, hex

    def margin_at(self, compression: float) -> Margin:
        """Rounding margin that an encoder allows for."""

    def analysis(self, x: torch.Tensor, compression: float) -> torch.Tensor:
        """(n, bands, h, w) standardised -> y (n, latents, h / 16, w / 16)."""

    def side(self, y: torch.Tensor, compression: float) -> dict[str, torch.Tensor]:
        """Further latents that the encoder codes, by name."""

    def steps(self, shape: tuple[int, int, int], compression: float, rounder: Rounder) -> Steps:
        """The autoregression for n images whose latents are h x w: shape = (n, h, w)."""

    def synthesis(self, y_hat: torch.Tensor, compression: float) -> torch.Tensor:
        """y_hat -> (n, bands, h, w) standardised."""

    def parameters(self) -> Iterator[torch.nn.Parameter]: ...


class TemporalModel(Protocol):
    """What :mod:`tec.codec` asks of a network that codes a date from the dates before.

    Attributes
    ----------
    plain : whether latents are rounded as they are, and not around their means: then all dates are
        known before any is coded
    repacked : whether a date may be coded by its first tokens alone ("flex")
    """

    stride: int
    bands: int
    tables: Tables
    grid: ScaleGrid
    sha256: str
    plain: bool
    repacked: bool

    def compression(self, sent: int, compression: float) -> float:
        """λ of a date of which ``sent`` tokens are coded, in a chunk of λ ``compression``."""

    def margin_at(self, compression: float, dates: int = 2) -> Margin:
        """Rounding margin that an encoder allows for on a date told of so many before it."""

    def analysis(self, x: torch.Tensor, compression: float) -> torch.Tensor:
        """(n, bands, h, w) standardised -> y (n, latents, h / 16, w / 16)."""

    def history(self, shape: tuple[int, int, int]) -> Past:
        """Where a series begins: n, and height and width of latents."""

    def date(
        self,
        history: Any,
        rounder: Rounder,
        *,
        compression: float,
        known: torch.Tensor | None = None,
        sent: int = 16,
        forecast: str = "mean",
    ) -> Generator[Any, np.ndarray, Any]:
        """The autoregression over one date: yields steps, receives their symbols, returns a
        `DateOut`.

        Parameters
        ----------
        history : the dates before
        known : the latent itself, which only an encoder has: all tokens may go through at once
        sent : tokens that are coded
        forecast : what stands in for the others, "mean" or "sample"
        """

    def remembered(self, y_hat: torch.Tensor, compression: float) -> torch.Tensor:
        """What ``history`` keeps of a decoded date."""

    def restored(self, out: Any) -> torch.Tensor:
        """What the synthesis gets for a decoded date."""

    def synthesis(self, y: torch.Tensor, compression: float) -> torch.Tensor:
        """y -> (n, bands, h, w) standardised."""

    def parameters(self) -> Iterator[torch.nn.Parameter]: ...
