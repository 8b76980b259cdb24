"""Series through a store with the default model: routing, first dates, and size beside elic."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tec
import xarray as xr
import zarr
from data import real_cubes, requires_real
from scenes import scene
from tec import coder, stream, weights
from tec.sensors import SENSORS

import xtec  # noqa: F401  registers ds.tec

BANDS = SENSORS["S2L2A"].bands


def series(time: int, y: int, x: int) -> xr.DataArray:
    """The same ground on several dates, the third under a cloud."""
    pixels = scene(1, 12, y, x, seed=2) + scene(time, 12, y, x, seed=3) // 20
    pixels[2:3] = scene(1, 12, y, x, seed=4)
    dates = pd.date_range("2021-05-01", periods=time, freq="10D")
    return xr.DataArray(
        pixels.astype("uint16"),
        dims=("time", "band", "y", "x"),
        coords={"time": dates, "band": list(BANDS)},
        name="reflectance",
    )


def headers(path: Path, array: str) -> list[stream.Header]:
    """Of every chunk, in the order of time, y, x."""
    files = (path / array / "c").rglob("*")
    chunks = {tuple(map(int, f.parts[-4:])): f for f in files if f.is_file()}
    return [tec.peek(chunks[place].read_bytes()) for place in sorted(chunks)]


@pytest.fixture
def stored(tmp_path: Path) -> tuple[xr.DataArray, Path]:
    data = series(5, 70, 90)
    data.tec.compress(compression=20, chunks={"time": 4, "y": 64, "x": 64}).to_zarr(tmp_path / "a")
    return data, tmp_path / "a"


def test_the_default_model_takes_series_and_leaves_single_dates_to_elic(stored):
    data, path = stored
    found = headers(path, "reflectance")
    assert [h.model for h in found] == ["tt"] * 4 + ["elic"] * 4
    assert [h.extent[0] for h in found] == [4] * 4 + [1] * 4
    assert {h.told[0] for h in found[:4]} == {0}
    assert max(found[0].told) > 0
    back = xr.open_zarr(path).reflectance
    error = back.values.astype(float) - data.values
    assert 10 * np.log10(1e8 / np.mean(error**2)) > 38
    codec = zarr.open_array(path / "reflectance").metadata.to_dict()["codecs"][0]
    assert codec["configuration"]["model"] == "tt"
    assert codec["configuration"]["weights_sha256"] == weights.sha256("tt")


def test_the_first_dates_of_a_chunk_need_no_others(stored, monkeypatch):
    _, path = stored
    decoded = []
    decode = coder.decode_series

    def noted(network, rows, *args):
        decoded.append([len(row) for row in rows])
        return decode(network, rows, *args)

    monkeypatch.setattr(coder, "decode_series", noted)
    opened = xr.open_zarr(path, chunks=None).reflectance
    whole = opened.isel(time=slice(0, 4), y=slice(0, 64), x=slice(0, 64)).values
    assert decoded.pop() == [4]
    part = opened.isel(time=slice(0, 2), y=slice(5, 9), x=slice(0, 64)).values
    assert decoded.pop() == [2]
    assert np.abs(part.astype(int) - whole[:2, :, 5:9]).max() <= 1
    np.testing.assert_array_equal(opened.isel(time=4, y=3, x=70).values > 0, True)
    assert not decoded  # a chunk of one date is an image


@requires_real
@pytest.mark.parametrize("compression", [2, 20, 200])
def test_real_series_are_smaller_than_with_elic(compression):
    (path,) = real_cubes("val/l2a_ssl4eos12v11_val_0080717.zarr")
    dn = xr.open_zarr(path, consolidated=False).reflectance.values[:, :, :256, :256]
    size, quality = {}, {}
    for model in ("elic", "tt"):
        config = tec.CodecConfig(model=model, compression=compression, bands=BANDS, nodata=0)
        data = tec.encode(dn, config)
        size[model] = len(data)
        quality[model] = 10 * np.log10(1e8 / np.mean((tec.decode(data) - dn.astype(float)) ** 2))
    assert size["tt"] < size["elic"]
    assert quality["tt"] > quality["elic"] - 0.1
