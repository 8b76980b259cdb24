"""``import xtec.terratorch`` registers the codecs as models of TerraTorch.

They stand in its registry of full models as ``xtec_fp_s2l2a``, ``xtec_elic_s2l2a``,
``xtec_tt_s2l2a`` and the same for ``s2l1c``:

>>> # model = terratorch.registry.FULL_MODEL_REGISTRY.build("xtec_elic_s2l2a", compression=20)
>>> # reconstruction = model(images)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from tec.codec import decode_many, encode_many
from tec.config import CodecConfig
from tec.sensors import SENSORS, get_sensor

from . import settings

MODELS = ("fp", "elic", "tt")


class Codec(torch.nn.Module):
    """Images through the codec and back: what a model sees of a cube that was compressed.

    Parameters
    ----------
    model : "fp", "elic" or "tt"
    sensor : "S2L2A" or "S2L1C"
    compression : λ
    weights : "builtin", "terracodec" or the path of a checkpoint
    standardised : whether images are standardised by the statistics of the sensor
        (`tec.sensors`), else they are DN, reflectance x 10000

    It has no parameters, and no gradients go through it.
    """

    def __init__(
        self,
        model: str,
        sensor: str = "S2L2A",
        *,
        compression: float = 20.0,
        weights: str = "builtin",
        standardised: bool = True,
    ) -> None:
        super().__init__()
        self.sensor = get_sensor(sensor)
        self.config = CodecConfig(
            model=model,
            compression=compression,
            weights=weights,
            sensor=sensor,
            bands=self.sensor.bands,
            nodata=float("nan"),
        )
        self.standardised = standardised

    @torch.no_grad()
    def forward(self, images: torch.Tensor, **unused: Any) -> torch.Tensor:
        """(n, band, y, x), or (n, band, time, y, x) as TerraTorch has series: the same, decoded.

        Bands are all of the sensor's, in its order. NaN is nodata, and stays.
        """
        return self._decoded(images)[0]

    @torch.no_grad()
    def bits(self, images: torch.Tensor) -> torch.Tensor:
        """Of each of n images (or series), as they lie in a store: (n,) int64."""
        return torch.tensor([8 * len(data) for data in self._decoded(images)[1]])

    def _decoded(self, images: torch.Tensor) -> tuple[torch.Tensor, list[bytes]]:
        count = len(self.sensor.bands)
        if images.dim() not in (4, 5) or images.shape[1] != count:
            raise ValueError(
                f"images have shape {tuple(images.shape)}: they must be (n, {count}, y, x) or "
                f"(n, {count}, time, y, x), the bands being {', '.join(self.sensor.bands)}"
            )
        mean, std = (
            np.asarray(values, "float32")[:, None, None]
            for values in (self.sensor.mean, self.sensor.std)
        )
        arrays = images.detach().float().cpu().numpy()
        cubes = [a[None] if a.ndim == 3 else a.swapaxes(0, 1) for a in arrays]
        if self.standardised:
            cubes = [cube * std + mean for cube in cubes]
        streams = encode_many(cubes, self.config, device=settings.device)
        found = decode_many(streams, device=settings.device, weights=self._path())
        if self.standardised:
            found = [(cube - mean) / std for cube in found]
        out = np.stack([cube[0] if images.dim() == 4 else cube.swapaxes(0, 1) for cube in found])
        return torch.from_numpy(out).to(images), streams

    def _path(self) -> str | None:
        from tec.stream import weights_id

        return self.config.weights if weights_id(self.config.weights) == "file" else None


def register(registry: Any = None) -> list[str]:
    """Put the models into a registry of TerraTorch, its own for full models where none is given.

    Returns the names. Models that are there already are left alone.

    Raises
    ------
    ImportError
        There is no TerraTorch, and no registry was given.
    """
    if registry is None:
        try:
            from terratorch.registry import TERRATORCH_FULL_MODEL_REGISTRY
        except ImportError as error:
            raise ImportError(
                "xtec.terratorch needs TerraTorch: pip install terratorch, or pass a registry to "
                "register"
            ) from error
        registry = TERRATORCH_FULL_MODEL_REGISTRY
    names = []
    for sensor in SENSORS:
        for model in MODELS:
            builder = _builder(model, sensor)
            names.append(builder.__name__)
            if builder.__name__ not in registry:
                registry.register(builder)
    return names


def _builder(model: str, sensor: str) -> Callable[..., Codec]:
    def build(**options: Any) -> Codec:
        options.pop("pretrained", None)  # TerraTorch passes it; a codec always is
        return Codec(model, sensor, **options)

    build.__name__ = build.__qualname__ = f"xtec_{model}_{sensor.lower()}"
    build.__doc__ = f"The codec {model!r} of {sensor}; options: see `xtec.terratorch.Codec`."
    return build


register()
