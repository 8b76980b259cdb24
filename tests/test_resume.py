"""Interrupted writes: they do not open, they say so, and resuming ends in the same store."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import xarray as xr
import zarr
from scenes import scene
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import LocalStore, MemoryStore, ZipStore

from xtec import cli
from xtec.reading import open_input
from xtec.report import describe
from xtec.resume import Resumed
from xtec.rootlast import open_store

BANDS = ["B02", "B03", "B04"]
CHUNKS = {"time": 2, "y": 16, "x": 16}
OPTIONS = {"model": "fp", "chunks": CHUNKS, "progress": False}
JOBS: dict[str, dict[str, Any]] = {
    "format 3": {},
    "shards": {"shards": {"time": 2, "y": 32, "x": 32}},
    "format 2": {"zarr_format": 2},
}

jobs = pytest.mark.parametrize("job", JOBS)


class Gone(Exception):
    """Reading a block failed."""


@contextmanager
def interrupted() -> Iterator[None]:
    """Blocks are written one by one, until one cannot be read."""
    with dask.config.set(scheduler="synchronous"), pytest.raises(Gone):
        yield


def cube(readable: int = 99, read: list[int] | None = None) -> xr.Dataset:
    """3 dates of 32 x 32 pixels; blocks of 2 dates and 32 x 32 pixels. Part of it is nodata.

    After ``readable`` blocks no more can be read; the first dates of those that were go to
    ``read``.
    """
    read = [] if read is None else read
    pixels = scene(time=3, bands=3, y=32, x=32, nodata=True)
    pixels[2, :, :16] = 0
    data = xr.DataArray(pixels, dims=("time", "band", "y", "x"), name="s2")
    data = data.assign_coords(band=BANDS, time=np.arange(3)).assign_attrs(nodata=0)
    scl = (data[:, 0] % 12).astype("uint8").drop_vars("band").assign_attrs(meaning="class")

    def visit(block: np.ndarray, block_info: Any = None) -> np.ndarray:
        start = block_info[0]["array-location"][0][0]
        if len(read) >= readable:
            raise Gone
        read.append(start)
        return block

    ds = xr.Dataset({"s2": data, "SCL": scl}).chunk(time=2)
    for name in ("s2", "SCL"):
        blocks = ds[name].data.map_blocks(visit, dtype=ds[name].dtype, meta=ds[name].data._meta)
        ds[name] = ds[name].copy(data=blocks)
    return ds


def contents(store: Any) -> dict[str, bytes]:
    """Every key of a store with its bytes."""
    store = LocalStore(store) if isinstance(store, Path) else store

    async def read() -> dict[str, bytes]:
        prototype = default_buffer_prototype()
        keys = [key async for key in store.list()]
        return {key: (await store.get(key, prototype)).to_bytes() for key in sorted(keys)}

    return sync(read())


def put(store: Path, key: str, data: bytes) -> None:
    (store / key).parent.mkdir(parents=True, exist_ok=True)
    (store / key).write_bytes(data)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, bytes]]:
    """The contents of the store that an undisturbed write of a job leaves."""
    done: dict[str, dict[str, bytes]] = {}

    def write(job: str) -> dict[str, bytes]:
        if job not in done:
            store = tmp_path_factory.mktemp("whole") / "a.zarr"
            cube().tec.to_zarr(store, **OPTIONS, **JOBS[job])
            done[job] = contents(store)
        return done[job]

    return write


def laid(store: Path, files: dict[str, bytes]) -> Path:
    for key, data in files.items():
        put(store, key, data)
    return store


def root_of(files: dict[str, bytes]) -> list[str]:
    return [key for key in files if "/" not in key]


# interrupted and resumed


@jobs
def test_an_interrupted_write_is_finished(
    tmp_path: Path, whole: Callable[[str], dict[str, bytes]], job: str
) -> None:
    store = tmp_path / "a.zarr"
    with interrupted():
        cube(readable=2).tec.to_zarr(store, **OPTIONS, **JOBS[job])
    there = contents(store)
    chunks = list(filter(is_chunk, there))
    assert chunks, "nothing was written before the interruption"
    put(store, f"{chunks[0]}.0123.partial", b"half")
    read: list[int] = []
    summary = cube(read=read).tec.to_zarr(store, resume=True, **OPTIONS, **JOBS[job])
    assert contents(store) == whole(job)
    assert summary.resumed.whole + summary.resumed.written == sum(map(is_chunk, whole(job)))
    assert summary.resumed.whole == len(chunks)
    assert len(read) == 2


@jobs
def test_only_what_is_missing_is_read_and_written(
    tmp_path: Path, whole: Callable[[str], dict[str, bytes]], job: str
) -> None:
    files = whole(job)
    store = laid(tmp_path / "a.zarr", files)
    gone = next(key for key in files if key.startswith(("s2/c/1/0", "s2/1.0")))
    (store / gone).unlink()
    before = {key: (store / key).stat().st_mtime_ns for key in files if key != gone}
    read: list[int] = []
    summary = cube(read=read).tec.to_zarr(store, resume=True, **OPTIONS, **JOBS[job])
    assert contents(store) == files
    assert read == [2]
    assert summary.resumed.written == 1
    unit = "chunks and shards" if job == "shards" else "chunks"
    total = summary.resumed.whole + 1
    assert f"{summary.resumed.whole} of {total} {unit} were there" in str(summary)
    touched = {key for key in before if (store / key).stat().st_mtime_ns != before[key]}
    block = {key for key in files if key.startswith(("s2/c/1/", "s2/1."))}
    assert touched <= {*root_of(files), *block}


@jobs
def test_a_complete_store_is_left_alone(
    tmp_path: Path, whole: Callable[[str], dict[str, bytes]], job: str
) -> None:
    store = laid(tmp_path / "a.zarr", whole(job))
    put(store, "s2/left.0123.partial", b"half")
    before = {key: (store / key).stat().st_mtime_ns for key in whole(job)}
    read: list[int] = []
    summary = cube(read=read).tec.to_zarr(store, resume=True, **OPTIONS, **JOBS[job])
    assert contents(store) == whole(job)
    assert not read
    assert before == {key: (store / key).stat().st_mtime_ns for key in before}
    assert summary.resumed == Resumed(sum(is_chunk(key) for key in whole(job)), 0)
    unit = "chunks and shards" if job == "shards" else "chunks"
    assert f"{unit} were there and whole" in str(summary)


def is_chunk(key: str) -> bool:
    """Of the variables that are written in blocks."""
    return key.startswith(("s2/", "SCL/")) and not key.endswith(("zarr.json", ".zarray", ".zattrs"))


@pytest.mark.parametrize("how", ["empty", "first half", "one bit", "of other settings"])
@jobs
def test_damaged_chunks_are_written_again(
    tmp_path: Path, whole: Callable[[str], dict[str, bytes]], job: str, how: str
) -> None:
    files = whole(job)
    store = laid(tmp_path / "a.zarr", files)
    other = tmp_path / "b.zarr"
    if how == "of other settings":
        cube().tec.to_zarr(other, compression=90, **OPTIONS, **JOBS[job])
    for key in filter(is_chunk, files):
        data = files[key]
        damaged = {
            "empty": b"",
            "first half": data[: len(data) // 2],
            "one bit": data[:-9] + bytes([data[-9] ^ 1]) + data[-8:],
        }
        if how in damaged:
            put(store, key, damaged[how])
        elif key.startswith("s2/"):
            put(store, key, (other / key).read_bytes())
    summary = cube().tec.to_zarr(store, resume=True, **OPTIONS, **JOBS[job])
    assert contents(store) == files
    count = sum(is_chunk(key) and (how in damaged or key.startswith("s2/")) for key in files)
    assert summary.resumed.written == count


@jobs
def test_damaged_metadata_are_written_again(
    tmp_path: Path, whole: Callable[[str], dict[str, bytes]], job: str
) -> None:
    files = whole(job)
    store = laid(tmp_path / "a.zarr", files)
    for key in files:
        if not is_chunk(key):  # chunks of coordinates among them
            put(store, key, files[key][: len(files[key]) // 2])
    cube().tec.to_zarr(store, resume=True, **OPTIONS, **JOBS[job])
    assert contents(store) == files


def test_while_a_store_is_repaired_it_does_not_open(
    tmp_path: Path, whole: Callable[[str], dict[str, bytes]]
) -> None:
    for job in JOBS:
        store = laid(tmp_path / job / "a.zarr", whole(job))
        gone = next(key for key in whole(job) if key.startswith(("s2/c/1/0", "s2/1.0")))
        (store / gone).write_bytes(b"XTEC")
        with interrupted():
            cube(readable=0).tec.to_zarr(store, resume=True, **OPTIONS, **JOBS[job])
        with pytest.raises(ValueError, match="incomplete"):
            xr.open_zarr(store)
        cube().tec.to_zarr(store, resume=True, **OPTIONS, **JOBS[job])
        assert contents(store) == whole(job)


def test_where_nothing_is_all_is_written(
    tmp_path: Path, whole: Callable[[str], dict[str, bytes]]
) -> None:
    summary = cube().tec.to_zarr(tmp_path / "a.zarr", resume=True, **OPTIONS)
    assert summary.resumed is None
    assert contents(tmp_path / "a.zarr") == whole("format 3")
    (tmp_path / "b.zarr").mkdir()
    cube().tec.to_zarr(tmp_path / "b.zarr", resume=True, **OPTIONS)
    assert contents(tmp_path / "b.zarr") == whole("format 3")


def test_what_plain_xarray_has_left_can_be_finished(
    tmp_path: Path, whole: Callable[[str], dict[str, bytes]]
) -> None:
    packed = cube(readable=2).tec.compress(model="fp", chunks=CHUNKS)
    with interrupted():
        packed.to_zarr(tmp_path / "a.zarr")
    cube().tec.to_zarr(tmp_path / "a.zarr", resume=True, **OPTIONS)
    assert contents(tmp_path / "a.zarr") == whole("format 3")


def test_cubes_of_other_kinds(tmp_path: Path) -> None:
    loaded = cube().load()
    reflectance = loaded.s2.where(loaded.s2 > 0) * 1e-4
    scaled = {"scale_factor": 1e-4, "dtype": "uint16", "_FillValue": 0}
    reflectance.encoding = scaled
    lazy = loaded.s2.assign_coords(clouds=("time", np.linspace(0, 1, 3))).chunk(time=2)
    lazy["clouds"] = lazy.clouds.chunk(time=2)
    dates = lazy.assign_coords(time=np.arange(3).astype("M8[D]").astype("M8[ns]"))
    whens = (dates.time + np.timedelta64(1, "h")).drop_vars("time").chunk(time=2)
    for i, obj in enumerate(
        [
            loaded.s2,
            loaded.s2.rename(None),
            loaded.s2.rename("band"),
            reflectance.to_dataset(name="s2"),
            lazy,
            dates.to_dataset().assign(acquired=whens),
            loaded.isel(time=0),
            loaded.tec.compress(model="fp", chunks=CHUNKS).load(),
        ]
    ):
        options = {"progress": False}
        if "serializer" not in getattr(obj, "s2", obj).encoding:
            time = {"time": 2} if "time" in obj.dims else {}
            options.update(model="fp", chunks={**time, "y": 16, "x": 16})
        obj.tec.to_zarr(tmp_path / f"{i}.zarr", **options)
        store, files = tmp_path / f"{i}.zarr", contents(tmp_path / f"{i}.zarr")
        for key in files:
            if not key.endswith("zarr.json") or "/" not in key:
                (store / key).unlink()
        summary = obj.tec.to_zarr(store, resume=True, **options)
        assert summary.resumed.whole == 0
        assert summary.resumed.written > 0
        assert contents(store) == files, i


# another job


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"compression": 30}, r"s2/zarr.json: .*compression is 20.0 there and 30.0 here"),
        ({"chunks": {"time": 1}}, r"chunk_shape\[0\] is 2 there and 1 here"),
        ({"model": "elic"}, r"model is 'fp' there and 'elic' here"),
        ({"zarr_format": 2}, r"zarr.json is no part of what is to be written"),
        ({"attrs": {"title": "other"}}, r"attributes.title is None there and 'other' here"),
        ({"size": 16}, r"shape\[1\] is 32 there and 16 here"),
        ({"drop": "SCL"}, r"SCL/zarr.json is no part of what is to be written"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_another_job_is_refused_and_nothing_touched(
    tmp_path: Path,
    whole: Callable[[str], dict[str, bytes]],
    changes: dict[str, Any],
    message: str,
    finished: bool,
) -> None:
    files, changes = whole("format 3"), dict(changes)
    store = laid(tmp_path / "a.zarr", {k: v for k, v in files.items() if finished or "/" in k})
    (store / next(filter(is_chunk, files))).unlink()
    put(store, "s2/left.0123.partial", b"half")
    before = contents(store)
    ds = cube()
    if "attrs" in changes:
        ds = ds.assign(s2=ds.s2.assign_attrs(changes.pop("attrs")))
    if "size" in changes:
        ds = ds.isel(y=slice(changes.pop("size")))
    if "drop" in changes:
        ds = ds.drop_vars(changes.pop("drop"))
    with pytest.raises(ValueError, match=message):
        ds.tec.to_zarr(store, resume=True, **{**OPTIONS, **changes})
    assert contents(store) == before


def test_foreign_files_are_refused(
    tmp_path: Path, whole: Callable[[str], dict[str, bytes]]
) -> None:
    for key in ("thesis.txt", "photos/1.jpg", "s2/c/7/0/0/0", "s2/notes.txt", "a/zarr.json"):
        store = laid(tmp_path / key.replace("/", "_"), {**whole("format 3"), key: b"mine"})
        with pytest.raises(ValueError, match=f"{key} is no part of what is to be written"):
            cube().tec.to_zarr(store, resume=True, **OPTIONS)
        assert (store / key).read_bytes() == b"mine"


def test_resume_and_overwrite_exclude_each_other(tmp_path: Path) -> None:
    for other in ({"overwrite": True}, {"mode": "w"}):
        with pytest.raises(ValueError, match=r"resume goes on .* choose one of them"):
            cube().tec.to_zarr(tmp_path / "a.zarr", resume=True, **other, **OPTIONS)
    assert not list(tmp_path.iterdir())


# what unfinished stores say


@jobs
def test_unfinished_stores_say_so_and_stay_shut(tmp_path: Path, job: str) -> None:
    store = tmp_path / "a.zarr"
    with interrupted():
        cube(readable=2).tec.to_zarr(store, **OPTIONS, **JOBS[job])
    before = contents(store)
    later = cube().drop_vars("s2").rename(SCL="other").load()
    for opened in (
        lambda: xr.open_zarr(store),
        lambda: xr.open_zarr(store, consolidated=False),
        lambda: xr.open_dataset(store, engine="zarr"),
        lambda: zarr.open(store),
        lambda: later.to_zarr(store, mode="a"),
    ):
        with pytest.raises(ValueError, match=r"incomplete: .*interrupted.*resume=True"):
            opened()
    with pytest.raises(ValueError, match=r"not a whole Zarr store.*--resume"):
        open_input(store)
    with pytest.raises(ValueError, match=r"not a whole Zarr store.*--resume"):
        describe(store)
    with pytest.raises(FileExistsError, match=r"an interrupted write has left.*resume=True"):
        cube().tec.to_zarr(store, **OPTIONS, **JOBS[job])
    assert contents(store) == before
    cube().tec.to_zarr(store, overwrite=True, **OPTIONS, **JOBS[job])
    assert xr.open_zarr(store).sizes["time"] == 3


# other stores


def test_stores_of_other_kinds(tmp_path: Path, whole: Callable[[str], dict[str, bytes]]) -> None:
    local = f"file://{tmp_path}/b.zarr"
    for store, options in (
        (MemoryStore(), {}),
        (LocalStore(tmp_path / "a.zarr"), {}),
        (local, {"storage_options": {"auto_mkdir": True}}),
        ("memory://resume/c.zarr", {"storage_options": {}}),
    ):
        with interrupted():
            cube(readable=2).tec.to_zarr(store, **OPTIONS, **options)
        with pytest.raises(ValueError, match="incomplete"):
            xr.open_zarr(store, **options)
        summary = cube().tec.to_zarr(store, resume=True, **OPTIONS, **options)
        assert summary.resumed.written > 0
        again = cube().tec.to_zarr(store, resume=True, **OPTIONS, **options)
        assert again.resumed.written == 0
        opened = open_store(store, options.get("storage_options"))
        assert contents(opened) == whole("format 3")


def test_on_a_cluster(tmp_path: Path, whole: Callable[[str], dict[str, bytes]]) -> None:
    distributed = pytest.importorskip("distributed", reason="the extra 'distributed' is optional")
    files = whole("format 3")
    store = laid(tmp_path / "a.zarr", {key: files[key] for key in files if "/1/" not in key})
    with (
        distributed.LocalCluster(
            1, threads_per_worker=2, processes=False, dashboard_address=":0"
        ) as cluster,
        distributed.Client(cluster),
    ):
        summary = cube().tec.to_zarr(store, resume=True, **OPTIONS)
    assert summary.resumed.written > 0
    assert contents(store) == files


def test_icechunk(tmp_path: Path) -> None:
    icechunk = pytest.importorskip("icechunk", reason="icechunk is not installed")
    repo = icechunk.Repository.create(icechunk.in_memory_storage())
    session = repo.writable_session("main")
    with interrupted():
        cube(readable=2).tec.to_zarr(session.store, **OPTIONS)
    with pytest.raises(FileNotFoundError):
        xr.open_zarr(repo.readonly_session("main").store, consolidated=False)
    summary = cube().tec.to_zarr(session.store, resume=True, **OPTIONS)
    assert summary.resumed.written > 0
    with pytest.raises(FileNotFoundError):
        xr.open_zarr(repo.readonly_session("main").store, consolidated=False)
    session.commit("a cube")
    back = xr.open_zarr(repo.readonly_session("main").store, consolidated=False)
    cube().tec.to_zarr(tmp_path / "b.zarr", **OPTIONS)
    xr.testing.assert_identical(back.load(), xr.open_zarr(tmp_path / "b.zarr").load())
    again = repo.writable_session("main")
    assert cube().tec.to_zarr(again.store, resume=True, **OPTIONS).resumed.written == 0


def test_one_file(tmp_path: Path, whole: Callable[[str], dict[str, bytes]]) -> None:
    path, folder = tmp_path / "a.zarr.zip", tmp_path / "a.zarr.zip.partial"
    cube().tec.to_zarr(tmp_path / "b.zarr.zip", **OPTIONS)
    archive = (tmp_path / "b.zarr.zip").read_bytes()
    with interrupted():
        cube(readable=2).tec.to_zarr(path, **OPTIONS)
    assert folder.is_dir()
    assert not path.exists()
    with pytest.raises(FileExistsError, match=r"partial is what an .* left: pass resume=True"):
        cube().tec.to_zarr(path, **OPTIONS)
    summary = cube().tec.to_zarr(path, resume=True, **OPTIONS)
    assert summary.resumed.whole > 0
    assert path.read_bytes() == archive
    assert not folder.exists()
    # killed before the folder was gone
    laid(folder, whole("format 3"))
    assert cube().tec.to_zarr(path, resume=True, **OPTIONS).resumed.written == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.zarr.zip", "b.zarr.zip"]
    with pytest.raises(ValueError, match=r"compression is 20.0 there and 30.0 here"):
        cube().tec.to_zarr(path, resume=True, compression=30, **OPTIONS)
    assert path.read_bytes() == archive


def test_a_damaged_archive_is_repaired(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr.zip"
    cube().tec.to_zarr(path, **OPTIONS)
    archive = path.read_bytes()
    stream = contents(sync(ZipStore.open(path, mode="r")))["s2/c/1/0/0/0"]
    at = archive.index(stream) + len(stream) // 2
    path.write_bytes(archive[:at] + bytes([archive[at] ^ 1]) + archive[at + 1 :])
    summary = cube().tec.to_zarr(path, resume=True, **OPTIONS)
    assert summary.resumed.written == 1
    assert path.read_bytes() == archive
    assert [file.name for file in tmp_path.iterdir()] == ["a.zarr.zip"]
    path.write_bytes(archive[: len(archive) // 2])
    with pytest.raises(ValueError, match=r"is no zip file: pass overwrite=True"):
        cube().tec.to_zarr(path, resume=True, **OPTIONS)


# the command


def test_the_command_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cube().load().to_zarr(tmp_path / "in.zarr")
    out = tmp_path / "out.zarr"

    def run(*options: str) -> tuple[int, str]:
        arguments = ["compress", str(tmp_path / "in.zarr"), str(out), "--model", "fp", *options]
        monkeypatch.setattr(sys, "argv", ["xtec", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        return int(end.value.code or 0), captured.out + captured.err

    assert run()[0] == 0
    files = contents(out)
    for key in ("zarr.json", "s2/c/0/0/0/0"):
        (out / key).unlink()
    code, text = run()
    assert code == 2
    assert "pass --resume to go on with it, --overwrite to replace it" in text
    code, text = run("--resume", "--compression", "30")
    assert code == 2
    assert "compression is 20.0 there and 30.0 here" in text
    assert "--overwrite in place of --resume" in text
    code, text = run("--resume")
    assert code == 0
    assert "1 of 2 chunks were there and whole, 1 written" in text
    assert contents(out) == files
    assert run("--resume", "--overwrite")[0] == 2


@pytest.mark.slow
def test_kills() -> None:
    script = Path(__file__).parents[1] / "benchmarks" / "kills.py"
    done = subprocess.run(
        [sys.executable, script, "--kills", "6"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\nkills: 6\n" in done.stdout
    assert "\nviolations: 0\n" in done.stdout
