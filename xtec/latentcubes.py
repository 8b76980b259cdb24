"""The latents of a cube as a cube of their own, lazily: for those who train on them."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from tec.errors import StreamError, TecError
from tec.specials import fill_value

from . import settings
from .chunks import ROLES, ChunkCoder, MissingChunkError, run_pass

if TYPE_CHECKING:
    import dask.array
    import zarr

    from .blocks import Target

LATENT = "latent"
#: Rows and columns of pixels that a latent stands for, in all models.
CELL = 16


def latents(
    source: Any,
    *,
    variable: str | None = None,
    storage_options: dict[str, Any] | None = None,
    **options: Any,
) -> xr.DataArray:
    """The quantised latents of a store, or of a cube as `compress` would code it.

    Parameters
    ----------
    source : path, URL or zarr Store of a cube that xtec has compressed: the latents of its streams
        are decoded, no pixels. Or a Dataset or DataArray of pixels: its chunks are encoded, as
        writing would do it (what was opened from a store is coded once more: pass the store).
    variable : which one, where a store has several that are compressed
    storage_options : for URLs
    options : of `compress`, where ``source`` is a cube of pixels

    Returns
    -------
    DataArray (time, latent, y, x) float32 in Dask: what the synthesis of the model gets; a block
    for each object of the store, or for each Dask block of the cube. Each chunk has cells of
    16 x 16 pixels of its own, so all lie on one grid where chunks are multiples of 16; ``y`` and
    ``x`` are the middles of the pixels in a cell. NaN where nothing was coded: dates, or rows and
    columns at the end of a chunk, that are nodata as a whole. Attributes: model, compression,
    weights and their sha256.

    Raises
    ------
    ValueError
        There are no latents (``max_error=`` alone), no such variable, or nothing but nodata. Later,
        in a block: TecError where a chunk was coded without a network, or by one with other latents
        (a single date of the published "tt", which "elic" codes).
    """
    if isinstance(source, (xr.Dataset, xr.DataArray)):
        return _of_pixels(source, options)
    if options:
        raise ValueError(
            f"{', '.join(map(repr, options))} cannot be chosen for what is in a store: leave it "
            "out, or pass the pixels"
        )
    return _of_store(source, variable, storage_options)


def _of_pixels(obj: xr.Dataset | xr.DataArray, options: Mapping[str, Any]) -> xr.DataArray:
    from tec import codec

    from .compression import codec_of, compress

    packed = compress(obj, **options)  # type: ignore[type-var]
    variables = [packed] if isinstance(packed, xr.DataArray) else list(packed.data_vars.values())
    data, coder = next((v, c) for v in variables if (c := codec_of(v.encoding)) is not None)
    _check(coder, data.name)
    raw = xr.conventions.encode_cf_variable(data.variable)
    cube = raw.data[tuple(slice(None) if r in coder.dims else None for r in ROLES)]
    # As many dates as chunks have: one alone may be another model's.
    little = np.full((min(coder.cube_shape[0], cube.shape[0]), cube.shape[1], CELL, CELL), 1000)
    stream = codec.encode(little.astype(raw.dtype), coder.config, device=settings.device)
    channels = len(_decoded(coder, stream)[0])
    sizes = [_cells(n, m) for n, m in zip(cube.chunks[2:], coder.cube_shape[2:], strict=True)]
    out = cube.map_blocks(
        _encode_block,
        coder=coder,
        channels=channels,
        chunks=(cube.chunks[0], (channels,), *sizes),
        dtype=np.float32,
        meta=np.empty((0,) * 4, np.float32),
    )
    return _labelled(out, coder, data.coords, data.dims, data.shape, f"{data.name}_latents")


def _of_store(
    source: Any, variable: str | None, storage_options: dict[str, Any] | None
) -> xr.DataArray:
    import dask.array as da

    from .backend import XtecBackend
    from .blocks import Target
    from .objects import unit_of
    from .remote import for_reading, name_of
    from .report import compressed_arrays

    group, arrays, found = compressed_arrays(source, storage_options)
    if variable is None and len(found) > 1:
        raise ValueError(
            f"{name_of(source)} has several compressed variables, {sorted(found)}: pass variable="
        )
    name = next(iter(found)) if variable is None else variable
    if name not in found:
        raise ValueError(
            f"{name_of(source)} has no compressed variable {name!r}; it has {sorted(found)}"
        )
    coder, array = found[name], arrays[name]
    if list(coder.dims) != [r for r in ROLES if r in coder.dims]:
        raise ValueError(
            f"the dimensions of {name!r} are in the order {coder.dims}: latents are read from "
            "stores that ds.tec.compress made, in the order time, band, y, x"
        )
    _check(coder, name)
    target = Target(group.store, array.path, group.metadata.zarr_format, read_only=True)
    shape = _four(array.shape, coder)
    unit = _four(unit_of(array), coder)
    blocks = [
        tuple(min(u, n - k) for k in range(0, n, u)) for n, u in zip(shape, unit, strict=True)
    ]
    channels = _channels(target, coder)
    sizes = [_cells(n, m) for n, m in zip(blocks[2:], coder.cube_shape[2:], strict=True)]
    out = da.map_blocks(
        _decode_block,
        target=target,
        coder=coder,
        channels=channels,
        chunks=(blocks[0], (channels,), *sizes),
        dtype=np.float32,
        meta=np.empty((0,) * 4, np.float32),
    )
    place = for_reading(source, storage_options)
    stored = xr.open_dataset(place, engine=XtecBackend, layout="stored", decode_coords="all")
    its = stored[name]
    return _labelled(out, coder, its.coords, its.dims, its.shape, f"{name}_latents")


def _check(coder: ChunkCoder, name: Hashable) -> None:
    if coder.config.model == "none":
        raise ValueError(
            f"{name!r} has no latents: max_error= alone codes without a network; add compression= "
            "(or quality=) for a lossy picture with latents below it"
        )


def _four(sizes: Sequence[int], coder: ChunkCoder) -> tuple[int, ...]:
    """Sizes along time, band, y and x."""
    by_role = dict(zip(coder.dims, sizes, strict=True))
    return tuple(by_role.get(role, 1) for role in ROLES)


def _cells(blocks: Sequence[int], chunk: int) -> tuple[int, ...]:
    """Latents along y or x of blocks of pixels, whose chunks have so many pixels."""
    return tuple(sum(-(-n // CELL) for n in _parts(size, chunk)) for size in blocks)


def _parts(size: int, chunk: int) -> list[int]:
    return [min(chunk, size - start) for start in range(0, size, chunk)]


# blocks


def _encode_block(block: np.ndarray, coder: ChunkCoder, channels: int) -> np.ndarray:
    """Pixels (time, band, y, x), whole chunks but for the end of the array -> latents."""
    from tec import codec

    chunk = coder.cube_shape
    out = _empty(block.shape, coder, channels)
    for pixels, cells in _places(block.shape, chunk):
        part = block[pixels]
        # as zarr fills up chunks at the end of an array
        whole = np.full(chunk, fill_value(coder.config.nodata, part.dtype.name), part.dtype)
        whole[tuple(map(slice, part.shape))] = part
        work = partial(codec.encode_many, device=settings.device)
        (stream,) = run_pass(work, [whole], coder.config).result()
        _put(out[cells], coder, stream, f"the chunk at {[s.start for s in pixels]} of its block")
    return out


def _decode_block(
    target: Target, coder: ChunkCoder, channels: int, block_id: tuple[int, ...] = ()
) -> np.ndarray:
    """The latents of one object of a store."""
    from .objects import region_of

    array = target.array
    at = tuple(i for i, role in zip(block_id, ROLES, strict=True) if role in coder.dims)
    inside = _four([s.stop - s.start for s in region_of(array, at)], coder)
    out = _empty(inside, coder, channels)
    streams = _streams(target, coder, array, at)
    for (_, cells), (where, stream) in zip(
        _places(inside, coder.cube_shape), streams.items(), strict=True
    ):
        header = coder.check_header(stream, array.dtype, where)
        if header.extent[0]:
            _put(out[cells], coder, stream, where)
    return out


def _streams(
    target: Target, coder: ChunkCoder, array: zarr.Array, at: tuple[int, ...]
) -> dict[str, bytes]:
    """Name and stream of each chunk of an object, in C order; the weights are at hand."""
    from zarr.core.sync import sync

    from . import embedded
    from .objects import keys_of, read, streams_in

    (key,) = keys_of(array, target.path, [at]).values()
    data = read(target.store, key)
    if data is None:
        raise MissingChunkError(
            f"{key} is not there: the store is not whole; write it again with resume=True"
        )
    needed = embedded.needs(coder.config)
    sync(embedded.bring(target.store, target.path, coder.config, needed, target.zarr_format))
    try:
        found = streams_in(data, array, at)
    except TecError as error:
        raise StreamError(f"{key}: {error}") from error
    return {key if array.shards is None else f"{key} {p}": s for p, s in found.items()}


def _channels(target: Target, coder: ChunkCoder) -> int:
    """Of the first chunk that has any."""
    from tec import stream

    from .objects import grid_of

    array = target.array
    for at in np.ndindex(*grid_of(array)):
        for data in _streams(target, coder, array, at).values():
            header = stream.peek(data)
            if header.extent[0] and header.model != "none":
                return len(_decoded(coder, data)[0])
    raise ValueError(
        f"{target.path!r} has no latents: no chunk holds anything that a network coded"
    )


def _empty(shape: Sequence[int], coder: ChunkCoder, channels: int) -> np.ndarray:
    """NaN for the latents of (time, band, y, x) pixels."""
    y, x = (sum(_cells([n], m)) for n, m in zip(shape[2:], coder.cube_shape[2:], strict=True))
    return np.full((shape[0], channels, y, x), np.nan, np.float32)


def _places(
    shape: Sequence[int], chunk: Sequence[int]
) -> Iterator[tuple[tuple[slice, ...], tuple[slice, ...]]]:
    """Pixels and cells of each chunk of a block, in C order."""
    axes = []
    for role, size, unit in zip(ROLES, shape, chunk, strict=True):
        pixels = cells = 0
        axis = []
        for n in _parts(size, unit):
            m = -(-n // CELL) if role in ("y", "x") else n
            axis.append((slice(pixels, pixels + n), slice(cells, cells + m)))
            pixels, cells = pixels + n, cells + m
        # all bands are in one chunk, and give all latents
        axes.append([(slice(None), slice(None))] if role == "band" else axis)
    for parts in product(*axes):
        yield tuple(p for p, _ in parts), tuple(c for _, c in parts)


def _put(out: np.ndarray, coder: ChunkCoder, stream: bytes, where: str) -> None:
    """The latents of a stream into (time, latent, y, x)."""
    try:
        dates = run_pass(_decoded, coder, stream).result()
    except TecError as error:
        raise type(error)(f"{where}: {error}") from error
    for date, found in zip(out, dates):
        if len(found) != len(date):
            raise TecError(
                f"{where} has {len(found)} latents, others {len(date)}: it was coded by another "
                "model (a single date); leave it out with isel"
            )
        # padding of the image, beyond what is in the array, has latents too
        y, x = (min(n, m) for n, m in zip(date.shape[1:], found.shape[1:], strict=True))
        date[:, :y, :x] = found[:, :y, :x]


def _decoded(coder: ChunkCoder, stream: bytes) -> list[np.ndarray]:
    from tec import codec

    return codec.latents(
        stream,
        weights=coder._path(),
        device=settings.device,
        max_samples=max(math.prod(coder.cube_shape), 1),
    )


# labels


def _labelled(
    out: dask.array.Array,
    coder: ChunkCoder,
    coords: Mapping[Any, xr.DataArray],
    dims: Sequence[Hashable],
    shape: Sequence[int],
    name: str,
) -> xr.DataArray:
    """With the coordinates that the pixels have, where cells can have them."""
    by_role = dict(zip(coder.dims, dims, strict=True))
    size = dict(zip(coder.dims, shape, strict=True))
    names = [by_role.get("time"), LATENT, by_role["y"], by_role["x"]]
    if names[0] is None:
        out, names = out[0], names[1:]
    data = xr.DataArray(out, dims=names, name=name)
    pixels = {by_role[role]: role for role in ("y", "x")}
    left = {by_role.get("band"), *pixels}
    for key, coord in coords.items():
        if key in pixels and coord.dims == (key,):
            role = pixels[key]
            chunk = coder.cube_shape[ROLES.index(role)]
            middles = _middles(coord.values, _parts(size[role], chunk))
            data = data.assign_coords({key: (key, middles, coord.attrs)})
        elif not left & set(coord.dims):
            data = data.assign_coords({key: coord.variable.copy()})
            # of pixels: rioxarray takes it from the coordinates instead
            data[key].attrs.pop("GeoTransform", None)
    config = coder.config
    data.attrs = {"model": config.model, "compression": config.compression}
    data.attrs |= {"weights": str(config.weights), "weights_sha256": config.weights_sha256 or ""}
    return data


def _middles(values: np.ndarray, chunks: Sequence[int]) -> np.ndarray:
    """Of the pixels in each cell."""
    start, out = 0, []
    for n in chunks:
        for k in range(0, n, CELL):
            first, last = values[start + k], values[start + min(k + CELL, n) - 1]
            out.append(first + (last - first) / 2)
        start += n
    return np.asarray(out)
