"""Band names as people write them."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from tec import TecError
from tec.sensors import SENSORS, canonical_band, canonical_bands, guess_sensor


def words(text: str, between: str = " ") -> list[str]:
    return text.split(between)


L2A = words("B01 B02 B03 B04 B05 B06 B07 B08 B8A B09 B11 B12")
L1C = words("B01 B02 B03 B04 B05 B06 B07 B08 B8A B09 B10 B11 B12")


def test_statistics_are_those_of_ssl4eo() -> None:
    l2a, l1c = SENSORS["S2L2A"], SENSORS["S2L1C"]
    assert list(l2a.bands) == L2A
    assert list(l1c.bands) == L1C
    for sensor in (l2a, l1c):
        columns = (sensor.mean, sensor.std, sensor.wavelength, sensor.gsd)
        assert {len(column) for column in columns} == {len(sensor.bands)}
        assert list(sensor.wavelength) == sorted(sensor.wavelength)
        assert min(sensor.std) > 0
    assert l2a.mean[:3] == (793.243, 924.863, 1184.553)
    assert l2a.std[-2:] == (1471.002, 1365.307)
    assert l1c.mean[L1C.index("B10")] == 21.753
    assert l1c.std[L1C.index("B10")] == 45.626
    assert l1c.std[-1] == 1145.036
    assert [b for b, m in zip(l2a.bands, l2a.gsd) if m == 10] == ["B02", "B03", "B04", "B08"]


VOCABULARIES = {
    "own": L1C,
    "Earth Engine": words("B1 B2 B3 B4 B5 B6 B7 B8 B8A B9 B10 B11 B12"),
    "EOPF": [b.lower() for b in L1C],
    "Earth Search": words(
        "coastal blue green red rededge1 rededge2 rededge3 nir nir08 nir09 cirrus swir16 swir22"
    ),
    "STAC eo 2": words(
        "coastal blue green red rededge071 rededge075 rededge078 nir nir08 nir09 cirrus "
        "swir16 swir22"
    ),
    "Digital Earth Africa": words(
        "coastal_aerosol blue green red red_edge_1 red_edge_2 red_edge_3 nir_1 "
        "nir_2 B09 B10 swir_1 swir_2"
    ),
    "band numbers": words(
        "band_01 band_02 band_03 band_04 band_05 band_06 band_07 band_08 band_8a "
        "band_09 band_10 band_11 band_12"
    ),
    "SAFE": [f"T32TQM_20220612T103031_{b}_20m" for b in L1C],
    "spelled out": words(
        "Coastal Aerosol|Blue|Green|Red|Red Edge 1|Red-Edge 2|red_edge 3|NIR|NIR narrow|B09|Cirrus|"
        "SWIR 1|SWIR 2",
        "|",
    ),
}


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_vocabularies(vocabulary: str) -> None:
    assert list(canonical_bands(VOCABULARIES[vocabulary], sensor="S2L1C")) == L1C


@pytest.mark.parametrize(
    ("name", "band"),
    [
        ("B08A", "B8A"),
        ("b8a", "B8A"),
        ("8A", "B8A"),
        (" B2 ", "B02"),
        ("B02_10m", "B02"),
        ("B8A_20m", "B8A"),
        ("B02.jp2", "B02"),
        ("blue-jp2", "B02"),
        ("FRE_B8A", "B8A"),
        ("reflectance_B11", "B11"),
        ("B11_reflectance", "B11"),
        ("nbart_swir_2", "B11"),
        ("nbart_swir_3", "B12"),
        ("nbart_red_edge_2", "B06"),
        ("measurements/reflectance/r10m/b02", "B02"),
        ("B4, central wavelength 665 nm", "B04"),
        (b"B03", "B03"),
        (np.str_("B12"), "B12"),
    ],
)
def test_other_spellings(name: object, band: str) -> None:
    assert canonical_band(name) == band


@pytest.mark.parametrize(
    "name",
    ["B00", "B13", "B0", "r", "rededge", "swir", "SR_B2", "nir8", "SCL", "2", "", "B1_0", 3, None],
)
def test_what_is_not_clear_is_not_guessed(name: object) -> None:
    assert canonical_band(name) is None


def test_order_and_subset_stay() -> None:
    assert canonical_bands(["swir16", "B2", "red"]) == ("B11", "B02", "B04")
    assert canonical_bands(np.array(["B08", "B04"])) == ("B08", "B04")


def test_mapping_goes_from_their_name_to_ours() -> None:
    names = ["SR_B2", "SR_B4", "nir"]
    assert canonical_bands(names, mapping={"SR_B2": "B02", "SR_B4": "red"}) == (
        "B02",
        "B04",
        "B08",
    )
    assert canonical_bands(np.array([2, 3]), mapping={2: "B02", 3: "B03"}) == ("B02", "B03")
    # a mapping wins over what a name usually means, and may name bands that are not there
    assert canonical_bands(["red"], mapping={"red": "B05", "blue": "B02"}) == ("B05",)
    with pytest.raises(TecError, match=r"'SR_B2'.*from their name to ours"):
        canonical_bands(["SR_B2"], mapping={"B02": "SR_B2"})


@pytest.mark.parametrize(
    ("names", "sensor", "parts"),
    [
        (["B02", "SR_B3", "x"], "S2L2A", ["'SR_B3' is unknown (did you mean B03?)", "'x' is un"]),
        (["SR_B3"], "S2L2A", ["bands=['B02', ...]", "bands={'SR_B3': 'B03', ...}"]),
        (["blu"], "S2L2A", ["did you mean B02"]),
        (["rededge", "B02"], "S2L2A", ["'rededge' may be B05, B06 or B07"]),
        (["SCL", "B02"], "S2L2A", ["'SCL' is not a reflectance band: leave it out"]),
        ([1, 2, 3], "S2L2A", ["a number (1, 2, 3)", "bands=['B02', ...]"]),
        (["1", "2"], "S2L2A", ["a number ('1', '2')"]),
        (np.arange(1, 13), "S2L2A", ["a number"]),
        ([1.5], "S2L2A", ["a number (1.5)"]),
        ([None, ("a", 1)], "S2L2A", ["None is unknown", "('a', 1) is unknown"]),
        (["B02", "B10"], "S2L2A", ["S2L2A has no band B10", "sensor='S2L1C'"]),
        (["B02", "blue"], "S2L2A", ["'B02' and 'blue' both mean band B02"]),
        ("B02", "S2L2A", ["one name", "['B02']"]),
        ([], "S2L2A", ["no bands"]),
        (["B02"], "S2L3", ["unknown sensor 'S2L3'", "'S2L2A'"]),
    ],
)  # fmt: skip
def test_errors_name_the_value_and_the_remedy(names: list, sensor: str, parts: list[str]) -> None:
    with pytest.raises(TecError) as error:
        canonical_bands(names, sensor=sensor)
    for part in parts:
        assert part in str(error.value)


def test_guess_sensor() -> None:
    assert guess_sensor(["B02", "B10"]) == "S2L1C"
    assert guess_sensor(["blue", "cirrus"]) == "S2L1C"
    assert guess_sensor(["B02", "B11"]) == "S2L2A"
    assert guess_sensor([10, "x"]) == "S2L2A"
    assert guess_sensor(["x"], {"x": "B10"}) == "S2L1C"


def test_nearest_band_in_wavelength() -> None:
    sensor = SENSORS["S2L2A"]
    assert sensor.nearest(sensor.bands) == tuple(range(12))
    assert sensor.nearest(["B08"]) == (0,) * 12
    nearest = dict(zip(sensor.bands, sensor.nearest(["B11", "B04", "B02"])))
    assert nearest == {
        "B01": 2, "B02": 2, "B03": 2, "B04": 1, "B05": 1, "B06": 1, "B07": 1, "B08": 1, "B8A": 1,
        "B09": 1, "B11": 0, "B12": 0,
    }  # fmt: skip


def test_reading_metadata_loads_nothing_heavy() -> None:
    code = (
        "import sys, tec.sensors, tec.config, tec.samples;"
        "print([m for m in ('torch', 'numba', 'xarray', 'zarr', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
