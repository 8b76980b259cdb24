"""Other codecs beside `elic` at equal PSNR, all of them on all cores: for `speed.py`.

They see one band of one date at a time, as many side by side as there are cores. All of them let go
of Python's lock while they work, as "cores busy" tells on a machine without other work.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
from baselines import BASELINES, missing
from tec import threads

WAYS = ("encode", "decode")
PEAK = 10000.0
#: dB between PSNRs that count as equal
NEAR = 0.1
#: zstd's, and Zarr's, unless told
LEVEL = 3


@dataclass(frozen=True)
class Rival:
    """A codec of (y, x) uint16.

    Attributes
    ----------
    settings : of the lowest and the highest quality that there may be; empty where it is lossless
    """

    name: str
    encode: Callable[[np.ndarray, float], Any]
    decode: Callable[[Any, tuple[int, ...]], np.ndarray]
    settings: tuple[float, ...] = ()


def psnr(dn: np.ndarray, back: np.ndarray) -> float:
    return float(10 * np.log10(PEAK**2 / ((back - dn.astype(np.float64)) ** 2).mean()))


def rivals() -> list[Rival]:
    """Those that can be run here, at the settings of `baselines`."""
    found = []
    for name, baseline, settings in (
        ("OpenJPEG", "JPEG 2000, all bands in one", (30.0, 90.0)),
        ("OpenJPH (HTJ2K)", "HTJ2K", (0.1, 1e-4)),
        ("JPEG XL", "JPEG XL grey", (15.0, 0.02)),
    ):
        codec = BASELINES[baseline]

        def encode(plane: np.ndarray, setting: float, codec=codec) -> Any:
            return codec.to_parts(plane[None], setting)

        def decode(parts: Any, shape: tuple[int, ...], codec=codec) -> np.ndarray:
            return codec.to_dn(parts, (1, *shape))[0]

        if not codec.missing():
            found.append(Rival(name, encode, decode, settings))
    if not missing(("imagecodecs",), "ZSTD"):
        import imagecodecs

        found.append(
            Rival(
                "zstd (lossless)",
                lambda plane, _: [imagecodecs.zstd_encode(plane.tobytes(), level=LEVEL)],
                lambda parts, shape: np.frombuffer(
                    imagecodecs.zstd_decode(parts[0]), np.uint16
                ).reshape(shape),
            )
        )
    return found


class Team:
    """A rival on all cores, with the planes of a chunk (time, band, y, x)."""

    def __init__(self, rival: Rival, chunk: np.ndarray, pool: ThreadPoolExecutor) -> None:
        self.name, self._rival, self._pool = rival.name, rival, pool
        self.megabytes, self.chunk = chunk.nbytes / 1e6, chunk
        self._planes = list(chunk.reshape(-1, *chunk.shape[2:]))
        self.setting = 0.0
        self._coded: list[Any] = []

    def run(self, way: str) -> list[Any]:
        def encode(plane: np.ndarray) -> Any:
            return self._rival.encode(plane, self.setting)

        def decode(coded: Any) -> np.ndarray:
            return self._rival.decode(coded, self.chunk.shape[2:])

        if way == "encode":
            self._coded = list(self._pool.map(encode, self._planes))
            return self._coded
        return list(self._pool.map(decode, self._coded))

    def quality(self, setting: float) -> float:
        """PSNR at a setting, which stays."""
        self.setting = setting
        self.run("encode")
        return psnr(self.chunk, np.stack(self.run("decode")).reshape(self.chunk.shape))

    def reach(self, wanted: float) -> dict[str, Any]:
        """Take the setting that gives a PSNR, to within NEAR; say what came of it."""
        got = float("inf")
        if ends := self._rival.settings:
            (a, b), most = np.log(ends), 20
            low, high = (self.quality(float(np.exp(end))) for end in (a, b))
            for _ in range(most):
                # Between the ends as the line through them says, but well inside.
                share = min(max((wanted - low) / (high - low), 0.1), 0.9)
                middle = a + share * (b - a)
                got = self.quality(float(np.exp(middle)))
                if abs(got - wanted) <= NEAR / 2:
                    break
                if got < wanted:
                    a, low = middle, got
                else:
                    b, high = middle, got
            if abs(got - wanted) > NEAR:
                raise SystemExit(f"{self.name} does not come to {wanted:.2f} dB: {got:.2f}")
        else:
            self.run("encode")
        size = sum(len(part) for parts in self._coded for part in parts)
        found = {"setting": self.setting, "bpppb": 8 * size / self.chunk.size}
        return found | ({"psnr": got} if np.isfinite(got) else {})


def turns(
    name: str,
    ours: Callable[[str], Any],
    megabytes: float,
    teams: list[Team],
    runs: int,
) -> list[dict[str, Any]]:
    """Some rounds, in each of which all contestants code there and back.

    Parameters
    ----------
    ours : codes ``megabytes`` one way, on all cores

    Returns
    -------
    Of each contestant, both ways: MB/s, the best of the rounds; the same for a second of a core,
    times cores; cores busy; and how many times as fast ours is, by either, medians of the rounds
    """
    work: list[tuple[str, float, Callable[[str], Any]]] = [(name, megabytes, ours)]
    work += [(team.name, team.megabytes, team.run) for team in teams]
    rounds: list[list[dict[str, tuple[float, float]]]] = []
    for _ in range(runs):
        row: list[dict[str, tuple[float, float]]] = [{} for _ in work]
        for way in WAYS:
            for found, (_, much, run) in zip(row, work):
                start, busy = time.perf_counter(), time.process_time()
                run(way)
                took, busy = time.perf_counter() - start, time.process_time() - busy
                found[way] = much / took, threads.allowed() * much / busy
        rounds.append(row)
    out: list[dict[str, Any]] = []
    for i, (who, *_) in enumerate(work):
        result: dict[str, Any] = {"codec": who}
        for way in WAYS:
            each = [row[i][way] for row in rounds]
            ours_each = [row[0][way] for row in rounds]
            result[way] = {
                "MB/s": max(wall for wall, _ in each),
                "cores free": max(free for _, free in each),
                "cores busy": median(threads.allowed() * w / free for w, free in each),
                "ours is": median(a[0] / b[0] for a, b in zip(ours_each, each)),
                "ours is, cores free": median(a[1] / b[1] for a, b in zip(ours_each, each)),
            }
        out.append(result)
    return out
