"""The command line: exit codes, one-line errors, files of all kinds."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
import zarr
from data import real_cubes, requires_real
from scenes import scene
from tec import weights
from tec.config import CodecConfig
from zarr.storage import ZipStore

import xtec
from xtec import cli
from xtec.quality import psnr
from xtec.reading import open_input, save
from xtec.writing import human
from xtec.zarr3 import XtecCodec

BANDS = ["B02", "B03", "B04"]

# rasterio multiplies affine transforms the way it always did
pytestmark = pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning")


class Result:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the command in this process: ``run("info", path).code``."""

    def call(*args: Any) -> Result:
        monkeypatch.setattr(sys, "argv", ["xtec", *map(str, args)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        return Result(int(end.value.code or 0), captured.out, captured.err)

    return call


def cube(time: int = 2, y: int = 20, x: int = 24, **attrs: Any) -> xr.Dataset:
    data = xr.DataArray(
        scene(time=time, bands=3, y=y, x=x, nodata=True),
        dims=("time", "band", "y", "x"),
        coords={
            "time": pd.date_range("2020-06-01", periods=time).astype("datetime64[ns]"),
            "band": BANDS,
            "y": 5e6 - 10.0 * np.arange(y),
            "x": 6e5 + 10.0 * np.arange(x),
        },
        attrs={"nodata": 0, **attrs},
    )
    return data.to_dataset(name="s2").assign_attrs(title="a scene")


def band_variables() -> xr.Dataset:
    ds = cube()
    bands = {name: ds.s2.sel(band=name, drop=True) for name in BANDS}
    scl = (ds.s2[:, 0] % 12).astype("uint8").drop_vars("band").assign_attrs(nodata=0)
    return xr.Dataset({**bands, "SCL": scl}, attrs=ds.attrs)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of band variables, compressed."""
    path = tmp_path_factory.mktemp("packed") / "cube.zarr"
    band_variables().tec.to_zarr(path, model="elic", compression=100)
    return path


def check_bands(back: xr.Dataset, ds: xr.Dataset) -> None:
    for name in BANDS:
        assert back[name].dtype == "uint16"
        assert back[name].attrs.get("nodata") == 0
        np.testing.assert_array_equal(back[name] == 0, ds[name] == 0)
        assert (psnr(ds[name], back[name].transpose(*ds[name].dims), nodata=0) > 30).all()
    np.testing.assert_array_equal(back.SCL, ds.SCL)


# compress


def test_weights_inside_the_store(
    run: Any, tmp_path: Path, tiny_elic: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    band_variables().to_zarr(tmp_path / "in.zarr")
    file = shutil.copy(tiny_elic, tmp_path / "elic.safetensors")
    done = run(
        *("compress", tmp_path / "in.zarr", tmp_path / "a.zarr", "--model", "elic"),
        *("--weights", file, "--embed-weights", "--chunks", "y=10,x=12", "--shards", "y=20,x=24"),
    )
    assert (done.code, done.err) == (0, "")
    Path(file).unlink()
    monkeypatch.setattr(weights, "_loaded", OrderedDict())
    said = run("info", tmp_path / "a.zarr").out
    assert f"weights inside the store: elic, {human(tiny_elic.stat().st_size)}\n" in said
    found = json.loads(run("info", tmp_path / "a.zarr", "--json").out)["embedded_weights"]
    assert list(found["checkpoints"].values()) == [["elic"]]
    done = run("decompress", tmp_path / "a.zarr", tmp_path / "back.zarr")
    assert (done.code, done.err) == (0, "")
    back = xr.open_zarr(tmp_path / "back.zarr")
    np.testing.assert_array_equal(back.B02 == 0, band_variables().B02 == 0)


def test_compress_and_decompress(run: Any, tmp_path: Path) -> None:
    band_variables().to_zarr(tmp_path / "in.zarr")
    out = tmp_path / "out.zarr"
    done = run(
        *("compress", tmp_path / "in.zarr", out, "--model", "elic"),
        *("--chunks", "time=1,y=16", "--compression", 100),
    )
    assert (done.code, done.err) == (0, "")
    assert "times smaller" in done.out
    array = zarr.open_array(out / "reflectance", mode="r")
    assert array.chunks == (1, 3, 16, 24)
    done = run("decompress", out, tmp_path / "back.zarr")
    assert (done.code, done.err) == (0, "")
    back = xr.open_zarr(tmp_path / "back.zarr").load()
    check_bands(back, band_variables())
    assert list(back.data_vars) == [*BANDS, "SCL"]
    assert back.attrs == {"title": "a scene"}
    assert "xtec" not in back.B02.attrs


def test_options_reach_the_codec(run: Any, tmp_path: Path) -> None:
    cube().to_netcdf(tmp_path / "in.nc")
    out = tmp_path / "out.zarr"
    done = run(
        *("compress", tmp_path / "in.nc", out, "--model", "fp", "--compression", 3),
        *("--offset", 1000, "--nodata", 7, "--bands", "B8A,B11,B12", "--zarr-format", 2),
    )
    assert done.code == 0, done.err
    info = json.loads(run("info", out, "--json").out)
    assert info["zarr_format"] == 2
    (variable,) = info["variables"]
    assert variable["model"] == "fp"
    assert variable["compression"] == 3
    assert variable["offset"] == 1000
    assert variable["nodata"] == 7
    assert variable["bands"] == ["B8A", "B11", "B12"]


def test_model_and_quality_reach_compress(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr("xtec.writing.to_zarr", lambda *_, **options: asked.append(options))
    cube().to_zarr(tmp_path / "in.zarr")
    command = ("compress", tmp_path / "in.zarr", tmp_path / "out.zarr")
    assert run(*command).code == 0
    assert (
        run(*command, "--model", "flex", "--quality", "16,4, 4", "--forecast", "sample").code == 0
    )
    assert run(*command, "--model", "flex", "--quality", "0").code == 0
    assert [(a["model"], a["quality"], a["forecast"]) for a in asked] == [
        ("tt", None, "mean"),
        ("flex", [16, 4, 4], "sample"),
        ("flex", [0], "mean"),
    ]


def test_offset_comes_from_the_attribute(run: Any, tmp_path: Path) -> None:
    cube(offset=1000).to_netcdf(tmp_path / "in.nc")
    for options, offset in (((), 1000), (("--offset", 1000), 1000), (("--offset", 0), 0)):
        done = run(
            *("compress", tmp_path / "in.nc", tmp_path / "a.zarr", "--overwrite"),
            *("--model", "fp", *options),
        )
        assert done.code == 0
        assert ("attribute offset=1000" in done.err) == (offset == 0)
        info = json.loads(run("info", tmp_path / "a.zarr", "--json").out)
        assert info["variables"][0]["offset"] == offset


def test_one_file(run: Any, tmp_path: Path) -> None:
    cube().to_zarr(tmp_path / "in.zarr")
    done = run("compress", tmp_path / "in.zarr", tmp_path / "a.zarr.zip", "--model", "elic")
    assert (done.code, done.err) == (0, "")
    assert json.loads(run("info", tmp_path / "a.zarr.zip", "--json").out)["zarr_format"] == 3
    done = run("decompress", tmp_path / "a.zarr.zip", tmp_path / "b.zarr.zip")
    assert (done.code, done.err) == (0, "")
    back = xr.open_zarr(ZipStore(tmp_path / "b.zarr.zip", mode="r"))
    assert back.s2.attrs == {"nodata": 0}
    assert back.s2.encoding["compressors"], "plain lossless Zarr"


# errors


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("compress", "IN", "OUT", "--weights", "no.safetensors"), "no checkpoint at"),
        (("compress", "IN", "OUT", "--model", "flex", "--quality", "17"), "from 0 to 16"),
        (("compress", "IN", "OUT", "--quality", "4"), "only model='flex' has a quality"),
        (("compress", "IN", "OUT", "--quality", "best"), "--quality is 'best': write 0 to 16"),
        (("compress", "IN", "OUT", "--forecast", "sample"), "only model='flex' forecasts"),
        (("compress", "IN", "OUT", "--model", "jpeg"), "unknown model 'jpeg'"),
        (("compress", "nowhere.zarr", "OUT"), "nowhere.zarr does not exist"),
        (("compress", "IN", "IN", "--model", "fp"), "exists: pass --overwrite"),
        (("compress", "IN", "OUT", "--chunks", "time:4"), "write it as time=4,y=512,x=512"),
        (
            ("compress", "IN", "OUT", "--model", "fp", "--chunks", "z=4"),
            "names a dimension 'z'",
        ),
        (("compress", "IN", "OUT", "--nodata", "zero"), "pass a number, 'none' or 'auto'"),
        (("compress", "IN", "OUT", "--bands", "B02"), "lists 1 names"),
        (("compress", "IN", "OUT", "--bands", "a=B02,B03"), "not both"),
        (("compress", "IN", "OUT", "--compression", "-3"), "compression is -3.0"),
        (("compress", "IN", "OUT", "--weights", "x.pt"), "no checkpoint at 'x.pt'"),
        (("compress", "IN"), "Missing argument 'OUT'"),
        (("info", "IN"), "no variable that xtec has compressed"),
        (("info", "."), "not a whole Zarr store"),
        (("decompress", "IN", "OUT"), "no variable that xtec has compressed"),
        (("demo", "nowhere.zarr"), "nowhere.zarr does not exist"),
        (("nonsense",), "No such command"),
    ],
)
def test_errors_are_one_line(run: Any, tmp_path: Path, args: tuple, message: str) -> None:
    source, out = tmp_path / "in.zarr", tmp_path / "out.zarr"
    cube().to_zarr(source)
    done = run(*({"IN": source, "OUT": out, ".": tmp_path}.get(arg, arg) for arg in args))
    assert done.code == 2
    assert message in done.err
    assert done.err.startswith("xtec: ")
    assert done.err.count("\n") == 1
    assert done.out == ""
    assert not out.exists()
    xr.testing.assert_identical(xr.open_zarr(source).load(), cube())


def test_an_existing_output_stays(run: Any, packed: Path, tmp_path: Path) -> None:
    for name in ("a.zarr", "a.zarr.zip", "a.nc", "tiffs"):
        target = tmp_path / name
        assert run("decompress", packed, target).code == 0
        done = run("decompress", packed, target)
        assert done.code == 2
        assert "exists" in done.err
        assert run("decompress", packed, target, "--overwrite").code == 0
        assert not list(tmp_path.glob("*.partial*"))
    (tmp_path / "tiffs" / "thesis.txt").write_text("all of it")
    done = run("decompress", packed, tmp_path / "tiffs", "--overwrite")
    assert done.code == 2
    assert "thesis.txt" in done.err
    assert (tmp_path / "tiffs" / "thesis.txt").exists()


def test_bugs_are_not_hidden(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("xtec.report.describe", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        run("info", "x")


def test_ctrl_c_leaves_no_store_that_opens(tmp_path: Path) -> None:
    ds = xr.concat([cube(time=4, y=512, x=512)] * 6, "time").chunk(time=1)
    ds.to_zarr(tmp_path / "in.zarr")
    store = tmp_path / "out.zarr"
    # Where the tests run in the background of a script, SIGINT is ignored by inheritance.
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from xtec.cli import main; main()"
    )
    writer = subprocess.Popen(
        [
            *(sys.executable, "-c", code),
            *("compress", str(tmp_path / "in.zarr"), str(store), "--model", "elic"),
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not (store / "s2" / "c").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
        assert writer.poll() is None, "the command ended by itself"
    writer.send_signal(signal.SIGINT)
    _, err = writer.communicate(timeout=60)
    assert writer.returncode == 130
    message = "xtec: interrupted; what was being written is incomplete and does not open; "
    assert err == message + "the same command with --resume goes on with it\n"
    with pytest.raises(ValueError, match=r"incomplete: .*--resume"):
        xr.open_zarr(store)


# info, models


def test_info(run: Any, packed: Path) -> None:
    done = run("info", packed)
    assert (done.code, done.err) == (0, "")
    for text in ("elic, compression 100", "B02, B03, B04 (S2L2A)", "time=2, band=3, y=20, x=24"):
        assert text in done.out
    assert "not compressed by xtec: SCL, time, x, y" in done.out.replace("band, ", "")
    found = json.loads(run("info", packed, "--json").out)
    (variable,) = found["variables"]
    assert variable["name"] == "reflectance"
    assert variable["bytes_in"] == 2 * 3 * 20 * 24 * 2
    files = [f for f in (packed / "reflectance").rglob("*") if f.is_file()]
    assert variable["bytes_out"] == sum(f.stat().st_size for f in files)
    assert variable["ratio"] == pytest.approx(variable["bytes_in"] / variable["bytes_out"])
    assert variable["written_by"] == xtec.__version__
    assert len(variable["weights_sha256"]) == 64
    assert variable["warnings"] == []


def test_info_of_shards_and_of_a_second_codec(run: Any, tmp_path: Path) -> None:
    data = cube().s2.tec.compress(model="fp", chunks={"y": 8}, shards={"y": 16})
    data.to_zarr(tmp_path / "a.zarr")
    (variable,) = json.loads(run("info", tmp_path / "a.zarr", "--json").out)["variables"]
    assert (variable["chunks"], variable["shards"]) == ([2, 3, 8, 24], [2, 3, 16, 24])
    assert variable["warnings"] == []
    del data.encoding["compressors"], data.encoding["shards"]
    data.to_zarr(tmp_path / "b.zarr")
    done = run("info", tmp_path / "b.zarr")
    assert done.code == 0
    assert done.err.startswith("xtec: warning: s2: ZstdCodec beside the codec")
    assert done.err.count("\n") == 1


def test_info_of_flex(run: Any, tmp_path: Path) -> None:
    config = CodecConfig(
        model="flex", weights="terracodec", quality=(16, 4), bands=tuple(BANDS), nodata=0
    )
    group = zarr.create_group(tmp_path / "a.zarr")
    group.create_array(
        "s2",
        shape=(4, 3, 16, 16),
        chunks=(2, 3, 16, 16),
        dtype="uint16",
        serializer=XtecCodec(config, ("time", "band", "y", "x"), (2, 3, 16, 16)),
        compressors=(),
        filters=(),
        fill_value=0,
    )
    assert "flex, quality 16, 4\n" in run("info", tmp_path / "a.zarr").out
    (variable,) = json.loads(run("info", tmp_path / "a.zarr", "--json").out)["variables"]
    assert (variable["quality"], variable["forecast"]) == ([16, 4], "mean")


def test_report(run: Any, packed: Path, tmp_path: Path) -> None:
    band_variables().to_zarr(tmp_path / "source.zarr")
    page = tmp_path / "page.html"
    args = ("report", tmp_path / "source.zarr", packed, "-o", page, "--dates", 1)
    done = run(*args)
    assert done.code == 0, done.err
    assert done.out.startswith(f"{page} (")
    assert page.read_text().count('alt="B02, 2020-06-01, original"') == 1
    done = run(*args)
    assert done.code == 2
    assert "--overwrite" in done.err
    assert run(*args, "--overwrite", "--budget", "1GB").code == 0
    assert "budget is 'all'" in run(*args, "--overwrite", "--budget", "all").err


def test_models_version_and_help(run: Any) -> None:
    listed = json.loads(run("models", "--json").out)
    assert {"elic", "fp", "tt", "flex"} <= {entry["model"] for entry in listed}
    done = run("models")
    assert done.code == 0
    assert len(done.out.splitlines()) == len(listed)
    assert run("--version").out == f"{xtec.__version__}\n"
    for args in ((), ("--help",), ("compress", "--help")):
        done = run(*args)
        assert done.code == 0
        assert "Usage:" in done.out


def test_cli_is_installed() -> None:
    from importlib.metadata import entry_points

    (entry,) = entry_points(group="console_scripts", name="xtec")
    assert entry.load() is cli.main


# files


def test_netcdf_there_and_back(run: Any, packed: Path, tmp_path: Path) -> None:
    assert run("decompress", packed, tmp_path / "a.nc").code == 0
    with xr.open_dataset(tmp_path / "a.nc") as back:
        check_bands(back, band_variables())
    assert run("compress", tmp_path / "a.nc", tmp_path / "b.zarr", "--model", "elic").code == 0
    assert "reflectance" in xr.open_zarr(tmp_path / "b.zarr")


def test_geotiffs_there_and_back(run: Any, packed: Path, tmp_path: Path) -> None:
    done = run("decompress", packed, tmp_path / "tiffs")
    assert (done.code, done.err) == (0, "")
    names = sorted(file.name for file in (tmp_path / "tiffs").iterdir())
    assert len(names) == 8
    assert names[:2] == ["20200601T000000_B02.tif", "20200601T000000_B03.tif"]
    ds = band_variables()
    back = open_input(tmp_path / "tiffs")
    check_bands(back.load(), ds)
    for name in ("time", "y", "x"):
        np.testing.assert_array_equal(back[name], ds[name])
    done = run("compress", tmp_path / "tiffs", tmp_path / "b.zarr", "--model", "elic")
    assert (done.code, done.err) == (0, "")
    assert xr.open_zarr(tmp_path / "b.zarr").reflectance.sizes["time"] == 2


def write_tif(path: Path, pixels: np.ndarray, names: tuple[str, ...] = (), **attrs: Any) -> None:
    import rioxarray  # noqa: F401

    data = xr.DataArray(
        pixels,
        dims=("band", "y", "x")[-pixels.ndim :],
        coords={
            "y": 5e6 - 10.0 * np.arange(pixels.shape[-2]),
            "x": 6e5 + 10.0 * np.arange(pixels.shape[-1]),
        },
    )
    data = data.rio.write_crs("EPSG:32632").rio.write_nodata(0)
    data.attrs.update(long_name=names or None, **attrs)
    data.attrs = {k: v for k, v in data.attrs.items() if v is not None}
    data.rio.to_raster(path)


def test_geotiffs_as_people_have_them(tmp_path: Path) -> None:
    pixels = scene(time=1, bands=3, y=20, x=24)[0]
    for band, image in zip(("B02", "B03", "B8A"), pixels, strict=True):
        write_tif(tmp_path / f"T32TQM_20220612T101559_{band}_10m.tif", image)
    ds = open_input(tmp_path)
    assert list(ds.data_vars) == ["B02", "B03", "B8A"]
    assert ds.B02.dims == ("time", "y", "x")
    assert ds.time.values[0] == np.datetime64("2022-06-12T10:15:59")
    assert ds.B02.chunks is not None
    assert ds.B02.attrs["nodata"] == 0
    assert "_FillValue" not in ds.B02.attrs
    np.testing.assert_array_equal(ds.B8A[0], pixels[2])
    ds.tec.compress(model="fp").to_zarr(tmp_path / "a.zarr")
    back = xr.open_zarr(tmp_path / "a.zarr", decode_coords="all")
    assert back.rio.crs.to_epsg() == 32632
    assert back.rio.transform() == ds.rio.transform()
    assert back.reflectance.dtype == "uint16"


def test_one_geotiff_with_descriptions(tmp_path: Path) -> None:
    pixels = scene(time=1, bands=3, y=20, x=24)[0]
    write_tif(tmp_path / "scene.tif", pixels, ("B4", "B3", "B2"))
    ds = open_input(tmp_path / "scene.tif")
    assert list(ds.data_vars) == ["B4", "B3", "B2"]
    assert ds.B4.dims == ("y", "x")
    codec = ds.tec.compress(model="fp").reflectance.encoding["serializer"]
    assert codec.config.bands == ("B04", "B03", "B02")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"B02.tif": (20, 24), "B03.tif": (10, 12)}, r"B03 has \(10, 12\).*one grid first"),
        (
            {"2020-01-01_B02.tif": (4, 4), "2020-01-02_B03.tif": (4, 4)},
            r"has no file for 2020-01-0",
        ),
        ({"2020-01-01_B02.tif": (4, 4), "B03.tif": (4, 4)}, r"B03 has no file for"),
        ({"a_B02.tif": (4, 4), "b_B02.tif": (4, 4)}, r"two files for B02"),
        ({"B02_B03.tif": (4, 4)}, r"several bands \(B02, B03\)"),
        ({"scene.tif": (3, 4, 4)}, r"3 bands and no descriptions"),
    ],
)
def test_folders_that_are_no_cube(tmp_path: Path, files: dict, message: str) -> None:
    for name, shape in files.items():
        write_tif(tmp_path / name, np.ones(shape, "uint16"))
    with pytest.raises(ValueError, match=message):
        open_input(tmp_path)


def test_inputs_that_are_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "a.zip").write_text("text")
    (tmp_path / "empty.zarr").mkdir()
    for name, message in (
        ("a.txt", "is no Zarr store, no NetCDF"),
        ("", "is no Zarr store, no NetCDF"),
        ("a.zip", "not a zip file"),
        ("empty.zarr", "not a whole Zarr store"),
    ):
        with pytest.raises(ValueError, match=message):
            open_input(tmp_path / name)


def test_zip_of_a_folder(tmp_path: Path) -> None:
    import shutil

    cube().to_zarr(tmp_path / "deep" / "cube.zarr")
    shutil.make_archive(str(tmp_path / "cube.zarr"), "zip", tmp_path / "deep")
    xr.testing.assert_identical(open_input(tmp_path / "cube.zarr.zip").load(), cube())


def test_images_without_time_and_other_variables(tmp_path: Path) -> None:
    ds = cube().isel(time=0, drop=True).assign(sun=30.0)
    with pytest.warns(UserWarning, match=r"\['sun'\] are no images"):
        save(ds, tmp_path / "tiffs")
    assert sorted(f.name for f in (tmp_path / "tiffs").iterdir()) == [f"{b}.tif" for b in BANDS]
    back = open_input(tmp_path / "tiffs")
    np.testing.assert_array_equal(back.B03, ds.s2.sel(band="B03"))


@requires_real
def test_a_real_cube(run: Any, tmp_path: Path) -> None:
    path = next(p for p in real_cubes("val/l2a_gelos*.zarr"))
    done = run("compress", path, tmp_path / "a.zarr", "--model", "elic", "--compression", 40)
    assert (done.code, done.err) == (0, "")
    (variable,) = json.loads(run("info", tmp_path / "a.zarr", "--json").out)["variables"]
    assert variable["offset"] == 1000, "from the cube's attribute"
    assert variable["ratio"] > 15
    assert run("decompress", tmp_path / "a.zarr", tmp_path / "b.nc").code == 0
    original = xr.open_zarr(path, consolidated=False).reflectance
    with xr.open_dataset(tmp_path / "b.nc") as back:
        assert back.reflectance.attrs == original.attrs
        assert (psnr(original, back.reflectance, nodata=0) > 30).all()


def test_dropping_bands(run: Any, tmp_path: Path) -> None:
    ds = cube(time=1, y=32, x=32)
    name = next(iter(ds.data_vars))
    names = [str(b) for b in ds["band"].values]
    ds = ds.assign_coords(band=[*names[:-1], "B10"])
    ds.to_zarr(tmp_path / "l1c.zarr")
    command = ("compress", tmp_path / "l1c.zarr", tmp_path / "out.zarr", "--model", "elic")
    done = run(*command)
    assert done.code == 2
    assert "leave band B10 out" in done.err
    done = run(*command, "--drop-bands", "B99")
    assert done.code == 2
    assert "no band B99" in done.err
    done = run(*command, "--drop-bands", "B10")
    assert done.code == 0, done.err
    assert list(xr.open_zarr(tmp_path / "out.zarr")["band"].values) == names[:-1]
    assert name in xr.open_zarr(tmp_path / "out.zarr")


def test_a_file_that_is_no_checkpoint_leaves_nothing_behind(run: Any, tmp_path: Path) -> None:
    cube(time=1, y=32, x=32).to_zarr(tmp_path / "in.zarr")
    (tmp_path / "junk.pt").write_bytes(b"junk")
    out = tmp_path / "out.zarr"
    done = run("compress", tmp_path / "in.zarr", out, "--weights", tmp_path / "junk.pt")
    assert done.code == 2
    assert "not a checkpoint" in done.err
    assert len(done.err.splitlines()) == 1
    assert not out.exists()
