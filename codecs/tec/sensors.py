"""Sentinel-2 as the models know it: bands, their order, statistics, and the many names they go by.

Light on purpose: opening a store's metadata imports this module, and nothing heavy with it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Number

from .errors import TecError


@dataclass(frozen=True)
class Sensor:
    """One product level of the Sentinel-2 multispectral instrument.

    Attributes
    ----------
    name : "S2L2A" or "S2L1C"
    bands : canonical names, in the order in which the models take them
    mean, std : statistics of DN = reflectance x 10000 (SSL4EO-S12 v1.1), one a band
    wavelength : centre of each band in nm (Sentinel-2A)
    gsd : native pixel size of each band in m
    """

    name: str
    bands: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    wavelength: tuple[float, ...]
    gsd: tuple[int, ...]

    def nearest(self, bands: Sequence[str]) -> tuple[int, ...]:
        """For each band of the sensor, the position in ``bands`` of itself or of the nearest one.

        Nearest in wavelength; of two that are equally near, the shorter wave.
        """
        where = dict(zip(self.bands, self.wavelength, strict=True))
        return tuple(
            min(
                range(len(bands)),
                key=lambda i: (bands[i] != own, abs(where[bands[i]] - nm), where[bands[i]]),
            )
            for own, nm in zip(self.bands, self.wavelength, strict=True)
        )


# band: nm, m, mean and std of L2A, mean and std of L1C
_BANDS: dict[str, tuple[float, int, tuple[float, float] | None, tuple[float, float]]] = {
    "B01": (442.7, 60, (793.243, 1160.144), (1607.345, 786.523)),
    "B02": (492.4, 10, (924.863, 1201.092), (1393.068, 849.702)),
    "B03": (559.8, 10, (1184.553, 1219.943), (1320.225, 875.318)),
    "B04": (664.6, 10, (1340.936, 1397.225), (1373.963, 1143.578)),
    "B05": (704.1, 20, (1671.402, 1400.035), (1562.536, 1126.248)),
    "B06": (740.5, 20, (2240.082, 1373.136), (2110.071, 1161.98)),
    "B07": (782.8, 20, (2468.412, 1429.170), (2392.832, 1273.505)),
    "B08": (832.8, 10, (2563.243, 1485.025), (2321.154, 1246.79)),
    "B8A": (864.7, 20, (2627.704, 1447.836), (2583.77, 1342.755)),
    "B09": (945.1, 60, (2711.071, 1652.703), (838.712, 576.795)),
    "B10": (1373.5, 60, None, (21.753, 45.626)),
    "B11": (1613.7, 20, (2416.714, 1471.002), (2205.112, 1340.347)),
    "B12": (2202.4, 20, (1849.625, 1365.307), (1545.798, 1145.036)),
}


def _sensor(name: str, level: int) -> Sensor:
    rows = [(band, nm, gsd, s[level]) for band, (nm, gsd, *s) in _BANDS.items() if s[level]]
    bands, nm, gsd, statistics = zip(*rows, strict=True)
    mean, std = zip(*statistics, strict=True)
    return Sensor(name, bands, mean, std, nm, gsd)


SENSORS: dict[str, Sensor] = {"S2L2A": _sensor("S2L2A", 0), "S2L1C": _sensor("S2L1C", 1)}

# Words for bands, lower case, without separators. Numbered names (B02, b2, band_02, ...) are
# read by _NUMBERED. Left out on purpose: "rededge" and "swir" (several bands), "watervapour"
# (also a product of its own), "nir8" (B08 or nir08), single letters.
_WORDS = {
    "B01": "coastal coastalaerosol",
    "B02": "blue",
    "B03": "green",
    "B04": "red",
    "B05": "rededge1 rededge071 re1 vegetationrededge1",
    "B06": "rededge2 rededge075 re2 vegetationrededge2",
    "B07": "rededge3 rededge078 re3 vegetationrededge3",
    "B08": "nir nir1 nirbroad broadnir",
    "B8A": "nir08 nir2 nirnarrow narrownir",
    "B09": "nir09",
    "B10": "cirrus",
    # Digital Earth Australia counts SWIR as Landsat-like 2 and 3, everybody else 1 and 2
    "B11": "swir16 swir1 nbartswir2 nbarswir2",
    "B12": "swir22 swir2 nbartswir3 nbarswir3",
}
_ALIASES = {word: band for band, words in _WORDS.items() for word in words.split()}
_SEVERAL = {
    "rededge": "B05, B06 or B07",
    "swir": "B11 or B12",
    "watervapour": "band B09, or the water vapour product (leave that out)",
    "watervapor": "band B09, or the water vapour product (leave that out)",
}
_NO_BANDS = re.compile(
    "scl|aot|wvp|tci|visual|overview|thumbnail|preview|qa60|cld|snw|fmask|datamask|msk.*|cloud.*"
)
_NUMBERED = re.compile(r"(?:b|band)0*([1-9]|1[0-2])")
_PREFIX = re.compile(r"^(?:reflectance|refl|sentinel2|s2|nbart|nbar|fre|sre|toa|boa)(?=[a-z])")
_SUFFIX = re.compile(r"(?:reflectance|refl|toa|boa|jp2|(?<=[a-z\d])[126]0m)$")


def _key(name: str) -> str:
    """Lower case; no separators but those between two digits; no description behind a comma."""
    name = name.strip().lower().split(", central wavelength")[0]  # as GDAL describes bands
    name = re.sub(r"^(?:.*[/_])?r[126]0m[/_]", "", name)  # groups of EOPF products
    name = re.sub(r"^t?\d\d[a-z]{3}_\d{8}t\d{6}_", "", name)  # files of SAFE products
    name = re.sub(r"[\s_.-]([126]0m)\b", r"\1", name)
    return re.sub(r"(?<!\d)[\s_.-]+|[\s_.-]+(?!\d)", "", name)


def _look_up(key: str) -> str | None:
    if key in _ALIASES:
        return _ALIASES[key]
    if key in ("b8a", "b08a", "band8a", "band08a", "8a"):
        return "B8A"
    if found := _NUMBERED.fullmatch(key):
        return f"B{int(found[1]):02d}"
    for shorter in (_SUFFIX.sub("", key), _PREFIX.sub("", key)):
        if shorter != key:
            return _look_up(shorter)
    return None


def canonical_band(name: object) -> str | None:
    """The canonical name (``"B02"``) of a band by any usual name, or None.

    Parameters
    ----------
    name : str or bytes; anything else gives None
        B02, B2, b02, B02_10m, band_2, blue, STAC common names (``rededge071``), names of Earth
        Search, Planetary Computer, Earth Engine, Sentinel Hub, openEO, EOPF, Open Data Cube, GDAL.
    """
    if isinstance(name, bytes):
        name = name.decode("utf-8", "replace")
    return _look_up(_key(name)) if isinstance(name, str) else None


def get_sensor(name: str) -> Sensor:
    """The sensor of that name; TecError where there is none."""
    try:
        return SENSORS[name]
    except (KeyError, TypeError):
        raise TecError(
            f"unknown sensor {name!r}: choose one of {', '.join(map(repr, SENSORS))}"
        ) from None


def canonical_bands(
    names: Iterable[Hashable],
    *,
    sensor: str = "S2L2A",
    mapping: Mapping[Hashable, str] | None = None,
) -> tuple[str, ...]:
    """Band names as people write them, in the models' own names; the order stays.

    Parameters
    ----------
    names : the bands of a cube, in the order of the cube, by any usual name
    sensor : "S2L2A" or "S2L1C"
    mapping : their name -> ours (``{"SR_B2": "B02"}``), for names that are not usual

    Raises
    ------
    TecError
        A name is unknown, means several bands, is a number, is not a band of this sensor, or
        two names mean the same band.
    """
    known = get_sensor(sensor)
    if isinstance(names, (str, bytes)):
        raise TecError(f"bands is one name, {names!r}: pass a list, [{names!r}]")
    names, mapping = list(names), dict(mapping or {})
    for own, target in mapping.items():
        if canonical_band(target) is None:
            turned = " (the mapping goes from their name to ours)" if canonical_band(own) else ""
            raise TecError(
                f"bands maps {own!r} to {target!r}, which is no band{turned}: "
                f"map to one of {', '.join(known.bands)}"
            )
    found = [canonical_band(mapping.get(n, n)) for n in names]
    if None in found:
        raise TecError(_explain([n for n, f in zip(names, found, strict=True) if f is None]))
    bands = [band for band in found if band is not None]
    if not bands:
        raise TecError("no bands: pass bands=['B02', ...] or add a 'band' coordinate")
    foreign = [band for band in bands if band not in known.bands]
    if foreign:
        others = [s.name for s in SENSORS.values() if set(bands) <= set(s.bands)]
        remedy = f"use sensor={others[0]!r} or leave" if others else "leave"
        raise TecError(f"{sensor} has no band {', '.join(foreign)}: {remedy} it out")
    for i, band in enumerate(bands):
        if band in bands[:i]:
            raise TecError(
                f"{names[bands.index(band)]!r} and {names[i]!r} both mean band {band}: "
                "leave one out, or say what they are with bands={their name: ours}"
            )
    return tuple(bands)


def guess_sensor(names: Iterable[Hashable], mapping: Mapping[Hashable, str] | None = None) -> str:
    """ "S2L1C" if the cirrus band B10 is among the names, else "S2L2A"; never fails."""
    mapping = mapping or {}
    found = [canonical_band(mapping.get(n, n)) for n in names]
    return "S2L1C" if "B10" in found else "S2L2A"


def _explain(unknown: list[Hashable]) -> str:
    """Why these names are not understood, and what to do."""
    reasons, numbers, remedies = [], [], {}
    for name in unknown:
        text = name.decode("utf-8", "replace") if isinstance(name, bytes) else name
        key = _key(text) if isinstance(text, str) else ""
        near = _near(key)
        if isinstance(text, Number) or key.isdigit():
            numbers.append(repr(text))
        elif key in _SEVERAL:
            reasons.append(f"{text!r} may be {_SEVERAL[key]}")
        elif _NO_BANDS.fullmatch(key):
            reasons.append(f"{text!r} is not a reflectance band: leave it out")
            continue
        else:
            meant = f" (did you mean {' or '.join(near)}?)" if near else ""
            reasons.append(f"{text!r} is unknown{meant}")
        remedies[text] = near[0] if near else "B02"
    if numbers:
        reasons.append(f"a number ({', '.join(numbers)}) does not say which band it is")
    message = f"cannot tell which bands these are: {'; '.join(reasons)}"
    if remedies:
        text, band = next(iter(remedies.items()))
        message += (
            ". Pass names such as B02, B2 or blue in the order of the cube, bands=['B02', ...], "
            f"or say which is which, bands={{{text!r}: {band!r}, ...}}"
        )
    return message


def _near(key: str) -> list[str]:
    """Bands that a name that is not known may mean, the likeliest first."""
    if end := re.search(r"(?:b|band)0*(?:[1-9]|1[0-2]|8a)$", key):  # SR_B2
        return [_look_up(end[0]) or ""]
    vocabulary = {band.lower(): band for band in _BANDS} | _ALIASES
    words = difflib.get_close_matches(key, vocabulary, n=2, cutoff=0.6)
    return list(dict.fromkeys(vocabulary[word] for word in words))
