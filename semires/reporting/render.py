"""Filled tables as CSV, Markdown and HTML; `render_tex.py` writes LaTeX.

One layout for the three readable forms: label, marks, splits, the paper's values, difference.
All text is data and is escaped for its format. Numbers are rounded only here.
"""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from semires.evaluation.bootstrap import Interval
from semires.reporting import markup
from semires.reporting.definitions import COLUMNS, FigureDefinition
from semires.reporting.joined import Groups, groups_of, side_by_side
from semires.reporting.records import METRICS
from semires.reporting.tables import FilledRow, FilledTable, TableSection
from semires.runs.key import RunKey

_OTHER_COLUMNS = [
    f"{metric}{part}" for metric in METRICS[1:] for part in ("", "_low", "_high", "_sd")
]
CSV_COLUMNS = [
    *("table", "dataset", "fraction", "row", "method", "split", "metric", "value", "ci_low"),
    *("ci_high", "sd", "seeds", "images", "expressions", "paper", "comparable", "missing"),
    *_OTHER_COLUMNS,
]
MAIN, OTHERS = METRICS[:1], METRICS[1:]


@dataclass(frozen=True)
class Text:
    """A cell of a readable table: the number, lines of small print, a footnote's letter."""

    main: str
    small: str = ""
    mark: str = ""


Body = list[tuple[str, list[list[Text]]]]  # sections: title and rows of cells


@dataclass(frozen=True)
class Grid:
    """One readable table: column titles, sections of rows, notes, footnotes.

    ``groups``: names above the columns after the first one.
    """

    name: str
    title: str
    titles: list[str]
    sections: Body
    notes: Sequence[str]
    footnotes: Sequence[str] = ()
    groups: Groups = ()


def signed(value: float) -> str:
    """Two decimals with a sign (a Unicode minus); no sign at zero."""
    text = f"{value:+.2f}"
    return "0.00" if float(text) == 0 else text.replace("-", "−")


def letter(index: int) -> str:
    """Footnote marks: a, b, ..., z, aa, ..."""
    return letter(index // 26 - 1) + chr(97 + index % 26) if index > 25 else chr(97 + index)


def claimed(shown: FilledTable | FigureDefinition) -> str:
    """The introduction of a table's or figure's claim."""
    return "The paper's claim." if shown.in_paper else "Expected."


def place(shown: FilledTable | FigureDefinition) -> str:
    """A table's or figure's place in the paper, or its purpose if the paper lacks it."""
    return f"{'In' if shown.in_paper else 'Not in'} the paper: {shown.where}"


def headers(table: FilledTable, metrics: Sequence[str] = MAIN) -> list[str]:
    """Column titles; with several metrics each split has a column for each."""
    first = "Pair" if table.is_difference else "Method"
    several = metrics != MAIN
    titles = [first, *table.marks]
    if not several:
        titles += [COLUMNS[name] for name in table.columns]
    titles += [f"{s} {m}" if several else s for s in table.splits for m in metrics]
    if table.has_paper and not several and not table.joined:
        names = "" if table.comparable else f" ({', '.join(table.paper_names)})"
        titles.append(f"Paper's oIoU{names}")
        if table.comparable:
            titles.append("Ours − paper's")
    return titles


def body(table: FilledTable, metrics: Sequence[str] = MAIN) -> Body:
    """Sections: title and rows of cells, in the order of :func:`headers`."""
    return [(s.title, [_cells(table, s, row, metrics) for row in s.rows]) for s in table.sections]


def _cells(
    table: FilledTable, section: TableSection, row: FilledRow, metrics: Sequence[str]
) -> list[Text]:
    cells = [Text(row.label), *(Text("✓" if mark else "") for mark in row.marks)]
    if metrics == MAIN:
        cells += [
            Text(f"{row.columns[name]:.1f}" if name in row.columns else "–")
            for name in table.columns
        ]
    cells += [_number(table, section, row, m, split) for split in table.splits for m in metrics]
    if not table.has_paper or metrics != MAIN or table.joined:
        return cells
    cells.append(Text(_joined(section, row.paper, lambda v: f"{v:.2f}")))
    if table.comparable:
        ours = {} if not (section.comparable and row.paper) else {
            split: row.values[split].value - paper
            for split, paper in row.paper.items()
            if split in row.values
        }  # fmt: skip
        cells.append(Text(_joined(section, ours, signed)))
    return cells


def _joined(
    section: TableSection, values: dict[str, float] | None, style: Callable[[float], str]
) -> str:
    if not values:
        return "–"
    return " / ".join(style(values[s]) if s in values else "–" for s in section.splits)


def _number(
    table: FilledTable, section: TableSection, row: FilledRow, metric: str, split: str
) -> Text:
    if split not in section.splits:  # another data set's
        return Text("")
    value = row.of(metric).get(split)
    paper = _paper_below(table, section, row, metric, split)
    if value is None:
        footnote = row.footnotes.get(split, row.footnote)
        return Text("–", paper, letter(footnote) if footnote is not None else "")
    show = signed if table.is_difference else "{:.2f}".format
    main = show(value.value)
    if value.sd is not None:
        main += f" ± {value.sd:.2f}"
    if table.is_difference and (value.low > 0 or value.high < 0):
        main += " *"
    return Text(main, f"[{show(value.low)}, {show(value.high)}]{paper and f'{chr(10)}{paper}'}")


def _paper_below(
    table: FilledTable, section: TableSection, row: FilledRow, metric: str, split: str
) -> str:
    """In a joined table, the paper's value as small print, with the difference from ours."""
    theirs = (row.paper or {}).get(split)
    if theirs is None or not table.joined or metric != METRICS[0]:
        return ""
    ours = row.values.get(split)
    difference = f" ({signed(ours.value - theirs)})" if ours and section.comparable else ""
    return f"paper {theirs:.2f}{difference}"


def to_csv(table: FilledTable) -> str:
    """One line per row and split: the machine-readable form, which `semires verify` compares."""
    return csv_of(
        [*CSV_COLUMNS, *table.columns],
        (
            _csv_line(table, section, row, split)
            for section in table.sections
            for row in section.rows
            for split in table.splits
            if split in section.splits
        ),
    )


def csv_of(columns: Iterable[str], lines: Iterable[Mapping[str, object]]) -> str:
    """A CSV file; columns that a line lacks are empty."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(columns), lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()


def _csv_line(
    table: FilledTable, section: TableSection, row: FilledRow, split: str
) -> dict[str, str]:
    line = {
        "table": table.name,
        "dataset": section.dataset,
        "fraction": row.fraction,
        "row": row.label,
        "method": row.method,
        "split": split,
        "metric": "difference of oIoU" if table.is_difference else MAIN[0],
    }
    line = {name: csv_text(text) for name, text in line.items()}
    value = row.values.get(split)
    if value is not None:
        line |= {"seeds": str(value.seeds), "images": str(value.images)}
        line["expressions"] = str(value.expressions)
        for metric in METRICS:
            if (number := row.of(metric).get(split)) is not None:
                line |= csv_number(metric, number)
                if number.sd is not None:
                    line["sd" if metric in MAIN else f"{metric}_sd"] = plain(number.sd)
    elif row.footnote is not None:
        line["missing"] = csv_text(table.footnotes[row.footnote].replace("`", ""))
    if row.paper and split in row.paper:
        line |= {"paper": plain(row.paper[split])}
        line |= {"comparable": "yes" if section.comparable else "no"}
    return line | {n: plain(row.columns[n]) for n in table.columns if n in row.columns}


def csv_number(metric: str, number: Interval) -> dict[str, str]:
    """A number and its interval, in the columns of its metric."""
    if metric in MAIN:
        names = ("value", "ci_low", "ci_high")
    else:
        names = (metric, f"{metric}_low", f"{metric}_high")
    values = map(plain, (number.value, number.low, number.high))
    return dict(zip(names, values, strict=True))


def plain(value: float) -> str:
    """Two decimals for a machine; no minus sign at zero."""
    text = f"{value:.2f}"
    return "0.00" if text == "-0.00" else text


def csv_text(text: str) -> str:
    """Text on one line that no spreadsheet reads as a formula."""
    text = one_line(text)
    return f"'{text}" if text.lstrip()[:1] in ("=", "+", "-", "@") else text


def one_line(text: str) -> str:
    """Text with a space for each character that is not printable."""
    return "".join(char if char.isprintable() else " " for char in text)


def to_markdown(table: FilledTable) -> str:
    """A pipe table of overall IoU and one of the other metrics, with claim, notes, footnotes."""
    lines = [f"# {md(table.title)}", ""]
    if table.claim:
        lines += [f"**{claimed(table)}** {md(table.claim)}", ""]
    if table.where:
        lines += [f"{md(place(table))}.", ""]
    shown = side_by_side(table)
    lines += [*md_table(headers(shown), body(shown)), ""]
    others = md_table(headers(table, OTHERS), body(table, OTHERS))
    lines += ["Mean IoU and P@0.5:", "", *others, ""]
    lines += [f"- {md_note(note)}" for note in table.notes]
    lines += [f"- {letter(i)}: {md_note(note)}" for i, note in enumerate(table.footnotes)]
    return "\n".join(lines) + "\n"


def md_table(titles: list[str], sections: Body) -> list[str]:
    """The lines of a pipe table."""
    lines = []
    for title, rows in sections:
        lines.append([f"**{md(title)}**", *[""] * (len(titles) - 1)])
        lines += [[_md_cell(cell) for cell in row] for row in rows]
    return markup.pipe_table([md(title) for title in titles], lines)


def _md_cell(cell: Text) -> str:
    text = md(cell.main)
    if cell.mark:
        text += f" <sup>{cell.mark}</sup>"
    return text + "".join(f"<br><sub>{md(line)}</sub>" for line in cell.small.splitlines())


def md(text: str) -> str:
    """Text as Markdown shows it, with its special characters escaped."""
    text = html.escape(text, quote=False)
    return re.sub(r"([\\`*_|\[\]])", r"\\\1", text)


def md_note(text: str) -> str:
    """Markdown text whose backticked parts are code."""
    return markup.with_code(text, md, lambda part: f"`{part}`")


def to_html(table: FilledTable, logs: dict[RunKey, str] | None = None) -> str:
    """A `<table>` with notes and footnotes, for the page, whose style shows one metric.

    Args:
        table: the table to render.
        logs: the address of each run's log, linked from its row.
    """
    groups, table = groups_of(table), side_by_side(table)
    titles = headers(table)
    lines = [f'<div class="scroll"><table id="{html.escape(table.name)}">']
    lines.append(_html_head(titles, groups))
    for section in table.sections:
        lines += ["<tbody>", markup.section(html.escape(section.title), len(titles))]
        lines += [_html_row(table, section, row, logs or {}) for row in section.rows]
        lines.append("</tbody>")
    notes = [markup.note(note) for note in table.notes]
    notes += [
        f"<sup>{letter(i)}</sup> {markup.note(note)}" for i, note in enumerate(table.footnotes)
    ]
    return "\n".join([*lines, "</table></div>", markup.notes(notes)])


def _html_head(titles: list[str], groups: Groups) -> str:
    if not groups:
        return markup.head(titles)
    above = "".join(
        f'<th scope="colgroup" colspan="{len(splits)}">{html.escape(name)}</th>'
        for name, splits in groups
    )
    below = (split for _, splits in groups for split in splits)
    return markup.head([titles[0], *below], f"<tr><th></th>{above}</tr>")


def _html_row(
    table: FilledTable, section: TableSection, row: FilledRow, logs: dict[RunKey, str]
) -> str:
    links = " ".join(
        f'<a href="{html.escape(logs[key])}" title="log of seed {key.seed}">{key.seed}</a>'
        for key in row.runs
        if key in logs
    )
    links = f' <span class="logs">log {links}</span>' if links else ""
    cells = [html.escape(row.label) + links]
    extra = len(table.columns)  # columns that the other metrics do not have
    first = 1 + len(row.marks) + extra
    main = _cells(table, section, row, MAIN)
    others = [_cells(table, section, row, (metric,)) for metric in OTHERS]
    for column, cell in enumerate(main[1:], start=1):
        is_number = first <= column < first + len(table.splits)
        shown = [cell, *(c[column - extra] for c in others)] if is_number and cell.small else [cell]
        cells.append(html_cell(shown))
    return markup.row(cells)


def html_cell(shown: list[Text]) -> str:
    """One cell, or one `<span>` per metric, of which the page's style shows one."""
    texts = []
    for cell in shown:
        small = "".join(f"<small>{html.escape(line)}</small>" for line in cell.small.splitlines())
        mark = f"<sup>{cell.mark}</sup>" if cell.mark else ""
        texts.append(f"{html.escape(cell.main)}{mark}{small}")
    if len(texts) == 1:
        return texts[0]
    return "".join(f'<span class="m{i}">{text}</span>' for i, text in enumerate(texts))
