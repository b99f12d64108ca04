"""`reports/index.html`: claims, tables, figures, runs and parameters.

The pictures and files that it links are beside it. It has no scripts and loads nothing from a
network. Text from records is data and escaped.
"""

from __future__ import annotations

import json
from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined

from semires.config.schema import Params
from semires.reporting.claims import Judgement
from semires.reporting.claims_render import TITLES, by_dataset, cells, notes
from semires.reporting.definitions import FigureDefinition, display_name
from semires.reporting.formats import Grid, Text, letter
from semires.reporting.grids import claimed, grid_of, place
from semires.reporting.page_template import PAGE, PARTS
from semires.reporting.records import METRICS, Records
from semires.reporting.runs_table import log_path
from semires.reporting.style import name_of
from semires.reporting.tables import FilledTable
from semires.reporting.threshold_figures import caption
from semires.reporting.thresholds_render import PURPOSE, TITLE
from semires.runs.record import flatten
from semires.tracking import run_links

#: Which table a figure follows; others come last.
_AFTER = {"figure1": "main", "figure3": "main", "figure6": "table2", "figure7": "main"}
#: Titles of the measures in quality.json.
_QUALITY = {
    "best_iou": "mean IoU of the best proposal (%)",
    "over_half": "objects whose best is over 0.5 (%)",
    "proposals_per_image": "proposals per image",
    "proposals_per_label": "proposals per pseudo-label",
}


def templates() -> Environment:
    """The templates ``page`` and ``parts``, with the functions and texts that they use."""
    environment = Environment(
        loader=DictLoader({"page": PAGE, "parts": PARTS}),
        autoescape=True,
        undefined=StrictUndefined,
    )
    environment.globals |= {
        "caption": caption, "cells": cells, "claimed": claimed, "by_metric": by_metric,
        "letter": letter, "log_path": log_path, "place": place, "name_of": name_of,
        "metrics": METRICS, "claim_titles": TITLES, "thresholds_title": TITLE, "purpose": PURPOSE,
    }  # fmt: skip
    return environment


def by_metric(table: FilledTable) -> list[Grid]:
    """The layout of a table for each of METRICS."""
    return [grid_of(table, (metric,)) for metric in METRICS]


def render_page(
    params: Params,
    records: Records,
    tables: list[tuple[FilledTable, FilledTable | None]],
    figures: dict[str, FigureDefinition],
    pictures: dict[str, list[str]],
    judgements: list[Judgement],
    thresholds: list[Grid],
) -> str:
    """The page's HTML.

    Args:
        params: names the data sets.
        records: all runs, for their list, environment and parameters.
        tables: each table with its paired differences, if any.
        figures: the figures' definitions, in order.
        pictures: the stems of the pictures of each figure, of the searches ("thresholds"), and
            of the label quality of every rule ("labels").
        judgements: the judged claims, in order.
        thresholds: the tables of the searches.
    """
    after: dict[str, list[str]] = {table.name: [] for table, _ in tables}
    for name in figures:
        wanted = _AFTER.get(name)
        after[wanted if wanted in after else tables[-1][0].name].append(name)
    headings = {table.name: heading(table.name, table.title) for table, _ in tables}
    if "table1" in headings:  # then the main table is not Table 1
        headings["main"] = tables[0][0].title
    headings |= {name: heading(name, figure.title) for name, figure in figures.items()}
    shown = [name for table in after for name in (table, *after[table])]
    contents = [("claims", "Claims")] if judgements else []
    contents += [(name, headings[name]) for name in shown]
    contents += [("thresholds", TITLE)] if thresholds else []
    contents.append(("labels", "Pseudo-labels and proposals"))
    contents += [(name.lower(), name) for name in ("Runs", "Environment", "Parameters")]
    return templates().get_template("page").render(
        judgements=judgements,
        claims=by_dataset(params, judgements),
        claim_notes=notes(judgements),
        tables=tables,
        after=after,
        figures=figures,
        pictures=pictures,
        headings=headings,
        contents=contents,
        thresholds=thresholds,
        datasets=", ".join(display_name(params, d) for d in params.study.datasets),
        labels=_labels(records),
        proposals=_proposals(records),
        runs=records.all,
        links=run_links(run.key for run in records.all),
        environment=_varying([run.record.numerics for run in records.all]),
        parameters=_varying([run.record.params for run in records.all]),
    )  # fmt: skip


def heading(name: str, title: str) -> str:
    """A heading with the paper's number: `table3` gives "Table 3. TITLE"."""
    if name == "main":
        return f"Table 1. {title}"
    kind = next((k for k in ("table", "figure") if name.startswith(k)), "")
    number = name.removeprefix(kind)
    return f"{kind.capitalize()} {number}. {title}" if kind and number.isdigit() else title


def _grid(titles: list[str], rows: list[list[str]]) -> Grid:
    sections = [("", [[Text(cell) for cell in row] for row in rows])]
    return Grid("", "", titles, sections if rows else [])


def _labels(records: Records) -> Grid:
    keys = ["raw_oIoU", "refined_oIoU", "matched", "better", "worse", "unmatched"]
    rows = [
        [
            f"{run.key.dataset}: {run.key.name}",
            *(f"{pseudo[k]:.2f}" if k in pseudo else "–" for k in keys),
        ]
        for run in records.all
        if (pseudo := run.metrics.get("pseudo"))
    ]
    head = ["Run", "before", "after", "matched", "better", "worse", "not matched"]
    return _grid(head, rows)


def _proposals(records: Records) -> Grid:
    flat = {key: flatten(values) for key, values in records.quality.items()}
    keys = list(dict.fromkeys(k for values in flat.values() for k in values))
    rows = [
        [f"{dataset}: {source}", *(_scaled(key, values.get(key)) for key in keys)]
        for (dataset, source), values in flat.items()
    ]
    heads = [
        f"{split}: {_QUALITY.get(key, key)}" for split, _, key in (k.partition(".") for k in keys)
    ]
    return _grid(["Source", *heads], rows)


def _scaled(key: str, value: Any) -> str:
    """A measure of proposals with two decimals, shares in percent."""
    if not isinstance(value, int | float):
        return _short(value)
    return f"{value * (100 if _QUALITY.get(key.partition('.')[2], '').endswith('(%)') else 1):.2f}"


def _varying(values: list[dict[str, Any]]) -> Grid:
    """Dotted keys and their values; all distinct ones where runs differ."""
    seen: dict[str, list[str]] = {}
    for value in values:
        for key, leaf in flatten(value).items():
            text = _short(leaf)
            if text not in seen.setdefault(key, []):
                seen[key].append(text)
    rows = [[key, " | ".join(texts[:12]) + (" | …" if texts[12:] else "")]
            for key, texts in sorted(seen.items())]  # fmt: skip
    return _grid(["Key", "Value"], rows)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if value is None or isinstance(value, bool | int | str):
        return str(value)
    return json.dumps(value, ensure_ascii=False, default=str)
