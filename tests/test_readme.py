"""The examples of the README run, in order, as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from scenes import scene
from tec.sensors import SENSORS

README = Path(__file__).resolve().parents[1] / "README.md"
BANDS = list(SENSORS["S2L2A"].bands)


def cube(dn: np.ndarray, bands: list[str] | None, dtype: str = "uint16") -> xr.DataArray:
    coords = {} if bands is None else {"band": bands}
    return xr.DataArray(dn.astype(dtype), dims=("time", "band", "y", "x"), coords=coords, name="s2")


def blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.filterwarnings("ignore:.*chunks.*:UserWarning")
def test_python_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dn = scene(2, 12, 256, 256)
    cube(dn, BANDS).to_dataset().to_zarr("s2.zarr", zarr_format=2)
    names = {"SR_B2": dn[:, 1, :64, :64], "SR_B3": dn[:, 2, :64, :64]}
    namespace = {
        "reflectance": cube(dn[:1, :, :64, :64] / 1e4, BANDS, "float32"),
        "other_names": xr.Dataset({k: (("time", "y", "x"), v) for k, v in names.items()}),
        "later": cube(dn, BANDS).to_dataset(),
        "no_names": cube(dn[:1, 1:4, :64, :64], None),
    }
    distributed = pytest.importorskip("distributed", reason="the extra 'distributed' is optional")
    with distributed.LocalCluster(1, processes=False, dashboard_address=":0") as cluster:

        class Client(distributed.Client):
            def __init__(self) -> None:
                super().__init__(cluster)

        monkeypatch.setattr(distributed, "Client", Client)
        assert len(blocks()) >= 2
        for block in blocks():
            exec(block, namespace)
        namespace["client"].close()
    back = namespace["back"]["s2"]
    assert back.shape == dn.shape
    assert back.dtype == dn.dtype
    assert 10 * np.log10(1e8 / np.mean((back.values.astype(float) - dn) ** 2)) > 30
    for store in ("whole.zarr", "cube.zarr.zip", "old.zarr"):
        assert Path(store).exists()


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README.read_text()):
        assert (README.parent / target).exists(), target
