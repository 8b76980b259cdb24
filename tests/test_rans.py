"""The coder: what goes in comes out, in few bytes, and hostile bytes end in an error."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tec
from hypothesis import given, settings
from hypothesis import strategies as st
from tec.entropy import rans
from tec.entropy.tables import TOTAL, Tables, scale_tables, shipped
from tec.errors import StreamError, TecError

TABLES = Tables.concatenate(
    [
        scale_tables("gaussian", [0.11, 0.5, 2.0, 30.0]),
        Tables.from_cdfs(
            [
                ([0, 1, TOTAL], 0),  # hardly anything but escapes
                ([0, TOTAL - 1, TOTAL], -(2**31)),
                ([0, 1, TOTAL - 1, TOTAL], 2**31 - 2),
                ([*range(TOTAL - 1), TOTAL], -5),  # every count is one
            ]
        ),
    ]
)
INT32 = st.integers(-(2**31), 2**31 - 1)


def mix(n: int, seed: int = 0, tables: Tables = TABLES) -> tuple[np.ndarray, np.ndarray]:
    """Symbols and indexes: mostly likely ones, some far outside of their tables."""
    rng = np.random.default_rng(seed)
    index = rng.choice(len(tables), n, p=_falling(len(tables))).astype(np.uint16)
    start, size = tables.offsets[:-1][index], np.diff(tables.offsets)[index]
    slot = rng.integers(0, TOTAL, n)
    symbols = np.empty(n, np.int64)
    for i in range(n):
        cdf = tables.cdf[start[i] : start[i] + size[i]]
        symbols[i] = tables.lowest[index[i]] + np.searchsorted(cdf, slot[i], side="right") - 1
    far = rng.random(n) < 0.01
    symbols[far] = (rng.normal(size=far.sum()) * 10.0 ** rng.integers(1, 10, far.sum())).astype(int)
    return np.clip(symbols, -(2**31), 2**31 - 1).astype(np.int32), index


def _falling(n: int) -> np.ndarray:
    p = 0.5 ** np.arange(n)
    return p / p.sum()


def decode(data: bytes, index: np.ndarray, tables: Tables = TABLES) -> np.ndarray:
    decoder = rans.Decoder(data, tables)
    symbols = decoder.read(index)
    decoder.finish()
    return symbols


@pytest.mark.parametrize("n", [1, 2, 3, 17, 5000])
def test_round_trip_and_size(n: int) -> None:
    symbols, index = mix(n, seed=n)
    data = rans.encode(symbols, index, TABLES)
    out = decode(data, index)
    assert out.dtype == np.int32
    np.testing.assert_array_equal(out, symbols)
    assert 8 * len(data) <= TABLES.bits(index, symbols).sum() * 1.0005 + 32


def test_order_is_kept_by_shape() -> None:
    symbols, index = mix(24)
    data = rans.encode(symbols, index, TABLES)
    square = rans.encode(symbols.reshape(4, 6), index.reshape(4, 6), TABLES)
    assert square == data
    assert rans.Decoder(data, TABLES).read(index.reshape(2, 12)).shape == (2, 12)
    flipped = rans.encode(symbols[::-1], index[::-1], TABLES)  # not contiguous
    np.testing.assert_array_equal(decode(flipped, index[::-1].copy()), symbols[::-1])


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(TABLES) - 1), INT32), max_size=30))
def test_every_int32_round_trips(pairs: list[tuple[int, int]]) -> None:
    index = np.array([i for i, _ in pairs], np.uint16)
    symbols = np.array([s for _, s in pairs], np.int32)
    data = rans.encode(symbols, index, TABLES)
    np.testing.assert_array_equal(decode(data, index), symbols)
    assert 8 * len(data) <= TABLES.bits(index, symbols).sum() * 1.0005 + 32


@pytest.mark.parametrize("table", range(len(TABLES)))
def test_values_around_the_ends_of_a_table(table: int) -> None:
    lowest = int(TABLES.lowest[table])
    highest = lowest + int(np.diff(TABLES.offsets)[table]) - 3
    powers = [s * (1 << k) + d for k in range(32) for s in (-1, 1) for d in (-1, 0, 1)]
    values = [v for e in (lowest, highest) for v in (e - 2, e - 1, e, e + 1, e + 2)] + powers
    symbols = np.array([v for v in values if -(2**31) <= v < 2**31], np.int32)
    index = np.full(symbols.size, table)
    data = rans.encode(symbols, index, TABLES)
    np.testing.assert_array_equal(decode(data, index), symbols)
    assert 8 * len(data) <= TABLES.bits(index, symbols).sum() * 1.0005 + 32


def test_small_streams_are_small() -> None:
    assert rans.encode(np.zeros(0, np.int32), np.zeros(0, np.uint16), TABLES) == b""
    empty = rans.Decoder(b"", TABLES)
    assert empty.read(np.zeros((0, 3), np.uint16)).shape == (0, 3)
    empty.finish()
    for n, most in ((1, 1), (100, 1), (100_000, 4)):
        zeros = np.zeros(n, np.int32)
        data = rans.encode(zeros, np.zeros(n, np.uint16), TABLES)  # certain symbols
        assert 1 <= len(data) <= most
        np.testing.assert_array_equal(decode(data, zeros), zeros)


def test_near_the_entropy_on_the_shipped_tables() -> None:
    tables = shipped("gaussian")
    rng = np.random.default_rng(1)
    index = np.clip(rng.gamma(1.0, 6.0, 50_000), 0, 63).astype(np.uint16)
    scale = 0.11 * (256 / 0.11) ** (index / 63)
    symbols = np.rint(rng.normal(size=index.size) * scale).astype(np.int32)
    data = rans.encode(symbols, index, tables)
    np.testing.assert_array_equal(decode(data, index, tables), symbols)
    ideal = tables.bits(index, symbols).sum() / 8
    assert ideal <= len(data) + 1e-6
    assert len(data) <= ideal * 1.0005 + 4


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 400), max_size=12))
def test_pieces_equal_the_whole(cuts: list[int]) -> None:
    symbols, index = mix(400, seed=3)
    decoder = rans.Decoder(memoryview(rans.encode(symbols, index, TABLES)), TABLES)
    pieces = [decoder.read(piece) for piece in np.split(index, sorted(cuts))]
    decoder.finish()
    np.testing.assert_array_equal(np.concatenate(pieces), symbols)


def test_golden_bytes() -> None:
    """The bytes of today; a change of them is a new stream version."""
    tables = Tables.from_cdfs([([0, 1000, 65000, 65500, TOTAL], -1), ([0, 40000, TOTAL], 3)])
    symbols = np.array([0, 0, 1, 3, -1, 70000, 0, -5, 3, 3, 0, 2**31 - 1, -(2**31)], np.int32)
    index = np.array([0, 0, 0, 1, 0, 1, 0, 0, 1, 1, 0, 1, 0], np.uint16)
    data = rans.encode(symbols, index, tables)
    assert data.hex() == "1c434aacd922ca6f5f06d871faff386edc9806"
    np.testing.assert_array_equal(decode(data, index, tables), symbols)


def test_wrong_arguments_say_so() -> None:
    zeros = np.zeros(3, np.int32)
    with pytest.raises(TecError, match="index 8 at position 1, but there are 8 tables"):
        rans.encode(zeros, np.array([0, 8, 0], np.uint16), TABLES)
    with pytest.raises(TecError, match="index 8 at position 2, but there are 8 tables"):
        rans.Decoder(b"\1", TABLES).read(np.array([0, 0, 8], np.uint16))
    for wrong in (np.array([-1, 0, 0]), np.array([0, 0, 70000])):
        with pytest.raises(TecError, match="there are 8 tables"):
            rans.encode(zeros, wrong, TABLES)
        with pytest.raises(TecError, match="there are 8 tables"):
            rans.Decoder(b"\1", TABLES).read(wrong)
    with pytest.raises(TecError, match="differ in shape"):
        rans.encode(zeros, np.zeros(2, np.uint16), TABLES)
    with pytest.raises(TecError, match="must be integers, not float64"):
        rans.encode(np.zeros(3), zeros, TABLES)
    with pytest.raises(TecError, match="must be of integers"):
        rans.encode(zeros, np.zeros(3), TABLES)
    with pytest.raises(TecError, match="do not fit int32"):
        rans.encode(np.array([0, 0, 2**31]), zeros, TABLES)
    with pytest.raises(TecError, match="there are 0 tables"):
        rans.encode(zeros, np.zeros(3, np.uint16), Tables.from_cdfs([]))


def test_read_only_and_narrow_arrays() -> None:
    symbols, index = mix(50)
    data = rans.encode(symbols, index, TABLES)
    for array in (symbols, index):
        array.flags.writeable = False
    assert rans.encode(symbols, index, TABLES) == data
    assert rans.encode(symbols.astype(np.int64), index.astype(np.int8), TABLES) == data
    np.testing.assert_array_equal(decode(data, index), symbols)


def test_truncation_is_noticed_at_every_length() -> None:
    symbols, index = mix(300, seed=5)
    data = rans.encode(symbols, index, TABLES)
    for n in range(len(data)):
        with pytest.raises(StreamError):
            decode(data[:n], index)


def test_unread_symbols_and_foreign_bytes_are_noticed() -> None:
    symbols, index = mix(300, seed=5)
    data = rans.encode(symbols, index, TABLES)
    decoder = rans.Decoder(data, TABLES)
    decoder.read(index[:200])
    with pytest.raises(StreamError, match="are left"):
        decoder.finish()
    with pytest.raises(StreamError):
        decode(data + b"\0\0\0\0", index)
    with pytest.raises(StreamError, match="empty"):
        rans.Decoder(b"", TABLES).read(index)


def test_flipped_bits_are_noticed() -> None:
    symbols, index = mix(200, seed=6)
    data = rans.encode(symbols, index, TABLES)
    for bit in range(0, 8 * len(data), 7):
        damaged = bytearray(data)
        damaged[bit >> 3] ^= 1 << (bit & 7)
        with pytest.raises(StreamError):
            decode(bytes(damaged), index)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=40), st.integers(0, 2**32 - 1), st.integers(0, 300))
def test_random_bytes_give_symbols_or_an_error(data: bytes, seed: int, n: int) -> None:
    """Nothing but StreamError, and whatever reads to the end is a stream: it encodes to itself."""
    index = np.random.default_rng(seed).integers(0, len(TABLES), n).astype(np.uint16)
    try:
        symbols = decode(data, index)
    except StreamError:
        return
    again = rans.encode(symbols, index, TABLES)
    np.testing.assert_array_equal(decode(again, index), symbols)


def test_hostile_bytes_end_quickly() -> None:
    index = np.tile(np.arange(len(TABLES), dtype=np.uint16), 20_000)
    start = time.perf_counter()
    for data in (b"\0", b"\0" * 4000, b"\xff" * 4001, bytes(range(256)) * 16):
        with pytest.raises(StreamError):
            decode(data, index)
    assert time.perf_counter() - start < 5


def test_impossible_escapes_are_refused() -> None:
    """An escape whose length field is above 32 bits, or whose value leaves int32."""
    tables = Tables.from_cdfs([([0, 1, TOTAL], 0)])
    for n, f in ((33, 1 << 10), (63, 1 << 10)):
        # The state that decodes to escape, then n: undo the two steps by hand.
        state = 1 * TOTAL + n * f
        state = state // (TOTAL - 1) * TOTAL + state % (TOTAL - 1) + 1
        data = state.to_bytes((state.bit_length() + 7) // 8, "little")
        head = data[len(data) & ~3 :]
        assert len(data) < 8
        stream = data[:4] + head if len(data) >= 4 else data
        with pytest.raises(StreamError, match="impossible value"):
            rans.Decoder(stream, tables).read(np.zeros(1, np.uint16))
    highest = Tables.from_cdfs([([0, 1, TOTAL], 2**31 - 1)])
    below = Tables.from_cdfs([([0, 1, TOTAL], 0)])
    data = rans.encode(np.array([5]), np.zeros(1, np.uint16), below)  # above the table
    with pytest.raises(StreamError, match="impossible value"):
        rans.Decoder(data, highest).read(np.zeros(1, np.uint16))


def test_two_threads_give_the_same_bytes() -> None:
    symbols, index = mix(3000, seed=7)
    symbols, index = np.tile(symbols, 60), np.tile(index, 60)
    tables = Tables.from_arrays(TABLES.to_arrays())  # nothing of it computed yet
    with ThreadPoolExecutor(4) as pool:
        streams = list(pool.map(lambda _: rans.encode(symbols, index, tables), range(8)))
        assert set(streams) == {rans.encode(symbols, index, TABLES)}
        for out in pool.map(lambda s: decode(s, index, tables), streams):
            np.testing.assert_array_equal(out, symbols)


PROGRAM = """
import sys, warnings
warnings.simplefilter("error")
import numpy as np
from tec.entropy import portable, rans
from tec.entropy.tables import shipped
tables = shipped("gaussian")
symbols, index = np.arange(-40, 40, dtype=np.int32), np.arange(80, dtype=np.uint16) % 64
data = rans.encode(symbols, index, tables)
decoder = rans.Decoder(data, tables)
assert (decoder.read(index) == symbols).all()
decoder.finish()
x = np.linspace(-3, 3, 13, dtype=np.float32)[None]
writer = portable.Writer(1, portable.ScaleGrid(), portable.Margin(2**-10, 2**-12))
assert (writer.round(x) == np.rint(x)).all() and writer.flagged
print(data.hex())
"""


@pytest.mark.parametrize("home", ["writable", "none"])
def test_package_that_cannot_be_written_to(tmp_path: Path, home: str) -> None:
    """Read-only site-packages, with and without a home for the cache, in processes of their own.

    Permissions do not bind a test that runs as root, so a file stands where numba wants to make
    a folder: that fails for everybody.
    """
    site = tmp_path / "site"
    package = Path(tec.__file__ or tec.__path__[0] + "/x").parent
    (site / "tec").mkdir(parents=True)
    (site / "tec" / "__init__.py").write_text("")
    for name in ("errors.py", "forks.py"):
        shutil.copy(package / name, site / "tec" / name)
    shutil.copytree(
        package / "entropy", site / "tec" / "entropy", ignore=shutil.ignore_patterns("__pycache__")
    )
    (site / "tec" / "entropy" / "__pycache__").write_text("no folder here")
    (tmp_path / "home").mkdir() if home == "writable" else (tmp_path / "home").write_text("")
    env = {k: v for k, v in os.environ.items() if not k.startswith(("NUMBA", "XDG", "HOME"))}
    where = str(tmp_path / "home")
    env.update(PYTHONPATH=str(site), HOME=where, USERPROFILE=where, LOCALAPPDATA=where)
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    symbols, index = np.arange(-40, 40, dtype=np.int32), np.arange(80, dtype=np.uint16) % 64
    assert result.stdout.strip() == rans.encode(symbols, index, shipped("gaussian")).hex()
    cached = list((tmp_path / "home").rglob("*.nbc")) if home == "writable" else []
    assert bool(cached) == (home == "writable")
    assert not list(site.rglob("*.nbc"))
