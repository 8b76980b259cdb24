"""The codec for Zarr format 3: an array-to-bytes codec (``serializer``) named ``xtec``.

What zarr 3.1 does, and what follows:

- Partial decode and encode are used only where this is the only codec of the array (or of the
  chunks in a shard). With a compressor behind it zarr decodes, merges and encodes again by itself,
  and an absent chunk reads as nodata: always pass ``compressors=()`` and ``filters=()``. A codec
  cannot see its neighbours, so it cannot refuse.
- Zarr leaves ``write_empty_chunks`` to a codec with partial encode. This one writes every chunk, a
  chunk of nodata too (it costs a header), so that an absent chunk means "never written" even where
  that setting got lost: it belongs to an open array, and appends and regions open it anew.
- A shard that is absent as a whole never reaches the codec: it reads as nodata.
- ``validate`` is not called for codecs inside shards; ``evolve_from_array_spec`` is, with the shape
  of the inner chunk in place of the array's.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

import numpy as np
from tec.errors import TecError
from zarr.abc.codec import (
    ArrayBytesCodec,
    ArrayBytesCodecPartialDecodeMixin,
    ArrayBytesCodecPartialEncodeMixin,
)
from zarr.codecs import ShardingCodec
from zarr.registry import get_pipeline_class

from xtec import cache, embedded, settings
from xtec.chunks import (
    ROLES,
    AlignmentError,
    ChunkCoder,
    MissingChunkError,
    batch_size,
    run_pass,
)
from xtec.passes import place

if TYPE_CHECKING:
    import zarr
    from zarr.abc.codec import CodecPipeline
    from zarr.abc.store import ByteGetter, ByteSetter
    from zarr.core.array_spec import ArraySpec
    from zarr.core.buffer import Buffer, BufferPrototype, NDBuffer
    from zarr.core.indexing import SelectorTuple

T = TypeVar("T")


@dataclass(frozen=True)
class XtecCodec(
    ChunkCoder,
    ArrayBytesCodec,
    ArrayBytesCodecPartialDecodeMixin,
    ArrayBytesCodecPartialEncodeMixin,
):
    """Learned compression of the chunks of an array of Sentinel-2 images, lossy.

    Use as the ``serializer`` of an array with ``compressors=()``, ``filters=()`` and a
    ``fill_value`` that is nodata (0 without one). With ``shards`` it codes the chunks inside them.

    Parameters
    ----------
    config, dims, chunk_shape
        See `xtec.chunks.ChunkCoder`.

    Raises
    ------
    TecError
        On creating or opening an array that does not fit the configuration.
    AlignmentError
        On a write that covers only a part of what a chunk holds.
    MissingChunkError
        On reading a chunk that was never written (see ``xtec.settings.missing_chunks``).
    StreamError
        On reading a chunk that is damaged or not of this array.
    """

    is_fixed_size = False

    # metadata

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        return cls.from_configuration(data.get("configuration") or {})

    def to_dict(self) -> dict[str, Any]:
        return {"name": "xtec", "configuration": self.configuration()}

    def evolve_from_array_spec(self, array_spec: ArraySpec) -> Self:
        self.check_shape(array_spec.shape)
        self.check_dtype(array_spec.dtype.to_native_dtype())
        self.check_fill(array_spec.fill_value)
        return self

    def validate(self, *, shape: tuple[int, ...], dtype: Any, chunk_grid: Any) -> None:
        self.check_shape(shape)
        self.check_chunk(getattr(chunk_grid, "chunk_shape", ()))

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        raise NotImplementedError("the size of a chunk is known after encoding only")

    # whole chunks: called where another codec stands beside this one

    async def encode(
        self, chunks_and_specs: Iterable[tuple[NDBuffer | None, ArraySpec]]
    ) -> list[Buffer | None]:
        batch = list(chunks_and_specs)
        given = [chunk for chunk, _ in batch if chunk is not None]
        data = iter(
            await _in_pass(lambda: self.encode_chunks([c.as_numpy_array() for c in given]))
            if given
            else []
        )
        return [
            None if chunk is None else spec.prototype.buffer.from_bytes(next(data))
            for chunk, spec in batch
        ]

    async def decode(
        self, chunks_and_specs: Iterable[tuple[Buffer | None, ArraySpec]]
    ) -> list[NDBuffer | None]:
        # None (an absent chunk) passes: zarr asks for it before the first write, too.
        batch = list(chunks_and_specs)
        data = [buffer.to_bytes() for buffer, _ in batch if buffer is not None]
        specs = [spec for buffer, spec in batch if buffer is not None]
        chunks = iter(await self._decode(data, specs, [_UNKNOWN] * len(data)))
        return [
            None if buffer is None else _nd_buffer(spec.prototype, next(chunks), copy=True)
            for buffer, spec in batch
        ]

    async def _encode_single(self, chunk_data: NDBuffer, chunk_spec: ArraySpec) -> Buffer | None:
        return (await self.encode([(chunk_data, chunk_spec)]))[0]

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        chunk = (await self.decode([(chunk_data, chunk_spec)]))[0]
        if chunk is None:
            raise MissingChunkError(f"{_UNKNOWN}: there is nothing to decode")
        return chunk

    async def _decode(
        self,
        data: Sequence[bytes],
        specs: Sequence[ArraySpec],
        where: Sequence[str],
        dates: Sequence[int | None] | None = None,
    ) -> list[Any]:
        """Chunks that others may share: read-only, with as many dates as are wanted or more. Arrays
        of numpy, or of cupy where that is what zarr wants and the networks run on its GPU."""
        if not data:
            return []
        for spec in specs:
            self.check_chunk(spec.shape)
        dtype = specs[0].dtype.to_native_dtype()
        gpu = _gpu_of(specs[0].prototype)
        if gpu is not None and dtype.isnative:
            precision = settings.precision
            return await _in_pass(
                lambda: self.decode_chunks(
                    data, dtype, where, dates, precision=precision, to_gpu=gpu
                )
            )
        # hashing a long stream takes some milliseconds
        futures = await asyncio.to_thread(cache.decode, self, data, dtype, where, dates)
        return await asyncio.gather(*map(asyncio.wrap_future, futures))

    # reading

    async def decode_partial(
        self, batch_info: Iterable[tuple[ByteGetter, SelectorTuple, ArraySpec]]
    ) -> list[NDBuffer | None]:
        batch = list(batch_info)
        buffers = await asyncio.gather(*(_get(getter, spec) for getter, _, spec in batch))
        asked = [self._first_dates(selection, spec.shape) for _, selection, spec in batch]
        found = [
            (buffer.to_bytes(), spec, _where(getter), dates)
            for buffer, (getter, _, spec), (dates, _) in zip(buffers, batch, asked, strict=True)
            if buffer is not None
        ]
        if len(found) < len(batch) and settings.missing_chunks != "fill":
            absent = next(g for b, (g, *_) in zip(buffers, batch, strict=True) if b is None)
            raise MissingChunkError(
                f"{_where(absent)} was never written: was writing this store interrupted? Write "
                "the missing part again (to_zarr(..., resume=True) does that). To look at what is "
                "there, with nodata in place of missing chunks, set "
                "xtec.settings.missing_chunks = 'fill' (or XTEC_MISSING_CHUNKS=fill in the "
                "environment)"
            )
        await self._bring_weights(batch[0][0], [one[:3] for one in found])
        chunks = iter(
            await self._decode(
                [data for data, *_ in found],
                [spec for _, spec, _, _ in found],
                [where for _, _, where, _ in found],
                [dates for *_, dates in found],
            )
        )
        return [
            None
            if buffer is None  # zarr fills
            else _nd_buffer(spec.prototype, next(chunks)[selection])
            for buffer, (_, _, spec), (_, selection) in zip(buffers, batch, asked, strict=True)
        ]

    async def _bring_weights(
        self, getter: ByteGetter, found: Sequence[tuple[bytes, ArraySpec, str]]
    ) -> None:
        """From the store, where it carries them and this machine has none.

        A chunk in a shard knows no store: there ``engine="xtec"`` does this.
        """
        from zarr.storage import StorePath

        if not isinstance(getter, StorePath):
            return
        headers = [
            self.check_header(data, spec.dtype.to_native_dtype(), where)
            for data, spec, where in found
        ]
        needed = embedded.needs_of(self.config, headers)
        await embedded.bring(getter.store, getter.path, self.config, needed)

    def _first_dates(
        self, selection: SelectorTuple, shape: tuple[int, ...]
    ) -> tuple[int | None, SelectorTuple]:
        """How many dates of a chunk a selection needs (None: all), and the selection among these.

        Nothing is counted from the end any more: fewer dates have another end.
        """
        if "time" not in self.dims or not isinstance(selection, tuple):
            return None, selection
        axis = self.dims.index("time")
        asked = selection[axis]
        at: Any = np.arange(shape[axis])[asked]
        dates = 1 + int(np.max(at, initial=0))
        if isinstance(asked, slice):
            start, stop, step = asked.indices(shape[axis])
            at = slice(start, stop if stop >= 0 else None, step)
        return dates, (*selection[:axis], at, *selection[axis + 1 :])

    async def _decode_partial_single(
        self, byte_getter: ByteGetter, selection: SelectorTuple, chunk_spec: ArraySpec
    ) -> NDBuffer | None:
        return (await self.decode_partial([(byte_getter, selection, chunk_spec)]))[0]

    # writing

    async def encode_partial(
        self, batch_info: Iterable[tuple[ByteSetter, NDBuffer, SelectorTuple, ArraySpec]]
    ) -> None:
        batch = list(batch_info)
        await asyncio.gather(*(self._refuse_reencoding(s, sel, spec) for s, _, sel, spec in batch))
        try:
            data = await _in_pass(
                lambda: self.encode_chunks(
                    [_whole_chunk(v.as_numpy_array(), sel, spec) for _, v, sel, spec in batch]
                )
            )
        except TecError as error:
            error.add_note(f"while encoding {', '.join(_where(setter) for setter, *_ in batch)}")
            raise
        # again, since another writer may have come first while this one waited for its turn
        await asyncio.gather(*(self._refuse_reencoding(s, sel, spec) for s, _, sel, spec in batch))
        await asyncio.gather(
            *(
                setter.set(spec.prototype.buffer.from_bytes(one))
                for one, (setter, _, _, spec) in zip(data, batch, strict=True)
            )
        )

    async def _encode_partial_single(
        self,
        byte_setter: ByteSetter,
        chunk_array: NDBuffer,
        selection: SelectorTuple,
        chunk_spec: ArraySpec,
    ) -> None:
        await self.encode_partial([(byte_setter, chunk_array, selection, chunk_spec)])

    async def _refuse_reencoding(
        self, setter: ByteSetter, selection: SelectorTuple, spec: ArraySpec
    ) -> None:
        """Refuse a write that leaves out pixels which the chunk in the store holds."""
        self.check_chunk(spec.shape)
        if _is_complete(selection, spec.shape):
            return
        stored = await _get(setter, spec)
        if stored is None:
            return
        where = _where(setter)
        header = self.check_header(stored.to_bytes(), spec.dtype.to_native_dtype(), where)
        time, y, x = header.extent
        extent = dict(zip(ROLES, (time, self.cube_shape[1], y, x), strict=True))
        held = tuple(slice(0, extent[d]) for d in self.dims)
        covered = np.zeros(spec.shape, bool)
        covered[selection] = True
        if covered[held].all():
            return
        raise AlignmentError(
            f"{where} already holds {self._ranges(held, spec.shape)}, and this "
            f"write covers {self._ranges(selection, spec.shape)} of it: the rest would have to be "
            f"decoded and encoded again, which loses quality. Write whole chunks (start and stop "
            f"at multiples of {self._named(self.chunk_shape)}, or stop at the end of the array), "
            f"or all that this chunk holds in one write, together with what is new. If this was an "
            f"append, the array is now longer than what it holds: resize it back (zarr's resize)"
        )

    def _ranges(self, selection: SelectorTuple, shape: tuple[int, ...]) -> str:
        """ "time 0:4, y 0:64" of a selection: the bounding box."""
        hit = np.zeros(shape, bool)
        hit[selection] = True
        axes = range(len(shape))
        inside = [np.flatnonzero(hit.any(tuple(a for a in axes if a != axis))) for axis in axes]
        return ", ".join(f"{d} {i[0]}:{i[-1] + 1}" for d, i in zip(self.dims, inside, strict=True))


class _Shards(ShardingCodec):
    """Whose chunks come to the codec in batches: zarr's own asks for the size at each read, of a
    setting that all threads share."""

    @property
    def codec_pipeline(self) -> CodecPipeline:
        (codec,) = self.codecs
        size = together(cast(ChunkCoder, codec))
        return get_pipeline_class().from_codecs(self.codecs, batch_size=size)  # type: ignore[call-arg]


def together(codec: ChunkCoder) -> int:
    """Chunks that zarr shall hand over in one call."""
    time, _, y, x = codec.cube_shape
    return batch_size(time * y * x)


_making = threading.Lock()


def in_batches(array: zarr.Array, codec: ChunkCoder) -> zarr.Array:
    """An open array, to be read and written in batches of chunks, also inside shards.

    ``codec`` : ours, that the array has
    """
    import zarr

    make: Any = zarr.AsyncArray  # typed apart for the two formats

    metadata = array.metadata
    if metadata.zarr_format == 3:
        (outer, *others) = metadata.codecs
        if type(outer) is ShardingCodec and not others and outer.codecs == (codec,):
            shards = _Shards(
                chunk_shape=outer.chunk_shape,
                codecs=outer.codecs,
                index_codecs=outer.index_codecs,
                index_location=outer.index_location,
            )
            metadata = replace(metadata, codecs=(shards,))
    config = array._async_array.config
    # zarr looks at this setting, which is one for all threads, when the object is made
    with _making, zarr.config.set({"codec_pipeline.batch_size": together(codec)}):
        return zarr.Array(make(metadata, array.store_path, config))


_UNKNOWN = "a chunk"


async def _get(getter: ByteGetter, spec: ArraySpec) -> Buffer | None:
    """Bytes of a stream, which the processor reads whatever buffers zarr is set to. What a shard
    holds is there already, in zarr's buffers."""
    from zarr.core.buffer.cpu import buffer_prototype
    from zarr.storage import StorePath

    return await getter.get(buffer_prototype if isinstance(getter, StorePath) else spec.prototype)


def _gpu_of(prototype: BufferPrototype) -> str | None:
    """The GPU where zarr wants pixels (``zarr.config.enable_gpu()``), if networks run on one; None
    where pixels come by way of numpy."""
    from zarr.core.buffer import gpu

    if not issubclass(prototype.nd_buffer, gpu.NDBuffer) or place(settings.device) == "cpu":
        return None
    import cupy  # which such a buffer has

    return f"cuda:{cupy.cuda.runtime.getDevice()}"


def _nd_buffer(prototype: BufferPrototype, pixels: Any, copy: bool = False) -> NDBuffer:
    """``copy`` those that others may share."""
    if hasattr(pixels, "__cuda_array_interface__"):
        return prototype.nd_buffer.from_ndarray_like(pixels)
    return prototype.nd_buffer.from_numpy_array(np.array(pixels, copy=copy or None))


async def _in_pass(work: Callable[..., T], *args: Any) -> T:
    return await asyncio.wrap_future(run_pass(work, *args))


def _where(byte_getter: Any) -> str:
    """What to call a chunk in an error: its address, or its place in the shard."""
    coords = getattr(byte_getter, "chunk_coords", None)
    return f"chunk {byte_getter}" if coords is None else f"inner chunk {coords} of a shard"


def _is_complete(selection: SelectorTuple, shape: tuple[int, ...]) -> bool:
    """Whether plain slices select all of a chunk."""
    return isinstance(selection, tuple) and all(
        isinstance(s, slice) and s.indices(n) == (0, n, 1)
        for s, n in zip(selection, shape, strict=True)
    )


def _whole_chunk(value: np.ndarray, selection: SelectorTuple, spec: ArraySpec) -> np.ndarray:
    """The chunk to encode: `value` itself, or fill with `value` at `selection`.

    `value` is a scalar, or lacks the axes that were indexed with an integer.
    """
    if value.shape == spec.shape and _is_complete(selection, spec.shape):
        return value
    chunk = np.full(spec.shape, spec.fill_value, spec.dtype.to_native_dtype())
    selected = np.broadcast_to(np.uint8(0), spec.shape)[selection].shape
    chunk[selection] = value.reshape(selected) if value.ndim else value
    return chunk
