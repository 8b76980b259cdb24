"""What one codec is set to: small, frozen, and the same in JSON. Light: imports nothing heavy."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any

from .errors import TecError
from .sensors import get_sensor

MODELS = ("elic", "fp", "tt", "flex", "none")
#: when a chunk with a bound on its error has a lossy picture under the residual
LOSSY = ("always", "auto")
#: ``weights`` that are no path
WEIGHTS = ("builtin", "terracodec", "terracodec:lronly")
#: what ``flex`` puts in place of the tokens that it does not send
FORECASTS = ("mean", "sample")
#: tokens of a block of ``flex``: the highest quality
TOKENS = 16
#: of ``compression`` with built-in weights, which cover the range continuously
COMPRESSION_RANGE = (0.4, 700.0)
#: with any other weights: wide enough for every checkpoint, narrow enough to catch a slip
_WIDEST_RANGE = (0.01, 10000.0)
#: JSON has no such numbers; the words are those of Zarr format 3
_WORDS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


@dataclass(frozen=True, eq=False)
class CodecConfig:
    """Settings of a codec: all that a stream's reader has to know, and nothing else.

    DN = value / scale, and reflectance x 10000 = DN - offset.

    Parameters
    ----------
    model : "elic", "fp", "tt", "flex"; or "none", with `max_error`: no network, no weights
    compression : lambda of the models; low means smaller. 0.4 to 700 with built-in weights. In a
        checkpoint's name, such as "lambda-20", the number counts.
    weights : "builtin", "terracodec", "terracodec:lronly" (of model "flex") or the path of a file
    weights_sha256 : 64 hexadecimal digits, or None while not known
    sensor : "S2L2A" or "S2L1C"
    bands : canonical names in the order of the chunk; None for all bands of the sensor
    nodata : the value that marks missing pixels, in stored units (may be NaN for floats), or None
    offset : what DN carry on top of reflectance x 10000 (1000 from baseline 04.00 on)
    scale : what one DN is worth in stored units (1e-4 for float reflectance from 0 to 1)
    quality : only of model "flex" (16 there when left out): tokens that are sent, 0 to 16, for the
        whole chunk or date by date. The last value holds for all dates that follow.
    forecast : only of model "flex": what stands in for tokens that are not sent, the "mean" of the
        model's prediction or a "sample" of it
    max_error : how far a decoded pixel may lie from the original, in DN: a number for all bands, or
        one for each; 0 is lossless (integers only). None: no bound
    lossy : with `max_error`: whether each chunk has a lossy picture of the model under its
        residual ("always"), or where that makes it smaller ("auto")
    format : version of the byte layout

    Raises
    ------
    TecError
        A value has the wrong type or lies out of range.
    """

    model: str = "elic"
    compression: float = 20.0
    weights: str = "builtin"
    weights_sha256: str | None = None
    sensor: str = "S2L2A"
    bands: tuple[str, ...] = None  # type: ignore[assignment]  # a tuple once validated
    nodata: int | float | None = None
    offset: float = 0.0
    scale: float = 1.0
    quality: tuple[int, ...] | None = None  # a tuple once validated
    forecast: str = "mean"
    max_error: tuple[float, ...] | None = None  # a tuple once validated
    lossy: str = "always"
    format: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.format, bool) or self.format != 1:
            raise TecError(
                f"format {self.format!r} is not known here (this xtec knows format 1): "
                "was it written by a newer xtec? Upgrade with 'pip install -U xtec'"
            )
        if self.model not in MODELS:
            raise TecError(f"unknown model {self.model!r}: choose one of {', '.join(MODELS)}")
        weights = os.fspath(self.weights) if isinstance(self.weights, os.PathLike) else self.weights
        if not isinstance(weights, str) or not weights:
            raise TecError(
                f"weights is {weights!r}: use 'builtin', 'terracodec' or the path of a file"
            )
        if weights == "terracodec:lronly" and self.model != "flex":
            raise TecError(
                f"weights {weights!r} are of model 'flex', not {self.model!r}: pass model='flex', "
                "or weights='terracodec'"
            )
        if self.weights_sha256 is not None and not (
            isinstance(self.weights_sha256, str)
            and re.fullmatch("[0-9a-f]{64}", self.weights_sha256)
        ):
            raise TecError(
                f"weights_sha256 is {self.weights_sha256!r}: it must be 64 hexadecimal digits "
                "in lower case, or None"
            )
        lowest, highest = COMPRESSION_RANGE if weights == "builtin" else _WIDEST_RANGE
        self._set(
            format=1,
            weights=weights,
            compression=_number("compression", _lambda(self.compression), lowest, highest),
            offset=_number("offset", self.offset, -1e5, 1e5, "in DN, 1000 for baseline 04.00"),
            scale=_number("scale", self.scale, 1e-9, 1e9, "stored units per DN"),
            nodata=_nodata(self.nodata),
            bands=_bands(self.bands, self.sensor),
            quality=_quality(self.quality, self.model),
        )
        self._set(max_error=_bounds(self.max_error, self.bands))
        if self.lossy not in LOSSY:
            raise TecError(f"lossy is {self.lossy!r}: choose {' or '.join(LOSSY)}")
        if self.max_error is None and (self.model == "none" or self.lossy != "always"):
            raise TecError(
                f"model {self.model!r} with lossy={self.lossy!r} needs max_error, in DN: 0 is "
                "lossless"
            )
        if self.forecast not in FORECASTS:
            raise TecError(f"forecast is {self.forecast!r}: choose {' or '.join(FORECASTS)}")
        if self.forecast != "mean" and self.model != "flex":
            raise TecError(
                f"forecast is {self.forecast!r}, but model is {self.model!r}: only model='flex' "
                "forecasts; leave it out"
            )

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)  # the way to set a field of a frozen dataclass

    def tokens(self, dates: int) -> tuple[int, ...]:
        """The quality of each of so many dates; empty where the model is not "flex"."""
        quality = self.quality or ()
        return (quality + quality[-1:] * dates)[:dates]

    def to_dict(self) -> dict[str, Any]:
        """A new dict of JSON values (a nodata that is not finite is a word: "NaN").

        ``quality`` and ``forecast`` are in it where the model is "flex", ``max_error`` and
        ``lossy`` where there is a bound.
        """
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        if self.quality is None:
            del values["quality"], values["forecast"]
        else:
            values["quality"] = list(self.quality)
        if self.max_error is None:
            del values["max_error"], values["lossy"]
        else:
            values["max_error"] = list(self.max_error)
        values["bands"] = list(self.bands)
        if isinstance(self.nodata, float) and not math.isfinite(self.nodata):
            values["nodata"] = {"nan": "NaN", "inf": "Infinity"}.get(str(self.nodata), "-Infinity")
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CodecConfig:
        """The inverse of :meth:`to_dict`. Keys left out have the defaults of format 1.

        Raises
        ------
        TecError
            A key is unknown, or a value is not valid.
        """
        if not isinstance(values, Mapping):
            raise TecError(
                f"the configuration is a {type(values).__name__}: it must be a dict such as "
                "{'model': 'elic', 'compression': 20}"
            )
        values = dict(values)
        known = [f.name for f in fields(cls)]
        unknown = [key for key in values if key not in known]
        if unknown:
            raise TecError(
                f"unknown settings {', '.join(map(repr, unknown))} (known: {', '.join(known)}): "
                "written by a newer xtec? Upgrade with 'pip install -U xtec'"
            )
        nodata = values.get("nodata")
        if isinstance(nodata, str):
            if nodata not in _WORDS:
                raise TecError(
                    f"nodata is {nodata!r}: as a word only {', '.join(_WORDS)} are known"
                )
            values["nodata"] = _WORDS[nodata]
        return cls(**values)

    # NaN differs from itself, so the dataclass's own comparison and hash will not do.
    def _identity(self) -> tuple[Any, ...]:
        return tuple(tuple(v) if isinstance(v, list) else v for v in self.to_dict().values())

    def __eq__(self, other: object) -> bool:
        return self._identity() == other._identity() if isinstance(other, CodecConfig) else (
            NotImplemented
        )  # fmt: skip

    def __hash__(self) -> int:
        return hash(self._identity())


def _number(name: str, value: Any, lowest: float, highest: float, unit: str = "") -> float:
    """As a float, if it is a number within the range."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TecError(f"{name} is {value!r}: it must be a number")
    number = float(value)
    slack = 1e-6 * abs(lowest), 1e-6 * abs(highest)  # a stream keeps compression as a float32
    if not lowest - slack[0] <= number <= highest + slack[1]:  # false for NaN too
        unit = f" ({unit})" if unit else ""
        raise TecError(f"{name} is {value!r}: it must lie within {lowest:g} and {highest:g}{unit}")
    return number


def _lambda(value: Any) -> Any:
    """ "lambda-20" -> 20.0; what is no string passes."""
    if not isinstance(value, str):
        return value
    name = re.fullmatch(r"lambda-(\d+(?:\.\d+)?)", value)
    if name is None:
        raise TecError(
            f"compression is {value!r}: it must be a number, or the name of a checkpoint such as "
            "'lambda-20'"
        )
    return float(name[1])


def _quality(value: Any, model: str) -> tuple[int, ...] | None:
    if model != "flex":
        if value is not None:
            raise TecError(
                f"quality is {value!r}, but model is {model!r}: only model='flex' has a quality, "
                "the others have compression="
            )
        return None
    if value is None:
        return (TOKENS,)
    many = isinstance(value, Iterable) and not isinstance(value, str)
    values = tuple(value) if many else (value,)
    if not values or not all(
        isinstance(v, Integral) and not isinstance(v, bool) and 0 <= int(v) <= TOKENS
        for v in values
    ):
        raise TecError(
            f"quality is {value!r}: it must be a whole number from 0 to {TOKENS}, or a list with "
            "one for each date, such as [16, 4, 4]"
        )
    return tuple(int(v) for v in values)


def _bounds(value: Any, bands: tuple[str, ...]) -> tuple[float, ...] | None:
    if value is None:
        return None
    many = isinstance(value, Iterable) and not isinstance(value, (str, Mapping))
    values = tuple(value) if many else (value,) * len(bands)
    if len(values) != len(bands):
        raise TecError(
            f"max_error is {value!r}: it must be a number, or one for each of {len(bands)} bands"
        )
    return tuple(_number("max_error", v, 0.0, 65535.0, "in DN, 0 for lossless") for v in values)


def _nodata(value: Any) -> int | float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TecError(f"nodata is {value!r}: it must be a number, or None where there is none")
    return int(value) if isinstance(value, Integral) else float(value)


def _bands(bands: Any, sensor: str) -> tuple[str, ...]:
    known = get_sensor(sensor).bands
    if bands is None:
        return known
    if isinstance(bands, str) or not hasattr(bands, "__iter__"):
        raise TecError(f"bands is {bands!r}: it must be a list such as ['B02', 'B03']")
    bands = tuple(str(b) if isinstance(b, str) else b for b in bands)
    if not bands:
        raise TecError("bands is empty: name at least one, such as ['B02']")
    foreign = [b for b in bands if b not in known]
    if foreign:
        raise TecError(
            f"bands {', '.join(map(repr, foreign))} are not among those of {sensor}, "
            f"{', '.join(known)}: tec.sensors.canonical_bands turns usual names into these"
        )
    if len(set(bands)) < len(bands):
        raise TecError(f"bands {', '.join(bands)} name one band twice: each must differ")
    return bands
