"""Coding a date from the dates before it: cutting, order, and that all ways are the same."""

from __future__ import annotations

import copy
import math
import zlib
from typing import NamedTuple
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tec.entropy import portable, rans
from tec.entropy.integers import GRID, IntegerCoding
from tec.entropy.tables import Tables, shipped
from tec.errors import TecError
from tec.models import temporal
from tec.models.temporal import History, Prediction, TemporalPrior, Unrolling, date_steps
from tec.models.tokens import TOKENS, Layout, from_blocks, to_blocks, windows
from tec.models.transformer import Attention, KeysValues
from tec.models.tt import RASTER, TT, TTConfig, repack
from torch.nn.attention import SDPBackend, sdpa_kernel

KINDS = ("tt", "flex")
MARGIN = portable.Margin(2.0**-13, 2.0**-15)
#: Two by two interleaved grids of a block: a layout of several groups and several phases.
PHASES = tuple(
    tuple(4 * row + column for row in (r, r + 2) for column in (c, c + 2))
    for r, c in ((0, 0), (1, 1), (0, 1), (1, 0))
)
LAYOUTS = {
    "raster": Layout((24,), RASTER),
    "repacked": Layout((4,) * 16, (tuple(range(16)),)),
    "mixed": Layout((1, 2, 4, 9), PHASES),
}


def small_tt(kind: str) -> TT:
    """A tiny model of the published architecture whose means, scales and attention vary."""
    torch.manual_seed(3)
    config = TTConfig(
        bands=3,
        channels=(4, 6, 8, 64),
        width=96,
        heads=2,
        expansion=2,
        layers=(1, 1, 3),
        repacked=kind == "flex",
    )
    model = TT(config)
    stir(model.prior)
    return model.eval()


def small(kind: str) -> TemporalPrior:
    """A tiny entropy model of 64 latents."""
    return small_tt(kind).prior


@torch.no_grad()
def stir(prior: TemporalPrior) -> None:
    for name, value in prior.named_parameters():
        if name.endswith("weight") and value.dim() == 2:
            gain = 0.5 if "head" in name else 1.5
            value.copy_(torch.randn_like(value) * gain / math.sqrt(value.shape[1]))
        else:
            value.add_(torch.randn_like(value) * 0.2)


def latents(prior: TemporalPrior, n: int, h: int, w: int, seed: int = 0) -> torch.Tensor:
    """Integers."""
    generator = torch.Generator().manual_seed(seed)
    channels = sum(prior.layout.groups)
    return torch.round(4 * torch.randn(n, channels, h, w, generator=generator))


def history(
    prior: TemporalPrior, dates: int, shape: tuple[int, int, int], dtype=torch.float32
) -> History:
    """With so many dates before."""
    out = History(prior, shape)
    for date in range(dates):
        out.push(latents(prior, *shape, seed=10 + date).to(dtype))
    return out


#: How many dates before there may be: none, or what makes two.
DATES_BEFORE = (0, 2)


# cutting


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_are_undone(name):
    layout = LAYOUTS[name]
    cells = torch.arange(3 * 16 * sum(layout.groups)).reshape(3, 16, -1)
    parts = layout.split(cells)
    assert [p.shape[:2] for p in parts] == [(3, len(layout.phases))] * len(layout.groups)
    assert torch.equal(layout.join(parts), cells)
    tokens = layout.tokens(cells)
    assert len(tokens) == TOKENS == layout.steps
    assert torch.equal(layout.blocks(tokens), cells)
    again = layout.split(layout.join(parts))
    assert all(torch.equal(a, b) for a, b in zip(again, parts, strict=True))


def test_raster_token_is_a_position():
    cells = torch.randn(2, 16, 24)
    assert torch.equal(torch.stack(LAYOUTS["raster"].tokens(cells), 1), cells)


def test_repacked_token_is_a_slice_of_channels():
    cells = torch.randn(2, 16, 64)
    tokens = torch.stack(LAYOUTS["repacked"].tokens(cells), 1)
    assert torch.equal(tokens, repack(cells))
    assert torch.equal(repack(tokens), cells)
    for token in range(16):
        part = cells[:, :, 4 * token : 4 * token + 4]
        assert torch.equal(tokens[:, token], part.flatten(1))


def test_mixed_token_is_an_interleaved_grid():
    layout = LAYOUTS["mixed"]
    grid = torch.arange(16).reshape(4, 4)
    assert torch.equal(torch.tensor(PHASES[0]), grid[::2, ::2].flatten())
    assert torch.equal(torch.tensor(PHASES[1]), grid[1::2, 1::2].flatten())
    assert torch.equal(torch.tensor(PHASES[2]), grid[::2, 1::2].flatten())
    assert torch.equal(torch.tensor(PHASES[3]), grid[1::2, ::2].flatten())
    cells = torch.randn(2, 16, 16)
    tokens = layout.tokens(cells)
    for group, (first, last) in enumerate([(0, 1), (1, 3), (3, 7), (7, 16)]):
        for phase in range(4):
            want = cells[:, PHASES[phase], first:last].flatten(1)
            assert torch.equal(tokens[4 * group + phase], want)


@pytest.mark.parametrize(
    ("groups", "phases"),
    [
        ((8, 8), PHASES),  # eight tokens
        ((4, 0, 4, 4), PHASES),
        ((24,), (*RASTER[:-1], (0,))),  # a position twice
    ],
)
def test_layouts_that_do_not_cover_a_block(groups, phases):
    with pytest.raises(TecError, match="16 tokens"):
        Layout(groups, phases)


@pytest.mark.parametrize("size", [(4, 4), (8, 4), (12, 20)])
def test_blocks_are_undone(size):
    y = torch.randn(2, 3, *size)
    cells = to_blocks(y)
    assert cells.shape == (2, size[0] * size[1] // 16, 16, 3)
    assert torch.equal(cells[1, 0, 5], y[1, :, 1, 1])
    assert torch.equal(cells[0, -1, -1], y[0, :, -1, -1])
    assert torch.equal(from_blocks(cells, *size), y)


@pytest.mark.parametrize("size", [(4, 4), (8, 4), (12, 20)])
def test_windows_are_mirrored_at_the_edges(size):
    h, w = size
    y = torch.randn(2, 3, h, w)
    want = F.unfold(F.pad(y, (2, 2, 2, 2), mode="reflect"), 8, stride=4)  # (n, c * 64, blocks)
    seen = y.flatten(2)[:, :, windows(h, w)]  # (n, c, blocks, 64)
    assert torch.equal(seen.permute(0, 1, 3, 2).flatten(1, 2), want)


def test_latents_must_be_whole_blocks():
    with pytest.raises(TecError, match="multiples of 64"):
        History(small("tt"), (1, 4, 6))


# one way through the decoder, or another


def unrolled(
    prior: TemporalPrior, context: list[KeysValues], tokens: list[torch.Tensor], chunks: list[int]
) -> Prediction:
    """All tokens, predicted in chunks, given the true ones."""
    unrolling = Unrolling(prior, context, len(tokens[0]))
    parts, at = [], 0
    for count in chunks:
        given = tokens[max(at - 1, 0) : at + count - 1]
        parts.append(unrolling.predict(given, count))
        at += count
    return Prediction(
        torch.cat([p.features for p in parts], 1),
        [m for p in parts for m in p.means],
        [s for p in parts for s in p.log_scales],
    )


def difference(a: Prediction, b: Prediction) -> float:
    """The largest, relative to the largest value where that is above 1."""
    pairs = [(a.features, b.features), *zip(a.means, b.means), *zip(a.log_scales, b.log_scales)]
    return max(((x - y).abs().max() / y.abs().max().clamp_min(1)).item() for x, y in pairs)


def context_and_tokens(
    prior: TemporalPrior, dates: int, shape: tuple[int, int, int] = (2, 8, 12), dtype=torch.float64
) -> tuple[list[KeysValues], list[torch.Tensor]]:
    before = history(prior, dates, shape, dtype)
    cells = to_blocks(latents(prior, *shape).to(dtype)).flatten(0, 1)
    return before.context(slice(0, before.blocks)), prior.layout.tokens(cells)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_one_pass_is_step_by_step(kind):
    prior = small(kind).double()
    for dates in DATES_BEFORE:
        context, tokens = context_and_tokens(prior, dates)
        whole = unrolled(prior, context, tokens, [16])
        assert torch.stack([m.std() for m in whole.means]).min() > 0.5
        assert torch.stack([s.std() for s in whole.log_scales]).min() > 0.1
        for chunks in ([1] * 16, [7] + [1] * 9, [15, 1]):
            assert difference(unrolled(prior, context, tokens, chunks), whole) < 1e-12


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_tokens_know_nothing_of_later_ones(kind):
    prior = small(kind).double()
    context, tokens = context_and_tokens(prior, 2)
    whole = unrolled(prior, context, tokens, [16])
    for token in (0, 4, 14):
        other = [t + 3 if i == token else t for i, t in enumerate(tokens)]
        changed = unrolled(prior, context, other, [16])
        same = [torch.equal(a, b) for a, b in zip(changed.means, whole.means, strict=True)]
        assert same == [True] * (token + 1) + [False] * (15 - token)
        same = [torch.equal(a, b) for a, b in zip(changed.log_scales, whole.log_scales)]
        assert same == [True] * (token + 1) + [False] * (15 - token)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_blocks_see_both_dates_before_and_no_other_block(kind):
    prior = small(kind).double()
    before = history(prior, 2, (1, 12, 12), torch.float64)
    whole = slice(0, 9)
    tokens = prior.layout.tokens(to_blocks(latents(prior, 1, 12, 12).double())[0])
    wanted = unrolled(prior, before.context(whole), tokens, [16])
    for date in (0, 1):
        other = History(prior, before.shape)
        for i, y in enumerate(before.latents):
            y = y.clone()
            y[..., 0, 0] += 2 * (i == date)  # its own block and, mirrored or not, no other window
            other.push(y)
        found = unrolled(prior, other.context(whole), tokens, [16])
        moved = (torch.cat(found.means, 1) - torch.cat(wanted.means, 1)).abs().amax(1)
        assert moved[0] > 1e-3
        assert moved[1:].max() == 0
    tokens = [t.index_add(0, torch.tensor([4]), torch.ones_like(t[:1])) for t in tokens]
    found = unrolled(prior, before.context(whole), tokens, [16])
    moved = (torch.cat(found.means, 1) - torch.cat(wanted.means, 1)).abs().amax(1)
    assert moved[4] > 1e-3
    assert moved.count_nonzero() == 1


@pytest.mark.parametrize("kind", ["tt", "flex"])
@pytest.mark.parametrize("chunks", [[16], [1] * 16], ids=["pass", "steps"])
@torch.no_grad()
def test_context_of_the_first_date_serves_all_blocks(kind, chunks):
    prior = small(kind).double()
    context, tokens = context_and_tokens(prior, 0)
    assert {len(c.keys) for c in context} == {1}
    b = len(tokens[0])
    expanded = [KeysValues(*(x.expand(b, -1, -1, -1) for x in c)) for c in context]
    one, each = (unrolled(prior, cross, tokens, chunks) for cross in (context, expanded))
    assert difference(one, each) < 1e-12


def test_context_of_the_first_date_is_that_of_the_weights():
    def keys(prior: TemporalPrior) -> torch.Tensor:
        return History(prior, (1, 4, 4)).context(slice(0, 1))[1].keys

    with torch.no_grad():
        prior, other = small("tt"), small("tt")
        other.absent.add_(3)
        first, second = keys(prior), keys(other)
        assert not torch.equal(first, second)
        assert keys(prior) is first  # kept
        prior.load_state_dict(other.state_dict())
        assert torch.equal(keys(prior), second)
        assert keys(prior.double()).dtype == torch.float64
        prior.float().train()
        keys(prior)
        prior.absent.sub_(3)  # a step of training
        torch.testing.assert_close(keys(prior), first, rtol=1e-4, atol=1e-4)
        prior.eval()
    found = keys(prior)
    assert found.requires_grad
    assert not keys(copy.deepcopy(prior)).equal(second)  # no graph stays behind to be copied


def unrollings(kind):
    """For each length of the past: a float64 prior, the dates, their tokens, what it predicts."""
    prior = small(kind).double()
    for dates in DATES_BEFORE:
        context, tokens = context_and_tokens(prior, dates)
        yield prior, dates, tokens, unrolled(prior, context, tokens, [16])


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_groups_change_nothing(kind, monkeypatch):
    for prior, dates, tokens, whole in unrollings(kind):
        monkeypatch.setattr(temporal, "GROUP", 4)
        before = history(prior, dates, (2, 8, 12), torch.float64)
        assert before.groups() == [slice(0, 4), slice(4, 6)]
        rows = torch.arange(12).reshape(2, 6)
        for blocks in before.groups():
            mine = rows[:, blocks].flatten()  # image by image
            part = unrolled(prior, before.context(blocks), [t[mine] for t in tokens], [16])
            want = Prediction(whole.features[mine], *([x[mine] for x in xs] for xs in whole[1:]))
            assert difference(part, want) < 1e-12


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_pieces_change_nothing(kind, monkeypatch):
    for prior, dates, _, want in unrollings(kind):
        with monkeypatch.context() as patch:
            patch.setattr(prior, "piece", 5)
            context, tokens = context_and_tokens(prior, dates)
        assert difference(unrolled(prior, context, tokens, [16]), want) < 1e-12


@pytest.mark.parametrize("backend", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_attention_backends_agree(kind, backend):
    prior = small(kind)
    context, tokens = context_and_tokens(prior, 2, dtype=torch.float32)
    want = unrolled(prior, context, tokens, [16])
    with sdpa_kernel(backend):
        context, tokens = context_and_tokens(prior, 2, dtype=torch.float32)
        for chunks in ([16], [1] * 16):
            assert difference(unrolled(prior, context, tokens, chunks), want) < 2e-5


@torch.no_grad()
def test_attention_against_its_formula():
    torch.manual_seed(0)
    layer = Attention(12, 3).double()
    x, context = torch.randn(2, 5, 12).double(), torch.randn(2, 7, 12).double()
    for causal, other in ((False, context), (True, x)):
        q, k, v = (
            linear(tokens).reshape(2, -1, 3, 4).transpose(1, 2)
            for linear, tokens in ((layer.q, x), (layer.k, other), (layer.v, other))
        )
        logits = torch.einsum("bhid,bhjd->bhij", q, k) / 2
        if causal:
            logits = logits.masked_fill(torch.ones(5, 5).triu(1).bool(), -math.inf)
        out = torch.einsum("bhij,bhjd->bihd", logits.softmax(-1), v).flatten(2)
        want = layer.proj(out)
        torch.testing.assert_close(layer(x, layer.keys_values(other), causal=causal), want)


# the dates before


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("encoded", [False, True])
@torch.no_grad()
def test_history_of_some_images(kind, encoded):
    prior = small(kind).double()
    full = history(prior, 2, (3, 8, 4), torch.float64)
    blocks = slice(0, full.blocks)
    if encoded:
        full.context(blocks)
    some = full.select([2, 0])
    assert some.shape == (2, 8, 4)
    assert len(some) == len(full) == 2
    assert full.select(range(3)) is full
    assert full.shape == (3, 8, 4)
    tokens = prior.layout.tokens(to_blocks(latents(prior, 3, 8, 4).double()).flatten(0, 1))
    rows = torch.arange(6).reshape(3, 2)[[2, 0]].flatten()
    want = unrolled(prior, full.context(blocks), tokens, [16])
    found = unrolled(prior, some.context(blocks), [t[rows] for t in tokens], [16])
    part = Prediction(want.features[rows], *([x[rows] for x in xs] for xs in want[1:]))
    assert difference(found, part) < 1e-12
    some.push(latents(prior, 2, 8, 4).double())
    assert torch.equal(full.latents[1][2], some.latents[0][0])  # one is not the other's


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_dates_whose_contexts_are_known_go_together(kind):
    prior, n = small(kind).double(), 2
    start = history(prior, 0, (n, 8, 4), torch.float64)
    dates = [latents(prior, n, 8, 4, seed=i).double() for i in range(5)]
    for now in (range(1, 2), range(1, 5), range(3, 5)):
        together = start.before(dates, now)
        context = together.context(slice(0, 2))
        for i, date in enumerate(now):
            alone = History(prior, (n, 8, 4))
            for y in dates[:date]:
                alone.push(y)
            want = alone.context(slice(0, 2))
            rows = slice(4 * i, 4 * i + 4)
            pairs = [(a[rows], b) for x, y in zip(context, want) for a, b in zip(x, y)]
            for found, wanted in pairs:
                torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_only_two_dates_are_kept():
    prior = small("tt")
    long = history(prior, 4, (1, 4, 4))
    assert len(long) == 2
    short = History(prior, (1, 4, 4))
    for y in long.latents:
        short.push(y)
    assert torch.equal(long.context(slice(0, 1))[0].keys, short.context(slice(0, 1))[0].keys)


# encoder and decoder


def coding() -> IntegerCoding:
    return IntegerCoding(GRID, shipped("gaussian-integers"))


class Driven(NamedTuple):
    """A date that was coded: what came of it, and its steps with their symbols."""

    y_hat: torch.Tensor
    features: torch.Tensor
    steps: list


def drive(generator, symbols_of) -> Driven:
    steps = []
    try:
        step = next(generator)
        while True:
            symbols = symbols_of(step)
            steps.append((step, symbols))
            step = generator.send(symbols)
    except StopIteration as end:
        return Driven(end.value.y_hat, end.value.features, steps)


def encoded(
    before: History, y: torch.Tensor, *, at_once: bool = True, **how
) -> tuple[Driven, list[bytes]]:
    """One date and its rounding decisions, in one pass or, as a decoder does, in steps."""
    writer = portable.Writer(len(y), GRID, MARGIN)

    def symbols_of(step):
        return (step.select(y).numpy() - step.mean).astype(np.int32)

    known = y if at_once else None
    out = drive(date_steps(before, writer, coding(), known=known, **how), symbols_of)
    return out, writer.getvalue()


def joined(out: Driven) -> tuple[np.ndarray, np.ndarray]:
    """Indexes and symbols (n, k) in coding order."""
    n = len(out.y_hat)
    nothing = [np.zeros((n, 0), np.int64)]
    return (
        np.concatenate(nothing + [step.index for step, _ in out.steps], 1),
        np.concatenate(nothing + [symbols for _, symbols in out.steps], 1),
    )


HOW = [(0, "mean"), (1, "mean"), (7, "mean"), (16, "mean"), (0, "sample"), (7, "sample")]


@pytest.mark.parametrize(("sent", "forecast"), HOW)
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_decoder_follows_the_encoder(kind, sent, forecast, monkeypatch):
    """A batch of two, in groups of four blocks; then one by one, in float32 and float64."""
    monkeypatch.setattr(temporal, "GROUP", 4)
    prior, shape = small(kind), (2, 8, 12)
    tables, y = shipped("gaussian-integers"), latents(prior, *shape)
    for dates in DATES_BEFORE:
        before = history(prior, dates, shape)
        out, notes = encoded(before, y, sent=sent, forecast=forecast)
        assert len(out.steps) == (2 if sent else 0)
        index, symbols = joined(out)
        assert (
            index.shape[1]
            == sum(t.shape[1] for t in prior.layout.tokens(to_blocks(y)[0])[:sent]) * before.blocks
        )
        streams = [rans.encode(symbols[i], index[i].astype(np.uint16), tables) for i in (0, 1)]
        for rows, precision in (([0, 1], "float"), ([0], "float"), ([1], "float"), ([1], "double")):
            of = copy.deepcopy(prior).to(getattr(torch, precision))
            mine = history(of, dates, shape, getattr(torch, precision)).select(rows)
            reader = portable.Reader([notes[i] for i in rows], GRID)
            decoders = [rans.Decoder(streams[i], tables) for i in rows]

            def symbols_of(step, decoders=decoders):
                return np.stack([d.read(row) for d, row in zip(decoders, step.index)])

            again = drive(
                date_steps(mine, reader, coding(), sent=sent, forecast=forecast), symbols_of
            )
            reader.finish()
            for decoder in decoders:
                decoder.finish()
            assert torch.equal(again.y_hat.float(), out.y_hat[rows])
            assert all(np.array_equal(a, b[rows]) for a, b in zip(joined(again), (index, symbols)))
            torch.testing.assert_close(
                again.features.float(), out.features[rows], rtol=1e-4, atol=1e-4
            )
        if sent == 16:
            assert torch.equal(out.y_hat, y)
        # What is sent comes back, the rest is predicted.
        blocks = zip(*(prior.layout.tokens(to_blocks(x).flatten(0, 1)) for x in (out.y_hat, y)))
        assert [torch.equal(a, b) for a, b in blocks] == [True] * sent + [False] * (16 - sent)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_encoder_in_one_pass_and_in_steps(kind):
    prior, shape = small(kind).double(), (2, 8, 4)
    before, y = history(prior, 2, shape, torch.float64), latents(prior, *shape).double()
    for sent in (1, 7, 16):
        for forecast in ("mean", "sample"):
            once, steps = (
                encoded(before, y, at_once=at_once, sent=sent, forecast=forecast)
                for at_once in (True, False)
            )
            assert once[1] == steps[1]
            assert torch.equal(once[0].y_hat, steps[0].y_hat)
            assert len(once[0].steps) == 1
            assert len(steps[0].steps) == sent
            for a, b in zip(joined(once[0]), joined(steps[0]), strict=True):
                assert np.array_equal(a, b)


@torch.no_grad()
def test_samples_are_drawn_from_the_date_before():
    prior, shape = small("flex"), (2, 4, 4)
    y = latents(prior, *shape)
    before = history(prior, 1, shape)
    drawn = encoded(before, y, sent=3, forecast="sample")[0].y_hat
    assert torch.equal(drawn, encoded(before, y, sent=3, forecast="sample")[0].y_hat)
    mean = encoded(before, y, sent=3)[0].y_hat
    other = encoded(history(prior, 2, shape), y, sent=3, forecast="sample")[0].y_hat
    for found in (mean, other):
        assert not torch.equal(found, drawn)
    twice = History(prior, shape)
    twice.push(before.latents[0][[0, 0]])
    alike = encoded(twice, y[[0, 0]], sent=3, forecast="sample")[0].y_hat
    assert torch.equal(alike[0], alike[1])
    assert torch.equal(alike[0], drawn[0])  # wherever in a batch


@pytest.mark.parametrize("dates", [0, 2])
@torch.no_grad()
def test_numbers_that_samples_are_drawn_with(dates):
    """They belong to the stream format: Philox 4x64, keyed by a CRC-32 of the date before."""
    prior, shape, code, numbers = small("flex"), (2, 4, 4), coding(), []

    def draw(self, index, random, plain=Tables.draw):
        numbers.append(random)
        return plain(self, index, random)

    before = history(prior, dates, shape)
    steps = date_steps(before, portable.Writer(2, GRID, MARGIN), code, sent=0, forecast="sample")
    with mock.patch.object(Tables, "draw", draw):
        drive(steps, None)
    found = np.concatenate(numbers, 1)
    assert found.shape == (2, 16 * 64)
    for i in range(2):
        data = before.latents[-1][i].numpy().tobytes() if dates else b""
        words = np.random.Philox(key=zlib.crc32(data)).random_raw(16 * 64)
        assert found[i].tolist() == [int(word) >> 48 for word in words]


@torch.no_grad()
def test_samples_follow_the_predicted_law():
    """On the first date all blocks have the same first token."""
    prior, tables = small("tt"), shipped("gaussian-integers")
    before = History(prior, (1, 64, 64))
    out = encoded(before, torch.zeros(1, 64, 64, 64), sent=0, forecast="sample")[0]
    drawn = prior.layout.tokens(to_blocks(out.y_hat)[0])[0].numpy()  # (256 blocks, 64)
    first = Unrolling(prior, before.context(slice(0, 1)), 1).predict([])
    parameters = first.means[0].numpy(), first.log_scales[0].numpy()
    index, whole = coding()(*portable.Writer(1, GRID, MARGIN).parameters(*parameters))
    squares = []
    for values, row, offset in zip(drawn.T, index[0], whole[0]):
        cdf = tables.cdf[tables.offsets[row] : tables.offsets[row + 1]]
        symbol = tables.lowest[row] + np.arange(len(cdf) - 2) + offset
        law = np.diff(cdf)[:-1] / 65536
        mean = law @ symbol
        deviation = max(math.sqrt(law @ (symbol - mean) ** 2), 0.1)
        assert abs(values.mean() - mean) < 4.5 * deviation / math.sqrt(len(values))
        if deviation > 0.3:
            squares.append(np.square((values - mean) / deviation).mean())
    assert len(squares) > 20
    assert np.mean(squares) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("kind", ["tt", "flex"])
@torch.no_grad()
def test_values_cost_what_forward_estimates(kind):
    """Of values that follow the predicted laws; scales and means on grids cost next to nothing."""
    model, shape = small_tt(kind), (1, 16, 16)
    generator = torch.Generator().manual_seed(5)
    dates, costs = [], []
    before = model.history(shape)
    for _ in range(3):
        unrolling = Unrolling(model.prior, before.context(slice(0, 16)), 16)
        tokens: list[torch.Tensor] = []
        for _ in range(TOKENS):
            found = unrolling.predict(tokens[-1:])
            normal = torch.randn(found.means[0].shape, generator=generator)
            tokens.append((found.means[0] + found.log_scales[0].exp() * normal).round())
        y = from_blocks(model.prior.layout.blocks(tokens)[None], 16, 16)
        index, symbols = joined(encoded(before, y)[0])
        costs.append(model.tables.bits(index, symbols).sum())
        dates.append(y)
        before.push(y)
    with mock.patch.object(model, "analysis", return_value=torch.cat(dates)):
        bits = model(torch.zeros(1, 3, 3, 256, 256))["bits"][0]
    assert bits.min() > 10000
    assert costs == pytest.approx(bits.tolist(), rel=0.005)


@pytest.mark.parametrize("kind", ["tt", "flex"])
@torch.no_grad()
def test_coding_gives_what_forward_reconstructs(kind):
    model = small_tt(kind).double()
    x = 300 * torch.randn(2, 3, 3, 64, 128).double()
    quality = [16, 5, 0] if kind == "flex" else [16, 16, 16]
    want = model(x, quality)
    assert want["y"].std() > 1
    before = model.history((2, 4, 8))
    for date, sent in enumerate(quality):
        known = model.analysis(x[:, date]).round()
        writer = portable.Writer(2, model.grid, model.margin)
        out = drive(
            model.date(before, writer, known=known, sent=sent),
            lambda step: (step.select(known).numpy() - step.mean).astype(np.int32),  # noqa: B023
        )
        before.push(out.y_hat)
        assert torch.equal(out.y_hat, want["y_hat"][:, date])
        restored = model.synthesis(model.restored(out))
        torch.testing.assert_close(restored, want["x_hat"][:, date], rtol=1e-9, atol=1e-9)
