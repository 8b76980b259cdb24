"""The published architectures against the reference package, with the same random weights in both.

Rounding is the difficulty: where a value lies on a rounding boundary, a difference in the last bit
of a float decides between two integers, and whatever follows differs. So the pieces are compared in
float32 with the reference's own rounded latents given to both, and the whole in float64, where no
value comes near enough to a boundary (which is checked). Differences are relative to the largest
value.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest
import torch
from oracle import build, image, randomise, requires_oracle
from tec.models.elic import Elic
from tec.models.factorized import Factorized
from test_models import described, published_keys

pytestmark = requires_oracle

SIZES = {"N128": (128, 192), "N192": (192, 320)}


def close(ours: torch.Tensor, reference: torch.Tensor, tolerance: float = 1e-5) -> None:
    assert ours.shape == reference.shape
    assert ours.dtype == reference.dtype
    largest = reference.abs().max().item()
    assert largest > 0.1
    assert (ours - reference).abs().max().item() <= tolerance * largest


@cache
def pair(kind: str, size: str = "N128", *, double: bool = False) -> tuple:
    """The reference model and ours with the same state dict, under the published names."""
    n, m = SIZES[size]
    torch.manual_seed(0)
    reference = build({"fp": "factorizedprior", "elic": "elic"}[kind], N=n, M=m)
    randomise(reference)
    state_dict = {f"model.{k}": v for k, v in reference.state_dict().items()}
    ours = {"fp": Factorized, "elic": Elic}[kind].from_published(state_dict)
    if double:
        reference, ours = reference.double(), ours.double()
    return reference, ours


@pytest.fixture(scope="module", autouse=True)
def forget() -> Iterator[None]:
    """The pairs take more than a GB."""
    yield
    pair.cache_clear()


@torch.no_grad()
def reference_elic(reference, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the reference computes on the way, with its own rounding."""
    scales, means = [], []

    def note(module, args, kwargs, output):
        scales.append(args[1])
        means.append(kwargs["means"])

    conditionals = [
        g.y.gaussian_conditional for g in reference.latent_codec.y.latent_codec.values()
    ]
    hooks = [c.register_forward_hook(note, with_kwargs=True) for c in conditionals]
    y = reference.g_a(x)
    out = reference.latent_codec(y)
    for hook in hooks:
        hook.remove()
    hyper = reference.latent_codec.hyper
    z = hyper.h_a(y)
    return {
        "y": y,
        "z": z,
        "z_hat": hyper.entropy_bottleneck(z)[0],
        "y_hat": out["y_hat"],
        "means": torch.cat(means, 1),
        "scales": torch.cat(scales, 1),
        "x_hat": reference.g_s(out["y_hat"]),
        "likelihoods": out["likelihoods"],
    }


def distance_to_boundary(distance: torch.Tensor) -> float:
    """How near the nearest of these values comes to one half between two integers."""
    return (0.5 - (distance - distance.round()).abs()).min().item()


ELIC_CASES = [
    pytest.param("N128", (1, 64, 64), id="N128-64"),
    pytest.param("N128", (2, 128, 192), id="N128-128x192-batch2"),
    pytest.param("N192", (1, 64, 128), id="N192-64x128"),
]


@pytest.mark.parametrize(("size", "shape"), ELIC_CASES)
def test_elic_float32_pieces(size, shape):
    reference, ours = pair("elic", size)
    x = image(*shape)
    want = reference_elic(reference, x)
    with torch.no_grad():
        y = ours.analysis(x)
        close(y, want["y"])
        close(ours.side(want["y"])["z"], want["z"])
        means, scales = ours.parameters_of(want["y_hat"], want["z_hat"])
        close(means, want["means"])
        close(scales, want["scales"])
        close(ours.synthesis(want["y_hat"]), want["x_hat"])
    # The comparison means something: many integers, and scales on both sides of their bound.
    assert want["y_hat"].round().unique().numel() > 10
    assert want["z_hat"].round().unique().numel() > 5
    assert want["means"].std() > 0.1
    assert (want["scales"] > 0.11).float().mean() > 0.2


@pytest.mark.parametrize(("size", "shape"), ELIC_CASES)
def test_elic_float64_whole(size, shape):
    reference, ours = pair("elic", size, double=True)
    x = image(*shape).double()
    want = reference_elic(reference, x)
    assert distance_to_boundary(want["y"] - want["means"]) > 1e-8
    assert distance_to_boundary(want["z"] - ours.bottleneck.medians) > 1e-8
    with torch.no_grad():
        out = ours(x)
        close(out["x_hat"], reference(x), 1e-11)
    for key in ("y", "z", "z_hat", "y_hat", "means", "scales", "x_hat"):
        close(out[key], want[key], 1e-11)
    bits = 0
    for key, likelihood in want["likelihoods"].items():
        torch.testing.assert_close(out["likelihoods"][key], likelihood, rtol=1e-6, atol=1e-12)
        bits = bits - likelihood.log2().sum((1, 2, 3))
    torch.testing.assert_close(out["bits"], bits, rtol=1e-6, atol=0)


def test_elic_float32_whole():
    """With an image none of whose latents is near a boundary, float32 agrees from end to end."""
    reference, ours = pair("elic")
    x = image(1, 64, 64)
    want = reference_elic(reference, x)
    assert distance_to_boundary(want["y"] - want["means"]) > 2e-5, "choose another seed"
    assert distance_to_boundary(want["z"] - ours.bottleneck.medians) > 2e-5, "choose another seed"
    with torch.no_grad():
        out = ours(x)
        close(out["x_hat"], reference(x))
    for key in ("y", "z", "y_hat", "z_hat", "means", "scales"):
        close(out[key], want[key])


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 48, 80), (2, 128, 64)], ids=str)
def test_fp_float32(shape):
    reference, ours = pair("fp")
    x = image(*shape)
    with torch.no_grad():
        y = reference.g_a(x)
        y_hat, likelihood = reference.entropy_bottleneck(y)
        close(ours.analysis(x), y)
        close(ours.synthesis(y_hat), reference.g_s(y_hat))
        torch.testing.assert_close(
            ours.bottleneck.likelihood(y_hat), likelihood, rtol=1e-4, atol=1e-6
        )
    assert y_hat.round().unique().numel() > 5


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 48, 80), (2, 128, 64)], ids=str)
def test_fp_float64_whole(shape):
    reference, ours = pair("fp", double=True)
    x = image(*shape).double()
    with torch.no_grad():
        y = reference.g_a(x)
        assert distance_to_boundary(y - ours.bottleneck.medians) > 1e-8
        out = ours(x)
        close(out["x_hat"], reference(x), 1e-11)
        _, likelihood = reference.entropy_bottleneck(y)
    torch.testing.assert_close(out["bits"], -likelihood.log2().sum((1, 2, 3)), rtol=1e-6, atol=0)


def test_fp_float32_whole():
    reference, ours = pair("fp")
    x = image(1, 64, 48)
    with torch.no_grad():
        distance = reference.g_a(x) - ours.bottleneck.medians
        assert distance_to_boundary(distance) > 2e-5, "choose another seed"
        close(ours(x)["x_hat"], reference(x))


@pytest.mark.parametrize(("kind", "size"), [("fp", "N128"), ("elic", "N128"), ("elic", "N192")])
def test_state_dicts_are_alike(kind, size):
    reference, ours = pair(kind, size)
    assert list(reference.state_dict()) == list(ours.state_dict())
    assert described(reference.state_dict()) == described(ours.state_dict())
    assert list(published_keys(kind, 0)) == list(ours.state_dict())


@pytest.mark.parametrize("kind", ["fp", "elic"])
def test_integer_tables(kind):
    reference, ours = pair(kind)
    bottleneck = (
        reference.entropy_bottleneck
        if kind == "fp"
        else reference.latent_codec.hyper.entropy_bottleneck
    )
    cdfs, lengths = bottleneck._quantized_cdf.numpy(), bottleneck._cdf_length.tolist()
    assert len(set(lengths)) > 3
    tables = ours.bottleneck.tables()
    for c, length in enumerate(lengths):  # the checkpoint's own integers are kept
        assert (
            tables.cdf[tables.offsets[c] : tables.offsets[c + 1]].tolist()
            == cdfs[c, :length].tolist()
        )
    assert tables.lowest.tolist() == bottleneck._offset.tolist()

    bare = {
        k: v[:0] if k.endswith(("_cdf", "_length", "_offset")) else v
        for k, v in reference.state_dict().items()
    }
    made = type(ours).from_published(bare).bottleneck.tables()
    assert made.offsets.tolist() == tables.offsets.tolist()
    assert made.lowest.tolist() == tables.lowest.tolist()
    # Two ways to 16 bits, hardly different in what they cost.
    for c, pmf in enumerate(ours.bottleneck.pmfs()[0]):
        span = slice(tables.offsets[c], tables.offsets[c + 1])
        saved = np.log2(np.diff(made.cdf[span]) / np.diff(tables.cdf[span]))
        assert abs((pmf * saved).sum()) < 0.02
