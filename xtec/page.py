"""One HTML page that shows what compression kept of a cube and what it lost.

It needs nothing but a browser: pictures are inside as PNG, there is one style and one script, and a
Content-Security-Policy that admits nothing else. Whatever comes from the data is escaped.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from . import markup, pictures, viewing
from .attributes import ATTRIBUTE, plain
from .compression import codec_of
from .storeerrors import CLOSED
from .versions import versions
from .viewing import Pair, Seen, figures, together

#: Bytes of a page, and how many of these all pictures of whole dates may take.
LIMIT, _PICTURES = 15_000_000, 13_000_000
#: Bytes of a pixel of a PNG, measured on images of Sentinel-2: in colour, grey, an error.
_COLOUR, _GREY, _ERROR = 2.2, 0.7, 0.4
#: Name, and the bands that are red, green and blue.
_COMPOSITES = (("true colour", ("B04", "B03", "B02")), ("false colour", ("B08", "B04", "B03")))
#: Share of pixels whose errors fit into a histogram, and bars of it.
_INSIDE, _BARS = 0.999, 80
#: Attributes and dates that are listed at most.
_MOST = 40


def report(
    source: xr.Dataset | xr.DataArray,
    back: Any,
    path: str | os.PathLike[str] = "report.html",
    *,
    dates: int = 4,
    budget: float | str = "2GB",
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Write a page that compares a cube with what is left of it in a store.

    Where the cube is larger than the budget, errors are counted in chunks that are spread evenly
    over it, and dates are drawn over a window; the page says so. Blocks are read and compared by
    Dask, on whatever scheduler it is set to.

    Parameters
    ----------
    source : Dataset or DataArray
        What the store was made of.
    back : path or URL of the store, or the Dataset or DataArray that was opened from it
    path : path
        Of the page: one file of 15 MB at most.
    dates : int
        How many to draw, spread evenly over the series.
    budget : float or str
        Bytes of pixels to decode, such as "500MB"; as many of the source are read. However small
        it is, one block (a chunk, or several up to 512 x 512 pixels) is counted, and one for each
        date that is drawn.
    overwrite : bool
        Replace what is at ``path``.
    progress : bool
        Show a bar in a terminal or notebook.

    Returns
    -------
    Path of the page.

    Raises
    ------
    FileExistsError
        There is something at ``path``.
    ValueError
        ``back`` is nothing that xtec has compressed, or ``source`` another cube.

    Examples
    --------
    >>> from xtec.page import report
    >>> # report(ds, "cube.zarr", "report.html")
    """
    from .messages import bar

    place = Path(path)
    if place.exists() and not overwrite:
        raise FileExistsError(f"{place} exists: pass overwrite=True to replace it")
    if not place.absolute().parent.is_dir():
        raise FileNotFoundError(f"{place.parent} is no folder: create it, or choose another place")
    if not os.access(place.absolute().parent, os.W_OK | os.X_OK):
        raise PermissionError(f"{place.parent}: {CLOSED}")
    if dates < 1:
        raise ValueError(f"dates is {dates!r}: draw 1 or more")
    nbytes = _nbytes(budget)
    decoded, stored = _opened(back)
    pair = viewing.pair(source, decoded, codec_of(decoded.encoding))  # type: ignore[arg-type]
    with bar("comparing", progress) as advance:
        seen = viewing.see(pair, dates=int(dates), budget=nbytes, advance=advance)
    text = _Page(pair, seen, stored).text()
    partial = place.with_name(place.name + ".partial")
    try:
        # Names may hold what is no Unicode; a page that cannot be written helps nobody.
        partial.write_text(text, "utf-8", errors="replace")
        os.replace(partial, place)
    finally:
        partial.unlink(missing_ok=True)
    return place


def _nbytes(budget: float | str) -> float:
    from dask.utils import parse_bytes

    try:
        found = float(parse_bytes(budget))
    except (TypeError, ValueError):
        found = 0.0
    if not found >= 1:
        raise ValueError(f"budget is {budget!r}: write bytes, or such as '500MB' or '10GB'")
    return found


def _opened(back: Any) -> tuple[xr.DataArray, dict[str, Any] | None]:
    """The decoded variable, and what `describe` says of it where its store is known."""
    from .reading import open_input
    from .report import describe

    named = isinstance(back, (str, os.PathLike))
    opened = open_input(back, layout="stored") if named else back
    arrays = {opened.name: opened} if isinstance(opened, xr.DataArray) else opened.data_vars
    found = [array for array in arrays.values() if codec_of(array.encoding) is not None]
    if len(found) != 1:
        raise ValueError(
            f"{len(found)} of the variables {[str(name) for name in arrays]} were compressed by "
            "xtec, a report is about one: pass the path of the store, or what xr.open_zarr has "
            "returned for it (one variable of it where there are several)"
        )
    store = back if named else opened.encoding.get("source")
    if not isinstance(store, (str, os.PathLike)):
        return found[0], None
    try:
        told = describe(store)
    except (ValueError, OSError, ImportError):
        if named:
            raise
        return found[0], None  # opened elsewhere, or with options that are not known here
    mine = [one for one in told["variables"] if one["name"] == found[0].name]
    if not mine or mine[0]["shape"] != list(found[0].shape):
        return found[0], None  # a part of what is in the store
    return found[0], {**mine[0], "store": told["store"], "zarr_format": told["zarr_format"]}


class _View(NamedTuple):
    """What can be picked: a name for people, and its bands (three, or one)."""

    name: str
    bands: tuple[int, ...]


class _Drawn(NamedTuple):
    """Pictures of one date or crop as PNG files, with what their captions say."""

    original: bytes
    decoded: bytes
    error: bytes
    size: tuple[int, int]
    low: np.ndarray
    high: np.ndarray
    empty: bool


def _drawn(planes: np.ndarray, limit: float) -> _Drawn:
    """(3, n, y, x) DN: original, decoded and error of one band or three."""
    low, high = pictures.stretch(planes[0])
    was, now = (pictures.shown(one, low, high) for one in planes[:2])
    brightest, darkest = np.fmax.reduce(planes[2]), np.fmin.reduce(planes[2])
    error = viewing.farther(darkest, brightest)
    return _Drawn(
        pictures.png(was),
        pictures.png(now),
        pictures.png(pictures.signed(error, limit), pictures.colours()),
        planes.shape[-2:],
        low,
        high,
        not was.any(),
    )


def _limit(errors: np.ndarray, percent: float) -> float:
    """Error in DN that gets the last colour: so many are no larger."""
    some = np.abs(errors[~np.isnan(errors)])
    if not some.size:
        return 0.0
    return pictures.nice(float(np.percentile(some, percent)) or float(some.max()))


def _coarser(planes: np.ndarray, factor: int) -> np.ndarray:
    """(3, n, y, x) as `Look.drawn` has it, with fewer pixels."""
    parts = [viewing.means(one, factor) for one in planes[:2]]
    return np.stack([*parts, viewing.extremes(planes[2], factor)])


class _Page:
    """A page that is being put together."""

    def __init__(self, pair: Pair, seen: Seen, stored: dict[str, Any] | None) -> None:
        self.pair, self.seen, self.stored = pair, seen, stored
        self.config = pair.codec.config
        self.bands = list(self.config.bands)
        self.dates = _dates(pair.back, pair.dims[0].get("time"), pair.sizes[0])
        self.views = [
            _View(name, tuple(self.bands.index(band) for band in wanted))
            for name, wanted in _COMPOSITES
            if set(wanted) <= set(self.bands)
        ]
        self.views += [_View(band, (i,)) for i, band in enumerate(self.bands)]
        try:
            self.said = json.loads(str(pair.back.attrs.get(ATTRIBUTE)))
        except ValueError:
            self.said = {}
        if not isinstance(self.said, dict):
            self.said = {}

    def text(self) -> str:
        """The whole of it."""
        name = self._name()
        body = "\n".join(
            [
                f"<header><h1>What compression did to {markup.safe(name)}</h1>",
                f'<p class="muted">{self._scope()}</p>',
                self._cards(),
                *self._warnings(),
                "</header>",
                "<main>",
                self._compare(),
                self._crops(),
                self._tables(),
                self._histograms(),
                self._storage(),
                self._about(),
                "</main>",
            ]
        )
        template = files("xtec").joinpath("page.html").read_text("utf-8")
        policy = "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'"
        for tag in ("style", "script"):
            inside = template.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
            digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
            policy += f"; {tag}-src 'sha256-{digest}'"
        page = template.replace("<!-- policy -->", policy)
        page = page.replace("<!-- title -->", f"xtec: {markup.safe(name)}")
        return page.replace("<!-- body -->", body)

    # the top

    def _name(self) -> str:
        if self.stored is None:
            return str(self.pair.back.name)
        store = str(self.stored["store"]).rstrip("/")
        return re.split(r"[/\\]", store)[-1] or store

    def _scope(self) -> str:
        time, bands, y, x = self.pair.sizes
        size = f"{markup.many(time, 'date')}, {markup.many(bands, 'band')}, {y} × {x} pixels"
        if self.seen.whole:
            return f"{size}. All of them were decoded and compared for this page."
        return (
            f"{size}. This page is a sample: errors were counted in {self.seen.places} of "
            f"{self.seen.of} blocks, spread evenly over the cube."
        )

    def _cards(self) -> str:
        from .writing import human

        whole = figures(together(together(self.seen.sums, 2), 1))
        rms, worst = float(whole.rmse), self.seen.worst
        cards = []
        if self.stored is not None:
            size = f"{human(self.stored['bytes_in'])} to {human(self.stored['bytes_out'])}"
            cards.append(("Smaller", f"{self.stored['ratio']:.1f} times", size))
            cards.append(("Stored", f"{self.stored['bpppb']:.3f} bits", "per pixel and band"))
        cards.append(("PSNR", markup.decibels(float(whole.psnr)), "peak 10000 DN"))
        cards.append(("Typical error", f"{markup.number(rms)} DN", "root of the mean square"))
        where = f"{self.bands[worst.band]}, {self.dates[worst.time]}" if worst.error else "anywhere"
        cards.append(("Largest error", f"{markup.number(worst.error)} DN", where))
        return markup.cards(cards)

    def _warnings(self) -> Iterable[str]:
        if self.seen.differ:
            yield (
                f'<p class="warn">{markup.many(self.seen.differ, "pixel")} with nodata in one of '
                "the two cubes and a value in the other: one of them is damaged, or this is not "
                "the cube that the store was made of. <code>xtec verify</code> says where.</p>"
            )
        if not self.seen.sums[0].any():
            yield '<p class="warn">No valid pixel was found: everything read is nodata.</p>'

    # pictures of whole dates

    def _compare(self) -> str:
        seen = self.seen
        errors = self.seen.pictures[:, 2]
        limits = [_limit(errors[:, list(view.bands)], 99.5) for view in self.views]
        looks = self._pictures(limits)
        dates = markup.options((str(t), self.dates[t]) for t in seen.dates)
        views = markup.options((str(i), view.name) for i, view in enumerate(self.views))
        return "\n".join(
            [
                '<section aria-labelledby="compare">',
                '<h2 id="compare">Original and decoded</h2>',
                f"<p>{self._window()}</p>",
                '<div class="pickers">',
                f'<label>Date <select id="date">{dates}</select></label>',
                f'<label>Picture <select id="view">{views}</select></label>',
                '<label class="slide">Divider: original to its left, decoded to its right '
                '<input type="range" id="at" min="0" max="100" value="50"></label>',
                '<button type="button" id="flip">Flip</button>',
                "</div>",
                *looks,
                "</section>",
            ]
        )

    def _window(self) -> str:
        rows, columns = self.seen.window
        _, _, y, x = self.pair.sizes
        text = "Both are stretched alike, to the darkest and brightest 2 % of the original. "
        if (rows.stop - rows.start, columns.stop - columns.start) != (y, x):
            text += (
                f"Shown is a window of the cube, rows {rows.start} to {rows.stop - 1} and columns "
                f"{columns.start} to {columns.stop - 1}, at the place of the sample with the most "
                "valid pixels. "
            )
        if len(self.dates) > len(self.seen.dates):
            text += f"{len(self.seen.dates)} of {len(self.dates)} dates, chosen evenly. "
        return text + "Hatched: nodata."

    def _pictures(self, limits: Sequence[float]) -> list[str]:
        """A figure a date and view; pictures get smaller until the page is small enough."""
        colour, grey = self._factors()
        while True:
            looks = [
                self._look(i, view, limits[i], colour if len(view.bands) > 1 else grey, k)
                for k in range(len(self.seen.dates))
                for i, view in enumerate(self.views)
            ]
            if sum(map(len, looks)) <= _PICTURES:
                return looks
            colour, grey = _next(colour, grey)

    def _factors(self) -> tuple[int, int]:
        """By how much composites and single bands are made smaller still, by rule of thumb."""
        shape = self.seen.pictures.shape
        cells = shape[0] * shape[-2] * shape[-1] * 4 / 3  # base64
        composites = sum(len(view.bands) > 1 for view in self.views)
        colour = grey = 1
        while (
            composites * cells / colour**2 * (2 * _COLOUR + _ERROR)
            + len(self.bands) * cells / grey**2 * (2 * _GREY + _ERROR)
            > _PICTURES
        ):
            colour, grey = _next(colour, grey)
        return colour, grey

    def _look(self, number: int, view: _View, limit: float, factor: int, date: int) -> str:
        planes = _coarser(self.seen.pictures[date][:, list(view.bands)], factor)
        drawn = _drawn(planes, limit)
        t = self.seen.dates[date]
        what = f"{view.name}, {self.dates[t]}"
        factor *= self.seen.factor
        scale = "every pixel" if factor == 1 else f"means of {factor} × {factor} pixels"
        rule = "" if factor == 1 else f" Of {factor} × {factor} pixels the largest error is shown."
        if len(view.bands) > 1:
            rule += " Of the three bands the one with the largest error is shown."
        empty = " No valid pixel on this date." if drawn.empty else ""
        hidden = "" if (date, number) == (0, 0) else " hidden"
        return (
            f'<figure class="look two" data-date="{t}" data-view="{number}"{hidden}>'
            f'<div><div class="swipe">'
            f"{markup.image(drawn.decoded, f'{what}, decoded', drawn.size)}"
            f"{markup.image(drawn.original, f'{what}, original', drawn.size, 'over')}"
            '<span class="left" aria-hidden="true">original</span>'
            '<span class="right" aria-hidden="true">decoded</span></div>'
            f"<figcaption>{markup.safe(what)}: {scale}, {self._stretched(view, drawn)}.{empty}"
            "</figcaption></div>"
            f"<div>{markup.image(drawn.error, f'{what}, error, {markup.span(limit)}', drawn.size)}"
            f"{markup.legend(limit)}"
            f"<figcaption>Error, decoded less original: red is too bright, blue too dark.{rule}"
            "</figcaption></div></figure>"
        )

    def _stretched(self, view: _View, drawn: _Drawn) -> str:
        parts = [
            f"{self.bands[b]} {markup.number(low)} to {markup.number(high)}"
            for b, low, high in zip(view.bands, drawn.low, drawn.high, strict=True)
        ]
        return ", ".join(parts) + " DN"

    # crops

    def _crops(self) -> str:
        chosen = self._chosen()
        if not chosen:
            return ""
        parts = viewing.crops(self.pair, [at for _, at, _ in chosen])
        out = [
            '<section aria-labelledby="crops"><h2 id="crops">Pixel by pixel</h2>',
            f"<p>Places of up to {viewing.CROP} × {viewing.CROP} pixels in which each pixel of "
            "the cube is one of the picture.</p>",
        ]
        for (title, (t, y, x), view), (was, now) in zip(chosen, parts, strict=True):
            error = now - was
            planes = np.stack([was, now, error])[:, list(view.bands)]
            limit = _limit(planes[2], 99.5 if len(view.bands) > 1 else 100)
            drawn = _drawn(planes, limit)
            what = f"{view.name}, {self.dates[t]}, around row {y}, column {x}"
            out.append(f"<h3>{markup.safe(title)}</h3>")
            out.append(f'<p class="muted">{markup.safe(what)}; {self._stretched(view, drawn)}</p>')
            out.append('<div class="three">')
            for name, data in (("Original", drawn.original), ("Decoded", drawn.decoded)):
                image = markup.image(data, f"{what}, {name.lower()}", drawn.size)
                out.append(f"<figure>{image}<figcaption>{name}</figcaption></figure>")
            image = markup.image(drawn.error, f"{what}, error, {markup.span(limit)}", drawn.size)
            legend = markup.legend(limit)
            out.append(f"<figure>{image}{legend}<figcaption>Error</figcaption></figure></div>")
        return "\n".join([*out, "</section>"])

    def _chosen(self) -> list[tuple[str, tuple[int, int, int], _View]]:
        """(title, date and pixel in the middle, view) of each crop."""
        seen, out = self.seen, []
        if seen.worst.error:
            band = self.bands[seen.worst.band]
            title = f"Largest error: {markup.number(seen.worst.error)} DN in {band}"
            if not seen.whole:
                title += ", of what was sampled"
            at = seen.worst.time, seen.worst.y, seen.worst.x
            out.append((title, at, self.views[-len(self.bands) + seen.worst.band]))
        good = [tile for tile in seen.tiles if tile.valid > 0.5] or [
            tile for tile in seen.tiles if tile.valid > 0
        ]
        good.sort(key=lambda tile: tile.rmse)
        if good:
            middle = good[len(good) // 2]
            any_one = good[np.random.default_rng(0).integers(len(good))]
            for title, tile in (("Typical error", middle), ("A place drawn by lot", any_one)):
                at = tile.time, tile.y + viewing.CROP // 2, tile.x + viewing.CROP // 2
                text = (
                    f"{title}: {markup.number(tile.rmse)} DN (root of the mean square, all bands)"
                )
                out.append((text, self._inside(at), self.views[0]))
        return out

    def _inside(self, at: tuple[int, int, int]) -> tuple[int, int, int]:
        _, _, y, x = self.pair.sizes
        return at[0], min(at[1], y - 1), min(at[2], x - 1)

    # figures

    def _tables(self) -> str:
        from .bandvars import BAND

        by_band = figures(together(self.seen.sums, 2))
        whole = figures(together(together(self.seen.sums, 2), 1))
        axis = self.pair.dims[0].get("band", BAND)
        own = self.pair.back.coords[axis].values if axis in self.pair.back.coords else self.bands
        names = [
            band if str(mine) == band else f"{band} ({mine})"
            for band, mine in zip(self.bands, np.atleast_1d(own), strict=True)
        ]
        verified = self._verified()
        head = ["Band", *_COLUMNS]
        rows = [[name, *_cells(by_band, i)] for i, name in enumerate(names)]
        foot = ["all", *_cells(whole, ())]
        if verified:
            head.append("largest, verified")
            largest = [verified.get(band) for band in self.bands]
            for row, value in zip(rows, largest, strict=True):
                row.append(markup.number(value))
            foot.append(markup.number(max((v for v in largest if v is not None), default=None)))
        out = [
            '<section aria-labelledby="figures"><h2 id="figures">Figures</h2>',
            "<p>In DN (reflectance × 10000), over valid pixels. Bias is the mean of decoded less "
            "original.</p>",
            markup.table("By band", head, rows, foot),
            *self._indices(),
        ]
        if len(self.dates) > 1:
            by_date = figures(together(self.seen.sums, 1))
            dates = [[self.dates[t], *_cells(by_date, t)] for t in self._listed()]
            out += [
                "<h3>By date, all bands</h3>",
                markup.table("By date", ["Date", *_COLUMNS], dates),
            ]
        return "\n".join([*out, "</section>"])

    def _listed(self) -> list[int]:
        """Dates of the table: those that are drawn, and others of which something was read."""
        read = np.flatnonzero(self.seen.sums[1].any(axis=0)).tolist()
        few = read if len(read) <= _MOST else []
        return sorted({*self.seen.dates, *few})

    def _verified(self) -> dict[str, float | None]:
        """Largest error of each band as it was noted when the store was verified."""
        found = self.said.get("verified")
        largest = found.get("max_error") if isinstance(found, dict) else None
        return {
            str(band): value
            for band, value in (largest.items() if isinstance(largest, dict) else ())
            if isinstance(value, (int, float))
        }

    def _indices(self) -> Iterable[str]:
        for what, unit, (n, total, most) in (
            ("Spectral angle between original and decoded", "°", self.seen.angles),
            ("Error of the NDVI", "", self.seen.ndvi),
        ):
            if n:
                mean, largest = (markup.number(value) + unit for value in (total / n, most))
                yield f"<p>{what}: {mean} on average, {largest} at most.</p>"

    def _histograms(self) -> str:
        counted = [i for i in range(len(self.bands)) if self.seen.errors[i].sum()]
        if not counted:
            return ""
        bands = markup.options((str(i), self.bands[i]) for i in counted)
        return "\n".join(
            [
                '<section aria-labelledby="counts"><h2 id="counts">Histograms</h2>',
                f'<div class="pickers"><label>Band <select id="band">{bands}</select></label>',
                "</div>",
                *(self._counts(i, hidden=i != counted[0]) for i in counted),
                "</section>",
            ]
        )

    def _counts(self, band: int, *, hidden: bool) -> str:
        name, errors = self.bands[band], self.seen.errors[band]
        total, middle = errors.sum(), viewing.REACH
        inside = np.concatenate([[errors[middle]], errors[middle + 1 :] + errors[:middle][::-1]])
        reach = max(int(np.searchsorted(inside.cumsum(), _INSIDE * total)), 2)
        width = -(-(2 * reach + 1) // _BARS) // 2 * 2 + 1  # odd: 0 is in the middle of a bar
        half = -(-(reach - width // 2) // width)
        reach = min(half * width + width // 2, middle)
        around = errors[middle - reach : middle + reach + 1]
        bars, _ = pictures.fewer(around, 0, 2 * reach, 2 * half + 1)
        values = self.seen.values[:, band]
        cumulated = values.sum(0).cumsum()
        first, last = np.searchsorted(cumulated, [0.001 * cumulated[-1], 0.999 * cumulated[-1]])
        (was, n), (now, _) = (pictures.fewer(v, first, last, _BARS) for v in values)
        start = viewing.FIRST + int(first) * viewing.WIDTH
        end = start + n * len(was) * viewing.WIDTH
        dn = f"{start} to {end} DN"
        return (
            f'<div class="counts two" data-band="{band}"{" hidden" if hidden else ""}>'
            f'<figure><svg role="img" viewBox="0 0 400 100" preserveAspectRatio="none" '
            f'aria-label="Histogram of the errors of {name}, {markup.span(reach)}">'
            f'<path class="bars" d="{pictures.bars(bars, True)}"/></svg>'
            f'<div class="ends"><span>{markup.MINUS}{reach}</span><span>0</span>'
            f"<span>+{reach} DN</span></div>"
            f"<figcaption>Errors of {name}, decoded less original; bars of "
            f"{markup.many(width, 'DN', '')}, their height is logarithmic. "
            f"{markup.percent(1 - inside[: reach + 1].sum() / total)} of the pixels are beyond."
            "</figcaption></figure>"
            f'<figure><svg role="img" viewBox="0 0 400 100" preserveAspectRatio="none" '
            f'aria-label="Histogram of the values of {name}, original and decoded, {dn}">'
            f'<path class="bars" d="{pictures.bars(was, False)}"/>'
            f'<path class="line" d="{pictures.line(now, float(was.max()))}"/></svg>'
            f'<div class="ends"><span>{start}</span><span>{end} DN</span></div>'
            f'<figcaption>Values of {name}:<span class="key">original</span>'
            f'<span class="key now">decoded</span>. Bars of {n * viewing.WIDTH} DN.'
            "</figcaption></figure></div>"
        )

    # the small print

    def _storage(self) -> str:
        from .report import variable_rows

        rows: list[tuple[str, str]] = []
        if self.stored is not None:
            rows = [
                ("store", f"{self.stored['store']} (Zarr format {self.stored['zarr_format']})"),
                *variable_rows(self.stored),
                ("sha256 of the weights", str(self.stored["weights_sha256"] or "none")),
                ("written by xtec", str(self.stored["written_by"] or "not known")),
            ]
        else:
            from .writing import model_text

            config = self.config
            rows = [
                ("variable", str(self.pair.back.name)),
                ("size", "not known: the store was not given, or this is a part of it"),
                (
                    "model",
                    model_text(config.model, config.compression, config.quality, config.max_error),
                ),
                ("weights", str(config.weights)),
                ("sha256 of the weights", str(config.weights_sha256 or "none")),
                ("bands", f"{', '.join(self.bands)} ({config.sensor})"),
                ("chunks", " x ".join(map(str, self.pair.codec.chunk_shape))),
                (
                    "nodata, offset, scale",
                    f"{config.nodata}, {config.offset:g}, {config.scale:g}",
                ),
            ]
        rows += [("verified", self._verified_text()), *_place(self.pair)]
        attributes = [
            (str(key), json.dumps(plain(value), ensure_ascii=False, default=str))
            for key, value in self.pair.back.attrs.items()
            if key != ATTRIBUTE
        ]
        more = ""
        if attributes:
            left = len(attributes) - _MOST
            note = f'<p class="muted">{left} more are left out.</p>' if left > 0 else ""
            shown = markup.facts(attributes[:_MOST])
            more = f"<details><summary>Attributes of the variable</summary>{shown}{note}</details>"
        return (
            '<section aria-labelledby="stored"><h2 id="stored">How it is stored</h2>'
            f"{markup.facts(rows)}{more}</section>"
        )

    def _verified_text(self) -> str:
        found = self.said.get("verified")
        if not isinstance(found, dict):
            return "no (xtec verify STORE --against SOURCE does it)"
        unit = "shards" if "shards" in found else "chunks"
        text = f"{found.get(unit)} of {found.get('of')} {unit}, when the store was written"
        repaired = found.get("repaired")
        return f"{text}; {repaired} were written again" if repaired else text

    def _about(self) -> str:
        seen = self.seen
        window = seen.window
        pixels = f"{window[0].stop - window[0].start} × {window[1].stop - window[1].start}"
        share = "all of it" if seen.whole else f"{seen.places} of {seen.of} blocks, spread evenly"
        shown = ", ".join(self.dates[t] for t in seen.dates)
        scale = "" if seen.factor == 1 else f", {seen.factor} × {seen.factor} of them to one"
        rows = [
            ("date of this page", datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")),
            ("counted", f"{share}; {int(seen.sums[0].sum()):,} values".replace(",", " ")),
            ("drawn", f"{shown}; {pixels} pixels{scale}"),
            *versions().items(),
        ]
        return (
            '<section aria-labelledby="about"><h2 id="about">About this page</h2>'
            f"{markup.facts(rows)}</section>"
        )


#: Columns of the tables of figures.
_COLUMNS = ("valid", "PSNR, dB", "RMSE", "bias", "mean error", "largest error")


def _cells(found: viewing.Figures, at: Any) -> list[str]:
    return [
        markup.percent(float(found.valid[at])),
        markup.decibels(float(found.psnr[at]), unit=False),
        *(
            markup.number(float(values[at]), aligned=True)
            for values in (found.rmse, found.bias, found.mean)
        ),
        markup.number(float(found.largest[at])),
    ]


def _next(colour: int, grey: int) -> tuple[int, int]:
    """Smaller pictures: single bands first, up to half the side of composites."""
    return (colour, grey + 1) if grey < 2 * colour else (colour + 1, grey)


def _dates(back: xr.DataArray, dim: Any, count: int) -> list[str]:
    """A text for each date, all different."""
    if dim is None or dim not in back.coords:
        return [f"date {i + 1}" for i in range(count)]
    values = back[dim].values
    if values.dtype.kind != "M":
        texts = [str(value)[: markup.LONG] for value in values.tolist()]
    else:
        texts = np.datetime_as_string(values, unit="D").tolist()
        if len(set(texts)) < count:
            texts = [text.replace("T", " ") for text in np.datetime_as_string(values, unit="s")]
    return texts if len(set(texts)) == count else [f"{t} ({i + 1})" for i, t in enumerate(texts)]


def _place(pair: Pair) -> list[tuple[str, str]]:
    """CRS, extent and dates, as far as they are known."""
    back, dims = pair.back, pair.dims[0]
    rows = []
    for name, coord in back.coords.items():
        text = coord.attrs.get("crs_wkt", coord.attrs.get("spatial_ref"))
        if coord.ndim == 0 and isinstance(text, str):
            title = re.match(r'\s*\w+\["([^"]*)"', text)
            code = re.search(r'(?:ID|AUTHORITY)\["EPSG",\s*"?(\d+)"?\]\s*\]\s*$', text)
            known = [title[1] if title else text, *([f"EPSG:{code[1]}"] if code else [])]
            rows.append(("CRS", f"{', '.join(known)} ({name})"))
            break
    for role in ("x", "y"):
        if role in dims and dims[role] in back.coords:
            values = back[dims[role]].values
            if values.dtype.kind in "iuf" and values.size:
                low, high = sorted((float(values[0]), float(values[-1])))
                rows.append((f"{role}, first to last pixel", f"{low:.10g} to {high:.10g}"))
    if "time" in dims and dims["time"] in back.coords:
        texts = _dates(back, dims["time"], pair.sizes[0])
        rows.append(("dates", f"{texts[0]} to {texts[-1]}" if len(texts) > 1 else texts[0]))
    return rows
