"""Studies: the same trials however often a study is stopped, none lost, none run twice."""

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import optuna
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from helpers import HELPERS
from helpers.study_worker import AXES, make_search, make_table

from semires.errors import ConfigError, SemiresError
from semires.tuning import storage
from semires.tuning import study as studies
from semires.tuning.objective import Axis, suggest, summarise
from semires.tuning.samplers import PlacedSampler, grid, scaled
from semires.tuning.storage import default_url, hidden, open_gate, open_storage, sqlite_path

WORKER = HELPERS / "study_worker.py"


def run_here(url, totals, sampler="tpe", run=studies.run_batches, table=None):
    """Run a study up to each of the totals in turn, as new processes would; its trials."""
    table = table or make_table()

    def objective(trial):
        return summarise(table.outcome(suggest(trial, AXES)), table.labels)["oIoU"]

    for total in totals:
        search = make_search(url, total, sampler)
        study = studies.open_study(search)
        gate = open_gate(url, search.name)
        run(study, gate, objective, total)
        gate.close()
    return studies.finished(study)


def tune_here(url, total):
    """As the stage does: what a storage does wrong is explained."""
    with storage.explained(url):
        run_here(url, [total])


def start(url, total, log, *options):
    command = [sys.executable, str(WORKER), url, str(total), str(log), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)


def finish(process):
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors.decode()


def trials_of(url, total=1, sampler="tpe"):
    return studies.finished(studies.open_study(make_search(url, total, sampler)))


def points(trials):
    return [(t.params["threshold_u"], t.params["threshold_o"]) for t in trials]


def sqlite(tmp_path, name="study.db"):
    return f"sqlite:///{tmp_path / name}"


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc"])
def test_stopped_and_resumed_study_has_the_same_trials(tmp_path, sampler):
    whole = run_here(sqlite(tmp_path, "a.db"), [36], sampler)
    parts = run_here(sqlite(tmp_path, "b.db"), [3, 10, 10, 36], sampler)
    assert points(parts) == points(whole)
    assert [t.value for t in parts] == [t.value for t in whole]
    assert len(set(points(whole))) == 36
    assert points(whole)[0] == (0.7, 0.7)


def test_batches_in_memory_and_claimed_trials_are_the_same(tmp_path):
    batches = run_here(sqlite(tmp_path, "a.db"), [25])
    claimed = run_here(sqlite(tmp_path, "b.db"), [25], run=studies.run_trials)
    assert points(batches) == points(claimed)
    assert [t.value for t in batches] == [t.value for t in claimed]


def test_tpe_beats_chance(tmp_path):
    found = {
        sampler: max(t.value for t in run_here(sqlite(tmp_path, sampler), [60], sampler))
        for sampler in ("tpe", "random")
    }
    given = summarise(make_table().outcome({"threshold_u": 0.7, "threshold_o": 0.7}),
                      make_table().labels)["oIoU"]  # fmt: skip
    assert found["tpe"] > given
    assert found["tpe"] >= found["random"] - 0.1


@pytest.mark.parametrize("options", [(), ("--slow",)])
def test_two_processes_share_one_study(tmp_path, options):
    url, log = sqlite(tmp_path), tmp_path / "log.jsonl"
    total = 24 if options else 100  # several batches
    workers = [start(url, total, log, *options) for _ in range(2)]
    for worker in workers:
        finish(worker)
    trials = trials_of(url)
    assert len(trials) == total
    assert [t.number for t in trials] == list(range(total))
    assert len(set(points(trials))) == total
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert sorted(number for _, number, _ in rows) == list(range(total)), "a trial was run twice"
    if options:
        assert len({pid for pid, _, _ in rows}) == 2, "one process did all the work"
    else:
        alone = run_here(sqlite(tmp_path, "alone.db"), [total])
        assert points(trials) == points(alone), "batches made a difference"


def test_killed_process_loses_no_trial(tmp_path):
    """SIGKILL while a trial runs: it is run again at its place, and all else stays the same."""
    url, total, log = sqlite(tmp_path), 14, tmp_path / "log.jsonl"
    victim = start(url, total, log, "--slow")
    deadline = time.monotonic() + 60
    while not log.exists() or len(log.read_text().splitlines()) < 5:
        assert time.monotonic() < deadline
        assert victim.poll() is None
        time.sleep(0.02)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    states = [t.state.name for t in studies.open_study(make_search(url, total)).get_trials()]
    assert states.count("RUNNING") == 1
    finish(start(url, total, log, "--slow"))
    study = studies.open_study(make_search(url, total))
    trials = studies.finished(study)
    assert len(trials) == total
    assert points(trials) == points(run_here(sqlite(tmp_path, "whole.db"), [total]))
    assert [t.state.name for t in study.get_trials()].count("FAIL") == 1


def test_killed_process_leaves_its_trial_to_the_other_one(tmp_path):
    url, total, log = sqlite(tmp_path), 16, tmp_path / "log.jsonl"
    victim, other = (start(url, total, log, "--slow") for _ in range(2))
    deadline = time.monotonic() + 60
    while not log.exists() or len(log.read_text().splitlines()) < 5:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    finish(other)
    assert len(set(points(trials_of(url)))) == total


def test_interrupt_in_a_trial_queues_it_again(tmp_path):
    url, calls = sqlite(tmp_path), []

    def objective(trial):
        values = suggest(trial, AXES)
        calls.append(trial.number)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return values["threshold_u"]

    search = make_search(url, 6)
    study = studies.open_study(search)
    gate = open_gate(url, search.name)
    with pytest.raises(KeyboardInterrupt):
        studies.run_trials(study, gate, objective, 6)
    studies.run_trials(study, gate, objective, 6)
    undisturbed = studies.open_study(make_search(sqlite(tmp_path, "b.db"), 6))
    gate = open_gate(sqlite(tmp_path, "b.db"), search.name)
    studies.run_trials(undisturbed, gate, lambda t: suggest(t, AXES)["threshold_u"], 6)
    assert points(studies.finished(study)) == points(studies.finished(undisturbed))


def test_grid_is_the_papers(tmp_path):
    assert grid(AXES) == [
        {"threshold_u": u, "threshold_o": o} for u in (0.5, 0.6, 0.7) for o in (0.5, 0.6, 0.7)
    ]
    axes = {"threshold_u": Axis(0, 1, 0.7), "ema": Axis(0.9, 1, 0.996)}
    assert [p["ema"] for p in grid(axes)] == [0.996] * 3
    sampler = PlacedSampler("grid", 0, AXES, grid(AXES))
    study = optuna.create_study(sampler=sampler, direction="maximize")
    study.optimize(lambda t: suggest(t, AXES)["threshold_u"], n_trials=9)
    assert [t.params for t in study.trials] == grid(AXES)


def test_log_axis_covers_its_range():
    axis = Axis(0.1, 10, 1, log=True)
    assert [scaled(axis, u) for u in (0, 0.5, 1)] == pytest.approx([0.1, 1, 10])


def test_study_of_another_teacher_is_refused(tmp_path):
    url = sqlite(tmp_path)
    run_here(url, [3])
    with pytest.raises(SemiresError, match="teacher tttttttttttt there, uuuuuuuuuuuu here"):
        studies.open_study(make_search(url, 3, teacher="u" * 64))
    with pytest.raises(SemiresError, match="data dddddddddddd there, eeeeeeeeeeee here"):
        studies.open_study(make_search(url, 3, data="e" * 64))
    # Another space is another study; and in the workspace's own storage both stand side by side.
    studies.open_study(make_search(url, 3, sampler="qmc"))
    studies.open_study(make_search(url, 3, explicit=False, teacher="u" * 64))


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        ("nonsense", "nonsense"),
        ("foo://user:secret@host/db", "foo://user:"),
        ("sqlite:////proc/nowhere/study.db", "/proc/nowhere"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("redis://user:secret@localhost:6390/0", "Optuna has no Redis"),
    ],
)
def test_unreachable_storage_is_one_line(url, hint):
    with pytest.raises(SemiresError) as caught:
        open_storage(url)
    text = str(caught.value)
    assert hint in text
    assert "\n" not in text
    assert "secret" not in text


def test_damaged_storage_is_one_line(tmp_path):
    (tmp_path / "study.db").write_bytes(b"not a database" * 500)
    with pytest.raises(SemiresError, match=r"study\.db.*not a database"):
        open_storage(sqlite(tmp_path))


def test_locked_storage_is_one_line(tmp_path, monkeypatch):
    url = sqlite(tmp_path)
    run_here(url, [3])
    monkeypatch.setattr(storage, "SQLITE_TIMEOUT_S", 0.1)
    with contextlib.closing(sqlite3.connect(tmp_path / "study.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(SemiresError, match=r"study\.db: locked, .*\(database is locked\)"):
            tune_here(url, 6)
    assert len(run_here(url, [6])) == 6


def test_cmaes_of_one_parameter_is_refused():
    with pytest.raises(ConfigError, match=r"two parameters or more, and threshold_u is all"):
        PlacedSampler("cmaes", 0, {"threshold_u": AXES["threshold_u"]})


def test_cmaes_learns_and_resumes_with_the_same_trials(tmp_path):
    whole = run_here(sqlite(tmp_path, "a.db"), [48], "cmaes")
    parts = run_here(sqlite(tmp_path, "b.db"), [7, 48], "cmaes")
    assert points(parts) == points(whole)
    generations = {t.system_attrs.get("cma:generation") for t in whole}
    assert len(generations - {None}) > 2, "the sampler never came to CMA-ES"
    spread = [np.std(points(part), axis=0).mean() for part in (whole[:12], whole[-12:])]
    assert spread[1] < spread[0], "later generations should gather"


def test_urls():
    assert hidden("mysql://me:secret@host/db") == "mysql://me:***@host/db"
    assert hidden("sqlite:///x.db") == "sqlite:///x.db"
    assert sqlite_path("mysql://host/db") is None
    assert sqlite_path("sqlite:////abs/x.db") == Path("/abs/x.db")
    assert sqlite_path("sqlite:///rel/x.db") == Path("rel/x.db")
    assert sqlite_path(default_url()) == Path(".work/optuna/studies.db")
