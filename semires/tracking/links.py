"""Links to runs in MLflow's UI, for the report: by name, as ids are only known once they are sent.

`make ui` serves the store beside the report; ``MLFLOW_TRACKING_URI`` may name another server.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import urllib.request
from collections.abc import Iterable
from urllib.parse import quote

from semires.runs import layout
from semires.runs.key import RunKey

UI = "http://127.0.0.1:5000"  # `make ui`
WAIT_S = 3.0


def run_links(cells: Iterable[RunKey]) -> dict[RunKey, str]:
    """Every cell's address: the experiment of its data set, searched for the run's name.

    A cell whose experiment cannot be found has none.
    """
    cells = list(cells)
    given = os.environ.get("MLFLOW_TRACKING_URI", "")
    server = given.rstrip("/") if given.startswith("http") else ""
    datasets = sorted({cell.dataset for cell in cells})
    ids = _ids_of_server(server, datasets) if server else _ids_of_store(datasets)
    return {
        cell: f"{server or UI}/#/experiments/{ids[cell.dataset]}/runs?workflowType="
        f"machine_learning&searchFilter={quote(f'attributes.run_name = {cell.name!r}', safe='')}"
        for cell in cells
        if cell.dataset in ids
    }


def _ids_of_store(datasets: list[str]) -> dict[str, str]:
    """Ids in ``mlflow.db``; where there is none yet, those that `semires track sync` will give."""
    path = layout.root() / "mlflow.db"
    if path.is_file():
        with (
            contextlib.suppress(sqlite3.Error),
            contextlib.closing(
                sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
            ) as db,
        ):
            rows = db.execute("SELECT name, experiment_id FROM experiments").fetchall()
            known = {str(name).removeprefix("semires/"): str(number) for name, number in rows}
            return {name: known[name] for name in datasets if name in known}
    return {name: str(number) for number, name in enumerate(datasets, start=1)}


def _ids_of_server(server: str, datasets: list[str]) -> dict[str, str]:
    """Ids as a tracking server tells them; none where it does not."""
    found = {}
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        for name in datasets:
            query = f"experiment_name={quote(f'semires/{name}', safe='')}"
            url = f"{server}/api/2.0/mlflow/experiments/get-by-name?{query}"
            with urllib.request.urlopen(url, timeout=WAIT_S) as answer:
                found[name] = str(json.load(answer)["experiment"]["experiment_id"])
    return found
