"""Whether more `compression` always means less error: λ rises by 5 %, the error of all frames
together must not.

Latents are those that a decoder gets; there is no decoding, and pixels are not rounded to DN.
Errors are squares of DN, pooled over bands, pixels and frames.

    python benchmarks/monotone.py --data ../shared/data/val [--model elic] [--size 128]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from tec import coder, weights
from tec.models.coding import CodecModel
from tec.sensors import SENSORS


def ladder(step: float = 0.05, lowest: float = 0.4, highest: float = 700.0) -> list[float]:
    """λ from lowest to highest, each 5 % above the one before (a little less, to end there)."""
    count = math.ceil(math.log(highest / lowest) / math.log1p(step))
    return [lowest * (highest / lowest) ** (i / count) for i in range(count + 1)]


@dataclass(frozen=True)
class Rise:
    """Between two neighbours on the ladder: the error at ``high`` over that at ``low``, less 1;
    negative where it falls, as it should."""

    low: float
    high: float
    share: float

    def __str__(self) -> str:
        return f"{100 * self.share:+.3f} % from λ {self.low:.4g} to {self.high:.4g}"


def changes(lambdas: Sequence[float], errors: Sequence[float]) -> list[Rise]:
    """What each step does to the error, worst first."""
    steps = (
        Rise(low, high, after / before - 1)
        for low, high, before, after in zip(lambdas, lambdas[1:], errors, errors[1:])
    )
    return sorted(steps, key=lambda step: -step.share)


def worst_rise(
    model: str, frames: Iterable[np.ndarray], lambdas: Sequence[float], *, path: str = "builtin"
) -> Rise:
    """The step of ``lambdas`` at which the pooled error rises most, or falls least.

    Parameters
    ----------
    model : "elic" or "fp"
    frames : (band, y, x) float32 each, standardised, sides multiples of 32
    path : of another checkpoint than the built-in one
    """
    return changes(lambdas, pooled_errors(weights.load(model, weights=path), frames, lambdas))[0]


def pooled_errors(
    network: CodecModel, frames: Iterable[np.ndarray], lambdas: Sequence[float]
) -> list[float]:
    """Mean squared error in DN at each λ, over all frames together."""
    parameter = next(network.parameters())
    std = torch.tensor(SENSORS["S2L2A"].std, dtype=parameter.dtype, device=parameter.device)
    squares, count = torch.zeros(len(lambdas), dtype=torch.float64), 0
    with coder.exactly(network):
        for batch in batches(frames):
            x = torch.from_numpy(batch).to(parameter)
            count += x.numel()
            for i, lmbda in enumerate(lambdas):
                y = network.analysis(x, lmbda)
                y_hat = coder.encode_images(network, y, lmbda).y_hat
                error = (network.synthesis(y_hat, lmbda) - x) * std[:, None, None]
                squares[i] += error.double().square().sum().cpu()
    return (squares / count).tolist()


def batches(frames: Iterable[np.ndarray], pixels: int = 2**18) -> Iterator[np.ndarray]:
    """Frames of one size together, (n, band, y, x)."""
    by_size: dict[tuple[int, ...], list[np.ndarray]] = {}
    for frame in frames:
        by_size.setdefault(frame.shape, []).append(frame)
    for (_, h, w), group in by_size.items():
        n = max(1, pixels // (h * w))
        for i in range(0, len(group), n):
            yield np.stack(group[i : i + n])


def standardised(dn: np.ndarray, offset: float = 0.0) -> np.ndarray:
    """(band, y, x) DN of S2L2A -> float32 as the networks see it."""
    sensor = SENSORS["S2L2A"]
    mean, std = (np.array(v, "float32")[:, None, None] for v in (sensor.mean, sensor.std))
    return (dn.astype("float32") - np.float32(offset) - mean) / std


def frames_of(folder: Path, pattern: str, size: int) -> Iterator[np.ndarray]:
    """Every 12-band L2A date without nodata, (band, y, x) as the networks see it: its first pixels,
    ``size`` a side at most and a multiple of 32."""
    for path in sorted(folder.glob(pattern)):
        cube = xr.open_zarr(path, consolidated=False).reflectance
        h, w = (min(cube.sizes[dim], size) // 32 * 32 for dim in ("y", "x"))
        if cube.attrs["level"] != "L2A" or cube.sizes["band"] != 12 or min(h, w) < 64:
            continue
        for dn in cube.values[:, :, :h, :w]:
            if (dn == 0).mean() < 0.001:
                yield standardised(dn, cube.attrs["offset"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of cubes (*.zarr)")
    parser.add_argument("--pattern", default="l2a_*.zarr", help="which of them")
    parser.add_argument("--model", choices=("elic", "fp"), help="both when left out")
    parser.add_argument("--size", type=int, default=256, help="pixels a side of a frame, at most")
    parser.add_argument("--step", type=float, default=0.05, help="of λ")
    parser.add_argument("--weights", default="builtin", help="path of another checkpoint")
    args = parser.parse_args()
    chosen = list(frames_of(args.data, args.pattern, args.size))
    lambdas = ladder(args.step)
    for model in ("elic", "fp") if args.model is None else (args.model,):
        errors = pooled_errors(weights.load(model, weights=args.weights), chosen, lambdas)
        found = changes(lambdas, errors)
        rising = sum(step.share > 0 for step in found)
        low, high = (10 * math.log10(1e8 / error) for error in (errors[0], errors[-1]))
        print(
            f"{model}, {len(chosen)} frames, {low:.2f} to {high:.2f} dB: the error rises at "
            f"{rising} of {len(found)} steps; the worst",
            *found[: max(3, min(10, rising))],
            sep="\n  ",
            flush=True,
        )


if __name__ == "__main__":
    main()
