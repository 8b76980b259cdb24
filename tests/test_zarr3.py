"""The codec by itself and in real arrays of Zarr format 3."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tec.codec
import xarray as xr
import zarr
from arrays import CHUNK, DIMS, ERROR, chunk_files, codec, config, create, put, same
from checkers import check_config, check_pickle_after_use, check_roundtrip, cubes, encode
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scenes import scene
from tec.errors import StreamError, TecError
from tec.stream import peek
from zarr.codecs import ZstdCodec
from zarr.storage import MemoryStore

import xtec.settings
from xtec.chunks import AlignmentError, MissingChunkError
from xtec.zarr3 import XtecCodec

# the codec by itself


@pytest.mark.parametrize("dtype", ["<u2", ">u2", "<i2", "<f4"])
def test_checks_of_every_codec(dtype: str) -> None:
    nodata = np.nan if dtype == "<f4" else 0
    pixels = scene(2, 3, 16, 16).astype(dtype)
    pixels[:, :, :3] = nodata
    one = codec(nodata=nodata)
    check_config(one)
    check_pickle_after_use(one, pixels)
    check_roundtrip(one, pixels, error=ERROR)


@hypothesis_settings(max_examples=20, deadline=None)
@given(cubes())
def test_awkward_cubes(cube: np.ndarray) -> None:
    # a cube of a few pixels may lose its contrast, so any pixels will do that are not garbage
    check_roundtrip(XtecCodec(config(), DIMS, cube.shape), cube, error=2000)


@pytest.mark.parametrize(
    "dims",
    [("band", "y", "x"), ("time", "y", "x"), ("y", "x"), ("y", "x", "band"), ("x", "y", "time")],
)
def test_fewer_axes_and_other_orders(dims: tuple[str, ...]) -> None:
    bands = ("B02", "B03", "B04") if "band" in dims else ("B08",)
    sizes = {"time": 3, "band": len(bands), "y": 20, "x": 36}
    shape = tuple(sizes[d] for d in dims)
    cube = xr.DataArray(scene(3, len(bands), 20, 36), dims=DIMS)
    cube = cube.isel({d: 0 for d in DIMS if d not in dims}).transpose(*dims)
    chunks = tuple({"time": 2, "band": len(bands), "y": 16, "x": 32}[d] for d in dims)
    one = XtecCodec(config(bands=bands), dims, chunks)
    array = create(shape, chunks=chunks, serializer=one, dimension_names=dims)
    array[:] = cube.values
    same(array[:], cube.values)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((("time", "band", "lat", "x"), CHUNK), "must name each axis once"),
        ((("time", "band", "y", "y"), CHUNK), "must name each axis once"),
        ((("time", "band", "y"), (2, 3, 16)), "'y' and 'x'"),
        ((DIMS, (2, 3, 16)), "one positive number for each"),
        ((DIMS, (2, 3, 16, 0)), "one positive number for each"),
        ((DIMS, (2, 1, 16, 16)), "all bands must be in one chunk"),
        ((("time", "y", "x"), (2, 16, 16)), "all bands must be in one chunk"),
        ((DIMS, (2, 3, 16, 16.5)), "chunk_shape is .*must be a list such as"),
        ((DIMS, 16), "chunk_shape is 16: it must be a list"),
        ((DIMS, None), "chunk_shape is None: it must be a list"),
        ((DIMS, "2,3,16,16"), "chunk_shape is '2,3,16,16': it must be a list"),
        ((DIMS, (2, 3, [16], 16)), "chunk_shape is .*must be a list"),
        ((("time", "band", ["y"], "x"), CHUNK), "dims is .*must be a list"),
        ((3, CHUNK), "dims is 3: it must be a list"),
        (((), ()), "dims is \\(\\): it must be a list"),
    ],
)
def test_impossible_configuration(arguments: tuple, message: str) -> None:
    with pytest.raises(TecError, match=message):
        XtecCodec(config(), *arguments)


def test_configuration_of_another_version() -> None:
    good = codec().to_dict()
    for change in ({"colour": "blue"}, {"format": 2}):
        bad = {**good, "configuration": {**good["configuration"], **change}}
        with pytest.raises(TecError, match="newer xtec"):
            XtecCodec.from_dict(bad)
    with pytest.raises(TecError, match="lacks dims, chunk_shape"):
        XtecCodec.from_dict({"name": "xtec"})
    for strange in (3, "fp", [1], True):
        with pytest.raises(TecError, match=r"the configuration is .*must be a dict"):
            XtecCodec.from_dict({"name": "xtec", "configuration": strange})


# creating arrays: what does not fit is refused at once, and the remedy is named


@pytest.mark.parametrize(
    ("shape", "changes", "message"),
    [
        ((3, 40, 40), {"chunks": (3, 16, 16), "dimension_names": None}, "has 3 dimensions"),
        ((4, 2, 40, 40), {"chunks": (2, 2, 16, 16)}, "has 2 bands, the codec was made for 3"),
        ((4, 6, 40, 40), {}, "has 6 bands, the codec was made for 3"),
        ((4, 3, 40, 40), {"chunks": (2, 1, 16, 16)}, r"\(2, 1, 16, 16\), the codec was made for"),
        ((4, 3, 40, 40), {"chunks": (4, 3, 32, 32)}, "time=2, band=3, y=16, x=16"),
        ((4, 3, 40, 40), {"dtype": "float64"}, "dtype float64 cannot be coded"),
        ((4, 3, 40, 40), {"dtype": "uint8"}, "dtype uint8 cannot be coded"),
        ((4, 3, 40, 40), {"fill_value": 7}, "fill_value=0"),
        # codecs inside shards are not asked to validate, but see the inner chunk
        ((4, 2, 40, 40), {"chunks": (2, 2, 16, 16), "shards": (2, 2, 32, 32)}, "has 2 bands"),
        ((4, 3, 40, 40), {"shards": (2, 3, 32, 32), "fill_value": 7}, "fill_value=0"),
    ],
)
def test_arrays_that_do_not_fit(shape: tuple, changes: dict, message: str) -> None:
    with pytest.raises(TecError, match=message) as error:
        create(shape, **changes)
    assert "ds.drop_encoding()" in str(error.value)


def test_fill_value_is_nodata() -> None:
    for nodata, fill, dtype in ((None, 0, "u2"), (65535, 65535, "u2"), (np.nan, np.nan, "f4")):
        create((2, 3, 16, 16), serializer=codec(nodata=nodata), fill_value=fill, dtype=dtype)
    for nodata, fill, dtype in (
        (None, 1, "u2"),
        (65535, 0, "u2"),
        (np.nan, 0, "f4"),
        (0, np.nan, "f4"),
    ):
        with pytest.raises(TecError, match="fill_value"):
            create((2, 3, 16, 16), serializer=codec(nodata=nodata), fill_value=fill, dtype=dtype)


def test_wrong_inner_chunk_of_a_shard_is_refused_at_the_first_chunk_or_before() -> None:
    with pytest.raises(TecError, match=r"chunks of the array are \(2, 3, 32, 32\)"):
        create((2, 3, 64, 64), chunks=(2, 3, 32, 32), shards=(2, 3, 64, 64))[:] = 1


def test_an_error_of_the_codec_says_which_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> list[bytes]:
        raise TecError("no")

    monkeypatch.setattr(tec.codec, "encode_many", refuse)
    with pytest.raises(TecError) as error:
        create(CHUNK)[:] = 5
    assert "c/0/0/0/0" in error.value.__notes__[0]


# reading and writing


def test_indexing() -> None:
    pixels = scene(3, 3, 40, 40, nodata=True)
    array = create(pixels.shape)
    array[:] = pixels
    whole = array[:]
    same(whole, pixels)
    assert array[1, 2, 3, 39] == whole[1, 2, 3, 39]
    for key in [
        (slice(None), 1),
        (0, slice(None), slice(5, 30), slice(17, 18)),
        (slice(None), slice(None), slice(None, None, 7), slice(3, None, 5)),
        (Ellipsis, 39),
    ]:
        np.testing.assert_array_equal(array[key], whole[key])
    rows = [0, 17, 39]
    np.testing.assert_array_equal(array.oindex[0, [0, 2], :, rows], whole[0][[0, 2]][:, :, rows])
    picked = ([0, 2, 1], [0, 1, 2], rows, rows[::-1])
    np.testing.assert_array_equal(array.vindex[picked], whole[picked])


@pytest.mark.parametrize("dtype", [">u2", "<i2", ">f4"])
def test_dtypes_and_byte_orders(dtype: str) -> None:
    pixels = scene(2, 3, 20, 20).astype(dtype)
    array = create(pixels.shape, dtype=dtype)
    array[:] = pixels
    same(array[:], pixels)
    reopened = zarr.open_array(array.store, mode="r")
    assert reopened.dtype.name == pixels.dtype.name
    np.testing.assert_array_equal(reopened[:], array[:])


def test_edge_chunks_are_cut_to_their_extent() -> None:
    pixels = scene(3, 3, 33, 33)
    array = create(pixels.shape)
    array[:] = pixels
    same(array[:], pixels)
    headers = {key: peek(data) for key, data in chunk_files(array).items()}
    assert len(headers) == 2 * 3 * 3
    assert headers["c/0/0/0/0"].extent == (2, 16, 16)
    assert headers["c/1/0/0/2"].extent == (1, 16, 1)
    assert headers["c/1/0/2/2"].extent == (1, 1, 1)
    assert {header.shape for header in headers.values()} == {CHUNK}


def test_chunks_of_nodata_are_written_and_cost_a_header() -> None:
    # the setting is lost on the way (xarray's regions), so the codec does not rely on it
    array = create((2, 3, 32, 16), config={"write_empty_chunks": False})
    array[:] = 0
    files = chunk_files(array)
    assert len(files) == 2
    assert max(map(len, files.values())) < 200
    assert (array[:] == 0).all()


def test_scalars_and_dropped_axes() -> None:
    array = create((2, 3, 20, 20))
    array[:] = 1234
    assert np.abs(array[:].astype(int) - 1234).mean() < ERROR
    array = create((2, 3, 20, 20))
    band = scene(2, 1, 20, 20)[:, 0]
    array.set_orthogonal_selection((slice(None), 1, slice(None), slice(None)), band)
    same(array[:, 1], band)
    assert (array[:, ::2] == 0).all()


def test_an_absent_chunk_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = scene(2, 3, 32, 16)
    array = create(pixels.shape)
    with pytest.raises(MissingChunkError, match="c/0/0/0/0 was never written"):
        array[:]
    array[:, :, :16] = pixels[:, :, :16]
    same(array[:, :, :16], pixels[:, :, :16])
    with pytest.raises(MissingChunkError, match=r"c/0/0/1/0 .*missing_chunks = 'fill'"):
        array[:]
    monkeypatch.setattr(xtec.settings, "missing_chunks", "fill")
    pixels[:, :, 16:] = 0
    same(array[:], pixels)


def test_damaged_and_foreign_chunks_name_themselves() -> None:
    array = create((2, 3, 32, 16))
    array[:] = scene(2, 3, 32, 16)
    key = "c/0/0/1/0"
    good = chunk_files(array)[key]
    strange = create((2, 3, 16, 16), dtype="int16")
    strange[:] = 5
    larger = create(
        (2, 3, 32, 32), chunks=(2, 3, 32, 32), serializer=XtecCodec(config(), DIMS, (2, 3, 32, 32))
    )
    larger[:] = 5
    colours = create((2, 3, 16, 16), serializer=codec(bands=("B04", "B03", "B02")))
    colours[:] = 5
    for bad, message in [
        (good[:-20], "damaged or truncated"),
        (good[:20], "truncated"),
        (b"", "not an xtec stream"),
        (b"\x89HDF" + good, "not an xtec stream"),
        (good[:-30] + bytes([good[-30] ^ 1]) + good[-29:], "damaged"),
        (chunk_files(strange)["c/0/0/0/0"], "dtype int16, the array says uint16"),
        (chunk_files(larger)["c/0/0/0/0"], r"\(2, 3, 32, 32\), the array says \(2, 3, 16, 16\)"),
        (
            chunk_files(colours)["c/0/0/0/0"],
            r"bands \('B04', 'B03', 'B02'\), the array says \('B02',",
        ),
    ]:
        put(array, key, bad)
        with pytest.raises(StreamError, match=message) as error:
            array[:]
        assert key in str(error.value)
        same(array[:, :, :16], scene(2, 3, 32, 16)[:, :, :16])


@pytest.mark.parametrize(
    ("here", "there", "message"),
    [
        ({"nodata": 7}, {}, "nodata 7, the array says 0"),
        ({"nodata": None}, {}, "nodata none, the array says 0"),
        ({}, {"nodata": None}, "nodata 0, the array says none"),
        ({"offset": 1000}, {}, "offset 1000.0, the array says 0.0"),
        ({"scale": 0.5}, {}, "scale 0.5, the array says 1.0"),
        ({"compression": 21}, {}, "compression 21.0, the array says 20.0"),
        ({"sensor": "S2L1C", "model": "tt"}, {"model": "tt"}, "sensor S2L1C, the array says S2L2A"),
        ({"model": "elic"}, {}, "model elic, the array says fp"),
        ({}, {"model": "tt"}, "model fp, the array says tt"),
        ({"model": "elic"}, {"model": "tt"}, "model elic, the array says tt"),  # of two dates
        (
            {},
            {"weights_sha256": "ab" * 32},
            "weights of sha256 .*, the array says ababababab",
        ),
        (
            {"model": "flex", "quality": [16, 3]},
            {"model": "flex", "quality": [16, 4]},
            r"quality \(16, 3\), the array says \(16, 4\)",
        ),
        (
            {"model": "flex", "forecast": "sample"},
            {"model": "flex"},
            "forecast sample, the array says mean",
        ),
    ],
)
def test_a_chunk_that_says_something_else_than_its_array_is_refused(
    here: dict, there: dict, message: str
) -> None:
    """It would decode: to values that the array's metadata gives another meaning."""
    data = encode(codec(**here), scene(*CHUNK))
    with pytest.raises(StreamError, match="the stream holds " + message):
        codec(**there).check_header(data, np.dtype("u2"), "a chunk")
    codec(**here).check_header(data, np.dtype("u2"), "a chunk")


def test_what_means_the_same_is_taken() -> None:
    chunk = scene(1, 3, 16, 16)
    for made, reads in (
        ({"compression": 0.7}, {"compression": float(np.float32(0.7))}),
        ({"nodata": 0}, {"nodata": 0.0}),
        ({"nodata": 0}, {"nodata": -0.0}),
        ({"nodata": np.nan, "scale": 1 / 3}, {"nodata": float("nan"), "scale": 1 / 3}),
        ({"model": "tt"}, {"model": "tt"}),  # one date: the stream is of model "elic"
    ):
        dtype = np.dtype("f4" if made.get("nodata") != 0 else "u2")
        coder = XtecCodec(config(**made), DIMS, chunk.shape)
        data = encode(coder, chunk.astype(dtype))
        header = XtecCodec(config(**reads), DIMS, chunk.shape).check_header(data, dtype, "a chunk")
        assert header.model == ("elic" if made.get("model") == "tt" else "fp")


def test_damage_to_the_header_is_called_damage() -> None:
    data = bytearray(encode(codec(offset=1000), scene(*CHUNK)))
    at = bytes(data).index(np.float64(1000).tobytes().lstrip(b"\0"))
    data[at] ^= 8
    with pytest.raises(StreamError, match="damaged or truncated"):
        codec(offset=1000).check_header(bytes(data), np.dtype("u2"), "a chunk")


def test_a_damaged_chunk_is_named_within_a_batch() -> None:
    store = MemoryStore()
    create((2, 3, 48, 16), store)[:] = 9
    with zarr.config.set({"codec_pipeline.batch_size": 3}):
        array = zarr.open_array(store, mode="r")
    put(array, "c/0/0/1/0", chunk_files(array)["c/0/0/1/0"][:-1])
    with pytest.raises(StreamError, match="c/0/0/1/0"):
        array[:]


# reading the first dates of a chunk


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """How many dates each chunk was decoded to, in order of time."""
    seen: list[int | None] = []
    inner = tec.codec.decode_many

    def spy(streams: Any, *, dates: Any = None, **options: Any) -> list[np.ndarray]:
        seen.extend([None] * len(streams) if dates is None else dates)
        return inner(streams, dates=dates, **options)

    monkeypatch.setattr(tec.codec, "decode_many", spy)
    return seen


def elic(tiny_elic: Path, dims: tuple[str, ...] = DIMS, **sizes: int) -> XtecCodec:
    sizes = {"time": 4, "band": 3, "y": 16, "x": 16, **sizes}
    settings = config(model="elic", weights=str(tiny_elic))
    return XtecCodec(settings, dims, tuple(sizes[d] for d in dims))


def near(array: np.ndarray, wanted: np.ndarray) -> None:
    """Equal but for rounding: the network sees another number of dates at once."""
    assert array.shape == wanted.shape
    assert np.abs(array.astype(int) - wanted).max() <= 1


@pytest.mark.parametrize(
    ("key", "dates"),
    [
        (slice(None), [4, 2]),  # the chunk at the end of the array holds two
        (0, [1]),
        (2, [3]),
        (-1, [2]),
        (-2, [1]),
        (slice(0, 2), [2]),
        (slice(1, 3), [3]),
        (slice(None, 5), [4, 1]),
        (slice(1, None, 4), [2, 2]),
        (slice(2, -2, 5), [3]),
        ([1, 0], [2]),
        ([2, 4], [3, 1]),
        ([5, 0, 2, 0], [3, 2]),
        (np.array([False, True, False, False, True, False]), [2, 1]),
    ],
    ids=str,
)
@pytest.mark.parametrize("shards", [None, (8, 3, 16, 16)])
def test_only_the_dates_that_are_read_are_decoded(
    key: Any, dates: list[int], shards: Any, tiny_elic: Path, decoded: list[int | None]
) -> None:
    pixels = scene(6, 3, 16, 16)
    one = elic(tiny_elic)
    array = create(pixels.shape, chunks=one.chunk_shape, serializer=one, shards=shards)
    array[:] = pixels
    whole = array[:]
    assert np.abs(np.diff(whole.astype(int), axis=0)).mean() > 20, "dates can be told apart"
    decoded.clear()
    near(array.oindex[key], whole[key])
    assert sorted(decoded, key=dates.index) == dates
    near(array.oindex[key, 1, 3:7, [5, 2]], whole[key][..., 1, 3:7, :][..., [5, 2]])
    if not isinstance(key, (int, slice)):
        picked = np.flatnonzero(key) if isinstance(key, np.ndarray) else key
        picked = (picked, *[[0, 2, 1, 1][: len(picked)]] * 3)
        decoded.clear()
        near(array.vindex[picked], whole[picked])
        assert sorted(decoded, key=dates.index) == dates


@hypothesis_settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_selection_among_the_first_dates(data: st.DataObject) -> None:
    """What zarr might ask of a chunk, and more: ends that are open, counted from behind, or past
    the end, and any step."""
    dims = tuple(data.draw(st.permutations(DIMS)))
    sizes = {"time": 5, "band": 3, "y": 2, "x": 4}
    one = XtecCodec(config(), dims, tuple(sizes[d] for d in dims))
    cube = np.arange(np.prod(one.chunk_shape)).reshape(one.chunk_shape)
    numbers = st.integers(-5, 4)
    time = data.draw(
        numbers | st.slices(5) | st.lists(numbers, min_size=1).map(np.array) | st.just(slice(1, 99))
    )
    axis = dims.index("time")
    selection = tuple(time if d == "time" else slice(0, sizes[d] - 1) for d in dims)
    if isinstance(time, np.ndarray) and data.draw(st.booleans()):
        selection = np.ix_(*[time if d == "time" else np.arange(sizes[d] - 1) for d in dims])
    wanted = cube[selection]
    dates, left = one._first_dates(selection, cube.shape)
    np.testing.assert_array_equal(np.take(cube, range(dates), axis)[left], wanted)
    assert dates == max([*np.atleast_1d(np.arange(5)[time]), 0]) + 1


def test_without_a_time_axis_all_is_decoded(tiny_elic: Path, decoded: list[int | None]) -> None:
    one = elic(tiny_elic, ("y", "x", "band"))
    pixels = scene(1, 3, 32, 16)[0].transpose(1, 2, 0)
    names = ("y", "x", "band")
    array = create(pixels.shape, chunks=one.chunk_shape, serializer=one, dimension_names=names)
    array[:] = pixels
    near(array[5:9, 3, ::2], array[:][5:9, 3, ::2])
    assert set(decoded) == {None}


def test_chunks_that_fail_together_are_decoded_one_by_one(
    tiny_elic: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = scene(8, 3, 16, 16)
    one, store = elic(tiny_elic), MemoryStore()
    create(pixels.shape, store, chunks=one.chunk_shape, serializer=one)[:] = pixels
    with zarr.config.set({"codec_pipeline.batch_size": 2}):
        array = zarr.open_array(store, mode="r")
    whole = array[:]
    inner, calls = tec.codec.decode_many, []

    def fail(streams: Any, *, dates: Any = None, **options: Any) -> list[np.ndarray]:
        calls.append(list(dates))
        if len(streams) > 1:
            raise StreamError("one of them")
        return inner(streams, dates=dates, **options)

    monkeypatch.setattr(tec.codec, "decode_many", fail)
    near(array[2:6], whole[2:6])
    assert calls == [[4, 2], [4], [2]]


# writes that do not cover a chunk


def test_a_misaligned_write_is_refused_and_leaves_all_as_it_was() -> None:
    array = create((3, 3, 20, 20))
    array[:] = scene(3, 3, 20, 20)
    before = chunk_files(array)
    for key, message in [
        ((slice(0, 1),), "time 0:1, band 0:3, y 0:16, x 0:16 of it"),
        ((slice(None), 1), "band 1:2"),
        ((slice(None), slice(None), slice(0, 8)), "multiples of time=2, band=3, y=16, x=16"),
        ((0, 0, 0, 0), "decoded and encoded again"),
        ((slice(None), slice(None), slice(None, None, 2)), "y 0:15"),
    ]:
        with pytest.raises(AlignmentError, match=message):
            array[key] = 77
        assert chunk_files(array) == before
    mask = np.zeros(array.shape, bool)
    mask[0, 0, 3, 5:9] = True
    with pytest.raises(AlignmentError, match="x 5:9"):
        array.vindex[mask] = 77
    assert chunk_files(array) == before


def test_writes_that_cover_what_is_there_are_taken() -> None:
    first, second = scene(3, 3, 20, 20), scene(3, 3, 20, 20, seed=1)
    array = create(first.shape)
    array[:] = first
    array[:] = second  # edge chunks: covers their extent
    same(array[:], second)
    array[2:, :, 16:, 16:] = first[2:, :, 16:, 16:]
    same(array[2:, :, 16:, 16:], first[2:, :, 16:, 16:])
    array[:] = 0  # a template of nodata may be filled piece by piece
    array[0:1, :, 3:9] = first[0:1, :, 3:9]
    same(array[0:1, :, 3:9], first[0:1, :, 3:9])


def test_append() -> None:
    pixels = scene(5, 3, 16, 16)
    array = create((2, 3, 16, 16))
    array[:] = pixels[:2]
    array.append(pixels[2:3])
    same(array[:], pixels[:3])
    before = chunk_files(array)
    with pytest.raises(AlignmentError, match=r"holds time 0:1.*resize it back"):
        array.append(pixels[3:5])
    assert before.items() <= chunk_files(array).items()
    assert array.shape[0] == 5  # zarr has made it longer already
    array[2:] = pixels[2:]  # the remedy: all of the last chunk in one write
    same(array[:], pixels)


def test_a_write_that_was_overtaken_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    array = create((2, 3, 16, 16))
    inner = tec.codec.encode_many
    overtaken = False

    def overtake(*args: Any, **kwargs: Any) -> list[bytes]:
        nonlocal overtaken
        data = inner(*args, **kwargs)
        if not overtaken:
            overtaken = True
            put(array, "c/0/0/0/0", inner([scene(2, 3, 16, 16)], config())[0])
        return data

    monkeypatch.setattr(tec.codec, "encode_many", overtake)
    with pytest.raises(AlignmentError):
        array[:, :, :8] = 5
    same(array[:], scene(2, 3, 16, 16))


# shards


def test_shards() -> None:
    pixels = scene(3, 3, 40, 40, nodata=True)
    array = create(pixels.shape, shards=(2, 3, 32, 32))
    assert isinstance(array.serializer, XtecCodec)
    array[:] = pixels
    whole = array[:]
    same(whole, pixels)
    np.testing.assert_array_equal(array[1, :, 14:18, 39], whole[1, :, 14:18, 39])
    np.testing.assert_array_equal(
        array.oindex[0, :, [0, 39], [1, 38]], whole[0][:, [0, 39]][:, :, [1, 38]]
    )
    plain = create(pixels.shape)
    plain[:] = pixels
    np.testing.assert_array_equal(plain[:], whole)


def test_misaligned_and_absent_inside_shards() -> None:
    pixels = scene(2, 3, 32, 32)
    array = create(pixels.shape, shards=(2, 3, 32, 32))
    array[:, :, :16] = pixels[:, :, :16]
    with pytest.raises(MissingChunkError, match=r"inner chunk \(0, 0, 1, 0\)"):
        array[:]
    with pytest.raises(
        AlignmentError, match=r"inner chunk \(0, 0, 0, 1\) of a shard already holds"
    ):
        array[:, :, :16, 16:20] = 3
    array[:, :, 16:] = pixels[:, :, 16:]
    same(array[:], pixels)


def test_an_absent_shard_reads_as_nodata() -> None:
    # a limit of zarr: the codec is not asked. If this fails, zarr has changed for the better.
    array = create((2, 3, 32, 32), shards=(2, 3, 32, 32))
    assert (array[:] == 0).all()


# other codecs beside ours


def test_a_compressor_behind_the_codec_costs_the_protection() -> None:
    pixels = scene(3, 3, 20, 20)
    alone, followed = create(pixels.shape), create(pixels.shape, compressors=ZstdCodec())
    assert alone._async_array.codec_pipeline.supports_partial_encode
    assert not followed._async_array.codec_pipeline.supports_partial_encode
    assert (followed[:] == 0).all()  # absent chunks are not noticed
    alone[:], followed[:] = pixels, pixels
    np.testing.assert_array_equal(alone[:], followed[:])
    followed[0, 0, 0, 0] = 7  # and misaligned writes are not refused
    same(followed[1:], pixels[1:])
