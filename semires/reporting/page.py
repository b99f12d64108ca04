"""`reports/index.html`: claims, tables, figures, runs and parameters.

One self-contained file: figures are data URIs. It has no scripts and loads nothing.
Text from records is data and escaped.
"""

from __future__ import annotations

import base64
import html
import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from semires.config.schema import Params
from semires.reporting import markup
from semires.reporting.claims import Judgement
from semires.reporting.claims_render import claims_html
from semires.reporting.definitions import FigureDefinition, display_name
from semires.reporting.page_template import TEMPLATE
from semires.reporting.records import METRICS, Records
from semires.reporting.render import Grid, claimed, place, to_html
from semires.reporting.runs_table import log_path
from semires.reporting.style import style_of
from semires.reporting.tables import FilledTable
from semires.reporting.threshold_figures import caption
from semires.reporting.thresholds_render import PURPOSE, TITLE, thresholds_html
from semires.runs.key import RunKey
from semires.runs.record import flatten
from semires.tracking import run_links

Picture = tuple[str, bytes]  # stem of its file, PNG
#: Which table a figure follows; others come last.
_AFTER = {"figure1": "main", "figure3": "main", "figure6": "table2", "figure7": "main"}
#: Titles of the measures in quality.json.
_QUALITY = {
    "best_iou": "mean IoU of the best proposal (%)",
    "over_half": "objects whose best is over 0.5 (%)",
    "proposals_per_image": "proposals per image",
    "proposals_per_label": "proposals per pseudo-label",
}


@dataclass(frozen=True)
class DrawnFigure:
    """A figure as the page shows it: its definition and its pictures."""

    name: str
    definition: FigureDefinition
    pictures: list[Picture]


def render_page(
    params: Params,
    records: Records,
    tables: list[tuple[FilledTable, FilledTable | None]],
    figures: list[DrawnFigure],
    judgements: list[Judgement],
    thresholds: tuple[list[Grid], list[Picture]],
    rules: bytes | None = None,
) -> str:
    """The page's HTML.

    Args:
        params: names the data sets.
        records: all runs, for their list, environment and parameters.
        tables: each table with its paired differences, if any.
        figures: drawn figures, in order.
        judgements: the judged claims, in order.
        thresholds: the tables and the pictures of the searches.
        rules: the figure of the label quality of every rule, PNG, if it was measured.
    """
    from jinja2 import Environment, StrictUndefined

    logs = {run.key: quote(log_path(run.key)) for run in records.all}
    shown = [_table_entry(table, pairs, logs) for table, pairs in tables]
    if "table1" in (table.name for table, _ in tables):  # then the main table is not Table 1
        shown[0]["heading"] = tables[0][0].title
    drawn = [_figure_entry(figure, [str(t["name"]) for t in shown]) for figure in figures]
    contents = [("s-claims", "Claims")] if judgements else []
    for table in shown:
        contents.append((f"s-{table['name']}", table["heading"]))
        contents += [(f"s-{f['name']}", f["heading"]) for f in drawn if f["after"] == table["name"]]
    contents += [("s-thresholds", TITLE)] if thresholds[0] else []
    contents.append(("s-labels", "Pseudo-labels and proposals"))
    contents += [(f"s-{name.lower()}", name) for name in ("Runs", "Environment", "Parameters")]
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(TEMPLATE)
    text: str = template.render(
        claims=claims_html(params, judgements) if judgements else "",
        metrics=METRICS,
        tables=shown,
        figures=drawn,
        contents=contents,
        thresholds=_thresholds_entry(*thresholds),
        n_runs=len(records.all),
        datasets=", ".join(display_name(params, d) for d in params.study.datasets),
        labels=_labels(records),
        rules=_data_uri(rules) if rules else "",
        proposals=_proposals(records),
        runs=_runs(records, logs),
        environment=_varying([run.record.numerics for run in records.all]),
        parameters=_varying([run.record.params for run in records.all]),
    )
    return text


def heading(name: str, title: str) -> str:
    """A heading with the paper's number: `table3` gives "Table 3. TITLE"."""
    if name == "main":
        return f"Table 1. {title}"
    kind = next((k for k in ("table", "figure") if name.startswith(k)), "")
    number = name.removeprefix(kind)
    return f"{kind.capitalize()} {number}. {title}" if kind and number.isdigit() else title


def _table_entry(
    table: FilledTable, pairs: FilledTable | None, logs: dict[RunKey, str]
) -> dict[str, Any]:
    return {
        "name": table.name,
        "heading": heading(table.name, table.title),
        "where": place(table),
        "claimed": claimed(table),
        "claim": table.claim,
        "html": to_html(table, logs),
        "pairs": to_html(pairs) if pairs else "",
    }


def _figure_entry(figure: DrawnFigure, tables: list[str]) -> dict[str, Any]:
    after = _AFTER.get(figure.name, tables[-1])
    definition = figure.definition
    names = {stem: style_of(stem.removeprefix(f"{figure.name}-"))[3] for stem, _ in figure.pictures}
    return {
        "name": figure.name,
        "heading": heading(figure.name, definition.title),
        "where": place(definition),
        "claimed": claimed(definition),
        "claim": definition.claim,
        "notes": definition.notes,
        "images": [
            (names[stem], f"{definition.title} ({stem})", _data_uri(png))
            for stem, png in figure.pictures
        ],
        "after": after if after in tables else tables[-1],
    }


def _thresholds_entry(grids: list[Grid], pictures: list[Picture]) -> dict[str, Any]:
    return {
        "heading": TITLE,
        "where": PURPOSE,
        "html": thresholds_html(grids) if grids else "",
        "files": [f"{grid.name}.tex" for grid in grids],
        "images": [(stem, _data_uri(png), caption(stem)) for stem, png in pictures],
    }


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _html_table(head: list[str], rows: list[list[str]], kind: str = "") -> str:
    """Rows of text as a table; the texts are escaped."""
    return _html_cells(head, [[html.escape(cell) for cell in row] for row in rows], kind)


def _html_cells(head: list[str], rows: list[list[str]], kind: str = "") -> str:
    """Rows of cells that are HTML already."""
    if not rows:
        return "<p>– no run yet: <code>dvc repro</code> fills it.</p>"
    attribute = f' class="{kind}"' if kind else ""
    return (
        f'<div class="scroll"><table{attribute}>{markup.head(head)}'
        f"<tbody>{''.join(map(markup.row, rows))}</tbody></table></div>"
    )


def _labels(records: Records) -> str:
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
    return _html_table(head, rows)


def _proposals(records: Records) -> str:
    flat = {key: flatten(values) for key, values in records.quality.items()}
    keys = list(dict.fromkeys(k for values in flat.values() for k in values))
    rows = [
        [f"{dataset}: {source}", *(_scaled(key, values.get(key)) for key in keys)]
        for (dataset, source), values in flat.items()
    ]
    heads = [
        f"{split}: {_QUALITY.get(key, key)}" for split, _, key in (k.partition(".") for k in keys)
    ]
    return _html_table(["Source", *heads], rows)


def _scaled(key: str, value: Any) -> str:
    """A measure of proposals with two decimals, shares in percent."""
    if not isinstance(value, int | float):
        return _short(value)
    return f"{value * (100 if _QUALITY.get(key.partition('.')[2], '').endswith('(%)') else 1):.2f}"


def _runs(records: Records, logs: dict[RunKey, str]) -> str:
    """All runs with links to their logs and to MLflow (the only use of the tracking store)."""
    links = run_links(run.key for run in records.all)
    rows = []
    for run in records.all:
        scores = [
            f"{split} {values['oIoU']:.2f}"
            for split, values in run.metrics.items()
            if "oIoU" in values
        ]
        names = (run.folder.as_posix(), "; ".join(scores))
        addresses = {"log": logs[run.key], "MLflow": links.get(run.key)}
        rows.append([*map(html.escape, names), *(_link(*item) for item in addresses.items())])
    return _html_cells(["Folder", "oIoU (%)", "Evaluations", "MLflow"], rows)


def _link(text: str, address: str | None) -> str:
    return f'<a href="{html.escape(address)}">{text}</a>' if address else "–"


def _varying(values: list[dict[str, Any]]) -> str:
    """Dotted keys and their values; all distinct ones where runs differ."""
    seen: dict[str, list[str]] = {}
    for value in values:
        for key, leaf in flatten(value).items():
            text = _short(leaf)
            if text not in seen.setdefault(key, []):
                seen[key].append(text)
    rows = [[key, " | ".join(texts[:12]) + (" | …" if texts[12:] else "")]
            for key, texts in sorted(seen.items())]  # fmt: skip
    return _html_table(["Key", "Value"], rows, "text")


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if value is None or isinstance(value, bool | int | str):
        return str(value)
    return json.dumps(value, ensure_ascii=False, default=str)
