"""`reports/index.html`: every table and figure, the runs, the pipeline and the parameters.

One self-contained file: figures are data URIs, there is no script and nothing from a network.
Whatever comes from records is data and escaped.
"""

from __future__ import annotations

import base64
import html
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semires.config.schema import Params
from semires.files import flatten
from semires.reporting.definitions import FigureDefinition, display_name
from semires.reporting.figures import style_of
from semires.reporting.page_template import TEMPLATE
from semires.reporting.pipeline import pipeline_svg
from semires.reporting.records import Records
from semires.reporting.render import claimed, place, to_html
from semires.reporting.tables import Table
from semires.tracking import run_links

#: Which table a figure follows; others come last.
_AFTER = {"figure1": "main", "figure3": "main", "figure6": "table2", "figure7": "main"}


#: quality.json's measures as a reader takes them.
_QUALITY = {
    "best_iou": "mean IoU of the best proposal (%)",
    "over_half": "objects whose best is over 0.5 (%)",
    "proposals_per_image": "proposals per image",
}


@dataclass(frozen=True)
class DrawnFigure:
    """A figure as the page shows it: its definition and its pictures, (stem, PNG bytes)."""

    name: str
    definition: FigureDefinition
    pictures: list[tuple[str, bytes]]


def render_page(
    params: Params,
    records: Records,
    tables: list[tuple[Table, Table | None]],
    figures: list[DrawnFigure],
    pipeline: Path = Path("dvc.yaml"),
) -> str:
    """The page's HTML.

    Args:
        params: names the data sets.
        records: all runs, for their list, environment and parameters.
        tables: each table with its paired differences, if any.
        figures: drawn figures, in order.
        pipeline: the pipeline's definition.
    """
    from jinja2 import Environment, StrictUndefined

    shown = [_table_entry(table, pairs) for table, pairs in tables]
    drawn = [_figure_entry(figure, [str(t["name"]) for t in shown]) for figure in figures]
    contents = []
    for table in shown:
        contents.append((f"s-{table['name']}", table["heading"]))
        contents += [(f"s-{f['name']}", f["heading"]) for f in drawn if f["after"] == table["name"]]
    names = ("labels", "runs", "pipeline", "environment", "parameters")
    titles = ("Pseudo-labels and proposals", "Runs", "Pipeline", "Environment", "Parameters")
    contents += [(f"s-{n}", title) for n, title in zip(names, titles, strict=True)]
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(TEMPLATE)
    text: str = template.render(
        tables=shown,
        figures=drawn,
        contents=contents,
        n_runs=len(records.all),
        datasets=", ".join(display_name(params, d) for d in params.study.datasets),
        labels=_labels(records),
        proposals=_proposals(records),
        runs=_runs(records),
        pipeline=pipeline_svg(pipeline),
        environment=_varying([run.record.numerics for run in records.all]),
        parameters=_varying([run.record.params for run in records.all]),
    )
    return text


def heading(name: str, title: str) -> str:
    """`table3` and its title as a reader of the paper looks for them."""
    if name == "main":
        return f"Table 1. {title}"
    kind = next((k for k in ("table", "figure") if name.startswith(k)), "")
    number = name.removeprefix(kind)
    return f"{kind.capitalize()} {number}. {title}" if kind and number.isdigit() else title


def _table_entry(table: Table, pairs: Table | None) -> dict[str, Any]:
    return {
        "name": table.name,
        "heading": heading(table.name, table.title),
        "where": place(table),
        "claimed": claimed(table),
        "claim": table.claim,
        "html": to_html(table),
        "pairs": to_html(pairs) if pairs else "",
    }


def _figure_entry(figure: DrawnFigure, tables: list[str]) -> dict[str, Any]:
    after = _AFTER.get(figure.name, tables[-1])
    definition = figure.definition
    images = [
        (
            style_of(stem.removeprefix(f"{figure.name}-"))[3],
            f"{definition.title} ({stem})",
            f"data:image/png;base64,{base64.b64encode(png).decode()}",
        )
        for stem, png in figure.pictures
    ]
    return {
        "name": figure.name,
        "heading": heading(figure.name, definition.title),
        "where": definition.where,
        "claim": definition.claim,
        "notes": definition.notes,
        "images": images,
        "after": after if after in tables else tables[-1],
    }


def _html_table(
    head: list[str], rows: list[list[str]], kind: str = "", links: dict[str, str] | None = None
) -> str:
    """Rows of text as a table; ``links`` are addresses of the first cells, by their text."""
    if not rows:
        return "<p>– no run yet: <code>dvc repro</code> fills it.</p>"
    titles = "".join(f'<th scope="col">{html.escape(title)}</th>' for title in head)
    lines = []
    for first, *rest in rows:
        cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in rest)
        title = html.escape(first)
        if links and first in links:
            title = f'<a href="{html.escape(links[first])}">{title}</a>'
        lines.append(f'<tr><th scope="row">{title}</th>{cells}</tr>')
    attribute = f' class="{kind}"' if kind else ""
    return (
        f'<div class="scroll"><table{attribute}><thead><tr>{titles}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _labels(records: Records) -> str:
    keys = ["raw_oIoU", "refined_oIoU", "matched", "better", "worse", "unmatched"]
    rows = []
    for run in records.all:
        pseudo = run.metrics.get("pseudo")
        if pseudo:
            rows.append(
                [
                    f"{run.cell.dataset}: {run.cell.name}",
                    *(f"{pseudo[k]:.2f}" if k in pseudo else "–" for k in keys),
                ]
            )
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


def _runs(records: Records) -> str:
    links = run_links(run.cell for run in records.all)
    rows = []
    for run in records.all:
        scores = [
            f"{split} {values['oIoU']:.2f}"
            for split, values in run.metrics.items()
            if "oIoU" in values
        ]
        rows.append(
            [
                run.folder.as_posix(),
                run.cell.name,
                "; ".join(scores),
            ]
        )
    head = ["Folder (link: MLflow)", "Run", "oIoU (%)"]
    addresses = {run.folder.as_posix(): links[run.cell] for run in records.all if run.cell in links}
    return _html_table(head, rows, links=addresses)


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
