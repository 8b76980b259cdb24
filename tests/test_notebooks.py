"""The notebooks run from top to bottom, and are stored without what running them leaves behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
#: What a notebook needs besides this package and matplotlib.
NEEDS = {
    "08-clouds": ["matplotlib"],
    "02-archive-with-dask": ["distributed"],
    "07-s3": ["moto", "flask", "boto3", "s3fs"],
}

#: All code cells in one namespace, as a kernel would; warnings that point at a cell or at this
#: package are errors, but for zarr's two about what format 3 does not specify yet.
_RUN = """
import contextlib, json, sys, warnings
import matplotlib
matplotlib.use("Agg")
import zarr
path = sys.argv[1]
cells = [c for c in json.load(open(path, encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
namespace = {"__name__": "__main__"}
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    for number, cell in enumerate(cells):
        exec(compile("".join(cell["source"]), f"<cell {number}>", "exec"), namespace)
silent = (zarr.errors.UnstableSpecificationWarning, zarr.errors.ZarrUserWarning)
ours = [
    str(warning)
    for warning in seen
    if not issubclass(warning.category, silent)
    and (warning.filename.startswith("<cell") or "/xtec/" in warning.filename
         or "/tec/" in warning.filename)
]
if ours:
    sys.exit("warnings:\\n" + "\\n".join(ours))
"""


def cells(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def test_there_are_notebooks():
    assert [path.name[:2] for path in NOTEBOOKS] == [f"{n:02}" for n in range(1, 9)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(path, tmp_path):
    missing = [name for name in NEEDS.get(path.stem, []) if find_spec(name) is None]
    if missing:
        pytest.skip(f"{path.name} needs {', '.join(missing)}")
    done = subprocess.run(
        [sys.executable, "-c", _RUN, str(path)],
        cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{path.name}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_stored_without_outputs(path):
    text = path.read_text(encoding="utf-8")
    notebook = json.loads(text)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in cells(path)]
    assert len(set(ids)) == len(ids)
    for cell in cells(path):
        assert cell["metadata"] == {}, cell["id"]
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [], cell["id"]
            assert cell["execution_count"] is None, cell["id"]
            assert not "".join(cell["source"]).lstrip().startswith(("%", "!")), cell["id"]
    # Laid out as Jupyter does, so that saving an unchanged notebook changes nothing.
    assert text == json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
