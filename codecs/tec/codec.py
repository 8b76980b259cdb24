"""One chunk of DN <-> bytes: samples, network, entropy coder and framing put together."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from . import samples, stream, weights
from .config import CodecConfig
from .errors import StreamError, TecError, WeightsError
from .weights import resolve_device

if TYPE_CHECKING:
    import torch

    from .models.coding import CodecModel, Steps

#: Most pixels (dates x height x width) that go through the network together.
_PIXELS = {"cpu": 2**19, "cuda": 2**23}


def encode(chunk: np.ndarray, config: CodecConfig, *, device: str = "auto") -> bytes:
    """Compress one chunk.

    Parameters
    ----------
    chunk : (time, band, y, x) uint16, int16 or float32; DN as `CodecConfig` describes them
    config : model, compression, bands, nodata, offset, scale
    device : "auto", "cpu", "cuda", ...

    Returns
    -------
    bytes
        A stream that `decode` reads on any machine (FORMAT.md).

    Raises
    ------
    TecError
        The chunk does not fit the configuration, or its values cannot be coded.
    WeightsError
        The checkpoint cannot be had.
    """
    return encode_many([chunk], config, device=device)[0]


def encode_many(
    chunks: Sequence[np.ndarray], config: CodecConfig, *, device: str = "auto"
) -> list[bytes]:
    """Compress several chunks, their dates batched through the network; see `encode`."""
    device = resolve_device(device)
    model = routed(config.model)
    # Who compresses with a published checkpoint has asked for it; who reads has not.
    network = weights.load(
        model,
        weights=config.weights,
        sensor=config.sensor,
        compression=config.compression,
        device=device,
        expect=config.weights_sha256,
        download=True,
    )
    config = replace(config, compression=float(np.float32(config.compression)))
    jobs = [_Job(np.asarray(chunk), config) for chunk in chunks]
    dates = [
        _DatePlace(i, d, job.padded(network.stride))
        for i, job in enumerate(jobs)
        for d in range(job.extent[0])
    ]
    coded: dict[tuple[int, int], stream.Date] = {}
    for batch in _batches(dates, device):
        planes = np.stack([jobs[p.chunk].planes(p.date, network.stride) for p in batch])
        for place, date in zip(batch, _encode_batch(network, planes, config.compression)):
            coded[place.chunk, place.date] = date
    out = []
    for i, job in enumerate(jobs):
        header = stream.Header(
            config=config,
            model=model,
            digest=bytes.fromhex(network.sha256)[:16],
            dtype=job.dtype,
            shape=job.chunk.shape,
            extent=job.extent,
            margin=network.margin.to_bytes(),
        )
        out.append(stream.pack(header, job.specials, [coded[i, d] for d in range(job.extent[0])]))
    return out


def decode(
    data: bytes | memoryview,
    *,
    dates: int | None = None,
    weights: str | None = None,
    device: str = "auto",
) -> np.ndarray:
    """Decompress one chunk.

    Parameters
    ----------
    data : a stream of `encode`
    dates : decode only the first so many dates of the chunk
    weights : path of the checkpoint, for streams that were written with one from a file
    device : "auto", "cpu", "cuda", ...

    Returns
    -------
    (time, band, y, x) array of the dtype that was encoded, in native byte order

    Raises
    ------
    StreamError
        The bytes are damaged, truncated or foreign, or this machine's arithmetic differs by more
        than the margin that was allowed for.
    WeightsError
        The checkpoint that the stream needs cannot be had.
    """
    return decode_many([data], dates=dates, weights=weights, device=device)[0]


def decode_many(
    streams: Sequence[bytes | memoryview],
    *,
    dates: int | None = None,
    weights: str | None = None,
    device: str = "auto",
) -> list[np.ndarray]:
    """Decompress several chunks, their dates batched through the network; see `decode`."""
    device = resolve_device(device)
    chunks = [_Coded(data, dates, weights, device) for data in streams]
    places = [
        _DatePlace(i, d, (*c.padded, c.group))
        for i, c in enumerate(chunks)
        for d in range(c.coded_dates)
    ]
    for batch in _batches(places, device):
        first = chunks[batch[0].chunk]
        latents = _decode_batch(
            first, [chunks[p.chunk].dates[p.date] for p in batch], [f"date {p.date}" for p in batch]
        )
        x_hat = _synthesis(first.network, latents, first.header.config.compression)
        for place, plane in zip(batch, x_hat):
            chunks[place.chunk].put(place.date, plane)
    return [c.out for c in chunks]


def latents(
    data: bytes | memoryview, *, weights: str | None = None, device: str = "auto"
) -> list[np.ndarray]:
    """The decoded latents of a stream, one (channel, y / 16, x / 16) float32 a coded date."""
    coded = _Coded(data, None, weights, resolve_device(device))
    return [
        _decode_batch(coded, [date], [f"date {i}"])[0].cpu().numpy()
        for i, date in enumerate(coded.dates)
    ]


def routed(model: str) -> str:
    """The model that codes a chunk; raises TecError for those that this version does not have."""
    if model in ("tt", "flex"):
        raise TecError(
            f"model {model!r} is not in this version yet: use model='elic' (each date on its own) "
            "or 'fp'"
        )
    return model


@dataclass(frozen=True)
class _DatePlace:
    """One date of one chunk; dates of equal ``key`` (height, width, ...) can share a batch."""

    chunk: int
    date: int
    key: tuple


def _batches(places: list[_DatePlace], device: str) -> Iterator[list[_DatePlace]]:
    limit = _PIXELS["cpu" if device == "cpu" else "cuda"]
    groups: dict[tuple, list[_DatePlace]] = {}
    for place in places:
        groups.setdefault(place.key, []).append(place)
    for key, group in groups.items():
        size = max(1, limit // (key[0] * key[1]))
        for i in range(0, len(group), size):
            yield group[i : i + size]


class _Job:
    """A chunk on its way in."""

    def __init__(self, chunk: np.ndarray, config: CodecConfig) -> None:
        if chunk.ndim != 4:
            raise TecError(f"a chunk is (time, band, y, x), this one has shape {chunk.shape}")
        if chunk.shape[1] != len(config.bands):
            raise TecError(
                f"chunk has {chunk.shape[1]} bands, the configuration names {len(config.bands)} "
                f"({', '.join(config.bands)}): pass bands= with one name for each"
            )
        if 0 in chunk.shape:
            raise TecError(f"chunk of shape {chunk.shape} is empty")
        self.dtype = samples.dtype_name(chunk.dtype)
        self.chunk = chunk
        self.config = config
        self.extent = samples.extent(chunk, config.nodata)
        t, y, x = self.extent
        inside = chunk[:t, :, :y, :x]
        self.specials, self.mask = samples.pack_specials(inside, config.nodata)
        if self.dtype == "float32" and config.scale == 1:
            self._check_unit(inside)

    def _check_unit(self, inside: np.ndarray) -> None:
        """Reflectance from 0 to 1 that is taken for DN would come back as next to nothing."""
        valid = inside if self.mask is None else inside[~self.mask]
        if valid.size and np.abs(valid).max() <= 2 and (valid != np.rint(valid)).any():
            raise TecError(
                f"float values up to {np.abs(valid).max():.3g} look like reflectance, but scale=1 "
                "takes them for DN: pass scale=1e-4"
            )

    def padded(self, stride: int) -> tuple[int, int]:
        return _padded(self.extent, stride)

    def planes(self, date: int, stride: int) -> np.ndarray:
        _, y, x = self.extent
        mask = None if self.mask is None else self.mask[date]
        return samples.date_planes(self.chunk[date, :, :y, :x], mask, self.config, stride)


class _Coded:
    """A stream on its way out."""

    def __init__(
        self, data: bytes | memoryview, dates: int | None, path: str | None, device: str
    ) -> None:
        self.header, specials, self.dates = stream.unpack(data)
        header = self.header
        self.device = device
        self.path = path
        self._network: CodecModel | None = None
        t, b, y, x = header.shape
        n = t if dates is None else min(dates, t)
        self.coded_dates = min(n, len(self.dates))
        nodata = header.config.nodata
        self.out = np.full((n, b, y, x), samples.fill_value(nodata, header.dtype), header.dtype)
        extent = header.extent
        shape = (extent[0], b, *extent[1:])
        self.mask, self.values = samples.unpack_specials(specials, shape, header.dtype, nodata)
        if self.coded_dates:
            self.padded = _padded(extent, self.network.stride)
        else:
            self.padded = (0, 0)

    @property
    def group(self) -> tuple:
        h = self.header
        return h.model, h.digest, h.config.compression, h.margin

    @property
    def network(self) -> CodecModel:
        if self._network is None:
            self._network = self.evaluation("float32")
        return self._network

    def evaluation(self, precision: str) -> CodecModel:
        """The network that the stream names, in some precision."""
        config = self.header.config
        name = config.weights
        if name == "file" or self.path is not None:
            if self.path is None:
                raise WeightsError(
                    "the stream was written with a checkpoint from a file "
                    f"(sha256 {self.header.digest.hex()}...): pass weights= its path"
                )
            name = self.path
        return weights.load(
            routed(self.header.model),
            weights=name,
            sensor=config.sensor,
            compression=config.compression,
            device=self.device,
            precision=precision,
            expect=self.header.digest.hex(),
            download=weights.downloads_allowed(),
        )

    def put(self, date: int, plane: np.ndarray) -> None:
        _, y, x = self.header.extent
        special = (None, None) if self.mask is None else (self.mask[date], self.values[date])
        out = self.out[date, :, :y, :x]
        samples.from_planes(plane, self.header.config, self.header.dtype, y, x, *special, out=out)


def _padded(extent: tuple[int, int, int], stride: int) -> tuple[int, int]:
    return samples.padded(extent[1], stride), samples.padded(extent[2], stride)


def drive(steps: Steps, symbols_of: Callable) -> torch.Tensor:
    """Run a model's autoregression: ``symbols_of(step)`` gives symbols (n, k); returns y_hat."""
    try:
        step = next(steps)
        while True:
            step = steps.send(symbols_of(step))
    except StopIteration as end:
        return end.value


def _encode_batch(network: CodecModel, planes: np.ndarray, compression: float) -> list[stream.Date]:
    """Standardised planes (n, band, h, w) -> n coded dates."""
    from .entropy import portable, rans

    with _exactly(network):
        x = _to_network(network, planes)
        y = network.analysis(x, compression)
        values = {"y": y, **network.side(y, compression)}
        n, _, h, w = y.shape
        writer = portable.Writer(n, network.grid, network.margin)
        symbols: list[np.ndarray] = []
        index: list[np.ndarray] = []

        def symbols_of(step):
            rest = step.select(values[step.latent]).cpu().numpy() - step.mean
            if not (np.abs(rest) < 2**30).all():  # a NaN fails too
                raise TecError(
                    "a latent is not finite or too large to code: are the input values physical?"
                )
            symbols.append(np.rint(rest).astype(np.int32))
            index.append(step.index)
            return symbols[-1]

        y_hat = drive(network.steps((n, h, w), compression, writer), symbols_of)
    all_symbols, all_index = np.concatenate(symbols, 1), np.concatenate(index, 1)
    return [
        stream.Date(checksum, decisions, rans.encode(all_symbols[i], all_index[i], network.tables))
        for i, (checksum, decisions) in enumerate(zip(_checksums(y_hat), writer.getvalue()))
    ]


def _decode_batch(coded: _Coded, dates: list[stream.Date], names: list[str]) -> torch.Tensor:
    """n coded dates -> y_hat (n, latents, h, w), checked against the checksums of the encoder.

    A date that does not come out right in the batch is tried alone, then in float64.
    """
    import torch

    try:
        return _decode_latents(coded.network, coded, dates)
    except StreamError:
        out = []
        for date, name in zip(dates, names):
            for precision in ("float32", "float64"):
                try:
                    y_hat = _decode_latents(coded.evaluation(precision), coded, [date])
                except StreamError as error:
                    failure = error
                else:
                    out.append(y_hat.float())
                    break
            else:
                raise StreamError(
                    f"{name}: the bytes are intact, but the latents come out differently here than "
                    f"where they were written ({failure}). The arithmetic of this machine differs "
                    "by more than the rounding margin of the stream; decode on another machine or "
                    "device, and please report it"
                ) from failure
        return torch.cat(out)


def _decode_latents(network: CodecModel, coded: _Coded, dates: list[stream.Date]) -> torch.Tensor:
    from .entropy import portable, rans

    n = len(dates)
    h, w = (size // 16 for size in coded.padded)
    decoders = [rans.Decoder(date.payload, network.tables) for date in dates]
    reader = portable.Reader([date.decisions for date in dates], network.grid)

    def symbols_of(step):
        return np.stack([decoder.read(row) for decoder, row in zip(decoders, step.index)])

    with _exactly(network):
        y_hat = drive(network.steps((n, h, w), coded.header.config.compression, reader), symbols_of)
    for decoder in decoders:
        decoder.finish()
    reader.finish()
    for date, checksum in zip(dates, _checksums(y_hat)):
        if checksum != date.checksum:
            raise StreamError("checksum of the decoded latents does not match")
    return y_hat


def _checksums(y_hat: torch.Tensor) -> list[int]:
    return [zlib.crc32(np.ascontiguousarray(y, "<f4").data) for y in y_hat.float().cpu().numpy()]


def _synthesis(network: CodecModel, y_hat: torch.Tensor, compression: float) -> np.ndarray:
    with _exactly(network):
        return network.synthesis(y_hat, compression).float().cpu().numpy()


@contextmanager
def _exactly(network: CodecModel) -> Iterator[None]:
    """Inference in the precision of the weights; cuDNN would round to TF32, beyond any margin."""
    import torch

    with torch.inference_mode():
        if next(network.parameters()).is_cuda:
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                yield
        else:
            yield


def _to_network(network: CodecModel, planes: np.ndarray) -> torch.Tensor:
    import torch

    parameter = next(network.parameters())
    return torch.from_numpy(planes).to(
        device=parameter.device, dtype=parameter.dtype, memory_format=torch.channels_last
    )
