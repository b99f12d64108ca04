"""Runs while they train: live logs, killed processes, stores that fail."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.tracked import (
    KEY,
    PRINTS,
    ROOT,
    SILENT,
    history,
    only_run,
    sent,
    track,
    write_record,
)

from semires import tracking
from semires.config.schema import Params
from semires.errors import Interrupted, SemiresError
from semires.files import sha256_file
from semires.mlflow_store import Store
from semires.runs.key import RunKey
from semires.runs.record import RunRecord

pytestmark = pytest.mark.tracked


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
