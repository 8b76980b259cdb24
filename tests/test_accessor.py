"""compress and the accessor: what they configure, and what they refuse."""

from __future__ import annotations

import inspect
import json
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import dask.array
import numpy as np
import pytest
import xarray as xr
import zarr
from cubes import BANDS, DIMS, band_variables, cube
from tec.errors import TecError, WeightsError
from zarr.codecs import ZstdCodec

import xtec
from xtec.zarr2 import XtecCodec2
from xtec.zarr3 import XtecCodec

# the face


def test_import_is_light() -> None:
    heavy = [
        "torch",
        "numba",
        "rioxarray",
        "rich",
        "huggingface_hub",
        "distributed",
        "typer",
        "rasterio",
    ]
    code = f"import sys, xtec; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_compress_needs_no_network_library() -> None:
    code = textwrap.dedent("""
        import sys, numpy as np, xarray as xr, xtec
        data = xr.DataArray(np.ones((3, 16, 16), "uint16"), dims=("band", "y", "x"))
        data.tec.compress(model="elic", bands=["B02", "B03", "B04"])
        print([m for m in ("torch", "numba", "rich") if m in sys.modules])
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_accessor_is_thin() -> None:
    for accessor in (xtec.DatasetAccessor, xtec.DataArrayAccessor):
        methods = inspect.signature(accessor.compress).parameters
        function = inspect.signature(xtec.compress).parameters
        assert list(methods)[1:] == list(function)[1:]
        for name in list(function)[1:]:
            assert methods[name].default == function[name].default, name
            assert methods[name].kind is inspect.Parameter.KEYWORD_ONLY
    data = cube()
    assert vars(data.tec) == {"_obj": data} or data.tec._obj is data
    xr.testing.assert_identical(data.tec.compress(model="elic"), xtec.compress(data, model="elic"))


def test_show_versions(capsys: pytest.CaptureFixture[str]) -> None:
    xtec.show_versions()
    out = capsys.readouterr().out
    assert f"zarr: {zarr.__version__}" in out
    assert f"xarray: {xr.__version__}" in out


# what it configures


def test_encoding_of_format_3() -> None:
    packed = cube(nodata=0).tec.compress(model="elic", compression=7.5)
    encoding = packed.encoding
    assert encoding["compressors"] == ()
    assert encoding["filters"] == ()
    assert encoding["write_empty_chunks"] is True
    assert encoding["fill_value"] == 0
    assert encoding["chunks"] == (2, 3, 20, 24), "never larger than the array"
    assert "_FillValue" not in encoding, "uint16 would come back as float32"
    codec = encoding["serializer"]
    assert isinstance(codec, XtecCodec)
    assert codec.dims == DIMS
    assert codec.chunk_shape == (2, 3, 20, 24)
    config = codec.config
    assert (config.model, config.compression, config.bands) == ("elic", 7.5, tuple(BANDS))
    assert (config.nodata, config.offset, config.scale) == (0, 0, 1)
    assert len(config.weights_sha256) == 64


def test_encoding_of_format_2() -> None:
    encoding = cube().tec.compress(model="fp", zarr_format=2).encoding
    (codec,) = encoding["compressors"]
    assert isinstance(codec, XtecCodec2)
    assert encoding["filters"] is None
    assert not {"serializer", "fill_value", "shards"} & set(encoding)


def test_provenance_is_the_only_attribute_that_is_added() -> None:
    packed = cube(nodata=0, units="1").tec.compress(model="elic", compression=20)
    assert set(packed.attrs) == {"nodata", "units", "xtec"}
    provenance = json.loads(packed.attrs["xtec"])
    config = packed.encoding["serializer"].config
    assert provenance == {
        "version": xtec.__version__,
        "model": "elic",
        "compression": 20.0,
        "weights": "builtin",
        "weights_sha256": config.weights_sha256,
        "format": 1,
    }


def test_input_is_left_alone() -> None:
    ds = band_variables().chunk(time=1)
    ds.B02.encoding = {"chunks": (1, 5, 5), "compressor": "stale"}
    ds.time.encoding = {"units": "days since 2000-01-01", "chunks": (1,)}
    before = pickle.dumps([(v.attrs, v.encoding) for v in ds.variables.values()])
    with pytest.warns(UserWarning, match="time 1 -> 2"):
        ds.tec.compress(model="elic")
    assert pickle.dumps([(v.attrs, v.encoding) for v in ds.variables.values()]) == before
    assert "xtec" not in ds.B02.attrs


def test_nothing_is_computed() -> None:
    def fail(block: np.ndarray) -> np.ndarray:
        raise RuntimeError("pixels were computed")

    pixels = dask.array.zeros((2, 3, 20, 24), "uint16", chunks=(2, 1, 20, 24))
    data = cube().copy(data=pixels.map_blocks(fail, dtype="uint16", meta=np.empty(0, "uint16")))
    packed = data.tec.compress(model="elic")
    assert packed.chunks == ((2,), (3,), (20,), (24,)), "the band axis becomes one block"
    with pytest.raises(RuntimeError, match="computed"):
        packed.compute()


def test_stale_encodings_go_and_meaning_stays() -> None:
    ds = band_variables()
    storage = {"chunks": (1, 5, 5), "compressors": ("x",), "zlib": True, "shards": (2, 5, 5)}
    ds.SCL.encoding = {**storage, "preferred_chunks": {}, "grid_mapping": "spatial_ref"}
    for name in BANDS:
        ds[name].encoding = {**storage, "dtype": np.dtype("uint16"), "source": "a.nc"}
    ds.time.encoding = {**storage, "units": "days since 2000-01-01", "calendar": "julian"}
    packed = ds.tec.compress(model="elic", chunks={"y": 8})
    kept = {"grid_mapping": "spatial_ref", "chunks": (2, 8, 24), "write_empty_chunks": True}
    assert packed.SCL.encoding == {**kept, "compressors": (ZstdCodec(level=0, checksum=True),)}
    assert packed.time.encoding == {"units": "days since 2000-01-01", "calendar": "julian"}
    assert packed.reflectance.encoding["dtype"] == "uint16"
    assert not {"zlib", "source", "preferred_chunks"} & set(packed.reflectance.encoding)


# chunks


def test_chunks() -> None:
    data = cube(time=5)
    assert data.tec.compress(model="elic").encoding["chunks"] == (4, 3, 20, 24)
    for chunks in ({"time": 1, "y": 8}, {"time": 1, "y": 8, "x": -1}, {"x": 99, "y": 8, "time": 1}):
        assert data.tec.compress(model="elic", chunks=chunks).encoding["chunks"] == (1, 3, 8, 24)
    renamed = data.rename(y="lat", x="lon")
    for chunks in ({"lat": 8}, {"y": 8}):
        assert renamed.tec.compress(model="fp", chunks=chunks).encoding["chunks"] == (4, 3, 8, 24)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunks": {"z": 4}}, r"chunks names a dimension 'z'.*'time'"),
        ({"chunks": {"y": 0}}, r"chunks of 'y' must be a positive whole number.*got 0"),
        ({"chunks": {"y": 2.5}}, r"got 2.5"),
        ({"chunks": 512}, r"chunks takes a mapping.*got 512"),
        ({"chunks": {"band": 1}}, r"chunks of 1 bands.*a chunk holds all bands"),
        ({"shards": {"y": 12}, "chunks": {"y": 8}}, r"shards of 'y' are 12.*chunks \(8\): pass 8"),
        ({"shards": {"y": 8}, "zarr_format": 2}, r"format 3 only"),
        ({"zarr_format": 4}, r"zarr_format must be 3 or 2, got 4"),
    ],
)
def test_chunks_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cube().tec.compress(model="elic", **options)


def test_shards() -> None:
    data = cube(time=5)
    packed = data.tec.compress(model="elic", chunks={"time": 2, "y": 8, "x": 8}, shards={"y": 16})
    assert packed.encoding["shards"] == (2, 3, 16, 8)
    assert packed.chunks == ((2, 2, 1), (3,), (16, 4), (8, 8, 8)), "blocks are whole shards"
    packed = data.tec.compress(model="elic", chunks={"y": 8}, shards={"y": -1, "time": 8})
    assert packed.encoding["shards"] == (8, 3, 24, 24)


def test_dask_blocks_that_fit_stay() -> None:
    data = cube(time=8).chunk(time=4, band=1, y=16, x=24)
    packed = data.tec.compress(model="elic", chunks={"time": 2, "y": 8})
    assert packed.chunks == ((4, 4), (3,), (16, 4), (24,))


def test_rechunking_is_told() -> None:
    data = cube(time=8).chunk(time=3, y=10)
    with pytest.warns(UserWarning, match=r"time 3 -> 2, y 10 -> 8") as record:
        packed = data.tec.compress(model="elic", chunks={"time": 2, "y": 8})
    assert record[0].filename == __file__, "the caller's line"
    assert packed.chunks == ((2,) * 4, (3,), (8, 8, 4), (24,))


# models and weights


@pytest.fixture
def any_weights(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """No checkpoint is looked for; what would have been is kept."""
    asked: list[dict[str, Any]] = []

    def sha256(model: str, **settings: Any) -> str:
        asked.append({"model": model, **settings})
        return "0" * 64

    monkeypatch.setattr("tec.weights.sha256", sha256)
    return asked


def test_flex_has_a_quality_and_says_so(any_weights: list[dict[str, Any]]) -> None:
    packed = cube().tec.compress(
        model="flex", quality=[16, 4], forecast="sample", weights="terracodec:lronly"
    )
    config = packed.encoding["serializer"].config
    assert (config.model, config.quality, config.forecast) == ("flex", (16, 4), "sample")
    provenance = json.loads(packed.attrs["xtec"])
    assert provenance["quality"] == [16, 4]
    assert provenance["forecast"] == "sample"
    assert provenance["weights"] == "terracodec:lronly"
    (asked,) = any_weights
    assert (asked["model"], asked["weights"]) == ("flex", "terracodec:lronly")
    assert asked["download"], "who compresses with published weights has allowed their download"
    packed = cube().tec.compress(model="flex", weights="terracodec", zarr_format=2)
    assert packed.encoding["compressors"][0].config.quality == (16,)


def test_the_default_model_is_tt(any_weights: list[dict[str, Any]]) -> None:
    packed = cube().tec.compress(compression="lambda-0.5")
    config = packed.encoding["serializer"].config
    assert (config.model, config.compression, config.quality) == ("tt", 0.5, None)
    assert [(a["model"], a["weights"]) for a in any_weights] == [("tt", "builtin")]
    assert not {"quality", "forecast"} & set(json.loads(packed.attrs["xtec"]))


def test_flex_has_built_in_weights_for_one_sensor() -> None:
    packed = cube().tec.compress(model="flex", quality=4)
    assert packed.encoding["serializer"].config.quality == (4,)
    with pytest.raises(WeightsError, match=r"no built-in .*'flex'.*weights='terracodec'"):
        cube().tec.compress(model="flex", sensor="S2L1C")


def test_settings_that_are_wrong() -> None:
    with pytest.raises(TecError, match=r"unknown model 'jpeg'.*elic"):
        cube().tec.compress(model="jpeg")
    with pytest.raises(TecError, match=r"compression is 5000.*0.4 and 700"):
        cube().tec.compress(model="elic", compression=5000)
    with pytest.raises(TecError, match=r"quality is 4, .*'elic': only model='flex'"):
        cube().tec.compress(model="elic", quality=4)
    with pytest.raises(TecError, match=r"forecast is 'sample'.*'tt'"):
        cube().tec.compress(forecast="sample")
    with pytest.raises(WeightsError, match=r"no checkpoint at 'nowhere.pt'"):
        cube().tec.compress(model="elic", weights="nowhere.pt")


def test_weights_of_a_file(
    tiny_elic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_elic.parent)
    packed = cube().tec.compress(model="elic", weights=tiny_elic.name)
    assert packed.encoding["serializer"].config.weights == str(tiny_elic)
    packed.to_zarr(tmp_path / "a.zarr")
    monkeypatch.chdir(tmp_path)
    back = xr.open_zarr("a.zarr").s2.load()
    np.testing.assert_array_equal(back == 0, cube() == 0)


def test_published_weights_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match=r"cannot get .*TerraCodec_v1_ELIC.*weights="):
        cube().tec.compress(model="elic", compression=10, weights="terracodec")
