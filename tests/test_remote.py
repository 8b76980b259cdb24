"""Object storage: an S3 server in another process, behind a network that fails."""

from __future__ import annotations

import asyncio
import errno
import itertools
import json
import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import object_stores
import pytest
import xarray as xr
from cubes import band_variables, cube
from object_stores import Proxy, Request, flaky
from test_resume import contents
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import FsspecStore, LocalStore, MemoryStore, ObjectStore, WrapperStore

import xtec
from xtec import cli, embed_weights, remote, settings
from xtec.backend import XtecBackend
from xtec.embedded import GROUP
from xtec.reading import open_input, save
from xtec.remote import Retrying, for_reading, name_of, open_url
from xtec.report import describe
from xtec.rootlast import open_store
from xtec.storeerrors import StoreError, explained, kind
from xtec.verifying import verify

pytest.importorskip("moto", reason="the S3 server of these tests is moto's")
s3fs = pytest.importorskip("s3fs")
obstore = pytest.importorskip("obstore")

CHUNKS = {"time": 1, "y": 16, "x": 16}
JOBS: dict[str, dict[str, Any]] = {
    "format 3": {},
    "shards": {"shards": {"time": 1, "y": 32, "x": 32}},
    "format 2": {"zarr_format": 2},
}
FAULTS = ("InternalError", "SlowDown", "cut", "half", "slow")
_names = itertools.count()

jobs = pytest.mark.parametrize("job", JOBS)
both = pytest.mark.parametrize(
    ("client", "job"),
    [("s3fs", "format 3"), ("s3fs", "shards"), ("obstore", "shards"), ("obstore", "format 2")],
)
clients = pytest.mark.parametrize("client", ["s3fs", "obstore"])


@pytest.fixture(scope="module")
def server() -> Iterator[int]:
    with object_stores.s3_server() as port:
        yield port


@pytest.fixture
def network(server: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """The way to the server. Nothing of this machine's settings counts, and nobody waits long."""
    for name in os.environ:
        if object_stores.is_of_networks(name):
            monkeypatch.delenv(name)
    monkeypatch.setattr(settings, "retries", 8)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    with object_stores.proxy(server) as running:
        yield running
        running.rule = object_stores.passed
        sync(everything_done())
        opened = list(s3fs.S3FileSystem._cache.values())
        s3fs.S3FileSystem.clear_instance_cache()
        for file_system in opened:
            if hasattr(file_system, "_s3creator"):
                sync(file_system._s3creator.__aexit__(None, None, None))


async def everything_done() -> None:
    """Requests go on beside one that has failed, and would open a closed client again."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    await asyncio.gather(*others, return_exceptions=True)


@pytest.fixture
def bucket(server: int) -> str:
    name = f"bucket-{next(_names)}"
    object_stores.ask(server, "PUT", f"/{name}")
    return name


def options(client: str, network: Proxy) -> dict[str, Any]:
    """Storage options of a client that never tries again by itself."""
    if client == "s3fs":
        return {
            "endpoint_url": network.url,
            "config_kwargs": {"retries": {"total_max_attempts": 1}},
        }
    return {
        "backend": "obstore",
        "endpoint": network.url,
        "virtual_hosted_style_request": False,
        "client_options": {"allow_http": True},
        "retry_config": {"max_retries": 0},
    }


@pytest.fixture(scope="module")
def write(tiny_fp: Path) -> Callable[..., xtec.Summary]:
    """Write a cube of 2 dates of 20 x 24 pixels in 8 chunks, and a layer without loss."""
    common = {"model": "fp", "weights": str(tiny_fp), "chunks": CHUNKS, "progress": False}
    ds = band_variables().chunk(time=1)
    return lambda store, **more: ds.tec.to_zarr(store, **{**common, **more})


@pytest.fixture(scope="module")
def whole(
    write: Callable[..., xtec.Summary], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """A job's store on a local disk."""
    done: dict[str, Path] = {}

    def local(job: str) -> Path:
        if job not in done:
            done[job] = tmp_path_factory.mktemp("whole") / "cube.zarr"
            write(done[job], embed_weights=True, **JOBS[job])
        return done[job]

    return local


def failing_from(nth: int, method: str, part: str, fault: str = "SlowDown") -> object_stores.Rule:
    """Requests for keys with ``part`` fail, from the nth on."""
    counted = itertools.count(1)

    def rule(request: Request) -> str | None:
        wanted = request.method == method and part in request.path
        return fault if wanted and next(counted) >= nth else None

    return rule


# whole cubes


@both
def test_through_a_failing_network(
    network: Proxy,
    bucket: str,
    write: Callable[..., xtec.Summary],
    whole: Callable[[str], Path],
    client: str,
    job: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    url, storage = f"s3://{bucket}/a/cube.zarr", options(client, network)
    network.rule = flaky(len(client + job), 0.2, *FAULTS)
    with caplog.at_level(logging.INFO, "xtec.remote"):
        summary = write(url, storage_options=storage, embed_weights=True, verify=True, **JOBS[job])
    assert network.spoilt > 5
    assert f"{url}: writing " in caplog.text
    assert "retry 1 of 8 in " in caplog.text
    assert summary.store == url
    assert summary.verified.sound

    # verify= adds its attribute; all else is as on a local disk, byte for byte
    there, local = contents(open_url(url, storage)), contents(LocalStore(whole(job)))
    assert there.keys() == local.keys()
    differing = {key for key in there if there[key] != local[key]}
    assert differing <= {
        "zarr.json",
        ".zmetadata",
        "reflectance/zarr.json",
        "reflectance/.zattrs",
    }
    assert any(key.startswith(GROUP) for key in there)

    as_stored = {"engine": XtecBackend, "layout": "stored"}
    opened = xr.open_dataset(url, storage_options=storage, chunks={}, **as_stored)
    expected = xr.open_dataset(whole(job), **as_stored).load()
    opened.reflectance.attrs = expected.reflectance.attrs
    xr.testing.assert_identical(opened.load(), expected)
    (checked,) = verify(url, band_variables(), storage_options=storage)
    assert checked.sound
    assert checked.checked == (2 if job == "shards" else 8)
    found, at_home = describe(url, storage_options=storage), describe(whole(job))
    assert found["embedded_weights"] == at_home["embedded_weights"]
    assert abs(found["variables"][0]["bytes_out"] - at_home["variables"][0]["bytes_out"]) < 2000


@clients
def test_plain_zarr_and_xarray_read_it(
    network: Proxy, bucket: str, write: Callable[..., xtec.Summary], client: str
) -> None:
    """Consolidated metadata are there, where the format and xarray have them."""
    for job in ("format 3", "format 2"):
        url, storage = f"s3://{bucket}/{job[-1]}.zarr", options(client, network)
        write(url, storage_options=storage, **JOBS[job])
        keys = contents(open_url(url, storage))
        if job == "format 2":
            assert "reflectance/.zarray" in json.loads(keys[".zmetadata"])["metadata"]
        else:
            metadata = json.loads(keys["zarr.json"])["consolidated_metadata"]["metadata"]
            assert "reflectance" in metadata
        plain = FsspecStore.from_url(url, storage_options=options("s3fs", network))
        opened = xr.open_dataset(plain, engine="zarr", consolidated=True)
        assert opened.reflectance.shape == (2, 3, 20, 24)


@clients
def test_stores_that_users_open(
    network: Proxy,
    bucket: str,
    write: Callable[..., xtec.Summary],
    whole: Callable[[str], Path],
    client: str,
) -> None:
    inner = open_url(f"s3://{bucket}/cube.zarr", options(client, network))._store
    assert isinstance(inner, FsspecStore if client == "s3fs" else ObjectStore)
    assert name_of(inner) == f"s3://{bucket}/cube.zarr"
    network.rule = flaky(3, 0.2, *FAULTS)
    write(inner, embed_weights=True)
    assert contents(open_store(inner)) == contents(LocalStore(whole("format 3")))
    with pytest.raises(FileExistsError, match=f"^s3://{bucket}/cube.zarr exists"):
        write(inner)
    (checked,) = verify(inner)
    assert checked.sound


def test_weights_are_added_later(
    network: Proxy, bucket: str, write: Callable[..., xtec.Summary], whole: Callable[[str], Path]
) -> None:
    url, storage = f"s3://{bucket}/cube.zarr", options("s3fs", network)
    write(url, storage_options=storage)
    network.rule = flaky(1, 0.2, *FAULTS)
    embed_weights(url, storage_options=storage)
    there, local = contents(open_url(url, storage)), contents(LocalStore(whole("format 3")))
    assert there.keys() == local.keys()
    assert {key for key in there if there[key] != local[key]} <= {"zarr.json"}


def test_in_other_processes(
    network: Proxy, bucket: str, write: Callable[..., xtec.Summary], monkeypatch: Any
) -> None:
    """A store pickles, with the number of its retries."""
    for client in ("s3fs", "obstore"):
        monkeypatch.setattr(settings, "retries", 3)
        store = open_url(f"s3://{bucket}/{client}.zarr", options(client, network))
        monkeypatch.setattr(settings, "retries", 8)
        write(store)
        again = pickle.loads(pickle.dumps(store))
        assert isinstance(again, Retrying)
        assert again.retries == again.with_read_only(True).retries == 3
        network.rule = flaky(5, 0.2, *FAULTS)
        assert contents(again) == contents(store)
        network.rule = object_stores.passed


# interrupted by the store


@both
def test_a_write_that_is_refused_is_resumed(
    network: Proxy,
    bucket: str,
    write: Callable[..., xtec.Summary],
    whole: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    client: str,
    job: str,
) -> None:
    url, storage = f"s3://{bucket}/cube.zarr", options(client, network)
    monkeypatch.setattr(settings, "retries", 2)
    nth, part = (2, "reflectance/c/") if job == "shards" else (5, "reflectance/")
    network.rule = failing_from(nth, "PUT", part)
    with pytest.raises(StoreError, match=r"resume=True goes on") as caught:
        write(url, storage_options=storage, embed_weights=True, **JOBS[job])
    assert str(caught.value).startswith(f"{url}: writing {part}")
    assert "failed after 3 tries (" in str(caught.value)
    assert "SlowDown of a test" in str(caught.value)
    network.rule = object_stores.passed
    with pytest.raises(ValueError, match="incomplete"):
        xr.open_dataset(url, engine=XtecBackend, storage_options=storage)
    for reader in (describe, open_input):
        with pytest.raises(ValueError, match=f"^{url} is not a whole Zarr store.*--resume"):
            reader(url, storage_options=storage)
    with pytest.raises(FileExistsError, match=f"^{url} holds what an interrupted.*resume=True"):
        write(url, storage_options=storage, **JOBS[job])
    with pytest.raises(ValueError, match=f"cannot resume writing {url}, it holds something else"):
        write(url, storage_options=storage, resume=True, compression=30, **JOBS[job])
    network.rule = flaky(7, 0.1, *FAULTS)
    summary = write(url, storage_options=storage, embed_weights=True, resume=True, **JOBS[job])
    assert summary.resumed.written > 0
    assert summary.resumed.whole > 0
    assert contents(open_url(url, storage)) == contents(LocalStore(whole(job)))


def test_the_end_of_a_write_is_refused(
    network: Proxy,
    bucket: str,
    write: Callable[..., xtec.Summary],
    whole: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url, storage = f"s3://{bucket}/cube.zarr", options("s3fs", network)
    monkeypatch.setattr(settings, "retries", 1)
    network.rule = failing_from(2, "PUT", "cube.zarr/zarr.json", "InternalError")
    with pytest.raises(StoreError, match=r"writing zarr.json failed after 2 tries"):
        write(url, storage_options=storage, embed_weights=True)
    network.rule = object_stores.passed
    summary = write(url, storage_options=storage, embed_weights=True, resume=True)
    assert summary.resumed.written == 0
    assert contents(open_url(url, storage)) == contents(LocalStore(whole("format 3")))


@clients
def test_overwriting_takes_what_is_there_and_no_more(
    network: Proxy, server: int, bucket: str, write: Callable[..., xtec.Summary], client: str
) -> None:
    url, storage = f"s3://{bucket}/cube.zarr", options(client, network)
    # a folder as consoles make them, and a neighbour whose name goes on
    object_stores.ask(server, "PUT", f"/{bucket}/cube.zarr/")
    object_stores.ask(server, "PUT", f"/{bucket}/cube.zarr2/mine", b"mine")
    write(url, storage_options=storage, zarr_format=2)
    first = contents(open_url(url, storage))
    with pytest.raises(FileExistsError, match=f"^{url} exists: pass overwrite=True"):
        write(url, storage_options=storage)
    assert contents(open_url(url, storage)) == first
    network.seen.clear()
    network.rule = flaky(2, 0.2, *FAULTS)
    write(url, storage_options=storage, overwrite=True)
    there = contents(open_url(url, storage))
    assert not [key for key in there if key.endswith((".zarray", ".zattrs", ".zgroup"))]
    assert object_stores.ask(server, "GET", f"/{bucket}/cube.zarr2/mine") == b"mine"
    bulk = [request for request in network.seen if request.method == "POST"]
    assert 1 <= len(bulk) < len(first)
    object_stores.ask(server, "PUT", f"/{bucket}/cube.zarr/thesis.txt", b"mine")
    with pytest.raises(FileExistsError, match=f"^{url} holds .'thesis.txt'., which is no part"):
        write(url, storage_options=storage, overwrite=True)
    assert object_stores.ask(server, "GET", f"/{bucket}/cube.zarr/thesis.txt") == b"mine"


def test_what_cannot_be_deleted_is_an_error(network: Proxy, server: int, bucket: str) -> None:
    """S3 answers such a request with 200; so does this store, which keeps everything."""
    store = open_url(f"s3://{bucket}/cube.zarr", options("s3fs", network))
    object_stores.ask(server, "PUT", f"/{bucket}/cube.zarr/kept", b"x")

    async def keep(paths: list[str]) -> list[str]:
        return []

    store._store.fs._rm = keep
    with pytest.raises(StoreError, match=r"1 of 1 keys could not be deleted, such as kept"):
        sync(store.clear())
    assert contents(store) == {"kept": b"x"}


# how much is asked for


@clients
def test_a_chunk_in_a_shard_is_a_range(
    network: Proxy, bucket: str, write: Callable[..., xtec.Summary], client: str
) -> None:
    url, storage = f"s3://{bucket}/cube.zarr", options(client, network)
    write(url, storage_options=storage, **JOBS["shards"])
    as_stored = {"engine": XtecBackend, "layout": "stored"}
    opened = xr.open_dataset(url, storage_options=storage, **as_stored).reflectance
    network.seen.clear()
    opened.isel(time=1, x=slice(0, 16), y=slice(0, 16)).load()
    asked = [request for request in network.seen if "reflectance/c/" in request.path]
    assert [request.method for request in asked] == ["GET", "GET"]
    assert all(request.range.startswith("bytes=") for request in asked)
    index = asked[0].range
    assert index.startswith("bytes=-")  # 16 bytes for each of 4 places, and a checksum
    assert int(index.removeprefix("bytes=-")) == 16 * 4 + 4


@clients
def test_requests_do_not_grow_beyond_the_chunks(
    network: Proxy, bucket: str, write: Callable[..., xtec.Summary], client: str
) -> None:
    """One request to read a chunk, one to write it, and listings for the sizes."""
    url, storage = f"s3://{bucket}/cube.zarr", options(client, network)

    def chunks(method: str) -> int:
        asked = [r for r in network.seen if r.method == method and "reflectance/c/" in r.path]
        return len(asked)

    # whole chunks: zarr reads one first that it writes in part, at an edge
    write(url, storage_options=storage, chunks={"time": 1, "y": 20, "x": 24})
    assert chunks("PUT") == 2
    assert chunks("GET") == chunks("HEAD") == 0
    network.seen.clear()
    as_stored = {"engine": XtecBackend, "layout": "stored"}
    xr.open_dataset(url, storage_options=storage, **as_stored).reflectance.load()
    assert chunks("GET") == 2
    assert chunks("HEAD") == 0
    network.seen.clear()
    describe(url, storage_options=storage)
    assert chunks("GET") == chunks("HEAD") == 0


@clients
def test_listings_are_not_remembered(network: Proxy, server: int, bucket: str, client: str) -> None:
    """Other processes write as well."""
    store = open_url(f"s3://{bucket}/cube.zarr", options(client, network))
    mine = Retrying(
        FsspecStore.from_url(
            f"s3://{bucket}/cube.zarr",
            storage_options={**options("s3fs", network), "use_listings_cache": True},
        )
    )
    for one in (store, mine):
        object_stores.ask(server, "PUT", f"/{bucket}/cube.zarr/s/first", b"12")
        assert sorted(contents(one)) == ["s/first"]
        object_stores.ask(server, "PUT", f"/{bucket}/cube.zarr/s/second", b"345")
        assert sorted(contents(one)) == ["s/first", "s/second"]
        assert sync(one.exists("s/second"))
        assert sync(one.getsize("s/second")) == 3
        assert sync(one.getsize_prefix("s")) == 5
        object_stores.ask(server, "DELETE", f"/{bucket}/cube.zarr/s/second")
        assert sorted(contents(one)) == ["s/first"]
        assert not sync(one.exists("s/second"))


# errors that stay


@clients
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("AccessDenied", r"writing zarr.json failed \(.*AccessDenied.*\): check the credentials"),
        ("InvalidAccessKeyId", r"\(.*InvalidAccessKeyId.*\): check the credentials"),
    ],
)
def test_refused_access_is_said_at_once(
    network: Proxy,
    bucket: str,
    write: Callable[..., xtec.Summary],
    client: str,
    fault: str,
    message: str,
) -> None:
    url, storage = f"s3://{bucket}/cube.zarr", options(client, network)
    network.rule = failing_from(1, "PUT", "cube.zarr", fault)
    with pytest.raises(PermissionError, match=message) as caught:
        write(url, storage_options=storage)
    assert str(caught.value).startswith(url)
    assert "\n" not in str(caught.value)
    assert sum(request.method == "PUT" for request in network.seen) == 1
    network.rule = failing_from(1, "GET", "", fault)
    network.seen.clear()
    with pytest.raises(PermissionError, match=r"check the credentials"):
        write(url, storage_options=storage)
    with pytest.raises(PermissionError, match=r"check the credentials"):
        open_input(url, storage_options=storage)


@clients
def test_a_bucket_that_does_not_exist(
    network: Proxy, write: Callable[..., xtec.Summary], client: str
) -> None:
    url, storage = "s3://no-such-bucket/cube.zarr", options(client, network)
    with pytest.raises(FileNotFoundError, match=f"^{url}: .*there is no such bucket"):
        write(url, storage_options=storage)
    for reader in (describe, open_input, verify):
        with pytest.raises((ValueError, FileNotFoundError), match=r"no such bucket|nothing at s3"):
            reader(url, storage_options=storage)


@clients
def test_nothing_there(network: Proxy, bucket: str, client: str) -> None:
    url, storage = f"s3://{bucket}/cube.zarr", options(client, network)
    for reader in (describe, open_input, verify):
        with pytest.raises(ValueError, match=f"^there is nothing at {url}"):
            reader(url, storage_options=storage)


def test_no_credentials(
    network: Proxy, bucket: str, write: Callable[..., xtec.Summary], monkeypatch: Any
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("HOME", os.devnull)
    storage = {**options("s3fs", network), "anon": False}
    with pytest.raises(PermissionError, match=r"no credentials were found; set AWS_ACCESS_KEY_ID"):
        write(f"s3://{bucket}/cube.zarr", storage_options=storage)
    assert not network.seen


# URLs


@pytest.mark.parametrize(
    ("url", "storage", "message"),
    [
        ("s3://bucket/cube.zarr.zip", {}, r"a zip at a URL.*name a .zarr"),
        ("s3:///cube.zarr", {}, r"names no bucket: write s3://bucket/cube.zarr"),
        ("gs://", {}, r"names no bucket: write gs://bucket/cube.zarr"),
        ("s3://b/cube.zarr", {"backend": "boto"}, r"backend is 'boto': choose 'fsspec' or"),
        ("s3://b/c.zarr", {"backend": "obstore", "profle": "me"}, r"'profle'.*storage_options are"),
        ("ftps3://b/cube.zarr", {}, r"Protocol not known: ftps3"),
    ],
)
def test_urls_that_are_refused(
    write: Callable[..., xtec.Summary],
    tmp_path: Path,
    monkeypatch: Any,
    url: str,
    storage: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        write(url, storage_options=storage)
    assert "\n" not in str(caught.value)
    for reader in (describe, open_input, verify):
        with pytest.raises(ValueError, match=message):
            reader(url, storage_options=storage)
    with pytest.raises(ValueError, match=message):
        xr.open_dataset(url, engine=XtecBackend, storage_options=storage)
    assert not list(tmp_path.iterdir())


def test_packages_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"obstore"}
    monkeypatch.setattr(remote, "_has", lambda package: package in installed)
    opened = open_url("s3://bucket/a/cube.zarr", {"region": "us-east-1"})
    assert isinstance(opened._store, ObjectStore)
    assert name_of(opened) == str(opened) == "s3://bucket/a/cube.zarr"
    assert name_of(open_url("gs://bucket/c.zarr", {"skip_signature": True})) == "gs://bucket/c.zarr"
    installed.clear()
    with pytest.raises(ImportError, match=r"needs s3fs, or obstore: pip install s3fs .*xtec\[s3\]"):
        open_url("s3://bucket/cube.zarr")
    with pytest.raises(ImportError, match=r"needs gcsfs.*xtec\[gcs\]"):
        open_url("gs://bucket/cube.zarr")
    with pytest.raises(ImportError, match=r"needs obstore: pip install obstore .*xtec\[obstore\]"):
        open_url("s3://bucket/cube.zarr", {"backend": "obstore"})


def test_google_storage_is_opened() -> None:
    """Only opened: there is no server of Google's here."""
    pytest.importorskip("gcsfs", reason="the extra 'gcs' is optional")
    store = open_url("gs://bucket/a/cube.zarr", {"token": "anon"})
    assert isinstance(store, Retrying)
    assert name_of(store) == "gs://bucket/a/cube.zarr"


def test_near_stores_are_left_alone(tmp_path: Path) -> None:
    for store in (
        MemoryStore(),
        LocalStore(tmp_path),
        open_url(f"file://{tmp_path}/a.zarr"),
        open_url("memory://remote/a.zarr"),
        ObjectStore(obstore.store.MemoryStore()),
        ObjectStore(obstore.store.LocalStore(tmp_path)),
    ):
        assert for_reading(store) is store
        assert open_store(store) is store
    assert for_reading(tmp_path) is tmp_path
    assert name_of(LocalStore(tmp_path)) == str(tmp_path)


# retries


class Failing(WrapperStore[MemoryStore]):
    """Raises these errors, one a call."""

    def __init__(self, *errors: Exception) -> None:
        super().__init__(MemoryStore())
        self.errors = list(errors)

    async def set(self, key: str, value: Any) -> None:
        if self.errors:
            raise self.errors.pop(0)
        await super().set(key, value)


def some_bytes() -> Any:
    return default_buffer_prototype().buffer.from_bytes(b"some")


def test_waits_double_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr(remote.asyncio, "sleep", sleep)
    store = Retrying(Failing(*[TimeoutError("slow")] * 9), retries=9)
    sync(store.set("a", some_bytes()))
    assert sync(store.get("a", default_buffer_prototype())).to_bytes() == b"some"
    longest = [0.25, 0.5, 1, 2, 4, 8, 16, 30, 30]
    assert len(waits) == 9
    assert all(bound / 2 <= wait <= bound for wait, bound in zip(waits, longest))
    assert len({wait / bound for wait, bound in zip(waits, longest)}) > 1
    waits.clear()
    with pytest.raises(StoreError, match=r"writing a failed after 3 tries \(slow\)"):
        sync(Retrying(Failing(*[TimeoutError("slow")] * 9), retries=2).set("a", some_bytes()))
    assert len(waits) == 2


@pytest.mark.parametrize(
    "error",
    [FileNotFoundError("x"), PermissionError("x"), OSError(errno.ENOSPC, "full"), ValueError("x")],
)
def test_errors_that_stay_are_not_tried_again(error: Exception) -> None:
    failing = Failing(error, error)
    with pytest.raises(type(error)):
        sync(Retrying(failing, retries=5).set("a", some_bytes()))
    assert len(failing.errors) == 1


def test_errors_by_what_they_mean() -> None:
    from aiohttp import ClientPayloadError, ServerDisconnectedError
    from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError
    from obstore.exceptions import GenericError, PermissionDeniedError

    def answered(status: int, code: str) -> Exception:
        response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
        error = OSError(errno.EIO, code)
        error.__cause__ = ClientError(response, "PutObject")
        return error

    class HttpError(Exception):  # as gcsfs has it
        def __init__(self, code: int) -> None:
            self.code = code

    for error, expected in (
        (answered(503, "SlowDown"), "passing"),
        (answered(502, "502"), "passing"),
        (answered(429, "TooManyRequests"), "passing"),
        (answered(400, "RequestTimeout"), "passing"),
        (answered(400, "ExpiredToken"), "denied"),
        (answered(403, "AccessDenied"), "denied"),
        (answered(501, "NotImplemented"), "other"),
        (answered(301, "PermanentRedirect"), "other"),
        (answered(404, "NoSuchBucket"), "absent"),
        (HttpError(503), "passing"),
        (HttpError(401), "denied"),
        (ClientPayloadError("half"), "passing"),
        (ServerDisconnectedError(), "passing"),
        (EndpointConnectionError(endpoint_url="http://x"), "passing"),
        (ConnectionResetError(errno.ECONNRESET, "reset"), "passing"),
        (OSError(errno.ENETUNREACH, "unreachable"), "passing"),
        (TimeoutError(), "passing"),
        (NoCredentialsError(), "unknown"),
        (GenericError("Generic S3 error: HTTP error: error sending request"), "passing"),
        (GenericError("x - Server returned non-2xx status code: 503 Slow"), "passing"),
        (GenericError("x - Server returned non-2xx status code: 403 No"), "denied"),
        (GenericError("Error performing PUT http://169.254.169.254/latest"), "unknown"),
        (GenericError("Missing region"), "other"),
        (PermissionDeniedError("no"), "denied"),
        (OSError(errno.ENOSPC, "full"), "full"),
        (OSError(errno.EROFS, "read-only"), "closed"),
        (NotADirectoryError(errno.ENOTDIR, "a file"), "closed"),
        (PermissionError(errno.EACCES, "no"), "closed"),
        (ValueError("wrong"), None),
        (StoreError("said already"), None),
    ):
        assert kind(error) == expected, repr(error)
        better = explained(error, "s3://b/c.zarr", "writing a")
        assert (better is error) == (expected is None)
        assert "\n" not in str(better)


# local disks


class Full(WrapperStore[Any]):
    """A disk with room for some keys, or none at all."""

    def __init__(self, store: Any, room: int = 10**9, number: int = errno.ENOSPC) -> None:
        super().__init__(store)
        self.room, self.number = room, number

    async def set(self, key: str, value: Any) -> None:
        self.room -= 1
        if self.room < 0:
            raise OSError(self.number, os.strerror(self.number), key)
        await super().set(key, value)


@jobs
def test_no_space_left(
    tmp_path: Path, write: Callable[..., xtec.Summary], whole: Callable[[str], Path], job: str
) -> None:
    local = LocalStore(tmp_path / "cube.zarr")
    room = sum(not key.startswith(GROUP) for key in contents(LocalStore(whole(job)))) - 2
    with pytest.raises(StoreError, match=r"No space left.*make room.*resume=True goes on") as found:
        write(Full(local, room), **JOBS[job])
    assert found.value.errno == errno.ENOSPC
    assert "\n" not in str(found.value)
    with pytest.raises(ValueError, match="incomplete"):
        xr.open_zarr(tmp_path / "cube.zarr")
    there = contents(local)
    assert there
    write(local, resume=True, embed_weights=True, **JOBS[job])
    assert contents(local) == contents(LocalStore(whole(job)))


def test_files_that_grow_too_large(tmp_path: Path) -> None:
    """The system's own error, in a process that may not write more than 20 kB a file."""
    pytest.importorskip("resource", reason="there are no such limits on this system")
    program = """
import resource, sys
import numpy as np, xarray as xr, xtec
pixels = np.random.default_rng(0).integers(1, 10000, (2, 3, 64, 64)).astype("uint16")
ds = xr.DataArray(pixels, dims=("time", "band", "y", "x"), name="s2",
                  coords={"band": ["B02", "B03", "B04"]}).to_dataset().chunk(time=1)
if sys.argv[2] == "limited":
    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
chunks = {"time": 1, "y": 64, "x": 64}
try:
    ds.tec.to_zarr(sys.argv[1], max_error=0, chunks=chunks, progress=False, resume=True)
except OSError as error:
    print(error)
"""
    out = tmp_path / "cube.zarr"

    def run(how: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", program, str(out), how],
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        return done.stdout

    text = run("limited")
    assert text.startswith(f"{out}: writing s2/c/")
    assert "File too large" in text
    assert "resume=True goes on with it" in text
    with pytest.raises(ValueError, match="incomplete"):
        xr.open_zarr(out)
    assert run("free") == ""
    assert xr.open_zarr(out).s2.shape == (2, 3, 64, 64)


def test_places_that_cannot_be_written(tmp_path: Path, write: Callable[..., xtec.Summary]) -> None:
    closed = Full(LocalStore(tmp_path / "cube.zarr"), 0, errno.EROFS)
    with pytest.raises(StoreError, match=r"this place cannot be written; change its permissions"):
        write(closed)
    if os.geteuid():
        folder = tmp_path / "closed"
        folder.mkdir(mode=0o500)
        with pytest.raises(StoreError, match=r"making the folder failed.*cannot be written"):
            write(folder / "cube.zarr")
        assert not list(folder.iterdir())


# the command


@clients
def test_the_command(
    tmp_path: Path,
    network: Proxy,
    bucket: str,
    tiny_fp: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    client: str,
) -> None:
    url, storage = f"s3://{bucket}/cube.zarr", json.dumps(options(client, network))

    def run(*arguments: str) -> tuple[int, str, str]:
        whole = ["xtec", *arguments, "--storage-options", storage]
        monkeypatch.setattr(sys, "argv", whole)
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        return int(end.value.code or 0), captured.out, captured.err

    cube(nodata=0).to_dataset().to_zarr(tmp_path / "in.zarr")
    network.rule = failing_from(4, "PUT", "s2/c/")
    monkeypatch.setattr(settings, "retries", 1)
    compress = ["compress", str(tmp_path / "in.zarr"), url, "--model", "fp"]
    compress += ["--weights", str(tiny_fp), "--chunks", "time=1,y=16,x=16"]
    code, _, text = run(*compress)
    assert code == 2
    assert "retry 1 of 1 in" in text
    last = text.splitlines()[-1]
    assert last.startswith(f"xtec: {url}: writing s2/c/")
    assert "--resume goes on with it" in last
    network.rule = object_stores.passed
    assert run(*compress, "--resume")[0] == 0
    code, text, _ = run("info", url)
    assert code == 0
    assert text.startswith(f"{url} (Zarr format 3)")
    code, text, _ = run("verify", url, "--against", str(tmp_path / "in.zarr"))
    assert code == 0
    assert "8 of 8 chunks decode; largest error" in text
    assert run("decompress", url, f"s3://{bucket}/out.zarr")[0] == 0
    assert run("decompress", url, str(tmp_path / "out.zarr"))[0] == 0
    back = open_input(f"s3://{bucket}/out.zarr", storage_options=options(client, network))
    np.testing.assert_array_equal(back.s2, xr.open_zarr(tmp_path / "out.zarr").s2)
    code, _, text = run("decompress", url, f"s3://{bucket}/out.nc")
    assert code == 2
    assert "only Zarr is written there" in text
    # compressing what lies there
    assert run("compress", url, str(tmp_path / "again.zarr"), *compress[3:])[0] == 0
    storage = "region=eu"
    code, _, text = run("info", url)
    assert code == 2
    assert "--storage-options is 'region=eu': write JSON" in text


def test_files_go_nowhere_by_a_url(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"only Zarr is written there, name it .zarr"):
        save(band_variables(), "s3://bucket/cube.zarr.zip")
    assert not list(tmp_path.iterdir())
