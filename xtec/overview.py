"""``ds.tec`` in a notebook: what would be compressed, or how it is, without computing a pixel."""

from __future__ import annotations

import math
import warnings
from collections.abc import Hashable, Sequence

import numpy as np
import xarray as xr
from tec.config import CodecConfig

from .compression import DEFAULT, codec_of
from .dims import role_of
from .grid import by_dim, chunk_shape
from .layout import Cube, find_cube
from .ratecontrol import target_of, target_text
from .tables import Table, short
from .values import Numbers, values_of
from .writing import human, model_text

#: Bits per pixel per band of the built-in "tt" by λ, and what others need of them (mean over the
#: validation frames, codecs/tec/weights/README.md). Of all bands of L2A; fewer take more each.
_TYPICAL = {0.4: 0.0107, 3: 0.0283, 10: 0.0531, 20: 0.0765, 40: 0.1105, 100: 0.1785, 700: 0.4168}
_MORE = {"tt": 1.0, "flex": 1.0, "elic": 1.04, "fp": 1.33}
_SENSOR, _BANDS = "S2L2A", 10
#: Pixels of a cube in memory that are looked at for nodata.
_LOOK = 2**20


class Overview(Table):
    """What is to be said of a cube; of what is no cube, what is missing. Never raises."""

    def __init__(self, obj: xr.Dataset | xr.DataArray) -> None:
        self._obj = obj

    def rows(self) -> list[tuple[str, str]]:
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                rows = _rows(self._obj)
            told = dict.fromkeys(str(w.message) for w in caught if w.category is UserWarning)
            return rows + [("warning", message) for message in told]
        except Exception as error:  # a repr that raises hides what it is about
            return [("problem", f"{error}" or type(error).__name__)]


def _rows(obj: xr.Dataset | xr.DataArray) -> list[tuple[str, str]]:
    # Of one pixel: stacking the bands of a large cube takes seconds.
    planes = {dim: slice(1) for dim in obj.sizes if role_of(dim) in ("y", "x")}
    pixel = obj.isel(planes) if all(obj.sizes.values()) else obj
    try:
        cube = find_cube(pixel)
    except ValueError as error:
        return [("problem", str(error)), ("there is", _there_is(obj))]
    first = obj if isinstance(obj, xr.DataArray) else obj[cube.sources[0]]
    sizes = {
        role: first.sizes[dim] if dim in first.sizes else cube.data.sizes[dim]
        for role, dim in zip(cube.roles, cube.data.dims, strict=True)
    }
    numbers, problems = Numbers(), []
    try:
        numbers = values_of(pixel).numbers
    except ValueError as error:
        problems.append(("problem", str(error)))
    dtype = np.dtype(cube.data.encoding.get("dtype", cube.data.dtype))
    nbytes = math.prod(sizes.values()) * dtype.itemsize
    blocks = ""
    if first.chunks is not None:
        blocks = f", in Dask blocks of {by_dim(first.dims, [max(b) for b in first.chunks])}"
    names = dict(zip(cube.roles, map(str, cube.data.dims), strict=True))
    shape = by_dim(list(names.values()), list(sizes.values()))
    return [
        ("reflectance", _variables(cube)),
        ("bands", f"{len(cube.bands)} of {cube.sensor}: {_bands(cube)}"),
        ("dates", _dates(first, cube)),
        ("size", f"{shape} {dtype}, {human(nbytes)}{blocks}"),
        *([] if problems else _numbers_rows(obj, cube, numbers)),
        *_codec_rows(cube, sizes, names, nbytes, dtype),
        *_others(obj, cube),
        *problems,
    ]


def _variables(cube: Cube) -> str:
    if cube.variables is not None:
        return f"{len(cube.sources)} variables, one a band"
    return f"variable {str(cube.sources[0])!r}"


def _bands(cube: Cube) -> str:
    pairs = zip(cube.bands, cube.names, strict=True)
    return ", ".join(band if band == name else f"{band} ({name})" for band, name in pairs)


def _dates(first: xr.DataArray, cube: Cube) -> str:
    if "time" not in cube.roles:
        return "no time dimension: one image"
    dim = cube.data.dims[cube.roles.index("time")]
    count = first.sizes[dim]
    if dim not in first.indexes:
        return f"{count}, without a coordinate"
    times = first.indexes[dim]
    ends = [f"{min(times)!s:.10}", f"{max(times)!s:.10}"]
    return f"{count}, {ends[0]}" + (f" to {ends[1]}" if count > 1 else "")


def _numbers_rows(
    obj: xr.Dataset | xr.DataArray, cube: Cube, numbers: Numbers
) -> list[tuple[str, str]]:
    marker = "none" if numbers.nodata is None else f"{numbers.nodata:g}"
    share = _nodata_share(obj, cube, numbers)
    looked = "not counted: the pixels are not in memory" if share is None else share
    scale = f"{numbers.offset:g}, {numbers.unit:g}"
    return [
        ("nodata", f"{marker}; {looked}"),
        ("offset, scale", f"{scale} (reflectance x 10000 = number / scale - offset)"),
    ]


def _nodata_share(obj: xr.Dataset | xr.DataArray, cube: Cube, numbers: Numbers) -> str | None:
    """Of some pixels of a cube in memory."""
    parts = [obj] if isinstance(obj, xr.DataArray) else [obj[name] for name in cube.sources]
    if not all(part.variable._in_memory and part.chunks is None for part in parts):
        return None
    step = math.isqrt(max(1, sum(part.size for part in parts) // _LOOK))
    thin = {dim: slice(None, None, step) for dim in cube.data.dims[-2:]}
    valid = [numbers.valid(part.isel(thin).values) for part in parts]
    missing = 1 - sum(map(np.count_nonzero, valid)) / sum(v.size for v in valid)
    every = "" if step == 1 else f" (every {step}th row and column)"
    return f"{100 * missing:.1f} % of the pixels{every}"


def _codec_rows(
    cube: Cube, sizes: dict[str, int], names: dict[str, str], nbytes: int, dtype: np.dtype
) -> list[tuple[str, str]]:
    encoding = cube.data.encoding
    codec, rows = codec_of(encoding), []
    if codec is None:
        model, rate = "tt", DEFAULT
        known: dict[str, Hashable] = dict(names)
        chunk = chunk_shape(sizes, known, None)
        rows.append(("codec", f"none yet; .compress() takes {model_text(model, rate)}"))
    else:
        config = codec.config
        model, rate, chunk = config.model, config.compression, tuple(encoding["chunks"])
        rows.append(("codec", model_text(model, rate, config.quality, config.max_error)))
        if model != "none":
            rows.append(("weights", f"{config.weights} (sha256 {short(config.weights_sha256)})"))
        target = target_of(cube.data.attrs)
        rows += [] if target is None else [("target", target_text(target))]
    grid = [-(-n // c) for n, c in zip(sizes.values(), chunk, strict=True)]
    rows.append(("chunks", f"{math.prod(grid)}, {by_dim(list(names.values()), chunk)} each"))
    if codec is not None and encoding.get("shards"):
        rows.append(("shards", by_dim(list(names.values()), encoding["shards"])))
    if model == "tt":
        rows.append(("models", _routes(sizes, chunk, grid, list(sizes))))
    config = None if codec is None else codec.config
    if _has_typical(cube, config):
        bits = _MORE[model] * _typical(rate)
        size = human(bits / 8 * nbytes / dtype.itemsize)
        per_band = f"{bits:.2g} bits per pixel per band"
        rows.append(
            (
                "rough estimate",
                f"{size}, at the {per_band} of other {_SENSOR} cubes; .plan() measures this one",
            )
        )
    return rows


def _routes(
    sizes: dict[str, int], chunk: Sequence[int], grid: Sequence[int], roles: list[str]
) -> str:
    """Which model takes how many chunks, where it is "tt"."""
    total = math.prod(grid)
    if "time" not in sizes:
        return f"elic: all {total} (tt takes chunks of two dates or more)"
    at = roles.index("time")
    layers, rest = grid[at], sizes["time"] % chunk[at]
    single = layers if chunk[at] == 1 else int(rest == 1)
    alone = total // layers * single
    if not alone:
        return f"tt: all {total}"
    if alone == total:
        return f"elic: all {total}, which are of one date"
    return f"tt: {total - alone}, elic: {alone}, which are of one date"


def _has_typical(cube: Cube, config: CodecConfig | None) -> bool:
    """Whether there are figures of cubes like this one, coded like this."""
    if cube.sensor != _SENSOR or len(cube.bands) < _BANDS:
        return False
    if config is None:
        return True
    by_rate = config.max_error is None and config.quality is None
    return by_rate and config.weights == "builtin" and config.model in _MORE


def _typical(rate: float) -> float:
    known = [math.log(rate) for rate in _TYPICAL]
    return math.exp(np.interp(math.log(rate), known, [math.log(b) for b in _TYPICAL.values()]))


def _others(obj: xr.Dataset | xr.DataArray, cube: Cube) -> list[tuple[str, str]]:
    if isinstance(obj, xr.DataArray):
        return []
    others = [str(name) for name in obj.data_vars if name not in cube.sources]
    return [("kept without loss", ", ".join(others))] if others else []


def _there_is(obj: xr.Dataset | xr.DataArray) -> str:
    if isinstance(obj, xr.DataArray):
        return f"{obj.name!r}: {by_dim(obj.dims, obj.shape)} {obj.dtype}"
    found = [
        f"{name!r}: {by_dim(v.dims, v.shape)} {v.dtype}".strip()
        for name, v in obj.data_vars.items()
    ]
    return "; ".join(found[:20]) or "a Dataset without variables"
