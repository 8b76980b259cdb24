"""Stores that carry their own weights, read where there are none; and what such a store cannot do
to its reader."""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import json
import os
import pickle
import shutil
import tomllib
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tec.codec
import tiny
import torch
import xarray as xr
import zarr
from arrays import run
from cubes import cube
from safetensors.torch import save
from tec import loading, weights
from tec.errors import WeightsError
from zarr.storage import MemoryStore, ZipStore

import xtec
from xtec import embedded
from xtec.backend import XtecBackend
from xtec.embedded import GROUP, embed_weights
from xtec.report import describe
from xtec.writing import human

CHUNKS = {"time": 2, "y": 16, "x": 16}


@pytest.fixture
def forget(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call it for a process that has loaded no weights and was offered none."""

    def anew() -> None:
        monkeypatch.setattr(weights, "_loaded", OrderedDict())
        monkeypatch.setattr(weights, "_offered", OrderedDict())

    anew()
    return anew


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint in a file that a test may delete."""
    (tmp_path / "elsewhere").mkdir()
    return tiny.write(tmp_path / "elsewhere" / "elic.safetensors", "elic")


def write(store: Any, checkpoint: Path, *, model: str = "elic", **options: Any) -> np.ndarray:
    """A store with its weights inside; returns its pixels, decoded with the file."""
    data = cube(nodata=0, time=3)
    options = {"model": model, "weights": checkpoint, "chunks": CHUNKS, **options}
    data.tec.to_zarr(store, embed_weights=True, **options)
    place = ZipStore(store, mode="r") if str(store).endswith(".zip") else store
    return xr.open_zarr(place).s2.values


# where the machine has no weights


def test_a_store_carries_its_weights(
    tmp_path: Path, checkpoint: Path, forget: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, inner = [], embedded._read

    async def spy(group: Any, name: str, most: int) -> bytes:
        read.append(name)
        return await inner(group, name, most)

    monkeypatch.setattr(embedded, "_read", spy)
    wanted = write(tmp_path / "a.zarr", checkpoint)
    digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    checkpoint.unlink()
    forget()
    opened = xr.open_zarr(tmp_path / "a.zarr")
    assert sorted(opened.variables) == ["band", "cloud", "s2", "spatial_ref", "time", "x", "y"]
    np.testing.assert_array_equal(opened.s2.values, wanted)
    assert list(weights._offered) == [digest]
    assert opened.s2.data.npartitions == 8
    assert read == [digest], "eight chunks asked for it at once"
    # once a process, whatever is read
    (key,) = weights._loaded
    network = weights._loaded[key]
    np.testing.assert_array_equal(
        xr.open_zarr(tmp_path / "a.zarr").s2[1:, :, 3:9].values, wanted[1:, :, 3:9]
    )
    assert weights._loaded == {key: network}
    assert read == [digest]


def test_without_them_the_error_says_what_to_do(
    tmp_path: Path, checkpoint: Path, forget: Any
) -> None:
    data = cube(nodata=0)
    data.tec.compress(model="elic", weights=checkpoint).to_zarr(tmp_path / "a.zarr")
    wanted = xr.open_zarr(tmp_path / "a.zarr").s2.values
    moved = checkpoint.rename(checkpoint.with_name("moved.safetensors"))
    forget()
    with pytest.raises(WeightsError, match=r"no checkpoint at .*embed_weights=True.*engine=.xtec"):
        xr.open_zarr(tmp_path / "a.zarr").s2.load()
    with pytest.raises(WeightsError, match="no checkpoint at"):
        embed_weights(tmp_path / "a.zarr")
    # embedded afterwards, where they are; the same process reads on
    moved.rename(checkpoint)
    assert embed_weights(tmp_path / "a.zarr") == checkpoint.stat().st_size
    checkpoint.unlink()
    forget()
    np.testing.assert_array_equal(xr.open_zarr(tmp_path / "a.zarr").s2.values, wanted)
    # what is there already needs no file
    forget()
    before = describe(tmp_path / "a.zarr")["embedded_weights"]
    embed_weights(tmp_path / "a.zarr")
    assert describe(tmp_path / "a.zarr")["embedded_weights"] == before


@pytest.mark.parametrize("options", [{"shards": {"y": 32, "x": 32}}, {"zarr_format": 2}])
def test_the_engine_finds_them_where_the_codec_sees_no_store(
    tmp_path: Path, checkpoint: Path, forget: Any, options: dict[str, Any]
) -> None:
    wanted = write(tmp_path / "a.zarr", checkpoint, **options)
    checkpoint.unlink()
    forget()
    with pytest.raises(WeightsError, match='engine="xtec"'):
        xr.open_zarr(tmp_path / "a.zarr").s2.load()
    for chunks in (None, {}):
        forget()
        opened = xr.open_dataset(tmp_path / "a.zarr", engine=XtecBackend, chunks=chunks)
        np.testing.assert_array_equal(opened.s2.values, wanted)
        forget()
        again = pickle.loads(pickle.dumps(opened.s2[:, :, 5:]))
        np.testing.assert_array_equal(again.values, wanted[:, :, 5:])


@pytest.mark.parametrize("path", ["a.zarr", "a.zarr.zip", "memory://embedded/{}.zarr", None])
@pytest.mark.parametrize("zarr_format", [3, 2])
def test_stores_of_every_kind(
    tmp_path: Path, checkpoint: Path, forget: Any, path: str | None, zarr_format: int
) -> None:
    store: Any = MemoryStore() if path is None else path
    if path is not None:
        store = path.format(zarr_format) if "://" in path else tmp_path / path
    wanted = write(store, checkpoint, zarr_format=zarr_format)
    checkpoint.unlink()
    forget()
    place = ZipStore(store, mode="r") if str(path).endswith("zip") else store
    opened = xr.open_dataset(place, engine=XtecBackend)
    np.testing.assert_array_equal(opened.s2.values, wanted)
    # the group is in the consolidated metadata, and xarray can open it
    root = zarr.open_group(place, mode="r")
    consolidated = root.metadata.consolidated_metadata
    assert consolidated is not None
    assert GROUP in consolidated.metadata
    tree = xr.open_datatree(place, engine="zarr", chunks=None)
    assert list(tree.children) == [GROUP]
    (held,) = tree[GROUP].data_vars.values()
    assert held.dtype == np.uint8
    assert held.dims == (f"byte_{held.name[:8]}",)
    assert hashlib.sha256(held.values.tobytes()).hexdigest() == held.name


def test_an_array_in_a_group_of_a_group(tmp_path: Path, checkpoint: Path, forget: Any) -> None:
    store = tmp_path / "a.zarr"
    packed = cube(nodata=0).tec.compress(model="elic", weights=checkpoint)
    packed.to_zarr(store, group="tiles/2020", consolidated=False)
    assert embed_weights(store) == checkpoint.stat().st_size
    wanted = xr.open_zarr(store, group="tiles/2020", consolidated=False).s2.values
    checkpoint.unlink()
    for engine in ("zarr", XtecBackend):
        forget()
        opened = xr.open_dataset(store, engine=engine, group="tiles/2020", consolidated=False)
        np.testing.assert_array_equal(opened.s2.values, wanted)
    # nearer ones do as well
    zarr.open_group(store, mode="r+")
    shutil.move(store / GROUP, store / "tiles" / GROUP)
    forget()
    opened = xr.open_zarr(store, group="tiles/2020", consolidated=False)
    np.testing.assert_array_equal(opened.s2.values, wanted)


def test_chunks_of_one_date_and_of_several(tmp_path: Path, forget: Any) -> None:
    """Built in: two checkpoints, for which each file is stored once."""
    data = cube(nodata=0, time=3)
    summary = data.tec.to_zarr(tmp_path / "a.zarr", chunks=CHUNKS, embed_weights=True)
    group = zarr.open_group(tmp_path / "a.zarr" / GROUP, mode="r")
    manifest = weights.manifest()["S2L2A"]
    said = dict(group.attrs)["checkpoints"]
    assert {d: e["models"] for d, e in said.items()} == {  # type: ignore[union-attr]
        manifest["tt"]["sha256"]: ["tt"],
        manifest["elic"]["sha256"]: ["elic"],
    }
    names = manifest["tt"]["files"]
    sizes = [(weights.FOLDER / name).stat().st_size for name in names]
    assert sorted(array.size for _, array in group.arrays()) == sorted(sizes)
    found = describe(tmp_path / "a.zarr")
    assert found["embedded_weights"]["bytes"] == sum(sizes) == summary.weights_out
    assert ("weights inside the store", human(sum(sizes))) in summary.rows()
    assert found["other_variables"] == ["band", "cloud", "spatial_ref", "time", "x", "y"]


def another_version(folder: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """As if this package had other built-in weights."""
    folder.mkdir()
    entries = {}
    for model in ("elic", "fp"):
        file = tiny.write(folder / f"{model}.safetensors", model, seed)
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        entries[model] = {"files": [file.name], "sha256": digest}
    monkeypatch.setattr(weights, "FOLDER", folder)
    monkeypatch.setattr(weights, "manifest", lambda: {"S2L2A": entries})


def test_built_in_weights_of_another_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forget: Any
) -> None:
    another_version(tmp_path / "old", monkeypatch, seed=1)
    data = cube(nodata=0)
    data.tec.to_zarr(tmp_path / "a.zarr", model="elic", embed_weights=True)
    wanted = xr.open_zarr(tmp_path / "a.zarr").s2.values
    data.tec.to_zarr(tmp_path / "bare.zarr", model="elic")
    another_version(tmp_path / "new", monkeypatch, seed=2)
    forget()
    np.testing.assert_array_equal(xr.open_zarr(tmp_path / "a.zarr").s2.values, wanted)
    forget()
    with pytest.raises(WeightsError, match=r"have sha256 .*is needed: install the xtec version"):
        xr.open_zarr(tmp_path / "bare.zarr").s2.load()
    # To write with weights that are not this machine's is another matter.
    opened = xr.open_zarr(tmp_path / "a.zarr").load()
    forget()
    with pytest.raises(WeightsError, match="install the xtec version"):
        opened.to_zarr(tmp_path / "again.zarr")


def test_two_worker_processes_without_weights(tmp_path: Path, checkpoint: Path) -> None:
    distributed = pytest.importorskip("distributed", reason="the extra 'distributed' is optional")
    small = {"chunks": {"time": 1, "y": 8, "x": 8}}
    wanted = {
        "plain": write(tmp_path / "plain.zarr", checkpoint, **small),
        "sharded": write(tmp_path / "sharded.zarr", checkpoint, shards={"y": 16, "x": 16}, **small),
        "old": write(tmp_path / "old.zarr", checkpoint, zarr_format=2, **small),
    }
    checkpoint.unlink()

    def loaded() -> list[str]:
        return [digest for _, digest, *_ in weights._loaded]

    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=2, dashboard_address=":0"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        client.wait_for_workers(2)
        assert len({os.getpid(), *client.run(os.getpid).values()}) == 3
        assert list(client.run(loaded).values()) == [[], []]
        for name, pixels in wanted.items():
            engine = "zarr" if name == "plain" else XtecBackend
            opened = xr.open_dataset(tmp_path / f"{name}.zarr", engine=engine, chunks={})
            assert opened.s2.data.npartitions > 10
            found = opened.s2.data.compute()  # in other batches than `pixels`
            np.testing.assert_allclose(found.astype(int), pixels, rtol=0, atol=1)
        one, other = client.run(loaded).values()
    assert len(one) == 1, "both have decoded, with what the stores have"
    assert one == other


# the engine


def test_the_engine_is_light_and_offers_chunks_of_chunks(tmp_path: Path) -> None:
    data = cube(nodata=0, y=64, x=64)
    data.tec.to_zarr(tmp_path / "a.zarr", model="fp", chunks=CHUNKS)
    printed = run(
        f"""
        import sys, xarray as xr
        from xtec.backend import XtecBackend
        print("zarr" in sys.modules)
        ds = xr.open_dataset({str(tmp_path / "a.zarr")!r}, engine=XtecBackend, chunks={{}})
        heavy = ("torch", "numba", "rioxarray", "rich", "huggingface_hub", "typer", "rasterio")
        print([m for m in heavy if m in sys.modules], ds.s2.chunks)
        """
    )
    assert printed.splitlines() == ["False", "[] ((2,), (3,), (32, 32), (32, 32))"]


@pytest.mark.skipif(not hasattr(xr.Dataset, "load_async"), reason="xarray cannot load_async yet")
@pytest.mark.parametrize("shards", [None, {"y": 32, "x": 32}])
def test_the_engine_in_an_event_loop_of_the_user(
    tmp_path: Path, checkpoint: Path, forget: Any, shards: dict[str, int] | None
) -> None:
    wanted = write(tmp_path / "a.zarr", checkpoint, shards=shards)
    checkpoint.unlink()
    forget()
    opened = xr.open_dataset(tmp_path / "a.zarr", engine=XtecBackend)
    loaded = asyncio.run(opened.load_async())
    np.testing.assert_array_equal(loaded.s2.values, wanted)


def test_the_engine_has_an_entry_point() -> None:
    project = tomllib.loads((Path(xtec.__file__).parents[1] / "pyproject.toml").read_text())
    named = project["project"]["entry-points"]["xarray.backends"]
    module, _, name = named["xtec"].partition(":")
    assert getattr(importlib.import_module(module), name) is XtecBackend
    assert xr.backends.BackendEntrypoint in XtecBackend.__mro__
    assert not XtecBackend().guess_can_open("a.zarr"), "unless it is asked for by name"


def test_the_engine_reads_as_zarr_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    inner = tec.codec.decode_many

    def spy(streams: Any, **options: Any) -> Any:
        seen.append(len(streams))
        return inner(streams, **options)

    data = cube("float32", y=64, x=64, units="1").where(cube(y=64, x=64) != 0)
    data.tec.to_zarr(tmp_path / "a.zarr", model="fp", scale=1e-4, chunks=CHUNKS)
    wanted = xr.open_zarr(tmp_path / "a.zarr").load()
    monkeypatch.setattr(tec.codec, "decode_many", spy)
    opened = xr.open_dataset(tmp_path / "a.zarr", engine=XtecBackend, chunks={})
    assert opened.s2.attrs == wanted.s2.attrs
    assert opened.s2.encoding["chunks"] == wanted.s2.encoding["chunks"]
    xr.testing.assert_allclose(opened.load(), wanted, atol=1e-4)  # batches differ by 1 DN
    assert seen == [4] * 4
    part = xr.open_dataset(tmp_path / "a.zarr", engine=XtecBackend, drop_variables="cloud")
    some = wanted.drop_vars("cloud").isel(x=[3, 20])
    xr.testing.assert_allclose(part.isel(x=[3, 20]), some, atol=1e-4)
    opened.tec.to_zarr(tmp_path / "b.zarr", model="fp", scale=1e-4)
    assert xr.open_zarr(tmp_path / "b.zarr").s2.shape == wanted.s2.shape


# what may be wrong with a store


ZSTD = {"name": "zstd", "configuration": {"level": 0, "checksum": False}}


def stored(tmp_path: Path, checkpoint: Path) -> tuple[Path, Path]:
    """A store with weights that only it has, and the folder of the array that holds them."""
    write(tmp_path / "a.zarr", checkpoint)
    checkpoint.unlink()
    (folder,) = (f for f in (tmp_path / "a.zarr" / GROUP).iterdir() if f.is_dir())
    return tmp_path / "a.zarr", folder


def change(file: Path, edit: Any) -> None:
    metadata = json.loads(file.read_text())
    edit(metadata)
    file.write_text(json.dumps(metadata))


def put(store: Path, *files: bytes, digest: str | None = None) -> None:
    """Give a store other weights than it had."""
    group = zarr.open_group(store / GROUP, mode="r+")
    for data in files:
        name = hashlib.sha256(data).hexdigest()
        embedded._write(group, name, np.frombuffer(data, np.uint8))
    names = [hashlib.sha256(data).hexdigest() for data in files]
    digest = digest or hashlib.sha256(b"".join(files)).hexdigest()
    group.attrs["checkpoints"] = {digest: {"models": ["elic"], "files": names}}


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda store, folder: flip(folder / "c" / "0"), "sha256 of .* is another one"),
        (lambda store, folder: (folder / "c" / "0").unlink(), "sha256 of .* is another one"),
        (lambda store, folder: shutil.rmtree(folder), "is missing"),
        (
            lambda store, folder: change(folder / "zarr.json", lambda m: m.update(shape=[2**40])),
            "has 1099511627776 bytes",
        ),
        (
            lambda store, folder: change(
                folder / "zarr.json",
                lambda m: m["chunk_grid"]["configuration"].update(chunk_shape=[2**40]),
            ),
            "is no array of bytes",
        ),
        (
            lambda store, folder: change(folder / "zarr.json", lambda m: m["codecs"].append(ZSTD)),
            "is no array of bytes",
        ),
        (
            lambda store, folder: change(
                folder / "zarr.json", lambda m: m["codecs"].append({"name": "no such codec"})
            ),
            "",
        ),
        (
            lambda store, folder: change(
                store / GROUP / "zarr.json", lambda m: m["attributes"].update(checkpoints=[1])
            ),
            "makes no sense",
        ),
        (
            lambda store, folder: change(
                store / GROUP / "zarr.json",
                lambda m: next(iter(m["attributes"]["checkpoints"].values())).update(
                    files=["../s2/c/0/0/0/0"]
                ),
            ),
            "makes no sense",
        ),
    ],
    ids=["byte", "chunk", "file", "size", "chunks", "bomb", "codec", "list", "path"],
)
def test_damaged_weights_are_told_before_any_pixel(
    tmp_path: Path, checkpoint: Path, forget: Any, edit: Any, says: str
) -> None:
    store, folder = stored(tmp_path, checkpoint)
    edit(store, folder)
    for engine in ("zarr", XtecBackend):
        forget()
        with pytest.raises(WeightsError, match=f"inside the store.*are damaged: .*{says}"):
            xr.open_dataset(store, engine=engine).s2[0, 0, 0, 0].load()
    assert not weights._offered
    found = describe(store)["embedded_weights"]
    assert (found["bytes"] is None) == (says in ("is missing", "makes no sense", ""))


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_damaged_weights_are_written_again(tmp_path: Path, checkpoint: Path, forget: Any) -> None:
    copy = checkpoint.read_bytes()
    store, folder = stored(tmp_path, checkpoint)
    flip(folder / "c" / "0")
    change(store / GROUP / "zarr.json", lambda m: m["attributes"].update(checkpoints=[1]))
    forget()
    checkpoint.write_bytes(copy)
    embed_weights(store)
    wanted = xr.open_zarr(store).s2.values
    checkpoint.unlink()
    forget()
    np.testing.assert_array_equal(xr.open_zarr(store).s2.values, wanted)


def test_weights_of_another_sha256_do_not_serve(
    tmp_path: Path, checkpoint: Path, forget: Any
) -> None:
    store, _ = stored(tmp_path, checkpoint)
    digest = zarr.open_array(store / "s2").metadata.codecs[0].config.weights_sha256  # type: ignore[union-attr]
    other = tiny.write(tmp_path / "other.safetensors", "elic", seed=7).read_bytes()
    put(store, other)
    forget()
    with pytest.raises(WeightsError, match="no checkpoint at"):
        xr.open_zarr(store).s2.load()
    # called what they are not
    put(store, other, digest=digest)
    with pytest.raises(WeightsError, match=r"damaged: the files of .* have another sha256"):
        xr.open_zarr(store).s2.load()
    assert not weights._loaded


def hostile(store: Path, data: bytes) -> None:
    """Have the whole store, chunks and all, speak of these weights."""
    digest = hashlib.sha256(data).digest()
    put(store, data)
    change(
        store / "s2" / "zarr.json",
        lambda m: m["codecs"][0]["configuration"].update(weights_sha256=digest.hex()),
    )
    change(store / "zarr.json", lambda m: m.pop("consolidated_metadata", None))
    for file in (f for f in (store / "s2" / "c").rglob("*") if f.is_file()):
        header, specials, dates, _ = tec.stream.unpack(file.read_bytes())
        header = tec.codec.replace(header, digest=digest[: tec.stream.DIGEST])
        file.write_bytes(tec.stream.pack(header, specials, dates))


def test_a_malicious_pickle_in_a_store_is_refused_and_not_run(
    tmp_path: Path, checkpoint: Path, forget: Any
) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    store, _ = stored(tmp_path, checkpoint)
    torch.save({"model.g_a.0.weight": Bomb()}, tmp_path / "bomb.pt")
    for data in (pickle.dumps({"model.g_a.0.weight": Bomb()}), (tmp_path / "bomb.pt").read_bytes()):
        hostile(store, data)
        for engine in ("zarr", XtecBackend):
            forget()
            with pytest.raises(WeightsError, match="loaded safely"):
                xr.open_dataset(store, engine=engine, consolidated=False).s2.load()
    assert not (tmp_path / "ran").exists()


def test_junk_in_a_store_is_no_checkpoint(tmp_path: Path, checkpoint: Path, forget: Any) -> None:
    store, _ = stored(tmp_path, checkpoint)
    for data in (b"junk", bytes(100), (2**60).to_bytes(8, "little") + b"{" + bytes(50)):
        hostile(store, data)
        forget()
        with pytest.raises(WeightsError, match="checkpoint"):
            xr.open_zarr(store, consolidated=False).s2.load()


def test_published_checkpoints_embed_too(
    tmp_path: Path, tiny_checkpoints: dict[str, Path], forget: Any
) -> None:
    file = shutil.copy(tiny_checkpoints["published tt"], tmp_path / "tt.pt")
    data = cube(nodata=0, time=2)
    data.tec.to_zarr(tmp_path / "a.zarr", model="tt", weights=file, embed_weights=True)
    wanted = xr.open_zarr(tmp_path / "a.zarr").s2.values
    os.unlink(file)
    forget()
    np.testing.assert_array_equal(xr.open_zarr(tmp_path / "a.zarr").s2.values, wanted)


def test_a_download_comes_last_and_only_when_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_checkpoints: dict[str, Path], forget: Any
) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    asked: list[tuple[str, bool]] = []

    def hub(repository: str, file: str, *, local_files_only: bool) -> str:
        asked.append((file, local_files_only))
        raise LocalEntryNotFoundError("not there")

    published = weights._published
    monkeypatch.setattr(weights, "_published", lambda *_: tiny_checkpoints["flex"])
    options: dict[str, Any] = {"model": "flex", "weights": "terracodec", "compression": 20}
    data = cube(nodata=0)
    data.tec.to_zarr(tmp_path / "a.zarr", embed_weights=True, **options)
    data.tec.to_zarr(tmp_path / "bare.zarr", **options)
    wanted = xr.open_zarr(tmp_path / "a.zarr").s2.values
    monkeypatch.setattr(weights, "_published", published)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", hub)
    monkeypatch.delenv("XTEC_ALLOW_DOWNLOAD", raising=False)
    forget()
    with pytest.raises(WeightsError, match="XTEC_ALLOW_DOWNLOAD=1"):
        xr.open_zarr(tmp_path / "bare.zarr").s2.load()
    assert asked
    assert all(local for _, local in asked)
    monkeypatch.setenv("XTEC_ALLOW_DOWNLOAD", "1")
    np.testing.assert_array_equal(xr.open_zarr(tmp_path / "a.zarr").s2.values, wanted)
    assert all(local for _, local in asked), "the store has them"
    forget()
    with pytest.raises(WeightsError, match="the Hub cannot be reached"):
        xr.open_zarr(tmp_path / "bare.zarr").s2.load()
    assert asked[-1] == ("FlexTEC_v1_S2L2A_lambda-800.pt", False)
    # What is no published id is no address.
    asked.clear()
    config = {"weights": "https://example.com/elic.safetensors"}
    change(
        tmp_path / "bare.zarr" / "s2" / "zarr.json",
        lambda m: m["codecs"][0]["configuration"].update(config),
    )
    with pytest.raises(WeightsError, match=r"no checkpoint at 'https://example\.com"):
        xr.open_zarr(tmp_path / "bare.zarr", consolidated=False).s2.load()
    assert not asked


@pytest.mark.parametrize("place", ["/dev/zero", "pipe", "folder", "/proc/self/mem", "x" * 5000])
def test_a_store_may_name_files_only(
    tmp_path: Path, checkpoint: Path, forget: Any, place: str
) -> None:
    store = tmp_path / "a.zarr"
    packed = cube(nodata=0).tec.compress(model="elic", weights=checkpoint)
    packed.to_zarr(store, consolidated=False)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    named = place if place.startswith("/") else str(tmp_path / place)
    change(
        store / "s2" / "zarr.json",
        lambda m: m["codecs"][0]["configuration"].update(weights=named),
    )
    forget()
    with pytest.raises(WeightsError, match="checkpoint"):
        xr.open_zarr(store, consolidated=False).s2.load()
    # Another file than the data were coded with is not even parsed.
    other = tmp_path / "other.pt"
    other.write_bytes(b"secret")
    change(
        store / "s2" / "zarr.json",
        lambda m: m["codecs"][0]["configuration"].update(weights=str(other)),
    )
    with pytest.raises(WeightsError, match=r"have sha256 .*is needed"):
        xr.open_zarr(store, consolidated=False).s2.load()


# checkpoints that would build more than they hold


def with_config(path: Path, **changes: Any) -> Path:
    """A tiny checkpoint whose configuration says something else."""
    blob = path.read_bytes()
    size = int.from_bytes(blob[:8], "little")
    head = json.loads(blob[8 : 8 + size])
    config = json.loads(head["__metadata__"]["config"])
    for key, value in changes.items():
        (config["image"] if key in config.get("image", {}) else config)[key] = value
    head["__metadata__"]["config"] = json.dumps(config)
    written = json.dumps(head).encode()
    path.write_bytes(len(written).to_bytes(8, "little") + written + blob[8 + size :])
    return path


@pytest.mark.parametrize(
    ("model", "changes", "says"),
    [
        ("elic", {"widths": [4096, 4096, 4096]}, "size mismatch"),
        ("elic", {"latents": 10**9, "groups": [10**9]}, "too large"),
        ("elic", {"depths": [1, 10**9, 1]}, "too large: .* 1000000000 blocks"),
        ("elic", {"hidden": 10**12}, "too large"),
        ("elic", {"bands": 10**6}, "size mismatch"),
        ("elic", {"groups": [2, 5]}, "do not add up"),
        ("elic", {"rates": [0.4, -1, 7]}, "rates must ascend"),
        ("elic", {"rates": [20.0]}, "rates must ascend"),
        ("elic", {"scales": [10**9, 0.05, 60.0, 0.0625]}, "1024 levels"),
        ("elic", {"widths": "wide"}, "checkpoint of model 'elic'"),
        ("tt", {"depth": 10**9}, "too large"),
        ("tt", {"width": 10**6}, "too large"),
        ("tt", {"side": 4000}, "size mismatch"),
        ("tt", {"qualities": [[20.0, 8]] * 16}, "qualities make no sense"),
        ("tt", {"qualities": [[20.0, 99]] * 17}, "qualities make no sense"),
    ],
)
def test_hostile_sizes_are_refused_before_anything_is_built(
    tmp_path: Path, model: str, changes: dict[str, Any], says: str
) -> None:
    path = with_config(tiny.write(tmp_path / "a.safetensors", model), **changes)
    with pytest.raises(WeightsError, match=says):
        weights.load(model, weights=str(path), device="cpu")


def test_hostile_pickles_are_refused_before_anything_is_built(
    tmp_path: Path, tiny_checkpoints: dict[str, Path]
) -> None:
    # Few bytes, seen as many: 6 million channels of 6 million would be 10^14 values.
    wide = {"model.g_a.0.weight": torch.zeros(1).expand(6_000_000, 12, 5, 5)}
    wide["model.g_a.6.weight"] = torch.zeros(1).expand(6_000_000, 1, 5, 5)
    torch.save(wide, tmp_path / "fp.pt")
    assert (tmp_path / "fp.pt").stat().st_size < 10_000
    with pytest.raises(WeightsError, match="size mismatch"):
        weights.load("fp", weights=str(tmp_path / "fp.pt"), device="cpu")
    state = torch.load(tiny_checkpoints["published tt"], weights_only=True)
    key = "model.transform.analysis_transform.transforms.0.weight"
    assert key in state
    state[key] = torch.zeros(1, dtype=torch.half).expand(20_000_000, 12, 5, 5)
    torch.save(state, tmp_path / "tt.pt")
    with pytest.raises(WeightsError, match="size mismatch"):
        weights.load("tt", weights=str(tmp_path / "tt.pt"), device="cpu")


def test_a_zip_bomb_is_refused(tmp_path: Path) -> None:
    import zipfile

    torch.save({"model.g_a.0.weight": torch.zeros(4 * 10**6)}, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as small,
    ):
        for info in plain.infolist():
            small.writestr(info.filename, plain.read(info))
    assert (tmp_path / "a.pt").stat().st_size < 10**5
    with pytest.raises(WeightsError, match="safely"):
        weights.load("fp", weights=str(tmp_path / "a.pt"))


def test_a_network_for_other_images_is_refused(tmp_path: Path) -> None:
    config = tiny.CONFIG
    wide = tiny.replace(config, bands=40)
    network = tiny.build("elic", config=wide)
    tensors = {k: v.half().contiguous() for k, v in network.state_dict().items()}
    tensors |= {f"tables.{k}": torch.from_numpy(v) for k, v in network.tables.to_arrays().items()}
    metadata = {
        "model": "elic",
        "config": json.dumps(tiny.asdict(wide)),
        "margins": json.dumps([[0.0, 0.0]] * len(wide.rates)),
    }
    (tmp_path / "a.safetensors").write_bytes(save(tensors, metadata=metadata))
    with pytest.raises(WeightsError, match="images of 40 bands"):
        weights.load("elic", weights=str(tmp_path / "a.safetensors"), device="cpu")


def test_empty_and_enormous_files_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    with path.open("wb") as file:
        file.truncate(loading.LARGEST + 1)
    with pytest.raises(WeightsError, match=r"a.pt is not a checkpoint: it has 2147483649 bytes"):
        weights.load("fp", weights=str(path))


def test_what_is_kept_in_memory_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forget: Any
) -> None:
    files = [tiny.write(tmp_path / f"{k}.safetensors", "elic", k).read_bytes() for k in range(4)]
    digests = [weights.offer([data]) for data in files]
    assert list(weights._offered) == digests
    size = len(files[0])
    monkeypatch.setattr(weights, "KEPT", 2 * size)
    assert weights.offer([files[1]]) == digests[1]
    assert list(weights._offered) == [digests[3], digests[1]]
    for digest in (digests[3], digests[1], digests[3]):
        network = weights.load(
            "elic", weights="/nowhere", device="cpu", expect=digest[:16], offered=True
        )
        assert network.sha256 == digest
    assert len(weights._loaded) == 1, "a network is larger than its file"
    with pytest.raises(WeightsError, match="no checkpoint at"):
        weights.load("elic", weights="/nowhere", device="cpu", expect=digests[3], offered=False)
    with pytest.raises(WeightsError, match="no checkpoint at"):
        weights.load("elic", weights="/nowhere", device="cpu", expect=digests[0], offered=True)


def test_a_network_that_is_there_is_not_weighed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forget: Any
) -> None:
    """Every chunk asks for it; of what a process keeps it then is the last to go."""
    files = [str(tiny.write(tmp_path / f"{k}.safetensors", "elic", k)) for k in range(2)]
    first, second = (weights.load("elic", weights=file, device="cpu") for file in files)
    monkeypatch.setattr(weights, "_nbytes", lambda network: pytest.fail("it was"))
    assert weights.load("elic", weights=files[0], device="cpu") is first
    assert list(weights._loaded.values()) == [second, first]


def test_a_store_is_replaced_with_its_weights(tmp_path: Path, tiny_elic: Path) -> None:
    for zarr_format in (3, 2):
        write(tmp_path / "a.zarr", tiny_elic, overwrite=True, zarr_format=zarr_format)
        assert (tmp_path / "a.zarr" / GROUP).is_dir()
    cube(nodata=0).tec.to_zarr(tmp_path / "a.zarr", model="fp", overwrite=True)
    assert not (tmp_path / "a.zarr" / GROUP).exists()
    assert describe(tmp_path / "a.zarr")["embedded_weights"] is None


# what cannot be embedded


def test_a_store_without_anything_of_ours(tmp_path: Path) -> None:
    cube().to_zarr(tmp_path / "a.zarr")
    with pytest.raises(ValueError, match="holds no variable that xtec has compressed"):
        embed_weights(tmp_path / "a.zarr")
    cube().tec.to_zarr(tmp_path / "a.zarr.zip", model="fp")
    with pytest.raises(FileExistsError, match="is a file"):
        embed_weights(tmp_path / "a.zarr.zip")
    assert xtec.embed_weights is embed_weights
