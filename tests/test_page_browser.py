"""The report in a browser: Chromium, from PATH or the variable CHROMIUM, driven by playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import xarray as xr
from scenes import scene

from xtec import page

CHROMIUM = (
    os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
)
ARGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
ARGS += ["--disable-component-update", "--disable-sync", "--no-first-run"]
BANDS = ["B02", "B03", "B04", "B08"]
HOSTILE = "<script>document.title = 'mine'</script><img src=x onerror=\"document.title = 'mine'\">"

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: pip install 'xtec[test]'"
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="there is no chromium on PATH: install it, or set CHROMIUM to its path"
)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("page")
    data = xr.DataArray(
        scene(time=3, bands=4, y=60, x=90, nodata=True),
        dims=("time", "band", "y", "x"),
        coords={"band": BANDS, "time": np.arange("2022-06-01", "2022-06-04", dtype="M8[D]")},
        name="s2",
        attrs={"note": HOSTILE, "long": "word" * 100},
    )
    data.coords["time"] = data.time.astype("M8[ns]")
    data.tec.to_zarr(folder / f"{'cube_of_a_long_name_' * 4}.zarr", model="none", max_error=60)
    (store,) = folder.iterdir()
    return page.report(data, store, folder / "report.html", progress=False).as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        yield running
        running.close()


class Tab:
    """The page in a tab of its own, and what the console said."""

    def __init__(self, browser: Any, address: str, width: int = 1200, **options: Any) -> None:
        self.said: list[str] = []
        self.context = browser.new_context(viewport={"width": width, "height": 800}, **options)
        self.tab = self.context.new_page()
        self.tab.on("console", lambda message: self.said.append(message.text))
        self.tab.on("pageerror", lambda error: self.said.append(str(error)))
        self.tab.on("request", lambda request: self._asked(request.url))
        self.tab.goto(address)

    def _asked(self, url: str) -> None:
        if not url.startswith(("file:", "data:")):
            self.said.append(url)

    def look(self) -> str:
        """The text of the picture that is shown; exactly one is."""
        (shown,) = self.tab.locator(".look:visible .over").all()
        return shown.get_attribute("alt")

    def divider(self) -> float:
        """Where the original ends, as a share of the picture's width, as it is drawn."""
        clip = "e => getComputedStyle(e).clipPath"
        right = self.tab.locator(".look:visible .over").evaluate(clip)
        assert right.startswith("inset(0px ")
        part = right.removeprefix("inset(0px ").split(" 0px")[0]
        return 1 - float(part.removesuffix("%").removeprefix("calc(100% - ")) / 100


@pytest.fixture
def open_tab(browser: Any, address: str) -> Iterator[Any]:
    tabs: list[Tab] = []

    def open_one(**options: Any) -> Tab:
        tabs.append(Tab(browser, address, **options))
        return tabs[-1]

    yield open_one
    for tab in tabs:
        tab.context.close()
        assert tab.said == []


def test_it_loads(open_tab: Any) -> None:
    tab = open_tab()
    assert tab.tab.title().startswith("xtec: cube_of_a_long_name")
    assert tab.look() == "true colour, 2022-06-01, original"
    loaded = "all => all.every(one => one.complete && one.naturalWidth > 0)"
    assert tab.tab.locator("img").evaluate_all(loaded)
    sizes = "e => [e.offsetWidth, e.offsetHeight]"
    over, under = (
        tab.tab.locator(f".look:visible .swipe img{which}").evaluate(sizes)
        for which in (".over", ":not(.over)")
    )
    assert over == under
    assert over[0] > 300


def test_without_scripts_there_is_a_picture(browser: Any, address: str) -> None:
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(address)
    assert tab.locator(".look:visible").count() == 1
    assert tab.locator(".counts:visible").count() == 1
    context.close()


def test_the_divider_moves_by_keyboard(open_tab: Any) -> None:
    tab = open_tab()
    assert tab.divider() == pytest.approx(0.5)
    for _ in range(12):
        tab.tab.keyboard.press("Tab")
        if tab.tab.evaluate("document.activeElement.id") == "at":
            break
    assert tab.tab.evaluate("document.activeElement.id") == "at"
    assert tab.tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    for key, place in (("ArrowRight", 0.51), ("ArrowLeft", 0.5), ("Home", 0), ("End", 1)):
        tab.tab.keyboard.press(key)
        assert tab.divider() == pytest.approx(place)
    said = tab.tab.locator("#at").get_attribute("aria-valuetext")
    assert said == "original on the left 100 %, decoded on the right"
    tab.tab.keyboard.press("Tab")
    tab.tab.keyboard.press("Enter")
    assert tab.divider() == pytest.approx(0)
    tab.tab.keyboard.press("Enter")
    assert tab.divider() == pytest.approx(1)


def test_the_divider_follows_the_mouse(open_tab: Any) -> None:
    tab = open_tab()
    box = tab.tab.locator(".look:visible .swipe").bounding_box()
    mouse, middle = tab.tab.mouse, box["y"] + box["height"] / 2
    mouse.move(box["x"] + 0.2 * box["width"], middle)
    assert tab.divider() == pytest.approx(0.5)  # a mouse that passes by moves nothing
    mouse.down()
    assert tab.divider() == pytest.approx(0.2, abs=0.01)
    mouse.move(box["x"] + 0.9 * box["width"], middle)
    assert tab.divider() == pytest.approx(0.9, abs=0.01)
    mouse.move(box["x"] + box["width"] + 50, middle)
    assert tab.divider() == pytest.approx(1)
    mouse.up()
    mouse.move(box["x"] + 0.4 * box["width"], middle)
    assert tab.divider() == pytest.approx(1)
    assert tab.tab.locator("#at").input_value() == "100"


def test_both_sides_show_what_they_should(open_tab: Any) -> None:
    """The pixels on the screen left and right of the divider are those of the two pictures."""
    import io

    from PIL import Image

    tab = open_tab()
    tab.tab.select_option("#view", "B08")
    shots = {}
    for place in ("0", "100"):
        tab.tab.locator("#at").fill(place)
        data = tab.tab.locator(".look:visible .swipe").screenshot()
        shots[place] = np.asarray(Image.open(io.BytesIO(data)).convert("L")).astype(int)
    tab.tab.locator("#at").fill("50")
    data = tab.tab.locator(".look:visible .swipe").screenshot()
    both = np.asarray(Image.open(io.BytesIO(data)).convert("L")).astype(int)
    width = both.shape[1]
    rows = slice(60, -5)  # below the words
    left, right = slice(5, width // 2 - 5), slice(width // 2 + 5, width - 5)
    np.testing.assert_array_equal(both[rows, left], shots["100"][rows, left])
    np.testing.assert_array_equal(both[rows, right], shots["0"][rows, right])
    assert (shots["0"] != shots["100"])[rows, left].mean() > 0.1


def test_the_pickers_change_the_picture(open_tab: Any) -> None:
    tab = open_tab()
    tab.tab.select_option("#date", label="2022-06-03")
    assert tab.look() == "true colour, 2022-06-03, original"
    tab.tab.select_option("#view", label="false colour")
    assert tab.look() == "false colour, 2022-06-03, original"
    tab.tab.locator("#view").focus()
    tab.tab.keyboard.press("ArrowDown")
    assert tab.look() == "B02, 2022-06-03, original"
    assert tab.tab.locator(".counts:visible svg").count() == 2
    tab.tab.select_option("#band", label="B08")
    text = tab.tab.locator(".counts:visible svg").first.get_attribute("aria-label")
    assert "B08" in text


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(open_tab: Any, scheme: str) -> None:
    """Contrast of all text with what is behind it: 4.5 to 1 (WCAG 2.2, AA)."""
    tab = open_tab(color_scheme=scheme)
    tab.tab.locator("details").evaluate("e => { e.open = true; }")
    found = tab.tab.evaluate(CONTRAST)
    assert len(found) > 50
    assert [one for one in found if one[0] < 4.5] == []
    page = tab.tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, page[4:-1].split(","))) < 300) == (scheme == "dark")


CONTRAST = """() => {
  const parse = (c) => c.match(/[\\d.]+/g).map(Number);
  const light = (c) => {
    const [r, g, b] = c.slice(0, 3).map((v) => {
      v /= 255;
      return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] > 0.5) return c;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const e of document.body.querySelectorAll("*")) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!own || !e.offsetParent) continue;
    const [a, b] = [light(parse(getComputedStyle(e).color)), light(behind(e))];
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.textContent.slice(0, 40)]);
  }
  return found;
}"""


@pytest.mark.parametrize("width", [360, 768])
def test_narrow_screens(open_tab: Any, width: int) -> None:
    tab = open_tab(width=width)
    tab.tab.locator("details").evaluate("e => { e.open = true; }")
    assert tab.tab.evaluate("document.documentElement.scrollWidth") == width
    for name in ("#date", "#view", "#at", "#flip", "#band"):
        box = tab.tab.locator(name).bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        assert box["height"] >= 24
    # A table that is wider scrolls by itself, and can be reached by keyboard.
    table = tab.tab.locator(".wide").first
    assert table.get_attribute("tabindex") == "0"
    if width == 360:
        assert table.evaluate("e => e.scrollWidth > e.clientWidth")


def test_touch(open_tab: Any) -> None:
    tab = open_tab(width=360, has_touch=True)
    tab.tab.locator(".look:visible .swipe").scroll_into_view_if_needed()
    box = tab.tab.locator(".look:visible .swipe").bounding_box()
    tab.tab.touchscreen.tap(box["x"] + 0.25 * box["width"], box["y"] + 0.6 * box["height"])
    assert tab.divider() == pytest.approx(0.25, abs=0.01)
