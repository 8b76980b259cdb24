"""Arrays that xarray indexes before they are read."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.core.indexing import (
    IndexingSupport,
    LazilyIndexedArray,
    explicit_indexing_adapter,
)


def transposed(variable: xr.Variable, dims: Sequence[Hashable]) -> xr.Variable:
    """A lazily read variable with its dimensions in another order.

    xarray's own transpose turns what is to be read into coordinates of single pixels: 24 bytes for
    each, and a slow read.
    """
    return xr.Variable(dims, LazilyIndexedArray(_Transposed(variable, dims)))


class _Transposed(BackendArray):
    __slots__ = ("_dims", "_variable", "dtype", "shape")

    def __init__(self, variable: xr.Variable, dims: Sequence[Hashable]) -> None:
        self._variable, self._dims = variable, tuple(dims)
        self.dtype = variable.dtype
        self.shape = tuple(variable.sizes[dim] for dim in dims)

    def __getitem__(self, key: Any) -> Any:
        return explicit_indexing_adapter(key, self.shape, IndexingSupport.OUTER, self._read)

    async def async_getitem(self, key: Any) -> Any:
        return await asyncio.to_thread(self.__getitem__, key)

    def _read(self, key: tuple[Any, ...]) -> np.ndarray:
        part = self._variable.isel(dict(zip(self._dims, key, strict=True))).compute()
        return part.transpose(*(dim for dim in self._dims if dim in part.dims)).values
