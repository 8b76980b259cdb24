"""Is what is in a store sound, and how far is it from its source?

Every chunk (or some) is checked and decoded as another machine might: by itself, the networks in
float64. Where there is a source it is compared, pixel by pixel; and a store that is just being
written is repaired: a chunk that fails is written again with a wider margin, then without loss.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from tec.errors import StreamError, TecError
from tec.specials import fill_value
from zarr.core.sync import sync

from . import embedded, settings
from .attributes import ATTRIBUTE, CF_ENCODING
from .blocks import Job, Target, each, run
from .chunks import SOUND, ChunkCoder, run_pass
from .messages import warn
from .objects import At, called, grid_of, keys_of, object_of, read, streams_in, unit_of
from .ratecontrol import spread

if TYPE_CHECKING:
    import dask.array
    import zarr
    from zarr.abc.store import Store

#: Objects of a store (chunks or shards) that a sample has at least, and one in so many.
_FEW, _ONE_IN = 16, 20
#: How many times wider the margin of a chunk gets that fails.
_WIDER = 16.0


@dataclass
class Verified:
    """What was found of one variable.

    Attributes
    ----------
    variable : its name
    checked, of : objects (chunks or shards) that were looked at, of all that were to be written or
        are there
    unit : what these are, "chunks" or "shards"
    missing : keys of those that are not there
    damaged : (key, why) of those that do not decode, or not to what they should
    repaired : (key, how) of those that were written again
    bands : names
    mean_error, max_error : of each band in DN, over valid pixels; NaN without a source or where no
        pixel is valid
    """

    variable: str
    of: int
    bands: tuple[str, ...]
    checked: int = 0
    unit: str = "chunks"
    missing: list[str] = field(default_factory=list)
    damaged: list[tuple[str, str]] = field(default_factory=list)
    repaired: list[tuple[str, str]] = field(default_factory=list)
    _sums: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._sums = np.zeros((3, len(self.bands)))

    @property
    def sound(self) -> bool:
        return not self.missing and not self.damaged

    @property
    def mean_error(self) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return self._sums[0] / self._sums[1]

    @property
    def max_error(self) -> np.ndarray:
        return np.where(self._sums[1] > 0, self._sums[2], np.nan)

    def add(self, errors: np.ndarray, valid: np.ndarray) -> None:
        """Errors in DN of (time, band, y, x), where they are valid."""
        some = np.where(valid, errors, 0.0)
        self._sums[0] += some.sum((0, 2, 3))
        self._sums[1] += valid.sum((0, 2, 3))
        self._sums[2] = np.maximum(self._sums[2], some.max((0, 2, 3), initial=0))

    def damage(self, key: str, error: Exception) -> None:
        """What is wrong with an object; errors of the codec begin with its key."""
        self.damaged.append((key, str(error).removeprefix(f"{key}: ")))

    def merge(self, other: Verified) -> None:
        """What was found of other objects of the variable."""
        self.checked += other.checked
        self.missing += other.missing
        self.damaged += other.damaged
        self.repaired += other.repaired
        self._sums[:2] += other._sums[:2]
        self._sums[2] = np.maximum(self._sums[2], other._sums[2])

    def attribute(self) -> dict[str, Any]:
        """For the store: JSON values, DN."""

        def by_band(values: np.ndarray) -> dict[str, float | None]:
            pairs = zip(self.bands, values.tolist(), strict=True)
            return {name: None if v != v else float(f"{v:.6g}") for name, v in pairs}

        return {
            self.unit: self.checked,
            "of": self.of,
            "mean_error": by_band(self.mean_error),
            "max_error": by_band(self.max_error),
            **({"repaired": len(self.repaired)} if self.repaired else {}),
        }

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "variable": self.variable,
            "sound": self.sound,
            **self.attribute(),
            "missing": self.missing,
            "damaged": dict(self.damaged),
        }

    def rows(self) -> list[tuple[str, str]]:
        """Name and value of each line below `text`: what is wrong, and the errors of each band."""
        wrong = [("damaged", f"{key}: {why}") for key, why in self.damaged]
        wrong += [("missing", key) for key in self.missing]
        return wrong + [
            (name, f"mean error {mean:.4g} DN, largest {worst:.6g} DN")
            for name, mean, worst in zip(self.bands, self.mean_error, self.max_error)
            if mean == mean
        ]

    def text(self) -> str:
        """One line."""
        if not self.sound:
            return (
                f"{len(self.damaged)} damaged and {len(self.missing)} missing of {self.checked} "
                f"{self.unit} looked at ({self.of} there should be)"
            )
        some = f"{self.checked} of {self.of} {self.unit} decode"
        again = f", {len(self.repaired)} of them written again" if self.repaired else ""
        worst = self.max_error
        if np.isnan(worst).all():
            return some + again
        band = int(np.nanargmax(worst))
        return f"{some}{again}; largest error {worst[band]:.6g} DN ({self.bands[band]})"


def verify(
    store: Any,
    against: xr.Dataset | xr.DataArray | None = None,
    *,
    sample: bool = False,
    storage_options: dict[str, Any] | None = None,
) -> list[Verified]:
    """Check every variable of a store that xtec has compressed.

    Every chunk must be there, have the right checksums and settings, and decode, by itself and with
    the networks evaluated in float64, to what its checksums say. Nothing is written.

    Parameters
    ----------
    store : path, URL or zarr Store
    against : Dataset or DataArray, optional
        What the store was made of, for the errors. Read in pieces.
    sample : bool
        Look at some chunks only: 16 at least, and one in 20.
    storage_options : dict, optional
        For URLs.

    Returns
    -------
    list of Verified, one a variable

    Raises
    ------
    ValueError
        There is nothing of xtec's in the store, or ``against`` is another cube.
    TecError
        ``xtec.settings.precision`` is "fast".
    """
    refuse_fast()
    from .report import compressed_arrays

    _, arrays, codecs = compressed_arrays(store, storage_options)
    if against is not None:
        _check_same(against, next(iter(arrays.values())).store, codecs)
    found = []
    for name, codec in sorted(codecs.items()):
        array = arrays[name]
        place = array.store_path
        target = Target(place.store, place.path, array.metadata.zarr_format, read_only=True)
        if against is None:
            shape = grid_of(array)
            parts = each(_sound, target, _sampled(shape) if sample else list(np.ndindex(shape)))
        else:
            data = _in_objects(stored_source(against, codec, array), array, sample)
            nothing = np.zeros(grid_of(array), bool)
            (parts,) = run([looking(Job(target, data, nothing), sample)], "verifying", False)
        found.append(_merged(name, array, parts))
    return found


def refuse_fast() -> None:
    """TecError where this process reads pixels in a hurry: who verifies must not."""
    if settings.precision == "fast":
        raise TecError(
            "verify wants pixels as they are stored, and xtec.settings.precision (XTEC_PRECISION) "
            "is 'fast': set it to 'full', here and in Dask's workers"
        )


def _check_same(
    against: xr.Dataset | xr.DataArray, store: Store, codecs: Mapping[str, ChunkCoder]
) -> None:
    """ValueError where coordinates say that the source is another cube."""
    from .backend import XtecBackend
    from .layout import find_cube
    from .values import check_same_cube

    back = xr.open_dataset(
        store,  # type: ignore[arg-type]
        engine=XtecBackend,
        layout="stored",
        consolidated=False,
    )
    for name, codec in codecs.items():
        check_same_cube(find_cube(against, sensor=codec.config.sensor).data, back[name])


def _sound(target: Target, places: list[At]) -> Verified:
    """Look at some objects of a store, without their source."""
    return look_at(target.array, [(at, None) for at in places])


def _sampled(shape: tuple[int, ...]) -> list[At]:
    """Some of the objects in a grid."""
    return list(islice(spread(shape), max(_FEW, -(-math.prod(shape) // _ONE_IN))))


def _in_objects(source: xr.Variable, array: zarr.Array, small: bool) -> dask.array.Array:
    """In blocks of one object (where few of them are wanted), or of several."""
    unit = unit_of(array)
    if source.chunks is None or small:
        return source.chunk(dict(zip(source.dims, unit, strict=True))).data
    sizes = [max(max(blocks) // n, 1) * n for blocks, n in zip(source.chunks, unit, strict=True)]
    return source.chunk(dict(zip(source.dims, sizes, strict=True))).data


def stored_source(
    obj: xr.Dataset | xr.DataArray, codec: ChunkCoder, array: zarr.Array
) -> xr.Variable:
    """The cube in ``obj`` as the array holds it: bands in order, packed, in the stored dtype."""
    from .layout import find_cube

    config = codec.config
    cube = find_cube(obj, sensor=config.sensor)
    order = [cube.bands.index(band) for band in config.bands if band in cube.bands]
    data = cube.data.copy(deep=False)
    data.encoding = {k: v for k, v in cube.data.encoding.items() if k in CF_ENCODING}
    variable = xr.conventions.encode_cf_variable(data.variable)
    if len(order) == len(config.bands) and "band" in cube.roles:
        variable = variable.isel({variable.dims[cube.roles.index("band")]: order})
    variable = variable.transpose(*(variable.dims[cube.roles.index(d)] for d in codec.dims))
    if len(order) < len(config.bands) or variable.shape != array.shape:
        raise ValueError(
            f"the source is {variable.shape} with bands {', '.join(cube.bands)}, the store holds "
            f"{array.shape} with bands {', '.join(config.bands)}: pass the cube that it was made of"
        )
    if variable.dtype.newbyteorder("=") != array.dtype.newbyteorder("="):
        raise ValueError(
            f"the source is of dtype {variable.dtype}, the store of {array.dtype}: pass the cube "
            "that it was made of, as it was read"
        )
    return variable


def looking(job: Job, sample: bool) -> Job:
    """A job that looks at what it has written (or at some of it), too."""
    look = np.zeros(job.write.shape, bool) if sample else np.ones(job.write.shape, bool)
    for at in _sampled(look.shape) if sample else ():
        look[at] = True
    return replace(job, look=look)


def conclude(store: Store, name: str, parts: Sequence[Verified], of: int | None = None) -> Verified:
    """What was found of a variable that was just written goes into its attribute.

    Parameters
    ----------
    store : before its root metadata are committed
    parts : of its blocks
    of : objects that were to be written, where these are not all of the variable

    Raises
    ------
    StreamError
        A chunk is not sound and could not be made so.
    """
    import zarr

    array = zarr.open_array(store, path=name, mode="r+")
    found = _merged(name, array, parts)
    found.of = found.of if of is None else of
    if not found.sound:
        key, why = (*found.damaged, *((key, "it is missing") for key in found.missing))[0]
        raise StreamError(
            f"{key} is not sound, and writing it again did not help: {why}. What was to be "
            "written stays incomplete; keep the originals, check the disk and the memory of this "
            "machine, and write again with resume=True"
        )
    if found.repaired:
        warn(
            f"{len(found.repaired)} of {found.checked} {found.unit} did not decode as they should "
            f"and were written again ({', '.join(sorted({how for _, how in found.repaired}))}): "
            "please report it"
        )
    _note(array, found)
    if zarr.open_group(store, mode="r").metadata.consolidated_metadata is not None:
        zarr.consolidate_metadata(store)
    return found


def _codec_of(array: zarr.Array) -> ChunkCoder:
    from .report import find_codec

    codec = find_codec(array)
    assert codec is not None
    return codec


def _merged(name: str, array: zarr.Array, parts: Iterable[Verified]) -> Verified:
    codec = _codec_of(array)
    found = Verified(name, math.prod(grid_of(array)), codec.config.bands, unit=called([array]))
    for part in parts:
        found.merge(part)
    return found


def forget(store: Store, name: str) -> None:
    """Take back what was noted of a variable whose pixels are to be replaced."""
    import zarr

    array = zarr.open_array(store, path=name, mode="r+")
    said = json.loads(str(array.attrs.get(ATTRIBUTE, "{}")))
    if said.pop("verified", None) is None:
        return
    array.update_attributes({ATTRIBUTE: json.dumps(said)})
    if zarr.open_group(store, mode="r").metadata.consolidated_metadata is not None:
        zarr.consolidate_metadata(store)


def _note(array: zarr.Array, found: Verified) -> None:
    """Put what was found into the attribute of the array."""
    try:
        said = json.loads(str(array.attrs[ATTRIBUTE]))
    except (KeyError, ValueError):
        said = {}
    array.update_attributes({ATTRIBUTE: json.dumps({**said, "verified": found.attribute()})})


def look_at(
    array: zarr.Array, places: Sequence[tuple[At, np.ndarray | None]], repair: bool = False
) -> Verified:
    """Look at some objects, each with its pixels where these are known.

    ``repair`` : write those that fail again; needs their pixels, and a store that can be written
    """
    codec, path, zarr_format = _codec_of(array), array.path, array.metadata.zarr_format
    needed = embedded.needs(codec.config)
    sync(embedded.bring(array.store, path, codec.config, needed, zarr_format))
    keys = keys_of(array, path, [at for at, _ in places])
    out = Verified(path, len(keys), codec.config.bands)
    for at, pixels in places:
        _look(out, array, codec, at, keys[at], pixels, repair)
    return out


def _look(
    out: Verified,
    array: zarr.Array,
    codec: ChunkCoder,
    at: At,
    key: str,
    pixels: np.ndarray | None,
    repair: bool,
) -> None:
    out.checked += 1
    data = read(array.store, key)
    if data is None:
        out.missing.append(key)
        return
    try:
        chunks = streams_in(data, array, at)
    except TecError as error:
        out.damage(key, error)
        return
    again = {}
    for inner, one in chunks.items():
        part = None if pixels is None else _part(pixels, inner, codec)
        try:
            decoded = _decoded(codec, one, array.dtype, key)
            _compare(out, codec, decoded, part)
        except StreamError as error:
            if not repair or part is None:
                out.damage(key, error)
                continue
            found = _again(out, codec, part, array.dtype, key)
            if found is None:
                out.damage(key, error)
            else:
                again[inner] = found
    if again:
        _write(array, key, {**chunks, **again})


def _part(pixels: np.ndarray, inner: At, codec: ChunkCoder) -> np.ndarray:
    """A chunk of an object's pixels, padded with fill as the codec gets it."""
    unit = codec.chunk_shape
    some = pixels[tuple(slice(i * n, (i + 1) * n) for i, n in zip(inner, unit, strict=True))]
    if some.shape == unit:
        return some
    whole = np.full(unit, fill_value(codec.config.nodata, pixels.dtype), pixels.dtype)
    whole[tuple(map(slice, some.shape))] = some
    return whole


def _decoded(codec: ChunkCoder, data: bytes, dtype: np.dtype, where: str) -> np.ndarray:
    """(time, band, y, x), as another machine might decode it."""
    refuse_fast()
    work = run_pass(lambda: codec.decode_chunks([data], dtype, [where], independent=True))
    return codec.to_cube(work.result()[0])


def _compare(
    out: Verified, codec: ChunkCoder, decoded: np.ndarray, source: np.ndarray | None
) -> None:
    """StreamError unless special pixels are the same and errors within the bound."""
    if source is None:
        return
    from tec.specials import as_bits, find_specials

    config, cube = codec.config, codec.to_cube(source)
    mask = find_specials(cube, config.nodata).mask
    if mask is None:
        mask = np.zeros(cube.shape, bool)
    if (
        as_bits(np.ascontiguousarray(decoded))[mask] != as_bits(np.ascontiguousarray(cube))[mask]
    ).any():
        raise StreamError("nodata, NaN or infinite pixels differ from the source's")
    own = find_specials(decoded, config.nodata).mask
    if own is not None and (own & ~mask).any():
        raise StreamError("valid pixels of the source are nodata")
    errors = np.abs(np.where(mask, 0, decoded).astype(np.float64) - np.where(mask, 0, cube))
    errors /= config.scale
    for b, bound in enumerate(config.max_error or ()):
        worst = errors[:, b].max()
        if worst > bound * (1 + 1e-6) + 1e-9:
            raise StreamError(
                f"band {config.bands[b]} is off by {worst:.6g} DN, {bound:g} are allowed"
            )
    out.add(errors, ~mask)


def _again(
    out: Verified, codec: ChunkCoder, chunk: np.ndarray, dtype: np.dtype, key: str
) -> bytes | None:
    """A stream of a chunk that decodes soundly: with a wider margin, or without loss."""
    config = codec.config
    exact = replace(
        config,
        model="none",
        quality=None,
        forecast="mean",
        lossy="always",
        max_error=(0.0 if dtype.kind != "f" else SOUND,) * len(config.bands),
    )
    for how, other, wider in (
        ("a wider margin", config, _WIDER),
        ("without loss", exact, 1.0),
    ):
        encode = partial(replace(codec, config=other).encode_chunks, wider=wider)
        try:
            (data,) = run_pass(encode, [chunk]).result()
            _compare(out, codec, _decoded(codec, data, dtype, key), chunk)
        except TecError:
            continue
        out.repaired.append((key, how))
        return data
    return None


def _write(array: zarr.Array, key: str, streams: Mapping[At, bytes]) -> None:
    """An object anew."""
    from zarr.core.buffer import default_buffer_prototype

    buffer = default_buffer_prototype().buffer.from_bytes(object_of(array, streams))
    sync(array.store.set(key, buffer))
