"""Streams between a GPU and the CPU: the same latents, whichever wrote them."""

from __future__ import annotations

import numpy as np
import pytest
import tec
import torch
from scenes import scene
from tec import codec
from tec.sensors import SENSORS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
ALL = SENSORS["S2L2A"].bands


#: Built in, and tiny ones from files.
KINDS = [
    *("fp", "elic", "tt", "flex"),
    *("tiny elic", "tiny tt", "tiny compact flex", "tiny published tt", "tiny flex"),
]
CASES = [(kind, "mean") for kind in KINDS]
CASES += [(kind, "sample") for kind in KINDS if kind.endswith("flex")]


@pytest.mark.parametrize(("kind", "forecast"), CASES)
@pytest.mark.parametrize("compression", [2.0, 20.0, 300.0])
def test_what_one_writes_the_other_reads(kind, compression, forecast, tiny_checkpoints):
    model = kind.rpartition(" ")[2]
    tiny = kind.startswith("tiny ")
    path = str(tiny_checkpoints[kind.removeprefix("tiny ")]) if tiny else None
    quality = (16, 4, 0, 9) if model == "flex" else None
    config = tec.CodecConfig(
        model=model,
        compression=compression,
        weights=path or "builtin",
        quality=quality,
        forecast=forecast,
        bands=ALL,
        nodata=0,
    )
    base = scene(1, 12, 200, 136, seed=1)
    chunks = [base + scene(4, 12, 200, 136, seed=s) // 30 for s in range(3)]
    for writer, reader in (("cuda", "cpu"), ("cpu", "cuda")):
        for data in codec.encode_many(chunks, config, device=writer):
            here = codec.latents(data, weights=path, device=writer)
            there = codec.latents(data, weights=path, device=reader)
            for a, b in zip(here, there, strict=True):
                np.testing.assert_array_equal(a, b)
            a, b = (codec.decode(data, weights=path, device=d) for d in (writer, reader))
            assert np.abs(a.astype(int) - b).max() <= 1
