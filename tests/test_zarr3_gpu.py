"""Zarr's GPU buffers: what they hold is coded, and pixels come back in them. The stand-ins here are
on the processor; tests/test_gpu.py has the real ones."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tec.codec
import torch
import zarr
from arrays import CHUNK, DIMS, chunk_files, codec, config, create, put
from scenes import scene
from tec.errors import StreamError
from zarr.codecs import ZstdCodec
from zarr.core.buffer import BufferPrototype, cpu, gpu
from zarr.registry import register_buffer, register_ndbuffer
from zarr.storage import MemoryStore

from xtec import cache, settings, zarr3
from xtec.zarr3 import XtecCodec

PIXELS = scene(3, 3, 40, 36, nodata=True)
seen: Counter[str] = Counter()


class There(np.ndarray):
    """An array that says it is on a GPU."""

    __cuda_array_interface__ = None


class Buffer(cpu.Buffer):
    """Bytes on it."""


class NDBuffer(cpu.NDBuffer):
    """Pixels on it: they get there and back by these methods alone."""

    def __init__(self, array: Any) -> None:
        super().__init__(np.asanyarray(array).view(There))

    @classmethod
    def from_numpy_array(cls, array_like: Any) -> Any:
        assert not isinstance(array_like, There)
        seen["from numpy"] += 1
        return cls(np.array(array_like))

    @classmethod
    def from_ndarray_like(cls, ndarray_like: Any) -> Any:
        if ndarray_like.ndim == 4:  # not the index of a shard
            assert isinstance(ndarray_like, There)
            seen["from there"] += 1
        return cls(ndarray_like)

    def as_numpy_array(self) -> np.ndarray:
        seen["to numpy"] += self._data.ndim == 4
        return np.array(self._data)


register_buffer(Buffer, qualname="test_zarr3_gpu.Buffer")
register_ndbuffer(NDBuffer, qualname="test_zarr3_gpu.NDBuffer")


@pytest.fixture(autouse=True)
def _there() -> Iterator[None]:
    names = {"buffer": "test_zarr3_gpu.Buffer", "ndbuffer": "test_zarr3_gpu.NDBuffer"}
    with zarr.config.set(names):
        seen.clear()
        yield


@pytest.fixture
def networks_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if they ran on the GPU, with cupy beside them."""

    def from_dlpack(tensor: torch.Tensor) -> np.ndarray:
        assert tensor.dtype is not torch.uint16  # not every version of torch hands it over
        return np.from_dlpack(tensor).view(There)

    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(from_dlpack=from_dlpack))
    monkeypatch.setattr(zarr3, "_gpu_of", lambda prototype: "cpu")


def on_cpu(array: zarr.Array, key: Any = slice(None)) -> np.ndarray:
    names = {"buffer": "zarr.buffer.cpu.Buffer", "ndbuffer": "zarr.buffer.cpu.NDBuffer"}
    with zarr.config.set(names), pytest.MonkeyPatch.context() as patch:
        patch.setattr(zarr3, "_gpu_of", lambda prototype: None)
        return zarr.open_array(array.store, mode="r")[key]


ARRAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "shards": {"shards": (2, 3, 32, 32)},
    "a codec behind": {"compressors": [ZstdCodec()]},
    "int16": {"dtype": "int16"},
    "float32": {"dtype": "float32"},
}


def check(name: str, by: str) -> None:
    array = create(PIXELS.shape, **ARRAYS[name])
    array[:] = PIXELS.astype(array.dtype).view(There)
    wanted = on_cpu(array)
    written = chunk_files(array)
    again = create(PIXELS.shape, **ARRAYS[name])
    with zarr.config.set(
        {"buffer": "zarr.buffer.cpu.Buffer", "ndbuffer": "zarr.buffer.cpu.NDBuffer"}
    ):
        zarr.open_array(again.store)[:] = PIXELS.astype(array.dtype)
    assert chunk_files(again) == written
    seen.clear()
    found = array[:]
    assert isinstance(found, There)
    assert found.dtype == wanted.dtype
    np.testing.assert_array_equal(np.asarray(found), wanted)
    assert seen[by] == 18
    assert not seen["to numpy"]


@pytest.mark.parametrize("name", ARRAYS)
def test_pixels_by_way_of_numpy(name: str) -> None:
    check(name, "from numpy")


@pytest.mark.parametrize("name", ARRAYS)
def test_pixels_that_never_leave_the_gpu(name: str, networks_there: None) -> None:
    check(name, "from there")
    assert not seen["from numpy"]


def test_parts(networks_there: None) -> None:
    array = create(PIXELS.shape)
    array[:] = PIXELS.view(There)
    for key in ((0,), (slice(1, 3), 2), (..., slice(3, None, 5)), (2, 1, 7, 9)):
        np.testing.assert_array_equal(np.asarray(array[key]), on_cpu(array, key))
    rows = [0, 17, 39]
    found = array.oindex[[0, 2], :, rows]
    np.testing.assert_array_equal(np.asarray(found), on_cpu(array)[[0, 2]][:, :, rows])


def test_other_axes(networks_there: None) -> None:
    dims = ("x", "band", "y")
    one = XtecCodec(config(), dims, (16, 3, 16))
    pixels = PIXELS[0].transpose(2, 0, 1)
    array = create(pixels.shape, chunks=one.chunk_shape, serializer=one, dimension_names=dims)
    array[:] = pixels.view(There)
    np.testing.assert_array_equal(np.asarray(array[:]), on_cpu(array))


def test_settings_and_errors(networks_there: None, monkeypatch: pytest.MonkeyPatch) -> None:
    array = create((2, 3, 32, 16), serializer=codec(model="elic"))
    array[:] = scene(2, 3, 32, 16).view(There)
    monkeypatch.setattr(settings, "cache", "1 MB")
    options = []
    inner = tec.codec.decode_many

    def spy(*args: Any, **more: Any) -> Any:
        options.append(more)
        return inner(*args, **more)

    monkeypatch.setattr(tec.codec, "decode_many", spy)
    monkeypatch.setattr(settings, "precision", "fast")
    array[:]
    assert {(o["to"], o["precision"]) for o in options} == {("cpu", "fast")}
    assert cache.held() == (0, 0)
    key = "c/0/0/1/0"
    put(array, key, chunk_files(array)[key][:-1])
    with pytest.raises(StreamError, match=key):
        array[:]


def test_where_pixels_stay_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnGPU(gpu.NDBuffer):
        pass

    runtime = SimpleNamespace(getDevice=lambda: 1)
    cupy = SimpleNamespace(cuda=SimpleNamespace(runtime=runtime))
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    on_gpu, elsewhere = (BufferPrototype(Buffer, kind) for kind in (OnGPU, NDBuffer))
    for device, prototype, wanted in (
        ("cuda:1", on_gpu, "cuda:1"),
        ("cuda:0", on_gpu, "cuda:1"),  # where zarr's arrays are
        ("cpu", on_gpu, None),
        ("cuda:1", elsewhere, None),
    ):
        monkeypatch.setattr(settings, "device", device)
        assert zarr3._gpu_of(prototype) == wanted


def test_a_write_that_leaves_out_pixels_is_refused_there_too() -> None:
    array = create(CHUNK, MemoryStore(), dimension_names=DIMS)
    array[:] = PIXELS[:2, :, :16, :16].view(There)
    with pytest.raises(zarr3.AlignmentError):
        array[:, :, :8] = PIXELS[:2, :, :8, :16].view(There)
