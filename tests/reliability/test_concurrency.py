"""Several processes at the same work, what killed ones leave, and a store that fails in mid-run."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT
from helpers.small_study import small_params

from semires import files, tracking
from semires.config.load import load_params
from semires.data.pictures import read_picture
from semires.errors import SemiresError
from semires.proposals.cache import ProposalCache
from semires.runs import layout
from semires.runs.key import RunKey
from semires.training.state import load_state


def semires(*words: str, **more: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "SEMIRES_TRACKING": "off"}
    return subprocess.Popen(
        [sys.executable, "-m", "semires", "--params", "params.json", *words],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more,
    )  # fmt: skip


def write_params(**changes: Any) -> None:
    tree = small_params().model_dump()
    tree["proposals"]["sources"]["felzenszwalb"].update(changes)
    files.write_json("params.json", tree)


def test_two_proposes_at_once(small_study: Path):
    write_params(sigma=0.8)
    both = [semires("propose", "--dataset", "refscenes", "--source", "felzenszwalb") for _ in "ab"]
    said = [each.communicate(timeout=200) for each in both]
    codes = sorted(each.returncode for each in both)
    assert codes in ([0, 0], [0, 2]), said
    for each, (_, error) in zip(both, said, strict=True):
        lines = [line for line in error.splitlines() if line.startswith("semires: ")]
        assert "Traceback" not in error
        assert len(lines) == (each.returncode != 0)
        assert each.returncode == 0 or "another process is making the proposals" in lines[0]
    cache = ProposalCache(layout.proposals("refscenes", "felzenszwalb"))
    assert all(cache[i] for i in cache)
    write_params()
    done = semires("propose", "--dataset", "refscenes", "--source", "felzenszwalb")
    done.communicate(timeout=200)
    assert done.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_training_saves_and_says_so_in_one_line(small_study: Path, number: signal.Signals):
    write_params()
    for path in Path(".work").glob("runs-*seed1-*"):  # of the other signal
        shutil.rmtree(path)
    child = semires("burn-in", "--dataset", "refscenes", "--fraction", "25", "--seed", "1")
    deadline = time.monotonic() + 120
    while not list(Path(".work").glob("runs-*seed1-*/last.pt")):
        assert time.monotonic() < deadline
        assert child.poll() is None, child.communicate()
        time.sleep(0.005)
    child.send_signal(number)
    _, error = child.communicate(timeout=120)
    lines = [line for line in error.splitlines() if line.startswith("semires: ")]
    assert "Traceback" not in error
    if child.returncode != 0:  # it may have been done
        assert child.returncode == 128 + number
        assert len(lines) == 1
        assert "state saved" in lines[0] or "goes on from what was saved" in lines[0]
    shutil.rmtree(RunKey("refscenes", 25, "supervised", 1).folder, ignore_errors=True)


LEAVER = """
import os, signal
from semires import files
with files.atomic_folder("made") as folder, files.atomic_path("file") as path:
    (folder / "x").write_text("x"); path.write_text("x")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_leaves_is_removed_after_an_hour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A younger file may still be written; a file of a similar name is not ours."""
    monkeypatch.chdir(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", LEAVER], env=environment, check=False)
    left = sorted(tmp_path.glob(".*.tmp"))
    assert len(left) == 2
    (tmp_path / ".mine.tmp").touch()
    os.utime(".mine.tmp", (1, 1))

    def remaining() -> set[Path]:
        files.sweep.cache_clear()
        files.write_text("other", "x")
        return set(tmp_path.glob(".*.tmp"))

    assert remaining() == {*left, tmp_path / ".mine.tmp"}
    for path in (p for place in left for p in (place, *place.rglob("*"))):
        os.utime(path, (1, 1))
    assert remaining() == {tmp_path / ".mine.tmp"}


def test_a_pipe_in_the_place_of_a_file_is_refused(tmp_path: Path):
    """Reading one that nobody writes to would wait for ever."""
    os.mkfifo(tmp_path / "pipe")
    for read in (files.read_json, read_picture, load_params):
        with pytest.raises(SemiresError, match=r"pipe: (is no|not a|no) "):
            read(tmp_path / "pipe")
    (tmp_path / "last.pt").symlink_to(tmp_path / "pipe")
    assert load_state(tmp_path / "last.pt") is None


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "no space"), KeyboardInterrupt("made")])
def test_a_folder_that_cannot_be_put_in_place_leaves_the_former(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
):
    (tmp_path / "made").mkdir()
    (tmp_path / "made/x").write_text("old")
    real = os.replace

    def replace(source: Path, target: Path) -> None:
        if target == tmp_path / "made" and not (source / "x").exists():
            raise error
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    refused = pytest.raises((SemiresError, KeyboardInterrupt), match="made")
    with refused, files.atomic_folder(tmp_path / "made"):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["made"]
    assert (tmp_path / "made/x").read_text() == "old"


@pytest.mark.tracked
def test_a_sender_that_is_killed_in_mid_run_leaves_the_rest_for_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    from semires.config.load import load_params
    from semires.mlflow_store import Store

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("SEMIRES_TRACKING", "on")
    Path("params.yaml").touch()
    params, key = load_params(ROOT / "experiments/demo.yaml"), RunKey("refscenes", 1, "cpi-u", 0)
    with tracking.track_run(key, params, ("mutual",), {"split": "a"}) as run:
        run.log_metrics({"val/oIoU": 1.0}, 10)
        assert run._sender is not None
        run._sender.kill()
        run._sender.wait()
        run.log_metrics({"val/oIoU": 2.0}, 20)
        run.log_metrics({"val/oIoU": 3.0}, 30)
    warning = capsys.readouterr().err
    assert warning.count("\n") == 1
    assert "the sender was killed" in warning
    tracking.sync()
    store = Store()
    (found,) = store.runs()
    past = store.client.get_metric_history(found.info.run_id, "val/oIoU")
    assert [(m.step, m.value) for m in past] == [(10, 1.0), (20, 2.0), (30, 3.0)]


def leaves(tree: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(tree, dict) and tree:
        return [leaf for k, v in tree.items() for leaf in leaves(v, (*prefix, k))]
    if isinstance(tree, list) and tree and isinstance(tree[0], dict):
        return [leaf for i, v in enumerate(tree) for leaf in leaves(v, (*prefix, i))]
    return [prefix]


UNBOUNDED = {"stability_score_offset", "offset", "language_scale"}  # any finite number is one


def test_every_number_of_the_parameters_is_bounded():
    """NaN, infinities and a negative number, wherever params.yaml has a number."""
    from semires.config.load import validate_file
    from semires.config.validate import read_yaml

    demo, tried = read_yaml(ROOT / "experiments/demo.yaml"), 0
    for leaf in leaves(demo):
        for bad in (float("nan"), float("inf"), -float("inf"), -1):
            tree = json.loads(json.dumps(demo))
            node = tree
            for key in leaf[:-1]:
                node = node[key]
            if isinstance(node[leaf[-1]], bool) or not isinstance(node[leaf[-1]], int | float):
                continue
            if leaf[-1] in UNBOUNDED and bad == -1:
                continue
            node[leaf[-1]] = bad
            tried += 1
            with pytest.raises(SemiresError, match=str(leaf[-1])) as caught:
                validate_file(tree, "demo.yaml")
            assert "\n" not in str(caught.value)
    assert tried > 200


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("sam/checkpoint", "", "sam.checkpoint: '' is not a checkpoint of sam.model tiny"),
        ("sam/model", "vit_h", "is not a checkpoint of sam.model vit_h"),
        ("model/bert/vocabulary", None, "model.bert: give `vocabulary` or `pretrained`"),
        ("model/fusion_heads", [5, 1, 1, 1], "model.fusion_heads: 5 heads do not divide"),
        ("study/runs/0/fractions", [1, 100], "study.runs.0.fractions: 100 leaves no "),
        ("scenes/seed", -1, "scenes.seed: "),
        ("study/runs/0/seeds", [2**32], "study.runs.0.seeds.0: "),
    ],
)
def test_parameters_that_contradict_each_other(key: str, value: Any, wanted: str):
    from semires.config.validate import read_yaml, validate

    tree = read_yaml(ROOT / "experiments/demo.yaml")
    node = tree
    for part in key.split("/")[:-1]:
        node = node[int(part) if isinstance(node, list) else part]
    node[key.split("/")[-1]] = value
    with pytest.raises(SemiresError) as caught:
        validate(tree)
    assert wanted in str(caught.value)


@pytest.mark.parametrize("words", [("--fraction", "nan"), ("--fraction", "101"), ("--seed", "-1")])
def test_numbers_of_the_command_line(small_study: Path, words: tuple[str, str]):
    write_params()
    given = {"--fraction": "25", **dict([words])}
    child = semires(
        "burn-in", "--dataset", "refscenes", *(w for pair in given.items() for w in pair)
    )
    _, error = child.communicate(timeout=100)
    assert child.returncode == 2
    assert error.startswith(f"semires: {words[0]}: ")
    assert error.count("\n") == 1
