"""What the published architectures have in common: loading, and checks of input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from torch import Tensor, nn

from ..entropy.portable import Margin, ScaleGrid
from ..entropy.tables import Tables, shipped
from ..errors import TecError, WeightsError
from .densities import EntropyBottleneck


class PublishedModel(nn.Module):
    """Base of the published models.

    Attributes
    ----------
    stride : image height and width must be multiples of it
    bands : channels of the image
    latents : channels of the latent y, which has 1/16 of the image's height and width
    bottleneck : the factorised density of y (fp) or of the hyperlatent z (elic)
    sha256 : of the checkpoint's file, set by who read it
    """

    stride: int
    bands: int
    latents: int
    sha256: str
    grid = ScaleGrid()
    margin = Margin(2.0**-15, 2.0**-15)

    def __init__(self) -> None:
        super().__init__()
        self._tables: tuple[Tensor, Tables] | None = None

    @property
    def bottleneck(self) -> EntropyBottleneck:
        raise NotImplementedError

    @property
    def tables(self) -> Tables:
        """Every integer table of the model: one a bottleneck channel, then the Gaussian scales."""
        source = self.bottleneck._quantized_cdf  # a new tensor whenever a checkpoint is loaded
        if self._tables is None or self._tables[0] is not source:
            tables = Tables.concatenate([self.bottleneck.tables(), shipped("gaussian")])
            self._tables = (source, tables)
        return self._tables[1]

    def margin_at(self, compression: float) -> Margin:
        """Rounding margin: a checkpoint has one rate."""
        return self.margin

    def _load(self, state_dict: Mapping[str, Tensor]) -> Self:
        load_strictly(self, without_prefix(state_dict))
        if self.bottleneck.stale():
            self.bottleneck.update()
        return self.eval()

    def _check_image(self, x: Tensor) -> None:
        if x.ndim != 4 or x.shape[1] != self.bands:
            raise TecError(
                f"image has shape {tuple(x.shape)}, {type(self).__name__} needs "
                f"(n, {self.bands}, height, width): reorder or fill the bands first"
            )
        if 0 in x.shape or x.shape[2] % self.stride or x.shape[3] % self.stride:
            raise TecError(
                f"image is {x.shape[2]} x {x.shape[3]} pixels, {type(self).__name__} needs "
                f"multiples of {self.stride}: pad it by repeating its edge and cut the result"
            )

    def _check_latent(self, y: Tensor) -> None:
        if y.ndim != 4 or y.shape[1] != self.latents:
            raise TecError(
                f"latent has shape {tuple(y.shape)}, {type(self).__name__} needs "
                f"(n, {self.latents}, height / 16, width / 16): was it made by another model?"
            )


def load_strictly(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Load exactly the tensors of ``model``; anything else is a WeightsError."""
    try:
        model.load_state_dict(state_dict, strict=True)
    except RuntimeError as error:
        what = " ".join(str(error).split())
        raise WeightsError(
            f"the checkpoint does not fit {type(model).__name__}: {what[:400]}; "
            "pass a published checkpoint of this architecture"
        ) from None


def without_prefix(state_dict: Mapping[str, Tensor], prefix: str = "model.") -> dict[str, Tensor]:
    """The state dict with ``prefix`` cut off wherever a key has it."""
    return {key.removeprefix(prefix): value for key, value in state_dict.items()}


def shapes(state_dict: Mapping[str, Tensor]) -> Shapes:
    """Shapes of the tensors by key, the prefix cut off; an absent key raises WeightsError."""
    return Shapes((key, tuple(value.shape)) for key, value in without_prefix(state_dict).items())


class Shapes(dict[str, tuple[int, ...]]):
    """Shapes by key, whose KeyError is a WeightsError."""

    def __missing__(self, key: str) -> tuple[int, ...]:
        raise WeightsError(
            f"the checkpoint has no tensor {key!r}: pass a published one of this architecture"
        )
