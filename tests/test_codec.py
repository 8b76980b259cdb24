"""A chunk through the codec and back: bytes, portability, bad input."""

from __future__ import annotations

import zlib
from collections import OrderedDict
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import tec
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scenes import scene
from tec import codec, stream
from tec.entropy import portable, rans
from tec.models.tt import TT
from tec.sensors import SENSORS
from torch.nn.attention import SDPBackend, sdpa_kernel

ALL = SENSORS["S2L2A"].bands


TINY = ("elic", "tt", "compact flex", "published tt", "flex")


@pytest.fixture(params=["elic", "fp", "tt", *(f"tiny {name}" for name in TINY)])
def setting(request, tiny_checkpoints):
    """(config, weights path for decoding): the built-in models, and tiny ones from files."""
    kind, _, name = request.param.partition(" ")
    if kind != "tiny":
        return tec.CodecConfig(model=kind, compression=20.0, bands=ALL, nodata=0), None
    path = str(tiny_checkpoints[name])
    model = name.rpartition(" ")[2]
    quality = (16, 3, 0) if model == "flex" else None
    return tec.CodecConfig(model=model, weights=path, quality=quality, bands=ALL, nodata=0), path


def psnr(a, b):
    return 10 * np.log10(1e8 / np.mean((a.astype(float) - b) ** 2))


@pytest.mark.parametrize("shape", [(1, 12, 1, 1), (2, 12, 33, 70), (3, 12, 64, 17)])
def test_shape_dtype_and_nodata_come_back(setting, shape):
    config, path = setting
    chunk = scene(*shape, nodata=shape[2] > 8)
    back = codec.decode(codec.encode(chunk, config), weights=path)
    assert back.shape == chunk.shape
    assert back.dtype == chunk.dtype
    np.testing.assert_array_equal(back == 0, chunk == 0)


@pytest.mark.parametrize("model", ["elic", "fp"])
def test_more_compression_is_smaller_and_worse(model):
    chunk = scene(1, 12, 96, 96)
    results = []
    for compression in (0.4, 5, 60, 700):
        data = codec.encode(chunk, tec.CodecConfig(model=model, compression=compression, bands=ALL))
        results.append((len(data), psnr(chunk, codec.decode(data))))
    assert results == sorted(results)
    assert results[-1][1] > results[0][1] + 3


def test_extreme_chunks():
    config = tec.CodecConfig(model="elic", bands=ALL, nodata=0)
    empty = np.zeros((2, 12, 64, 64), np.uint16)
    data = codec.encode(empty, config)
    assert len(data) < 70
    np.testing.assert_array_equal(codec.decode(data), empty)
    bright = np.full((1, 12, 32, 32), 65535, np.uint16)
    assert (codec.decode(codec.encode(bright, config)) > 30000).all()
    corner = np.zeros((4, 12, 64, 64), np.uint16)
    corner[0, :, :20, :30] = scene(1, 12, 20, 30)[0]
    data = codec.encode(corner, config)
    assert tec.peek(data).extent == (1, 20, 30)
    np.testing.assert_array_equal(codec.decode(data) == 0, corner == 0)


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_nothing_rings_beyond_the_data(dtype):
    """Snow beside dark water: where a stream has room for the range, no pixel leaves it."""
    dn = scene(2, 12, 160, 160)
    dn[:, :, 40:90, 30:99] = 16000
    dn[:, :, 60:70, 50:52] = 3
    chunk = dn.astype(dtype)
    config = tec.CodecConfig(model="elic", compression=100, bands=ALL)
    data = codec.encode(chunk, config)
    assert len(tec.peek(data).ranges) == 12
    back = codec.decode(data)
    for before, after in zip(chunk.swapaxes(0, 1), back.swapaxes(0, 1)):
        assert before.min() <= after.min() <= after.max() <= before.max()
    small = codec.encode(chunk[:1, :, :64, :64], replace(config, compression=0.5))
    assert tec.peek(small).ranges == ()


@pytest.mark.parametrize("dtype", ["uint16", "int16", "float32", ">u2", ">f4"])
def test_dtypes_bands_and_units(dtype):
    bands = ("B08", "B02", "B11")
    dn = scene(1, 12, 48, 48)[:, [7, 1, 10]]
    scale, offset = (1e-4, 1000.0) if np.dtype(dtype).kind == "f" else (1.0, 0.0)
    chunk = ((dn + offset) * scale).astype(dtype)
    chunk[0, 1, 3, 4] = np.nan if np.dtype(dtype).kind == "f" else 0
    config = tec.CodecConfig(
        model="elic",
        compression=200,
        bands=bands,
        scale=scale,
        offset=offset,
        nodata=None if scale != 1 else 0,
    )
    back = codec.decode(codec.encode(chunk, config))
    assert back.dtype == np.dtype(dtype).newbyteorder("=")
    special = np.isnan(chunk) if scale != 1 else chunk == 0
    np.testing.assert_array_equal(np.isnan(back) if scale != 1 else back == 0, special)
    assert psnr(dn[~special], back[~special] / scale - offset) > 35


def test_many_chunks_equal_one_by_one(setting):
    config, path = setting
    chunks = [
        scene(2, 12, 40, 40, seed=1),
        scene(1, 12, 64, 64, seed=2),
        scene(1, 12, 40, 40, seed=3),
    ]
    together = codec.encode_many(chunks, config)
    for chunk, data in zip(chunks, together):
        alone = codec.decode(codec.encode(chunk, config), weights=path).astype(int)
        assert np.abs(alone - codec.decode(data, weights=path)).max() <= 1
    for alone, batched in zip(
        [codec.decode(d, weights=path) for d in together], codec.decode_many(together, weights=path)
    ):
        assert np.abs(alone.astype(int) - batched).max() <= 1


def test_the_first_dates_alone(setting):
    config, path = setting
    chunk = scene(3, 12, 40, 40)
    data = codec.encode(chunk, config)
    part = codec.decode(data, dates=2, weights=path)
    assert part.shape == (2, 12, 40, 40)
    assert np.abs(part.astype(int) - codec.decode(data, weights=path)[:2]).max() <= 1


def test_memory_layout_does_not_matter():
    config = tec.CodecConfig(model="fp", bands=ALL, nodata=0)
    chunk = scene(2, 12, 33, 20)
    assert codec.encode(np.asfortranarray(chunk), config) == codec.encode(chunk, config)
    assert codec.encode(chunk.repeat(2, axis=3)[..., ::2], config) == codec.encode(chunk, config)
    assert codec.encode(chunk.astype(">u2"), config) == codec.encode(chunk, config)


# ------------------------------------------------------------------------------ portability


def latents_of(data, path):
    return codec.latents(data, weights=path)


@pytest.fixture
def coded(setting):
    config, path = setting
    data = codec.encode(scene(2, 12, 96, 64, seed=5), config)
    return data, path, latents_of(data, path)


def test_threads_do_not_matter(coded):
    data, path, expected = coded
    threads = torch.get_num_threads()
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            np.testing.assert_array_equal(latents_of(data, path), expected)
    finally:
        torch.set_num_threads(threads)


def test_batch_size_does_not_matter(setting):
    config, path = setting
    chunks = [scene(2, 12, 40, 64, seed=i) for i in range(16)]
    for streams in (codec.encode_many(chunks, config), [codec.encode(c, config) for c in chunks]):
        together = codec.decode_many(streams, weights=path)  # checks the checksums of the latents
        for data, back in zip(streams, together):
            assert np.abs(codec.decode(data, weights=path).astype(int) - back).max() <= 1


def test_precision_does_not_matter(coded):
    data, path, expected = coded
    job = codec._Coded(data, None, path, "cpu")
    again = [
        y_hat
        for unit in codec._units(0, job.coded_dates, job)
        for y_hat, _ in codec._evaluate([(job, unit.dates)], "float64")
    ]
    assert len(again) == len(expected) == 2
    for y_hat, latent in zip(again, expected):
        assert y_hat.dtype == torch.float64
        np.testing.assert_array_equal(y_hat[0].float(), latent)


BACKENDS = [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION]  # those that torch has on a CPU


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
def test_the_attention_backend_does_not_matter(coded, backend):
    data, path, expected = coded
    with sdpa_kernel(backend):
        np.testing.assert_array_equal(latents_of(data, path), expected)


def test_an_encoder_that_goes_step_by_step_is_read_alike(setting, monkeypatch):
    config, path = setting
    chunk = scene(1, 12, 96, 64, seed=5) + scene(3, 12, 96, 64, seed=6) // 50
    data = codec.encode(chunk, config)
    steps = []
    plain = {TT: TT.date}

    def step_by_step(self, history, rounder, *, known=None, **options):
        out = plain[type(self)](self, history, rounder, **options)
        answer = None
        try:
            while True:
                steps.append(out.send(answer))
                answer = yield steps[-1]
        except StopIteration as end:
            return end.value

    for cls in plain:
        monkeypatch.setattr(cls, "date", step_by_step)
    again = codec.encode(chunk, config)
    monkeypatch.undo()
    if path is None or not path.endswith(".pt"):
        assert not steps  # built-in models always go step by step
    else:
        assert len(steps) > 16
        assert max(step.tokens.stop - step.tokens.start for step in steps) == 1
    np.testing.assert_array_equal(latents_of(again, path), latents_of(data, path))


class Noisy(portable.Reader):
    """A reader on a machine whose arithmetic is off by ``share`` of the margin."""

    share = 0.5
    margins: ClassVar[dict[portable.ScaleGrid, portable.Margin]] = {}

    def parameters(self, mean, log_scale, size=None):
        rng = np.random.default_rng(mean.size)
        return super().parameters(self.shake(mean, rng), self.shake(log_scale, rng))

    def round(self, values, step=1.0):
        return super().round(self.shake(values, np.random.default_rng(values.size)), step)

    def shake(self, x, rng):
        x = x.astype(np.float64)
        m = self.margins[self._grid]
        allowed = m.absolute + m.relative * np.abs(x)
        return x + self.share * allowed * rng.choice([-1, 1], x.shape)


def test_noise_within_the_margin_changes_nothing_and_beyond_it_is_an_error(coded, monkeypatch):
    data, path, expected = coded
    network = codec._Coded(data, None, path, "cpu").network
    monkeypatch.setattr(Noisy, "margins", {network.grid: network.margin_at(60.0)})
    monkeypatch.setattr(portable, "Reader", Noisy)
    np.testing.assert_array_equal(latents_of(data, path), expected)
    monkeypatch.setattr(Noisy, "share", 1e4)
    with pytest.raises(tec.StreamError, match="rounding margin"):
        codec.decode(data, weights=path)


# ------------------------------------------------------------------------------ bad input


def test_damage_is_an_error_not_noise(coded):
    data, path, _ = coded
    for i in range(0, len(data), 37):
        broken = bytearray(data)
        broken[i] ^= 0x10
        with pytest.raises(tec.StreamError):
            codec.decode(bytes(broken), weights=path)
    with pytest.raises(tec.StreamError, match="truncated"):
        codec.decode(data[: len(data) // 2], weights=path)


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_damage_behind_a_good_checksum_is_an_error_too(tiny_elic, data):
    whole = codec.encode(scene(1, 12, 32, 32), tec.CodecConfig(weights=str(tiny_elic), bands=ALL))
    body = bytearray(whole[:-4])
    place = data.draw(st.integers(60, len(body) - 1))
    body[place] ^= data.draw(st.integers(1, 255))
    sealed = bytes(body) + zlib.crc32(body).to_bytes(4, "little")
    try:
        back = codec.decode(sealed, weights=str(tiny_elic))
    except tec.TecError:
        return
    # Only what is no pixel may change without notice: the float that λ is kept in, say.
    np.testing.assert_array_equal(back, codec.decode(whole, weights=str(tiny_elic)))


@pytest.mark.parametrize(
    ("chunk", "change", "says"),
    [
        (np.zeros((12, 8, 8), np.uint16), {}, "time, band, y, x"),
        (np.zeros((1, 5, 8, 8), np.uint16), {}, "5 bands.*bands="),
        (np.zeros((1, 12, 0, 8), np.uint16), {}, "empty"),
        (np.zeros((1, 12, 8, 8), np.float64), {}, "float64.*float32"),
        (
            np.ones((1, 13, 8, 8), np.uint16),
            {"model": "flex", "sensor": "S2L1C", "bands": SENSORS["S2L1C"].bands},
            "no built-in weights.*terracodec",
        ),
        (np.full((1, 12, 8, 8), 1e9, np.float32), {}, "nodata="),
        (np.full((1, 12, 8, 8), 0.31, np.float32), {}, "scale=1e-4"),
    ],
)
def test_bad_chunks(chunk, change, says):
    with pytest.raises(tec.TecError, match=says):
        codec.encode(chunk, replace(tec.CodecConfig(model="elic", bands=ALL), **change))


def test_missing_and_wrong_weights(tiny_elic, tiny_fp, tmp_path, monkeypatch):
    monkeypatch.setattr(codec.weights, "_offered", OrderedDict())  # what stores brought
    with pytest.raises(tec.WeightsError, match="no checkpoint at"):
        codec.encode(scene(1), tec.CodecConfig(weights=str(tmp_path / "none.pt"), bands=ALL))
    for name in ("x" * 1000, "\0"):  # which no file can have
        with pytest.raises(tec.WeightsError, match="no checkpoint at"):
            codec.encode(scene(1), tec.CodecConfig(weights=name, bands=ALL))
    data = codec.encode(scene(1), tec.CodecConfig(weights=str(tiny_elic), bands=ALL))
    with pytest.raises(tec.WeightsError, match="pass weights="):
        codec.decode(data)
    with pytest.raises(tec.WeightsError, match="is needed"):
        codec.decode(data, weights=str(tiny_fp))
    header, specials, dates, _ = stream.unpack(data)
    other = stream.pack(replace(header, digest=bytes(8)), specials, dates)
    with pytest.raises(tec.WeightsError, match="is needed"):
        codec.decode(other, weights=str(tiny_elic))
    with pytest.raises(tec.WeightsError, match="sha256"):
        codec.encode(scene(1), tec.CodecConfig(weights_sha256="0" * 64, bands=ALL))


def test_the_rate_is_near_the_entropy(setting, monkeypatch):
    """Payloads within 1 % + 64 bytes of the entropy under the integer tables."""
    config, _ = setting
    seen = []
    encode = rans.encode

    def noted(symbols, index, tables):
        payload = encode(symbols, index, tables)
        seen.append((payload, tables.bits(index, symbols).sum() / 8))
        return payload

    monkeypatch.setattr(rans, "encode", noted)
    data = codec.encode(scene(2, 12, 128, 128, seed=9), config)
    ideal = {payload: best for payload, best in seen}
    dates = stream.unpack(data).dates
    assert len(dates) == 2
    for date in dates:
        assert len(date.payload) <= 1.01 * ideal[date.payload] + 64
