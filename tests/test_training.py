"""Training learns, resumes exactly where it stopped, and what it exports is a checkpoint."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import tec
import tec.training.__main__ as training
import tec.training.export as exporting
import tiny
import torch
import xarray as xr
from scenes import scene
from tec import weights
from tec.models.compact import CompactConfig, CompactElic, Transforms
from tec.models.compact_tt import CompactTT
from tec.models.densities import integer_bits
from tec.sensors import SENSORS
from tec.training import train
from tec.training.data import Crops, Frame, interpolate_coarse, load_frames
from tec.training.export import averaged, choose_qualities, choose_rates, export
from tec.training.published import PublishedRecipe, PublishedTrainer
from tec.training.sequences import Series, SeriesCrops, series
from tec.training.temporal import TemporalRecipe, TemporalTrainer, extend_tt
from tec.training.train import Pair, Recipe, Trainer, extend, loss_lambda

BANDS = SENSORS["S2L2A"].bands


@pytest.fixture(scope="module", autouse=True)
def starts():
    """The KLT that a run starts from is found once for all runs alike: it takes half a minute."""
    found = {}
    inner = train.start_from_klt

    def start(pair, crops):
        pixels = sum(float(frame.values.sum()) for frame in crops.frames)
        key = pair.elic.config, json.dumps(crops.rng.bit_generator.state), pixels
        if key not in found:
            inner(pair, crops)
            found[key] = copy.deepcopy(pair.state_dict()), crops.rng.bit_generator.state
        state, crops.rng.bit_generator.state = found[key]
        pair.load_state_dict(state)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "start_from_klt", start)
        yield


@pytest.fixture(autouse=True)
def denormals():
    """The command has the processor flush them, in the thread that it runs in: here, that of all
    tests."""
    yield
    torch.set_flush_denormal(False)


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
    assert [(f.name, f.values.shape) for f in frames] == [
        ("l2a_0.zarr", (12, 128, 128)),
        ("l2a_0.zarr", (12, 128, 128)),
        ("l2a_1.zarr", (12, 128, 128)),
    ]
    smooth = interpolate_coarse(frames[0].values, SENSORS["S2L2A"].gsd)
    np.testing.assert_array_equal(frames[0].smooth, smooth)
    mean = frames[0].values.mean() * np.mean(SENSORS["S2L2A"].std) + np.mean(SENSORS["S2L2A"].mean)
    assert mean == pytest.approx(scene(2, 12, 128, 128, seed=0).mean(), rel=0.2)


def test_band_variables_are_a_cube_too(cubes, frames, tmp_path):
    cube = xr.open_zarr(cubes / "l2a_0.zarr", consolidated=False).reflectance
    ds = cube.drop_attrs().to_dataset("band").transpose("y", "x", "time")
    (ds - 1000).to_zarr(tmp_path / "bands.zarr", zarr_format=2, consolidated=False)
    for mine, other in zip(load_frames(tmp_path), frames):
        np.testing.assert_array_equal(mine.values, other.values)
        assert mine.weight == other.weight
    ds[["B02"]].rename(B02="blue").to_zarr(tmp_path / "x.zarr", zarr_format=2, consolidated=False)
    with pytest.raises(ValueError, match="rename its variables"):
        list(load_frames(tmp_path / "x.zarr"))


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


def test_crops_are_as_large_as_the_frames_allow(frames):
    assert Crops(frames).batch(2, 512).shape == (2, 12, 128, 128)
    small = [Frame("small", frames[0].values[:, :100, :110], frames[0].smooth[:, :100, :110])]
    assert Crops(small).batch(2, 128).shape == (2, 12, 96, 96)
    with pytest.raises(ValueError, match="no training frames"):
        Crops([])


def test_crops_are_varied_by_haze_and_holes(frames):
    crops = Crops(frames, seed=3)
    assert crops.haze.shape == (12, 1, 1)
    assert crops.haze[1] > 3 * crops.haze[11] > 0  # blue light is scattered most
    plain = Crops(frames, seed=3).batch(60, 32, vary=False)
    known = np.stack([f.smooth for f in frames])
    assert plain.min() >= known.min()
    assert plain.max() <= known.max()
    many = crops.batch(60, 32)
    assert torch.isfinite(many).all()
    assert many.max() > plain.max()


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
    trainer.report([])
    trainer.run()
    lambdas = loss_lambda(trainer.recipe, torch.arange(3.0)).tolist()
    std = np.mean(SENSORS["S2L2A"].std)

    def objective(row):
        """log(λ · error + bits) from bpppb and PSNR, summed over the rates."""
        return sum(
            math.log(lmbda * 12 * 10 ** (8 - psnr / 10) / std**2 + 12 * bpppb)
            for lmbda, (bpppb, psnr) in zip(lambdas, row["elic"])
        )

    assert objective(trainer.history[-1]) < objective(trainer.history[0]) - 0.1


def test_a_run_starts_from_a_lapped_klt(frames, tmp_path):
    config = CompactConfig(**{**tiny.CONFIG.__dict__, "latents": 48, "groups": (16, 32)})
    trainer = Trainer(recipe(model=config), frames, [], tmp_path)
    weight = trainer.pair.elic.transforms.klt.weight
    rows = weight.flatten(1)
    torch.testing.assert_close(rows @ rows.T, torch.eye(48), atol=1e-4, rtol=0)
    assert not weight.requires_grad
    x = Crops(frames, seed=9).batch(4, 96, vary=False)
    with torch.inference_mode():
        y = trainer.pair.elic.transforms.encode(x, torch.full((4,), 2.0))
        back = trainer.pair.elic.transforms.decode(y, torch.full((4,), 2.0))
    energy = trainer.pair.elic.transforms.latent(x).square().mean((0, 2, 3))
    assert energy[:8].mean() > 10 * energy[-8:].mean()  # strongest first
    assert (back - x).square().mean() < 0.1 * x.var()


def test_an_export_is_a_checkpoint(frames, tmp_path):
    trainer = Trainer(recipe(steps=2), frames, frames[:1], tmp_path)
    trainer.run()
    entry = export(averaged(tmp_path), frames, tmp_path, batches=2)
    assert set(entry) == {"elic", "fp"}
    for model, values in entry.items():
        paths = tuple(tmp_path / name for name in values["files"])
        network = weights.read(model, paths)
        assert network.sha256 == values["sha256"]
        assert all(0 < margin.absolute < 1e-2 for margin in network.margins)
        y = network.analysis(torch.zeros(1, 12, 64, 64), 20.0)
        assert y.shape == (1, tiny.CONFIG.latents, 4, 4)
        assert len(network.tables) == tiny.CONFIG.scales[0]


def test_a_missing_run_says_so(tmp_path):
    with pytest.raises(tec.WeightsError, match="no training state"):
        averaged(tmp_path)


# ------------------------------------------------------------------------------ tt


def tt_recipe(**changes) -> TemporalRecipe:
    return TemporalRecipe(
        **{
            "steps": 6,
            "positions": 32,
            "sizes": (2, 4),
            "refresh": 2,
            "entries": 6,
            "warm_up": 2,
            "model": tiny.TT_CONFIG,
            **changes,
        }
    )


def test_frames_of_a_cube_become_a_series_again(frames):
    places = list(series(frames))
    assert [(p.name, p.smooth.shape) for p in places] == [
        ("l2a_0.zarr", (2, 12, 128, 128)),
        ("l2a_1.zarr", (1, 12, 128, 128)),
    ]
    np.testing.assert_array_equal(places[0].smooth[1], frames[1].smooth)


def test_series_without_two_dates_are_refused(frames):
    with pytest.raises(ValueError, match="two dates"):
        SeriesCrops(list(series(frames))[1:], np.random.default_rng(0), dates=3)


def test_series_are_cut_to_what_is_asked(frames):
    crops = SeriesCrops(list(series(frames)), np.random.default_rng(0), dates=3)
    assert {crops.draw(64, exactly=True).shape for _ in range(6)} == {(3, 12, 64, 64)}
    assert {len(crops.draw(64)) for _ in range(20)} == {2, 3}  # real, or one date relit
    with pytest.raises(ValueError, match="no series is 256 x 256"):
        crops.draw(256, exactly=True)


def test_the_bits_of_integers_are_those_of_their_law():
    mean, log_scale = torch.tensor([0.3]), torch.tensor([-1.0])
    values = torch.arange(-40.0, 41.0)
    bits = integer_bits(values, mean, log_scale)
    assert math.isclose(torch.exp2(-bits).sum().item(), 1, abs_tol=1e-4)
    assert bits.argmin() == 40
    np.testing.assert_allclose(integer_bits(-values, -mean, log_scale), bits, rtol=1e-4)


def test_tt_starts_as_elic(frames, tmp_path):
    """Told nothing, before any step: the same bits."""
    elic = tiny.build("elic")
    assert isinstance(elic, CompactElic)
    trainer = TemporalTrainer(tt_recipe(), elic, list(series(frames)), [], tmp_path)
    tt = trainer.average.eval()
    rate = torch.tensor([0.3, 1.7])
    y = 3 * torch.randn(2, tiny.CONFIG.latents, 4, 6)
    with torch.inference_mode():
        alone = elic.estimate(y, rate)
        found = tt.estimate(y, rate, told=tt.told([], (2, 4, 6), rate))
    torch.testing.assert_close(found["bits"], alone["bits"])
    torch.testing.assert_close(found["y_hat"], alone["y_hat"])


def test_tt_trains_stops_and_goes_on(frames, tmp_path):
    places = list(series(frames))

    def trainer() -> TemporalTrainer:
        return TemporalTrainer(tt_recipe(), tiny.build("elic"), places, places[:1], tmp_path)

    first = trainer()
    before = {n: p.clone() for n, p in first.module.named_parameters()}
    assert all(math.isfinite(first.one_step()) for _ in range(3))
    moved = {n for n, p in first.module.named_parameters() if not torch.equal(p, before[n])}
    assert {"newer", "older", "embed.weight", "groups.0.anchors.weight"} <= moved
    assert not any(name.startswith("transforms.") for name in moved)
    first.save()
    second = trainer()
    assert second.step == 3
    for a, b in zip(first.module.parameters(), second.module.parameters(), strict=True):
        assert torch.equal(a, b)
    second.run(minutes=5)
    assert second.step == 6
    (row,) = json.loads((tmp_path / "history.json").read_text())
    assert len(row["tt"]) == len(row["alone"]) == 2
    assert all(value > 0 for value in (*row["tt"], *row["alone"]))
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_training_lowers_the_loss_of_tt(frames, tmp_path):
    recipe_ = tt_recipe(steps=60, learning_rate=5e-3)
    places = list(series(frames))
    trainer = TemporalTrainer(recipe_, tiny.build("elic"), places, [], tmp_path)
    losses = [trainer.one_step() for _ in range(60)]
    assert np.mean(losses[-20:]) < np.mean(losses[:20]) - 0.05


def test_what_tt_exports_codes_a_series(frames, tmp_path, monkeypatch):
    places = list(series(frames))
    run, folder = tmp_path / "run", tmp_path / "weights"
    folder.mkdir()
    TemporalTrainer(tt_recipe(steps=1), tiny.build("elic"), places, [], run).run()
    tt = averaged(run)
    entry = export(tt, frames, folder, batches=2)
    assert set(entry) == {"tt", "flex"}
    assert entry["tt"]["files"] == entry["flex"]["files"]
    assert entry["tt"]["sha256"] == entry["flex"]["sha256"]
    assert json.loads((folder / "manifest.json").read_text()) == {"S2L2A": entry}
    paths = tuple(folder / name for name in entry["tt"]["files"])
    network = weights.read("tt", paths, expect=entry["tt"]["sha256"])
    assert all(0 < margin.absolute < 1e-2 for margin in network.margins)
    with pytest.raises(tec.WeightsError, match="not a checkpoint"):  # the transforms are missing
        weights.read("tt", paths[-1:])
    monkeypatch.setattr(weights, "FOLDER", folder)
    monkeypatch.setattr(weights, "manifest", lambda: {"S2L2A": entry})
    chunk = scene(3, 12, 40, 70)
    for model in ("tt", "flex"):
        back = tec.decode(tec.encode(chunk, tec.CodecConfig(model=model, bands=BANDS)))
        assert back.shape == chunk.shape


def test_an_exported_tt_leans_on_the_elic_beside_it(frames, tmp_path):
    pair, tt = Pair(tiny.CONFIG), tiny.build("tt")
    assert isinstance(tt, CompactTT)
    pair.elic.load_state_dict(tiny.build("elic").state_dict())
    pair.elic.transforms.load_state_dict(tt.transforms.state_dict())
    export(pair, frames, tmp_path, batches=2)
    entry = export(tt, frames, tmp_path, batches=2)
    names = [f"s2l2a-{part}.safetensors" for part in ("transforms", "elic", "tt")]
    assert entry["tt"]["files"] == entry["flex"]["files"] == names
    network = weights.read("tt", tuple(tmp_path / n for n in names), expect=entry["tt"]["sha256"])
    assert network.alone is not None
    assert sum(p.numel() for p in network.parameters()) == entry["tt"]["parameters"]
    assert len(network.tables) == 2 * tiny.CONFIG.scales[0]
    assert network.alone.first_table == tiny.CONFIG.scales[0]
    assert network.double().alone.transforms.level.dtype == torch.float64
    # Another elic: what leant on the one before is not to be trusted any more.
    export(pair, frames, tmp_path, batches=2)
    assert set(json.loads((tmp_path / "manifest.json").read_text())["S2L2A"]) == {"elic", "fp"}


def test_qualities_ask_for_more_and_more(frames):
    tt = tiny.build("tt")
    assert isinstance(tt, CompactTT)
    qualities = choose_qualities(tt, frames[:2])
    assert len(qualities) == 17
    assert qualities[0][1] == 0
    lambdas, channels = zip(*qualities[1:])
    assert list(lambdas) == sorted(lambdas)
    assert 1 <= min(channels) <= max(channels) <= tiny.CONFIG.latents


def reachable(monkeypatch, elic: CompactElic, frames: list[Frame]) -> None:
    """As if the published checkpoint took bits that a tiny network can take."""
    spent = [exporting._spent(elic, frames[:1], rate).sum() for rate in (0.75, 1.25, 1.75)]
    monkeypatch.setattr(exporting, "_CODED", (1.0, 0))
    monkeypatch.setattr(exporting, "_ELIC", dict(zip((2, 10, 40), spent)))


def test_rates_are_those_at_which_the_published_bits_are_met(frames, monkeypatch):
    elic = tiny.build("elic")
    assert isinstance(elic, CompactElic)
    with pytest.raises(ValueError, match="not trained enough"):
        choose_rates(elic, frames[:1])
    reachable(monkeypatch, elic, frames)
    rates = choose_rates(elic, frames[:1])
    # Evenly spaced in log λ: 2 at 0.75, 10 a half further, 40 at about another.
    assert rates == pytest.approx((0.22, 4.3, 86), rel=0.1)


def test_the_command_trains_goes_on_and_exports(cubes, tmp_path, monkeypatch, capsys):
    """``fit`` and ``fit-tt`` from built-in weights (here: tiny ones), and ``export`` of both."""
    built_in = {name: tiny.build(name) for name in ("elic", "fp", "tt")}
    built_in["fp"].transforms = built_in["elic"].transforms
    monkeypatch.setattr(training, "load", lambda name, **_: built_in[name])
    reachable(monkeypatch, built_in["elic"], list(load_frames(cubes)))
    folder, patch = tmp_path / "weights", str(cubes / "l2a_0.zarr")
    folder.mkdir()
    monkeypatch.setattr(training, "FOLDER", folder)

    def command(*words: str) -> None:
        monkeypatch.setattr("sys.argv", ["tec.training", *words])
        training.main()

    for fit, models in (("fit", {"elic", "fp"}), ("fit-tt", {"tt", "flex"})):
        out = str(tmp_path / fit)
        command(fit, str(cubes), str(cubes), "--out", out, "--further", "--steps", "1")
        for where in ((), ("--built-in",)):
            command("export", str(cubes), "--out", out, "--patch", patch, *where)
            said = capsys.readouterr().out
            assert set(json.loads(said[said.index("{") :])) == models
    chunk = scene(2, 12, 40, 70)
    for run, model in (("fit", "elic"), ("fit", "fp"), ("fit-tt", "tt"), ("fit-tt", "flex")):
        path = str(tmp_path / run / f"{model.replace('flex', 'tt')}.safetensors")
        data = tec.encode(chunk, tec.CodecConfig(model=model, weights=path, bands=BANDS))
        assert tec.decode(data, weights=path).shape == chunk.shape
    manifest = json.loads((folder / "manifest.json").read_text())["S2L2A"]
    assert set(manifest) == {"tt", "flex"}  # over other transforms than elic's and fp's
    for model, entry in manifest.items():
        paths = tuple(folder / name for name in entry["files"])
        assert weights.read(model, paths, expect=entry["sha256"]).config.bands == 12


def test_another_sensor_treats_the_same_bands_alike(tmp_path):
    """L1C's transforms, before training: bands of both sensors as L2A's do, B10 by itself."""
    sizes = {**tiny.CONFIG.__dict__, "latents": 40, "groups": (8, 32)}
    ours, theirs = CompactConfig(**sizes), CompactConfig(**{**sizes, "bands": 13})
    source, target = Transforms(ours), Transforms(theirs)
    with torch.no_grad():
        for p in source.parameters():
            p.add_(0.05 * torch.randn_like(p))
        source.klt.weight[-16:] = 0  # what B10 takes the place of
        source.klt.bias[-16:] = 0
        source.analysis[-1].weight[-16:] = 0
        source.analysis[-1].bias[-16:] = 0
        source.log_gain[:, -16:] -= 1  # weak latents, which decoding shrinks
    extend(source, target, ("S2L2A", "S2L1C"))
    l2a, l1c = SENSORS["S2L2A"], SENSORS["S2L1C"]
    dn = 1500 + 300 * torch.randn(1, 13, 32, 32)
    dn[:, 10] = torch.linspace(10, 90, 32)  # under thin cirrus
    both = [l1c.bands.index(b) for b in l2a.bands]
    rate = torch.tensor([1.0])

    def standardised(values, sensor):
        mean, std = (torch.tensor(v)[:, None, None] for v in (sensor.mean, sensor.std))
        return (values - mean) / std

    with torch.inference_mode():
        y = source.encode(standardised(dn[:, both], l2a), rate)
        found = target.encode(standardised(dn, l1c), rate)
        torch.testing.assert_close(found[:, :24], y[:, :24], rtol=1e-3, atol=1e-3)
        assert found[:, -16:].abs().max() > 1  # of B10 alone
        assert y[:, -16:].abs().max() < 1e-4
        std = torch.tensor(l1c.std)[both][:, None, None] / torch.tensor(l2a.std)[:, None, None]
        mean = (torch.tensor(l1c.mean)[both] - torch.tensor(l2a.mean)) / torch.tensor(l2a.std)
        decoded = target.decode(found, rate)
        back = decoded[:, both] * std + mean[:, None, None]
        torch.testing.assert_close(back, source.decode(y, rate), rtol=1e-3, atol=1e-3)
        cirrus = decoded[:, 10] * l1c.std[10] + l1c.mean[10]
        assert (cirrus - dn[:, 10]).abs().max() < 5


def test_tt_of_another_sensor_codes_b10(tmp_path):
    sizes = {**tiny.CONFIG.__dict__, "latents": 40, "groups": (8, 32)}
    image = CompactConfig(**sizes)
    source = CompactTT(tiny.TT_CONFIG.__class__(image, width=8, depth=1, side=4))
    target = CompactTT(source.sizes.__class__(CompactConfig(**{**sizes, "bands": 13}), 8, 1, 4))
    rng = np.random.default_rng(0)
    values = rng.standard_normal((13, 128, 128)).cumsum(2).astype(np.float32) / 8
    frames = [Frame("a", values, values)]
    extend_tt(source, target, frames, "S2L1C")
    x = torch.from_numpy(values[None, :, :64, :64])
    y = target.analysis(x, 60.0)
    assert y.shape == (1, 40, 4, 4)
    assert y[:, -16:].abs().mean() > 0.1
    assert (target.groups[-1].anchors.weight[16:32] == 0).all()


# ------------------------------------------------------------------------------ published sizes

SIZES = {
    "fp": (("N", 8), ("M", 12)),
    "elic": (
        *(("N", 8), ("M", 48), ("groups", (4, 4, 8, 16, 16))),
        *(("context", (8, 8)), ("hidden", 8)),
    ),
    "tt": (
        *(("channels", (12, 12, 12, 64)), ("width", 48), ("heads", 1)),
        *(("expansion", 1), ("layers", (1, 1, 1))),
    ),
}


@pytest.mark.parametrize("model", ["fp", "elic", "tt", "flex"])
def test_training_of_the_published_networks_makes_checkpoints(frames, tmp_path, model):
    temporal = model in ("tt", "flex")
    data = list(series(frames)) if temporal else frames
    assert not temporal or isinstance(data[0], Series)
    recipe = PublishedRecipe(
        model=model,
        steps=3,
        batch=2,
        size=64,
        dates=2,
        warm_up=1,
        sizes=SIZES["tt" if temporal else model],
    )
    trainer = PublishedTrainer(recipe, data, data[:1], tmp_path)
    before = {n: p.clone() for n, p in trainer.module.named_parameters()}
    trainer.run()
    assert trainer.step == 3
    still = [n for n, p in trainer.module.named_parameters() if torch.equal(p, before[n])]
    assert len(still) < 0.2 * len(before), still
    path = str(tmp_path / "checkpoint.pt")
    config = tec.CodecConfig(model=model, weights=path, bands=BANDS)
    chunk = scene(2, 12, 64, 64)
    assert tec.decode(tec.encode(chunk, config), weights=path).shape == chunk.shape
