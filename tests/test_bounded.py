"""The promise of max_error: no valid pixel is off by more, and nothing else changes at all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from planes import KINDS, Case, band, cases, check_bound
from tec import StreamError, TecError, codec, residual, stream

BANDS = ("B02", "B03", "B04")


def config(case: Case, **changes: Any) -> tec.CodecConfig:
    bands = BANDS[: case.chunk.shape[1]]
    return tec.CodecConfig(**{"model": "none", "bands": bands, **case.settings, **changes})


def refused(error: TecError, case: Case) -> bool:
    """Whether the case is one that float32 cannot do, and says so."""
    return case.chunk.dtype.kind == "f" and "float32" in str(error)


@given(cases())
@settings(max_examples=300, deadline=None, derandomize=True)
def test_the_bound_holds_for_any_cube(case: Case) -> None:
    given = case.chunk.copy()
    data = codec.encode(case.chunk, config(case))
    np.testing.assert_array_equal(case.chunk, given)
    back = codec.decode(data)
    check_bound(back, case)
    for dates in range(len(case.chunk)):
        np.testing.assert_array_equal(codec.decode(data, dates=dates), back[:dates])
