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
    return CodecConfig(
        model=draw(st.sampled_from(["elic", "fp", "tt", "flex"])),
        compression=draw(st.floats(0.4, 700)),
        weights=draw(st.sampled_from(["builtin", "terracodec", "some/where.pt"])),
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
        ({"compression": "20"}, ["'20'", "number"]),
        ({"compression": True}, ["True"]),
        ({"compression": None}, ["None"]),
        ({"weights": ""}, ["''", "builtin"]),
        ({"weights": 3}, ["3", "builtin"]),
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
