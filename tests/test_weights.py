"""Where checkpoints come from: built in, a file, a (local, fake) Hub; and what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import tec
import tiny
import torch
from scenes import scene
from tec import codec, weights
from tec.models.factorized import Factorized, FactorizedConfig

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """A checkpoint as the Hub has them: a pickle with the prefix ``model.`` (small, random
    weights)."""
    torch.manual_seed(0)
    network = Factorized(FactorizedConfig(N=4, M=6))
    network.bottleneck.update()
    path = tmp_path_factory.mktemp("hub") / "checkpoint.pt"
    torch.save({f"model.{k}": v for k, v in network.state_dict().items()}, path)
    return path


@pytest.fixture
def hub(published, tiny_checkpoints):
    """A server on loopback that answers like the Hugging Face Hub; yields (address, requests
    seen)."""
    tt, flex = (tiny_checkpoints[name] for name in ("published tt", "flex"))
    blobs = {
        f"/embed2scale/TerraCodec-1.0-{name}": path.read_bytes()
        for name, path in {
            "FP-S2L2A/resolve/main/TerraCodec_v1_FP_S2L2A_lambda-10.pt": published,
            "TT-S2L2A/resolve/main/TerraCodec_v1_TT_S2L2A_lambda-5.pt": tt,
            "FlexTEC-S2L2A/resolve/main/FlexTEC_LRonly_v1_S2L2A_lambda-800.pt": flex,
        }.items()
    }
    seen: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            self.answer(body=True)

        def answer(self, *, body):
            seen.append(f"{self.command} {self.path}")
            blob = blobs.get(self.path)
            if blob is None:
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(200)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha256(blob).hexdigest()}"')
            self.send_header("Content-Length", str(len(blob)))
            self.end_headers()
            if body:
                self.wfile.write(blob)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", seen
    server.shutdown()
    server.server_close()


def run(code: str, endpoint: str, home: Path, **extra: str) -> subprocess.CompletedProcess:
    """Python in a fresh process whose Hub is ``endpoint`` and whose Hub cache is ``home``."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    env |= {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    env |= {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"} | extra
    return subprocess.run(
        [sys.executable, "-c", code],
        env=env,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


CODE = """
import json, numpy as np, tec, warnings
from tec import codec
config = tec.CodecConfig(model="fp", weights="terracodec", compression={compression})
chunk = np.full((1, 12, 16, 16), 1500, np.uint16)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    try:
        data = {action}
        print(json.dumps(["ok", len(data), [str(w.message) for w in caught if w.category is
        UserWarning]]))
    except tec.TecError as error:
        print(json.dumps([type(error).__name__, str(error), []]))
"""
ENCODE = "codec.encode(chunk, config)"


def outcome(process: subprocess.CompletedProcess) -> list:
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


def test_a_published_checkpoint_is_fetched_once_and_then_read_offline(hub, tmp_path, published):
    endpoint, seen = hub
    kind, size, _ = outcome(run(CODE.format(compression=10, action=ENCODE), endpoint, tmp_path))
    assert kind == "ok"
    assert size > 50
    assert any(line.startswith("GET") for line in seen)
    # Reading with the file in the local cache needs no network, and no permission.
    both = "codec.decode(codec.encode(chunk, config)).tobytes()"
    offline = run(
        CODE.format(compression=10, action=both), "http://127.0.0.1:9", tmp_path, HF_HUB_OFFLINE="1"
    )
    assert outcome(offline)[0] == "ok"
    # A λ without a checkpoint takes the nearest one, and says so.
    kind, _, said = outcome(run(CODE.format(compression=12, action=ENCODE), endpoint, tmp_path))
    assert kind == "ok"
    assert "nearest, 10" in " ".join(said)


def test_reading_does_not_download_unless_allowed(hub, tmp_path, published):
    endpoint, seen = hub
    data = codec.encode(
        np.full((1, 12, 16, 16), 1500, np.uint16),
        tec.CodecConfig(model="fp", weights=str(published), compression=10),
    )
    header, specials, dates, _ = tec.stream.unpack(data)
    from dataclasses import replace

    config = replace(header.config, weights="terracodec")
    stream = tec.stream.pack(replace(header, config=config), specials, dates)
    action = f"codec.decode(bytes.fromhex('{stream.hex()}')).tobytes()"
    kind, said, _ = outcome(run(CODE.format(compression=10, action=action), endpoint, tmp_path))
    assert kind == "WeightsError"
    assert "XTEC_ALLOW_DOWNLOAD" in said
    assert seen == []
    allowed = run(
        CODE.format(compression=10, action=action), endpoint, tmp_path, XTEC_ALLOW_DOWNLOAD="1"
    )
    assert outcome(allowed)[0] == "ok"


SERIES = """
import json, numpy as np, tec
config = tec.CodecConfig(
    model="{model}", weights="{weights}", compression="lambda-5", quality={quality}
)
rng = np.random.default_rng(0)
chunk = rng.integers(500, 3000, (3, 12, 20, 30)).astype(np.uint16)
data = tec.encode(chunk, config)
header = tec.peek(data)
back = tec.decode(data, dates=2)
try:
    tec.encode(chunk[:1], config)
    alone = "ok"
except tec.WeightsError as error:
    alone = str(error)
name = header.config.weights
print(json.dumps([header.model, header.how, header.told, name, list(back.shape), alone]))
"""


@pytest.mark.parametrize(
    ("model", "name", "quality", "how"),
    [("tt", "terracodec", None, []), ("flex", "terracodec:lronly", [9, 2], [9, 2, 2])],
)
def test_published_temporal_models_come_from_the_hub(hub, tmp_path, model, name, quality, how):
    endpoint, seen = hub
    code = SERIES.format(model=model, weights=name, quality=quality)
    *found, alone = outcome(run(code, endpoint, tmp_path, XTEC_ALLOW_DOWNLOAD="1"))
    assert found == [model, how, [0, 1, 2], name, [2, 12, 20, 30]]
    assert len([line for line in seen if line.startswith("GET")]) == 1
    if model == "tt":  # a single date is an image: its checkpoint is another one
        assert "ELIC_S2L2A_lambda-10.pt" in alone or "ELIC_S2L2A_lambda-2.pt" in alone
    else:
        assert alone == "ok"


def test_no_network_is_a_clear_error(tmp_path):
    kind, said, _ = outcome(
        run(CODE.format(compression=10, action=ENCODE), "http://127.0.0.1:9", tmp_path)
    )
    assert kind == "WeightsError"
    assert "lambda-10.pt" in said
    assert "weights=" in said


def test_a_file_that_the_hub_lacks_is_a_clear_error(hub, tmp_path):
    endpoint, _ = hub
    kind, said, _ = outcome(run(CODE.format(compression=200, action=ENCODE), endpoint, tmp_path))
    assert kind == "WeightsError"
    assert "lambda-200.pt" in said


ASK = """
import json, warnings
from tec import TecError, weights
said = []
for model, name, sensor, compression in {asked}:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            weights.load(
                model, weights=name, sensor=sensor, compression=compression, download=True
            )
        except TecError as error:
            said.append([str(error), [str(w.message) for w in caught if w.category is UserWarning]])
print(json.dumps(said))
"""


def test_the_hub_is_asked_for_the_file_that_the_settings_name(hub, tmp_path):
    asked = [
        ("tt", "terracodec", "S2L2A", 0.4),
        ("tt", "terracodec", "S2L2A", 15),
        ("tt", "terracodec", "S2L1C", 100),
        ("flex", "terracodec", "S2L2A", 20),
        ("flex", "terracodec:lronly", "S2L2A", 800),
    ]
    files = [
        ("TerraCodec-1.0-TT-S2L2A", "TerraCodec_v1_TT_S2L2A_lambda-0.4.pt"),
        ("TerraCodec-1.0-TT-S2L2A", "TerraCodec_v1_TT_S2L2A_lambda-20.pt"),
        ("TerraCodec-1.0-TT-S2L1C", "TerraCodec_v1_TT_S2L1C_lambda-100.pt"),
        ("TerraCodec-1.0-FlexTEC-S2L2A", "FlexTEC_v1_S2L2A_lambda-800.pt"),
        ("TerraCodec-1.0-FlexTEC-S2L2A", "FlexTEC_LRonly_v1_S2L2A_lambda-800.pt"),
    ]
    endpoint, seen = hub
    said = outcome(run(ASK.format(asked=asked), endpoint, tmp_path))
    heads = [path for path in seen if path.startswith("HEAD")]
    assert [path.split("/resolve/main/") for path in heads] == [
        [f"HEAD /embed2scale/{repository}", file] for repository, file in files
    ]
    # the last one is there
    for (message, warned), (repository, file) in zip(said, files[:-1], strict=True):
        assert f"cannot get {file} from embed2scale/{repository}" in message
        # The nearest λ is told of; flex has one checkpoint, whatever compression says.
        assert len(warned) == ("lambda-20" in file)


def test_a_published_file_given_by_path(published):
    config = tec.CodecConfig(model="fp", weights=str(published))
    chunk = scene(1, 12, 40, 24)
    back = codec.decode(codec.encode(chunk, config), weights=str(published))
    assert back.shape == chunk.shape


def test_a_malicious_pickle_is_refused_and_not_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    path = tmp_path / "bomb.pt"
    path.write_bytes(pickle.dumps({"model.g_a.0.weight": Bomb()}, protocol=2))
    with pytest.raises(tec.WeightsError, match="safely"):
        weights.load("fp", weights=str(path))
    torch.save({"model.g_a.0.weight": Bomb()}, path)
    with pytest.raises(tec.WeightsError, match="safely"):
        weights.load("fp", weights=str(path))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("junk", [b"", b"junk", b"\xff" * 64, bytes(200)])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_junk_is_no_checkpoint(tmp_path, junk, suffix):
    path = tmp_path / f"junk{suffix}"
    path.write_bytes(junk)
    with pytest.raises(tec.WeightsError, match="checkpoint"):
        weights.load("elic", weights=str(path))


def test_built_in_weights_are_what_the_manifest_says():
    for sensor, entries in weights.manifest().items():
        for model, entry in entries.items():
            digest = hashlib.sha256(
                b"".join((weights.FOLDER / f).read_bytes() for f in entry["files"])
            ).hexdigest()
            assert digest == entry["sha256"] == weights.sha256(model, sensor=sensor)
            network = weights.load(model, sensor=sensor)
            assert sum(p.numel() for p in network.parameters()) == entry["parameters"]
            assert network is weights.load(model, sensor=sensor)  # loaded once, then shared


def test_damaged_built_in_weights_are_noticed(tmp_path, monkeypatch):
    for file in weights.FOLDER.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    broken = bytearray((tmp_path / "s2l2a-fp.safetensors").read_bytes())
    broken[-5] ^= 1
    (tmp_path / "s2l2a-fp.safetensors").write_bytes(broken)
    monkeypatch.setattr(weights, "FOLDER", tmp_path)
    with pytest.raises(tec.WeightsError, match="damaged"):
        weights.load("fp")


def test_one_file_serves_tt_and_flex(tiny_checkpoints):
    path = str(tiny_checkpoints["tt"])
    tt, flex = (weights.load(model, weights=path, device="cpu") for model in ("tt", "flex"))
    assert tt.sha256 == flex.sha256 == hashlib.sha256(Path(path).read_bytes()).hexdigest()
    assert (tt.repacked, flex.repacked) == (False, True)
    assert tt.sizes == flex.sizes == tiny.TT_CONFIG
    for a, b in zip(tt.parameters(), flex.parameters(), strict=True):
        assert torch.equal(a, b)
    for model in ("elic", "fp"):
        with pytest.raises(tec.WeightsError, match=f"of model 'tt', not '{model}'"):
            weights.load(model, weights=path)
    for model in ("tt", "flex", "fp"):
        with pytest.raises(tec.WeightsError, match=f"of model 'elic', not '{model}'"):
            weights.load(model, weights=str(tiny_checkpoints["elic"]))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"margins": "[[0.0, 0.0]]"}, "margin for each of its rates"),
        ({"margins": "[[0.3, 0.0], [0.0, 0.0], [0.0, 0.0]]"}, "power of two"),
        ({"margins": None}, "margins"),
        ({"config": '{"rates": [1, 2, 3]}'}, "size mismatch"),
        ({"config": '{"wings": 2}'}, "wings"),
        ({"config": "no json"}, "not a checkpoint"),
        ({"model": None}, "of model None"),
    ],
)
def test_wrong_metadata_is_refused(tiny_elic, tmp_path, change, says):
    blob = tiny_elic.read_bytes()
    size = int.from_bytes(blob[:8], "little")
    head = json.loads(blob[8 : 8 + size])
    for key, value in change.items():
        head["__metadata__"].pop(key)
        head["__metadata__"].update({key: value} if value is not None else {})
    written = json.dumps(head).encode()
    path = tmp_path / "elic.safetensors"
    path.write_bytes(len(written).to_bytes(8, "little") + written + blob[8 + size :])
    with pytest.raises(tec.WeightsError, match=says):
        weights.load("elic", weights=str(path))


def test_unknown_names_say_what_there_is(monkeypatch):
    monkeypatch.setattr(weights, "manifest", lambda: {"S2L2A": {"elic": {}}})
    with pytest.raises(tec.WeightsError, match=r"elic \(S2L2A\)"):
        weights.load("elic", sensor="S2L1C")
    with pytest.raises(tec.WeightsError, match="no published checkpoint"):
        weights.load("fp", weights="terracodec", sensor="S2L1C")
    with pytest.raises(tec.WeightsError, match=r"'flex'.*weights='terracodec'"):
        weights.load("flex")
    for model, sensor in (("tt", "S2L2A"), ("flex", "S2L1C")):
        with pytest.raises(tec.WeightsError, match=r"'terracodec:lronly'; have: flex \(S2L2A\)$"):
            weights.load(model, weights="terracodec:lronly", sensor=sensor)


def test_every_checkpoint_is_listed():
    listed = {(m["model"], m["sensor"], m["weights"]): m for m in tec.checkpoints()}
    published = {
        ("fp", "S2L2A", "terracodec"): [0.5, 2, 10, 40, 200],
        ("elic", "S2L2A", "terracodec"): [0.5, 2, 10, 40, 200],
        ("tt", "S2L2A", "terracodec"): [0.4, 1, 5, 20, 100, 200, 700],
        ("tt", "S2L1C", "terracodec"): [5, 20, 100],
        ("flex", "S2L2A", "terracodec"): [800],
        ("flex", "S2L2A", "terracodec:lronly"): [800],
    }
    assert {k: m["compression"] for k, m in listed.items() if k[2] != "builtin"} == published
    builtin = {(m, s) for m, s, w in listed if w == "builtin"}
    assert builtin == {(m, s) for s, models in weights.manifest().items() for m in models}
    assert len(listed) == len(tec.checkpoints()) == len(builtin) + len(published)
    for model, sensor in builtin:
        assert listed[model, sensor, "builtin"]["sha256"] == weights.sha256(model, sensor=sensor)
