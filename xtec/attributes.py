"""Attributes: what Zarr can hold, and when two are the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from .messages import warn

#: The one attribute that xtec adds, to the compressed variable: a JSON text (provenance, and the
#: band variables it came from).
ATTRIBUTE = "xtec"
#: The attribute, a JSON text too, of variables that `xtec.inpaint` has changed.
INPAINT = "xtec_inpaint"
#: Encoding that describes values, not storage: all that outlives the store it was read from.
CF_ENCODING = (
    "dtype",
    "scale_factor",
    "add_offset",
    "_FillValue",
    "missing_value",
    "units",
    "calendar",
    "grid_mapping",
    "coordinates",
)


def storable(attrs: Mapping[Any, Any], owner: str) -> dict[Any, Any]:
    """``attrs`` without what no Zarr store can hold (a RasterSpec, say); warns what is left out."""
    kept, lost = {}, []
    for key, value in attrs.items():
        if type(value).__name__ == "Affine":
            value = [float(number) for number in tuple(value)[:6]]
        try:
            json.dumps(plain(value))
        except (TypeError, ValueError):
            lost.append(f"{key!r} ({type(value).__name__})")
        else:
            kept[key] = value
    if lost:
        warn(f"{owner}: attributes that Zarr cannot hold are left out: {', '.join(lost)}")
    return kept


def check_objects(obj: xr.Dataset | xr.DataArray) -> None:
    """Refuse variables of Python objects that Zarr cannot hold, all of them in one error.

    Texts and numbers are fine; where some are missing xarray writes others in their place (None
    among texts becomes "", among flags NaN), and a warning says so.

    Raises
    ------
    ValueError
        A coordinate or variable holds dicts, lists or a mixture of types (stackstac makes such
        coordinates of what items say).
    """
    variables = dict(obj.coords.items())
    if isinstance(obj, xr.Dataset):
        variables |= dict(obj.data_vars.items())
    odd: dict[Any, str] = {}
    gaps = []
    for name, data in variables.items():
        if data.dtype != object or data.chunks is not None:
            continue
        values = np.ravel(data.values).tolist()
        there = [value for value in values if not _is_missing(value)]
        types = {type(value) for value in there}
        container = next((t for t in types if issubclass(t, (dict, list, set, tuple))), None)
        if container is not None:
            odd[name] = f"{container.__name__}s"
        elif len(types) > 1 and types != {bytes, str}:
            odd[name] = "a mixture of " + " and ".join(sorted(t.__name__ for t in types))
        elif len(there) < len(values) and types <= {str, bytes, bool}:
            gaps.append(name)
    if odd:
        held = "; ".join(f"{name!r} holds {what}" for name, what in odd.items())
        names = repr(next(iter(odd))) if len(odd) == 1 else repr(list(odd))
        which, it = ("coordinate", "it") if len(odd) == 1 else ("coordinates", "them")
        raise ValueError(
            f"{which} {held}, which Zarr cannot store: drop {it} with .drop_vars({names})"
        )
    if gaps:
        warn(
            f"coordinates {gaps} have missing values (None), which Zarr stores as '' among texts "
            f"and as NaN among flags: to choose what stands there, assign them anew, or "
            f".drop_vars({gaps})"
        )


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value != value)


def plain(value: Any) -> Any:
    """NumPy numbers and arrays as JSON has them, the way xarray writes them."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def same(a: Any, b: Any) -> bool:
    """Equality of attributes: NaN equals NaN, arrays element by element."""
    if a is None or b is None:
        return a is b
    try:
        return bool(np.array_equal(a, b, equal_nan=True))
    except TypeError:
        return bool(np.array_equal(a, b))


def common(dicts: list[dict[Any, Any]]) -> dict[Any, Any]:
    """What all have, with equal values."""
    first, *others = dicts
    return {
        k: v for k, v in first.items() if all(k in other and same(v, other[k]) for other in others)
    }
