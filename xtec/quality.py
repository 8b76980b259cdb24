"""How good and how small: measures of what compression did to a cube.

`psnr` and `bpppb` take whole cubes, Dask or not. The others take numpy arrays (..., band, y, x) or
(..., y, x), in DN (reflectance x 10000, with the offset of the baseline removed), and return one
figure a pixel or a plane, so that whoever calls leaves out what is not valid.
"""

from __future__ import annotations

import math
from collections.abc import Hashable

import numpy as np
import xarray as xr

#: Peak of the PSNR in DN: reflectance 1.
PEAK = 10000.0
#: Exponents of the five scales of MS-SSIM, finest first (Wang et al. 2003, section 3.2).
_SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
#: Pixels of the Gaussian window of SSIM, and its deviation (Wang et al. 2004, section III-C)
_WINDOW, _SIGMA = 11, 1.5


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


def spectral_angle(original: np.ndarray, decoded: np.ndarray) -> np.ndarray:
    """Angle between the spectra of each pixel in degrees (SAM, Kruse et al. 1993).

    Parameters
    ----------
    original, decoded : (..., band, y, x) DN

    Returns
    -------
    (..., y, x) float64 from 0 to 180. NaN where ``original`` is 0 in all bands or NaN in one; 90
    where only ``decoded`` is 0 in all bands.

    Examples
    --------
    >>> import numpy as np
    >>> a = np.array([1000, 1000]).reshape(2, 1, 1)
    >>> spectral_angle(a, a * [[[1]], [[0]]]).round(6)
    array([[45.]])
    """
    a, b = _pair("spectral angles", original, decoded, 3)
    with np.errstate(invalid="ignore"):
        a = a / np.sqrt((a * a).sum(axis=-3, keepdims=True))
    length = np.sqrt((b * b).sum(axis=-3, keepdims=True))
    b = b / np.where(length == 0, 1, length)
    # Kahan's form: the arc cosine would lose all figures of small angles.
    apart, along = a - b, a + b
    return np.degrees(
        2 * np.arctan2(np.sqrt((apart**2).sum(axis=-3)), np.sqrt((along**2).sum(axis=-3)))
    )


def ndvi(red: np.ndarray, nir: np.ndarray) -> np.ndarray:
    """Normalised difference vegetation index, from -1 to 1.

    Parameters
    ----------
    red, nir : B04 and B08 in DN, of one shape; less than nothing counts as nothing

    Returns
    -------
    float64 of that shape; NaN where both bands are 0.

    Examples
    --------
    >>> import numpy as np
    >>> ndvi(np.array([1000, 500, -20, 0]), np.array([1000, 1500, 300, 0]))
    array([0. , 0.5, 1. , nan])
    """
    r, n = np.maximum(red, 0.0), np.maximum(nir, 0.0)
    with np.errstate(invalid="ignore"):
        return (n - r) / (n + r)


def ndwi(green: np.ndarray, nir: np.ndarray) -> np.ndarray:
    """Normalised difference water index (McFeeters 1996), from -1 to 1.

    Parameters
    ----------
    green, nir : B03 and B08 in DN, of one shape; less than nothing counts as nothing

    Returns
    -------
    float64 of that shape; NaN where both bands are 0.

    Examples
    --------
    >>> import numpy as np
    >>> ndwi(np.array([1000, 1500]), np.array([1000, 500]))
    array([0. , 0.5])
    """
    return ndvi(nir, green)


def ndvi_error(original: np.ndarray, decoded: np.ndarray, *, red: int, nir: int) -> np.ndarray:
    """How far off the NDVI of each pixel is, as an absolute value.

    Parameters
    ----------
    original, decoded : (..., band, y, x) DN
    red, nir : where B04 and B08 are among the bands

    Returns
    -------
    (..., y, x) float64 from 0 to 2; NaN where ``original`` has no NDVI. Where only ``decoded`` has
    none, it counts as 0.

    Examples
    --------
    >>> import numpy as np
    >>> a = np.array([500, 1500]).reshape(2, 1, 1)
    >>> ndvi_error(a, a + 1000, red=0, nir=1)
    array([[0.25]])
    """
    a, b = _pair("NDVI", original, decoded, 3)
    was, now = (ndvi(x[..., red, :, :], x[..., nir, :, :]) for x in (a, b))
    return np.abs(was - np.nan_to_num(now))


def ndwi_error(original: np.ndarray, decoded: np.ndarray, *, green: int, nir: int) -> np.ndarray:
    """How far off the NDWI of each pixel is; as `ndvi_error`, with B03 and B08."""
    return ndvi_error(original, decoded, red=nir, nir=green)


def overshoot(original: np.ndarray, decoded: np.ndarray) -> np.ndarray:
    """By how many DN decoded values leave the range of the original ones of the same band.

    Parameters
    ----------
    original, decoded : (..., band, y, x) DN, without nodata

    Returns
    -------
    (..., band) float64, 0 where no value leaves the range.

    Examples
    --------
    >>> import numpy as np
    >>> overshoot(np.array([[[5, 9]]]), np.array([[[2, 10]]]))
    array([3.])
    """
    a, b = _pair("ranges", original, decoded, 3)
    plane = (-2, -1)
    above, below = b.max(plane) - a.max(plane), a.min(plane) - b.min(plane)
    return np.maximum(np.maximum(above, below), 0.0)


def ms_ssim(original: np.ndarray, decoded: np.ndarray, *, peak: float = PEAK) -> np.ndarray:
    """Multi-scale structural similarity of each plane (Wang, Simoncelli and Bovik 2003).

    A Gaussian window of 11 x 11 pixels, means of 2 x 2 pixels from scale to scale. Images of less
    than 176 pixels a side have no room for five scales: the scales that fit are taken, their
    exponents divided by their sum (96 pixels: four). Every pixel counts, nodata too. A negative
    mean of contrast and structure counts as 0.

    Parameters
    ----------
    original, decoded : (..., y, x) DN; for RGB give B04, B03 and B02 and average
    peak : in DN. A stretch for the eye ends lower (3000) and shows more.

    Returns
    -------
    (...) float64; 1 is equality.

    Examples
    --------
    >>> import numpy as np
    >>> a = np.random.default_rng(0).uniform(0, 3000, (64, 64))
    >>> bool(ms_ssim(a, a) == 1), bool(ms_ssim(a, a + 500) < 1)
    (True, True)
    """
    a, b = _pair("MS-SSIM", original, decoded, 2)
    side = min(a.shape[-2:])
    if side < _WINDOW:
        raise ValueError(
            f"MS-SSIM needs images of {_WINDOW} x {_WINDOW} pixels or more, these have "
            f"{a.shape[-2]} x {a.shape[-1]}: compare larger chunks"
        )
    scales = min(len(_SCALES), int(math.log2(side / _WINDOW)) + 1)
    exponents = np.array(_SCALES[:scales]) * (sum(_SCALES) / sum(_SCALES[:scales]))
    out = np.ones(a.shape[:-2])
    for scale, exponent in enumerate(exponents):
        last = scale == scales - 1
        out *= np.maximum(_ssim(a, b, peak, luminance=last), 0) ** exponent
        if not last:
            a, b = _halve(a), _halve(b)
    return out


def _ssim(a: np.ndarray, b: np.ndarray, peak: float, *, luminance: bool) -> np.ndarray:
    """Mean of contrast x structure of each plane, times luminance if wanted."""
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    means = _blur(np.stack([a, b]))
    squares = means**2
    product = means[0] * means[1]
    variances = _blur(np.stack([a * a, b * b])) - squares
    covariance = _blur(a * b) - product
    similarity = (2 * covariance + c2) / (variances.sum(axis=0) + c2)
    if luminance:
        similarity *= (2 * product + c1) / (squares.sum(axis=0) + c1)
    return similarity.mean(axis=(-2, -1))


def _blur(x: np.ndarray) -> np.ndarray:
    """The Gaussian window, where it fits: (..., y, x) to (..., y - 10, x - 10)."""
    kernel = np.exp(-((np.arange(_WINDOW) - _WINDOW // 2) ** 2) / (2 * _SIGMA**2))
    kernel /= kernel.sum()
    y, x_size = (n - _WINDOW + 1 for n in x.shape[-2:])
    rows = sum(w * x[..., i : i + y, :] for i, w in enumerate(kernel))
    return sum(w * rows[..., i : i + x_size] for i, w in enumerate(kernel))


def _halve(x: np.ndarray) -> np.ndarray:
    """Means of 2 x 2 pixels; an odd last row or column is left out."""
    y, x_size = (n // 2 * 2 for n in x.shape[-2:])
    x = x[..., :y, :x_size]
    return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4


def _pair(
    what: str, original: np.ndarray, decoded: np.ndarray, ndim: int
) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64, if they are of one shape."""
    if np.shape(original) != np.shape(decoded):
        raise ValueError(
            f"cannot compare {np.shape(original)} with {np.shape(decoded)}: {what} need two arrays "
            "of one shape"
        )
    if np.ndim(original) < ndim:
        axes = "(..., band, y, x)" if ndim == 3 else "(..., y, x)"
        raise ValueError(f"{what} need arrays {axes}, these have shape {np.shape(original)}")
    return np.asarray(original, np.float64), np.asarray(decoded, np.float64)
