"""Codecs run on chunks: bytes, seconds and errors, kept so that nothing is measured twice."""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import tec
import xarray as xr
from baselines import BASELINES, Baseline
from tec import stream, weights
from tec.codec import decode_many, encode_many
from validation import Chunk

from xtec import quality

LAMBDAS = (0.4, 1.0, 3.0, 10.0, 20.0, 40.0, 100.0, 250.0, 700.0)
QUALITIES = (1, 2, 3, 4, 6, 8, 10, 13, 16)
#: Bytes of a date in a stream beside its decisions and payload: a checksum and two lengths.
FRAMING = 8


@dataclass(frozen=True)
class Model:
    """One of ours, with built-in weights; ``settings`` are λ, or the quality of ``flex``."""

    name: str
    settings: tuple[float, ...]
    series: bool
    packages: tuple[str, ...] = ("torch",)

    @property
    def family(self) -> str:
        return self.name

    @property
    def how(self) -> str:
        return f"{'quality' if self.name == 'flex' else 'λ'}; built-in weights, one call a chunk"

    def missing(self) -> str:
        if weights.exists(self.name, "builtin", "S2L2A"):
            return ""
        return f"there are no built-in weights of model {self.name!r} for S2L2A"

    def stamp(self) -> str:
        return f"{weights.sha256(self.name)[:12]} {_sources()}"

    def encode(self, chunk: Chunk, setting: float) -> list[bytes]:
        rate = {"quality": int(setting)} if self.name == "flex" else {"compression": setting}
        config = tec.CodecConfig(model=self.name, offset=chunk.offset, bands=chunk.bands, **rate)
        return encode_many([chunk.dn], config)

    def decode(self, parts: list[bytes]) -> np.ndarray:
        return decode_many(parts)[0]


@cache
def _sources() -> str:
    """Checksum of the code of ``tec``."""
    digest = hashlib.sha256()
    for path in sorted(Path(tec.__file__).parent.rglob("*.py")):
        if "training" not in path.parts:
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


MODELS = {
    model.name: model
    for model in (
        Model("elic", LAMBDAS, series=False),
        Model("fp", LAMBDAS, series=False),
        Model("tt", LAMBDAS, series=True),
        Model("flex", QUALITIES, series=True),
    )
}
CODECS: dict[str, Model | Baseline] = {**MODELS, **BASELINES}


# One measurement ---------------------------------------------------------------------------------


def measure(name: str, setting: float, chunk: Chunk) -> dict[str, Any]:
    """Code a chunk there and back.

    Returns
    -------
    "bytes", seconds to "encode" and to "decode", the measures of each of its "dates"; of ours also
    the bytes that each date "adds" to the stream and how many dates before it is "told" of
    """
    codec = CODECS[name]
    if name not in _warm:  # weights, compiled kernels
        _there_and_back(codec, setting, chunk)
        _warm.add(name)
    parts, back, encode, decode = _there_and_back(codec, setting, chunk)
    record: dict[str, Any] = {
        "bytes": sum(map(len, parts)),
        "encode": round(encode, 6),
        "decode": round(decode, 6),
        "dates": [measures(*pair, chunk) for pair in zip(chunk.dn, back, strict=True)],
    }
    if isinstance(codec, Model):
        header, _, dates, _ = stream.unpack(parts[0])
        record["adds"] = [d.nbytes + FRAMING for d in dates]
        record["told"] = list(header.told)
    return record


_warm: set[str] = set()


def _there_and_back(
    codec: Model | Baseline, setting: float, chunk: Chunk
) -> tuple[list[bytes], np.ndarray, float, float]:
    start = time.perf_counter()
    if isinstance(codec, Model):
        parts = codec.encode(chunk, setting)
        middle = time.perf_counter()
        back = codec.decode(parts)
    else:
        parts = codec.encode(chunk.dn, setting)
        middle = time.perf_counter()
        back = codec.decode(parts, chunk.dn.shape)
    return parts, back, middle - start, time.perf_counter() - middle


def measures(dn: np.ndarray, back: np.ndarray, chunk: Chunk) -> dict[str, Any]:
    """Of one date, (band, y, x): PSNR in dB, of each band too; mean spectral angle in degrees;
    MS-SSIM of red, green and blue; mean and 99th percentile of the NDVI error; largest error and
    overshoot in DN. Pixels of nodata (0) do not count, but in MS-SSIM and the overshoot."""
    original, decoded = (xr.DataArray(x, dims=("band", "y", "x")) for x in (dn, back))
    valid = (dn != 0).all(axis=0)
    a, b = dn - chunk.offset, back - chunk.offset
    red, green, blue, nir = (chunk.bands.index(name) for name in ("B04", "B03", "B02", "B08"))
    ndvi = quality.ndvi_error(a, b, red=red, nir=nir)[valid]
    out = {
        "psnr": quality.psnr(original, decoded, band=None, nodata=0)[0],
        "sam": np.nanmean(quality.spectral_angle(a, b)[valid]),
        "ms_ssim": quality.ms_ssim(a[[red, green, blue]], b[[red, green, blue]]).mean(),
        "ndvi": np.nanmean(ndvi),
        "ndvi99": np.nanpercentile(ndvi, 99),
        "max": np.abs(a - b)[dn != 0].max(),
        "overshoot": quality.overshoot(a, b).max(),
    }
    bands = quality.psnr(original, decoded, nodata=0)
    return {k: float(f"{v:.6g}") for k, v in out.items()} | {"bands": np.round(bands, 3).tolist()}


# Many measurements -------------------------------------------------------------------------------


class Results:
    """Measurements by (codec, setting, chunk), kept in a JSON file if there is one."""

    def __init__(self, path: Path | None, workers: int = 1) -> None:
        self.path = path
        self.workers = workers
        self._stamps: dict[str, str] = {}
        self.records: dict[str, dict[str, Any]] = {}
        self._saved = time.monotonic()
        if path is not None and path.exists():
            self.records = json.loads(path.read_text())["records"]

    def _key(self, name: str, setting: float, chunk: Chunk) -> str:
        if name not in self._stamps:
            self._stamps[name] = CODECS[name].stamp()
        return f"{name} | {setting:g} | {chunk.key} | {self._stamps[name]}"

    def run(self, jobs: Iterable[tuple[str, float, Chunk]]) -> None:
        """Measure what is not there yet."""
        todo = {self._key(*job): job for job in jobs}
        todo = {key: job for key, job in todo.items() if key not in self.records}
        names = sorted({name for name, *_ in todo.values()}, key=list(CODECS).index)
        start = time.monotonic()
        with _pool(self.workers) as pool:
            for name in names:
                own = {key: job for key, job in todo.items() if job[0] == name}
                columns = list(zip(*own.values()))
                for key, record in zip(own, pool.map(measure, *columns), strict=True):
                    self.records[key] = record
                    if time.monotonic() > self._saved + 20:
                        self.save()
                print(f"  {time.monotonic() - start:5.0f} s: {len(own):4} x {name}", flush=True)

    def __call__(self, name: str, setting: float, chunk: Chunk) -> dict[str, Any]:
        """One measurement, made now if need be."""
        key = self._key(name, setting, chunk)
        if key not in self.records:
            self.records[key] = measure(name, setting, chunk)
        return self.records[key]

    def save(self, **summary: Any) -> None:
        """Write the file; what was measured with other weights, code or packages is left out."""
        self._saved = time.monotonic()
        if self.path is None:
            return
        old = {
            key
            for key in self.records
            for name, *_, stamp in [key.split(" | ")]
            if self._stamps.get(name, stamp) != stamp
        }
        kept = {key: record for key, record in self.records.items() if key not in old}
        beside = self.path.with_suffix(".part")
        beside.write_text(json.dumps(_finite(summary) | {"records": _finite(kept)}))
        os.replace(beside, self.path)


class _Here:
    """What `ProcessPoolExecutor` does, in this process."""

    map = staticmethod(map)

    def __enter__(self) -> _Here:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def _pool(workers: int) -> _Here | ProcessPoolExecutor:
    if workers == 1:
        return _Here()
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _one_thread)


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: null."""
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def settings_of(name: str, quick: bool) -> tuple[float, ...]:
    """All settings of a codec, or every other one of them."""
    return CODECS[name].settings[:: 2 if quick else 1]


def parts_of(name: str, place: Chunk) -> list[Chunk]:
    """A place as the codec takes it."""
    return place.chunks() if CODECS[name].series else place.images()


def jobs(
    names: Iterable[str], found: Iterable[Chunk], quick: bool
) -> Iterator[tuple[str, float, Chunk]]:
    for name in names:
        for place in found:
            for chunk in parts_of(name, place):
                for setting in settings_of(name, quick):
                    yield name, setting, chunk
