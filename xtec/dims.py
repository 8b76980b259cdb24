"""Which dimension is time, band, y or x, by the names that people give them."""

from __future__ import annotations

from collections.abc import Hashable

import xarray as xr

#: What we call a dimension, and what others call it (compared without case).
ROLES = {
    "time": ("time", "t", "date", "dates", "valid_time", "time_utc"),
    "band": ("band", "bands", "wavelength", "wavelengths", "channel", "channels", "variable"),
    "y": ("y", "lat", "latitude", "northing", "row", "rows"),
    "x": ("x", "lon", "lng", "longitude", "easting", "column", "columns", "col"),
}


def dim_roles(data: xr.DataArray) -> dict[str, Hashable]:
    """Role -> dimension of ``data``, in the order of ``ROLES``.

    Raises
    ------
    ValueError
        A dimension has no role, two have the same, y or x is missing, or the array is empty.
    """
    found: dict[str, Hashable] = {}
    for dim in data.dims:
        role = role_of(dim)
        if role is None:
            raise ValueError(
                f"variable {data.name!r} has dimensions {data.dims}: {dim!r} is none of time, "
                f"band, y and x; select from it (.isel({dim}=0)) or rename it "
                f"(.rename({{{dim!r}: 'time'}}))"
            )
        if role in found:
            raise ValueError(
                f"variable {data.name!r} has dimensions {data.dims}: {found[role]!r} and {dim!r} "
                f"are both taken for {role}; rename one"
            )
        found[role] = dim
    if not {"y", "x"} <= set(found):
        raise ValueError(
            f"variable {data.name!r} has dimensions {data.dims}: an image needs y and x (or lat "
            "and lon); rename its dimensions"
        )
    if not data.size:
        raise ValueError(
            f"variable {data.name!r} has shape {data.shape}: there is nothing to compress in an "
            "empty array"
        )
    return {role: found[role] for role in ROLES if role in found}


def role_of(dim: Hashable) -> str | None:
    """The role that a dimension of this name has, or None."""
    return next((role for role, names in ROLES.items() if str(dim).lower() in names), None)


def is_image(data: xr.DataArray) -> bool:
    """Whether there is a y and an x, and numbers in it."""
    return {"y", "x"} <= {role_of(dim) for dim in data.dims} and data.dtype != bool


def band_dim(data: xr.DataArray) -> Hashable | None:
    """The dimension of bands, or None."""
    return next((dim for dim in data.dims if role_of(dim) == "band"), None)
