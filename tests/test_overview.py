"""What ``ds.tec`` and ``xtec.info`` show: what is there, never a pixel of Dask, never an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from cubes import BANDS, band_variables, cube
from tec.sensors import SENSORS

import xtec
from xtec.overview import Overview
from xtec.report import describe

ALL = list(SENSORS["S2L2A"].bands)


def rows(obj: Any) -> dict[str, str]:
    return dict(Overview(obj).rows())


def cube_of_12(**sizes: int) -> xr.DataArray:
    shape = {"time": 5, "band": 12, "y": 40, "x": 40, **sizes}
    data = xr.DataArray(np.ones(tuple(shape.values()), "uint16"), dims=tuple(shape))
    return data.assign_coords(band=ALL).rename("s2")


def test_a_cube_in_memory() -> None:
    data = cube(time=5)
    data[0] = 0
    found = rows(data)
    assert found["reflectance"] == "variable 's2'"
    assert found["bands"] == "3 of S2L2A: B02, B03, B04"
    assert found["dates"] == "5, 2020-06-01 to 2020-06-05"
    assert found["size"] == "time 5 x band 3 x y 20 x x 24 uint16, 14.4 kB"
    share = 100 * (data.values == 0).mean()
    assert found["nodata"] == f"0; {share:.1f} % of the pixels"
    assert found["chunks"] == "2, time 4 x band 3 x y 20 x x 24 each"
    assert found["models"] == "tt: 1, elic: 1, which are of one date"
    assert "rough estimate" not in found, "three bands take more each than twelve"


def test_band_variables_with_names_of_their_own() -> None:
    ds = band_variables().rename(B02="blue", B03="green")
    found = rows(ds)
    assert found["reflectance"] == "3 variables, one a band"
    assert found["bands"] == "3 of S2L2A: B02 (blue), B03 (green), B04"
    assert found["kept without loss"] == "SCL, sun"
    assert "% of the pixels" in found["nodata"]


def test_large_cubes_in_memory_are_thinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xtec.overview._LOOK", 1000)
    data = cube(time=1, y=100, x=100)
    data[:] = 5
    data[..., ::5, ::5] = 0
    assert rows(data)["nodata"] == "0; 100.0 % of the pixels (every 5th row and column)"


def test_nothing_of_dask_or_of_a_file_is_read(tmp_path: Path) -> None:
    def fail(block: np.ndarray) -> np.ndarray:
        raise RuntimeError("pixels were computed")

    data = cube(time=8).chunk(time=1, y=10)
    blocks = data.data.map_blocks(fail, dtype="uint16", meta=np.empty((0,) * 4, "uint16"))
    data = data.copy(data=blocks)
    variables = xr.Dataset({name: data.sel(band=name, drop=True) for name in BANDS})
    for obj in (data, variables, data.tec.compress(model="elic", chunks={"time": 1, "y": 10})):
        found = rows(obj)
        assert "problem" not in found
        assert found["nodata"] == "0; not counted: the pixels are not in memory"
        assert "y 20 x x 24 uint16" in found["size"]
        assert "Dask blocks of time 1" in found["size"]
    cube().to_dataset().to_zarr(tmp_path / "a.zarr", zarr_format=2)
    lazy = xr.open_zarr(tmp_path / "a.zarr", chunks=None)
    assert "not in memory" in rows(lazy)["nodata"]
    assert not lazy.s2.variable._in_memory


@pytest.mark.parametrize(
    ("dates", "chunk", "expected"),
    [
        (8, 4, "tt: all 2"),
        (9, 4, "tt: 2, elic: 1, which are of one date"),
        (1, 4, "elic: all 1, which are of one date"),
        (3, 1, "elic: all 3, which are of one date"),
        (None, 4, "elic: all 1 (tt takes chunks of two dates or more)"),
    ],
)
def test_routing(dates: int | None, chunk: int, expected: str) -> None:
    data = cube(time=dates or 1)
    chunks = {} if dates is None else {"time": chunk}
    data = data.isel(time=0) if dates is None else data
    assert rows(data.tec.compress(model="tt", chunks=chunks))["models"] == expected
    if chunk == 4:
        assert rows(data)["models"] == expected


def test_estimates_are_rough_and_only_of_what_was_measured() -> None:
    data = cube_of_12(y=100, x=100)
    first = rows(data)["rough estimate"]
    assert first.startswith(f"{0.0765 * data.size / 8000:.1f} kB, at the 0.076 bits per pixel")
    assert ".plan() measures this one" in first
    for options, there in (
        ({"model": "fp"}, True),
        ({"model": "elic", "compression": 100}, True),
        ({"max_error": 5}, False),
        ({"model": "elic", "max_error": 5, "compression": 100}, False),
        ({"model": "flex", "quality": 4}, False),
    ):
        assert ("rough estimate" in rows(data.tec.compress(**options))) is there, options
    sizes = [
        float(rows(data.tec.compress(model="elic", compression=c))["rough estimate"].split()[0])
        for c in (1, 20, 500)
    ]
    assert sizes == sorted(set(sizes))


def test_packed_cubes_show_their_codec() -> None:
    packed = cube(time=5).tec.compress(model="elic", chunks={"y": 8}, shards={"y": 16})
    found = rows(packed)
    assert found["codec"] == "elic, compression 20"
    assert found["weights"].startswith("builtin (sha256 ")
    assert found["chunks"] == "6, time 4 x band 3 x y 8 x x 24 each"
    assert found["shards"] == "time 4 x band 3 x y 16 x x 24"
    lossless = rows(cube().tec.compress(max_error=0))
    assert lossless["codec"] == "lossless"
    assert "weights" not in lossless
    assert rows(cube().tec.compress(max_error=0, zarr_format=2))["codec"] == "lossless"


def test_offsets_scales_and_what_is_wrong_with_them() -> None:
    shown = rows(cube(offset=1000))
    assert "pass offset=1000 if its DN carry that" in shown["warning"]
    assert shown["offset, scale"].startswith("0, 1 ")
    floats = rows(cube("float32"))
    assert "pass scale=1e-4" in floats["problem"]
    assert "bands" in floats
    assert "nodata" not in floats
    mixed = cube().assign_coords({"s2:processing_baseline": ("time", ["03.01", "04.00"])})
    assert "harmonise first" in rows(mixed)["problem"]


@pytest.mark.parametrize(
    ("obj", "problem", "there"),
    [
        (xr.Dataset(), "no reflectance found", "a Dataset without variables"),
        (xr.Dataset({"a": ("x", [1, 2])}), "no reflectance found", "'a': x 2 int64"),
        (xr.DataArray(np.ones((2, 3)), dims=("y", "x")), "cannot tell which", "None: y 2 x x 3"),
        (cube()[:0], r"has shape (0, 3, 20, 24)", "time 0 x band 3"),
        (cube().expand_dims("z"), "'z' is none of time", "z 1 x time 2"),
        (xr.DataArray(3.0), "an image needs y and x", "float64"),
        (xr.Dataset({"B02": ("s", ["a"])}), "no reflectance", "'B02': s 1"),
        (object(), "has no attribute", None),
    ],
)
def test_what_is_no_cube_says_what_is_missing(obj: Any, problem: str, there: str | None) -> None:
    found = rows(obj)
    assert problem in found["problem"]
    if there is not None:
        assert there in found["there is"]
    page = Overview(obj)._repr_html_()
    assert page.startswith("<table>")


def test_both_reprs_of_the_accessor() -> None:
    for obj in (cube(), cube().to_dataset(name="a<b>")):
        text, page = repr(obj.tec), obj.tec._repr_html_()
        assert text.splitlines()[0].startswith("reflectance")
        assert page.count("<tr>") == len(text.splitlines())
        assert "<b>" not in page


def test_info_of_a_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from xtec.cli import app

    band_variables().tec.to_zarr(tmp_path / "s.zarr", max_error=3, progress=False)
    found = xtec.info(tmp_path / "s.zarr")
    assert found.to_dict() == describe(tmp_path / "s.zarr")
    shown = dict(found.rows())
    assert shown["store"] == f"{tmp_path / 's.zarr'} (Zarr format 3)"
    assert shown["model"] == "errors up to 3 DN"
    assert "SCL" in shown["not compressed by xtec"]
    assert repr(found).splitlines()[0].split() == ["store", *shown["store"].split()]
    assert found._repr_html_().count("<tr>") == len(found.rows())
    app(["info", str(tmp_path / "s.zarr")], standalone_mode=False)
    lines = capsys.readouterr().out.splitlines()
    for name, value in xtec.report.variable_rows(found.found["variables"][0]):
        assert any(line.split() == [*name.split(), *value.split()] for line in lines), name
    xr.Dataset({"a": ("x", [1])}).to_zarr(tmp_path / "other.zarr")
    with pytest.raises(ValueError, match="holds no variable that xtec has compressed"):
        xtec.info(tmp_path / "other.zarr")
