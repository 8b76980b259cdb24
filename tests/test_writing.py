"""to_zarr: whole or not at all, with a summary."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import xarray as xr
import zarr
from scenes import scene
from tec.stream import peek
from zarr.storage import LocalStore, MemoryStore, StorePath, ZipStore

import xtec
from xtec.chunks import ChunkCoder
from xtec.quality import bpppb, psnr
from xtec.rootlast import RootLast
from xtec.writing import Summary

BANDS = ["B02", "B03", "B04"]


def cube(time: int = 2, y: int = 20, x: int = 24) -> xr.Dataset:
    pixels = scene(time=time, bands=3, y=y, x=x, nodata=True)
    data = xr.DataArray(pixels, dims=("time", "band", "y", "x"), coords={"band": BANDS})
    scl = (data[:, 0] % 12).astype("uint8").drop_vars("band")
    return xr.Dataset({"s2": data.assign_attrs(nodata=0), "SCL": scl})


def check_store(store: Any, ds: xr.Dataset, **options: Any) -> None:
    back = xr.open_zarr(store, **options)
    xr.testing.assert_identical(back.SCL.load(), ds.SCL)
    np.testing.assert_array_equal(back.s2 == 0, ds.s2 == 0)
    assert (psnr(ds.s2, back.s2, nodata=0) > 30).all()


# what is written


@pytest.mark.parametrize("zarr_format", [3, 2])
def test_writes_a_store_and_says_what(tmp_path: Path, zarr_format: int) -> None:
    ds = cube(time=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # zarr's two warnings about format 3 among them
        summary = ds.tec.to_zarr(
            tmp_path / "a.zarr",
            model="elic",
            compression=50,
            chunks={"y": 16},
            zarr_format=zarr_format,
        )
    check_store(tmp_path / "a.zarr", ds)
    assert zarr.open_group(tmp_path / "a.zarr").metadata.zarr_format == zarr_format
    files = [f for f in (tmp_path / "a.zarr" / "s2").rglob("*") if f.is_file()]
    assert summary.bytes_out == sum(f.stat().st_size for f in files)
    assert summary.bytes_in == ds.s2.nbytes
    assert summary.samples == ds.s2.size
    assert (summary.variable, summary.model, summary.compression) == ("s2", "elic", 50)
    assert summary.bpppb == pytest.approx(8 * summary.bytes_out / ds.s2.size)
    assert summary.seconds > 0


def test_summary_prints_well() -> None:
    summary = Summary("a<b>.zarr", "s2", "elic", 20.0, 10**6, 2 * 10**6, 10**5, 0.5)
    assert summary.ratio == 20
    assert summary.bpppb == pytest.approx(0.8)
    assert summary.mb_per_s == 4
    lines = str(summary).splitlines()
    assert len(lines) == 6
    assert "size                     2.0 MB -> 100.0 kB (20.0 times smaller)" in lines
    assert repr(summary) == str(summary)
    assert "model                    elic, compression 20" in lines
    flex = replace(summary, model="flex", quality=(16, 4))
    assert "model                    flex, quality 16, 4" in str(flex).splitlines()
    page = summary._repr_html_()
    assert "<td>0.8000</td>" in page
    assert "a&lt;b&gt;.zarr" in page


def test_what_is_packed_is_written_as_it_is(tmp_path: Path) -> None:
    packed = cube().tec.compress(model="fp", compression=5)
    summary = packed.tec.to_zarr(tmp_path / "a.zarr")
    assert (summary.model, summary.compression) == ("fp", 5)
    summary = packed.s2.tec.to_zarr(tmp_path / "b.zarr")
    assert summary.model == "fp"
    assert list(xr.open_zarr(tmp_path / "b.zarr").data_vars) == ["s2"]


def test_stores_of_other_kinds(tmp_path: Path) -> None:
    ds = cube()
    for store in (MemoryStore(), LocalStore(tmp_path / "b.zarr")):
        ds.tec.to_zarr(store, model="fp")
        check_store(store, ds)
    ds.tec.to_zarr("memory://cubes/c.zarr", model="fp")
    check_store("memory://cubes/c.zarr", ds)
    ds.s2.rename(None).tec.to_zarr(str(tmp_path / "d.zarr"), model="fp")
    assert xr.open_dataarray(tmp_path / "d.zarr", engine="zarr").name is None


def test_one_file(tmp_path: Path) -> None:
    ds, path = cube(), tmp_path / "a.zarr.zip"
    summary = ds.tec.to_zarr(path, model="fp")
    check_store(ZipStore(path, mode="r"), ds)
    assert [file.name for file in tmp_path.iterdir()] == ["a.zarr.zip"]
    with zipfile.ZipFile(path) as archive:
        sizes = [i.file_size for i in archive.infolist() if i.filename.startswith("s2/")]
    assert summary.bytes_out == sum(sizes)
    with pytest.raises(FileExistsError, match=r"a.zarr.zip exists.*overwrite=True"):
        ds.tec.to_zarr(path, model="fp")
    ds.isel(time=[0]).tec.to_zarr(path, model="fp", overwrite=True)
    assert xr.open_zarr(ZipStore(path, mode="r")).sizes["time"] == 1


def test_several_chunks_go_through_the_network_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    original = ChunkCoder.encode_chunks

    def spy(self: ChunkCoder, chunks: Any, **options: Any) -> Any:
        seen.append(len(chunks))
        return original(self, chunks, **options)

    monkeypatch.setattr(ChunkCoder, "encode_chunks", spy)
    ds = cube(y=32, x=32).chunk(y=16)  # two blocks of two chunks
    ds.tec.to_zarr(tmp_path / "a.zarr", model="fp", chunks={"y": 8, "x": 32})
    assert seen == [2, 2]
    assert zarr.config.get("codec_pipeline.batch_size") == 1


# what is there already


def test_an_existing_store_stays(tmp_path: Path) -> None:
    ds, store = cube(), tmp_path / "a.zarr"
    ds.tec.to_zarr(store, model="fp")
    with pytest.raises(FileExistsError, match=r"a.zarr exists: pass overwrite=True"):
        ds.tec.to_zarr(store, model="elic")
    check_store(store, ds)
    later = ds.isel(time=[1])
    later.tec.to_zarr(store, model="elic", overwrite=True)
    check_store(store, later)
    ds.tec.to_zarr(store, model="elic", mode="w")
    check_store(store, ds)
    with pytest.raises(ValueError, match=r"mode must be 'w-' or 'w', got 'a'.*append_dim='time'"):
        ds.tec.to_zarr(store, model="elic", mode="a")


def test_a_folder_that_takes_no_files_is_found_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By whichever way it is written; root could write it all the same, hence the stand-in."""
    ds, store = cube(), tmp_path / "a.zarr"
    ds.tec.to_zarr(store, model="fp")
    before = {f: f.read_bytes() for f in store.rglob("*") if f.is_file()}
    monkeypatch.setattr(os, "access", lambda path, mode: str(tmp_path) not in str(path))
    refused = pytest.raises(PermissionError, match=r"this place cannot be written; change its perm")
    for options in ({"overwrite": True}, {"append_dim": "time"}, {"region": {"y": slice(0, 20)}}):
        with refused:
            ds.tec.to_zarr(store, **options)
    with refused:
        xtec.embed_weights(store)
    with refused:
        ds.tec.report(store, tmp_path / "report.html")
    assert {f: f.read_bytes() for f in store.rglob("*") if f.is_file()} == before


def test_a_device_that_is_none_is_found_before_a_store_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"XTEC_DEVICE. is 'gpu9': choose 'auto', 'cpu'"):
        xtec.settings.device = "gpu9"
    monkeypatch.setitem(vars(xtec.settings), "device", "gpu9")  # as from the environment
    with pytest.raises(ValueError, match="is 'gpu9'"):
        cube().tec.to_zarr(tmp_path / "a.zarr", model="fp")
    assert not (tmp_path / "a.zarr").exists()
    for device in ("cpu", "cuda", "cuda:3", "auto"):
        xtec.settings.check_device(device)


def test_what_is_no_store_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("all of it")
    (tmp_path / "photos").mkdir()
    with pytest.raises(FileExistsError, match=r"'photos', 'thesis.txt'.*not overwritten"):
        cube().tec.to_zarr(tmp_path, model="fp", overwrite=True)
    with pytest.raises(FileExistsError, match=r"thesis.txt is a file"):
        cube().tec.to_zarr(tmp_path / "thesis.txt", model="fp", overwrite=True)
    for nowhere in (None, ""):
        with pytest.raises(ValueError, match="pass a path, a URL or a zarr Store"):
            cube().tec.to_zarr(nowhere, model="fp", overwrite=True)
    with pytest.raises(OSError, match=r"Not a directory.*or choose another place"):
        cube().tec.to_zarr(tmp_path / "thesis.txt" / "a.zarr", model="fp")
    assert (tmp_path / "thesis.txt").read_text() == "all of it"


def test_stores_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ZipStore cannot be written in parallel: pass the path"):
        cube().tec.to_zarr(ZipStore(tmp_path / "a.zip", mode="w"), model="fp")
    with pytest.raises(ValueError, match=r"a path inside a store"):
        cube().tec.to_zarr(StorePath(MemoryStore(), "group"), model="fp")


def test_wrong_input_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="weights='terracodec'"):
        cube().tec.to_zarr(tmp_path / "a.zarr", model="flex", sensor="S2L1C")
    with pytest.raises(ValueError, match="chunks"):
        cube().tec.to_zarr(tmp_path / "a.zarr", model="elic", chunks={"band": 1})
    assert not list(tmp_path.iterdir())


# interruption


def test_root_metadata_comes_last() -> None:
    class Log(MemoryStore):
        keys: ClassVar[list[str]] = []

        async def set(self, key: str, value: Any, *args: Any) -> None:
            self.keys.append(key)
            await super().set(key, value, *args)

    cube().tec.to_zarr(Log(), model="fp")
    assert (
        Log.keys[0] == Log.keys[-1] == "zarr.json"
    )  # the mark of an unfinished store, and the root
    assert Log.keys.count("zarr.json") == 2
    assert any(key.startswith("s2/c/") for key in Log.keys)


@pytest.mark.parametrize("zarr_format", [3, 2])
def test_a_failed_write_does_not_open(tmp_path: Path, zarr_format: int) -> None:
    def fail(block: np.ndarray) -> np.ndarray:
        raise OSError("the disk is gone")

    ds = cube(time=4).chunk(time=2)
    pixels = ds.s2.data.map_blocks(fail, dtype="uint16", meta=np.empty(0, "uint16"))
    broken = ds.assign(s2=ds.s2.copy(data=pixels))
    store = tmp_path / "a.zarr"
    options = {"model": "fp", "chunks": {"time": 2}, "zarr_format": zarr_format}
    with pytest.raises(OSError, match="the disk is gone"):
        broken.tec.to_zarr(store, **options)
    with pytest.raises(ValueError, match=r"incomplete: .*resume=True"):
        xr.open_zarr(store)
    with pytest.raises(
        FileExistsError, match=r"what an interrupted write has left.*resume=True.*overwrite=True"
    ):
        ds.tec.to_zarr(store, **options)
    ds.tec.to_zarr(store, overwrite=True, **options)
    check_store(store, ds)


SLOW_WRITER = """
    import sys, time, numpy as np, xarray as xr, dask, xtec
    def slow(block):
        time.sleep(0 if block[0, 0, 0, 0] == 1 else 60)
        return block
    pixels = np.full((4, 3, 16, 16), 2000, "uint16")
    pixels[:, :, 0, 0] = np.arange(1, 5)[:, None]
    data = xr.DataArray(pixels, dims=("time", "band", "y", "x")).chunk(time=1)
    data = data.assign_coords(band=["B02", "B03", "B04"])
    data = data.copy(data=data.data.map_blocks(slow, dtype="uint16", meta=np.empty(0, "uint16")))
    ds = data.to_dataset(name="s2")
    with dask.config.set(scheduler="threads", num_workers=4):
        EXPRESSION
"""


@pytest.mark.parametrize(
    "expression",
    [
        "ds.tec.to_zarr(sys.argv[1], model='fp', chunks={'time': 1})",
        "ds.tec.compress(model='fp', chunks={'time': 1}).to_zarr(sys.argv[1])",
    ],
)
def test_a_killed_write_is_not_taken_for_a_whole_one(tmp_path: Path, expression: str) -> None:
    store = tmp_path / "a.zarr"
    code = textwrap.dedent(SLOW_WRITER).replace("EXPRESSION", expression)
    writer = subprocess.Popen(
        [sys.executable, "-c", code, str(store)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while not (store / "s2" / "c" / "0").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
        assert writer.poll() is None, "the writer ended by itself"
    time.sleep(0.2)
    writer.kill()
    writer.wait()
    if "compress" not in expression:
        with pytest.raises(ValueError, match=r"incomplete: .*resume=True"):
            xr.open_zarr(store)
        return
    # Plain xarray has the first protection only: the store opens, and the missing chunk says so.
    back = xr.open_zarr(store)
    assert (back.s2.isel(time=0) > 0).all()
    with pytest.raises(ValueError, match=r"never written"):
        back.s2.isel(time=2).load()


# pieces


def test_root_last_holds_back_and_forgets() -> None:
    inner = MemoryStore()
    guarded = RootLast(inner)
    group = zarr.create_group(guarded, attributes={"a": 1})
    group.create_array("v", shape=(2,), dtype="uint8", chunks=(2,))[:] = [1, 2]
    assert zarr.open_group(guarded, mode="r").attrs["a"] == 1
    with pytest.raises(FileNotFoundError):
        zarr.open_group(inner, mode="r")
    guarded.commit()
    assert zarr.open_group(inner, mode="r")["v"][:].tolist() == [1, 2]


def test_progress_in_a_terminal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import io

    import rich.console

    shown = io.StringIO()

    class Terminal(rich.console.Console):
        def __init__(self, **_: Any) -> None:
            super().__init__(file=shown, force_terminal=True, width=80)

    monkeypatch.setattr(rich.console, "Console", Terminal)
    cube().tec.to_zarr(tmp_path / "a.zarr", model="fp", chunks={"time": 1})
    assert "compressing" in shown.getvalue()
    before = shown.tell()
    cube().tec.to_zarr(tmp_path / "b.zarr", model="fp", progress=False)
    assert shown.tell() == before


def test_quality_figures() -> None:
    original = xr.DataArray([[100, 200, 0], [300, 0, 0], [0, 0, 0]], dims=("band", "x"))
    decoded = xr.DataArray([[110, 190, 50], [300, 9, 9], [1, 1, 1]], dims=("band", "x"))
    figures = psnr(original, decoded, nodata=0)
    assert figures[0] == pytest.approx(60)
    assert figures[1] == np.inf
    assert np.isnan(figures[2])
    chunked = psnr(original.chunk(x=1), decoded.chunk(x=2), nodata=0)
    np.testing.assert_array_equal(chunked, figures)
    reflectance = psnr(original.where(original > 0) * 1e-4, decoded * 1e-4, scale=1e-4)
    assert reflectance[0] == pytest.approx(60)
    assert psnr(original, decoded, band=None, nodata=0) == pytest.approx(10 * np.log10(3e8 / 200))
    with pytest.raises(ValueError, match="one shape"):
        psnr(original, decoded[:, :2])
    assert bpppb(10, 40) == 2
    assert np.isnan(bpppb(1, 0))


def test_every_chunk_of_nodata_is_written(tmp_path: Path) -> None:
    ds = cube(time=3)
    ds.s2[1] = 0
    ds.tec.to_zarr(tmp_path / "a.zarr", model="fp", chunks={"time": 1})
    chunks = sorted((tmp_path / "a.zarr" / "s2" / "c").glob("*/0/0/0"))
    assert len(chunks) == 3
    assert peek(chunks[1].read_bytes()).extent[0] == 0
    assert len(chunks[1].read_bytes()) < 100
    check_store(tmp_path / "a.zarr", ds)
    assert xtec.__version__ in xr.open_zarr(tmp_path / "a.zarr").s2.attrs["xtec"]


def test_on_a_cluster(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed", reason="the extra 'distributed' is optional")
    ds = cube(time=3).chunk(time=1)
    options = {"model": "fp", "chunks": {"time": 1}}
    with (
        distributed.LocalCluster(1, threads_per_worker=2, dashboard_address=":0") as cluster,
        distributed.Client(cluster),
    ):
        summary = ds.tec.to_zarr(tmp_path / "a.zarr", **options)
    ds.tec.to_zarr(tmp_path / "b.zarr", **options)
    assert summary.bytes_out > 0
    check_store(tmp_path / "a.zarr", ds.load())
    xr.testing.assert_identical(
        xr.open_zarr(tmp_path / "a.zarr").load(), xr.open_zarr(tmp_path / "b.zarr").load()
    )
