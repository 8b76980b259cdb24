"""`decode(to=)`: tensors that hold what the arrays hold, bit for bit on the processor."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tec
import torch
from chunks import chunks
from hypothesis import given, settings
from hypothesis import strategies as st
from scenes import scene
from tec import coarse, codec, samples, stream, tensors
from tec.coarse import Grid
from tec.sensors import SENSORS
from tec.specials import as_bits

ALL = SENSORS["S2L2A"].bands
CPU = torch.device("cpu")


def check_same(found: torch.Tensor, wanted: np.ndarray) -> None:
    assert found.device == CPU
    assert not found.is_inference()
    array = found.numpy()
    assert array.dtype == wanted.dtype
    np.testing.assert_array_equal(as_bits(array), as_bits(wanted))


def header_of(config: tec.CodecConfig, shape: tuple, extent: tuple, **more: Any) -> stream.Header:
    return stream.Header(config, "elic", bytes(stream.DIGEST), shape=shape, extent=extent, **more)


# without a network


@settings(max_examples=60)
@given(chunks(), st.data())
def test_pixels_of_any_planes(case: Any, data: st.DataObject) -> None:
    chunk, nodata = case
    native = chunk.astype(chunk.dtype.newbyteorder("="))
    names = data.draw(st.permutations(ALL))[: chunk.shape[1]]
    config = tec.CodecConfig(
        bands=tuple(names),
        nodata=nodata,
        offset=data.draw(st.sampled_from([0.0, 1000.0])),
        scale=data.draw(st.sampled_from([1.0, 1e-4] if native.dtype.kind == "f" else [1.0])),
    )
    extent = samples.extent(native, nodata)
    t, y, x = extent
    inside = native[:t, :, :y, :x]
    packed, mask = samples.pack_specials(inside, nodata)
    _, values = samples.unpack_specials(packed, inside.shape, native.dtype, nodata)
    ranges = samples.valid_ranges(inside, mask) if data.draw(st.booleans()) and t else ()
    kinds = [None, Grid(2, 1, 0), Grid(6, 2, 3)]
    if min(y, x) >= 8:
        kinds.append(Grid(2, 0, 1, repeated=False))
    grids = [data.draw(st.sampled_from(kinds)) for _ in names]
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    planes = rng.normal(0, data.draw(st.sampled_from([1, 50])), (t, 12, y + 5, x + 3)).astype("f4")
    out = np.full(native.shape, samples.fill_value(nodata, native.dtype), native.dtype)
    header = header_of(
        config, native.shape, extent, dtype=samples.dtype_name(native.dtype), ranges=ranges
    )
    pixels = tensors.Pixels(header, t, grids, CPU)
    for date, plane in enumerate(planes):
        special = (None, None) if mask is None else (mask[date], values[date])
        samples.from_planes(
            plane, config, native.dtype, y, x, *special, grids=grids, ranges=ranges,
            out=out[date, :, :y, :x],
        )  # fmt: skip
        pixels.put(date, torch.from_numpy(plane), *special)
    check_same(pixels.done(), out[:t])


@pytest.mark.parametrize("where", ["valid", "special"])
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_values_that_are_none(wrong: float, where: str) -> None:
    config = tec.CodecConfig(bands=("B04", "B02"), nodata=0)
    header = header_of(config, (1, 2, 4, 4), (1, 4, 4), dtype="uint16")
    planes = torch.zeros(12, 16, 16)
    planes[1, 2, 3] = wrong  # B02
    mask = np.zeros((2, 4, 4), bool)
    mask[1, 2, 3] = where == "special"
    pixels = tensors.Pixels(header, 1, (None, None), CPU)
    if where == "valid":
        with pytest.raises(tec.TecError, match="infinite values in 1 valid pixels of band B02"):
            pixels.put(0, planes, mask, np.array(0, "u2"))
        return
    pixels.put(0, planes, mask, np.array(0, "u2"))
    assert pixels.done()[0, 1, 2, 3] == 0


@pytest.mark.parametrize("repeated", [True, False])
@pytest.mark.parametrize("factor", coarse.FACTORS)
def test_least_squares_as_on_a_gpu(factor: int, repeated: bool) -> None:
    rng = np.random.default_rng(0)
    for size in ((128, 96), (60, 101), (24, 31), *([(5, 13), (1, 1)] if repeated else [])):
        for y, x in ((0, 0), (factor - 1, 1)):
            grid = Grid(factor, y, x, repeated)
            wanted = rng.normal(2000, 500, size).astype("f4")
            plane = torch.from_numpy(wanted.copy())
            coarse.restored(wanted, grid)
            tensors.restore_dense(plane, grid)
            np.testing.assert_allclose(plane.numpy(), wanted, rtol=0, atol=0.02)
            if repeated:
                cells = coarse._repetition(coarse._cells(plane.numpy(), grid), grid, size)
                np.testing.assert_array_equal(plane.numpy(), cells)


# with one


CASES: dict[str, tuple[dict[str, Any], Any]] = {
    "holes": ({"nodata": 0}, lambda: scene(3, 12, 70, 50, nodata=True)),
    "none": ({}, lambda: scene(1, 12, 48, 64)),
    "bright": ({"nodata": 65535}, lambda: scene(1, 12, 33, 16) + np.uint16(50000)),
    "int16": ({"nodata": -9999, "offset": -1000.0}, lambda: scene(2, 12, 40, 40).astype("i2")),
    "float32": ({"nodata": np.nan, "scale": 1e-4}, lambda: floats()),
    "subset": ({"bands": ("B08", "B02"), "nodata": 0}, lambda: scene(2, 2, 64, 64, nodata=True)),
    "nothing": ({"nodata": 0}, lambda: np.zeros((2, 12, 20, 20), "u2")),
    "20 m": ({}, lambda: coarse_bands()),
    "bound": ({"max_error": 3, "nodata": 0}, lambda: scene(2, 12, 40, 40, nodata=True)),
    "bound, floats": ({"max_error": 5, "scale": 1e-4, "nodata": np.nan}, lambda: floats()),
    "lossless": ({"max_error": 0, "model": "none"}, lambda: scene(2, 12, 20, 20)),
}


def floats() -> np.ndarray:
    chunk = scene(2, 12, 40, 36).astype("f4") * np.float32(1e-4)
    chunk[0, 0, 3:9, :8] = np.nan
    as_bits(chunk)[1, 2, :2, :2] = 0xFFC12345
    chunk[1, 5, 7, 7] = -np.inf
    return chunk


def coarse_bands() -> np.ndarray:
    chunk = scene(2, 12, 72, 60)
    for band, name in enumerate(ALL):
        if name in ("B05", "B06", "B01"):
            factor = 6 if name == "B01" else 2
            chunk[:, band] = chunk[:, band, ::factor, ::factor].repeat(factor, 1).repeat(factor, 2)
    return chunk


@pytest.mark.parametrize("model", ["elic", "tt"])
@pytest.mark.parametrize("name", CASES)
def test_tensors_hold_what_arrays_hold(name: str, model: str, tiny_checkpoints: dict) -> None:
    changes, make = CASES[name]
    path = str(tiny_checkpoints[model])
    config = tec.CodecConfig(**{"model": model, "weights": path, "bands": ALL, **changes})
    streams = codec.encode_many([make(), make()[:1]], config, device="cpu")
    dates = [None, 1] if name != "holes" else [2, 0]
    options: dict[str, Any] = {"weights": path, "device": "cpu"}
    arrays = codec.decode_many(streams, dates=dates, **options)
    found = codec.decode_many(streams, dates=dates, **options, to="cpu")
    for one, wanted in zip(found, arrays, strict=True):
        check_same(one, wanted)
    check_same(tec.decode(streams[0], **options, to="cpu"), tec.decode(streams[0], **options))


def test_a_grid_is_found_in_that_case(tiny_elic: Any) -> None:
    config = tec.CodecConfig(model="elic", weights=str(tiny_elic), bands=ALL)
    assert sum(map(bool, stream.peek(tec.encode(coarse_bands(), config)).grids)) == 3


def test_other_devices(tiny_elic: Any) -> None:
    config = tec.CodecConfig(model="elic", weights=str(tiny_elic), bands=ALL)
    data = tec.encode(scene(1, 12, 32, 32), config)
    there = tec.decode(data, weights=str(tiny_elic), to="meta")  # the work is done here
    assert (there.device.type, there.dtype, there.shape) == ("meta", torch.uint16, (1, 12, 32, 32))
    for to, message in (("gpu", "'gpu'.*device that torch has"), ("cuda:99", "CUDA devices")):
        with pytest.raises(tec.TecError, match=message):
            tec.decode(data, weights=str(tiny_elic), to=to)


def test_the_network_runs_where_its_pixels_are_wanted(
    tiny_elic: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tec.CodecConfig(model="elic", weights=str(tiny_elic), bands=ALL)
    data = tec.encode(scene(1, 12, 32, 32), config)
    seen = []
    monkeypatch.setattr(tensors, "device_of", lambda to: torch.device(to))

    def refuse(device: str) -> str:
        seen.append(device)
        raise tec.TecError("no GPU here")

    monkeypatch.setattr(tec.weights, "resolve_device", refuse)
    for device, wanted in (("auto", "cuda:1"), ("cpu", "cpu")):
        monkeypatch.setattr(tensors, "Pixels", lambda *args: None)
        with pytest.raises(tec.TecError, match="no GPU here"):
            codec.decode(data, weights=str(tiny_elic), device=device, to="cuda:1")
        assert seen.pop() == wanted


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_what_surrounds_it_does_not_matter(mode: Any, tiny_elic: Any) -> None:
    config = tec.CodecConfig(model="elic", weights=str(tiny_elic), bands=ALL, nodata=0)
    data = tec.encode(scene(1, 12, 32, 32, nodata=True), config)
    wanted = tec.decode(data, weights=str(tiny_elic), device="cpu")
    with mode(), torch.autocast("cpu", torch.bfloat16), torch.device("meta"):
        found = tec.decode(data, weights=str(tiny_elic), device="cpu", to="cpu")
    np.testing.assert_array_equal(found.numpy(), wanted)
    assert not found.requires_grad
