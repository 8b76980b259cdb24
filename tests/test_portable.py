"""Rounding that two machines agree on: the guarantee, its cost in bytes, and hostile decisions."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from tec.entropy import rounding
from tec.entropy.portable import Margin, Reader, ScaleGrid, Writer
from tec.errors import StreamError, TecError

GRID = ScaleGrid()
MARGIN = Margin(2.0**-14, 2.0**-17)


def parameters(n: int, k: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    mean = (rng.normal(size=(n, k)) * 10.0 ** rng.uniform(-2, 2, (n, k))).astype(np.float32)
    return mean, rng.uniform(-4, 7, (n, k)).astype(np.float32)


def jitter(x: np.ndarray, margin: Margin, seed: int = 0) -> np.ndarray:
    """Float64 values up to (not including) the margin away."""
    x = x.astype(np.float64)
    u = np.random.default_rng(seed).uniform(-1, 1, x.shape)
    u = np.where(np.abs(u) > 0.5, np.sign(u), u)  # half of them as far away as allowed
    return x + u * np.asarray(margin(x)) * (1 - 2.0**-20)


def agree(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> bool:
    """Same to the bit: the sign of a zero too."""
    return all(x.dtype == y.dtype and x.tobytes() == y.tobytes() for x, y in zip(a, b, strict=True))


# ---- the grid and the margin


def test_default_grid() -> None:
    scales, steps = GRID.scales, GRID.steps
    assert scales.size == steps.size == 64
    np.testing.assert_allclose(scales[[0, -1]], [0.11, 256], rtol=1e-14)
    np.testing.assert_allclose(np.diff(np.log(scales)), np.log(256 / 0.11) / 63, rtol=1e-9)
    assert (np.log2(steps) % 1 == 0).all()
    assert (steps <= np.maximum(scales / 4 * (1 + 1e-9), 1 / 16)).all()
    assert ((steps > scales / 8) | (steps == 1 / 16)).all()
    assert steps[0] == 1 / 16
    assert steps[-1] == 64
    # Numbers that a stream depends on, whatever the machine's logarithm.
    assert GRID.log_smallest.hex() == "-0x1.1a87fbfe80000p+1"
    assert GRID.levels_per_log.hex() == "0x1.040bf77800000p+3"
    assert GRID == pickle.loads(pickle.dumps(GRID)) == ScaleGrid(64, 0.11, 256.0)


def test_index_is_the_nearest_level() -> None:
    rng = np.random.default_rng(0)
    log_scale = np.concatenate([rng.uniform(-4, 8, 2000), np.log(GRID.scales), [-1e30, 1e30]])
    index, _ = Writer(1, GRID, MARGIN).parameters(np.zeros((1, 2066)), log_scale[None])
    distance = np.abs(log_scale[:, None] - np.log(GRID.scales))
    chosen = distance[np.arange(2066), index[0]]
    assert (chosen <= distance.min(axis=1) * (1 + 1e-6) + 1e-9).all()
    assert index[0, 2000:2064].tolist() == list(range(64))
    assert index[0, -2:].tolist() == [0, 63]


def test_mean_is_the_nearest_multiple_of_the_step_of_its_level() -> None:
    mean, log_scale = parameters(2, 500)
    index, mean_hat = Writer(2, GRID, MARGIN).parameters(mean, log_scale)
    assert index.dtype == np.uint16
    assert mean_hat.dtype == np.float32
    step = GRID.steps[index]
    assert (mean_hat / step % 1 == 0).all()
    assert (np.abs(mean_hat - mean) <= step / 2).all()


@pytest.mark.parametrize(
    "wrong",
    [(1, 0.1, 1), (2000, 0.1, 1), (64, 0, 1), (64, 1, 1), (64, 2, 1), (64, 0.1, math.inf)],
)
def test_invalid_grids(wrong: tuple) -> None:
    with pytest.raises(TecError, match=r"levels|ascend"):
        ScaleGrid(*wrong)


@settings(deadline=None)
@given(st.integers(-61, 11) | st.none(), st.integers(-61, 11) | st.none())
def test_margin_is_two_bytes(a: int | None, r: int | None) -> None:
    values = [0.0 if e is None else 2.0**e for e in (a, r)]
    if any(e in (-61, 11) for e in (a, r)):
        with pytest.raises(TecError, match="power of two"):
            Margin(*values)
        return
    margin = Margin(*values)
    data = margin.to_bytes()
    assert len(data) == 2
    assert Margin.from_bytes(data) == margin
    assert margin(-3.0) == values[0] + 3 * values[1]


def test_invalid_margins() -> None:
    for wrong in (0.3, -0.5, math.nan, math.inf):
        with pytest.raises(TecError, match="power of two"):
            Margin(0.5, wrong)
    for data in (b"", b"\0", b"\0\0\0", b"\x0b\0", b"\0\x81"):
        with pytest.raises(StreamError, match="exponents"):
            Margin.from_bytes(data)


# ---- the guarantee

EXPONENT = st.integers(-40, 10)
MARGINS = st.builds(
    Margin,
    st.just(0.0) | EXPONENT.map(lambda e: 2.0**e),
    st.just(0.0) | EXPONENT.map(lambda e: 2.0**e),
)
FACTOR = st.floats(-1, 1)


@st.composite
def near_boundaries(draw: st.DrawFn, largest: float = 1e6) -> float:
    """Floats of all magnitudes, many on a rounding boundary or one float32 away from it."""
    kind = draw(st.integers(0, 3))
    if kind == 0:
        return draw(st.floats(-largest, largest))
    step = 2.0 ** draw(st.integers(-5, 6))
    x = step * (draw(st.integers(-(2**13), 2**13)) + draw(st.sampled_from([0.0, 0.5])))
    if kind == 1:
        return x
    if kind == 2:
        return float(np.nextafter(np.float32(x), np.float32(draw(st.sampled_from([-9e9, 9e9])))))
    return x + draw(st.floats(-1, 1)) * 2.0 ** draw(st.integers(-40, 0))


@st.composite
def log_scales(draw: st.DrawFn) -> float:
    """Floats of the grid's range and beyond, many near a boundary between levels."""
    if draw(st.booleans()):
        return draw(st.floats(-1e6, 1e6) | st.floats(-3, 6))
    t = draw(st.integers(-2, 66)) + 0.5 + draw(st.floats(-1, 1)) * 2.0 ** draw(st.integers(-40, 0))
    return GRID.log_smallest + t / GRID.levels_per_log


@settings(max_examples=600, deadline=None)  # the first example compiles
@example([(0.03125, 0.0, 1.0, 1.0)], Margin(2.0**-20, 0.0), False)
@example([(1e6, -1e6, -1.0, 1.0)], Margin(2.0**10, 2.0**10), False)
@example([(0.0, 1e30, 1.0, -1.0)], Margin(0.0, 0.25), False)
@given(
    st.lists(st.tuples(near_boundaries(), log_scales(), FACTOR, FACTOR), min_size=1, max_size=20),
    MARGINS,
    st.booleans(),
)
def test_reader_within_the_margin_reads_the_same(
    values: list[tuple[float, float, float, float]], margin: Margin, single: bool
) -> None:
    """For any values, any margin and any difference below it: identical integers."""
    dtype = np.float32 if single else np.float64
    mean = np.array([[v[0] for v in values]], dtype)
    log_scale = np.array([[v[1] for v in values]], dtype)
    factors = np.array([[v[2] for v in values]]), np.array([[v[3] for v in values]])
    writer = Writer(1, GRID, margin)
    written = writer.parameters(mean, log_scale)
    others = []
    for x, factor in zip((mean, log_scale), factors, strict=True):
        x = x.astype(np.float64)
        other = x + factor * margin(x)
        others.append(np.where(np.abs(other - x) < margin(x), other, x))
    decisions = writer.getvalue()
    for read in (mean, log_scale), others:
        reader = Reader(decisions, GRID)
        assert agree(reader.parameters(*read), written)
        reader.finish()


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(near_boundaries(1e7), FACTOR), min_size=1, max_size=20),
    MARGINS,
    st.integers(-4, 6),
)
def test_plain_rounding_has_the_same_guarantee(
    values: list[tuple[float, float]], margin: Margin, exponent: int
) -> None:
    x = np.array([[v[0] for v in values]])
    writer = Writer(1, GRID, margin)
    step = 2.0**exponent
    written = writer.round(x, step)
    assert written.dtype == np.int32
    np.testing.assert_array_equal(written, np.rint(x / step))
    other = x + np.array([[v[1] for v in values]]) * margin(x)
    other = np.where(np.abs(other - x) < margin(x), other, x)
    reader = Reader(writer.getvalue(), GRID)
    assert agree((reader.round(other, step),), (written,))
    reader.finish()


def test_large_arrays_in_several_calls() -> None:
    writer = Writer(3, GRID, MARGIN)
    calls = [parameters(3, k, seed=k) for k in (1000, 0, 1, 20_000)]
    written = [writer.parameters(*c) for c in calls]
    plain = parameters(3, 5000, seed=9)[0]
    rounded = writer.round(plain, 0.5)
    decisions = writer.getvalue()
    assert writer.values == 3 * (2 * 21_001 + 5000)
    assert 0 < writer.flagged < writer.values / 50
    reader = Reader(decisions, GRID)
    for i, call in enumerate(calls):
        others = [jitter(x, MARGIN, seed=i + j) for j, x in enumerate(call)]
        assert agree(reader.parameters(*others), written[i])
    np.testing.assert_array_equal(reader.round(jitter(plain, MARGIN), 0.5), rounded)
    reader.finish()


def test_beyond_the_margin_it_does_differ() -> None:
    """It is the decisions that make the test above pass: without them, or with more noise, no."""
    mean, log_scale = parameters(1, 20_000)
    writer = Writer(1, GRID, MARGIN)
    written = writer.parameters(mean, log_scale)
    noisy = [jitter(x, MARGIN, seed=i) for i, x in enumerate((mean, log_scale))]
    assert not agree(Reader([b""], GRID).parameters(*noisy), written)
    wide = Margin(MARGIN.absolute * 16, MARGIN.relative * 16)
    noisy = [jitter(x, wide, seed=i) for i, x in enumerate((mean, log_scale))]
    assert not agree(Reader(writer.getvalue(), GRID).parameters(*noisy), written)


def test_the_margin_of_a_mean_goes_by_what_it_is_the_sum_of() -> None:
    """Terms that cancel err more than their sum says: by the size of the terms, readers agree."""
    mean, log_scale = parameters(1, 20_000)
    relative = Margin(2.0**-40, 2.0**-18)
    size = np.full(mean.shape, 1000.0)
    noisy = mean + 0.9 * np.random.default_rng(0).uniform(-1, 1, mean.shape) * relative(size)
    told, alone = Writer(1, GRID, relative), Writer(1, GRID, relative)
    written = told.parameters(mean, log_scale, lambda: size)
    assert agree(written, alone.parameters(mean, log_scale))
    assert told.flagged > 10 * alone.flagged
    assert agree(Reader(told.getvalue(), GRID).parameters(noisy, log_scale), written)
    assert not agree(Reader(alone.getvalue(), GRID).parameters(noisy, log_scale), written)
    small = Writer(1, GRID, relative)
    small.parameters(mean, log_scale, lambda: 0.5 * np.abs(mean))
    assert small.getvalue() == alone.getvalue()  # never less than the mean's own


def test_float32_and_float64_agree() -> None:
    mean, log_scale = parameters(2, 3000)
    a, b = Writer(2, GRID, MARGIN), Writer(2, GRID, MARGIN)
    double = mean.astype(np.float64), log_scale.astype(np.float64)
    assert agree(a.parameters(mean, log_scale), b.parameters(*double))
    assert a.getvalue() == b.getvalue()
    mixed = Reader(a.getvalue(), GRID)
    assert agree(mixed.parameters(mean, double[1]), Writer(2, GRID, MARGIN).parameters(*double))
    mixed.finish()


def test_rows_are_independent() -> None:
    mean, log_scale = parameters(5, 4000)
    writer = Writer(5, GRID, MARGIN)
    index, mean_hat = writer.parameters(mean, log_scale)
    decisions = writer.getvalue()
    for rows in ([2], [4, 0], [1, 2, 3]):
        part = Writer(len(rows), GRID, MARGIN)
        assert agree(part.parameters(mean[rows], log_scale[rows]), (index[rows], mean_hat[rows]))
        assert part.getvalue() == [decisions[i] for i in rows]
        reader = Reader([decisions[i] for i in rows], GRID)
        assert agree(reader.parameters(mean[rows], log_scale[rows]), (index[rows], mean_hat[rows]))
        reader.finish()


def test_no_rows_and_no_values() -> None:
    for n, k in ((0, 7), (3, 0), (0, 0)):
        writer = Writer(n, GRID, MARGIN)
        index, mean_hat = writer.parameters(np.zeros((n, k)), np.zeros((n, k)))
        assert index.shape == mean_hat.shape == (n, k)
        assert writer.getvalue() == [b""] * n
        Reader([b""] * n, GRID).finish()


def test_without_a_margin_nothing_is_flagged() -> None:
    mean, log_scale = parameters(1, 5000)
    writer = Writer(1, GRID, Margin(0, 0))
    writer.parameters(mean, log_scale)
    assert writer.flagged == 0
    assert writer.getvalue() == [b""]


def test_scales_beyond_the_grid_need_no_decision() -> None:
    """However wide the margin is there, a reader within it sees the same end."""
    ends = GRID.log_smallest, math.log(256)
    log_scale = np.array([[-50.0, 50.0, -1e30, 1e30, ends[0] - 0.2, ends[1] + 0.2]])
    writer = Writer(1, GRID, Margin(2.0**-10, 2.0**-6))
    index, _ = writer.parameters(np.zeros((1, 6)), log_scale)
    assert index.tolist() == [[0, 63, 0, 63, 0, 63]]
    assert writer.flagged == 0
    writer.parameters(np.zeros((1, 2)), np.array([ends]))
    assert writer.flagged == 1  # the margin of log(256) reaches the level below


# ---- what it costs


@pytest.mark.parametrize("exponent", [-14, -12, -10, -8])
def test_cost_of_a_decision(exponent: int) -> None:
    """Bits per decision: the logarithm of the mean gap, its entropy beyond that, and the choice."""
    x = np.random.default_rng(0).uniform(-50, 50, (1, 200_000)).astype(np.float32)
    writer = Writer(1, GRID, Margin(2.0**exponent, 0))
    writer.round(x)
    (data,) = writer.getvalue()
    assert writer.flagged == pytest.approx(x.size * 2.0 ** (exponent + 1), rel=0.35)
    assert 8 * len(data) <= writer.flagged * (math.log2(x.size / writer.flagged) + 1.44 + 1.2) + 24


def test_one_decision_is_two_bytes() -> None:
    for place in (0, 1, 100, 400):
        x = np.zeros((1, 500))
        x[0, place] = 0.5
        writer = Writer(1, GRID, MARGIN)
        writer.round(x)
        assert len(writer.getvalue()[0]) <= 2


def test_golden_decisions() -> None:
    """The bits of today; a change of them is a new stream version."""
    positions = np.array([0, 1, 5, 300, 301, 40_000, 10**9, 10**9 + 1], np.int64)
    choices = np.array([1, 0, 0, 2 + 4 * 5, 1, 1, 0, 2 + 4 * (2**32 - 1)], np.int64)
    assert (
        rounding.pack(positions, choices).hex()
        == "80700a088024e0000000b0180000040000026c4e000001003b9a2dc040000008000003fffffffe"
    )


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(1, 5) | st.integers(1, 10**6) | st.integers(1, 2**39),
            st.integers(0, 1) | st.integers(0, 2**32 - 1).map(lambda z: 2 + 4 * z),
        ),
        max_size=80,
    )
)
def test_decisions_round_trip(decisions: list[tuple[int, int]]) -> None:
    positions = np.cumsum([d[0] for d in decisions], dtype=np.int64) - 1
    choices = np.array([d[1] for d in decisions], np.int64)
    data = np.frombuffer(rounding.pack(positions, choices), np.uint8)
    assert unpack(data) == list(zip(positions.tolist(), choices.tolist(), strict=True))


def unpack(data: np.ndarray) -> list[tuple[int, int]]:
    """All decisions of a row, as a reader comes upon them."""
    state = np.empty(rounding.READER_STATE, np.int64)
    rounding.start(data, state)
    out = []
    while state[1] >= 0:
        out.append((int(state[1]), int(state[2])))
        rounding._next(data, state)
    assert state[1] == -1
    return out


# ---- wrong input and hostile bytes


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("which", [0, 1])
def test_nan_and_infinity(bad: float, which: int) -> None:
    values = [np.zeros((2, 9), np.float32), np.zeros((2, 9), np.float32)]
    values[which][1, 4] = bad
    with pytest.raises(TecError, match=r"NaN or infinite \(row 1, value 4\)") as caught:
        Writer(2, GRID, MARGIN).parameters(*values)
    assert not isinstance(caught.value, StreamError)
    with pytest.raises(StreamError, match=r"NaN or infinite \(row 1, value 4\)"):
        Reader([b"", b""], GRID).parameters(*values)
    if which == 0:
        with pytest.raises(TecError, match="NaN or infinite"):
            Writer(2, GRID, MARGIN).round(values[0])
        with pytest.raises(StreamError, match="NaN or infinite"):
            Reader([b"", b""], GRID).round(values[0])


def test_means_too_large_to_be_exact() -> None:
    fine = np.log(np.full((1, 1), 0.11))
    limit = 2.0**24 / 16
    for mean in (limit, -limit):
        _, mean_hat = Writer(1, GRID, MARGIN).parameters(np.full((1, 1), mean), fine)
        assert mean_hat[0, 0] == mean
    for mean in (limit * 1.001, -1e30, 1e308):
        with pytest.raises(TecError, match="too large to round exactly"):
            Writer(1, GRID, MARGIN).parameters(np.full((1, 1), mean), fine)
        with pytest.raises(StreamError, match="too large to round exactly"):
            Reader([b""], GRID).parameters(np.full((1, 1), mean), fine)
    with pytest.raises(TecError, match="too large to round exactly"):
        Writer(1, GRID, MARGIN).round(np.full((1, 1), 2.0**31))


def test_shapes_and_steps_are_checked() -> None:
    writer = Writer(2, GRID, MARGIN)
    for mean, log_scale in (((3, 4), (3, 4)), ((2, 4), (2, 5)), ((8,), (8,))):
        with pytest.raises(TecError, match="need 2 rows of one length"):
            writer.parameters(np.zeros(mean), np.zeros(log_scale))
    for step in (0.3, 0.0, -1.0, math.nan, math.inf):
        with pytest.raises(TecError, match="power of two"):
            writer.round(np.zeros((2, 4)), step)


def test_read_only_and_strided_input() -> None:
    mean, log_scale = parameters(2, 300)
    want = Writer(2, GRID, MARGIN).parameters(mean, log_scale)
    wide = np.repeat(mean, 2, axis=1)[:, ::2]
    mean.flags.writeable = log_scale.flags.writeable = False
    assert agree(Writer(2, GRID, MARGIN).parameters(mean, log_scale), want)
    assert agree(Writer(2, GRID, MARGIN).parameters(wide, np.asfortranarray(log_scale)), want)


def test_left_over_and_malformed_decisions() -> None:
    mean, log_scale = parameters(1, 20_000)
    writer = Writer(1, GRID, MARGIN)
    writer.parameters(mean, log_scale)
    (data,) = writer.getvalue()
    reader = Reader([data], GRID)
    reader.parameters(mean[:, :100], log_scale[:, :100])
    with pytest.raises(StreamError, match="row 0 are left over"):
        reader.finish()
    for extra in (
        b"\0",
        b"\0\0\0\0\0\0",
    ):  # a whole byte of filling, and more zeros than a code has
        reader = Reader([data + extra], GRID)
        with pytest.raises(StreamError, match="malformed"):
            reader.parameters(mean, log_scale)
    with pytest.raises(StreamError, match="row 1 are malformed"):
        Reader([b"", b"\0"], GRID).finish()


def test_impossible_level_is_refused() -> None:
    data = rounding.pack(np.array([0], np.int64), np.array([2 + 4 * 200], np.int64))  # level 100
    with pytest.raises(StreamError, match=r"does not fit its parameter \(row 0, value 0\)"):
        Reader([data], GRID).parameters(np.zeros((1, 3)), np.zeros((1, 3)))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 2**32 - 1))
def test_random_decisions_give_integers_or_an_error(data: bytes, seed: int) -> None:
    mean, log_scale = parameters(1, 700, seed)
    try:
        reader = Reader([data], GRID)
        index, mean_hat = reader.parameters(mean, log_scale)
        reader.round(mean)
        reader.finish()
    except StreamError:
        return
    assert index.max() < 64
    assert np.isfinite(mean_hat).all()


@settings(deadline=None)
@given(st.data())
def test_damaged_decisions_give_integers_or_an_error(data: st.DataObject) -> None:
    mean, log_scale = parameters(1, 2000)
    writer = Writer(1, GRID, Margin(2.0**-8, 2.0**-10))
    writer.parameters(mean, log_scale)
    damaged = bytearray(writer.getvalue()[0])
    assume(damaged)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    del damaged[data.draw(st.integers(0, len(damaged))) :]
    try:
        reader = Reader([bytes(damaged)], GRID)
        index, _ = reader.parameters(mean, log_scale)
        reader.finish()
    except StreamError:
        return
    assert index.max() < 64
