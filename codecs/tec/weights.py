"""Where a checkpoint comes from: built in, the Hugging Face Hub, a file, or the data themselves.

What is in it is the business of `tec.loading`.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from .config import COMPRESSION_RANGE, WEIGHTS
from .errors import TecError, WeightsError
from .forks import in_child
from .loading import check, hashed, read, ready, understood

if TYPE_CHECKING:
    from .models.coding import CodecModel

T = TypeVar("T")

FOLDER = Path(__file__).parent / "weights"
#: Bytes of networks that a process keeps, and as many of checkpoints that came with data.
KEPT = 2**32

#: Published checkpoints by ``weights``, model and sensor: (repository, file name, λ that exist).
PUBLISHED: dict[tuple[str, str, str], tuple[str, str, tuple[float, ...]]] = {
    ("terracodec", "fp", "S2L2A"): (
        "embed2scale/TerraCodec-1.0-FP-S2L2A",
        "TerraCodec_v1_FP_S2L2A_lambda-{}.pt",
        (0.5, 2, 10, 40, 200),
    ),
    ("terracodec", "elic", "S2L2A"): (
        "embed2scale/TerraCodec-1.0-ELIC-S2L2A",
        "TerraCodec_v1_ELIC_S2L2A_lambda-{}.pt",
        (0.5, 2, 10, 40, 200),
    ),
    ("terracodec", "tt", "S2L2A"): (
        "embed2scale/TerraCodec-1.0-TT-S2L2A",
        "TerraCodec_v1_TT_S2L2A_lambda-{}.pt",
        (0.4, 1, 5, 20, 100, 200, 700),
    ),
    ("terracodec", "tt", "S2L1C"): (
        "embed2scale/TerraCodec-1.0-TT-S2L1C",
        "TerraCodec_v1_TT_S2L1C_lambda-{}.pt",
        (5, 20, 100),
    ),
    ("terracodec", "flex", "S2L2A"): (
        "embed2scale/TerraCodec-1.0-FlexTEC-S2L2A",
        "FlexTEC_v1_S2L2A_lambda-{}.pt",
        (800,),
    ),
    ("terracodec:lronly", "flex", "S2L2A"): (
        "embed2scale/TerraCodec-1.0-FlexTEC-S2L2A",
        "FlexTEC_LRonly_v1_S2L2A_lambda-{}.pt",
        (800,),
    ),
}


@cache
def manifest() -> dict[str, dict[str, Any]]:
    """The built-in checkpoints: {sensor: {model: {"files": [...], "sha256": ..., "parameters":
    ...}}}."""
    path = FOLDER / "manifest.json"
    return json.loads(path.read_text()) if path.exists() else {}


def sha256(
    model: str,
    *,
    weights: str = "builtin",
    sensor: str = "S2L2A",
    compression: float = 20.0,
    download: bool = False,
) -> str:
    """sha256 (hex) of the checkpoint that these settings name.

    A built-in one costs no reading of weights. Any other is fetched, where it has to be, and
    loaded: a file that is no checkpoint fails here, not at the first chunk.
    """
    if weights == "builtin":
        return _builtin(model, sensor)["sha256"]
    return load(
        model,
        weights=weights,
        sensor=sensor,
        compression=compression,
        device="cpu",
        download=download,
    ).sha256


def load(
    model: str = "elic",
    *,
    weights: str = "builtin",
    sensor: str = "S2L2A",
    compression: float = 20.0,
    device: str = "auto",
    precision: str = "float32",
    expect: str | None = None,
    download: bool = False,
    offered: bool = False,
) -> CodecModel:
    """The network, ready for inference; loaded once a process and device, then shared.

    Parameters
    ----------
    model : "fp", "elic", "tt" or "flex"
    weights : "builtin", "terracodec" or "terracodec:lronly" (published, from the Hub), or the path
        of a checkpoint
    sensor : "S2L2A" or "S2L1C"
    compression : λ; picks the checkpoint where there is one for each λ
    device : "auto" (a visible GPU, else the CPU), "cpu", "cuda", ...
    precision : "float32" or "float64"
    expect : hex digits that the checkpoint's sha256 must begin with
    download : whether the Hub may be asked for what is not in its local cache
    offered : whether a checkpoint that `offer` was given serves, where it is as expected and this
        machine has none; it comes before a download

    Raises
    ------
    WeightsError
        The checkpoint is missing, cannot be fetched, or is another one than ``expect``.
    """
    if weights in WEIGHTS and weights != "builtin":
        _say_nearest(weights, model, sensor, compression)
    how = resolve_device(device), precision

    def own(download: bool) -> CodecModel:
        digest, paths = find(
            model,
            weights=weights,
            sensor=sensor,
            compression=compression,
            expect=expect,
            download=download,
        )
        return _shared((model, digest, *how), lambda: read(model, paths, *how, expect=digest))

    if not (offered and expect):
        return own(download)
    try:
        return own(False)
    except WeightsError:
        with _lock:
            found = next((item for item in _offered.items() if item[0].startswith(expect)), None)
        if found is None and not download:
            raise
    if found is None:
        return own(True)
    digest, files = found
    return _shared((model, digest, *how), lambda: ready(understood(model, files), digest, *how))


def find(
    model: str,
    *,
    weights: str = "builtin",
    sensor: str = "S2L2A",
    compression: float = 20.0,
    expect: str | None = None,
    download: bool = False,
) -> tuple[str, tuple[Path, ...]]:
    """sha256 (hex) of a checkpoint, and its files in the order in which they are hashed.

    Parameters and errors as for `load`; nothing is loaded.
    """
    paths = _locate(model, weights, sensor, compression, download)
    digest = hashed(paths)
    if weights == "builtin":
        check(model, digest, _builtin(model, sensor)["sha256"])
    if expect and not digest.startswith(expect):
        raise WeightsError(
            f"weights {weights!r} of model {model!r} have sha256 {digest[:16]}..., but "
            f"{expect[:16]}... is needed: install the xtec version that wrote the data, or pass "
            "weights= the path of that checkpoint"
        )
    return digest, paths


def offer(files: Sequence[bytes]) -> str:
    """Keep a checkpoint that came with data, for `load`; returns its sha256 (hex).

    ``files`` are its files in the order in which they are hashed. Of what is offered the last
    `KEPT` bytes stay.
    """
    digest = hashlib.sha256()
    for file in files:
        digest.update(file)
    with _lock:
        _keep(_offered, digest.hexdigest(), tuple(files), lambda kept: sum(map(len, kept)))
    return digest.hexdigest()


def at_hand(
    model: str,
    *,
    weights: str = "builtin",
    sensor: str = "S2L2A",
    compression: float = 20.0,
    expect: str | None = None,
) -> bool:
    """Whether `load` finds a checkpoint without a download; what was offered counts."""
    if expect and any(digest.startswith(expect) for digest in list(_offered)):
        return True
    try:
        find(model, weights=weights, sensor=sensor, compression=compression, expect=expect)
    except WeightsError:
        return False
    return True


def exists(model: str, weights: str, sensor: str) -> bool:
    """Whether there is a built-in or published checkpoint; False for files."""
    if weights == "builtin":
        return model in manifest().get(sensor, {})
    return (weights, model, sensor) in PUBLISHED


def names_device(device: str) -> bool:
    """Whether this is how a device is called on which networks run, here or elsewhere."""
    kind, colon, index = str(device).partition(":")
    return device in ("auto", "cpu") or (kind == "cuda" and bool(colon) == index.isdecimal())


def resolve_device(device: str) -> str:
    """ "cpu", or "cuda:0" and so on: "auto" is the GPU that this process sees, else the CPU.

    Raises
    ------
    TecError
        There is no such device, or networks do not run on it.
    """
    if device == "cpu":
        return device
    import torch

    if not names_device(device):
        raise TecError(
            f"device {device!r}: networks run on 'cpu' and on 'cuda', 'cuda:1', ... (GPUs that "
            "PyTorch calls so); 'auto' takes a GPU where one is visible. Other devices lack "
            "float64, or are not tested"
        )
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count and torch.cuda._is_in_bad_fork():
        text = "this process was forked from one that had used its GPU, which CUDA does not support"
        remedy = "start processes by 'spawn' or 'forkserver' instead of 'fork'"
        if device != "auto":
            raise TecError(f"device {device!r}: {text}: {remedy}, or pass device='cpu'")
        warnings.warn(f"{text}: networks run on the CPU here; {remedy}", stacklevel=2)
        return "cpu"
    if device == "auto" and not count:
        return "cpu"
    index = str(device).partition(":")[2]
    number = int(index) if index else torch.cuda.current_device() if count else 0
    if number >= count:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        among = "" if visible is None else f" (CUDA_VISIBLE_DEVICES={visible})"
        raise TecError(
            f"device {device!r}: this process sees {count} CUDA devices{among}: choose "
            + ("'cpu' or 'auto'" if not count else f"'cuda:0' to 'cuda:{count - 1}', or 'cpu'")
        )
    return f"cuda:{number}"


_lock = threading.Lock()  # of the two below, for who changes them
#: By model, sha256, device and precision, and by sha256; what was used last is last.
_loaded: OrderedDict[tuple[str, str, str, str], CodecModel] = OrderedDict()
_offered: OrderedDict[str, tuple[bytes, ...]] = OrderedDict()


def _shared(key: tuple[str, str, str, str], make: Callable[[], CodecModel]) -> CodecModel:
    with _lock:
        if key in _loaded:  # as for every chunk: nothing is summed up
            _loaded.move_to_end(key)
            return _loaded[key]
        network = make()
        _keep(_loaded, key, network, _nbytes)
        return network


def _keep(kept: OrderedDict[Any, T], key: Any, value: T, nbytes: Callable[[T], int]) -> None:
    """Put ``value`` last, and let go of the first ones beyond `KEPT` bytes."""
    kept[key] = value
    kept.move_to_end(key)
    while len(kept) > 1 and sum(map(nbytes, kept.values())) > KEPT:
        kept.popitem(last=False)


def _nbytes(network: Any) -> int:
    return sum(p.numel() * p.element_size() for p in network.parameters())


def _renew_lock() -> None:
    global _lock
    _lock = threading.Lock()


in_child(_renew_lock)


def _builtin(model: str, sensor: str) -> dict[str, Any]:
    try:
        return manifest()[sensor][model]
    except KeyError:
        have = ", ".join(f"{m} ({s})" for s, models in manifest().items() for m in models) or "none"
        remedy = "pass weights= the path of a checkpoint, or weights='terracodec'"
        if sensor == "S2L1C":
            remedy = "leave band B10 out (the S2L2A weights then serve), or " + remedy
        raise WeightsError(
            f"no built-in weights for model {model!r} and sensor {sensor!r} (built in: {have}): "
            + remedy
        ) from None


def _locate(
    model: str, weights: str, sensor: str, compression: float, download: bool
) -> tuple[Path, ...]:
    """Files of one checkpoint, in the order in which their bytes are hashed."""
    if weights == "builtin":
        return tuple(FOLDER / name for name in _builtin(model, sensor)["files"])
    if weights in WEIGHTS:
        return (_published(weights, model, sensor, compression, download),)
    path = Path(weights)
    try:
        there = path.is_file()  # no pipe or device, which might never end
    except (OSError, ValueError):  # a name that no file can have
        there = False
    if not there:
        raise WeightsError(
            f"no checkpoint at {weights[:200]!r}: weights is 'builtin', 'terracodec' or the path "
            "of a .safetensors or .pt file"
        )
    return (path.resolve(),)


def _published(weights: str, model: str, sensor: str, compression: float, download: bool) -> Path:
    if (weights, model, sensor) not in PUBLISHED:
        have = ", ".join(f"{m} ({s})" for w, m, s in PUBLISHED if w == weights)
        raise WeightsError(
            f"no published checkpoint that xtec can run for model {model!r}, sensor {sensor!r}, "
            f"weights {weights!r}; have: {have}"
        )
    repository, pattern, _ = PUBLISHED[weights, model, sensor]
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    file = pattern.format(f"{_nearest(weights, model, sensor, compression):g}")
    try:
        return Path(hf_hub_download(repository, file, local_files_only=not download))
    except LocalEntryNotFoundError as error:
        remedy = (
            "the Hub cannot be reached: check the network, or copy the file here and pass "
            "weights= its path"
            if download
            else "it is not in the local Hub cache and this call may not download: "
            "set XTEC_ALLOW_DOWNLOAD=1, or pass weights= the path of the file"
        )
        raise WeightsError(f"cannot get {file} from {repository}: {remedy}") from error
    except Exception as error:  # many kinds: HTTP errors, timeouts, gated repositories
        raise WeightsError(
            f"cannot get {file} from {repository}: {type(error).__name__}: {error}"
        ) from error


def _nearest(weights: str, model: str, sensor: str, compression: float) -> float:
    """The λ of the published checkpoint that serves a λ."""
    return min(PUBLISHED[weights, model, sensor][2], key=lambda v: abs(np.log(v / compression)))


def _say_nearest(weights: str, model: str, sensor: str, compression: float) -> None:
    # The rate of flex is set by its quality: one checkpoint is all there is to choose from.
    if model == "flex" or (weights, model, sensor) not in PUBLISHED:
        return
    lmbda = _nearest(weights, model, sensor, compression)
    if not np.isclose(lmbda, compression, rtol=1e-6):
        warnings.warn(
            f"no published {model} checkpoint for compression {compression:g}, "
            f"taking the nearest, {lmbda:g}",
            stacklevel=3,
        )


def downloads_allowed() -> bool:
    """Whether what is read may make this process fetch a published checkpoint."""
    return os.environ.get("XTEC_ALLOW_DOWNLOAD", "") not in ("", "0")


def checkpoints() -> list[dict[str, Any]]:
    """Every checkpoint this version can use: built-in ones first, then the published ones."""
    low, high = COMPRESSION_RANGE
    out = [
        {
            "model": m,
            "sensor": s,
            "weights": "builtin",
            "compression": [min(max(v, low), high) for v in e["compression"]],
            "parameters": e["parameters"],
            "sha256": e["sha256"],
        }
        for s, entries in manifest().items()
        for m, e in entries.items()
    ]
    for (w, m, s), (repository, _, values) in PUBLISHED.items():
        out.append(
            {
                "model": m,
                "sensor": s,
                "weights": w,
                "compression": list(values),
                "repository": repository,
            }
        )
    return out
