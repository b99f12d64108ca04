"""Filled tables as CSV, Markdown, LaTeX and HTML.

One layout for the three readable forms: label, marks, splits, the paper's values, difference.
All text is data and escaped for its format; numbers are rounded here and nowhere before.
"""

from __future__ import annotations

import csv
import html
import io
import re
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

from semires.reporting.tables import Row, Section, Table, Value

CSV_COLUMNS = [
    *("table", "dataset", "fraction", "row", "method", "split", "metric", "value", "ci_low"),
    *("ci_high", "sd", "seeds", "images", "expressions", "paper", "comparable", "missing"),
]


_TEX_ROWS = 26  # that fit on a page with caption and notes
_TEX_LABEL = 28  # letters of a row's name beside which a narrow table still fits
_TEX_WIDTH = 62  # letters that fit on a line beside each other, in the larger type


@dataclass(frozen=True)
class Text:
    """One cell as read: the number, small print under it, a footnote's letter."""

    main: str
    small: str = ""
    mark: str = ""


def signed(value: float) -> str:
    """Two decimals with a sign; a true minus, and no sign at zero."""
    text = f"{value:+.2f}"
    return "0.00" if float(text) == 0 else text.replace("-", "−")


def letter(index: int) -> str:
    """Footnote marks: a, b, ..., z, aa, ..."""
    return letter(index // 26 - 1) + chr(97 + index % 26) if index > 25 else chr(97 + index)


def claimed(table: Table) -> str:
    """What stands before a table's claim: whose it is."""
    return "The paper's claim." if table.in_paper else "Expected."


def place(table: Table) -> str:
    """Where in the paper a table stands, or what it is instead."""
    return f"In the paper: {table.where}" if table.in_paper else f"Not in the paper: {table.where}"


def headers(table: Table) -> list[str]:
    """Column titles."""
    first = "Pair" if table.name.endswith("_differences") else "Method"
    titles = [first, *table.marks, *table.splits]
    if table.has_paper:
        titles.append("Paper" if table.comparable else "Paper: RefCOCO (not comparable)")
    if table.has_paper and table.comparable:
        titles.append("Ours − paper")
    return titles


def body(table: Table) -> list[tuple[str, list[list[Text]]]]:
    """Sections: title and rows of cells, in the order of :func:`headers`."""
    return [(s.title, [_cells(table, s, row) for row in s.rows]) for s in table.sections]


def _cells(table: Table, section: Section, row: Row) -> list[Text]:
    cells = [Text(row.label), *(Text("✓" if mark else "") for mark in row.marks)]
    for split in table.splits:
        value = row.values.get(split)
        if value is not None:
            cells.append(_number(value, table.metric != "oIoU"))
        else:
            mark = letter(row.footnote) if row.footnote is not None else ""
            cells.append(Text("–", mark=mark))
    if table.has_paper:
        cells.append(Text(_joined(table, row.paper, lambda v: f"{v:.2f}")))
    if table.has_paper and table.comparable:
        ours = {} if not (section.comparable and row.paper) else {
            split: row.values[split].value - paper
            for split, paper in row.paper.items()
            if split in row.values
        }  # fmt: skip
        cells.append(Text(_joined(table, ours, signed)))
    return cells


def _joined(table: Table, values: dict[str, float] | None, style: object) -> str:
    if not values:
        return "–"
    assert callable(style)
    return " / ".join(style(values[s]) if s in values else "–" for s in table.splits)


def _number(value: Value, is_difference: bool) -> Text:
    show = signed if is_difference else "{:.2f}".format
    main = show(value.value)
    if value.sd is not None:
        main += f" ± {value.sd:.2f}"
    if is_difference and (value.low > 0 or value.high < 0):
        main += " *"
    return Text(main, f"[{show(value.low)}, {show(value.high)}]")


def to_csv(table: Table) -> str:
    """One line per number: the machine-readable form, and what `semires verify` compares."""
    out = io.StringIO()
    writer = csv.DictWriter(out, CSV_COLUMNS, lineterminator="\n", restval="")
    writer.writeheader()
    for section in table.sections:
        for row in section.rows:
            for split in table.splits:
                writer.writerow(_csv_line(table, section, row, split))
    return out.getvalue()


def _csv_line(table: Table, section: Section, row: Row, split: str) -> dict[str, str]:
    line = {
        "table": table.name,
        "dataset": section.dataset,
        "fraction": row.fraction,
        "row": row.label,
        "method": row.method,
        "split": split,
        "metric": table.metric,
    }
    line = {key: csv_text(text) for key, text in line.items()}
    value = row.values.get(split)
    if value is not None:
        line |= {"value": _plain(value.value), "ci_low": _plain(value.low)}
        line |= {"ci_high": _plain(value.high), "seeds": str(value.seeds)}
        line |= {"images": str(value.images), "expressions": str(value.expressions)}
        if value.sd is not None:
            line["sd"] = _plain(value.sd)
    elif row.footnote is not None:
        line["missing"] = csv_text(table.footnotes[row.footnote].replace("`", ""))
    if row.paper and split in row.paper:
        line |= {"paper": _plain(row.paper[split])}
        line |= {"comparable": "yes" if section.comparable else "no"}
    return line


def _plain(value: float) -> str:
    text = f"{value:.2f}"
    return "0.00" if text == "-0.00" else text


def csv_text(text: str) -> str:
    """Text on one line that no spreadsheet takes for a formula."""
    text = _one_line(text)
    return f"'{text}" if text.lstrip()[:1] in ("=", "+", "-", "@") else text


def _one_line(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text)


def to_markdown(table: Table) -> str:
    """A pipe table with its claim, place in the paper, notes and footnotes."""
    titles = headers(table)
    lines = [f"# {_md(table.title)}", ""]
    if table.claim:
        lines += [f"**{claimed(table)}** {_md(table.claim)}", ""]
    if table.where:
        lines += [f"{_md(place(table))}.", ""]
    lines.append(_md_row([_md(title) for title in titles]))
    lines.append(_md_row(["---", *("---:" for _ in titles[1:])]))
    for title, rows in body(table):
        lines.append(_md_row([f"**{_md(title)}**", *("" for _ in titles[1:])]))
        lines += [_md_row([_md_cell(cell) for cell in row]) for row in rows]
    lines.append("")
    lines += [f"- {_md_note(note)}" for note in table.notes]
    lines += [f"- {letter(i)}: {_md_note(note)}" for i, note in enumerate(table.footnotes)]
    return "\n".join(lines) + "\n"


def _md_row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _md_cell(cell: Text) -> str:
    text = _md(cell.main)
    if cell.mark:
        text += f" <sup>{cell.mark}</sup>"
    return text + (f"<br><sub>{_md(cell.small)}</sub>" if cell.small else "")


def _md(text: str) -> str:
    text = html.escape(text, quote=False)
    return re.sub(r"([\\`*_|\[\]])", r"\\\1", text)


def _md_note(text: str) -> str:
    parts = text.split("`")
    return "".join(f"`{p}`" if i % 2 else _md(p) for i, p in enumerate(parts))


_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"$<$", ">": r"$>$", "|": r"\textbar{}", '"': "''", "[": "{[}", "]": "{]}",
    "–": "--", "−": "$-$", "±": r"$\pm$", "✓": r"$\bullet$", "×": r"$\times$", "≥": r"$\geq$",
    "*": r"$^{*}$",
}  # fmt: skip


def tex_escape(text: str) -> str:
    """Text as LaTeX prints it, for pdfTeX without further packages."""
    text = " ".join(_one_line(text).split()).replace("--", "-\0-")
    out = []
    for char in text:
        known = _TEX.get(char, char)
        out.append("{}" if char == "\0" else known if known.isascii() else "?")
    return "".join(out)


def to_tex(table: Table) -> str:
    r"""Booktabs tables for `\input`, as many as pages need; needs only `\usepackage{booktabs}`."""
    rows = [(title, row) for title, rows in body(table) for row in rows]
    floats = [rows[i : i + _TEX_ROWS] for i in range(0, len(rows), _TEX_ROWS)]
    lines = [r"% Made by `semires report` from run records. Needs \usepackage{booktabs}."]
    for number, part in enumerate(floats, start=1):
        lines += _tex_float(table, part, f" ({number} of {len(floats)})" if floats[1:] else "")
    return "\n".join(lines) + "\n"


def _tex_float(table: Table, rows: list[tuple[str, list[Text]]], part: str) -> list[str]:
    titles = headers(table)
    narrow = _width(titles, [row for _, row in rows]) > _TEX_WIDTH
    folded = narrow and max(len(row[0].main) for _, row in rows) > _TEX_LABEL
    share = 0.42 if len(titles) <= 4 else 0.3
    first = rf"p{{{share}\linewidth}}" if folded else "l"
    label = "-".join([table.name.replace("_", "-"), *re.findall(r"^ .(\d+)", part)])
    lines = [
        r"\begin{table}[t]",
        rf"\centering\{'scriptsize' if narrow else 'footnotesize'}",
        rf"\setlength{{\tabcolsep}}{{{2 if narrow else 3}pt}}",
        rf"\caption{{{tex_escape(f'{table.title}{part}. {table.claim}')}}}",
        rf"\label{{tab:{label}}}",
        r"\makebox[\linewidth][c]{%",  # what is still too wide goes into both margins alike
        rf"\begin{{tabular}}{{{first}{'c' * (len(titles) - 1)}}}",
        r"\toprule",
        " & ".join(_tex_title(title) for title in titles) + r" \\",
    ]
    for title, group in groupby(rows, key=itemgetter(0)):
        lines.append(r"\midrule")
        lines.append(rf"\multicolumn{{{len(titles)}}}{{l}}{{\emph{{{tex_escape(title)}}}}} \\")
        fold = r"\raggedright " if folded else ""
        lines += [fold + " & ".join(_tex_cell(cell) for cell in row) + r" \\" for _, row in group]
    lines += [r"\bottomrule", r"\end{tabular}}", r"\par\smallskip"]
    notes = [_tex_note(note) for note in table.notes]
    notes += [f"$^{{{letter(i)}}}$~{_tex_note(n)}" for i, n in enumerate(table.footnotes)]
    lines.append(r"\parbox{\linewidth}{\scriptsize\raggedright " + " ".join(notes) + "}")
    return [*lines, r"\end{table}"]


def _width(titles: list[str], rows: list[list[Text]]) -> float:
    """About how many letters wide a table is; small print is two thirds as wide."""
    heads = [float(len(title.partition(" (")[0])) for title in titles]
    cells = ([max(len(c.main), len(c.small) / 1.5) for c in row] for row in rows)
    return float(sum(max(column) for column in zip(heads, *cells, strict=True)))


def _tex_title(title: str) -> str:
    """A column's title; what it says in brackets on a line below, which keeps columns narrow."""
    first, bracket, rest = title.partition(" (")
    if not bracket:
        return tex_escape(title)
    return rf"\shortstack{{{tex_escape(first)} \\ ({tex_escape(rest)}}}"


def _tex_cell(cell: Text) -> str:
    text = tex_escape(cell.main)
    if cell.mark:
        text += f"$^{{{cell.mark}}}$"
    if not cell.small:
        return text
    small = rf"{{\tiny {tex_escape(cell.small)}}}"
    return rf"\begin{{tabular}}[t]{{@{{}}c@{{}}}}{text} \\[-2pt] {small}\end{{tabular}}"


def _tex_note(text: str) -> str:
    parts = text.split("`")
    return "".join(
        rf"\texttt{{{tex_escape(p)}}}" if i % 2 else _tex_spaced(p) for i, p in enumerate(parts)
    )


def _tex_spaced(text: str) -> str:
    # tex_escape strips the ends, where a space next to a command matters
    head, tail = text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :]
    return head + tex_escape(text) + tail if text.strip() else text


def to_html(table: Table) -> str:
    """A `<table>` with notes and footnotes, for the page."""
    titles = headers(table)
    cells = "".join(f'<th scope="col">{html.escape(title)}</th>' for title in titles)
    lines = [f'<div class="scroll"><table id="{html.escape(table.name)}">']
    lines.append(f"<thead><tr>{cells}</tr></thead>")
    for title, rows in body(table):
        lines.append("<tbody>")
        lines.append(
            f'<tr class="section"><th scope="colgroup" colspan="{len(titles)}">'
            f"{html.escape(title)}</th></tr>"
        )
        lines += [_html_row(row) for row in rows]
        lines.append("</tbody>")
    lines.append("</table></div>")
    notes = [f"<li>{html_note(note)}</li>" for note in table.notes]
    notes += [
        f"<li><sup>{letter(i)}</sup> {html_note(note)}</li>"
        for i, note in enumerate(table.footnotes)
    ]
    return "\n".join([*lines, f'<ul class="notes">{"".join(notes)}</ul>'])


def _html_row(row: list[Text]) -> str:
    first, *rest = row
    cells = [f'<th scope="row">{html.escape(first.main)}</th>']
    for cell in rest:
        small = f"<small>{html.escape(cell.small)}</small>" if cell.small else ""
        mark = f"<sup>{cell.mark}</sup>" if cell.mark else ""
        cells.append(f"<td>{html.escape(cell.main)}{mark}{small}</td>")
    return f"<tr>{''.join(cells)}</tr>"


def html_note(text: str) -> str:
    """Escaped text whose backticked parts are code."""
    parts = text.split("`")
    return "".join(
        f"<code>{html.escape(p)}</code>" if i % 2 else html.escape(p) for i, p in enumerate(parts)
    )
