"""A checkpoint's files -> a network.

Loading never runs code: safetensors, or ``torch.load(..., weights_only=True)``. Nor does it build
more than the files hold, whoever has written them.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import ZipFile, is_zipfile

from .config import TOKENS
from .errors import WeightsError
from .sensors import SENSORS

if TYPE_CHECKING:
    import torch

    from .models.coding import CodecModel
    from .models.compact import CompactConfig

#: Bytes of a checkpoint's file: nothing larger is read (published ones have up to 1 GB).
LARGEST = 2**31
#: Channels of the widest layer of a compact network: bounds the memory that a chunk takes.
WIDEST = 4096
#: Bands of an image.
_BANDS = max(len(sensor.bands) for sensor in SENSORS.values())


def read(
    model: str,
    paths: tuple[Path, ...],
    device: str = "cpu",
    precision: str = "float32",
    *,
    expect: str | None = None,
) -> CodecModel:
    """A network from the files of one checkpoint, not shared with anyone; see `load`."""
    digest = hashed(paths)
    if expect is not None:
        check(model, digest, expect)
    if paths[0].suffix == ".safetensors":
        network = _from_safetensors(model, [path.read_bytes() for path in paths])
    else:
        network = _from_pickle(model, paths[0])
    return ready(network, digest, device, precision)


def ready(network: Any, digest: str, device: str, precision: str) -> CodecModel:
    """For inference, and never to be trained."""
    import torch

    if network.bands > _BANDS:
        raise WeightsError(f"the checkpoint is for images of {network.bands} bands")

    network.sha256 = digest
    dtype = {"float32": torch.float32, "float64": torch.float64}[precision]
    network = network.to(device=device, dtype=dtype).eval().requires_grad_(False)
    return network.to(memory_format=torch.channels_last)


def check(model: str, digest: str, expect: str) -> None:
    """WeightsError where a built-in checkpoint is not what the package says."""
    if digest != expect:
        raise WeightsError(
            f"the built-in weights of {model!r} are damaged (sha256 {digest[:16]}...): "
            "reinstall xtec"
        )


def hashed(paths: tuple[Path, ...]) -> str:
    """sha256 (hex) of the files, one after another; read again only when they have changed.

    WeightsError where that cannot be, or a file is empty (as those of the system seem to be) or
    too large.
    """
    try:
        stamp = tuple((p.stat().st_mtime_ns, p.stat().st_size) for p in paths)
        for path, (_, size) in zip(paths, stamp):
            if not 0 < size <= LARGEST:
                raise WeightsError(f"{path.name} is not a checkpoint: it has {size} bytes")
        return _digest(paths, stamp)
    except OSError as error:
        raise WeightsError(f"cannot read the checkpoint: {error}") from error


@lru_cache(64)
def _digest(paths: tuple[Path, ...], stamp: tuple) -> str:
    """A large file is never in memory as a whole."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while piece := file.read(2**22):
                digest.update(piece)
    return digest.hexdigest()


def understood(model: str, files: Sequence[bytes]) -> Any:
    """The network in files that are in memory, for `ready`."""
    if files[0][8:9] == b"{":  # safetensors: the length of its header, then that header in JSON
        return _from_safetensors(model, list(files))
    return _from_pickle(model, io.BytesIO(files[0]))


def _from_safetensors(model: str, blobs: list[bytes]) -> Any:
    """Compact checkpoints: tensors of one or more files; the configuration is in the last file's
    metadata."""
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
        network = _compact(model, metadata, tensors, sum(map(len, blobs)))
        network.load_state_dict({k: v.float() for k, v in tensors.items()})
    except WeightsError:
        raise
    except Exception as error:  # what is no checkpoint fails in every way there is
        raise WeightsError(
            f"not a checkpoint of model {model!r} that this xtec knows: {error}"
        ) from error
    return network


def _compact(
    model: str, metadata: dict[str, str], tensors: dict[str, torch.Tensor], nbytes: int
) -> Any:
    """A built-in model without its weights; takes its tables from ``tensors``."""
    from .entropy.portable import Margin
    from .entropy.tables import Tables
    from .models.compact import CompactConfig, CompactElic, CompactFactorized
    from .models.compact_tt import CompactTT, CompactTTConfig

    values = json.loads(metadata["config"])
    network: Any
    if model in ("tt", "flex"):
        sizes = CompactTTConfig.from_dict(values)
        _check_sizes(sizes.image, len(tensors), (sizes.width, sizes.side), sizes.depth)
        _check_qualities(sizes.qualities, sizes.image.latents)
        _check_room(lambda: CompactTT(sizes), nbytes)
        network = CompactTT(sizes)
        network.repacked = model == "flex"
        if network.repacked and not network.sizes.qualities:
            raise WeightsError(
                "the checkpoint has no qualities: it is of model 'tt' alone, not 'flex'"
            )
    else:
        kinds: dict[str, Any] = {"elic": CompactElic, "fp": CompactFactorized}
        image = CompactConfig.from_dict(values)
        _check_sizes(image, len(tensors))
        _check_room(lambda: kinds[model](image), nbytes)
        network = kinds[model](image)
    own = [k for k in tensors if k.startswith("tables.")]
    network.tables = Tables.from_arrays(
        {k.removeprefix("tables."): tensors.pop(k).numpy() for k in own}
    )
    network.margins = tuple(Margin(*pair) for pair in json.loads(metadata["margins"]))
    if len(network.margins) != len(network.config.rates):
        raise WeightsError("the checkpoint needs a margin for each of its rates")
    return network


def _check_sizes(
    image: CompactConfig, tensors: int, widths: tuple[int, ...] = (), depth: int = 0
) -> None:
    """Refuse a configuration that no checkpoint of so many tensors can have."""
    widest = max(image.latents, image.hidden, *image.widths, *widths)
    depth = max(depth, *image.depths)
    if widest > WIDEST or depth > tensors:
        raise WeightsError(
            f"the checkpoint's networks are too large: {widest} channels (at most {WIDEST}), "
            f"{depth} blocks"
        )
    rates = image.rates
    if len(rates) < 2 or not all(0 < a < b < math.inf for a, b in pairwise(rates)):
        raise WeightsError(f"the checkpoint's rates must ascend, two at least, not {rates}")
    if sum(image.groups) != image.latents:
        raise WeightsError("the checkpoint's channel groups do not add up to its latents")


def _check_qualities(qualities: Sequence[tuple[float, int]], latents: int) -> None:
    fits = [0 < lmbda < math.inf and 0 <= channels <= latents for lmbda, channels in qualities]
    if not all(fits) or len(fits) not in (0, TOKENS + 1):
        raise WeightsError(f"the checkpoint's qualities make no sense: {list(qualities)[:20]}")


def _check_room(make: Callable[[], torch.nn.Module], nbytes: int) -> None:
    """Refuse to build what has more values than the checkpoint has bytes."""
    import torch

    with torch.device("meta"):  # shapes without memory
        count = sum(value.numel() for value in make().state_dict().values())
    if count > nbytes:
        raise WeightsError(
            f"not a checkpoint: size mismatch, {count} values of the network in {nbytes} bytes"
        )


def _from_pickle(model: str, file: Path | io.BytesIO) -> Any:
    """Published checkpoints: sizes are read off the shapes."""
    import torch

    from .models.elic import Elic, ElicConfig
    from .models.factorized import Factorized, FactorizedConfig
    from .models.tt import TT, TTConfig

    name = file.name if isinstance(file, Path) else "what came with the data"
    nbytes = file.stat().st_size if isinstance(file, Path) else len(file.getbuffer())
    try:
        zipped = is_zipfile(file)
        if zipped:
            with ZipFile(file) as archive:
                unpacked = sum(info.file_size for info in archive.infolist())
            if unpacked > nbytes:
                raise ValueError(f"it unpacks to {unpacked} bytes")
        if isinstance(file, io.BytesIO):
            file.seek(0)
        state = torch.load(
            file,
            weights_only=True,
            map_location="cpu",
            mmap=zipped and isinstance(file, Path),
        )
        if model in ("tt", "flex"):
            sizes = TTConfig.from_state_dict(state, repacked=model == "flex")
            _check_room(lambda: TT(sizes), nbytes)
            return TT.from_published(state, repacked=model == "flex")
        kinds: dict[str, Any] = {"elic": (Elic, ElicConfig), "fp": (Factorized, FactorizedConfig)}
        kind, config = kinds[model]
        _check_room(lambda: kind(config.from_state_dict(state)), nbytes)
        return kind.from_published(state)
    except WeightsError:
        raise
    except Exception as error:  # damaged pickles fail in every way there is, refused ones too
        raise WeightsError(
            f"{name} is not a checkpoint of model {model!r} that can be loaded safely: it "
            "must be a .safetensors file of this project, or a pickle of nothing but tensors "
            f"({type(error).__name__})"
        ) from error
