"""The promise of max_error: no valid pixel is off by more, and nothing else changes at all."""

from __future__ import annotations

import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tec
import torch
from arrays import run
from bounded_cubes import KINDS, Case, band, cases, check_bound
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scenes import scene
from tec import StreamError, TecError, bounded, codec, stream

BANDS = ("B02", "B03", "B04")
NETWORKS = ("fp", "elic", "tt", "compact flex", "published tt", "flex")
READER = bounded.reader  # tests put others in its place


def config(case: Case, **changes: Any) -> tec.CodecConfig:
    bands = BANDS[: case.chunk.shape[1]]
    return tec.CodecConfig(**{"model": "none", "bands": bands, **case.settings, **changes})


@pytest.fixture(scope="module")
def networks(tiny_checkpoints: dict[str, Path], tiny_fp: Path) -> dict[str, dict[str, str]]:
    paths = {**tiny_checkpoints, "fp": tiny_fp}
    return {name: {"model": name.split()[-1], "weights": str(paths[name])} for name in NETWORKS}


# any cube


@given(cases())
@settings(max_examples=400, deadline=None, derandomize=True)
def test_the_bound_holds_for_any_cube(case: Case) -> None:
    given = case.chunk.copy()
    data = codec.encode(case.chunk, config(case))
    np.testing.assert_array_equal(case.chunk, given)
    back = codec.decode(data)
    check_bound(back, case)
    for dates in range(len(case.chunk)):
        np.testing.assert_array_equal(codec.decode(data, dates=dates), back[:dates])


@pytest.mark.parametrize("name", NETWORKS)
@given(case=cases(largest=24), lossy=st.sampled_from(["always", "auto"]), seed=st.integers(0, 99))
@settings(
    max_examples=6,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_the_bound_holds_over_any_network(
    networks: dict[str, dict[str, str]], name: str, case: Case, lossy: str, seed: int
) -> None:
    path = networks[name]["weights"]
    data = codec.encode(case.chunk, config(case, lossy=lossy, **networks[name]))
    back = codec.decode(data, weights=path)
    check_bound(back, case)
    for dates in range(len(case.chunk)):
        part = codec.decode(data, dates=dates, weights=path)
        np.testing.assert_array_equal(part, back[:dates])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bounded, "reader", lambda decisions: Perturbed(decisions, 1, seed))
        np.testing.assert_array_equal(codec.decode(data, weights=path), back)


class Perturbed:
    """Reads the decisions of a picture whose floats differ by up to so many margins."""

    def __init__(self, decisions: bytes, margins: float, seed: int = 0) -> None:
        self.reader = READER(decisions)
        self.margins, self.random = margins, np.random.default_rng(seed)
        self.finish = self.reader.finish

    def round(self, values: np.ndarray) -> np.ndarray:
        off = self.random.choice([-0.999, 0.999], values.shape) * self.margins
        return self.reader.round(values + off * bounded.MARGIN(values))


@pytest.mark.parametrize("name", ["fp", "tt"])
def test_floats_beyond_the_margin_are_an_error(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = scene(2, 3, 48, 64)
    case = Case(pixels, {"max_error": 20, "scale": 1, "nodata": None})
    data = codec.encode(pixels, config(case, model=name))  # built in: the picture helps
    back = codec.decode(data)
    check_bound(back, case)
    for margins, seed in ((1, 0), (1, 1)):
        monkeypatch.setattr(bounded, "reader", lambda d, m=margins, s=seed: Perturbed(d, m, s))
        np.testing.assert_array_equal(codec.decode(data), back)
    monkeypatch.setattr(bounded, "reader", lambda decisions: Perturbed(decisions, 2**14))
    with pytest.raises(StreamError, match=r"decision|checksum of the decoded pixels|damaged"):
        codec.decode(data)


def test_other_thread_counts_decode_the_same(networks: dict[str, dict[str, str]]) -> None:
    case = Case(scene(3, 3, 70, 90), {"max_error": 30})
    threads = torch.get_num_threads()
    for name in ("elic", "tt", "flex"):
        path = networks[name]["weights"]
        data = codec.encode(case.chunk, config(case, **networks[name]))
        back = codec.decode(data, weights=path)
        assert np.abs(back.astype(int) - case.chunk).max() <= 30
        try:
            torch.set_num_threads(3)
            np.testing.assert_array_equal(codec.decode(data, weights=path), back)
        finally:
            torch.set_num_threads(threads)


def test_batches_of_mixed_streams() -> None:
    chunk, changes = scene(3, 3, 34, 30, nodata=True), {"max_error": 40, "nodata": 0}
    case = Case(chunk, changes)
    streams = [
        codec.encode(chunk, config(case, model=model)) for model in ("none", "fp", "tt", "elic")
    ]
    lossy = config(case, model="fp", max_error=None, nodata=0)
    streams += [codec.encode(chunk, lossy), codec.encode(np.zeros_like(chunk), config(case))]
    assert [stream.peek(data).model for data in streams] == [
        *("none", "fp", "tt", "elic", "fp", "none")
    ]
    together = codec.decode_many(streams, dates=[None, 2, 1, 3, None, 2])
    for data, back, dates in zip(streams, together, [3, 2, 1, 3, 3, 2]):
        np.testing.assert_array_equal(back, codec.decode(data, dates=dates))
    for back in together[:4]:
        check_bound(back, Case(chunk[: len(back)], {**changes, "scale": 1}))
    assert not together[-1].any()


@pytest.mark.parametrize("name", [None, *NETWORKS])
def test_a_chunk_of_nothing_but_nodata(
    networks: dict[str, dict[str, str]], name: str | None
) -> None:
    case = Case(np.full((2, 3, 20, 20), -9999, "i2"), {"max_error": 5, "nodata": -9999})
    its = {"model": "none"} if name is None else networks[name]
    data = codec.encode(case.chunk, config(case, **its))
    assert stream.unpack(data).residual.data == b""
    back = codec.decode(data, weights=its.get("weights"))
    np.testing.assert_array_equal(back, case.chunk)


@pytest.mark.parametrize("kind", KINDS)
def test_generations(kind: str) -> None:
    values = band(kind, (2, 40, 40), np.random.default_rng(3)).clip(1, 65535)
    chunk = values[:, None].astype("u2")
    for bound in (0, 3, 40):
        case = Case(chunk, {"max_error": bound, "nodata": 0, "scale": 1})
        data = codec.encode(chunk, config(case))
        first = codec.decode(data)
        again = codec.encode(first, config(case))
        check_bound(codec.decode(again), case._replace(chunk=first))
        assert bound > 0 or again == data


# floats that have no room for the bound


def test_floats_beside_nodata_never_become_it() -> None:
    steps = np.random.default_rng(0).integers(-3, 4, (1, 1, 20, 20))
    chunk = (np.float32(-9999) + steps * np.spacing(np.float32(9999))).astype("f4")
    assert (chunk == -9999).any()
    for bound in (0.0005, 0.001, 0.003):
        case = Case(chunk, {"max_error": bound, "nodata": -9999.0, "scale": 1.0})
        with pytest.raises(TecError, match="float32"):
            codec.encode(chunk, config(case))
    for bound in (0.1, 1, 20):
        case = Case(chunk, {"max_error": bound, "nodata": -9999.0, "scale": 1.0})
        check_bound(codec.decode(codec.encode(chunk, config(case))), case)


def test_infinite_pixels_raise_no_warnings() -> None:
    chunk = scene(1, 1, 8, 8).astype("f4")
    chunk[..., 3, :4] = np.inf, -np.inf, np.nan, 1e3
    case = Case(chunk, {"max_error": 1, "nodata": None, "scale": 1})
    check_bound(codec.decode(codec.encode(chunk, config(case))), case)


@pytest.mark.parametrize(
    ("largest", "changes", "message"),
    [
        (9.0, {"max_error": 0}, "store integers"),
        (9.0, {"max_error": [0.0, 5.0]}, "store integers"),
        (3e8, {"max_error": 10}, "allow a larger error"),
        (1e4, {"max_error": 1e-7}, "allow a larger error"),
        (1e12, {"max_error": 65535, "scale": 1e9}, "steps of"),
    ],
)
def test_what_floats_cannot_keep_is_refused(
    largest: float, changes: dict[str, Any], message: str
) -> None:
    chunk = np.random.default_rng(0).uniform(3, largest, (1, 2, 9, 9)).astype("f4")
    with pytest.raises(TecError, match=message):
        codec.encode(chunk, config(Case(chunk, changes)))


# damage


def damaged(whole: bytes, **changes: Any) -> bytes:
    """The stream with another header or residual, and checksums that fit."""
    parts = stream.unpack(whole)
    header = replace(parts.header, **{k: v for k, v in changes.items() if hasattr(parts.header, k)})
    rest = {k: v for k, v in changes.items() if not hasattr(parts.header, k)}
    return stream.pack(header, parts.specials, parts.dates, replace(parts.residual, **rest))


@pytest.fixture(scope="module")
def written() -> tuple[bytes, np.ndarray]:
    """A stream of bands of many kinds, and what it decodes to."""
    rng = np.random.default_rng(9)
    kinds = ("scene", "repeated 2", "interpolated 2", "turned", "steps of 8")
    chunk = np.stack([band(kind, (2, 26, 25), rng) for kind in kinds], 1).astype("u2")
    chunk[0, 0, 3:9, 4:8] = 0
    bands = (*BANDS, "B05", "B06")
    settings = {"bands": bands, "nodata": 0, "max_error": [2, 0, 1, 0, 3]}
    data = codec.encode(chunk, tec.CodecConfig(model="none", **settings))
    return data, codec.decode(data)


def test_flipped_bits_never_give_other_pixels(written: tuple[bytes, np.ndarray]) -> None:
    data, back = written
    rest = stream.unpack(data).residual.data
    rng, refused = np.random.default_rng(0), 0
    places = np.unique(np.r_[: min(len(rest), 300), len(rest) - 8 : len(rest)])
    for at in places:
        broken = bytearray(rest)
        broken[at] ^= 1 << rng.integers(8)
        try:
            found = codec.decode(damaged(data, data=bytes(broken)))
        except StreamError:
            refused += 1
            continue
        np.testing.assert_array_equal(found, back)
    assert refused > 0.95 * len(places)


def test_other_lengths_bounds_and_checksums_are_refused(written: tuple[bytes, np.ndarray]) -> None:
    data, back = written
    rest = stream.unpack(data).residual
    np.testing.assert_array_equal(codec.decode(damaged(data)), back)
    for size in (0, 1, 3, 4, 5, 100, len(rest.data) - 1):
        with pytest.raises(StreamError):
            codec.decode(damaged(data, data=rest.data[:size]))
    for bounds in ((3, 0, 1, 0, 3), (0,) * 5, (2**24,) * 5):
        with pytest.raises(StreamError):
            codec.decode(damaged(data, bounds=bounds))
    with pytest.raises(StreamError, match="date 1: the checksum of the decoded pixels"):
        codec.decode(damaged(data, checksums=(rest.checksums[0], zlib.crc32(b""))))
    with pytest.raises(StreamError):
        codec.decode(data[:-1])


def test_no_torch_where_there_is_no_network() -> None:
    printed = run("""
        import sys, numpy as np, tec
        from tec import codec
        config = tec.CodecConfig(model="none", bands=("B02",), max_error=1)
        chunk = np.arange(600, dtype="u2").reshape(2, 1, 20, 15)
        back = codec.decode(codec.encode(chunk, config))
        print(np.abs(back.astype(int) - chunk).max() <= 1, "torch" in sys.modules)
    """)
    assert printed.split() == ["True", "False"]
