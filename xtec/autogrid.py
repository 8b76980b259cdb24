"""chunks="auto" and shards="auto": sizes for a model and a device that fit the blocks there are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product

#: What people pass in place of sizes.
AUTO = "auto"
#: Pixels of a chunk each way. What was measured is in docs/design.md; on a GPU nothing was.
SIDE = {"cpu": 512, "cuda": 1024}
#: Dates of a chunk, where a model makes anything of several.
DATES = {"tt": 4, "flex": 4, "none": 4}
#: Bytes of pixels in one object of a store, and how many objects there should be at most before
#: they become larger than that (up to the second number).
OBJECT, LARGEST = 100e6, 500e6
OBJECTS = 1e5
#: So few objects are no burden for any store: they need no shards.
FEW = 1000
#: What a chunk half as large (or twice) costs, as a share of the whole; padding costs what it adds:
#: 549 pixels, padded to 560, took 2.5 % more than 512.
_HALVED = 0.03


def auto_chunks(
    sizes: dict[str, int],
    blocks: Mapping[str, Sequence[int]],
    *,
    model: str,
    stride: int = 16,
    device: str = "cpu",
) -> dict[str, int]:
    """Chunk size by role.

    Parameters
    ----------
    sizes : of the array, by role
    blocks : sizes of the Dask blocks (or of the chunks on disk) by role, where there are any
    model : as in `compress`
    stride : pixels that the model pads to
    device : "cpu" or "cuda", "cuda:1", ...

    Returns
    -------
    dict
        Of all roles. Along y and x half to one and a half times ``SIDE``, a divisor of the blocks
        if there is one, else whole blocks together; else, and where there are no blocks, as even
        parts of the array as multiples of ``stride`` make. Arrays that are hardly larger than one
        chunk are one.

    Examples
    --------
    >>> auto_chunks({"time": 40, "y": 10980, "x": 10980}, {}, model="tt")
    {'time': 4, 'y': 528, 'x': 528}
    >>> blocks = {"time": [1] * 40, "y": [2048] * 5 + [740], "x": [1098] * 10}
    >>> auto_chunks({"time": 40, "y": 10980, "x": 10980}, blocks, model="elic")
    {'time': 1, 'y': 512, 'x': 366}
    """
    side = SIDE["cpu" if device == "cpu" else "cuda"]
    found = {}
    for role, size in sizes.items():
        unit = _unit(blocks.get(role, ()))
        if role == "time":
            found[role] = _dates(size, unit, DATES.get(model, 1))
        else:
            found[role] = size if role == "band" else _side(size, unit, side, stride)
    return found


def auto_shards(
    sizes: dict[str, int],
    blocks: Mapping[str, Sequence[int]],
    chunk: dict[str, int],
    itemsize: int,
) -> dict[str, int] | None:
    """Shard size by role, in whole chunks; None where there are few objects anyway.

    An object holds about ``OBJECT`` bytes of pixels (compressed, some MB), more where there would
    be more than ``OBJECTS`` of them. Shards grow along y and x only: a date more can be appended.

    Examples
    --------
    >>> sizes = {"time": 400, "band": 12, "y": 10980, "x": 10980}
    >>> auto_shards(sizes, {}, {"time": 4, "band": 12, "y": 528, "x": 528}, 2)
    {'time': 4, 'band': 12, 'y': 1056, 'x': 1056}
    """
    count = {role: -(-size // chunk[role]) for role, size in sizes.items()}
    if math.prod(count.values()) <= FEW:
        return None
    total = math.prod(sizes.values()) * itemsize
    wanted = min(max(OBJECT, total / OBJECTS), LARGEST) / (math.prod(chunk.values()) * itemsize)
    if wanted < 1.5:
        return None
    y, x = (
        [n for n in range(1, count[role] + 1) if _fits(n * chunk[role], _unit(blocks.get(role)))]
        for role in ("y", "x")
    )
    best = min(product(y, x), key=lambda yx: _unlike(yx, count, wanted))
    return {**chunk, "y": best[0] * chunk["y"], "x": best[1] * chunk["x"]}


def _unlike(shard: tuple[int, int], count: dict[str, int], wanted: float) -> float:
    """How far shards of so many chunks are, on average, from square ones of the wanted number."""
    mean = math.prod(count[r] / -(-count[r] // n) for r, n in zip(("y", "x"), shard, strict=True))
    return abs(math.log2(mean / wanted)) + abs(math.log2(shard[0] / shard[1])) / 4


def _fits(size: int, unit: int | None) -> bool:
    return unit is None or unit % size == 0 or size % unit == 0


def _unit(blocks: Sequence[int] | None) -> int | None:
    """What all edges between blocks are multiples of; None where there is no edge."""
    edges, at = [], 0
    for size in (blocks or ())[:-1]:
        at += size
        edges.append(at)
    return math.gcd(*edges) if edges else None


def _dates(size: int, unit: int | None, wanted: int) -> int:
    if size <= wanted * 3 // 2:
        return size
    if unit is None or wanted == 1:
        return wanted
    low, high = max(wanted - 1, 1), 2 * wanted
    fitting = _divisors(unit, low, high) or _multiples(unit, low, high) or [wanted]
    return min(fitting, key=lambda n: abs(math.log2(n / wanted)))


def _side(size: int, unit: int | None, wanted: int, stride: int) -> int:
    if size <= wanted * 3 // 2:
        return size
    if unit is not None:
        low, high = wanted // 2, wanted * 3 // 2
        fitting = _divisors(unit, low, high) or _multiples(unit, low, high)
        if fitting:
            return min(fitting, key=lambda n: _costs(n, wanted, stride))
    return _up(-(-size // round(size / wanted)), stride)


def _costs(side: int, wanted: int, stride: int) -> float:
    padding = _up(side, stride) / side - 1
    return 2 * padding + _HALVED * abs(math.log2(side / wanted))


def _divisors(n: int, low: int, high: int) -> list[int]:
    return [k for k in range(low, high + 1) if n % k == 0]


def _multiples(n: int, low: int, high: int) -> list[int]:
    return [k for k in range(low, high + 1) if k % n == 0]


def _up(n: int, unit: int) -> int:
    return -(-n // unit) * unit
