"""The tables of `thresholds.py`: their layout, Markdown and CSV."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import groupby

from semires.config.schema import Params
from semires.evaluation.bootstrap import Interval
from semires.reporting.claims import NOT_RUN
from semires.reporting.definitions import display_name, section_title
from semires.reporting.formats import (
    Body,
    Grid,
    Text,
    csv_number,
    csv_of,
    csv_text,
    md,
    md_note,
    md_table,
    signed,
)
from semires.reporting.grids import CSV_COLUMNS
from semires.reporting.searches import Search
from semires.reporting.selection import Value
from semires.reporting.style import name_of
from semires.reporting.thresholds import (
    METRICS,
    Change,
    Comparison,
    Thresholds,
    Trained,
    Transfer,
    where,
)
from semires.runs.key import RunKey, fraction_name

TITLE = "Tuned thresholds"
PURPOSE = "whether a search of the thresholds helps, on the labels and on the students"
_DASH = Text("–")


def grids(params: Params, results: Thresholds) -> list[Grid]:
    """The tables that are not empty."""
    made = [_comparisons(params, results), _transfers(params, results), _trained(params, results)]
    return [grid for grid in made if grid.sections]


def thresholds_markdown(made: list[Grid]) -> str:
    """All tables on one page."""
    lines = [f"# {TITLE}", "", f"Not in the paper: {PURPOSE}.", ""]
    for number, grid in enumerate(made):
        lines += [f"## {md(grid.title)}", ""] if number else []
        lines += [*md_table(grid), ""]
        lines += [*(f"- {md_note(note)}" for note in grid.notes), ""]
    return "\n".join(lines)


def _comparisons(params: Params, results: Thresholds) -> Grid:
    """Two rows for each search: overall and mean IoU."""
    splits = list(dict.fromkeys(split for c in results.comparisons for split, _ in c.students))
    titles = ["Method", "Metric", "Values", "Labels, seen", "Labels, unseen"]
    titles += [*(f"Student, {split}" for split in splits), "Tuning helps"]
    sections: Body = []
    for at in dict.fromkeys(_cell(c.key) for c in results.comparisons):
        here = (c for c in results.comparisons if _cell(c.key) == at)
        rows = [_row(c, metric, splits) for c in here for metric in METRICS]
        sections.append((section_title(params, *at), rows))
    return Grid("thresholds", TITLE, titles, sections, list(_notes(params, results)))


def _row(c: Comparison, metric: str, splits: list[str]) -> list[Text]:
    first = metric == METRICS[0]
    cells = [Text(name_of(c.key.label) if first else ""), Text(metric)]
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


def _difference(number: Interval) -> str:
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
    judged = " and ".join(dict.fromkeys(c.judged for c in results.comparisons))
    yield (
        "The best values are those of the largest oIoU of the seen labels. Tuning helps: the "
        f"verdict on the students' difference on {judged}, as for the claims. A search on val has "
        f"seen half of val, and val chooses the best step of a student; {judged} has no part in "
        "either."
    )
    changes = (change for c in results.comparisons for change in c.students.values())
    values = (v for change in changes for v in (change.difference, change.best))
    if any(v.seeds == 1 for v in values if isinstance(v, Value)):
        yield "With one seed, a student's interval covers images only."
    missing = [f"{c.key.dataset} {c.key.name}" for c in results.comparisons if c.search is None]
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


def _gains(results: Thresholds) -> Iterator[str]:
    """How much of the gain of a search on val remains for a search on the labelled images."""
    for t in results.transfers:
        if t.origin is None or t.origin.on_val:
            continue
        if replace(t.origin.key, method=t.target.key.method) != t.target.key:
            continue
        own = next(o for o in results.transfers if o.target is t.target and o.origin is t.target)
        yield (
            f"{t.origin.key.name}: on the held-out half of val, the thresholds from the labelled "
            f"images change oIoU by {_difference(t.difference)} points, those from val by "
            f"{_difference(own.difference)}."
        )


def _cell(key: RunKey) -> tuple[str, float]:
    return key.dataset, key.fraction


def _transfers(params: Params, results: Thresholds) -> Grid:
    """For each strategy: a row for each origin of thresholds, a column for each teacher."""
    targets = list(dict.fromkeys(_search_name(params, t.target) for t in results.transfers))
    sections: Body = []
    for strategy in dict.fromkeys(t.target.strategy for t in results.transfers):
        rows: dict[str, dict[str, Text]] = {}
        for t in (t for t in results.transfers if t.target.strategy == strategy):
            origin = "the paper's" if t.origin is None else _search_name(params, t.origin)
            small = "" if t.origin is None else _difference(t.difference)
            cell = Text(f"{t.value.value:.2f}", small)
            rows.setdefault(origin, {})[_search_name(params, t.target)] = cell
        if len(rows) > 2:  # more than the paper's and one search's
            filled = [
                [Text(origin), *(cells.get(target, _DASH) for target in targets)]
                for origin, cells in rows.items()
            ]
            sections.append((name_of(strategy), filled))
    notes = [
        "oIoU (%) of the refined labels on the held-out half of val. Rows: the search that found "
        "the thresholds; columns: the teacher whose labels they refine, with its proposals. Exact, "
        "without training. "
        "Small print: the difference from the paper's thresholds, in points, with its 95 % "
        "interval over images."
    ]
    titles = ["Thresholds found at", *targets]
    return Grid("thresholds_transfer", "Transfer of thresholds", titles, sections, notes)


def _search_name(params: Params, search: Search) -> str:
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
        title = f"{_search_name(params, search)}, {name_of(search.key.method)}"
        sections.append((title, rows))
    titles = ["All thresholds", *(f"{kind} {m}" for kind in ("Labels", "Student") for m in METRICS)]
    notes = [
        "Trainings with other thresholds (paper Table 3) beside the labels with the same "
        "thresholds, both on all of val, in percent with 95 % intervals over images. The labels "
        "are those of the burn-in teacher of the search's seed."
    ]
    return Grid("thresholds_trained", "Labels and trained students", titles, sections, notes)


def _number(number: Interval | None) -> Text:
    if number is None:
        return _DASH
    return Text(f"{number.value:.2f}", f"[{number.low:.2f}, {number.high:.2f}]")


def thresholds_csv(results: Thresholds) -> str:
    """All numbers, one line each, with the columns of the other tables and two more."""
    lines = [line for c in results.comparisons for line in _comparison_lines(c)]
    lines += map(_transfer_line, results.transfers)
    lines += (line for t in results.trained for line in _trained_lines(t))
    return csv_of([*CSV_COLUMNS, "thresholds", "verdict"], lines)


def _comparison_lines(c: Comparison) -> Iterator[dict[str, str]]:
    best, given = (c.search.best, c.search.given) if c.search else ({}, {})
    places = [("labels", c.labels, part) for part in ("seen", "held_out")]
    places += [("students", c.students, split) for split, metric in c.students if metric == "oIoU"]
    for kind, changes, place in places:
        for name in ("paper", "best", "difference"):
            numbers = {m: getattr(changes.get((place, m)), name, None) for m in METRICS}
            row, split = f"{c.key.label}, {name}", f"{kind} {place}"
            line = _csv_line("thresholds", c.key, c.key.label, row, split, numbers)
            if name == "difference":
                line["metric"] = "difference of oIoU"
                line["verdict"] = c.verdict() if split == f"students {c.judged}" else ""
            else:
                line["thresholds"] = _csv_thresholds(best if name == "best" else given)
            yield line


def _transfer_line(t: Transfer) -> dict[str, str]:
    key, used = t.target.key, t.origin.best if t.origin else t.target.given
    origin = f"{t.origin.key.dataset}, {where(t.origin)}" if t.origin else "paper"
    at = (key.label, f"{key.label}, from {origin}", "labels held_out")
    line = _csv_line("thresholds_transfer", key, *at, {"oIoU": t.value})
    return line | {"thresholds": _csv_thresholds(used)}


def _trained_lines(t: Trained) -> Iterator[dict[str, str]]:
    for split, numbers in (("labels val", t.labels), ("students val", t.students)):
        at = (t.method, t.method, split)
        line = _csv_line("thresholds_trained", t.search.key, *at, numbers)
        yield line | {"thresholds": f"{t.value:g}"}


def _csv_thresholds(values: Mapping[str, float]) -> str:
    return " ".join(f"{name}={value:.4f}" for name, value in values.items())


def _csv_line(
    table: str,
    key: RunKey,
    method: str,
    row: str,
    split: str,
    numbers: Mapping[str, Interval | None],
) -> dict[str, str]:
    line = {"table": table, "dataset": key.dataset, "fraction": fraction_name(key.fraction)}
    line |= {"row": row, "method": csv_text(method), "split": split, "metric": METRICS[0]}
    for metric, number in numbers.items():
        if number is not None:
            line |= csv_number(metric, number)
            line["seeds"] = str(number.seeds if isinstance(number, Value) else 1)
    return line if numbers.get(METRICS[0]) else {**line, "missing": NOT_RUN}
