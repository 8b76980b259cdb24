"""More compression= never means more error, and always more bytes."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from data import FOLDER, requires_real
from tec import codec
from tec.config import CodecConfig
from tec.sensors import SENSORS

from xtec.synthetic import scene

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

from monotone import changes, frames_of, ladder, standardised, worst_rise

MODELS = ("elic", "fp")


def scenes(count: int, size: int) -> list[np.ndarray]:
    """DN of one date each, other ground and season each time: (band, y, x) uint16."""
    return [scene(size=size, dates=2, seed=seed).reflectance.values[0] for seed in range(count)]


def test_the_ladder_and_what_is_read_off_it() -> None:
    steps = ladder()
    assert (steps[0], steps[-1]) == (0.4, pytest.approx(700))
    ratios = np.array(steps[1:]) / steps[:-1]
    assert ratios.max() <= 1.05
    assert ratios.min() > 1.04
    worst, *others = changes([1, 2, 3, 4], [8.0, 4.0, 5.0, 5.5])
    assert (worst.low, worst.high, worst.share) == (2, 3, 0.25)
    assert str(worst) == "+25.000 % from λ 2 to 3"
    assert [step.share > 0 for step in others] == [True, False]


@pytest.mark.parametrize("model", MODELS)
def test_the_error_never_rises_on_generated_scenes(model: str) -> None:
    frames = [standardised(dn) for dn in scenes(6, 64)]
    worst = worst_rise(model, frames, ladder())
    assert worst.share <= 0, f"{model}: {worst}"


@requires_real
@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_the_error_never_rises_on_real_ones(model: str) -> None:
    frames = list(frames_of(FOLDER / "val", "l2a_ssl4eo*.zarr", 96))
    assert frames, "the folder of real cubes holds none of SSL4EO-S12"
    worst = worst_rise(model, frames, ladder())
    assert worst.share <= 0, f"{model}: {worst}"


@pytest.mark.parametrize("model", MODELS)
def test_bytes_rise(model: str) -> None:
    chunks = [dn[None] for dn in scenes(2, 64)]
    sizes = []
    for lmbda in ladder(0.5):
        config = CodecConfig(model=model, compression=lmbda, bands=SENSORS["S2L2A"].bands)
        sizes.append(sum(map(len, codec.encode_many(chunks, config))))
    assert (np.diff(sizes) > 0).all(), sizes
