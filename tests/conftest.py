"""Fixtures that many tests share."""

from __future__ import annotations

import os

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # before torch is imported: small work on busy machines

from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("xtec", deadline=None)  # first examples compile kernels
settings.load_profile("xtec")


@pytest.fixture(scope="session")
def tiny_elic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of a tiny ``elic`` checkpoint with random weights."""
    import tiny

    return tiny.write(tmp_path_factory.mktemp("weights") / "elic.safetensors", "elic")


@pytest.fixture(scope="session")
def tiny_fp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of a tiny ``fp`` checkpoint with random weights."""
    import tiny

    return tiny.write(tmp_path_factory.mktemp("weights") / "fp.safetensors", "fp")


@pytest.fixture(scope="session")
def tiny_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Paths of tiny checkpoints with random weights: compact "elic" and "tt" ("compact flex" is the
    same file), and a "tt" and "flex" of the published architecture."""
    import tiny

    folder = tmp_path_factory.mktemp("weights")
    tt = tiny.write(folder / "tt.safetensors", "tt")
    return {
        "elic": tiny.write(folder / "elic.safetensors", "elic"),
        "tt": tt,
        "compact flex": tt,
        "published tt": tiny.write(folder / "tt.pt", "tt"),
        "flex": tiny.write(folder / "flex.pt", "flex"),
    }
