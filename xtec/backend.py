"""``xr.open_dataset(store, engine="xtec")``: as the engine "zarr", for what xtec has compressed.

The weights that a store carries are found for chunks in shards and in Zarr format 2 too, where the
codec sees no store; Dask chunks are such that several are decoded in one pass; band variables that
were stored as one cube come back as band variables.

xarray imports this module with every other engine, so it is light.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

import xarray as xr
from xarray.backends import BackendEntrypoint, ZarrStore
from xarray.backends.common import _normalize_path
from xarray.backends.zarr import ZarrArrayWrapper, ZarrBackendEntrypoint
from xarray.core.indexing import LazilyIndexedArray

if TYPE_CHECKING:
    import zarr

    from .chunks import ChunkCoder


LAYOUTS = ("compressed", "stored")
#: Pixels (dates x rows x columns) of a Dask chunk that is put together of several chunks.
LARGEST = 2**22


class XtecBackend(BackendEntrypoint):
    """Opens Zarr stores; the arguments are those of ``xr.open_dataset(engine="zarr")``, and
    ``layout``."""

    description = "Open Zarr stores that xtec has compressed, with the weights that they carry"
    open_dataset_parameters = (
        "filename_or_obj",
        "drop_variables",
        "mask_and_scale",
        "decode_times",
        "decode_timedelta",
        "use_cftime",
        "concat_characters",
        "decode_coords",
        "group",
        "consolidated",
        "storage_options",
        "zarr_format",
        "layout",
    )

    def open_dataset(  # type: ignore[override]
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        group: str | None = None,
        consolidated: bool | None = None,
        storage_options: dict[str, Any] | None = None,
        zarr_format: int | None = None,
        layout: str = "compressed",
        **decoding: Any,
    ) -> xr.Dataset:
        """As the engine "zarr"; nothing of a network is loaded.

        Parameters
        ----------
        layout : "compressed" or "stored"
            As the Dataset was when it was compressed, with a variable a band where it had these;
            or as the store has it, with all bands in one variable.

        Raises
        ------
        ValueError
            ``layout`` is none of these.
        """
        from .remote import for_reading

        if layout not in LAYOUTS:
            raise ValueError(
                f"layout is {layout!r}: it must be 'compressed' (variables as they were given to "
                "compress) or 'stored' (all bands in one variable)"
            )
        store = _Store.open_group(
            for_reading(_normalize_path(filename_or_obj), storage_options),
            group=group,
            consolidated=consolidated,
            zarr_format=zarr_format,
        )
        stored = ZarrBackendEntrypoint().open_dataset(
            filename_or_obj, store=store, drop_variables=drop_variables, **decoding
        )
        if layout == "stored":
            return stored
        from .bandvars import as_compressed

        ds = as_compressed(stored)
        if drop_variables is not None:
            names = [drop_variables] if isinstance(drop_variables, str) else drop_variables
            ds = ds.drop_vars(names, errors="ignore")
        ds.set_close(stored._close)
        return ds


class _Store(ZarrStore):
    """Whose variables of xtec's bring their weights."""

    def open_store_variable(self, name: str) -> xr.Variable:
        from .report import find_codec

        variable, array = super().open_store_variable(name), cast("zarr.Array", self.members[name])
        codec = find_codec(array)
        if codec is None:
            return variable
        from .zarr3 import in_batches

        array = in_batches(array, codec)
        sizes = dict(zip(variable.dims, preferred(codec, array.shards)))
        data = LazilyIndexedArray(_Array(array, codec))
        encoding = {**variable.encoding, "preferred_chunks": sizes}
        return xr.Variable(variable.dims, data, variable.attrs, encoding)


def preferred(codec: ChunkCoder, shards: tuple[int, ...] | None = None) -> tuple[int, ...]:
    """Shape of a Dask chunk: 2 x 2 chunks, which one pass decodes, as long as they are small and
    shards hold whole ones."""
    time, _, y, x = codec.cube_shape
    double = tuple(
        2 * n if d in ("y", "x") else n for d, n in zip(codec.dims, codec.chunk_shape, strict=True)
    )
    cuts = shards is not None and any(n % m for n, m in zip(shards, double, strict=True))
    return codec.chunk_shape if cuts or 4 * time * y * x > LARGEST else double


class _Array(ZarrArrayWrapper):
    """An array that looks for weights before it is read, in whatever process that is."""

    __slots__ = ("_codec",)

    def __init__(self, array: zarr.Array, codec: ChunkCoder) -> None:
        super().__init__(array)
        self._codec = codec

    def __getitem__(self, key: Any) -> Any:
        from zarr.core.sync import sync

        sync(self._bring())
        return super().__getitem__(key)

    async def async_getitem(self, key: Any) -> Any:
        await self._bring()
        return await super().async_getitem(key)

    async def _bring(self) -> None:
        from . import embedded

        array, config = self._array, self._codec.config
        await embedded.bring(
            array.store, array.path, config, embedded.needs(config), array.metadata.zarr_format
        )
