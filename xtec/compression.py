"""compress: any Sentinel-2 cube -> the same object, carrying the codec in its encoding."""

from __future__ import annotations

import json
import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import xarray as xr
from tec.config import COMPRESSION_RANGE, WEIGHTS, CodecConfig

from . import settings
from .attributes import ATTRIBUTE, CF_ENCODING, INPAINT, check_objects, storable
from .autogrid import AUTO, auto_chunks, auto_shards
from .bandvars import in_order
from .grid import (
    DEFAULT_CHUNKS,
    align,
    by_dim,
    chunk_shape,
    reading_blocks,
    shard_shape,
    sizes_of,
    source_blocks,
    task_of,
)
from .layout import Cube, find_cube
from .messages import log
from .ratecontrol import goal_of, reach
from .stored import Stored, stored_form

T = TypeVar("T", xr.Dataset, xr.DataArray)

#: ``compression`` where neither it nor a target is given.
DEFAULT = 20.0
#: Bounds, in DN, from where on a lossy picture under the residual can make a chunk smaller.
_COARSE = 100.0


def compress(
    obj: T,
    *,
    model: str = "tt",
    compression: float | str | None = None,
    psnr: float | None = None,
    ratio: float | None = None,
    quality: int | Sequence[int] | None = None,
    forecast: str = "mean",
    max_error: float | Mapping[str, float] | None = None,
    weights: str | os.PathLike[str] = "builtin",
    bands: Mapping[str, str] | Sequence[str] | None = None,
    sensor: str | None = None,
    offset: float = 0,
    scale: float | None = None,
    nodata: int | float | str | None = "auto",
    chunks: Mapping[Any, int] | str | None = None,
    shards: Mapping[Any, int] | str | None = None,
    zarr_format: int = 3,
    inpaint: Any = None,
) -> T:
    """Configure the codec for ``obj``, lazily: what comes back is ready for xarray's ``to_zarr``.

    No pixel is computed here, but for those of some chunks where ``psnr`` or ``ratio`` is given.

    Parameters
    ----------
    obj : Dataset or DataArray
        A Dataset of band variables (they become one variable ``reflectance``), a Dataset with one
        variable that has a band axis, or a DataArray. Dimensions are those of (time, band, y, x)
        or their usual synonyms; they come back in this order. Variables that are no reflectance
        (SCL, masks, angles) are kept, lossless.
    model : {"tt", "flex", "elic", "fp"}
        The codec: "tt" predicts each date of a chunk from the ones before, "elic" and the faster
        "fp" take each date on its own, "flex" has one checkpoint for all qualities. Chunks of one
        date are coded by "elic" where the model is "tt".
    compression : float or str, default 20
        λ: low means smaller files, high means better pixels. About 0.4 to 700; "lambda-20" is 20.
        Means nothing to the published "flex".
    psnr, ratio : float, optional
        In place of ``compression``: what the whole variable shall come to, in dB (peak 10000 DN,
        all bands, valid pixels together) or as bytes before over bytes after. λ is found by
        coding chunks on the spot: all of them where there are up to 16, else a sample that grows
        with their differences (to at most 256 chunks or 1 GiB). What is found is within 0.3 dB or
        5 %, and stands in the attribute; what cannot be met is a warning. Published weights take
        the nearest λ there is, "flex" the lowest quality that reaches ``psnr``, or the highest
        that keeps ``ratio``.
    quality : int or sequence of int, optional
        Only of model "flex": 0 (forecast from earlier dates) to 16 (the default), for all dates of
        a chunk or one a date. The last one holds for the dates that follow: [16, 4].
    forecast : {"mean", "sample"}
        Only of model "flex": what stands in for what the quality leaves out.
    max_error : float or mapping, optional
        How far any valid pixel may come back from the original, in DN; 0 is lossless (of integers).
        A guarantee, and the same integers on every machine. ``{"B02": 5, "default": 20}`` gives
        bands bounds of their own. Alone, it makes the smallest file that keeps it: without a
        network, and so without weights, or, from 100 DN on, where that makes a chunk smaller, with
        a lossy picture of ``model`` below. With ``compression`` or ``quality``, that lossy picture
        is always there.
    weights : str
        "builtin", "terracodec" (published checkpoints from the Hugging Face Hub; also
        "terracodec:lronly" for "flex") or a path. "flex" has none built in.
    bands : mapping or sequence, optional
        ``{"SR_B2": "B02", ...}`` maps names of yours to Sentinel-2's; a list names a band axis that
        has no names.
    sensor : {"S2L2A", "S2L1C"}, optional
        Guessed: S2L1C where there is a B10.
    offset : float
        What the DN carry on top of reflectance x 10000: 1000 from processing baseline 04.00 on.
        Where CF attributes (``add_offset``) say it already, leave it at 0.
    scale : float, optional
        The value of one DN. Floats without CF packing need it: 1e-4 for reflectance (0 to 1),
        1 for DN.
    nodata : number, None or "auto"
        Set aside and given back bit for bit. "auto" reads encoding and attributes; 0 (NaN for
        floats) where they say nothing. NaN is always set aside.
    chunks, shards : mapping or "auto", optional
        Sizes by dimension; by default up to 4 dates of 512 x 512 pixels a chunk, all bands, and no
        shards. ``chunks="auto"`` looks at the model, the device (`xtec.settings`), the size of the
        array and its Dask blocks, so that these need not be cut if any good chunk divides them;
        ``shards="auto"`` makes objects of some 100 MB of pixels where there would be more than
        1000. What was chosen is logged (logger ``xtec``, level INFO), is in the encoding, and
        `xtec.plan` shows it.
    zarr_format : {3, 2}
        Pass the same to ``to_zarr``. Format 3 protects against misaligned writes and missing
        chunks, format 2 cannot.
    inpaint : str, DataArray, callable or mapping, optional
        A mask of clouds, such as "SCL", or the arguments of `xtec.inpaint` (``{"mask": "SCL",
        "direction": "forward"}``): masked pixels are replaced by predictions before they are coded,
        and cost what clear ground does. What was there is lost. A Dataset gets a variable
        ``inpainted``, bool, that tells which pixels are predictions; the attribute ``xtec`` tells
        how they were made.

    Returns
    -------
    Dataset or DataArray
        Same kind as ``obj``, Dask-backed. One attribute, ``xtec``, is added to the compressed
        variable: a JSON text with package version, model, compression and sha256 of the weights,
        and the target with what was found for it where there was one.

    Raises
    ------
    ValueError
        On input that the codec cannot take; the message says what to do.

    Examples
    --------
    >>> import numpy as np, xarray as xr, xtec
    >>> pixels = np.full((2, 3, 32, 32), 1200, "uint16")
    >>> cube = xr.DataArray(pixels, dims=("time", "band", "y", "x"), name="s2")
    >>> cube = cube.assign_coords(band=["B02", "B03", "B04"])
    >>> packed = cube.tec.compress(model="elic", compression=20)
    >>> packed.shape, packed.dtype, packed.encoding["chunks"]
    ((2, 3, 32, 32), dtype('uint16'), (2, 3, 32, 32))
    """
    if zarr_format not in (2, 3):
        raise ValueError(f"zarr_format must be 3 or 2, got {zarr_format!r}")
    goal = goal_of(psnr=psnr, ratio=ratio, compression=compression, quality=quality)
    if goal is not None and max_error is not None:
        raise ValueError(
            f"{goal.name}={goal.asked:g} and max_error={max_error} each say how large an error may "
            "be: pass one of them, or compression= with max_error="
        )
    if inpaint is not None:
        from .inpainting import replaced

        obj = replaced(
            obj, inpaint, bands=bands, sensor=sensor, offset=offset, scale=scale, nodata=nodata
        )
    blocks = {**DEFAULT_CHUNKS, **sizes_of(chunks, "chunks"), **sizes_of(shards, "shards")}
    cube = find_cube(obj, bands=bands, sensor=sensor, blocks=blocks)
    stored = stored_form(cube.data, offset=offset, scale=scale, nodata=nodata)
    check_objects(obj)
    config = configure(
        cube,
        stored,
        model=model,
        compression=compression,
        quality=quality,
        forecast=forecast,
        max_error=max_error,
        weights=weights,
    )
    if goal is None:
        config = replace(config, weights_sha256=weights_sha256(config))
    chunk, shard = _grid(cube, config, stored.dtype, chunks, shards, zarr_format)
    auto = AUTO in (chunks, shards)
    source = _storable(cube)
    data = align(source, shard or chunk, cube.roles, tell=not auto)
    if auto:
        log.info(_chosen(source, data, chunk, shard))
    packed = _pack(data, cube, config, stored, chunk, shard, zarr_format)
    if goal is not None:
        config, target = reach(packed, goal)
        config = replace(config, weights_sha256=weights_sha256(config))
        packed = _pack(data, cube, config, stored, chunk, shard, zarr_format, target)
    if isinstance(obj, xr.DataArray):
        return _as_dataarray(packed, zarr_format)  # type: ignore[return-value]
    blocks = dict(zip(cube.data.dims, shard or chunk, strict=True))
    return _as_dataset(obj, cube, packed, blocks, zarr_format)  # type: ignore[return-value]


def configure(
    cube: Cube,
    stored: Stored,
    *,
    model: str = "tt",
    compression: float | str | None = None,
    quality: int | Sequence[int] | None = None,
    forecast: str = "mean",
    max_error: float | Mapping[str, float] | None = None,
    weights: str | os.PathLike[str] = "builtin",
) -> CodecConfig:
    """The codec's settings for a cube, from the options of :func:`compress`; without the sha256 of
    the weights."""
    bounds = _bounds(max_error, cube, stored)
    lossy = "always"
    if compression is None and quality is None and bounds is not None:
        compression, lossy = _matching(min(bounds)), "auto"
        if min(bounds) < _COARSE:
            model, weights, lossy = "none", "builtin", "always"
    return CodecConfig(
        model=model,
        compression=DEFAULT if compression is None else compression,  # type: ignore[arg-type]  # names too
        quality=quality,  # type: ignore[arg-type]  # and a number
        forecast=forecast,
        max_error=bounds,
        lossy=lossy,
        weights=_absolute(weights),
        sensor=cube.sensor,
        bands=cube.bands,
        nodata=stored.nodata,
        offset=stored.offset,
        scale=stored.scale,
    )


def _grid(
    cube: Cube,
    config: CodecConfig,
    dtype: np.dtype,
    chunks: Mapping[Any, int] | str | None,
    shards: Mapping[Any, int] | str | None,
    zarr_format: int,
) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """Shapes of a chunk and of a shard."""
    sizes = dict(zip(cube.roles, cube.data.shape, strict=True))
    names = dict(zip(cube.roles, cube.data.dims, strict=True))
    blocks = dict(zip(cube.roles, source_blocks(cube.data) or ()))
    if isinstance(chunks, str):
        chunks = auto_chunks(sizes, blocks, model=config.model, **_machine(config))
    chunk = chunk_shape(sizes, names, chunks)
    if isinstance(shards, str):
        by_role = dict(zip(cube.roles, chunk, strict=True))
        found = auto_shards(sizes, blocks, by_role, dtype.itemsize)
        shards = found if zarr_format == 3 else None
    if shards is None:
        return chunk, None
    return chunk, shard_shape(sizes, names, chunk, shards, zarr_format)


def _machine(config: CodecConfig) -> dict[str, Any]:
    """What `auto_chunks` wants to know besides the array."""
    from .passes import place

    compact = config.weights == "builtin" or config.weights.endswith(".safetensors")
    return {
        "stride": 16 if compact else 64,
        "device": "cpu" if config.model == "none" else place(settings.device),
    }


def _chosen(
    source: xr.DataArray, data: xr.DataArray, chunk: tuple[int, ...], shard: tuple[int, ...] | None
) -> str:
    """What "auto" came to, in one line."""
    task = task_of(source, data)
    parts = [f"{data.name}: chunks {by_dim(data.dims, chunk)}"]
    if shard is not None:
        parts.append(f"shards {by_dim(data.dims, shard)}")
    reads = "1 block" if task.blocks == 1 else f"up to {task.blocks} blocks"
    parts.append(f"a task reads {reads} of the source, {task.nbytes / 1e6:.0f} MB")
    return "; ".join(parts)


def _bounds(
    max_error: float | Mapping[str, float] | None, cube: Cube, stored: Stored
) -> tuple[float, ...] | None:
    """The bound of each band, in DN."""
    if max_error is None:
        return None
    if isinstance(max_error, Mapping):
        names = set(cube.bands)
        unknown = [name for name in max_error if name not in names and name != "default"]
        if unknown:
            raise ValueError(
                f"max_error names {', '.join(map(repr, unknown))}; the bands are "
                f"{', '.join(cube.bands)} (and 'default' for those that are not named)"
            )
        lacking = [name for name in cube.bands if name not in max_error]
        if lacking and "default" not in max_error:
            raise ValueError(
                f"max_error says nothing of {', '.join(lacking)}: name them, or add 'default'"
            )
        bounds = tuple(max_error.get(name, max_error.get("default", 0)) for name in cube.bands)
    else:
        bounds = (max_error,) * len(cube.bands)
    numbers = (int, float, np.integer, np.floating)
    if not all(isinstance(m, numbers) and not isinstance(m, bool) and m >= 0 for m in bounds):
        raise ValueError(
            f"max_error is {max_error!r}: it must be a number of DN, 0 for lossless, or "
            "{'B02': 5, 'default': 20}"
        )
    if stored.dtype.kind == "f" and min(bounds) == 0:
        raise ValueError(
            f"max_error=0 of {stored.dtype} pixels cannot be kept: store integers (CF packing, or "
            ".astype('uint16') of DN), or allow an error such as 0.1 DN"
        )
    return tuple(float(m) for m in bounds)


def _matching(bound: float) -> float:
    """λ of the lossy picture that makes most of such a bound, found by trying: 20 at 150 DN."""
    low, high = COMPRESSION_RANGE
    return float(np.clip(20 * (150 / max(bound, 1e-9)) ** 1.3, low, high))


def is_packed(obj: xr.Dataset | xr.DataArray) -> bool:
    """Whether ``compress`` has been here: a variable carries our codec in its encoding."""
    if not isinstance(obj, (xr.Dataset, xr.DataArray)):
        return False  # `compress` says what is wrong with it
    variables = [obj] if isinstance(obj, xr.DataArray) else list(obj.data_vars.values())
    return any(codec_of(v.encoding) is not None for v in variables)


def codec_of(encoding: Mapping[str, Any]) -> Any | None:
    """Our codec in the encoding of a variable, or None."""
    from .chunks import ChunkCoder

    compressors = encoding.get("compressors") or ()
    for codec in (
        encoding.get("serializer"),
        *(compressors if isinstance(compressors, (list, tuple)) else (compressors,)),
    ):
        if isinstance(codec, ChunkCoder):
            return codec
    return None


def _absolute(weights: Any) -> Any:
    """A path as whoever reads the store from another folder needs it."""
    is_path = isinstance(weights, os.PathLike) or weights not in WEIGHTS
    return os.path.abspath(weights) if is_path and os.path.isfile(weights) else weights


def weights_sha256(config: CodecConfig) -> str | None:
    """Of the checkpoint that this machine would code with; None where there is no network."""
    from tec import weights

    if config.model == "none":
        return None

    # Whoever asks for weights="terracodec" here has allowed their download.
    return weights.sha256(
        config.model,
        weights=config.weights,
        sensor=config.sensor,
        compression=config.compression,
        download=True,
    )


def _storable(cube: Cube) -> xr.DataArray:
    """The variable as Zarr can hold it."""
    data = cube.data.copy(deep=False)
    if not data.dtype.isnative:  # NetCDF 3 is big-endian; no Zarr codec's business
        if data.chunks is None:  # astype would load it
            blocks = dict(zip(data.dims, (DEFAULT_CHUNKS.get(r, -1) for r in cube.roles)))
            data = data.copy(data=data.variable.chunk(reading_blocks(data.variable, blocks)).data)
        data = data.astype(data.dtype.newbyteorder("="), keep_attrs=True).assign_attrs(data.attrs)
        data.encoding = dict(cube.data.encoding)
    data.attrs = storable(data.attrs, f"variable {data.name!r}")
    return data


def _pack(
    data: xr.DataArray,
    cube: Cube,
    config: CodecConfig,
    stored: Stored,
    chunk: tuple[int, ...],
    shard: tuple[int, ...] | None,
    zarr_format: int,
    target: Mapping[str, Any] | None = None,
) -> xr.DataArray:
    """The variable, in blocks of whole chunks already, with its encoding and provenance."""
    data = data.copy(deep=False)
    old, variables = _provenance(data), cube.variables
    if variables is None and old is not None:
        variables = old.get("variables")
    told = provenance(config, variables, target)
    if INPAINT in data.attrs:
        told["inpaint"] = json.loads(data.attrs[INPAINT])
    data.attrs[ATTRIBUTE] = json.dumps(told)
    encoding = {key: value for key, value in data.encoding.items() if key in CF_ENCODING}
    if "dtype" in encoding:
        encoding["dtype"] = stored.dtype
    encoding["chunks"] = chunk
    encoding["filters"] = () if zarr_format == 3 else None
    encoding["write_empty_chunks"] = True
    if zarr_format == 3:
        from .zarr3 import XtecCodec

        encoding["serializer"] = XtecCodec(config=config, dims=cube.roles, chunk_shape=chunk)
        encoding["compressors"] = ()
        encoding["fill_value"] = stored.fill_value
        if shard is not None:
            encoding["shards"] = shard
    else:
        from .zarr2 import XtecCodec2

        encoding["compressors"] = (
            XtecCodec2(config=config, dims=cube.roles, chunk_shape=chunk, dtype=stored.dtype.str),
        )
    data.encoding = encoding
    return data


def provenance(
    config: CodecConfig,
    variables: Mapping[str, Any] | None = None,
    target: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What the attribute ``xtec`` says, as JSON values."""
    from . import __version__

    kept = ["format", "model", "max_error", "lossy"]
    if config.model != "none":
        kept += ["compression", "quality", "forecast", "weights", "weights_sha256"]
    return {
        "version": __version__,
        **{key: value for key, value in config.to_dict().items() if key in kept},
        **({} if target is None else {"target": target}),
        **({} if variables is None else {"variables": variables}),
    }


def _provenance(data: xr.DataArray) -> dict[str, Any] | None:
    """What an earlier ``compress`` has left on a cube that is compressed again."""
    try:
        found = json.loads(data.attrs.get(ATTRIBUTE, "null"))
    except (TypeError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _as_dataarray(packed: xr.DataArray, zarr_format: int) -> xr.DataArray:
    for name, coord in packed.coords.items():
        coord.variable.encoding = _cf_only(coord)
        if coord.chunks is not None:
            coord.variable.encoding.update(_checked(zarr_format))
        coord.variable.attrs = storable(coord.attrs, f"coordinate {name!r}")
    return packed


def _as_dataset(
    obj: xr.Dataset,
    cube: Cube,
    packed: xr.DataArray,
    blocks: dict[Hashable, int],
    zarr_format: int,
) -> xr.Dataset:
    out = obj.copy(deep=False)
    order = [name for name in out.data_vars if name not in cube.sources[1:]]
    order[order.index(cube.sources[0])] = packed.name
    kept = {
        name: _kept(name, out[name], blocks, zarr_format)
        for name in out.variables
        if name not in cube.sources and name not in packed.coords
    }
    out = (
        _as_dataarray(packed, zarr_format)
        .to_dataset()
        .assign({name: v for name, v in kept.items() if name in out.data_vars})
    )
    out = out.assign_coords({name: v for name, v in kept.items() if name not in out.data_vars})
    out = in_order(out, order)
    out.attrs = storable(obj.attrs, "the dataset")
    return out


def _kept(
    name: Hashable, data: xr.DataArray, blocks: dict[Hashable, int], zarr_format: int
) -> xr.Variable:
    """A variable that is no reflectance: lossless, images in the blocks of the cube."""
    variable = data.variable.copy(deep=False)
    encoding = _cf_only(data)
    if len(blocks.keys() & set(variable.dims)) >= 2 or variable.chunks is not None:
        sizes = {dim: min(blocks.get(dim, size), size) for dim, size in variable.sizes.items()}
        variable = variable.chunk(sizes)
        encoding["chunks"] = tuple(sizes.values())
        encoding.update(_checked(zarr_format))
    variable.encoding = encoding
    variable.attrs = storable(data.attrs, f"variable {name!r}")
    return variable


def _checked(zarr_format: int) -> dict[str, Any]:
    """Encoding that tells what was not written, or is damaged, as the codec does for the cube.

    Zarr's own defaults leave out chunks of nothing but fill, and the checksum; those of format 2
    decode half a chunk without an error.
    """
    import numcodecs
    from zarr.codecs import ZstdCodec

    zstd = ZstdCodec(level=0, checksum=True)
    compressor = zstd if zarr_format == 3 else numcodecs.Zstd(level=0, checksum=True)
    return {"compressors": (compressor,), "write_empty_chunks": True}


def _cf_only(data: xr.DataArray) -> dict[str, Any]:
    return {
        key: value for key, value in data.encoding.items() if key in (*CF_ENCODING, "fill_value")
    }
