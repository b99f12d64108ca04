"""Parts of Markdown and HTML tables."""

from __future__ import annotations

import html
from collections.abc import Callable, Collection, Iterable, Sequence


def pipe_table(
    titles: Sequence[str], rows: Iterable[Sequence[str]], left: Collection[int] = (0,)
) -> list[str]:
    """The lines of a table; titles and cells are Markdown.

    ``left``: the left-aligned columns; all others are right-aligned.
    """
    rules = ["---" if i in left else "---:" for i in range(len(titles))]
    return [f"| {' | '.join(cells)} |" for cells in (titles, rules, *rows)]


def with_code(text: str, plain: Callable[[str], str], code: Callable[[str], str]) -> str:
    """Text whose backticked parts are written by ``code``, the others by ``plain``."""
    return "".join((code if i % 2 else plain)(part) for i, part in enumerate(text.split("`")))


def head(titles: Iterable[str], above: str = "") -> str:
    """The row of column titles; ``above`` is HTML."""
    cells = "".join(f'<th scope="col">{html.escape(title)}</th>' for title in titles)
    return f"<thead>{above}<tr>{cells}</tr></thead>"


def section(title: str, columns: int) -> str:
    """The row above a section; the title is HTML."""
    return f'<tr class="section"><th scope="colgroup" colspan="{columns}">{title}</th></tr>'


def row(cells: Iterable[str]) -> str:
    """A row of cells that are HTML; the first one is its title."""
    first, *rest = cells
    return f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>'


def note(text: str) -> str:
    """Escaped text whose backticked parts are code."""
    return with_code(text, html.escape, lambda part: f"<code>{html.escape(part)}</code>")


def notes(items: Iterable[str]) -> str:
    """The list under a table; the items are HTML."""
    return f'<ul class="notes">{"".join(f"<li>{item}</li>" for item in items)}</ul>'
