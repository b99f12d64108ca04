"""The tables of `thresholds.py` as Markdown, CSV, LaTeX and HTML."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby

from semires.config.schema import Params
from semires.reporting import markup
from semires.reporting.claims import NOT_RUN
from semires.reporting.definitions import display_name
from semires.reporting.render import (
    CSV_COLUMNS,
    Body,
    Text,
    csv_text,
    html_cell,
    md,
    md_note,
    md_table,
    plain,
    signed,
)
from semires.reporting.render_tex import tex_table
from semires.reporting.searches import Search
from semires.reporting.selection import Value
from semires.reporting.style import style_of
from semires.reporting.thresholds import (
    METRICS,
    Change,
    Comparison,
    Number,
    Thresholds,
    Transfer,
    where,
)
from semires.runs.key import fraction_name

TITLE = "Tuned thresholds"
PURPOSE = "whether a search of the thresholds helps, on the labels and on the students"
_DASH = Text("–")


@dataclass(frozen=True)
class Grid:
    """One readable table: column titles, sections of rows, notes."""

    name: str
    title: str
    titles: list[str]
    sections: Body
    notes: list[str]


def grids(params: Params, results: Thresholds) -> list[Grid]:
    """The tables that are not empty."""
    made = [_comparisons(params, results), _transfers(params, results), _trained(params, results)]
    return [grid for grid in made if grid.sections]


def thresholds_markdown(made: list[Grid]) -> str:
    """All tables on one page."""
    lines = [f"# {TITLE}", "", f"Not in the paper: {PURPOSE}.", ""]
    for number, grid in enumerate(made):
        lines += [f"## {md(grid.title)}", ""] if number else []
        lines += [*md_table(grid.titles, grid.sections), ""]
        lines += [*(f"- {md_note(note)}" for note in grid.notes), ""]
    return "\n".join(lines)


def thresholds_tex(grid: Grid) -> str:
    """One table for LaTeX."""
    return tex_table(
        grid.name.replace("_", "-"), f"{grid.title}.", grid.titles, grid.sections, grid.notes
    )


def thresholds_html(made: list[Grid]) -> str:
    """All tables for the page."""
    parts = []
    for number, grid in enumerate(made):
        parts.append(f"<h3>{html.escape(grid.title)}</h3>" if number else "")
        parts.append(f'<div class="scroll"><table id="{grid.name}">{markup.head(grid.titles)}')
        for title, rows in grid.sections:
            parts.append(f"<tbody>{markup.section(html.escape(title), len(grid.titles))}")
            parts += [markup.row(html_cell([cell]) for cell in row) for row in rows]
            parts.append("</tbody>")
        parts.append(f"</table></div>{markup.notes(map(markup.note, grid.notes))}")
    return "\n".join(parts)


def _name(method: str) -> str:
    return style_of(method)[3]


def _comparisons(params: Params, results: Thresholds) -> Grid:
    """Two rows for each search: overall and mean IoU."""
    splits = list(dict.fromkeys(split for c in results.comparisons for split, _ in c.students))
    titles = ["Method", "Metric", "Values", "Labels, seen", "Labels, unseen"]
    titles += [*(f"Student, {split}" for split in splits), "Tuning helps"]
    sections: Body = []
    for dataset, fraction in dict.fromkeys(
        (c.key.dataset, c.key.fraction) for c in results.comparisons
    ):
        at = (dataset, fraction)
        here = [c for c in results.comparisons if (c.key.dataset, c.key.fraction) == at]
        rows = [_row(c, metric, splits) for c in here for metric in METRICS]
        title = f"{display_name(params, dataset)}, {fraction_name(fraction)} % labelled"
        sections.append((title, rows))
    return Grid("thresholds", TITLE, titles, sections, list(_notes(params, results)))


def _row(c: Comparison, metric: str, splits: list[str]) -> list[Text]:
    first = metric == METRICS[0]
    cells = [Text(_name(c.key.label) if first else ""), Text(metric)]
    cells.append(Text(_values(c.search)) if first else Text(""))
    cells += [_change(c.labels.get((part, metric))) for part in ("seen", "held_out")]
    cells += [_change(c.students.get((split, metric))) for split in splits]
    return [*cells, Text(c.verdict(metric))]


def _values(search: Search | None) -> str:
    """The paper's and the best value of every searched parameter."""
    if search is None:
        return "–"
    given, best = search.summary["given"], search.summary["values"]
    return ", ".join(f"{name} {given[name]:.2f} → {best[name]:.2f}" for name in best)


def _change(change: Change | None) -> Text:
    """``paper's → best``, with the difference and its interval in small print."""
    if change is None or (change.paper is None and change.best is None):
        return _DASH
    shown = ["–" if v is None else f"{v.value:.2f}" for v in (change.paper, change.best)]
    return Text(" → ".join(shown), _difference(change.difference) if change.difference else "")


def _difference(number: Number) -> str:
    star = " *" if number.low > 0 or number.high < 0 else ""
    return f"{signed(number.value)} [{signed(number.low)}, {signed(number.high)}]{star}"


def _notes(params: Params, results: Thresholds) -> Iterator[str]:
    yield (
        "Paper's → best value or number. Labels: the burn-in teacher's pseudo-labels after "
        "refinement, in percent; seen: the images that the trials used, unseen: others. Student: "
        "mutual learning with the paper's and with the best thresholds, in percent. Small print: "
        "the difference in points with its 95 % interval by paired bootstrap over images, for "
        "students over images and seeds; * marks those that exclude 0."
    )
    yield (
        "The best values are those of the largest oIoU of the seen labels. Tuning helps: the "
        "verdict on the students' difference on val, as for the claims. Val includes the seen "
        "images; testA and testB do not."
    )
    if any(v.seeds == 1 for c in results.comparisons for v in _student_values(c)):
        yield "With one seed, a student's interval covers images only."
    missing = [c.key.name for c in results.comparisons if c.search is None]
    if missing:
        yield f"No search yet: {', '.join(missing)}; `dvc repro` runs them."
    idle = [c for c in results.comparisons if c.tuned is None]
    if idle:
        names = ", ".join(dict.fromkeys(c.key.label for c in idle))
        yield (
            f"No method uses the result of {names}; an entry of `refine` with `thresholds: "
            "tuned:METHOD` in a block of `study.runs` does (docs/tuning.md)."
        )
    yield from _gains(results)


def _student_values(c: Comparison) -> Iterator[Value]:
    for change in c.students.values():
        yield from (v for v in (change.difference, change.best) if isinstance(v, Value))


def _gains(results: Thresholds) -> Iterator[str]:
    """How much of the gain of a search on val remains for a search on the labelled images."""
    for t in results.transfers:
        if t.origin is None or t.origin.on_val or not _same_cell(t.origin, t.target):
            continue
        own = next(o for o in results.transfers if o.target is t.target and o.origin is t.target)
        yield (
            f"{t.origin.key.name}: on the held-out half of val, the thresholds from the labelled "
            f"images change oIoU by {_difference(t.difference)} points, those from val by "
            f"{_difference(own.difference)}."
        )


def _same_cell(a: Search, b: Search) -> bool:
    return (a.key.dataset, a.key.fraction) == (b.key.dataset, b.key.fraction)


def _transfers(params: Params, results: Thresholds) -> Grid:
    """For each strategy: a row for each origin of thresholds, a column for each teacher."""
    targets = list(dict.fromkeys(_target(params, t.target) for t in results.transfers))
    sections: Body = []
    for label, group in groupby(
        sorted(results.transfers, key=lambda t: t.target.key.label),
        key=lambda t: t.target.key.label,
    ):
        rows: dict[str, dict[str, Text]] = {}
        for t in group:
            origin = "the paper's" if t.origin is None else _origin(params, t.origin)
            small = "" if t.origin is None else _difference(t.difference)
            cell = Text(f"{t.value.value:.2f}", small)
            rows.setdefault(origin, {})[_target(params, t.target)] = cell
        if len(rows) > 2:  # more than the paper's and one search's
            filled = [
                [Text(origin), *(cells.get(target, _DASH) for target in targets)]
                for origin, cells in rows.items()
            ]
            sections.append((_name(label), filled))
    notes = [
        "oIoU (%) of the refined labels on the held-out half of val. Rows: the search that found "
        "the thresholds; columns: the teacher whose labels they refine. Exact, without training. "
        "Small print: the difference from the paper's thresholds, in points, with its 95 % "
        "interval over images."
    ]
    titles = ["Thresholds found at", *targets]
    return Grid("thresholds_transfer", "Transfer of thresholds", titles, sections, notes)


def _target(params: Params, search: Search) -> str:
    return f"{display_name(params, search.key.dataset)}, {fraction_name(search.key.fraction)} %"


def _origin(params: Params, search: Search) -> str:
    return f"{display_name(params, search.key.dataset)}, {where(search)}"


def _trained(params: Params, results: Thresholds) -> Grid:
    sections: Body = []
    shown = {id(t.search) for t in results.trained if t.students}
    filled = [t for t in results.trained if id(t.search) in shown]
    for search, group in groupby(filled, key=lambda t: t.search):
        rows = [
            [
                Text(f"{t.value:g}"),
                *(_number(numbers.get(m)) for numbers in (t.labels, t.students) for m in METRICS),
            ]
            for t in group
        ]
        title = f"{_target(params, search)}, {_name(search.key.label)}"
        sections.append((title, rows))
    titles = ["All thresholds", *(f"{kind} {m}" for kind in ("Labels", "Student") for m in METRICS)]
    notes = [
        "Trainings with other thresholds (paper Table 3) beside the labels with the same "
        "thresholds, both on all of val, in percent with 95 % intervals over images. The labels "
        "are those of the burn-in teacher of the search's seed."
    ]
    return Grid("thresholds_trained", "Labels and trained students", titles, sections, notes)


def _number(number: Number | None) -> Text:
    if number is None:
        return _DASH
    return Text(f"{number.value:.2f}", f"[{number.low:.2f}, {number.high:.2f}]")


def thresholds_csv(results: Thresholds) -> str:
    """All numbers, one line each, with the columns of the other tables and two more."""
    out = io.StringIO()
    columns = [*CSV_COLUMNS, "thresholds", "verdict"]
    writer = csv.DictWriter(out, columns, lineterminator="\n", restval="")
    writer.writeheader()
    for c in results.comparisons:
        writer.writerows(_comparison_lines(c))
    for t in results.transfers:
        writer.writerow(_transfer_line(t))
    for trained in results.trained:
        line = {"table": "thresholds_trained", "dataset": trained.search.key.dataset}
        line |= {"fraction": fraction_name(trained.search.key.fraction), "method": trained.method}
        line |= {"row": trained.method, "thresholds": f"{trained.value:g}"}
        for kind, numbers in (("labels", trained.labels), ("students", trained.students)):
            writer.writerow({**line, "split": f"{kind} val", **_csv_numbers(dict(numbers))})
    return out.getvalue()


def _comparison_lines(c: Comparison) -> Iterator[dict[str, str]]:
    start = {"table": "thresholds", "dataset": c.key.dataset, "method": csv_text(c.key.label)}
    start["fraction"] = fraction_name(c.key.fraction)
    best, given = (c.search.best, c.search.given) if c.search else ({}, {})
    places = [("labels", c.labels, part) for part in ("seen", "held_out")]
    places += [("students", c.students, split) for split, metric in c.students if metric == "oIoU"]
    for kind, changes, place in places:
        for name in ("paper", "best", "difference"):
            numbers = {m: getattr(changes.get((place, m)), name, None) for m in METRICS}
            line = {**start, "row": f"{c.key.label}, {name}", "split": f"{kind} {place}"}
            line |= _csv_numbers(numbers)
            if name == "difference":
                line["metric"] = "difference of oIoU"
            else:
                line["thresholds"] = _csv_thresholds(best if name == "best" else given)
            if (kind, place, name) == ("students", "val", "difference"):
                line["verdict"] = c.verdict()
            yield line


def _transfer_line(t: Transfer) -> dict[str, str]:
    used = t.origin.best if t.origin else t.target.given
    origin = f"{t.origin.key.dataset}, {where(t.origin)}" if t.origin else "paper"
    return {
        "table": "thresholds_transfer", "dataset": t.target.key.dataset,
        "fraction": fraction_name(t.target.key.fraction), "method": csv_text(t.target.key.label),
        "row": f"{t.target.key.label}, from {origin}", "split": "labels held_out",
        "thresholds": _csv_thresholds(used), **_csv_numbers({"oIoU": t.value}),
    }  # fmt: skip


def _csv_thresholds(values: Mapping[str, float]) -> str:
    return " ".join(f"{name}={value:.4f}" for name, value in values.items())


def _csv_numbers(numbers: Mapping[str, Number | None]) -> dict[str, str]:
    line = {"metric": "oIoU"}
    for metric, number in numbers.items():
        if number is None:
            continue
        names = ("value", "ci_low", "ci_high") if metric == "oIoU" else (
            metric, f"{metric}_low", f"{metric}_high"
        )  # fmt: skip
        values = (number.value, number.low, number.high)
        line |= {name: plain(value) for name, value in zip(names, values, strict=True)}
        line["seeds"] = str(number.seeds if isinstance(number, Value) else 1)
    if numbers.get("oIoU") is None:
        line["missing"] = NOT_RUN
    return line
