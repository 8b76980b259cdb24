"""The residual layer: what it writes is what FORMAT.md says, and damage never passes for pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import residual_oracle
from bounded_cubes import KINDS, band, cases
from hypothesis import given, settings
from hypothesis import strategies as st
from tec import StreamError, residual, threads
from tec.entropy.binary import NUMBER, Coder

# the format


def agrees(values: np.ndarray, bounds: list[int], **more: Any) -> None:
    """The decoder, the oracle and what the encoder says are one."""
    holes, nodata, picture = (more.get(key) for key in ("holes", "nodata", "picture"))
    data, found = residual.encode(values, holes, bounds, nodata=nodata, picture=picture)
    back = residual.decode(data, values.shape, holes, bounds, nodata=nodata, picture=picture)
    oracle = residual_oracle.decode(
        data,
        values.shape,
        bounds,
        special=None if holes is None else holes.tolist(),
        nodata=nodata,
        picture=None if picture is None else picture.tolist(),
        segment=residual.SEGMENT,
        strip=residual.STRIP,
    )
    np.testing.assert_array_equal(back, found)
    np.testing.assert_array_equal(back, oracle)


@pytest.mark.parametrize("bound", [0, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_band_decodes_as_written_down(kind: str, bound: int) -> None:
    rng = np.random.default_rng(len(kind))
    values = np.stack([band(kind, (2, 34, 29), rng), band("scene", (2, 34, 29), rng)], 1)
    agrees(values, [bound, 1])


@given(cases(largest=20, dtypes=("i2",)), st.booleans(), st.sampled_from([2**15, 100, 7]))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_any_cube_decodes_as_written_down(case: Any, picture: bool, strip: int) -> None:
    chunk, nodata = case.chunk.astype(np.int32), case.settings["nodata"]
    holes = None if nodata is None else chunk == nodata
    bounds = np.broadcast_to(np.array(case.settings["max_error"]), chunk.shape[1]).astype(int)
    rough = (chunk // 50 * 50).astype(np.int32) if picture else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(residual, "STRIP", strip)
        agrees(chunk, bounds.tolist(), holes=holes, nodata=nodata, picture=rough)


def test_segments_decode_as_written_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residual, "SEGMENT", 900)
    rng = np.random.default_rng(5)
    values = np.stack([band(kind, (2, 100, 9), rng) for kind in ("scene", "repeated 2")], 1)
    assert len(residual._segments(values.shape)) == 3
    agrees(values, [2, 0])


@pytest.mark.parametrize("cores", [1, 2])
def test_segments_are_the_same_on_every_machine(
    monkeypatch: pytest.MonkeyPatch, cores: int
) -> None:
    values = np.stack([band(k, (2, 130, 33), np.random.default_rng(1)) for k in KINDS[:3]], 1)
    monkeypatch.setattr(residual, "SEGMENT", 4000)
    assert len(residual._segments(values.shape)) == 4
    data, found = residual.encode(values, None, [1, 0, 2])
    monkeypatch.setattr(threads, "of_a_pass", lambda: cores)
    assert residual.encode(values, None, [1, 0, 2])[0] == data
    np.testing.assert_array_equal(residual.decode(data, values.shape, None, [1, 0, 2]), found)
    first = residual.decode(data, values.shape, None, [1, 0, 2], dates=1)
    np.testing.assert_array_equal(first, found[:1])


# damage


@given(st.binary(max_size=60), st.sampled_from([(1, 1, 1, 1), (2, 2, 9, 40), (1, 1, 70, 3)]))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_any_bytes_decode_or_are_refused(data: bytes, shape: tuple[int, int, int, int]) -> None:
    framed = len(data).to_bytes(4, "little") + data
    for bounds in ([0, 3], [2**24, 1]):
        for whole in (framed, data):
            try:
                back = residual.decode(whole, shape, None, bounds, nodata=0)
            except StreamError:
                continue
            assert back.shape == shape


@pytest.mark.parametrize("size", range(12))
def test_lengths_that_do_not_fit_are_refused(size: int) -> None:
    values = np.arange(99, dtype=np.int32).reshape(1, 1, 9, 11)
    data, _ = residual.encode(values, None, [0])
    with pytest.raises(StreamError, match="residual"):
        residual.decode(data[:size], values.shape, None, [0])
    with pytest.raises(StreamError, match="residual"):
        residual.decode(data + bytes(size + 1), values.shape, None, [0])
    with pytest.raises(StreamError, match="residual"):
        residual.decode(bytes(size + 1), (0, 1, 0, 0), None, [0])


# the coder


@given(
    st.lists(st.lists(st.integers(-(2**45), 2**45) | st.integers(-4, 4), max_size=20), max_size=5),
    st.integers(0, 3),
)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_numbers_come_back(rows: list[list[int]], chain: int) -> None:
    contexts = 5 * NUMBER
    writer = Coder(contexts, room=10_000)
    for row in rows:
        assert writer.numbers(np.array(row, np.int64), NUMBER, chain).tolist() == row
        assert writer.number(len(row), 0) == len(row)
    data = writer.data[: writer.finish()].tobytes()
    reader = Coder(contexts, data)
    for row in rows:
        assert reader.numbers(np.zeros(len(row), np.int64), NUMBER, chain).tolist() == row
        assert reader.number(0, 0) == len(row)
    assert reader.finish() == len(data)
    assert not reader.overread


def test_a_code_without_room_says_how_much_it_takes() -> None:
    numbers = np.arange(-500, 500)
    enough, little = Coder(NUMBER, room=10_000), Coder(NUMBER, room=7)
    for coder in (enough, little):
        coder.numbers(numbers, 0)
    size = enough.finish()
    assert little.finish() == size > 100
    again = Coder(NUMBER, room=size)
    again.numbers(numbers, 0)
    again.finish()
    np.testing.assert_array_equal(again.data, enough.data[:size])


def test_reading_beyond_the_end_shows() -> None:
    reader = Coder(NUMBER, b"\x12\x34")
    assert not reader.overread
    reader.numbers(np.zeros(100_000, np.int64), 0)
    assert reader.overread
