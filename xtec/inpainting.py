"""inpaint: clouds in any Sentinel-2 cube replaced by what ``tt`` predicts from other dates."""

from __future__ import annotations

import inspect
import json
import math
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import xarray as xr
from tec.config import CodecConfig

from . import settings
from .attributes import INPAINT
from .grid import DEFAULT_CHUNKS, reading_blocks
from .layout import Cube, find_cube
from .scl import CLOUDS, Mask, cloud_mask
from .stored import stored_form

T = TypeVar("T", xr.Dataset, xr.DataArray)

#: The variable that tells which pixels were replaced.
INPAINTED = "inpainted"
#: Pixels of the blocks around a block that are looked at: whole latents, and whole pixels of the
#: bands on 20 m and 60 m.
OVERLAP = 48
#: Dates beyond a window of dates that predict, each way, where a series is not taken as a whole.
BEYOND = 8
#: Bytes of pixels of a block of all dates, up to which a series is taken as a whole.
_SERIES = 1e9
_SMALL = 2**26  # pixels of a mask that is counted on the spot
_WIDEST = 1024  # of blocks that are taken as they are


@dataclass(frozen=True)
class _Work:
    """What is done with a block: pickles to workers."""

    config: CodecConfig
    direction: str
    mode: str

    def pixels(self, block: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """(time, band, y, x) and (time, 1, y, x) bool -> the block, masked pixels replaced."""
        from tec.inpainting import inpaint

        from .chunks import run_pass

        options = {"direction": self.direction, "mode": self.mode, "device": settings.device}
        given = self._coded(block)
        found = run_pass(lambda: inpaint(given, mask[:, 0], self.config, **options)).result()
        out, bits = block.copy(), f"u{given.itemsize}"
        changed = found.pixels.view(bits) != given.view(bits)
        out[changed] = found.pixels[changed]
        return out

    def missing(self, block: np.ndarray) -> np.ndarray:
        """(time, band, y, x) -> (time, 1, y, x) bool, where no band has a value."""
        from tec.inpainting import missing

        return missing(self._coded(block), self.config.nodata)[:, None]

    def filled(self, gone: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """(time, 1, y, x) bool twice -> the same: the pixels that `pixels` replaces."""
        from tec.inpainting import fillable

        return fillable(mask[:, 0], gone[:, 0], self.direction)[:, None]

    @staticmethod
    def _coded(block: np.ndarray) -> np.ndarray:
        """As tec takes it."""
        dtype = np.dtype("f4") if block.dtype.kind == "f" else block.dtype
        return np.ascontiguousarray(block, dtype.newbyteorder("="))


def inpaint(
    obj: T,
    mask: str | xr.DataArray | Callable[[Any], xr.DataArray] = "SCL",
    *,
    classes: Sequence[int] = CLOUDS,
    model: str = "tt",
    direction: str = "both",
    mode: str = "tokens",
    compression: float | None = None,
    weights: str | os.PathLike[str] = "builtin",
    bands: Mapping[str, str] | Sequence[str] | None = None,
    sensor: str | None = None,
    offset: float = 0,
    scale: float | None = None,
    nodata: int | float | str | None = "auto",
    dates: int | None = None,
) -> T:
    """Replace masked pixels by what the temporal model predicts from other dates, lazily.

    Zero-shot cloud inpainting (arXiv 2510.12670): see `tec.inpainting`. Pixels that are not masked
    stay as they are, bit for bit, and nodata stays nodata. A masked pixel that is clear at no date
    that may predict it stays as it is, cloud and all: `inpainted` tells which were replaced.

    What stands under a mask is never looked at, so what the mask misses (thin cloud, the rim of a
    shadow) both stays and spoils predictions: grow a tight mask.

    Parameters
    ----------
    obj : Dataset or DataArray, with a time axis; as for `xtec.compress`
    mask : str, DataArray or callable
        What is to be replaced: the name of a variable, an array, or a function of ``obj`` that
        gives one. Of (time, y, x), in any order; bool, or whole numbers of which ``classes`` are
        masked. On the grid of the cube, or on one whose pixels are a whole number of its pixels
        wide (SCL on 20 m).
    classes : of SCL: by default 3, 8, 9 and 10 (shadow, medium and high probability, cirrus)
    model : "tt", the one that predicts
    direction : {"both", "forward", "backward"}
        Whether a date is predicted from earlier dates, later ones, or as the mean of both (of the
        one that there is).
    mode : {"tokens", "rest"}
        Whether only latents under the mask are predicted or, in each block of 4 x 4 of them, all
        from the first masked one on. Only masked pixels are replaced in both. With built-in
        weights, whose latents all see each other, "rest" merely hides some more of the date.
    compression : λ of the network that predicts; 300 with built-in weights, else 20
    weights, bands, sensor, offset, scale, nodata : as for `xtec.compress`
    dates : int, optional
        Go through the series in windows of so many dates (at least 8), each with 8 dates more at
        either end that predict. By default all dates at once, where a block of them has up to 1 GB.

    Returns
    -------
    Dataset or DataArray
        As ``obj``: names, layout, dtype, coordinates, encoding; Dask-backed. The attribute
        ``xtec_inpaint`` of what was changed, a JSON text, says how.

    Raises
    ------
    ValueError
        On input that does not fit; the message says what to do.
    """
    parts = _Parts(obj, mask, classes, bands, sensor)
    work = parts.work(
        model, direction, mode, compression, weights, offset=offset, scale=scale, nodata=nodata
    )
    return parts.put_back(obj, parts.pixels(work, dates), parts.told(work))


def inpainted(
    obj: xr.Dataset | xr.DataArray,
    mask: str | xr.DataArray | Callable[[Any], xr.DataArray] = "SCL",
    *,
    classes: Sequence[int] = CLOUDS,
    direction: str = "both",
    bands: Mapping[str, str] | Sequence[str] | None = None,
    sensor: str | None = None,
    nodata: int | float | str | None = "auto",
    dates: int | None = None,
    **options: Any,
) -> xr.DataArray:
    """Which pixels `inpaint` replaces, given the same: (time, y, x) bool, lazily, by no network.

    What is masked and not among them stays as it is: it is nodata, or clear at no date that may
    predict it.
    """
    parts = _Parts(obj, mask, classes, bands, sensor)
    work = parts.work(
        options.get("model", "tt"),
        direction,
        options.get("mode", "tokens"),
        options.get("compression"),
        options.get("weights", "builtin"),
        offset=options.get("offset", 0),
        scale=options.get("scale"),
        nodata=nodata,
    )
    return parts.filled(work, dates)


def replaced(obj: T, given: Any, **options: Any) -> T:
    """The object as ``compress(inpaint=given)`` codes it; a Dataset with what was replaced."""
    wanted = dict(given) if isinstance(given, Mapping) else {"mask": given}
    if unknown := wanted.keys() - inspect.signature(inpaint).parameters.keys() - {"obj"}:
        raise ValueError(
            f"inpaint names {', '.join(map(repr, sorted(unknown)))}, which xtec.inpaint does not "
            "take: pass a mask, or a mapping of its arguments"
        )
    wanted = {**options, **wanted}
    out = inpaint(obj, **wanted)
    if isinstance(obj, xr.DataArray):
        return out
    if INPAINTED in obj.variables:
        raise ValueError(
            f"the Dataset has a variable {INPAINTED!r}, where inpaint= puts what was replaced: "
            f"rename it, or drop it (.drop_vars({INPAINTED!r}))"
        )
    return out.assign({INPAINTED: inpainted(obj, **wanted)})


class _Parts:
    """A cube, its mask and how both are cut into blocks."""

    def __init__(
        self,
        obj: xr.Dataset | xr.DataArray,
        mask: Any,
        classes: Sequence[int],
        bands: Mapping[str, str] | Sequence[str] | None,
        sensor: str | None,
    ) -> None:
        blocks = {**DEFAULT_CHUNKS, "time": -1}
        self.cube: Cube = find_cube(obj, bands=bands, sensor=sensor, blocks=blocks)
        self.data = self.cube.data
        self.dims = dict(zip(self.cube.roles, self.data.dims, strict=True))
        if "time" not in self.dims:
            raise ValueError(
                f"variable {self.data.name!r} has dimensions {self.data.dims}, and no time: other "
                "dates are what clouds are replaced from"
            )
        self.mask: Mask = cloud_mask(obj, self.data, self.dims, mask, classes)

    def work(
        self,
        model: str,
        direction: str,
        mode: str,
        compression: float | None,
        weights: str | os.PathLike[str],
        *,
        offset: float,
        scale: float | None,
        nodata: int | float | str | None,
    ) -> _Work:
        """The settings, checked."""
        from tec.inpainting import COMPRESSION, DIRECTIONS, MODES

        if model != "tt":
            raise ValueError(f"model is {model!r}: only 'tt' predicts what is under a mask")
        for name, value, known in (("direction", direction, DIRECTIONS), ("mode", mode, MODES)):
            if value not in known:
                raise ValueError(f"{name} is {value!r}: choose {' or '.join(known)}")
        if compression is None:
            compression = COMPRESSION if weights == "builtin" else 20.0
        stored = stored_form(self.data, offset=offset, scale=scale, nodata=nodata)
        shown, factor, add = stored.nodata, *_packing(self.data)
        unit = stored.scale * factor  # the value of one DN as the data show it
        if self.data.dtype.kind == "f" and stored.dtype.kind != "f":
            shown = math.nan  # xarray has masked it
        config = CodecConfig(
            model=model,
            compression=compression,
            weights=os.fspath(weights),
            sensor=self.cube.sensor,
            bands=self.cube.bands,
            nodata=shown,
            offset=float(f"{stored.offset + add / unit:.9g}"),
            scale=unit,
        )
        return _Work(config, direction, mode)

    def told(self, work: _Work) -> dict[str, Any]:
        """What the attribute says, as JSON values."""
        from . import __version__

        kept = ("model", "compression", "weights")
        chosen = {k: v for k, v in work.config.to_dict().items() if k in kept}
        out: dict[str, Any] = {
            "version": __version__,
            "mask": self.mask.name,
            "classes": self.mask.classes,
        }
        out |= {**chosen, "direction": work.direction, "mode": work.mode}
        if self.mask.data.chunks is None or self.mask.data.size <= _SMALL:
            each = self.mask.data.mean([d for d in self.mask.data.dims if d != self.dims["time"]])
            shares = each.compute().values
            out["share"] = round(float(shares.mean()), 6)
            out["dates"] = [round(float(share), 4) for share in shares]
        return out

    def pixels(self, work: _Work, dates: int | None) -> xr.DataArray:
        """The cube, masked pixels replaced."""
        data, mask, band = self._blocks(dates)
        found = _around(work.pixels, data.data, mask, self.data.dtype)
        out = data.copy(data=found)
        return (out if "band" in self.dims else out.squeeze(band)).transpose(*self.data.dims)

    def filled(self, work: _Work, dates: int | None) -> xr.DataArray:
        """What `pixels` replaces."""
        data, mask, band = self._blocks(dates)
        gone = data.data.map_blocks(work.missing, dtype=bool, chunks=mask.chunks, meta=_none(bool))
        found = _around(work.filled, gone, mask, np.dtype(bool))
        out = data.isel({band: 0}, drop=True).copy(data=found[:, 0])
        out.attrs, out.encoding, out.name = {}, {}, INPAINTED
        return out

    def _blocks(self, dates: int | None) -> tuple[xr.DataArray, Any, Hashable]:
        """The cube (time, band, y, x) and its mask (time, 1, y, x) in blocks alike; the name of
        the axis of bands."""
        import dask.array as da

        data, band = self.data, self.dims.get("band", "band")
        if "band" not in self.dims:
            data = data.expand_dims(band)
        time, y, x = (self.dims[role] for role in ("time", "y", "x"))
        data = data.transpose(time, band, y, x)
        sizes = {time: -1, band: -1, y: DEFAULT_CHUNKS["y"], x: DEFAULT_CHUNKS["x"]}
        if data.chunks is None:
            sizes = reading_blocks(data.variable, sizes)
        else:  # those that there are, unless they are large
            widest = {dim: max(blocks) for dim, blocks in zip(data.dims, data.chunks)}
            sizes |= {dim: widest[dim] for dim in (y, x) if widest[dim] <= _WIDEST}
        sizes[time] = self._window(
            data, math.prod(sizes[dim] + 2 * OVERLAP for dim in (y, x)), dates
        )
        data = data.copy(data=data.variable.chunk(sizes).data)
        chunks = data.chunks
        assert chunks is not None
        mask = da.asarray(self.mask.data.transpose(time, y, x).data)[:, None]
        return data, mask.rechunk((chunks[0], (1,), *chunks[2:])), band

    def _window(self, data: xr.DataArray, pixels: int, dates: int | None) -> int:
        """Dates of a block of so many pixels."""
        if dates is not None:
            if isinstance(dates, bool) or not isinstance(dates, (int, np.integer)) or dates < 1:
                raise ValueError(f"dates must be a positive whole number, got {dates!r}")
            return max(int(dates), BEYOND)  # Dask's blocks reach over one neighbour
        fit = int(_SERIES / (pixels * data.shape[1] * data.dtype.itemsize))
        return len(data) if len(data) <= fit else max(BEYOND, fit - 2 * BEYOND)

    def put_back(self, obj: Any, pixels: xr.DataArray, told: Mapping[str, Any]) -> Any:
        """The object, with these pixels."""
        text = {INPAINT: json.dumps(told)}
        if isinstance(obj, xr.DataArray):
            out = pixels.transpose(*obj.dims).assign_attrs(text)
            out.encoding = dict(obj.encoding)
            return out
        new = {}
        for i, name in enumerate(self.cube.sources):
            old = obj[name]
            one = pixels if self.cube.variables is None else pixels.isel({self.dims["band"]: i})
            new[name] = old.copy(data=one.transpose(*old.dims).data).assign_attrs(text)
            new[name].encoding = dict(old.encoding)
        return obj.assign(new)


def _around(function: Callable[..., np.ndarray], data: Any, mask: Any, dtype: np.dtype) -> Any:
    """``function`` of each block of two arrays and of what surrounds it."""
    import dask.array as da

    depth = {0: BEYOND, 2: OVERLAP, 3: OVERLAP}
    depth = {axis: n if len(data.chunks[axis]) > 1 else 0 for axis, n in depth.items()}
    return da.map_overlap(
        function, data, mask, depth=depth, boundary="none", dtype=dtype, meta=_none(dtype)
    )


def _none(dtype: Any) -> np.ndarray:
    return np.empty((0,) * 4, dtype)


def _packing(data: xr.DataArray) -> tuple[float, float]:
    """scale_factor and add_offset that xarray has applied to what it shows."""
    factor, add = (data.encoding.get(key) for key in ("scale_factor", "add_offset"))
    return 1.0 if factor is None else float(factor), 0.0 if add is None else float(add)
