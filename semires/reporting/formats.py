"""Readable tables as Markdown and LaTeX, and lines of numbers as CSV; `page_template.py` has HTML.

All text is data and is escaped for its format.
"""

from __future__ import annotations

import html
import itertools
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from semires.evaluation.bootstrap import Interval
from semires.reporting.records import METRICS
from semires.runs.key import RunKey

_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"$<$", ">": r"$>$", "|": r"\textbar{}", '"': "''", "[": "{[}", "]": "{]}",
    "–": "--", "−": "$-$", "±": r"$\pm$", "✓": r"$\bullet$", "×": r"$\times$", "≥": r"$\geq$",
    "→": r"$\to$",
    "*": r"$^{*}$",
}  # fmt: skip


@dataclass(frozen=True)
class Text:
    """A cell of a readable table: the number, lines of small print, a footnote's letter.

    ``runs``: the sources of a row, in its first cell.
    """

    main: str
    small: str = ""
    mark: str = ""
    runs: Sequence[RunKey] = ()


Body = list[tuple[str, list[list[Text]]]]  # sections: title and rows of cells


@dataclass(frozen=True)
class Grid:
    """One readable table: column titles, sections of rows, notes, footnotes.

    ``groups``: names above the columns after the first one, each with its number of columns.
    """

    name: str
    title: str
    titles: list[str]
    sections: Body
    notes: Sequence[str] = ()
    footnotes: Sequence[str] = ()
    groups: Sequence[tuple[str, int]] = ()


def signed(value: float) -> str:
    """Two decimals with a sign (a Unicode minus); no sign at zero."""
    text = f"{value:+.2f}"
    return "0.00" if float(text) == 0 else text.replace("-", "−")


def letter(index: int) -> str:
    """Footnote marks: a, b, ..., z, aa, ..."""
    return letter(index // 26 - 1) + chr(97 + index % 26) if index > 25 else chr(97 + index)


def one_line(text: str) -> str:
    """Text with a space for each character that is not printable."""
    return "".join(char if char.isprintable() else " " for char in text)


def pipe_table(
    titles: Sequence[str], rows: Iterable[Sequence[str]], left: Collection[int] = (0,)
) -> list[str]:
    """The lines of a Markdown table; titles and cells are Markdown.

    ``left``: the left-aligned columns; all others are right-aligned.
    """
    rules = ["---" if i in left else "---:" for i in range(len(titles))]
    return [f"| {' | '.join(cells)} |" for cells in (titles, rules, *rows)]


def md_table(grid: Grid) -> list[str]:
    """The lines of a table without its notes."""
    above = ["", *(f"{name} " for name, count in grid.groups for _ in range(count))]
    titles = map("".join, itertools.zip_longest(above, grid.titles, fillvalue=""))
    lines = []
    for title, rows in grid.sections:
        lines.append([f"**{md(title)}**", *[""] * (len(grid.titles) - 1)])
        lines += [[_md_cell(cell) for cell in row] for row in rows]
    return pipe_table([md(title) for title in titles], lines)


def _md_cell(cell: Text) -> str:
    mark = f" <sup>{cell.mark}</sup>" if cell.mark else ""
    small = "".join(f"<br><sub>{md(line)}</sub>" for line in cell.small.splitlines())
    return md(cell.main) + mark + small


def md(text: str) -> str:
    """Text as Markdown shows it, with its special characters escaped."""
    text = html.escape(text, quote=False)
    return re.sub(r"([\\`*_|\[\]])", r"\\\1", text)


def md_note(text: str) -> str:
    """Markdown text whose backticked parts are code."""
    return _with_code(text, md, lambda part: f"`{part}`")


def _with_code(text: str, plain: Callable[[str], str], code: Callable[[str], str]) -> str:
    """Text whose backticked parts are written by ``code``, the others by ``plain``."""
    return "".join((code if i % 2 else plain)(part) for i, part in enumerate(text.split("`")))


def tex_escape(text: str) -> str:
    """Text as LaTeX prints it, for pdfTeX without further packages."""
    text = " ".join(one_line(text).split()).replace("--", "-\0-")
    out = []
    for char in text:
        known = _TEX.get(char, char)
        out.append("{}" if char == "\0" else known if known.isascii() else "?")
    return "".join(out)


def tex_table(grid: Grid, claim: str = "") -> str:
    r"""A `longtable` with booktabs' lines, which breaks across pages; `\input` it."""
    titles = grid.titles
    head = [r"\toprule", *_tex_groups(grid.groups)]
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
            lines += _tex_lines(row[: len(titles)])
    lines += [r"\end{longtable}", r"\noindent\begin{minipage}{\linewidth}\raggedright"]
    lines += [rf"{_tex_note(note)}\par" for note in grid.notes]
    lines += [rf"$^{{{letter(i)}}}$~{_tex_note(note)}\par" for i, note in enumerate(grid.footnotes)]
    return "\n".join([*lines, r"\end{minipage}}"]) + "\n"


def _tex_groups(groups: Sequence[tuple[str, int]]) -> list[str]:
    if not groups:
        return []
    names = [rf"\multicolumn{{{count}}}{{c}}{{{tex_escape(name)}}}" for name, count in groups]
    ends = itertools.accumulate((count for _, count in groups), initial=1)
    rules = "".join(rf"\cmidrule(lr){{{a + 1}-{b}}}" for a, b in itertools.pairwise(ends))
    return [rf" & {' & '.join(names)} \\", rules]


def _tex_lines(row: list[Text]) -> list[str]:
    """A row of numbers, and a row for each line of small print."""
    first, *rest = row
    cells = [tex_escape(c.main) + (f"$^{{{c.mark}}}$" if c.mark else "") for c in rest]
    lines = [" & ".join([rf"\raggedright {tex_escape(first.main)}", *cells]) + r" \\"]
    for printed in itertools.zip_longest(*(cell.small.splitlines() for cell in rest), fillvalue=""):
        small = (rf"{{\tiny {tex_escape(text)}}}" if text else "" for text in printed)
        lines[-1] += "*"  # no page break before the small print
        lines.append(" & ".join(["", *small]) + r" \\")
    return lines


def _tex_note(text: str) -> str:
    return _with_code(text, _spaced, lambda part: rf"\texttt{{{tex_escape(part)}}}")


def _spaced(text: str) -> str:
    # tex_escape strips spaces at the ends, which matter next to a command
    head, tail = text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :]
    return head + tex_escape(text) + tail if text.strip() else text


def csv_of(columns: Iterable[str], lines: Iterable[Mapping[str, object]]) -> str:
    """A CSV file; columns that a line lacks are empty."""
    table = pd.DataFrame(list(lines), columns=list(columns))
    return str(table.to_csv(index=False, lineterminator="\n"))


def csv_text(text: str) -> str:
    """Text on one line that no spreadsheet reads as a formula."""
    text = one_line(text)
    return f"'{text}" if text.lstrip()[:1] in ("=", "+", "-", "@") else text


def csv_number(metric: str, number: Interval) -> dict[str, str]:
    """A number and its interval, in the columns of its metric."""
    names = (metric, f"{metric}_low", f"{metric}_high")
    if metric == METRICS[0]:
        names = ("value", "ci_low", "ci_high")
    values = map(plain, (number.value, number.low, number.high))
    return dict(zip(names, values, strict=True))


def plain(value: float) -> str:
    """Two decimals for a machine; no minus sign at zero."""
    text = f"{value:.2f}"
    return "0.00" if text == "-0.00" else text
