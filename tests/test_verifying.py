"""verify: what is sound is said to be, what is not is found, and repaired while it is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from cubes import BANDS, DIMS, band_variables
from scenes import scene
from tec import StreamError, codec, peek

import xtec
from xtec import cli
from xtec.attributes import ATTRIBUTE
from xtec.verifying import Verified, verify

CHUNKS = {"time": 2, "y": 16, "x": 16}
JOBS: dict[str, dict[str, Any]] = {
    "format 3": {"model": "fp"},
    "shards": {"model": "elic", "shards": {"time": 2, "y": 32, "x": 32}},
    "format 2": {"model": "fp", "zarr_format": 2},
    "lossless": {"max_error": 0},
    "bound": {"model": "fp", "compression": 20, "max_error": {"B02": 30, "default": 90}},
}
jobs = pytest.mark.parametrize("job", JOBS)


@pytest.fixture
def cube() -> xr.DataArray:
    """3 dates of 40 x 33 pixels: chunks at the edges are not full; a hole, and a date's end."""
    pixels = scene(time=3, bands=3, y=40, x=33, nodata=True)
    pixels[1, :, 3:30, 5:20] = 0
    return xr.DataArray(pixels, dims=DIMS, coords={"band": BANDS}, name="s2")


def write(cube: Any, store: Any, job: str, **options: Any) -> xtec.Summary:
    return cube.tec.to_zarr(store, chunks=CHUNKS, progress=False, **JOBS[job], **options)


def attribute(store: Any) -> dict[str, Any]:
    return json.loads(xr.open_zarr(store).s2.attrs[ATTRIBUTE])["verified"]


@jobs
@pytest.mark.parametrize("name", ["cube.zarr", "cube.zarr.zip"])
def test_a_sound_store_is_found_sound_and_its_errors_are_noted(
    cube: xr.DataArray, job: str, name: str, tmp_path: Path
) -> None:
    store = tmp_path / name
    found = write(cube, store, job, verify=True).verified
    assert found is not None
    assert found.sound
    assert found.checked == found.of
    back = xr.open_zarr(zarr.storage.ZipStore(store) if name.endswith("zip") else store)
    errors = abs(back.s2.values.astype(float) - cube.values)
    valid = cube.values != 0
    worst = [errors[:, b][valid[:, b]].max() for b in range(3)]
    mean = [errors[:, b][valid[:, b]].mean() for b in range(3)]
    np.testing.assert_allclose(found.max_error, worst, atol=1)  # float64 may round otherwise
    np.testing.assert_allclose(found.mean_error, mean, atol=0.01)
    if job in ("lossless", "bound"):
        np.testing.assert_array_equal(found.max_error, worst)
    noted = json.loads(back.s2.attrs[ATTRIBUTE])["verified"]
    assert noted == found.attribute()
    assert noted["shards" if job == "shards" else "chunks"] == noted["of"]
    (again,) = verify(store, cube)
    np.testing.assert_array_equal(again.max_error, found.max_error)
    assert np.isnan(verify(store)[0].max_error).all()  # no source, no errors


def test_bands_and_other_variables(tmp_path: Path) -> None:
    ds = band_variables()
    summary = ds.tec.to_zarr(tmp_path / "a.zarr", model="fp", progress=False, verify="sample")
    assert "chunks decode; largest error" in str(summary)
    (found,) = verify(tmp_path / "a.zarr", ds)
    assert found.bands == tuple(BANDS)
    assert found.sound


def test_packed_floats_are_compared_in_dn(tmp_path: Path) -> None:
    pixels = scene(time=1, bands=3, y=20, x=24).astype("uint16")
    da = xr.DataArray(pixels * 1e-4 - 0.1, dims=DIMS, coords={"band": BANDS}, name="s2")
    da.encoding = {"dtype": "uint16", "scale_factor": 1e-4, "add_offset": -0.1, "_FillValue": 0}
    found = da.tec.to_zarr(tmp_path / "a.zarr", max_error=5, progress=False, verify=True).verified
    assert found is not None
    assert 3 <= found.max_error.max() <= 5
    assert verify(tmp_path / "a.zarr", da)[0].max_error.max() == found.max_error.max()


def test_a_sample_is_a_part(tmp_path: Path) -> None:
    da = xr.DataArray(
        scene(time=1, bands=3, y=160, x=160), dims=DIMS, coords={"band": BANDS}, name="s2"
    )
    options = {"max_error": 4, "chunks": {"y": 16, "x": 16}, "progress": False}
    found = da.tec.to_zarr(tmp_path / "a.zarr", verify="sample", **options).verified
    assert found is not None
    assert (found.checked, found.of) == (16, 100)
    assert verify(tmp_path / "a.zarr", sample=True)[0].checked == 16
    with pytest.raises(ValueError, match="verify is 'some'"):
        da.tec.to_zarr(tmp_path / "b.zarr", verify="some", **options)


# what is not sound


def damage(store: Path, how: str) -> str:
    """The key of the object that is damaged."""
    objects = sorted(f for f in (store / "s2").rglob("*") if f.is_file() and f.name[0] not in "z.")
    chosen = objects[1 % len(objects)]
    data = bytearray(chosen.read_bytes())
    if how == "missing":
        chosen.unlink()
    elif how == "truncated":
        chosen.write_bytes(data[: len(data) // 2])
    elif how == "flipped":
        data[len(data) // 3] ^= 16
        chosen.write_bytes(data)
    else:
        chosen.write_bytes(b"")
    return chosen.relative_to(store).as_posix()


@jobs
@pytest.mark.parametrize("how", ["missing", "truncated", "flipped", "empty"])
def test_what_is_not_sound_is_found(
    cube: xr.DataArray, job: str, how: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    store = tmp_path / "a.zarr"
    write(cube, store, job)
    key = damage(store, how)
    (found,) = verify(store, cube)
    assert not found.sound
    bad = found.missing if how == "missing" else [name for name, _ in found.damaged]
    assert set(bad) == {key}
    assert cli.app(["verify", str(store)], standalone_mode=False) == 1
    assert key in capsys.readouterr().out


def test_another_source_is_found(cube: xr.DataArray, tmp_path: Path) -> None:
    store = tmp_path / "a.zarr"
    write(cube, store, "lossless")
    other = cube.copy(data=cube.values.copy())
    assert cube[1, 1, 36, 2] > 0
    assert cube[2, 0, 20, 20] > 0
    other[1, 1, 36, 2] += 1
    other[2, 0, 20, 20] = 0
    (found,) = verify(store, other)
    said = [why for _, why in found.damaged]
    assert any("band B03 is off by 1 DN, 0 are allowed" in why for why in said)
    assert any("nodata" in why for why in said)
    with pytest.raises(ValueError, match="pass the cube that it was made of"):
        verify(store, cube[:2])
    with pytest.raises(ValueError, match="dtype"):
        verify(store, cube.astype("int16"))
    cube.drop_encoding().to_zarr(tmp_path / "plain.zarr")
    with pytest.raises(ValueError, match="no variable that xtec has compressed"):
        verify(tmp_path / "plain.zarr")


def test_the_command(cube: xr.DataArray, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source, store = str(tmp_path / "source.zarr"), str(tmp_path / "a.zarr")
    cube.to_zarr(source)
    run = ["compress", source, store, "--max-error", "7", "--chunks", "time=2,y=16,x=16"]
    assert not cli.app([*run, "--verify", "yes"], standalone_mode=False)
    assert "chunks decode; largest error 7 DN" in capsys.readouterr().out
    assert not cli.app(["verify", store, "--against", source, "--json"], standalone_mode=False)
    (found,) = json.loads(capsys.readouterr().out)
    assert found["sound"]
    assert found["max_error"] == attribute(store)["max_error"]
    assert max(found["max_error"].values()) == 7


# repairs


def failing(monkeypatch: pytest.MonkeyPatch, until: str) -> None:
    """Independent decoding fails until a chunk was written with a wider margin, or without loss."""
    inner = codec.decode_many
    usual: list[bytes] = []

    def decode_many(streams: Any, *, independent: bool = False, **options: Any) -> Any:
        header = peek(streams[0])
        usual.append(header.margin)
        fine = header.model == "none" or (until == "wider" and header.margin != usual[0])
        if independent and not fine and until != "":
            raise StreamError("checksum of the decoded latents does not match")
        if until == "never" and independent:
            raise StreamError("nothing helps")
        return inner(streams, independent=independent, **options)

    monkeypatch.setattr(codec, "decode_many", decode_many)


@pytest.mark.parametrize("job", ["format 3", "shards", "format 2"])
@pytest.mark.parametrize(("until", "how"), [("wider", "a wider margin"), ("none", "without loss")])
def test_what_fails_is_written_again(
    cube: xr.DataArray, job: str, until: str, how: str, tmp_path: Path, monkeypatch: Any
) -> None:
    store = tmp_path / "a.zarr"
    failing(monkeypatch, until)
    with pytest.warns(UserWarning, match="were written again"):
        found = write(cube, store, job, verify=True).verified
    monkeypatch.undo()
    assert found is not None
    assert found.sound
    assert {way for _, way in found.repaired} == {how}
    assert attribute(store)["repaired"] == len(found.repaired)
    if how == "without loss":
        np.testing.assert_array_equal(xr.open_zarr(store).s2.values, cube.values)
    (again,) = verify(store, cube)
    assert again.sound
    np.testing.assert_allclose(again.max_error, found.max_error, atol=1)


def test_what_cannot_be_repaired_does_not_open(
    cube: xr.DataArray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "a.zarr"
    failing(monkeypatch, "never")
    with pytest.raises(StreamError, match="writing it again did not help"):
        write(cube, store, "format 3", verify=True)
    with pytest.raises(ValueError, match="incomplete"):
        xr.open_zarr(store)


def test_floats_are_repaired_next_to_without_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = (scene(time=1, bands=3, y=20, x=24) * 1e-4).astype("float32") + np.float32(3e-5)
    da = xr.DataArray(pixels, dims=DIMS, coords={"band": BANDS}, name="s2")
    failing(monkeypatch, "none")
    with pytest.warns(UserWarning, match="without loss"):
        da.tec.to_zarr(tmp_path / "a.zarr", model="fp", scale=1e-4, progress=False, verify=True)
    monkeypatch.undo()
    error = abs(xr.open_zarr(tmp_path / "a.zarr").s2.values.astype(float) - pixels)
    assert 0 < error.max() <= 0.0101e-4


def test_resuming_with_verify_keeps_what_was_noted(cube: xr.DataArray, tmp_path: Path) -> None:
    store = tmp_path / "a.zarr"
    write(cube, store, "bound", verify=True)
    before = attribute(store)
    damage(store, "truncated")
    summary = write(cube, store, "bound", verify=True, resume=True)
    assert summary.resumed is not None
    assert summary.resumed.written == 1
    assert attribute(store) == before


def test_text_of_what_was_found() -> None:
    found = Verified("s2", 5, ("B02", "B03"), checked=2)
    found.add(np.full((1, 2, 1, 1), 2.0), np.ones((1, 2, 1, 1), bool))
    assert found.text() == "2 of 5 chunks decode; largest error 2 DN (B02)"
    found.unit = "shards"
    assert found.text() == "2 of 5 shards decode; largest error 2 DN (B02)"
    assert found.attribute()["shards"] == 2
    found.unit = "chunks"
    found.missing.append("s2/c/0")
    assert found.text() == "0 damaged and 1 missing of 2 chunks looked at (5 there should be)"


def test_another_place_is_no_source(tmp_path: Path) -> None:
    """Where coordinates say so, although the shape is the same."""
    pixels = scene(time=2, bands=3, y=32, x=32)
    there = xr.DataArray(
        pixels,
        dims=("time", "band", "y", "x"),
        coords={"band": BANDS, "x": np.arange(32) * 10.0, "time": [0, 5]},
        name="s2",
    )
    there["time"] = np.array(["2020-01-01", "2020-01-06"], "datetime64[ns]")
    store = tmp_path / "a.zarr"
    there.tec.to_zarr(store, max_error=0, progress=False)
    assert verify(store, there)[0].sound
    for other in (
        there.assign_coords(x=there.x + 320),
        there.assign_coords(time=there.time + np.timedelta64(1, "D")),
    ):
        with pytest.raises(ValueError, match=r"the source is another cube: its (x|time) goes from"):
            verify(store, other)


def test_regions_take_back_what_was_verified(tmp_path: Path) -> None:
    pixels = scene(time=2, bands=3, y=32, x=32)
    data = xr.DataArray(pixels, dims=("time", "band", "y", "x"), coords={"band": BANDS}, name="s2")
    store = tmp_path / "a.zarr"
    chunks = {"time": 1, "y": 32, "x": 32}
    data.tec.to_zarr(store, max_error=0, chunks=chunks, verify=True, progress=False)
    assert "verified" in xr.open_zarr(store).s2.attrs["xtec"]
    data[:1].tec.to_zarr(store, region={"time": slice(0, 1)}, progress=False)
    assert "verified" not in xr.open_zarr(store).s2.attrs["xtec"]
    assert "max_error" in xr.open_zarr(store).s2.attrs["xtec"]
