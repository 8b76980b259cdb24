"""The stored form of a variable: dtype, scale, offset and nodata of what the codec will see."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from .messages import warn

DTYPES = ("uint16", "int16", "float32")
#: First processing baseline whose DN carry +1000.
OFFSET_BASELINE = 4.0
_BASELINE_COORDS = (
    "s2:processing_baseline",
    "s2_processing_baseline",
    "processing:baseline",
    "processing_baseline",
)
_APPLIED_COORDS = ("earthsearch:boa_offset_applied", "boa_offset_applied")


@dataclass(frozen=True)
class Stored:
    """What lies in the store, in the terms of ``tec.config.CodecConfig``.

    With a stored value v, DN = v / scale and reflectance x 10000 = DN - offset. Where CF attributes
    pack the data,
    v is the packed integer, whatever xarray shows.

    Attributes
    ----------
    dtype : stored dtype
    scale, offset : see above
    nodata : stored value that means "no data" (NaN for floats), or None
    """

    dtype: np.dtype
    scale: float
    offset: float
    nodata: int | float | None

    @property
    def fill_value(self) -> int | float:
        """What pads edge chunks: the nodata value, 0 where there is none."""
        return 0 if self.nodata is None else self.nodata


def stored_form(
    data: xr.DataArray,
    *,
    offset: float = 0,
    scale: float | None = None,
    nodata: int | float | str | None = "auto",
) -> Stored:
    """Read off ``data`` and its encoding what will be stored.

    Parameters
    ----------
    data : the variable, as xarray shows it
    offset : what the DN carry on top of reflectance x 10000, beyond what CF attributes say (1000
        from baseline 04.00 on)
    scale : the value of one DN in the units that ``data`` shows: 1e-4 where it shows reflectance
        0..1, 1 where it shows DN
    nodata : a value, None for "there is none", or "auto" to read attributes and encoding

    Raises
    ------
    ValueError
        On a dtype that the codec does not take, floats of unknown scale, a nodata value that the
        dtype cannot hold,
        or dates of processing baselines on both sides of 04.00.
    """
    if "_Unsigned" in data.encoding:
        raise ValueError(
            f"variable {data.name!r} is packed with _Unsigned: drop that encoding first "
            "(ds.drop_encoding())"
        )
    dtype = np.dtype(data.encoding.get("dtype", data.dtype)).newbyteorder("=")
    factor, add = _cf(data, "scale_factor"), _cf(data, "add_offset")
    packed = factor is not None or add is not None
    factor, add = 1.0 if factor is None else float(factor), 0.0 if add is None else float(add)
    if dtype.name not in DTYPES:
        raise ValueError(_dtype_message(data, dtype))
    _check_number("offset", offset)
    if scale is None:
        if dtype.kind == "f" and not packed:
            raise ValueError(
                f"variable {data.name!r} is {dtype} and says nothing of its scale: pass "
                "scale=1e-4 if it holds reflectance (0 to 1), "
                "scale=1 if it holds DN (0 to 10000)"
            )
        # Packing by less than a hundredth makes reflectance of DN; anything else leaves DN.
        unit = 1e-4 if packed and abs(factor) < 0.01 else 1.0
    else:
        unit = _check_number("scale", scale)
    if not unit > 0 or not factor > 0:
        raise ValueError(f"scale must be positive, got scale={unit} and scale_factor={factor}")
    total = offset - add / unit
    _check_baselines(data, total)
    _check_declared_offset(data, total, packed)
    _check_rescaled(data, dtype)
    stored = Stored(dtype, _tidy(unit / factor), _tidy(total), _nodata(data, dtype, nodata))
    if data.dtype.kind in "iu" and _cf(data, "_FillValue") is not None:
        warn(
            f"variable {data.name!r} is {data.dtype} and has a _FillValue: xarray will read it "
            "back as floats with NaN; "
            "rename it to 'nodata' to get integers back, or open the store with "
            "mask_and_scale=False"
        )
    return stored


def _cf(data: xr.DataArray, key: str) -> Any:
    return data.encoding.get(key, data.attrs.get(key))


def _tidy(number: float) -> float:
    """0.1 / 1e-4 is 1000.0000000000001 in floats; the offset that was meant is 1000."""
    rounded = float(f"{number:.9g}")
    return rounded if math.isclose(number, rounded, rel_tol=1e-9) else number


def _check_number(name: str, value: Any) -> float:
    number = (int, float, np.integer, np.floating)
    if isinstance(value, bool) or not isinstance(value, number) or not math.isfinite(value):
        raise ValueError(f"{name} must be a number, got {value!r}")
    return float(value)


def _dtype_message(data: xr.DataArray, dtype: np.dtype) -> str:
    remedy = 'convert it with .astype("uint16")'
    if dtype.kind == "f":
        remedy = (
            'convert it with .astype("float32"), and pass scale=1e-4 if it holds reflectance (0 to '
            "1), scale=1 if it holds DN (0 to 10000)"
        )
        if type(data.attrs.get("spec")).__name__ == "RasterSpec":
            remedy += (
                "; or load DN as they are: stackstac.stack(..., rescale=False, "
                'dtype="uint16", fill_value=np.uint16(0))'
            )
    elif dtype.kind not in "iu":
        remedy = 'compress DN as "uint16" or reflectance as "float32"'
    stored = (
        ""
        if dtype == data.dtype
        else f" (stored; it shows as {data.dtype}: .drop_encoding() if that is stale)"
    )
    return (
        f"variable {data.name!r} is {dtype}{stored}, the codec takes {', '.join(DTYPES)}: {remedy}"
    )


def _nodata(
    data: xr.DataArray, dtype: np.dtype, nodata: int | float | str | None
) -> int | float | None:
    if nodata is None:
        return None
    if isinstance(nodata, str) and nodata != "auto":
        raise ValueError(f"nodata must be a number, None or 'auto', got {nodata!r}")
    if nodata != "auto":
        value = _as_stored(nodata, dtype)
        if value is None:
            raise ValueError(
                f"nodata={nodata!r} is no value of {dtype}, in which {data.name!r} is stored: "
                "pass one that is, or None"
            )
        declared = _cf(data, "_FillValue")
        if declared is not None and not _equal(_as_stored(declared, dtype), value):
            raise ValueError(
                f"nodata={nodata!r}, but {data.name!r} has _FillValue={declared!r}: make them "
                "equal, or leave nodata='auto'"
            )
        return value
    value = declared_nodata(data, dtype)
    if value is not None:
        return value
    # Nobody says: NaN is never a measurement, and 0 is Sentinel-2's own nodata.
    return math.nan if dtype.kind == "f" else 0


def declared_nodata(data: xr.DataArray, dtype: np.dtype) -> int | float | None:
    """What encoding and attributes say, as a number of ``dtype``; None where they say nothing."""
    for source, keys in (
        (data.encoding, ("_FillValue", "missing_value")),
        (data.attrs, ("_FillValue", "missing_value", "nodata", "nodatavals", "no_data")),
        (data.encoding, ("nodata", "rasterio_nodata", "fill_value")),
    ):
        for key in keys:
            value = _as_stored(source.get(key), dtype)
            if value is not None:
                return value
    return None


def _as_stored(value: Any, dtype: np.dtype) -> int | float | None:
    """``value`` as a number of ``dtype``, or None where it is none (NaN among integers)."""
    try:
        number = float(np.asarray(value).reshape(-1)[0])
    except (TypeError, ValueError, IndexError):
        return None
    if dtype.kind == "f":
        return float(dtype.type(number))
    if not number.is_integer() or not np.iinfo(dtype).min <= number <= np.iinfo(dtype).max:
        return None
    return int(number)


def _equal(a: int | float | None, b: int | float | None) -> bool:
    return a == b or (a is not None and b is not None and math.isnan(a) and math.isnan(b))


def _check_baselines(data: xr.DataArray, offset: float) -> None:
    """A series across 2022-01-25 carries two offsets; the codec can take one."""
    if all(_flags(data, _APPLIED_COORDS)) and _flags(data, _APPLIED_COORDS):
        return
    name, numbers = _baselines(data)
    if not numbers:
        return
    after = [number >= OFFSET_BASELINE for number in numbers]
    if any(after) and not all(after):
        raise ValueError(
            f"coordinate {name!r} has baselines from {min(numbers):05.2f} to "
            f"{max(numbers):05.2f}: DN from 04.00 on carry an offset of 1000, "
            "earlier ones none; harmonise first (subtract 1000 from the later dates) and drop the "
            "coordinate, or compress the two parts apart"
        )
    if all(after) and offset == 0:
        warn(
            f"coordinate {name!r} says baseline {min(numbers):05.2f}, whose DN usually carry an "
            "offset of 1000: pass offset=1000 if these do"
        )


def _baselines(data: xr.DataArray) -> tuple[str, list[float]]:
    for name in _BASELINE_COORDS:
        source: Mapping[Any, Any] = data.coords if name in data.coords else data.attrs
        if name in source:
            values = np.asarray(source[name]).reshape(-1).tolist()
            try:
                return name, [number for number in map(float, values) if math.isfinite(number)]
            except (TypeError, ValueError):
                continue
    return "", []


def _flags(data: xr.DataArray, names: tuple[str, ...]) -> list[bool]:
    for name in names:
        if name in data.coords:
            return [
                str(value).lower() in ("true", "1", "1.0")
                for value in np.asarray(data[name]).reshape(-1).tolist()
            ]
    return []


def _check_rescaled(data: xr.DataArray, dtype: np.dtype) -> None:
    """Floats of Earth Search whose offset was perhaps taken off twice.

    Its items say that their DN carry no offset any more, and at the same time, in ``raster:bands``,
    that one is to be applied: stackstac's ``rescale=True`` does that.
    """
    flags = _flags(data, _APPLIED_COORDS)
    if dtype.kind != "f" or not flags or not any(flags) or "raster:bands" not in data.coords:
        return
    said = np.ravel(data.coords["raster:bands"].values).tolist()
    entries = [e for one in said for e in (one if isinstance(one, list) else [one])]
    offsets = {e["offset"] for e in entries if isinstance(e, dict) and e.get("offset")}
    if offsets:
        warn(
            f"variable {data.name!r}: the items say that the offset of 1000 DN has been applied "
            f"already, and raster:bands has an offset of {min(offsets):g} as well: if the data "
            "were loaded with rescale=True it was applied twice; load with rescale=False"
        )


def _check_declared_offset(data: xr.DataArray, offset: float, packed: bool) -> None:
    declared = declared_offset(data)
    if not packed and declared is not None and declared != offset:
        warn(
            f"variable {data.name!r} has the attribute offset={declared:g}, and offset={offset:g} "
            "is used: "
            f"pass offset={declared:g} if its DN carry that"
        )


def declared_offset(data: xr.DataArray) -> float | None:
    """The number in the attribute ``offset``, or None."""
    value = data.attrs.get("offset")
    if (
        isinstance(value, (int, float, np.integer, np.floating))
        and not isinstance(value, bool)
        and math.isfinite(value)
    ):
        return float(value)
    return None
