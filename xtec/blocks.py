"""Tasks for Dask: each takes one Dask block of a variable, writes its chunks, and looks at them.

A block may hold many chunks, which go through the network in batches. What a task gives back is
small, so memory stays at the blocks that workers hold. A task can be run again at any time (a
worker was lost, a store refused a write): it writes the same bytes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

import numpy as np
from tec import memory, threads

from .messages import bar
from .objects import At, region_of, unit_of

if TYPE_CHECKING:
    import dask.array
    import zarr
    from zarr.abc.store import Store

T = TypeVar("T")

#: How often a cluster tries a task again that raised, beside those whose worker was lost.
_RETRIES = 2
#: Objects of a store that one task looks at, where there is no block to compute.
_TOGETHER = 16


@dataclass(frozen=True)
class Target:
    """An array in a store, as a worker opens it. Travels to each of them once.

    Attributes
    ----------
    store, path, zarr_format : where it is
    keep_empty : write chunks of nothing but fill, too
    """

    store: Store
    path: str
    zarr_format: Any
    keep_empty: bool = False
    read_only: bool = False

    @cached_property
    def array(self) -> zarr.Array:
        """Opened once a process."""
        import zarr

        from .report import find_codec
        from .zarr3 import in_batches

        array = zarr.open(  # open_array does not look at `config`
            self.store,
            path=self.path,
            mode="r" if self.read_only else "r+",
            zarr_format=self.zarr_format,
            config={"write_empty_chunks": self.keep_empty},  # type: ignore[arg-type]
        )
        codec = find_codec(array)  # type: ignore[arg-type]
        return array if codec is None else in_batches(array, codec)  # type: ignore

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k != "array"}


@dataclass(frozen=True)
class Job:
    """What is to be done with a variable.

    Attributes
    ----------
    target : where it goes
    data : the variable as it is stored, in blocks of whole objects (chunks or shards) but for the
        ends of the array
    write : for each object of the array whether it is to be written; the block that it lies in is
        written as a whole
    look : for each object whether it is to be compared with the block, and repaired; None for none
    corner : where in the array the first pixel of ``data`` goes
    """

    target: Target
    data: dask.array.Array
    write: np.ndarray
    look: np.ndarray | None = None
    corner: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.corner:
            object.__setattr__(self, "corner", (0,) * self.data.ndim)


@dataclass(frozen=True)
class _Shared:
    """What the tasks of a job share."""

    target: Target
    write: np.ndarray
    look: np.ndarray | None
    starts: tuple[tuple[int, ...], ...]  # first pixel of each block, axis by axis
    cores: int | None  # that a process of a pool on one machine may use


def run(jobs: Sequence[Job], title: str, progress: bool) -> list[list[Any]]:
    """Do them, on whatever scheduler Dask is set to.

    Returns
    -------
    list of Verified for each job, one for each block that was looked at

    Raises
    ------
    ValueError
        Other processes cannot write to the store.
    RuntimeError
        The cluster has given up on a block.
    """
    for job in jobs:
        _check_reach(job.target.store)
    tasks = [_tasks(job) for job in jobs]
    done = iter(compute([of for of in tasks if of is not None], title, progress))
    found = [() if of is None else next(done) for of in tasks]
    return [[one for one in of if one is not None] for of in found]


def each(work: Callable[[Any, list[At]], T], what: Any, places: Sequence[At]) -> list[T]:
    """``work(what, places)`` for some places at a time, on Dask's scheduler; ``what`` travels to
    each worker once."""
    import dask

    if not places:
        return []
    shared = dask.delayed(what, pure=False, traverse=False)
    tasks = [
        dask.delayed(work, pure=False)(shared, list(places[i : i + _TOGETHER]))
        for i in range(0, len(places), _TOGETHER)
    ]
    return list(compute(tasks, "", False))


def _tasks(job: Job) -> dask.array.Array | None:
    """An array of what the tasks return, one for each block in which there is something to do."""
    import dask
    import dask.array as da
    from dask.highlevelgraph import HighLevelGraph

    data, corner = job.data, job.corner
    starts = tuple(
        tuple((start + np.cumsum([0, *sizes[:-1]])).tolist())
        for start, sizes in zip(corner, data.chunks, strict=True)
    )
    shared = _Shared(job.target, job.write, job.look, starts, _cores_each())
    done = da.map_blocks(
        _do,
        data,
        dtype=object,
        chunks=tuple((1,) * n for n in data.numblocks),
        meta=np.empty((0,) * data.ndim, object),
        name=f"compress-{uuid4().hex}",
        shared=dask.delayed(shared, pure=False, traverse=False),
    )
    wanted = job.write if job.look is None else job.write | job.look
    unit = unit_of(job.target.array)
    for axis, (first, size) in enumerate(zip(starts, unit, strict=True)):
        ends = [*(start // size for start in first), -(-(corner[axis] + data.shape[axis]) // size)]
        inside = wanted.take(range(ends[0], ends[-1]), axis)
        wanted = np.logical_or.reduceat(inside, np.subtract(ends[:-1], ends[0]), axis)
    if not wanted.any():
        return None
    # Blocks without anything to do are no part of this graph: nothing of them is computed.
    name = done.name + "-wanted"
    picked: dict[Any, Any] = {
        (name, i): (_first, (done.name, *at)) for i, at in enumerate(np.argwhere(wanted).tolist())
    }
    graph = HighLevelGraph.from_collections(name, picked, dependencies=[done])
    return da.Array(graph, name, ((1,) * len(picked),), meta=np.empty(0, object))


def _first(found: np.ndarray) -> np.ndarray:
    return found.reshape(1)


def _do(block: np.ndarray, shared: Any = None, block_id: tuple[int, ...] = ()) -> np.ndarray:
    """Write a block, then look at what was written."""
    if shared.cores is not None:
        threads.limit(shared.cores)
    array = shared.target.array
    corner = [starts[i] for starts, i in zip(shared.starts, block_id, strict=True)]
    unit = unit_of(array)
    inside = tuple(
        slice(start // size, -(-(start + n) // size))
        for start, n, size in zip(corner, block.shape, unit, strict=True)
    )
    if shared.write[inside].any():
        # All of it, also where a part is there: what goes through a network together comes out the
        # same, to the last bit, only together.
        array[tuple(slice(c, c + n) for c, n in zip(corner, block.shape, strict=True))] = block
    out = np.empty((1,) * block.ndim, object)
    if shared.look is not None and (look := shared.look[inside]).any():
        from .verifying import look_at

        places = []
        for at in np.argwhere(look).tolist():
            place = tuple(i + s.start for i, s in zip(at, inside, strict=True))
            region = region_of(array, place)
            part = tuple(slice(r.start - c, r.stop - c) for r, c in zip(region, corner))
            places.append((place, block[part]))
        repair = not shared.target.read_only
        out[(0,) * block.ndim] = look_at(array, places, repair)
    memory.give_back()
    return out


# schedulers


def compute(collections: Sequence[Any], title: str, progress: bool) -> list[Any]:
    """As `dask.compute`, with a bar: the results of each collection (one a block), in its order."""
    import dask

    with bar(title, progress) as advance:
        client = _client()
        if client is None:
            return list(dask.compute(*collections))
        return _on_cluster(client, collections, advance)


def _on_cluster(
    client: Any, collections: Sequence[Any], advance: Callable[[int, int], None]
) -> list[Any]:
    """Each result is fetched when it is there, and then let go: what the client has is no loss when
    a worker is. Left on the workers, results of hours would have to be computed again."""
    from dask.core import flatten
    from distributed import as_completed, futures_of
    from distributed.scheduler import KilledWorker

    if not collections:
        return []
    futures = futures_of(client.persist(list(collections), retries=_RETRIES))
    found: dict[Any, Any] = {}
    total = len(futures)
    try:
        done = as_completed(futures, with_results=True)
        del futures  # `done` holds those that are under way
        for future, result in done:
            found[future.key] = result
            advance(len(found), total)
            del future
    except KilledWorker as error:
        raise RuntimeError(
            f"the cluster gave up: {error}. If its workers ran out of memory, give them more, or "
            "fewer threads, or pass smaller blocks (.chunk(...)); what was written stays, and "
            "resume=True goes on with it"
        ) from error
    results = []
    for collection in collections:
        parts = [found[key] for key in flatten(collection.__dask_keys__())]
        is_array = hasattr(collection, "chunks")
        results.append(np.concatenate(parts) if is_array else parts[0])
    return results


def _client() -> Any | None:
    """The client of the cluster that Dask would use, or None."""
    import dask.array
    from dask.base import get_scheduler

    found = getattr(get_scheduler(cls=dask.array.Array), "__self__", None)
    distributed = sys.modules.get("distributed")
    return found if distributed and isinstance(found, distributed.Client) else None


def _pool() -> bool:
    """Whether Dask would use a pool of processes on this machine."""
    import dask.array
    from dask.base import get_scheduler
    from dask.multiprocessing import get

    return get_scheduler(cls=dask.array.Array) is get


def _cores_each() -> int | None:
    """The share of a process of a pool; None where there is no pool."""
    import dask
    from dask.system import CPU_COUNT

    if not _pool():
        return None
    return max(1, threads.allowed() // (dask.config.get("num_workers", None) or CPU_COUNT))


def _check_reach(store: Store) -> None:
    """Refuse what other processes cannot write to: their copies of it would be lost."""
    from zarr.storage import MemoryStore

    while hasattr(store, "_store"):
        store = store._store
    if isinstance(store, MemoryStore) and (_client() is not None or _pool()):
        raise ValueError(
            "a store in memory cannot be written by other processes: pass a path or a URL, or "
            "compute with dask.config.set(scheduler='threads')"
        )
