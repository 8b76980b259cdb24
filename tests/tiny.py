"""Tiny seeded checkpoints: random weights, which prove plumbing and not quality, in the format of
the built-in ones and, for the published temporal models, of those."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import tec
import torch
from safetensors.torch import save
from tec.entropy.portable import Margin
from tec.entropy.tables import scale_tables
from tec.models import tt
from tec.models.compact import BLOCK, CompactConfig, CompactElic, CompactFactorized
from tec.models.compact_tt import CompactTT, CompactTTConfig
from tec.sensors import SENSORS

CONFIG = CompactConfig(
    latents=8,
    widths=(4, 4, 4),
    depths=(1, 1, 1),
    groups=(2, 6),
    hidden=8,
    rates=(0.4, 20.0, 700.0),
    scales=(24, 0.05, 60.0, 0.0625),
)
#: λ and channels of each quality of "flex": more of both.
QUALITIES = tuple((round(0.4 * 1750 ** (k / 16), 3), (k + 1) // 2) for k in range(17))
TT_CONFIG = CompactTTConfig(image=CONFIG, width=8, depth=1, side=4, qualities=QUALITIES)
PUBLISHED = tt.TTConfig(channels=(4, 4, 4, 64), width=48, heads=1, expansion=1, layers=(1, 1, 2))


def config_of(model: str, path: str | None) -> tec.CodecConfig:
    """Of all bands and zeros that are nodata; built-in weights without a path."""
    return tec.CodecConfig(
        model=model,
        weights=path or "builtin",
        quality=(16, 4, 0) if model == "flex" else None,
        bands=SENSORS["S2L2A"].bands,
        nodata=0,
    )


def write(path: Path, model: str = "elic", seed: int = 0, weak: float = 1.0) -> Path:
    """A checkpoint of ``model`` at ``path``: .safetensors for a compact one ("flex" is written as
    the "tt" that it is), .pt for a published "tt" or "flex". The latents of the last channel group
    are made ``weak`` times as large."""
    torch.manual_seed(seed)
    if path.suffix == ".pt":
        return _published(path, model)
    network = build(model, seed)
    first = sum(CONFIG.groups[:-1])
    for layer in (network.transforms.klt, network.transforms.analysis[-1]):
        layer.weight[first:] *= weak
        layer.bias[first:] *= weak
    config = TT_CONFIG if isinstance(network, CompactTT) else CONFIG
    tensors = {k: v.half().contiguous() for k, v in network.state_dict().items()}
    for name, values in scale_tables("logistic", CONFIG.grid.scales).to_arrays().items():
        tensors["tables." + name] = torch.from_numpy(values)
    metadata = {
        "model": "tt" if model == "flex" else model,
        "config": json.dumps(asdict(config)),
        "margins": json.dumps([[2.0**-14, 2.0**-14]] * len(CONFIG.rates)),
    }
    path.write_bytes(save(tensors, metadata=metadata))
    return path


def build(
    model: str,
    seed: int = 0,
    config: CompactConfig = CONFIG,
    tt_config: CompactTTConfig = TT_CONFIG,
) -> CompactElic | CompactFactorized | CompactTT:
    """The network of `write`, in float32, in evaluation mode, with tables and margin."""
    torch.manual_seed(seed)
    network: CompactElic | CompactFactorized | CompactTT
    if model in ("tt", "flex"):
        network = CompactTT(tt_config)
        network.repacked = model == "flex"
    else:
        network = {"elic": CompactElic, "fp": CompactFactorized}[model](config)
    _randomise(network)
    network.tables = scale_tables("logistic", network.grid.scales)
    network.margins = (Margin(2.0**-14, 2.0**-14),) * len(config.rates)
    return network.eval().requires_grad_(False)


@torch.no_grad()
def _randomise(network: CompactElic | CompactFactorized | CompactTT) -> None:
    for parameter in network.parameters():
        # Much more than at the start of training: means differ by whole steps, scales by factors.
        parameter.add_((0.3 if parameter.dim() > 1 else 0.1) * torch.randn_like(parameter))
    transforms, latents = network.transforms, network.config.latents
    # Orthogonal: means of three bands each, so that pictures survive, and random patterns.
    patterns = 0.02 * torch.randn(latents, network.bands, BLOCK, BLOCK)
    for k in range(min(4, latents)):
        patterns[k] *= 0.01
        patterns[k, 3 * k : 3 * k + 3] += 1
    basis, signs = torch.linalg.qr(patterns.flatten(1).T)
    transforms.klt.weight.copy_((basis * signs.diagonal().sign()).T.reshape(patterns.shape))
    for part in (transforms.analysis, transforms.expand, transforms.synthesis):
        for parameter in part.parameters():
            parameter.mul_(0.3)
    transforms.synthesis[-2].weight.mul_(0.3)
    rates = len(network.config.rates)
    step = torch.linspace(0.7, -1.5, rates)[:, None].repeat(1, latents)
    transforms.log_step.copy_(step)
    transforms.log_gain.copy_(step + 0.01 * torch.randn(rates, latents))
    scale = torch.linspace(1.5, 0.0, latents)
    network.log_scale.copy_(scale - step if isinstance(network, CompactFactorized) else scale)


@torch.no_grad()
def _published(path: Path, model: str) -> Path:
    """With the names that the published checkpoints have. Latents are some units large."""
    network = tt.TT(replace(PUBLISHED, repacked=model == "flex"))
    for name, parameter in network.named_parameters():
        if parameter.dim() > 1 and "norm" not in name:
            parameter.mul_(1.5)
    x = torch.randn(1, 12, 64, 64)
    for _ in range(4):
        factor = 4 / network.analysis(x).std()
        network.analysis_transform[-2].weight.mul_(factor)
        network.analysis_transform[-2].bias.mul_(factor)
    state = {}
    for key, value in network.state_dict().items():
        theirs = next((t + key[len(o) :] for t, o in tt.NAMES if key.startswith(o)), key)
        state["model." + theirs] = value.half()
    torch.save(state, path)
    return path
