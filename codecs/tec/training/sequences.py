"""Training series: a few dates of one place, and their latents."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from ..models.compact import BLOCK, Transforms
from .data import Frame, cloudlike, varied
from .run import half_precision


@dataclass(frozen=True)
class Series:
    """Dates of one place, in order.

    Attributes
    ----------
    smooth : (dates, band, y, x) float32, as in `Frame`
    weight : how often it is drawn, relative to its extent
    """

    name: str
    smooth: np.ndarray
    weight: float = 1.0


def series(frames: Iterable[Frame]) -> Iterator[Series]:
    """Neighbouring frames of one cube and size, put together again."""
    for (name, _), group in groupby(frames, key=lambda f: (f.name, f.smooth.shape)):
        dates = list(group)
        yield Series(name, np.stack([f.smooth for f in dates]), dates[0].weight)


class SeriesCrops:
    """Random crops of series, varied as a whole and each date a little by itself.

    Parameters
    ----------
    real : share of real series, where there are any: else a single date is shown several times in
        different light, so that many more places are seen
    """

    def __init__(
        self, places: list[Series], rng: np.random.Generator, *, dates: int, real: float = 0.75
    ) -> None:
        several = np.array([len(p.smooth) > 1 for p in places])
        if not several.any():
            raise ValueError("none of the places has two dates: nothing to learn from")
        self.places, self.rng, self.dates, self.real = places, rng, dates, real
        extent = np.array([p.weight * np.sqrt(np.prod(p.smooth.shape[2:])) for p in places])
        length = np.array([min(len(p.smooth), dates) for p in places])
        self._chance = [extent * length * several, extent * ~several]
        self._edge = np.array([min(p.smooth.shape[2:]) for p in places])

    def draw(self, size: int, *, exactly: bool = False) -> np.ndarray:
        """(dates, band, y, x) float32 of at most, or exactly, so many dates and pixels each way."""
        rng, chance = self.rng, self._chance[0]
        if rng.random() >= self.real and self._chance[1].any():
            chance = self._chance[1]
        if exactly:
            fits = self._edge >= size
            if not fits.any():
                raise ValueError(f"no series is {size} x {size} pixels: train on smaller crops")
            chance = chance * fits if (chance * fits).any() else sum(self._chance) * fits
        place = self.places[rng.choice(len(self.places), p=chance / chance.sum())]
        t, _, h, w = place.smooth.shape
        height, width = min(h, size), min(w, size)
        i, j = rng.integers(h - height + 1), rng.integers(w - width + 1)
        values = place.smooth[:, :, i : i + height, j : j + width]
        if t > 1:
            kept = np.sort(rng.permutation(t)[: self.dates])
            values = values[kept[:: rng.choice([-1, 1])]]
        if t == 1 or (exactly and len(values) < self.dates):
            more = self._relit(values[-1], self.dates - len(values))
            values = np.concatenate([values, more])
        values = values[:, :, :: rng.choice([-1, 1]), :: rng.choice([-1, 1])]
        if rng.random() < 0.5:
            values = values.transpose(0, 1, 3, 2)
        values = varied(values, rng, 0.2, 0.03, 0.1)
        change = rng.exponential(1.0)  # between dates
        each = [varied(v, rng, 0.05 * change, 0.03 * change, 0.04 * change) for v in values]
        values = np.stack(each)
        return np.ascontiguousarray(values, np.float32)

    def _relit(self, values: np.ndarray, count: int) -> np.ndarray:
        """(band, y, x) -> (count, band, y, x): smooth fields of light, and some noise."""
        rng = self.rng
        bands, h, w = values.shape
        out = np.empty((count, *values.shape), np.float32)
        for date in out:
            fields = [cloudlike(rng, max(h, w), rough=0.3)[:h, :w] for _ in range(3)]
            mix = rng.standard_normal((bands, 3)).astype(np.float32) * 0.1 + 0.1
            field = np.einsum("bk,kyx->byx", mix, np.stack(fields))
            noise = rng.exponential(0.02) * rng.standard_normal(values.shape)
            date[:] = values * np.exp(field * rng.exponential(1.0)) + noise
        return out


class Pool:
    """Latents of random series, made once and used often, and crops of them.

    Parameters
    ----------
    rng : shared with whoever trains, so that a run can be resumed
    entries : series that are held; each batch finds one of them made anew, now and then
    dates : at most, of a series
    size : of the images, at most
    """

    def __init__(
        self,
        places: list[Series],
        transforms: Transforms,
        rng: np.random.Generator,
        *,
        entries: int = 250,
        dates: int = 3,
        size: int = 256,
    ) -> None:
        self.crops = SeriesCrops(places, rng, dates=dates)
        self.transforms, self.rng = transforms, rng
        self.entries, self.dates, self.size = entries, dates, size
        self._latents: list[Tensor] = []

    def __len__(self) -> int:
        return len(self._latents)

    def refresh(self) -> None:
        """Make one more entry, in place of the oldest where all are there."""
        self._latents = [*self._latents, self._entry()][-self.entries :]

    def latest(self) -> Tensor:
        """The newest entry: (dates, latents, h, w), before gains and rounding."""
        return self._latents[-1]

    def batch(self, n: int, size: int) -> tuple[Tensor, Tensor]:
        """Crops (n, dates, latents, size, size), before gains and rounding; and how many of the
        dates are there, the rest being repeated: (n,)."""
        while len(self._latents) < min(8, self.entries):
            self.refresh()
        edge = np.array([min(y.shape[2:]) for y in self._latents])
        size = min(size, edge.max())
        area = np.array([np.prod(y.shape[2:]) for y in self._latents]) * (edge >= size)
        out, lengths = [], []
        for i in self.rng.choice(len(area), n, p=area / area.sum()):
            y = self._latents[i]
            t, _, h, w = y.shape
            a, b = self.rng.integers(h - size + 1), self.rng.integers(w - size + 1)
            seen = y[:, :, a : a + size, b : b + size]
            out.append(torch.cat([seen, seen[-1:].expand(self.dates - t, -1, -1, -1)]))
            lengths.append(t)
        return torch.stack(out).float(), torch.tensor(lengths)

    @torch.no_grad()
    def _entry(self) -> Tensor:
        values = self.crops.draw(self.size)
        edge = [(0, -n % BLOCK) for n in values.shape[2:]]  # as the codec does
        values = np.pad(values, [(0, 0), (0, 0), *edge], mode="edge")
        device = self.transforms.level.device
        with half_precision(device.type):
            return self.transforms.latent(torch.from_numpy(values).to(device)).half()
