"""What append_dim= and region= have in common: images that go into a store which is there.

Each object (chunk or shard) of theirs is written as a whole, or stays.
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from .blocks import Job, Target, each, run
from .dims import role_of
from .existing import Existing
from .grid import align
from .objects import At, Region, called, grid_of, unit_of
from .resume import Resumed, damaged_among
from .verifying import Verified, conclude, looking

if TYPE_CHECKING:
    import zarr
    from zarr.abc.store import Store

#: Dates that a message names.
_SOME = 3


@dataclass(frozen=True)
class Image:
    """A variable that is written in blocks.

    Attributes
    ----------
    name : of the array
    data : as the array holds it, in Dask
    corner : of its first pixel in the array
    array : as long as it will be, over the chunks that are there
    """

    name: str
    data: xr.Variable
    corner: tuple[int, ...]
    array: zarr.Array

    @property
    def inside(self) -> Region:
        """Its objects, in the grid of the array."""
        return tuple(
            slice(c // u, -(-(c + n) // u))
            for c, n, u in zip(self.corner, self.data.shape, unit_of(self.array), strict=True)
        )

    @property
    def places(self) -> list[At]:
        ranges = [range(s.start, s.stop) for s in self.inside]
        first = [r.start for r in ranges]
        return [
            tuple(i + f for i, f in zip(at, first, strict=True))
            for at in np.ndindex(*map(len, ranges))
        ]


class Step:
    """What both have in common: images, which of their objects stay, and writing the others."""

    there: Existing
    images: list[Image]
    #: keys that are written without a look at what stands there
    anew: frozenset[str] = frozenset()

    @property
    def cube(self) -> Image:
        return next(image for image in self.images if image.name == self.there.name)

    def whole(self, image: Image, places: Sequence[At]) -> list[At]:
        """Those of some objects that are there and not damaged."""
        target = Target(image.array.store, image.name, self.there.zarr_format, read_only=True)
        spoilt = {at for some in each(damaged_among, target, list(places)) for at in some}
        return [at for at in places if at not in spoilt]

    def write(
        self, overlay: Store, kept: Mapping[str, Sequence[At]], verify: bool | str, progress: bool
    ) -> tuple[Resumed, Verified | None]:
        there, jobs = self.there, []
        whole = written = 0
        for image in self.images:
            target = Target(overlay, image.name, there.zarr_format, keep_empty=True)
            todo = np.zeros(grid_of(image.array), bool)
            todo[image.inside] = True
            for at in kept[image.name]:
                todo[at] = False
            whole += len(kept[image.name])
            written += int(todo.sum())
            job = Job(target, image.data.data, todo, corner=image.corner)
            if verify and image.name == there.name:
                inside = image.inside
                part = looking(replace(job, write=todo[inside]), verify == "sample").look
                seen = np.zeros(todo.shape, bool)
                seen[inside] = part
                job = replace(job, look=seen)
            jobs.append(job)
        parts = run(jobs, "compressing", progress)
        verified = None
        if verify:
            (mine,) = (p for p, job in zip(parts, jobs, strict=True) if job.look is not None)
            # its metadata are not the store's: what is noted there is up to who writes them
            verified = conclude(overlay, there.name, mine, len(self.cube.places))
        return Resumed(whole, written, called(image.array for image in self.images)), verified

    def go(self, verify: bool | str, progress: bool) -> tuple[Resumed, Verified | None]:
        raise NotImplementedError


def is_image(dims: Sequence[Hashable]) -> bool:
    return {"y", "x"} <= {role_of(d) for d in dims}


def array_of(overlay: Store, there: Existing, name: str) -> zarr.Array:
    return Target(overlay, name, there.zarr_format, read_only=False).array


def along(ndim: int, axis: int, part: slice) -> Region:
    return tuple(part if i == axis else slice(None) for i in range(ndim))


def blocks_of(raw: xr.Variable, array: zarr.Array, tell: bool) -> xr.Variable:
    """In Dask blocks of whole objects."""
    roles = tuple(role_of(d) or "" for d in raw.dims)
    with warnings.catch_warnings():
        if not tell:  # how layers are cut up is nobody's choice
            warnings.simplefilter("ignore")
        return align(xr.DataArray(raw, name=array.path), unit_of(array), roles).variable


def named(values: Any) -> str:
    """Some dates, or other values of a coordinate, as text."""
    texts = [
        str(v.isoformat() if hasattr(v, "isoformat") else v).removesuffix("T00:00:00")
        for v in values[:_SOME].tolist()
    ]
    return ", ".join(texts) + (", ..." if len(values) > _SOME else "")


def spelled(region: Mapping[str, slice]) -> str:
    inside = ", ".join(f"{d!r}: slice({s.start}, {s.stop})" for d, s in region.items())
    return f"{{{inside}}}"
