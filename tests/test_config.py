"""Settings of a codec: validated, JSON and back, equal where they are the same."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tec import CodecConfig, TecError
from tec.sensors import SENSORS


@st.composite
def configs(draw: st.DrawFn) -> CodecConfig:
    sensor = draw(st.sampled_from(sorted(SENSORS)))
    bands = draw(st.permutations(SENSORS[sensor].bands))
    nodata = st.none() | st.integers(-40000, 70000) | st.floats(width=32)
    model = draw(st.sampled_from(["elic", "fp", "tt", "flex"]))
    weights = ["builtin", "terracodec", "some/where.pt"]
    quality, forecast = None, "mean"
    if model == "flex":
        weights.append("terracodec:lronly")
        qualities = st.integers(0, 16)
        quality = draw(st.none() | qualities | st.lists(qualities, min_size=1, max_size=5))
        forecast = draw(st.sampled_from(["mean", "sample"]))
    return CodecConfig(
        model=model,
        compression=draw(st.floats(0.4, 700)),
        quality=quality,  # type: ignore[arg-type]
        forecast=forecast,
        weights=draw(st.sampled_from(weights)),
        weights_sha256=draw(st.none() | st.just("0123456789abcdef" * 4)),
        sensor=sensor,
        bands=tuple(bands[: draw(st.integers(1, len(bands)))]),
        nodata=draw(nodata),
        offset=draw(st.floats(-2000, 2000)),
        scale=draw(st.floats(1e-5, 10)),
    )


@given(configs())
def test_json_pickle_and_back(config: CodecConfig) -> None:
    text = json.dumps(config.to_dict(), allow_nan=False)
    assert CodecConfig.from_dict(json.loads(text)) == config
    copy = pickle.loads(pickle.dumps(config))
    assert copy == config
    assert hash(copy) == hash(config)


def test_defaults() -> None:
    config = CodecConfig()
    assert config.bands == SENSORS["S2L2A"].bands
    assert config == CodecConfig.from_dict({}) == CodecConfig.from_dict(config.to_dict())
    assert CodecConfig(sensor="S2L1C").bands == SENSORS["S2L1C"].bands
    with pytest.raises(AttributeError):
        config.model = "fp"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("nodata", "word"), [(math.nan, "NaN"), (math.inf, "Infinity"), (-math.inf, "-Infinity")]
)
def test_nodata_that_json_does_not_have(nodata: float, word: str) -> None:
    one, other = CodecConfig(nodata=nodata), CodecConfig(nodata=float(str(nodata)))
    assert one.to_dict()["nodata"] == word
    assert one == other
    assert hash(one) == hash(other)
    assert one == CodecConfig.from_dict(one.to_dict()) == pickle.loads(pickle.dumps(one))
    assert one != CodecConfig(nodata=0)
    assert one != CodecConfig(nodata=None)
    assert one != "something else"


def test_values_of_other_types_become_plain_ones() -> None:
    config = CodecConfig(
        compression=np.float32(2),
        bands=np.array(["B04", "B02"]),  # type: ignore[arg-type]
        nodata=np.uint16(7),
        offset=1000,
        weights=Path("a") / "b.pt",  # type: ignore[arg-type]
    )
    assert type(config.compression) is float
    assert type(config.nodata) is int
    assert type(config.offset) is float
    assert config.bands == ("B04", "B02")
    assert {type(band) for band in config.bands} == {str}
    assert config.weights == str(Path("a") / "b.pt")
    json.dumps(config.to_dict())
    assert CodecConfig(nodata=np.float32(-9999)).nodata == -9999.0


@pytest.mark.parametrize(
    ("quality", "stored", "dates", "tokens"),
    [
        (None, (16,), 2, (16, 16)),
        (0, (0,), 3, (0, 0, 0)),
        ([16, 4], (16, 4), 4, (16, 4, 4, 4)),
        ([16, 4, 0, 7], (16, 4, 0, 7), 2, (16, 4)),  # an edge chunk holds fewer dates
        (np.array([3, 2], np.uint8), (3, 2), 1, (3,)),
        (np.int64(9), (9,), 0, ()),
    ],
)
def test_quality_of_flex(quality: object, stored: tuple, dates: int, tokens: tuple) -> None:
    config = CodecConfig(model="flex", quality=quality)  # type: ignore[arg-type]
    assert config.quality == stored
    assert {type(q) for q in config.quality} == {int}
    assert config.tokens(dates) == tokens
    assert config.to_dict()["quality"] == list(stored)
    assert config.to_dict()["forecast"] == "mean"
    assert config != CodecConfig(model="flex", quality=(5, 5))
    assert config != CodecConfig(model="flex", quality=stored, forecast="sample")


def test_only_flex_has_a_quality() -> None:
    for model in ("elic", "fp", "tt"):
        config = CodecConfig(model=model)
        assert config.quality is None
        assert config.tokens(3) == ()
        assert not {"quality", "forecast"} & set(config.to_dict())


def test_compression_by_the_name_of_a_checkpoint() -> None:
    for name, value in (("lambda-20", 20.0), ("lambda-0.5", 0.5), ("lambda-700", 700.0)):
        assert CodecConfig(compression=name).compression == value  # type: ignore[arg-type]


def test_compression_survives_the_float32_of_a_stream() -> None:
    for model, weights, value in [
        ("fp", "builtin", 0.4),
        ("fp", "builtin", 700),
        ("fp", "x", 0.01),
    ]:
        config = CodecConfig(model=model, weights=weights, compression=value)
        assert CodecConfig(
            model=model, weights=weights, compression=float(np.float32(config.compression))
        )


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"model": "jpeg"}, ["'jpeg'", "elic"]),
        ({"model": ["elic"]}, ["unknown model"]),
        ({"compression": 0.3}, ["0.3", "0.4", "700"]),
        ({"compression": 701}, ["701"]),
        ({"compression": 701, "weights": "terracodec", "nodata": "x"}, ["nodata"]),
        ({"compression": 20000, "weights": "terracodec"}, ["20000", "10000"]),
        ({"compression": math.nan}, ["nan"]),
        ({"compression": "20"}, ["'20'", "number", "'lambda-20'"]),
        ({"compression": "lambda-"}, ["'lambda-'", "'lambda-20'"]),
        ({"compression": "lambda-1e2"}, ["'lambda-1e2'", "'lambda-20'"]),
        ({"compression": "lambda-701"}, ["701", "700"]),
        ({"compression": True}, ["True"]),
        ({"compression": None}, ["None"]),
        ({"weights": ""}, ["''", "builtin"]),
        ({"weights": 3}, ["3", "builtin"]),
        ({"weights": "terracodec:lronly", "model": "tt"}, ["'tt'", "model='flex'"]),
        ({"quality": 4, "model": "tt"}, ["quality is 4", "'tt'", "model='flex'", "compression="]),
        ({"quality": 17, "model": "flex"}, ["17", "0 to 16", "[16, 4, 4]"]),
        ({"quality": -1, "model": "flex"}, ["-1", "0 to 16"]),
        ({"quality": [16, 4.5], "model": "flex"}, ["4.5", "whole"]),
        ({"quality": [], "model": "flex"}, ["[]", "0 to 16"]),
        ({"quality": "16", "model": "flex"}, ["'16'", "0 to 16"]),
        ({"quality": True, "model": "flex"}, ["True", "0 to 16"]),
        ({"forecast": "median", "model": "flex"}, ["'median'", "mean or sample"]),
        ({"forecast": "sample", "model": "tt"}, ["'sample'", "'tt'", "model='flex'"]),
        ({"weights_sha256": "abc"}, ["'abc'", "64"]),
        ({"sensor": "S3"}, ["'S3'", "S2L2A"]),
        ({"bands": []}, ["empty"]),
        ({"bands": "B02"}, ["'B02'", "list"]),
        ({"bands": 3}, ["3", "list"]),
        ({"bands": ["blue"]}, ["'blue'", "canonical_bands"]),
        ({"bands": ["B10"]}, ["'B10'", "S2L2A"]),
        ({"bands": [2, None]}, ["2", "None"]),
        ({"bands": ["B02", "B02"]}, ["twice"]),
        ({"nodata": "none"}, ["'none'"]),
        ({"nodata": True}, ["True"]),
        ({"nodata": 1j}, ["1j"]),
        ({"offset": math.inf}, ["inf", "DN"]),
        ({"offset": None}, ["None"]),
        ({"scale": 0}, ["scale is 0"]),
        ({"scale": -1}, ["-1"]),
        ({"scale": math.nan}, ["nan"]),
        ({"format": 2}, ["format 2", "newer xtec"]),
        ({"format": True}, ["format True"]),
        ({"format": None}, ["format None"]),
        ({"level": 3, "speed": 1}, ["'level', 'speed'", "newer xtec", "compression"]),
    ],
)
def test_errors_name_the_value_and_the_remedy(values: dict, parts: list[str]) -> None:
    with pytest.raises(TecError) as error:
        CodecConfig.from_dict(values)
    for part in parts:
        assert part in str(error.value)


def test_a_configuration_must_be_a_dict() -> None:
    with pytest.raises(TecError, match="list"):
        CodecConfig.from_dict(["elic"])  # type: ignore[arg-type]
