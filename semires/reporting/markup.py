"""Parts of the HTML tables of the page."""

from __future__ import annotations

import html
from collections.abc import Iterable


def head(titles: Iterable[str]) -> str:
    """The row of column titles."""
    cells = "".join(f'<th scope="col">{html.escape(title)}</th>' for title in titles)
    return f"<thead><tr>{cells}</tr></thead>"


def section(title: str, columns: int) -> str:
    """The row above a section; the title is HTML."""
    return f'<tr class="section"><th scope="colgroup" colspan="{columns}">{title}</th></tr>'


def row(cells: Iterable[str]) -> str:
    """A row of cells that are HTML; the first one is its title."""
    first, *rest = cells
    return f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>'


def note(text: str) -> str:
    """Escaped text whose backticked parts are code."""
    parts = text.split("`")
    return "".join(
        f"<code>{html.escape(p)}</code>" if i % 2 else html.escape(p) for i, p in enumerate(parts)
    )


def notes(items: Iterable[str]) -> str:
    """The list under a table; the items are HTML."""
    return f'<ul class="notes">{"".join(f"<li>{item}</li>" for item in items)}</ul>'
