"""Scale, offset, nodata and dtype, read off attributes and encoding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cubes import cube

from xtec.attributes import same
from xtec.stored import stored_form


@pytest.mark.parametrize(
    ("dtype", "attrs", "encoding", "nodata"),
    [
        ("uint16", {}, {}, 0),
        ("uint16", {"nodata": 7}, {}, 7),
        ("uint16", {"nodata": "7"}, {}, 7),
        ("uint16", {"nodatavals": (7.0, 7.0, 7.0)}, {}, 7),
        ("uint16", {"nodata": float("nan")}, {}, 0),
        ("uint16", {"nodata": -9999}, {}, 0),
        ("int16", {"nodata": -9999}, {}, -9999),
        ("uint16", {}, {"fill_value": np.uint16(65535)}, 65535),
        ("uint16", {"missing_value": 9}, {"fill_value": 0}, 9),
        ("float32", {}, {}, np.nan),
        ("float32", {"nodata": -1}, {}, -1.0),
        ("float32", {}, {"_FillValue": np.nan}, np.nan),
    ],
)
def test_nodata_auto(dtype: str, attrs: dict, encoding: dict, nodata: float) -> None:
    data = cube(dtype, **attrs)
    data.encoding = encoding
    packed = data.tec.compress(model="elic", scale=1e-4 if dtype == "float32" else None)
    assert same(packed.encoding["serializer"].config.nodata, nodata)
    assert same(packed.encoding["fill_value"], nodata)
    assert "_FillValue" not in packed.encoding or "_FillValue" in encoding


def test_nodata_given() -> None:
    def codec(**options: Any) -> Any:
        return cube().tec.compress(model="elic", **options).encoding

    assert codec(nodata=65535)["serializer"].config.nodata == 65535
    assert codec(nodata=None)["serializer"].config.nodata is None
    assert codec(nodata=None)["fill_value"] == 0
    for wrong in (-1, 0.5, float("nan"), 70000):
        with pytest.raises(ValueError, match=r"no value of uint16"):
            codec(nodata=wrong)
    with pytest.raises(ValueError, match=r"a number, None or 'auto', got 'zero'"):
        codec(nodata="zero")
    filled = cube()
    filled.encoding = {"_FillValue": 0}
    with pytest.raises(ValueError, match=r"nodata=5, but 's2' has _FillValue=0"):
        filled.tec.compress(model="elic", nodata=5)


@pytest.mark.parametrize(
    ("cf", "options", "scale", "offset"),
    [
        ({"scale_factor": 1e-4, "add_offset": -0.1}, {}, 1, 1000),
        ({"scale_factor": 1e-4}, {}, 1, 0),
        ({"scale_factor": 1e-4}, {"offset": 1000}, 1, 1000),
        ({"scale_factor": 1.0, "add_offset": -1000.0}, {}, 1, 1000),
        ({"scale_factor": 0.5}, {}, 2, 0),
        ({"scale_factor": 2.75e-5, "add_offset": -0.2}, {}, 1e-4 / 2.75e-5, 2000),
        ({"scale_factor": 1e-2}, {"scale": 1e-2}, 1, 0),
        ({}, {}, 1, 0),
    ],
)
def test_cf_packing(cf: dict, options: dict, scale: float, offset: float) -> None:
    data = cube("float32").where(lambda d: d > 0)
    data.encoding = {"dtype": np.dtype("int16"), "_FillValue": -9999, **cf}
    stored = stored_form(data, **options)
    assert stored.dtype == "int16"
    assert stored.nodata == stored.fill_value == -9999
    assert stored.scale == pytest.approx(scale, rel=1e-9)
    assert stored.offset == pytest.approx(offset, abs=1e-6)
    assert stored.offset == round(stored.offset), "no 1000.0000000000001"
    kept = data.tec.compress(model="elic", **options).encoding
    assert {k: kept[k] for k in data.encoding} == data.encoding


def test_floats_need_a_scale() -> None:
    with pytest.raises(ValueError, match=r"float32.*pass scale=1e-4.*scale=1 if"):
        cube("float32").tec.compress(model="elic")
    config = cube("float32").tec.compress(model="elic", scale=1e-4).encoding["serializer"].config
    assert config.scale == 1e-4
    with pytest.raises(ValueError, match=r"scale must be positive"):
        cube("float32").tec.compress(model="elic", scale=-1)
    with pytest.raises(ValueError, match=r"scale must be a number"):
        cube("float32").tec.compress(model="elic", scale="DN")


@pytest.mark.parametrize(
    ("dtype", "remedy"),
    [
        ("float64", r'\.astype\("float32"\)'),
        ("uint8", r'\.astype\("uint16"\)'),
        ("int32", r'\.astype\("uint16"\)'),
        ("object", r'"uint16"'),
        ("complex64", r'"uint16"'),
    ],
)
def test_dtypes_that_are_refused(dtype: str, remedy: str) -> None:
    with pytest.raises(ValueError, match=f"{dtype}.*{remedy}"):
        cube().astype(dtype).tec.compress(model="elic", scale=1)


def test_stale_dtype_encoding_is_named() -> None:
    data = cube()
    data.encoding = {"dtype": np.dtype("float64")}
    with pytest.raises(ValueError, match=r"float64 \(stored; it shows as uint16: .drop_encoding"):
        data.tec.compress(model="elic")


def test_fill_value_attribute_of_integers_is_told() -> None:
    with pytest.warns(UserWarning, match=r"read it back as floats.*mask_and_scale=False"):
        cube(_FillValue=0).tec.compress(model="elic")


def test_baselines() -> None:
    name = "s2:processing_baseline"
    mixed = cube().assign_coords({name: ("time", ["03.01", "04.00"])})
    with pytest.raises(ValueError, match=r"from 03.01 to 04.00.*harmonise first"):
        mixed.tec.compress(model="elic")
    applied = mixed.assign_coords({"earthsearch:boa_offset_applied": ("time", [True, True])})
    assert applied.tec.compress(model="elic").encoding["serializer"].config.offset == 0
    late = cube().assign_coords({name: ("time", [4.0, 5.09])})
    assert late.tec.compress(model="elic", offset=1000).encoding["serializer"].config.offset == 1000
    with pytest.warns(UserWarning, match=r"pass offset=1000"):
        late.tec.compress(model="elic")
    early = cube().assign_coords({name: "02.14"})
    assert early.tec.compress(model="elic").encoding["serializer"].config.offset == 0


def test_declared_offset_is_told() -> None:
    data = cube(offset=1000)
    with pytest.warns(UserWarning, match=r"attribute offset=1000, and offset=0 is used"):
        data.tec.compress(model="elic")
    assert data.tec.compress(model="elic", offset=1000).encoding["serializer"].config.offset == 1000
