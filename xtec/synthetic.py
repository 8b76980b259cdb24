"""A generated Sentinel-2-like scene for the demo: no substitute for real images."""

from __future__ import annotations

import numpy as np
import xarray as xr
from tec.sensors import SENSORS

#: Reflectance x 10000 of what lies on the ground, one row a cover, one column a band of S2L2A.
_SPECTRA = np.array(
    [
        [420, 480, 520, 380, 360, 300, 280, 250, 240, 240, 140, 90],  # water
        [230, 260, 480, 290, 750, 2000, 2500, 2650, 2800, 2850, 1300, 560],  # forest
        [330, 380, 780, 420, 1250, 3100, 3900, 4100, 4250, 4300, 2000, 950],  # growing crop
        [700, 850, 1150, 1500, 1800, 2050, 2200, 2350, 2500, 2600, 3200, 2600],  # bare soil
        [900, 1100, 1350, 1500, 1650, 1850, 1950, 2050, 2100, 2200, 2350, 2050],  # town
        [420, 500, 850, 750, 1300, 2200, 2600, 2750, 2900, 2950, 2300, 1350],  # meadow
    ],
    dtype=np.float64,
)


def scene(size: int = 256, dates: int = 4, seed: int = 0) -> xr.Dataset:
    """A Dataset of one variable ``reflectance`` (time, band, y, x) uint16: DN, no offset, nodata 0.

    Fields with sharp borders, of covers with their own spectra; relief and texture over several
    scales; seasons; sensor
    noise; 20 m and 60 m bands as repeated pixels; a swath edge without data on the last date.
    """
    rng = np.random.default_rng(seed)
    sensor = SENSORS["S2L2A"]
    side = -(-size // 6) * 6  # 60 m pixels come in sixes
    y, x = np.mgrid[:side, :side]
    seeds = rng.uniform(0, side, (2, 90))
    warp = 6 * _fractal(rng, side, 1.5)
    fields = np.argmin(
        (y[..., None] + warp[..., None] - seeds[0]) ** 2
        + (x[..., None] + warp.T[..., None] - seeds[1]) ** 2,
        axis=-1,
    )
    cover = rng.choice(len(_SPECTRA), 90, p=[0.08, 0.22, 0.28, 0.17, 0.1, 0.15])
    vigour, bright = rng.uniform(0, 1, 90), rng.normal(1, 0.12, 90)
    relief, texture = 0.10 * _fractal(rng, side, 2.0), 0.05 * _fractal(rng, side, 1.0)
    out = np.zeros((dates, len(sensor.bands), side, side))
    for date in range(dates):
        season = np.clip(np.sin(np.pi * (date + 0.7) / (dates + 0.4)) * (0.6 + 0.8 * vigour), 0, 1)[
            :, None
        ]
        spectra = _SPECTRA[cover].copy()
        crops = cover == 2
        spectra[crops] = season[crops] * _SPECTRA[2] + (1 - season[crops]) * _SPECTRA[3]
        ground = (spectra * bright[:, None])[fields]  # (side, side, band)
        ground *= 1 + (relief + texture + 0.02 * _fractal(rng, side, 1.2))[..., None]
        haze = rng.uniform(0, 120) * (sensor.wavelength[0] / np.array(sensor.wavelength)) ** 3
        out[date] = (ground * rng.normal(1, 0.03) + haze).transpose(2, 0, 1)
    for band, gsd in enumerate(sensor.gsd):
        k = gsd // 10
        coarse = out[:, band].reshape(dates, side // k, k, side // k, k).mean(axis=(2, 4))
        coarse += rng.normal(0, 12, coarse.shape)
        out[:, band] = np.repeat(np.repeat(coarse, k, axis=1), k, axis=2)
    dn = np.clip(np.rint(out), 1, 15000).astype("uint16")[..., :size, :size]
    dn[-1, :, (np.add.outer(np.arange(size), 3 * np.arange(size)) < size)] = 0
    reflectance = xr.DataArray(
        dn,
        dims=("time", "band", "y", "x"),
        coords={
            "time": np.array(
                ["2021-04-03", "2021-06-12", "2021-08-01", "2021-10-10"], "datetime64[ns]"
            )[np.arange(dates) % 4]
            + np.arange(dates).astype("timedelta64[D]").astype("timedelta64[ns]"),
            "band": list(sensor.bands),
            "y": 5_500_000.0 - 10 * np.arange(size),
            "x": 600_000.0 + 10 * np.arange(size),
        },
        attrs={"nodata": 0, "offset": 0, "units": "1", "long_name": "surface reflectance x 10000"},
        name="reflectance",
    )
    return reflectance.to_dataset().assign_attrs(title="generated scene, not a satellite image")


def _fractal(rng: np.random.Generator, side: int, slope: float) -> np.ndarray:
    """Noise whose amplitude falls with frequency to the power of -slope; mean 0, deviation 1."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side))
    frequency[0, 0] = np.inf
    field = np.fft.irfft2(
        np.fft.rfft2(rng.standard_normal((side, side))) / frequency**slope, s=(side, side)
    )
    return field / field.std()
