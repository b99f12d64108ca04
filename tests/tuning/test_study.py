"""Searches: a stopped search continues, no trial is lost, none is run twice."""

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution

sys.path.insert(0, str(Path(__file__).parent))
from helpers import HELPERS
from helpers.study_worker import AXES, make_search, make_table

from semires import process
from semires.errors import ConfigError, SemiresError
from semires.runs.layout import sqlite_url
from semires.tuning import storage
from semires.tuning import study as studies
from semires.tuning.objective import suggest
from semires.tuning.refined import summarise
from semires.tuning.samplers import SeededSampler, scaled
from semires.tuning.storage import default_url, hidden, open_storage, sqlite_path

WORKER = HELPERS / "study_worker.py"


def run_here(url, totals, sampler="tpe", run=studies.run_in_memory, table=None):
    """Run a search up to each of the totals in turn, as new processes would; its trials."""
    table = table or make_table()

    def objective(trial):
        return summarise(table.outcome(suggest(trial, AXES)), table.labels)["oIoU"]

    for total in totals:
        search = make_search(url, total, sampler)
        study = studies.open_study(search)
        run(study, search, objective)
    return studies.finished(study)


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
    return sqlite_url(tmp_path / name)


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc"])
def test_stopped_and_resumed_study_has_the_same_trials(tmp_path, sampler):
    whole = run_here(sqlite(tmp_path, "a.db"), [36], sampler)
    parts = run_here(sqlite(tmp_path, "b.db"), [3, 10, 10, 36], sampler)
    assert points(parts) == points(whole)
    assert [t.value for t in parts] == [t.value for t in whole]
    assert len(set(points(whole))) == 36
    assert points(whole)[0] == (0.7, 0.7)


def test_trials_in_memory_and_in_the_storage_are_the_same(tmp_path):
    memory = run_here(sqlite(tmp_path, "a.db"), [25])
    stored = run_here(sqlite(tmp_path, "b.db"), [25], run=studies.run_in_storage)
    assert points(memory) == points(stored)
    assert [t.value for t in memory] == [t.value for t in stored]


def test_tpe_beats_chance(tmp_path):
    found = {
        sampler: max(t.value for t in run_here(sqlite(tmp_path, sampler), [60], sampler))
        for sampler in ("tpe", "random")
    }
    given = summarise(make_table().outcome({"threshold_u": 0.7, "threshold_o": 0.7}),
                      make_table().labels)["oIoU"]  # fmt: skip
    assert found["tpe"] > given
    assert found["tpe"] >= found["random"] - 0.1


def rows_of(log):
    return [json.loads(line) for line in log.read_text().splitlines()]


def wait_for_trials(log, number, process):
    deadline = time.monotonic() + 60
    while not log.exists() or len(rows_of(log)) < number:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)


def test_two_processes_share_one_quick_search(tmp_path):
    """The second one waits for the first one, and finds nothing left to do."""
    url, log, total = sqlite(tmp_path), tmp_path / "log.jsonl", 100
    for worker in [start(url, total, log) for _ in range(2)]:
        finish(worker)
    trials = trials_of(url)
    assert [t.number for t in trials] == list(range(total))
    assert sorted(number for _, number, _ in rows_of(log)) == list(range(total))
    assert points(trials) == points(run_here(sqlite(tmp_path, "alone.db"), [total]))


def test_two_processes_share_one_search_of_trainings(tmp_path):
    url, log, total = sqlite(tmp_path), tmp_path / "log.jsonl", 24
    for worker in [start(url, total, log, "--slow") for _ in range(2)]:
        finish(worker)
    trials = trials_of(url)
    assert total <= len(trials) <= total + 1, "each process may end its last trial"
    assert len(set(points(trials))) == len(trials), "a trial was run twice"
    assert sorted(number for _, number, _ in rows_of(log)) == [t.number for t in trials]
    assert len({pid for pid, _, _ in rows_of(log)}) == 2, "one process did all the work"


def test_killed_process_loses_no_trial(tmp_path):
    """SIGKILL while a trial runs: the next process runs the same parameters again."""
    url, total, log = sqlite(tmp_path), 14, tmp_path / "log.jsonl"
    victim = start(url, total, log, "--slow")
    wait_for_trials(log, 5, victim)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    study = studies.open_study(make_search(url, total))
    (running,) = study.get_trials(states=(optuna.trial.TrialState.RUNNING,))
    time.sleep(3)  # its heartbeat is late now
    finish(start(url, total, log, "--slow"))
    trials = studies.finished(study)
    assert len(trials) == total
    assert len(set(points(trials))) == total
    assert points(trials).count(points([running])[0]) == 1
    assert [t.state.name for t in study.get_trials()].count("FAIL") == 1
    unbroken = run_here(sqlite(tmp_path, "whole.db"), [total])
    number = running.number
    assert points(trials)[: number + 1] == points(unbroken)[: number + 1]


def test_killed_process_leaves_its_trial_to_the_other_one(tmp_path):
    url, total, log = sqlite(tmp_path), 40, tmp_path / "log.jsonl"
    victim, other = (start(url, total, log, "--slow") for _ in range(2))
    wait_for_trials(log, 5, victim)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    finish(other)
    trials = trials_of(url)
    assert len(trials) == len(set(points(trials))) == total
    begun = {tuple(values[name] for name in AXES) for _, _, values in rows_of(log)}
    assert begun == set(points(trials)), "the killed process's trial was lost"


def test_interrupt_in_a_trial_queues_it_again(tmp_path):
    calls = []

    def objective(trial):
        values = suggest(trial, AXES)
        calls.append(values)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return values["threshold_u"]

    search = make_search(sqlite(tmp_path), 6)
    study = studies.open_study(search)
    with pytest.raises(KeyboardInterrupt):
        studies.run_in_storage(study, search, objective)
    assert len(studies.finished(study)) == 2
    studies.run_in_storage(study, search, objective)
    trials = studies.finished(study)
    assert len(trials) == len(set(points(trials))) == 6
    assert trials[2].params == calls[2] == calls[3], "the interrupted trial was not run again"


def test_a_signal_keeps_the_trials_that_ended(tmp_path):
    search = make_search(sqlite(tmp_path), 9)
    study = studies.open_study(search)

    def stopped_in_the_fifth(trial):
        if trial.number == 4:
            raise process.Stopped(signal.SIGTERM)
        return suggest(trial, AXES)["threshold_u"]

    with pytest.raises(process.Stopped):
        studies.run_in_memory(study, search, stopped_in_the_fifth)
    assert [t.number for t in studies.finished(study)] == [0, 1, 2, 3]


def test_queued_points_are_run_first_and_once(tmp_path):
    """The grid is nothing but queued points."""
    grid = [{"threshold_u": u, "threshold_o": o} for u in (0.5, 0.6, 0.7) for o in (0.5, 0.6, 0.7)]
    search = replace(make_search(sqlite(tmp_path), 9, "grid"), first=tuple(grid))
    study, run = studies.open_study(search), []
    for total in (4, 9):
        part = replace(search, total=total)
        studies.run_in_storage(study, part, lambda trial: run.append(suggest(trial, AXES)) or 1.0)
    assert run == grid


def test_log_axis_covers_its_range():
    axis = FloatDistribution(0.1, 10, log=True)
    assert [scaled(axis, u) for u in (0, 0.5, 1)] == pytest.approx([0.1, 1, 10])


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


@pytest.mark.parametrize(
    ("version", "way"),
    [("v2.6.0.a", "`$ optuna storage upgrade --storage $"), ("v99.a", "`$ pip install -U optuna`")],
)
def test_storage_of_another_optuna_is_one_line(tmp_path, version, way):
    run_here(sqlite(tmp_path), [3])
    with contextlib.closing(sqlite3.connect(tmp_path / "study.db")) as database, database:
        database.execute("UPDATE alembic_version SET version_num = ?", (version,))
        database.execute("UPDATE version_info SET library_version = '0.0.1'")
    with pytest.raises(SemiresError, match=r"study\.db: .*\(set up by optuna 0\.0\.1") as caught:
        open_storage(sqlite(tmp_path))
    assert way in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("table", ["experiments", "songs"])
def test_the_database_of_another_program_is_left_alone(tmp_path, table):
    path = tmp_path / "study.db"
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        for name in ("alembic_version", table):
            database.execute(f"CREATE TABLE {name} (version_num TEXT)")
    before = path.read_bytes()
    with pytest.raises(SemiresError, match="of another program, such as MLflow; use a separate"):
        open_storage(sqlite(tmp_path))
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["a%2Fb", "a?b", "a#b c", "50%", "é&x=1;y"])
def test_any_folder_can_hold_a_storage(tmp_path, name, monkeypatch):
    folder = tmp_path / name
    assert sqlite_path(sqlite_url(folder / "study.db")) == folder / "study.db"
    assert len(run_here(sqlite(folder), [3])) == 3
    assert (folder / "study.db").is_file()
    monkeypatch.setenv("DVC_ROOT", str(folder))  # as `dvc exp run --temp` does
    assert len(run_here(default_url(), [3])) == 3
    assert (folder / ".work/optuna/studies.db").is_file()
    assert sorted(p.name for p in tmp_path.iterdir()) == [name]


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
            run_here(url, [6])
    assert len(run_here(url, [6])) == 6


def test_cmaes_of_one_parameter_is_refused():
    with pytest.raises(ConfigError, match=r"two parameters .* has only threshold_u;"):
        SeededSampler("cmaes", 0, {"threshold_u": AXES["threshold_u"]})


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
