"""Progress bars: whose, where, and that notebooks without widgets are not warned at."""

from __future__ import annotations

import io
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import xarray as xr
from cubes import cube
from dask.diagnostics import ProgressBar
from rich.console import Console

from xtec import messages


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What is shown in a terminal."""
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=80)
    monkeypatch.setattr(messages, "_console", lambda: console)
    if find_spec("colorama"):  # what numba makes of stdout under a bar would outlive it
        monkeypatch.setattr("colorama.initialise.orig_stdout", sys.__stdout__)
    return text


def blocks() -> xr.DataArray:
    return cube(time=4).chunk(time=1)


OPTIONS: dict[str, Any] = {"max_error": 3, "chunks": {"time": 1}}


def test_a_bar_in_a_terminal(terminal: io.StringIO, tmp_path: Path) -> None:
    blocks().tec.to_zarr(tmp_path / "a.zarr", **OPTIONS)
    assert "compressing" in terminal.getvalue()
    assert "100 %" in terminal.getvalue()


def test_the_bar_of_dask_takes_the_place_of_ours(terminal: io.StringIO, tmp_path: Path) -> None:
    theirs = io.StringIO()
    with ProgressBar(out=theirs):
        blocks().tec.to_zarr(tmp_path / "a.zarr", **OPTIONS)
    assert "100% Completed" in theirs.getvalue()
    assert terminal.getvalue() == ""


@pytest.mark.parametrize("there", [False, True])
def test_notebooks_without_widgets_get_a_line_of_text(
    there: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """Where rich would warn that ipywidgets is not installed, at every bar."""
    console = Console(force_jupyter=True)
    monkeypatch.setattr(messages, "_console", lambda: console)
    monkeypatch.setattr(messages, "find_spec", lambda name: "a spec" if there else None)
    assert messages._lacks_widgets(console) is not there
    if there:
        return
    blocks().tec.to_zarr(tmp_path / "a.zarr", **OPTIONS)
    lines = capsys.readouterr().err.split("\r")
    assert "compressing 100 %" in lines
    assert lines[-2:] == [" " * len("compressing 100 %"), ""]


def test_nothing_to_do_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with messages._line("reading"):
        pass
    assert capsys.readouterr().err == ""
