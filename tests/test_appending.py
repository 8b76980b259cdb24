"""append_dim= and region=: what readers see at each moment, and what is refused."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask
import distributed
import numpy as np
import pandas as pd
import pytest
import xarray as xr
import zarr
from cubes import band_variables, cube
from test_resume import contents
from zarr.core.buffer import Buffer
from zarr.storage import LocalStore, MemoryStore, WrapperStore

from xtec import cli
from xtec.appending import Append
from xtec.claim import Claim
from xtec.existing import Existing, look
from xtec.report import describe
from xtec.resume import Resumed

EXACT: dict[str, Any] = {"max_error": 0, "chunks": {"time": 2, "y": 16, "x": 16}}
QUIET: dict[str, Any] = {"progress": False}
FORMS: dict[str, dict[str, Any]] = {
    "format 3": {},
    "shards": {"shards": {"time": 4, "y": 32, "x": 32}},
    "format 2": {"zarr_format": 2},
}
CLAIM = "s2/append.partial"
forms = pytest.mark.parametrize("form", FORMS)


def scene(dates: int = 9) -> xr.Dataset:
    """So many dates of 20 x 24 pixels, with a layer of classes and coordinates along time."""
    ds = cube(time=dates).to_dataset()
    ds["SCL"] = (ds.s2[:, 0] % 12).astype("uint8").drop_vars("band")
    return ds.assign_coords(platform=("time", (["S2A", "S2B"] * dates)[:dates]))


def part(start: int, stop: int | None = None) -> xr.Dataset:
    return scene().isel(time=slice(start, stop))


def written(store: Any, stop: int = 4, form: str = "format 3", **options: Any) -> Any:
    part(0, stop).tec.to_zarr(store, **QUIET, **{**EXACT, **FORMS[form], **options})
    return store


def same(store: Any, wanted: xr.Dataset, **options: Any) -> None:
    found = xr.open_zarr(store, **options).load()
    found.s2.attrs.pop("xtec")
    xr.testing.assert_identical(found, wanted)


# what is appended


@forms
def test_an_append_is_read_as_if_written_at_once(tmp_path: Path, form: str) -> None:
    store = written(tmp_path / "a.zarr", form=form)
    summary = part(4).chunk(time=4).tec.to_zarr(store, append_dim="time", **QUIET)
    same(store, scene())
    same(store, scene(), consolidated=False)
    assert summary.samples == 5 * 3 * 20 * 24
    assert summary.resumed is None
    once = tmp_path / "b.zarr"
    scene().tec.to_zarr(once, **QUIET, **EXACT, **FORMS[form])
    images = [k for k in contents(once) if k.startswith(("s2/", "SCL/")) and "/." not in k]
    assert images
    at_once, appended = contents(once), contents(store)
    assert all(appended[key] == at_once[key] for key in images if "SCL/zarr" not in key)
    assert summary.bytes_out == sum(
        len(appended[key]) for key in images if key.startswith("s2") and row(key) >= 4 // unit(form)
    )


def row(key: str) -> int:
    """Of a chunk, along time; -1 of metadata."""
    place = key.partition("/")[2].removeprefix("c/").replace(".", "/").split("/")[0]
    return int(place) if place.isdigit() else -1


def unit(form: str) -> int:
    return 4 if form == "shards" else 2


@forms
def test_dates_of_a_chunk_that_is_not_full_are_written_again(tmp_path: Path, form: str) -> None:
    store = written(tmp_path / "a.zarr", 5, form)
    before = contents(store)
    with pytest.raises(ValueError, match=r"holds 1 of \d dates.*originals from 2020-06-05 on") as e:
        part(5).tec.to_zarr(store, append_dim="time", **QUIET)
    assert "slice('2020-06-05', None)" in str(e.value)
    assert contents(store) == before
    part(4).tec.to_zarr(store, append_dim="time", **QUIET)
    same(store, scene())


def test_a_layer_whose_blocks_do_not_fit_is_continued_from_the_store(tmp_path: Path) -> None:
    """SCL of 5 dates lies in chunks of 5, in shards there is room for 6."""
    shards = {"time": 6, "y": 32, "x": 32}
    store = written(tmp_path / "a.zarr", 5, shards=shards)
    assert zarr.open_group(store)["SCL"].chunks[0] == 5
    part(0, 6).tec.to_zarr(store, append_dim="time", **QUIET)
    same(store, part(0, 6))
    part(6).tec.to_zarr(store, append_dim="time", **QUIET)
    same(store, scene())


def test_nothing_yet_is_a_new_store(tmp_path: Path) -> None:
    for store in (tmp_path / "a.zarr", MemoryStore()):
        with pytest.warns(UserWarning, match="to append to: a new store is written"):
            part(0, 4).tec.to_zarr(store, append_dim="time", **QUIET, **EXACT)
        part(4).tec.to_zarr(store, append_dim="time", **QUIET)
        same(store, scene())


def test_arrays_and_band_variables(tmp_path: Path) -> None:
    data = scene().s2
    for name in ("s2", None):
        store = tmp_path / f"{name}.zarr"
        data[:4].rename(name).tec.to_zarr(store, **QUIET, **EXACT)
        data[4:].rename(name).tec.to_zarr(store, append_dim="time", **QUIET)
        found = xr.open_dataarray(store, engine="zarr")
        np.testing.assert_array_equal(found, data)
    with pytest.raises(ValueError, match=r"is s2 in the store and B02 here.*rename"):
        data[4:].rename("B02").tec.to_zarr(tmp_path / "s2.zarr", append_dim="time", **QUIET)
    ds = band_variables()
    later = ds.assign_coords(time=ds.time + np.timedelta64(5, "D"))
    ds.tec.to_zarr(tmp_path / "b.zarr", **QUIET, **EXACT)
    later[["B04", "SCL", "B02", "B03", "sun"]].tec.to_zarr(
        tmp_path / "b.zarr", append_dim="time", **QUIET
    )
    found = xr.open_zarr(tmp_path / "b.zarr")
    assert found.sizes["time"] == 4
    for band in ("B02", "B03", "B04"):
        np.testing.assert_array_equal(found.reflectance.sel(band=band)[2:], ds[band])
    np.testing.assert_array_equal(found.SCL[2:], ds.SCL)


def test_bands_in_another_order_are_put_in_order(tmp_path: Path) -> None:
    store = written(tmp_path / "a.zarr")
    part(4).isel(band=[2, 0, 1]).tec.to_zarr(store, append_dim="time", **QUIET)
    same(store, scene())


def test_bands_whose_names_the_store_explains(tmp_path: Path) -> None:
    bare = scene().s2.drop_vars("band").to_dataset()
    store = tmp_path / "a.zarr"
    bare.isel(time=slice(4)).tec.to_zarr(store, bands=["B02", "B03", "B04"], **QUIET, **EXACT)
    bare.isel(time=slice(4, None)).tec.to_zarr(store, append_dim="time", **QUIET)
    np.testing.assert_array_equal(xr.open_zarr(store).s2, bare.s2)
    own = bare.assign_coords(band=[7, 8, 9])
    store = tmp_path / "b.zarr"
    own.isel(time=slice(4)).tec.to_zarr(store, bands=["B02", "B03", "B04"], **QUIET, **EXACT)
    own.isel(time=slice(4, None), band=[1, 0, 2]).tec.to_zarr(store, append_dim="time", **QUIET)
    np.testing.assert_array_equal(xr.open_zarr(store).s2, bare.s2)


def test_what_is_the_same_for_all_dates_is_given_to_each(tmp_path: Path) -> None:
    """As stackstac has it: a coordinate along time is none where all dates agree."""
    store = written(tmp_path / "a.zarr")
    later = part(4).drop_vars("platform").assign_coords(platform="S2C")
    later.tec.to_zarr(store, append_dim="time", **QUIET)
    assert xr.open_zarr(store).platform[4:].values.tolist() == ["S2C"] * 5


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_packed_floats(tmp_path: Path, zarr_format: int) -> None:
    data = scene().s2.drop_attrs()
    floats = (data.where(data > 0) * 1e-4).astype("float64")
    packing = {"scale_factor": 1e-4, "add_offset": 0.0, "dtype": "uint16", "_FillValue": 0}
    first, later = floats[:4].copy(), floats[4:].copy()
    first.encoding = packing
    store = tmp_path / "a.zarr"
    first.tec.to_zarr(store, **QUIET, **EXACT, zarr_format=zarr_format)
    later.tec.to_zarr(store, append_dim="time", **QUIET)  # packed as the store is
    found = xr.open_zarr(store, mask_and_scale=False).s2
    np.testing.assert_array_equal(found, data)
    later = later.assign_coords(time=later.time + np.timedelta64(99, "D"))
    other = later.copy()
    other.encoding = {**packing, "add_offset": -0.1}
    with pytest.raises(ValueError, match=r"add_offset of 's2' is 0 in the store and -0.1 here"):
        other.tec.to_zarr(store, append_dim="time", **QUIET)
    with pytest.raises(ValueError, match=r"dtype of 's2' is float\d\d in the store and uint16"):
        data[4:].tec.to_zarr(store, append_dim="time", **QUIET)


# the store decides how


def refused(store: Any, ds: Any, message: str, **options: Any) -> None:
    """With nothing changed, but that a claim without an append is gone."""
    before = contents(store)
    before.pop(CLAIM, None)
    with pytest.raises(ValueError, match=message):
        ds.tec.to_zarr(store, **{"append_dim": "time", **QUIET, **options})
    assert contents(store) == before


def test_options_are_the_stores(tmp_path: Path) -> None:
    store = tmp_path / "a.zarr"
    kept = {"model": "fp", "compression": 20, "chunks": {"time": 2, "y": 16, "x": 16}}
    part(0, 4).tec.to_zarr(store, **QUIET, **kept)
    for options, message in (
        ({"compression": 40}, "compression is 20 in the store and 40 here"),
        ({"model": "elic"}, "model is fp in the store and elic here"),
        ({"max_error": 5}, r"max_error is None in the store and \(5, 5, 5\) here"),
        ({"psnr": 45}, "psnr is None in the store and 45 here"),
        ({"offset": 1000}, "offset is 0 in the store and 1000 here"),
        ({"scale": 10.0}, "scale is 1 in the store and 10 here"),
        ({"nodata": 65535}, "nodata is 0 in the store and 65535 here"),
        ({"zarr_format": 2}, "zarr_format is 3 in the store and 2 here"),
        ({"chunks": {"time": 1}}, r"chunks is \(2, 3, 16, 16\) in the store and \(1, 3, 20, 24\)"),
        ({"chunks": {"y": 16, "x": 16}, "shards": {"y": 32}}, "chunks is .* in the store"),
        ({"sensor": "S2L1C", "model": "tt"}, "model is fp in the store and tt here"),
    ):
        refused(store, part(4), message, **options)
        if "psnr" not in options and "sensor" not in options:
            packed = part(4).tec.compress(**{**kept, **options})
            refused(store, packed, "in the store and .* here")
    part(4, 6).tec.to_zarr(store, append_dim="time", **QUIET, **kept)
    part(6).tec.compress(**kept).tec.to_zarr(store, append_dim="time", **QUIET)
    assert describe(store)["variables"][0]["compression"] == 20
    assert xr.open_zarr(store).sizes["time"] == 9


def test_options_of_lossless_and_bounded_stores(tmp_path: Path) -> None:
    bounds = {"B02": 5, "default": 20}
    for i, options in enumerate(
        ({"max_error": 0}, {"max_error": bounds}, {"max_error": 200, "model": "fp"})
    ):
        store = tmp_path / f"{i}.zarr"
        part(0, 4).tec.to_zarr(store, **QUIET, **{**EXACT, **options})
        part(4, 6).tec.to_zarr(store, append_dim="time", **QUIET)
        part(6).isel(band=[1, 2, 0]).tec.to_zarr(store, append_dim="time", **QUIET, **options)
        assert xr.open_zarr(store).sizes["time"] == 9
    later = scene().assign_coords(time=scene().time + np.timedelta64(99, "D"))
    refused(tmp_path / "0.zarr", later, "model is none in the store and tt", compression=20)


def test_other_weights_are_refused(tmp_path: Path, tiny_fp: Path, tiny_elic: Path) -> None:
    import shutil

    own = tmp_path / "fp.safetensors"
    shutil.copy(tiny_fp, own)
    store = tmp_path / "a.zarr"
    part(0, 4).tec.to_zarr(store, model="fp", weights=str(own), chunks={"time": 2}, **QUIET)
    refused(store, part(4), "weights_sha256 is .* in the store", model="fp", weights="builtin")
    import tiny

    tiny.write(own, "fp", seed=1)
    refused(store, part(4), "sha256 of the weights of 'fp' is")


def other_attrs(ds: xr.Dataset) -> xr.Dataset:
    ds.spatial_ref.attrs["crs_wkt"] = "another"
    return ds


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ds: ds.assign_coords(x=ds.x + 5), r"x\[0\] is 600000 in the store and 600005 here"),
        (
            lambda ds: ds.isel(x=slice(12)),
            "'s2' is .*'x': 12.* here .*'x': 24.* only 'time' may differ",
        ),
        (lambda ds: ds.assign_coords(band=["B02", "B03", "B08"]), "bands is .*B04.*B08"),
        (lambda ds: ds.assign_coords(band=["blue", "B03", "B04"]), r"band\[0\] is B02 .* blue"),
        (other_attrs, "crs_wkt of 'spatial_ref' is WKT in the store and another here"),
        (lambda ds: ds.drop_vars("SCL"), "SCL: in .*, and not in what is appended"),
        (lambda ds: ds.drop_vars("platform"), "platform: in .*, and not in what is appended"),
        (lambda ds: ds.assign(CLD=ds.SCL), "CLD: not in .*drop_vars"),
        (lambda ds: ds.rename(s2="other"), "is s2 in the store and other here.*rename"),
        (lambda ds: ds.rename(y="lat"), "dimensions is .* in the store"),
        (lambda ds: ds.isel(time=0), "dimensions is .* in the store.*expand_dims"),
        (lambda ds: ds.assign(s2=ds.s2.astype("int16")), "dtype of 's2' is uint16 .* int16 here"),
        (lambda ds: ds.assign(SCL=ds.SCL.astype("int16")), "dtype of 'SCL' is uint8 .* int16"),
        (lambda ds: ds.assign(s2=ds.s2.assign_attrs(nodata=9)), "nodata is 0 .* 9 here"),
        (lambda ds: ds.assign(s2=ds.s2.assign_attrs(offset=1000)), "offset is 0 .* 1000 here"),
        (
            lambda ds: ds.assign_coords(platform=("time", ["Sentinel-2A"] * 5)),
            "'platform': Sentinel-2A would come back as Sen .*room for 3 characters",
        ),
        (
            lambda ds: ds.assign_coords(time=ds.time + np.timedelta64(90, "m")),
            "'time': .*T01:30.* would come back as .*counts in 'days since.*dt.floor",
        ),
        (lambda ds: ds.assign_coords(cloud=("time", list("abcde"))), "'cloud' .*cannot be stored"),
        (lambda ds: ds.isel(time=[0, 0, 1]), "2020-06-05 comes twice in what is appended"),
    ],
)
def test_data_that_do_not_fit_are_refused(
    tmp_path: Path, change: Callable[[xr.Dataset], xr.Dataset], message: str
) -> None:
    refused(written(tmp_path / "a.zarr"), change(part(4)), message)


def test_dates_that_are_there(tmp_path: Path) -> None:
    store = written(tmp_path / "a.zarr")
    refused(store, part(3), "2020-06-04: 1 of 6 dates are in .*drop it")
    refused(store, part(2, 4), "2020-06-03, 2020-06-04: 2 of 2 .*resume=True.*region= replaces")
    refused(store, part(0, 9), r"2020-06-03, \.\.\.: 4 of 9 dates are in .*drop them")
    refused(store, part(3), "2020-06-04: 1 of 6 dates are in .*drop it", resume=True)
    short = written(tmp_path / "b.zarr", 5)
    refused(short, part(2), "pass dates from 2020-06-05 on, where the last chunk begins")
    moved = part(4).assign_coords(cloud=("time", np.ones(5)))
    refused(short, moved, "'cloud' of a date that is there already is 0.5 in .* and 1.0 here")
    with pytest.warns(UserWarning, match="'time' of .* is no longer in order"):
        part(4).isel(time=[1, 0]).tec.to_zarr(store, append_dim="time", **QUIET)
    assert xr.open_zarr(store).time.dt.day.values.tolist() == [1, 2, 3, 4, 6, 5]


def test_stores_without_dates(tmp_path: Path) -> None:
    store = tmp_path / "a.zarr"
    bare = scene().drop_vars("time")
    bare.isel(time=slice(4)).tec.to_zarr(store, **QUIET, **EXACT)
    refused(store, part(4), "time: not in .*drop_vars")
    refused(store, bare, "resume=True needs a coordinate 'time'", resume=True)
    bare.isel(time=slice(4, None)).tec.to_zarr(store, append_dim="time", **QUIET)
    same(store, bare)
    refused(store, bare, "holds 1 of 2 steps of 'time'")


def test_what_does_not_go_together(tmp_path: Path) -> None:
    store = written(tmp_path / "a.zarr")
    for options, message in (
        ({"mode": "w"}, "mode='w' does not go with append_dim"),
        ({"mode": "w-"}, "mode='w-' does not go with append_dim"),
        ({"overwrite": True}, "overwrite=True does not go with append_dim"),
        ({"region": "auto"}, "choose one of them"),
        ({"embed_weights": True}, r"xtec.embed_weights\(store\)"),
        ({"append_dim": "x"}, r"append_dim is 'x': .* along \['time'\]"),
        ({"append_dim": None, "region": "auto", "mode": "a-"}, "does not go with region"),
        ({"append_dim": None, "mode": "a"}, "append_dim='time' to append, region= to write a part"),
    ):
        refused(store, part(4), message, **options)
    with pytest.raises(ValueError, match="is one file, which append_dim cannot change"):
        part(4).tec.to_zarr(tmp_path / "a.zarr.zip", append_dim="time", **QUIET)
    part(4).tec.to_zarr(store, append_dim="time", mode="a", **QUIET)
    same(store, scene())


def test_foreign_and_unfinished_stores(tmp_path: Path) -> None:
    part(0, 4).to_zarr(tmp_path / "plain.zarr")
    refused(tmp_path / "plain.zarr", part(4), "holds no variables that xtec has compressed")
    with dask.config.set(scheduler="synchronous"):
        store = written(MemoryStore())
        dying = Dying(store, 0)
        with pytest.raises(Gone):
            part(0, 4).tec.to_zarr(dying, overwrite=True, **QUIET, **EXACT)
        dying = Dying(MemoryStore(), 12)
        with pytest.raises(Gone):
            written(dying)
    refused(dying._store, part(4), "is unfinished .*resume=True", resume=True)


# interruptions


class Gone(Exception):
    """The process was killed."""


class Dying(WrapperStore[Any]):
    """Takes so many writes and deletions, then no more."""

    def __init__(self, store: Any, left: int) -> None:
        super().__init__(store)
        self.left = left

    def _with_store(self, store: Any) -> Dying:
        return type(self)(store, self.left)

    def _count(self) -> None:
        if self.left <= 0:
            raise Gone
        self.left -= 1

    async def set(self, key: str, value: Buffer) -> None:
        self._count()
        await self._store.set(key, value)

    async def delete(self, key: str) -> None:
        self._count()
        await self._store.delete(key)


def corner(start: int, stop: int | None = None) -> xr.Dataset:
    """One chunk of each date."""
    return part(start, stop).isel(y=slice(16), x=slice(16))


@pytest.mark.parametrize(
    ("form", "consolidated", "first", "verify"),
    [
        ("format 3", True, 4, False),
        ("format 3", False, 5, False),
        ("format 3", True, 5, True),
        ("shards", True, 5, False),
        ("format 2", True, 4, False),
        ("format 2", False, 5, False),
    ],
)
def test_at_every_moment_a_store_is_the_old_or_the_new_one(
    form: str, consolidated: bool, first: int, verify: bool
) -> None:
    """Killed after each write in turn, and gone on with; without ``resume``, that is once more."""
    options = {**EXACT, **FORMS[form]}
    before = MemoryStore()
    corner(0, first).tec.to_zarr(before, verify=verify, **QUIET, **options)
    if not consolidated:
        unconsolidate(before)
    # of the rows of 2 (or 4) dates from the fifth date on, one object of each image
    rows = 1 if form == "shards" else 2

    def copy(store: MemoryStore, left: int = 10**6) -> Dying:
        return Dying(MemoryStore(dict(store._store_dict)), left)

    def append(store: Any, **more: Any) -> Any:
        return corner(4, 7).tec.to_zarr(store, append_dim="time", verify=verify, **QUIET, **more)

    with dask.config.set(scheduler="synchronous"):
        whole = copy(before)
        append(whole)
        wanted, writes = contents(whole._store), 10**6 - whole.left
        same(whole._store, corner(0, 7), consolidated=consolidated)
        lengths = []
        for moment in range(writes):
            dying = copy(before, moment)
            with pytest.raises(Gone):
                append(dying)
            left = dying._store
            lengths.append(length_of(left, consolidated))
            if lengths[-1] or consolidated:
                same(left, corner(0, lengths[-1]), consolidated=consolidated)
                assert lengths[-1] in (first, 7)
            again = copy(left)._store
            assert append(left, resume=True).resumed.whole <= 2 * rows
            assert contents(left) == wanted, moment
            if moment % 4 == 0 and lengths[-1] != 7:
                append(again)
                assert contents(again) == wanted, moment
        assert lengths.count(first) > writes // 2
        resumed = append(left, resume=True).resumed
        assert resumed == Resumed(2 * rows, 0)
        found = contents(left)  # verifying once more is noted
        assert all(found[key] == wanted[key] for key in wanted if row(key) >= 0 or not verify)


def length_of(store: Any, consolidated: bool) -> int:
    """Dates that readers see; 0 where the store says clearly that it is between two states."""
    try:
        return xr.open_zarr(store, consolidated=consolidated).sizes["time"]
    except ValueError as error:
        if "conflicting sizes" not in str(error):
            raise
        return 0


def unconsolidate(store: MemoryStore) -> None:
    """As ``to_zarr(consolidated=False)`` leaves it."""
    import json

    from zarr.core.buffer import default_buffer_prototype

    store._store_dict.pop(".zmetadata", None)
    if "zarr.json" in store._store_dict:
        root = json.loads(store._store_dict["zarr.json"].to_bytes())
        root.pop("consolidated_metadata")
        data = json.dumps(root).encode()
        store._store_dict["zarr.json"] = default_buffer_prototype().buffer.from_bytes(data)


def test_what_stays_and_what_is_written_again() -> None:
    store = written(MemoryStore())
    part(4).tec.to_zarr(store, append_dim="time", **QUIET)
    wanted = contents(store)
    data = store._store_dict["s2/c/3/0/0/1"]
    store._store_dict["s2/c/3/0/0/1"] = type(data).from_bytes(data.to_bytes()[:-1])
    del store._store_dict["SCL/c/2/0/0"]
    summary = part(4).tec.to_zarr(store, append_dim="time", resume=True, **QUIET)
    assert contents(store) == wanted
    assert summary.resumed.written == 2
    assert "22 of 24 chunks were there and whole, 2 written" in str(summary)


def test_an_append_of_other_dates_is_not_gone_on_with() -> None:
    later = scene().assign_coords(time=scene().time + np.timedelta64(99, "D"))
    with dask.config.set(scheduler="synchronous"):
        store = Dying(written(MemoryStore()), 20)
        with pytest.raises(Gone):
            part(4).tec.to_zarr(store, append_dim="time", **QUIET)
        left = store._store
        stray = [key for key in contents(left) if row(key) >= 2 and key.startswith("s2")]
        assert stray
        refused(left, later, "an interrupted append of other dates has left", resume=True)
        later.isel(time=slice(1)).tec.to_zarr(left, append_dim="time", **QUIET)
    found = xr.open_zarr(left)
    np.testing.assert_array_equal(found.s2[4], later.s2[0])
    assert found.sizes["time"] == 5


KILLED = """
    import sys, time
    sys.path.insert(0, sys.argv[2])
    import numpy as np, zarr
    from test_appending import part
    from zarr.storage import LocalStore
    put = LocalStore.set
    async def slow(self, key, value):
        await put(self, key, value)
        time.sleep(0.02)
    LocalStore.set = slow
    print("begins", flush=True)
    part(4).tec.to_zarr(sys.argv[1], append_dim="time", progress=False)
"""


def test_kills(tmp_path: Path) -> None:
    """SIGKILL, at random moments, of a process that appends."""
    rng = random.Random(1)
    once = written(tmp_path / "once.zarr", 5)
    part(4).tec.to_zarr(once, append_dim="time", **QUIET)
    wanted = contents(once)
    for number in range(4):
        store = written(tmp_path / f"{number}.zarr", 5)
        with subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(KILLED), str(store), str(Path(__file__).parent)],
            stdout=subprocess.PIPE,
        ) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"begins\n"
            time.sleep(rng.uniform(0.1, 1.2))
            child.send_signal(signal.SIGKILL)
        length = xr.open_zarr(store).sizes["time"]
        same(store, part(0, 5) if length == 5 else scene())
        part(4).tec.to_zarr(store, append_dim="time", resume=True, **QUIET)
        found = contents(store)
        assert {k: v for k, v in found.items() if not k.endswith(".partial")} == wanted


# verify


def test_what_verify_notes(tmp_path: Path) -> None:
    store = tmp_path / "a.zarr"
    options = {"max_error": 20, "chunks": EXACT["chunks"]}
    part(0, 4).tec.to_zarr(store, verify=True, **QUIET, **options)
    assert look(LocalStore(store)).note()["chunks"] == 8
    part(4, 6).tec.to_zarr(store, append_dim="time", **QUIET)
    note = look(LocalStore(store)).note()
    assert (note["chunks"], note["of"]) == (8, 12)
    summary = part(6).tec.to_zarr(store, append_dim="time", verify=True, **QUIET)
    assert summary.verified.sound
    assert summary.verified.checked == 8
    assert summary.verified.text().startswith("8 of 8 chunks decode")  # those appended
    note = look(LocalStore(store)).note()
    assert (note["chunks"], note["of"]) == (16, 20)
    errors = np.abs(xr.open_zarr(store).s2.astype(float) - scene().s2)
    for band in ("B02", "B03", "B04"):
        worst = errors.sel(band=band).isel(time=[0, 1, 2, 3, 6, 7, 8]).max()
        assert note["max_error"][band] == worst
        assert 0 < note["mean_error"][band] <= worst


# regions


def template(store: Any, form: str = "format 3", dates: int = 9) -> Any:
    empty = scene(dates).assign(s2=scene(dates).s2 * 0, SCL=scene(dates).SCL * 0)
    empty = empty.assign({n: empty[n].variable.chunk() for n in ("s2", "SCL")})
    packed = empty.tec.compress(**EXACT, **FORMS[form])
    packed.to_zarr(store, compute=False, zarr_format=FORMS[form].get("zarr_format", 3))
    return store


@forms
def test_regions_fill_a_store(tmp_path: Path, form: str) -> None:
    store = template(tmp_path / "a.zarr", form)
    before = contents(store)
    n = unit(form)
    side = 32 if form == "shards" else 16
    verified = 0
    for start in range(0, 9, n):
        for y in range(0, 20, side):
            times, rows = slice(start, min(start + n, 9)), slice(y, min(y + side, 20))
            piece = scene().isel(time=times, y=rows)
            region: Any = {"time": times, "y": rows} if start else "auto"
            summary = piece.tec.to_zarr(store, region=region, verify=True, **QUIET)
            verified += summary.verified.checked
    same(store, scene())
    after = contents(store)
    assert {key: after[key] for key in before} == before
    once = tmp_path / "b.zarr"
    scene().tec.to_zarr(once, **QUIET, **EXACT, **FORMS[form])
    images = {k: v for k, v in contents(once).items() if row(k) >= 0 and k[:2] in ("s2", "SC")}
    assert {k: after[k] for k in images} == images
    assert verified == sum(key.startswith("s2") for key in images)


def test_a_region_replaces_pixels(tmp_path: Path) -> None:
    store = written(tmp_path / "a.zarr", 9)
    before = contents(store)
    other = part(2, 4).assign(s2=part(2, 4).s2 + 1, SCL=part(2, 4).SCL + 1)
    part_of = other.isel(x=slice(16, None))
    part_of.tec.to_zarr(store, region={"time": slice(2, 4), "x": slice(16, 24)}, mode="r+", **QUIET)
    after = contents(store)
    changed = {key for key in after if after[key] != before[key]}
    assert changed == {f"{n}/{y}/1" for n in ("s2/c/1/0", "SCL/c/1") for y in (0, 1)}
    wanted = scene()
    wanted.s2[2:4, :, :, 16:] += 1
    wanted.SCL[2:4, :, 16:] += 1
    same(store, wanted)
    only = part(0, 2)[["s2"]]  # without SCL
    only.tec.to_zarr(store, region="auto", **QUIET)
    same(store, wanted)
    (store / "s2/c/0/0/0/1").write_bytes(b"damaged")
    summary = part(0, 2).tec.to_zarr(store, region="auto", resume=True, **QUIET)
    assert summary.resumed == Resumed(7, 1)
    same(store, wanted)
    (store / "s2/c/0/0/0/1").write_bytes(b"damaged")
    part(0, 2).tec.to_zarr(store, region="auto", **QUIET)
    same(store, wanted)


@pytest.mark.parametrize(
    ("region", "message"),
    [
        ({"time": slice(1, 3)}, r"nearest region of whole ones is \{'time': slice\(0, 4\)\}"),
        ({"time": slice(2, 4), "x": slice(8, 24)}, r"whole ones is \{'x': slice\(0, 24\)\}"),
        ({"time": slice(2, 5)}, "is 2:5, and the data have 2"),
        ({"time": slice(8, 12)}, "has 9 of it"),
        ({"time": slice(2, 4, 2)}, "pass a slice of step 1"),
        ({"z": slice(2)}, "region names 'z'"),
        ([slice(2)], "pass {'time'"),
        ({"time": slice(4, 6)}, r"time\[0\] is 2020-06-05.* in the store and 2020-06-03"),
    ],
)
def test_regions_that_do_not_fit(tmp_path: Path, region: Any, message: str) -> None:
    store = written(tmp_path / "a.zarr", 9)
    piece = part(2, 4)
    if isinstance(region, dict):
        piece = piece.isel({d: slice(s.stop - s.start) for d, s in region.items() if d == "x"})
    if isinstance(region, dict) and region.get("x"):
        piece = part(2, 4).isel(x=region["x"])
    if isinstance(region, dict) and region.get("time") == slice(1, 3):
        piece = part(1, 3)
    refused(store, piece, message, append_dim=None, region=region)


def test_regions_that_are_not_found(tmp_path: Path) -> None:
    store = written(tmp_path / "a.zarr", 9)
    auto = {"append_dim": None, "region": "auto"}
    later = part(0, 2).assign_coords(time=pd.date_range("2021", periods=2))
    refused(store, later, "2021-01-01, 2021-01-02 is no 'time'", **auto)
    refused(store, part(0, 4).isel(time=[0, 2]), "no contiguous part", **auto)
    refused(store, part(0, 2), "model is none in the store", compression=30, **auto)
    moved = part(0, 2).assign_coords(cloud=("time", [5.0, 6.0]))
    refused(store, moved, r"differs from the store's, .*drop_vars\('cloud'\)", **auto)
    with pytest.raises(ValueError, match=r"nothing at .*to_zarr\(store, compute=False\)"):
        part(0, 2).tec.to_zarr(tmp_path / "b.zarr", region="auto", **QUIET)


# clusters and the command line


@contextmanager
def cluster() -> Iterator[None]:
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0"
        ) as two,
        distributed.Client(two),
    ):
        yield


def test_on_a_cluster(tmp_path: Path) -> None:
    store = written(tmp_path / "a.zarr", 5)
    piece = part(4).chunk(time=2)
    filled = template(tmp_path / "b.zarr")
    with cluster():
        piece.tec.to_zarr(store, append_dim="time", verify=True, **QUIET)
        scene().chunk(time=2).tec.to_zarr(filled, region="auto", **QUIET)
        assert (
            piece.tec.to_zarr(store, append_dim="time", resume=True, **QUIET).resumed.written == 0
        )
    same(store, scene())
    same(filled, scene())


def test_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    part(0, 4).to_zarr(tmp_path / "1.zarr")
    part(4).to_zarr(tmp_path / "2.zarr")
    out = tmp_path / "out.zarr"

    def run(source: str, *options: str) -> tuple[int, str]:
        arguments = ["compress", str(tmp_path / source), str(out), "--append", "time", *options]
        monkeypatch.setattr(sys, "argv", ["xtec", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        return int(end.value.code or 0), captured.out + captured.err

    assert run("1.zarr", "--max-error", "0", "--chunks", "time=2,y=16,x=16")[0] == 0
    assert run("2.zarr", "--chunks", "time=1")[0] == 2
    assert run("2.zarr")[0] == 0
    same(out, scene())
    code, text = run("2.zarr")
    assert code == 2
    assert "are in" in text
    assert "--resume" in text
    assert run("2.zarr", "--resume")[0] == 0
    same(out, scene())


def test_shards_are_called_shards(tmp_path: Path) -> None:
    store = tmp_path / "a.zarr"
    options = {"max_error": 20, "chunks": {"time": 2, "y": 8, "x": 8}, "shards": {"y": 16, "x": 16}}
    part(0, 4).tec.to_zarr(store, verify=True, **QUIET, **options)
    noted = look(LocalStore(store)).note()
    assert (noted["shards"], noted["of"]) == (8, 8)
    assert "chunks" not in noted
    summary = part(4, 6).tec.to_zarr(store, append_dim="time", verify=True, **QUIET)
    assert "4 of 4 shards decode" in str(summary)
    noted = look(LocalStore(store)).note()
    assert (noted["shards"], noted["of"]) == (12, 12)
    again = part(4, 6).tec.to_zarr(store, append_dim="time", resume=True, **QUIET)
    assert "shards were there and whole" in str(again)


@forms
def test_what_an_append_has_left_is_told_and_not_counted(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = written(tmp_path / "a.zarr", form=form)
    (before,) = describe(store)["variables"]
    assert before["warnings"] == []
    with monkeypatch.context() as patch:
        patch.setattr(Existing, "commit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            part(4).tec.to_zarr(store, append_dim="time", **QUIET)
    (after,) = describe(store)["variables"]
    assert after["bytes_out"] == before["bytes_out"]
    (remark,) = after["warnings"]
    unit, count = ("shards", 2) if form == "shards" else ("chunks", 12)
    assert f"{count} {unit} lie beyond its end (such as s2/" in remark
    assert "resume=True" in remark
    part(4).tec.to_zarr(store, append_dim="time", resume=True, **QUIET)
    assert describe(store)["variables"][0]["warnings"] == []


def interrupted(*_: Any) -> None:
    raise KeyboardInterrupt


# two at a time


def claimed(store: Path, **said: Any) -> None:
    """As an append leaves it that has not ended."""
    here = {"id": "0", "host": socket.gethostname(), "process": os.getppid(), "begun": "today"}
    (store / CLAIM).write_text(json.dumps({**here, **said}))


def test_a_second_append_waits_for_the_first(tmp_path: Path) -> None:
    store = written(tmp_path / "a.zarr")
    with Claim(LocalStore(store), "s2", take_over=False) as first:
        before = contents(store)
        with pytest.raises(ValueError, match=r"another append .*has not ended.*resume=True"):
            part(4).tec.to_zarr(store, append_dim="time", **QUIET)
        assert contents(store) == before
        assert xr.open_zarr(store, consolidated=False).sizes["time"] == 4, "readers do not mind"
        part(4).tec.to_zarr(store, append_dim="time", resume=True, **QUIET)
        with pytest.raises(RuntimeError, match=r"another append .*has taken over"):
            first.check()
    assert CLAIM not in contents(store)
    same(store, scene())


@pytest.mark.parametrize(
    ("said", "ended"),
    [
        ({}, False),  # of a process that runs
        ({"host": "elsewhere"}, False),
        ({"process": None}, False),
        ({"process": os.getpid()}, True),  # before this one got its number
        ({"process": "gone"}, True),
        (None, True),
    ],
)
def test_claims_of_processes_that_are_gone_do_not_count(
    tmp_path: Path, said: dict[str, Any] | None, ended: bool
) -> None:
    store = written(tmp_path / "a.zarr")
    if said is None:
        (store / CLAIM).write_text("{")
    else:
        if said.get("process") == "gone":
            with subprocess.Popen([sys.executable, "-c", ""]) as child:
                said = {"process": child.pid}
        claimed(store, **said)
    if not ended:
        with pytest.raises(ValueError, match=r"has not ended.* s2/append\.partial"):
            part(4).tec.to_zarr(store, append_dim="time", **QUIET)
        (store / CLAIM).unlink()
    part(4).tec.to_zarr(store, append_dim="time", **QUIET)
    assert CLAIM not in contents(store)
    same(store, scene())


def test_an_append_that_was_taken_over_commits_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = written(tmp_path / "a.zarr")
    write = Append.write

    def overtaken(*args: Any) -> Any:
        found = write(*args)
        claimed(store)
        return found

    monkeypatch.setattr(Append, "write", overtaken)
    with pytest.raises(RuntimeError, match=r"has taken over .process .* of .*today.*without its"):
        part(4).tec.to_zarr(store, append_dim="time", **QUIET)
    assert json.loads((store / CLAIM).read_text())["id"] == "0", "it is not ours"
    same(store, part(0, 4))


def test_what_a_claim_leaves_is_left_over(tmp_path: Path) -> None:
    store = written(tmp_path / "a.zarr")
    claimed(store)
    part(0, 4).tec.to_zarr(store, resume=True, **QUIET, **EXACT)
    assert CLAIM not in contents(store)
