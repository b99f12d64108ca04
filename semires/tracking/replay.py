"""`semires track sync`: what journals and run records hold and the store lacks, put there.

A record is known by the SHA-256 of its file, so that a second sync adds nothing. Stages that DVC
restored from its cache get their runs this way.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from semires.errors import CorruptCacheError, SemiresError
from semires.files import fingerprint, sha256_file
from semires.runs.key import RunKey
from semires.runs.record import RECORD, Provenance, RunRecord, run_folders
from semires.tracking.journal import Event, Journal, flatten, numbers
from semires.tracking.runs import here, record_events, start_event, study_events
from semires.tracking.sender import drain
from semires.tracking.store import Store

SENDER_S = 60.0  # how long a sender may still be at a journal


def sync() -> str:
    """Send journals, close runs that died, replay records; returns a line that says what.

    Raises:
        SemiresError: the store cannot be used, or a record is damaged.
    """
    try:
        store = Store()
        journals = drain(store, wait_s=SENDER_S)
        closed = close_dead(store)
        records = [*_run_records(), *_study_records()]
        known = known_records(store)
        new = [record for record in records if record[0] not in known]
        for _, events in new:
            store.apply(list(events), {})
    except SemiresError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise SemiresError(f"the tracking store cannot be used: {reason}") from error
    return (
        f"{store.uri}: {len(records)} records, {len(new)} of them new; {journals} journals sent, "
        f"{closed} dead runs closed"
    )


Record = tuple[str, Iterator[Event]]  # digest of its file, and what the store is to hold of it


def known_records(store: Store) -> set[str]:
    """Digests of the records that the store has."""
    experiments = store.client.search_experiments(filter_string="name LIKE 'semires/%'")
    runs = [run for e in experiments for run in store.runs(e.experiment_id)]
    return {str(run.data.tags["semires.record"]) for run in runs if _finished(run)}


def _finished(run: Any) -> bool:
    return run.info.status == "FINISHED" and "semires.record" in run.data.tags


def close_dead(store: Store) -> int:
    """Close runs of this project that are RUNNING though no process makes them."""
    closed = 0
    sending = [journal.key for journal in Journal.all()]  # a sender may end while the store answers
    for experiment in store.client.search_experiments(filter_string="name LIKE 'semires/%'"):
        wanted = f"attributes.status = 'RUNNING' and tags.`semires.origin` = '{here()}'"
        for run in store.runs(experiment.experiment_id, wanted):
            key = run.data.tags["semires.key"]
            if not key.startswith(tuple(sending)) and not Journal.all(key):
                store.client.set_terminated(run.info.run_id, "KILLED")
                closed += 1
    return closed


def _run_records() -> Iterator[Record]:
    for folder in run_folders():
        path = folder / RECORD
        yield sha256_file(path), _replay_run(path)


def _replay_run(path: Path) -> Iterator[Event]:
    record, made = RunRecord.read(path.parent), Provenance.read(path.parent)
    cell, metrics = record.key, record.metrics
    began = ended = int(path.stat().st_mtime * 1000)
    if made is not None:
        began, ended = _ms(made.started), _ms(made.finished)
    stage = "burn_in" if cell.method == "supervised" else "mutual"
    commit = (made.git_commit if made else None) or ""
    made_by = {"git_commit": commit, "mlflow.source.git.commit": commit, **_replayed()}
    start = start_event(cell, flatten(record.params), stage, made_by)
    start["key"] = fingerprint(["replay", sha256_file(path)])
    yield {**start, "time_ms": began}
    rows = list(_history(path.parent / "history.csv"))
    for number, row in enumerate(rows, start=1):
        at = began + (ended - began) * number // (len(rows) + 1)
        step = int(row.pop("step"))
        yield {"event": "metrics", "step": step, "values": row, "time_ms": at}
    for event in record_events(metrics, path.parent):
        yield {**event, "time_ms": ended}
    yield {"event": "end", "status": "FINISHED", "time_ms": ended}


def _replayed() -> dict[str, str]:
    """Tags of every replayed run; today's commit and DVC stage are not those that made it."""
    return {"semires.origin": here(), "replayed": "true"}


def _ms(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp() * 1000)


def _history(path: Path) -> Iterator[dict[str, float]]:
    """Rows of a history.csv, the empty cells left out."""
    if not path.is_file():
        return
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            yield numbers({name: _number(text) for name, text in row.items() if text})


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _study_records() -> Iterator[Record]:
    for path in sorted(Path("tune").glob("*/*/*/seed*/trials.csv")):
        yield sha256_file(path), _replay_study(path)


def _replay_study(path: Path) -> Iterator[Event]:
    _, dataset, fraction, label, seed = path.parent.parts
    method, _, source = label.partition("+")
    try:
        cell = RunKey(dataset, float(fraction), method, int(seed[4:]), source or None)
        with open(path, newline="", encoding="utf-8") as file:
            trials = [_trial(row) for row in csv.DictReader(file)]
    except (KeyError, ValueError) as error:
        raise CorruptCacheError(f"{path}: no table of trials ({error!r})") from error
    start = start_event(cell, {}, "tune", _replayed())
    start["key"] = fingerprint(["replay", sha256_file(path)])
    ended = int(path.stat().st_mtime * 1000)
    for event in (start, *study_events(trials, path.parent)):
        yield {**event, "time_ms": ended}
    yield {"event": "end", "status": "FINISHED", "time_ms": ended}


def _trial(row: dict[str, str]) -> dict[Any, Any]:
    values = {name: _number(text) for name, text in row.items() if name != "state"}
    return {**values, "number": int(row["number"]), "state": row["state"]}
