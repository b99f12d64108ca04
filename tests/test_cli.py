"""The command line: quick, one line per fault, no traceback, signals with their exit codes."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from semires.__main__ import NEEDED
from semires.cli import STAGES, main
from semires.config.compose import untracked_inputs
from semires.config.load import load_params
from semires.numerics import cpu_model, software

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "mlflow", "transformers", "pandas", "pyarrow", "optuna", "matplotlib", "skimage",
         "numpy", "pydantic", "ruamel.yaml")  # fmt: skip
DEMO = ["--params", str(ROOT / "experiments/demo.yaml")]


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from semires.cli import _parser; _parser().format_help(); "
        f"print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_names_every_stage_of_the_pipeline(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    assert left.value.code == 0
    shown = capsys.readouterr().out
    text = (ROOT / "dvc.yaml").read_text()
    used = {
        line.split("semires ")[1].split()[0] for line in text.splitlines() if "-m semires" in line
    }
    assert used <= set(STAGES)
    assert {"generate", "prepare", "burn-in", "mutual", "report"} <= used
    assert all(name in shown for name in STAGES)


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["prepare", "--dataset", "refscene"], "--dataset: 'refscene' is not a key of `datasets`; "
         "did you mean 'refscenes'?"),
        (["mutual", "--dataset", "refscenes", "--fraction", "1", "--method", "cpiu"],
         "--method: 'cpiu' is not a key of `refine`; did you mean"),
        (["propose", "--dataset", "refscenes", "--source", "sum"], "did you mean 'sam'?"),
        (["tune", "--all", "--seed", "0"], "--seed: not with --all, which runs the searches of"),
        (["tune", "--all", "--source", "felzenszwalb"], "--source: not with --all"),
        (["tune", "--all", "--model", "rela"], "--model: not with --all"),
        (["tune", "--dataset", "refscenes", "--fraction", "1"], "--method: missing (or give --all"),
        (["propose", "--dataset", "refscenes", "--output", "s3://x"], "only with --shards or --m"),
        (["propose", "--dataset", "refscenes", "--merge", "--shards", "0:1"], "not with --shards"),
        (["rehearse", "--dataset", "refscenes", "--steps", "1"], "--steps: 1 is less than 2"),
        (["use", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["split", "--dataset", "refscenes", "--fraction", "1"], "summary.json: no such file"),
    ],
)  # fmt: skip
def test_user_errors_are_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    wanted: str,
):
    monkeypatch.chdir(tmp_path)
    assert main([*DEMO, *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("semires: ")
    assert wanted in error
    assert error.count("\n") == 1


def test_every_stage_of_the_pipeline_parses():
    from semires.cli import _parser

    values = {
        "dataset": "refscenes", "key": "refscenes", "fraction": "0.1", "method": "cpi-u",
        "seed": "0", "source": "sam", "label": "cpi-u", "option": " --model rela",
    }  # fmt: skip
    from semires.config.validate import read_yaml

    stages = read_yaml(ROOT / "dvc.yaml")["stages"]
    for stage in stages.values():
        command = str(stage.get("do", stage)["cmd"])
        for name, value in values.items():
            command = command.replace(f"${{item.{name}}}", value).replace(f"${{{name}}}", value)
        assert command.startswith("exec python3 -m semires ")
        parsed = _parser().parse_args(command.split()[4:])
        assert callable(parsed.run)


def foreign_python(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`python -m semires` in a folder with the package, by a Python without the packages it needs.

    ``-S`` leaves site-packages out and makes ``sys.prefix`` that of no environment.
    """
    if not (folder / "semires").exists():
        (folder / "semires").symlink_to(ROOT / "semires")
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "DVC_ROOT")}
    return subprocess.run(
        [sys.executable, "-S", "-m", "semires", *words], cwd=folder, env=environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_a_foreign_python_hands_over_to_the_environment_of_the_project(tmp_path: Path):
    (tmp_path / ".venv").symlink_to(sys.prefix)
    done = foreign_python(tmp_path, "use", "nowhere.yaml")
    assert (done.returncode, done.stderr) == (
        2, "semires: nowhere.yaml: no such file; run this in a clone of the repository, "
        "or give --params FILE\n"
    )  # fmt: skip


def test_a_foreign_python_without_an_environment_is_one_line(tmp_path: Path):
    done = foreign_python(tmp_path, "--help")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert " lacks mlflow, " in done.stderr
    assert ". .venv/bin/activate" in done.stderr


def test_the_packages_that_are_looked_for_are_dependencies_of_the_project():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {re.split(r"[^a-z-]", line)[0] for line in declared}
    assert set(NEEDED) <= names


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with the demo's parameters, and an empty folder in it."""
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "notes/deep").mkdir(parents=True)
    return tmp_path


def test_commands_in_a_subfolder_work_on_the_project_above(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(project / "notes/deep")
    assert main(["grid"]) == 0
    assert (project / "experiments/grid.yaml").is_file()
    monkeypatch.chdir(project / "notes")
    shutil.copy(ROOT / "experiments/demo.yaml", "mine.yaml")
    assert main(["use", "mine.yaml"]) == 0
    assert "notes/mine.yaml is now params.yaml" in capsys.readouterr().out
    assert sorted(p.name for p in (project / "notes").iterdir()) == ["deep", "mine.yaml"]


@pytest.mark.parametrize("inside", [True, False])
def test_track_sync_makes_nothing_outside_a_project(
    tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch, inside: bool,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    if not inside:
        (project / "dvc.yaml").unlink()
    monkeypatch.chdir(project / "notes")
    before = os.listdir()
    assert main(["track", "sync"]) == (0 if inside else 2)
    assert os.listdir(project / "notes") == before
    if not inside:
        assert "not in a project (no dvc.yaml and params.yaml here or in a parent folder)" in (
            capsys.readouterr().err
        )


def test_a_stage_refuses_a_grid_that_does_not_fit(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(project)
    monkeypatch.setenv("DVC_STAGE", "report")
    assert main(["grid"]) == 0
    params = project / "params.yaml"
    params.write_text(params.read_text().replace("seeds: [0]", "seeds: [0, 1]", 1))
    capsys.readouterr()
    assert main(["report"]) == 2
    error = capsys.readouterr().err
    assert "experiments/grid.yaml: does not match `study`" in error
    assert "run `semires grid`" in error
    assert error.count("\n") == 1


def test_doctor_finds_that_stages_would_run_with_another_python(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(project)
    assert main(["grid"]) == 0
    programs = project / "bin"
    programs.mkdir()
    (programs / "python3").write_text("#!/bin/sh\necho /another\n")
    (programs / "python3").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert f"missing: {programs}/python3 is not the python3 of this environment" in out
    assert f"missing: dvc, runs the study; activate this environment: . {sys.prefix}" in out
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:/usr/bin:/bin")
    main(["doctor"])
    assert "python3" not in capsys.readouterr().out


def test_doctor_says_whether_the_committed_results_can_be_expected(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(project)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:/usr/bin:/bin")
    Path("semires").symlink_to(ROOT / "semires")
    assert main(["grid"]) == 0
    runs = Path("reports/runs.csv")
    runs.parent.mkdir()
    here = {**software(), "device": "cpu", "threads": 1, "precision": "fp32"}
    here |= {"accumulate": 1, "processes": 1}
    lines = [",".join(f"numerics.{name}" for name in here), ",".join(map(str, here.values()))]
    runs.write_text("\n".join(lines) + "\n")
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert f"numerics class: {here['class']}; CPU: {cpu_model()['name']}\n" in out
    assert re.search(
        r"digest of 20 steps of burn-in and 20 of mutual learning: [0-9a-f]{12}\n", out
    )
    assert out.endswith(
        "committed results: this machine is expected to reproduce them byte for byte\n"
    )


def test_doctor_says_what_queued_experiments_would_not_find(
    project: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(project)
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(text.replace("generated: [refscenes]", "generated: []"))
    params = load_params("params.yaml")
    (project / "data/raw/refscenes").mkdir(parents=True)
    assert any("`dvc add data/raw/refscenes`" in line for line in untracked_inputs(params))
    (project / "data/raw/refscenes.dvc").touch()
    assert list(untracked_inputs(params)) == []


SLEEPER = """
import sys, time
from semires import process
process.stage_process()
try:
    if "poll" in sys.argv:
        process.stop_requested()
    print("ready", flush=True)
    for _ in range(600):
        time.sleep(0.1)
        if "poll" in sys.argv and process.stop_requested() is not None:
            print("saved", flush=True)
            sys.exit(process.stop_requested())
except process.Stopped as stop:
    print("stopped", flush=True)
    sys.exit(stop.exit_code)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(("mode", "word"), [("poll", "saved"), ("plain", "stopped")])
def test_signals_end_a_stage_with_their_code(number: signal.Signals, mode: str, word: str):
    child = subprocess.Popen(
        [sys.executable, "-c", SLEEPER, mode], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    child.send_signal(number)
    assert child.stdout.read() == f"{word}\n"
    assert child.wait(30) == 128 + number


def test_a_signal_during_a_command_is_one_line(tmp_path: Path):
    params = (ROOT / "experiments/demo.yaml").read_text().replace("train: 4000", "train: 400000")
    (tmp_path / "params.yaml").write_text(params)
    child = subprocess.Popen(
        [sys.executable, "-m", "semires", "generate", "--dataset", "refscenes"],
        cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not list(tmp_path.rglob("*.jpg")) and time.monotonic() < deadline:
        time.sleep(0.1)
    child.send_signal(signal.SIGTERM)
    _, error = child.communicate(timeout=60)
    assert child.returncode == 143
    assert "Traceback" not in error
    assert "semires: stopped by SIGTERM" in error
    assert not list((tmp_path / "data/raw").rglob("*.json")), "half a data set was left"


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_stage_ends_with_its_parent(number: signal.Signals, tmp_path: Path):
    """As `dvc repro` killed: the stage's parent dies without a word to it."""
    note = tmp_path / "pid"
    parent_code = (
        "import os, subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', {SLEEPER!r}, 'poll'])\n"
        f"open({str(note)!r} + '.tmp', 'w').write(str(child.pid))\n"
        f"os.replace({str(note)!r} + '.tmp', {str(note)!r})\n"
        "time.sleep(600)\n"
    )
    environment = {**os.environ, "DVC_STAGE": "burn_in@x"}
    parent = subprocess.Popen(
        [sys.executable, "-c", parent_code], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == "ready\n"
    pid = int(note.read_text())
    parent.send_signal(number)
    parent.wait(30)
    assert parent.stdout.read() == "saved\n"  # ends only when the child has closed it too
    deadline = time.monotonic() + 30
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(pid)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().split(") ")[1]
    except OSError:
        return False
    return not state.startswith("Z")  # dead, and its new parent has not looked yet
