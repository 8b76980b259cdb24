"""Steps that are recorded once and replayed, by a stand-in for CUDA's graphs: what is recorded
when, kept, replayed and let go. tests/test_gpu.py has the real ones."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tec
import torch
from scenes import scene
from tec import batches, codec, graphs, weights
from tec.models.temporal import Unrolling
from tec.models.tokens import TOKENS

BANDS = ("B02", "B03", "B04")


class Graph:
    """Runs again what it recorded, on the numbers that its buffers hold by then."""

    made: list[Graph] = []  # noqa: RUF012

    def __init__(self, run: Callable, found: Any) -> None:
        self.run, self.found, self.replays = run, found, 0
        Graph.made.append(self)

    def replay(self) -> None:
        self.replays += 1
        again = self.run()
        self.found.features.copy_(again.features)
        for mine, its in zip(self.found[1:], again[1:]):
            for buffer, value in zip(mine, its, strict=True):
                buffer.copy_(value)


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def capture(run: Callable, device: torch.device) -> tuple[Graph, Any]:
        run()
        found = run()
        for tensor in (found.features, *found.means, *found.log_scales):
            assert torch.is_inference_mode_enabled()
            tensor.fill_(float("nan"))  # recording computes nothing
        return Graph(run, found), found

    monkeypatch.setattr(Graph, "made", [])
    monkeypatch.setattr(graphs, "_capture", capture)
    monkeypatch.setattr(graphs, "_broken", False)
    monkeypatch.setattr(graphs, "_allowed", lambda device: True)
    graphs.drop()


@pytest.fixture(params=["published tt", "flex"])
def config(request: pytest.FixtureRequest, tiny_checkpoints: dict) -> tec.CodecConfig:
    flex = {"quality": (16, 5, 0)} if request.param == "flex" else {}
    path = str(tiny_checkpoints[request.param])
    return tec.CodecConfig(
        model=request.param.split()[-1], weights=path, bands=BANDS, nodata=0, **flex
    )


def chunks(n: int) -> list[np.ndarray]:
    return [scene(3, 3, 64, 128, seed=seed) for seed in range(n)]


def latents(data: bytes, config: tec.CodecConfig) -> list[np.ndarray]:
    return codec.latents(data, weights=config.weights, device="cpu")


def prior_of(config: tec.CodecConfig) -> Any:
    return weights.load(config.model, weights=config.weights, device="cpu").prior


def test_what_is_replayed_is_the_same(
    config: tec.CodecConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as plain:
        plain.setattr(graphs, "_allowed", lambda device: False)
        data = codec.encode_many(chunks(2), config, device="cpu")
        wanted = [latents(one, config) for one in data]
        pixels = [tec.decode(one, weights=config.weights, device="cpu") for one in data]
    assert codec.encode_many(chunks(2), config, device="cpu") == data
    assert not Graph.made  # encoders go without
    for _ in range(2):
        for one, its in zip(data, wanted):
            for a, b in zip(latents(one, config), its, strict=True):
                np.testing.assert_array_equal(a, b)
    # The first date, whose context all blocks share, and the others: steps of two shapes.
    assert len(Graph.made) == 2 * TOKENS
    assert [graph.replays for graph in Graph.made] == [7] * TOKENS + [3] * TOKENS
    for one, its in zip(data, pixels):
        back = tec.decode(one, weights=config.weights, device="cpu")
        np.testing.assert_array_equal(back, its)


def test_each_shape_has_its_own_and_the_oldest_go(
    config: tec.CodecConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "KEPT", 3)
    prior = prior_of(config)
    for n in (1, 2, 3):
        data = codec.encode_many(chunks(n), config, device="cpu")
        for _ in range(2):
            codec.decode_many(data, weights=config.weights, device="cpu")
        there = [key for key, recorded in prior.graphs.items() if recorded is not None]
        assert len(there) == min(2 * n, 3)
    assert {key[0] for key in there} == {4, 6}  # two blocks of each image
    assert len(Graph.made) == 6 * TOKENS


def test_large_contexts_go_without(
    config: tec.CodecConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "LARGEST", 2 * 2 * 128 * 48 * 4)
    data = codec.encode_many(chunks(3), config, device="cpu")
    for _ in range(2):
        codec.decode_many(data, weights=config.weights, device="cpu")
    assert {key[1][0] for key in prior_of(config).graphs} == {1}  # that of the first date is small


def test_a_step_that_cannot_be_recorded(
    config: tec.CodecConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    data = codec.encode(chunks(1)[0], config, device="cpu")
    inner, wanted = graphs._capture, latents(data, config)
    most = len(Graph.made) + 5

    def fail(run: Callable, device: torch.device) -> Any:
        if len(Graph.made) == most:
            raise RuntimeError("operation not permitted when stream is capturing")
        return inner(run, device)

    monkeypatch.setattr(graphs, "_capture", fail)
    with caplog.at_level(logging.WARNING, "tec.graphs"):
        for _ in range(3):
            for a, b in zip(latents(data, config), wanted, strict=True):
                np.testing.assert_array_equal(a, b)
    (record,) = caplog.records
    assert "cannot be recorded (operation not permitted" in record.getMessage()
    assert len(Graph.made) == most  # no more was tried


def test_damage_in_the_middle_leaves_them_as_they_were(config: tec.CodecConfig) -> None:
    data = codec.encode(chunks(1)[0], config, device="cpu")
    wanted = latents(data, config)
    latents(data, config)
    made = len(Graph.made)
    network = weights.load(config.model, weights=config.weights, device="cpu")
    past = network.history((1, 4, 8))
    reader = _Halts()
    with torch.inference_mode(), pytest.raises(tec.StreamError):
        next(network.date(past, reader))
    for a, b in zip(latents(data, config), wanted, strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(Graph.made) == made


class _Halts:
    def parameters(self, *args: Any) -> Any:
        raise tec.StreamError("the decisions end")


def test_two_at_one_time_do_not_share_buffers(config: tec.CodecConfig) -> None:
    data = codec.encode(chunks(1)[0], config, device="cpu")
    for _ in range(2):
        latents(data, config)
    network = weights.load(config.model, weights=config.weights, device="cpu")
    with torch.inference_mode():
        context = network.history((1, 4, 8)).context(slice(0, 2))
        plain = [Unrolling(network.prior, context, 2) for _ in range(2)]
        with graphs.replaying(plain[0], network.prior) as first:
            assert isinstance(first, graphs.Recorded)
            with graphs.replaying(plain[1], network.prior) as second:
                assert second is plain[1]


def test_they_go_with_their_model_and_when_memory_is_short(tiny_checkpoints: dict) -> None:
    path = str(tiny_checkpoints["published tt"])
    config = tec.CodecConfig(model="tt", weights=path, bands=BANDS)
    data = codec.encode(chunks(1)[0], config, device="cpu")
    for _ in range(2):
        latents(data, config)
    prior = prior_of(config)
    assert len(prior.graphs) == 2
    batches._give_back("cuda:0")
    assert not prior.graphs
    for _ in range(2):
        latents(data, config)
    assert len(prior.graphs) == 2
    prior.train(False)  # weights may have changed
    assert not prior.graphs
    for _ in range(2):
        latents(data, config)
    gone = weakref.ref(prior)
    weights._loaded.clear()
    Graph.made.clear()
    del prior
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize(("value", "wanted"), [("0", False), ("1", True), (None, False)])
def test_where_they_are_used(value: str | None, wanted: bool, monkeypatch: Any) -> None:
    monkeypatch.undo()
    if value is None:
        monkeypatch.delenv("XTEC_CUDA_GRAPHS", raising=False)
    else:
        monkeypatch.setenv("XTEC_CUDA_GRAPHS", value)
    with torch.inference_mode():
        assert graphs._allowed(torch.device("cuda:0")) == wanted
        assert not graphs._allowed(torch.device("cpu"))
    assert not graphs._allowed(torch.device("cuda:0"))  # gradients are wanted
