"""Training learns, resumes exactly where it stopped, and what it exports is a checkpoint."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import tec
import tiny
import torch
import xarray as xr
from scenes import scene
from tec import weights
from tec.models.densities import integer_bits
from tec.sensors import SENSORS
from tec.training.data import Crops, Frame, interpolate_coarse, load_frames
from tec.training.export import averaged, export
from tec.training.export_tt import averaged_tt, export_tt
from tec.training.sequences import Pool, series
from tec.training.temporal import TemporalRecipe, TemporalTrainer
from tec.training.train import Recipe, Trainer, loss_lambda

BANDS = SENSORS["S2L2A"].bands


@pytest.fixture(scope="module")
def cubes(tmp_path_factory) -> Path:
    """A folder of three small cubes as the training expects them; one lacks bands, one has
    nodata."""
    folder = tmp_path_factory.mktemp("cubes")
    for i, bands in enumerate([12, 12, 4]):
        dn = scene(2, bands, 128, 128, seed=i) + 1000
        if i == 1:
            dn[1, :, :40] = 0
        cube = xr.DataArray(
            dn,
            dims=("time", "band", "y", "x"),
            coords={"band": list(BANDS[:bands])},
            name="reflectance",
        )
        cube.attrs = {"level": "L2A", "offset": 1000, "nodata": 0, "resampling": "nearest, aligned"}
        cube.to_dataset().to_zarr(folder / f"l2a_{i}.zarr", zarr_format=2, consolidated=False)
    return folder


@pytest.fixture
def frames(cubes) -> list[Frame]:
    return list(load_frames(cubes))


def recipe(**changes) -> Recipe:
    return Recipe(**{"steps": 8, "batch": 2, "warm_up": 2, "model": tiny.CONFIG, **changes})


def test_only_whole_frames_are_loaded(frames):
    assert [(f.name, f.values.shape, f.repeated) for f in frames] == [
        ("l2a_0.zarr", (12, 128, 128), True),
        ("l2a_0.zarr", (12, 128, 128), True),
        ("l2a_1.zarr", (12, 128, 128), True),
    ]
    mean = frames[0].values.mean() * np.mean(SENSORS["S2L2A"].std) + np.mean(SENSORS["S2L2A"].mean)
    assert mean == pytest.approx(scene(2, 12, 128, 128, seed=0).mean(), rel=0.2)


def test_repeated_pixels_become_bilinear():
    coarse = np.arange(8, dtype=np.float32)
    plane = np.broadcast_to(coarse.repeat(2), (16, 16))
    out = interpolate_coarse(np.stack([plane, plane]), (20, 10))
    np.testing.assert_array_equal(out[1], plane)
    exact = np.interp((np.arange(16) + 0.5) / 2 - 0.5, np.arange(8), coarse)
    np.testing.assert_allclose(out[0], np.broadcast_to(exact, (16, 16)), atol=1e-6)


def test_crops_are_deterministic_by_seed(frames):
    first, again, other = (Crops(frames, seed=s).batch(4, 96) for s in (0, 0, 1))
    assert first.shape == (4, 12, 96, 96)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_resumed_run_equals_an_uninterrupted_one(frames, tmp_path, capsys):
    whole = Trainer(recipe(), frames, frames[:1], tmp_path / "whole")
    whole.run()
    parts = Trainer(recipe(), frames, frames[:1], tmp_path / "parts")
    for _ in range(3):
        parts.one_step()
    parts.save()
    resumed = Trainer(recipe(), frames, frames[:1], tmp_path / "parts")
    assert resumed.step == 3
    resumed.run()
    for a, b in zip(whole.average.state_dict().values(), resumed.average.state_dict().values()):
        assert torch.equal(a, b)
    history = json.loads((tmp_path / "whole" / "history.json").read_text())
    assert history[-1]["step"] == 8
    assert all(math.isfinite(v) for point in history[-1]["elic"] for v in point)
    assert (tmp_path / "whole" / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert "step 8" in capsys.readouterr().out


def test_training_lowers_the_loss(frames, tmp_path):
    trainer = Trainer(recipe(steps=40, learning_rate=2e-3), frames, frames[:1], tmp_path)
    trainer.report()
    trainer.run()
    lambdas = loss_lambda(trainer.recipe, torch.arange(3.0)).tolist()
    std = np.mean(SENSORS["S2L2A"].std)

    def objective(row):
        """log(λ · error + bits) from bpppb and PSNR, summed over the rates."""
        return sum(
            math.log(lmbda * 12 * 10 ** (8 - psnr / 10) / std**2 + 12 * bpppb)
            for lmbda, (bpppb, psnr) in zip(lambdas, row["elic"])
        )

    assert objective(trainer.history[-1]) < objective(trainer.history[0]) - 0.15


def test_an_export_is_a_checkpoint(frames, tmp_path):
    trainer = Trainer(recipe(steps=2), frames, frames[:1], tmp_path)
    trainer.run()
    entry = export(averaged(tmp_path, config=tiny.CONFIG), tiny.CONFIG, frames, tmp_path, batches=2)
    assert set(entry) == {"elic", "fp"}
    for model, values in entry.items():
        paths = tuple(tmp_path / name for name in values["files"])
        network = weights.read(model, paths)
        assert network.sha256 == values["sha256"]
        assert 0 < network.margin.absolute < 1e-2
        y = network.analysis(torch.zeros(1, 12, 64, 64), 20.0)
        assert y.shape == (1, tiny.CONFIG.latents, 4, 4)
        assert len(network.tables) == tiny.CONFIG.scales[0]


def test_a_missing_run_says_so(tmp_path):
    with pytest.raises(tec.WeightsError, match="no training state"):
        averaged(tmp_path)


# ------------------------------------------------------------------------------ tt


@pytest.fixture(scope="module")
def tiny_image(tmp_path_factory) -> tuple[Path, object]:
    """Files of a tiny built-in elic, and the network."""
    folder = tmp_path_factory.mktemp("image")
    name = "s2l2a-elic.safetensors"
    tiny.write(folder / name, "elic")
    (folder / "manifest.json").write_text(json.dumps({"S2L2A": {"elic": {"files": [name]}}}))
    return folder, weights.read("elic", (folder / name,))


def tt_recipe(**changes) -> TemporalRecipe:
    return TemporalRecipe(
        **{"steps": 6, "blocks": 3, "refresh": 2, "warm_up": 2, "model": tiny.TT_CONFIG, **changes}
    )


def test_frames_of_a_cube_become_a_series_again(frames):
    places = list(series(frames))
    assert [(p.name, p.values.shape) for p in places] == [
        ("l2a_0.zarr", (2, 12, 128, 128)),
        ("l2a_1.zarr", (1, 12, 128, 128)),
    ]
    np.testing.assert_array_equal(places[0].values[1], frames[1].values)


def test_series_without_two_dates_are_refused(frames, tiny_image):
    with pytest.raises(ValueError, match="two dates"):
        Pool(list(series(frames))[1:], tiny_image[1].transforms)


def test_the_bits_of_integers_are_those_of_their_law():
    mean, log_scale = torch.tensor([0.3]), torch.tensor([-1.0])
    values = torch.arange(-40.0, 41.0)
    bits = integer_bits(values, mean, log_scale)
    assert math.isclose(torch.exp2(-bits).sum().item(), 1, abs_tol=1e-4)
    assert bits.argmin() == 40
    np.testing.assert_allclose(integer_bits(-values, -mean, log_scale), bits, rtol=1e-4)


def test_tt_trains_stops_and_goes_on(frames, tiny_image, tmp_path):
    places = list(series(frames))

    def trainer() -> TemporalTrainer:
        return TemporalTrainer(tt_recipe(), tiny_image[1], places, places[:1], tmp_path)

    first = trainer()
    before = {n: p.clone() for n, p in first.prior.named_parameters()}
    assert all(math.isfinite(first.one_step()) for _ in range(3))
    moved = [n for n, p in first.prior.named_parameters() if not torch.equal(p, before[n])]
    assert {"newer", "older", "log_scale", "spread.0", "head.0.3.weight"} <= set(moved)
    first.save()
    second = trainer()
    assert second.step == 3
    for a, b in zip(first.prior.parameters(), second.prior.parameters(), strict=True):
        assert torch.equal(a, b)
    second.run(minutes=5)
    assert second.step == 6
    (row,) = json.loads((tmp_path / "history.json").read_text())
    assert len(row["tt"]) == 2
    assert all(0 < a <= b for a, b in zip(row["tt"], row["elic"]))


def test_what_tt_exports_codes_a_series(frames, tiny_image, tmp_path, monkeypatch):
    places = list(series(frames))
    TemporalTrainer(tt_recipe(steps=1), tiny_image[1], places, [], tmp_path).run()
    folder, elic = tiny_image
    prior = averaged_tt(tmp_path, tiny.TT_CONFIG)
    entry = export_tt(prior, tiny.TT_CONFIG, elic, places, folder, batches=2)
    assert json.loads((folder / "manifest.json").read_text())["S2L2A"]["tt"] == entry
    paths = tuple(folder / name for name in entry["files"])
    network = weights.read("tt", paths, expect=entry["sha256"])
    assert network.margin.absolute < 1e-3
    assert network.centroids.shape == (len(network.tables), 5)
    assert np.abs(network.centroids).max() < 0.75
    chunk = scene(3, 12, 40, 70)
    merged = tmp_path / "tt.safetensors"
    merged.write_bytes(paths[-1].read_bytes())
    with pytest.raises(tec.WeightsError, match="not a checkpoint"):  # the images' part is missing
        weights.read("tt", (merged,))
    monkeypatch.setattr(weights, "FOLDER", folder)
    monkeypatch.setattr(weights, "manifest", lambda: {"S2L2A": {"tt": entry}})
    back = tec.decode(tec.encode(chunk, tec.CodecConfig(model="tt", bands=BANDS)))
    assert back.shape == chunk.shape


def test_no_tt_state_is_an_error(tmp_path):
    with pytest.raises(tec.WeightsError, match="fit-tt"):
        averaged_tt(tmp_path, tiny.TT_CONFIG)
