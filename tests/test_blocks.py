"""Writing on Dask's schedulers: one task, one block; workers that die; the same bytes anywhere."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import xarray as xr
from scenes import scene
from zarr.storage import LocalStore, MemoryStore

from xtec import blocks
from xtec.blocks import Job, Target
from xtec.report import describe

BANDS = ["B02", "B03", "B04"]
CHUNKS = {"time": 2, "y": 16, "x": 16}
OPTIONS = {"model": "fp", "chunks": CHUNKS, "progress": False}


def cube(visit: Any = None) -> xr.Dataset:
    """4 dates of 48 x 32 pixels in six blocks of 2 x 3 x 16 x 32; two chunks in each."""
    pixels = scene(time=4, bands=3, y=48, x=32, nodata=True)
    data = xr.DataArray(pixels, dims=("time", "band", "y", "x"), coords={"band": BANDS}, name="s2")
    ds = xr.Dataset(
        {
            "s2": data.assign_attrs(nodata=0),
            "SCL": (data[:, 0] % 12).astype("uint8").drop_vars("band"),
        }
    )
    ds = ds.chunk(time=2, y=16)
    if visit is not None:
        made = ds.s2.data.map_blocks(visit, dtype="uint16", meta=ds.s2.data._meta)
        ds["s2"] = ds.s2.copy(data=made)
    return ds


def contents(store: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(store)): file.read_bytes()
        for file in sorted(store.rglob("*"))
        if file.is_file()
    }


@contextmanager
def cluster(**options: Any) -> Iterator[Any]:
    distributed = pytest.importorskip("distributed", reason="the extra 'distributed' is optional")
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 2}),
        distributed.LocalCluster(dashboard_address=":0", **options) as found,
        distributed.Client(found) as client,
    ):
        yield client


@contextmanager
def spawned() -> Iterator[Any]:
    """As Dask begins workers by default, of which `tec.memory` knows."""
    with (
        dask.config.set({"distributed.worker.multiprocessing-method": "spawn"}),
        cluster(n_workers=2, threads_per_worker=1) as client,
    ):
        yield client


SCHEDULERS: dict[str, Any] = {
    "threads": lambda: dask.config.set(scheduler="threads"),
    "synchronous": lambda: dask.config.set(scheduler="synchronous"),
    "processes": lambda: dask.config.set(scheduler="processes", num_workers=2),
    "a cluster of processes": spawned,
    "a cluster of threads": lambda: cluster(n_workers=1, threads_per_worker=2, processes=False),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    store = tmp_path_factory.mktemp("whole") / "a.zarr"
    cube().load().chunk(time=2).tec.to_zarr(store, verify=True, **OPTIONS)
    return contents(store)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_scheduler_writes_the_same_bytes(
    scheduler: str, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    with SCHEDULERS[scheduler]():
        summary = cube().tec.to_zarr(tmp_path / "a.zarr", verify=True, **OPTIONS)
    assert summary.verified.checked == summary.verified.of == 12
    assert contents(tmp_path / "a.zarr") == whole


@pytest.mark.parametrize("scheduler", ["processes", "a cluster of processes"])
def test_memory_of_one_process_is_no_store_for_others(scheduler: str) -> None:
    with SCHEDULERS[scheduler](), pytest.raises(ValueError, match=r"store in memory.*pass a path"):
        cube().tec.to_zarr(MemoryStore(), **OPTIONS)


def test_each_block_is_read_once_and_by_itself(tmp_path: Path) -> None:
    seen = []

    def visit(block: np.ndarray, block_info: Any = None) -> np.ndarray:
        seen.append(tuple(start for start, _ in block_info[0]["array-location"]))
        return block

    with dask.config.set(scheduler="synchronous"):
        cube(visit).tec.to_zarr(tmp_path / "a.zarr", verify=True, **OPTIONS)
    assert sorted(seen) == [(t, 0, y, 0) for t in (0, 2) for y in (0, 16, 32)]


def test_a_worker_that_dies_is_no_loss(tmp_path: Path, whole: dict[str, bytes]) -> None:
    died = tmp_path / "died"

    def visit(block: np.ndarray, block_info: Any = None) -> np.ndarray:
        if block_info[0]["array-location"][2][0] == 32 and not died.exists():
            died.touch()
            os._exit(1)
        return block

    with cluster(n_workers=2, threads_per_worker=1):
        cube(visit).tec.to_zarr(tmp_path / "a.zarr", verify=True, **OPTIONS)
    assert died.exists()
    assert contents(tmp_path / "a.zarr") == whole


def test_what_is_done_is_not_done_again(tmp_path: Path, whole: dict[str, bytes]) -> None:
    died = tmp_path / "died"

    def visit(block: np.ndarray, block_info: Any = None) -> np.ndarray:
        place = "-".join(str(start) for start, _ in block_info[0]["array-location"])
        with (tmp_path / place).open("a") as log:
            log.write("x")
        if len(list(tmp_path.glob("*-*"))) == 6 and not died.exists():
            died.touch()
            time.sleep(2)  # the client fetches what is done
            os._exit(1)
        return block

    with cluster(n_workers=1, threads_per_worker=1):
        cube(visit).tec.to_zarr(tmp_path / "a.zarr", **OPTIONS)
    assert sorted(log.read_text() for log in tmp_path.glob("*-*")) == ["x"] * 5 + ["xx"]
    assert {k: v for k, v in contents(tmp_path / "a.zarr").items() if "/c/" in k}.items() <= (
        whole.items()
    )


def test_a_block_that_kills_every_worker_ends_the_job(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    def visit(block: np.ndarray, block_info: Any = None) -> np.ndarray:
        if block_info[0]["array-location"][2][0] == 32:
            os._exit(1)
        return block

    store = tmp_path / "a.zarr"
    with cluster(n_workers=2, threads_per_worker=1) as client:
        with pytest.raises(RuntimeError, match=r"the cluster gave up.*memory.*resume=True"):
            cube(visit).tec.to_zarr(store, verify=True, **OPTIONS)
        client.wait_for_workers(2, timeout=30)  # a cluster must not be closed while one begins
    with pytest.raises(Exception, match="incomplete"):
        xr.open_zarr(store)
    cube().tec.to_zarr(store, verify=True, resume=True, **OPTIONS)
    assert contents(store) == whole


class Refusing(LocalStore):
    """Refuses each chunk of images once."""

    async def set(self, key: str, value: Any) -> None:
        tried = self.root.parent / key.replace("/", "-")
        if key.startswith("s2/c/") and not tried.exists():
            tried.touch()
            raise OSError(f"refused: {key}")
        await super().set(key, value)


def test_a_store_that_refuses(tmp_path: Path, whole: dict[str, bytes]) -> None:
    with cluster(n_workers=1, threads_per_worker=1):
        cube().tec.to_zarr(Refusing(tmp_path / "1" / "a.zarr"), verify=True, **OPTIONS)
    assert contents(tmp_path / "1" / "a.zarr") == whole
    store = Refusing(tmp_path / "2" / "a.zarr")
    with pytest.raises(OSError, match="refused: s2/c/"):
        cube().tec.to_zarr(store, verify=True, **OPTIONS)
    for _ in range(12):  # at most one refusal each
        try:
            cube().tec.to_zarr(store, verify=True, resume=True, **OPTIONS)
        except OSError:
            continue
        break
    assert contents(tmp_path / "2" / "a.zarr") == whole


def test_a_job_takes_what_it_is_told(tmp_path: Path) -> None:
    ds = cube()
    ds.tec.to_zarr(tmp_path / "a.zarr", **OPTIONS)
    packed = ds.tec.compress(model="fp", chunks=CHUNKS)
    target = Target(LocalStore(tmp_path / "a.zarr"), "s2", 3)
    before = contents(tmp_path / "a.zarr")
    for key in before:
        if key.startswith("s2/c/"):
            (tmp_path / "a.zarr" / key).unlink()
    write = np.zeros((2, 1, 3, 2), bool)
    write[1, 0, 0, 1] = write[0, 0, 2] = True
    blocks.run([Job(target, packed.s2.data, write)], "", False)
    after = contents(tmp_path / "a.zarr")
    written = {key for key in after if key.startswith("s2/c/")}
    rows = ("s2/c/1/0/0", "s2/c/0/0/2")  # two blocks of two chunks
    assert written == {f"{row}/{x}" for row in rows for x in (0, 1)}
    assert all(after[key] == before[key] for key in written)
    assert blocks.run([Job(target, packed.s2.data, ~write & write)], "", False) == [[]]


def test_targets_travel_light(tmp_path: Path) -> None:
    cube().tec.to_zarr(tmp_path / "a.zarr", **OPTIONS)
    target = Target(LocalStore(tmp_path / "a.zarr"), "s2", 3)
    assert target.array.shape == (4, 3, 48, 32)
    assert len(pickle.dumps(target)) < 1000
    assert pickle.loads(pickle.dumps(target)) == target
    assert describe(tmp_path / "a.zarr")["variables"][0]["model"] == "fp"
