"""Pictures: a cube in colours, where it was changed and by how much, rate against distortion.

Needs matplotlib (the extra ``plot``), which is imported when something is drawn. Every function
draws on ``ax`` where one is given, else on a new figure, and returns the axes. Pixels without data
are transparent; values are DN, whatever form the cube has them in. Of a Dask cube only one date and
the bands that are drawn are computed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from tec.sensors import canonical_band

from .compression import compress
from .ratecontrol import Goal, Probes
from .values import Values, pair_of, values_of
from .writing import variable_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Bands of true and of false colours (vegetation is red).
RGB, FALSE_COLOUR = ("B04", "B03", "B02"), ("B08", "B04", "B03")
#: Percentiles that become black and white.
STRETCH = (2.0, 98.0)
#: Pixels that are drawn each way, at most: of more, every n-th is.
SIZE = 1024
#: Colours that differ for colour-blind people, too (Okabe and Ito 2008), and marks.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKS = "osD^vPX"
#: Share of the errors that the colours of an error map span, in percent.
_SPAN = 99.5


def rgb(
    cube: xr.Dataset | xr.DataArray,
    *,
    time: Any = 0,
    bands: Sequence[str] = RGB,
    stretch: Sequence[float] = STRETCH,
    limits: Sequence[float] | None = None,
    like: xr.Dataset | xr.DataArray | None = None,
    size: int = SIZE,
    ax: Axes | None = None,
    **form: Any,
) -> Axes:
    """One date in colours.

    Parameters
    ----------
    cube : anything that :func:`xtec.compress` takes, or gives, or what was read back
    time : number of the date, or a time: the date nearest to it
    bands : for red, green and blue
    stretch : percentiles of each band that become black and white
    limits : (low, high) in DN, in place of percentiles
    like : cube whose percentiles are taken: the source, to draw what was read back as the same
        colours
    size : pixels that are drawn each way, at most; of more every n-th is
    ax : where to draw
    **form : ``offset``, ``scale``, ``nodata`` as for :func:`xtec.compress`, where nothing says
        them; ``names`` for its ``bands``

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        There is no such band or date.
    ImportError
        matplotlib is missing.
    """
    names = _three(bands)
    values = _values(cube, form)
    picture = _pixels(_at(values, time), names, size)
    if limits is None:
        other = picture if like is None else _pixels(_at(_values(like, form), time), names, size)
        low, high = _percentiles(other, stretch)
    else:
        low, high = (np.full(3, float(limit)) for limit in limits)
    return _draw_colours(_axes(ax), values, time, picture, low, high, names)


def false_colour(cube: xr.Dataset | xr.DataArray, **options: Any) -> Axes:
    """One date with near infrared as red, so that vegetation is red; options as for `rgb`."""
    return rgb(cube, **{"bands": FALSE_COLOUR, **options})


def error_map(
    source: xr.Dataset | xr.DataArray,
    back: xr.Dataset | xr.DataArray,
    *,
    band: str = "B04",
    time: Any = 0,
    limit: float | None = None,
    size: int = SIZE,
    ax: Axes | None = None,
    **form: Any,
) -> Axes:
    """By how much each pixel of a band is off, in DN: decoded less original.

    The title tells the largest error of those that are drawn.

    Parameters
    ----------
    source, back : as for :func:`xtec.compare`
    band : one of those that both have
    time : number of the date among those that both have, or a time
    limit : error in DN at the ends of the colours; by default 99.5 % of the errors are within
    size, ax, form : as for `rgb`

    Returns
    -------
    Axes, with a colour bar beside it

    Raises
    ------
    ValueError
        As :func:`xtec.compare`, or there is no such band or date.
    """
    (name,) = _canonical([band])
    form = {"bands" if key == "names" else key: value for key, value in form.items()}
    pair = pair_of(source, back, **form)
    was, now = (_pixels(_at(v, time), (name,), size)[0] for v in (pair.source, pair.back))
    error = now - was
    sizes = np.abs(error[np.isfinite(error)])
    if limit is None:
        limit = float(np.percentile(sizes, _SPAN)) if sizes.size else 0.0
    drawn = _axes(ax)
    image = drawn.imshow(
        np.ma.masked_invalid(error),
        cmap="PuOr",
        vmin=-(limit or 1.0),
        vmax=limit or 1.0,
        **_place(pair.source),
    )
    bar = drawn.figure.colorbar(image, ax=drawn, extend="both")
    bar.set_label(f"{name}: decoded - original (DN)")
    worst = f"largest {sizes.max():.4g} DN" if sizes.size else "no valid pixel"
    return _labelled(drawn, pair.source, time, f"error of {name}, {worst}")


def panels(
    source: xr.Dataset | xr.DataArray,
    back: xr.Dataset | xr.DataArray,
    *,
    time: Any = 0,
    bands: Sequence[str] = RGB,
    band: str | None = None,
    stretch: Sequence[float] = STRETCH,
    size: int = SIZE,
    axes: Sequence[Axes] | None = None,
    **form: Any,
) -> np.ndarray:
    """Source, what was read back in the same colours, and the error of one band.

    Parameters
    ----------
    source, back, time, bands, stretch, size, form : as for `rgb`
    band : of the error map; the first of ``bands`` by default
    axes : three

    Returns
    -------
    (3,) array of Axes
    """
    if axes is None:
        axes = _pyplot().subplots(1, 3, figsize=(15, 4.5), layout="constrained")[1]
    names = _three(bands)
    fields = {"bands" if key == "names" else key: value for key, value in form.items()}
    pair = pair_of(source, back, **fields)
    pictures = [_pixels(_at(values, time), names, size) for values in pair[:2]]
    low, high = _percentiles(pictures[0], stretch)
    for ax, values, picture, what in zip(axes, pair[:2], pictures, ("original", "decoded")):
        _draw_colours(ax, values, time, picture, low, high, names)
        ax.set_title(f"{what}, {ax.get_title()}")
    error_map(source, back, band=band or names[0], time=time, size=size, ax=axes[2], **form)
    return np.asarray(axes)


def rate_distortion(
    cube: xr.Dataset | xr.DataArray,
    *,
    models: Sequence[str] = ("tt", "elic", "fp"),
    compressions: Sequence[float] = (3, 10, 40, 160),
    sample: int = 4,
    ax: Axes | None = None,
    **options: Any,
) -> tuple[xr.Dataset, Axes]:
    """Size against PSNR of some chunks of a cube, coded and decoded here and now.

    Parameters
    ----------
    cube : anything that :func:`xtec.compress` takes
    models, compressions : to try, each with each
    sample : chunks to try, spread evenly over the cube
    ax : where to draw
    **options : as for :func:`xtec.compress`

    Returns
    -------
    Dataset
        bpppb and psnr (model, compression)
    Axes

    Raises
    ------
    ValueError
        On what :func:`xtec.compress` cannot take, or where no chunk that was tried has a pixel.
    """
    rates = [float(value) for value in compressions]
    sizes, psnrs = np.empty((2, len(models), len(rates)))
    count = 0
    for i, model in enumerate(models):
        packed = compress(cube, model=model, compression=rates[0], **options)  # type: ignore[type-var]
        data = variable_of(packed)[1]
        probes = Probes(data)
        chunks = probes.sample(min(sample, probes.most))
        if not probes.with_pixels(chunks):
            raise ValueError(
                f"none of the {len(chunks)} chunks that were tried (of {probes.total}) has a valid "
                "pixel: pass a larger sample=, or select the part that has data"
            )
        count, itemsize = len(chunks), probes.stored.dtype.itemsize
        for k, rate in enumerate(rates):
            config = replace(probes.coder.config, compression=rate, weights_sha256=None)
            ratio = math.exp(-probes.value(config, Goal("ratio", 1), chunks))
            sizes[i, k] = 8 * itemsize / ratio
            psnrs[i, k] = probes.value(config, Goal("psnr", 0), chunks)
    dims = ("model", "compression")
    found = xr.Dataset(
        {
            "bpppb": (dims, sizes, {"long_name": "bits per pixel per band", "units": "1"}),
            "psnr": (dims, psnrs, {"long_name": "PSNR, peak 10000 DN", "units": "dB"}),
        },
        {"model": list(models), "compression": ("compression", rates, {"long_name": "λ"})},
        {"chunks": count},
    )
    drawn = _axes(ax)
    for i, model in enumerate(models):
        style = {"color": _COLOURS[i % len(_COLOURS)], "marker": _MARKS[i % len(_MARKS)]}
        drawn.plot(sizes[i], psnrs[i], label=model, **style)
    drawn.set(xscale="log", xlabel="bits per pixel per band", ylabel="PSNR (dB, peak 10000 DN)")
    drawn.set_title(f"{count} chunk{'s' if count > 1 else ''}")
    drawn.grid(alpha=0.3)
    drawn.legend()
    return found, drawn


def _pyplot() -> Any:
    try:
        import matplotlib.pyplot
    except ImportError as error:
        raise ImportError(
            "xtec.plot draws with matplotlib, which is not installed: pip install 'xtec[plot]'"
        ) from error
    return matplotlib.pyplot


def _axes(ax: Axes | None) -> Any:
    return _pyplot().subplots(layout="constrained")[1] if ax is None else ax


def _canonical(bands: Sequence[str]) -> tuple[str, ...]:
    return tuple(canonical_band(band) or str(band) for band in bands)


def _three(bands: Sequence[str]) -> tuple[str, ...]:
    if isinstance(bands, str) or len(bands) != 3:
        raise ValueError(f"bands is {bands!r}: name three, for red, green and blue")
    return _canonical(bands)


def _values(cube: xr.Dataset | xr.DataArray, form: dict[str, Any]) -> Values:
    rest = {key: value for key, value in form.items() if key != "names"}
    return values_of(cube, bands=form.get("names"), **rest)


def _at(values: Values, time: Any) -> Values:
    """One date of it."""
    at = _number(values, time)
    return replace(values, data=values.data.isel(time=[at]))


def _number(values: Values, time: Any) -> int:
    dates = values.data.sizes["time"]
    if isinstance(time, (int, np.integer)):
        if not -dates <= time < dates:
            raise ValueError(f"time={time}: there are {dates} dates, counted from 0")
        return int(time) % dates
    times = values.data.indexes.get("time")
    if times is None:
        raise ValueError(f"time={time!r}: the cube has no times; pass the number of the date")
    wanted = np.datetime64(time) if isinstance(time, str) else time
    return int(np.argmin(np.abs(np.asarray(times - wanted))))


def _pixels(values: Values, bands: Sequence[str], size: int) -> np.ndarray:
    """(band, y, x) DN of one date, NaN without data."""
    missing = [band for band in bands if band not in values.bands]
    if missing:
        raise ValueError(
            f"there is no band {', '.join(missing)}: there are {', '.join(values.bands)}"
        )
    if size < 1:
        raise ValueError(f"size is {size}: it must be a number of pixels, at least 1")
    # The date's blocks are read whole, whatever is drawn of them.
    data = values.select(bands).data.isel(time=0)
    step = -(-max(data.sizes["y"], data.sizes["x"]) // size)
    numbers = data.isel(y=slice(None, None, step), x=slice(None, None, step)).values
    return np.where(values.numbers.valid(numbers), values.numbers.dn(numbers), np.nan)


def _percentiles(picture: np.ndarray, stretch: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """(low, high) of each band."""
    if not 0 <= stretch[0] < stretch[1] <= 100:
        raise ValueError(f"stretch is {stretch}: two percentiles, such as (2, 98)")
    if not np.isfinite(picture).any((1, 2)).all():
        return np.zeros(len(picture)), np.ones(len(picture))
    low, high = np.nanpercentile(picture, stretch, axis=(1, 2))
    return low, np.maximum(high, low + 1)


def _draw_colours(
    ax: Axes,
    values: Values,
    time: Any,
    picture: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    bands: Sequence[str],
) -> Axes:
    shades = (picture - low[:, None, None]) / (high - low)[:, None, None]
    opaque = np.isfinite(shades).all(0)
    pixels = np.dstack([*np.clip(np.nan_to_num(shades), 0, 1), opaque.astype(float)])
    ax.imshow(pixels, **_place(values))
    return _labelled(ax, values, time, ", ".join(bands))


def _place(values: Values) -> dict[str, Any]:
    """Where the picture lies, where the cube has coordinates."""
    options: dict[str, Any] = {"interpolation": "nearest"}
    ends = []
    for dim in ("x", "y"):
        n = values.data.sizes[dim]
        if dim not in values.data.coords or n < 2:
            return options
        first, last = (float(values.data[dim][k]) for k in (0, -1))
        half = (last - first) / (n - 1) / 2
        ends.append((first - half, last + half))
    (left, right), (top, bottom) = ends
    return {**options, "extent": (left, right, bottom, top)}


def _labelled(ax: Axes, values: Values, time: Any, title: str) -> Axes:
    if "time" in values.data.coords:
        at = values.data["time"].values[_number(values, time)]
        title = f"{np.datetime_as_string(at, 'D') if at.dtype.kind == 'M' else at}: {title}"
    ax.set_title(title)
    if "extent" in _place(values):
        ax.ticklabel_format(useOffset=False, style="plain")
    ax.set(xlabel="x", ylabel="y")
    return ax
