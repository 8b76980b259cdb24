"""``ds.tec`` and ``da.tec``: every method is one call of a function that works without them."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import xarray as xr

from .comparing import compare
from .compression import compress
from .inpainting import inpaint, inpainted
from .latentcubes import latents
from .overview import Overview
from .planning import Plan, plan
from .writing import Summary, to_zarr


class _Accessor:
    def __init__(self, obj: Any) -> None:
        self._obj = obj

    def __repr__(self) -> str:
        return str(Overview(self._obj))

    def _repr_html_(self) -> str:
        return Overview(self._obj)._repr_html_()

    def compress(
        self,
        *,
        model: str = "tt",
        compression: float | str | None = None,
        psnr: float | None = None,
        ratio: float | None = None,
        quality: int | Sequence[int] | None = None,
        forecast: str = "mean",
        max_error: float | Mapping[str, float] | None = None,
        weights: str | os.PathLike[str] = "builtin",
        bands: Mapping[str, str] | Sequence[str] | None = None,
        sensor: str | None = None,
        offset: float = 0,
        scale: float | None = None,
        nodata: int | float | str | None = "auto",
        chunks: Mapping[Any, int] | str | None = None,
        shards: Mapping[Any, int] | str | None = None,
        zarr_format: int = 3,
        inpaint: Any = None,
    ) -> Any:
        """Configure the codec, lazily; ``compression`` is 20 by default: see
        :func:`xtec.compress`."""
        return compress(
            self._obj,
            model=model,
            compression=compression,
            psnr=psnr,
            ratio=ratio,
            quality=quality,
            forecast=forecast,
            max_error=max_error,
            weights=weights,
            bands=bands,
            sensor=sensor,
            offset=offset,
            scale=scale,
            nodata=nodata,
            chunks=chunks,
            shards=shards,
            zarr_format=zarr_format,
            inpaint=inpaint,
        )

    def inpaint(self, mask: Any = "SCL", **options: Any) -> Any:
        """Replace clouds by what the temporal model predicts, lazily; see :func:`xtec.inpaint`."""
        return inpaint(self._obj, mask, **options)

    def inpainted(self, mask: Any = "SCL", **options: Any) -> xr.DataArray:
        """Which pixels :meth:`inpaint` replaces; see :func:`xtec.inpainted`."""
        return inpainted(self._obj, mask, **options)

    def latents(self, **options: Any) -> xr.DataArray:
        """The quantised latents of the cube as `compress` would code it with these options, (time,
        latent, y, x), lazily; see :func:`xtec.latents`, which also reads those of a store."""
        return latents(self._obj, **options)

    def plan(self, **options: Any) -> Plan:
        """Measure some chunks: size, quality, hours and objects to expect; see
        :func:`xtec.plan`."""
        return plan(self._obj, **options)

    def compare(self, back: Any, **options: Any) -> xr.Dataset:
        """How far what was read back is from this, for each band and date; see
        :func:`xtec.compare`."""
        return compare(self._obj, back, **options)

    def to_zarr(
        self,
        store: Any,
        *,
        mode: str | None = None,
        overwrite: bool = False,
        append_dim: Hashable | None = None,
        region: Mapping[Any, slice | str] | str | None = None,
        resume: bool = False,
        verify: bool | str = False,
        progress: bool = True,
        storage_options: dict[str, Any] | None = None,
        embed_weights: bool = False,
        **options: Any,
    ) -> Summary:
        """Compress and write with a progress bar; see :func:`xtec.to_zarr`."""
        return to_zarr(
            self._obj,
            store,
            mode=mode,
            overwrite=overwrite,
            append_dim=append_dim,
            region=region,
            resume=resume,
            verify=verify,
            progress=progress,
            storage_options=storage_options,
            embed_weights=embed_weights,
            **options,
        )

    def report(
        self, back: Any, path: str | os.PathLike[str] = "report.html", **options: Any
    ) -> Path:
        """Show on an HTML page what is left of this cube in a store; see
        :func:`xtec.page.report`."""
        from .page import report

        return report(self._obj, back, path, **options)


@xr.register_dataset_accessor("tec")
class DatasetAccessor(_Accessor):
    """Learned compression of a Dataset of Sentinel-2 images."""


@xr.register_dataarray_accessor("tec")
class DataArrayAccessor(_Accessor):
    """Learned compression of a DataArray of Sentinel-2 images."""
