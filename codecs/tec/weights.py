"""Where a checkpoint comes from: built in, the Hugging Face Hub, or a file.

Loading never runs code: safetensors, or ``torch.load(..., weights_only=True)``.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import warnings
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import is_zipfile

import numpy as np

from .config import WEIGHTS
from .errors import WeightsError
from .forks import in_child

if TYPE_CHECKING:
    import torch

    from .models.coding import CodecModel

FOLDER = Path(__file__).parent / "weights"

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

    Raises
    ------
    WeightsError
        The checkpoint is missing, cannot be fetched, or is another one than ``expect``.
    """
    paths = _locate(model, weights, sensor, compression, download)
    builtin = _builtin(model, sensor)["sha256"] if weights == "builtin" else None
    with _lock:
        key = (model, paths, resolve_device(device), precision, _stamp(paths))
        if key not in _loaded:
            _loaded[key] = read(model, paths, device=key[2], precision=precision, expect=builtin)
        network = _loaded[key]
    if expect and not network.sha256.startswith(expect):
        raise WeightsError(
            f"weights {weights!r} of model {model!r} have sha256 {network.sha256[:16]}..., but "
            f"{expect[:16]}... is needed: install the xtec version that wrote the data, or pass "
            "weights= the path of that checkpoint"
        )
    return network


def exists(model: str, weights: str, sensor: str) -> bool:
    """Whether there is a built-in or published checkpoint; False for files."""
    if weights == "builtin":
        return model in manifest().get(sensor, {})
    return (weights, model, sensor) in PUBLISHED


def resolve_device(device: str) -> str:
    """ "auto" becomes "cuda" where a GPU is visible, else "cpu"."""
    if device != "auto":
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


_lock = threading.Lock()
_loaded: dict[tuple, CodecModel] = {}


def _renew_lock() -> None:
    global _lock
    _lock = threading.Lock()


in_child(_renew_lock)


def _stamp(paths: tuple[Path, ...]) -> tuple:
    return tuple((p.stat().st_mtime_ns, p.stat().st_size) for p in paths)


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
        there = path.is_file()
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
    repository, pattern, values = PUBLISHED[weights, model, sensor]
    lmbda = min(values, key=lambda v: abs(np.log(v / compression)))
    # The rate of flex is set by its quality: one checkpoint is all there is to choose from.
    if model != "flex" and not np.isclose(lmbda, compression, rtol=1e-6):
        warnings.warn(
            f"no published {model} checkpoint for compression {compression:g}, "
            f"taking the nearest, {lmbda:g}",
            stacklevel=4,
        )
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    file = pattern.format(f"{lmbda:g}")
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


def downloads_allowed() -> bool:
    """Whether what is read may make this process fetch a published checkpoint."""
    return os.environ.get("XTEC_ALLOW_DOWNLOAD", "") not in ("", "0")


def read(
    model: str,
    paths: tuple[Path, ...],
    *,
    device: str = "cpu",
    precision: str = "float32",
    expect: str | None = None,
) -> CodecModel:
    """A network from the files of one checkpoint, not shared with anyone; see `load`."""
    import torch

    try:
        digest = _digest(paths)
    except OSError as error:
        raise WeightsError(f"cannot read the checkpoint: {error}") from error
    if expect is not None and digest != expect:
        raise WeightsError(
            f"the built-in weights of {model!r} are damaged (sha256 {digest[:16]}...): "
            "reinstall xtec"
        )
    if paths[0].suffix == ".safetensors":
        network = _from_safetensors(model, [path.read_bytes() for path in paths])
    else:
        network = _from_pickle(model, paths[0])
    network.sha256 = digest
    dtype = {"float32": torch.float32, "float64": torch.float64}[precision]
    network = network.to(device=device, dtype=dtype).eval().requires_grad_(False)
    return network.to(memory_format=torch.channels_last)


def _digest(paths: tuple[Path, ...]) -> str:
    """sha256 of the files, one after another; a large one is never in memory as a whole."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while piece := file.read(2**22):
                digest.update(piece)
    return digest.hexdigest()


def _from_safetensors(model: str, blobs: list[bytes]) -> Any:
    """Compact checkpoints: tensors of one or more files; the configuration is in the last file's
    metadata."""
    from safetensors import SafetensorError
    from safetensors.torch import load as parse

    if len(blobs) == 3:  # transforms, "elic", and the "tt" that leans on it
        series = _from_safetensors(model, [blobs[0], blobs[2]])
        series.lean_on(_from_safetensors("elic", blobs[:2]))
        return series

    tensors: dict[str, torch.Tensor] = {}
    try:
        for blob in blobs:
            tensors.update(parse(blob))
        metadata = json.loads(blobs[-1][8 : 8 + int.from_bytes(blobs[-1][:8], "little")]).get(
            "__metadata__", {}
        )
        if metadata.get("model") != ("tt" if model == "flex" else model):
            raise WeightsError(
                f"the checkpoint is of model {metadata.get('model')!r}, not {model!r}"
            )
        network = _compact(model, metadata, tensors)
        network.load_state_dict({k: v.float() for k, v in tensors.items()})
    except WeightsError:
        raise
    except (SafetensorError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise WeightsError(
            f"not a checkpoint of model {model!r} that this xtec knows: {error}"
        ) from error
    return network


def _compact(model: str, metadata: dict[str, str], tensors: dict[str, torch.Tensor]) -> Any:
    """A built-in model without its weights; takes its tables from ``tensors``."""
    from .entropy.portable import Margin
    from .entropy.tables import Tables
    from .models.compact import CompactConfig, CompactElic, CompactFactorized
    from .models.compact_tt import CompactTT, CompactTTConfig

    values = json.loads(metadata["config"])
    network: Any
    if model in ("tt", "flex"):
        network = CompactTT(CompactTTConfig.from_dict(values))
        network.repacked = model == "flex"
        if network.repacked and not network.sizes.qualities:
            raise WeightsError(
                "the checkpoint has no qualities: it is of model 'tt' alone, not 'flex'"
            )
    else:
        kinds: dict[str, Any] = {"elic": CompactElic, "fp": CompactFactorized}
        network = kinds[model](CompactConfig.from_dict(values))
    own = [k for k in tensors if k.startswith("tables.")]
    network.tables = Tables.from_arrays(
        {k.removeprefix("tables."): tensors.pop(k).numpy() for k in own}
    )
    network.margins = tuple(Margin(*pair) for pair in json.loads(metadata["margins"]))
    if len(network.margins) != len(network.config.rates):
        raise WeightsError("the checkpoint needs a margin for each of its rates")
    return network


def _from_pickle(model: str, path: Path) -> Any:
    """Published checkpoints: sizes are read off the shapes."""
    import torch

    from .models.elic import Elic
    from .models.factorized import Factorized
    from .models.tt import TT

    try:
        state = torch.load(path, weights_only=True, map_location="cpu", mmap=is_zipfile(path))
        if model in ("tt", "flex"):
            return TT.from_published(state, repacked=model == "flex")
        kinds: dict[str, Any] = {"elic": Elic, "fp": Factorized}
        return kinds[model].from_published(state)
    except WeightsError:
        raise
    except Exception as error:  # damaged pickles fail in every way there is, refused ones too
        raise WeightsError(
            f"{path.name} is not a checkpoint of model {model!r} that can be loaded safely: it "
            "must be a .safetensors file of this project, or a pickle of nothing but tensors "
            f"({type(error).__name__})"
        ) from error


def checkpoints() -> list[dict[str, Any]]:
    """Every checkpoint this version can use: built-in ones first, then the published ones."""
    out = [
        {
            "model": m,
            "sensor": s,
            "weights": "builtin",
            "compression": e["compression"],
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
