"""What a bug report should say."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import TextIO

_PACKAGES = (
    *("xtec", "numpy", "torch", "xarray", "zarr", "numcodecs", "dask", "distributed", "numba"),
    *("safetensors", "rioxarray", "huggingface-hub", "rich", "typer"),
)


def versions() -> dict[str, str]:
    """Name -> version of Python, the system and the packages that matter."""
    found = {"python": sys.version.split()[0], "system": platform.platform()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def show_versions(file: TextIO | None = None) -> None:
    """Write the versions for a bug report, one a line, to ``file`` (standard output by default)."""
    (file or sys.stdout).writelines(f"{name}: {number}\n" for name, number in versions().items())
