"""Training frames: crops of real cubes, varied so that a small corpus teaches what is general."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..sensors import SENSORS, canonical_bands


@dataclass(frozen=True)
class Frame:
    """One date of one place.

    Attributes
    ----------
    name : the cube it comes from
    values : (band, y, x) float32, standardised with the statistics of ``sensor``
    repeated : whether the 20 m and 60 m bands are repeated pixels (else interpolated)
    weight : how often it is drawn, relative to its extent
    """

    name: str
    values: np.ndarray
    repeated: bool
    weight: float = 1.0


def load_frames(
    folder: Path, *, sensor: str = "S2L2A", levels: tuple[str, ...] = ("L2A",), smallest: int = 96
) -> Iterator[Frame]:
    """Frames of every Zarr cube in ``folder`` that has all bands of the sensor.

    Cubes hold one variable ``reflectance`` (time, band, y, x) of DN with attributes ``level``,
    ``offset`` and ``resampling``. Frames with nodata or smaller than ``smallest`` are left out.
    Frames of another level than the first are drawn half as often: they are there for variety.
    """
    import xarray as xr

    s = SENSORS[sensor]
    mean = np.array(s.mean, np.float32)[:, None, None]
    std = np.array(s.std, np.float32)[:, None, None]
    for path in sorted(Path(folder).glob("*.zarr")):
        cube = xr.open_zarr(path, consolidated=False).reflectance
        if cube.attrs["level"] not in levels or min(cube.sizes["y"], cube.sizes["x"]) < smallest:
            continue
        names = canonical_bands([str(b) for b in cube.band.values], sensor="S2L1C")
        if not set(s.bands) <= set(names):
            continue
        repeated = "bilinear" not in cube.attrs.get("resampling", "")
        for dn in cube.isel(band=[names.index(b) for b in s.bands]).values:
            if (dn == cube.attrs.get("nodata", 0)).mean() < 0.001:
                values = (dn.astype(np.float32) - np.float32(cube.attrs["offset"]) - mean) / std
                yield Frame(
                    path.name, values, repeated, 1.0 if cube.attrs["level"] == levels[0] else 0.5
                )


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

    A crop is flipped, turned, made brighter or darker as a whole, by band and by a constant, and
    half of the crops with repeated 20 m pixels are interpolated instead: users have both kinds.
    """

    def __init__(self, frames: list[Frame], *, sensor: str = "S2L2A", seed: int = 0) -> None:
        self.frames = frames
        self.gsd = SENSORS[sensor].gsd
        self.rng = np.random.default_rng(seed)
        self.weight = np.array([f.weight * np.sqrt(np.prod(f.values.shape[1:])) for f in frames])

    def batch(self, n: int, size: int) -> torch.Tensor:
        """(n, band, size, size) float32, channels last."""
        fits = np.array([min(f.values.shape[1:]) >= size for f in self.frames])
        chance = self.weight * fits
        chosen = self.rng.choice(len(self.frames), n, p=chance / chance.sum())
        crops = np.stack([self._crop(self.frames[i], size) for i in chosen])
        return torch.from_numpy(crops).contiguous(memory_format=torch.channels_last)

    def _crop(self, frame: Frame, size: int) -> np.ndarray:
        rng = self.rng
        _, h, w = frame.values.shape
        i, j = rng.integers(h - size + 1), rng.integers(w - size + 1)
        crop = frame.values[:, i : i + size, j : j + size]
        if frame.repeated and rng.random() < 0.5:
            crop = interpolate_coarse(crop, self.gsd)
        crop = crop[:, :: rng.choice([-1, 1]), :: rng.choice([-1, 1])]
        if rng.random() < 0.5:
            crop = crop.transpose(0, 2, 1)
        bands = len(crop)
        gain = np.exp(0.2 * rng.standard_normal() + 0.03 * rng.standard_normal((bands, 1, 1)))
        shift = 0.1 * rng.standard_normal() + 0.02 * rng.standard_normal((bands, 1, 1))
        return np.ascontiguousarray(crop * gain + shift, np.float32)


def blocks(
    frames: list[Frame], *, gsd: tuple[int, ...], per_frame: int, seed: int = 0, size: int = 16
) -> torch.Tensor:
    """Random 16 x 16 blocks for the KLT, (n, band * 256) float32; half of them with interpolated
    coarse bands."""
    rng = np.random.default_rng(seed)
    out = []
    for frame in frames:
        values = (
            interpolate_coarse(frame.values, gsd)
            if frame.repeated and rng.random() < 0.5
            else frame.values
        )
        _, h, w = values.shape
        for i, j in zip(
            rng.integers(0, h - size + 1, per_frame), rng.integers(0, w - size + 1, per_frame)
        ):
            out.append(values[:, i : i + size, j : j + size].reshape(-1))
    return torch.from_numpy(np.stack(out))
