"""Latents <-> coded dates: a network's autoregression driven by the encoder and by the decoder."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

import numpy as np
import torch

from . import threads
from .entropy import portable, rans
from .errors import StreamError, TecError
from .models.coding import drive
from .models.temporal import DATES, GROUP
from .models.tokens import TOKENS
from .precision import full_precision
from .stream import Date
from .transfer import to_host

if TYPE_CHECKING:
    from .models.coding import CodecModel, DateOut, Past, TemporalModel
    from .models.temporal import History

T = TypeVar("T")

#: Symbols of several rows that are worth a second thread: half a millisecond of work.
_WORTH = 2**16


class Coded(NamedTuple):
    """Some images, coded: one `Date` each, and what they decode to, (n, latents, h, w)."""

    dates: list[Date]
    y_hat: torch.Tensor


@contextmanager
def exactly(network: torch.nn.Module | Any) -> Iterator[None]:
    """Inference in the precision of the weights: anything shorter would be beyond any margin."""
    threads.settle()
    with torch.inference_mode(), full_precision(next(network.parameters()).device.type):
        yield


def encode_images(
    network: CodecModel, y: torch.Tensor, compression: float, wider: float = 1
) -> Coded:
    """Latents (n, latents, h, w) of n images, each coded by itself, with a wider rounding margin
    than is usual."""
    n, _, h, w = y.shape
    writer = portable.Writer(n, network.grid, network.margin_at(compression).wider(wider))
    values = {"y": y, **network.side(y, compression)}
    taken = Taken(values)
    y_hat = drive(network.steps((n, h, w), compression, writer), taken)
    return Coded(taken.dates(writer, y_hat, network), y_hat)


def encode_series(
    network: TemporalModel,
    ys: Sequence[torch.Tensor],
    compression: Sequence[float],
    sent: Sequence[int],
    forecast: str,
    wider: float = 1,
) -> tuple[list[list[Date]], list[tuple[int, ...]]]:
    """Latents of n series of dates.

    Parameters
    ----------
    ys : for each date (n, latents, h, w)
    compression : λ of each date
    sent : tokens of each date that are coded
    forecast : how the others are predicted
    wider : how many times wider than is usual the rounding margin shall be

    Returns
    -------
    For each series its dates, and how many dates before each was told of (`tec.stream.Header`).
    """
    n, _, h, w = ys[0].shape
    if network.plain and all(k == TOKENS for k in sent):
        dates = list(_encode_known(network, [y.round() for y in ys], compression[0], wider))
        return [list(row) for row in zip(*dates)], [_told(len(ys))] * n
    history = network.history((n, h, w))
    rows: list[list[Date]] = [[] for _ in range(n)]
    ways: list[list[int]] = [[] for _ in range(n)]
    for y, lmbda, tokens in zip(ys, compression, sent, strict=True):
        values = y.round() if network.plain else y
        way = lmbda, tokens, forecast, wider
        tried = [(len(history), _encode_date(network, history, values, *way))]
        if len(history) and not network.plain and tokens == TOKENS:
            # Where the dates before say nothing, less is more.
            alone = network.history((n, h, w))
            tried.append((0, _encode_date(network, alone, values, *way)))
        best = [min(tried, key=lambda way: way[1].dates[i].nbytes) for i in range(n)]
        y_hat = torch.stack([coded.y_hat[i] for i, (_, coded) in enumerate(best)])
        history.push(y_hat, network.remembered(y_hat, lmbda))
        for i, (told, coded) in enumerate(best):
            rows[i].append(coded.dates[i])
            ways[i].append(told)
    return rows, [tuple(way) for way in ways]


def _told(dates: int) -> tuple[int, ...]:
    """Of so many dates in order, where each is told of all that can be."""
    return tuple(min(t, DATES) for t in range(dates))


def _encode_date(
    network: TemporalModel,
    history: Past,
    values: torch.Tensor,
    compression: float,
    sent: int,
    forecast: str,
    wider: float,
) -> Coded:
    margin = network.margin_at(compression, min(len(history), DATES)).wider(wider)
    writer = portable.Writer(len(values), network.grid, margin)
    taken = Taken({"y": values})
    steps = network.date(
        history, writer, compression=compression, known=values, sent=sent, forecast=forecast
    )
    y_hat = drive(steps, taken).y_hat
    return Coded(taken.dates(writer, y_hat, network), y_hat)


def _encode_known(
    network: TemporalModel, ys: list[torch.Tensor], compression: float, wider: float
) -> Iterator[list[Date]]:
    """All dates of n series, whose contexts are known: several go through together."""
    n, _, h, w = ys[0].shape
    first = cast("History", network.history((n, h, w)))
    way = compression, TOKENS, "mean", wider
    yield _encode_date(network, first, ys[0], *way).dates
    together = max(1, GROUP // (n * min(first.blocks, GROUP)))
    for start in range(1, len(ys), together):
        now = range(start, min(start + together, len(ys)))
        history = first.before(ys, now)
        whole = torch.cat([ys[t] for t in now])
        coded = _encode_date(network, history, whole, *way)
        for i in range(len(now)):
            yield coded.dates[i * n : (i + 1) * n]


class Taken:
    """What an encoder answers to steps, and remembers."""

    def __init__(self, values: dict[str, torch.Tensor]) -> None:
        self._values = values
        self._symbols: list[np.ndarray] = []
        self._index: list[np.ndarray] = []

    def __call__(self, step: Any) -> np.ndarray:
        (values,) = to_host(step.select(self._values[step.latent]))
        rest = values - step.mean
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
        tables, most = network.tables, _threads(network, symbols.size)
        rows = list(zip(symbols, index))
        payloads = threads.side_by_side(lambda row: rans.encode(*row, tables), rows, most)
        return [Date(*parts) for parts in zip(checksums(y_hat), writer.getvalue(), payloads)]


def _threads(network: torch.nn.Module | Any, symbols: int) -> int:
    """Threads for the coder of so many symbols in all rows."""
    if symbols < _WORTH:
        return 1
    return threads.of_the_coder(next(network.parameters()).device.type)


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
    told: Sequence[Sequence[int]],
    shape: tuple[int, int],
    compression: Sequence[float],
    sent: Sequence[int],
    forecast: str,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Mirror of `encode_series`: for each date latents and what the synthesis gets, (n, ...)."""
    history = network.history((len(rows), *shape))
    for t, (lmbda, tokens) in enumerate(zip(compression, sent, strict=True)):
        found: list[Any] = [None] * len(rows)
        for way in sorted({ways[t] for ways in told}):
            chosen = [i for i, ways in enumerate(told) if ways[t] == way]
            past = network.history((len(chosen), *shape))
            if way == len(history):
                past = history.select(chosen)
            elif way:
                raise StreamError(f"date {t} was told of {way} dates, there are {len(history)}")

            def run(
                reader: portable.Reader,
                symbols_of: Callable,
                past: Past = past,
                lmbda: float = lmbda,
                sent: int = tokens,
            ) -> DateOut:
                steps = network.date(past, reader, compression=lmbda, sent=sent, forecast=forecast)
                return drive(steps, symbols_of)

            try:
                dates = [rows[i][t] for i in chosen]
                out = _decode(network, dates, run, lambda out: out.y_hat)
            except StreamError as error:
                raise StreamError(f"date {t}: {error}") from error
            for i, *parts in zip(chosen, out.y_hat, network.restored(out)):
                found[i] = parts
        y_hat, restored = (torch.stack(part) for part in zip(*found))
        history.push(y_hat, network.remembered(y_hat, lmbda))
        yield y_hat, restored


def _decode(
    network: CodecModel | TemporalModel,
    dates: Sequence[Date],
    run: Callable[[portable.Reader, Callable], T],
    latents_of: Callable[[T], torch.Tensor],
) -> T:
    decoders = [rans.Decoder(date.payload, network.tables) for date in dates]
    reader = portable.Reader([date.decisions for date in dates], network.grid)

    def symbols_of(step: Any) -> np.ndarray:
        rows, most = list(zip(decoders, step.index)), _threads(network, step.index.size)
        return np.stack(threads.side_by_side(lambda row: row[0].read(row[1]), rows, most))

    out = run(reader, symbols_of)
    for decoder in decoders:
        decoder.finish()
    reader.finish()
    for date, checksum in zip(dates, checksums(latents_of(out))):
        if checksum != date.checksum:
            raise StreamError("checksum of the decoded latents does not match")
    return out
