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


@pytest.mark.parametrize("kind", ["fp", "elic", "tt", "published tt", "flex"])
@pytest.mark.parametrize("compression", [2.0, 20.0, 300.0])
def test_what_one_writes_the_other_reads(kind, compression, tiny_checkpoints):
    model = kind.rpartition(" ")[2]
    path = str(tiny_checkpoints[kind]) if kind in ("published tt", "flex") else None
    quality = (16, 4, 0, 9) if model == "flex" else None
    config = tec.CodecConfig(
        model=model,
        compression=compression,
        weights=path or "builtin",
        quality=quality,
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
