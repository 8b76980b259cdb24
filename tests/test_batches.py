"""Batches of dates: memory that runs out, work that is made ahead, devices that are not there."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
import tec
import torch
from scenes import scene
from tec import batches, codec, weights

CHUNKS = [scene(3, 3, 48, 32, seed=seed, nodata=True) for seed in range(5)]
SHORTAGES = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: not enough memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    MemoryError(),
]


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "_fewer", {})


@pytest.fixture(params=["elic", "tt"])
def config(request: pytest.FixtureRequest, tiny_checkpoints: dict) -> tec.CodecConfig:
    path = str(tiny_checkpoints[request.param])
    return tec.CodecConfig(model=request.param, weights=path, bands=("B02", "B03", "B04"), nodata=0)


def network_of(config: tec.CodecConfig) -> Any:
    return weights.load(config.model, weights=config.weights, device="cpu")


@pytest.fixture
def small(config: tec.CodecConfig, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Makes ``part`` of the network fail on more images than ``most``; lists what it was given."""

    def fail(part: str, most: int, error: BaseException) -> list[int]:
        seen: list[int] = []
        inner = getattr(network_of(config), part)

        def run(x: torch.Tensor, compression: float) -> torch.Tensor:
            seen.append(len(x))
            if len(x) > most:
                raise error
            return inner(x, compression)

        monkeypatch.setattr(network_of(config), part, run)
        return seen

    return fail


@cache
def _coded(config: tec.CodecConfig) -> tuple[list[bytes], list[np.ndarray]]:
    streams = codec.encode_many(CHUNKS, config, device="cpu")
    return streams, codec.decode_many(streams, weights=config.weights, device="cpu")


@pytest.fixture
def coded(config: tec.CodecConfig) -> tuple[list[bytes], list[np.ndarray]]:
    """Streams and pixels of `CHUNKS` on a CPU where nothing runs out."""
    return _coded(config)


@pytest.mark.parametrize("error", SHORTAGES, ids=lambda e: type(e).__name__)
def test_where_memory_runs_out_half_as_much_goes_through(config, small, error, coded) -> None:
    path = config.weights
    wanted, pixels = coded

    sizes = small("analysis", 2, error)
    assert codec.encode_many(CHUNKS, config, device="cpu") == wanted
    assert max(sizes) > 2
    failed = sum(size > 2 for size in sizes)
    assert codec.encode_many(CHUNKS, config, device="cpu") == wanted
    assert sum(size > 2 for size in sizes) == failed  # it remembers

    batches._fewer.clear()
    sizes = small("synthesis", 1, error)
    again = codec.decode_many(wanted, weights=path, device="cpu")
    assert max(sizes) > 1
    for mine, its in zip(again, pixels, strict=True):
        np.testing.assert_array_equal(mine, its)


def test_what_does_not_fit_alone_is_an_error_that_says_so(config, small) -> None:
    (data,) = codec.encode_many(CHUNKS[:1], config, device="cpu")
    small("analysis", 0, SHORTAGES[1])
    dates = "3 dates" if config.model == "tt" else "one date"
    with pytest.raises(tec.TecError, match=f"{dates} of 48 x 32 .* memory of cpu.* smaller chunks"):
        codec.encode_many(CHUNKS, config, device="cpu")
    small("synthesis", 0, SHORTAGES[1])
    with pytest.raises(tec.TecError, match="smaller chunks"):
        tec.decode(data, weights=config.weights, device="cpu")


def test_with_a_bound_too(tiny_checkpoints, monkeypatch) -> None:
    config = tec.CodecConfig(
        model="elic",
        weights=str(tiny_checkpoints["elic"]),
        bands=("B02", "B03", "B04"),
        nodata=0,
        max_error=5,
    )
    double = weights.load("elic", weights=config.weights, device="cpu", precision="float64")

    def fail(x: torch.Tensor, compression: float) -> torch.Tensor:
        raise SHORTAGES[0]

    monkeypatch.setattr(double, "synthesis", fail)
    with pytest.raises(tec.TecError, match="one date of 48 x 32"):
        codec.encode_many(CHUNKS, config, device="cpu")


def test_other_failures_pass(config, small) -> None:
    sizes = small("analysis", 0, RuntimeError("a fault"))
    with pytest.raises(RuntimeError, match="a fault"):
        codec.encode_many(CHUNKS, config, device="cpu")
    assert len(sizes) == 1
    assert not batches._fewer


# one ahead


@pytest.fixture
def as_on_a_gpu(coded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done beside a GPU, in batches of two dates."""
    monkeypatch.setattr(batches, "_is_gpu", lambda device: True)
    monkeypatch.setitem(batches.PIXELS, "cuda", 2 * 48 * 32)


def test_what_is_made_ahead_is_the_same(config, coded, as_on_a_gpu) -> None:
    wanted, pixels = coded
    assert codec.encode_many(CHUNKS, config, device="cpu") == wanted
    again = codec.decode_many(wanted, weights=config.weights, device="cpu")
    for mine, its in zip(again, pixels, strict=True):
        np.testing.assert_array_equal(mine, its)
    assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize("part", ["analysis", "synthesis"])
def test_memory_that_runs_out_while_more_is_made_ahead(config, as_on_a_gpu, small, part) -> None:
    wanted = codec.encode_many(CHUNKS, config, device="cpu")
    pixels = codec.decode_many(wanted, weights=config.weights, device="cpu")
    sizes = small(part, 1, SHORTAGES[0])
    assert codec.encode_many(CHUNKS, config, device="cpu") == wanted
    again = codec.decode_many(wanted, weights=config.weights, device="cpu")
    assert max(sizes) > 1
    for mine, its in zip(again, pixels, strict=True):
        np.testing.assert_array_equal(mine, its)


def test_errors_of_what_is_made_ahead_are_raised(config, as_on_a_gpu, monkeypatch) -> None:
    data = codec.encode_many(CHUNKS, config, device="cpu")
    with monkeypatch.context() as patch:
        bad = np.full((5, 12, 48, 32), np.nan, "f4")
        patch.setattr(network_of(config), "synthesis", lambda y, _: torch.from_numpy(bad[: len(y)]))
        with pytest.raises(tec.TecError, match="NaN"):
            codec.decode_many(data, weights=config.weights, device="cpu")
    floats = [chunk.astype("f4") for chunk in CHUNKS]
    floats[3][1, 0, 20, 20] = 1e20
    with pytest.raises(tec.TecError, match="no reflectance"):
        codec.encode_many(floats, config, device="cpu")
    assert not torch.is_inference_mode_enabled()


def test_one_item_is_made_while_one_is_used() -> None:
    made, ended = [threading.Event() for _ in range(3)], threading.Event()
    makers = set()

    def items() -> Iterator[int]:
        try:
            for i, event in enumerate(made):
                makers.add(threading.get_ident())
                event.set()
                yield i
        finally:
            makers.add(threading.get_ident())
            ended.set()

    coming = batches.ahead(items(), "cuda:0")
    assert next(coming) == 0
    assert made[1].wait(30)
    assert not made[2].is_set()
    coming.close()  # as by an error of who uses them
    assert ended.wait(30)
    assert len(makers) == 1
    assert threading.get_ident() not in makers


# devices


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """As if there were so many."""

    def be(count: int, *, forked: bool = False, current: int = 0) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: current)
        monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: forked)

    return be


def test_a_device_has_one_name(gpus) -> None:
    gpus(0)
    assert weights.resolve_device("auto") == weights.resolve_device("cpu") == "cpu"
    gpus(2)
    assert [weights.resolve_device(d) for d in ("auto", "cuda", "cuda:0")] == ["cuda:0"] * 3
    assert weights.resolve_device("cuda:1") == "cuda:1"
    gpus(2, current=1)
    assert weights.resolve_device("cuda") == "cuda:1"


@pytest.mark.parametrize(
    ("count", "device", "message"),
    [
        (0, "cuda", "sees 0 CUDA devices.*'cpu' or 'auto'"),
        (0, "cuda:0", "sees 0 CUDA devices"),
        (1, "cuda:7", "'cuda:7'.*sees 1 CUDA devices.*'cuda:0'"),
        (1, "mps", "'mps'.*float64"),
        (1, "cuda:", "'cuda:'"),
        (1, "cuda:-1", "'cuda:-1'"),
        (1, "cpu:0", "'cpu:0'"),
        (1, "", "''"),
    ],
)
def test_a_device_that_is_not_there(gpus, count, device, message) -> None:
    gpus(count)
    config = tec.CodecConfig(model="fp", bands=("B02",))
    with pytest.raises(tec.TecError, match=message):
        tec.encode(np.full((1, 1, 16, 16), 500, np.uint16), config, device=device)


def test_after_a_fork_the_gpu_is_gone(gpus) -> None:
    gpus(1, forked=True)
    with pytest.warns(UserWarning, match="forked.*on the CPU"):
        assert weights.resolve_device("auto") == "cpu"
    with pytest.raises(tec.TecError, match=r"forked.*spawn"):
        weights.resolve_device("cuda")
