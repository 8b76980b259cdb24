"""plan: what compressing a cube will come to, from some chunks of it that are coded here and now.

Every figure says how it was obtained. What was not measured, and not stated by the user, is not
known: no speed is made up for a machine that is not there.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import tec.threads
import xarray as xr

from .autogrid import OBJECTS
from .compression import compress, is_packed
from .grid import by_dim
from .measuring import Measured, has_gpu, measure, on_device
from .quality import PEAK
from .ratecontrol import Goal, Probes, target_of, target_text
from .tables import Table
from .writing import human, model_text, variable_of

#: Chunks that are tried where the user says nothing: as few as tell how far they differ.
SAMPLE = 8
#: What n workers do of n times the work of one, where the user says nothing.
EFFICIENCY = 0.85
MB, HOUR = 1e6, 3600.0


@dataclass(frozen=True)
class Rate:
    """Bytes of pixels a second that one worker takes through.

    Attributes
    ----------
    mb_per_s : 10^6 bytes a second; None where it is not known
    how : how it was obtained, or why it was not
    """

    mb_per_s: float | None
    how: str

    def __str__(self) -> str:
        return self.how if self.mb_per_s is None else f"{self.mb_per_s:.3g} MB/s ({self.how})"


@dataclass(frozen=True, repr=False)
class Plan(Table):
    """What to expect. Prints well in a terminal and in a notebook.

    Attributes
    ----------
    variable, shape, dtype : what would be compressed; the sizes by dimension
    model, compression, quality, max_error, target : as in `Summary`
    chunks, shards : sizes by dimension
    sampled, of : chunks that were tried, and all of the cube
    cube_bytes : of the pixels of the cube
    bytes_in, bytes_out : of the whole archive, which is the cube where no size was stated
    ratio, ratio_error : how many times smaller, and two standard errors of it as a share; None
        where too few chunks had pixels to tell
    bpppb : bits per pixel per band
    psnr, psnr_error : dB, and two standard errors; psnr is None where nothing is lost
    psnr_range : worst and best chunk of the sample
    objects, object_bytes : objects in the store, and the mean size of one
    machine : what was measured
    workers, efficiency : machines like that, and what n of them do of n times the work of one
    read, encode, decode : of one worker. ``read`` is what it takes to get the pixels
    compress_hours, decode_hours : for the whole archive; None where a rate is not known
    store_limit : workers that the store's bandwidth carries for "reading" the source (if it lies
        there, counted without compression), "writing" and "decoding"; None where not asked for
    compress_cost, decode_cost, storage_cost, storage_cost_before : in the units of the prices, the
        last two a month; None where not asked for
    block_bytes : what one task reads
    memory : bytes that a worker needs; None where that cannot be measured on this system
    notes : what else to know
    """

    variable: str
    shape: dict[str, int]
    dtype: str
    model: str
    compression: float
    quality: tuple[int, ...] | None
    max_error: tuple[float, ...] | None
    target: dict[str, Any] | None
    chunks: dict[str, int]
    shards: dict[str, int] | None
    sampled: int
    of: int
    cube_bytes: int
    bytes_in: int
    bytes_out: int
    ratio: float
    ratio_error: float | None
    bpppb: float
    psnr: float | None
    psnr_error: float | None
    psnr_range: tuple[float, float] | None
    objects: int
    object_bytes: float
    machine: str
    workers: int
    efficiency: float
    read: Rate
    encode: Rate
    decode: Rate
    compress_hours: float | None
    decode_hours: float | None
    store_limit: dict[str, float] | None
    compress_cost: float | None
    decode_cost: float | None
    storage_cost: float | None
    storage_cost_before: float | None
    block_bytes: int
    memory: int | None
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return asdict(self)

    def rows(self) -> list[tuple[str, str]]:
        """Name and value of each line, for tables."""
        size = human(self.bytes_in)
        if self.bytes_in != self.cube_bytes:
            size += f", as stated, of which {human(self.cube_bytes)} are here"
        rows = [
            ("variable", f"{self.variable}: {_sizes(self.shape)} {self.dtype}, {size}"),
            (
                "model",
                model_text(self.model, self.compression, self.quality, self.max_error),
            ),
            *([] if self.target is None else [("target", target_text(self.target))]),
            ("chunks", _sizes(self.chunks)),
            ("shards", "none" if self.shards is None else _sizes(self.shards)),
            ("measured", f"{self.sampled} of {self.of} chunks, on {self.machine}"),
            (
                "ratio",
                f"{self.ratio:.1f} times smaller{self._certain(self.ratio_error, ' %', 100)}",
            ),
            ("bits per pixel per band", f"{self.bpppb:.4f}"),
            ("PSNR", self._psnr()),
            ("stored", human(self.bytes_out)),
            ("objects", f"{self.objects}, {human(self.object_bytes)} each on average"),
            ("to compress", self._time(self.compress_hours, self.encode, self.read)),
            ("to decode", self._time(self.decode_hours, self.decode)),
        ]
        rows += [
            (f"cost to {name}", f"{cost:.2f} for {self.workers * hours:.3g} worker-hours")
            for name, cost, hours in (
                ("compress", self.compress_cost, self.compress_hours),
                ("decode", self.decode_cost, self.decode_hours),
            )
            if cost is not None and hours is not None
        ]
        if self.storage_cost is not None:
            before = f"{self.storage_cost_before:.2f} for the pixels without compression"
            rows.append(("storage a month", f"{self.storage_cost:.2f}, {before}"))
        where = {"reading": ", if the source lies there without compression"}
        for name, workers in (self.store_limit or {}).items():
            text = f"from {workers:.3g} workers on{where.get(name, '')}"
            rows.append((f"store limits {name}", text))
        rows.append(("memory of a worker", self._memory()))
        return rows + [("note", note) for note in self.notes]

    def _certain(self, error: float | None, unit: str, times: float = 1) -> str:
        if self.sampled == self.of:
            return " (all chunks were tried)"
        if error is None:
            return " (so few chunks with pixels do not tell how certain that is)"
        return f" ± {error * times:.1f}{unit} (two standard errors)"

    def _psnr(self) -> str:
        if self.psnr is None or self.psnr_range is None:
            return "no loss"
        low, high = self.psnr_range
        certain = self._certain(self.psnr_error, " dB")
        return f"{self.psnr:.1f} dB{certain}; chunks from {low:.1f} to {high:.1f}"

    def _time(self, hours: float | None, rate: Rate, read: Rate | None = None) -> str:
        if hours is None:
            return f"not known: {rate}"
        steps = f"{rate} a worker"
        if read is not None and read.mb_per_s is not None:
            steps = f"reading {read} and coding {rate} a worker"
        if self.workers > 1:
            steps += f", x {self.workers} x {self.efficiency:g} (assumed efficiency)"
        return f"{_duration(hours)}: {steps}"

    def _memory(self) -> str:
        blocks = f"tasks read {human(self.block_bytes)} each"
        if self.memory is None:
            return f"not measured on this system; {blocks}"
        return f"{human(self.memory)}: this process at its peak, without the sample; {blocks}"


def plan(
    obj: xr.Dataset | xr.DataArray | str | os.PathLike[str],
    *,
    size: float | str | None = None,
    sample: int = SAMPLE,
    workers: int = 1,
    threads: int | None = None,
    efficiency: float = EFFICIENCY,
    gpu: bool = False,
    rate: float | None = None,
    decode_rate: float | None = None,
    price: float | None = None,
    storage_price: float | None = None,
    store_bandwidth: float | None = None,
    **options: Any,
) -> Plan:
    """Compress and decode some chunks, and say what the whole will come to. Writes nothing.

    Parameters
    ----------
    obj : Dataset, DataArray or path
        Anything that :func:`xtec.compress` takes, or what it has returned; or the path of a cube,
        as `xtec plan` takes it.
    size : number of bytes, or str such as "10TB", optional
        Of the pixels of the whole archive, before compression, where ``obj`` is a part of it that
        is like the rest.
    sample : int
        Chunks to try, spread evenly over the cube. At most 1 GiB of pixels is held.
    workers : int
        Machines (or processes) like this one.
    threads : int, optional
        Cores of a worker, to be measured with so many of this machine's; all of them by default.
    efficiency : float
        What n workers do of n times the work of one. Stated, not measured.
    gpu : bool
        Workers have a GPU: measured with the one of this machine. Where there is none, ``rate`` has
        to be stated for there to be any hours.
    rate, decode_rate : float, optional
        MB/s of pixels that one worker compresses (reading included) and decodes, in place of what
        is measured here.
    price : float, optional
        Of one worker-hour, in any currency.
    storage_price : float, optional
        Of 10^12 bytes a month.
    store_bandwidth : float, optional
        MB/s that the store takes or gives in all.
    **options
        As for :func:`xtec.compress`.

    Returns
    -------
    Plan

    Raises
    ------
    ValueError
        On input that the codec cannot take, an argument that makes no sense, or where no chunk
        that was tried has a valid pixel.

    Examples
    --------
    >>> import numpy as np, xarray as xr, xtec
    >>> pixels = np.random.default_rng(0).integers(1000, 1100, (2, 3, 32, 32), "uint16")
    >>> cube = xr.DataArray(pixels, dims=("time", "band", "y", "x"), name="s2")
    >>> cube = cube.assign_coords(band=["B02", "B03", "B04"])
    >>> found = xtec.plan(cube, max_error=0, size="1TB")
    >>> found.psnr is None, found.bytes_in, found.sampled, found.of
    (True, 1000000000000, 1, 1)
    """
    _check(
        {"sample": sample, "workers": workers, "threads": threads},
        efficiency=efficiency,
        rate=rate,
        decode_rate=decode_rate,
        price=price,
        storage_price=storage_price,
        store_bandwidth=store_bandwidth,
    )
    if efficiency > 1:
        raise ValueError(f"efficiency is {efficiency!r}: it is a share, at most 1")
    archive = None if size is None else _nbytes(size)
    if isinstance(obj, (str, os.PathLike)):
        from .reading import open_input

        obj = open_input(obj)
    here = tec.threads.allowed()
    if threads is not None and threads > here:
        raise ValueError(
            f"threads={threads}: this machine has {here} cores, so that cannot be measured here: "
            f"pass at most {here}, or run this on a worker"
        )
    with ExitStack() as stack:
        if gpu and has_gpu():
            stack.enter_context(on_device("cuda"))
        if threads is not None:
            stack.enter_context(tec.threads.limited(threads))
        packed = obj if is_packed(obj) and not options else compress(obj, **options)  # type: ignore[type-var]
        name, data = variable_of(packed)
        if data.chunks is None:  # a store that was opened without Dask
            data = data.chunk(dict(zip(data.dims, data.encoding["chunks"], strict=True)))
        measured = measure(data, sample, threads or here)
    terms = _Terms(workers, efficiency if workers > 1 else 1.0, price, storage_price)
    stated = {"encode": rate, "decode": decode_rate}
    rates, notes = _rates(measured, gpu, stated)
    if isinstance(packed, xr.Dataset) and len(packed.data_vars) > 1:
        others = [str(other) for other in packed.data_vars if other != data.name]
        notes.append(f"not counted: {', '.join(others)}, which are kept without loss")
    found = _found(data, measured, archive)
    if archive is not None:
        notes.append("the archive is taken to be like this cube; errors told are those of the cube")
    if found["objects"] > OBJECTS:
        notes.append(
            f"{found['objects']} objects are many for one store: shards= (such as 'auto' for the "
            "whole cube) or larger chunks= make fewer"
        )
    fields: dict[str, Any] = {**found, **rates, **_times(found, rates, terms, store_bandwidth)}
    return Plan(
        variable=name,
        machine=measured.machine,
        workers=workers,
        efficiency=terms.efficiency,
        notes=tuple(notes),
        **fields,
    )


class _Terms(NamedTuple):
    """What the user says of workers and prices."""

    workers: int
    efficiency: float
    price: float | None
    storage_price: float | None


def _rates(
    measured: Measured, gpu: bool, stated: dict[str, float | None]
) -> tuple[dict[str, Rate], list[str]]:
    """ "read", "encode" and "decode" of a worker, and what to note."""
    count = len(measured.chunks)
    how = f"measured on {count} chunk{'s' if count > 1 else ''} here, on {measured.machine}"
    rates = {what: Rate(value, how) for what, value in measured.rates.items()}
    rates["read"] = Rate(measured.rates["read"], "measured here")
    notes = []
    if measured.load > measured.cores / 2:
        notes.append(
            f"other work ran here as well (load {measured.load:.1f} on {measured.machine}): an "
            "idle machine is faster"
        )
    network = measured.probes.coder.config.model != "none"
    if gpu and not network:
        notes.append("this codec has no network and runs on processors, also beside a GPU")
    elif gpu and measured.device == "cpu":
        notes.append(
            "ratio and PSNR were measured on processors (a GPU's are the same), speed was not"
        )
        for what, option in (("encode", "rate"), ("decode", "decode_rate")):
            rates[what] = Rate(None, f"no GPU here to measure; state {option} (MB/s) for hours")
    for what, value in stated.items():
        if value is not None:
            rates[what] = Rate(value, "as stated")
    if stated["encode"] is not None:
        rates["read"] = Rate(None, "in the stated rate")
    return rates, notes


def _found(data: xr.DataArray, measured: Measured, archive: int | None) -> dict[str, Any]:
    """What does not depend on speed."""
    probes, chunks = measured.probes, measured.chunks
    config, itemsize = probes.coder.config, probes.stored.dtype.itemsize
    here = probes.stored.size * itemsize
    total = here if archive is None else archive
    ratio = math.exp(-probes.value(config, Goal("ratio", 1), chunks))
    stored = round(total / ratio)
    shards = data.encoding.get("shards")
    unit = shards or probes.coder.chunk_shape
    objects = math.prod(-(-n // c) for n, c in zip(data.shape, unit, strict=True))
    objects = max(1, round(objects * total / here))
    psnrs = _psnrs(probes, chunks)
    memory = None if measured.peak is None else measured.peak + measured.cores * measured.block
    return {
        "shape": _named(data, data.shape),
        "dtype": str(probes.stored.dtype),
        "model": config.model,
        "compression": config.compression,
        "quality": config.quality,
        "max_error": config.max_error,
        "target": target_of(data.attrs),
        "chunks": _named(data, probes.coder.chunk_shape),
        "shards": None if shards is None else _named(data, shards),
        "sampled": len(chunks),
        "of": probes.total,
        "cube_bytes": here,
        "bytes_in": total,
        "bytes_out": stored,
        "ratio": ratio,
        "ratio_error": _error(probes, Goal("ratio", 1), chunks),
        "bpppb": 8 * itemsize / ratio,
        "psnr": probes.found(config, chunks)["psnr"],
        "psnr_error": _error(probes, Goal("psnr", 0), chunks) if psnrs else None,
        "psnr_range": (min(psnrs), max(psnrs)) if psnrs else None,
        "objects": objects,
        "object_bytes": stored / objects,
        "block_bytes": measured.block,
        "memory": memory,
    }


def _times(
    found: dict[str, Any], rates: dict[str, Rate], terms: _Terms, bandwidth: float | None
) -> dict[str, Any]:
    """Hours, cost, and where the store is the limit."""
    total, stored = found["bytes_in"], found["bytes_out"]
    speed = terms.workers * terms.efficiency
    write = _seconds_per_mb(rates["encode"], rates["read"])
    back = _seconds_per_mb(rates["decode"])
    hours = [None if s is None else s * total / MB / speed / HOUR for s in (write, back)]
    limit = None
    if bandwidth is not None:
        # A worker that takes s seconds for 1 MB of pixels moves 1 / s / ratio MB of the store.
        each = {"writing": write, "decoding": back}
        limit = {
            name: bandwidth * s * found["ratio"] / terms.efficiency
            for name, s in each.items()
            if s is not None
        }
        if write is not None:
            limit["reading"] = bandwidth * write / terms.efficiency
        least = stored / MB / bandwidth / HOUR
        hours = [None if h is None else max(h, least) for h in hours]
    costs = [
        None if h is None or terms.price is None else terms.price * terms.workers * h for h in hours
    ]
    monthly = terms.storage_price
    return {
        "compress_hours": hours[0],
        "decode_hours": hours[1],
        "store_limit": limit,
        "compress_cost": costs[0],
        "decode_cost": costs[1],
        "storage_cost": None if monthly is None else monthly * stored / 1e12,
        "storage_cost_before": None if monthly is None else monthly * total / 1e12,
    }


def _seconds_per_mb(rate: Rate, *others: Rate) -> float | None:
    """One step after the other, as on processors; None where the first is not known."""
    if rate.mb_per_s is None:
        return None
    return sum(1 / step.mb_per_s for step in (rate, *others) if step.mb_per_s is not None)


def _psnrs(probes: Probes, chunks: Sequence[int]) -> list[float]:
    """Of each chunk with pixels; none where nothing is lost at all."""
    squares, count = probes.parts(probes.coder.config, Goal("psnr", 0), chunks)
    if not squares.any():
        return []
    mean = squares[count > 0] / count[count > 0]
    return [round(10 * math.log10(PEAK**2 / max(one, 1e-9)), 2) for one in mean.tolist()]


def _error(probes: Probes, goal: Goal, chunks: Sequence[int]) -> float | None:
    margin = probes.margin(probes.coder.config, goal, chunks)
    return float(margin) if math.isfinite(margin) else None


def _check(whole: dict[str, int | None], **positive: float | None) -> None:
    """Whole numbers and numbers, all above 0 where they are given."""
    for name, value in {**whole, **positive}.items():
        if value is None:
            continue
        kinds = (int, np.integer) if name in whole else (int, float, np.integer, np.floating)
        right = isinstance(value, kinds) and not isinstance(value, bool)
        if not right or not 0 < value < math.inf:
            what = "a positive whole number" if name in whole else "a positive number"
            raise ValueError(f"{name} is {value!r}: it must be {what}")


def _nbytes(size: float | str) -> int:
    """ "10TB" -> 10_000_000_000_000."""
    from dask.utils import parse_bytes

    try:
        found = parse_bytes(size) if isinstance(size, str) and size[:1].isdigit() else float(size)
    except (TypeError, ValueError):
        found = math.nan
    if not 1 <= found < math.inf:
        raise ValueError(f"size is {size!r}: write bytes, or such as '10TB' or '500 GB'")
    return int(found)


def _named(data: xr.DataArray, shape: Sequence[int]) -> dict[str, int]:
    return {str(dim): int(n) for dim, n in zip(data.dims, shape, strict=True)}


def _sizes(named: dict[str, int]) -> str:
    return by_dim(list(named), list(named.values()))


def _duration(hours: float) -> str:
    """For people.

    Examples
    --------
    >>> _duration(0.001), _duration(0.2), _duration(5), _duration(100)
    ('4 s', '12 min', '5.0 hours', '100 hours (4.2 days)')
    """
    if hours < 1 / 60:
        return f"{hours * HOUR:.0f} s" if hours * HOUR >= 1 else f"{hours * HOUR:.2g} s"
    if hours < 1:
        return f"{hours * 60:.0f} min"
    return f"{hours:.1f} hours" if hours < 48 else f"{hours:.0f} hours ({hours / 24:.1f} days)"
