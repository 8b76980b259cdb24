"""The codec for Zarr format 2 and everything else that uses numcodecs, named ``xtec``.

Format 2 gives a codec no hook to check an array with, and no sight of the store. So what does not
fit is refused at the first chunk, a chunk that was never written reads as fill, and a write to a
part of a chunk decodes and encodes the rest again. Prefer format 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numcodecs.abc import Codec
from numcodecs.compat import ensure_bytes, ensure_ndarray, ndarray_copy
from tec.errors import TecError

from xtec import cache
from xtec.chunks import ChunkCoder, run_pass, split_configuration

# Zarr takes the decoded chunk as flat memory in the array's order, and does not tell the codec
# which that is. So the order of the array that was encoded is kept: a chunk of C order is the bare
# stream, a chunk of F order has this byte in front, with which no stream begins.
F_ORDER = b"F"


@dataclass(frozen=True)
class XtecCodec2(ChunkCoder, Codec):
    """Learned compression of the chunks of an array of Sentinel-2 images, lossy.

    Use as the compressor of an array of format 2, without filters and with a ``fill_value`` that is
    nodata (0 without one).

    Parameters
    ----------
    config, dims, chunk_shape
        See `xtec.chunks.ChunkCoder`.
    dtype : str
        dtype of the array with its byte order, as numpy writes it: "<u2", ">i2", "<f4".

    Raises
    ------
    TecError
        On a chunk of another shape or dtype.
    StreamError
        On reading a chunk that is damaged or not of this array.
    """

    codec_id: ClassVar[str] = "xtec"

    dtype: str = "<u2"

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            dtype = np.dtype(self.dtype)
        except (TypeError, ValueError, SyntaxError) as error:
            raise TecError(
                f"xtec codec: dtype is {self.dtype!r}: it must be as numpy writes it, such as '<u2'"
            ) from error
        object.__setattr__(self, "dtype", dtype.str)
        self.check_dtype(dtype)

    # metadata

    def configuration(self) -> dict[str, Any]:
        return {**super().configuration(), "dtype": self.dtype}

    @classmethod
    def from_configuration(cls, configuration: Mapping[str, Any]) -> Self:
        own, rest = split_configuration(configuration, ("dtype",))
        plain = ChunkCoder.from_configuration(rest)
        return cls(plain.config, plain.dims, plain.chunk_shape, **own)

    def get_config(self) -> dict[str, Any]:
        return {"id": self.codec_id, **self.configuration()}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        return cls.from_configuration({k: v for k, v in config.items() if k != "id"})

    # coding

    def encode(self, buf: Any) -> bytes:
        """Encode one chunk.

        Parameters
        ----------
        buf : array of ``chunk_shape`` and ``dtype``, C- or F-contiguous
        """
        chunk = ensure_ndarray(buf)
        self.check_chunk(chunk.shape)
        if chunk.dtype.str != self.dtype:
            raise TecError(
                f"xtec codec: the chunk is of dtype {chunk.dtype.str}, the codec was made for "
                f"{self.dtype}: create the array with this dtype, or the codec with the array's"
            )
        data = run_pass(self.encode_chunks, [chunk]).result()[0]
        return data if chunk.flags.c_contiguous or not chunk.flags.f_contiguous else F_ORDER + data

    def decode(self, buf: Any, out: Any = None) -> np.ndarray:
        """Decode one chunk.

        Returns
        -------
        array of one dimension and ``dtype``: the chunk's memory, in the order that was encoded.
        """
        data = ensure_bytes(buf)
        stream = data.removeprefix(F_ORDER)
        (future,) = cache.decode(self, [stream], np.dtype(self.dtype), ["a chunk"])
        order: Literal["C", "F"] = "C" if stream is data else "F"
        flat = future.result().flatten(order)  # a copy, since others may read the same chunk
        return flat if out is None else ndarray_copy(flat, out)
