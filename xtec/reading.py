"""Cubes from files and back: Zarr (also zipped), NetCDF, folders of GeoTIFFs."""

from __future__ import annotations

import os
import re
import shutil
import warnings
import zipfile
from collections.abc import Hashable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from tec.sensors import canonical_band

from .attributes import CF_ENCODING
from .backend import XtecBackend
from .dims import dim_roles, is_image
from .messages import warn
from .remote import for_reading, is_url
from .rootlast import ROOT_KEYS, not_whole, says_unfinished

NETCDF = (".nc", ".nc4", ".cdf", ".h5")
GEOTIFF = (".tif", ".tiff", ".jp2")
_DATE = re.compile(
    r"(?<!\d)((?:19|20)\d\d)-?([01]\d)-?([0-3]\d)(?:[T_]?([0-2]\d)([0-5]\d)([0-5]\d))?(?!\d)"
)
_BLOCK = 2048  # rows and columns of a lazily read piece of a GeoTIFF


def open_input(
    path: str | os.PathLike[str],
    *,
    chunked: bool = False,
    storage_options: dict[str, Any] | None = None,
    layout: str = "compressed",
) -> xr.Dataset:
    """Open a cube lazily.

    Parameters
    ----------
    path : path or URL
        A Zarr store (folder, ``.zarr.zip`` or URL), a NetCDF file, a GeoTIFF, or a folder of
        GeoTIFFs: a file a band, or a file a date; band and date are read off the names.
    chunked : bool
        With Dask blocks as the file has them (GeoTIFFs always have some).
    storage_options : dict, optional
        For URLs.
    layout : "compressed" or "stored"
        Of a store of ours: see :class:`xtec.backend.XtecBackend`.

    Raises
    ------
    FileNotFoundError
        There is nothing at ``path``.
    ValueError
        It is none of these.
    """
    text = os.fspath(path)
    if is_url(text):
        return _open_zarr(for_reading(text, storage_options), chunked, layout)
    place = Path(text)
    if not place.exists():
        raise FileNotFoundError(
            f"{text} does not exist: pass a Zarr store, a NetCDF file or a folder of GeoTIFFs"
        )
    if place.suffix.lower() == ".zip":
        return _open_zip(place, chunked, layout)
    if place.suffix.lower() in NETCDF:
        return xr.open_dataset(place, chunks={} if chunked else None, decode_coords="all")
    if place.suffix.lower() in GEOTIFF:
        return _open_geotiffs([place])
    if place.is_dir():
        if place.suffix.lower() == ".zarr" or any((place / key).exists() for key in ROOT_KEYS):
            return _open_zarr(text, chunked, layout)
        files = sorted(file for file in place.iterdir() if file.suffix.lower() in GEOTIFF)
        if files:
            return _open_geotiffs(files)
    raise ValueError(
        f"{text} is no Zarr store, no NetCDF file and no folder of GeoTIFFs: convert it to one of "
        "these"
    )


def save(
    ds: xr.Dataset,
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    progress: bool = True,
    storage_options: dict[str, Any] | None = None,
) -> None:
    """Write without our codec: ``.zarr``, ``.zarr.zip`` or ``.nc`` (all lossless), else GeoTIFFs.

    GeoTIFFs go into a folder, Zarr also to URLs. What is at ``path`` stays unless ``overwrite``; an
    interrupted run leaves nothing that opens as if it were whole.
    """
    from .messages import bar
    from .writing import write_store, write_zip

    ds = ds.copy(deep=False)
    for name in ds.variables:
        ds[name].encoding = {
            key: value for key, value in ds[name].encoding.items() if key in CF_ENCODING
        }
    if is_url(path):
        if not str(path).rstrip("/").endswith(".zarr"):
            raise ValueError(f"{path} is a URL: only Zarr is written there, name it .zarr")
        write_store(ds, path, overwrite, progress, storage_options)
        return None
    place = Path(path)
    if place.suffix.lower() == ".zip":
        write_zip(ds, place, overwrite, progress)
        return None
    if place.suffix.lower() == ".zarr":
        write_store(ds, place, overwrite, progress)
        return None
    if place.exists() and not overwrite:
        raise FileExistsError(f"{place} exists: pass --overwrite (overwrite=True) to replace it")
    if not place.absolute().parent.is_dir():
        raise FileNotFoundError(f"{place.parent} is no folder: create it, or choose another place")
    if place.is_dir():
        _check_geotiff_folder(place)
    partial = place.with_name(place.name + ".partial")
    try:
        with bar("writing", progress):
            if place.suffix.lower() in NETCDF:
                for v in ds.data_vars.values():
                    if v.ndim > 1:  # to_netcdf(encoding=) would drop the packing
                        v.encoding |= {"zlib": True, "complevel": 4}
                ds.to_netcdf(partial, engine="netcdf4")
            else:
                _save_geotiffs(ds, partial)
        if place.is_dir():
            shutil.rmtree(place)
        os.replace(partial, place)
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def _open_zarr(store: Any, chunked: bool, layout: str, group: str | None = None) -> xr.Dataset:
    with warnings.catch_warnings():
        # Consolidated or not is no concern of whoever wants to read the cube.
        warnings.filterwarnings(
            "ignore", message="Failed to open Zarr store with consolidated metadata"
        )
        try:
            return xr.open_dataset(
                store,
                engine=XtecBackend,
                chunks={} if chunked else None,
                decode_coords="all",
                group=group,
                consolidated=None if group is None else False,
                layout=layout,
            )
        except (FileNotFoundError, ValueError) as error:
            if not says_unfinished(error):
                raise
            raise ValueError(not_whole(store)) from error


def _open_zip(path: Path, chunked: bool, layout: str) -> xr.Dataset:
    from zarr.storage import ZipStore

    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is not a zip file, or a damaged one: copy it again")
    with zipfile.ZipFile(path) as archive:
        tops = {name.partition("/")[0] for name in archive.namelist()}
    group = (
        tops.pop() if len(tops) == 1 and not tops & set(ROOT_KEYS) else None
    )  # a zipped folder, not its contents
    return _open_zarr(ZipStore(path, mode="r"), chunked, layout, group)


def _open_geotiffs(files: list[Path]) -> xr.Dataset:
    """Files -> variables (time, y, x), or (y, x) where no name has a date."""
    found: dict[str, dict[datetime | None, xr.DataArray]] = {}
    for file in files:
        date, rest = _date(file.stem)
        for name, data in _open_one(file, rest).items():
            if date in found.setdefault(name, {}):
                raise ValueError(
                    f"{file.name}: there are two files for {name} of {date or 'no date'}: keep "
                    "one of them"
                )
            found[name][date] = data
    dates = sorted({date for by_date in found.values() for date in by_date if date is not None})
    first_name, first = next(
        (name, data) for name, by_date in found.items() for data in by_date.values()
    )
    for name, by_date in found.items():
        missing = [str(date) for date in dates or (None,) if date not in by_date]
        if missing or (dates and None in by_date):
            raise ValueError(
                f"{name} has no file for {', '.join(missing[:3]) or 'one of its dates'}: every "
                "band needs one a date"
            )
        for data in by_date.values():
            if data.shape != first.shape or not all(
                np.array_equal(data[dim], first[dim]) for dim in first.dims if dim in first.coords
            ):
                raise ValueError(
                    f"{name} has {data.shape} pixels, {first_name} {first.shape}, or they lie "
                    "elsewhere: bring all bands to one grid first"
                )
    if not dates:
        return xr.Dataset({name: by_date[None] for name, by_date in found.items()})
    time = xr.Variable("time", np.array(dates, "datetime64[ns]"))
    stacked = {}
    for name, by_date in found.items():
        stacked[name] = xr.concat([by_date[date] for date in dates], dim="time").assign_coords(
            time=time
        )
        stacked[name].encoding = dict(by_date[dates[0]].encoding)
    return xr.Dataset(stacked)


def _open_one(file: Path, rest: str) -> dict[str, xr.DataArray]:
    import rioxarray

    opened = rioxarray.open_rasterio(file, chunks={"x": _BLOCK, "y": _BLOCK})
    if not isinstance(opened, xr.DataArray):
        raise ValueError(f"{file.name} holds several images: convert it to a GeoTIFF with one")
    count = opened.sizes["band"]
    described = opened.attrs.get("long_name")
    described = (described,) if isinstance(described, str) else tuple(described or ())
    if count == 1:
        names: tuple[str, ...] = (
            _band_name(rest)
            or (described[0] if described and canonical_band(described[0]) else rest),
        )
    elif len(described) == count and len(set(described)) == count:
        names = tuple(map(str, described))
    else:
        raise ValueError(
            f"{file.name} has {count} bands and no descriptions that say which: set them "
            "(gdal_edit), or write a file a band"
        )
    out = {}
    for i, name in enumerate(names):
        data = opened.isel(band=i, drop=True)
        data.attrs = {
            key: value
            for key, value in opened.attrs.items()
            if key not in ("long_name", "_FillValue", "scale_factor", "add_offset")
        }
        factor, add = opened.attrs.get("scale_factor", 1.0), opened.attrs.get("add_offset", 0.0)
        if (factor, add) != (1.0, 0.0):
            data.attrs.update(scale_factor=factor, add_offset=add)
        if "_FillValue" in opened.attrs:
            data.attrs["nodata"] = opened.attrs[
                "_FillValue"
            ]  # as _FillValue it would turn integers into floats
        data.encoding = {"grid_mapping": "spatial_ref"} if "spatial_ref" in data.coords else {}
        out[name] = data.rename(name)
    return out


def _date(stem: str) -> tuple[datetime | None, str]:
    """(date, stem without it)."""
    match = _DATE.search(stem)
    if match is None:
        return None, stem
    try:
        date = datetime(*(int(part) for part in match.groups("0")))  # type: ignore[arg-type]
    except ValueError:
        return None, stem
    return date, _DATE.sub("", stem).strip("_-. ") or stem


def _band_name(stem: str) -> str | None:
    """The part of a file name that names a band or a known layer, as it is written there."""
    parts = re.split(r"[_\-. ]+", stem)
    known = [
        part
        for part in parts
        if canonical_band(part) is not None or part.upper() in ("SCL", "AOT", "WVP")
    ]
    if len(known) > 1:
        raise ValueError(
            f"{stem}: the name speaks of several bands ({', '.join(known)}): rename the file"
        )
    return known[0] if known else None


def _save_geotiffs(ds: xr.Dataset, folder: Path) -> None:
    """A file for each date, variable and band."""
    import rioxarray  # noqa: F401  (registers .rio)

    folder.mkdir(parents=True)
    left_out = [str(name) for name, v in ds.data_vars.items() if not is_image(v)]
    if left_out:
        warn(f"variables {left_out} are no images and are left out of the GeoTIFFs")
    for name, data in ds.data_vars.items():
        if name in left_out:
            continue
        dims = dim_roles(data)
        data = data.transpose(*dims.values())
        for prefix, image in _by_date(data, dims.get("time")):
            bands = [(str(name), image)]
            if "band" in dims:
                labels = image[dims["band"]].values.tolist()
                bands = [
                    (str(label), image.isel({dims["band"]: i}, drop=True))
                    for i, label in enumerate(labels)
                ]
            for label, band in bands:
                file = folder / f"{prefix}{re.sub(r'[^A-Za-z0-9]+', '_', label)}.tif"
                _write_geotiff(band, file, dims)


def _by_date(data: xr.DataArray, time: Hashable | None) -> Any:
    """(prefix of the file name, image in memory) of each date; a block of dates is decoded once."""
    if time is None:
        yield "", data.load()
        return
    step = data.chunks[0][0] if data.chunks is not None else 1
    for start in range(0, data.sizes[time], step):
        block = data.isel({time: slice(start, start + step)}).compute()
        for i in range(block.sizes[time]):
            yield _prefix(block, time, i, start + i), block.isel({time: i}, drop=True)


def _prefix(block: xr.DataArray, time: Hashable, i: int, number: int) -> str:
    if time in block.coords and block[time].dtype.kind == "M":
        return (
            str(np.datetime_as_string(block[time].values[i], unit="s"))
            .replace("-", "")
            .replace(":", "")
            + "_"
        )
    return f"{number:04d}_"


def _write_geotiff(image: xr.DataArray, file: Path, dims: dict[str, Hashable]) -> None:
    if file.exists():
        raise ValueError(
            f"two images would be called {file.name}: rename the variables, or write Zarr or NetCDF"
        )
    image = image.rio.set_spatial_dims(x_dim=dims["x"], y_dim=dims["y"])
    nodata = image.attrs.get("nodata")
    if image.dtype == bool:
        image = image.astype("uint8")
    image.attrs = {
        key: value
        for key, value in image.attrs.items()
        if key not in ("_FillValue", "nodata", "grid_mapping")
    }
    if nodata is not None:
        image = image.rio.write_nodata(nodata)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Dataset has no geotransform|.*Affine.identity")
        image.rio.to_raster(file, compress="deflate", tiled=True)


def _check_geotiff_folder(folder: Path) -> None:
    other = [file.name for file in folder.iterdir() if file.suffix.lower() not in GEOTIFF]
    if other:
        raise FileExistsError(
            f"{folder} holds {other[:3]}, which are no GeoTIFFs: it is not overwritten; choose "
            "another name"
        )
