"""Learned compression of Sentinel-2 cubes for xarray, Dask and Zarr.

>>> import xtec                                             # registers ds.tec and da.tec
>>> # ds.tec.compress(model="elic").to_zarr("cube.zarr"); xr.open_zarr("cube.zarr")
"""

from __future__ import annotations

from . import plot
from .accessor import DataArrayAccessor, DatasetAccessor
from .comparing import compare
from .compression import compress
from .embedded import embed_weights
from .inpainting import inpaint, inpainted
from .planning import Plan, plan
from .report import Info, info
from .versions import show_versions
from .writing import Summary, to_zarr

__version__ = "0.1.0"

__all__ = [
    "DataArrayAccessor",
    "DatasetAccessor",
    "Info",
    "Plan",
    "Summary",
    "__version__",
    "compare",
    "compress",
    "embed_weights",
    "info",
    "inpaint",
    "inpainted",
    "plan",
    "plot",
    "show_versions",
    "to_zarr",
]
