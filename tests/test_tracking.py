"""Runs in MLflow: real stores, killed processes, stores that fail. No training is affected."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
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

from semires import mlflow_store, tracking
from semires.config.load import load_params
from semires.config.schema import Params
from semires.errors import Interrupted, SemiresError
from semires.files import sha256_file, sqlite_url
from semires.mlflow_store import Store, StoredRun
from semires.runs.key import RunKey
from semires.runs.record import Provenance, RunRecord, flatten

pytestmark = pytest.mark.tracked
ROOT = Path(__file__).parent.parent
KEY = RunKey("refscenes", 1.0, "cpi-u", 0)
PRINTS = {"params": "p" * 64, "data": "d" * 64, "split": "5" * 64, "proposals": "a" * 64}
SILENT = socket.create_server(("127.0.0.1", 0), backlog=50)  # accepts and never answers
STRANGE = "50%2Fa b?c#ü;d"  # a folder's name with characters that mean something in a URL


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated database: creating one takes seconds, copying it does not."""
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        Store()
    return folder / "mlflow.db"


@pytest.fixture
def project(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copyfile(empty_store, tmp_path / "mlflow.db")
    (tmp_path / "params.yaml").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


@pytest.fixture
def no_sender(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only `sync` writes to the store, in this process, which has imported mlflow already."""

    def ends_at_once(*_: Path) -> subprocess.Popen[str]:
        return subprocess.Popen(["true"], stdout=subprocess.PIPE, text=True)

    monkeypatch.setattr(tracking, "_start_sender", ends_at_once)


@pytest.fixture(scope="module")
def params() -> Params:
    return load_params(ROOT / "experiments/demo.yaml")


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
    Provenance(*times, 60.0, 640.0, "Linux", "0123", "c" * 64).write(folder)


def write_study(rows: list[tuple[Any, ...]]) -> Path:
    folder = Path("tune/refscenes/1/cpi-u/seed0")
    folder.mkdir(parents=True, exist_ok=True)
    columns = ["number", "state", "value", "params_threshold_u", "oIoU"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "trials.csv", index=False)
    return folder


def test_a_run_arrives_whole(project: Path, params: Params):
    with track(params) as run:
        run.log_metrics({"train/lr": 0.1, "val/oIoU": 40.0, "train/loss": float("nan")}, 10)
        run.log_metrics({"val/oIoU": 50.0, "val/prec_0.5": 1.0}, 20)
        write_record()
        masks = {n: np.ones((2, 8, 9), bool) for n in ("truth", "pseudo", "refined", "prediction")}
        images, rules = np.zeros((2, 8, 9, 3), np.uint8), np.array(["best", "../worst"])
        np.savez(KEY.folder / "panels.npz", image=images, rule=rules, **masks)
    sent(run)
    assert "1 records, 0 of them new; 0 killed" in tracking.sync(), "a run that was logged live"
    found = only_run()
    experiment = Store().client.get_experiment(found.info.experiment_id)
    assert experiment.name == "semires/refscenes"
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    assert found.info.run_name == "cpi-u-1-seed0"
    tags = found.data.tags
    wanted = {
        "stage": "mutual", "dataset": "refscenes", "fraction": "1", "method": "cpi-u",
        "semires.key": "runs/refscenes/1/cpi-u/seed0", "fingerprint.split": PRINTS["split"],
        "fingerprint.proposals": PRINTS["proposals"], "truncated_expressions": "3",
        "semires.record": sha256_file(KEY.folder / "run.json"),
        "checkpoint": "runs/refscenes/1/cpi-u/seed0/model.safetensors",
        "checkpoint.sha256": "e" * 64,
    }  # fmt: skip
    assert {name: tags[name] for name in wanted} == wanted
    assert found.data.params["mutual.ema"] == str(params.mutual.ema)
    assert found.data.params["refine.threshold_u"] == "0.7"
    assert history(found) == [(10, 40.0), (20, 50.0)]
    assert "train/loss" not in found.data.metrics
    numbers = {"best/val/prec_0.5": 40.0, "best/pseudo/better": 12.5, "system/peak_rss_mb": 640.0}
    assert {name: found.data.metrics[name] for name in numbers} == numbers
    assert next(iter(found.data.metrics)) == "val/oIoU", "the compare page opens with it"
    files = project / "mlartifacts" / found.info.run_id / "artifacts"
    names = {path.name for path in files.iterdir()}
    assert names == {"history.csv", "run.json", "panel-00-best.png", "panel-01-worst.png"}


def test_the_data_of_a_run_are_a_filter(project: Path):
    write_record()
    other = RunKey("refscenes", 1.0, "cpi-u", 1)
    write_record(other, {**PRINTS, "split": "6" * 64})
    tracking.sync()
    client = Store().client
    (experiment,) = client.search_experiments(filter_string="name = 'semires/refscenes'")
    same = f"dataset.digest = '{PRINTS['split'][:36]}'"
    (run,) = client.search_runs([experiment.experiment_id], same)
    assert run.data.tags["seed"] == "0"
    used = {i.dataset.name: i.tags[0].value for i in run.inputs.dataset_inputs}
    assert used == {
        "refscenes/labelled": "training", "refscenes/unlabelled": "training",
        "refscenes/val": "evaluation", "refscenes/testA": "evaluation",
    }  # fmt: skip


def test_nothing_is_tracked_without_a_log(project: Path, params: Params):
    with track(params):
        pass
    assert not Path(".work").exists()


WRITER = f"""
import os, sys
from semires import tracking
from semires.config.load import load_params
from semires.runs.key import RunKey
params = load_params({str(ROOT / "experiments/demo.yaml")!r})
key = RunKey("refscenes", 1.0, "cpi-u", 0)
with tracking.track_run(key, params, ("mutual", "data"), {PRINTS!r}) as run:
    run.log_metrics({{"val/oIoU": 1.0}}, 10)
    run.log_metrics({{"val/oIoU": 2.0}}, 20)
    os.kill(os.getpid(), {int(signal.SIGKILL)})
"""


def test_a_killed_run_is_closed_and_continued_as_the_same(
    project: Path, params: Params, no_sender: None
):
    done = subprocess.run([sys.executable, "-c", WRITER], check=False)
    assert done.returncode == -signal.SIGKILL
    tracking.sync()  # unless its sender closed it already
    killed = only_run("KILLED")
    with track(params) as run:
        run.log_metrics({"val/oIoU": 2.0}, 20)  # repeated after the last saved state
        run.log_metrics({"val/oIoU": 3.0}, 30)
        tracking.sync()
        assert only_run("RUNNING").info.run_id == killed.info.run_id
        write_record()
    tracking.sync()
    found = only_run()
    assert found.info.run_id == killed.info.run_id
    assert history(found) == [(10, 1.0), (20, 2.0), (30, 3.0)]


def test_an_interrupted_run_says_so(project: Path, params: Params, no_sender: None):
    def work() -> None:
        with track(params) as run:
            run.log_metrics({"val/oIoU": 1.0}, 10)
            raise Interrupted("state saved", 143)

    with pytest.raises(Interrupted):
        work()
    tracking.sync()
    only_run("KILLED")
    assert not list(Path(".work/tracking").glob("*.json"))


def test_a_damaged_log_is_dropped_and_its_run_closed(
    project: Path, params: Params, no_sender: None
):
    with track(params) as run:
        run.log_metrics({"val/oIoU": 1.0}, 10)
        tracking.sync()
        whole = run._path.read_bytes()
    for damaged in (whole[:100], b"", whole.replace(b"val/oIoU", b"val/oIoX"), b"\xff" + whole):
        run._path.write_bytes(damaged)
        tracking.sync()
        only_run("KILLED")
        assert not run._path.exists()


def test_a_complete_run_is_not_written_again(project: Path, params: Params, no_sender: None):
    for seconds in (1.0, 2.0):
        with track(params) as run:
            run.log_metrics({"val/oIoU": seconds}, 10)
            write_record()
            record = RunRecord.read(KEY.folder)
            record.numerics["threads"] = seconds  # another record of the same inputs
            record.write(KEY.folder)
        tracking.sync()
    first, second = Store().runs()
    assert first.info.run_id != second.info.run_id
    assert {run.data.tags["semires.run"] for run in (first, second)} == {run._path.stem}


def test_runs_of_other_inputs_are_other_runs(project: Path, params: Params, no_sender: None):
    for prints in (PRINTS, {**PRINTS, "data": "f" * 64}):
        with track(params, prints) as run:
            run.log_metrics({"val/oIoU": 1.0}, 10)
        tracking.sync()
    assert len(Store().runs()) == 2


def dead_store(project: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("MLFLOW_TRACKING_URI", "http://user:s3cr3t@127.0.0.1:9")


def hanging_store(project: Path, patch: pytest.MonkeyPatch) -> None:
    port = SILENT.getsockname()[1]
    patch.setenv("MLFLOW_TRACKING_URI", f"http://user:s3cr3t@127.0.0.1:{port}")
    patch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")


def damaged_store(project: Path, patch: pytest.MonkeyPatch) -> None:
    (project / "mlflow.db").write_bytes(b"no database" * 1000)


def unparsable_store(project: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("MLFLOW_TRACKING_URI", "http://user:s3cr3t@127.0.0.1:notaport")


@pytest.mark.parametrize("trouble", [dead_store, hanging_store, damaged_store, unparsable_store])
def test_a_store_that_fails_costs_nothing_and_gets_the_run_later(
    project: Path, params: Params, monkeypatch: pytest.MonkeyPatch, trouble: Any, empty_store: Path,
    capfd: Any,
):  # fmt: skip
    with monkeypatch.context() as patch:
        trouble(project, patch)
        waited = 0.0
        with track(params) as run:
            for step in (10, 20):
                began = time.monotonic()
                run.log_metrics({"val/oIoU": 30.0 + step}, step)
                waited += time.monotonic() - began
                assert run._sender is not None
                assert run._sender.wait(120) == 1, "the sender ends at the first error"
            write_record()
            began = time.monotonic()
        waited += time.monotonic() - began
        assert waited < 2
        warning = capfd.readouterr().err
        assert warning.count("\n") == 1
        assert "`semires track sync` adds it" in warning
        with pytest.raises(SemiresError, match=r"tracking store .* cannot be used") as refused:
            tracking.sync()
        assert "\n" not in str(refused.value)
        everything = warning + str(refused.value) + str(capfd.readouterr())
        everything += "".join(p.read_text() for p in project.rglob("*") if p.suffix == ".json")
        assert "s3cr3t" not in everything
    shutil.copyfile(empty_store, project / "mlflow.db")
    assert "1 records, 1 of them new" in tracking.sync()
    assert history(only_run()) == [(10, 40.0), (20, 50.0)]
    assert not list(Path(".work/tracking").glob("*.json"))


def test_a_locked_store_is_waited_for_by_the_sender_alone(project: Path, params: Params):
    lock = sqlite3.connect(project / "mlflow.db", isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    began = time.monotonic()
    with track(params) as run:
        run.log_metrics({"val/oIoU": 1.0}, 10)
        logged = time.monotonic() - began
        time.sleep(3)
        lock.execute("ROLLBACK")
        write_record()
    assert logged < 2
    sent(run)
    only_run()


def test_a_read_only_folder_ends_no_run(project: Path, params: Params, capsys: Any):
    (project / ".work").write_text("a file where the folder should be")
    with track(params) as run:
        run.log_metrics({"val/oIoU": 1.0}, 10)
        run.log_metrics({"val/oIoU": 2.0}, 20)
    assert capsys.readouterr().err.count("\n") == 1


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
    assert "1 records, 1 of them new" in tracking.sync()
    study = next(r for r in Store().runs() if r.info.run_name == "tune-cpi-u-1-seed0")
    assert study.data.metrics == {"best/value": 40.0}
    trials = [r for r in Store().runs() if "mlflow.parentRunId" in r.data.tags]
    assert {r.data.tags["mlflow.parentRunId"] for r in trials} == {study.info.run_id}
    assert {r.data.params["threshold_u"] for r in trials} == {"0.7", "0.5"}
    assert {r.data.tags["state"] for r in trials} == {"COMPLETE", "PRUNED"}
    assert "1 records, 0 of them new" in tracking.sync()
    (folder / "trials.csv").write_text("")
    with pytest.raises(SemiresError, match=r"trials\.csv: not a table"):
        tracking.sync()


def test_a_process_killed_among_trials_leaves_none_out_and_none_twice(project: Path):
    write_study([(number, "COMPLETE", float(number), 0.5, 1.0) for number in range(6)])
    (record,) = tracking._searches()
    run = StoredRun(Store(), record.start, 0)
    rows = mlflow_store.read_table(record.folder / "trials.csv")
    for row in rows[:3]:
        run._log_trial(f"trial-{row['number']:04d}", row, 0)
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
    assert "1 of them new" in tracking.sync()
    assert "0 of them new" in tracking.sync()
    run = only_run()
    assert run.data.metrics == {"refscenes/0.1/cpi-u/val": 40.5}
    assert (project / "mlartifacts" / run.info.run_id / "artifacts/main.md").is_file()


def semires(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "semires", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, text=True, env=environment, **pipes)


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
