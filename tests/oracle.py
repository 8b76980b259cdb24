"""The published reference package, for comparison: see requirements-oracle.txt.

It needs neither torchvision nor torch-geometric for what is compared here, but imports both to
list their transforms: where one is absent or does not load, an empty module stands in for it.
"""

from __future__ import annotations

import importlib
import sys
import types
import warnings
from functools import cache, partial
from unittest import mock

import torch

STUBS: dict[str, dict[str, dict[str, object]]] = {
    "torchvision": {"": {}, ".transforms": {}},
    "torch_geometric": {
        "": {},
        ".data": {"Data": object},
        ".data.datapipes": {"functional_transform": lambda name: lambda cls: cls},
        ".transforms": {"BaseTransform": object, "Center": object},
    },
}


def _stub(package: str) -> None:
    try:
        importlib.import_module(f"{package}.transforms")
        return
    except Exception:  # a torchvision built for another torch fails in many ways
        for name in [n for n in sys.modules if n.partition(".")[0] == package]:
            del sys.modules[name]
    for suffix, content in STUBS[package].items():
        module = types.ModuleType(package + suffix)
        module.__dict__.update(content)
        sys.modules[module.__name__] = module
        parent, _, child = module.__name__.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)


@cache
def why_not() -> str:
    """Empty where the reference package can be imported, else the reason."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for package in STUBS:
            _stub(package)
        try:
            importlib.import_module("terracodec.models")
        except ImportError as error:
            return f"{error}: pip install --no-deps -r requirements-oracle.txt"
    return ""


def __getattr__(name: str) -> object:
    """`requires_oracle`, decorator of tests that compare: benchmarks do without pytest."""
    if name != "requires_oracle":
        raise AttributeError(name)
    import pytest

    return pytest.mark.skipif(
        bool(why_not()), reason=f"the reference package is not installed: {why_not()}"
    )


def build(model: str, **arguments) -> torch.nn.Module:
    """A model of the reference package with random weights, in evaluation mode.

    ``model`` is "factorizedprior", "elic", "temporaltransformer" or "flextec"; bands=12 unless
    ``in_channels`` says otherwise. It is kept from changing torch's global settings.
    """
    if why_not():
        raise RuntimeError(why_not())
    models = importlib.import_module("terracodec.models")
    unchanged = mock.patch.object(models, "set_determinism")
    with warnings.catch_warnings(), unchanged:
        warnings.simplefilter("ignore")
        return models.build_terracodec(model, image_size=256, **arguments).eval()


def build_small(*, flex: bool, bands: int = 12) -> torch.nn.Module:
    """TEC-TT or FlexTEC with fewer channels and layers than the published ones."""
    package = "terracodec.temporaltransformer"
    pipeline, model, entropy, transforms = (
        importlib.import_module(f"{package}.{name}")
        for name in ("pipeline", "model", "entropy_model", "transforms")
    )

    def transform(in_channels: int, out_channels: int, compression_channels: int):
        return transforms.ELICTransform(in_channels, out_channels, channels=[16, 24, 32, 64])

    prior = partial(
        entropy.TerraCodecTTEntropyModel,
        d_model=96,
        num_head=2,
        num_layers_encoder_sep=2,
        num_layers_encoder_joint=1,
        num_layers_decoder=3,
    )
    with (
        mock.patch.object(pipeline, "TerraCodecTTEntropyModel", prior),
        mock.patch.object(model, "ELICTransform", transform),
    ):
        return build("flextec" if flex else "temporaltransformer", flextec=flex, in_channels=bands)


def image(n: int, h: int, w: int, seed: int = 5, bands: int = 12) -> torch.Tensor:
    """Smooth fields with some noise: (n, bands, h, w), standardised."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(n, bands, h // 16 + 1, w // 16 + 1, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(h, w), mode="bicubic")
    return smooth + 0.3 * torch.randn(n, bands, h, w, generator=generator)


@torch.no_grad()
def randomise(
    model: torch.nn.Module, *, seed: int = 11, spread: float = 4.0, scale: float = 0.6
) -> None:
    """Weights of a reference FP or ELIC among which nothing is zero or symmetric.

    ``spread`` is about the standard deviation of the latent y, ``scale`` the mean of the scales
    that are predicted for it.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(like: torch.Tensor, low: float, high: float) -> torch.Tensor:
        return torch.rand(like.shape, generator=generator) * (high - low) + low

    for name, value in model.named_parameters():
        last = name.rpartition(".")[2]
        if "entropy_bottleneck" in name:
            value.add_(uniform(value, -0.5, 0.5))
        elif last == "gamma":
            value.add_(uniform(value, 0, 0.05))
        elif last == "beta":
            value.mul_(uniform(value, 0.7, 1.3))
        elif last == "bias":
            value.copy_(uniform(value, -0.2, 0.2))
        else:
            value.mul_(1.6)
    x = image(1, 64, 64, seed=seed)
    _amplify(model.g_a, x, spread)
    if hasattr(model, "latent_codec"):
        _amplify(model.latent_codec.hyper.h_a, model.g_a(x), 3.0)
        for group in model.latent_codec.y.latent_codec.values():
            bias = group.entropy_parameters[4].bias
            bias[len(bias) // 2 :] += scale
    model.update(force=True, update_quantiles=True)


@torch.no_grad()
def randomise_temporal(model: torch.nn.Module, *, seed: int = 11, spread: float = 5.0) -> None:
    """The same for a reference TEC-TT or FlexTEC: ``spread`` is the standard deviation of the
    latents, and most predicted scales lie between 0.5 and 6."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.named_parameters():
        last = name.rpartition(".")[2]
        if last == "bias":
            value.copy_(0.4 * torch.rand(value.shape, generator=generator) - 0.2)
        elif ".norm" in name or "layernorm" in name:
            value.copy_(0.6 * torch.rand(value.shape, generator=generator) + 0.7)
        elif last == "_pos":
            value.mul_(10)
        elif "_attention" in name or ".mlp" in name:
            value.mul_(4)
        elif last == "weight" and "pad_token" not in name:
            value.mul_(1.6)
    pipeline = model.model
    bands = pipeline.transform.analysis_transform.in_channels
    x = image(2, 64, 64, seed=seed, bands=bands)[None]
    layers = pipeline.transform.analysis_transform.transforms
    for _ in range(4):  # an attention block comes after the last convolution
        _scale(layers[-2], spread / layers(x[0]).std())
    means, scales = pipeline.entropy_model.mean_head, pipeline.entropy_model.scale_head
    heads = {means: 3.0, scales: 2.0}
    seen: dict[torch.nn.Module, torch.Tensor] = {}
    hooks = [
        head.register_forward_hook(lambda head, _, output: seen.update({head: output}))
        for head in heads
    ]
    pipeline(x)
    for hook in hooks:
        hook.remove()
    for head, wanted in heads.items():
        _scale(head[-1], wanted / seen[head].std())
    scales[-1].bias.add_(2.0)


def _scale(layer: torch.nn.Module, factor: torch.Tensor) -> None:
    layer.weight.mul_(factor)
    layer.bias.mul_(factor)


def _amplify(transform: torch.nn.Sequential, x: torch.Tensor, wanted: float) -> None:
    """Scale the last convolution so that outputs have about this standard deviation."""
    layer = [m for m in transform if isinstance(m, torch.nn.Conv2d)][-1]
    _scale(layer, wanted / transform(x).std())
