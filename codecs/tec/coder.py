"""Latents <-> coded dates: a network's autoregression driven by the encoder and by the decoder."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import torch

from .entropy import portable, rans
from .errors import StreamError, TecError
from .models.coding import drive
from .models.temporal import GROUP, DateOut, History
from .models.tokens import TOKENS
from .stream import INTRA, TEMPORAL, Date

if TYPE_CHECKING:
    from .models.coding import CodecModel, TemporalModel

T = TypeVar("T")


class Coded(NamedTuple):
    """Some images, coded: one `Date` each, and what they decode to, (n, latents, h, w)."""

    dates: list[Date]
    y_hat: torch.Tensor


@contextmanager
def exactly(network: torch.nn.Module | Any) -> Iterator[None]:
    """Inference in the precision of the weights; cuDNN would round to TF32, beyond any margin."""
    with torch.inference_mode():
        if next(network.parameters()).is_cuda:
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                yield
        else:
            yield


def encode_images(network: CodecModel, y: torch.Tensor, compression: float) -> Coded:
    """Latents (n, latents, h, w) of n images, each coded by itself."""
    n, _, h, w = y.shape
    writer = portable.Writer(n, network.grid, network.margin)
    values = {"y": y, **network.side(y, compression)}
    taken = Taken(values)
    y_hat = drive(network.steps((n, h, w), compression, writer), taken)
    return Coded(taken.dates(writer, y_hat, network), y_hat)


def encode_series(
    network: TemporalModel,
    ys: Sequence[torch.Tensor],
    compression: float,
    sent: Sequence[int],
    forecast: str,
) -> tuple[list[list[Date]], list[tuple[int, ...]]]:
    """Latents of n series of dates.

    Parameters
    ----------
    ys : for each date (n, latents, h, w)
    sent : tokens of each date that are coded
    forecast : how the others are predicted

    Returns
    -------
    For each series its dates, and how each was coded (`tec.stream.Header.how`).
    """
    n, _, h, w = ys[0].shape
    if network.intra is None and all(k == TOKENS for k in sent):
        dates = _encode_known(network, [y.round() for y in ys], compression)
        how = [TOKENS if network.repacked else TEMPORAL] * len(ys)
        return [list(row) for row in zip(*dates)], [tuple(how)] * n
    history = network.history((n, h, w), compression)
    rows: list[list[Date]] = [[] for _ in range(n)]
    ways: list[list[int]] = [[] for _ in range(n)]
    for y, tokens in zip(ys, sent):
        way = tokens if network.repacked else TEMPORAL
        tried: list[tuple[int, Coded, list[float]]] = []
        if network.intra is None:
            coded, _ = _encode_date(network, history, y.round(), tokens, forecast)
            tried.append((way, coded, [0.0] * n))
        else:
            image = encode_images(network.intra, y, compression)
            tried.append((INTRA, image, _cost(network, image, y, image.y_hat, compression)))
            if len(history):
                coded, out = _encode_date(network, history, y.round(), tokens, forecast)
                cost = _cost(network, coded, y, network.restored(out), compression)
                tried.append((way, coded, cost))
        best = [tried[int(np.argmin([cost[i] for *_, cost in tried]))] for i in range(n)]
        history.push(torch.stack([coded.y_hat[i] for i, (_, coded, _) in enumerate(best)]))
        for i, (chosen, coded, _) in enumerate(best):
            rows[i].append(coded.dates[i])
            ways[i].append(chosen)
    return rows, [tuple(w) for w in ways]


def _encode_date(
    network: TemporalModel, history: History, whole: torch.Tensor, sent: int, forecast: str
) -> tuple[Coded, DateOut]:
    writer = portable.Writer(len(whole), network.grid, network.margin)
    taken = Taken({"y": whole})
    steps = network.date(history, writer, known=whole, sent=sent, forecast=forecast)
    out = drive(steps, taken)
    return Coded(taken.dates(writer, out.y_hat, network), out.y_hat), out


def _cost(
    network: TemporalModel,
    coded: Coded,
    y: torch.Tensor,
    restored: torch.Tensor,
    compression: float,
) -> list[float]:
    """Bits of n dates, and what their distortion is worth in bits."""
    loss = network.distortion(y, restored, compression).tolist()
    return [
        8 * (len(date.decisions) + len(date.payload)) + worth
        for date, worth in zip(coded.dates, loss)
    ]


def _encode_known(
    network: TemporalModel, ys: list[torch.Tensor], compression: float
) -> Iterator[list[Date]]:
    """All dates of n series, whose contexts are known: several go through together."""
    n, _, h, w = ys[0].shape
    first = network.history((n, h, w), compression)
    yield _encode_date(network, first, ys[0], TOKENS, "mean")[0].dates
    together = max(1, GROUP // (n * min(first.blocks, GROUP)))
    for start in range(1, len(ys), together):
        now = range(start, min(start + together, len(ys)))
        history = first.before(ys, now)
        whole = torch.cat([ys[t] for t in now])
        coded, _ = _encode_date(network, history, whole, TOKENS, "mean")
        for i in range(len(now)):
            yield coded.dates[i * n : (i + 1) * n]


class Taken:
    """What an encoder answers to steps, and remembers."""

    def __init__(self, values: dict[str, torch.Tensor]) -> None:
        self._values = values
        self._symbols: list[np.ndarray] = []
        self._index: list[np.ndarray] = []

    def __call__(self, step: Any) -> np.ndarray:
        rest = step.select(self._values[step.latent]).cpu().numpy() - step.mean
        if not (np.abs(rest) < 2**30).all():  # a NaN fails too
            raise TecError(
                "a latent is not finite or too large to code: are the input values physical?"
            )
        self._symbols.append(np.rint(rest).astype(np.int32))
        self._index.append(step.index)
        return self._symbols[-1]

    def dates(
        self, writer: portable.Writer, y_hat: torch.Tensor, network: CodecModel | TemporalModel
    ) -> list[Date]:
        n = len(y_hat)
        none = np.zeros((n, 0), np.int32)
        symbols = np.concatenate([none, *self._symbols], 1)
        index = np.concatenate([none.astype(np.uint16), *self._index], 1)
        payloads = [rans.encode(s, i, network.tables) for s, i in zip(symbols, index)]
        return [Date(*parts) for parts in zip(checksums(y_hat), writer.getvalue(), payloads)]


def checksums(y_hat: torch.Tensor) -> list[int]:
    """CRC-32 of each of n latents: float32, little-endian, C order."""
    return [zlib.crc32(np.ascontiguousarray(y, "<f4").data) for y in y_hat.float().cpu().numpy()]


def decode_images(
    network: CodecModel, dates: Sequence[Date], shape: tuple[int, int], compression: float
) -> torch.Tensor:
    """Mirror of `encode_images`, ``shape`` being that of the latents; StreamError unless every
    checksum is met."""

    def run(reader: portable.Reader, symbols_of: Callable) -> torch.Tensor:
        return drive(network.steps((len(dates), *shape), compression, reader), symbols_of)

    return _decode(network, dates, run, lambda y_hat: y_hat)


def decode_series(
    network: TemporalModel,
    rows: Sequence[Sequence[Date]],
    how: Sequence[Sequence[int]],
    shape: tuple[int, int],
    compression: float,
    forecast: str,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Mirror of `encode_series`: for each date latents and what the synthesis gets, (n, ...)."""
    history = network.history((len(rows), *shape), compression)
    for t in range(len(rows[0])):
        y_hat: list[Any] = [None] * len(rows)
        restored: list[Any] = [None] * len(rows)
        for way in sorted({ways[t] for ways in how}):
            chosen = [i for i, ways in enumerate(how) if ways[t] == way]
            dates = [rows[i][t] for i in chosen]
            try:
                if network.intra is not None and way == INTRA:
                    found = decode_images(network.intra, dates, shape, compression)
                    parts = found, found
                else:
                    sent = way if network.repacked else TOKENS
                    out = _decode_date(network, history.select(chosen), dates, sent, forecast)
                    parts = out.y_hat, network.restored(out)
            except StreamError as error:
                raise StreamError(f"date {t}: {error}") from error
            for k, i in enumerate(chosen):
                y_hat[i], restored[i] = parts[0][k], parts[1][k]
        latents = torch.stack(y_hat)
        history.push(latents)
        yield latents, torch.stack(restored)


def _decode_date(
    network: TemporalModel, history: History, dates: Sequence[Date], sent: int, forecast: str
):
    def run(reader: portable.Reader, symbols_of: Callable):
        return drive(network.date(history, reader, sent=sent, forecast=forecast), symbols_of)

    return _decode(network, dates, run, lambda out: out.y_hat)


def _decode(
    network: CodecModel | TemporalModel,
    dates: Sequence[Date],
    run: Callable[[portable.Reader, Callable], T],
    latents_of: Callable[[T], torch.Tensor],
) -> T:
    decoders = [rans.Decoder(date.payload, network.tables) for date in dates]
    reader = portable.Reader([date.decisions for date in dates], network.grid)

    def symbols_of(step: Any) -> np.ndarray:
        return np.stack([decoder.read(row) for decoder, row in zip(decoders, step.index)])

    out = run(reader, symbols_of)
    for decoder in decoders:
        decoder.finish()
    reader.finish()
    for date, checksum in zip(dates, checksums(latents_of(out))):
        if checksum != date.checksum:
            raise StreamError("checksum of the decoded latents does not match")
    return out
