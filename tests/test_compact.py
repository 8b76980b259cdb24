"""The built-in networks: the lapped transform, who sees what, qualities, and the coding of both."""

from __future__ import annotations

import copy
import math
import zlib
from dataclasses import replace

import numpy as np
import pytest
import tec
import tiny
import torch
import xarray as xr
from data import real_cubes, requires_real
from scenes import scene
from tec import codec, coder, precision, stream, weights
from tec.entropy import portable
from tec.entropy.tables import Tables, scale_tables
from tec.models import elic, tt
from tec.models.coding import Past, drive, gather, scatter
from tec.models.compact import (
    BLOCK,
    STRONG,
    TRUST,
    WRONG,
    CompactConfig,
    CompactElic,
    CompactFactorized,
    Transforms,
    _around,
    asinh,
    interpolate,
    lapped,
    position,
)
from tec.models.compact_tt import CompactTT, CompactTTConfig
from tec.sensors import SENSORS

ALL = SENSORS["S2L2A"].bands
#: Three groups, and more latents than the tiny checkpoints have.
IMAGE = replace(tiny.CONFIG, latents=12, groups=(2, 3, 7))
_SENT = (0, 1, 1, 2, 3, 4, 4, 5, 6, 7, 8, 9, 12, 12, 12, 12, 12)
_LAMBDAS = np.geomspace(0.5, 600, 17).round(3).tolist()
SERIES = replace(tiny.TT_CONFIG, image=IMAGE, qualities=tuple(zip(_LAMBDAS, _SENT)))


def network(model: str, seed: int = 3) -> CompactElic | CompactFactorized | CompactTT:
    return tiny.build(model, seed, IMAGE, SERIES)


def latents(n: int, h: int, w: int, seed: int = 0, size: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return size * torch.randn(n, IMAGE.latents, h, w, generator=generator)


def image(n: int, h: int, w: int, seed: int = 0, bands: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(n, bands, h // 16 + 1, w // 16 + 1, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(h, w), mode="bicubic")
    return smooth + 0.1 * torch.randn(n, bands, h, w, generator=generator)


def trusting() -> CompactTT:
    """A model that expects what was there a date before."""
    model = network("tt")
    assert isinstance(model, CompactTT)
    model.newer[:], model.older[:], model.log_scale[:] = 1, 0, 0
    for group in model.groups:
        group.trust.weight[:], group.trust.bias[:] = 0, 6
    return model


def writer_of(model: torch.nn.Module, n: int) -> portable.Writer:
    return portable.Writer(n, model.grid, model.margin_at(700.0))


@pytest.fixture
def float32_analysis(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where bfloat16 is not quick."""
    monkeypatch.setattr(precision, "quick_bfloat16", lambda device: False)


# the lapped transform


def test_the_lap_is_orthogonal():
    lap = Transforms(tiny.CONFIG).lap.double()
    assert lap.shape == (BLOCK, BLOCK)
    torch.testing.assert_close(lap @ lap.T, torch.eye(BLOCK).double(), rtol=0, atol=1e-6)
    assert (lap - torch.eye(BLOCK)).abs().max() > 0.1
    # The same from both sides: mirroring pixels mirrors what comes out.
    torch.testing.assert_close(lap.flip(0, 1), lap)
    torch.testing.assert_close(lap @ torch.ones(BLOCK).double(), torch.ones(BLOCK).double())


@pytest.mark.parametrize("size", [(16, 16), (16, 64), (48, 16), (48, 80)])
def test_lapped_is_undone_and_keeps_energy(size):
    lap = Transforms(tiny.CONFIG).lap
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    folded = lapped(x, lap)
    assert folded.shape == x.shape
    torch.testing.assert_close(lapped(folded, lap.T), x, rtol=0, atol=1e-5)
    torch.testing.assert_close(folded.square().sum(), x.square().sum(), rtol=1e-5, atol=0)
    # A turned image is folded alike.
    torch.testing.assert_close(lapped(x.mT, lap), folded.mT)


def test_the_outer_edges_stay_as_they_are():
    lap = Transforms(tiny.CONFIG).lap
    x = torch.randn(1, 2, 48, 64)
    folded = lapped(x, lap)
    for rows, columns in ((slice(8), slice(8)), (slice(-8, None), slice(-8, None))):
        assert torch.equal(folded[:, :, rows, columns], x[:, :, rows, columns])
    across = lapped(x[:, :, :16], lap)  # one row of blocks: only columns are folded
    assert torch.equal(across[..., :8], x[:, :, :16, :8])
    assert not torch.equal(across[..., 8:24], x[:, :, :16, 8:24])
    assert torch.equal(lapped(x[..., :16, :16], lap), x[..., :16, :16])


def test_what_a_pixel_reaches_is_its_own_fold():
    """8 pixels each side of an edge between blocks, and nothing else."""
    lap = Transforms(tiny.CONFIG).lap
    for row in (3, 8, 23, 24, 39, 44):
        x = torch.zeros(1, 1, 48, 16)
        x[0, 0, row, 5] = 1
        touched = torch.nonzero(lapped(x, lap)[0, 0].abs() > 1e-7)
        fold = (row + 8) // 16
        if fold in (0, 3):
            assert touched.tolist() == [[row, 5]]
        else:
            assert (touched[:, 1] == 5).all()
            assert touched[:, 0].min() >= 16 * fold - 8
            assert touched[:, 0].max() < 16 * fold + 8
            assert len(touched) > 1


def test_a_lapped_transform_of_full_rank_reconstructs():
    """With nothing beside it, at any rate, however bands are scaled; and it keeps energy."""
    config = replace(tiny.CONFIG, bands=2, latents=2 * BLOCK**2, groups=(2 * BLOCK**2,))
    torch.manual_seed(0)
    transforms = Transforms(config).double()
    with torch.no_grad():
        basis, _ = torch.linalg.qr(torch.randn(config.latents, config.latents).double())
        transforms.klt.weight.copy_(basis.reshape(transforms.klt.weight.shape))
        level = torch.tensor([0.4, -0.7]).double()
        transforms.klt.bias.copy_(-basis @ level.repeat_interleave(BLOCK**2))
        transforms.level.copy_(level)
        transforms.unit.copy_(torch.tensor([0.5, 1.6]))
        transforms.zero.copy_(torch.tensor([0.2, -0.1]))
        transforms.log_gain.copy_(transforms.log_step)
        x = image(2, 48, 64, bands=2).double()
        for rate in ([0.0, 1.3], [2.0, 0.5]):
            y = transforms.encode(x, torch.tensor(rate))
            assert y.shape == (2, config.latents, 3, 4)
            torch.testing.assert_close(
                transforms.decode(y, torch.tensor(rate)), x, rtol=0, atol=1e-5
            )
        shifted = x * transforms.unit[:, None, None] + transforms.zero[:, None, None]
        energy = (shifted - level[:, None, None]).square().sum()
        assert transforms.latent(x).square().sum() == pytest.approx(energy.item(), rel=1e-5)


def test_the_linear_path_is_what_it_says_by_blocks():
    """One block alone has no neighbour to lap with: its latents are the basis times its pixels."""
    transforms = Transforms(tiny.CONFIG)
    x = image(1, 16, 16)
    with torch.no_grad():
        y = transforms.latent(x)  # the analysis beside it starts at zero
        rows = transforms.klt.weight.flatten(1) @ x.flatten() + transforms.klt.bias
        assert (y.flatten() - rows).abs().max() < 1e-4
        wide = transforms.latent(torch.cat([x, image(1, 16, 32, seed=1)], 3))
    assert not torch.allclose(wide[..., :1], y, atol=1e-3)


# rates


def test_positions_and_what_lies_between():
    rates = (0.4, 20.0, 700.0)
    assert [position(rates, r) for r in rates] == [0, 1, 2]
    assert position(rates, math.sqrt(0.4 * 20)) == pytest.approx(0.5)
    assert position(rates, 0.01) == 0
    assert position(rates, 9999) == 2
    table = torch.tensor([[0.0, 4.0], [1.0, 2.0], [5.0, 2.0]])
    found = interpolate(table, torch.tensor([0.0, 0.25, 1.0, 1.5, 2.0]))
    assert found.tolist() == [[0, 4], [0.25, 3.5], [1, 2], [3, 2], [5, 2]]


def test_the_margin_is_that_of_the_next_higher_rate():
    model = network("elic")
    model.margins = tuple(portable.Margin(2.0**-k, 2.0**-20) for k in (14, 13, 12))
    for compression, k in ((0.4, 14), (0.5, 13), (20.0, 13), (20.1, 12), (700.0, 12)):
        assert model.margin_at(compression).absolute == 2.0**-k


# who sees what


def parameters(model: CompactElic | CompactTT, y: torch.Tensor, before=None, rate: float = 1.3):
    """What the passes give, with y as the decoded values: a list of (channels, parity, mean,
    log_scale)."""
    n, _, h, w = y.shape
    position_ = torch.full((n,), rate, dtype=y.dtype)
    told = None if before is None else model.told(before, (n, h, w), position_)
    found = []

    def given(wanted):
        found.append(wanted[:4])
        return gather(y[:, wanted[0]], wanted[1])

    assert torch.equal(drive(model.passes((n, h, w), position_, told), given), y)
    return found


@pytest.mark.parametrize("dates", [None, 0, 1, 2], ids=["elic", "none", "one", "two"])
@torch.no_grad()
def test_a_step_sees_only_what_was_decoded_before(dates):
    """Any value may change what comes later, and nothing else; what is there does change it."""
    model = network("elic" if dates is None else "tt").double()
    before = (
        None if dates is None else [latents(1, 6, 7, seed=9 + i).double() for i in range(dates)]
    )
    y = latents(1, 6, 7).double()
    base = parameters(model, y, before)
    assert [(c.start, c.stop, p) for c, p, _, _ in base] == [
        (start, stop, parity) for start, stop in ((0, 2), (2, 5), (5, 12)) for parity in (0, 1)
    ]
    for _, _, mean, log_scale in base:
        assert mean.std() > 0.05
        assert log_scale.std() > 0.05
    for channel, row, column in ((0, 2, 2), (1, 2, 3), (2, 5, 6), (4, 0, 0), (4, 3, 6), (11, 0, 1)):
        other = y.clone()
        other[0, channel, row, column] += 5
        at = next(
            i
            for i, (c, parity, _, _) in enumerate(base)
            if c.start <= channel < c.stop and parity == (row + column) % 2
        )
        for i, (a, b) in enumerate(zip(base, parameters(model, other, before), strict=True)):
            same = torch.equal(a[2], b[2]) and torch.equal(a[3], b[3])
            # The others of a group do not see each other, later groups see all.
            assert same == (i <= at), (channel, row, column, i)


@torch.no_grad()
def test_others_of_a_group_see_anchors_around_them():
    model = network("elic").double()
    y = latents(1, 9, 9).double()
    base = parameters(model, y)
    other = y.clone()
    other[0, 0, 4, 4] += 5
    found = parameters(model, other)
    moved = scatter((found[1][2] - base[1][2]).abs(), (1, 2, 9, 9), 1).amax((0, 1))
    rows, columns = torch.nonzero(moved, as_tuple=True)
    assert sorted(zip(rows.tolist(), columns.tolist())) == [(3, 4), (4, 3), (4, 5), (5, 4)]


@torch.no_grad()
def test_a_date_is_told_of_both_dates_before():
    model = network("tt").double()
    y, first, second = (latents(1, 5, 6, seed=s).double() for s in range(3))
    means = {}
    for name, before in {
        "none": [],
        "one": [second],
        "both": [first, second],
        "swapped": [second, first],
        "other": [first + 1, second],
    }.items():
        means[name] = parameters(model, y, before)[-1][2]
    names = list(means)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            assert (means[a] - means[b]).abs().max() > 1e-3, (a, b)


@torch.no_grad()
def test_a_prediction_is_taken_where_it_is_trusted():
    """At its start, a group takes so much of the linear prediction."""
    config = replace(SERIES, width=4, depth=1, side=2)
    model = CompactTT(config).double().eval()
    model.newer.normal_()
    model.older.normal_()
    first, second = (latents(2, 4, 4, seed=s).double() for s in range(2))
    rate = torch.tensor([1.0, 2.0], dtype=torch.float64)
    told = model.told([first, second], (2, 4, 4), rate)
    near = torch.stack([
        model.newer[1, k][:, None, None] * second[i] + model.older[k][:, None, None] * first[i]
        for i, k in enumerate((1, 2))
    ])  # fmt: skip
    torch.testing.assert_close(sum(told.predictions), near)
    passes = model.passes((2, 4, 4), rate, told)
    channels, parity, mean, log_scale, terms = next(passes)
    trusted = torch.sigmoid(torch.tensor(TRUST)).item() * near[:, channels]
    torch.testing.assert_close(mean, gather(trusted, parity))
    torch.testing.assert_close(sum(terms), trusted)
    step = interpolate(model.transforms.log_step, rate)[:, channels]
    torch.testing.assert_close(log_scale, gather((-step)[..., None, None].expand(2, 2, 4, 4), 0))
    alone = model.told([second], (2, 4, 4), rate)
    assert (alone.predictions[1] == 0).all()
    want = torch.stack([model.newer[0, k][:, None, None] * second[i] for i, k in ((0, 1), (1, 2))])
    torch.testing.assert_close(alone.predictions[0], want)


# coding


def decoded(model, rows, told, shape, compression, sent, forecast="mean"):
    with torch.inference_mode():
        found = list(coder.decode_series(model, rows, told, shape, compression, sent, forecast))
    return [y_hat for y_hat, _ in found]


def coded_and_decoded(model, ys, compression, sent, forecast="mean"):
    with torch.inference_mode():
        rows, told = coder.encode_series(model, ys, compression, sent, forecast)
        return rows, told, decoded(model, rows, told, ys[0].shape[2:], compression, sent, forecast)


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("size", [(1, 1), (1, 4), (5, 3)])
def test_a_first_date_has_none_before_it(n, size):
    model = network("tt")
    y = latents(n, *size)
    history = model.history((n, *size))
    assert len(history) == 0
    rows, told, (y_hat,) = coded_and_decoded(model, [y], [20.0], [16])
    assert told == [(0,)] * n
    assert len(rows) == n
    assert (y_hat - y).abs().max() <= 0.5 + 1e-5
    rate = torch.full((n,), 1.0)
    features = model.told([], (n, *size), rate)
    assert features.features.shape == (n, SERIES.side, *size)
    assert all((part == 0).all() for part in features.predictions)


def leaning() -> tuple[CompactTT, CompactElic]:
    """A ``tt`` that leans on an ``elic``, and another of the same weights that stands alone."""
    model, elic, other = trusting(), network("elic", 8), network("elic", 8)
    assert isinstance(elic, CompactElic)
    assert isinstance(other, CompactElic)
    elic.tables = scale_tables("laplace", elic.grid.scales)
    other.tables, other.transforms = elic.tables, model.transforms
    elic.margins = other.margins = (portable.Margin(2.0**-20, 2.0**-22),) * len(IMAGE.rates)
    model.lean_on(elic)
    return model, other


def test_dates_that_are_told_nothing_go_to_elic():
    """To the byte; and those that are told of others do not."""
    model, elic = leaning()
    ys = [latents(2, 5, 6, seed=s, size=12.0) for s in range(3)]
    ys[1] = ys[0] + 0.3
    rows, told, back = coded_and_decoded(model, ys, [20.0] * 3, [16] * 3)
    assert told == [(0, 1, 0)] * 2
    for t in (0, 2):
        with torch.inference_mode():
            alone = coder.encode_images(elic, ys[t], 20.0)
        assert [row[t] for row in rows] == alone.dates
        assert torch.equal(back[t], alone.y_hat)
    standing = trusting()
    own, _, _ = coded_and_decoded(standing, ys[:2], [20.0] * 2, [16] * 2)
    assert [row[0] for row in own] != [row[0] for row in rows]
    assert model.margin_at(20.0) == standing.margin_at(20.0)
    assert model.margin_at(20.0, 0) == elic.margin_at(20.0)


def test_elic_of_another_size_is_no_help():
    model, elic = trusting(), network("elic")
    elic.config = replace(IMAGE, rates=(0.4, 30.0, 700.0))
    with pytest.raises(tec.WeightsError, match="other sizes or rates"):
        model.lean_on(elic)


def test_three_equal_one_by_one():
    """What was coded in a batch decodes alone to the same latents, and the other way round."""
    model = trusting()
    ys = [latents(3, 4, 6, seed=s, size=12.0) for s in range(4)]
    ys[1][0] = ys[0][0] + 0.3
    ys[2][:2] = ys[1][:2] + 0.2
    ys[3][2] = ys[2][2] - 0.4
    compression, sent = [20.0] * 4, [16] * 4
    rows, told, together = coded_and_decoded(model, ys, compression, sent)
    assert told == [(0, 1, 2, 0), (0, 0, 2, 0), (0, 0, 0, 2)]  # in one batch
    for y, y_hat in zip(ys, together):
        assert (y_hat - y).abs().max() <= 0.5 + 1e-5
    for i in range(3):
        alone = decoded(model, rows[i : i + 1], told[i : i + 1], (4, 6), compression, sent)
        assert all(torch.equal(a[0], b[i]) for a, b in zip(alone, together, strict=True))
    mine = [
        coder.encode_series(model, [y[i : i + 1] for y in ys], compression, sent, "mean")
        for i in range(3)
    ]
    rows, told = [row for (row,), _ in mine], [way for _, (way,) in mine]
    for y, y_hat in zip(ys, decoded(model, rows, told, (4, 6), compression, sent)):
        assert (y_hat - y).abs().max() <= 0.5 + 1e-5  # checksums are met, too


def test_elic_and_fp_equal_one_by_one():
    for model in (network("elic"), network("fp")):
        y = latents(3, 5, 6)
        coded = coder.encode_images(model, y, 20.0)
        together = coder.decode_images(model, coded.dates, (5, 6), 20.0)
        assert torch.equal(together, coded.y_hat)
        assert (together - y).abs().max() <= 0.5 + 1e-5
        for i, date in enumerate(coded.dates):
            alone = coder.decode_images(model, [date], (5, 6), 20.0)
            assert torch.equal(alone[0], together[i])
        assert len({date.payload for date in coded.dates}) == 3


@pytest.mark.parametrize("model", ["elic", "tt"])
def test_groups_that_are_zero_are_left_out(model, monkeypatch):
    """Each image leaves out its own, whatever it shares a batch with, and is coded in less."""
    net = network(model)
    y = latents(5, 5, 6)
    for i, k in enumerate((0, 1, 2, 3, 0)):
        y[i, sum(IMAGE.groups[: 3 - k]) :] *= 0.49 / y[i].abs().max()
    y[4, 5:] = 0.4
    y[4, -1, 2, 3] = 0.51  # of a whole group one latent
    assert net.skippable(y) == [0, 1, 2, 3, 0]
    seen = []
    passes = type(net).passes

    def watch(self, shape, rate, told=None, skipped=0):
        seen.append((shape[0], skipped))
        return passes(self, shape, rate, told, skipped)

    monkeypatch.setattr(type(net), "passes", watch)

    def decode(dates):
        if model == "tt":
            return decoded(net, [[d] for d in dates], [(0,)] * len(dates), (5, 6), [20.0], [16])[0]
        with torch.inference_mode():
            return coder.decode_images(net, dates, (5, 6), 20.0)

    def run(y):
        if model == "tt":
            rows, _ = coder.encode_series(net, [y], [20.0], [16], "mean")
            dates = [row[0] for row in rows]
        else:
            with torch.inference_mode():
                dates = coder.encode_images(net, y, 20.0).dates
        return dates, decode(dates)

    dates, y_hat = run(y)
    assert [date.skipped for date in dates] == [0, 1, 2, 3, 0]
    assert seen == 2 * [(2, 0), (1, 1), (1, 2), (1, 3)]  # no more is evaluated
    assert (y_hat - y).abs().max() <= 0.5 + 1e-5
    for i, k in enumerate((0, 1, 2, 3, 0)):
        assert not y_hat[i, sum(IMAGE.groups[: 3 - k]) :].any()
        (alone,), back = run(y[i : i + 1])
        assert alone == dates[i]
        assert torch.equal(back[0], y_hat[i])
    assert dates[3].payload == b""
    with pytest.raises(tec.StreamError, match=r"4 channel groups are left out.*has 3"):
        decode([replace(dates[0], skipped=4)])
    with pytest.raises(tec.StreamError):  # other groups than were coded
        decode([replace(dates[0], skipped=1)])


def test_dates_of_a_series_leave_out_their_own_groups():
    model = trusting()
    ys = [latents(2, 4, 4, seed=s) for s in range(4)]
    ys[1][0, 2:] *= 0.04
    ys[2][:, 5:] *= 0.04
    rows, _, found = coded_and_decoded(model, ys, [20.0] * 4, [16] * 4)
    assert [[date.skipped for date in row] for row in rows] == [[0, 2, 1, 0], [0, 0, 1, 0]]
    for y, y_hat in zip(ys, found):
        assert (y - y_hat).abs().max() <= 0.5 + 1e-5
    # What is not sent is predicted: nothing may be left out for being small.
    rows, _, _ = coded_and_decoded(model, ys, [20.0] * 4, [9] * 4)
    assert not any(date.skipped for row in rows for date in row)


def test_networks_without_groups_leave_out_none():
    for model in (network("fp"), tt.TT(tiny.PUBLISHED), elic.Elic(elic.ElicConfig())):
        assert not hasattr(model, "skippable")
    fp = network("fp")
    with torch.inference_mode():
        (date,) = coder.encode_images(fp, 0.1 * latents(1, 4, 4), 20.0).dates
        assert date.skipped == 0
        with pytest.raises(tec.StreamError, match=r"1 channel groups are left out.*has 0"):
            coder.decode_images(fp, [replace(date, skipped=1)], (4, 4), 20.0)


# the same, quicker


def test_asinh_is_torchs():
    x = torch.cat([torch.randn(1000) * size for size in (1e-20, 1e-6, 1e-3, 1.0, 1e3, 2.0**24)])
    x = torch.cat([x, torch.tensor([0.0, -0.0])])
    torch.testing.assert_close(asinh(x), torch.asinh(x.double()).float(), rtol=5e-7, atol=0)
    assert torch.equal(torch.signbit(asinh(x)), torch.signbit(x))


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (6, 1), (7, 8)])
def test_the_largest_around_is_what_pooling_finds(size):
    x = torch.rand(2, 3, *size)
    assert torch.equal(_around(x), torch.nn.functional.max_pool2d(x, 3, 1, 1))


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (5, 1), (4, 6), (5, 8), (3, 7)])
def test_a_colour_of_the_checkerboard(size):
    h, w = size
    x = torch.randn(2, 3, h, w)
    black = (torch.arange(h)[:, None] + torch.arange(w)) % 2
    for layout in (x, x.contiguous(memory_format=torch.channels_last)):
        assert torch.equal(gather(layout, None), x.flatten(1))
        for parity in (0, 1):
            values = gather(layout, parity)
            assert torch.equal(values, x[:, :, black == parity].flatten(1))
            back = scatter(values, (2, 3, h, w), parity)
            assert torch.equal(back, torch.where(black == parity, x, torch.zeros(())))


def test_latents_that_are_zero_take_no_part_in_the_synthesis():
    """With gradients, all do."""
    model = tiny.build("elic", 3, replace(tiny.CONFIG, latents=200, groups=(70, 130)), SERIES)
    y_hat = torch.zeros(2, 200, 3, 4)
    y_hat[1, :65] = latents(1, 3, 4)[0, :1].round()
    for count, used in ((200, 128), (130, 128), (64, 64), (0, 64)):
        y_hat[:, count:] = 0
        with torch.inference_mode():
            assert model.transforms._used(y_hat) == used
            part = model.synthesis(y_hat, 20.0)
        assert model.transforms._used(y_hat) == 200
        torch.testing.assert_close(
            part, model.synthesis(y_hat, 20.0).detach(), rtol=1e-5, atol=1e-5
        )


def test_bfloat16_is_for_the_analysis_of_the_convolutional_path(monkeypatch):
    model = network("elic")
    x = image(1, 64, 96)

    def outcome(quick: bool) -> torch.Tensor:
        monkeypatch.setattr(precision, "quick_bfloat16", lambda device: quick)
        with coder.exactly(model):
            return model.analysis(x, 20.0)

    exact, quick = outcome(False), outcome(True)
    assert quick.dtype == torch.float32
    assert not torch.equal(exact, quick)
    assert (exact - quick).abs().max() < 0.01 * exact.abs().max()
    with coder.exactly(model):  # of doubles there is nothing to gain
        double = copy.deepcopy(model).double()
        assert double.analysis(x.double(), 20.0).dtype == torch.float64
        # The linear path of strong latents alone is exact.
        model.transforms.analysis[-1].weight.zero_()
        model.transforms.analysis[-1].bias.zero_()
    assert torch.equal(outcome(False), outcome(True))


def test_weak_latents_lose_nothing_to_the_level_of_a_bright_block(monkeypatch):
    """bfloat16 has 8 bits: of snow at 10 standard deviations they would leave steps of 1/16."""
    config = replace(tiny.CONFIG, latents=STRONG + 32, groups=(STRONG, 32))
    model = tiny.build("elic", 3, config)
    x = 0.05 * image(1, 64, 96)
    errors = []
    for level in (0.0, 10.0):
        with coder.exactly(model):
            exact, quick = (model.transforms._linear(x + level, q) for q in (False, True))
        assert torch.equal(exact[:, :STRONG], quick[:, :STRONG])
        assert not torch.equal(exact[:, STRONG:], quick[:, STRONG:])
        errors.append((exact - quick).abs().max().item())
    assert errors[1] < 1.5 * errors[0] < 0.01 * exact[:, STRONG:].std().item()


def test_bfloat16_that_is_wrong_here_is_found_out(monkeypatch):
    """As a kernel of oneDNN was on processors with AMX: files 10 dB worse, and no error."""
    model = network("elic")
    x = image(2, 64, 96)
    monkeypatch.setattr(precision, "quick_bfloat16", lambda device: False)
    with coder.exactly(model):
        exact = model.analysis(x, 20.0)
    right, tried = Transforms._parts, []

    def wrong(self, x, quick):
        tried.append((quick, tuple(x.shape)))
        return tuple(part * (1.1 if quick else 1.0) for part in right(self, x, quick))

    monkeypatch.setattr(precision, "quick_bfloat16", lambda device: True)
    with coder.exactly(model):
        assert model.transforms.error(x) < WRONG / 3
        assert model._is_quick(x)  # once for each size
        monkeypatch.setattr(Transforms, "_parts", wrong)
        assert model._is_quick(x)
        assert not tried
        model._right.clear()
        with pytest.warns(UserWarning, match="wrong on this cpu .by 10%.*report it"):
            found = model.analysis(x, 20.0)
        again = model.analysis(x, 20.0)
        # Of images of one latent's width nobody asks: oneDNN reads what nobody has written.
        assert not model._is_quick(image(2, 64, 16))
    assert torch.equal(found, exact)
    assert torch.equal(again, exact)
    size = tuple(x.shape)
    assert tried == [(False, (1, *size[1:])), (True, (1, *size[1:])), (False, size), (False, size)]


def test_an_error_in_either_part_of_the_analysis_is_found(monkeypatch):
    model, x = network("elic"), image(1, 64, 96)
    parts = Transforms._parts
    with coder.exactly(model):
        assert 0 < model.transforms.error(x) < WRONG / 3
        for factors, error in (((1.0, 1.1), 0.1), ((1.1, 1.0), 0.1), ((1.0, math.nan), math.inf)):

            def wrong(self, x, quick, factors=factors):
                found = parts(self, x, quick)
                return tuple(a * f for a, f in zip(found, factors)) if quick else found

            monkeypatch.setattr(Transforms, "_parts", wrong)
            found = model.transforms.error(x)
            assert abs(found - error) < 0.01 or (math.isnan(found) and error == math.inf)
            assert not found < WRONG


@requires_real
@pytest.mark.parametrize("model", ["elic", "fp"])
def test_bfloat16_in_the_analysis_costs_nothing(model, monkeypatch):
    """Built-in weights: bytes within 0.2 %, error within 0.02 dB, over places and rates."""
    places = []
    for path in real_cubes("val/l2a_ssl4eos12v11_*.zarr"):
        cube = xr.open_zarr(path, consolidated=False).reflectance[:1, :, :128, :128]
        places.append((cube.values, [str(b) for b in cube.band.values], cube.attrs["offset"]))
    for compression in (1.0, 700.0):

        def outcome(quick: bool, compression: float = compression) -> tuple[int, float]:
            monkeypatch.setattr(precision, "quick_bfloat16", lambda device: quick)
            size, errors = 0, []
            for dn, bands, offset in places:
                config = tec.CodecConfig(
                    model=model, compression=compression, bands=bands, offset=float(offset)
                )
                data = codec.encode(dn, config)
                size += len(data)
                errors.append(np.mean((codec.decode(data).astype(float) - dn) ** 2))
            return size, 10 * np.log10(errors).mean()

        (size, error), (quick_size, quick_error) = outcome(False), outcome(True)
        assert abs(quick_size / size - 1) < 0.002
        assert abs(quick_error - error) < 0.02


def test_later_dates_do_not_change_earlier_ones():
    model = network("tt")
    ys = [latents(2, 3, 4, seed=s) for s in range(4)]
    compression, sent = [20.0] * 4, [16] * 4
    rows, told = coder.encode_series(model, ys, compression, sent, "mean")
    changed, ways = coder.encode_series(
        model, [*ys[:2], ys[2] + 3, ys[3]], compression, sent, "mean"
    )
    for a, b, way, other in zip(rows, changed, told, ways):
        assert a[:2] == b[:2]
        assert a[2:] != b[2:]
        assert way[:2] == other[:2]
    # The first dates decode from their own bytes.
    part = decoded(model, [row[:2] for row in rows], told, (3, 4), compression[:2], sent[:2])
    whole = decoded(model, rows, told, (3, 4), compression, sent)
    assert all(torch.equal(a, b) for a, b in zip(part, whole))


def test_dates_that_are_alike_are_told_of_each_other_and_cost_less():
    model = trusting()
    y = latents(1, 8, 8, size=12.0)
    ys = [y, y + 0.3, y - 0.2, latents(1, 8, 8, seed=5, size=12.0)]
    rows, told, found = coded_and_decoded(model, ys, [20.0] * 4, [16] * 4)
    assert told == [(0, 1, 2, 0)]  # nothing to learn of the last one
    sizes = [date.nbytes for date in rows[0]]
    assert max(sizes[1:3]) < 0.9 * min(sizes[0], sizes[3])
    for a, b in zip(ys, found):
        assert (a - b).abs().max() <= 0.5 + 1e-5


def test_another_number_of_dates_than_was_told_is_an_error():
    model = network("tt")
    ys = [latents(1, 4, 4, seed=s) for s in range(3)]
    rows, told = coder.encode_series(model, ys, [20.0] * 3, [16] * 3, "mean")
    assert told == [(0, *told[0][1:])]
    for wrong in (1, 2):
        ways = [(wrong, *told[0][1:])]
        with pytest.raises(tec.StreamError, match="date 0"):
            decoded(model, rows, ways, (4, 4), [20.0] * 3, [16] * 3)


def test_forward_estimates_what_coding_costs(float32_analysis):
    """Of values drawn as the tables say; and it reconstructs what coding does, to half a step."""
    model = network("tt")
    x = torch.stack([image(2, 64, 96, seed=s) for s in range(3)], 1)
    with torch.inference_mode():
        out = model(x, 60.0)
        ys = [model.analysis(x[:, t], 60.0) for t in range(3)]
        for t, y in enumerate(ys):
            torch.testing.assert_close(y, out["y"][:, t])
        assert out["x_hat"].shape == x.shape
        assert (out["y_hat"] - out["y"]).abs().max() <= 0.5 + 1e-4
        assert out["bits"].shape == (2, 3)
        history = model.history((2, 4, 6))
        for t, y in enumerate(ys):
            step = out["y_hat"][:, t]
            taken = coder.Taken({"y": y})
            y_hat = drive(model.date(history, writer_of(model, 2), compression=60.0), taken).y_hat
            assert (y_hat - step).abs().max() <= 1.0
            symbols = np.concatenate(taken._symbols, 1)
            index = np.concatenate(taken._index, 1)
            bits = model.tables.bits(index, symbols).sum() / 2
            assert bits == pytest.approx(out["bits"][:, t].mean().item(), rel=0.15)
            history.push(y_hat, model.remembered(y_hat, 60.0))


def test_elic_and_fp_decode_what_forward_reconstructs(float32_analysis):
    for model in (network("elic"), network("fp")):
        x = image(2, 64, 96)
        with torch.inference_mode():
            out = model(x, torch.full((2,), position(IMAGE.rates, 60.0)))
            y = model.analysis(x, 60.0)
            torch.testing.assert_close(out["y"], y)
            coded = coder.encode_images(model, y, 60.0)
            back = model.synthesis(coded.y_hat, 60.0)
        assert (out["y_hat"] - coded.y_hat).abs().max() <= 1.0
        assert (back - out["x_hat"]).abs().mean() < 0.5 * x.std()


# qualities


def test_more_tokens_never_send_fewer_channels():
    for config in (SERIES, tiny.TT_CONFIG):
        channels = [n for _, n in config.qualities]
        assert channels == sorted(channels)
        assert channels[0] == 0
        assert channels[-1] == config.image.latents
    again = CompactTTConfig.from_dict(
        {"image": {"latents": 4, "groups": [4]}, "qualities": [[1, 2.0], [3.5, 4]]}
    )
    assert again.qualities == ((1.0, 2), (3.5, 4))
    assert again.image == CompactConfig(latents=4, groups=(4,))


@pytest.mark.parametrize("forecast", ["mean", "sample"])
@pytest.mark.parametrize("sent", range(0, 17, 2))
def test_a_quality_sends_its_channels(sent, forecast):
    """What is sent is decoded to half a step; the rest is what is predicted."""
    model = network("flex")
    lmbda, channels = SERIES.qualities[sent]
    assert model.compression(sent, 20.0) == lmbda
    history = model.history((2, 5, 4))
    history.push(latents(2, 5, 4, seed=7))
    y = latents(2, 5, 4)
    taken = coder.Taken({"y": y})
    steps = model.date(
        history, writer_of(model, 2), compression=lmbda, sent=sent, forecast=forecast
    )
    y_hat = drive(steps, taken).y_hat
    asked = sum(symbols.shape[1] for symbols in taken._symbols)
    assert asked == channels * 5 * 4
    error = (y_hat - y).abs()
    assert error[:, :channels].max() <= 0.5 + 1e-5 if channels else True
    assert (error[:, channels:].amax((0, 2, 3)) > 0.6).all()


def test_quality_0_sends_nothing_and_decodes():
    model = network("flex")
    ys = [latents(2, 4, 5, seed=s) for s in range(3)]
    sent = [16, 0, 0]
    compression = [model.compression(k, 20.0) for k in sent]
    for forecast in ("mean", "sample"):
        rows, _, found = coded_and_decoded(model, ys, compression, sent, forecast)
        for row in rows:
            assert len(row[0].payload) > 20
            assert [date.payload for date in row[1:]] == [b"", b""]
        assert not torch.equal(found[1], found[2])
    rows, told, found = coded_and_decoded(model, ys[:1], compression[1:2], [0])
    assert told == [(0,), (0,)]
    assert [row[0].payload for row in rows] == [b"", b""]
    assert found[0].abs().max() > 0


def test_rates_of_dates_may_differ():
    """A date is told of others in its own steps, whatever λ they were coded with."""
    model = network("flex")
    ys = [latents(1, 4, 5, seed=s) for s in range(3)]
    sent = [16, 5, 11]
    compression = [model.compression(k, 20.0) for k in sent]
    assert len(set(compression)) == 3
    rows, told, found = coded_and_decoded(model, ys, compression, sent)
    for y, y_hat, k in zip(ys, found, sent):
        channels = SERIES.qualities[k][1]
        assert (y_hat - y)[:, :channels].abs().max() <= 0.5 + 1e-5
    y_hat = model.remembered(found[0], compression[0])
    step = torch.exp(
        interpolate(
            model.transforms.log_step, torch.tensor([position(IMAGE.rates, compression[0])])
        )
    )
    torch.testing.assert_close(y_hat, found[0] * step[..., None, None])
    assert told[0][0] == 0
    assert rows[0][1].nbytes < rows[0][0].nbytes


def forecasts(model, past: list[torch.Tensor], sent: int, forecast: str) -> torch.Tensor:
    n, _, h, w = past[0].shape
    history = Past((n, h, w))
    for y in past:
        history.push(y)
    steps = model.date(
        history,
        writer_of(model, n),
        compression=model.compression(sent, 20.0),
        sent=sent,
        forecast=forecast,
    )
    values = {"y": latents(1, h, w).expand(n, -1, -1, -1)}
    with torch.inference_mode():
        return drive(steps, coder.Taken(values)).y_hat


def test_samples_depend_on_the_date_before_alone():
    """Not on the batch, nor on the order in it."""
    model = network("flex")
    past = [latents(2, 4, 5, seed=s) for s in (1, 2)]
    drawn = forecasts(model, past, 5, "sample")
    assert torch.equal(drawn, forecasts(model, past, 5, "sample"))
    assert not torch.equal(drawn, forecasts(model, past, 5, "mean"))
    turned = forecasts(model, [y.flip(0) for y in past], 5, "sample")
    torch.testing.assert_close(turned.flip(0), drawn, rtol=0, atol=0)
    other = forecasts(model, [past[0], past[1] + 1e-3], 5, "sample")
    assert not torch.equal(drawn, other)
    _, channels = SERIES.qualities[5]
    mean = forecasts(model, past, 5, "mean")
    sent = torch.equal(mean[:, :channels], drawn[:, :channels])
    assert sent or (mean - drawn)[:, :channels].abs().max() < 1


def test_numbers_that_samples_are_drawn_with(monkeypatch):
    """They belong to the stream format: Philox 4x64, keyed by the checksum of the date before."""
    model = network("flex")
    numbers: list[np.ndarray] = []
    draw = Tables.draw

    def noted(tables, index, random):
        numbers.append(random)
        return draw(tables, index, random)

    monkeypatch.setattr(Tables, "draw", noted)
    ys = [latents(2, 4, 5, seed=s) for s in range(4)]
    sent = [0, 16, 5, 0]
    compression = [model.compression(k, 20.0) for k in sent]
    with torch.inference_mode():
        rows, _ = coder.encode_series(model, ys, compression, sent, "sample")
    drawn = np.concatenate(numbers, 1).astype(np.int64)
    unsent = [(IMAGE.latents - SERIES.qualities[k][1]) * 20 for k in sent]
    assert unsent[1] == 0 < unsent[2] < unsent[0]
    for row, found in zip(rows, drawn):
        keys = [0, *(date.checksum for date in row[:-1])]  # 0 is the CRC-32 of nothing
        wanted = [np.random.Philox(key=key).random_raw(k) >> 48 for key, k in zip(keys, unsent)]
        np.testing.assert_array_equal(found, np.concatenate(wanted).astype(np.int64))


def test_samples_follow_the_tables(monkeypatch):
    model = network("flex")
    model.log_scale[:] = torch.linspace(0, 4, IMAGE.latents)
    seen = []
    draw = Tables.draw

    def noted(tables, index, random):
        drawn = draw(tables, index, random)
        seen.append((index, random, drawn))
        return drawn

    monkeypatch.setattr(Tables, "draw", noted)
    past = [latents(1, 30, 40, seed=1)]
    forecasts(model, past, 0, "sample")
    index, random, drawn = (np.concatenate(parts, 1) for parts in zip(*seen))
    assert index.shape == (1, IMAGE.latents * 30 * 40)
    assert random.max() < 2**16
    assert len(np.unique(random)) > 10000
    checked = 0
    for level in np.unique(index):
        mine = drawn[index == level]
        cdf = model.tables.cdf[model.tables.offsets[level] : model.tables.offsets[level + 1]]
        law = np.diff(cdf)[:-1] / 65536
        if len(mine) * (1 - law.max()) < 200:  # too few to say
            continue
        checked += 1
        symbols = model.tables.lowest[level] + np.arange(len(law))
        mean = law @ symbols
        deviation = math.sqrt(law @ (symbols - mean) ** 2)
        assert abs(mine.mean() - mean) < 5 * deviation / math.sqrt(len(mine))
        assert mine.std() == pytest.approx(deviation, rel=0.15)
    assert checked > 3


def test_samples_are_the_same_in_other_precision():
    """Numbers come from what the latents are to the bit, never from floats that machines compute.

    ``remembered`` multiplies by exp(...), whose last bits differ.
    """
    model = network("flex")
    double = copy.deepcopy(model).double()
    double.tables, double.margins = model.tables, model.margins
    ys = [latents(2, 4, 5, seed=s) for s in range(4)]
    sent = [16, 9, 3, 0]
    compression = [model.compression(k, 20.0) for k in sent]
    for forecast in ("mean", "sample"):
        rows, told, found = coded_and_decoded(model, ys, compression, sent, forecast)
        again = decoded(double, rows, told, (4, 5), compression, sent, forecast)
        assert again[0].dtype == torch.float64
        assert all(torch.equal(a.float(), b) for a, b in zip(again, found, strict=True))


def test_samples_are_the_same_where_exp_differs(monkeypatch):
    """A machine whose ``exp`` is one bit off reads the same stream."""
    model = network("flex")
    ys = [latents(1, 4, 5, seed=s) for s in range(3)]
    sent = [16, 3, 0]
    compression = [model.compression(k, 20.0) for k in sent]
    rows, told, found = coded_and_decoded(model, ys, compression, sent, "sample")
    plain = CompactTT._step
    monkeypatch.setattr(CompactTT, "_step", lambda self, rate: plain(self, rate) * (1 + 2.0**-23))
    again = decoded(model, rows, told, (4, 5), compression, sent, "sample")
    assert all(torch.equal(a, b) for a, b in zip(again, found, strict=True))


# through the codec


@pytest.fixture
def tt_file(tiny_checkpoints) -> str:
    return str(tiny_checkpoints["tt"])


def series(dates: int, seed: int = 5) -> np.ndarray:
    return scene(1, 12, 70, 50, seed=seed) + scene(dates, 12, 70, 50, seed=seed + 1) // 40


@pytest.mark.parametrize("forecast", ["mean", "sample"])
def test_dates_of_a_chunk_may_have_their_own_quality(tt_file, forecast):
    quality = (16, 5, 0, 12)
    config = tec.CodecConfig(
        model="flex", weights=tt_file, quality=quality, forecast=forecast, bands=ALL
    )
    chunk = series(5)
    data = codec.encode(chunk, config)
    header, _, dates, _ = stream.unpack(data)
    assert header.how == (16, 5, 0, 12, 12)
    assert header.model == "flex"
    assert dates[2].payload == b""
    sizes = [len(date.payload) for date in dates]
    assert sizes[0] > sizes[1] > sizes[2]
    whole = codec.decode(data, weights=tt_file)
    assert whole.shape == chunk.shape
    part = codec.decode(data, dates=3, weights=tt_file)
    assert np.abs(part.astype(int) - whole[:3]).max() <= 1
    kept = codec.latents(data, weights=tt_file)
    assert [zlib.crc32(y.astype("<f4").tobytes()) for y in kept] == [d.checksum for d in dates]
    other = codec.encode(series(5, seed=8), config)
    for back, alone in zip(
        codec.decode_many([data, other], weights=tt_file),
        (whole, codec.decode(other, weights=tt_file)),
    ):
        assert np.abs(back.astype(int) - alone).max() <= 1


def test_lower_qualities_are_smaller(tt_file):
    chunk = series(3)
    sizes = []
    for quality in (0, 3, 8, 16):
        config = tec.CodecConfig(model="flex", weights=tt_file, quality=quality, bands=ALL)
        dates = stream.unpack(codec.encode(chunk, config)).dates
        sizes.append(sum(len(date.payload) for date in dates))
    assert sizes == sorted(sizes)
    assert len(set(sizes)) == 4
    assert sizes[0] == 0


def test_compression_says_nothing_of_flex(tt_file):
    """The rate is that of each date's quality."""
    chunk = series(2)
    streams = []
    for compression in (0.4, 700.0):
        config = tec.CodecConfig(
            model="flex", weights=tt_file, quality=(16, 7), compression=compression, bands=ALL
        )
        streams.append(stream.unpack(codec.encode(chunk, config)))
    assert streams[0][2] == streams[1][2]
    assert streams[0][0].margin == streams[1][0].margin


def test_tt_and_flex_are_one_file(tt_file):
    tt, flex = (weights.load(model, weights=tt_file, device="cpu") for model in ("tt", "flex"))
    assert tt.sha256 == flex.sha256
    assert (tt.repacked, flex.repacked) == (False, True)
    for a, b in zip(tt.parameters(), flex.parameters(), strict=True):
        assert torch.equal(a, b)
    best = codec.encode(
        series(1), tec.CodecConfig(model="flex", weights=tt_file, quality=16, bands=ALL)
    )
    lmbda, channels = tiny.QUALITIES[16]
    assert channels == tiny.CONFIG.latents
    same = codec.encode(
        series(1), tec.CodecConfig(model="tt", weights=tt_file, compression=lmbda, bands=ALL)
    )
    a, b = (codec.latents(data, weights=tt_file) for data in (best, same))
    if tec.peek(same).model == "tt":  # where elic is not built in
        np.testing.assert_array_equal(a, b)
