"""A tiny seeded checkpoint: random weights, which prove plumbing and not quality, in the format of
the built-in ones."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save
from tec.entropy.portable import Margin
from tec.entropy.tables import scale_tables
from tec.models.compact import CompactConfig, CompactElic, CompactFactorized

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


def write(path: Path, model: str = "elic", seed: int = 0) -> Path:
    """A checkpoint of ``model`` at ``path`` (.safetensors)."""
    torch.manual_seed(seed)
    network = {"elic": CompactElic, "fp": CompactFactorized}[model](CONFIG)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith(("klt.weight", "inverse.weight")):
                # Means of the bands over 16 x 16 pixels and two gradients, so that pictures
                # survive.
                parameter.copy_(0.02 * torch.randn_like(parameter))
                for k in range(min(4, CONFIG.latents)):
                    parameter[k, 3 * k : 3 * k + 3] += 0.036
            elif "log_step" in name or "log_gain" in name:
                parameter.copy_(
                    torch.linspace(0.5, -3.0, len(parameter))[:, None].expand_as(parameter)
                )
            elif parameter.dim() > 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    tensors = {k: v.contiguous() for k, v in network.state_dict().items()}
    tables = scale_tables("logistic", CONFIG.grid.scales)
    tensors |= {f"tables.{k}": torch.from_numpy(v) for k, v in tables.to_arrays().items()}
    margin = Margin(2.0**-14, 2.0**-14)
    metadata = {
        "model": model,
        "config": json.dumps(asdict(CONFIG)),
        "margin": json.dumps([margin.absolute, margin.relative]),
    }
    path.write_bytes(save(tensors, metadata=metadata))
    return path
