"""Series of dates with ``tt``, beside ``elic``, on places never trained on: real bytes.

Each place with several dates makes chunks of up to four dates of up to 256 x 256 pixels. PSNR has
the peak 10000 DN and is taken over all bands of a date, then averaged.

    python benchmarks/series.py --data ../shared/data/val
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tec
import xarray as xr
from rate_distortion import LAMBDAS, psnr
from tec import stream
from tec.sensors import SENSORS


def chunks(folder: Path) -> Iterator[tuple[str, np.ndarray, float]]:
    """(place, (time, band, y, x) uint16, offset) of 12-band L2A cubes of two dates or more."""
    for path in sorted(folder.glob("l2a_*.zarr")):
        cube = xr.open_zarr(path, consolidated=False).reflectance
        if cube.attrs["level"] != "L2A" or cube.sizes["band"] != 12 or cube.sizes["time"] < 2:
            continue
        if min(cube.sizes["y"], cube.sizes["x"]) < 64:
            continue
        whole = [dn for dn in cube.values[:, :, :256, :256] if (dn == 0).mean() < 0.001]
        for i in range(0, len(whole), 4):
            if len(whole[i : i + 4]) > 1:
                yield path.stem, np.stack(whole[i : i + 4]), float(cube.attrs["offset"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of validation cubes (*.zarr)"
    )
    args = parser.parse_args()
    everything = list(chunks(args.data))
    for title, part in (("SSL4EO-S12 places", "l2a_ssl4eo"), ("all places", "l2a_")):
        chosen = [c for c in everything if c[0].startswith(part)]
        dates = sum(len(dn) for _, dn, _ in chosen)
        print(f"\n{title}: {len(chosen)} chunks of {dates} dates")
        for lmbda in LAMBDAS:
            size = {"elic": 0, "tt": 0}
            quality: dict[str, list[float]] = {"elic": [], "tt": []}
            predicted = 0
            for _, dn, offset in chosen:
                for model in size:
                    config = tec.CodecConfig(
                        model=model, compression=lmbda, offset=offset, bands=SENSORS["S2L2A"].bands
                    )
                    data = tec.encode(dn, config)
                    size[model] += len(data)
                    quality[model] += map(psnr, dn, tec.decode(data))
                    predicted += tec.peek(data).how.count(stream.TEMPORAL)
            samples = sum(dn.size for _, dn, _ in chosen)
            rate = {model: 8 * n / samples for model, n in size.items()}
            mean = {model: float(np.mean(q)) for model, q in quality.items()}
            print(
                f"  λ {lmbda:5g}: elic {rate['elic']:.4f} bpppb {mean['elic']:.2f} dB   "
                f"tt {rate['tt']:.4f} {mean['tt']:.2f} dB   "
                f"{100 * (rate['tt'] / rate['elic'] - 1):+.1f} %, "
                f"{predicted} of {dates} dates by the transformer"
            )


if __name__ == "__main__":
    main()
