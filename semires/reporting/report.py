"""`semires report`: everything under `reports/`, from run records only.

Claims (md, csv), tables (md, csv, tex), figures (png, svg), `index.html`, `runs.csv`, `logs/`,
`metrics.json` for `dvc metrics`. The folder appears whole or not at all, and the same runs give
the same bytes.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tabulate import SEPARATING_LINE, tabulate

from semires import tracking
from semires.config.grid import expand
from semires.config.messages import require
from semires.config.schema import Params
from semires.files import atomic_folder, write_bytes, write_json, write_text
from semires.reporting import labels
from semires.reporting.claims import Judge, Judgement, load_claims
from semires.reporting.claims_render import claims_csv, claims_markdown
from semires.reporting.definitions import PaperValues, TableDefinition, load_definitions
from semires.reporting.formats import one_line, tex_table
from semires.reporting.grids import OTHERS, grid_of, to_csv, to_markdown, to_tex
from semires.reporting.records import Records, load_records
from semires.reporting.runs_table import curves_csv, log_path, logs, runs_csv
from semires.reporting.tables import FilledTable, TableBuilder
from semires.reporting.thresholds import Thresholds, compare_thresholds
from semires.reporting.thresholds_render import grids, thresholds_csv, thresholds_markdown
from semires.runs import layout
from semires.runs.key import RUNS, SUPERVISED, fraction_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Tables = list[tuple[FilledTable, FilledTable | None]]
#: What `make bench` and `make gpu` write into the report's folder, and the reports of the studies
#: experiments/study.yaml (whole or in part) and experiments/beyond.yaml; a new report keeps them.
KEPT = ("benchmarks.md", "growth.svg", "gpu.md", "study", "beyond", "part")


@dataclass(frozen=True)
class Results:
    """The inputs of a report: runs, filled tables with their differences, claims, searches."""

    records: Records
    tables: Tables
    judgements: list[Judgement]
    thresholds: Thresholds


def report(params: Params, output: Path = layout.REPORTS) -> None:
    """Write the report's folder, replacing the old one.

    Raises:
        SemiresError: a run record, definition or picture source is damaged; its path is named.
    """
    results = build(params)
    with atomic_folder(output) as folder:
        write_data(params, results, folder)
        _write_figures_and_page(params, results, folder)
        write_json(folder / "metrics.json", metrics_of(results.tables))
        write_text(folder / "curves.csv", curves_csv(results.records))
        write_json(folder / "summary.json", _summary(params, results))
        for former in (output / name for name in KEPT):
            if former.is_dir():
                shutil.copytree(former, folder / former.name)
            elif former.is_file():
                write_bytes(folder / former.name, former.read_bytes())


def read_runs(params: Params) -> Records:
    """The runs of the study alone, so that runs of another study do not change its report."""
    source, seeds = params.proposals.source, params.study.seeds
    return load_records(default_source=source, seeds=seeds, study=set(expand(params)))


def build(params: Params) -> Results:
    """Read all runs and searches, fill all tables, judge all claims."""
    records = read_runs(params)
    tables, figures = load_definitions()
    paper = PaperValues()
    judge = Judge(params, records, paper, tables, figures)
    judgements = judge.judge(load_claims(tables, figures))
    thresholds = compare_thresholds(params, records)
    return Results(records, build_tables(params, records), judgements, thresholds)


def build_tables(params: Params, records: Records) -> Tables:
    """All defined tables, filled, each with its paired differences."""
    definitions, _ = load_definitions()
    builder = TableBuilder(params, records, PaperValues())
    tables: Tables = []
    for name, definition in definitions.items():
        check_methods(params, name, definition)
        if builder.plan.makes(definition):
            table = builder.build(name, definition)
            tables.append((table, builder.differences(table, definition)))
    return tables


def check_methods(params: Params, name: str, definition: TableDefinition) -> None:
    """Refuse a row whose method does not exist.

    Raises:
        ConfigError: the text names the file, the row and the nearest method.
    """
    known = [SUPERVISED, *params.refine]
    for i, row in enumerate(definition.rows):
        require([row.method], known, f"{layout.TABLES}/{name}.yaml: rows.{i}.method", "refine")


def write_data(params: Params, results: Results, folder: Path) -> None:
    """Everything that `semires verify` compares: tables, claims and runs; and the runs' logs."""
    for pair in results.tables:
        for table in pair:
            if table is not None:
                write_text(folder / f"{table.name}.md", to_markdown(table))
                write_text(folder / f"{table.name}.csv", to_csv(table))
                write_text(folder / f"{table.name}.tex", to_tex(table))
                write_text(folder / f"{table.name}_miou.tex", to_tex(table, OTHERS))
    if results.judgements:
        write_text(folder / "claims.csv", claims_csv(results.judgements))
        write_text(folder / "claims.md", claims_markdown(params, results.judgements))
    if made := grids(params, results.thresholds):
        write_text(folder / "thresholds.md", thresholds_markdown(made))
        write_text(folder / "thresholds.csv", thresholds_csv(results.thresholds))
        for grid in made:
            write_text(folder / f"{grid.name}.tex", tex_table(grid))
    samples = params.evaluation.bootstrap_samples
    write_text(folder / "runs.csv", runs_csv(results.records, samples))
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    for key, text in logs(results.records):
        write_text(folder / log_path(key), text)


def _write_figures_and_page(params: Params, results: Results, folder: Path) -> None:
    from semires.reporting.figures import FigureMaker
    from semires.reporting.page import render_page
    from semires.reporting.threshold_figures import threshold_figures

    _, definitions = load_definitions()
    maker = FigureMaker(params, results.records, PaperValues())
    drawn = {}
    for name, definition in definitions.items():
        if definition.kind == "panels" and (overview := maker.overview(definition)) is not None:
            _write_figures(folder, {"qualitative": overview})
        drawn[name] = _write_figures(folder, maker.draw(name, definition))
    drawn["thresholds"] = _write_figures(folder, threshold_figures(results.thresholds))
    drawn["labels"] = _write_labels(params, folder)
    page = render_page(
        params, results.records, results.tables, definitions, drawn, results.judgements,
        grids(params, results.thresholds),
    )  # fmt: skip
    write_text(folder / "index.html", page)


def _write_labels(params: Params, folder: Path) -> list[str]:
    """Write labels.md, labels.csv and the figure, if there are measurements; return its stem."""
    table = labels.read_labels(params)
    if not len(table):
        return []
    write_text(folder / "labels.csv", labels.to_csv(table))
    write_text(folder / "labels.md", labels.markdown(params, table))
    return _write_figures(folder, {"labels": labels.figure(params, table)})


def _write_figures(folder: Path, figures: dict[str, Figure]) -> list[str]:
    """Write each figure as STEM.png and STEM.svg; return the stems."""
    from semires.reporting.style import save

    for stem, figure in figures.items():
        png, svg = save(figure)
        write_bytes(folder / f"{stem}.png", png)
        write_bytes(folder / f"{stem}.svg", svg)
    return list(figures)


def metrics_of(tables: Tables) -> dict[str, Any]:
    """The main table's oIoU as nested numbers, two decimals, for `dvc metrics`."""
    nested: dict[str, Any] = {}
    for section, row in ((s, row) for s in tables[0][0].sections for row in s.rows if row.values):
        values = {split: round(v.value, 2) for split, v in row.values.items()}
        by_fraction = nested.setdefault(section.dataset, {})
        by_fraction.setdefault(section.fraction, {})[row.method] = values
    return nested


def _summary(params: Params, results: Results) -> dict[str, Any]:
    tables = (table for table, _ in results.tables)
    rows = [row for table in tables for section in table.sections for row in section.rows]
    return {
        "runs": len(results.records.all),
        "runs_left_out": len(results.records.left_out),
        "rows": len(rows),
        "rows_without_run": sum(not row.values for row in rows),
        "bootstrap_samples": params.evaluation.bootstrap_samples,
        "fractions": [fraction_name(fraction) for fraction in params.study.fractions],
    }


def print_summary(params: Params, output: Path = layout.REPORTS) -> None:
    """Print the main table and the places of all results, at the end of `make repro`."""
    definitions, _ = load_definitions()
    builder = TableBuilder(params, read_runs(params), PaperValues())
    table = builder.build("main", definitions["main"])
    titles = ["oIoU (%)", *table.splits]
    rows: list[Any] = []
    for section, shown in grid_of(table).sections:
        rows += [*([SEPARATING_LINE] if rows else []), [section]]
        rows += [[one_line(cell.main) for cell in row[: len(titles)]] for row in shown]
    align = ["left", *["right"] * len(table.splits)]
    text = tabulate(rows, titles, "simple_outline", disable_numparse=True, colalign=align)
    print(table.title, text, sep="\n")
    for note in table.footnotes:
        print(f"–: {note}")
    print(
        f"Claims, confidence intervals, the paper's values and figures: {output}/index.html, "
        f"{output}/claims.md\nRuns with their checkpoints: {RUNS}/D/F/M/seedS/\n"
        f"MLflow store: {tracking.store_name()} (`make ui` shows mlflow.db)"
    )
