"""Tiny seeded checkpoints: random weights, which prove plumbing and not quality, in the format of
the built-in ones and, for the published temporal models, of those."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors.torch import save
from tec.entropy.integers import integer_tables
from tec.entropy.portable import Margin
from tec.entropy.tables import scale_tables
from tec.models import tt
from tec.models.compact import CompactConfig, CompactElic, CompactFactorized
from tec.models.compact_tt import CompactTT, CompactTTConfig
from tec.training.export_tt import logistic

CONFIG = CompactConfig(
    latents=8,
    widths=(4, 4, 4),
    groups=(4, 4),
    hyper=4,
    side=8,
    hidden=8,
    hyper_widths=(8, 8, 8, 8),
    rates=(0.4, 20.0, 700.0),
    scales=(40, 0.05, 200.0, 0.0625),
)


TT_CONFIG = CompactTTConfig(
    image=CONFIG, groups=(1, 2, 2, 3), width=16, heads=2, layers=(1, 1, 2), local=8
)
PUBLISHED = tt.TTConfig(channels=(4, 4, 4, 64), width=48, heads=1, expansion=1, layers=(1, 1, 2))


def write(path: Path, model: str = "elic", seed: int = 0) -> Path:
    """A checkpoint of ``model`` at ``path``: .safetensors for a compact one, .pt for a published
    "tt" or "flex"."""
    torch.manual_seed(seed)
    if path.suffix == ".pt":
        return _published(path, model)
    if model == "tt":
        network = CompactTT(TT_CONFIG)
        _randomise(network.intra)
        with torch.no_grad():
            for name, parameter in network.prior.named_parameters():
                if name == "newer":
                    parameter.add_(0.4)
                elif name == "log_scale":
                    parameter.add_(0.3 * torch.randn_like(parameter) - 1)
                elif parameter.dim() > 1 and "norm" not in name:
                    parameter.add_(0.1 * torch.randn_like(parameter))
        grid = network.grid
        tables = integer_tables(grid, [logistic(s) for s in grid.scales])
        tensors = {f"prior.{k}": v for k, v in network.prior.state_dict().items()}
        tensors |= {k: v for k, v in network.intra.state_dict().items()}
        tensors |= _tensors("tt_tables.", tables)
        tensors |= _tensors("tables.", scale_tables("logistic", CONFIG.grid.scales))
        tensors["centroids"] = 0.1 * torch.randn(len(tables), 5)
        config = json.dumps(asdict(TT_CONFIG))
    else:
        network = {"elic": CompactElic, "fp": CompactFactorized}[model](CONFIG)
        _randomise(network)
        tensors = dict(network.state_dict())
        tensors |= _tensors("tables.", scale_tables("logistic", CONFIG.grid.scales))
        config = json.dumps(asdict(CONFIG))
    margin = Margin(2.0**-14, 2.0**-14)
    written = json.dumps([margin.absolute, margin.relative])
    metadata = {"model": model, "config": config, "margin": written, "intra_margin": written}
    if model != "tt":
        del metadata["intra_margin"]
    path.write_bytes(save({k: v.contiguous() for k, v in tensors.items()}, metadata=metadata))
    return path


def _tensors(prefix: str, tables) -> dict[str, torch.Tensor]:
    return {prefix + k: torch.from_numpy(v) for k, v in tables.to_arrays().items()}


@torch.no_grad()
def _randomise(network: torch.nn.Module) -> None:
    for name, parameter in network.named_parameters():
        if name.endswith(("klt.weight", "inverse.weight")):
            # Means of the bands over 16 x 16 pixels and two gradients, so that pictures survive.
            parameter.copy_(0.02 * torch.randn_like(parameter))
            for k in range(min(4, CONFIG.latents)):
                parameter[k, 3 * k : 3 * k + 3] += 0.036
        elif "log_step" in name or "log_gain" in name:
            parameter.copy_(torch.linspace(0.5, -3.0, len(parameter))[:, None].expand_as(parameter))
        elif parameter.dim() > 1:
            parameter.add_(0.1 * torch.randn_like(parameter))


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
