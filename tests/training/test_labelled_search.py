"""The threshold search on labelled images alone: folds, their teachers, an interruption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.small_study import small_params

from semires import process
from semires.cli import main
from semires.errors import DataError, Interrupted
from semires.files import read_json
from semires.runs.key import RunKey
from semires.training.context import RunContext
from semires.tuning import labelled
from semires.tuning.counts import load
from semires.tuning.study import tune

CELL = RunKey("refscenes", 25, "cpi-u", 0)
FOLDER = Path("tune/refscenes/25/cpi-u/seed0")


def searching(folder: Path, **changes: Any) -> Any:
    storage = f"sqlite:///{folder / 'study.db'}"
    settings = {"on": "labelled", "folds": 3, "trials": 5, "storage": storage, **changes}
    return small_params(tune=settings, evaluation={"bootstrap_samples": 50})


def forget_counts() -> None:
    for path in Path(".work").glob("folds-*/counts.npz"):
        path.unlink()


def test_each_fold_is_labelled_by_a_teacher_that_did_not_see_it(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    taught: list[set[int]] = []
    labelled_by: dict[int, set[int]] = {}  # image -> images that its teacher was trained on
    train, predict = labelled.train_burn_in, labelled.pseudo_labels

    def spy_training(context: RunContext, log: Any) -> Any:
        taught.append(set(context.labelled_refs["image_id"]))
        return train(context, log)

    def spy_labels(context: RunContext, model: Any, refs: Any) -> Any:
        labelled_by.update({int(image): taught[-1] for image in refs["image_id"]})
        return predict(context, model, refs)

    monkeypatch.setattr(labelled, "train_burn_in", spy_training)
    monkeypatch.setattr(labelled, "pseudo_labels", spy_labels)
    params = searching(tmp_path)
    tune(params, CELL)
    split = set(read_json("data/splits/refscenes/25.json")["labelled_images"])
    seen, held_out = (load(FOLDER / f"{name}.npz", "") for name in ("seen", "held_out"))
    assert set(seen.image_ids) == split == set(labelled_by)
    assert len(set(seen.ref_ids)) == len(seen), "each labelled reference is counted once"
    assert len(taught) == 3
    for image, images in labelled_by.items():
        assert image not in images
        assert images < split
    val = RunContext(params, CELL, ()).tables.part("val")
    assert set(held_out.image_ids) == set(val["image_id"])
    summary = read_json(FOLDER / "summary.json")
    assert (summary["on"], summary["seen"]["images"]) == ("labelled", len(split))
    assert not list(Path(".work").rglob("fold*.safetensors")), "the teachers are not kept"
    assert not list(Path(".work").glob("runs-*")), "nor are their training states"


def test_an_interrupted_fold_continues(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    tune(searching(tmp_path / "a"), CELL)
    unbroken = {path.name: path.read_bytes() for path in FOLDER.iterdir()}
    forget_counts()
    with monkeypatch.context() as patch:
        looks = iter(range(1, 10_000))
        patch.setattr(process, "stop_requested", lambda: 143 if next(looks) == 9 else None)
        with pytest.raises(Interrupted, match=r"stopped at step 3 of 6"):
            tune(searching(tmp_path / "b"), CELL)
    assert len(list(Path(".work").rglob("fold*.safetensors"))) == 1
    capsys.readouterr()
    tune(searching(tmp_path / "b"), CELL)
    said = capsys.readouterr().out
    assert "teacher of fold 1," not in said
    assert "resuming from step 3 of 6" in said
    assert {path.name: path.read_bytes() for path in FOLDER.iterdir()} == unbroken


def test_the_option_of_the_command(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    def run(**changes: Any) -> int:
        path = tmp_path / "params.yaml"
        path.write_text(searching(tmp_path, **changes).model_dump_json())
        cell = ["--dataset", "refscenes", "--fraction", "25", "--method", "cpi-u"]
        return main(["--params", str(path), "tune", *cell, "--on", "labelled"])

    assert run(on="val") == 0
    assert read_json(FOLDER / "summary.json")["on"] == "labelled"
    assert "Pseudo-labels' oIoU on val: " in (FOLDER / "best.yaml").read_text()
    assert run(on="val", objective="training") == 2
    assert "`on: labelled` needs `objective: labels`" in capsys.readouterr().err


def test_folds_divide_the_images():
    images = list(range(10))
    parts = labelled.folds(images, 4, seed=1)
    assert sorted(image for part in parts for image in part) == images
    assert {len(part) for part in parts} == {2, 3}
    assert parts == labelled.folds(images[::-1], 4, seed=1)
    assert parts != labelled.folds(images, 4, seed=2)
    assert [len(part) for part in labelled.folds([3, 5], 4, seed=0)] == [1, 1]
    with pytest.raises(DataError, match=r"tune\.on: labelled needs two labelled images"):
        labelled.folds([3], 4, seed=0)


def test_part_of_counts_is_the_counts_of_a_part(teacher: Path):
    counts = labelled.counts_of(small_params(), CELL)
    chosen = np.arange(len(counts)) % 3 == 0
    part = counts.take(chosen)
    assert part.ref_ids.tolist() == counts.ref_ids[chosen].tolist()
    for number, place in enumerate(np.flatnonzero(chosen)):
        ours = slice(*part.offsets[number : number + 2])
        theirs = slice(*counts.offsets[place : place + 2])
        for name in ("area", "label", "truth"):
            assert getattr(part, name)[ours].tolist() == getattr(counts, name)[theirs].tolist()
