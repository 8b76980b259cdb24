"""Data for a store that is there: as the store holds such data, or an error that names both.

What `fit` returns are variables by the names, the dimensions and the order of bands of the store,
as xarray shows them; what `encoded` returns are the values that go into the store's arrays.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, NoReturn

import numpy as np
import xarray as xr
from tec.config import CodecConfig
from tec.sensors import canonical_band

from .attributes import ATTRIBUTE, CF_ENCODING, same
from .compression import codec_of, configure, is_packed, weights_sha256
from .dims import role_of
from .existing import Existing, same_values
from .grid import chunk_shape, shard_shape
from .layout import Cube, find_cube
from .ratecontrol import target_of
from .stored import Stored, declared_nodata, declared_offset

#: Options of ``compress`` that say how small the data become.
_RATES = ("model", "compression", "quality", "forecast", "max_error", "weights")
_TARGETS = ("psnr", "ratio")
#: Of the codec's settings, those that do not come from the data.
_CODED = ("model", "compression", "quality", "forecast", "max_error", "lossy")
#: Attributes that say where the pixels are.
_CRS = ("crs_wkt", "spatial_ref", "GeoTransform", "crs", "epsg", "proj:epsg", "proj:code")
#: How far coordinates of the same pixels may differ, in pixels.
_APART = 1e-6


@dataclass(frozen=True)
class _Given:
    """The data, before they are compared with the store."""

    name: str | None
    data: xr.DataArray
    roles: tuple[str, ...]
    bands: tuple[str, ...]
    rest: dict[str, xr.Variable]
    cube: Cube | None


def fit(
    obj: xr.Dataset | xr.DataArray, there: Existing, options: Mapping[str, Any]
) -> dict[str, xr.Variable]:
    """The variables of ``obj`` as the store names and orders them, lazily.

    Raises
    ------
    ValueError
        The data, or what they were compressed with, or ``options`` say something else than the
        store; the message has both.
    """
    given = _given(obj, there, options)
    if given.name is not None and given.name != there.name:
        _differ(
            there,
            "the name of the compressed variable",
            there.name,
            given.name,
            f"rename it, .rename({{{given.name!r}: {there.name!r}}}) or .rename({there.name!r})",
        )
    variable = _in_order(given, there)
    if given.cube is None:
        _check_packed(given.data, there)
    else:
        _check_options(given.cube, there, options)
    _check_values(given.data, there, options)
    config = there.codec.config
    if config.weights_sha256 is not None:
        here = weights_sha256(config)
        if here != config.weights_sha256:
            _differ(
                there,
                f"the sha256 of the weights of {config.model!r}",
                config.weights_sha256,
                here,
                "this xtec has other weights than the one that wrote the store: use the version "
                "or the file that the store was written with",
            )
    axis = there.dims(there.name)[given.roles.index("band")] if "band" in given.roles else None
    order = _order(given, there)
    out = {there.name: variable}
    for name, other in given.rest.items():
        out[name] = other.isel({axis: order}) if axis in other.dims else other
    unknown = sorted(set(out) - set(there.view.variables))
    if unknown:
        raise ValueError(
            f"{', '.join(unknown)}: not in {there}, and variables cannot be added here: leave them "
            f"out, .drop_vars({unknown})"
        )
    return out


def _given(obj: xr.Dataset | xr.DataArray, there: Existing, options: Mapping[str, Any]) -> _Given:
    if is_packed(obj) and not options:
        from .writing import variable_of

        name, data = variable_of(obj)
        codec = codec_of(data.encoding)
        assert codec is not None
        roles, bands, cube = codec.dims, codec.config.bands, None
        sources: tuple[Any, ...] = (data.name,)
    else:
        config = there.codec.config
        bands_option = options.get("bands")
        if bands_option is None:
            bands_option = _band_names(obj, there)
        blocks = dict(zip(there.dims(there.name), there.array.chunks, strict=True))
        cube = find_cube(
            obj, bands=bands_option, sensor=options.get("sensor") or config.sensor, blocks=blocks
        )
        data, roles, bands, sources = cube.data, cube.roles, cube.bands, cube.sources
        unnamed = data.name is None or data.name in data.coords or data.name in data.dims
        name = None if unnamed else str(data.name)  # type: ignore[assignment]
    if isinstance(obj, xr.DataArray) and obj.name is None:
        name = None  # type: ignore[assignment]
    every = dict(data.coords.variables) if isinstance(obj, xr.DataArray) else dict(obj.variables)
    every = {**{n: v for n, v in every.items() if n not in sources}, **data.coords.variables}
    rest = {str(n): v for n, v in every.items()}
    return _Given(name, data, tuple(roles), tuple(bands), rest, cube)


def _band_names(obj: xr.Dataset | xr.DataArray, there: Existing) -> Any:
    """What ``bands`` must have been, for names that only the store can explain."""
    config = there.codec.config
    try:
        saved = json.loads(str(there.attrs[ATTRIBUTE])).get("variables")
    except (KeyError, ValueError):
        saved = None
    if saved is not None and isinstance(obj, xr.Dataset):
        pairs = zip(saved["bands"], config.bands)  # in the order of the band axis
        mapping = {n: band for n, band in pairs if n in obj.data_vars and canonical_band(n) != band}
        return mapping or None
    axis = next((d for d in there.dims(there.name) if role_of(d) == "band"), None)
    if axis is None or axis not in obj.dims:
        return None
    if axis not in obj.coords:
        return list(config.bands) if obj.sizes[axis] == len(config.bands) else None
    if axis not in there.view.coords:
        return None
    theirs = there.view[axis].values.tolist()
    own = obj[axis].values.tolist()
    if not set(own) <= set(theirs):
        return None
    return [config.bands[theirs.index(value)] for value in own]


def _order(given: _Given, there: Existing) -> list[int]:
    return [given.bands.index(band) for band in there.codec.config.bands]


def _in_order(given: _Given, there: Existing) -> xr.Variable:
    """The cube with the store's order of dimensions and bands."""
    codec, dims = there.codec, there.dims(there.name)
    mine = dict(zip(given.roles, map(str, given.data.dims), strict=True))
    if set(given.roles) != set(codec.dims) or any(
        mine[role] != dim for role, dim in zip(codec.dims, dims, strict=True)
    ):
        remedy = "rename them"
        if "time" in codec.dims and "time" not in mine:
            remedy = f"add the date, .expand_dims({dims[codec.dims.index('time')]}=[...])"
        _differ(there, "dimensions", dims, tuple(map(str, given.data.dims)), remedy)
    if set(given.bands) != set(codec.config.bands):
        _differ(there, "bands", codec.config.bands, given.bands, "pass the same bands")
    variable = given.data.variable.transpose(*dims)
    if given.bands != codec.config.bands:
        variable = variable.isel({dims[codec.dims.index("band")]: _order(given, there)})
    return variable


# settings


def _check_packed(data: xr.DataArray, there: Existing) -> None:
    """What ``compress`` has set must be what the store has."""
    codec = codec_of(data.encoding)
    assert codec is not None
    _compare_configs(there, codec.config, [*_CODED, "weights_sha256", "sensor"])
    for name in ("nodata", "offset", "scale"):
        ours, its = getattr(there.codec.config, name), getattr(codec.config, name)
        if not same(ours, its):
            _differ(there, name, ours, its)
    form = 2 if "dtype" in {f.name for f in fields(codec)} else 3
    if form != there.zarr_format:
        _differ(there, "zarr_format", there.zarr_format, form)
    sizes = dict(zip(codec.dims, data.shape, strict=True))
    chunk, shard = tuple(data.encoding["chunks"]), data.encoding.get("shards")
    _check_grid(there, sizes, codec.dims, chunk, shard)


def _check_options(cube: Cube, there: Existing, options: Mapping[str, Any]) -> None:
    """What the user asks for must be what the store has."""
    config, packing = there.codec.config, there.view[there.name].encoding
    if options.get("zarr_format", there.zarr_format) != there.zarr_format:
        _differ(there, "zarr_format", there.zarr_format, options["zarr_format"])
    target = target_of(there.attrs)
    for name in _TARGETS:
        asked = options.get(name)
        if asked is not None and (target is None or target.get(name) != asked):
            _differ(there, name, None if target is None else target.get(name), asked)
    rates = {name: options[name] for name in _RATES if options.get(name) is not None}
    if rates:
        stored = Stored(there.array.dtype, config.scale, config.offset, config.nodata)
        asked = configure(cube, stored, **{**_rates(config), **rates})
        bounds = asked.max_error
        if bounds is not None:  # of the bands as they are here
            order = [cube.bands.index(band) for band in config.bands]
            asked = replace(asked, max_error=tuple(bounds[i] for i in order), bands=config.bands)
        _compare_configs(there, asked, _CODED)
        if asked.model != "none" and weights_sha256(asked) != config.weights_sha256:
            _differ(there, "weights_sha256", config.weights_sha256, weights_sha256(asked))
    factor = float(packing.get("scale_factor") or 1.0)
    unit = config.scale * factor
    if options.get("scale") is not None and not math.isclose(options["scale"], unit, rel_tol=1e-9):
        _differ(there, "scale", unit, options["scale"])
    offset = config.offset + float(packing.get("add_offset") or 0.0) / unit
    if options.get("offset") is not None and not math.isclose(
        options["offset"], offset, rel_tol=1e-9, abs_tol=1e-9
    ):
        _differ(there, "offset", offset, options["offset"])
    if options.get("nodata", "auto") != "auto" and not same(options["nodata"], config.nodata):
        _differ(there, "nodata", config.nodata, options["nodata"])
    sizes = dict(zip(cube.roles, cube.data.shape, strict=True))
    names = dict(zip(cube.roles, cube.data.dims, strict=True))
    chunks, shards = options.get("chunks"), options.get("shards")
    if chunks is None and shards is None:
        return
    dims = there.codec.dims
    chunk = there.array.chunks
    if chunks is not None:
        asked_chunk = dict(zip(sizes, chunk_shape(sizes, names, chunks), strict=True))
        chunk = tuple(asked_chunk[role] for role in dims)
    shard = there.array.shards
    if shards is not None:
        by_role = dict(zip(dims, there.array.chunks, strict=True))
        inner = tuple(by_role[role] for role in sizes)
        found = shard_shape(sizes, names, inner, shards, there.zarr_format)
        shard = tuple(dict(zip(sizes, found, strict=True))[role] for role in dims)
    _check_grid(there, sizes, dims, chunk, shard)


def _rates(config: CodecConfig) -> dict[str, Any]:
    """The options that lead to these settings."""
    bounds = config.max_error
    bound = None if bounds is None else dict(zip(config.bands, bounds, strict=True))
    if config.model == "none":
        return {"max_error": bound}
    found: dict[str, Any] = {"model": config.model, "weights": config.weights, "max_error": bound}
    if config.lossy == "always":
        rate = "compression" if config.quality is None else "quality"
        found[rate] = getattr(config, rate)
        found["forecast"] = config.forecast
    return found


def _compare_configs(there: Existing, here: CodecConfig, names: Any) -> None:
    ours = there.codec.config
    for name in names:
        if ours.model == here.model == "none" and name in ("compression", "quality", "forecast"):
            continue
        if getattr(ours, name) != getattr(here, name):
            _differ(there, name, getattr(ours, name), getattr(here, name))


def _check_grid(
    there: Existing,
    sizes: Mapping[str, int],
    order: tuple[str, ...],
    chunk: tuple[int, ...],
    shard: tuple[int, ...] | None,
) -> None:
    """Chunks and shards; those of data that are smaller than one end with the data."""
    ours, wholes = there.array.chunks, there.array.shards
    if any(c not in (n, min(n, sizes[d])) for d, c, n in zip(order, chunk, ours, strict=True)):
        _differ(there, "chunks", ours, chunk)
    if (shard is None) != (wholes is None):
        _differ(there, "shards", wholes, shard)
    if shard is not None and wholes is not None:
        ends = {d: -(-sizes[d] // n) * n for d, n in zip(order, ours, strict=True)}
        if any(s not in (n, min(n, ends[d])) for d, s, n in zip(order, shard, wholes, strict=True)):
            _differ(there, "shards", wholes, shard)


def _check_values(data: xr.DataArray, there: Existing, options: Mapping[str, Any]) -> None:
    """What the pixels mean: packing, nodata, offset."""
    config = there.codec.config
    variable = data.variable.copy(deep=False)
    # "fill_value" is how another store pads, not what the data say
    variable.encoding = {k: v for k, v in data.encoding.items() if k != "fill_value"}
    check_packing(there, there.name, variable)
    if options.get("nodata", "auto") == "auto":
        said = declared_nodata(xr.DataArray(variable), there.array.dtype)
        if said is not None and not same(said, config.nodata):
            _differ(there, "nodata", config.nodata, said, "pass nodata= if the data say it wrongly")
    packed = _is_packing(there.view[there.name].encoding)
    if options.get("offset") is None and not packed:
        offset = declared_offset(data)
        if offset is not None and offset != config.offset:
            _differ(
                there,
                "offset",
                config.offset,
                offset,
                f"harmonise the DN, or pass offset={config.offset:g} if the attribute is wrong",
            )


def _is_packing(encoding: Mapping[Any, Any]) -> bool:
    return any(encoding.get(key) is not None for key in ("scale_factor", "add_offset"))


def check_packing(there: Existing, name: str, here: xr.Variable) -> None:
    """Refuse values that the store's CF packing would not keep."""
    theirs = there.view[name].encoding
    remedy = "open both alike (mask_and_scale), or .drop_encoding() to pack as the store does"
    for key in ("scale_factor", "add_offset"):
        mine, its = here.encoding.get(key, here.attrs.get(key)), theirs.get(key)
        if mine is not None and not (its is not None and math.isclose(mine, its, rel_tol=1e-9)):
            _differ(there, f"{key} of {name!r}", its, mine, remedy)
    fill, its = here.encoding.get("_FillValue"), theirs.get("_FillValue")
    fill = here.attrs.get("_FillValue") if fill is None else fill
    nan = fill is not None and fill != fill and here.dtype.kind == "f"
    if fill is not None and not nan and not same(fill, its):
        _differ(there, f"_FillValue of {name!r}", its, fill, remedy)
    shown, dtype = there.view[name].dtype, here.dtype.newbyteorder("=")
    # what is masked or scaled is a float of this or that size; dates are of this or that unit
    alike = shown.kind == dtype.kind and (dtype.kind in "mM" or _is_masked(theirs))
    if shown != dtype and not alike:
        _differ(there, f"dtype of {name!r}", shown, dtype, f"{remedy}, or convert it (.astype)")
    stored = here.encoding.get("dtype")
    if stored is not None and _is_masked(theirs) and dtype.kind == "f":
        found, wanted = np.dtype(stored).newbyteorder("="), there.arrays[name].dtype
        if found != wanted.newbyteorder("="):
            _differ(there, f"stored dtype of {name!r}", wanted, found, remedy)


def _is_masked(encoding: Mapping[Any, Any]) -> bool:
    return _is_packing(encoding) or encoding.get("_FillValue") is not None


def _differ(there: Existing, what: str, theirs: Any, here: Any, remedy: str = "") -> NoReturn:
    remedy = remedy or "pass what the store has, or nothing; or write another store"
    raise ValueError(
        f"{what} is {_text(theirs)} in the store and {_text(here)} here ({there}): {remedy}"
    )


def _text(value: Any) -> str:
    if isinstance(value, (float, np.floating)):
        return f"{value:g}"
    if isinstance(value, tuple):
        return f"({', '.join(map(_text, value))})"
    return str(value)


# coordinates


def compare(there: Existing, name: str, here: xr.Variable, part: Mapping[Any, slice]) -> None:
    """Refuse a variable that is in memory and differs from (a part of) the store's.

    ``part`` : of the dimensions that ``here`` has a part of
    """
    ours = there.view.variables[name]
    for key in _CRS:
        if key in here.attrs and key in ours.attrs and not same(here.attrs[key], ours.attrs[key]):
            _differ(
                there,
                f"{key} of {name!r}",
                ours.attrs[key],
                here.attrs[key],
                "reproject the data to the grid of the store",
            )
    if here.dims != ours.dims:
        _differ(there, f"the dimensions of {name!r}", ours.dims, here.dims, f".drop_vars({name!r})")
    ours = ours.isel({d: s for d, s in part.items() if d in ours.dims})
    if here.shape != ours.shape:
        _differ(there, f"the shape of {name!r}", ours.shape, here.shape, "pass the same grid")
    if here.chunks is not None or here.ndim > 1:
        return  # large, and not written
    mine, its = np.asarray(here.values), np.asarray(ours.values)
    equal = same_values(mine, its)
    if name in here.dims and mine.dtype.kind == its.dtype.kind == "f" and mine.size:
        spacing = float(np.abs(np.diff(its)).min()) if its.size > 1 else abs(float(its[0]))
        equal = equal | (np.abs(mine - its) <= _APART * spacing)
    if not equal.all():
        at = np.unravel_index(int(np.argmin(equal)), equal.shape)
        place = f"[{', '.join(map(str, at))}]" if at else ""
        _differ(
            there,
            f"{name}{place}",
            its[at],
            mine[at],
            "pass the same grid"
            if role_of(name) in ("y", "x", "band")
            else f"make them equal, or leave it out, .drop_vars({name!r})",
        )


# values for the store's arrays


def encoded(there: Existing, name: str, here: xr.Variable) -> xr.Variable:
    """As the array in the store holds it: packed, in its dtype. Dask stays Dask, unless it is no
    image.

    Raises
    ------
    ValueError
        What is in memory would not come back as it is: text that is too long, dates between those
        that the store can tell.
    """
    from xarray.backends.zarr import encode_zarr_variable

    array, theirs = there.arrays[name], there.view.variables[name]
    kept = {k: v for k, v in theirs.encoding.items() if k in CF_ENCODING}
    kept = {k: v for k, v in kept.items() if k not in ("coordinates", "grid_mapping")}
    plain = xr.Variable(here.dims, here.data, {}, kept)
    if here.chunks is not None:
        variable = encode_zarr_variable(plain, name=name)
        if variable.dtype.newbyteorder("=") != array.dtype.newbyteorder("="):
            _differ(there, f"stored dtype of {name!r}", array.dtype, variable.dtype)
        return variable
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what does not fit is found below
            values = np.asarray(encode_zarr_variable(plain, name=name).values)
            raw = values.astype(array.dtype)
            said = _raw_attrs(array)
            if kept.get("_FillValue") is not None:
                said["_FillValue"] = kept["_FillValue"]
            back = xr.conventions.decode_cf_variable(name, xr.Variable(here.dims, raw, said))
            back_values = np.asarray(back.values)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"{name!r} ({here.dtype}) cannot be stored as {there} has it, {array.dtype}: {error}"
        ) from error
    wanted = np.asarray(here.values)
    equal = same_values(back_values, wanted)
    factor = theirs.encoding.get("scale_factor")
    if factor is not None:
        equal = equal | (np.abs(back_values - wanted) <= 0.51 * abs(float(factor)))
    if not equal.all():
        at = np.unravel_index(int(np.argmin(equal)), equal.shape)
        _cannot_hold(there, name, wanted[at], back_values[at])
    return xr.Variable(here.dims, raw)


def _raw_attrs(array: Any) -> dict[str, Any]:
    """Attributes that say how the values of an array are meant."""
    return {
        k: v
        for k, v in dict(array.attrs).items()
        if k in ("units", "calendar", "dtype", "scale_factor", "add_offset", "_Unsigned")
    }


def _cannot_hold(there: Existing, name: str, wanted: Any, back: Any) -> NoReturn:
    array = there.arrays[name]
    units = array.attrs.get("units")
    remedy = f"make it fit, or leave the whole layer {name!r} out of both"
    if array.dtype.kind in "US":
        room = array.dtype.itemsize // (4 if array.dtype.kind == "U" else 1)
        remedy = (
            f"the store has room for {room} characters: shorten it, or write {name!r} into the "
            "store anew, with longer text (.astype), before appending"
        )
    elif units is not None:
        remedy = (
            f"the store counts in {units!r}, as {array.dtype}: round the dates to that (.dt.floor),"
            " or write a store whose encoding has finer units"
        )
    raise ValueError(f"{name!r}: {wanted} would come back as {back} from {there}: {remedy}")
