"""Tracking with MLflow. A failing store never affects a training.

A training writes its evaluations to a file in ``.work/tracking`` and starts a separate process,
the sender (``python -m semires.tracking``). Senders and ``semires track sync`` bring the store up
to date with these files and the records of finished runs, so missed values are added later.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from semires import files, mlflow_store
from semires.config.resolve import COLOURS, source_of
from semires.config.schema import Params
from semires.errors import BusyError, CorruptCacheError, SemiresError
from semires.mlflow_store import Record, Rows, Start, Store, StoredRun, store_name
from semires.process import git_commit, lock
from semires.runs import layout
from semires.runs.key import SUPERVISED, RunKey, fraction_name
from semires.runs.record import RECORD, Provenance, RunRecord, flatten, run_folders

__all__ = ["run_links", "store_name", "sync", "sync_in_background", "track_run"]
UI = "http://127.0.0.1:5000"  # `make ui`
POLL_S = 0.5  # how often a sender looks for new evaluations
LOCK_S = 5.0  # how long a training waits for a check of its log by a sender


class TrackedRun:
    """The log of one training. No method raises an error or waits for the store."""

    def __init__(self, start: Start) -> None:
        self._start, self._rows = start, Rows()
        self._enabled, self._warned = _is_enabled(), False
        self._path = _folder() / f"{start.tags['semires.run']}.json"
        self._running = contextlib.ExitStack()
        self._sender: subprocess.Popen[str] | None = None

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log metrics of one step; values that are not finite numbers are left out."""
        self._rows.append((int(step), mlflow_store.numbers(values), int(time.time() * 1000)))
        self._write("RUNNING")

    def close(self, status: str) -> None:
        """Log how the run ended. The sender continues without this process."""
        if self._rows:
            self._write(status)
        self._running.close()

    def _write(self, status: str) -> None:
        if not self._enabled:
            return
        live = {"start": self._start._asdict(), "rows": self._rows, "status": status}
        try:
            if self._sender is None:
                held = lock(self._path.with_suffix(".lock"), "this log", LOCK_S)
                self._running.enter_context(held)
            files.write_json(self._path, live, seal=True)
            self._sender = self._sender or _start_sender(self._path)
        except (OSError, SemiresError) as error:
            self._enabled = False
            self._warn(str(error))
        if self._sender is not None and self._sender.poll() and self._sender.stdout is not None:
            self._warn(self._sender.stdout.read().strip() or "the sender was killed")

    def _warn(self, reason: str) -> None:
        if not self._warned:
            self._warned = True
            print(
                f"tracking: {reason}; the training continues, `semires track sync` adds it to the "
                "store later",
                file=sys.stderr,
            )


@contextlib.contextmanager
def track_run(
    key: RunKey, params: Params, sections: Iterable[str], fingerprints: Mapping[str, str]
) -> Iterator[TrackedRun]:
    """Track one training. Nothing is written before the first log.

    Args:
        key: gives name, experiment and tags.
        params: resolved parameters.
        sections: the sections that the result depends on.
        fingerprints: digests of the inputs, as in the run's record.
    """
    values = params.model_dump()
    chosen = {name: values[name] for name in sections}
    if key.method in values["refine"]:
        chosen["refine"] = values["refine"][key.method]
        chosen["proposals"] = {"source": source_of(params, key)}
    made = {"dvc_stage": os.environ.get("DVC_STAGE"), "dvc_exp": os.environ.get("DVC_EXP_NAME")}
    run = TrackedRun(_training(key, chosen, fingerprints, git_commit(), made))
    status = "FAILED"
    try:
        yield run
        status = "FINISHED"
    except (KeyboardInterrupt, SemiresError) as error:
        status = "KILLED" if getattr(error, "exit_code", 2) in (130, 143) else "FAILED"
        raise
    finally:
        run.close(status)


def sync_in_background() -> None:
    """Start a sender that adds missing records to the store, such as a new search or report."""
    if _is_enabled():
        with contextlib.suppress(OSError):
            _start_sender()


def sync() -> str:
    """Bring the store up to date; returns a summary in one line.

    A second call adds nothing. Runs of killed processes are closed as KILLED.

    Raises:
        SemiresError: the store cannot be used, or a record is damaged.
    """
    new = 0
    with mlflow_store.open_store() as store:
        records = [*_trainings(), *_searches(), *_reports()]
        closed = sum([_send_live(store, live) for live in sorted(_folder().glob("*.json"))])
        known = store.records()
        for record in (record for record in records if record.digest not in known):
            run = StoredRun(store, record.start, record.began)
            run.log_rows(_history(record))
            run.log_record(record)
            store.client.set_terminated(run.id, "FINISHED", record.ended)
            new += 1
    return f"{store_name()}: {len(records)} records, {new} of them new; {closed} killed runs closed"


def main(live: str | None = None) -> int:
    """The sender: sends the evaluations of a training until it ends, then calls :func:`sync`.

    Returns 1 after an error and prints the reason.
    """
    os.nice(19)
    try:
        sent = None
        while live is not None and _is_running(Path(live)):
            if Path(live).is_file() and sent != (changed := Path(live).stat().st_mtime_ns):
                with mlflow_store.open_store() as store:
                    _send_live(store, Path(live))
                sent = changed
            time.sleep(POLL_S)
        sync()
    except Exception as error:
        print(mlflow_store.reason(error), flush=True)
        return 1
    return 0


def _is_enabled() -> bool:
    return os.environ.get("SEMIRES_TRACKING") != "off" and os.environ.get("RANK", "0") == "0"


def _start_sender(*arguments: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "semires.tracking", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,  # the training handles Ctrl-C
    )


def _folder() -> Path:
    """The folder of the files of unfinished trainings; absolute, for the sender."""
    return (layout.root() / ".work" / "tracking").absolute()


def _is_running(live: Path) -> bool:
    """Whether a training holds its lock. A training that starts waits for the end of a check."""
    try:
        with lock(live.with_suffix(".lock"), "this log"):
            return False
    except BusyError:
        return True


def _send_live(store: Store, live: Path) -> bool:
    """Send the evaluations of a training; true if it was killed and is closed now."""
    running = _is_running(live)
    try:
        content = files.read_json(live)
    except CorruptCacheError:
        for run in store.incomplete(live.stem):
            store.client.set_terminated(run.info.run_id, "KILLED")
        live.unlink()
        return True
    run = StoredRun(store, Start(**content["start"]), content["rows"][0][2])
    run.log_rows(content["rows"])
    if running:
        return False
    status = "KILLED" if content["status"] == "RUNNING" else content["status"]
    store.client.set_terminated(run.id, status)
    live.unlink()
    return bool(content["status"] == "RUNNING")


def _training(
    key: RunKey,
    params: dict[str, Any],
    fingerprints: Mapping[str, str],
    commit: str | None,
    made: Mapping[str, str | None],
) -> Start:
    tags = _tags(key.folder, fingerprints, "burn_in" if key.method == SUPERVISED else "mutual", key)
    tags |= {f"fingerprint.{name}": value for name, value in fingerprints.items()}
    made = {**made, "git_commit": commit, "mlflow.source.git.commit": commit}
    tags |= {name: value for name, value in made.items() if value}
    return Start(key.dataset, key.name, tags, flatten(params))


def _tags(folder: Path, inputs: Any, stage: str, key: RunKey) -> dict[str, str]:
    return {
        "semires.key": folder.as_posix(),
        "semires.run": _identity(folder, inputs),
        "stage": stage,
        "dataset": key.dataset,
        "fraction": fraction_name(key.fraction),
        "method": key.label,
        "seed": str(key.seed),
        **({"mlflow.runColor": COLOURS[key.method]} if key.method in COLOURS else {}),
    }


def _identity(folder: Path, inputs: Any) -> str:
    """Digest of a run's folder, its inputs and this project; projects may share a store."""
    project = [socket.gethostname(), str(layout.root().absolute())]
    return files.fingerprint([folder.as_posix(), inputs, project])[:32]


def _trainings() -> Iterator[Record]:
    for folder in run_folders():
        record, made = RunRecord.read(folder), Provenance.read(folder)
        times = [_modified(folder / RECORD)] * 2
        if made is not None:
            dates = (datetime.fromisoformat(text) for text in (made.started, made.finished))
            times = [int(date.timestamp() * 1000) for date in dates]
        commit, replayed = made.git_commit if made else None, {"replayed": "true"}
        start = _training(record.key, record.params, record.fingerprints, commit, replayed)
        yield Record(start, files.sha256_file(folder / RECORD), folder, *times)


def _searches() -> Iterator[Record]:
    for table in sorted(Path("tune").glob("*/*/*/seed*/trials.csv")):
        key = RunKey.of_folder(table.parent)
        digest, ms = files.sha256_file(table), _modified(table)
        tags = _tags(table.parent, digest, "tune", key)
        settings = {"method": key.label, "fraction": tags["fraction"]}
        settings |= mlflow_store.search_summary(table.parent)[0]
        start = Start(key.dataset, f"tune-{key.name}", tags, settings)
        yield Record(start, digest, table.parent, ms, ms)


def _reports() -> Iterator[Record]:
    for path in sorted(layout.REPORTS.rglob("metrics.json")):
        if metrics := files.read_json(path):
            folder, digest, ms = path.parent, files.sha256_file(path), _modified(path)
            tags = {"semires.key": folder.as_posix(), "stage": "report"}
            tags["semires.run"] = _identity(folder, digest)
            yield Record(Start(min(metrics), "report", tags, {}), digest, folder, ms, ms)


def _history(record: Record) -> Rows:
    """The evaluations of a training, at times spread evenly over its duration."""
    path = record.folder / "history.csv"
    rows = mlflow_store.read_table(path) if path.is_file() else []
    share = (record.ended - record.began) / (len(rows) + 1)
    return [
        (int(row.pop("step")), mlflow_store.numbers(row), record.began + int(share * number))
        for number, row in enumerate(rows, start=1)
    ]


def _modified(path: Path) -> int:
    return int(path.stat().st_mtime * 1000)


def run_links(keys: Iterable[RunKey]) -> dict[RunKey, str]:
    """Addresses of runs in MLflow's UI: searches for the tag ``semires.key``.

    The ids of experiments come from the store. While it has none, the links use the ids
    that the first `semires track sync` will create. A server that does not answer gives no links.
    """
    keys = list(keys)
    datasets = sorted({key.dataset for key in keys})
    address, served = mlflow_store.address(), mlflow_store.is_served()
    server = re.sub(r"//.*@", "//", address).partition("?")[0].rstrip("/") if served else UI
    ids = {} if address else {name: str(number) for number, name in enumerate(datasets, 1)}
    if served or (not address and (layout.root() / "mlflow.db").is_file()):
        with contextlib.suppress(Exception), mlflow_store.quiet():
            store = Store()
            ids |= {name: found for name in datasets if (found := store.experiment(name))}
    return {
        key: f"{server}/#/experiments/{ids[key.dataset]}/runs?workflowType=machine_learning"
        f"&searchFilter={quote(f'tags.`semires.key` = {key.folder.as_posix()!r}', safe='')}"
        for key in keys
        if key.dataset in ids
    }


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
