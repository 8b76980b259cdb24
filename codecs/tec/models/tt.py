"""TEC-TT and FlexTEC with the published weights (arXiv 2510.12670, sections 3.3 and 3.4)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..entropy.integers import GRID, IntegerCoding
from ..entropy.portable import Margin
from ..entropy.tables import Tables, shipped
from ..errors import TecError
from .blocks import AttentionBlock, ResidualUnit, channels_last, conv, deconv, round_through
from .coding import Rounder
from .published import load_strictly, shapes, without_prefix
from .temporal import DATES, DateOut, DateSteps, History, TemporalPrior, Unrolling, date_steps
from .tokens import CELLS, TOKENS, Layout, from_blocks, to_blocks
from .transformer import EPSILON

#: Latents are divided by it before they are embedded.
NORM = 35.0
RASTER = tuple((i,) for i in range(CELLS))
#: What a checkpoint holds beside weights: tables of the reference's coder and its causal masks.
_NOT_WEIGHTS = ("entropy_model.bottleneck.", ".look_ahead_mask")
_SMALLEST = 0.01  # is added to every scale


@dataclass(frozen=True)
class TTConfig:
    """Sizes of the network.

    Attributes
    ----------
    bands : channels of the image
    channels : of the transforms at strides 2, 4, 8 and 16; the last is the latent's
    width, heads, expansion : of the transformer
    layers : of its separate encoder, joint encoder and decoder
    repacked : whether a token is a slice of channels at all positions (FlexTEC)
    """

    bands: int = 12
    channels: tuple[int, int, int, int] = (128, 160, 192, 192)
    width: int = 768
    heads: int = 16
    expansion: int = 4
    layers: tuple[int, int, int] = (6, 4, 5)
    repacked: bool = False

    def __post_init__(self) -> None:
        if self.repacked and (self.channels[3] % 64 or self.width % CELLS):
            raise TecError(
                f"FlexTEC cuts {self.channels[3]} latent channels in 64 and a width of "
                f"{self.width} in 16 slices: both must divide"
            )

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Tensor], *, repacked: bool) -> Self:
        """Read off the tensors' shapes (heads have no shape: 48 channels each)."""
        found = shapes(state_dict)
        stack = "entropy_model.{}.layers.encoder_layer_{}.norm1a.weight"
        layers = []
        for name in ("encoder_sep", "encoder_joint", "decoder"):
            layers.append(0)
            while stack.format(name, layers[-1]) in found:
                layers[-1] += 1
        analysis = "transform.analysis_transform.transforms.{}.weight"
        convs = [found[analysis.format(i)] for i in (0, 4, 9, 13)]
        hidden, width = found["entropy_model.decoder.layers.encoder_layer_0.mlp1.fc1.weight"]
        return cls(
            bands=convs[0][1],
            channels=tuple(c[0] for c in convs),  # type: ignore[arg-type]
            width=width,
            heads=max(1, width // 48),
            expansion=hidden // width,
            layers=tuple(layers),  # type: ignore[arg-type]
            repacked=repacked,
        )

    @property
    def layout(self) -> Layout:
        latents = self.channels[3]
        if self.repacked:
            return Layout((latents // TOKENS,) * TOKENS, (tuple(range(CELLS)),))
        return Layout((latents,), RASTER)


class _Symbol(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.sym = nn.Parameter(6 * torch.rand(channels) - 3)


class TTPrior(TemporalPrior):
    """The entropy model. Means and scales are of integers."""

    def __init__(self, config: TTConfig) -> None:
        super().__init__(config.layout, config.width, config.heads, config.layers, config.expansion)
        channels, width = config.channels[3], config.width
        self.repacked = config.repacked
        self.learned_zero = _Symbol(channels)
        self.post_embedding_layernorm = nn.LayerNorm(width, eps=EPSILON)
        self.encoder_embedding = nn.Linear(channels, width)
        self.decoder_embedding = nn.Linear(channels, width)
        self.mean_head = _head(width, channels)
        self.scale_head = _head(width, channels)
        self.absent = nn.Parameter(torch.rand(1, channels, 1, 1))
        if config.repacked:
            self.mask_token = nn.Parameter(2 * torch.rand(channels) - 1)
            self.z_cur_mask_token = nn.Parameter(2 * torch.rand(width) - 1)

    def embed_window(self, windows: Tensor) -> Tensor:
        tokens = repack(windows) if self.repacked else windows
        return self.post_embedding_layernorm(self.encoder_embedding(tokens / NORM))

    def embed_start(self) -> Tensor:
        return self._embed(self.learned_zero.sym[None, None])

    def embed_tokens(self, values: Tensor) -> Tensor:
        return self._embed(values)

    def _embed(self, values: Tensor) -> Tensor:
        return self.post_embedding_layernorm(self.decoder_embedding(values / NORM))

    def heads(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return self.mean_head(features), scale_of(self.scale_head(features)).log()

    def first_window(self) -> Tensor:
        return self.absent.flatten()[None, None].expand(1, 64, -1)

    def feature_map(self, features: Tensor, h: int, w: int) -> Tensor:
        """(n, blocks, 16 tokens, width) -> (n, width, h, w), in the picture."""
        if self.repacked:
            features = repack(features.flatten(0, 1)).unflatten(0, (len(features), -1))
        return from_blocks(features, h, w)


def repack(x: Tensor) -> Tensor:
    """(b, tokens, channels): cut the channels in as many slices as there are tokens, and transpose.

    Latent repacking; its own inverse.
    """
    b, tokens, channels = x.shape
    return x.reshape(b, tokens, tokens, -1).transpose(1, 2).reshape(b, tokens, channels)


def scale_of(raw: Tensor) -> Tensor:
    """s + 1 above 0, 1 / (1 - s) below; and 0.01."""
    return torch.where(raw > 0, raw + 1, 1 / (1 - raw.clamp_max(0))) + _SMALLEST


def _head(width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width, width),
        nn.LeakyReLU(),
        nn.Linear(width, width),
        nn.LeakyReLU(),
        nn.Linear(width, outputs),
    )


class _Pair(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.conv2(F.leaky_relu(self.conv1(x)))) + x


def _units(n: int) -> list[nn.Module]:
    return [ResidualUnit(n) for _ in range(3)]


class TT(nn.Module):
    """``tt`` and ``flex`` of the published weights: see :mod:`tec.models.temporal`.

    Attributes
    ----------
    stride : image height and width must be multiples of it
    prior : the entropy model
    """

    stride = 64
    plain = True
    grid = GRID
    margin = Margin(2.0**-13, 2.0**-15)
    sha256: str

    def __init__(self, config: TTConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or TTConfig()
        self.bands, self.latents = config.bands, config.channels[3]
        self.repacked = config.repacked
        a, b, c, d = config.channels
        self.analysis_transform = nn.Sequential(
            conv(config.bands, a),
            *_units(a),
            conv(a, b),
            *_units(b),
            AttentionBlock(b),
            conv(b, c),
            *_units(c),
            conv(c, d),
            AttentionBlock(d),
        )
        self.synthesis_transform = nn.Sequential(
            AttentionBlock(d),
            deconv(d, c),
            *_units(c),
            deconv(c, b),
            AttentionBlock(b),
            *_units(b),
            deconv(b, a),
            *_units(a),
            deconv(a, config.bands),
        )
        self.prior = TTPrior(config)
        self.dequantizer = nn.Sequential(nn.Conv2d(config.width, d, 1), nn.LeakyReLU(), _Pair(d))

    @property
    def tables(self) -> Tables:
        return shipped("gaussian-integers")

    @cached_property
    def coding(self) -> IntegerCoding:
        """From means on the grid to table indexes."""
        return IntegerCoding(self.grid, self.tables)

    # what the codec asks for: see tec.models.coding

    def analysis(self, x: Tensor, compression: float | None = None) -> Tensor:
        """(n, bands, h, w) standardised -> y (n, latents, h/16, w/16); TecError if it does not
        fit."""
        if x.ndim != 4 or x.shape[1] != self.bands or x.shape[2] % 64 or x.shape[3] % 64:
            raise TecError(
                f"image has shape {tuple(x.shape)}, {type(self).__name__} needs "
                f"(n, {self.bands}, height, width), both multiples of 64: fill and pad it first"
            )
        return self.analysis_transform(channels_last(x))

    def compression(self, sent: int, compression: float) -> float:
        """A checkpoint has one rate."""
        return compression

    def margin_at(self, compression: float, dates: int = DATES) -> Margin:
        """Rounding margin."""
        return self.margin

    def history(self, shape: tuple[int, int, int]) -> History:
        """The dates before the first: none. ``shape``: images, height and width of latents."""
        return History(self.prior, shape)

    def date(
        self,
        history: History,
        rounder: Rounder,
        *,
        compression: float | None = None,
        known: Tensor | None = None,
        sent: int = TOKENS,
        forecast: str = "mean",
    ) -> DateSteps:
        """The autoregression over one date: see `tec.models.temporal.date_steps`."""
        return date_steps(history, rounder, self.coding, known=known, sent=sent, forecast=forecast)

    def remembered(self, y_hat: Tensor, compression: float | None = None) -> Tensor:
        """What later dates see of a decoded one."""
        return y_hat

    def restored(self, out: DateOut) -> Tensor:
        """What the synthesis gets for a date: latents, and what the decoder's features add."""
        return self._restored(out.y_hat, out.features)

    def _restored(self, y_hat: Tensor, features: Tensor) -> Tensor:
        inside = self.prior.feature_map(features, *y_hat.shape[2:])
        return y_hat + self.dequantizer(channels_last(inside))

    def synthesis(self, y: Tensor, compression: float | None = None) -> Tensor:
        """(n, latents, h, w) -> (n, bands, 16 h, 16 w)."""
        return self.synthesis_transform(channels_last(y))

    # estimates, training, parity

    def forward(
        self,
        x: Tensor,
        quality: int | Sequence[int] = TOKENS,
        *,
        as_trained: bool = False,
    ) -> dict[str, Tensor]:
        """Reconstruction and estimated rate, without a bitstream.

        Parameters
        ----------
        x : (n, dates, bands, h, w) float32, standardised; h and w multiples of 64
        quality : tokens that are sent, 0 to 16, for all dates or each; a short list repeats its end
        as_trained : FlexTEC's training path in place of the real stream: dates see whole latents,
            and the synthesis gets learned tokens in place of those that are not sent

        Returns
        -------
        x_hat like x; y, y_hat, means, scales (n, dates, latents, h/16, w/16), in the picture; bits
        (n, dates), of the tokens that are sent: the reference's estimate
        """
        n, dates = x.shape[:2]
        y = self.analysis(x.flatten(0, 1)).unflatten(0, (n, dates))
        h, w = y.shape[3:]
        history = self.history((n, h, w))
        sent = [quality] * dates if isinstance(quality, int) else list(quality)[:dates]
        sent += sent[-1:] * (dates - len(sent))
        rows: dict[str, list[Tensor]] = {k: [] for k in ("y_hat", "means", "scales", "bits", "s")}
        for t in range(dates):
            whole = round_through(y[:, t])
            found = self._date(history, whole, TOKENS if as_trained else sent[t])
            y_hat, features = found["y_hat"], found["features"]
            history.push(y_hat)
            if as_trained and sent[t] < TOKENS:
                y_hat, features = self._masked(y_hat, features, sent[t])
            rows["s"].append(self._restored(y_hat, features))
            rows["bits"].append(
                estimated_bits(found["values"], found["mean"], found["log_scale"])[
                    :, :, : sent[t]
                ].sum((1, 2, 3))
            )
            rows["y_hat"].append(y_hat)
            rows["means"].append(self._picture(found["mean"], h, w))
            rows["scales"].append(self._picture(found["log_scale"].exp(), h, w))
        out = {k: torch.stack(v, 1) for k, v in rows.items()}
        x_hat = self.synthesis(out.pop("s").flatten(0, 1)).unflatten(0, (n, dates))
        return {"x_hat": x_hat, "y": y, **out}

    def _date(self, history: History, whole: Tensor, sent: int) -> dict[str, Tensor]:
        """One date, from float parameters. Tokens are (n, blocks, 16, values)."""
        n, layout = len(whole), self.prior.layout
        all_found: dict[str, list[Tensor]] = {
            k: [] for k in ("values", "mean", "log_scale", "features")
        }
        for blocks in history.groups():
            tokens = layout.tokens(to_blocks(whole)[:, blocks].flatten(0, 1))
            unrolling = Unrolling(self.prior, history.context(blocks), len(tokens[0]))
            parts = [unrolling.predict(tokens[: sent - 1], sent)] if sent else []
            for i in range(sent, TOKENS):
                parts.append(unrolling.predict(tokens[i - 1 : i] if i else []))
                tokens[i] = round_through(parts[-1].means[0])
            for key, new in (
                ("values", tokens),
                ("mean", [m for p in parts for m in p.means]),
                ("log_scale", [s for p in parts for s in p.log_scales]),
            ):
                all_found[key].append(torch.stack(new, 1).unflatten(0, (n, -1)))
            features = torch.cat([p.features for p in parts], 1)
            all_found["features"].append(features.unflatten(0, (n, -1)))
        out = {k: torch.cat(v, 1) for k, v in all_found.items()}
        return {**out, "y_hat": self._picture(out["values"], *history.shape[1:])}

    def _picture(self, tokens: Tensor, h: int, w: int) -> Tensor:
        """(n, blocks, 16 tokens, values) -> (n, latents, h, w)."""
        cells = self.prior.layout.blocks(tokens.flatten(0, 1).unbind(1))
        return from_blocks(cells.unflatten(0, (len(tokens), -1)), h, w)

    def _masked(self, y_hat: Tensor, features: Tensor, sent: int) -> tuple[Tensor, Tensor]:
        """Learned tokens in place of those that are not sent."""
        h, w = y_hat.shape[2:]
        tokens = self.prior.layout.tokens(to_blocks(y_hat).flatten(0, 1))
        tokens[sent:] = [self.prior.mask_token.expand_as(t) for t in tokens[sent:]]
        cells = self.prior.layout.blocks(tokens).unflatten(0, (len(y_hat), -1))
        features = features.clone()
        features[:, :, sent:] = self.prior.z_cur_mask_token
        return from_blocks(cells, h, w), features

    @classmethod
    def from_published(cls, state_dict: Mapping[str, Tensor], *, repacked: bool = False) -> Self:
        """The model of a published state dict, key for key, in evaluation mode.

        Raises
        ------
        WeightsError
            Tensors are missing, unknown or of the wrong shape.
        """
        with torch.device("meta"):  # 225 million random numbers would be drawn for nothing
            model = cls(TTConfig.from_state_dict(state_dict, repacked=repacked))
        model.to_empty(device="cpu")
        ours = {
            own_name(key): value
            for key, value in without_prefix(state_dict).items()
            if not any(part in key for part in _NOT_WEIGHTS)
        }
        if repacked:  # made without masking, a checkpoint has no tokens for it
            for key in ("prior.mask_token", "prior.z_cur_mask_token"):
                ours.setdefault(key, torch.zeros_like(model.state_dict()[key]))
        load_strictly(model, ours)
        return model.eval()


NAMES = (
    ("transform.analysis_transform.transforms.", "analysis_transform."),
    ("transform.synthesis_transform.transforms.", "synthesis_transform."),
    ("_dequantizer.process_conv.", "dequantizer."),
    ("_temporal_pad_token_maker.weight", "prior.absent"),
    ("entropy_model.", "prior."),
)


def estimated_bits(values: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """The reference's estimate for integers: scales on 256 levels, fractions of means clipped."""
    span = math.log(256 / _SMALLEST + 1)
    level = ((log_scale - math.log(_SMALLEST)) / span * 255).clamp(0, 255)
    scale = torch.exp(round_through(level) / 255 * span + math.log(_SMALLEST))
    nearest = round_through(mean)
    distance = (values - nearest - (mean - nearest).clamp(-0.5, 0.49)).abs()
    above, below = (torch.erfc((distance + d) / scale * math.sqrt(0.5)) for d in (-0.5, 0.5))
    return -torch.log2((0.5 * (above - below)).clamp_min(1e-9))


def own_name(key: str) -> str:
    """Our name of a published tensor, without ``model.``."""
    for theirs, ours in NAMES:
        if key.startswith(theirs):
            return ours + key[len(theirs) :]
    return key
