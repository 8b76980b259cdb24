"""One chunk of DN <-> bytes: samples, network, entropy coder and framing put together."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any, Union, cast

import numpy as np

from . import bounded, samples, stream, weights
from .batches import Batch, Unit, ahead, alone, in_batches
from .coarse import Grid, find_grids
from .config import TOKENS, CodecConfig
from .errors import StreamError, TecError, WeightsError
from .forks import runs_networks
from .sensors import SENSORS
from .weights import resolve_device

if TYPE_CHECKING:
    import torch

    from .models.coding import CodecModel, TemporalModel
    from .tensors import Pixels

Network = Union["CodecModel", "TemporalModel"]

#: Models that code a date from the dates before.
TEMPORAL = ("tt", "flex")
#: The range of each band is told where the rest of the stream is so many times longer.
_RANGES = 200
#: Of pixels, as users say it: what is promised, or what is quickest (`tec.precision.fast`).
PRECISIONS = ("full", "fast")


def encode(chunk: np.ndarray, config: CodecConfig, *, device: str = "auto") -> bytes:
    """Compress one chunk.

    Parameters
    ----------
    chunk : (time, band, y, x) uint16, int16 or float32; DN as `CodecConfig` describes them
    config : model, compression, bands, nodata, offset, scale, max_error
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


@runs_networks
def encode_many(
    chunks: Sequence[np.ndarray], config: CodecConfig, *, device: str = "auto", wider: float = 1
) -> list[bytes]:
    """Compress several chunks, their dates batched through the network; see `encode`.

    ``wider``, a power of two, is how many times wider than is usual the rounding margin shall be:
    more bytes, and machines whose arithmetic differs more can read them.
    """
    if config.model != "none":
        device = resolve_device(device)
    config = replace(config, compression=float(np.float32(config.compression)))

    @cache
    def network_of(model: str) -> Network:
        # Who compresses with a published checkpoint has asked for it; who reads has not.
        return weights.load(
            model,
            weights=config.weights,
            sensor=config.sensor,
            compression=config.compression,
            device=device,
            expect=config.weights_sha256 if model == config.model else None,
            download=True,
        )

    jobs = [_Job(np.asarray(chunk), config, network_of, wider) for chunk in chunks]
    lossy = [job for job in jobs if job.model != "none"]
    units = [unit for i, job in enumerate(lossy) for unit in _units(i, job.extent[0], job)]

    def run(batches: list[Batch]) -> Iterator[None]:
        each = [[(lossy[unit.chunk], unit.dates) for unit in batch] for batch in batches]
        planes = ahead(_planes(each, device), device)
        for members in each:
            _encode_batch(members, planes)
            yield

    in_batches(units, device, run)
    if config.max_error is None:
        return [job.packed() for job in jobs]
    return [_bounded(job, device) for job in jobs]


def decode(
    data: bytes | memoryview,
    *,
    dates: int | None = None,
    weights: str | None = None,
    device: str = "auto",
    max_samples: int = stream.MAX_DECODED,
    precision: str = "full",
    to: str | None = None,
) -> Any:
    """Decompress one chunk.

    Parameters
    ----------
    data : a stream of `encode`
    dates : decode only the first so many dates of the chunk
    weights : path of the checkpoint, for streams that were written with one from a file
    device : "auto", "cpu", "cuda", ...
    max_samples : most samples (time x band x y x x) that the stream may declare; one that declares
        more is refused before anything of that size is allocated. 2**30 unless told: pass what
        you expect where streams come from strangers, or are larger.
    precision : "full", or "fast" for pixels that differ by some DN (docs/design.md): the synthesis
        multiplies in float16 on a GPU, in bfloat16 on a processor that has it. Latents are the same
    to : a device of torch ("cuda", "cuda:1", "cpu", ...): gives a tensor there, which on a GPU has
        never left it. Streams with ``max_error`` are decoded by the processor and copied, and so
        are interpolated bands of more than 2048 rows or columns

    Returns
    -------
    (time, band, y, x) array of the dtype that was encoded, in native byte order; with ``to`` a
    torch.Tensor of that dtype (``cupy.from_dlpack`` takes it without a copy)

    Raises
    ------
    StreamError
        The bytes are damaged, truncated or foreign, or this machine's arithmetic differs by more
        than the margin that was allowed for.
    WeightsError
        The checkpoint that the stream needs cannot be had.
    TecError
        ``precision="fast"`` of a stream with ``max_error``, whose pixels are exact.
    """
    return decode_many(
        [data],
        dates=dates,
        weights=weights,
        device=device,
        max_samples=max_samples,
        precision=precision,
        to=to,
    )[0]


@runs_networks
def decode_many(
    streams: Sequence[bytes | memoryview],
    *,
    dates: int | Sequence[int | None] | None = None,
    weights: str | None = None,
    device: str = "auto",
    max_samples: int = stream.MAX_DECODED,
    precision: str = "full",
    to: str | None = None,
    independent: bool = False,
) -> list[Any]:
    """Decompress several chunks, their dates batched through the network; see `decode`.

    ``dates`` may be a sequence, one entry a stream. ``max_samples`` holds for each stream.
    ``independent`` evaluates everything in float64, each chunk by itself: as far from the encoder's
    arithmetic as another machine's may be. It refuses ``precision="fast"``.
    """
    if precision not in PRECISIONS:
        raise TecError(
            f"precision {precision!r}: it must be 'full' (pixels within 1 DN of other machines') "
            "or 'fast' (float16 on a GPU, bfloat16 on a processor that has it)"
        )
    fast = precision == "fast"
    if independent and fast:
        raise TecError(
            "precision 'fast' says nothing of what is stored: verify with precision 'full' (unset "
            "XTEC_PRECISION, or xtec.settings.precision = 'full')"
        )
    each = [dates] * len(streams) if dates is None or isinstance(dates, int) else dates
    there = None
    if to is not None:
        from .tensors import device_of

        there = device_of(to)
        if device == "auto" and there.type == "cuda":
            device = str(there)
    chunks = [
        _Coded(data, n, weights, device, max_samples, "fast" if fast else None, independent, there)
        for data, n in zip(streams, each, strict=True)
    ]
    lossy = [c for c in chunks if c.model != "none"]
    if lossy:
        device = resolve_device(device)
    units = [unit for i, c in enumerate(lossy) for unit in _units(i, c.coded_dates, c)]

    def run(batches: list[Batch]) -> Iterator[None]:
        each = [[(lossy[unit.chunk], unit.dates) for unit in batch] for batch in batches]
        for found in ahead(_decode_each(each), device):
            if found is None:
                yield
                continue
            for coded, date, plane in found:
                coded.put(date, plane)

    in_batches(units, device, run)
    return [c.done() for c in chunks]


@runs_networks
def latents(
    data: bytes | memoryview,
    *,
    weights: str | None = None,
    device: str = "auto",
    max_samples: int = stream.MAX_DECODED,
) -> list[np.ndarray]:
    """The decoded latents of a stream, one (channel, y / 16, x / 16) float32 a coded date.

    Padding of the image has latents, too. No pixels are decoded. Parameters and errors are those
    of `decode`; TecError where the stream was written without a network.
    """
    device = resolve_device(device)
    coded = _Coded(data, None, weights, device, max_samples)
    if coded.model == "none":
        raise TecError("the stream has no latents: it was written without a network (max_error=)")
    found: list[np.ndarray] = []
    for unit in _units(0, coded.coded_dates, coded):
        with alone(unit, device):
            for y_hat, _ in _decode_latents([(coded, unit.dates)]):
                found.append(y_hat[0].float().cpu().numpy())
    return found


def routed(config: CodecConfig, dates: int) -> str:
    """The model that codes a chunk of so many dates.

    A single one is an image, where the weights that were asked for have a model for images.
    """
    if config.model != "tt" or dates > 1:
        return config.model
    return "elic" if weights.exists("elic", config.weights, config.sensor) else "tt"


def _units(chunk: int, dates: int, of: _Job | _Coded) -> list[Unit]:
    if not dates:
        return []
    key = (*of.padded, of.group, of.precision)
    if of.model in TEMPORAL:
        return [Unit(chunk, range(dates), (*key, dates))]
    return [Unit(chunk, range(d, d + 1), key) for d in range(dates)]


class _Job:
    """A chunk on its way in."""

    def __init__(
        self,
        chunk: np.ndarray,
        config: CodecConfig,
        network_of: Callable[[str], Network],
        wider: float = 1,
    ) -> None:
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
        self.wider = wider
        self.extent = samples.extent(chunk, config.nodata)
        t, y, x = self.extent
        inside = chunk[:t, :, :y, :x]
        self.specials, self.mask = samples.pack_specials(inside, config.nodata)
        if self.dtype == "float32" and config.scale == 1:
            self._check_unit(inside)
        self.dates: dict[int, stream.Date] = {}
        self.told: tuple[int, ...] = ()
        self.model, self.precision = routed(config, t), "float32"
        if self.model == "none":
            return
        self.network = network_of(self.model)
        self.padded = _padded(self.extent, self.network.stride)
        self.group = self.model
        self.grids = grids_of(inside, self.mask, config)

    def _check_unit(self, inside: np.ndarray) -> None:
        """Reflectance from 0 to 1 that is taken for DN would come back as next to nothing."""
        valid = inside if self.mask is None else inside[~self.mask]
        if valid.size and np.abs(valid).max() <= 2 and (valid != np.rint(valid)).any():
            raise TecError(
                f"float values up to {np.abs(valid).max():.3g} look like reflectance, but scale=1 "
                "takes them for DN: pass scale=1e-4"
            )

    def planes(self, date: int) -> np.ndarray:
        _, y, x = self.extent
        mask = None if self.mask is None else self.mask[date]
        pixels = self.chunk[date, :, :y, :x]
        return samples.date_planes(pixels, mask, self.config, self.network.stride, self.grids)

    @property
    def inside(self) -> np.ndarray:
        """What of the chunk is coded."""
        t, y, x = self.extent
        return self.chunk[:t, :, :y, :x]

    def header(self) -> stream.Header:
        """Without ranges and bounds."""
        t = self.extent[0]
        _, rates = _rates(self.network, self.config, max(1, t))
        return stream.Header(
            config=self.config,
            model=self.model,
            digest=bytes.fromhex(self.network.sha256)[: stream.DIGEST],
            dtype=self.dtype,
            shape=self.chunk.shape,
            extent=self.extent,
            margin=self.network.margin_at(max(rates)).wider(self.wider).to_bytes(),
            how=self.config.tokens(t) if self.model == "flex" else (),
            told=self.told,
            grids=tuple(0 if grid is None else grid.code for grid in self.grids),
        )

    def bare_header(self) -> stream.Header:
        """That of a stream without a network."""
        config = replace(self.config, model="none", quality=None, forecast="mean")
        digest = bytes(stream.DIGEST)
        return stream.Header(config, "none", digest, self.dtype, self.chunk.shape, self.extent)

    def packed(self) -> bytes:
        """The stream, once all dates are coded."""
        header, dates = self.header(), [self.dates[d] for d in range(self.extent[0])]
        ranges = samples.valid_ranges(self.inside, self.mask)
        room = sum(date.nbytes for date in dates) // _RANGES
        if len(stream.pack_ranges(ranges, self.dtype)) <= room:
            header = replace(header, ranges=ranges)
        return stream.pack(header, self.specials, dates)


class _Coded:
    """A stream on its way out."""

    def __init__(
        self,
        data: bytes | memoryview,
        dates: int | None,
        path: str | None,
        device: str,
        max_samples: int = stream.MAX_DECODED,
        precision: str | None = None,
        independent: bool = False,
        to: torch.device | None = None,
    ) -> None:
        self.independent = independent
        self.to = to
        header, specials, self.dates, self.residual = stream.unpack(data)
        self.header = header
        if (declared := math.prod(header.shape)) > max_samples:
            raise StreamError(
                f"the stream ({header.nbytes} bytes) declares a chunk (time, band, y, x) of "
                f"{header.shape}, {declared} samples, and {max_samples} are allowed: is it "
                "hostile? Where such a chunk is expected, pass max_samples= its size"
            )
        self.device = device
        self.path = path
        self.model = header.model
        self._network: Network | None = None
        t, b, y, x = header.shape
        n = t if dates is None else min(dates, t)
        self.coded_dates = min(n, header.extent[0])
        if precision == "fast" and self.residual is not None:
            raise TecError(
                "the stream has a bound on its error, which precision 'fast' would break: decode "
                "it with precision='full' (in xtec: unset XTEC_PRECISION, or set "
                "xtec.settings.precision = 'full')"
            )
        # A picture that all machines must agree on is one of float64.
        self.precision = precision or ("float32" if self.residual is None else "float64")
        self.grids = tuple(map(Grid.from_code, header.grids)) or (None,) * b
        nodata = header.config.nodata
        self.tensor: Pixels | None = None
        if to is not None and self.residual is None:
            from .tensors import Pixels

            self.tensor = Pixels(header, n, self.grids, to)
        else:
            fill = samples.fill_value(nodata, header.dtype)
            self.out = np.full((n, b, y, x), fill, header.dtype)
        extent = header.extent
        shape = (extent[0], b, *extent[1:])
        self.mask, self.values = samples.unpack_specials(specials, shape, header.dtype, nodata)
        self.picture: dict[int, np.ndarray] = {}
        if self.coded_dates and self.model != "none":
            self.padded = _padded(extent, self.network.stride)
        else:
            self.padded = (0, 0)

    @property
    def group(self) -> tuple:
        h = self.header
        return h.model, h.digest, h.config.compression, h.config.forecast, h.margin, h.how

    @property
    def network(self) -> Network:
        if self._network is None:
            self._network = self.evaluation("float32")
        return self._network

    def evaluation(self, precision: str) -> Network:
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
            self.model,
            weights=name,
            sensor=config.sensor,
            compression=config.compression,
            device=self.device,
            precision=precision,
            expect=self.header.digest.hex(),
            download=weights.downloads_allowed(),
            offered=True,
        )

    def put(self, date: int, plane: Any) -> None:
        """What the network gave for a date: a tensor where one is wanted, else an array."""
        _, y, x = self.header.extent
        if self.residual is not None:
            reader = bounded.reader(self.residual.decisions[date])
            self.picture[date] = bounded.picture(plane, self.header, reader)
            reader.finish()
            return
        special = (None, None) if self.mask is None else (self.mask[date], self.values[date])
        if self.tensor is not None:
            self.tensor.put(date, plane, *special)
            return
        out = self.out[date, :, :y, :x]
        samples.from_planes(
            plane,
            self.header.config,
            self.header.dtype,
            y,
            x,
            *special,
            grids=self.grids,
            ranges=self.header.ranges,
            out=out,
        )

    def done(self) -> Any:
        """All dates, once they were put: an array, or a tensor."""
        if self.tensor is not None:
            return self.tensor.done()
        if self.residual is not None:
            self._put_residual(self.residual)
        if self.to is None:
            return self.out
        import torch

        return torch.from_numpy(self.out).to(self.to)

    def _put_residual(self, residual: stream.Residual) -> None:
        """All dates, once their picture is there."""
        n, (_, y, x) = self.coded_dates, self.header.extent
        picture = None
        if self.picture:
            picture = np.stack([self.picture[date] for date in range(n)])
        inside = self.out[:n, :, :y, :x]
        bounded.decode(residual, self.header, self.mask, picture, inside)
        if self.mask is not None:
            for out, mask, values in zip(inside, self.mask, self.values):
                samples.as_bits(out)[mask] = samples.as_bits(values)
        bounded.check(residual, inside, self.mask, self.header.config.nodata)


def _padded(extent: tuple[int, int, int], stride: int) -> tuple[int, int]:
    return samples.padded(extent[1], stride), samples.padded(extent[2], stride)


def _bounded(job: _Job, device: str) -> bytes:
    """The stream of a chunk with a bound on its error: what the picture of its network lacks, or,
    without a picture, everything."""
    found = []
    if job.model != "none":
        header = replace(job.header(), grids=())  # of what a network gives
        dates = [job.dates[d] for d in range(job.extent[0])]
        lossy = stream.pack(header, job.specials, dates)
        path = job.config.weights if stream.weights_id(job.config.weights) == "file" else None
        coded = _Coded(lossy, None, path, device, job.chunk.size, "float64")
        planes = (plane[0] for _, plane in _decode_alone(coded, device))
        header, rest = bounded.encode(header, job.inside, job.mask, planes)
        found.append(stream.pack(header, job.specials, dates, rest))
    if job.model == "none" or job.config.lossy == "auto":
        header, rest = bounded.encode(job.bare_header(), job.inside, job.mask, None)
        found.append(stream.pack(header, job.specials, [], rest))
    return min(found, key=len)


def _planes(
    each: list[list[tuple[_Job, range]]], device: str
) -> Generator[torch.Tensor, None, None]:
    """What the network sees of each batch, date by date: (n, bands, height, width)."""
    import torch

    for members in each:
        for k in range(len(members[0][1])):
            planes = torch.from_numpy(np.stack([job.planes(dates[k]) for job, dates in members]))
            # From pinned memory a GPU copies while it computes.
            yield planes.pin_memory() if device.startswith("cuda") else planes


def _encode_batch(members: list[tuple[_Job, range]], planes: Iterator[torch.Tensor]) -> None:
    """Code dates of some chunks: as many of each, of one size, with one network.

    ``planes`` : of these dates, from `_planes`
    """
    from . import coder

    jobs = [job for job, _ in members]
    network, config = jobs[0].network, jobs[0].config
    sent, rates = _rates(network, config, len(members[0][1]))
    ys = []
    with coder.exactly(network):
        for lmbda in rates:
            ys.append(network.analysis(to_network(network, next(planes)), lmbda))
        if jobs[0].model in TEMPORAL:
            series = cast("TemporalModel", network)
            rows, told = coder.encode_series(
                series, ys, rates, sent, config.forecast, jobs[0].wider
            )
            for job, ways in zip(jobs, told):
                job.told = ways
        else:
            image = coder.encode_images(
                cast("CodecModel", network), ys[0], config.compression, jobs[0].wider
            )
            rows = [[date] for date in image.dates]
    for (job, dates), row in zip(members, rows):
        job.dates.update(zip(dates, row))


def _rates(network: Network, config: CodecConfig, dates: int) -> tuple[list[int], list[float]]:
    """Tokens that are sent of each date, and its λ."""
    sent = list(config.tokens(dates) or (TOKENS,) * dates)
    if config.model not in TEMPORAL or not hasattr(network, "history"):
        return sent, [config.compression] * dates
    return sent, [cast("TemporalModel", network).compression(k, config.compression) for k in sent]


def _decode_alone(coded: _Coded, device: str) -> Iterator[tuple[torch.Tensor, Any]]:
    """`_decode_batch` of one chunk, as little at a time as can be."""
    for unit in _units(0, coded.coded_dates, coded):
        with alone(unit, device):
            yield from _decode_batch([(coded, unit.dates)])


def _decode_each(
    each: list[list[tuple[_Coded, range]]],
) -> Generator[list[tuple[_Coded, int, Any]] | None, None, None]:
    """Chunk, date and planes of what goes together; None at the end of a batch."""
    for members in each:
        for k, (_, planes) in enumerate(_decode_batch(members)):
            yield [(coded, dates[k], plane) for (coded, dates), plane in zip(members, planes)]
        yield None


def _decode_batch(
    members: list[tuple[_Coded, range]],
) -> Iterator[tuple[torch.Tensor, Any]]:
    """Latents and planes (n, ...), date after date, of some chunks of equal group."""
    import torch

    from . import coder, precision
    from .transfer import to_host

    first, dates = members[0]
    _, rates = _rates(first.network, first.header.config, len(dates))
    network = first.evaluation("float64") if first.precision == "float64" else first.network
    parameter = next(network.parameters())
    hurry = first.precision == "fast"
    with coder.exactly(network):
        for (y_hat, restored), lmbda in zip(_decode_latents(members), rates, strict=True):
            restored = restored.to(parameter.dtype)
            with precision.fast(parameter.device) if hurry else nullcontext():
                planes = network.synthesis(restored, lmbda)
            if hurry and not torch.isfinite(planes).all():  # too large for float16
                planes = network.synthesis(restored, lmbda)
            planes = planes.to(parameter.dtype)
            yield y_hat.float(), planes if first.tensor is not None else to_host(planes)[0]


_Latents = list[tuple["torch.Tensor", "torch.Tensor"]]


def _decode_latents(members: list[tuple[_Coded, range]]) -> _Latents:
    """For each date latents and what the synthesis gets: (n, ...) each.

    Chunks that do not come out right in the batch are tried alone, then in float64.
    """
    import torch

    if members[0][0].independent:
        each = [_evaluate([member], "float64") for member in members]
        return [tuple(torch.cat(part) for part in zip(*row)) for row in zip(*each)]  # type: ignore[misc]
    try:
        found = _evaluate(members, "float32")
        if members[0][0].precision == "float64" and not all(torch.equal(a, b) for a, b in found):
            # What the synthesis gets is more than the latents: the work of a network, too.
            found = _evaluate(members, "float64")
        return found
    except StreamError as failure:
        if len(members) > 1:
            each = [_decode_latents([member]) for member in members]
            return [tuple(torch.cat(part) for part in zip(*row)) for row in zip(*each)]  # type: ignore[misc]
        try:
            return _evaluate(members, "float64")
        except StreamError:
            raise StreamError(
                f"{failure}: the bytes are intact, but the latents come out differently here than "
                "where they were written. The arithmetic of this machine differs by more than the "
                "rounding margin of the stream; decode on another machine or device, and please "
                "report it"
            ) from failure


def _evaluate(members: list[tuple[_Coded, range]], precision: str) -> _Latents:
    from . import coder

    first = members[0][0]
    network, config = first.evaluation(precision), first.header.config
    shape = first.padded[0] // 16, first.padded[1] // 16
    rows = [[chunk.dates[d] for d in dates] for chunk, dates in members]
    with coder.exactly(network):
        if first.model in TEMPORAL:
            series = cast("TemporalModel", network)
            sent, rates = _rates(network, config, len(members[0][1]))
            told = [chunk.header.told for chunk, _ in members]
            return list(
                coder.decode_series(series, rows, told, shape, rates, sent, config.forecast)
            )
        try:
            y_hat = coder.decode_images(
                cast("CodecModel", network), [row[0] for row in rows], shape, config.compression
            )
        except StreamError as error:
            places = sorted({dates[0] for _, dates in members})
            raise StreamError(f"date {', '.join(map(str, places))}: {error}") from error
        return [(y_hat, y_hat)]


def grids_of(
    chunk: np.ndarray, mask: np.ndarray | None, config: CodecConfig
) -> tuple[Grid | None, ...]:
    """The grid of each band whose pixels are repeated or interpolated (`tec.coarse`)."""
    gsd = dict(zip(SENSORS[config.sensor].bands, SENSORS[config.sensor].gsd))
    coarse = [gsd[band] > min(gsd.values()) for band in config.bands]
    return find_grids(chunk, mask, coarse=coarse, scale=config.scale)


def to_network(network: Network, planes: torch.Tensor) -> torch.Tensor:
    import torch

    parameter = next(network.parameters())
    there = planes.to(parameter.device, non_blocking=True)
    return there.to(dtype=parameter.dtype, memory_format=torch.channels_last)
