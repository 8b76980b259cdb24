"""Cubes as xarray has them, of generated pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scenes import scene

BANDS = ["B02", "B03", "B04"]
DIMS = ("time", "band", "y", "x")


def cube(
    dtype: str = "uint16", time: int = 2, y: int = 20, x: int = 24, **attrs: Any
) -> xr.DataArray:
    pixels = scene(time=time, bands=3, y=y, x=x, nodata=True)
    values = pixels if np.dtype(dtype).kind in "iu" else pixels * np.float32(1e-4)
    return xr.DataArray(
        values.astype(dtype),
        dims=DIMS,
        coords={
            "time": pd.date_range("2020-06-01", periods=time),
            "band": BANDS,
            "y": 5e6 - 10.0 * np.arange(y),
            "x": 6e5 + 10.0 * np.arange(x),
            "spatial_ref": ((), 0, {"crs_wkt": "WKT"}),
            "cloud": ("time", np.linspace(0, 1, time)),
        },
        name="s2",
        attrs=attrs,
    )


def band_variables() -> xr.Dataset:
    data = cube(nodata=0, grid_mapping="spatial_ref")
    ds = xr.Dataset(
        {name: data.sel(band=name, drop=True).assign_attrs(title=name) for name in BANDS}
    )
    scl = (ds.B02 % 12).astype("uint8").assign_attrs(meaning="class")
    return ds.assign(SCL=scl, sun=("time", [30.0, 40.0])).assign_attrs(source="generated")
