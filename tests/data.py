"""Where real cubes are, for tests and benchmarks that want them: ../shared/data beside the
repository, or XTEC_DATA."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

FOLDER = Path(os.environ.get("XTEC_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))

requires_real = pytest.mark.skipif(
    not FOLDER.is_dir(),
    reason=f"no real Sentinel-2 cubes at {FOLDER} (set XTEC_DATA to their folder)",
)


def real_cubes(pattern: str) -> list[Path]:
    """Paths under the data folder that match, for example ``val/l2a_*.zarr``."""
    return sorted(FOLDER.glob(pattern))
