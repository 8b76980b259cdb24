"""The published architectures by themselves: names and shapes, loading, and the coding protocol."""

from __future__ import annotations

import copy
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from tec.entropy import portable, rans
from tec.errors import TecError, WeightsError
from tec.models.blocks import GDN, CheckerboardConv2d, LowerBound, round_through
from tec.models.densities import EntropyBottleneck, GaussianConditional
from tec.models.elic import Elic, ElicConfig
from tec.models.factorized import Factorized, FactorizedConfig
from tec.models.tt import TT, TTConfig, own_name

SMALL_ELIC = ElicConfig(bands=3, N=8, M=24, groups=(2, 4, 6, 12), context=(10, 6), hidden=14)
SMALL_FP = FactorizedConfig(bands=3, N=8, M=12)
#: Buffers whose length is a matter of the checkpoint.
VARYING = ("._quantized_cdf", "._cdf_length", "._offset", ".scale_table")


def small(kind: str, seed: int = 0) -> Elic | Factorized:
    """A tiny model whose latents spread over several integers."""
    torch.manual_seed(seed)
    model = Elic(SMALL_ELIC) if kind == "elic" else Factorized(SMALL_FP)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("bias"):
                value.uniform_(-0.3, 0.3)
            elif value.ndim == 4:
                value.mul_(2.0)
            elif "bottleneck.quantiles" in name:
                value[:, 0, 1] = torch.rand(len(value)) - 0.5
        if kind == "elic":
            for k in range(len(SMALL_ELIC.groups)):
                last = model.latent_codec.y.group(k).entropy_parameters[4]
                last.bias[len(last.bias) // 2 :] += 1.0  # scales
    model.bottleneck.update()
    return model.eval()


def image(n: int, h: int, w: int, bands: int = 3, seed: int = 1) -> torch.Tensor:
    return torch.randn(n, bands, h, w, generator=torch.Generator().manual_seed(seed)) * 3


class Exact:
    """A rounder that leaves means alone, and takes the floor of log2(scale) + 8 as index."""

    def parameters(self, mean, log_scale, size=None):
        assert mean.dtype == log_scale.dtype
        assert np.isfinite(mean).all()
        assert np.isfinite(log_scale).all()
        return np.floor(log_scale / math.log(2) + 8).astype(np.uint16), mean.astype(np.float32)


class Sixteenths(Exact):
    def parameters(self, mean, log_scale, size=None):
        index, mean = super().parameters(mean, log_scale)
        return index, np.rint(mean * 16) / np.float32(16)


def drive(model, shape, rounder, symbols_of):
    """Run the autoregression; returns y_hat and the steps."""
    gen = model.steps(shape, 10.0, rounder)
    steps = []
    try:
        step = next(gen)
        while True:
            steps.append(step)
            step = gen.send(symbols_of(step))
    except StopIteration as end:
        return end.value, steps


def encode(model, x, rounder):
    """Latents, symbols in coding order, y_hat and steps."""
    with torch.no_grad():
        y = model.analysis(x, 10.0)
        latents = {"y": y, **model.side(y, 10.0)}
    symbols = []

    def symbols_of(step):
        values = step.select(latents[step.latent]).numpy()
        symbols.append(np.rint(values - step.mean).astype(np.int32))
        return symbols[-1]

    y_hat, steps = drive(model, (len(x), *y.shape[2:]), rounder, symbols_of)
    return latents, symbols, y_hat, steps


def published_keys(model: str, column: int) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    out = {}
    for line in Path(__file__).with_name("published_keys.txt").read_text().splitlines():
        owners, key, dtype, *shapes = line.split()
        if model in owners.split(","):
            shape = shapes[min(column, len(shapes) - 1)]
            out[key] = getattr(torch, dtype), tuple(int(s) for s in shape.split("x"))
    return out


def described(state_dict) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    return {key: (value.dtype, tuple(value.shape)) for key, value in state_dict.items()}


PUBLISHED = [
    (Factorized, FactorizedConfig(), "fp", 0),
    (Elic, ElicConfig(), "elic", 0),
    (Elic, ElicConfig(N=192, M=320, groups=(16, 16, 32, 64, 192)), "elic", 1),
]


@pytest.mark.parametrize(("cls", "config", "name", "column"), PUBLISHED)
def test_state_dict_is_the_published_one(cls, config, name, column):
    want = published_keys(name, column)
    with torch.device("meta"):
        bare = cls(config).state_dict()
    assert list(bare) == list(want)
    fixed = [key for key in want if not key.endswith(VARYING)]
    assert {k: described(bare)[k] for k in fixed} == {k: want[k] for k in fixed}

    state_dict = {f"model.{k}": torch.zeros(s, dtype=d) for k, (d, s) in want.items()}
    assert type(config).from_state_dict(state_dict) == config
    prefix = "model." + ("" if name == "fp" else "latent_codec.hyper.") + "entropy_bottleneck."
    # The lists' tables have 23 entries: 21 symbols between these quantiles.
    state_dict[prefix + "quantiles"] += torch.tensor([-10.0, 0.0, 10.0])
    loaded = cls.from_published(state_dict)
    assert described(loaded.state_dict()) == want
    assert loaded.config == config
    assert not loaded.training


PUBLISHED_TEMPORAL = [
    (TTConfig(), "tt", 0),
    (TTConfig(bands=13), "tt", 1),
    (TTConfig(repacked=True), "flex", 0),
]


@pytest.mark.parametrize(("config", "name", "column"), PUBLISHED_TEMPORAL)
def test_temporal_state_dict_is_the_published_one(config, name, column):
    want = published_keys(name, column)
    with torch.device("meta"):
        state_dict = {f"model.{k}": torch.empty(s, dtype=d) for k, (d, s) in want.items()}
        bare = TT(config).state_dict()
    assert TTConfig.from_state_dict(state_dict, repacked=config.repacked) == config
    rest = ("entropy_model.bottleneck.", "look_ahead_mask")
    weights = {own_name(k): v for k, v in want.items() if not any(part in k for part in rest)}
    assert weights == described(bare)
    assert sum(math.prod(shape) for _, shape in weights.values()) > 225e6


def published_tt(*, repacked: bool) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A tiny checkpoint under the published names, and under ours."""
    torch.manual_seed(0)
    config = TTConfig(
        bands=3, channels=(4, 6, 8, 64), width=96, heads=2, layers=(1, 1, 2), repacked=repacked
    )
    own = TT(config).state_dict()
    names = {own_name(key): key for key in published_keys("flex" if repacked else "tt", 0)}
    published = {f"model.{names[key]}": value for key, value in own.items()}
    for layer in range(2):
        mask = f"model.entropy_model.decoder.layers.encoder_layer_{layer}.look_ahead_mask"
        published[mask] = torch.ones(16, 16, dtype=torch.bool)
    published["model.entropy_model.bottleneck._entropy_model._offset"] = torch.zeros(0)
    return published, own


@pytest.mark.parametrize("repacked", [False, True])
def test_temporal_checkpoint_is_loaded(repacked):
    published, own = published_tt(repacked=repacked)
    for state_dict in (published, {k.removeprefix("model."): v for k, v in published.items()}):
        model = TT.from_published(state_dict, repacked=repacked)
        assert not model.training
        assert list(model.state_dict()) == list(own)
        assert all(torch.equal(value, own[key]) for key, value in model.state_dict().items())


def test_flex_trained_without_masking_has_no_tokens_for_it():
    state_dict, _ = published_tt(repacked=True)
    tokens = [key for key in state_dict if key.endswith("mask_token")]
    assert len(tokens) == 2
    rest = {key: value for key, value in state_dict.items() if key not in tokens}
    model = TT.from_published(rest, repacked=True)
    assert not model.prior.mask_token.any()
    assert not model.prior.z_cur_mask_token.any()
    with pytest.raises(WeightsError, match="mask_token"):  # a flex checkpoint is none of tt
        TT.from_published(state_dict)


def test_wrong_temporal_checkpoints_are_refused():
    good, _ = published_tt(repacked=False)
    key = "model.transform.synthesis_transform.transforms.1.weight"
    for wrong in (
        {k: v for k, v in good.items() if k != key},
        {**good, key: torch.zeros(7)},
        {**good, "model.surplus": torch.zeros(1)},
    ):
        with pytest.raises(WeightsError, match=r"surplus|synthesis_transform\.1\.weight"):
            TT.from_published(wrong)
    with pytest.raises(WeightsError, match="no tensor"):
        TT.from_published(small("elic").state_dict())
    with pytest.raises(TecError, match="width"):
        TTConfig(width=100, repacked=True)


@pytest.mark.parametrize("kind", ["elic", "fp"])
def test_checkpoint_comes_back(kind):
    model = small(kind)
    for prefix in ("", "model."):
        state_dict = {prefix + k: v for k, v in model.state_dict().items()}
        back = type(model).from_published(state_dict)
        assert back.config == model.config
        for key, value in model.state_dict().items():
            assert torch.equal(back.state_dict()[key], value), key
        x = image(2, 64, 128)
        assert torch.equal(back(x)["x_hat"], model(x)["x_hat"])


@pytest.mark.parametrize("kind", ["elic", "fp"])
def test_wrong_checkpoints_are_refused(kind):
    good = small(kind).state_dict()
    cls = type(small(kind))
    missing = {k: v for k, v in good.items() if k != "g_a.0.bias"}
    with pytest.raises(WeightsError, match=r"g_a\.0\.bias"):
        cls.from_published(missing)
    with pytest.raises(WeightsError, match=r"g_a\.0\.weight"):
        cls.from_published({k: v for k, v in good.items() if k != "g_a.0.weight"})
    with pytest.raises(WeightsError, match="surplus"):
        cls.from_published({**good, "surplus": torch.zeros(1)})
    key = next(k for k in good if k.startswith("g_s.1."))
    with pytest.raises(WeightsError, match=r"g_s\.1"):
        cls.from_published({**good, key: torch.zeros(7)})
    other = small("fp" if kind == "elic" else "elic").state_dict()
    with pytest.raises(WeightsError):
        cls.from_published(other)


def test_groups_must_sum_to_the_latent():
    with pytest.raises(TecError, match="M=100"):
        ElicConfig(M=100)
    with pytest.raises(TecError, match="groups"):
        ElicConfig(M=4, groups=(4, 0))


@pytest.mark.parametrize("kind", ["elic", "fp"])
def test_sizes(kind):
    model = small(kind)
    stride = model.stride
    for n, h, w in ((1, stride, stride), (3, 2 * stride, stride), (2, stride, 3 * stride)):
        out = model(image(n, h, w))
        assert out["x_hat"].shape == (n, 3, h, w)
        assert out["y"].shape == out["y_hat"].shape == (n, model.latents, h // 16, w // 16)
        assert out["bits"].shape == (n,)
    for h, w in ((stride + 1, stride), (stride, stride // 2), (0, stride)):
        with pytest.raises(TecError, match=f"multiples of {stride}"):
            model(image(1, h, w))
    with pytest.raises(TecError, match="3, height"):
        model(image(1, stride, stride, bands=4))
    with pytest.raises(TecError, match="latent"):
        model.synthesis(torch.zeros(1, 5, 4, 4), 1.0)
    if kind == "elic":
        with pytest.raises(TecError, match="multiples of 4"):
            next(model.steps((1, 4, 6), 1.0, Exact()))


@pytest.mark.parametrize("kind", ["elic", "fp"])
def test_steps_decode_what_forward_reconstructs(kind):
    model, x = small(kind), image(2, 64, 128)
    with torch.no_grad():
        out = model(x)
    latents, symbols, y_hat, _ = encode(model, x, Exact())
    assert np.abs(np.concatenate(symbols, 1)).max() > 2
    assert len(np.unique(symbols[-1])) > 3
    torch.testing.assert_close(latents["y"], out["y"])
    torch.testing.assert_close(y_hat, out["y_hat"], rtol=1e-5, atol=1e-5)


def test_means_on_a_grid_keep_values_within_half():
    model, x = small("elic"), image(2, 64, 128)
    latents, _, y_hat, steps = encode(model, x, Sixteenths())
    assert (y_hat - latents["y"]).abs().max() <= 0.5 + 1e-5
    on_grid = np.concatenate([s.mean for s in steps[1:]], 1) * 16
    assert (on_grid == np.rint(on_grid)).all()


@pytest.mark.parametrize("kind", ["elic", "fp"])
def test_decoder_meets_the_encoders_steps(kind):
    model, x = small(kind), image(3, 64, 64)
    _, symbols, y_hat, steps = encode(model, x, Sixteenths())
    remaining = iter(symbols)
    decoded, again = drive(model, (3, 4, 4), Sixteenths(), lambda step: next(remaining))
    assert torch.equal(decoded, y_hat)
    assert len(again) == len(steps)
    for a, b in zip(again, steps, strict=True):
        assert (a.latent, a.channels, a.parity) == (b.latent, b.channels, b.parity)
        assert np.array_equal(a.index, b.index)
        assert np.array_equal(a.mean, b.mean)


def test_steps_of_elic_cover_each_latent_once():
    model, x = small("elic"), image(2, 64, 128)
    _, _, _, steps = encode(model, x, Exact())
    assert [(s.latent, s.parity) for s in steps] == [("z", None)] + [("y", 0), ("y", 1)] * 4
    ends = [(s.channels.start, s.channels.stop) for s in steps[1::2]]
    assert ends == [(0, 2), (2, 6), (6, 12), (12, 24)]
    assert sum(s.index.shape[1] for s in steps[1:]) == 24 * 4 * 8
    for step in steps:
        assert step.index.dtype == np.uint16
        assert step.mean.dtype == np.float32
        assert step.index.shape == step.mean.shape
        assert step.index.max() < len(model.tables)
        assert (step.index.min() >= 8) == (step.latent == "y")  # z has the first 8 tables


def test_one_by_one_is_as_in_a_batch():
    """Given the same symbols, parameters agree to float32; the rest is the rounder's task."""
    for kind in ("elic", "fp"):
        model, x = small(kind), image(3, 64, 64)
        _, symbols, y_hat, steps = encode(model, x, Exact())
        for i in range(3):
            mine = iter([s[i : i + 1] for s in symbols])
            alone, own = drive(model, (1, 4, 4), Exact(), lambda step: next(mine))  # noqa: B023
            torch.testing.assert_close(alone, y_hat[i : i + 1], rtol=1e-5, atol=1e-5)
            for a, b in zip(own, steps, strict=True):
                np.testing.assert_allclose(a.mean, b.mean[i : i + 1], rtol=1e-5, atol=1e-5)


def test_double_precision_decodes_alike():
    model, x = small("elic"), image(2, 64, 64)
    _, symbols, y_hat, _ = encode(model, x, Exact())
    double = copy.deepcopy(model).double()
    remaining = iter(symbols)
    again, _ = drive(double, (2, 4, 4), Exact(), lambda step: next(remaining))
    assert again.dtype == torch.float64
    torch.testing.assert_close(again.float(), y_hat, rtol=1e-5, atol=1e-5)
    assert double.tables.cdf.tolist() == model.tables.cdf.tolist()


def test_teacher_forcing_gives_the_parameters_of_forward():
    model = small("elic")
    with torch.no_grad():
        out = model(image(2, 64, 64))
        means, scales = model.parameters_of(out["y_hat"], out["z_hat"])
    torch.testing.assert_close(means, out["means"])
    torch.testing.assert_close(scales, out["scales"])
    assert (scales > 0.5).any()


def test_no_gradient_in_steps_and_torch_left_alone():
    before = torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()
    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    model = small("elic")
    seen = []

    def symbols_of(step):
        seen.append(torch.is_grad_enabled())
        return np.zeros(step.mean.shape, np.int32)

    y_hat, _ = drive(model, (1, 4, 4), Exact(), symbols_of)
    assert seen
    assert all(seen)  # the caller's setting, between the steps
    assert not y_hat.requires_grad
    assert before == (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled())
    assert cudnn == (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark)
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("kind", ["elic", "fp"])
def test_gradients_reach_every_parameter(kind):
    model = small(kind).train()
    x = image(2, 64, 64)
    out = model(x)
    loss = (out["x_hat"] - x).square().mean() + out["bits"].mean() / 1e4
    loss.backward()
    for name, value in model.named_parameters():
        if name.endswith("quantiles"):
            assert value.grad is None  # they have a loss of their own
        else:
            assert value.grad is not None, name
            assert value.grad.isfinite().all(), name
            assert value.grad.abs().max() > 0, name
    with torch.no_grad():
        assert not torch.equal(model(x)["bits"], model(x)["bits"])  # noise
        model.eval()
        assert torch.equal(model(x)["bits"], model(x)["bits"])


@pytest.mark.parametrize("kind", ["elic", "fp"])
def test_models_pickle(kind):
    model, x = small(kind), image(1, 64, 64)
    assert len(model.tables)
    back = pickle.loads(pickle.dumps(model))
    assert torch.equal(back(x)["x_hat"], model(x)["x_hat"])
    assert len(back.tables) == len(model.tables)


def test_tables_follow_the_density():
    torch.manual_seed(3)
    density = EntropyBottleneck(6)
    with torch.no_grad():
        density.quantiles[:, 0] = torch.tensor([-4.3, 0.4, 9.7]) * torch.arange(1, 7)[:, None]
        for bias in density.biases:
            bias.add_(torch.randn_like(bias))
    assert density.stale()
    with pytest.raises(WeightsError, match="update"):
        density.tables()
    density.update()
    assert not density.stale()
    tables = density.tables()
    assert tables.lowest.tolist() == [-math.ceil(4.7 * c - 1e-5) for c in range(1, 7)]
    median = density.medians.flatten()
    for c in range(6):
        cdf = tables.cdf[tables.offsets[c] : tables.offsets[c + 1]]
        symbols = torch.arange(len(cdf) - 2) + int(tables.lowest[c])
        values = torch.zeros(len(symbols), 6, 1, 1)
        values[:, c, 0, 0] = symbols + median[c]
        want = density.likelihood(values)[:, c, 0, 0].detach().numpy()
        # A table has 65536 counts, of which each symbol gets one at least.
        np.testing.assert_allclose(np.diff(cdf)[:-1] / 65536, want, atol=(len(cdf) + 2) / 65536)

    density.biases[0].data += 3.0  # the tables now are those of another density
    assert density.stale()


def test_stale_tables_are_made_anew_on_loading():
    model = small("fp")
    state_dict = model.state_dict()
    good = state_dict["entropy_bottleneck._quantized_cdf"]
    for wrong in (torch.zeros_like(good), good[:, :5], good[:0]):
        state_dict["entropy_bottleneck._quantized_cdf"] = wrong
        loaded = Factorized.from_published(state_dict)
        assert torch.equal(loaded.entropy_bottleneck._quantized_cdf, good)
    longer = torch.nn.functional.pad(good, (0, 9))
    state_dict["entropy_bottleneck._quantized_cdf"] = longer
    loaded = Factorized.from_published(state_dict)
    assert torch.equal(loaded.entropy_bottleneck._quantized_cdf, longer)
    assert loaded.tables.cdf.tolist() == model.tables.cdf.tolist()


def test_tables_are_those_of_what_was_loaded_last():
    model, other = small("fp", seed=0), small("fp", seed=1)
    first = model.tables
    assert model.tables is first
    model.load_state_dict(other.state_dict())
    assert model.tables is not first
    assert model.tables.cdf.tolist() == other.tables.cdf.tolist()


def test_damaged_quantiles():
    model = small("fp")
    state_dict = model.state_dict()
    state_dict["entropy_bottleneck.quantiles"][0] = math.nan
    with pytest.raises(WeightsError, match="finite"):
        Factorized.from_published(state_dict)


def test_likelihoods_sum_to_one():
    torch.manual_seed(0)
    density = EntropyBottleneck(4)
    k = torch.arange(-400, 401.0)
    total = density.likelihood(k[:, None, None, None].expand(-1, 4, 1, 1)).sum(0).flatten()
    torch.testing.assert_close(total, torch.ones(4), atol=1e-4, rtol=0)
    gaussian = GaussianConditional()
    for scale in (0.01, 0.11, 0.5, 30.0):
        mass = gaussian.likelihood(k, torch.full_like(k, scale))
        assert mass.sum().item() == pytest.approx(1, abs=1e-4)
        assert mass.min() >= 9e-10
    assert torch.equal(
        gaussian.likelihood(k, torch.tensor(0.001)), gaussian.likelihood(k, torch.tensor(0.11))
    )


def test_gdn_against_its_formula():
    torch.manual_seed(0)
    x = torch.randn(2, 5, 3, 4)
    beta, gamma = torch.rand(5) + 0.1, torch.rand(5, 5)
    for inverse in (False, True):
        layer = GDN(5, inverse=inverse)
        with torch.no_grad():
            layer.beta.copy_(layer.beta_reparam.stored(beta))
            layer.gamma.copy_(layer.gamma_reparam.stored(gamma))
        norm = (beta[:, None, None] + torch.einsum("ij,njhw->nihw", gamma, x * x)).sqrt()
        torch.testing.assert_close(layer(x), x * norm if inverse else x / norm)


def test_lower_bound_lets_go_upwards_only():
    bound = LowerBound(1.0)
    x = torch.tensor([0.5, 0.5, 2.0], requires_grad=True)
    assert bound(x).tolist() == [1.0, 1.0, 2.0]
    bound(x).backward(torch.tensor([1.0, -1.0, 1.0]))
    assert x.grad.tolist() == [0.0, -1.0, 1.0]


def test_rounding_passes_gradients():
    x = torch.tensor([0.4, 1.6], requires_grad=True)
    y = round_through(x)
    assert y.tolist() == [0.0, 2.0]
    (y * 3).sum().backward()
    assert x.grad.tolist() == [3.0, 3.0]


def test_checkerboard_sees_the_other_colour_only():
    torch.manual_seed(0)
    layer = CheckerboardConv2d(1, 1)
    for r in range(6):
        for c in range(6):
            x = torch.zeros(1, 1, 6, 6)
            x[0, 0, r, c] = 1
            touched = (layer(x) - layer.bias)[0, 0].abs() > 1e-9
            rows, cols = torch.nonzero(touched, as_tuple=True)
            assert len(rows) > 0
            assert ((rows + cols + r + c) % 2 == 1).all()


@pytest.mark.parametrize("kind", ["elic", "fp"])
def test_stream_decodes_alone_and_in_double_precision(kind):
    """The real rounder and coder: a batch of 3 comes back to the bit, one by one and in float64."""
    model, x = small(kind), image(3, 64, 128)
    writer = portable.Writer(3, model.grid, model.margin)
    latents, symbols, y_hat, steps = encode(model, x, writer)
    symbols = np.concatenate(symbols, 1)
    index = np.concatenate([step.index for step in steps], 1)
    streams = [rans.encode(symbols[i], index[i], model.tables) for i in range(3)]
    notes = writer.getvalue()
    for decoder_model in (model, copy.deepcopy(model).double()):
        for i in range(3):
            decoder = rans.Decoder(streams[i], model.tables)
            reader = portable.Reader([notes[i]], model.grid)
            alone, _ = drive(
                decoder_model,
                (1, *y_hat.shape[2:]),
                reader,
                lambda step: decoder.read(step.index[0])[None],  # noqa: B023
            )
            decoder.finish()
            reader.finish()
            assert torch.equal(alone.float(), y_hat[i : i + 1])
    assert (y_hat - latents["y"]).abs().max() <= 0.5 + 1e-5
    size = sum(map(len, streams + notes)) * 8
    ideal = model.tables.bits(index, symbols).sum()
    assert ideal < size < 1.01 * ideal + 3 * 64 + 8 * sum(map(len, notes))
    with torch.no_grad():
        assert size < 1.05 * model(x)["bits"].sum() + 3 * 64
