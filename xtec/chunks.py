"""What the codecs for Zarr formats 2 and 3 share: one chunk of an array <-> one cube of tec.

Importing this module loads no network library; the first chunk that is coded does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from tec.config import CodecConfig
from tec.errors import StreamError, TecError, WeightsError

from xtec import settings
from xtec.passes import batch_size as batch_size
from xtec.passes import run_pass as run_pass

if TYPE_CHECKING:
    from tec.stream import Header

ROLES = ("time", "band", "y", "x")  # the axis order of every chunk in tec
DTYPES = ("uint16", "int16", "float32")
REMEDY = (
    "If this is a subset, a mask or a result that should be stored without the codec, call "
    "ds.drop_encoding() before writing; to compress it again, ds.drop_encoding().tec.compress(...)"
)
#: Errors in DN that any chunk may have whose stream needs no network: no integer differs.
SOUND = 0.01
EMBEDDED = (
    "A store that was written with embed_weights=True has them inside; in shards and in Zarr "
    'format 2 only xr.open_dataset(store, engine="xtec") finds them there'
)


class AlignmentError(TecError):
    """A write would have to decode stored pixels and encode them again, which loses quality."""


class MissingChunkError(TecError):
    """A chunk that is read was never written."""


@dataclass(frozen=True)
class ChunkCoder:
    """How the chunks of one array are coded. Small, hashable, pickles as its fields.

    Parameters
    ----------
    config : CodecConfig
        Model, compression, weights, bands, nodata, offset and scale.
    dims : sequence of str
        What each axis of the array is: "time", "band", "y" or "x", each once at most, "y" and "x"
        always there. Without "band", ``config.bands`` holds one band.
    chunk_shape : sequence of int
        Shape of a chunk, one number an axis. The band axis is one chunk.

    Raises
    ------
    TecError
        Where these do not fit together.
    """

    config: CodecConfig
    dims: tuple[str, ...]
    chunk_shape: tuple[int, ...]

    def __post_init__(self) -> None:
        for name, kind in (("dims", str), ("chunk_shape", Integral)):
            given = getattr(self, name)
            is_list = isinstance(given, Iterable) and not isinstance(given, str)
            values = tuple(given) if is_list else ()
            if not values or not all(isinstance(v, kind) for v in values):
                raise TecError(
                    f"xtec codec: {name} is {given!r}: it must be a list such as "
                    "['time', 'band', 'y', 'x'] for dims and [4, 12, 256, 256] for chunk_shape"
                )
            object.__setattr__(self, name, tuple(int(v) if kind is Integral else v for v in values))
        unknown = [d for d in self.dims if d not in ROLES]
        if unknown or len(set(self.dims)) < len(self.dims) or not {"y", "x"} <= set(self.dims):
            raise TecError(
                f"xtec codec: dims {self.dims} must name each axis once, out of {ROLES}, "
                f"with 'y' and 'x' among them"
            )
        if len(self.chunk_shape) != len(self.dims) or min(self.chunk_shape) < 1:
            raise TecError(
                f"xtec codec: chunk_shape {self.chunk_shape} must hold one positive number for "
                f"each of the dims {self.dims}"
            )
        if self.cube_shape[1] != len(self.config.bands):
            raise TecError(
                f"xtec codec: a chunk {self._named(self.chunk_shape)} holds {self.cube_shape[1]} "
                f"of the {len(self.config.bands)} bands {self.config.bands}: all bands must be in "
                f"one chunk"
            )

    # configuration

    def configuration(self) -> dict[str, Any]:
        """All fields as JSON values."""
        return {
            **self.config.to_dict(),
            "dims": list(self.dims),
            "chunk_shape": list(self.chunk_shape),
        }

    @classmethod
    def from_configuration(cls, configuration: Mapping[str, Any]) -> Self:
        """Mirror of `configuration`. Raises `TecError` on what it does not know."""
        own, rest = split_configuration(configuration, ("dims", "chunk_shape"))
        return cls(config=CodecConfig.from_dict(rest), **own)

    # checks

    @property
    def cube_shape(self) -> tuple[int, int, int, int]:
        """Shape of a chunk as tec sees it, (time, band, y, x)."""
        sizes = dict(zip(self.dims, self.chunk_shape, strict=True))
        return sizes.get("time", 1), sizes.get("band", 1), sizes["y"], sizes["x"]

    def check_shape(self, shape: Sequence[int]) -> None:
        """Refuse an array (or an inner chunk of a shard) of another rank or number of bands."""
        if len(shape) != len(self.dims):
            raise TecError(
                f"xtec codec: the array has {len(shape)} dimensions {tuple(shape)}, the codec was "
                f"made for {len(self.dims)}: {self.dims}. {REMEDY}"
            )
        bands = dict(zip(self.dims, shape, strict=True)).get("band", 1)
        if bands != len(self.config.bands):
            raise TecError(
                f"xtec codec: the array has {bands} bands, the codec was made for "
                f"{len(self.config.bands)}: {self.config.bands}. {REMEDY}"
            )

    def check_dtype(self, dtype: np.dtype) -> None:
        """Refuse a dtype that tec does not code."""
        if dtype.name not in DTYPES:
            raise TecError(
                f"xtec codec: dtype {dtype.name} cannot be coded, only {', '.join(DTYPES)}. "
                f"{REMEDY}"
            )

    def check_fill(self, fill_value: Any) -> None:
        """Refuse a fill value that is not nodata: edge chunks arrive padded with it."""
        wanted = 0 if self.config.nodata is None else self.config.nodata
        if not (fill_value == wanted or (fill_value != fill_value and wanted != wanted)):
            what = "no nodata value" if self.config.nodata is None else f"nodata {wanted}"
            raise TecError(
                f"xtec codec: fill_value {fill_value} does not fit a codec with {what}: create the "
                f"array with fill_value={wanted} (in xarray encoding['fill_value']). {REMEDY}"
            )

    def check_chunk(self, shape: Sequence[int]) -> None:
        """Refuse a chunk of another shape than the configured one."""
        if tuple(shape) != self.chunk_shape:
            raise TecError(
                f"xtec codec: chunks of the array are {tuple(shape)}, the codec was made for "
                f"{self._named(self.chunk_shape)}: use these chunks. {REMEDY}"
            )

    def check_header(self, data: bytes, dtype: np.dtype, where: str) -> Header:
        """Header of a stream, after comparing it with the array. Decodes nothing.

        Raises
        ------
        StreamError
            Where `data` is no stream, or one of another shape, dtype or bands, or with other
            settings than the codec's: a chunk says by itself what its pixels mean, and must not
            say anything else than the array.
        """
        from tec import stream

        try:
            header = stream.peek(data)
            for what, found, wanted in self._statements(header, dtype):
                if found != wanted:
                    stream.unpack(data)  # where it is damaged, that is the news
                    raise StreamError(
                        f"the stream holds {what} {found}, the array says {wanted}: this chunk "
                        "belongs to another array, or the array's metadata was changed"
                    )
        except TecError as error:
            raise StreamError(f"{where}: {error}") from error
        return header

    def _statements(self, header: Header, dtype: np.dtype) -> Iterator[tuple[str, Any, Any]]:
        """(what, as the stream says it, as the array says it) of all that both say."""
        mine, its = self.config, header.config
        yield "shape (time, band, y, x)", tuple(header.shape), self.cube_shape
        yield "dtype", np.dtype(header.dtype).name, dtype.name
        yield "bands", tuple(its.bands), tuple(mine.bands)
        yield "sensor", its.sensor, mine.sensor
        yield "nodata", _stored(its.nodata, dtype), _stored(mine.nodata, dtype)
        yield "offset", its.offset, mine.offset
        yield "scale", its.scale, mine.scale
        from tec.codec import routed

        dates, kept = header.extent[0], its.max_error or ()
        if mine.max_error is not None and (
            not kept or any(m > n * (1 + 1e-6) for m, n in zip(kept, mine.max_error))
        ):
            yield "errors of up to", kept, mine.max_error
        if header.model == "none":
            # Where that was smaller; or (next to) without loss, where a network's stream failed.
            if mine.model != "none" and mine.lossy != "auto" and max(kept) > SOUND:
                yield "model", header.model, mine.model
            return
        if kept and mine.max_error is None:
            yield "errors of up to", kept, None
        yield "compression", its.compression, float(np.float32(mine.compression))
        if header.model != routed(mine, dates):
            yield "model", header.model, mine.model
        if header.model == mine.model and mine.weights_sha256 is not None:
            digest = header.digest.hex()
            yield "weights of sha256", digest, mine.weights_sha256[: len(digest)]
        yield "quality", tuple(header.how), mine.tokens(dates)
        yield "forecast", its.forecast, mine.forecast

    # coding

    def to_cube(self, chunk: np.ndarray) -> np.ndarray:
        """Chunk of the array -> (time, band, y, x) in native byte order (a view where possible)."""
        self.check_chunk(chunk.shape)
        self.check_dtype(chunk.dtype)
        present = [d for d in ROLES if d in self.dims]
        cube = chunk.transpose([self.dims.index(d) for d in present])
        cube = cube.reshape(self.cube_shape) if len(present) < 4 else cube
        return cube.astype(cube.dtype.newbyteorder("="), copy=False)

    def from_cube(self, cube: np.ndarray, dtype: np.dtype) -> np.ndarray:
        """Mirror of `to_cube`; `dtype` carries the byte order."""
        present = [d for d in ROLES if d in self.dims]
        chunk = cube.reshape([cube.shape[ROLES.index(d)] for d in present])
        return chunk.transpose([present.index(d) for d in self.dims]).astype(dtype, copy=False)

    def encode_chunks(self, chunks: Sequence[np.ndarray], *, wider: float = 1) -> list[bytes]:
        """Encode chunks of the array in one pass of the network. Blocks: see `run_pass`.

        ``wider`` : see `tec.codec.encode_many`
        """
        from tec import codec

        cubes = [self.to_cube(chunk) for chunk in chunks]
        return codec.encode_many(cubes, self.config, device=settings.device, wider=wider)

    def decode_chunks(
        self,
        data: Sequence[bytes],
        dtype: np.dtype,
        where: Sequence[str],
        dates: Sequence[int | None] | None = None,
        independent: bool = False,
        precision: str = "full",
        to_gpu: str | None = None,
    ) -> list[Any]:
        """Decode chunks of the array in one pass of the network. Blocks: see `run_pass`.

        Parameters
        ----------
        data : sequence of bytes
        dtype : dtype of the array, with its byte order
        where : sequence of str
            What to call each chunk in an error.
        dates : sequence of int, optional
            How many dates of each chunk to decode, from the first on; None for all. The others are
            missing in what is returned.
        independent, precision
            See `tec.codec.decode_many`.
        to_gpu : str, optional
            A device of torch, for arrays of cupy there.

        Raises
        ------
        StreamError
            Names the chunk; nothing is decoded when one of the headers does not fit the array.
        WeightsError
            The checkpoint cannot be had.
        TecError
            ``precision`` is none, or the chunk does not allow it.
        """
        from tec import codec

        for one, name in zip(data, where, strict=True):
            self.check_header(one, dtype, name)
        try:
            cubes = codec.decode_many(
                list(data),
                dates=dates,
                weights=self._path(),
                device=settings.device,
                max_samples=math.prod(self.chunk_shape),
                precision=precision,
                to=to_gpu,
                independent=independent,
            )
        except WeightsError as error:
            raise WeightsError(f"{error}. {EMBEDDED}") from error
        except StreamError as error:
            if len(data) == 1:
                raise StreamError(f"{where[0]}: {error}") from error
            # one by one, to name the chunk that is damaged
            return [
                self.decode_chunks([one], dtype, [name], [n], precision=precision, to_gpu=to_gpu)[0]
                for one, name, n in zip(data, where, dates or [None] * len(data), strict=True)
            ]
        if to_gpu is not None:
            cubes = [_of_cupy(cube) for cube in cubes]
        return [self.from_cube(cube, dtype) for cube in cubes]

    def _path(self) -> str | None:
        """Path of the checkpoint, which a stream does not keep, where it came from a file."""
        from tec.stream import weights_id

        weights = self.config.weights
        return weights if weights_id(weights) == "file" else None

    def _named(self, shape: Sequence[int]) -> str:
        return ", ".join(f"{d}={n}" for d, n in zip(self.dims, shape, strict=True))


def _of_cupy(cube: Any) -> Any:
    """A tensor as an array of cupy, on the same memory."""
    import cupy
    import torch

    if cube.dtype is torch.uint16:  # which not every version of torch hands over
        return cupy.from_dlpack(cube.view(torch.int16)).view("u2")
    return cupy.from_dlpack(cube)


def _stored(nodata: float | None, dtype: np.dtype) -> str:
    """nodata as a pixel of this dtype holds it, in words: equal where they mark the same pixels."""
    from tec.specials import nodata_value

    value = nodata_value(nodata, dtype)
    return "none" if value is None else str(value.item() or 0)  # -0.0 marks what 0.0 does


def split_configuration(
    configuration: Mapping[str, Any], names: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The named entries, and the others."""
    if not isinstance(configuration, Mapping):
        raise TecError(
            f"xtec codec: the configuration is {configuration!r}: it must be a dict such as "
            "{'model': 'elic', 'dims': [...], 'chunk_shape': [...]}"
        )
    missing = [n for n in names if n not in configuration]
    if missing:
        raise TecError(f"xtec codec: the configuration lacks {', '.join(missing)}: {configuration}")
    rest = {k: v for k, v in configuration.items() if k not in names}
    return {n: configuration[n] for n in names}, rest
