"""Training frames: crops of real cubes, varied so that a small corpus teaches what is general."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ..holes import fill_holes
from ..sensors import SENSORS, canonical_bands


@dataclass(frozen=True)
class Frame:
    """One date of one place.

    Attributes
    ----------
    name : the cube it comes from
    values : (band, y, x) float32, standardised with the statistics of ``sensor``
    smooth : the same with 20 m and 60 m bands interpolated, as the networks mostly see them
    weight : how often it is drawn, relative to its extent
    """

    name: str
    values: np.ndarray
    smooth: np.ndarray
    weight: float = 1.0


def load_frames(
    folder: Path, *, sensor: str = "S2L2A", levels: tuple[str, ...] = ("L2A",), smallest: int = 96
) -> Iterator[Frame]:
    """Frames of every Zarr cube in ``folder`` (or of one cube) that has all bands of the sensor.

    Cubes hold DN: a variable ``reflectance`` (time, band, y, x), or one (time, y, x) a band.
    Attributes, where they are there: ``level`` (else the first of ``levels``), ``offset`` (0),
    ``nodata`` (0), and ``resampling``, which says "bilinear" where 20 m bands are interpolated.
    Frames with nodata or smaller than ``smallest`` are left out. Frames of another level than the
    first are drawn half as often: they are there for variety.
    """
    s = SENSORS[sensor]
    mean = np.array(s.mean, np.float32)[:, None, None]
    std = np.array(s.std, np.float32)[:, None, None]
    folder = Path(folder)
    for path in [folder] if folder.suffix == ".zarr" else sorted(folder.glob("*.zarr")):
        cube = _cube(path)
        level = cube.attrs.get("level", levels[0])
        if level not in levels or min(cube.sizes["y"], cube.sizes["x"]) < smallest:
            continue
        names = canonical_bands([str(b) for b in cube.band.values], sensor="S2L1C")
        if not set(s.bands) <= set(names):
            continue
        offset = np.float32(cube.attrs.get("offset", 0))
        repeated = "bilinear" not in cube.attrs.get("resampling", "")
        for dn in cube.isel(band=[names.index(b) for b in s.bands]).values:
            if (dn == cube.attrs.get("nodata", 0)).mean() < 0.001:
                values = (dn.astype(np.float32) - offset - mean) / std
                smooth = interpolate_coarse(values, s.gsd) if repeated else values
                weight = 1.0 if level == levels[0] else 0.5
                yield Frame(path.name, values, smooth, weight)


def _cube(path: Path) -> Any:
    """(time, band, y, x)."""
    import xarray as xr

    ds = xr.open_zarr(path, consolidated=False)
    if "reflectance" in ds:
        return ds.reflectance.transpose("time", "band", "y", "x")
    names = [name for name in SENSORS["S2L1C"].bands if name in ds]
    if not names:
        raise ValueError(
            f"{path} has neither a variable 'reflectance' (time, band, y, x) nor any of a band "
            "(B02, ...): rename its variables"
        )
    cube = ds[names].to_dataarray("band").assign_attrs(ds[names[0]].attrs)
    return cube.transpose("time", "band", "y", "x")


def interpolate_coarse(values: np.ndarray, gsd: tuple[int, ...]) -> np.ndarray:
    """Turn repeated 20 m and 60 m pixels of (band, y, x) into the bilinear interpolation between
    them."""
    out = values.copy()
    for band, size in enumerate(gsd):
        factor = size // 10
        if factor > 1:
            kernel = np.ones(factor + 1, np.float32)
            kernel[[0, -1]] = 0.5
            kernel /= factor
            for axis in (0, 1):
                out[band] = _filter(out[band], kernel, axis)
    return out


def _filter(plane: np.ndarray, kernel: np.ndarray, axis: int) -> np.ndarray:
    half = len(kernel) // 2
    width = [(0, 0), (0, 0)]
    width[axis] = (half, half)
    padded = np.pad(plane, width, mode="edge")
    n = plane.shape[axis]
    return sum(k * padded.take(range(i, i + n), axis) for i, k in enumerate(kernel))


class Crops:
    """Random crops for training.

    A crop is flipped, turned, made brighter or darker as a whole, by band and by a constant. A few
    keep repeated 20 m pixels as they are, some lie under haze, some have holes, filled as the codec
    fills them.
    """

    def __init__(self, frames: list[Frame], *, sensor: str = "S2L2A", seed: int = 0) -> None:
        if not frames:
            raise ValueError(
                "no training frames: cubes need all bands of the sensor, dates without nodata, and "
                "96 pixels each way"
            )
        self.frames = frames
        self.rng = np.random.default_rng(seed)
        self.weight = np.array([f.weight * np.sqrt(np.prod(f.values.shape[1:])) for f in frames])
        s = SENSORS[sensor]
        # Haze adds light, most in the blue: in standardised units, for reflectance 0.1 at 0.5 µm.
        fade = (np.array(s.wavelength) / 500.0) ** -1.5
        self.haze = (1000 * fade / np.array(s.std)).astype(np.float32)[:, None, None]

    def batch(self, n: int, size: int, *, vary: bool = True) -> torch.Tensor:
        """(n, band, size, size) float32, channels last; ``vary=False``: only flipped and turned.

        Where all frames are smaller, crops are as large as the largest, in whole blocks of 16.
        """
        edges = np.array([min(f.values.shape[1:]) for f in self.frames])
        size = min(size, int(edges.max()) // 16 * 16)
        chance = self.weight * (edges >= size)
        chosen = self.rng.choice(len(self.frames), n, p=chance / chance.sum())
        crops = np.stack([self._crop(self.frames[i], size, vary) for i in chosen])
        return torch.from_numpy(crops).contiguous(memory_format=torch.channels_last)

    def _crop(self, frame: Frame, size: int, vary: bool) -> np.ndarray:
        rng = self.rng
        values = frame.values if vary and rng.random() < 0.1 else frame.smooth
        _, h, w = values.shape
        i, j = rng.integers(h - size + 1), rng.integers(w - size + 1)
        crop = values[:, i : i + size, j : j + size]
        crop = crop[:, :: rng.choice([-1, 1]), :: rng.choice([-1, 1])]
        if rng.random() < 0.5:
            crop = crop.transpose(0, 2, 1)
        if vary:
            crop = varied(crop, rng, 0.2, 0.03, 0.1)
            if rng.random() < 0.08:
                veil = 1.0 + 0.5 * cloudlike(rng, size, rough=0.5)
                crop = crop + rng.exponential(0.5) * self.haze * np.maximum(veil, 0)
            if rng.random() < 0.05:
                holes = cloudlike(rng, size, rough=0.7) > rng.uniform(-0.5, 1.5)
                crop = _filled(np.array(crop, np.float32), holes)
        return np.ascontiguousarray(crop, np.float32)


def varied(
    values: np.ndarray, rng: np.random.Generator, all_: float, band: float, shift: float
) -> np.ndarray:
    """(..., band, y, x) brighter or darker as a whole and by band."""
    shape = (values.shape[-3], 1, 1)
    gain = np.exp(all_ * rng.standard_normal() + band * rng.standard_normal(shape))
    return values * gain + shift * (rng.standard_normal() + 0.2 * rng.standard_normal(shape))


def cloudlike(rng: np.random.Generator, size: int, *, rough: float) -> np.ndarray:
    """(size, size) float32, about standard normal: noise on ever finer grids."""
    out = np.zeros((size, size), np.float32)
    cells, share = 2, 1.0
    while cells < size // 2:
        coarse = rng.standard_normal((1, 1, cells, cells)).astype(np.float32)
        fine = F.interpolate(torch.from_numpy(coarse), size=(size, size), mode="bicubic")
        out += share * fine[0, 0].numpy()
        cells, share = 2 * cells, share * rough
    return out * math.sqrt(1 - rough**2)


def _filled(crop: np.ndarray, holes: np.ndarray) -> np.ndarray:
    if holes.any() and not holes.all():
        for plane in crop:
            fill_holes(plane, holes)
    return crop
