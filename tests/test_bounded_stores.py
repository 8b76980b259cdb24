"""max_error= from xarray to a store and back: all formats, all spellings, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from cubes import cube
from tec.stream import peek

from xtec import cli


def bounded(back: Any, data: Any, bounds: Any, scale: float = 1) -> None:
    """Valid pixels within the bound of their band, others as they were."""
    back, data = np.asarray(back), np.asarray(data)
    missing = np.isnan(data) if data.dtype.kind == "f" else data == 0
    again = np.isnan(back) if back.dtype.kind == "f" else back == 0
    np.testing.assert_array_equal(again, missing)
    off = np.abs(back.astype(float) - data).transpose(0, 2, 3, 1)[~missing.transpose(0, 2, 3, 1)]
    allowed = np.broadcast_to(bounds, (*np.array(data.shape)[[0, 2, 3]], data.shape[1]))
    allowed = allowed[~missing.transpose(0, 2, 3, 1)] * scale
    assert (off <= allowed * (1 + 1e-6)).all()  # decoded CF values are rounded to float32


@pytest.mark.parametrize("max_error", [0, 7, np.float32(2.5), {"B02": 5, "default": 20}])
@pytest.mark.parametrize("kind", ["3", "2", "sharded"])
def test_stores_keep_the_bound(tmp_path: Path, kind: str, max_error: Any) -> None:
    data = cube(time=5, y=35, x=40, nodata=0, title="a scene")
    settings: dict[str, Any] = {"chunks": {"time": 4, "y": 16, "x": 16}}
    settings |= {"zarr_format": 2} if kind == "2" else {}
    settings |= {"shards": {"time": 4, "y": 32, "x": 32}} if kind == "sharded" else {}
    packed = data.tec.compress(model="none", max_error=max_error, **settings)
    packed.to_zarr(tmp_path / "a.zarr", zarr_format=2 if kind == "2" else 3, consolidated=False)
    back = xr.open_zarr(tmp_path / "a.zarr", consolidated=False).s2
    bounds = [5, 20, 20] if isinstance(max_error, dict) else max_error
    bounded(back, data, bounds)
    assert back.dtype == data.dtype
    assert back.attrs["title"] == "a scene"
    bounded(back[4:], data[4:], bounds)
    if max_error == 0:
        np.testing.assert_array_equal(back, data)


def test_cf_packing_counts_in_dn(tmp_path: Path) -> None:
    data = cube(time=2, y=30, x=30)
    physical = (data.where(data > 0) * 1e-4 - 0.1).astype("float32")
    physical.encoding = {
        "dtype": "uint16",
        "scale_factor": 1e-4,
        "add_offset": -0.1,
        "_FillValue": 0,
    }
    packed = physical.tec.compress(model="none", max_error=3)
    packed.to_zarr(tmp_path / "a.zarr", consolidated=False)
    raw = xr.open_zarr(tmp_path / "a.zarr", mask_and_scale=False, consolidated=False).s2
    assert raw.dtype == "uint16"
    bounded(raw, data, 3)
    assert (np.asarray(raw) != np.asarray(data)).any()
    back = xr.open_zarr(tmp_path / "a.zarr", consolidated=False).s2
    bounded(back, physical, 3.02, scale=1e-4)


def test_reflectance_counts_in_dn(tmp_path: Path) -> None:
    data = cube("float32", time=2)
    data = data.where(data > 0)
    packed = data.tec.compress(model="none", max_error=3, scale=1e-4)
    packed.to_zarr(tmp_path / "a.zarr", consolidated=False)
    bounded(xr.open_zarr(tmp_path / "a.zarr", consolidated=False).s2, data, 3, scale=1e-4)


def test_a_lossy_picture_under_the_residual(tmp_path: Path) -> None:
    data = cube(time=2, y=40, x=40, nodata=0)
    for name, settings in {
        "always": {"model": "elic", "compression": 60, "max_error": 40},
        "auto": {"max_error": 150},
        "single": {"model": "tt", "max_error": 40, "chunks": {"time": 1}},
    }.items():
        path = tmp_path / name
        data.tec.to_zarr(path, **settings)
        bounded(xr.open_zarr(path).s2, data, settings["max_error"])
        keys = [p for p in path.glob("s2/c/**/*") if p.is_file()]
        models = {peek(p.read_bytes()).model for p in keys}
        assert models <= {"elic", "tt", "none"}
        assert models == {"elic"} or name != "always"


def test_the_weights_of_no_network_are_not_embedded(tmp_path: Path) -> None:
    data = cube(time=3, y=20, x=20, nodata=0)
    job: dict[str, Any] = {"model": "none", "max_error": 2, "embed_weights": True}
    data.tec.to_zarr(tmp_path / "a.zarr", **job)
    data.tec.to_zarr(tmp_path / "a.zarr", resume=True, **job)
    bounded(xr.open_zarr(tmp_path / "a.zarr").s2, data, 2)
    assert not list(tmp_path.rglob("*safetensors*"))


def test_an_interrupted_write_goes_on(tmp_path: Path) -> None:
    data = cube(time=2, y=40, x=40, nodata=0)
    job: dict[str, Any] = {"model": "none", "max_error": 4, "chunks": {"y": 16, "x": 16}}
    data.tec.to_zarr(tmp_path / "a.zarr", **job)
    chunks = sorted(p for p in (tmp_path / "a.zarr/s2/c").rglob("*") if p.is_file())
    before = {p: p.read_bytes() for p in chunks}
    chunks[0].unlink()
    chunks[1].write_bytes(before[chunks[1]][:-9])
    data.tec.to_zarr(tmp_path / "a.zarr", resume=True, **job)
    assert {p: p.read_bytes() for p in chunks} == before
    with pytest.raises(ValueError, match="max_error"):
        data.tec.to_zarr(tmp_path / "a.zarr", resume=True, **{**job, "max_error": 3})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_error": {"B99": 5}}, "names 'B99'; the bands are B02, B03, B04"),
        ({"max_error": {"B02": 5}}, "says nothing of B03, B04"),
        ({"max_error": {"B02": 5, "default": -1}}, "it must be a number of DN"),
        ({"max_error": -1}, "it must be a number of DN"),
        ({"max_error": float("nan")}, "it must be a number of DN"),
        ({"max_error": True}, "it must be a number of DN"),
        ({"max_error": "5"}, "it must be a number of DN"),
        ({"max_error": [5, 5, 5]}, "it must be a number of DN"),
        ({"max_error": 70000}, "within 0 and 65535"),
        ({"max_error": float("inf")}, "within 0 and 65535"),
        ({"max_error": 5, "psnr": 40}, "pass one of them"),
        ({"max_error": 5, "ratio": 10}, "pass one of them"),
        ({"model": "none"}, "needs max_error"),
    ],
)
def test_what_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cube(nodata=0).tec.compress(**settings)


def test_floats_cannot_be_lossless() -> None:
    with pytest.raises(ValueError, match="store integers"):
        cube("float32").tec.compress(max_error=0, scale=1e-4)


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = cube(nodata=0).drop_vars("spatial_ref")
    source, target = tmp_path / "in.nc", tmp_path / "out.zarr"
    data.to_netcdf(source)

    def call(*args: Any) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["xtec", *map(str, args)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        return int(end.value.code or 0), captured.out + captured.err

    assert (
        call("compress", source, target, "--model", "none", "--max-error", "B02=0,default=9")[0]
        == 0
    )
    bounded(xr.open_zarr(target).s2, data, [0, 9, 9])
    code, printed = call("info", target, "--json")
    assert code == 0
    (array,) = json.loads(printed)["variables"]
    assert array["model"] == "none"
    assert array["max_error"] == [0, 9, 9]
    for wrong in ("B02=", "five", "B02=1,B03", "-3", "B02=1"):
        code, printed = call("compress", source, tmp_path / "no.zarr", "--max-error", wrong)
        assert code != 0
        assert "max" in printed.lower()
        assert "Traceback" not in printed
