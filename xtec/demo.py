"""The main job, end to end: ``python -m xtec.demo [CUBE]`` or ``xtec demo [CUBE]``.

Compresses a cube (a generated scene without an argument), reads it back in another process that
imports nothing but xarray, and prints
sizes, quality and speed. The exit code is 0 if everything that is not the image came back exactly.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from .attributes import ATTRIBUTE, same
from .compression import codec_of, compress
from .layout import find_cube
from .quality import psnr
from .stored import declared_offset
from .synthetic import scene
from .writing import Summary, human, model_text, to_zarr

#: What the other process runs. The first read loads network and coder; the second is timed.
_READER = """
import pickle, sys, time, warnings
import xarray as xr
store, name, out = sys.argv[1:]
ds = xr.open_zarr(store)
ds[name].isel({dim: slice(1) for dim in ds[name].dims}).load()
started = time.perf_counter()
ds = ds.load()
seconds = time.perf_counter() - started
with open(out, "wb") as file:
    pickle.dump((ds, seconds), file)
"""


def run(cube: str | None = None, *, model: str = "tt", compression: float = 20.0) -> int:
    """Do it and print a table; returns the exit code."""
    from rich.console import Console

    console = Console()
    ds = scene() if cube is None else _open(cube)
    found = find_cube(ds)
    offset = declared_offset(found.data) or 0.0
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "cube.zarr"
        packed = compress(ds, model=model, compression=compression, offset=offset)
        _warm_up(packed)
        summary = to_zarr(packed, store)
        back, seconds = _read_elsewhere(store, summary.variable, Path(folder) / "back.pickle")
    name = summary.variable
    # Decoded values on both sides: what a user of xarray sees.
    wrong = differences(packed, back, name, _nodata(packed[name]))
    quality = psnr(
        packed[name],
        back[name],
        band=found_band(packed[name]),
        nodata=_nodata(packed[name]),
        scale=_unit(packed[name]),
    )
    _print(console, cube, packed, summary, seconds, quality, found.names)
    if wrong:
        console.print(f"[bold red]not equal:[/] {'; '.join(wrong)}")
        return 1
    console.print(
        "Read back in another process: shape, dtype, coordinates and attributes are equal, nodata "
        "is the same bit for bit."
    )
    return 0


def differences(wrote: xr.Dataset, read: xr.Dataset, name: str, nodata: float | None) -> list[str]:
    """What did not come back exactly, besides the pixels of ``name``; empty where all did."""
    wrong = []
    if list(wrote.data_vars) != list(read.data_vars) or set(wrote.coords) != set(read.coords):
        return [f"variables are {list(read.variables)}, were {list(wrote.variables)}"]
    if not _same_attrs(wrote.attrs, read.attrs):
        wrong.append("attributes of the dataset")
    for key in wrote.variables:
        a, b = wrote[key], read[key]
        if a.dims != b.dims or a.shape != b.shape:
            wrong.append(f"{key}: shape {b.dims} {b.shape}, was {a.dims} {a.shape}")
            continue
        # xarray itself reads dates back as datetime64[ns], whatever unit they had.
        if a.dtype != b.dtype and not a.dtype.kind == b.dtype.kind == "M":
            wrong.append(f"{key}: dtype {b.dtype}, was {a.dtype}")
        if not _same_attrs(a.attrs, b.attrs):
            wrong.append(f"{key}: attributes")
        if key != name and not a.variable.equals(b.variable):
            wrong.append(f"{key}: values")
    before, after = wrote[name].values, read[name].values
    if not np.array_equal(_missing(before, nodata), _missing(after, nodata)):
        wrong.append(f"{name}: nodata")
    return wrong


def _missing(values: np.ndarray, nodata: float | None) -> np.ndarray:
    nan = values != values
    return nan if nodata is None else nan | (values == nodata)


def _same_attrs(a: Mapping[Any, Any], b: Mapping[Any, Any]) -> bool:
    """As JSON has them: a tuple comes back from any Zarr store as a list."""
    a, b = (
        {k: v for k, v in attrs.items() if k not in (ATTRIBUTE, "_FillValue")} for attrs in (a, b)
    )
    return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)


def found_band(data: xr.DataArray) -> Any:
    """The band dimension of a compressed variable, or None."""
    roles = codec_of(data.encoding).dims  # type: ignore[union-attr]
    return data.dims[roles.index("band")] if "band" in roles else None


def _open(cube: str) -> xr.Dataset:
    from .reading import open_input

    return open_input(cube)


def _config(data: xr.DataArray) -> Any:
    return codec_of(data.encoding).config  # type: ignore[union-attr]


def _nodata(data: xr.DataArray) -> float | None:
    """In the units that xarray shows: NaN where CF attributes decode to floats."""
    return float("nan") if data.dtype.kind == "f" else _config(data).nodata


def _unit(data: xr.DataArray) -> float:
    """Value of one DN in the units that xarray shows."""
    return _config(data).scale * float(data.encoding.get("scale_factor", 1.0))


def _warm_up(packed: xr.Dataset) -> None:
    """Load network and coder, so that the timing is of the work."""
    from tec import codec

    data = next(v for v in packed.data_vars.values() if codec_of(v.encoding) is not None)
    config = _config(data)
    dtype = np.dtype(data.encoding.get("dtype", data.dtype))
    chunk = np.full((1, len(config.bands), 64, 64), 1000, dtype)
    if config.nodata is not None:  # holes have kernels of their own
        chunk[0, :, :9, :9] = config.nodata
    codec.encode_many([chunk], config)


def _read_elsewhere(store: Path, name: str, out: Path) -> tuple[xr.Dataset, float]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _READER, str(store), name, str(out)],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise ValueError(
            f"reading {store.name} in another process failed: "
            f"{done.stderr.strip().splitlines()[-1]}"
        )
    with out.open("rb") as file:
        return pickle.load(file)  # written by the line above


def _print(
    console: Any,
    cube: str | None,
    packed: xr.Dataset,
    summary: Summary,
    seconds: float,
    quality: np.ndarray,
    names: tuple[str, ...],
) -> None:
    from rich.table import Table

    data = packed[summary.variable]
    title = "generated scene" if cube is None else Path(cube).name
    shape = ", ".join(f"{dim} {n}" for dim, n in data.sizes.items())
    table = Table(title=f"{title}: {shape}, {data.dtype}", show_header=False)
    table.add_row("model", model_text(*summary.rate))
    table.add_row("size", f"{human(summary.bytes_in)} -> {human(summary.bytes_out)}")
    table.add_row("ratio", f"{summary.ratio:.1f}")
    table.add_row("bits per pixel per band", f"{summary.bpppb:.4f}")
    table.add_row("encode", f"{summary.mb_per_s:.1f} MB/s")
    table.add_row("decode", f"{summary.bytes_in / 1e6 / seconds:.1f} MB/s")
    console.print(table)
    per_band = Table(title="PSNR in dB (peak 10000 DN, valid pixels)")
    per_band.add_column("band")
    per_band.add_column("dB", justify="right")
    error = 10 ** (-quality / 10)
    mean = -10 * np.log10(np.nanmean(error)) if np.nanmean(error) > 0 else np.inf
    for label, value in zip((*names, "all"), (*quality, mean), strict=True):
        per_band.add_row(label, f"{value:.1f}")
    console.print(per_band)
    if cube is None:
        console.print(
            "These are figures of a generated scene: real images differ. Try yours: make demo "
            "CUBE=path, or xtec demo path."
        )


def main() -> None:
    from .cli import main as cli_main

    sys.argv[1:1] = ["demo"]
    cli_main()


if __name__ == "__main__":
    main()
