"""Learned codecs for Sentinel-2: one numpy chunk of DN <-> bytes.

``encode``, ``decode``, ``load`` and ``checkpoints`` are imported when first used, so that ``import
tec`` stays light.
"""

from __future__ import annotations

from typing import Any

from .config import CodecConfig
from .errors import StreamError, TecError, WeightsError
from .stream import peek

__all__ = [
    "CodecConfig",
    "StreamError",
    "TecError",
    "WeightsError",
    "checkpoints",
    "decode",
    "decode_many",
    "encode",
    "encode_many",
    "inpaint",
    "load",
    "peek",
]

_LAZY = {
    "encode": "codec",
    "encode_many": "codec",
    "decode": "codec",
    "decode_many": "codec",
    "inpaint": "inpainting",
    "load": "weights",
    "checkpoints": "weights",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
