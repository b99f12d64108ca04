"""What stages tell of their runs: names, tags, parameters and metrics of MLflow, as events.

Everything goes into a journal, which a process of its own sends; no failure of the tracking store
reaches a training.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semires.config.resolve import COLOURS, source_of
from semires.config.schema import Params
from semires.errors import SemiresError
from semires.files import fingerprint, read_json, sha256_file
from semires.process import git_commit
from semires.runs import layout
from semires.runs.key import RunKey, fraction_name
from semires.tracking.journal import Event, Journal, flatten, folder, numbers, try_lock

if TYPE_CHECKING:
    import pandas as pd

WAIT_S = 5.0  # how long a finished stage waits for its sender
MAX_VALUE = 5000  # characters of a parameter
SEARCHED = ("threshold", "pwa_", "lambda", "ema")


class TrackedRun:
    """What a stage tells of itself. Nothing happens in the store before the first log."""

    def __init__(self, start: Event, enabled: bool = True) -> None:
        self._start, self._enabled = start, enabled
        self._journal = Journal.new(str(start["key"]))
        self._sender: subprocess.Popen[bytes] | None = None
        self._alive = contextlib.ExitStack()

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        """Metrics of one step; what is not a finite number is left out."""
        self._write({"event": "metrics", "step": int(step), "values": numbers(values)})

    def log_artifact(self, path: str | Path) -> None:
        """A file to keep with the run; it must stay until the stage ends."""
        self._write({"event": "artifact", "path": str(Path(path).absolute())})

    def finish(self, metrics: Mapping[str, Mapping[str, float]], run_folder: Path) -> None:
        """The final metrics (of the best evaluation), the record and its panels."""
        for event in record_events(metrics, run_folder):
            self._write(event)

    def _write(self, event: Event) -> None:
        if not self._enabled:
            return
        try:
            if self._sender is None:
                self._alive.enter_context(try_lock(self._journal.alive_path, wait_s=5.0))
                self._journal.append(self._start)
                self._sender = _start_sender(self._journal)
            self._journal.append(event)
        except (OSError, SemiresError, ValueError) as error:
            self._enabled = False
            _warn(f"logs are no longer kept ({error})")

    def close(self, status: str, wait: bool = True) -> None:
        """Say how the run ended and give its sender time for the rest."""
        if self._sender is None:
            return
        self._write({"event": "end", "status": status})
        self._alive.close()
        if not wait:
            return
        code = 0
        with contextlib.suppress(subprocess.TimeoutExpired):  # then it goes on by itself
            code = self._sender.wait(WAIT_S)
        if code != 0:
            _warn(f"the store took not all of {self._start['name']}; the rest is kept beside it")


def _start_sender(journal: Journal) -> subprocess.Popen[bytes]:
    with open(folder() / "sender.log", "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "semires.tracking.sender", str(journal.path)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is the training's business
        )


def _warn(line: str) -> None:
    print(f"tracking: {line}; `semires track sync` sends it, runs/ has it", file=sys.stderr)


@contextlib.contextmanager
def track_run(
    cell: RunKey, params: Params, sections: Iterable[str], stage: str
) -> Iterator[TrackedRun]:
    """Track one training: the same unfinished run goes on under its key.

    Args:
        cell: gives name, experiment and tags.
        params: resolved parameters.
        sections: those that the stage depends on; they are logged and make up the key.
        stage: ``burn_in`` or ``mutual``.
    """
    run = TrackedRun(start_event(cell, _parameters(params, cell, sections), stage), _enabled())
    status = "FAILED"
    try:
        yield run
        status = "FINISHED"
    except (KeyboardInterrupt, SemiresError) as error:
        status = "KILLED" if getattr(error, "exit_code", 2) in (130, 143) else "FAILED"
        raise
    finally:
        run.close(status)


def log_study(cell: RunKey, params: Params, trials: pd.DataFrame, study_folder: Path) -> None:
    """A threshold search: the study a run, its trials nested; sent without waiting."""
    values = _parameters(params, cell, ("tune",))
    run = TrackedRun(start_event(cell, values, "tune"), _enabled())
    for event in study_events(trials.to_dict("records"), study_folder):
        run._write(event)
    run.close("FINISHED", wait=False)


def log_report(params: Params) -> None:
    """One run of the report, with the page, in the first data set's experiment."""
    dataset = params.study.datasets[0]
    start = {
        "event": "start",
        "key": fingerprint(["report", dataset, time.time_ns()]),
        "experiment": f"semires/{dataset}",
        "name": "report",
        "tags": {"stage": "report", "dataset": dataset, **origin()},
        "params": flatten({"study": params.model_dump()["study"]}),
    }
    run = TrackedRun(start, _enabled())
    metrics = layout.REPORTS / "metrics.json"
    if metrics.is_file():
        flat = {n.replace(".", "/"): v for n, v in flatten(_named(read_json(metrics))).items()}
        run.log_metrics(flat, 0)
    for name in ("index.html", "main.md"):
        if (layout.REPORTS / name).is_file():
            run.log_artifact(layout.REPORTS / name)
    run.close("FINISHED", wait=False)


def _named(tree: Any) -> Any:
    """Fractions such as 0.1 keep their dot when the names of the tree are joined by slashes."""
    if not isinstance(tree, dict):
        return tree
    return {str(name).replace(".", "_"): _named(value) for name, value in tree.items()}


def _enabled() -> bool:
    return os.environ.get("RANK", "0") == "0" and os.environ.get("SEMIRES_TRACKING") != "off"


def _parameters(params: Params, cell: RunKey, sections: Iterable[str]) -> dict[str, Any]:
    values = params.model_dump()
    chosen = {name: values[name] for name in sections}
    if cell.method in values["refine"]:
        chosen["refine"] = values["refine"][cell.method]
        chosen["proposals"] = {"source": source_of(params, cell)}
    return flatten(chosen)


def start_event(
    cell: RunKey,
    values: Mapping[str, Any],
    stage: str,
    made_by: Mapping[str, str] | None = None,
) -> Event:
    """The event that opens a cell's run: experiment, name, tags and flattened parameters.

    ``made_by``: tags that say where the run is from, instead of :func:`origin`'s.
    """
    return {
        "event": "start",
        "key": fingerprint([stage, cell.__dict__, dict(values)]),
        "experiment": f"semires/{cell.dataset}",
        "name": f"tune-{cell.name}" if stage == "tune" else cell.name,
        "tags": {
            "stage": stage,
            "dataset": cell.dataset,
            "fraction": fraction_name(cell.fraction),
            "method": cell.label,
            "seed": str(cell.seed),
            **({"mlflow.runColor": COLOURS[cell.method]} if cell.method in COLOURS else {}),
            **(origin() if made_by is None else made_by),
        },
        "params": {name: str(value)[:MAX_VALUE] for name, value in values.items()},
    }


def origin() -> dict[str, str]:
    """Tags that say which code and which DVC stage a run is of."""
    commit = git_commit() or ""
    found = {
        "semires.origin": here(),
        "git_commit": commit,
        "mlflow.source.git.commit": commit,
        "dvc_stage": os.environ.get("DVC_STAGE", ""),
        "dvc_exp": os.environ.get("DVC_EXP_NAME", ""),
    }
    return {name: value for name, value in found.items() if value}


def here() -> str:
    """This project on this machine: runs that it left RUNNING are its own to close."""
    return fingerprint([socket.gethostname(), str(layout.root().absolute())])[:16]


def record_events(metrics: Mapping[str, Any], run_folder: Path) -> Iterator[Event]:
    """A finished run's metrics of its best evaluation, the record's digest, and its files."""
    values = {f"best/{n.replace('.', '/', 1)}": v for n, v in flatten(metrics).items()}
    record = run_folder / "run.json"
    found = read_json(record) if record.is_file() else {}
    values["system/peak_rss_mb"] = found.get("peak_rss_mb")
    yield {"event": "metrics", "step": None, "values": numbers(values)}
    if found:
        tags = {"semires.record": sha256_file(record), "run_folder": str(run_folder)}
        prints = found.get("fingerprints", {})
        tags.update({f"fingerprint.{name}": str(value) for name, value in prints.items()})
        if "truncated_expressions" in found:
            tags["truncated_expressions"] = str(found["truncated_expressions"])
        yield {"event": "tags", "tags": tags}
    for name in ("run.json", "history.csv", "panels.npz"):
        if (run_folder / name).is_file():
            yield {"event": "artifact", "path": str((run_folder / name).absolute())}


def study_events(trials: list[dict[Any, Any]], study_folder: Path) -> Iterator[Event]:
    """A search's trials, its best value, the digest of its table, and its files."""
    for row in trials:
        named = {str(k).removeprefix("params_"): v for k, v in row.items()}
        searched = {k: str(v) for k, v in named.items() if k.startswith(SEARCHED)}
        rest = {k: v for k, v in named.items() if k not in ("number", *searched)}
        yield {
            "event": "trial",
            "number": int(row["number"]),
            "state": str(row["state"]),
            "params": searched,
            "values": numbers(rest),
        }
    best = max((float(r["value"]) for r in trials if r["value"] == r["value"]), default=None)
    if best is not None:
        yield {"event": "metrics", "step": None, "values": {"best/value": best}}
    table = study_folder / "trials.csv"
    if table.is_file():
        yield {"event": "tags", "tags": {"semires.record": sha256_file(table)}}
    for path in sorted(study_folder.glob("*")):
        if path.is_file():
            yield {"event": "artifact", "path": str(path.absolute())}
