"""The rehearsal: its counts, its measurements, and a whole one of a very small study."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.small_study import small_params

from semires.config.schema import Params
from semires.config.validate import validate
from semires.data.refer import read_refer
from semires.errors import ConfigError, DataError
from semires.rehearsal import forecast, rehearse, synthetic
from semires.rehearsal.forecast import Counts, Spread
from semires.rehearsal.measure import GIB, Measured, measure
from semires.rehearsal.operations import Operations, count_training
from semires.rehearsal.rehearse import NEEDS, Options
from semires.rehearsal.synthetic import SplitCounts
from semires.rehearsal.table import Row, conditions, misfits, render
from semires.runs.key import RunKey

MACHINE = {
    "gpu": "a GPU", "gpu_gib": 24.0, "host_gib": 32.0, "threads": 2, "load": 0.0, "tflops": 0.25,
}  # fmt: skip
SMALL = {
    "train": SplitCounts(40, 16, 90), "val": SplitCounts(12, 6, 30),
    "testA": SplitCounts(5, 3, 7), "testB": SplitCounts(4, 4, 9),
}  # fmt: skip


def refcoco_params(**changes: Any) -> Params:
    """The small study on RefCOCO's format, with a pretrained Swin and BERT to be replaced."""
    tree = small_params(**changes).model_dump()
    tree["datasets"] = {"refcoco": tree["datasets"]["refscenes"] | {"dataset": "refcoco"}}
    tree["study"].update(generated=[], tune=[])
    tree["study"]["runs"] = [
        {"datasets": ["refcoco"], "fractions": [25], "methods": ["cpi-u"], "seeds": [0]}
    ]
    tree["proposals"]["source"] = "sam"
    tree["proposals"]["sources"]["sam"].update(points_per_side=2)
    tree["sam"]["checkpoint"] = "nowhere.safetensors"
    tree["model"]["swin"]["pretrained"] = "nowhere.safetensors"
    return validate(tree)


def test_samples_of_the_papers_study():
    """Numbers by hand: 119,418 of 120,624 expressions are unlabelled, in batches of 3."""
    params = small_params(
        burn_in={"steps": None, "epochs": 40, "batch_size": 2, "evaluations": 40},
        mutual={"steps": None, "epochs": 40, "labelled_batch": 3, "unlabelled_batch": 3,
                "evaluations": 40},
        evaluation={"correction_refs": None},
    )  # fmt: skip
    counts = Counts(
        19_994, {1.0: (1206, 424)}, {1.0: (119_418, 41_980)},
        {"val": 10_834, "testA": 5_657, "testB": 5_095}, 3_811,
    )  # fmt: skip
    burn_in = RunKey("refcoco", 1.0, "supervised", 0)
    cpi = RunKey("refcoco", 1.0, "cpi-u", 0)
    control = RunKey("refcoco", 1.0, "control", 0)
    assert forecast.burn_in_samples(params, counts, burn_in) == 40 * 1206
    assert forecast.mutual_samples(params, counts, cpi) == 40 * 2 * 119_418
    assert forecast.mutual_samples(params, counts, control) == 40 * 119_418
    val, tests = 10_834, 5_657 + 5_095
    assert forecast.evaluated_samples(params, counts, burn_in) == 40 * val + val + tests
    assert forecast.evaluated_samples(params, counts, cpi) == 41 * val + tests + 41_980
    hours = forecast.tune_hours(params, counts, 2, Spread(1, 2, 4), None)
    assert hours == Spread(2 * 3811 / 3600, 4 * 3811 / 3600, 8 * 3811 / 3600)


def test_operations_of_a_sample_of_each_training():
    """By hand: 8 labelled and 4 unlabelled samples; the teacher predicts the unlabelled ones."""
    params = small_params(mutual={"labelled_batch": 8, "unlabelled_batch": 4})
    sample = Operations(forward=1.0, shared=0.5, train=3.0)
    methods = {"supervised": 3.0, "control": 3.0, "cpi-u": 40 / 12, "unimatch": 52 / 12}
    for method, expected in methods.items():
        key = RunKey("refcoco", 1.0, method, 0)
        assert count_training(params, key, sample) == pytest.approx(expected)


def test_a_busy_machine_is_named():
    assert "Predicted: counted operations at 40 % of 0.25 TFLOP/s" in conditions(MACHINE)[1]
    assert len(conditions(MACHINE)) == 2
    busy = conditions(MACHINE | {"load": 0.75 * (os.cpu_count() or 1)})
    assert busy[2].startswith("This machine was busy (load ")


def test_synthetic_data_has_the_published_counts(tmp_path: Path):
    place = refcoco_params().datasets["refcoco"]
    published = synthetic.published_counts(place)
    assert published["train"] == SplitCounts(42_404, 16_994, 120_624)
    assert sum(count.expressions for count in published.values()) == 142_210
    small = place.model_copy(update={"root": str(tmp_path)})
    synthetic.write_annotations(small, SMALL)
    images, refs = read_refer(tmp_path, "refcoco", "unc")
    for split, count in SMALL.items():
        part = refs[refs["split"] == split]
        found = (len(part), part["image_id"].nunique(), part["sentences"].map(len).sum())
        assert found == (count.refs, count.images, count.expressions)
    assert set(zip(images["height"], images["width"], strict=True)) == {(480, 640)}
    assert (refs["area"] > 500).all()


def test_unpublished_data_set_is_refused():
    place = small_params().datasets["refscenes"]
    with pytest.raises(ConfigError, match=r"refscenes \(unc\) has no published counts"):
        synthetic.published_counts(place)


def held(mib: int) -> tuple[str, str | None]:
    block = np.ones(mib * 2**20, np.uint8)
    return f"{Path.cwd().name} {block[-1]}", os.environ.get("DVC_ROOT")


def fail() -> None:
    raise DataError("pictures:\n  one is missing")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def exhaust() -> None:
    raise MemoryError


def test_a_stage_is_measured_in_its_own_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DVC_ROOT", "/elsewhere")
    place = Path.cwd()
    small, large = measure(tmp_path, held, 1), measure(tmp_path, held, 400)
    assert large.value == (f"{tmp_path.name} 1", None)
    assert (large.host_gib - small.host_gib) * GIB == pytest.approx(399 * 2**20, rel=0.2)
    assert not large.fault
    assert large.seconds > 0
    assert Path.cwd() == place
    assert measure(tmp_path, fail).fault == "pictures: one is missing"
    assert measure(tmp_path, exhaust).lacks == "host"
    killed = measure(tmp_path, die)
    assert "killed by SIGKILL" in killed.fault
    assert killed.lacks == "host"


def test_table_and_what_would_not_fit():
    params = small_params(runtime={"grad_checkpointing": True})
    one, two = Spread(1, 2, 3), Spread(2, 3, 5)
    ok = Measured(seconds=1.0, host_gib=9.0, gpu_gib=20.0)
    rows = [
        Row("propose", "propose sam", ok, processes=4),
        Row("burn_in", "burn_in supervised", ok, one, 1.5, hours=one, disk_gib=40.0),
        Row("mutual", "mutual cpi-u", Measured(gpu_gib=24.0, fault="a | b", lacks="gpu"),
            hours=two, disk_gib=1.0),
    ]  # fmt: skip
    table = render(rows).splitlines()
    assert table[3] == "| burn_in supervised | ok | 2 (1 to 3) | 1.5 | 9 | 20 | 2 (1 to 3) | 40 |"
    assert table[4] == "| mutual cpi-u | a / b | – | – | – | 24 | 3 (2 to 5) | 1 |"
    assert table[5] == "| the study | | | | | | 5 (3 to 8) | 41 |"
    lines = misfits(params, rows, MACHINE, scratch_gib=8.0, free_gib=48.0)
    assert lines == [
        "propose sam needs 36 GiB of 32 GiB of memory: set runtime.processes: 1",
        "mutual cpi-u needs more of 24 GiB on the GPU: lower mutual.labelled_batch and "
        "mutual.unlabelled_batch, and raise runtime.accumulate by as much",
        "the study needs 49 GiB of disk, and 48 GiB are free: use another disk (dvc config "
        "cache.dir), or fewer runs in `study.runs`",
    ]
    assert misfits(params, rows[1:2], MACHINE, scratch_gib=8.0, free_gib=48.0) == []
    plain = small_params(runtime={"grad_checkpointing": False})
    assert "runtime.grad_checkpointing: true" in misfits(plain, rows, MACHINE, 0, 99)[1]


@pytest.mark.parametrize("invented", [True, False], ids=["random weights", "missing weights"])
def test_a_whole_rehearsal(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    invented: bool,
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(synthetic, "published_counts", lambda place: SMALL)
    monkeypatch.setattr(synthetic, "HEIGHT", 96)
    monkeypatch.setattr(synthetic, "WIDTH", 128)
    stages = ("propose", "mutual", "evaluation") if invented else ("propose",)
    options = Options(
        stages=stages, steps=2, pictures=1, random_weights=invented, synthetic_data=True
    )
    code = rehearse.rehearse(refcoco_params(), options)
    said = capsys.readouterr().out
    rows = {line.split("|")[1].strip(): line.split("|")[2:] for line in said.splitlines()
            if line.startswith("| ")}  # fmt: skip
    assert list(tmp_path.iterdir()) == []  # nothing touches the project
    if not invented:
        assert code == 1
        assert "nowhere.safetensors: no such file" in rows["sam"][0]
        assert rows["propose sam"][0].strip() == "needs sam"
        return
    assert code == 0, said
    named = ["sam", "propose sam", "burn_in supervised", "mutual cpi-u"]
    assert set(rows) >= {"prepare", "split", *named, "evaluation supervised", "the study"}
    assert all(rows[name][0].strip() == "ok" for name in named)
    assert all(rows[name][5].strip() != "–" for name in named)  # hours
    for name in ("burn_in supervised", "mutual cpi-u", "evaluation supervised"):
        assert float(rows[name][2]) > 0  # predicted seconds
    assert "no GPU" in said or "GiB)" in said


def test_options_are_checked():
    for options, match in (
        (Options(stages=("train",)), "--stages: 'train' is not a key of `the stages`"),
        (Options(steps=1), "--steps: 1 is less than 2"),
        (Options(dataset="other"), "the study has no run on other"),
    ):
        with pytest.raises(ConfigError, match=match):
            rehearse.rehearse(small_params(), options)
    assert list(NEEDS)[-1] == "report"
