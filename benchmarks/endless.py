"""Generated cubes of any size, made block by block where they are needed."""

from __future__ import annotations

from functools import cache
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from tec.sensors import SENSORS

from xtec.synthetic import scene

_SIDE = 516
_DATES = 4
BANDS = SENSORS["S2L2A"].bands


@cache
def _ground() -> np.ndarray:
    pixels: np.ndarray = scene(_SIDE, _DATES).reflectance.values
    return np.where(pixels == 0, 1200, pixels).astype("uint16")


def block(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """(time, band, y, x) uint16: the scene again and again, moved and brighter or darker."""
    rng = np.random.default_rng(seed)
    out = np.empty(shape, "uint16")
    _, _, height, width = shape
    for date in range(shape[0]):
        gain = np.uint16(rng.integers(13, 20))
        for y in range(0, height, _SIDE):
            for x in range(0, width, _SIDE):
                shift = rng.integers(0, _SIDE // 6, 2) * 6
                piece = np.roll(_ground()[date % _DATES], shift, (1, 2))
                part = out[date, :, y : y + _SIDE, x : x + _SIDE]
                np.multiply(piece[:, : part.shape[1], : part.shape[2]], gain, out=part)
                part >>= 4
    return out


def _make(like: np.ndarray, block_info: Any = None) -> np.ndarray:
    place = block_info[None]
    seed = int(np.ravel_multi_index(place["chunk-location"], place["num-chunks"]))
    return block(place["chunk-shape"], seed)


def cube(gigabytes: float, side: int = 1024) -> xr.DataArray:
    """Four dates, 12 bands, as wide as it takes, in blocks of 4 x 12 x side x side pixels."""
    blocks = max(1, round(gigabytes * 1e9 / (2 * _DATES * len(BANDS) * side**2)))
    high = next(n for n in range(int(blocks**0.5), 0, -1) if blocks % n == 0)
    shape = (_DATES, len(BANDS), high * side, blocks // high * side)
    # an array without pixels of its own: the blocks are made in place of them
    sizes = (_DATES, len(BANDS), side, side)
    bare = da.empty(tuple(-(-n // m) for n, m in zip(shape, sizes)), chunks=1, dtype="uint8")
    chunks = tuple((m,) * (n // m) for n, m in zip(shape, sizes))
    pixels = bare.map_blocks(
        _make, dtype="uint16", chunks=chunks, meta=np.empty((0,) * 4, "uint16")
    )
    dims = ("time", "band", "y", "x")
    return xr.DataArray(pixels, dims=dims, coords={"band": list(BANDS)}, name="reflectance")
