"""Runs in MLflow: real stores, killed writers, stores that fail. No training is ever held up."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import numpy as np
import pandas as pd
import pytest

from semires import tracking
from semires.config.load import load_params
from semires.config.schema import Params
from semires.errors import Interrupted, SemiresError
from semires.runs.key import RunKey
from semires.tracking.journal import Journal, flatten, numbers
from semires.tracking.links import run_links
from semires.tracking.runs import start_event, study_events
from semires.tracking.sender import drain
from semires.tracking.store import Store

pytestmark = pytest.mark.tracked
ROOT = Path(__file__).parent.parent
CELL = RunKey("refscenes", 1.0, "cpi-u", 0)


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated database: making one takes seconds, copying it nothing."""
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        Store()
    return folder / "mlflow.db"


@pytest.fixture
def project(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copyfile(empty_store, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


@pytest.fixture(scope="module")
def params() -> Params:
    return load_params(ROOT / "experiments/demo.yaml")


def runs() -> list[Any]:
    store = Store()
    return [r for e in store.client.search_experiments() for r in store.runs(e.experiment_id)]


def sent() -> None:
    """Wait until the senders have done and are gone."""
    deadline = time.monotonic() + 60
    while tracking.pending() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert tracking.pending() == 0


def settled(status: str = "FINISHED") -> Any:
    """The only run, once its sender has closed it."""
    sent()
    found = runs()
    assert [run.info.status for run in found] == [status]
    return found[0]


def history(run: Any, name: str) -> list[tuple[int, float]]:
    past = Store().client.get_metric_history(run.info.run_id, name)
    return [(metric.step, metric.value) for metric in past]


def write_record(folder: Path, started: str = "2026-11-23T00:00:00+00:00") -> dict[str, Any]:
    folder.mkdir(parents=True)
    metrics = {"val": {"oIoU": 50.0, "P@0.5": 40.0}, "pseudo": {"better": 12.5}}
    record = {
        "cell": CELL.__dict__,
        "params": {"mutual": {"lr": 0.001}, "refine": {"strategy": "cpi-u"}},
        "metrics": metrics,
        "fingerprints": {"split": "abc"},
        "peak_rss_mb": 640.0,
        "truncated_expressions": 3,
        "environment": {"git_commit": "0123"},
        "started": started,
        "finished": "2026-11-23T00:01:00+00:00",
    }
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "history.csv").write_text("step,val/oIoU,train/loss\n10,40,0.5\n20,50,\n")
    return metrics


def test_a_run_arrives_whole(project: Path, params: Params):
    metrics = write_record(CELL.folder)
    masks = {n: np.ones((2, 8, 9), bool) for n in ("truth", "pseudo", "refined", "prediction")}
    np.savez(
        CELL.folder / "panels.npz",
        image=np.zeros((2, 8, 9, 3), np.uint8),
        rule=np.array(["best", "../worst"]),
        **masks,
    )
    with tracking.track_run(CELL, params, ("mutual", "data"), stage="mutual") as run:
        run.log_metrics({"train/lr": 0.1, "val/oIoU": 40.0, "train/loss": float("nan")}, 10)
        run.log_metrics({"val/oIoU": 50.0, "val/prec_0.5": 1.0}, 20)
        run.finish(metrics, CELL.folder)
    found = settled()
    experiment = Store().client.get_experiment(found.info.experiment_id)
    assert experiment.name == "semires/refscenes"
    assert experiment.artifact_location == (project / "mlartifacts").as_uri()
    assert found.info.run_name == "cpi-u-1-seed0"
    tags = found.data.tags
    wanted = {"stage": "mutual", "dataset": "refscenes", "fraction": "1", "method": "cpi-u"}
    assert {name: tags[name] for name in wanted} == wanted
    assert found.data.params["mutual.ema"] == str(params.mutual.ema)
    assert found.data.params["refine.threshold_u"] == "0.7"
    assert history(found, "val/oIoU") == [(10, 40.0), (20, 50.0)]
    assert "train/loss" not in found.data.metrics
    assert found.data.metrics["best/val/prec_0.5"] == 40.0
    assert found.data.metrics["best/pseudo/better"] == 12.5
    assert found.data.metrics["system/peak_rss_mb"] == 640.0
    files = {a.path for a in Store().client.list_artifacts(found.info.run_id) if not a.is_dir}
    assert files == {"history.csv", "run.json", "panel-00-best.png", "panel-01-worst.png"}
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    # What the compare page opens with is the first metric; burn-in and mutual call it the same.
    assert next(iter(found.data.metrics)) == "val/oIoU"


def test_nothing_is_tracked_without_a_log(project: Path, params: Params):
    with tracking.track_run(CELL, params, ("mutual",), stage="mutual"):
        pass
    assert tracking.pending() == 0
    assert runs() == []


WRITER = f"""
import os, sys
from semires import tracking
from semires.config.load import load_params
from semires.runs.key import RunKey
params = load_params({str(ROOT / "experiments/demo.yaml")!r})
cell = RunKey("refscenes", 1.0, "cpi-u", 0)
with tracking.track_run(cell, params, ("mutual",), stage="mutual") as run:
    run.log_metrics({{"val/oIoU": 1.0}}, 10)
    run.log_metrics({{"val/oIoU": 2.0}}, 20)
    os.kill(os.getpid(), {int(signal.SIGKILL)})
"""


def test_a_killed_run_is_closed_and_goes_on_as_the_same(project: Path, params: Params):
    done = subprocess.run([sys.executable, "-c", WRITER], check=False)
    assert done.returncode == -signal.SIGKILL
    killed = settled("KILLED")
    with tracking.track_run(CELL, params, ("mutual",), stage="mutual") as run:
        run.log_metrics({"val/oIoU": 2.0}, 20)  # repeated after the last saved state
        run.log_metrics({"val/oIoU": 3.0}, 30)
        run.finish(write_record(CELL.folder), CELL.folder)
    found = settled()
    assert found.info.run_id == killed.info.run_id
    assert history(found, "val/oIoU") == [(10, 1.0), (20, 2.0), (30, 3.0)]


def test_a_run_that_is_interrupted_says_so(project: Path, params: Params):
    def work() -> None:
        with tracking.track_run(CELL, params, ("mutual",), stage="mutual") as run:
            run.log_metrics({"val/oIoU": 1.0}, 10)
            raise Interrupted("state saved", 143)

    with pytest.raises(Interrupted):
        work()
    settled("KILLED")


def test_a_finished_run_is_not_written_into_again(project: Path, params: Params):
    for _ in range(2):
        with tracking.track_run(CELL, params, ("mutual",), stage="mutual") as run:
            run.log_metrics({"val/oIoU": 1.0}, 10)
    sent()
    keys = [run.data.tags["semires.key"] for run in runs()]
    assert len(keys) == 2
    assert len(set(keys)) == 1


def test_runs_are_told_apart_by_all_that_they_are_made_from():
    made = [(CELL, {"a": 1}, "mutual"), (CELL, {"a": 2}, "mutual"), (CELL, {"a": 1}, "tune")]
    made.append((RunKey("refscenes", 1.0, "cpi-u", 1), {"a": 1}, "mutual"))
    assert len({start_event(*each)["key"] for each in made}) == len(made)
    assert start_event(*made[0])["key"] == start_event(*made[0])["key"]


def unreachable(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")


def damaged(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "mlflow.db").write_bytes(b"no database" * 1000)


@pytest.mark.parametrize("trouble", [unreachable, damaged])
def test_a_store_that_fails_costs_nothing_and_gets_it_later(
    project: Path, params: Params, monkeypatch: pytest.MonkeyPatch, trouble: Any, empty_store: Path
):
    with monkeypatch.context() as patch:
        trouble(project, patch)
        with tracking.track_run(CELL, params, ("mutual",), stage="mutual") as run:
            run.log_metrics({"val/oIoU": 1.0}, 10)
            run.finish(write_record(CELL.folder), CELL.folder)
        with pytest.raises(SemiresError, match="tracking store cannot be used") as refused:
            tracking.sync()
        assert "\n" not in str(refused.value)
        assert tracking.pending() == 1
    shutil.copyfile(empty_store, project / "mlflow.db")
    assert ", 1 journals sent" in tracking.sync().replace(";", ",")
    assert settled().data.metrics["val/oIoU"] == 1.0


def test_a_locked_store_is_waited_for_by_the_sender_alone(project: Path, params: Params):
    lock = sqlite3.connect(project / "mlflow.db", isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    started = time.monotonic()
    with tracking.track_run(CELL, params, ("mutual",), stage="mutual") as run:
        run.log_metrics({"val/oIoU": 1.0}, 10)
        logged = time.monotonic() - started
    lock.execute("ROLLBACK")
    assert logged < 5
    tracking.sync()
    settled()


def test_a_read_only_folder_ends_no_run(
    project: Path, params: Params, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    (project / ".work").write_text("a file where the folder should be")
    with tracking.track_run(CELL, params, ("mutual",), stage="mutual") as run:
        run.log_metrics({"val/oIoU": 1.0}, 10)
        run.log_metrics({"val/oIoU": 2.0}, 20)
    warned = capsys.readouterr().err
    assert warned.count("\n") == 1
    assert "logs are no longer kept" in warned


def test_sync_replays_records_once(project: Path):
    write_record(CELL.folder)
    other = Path("runs/refscenes/1/supervised/seed0")
    write_record(other, started="2026-11-23T00:00:30+00:00")
    assert "2 records, 2 of them new" in tracking.sync()
    first = {run.info.run_id: run.data.metrics for run in runs()}
    assert "2 records, 0 of them new" in tracking.sync()
    assert {run.info.run_id: run.data.metrics for run in runs()} == first
    run = next(r for r in runs() if r.data.tags["run_folder"] == str(CELL.folder))
    assert run.info.status == "FINISHED"
    assert run.info.end_time - run.info.start_time == 60_000
    assert run.data.tags["git_commit"] == "0123"
    assert run.data.tags["truncated_expressions"] == "3"
    assert run.data.params == {"mutual.lr": "0.001", "refine.strategy": "cpi-u"}
    assert history(run, "val/oIoU") == [(10, 40.0), (20, 50.0)]
    assert history(run, "train/loss") == [(10, 0.5)]


def test_sync_names_a_damaged_record(project: Path):
    write_record(CELL.folder)
    (CELL.folder / "run.json").write_text('{"cell": 3}')
    with pytest.raises(SemiresError, match=r"runs/refscenes/1/cpi-u/seed0/run\.json"):
        tracking.sync()


def test_sync_closes_what_died_without_a_journal(project: Path, params: Params):
    store = Store()
    experiment = store.experiment("semires/refscenes")
    from semires.tracking.runs import here

    ours = store.client.create_run(experiment, 0, {"semires.key": "a", "semires.origin": here()})
    theirs = store.client.create_run(experiment, 0, {"semires.key": "b", "semires.origin": "x"})
    assert "1 dead runs closed" in tracking.sync()
    assert store.client.get_run(ours.info.run_id).info.status == "KILLED"
    assert store.client.get_run(theirs.info.run_id).info.status == "RUNNING"


def test_a_study_has_its_trials_nested(
    project: Path, params: Params, monkeypatch: pytest.MonkeyPatch
):
    folder = Path("tune/refscenes/1/cpi-u/seed0")
    folder.mkdir(parents=True)
    rows = [(0, "COMPLETE", 40.0, 0.7, 40.0), (1, "PRUNED", np.nan, 0.5, 41.0)]
    trials = pd.DataFrame(rows, columns=["number", "state", "value", "params_threshold_u", "oIoU"])
    trials.to_csv(folder / "trials.csv", index=False)
    tracking.log_study(CELL, params, trials, folder)
    sent()
    study = next(r for r in runs() if r.info.run_name == "tune-cpi-u-1-seed0")
    assert study.data.metrics == {"best/value": 40.0}
    nested = [r for r in runs() if r.data.tags.get("mlflow.parentRunId") == study.info.run_id]
    assert {r.data.params["threshold_u"] for r in nested} == {"0.7", "0.5"}
    assert {r.data.tags["state"] for r in nested} == {"COMPLETE", "PRUNED"}
    assert "1 records, 0 of them new" in tracking.sync()
    trials[:1].to_csv(folder / "trials.csv", index=False)
    monkeypatch.setattr("semires.tracking.runs.git_commit", lambda: "today's")
    assert "1 records, 1 of them new" in tracking.sync()
    (again,) = (r for r in runs() if r.data.tags.get("replayed") == "true")
    assert not {"git_commit", "mlflow.source.git.commit"} & set(again.data.tags)


def test_a_sender_killed_among_trials_leaves_none_out_and_none_twice(project: Path):
    rows = [{"number": n, "state": "COMPLETE", "value": float(n)} for n in range(6)]
    journal = Journal.new("c" * 40)
    journal.append(start_event(CELL, {}, "tune"))
    for event in study_events(rows, project):
        journal.append(event)
    journal.append({"event": "end", "status": "FINISHED"})
    events, _ = journal.read(0)
    store, progress = Store(), {}
    store.apply(events[:4], progress)  # start and three trials, and no word of it
    torn = {"mlflow.parentRunId": progress["run_id"], "stage": "trial"}
    store.client.create_run(progress["experiment"], 0, torn, "trial-0003")
    drain(Store())
    study, *trials = sorted(runs(), key=lambda run: run.info.run_name, reverse=True)
    assert study.info.status == "FINISHED"
    assert sorted(run.info.run_name for run in trials) == [f"trial-{n:04d}" for n in range(6)]
    assert {run.data.metrics["value"] for run in trials} == set(range(6))


def test_our_database_is_read_while_written_and_seldom_waits_for_the_disk(project: Path):
    (project / "mlflow.db").unlink()
    (project / "mlflow.db-wal").write_bytes(b"of a removed database" * 100)
    engine = Store().client._tracking_client.store.engine
    with engine.connect() as connection:
        modes = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "integrity_check")
        ]
    assert modes == ["wal", 1, "ok"]


def test_damaged_journals_lose_their_line_only(project: Path):
    journal = Journal.new("a" * 40)
    journal.append({"event": "metrics", "step": 1, "values": {}})
    with open(journal.path, "ab") as file:
        file.write(b"\xff\x00{]\n[1, 2]\n")
    journal.append({"event": "end", "status": "FINISHED"})
    with open(journal.path, "ab") as file:
        file.write(b'{"event": "torn')
    events, offset = journal.read(0)
    assert [event["event"] for event in events] == ["metrics", "end"]
    assert offset == journal.path.stat().st_size - len(b'{"event": "torn')
    journal.progress_path.write_text("no json")
    assert journal.progress() == {"offset": 0}


def test_a_journal_without_its_start_is_dropped(project: Path):
    Journal.new("b" * 40).append({"event": "metrics", "step": 1, "values": {"x": 1.0}})
    drain(Store())
    assert tracking.pending() == 0
    assert runs() == []


def test_links_find_their_runs_in_this_store(project: Path, monkeypatch: pytest.MonkeyPatch):
    other = RunKey("other", 5.0, "iom", 1)
    database = (project / "mlflow.db").rename(project / "away.db")
    assert run_links([CELL, other])[CELL].split("/")[5] == "2", "as sync will number them"
    database.rename(project / "mlflow.db")
    Store().experiment("semires/refscenes")
    links = run_links([CELL, other])
    assert set(links) == {CELL}, "no experiment, no link"
    experiment, _, query = links[CELL].partition("/#/experiments/")[2].partition("/runs?")
    wanted = parse_qs(query)["searchFilter"][0]
    write_record(CELL.folder)
    tracking.sync()
    (run,) = Store().runs(experiment, wanted)
    assert run.info.run_name == CELL.name
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert run_links([CELL]) == {}


def test_only_rank_0_tracks(project: Path, params: Params, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RANK", "1")
    with tracking.track_run(CELL, params, ("mutual",), stage="mutual") as run:
        run.log_metrics({"val/oIoU": 1.0}, 10)
    assert tracking.pending() == 0


def test_names_and_numbers():
    assert numbers({"P@0.5": 1, "a": float("inf"), "b": None, "c": "x"}) == {"prec_0.5": 1.0}
    assert flatten({"a": {"b": [1], "c": {}}, "d": None}) == {"a.b": [1], "d": None}


def test_no_stage_imports_mlflow():
    code = "import sys; from semires import tracking, cli; print('mlflow' in sys.modules)"
    environment = {**os.environ, "SEMIRES_TRACKING": "on"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.strip() == "False"
