"""to_zarr: write a compressed cube so that it is whole or does not open."""

from __future__ import annotations

import math
import os
import shutil
import time
import zipfile
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import xarray as xr

from . import settings
from .compression import codec_of, compress, is_packed
from .embedded import embed
from .messages import quiet
from .quality import bpppb
from .ratecontrol import target_of, target_text
from .tables import Table
from .zarr2 import XtecCodec2

if TYPE_CHECKING:
    from .resume import Resumed
    from .verifying import Verified


@dataclass(frozen=True, repr=False)
class Summary(Table):
    """What was written. Prints well in a terminal and in a notebook.

    Attributes
    ----------
    store : where
    variable : name of the compressed variable
    model, compression : of the codec
    samples : values in the cube (dates x bands x rows x columns)
    bytes_in : size of these values as they would be stored without compression
    bytes_out : size of the variable in the store, metadata included
    seconds : reading, compressing and writing
    quality : of the codec, where the model is "flex"
    target : what ``psnr`` or ``ratio`` asked for and found, where one was given
    max_error : bound of the error of each band in DN, where there is one
    resumed : what was there already, where an interrupted write was resumed
    verified : what ``verify`` found, where it was asked for
    weights_out : bytes of the weights beside the variable, where ``embed_weights`` put them there
    """

    store: str
    variable: str
    model: str
    compression: float
    samples: int
    bytes_in: int
    bytes_out: int
    seconds: float
    quality: tuple[int, ...] | None = None
    target: dict[str, Any] | None = None
    max_error: tuple[float, ...] | None = None
    resumed: Resumed | None = None
    verified: Verified | None = None
    weights_out: int = 0

    @property
    def ratio(self) -> float:
        """How many times smaller."""
        return self.bytes_in / self.bytes_out

    @property
    def bpppb(self) -> float:
        """Bits per pixel per band."""
        return bpppb(self.bytes_out, self.samples)

    @property
    def mb_per_s(self) -> float:
        """10^6 bytes of input a second."""
        return self.bytes_in / 1e6 / self.seconds if self.seconds else float("inf")

    @property
    def rate(self) -> tuple[Any, ...]:
        """What `model_text` takes."""
        return self.model, self.compression, self.quality, self.max_error

    def rows(self) -> list[tuple[str, str]]:
        """Name and value of each line, for tables."""
        return [
            ("store", self.store),
            ("variable", self.variable),
            ("model", model_text(*self.rate)),
            *([] if self.target is None else [("target", target_text(self.target))]),
            (
                "size",
                f"{human(self.bytes_in)} -> {human(self.bytes_out)} ({self.ratio:.1f} times "
                "smaller)",
            ),
            ("bits per pixel per band", f"{self.bpppb:.4f}"),
            *([("weights inside the store", human(self.weights_out))] if self.weights_out else []),
            *([] if self.resumed is None else [("resumed", str(self.resumed))]),
            *([] if self.verified is None else [("verified", self.verified.text())]),
            ("time", f"{self.seconds:.1f} s ({self.mb_per_s:.1f} MB/s)"),
        ]


class Written(NamedTuple):
    """What writing a store came to.

    Attributes
    ----------
    store : zarr Store; None for archives
    resumed, verified, weights_out : as in `Summary`
    """

    store: Any
    resumed: Resumed | None = None
    verified: Verified | None = None
    weights_out: int = 0


def model_text(
    model: str,
    compression: float,
    quality: Sequence[int] | None = None,
    max_error: Sequence[float] | None = None,
) -> str:
    """The model and what sets its rate: quality where it has one, else compression; and the bound.

    Examples
    --------
    >>> model_text("tt", 20.0)
    'tt, compression 20'
    >>> model_text("flex", 20.0, [16, 4])
    'flex, quality 16, 4'
    >>> model_text("none", 20.0, None, (0.0, 0.0))
    'lossless'
    >>> model_text("elic", 20.0, None, (50.0, 100.0))
    'elic, compression 20, errors up to 50, 100 DN'
    """
    parts = []
    if quality is not None:
        parts = [f"{model}, quality {', '.join(map(str, quality))}"]
    elif model != "none":
        parts = [f"{model}, compression {compression:g}"]
    if max_error is not None:
        values = sorted(set(max_error)) if len(set(max_error)) < 2 else max_error
        bound = f"errors up to {', '.join(f'{value:g}' for value in values)} DN"
        parts.append("lossless" if not any(max_error) else bound)
    return ", ".join(parts)


def human(nbytes: float) -> str:
    """Bytes for people, decimal.

    Examples
    --------
    >>> human(2_500_000)
    '2.5 MB'
    """
    if nbytes < 1000:
        return f"{nbytes:.0f} bytes"
    power = min(int(math.log10(nbytes) // 3), 4)
    return f"{nbytes / 1000**power:.1f} {('kB', 'MB', 'GB', 'TB')[power - 1]}"


def to_zarr(
    obj: xr.Dataset | xr.DataArray,
    store: Any,
    *,
    mode: str | None = None,
    overwrite: bool = False,
    append_dim: Hashable | None = None,
    region: Mapping[Any, slice | str] | str | None = None,
    resume: bool = False,
    verify: bool | str = False,
    progress: bool = True,
    storage_options: dict[str, Any] | None = None,
    embed_weights: bool = False,
    **options: Any,
) -> Summary:
    """Compress and write. The store opens once it is whole: the root metadata is written last.

    What an interrupted call has written can be gone on with (``resume=True``), given the same data
    and options. The result is the one of an uninterrupted call, key by key.

    Parameters
    ----------
    obj : Dataset or DataArray
        Anything that :func:`xtec.compress` takes, or what it has returned.
    store : path, URL or zarr Store
        A path that ends in ``.zip`` becomes one file.
    mode, overwrite : {"w-", "w"}, bool
        ``mode="w"`` and ``overwrite=True`` both delete what is there first. With ``append_dim``,
        mode is "a", with ``region``, "r+" (or "a").
    append_dim : str, optional
        "time": the dates go behind those that ``store`` has; where there is nothing yet, a store is
        written. They are compressed as the store is; options that say otherwise are errors. Where
        the last chunk (or shard) of the store is not full, the originals of its dates must come
        first, and are written again together with the new ones. Until all is written, readers
        see the store as it was, also after a kill. ``resume=True`` then goes on with the same
        append, and does nothing where it has ended. One append at a time: where another has not
        ended, as far as can be told, a second is refused; with ``resume=True`` it takes over.
    region : mapping or "auto", optional
        ``{"time": slice(0, 4), "y": slice(0, 512)}``: the data replace these pixels of a store,
        or fill them in what ``packed.to_zarr(store, compute=False)`` has laid out. Of whole
        chunks (or shards), or up to the end; "auto" finds it by coordinates. Coordinates must be
        the store's. Only chunks are written, so processes may write other regions at the same
        time, and what ``verify`` finds is in the summary alone.
    resume : bool
        Write only what is missing or damaged: every chunk that is there is checked, by its
        checksum and settings or, in lossless variables, by decoding it. What is there must come
        from the same data, which is not checked, and the same options, which is. Where there is
        nothing yet, all is written.
    verify : bool or "sample"
        Read every chunk (or some: 16, and one in 20) back before the store opens, decode it by
        itself with the networks in float64, as far from how it was written as another machine may
        be, and compare it with the source, which is read a second time. A chunk that fails is
        written again with a wider margin, then without loss, with a warning. The errors of each
        band go into the attribute ``xtec``.
    progress : bool
        Show a bar in a terminal or notebook.
    storage_options : dict, optional
        For URLs.
    embed_weights : bool
        Put the decoder's weights into the store as well (22 MB for the built-in ones), for
        machines that lack them: see :func:`xtec.embed_weights`.
    **options
        As for :func:`xtec.compress`.

    Returns
    -------
    Summary

    Raises
    ------
    ValueError
        On input that the codec cannot take; with ``resume``, where the store holds something else.
    FileExistsError
        When there is something at ``store``.
    """
    from .remote import is_url

    if verify not in (True, False, "sample"):
        raise ValueError(f"verify is {verify!r}: choose True, False or 'sample'")
    if verify:
        from .verifying import refuse_fast

        refuse_fast()
    if append_dim is not None or region is not None:
        from .appending import add

        added = add(
            obj,
            store,
            append_dim=append_dim,
            region=region,
            mode=mode,
            overwrite=overwrite,
            resume=resume,
            verify=verify,
            progress=progress,
            storage_options=storage_options,
            embed_weights=embed_weights,
            options=options,
        )
        if added is not None:
            return added
    elif mode not in (None, "w-", "w"):
        raise ValueError(
            f"mode must be 'w-' or 'w', got {mode!r}: pass append_dim='time' to append, region= to "
            "write a part"
        )
    overwrite = overwrite or mode == "w"
    if resume and overwrite:
        raise ValueError(
            "resume goes on with what is there, overwrite (or mode='w') deletes it first: choose "
            "one of them"
        )
    packed = obj if is_packed(obj) and not options else compress(obj, **options)  # type: ignore[type-var]
    started = time.perf_counter()
    local = isinstance(store, (str, os.PathLike)) and not is_url(store)
    if local and os.fspath(store).endswith(".zip"):
        written = write_zip(
            packed,
            Path(store),
            overwrite,
            progress,
            embed_weights,
            resume=resume,
            keep=True,
            verify=verify,
        )
        size = _zip_size(Path(store), variable_of(packed)[0])
    else:
        written = write_store(
            packed, store, overwrite, progress, storage_options, embed_weights, resume, verify
        )
        size = _stored_size(written.store, variable_of(packed)[0])
    return _summary(packed, str(store), size, time.perf_counter() - started, written)


def write_store(
    obj: xr.Dataset | xr.DataArray,
    store: Any,
    overwrite: bool,
    progress: bool,
    storage_options: dict[str, Any] | None = None,
    embed_weights: bool = False,
    resume: bool = False,
    verify: bool | str = False,
) -> Written:
    """Write ``obj`` as it is, root metadata last."""
    from . import blocks
    from .resume import go_on, survey
    from .rootlast import is_empty, open_store, prepare
    from .verifying import conclude, looking

    settings.check_device(settings.device)
    target = open_store(store, storage_options)
    zarr_format = _zarr_format(obj)
    packed = is_packed(obj)
    name = variable_of(obj)[0] if packed else None
    resume = resume and not is_empty(target)
    if not resume:
        prepare(target, overwrite)
    with quiet():
        found = survey(obj, name, target, zarr_format)
        guarded = go_on(found, zarr_format)
        resumed = found.resumed if resume else None
        if found.complete and not verify:
            return Written(target, resumed)
        weights_out = 0
        if embed_weights:  # first: what cannot be had should not be missed after hours
            weights_out = embed(
                guarded, [c for v in _variables(obj) if (c := codec_of(v.encoding)) is not None]
            )
    jobs = found.left
    if verify:
        jobs = [
            looking(job, verify == "sample") if job.target.path == name else job for job in jobs
        ]
    seen = blocks.run(jobs, "compressing" if packed else "writing", progress)
    # What needs the chunks and changes the metadata has its place here, see ADDED in resume.py.
    verified = None
    if verify:
        (parts,) = (part for part, job in zip(seen, jobs) if job.target.path == name)
        with quiet():
            verified = conclude(guarded, str(name), parts)
    guarded.commit()
    return Written(target, resumed, verified, weights_out)


def _zarr_format(obj: xr.Dataset | xr.DataArray) -> Literal[2, 3]:
    """The format that the codec in the encoding belongs to."""
    return 2 if any(isinstance(codec_of(v.encoding), XtecCodec2) for v in _variables(obj)) else 3


def _variables(obj: xr.Dataset | xr.DataArray) -> list[xr.DataArray]:
    return [obj] if isinstance(obj, xr.DataArray) else list(obj.data_vars.values())


def variable_of(packed: xr.Dataset | xr.DataArray) -> tuple[str, xr.DataArray]:
    """The compressed variable, by the name it has in the store."""
    for data in _variables(packed):
        if codec_of(data.encoding) is not None:
            named = (
                data.name is not None
                and data.name not in data.coords
                and data.name not in data.dims
            )
            return (str(data.name) if named else "__xarray_dataarray_variable__"), data
    raise ValueError("there is no compressed variable: call .tec.compress() first")


def _summary(
    packed: xr.Dataset | xr.DataArray,
    store: str,
    size: int,
    seconds: float,
    written: Written,
) -> Summary:
    name, data = variable_of(packed)
    config = codec_of(data.encoding).config  # type: ignore[union-attr]
    itemsize = data.encoding.get("dtype", data.dtype).itemsize
    return Summary(
        store,
        name,
        config.model,
        config.compression,
        data.size,
        data.size * itemsize,
        size,
        seconds,
        config.quality,
        target_of(data.attrs),
        config.max_error,
        written.resumed,
        written.verified,
        written.weights_out,
    )


def _stored_size(store: Any, name: str) -> int:
    from zarr.core.sync import sync

    return sync(store.getsize_prefix(name))


def _zip_size(path: Path, name: str) -> int:
    with zipfile.ZipFile(path) as archive:
        return sum(
            info.file_size for info in archive.infolist() if info.filename.startswith(f"{name}/")
        )


def write_zip(
    obj: xr.Dataset | xr.DataArray,
    path: Path,
    overwrite: bool,
    progress: bool,
    embed_weights: bool = False,
    *,
    resume: bool = False,
    keep: bool = False,
    verify: bool | str = False,
) -> Written:
    """By way of a folder: zarr's own ZipStore does not survive being written by Dask.

    With ``keep``, the folder of an interrupted write stays, for ``resume``.
    """
    folder = path.with_name(path.name + ".partial")
    archive_path = path.with_name(path.name + ".partial.zip")
    if path.exists() and resume:
        resumed = None if verify else _look_into(path, obj)
        if resumed is not None:
            shutil.rmtree(folder, ignore_errors=True)
            archive_path.unlink(missing_ok=True)
            return Written(None, resumed)
        if not folder.exists():
            _unpack(path, folder)
    elif not overwrite and path.exists():
        raise FileExistsError(f"{path} exists: pass overwrite=True to replace it")
    elif not overwrite and keep and not resume and folder.exists():
        raise FileExistsError(
            f"{folder} is what an interrupted write has left: pass resume=True to go on with it, "
            "overwrite=True to replace it, or choose another name"
        )
    try:
        written = write_store(
            obj,
            folder,
            not resume,
            progress,
            embed_weights=embed_weights,
            resume=resume,
            verify=verify,
        )
        _pack(folder, archive_path)
        os.replace(archive_path, path)
        keep = False
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
        archive_path.unlink(missing_ok=True)
    return written


def _look_into(path: Path, obj: xr.Dataset | xr.DataArray) -> Resumed | None:
    """Whether an archive is complete already: the figures if so."""
    from zarr.core.sync import sync
    from zarr.storage import ZipStore

    from .resume import survey

    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is no zip file: pass overwrite=True to replace it")
    store = sync(ZipStore.open(path, mode="r"))
    try:
        with quiet():
            found = survey(obj, variable_of(obj)[0], store, _zarr_format(obj))
    finally:
        store.close()
    return found.resumed if found.complete else None


def _pack(folder: Path, archive_path: Path) -> None:
    """The same files make the same archive, whenever they were written."""
    with zipfile.ZipFile(archive_path, "w", zipfile.ZIP_STORED) as archive:
        for file in sorted(file for file in folder.rglob("*") if file.is_file()):
            entry = zipfile.ZipInfo(file.relative_to(folder).as_posix())
            entry.file_size = file.stat().st_size
            with file.open("rb") as source, archive.open(entry, "w") as out:
                shutil.copyfileobj(source, out)


def _unpack(path: Path, folder: Path) -> None:
    """What is readable in an archive, as a store to be repaired."""
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            try:
                archive.extract(entry, folder)
            except zipfile.BadZipFile:  # damaged: it is written again
                (folder / entry.filename).unlink(missing_ok=True)
