"""append_dim=: more dates for a store that is there; and where regions.py begins.

An append writes, in this order: coordinates along time (their chunks hold the same values for the
dates that were there), chunks of images beyond the end, metadata, and last the one key that decides
how long the store is (see existing.py). Where an append begins inside a chunk, that chunk is
written as a whole from originals, over the old one: both hold the old dates.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from zarr.core.sync import sync

from .adding import Image, Step, along, array_of, blocks_of, is_image, named
from .blocks import Target, each
from .claim import Claim
from .conform import check_packing, compare, encoded, fit
from .existing import Existing, look, same_values, stored_in
from .messages import quiet, warn
from .objects import (
    At,
    called,
    grid_of,
    keys_of,
    read_all,
    streams_in,
    total_size,
    unit_of,
)
from .ratecontrol import target_of
from .regions import Write
from .remote import name_of
from .resume import Resumed
from .rootlast import is_empty, open_store
from .verifying import Verified

if TYPE_CHECKING:
    import zarr

    from .writing import Summary


def add(
    obj: xr.Dataset | xr.DataArray,
    store: Any,
    *,
    append_dim: Hashable | None,
    region: Any,
    mode: str | None,
    overwrite: bool,
    resume: bool,
    verify: bool | str,
    progress: bool,
    storage_options: dict[str, Any] | None,
    embed_weights: bool,
    options: Mapping[str, Any],
) -> Summary | None:
    """Append, or write a region: see :func:`xtec.to_zarr`.

    Returns
    -------
    Summary of what was added; None where there is nothing to append to
    """
    wanted = "append_dim" if region is None else "region"
    if append_dim is not None and region is not None:
        raise ValueError(
            "append_dim makes the store longer, region writes into what is there: choose one of "
            "them"
        )
    fitting = ("a", "a-") if region is None else ("r+", "a")
    if overwrite or mode not in (None, *fitting):
        said = "overwrite=True" if overwrite else f"mode={mode!r}"
        raise ValueError(
            f"{said} does not go with {wanted}: leave it out (mode is {fitting[0]!r} then)"
        )
    if str(store).endswith(".zip"):
        raise ValueError(
            f"{store} is one file, which {wanted} cannot change: unpack it, or write to a folder"
        )
    target = open_store(store, storage_options)
    if is_empty(target):
        if region is None:
            warn(f"there is nothing at {name_of(target)} to append to: a new store is written")
            return None
        raise ValueError(
            f"there is nothing at {store}: region= needs a store. Make its metadata first, of the "
            "whole cube: cube.tec.compress(...).to_zarr(store, compute=False)"
        )
    if embed_weights:
        raise ValueError(
            f"embed_weights does not go with {wanted}: xtec.embed_weights(store) puts them into a "
            "store that is there, once"
        )
    started = time.perf_counter()
    with quiet():
        step: Append | Write
        if region is None:
            dim = str(append_dim)
            with Claim(target, look(target, dim).name, resume) as claim:
                there = look(target, dim)  # as whoever held it before has left it
                step = Append(obj, there, dim, options, resume, claim)
                resumed, verified = step.go(verify, progress)
        else:
            there = look(target)
            step = Write(obj, there, region, options, resume)
            resumed, verified = step.go(verify, progress)
    data, config = step.cube, there.codec.config
    size = total_size(target, [*keys_of(data.array, there.name, data.places).values()])
    from .writing import Summary

    samples = int(np.prod(data.data.shape))
    return Summary(
        str(store),
        there.name,
        config.model,
        config.compression,
        samples,
        samples * data.array.dtype.itemsize,
        size,
        time.perf_counter() - started,
        config.quality,
        target_of(there.attrs),
        config.max_error,
        resumed if resume else None,
        verified,
    )


class Append(Step):
    """More dates."""

    def __init__(
        self,
        obj: xr.Dataset | xr.DataArray,
        there: Existing,
        dim: str,
        options: Mapping[str, Any],
        resume: bool,
        claim: Claim,
    ) -> None:
        dims = there.dims(there.name)
        if dim not in dims or there.codec.dims[dims.index(dim)] != "time":
            times = [d for d, role in zip(dims, there.codec.dims, strict=True) if role == "time"]
            raise ValueError(
                f"append_dim is {dim!r}: {there} can be appended to along {times or 'nothing'}"
            )
        self.there, self.dim, self.resume, self.claim = there, dim, resume, claim
        variables = fit(obj, there, options)
        lacking = sorted(
            str(n) for n, v in there.view.variables.items() if dim in v.dims and n not in variables
        )
        if lacking:
            raise ValueError(
                f"{', '.join(lacking)}: in {there} with {dim!r}, and not in what is appended: pass "
                "them as well"
            )
        self.old = there.length(dim)
        self.count = variables[there.name].sizes[dim]
        for name, variable in variables.items():
            if not variable.dims and there.dims(name) == (dim,):  # the same for all these dates
                variables[name] = variable.set_dims({dim: self.count})
        self.start = self._start(variables.get(dim))
        self.stop = self.start + self.count
        if self.stop < self.old:  # they are there, and later ones as well
            self.stop = self.old
        self.long = there.overlay(dim, self.stop)
        self.images = []
        self.small: dict[str, xr.Variable] = {}
        for name, variable in variables.items():
            if dim not in there.dims(name):
                compare(there, name, variable, {})
            else:
                self._with_dates(name, variable)

    def _with_dates(self, name: str, variable: xr.Variable) -> None:
        """A variable with dates: its size, packing and place."""
        there, dim = self.there, self.dim
        order = there.dims(name)
        if set(variable.dims) != set(order):
            raise ValueError(
                f"{name!r} has dimensions {variable.dims} here and {order} in {there}: make them "
                f"alike, or leave it out of both"
            )
        variable = variable.transpose(*order)
        sizes = dict(there.view.variables[name].sizes)
        differing = [str(d) for d in order if d != dim and variable.sizes[d] != sizes[d]]
        if differing or variable.sizes[dim] != self.count:
            raise ValueError(
                f"{name!r} is {dict(variable.sizes)} here and {sizes} in {there}: only {dim!r} may "
                "differ; pass the same pixels"
            )
        if not is_image(order):
            self.small[name] = encoded(there, name, xr.Variable(order, np.asarray(variable)))
            self._check_overlap(name)
            return
        if name != there.name:
            check_packing(there, name, variable)
        axis, array = order.index(dim), array_of(self.long, there, name)
        if variable.chunks is None:
            variable = variable.chunk(dict(zip(order, unit_of(array), strict=True)))
        raw = encoded(there, name, variable)
        corner = [0] * len(order)
        corner[axis] = self.start // unit_of(array)[axis] * unit_of(array)[axis]
        if corner[axis] < self.start:  # lossless: what its chunk holds is read from the store
            raw = _preceded(raw, there.arrays[name], axis, slice(corner[axis], self.start))
        blocks = blocks_of(raw, array, name == there.name)
        self.images.append(Image(name, blocks, tuple(corner), array))

    def _start(self, dates: xr.Variable | None) -> int:
        """Where the dates go: behind the last chunk, or from the start of one that is not full."""
        there, dim, old = self.there, self.dim, self.old
        axis = there.dims(there.name).index(dim)
        unit = unit_of(there.array)[axis]
        what = "chunk" if there.array.shards is None else "shard"
        last = old // unit * unit
        if dates is None:
            if self.resume:
                raise ValueError(
                    f"resume=True needs a coordinate {dim!r}, which says what is there already: "
                    f"{there} has none"
                )
            if last < old:
                raise ValueError(
                    f"the last {what} of {there} holds {old - last} of {unit} steps of {dim!r}, and"
                    " an append begins with a new one: write the store anew, or give it a "
                    f"coordinate {dim!r}"
                )
            return old
        before = there.view[dim].to_index().tolist()
        given = xr.DataArray(dates, name=dim).to_index()
        if given.has_duplicates:
            raise ValueError(
                f"{named(given[given.duplicated()])} comes twice in what is appended: drop one, "
                f".drop_duplicates({dim!r})"
            )
        place = {value: i for i, value in enumerate(before)}
        found = [place.get(value, -1) for value in given.tolist()]
        known = [i for i in found if i >= 0]
        if not known:
            if last < old:
                first = named(there.view[dim].to_index()[last : last + 1])
                raise ValueError(
                    f"the last {what} of {there} holds {old - last} of {unit} dates, and an append "
                    f"begins with a new one: pass the originals from {first} on, together with the "
                    f"new dates (.sel({dim}=slice({first!r}, None))); that {what} is then written "
                    "again from them"
                )
            if not given.is_monotonic_increasing or (before and given[0] < before[-1]):
                warn(
                    f"{dim!r} of {there} is no longer in order: sort the dates before appending, "
                    f"or what is read with .sortby({dim!r})"
                )
            return old
        begin, ends = found[0], found[0] + self.count
        joined = begin >= 0 and found[: len(known)] == list(range(begin, begin + len(known)))
        if len(known) < self.count and joined and begin == last < old == begin + len(known):
            return begin
        aligned = begin % unit == 0 and (ends == old or ends % unit == 0)
        if len(known) == self.count and joined and self.resume and aligned:
            return begin
        remedy = f"drop {'it' if len(known) == 1 else 'them'}"
        if len(known) == self.count and not self.resume:
            remedy = (
                "nothing is appended; resume=True takes that for an append that has ended (and "
                "looks at its chunks), region= replaces pixels"
            )
        elif last < old:
            first = named(there.view[dim].to_index()[last : last + 1])
            remedy = f"pass dates from {first} on, where the last {what} begins, and all of them"
        raise ValueError(
            f"{named(given[[i >= 0 for i in found]])}: {len(known)} of {self.count} dates are in "
            f"{there} already: {remedy}"
        )

    def _check_overlap(self, name: str) -> None:
        """Coordinates of dates that are there already stay what they are."""
        there, shared = self.there, min(self.old - self.start, self.count)
        axis = there.dims(name).index(self.dim)
        part = along(there.arrays[name].ndim, axis, slice(self.start, self.start + shared))
        ours = np.asarray(there.arrays[name][part])
        mine = self.small[name].values[along(ours.ndim, axis, slice(0, shared))]
        equal = same_values(ours, mine)
        if not equal.all():
            at = np.unravel_index(int(np.argmin(equal)), equal.shape)
            raise ValueError(
                f"{name!r} of a date that is there already is {ours[at]} in {there} and {mine[at]} "
                f"here (as stored): pass the same data from {self.dim} {self.start} on"
            )

    def go(self, verify: bool | str, progress: bool) -> tuple[Resumed, Verified | None]:
        there, dim = self.there, self.dim
        kept: dict[str, list[At]] = {}
        stray: list[str] = []
        anew: set[str] = set()
        same_job = self.resume and (self.stop == self.old or self._recorded())
        for image in self.images:
            places, keys = image.places, keys_of(image.array, image.name, image.places)
            axis = there.dims(image.name).index(dim)
            present = stored_in(there.store, image.array, places, axis)
            unit = unit_of(image.array)[axis]
            found = [at for at in places if keys[at] in present]
            # such an object holds dates that readers have
            shared = {at for at in found if at[axis] * unit < self.old < self.stop}
            beyond = [keys[at] for at in found if at not in shared]
            kept[image.name] = []
            if same_job:
                kept[image.name] = self._whole(image, found, shared, axis)
            elif self.resume and beyond:
                raise ValueError(
                    f"{there} holds what an interrupted append of other dates has left "
                    f"({beyond[0]}, ...): resume that one, or append without resume=True, which "
                    "deletes it"
                )
            stays = {keys[at] for at in kept[image.name]}
            stray += [key for key in beyond if key not in stays]
            anew |= {keys[at] for at in shared} - stays
        done = sum(map(len, kept.values()))
        total = sum(len(image.places) for image in self.images)
        if self.stop == self.old and done == total and not verify:
            return Resumed(done, 0, called(image.array for image in self.images)), None
        if self.stop > self.old:  # else only what is damaged is written, over itself

            async def clear() -> None:
                for key in stray:
                    await there.store.delete(key)

            sync(clear())
            self._write_small()
        overlay = there.overlay(dim, self.stop, frozenset(anew | set(stray)))
        resumed, verified = self.write(overlay, kept, verify, progress)
        self.claim.check()
        there.commit(there.lengthened(dim, self.stop, self._note(verified)))
        return resumed, verified

    def _whole(self, image: Image, found: Sequence[At], shared: set[At], axis: int) -> list[At]:
        """Objects that this append has written. One that holds old dates may be the old one."""
        whole = self.whole(image, [at for at in found if at not in shared])
        if image.name != self.there.name or not shared:
            return whole
        again = self.whole(image, sorted(shared))
        target = Target(image.array.store, image.name, self.there.zarr_format, read_only=True)
        longer = [at for some in each(_longer, (target, axis, self.old), again) for at in some]
        return whole + longer

    def _recorded(self) -> bool:
        """Whether the dates beyond the end, which are written before any chunk, are these."""
        if self.dim not in self.small:
            return False
        array = array_of(self.long, self.there, self.dim)
        return bool(same_values(array[self.start : self.stop], self.small[self.dim].values).all())

    def _write_small(self) -> None:
        """Coordinates: whole chunks, which begin with the values that are there."""
        there = self.there
        for name, variable in self.small.items():
            array = array_of(self.long, there, name)
            axis = there.dims(name).index(self.dim)
            unit = unit_of(array)[axis]
            base = self.old // unit * unit
            before = there.arrays[name][along(array.ndim, axis, slice(base, self.old))]
            fresh = variable.values[along(array.ndim, axis, slice(self.old - self.start, None))]
            values = np.concatenate([np.asarray(before, fresh.dtype), fresh], axis)
            places = [at for at in np.ndindex(grid_of(array)) if at[axis] * unit >= base]
            keys = frozenset(keys_of(array, name, places).values())
            overlay = there.overlay(self.dim, self.stop, keys)
            target = Target(overlay, name, there.zarr_format)
            target.array[along(array.ndim, axis, slice(base, self.stop))] = values

    def _note(self, verified: Verified | None) -> dict[str, Any] | None:
        """What the attribute says of verified chunks, of which there are more now.

        Means are those of chunks: how many pixels of each were valid is not noted.
        """
        old = self.there.note()
        if old is None and verified is None:
            return None
        total, inside = int(np.prod(grid_of(self.cube.array))), self.cube.inside
        axis = self.there.dims(self.there.name).index(self.dim)
        rows = -(-self.old // unit_of(self.cube.array)[axis]) - inside[axis].start
        a_row = [s.stop - s.start for i, s in enumerate(inside) if i != axis]
        rewritten = rows * int(np.prod(a_row))
        if old is None:
            assert verified is not None
            return {**verified.attribute(), "of": total}
        unit = called([self.cube.array])
        before = old.pop("chunks", 0)  # of shards, too, that was the name once
        count = max(old.pop(unit, before) - rewritten, 0)
        if verified is None:
            return {unit: count, **old, "of": total}
        new = verified.attribute()
        return {
            unit: count + new[unit],
            "of": total,
            "mean_error": _merged(old["mean_error"], new["mean_error"], (count, new[unit])),
            "max_error": _merged(old["max_error"], new["max_error"], None),
            **_repaired(old, new),
        }


def _merged(
    old: Mapping[str, float | None],
    new: Mapping[str, float | None],
    weights: tuple[int, int] | None,
) -> dict[str, float | None]:
    """Band by band: the larger one, or the mean with these weights."""
    out: dict[str, float | None] = {}
    for band, value in new.items():
        pair = [(old.get(band), 0), (value, 1)]
        known = [(v, i) for v, i in pair if v is not None]
        if len(known) < 2:
            out[band] = known[0][0] if known else None
        elif weights is None:
            out[band] = max(v for v, _ in known)
        else:
            mean = np.average([v for v, _ in known], weights=weights if any(weights) else None)
            out[band] = float(f"{mean:.6g}")
    return out


def _repaired(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, int]:
    count = old.get("repaired", 0) + new.get("repaired", 0)
    return {"repaired": count} if count else {}


def _preceded(raw: xr.Variable, array: zarr.Array, axis: int, part: slice) -> xr.Variable:
    import dask.array as da

    stored = da.from_array(array, chunks=unit_of(array), name=False)
    before = stored[along(array.ndim, axis, part)]
    data = da.concatenate([before, raw.data], axis)
    # blocks of whole objects, which begin where the store's do
    sizes = {axis: unit_of(array)[axis]}
    return xr.Variable(raw.dims, data.rechunk(sizes))


def _longer(what: tuple[Target, int, int], places: list[At]) -> list[At]:
    """Which objects, none of them damaged, hold dates behind some date."""
    from tec import stream

    target, axis, old = what
    array = target.array
    keys = keys_of(array, target.path, places)
    found = []
    for at, data in zip(places, read_all(array.store, keys.values()), strict=True):
        assert data is not None
        ends = [
            at[axis] * unit_of(array)[axis]
            + inner[axis] * array.chunks[axis]
            + stream.peek(one).extent[0]
            for inner, one in streams_in(data, array, at).items()
        ]
        if max(ends) > old:
            found.append(at)
    return found
