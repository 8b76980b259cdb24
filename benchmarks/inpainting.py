"""Cloud inpainting against what else can be done about a cloud, on synthetic masks.

    python benchmarks/inpainting.py [--data ../shared/data/val] [--dates 8] [--bytes]

Each date of a cube gets a mask of blobs that hide a tenth to a half of it, and what is under it is
painted over; all methods see the same. Measures are of hidden pixels that are clear at a date
before and at one after, so that all methods have something to go by; the means are over cubes. Of
the methods, "linear", "median", "harmonic" and tt's "both" and "backward" need later dates.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import tec
import xarray as xr
from tec import inpainting

from xtec import quality

CUBES = ("l2a_gelos", "l2a_ssl4eos12", "l2a_openeo", "l2a_worldcereal", "l1c_sen12mscrts")
SIDE = 256


def masks(shape: tuple[int, int, int], rng: np.random.Generator) -> np.ndarray:
    """(time, y, x) bool: blobs as clouds have them, of many sizes, more of the large ones."""
    dates, height, width = shape
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    amplitude = (frequency + 1 / max(height, width)) ** -2.0
    out = np.empty(shape, bool)
    for date, share in zip(out, rng.uniform(0.1, 0.5, dates)):
        noise = np.fft.fft2(rng.standard_normal((height, width)))
        field = np.fft.ifft2(noise * amplitude).real
        date[:] = field > np.quantile(field, 1 - share)
    return out


# Methods: (time, band, y, x) float, (time, y, x) bool of pixels that are not known -> the same,
# these replaced.


def previous(pixels: np.ndarray, hidden: np.ndarray, when: np.ndarray) -> np.ndarray:
    """The last clear value."""
    out = pixels.copy()
    for t in range(1, len(out)):
        out[t] = np.where(hidden[t], out[t - 1], out[t])
    return out


def linear(pixels: np.ndarray, hidden: np.ndarray, when: np.ndarray) -> np.ndarray:
    """On the line between the last clear value and the next."""
    dates = len(pixels)
    index = np.arange(dates)[:, None, None]
    before = np.maximum.accumulate(np.where(hidden, -1, index))
    after = np.minimum.accumulate(np.where(hidden, dates, index)[::-1])[::-1]
    first = np.where(before < 0, np.minimum(after, dates - 1), before)
    last = np.where(after == dates, first, after)
    share = (when[:, None, None] - when[first]) / np.maximum(when[last] - when[first], 1e-9)
    ends = (np.take_along_axis(pixels, i[:, None], axis=0) for i in (first, last))
    low, high = ends
    return low + (high - low) * np.where(first == last, 0, share)[:, None]


def median(pixels: np.ndarray, hidden: np.ndarray, when: np.ndarray) -> np.ndarray:
    """The median of the clear dates."""
    clear = np.ma.masked_array(pixels, np.broadcast_to(hidden[:, None], pixels.shape))
    return np.where(hidden[:, None], np.ma.median(clear, axis=0).filled(0), pixels)


def harmonic(pixels: np.ndarray, hidden: np.ndarray, when: np.ndarray) -> np.ndarray:
    """A level and one wave a year, fitted to the clear dates of a pixel, waves held down a
    little."""
    angle = 2 * np.pi * when
    basis = np.stack([np.ones_like(angle), np.cos(angle), np.sin(angle)], 1)  # (time, 3)
    clear = (~hidden).astype(float)
    normal = np.einsum("tyx,ti,tj->yxij", clear, basis, basis) + np.diag([1e-3, 0.3, 0.3])
    right = np.einsum("tbyx,tyx,ti->byxi", pixels, clear, basis)
    fit = np.linalg.solve(normal, right[..., None])[..., 0]
    return np.where(hidden[:, None], np.einsum("byxi,ti->tbyx", fit, basis), pixels)


PLAIN: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "previous clear date": previous,
    "linear in time": linear,
    "median of other dates": median,
    "harmonic fit": harmonic,
}


class _Fit:
    """In place of the network: the fit alone that it is told of."""

    def __init__(self, *_: object) -> None:
        pass

    def predict(self, fitted: np.ndarray, *_: object) -> np.ndarray:
        return fitted


def forecast(pixels: np.ndarray, config: tec.CodecConfig) -> np.ndarray:
    """Each date from the two before by "flex" that sends nothing of it."""
    out = pixels.copy()
    for t in range(1, len(pixels)):
        first = max(0, t - 2)
        sent = (*[16] * (t - first), 0)
        flex = tec.CodecConfig(
            model="flex", quality=sent, bands=config.bands, offset=config.offset, nodata=0,
            sensor=config.sensor,
        )  # fmt: skip
        out[t] = tec.decode(tec.encode(pixels[first : t + 1], flex))[-1]
    return out


def methods(
    hazy: np.ndarray, hidden: np.ndarray, when: np.ndarray, config: tec.CodecConfig
) -> Iterator[tuple[str, np.ndarray]]:
    for name, method in PLAIN.items():
        yield name, method(hazy.astype(float), hidden, when)
    mask = hidden & (hazy != 0).any(axis=1)
    ways = [(d, "tokens") for d in inpainting.DIRECTIONS] + [("both", "rest")]
    for direction, mode in ways:
        filled = tec.inpaint(hazy, mask, config, direction=direction, mode=mode).pixels
        yield f"tt, {direction}, {mode}", filled
        if direction == "forward" and config.sensor == "S2L2A":
            yield "flex, quality 0", forecast(filled, config)
    with mock.patch.object(inpainting, "_Painter", _Fit):
        for direction in ("both", "forward"):
            yield f"fit alone, {direction}", tec.inpaint(hazy, mask, config, direction=direction)[0]


def measures(dn: np.ndarray, filled: np.ndarray, where: np.ndarray) -> tuple[float, ...]:
    """PSNR (peak 10000 DN) in dB, SSIM, spectral angle in degrees and mean absolute error in DN of
    the pixels ``where`` (time, y, x)."""
    bands = np.broadcast_to(where[:, None], dn.shape)
    error = (filled.astype(float) - dn)[bands]
    composed = np.where(bands, filled, dn).astype(float)
    near = where[:, 5:-5, 5:-5]
    similar = [ssim(a, b)[:, m].mean() for a, b, m in zip(dn, composed, near) if m.any()]
    angle = quality.spectral_angle(dn, composed)[where]
    psnr = 10 * np.log10(1e8 / np.mean(error**2))
    return psnr, float(np.mean(similar)), float(np.nanmean(angle)), float(np.abs(error).mean())


def ssim(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(band, y, x) DN twice -> (band, y - 10, x - 10), peak 10000 DN."""
    a, b = a.astype(float), b.astype(float)
    c1, c2 = 100.0**2, 300.0**2
    blur = quality._blur
    u, v = blur(a), blur(b)
    spread, other, both = blur(a * a) - u * u, blur(b * b) - v * v, blur(a * b) - u * v
    return (2 * u * v + c1) * (2 * both + c2) / ((u * u + v * v + c1) * (spread + other + c2))


def cubes(
    folder: Path, dates: int
) -> Iterator[tuple[str, np.ndarray, np.ndarray, tec.CodecConfig]]:
    for name in CUBES:
        for path in sorted(folder.glob(f"{name}*.zarr")):
            cube = xr.open_zarr(path, consolidated=False).reflectance
            cube = cube.isel(time=slice(dates), y=slice(SIDE), x=slice(SIDE))
            when = np.arange(len(cube)) / 4  # years: four seasons, where no dates are known
            if "time" in cube.coords and cube.time.dtype.kind == "M":
                days = (cube.time.values - cube.time.values[0]) / np.timedelta64(1, "D")
                when = days.astype(float) / 365.25
            bands = tuple(cube.band.values.tolist())
            sensor = "S2L1C" if cube.attrs["level"] == "L1C" else "S2L2A"
            config = tec.CodecConfig(
                model="tt",
                compression=inpainting.COMPRESSION,
                bands=bands,
                sensor=sensor,
                offset=float(cube.attrs["offset"]),
                nodata=0,
            )
            yield path.stem, cube.values, when, config


def hide(dn: np.ndarray, hidden: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """With bright clouds, smooth as clouds are, where it is hidden; nodata stays."""
    height, width = dn.shape[2:]
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    noise = np.fft.fft2(rng.standard_normal((len(dn), height, width)))
    field = np.fft.ifft2(noise * (frequency + 0.02) ** -1.5).real
    white = np.clip(5000 + 1000 * field / field.std(), 1, None)[:, None]
    covered = hidden[:, None] & (dn != 0)
    return np.where(covered, white, dn).astype(dn.dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/val"))
    parser.add_argument("--dates", type=int, default=8)
    parser.add_argument("--bytes", action="store_true", help="what inpainting saves, instead")
    args = parser.parse_args()
    table: dict[str, dict[str, list[tuple[float, ...]]]] = {}
    for seed, (name, dn, when, config) in enumerate(cubes(args.data, args.dates)):
        rng = np.random.default_rng(seed)
        hidden = masks((len(dn), *dn.shape[2:]), rng)
        hazy = hide(dn, hidden, rng)
        if args.bytes:
            print(saved(name, dn, hazy, hidden, config), flush=True)
            continue
        clear = ~hidden & (dn != 0).all(axis=1)
        before, after = (np.logical_or.accumulate(c) for c in (clear, clear[::-1]))
        where = hidden & (dn != 0).all(axis=1) & before & after[::-1]
        family = next(part for part in CUBES if name.startswith(part))
        unknown = hidden | (dn == 0).all(axis=1)
        for method, filled in methods(hazy, unknown, when, config):
            rows = table.setdefault(family, {}).setdefault(method, [])
            rows.append(measures(dn, filled, where))
    for family, found in table.items():
        count = len(next(iter(found.values())))
        print(f"\n{family}, {count} cubes: PSNR dB, SSIM, SAM degrees, MAE DN")
        for method, rows in found.items():
            psnr, similar, angle, error = np.mean(rows, axis=0)
            print(f"  {method:24} {psnr:6.2f} {similar:7.4f} {angle:6.2f} {error:7.1f}")


def saved(
    name: str, dn: np.ndarray, hazy: np.ndarray, hidden: np.ndarray, config: tec.CodecConfig
) -> str:
    """Bytes at λ 20, chunks of four dates: with clouds, with predictions, and without clouds."""
    coded = tec.CodecConfig(
        model="tt", bands=config.bands, sensor=config.sensor, offset=config.offset, nodata=0
    )

    def size(pixels: np.ndarray) -> int:
        starts = range(0, len(pixels), 4)
        return sum(len(tec.encode(pixels[t : t + 4], coded)) for t in starts)

    ways = {"with clouds": size(hazy)}
    for direction in ("forward", "both"):
        pixels, filled = tec.inpaint(hazy, hidden, config, direction=direction)
        left = 100 * (hidden & ~filled).mean()
        ways[f"inpainted, {direction} ({left:.1f} % left)"] = size(pixels)
        whole = np.where((hidden & ~filled)[:, None], dn, pixels)
        ways[f"{direction}, and the rest clear"] = size(whole)
    ways["of the scene itself"] = size(dn)
    told = "; ".join(f"{way} {n}" for way, n in ways.items())
    return f"{name}, {100 * hidden.mean():.0f} % hidden: bytes {told}"


if __name__ == "__main__":
    main()
