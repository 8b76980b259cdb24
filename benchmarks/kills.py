"""Kill a writer at random moments (SIGKILL), resume, and compare with an undisturbed write.

After each kill: the store opens only if it equals the undisturbed one, else its error says that it
is incomplete; and every chunk but ``*.partial`` holds what the undisturbed store holds under this
name, and metadata are JSON. After ``resume=True``, which may be killed as well: the same files,
byte for byte, none more.
Half of the writes are to a disk that takes its time, so that kills fall into the middle of files;
one store in five is of a kind that does not write atomically, so that half a chunk stands there
under its name (which nobody may take for a whole one).

Prints figures; exits with 1 if any of that is not so.

    python benchmarks/kills.py [--kills 200] [--model fp] [--seed 0] [--data cube.zarr]
"""

from __future__ import annotations

import os

# Children are forked from a process that has coded a chunk: threads would not survive that.
os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import collections
import faulthandler
import json
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tec
import torch
import xarray as xr
import zarr
from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper
from fsspec.implementations.local import LocalFileOpener, LocalFileSystem
from zarr.storage import FsspecStore, ZipStore

import xtec
from xtec.rootlast import LEFT_OVER, UNFINISHED
from xtec.synthetic import scene

CHUNK = 32
NOT_ATOMIC = "not atomic"
HANGS = 60  # seconds that nothing here takes
PAUSE = 0.004  # seconds in the middle of a file on the slow disk
JOBS: dict[str, dict[str, Any]] = {
    "format 3": {},
    "format 3, shards": {"shards": {"time": 1, "y": 2 * CHUNK, "x": 2 * CHUNK}},
    "format 2": {"zarr_format": 2},
    "zip": {},
    NOT_ATOMIC: {},
}
WHEN = (
    "before the first chunk",
    "between the first chunk and the last",
    "after the last chunk, before the store opened",
    "after the store opened",
)


def cube(path: Path | None) -> xr.Dataset:
    """Two dates of 128 x 128 pixels, one with nodata, and a layer of classes."""
    if path is None:
        ds = scene(4 * CHUNK, 2)
    else:
        ds = xr.open_zarr(path, chunks=None)[["reflectance"]]
        ds = ds.isel(time=slice(2), y=slice(4 * CHUNK), x=slice(4 * CHUNK)).load().drop_encoding()
    classes = (ds.reflectance.isel(band=0, drop=True) // 500).astype("uint8")
    ds["SCL"] = classes.assign_attrs({}).drop_vars("band", errors="ignore")
    return ds


class Writer:
    """A write of the cube in a process of its own."""

    def __init__(self, ds: xr.Dataset, model: str, job: str, store: Path) -> None:
        self.ds, self.store, self.job = ds, store, job
        chunks = {"time": 1, "y": CHUNK, "x": CHUNK}
        self.options = {"model": model, "chunks": chunks, "progress": False, **JOBS[job]}

    def run(self, *, resume: bool, slow: bool, kill_after: float | None = None) -> Any:
        """(whole, written) chunks where there was something to resume."""

        def work() -> Any:
            if slow:
                slow_disk()
            store: Any = self.store
            if self.job == NOT_ATOMIC:
                files = AsyncFileSystemWrapper(LocalFileSystem(auto_mkdir=True), asynchronous=True)
                self.store.mkdir(exist_ok=True)
                store = FsspecStore(files, path=str(self.store))
            done = self.ds.tec.to_zarr(store, resume=resume, **self.options).resumed
            return None if done is None else (done.whole, done.written)

        return in_child(work, kill_after)

    def opens(self) -> str:
        """Empty if the store opens, else the error."""

        def work() -> str:
            is_file = self.store.is_file()
            place = ZipStore(self.store, mode="r") if is_file else self.folder
            try:
                xr.open_zarr(place, chunks=None)
            except Exception as error:
                return f"{type(error).__name__}: {error}"
            return ""

        return in_child(work)

    @property
    def folder(self) -> Path:
        """Where the files are while a store is written."""
        is_zip = self.store.suffix == ".zip"
        return self.store.with_name(self.store.name + ".partial") if is_zip else self.store

    def files(self) -> dict[str, bytes]:
        """What is in the store, or in the folder that becomes one, and left over beside it."""
        files = {}
        for place in (self.store, self.folder):
            if place.is_dir():
                found = [file for file in place.rglob("*") if file.is_file()]
                files.update({file.relative_to(place).as_posix(): file for file in found})
            elif place.exists():
                files[place.name] = place
        half = self.store.with_name(self.store.name + ".partial.zip")
        if half.exists():
            files[half.name + LEFT_OVER] = half
        return {name: file.read_bytes() for name, file in sorted(files.items())}


def slow_disk() -> None:
    """In this process, half of a file is written, then comes a pause, then the rest."""

    def half_by_half(write: Callable[[Any], int], data: Any, flush: Callable[[], None]) -> int:
        done = write(data[: len(data) // 2])
        flush()
        time.sleep(PAUSE)
        return done + write(data[len(data) // 2 :])

    def put(path: Path, value: Any, exclusive: bool = False) -> int:
        path.parent.mkdir(parents=True, exist_ok=True)
        with zarr.storage._local._atomic_write(path, "wb", exclusive=exclusive) as file:
            return half_by_half(file.write, value.as_buffer_like(), file.flush)

    def write(self: LocalFileOpener, data: bytes) -> int:
        return half_by_half(self.f.write, data, self.f.flush)

    zarr.storage._local._put = put
    LocalFileOpener.write = write


class Killed(Exception):
    """The child was killed before it was done."""


def in_child(work: Callable[[], Any], kill_after: float | None = None) -> Any:
    """The result of ``work`` (JSON values) in a fork of this process; raises what went wrong."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        faulthandler.dump_traceback_later(HANGS, exit=True)
        try:
            result = {"result": work()}
        except BaseException:
            result = {"error": traceback.format_exc()}
        os.write(write, json.dumps(result).encode())
        os._exit(0)
    os.close(write)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    with os.fdopen(read, "rb") as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and not text:
        raise Killed
    if not text:
        raise RuntimeError(f"a process did not end within {HANGS} s: see above")
    result = json.loads(text)
    if "error" in result:
        raise RuntimeError(result["error"])
    return result["result"]


def is_chunk(key: str) -> bool:
    return not is_metadata(key) and not key.endswith((LEFT_OVER, ".zip"))


def is_metadata(key: str) -> bool:
    return key.endswith(("zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata"))


def is_json(data: bytes) -> bool:
    """Metadata are written more than once: without attributes, with them, and as a mark."""
    try:
        json.loads(data)
    except ValueError:
        return False
    return True


def moment(files: dict[str, bytes], reference: dict[str, bytes]) -> str:
    """How far a write had come."""
    images = {key for key in reference if is_chunk(key) and key.startswith(("reflectance", "SCL"))}
    there = images & files.keys()
    if not there:
        return WHEN[0]
    return WHEN[1] if there < images else WHEN[2]


def look(writer: Writer, reference: dict[str, bytes]) -> tuple[str, list[str]]:
    """When the kill came, and what is wrong with what it has left."""
    files = writer.files()
    error = writer.opens()
    wrong = []
    whole = {key: data for key, data in files.items() if not key.endswith(LEFT_OVER)}
    if not error:
        archive = writer.store.name
        wanted = {key: data for key, data in reference.items() if key != archive}
        if archive in whole:  # what is beside it is on its way out
            whole, wanted = {archive: whole[archive]}, {archive: reference[archive]}
        if differences := differing(whole, wanted):
            wrong.append(f"it opens, and {differences} differ")
        return (WHEN[3] if writer.store.exists() else WHEN[2]), wrong
    atomic = writer.job != NOT_ATOMIC
    nothing = not whole and ("No group found" in error or "does not exist" in error)
    half = not atomic and "JSONDecodeError" in error  # of the root's metadata, or of the mark
    if not (UNFINISHED in error or nothing or half):
        wrong.append(f"it does not open, without a clear message: {error}")
    for key, data in whole.items():
        if atomic and not (is_json(data) if is_metadata(key) else data == reference.get(key)):
            wrong.append(f"{key} is half-written, under its own name")
    return moment(files, reference), wrong


def half_written(writer: Writer, reference: dict[str, bytes]) -> int:
    """How many files of a store that is not atomic have their names, and not their contents."""
    if writer.job != NOT_ATOMIC:
        return 0
    files = writer.files()
    return sum(data != reference.get(key) for key, data in files.items() if is_chunk(key))


def differing(files: dict[str, bytes], reference: dict[str, bytes]) -> list[str]:
    keys = sorted(files.keys() | reference.keys())
    return [key for key in keys if files.get(key) != reference.get(key)]


def clear(writer: Writer) -> None:
    shutil.rmtree(writer.store.parent, ignore_errors=True)
    writer.store.parent.mkdir()


def undisturbed(writer: Writer) -> tuple[dict[str, bytes], dict[bool, float]]:
    """The files that a write ends with, and its seconds on a quick and on a slow disk."""
    seconds = {}
    for slow in (False, True):
        clear(writer)
        start = time.perf_counter()
        writer.run(resume=False, slow=slow)
        seconds[slow] = time.perf_counter() - start
    files = writer.files()
    if writer.store.is_file():  # while it is written, the files are in a folder
        with zipfile.ZipFile(writer.store) as archive:
            files.update({name: archive.read(name) for name in archive.namelist()})
    return files, seconds


def kill_time(rng: random.Random, seconds: float) -> float:
    """A moment of a write; its end comes more often than it lasts."""
    low, high = rng.choice([(0, 1.1), (0.3, 1.1), (0.3, 1.1), (0.8, 1.2), (0.8, 1.2)])
    return seconds * rng.uniform(low, high)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--model", default="fp")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, help="a Zarr cube with a variable reflectance")
    asked = parser.parse_args(arguments)
    rng = random.Random(asked.seed)
    torch.set_num_threads(1)
    ds = cube(asked.data)
    bands = tuple(map(str, ds.band.values))
    config = tec.CodecConfig(model=asked.model, bands=bands, nodata=0)
    tec.encode(ds.reflectance[:1, :, :CHUNK, :CHUNK].values, config)
    ds = ds.chunk(time=1, y=2 * CHUNK, x=2 * CHUNK)  # blocks of 2 x 2 chunks

    figures: collections.Counter[str] = collections.Counter()
    wrong: list[str] = []
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        references = {}
        for job in JOBS:
            suffix = ".zarr.zip" if job == "zip" else ".zarr"
            writer = Writer(ds, asked.model, job, Path(folder) / job / f"cube{suffix}")
            references[job] = (writer, *undisturbed(writer))
        for number in range(10**9):
            if figures["kills"] >= asked.kills:
                break
            job = list(JOBS)[number % len(JOBS)]
            writer, reference, seconds = references[job]
            clear(writer)
            figures[f"stores, {job}"] += 1
            resume = False
            while True:
                slow = rng.random() < 0.5
                kill = figures["kills"] < asked.kills and (not resume or rng.random() < 0.4)
                after = kill_time(rng, seconds[slow]) if kill else None
                try:
                    done = writer.run(resume=resume, slow=slow, kill_after=after)
                except Killed:
                    figures["kills"] += 1
                    figures["kills of a resumed write"] += resume
                    left = [key for key in writer.files() if key.endswith(LEFT_OVER)]
                    figures["kills that left a half-written *.partial"] += bool(left)
                    half = half_written(writer, reference)
                    figures["half-written files under their own name (not atomic)"] += half
                    when, found = look(writer, reference)
                    figures[f"kills {when}"] += 1
                    wrong += [f"{job}, kill {when}: {text}" for text in found]
                    resume = True
                    continue
                if done is not None:
                    figures["resumed writes that ended"] += 1
                    figures["chunks that stayed"] += done[0]
                    figures["chunks written by resumed writes"] += done[1]
                break
            wanted = reference
            if job == "zip":
                wanted = {key: data for key, data in reference.items() if key.endswith(".zip")}
            if differences := differing(writer.files(), wanted):
                wrong.append(f"{job}, in the end: {differences} differ")
            else:
                figures["stores equal to the undisturbed one in the end"] += 1
    chunks = sum(map(is_chunk, references["format 3"][1]))
    print(f"xtec {xtec.__version__}, {asked.model}, {asked.data or 'generated scene'}: ", end="")
    quick, slow = references["format 3"][2].values()
    print(f"{chunks} chunks a store, written in {quick:.2f} s, {slow:.2f} s on the slow disk")
    for name, count in sorted(figures.items()):
        print(f"{name}: {count}")
    print(f"seconds: {time.perf_counter() - started:.0f}")
    print(f"violations: {len(wrong)}")
    for text in wrong:
        print(f"  {text}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
