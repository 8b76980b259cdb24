"""What becomes of a case, and whether it may."""

from __future__ import annotations

import gc
import math
import re
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
from tec import StreamError, TecError, codec, memory, stream
from tec.specials import as_bits, fill_value, nodata_value, unpack_specials

from .corpus import Specimen

#: A case that declares more samples is refused, as `tec.decode` is told to.
MAX_SAMPLES = 2**19
#: Bytes by which memory may grow beyond twice what a valid stream takes.
SLACK = 48 * 2**20
#: What describes the image; the rest says how it is coded.
_IMAGE = (
    *("extent", "grids", "ranges", "specials"),
    *("checksum of a date", "checksum of pixels"),
)


class Finding(AssertionError):
    """What must never happen."""


def judge(specimen: Specimen, data: bytes) -> str:
    """In a few words what became of a stream that was made from a specimen.

    Raises
    ------
    Finding
        Wrong pixels, or too much memory.
    Exception
        Whatever the codec raises that is no `TecError`.
    """
    refusal = _refusal(specimen, data)
    pixels, verdict, grown = _decoded(specimen, data)
    if grown > SLACK:  # or was that a network, which is loaded once?
        grown = _decoded(specimen, data)[2]
    if grown > SLACK and grown > 2 * _valid_growth(specimen, data) + SLACK:
        raise Finding(f"memory grew by {grown >> 20} MB")
    if pixels is None:
        return verdict
    if _same(pixels, specimen.pixels):
        if data != specimen.data and not _sealed(data):
            raise Finding("a stream whose checksum is wrong was decoded")
        return "the same pixels"
    changed = _changed(specimen.data, data)
    _check_consistency(data, pixels)
    if refusal is not None:
        return "another stream, which its array refuses"
    if not set(changed) & set(_IMAGE):
        raise Finding(f"wrong pixels; what differs is {', '.join(changed) or 'nothing'}")
    return f"another image: {', '.join(name for name in changed if name in _IMAGE)}"


def check_packing(data: bytes) -> None:
    """Finding unless what a stream unpacks to packs to one that unpacks to the same; StreamError
    where it does not unpack."""
    header, *rest = stream.unpack(data)
    again, *same = stream.unpack(stream.pack(header, *rest))
    header, again = replace(header, nbytes=0), replace(again, nbytes=0)  # a varint may be too long
    if repr((header, rest)) != repr((again, same)):
        raise Finding(f"{header} with {rest} is packed as {again} with {same}")


def _decoded(specimen: Specimen, data: bytes) -> tuple[np.ndarray | None, str, int]:
    """Pixels or the error in a few words, and by how much memory grew meanwhile."""
    pixels, verdict = None, ""

    def decode() -> None:
        nonlocal pixels, verdict
        options = {"weights": specimen.weights, "device": "cpu", "max_samples": MAX_SAMPLES}
        try:
            pixels = codec.decode(data, **options)
        except TecError as error:
            verdict = f"{type(error).__name__}: {_gist(error)}"

    grown = growth(decode)
    return pixels, verdict, grown


def _refusal(specimen: Specimen, data: bytes) -> StreamError | None:
    """The error of an array that the specimen is a chunk of."""
    try:
        specimen.coder.check_header(data, specimen.pixels.dtype, "a chunk")
    except StreamError as error:
        return error
    return None


def _gist(error: Exception) -> str:
    """The beginning of a message, without its numbers and names."""
    message = re.sub(r"^(date [\d, ]+: )+", "", str(error))
    message = re.sub(r"['\"(\[].*?['\")\]]|[-\d.]*\d\S*", "#", message)
    return " ".join(message.split()[:7])


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and bool((as_bits(a) == as_bits(b)).all())


def _sealed(data: bytes) -> bool:
    try:
        stream.unpack(data)
    except StreamError:
        return False
    return True


def _changed(valid: bytes, data: bytes) -> list[str]:
    """Names of all that two streams say differently."""
    (a, *a_rest), (b, *b_rest) = stream.unpack(valid), stream.unpack(data)
    own = [f.name for f in fields(a) if f.compare and f.name != "config"]
    names = [name for name in own if getattr(a, name) != getattr(b, name)]
    own = [f.name for f in fields(a.config)]
    names += [
        name for name in own if repr(getattr(a.config, name)) != repr(getattr(b.config, name))
    ]
    if a_rest[0] != b_rest[0]:
        names.append("specials")
    mine, its = ([date.checksum for date in rest[1]] for rest in (a_rest, b_rest))
    if mine != its:
        names.append("checksum of a date")
    mine, its = (getattr(rest[2], "checksums", None) for rest in (a_rest, b_rest))
    if mine != its:
        names.append("checksum of pixels")
    if a_rest[1:] != b_rest[1:]:
        names.append("sections")
    return names


def _check_consistency(data: bytes, pixels: np.ndarray) -> None:
    """Finding unless pixels are of the shape, dtype, extent, mask and range that a stream says."""
    header, specials, *_ = stream.unpack(data)
    if pixels.shape != header.shape or pixels.dtype != np.dtype(header.dtype):
        raise Finding(f"decoded to {pixels.shape} {pixels.dtype}, declared {header.shape}")
    t, y, x = header.extent
    nodata = header.config.nodata
    shape = (t, header.shape[1], y, x)
    mask, values = unpack_specials(specials, shape, header.dtype, nodata)
    wanted = np.full(header.shape, fill_value(nodata, header.dtype), header.dtype)
    wanted[:t, :, :y, :x] = pixels[:t, :, :y, :x]
    if mask is not None:
        for date, (where, what) in enumerate(zip(mask, values)):
            as_bits(wanted[date, :, :y, :x])[where] = as_bits(what)
    if not _same(pixels, wanted):
        raise Finding("what is beyond the extent, or special, is not as the stream says")
    valid = np.zeros(header.shape, bool)
    valid[:t, :, :y, :x] = True if mask is None else ~mask
    marker = nodata_value(nodata, header.dtype)
    for band in range(header.shape[1]):
        found = pixels[:, band][valid[:, band]]
        if not np.isfinite(found).all() or (marker is not None and (found == marker).any()):
            raise Finding("a valid pixel is nodata, NaN or infinite")
        if header.ranges and found.size:
            low, high = (float(np.array(v, pixels.dtype)) for v in header.ranges[band])
            beside = 0 if marker is None else 1  # nodata at an end makes its pixels step aside
            if pixels.dtype.kind == "f":
                beside = 0 if marker is None else abs(float(marker)) * 1e-6 + 1e-37
            if float(found.min()) < low - beside or float(found.max()) > high + beside:
                raise Finding("a valid pixel is outside the range of its band")


# ---- memory


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    return 0


def growth(call: Callable[[], object]) -> int:
    """By how many bytes memory grows at most while this is called; 0 where the system does not
    tell.

    Neither what malloc keeps nor garbage that goes meanwhile may hide it.
    """
    gc.collect(0)
    collected = gc.isenabled()
    gc.disable()
    try:
        before = _reset_peak()
        call()
        return _status("VmHWM") - before if before else 0
    finally:
        if collected:
            gc.enable()


def _reset_peak() -> int:
    """What is resident now; the peak is counted from here. 0 where the system does not tell."""
    memory.trim()
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")
    except OSError:
        return 0


def _valid_growth(specimen: Specimen, data: bytes) -> int:
    """By how much memory grows while a valid stream of the declared shape is decoded."""
    header = stream.peek(data)
    if math.prod(header.shape) > MAX_SAMPLES:
        return 0
    weights = specimen.weights or header.config.weights
    chunk = np.random.default_rng(0).integers(1, 9999, header.shape).astype(header.dtype)
    config = replace(specimen.config, weights=weights, weights_sha256=None, bands=None, scale=1.0)
    config = replace(config, sensor=header.config.sensor, bands=header.config.bands, nodata=None)
    valid = codec.encode(chunk, config, device="cpu")
    return growth(lambda: codec.decode(valid, weights=specimen.weights, device="cpu"))
