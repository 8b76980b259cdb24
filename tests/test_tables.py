"""Integer probability tables: what is valid, how they are made, stored and shipped."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tec.entropy import tables as module
from tec.entropy.portable import ScaleGrid
from tec.entropy.tables import TOTAL, Tables, quantise_pmf, scale_tables, shipped
from tec.errors import TecError, WeightsError

COIN = ([0, 30000, 60000, TOTAL], -1)
WIDE = ([*range(0, 2000, 2), TOTAL], 5)


def same(a: Tables, b: Tables) -> bool:
    return all(np.array_equal(getattr(a, n), getattr(b, n)) for n in ("cdf", "offsets", "lowest"))


def test_ragged_layout() -> None:
    tables = Tables.from_cdfs([COIN, WIDE])
    assert len(tables) == 2
    assert tables.offsets.tolist() == [0, 4, 4 + 1001]
    assert tables.lowest.tolist() == [-1, 5]
    assert tables.cdf.dtype == np.int32
    assert not tables.cdf.flags.writeable
    assert tables.packed[:3].tolist() == [29999 << 16, 30000 | 29999 << 16, 60000 | 5535 << 16]
    assert tables.lookup.reshape(2, 256)[0, [0, 117, 118, 234, 235]].tolist() == [0, 0, 1, 1, 2]


@pytest.mark.parametrize(
    ("cdf", "message"),
    [
        ([0, TOTAL], "needs a symbol and the escape"),
        ([1, 5, TOTAL], "must go from 0 to 65536"),
        ([0, 5, TOTAL - 1], "must go from 0 to 65536"),
        ([0, 5, 5, TOTAL], "does not increase"),
        ([0, 9, 5, TOTAL], "does not increase"),
        ([0.0, 5.0, 65536.0], "must hold integers"),
        ([[0, 5, TOTAL]], "one dimension"),
    ],
)
def test_invalid_tables_say_why(cdf: list, message: str) -> None:
    with pytest.raises(TecError, match=message):
        Tables.from_cdfs([COIN, (cdf, 0), COIN])


def test_invalid_shapes_and_ranges() -> None:
    with pytest.raises(TecError, match="int32"):
        Tables.from_cdfs([([0, 1, 2, TOTAL], 2**31 - 1)])
    assert len(Tables.from_cdfs([([0, 1, 2, TOTAL], 2**31 - 2)])) == 1
    with pytest.raises(TecError, match="offsets"):
        Tables(np.array([0, 5, TOTAL]), np.array([0, 2]), np.array([0]))
    n = TOTAL + 1
    with pytest.raises(TecError, match="at most 65536"):
        Tables(np.tile([0, 5, TOTAL], n), np.arange(n + 1) * 3, np.zeros(n, int))


def test_no_tables_at_all() -> None:
    empty = Tables.from_cdfs([])
    assert len(empty) == 0
    assert same(Tables.from_arrays(empty.to_arrays()), empty)
    assert same(Tables.concatenate([]), empty)
    assert same(Tables.concatenate([empty, Tables.from_cdfs([COIN])]), Tables.from_cdfs([COIN]))


def test_padded_matrix_of_a_compressai_state_dict() -> None:
    cdf = np.zeros((2, 6), np.int32)
    cdf[0, :4] = [0, 100, 65000, 65536]  # two symbols and the overflow
    cdf[1] = [0, 1, 2, 3, 4, 65536]
    tables = Tables.from_padded(cdf, np.array([4, 6], np.int32), np.array([-3, 7], np.int32))
    assert same(tables, Tables.from_cdfs([(cdf[0, :4], -3), (cdf[1], 7)]))
    with pytest.raises(TecError, match="got"):
        Tables.from_padded(cdf, np.array([4]), np.array([-3, 7]))
    with pytest.raises(TecError, match="between 0 and 6"):
        Tables.from_padded(cdf, np.array([4, 7]), np.array([-3, 7]))
    with pytest.raises(TecError, match="from 0 to 65536"):
        Tables.from_padded(cdf, np.array([3, 6]), np.array([-3, 7]))


def test_concatenate_is_one_index_space() -> None:
    a, b = Tables.from_cdfs([COIN, WIDE]), scale_tables("laplace", [0.5, 3.0])
    both = Tables.concatenate([a, b])
    symbols = np.arange(-5, 6)
    for part, shift in ((a, 0), (b, 2)):
        for i in range(2):
            index = np.full(symbols.size, i)
            np.testing.assert_array_equal(
                part.bits(index, symbols), both.bits(index + shift, symbols)
            )


def test_arrays_round_trip_as_small_integers() -> None:
    tables = Tables.from_cdfs([COIN, WIDE, ([0, TOTAL - 1, TOTAL], 0)])
    arrays = tables.to_arrays()
    assert {k: v.dtype for k, v in arrays.items()} == {
        "counts": np.uint16,
        "size": np.int32,
        "lowest": np.int32,
    }
    assert same(Tables.from_arrays(arrays), tables)
    with pytest.raises(TecError, match="lack counts"):
        Tables.from_arrays({"size": arrays["size"], "lowest": arrays["lowest"]})
    with pytest.raises(TecError, match="do not add up"):
        Tables.from_arrays({**arrays, "counts": arrays["counts"][:-1]})
    with pytest.raises(TecError, match="from 0 to 65536"):
        Tables.from_arrays({**arrays, "counts": arrays["counts"] // 2 + 1})


def test_bits_by_hand() -> None:
    tables = Tables.from_cdfs([([0, 32768, 49152, TOTAL], -1)])  # -1: 1 bit, 0: 2 bits, escape: 2
    symbols = np.array([[-1, 0], [1, -2], [2, -3]])
    # 1 is u = 0 (no bits), -2 is u = 1 (one bit), 2 is u = 2 (one bit), -3 is u = 3 (two bits)
    expected = [[1, 2], [8, 9], [9, 10]]
    assert tables.bits(np.zeros_like(symbols), symbols).tolist() == expected
    with pytest.raises(TecError, match="there are 1 tables"):
        tables.bits(np.array([1]), np.array([0]))
    with pytest.raises(TecError, match="differ in shape"):
        tables.bits(np.array([0, 0]), np.array([0]))


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.floats(0, 0.1))
def test_quantised_pmf_is_a_valid_table(pmf: list[float], escape: float) -> None:
    total = sum(pmf) + escape
    if not total > 0:
        with pytest.raises(TecError, match="not all zero"):
            quantise_pmf(pmf, escape)
        return
    cdf = quantise_pmf(pmf, escape)
    counts = np.diff(cdf)
    assert cdf[0] == 0
    assert cdf[-1] == TOTAL
    assert counts.min() >= 1
    # Nobody gets more than asked for, but for the one count that is everybody's.
    assert (counts <= np.maximum(np.ceil(np.array([*pmf, escape]) / total * TOTAL), 1)).all()
    Tables.from_cdfs([(cdf, 0)])


def test_quantised_pmf_takes_the_largest_remainders() -> None:
    assert np.diff(quantise_pmf([1, 1], 1)).tolist() == [21846, 21845, 21845]
    assert np.diff(quantise_pmf([0.5, 1e-9], 0.5)).tolist() == [32768, 1, 32767]
    for pmf in ([], [-0.1, 1], [np.nan], [np.inf], np.ones(TOTAL)):
        with pytest.raises(TecError):
            quantise_pmf(pmf)


@pytest.mark.parametrize("family", ["gaussian", "logistic", "laplace"])
def test_scale_tables_are_near_the_entropy(family: str) -> None:
    """Kullback-Leibler loss of the integers, escapes included, against the exact distribution."""
    scales = np.array([0.01, 0.11, 0.5, 1, 4, 30, 256])
    tables = scale_tables(family, scales)
    assert np.diff(tables.offsets).max() <= 4097
    for i, scale in enumerate(scales):
        radius = int(30 * scale) + 2
        beyond = module._upper_tail(family, (np.arange(radius + 1) + 0.5) / scale)
        half = beyond[:-1] - beyond[1:]
        p = np.concatenate([half[::-1], [1 - 2 * beyond[0]], half])
        bits = tables.bits(np.full(p.size, i), np.arange(-radius, radius + 1))
        entropy = -(p[p > 0] * np.log2(p[p > 0])).sum()
        assert -1e-9 <= (p * bits).sum() - entropy <= 2e-4 + 1e-3 * entropy


def test_scale_tables_stay_bounded() -> None:
    tables = scale_tables("logistic", [1e-3, 256, 5000, 1e9])
    assert np.diff(tables.offsets).max() <= 4097
    assert np.diff(tables.offsets).min() == 5  # -1, 0, 1 and the escape at least
    for wrong in ([0.0], [-1.0], [np.nan], [np.inf]):
        with pytest.raises(TecError, match="finite and positive"):
            scale_tables("gaussian", wrong)
    with pytest.raises(TecError, match="gaussian, logistic, laplace"):
        scale_tables("cauchy", [1.0])


def test_shipped_file_is_the_recorded_one() -> None:
    data = module.SHIPPED.read_bytes()
    assert hashlib.sha256(data).hexdigest() == module.SHIPPED_SHA256
    assert len(data) < 300_000


@pytest.mark.parametrize("family", ["gaussian", "logistic"])
def test_shipped_tables_are_what_the_functions_make(family: str) -> None:
    tables, again = shipped(family), scale_tables(family, ScaleGrid().scales)
    assert len(tables) == ScaleGrid().levels == 64
    assert abs(tables.cdf.size - again.cdf.size) <= 4  # another libm may cut a tail one symbol off
    for i in range(64):
        ours, theirs = (
            dict(zip(range(t.lowest[i], t.lowest[i] + 9999), _counts(t, i)))
            for t in (tables, again)
        )
        assert max(abs(ours[k] - theirs[k]) for k in ours.keys() & theirs.keys()) <= 2
    assert shipped(family) is tables


def _counts(tables: Tables, i: int) -> np.ndarray:
    return np.diff(tables.cdf[tables.offsets[i] : tables.offsets[i + 1]])[:-1]  # not the escape


def test_shipped_file_regenerates(tmp_path) -> None:
    path = tmp_path / "tables.npz"
    sha = module.write_shipped(path)
    assert sha == hashlib.sha256(path.read_bytes()).hexdigest()
    assert module.write_shipped(tmp_path / "again.npz") == sha
    with np.load(path, allow_pickle=False) as new, np.load(module.SHIPPED) as old:
        assert new.files == old.files


def test_shipped_errors(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TecError, match="gaussian, logistic"):
        shipped("laplace")
    damaged = tmp_path / "tables.npz"
    damaged.write_bytes(module.SHIPPED.read_bytes()[:-1] + b"x")
    monkeypatch.setattr(module, "SHIPPED", damaged)
    with pytest.raises(WeightsError, match="reinstall"):
        shipped.__wrapped__("gaussian")


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_bits_agree_with_the_probabilities(data: st.DataObject) -> None:
    pmf = data.draw(st.lists(st.floats(1e-3, 1), min_size=1, max_size=20))
    lowest = data.draw(st.integers(-1000, 1000))
    tables = Tables.from_pmfs([(pmf, lowest)], escape_mass=1e-3)
    symbols = lowest + np.arange(len(pmf))
    p = np.array(pmf) / (sum(pmf) + 1e-3)
    bits = tables.bits(np.zeros(len(pmf), int), symbols)
    np.testing.assert_allclose(bits, -np.log2(p), atol=0.5, rtol=0.1)
