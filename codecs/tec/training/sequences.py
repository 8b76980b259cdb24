"""Series of dates for the temporal models: latents of real places, varied like single crops."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from ..models.compact import Transforms
from ..models.tokens import BLOCK, windows
from ..sensors import SENSORS
from .data import Frame, interpolate_coarse


@dataclass(frozen=True)
class Series:
    """All usable dates of one place, in order: values (time, band, y, x) float32, standardised."""

    name: str
    values: np.ndarray
    repeated: bool
    weight: float = 1.0


def series(frames: list[Frame]) -> Iterator[Series]:
    """Frames of one cube, put together again where their sizes agree."""
    for name, group in groupby(frames, key=lambda f: f.name):
        dates = list(group)
        if len({f.values.shape for f in dates}) == 1:
            first = dates[0]
            yield Series(name, np.stack([f.values for f in dates]), first.repeated, first.weight)


class Pool:
    """Latents of randomly varied series, made anew one after another.

    A series of several dates is thinned and sometimes reversed. A single date is followed by
    made-up ones: the same ground in another light. Both are turned, flipped, made brighter or
    darker.

    Parameters
    ----------
    dates : of each entry
    size : pixels a side at most; smaller places stay as they are, and are padded
    """

    def __init__(
        self,
        places: list[Series],
        transforms: Transforms,
        *,
        sensor: str = "S2L2A",
        entries: int = 64,
        dates: int = 4,
        size: int = 192,
        real: float = 0.75,
        seed: int = 0,
    ) -> None:
        self.places, self.transforms = places, transforms
        self.gsd = SENSORS[sensor].gsd
        self.entries, self.dates, self.size, self.real = entries, dates, size, real
        self.rng = np.random.default_rng(seed)
        several = np.array([len(p.values) > 1 for p in places])
        extent = np.array([p.weight * np.sqrt(np.prod(p.values.shape[2:])) for p in places])
        length = np.array([min(len(p.values), dates) for p in places])
        if not several.any():
            raise ValueError("none of the places has two dates: nothing to learn from")
        self._chance = [extent * length * several, extent * ~several]
        self._latents: list[Tensor] = []

    def refresh(self) -> None:
        """Make one more entry, in place of the oldest where all are there."""
        self._latents = [*self._latents, self._entry()][-self.entries :]

    def latest(self) -> Tensor:
        """The newest entry: (dates, latents, h, w), unquantised and unscaled."""
        return self._latents[-1]

    def batch(self, blocks: int) -> tuple[Tensor, Tensor]:
        """Windows (blocks, dates, 64, latents) around random blocks, unquantised and unscaled; and
        how many of the dates are there, the rest being repeated: (blocks,)."""
        while len(self._latents) < min(8, self.entries):
            self.refresh()
        size = np.array([np.prod(y.shape[2:]) for y in self._latents], float)
        chosen = self.rng.choice(len(size), blocks, p=size / size.sum())
        out, lengths = [], []
        for i in chosen:
            y = self._latents[i]
            t, _, h, w = y.shape
            where = windows(h, w)
            block = where[self.rng.integers(len(where))]
            seen = y.flatten(2)[:, :, block].transpose(1, 2)
            out.append(torch.cat([seen, seen[-1:].expand(self.dates - t, -1, -1)]))
            lengths.append(t)
        return torch.stack(out), torch.tensor(lengths)

    @torch.inference_mode()
    def _entry(self) -> Tensor:
        rng = self.rng
        chance = self._chance[0 if rng.random() < self.real or not self._chance[1].any() else 1]
        place = self.places[rng.choice(len(self.places), p=chance / chance.sum())]
        t, _, h, w = place.values.shape
        height, width = min(h, self.size), min(w, self.size)
        i, j = rng.integers(h - height + 1), rng.integers(w - width + 1)
        values = place.values[:, :, i : i + height, j : j + width]
        if t > 1:
            kept = np.sort(rng.permutation(t)[: self.dates])
            values = values[kept[:: rng.choice([-1, 1])]]
        else:
            values = self._relit(values[0])
        if place.repeated and rng.random() < 0.5:
            values = np.stack([interpolate_coarse(v, self.gsd) for v in values])
        values = values[:, :, :: rng.choice([-1, 1]), :: rng.choice([-1, 1])]
        if rng.random() < 0.5:
            values = values.transpose(0, 1, 3, 2)
        values = _varied(values, rng, 0.2, 0.03, 0.1)
        values = np.concatenate([_varied(v[None], rng, 0.05, 0.02, 0.02) for v in values])
        edge = [(0, -n % (16 * BLOCK)) for n in values.shape[2:]]  # as the codec does
        values = np.pad(values, [(0, 0), (0, 0), *edge], mode="edge")
        x = torch.from_numpy(np.ascontiguousarray(values, np.float32))
        return self.transforms.klt(x) + self.transforms.analysis(x)

    def _relit(self, values: np.ndarray) -> np.ndarray:
        """(band, y, x) -> (dates, band, y, x): smooth fields of light, and some noise."""
        rng = self.rng
        bands, h, w = values.shape
        out = [values]
        for _ in range(self.dates - 1):
            coarse = torch.from_numpy(rng.standard_normal((1, 3, 4, 4)).astype(np.float32))
            smooth = torch.nn.functional.interpolate(coarse, size=(h, w), mode="bicubic")[0].numpy()
            mix = rng.standard_normal((bands, 3)).astype(np.float32) * 0.1 + 0.15
            field = np.einsum("bk,kyx->byx", mix, smooth)
            noise = rng.exponential(0.02) * rng.standard_normal(values.shape)
            out.append(values * np.exp(field * rng.exponential(1.0)) + noise)
        return np.stack(out)


def _varied(
    values: np.ndarray, rng: np.random.Generator, all_: float, band: float, shift: float
) -> np.ndarray:
    shape = (1, values.shape[1], 1, 1)
    gain = np.exp(all_ * rng.standard_normal() + band * rng.standard_normal(shape))
    return values * gain + shift * (rng.standard_normal() + 0.2 * rng.standard_normal(shape))
