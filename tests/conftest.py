"""Fixtures that many tests share."""

from __future__ import annotations

import os

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # before torch is imported: small work on busy machines

import multiprocessing
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import dask
import pytest
from hypothesis import settings

settings.register_profile("xtec", deadline=None)  # first examples compile kernels
settings.load_profile("xtec")


@pytest.fixture(scope="session", autouse=True)
def workers_that_have_imported_everything() -> Iterator[None]:
    """Workers of clusters and pools are forked from a process that has imported what they need, and
    has run nothing: importing takes seconds. Tests of how workers begin set "spawn", Dask's own."""
    method = "forkserver" if sys.platform != "win32" else "spawn"
    names = ("distributed.worker.multiprocessing-method", "multiprocessing.context")
    with dask.config.set(dict.fromkeys(names, method)):
        if method == "forkserver":
            if find_spec("distributed") is not None:
                from distributed.utils import get_mp_context

                get_mp_context()  # which sets the modules of its own, once
            modules = ["distributed", "dask.array", "torch", "xtec.blocks", "tec.codec"]
            multiprocessing.get_context(method).set_forkserver_preload(modules)
        yield


@pytest.fixture(scope="module", autouse=True)
def memory_goes_back() -> Iterator[None]:
    """What a module has freed: malloc would keep gigabytes of it."""
    from tec import memory

    yield
    memory.trim()


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
