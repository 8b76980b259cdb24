"""region=: a part of the pixels of a store that is there.

Writes chunks and nothing else, so that several processes may write regions side by side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from .adding import Image, Step, array_of, blocks_of, is_image, named, spelled
from .blocks import Target
from .conform import check_packing, compare, encoded, fit
from .existing import Existing, same_values, stored_in
from .objects import At, Region, keys_of, region_of, unit_of
from .resume import Resumed
from .verifying import Verified, forget


class Write(Step):
    """A region."""

    def __init__(
        self,
        obj: xr.Dataset | xr.DataArray,
        there: Existing,
        region: Any,
        options: Mapping[str, Any],
        resume: bool,
    ) -> None:
        self.there, self.resume = there, resume
        variables = fit(obj, there, options)
        self.region = _resolved(region, variables, there)
        self.images = []
        self.small: list[tuple[str, Region, np.ndarray]] = []
        overlay = there.overlay()
        for name, variable in variables.items():
            dims = there.dims(name)
            part = {d: self.region[d] for d in dims if d in self.region}
            if not part or name in dims or set(variable.dims) != set(dims):
                compare(there, name, variable, part)
                continue
            variable = variable.transpose(*dims)
            where = tuple(part.get(d, slice(0, n)) for d, n in zip(dims, there.arrays[name].shape))
            shape = tuple(s.stop - s.start for s in where)
            if variable.shape != shape:
                raise ValueError(
                    f"{name!r} is {dict(variable.sizes)} here, the region is {spelled(part)} of "
                    f"{dict(there.view.variables[name].sizes)}: pass as many pixels"
                )
            if not is_image(dims):
                raw = encoded(there, name, xr.Variable(dims, np.asarray(variable)))
                ours = np.asarray(there.arrays[name][where])
                if not same_values(ours, raw.values).all():
                    remedy = (
                        f". It differs from the store's, and other regions share its chunks: leave "
                        f"it out, .drop_vars({name!r}), and write it once for the whole cube "
                        "(without Dask it is written together with the metadata)"
                    )
                    _check_aligned(there, name, dims, where, remedy)
                    self.small.append((name, where, raw.values))
                continue
            if name != there.name:
                check_packing(there, name, variable)
            _check_aligned(there, name, dims, where)
            array = array_of(overlay, there, name)
            if variable.chunks is None:
                variable = variable.chunk(dict(zip(dims, unit_of(array), strict=True)))
            raw = encoded(there, name, variable)
            corner = tuple(s.start for s in where)
            blocks = blocks_of(raw, array, name == there.name)
            self.images.append(Image(name, blocks, corner, array))

    def go(self, verify: bool | str, progress: bool) -> tuple[Resumed, Verified | None]:
        there = self.there
        kept: dict[str, list[At]] = {}
        anew: set[str] = set()
        for image in self.images:
            keys = keys_of(image.array, image.name, image.places)
            kept[image.name] = []
            if self.resume:
                present = stored_in(there.store, image.array, image.places, 0)
                found = [at for at in image.places if keys[at] in present]
                kept[image.name] = self.whole(image, found)
            stays = set(kept[image.name])
            unit = unit_of(image.array)
            # objects that end with the array are written in part, and replaced all the same
            anew |= {
                keys[at]
                for at in image.places
                if at not in stays
                and tuple(s.stop - s.start for s in region_of(image.array, at)) != unit
            }
        forget(there.store, there.name)
        for name, where, values in self.small:
            array = Target(there.overlay(), name, there.zarr_format).array
            array[where] = values
        return self.write(there.overlay(anew=frozenset(anew)), kept, verify, progress)


def _resolved(
    region: Any, variables: Mapping[str, xr.Variable], there: Existing
) -> dict[str, slice]:
    """Start and stop of each dimension of the region."""
    sizes = dict(there.view.sizes)
    here: dict[str, int] = {}
    for variable in variables.values():
        here.update({str(d): int(n) for d, n in variable.sizes.items()})
    if isinstance(region, str) and region == "auto":
        region = dict.fromkeys(there.dims(there.name), "auto")
    if not isinstance(region, Mapping):
        raise ValueError(
            f"region is {region!r}: pass {{'time': slice(0, 4), 'y': slice(0, 512)}} or 'auto'"
        )
    out: dict[str, slice] = {}
    asked: Any
    for dim, asked in region.items():
        if dim not in there.dims(there.name):
            raise ValueError(
                f"region names {dim!r}, {there.name!r} has dimensions {there.dims(there.name)}"
            )
        size = int(sizes[dim])
        if isinstance(asked, str) and asked == "auto":
            asked = _found(str(dim), variables, there, size)
        if not isinstance(asked, slice) or asked.step not in (None, 1):
            raise ValueError(f"region of {dim!r} is {asked!r}: pass a slice of step 1, or 'auto'")
        ends: list[Any] = [end for end in (asked.start, asked.stop) if end is not None]
        if not all(isinstance(end, (int, np.integer)) and abs(int(end)) <= size for end in ends):
            raise ValueError(f"region of {dim!r} is {asked}: {there} has {size} of it")
        start, stop, _ = asked.indices(size)
        if stop - start != here[str(dim)] or stop <= start:
            raise ValueError(
                f"region of {dim!r} is {start}:{stop}, and the data have {here[str(dim)]}: they "
                "must be as many"
            )
        out[str(dim)] = slice(int(start), int(stop))
    return out


def _found(dim: str, variables: Mapping[str, xr.Variable], there: Existing, size: int) -> slice:
    """Where the coordinates of a dimension are in the store."""
    if dim not in there.view.coords or dim not in variables:
        count = next(v.sizes[dim] for v in variables.values() if dim in v.dims)
        if count == size:
            return slice(0, size)
        raise ValueError(
            f"region of {dim!r} is 'auto', and there are no coordinates to find it by: pass a slice"
        )
    ours = there.view[dim].to_index()
    mine = xr.DataArray(variables[dim], name=dim).to_index()
    place = {value: i for i, value in enumerate(ours.tolist())}
    at = [place.get(value, -1) for value in mine.tolist()]
    if -1 in at:
        unknown = mine[[i == -1 for i in at]]
        raise ValueError(
            f"region of {dim!r} is 'auto': {named(unknown)} is no {dim!r} of {there}: pass data on"
            " its grid, or a slice"
        )
    if at != list(range(at[0], at[0] + len(at))):
        raise ValueError(
            f"region of {dim!r} is 'auto': the data are no contiguous part of {there} in its order:"
            " sort them, or write parts"
        )
    return slice(at[0], at[0] + len(at))


def _check_aligned(
    there: Existing, name: str, dims: Sequence[str], where: Region, remedy: str = ""
) -> None:
    """A region is made of whole objects of the store, but for its ends."""
    array = there.arrays[name]
    nearest = {}
    for dim, part, unit, size in zip(dims, where, unit_of(array), array.shape, strict=True):
        start = part.start // unit * unit
        stop = min(-(-part.stop // unit) * unit, size)
        nearest[dim] = slice(start, stop)
    if tuple(nearest.values()) == where:
        return
    given = {d: s for d, s in zip(dims, where, strict=True) if nearest[d] != s}
    what = "chunks" if array.shards is None else "shards"
    raise ValueError(
        f"region {spelled(given)} covers {what} of {name!r} in {there} in part, which are "
        f"{dict(zip(dims, unit_of(array), strict=True))}: the nearest region of whole ones is "
        f"{spelled({d: nearest[d] for d in given})}{remedy}"
    )
