"""The comparison with other codecs: each goes there and back, curves compare as they should, and a
run ends in figures."""

from __future__ import annotations

import json
import math
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from oracle import requires_oracle
from scenes import scene
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import comparing
import curves
import lossless
import measuring
import overheads
import planes
import rate_distortion
import reading
import report
import rivals
import speed
import stages
import subjects
import validation
from baselines import BASELINES

CURVE = [(0.05, 35.0), (0.1, 38.0), (0.2, 41.0), (0.5, 45.0)]


@pytest.mark.parametrize("name", BASELINES)
def test_finer_settings_cost_bytes_and_save_error(name: str) -> None:
    codec = BASELINES[name]
    if why := codec.missing():
        pytest.skip(why)
    dn = scene(2 if codec.series else 1, 4, 128, 128)
    sizes, errors = [], []
    for setting in codec.settings[-5::2]:
        parts = codec.encode(dn, setting)
        assert all(isinstance(part, bytes) for part in parts)
        back = codec.decode(parts, dn.shape)
        assert back.shape == dn.shape
        assert back.dtype.kind in "iu"
        sizes.append(sum(map(len, parts)))
        errors.append(np.sqrt(np.mean((back - dn.astype(float)) ** 2)))
    assert sizes == sorted(set(sizes))
    assert errors == sorted(set(errors), reverse=True)
    assert errors[-1] < 60


@pytest.mark.parametrize("codec", planes.PLANE_CODECS, ids=lambda codec: codec.name)
def test_codecs_of_single_bands_keep_the_bound(codec: planes.PlaneCodec) -> None:
    if why := codec.missing():
        pytest.skip(why)
    dn = scene(2, 3, 64, 96)
    dn[0, 0, :8, :8] = 60000
    sizes = []
    for bound in filter(codec.keeps, (0, 2, 20)):
        parts = codec.there(dn, bound)
        error = np.abs(codec.back(parts, dn.shape) - dn)
        assert error.max() <= bound
        assert (error > 0).any() == (bound > 0)
        sizes.append(sum(map(len, parts)))
    assert sizes == sorted(set(sizes), reverse=True)
    assert 2000 < sizes[-1] < dn.nbytes


def test_tables_of_lossless_and_bounded_files(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lossless, "SPEED_BOUNDS", (20,))
    monkeypatch.setattr(lossless, "chunk_of", lambda *_: (scene(4, 12, 32, 32), 0.0))
    out = tmp_path / "out.json"
    arguments = ["--data", str(data), "--bounds", "0", "5", "--only", "sizes", "speed"]
    lossless.main([*arguments, "--runs", "1", "--json", str(out)])
    text = capsys.readouterr().out
    assert "| | L2A, SSL4EO-S12 (1) | L2A, GELOS (1) | L2A, all (2) | largest error |" in text
    result = json.loads(out.read_text())
    for cube in result["sizes"]:
        exact, near = cube["0"]["ours"], cube["5"]["ours"]
        assert (exact["worst"], exact["psnr"]) == (0, None)
        assert near["worst"] == 5
        assert near["psnr"] == pytest.approx(10 * math.log10(1e8 / 10), abs=0.2)  # even: 110 / 11
        assert near["bpppb"] < exact["bpppb"] < 8
        assert f"{near['bpppb']:.3f}" in text
    assert min(row[way] for row in result["speed"] for way in lossless.WAYS) > 0


def test_a_bound_that_is_not_kept_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    chunk = validation.Chunk(
        "place", (0,), scene(1, 12, 32, 32), tuple(measuring.tec.CodecConfig().bands), 0.0
    )
    other = lossless.config_of(chunk, 9)
    monkeypatch.setattr(lossless, "config_of", lambda *_: other)
    with pytest.raises(SystemExit, match=r"ours is off by 9 DN on place where 5 was the bound"):
        lossless.ours([chunk], 5)


def test_pictures_that_suit_a_bound(data: Path) -> None:
    assert lossless.pictured(150)["compression"] == 20
    assert lossless.pictured(1)["compression"] == 700


def test_whole_cubes(data: Path) -> None:
    (level, single), (_, place) = validation.whole_cubes(data)
    assert level == "L2A"
    assert [c.dn.shape for c in single] == [(1, 12, 70, 64)]
    assert [c.dates for c in place] == [(0, 1, 2, 3), (4, 5)]
    assert (place[0].dn[1, :, :20] == 0).all()
    assert len(list(validation.whole_cubes(data, level="L2A", limit=1))) == 1
    assert list(validation.whole_cubes(data, level="L1C")) == []


@pytest.mark.parametrize("name", ["KLT + JPEG 2000", "HEVC, a video a band"])
def test_very_bright_pixels_survive(name: str) -> None:
    codec = BASELINES[name]
    if why := codec.missing():
        pytest.skip(why)
    dn = scene(1, 12, 64, 64)
    dn[..., :16, :16] = 60000  # more than 16 bits, once the bands are added up
    back = codec.decode(codec.encode(dn, codec.settings[-1]), dn.shape)
    assert np.abs(back[..., 4:12, 4:12] - 60000).max() < 300
    assert np.sqrt(np.mean((back - dn.astype(float)) ** 2)) < 100


def test_every_codec_has_a_line_in_the_plot() -> None:
    assert set(report._LINES) == {codec.family for codec in measuring.CODECS.values()}


def test_rates_between_and_beyond_points() -> None:
    assert curves.rate_at(CURVE, 39.5) == pytest.approx(math.sqrt(0.1 * 0.2))
    assert curves.rate_at(CURVE, 45.1) == math.inf


def test_the_better_of_two_curves() -> None:
    other = [(0.2, 34.0), (0.12, 37.0), (0.15, 41.0)]  # its first point is beaten by its second
    expected = [(0.05, 35), (0.05 * 2 ** (2 / 3), 37), (0.1, 38), (0.15, 41), (0.5, 45)]
    np.testing.assert_allclose(curves.best([CURVE, other]), expected)


def test_bd_rate() -> None:
    pytest.importorskip("scipy", reason="scipy is not installed")
    half = [(rate / 2, q) for rate, q in CURVE]
    assert curves.bd_rate(CURVE, CURVE) == 0
    assert curves.bd_rate(CURVE, half) == pytest.approx(-50)
    assert curves.bd_rate(half, CURVE) == pytest.approx(100)
    assert curves.bd_rate(CURVE, half[:3]) == pytest.approx(-50, abs=0.1)
    assert math.isnan(curves.bd_rate(CURVE, [(0.1, 46.0), (0.2, 48.0)]))


def test_where_ours_spends_as_many_bits_as_was_published() -> None:
    pytest.importorskip("scipy", reason="scipy is not installed")

    def results(name: str, setting: float, chunk: validation.Chunk) -> dict:
        size = 2000 * setting**0.5 if name != "flex" else 900 * setting
        dates = [{"psnr": 30 + math.log(setting)}] * len(chunk.dates)
        return {"bytes": round(size * len(chunk.dates)), "dates": dates}

    patch = validation.Chunk("place", (0, 1, 2, 3), scene(4, 12, 32, 32), (), 0.0)
    rows = comparing.published(results, ["elic", "flex"], patch)
    assert len(rows) == len(comparing.PUBLISHED)
    for row in rows:
        elic, flex = row["ours"]["elic"], row["ours"]["flex"]
        if row["bits"] < 16000 * 0.4**0.5 * row["dates"]:
            assert elic is None  # less than the lowest λ spends
        else:
            assert elic["bits"] == pytest.approx(row["bits"], rel=0.005)
            assert elic["psnr"] == pytest.approx(30 + math.log(elic["setting"]))
        assert abs(math.log(flex["bits"] / row["bits"])) < math.log(1.5) or flex["setting"] == 16
    lines = report.text({"groups": {}, "series": {}, "published": rows, "unusual": []})
    assert "ELIC λ 2: 12800 bits on 1 dates" in lines
    assert "elic λ 11.1: 53" in lines
    assert "flex quality 7: " in lines


def test_the_worst_place_of_a_curve() -> None:
    other = [(0.05, 35.0), (0.1, 38.0), (0.22, 41.0), (0.5, 45.0), (9.0, 46.0)]
    assert curves.excess(CURVE, other) == (pytest.approx(10), pytest.approx(41))
    assert math.isnan(curves.excess(CURVE, [(1.0, 50.0), (2.0, 52.0)])[0])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with a place of six dates, one of them with nodata, and one of a single date."""
    for place, dates in (("l2a_ssl4eos12v11_val_1", 6), ("l2a_gelos_v040_1", 1)):
        dn = scene(dates, 12, 70, 64)
        if dates > 1:
            dn[1, :, :20] = 0
            dn[2, :, :8, :8] += 13000
        cube = xr.DataArray(
            dn,
            dims=("time", "band", "y", "x"),
            coords={"band": list(measuring.tec.CodecConfig().bands)},
            attrs={"level": "L2A", "offset": 0},
            name="reflectance",
        )
        cube.to_dataset().to_zarr(tmp_path / "val" / f"{place}.zarr", consolidated=False)
    return tmp_path / "val"


def test_places_and_their_chunks(data: Path) -> None:
    (kind, single), (_, place) = validation.places(data)
    assert (kind, single.place) == ("frames", "l2a_gelos_v040_1")
    assert place.dates == (0, 2, 3, 4, 5)
    assert place.dn.shape == (5, 12, 64, 64)
    assert [c.dates for c in place.chunks()] == [(0, 2, 3, 4), (5,)]
    assert [c.name[-3:] for c in place.images()] == ["[0]", "[2]", "[3]", "[4]", "[5]"]
    assert validation.unusual(place.images()[1]).startswith("up to 1")
    assert validation.unusual(single) == ""
    limited = [(p.place, p.dates) for _, p in validation.places(data, frames=3, dates=3)]
    assert limited == [(single.place, (0,)), (place.place, (0, 2))]


@pytest.mark.slow
def test_a_run_gives_figures_and_goes_on_where_it_was(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("scipy", reason="scipy is not installed")
    out, plot = tmp_path / "out.json", tmp_path / "out.png"
    arguments = ["--data", str(data), "--models", "elic", "tt", "--codecs", "JPEG 2000", "--quick"]
    arguments += ["--json", str(out), "--plot", str(plot)]
    rate_distortion.main(arguments)
    text = capsys.readouterr().out
    assert "all places: 3 frames" in text
    assert "BD-rate in % against" in text
    assert plot.read_bytes().startswith(b"\x89PNG")
    result = json.loads(out.read_text())
    assert list(result["groups"]) == ["SSL4EO-S12 places", "all places"]
    assert result["series"]["SSL4EO-S12, four seasons"]["dates"] == 1
    data_of_all = result["groups"]["all places"]
    for rows in data_of_all["points"].values():
        assert [r["bpppb"] for r in rows] == sorted(r["bpppb"] for r in rows)
        assert all(len(r["bands"]) == 12 for r in rows)
    (unusual,) = result["unusual"]
    assert unusual["frame"] == "l2a_ssl4eos12v11_val_1[2]"

    def refuse(*_: object) -> None:
        raise AssertionError("measured twice")

    monkeypatch.setattr(measuring, "measure", refuse)
    rate_distortion.main(arguments)
    assert json.loads(out.read_text())["groups"] == result["groups"]


def test_a_codec_that_is_not_there_is_named(
    data: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("scipy", reason="scipy is not installed")
    monkeypatch.setitem(sys.modules, "av", None)
    rate_distortion.main(
        ["--data", str(data), "--models", "--codecs", "HEVC", "JPEG 2000", "--frames", "1"]
    )
    assert "HEVC, a video a band: not available: av cannot be imported" in capsys.readouterr().out


def test_reading_ends_in_figures(capsys: pytest.CaptureFixture[str]) -> None:
    reading.main(["--model", "none", "--size", "132", "--dates", "2"])
    rows = [line for line in capsys.readouterr().out.splitlines() if "," in line or "band" in line]
    figures = {row[:34].strip(): [float(part) for part in row[34:].split()] for row in rows[2:]}
    assert len(figures) == 12
    assert figures["all bands"][2] == 12
    assert figures["all bands, split(stored), Dask"][2] == 1
    assert {row[5] for row in figures.values()} == {1}


NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda:0", marks=[pytest.mark.gpu, NO_GPU])])
def test_speeds_are_consistent(
    device: str, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "PIXELS", {"cpu": 1, "cuda": 1})  # one chunk a call
    monkeypatch.setattr(stages, "REPEATS", 1)
    out = tmp_path / "out.json"
    arguments = ["--models", "elic", "tt", "--sizes", "built-in", "--devices", device, "--cost"]
    arguments += ["--side", "64", "--dates", "2", "--runs", "1", "--gpu-rate", "300", "200"]
    speed.main([*arguments, "--json", str(out)])
    text = capsys.readouterr().out
    result = json.loads(out.read_text())
    elic, tt = result["speed"]
    assert elic["gflop"]["analysis"] == pytest.approx(tt["gflop"]["analysis"])
    assert "dates before" not in elic["gflop"]
    assert tt["gflop"]["dates before"]["float32"] > 0
    for row in (elic, tt):
        assert f"| {row['model']}, built-in | {device} | 1 x (2, 12, 64, 64) |" in text
        for way, absent in (("encode", "synthesis"), ("decode", "analysis")):
            found = row[way]
            assert sum(found["stages"].values()) == pytest.approx(1000 / found["one pass"])
            assert [s for s in row["gflop"] if not found["stages"][s]] == [absent]
            assert set(found["shares"]) == set(row["gflop"]) - {absent}
            assert found["stages"]["rANS"] > 0
            assert min(found["of the floor"], found["of the floor, one pass"]) > 0
    measured, _, stated = result["cost"]
    assert measured["encode"] == elic["encode"]["cores free"]
    assert stated["petabyte"]["encode"]["hours"] == pytest.approx(1e9 / 300 / 3600)
    assert stated["petabyte"]["decode"]["kWh"] == pytest.approx(1e9 / 200 / 3600 * 0.7)
    assert "a GPU, stated, not measured" in text


def test_arithmetic_is_that_of_the_networks(tiny_checkpoints: dict[str, Path]) -> None:
    chunk = scene(3, 12, 128, 128)
    config = measuring.tec.CodecConfig(model="tt", weights=str(tiny_checkpoints["published tt"]))
    subject = subjects.Subject("tt", "published", "cpu", config, [chunk], 1)
    flop, products = subject.floor
    network = subject.network
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

    def attended(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return sdpa_flop_count(query, key, value)

    counter = FlopCounterMode(display=False, custom_mapping={attention: attended})
    with torch.inference_mode(), counter:
        network(torch.zeros(1, 3, 12, 128, 128))
    parts = {"separate encoder", "joint encoder", "keys, values", "decoder, heads"}
    assert set(flop) == {"analysis", "synthesis", *parts}
    total = sum(much.sum() for much in flop.values())
    assert total == pytest.approx(counter.get_total_flops() / 1e9, rel=0.02)
    assert sum(stages.needed(flop, "encode").values()).sum() + flop["synthesis"].sum() == total
    hidden, width = network.prior.decoder.layers.encoder_layer_0.mlp1.fc1.weight.shape
    assert (width, hidden) in {shape[1:] for shape in products}


def test_others_come_to_the_same_psnr() -> None:
    chunk = scene(1, 2, 128, 128)
    with ThreadPoolExecutor(2) as pool:
        teams = [rivals.Team(rival, chunk, pool) for rival in rivals.rivals()]
        if not teams:
            pytest.skip("imagecodecs is not installed")
        for team in teams:
            found = team.reach(45.0)
            if "psnr" in found:
                assert found["psnr"] == pytest.approx(45, abs=rivals.NEAR)
                assert 0.1 < found["bpppb"] < 8
            else:
                back = np.stack(team.run("decode")).reshape(chunk.shape)
                np.testing.assert_array_equal(back, chunk)
        ours, *others = rivals.turns("ours", teams[0].run, 1.0, teams, 1)
        assert ours["encode"]["ours is"] == 1
        for row in others:
            ratio = ours["decode"]["MB/s"] / row["decode"]["MB/s"]
            assert row["decode"]["ours is"] == pytest.approx(ratio)


def test_overheads_of_a_stream(capsys: pytest.CaptureFixture) -> None:
    config = measuring.tec.CodecConfig(model="elic")
    found = overheads.of_pixels(scene(1, 12, 64, 64), config)
    assert 0 <= found["decisions"] < 0.1
    assert 0 <= found["payload on integer tables"] < 0.1
    assert found["payload on integer tables"] < found["all on float estimate"] < 0.5
    overheads.main(["--size", "64", "--dates", "1", "--models", "fp", "--compression", "20"])
    assert capsys.readouterr().out.startswith("fp λ 20: bytes ")


@requires_oracle
def test_the_reference_runs_beside_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(stages, "REPEATS", 1)
    out = tmp_path / "out.json"
    arguments = ["--models", "elic", "--sizes", "published", "--devices", "cpu", "--dates", "1"]
    speed.main([*arguments, "--published-side", "64", "--runs", "1", "--json", str(out)])
    (row,) = json.loads(out.read_text())["speed"]
    for way in speed.WAYS:
        ratio = row[way]["one pass"] / row[way]["reference"]
        assert row[way]["ours is"] == pytest.approx(ratio)
    assert "elic, published | cpu" in capsys.readouterr().out
