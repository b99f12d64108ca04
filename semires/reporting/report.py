"""`semires report`: everything under `reports/`, from run records alone.

Tables (md, csv, tex), figures (png, svg), `index.html` (which also links to the runs that MLflow's
store holds), `metrics.json` for `dvc metrics`. The folder appears whole or not at all, and the same
records give the same bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from semires import tracking
from semires.config.messages import require
from semires.config.schema import Params
from semires.errors import ConfigError
from semires.files import atomic_folder, write_bytes, write_json, write_text
from semires.reporting.curves import curves_csv
from semires.reporting.definitions import PaperValues, TableDefinition, load_definitions
from semires.reporting.records import Records, load_records
from semires.reporting.render import body, to_csv, to_markdown, to_tex
from semires.reporting.tables import Table, TableBuilder
from semires.runs import layout
from semires.runs.key import RUNS, SUPERVISED, fraction_name

Tables = list[tuple[Table, Table | None]]
KEPT = ("benchmarks.md", "growth.svg")  # by `make bench`, not from runs


def report(params: Params) -> None:
    """Write `reports/` anew.

    Raises:
        SemiresError: a run record, definition or picture source is damaged; its path is named.
    """
    records = load_records(default_source=params.proposals.source, seeds=params.study.seeds)
    tables = build_tables(params, records)
    with atomic_folder(layout.REPORTS) as folder:
        write_tables(tables, folder)
        _write_figures_and_page(params, records, tables, folder)
        write_json(folder / "metrics.json", metrics_of(tables))
        write_text(folder / "curves.csv", curves_csv(records))
        write_json(folder / "summary.json", _summary(params, records, tables))
        for former in (layout.REPORTS / name for name in KEPT):
            if former.is_file():
                write_bytes(folder / former.name, former.read_bytes())


def build_tables(params: Params, records: Records) -> Tables:
    """All defined tables, filled, each with its paired differences."""
    definitions, _ = load_definitions()
    builder = TableBuilder(params, records, PaperValues())
    tables: Tables = []
    for name, definition in definitions.items():
        check_methods(params, name, definition)
        table = builder.build(name, definition)
        tables.append((table, builder.differences(table, definition)))
    return tables


def check_methods(params: Params, name: str, definition: TableDefinition) -> None:
    """Refuse a row of a method that there is not.

    Raises:
        ConfigError: the text names the file, the row and the nearest method.
    """
    known = [SUPERVISED, *params.refine]
    for i, row in enumerate(definition.rows):
        if row.needs is None:
            try:
                require([row.method], known, f"rows.{i}.method", "refine")
            except ValueError as error:
                raise ConfigError(f"{layout.TABLES}/{name}.yaml: {error}") from error


def write_tables(tables: Tables, folder: Path) -> None:
    """Markdown, CSV and LaTeX of every table and of its differences."""
    for pair in tables:
        for table in pair:
            if table is not None:
                write_text(folder / f"{table.name}.md", to_markdown(table))
                write_text(folder / f"{table.name}.csv", to_csv(table))
                write_text(folder / f"{table.name}.tex", to_tex(table))


def _write_figures_and_page(params: Params, records: Records, tables: Tables, folder: Path) -> None:
    from semires.reporting.figures import FigureMaker, save
    from semires.reporting.page import DrawnFigure, render_page

    _, definitions = load_definitions()
    maker = FigureMaker(params, records, PaperValues())
    drawn = []
    for name, definition in definitions.items():
        pictures = []
        figures = maker.draw(name, definition)
        if definition.kind == "panels" and (overview := maker.overview(definition)) is not None:
            figures = {"qualitative": overview, **figures}
        for stem, figure in figures.items():
            png, svg = save(figure)
            write_bytes(folder / f"{stem}.png", png)
            write_bytes(folder / f"{stem}.svg", svg)
            if stem != "qualitative":
                pictures.append((stem, png))
        drawn.append(DrawnFigure(name, definition, pictures))
    write_text(folder / "index.html", render_page(params, records, tables, drawn))


def metrics_of(tables: Tables) -> dict[str, Any]:
    """The main table's oIoU as nested numbers, two decimals, for `dvc metrics`."""
    nested: dict[str, Any] = {}
    for section in tables[0][0].sections:
        rows = {
            row.method: {split: round(v.value, 2) for split, v in row.values.items()}
            for row in section.rows
            if row.values
        }
        if rows:
            nested.setdefault(section.dataset, {})[section.fraction] = rows
    return nested


def _summary(params: Params, records: Records, tables: Tables) -> dict[str, Any]:
    rows = [row for table, _ in tables for section in table.sections for row in section.rows]
    return {
        "runs": len(records.all),
        "runs_left_out": len(records.left_out),
        "rows": len(rows),
        "rows_without_run": sum(not row.values for row in rows),
        "bootstrap_samples": params.evaluation.bootstrap_samples,
        "fractions": [fraction_name(fraction) for fraction in params.study.fractions],
    }


def print_summary(params: Params) -> None:
    """Print the main table and where everything lies, at the end of `make repro`."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table as RichTable

    records = load_records(default_source=params.proposals.source, seeds=params.study.seeds)
    table = build_main(params, records)
    titles = ["oIoU (%)", *table.splits]
    shown = RichTable(title=escape(table.title), title_justify="left")
    for position, title in enumerate(titles):
        shown.add_column(escape(title), justify="right" if position else "left")
    for section, rows in body(table):
        shown.add_row(f"[bold]{escape(section)}[/bold]")
        for row in rows:
            shown.add_row(*(escape(cell.main) for cell in row[: len(titles)]))
        shown.add_section()
    console = Console(highlight=False)
    console.print(shown)
    for note in table.footnotes:
        console.print(escape(f"–: {note}"))
    console.print("With confidence intervals, the paper's values and figures:", end=" ")
    console.print(f"{layout.REPORTS}/index.html, {layout.REPORTS}/main.md")
    console.print(f"Runs with their checkpoints: {RUNS}/D/F/M/seedS/")
    console.print(escape(f"MLflow store: {tracking.store_name()} (`make ui` shows mlflow.db)"))


def build_main(params: Params, records: Records) -> Table:
    """The main table alone."""
    definitions, _ = load_definitions()
    return TableBuilder(params, records, PaperValues()).build("main", definitions["main"])
