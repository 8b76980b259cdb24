"""Full float32 while a network runs, whatever the process around it is set to; less on request.

Programs that train allow shorter products (``torch.set_float32_matmul_precision("medium")`` and
its like): bfloat16 or TF32, with which pixels come out wrong by tens of DN, and latents that are
coded by no margin. These settings belong to the whole process, so the passes that run at one time
share one change of them, and the last one undoes it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch

from .forks import in_child

_lock = threading.Lock()
_passes = 0
_before: list[tuple[Any, str, Any]] = []


@contextmanager
def full_precision(device: str) -> Iterator[None]:
    """float32 is float32 on this type of device, "cpu" or "cuda"; and no surrounding autocast."""
    global _passes
    with _lock:
        _passes += 1
        for owner, name, fine in _settings(device):
            value = getattr(owner, name)
            if value not in fine:
                _before.append((owner, name, value))
                setattr(owner, name, fine[0])
    try:
        with torch.autocast(device, enabled=False):
            yield
    finally:
        with _lock:
            _passes -= 1
            if not _passes:
                _restore()


def quick_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 faster than float32, in its hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and _cpu_bfloat16()


@cache
def _cpu_bfloat16() -> bool:
    names = "_is_avx512_bf16_supported", "_is_amx_tile_supported"  # from torch 2.4, 2.5 on
    return any(getattr(torch.cpu, name, bool)() for name in names)


def fast(device: torch.device) -> torch.autocast:
    """Short products for a synthesis, where the device computes them quickly; elsewhere nothing
    changes. For this thread alone, which TF32 could not be.

    Entropy parameters are never computed inside. What a network keeps out of an autocast (the
    linear path of the built-in ones) stays float32.
    """
    dtype = short(device)
    return torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None)


def short(device: torch.device) -> torch.dtype | None:
    """What is quick to multiply: float16 on a GPU, with the digits of TF32 (who is told infinities
    has to fall back); bfloat16 on a processor that has it; None elsewhere."""
    if device.type == "cuda":
        return torch.float16 if torch.cuda.get_device_capability(device) >= (7, 0) else None
    return torch.bfloat16 if quick_bfloat16(device) else None


def _settings(device: str) -> Iterator[tuple[Any, str, tuple]]:
    """(owner, attribute, values that will do, the first of which is set)."""
    backends: Any = torch.backends
    if device == "cuda":
        yield backends.cudnn, "enabled", (True,)
        yield backends.cudnn, "benchmark", (False,)
        if _set_by_name():
            for owner in (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn):
                yield owner, "fp32_precision", ("ieee",)
        else:
            for owner in (backends.cuda.matmul, backends.cudnn):
                yield owner, "allow_tf32", (False,)
    elif hasattr(backends, "fp32_precision"):  # from torch 2.9 on
        for owner in (backends.mkldnn.matmul, backends.mkldnn.conv):
            yield owner, "fp32_precision", ("ieee", "none")
    else:
        yield _LEGACY, "matmul", ("highest",)


def _set_by_name() -> bool:
    """Whether somebody has set CUDA's operations one by one (torch then refuses to sum it up), or
    all at once by the newer name, which what the older one leaves open falls back to."""
    backends: Any = torch.backends
    try:
        if None in (backends.cudnn.allow_tf32, backends.cuda.matmul.allow_tf32):
            return True
    except RuntimeError:
        return True
    return getattr(backends.cudnn, "fp32_precision", "none") not in ("none", "ieee")


class _LegacyPrecision:
    """torch's older setting, as an attribute."""

    @property
    def matmul(self) -> str:
        return torch.get_float32_matmul_precision()

    @matmul.setter
    def matmul(self, value: str) -> None:
        torch.set_float32_matmul_precision(value)


_LEGACY = _LegacyPrecision()


def _restore() -> None:
    while _before:
        setattr(*_before.pop())


def _after_fork() -> None:
    global _lock, _passes
    _lock, _passes = threading.Lock(), 0
    _restore()


in_child(_after_fork)
