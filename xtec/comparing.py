"""compare: what compression did to each band and date of a cube, in one pass over both.

Blocks of the two are read once, whole, and leave some sums each; what is held is a few blocks a
worker, whatever the size of the cube.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from . import quality
from .grid import HEAVY, TOGETHER, _covering, _split, reading_blocks, source_blocks
from .messages import warn
from .values import Numbers, Pair, Values, pair_of
from .writing import Summary, human

if TYPE_CHECKING:
    import dask.array

#: Every metric: what it is called in a plot, and its unit.
METRICS = {
    "psnr": ("peak signal-to-noise ratio", "dB"),
    "rmse": ("root mean squared error", "DN"),
    "mae": ("mean absolute error", "DN"),
    "bias": ("mean error", "DN"),
    "max_error": ("largest error", "DN"),
    "sam": ("mean spectral angle", "degrees"),
    "ndvi_error": ("mean error of the NDVI", "1"),
    "ndwi_error": ("mean error of the NDWI", "1"),
    "ms_ssim": ("MS-SSIM", "1"),
    "bpppb": ("bits per pixel per band", "1"),
    "valid": ("share of valid pixels", "1"),
    "lost": ("share of valid pixels that came back as nodata", "1"),
    "added": ("share of nodata pixels that came back with a value", "1"),
}
#: What one index needs: the function's names for its bands, and the bands.
_INDICES: dict[str, tuple[Callable[..., np.ndarray], dict[str, str]]] = {
    "ndvi_error": (quality.ndvi_error, {"red": "B04", "nir": "B08"}),
    "ndwi_error": (quality.ndwi_error, {"green": "B03", "nir": "B08"}),
}
#: Metrics that need all bands of a pixel at once.
_ACROSS = ("sam", *_INDICES)
#: Pixels of all bands that are worked on at once: what a processor's cache holds.
_AT_ONCE = 2**16
#: Least side of the images whose MS-SSIM is taken, in pixels: five scales fit into 176.
_TILE = 256
#: Pixels each way of a block of what has none.
_SIDE = 1024
#: Sums of a band and date, in the order in which they lie in memory; the largest error is no sum.
_SUMS = ("both", "ours", "theirs", "all", "error", "absolute", "square", "ssim", "weight")
_WORST = len(_SUMS)
#: Behind these: sum and count of each metric across bands, beside the first band.
_WIDTH = _WORST + 1 + 2 * len(_ACROSS)
#: Blocks each way whose sums one task adds up, before they travel to the client.
_GATHERED = 8


def compare(
    source: xr.Dataset | xr.DataArray,
    back: xr.Dataset | xr.DataArray | str | os.PathLike[str],
    *,
    metrics: Sequence[str] | None = None,
    stored: Summary | str | os.PathLike[str] | int | None = None,
    bands: Mapping[str, str] | Sequence[str] | None = None,
    offset: float | None = None,
    scale: float | None = None,
    nodata: int | float | str | None = "auto",
    progress: bool = True,
    compute: bool = True,
) -> xr.Dataset:
    """How far what was read back is from its source, for each band and date.

    Both are read once, block by block, on whatever scheduler Dask is set to. Bands may be in
    another order, numbers packed in another way; dates are matched by their time, and those that
    only one of the two has are left out, as are such bands (with a warning).

    Parameters
    ----------
    source : Dataset or DataArray
        What was compressed: anything that :func:`xtec.compress` takes.
    back : Dataset, DataArray or path
        What it became: read from a store (a path is opened), or anything else on the same grid.
    metrics : sequence of str, optional
        Of those below. All but "ms_ssim", as far as the bands are there, where none are named.
    stored : Summary, path or number of bytes, optional
        What ``bpppb`` is worked out from: what ``to_zarr`` has returned, or the store. Found by
        itself where ``back`` is a path, or the Dataset that was opened from one.
    bands, offset, scale, nodata
        As for :func:`xtec.compress`, of ``source``, where neither it nor the codec that ``back``
        carries says it.
    progress : bool
        Show a bar, in a terminal or a notebook.
    compute : bool
        False: return Dask-backed variables, and read no pixels yet. All come from the same graph:
        ``.compute()`` of the Dataset is one pass over both cubes, of each variable by itself a pass
        each.

    Returns
    -------
    Dataset, in memory unless ``compute=False``
        With dimensions (band, time); bands have their canonical names. Errors are those of pixels
        that are valid in both, in DN; NaN where there is none.

        - psnr: peak 10000 DN; inf where nothing was lost
        - rmse, mae, max_error, and bias: the mean of decoded less original
        - sam (time): mean angle between the spectra of a pixel, over its valid bands (two at least)
        - ndvi_error, ndwi_error (time): mean absolute difference of (B08 - B04) / (B08 + B04) and
          of (B03 - B08) / (B03 + B08)
        - ms_ssim: mean over tiles of 256 to 511 pixels each way (less where blocks are smaller:
          below 176 with fewer scales, below 11 NaN), each an image of its own, which weigh as many
          pixels as are valid in both; all others are made equal in both. Takes several times as
          long as everything else together.
        - bpppb (no dimension): of the whole variable in the store, metadata included. What one
          date or band takes of a chunk is not known
        - valid: share of pixels that are valid in the source
        - lost, added: share of valid pixels that came back as nodata, and of nodata pixels that
          came back with a value. Both are 0 unless something between the two did it

        The attributes psnr, rmse and max_error are those of all pixels together; with
        ``compute=False`` they are not there.

    Raises
    ------
    ValueError
        On cubes of different grids, or without a date or band in common; on a metric that is not
        known, or whose bands are missing.

    Examples
    --------
    >>> import numpy as np, xarray as xr, xtec
    >>> pixels = np.full((2, 3, 32, 32), 1200, "uint16")
    >>> cube = xr.DataArray(pixels, dims=("time", "band", "y", "x"), name="s2")
    >>> cube = cube.assign_coords(band=["B02", "B03", "B04"])
    >>> found = xtec.compare(cube, cube + np.uint16(10))
    >>> found.rmse.dims, found.psnr.values.tolist()
    (('band', 'time'), [[60.0, 60.0], [60.0, 60.0], [60.0, 60.0]])
    """
    _check_metrics(metrics)
    if isinstance(back, (str, os.PathLike)):
        stored = back if stored is None else stored
        back = _opened(back)
    pair = pair_of(source, back, bands=bands, offset=offset, scale=scale, nodata=nodata)
    for what in pair.left_out:
        if what.startswith("band"):
            warn(f"not compared: {what}")
    wanted = _wanted(metrics, pair.source.bands)
    parts = _parts(pair.source, pair.back, wanted)
    sums = _sums(parts, progress) if compute else None
    figures = _figures_later(parts) if sums is None else _figures(sums)
    out = _dataset(pair.source, figures, wanted)
    if "bpppb" in wanted and (found := _bpppb(back, stored, pair, metrics is not None)) is not None:
        out = out.assign(bpppb=((), found, _attrs("bpppb")))
        out.bpppb.attrs["comment"] = "of the whole variable; of a date or a band it is not known"
    if sums is not None:
        out.attrs.update(_overall(sums))
    if pair.left_out:
        out.attrs["left_out"] = "; ".join(pair.left_out)
    return out


def _opened(path: str | os.PathLike[str]) -> xr.Dataset:
    from zarr.storage import ZipStore

    from .backend import XtecBackend

    zipped = os.fspath(path).endswith(".zip")
    place: Any = ZipStore(Path(path), mode="r") if zipped else path
    return xr.open_dataset(place, engine=XtecBackend, chunks={})


def _check_metrics(metrics: Sequence[str] | None) -> None:
    given = () if metrics is None else metrics
    if isinstance(given, str):
        raise ValueError(f"metrics is one name, {given!r}: pass a list, [{given!r}]")
    unknown = [name for name in given if name not in METRICS]
    if unknown or (metrics is not None and not given):
        raise ValueError(
            f"metrics is {list(given)}: choose from {', '.join(METRICS)}, or leave it out"
        )


def _wanted(metrics: Sequence[str] | None, bands: tuple[str, ...]) -> tuple[str, ...]:
    """Those that are asked for, or that these bands allow, in our order."""
    impossible = {
        name: f"bands {' and '.join(needs.values())}"
        for name, (_, needs) in _INDICES.items()
        if not set(needs.values()) <= set(bands)
    }
    if len(bands) < 2:
        impossible["sam"] = "two bands at least"
    for name in metrics or ():
        if name in impossible:
            raise ValueError(
                f"{name} needs {impossible[name]}, and both cubes have {', '.join(bands)}: leave "
                "it out of metrics"
            )
    if metrics is None:
        return tuple(name for name in METRICS if name != "ms_ssim" and name not in impossible)
    return tuple(name for name in METRICS if name in metrics)


# one pass over both


def _parts(a: Values, b: Values, metrics: tuple[str, ...]) -> dask.array.Array:
    """(time, band, y, x, _WIDTH): sums of some blocks of both each, lazily."""
    import dask.array as da

    ours, theirs = _together(a, b, across=bool(set(metrics) & set(_ACROSS)))
    work = partial(_of_block, ours=a.numbers, theirs=b.numbers, bands=a.bands, metrics=metrics)
    times, bands, *places = ours.chunks
    ones = [(1,) * len(sizes) for sizes in places]
    empty = np.empty((0,) * 5)
    parts = da.map_blocks(
        work, ours, theirs, chunks=(times, bands, *ones, (_WIDTH,)), new_axis=4, meta=empty
    )
    parts = parts.rechunk({2: _GATHERED, 3: _GATHERED}, method="tasks")
    ones = [(1,) * n for n in parts.numblocks[2:4]]
    return da.map_blocks(_gather, parts, chunks=(times, bands, *ones, (_WIDTH,)), meta=empty)


def _sums(parts: dask.array.Array, progress: bool) -> np.ndarray:
    """(time, band, _WIDTH) float64: what the metrics are worked out from."""
    from .blocks import compute  # which brings zarr

    (found,) = compute([_listed(parts)], "comparing", progress)
    times, bands = parts.chunks[:2]
    out = np.zeros((sum(times), sum(bands), _WIDTH))
    edges = [list(itertools.accumulate((0, *sizes))) for sizes in (times, bands)]
    for at, one in zip(np.ndindex(parts.numblocks), found, strict=True):
        place = tuple(slice(e[i], e[i + 1]) for e, i in zip(edges, at[:2]))
        both = np.stack([out[place], one[:, :, 0, 0]], 2)
        out[place] = _gather(both, axis=(2,), keepdims=False)
    return out


def _figures_later(parts: dask.array.Array) -> dict[str, dask.array.Array]:
    """As `_figures`, lazily; all of them from one task."""
    import dask.array as da

    sums = da.reduction(parts, _gather, _gather, axis=(2, 3), dtype=float).rechunk(-1)
    dates, bands, _ = sums.shape
    names = list(_figures(np.zeros((1, 1, _WIDTH))))
    all_of_them = da.map_blocks(
        _stacked, sums, chunks=(len(names), bands, dates), meta=np.empty((0,) * 3)
    )
    return {
        name: found[0] if name in _ACROSS else found
        for name, found in zip(names, all_of_them, strict=True)
    }


def _stacked(sums: np.ndarray) -> np.ndarray:
    """What `_figures` gives, as (metric, band, time)."""
    dates, bands, _ = sums.shape
    return np.stack([np.broadcast_to(one, (bands, dates)) for one in _figures(sums).values()])


def _listed(parts: Any) -> dask.array.Array:
    """Blocks as the elements of an array, each by itself: they are fetched as they come."""
    import dask.array as da
    from dask.highlevelgraph import HighLevelGraph

    name = f"compared-{parts.name}"
    graph: dict[Any, Any] = {
        (name, i): (_boxed, (parts.name, *at)) for i, at in enumerate(np.ndindex(parts.numblocks))
    }
    layers = HighLevelGraph.from_collections(name, graph, dependencies=[parts])
    return da.Array(layers, name, ((1,) * len(graph),), meta=np.empty(0, object))


def _boxed(block: np.ndarray) -> np.ndarray:
    out = np.empty(1, object)
    out[0] = block
    return out


def _gather(parts: np.ndarray, axis: tuple[int, ...] = (2, 3), keepdims: bool = True) -> np.ndarray:
    """Sums of several blocks: (..., _WIDTH)."""
    out = parts.sum(axis, keepdims=keepdims)
    out[..., _WORST] = parts[..., _WORST].max(axis, keepdims=keepdims)
    return out


def _of_block(
    source: np.ndarray,
    back: np.ndarray,
    *,
    ours: Numbers,
    theirs: Numbers,
    bands: tuple[str, ...],
    metrics: tuple[str, ...],
) -> np.ndarray:
    """(time, band, y, x) of both -> sums (time, band, 1, 1, _WIDTH)."""
    dates, count, height, width = source.shape
    out = np.zeros((dates, count, 1, 1, _WIDTH))
    rows = max(1, _AT_ONCE // (count * width))
    for date, sums in enumerate(out[:, :, 0, 0]):
        for top in range(0, height, rows):
            part = np.s_[date, :, top : top + rows]
            _add(sums, source[part], back[part], ours, theirs, bands, metrics)
        if "ms_ssim" in metrics:
            for band, place in itertools.product(range(count), _tiles(height, width)):
                part = (date, band, *place)
                _add_ssim(sums[band], source[part], back[part], ours, theirs)
    return out


def _add(
    sums: np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
    ours: Numbers,
    theirs: Numbers,
    bands: tuple[str, ...],
    metrics: tuple[str, ...],
) -> None:
    """What (band, y, x) of both add to (band, _WIDTH)."""
    here, there = ours.valid(a), theirs.valid(b)
    both = here & there
    sums[:, 0] += both.sum((1, 2))
    sums[:, 1] += here.sum((1, 2))
    sums[:, 2] += there.sum((1, 2))
    sums[:, 3] += a[0].size
    if not both.any():
        return
    x, y = ours.dn(a), theirs.dn(b)
    if not both.all():
        x, y = np.where(both, x, 0.0), np.where(both, y, 0.0)
    error = y - x
    sums[:, 4] += error.sum((1, 2))
    sums[:, 6] += np.einsum("byx,byx->b", error, error)
    error = np.abs(error, out=error)
    sums[:, 5] += error.sum((1, 2))
    sums[:, _WORST] = np.maximum(sums[:, _WORST], error.max((1, 2)))
    for k, name in enumerate(_ACROSS):
        if name not in metrics:
            continue
        if name == "sam":
            each, ok = quality.spectral_angle(x, y), both.sum(0) >= 2
        else:
            function, needs = _INDICES[name]
            places = {key: bands.index(band) for key, band in needs.items()}
            each, ok = function(x, y, **places), both[list(places.values())].all(0)
        ok &= np.isfinite(each)
        at = _WORST + 1 + 2 * k
        sums[0, at] += each[ok].sum()
        sums[0, at + 1] += ok.sum()


def _tiles(height: int, width: int) -> list[tuple[slice, ...]]:
    """Even parts of at least `_TILE` pixels each way, where there are so many."""
    sides = []
    for n in (height, width):
        edges = np.linspace(0, n, max(1, n // _TILE) + 1).astype(int).tolist()
        sides.append([slice(*pair) for pair in itertools.pairwise(edges)])
    return list(itertools.product(*sides))


def _add_ssim(
    sums: np.ndarray, a: np.ndarray, b: np.ndarray, ours: Numbers, theirs: Numbers
) -> None:
    """What one tile (y, x) adds."""
    both = ours.valid(a) & theirs.valid(b)
    weight = np.count_nonzero(both)
    if not weight or min(a.shape) < 11:
        return
    x, y = ours.dn(a), theirs.dn(b)
    if weight < both.size:
        level = x[both].mean()
        x, y = np.where(both, x, level), np.where(both, y, level)
    sums[7] += float(quality.ms_ssim(x, y)) * weight
    sums[8] += weight


# blocks of both


def _together(a: Values, b: Values, across: bool) -> tuple[dask.array.Array, dask.array.Array]:
    """Both in the same blocks; all bands in one where metrics go across them."""
    arrays = [a.data, b.data]
    grids = [_grid(data) for data in arrays]
    best, cost = _common(a.data.shape, a.data.dtype.itemsize, grids, across)
    if cost > HEAVY:
        warn(
            f"comparing takes {human(cost)} of input a task, times the tasks that run at once: "
            "open both in smaller Dask blocks, such as chunks={'y': 1024, 'x': 1024}"
            + (f", or leave {', '.join(_ACROSS)} out of metrics" if across else "")
        )
    out = []
    for data in arrays:
        if data.chunks is None:
            out.append(data.variable.chunk(dict(zip(data.dims, best, strict=True))).data)
        else:
            out.append(data.data.rechunk(best, method="tasks"))
    return out[0], out[1]


Blocks = tuple[tuple[int, ...], ...]


def _grid(data: xr.DataArray) -> Blocks | None:
    """Blocks in which ``data`` is best read; None where it can be cut anywhere."""
    found = source_blocks(data)
    if found is None or data.chunks is not None:
        return found
    unit = {dim: max(blocks) for dim, blocks in zip(data.dims, found, strict=True)}
    for dim in ("y", "x"):
        unit[dim] *= max(1, _SIDE // unit[dim])
    unit["band"] = -1
    sizes = reading_blocks(data.variable, unit)
    return tuple(_split(n, sizes[dim]) for dim, n in zip(data.dims, data.shape, strict=True))


def _common(
    shape: tuple[int, ...], itemsize: int, grids: Sequence[Blocks | None], across: bool
) -> tuple[Blocks, int]:
    """Blocks for both, and bytes of what one of them reads.

    Whole blocks of both together, so that none is read twice; along axes where that would be too
    much, parts of them.
    """
    known = [grid for grid in grids if grid is not None]
    if not known:
        sizes = (1, shape[1], _SIDE, _SIDE)
        known = [tuple(_split(n, min(size, n)) for n, size in zip(shape, sizes, strict=True))]
    choices = []
    for axis, n in enumerate(shape):
        edges = [set(itertools.accumulate(grid[axis])) for grid in known]
        merged, cut = set.intersection(*edges), set.union(*edges)
        if axis == 1 and across:
            merged = cut = {n}
        choices.append([_between(merged), _between(cut)])
    best: tuple[Blocks, int] | None = None
    for picks in sorted(itertools.product((0, 1), repeat=len(shape)), key=sum):
        blocks = tuple(choice[pick] for choice, pick in zip(choices, picks, strict=True))
        cost = sum(
            math.prod(_covering(old, new)[1] for old, new in zip(grid or blocks, blocks)) * itemsize
            for grid in grids
        )
        if best is None or cost < best[1]:
            best = blocks, cost
        if cost <= TOGETHER:
            break
    assert best is not None
    return best


def _between(edges: set[int]) -> tuple[int, ...]:
    return tuple(stop - start for start, stop in itertools.pairwise([0, *sorted(edges)]))


# what the sums say


def _figures(sums: np.ndarray) -> dict[str, np.ndarray]:
    """(time, band, _WIDTH) -> each metric, (band, time) or (time)."""
    by_name = {name: sums[..., k].T for k, name in enumerate(_SUMS)}  # (band, time) each
    both, here = by_name["both"], by_name["ours"]
    with np.errstate(divide="ignore", invalid="ignore"):
        square = by_name["square"] / both
        found = {
            "psnr": 10 * np.log10(quality.PEAK**2 / square),
            "rmse": np.sqrt(square),
            "mae": by_name["absolute"] / both,
            "bias": by_name["error"] / both,
            "max_error": np.where(both > 0, sums[..., _WORST].T, np.nan),
            "ms_ssim": by_name["ssim"] / by_name["weight"],
            "valid": here / by_name["all"],
            "lost": (here - both) / np.maximum(here, 1),
            "added": (by_name["theirs"] - both) / np.maximum(by_name["all"] - here, 1),
        }
        for k, name in enumerate(_ACROSS):
            at = _WORST + 1 + 2 * k
            found[name] = sums[:, 0, at] / sums[:, 0, at + 1]
    return found


def _dataset(a: Values, found: Mapping[str, Any], metrics: tuple[str, ...]) -> xr.Dataset:
    variables = {
        name: (("band", "time")[-found[name].ndim :], found[name], _attrs(name))
        for name in metrics
        if name in found
    }
    coords: dict[str, Any] = {"band": ("band", list(a.bands), {"long_name": "band"})}
    if "time" in a.data.coords:
        coords["time"] = a.data.coords["time"].variable
    return xr.Dataset(variables, coords)


def _attrs(name: str) -> dict[str, str]:
    long_name, units = METRICS[name]
    return {"long_name": long_name, "units": units}


def _overall(sums: np.ndarray) -> dict[str, float]:
    """Of all pixels together; nothing where none is valid."""
    count, square = (sums[..., _SUMS.index(name)].sum() for name in ("both", "square"))
    if not count:
        return {}
    worst = float(sums[..., _WORST].max())
    psnr = 10 * math.log10(quality.PEAK**2 * count / square) if square else math.inf
    return {"psnr": psnr, "rmse": math.sqrt(square / count), "max_error": worst}


def _bpppb(back: Any, stored: Any, pair: Pair, explicit: bool) -> float | None:
    """Bits per pixel per band of what is stored; None where that is not known."""
    if isinstance(stored, Summary):
        return stored.bpppb
    if isinstance(stored, (int, np.integer)):
        return quality.bpppb(int(stored), pair.samples)
    place = stored
    if place is None and isinstance(back, xr.Dataset):
        place = back.encoding.get("source")
    if place is not None:
        from .objects import stored_bytes
        from .report import compressed_arrays

        try:
            _, arrays, ours = compressed_arrays(place)
            name = pair.back.data.name if pair.back.data.name in ours else next(iter(ours))
            return quality.bpppb(stored_bytes(arrays[name])[0], arrays[name].size)
        except (OSError, ValueError):
            if stored is not None or explicit:
                raise
            return None
    if explicit:
        raise ValueError(
            "bpppb is known of stores only, and nothing says which one this is from: pass stored= "
            "(the store's path, what to_zarr has returned, or a number of bytes)"
        )
    return None
