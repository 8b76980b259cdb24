"""Published-size ELIC with random weights: this project against the reference package, in turns.

    pip install --no-deps -r requirements-oracle.txt
    python benchmarks/elic_speed.py [--size 256] [--dates 1] [--repeats 5] [--threads N] [--large]

Both code the same image with the same weights in the same process. The reference starts from the
standardised tensor and ends with one; ours is the whole codec, from integers to bytes and back.
MB are 10^6 bytes of uint16 input; times are medians.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from oracle import build, image, randomise, why_not
from tec import CodecConfig, decode, encode
from tec.sensors import SENSORS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, default=256, help="pixels, a multiple of 64")
    parser.add_argument("--dates", type=int, default=1, help="images in a batch")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="0: as torch has it")
    parser.add_argument("--large", action="store_true", help="N=192, M=320 instead of 128, 192")
    options = parser.parse_args()
    if why_not():
        sys.exit(f"the reference package cannot be imported: {why_not()}")
    if options.threads:
        torch.set_num_threads(options.threads)

    torch.manual_seed(0)
    n, m = (192, 320) if options.large else (128, 192)
    reference = build("elic", N=n, M=m)
    randomise(reference, spread=1.0, scale=1.0)
    sensor = SENSORS["S2L2A"]
    mean, std = (np.array(v, np.float32)[:, None, None] for v in (sensor.mean, sensor.std))
    x = image(options.dates, options.size, options.size)
    dn = np.clip(np.rint(x.numpy() * std * 0.5 + mean), 0, 10000).astype(np.uint16)
    x = torch.from_numpy((dn - mean) / std)

    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "random.pt"))
        torch.save({f"model.{k}": v for k, v in reference.state_dict().items()}, path)
        config = CodecConfig(model="elic", weights=path)
        report(dn, x, reference, config, options.repeats)


@torch.no_grad()
def report(dn: np.ndarray, x: torch.Tensor, reference, config: CodecConfig, repeats: int) -> None:
    coded = reference.compress(x)
    data = encode(dn, config, device="cpu")
    theirs_bytes = sum(len(s) for group in coded["strings"] for s in group)
    runs: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "encode": (
            lambda: reference.compress(x),
            lambda: encode(dn, config, device="cpu"),
        ),
        "decode": (
            lambda: reference.decompress(coded["strings"], coded["shape"]),
            lambda: decode(data, weights=config.weights, device="cpu"),
        ),
    }
    ours = (decode(data, weights=config.weights, device="cpu") - dn.astype(np.float64)).std()
    size = dn.nbytes / 1e6
    print(f"{dn.shape} uint16, {size:.2f} MB, {torch.get_num_threads()} threads")
    print(f"bytes: reference {theirs_bytes}, ours {len(data)} (x {len(data) / theirs_bytes:.3f})")
    print(f"standard deviation of the error of ours (random weights): {ours:.0f} DN")
    for what, pair in runs.items():
        times: tuple[list[float], list[float]] = ([], [])
        for run in pair:
            run()
        for _ in range(repeats):
            for run, spent in zip(pair, times):
                start = time.perf_counter()
                run()
                spent.append(time.perf_counter() - start)
        theirs_s, ours_s = (statistics.median(t) for t in times)
        print(
            f"{what}: reference {size / theirs_s:5.2f} MB/s, ours {size / ours_s:5.2f} MB/s, "
            f"ours is {theirs_s / ours_s:.2f} times as fast"
        )


if __name__ == "__main__":
    main()
