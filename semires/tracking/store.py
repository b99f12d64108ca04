"""The tracking store: MLflow, which no other file imports.

Store: ``sqlite:///mlflow.db`` with artifacts in ``mlartifacts/`` at the project's root, unless
``MLFLOW_TRACKING_URI`` says otherwise.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from semires.runs import layout
from semires.tracking.journal import Event

EXPERIMENT = {  # tags that make the UI open on runs, and say what they are
    "mlflow.experimentKind": "custom_model_development",
    "mlflow.note.content": "Runs are named method-fraction-seed. Sort by `best/val/oIoU`, the "
    "overall IoU of the best evaluation; select two runs and Compare (docs/compare.md).",
}
FIRST = "val/oIoU"  # the UI's compare page opens with a run's first metric
PANEL_HEIGHT = 128


class Store:
    """A tracking store and what is to be written into it. Errors are MLflow's own."""

    def __init__(self) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        given = os.environ.get("MLFLOW_TRACKING_URI")
        root = layout.root().absolute()
        self.artifacts = None if given else (root / "mlartifacts").as_uri()
        self.uri = given or f"sqlite:///{root / 'mlflow.db'}"
        with _creation_lock(root):
            from mlflow import MlflowClient

            if self.artifacts is not None and not (root / "mlflow.db").exists():
                _create(root / "mlflow.db", self.artifacts)
            self.client: Any = MlflowClient(tracking_uri=self.uri)
            _flush_seldom(self.client)
            self.client.search_experiments(max_results=1)  # makes and migrates a new database

    def experiment(self, name: str) -> str:
        """Its id; it is made if need be, with our own place for artifacts."""
        found = self.client.get_experiment_by_name(name)
        if found is None:
            with _creation_lock(layout.root().absolute()):
                found = self.client.get_experiment_by_name(name)
                if found is None:
                    return str(self.client.create_experiment(name, self.artifacts, EXPERIMENT))
        return str(found.experiment_id)

    def runs(self, experiment: str, filter_string: str = "") -> list[Any]:
        """All runs that a filter leaves."""
        found: list[Any] = []
        token = None
        while True:
            page = self.client.search_runs(
                [experiment], filter_string, max_results=1000, page_token=token
            )
            found += page
            token = page.token
            if not token:
                return found

    def apply(self, events: list[Event], progress: dict[str, Any]) -> None:
        """Write events in order; ``progress`` holds the run's id and the last step."""
        from mlflow.entities import Metric

        metrics: list[Any] = []
        for event in events:
            kind = event["event"]
            if kind != "start" and "run_id" not in progress:
                continue  # the journal lost its beginning
            if kind == "metrics":
                step = event["step"]
                if step is not None and step <= progress.get("step", -1):
                    continue  # a resumed run repeats evaluations after its last saved state
                progress["step"] = max(progress.get("step", 0), step or 0)
                at = step or 0  # what has no step is one number for a run: the UI draws a bar
                when = event["time_ms"]
                values = sorted(event["values"].items(), key=lambda item: item[0] != FIRST)
                metrics += [Metric(k, v, when, at) for k, v in values]
                continue
            if kind != "start":
                self._flush(progress, metrics)
            getattr(self, f"_{kind}")(event, progress)
        self._flush(progress, metrics)

    def _flush(self, progress: dict[str, Any], metrics: list[Any]) -> None:
        for first in range(0, len(metrics), 1000):
            self.client.log_batch(progress["run_id"], metrics=metrics[first : first + 1000])
        metrics.clear()

    def _start(self, event: Event, progress: dict[str, Any]) -> None:
        from mlflow.entities import Param, RunTag

        experiment = self.experiment(event["experiment"])
        progress["experiment"] = experiment
        unfinished = [
            run
            for run in self.runs(experiment, f"tags.`semires.key` = '{event['key']}'")
            if run.info.status != "FINISHED"
        ]
        tags = {"semires.key": event["key"], **event["tags"]}
        if unfinished:
            progress["run_id"] = unfinished[0].info.run_id
            past = self.client.get_metric_history(progress["run_id"], "val/oIoU")
            progress["step"] = max((metric.step for metric in past), default=-1)
            self.client.update_run(progress["run_id"], status="RUNNING")
            batch = [RunTag(k, v) for k, v in tags.items()]
            self.client.log_batch(progress["run_id"], tags=batch)
            progress["trials"] = self._trials_of(experiment, progress["run_id"])
            return
        run = self.client.create_run(experiment, event["time_ms"], tags, event["name"])
        progress.update(run_id=run.info.run_id, step=-1)
        params = [Param(k, str(v)) for k, v in event["params"].items()]
        for first in range(0, len(params), 100):
            self.client.log_batch(progress["run_id"], params=params[first : first + 100])

    def _tags(self, event: Event, progress: dict[str, Any]) -> None:
        from mlflow.entities import RunTag

        batch = [RunTag(k, str(v)) for k, v in event["tags"].items()]
        self.client.log_batch(progress["run_id"], tags=batch)

    def _artifact(self, event: Event, progress: dict[str, Any]) -> None:
        path = Path(event["path"])
        if path.name == "panels.npz":
            for name, picture in _panels(path):
                self.client.log_image(progress["run_id"], picture, artifact_file=name)
        elif path.is_file():
            self.client.log_artifact(progress["run_id"], str(path))

    def _trials_of(self, experiment: str, run_id: str) -> list[str]:
        """Names of a study's trials that are whole; the one that a killed sender was at goes."""
        nested = self.runs(experiment, f"tags.`mlflow.parentRunId` = '{run_id}'")
        for run in nested:
            if run.info.status != "FINISHED":
                self.client.delete_run(run.info.run_id)
        return [run.info.run_name for run in nested if run.info.status == "FINISHED"]

    def _trial(self, event: Event, progress: dict[str, Any]) -> None:
        from mlflow.entities import Metric, Param

        when, name = event["time_ms"], f"trial-{event['number']:04d}"
        if name in progress.get("trials", ()):
            return
        tags = {
            "mlflow.parentRunId": progress["run_id"],
            "stage": "trial",
            "state": event["state"],
        }
        run = self.client.create_run(progress["experiment"], when, tags, name)
        self.client.log_batch(
            run.info.run_id,
            metrics=[Metric(k, v, when, 0) for k, v in event["values"].items()],
            params=[Param(k, v) for k, v in event["params"].items()],
        )
        self.client.set_terminated(run.info.run_id, "FINISHED", when)

    def _end(self, event: Event, progress: dict[str, Any]) -> None:
        self.client.set_terminated(progress["run_id"], event["status"], event["time_ms"])
        progress["ended"] = event["status"]


@contextlib.contextmanager
def _creation_lock(root: Path) -> Iterator[None]:
    """Databases and experiments made by several processes at once are never whole again."""
    from filelock import FileLock

    place = root / ".work" / "mlflow.lock"
    place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(place, timeout=120):
        yield


def _create(path: Path, artifacts: str) -> None:
    """Make an empty database elsewhere and put it in place whole: its migrations take seconds.

    Its write-ahead log lets the UI read while a sender writes, and spares most flushes to disk.
    """
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    temporary = path.parent / ".work" / f"{path.name}.{uuid.uuid4().hex[:8]}"
    store = SqlAlchemyStore(f"sqlite:///{temporary}", artifacts)
    store.engine.dispose()
    with contextlib.closing(sqlite3.connect(temporary)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
    for left in ("-wal", "-shm"):  # of a database that someone removed: not this one's
        path.with_name(path.name + left).unlink(missing_ok=True)
    os.replace(temporary, path)


def _flush_seldom(client: Any) -> None:
    """Where the store is an sqlite file, leave it to checkpoints to wait for the disk.

    A run takes half a dozen commits. A killed process loses none of them; a power failure may lose
    the last ones, which `semires track sync` brings back.
    """
    engine = getattr(client._tracking_client.store, "engine", None)
    if engine is None or engine.dialect.name != "sqlite":
        return
    import sqlalchemy.event

    def relax(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA synchronous=NORMAL")

    sqlalchemy.event.listen(engine, "connect", relax)
    engine.dispose()  # connections made before the listener


def _panels(path: Path) -> Iterator[tuple[str, Any]]:
    """Names and pictures, uint8 (H,W,3): every sample's image and masks side by side, captioned.

    They lie beside each other, not in a folder: the compare page shows no folders.
    """
    import numpy as np

    with np.load(path, allow_pickle=False) as panels:
        for row, image in enumerate(panels["image"]):
            strip = {"image": image}
            for name in ("truth", "pseudo", "refined", "prediction"):
                mask = panels[name][row][..., None]
                strip[name] = np.where(mask, image // 2 + 110, image // 3).astype(np.uint8)
            rule = "".join(c for c in str(panels["rule"][row]) if c.isalnum())
            yield f"panel-{row:02d}-{rule}.png", _captioned(strip)


def _captioned(pictures: dict[str, Any]) -> Any:
    """Pictures of one size in a row, each enlarged to be seen and under its name."""
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    parts, font = [], ImageFont.load_default(14)
    for name, picture in pictures.items():
        times = max(1, PANEL_HEIGHT // len(picture))
        large = np.pad(picture.repeat(times, 0).repeat(times, 1), ((20, 0), (0, 4), (0, 0)))
        drawn = Image.fromarray(large)
        ImageDraw.Draw(drawn).text((4, 2), name, (255, 255, 255), font)
        parts.append(np.asarray(drawn))
    return np.concatenate(parts, axis=1)
