"""Cloud inpainting: masked pixels of a chunk replaced by what ``tt`` predicts from other dates.

Zero-shot, as TerraCodec has it (arXiv 2510.12670, on cloud inpainting): latents under the mask are
not known, so the entropy model goes on with its means where it would have read symbols. Three
things are added, since means alone carry the level of another season and leave seams (figures in
docs/design.md): the dates before are first brought to the look of the date by a linear fit over
pixels that are clear in both; the network is told of that fit and of the date filled with it; and
what a prediction misses at clear pixels around a hole is stretched over the hole as a membrane.

No masked pixel has any part in what is predicted, of its own date or of another.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from . import samples, weights
from .coarse import Grid
from .codec import grids_of, to_network
from .config import CodecConfig
from .errors import TecError
from .forks import runs_networks
from .holes import fill_holes
from .specials import as_bits, check_chunk, find_specials

if TYPE_CHECKING:
    import torch

    from .models.coding import TemporalModel

#: Where the dates that predict may lie: before a date, after it, or on both sides (their mean).
DIRECTIONS = ("both", "forward", "backward")
#: Which latents are predicted: those under the mask, or, in each block of 4 x 4, all from the first
#: masked one on, row by row.
MODES = ("tokens", "rest")
#: λ of the network that predicts, with built-in weights, where nobody says.
COMPRESSION = 300.0
_CELL = 16  # pixels of a latent, each way
_REACH = 8  # pixels beyond its cell that the lapped transform of a latent sees
_PRIOR = 10.0  # pixels' worth of belief that a date looks like the one before


class Inpainted(NamedTuple):
    """A chunk without its masked pixels.

    Attributes
    ----------
    pixels : (time, band, y, x) of the chunk's dtype; equal to the chunk, bit for bit, where nothing
        was filled
    filled : (time, y, x) bool, what was replaced. Masked pixels that are not among them are nodata,
        or were clear at no date that may predict them, and stay as they were
    """

    pixels: np.ndarray
    filled: np.ndarray


def missing(chunk: np.ndarray, nodata: float | None) -> np.ndarray:
    """(time, y, x) bool: where no band of a chunk (time, band, y, x) has a value."""
    return _gone(find_specials(chunk, nodata).mask, (len(chunk), *chunk.shape[2:]))


def fillable(mask: np.ndarray, gone: np.ndarray, direction: str = "both") -> np.ndarray:
    """Which masked pixels `inpaint` replaces; needs no network.

    Parameters
    ----------
    mask : (time, y, x) bool
    gone : the same, see `missing`
    direction : as for `inpaint`
    """
    filled = np.zeros(mask.shape, bool)
    for order in _orders(len(mask), direction):
        seen = np.zeros(mask.shape[1:], bool)
        for t in order:
            filled[t] |= mask[t] & ~gone[t] & seen
            seen |= ~(mask[t] | gone[t])
    return filled


@runs_networks
def inpaint(
    chunk: np.ndarray,
    mask: np.ndarray,
    config: CodecConfig,
    *,
    direction: str = "both",
    mode: str = "tokens",
    device: str = "auto",
) -> Inpainted:
    """Replace the masked pixels of a chunk by predictions.

    Parameters
    ----------
    chunk : (time, band, y, x) uint16, int16 or float32, as for `tec.encode`
    mask : (time, y, x) bool, True where a pixel is to be replaced (cloud, shadow)
    config : of model "tt": bands, nodata, offset, scale, weights, and the λ of the network that
        predicts; that of `COMPRESSION` is good
    direction : "forward" predicts from earlier dates only, "backward" from later ones, "both" takes
        the mean, or the one that there is
    mode : "tokens" or "rest", see `MODES`
    device : "auto", "cpu", "cuda", ...

    Raises
    ------
    TecError
        Shapes do not fit, the model does not predict, or pixels are no reflectance.
    WeightsError
        The checkpoint cannot be had.
    """
    chunk, mask = np.asarray(chunk), np.asarray(mask)
    _check(chunk, mask, direction, mode)
    if config.model != "tt":
        raise TecError(
            f"model is {config.model!r}: only 'tt' inpaints, since tokens of 'flex' have no place "
            "in the picture and other models see one date; use model='tt'"
        )
    specials = find_specials(chunk, config.nodata).mask
    gone = _gone(specials, mask.shape)
    filled = fillable(mask, gone, direction)
    out = chunk.copy()
    if not filled.any():
        return Inpainted(out, filled)
    scene = _Scene(chunk, mask, gone, specials, config)
    painter = _Painter(config, mode, device)
    found: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}
    for order in _orders(len(chunk), direction):
        for t, known, plane in _predicted(scene, order, painter):
            found.setdefault(t, []).append((known[filled[t]], plane[:, filled[t]]))
    for t, predictions in found.items():
        count = sum(known.astype(np.float32) for known, _ in predictions)
        total = sum(known * values for known, values in predictions)
        plane = scene.plane(t)
        plane[:, filled[t]] = total / count
        new = samples.from_planes(plane, config, chunk.dtype, *mask.shape[1:], grids=scene.grids)
        where = np.broadcast_to(filled[t], new.shape)
        if specials is not None:
            where = where & ~specials[t]
        as_bits(out[t])[where] = as_bits(new)[where]
    return Inpainted(out, filled)


def _check(chunk: np.ndarray, mask: np.ndarray, direction: str, mode: str) -> None:
    check_chunk(chunk)
    if mask.dtype != bool or mask.shape != (len(chunk), *chunk.shape[2:]):
        raise TecError(
            f"mask is {mask.dtype} of shape {mask.shape}: it must be bool, "
            f"{(len(chunk), *chunk.shape[2:])} (time, y, x) for a chunk of {chunk.shape}"
        )
    if direction not in DIRECTIONS:
        raise TecError(f"direction is {direction!r}: choose {', '.join(DIRECTIONS)}")
    if mode not in MODES:
        raise TecError(f"mode is {mode!r}: choose {' or '.join(MODES)}")


def _gone(specials: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
    """(time, y, x): pixels that no band has."""
    return np.zeros(shape, bool) if specials is None else np.all(specials, axis=1)


def _orders(dates: int, direction: str) -> list[range]:
    """The orders that dates are gone through in."""
    forward = range(dates)
    chosen = {"forward": [forward], "backward": [forward[::-1]]}
    return chosen.get(direction, [forward, forward[::-1]])


class _Scene:
    """A chunk as the networks see it, without what is under the mask."""

    def __init__(
        self,
        chunk: np.ndarray,
        mask: np.ndarray,
        gone: np.ndarray,
        specials: np.ndarray | None,
        config: CodecConfig,
    ) -> None:
        self._chunk, self._specials, self._config = chunk, specials, config
        self.hole = mask | gone
        self.wanted = mask & ~gone
        self.grids: Sequence[Grid | None] = grids_of(chunk, specials, config)

    def plane(self, t: int) -> np.ndarray:
        """(bands of the sensor, y, x) float32, standardised; holes are filled smoothly."""
        date = self._chunk[t]
        holes = np.broadcast_to(self.hole[t], date.shape)
        if self._specials is not None:
            holes = holes | self._specials[t]
        return samples.date_planes(date, np.ascontiguousarray(holes), self._config, 1, self.grids)


def _predicted(
    scene: _Scene, order: Iterable[int], painter: _Painter
) -> Iterable[tuple[int, np.ndarray, np.ndarray]]:
    """For each date with masked pixels that have a past in this order: the date, where there is a
    past (y, x), and the prediction (bands of the sensor, y, x)."""
    past: list[tuple[np.ndarray, np.ndarray]] = []  # known, picture; the newest last
    for t in order:
        hole = scene.hole[t]
        plane, known = scene.plane(t), ~hole
        if past and hole.any() and (hole & past[-1][0]).any():
            before, newer = past[-1]
            (seen, older) = past[0]
            pictures = [newer] if len(past) == 1 else [newer, np.where(seen, older, newer)]
            fitted = _fitted(pictures, plane, ~hole & before)
            predicted = _bordered(fitted, plane, hole)
            if (scene.wanted[t] & before).any():
                rough = np.where(hole & before, predicted, plane)
                predicted = _bordered(painter.predict(fitted, rough, hole), plane, hole)
                yield t, before, predicted
            plane = np.where(hole & before, predicted, plane)
            known = known | before
        past = [*past, (known, plane)][-2:]


def _fitted(pictures: Sequence[np.ndarray], plane: np.ndarray, clear: np.ndarray) -> np.ndarray:
    """The other dates brought to the look of this one: each band a linear function of all bands of
    all pictures, fitted over ``clear``; the first picture itself where nothing is clear.

    All are (bands, y, x).
    """
    bands = len(plane)
    x = np.concatenate([p.reshape(bands, -1) for p in pictures])
    inside = np.concatenate([x[:, clear.ravel()], np.ones((1, np.count_nonzero(clear)))])
    target = plane.reshape(bands, -1)[:, clear.ravel()].astype(np.float64)
    prior = np.full(len(inside), _PRIOR)
    prior[-1] = 1e-3  # of the level nothing is believed
    start = np.eye(bands, len(inside))
    normal = inside @ inside.T + np.diag(prior)
    fit = np.linalg.solve(normal, (target @ inside.T + start * prior).T).T.astype(np.float32)
    return (fit[:, :-1] @ x + fit[:, -1:]).reshape(plane.shape)


def _bordered(predicted: np.ndarray, plane: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """A prediction that meets the clear pixels around the hole: (bands, y, x)."""
    if hole.all():
        return predicted
    missed = plane - predicted
    for band in missed:
        fill_holes(band, hole)
    return predicted + missed


class _Painter:
    """The network: predicts the latents of a hole from two pictures and the latents around it."""

    def __init__(self, config: CodecConfig, mode: str, device: str) -> None:
        self._mode = mode
        config = replace(config, compression=float(np.float32(config.compression)))
        self._lmbda = config.compression
        self._network: TemporalModel = weights.load(  # type: ignore[assignment]
            "tt",
            weights=config.weights,
            sensor=config.sensor,
            compression=config.compression,
            device=weights.resolve_device(device),
            expect=config.weights_sha256,
            download=True,
        )

    def predict(self, fitted: np.ndarray, rough: np.ndarray, hole: np.ndarray) -> np.ndarray:
        """What the network makes of a date, which it is told of in place of the two before.

        Parameters
        ----------
        fitted : (bands, y, x) standardised, other dates brought to the look of this one
        rough : the same of the date; in the hole what was made of ``fitted``
        hole : (y, x) bool
        """
        from . import coder
        from .entropy import portable
        from .models.coding import drive

        network, lmbda = self._network, self._lmbda
        height, width = hole.shape
        with coder.exactly(network):
            y = self._latents(rough)
            n, _, h, w = y.shape
            cells = self._cells(hole, h, w).to(y.device).expand_as(y)
            history = network.history((n, h, w))
            for seen in (self._latents(fitted), y):
                history.push(seen, network.remembered(seen, lmbda))
            rounder = portable.Writer(n, network.grid, network.margin_at(lmbda))

            def symbols_of(step: Any) -> np.ndarray:
                symbols = np.rint(step.select(y).cpu().numpy() - step.mean).astype(np.int32)
                symbols[step.select(cells).cpu().numpy()] = 0  # the mean
                return symbols

            found = drive(network.date(history, rounder, compression=lmbda), symbols_of)
            out = network.synthesis(network.restored(found), lmbda)[0]
            return out[:, :height, :width].float().cpu().numpy()

    def _latents(self, plane: np.ndarray) -> torch.Tensor:
        import torch

        rows, columns = (samples.padded(size, self._network.stride) for size in plane.shape[1:])
        around = (0, 0), (0, rows - plane.shape[1]), (0, columns - plane.shape[2])
        padded = torch.from_numpy(np.pad(plane, around, mode="edge")[None])
        whole = to_network(self._network, padded)
        y = self._network.analysis(whole, self._lmbda)
        return y.round() if self._network.plain else y

    def _cells(self, hole: np.ndarray, h: int, w: int) -> torch.Tensor:
        """(1, 1, h, w) bool: latents that the hole has a part in."""
        import torch
        import torch.nn.functional as F

        around = (0, h * _CELL - hole.shape[0]), (0, w * _CELL - hole.shape[1])
        whole = torch.from_numpy(np.pad(hole, around, mode="edge").astype(np.float32))[None, None]
        cells = F.max_pool2d(whole, _CELL + 2 * _REACH, _CELL, _REACH) > 0
        if self._mode == "rest":
            cells = _rest(cells)
        return cells


def _rest(cells: torch.Tensor) -> torch.Tensor:
    """(1, 1, h, w): with all that follows the first one in its block of 4 x 4, row by row."""
    import torch.nn.functional as F

    from .models.tokens import BLOCK, from_blocks, to_blocks

    h, w = cells.shape[2:]
    whole = F.pad(cells, (0, -w % BLOCK, 0, -h % BLOCK))
    after = to_blocks(whole).int().cummax(2).values.bool()
    return from_blocks(after, *whole.shape[2:])[:, :, :h, :w]
