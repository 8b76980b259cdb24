"""Changed streams. Nothing here knows a field of the header by name: new fields are changed too."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any
from unittest import mock

import numpy as np
import torch
from tec import TecError, codec, coder, stream

from .corpus import Specimen

Random = np.random.Generator
#: Streams that keep their old, wrong checksum.
_UNSEALED = 0.03
_NUMBERS = (0, 1, 2, 3, 15, 16, 17, 63, 64, 127, 128, 255, 256, 65535, 2**31, 2**36, 2**62, 2**63)
_FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-30, 1e30, 0.1, 700.0, -9999.0, float("nan"), float("inf"))


@dataclass(frozen=True)
class Case:
    """``specimen`` with a change of some kind."""

    kind: str
    specimen: Specimen
    data: bytes


def mutate(rng: Random, corpus: Sequence[Specimen]) -> Case:
    """Some case."""
    shares = np.array([specimen.share for specimen in corpus])
    specimen = corpus[rng.choice(len(corpus), p=shares / shares.sum())]
    chances = np.array([share for _, share in KINDS.values()])
    kind = list(KINDS)[rng.choice(len(KINDS), p=chances / chances.sum())]
    data = KINDS[kind][0](rng, specimen, corpus)
    if kind not in _WHOLE:
        data = seal(data) if rng.random() > _UNSEALED else data + specimen.data[-4:]
    return Case(kind, specimen, data)


def seal(body: bytes) -> bytes:
    """A stream whose last checksum fits, whatever else it holds."""
    return body + struct.pack("<I", zlib.crc32(body))


# ---- bytes: each takes (rng, specimen, corpus) and returns a stream without its checksum


def _place(rng: Random, data: bytes) -> int:
    """Every other time within the header."""
    end = min(len(data), 90) if rng.random() < 0.5 else len(data)
    return int(rng.integers(end)) if end else 0


def change_bytes(rng: Random, data: bytes) -> bytes:
    """One to eight changes, each local."""
    out = bytearray(data)
    for _ in range(int(rng.choice([1, 1, 1, 2, 8]))):
        at = _place(rng, bytes(out))
        how = rng.integers(6)
        some = rng.bytes(int(rng.choice([1, 1, 2, 4, 9])))
        if how == 0 and out:
            out[at] ^= 1 << int(rng.integers(8))
        elif how == 1:
            out[at : at + len(some)] = some
        elif how == 2:
            out[at:at] = some
        elif how == 3:
            del out[at : at + len(some)]
        elif how == 4 and out:
            out[at] = int(rng.choice([0, 1, 0x7F, 0x80, 0xFF]))
        elif out:
            out[at : at + 1] = bytes([out[at] | 0x80, 0])  # a varint that is longer than it must be
    return bytes(out)


def _bytes(rng: Random, specimen: Specimen, corpus: Sequence[Specimen]) -> bytes:
    return change_bytes(rng, specimen.data[:-4])


def _payload(rng: Random, specimen: Specimen, corpus: Sequence[Specimen]) -> bytes:
    """One byte behind the header."""
    data = bytearray(specimen.data[:-4])
    start = min(60, len(data) - 1)
    data[start + int(rng.integers(len(data) - start))] ^= int(rng.integers(1, 256))
    return bytes(data)


def _truncated(rng: Random, specimen: Specimen, corpus: Sequence[Specimen]) -> bytes:
    return specimen.data[: _place(rng, specimen.data)]


def _extended(rng: Random, specimen: Specimen, corpus: Sequence[Specimen]) -> bytes:
    data = specimen.data
    return (data if rng.random() < 0.5 else data[:-4]) + rng.bytes(int(rng.integers(1, 40)))


def _spliced(rng: Random, specimen: Specimen, corpus: Sequence[Specimen]) -> bytes:
    """The head of one stream and the tail of another."""
    head, tail = specimen.data[:-4], corpus[rng.integers(len(corpus))].data[:-4]
    at = _place(rng, head)
    return head[:at] + tail[at if rng.random() < 0.5 else _place(rng, tail) :]


def _swapped(rng: Random, specimen: Specimen, corpus: Sequence[Specimen]) -> bytes:
    """Two neighbouring pieces change places."""
    data = specimen.data[:-4]
    a, b, c = sorted(_place(rng, data) for _ in range(3))
    return data[:a] + data[b:c] + data[a:b] + data[c:]


def _version(rng: Random, specimen: Specimen, corpus: Sequence[Specimen]) -> bytes:
    data = bytearray(specimen.data[:-4])
    data[4] = stream.VERSION + 1 if rng.random() < 0.5 else int(rng.integers(256))
    return bytes(data)


def _noise(rng: Random, specimen: Specimen, corpus: Sequence[Specimen]) -> bytes:
    """A right beginning and nothing else that is right."""
    return specimen.data[: int(rng.choice([0, 4, 5, 9]))] + rng.bytes(int(rng.integers(120)))


# ---- fields: each returns a whole stream


def _field(rng: Random, specimen: Specimen, corpus: Sequence[Specimen]) -> bytes:
    """One field of the header or of the settings in it."""
    return _packed(rng, specimen, corpus, _change_header)


def _section(rng: Random, specimen: Specimen, corpus: Sequence[Specimen]) -> bytes:
    """One section: a date's checksum, decisions or payload, the specials, whatever else."""
    return _packed(rng, specimen, corpus, _change_section)


def _crossed(rng: Random, specimen: Specimen, corpus: Sequence[Specimen]) -> bytes:
    """Fields or sections of another stream: another model's dates under this header, say."""
    return _packed(rng, specimen, corpus, _cross)


def _both(rng: Random, specimen: Specimen, corpus: Sequence[Specimen]) -> bytes:
    return _packed(rng, specimen, corpus, _change_header, _change_section)


def _packed(
    rng: Random, specimen: Specimen, corpus: Sequence[Specimen], *changes: Callable
) -> bytes:
    for _ in range(20):
        parts = list(stream.unpack(specimen.data))
        try:
            for change in changes:
                change(rng, parts, corpus)
            return stream.pack(*parts)  # type: ignore[arg-type]
        except (ValueError, TypeError, LookupError, OverflowError, AttributeError, struct.error):
            continue  # the layout has no place for such values
    return specimen.data


def _change_header(rng: Random, parts: list, corpus: Sequence[Specimen]) -> None:
    """Replace one field of the header, or of its settings, by anything of its type."""
    header = parts[0]
    if rng.random() < 0.4:
        name = rng.choice([f.name for f in fields(header.config)])
        config = copy(header.config)
        object.__setattr__(config, name, _other(rng, getattr(config, name)))  # not validated
        parts[0] = replace(header, config=config)
    else:
        name = rng.choice([f.name for f in fields(header) if f.name != "config"])
        parts[0] = replace(header, **{name: _other(rng, getattr(header, name))})


def _change_section(rng: Random, parts: list, corpus: Sequence[Specimen]) -> None:
    at = int(rng.integers(1, len(parts)))
    parts[at] = _other(rng, parts[at])


def _cross(rng: Random, parts: list, corpus: Sequence[Specimen]) -> None:
    other = stream.unpack(corpus[rng.integers(len(corpus))].data)
    if rng.random() < 0.5:
        at = int(rng.integers(1, len(parts)))
        parts[at] = other[at]
        return
    names = [f.name for f in fields(parts[0])]
    chosen = rng.choice(names, int(rng.integers(1, 4)), replace=False)
    parts[0] = replace(parts[0], **{name: getattr(other[0], name) for name in chosen})


def _other(rng: Random, value: Any) -> Any:
    """Something else of the same type."""
    if is_dataclass(value):
        name = rng.choice([f.name for f in fields(value)])
        return replace(value, **{name: _other(rng, getattr(value, name))})  # type: ignore[type-var]
    if value is None:
        return _other(rng, 0 if rng.random() < 0.5 else 0.5)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        near = value + int(rng.integers(-3, 4))
        return near if rng.random() < 0.5 else int(rng.choice(np.array(_NUMBERS, object)))
    if isinstance(value, float):
        return value * float(rng.normal(1, 1)) if rng.random() < 0.5 else float(rng.choice(_FLOATS))
    if isinstance(value, bytes):
        return rng.bytes(int(rng.integers(60))) if rng.random() < 0.2 else change_bytes(rng, value)
    if isinstance(value, str):
        return rng.choice(_WORDS)
    if isinstance(value, tuple | list):
        items = list(value)
        how = rng.integers(4)
        at = int(rng.integers(len(items))) if items else 0
        if how == 0 or not items:
            items.insert(at, items[at] if items else _other(rng, 0))
        elif how == 1:
            del items[at]
        elif how == 2:
            there = int(rng.integers(len(items)))
            items[at], items[there] = items[there], items[at]
        else:
            items[at] = _other(rng, items[at])
        return type(value)(items)
    return value


_WORDS = [
    *stream.MODELS,
    *stream.DTYPES,
    *stream.SENSOR_CODES,
    *stream.WEIGHTS_CODES,
    "mean",
    "sample",
    "B02",
    "B10",
    "",
]


def _wild(rng: Random, specimen: Specimen, corpus: Sequence[Specimen]) -> bytes:
    """What an encoder writes whose network gives latents of any size."""
    inner = coder.Taken.__init__
    largest = 10.0 ** rng.uniform(0, 9)

    def taken(self: coder.Taken, values: dict) -> None:
        noise = {k: torch.from_numpy(rng.standard_normal(v.shape)) for k, v in values.items()}
        inner(self, {k: v + (largest * noise[k]).to(v) for k, v in values.items()})

    with mock.patch.object(coder.Taken, "__init__", taken):
        try:
            return codec.encode(specimen.pixels, specimen.config, device="cpu")
        except TecError:  # too wild
            return specimen.data


#: How each kind makes a stream, and how often it is drawn.
KINDS: dict[str, tuple[Callable[[Random, Specimen, Sequence[Specimen]], bytes], float]] = {
    "bytes": (_bytes, 3),
    "one byte of a section": (_payload, 4),
    "truncated": (_truncated, 0.5),
    "extended": (_extended, 0.5),
    "spliced": (_spliced, 1),
    "swapped": (_swapped, 1),
    "version": (_version, 0.3),
    "noise": (_noise, 1),
    "field": (_field, 4),
    "section": (_section, 4),
    "crossed": (_crossed, 2),
    "field and section": (_both, 2),
    "wild latents": (_wild, 0.5),
}
_WHOLE = ("field", "section", "crossed", "field and section", "wild latents")
