"""The MLflow store. No other module imports mlflow, and this one imports it when a store is opened.

The store is ``mlflow.db`` with files in ``mlartifacts/`` at the project's root, or the
store that ``MLFLOW_TRACKING_URI`` names.

Each run has three tags: ``semires.key`` is its folder, such as
``runs/D/F/M/seedS``; ``semires.run`` is a digest of its inputs and of this project, under which an
incomplete run is continued; ``semires.record`` is the SHA-256 of the ``run.json`` it shows.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import logging
import math
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

from semires.errors import CorruptCacheError, SemiresError
from semires.evaluation.panels import panel_pictures
from semires.files import atomic_path, read_json, write_bytes
from semires.process import lock
from semires.runs import layout
from semires.runs.record import RECORD, Provenance, RunRecord, flatten

ARTIFACTS = "mlflow-artifacts:/"  # resolved by the UI's server, so a project can be moved
TIMEOUT_S = 5  # of one request
LOCK_S = 600.0  # how long a process waits for others of this project to leave the store
FIRST = "val/oIoU"  # MLflow's compare page opens with the first metric of a run
SEARCH_SETTINGS = ("objective", "on", "sampler", "trials", "seed")
Rows = list[tuple[int, dict[str, float], int]]  # step, metrics, milliseconds since 1970


class Start(NamedTuple):
    """The data of a run that the store has from its start."""

    dataset: str
    name: str
    tags: dict[str, str]
    params: dict[str, Any]


class Record(NamedTuple):
    """A finished training, search or report in its folder. Times in milliseconds since 1970."""

    start: Start
    digest: str
    folder: Path
    began: int
    ended: int


@contextlib.contextmanager
def open_store() -> Iterator[Store]:
    """Lock the store for one process of this project: two would damage a new database.

    Raises:
        SemiresError: the store cannot be used.
    """
    path = layout.root() / ".work" / "tracking" / "store.lock"
    with lock(path, "changes to the MLflow store", LOCK_S), quiet():
        try:
            yield Store()
        except SemiresError:
            raise
        except Exception as error:
            text = f"the tracking store {store_name()} cannot be used: {reason(error)}"
            raise SemiresError(text) from error


class Store:
    """The tracking store. Its errors are those of MLflow and of the database."""

    def __init__(self) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(TIMEOUT_S))
        from mlflow import MlflowClient

        self.client: Any = MlflowClient(tracking_uri=address() or _own_database())

    def experiment(self, dataset: str) -> str | None:
        """The id of the experiment ``semires/<dataset>``, if it exists."""
        found = self.client.get_experiment_by_name(f"semires/{dataset}")
        return None if found is None else str(found.experiment_id)

    def create_experiment(self, dataset: str) -> str:
        """Create ``semires/<dataset>``, which the UI opens on the list of runs; returns its id."""
        place = None if is_served() else ARTIFACTS
        tags = {"mlflow.experimentKind": "custom_model_development"}
        return str(self.client.create_experiment(f"semires/{dataset}", place, tags))

    def runs(self, condition: str = "") -> list[Any]:
        """The MLflow runs of this package that meet a condition in MLflow's filter syntax."""
        experiments = self.client.search_experiments(filter_string="name LIKE 'semires/%'")
        ids = [experiment.experiment_id for experiment in experiments]
        return list(self.client.search_runs(ids, condition, max_results=50_000)) if ids else []

    def records(self) -> set[str]:
        """Digests of the records that the store has completely."""
        return {str(run.data.tags["semires.record"]) for run in self.runs() if _is_complete(run)}

    def incomplete(self, identity: str) -> list[Any]:
        """MLflow runs with this ``semires.run`` whose record is incomplete."""
        runs = self.runs(f"tags.`semires.run` = '{identity}'")
        return [run for run in runs if not _is_complete(run)]


def _is_complete(run: Any) -> bool:
    return run.info.status == "FINISHED" and "semires.record" in run.data.tags


class StoredRun:
    """One MLflow run, open for writing: the incomplete one of its start, or a new one."""

    def __init__(self, store: Store, start: Start, began_ms: int) -> None:
        from mlflow.entities import Param

        self.client, self.steps = store.client, set[int]()
        incomplete = store.incomplete(start.tags["semires.run"])
        if incomplete:
            self.run, self.id = incomplete[0], incomplete[0].info.run_id
            self.client.update_run(self.id, status="RUNNING")
            self.steps = {m.step for m in self.client.get_metric_history(self.id, FIRST)}
        else:
            experiment = store.experiment(start.dataset) or store.create_experiment(start.dataset)
            self.run = self.client.create_run(experiment, began_ms, start.tags, start.name)
            self.id = self.run.info.run_id
        if not self.run.data.params:
            params = [Param(name, str(value)[:5000]) for name, value in start.params.items()]
            for first in range(0, len(params), 100):
                self.client.log_batch(self.id, params=params[first : first + 100])

    def log_rows(self, rows: Rows) -> None:
        """Log metrics of the steps that the store does not have."""
        from mlflow.entities import Metric

        metrics = [
            Metric(name, value, ms, step)
            for step, values, ms in rows
            if step not in self.steps
            for name, value in sorted(values.items(), key=lambda item: item[0] != FIRST)
        ]
        for first in range(0, len(metrics), 1000):
            self.client.log_batch(self.id, metrics[first : first + 1000])

    def log_record(self, record: Record) -> None:
        """Log the results, digests and files of a finished training, search or report."""
        stage = record.start.tags["stage"]
        log = {"tune": self._log_search, "report": self._log_report}.get(stage, self._log_training)
        log(record.folder, record.ended)
        self._log_summary({}, {"semires.record": record.digest}, record.ended)

    def _log_summary(self, values: Mapping[str, Any], tags: dict[str, str], ms: int) -> None:
        """Numbers of the whole run go to step 0: the UI draws bars of them."""
        from mlflow.entities import Metric, RunTag

        known = self.run.data.metrics
        new = {k: v for k, v in numbers(values).items() if known.get(k) != v}
        metrics = [Metric(name, value, ms, 0) for name, value in new.items()]
        self.client.log_batch(self.id, metrics, tags=[RunTag(*item) for item in tags.items()])

    def _log_training(self, folder: Path, ms: int) -> None:
        record, made = RunRecord.read(folder), Provenance.read(folder)
        self.client.log_inputs(self.id, _datasets(record))
        self._log_files(folder, RECORD, "history.csv")
        if (folder / "panels.npz").is_file():
            for name, picture in panel_pictures(folder / "panels.npz"):
                self._log_file(name, picture)
        values = {f"best/{n.replace('.', '/', 1)}": v for n, v in flatten(record.metrics).items()}
        values["system/peak_rss_mb"] = made and made.peak_rss_mb
        tags = {
            "truncated_expressions": str(record.truncated_expressions),
            "checkpoint": (record.key.folder / "model.safetensors").as_posix(),
            "checkpoint.sha256": record.files.get("model.safetensors", ""),
        }
        self._log_summary(values, tags, ms)

    def _log_search(self, folder: Path, ms: int) -> None:
        trials = read_table(folder / "trials.csv")
        experiment = self.run.info.experiment_id
        nested = f"tags.`mlflow.parentRunId` = '{self.id}'"  # of a process that was killed here
        for trial in self.client.search_runs([experiment], nested, max_results=50_000):
            self.client.delete_run(trial.info.run_id)
        for row in trials:
            self._log_trial(row, ms)
        files = sorted(path.name for path in folder.iterdir() if path.suffix != ".npz")
        self._log_files(folder, *files)
        values = [value for row in trials if math.isfinite(value := float(row["value"]))]
        best = {"best/value": max(values, default=None)}
        self._log_summary({**best, **search_summary(folder)[1]}, {}, ms)

    def _log_trial(self, row: dict[str, Any], ms: int) -> None:
        from mlflow.entities import Metric, Param

        name = f"trial-{int(row['number']):04d}"
        tags = {"mlflow.parentRunId": self.id, "stage": "trial", "state": str(row["state"])}
        trial = self.client.create_run(self.run.info.experiment_id, ms, tags, name).info.run_id
        searched = {name for name in row if name.startswith("params_")}
        params = [Param(name.removeprefix("params_"), str(row[name])) for name in sorted(searched)]
        values = {name: row[name] for name in row if name not in searched | {"number"}}
        metrics = [Metric(name, value, ms, 0) for name, value in numbers(values).items()]
        self.client.log_batch(trial, metrics, params)
        self.client.set_terminated(trial, "FINISHED", ms)

    def _log_report(self, folder: Path, ms: int) -> None:
        self._log_files(folder, "main.md")
        if (page := folder / "index.html").is_file():
            self._log_file(page.name, with_pictures(page).encode())
        tree = flatten(read_json(folder / "metrics.json"), "/")
        self._log_summary(tree, {}, ms)

    def _log_files(self, folder: Path, *names: str) -> None:
        for name in names:
            if (folder / name).is_file():
                self._log_file(name, (folder / name).read_bytes())

    def _log_file(self, name: str, data: bytes) -> None:
        """A file of the run: into ``mlartifacts/``, or to the server."""
        if not is_served():
            write_bytes(layout.root() / "mlartifacts" / self.id / "artifacts" / name, data)
            return
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / name).write_bytes(data)
            self.client.log_artifact(self.id, str(Path(folder) / name))


def _datasets(record: RunRecord) -> list[Any]:
    """What a run was trained and evaluated on.

    The digests are the first 36 characters of this project's own: of the split's file for the
    labelled and the unlabelled part, of the prepared tables for the evaluation splits.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    key, digests = record.key, record.fingerprints
    split = layout.split_file(key.dataset, key.fraction), digests["split"], "training"
    tables = layout.prepared(key.dataset), digests["data"], "evaluation"
    parts = {name: tables for name in record.metrics if name != "pseudo" and "_" not in name}
    parts["labelled"] = split
    if record.params.get("refine", {}).get("unlabelled"):
        parts["unlabelled"] = split
    return [
        DatasetInput(
            Dataset(f"{key.dataset}/{name}", digest[:36], "local", json.dumps({"uri": str(place)})),
            [InputTag("mlflow.data.context", context)],
        )
        for name, (place, digest, context) in parts.items()
    ]


def search_summary(folder: Path) -> tuple[dict[str, Any], dict[str, float]]:
    """The settings of a search, and its results; both are empty for a search without a summary.

    The results are the best values, and the labels' oIoU and gain on seen and unseen labels.

    Raises:
        CorruptCacheError: the summary is damaged.
    """
    path = folder / "summary.json"
    if not path.is_file():
        return {}, {}
    summary = read_json(path)
    try:
        found = {f"best/{name}": value for name, value in summary["values"].items()}
        for part in ("seen", "held_out"):
            found[f"{part}/oIoU"] = summary[part]["best"]["oIoU"]
            found[f"{part}/paper_oIoU"] = summary[part]["paper"]["oIoU"]
            found[f"{part}/gain"] = summary[part]["best_minus_paper"]["value"]
        return {name: summary[name] for name in SEARCH_SETTINGS if name in summary}, found
    except (KeyError, TypeError, AttributeError) as error:
        raise CorruptCacheError(f"{path}: no summary of a search") from error


def with_pictures(page: Path) -> str:
    """A page with the PNG files beside it in its text: MLflow shows a page without other files."""

    def embedded(found: re.Match[str]) -> str:
        picture = page.parent / unquote(found[1])
        data = base64.b64encode(picture.read_bytes()).decode() if picture.is_file() else ""
        return f'src="data:image/png;base64,{data}"'

    return re.sub('src="([^":]+[.]png)"', embedded, page.read_text(encoding="utf-8"))


def _own_database() -> str:
    """The URL of ``mlflow.db``, created atomically: a half-migrated database is unusable."""
    path = layout.root() / "mlflow.db"
    if not path.exists():
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        with atomic_path(path) as temporary:
            SqlAlchemyStore(_url(temporary), ARTIFACTS).engine.dispose()
    return _url(path)


def _url(path: Path) -> str:
    """With a driver in the URL, MLflow does not create the folder that the quoted path names."""
    # Absolute: MLflow keeps one engine per URL, and its connections outlive a change of folder.
    return layout.sqlite_url(path.absolute()).replace("sqlite:", "sqlite+pysqlite:", 1)


def address() -> str:
    """``MLFLOW_TRACKING_URI``, with its credentials; empty if the store is ``mlflow.db``."""
    return os.environ.get("MLFLOW_TRACKING_URI", "").strip()


def is_served() -> bool:
    """Whether the store is behind a server, which then also stores the files."""
    return address().startswith("http")


def store_name() -> str:
    """The store's name in messages: ``mlflow.db``, or the address without its credentials."""
    return re.sub(r"\?.*", "?***", re.sub(r"//.*@", "//***@", address())) or "mlflow.db"


def reason(error: BaseException) -> str:
    """An error and its first cause in one line, without the credentials of the store."""
    cause = error
    while not isinstance(error, SemiresError) and (earlier := cause.__cause__ or cause.__context__):
        cause = earlier
    if cause is error:
        return _without_credentials(error)[:300]
    first = f"{type(cause).__name__}: {_without_credentials(cause)[:200]}"
    return f"{_without_credentials(error)[:100]}… ({first})"


def _without_credentials(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    secrets = re.findall(r"//(.*)@", address()) + re.findall(r"\?(.+)", address())
    secrets += [secret.partition(":")[2] for secret in secrets]
    secrets += [unquote(secret) for secret in secrets]
    secrets += [os.environ.get(f"MLFLOW_TRACKING_{name}", "") for name in ("PASSWORD", "TOKEN")]
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence MLflow, which prints addresses with their credentials."""
    out, before = io.StringIO(), logging.root.manager.disable
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(before)


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers, under names that MLflow accepts (``prec_0.5``, ``refscenes_plus``)."""
    return {
        name.replace("P@", "prec_").replace("+", "_plus"): float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }


def read_table(path: Path) -> list[dict[str, Any]]:
    """The rows of a CSV file.

    Raises:
        CorruptCacheError: it is not a table.
    """
    import pandas as pd

    try:
        return [{str(k): v for k, v in row.items()} for row in pd.read_csv(path).to_dict("records")]
    except ValueError as error:
        raise CorruptCacheError(f"{path}: not a table ({error})") from error
