"""On a GPU: the same latents as on the CPU, memory that runs out, and workers of Dask."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tec
import torch
import xarray as xr
import zarr
from arrays import create, run, same
from cubes import cube
from scenes import scene
from tec import batches, codec, graphs, weights
from tec.coarse import Grid
from tec.sensors import SENSORS
from tec.specials import as_bits
from tec.stream import peek
from test_tensors import CASES as CHUNKS

from xtec import settings

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
ALL = SENSORS["S2L2A"].bands


#: Built in, and tiny ones from files.
KINDS = [
    *("fp", "elic", "tt", "flex"),
    *("tiny elic", "tiny tt", "tiny compact flex", "tiny published tt", "tiny flex"),
]
CASES = [(kind, "mean") for kind in KINDS]
CASES += [(kind, "sample") for kind in KINDS if kind.endswith("flex")]


@pytest.mark.parametrize(("kind", "forecast"), CASES)
@pytest.mark.parametrize("compression", [2.0, 20.0, 300.0])
def test_what_one_writes_the_other_reads(kind, compression, forecast, tiny_checkpoints):
    model = kind.rpartition(" ")[2]
    tiny = kind.startswith("tiny ")
    path = str(tiny_checkpoints[kind.removeprefix("tiny ")]) if tiny else None
    quality = (16, 4, 0, 9) if model == "flex" else None
    config = tec.CodecConfig(
        model=model,
        compression=compression,
        weights=path or "builtin",
        quality=quality,
        forecast=forecast,
        bands=ALL,
        nodata=0,
    )
    base = scene(1, 12, 200, 136, seed=1)
    chunks = [base + scene(4, 12, 200, 136, seed=s) // 30 for s in range(3)]
    for writer, reader in (("cuda", "cpu"), ("cpu", "cuda")):
        for data in codec.encode_many(chunks, config, device=writer):
            here = codec.latents(data, weights=path, device=writer)
            there = codec.latents(data, weights=path, device=reader)
            for a, b in zip(here, there, strict=True):
                np.testing.assert_array_equal(a, b)
            a, b = (codec.decode(data, weights=path, device=d) for d in (writer, reader))
            assert np.abs(a.astype(int) - b).max() <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_fast_pixels_differ_by_little(kind, tiny_checkpoints, monkeypatch) -> None:
    model = kind.rpartition(" ")[2]
    tiny = kind.startswith("tiny ")
    path = str(tiny_checkpoints[kind.removeprefix("tiny ")]) if tiny else None
    config = tiny.config_of(model, path)
    chunk = scene(3, 12, 136, 200, nodata=True)
    data = codec.encode(chunk, config, device="cuda")
    full = codec.decode(data, weights=path, device="cuda")
    evaluate, seen = codec._evaluate, []
    monkeypatch.setattr(codec, "_evaluate", lambda *a: seen.append(a[1]) or evaluate(*a))
    fast = codec.decode(data, weights=path, device="cuda", precision="fast")
    assert set(seen) == {"float32"}  # no checksum of latents was missed
    assert np.abs(full.astype(int) - fast).max() <= (90 if tiny else 14)
    worse, better = (np.mean((back.astype(float) - chunk) ** 2) for back in (fast, full))
    assert 10 * np.log10(worse / better) <= 0.05


@pytest.mark.parametrize("model", ["elic", "tt"])
@pytest.mark.parametrize("name", CHUNKS)
def test_tensors_on_the_gpu_hold_what_arrays_hold(name, model, tiny_checkpoints) -> None:
    changes, make = CHUNKS[name]
    path = str(tiny_checkpoints[model])
    config = tec.CodecConfig(**{"model": model, "weights": path, "bands": ALL, **changes})
    data = codec.encode(make(), config, device="cuda")
    wanted = codec.decode(data, weights=path, device="cuda")
    for options in ({"to": "cuda"}, {"to": "cuda", "device": "cpu"}, {"to": "cpu"}):
        found = codec.decode(data, weights=path, **options)
        assert found.device.type == options["to"]
        assert found.dtype == getattr(torch, wanted.dtype.name)
        array = found.cpu().numpy()
        special = ~np.isfinite(wanted) if wanted.dtype.kind == "f" else wanted == config.nodata
        np.testing.assert_array_equal(as_bits(array)[special], as_bits(wanted)[special])
        off = np.abs(array[~special].astype(float) - wanted[~special]).max(initial=0)
        assert off <= config.scale * (0 if config.max_error else 1.001)


def test_bands_on_their_grid_come_back_on_it_on_the_gpu(tiny_elic) -> None:
    config = tec.CodecConfig(model="elic", weights=str(tiny_elic), bands=ALL)
    data = codec.encode(CHUNKS["20 m"][1](), config, device="cuda")
    found = codec.decode(data, weights=str(tiny_elic), to="cuda").cpu().numpy()
    assert sum(map(bool, peek(data).grids)) == 3
    for band, code in enumerate(peek(data).grids):
        if code:
            factor = Grid.from_code(code).factor
            one = found[:, band, ::factor, ::factor].repeat(factor, 1).repeat(factor, 2)
            np.testing.assert_array_equal(found[:, band], one)


@pytest.mark.parametrize("model", ["elic", "tt"])
def test_short_products_around_it_reach_nothing(model: str, monkeypatch) -> None:
    config = tec.CodecConfig(model=model, bands=ALL)
    chunk = CHUNKS["20 m"][1]()
    data = codec.encode(chunk, config, device="cuda")
    pixels = codec.decode(data, to="cuda")
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    with torch.autocast("cuda", torch.bfloat16):
        assert codec.encode(chunk, config, device="cuda") == data
        assert torch.equal(codec.decode(data, to="cuda").int(), pixels.int())
    assert torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize("shards", [None, (2, 3, 32, 32)])
def test_zarr_reads_into_gpu_buffers(shards, monkeypatch) -> None:
    reason = "cupy is no dependency; install it to try zarr's GPU buffers"
    cupy = pytest.importorskip("cupy", reason=reason)
    pixels = scene(3, 3, 40, 36, nodata=True)
    plain = create(pixels.shape, shards=shards)
    plain[:] = pixels
    wanted = plain[:]
    with zarr.config.enable_gpu():
        array = create(pixels.shape, shards=shards)
        array[:] = cupy.asarray(pixels)
        for device in ("cuda", "cpu"):
            monkeypatch.setattr(settings, "device", device)
            found = array[:]
            assert isinstance(found, cupy.ndarray)
            assert np.abs(found.get().astype(int) - wanted).max() <= 1
            assert np.abs(array[1, :, ::3].get().astype(int) - wanted[1, :, ::3]).max() <= 1


@pytest.mark.parametrize("kind", ["published tt", "flex"])
def test_steps_are_recorded_and_replayed(kind, tiny_checkpoints, monkeypatch, caplog) -> None:
    path = str(tiny_checkpoints[kind])
    quality = (16, 5, 0, 9) if kind == "flex" else None
    config = tec.CodecConfig(
        model=kind.split()[-1], weights=path, bands=ALL, nodata=0, quality=quality
    )
    chunks = [scene(4, 12, 128, 192, seed=seed) for seed in range(2)]
    streams = codec.encode_many(chunks, config, device="cuda")
    monkeypatch.setenv("XTEC_CUDA_GRAPHS", "0")
    wanted = [codec.latents(data, weights=path, device="cuda") for data in streams]
    pixels = codec.decode_many(streams, weights=path, device="cuda")
    monkeypatch.setenv("XTEC_CUDA_GRAPHS", "1")
    capture, recorded, replays, evaluations = graphs._capture, [], [], []

    def spy(run, device):
        graph, found = capture(run, device)
        recorded.append(graph)
        replay = lambda: replays.append(graph) or graph.replay()  # noqa: E731
        return SimpleNamespace(replay=replay), found

    monkeypatch.setattr(graphs, "_capture", spy)
    evaluate = codec._evaluate
    monkeypatch.setattr(
        codec, "_evaluate", lambda *args: evaluations.append(args[1]) or evaluate(*args)
    )
    assert codec.encode_many(chunks, config, device="cuda") == streams
    for _ in range(2):
        for data, its in zip(streams, wanted, strict=True):
            for a, b in zip(codec.latents(data, weights=path, device="cuda"), its, strict=True):
                np.testing.assert_array_equal(a, b)
    assert not caplog.records
    assert len(recorded) == 2 * 16  # of the first date, and of the others
    assert len(replays) == 16 * (3 + 11)
    for _ in range(2):
        back = codec.decode_many(streams, weights=path, device="cuda")
    for mine, its in zip(back, pixels, strict=True):
        assert np.abs(mine.astype(int) - its).max() <= 1
    assert set(evaluations) == {"float32"}  # nothing had to be tried again


def test_one_network_a_gpu() -> None:
    first = weights.load("elic", device="auto")
    assert all(weights.load("elic", device=d) is first for d in ("cuda", "cuda:0"))
    count = torch.cuda.device_count()
    with pytest.raises(tec.TecError, match=f"sees {count} CUDA devices"):
        weights.load("elic", device=f"cuda:{count}")


@pytest.fixture
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "_fewer", {})


@pytest.mark.usefixtures("_forget")
@pytest.mark.parametrize("model", ["elic", "tt"])
def test_a_gpu_that_is_too_small_takes_less_at_a_time(model: str) -> None:
    config = tec.CodecConfig(model=model, bands=ALL, nodata=0)
    chunks = [scene(4, 12, 512, 512, seed=seed) for seed in range(6)]
    codec.encode_many(chunks[:1], config, device="cuda")  # with all of it, as a measure
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    room = torch.cuda.memory_reserved() + 2**30
    torch.cuda.set_per_process_memory_fraction(min(1.0, room / total))
    try:
        streams = codec.encode_many(chunks, config, device="cuda")
        back = codec.decode_many(streams, device="cuda")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert batches._fewer["cuda:0"] < batches.PIXELS["cuda"]
    for data, mine in zip(streams, back, strict=True):
        for a, b in zip(*(codec.latents(data, device=d) for d in ("cpu", "cuda")), strict=True):
            np.testing.assert_array_equal(a, b)
        assert np.abs(codec.decode(data, device="cpu").astype(int) - mine).max() <= 1


def test_a_forked_child_runs_on_the_cpu() -> None:
    run(
        """
        import os, warnings
        import numpy as np, tec
        config = tec.CodecConfig(model="fp", bands=("B02",))
        chunk = np.full((1, 1, 16, 16), 500, np.uint16)
        data = tec.encode(chunk, config, device="cuda")
        if (child := os.fork()) == 0:
            warnings.simplefilter("ignore")
            assert tec.decode(data).shape == chunk.shape
            try:
                tec.decode(data, device="cuda")
            except tec.TecError as error:
                os._exit(42 if "forked" in str(error) else 1)
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42
        """,
        "-W",
        "ignore::DeprecationWarning",
    )


@pytest.mark.filterwarnings("ignore")  # of packages that others make
@pytest.mark.parametrize("kind", ["LocalCUDACluster", "CUDA_VISIBLE_DEVICES"])
def test_workers_with_a_gpu_each_need_no_options(kind: str, tmp_path: Path, monkeypatch) -> None:
    distributed = pytest.importorskip("distributed", reason="the extra 'distributed' is optional")
    if kind == "LocalCUDACluster":
        reason = "dask-cuda is no dependency; install it to try its cluster"
        cluster_of = pytest.importorskip("dask_cuda", reason=reason).LocalCUDACluster
        options = {"CUDA_VISIBLE_DEVICES": "0"}
    else:
        cluster_of = distributed.LocalCluster
        options = {"env": {"CUDA_VISIBLE_DEVICES": "0"}, "threads_per_worker": 2}
    array = cube(time=4, y=128, x=128).chunk(time=2)
    with (
        cluster_of(n_workers=1, dashboard_address=":0", **options) as cluster,
        distributed.Client(cluster) as client,
    ):
        assert list(client.run(weights.resolve_device, "auto").values()) == ["cuda:0"]
        array.tec.to_zarr(tmp_path / "a.zarr", model="tt", chunks={"time": 2})
    pixels = {}
    for device in ("cpu", "cuda"):
        monkeypatch.setattr(settings, "device", device)
        pixels[device] = xr.open_zarr(tmp_path / "a.zarr").s2.values
    same(pixels["cuda"], array.values)
    assert np.abs(pixels["cuda"].astype(int) - pixels["cpu"]).max() <= 1
