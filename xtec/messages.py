"""How xtec speaks to its users besides exceptions."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

#: Zarr's two warnings about format 3 that say nothing to users of this package.
QUIET = (
    r"The data type \(FixedLengthUTF32\(length=\d+, endianness='\w+'\)\) does not have a Zarr V3 "
    r"specification\.",
    r"Consolidated metadata is currently not part in the Zarr format 3 specification\.",
)

#: What was decided for the user, at level INFO: silent unless logging is configured.
log = logging.getLogger("xtec")


def warn(message: str) -> None:
    """Warn with the line of the caller outside this package, however deep inside it we are."""
    level, frame = 1, sys._getframe()
    while (
        frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "xtec"
    ):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, UserWarning, stacklevel=level)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the two warnings in ``QUIET``."""
    with warnings.catch_warnings():
        for message in QUIET:
            warnings.filterwarnings("ignore", message=message)
        yield


def _console() -> Any | None:
    """Where bars are shown: standard error in a terminal, or a notebook; else None."""
    from rich.console import Console

    found = Console(stderr=True)
    return found if found.is_terminal or found.is_jupyter else None


@contextmanager
def bar(title: str, show: bool) -> Iterator[Callable[[int, int], None]]:
    """A progress bar, if this is a terminal or a notebook, and Dask shows none of its own.

    It follows what a local scheduler of Dask does inside. What a cluster does is told to what is
    given: how much is done, and how much there is.
    """
    from dask.callbacks import Callback

    on = _console() if show and not Callback.active else None
    if on is None:
        yield lambda done, total: None
        return
    with _line(title) if _lacks_widgets(on) else _rich(title, on) as advance:

        def after(key: Any, result: Any, dsk: Any, state: Any, worker: Any) -> None:
            done = len(state["finished"])
            advance(done, done + sum(len(state[k]) for k in ("ready", "waiting", "running")))

        with Callback(posttask=after):
            yield advance


def _lacks_widgets(console: Any) -> bool:
    """Whether this is a notebook in which rich would warn in place of showing anything."""
    return console.is_jupyter and find_spec("ipywidgets") is None


@contextmanager
def _line(title: str) -> Iterator[Callable[[int, int], None]]:
    """Text that is written over itself."""
    shown = ""

    def advance(done: int, total: int) -> None:
        nonlocal shown
        text = f"\r{title} {100 * done // max(total, 1):>3} %"
        if text != shown:
            shown = text
            sys.stderr.write(text)
            sys.stderr.flush()

    try:
        yield advance
    finally:
        if shown:
            sys.stderr.write("\r" + " " * (len(shown) - 1) + "\r")


@contextmanager
def _rich(title: str, console: Any) -> Iterator[Callable[[int, int], None]]:
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as shown:
        task = shown.add_task(title, total=None)

        def advance(done: int, total: int) -> None:
            shown.update(task, completed=done, total=total)

        yield advance
