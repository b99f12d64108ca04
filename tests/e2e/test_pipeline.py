"""A whole small study through DVC: it ends, repeats nothing, and knows what a change touches."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from helpers import dvc_study

from semires.training.state import load_state

pytestmark = [pytest.mark.e2e, pytest.mark.tracked, pytest.mark.timeout(900)]


BURN_IN = "burn_in@refscenes-10-0"
RUN = "runs/refscenes/10"
VARYING = ("provenance.json", "run.json")  # run.json has the digest of history.csv, with its times


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made = dvc_study.Study(tmp_path_factory.mktemp("study"))
    made.stages = made.repro()
    made.run("semires", "track", "sync")  # waits for senders that are still at work
    made.commit()
    made.tracked = False  # what the tests make again
    return made


def read(study: Any, path: str) -> Any:
    return json.loads((study.folder / path).read_text())


def digests(folder: Path) -> dict[str, str]:
    """Digests of a folder's files, without what differs between equal runs."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in VARYING):
        content = path.read_bytes()
        if path.name == "history.csv":
            table = pd.read_csv(path)
            timed = [name for name in table if name.startswith("time/")]
            content = table.drop(columns=timed).to_csv().encode()
        found[str(path.relative_to(folder))] = hashlib.sha256(content).hexdigest()
    return found


def test_the_study_ends_with_its_tables(study: Any):
    assert study.stages[0] == "generate@refscenes"
    assert study.stages[-1] == "report@reports"
    assert {BURN_IN, "mutual@refscenes-10-cpi-u-0", "tune@refscenes-10-cpi-u-0"} < set(study.stages)
    for method in ("supervised", "baseline", "cpi-u"):
        metrics = read(study, f"{RUN}/{method}/seed0/metrics.json")
        assert set(metrics) - {"pseudo", "val_shuffled"} == {"val", "testA", "testB"}
        assert all(0 <= metrics[split]["oIoU"] <= 100 for split in ("val", "testA", "testB"))
        record = read(study, f"{RUN}/{method}/seed0/run.json")
        assert record["metrics"] == metrics
        assert record["key"]["method"] == method
    table = (study.folder / "reports/main.md").read_text()
    assert "CPI-U" in table
    assert "<html" in (study.folder / "reports/index.html").read_text()


def test_nothing_runs_again(study: Any):
    assert study.repro() == []
    assert study.changed_stages() == set()


def test_how_it_runs_is_no_reason_to_run_again(study: Any):
    study.params["runtime"]["workers"] = 1
    study.write_params()
    assert study.changed_stages() == set()
    study.params["runtime"]["workers"] = 0
    study.write_params()


def test_a_changed_threshold_touches_its_runs_only(study: Any):
    study.params["refine"]["cpi-u"]["threshold_u"] = 0.65
    study.write_params()
    assert study.changed_stages() == {"mutual@refscenes-10-cpi-u-0", "tune@refscenes-10-cpi-u-0"}
    study.params["refine"]["cpi-u"]["threshold_u"] = 0.7
    study.params["refine"]["iom"]["threshold"] = 0.65  # no run uses it
    study.write_params()
    assert study.changed_stages() == set()
    study.params["refine"]["iom"]["threshold"] = 0.5
    study.params["mutual"]["ema"] = 0.9
    study.write_params()
    assert study.changed_stages() == {
        "mutual@refscenes-10-baseline-0", "mutual@refscenes-10-cpi-u-0",
        "tune@refscenes-10-cpi-u-0",
    }  # fmt: skip
    study.run("git", "checkout", "--quiet", "params.yaml")
    study.params["mutual"]["ema"] = dvc_study.read_yaml(study.folder / "params.yaml")["mutual"][
        "ema"
    ]


def test_dvc_shows_metrics_and_curves(study: Any):
    shown = json.loads(study.run("dvc", "metrics", "show", "--json"))
    table = shown[""]["data"]["reports/metrics.json"]["data"]["refscenes"]["10"]
    assert set(table) >= {"supervised", "baseline", "cpi-u"}
    expected = read(study, f"{RUN}/cpi-u/seed0/metrics.json")["val"]["oIoU"]
    assert table["cpi-u"]["val"] == pytest.approx(expected, abs=0.005)
    plots = json.loads(study.run("dvc", "plots", "show", "--json"))
    values = plots["data"]["reports/curves.csv"][0]["content"]["data"]["values"]
    assert {row["method"] for row in values} == {"supervised", "baseline", "cpi-u"}
    assert plots.get("errors", []) == []


def test_every_run_is_in_mlflow(study: Any):
    wanted = {"supervised-10-seed0", "baseline-10-seed0", "cpi-u-10-seed0", "report"}
    wanted.add("tune-cpi-u-10-seed0")
    with sqlite3.connect(study.folder / "mlflow.db") as store:
        rows = store.execute("SELECT run_uuid, name, status FROM runs").fetchall()
        tags = store.execute("SELECT run_uuid, key, value FROM tags").fetchall()
    by_name = {name: uuid for uuid, name, _ in rows}
    assert wanted <= set(by_name)
    assert {status for _, _, status in rows} == {"FINISHED"}
    mine = {key: value for uuid, key, value in tags if uuid == by_name["cpi-u-10-seed0"]}
    assert mine["dvc_stage"] == "mutual@refscenes-10-cpi-u-0"
    assert (mine["dataset"], mine["fraction"], mine["seed"]) == ("refscenes", "10", "0")
    assert sum(name.startswith("trial-") for _, name, _ in rows) == 8
    said = study.run("semires", "track", "sync")
    assert "0 of them new" in said


def test_verify_finds_the_committed_tables(study: Any):
    study.run("semires", "verify")
    said = study.run("semires", "summary")
    assert "CPI-U" in said
    assert study.run("git", "status", "--porcelain") == ""
    words = r"All 3 runs and \d\d reports equal the committed ones, byte for byte; `git status` is"
    assert re.search(words, said)


def test_a_clone_with_a_warm_cache_runs_no_stage(study: Any, tmp_path: Path):
    """Every stage ran with an empty cache in the study; its cache gives a clone the same bytes."""
    clone = copy.copy(study)
    clone.folder = tmp_path / "clone"
    study.run("git", "clone", "--quiet", str(study.folder), str(clone.folder))
    clone.run("dvc", "cache", "dir", "--local", str(study.folder / ".dvc/cache"))
    assert clone.repro() == []
    assert clone.run("git", "status", "--porcelain") == ""
    assert digests(clone.folder / RUN) == digests(study.folder / RUN)


def test_a_missing_checkpoint_is_one_line(study: Any):
    weights = study.folder / RUN / "supervised/seed0/model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(content[:1000])
    command = ["semires", "mutual", "--dataset", "refscenes", "--fraction", "10"]
    done = subprocess.run(
        [*command, "--method", "baseline"], cwd=study.folder, env=study.environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    study.run("dvc", "checkout", "--force", "--quiet", BURN_IN)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "model.safetensors" in done.stderr.splitlines()[-1]
    assert weights.read_bytes() == content


def test_a_killed_repro_goes_on_where_it_was(study: Any):
    """SIGKILL of dvc in mid-training: its stage saves and ends too, and the next repro resumes."""
    stage, folder = "mutual@refscenes-10-baseline-0", study.folder / RUN / "baseline/seed0"
    before = digests(folder)
    command = ["dvc", "repro", "--force", "--single-item", stage]
    log = study.folder / ".work/killed.log"
    with open(log, "wb") as out:
        dvc = subprocess.Popen(
            command, cwd=study.folder, env=study.environment, stdout=out, stderr=out
        )
    state = wait_for(lambda: list((study.folder / ".work").glob("runs-*baseline*/last.pt")))
    dvc.kill()
    dvc.wait(30)
    wait_for(lambda: not processes_in(study.folder, "semires mutual"))
    assert state[0].is_file(), log.read_text()
    said = study.run("dvc", "repro", "--force", "--single-item", stage)
    assert "resuming from step" in said
    assert digests(folder) == before


def wait_for(found: Any, seconds: float = 120) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if result := found():
            return result
        time.sleep(0.01)
    raise AssertionError("it did not happen in time")


def processes_in(folder: Path, text: str) -> list[int]:
    """Live processes that work in ``folder`` and whose command line holds ``text``."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            line = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            inside = os.readlink(place / "cwd") == str(folder)
        except OSError:
            continue
        if inside and text in line:
            found.append(int(place.name))
    return found


def test_two_repros_at_once_make_the_same_bytes(study: Any):
    """The second one waits for the first, or is refused in a line of DVC's or of ours."""
    before = digests(study.folder / RUN / "supervised/seed0")
    line = ["dvc", "repro", "--force", "--single-item", BURN_IN]
    both = [
        subprocess.Popen(line, cwd=study.folder, env=study.environment, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for _ in range(2)
    ]  # fmt: skip
    said = [each.communicate(timeout=300)[0] for each in both]
    assert 0 in [each.returncode for each in both], said
    for each, text in zip(both, said, strict=True):
        assert "Traceback" not in text
        assert each.returncode == 0 or re.search(r"is busy|another process|Unable to acquire", text)
    assert digests(study.folder / RUN / "supervised/seed0") == before


KILLS = int(os.environ.get("SEMIRES_KILLS", "12"))  # over all kinds of stage; `make soak`: 200
SEED_OF_KILLS = 5


@dataclass
class Target:
    """A kind of stage: its command, what it makes, its name in DVC, where its progress is kept."""

    command: str
    folders: list[str]
    stage: str
    state: str = ""

    def progress(self, root: Path) -> int:
        """Shards, steps or trials that are saved: what a kill must not cost."""
        if self.command.startswith(("burn-in", "mutual")):
            saved = []
            with contextlib.suppress(FileNotFoundError):  # renamed at this moment
                saved = [load_state(folder / "last.pt") for folder in root.glob(self.state)]
            return max((state["step"] for state in saved if state), default=0)
        if self.state.endswith(".db"):
            return complete_trials(root / self.state)
        return len(list(root.glob(self.state))) if self.state else 0


def complete_trials(path: Path) -> int:
    if not path.is_file():
        return 0
    with contextlib.closing(sqlite3.connect(path, timeout=60)) as store:
        try:
            wanted = "SELECT count(*) FROM trials WHERE state = 'COMPLETE'"
            return int(store.execute(wanted).fetchone()[0])
        except sqlite3.OperationalError:  # no tables yet
            return 0


CELL = "--dataset refscenes --fraction 10 --seed 0"
TARGETS = {
    "generate": Target("generate --dataset refscenes",
                       ["data/raw/refscenes", "data/raw/images/refscenes"], "generate@refscenes"),
    "propose": Target("propose --dataset refscenes --source sam", ["proposals/refscenes/sam"],
                      "propose@refscenes-sam", ".work/propose-*/shard-*.json"),
    "burn_in": Target(f"burn-in {CELL}", [f"{RUN}/supervised/seed0"], BURN_IN,
                      ".work/runs-refscenes-10-supervised-seed0-*"),
    "mutual": Target(f"mutual {CELL} --method cpi-u", [f"{RUN}/cpi-u/seed0"],
                     "mutual@refscenes-10-cpi-u-0",
                     ".work/runs-refscenes-10-cpi-u-seed0-*"),
    "tune": Target(f"tune {CELL} --method cpi-u", ["tune/refscenes/10/cpi-u/seed0"],
                   "tune@refscenes-10-cpi-u-0", ".work/optuna/studies.db"),
    "report": Target("report", ["reports"], "report@reports"),
}  # fmt: skip


@pytest.mark.parametrize("kind", TARGETS)
def test_stages_killed_at_random_end_as_unbroken_ones(study: Any, kind: str):
    """After every kill: nothing torn in place, nothing saved lost; in the end, the same bytes."""
    target, rng = TARGETS[kind], random.Random(f"{SEED_OF_KILLS} {kind}")
    folders = [study.folder / name for name in target.folders]
    if kind == "report":  # the runs it shows were made again by other tests
        study.run("semires", "report")
    shutil.rmtree(study.folder / ".work/optuna", ignore_errors=True)
    before = [digests(folder) for folder in folders]
    for folder in folders:
        shutil.rmtree(folder)
    wanted = KILLS // len(TARGETS) + (list(TARGETS).index(kind) < KILLS % len(TARGETS))
    kills = survived = saved = 0  # pieces: shards, steps, trials
    longest_s = 8.0
    while kills < wanted:
        after_a_save = bool(target.state) and kills % 2 == 1  # else at any time
        killed, said = kill_once(study, target, rng, longest_s, saved if after_a_save else None)
        whole = [not f.exists() or digests(f) == b for f, b in zip(folders, before, strict=True)]
        assert all(whole), "a torn folder is in its place"
        kills += killed
        resumed = re.search(r"resuming from \w+ (\d+)", said)
        if resumed:
            assert int(resumed[1]) == saved, "saved work is repeated"
            survived += saved
        done = all(folder.exists() for folder in folders)
        assert killed or done, said
        if done:  # before its time came, or killed with nothing but its end left to do
            for folder in folders:
                shutil.rmtree(folder)
            shutil.rmtree(study.folder / ".work/optuna", ignore_errors=True)
            longest_s, saved = longest_s if killed else 0.8 * longest_s, 0
            continue
        now = target.progress(study.folder)
        assert now >= saved, "saved work was lost"
        saved = now
    said = study.run("dvc", "repro", "--force", "--single-item", target.stage)
    if saved:
        assert re.search(rf"resuming from \w+ {saved} ", said)
        survived += saved
    assert survived or not target.state, "no kill left saved work to go on from"
    assert [digests(folder) for folder in folders] == before
    print(f"{kind}: {kills} kills survived, {survived} saved pieces not repeated")


def kill_once(
    study: Any, target: Target, rng: random.Random, longest_s: float, saved: int | None
) -> tuple[bool, str]:
    """Start a stage and SIGKILL it: just after more than ``saved`` was saved, or at any time.

    Returns:
        Whether it was killed (or had ended before), and what it said.
    """
    log = study.folder / ".work/killed.log"
    environment = {**study.environment, "PYTHONUNBUFFERED": "1"}
    line = [sys.executable, "-m", "semires", *target.command.split()]
    with open(log, "wb") as out:
        child = subprocess.Popen(line, cwd=study.folder, env=environment, stdout=out, stderr=out)
    if saved is not None:
        end = time.monotonic() + 60
        while child.poll() is None and time.monotonic() < end:
            if target.progress(study.folder) > saved:
                break
            time.sleep(0.01)
        moment_s = rng.uniform(0.0, 0.05)
    else:
        moment_s = rng.uniform(0.0, longest_s)
    try:
        child.wait(moment_s)
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGKILL)
    code = child.wait(60)
    said = log.read_text(errors="replace")
    assert code in (0, -signal.SIGKILL), said
    return code != 0, said
