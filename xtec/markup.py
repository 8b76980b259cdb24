"""Text, numbers, pictures and tables as HTML. Whatever is given is escaped here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

import numpy as np

from . import pictures

#: Pixels a side from which on a picture need not show its pixels.
SMOOTH = 512
#: Characters of a name or attribute that are shown.
LONG = 300
MINUS = "\N{MINUS SIGN}"


def safe(text: object) -> str:
    """Text that comes from anywhere, as text of a page or the value of an attribute."""
    shown = str(text)
    return escape(shown if len(shown) <= LONG else shown[: LONG - 1] + "…", quote=True)


def image(data: bytes, text: str, size: tuple[int, int], kind: str = "") -> str:
    """A PNG file; text : what it shows, for those who do not see it; size : rows, columns"""
    names = " ".join(n for n in (kind, "fine" if max(size) <= SMOOTH else "") if n)
    return (
        f'<img src="{pictures.uri(data)}" alt="{safe(text)}" width="{size[1]}" height="{size[0]}" '
        f'class="{names}">'
    )


def legend(limit: float) -> str:
    """The colours of errors up to a limit in DN."""
    ramp = np.arange(1, pictures.STEPS + 1, dtype=np.uint8)[None]
    colours = pictures.uri(pictures.png(ramp, pictures.colours()))
    if not limit:
        return '<p class="small">No error.</p>'
    return (
        f'<div class="legend"><span>{MINUS}{number(limit)}</span>'
        f'<img src="{colours}" alt="colours of errors, {span(limit)}" width="{pictures.STEPS}" '
        f'height="1"><span>+{number(limit)} DN</span></div>'
    )


def cards(figures: Iterable[tuple[str, str, str]]) -> str:
    """Title, figure and remark of each."""
    return '<dl class="cards">{}</dl>'.format(
        "".join(
            f"<div><dt>{safe(title)}</dt><dd>{safe(figure)} "
            f'<span class="small">{safe(remark)}</span></dd></div>'
            for title, figure, remark in figures
        )
    )


def options(pairs: Iterable[tuple[str, str]]) -> str:
    """Value and text of each, for a select."""
    return "".join(f'<option value="{safe(v)}">{safe(text)}</option>' for v, text in pairs)


def table(
    name: str,
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    foot: Sequence[str] | None = None,
) -> str:
    """That scrolls by itself, also by keyboard, where it is too wide."""

    def line(cells: Sequence[str]) -> str:
        first, *others = map(safe, cells)
        rest = "".join(f"<td>{cell}</td>" for cell in others)
        return f'<tr><th scope="row">{first}</th>{rest}</tr>'

    top = "".join(f'<th scope="col">{safe(cell)}</th>' for cell in head)
    bottom = f"<tfoot>{line(foot)}</tfoot>" if foot else ""
    return (
        f'<div class="wide" role="region" aria-label="{safe(name)}" tabindex="0"><table>'
        f"<thead><tr>{top}</tr></thead><tbody>{''.join(map(line, rows))}</tbody>{bottom}</table>"
        "</div>"
    )


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """Name and value of each row."""
    inside = "".join(f"<dt>{safe(name)}</dt><dd>{safe(value)}</dd>" for name, value in rows)
    return f'<dl class="facts">{inside}</dl>'


def number(value: float | None, *, aligned: bool = False) -> str:
    """A number for people: three figures, or all of one that is larger. ``aligned`` keeps zeros at
    the end, for columns.

    Examples
    --------
    >>> number(1234.5), number(7.0), number(7.0, aligned=True)
    ('1234', '7', '7.00')
    """
    if value is None or value != value:
        return "–"
    text = f"{value:.0f}" if abs(value) >= 99.95 else f"{value:{'#' if aligned else ''}.3g}"
    return text.replace("-", MINUS) if float(text) else "0"


def decibels(value: float, *, unit: bool = True) -> str:
    """A PSNR; infinite where nothing was lost, NaN where nothing is known."""
    if value != value:
        return "–"
    return "no loss" if value == np.inf else f"{value:.2f}{' dB' if unit else ''}"


def percent(share: float) -> str:
    """Of a number from 0 to 1."""
    return "–" if share != share else f"{100 * share:.3g} %"


def span(limit: float) -> str:
    """What colours or bars reach to."""
    return f"{MINUS}{number(limit)} to +{number(limit)} DN" if limit else "none"


def many(n: int, what: str, plural: str = "s") -> str:
    """A number of things."""
    return f"{n} {what}{'' if n == 1 else plural}"
