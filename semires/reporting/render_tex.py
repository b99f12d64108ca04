"""Filled tables as LaTeX, for pdfTeX with booktabs and longtable."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from semires.reporting.joined import Groups, groups_of, side_by_side
from semires.reporting.markup import with_code
from semires.reporting.render import MAIN, Grid, Text, body, headers, letter, one_line
from semires.reporting.tables import FilledTable

_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"$<$", ">": r"$>$", "|": r"\textbar{}", '"': "''", "[": "{[}", "]": "{]}",
    "–": "--", "−": "$-$", "±": r"$\pm$", "✓": r"$\bullet$", "×": r"$\times$", "≥": r"$\geq$",
    "→": r"$\to$",
    "*": r"$^{*}$",
}  # fmt: skip


def tex_escape(text: str) -> str:
    """Text as LaTeX prints it, for pdfTeX without further packages."""
    text = " ".join(one_line(text).split()).replace("--", "-\0-")
    out = []
    for char in text:
        known = _TEX.get(char, char)
        out.append("{}" if char == "\0" else known if known.isascii() else "?")
    return "".join(out)


def to_tex(table: FilledTable, metrics: Sequence[str] = MAIN) -> str:
    """See :func:`tex_table`.

    It has the paper's values but no column of differences from them, because a page is too narrow.
    """
    groups = groups_of(table) if metrics == MAIN else ()
    if groups:
        table = side_by_side(table)
        titles = ["Method", *(split for _, splits in groups for split in splits)]
    else:
        titles = [title for title in headers(table, metrics) if title != "Ours − paper's"]
    name, title = table.name, table.title
    if metrics != MAIN:
        name, title = f"{name}_miou", f"{title} ({' and '.join(metrics)})"
    shown = body(table, metrics)
    grid = Grid(name, title, titles, shown, table.notes, table.footnotes, groups)
    return tex_table(grid, table.claim)


def tex_table(grid: Grid, claim: str = "") -> str:
    r"""A `longtable` with booktabs' lines, which breaks across pages; `\input` it."""
    titles = grid.titles
    head = [r"\toprule", *_groups(grid.groups)]
    head.append(" & ".join(tex_escape(title) for title in titles) + r" \\")
    width = 0.15 if grid.groups else 0.27
    lines = [
        r"% Made by `semires report` from run records. Needs \usepackage{booktabs,longtable}.",
        r"{\scriptsize\setlength{\tabcolsep}{3pt}",
        rf"\begin{{longtable}}{{@{{}}p{{{width}\linewidth}}{'c' * (len(titles) - 1)}@{{}}}}",
        rf"\caption{{{tex_escape(f'{grid.title}. {claim}')}}}",
        rf"\label{{tab:{grid.name.replace('_', '-')}}} \\",
        *head, r"\midrule", r"\endfirsthead",
        *head, r"\midrule", r"\endhead",
        r"\bottomrule", r"\endfoot",
    ]  # fmt: skip
    for number, (title, rows) in enumerate(grid.sections):
        lines += [r"\midrule"] if number else []
        lines.append(rf"\multicolumn{{{len(titles)}}}{{@{{}}l}}{{\emph{{{tex_escape(title)}}}}} \\")
        for row in rows:
            lines += _lines(row[: len(titles)])
    lines += [r"\end{longtable}", r"\noindent\begin{minipage}{\linewidth}\raggedright"]
    lines += [rf"{_note(note)}\par" for note in grid.notes]
    lines += [rf"$^{{{letter(i)}}}$~{_note(note)}\par" for i, note in enumerate(grid.footnotes)]
    return "\n".join([*lines, r"\end{minipage}}"]) + "\n"


def _groups(groups: Groups) -> list[str]:
    if not groups:
        return []
    names = [
        rf"\multicolumn{{{len(splits)}}}{{c}}{{{tex_escape(name)}}}" for name, splits in groups
    ]
    ends = itertools.accumulate((len(splits) for _, splits in groups), initial=1)
    rules = "".join(rf"\cmidrule(lr){{{a + 1}-{b}}}" for a, b in itertools.pairwise(ends))
    return [rf" & {' & '.join(names)} \\", rules]


def _lines(row: list[Text]) -> list[str]:
    """A row of numbers, and a row for each line of small print."""
    first, *rest = row
    cells = [tex_escape(c.main) + (f"$^{{{c.mark}}}$" if c.mark else "") for c in rest]
    lines = [" & ".join([rf"\raggedright {tex_escape(first.main)}", *cells]) + r" \\"]
    for printed in itertools.zip_longest(*(cell.small.splitlines() for cell in rest), fillvalue=""):
        small = (rf"{{\tiny {tex_escape(text)}}}" if text else "" for text in printed)
        lines[-1] += "*"  # no page break before the small print
        lines.append(" & ".join(["", *small]) + r" \\")
    return lines


def _note(text: str) -> str:
    return with_code(text, _spaced, lambda part: rf"\texttt{{{tex_escape(part)}}}")


def _spaced(text: str) -> str:
    # tex_escape strips spaces at the ends, which matter next to a command
    head, tail = text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :]
    return head + tex_escape(text) + tail if text.strip() else text
