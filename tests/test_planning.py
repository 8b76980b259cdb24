"""xtec.plan and ``xtec plan``: what is predicted is what happens, and nothing is made up."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from cubes import band_variables, cube
from data import real_cubes, requires_real
from tec import threads

import xtec
import xtec.settings
from xtec import cli, planning
from xtec.chunks import ChunkCoder
from xtec.measuring import on_device
from xtec.planning import Rate

CHUNKS = {"time": 1, "y": 16, "x": 16}
#: Without a network.
QUICK: dict[str, Any] = {"max_error": 20, "chunks": CHUNKS}


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of two idle cores on which each MB takes a second to read, 2 to code, 0.5 to
    decode."""
    real = planning.measure

    def measured(*args: Any) -> Any:
        rates = {"read": 1.0, "encode": 0.5, "decode": 2.0}
        return real(*args)._replace(rates=rates, load=0.0, peak=10**9)

    monkeypatch.setattr(planning, "measure", measured)
    monkeypatch.setattr(threads, "allowed", lambda: 2)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """``run("plan", path)`` -> (exit code, standard output, standard error)."""

    def call(*args: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["xtec", *map(str, args)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        return int(end.value.code or 0), captured.out, captured.err

    return call


# size and quality


@pytest.mark.parametrize("form", ["variable", "band variables"])
def test_all_chunks_tell_exactly(tmp_path: Path, form: str, tiny_fp: Path) -> None:
    obj: Any = cube(time=3) if form == "variable" else band_variables()
    options = {"model": "fp", "weights": tiny_fp, "chunks": CHUNKS}
    found = xtec.plan(obj, sample=100, **options)
    summary = xtec.to_zarr(obj, tmp_path / "a.zarr", **options)
    store = tmp_path / "a.zarr" / summary.variable
    files = [f for f in store.rglob("*") if f.is_file() and f.name != "zarr.json"]
    assert (found.sampled, found.of) == (found.objects, len(files))
    assert found.bytes_out == sum(f.stat().st_size for f in files)
    assert found.object_bytes == pytest.approx(found.bytes_out / len(files))
    assert (found.bytes_in, found.cube_bytes) == (summary.bytes_in,) * 2
    assert found.bpppb == pytest.approx(8 * found.bytes_out / summary.samples)
    data = xr.open_zarr(tmp_path / "a.zarr")[summary.variable]
    packed = obj.tec.compress(**options)
    wrote = packed if form == "variable" else packed[summary.variable]
    a, b = (v.values.astype(float) for v in (wrote, data))
    assert found.psnr == pytest.approx(10 * np.log10(1e8 / np.mean((a - b)[a != 0] ** 2)), abs=0.01)
    assert found.psnr_range is not None
    assert found.psnr_range[0] <= found.psnr <= found.psnr_range[1]
    assert found.model == "fp"
    assert "all chunks were tried" in str(found)
    assert ("not counted: SCL, sun" in str(found)) == (form == "band variables")


def test_a_sample_says_how_far_off_it_may_be() -> None:
    data = cube(y=160, x=160)
    found = xtec.plan(data, sample=9, **QUICK)
    whole = xtec.plan(data, sample=200, **QUICK)
    assert (found.sampled, found.of, whole.sampled) == (9, 200, 200)
    assert found.ratio_error is not None
    assert found.psnr_error is not None
    assert found.psnr is not None
    assert abs(np.log(found.ratio / whole.ratio)) < 2 * found.ratio_error
    assert abs(found.psnr - whole.psnr) < 2 * found.psnr_error
    assert whole.ratio_error == whole.psnr_error == 0
    assert f"± {100 * found.ratio_error:.1f} % (two standard errors)" in str(found)


@pytest.mark.parametrize("asked", [{"psnr": 60.0}, {"ratio": 25.0}])
def test_targets(asked: dict[str, float]) -> None:
    found = xtec.plan(cube(y=64, x=64), model="fp", chunks={"y": 32, "x": 32}, **asked)
    assert found.target is not None
    assert found.target["found"]["ratio"] == pytest.approx(found.ratio, rel=1e-3)
    assert f"{next(iter(asked))} " in dict(found.rows())["target"]


def test_lossless_and_what_is_compressed_already() -> None:
    packed = cube().tec.compress(max_error=0)
    found = xtec.plan(packed)
    assert found.psnr is found.psnr_error is found.psnr_range is None
    assert dict(found.rows())["PSNR"] == "no loss"
    assert found.memory is None or found.memory > found.block_bytes


def test_a_store_that_is_compressed_already(tmp_path: Path) -> None:
    cube().tec.to_zarr(tmp_path / "a.zarr", **QUICK)
    for chunks in ({}, None):
        opened = xr.open_zarr(tmp_path / "a.zarr", chunks=chunks)
        found = xtec.plan(opened, sample=3)
        assert (found.model, found.sampled, found.of) == ("none", 3, 8)


def test_no_pixels() -> None:
    empty = cube(y=64, x=64) * np.uint16(0)
    with pytest.raises(ValueError, match="none of the 32 chunks that were tried"):
        xtec.plan(empty, **QUICK)
    part = empty.copy()
    part[-1, :, -8:, -8:] = 1000
    assert xtec.plan(part, sample=1, **QUICK).sampled >= 1


# hours, cost, stores


@pytest.mark.usefixtures("still")
def test_hours_and_cost_of_an_archive() -> None:
    found = xtec.plan(
        cube(), size="3.6TB", workers=10, efficiency=0.5, price=2, storage_price=20, **QUICK
    )
    assert found.bytes_in == 3_600_000_000_000
    assert found.bytes_out == pytest.approx(3.6e12 / found.ratio)
    assert found.compress_hours == pytest.approx(3.6e6 * (1 + 2) / (10 * 0.5) / 3600)
    assert found.decode_hours == pytest.approx(3.6e6 * 0.5 / (10 * 0.5) / 3600)
    assert found.compress_cost == pytest.approx(2 * 10 * 600)
    assert found.decode_cost == pytest.approx(2 * 10 * 100)
    assert found.storage_cost_before == pytest.approx(72)
    assert found.storage_cost == pytest.approx(72 / found.ratio)
    assert found.objects == pytest.approx(8 * 3.6e12 / found.cube_bytes, rel=1e-6)
    assert found.objects * found.object_bytes == pytest.approx(found.bytes_out)
    text = str(found)
    for part in (
        "3.6 TB, as stated, of which",
        "600 hours (25.0 days): reading 1 MB/s (measured here) and coding 0.5 MB/s (measured on 8 "
        "chunks here, on 2 cores) a worker, x 10 x 0.5 (assumed efficiency)",
        "12000.00 for 6e+03 worker-hours",
        "72.00 for the pixels without compression",
        "objects are many for one store",
        "the archive is taken to be like this cube",
    ):
        assert part in text


@pytest.mark.usefixtures("still")
def test_one_worker_is_not_made_less_efficient() -> None:
    found = xtec.plan(cube(), size=3.6e9, efficiency=0.5, **QUICK)
    assert found.compress_hours == pytest.approx(3)
    assert "efficiency" not in str(found)


@pytest.mark.usefixtures("still")
def test_the_store_is_a_limit() -> None:
    options: dict[str, Any] = {"size": "36GB", "workers": 100, "efficiency": 1, **QUICK}
    free = xtec.plan(cube(), **options)
    assert free.store_limit is None
    found = xtec.plan(cube(), store_bandwidth=2, **options)
    assert found.store_limit is not None
    # One worker takes 1 MB of pixels in 3 s, and decodes it in 0.5 s.
    assert found.store_limit["reading"] == pytest.approx(2 * 3)
    assert found.store_limit["writing"] == pytest.approx(2 * 3 * found.ratio)
    assert found.store_limit["decoding"] == pytest.approx(2 * 0.5 * found.ratio)
    assert free.decode_hours == pytest.approx(36e3 * 0.5 / 100 / 3600)
    least = found.bytes_out / 2e6 / 3600
    assert least > free.decode_hours
    assert found.decode_hours == pytest.approx(least), "the store takes longer than the workers"
    assert "if the source lies there without compression" in str(found)


# other machines


@pytest.mark.usefixtures("still")
def test_a_gpu_that_is_not_there_has_no_speed(
    monkeypatch: pytest.MonkeyPatch, tiny_fp: Path
) -> None:
    monkeypatch.setattr(planning, "has_gpu", lambda: False)
    options: dict[str, Any] = {"model": "fp", "weights": tiny_fp, "gpu": True, "price": 3}
    found = xtec.plan(cube(), **options)
    assert found.encode.mb_per_s is found.decode.mb_per_s is found.compress_hours is None
    assert found.compress_cost is found.decode_cost is None
    assert "to compress              not known: no GPU here to measure; state rate" in str(found)
    assert found.ratio > 1
    stated = xtec.plan(cube(), rate=400, size=3.6e12, **options)
    assert stated.compress_hours == pytest.approx(2.5), "reading included"
    assert stated.compress_cost == pytest.approx(7.5)
    assert stated.decode_hours is None
    assert "2.5 hours: 400 MB/s (as stated) a worker" in str(stated)


def test_a_gpu_that_is_there_is_measured(monkeypatch: pytest.MonkeyPatch, tiny_fp: Path) -> None:
    """A device of another name, which is the processor in the end."""
    devices = set()

    def here(work: Any) -> Any:
        def call(*args: Any) -> Any:
            devices.add(xtec.settings.device)
            with on_device("cpu"):
                return work(*args)

        return call

    monkeypatch.setattr("tec.weights.resolve_device", lambda d: "cuda" if d == "auto" else d)
    monkeypatch.setattr(ChunkCoder, "encode_chunks", here(ChunkCoder.encode_chunks))
    monkeypatch.setattr(ChunkCoder, "decode_chunks", here(ChunkCoder.decode_chunks))
    before = xtec.settings.device
    found = xtec.plan(cube(), model="fp", weights=tiny_fp, gpu=True)
    assert devices == {"cuda"}
    assert xtec.settings.device == before
    assert found.encode.mb_per_s is not None
    assert "cuda and" in found.encode.how
    assert "no GPU" not in str(found)


def test_models_without_a_network_do_not_run_on_gpus() -> None:
    found = xtec.plan(cube(), gpu=True, **QUICK)
    assert found.encode.mb_per_s is not None
    assert any(note.startswith("this codec has no network") for note in found.notes)


def test_threads_of_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = []
    real = planning.measure
    monkeypatch.setattr(
        planning, "measure", lambda *a: (shares.append(threads.allowed()), real(*a))[1]
    )
    found = xtec.plan(cube(), threads=1, **QUICK)
    assert found.encode.how == "measured on 8 chunks here, on 1 core"
    assert shares == [1]
    monkeypatch.setattr(threads, "allowed", lambda: 2)
    with pytest.raises(ValueError, match="threads=3: this machine has 2 cores, so that cannot be"):
        xtec.plan(cube(), threads=3, **QUICK)


def test_a_busy_machine_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    real = planning.measure
    for load, told in ((9.0, True), (0.0, False)):
        monkeypatch.setattr(planning, "measure", lambda *a, load=load: real(*a)._replace(load=load))
        assert ("other work ran here as well (load" in str(xtec.plan(cube(), **QUICK))) == told


# arguments


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sample": 0}, "sample is 0: it must be a positive whole number"),
        ({"workers": 1.5}, "workers is 1.5: it must be a positive whole number"),
        ({"threads": True}, "threads is True"),
        ({"efficiency": 0}, "efficiency is 0: it must be a positive number"),
        ({"efficiency": 1.2}, "efficiency is 1.2: it is a share, at most 1"),
        ({"rate": "fast"}, "rate is 'fast': it must be a positive number"),
        ({"decode_rate": float("nan")}, "decode_rate is nan"),
        ({"price": -1}, "price is -1"),
        ({"storage_price": float("inf")}, "storage_price is inf"),
        ({"store_bandwidth": 0}, "store_bandwidth is 0"),
        ({"size": "large"}, "size is 'large': write bytes, or such as '10TB'"),
        ({"size": "-1TB"}, "size is '-1TB'"),
        ({"size": "0TB"}, "size is '0TB'"),
        ({"size": "TB"}, "size is 'TB'"),
        ({"size": [1]}, r"size is \[1\]"),
    ],
)
def test_arguments(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        xtec.plan(cube(), **wrong, **QUICK)


def test_pixels_are_not_read_where_arguments_are_wrong() -> None:
    with pytest.raises(TypeError, match="colour"):
        xtec.plan(cube(), colour=1)


# faces


def test_accessor_and_notebook() -> None:
    found = cube().tec.plan(**QUICK)
    assert found.to_dict() == json.loads(json.dumps(found.to_dict())) | {
        key: found.to_dict()[key] for key in ("max_error", "psnr_range", "notes")
    }
    fast = replace(found, encode=Rate(1, "<b>"))
    assert "<td>" in fast._repr_html_()
    assert "<b>" not in fast._repr_html_()


def test_command(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "in.zarr"
    cube().to_dataset().to_zarr(path, zarr_format=2)
    code, out, err = run("plan", path, "--max-error", "20", "--chunks", "auto", "--json")
    assert (code, err.count("\n")) == (0, 1)
    assert err.startswith("xtec: s2: chunks time 2 x band 3 x y 20 x x 24; a task reads")
    found = json.loads(out)
    assert (found["model"], found["max_error"], found["sampled"]) == ("none", [20.0] * 3, 1)
    assert found["shards"] is None
    chunks = ("--max-error", "0", "--chunks", "time=1,y=16,x=16", "--shards", "y=32,x=32")
    code, out, err = run("plan", path, *chunks, "--size", "1TB", "--workers", 8, "--price", 0.5)
    assert (code, err) == (0, "")
    assert "x 8 x 0.85 (assumed efficiency)" in out
    assert "shards                   time 1 x band 3 x y 32 x x 32" in out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.zarr"], "nothing is written"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--size", "big"), "size is 'big'"),
        (("--workers", "0"), "workers is 0"),
        (("--sample", "x"), "Invalid value for '--sample'"),
        (("--psnr", "40", "--ratio", "10"), "exclude each other"),
        (("--chunks", "automatic"), "--chunks is 'automatic': write it as"),
        (("--drop-bands", "B99"), "no band B99"),
        (("--model", "jpeg"), "jpeg"),
    ],
)
def test_bad_input_is_one_line(
    run: Any, tmp_path: Path, args: tuple[str, ...], message: str
) -> None:
    path = tmp_path / "in.zarr"
    cube().to_dataset().to_zarr(path, zarr_format=2)
    code, out, err = run("plan", path, *args)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


def test_what_is_not_there(run: Any, tmp_path: Path) -> None:
    code, _, err = run("plan", tmp_path / "no.zarr")
    assert code == 2
    assert "does not exist" in err


# real pixels


@requires_real
def test_real_cubes_come_out_as_predicted(tmp_path: Path) -> None:
    """Half of the chunks speak for all, within what is said of their spread."""
    (path,) = real_cubes("val/l2a_ssl4eos12v11_val_0080717.zarr")
    data = xr.open_zarr(path, consolidated=False).reflectance.isel(time=slice(2))
    options = {
        "model": "fp",
        "offset": float(data.attrs["offset"]),
        "chunks": {"time": 1, "y": 66, "x": 66},
    }
    found = xtec.plan(data, sample=16, **options)
    summary = xtec.to_zarr(data, tmp_path / "a.zarr", **options)
    back = xr.open_zarr(tmp_path / "a.zarr").reflectance.values.astype(float)
    wrote = data.values.astype(float)
    psnr = 10 * np.log10(1e8 / np.mean((back - wrote)[wrote != 0] ** 2))
    assert (found.sampled, found.of) == (16, 32)
    assert found.ratio_error is not None
    assert found.psnr is not None
    assert found.psnr_error is not None
    files = [f for f in (tmp_path / "a.zarr/reflectance").rglob("*/*") if f.is_file()]
    ratio = summary.bytes_in / sum(f.stat().st_size for f in files)
    assert abs(found.ratio / ratio - 1) < found.ratio_error + 0.02
    assert abs(found.psnr - psnr) < found.psnr_error + 0.05


def test_a_path_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    cube().to_dataset().to_zarr(path, zarr_format=2)
    for given in (path, str(path)):
        found = xtec.plan(given, max_error=0)
        assert found.shape == {"time": 2, "band": 3, "y": 20, "x": 24}
    with pytest.raises(FileNotFoundError, match="does not exist"):
        xtec.plan(tmp_path / "b.zarr")


@pytest.mark.parametrize("function", [xtec.compress, lambda obj: xtec.to_zarr(obj, "b.zarr")])
def test_others_take_no_path_and_say_so(function: Any) -> None:
    with pytest.raises(ValueError, match="not str: open the data with xarray first"):
        function("a.zarr")
