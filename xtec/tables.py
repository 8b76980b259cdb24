"""Rows of a name and a value, for terminals and notebooks."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

#: Name and value of each line.
Rows = Sequence[tuple[str, str]]


def as_text(rows: Rows) -> str:
    """Aligned lines.

    Examples
    --------
    >>> print(as_text([("model", "tt"), ("size", "2 MB")]))
    model  tt
    size   2 MB
    """
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def as_html(rows: Rows) -> str:
    """A table; what is in the rows is text."""
    cells = (
        f"<tr><th style='text-align:left'>{html.escape(a)}</th><td>{html.escape(b)}</td></tr>"
        for a, b in rows
    )
    return f"<table>{''.join(cells)}</table>"


class Table:
    """What has ``rows()`` and shows them."""

    def rows(self) -> Rows:
        raise NotImplementedError

    def __str__(self) -> str:
        return as_text(self.rows())

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return as_html(self.rows())


def short(value: Any) -> str:
    """A checksum by its beginning; anything else as it is."""
    text = str(value)
    return text[:16] + "..." if len(text) == 64 else text
