"""What the tests of tracking share: a key, records as trainings write them, and short cuts."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from semires import tracking
from semires.config.schema import Params
from semires.mlflow_store import Store
from semires.runs.key import RunKey
from semires.runs.record import Provenance, RunRecord

ROOT = Path(__file__).parents[2]
KEY = RunKey("refscenes", 1.0, "cpi-u", 0)
PRINTS = {"params": "p" * 64, "data": "d" * 64, "split": "5" * 64, "proposals": "a" * 64}
SILENT = socket.create_server(("127.0.0.1", 0), backlog=50)  # accepts and never answers
STRANGE = "50%2Fa b?c#ü;d"  # a folder's name with characters that mean something in a URL


def track(params: Params, prints: dict[str, str] = PRINTS) -> Any:
    return tracking.track_run(KEY, params, ("mutual", "data"), prints)


def sent(run: tracking.TrackedRun) -> None:
    """Wait until a run's sender has ended."""
    assert run._sender is not None
    assert run._sender.wait(120) == 0


def only_run(status: str = "FINISHED") -> Any:
    found = Store().runs()
    assert [run.info.status for run in found] == [status]
    return found[0]


def history(run: Any, name: str = "val/oIoU") -> list[tuple[int, float]]:
    past = Store().client.get_metric_history(run.info.run_id, name)
    return [(metric.step, metric.value) for metric in past]


def write_record(key: RunKey = KEY, prints: dict[str, str] = PRINTS) -> None:
    """A run's folder, as a training writes it."""
    folder = key.folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "history.csv").write_text("step,val/oIoU,train/loss\n10,40,0.5\n20,50,\n")
    metrics = {"val": {"oIoU": 50.0, "P@0.5": 40.0}, "testA": {"oIoU": 45.0}}
    RunRecord(
        key=key,
        params={"mutual": {"lr": 0.001}, "refine": {"strategy": "cpi-u", "unlabelled": True}},
        metrics={**metrics, "val_shuffled": {"oIoU": 1.0}, "pseudo": {"better": 12.5}},
        best_step=20,
        fingerprints=prints,
        numerics={},
        n_refs_labelled=4,
        n_parameters=9,
        truncated_expressions=3,
        files={"model.safetensors": "e" * 64},
    ).write(folder)
    times = "2026-11-23T00:00:00+00:00", "2026-11-23T00:01:00+00:00"
    Provenance(*times, 60.0, 640.0, "Linux", "3.11.7", {}, "0123", "c" * 64).write(folder)


def write_study(rows: list[tuple[Any, ...]]) -> Path:
    folder = Path("tune/refscenes/1/cpi-u/seed0")
    folder.mkdir(parents=True, exist_ok=True)
    columns = ["number", "state", "value", "params_threshold_u", "oIoU"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "trials.csv", index=False)
    return folder


def semires(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "semires", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, text=True, env=environment, **pipes)
