"""Learned compression of Sentinel-2 cubes for xarray, Dask and Zarr.

>>> import xtec                                             # registers ds.tec and da.tec
>>> # ds.tec.compress(model="elic").to_zarr("cube.zarr"); xr.open_zarr("cube.zarr")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import plot
from .accessor import DataArrayAccessor, DatasetAccessor
from .comparing import compare
from .compression import compress
from .embedded import embed_weights
from .groups import from_groups, to_groups
from .inpainting import inpaint, inpainted
from .latentcubes import latents
from .planning import Plan, plan
from .versions import show_versions
from .writing import Summary, to_zarr

if TYPE_CHECKING:
    from .report import Info, info

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
    "from_groups",
    "info",
    "inpaint",
    "inpainted",
    "latents",
    "plan",
    "plot",
    "show_versions",
    "to_groups",
    "to_zarr",
]


def __getattr__(name: str) -> Any:
    # xarray imports this package with every engine, and what looks into stores brings zarr.
    if name in ("Info", "info"):
        from . import report

        return getattr(report, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
