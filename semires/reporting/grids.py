"""Filled tables in their readable layout, and as Markdown, LaTeX and CSV.

The layout is the same in all readable forms: label, marks, further columns, splits, the paper's
values, difference. Numbers are rounded only here. A joined table has a section for each data set
and fraction, which its CSV keeps; its layout for one metric has the data sets beside each other,
as in the paper's Table 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from semires.reporting.definitions import COLUMNS, FigureDefinition
from semires.reporting.formats import (
    Grid,
    Text,
    csv_number,
    csv_of,
    csv_text,
    letter,
    md,
    md_note,
    md_table,
    plain,
    signed,
    tex_table,
)
from semires.reporting.records import METRICS
from semires.reporting.tables import FilledRow, FilledTable, TableSection

_OTHER_COLUMNS = [
    f"{metric}{part}" for metric in METRICS[1:] for part in ("", "_low", "_high", "_sd")
]
CSV_COLUMNS = [
    *("table", "dataset", "fraction", "row", "method", "split", "metric", "value", "ci_low"),
    *("ci_high", "sd", "seeds", "images", "expressions", "paper", "comparable", "missing"),
    *_OTHER_COLUMNS,
]
MAIN, OTHERS = METRICS[:1], METRICS[1:]
DIFFERENCE = "Ours − paper's"


def claimed(shown: FilledTable | FigureDefinition) -> str:
    """The introduction of a table's or figure's claim."""
    return "The paper's claim." if shown.in_paper else "Expected."


def place(shown: FilledTable | FigureDefinition) -> str:
    """A table's or figure's place in the paper, or its purpose if the paper lacks it."""
    return f"{'In' if shown.in_paper else 'Not in'} the paper: {shown.where}"


def grid_of(table: FilledTable, metrics: Sequence[str] = MAIN) -> Grid:
    """The layout of a table; with several metrics, each split has a column for each.

    Only that of overall IoU has the further columns and the paper's values.
    """
    joined = table.joined and len(metrics) == 1
    groups: list[tuple[str, int]] = []
    parts = [(section.title, [section]) for section in table.sections]
    splits = [f"{s} {m}" if len(metrics) > 1 else s for s in table.splits for m in metrics]
    if joined:
        fractions = dict.fromkeys(section.fraction for section in table.sections)
        parts = [
            (f"{fraction} % labelled", [s for s in table.sections if s.fraction == fraction])
            for fraction in fractions
        ]
        datasets = list({section.dataset: section for section in table.sections}.values())
        groups = [(section.name, len(section.splits)) for section in datasets]
        splits = [split for section in datasets for split in section.splits.values()]
    titles = ["Pair" if table.is_difference else "Method", *table.marks]
    if metrics == MAIN:
        titles += [COLUMNS[name] for name in table.columns]
    titles += splits
    if table.has_paper and metrics == MAIN and not joined:
        names = "" if table.comparable else f" ({', '.join(table.paper_names)})"
        titles.append(f"Paper's oIoU{names}")
        titles += [DIFFERENCE] if table.comparable else []
    sections = [
        (title, [_cells(table, sections, i, metrics) for i in range(len(sections[0].rows))])
        for title, sections in parts
    ]
    return Grid(table.name, table.title, titles, sections, table.notes, table.footnotes, groups)


def _cells(
    table: FilledTable, sections: list[TableSection], index: int, metrics: Sequence[str]
) -> list[Text]:
    """One row of sections that are beside each other."""
    rows = [(section, section.rows[index]) for section in sections]
    section, first = rows[0]
    runs = [key for _, row in rows for key in row.runs]
    cells = [Text(first.label, runs=runs), *(Text("✓" if mark else "") for mark in first.marks)]
    if metrics == MAIN:
        values = (first.columns.get(name) for name in table.columns)
        cells += [Text("–" if value is None else f"{value:.1f}") for value in values]
    joined = table.joined and len(metrics) == 1
    cells += [
        _number(table, part, row, metric, split)
        for part, row in rows
        for split in (part.splits if joined else table.splits)
        for metric in metrics
    ]
    if table.has_paper and metrics == MAIN and not joined:
        cells.append(Text(_by_split(section, first.paper or {}, plain)))
        if table.comparable:
            paper = first.paper if section.comparable and first.paper else {}
            ours = {s: v.value - paper[s] for s, v in first.values.items() if s in paper}
            cells.append(Text(_by_split(section, ours, signed)))
    return cells


def _by_split(
    section: TableSection, values: dict[str, float], style: Callable[[float], str]
) -> str:
    shown = (style(values[s]) if s in values else "–" for s in section.splits)
    return " / ".join(shown) if values else "–"


def _number(
    table: FilledTable, section: TableSection, row: FilledRow, metric: str, split: str
) -> Text:
    if split not in section.splits:  # another data set's
        return Text("")
    value, paper = row.metrics.get(metric, {}).get(split), ""
    theirs = (row.paper or {}).get(split)
    if table.joined and metric in MAIN and theirs is not None:
        paper = f"paper {theirs:.2f}"
        if value is not None and section.comparable:
            paper += f" ({signed(value.value - theirs)})"
    if value is None:
        return Text("–", paper, letter(row.footnote) if row.footnote is not None else "")
    show = signed if table.is_difference else "{:.2f}".format
    main = show(value.value)
    if value.sd is not None:
        main += f" ± {value.sd:.2f}"
    if table.is_difference and (value.low > 0 or value.high < 0):
        main += " *"
    return Text(main, f"[{show(value.low)}, {show(value.high)}]\n{paper}".rstrip())


def to_markdown(table: FilledTable) -> str:
    """A pipe table of overall IoU and one of the other metrics, with claim, notes, footnotes."""
    lines = [f"# {md(table.title)}", ""]
    if table.claim:
        lines += [f"**{claimed(table)}** {md(table.claim)}", ""]
    if table.where:
        lines += [f"{md(place(table))}.", ""]
    lines += [*md_table(grid_of(table)), "", "Mean IoU and P@0.5:", ""]
    lines += [*md_table(grid_of(table, OTHERS)), ""]
    lines += [f"- {md_note(note)}" for note in table.notes]
    lines += [f"- {letter(i)}: {md_note(note)}" for i, note in enumerate(table.footnotes)]
    return "\n".join(lines) + "\n"


def to_tex(table: FilledTable, metrics: Sequence[str] = MAIN) -> str:
    """See :func:`tex_table`.

    It has the paper's values but no column of differences from them, because a page is too narrow.
    """
    grid = grid_of(table, metrics)
    grid = replace(grid, titles=[title for title in grid.titles if title != DIFFERENCE])
    if metrics != MAIN:
        name, title = f"{table.name}_miou", f"{table.title} ({' and '.join(metrics)})"
        grid = replace(grid, name=name, title=title)
    return tex_table(grid, table.claim)


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
    if value := row.values.get(split):
        line |= {"seeds": str(value.seeds), "images": str(value.images)}
        line["expressions"] = str(value.expressions)
    elif row.footnote is not None:
        line["missing"] = csv_text(table.footnotes[row.footnote].replace("`", ""))
    for metric, numbers in row.metrics.items():
        if number := numbers.get(split):
            line |= csv_number(metric, number)
            if number.sd is not None:
                line["sd" if metric in MAIN else f"{metric}_sd"] = plain(number.sd)
    if row.paper and split in row.paper:
        line |= {"paper": plain(row.paper[split])}
        line |= {"comparable": "yes" if section.comparable else "no"}
    return line | {n: plain(row.columns[n]) for n in table.columns if n in row.columns}
