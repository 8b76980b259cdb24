"""Settings of this process. None of them is ever written into a store.

Read when a chunk is coded, so they can be changed at any time; what makes no sense is refused when
it is set (from the environment: when it is used)::

    import xtec.settings
    xtec.settings.device = "cuda:0"
"""

from __future__ import annotations

import os
import sys
import types
from functools import lru_cache
from typing import Any

device: str = os.environ.get("XTEC_DEVICE", "auto")
"""Where the networks run: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ...
Environment variable ``XTEC_DEVICE``."""

precision: str = os.environ.get("XTEC_PRECISION", "full")
"""How pixels are computed when a store is read: ``"full"``, or ``"fast"`` for ones that differ by
some DN (`tec.decode`). Stores with a bound on their error, and `verify`, refuse ``"fast"``; what is
written and measured while writing is always ``"full"``.
Environment variable ``XTEC_PRECISION``."""

missing_chunks: str = os.environ.get("XTEC_MISSING_CHUNKS", "raise")
"""What a read does with a chunk that was never written (format 3 only): ``"raise"``, or ``"fill"``
to see it as nodata, for looking at what an interrupted write has left.
Environment variable ``XTEC_MISSING_CHUNKS``."""

retries: int = int(os.environ.get("XTEC_RETRIES") or 8)
"""How often an operation on object storage is tried again when it fails for a moment; read when a
store is opened. 8 times take about a minute, and each further one half a minute.
Environment variable ``XTEC_RETRIES``."""

cache: int | str = os.environ.get("XTEC_CACHE", 0)
"""How much of what was decoded last a process keeps, for reads that come back to the same chunks:
bytes, or text such as ``"1 GB"``; 0 for nothing. Environment variable ``XTEC_CACHE``."""


@lru_cache(8)
def cache_bytes(value: int | str) -> int:
    """What `cache` says, as a number.

    Raises
    ------
    ValueError
        It is no size.
    """
    from dask.utils import parse_bytes

    try:
        size = parse_bytes(value or 0)
    except (AttributeError, TypeError, ValueError, OverflowError):
        size = -1
    if size < 0:
        raise ValueError(
            f"xtec.settings.cache (XTEC_CACHE) is {value!r}: it must be a number of bytes, or text "
            "such as '1 GB'; 0 keeps nothing"
        )
    return size


def check_device(value: str) -> None:
    """ValueError where `device` is no name of one; whether it is there is asked where it is used,
    which may be elsewhere."""
    from tec.weights import names_device

    if not names_device(value):
        raise ValueError(
            f"xtec.settings.device (XTEC_DEVICE) is {value!r}: choose 'auto', 'cpu', 'cuda' or "
            "'cuda:0', 'cuda:1', ..."
        )


class _Checked(types.ModuleType):
    """This module: what is set is looked at first."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "cache":
            cache_bytes(value)
        elif name == "device":
            check_device(value)
        elif name == "missing_chunks" and value not in ("raise", "fill"):
            raise ValueError(f"xtec.settings.missing_chunks is {value!r}: choose 'raise' or 'fill'")
        elif name == "precision" and value not in ("full", "fast"):
            raise ValueError(f"xtec.settings.precision is {value!r}: choose 'full' or 'fast'")
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Checked
