"""The command ``xtec``: every command is a call of a function that Python can call as well."""

from __future__ import annotations

import inspect
import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from .messages import log

if TYPE_CHECKING:
    import xarray as xr

INTERRUPTED = 130

app = typer.Typer(
    help="Learned compression of Sentinel-2 cubes.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

_Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it exists.")]
_Storage = Annotated[
    str | None,
    typer.Option(
        metavar="JSON", help='For URLs, as fsspec takes them, such as \'{"profile": "me"}\'.'
    ),
]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def main() -> None:
    """Entry point: exit code 0, or one line on standard error and 2 (130 after Ctrl-C)."""
    with warnings.catch_warnings():
        # Ours are for users, those of our dependencies are not.
        warnings.simplefilter("ignore")
        warnings.simplefilter("default", UserWarning)
        # One line says that the Hub cannot be reached, its client says it once a retry.
        os.environ.setdefault("HF_HUB_VERBOSITY", "error")
        warnings.showwarning = _show_warning
        _show_log()
        code = _run()
    if code == INTERRUPTED:
        # Not by sys.exit: that waits for the chunks under way, and their tasks complain of the end.
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _run() -> int:
    try:
        code = app(standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except (ValueError, OSError, KeyError, ImportError, NotImplementedError) as error:
        return _fail(str(error) or type(error).__name__)
    except Exception as error:
        # Usage errors; typer brings its own click or takes the installed one, so the class cannot
        # be named.
        if not hasattr(error, "format_message"):
            raise
        return _fail(f"{error.format_message()} (xtec --help shows how)")
    if code == INTERRUPTED:  # newer typer returns it, older raises
        message = "interrupted; what was being written is incomplete and does not open"
        if sys.argv[1:2] == ["compress"]:
            message += "; the same command with --resume goes on with it"
        _fail(message)
    return code if isinstance(code, int) else 0


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from . import __version__

        typer.echo(__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


class _Given(NamedTuple):
    """What the options that several commands share come to."""

    options: dict[str, Any]  # as `xtec.compress` takes them
    drop_bands: str | None
    storage_options: str | None

    def open(self, source: str) -> xr.Dataset:
        """The input, and the offset that it declares where none was given."""
        from .layout import find_cube
        from .reading import open_input
        from .stored import declared_offset

        # How a file is cut up is nobody's choice here.
        warnings.filterwarnings("ignore", message="Dask chunks of")
        ds = open_input(source, storage_options=_storage(self.storage_options, source))
        if self.drop_bands:
            ds = _without(ds, self.drop_bands.split(","))
        if self.options["offset"] is None:
            named = {key: self.options[key] for key in ("bands", "sensor")}
            self.options["offset"] = declared_offset(find_cube(ds, **named).data) or 0.0
        return ds


def _codec_options(
    model: Annotated[str, typer.Option(help="tt, elic, fp or flex.")] = "tt",
    compression: Annotated[
        float | None,
        typer.Option(
            help="Low means smaller, high means better: about 0.4 to 700.", show_default="20"
        ),
    ] = None,
    psnr: Annotated[
        float | None,
        typer.Option(help="In place of compression: dB to reach (peak 10000 DN), such as 45."),
    ] = None,
    ratio: Annotated[
        float | None,
        typer.Option(help="In place of compression: how many times smaller, such as 30."),
    ] = None,
    quality: Annotated[
        str | None,
        typer.Option(help="Of flex: 0 to 16, or one a date such as 16,4 (the last one goes on)."),
    ] = None,
    forecast: Annotated[
        str, typer.Option(help="Of flex: mean or sample, in place of what quality leaves out.")
    ] = "mean",
    max_error: Annotated[
        str | None,
        typer.Option(
            help="Bound on the error of every pixel in DN: 0 (lossless), 10, or B02=5,default=20."
        ),
    ] = None,
    weights: Annotated[
        str,
        typer.Option(help="builtin, terracodec, terracodec:lronly or the path of a checkpoint."),
    ] = "builtin",
    chunks: Annotated[str | None, typer.Option(help="Such as time=4,y=512,x=512, or auto.")] = None,
    shards: Annotated[
        str | None, typer.Option(help="Such as time=4,y=4096,x=4096 (format 3), or auto.")
    ] = None,
    offset: Annotated[
        float | None,
        typer.Option(
            help="DN minus reflectance x 10000; by default the attribute 'offset', else 0."
        ),
    ] = None,
    scale: Annotated[
        float | None, typer.Option(help="Value of one DN, for floats: 1e-4 for reflectance.")
    ] = None,
    nodata: Annotated[
        str, typer.Option(help="A number, 'none', or 'auto' to read it from the input.")
    ] = "auto",
    bands: Annotated[
        str | None,
        typer.Option(help="B02,B03,... in the order of the band axis, or SR_B2=B02,SR_B3=B03,..."),
    ] = None,
    drop_bands: Annotated[
        str | None, typer.Option(help="Bands to leave out, such as B10 or B01,B09.")
    ] = None,
    sensor: Annotated[
        str | None, typer.Option(help="S2L2A or S2L1C; guessed when left out.")
    ] = None,
    zarr_format: Annotated[int, typer.Option(help="3 or 2.")] = 3,
    storage_options: _Storage = None,
) -> _Given:
    options = {
        "model": model,
        "compression": compression,
        "psnr": psnr,
        "ratio": ratio,
        "quality": _quality(quality),
        "forecast": forecast,
        "max_error": _max_error(max_error),
        "weights": weights,
        "chunks": _sizes(chunks, "--chunks"),
        "shards": _sizes(shards, "--shards"),
        "offset": offset,
        "scale": scale,
        "nodata": _nodata(nodata),
        "bands": _bands(bands),
        "sensor": sensor,
        "zarr_format": zarr_format,
    }
    return _Given(options, drop_bands, storage_options)


def _with_codec_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command with all options of `_codec_options` in place of its parameter ``given``."""
    own, shared = (inspect.signature(f, eval_str=True) for f in (command, _codec_options))
    parameters: list[inspect.Parameter] = []
    for name, parameter in own.parameters.items():
        parameters += shared.parameters.values() if name == "given" else [parameter]

    @wraps(command)
    def run(**values: Any) -> None:
        theirs = {name: values.pop(name) for name in shared.parameters}
        command(given=_codec_options(**theirs), **values)

    del run.__wrapped__  # type: ignore[attr-defined]  # typer would look there
    run.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run


@app.command()
@_with_codec_options
def compress(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            metavar="IN",
            help="Zarr store (also .zarr.zip), NetCDF file, GeoTIFF or folder of GeoTIFFs.",
        ),
    ],
    out: Annotated[
        str,
        typer.Argument(
            metavar="OUT", help="Zarr store to write; a name that ends in .zip becomes one file."
        ),
    ],
    given: _Given,
    embed_weights: Annotated[
        bool,
        typer.Option(
            "--embed-weights", help="Put the decoder's weights into OUT, for who lacks them."
        ),
    ] = False,
    verify: Annotated[
        str,
        typer.Option(
            help="no, yes or sample: read chunks back, decode them as another machine might, and "
            "compare them with IN."
        ),
    ] = "no",
    overwrite: _Overwrite = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on with what an interrupted run of the same command has left."
        ),
    ] = False,
    append: Annotated[
        str | None,
        typer.Option(
            metavar="DIM",
            help="time: put the dates of IN behind those of OUT, compressed as these are.",
        ),
    ] = None,
) -> None:
    """Compress a cube into a Zarr store."""
    from .rootlast import is_empty, open_store
    from .writing import to_zarr

    storage = _storage(given.storage_options, out)
    ds, options = given.open(source), given.options
    if append is not None and not is_empty(open_store(out, storage)):
        # The store says how; what is asked for is compared with it.
        options = {name: value for name, value in options.items() if _is_given(context, name)}
    summary = to_zarr(
        ds,
        out,
        append_dim=append,
        overwrite=overwrite,
        resume=resume,
        verify={"no": False, "yes": True}.get(verify, verify),
        storage_options=storage,
        embed_weights=embed_weights,
        **options,
    )
    typer.echo(str(summary))


@app.command()
@_with_codec_options
def plan(
    source: Annotated[
        str, typer.Argument(metavar="CUBE", help="What xtec compress takes; nothing is written.")
    ],
    given: _Given,
    size: Annotated[
        str | None, typer.Option(help="Of a whole archive like CUBE, uncompressed: 10TB.")
    ] = None,
    sample: Annotated[int, typer.Option(help="Chunks to try.")] = 8,
    workers: Annotated[int, typer.Option(help="Machines (or processes) like this one.")] = 1,
    threads: Annotated[
        int | None, typer.Option(help="Cores of a worker.", show_default="all of this machine")
    ] = None,
    efficiency: Annotated[
        float, typer.Option(help="What n workers do of n times the work of one.")
    ] = 0.85,
    gpu: Annotated[
        bool, typer.Option("--gpu", help="Workers have a GPU: measured on the one here, if any.")
    ] = False,
    rate: Annotated[
        float | None,
        typer.Option(help="MB/s that a worker compresses, if not as measured here."),
    ] = None,
    decode_rate: Annotated[
        float | None, typer.Option(help="MB/s that a worker decodes, likewise.")
    ] = None,
    price: Annotated[float | None, typer.Option(help="Of a worker-hour, in any currency.")] = None,
    storage_price: Annotated[float | None, typer.Option(help="Of a TB and month.")] = None,
    store_bandwidth: Annotated[
        float | None, typer.Option(help="MB/s that the store takes or gives in all.")
    ] = None,
    as_json: _Json = False,
) -> None:
    """Say what compressing a cube would come to: size, quality, hours, objects, memory."""
    from .planning import plan as run

    found = run(
        given.open(source),
        size=size,
        sample=sample,
        workers=workers,
        threads=threads,
        efficiency=efficiency,
        gpu=gpu,
        rate=rate,
        decode_rate=decode_rate,
        price=price,
        storage_price=storage_price,
        store_bandwidth=store_bandwidth,
        **given.options,
    )
    typer.echo(json.dumps(found.to_dict(), indent=2) if as_json else str(found))


@app.command()
def decompress(
    source: Annotated[str, typer.Argument(metavar="IN", help="Store that xtec has written.")],
    out: Annotated[
        str,
        typer.Argument(
            metavar="OUT", help=".zarr or .zarr.zip (lossless), .nc, or a folder for GeoTIFFs."
        ),
    ],
    overwrite: _Overwrite = False,
    storage_options: _Storage = None,
) -> None:
    """Give the pixels back as ordinary files; band variables come back as band variables."""
    from .bandvars import split
    from .reading import open_input, save
    from .report import describe

    options = _storage(storage_options, source)
    describe(source, storage_options=options)  # says so if there is nothing of ours in it
    ds = split(open_input(source, chunked=True, storage_options=options))
    save(ds, out, overwrite=overwrite, storage_options=_storage(storage_options, out))
    typer.echo(f"{source} -> {out}")


@app.command()
def info(
    store: Annotated[str, typer.Argument(metavar="STORE", help="Store that xtec has written.")],
    as_json: _Json = False,
    storage_options: _Storage = None,
) -> None:
    """Say what is in a store: model, weights, bands, sizes."""
    from .report import describe, variable_rows, weights_text

    found = describe(store, storage_options=_storage(storage_options, store))
    for variable in found["variables"]:
        for remark in variable["warnings"]:
            warnings.warn(f"{variable['name']}: {remark}", UserWarning, stacklevel=1)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    typer.echo(f"{found['store']} (Zarr format {found['zarr_format']})")
    for variable in found["variables"]:
        _show(variable_rows(variable))
    if found["embedded_weights"] is not None:
        typer.echo(f"weights inside the store: {weights_text(found['embedded_weights'])}")
    if found["other_variables"]:
        typer.echo(f"not compressed by xtec: {', '.join(found['other_variables'])}")


@app.command()
def verify(
    store: Annotated[str, typer.Argument(metavar="STORE", help="Store that xtec has written.")],
    against: Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help="What the store was made of, for the errors."),
    ] = None,
    sample: Annotated[
        bool, typer.Option("--sample", help="Look at some chunks only: 16, and one in 20.")
    ] = False,
    as_json: _Json = False,
    storage_options: _Storage = None,
) -> None:
    """Check that every chunk is there, is undamaged and decodes, and how far it is from SOURCE.

    Ends with 1 where anything is wrong.
    """
    from .reading import open_input
    from .verifying import verify as run

    source = None
    if against is not None:
        options = _storage(storage_options, against)
        source = open_input(against, chunked=True, storage_options=options)
    found = run(store, source, sample=sample, storage_options=_storage(storage_options, store))
    if as_json:
        typer.echo(json.dumps([one.to_dict() for one in found], indent=2))
    else:
        for one in found:
            typer.echo(f"{one.variable}: {one.text()}")
            if one.rows():
                _show(one.rows())
    if not all(one.sound for one in found):
        raise typer.Exit(1)


@app.command()
def report(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="What the store was made of.")],
    store: Annotated[str, typer.Argument(metavar="STORE", help="Store that xtec has written.")],
    out: Annotated[str, typer.Option("-o", "--out", help="The page, one file.")] = "report.html",
    dates: Annotated[int, typer.Option(help="Dates to draw, spread evenly.")] = 4,
    budget: Annotated[
        str,
        typer.Option(
            help="Pixels to decode, such as 500MB or 10GB; at least a chunk, and one a date drawn."
        ),
    ] = "2GB",
    overwrite: _Overwrite = False,
) -> None:
    """Show on an HTML page what was kept and what was lost."""
    from .page import report as run
    from .reading import open_input

    found = run(open_input(source), store, out, dates=dates, budget=budget, overwrite=overwrite)
    typer.echo(f"{found} ({found.stat().st_size / 1e6:.1f} MB)")


@app.command()
def models(as_json: _Json = False) -> None:
    """List the models and where their weights are."""
    import tec

    from .report import short

    found = tec.checkpoints()
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for entry in found:
        typer.echo("  ".join(f"{key}={short(value)}" for key, value in entry.items()))


@app.command()
def demo(
    cube: Annotated[
        str | None,
        typer.Argument(metavar="[CUBE]", help="A cube of yours; a generated scene when left out."),
    ] = None,
    model: Annotated[str, typer.Option(help="tt, elic or fp.")] = "tt",
    compression: Annotated[
        float, typer.Option(help="Low means smaller, high means better.")
    ] = 20.0,
) -> None:
    """Compress a cube, read it back in another process, and say how well that went."""
    from .demo import run

    raise typer.Exit(run(cube, model=model, compression=compression))


def _is_given(context: typer.Context, name: str) -> bool:
    """Whether an option was typed, or is its default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def _without(ds: xr.Dataset, names: list[str]) -> xr.Dataset:
    """``ds`` less some bands, be they variables or places on the band axis."""
    axis = [str(b) for b in ds["band"].values] if "band" in ds.coords else []
    unknown = [name for name in names if name not in ds.data_vars and name not in axis]
    if unknown:
        there = ", ".join(axis or map(str, ds.data_vars))
        raise ValueError(f"--drop-bands: no band {', '.join(unknown)}; there are {there}")
    if any(name in axis for name in names):
        ds = ds.isel(band=[i for i, name in enumerate(axis) if name not in names])
    return ds.drop_vars([name for name in names if name in ds.data_vars])


def _fail(message: str, code: int = 2) -> int:
    message = re.sub(r"(?<!\()(overwrite|resume)=True", r"--\1", message)
    sys.stderr.write("xtec: " + " ".join(message.split()) + "\n")
    return code


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    sys.stderr.write("xtec: warning: " + " ".join(str(message).split()) + "\n")


def _show_log() -> None:
    """What was decided for the user: a line each on standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("xtec: %(message)s"))
    log.handlers = [handler]
    log.setLevel(logging.INFO)


def _show(rows: list[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in rows)
    typer.echo("\n".join(f"  {name:<{width}}  {value}" for name, value in rows))


def _storage(text: str | None, place: str) -> dict[str, Any] | None:
    """Of a place that is a URL: others take none."""
    from .remote import is_url

    if text is None or not is_url(place):
        return None
    try:
        options = json.loads(text)
    except ValueError:
        options = None
    if not isinstance(options, dict):
        raise ValueError(
            f"""--storage-options is {text!r}: write JSON, such as '{{"profile": "me"}}'"""
        )
    return options


def _sizes(text: str | None, option: str) -> dict[str, int] | str | None:
    """ "time=4,y=512" -> {"time": 4, "y": 512}; "auto" stays what it is."""
    if text is None or text == "auto":
        return text
    try:
        return {
            dim.strip(): int(size) for dim, size in (part.split("=") for part in text.split(","))
        }
    except ValueError:
        raise ValueError(f"{option} is {text!r}: write it as time=4,y=512,x=512, or auto") from None


def _bands(text: str | None) -> dict[str, str] | list[str] | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not any("=" in part for part in parts):
        return parts
    if not all(part.count("=") == 1 for part in parts):
        raise ValueError(
            f"--bands is {text!r}: write names (B02,B03) or pairs (SR_B2=B02,SR_B3=B03), not both"
        )
    return dict(part.split("=") for part in parts)  # type: ignore[misc]


def _quality(text: str | None) -> list[int] | None:
    """ "16,4" -> [16, 4]."""
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(
            f"--quality is {text!r}: write 0 to 16, or one a date such as 16,4,4"
        ) from None


def _max_error(text: str | None) -> float | dict[str, float] | None:
    """ "10" -> 10.0, "B02=5,default=20" -> {"B02": 5.0, "default": 20.0}."""
    if text is None:
        return None
    try:
        if "=" not in text:
            return float(text)
        parts = (part.split("=") for part in text.split(","))
        return {name.strip(): float(value) for name, value in parts}
    except ValueError:
        raise ValueError(
            f"--max-error is {text!r}: write DN, such as 10, or B02=5,default=20"
        ) from None


def _nodata(text: str) -> float | str | None:
    if text.lower() in ("auto", "none"):
        return "auto" if text.lower() == "auto" else None
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"--nodata is {text!r}: pass a number, 'none' or 'auto'") from None


if __name__ == "__main__":
    main()
