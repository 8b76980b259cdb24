"""psnr= and ratio=: what is asked for is what the whole array has, as far as it can be."""

from __future__ import annotations

import json
import math
import sys
import warnings
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import dask.array
import numpy as np
import pytest
import torch
import xarray as xr
from scenes import scene
from tec.config import CodecConfig
from tec.models.factorized import Factorized, FactorizedConfig

from xtec import cli, ratecontrol
from xtec.ratecontrol import Goal, goal_of, spread, target_of, target_text

BANDS = ["B02", "B03", "B04"]
DIMS = ("time", "band", "y", "x")
CHUNKS = {"time": 1, "y": 32, "x": 32}


def cube(time: int = 1, y: int = 72, x: int = 80, *, nodata: bool = False) -> xr.DataArray:
    return xr.DataArray(
        scene(time=time, bands=3, y=y, x=x, nodata=nodata),
        dims=DIMS,
        coords={"band": BANDS},
        name="s2",
    )


def target(packed: xr.DataArray | xr.Dataset) -> dict[str, Any] | None:
    data = packed if isinstance(packed, xr.DataArray) else next(iter(packed.data_vars.values()))
    return json.loads(data.attrs["xtec"]).get("target")


def config(packed: xr.DataArray) -> CodecConfig:
    encoding = packed.encoding
    return (encoding.get("serializer") or encoding["compressors"][0]).config


def chunk_files(array: Path) -> list[Path]:
    names = {"zarr.json", ".zarray", ".zattrs"}
    return [f for f in array.rglob("*") if f.is_file() and f.name not in names]


def measured(packed: xr.DataArray, store: Path, *, scale: float = 1.0) -> tuple[float, float]:
    """PSNR and ratio of all of it, from the values and the files that are really there."""
    packed.to_zarr(store, zarr_format=3 if "serializer" in packed.encoding else 2)
    back = xr.open_zarr(store)[packed.name].values.astype(float)
    wrote = packed.values.astype(float)
    valid = (wrote != 0) & np.isfinite(wrote)
    error = np.mean(np.square((back - wrote)[valid] / scale))
    itemsize = np.dtype(packed.encoding.get("dtype", packed.dtype)).itemsize
    size = sum(f.stat().st_size for f in chunk_files(store / str(packed.name)))
    return 10 * math.log10(1e8 / error), packed.size * itemsize / size


# accuracy


@pytest.mark.parametrize(
    ("model", "asked", "zarr_format"),
    [("elic", {"psnr": 37.5}, 3), ("fp", {"ratio": 25.0}, 3), ("fp", {"psnr": 36}, 2)],
)
def test_all_of_the_array_has_what_was_asked_for(
    tmp_path: Path, model: str, asked: dict[str, float], zarr_format: int
) -> None:
    data = cube(nodata=True)
    packed = data.tec.compress(model=model, chunks=CHUNKS, zarr_format=zarr_format, **asked)
    psnr, ratio = measured(packed, tmp_path / "a.zarr")
    if "psnr" in asked:
        assert psnr == pytest.approx(asked["psnr"], abs=0.06)
    else:
        assert ratio == pytest.approx(asked["ratio"], rel=0.01)
    told = target(packed)
    assert told is not None
    assert told == {**asked, "found": told["found"]}
    assert told["found"]["psnr"] == pytest.approx(psnr, abs=0.01), "what is said is what is there"
    assert told["found"]["ratio"] == pytest.approx(ratio, rel=1e-3), "edge chunks as zarr has them"
    assert (told["found"]["chunks"], told["found"]["of"]) == (9, 9)
    lmbda = config(packed).compression
    assert lmbda == float(f"{lmbda:.4g}"), "four digits"
    assert json.loads(packed.attrs["xtec"])["compression"] == lmbda
    assert config(packed).weights_sha256 is not None


def test_a_sample_speaks_for_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ratecontrol, "SAMPLE", 8)
    monkeypatch.setattr(ratecontrol, "_ENOUGH", 6)
    data = cube(y=160, x=160)  # 25 chunks that are much alike
    contrast = np.random.default_rng(0).uniform(0.97, 1.03, (5, 5)).repeat(32, 0).repeat(32, 1)
    alike = (np.tile(cube(y=32, x=32).values, (5, 5)) - 1500.0) * contrast + 1500
    data.values = alike.round().astype("uint16")
    packed = data.tec.compress(model="fp", psnr=37, chunks=CHUNKS)
    told = target(packed)
    assert told is not None
    assert told["found"]["chunks"] < told["found"]["of"] == 25
    psnr, _ = measured(packed, tmp_path / "a.zarr")
    assert psnr == pytest.approx(37, abs=0.3)


@pytest.mark.parametrize("kind", ["uint16", "float32"])
@pytest.mark.parametrize("asked", [55.0, 63.0])
def test_high_psnr_is_reached_by_a_bound_where_that_is_smaller(
    tmp_path: Path, kind: str, asked: float
) -> None:
    """63 dB is nearly nothing: the next smaller bound is some dB better."""
    data, scale = cube(y=48, x=48, nodata=True), 1.0
    if kind == "float32":
        scale = 1e-4
        data = data.where(data > 0).astype("float32") * np.float32(1e-4) + np.float32(2e-5)
    packed = data.tec.compress(
        model="fp", psnr=asked, scale=None if kind == "uint16" else scale, chunks=CHUNKS
    )
    psnr, _ = measured(packed, tmp_path / "a.zarr", scale=scale)
    assert asked - 0.1 <= psnr <= asked + 1.5
    assert config(packed).model == "none"


def test_lossless_is_as_far_as_psnr_goes() -> None:
    packed = cube(y=32, x=32).tec.compress(model="fp", psnr=150)
    assert set(config(packed).max_error or ()) == {0.0}
    told = target(packed)
    assert told is not None
    assert told["found"]["psnr"] is None


def test_tt_over_dates(tmp_path: Path) -> None:
    packed = cube(time=2, y=64, x=64).tec.compress(psnr=37)
    assert config(packed).model == "tt"
    psnr, _ = measured(packed, tmp_path / "a.zarr")
    assert psnr == pytest.approx(37, abs=0.1)


@pytest.mark.parametrize("kind", ["int16", "float32", "CF"])
def test_units(tmp_path: Path, kind: str) -> None:
    """dB are those of DN, whatever unit is shown and whatever is stored."""
    dn = cube(nodata=True)
    options: dict[str, Any] = {"int16": {}, "float32": {"scale": 1e-4}, "CF": {}}[kind]
    if kind == "int16":
        data = dn.astype("int16")
    else:
        data = (dn.where(dn != 0) * np.float32(1e-4)).astype("float32")
    if kind == "CF":
        packing = {"scale_factor": 1e-4, "add_offset": -0.1, "_FillValue": 0}
        data.encoding = {"dtype": np.dtype("uint16"), **packing}
    packed = data.tec.compress(model="fp", psnr=36, chunks=CHUNKS, **options)
    psnr, ratio = measured(packed, tmp_path / "a.zarr", scale=1 if kind == "int16" else 1e-4)
    assert psnr == pytest.approx(36, abs=0.06)
    told = target(packed)
    assert told is not None
    assert told["found"]["ratio"] == pytest.approx(ratio, rel=1e-3), "bytes of the stored dtype"


# what is refused, and what is said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"psnr": 45, "ratio": 30}, r"psnr=45 and ratio=30 exclude each other.*pass one"),
        ({"psnr": 45, "compression": 20}, r"psnr=45 and compression=20 exclude"),
        ({"ratio": 30, "compression": "lambda-20"}, r"ratio=30 and compression='lambda-20'"),
        ({"psnr": 45, "quality": 3, "model": "flex"}, r"psnr=45 and quality=3 exclude"),
        ({"psnr": 0}, r"psnr is 0: it must be a positive number, decibels, such as 45"),
        ({"psnr": True}, r"psnr is True"),
        ({"psnr": "45 dB"}, r"psnr is '45 dB'"),
        ({"ratio": -3}, r"ratio is -3: .*a factor, such as 30"),
        ({"ratio": math.nan}, r"ratio is nan"),
        ({"ratio": math.inf}, r"ratio is inf"),
    ],
)
def test_targets_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cube().tec.compress(**{"model": "fp", **options})


def test_without_a_target_compression_is_20() -> None:
    packed = cube().tec.compress(model="fp")
    assert config(packed).compression == 20
    assert target(packed) is None
    assert goal_of(psnr=None, ratio=None, compression=5, quality=None) is None
    assert goal_of(psnr=None, ratio=np.float32(30), compression=None, quality=None) == Goal(
        "ratio", 30
    )


@pytest.mark.parametrize(
    ("asked", "end", "message"),
    [
        ({"psnr": 9}, 0.4, r"psnr=9 is out of reach: .* dB, with compression 0.4, which is taken$"),
        (
            {"ratio": 1.5},
            700,
            r"ratio=1.5 is out of reach: .*ratio of \d.*compression 700.*max_error= goes",
        ),
        ({"ratio": 9e5}, 0.4, r"ratio=900000 is out of reach: .*compression 0.4, which is taken$"),
    ],
)
def test_out_of_reach_takes_the_end_and_says_so(
    asked: dict[str, float], end: float, message: str
) -> None:
    with pytest.warns(UserWarning, match=message) as record:
        packed = cube(y=32, x=32).tec.compress(model="fp", **asked)
    assert len(record) == 1
    assert record[0].filename == __file__, "the caller's line"
    assert config(packed).compression == end
    assert target(packed) is not None


def test_a_sample_that_settles_nothing_says_how_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ratecontrol, "SAMPLE", 8)
    monkeypatch.setattr(ratecontrol, "MOST_CHUNKS", 8)
    data = cube(y=96, x=128)
    noise = np.random.default_rng(0).uniform(-260, 260, data[..., 64:].shape)
    data[..., 64:] = (data[..., 64:] + noise).clip(1).astype("uint16")
    with pytest.warns(UserWarning, match="do not settle") as record:
        packed = data.tec.compress(model="fp", psnr=38, chunks=CHUNKS)
    said = next(str(w.message) for w in record if "settle" in str(w.message))
    assert "the 8 tried, of 12" in said
    assert "0.3 dB" in said
    assert "two standard errors" in said
    told = target(packed)
    assert told is not None
    assert told["found"]["chunks"] == 8


# nodata


def test_nothing_valid_is_an_error() -> None:
    empty = cube(y=64, x=64) * np.uint16(0)
    for asked in ({"psnr": 40}, {"ratio": 40}):
        with pytest.raises(ValueError, match=r"none of the 4 chunks .*valid pixel.*compression="):
            empty.tec.compress(model="fp", nodata=0, chunks=CHUNKS, **asked)


def test_chunks_of_nodata_count_for_the_ratio_alone(tmp_path: Path) -> None:
    part = cube(y=64, x=64)
    whole = part.copy(data=part.values)
    whole[..., :32] = 0
    half = part[..., 32:].tec.compress(model="fp", psnr=36, chunks=CHUNKS)
    packed = whole.tec.compress(model="fp", psnr=36, chunks=CHUNKS)
    assert config(packed).compression == config(half).compression
    told, alone = target(packed), target(half)
    assert told is not None
    assert alone is not None
    assert told["found"]["psnr"] == alone["found"]["psnr"]
    assert told["found"]["ratio"] > 1.2 * alone["found"]["ratio"]
    packed = whole.tec.compress(model="fp", ratio=40, chunks=CHUNKS)
    _, ratio = measured(packed, tmp_path / "a.zarr")
    assert ratio == pytest.approx(40, rel=0.01)


def test_more_is_tried_until_there_are_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ratecontrol, "SAMPLE", 2)
    data = cube(y=128, x=128) * np.uint16(0)
    last = list(spread((1, 1, 4, 4)))[9]
    y, x = 32 * last[2], 32 * last[3]
    data[..., y : y + 32, x : x + 32] = cube(y=32, x=32).values
    packed = data.tec.compress(model="fp", psnr=36, nodata=0, chunks=CHUNKS)
    told = target(packed)
    assert told is not None
    assert told["found"]["psnr"] == pytest.approx(36, abs=0.3)
    assert told["found"]["chunks"] == 16


# Dask


def counted(data: xr.DataArray, seen: list[int], **blocks: int) -> xr.DataArray:
    """``data`` in Dask blocks that note when they are computed."""
    chunked = data.chunk(blocks)

    def note(block: np.ndarray, block_info: Any = None) -> np.ndarray:
        seen.append(block_info[0]["chunk-location"])
        return block

    pixels = chunked.data.map_blocks(note, dtype=data.dtype, meta=np.empty(0, data.dtype))
    return data.copy(data=pixels)


def test_only_the_blocks_that_are_tried_are_computed_and_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ratecontrol, "SAMPLE", 4)
    monkeypatch.setattr(ratecontrol, "MOST_CHUNKS", 4)
    seen: list[Any] = []
    data = counted(cube(y=128, x=128), seen, y=32, x=32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # four chunks may not settle it
        packed = data.tec.compress(model="fp", psnr=36, chunks=CHUNKS)
    assert packed.chunks is not None
    assert sorted(seen) == sorted(islice(spread((1, 1, 4, 4)), 4))


def test_a_block_of_several_chunks_is_computed_once() -> None:
    seen: list[Any] = []
    data = counted(cube(y=64, x=96), seen, y=64, x=96)
    data.tec.compress(model="fp", psnr=36, chunks=CHUNKS)
    assert len(seen) == 1


def test_nothing_is_computed_without_a_target() -> None:
    seen: list[Any] = []
    counted(cube(), seen, y=32, x=32).tec.compress(model="fp", chunks=CHUNKS)
    assert seen == []


def test_dask_and_numpy_find_the_same() -> None:
    data = cube(time=2, y=40, x=48)
    packed = data.tec.compress(model="fp", ratio=20, chunks=CHUNKS)
    lazy = data.copy(data=dask.array.from_array(data.values, chunks=(1, 3, 32, 32)))
    again = lazy.tec.compress(model="fp", ratio=20, chunks=CHUNKS)
    assert again.attrs == packed.attrs


# the sample


@pytest.mark.parametrize("grid", [(1, 1, 1, 1), (3, 1, 7, 5), (16, 12), (1, 40)])
def test_every_chunk_comes_once(grid: tuple[int, ...]) -> None:
    places = list(spread(grid))
    assert len(places) == len(set(places)) == math.prod(grid)
    assert sorted(places) == list(np.ndindex(grid))


def test_the_sample_is_spread_over_time_and_space() -> None:
    places = np.array(list(islice(spread((8, 1, 32, 32)), 64)))
    for axis, size in ((0, 8), (2, 32), (3, 32)):
        eighths = np.bincount(places[:, axis] * 8 // size, minlength=8)
        assert 4 <= eighths.min() <= eighths.max() <= 12, axis
    octants = places[:, 0] // 4 * 4 + places[:, 2] // 16 * 2 + places[:, 3] // 16
    assert (np.bincount(octants) == 8).all()
    thirds = np.array(list(islice(spread((3, 1, 100, 7)), 90)))
    assert (np.bincount(thirds[:, 0]) == 30).all()


def test_the_margin_tells_how_far_off_the_whole_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a thousand made-up arrays, about 95 % lie within the margin."""
    rng = np.random.default_rng(3)
    inside = []
    for _ in range(1000):
        squares = rng.lognormal(0, 0.5, 400)
        parts = np.stack([squares[:64], np.ones(64)])
        probes = object.__new__(ratecontrol.Probes)
        probes.total = 400
        monkeypatch.setattr(probes, "parts", lambda *_, parts=parts: parts)
        monkeypatch.setattr(probes, "with_pixels", lambda sample: list(sample))
        goal = Goal("psnr", 40)
        margin = probes.margin(CodecConfig(), goal, range(64))
        told = probes.value(CodecConfig(), goal, range(64))
        inside.append(abs(told - 10 * math.log10(1e8 / squares.mean())) <= margin)
    assert 0.9 < np.mean(inside) < 0.99


# attribute, summary, command line


def test_compressing_again_leaves_no_stale_target(tmp_path: Path) -> None:
    cube(y=32, x=32).tec.compress(model="fp", psnr=36).to_zarr(tmp_path / "a.zarr")
    opened = xr.open_zarr(tmp_path / "a.zarr")
    assert target(opened) is not None
    assert target(opened.tec.compress(model="fp", compression=5)) is None
    again = target(opened.tec.compress(model="fp", ratio=60))
    assert again is not None
    assert "psnr" not in again
    assert again["ratio"] == 60


def test_to_zarr_and_its_summary(tmp_path: Path) -> None:
    data = cube(y=40, x=48)
    summary = data.tec.to_zarr(tmp_path / "a.zarr", model="fp", ratio=20, progress=False)
    assert summary.target == target(xr.open_zarr(tmp_path / "a.zarr"))
    assert summary.target is not None
    (line,) = (line for line in str(summary).splitlines() if line.startswith("target"))
    assert "ratio 20: found" in line
    assert "on 1 of 1 chunks" in line
    plain = data.tec.to_zarr(tmp_path / "b.zarr", model="fp", progress=False)
    assert plain.target is None
    assert "target" not in str(plain)
    packed = data.tec.compress(model="fp", ratio=20)
    assert packed.tec.to_zarr(tmp_path / "c.zarr", progress=False).target == summary.target


def test_target_of_what_others_wrote() -> None:
    for attrs in ({}, {"xtec": "no JSON"}, {"xtec": "[]"}, {"xtec": 5}, {"xtec": "{}"}):
        assert target_of(attrs) is None
    found = {"psnr": None, "ratio": 900.0, "chunks": 1, "of": 1}
    text = target_text({"ratio": 900, "found": found})
    assert text == "ratio 900: found no loss, 900 times smaller, on 1 of 1 chunks"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable:
    def call(*args: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["xtec", *map(str, args)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return int(end.value.code or 0), *capsys.readouterr()

    return call


def test_command_line(run: Callable, tmp_path: Path) -> None:
    source, out = tmp_path / "in.zarr", tmp_path / "out.zarr"
    cube(y=40, x=48).to_dataset().to_zarr(source)
    code, said, error = run("compress", source, out, "--model", "fp", "--psnr", "36")
    assert (code, error) == (0, "")
    (line,) = (line for line in said.splitlines() if line.startswith("target"))
    assert "psnr 36: found 3" in line
    code, said, _ = run("info", out)
    assert code == 0
    assert line.split(maxsplit=1)[1] in said
    code, said, _ = run("info", out, "--json")
    (variable,) = json.loads(said)["variables"]
    assert variable["target"]["psnr"] == 36
    code, _, error = run("compress", source, out, "--overwrite", "--psnr", "36", "--compression", 5)
    assert code == 2
    assert "psnr=36.0 and compression=5.0 exclude each other" in error
    code, said, error = run("compress", source, out, "--overwrite", "--model", "fp", "--ratio", "2")
    assert code == 0
    assert error.startswith("xtec: warning: ratio=2 is out of reach")


# weights that have steps, or one rate


def test_the_lowest_quality_of_flex_that_keeps_the_promise(
    tiny_checkpoints: dict[str, Path],
) -> None:
    data = cube(time=2, y=64, x=64)
    options = {"model": "flex", "weights": tiny_checkpoints["flex"]}

    def found(quality: int) -> dict[str, float]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            packed = data.tec.compress(**options, quality=quality)
            probes = ratecontrol.Probes(packed)
            return probes.found(config(packed), probes.sample(1))

    ladder = {quality: found(quality) for quality in (2, 3, 4, 5)}
    assert ladder[3]["ratio"] > ladder[4]["ratio"] > ladder[5]["ratio"]
    between = (ladder[3]["ratio"] + ladder[4]["ratio"]) / 2
    packed = data.tec.compress(**options, ratio=between)
    assert config(packed).quality == (3,), "the highest that is still so many times smaller"
    told = target(packed)
    assert told is not None
    assert told["found"]["ratio"] == ladder[3]["ratio"]
    with pytest.warns(UserWarning, match=r"psnr=80 is out of reach.*quality \d+, which is taken"):
        data.tec.compress(**options, psnr=80)


def test_qualities_are_chosen_by_what_they_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a made-up ladder of 2 dB and 20 % a quality."""
    probes = object.__new__(ratecontrol.Probes)
    asked: list[int] = []

    def value(config: CodecConfig, goal: Goal, sample: Any) -> float:
        (k,) = config.quality  # type: ignore[misc]
        asked.append(k)
        return 20.0 + 2 * k if goal.name == "psnr" else -math.log(100) + k * math.log(1.2)

    monkeypatch.setattr(probes, "value", value)
    ladder = ratecontrol._ladder(CodecConfig(model="flex", quality=(16,)), Goal("psnr", 1))
    assert ladder is not None
    for goal, quality in (
        (Goal("psnr", 30.0), 5),
        (Goal("psnr", 30.1), 6),
        (Goal("psnr", 5), 0),
        (Goal("psnr", 90), 16),
        (Goal("ratio", 100 / 1.2**5 * 0.99), 5),
        (Goal("ratio", 100 / 1.2**5 * 1.01), 4),
        (Goal("ratio", 900), 0),
        (Goal("ratio", 2), 16),
    ):
        asked.clear()
        search = ratecontrol._Ladder(probes, goal, ladder)
        assert search.run([0], 0.1).quality == (quality,), goal
        assert search.run([0, 1], 0.1).quality == (quality,), "again, from where it was"
        assert len(set(asked)) <= 7


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Stand-ins for the published ``fp``, in finer steps at higher λ; the λ that were loaded."""
    asked: list[float] = []
    torch.manual_seed(0)
    network = Factorized(FactorizedConfig(N=4, M=6))
    network.bottleneck.update()
    state = {f"model.{k}": v for k, v in network.state_dict().items()}
    convolutions = [k for k in state if k.startswith("model.g_a.") and k.endswith("weight")]
    last = max(convolutions, key=lambda k: int(k.split(".")[2]))

    def find(weights: str, model: str, sensor: str, compression: float, download: bool) -> Path:
        asked.append(compression)
        path = tmp_path / f"{model}-{compression:g}.pt"
        if not path.exists():
            factor = 60 * compression
            torch.save({k: v * factor if k == last else v for k, v in state.items()}, path)
        return path

    monkeypatch.setattr("tec.weights._published", find)
    return asked


def test_published_weights_take_the_nearest_lambda_and_say_so(published: list[float]) -> None:
    data = cube(y=64, x=64)
    options = {"model": "fp", "weights": "terracodec"}
    ratios = {}
    for lmbda in (2, 10, 40):
        packed = data.tec.compress(**options, compression=lmbda)
        probes = ratecontrol.Probes(packed)
        ratios[lmbda] = probes.found(config(packed), probes.sample(1))["ratio"]
    assert ratios[2] > 1.3 * ratios[10] > 1.3 * ratios[40]
    published.clear()
    near = ratios[10] ** 0.7 * ratios[2] ** 0.3
    with pytest.warns(UserWarning, match=r"compression 0.5, 2, 10, 40, 200; the nearest, 10, give"):
        packed = data.tec.compress(**options, ratio=near)
    assert config(packed).compression == 10
    assert len(set(published)) <= 4, "no checkpoint is fetched without need"
    told = target(packed)
    assert told is not None
    assert told["found"]["ratio"] == ratios[10]
    exact = data.tec.compress(**options, ratio=ratios[2] * 1.01)
    assert config(exact).compression == 2
    assert config(exact).weights_sha256 != config(packed).weights_sha256


def test_a_file_of_one_rate_has_nothing_to_choose(
    tmp_path: Path, tiny_fp: Path, tiny_checkpoints: dict[str, Path]
) -> None:
    with pytest.raises(ValueError, match=r"psnr=40: the checkpoint '.*tt.pt' has one rate"):
        cube().tec.compress(model="tt", weights=tiny_checkpoints["published tt"], psnr=40)
    data = cube(y=96, x=96)
    _, ratio = measured(
        data.tec.compress(model="fp", weights=tiny_fp, compression=100), tmp_path / "a.zarr"
    )
    packed = data.tec.compress(model="fp", weights=tiny_fp, ratio=ratio)
    _, again = measured(packed, tmp_path / "b.zarr")
    assert again == pytest.approx(ratio, rel=0.02), "a compact checkpoint has every rate"
