"""Learned compression of Sentinel-2 cubes for xarray, Dask and Zarr.

>>> import xtec                                             # registers ds.tec and da.tec
>>> # ds.tec.compress(model="elic").to_zarr("cube.zarr"); xr.open_zarr("cube.zarr")
"""

from __future__ import annotations

from .accessor import DataArrayAccessor, DatasetAccessor
from .compression import compress
from .embedded import embed_weights
from .groups import from_groups, to_groups
from .latentcubes import latents
from .planning import Plan, plan
from .versions import show_versions
from .writing import Summary, to_zarr

__version__ = "0.1.0"

__all__ = [
    "DataArrayAccessor",
    "DatasetAccessor",
    "Plan",
    "Summary",
    "__version__",
    "compress",
    "embed_weights",
    "from_groups",
    "latents",
    "plan",
    "show_versions",
    "to_groups",
    "to_zarr",
]
