"""chunks="auto", shards="auto", and what align says of memory."""

from __future__ import annotations

import logging
import math
import warnings
from itertools import accumulate
from pathlib import Path
from typing import Any

import dask.array
import numpy as np
import pytest
import xarray as xr
from cubes import BANDS, DIMS, band_variables, cube
from hypothesis import given
from hypothesis import strategies as st

import xtec
import xtec.settings
from xtec import autogrid
from xtec.autogrid import AUTO, auto_chunks, auto_shards
from xtec.grid import align, reading_blocks, task_of

TILE = 10980


def uniform(n: int, size: int) -> list[int]:
    return [size] * (n // size) + ([n % size] if n % size else [])


def lazy(
    shape: tuple[int, ...], blocks: tuple[Any, ...], dtype: str = "uint16", **attrs: Any
) -> xr.DataArray:
    """A cube that cannot be computed: planning it must read nothing."""

    def fail(block_info: Any = None) -> np.ndarray:
        raise AssertionError("pixels were read")

    chunks = dask.array.core.normalize_chunks(blocks, shape, dtype=dtype)
    data = dask.array.map_blocks(fail, chunks=chunks, dtype=dtype, meta=np.empty((0,) * 4, dtype))
    names = ["B02", "B03", "B04", "B08", *(f"B{n:02}" for n in (1, 5, 6, 7, 9, 11, 12)), "B8A"]
    coords = {"band": names[: shape[1]]}
    return xr.DataArray(data, dims=DIMS, coords=coords, name="s2", attrs=attrs)


# chunks


@pytest.mark.parametrize(
    ("block", "chosen"),
    [
        (1024, 512),  # stackstac, odc-stac, COGs
        (2048, 512),
        (512, 512),
        (256, 256),  # fits as it is
        (64, 512),  # too small: 8 x 8 of them together
        (100, 400),
        (1098, 366),  # 549 is nearer, but is padded to 560
        (TILE, 528),  # one block: anything fits, no small chunk at the edge
        (1021, 528),  # a prime: nothing fits
    ],
)
def test_sides_divide_blocks(block: int, chosen: int) -> None:
    sizes = {"time": 1, "y": TILE, "x": TILE}
    found = auto_chunks(sizes, {"x": uniform(TILE, block)}, model="elic")
    assert found["x"] == chosen
    assert found["y"] == 528


@pytest.mark.parametrize(
    ("dates", "block", "model", "chosen"),
    [
        (40, 1, "tt", 4),
        (40, 12, "tt", 4),
        (40, 5, "tt", 5),
        (40, 2, "tt", 4),
        (40, 31, "tt", 4),
        (40, None, "flex", 4),
        (40, 1, "none", 4),
        (40, 10, "elic", 1),
        (40, 10, "fp", 1),
        (6, 1, "tt", 6),
        (3, None, "tt", 3),
    ],
)
def test_dates(dates: int, block: int | None, model: str, chosen: int) -> None:
    sizes = {"time": dates, "band": 12, "y": 600, "x": 600}
    blocks = {} if block is None else {"time": uniform(dates, block)}
    assert auto_chunks(sizes, blocks, model=model) == {**sizes, "time": chosen}


def test_a_gpu_takes_larger_chunks_and_published_models_multiples_of_64() -> None:
    sizes = {"y": TILE, "x": TILE}
    found = auto_chunks(sizes, {"x": uniform(TILE, 2048)}, model="tt", stride=64, device="cuda:1")
    assert found == {"y": 1024, "x": 1024}


@given(
    size=st.integers(1, 20000),
    block=st.integers(1, 20000),
    stride=st.sampled_from([16, 64]),
    device=st.sampled_from(["cpu", "cuda"]),
)
def test_no_side_is_tiny_or_huge(size: int, block: int, stride: int, device: str) -> None:
    wanted = autogrid.SIDE[device]
    blocks = {"y": uniform(size, block)}
    found = auto_chunks({"y": size, "x": 16}, blocks, model="tt", stride=stride, device=device)["y"]
    assert found == size or wanted // 2 <= found <= wanted * 3 // 2
    assert found <= max(size, wanted)
    if block <= wanted * 3 // 2 < size and wanted // 2 <= block < size:
        assert block % found == 0, "blocks of a good size are taken as they are"


# shards


@pytest.mark.parametrize("block", [None, 1024, 1098, 2048])
@pytest.mark.parametrize("terabytes", [0.2, 10, 100])
def test_shards_keep_the_number_of_objects_down(terabytes: float, block: int | None) -> None:
    dates = math.ceil(terabytes * 1e12 / (12 * TILE * TILE * 2))
    sizes = {"time": dates, "band": 12, "y": TILE, "x": TILE}
    blocks = {} if block is None else {"y": uniform(TILE, block), "x": uniform(TILE, block)}
    chunk = auto_chunks(sizes, blocks, model="elic")
    shard = auto_shards(sizes, blocks, chunk, 2)
    assert shard is not None
    objects = math.prod(-(-size // shard[role]) for role, size in sizes.items())
    assert objects < 2.5e5
    assert 3e7 <= math.prod(shard.values()) * 2 <= 1e9
    for role, (a, b) in {r: (chunk[r], shard[r]) for r in sizes}.items():
        assert b % a == 0
        assert role not in blocks or block % b == 0 or b % block == 0  # type: ignore[operator]


def test_few_or_large_objects_need_no_shards() -> None:
    sizes = {"time": 4, "y": TILE, "x": TILE}
    assert auto_shards(sizes, {}, {"time": 4, "y": 528, "x": 528}, 2) is None
    many = {**sizes, "band": 12, "time": 4000}
    assert auto_shards(many, {}, {"time": 4, "band": 12, "y": 1024, "x": 1024}, 2) is None


# compress


def test_blocks_that_fit_are_not_cut(caplog: pytest.LogCaptureFixture) -> None:
    data = lazy((8, 12, 4392, 2048), (1, 1, 1098, 1024))
    with caplog.at_level(logging.INFO, "xtec"), warnings.catch_warnings():
        warnings.simplefilter("error")
        packed = data.tec.compress(chunks=AUTO, shards=AUTO, max_error=0)
    assert packed.encoding["chunks"] == (4, 12, 366, 512)
    assert packed.chunks[2:] == data.chunks[2:]
    assert "shards" not in packed.encoding
    assert caplog.messages == [
        "s2: chunks time 4 x band 12 x y 366 x x 512; a task reads up to 48 blocks of the source, "
        "108 MB"
    ]


def test_the_device_in_the_settings_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xtec.settings, "device", "cuda")
    packed = lazy((1, 3, 4096, 4096), (1, 3, 4096, 4096)).tec.compress(model="fp", chunks="auto")
    assert packed.encoding["chunks"] == (1, 3, 1024, 1024)


def test_shards_are_written_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autogrid, "SIDE", {"cpu": 16})
    monkeypatch.setattr(autogrid, "OBJECT", 100e3)
    monkeypatch.setattr(autogrid, "FEW", 3)
    data = cube(time=5, y=70, x=66)
    xtec.to_zarr(data, tmp_path / "a.zarr", max_error=0, chunks="auto", shards="auto")
    array = xr.open_zarr(tmp_path / "a.zarr").s2
    assert array.encoding["chunks"] == (5, 3, 32, 32)
    assert sorted(array.encoding["shards"]) == [3, 5, 32, 96]
    np.testing.assert_array_equal(array.values, data.values)


def test_shards_are_left_out_in_format_2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autogrid, "FEW", 0)
    packed = cube().tec.compress(max_error=0, chunks="auto", shards="auto", zarr_format=2)
    assert packed.encoding["chunks"] == (2, 3, 20, 24)
    assert "shards" not in packed.encoding


def test_band_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = band_variables().tec.compress(max_error=0, chunks="auto")
    assert packed.reflectance.encoding["chunks"] == (2, 3, 20, 24)
    assert packed.SCL.encoding["chunks"] == (2, 20, 24)


def test_nothing_but_auto() -> None:
    with pytest.raises(ValueError, match=r"chunks takes a mapping .* or 'auto'; got 'large'"):
        cube().tec.compress(chunks="large")


# memory


def test_large_tasks_are_told_with_their_remedy() -> None:
    data = lazy((8, 12, TILE, TILE), (1, 12, TILE, TILE))
    with pytest.warns(UserWarning, match="writing 's2' takes") as told:
        data.tec.compress(max_error=0, chunks="auto")
    (message,) = [str(one.message) for one in told]
    assert "takes 11.6 GB of input a task" in message
    assert "need 4 of these" in message
    assert "chunks={'time': 1}, which joins no dates (2.9 GB a task)" in message
    assert "smaller Dask blocks, such as chunks={'y': 1056, 'x': 1056}" in message


def test_what_chunk_makes_of_it_does_not_hide_the_blocks_on_the_way() -> None:
    """Blocks of one date that need no joining are told without that remedy."""
    data = lazy((8, 12, TILE, TILE), (1, 12, TILE, TILE))
    with pytest.warns(UserWarning, match="takes 2.9 GB of input a task") as told:
        data.tec.compress(max_error=0, chunks={"time": 1, "y": 512, "x": 512})
    assert "joins no dates" not in str(told[0].message)


@given(
    old=st.lists(st.integers(1, 9), min_size=1, max_size=8),
    new=st.integers(1, 30),
)
def test_the_task_is_the_largest_there_is(old: list[int], new: int) -> None:
    n = sum(old)
    data = lazy((1, 1, n, 2), (1, 1, tuple(old), 2))
    aligned = data.copy(data=data.data.rechunk({2: new}))
    ends = list(accumulate(old))
    edges = list(zip([0, *ends[:-1]], ends, strict=True))
    counts, sizes = [], []
    for start in range(0, n, new):
        touched = [(a, b) for a, b in edges if a < start + new and b > start]
        counts.append(len(touched))
        sizes.append(sum(b - a for a, b in touched))
    assert task_of(data, aligned) == (max(counts), max(sizes) * 2 * 2)


# files that are read lazily, without Dask


def test_chunks_of_a_file_are_read_once(tmp_path: Path) -> None:
    """A block holds whole chunks of the file: else each is read for every block in it."""
    data = cube(time=2, y=96, x=80)
    data.chunk({"time": 1, "y": 48, "x": 80}).to_zarr(tmp_path / "in.zarr", zarr_format=2)
    opened = xr.open_zarr(tmp_path / "in.zarr", chunks=None).s2
    packed = opened.tec.compress(max_error=0, chunks={"time": 1, "y": 16, "x": 16})
    assert packed.chunks == ((1, 1), (3,), (48, 48), (80,))
    bands = opened.to_dataset("band")
    packed = bands.tec.compress(max_error=0, chunks={"time": 1, "y": 16, "x": 16})
    assert packed.reflectance.chunks == ((1, 1), (3,), (48, 48), (80,))
    np.testing.assert_array_equal(packed.reflectance.values, data.values)
    auto = opened.tec.compress(max_error=0, chunks="auto")
    assert auto.encoding["chunks"] == (2, 3, 96, 80)


def test_blocks_for_reading_stay_within_bounds() -> None:
    variable = xr.Variable(DIMS, dask.array.zeros((9, 12, TILE, TILE), dtype="uint16"))
    lazily = xr.Variable(DIMS, _Lazy((9, 12, TILE, TILE)))
    unit = {"time": 4, "band": -1, "y": 512, "x": 512}
    assert reading_blocks(lazily, unit) == {"time": 4, "band": 12, "y": 512, "x": 512}
    lazily.encoding["preferred_chunks"] = {"time": 1, "band": 12, "y": TILE, "x": TILE}
    blocks = reading_blocks(lazily, unit)
    assert math.prod(blocks.values()) * 2 <= 500e6
    assert blocks["x"] > 512
    assert all(blocks[dim] % n == 0 for dim, n in unit.items() if n > 0)
    assert variable.chunks is not None, "nothing of this is for Dask arrays"


class _Lazy(xr.backends.BackendArray):
    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape, self.dtype = shape, np.dtype("uint16")

    def __getitem__(self, key: Any) -> np.ndarray:
        raise AssertionError("pixels were read")


def test_big_endian_files_are_not_loaded(tmp_path: Path) -> None:
    lazily = xr.DataArray(_Swapped((4, 3, 64, 64)).variable(), coords={"band": BANDS}, name="s2")
    packed = lazily.tec.compress(max_error=0)
    assert packed.dtype == "uint16"
    assert packed.chunks is not None


class _Swapped(_Lazy):
    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        self.dtype = np.dtype(">u2")

    def variable(self) -> xr.Variable:
        return xr.Variable(DIMS, xr.core.indexing.LazilyIndexedArray(self))


def test_in_memory_pixels_are_cut_into_chunks() -> None:
    data = cube(time=5, y=70, x=66)
    data.encoding["preferred_chunks"] = {"y": 70}  # a file that is no longer behind it
    unit = dict(zip(DIMS, (4, 3, 16, 16), strict=True))
    aligned = align(data, tuple(unit.values()), DIMS)
    wanted = [uniform(n, unit[dim]) for dim, n in data.sizes.items()]
    assert list(map(list, aligned.chunks)) == wanted


# input that cannot be


@pytest.mark.parametrize("dtype", ["object", "bool", "complex64", "U4", "datetime64[ns]"])
@pytest.mark.parametrize("form", ["variable", "dataset", "band variables"])
def test_what_are_no_pixels_is_refused_at_once(dtype: str, form: str) -> None:
    data = lazy((2, 3, 16, 16), (1, 3, 16, 16), dtype)
    obj = {
        "variable": lambda: data,
        "dataset": data.to_dataset,
        "band variables": lambda: data.to_dataset("band"),
    }[form]()
    with pytest.raises(ValueError, match=r"uint16.*float32"):
        obj.tec.compress(chunks="auto")


@pytest.mark.parametrize("axis", ["time", "y", "x"])
@pytest.mark.parametrize("kind", ["variable", "bands"])
def test_empty_axes_are_refused_at_once(axis: str, kind: str) -> None:
    data = cube().isel({axis: slice(0)})
    obj = data if kind == "variable" else data.to_dataset("band")
    with pytest.raises(ValueError, match="nothing to compress in an empty array"):
        obj.tec.compress(chunks="auto")
