"""Pixels as tensors: what `tec.samples.from_planes` and `tec.specials` make, on a device of torch.

The same arithmetic in the same order, so pixels are the same; on a GPU bands that were repeated or
interpolated may differ in the last bits before they are rounded. Until they are complete pixels are
held as signed integers of their size: few operations of torch know uint16, and none shall touch the
bits of a NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from . import coarse, samples
from .coarse import Grid
from .errors import TecError
from .precision import full_precision
from .sensors import SENSORS
from .specials import fill_value, nodata_value
from .stream import Header
from .weights import resolve_device

_DTYPES = {"uint16": torch.uint16, "int16": torch.int16, "float32": torch.float32}
_BITS = {2: torch.int16, 4: torch.int32}
#: Rows or columns for which least squares are products of dense matrices on a GPU.
_DENSE = 2048
_RIDGE = 1e-10


def device_of(to: str) -> torch.device:
    """TecError where torch has no such device."""
    try:
        device = torch.device(to)
        if device.type == "cuda":
            return torch.device(resolve_device(to))
        torch.empty(0, device=device)
    except TecError:
        raise
    except Exception as error:  # of many types
        raise TecError(
            f"to={to!r}: it must be a device that torch has here, such as 'cpu' or 'cuda:0' "
            f"({str(error).splitlines()[0]})"
        ) from error
    return device


class Pixels:
    """The dates of a chunk while they are decoded.

    Parameters
    ----------
    header : of the stream, which has no residual
    dates : how many
    grids : of each band, where its pixels are to be repeated (`tec.coarse`)
    to : a device; the work is done on the processor unless that is a GPU
    """

    def __init__(
        self, header: Header, dates: int, grids: Sequence[Grid | None], to: torch.device
    ) -> None:
        config, dtype = header.config, np.dtype(header.dtype)
        self._header, self._grids, self._to = header, grids, to
        self.device = to if to.type == "cuda" else torch.device("cpu")
        fill = fill_value(config.nodata, dtype)
        self._nodata: Any = nodata_value(config.nodata, dtype)
        shape = (dates, *header.shape[1:])
        self._out = torch.full(shape, _bits(fill), dtype=_BITS[dtype.itemsize], device=self.device)
        sensor = SENSORS[config.sensor]
        self._where = [sensor.bands.index(name) for name in config.bands]
        limits = header.ranges or [samples._limits(dtype)] * len(config.bands)
        self._low, self._high = (self._column(side) for side in zip(*limits, strict=True))
        self._factor = self._column([sensor.std[i] * config.scale for i in self._where])
        self._shift = self._column(
            [(sensor.mean[i] + config.offset) * config.scale for i in self._where]
        )

    def _column(self, values: Sequence[float]) -> torch.Tensor:
        """One float32 a band, (bands, 1, 1)."""
        return torch.tensor(values, dtype=torch.float32, device=self.device)[:, None, None]

    def put(
        self,
        date: int,
        planes: torch.Tensor,
        mask: np.ndarray | None,
        values: np.ndarray | None,
    ) -> None:
        """A date from what the network gave, (bands of the sensor, H, W); see
        `tec.samples.from_planes`."""
        _, y, x = self._header.extent
        planes = planes.to(self.device, torch.float32)
        planes = planes[:, :y, :x]
        if self._where != list(range(len(planes))):
            planes = planes[self._where]
        work = planes * self._factor  # two steps: multiplied and added at once they round once
        work += self._shift
        with full_precision(self.device.type):
            for plane, grid in zip(work, self._grids):
                if grid is not None:
                    restore(plane, grid)
        holes = None if mask is None else torch.from_numpy(mask).to(self.device)
        self._check_finite(work, holes)
        if self._header.dtype != "float32":
            work.round_()
        torch.clamp(work, self._low, self._high, out=work)
        if self._nodata is not None and np.isfinite(self._nodata):
            work.masked_fill_(work == float(self._nodata), float(samples._beside(self._nodata)))
        work = work.contiguous()
        if self._header.dtype == "float32":
            bits = work.view(torch.int32)
        else:
            bits = work.to(torch.int32).to(torch.int16)  # beyond 32767 the bits of uint16
        if holes is not None and values is not None:
            if values.ndim:
                codes = values.view(f"i{values.itemsize}")
                bits.masked_scatter_(holes, torch.from_numpy(codes).to(self.device))
            else:
                bits.masked_fill_(holes, _bits(values))
        self._out[date, :, :y, :x] = bits

    def _check_finite(self, work: torch.Tensor, holes: torch.Tensor | None) -> None:
        finite = torch.isfinite(work)
        if finite.all():
            return
        broken = ~finite if holes is None else ~(finite | holes)
        for name, count in zip(self._header.config.bands, broken.sum((1, 2)).tolist()):
            if count:
                raise TecError(
                    f"the network gave NaN or infinite values in {count} valid pixels of band "
                    f"{name}: its weights or the device's arithmetic are broken; verify the "
                    "weights, and try device='cpu'"
                )
        work.masked_fill_(~finite, 0)

    def done(self) -> torch.Tensor:
        """(time, band, y, x)."""
        return self._out.view(_DTYPES[self._header.dtype]).to(self._to)


def restore(plane: torch.Tensor, grid: Grid) -> None:
    """`tec.coarse.restored`, in place. What is too large for dense matrices takes a trip through
    the processor."""
    if not plane.is_cuda:
        coarse.restored(plane.numpy(), grid)
    elif max(plane.shape) > _DENSE:
        host = plane.cpu()
        coarse.restored(host.numpy(), grid)
        plane.copy_(host)
    else:
        restore_dense(plane, grid)


def restore_dense(plane: torch.Tensor, grid: Grid) -> None:
    """The same by products of matrices; float32 products must be full ones."""
    rows, columns = (
        _matrices(n, first, grid, str(plane.device))
        for n, first in zip(plane.shape, (grid.y, grid.x))
    )
    found = rows[0] @ plane @ columns[0].T
    if grid.repeated:  # native pixels: exactly the same value for each of theirs
        found = found[rows[1]][:, columns[1]]
    plane.copy_(found)


@lru_cache(32)
def _matrices(size: int, first: int, grid: Grid, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the pixels of a line: what makes of them the nearest interpolation, (size, size), or where
    pixels are repeated the native pixels under it, (cells, size); then the cell of each pixel."""
    below, share, n = coarse._weights(size, first, grid)
    line, seen = np.arange(size), np.zeros((size, n))
    np.add.at(seen, (line, below), 1 - share)
    np.add.at(seen, (line, np.minimum(below + 1, n - 1)), share)
    # Native pixels at the edges may be seen by next to no pixel.
    found = np.linalg.solve(seen.T @ seen + _RIDGE * np.eye(n), seen.T)
    matrix = (found if grid.repeated else seen @ found).astype(np.float32)
    with torch.inference_mode(False):  # kept for whoever comes
        cells = torch.from_numpy((line + first) // grid.factor)
        return torch.from_numpy(matrix).to(device), cells.to(device)


def _bits(value: np.ndarray | np.generic) -> int:
    """Of a scalar, as a signed integer."""
    return int(value.view(f"i{value.itemsize}"))
