"""The store: records replayed once, moved projects, credentials, links."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import parse_qs

import numpy as np
import pytest
from helpers.tracked import (
    KEY,
    STRANGE,
    history,
    only_run,
    semires,
    track,
    write_record,
    write_study,
)

from semires import mlflow_store, tracking
from semires.config.schema import Params
from semires.errors import SemiresError
from semires.mlflow_store import Store, StoredRun
from semires.runs.key import RunKey
from semires.runs.layout import sqlite_url
from semires.runs.record import flatten

pytestmark = pytest.mark.tracked


def test_sync_replays_records_once(project: Path):
    write_record()
    write_record(RunKey("refscenes", 1.0, "supervised", 0))
    assert "2 records, 2 of them new" in tracking.sync()
    first = {run.info.run_id: run.data.metrics for run in Store().runs()}
    assert "2 records, 0 of them new" in tracking.sync()
    assert {run.info.run_id: run.data.metrics for run in Store().runs()} == first
    run = next(r for r in Store().runs() if r.data.tags["method"] == "cpi-u")
    assert run.info.status == "FINISHED"
    assert run.info.end_time - run.info.start_time == 60_000
    assert run.data.tags["git_commit"] == "0123"
    assert run.data.params["mutual.lr"] == "0.001"
    assert history(run) == [(10, 40.0), (20, 50.0)]
    assert history(run, "train/loss") == [(10, 0.5)]


def test_sync_names_a_damaged_record(project: Path):
    write_record()
    (KEY.folder / "run.json").write_text('{"key": 3}')
    with pytest.raises(SemiresError, match=r"runs/refscenes/1/cpi-u/seed0/run\.json"):
        tracking.sync()


def test_runs_of_others_are_left_alone(project: Path):
    store = Store()
    experiment = store.create_experiment("refscenes")
    theirs = store.client.create_run(experiment, 0, {"semires.run": "b"})
    tracking.sync()
    assert store.client.get_run(theirs.info.run_id).info.status == "RUNNING"


def test_a_search_has_its_trials_nested(project: Path):
    folder = write_study([(0, "COMPLETE", 40.0, 0.7, 40.0), (1, "PRUNED", np.nan, 0.5, 41.0)])
    settings = {"objective": "labels", "on": "val", "sampler": "tpe", "trials": 2, "seed": 0}
    parts = {
        name: {
            "best": {"oIoU": best},
            "paper": {"oIoU": paper},
            "best_minus_paper": {"value": best - paper},
        }
        for name, best, paper in (("seen", 40.0, 39.0), ("held_out", 38.0, 38.5))
    }
    summary = {**settings, "values": {"threshold_u": 0.7}, **parts}
    (folder / "summary.json").write_text(json.dumps(summary))
    assert "1 records, 1 of them new" in tracking.sync()
    study = next(r for r in Store().runs() if r.info.run_name == "tune-cpi-u-1-seed0")
    assert study.data.metrics == {
        "best/value": 40.0, "best/threshold_u": 0.7, "seen/oIoU": 40.0, "seen/paper_oIoU": 39.0,
        "seen/gain": 1.0, "held_out/oIoU": 38.0, "held_out/paper_oIoU": 38.5, "held_out/gain": -0.5,
    }  # fmt: skip
    assert study.data.params == {
        "method": "cpi-u", "fraction": "1", "objective": "labels", "on": "val", "sampler": "tpe",
        "trials": "2", "seed": "0",
    }  # fmt: skip
    trials = [r for r in Store().runs() if "mlflow.parentRunId" in r.data.tags]
    assert {r.data.tags["mlflow.parentRunId"] for r in trials} == {study.info.run_id}
    assert {r.data.params["threshold_u"] for r in trials} == {"0.7", "0.5"}
    assert {r.data.tags["state"] for r in trials} == {"COMPLETE", "PRUNED"}
    assert "1 records, 0 of them new" in tracking.sync()
    (folder / "trials.csv").write_text("")
    with pytest.raises(SemiresError, match=r"trials\.csv: not a table"):
        tracking.sync()


def test_a_damaged_summary_of_a_search_is_named(project: Path):
    folder = write_study([(0, "COMPLETE", 40.0, 0.7, 40.0)])
    (folder / "summary.json").write_text('{"values": {}, "seen": 3}')
    with pytest.raises(SemiresError, match=r"seed0/summary\.json: no summary of a search"):
        tracking.sync()


def test_a_process_killed_among_trials_leaves_none_out_and_none_twice(project: Path):
    write_study([(number, "COMPLETE", float(number), 0.5, 1.0) for number in range(6)])
    (record,) = tracking._searches()
    run = StoredRun(Store(), record.start, 0)
    rows = mlflow_store.read_table(record.folder / "trials.csv")
    for row in rows[:3]:
        run._log_trial(row, 0)
    torn = {"mlflow.parentRunId": run.id, "stage": "trial"}
    run.client.create_run(run.run.info.experiment_id, 0, torn, "trial-0003")
    tracking.sync()
    study, *trials = sorted(Store().runs(), key=lambda r: r.info.run_name, reverse=True)
    assert (study.info.status, study.info.run_id) == ("FINISHED", run.id)
    assert sorted(r.info.run_name for r in trials) == [f"trial-{n:04d}" for n in range(6)]
    assert {r.data.metrics["value"] for r in trials} == set(range(6))


def test_a_report_is_logged_once(project: Path):
    Path("reports").mkdir()
    tree = {"refscenes": {"0.1": {"cpi-u": {"val": 40.5}}}}
    Path("reports/metrics.json").write_text(json.dumps(tree))
    Path("reports/main.md").write_text("| table |")
    Path("reports/cpi-u+sam.png").write_bytes(b"PNG")
    Path("reports/index.html").write_text('<img src="cpi-u%2Bsam.png" alt="x">')
    assert "1 of them new" in tracking.sync()
    assert "0 of them new" in tracking.sync()
    run = only_run()
    assert run.data.metrics == {"refscenes/0.1/cpi-u/val": 40.5}
    files = project / "mlartifacts" / run.info.run_id / "artifacts"
    assert (files / "main.md").is_file()
    page = '<img src="data:image/png;base64,UE5H" alt="x">'  # MLflow shows it without other files
    assert (files / "index.html").read_text() == page


def test_several_processes_create_a_store_in_a_folder_with_a_strange_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / STRANGE
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    Path("params.yaml").touch()
    write_record()
    processes = [semires("track", "sync") for _ in range(2)]
    said = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert sorted("1 of them new" in out for out, _ in said) == [False, True]
    assert all(error == "" for _, error in said)
    assert [path.name for path in tmp_path.iterdir()] == [STRANGE], "nothing beside the project"
    assert {path.name for path in folder.iterdir()} == {
        "mlflow.db", "mlartifacts", "params.yaml", "runs", ".work"
    }  # fmt: skip
    only_run()


def test_a_moved_project_keeps_its_files_and_leaves_the_old_place_alone(
    tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
):
    old, new = tmp_path / "old-place", tmp_path / "new-place"
    old.mkdir()
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(old)
    shutil.copyfile(empty_store, "mlflow.db")
    Path("params.yaml").touch()
    write_record()
    tracking.sync()
    monkeypatch.chdir(tmp_path)
    old.rename(new)
    monkeypatch.chdir(new)
    write_record(RunKey("refscenes", 1.0, "cpi-u", 1))
    assert "2 records, 1 of them new" in tracking.sync()
    assert not old.exists()
    runs = Store().runs()
    assert all((new / "mlartifacts" / r.info.run_id / "artifacts/run.json").is_file() for r in runs)
    assert {r.info.artifact_uri for r in runs} == {
        f"mlflow-artifacts:/{r.info.run_id}/artifacts" for r in runs
    }
    assert b"old-place" not in (new / "mlflow.db").read_bytes()


def test_a_folder_that_is_no_project_is_refused(project: Path, monkeypatch: pytest.MonkeyPatch):
    below, beside = project / "notebooks", project.parent / f"{project.name}-beside"
    for folder, wanted in ((below, str(project)), (beside, "not in a project")):
        folder.mkdir()
        monkeypatch.chdir(folder)
        process = semires("track", "sync")
        out, error = process.communicate(timeout=60)
        assert (process.returncode, out, error.count("\n")) == (2, "", 1)
        assert wanted in error
        assert not list(folder.iterdir())


SECRETS = [
    ("https://user:s3cr3t@mlflow.example.org", "https://***@mlflow.example.org"),
    ("https://user:s3cr3t/x@y@mlflow.example.org", "https://***@mlflow.example.org"),
    ("https://s3cr3t@mlflow.example.org", "https://***@mlflow.example.org"),
    ("postgresql://user:s3%2Fcr3t@host/db", "postgresql://***@host/db"),
    ("postgresql://host/db?user=me&password=s3cr3t", "postgresql://host/db?***"),
    ("http://user:s3cr3t@127.0.0.1:notaport", "http://***@127.0.0.1:notaport"),
    ("http://[s3cr3t", "http://[s3cr3t"),  # no credentials, only rubbish
]


@pytest.mark.parametrize(("address", "shown"), SECRETS)
def test_credentials_are_never_shown(address: str, shown: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "t0k3n")
    assert tracking.store_name() == shown
    if "***" in shown:
        said = mlflow_store.reason(ValueError(f"{address}\nrefused s3cr3t s3/cr3t t0k3n"))
        assert "\n" not in said
        assert address not in said
        assert "t0k3n" not in said
        assert address.partition("@")[0] not in said
    links = tracking.run_links([KEY])
    assert links == {}, "no server answers, so there are no links"


def test_links_find_their_runs_in_this_store(project: Path, monkeypatch: pytest.MonkeyPatch):
    other = RunKey("other", 5.0, "iom", 1)
    database = (project / "mlflow.db").rename(project / "away.db")
    assert tracking.run_links([KEY, other])[KEY].split("/")[5] == "2", "as sync will number them"
    assert not (project / "mlflow.db").exists(), "a link creates no store"
    database.rename(project / "mlflow.db")
    write_record()
    tracking.sync()
    link = tracking.run_links([KEY])[KEY]
    assert link.startswith(f"{tracking.UI}/#/experiments/1/runs?")
    experiment, _, query = link.partition("/#/experiments/")[2].partition("/runs?")
    wanted = parse_qs(query)["searchFilter"][0]
    (run,) = Store().client.search_runs([experiment], wanted)
    assert run.info.run_name == KEY.name


def test_only_rank_0_tracks(project: Path, params: Params, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RANK", "1")
    with track(params) as run:
        run.log_metrics({"val/oIoU": 1.0}, 10)
    assert not Path(".work").exists()


def test_names_and_numbers():
    values = {"P@0.5": 1, "a": float("inf"), "b": None, "c": "x"}
    assert mlflow_store.numbers(values) == {"prec_0.5": 1.0}
    assert flatten({"a": {"b": [1], "c": {}}, "d": None}) == {"a.b": [1], "d": None}


def test_names_of_all_metrics_are_valid_in_mlflow(tmp_path: Path):
    from mlflow.entities import Metric
    from mlflow.tracking import MlflowClient

    names = mlflow_store.numbers({"refscenes+/1/cpi-u+mask2former/val/P@0.5": 1.0, "a/b": 2.0})
    assert list(names) == ["refscenes_plus/1/cpi-u_plusmask2former/val/prec_0.5", "a/b"]
    client = MlflowClient(f"sqlite:///{tmp_path}/names.db")
    run = client.create_run(client.create_experiment("names")).info.run_id
    client.log_batch(run, [Metric(name, value, 0, 0) for name, value in names.items()])
    assert client.get_run(run).data.metrics == dict(names)


@pytest.mark.parametrize("name", [STRANGE, "plain", "a%20b", "a+b&c=d", "100%"])
def test_sqlite_urls_of_any_path(tmp_path: Path, name: str):
    import sqlalchemy

    (tmp_path / name).mkdir()
    path = tmp_path / name / "x.db"
    with sqlalchemy.create_engine(sqlite_url(path)).connect() as connection:
        connection.exec_driver_sql("CREATE TABLE t (x)")
    assert path.is_file()
    assert len(list(tmp_path.iterdir())) == 1


def test_no_stage_imports_mlflow():
    code = "import sys; from semires import tracking, cli; print('mlflow' in sys.modules)"
    environment = {**os.environ, "SEMIRES_TRACKING": "on"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.strip() == "False"
