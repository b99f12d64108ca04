"""The last lines of `make repro`, on a small repository of texts: lock, grid and reports."""

import json
import subprocess
from pathlib import Path

import pytest

from semires.reporting.closing import closing
from semires.reporting.runs_table import numerics_differences

GIT = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org"]
KINDS = ("generate", "burn_in", "tune", "mutual", "report")  # in the order of dvc.yaml
GRID = {"burn_in": {"d-1-0": {}}, "tune": {}, "mutual": {"d-1-iom-0": {}, "d-1-cpi-0": {}}}
RUNS = ("burn_in@d-1-0", "mutual@d-1-iom-0", "mutual@d-1-cpi-0")
HEAD = "dataset,fraction,method,seed,numerics.class,numerics.torch\n"


def stage(name, out="a", deps=None, params=None):
    return {
        "outs": [{"path": f"out/{name}", "md5": out}],
        "deps": [{"path": path, "md5": md5} for path, md5 in (deps or {}).items()],
        "params": {"params.yaml": params or {}},
    }


def lock(**changes):
    """A dvc.lock: the burn-in's output is an input of mutual learning."""
    made = {"out/burn_in@d-1-0": "a"}
    stages = {
        "report": stage("report", deps={name: "a" for name in RUNS}),
        "mutual@d-1-cpi-0": stage("mutual@d-1-cpi-0", deps=made, params={"mutual": 1}),
        "mutual@d-1-iom-0": stage("mutual@d-1-iom-0", deps=made, params={"mutual": 1}),
        "mutual@of-an-earlier-study": stage("mutual@of-an-earlier-study"),
        "burn_in@d-1-0": stage("burn_in@d-1-0", params={"model": {"width": 8}}),
        "generate@d": stage("generate@d", deps={"semires/data/scenes.py": "s"}),
    }
    for name, fields in changes.items():
        stages[name].update(stage(name, **fields))
    Path("dvc.lock").write_text(json.dumps({"schema": "2.0", "stages": stages}))


def commit():
    subprocess.run([*GIT, "add", "-A"], check=True)
    subprocess.run([*GIT, "commit", "-qm", "state"], check=True)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project in a folder of its repository, with a commit."""
    folder = tmp_path / "pröject 1"
    outputs = ("report", *RUNS, "mutual@of-an-earlier-study", "generate@d", "burn_in@d-5-0")
    for name in ("reports/logs", "experiments", "semires", *(f"out/{name}" for name in outputs)):
        (folder / name).mkdir(parents=True)
    monkeypatch.chdir(folder)
    Path("dvc.yaml").write_text(json.dumps({"stages": {kind: {} for kind in KINDS}}))
    Path("experiments/grid.yaml").write_text(json.dumps({"grid": GRID}))
    Path("reports/runs.csv").write_text(HEAD + "d,1,supervised,0,avx2,2.15\n")
    for name in ("main.md", "logs/a.csv", "benchmarks.md"):
        (Path("reports") / name).write_text(name)
    Path("semires/code.py").write_text("pass")
    lock()
    subprocess.run(["git", "init", "-q", ".."], check=True)
    commit()
    return folder


def test_equal_results_are_said_to_be_equal(project):
    said = "All 3 runs and 3 reports equal the committed ones, byte for byte"
    assert closing() == f"{said}; `git status` is clean."
    Path("reports/benchmarks.md").write_text("of `make bench`")
    Path("../note.txt").touch()
    assert closing() == f"{said}."


def test_the_first_difference_is_the_first_of_the_pipeline(project):
    """Another version of torch changed the burn-in, and so what follows from it."""
    other = {"out": "b", "deps": {"out/burn_in@d-1-0": "b"}, "params": {"mutual": 1}}
    burn_in = {"out": "b", "params": {"model": {"width": 8}}}
    lock(**{"burn_in@d-1-0": burn_in, "mutual@d-1-cpi-0": other, "report": {"out": "b"}})
    Path("reports/runs.csv").write_text(HEAD + "d,1,supervised,0,plain,2.15\n")
    Path("reports/logs/new.csv").touch()
    assert closing() == (
        "2 of 3 runs and 2 of 4 reports differ from the committed ones; "
        "first in the pipeline: burn_in@d-1-0.\n"
        "Reason: class plain here, avx2 committed."
    )


def test_changed_parameters_inputs_and_code_are_named(project):
    lock(**{"burn_in@d-1-0": {"out": "b", "params": {"model": {"width": 9}}}})
    Path("semires/code.py").write_text("...")
    assert closing().endswith(
        "first in the pipeline: burn_in@d-1-0.\nReason: other parameters (model); "
        f"changed since commit {head()}: semires/code.py."
    )
    lock(**{"generate@d": {"out": "b", "deps": {"semires/data/scenes.py": "t"}}})
    assert "generate@d.\nReason: other inputs (semires/data/scenes.py); changed" in closing()
    lock(**{"mutual@of-an-earlier-study": {"out": "b"}})
    assert closing().startswith("All 3 runs")


def head():
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_code_that_was_committed_after_the_results_is_named(project):
    results = head()
    Path("semires/code.py").write_text("...")
    commit()
    Path("reports/main.md").write_text("other")
    assert closing() == (
        "0 of 3 runs and 1 of 3 reports differ from the committed ones; "
        "first in the pipeline: reports/main.md.\n"
        f"Reason: changed since commit {results}: semires/code.py."
    )


def test_an_unknown_reason_and_a_stage_of_one_side_are_said(project):
    lock(
        **{
            "mutual@d-1-iom-0": {
                "out": "b",
                "deps": {"out/burn_in@d-1-0": "a"},
                "params": {"mutual": 1},
            }
        }
    )
    assert (
        "mutual@d-1-iom-0.\nReason: unknown; parameters, code and versions are equal." in closing()
    )
    GRID_MORE = {**GRID, "burn_in": {"d-1-0": {}, "d-5-0": {}}}
    Path("experiments/grid.yaml").write_text(json.dumps({"grid": GRID_MORE}))
    stages = json.loads(Path("dvc.lock").read_text())
    stages["stages"]["burn_in@d-5-0"] = stage("burn_in@d-5-0")
    Path("dvc.lock").write_text(json.dumps(stages))
    assert "2 of 4 runs" in closing()
    assert (
        "first in the pipeline: burn_in@d-5-0.\nReason: burn_in@d-5-0 is not committed."
        in closing()
    )


def test_runs_that_were_not_made_here_are_not_equal(project):
    for name in RUNS[1:]:
        Path(f"out/{name}").rmdir()
    assert closing() == (
        "2 of 3 runs and 0 of 3 reports differ from the committed ones; first in the pipeline: "
        "mutual@d-1-iom-0.\nReason: out/mutual@d-1-iom-0 is not here."
    )


def test_a_stage_that_never_ran_is_not_equal(project):
    more = {**GRID, "mutual": {**GRID["mutual"], "d-1-new-0": {}}}
    Path("experiments/grid.yaml").write_text(json.dumps({"grid": more}))
    assert closing() == (
        "1 of 4 runs and 0 of 3 reports differ from the committed ones; first in the pipeline: "
        "mutual@d-1-new-0.\nReason: mutual@d-1-new-0 did not run here."
    )


def test_without_a_commit_nothing_is_compared(project, monkeypatch):
    Path("dvc.lock").unlink()
    assert closing() == "The results were not compared: no stage of dvc.lock is here."
    subprocess.run(["rm", "-rf", "../.git"], check=True)
    said = "The results were not compared: the project is no git repository or has no commit."
    assert closing() == said
    subprocess.run(["git", "init", "-q"], check=True)
    assert closing() == said
    monkeypatch.setenv("PATH", "/nowhere")
    assert closing() == said


def test_differences_of_numerics_are_those_of_the_columns_that_both_may_have():
    def lines(*values, name="torch"):
        return [{f"numerics.{name}": value, "val/oIoU": "1.0"} for value in values]

    assert numerics_differences(lines("2.15"), lines("2.15", "2.15")) == []
    assert numerics_differences(lines("2.15"), lines("2.16")) == ["torch 2.16 here, 2.15 committed"]
    both = ["torch 2.15 or 2.16 here, 2.15 committed"]
    assert numerics_differences(lines("2.15"), lines("2.16", "2.15")) == both
    other = ["class avx2 here, unknown committed"]
    assert numerics_differences(lines("2.15"), lines("avx2", name="class")) == other
