"""The report: what stands in the page, whatever the cube is."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import dask.array
import numpy as np
import pytest
import xarray as xr
from cubes import BANDS, band_variables, cube
from PIL import Image
from scenes import scene

import xtec
from xtec import page, pictures, viewing
from xtec.quality import ndvi_error, psnr, spectral_angle

VOID = {"meta", "link", "img", "input", "path", "br"}


class Page(HTMLParser):
    """A page taken apart: elements with their attributes, texts by element, what is not closed."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.source = path.read_text("utf-8")
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs)
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1] if self.open else "", data.strip()))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.elements if name == tag]

    def images(self, *words: str) -> list[np.ndarray]:
        """(y, x, 4) pixels of the images whose texts hold all words."""
        found = []
        for attrs in self.all("img"):
            alt, src = str(attrs["alt"]), str(attrs["src"])
            if all(word in alt for word in words):
                data = base64.b64decode(src.removeprefix("data:image/png;base64,"))
                found.append(np.asarray(Image.open(io.BytesIO(data)).convert("RGBA")))
        return found

    def rows(self, head: str) -> dict[str, list[str]]:
        """Cells of each row of the table whose first heading this is."""
        inside = next(
            part for part in self.source.split("<table>")[1:] if f">{head}</th>" in part
        ).partition("</table>")[0]
        lines = re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', inside)
        return {name: re.findall("<td>(.*?)</td>", cells) for name, cells in lines}

    @property
    def text(self) -> str:
        return " ".join(text for tag, text in self.texts if tag not in ("style", "script"))


def store(data: Any, path: Path, **options: Any) -> Path:
    """Without a network, so that nothing has to be loaded."""
    data.tec.to_zarr(path, **{"model": "none", "max_error": 40, **options})
    return path


def made(source: Any, back: Any, folder: Path, **options: Any) -> Page:
    return Page(page.report(source, back, folder / "report.html", progress=False, **options))


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return store(cube(title="a field"), tmp_path_factory.mktemp("page") / "cube.zarr", verify=True)


@pytest.fixture(scope="module")
def whole(packed: Path) -> Page:
    """Of a cube of three bands and two dates, with a corner of nodata."""
    return made(cube(), packed, packed.parent)


# what every page has


def test_it_needs_nothing_else(whole: Page) -> None:
    assert whole.open == []
    for tag, attrs in whole.elements:
        assert not any(name.startswith("on") or name == "style" for name in attrs), (tag, attrs)
        for name in ("src", "href"):
            assert str(attrs.get(name, "data:")).startswith("data:")
    assert not re.search(r"https?://|@import|url\(", whole.source)
    assert len(whole.all("script")) == len(whole.all("style")) == 1


def test_the_policy_admits_this_script_and_style_only(whole: Page) -> None:
    (policy,) = (
        str(attrs["content"])
        for attrs in whole.all("meta")
        if attrs.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy
    for tag in ("script", "style"):
        inside = re.findall(f"<{tag}>(.*?)</{tag}>", whole.source, re.DOTALL)[0]
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_it_can_be_read_without_seeing_or_pointing(whole: Page) -> None:
    levels = [int(tag[1]) for tag, _ in whole.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(later - sooner <= 1 for sooner, later in pairwise(levels))
    texts = [str(attrs["alt"]) for attrs in whole.all("img")]
    assert all(texts)
    assert "true colour, 2020-06-01, original" in texts
    assert "B03, 2020-06-02, decoded" in texts
    assert all(attrs["aria-label"] for attrs in whole.all("svg"))
    ids = [attrs["id"] for _, attrs in whole.elements if "id" in attrs]
    assert len(set(ids)) == len(ids)
    for attrs in whole.all("section"):
        assert attrs["aria-labelledby"] in ids
    assert len(whole.all("label")) == len(whole.all("select")) + len(whole.all("input"))
    assert whole.all("html")[0]["lang"] == "en"


def test_what_it_says(whole: Page, packed: Path) -> None:
    from xtec.report import describe

    (told,) = describe(packed)["variables"]
    for text in (
        "What compression did to cube.zarr",
        f"{told['ratio']:.1f} times",
        f"{told['bpppb']:.3f} bits",
        "errors up to 40 DN",
        "All of them were decoded and compared",
        "1 of 1 chunks, when the store was written",
        "2020-06-01 to 2020-06-02",
        "600000 to 600230",
        "a field",
        f"{xr.__version__}",
    ):
        assert text in whole.text, text


def test_figures_are_the_computed_ones(whole: Page, packed: Path) -> None:
    with xr.open_zarr(packed) as opened:
        was, now = cube().values.astype(float), opened.s2.values.astype(float)
    valid = was != 0
    rows = whole.rows("Band")
    assert list(rows) == [*BANDS, "all"]
    decibels = psnr(cube(), cube().copy(data=now), nodata=0)
    for i, name in enumerate(BANDS):
        error = (now - was)[:, i][valid[:, i]]
        assert rows[name] == [
            f"{100 * valid[:, i].mean():.3g} %",
            f"{decibels[i]:.2f}",
            *(
                f"{value:#.3g}".replace("-", "\N{MINUS SIGN}")
                for value in (np.sqrt((error**2).mean()), error.mean(), np.abs(error).mean())
            ),
            *[f"{np.abs(error).max():.3g}"] * 2,  # counted here, and when it was verified
        ]
    every = (now - was)[valid]
    assert rows["all"][1] == f"{10 * np.log10(1e8 / (every**2).mean()):.2f}"
    dates = whole.rows("Date")
    assert list(dates) == ["2020-06-01", "2020-06-02"]
    error = (now - was)[1][valid[1]]
    assert dates["2020-06-02"][2] == f"{np.sqrt((error**2).mean()):#.3g}"
    angles = spectral_angle(was, now)[valid.all(1)]
    assert f"{angles.mean():.3g}° on average, {angles.max():.3g}° at most" in whole.text


def test_nodata_is_transparent_and_nothing_else(whole: Page) -> None:
    there = (cube().values != 0).all(axis=1)
    for kind in ("original", "decoded", "error"):
        for t, date in enumerate(("2020-06-01", "2020-06-02")):
            for view in ("true colour", "B02"):
                (image,) = whole.images(f"{view}, {date}, {kind}")
                np.testing.assert_array_equal(image[..., 3] == 255, there[t])


def test_both_are_stretched_alike(whole: Page, packed: Path) -> None:
    with xr.open_zarr(packed) as opened:
        now = opened.s2.values
    (was_image,) = whole.images("B03, 2020-06-01, original")
    (now_image,) = whole.images("B03, 2020-06-01, decoded")
    levels: dict[int, int] = {}
    for values, image in ((cube().values[0, 1], was_image), (now[0, 1], now_image)):
        for dn, level in zip(values.ravel().tolist(), image[..., 0].ravel().tolist(), strict=True):
            assert levels.setdefault(dn, level) == level
    assert len(set(levels.values())) > 50


def test_errors_have_their_sign_and_colour(whole: Page, packed: Path) -> None:
    with xr.open_zarr(packed) as opened:
        error = opened.s2.values[0, 0].astype(int) - cube().values[0, 0].astype(int)
    (image,) = whole.images("B02, 2020-06-01, error")
    red, blue = (image[..., i].astype(int) for i in (0, 2))
    assert (error > 15).any()
    assert (error < -15).any()
    assert (red > blue)[error > 15].all()
    assert (red < blue)[error < -15].all()
    grey = (red == blue) & (image[..., 3] == 255)
    assert np.abs(error[grey]).max() <= 2


# what comes from the data

HOSTILE = """<script>alert(1)</script>" onerror="alert(2)' <!-- body --><!-- title --> &lt;"""


def test_text_from_the_data_is_escaped(tmp_path: Path, whole: Page) -> None:
    data = cube(**{"note": HOSTILE, HOSTILE: [HOSTILE]})
    dates = [f"{HOSTILE}{i}" for i in range(2)]
    data = data.assign_coords(time=dates).rename("<b>s2</b>")
    data = data.assign_coords(spatial_ref=((), 0, {"crs_wkt": f'PROJCRS["{HOSTILE}"]'}))
    back = data.tec.compress(model="none", max_error=9)
    found = made(data, back, tmp_path)
    assert found.open == []
    assert [tag for tag, _ in found.elements if tag in ("script", "style", "b")] == [
        "style",
        "script",
    ]
    for _, attrs in found.elements:
        assert not any(name.startswith("on") for name in attrs)
    assert [tag for tag, _ in found.elements].count("main") == 1
    assert found.text.count(HOSTILE) > 5
    assert any(HOSTILE in str(attrs["alt"]) for attrs in found.all("img"))
    for tag in ("script", "style"):
        inside = (re.findall(f"<{tag}>(.*?)</{tag}>", p.source, re.DOTALL) for p in (whole, found))
        assert next(inside)[0] == next(inside)[0]


def test_long_and_broken_text(tmp_path: Path) -> None:
    data = cube(long="x" * 5000, broken="\ud800", **{f"key {i}": i for i in range(60)})
    found = made(data, data.tec.compress(model="none", max_error=9), tmp_path)
    assert "x" * 200 in found.text
    assert "x" * 400 not in found.text
    assert "22 more are left out" in found.text


# cubes of all kinds


def test_lossless(tmp_path: Path) -> None:
    data = cube()
    found = made(data, store(data, tmp_path / "c.zarr", max_error=0), tmp_path)
    assert found.rows("Band")["B02"][1:] == ["no loss", "0", "0", "0", "0"]
    assert "Largest error: " not in found.text
    assert "No error." in found.text
    assert found.images("B02, 2020-06-01, error")


def test_band_variables(tmp_path: Path) -> None:
    ds = band_variables()
    other = ds.rename(B02="blue", B03="<green>", B04="red")
    packed = other.tec.compress(bands={"<green>": "B03"}, model="none", max_error=40)
    packed.tec.to_zarr(tmp_path / "c.zarr")
    with pytest.raises(ValueError, match="bands B02, B04"):  # the source has to say it, too
        made(other.drop_vars("SCL"), tmp_path / "c.zarr", tmp_path)
    found = made(ds, tmp_path / "c.zarr", tmp_path)
    assert list(found.rows("Band")) == ["B02 (blue)", "B03 (&lt;green&gt;)", "B04 (red)", "all"]


def test_one_image_of_one_band(tmp_path: Path) -> None:
    data = cube().isel(time=0, band=1, drop=True).rename("B03")
    found = made(data, store(data, tmp_path / "c.zarr"), tmp_path)
    assert [o["value"] for o in found.all("option")] == ["0", "0", "0"]
    assert "Spectral angle" not in found.text
    assert len(found.images("B03, date 1", "original")) >= 1
    assert "<table>" in found.source
    assert "By date" not in found.text


def test_ndvi_and_false_colour(tmp_path: Path) -> None:
    dn = scene(time=2, bands=4, y=20, x=24)
    bands = ["B08", "B04", "B03", "B02"]
    data = xr.DataArray(dn, dims=("time", "band", "y", "x"), coords={"band": bands}, name="s2")
    path = store(data, tmp_path / "c.zarr")
    found = made(data, path, tmp_path)
    with xr.open_zarr(path) as opened:
        errors = ndvi_error(dn, opened.s2.values, red=1, nir=0)
    assert f"NDVI: {errors.mean():.3g} on average, {errors.max():.3g} at most" in found.text
    assert len(found.images("false colour, date 2, original")) == 1
    (true,) = found.images("true colour, date 1, original")
    for channel, band in enumerate(("B04", "B03", "B02")):
        (grey,) = found.images(f"{band}, date 1, original")
        np.testing.assert_array_equal(true[..., channel], grey[..., 0])


def test_reflectance_in_floats_with_nan(tmp_path: Path) -> None:
    data = cube("float32")
    data = data.where(data > 0)
    path = store(data, tmp_path / "c.zarr", scale=1e-4, offset=100)
    found = made(data, path, tmp_path)
    plain = made(cube(), store(cube(), tmp_path / "d.zarr"), tmp_path, overwrite=True)
    for name in BANDS:
        mine, theirs = found.rows("Band")[name], plain.rows("Band")[name]
        assert mine[0] == theirs[0]
        assert abs(float(mine[1]) - float(theirs[1])) < 1


def test_packed_integers(tmp_path: Path) -> None:
    raw = cube("int16").drop_vars("spatial_ref")
    ds = raw.where(raw > 0).to_dataset()
    ds.s2.encoding = {"dtype": "int16", "scale_factor": 1e-4, "add_offset": -0.1, "_FillValue": -1}
    ds.s2.values *= 1e-4
    ds.to_zarr(tmp_path / "s.zarr", consolidated=False)
    source = xr.open_zarr(tmp_path / "s.zarr", consolidated=False)
    path = store(source, tmp_path / "c.zarr")
    bound = made(source, path, tmp_path).rows("Band")["B03"]
    assert 0 < float(bound[5]) <= 40


def test_an_empty_date_and_an_empty_cube(tmp_path: Path) -> None:
    data = cube()
    data[1] = 0
    found = made(data, store(data, tmp_path / "c.zarr"), tmp_path)
    assert found.rows("Date")["2020-06-02"] == ["0 %", *["–"] * 5]
    assert "No valid pixel on this date." in found.text
    (image,) = found.images("B02, 2020-06-02, original")
    assert (image[..., 3] == 0).all()
    data[0] = 0
    found = made(data, store(data, tmp_path / "e.zarr"), tmp_path, overwrite=True)
    assert "No valid pixel was found" in found.text
    assert found.rows("Band")["all"] == ["0 %", *["–"] * 5]


def test_the_wrong_cube(tmp_path: Path, packed: Path) -> None:
    other = cube()
    other[0, :, 10:, 10:] = 0
    found = made(other, packed, tmp_path)
    assert "with nodata in one of the two cubes" in found.text
    for source, back, message in (
        (cube(y=30), packed, "pass the cube that the store was made of"),
        (cube().sel(band=["B02", "B03"]), packed, "pass the cube that it was made of"),
        (cube("float32"), packed, "dtype"),
        (cube(), cube(), "0 of the variables"),
        (cube(), xr.open_zarr(packed).s2.isel(time=0), "slices"),
    ):
        with pytest.raises(ValueError, match=message):
            made(source, back, tmp_path, overwrite=True)


def test_what_was_opened_and_parts_of_it(tmp_path: Path, packed: Path, whole: Page) -> None:
    opened = xr.open_zarr(packed)
    found = made(cube(), opened, tmp_path)
    assert found.rows("Band") == whole.rows("Band")
    assert "cube.zarr" in found.text
    part = {"time": slice(0, 1)}
    found = made(cube().isel(part), opened.isel(part), tmp_path, overwrite=True)
    assert "not known: the store was not given" in found.text
    assert found.rows("Band")["B02"][0] == whole.rows("Date")["2020-06-01"][0]


def test_files_stay(tmp_path: Path, packed: Path) -> None:
    (tmp_path / "report.html").write_text("mine")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        made(cube(), packed, tmp_path)
    assert (tmp_path / "report.html").read_text() == "mine"
    made(cube(), packed, tmp_path, overwrite=True)
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    for wrong in ({"dates": 0}, {"budget": "much"}, {"budget": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            made(cube(), packed, tmp_path, overwrite=True, **wrong)


# large cubes


def test_a_sample_of_a_large_cube(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viewing, "_UNIT", 16)
    monkeypatch.setattr(viewing, "CROP", 16)
    values = scene(time=6, bands=3, y=130, x=160)
    values[:, :, :, :64] = 0
    read: list[tuple[int, ...]] = []

    def block(block_info: Any) -> np.ndarray:
        where = block_info[None]["array-location"]
        read.append(tuple(start for start, _ in where))
        return values[tuple(slice(*ends) for ends in where)]

    size = ((2, 2, 2), (3,), (16,) * 8 + (2,), (16,) * 10)
    pixels = dask.array.map_blocks(block, chunks=size, dtype="uint16", meta=values[:0, :0, :0, :0])
    source = cube(time=6, y=130, x=160).copy(data=pixels)
    chunks = {"time": 2, "y": 16, "x": 16}
    path = store(source.copy(data=values), tmp_path / "c.zarr", chunks=chunks)
    nbytes = 2 * 3 * 16 * 16 * 2
    found = made(source, path, tmp_path, dates=2, budget=24 * nbytes)
    assert 24 < len(read) <= 24 + 3 * 4  # three crops touch four blocks at most
    assert "errors were counted in 12 of 270 blocks, spread evenly" in found.text
    assert "Shown is a window of the cube" in found.text
    assert "2 of 6 dates, chosen evenly." in found.text
    assert [o["value"] for o in found.all("option")][:2] == ["0", "5"]
    (image,) = found.images("B02, 2020-06-06, decoded")[:1]
    assert image.shape[:2] == (32, 48)
    assert image[..., 3].any()  # the window lies where there are pixels
    read.clear()
    least = made(source, path, tmp_path, dates=2, budget=1, overwrite=True)
    assert "errors were counted in 1 of 270 blocks" in least.text
    assert 1 + 2 <= len(read) <= 1 + 2 + 3 * 4  # a block counted, one for each date drawn


def test_small_pictures_of_a_large_cube(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viewing, "SIDE", 20)
    data = cube(time=1, y=67, x=90)
    path = store(data, tmp_path / "c.zarr", chunks={"y": 32, "x": 32})
    monkeypatch.setattr(viewing, "_UNIT", 32)
    found = made(data, path, tmp_path)
    (image,) = found.images("B02, 2020-06-01, original")
    assert image.shape[:2] == (7 + 7 + 1, 7 + 7 + 6)
    assert "means of 5 × 5 pixels" in found.text
    there = data.values[0, 0] != 0
    for at, cell in (((0, 0), (0, 0)), ((25, 25), (5, 5)), ((64, 64), (14, 14))):
        area = there[at[0] : at[0] + 5, at[1] : at[1] + 5]
        assert (image[(*cell, 3)] == 255) == area.any()


def test_what_cells_show() -> None:
    nan = np.nan
    planes = np.array([[[1.0, -3, nan], [2, 2, nan], [nan, nan, nan]]])
    np.testing.assert_array_equal(viewing.extremes(planes, 2), [[[-3, nan], [nan, nan]]])
    np.testing.assert_array_equal(viewing.means(planes, 2), [[[0.5, nan], [nan, nan]]])


def test_pages_stay_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = cube(time=2, y=120, x=120)
    path = store(data, tmp_path / "c.zarr")
    full = len(made(data, path, tmp_path).source)
    monkeypatch.setattr(page, "_PICTURES", 100_000)
    found = made(data, path, tmp_path, overwrite=True)
    size = sum(
        len(str(attrs["src"]))
        for attrs in found.all("img")
        if "," in str(attrs["alt"]) and "around" not in str(attrs["alt"])
    )
    assert size < 100_000 < full
    (true,) = found.images("true colour, 2020-06-01, original")
    (grey,) = found.images("B02, 2020-06-01, original")
    assert 120 > true.shape[0] >= grey.shape[0] > 20


# pictures


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 1), (37, 53), (37, 53, 3)])
def test_png(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    smooth = np.cumsum(rng.integers(-3, 4, shape), axis=0)
    for pixels in (smooth.astype(np.uint8), rng.integers(0, 256, shape).astype(np.uint8)):
        image = np.asarray(Image.open(io.BytesIO(pictures.png(pixels))).convert("RGBA"))
        rgb = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)
        np.testing.assert_array_equal(image[..., :3], rgb)
        np.testing.assert_array_equal(image[..., 3] == 0, (rgb == 0).all(axis=2))


def test_png_with_a_palette() -> None:
    steps = np.arange(pictures.STEPS + 1, dtype=np.uint8)[None]
    colours = pictures.colours()
    image = np.asarray(Image.open(io.BytesIO(pictures.png(steps, colours))).convert("RGBA"))[0]
    assert image[0, 3] == 0
    assert (image[1:, 3] == 255).all()
    np.testing.assert_array_equal(image[1:, :3], colours[1:])
    # As dark at one end as at the other, and lightest where there is no error.
    light = image[1:, :3].astype(float) @ (0.2126, 0.7152, 0.0722)
    assert light.argmax() == pictures.STEPS // 2
    assert (np.diff(light[: pictures.STEPS // 2 + 1]) > 0).all()
    assert (np.diff(light[pictures.STEPS // 2 :]) < 0).all()


def test_accessor_and_method_are_one_call(tmp_path: Path, packed: Path) -> None:
    found = cube().tec.report(packed, tmp_path / "r.html", dates=1, progress=False)
    assert found == tmp_path / "r.html"
    assert len(Page(found).images("B02, ", "original")) >= 1
    assert "report" not in xtec.__all__  # the module of this name is `describe`'s
