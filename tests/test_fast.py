"""`precision="fast"`: other pixels by a little, the same latents, and refused where pixels are a
promise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tec
import tiny
import torch
from arrays import codec as coder_of
from arrays import create, run
from cubes import cube
from scenes import scene
from tec import codec, precision
from tec.models.compact import CompactElic
from tec.sensors import SENSORS

import xtec
from xtec import cache, settings
from xtec.verifying import verify

ALL = SENSORS["S2L2A"].bands
#: DN that pixels may differ by below: about twice what they do.
LARGEST = {"fp": 8, "elic": 8, "tt": 8, "flex": 14, "published tt": 90, "published flex": 90}


@pytest.fixture(autouse=True)
def _bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """On whatever processor: torch has it everywhere, if not quickly."""
    monkeypatch.setattr(precision, "short", lambda device: torch.bfloat16)


@pytest.fixture
def evaluations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """In which precision latents were evaluated; the checksums of the others were not met."""
    seen: list[str] = []
    inner = codec._evaluate

    def spy(members: Any, how: str) -> Any:
        seen.append(how)
        return inner(members, how)

    monkeypatch.setattr(codec, "_evaluate", spy)
    return seen


def psnr(back: np.ndarray, dn: np.ndarray) -> float:
    error = (back.astype(float) - dn)[dn != 0]
    return float(10 * np.log10(1e8 / np.mean(error**2)))


@pytest.mark.parametrize("kind", LARGEST)
def test_pixels_differ_by_little(kind: str, tiny_checkpoints: dict, evaluations: list) -> None:
    model = kind.removeprefix("published ")
    published = {"published tt": "published tt", "published flex": "flex"}
    path = str(tiny_checkpoints[published[kind]]) if kind in published else None
    config = tiny.config_of(model, path)
    dn = scene(3, 12, 80, 96, nodata=True)
    data = tec.encode(dn, config, device="cpu")
    full = tec.decode(data, weights=path, device="cpu")
    del evaluations[:]
    fast = tec.decode(data, weights=path, device="cpu", precision="fast")
    assert set(evaluations) == {"float32"}
    assert not torch.is_autocast_enabled("cpu")
    np.testing.assert_array_equal(fast == 0, full == 0)
    assert 0 < np.abs(full.astype(int) - fast).max() <= LARGEST[kind]
    assert psnr(full, dn) - psnr(fast, dn) <= 0.05


def test_where_nothing_is_quicker_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    data = tec.encode(scene(1, 12, 64, 64), tec.CodecConfig(model="elic", bands=ALL), device="cpu")
    monkeypatch.setattr(precision, "short", lambda device: None)
    fast = tec.decode(data, device="cpu", precision="fast")
    np.testing.assert_array_equal(fast, tec.decode(data, device="cpu"))


def test_float16_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its differences are smaller; what is too large for it is computed again."""
    data = tec.encode(scene(1, 12, 64, 64), tec.CodecConfig(model="elic", bands=ALL), device="cpu")
    monkeypatch.setattr(precision, "short", lambda device: torch.float16)
    full = tec.decode(data, device="cpu")
    fast = tec.decode(data, device="cpu", precision="fast")
    assert 0 < np.abs(full.astype(int) - fast).max() <= 2
    inner = CompactElic.synthesis

    def large(self: Any, y: torch.Tensor, compression: float) -> torch.Tensor:
        wrong = torch.inf if torch.is_autocast_enabled("cpu") else 0
        return inner(self, y, compression) + wrong

    monkeypatch.setattr(CompactElic, "synthesis", large)
    again = tec.decode(data, device="cpu", precision="fast")
    np.testing.assert_array_equal(again, full)


def test_what_is_quick_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False, raising=False)
    assert not precision._cpu_bfloat16.__wrapped__()
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert precision._cpu_bfloat16.__wrapped__()
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name)  # another version of torch
    assert not precision._cpu_bfloat16.__wrapped__()
    for has, dtype in ((True, torch.bfloat16), (False, None)):
        monkeypatch.setattr(precision, "_cpu_bfloat16", lambda has=has: has)
        assert precision.short(torch.device("cpu")) is dtype
        assert precision.short(torch.device("meta")) is None
    for capability, dtype in (((6, 1), None), ((7, 5), torch.float16), ((9, 0), torch.float16)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        assert precision.short(torch.device("cuda:0")) is dtype


# refused


def test_refusals() -> None:
    chunk = scene(1, 3, 32, 32)
    config = tec.CodecConfig(model="elic", bands=("B02", "B03", "B04"))
    data = tec.encode(chunk, config)
    with pytest.raises(tec.TecError, match=r"precision 'quick': it must be 'full' .* or 'fast'"):
        tec.decode(data, precision="quick")
    with pytest.raises(tec.TecError, match="verify with precision 'full'"):
        codec.decode_many([data], precision="fast", independent=True)
    for model in ("elic", "none"):
        bounded = tec.CodecConfig(model=model, bands=config.bands, max_error=3, lossy="always")
        data = tec.encode(chunk, bounded)
        with pytest.raises(tec.TecError, match=r"bound on its error.*precision='full'"):
            tec.decode(data, precision="fast")
        assert np.abs(tec.decode(data).astype(int) - chunk).max() <= 3


def test_verify_refuses_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    array, path = cube(time=1, y=32, x=32), tmp_path / "a.zarr"
    monkeypatch.setattr(settings, "precision", "fast")
    with pytest.raises(tec.TecError, match=r"verify .* is 'fast': set it to 'full'"):
        xtec.to_zarr(array, path, model="elic", verify=True, progress=False)
    assert not path.exists()
    xtec.to_zarr(array, path, model="elic", progress=False)
    with pytest.raises(tec.TecError, match="is 'fast'"):
        verify(path)
    monkeypatch.setattr(settings, "precision", "full")
    assert all(found.sound for found in verify(path))


# stores


def test_reads_of_a_store_follow_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = scene(2, 3, 32, 32)
    array = create(pixels.shape, serializer=coder_of(model="elic"))
    array[:] = pixels
    written = dict(array.store._store_dict)
    full = array[:]
    monkeypatch.setattr(settings, "precision", "fast")
    monkeypatch.setattr(settings, "cache", "1 MB")
    fast = array[:]
    assert 0 < np.abs(full.astype(int) - fast).max() <= LARGEST["elic"]
    array[:] = pixels  # nothing of it is written
    assert {k: v.to_bytes() for k, v in array.store._store_dict.items()} == {
        k: v.to_bytes() for k, v in written.items()
    }
    monkeypatch.setattr(settings, "precision", "full")
    np.testing.assert_array_equal(array[:], full)  # of another precision than what is kept
    with pytest.raises(ValueError, match=r"precision is 'quick': choose 'full' or 'fast'"):
        settings.precision = "quick"
    monkeypatch.setitem(vars(settings), "precision", "quick")  # as from the environment
    with pytest.raises(tec.TecError, match="precision 'quick'"):
        array[:]
    cache.clear()


def test_what_is_found_while_compressing_is_of_full_precision(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    array = cube(time=1, y=64, x=64)
    wanted = array.tec.compress(model="elic", psnr=38).attrs["xtec"]
    monkeypatch.setattr(settings, "precision", "fast")
    assert array.tec.compress(model="elic", psnr=38).attrs["xtec"] == wanted


def test_settings_of_the_environment() -> None:
    code = "from xtec import settings; print(settings.precision)"
    assert run(f"import os; os.environ['XTEC_PRECISION'] = 'fast'; {code}") == "fast\n"
