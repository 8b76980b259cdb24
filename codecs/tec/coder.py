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
    margin = network.margin_at(compression).wider(wider)

    def run(rows: list[int], skipped: int) -> Coded:
        some = _rows(y, rows)
        n, _, h, w = some.shape
        writer = portable.Writer(n, network.grid, margin)
        taken = Taken({"y": some, **network.side(some, compression)})
        steps = network.steps((n, h, w), compression, writer, **_less(network, skipped))
        y_hat = drive(steps, taken)
        return Coded(taken.dates(writer, y_hat, network, skipped), y_hat)

    return _by_groups(_skippable(network, y), run)


def _skippable(network: CodecModel | TemporalModel, y: torch.Tensor) -> list[int]:
    """Channel groups of each of n latents, from the last, that need not be coded."""
    find = getattr(network, "skippable", None)  # published networks code all
    return [0] * len(y) if find is None else find(y)


def _less(network: Any, skipped: int) -> dict[str, Any]:
    """What a network is told of groups that are left out; StreamError where it has fewer."""
    if not skipped:
        return {}
    groups = len(network.config.groups) if hasattr(network, "skippable") else 0
    if skipped > groups:
        raise StreamError(
            f"{skipped} channel groups are left out, and the network has {groups} that can be: the "
            "stream is damaged or made up"
        )
    return {"skipped": skipped}


def _rows(y: torch.Tensor, rows: list[int]) -> torch.Tensor:
    return y if len(rows) == len(y) else y[rows]


def _alike(keys: Sequence[Any]) -> Iterator[tuple[Any, list[int]]]:
    """Each key, and the rows that have it."""
    for key in sorted(set(keys)):
        yield key, [i for i, own in enumerate(keys) if own == key]


def _by_groups(skipped: Sequence[int], run: Callable[[list[int], int], Coded]) -> Coded:
    """Rows that leave out as many groups are coded together."""
    dates: list[Any] = [None] * len(skipped)
    decoded: list[Any] = [None] * len(skipped)
    for count, rows in _alike(skipped):
        coded = run(rows, count)
        if len(rows) == len(skipped):
            return coded
        for i, date, y_hat in zip(rows, coded.dates, coded.y_hat):
            dates[i], decoded[i] = date, y_hat
    return Coded(dates, torch.stack(decoded))


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
    way: dict[str, Any] = {"compression": compression, "sent": sent, "forecast": forecast}

    def run(rows: list[int], skipped: int) -> Coded:
        some = _rows(values, rows)
        writer = portable.Writer(len(some), network.grid, margin)
        taken = Taken({"y": some})
        past = history.select(rows)
        steps = network.date(past, writer, known=some, **way, **_less(network, skipped))
        y_hat = drive(steps, taken).y_hat
        return Coded(taken.dates(writer, y_hat, network, skipped), y_hat)

    whole = sent == TOKENS  # what is not sent is predicted, and not 0
    return _by_groups(_skippable(network, values) if whole else [0] * len(values), run)


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
        self,
        writer: portable.Writer,
        y_hat: torch.Tensor,
        network: CodecModel | TemporalModel,
        skipped: int,
    ) -> list[Date]:
        n = len(y_hat)
        none = np.zeros((n, 0), np.int32)
        symbols = np.concatenate([none, *self._symbols], 1)
        index = np.concatenate([none.astype(np.uint16), *self._index], 1)
        tables, most = network.tables, _threads(network, symbols.size)
        rows = list(zip(symbols, index))
        payloads = threads.side_by_side(lambda row: rans.encode(*row, tables), rows, most)
        parts = zip(checksums(y_hat), writer.getvalue(), payloads)
        return [Date(*part, skipped) for part in parts]


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
    found: list[Any] = [None] * len(dates)
    for skipped, rows in _alike([date.skipped for date in dates]):
        less = _less(network, skipped)

        def run(
            reader: portable.Reader,
            symbols_of: Callable,
            n: int = len(rows),
            less: dict[str, Any] = less,
        ) -> torch.Tensor:
            return drive(network.steps((n, *shape), compression, reader, **less), symbols_of)

        y_hat = _decode(network, [dates[i] for i in rows], run, lambda y_hat: y_hat)
        if len(rows) == len(dates):
            return y_hat
        for i, row in zip(rows, y_hat):
            found[i] = row
    return torch.stack(found)


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
        keys = [(ways[t], row[t].skipped) for ways, row in zip(told, rows)]
        for (way, skipped), chosen in _alike(keys):
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
                skipped: int = skipped,
            ) -> DateOut:
                less = _less(network, skipped)
                way: dict[str, Any] = {"compression": lmbda, "sent": sent, "forecast": forecast}
                return drive(network.date(past, reader, **way, **less), symbols_of)

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
