"""How good and how small: PSNR and bits per pixel per band."""

from __future__ import annotations

import math
from collections.abc import Hashable

import numpy as np
import xarray as xr

#: Peak of the PSNR in DN: reflectance 1.
PEAK = 10000.0


def psnr(
    original: xr.DataArray,
    decoded: xr.DataArray,
    *,
    band: Hashable = "band",
    nodata: float | None = None,
    scale: float = 1.0,
    peak: float = PEAK,
) -> np.ndarray:
    """Peak signal-to-noise ratio of each band in dB, over the valid pixels of ``original``.

    Parameters
    ----------
    original, decoded : arrays of one shape, Dask or not
    band : the dimension of bands; without it there is one figure
    nodata : pixels of this value are left out; NaN always is
    scale : the value of one DN (1e-4 for reflectance 0 to 1)
    peak : in DN

    Returns
    -------
    (bands,) float64; inf where nothing was lost, NaN where a band has no valid pixel.

    Examples
    --------
    >>> import xarray as xr
    >>> a = xr.DataArray([[100, 200], [300, 0]], dims=("band", "x"))
    >>> psnr(a, a + xr.DataArray([10, 0], dims="band"), nodata=0).round(1)
    array([60., inf])
    """
    if original.shape != decoded.shape:
        raise ValueError(
            f"cannot compare {original.shape} with {decoded.shape}: PSNR needs two arrays of one "
            "shape"
        )
    axes = tuple(axis for axis, dim in enumerate(original.dims) if dim != band)
    a, b = original.data, decoded.data
    valid = a == a if nodata is None or nodata != nodata else (a == a) & (a != nodata)
    error = np.where(valid, (a.astype("float64") - b.astype("float64")) / scale, 0.0)
    squares, count = (error**2).sum(axis=axes), valid.sum(axis=axes)
    if original.chunks is not None or decoded.chunks is not None:
        import dask

        squares, count = dask.compute(squares, count)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.atleast_1d(10 * np.log10(peak**2 * count / squares))


def bpppb(nbytes: int, samples: int) -> float:
    """Bits per pixel per band: ``samples`` counts every value of the cube.

    Examples
    --------
    >>> bpppb(1000, 8000)
    1.0
    """
    return 8 * nbytes / samples if samples else math.nan
