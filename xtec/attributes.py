"""Attributes: what Zarr can hold, and when two are the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

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
