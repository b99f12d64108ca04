"""The rehearsal: its counts, its measurements, and a whole one of a very small study."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# Imported here, so that the process of each stage, a fork, need not import it again.
import segment_anything  # noqa: F401
import skimage.segmentation  # noqa: F401
from helpers.small_study import small_params
from transformers import BertModel, SwinModel  # noqa: F401

from semires.config.schema import Params
from semires.config.validate import validate
from semires.data.refer import read_refer
from semires.errors import ConfigError, DataError
from semires.proposals.base import build_source
from semires.rehearsal import forecast, rehearse, synthetic, weights
from semires.rehearsal.forecast import Counts, Spread
from semires.rehearsal.measure import GIB, Measured, measure
from semires.rehearsal.operations import Operations, count_training
from semires.rehearsal.rehearse import NEEDS, Options
from semires.rehearsal.synthetic import SplitCounts
from semires.rehearsal.table import Row, conditions, misfits, render
from semires.runs.key import RunKey

MACHINE = {
    "gpu": "a GPU", "gpu_gib": 24.0, "host_gib": 32.0, "threads": 2, "load": 0.0,
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
        {"datasets": ["refcoco"], "fractions": [25], "methods": ["cpi-u"], "seeds": [0],
         "sources": ["sam", "sam-prompts"]}
    ]  # fmt: skip
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
    assert forecast.labels_refs(params, counts, 1.0) == 3_811 + 41_980
    assert forecast.labels_fractions(params, "refscenes") == [25]
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
    prompted = RunKey("refcoco", 1.0, "cpi-u", 0, "sam-prompts")
    assert count_training(params, prompted, sample, prompt=6.0) == pytest.approx(64 / 12)


def test_a_busy_machine_is_named():
    assert len(conditions(MACHINE, [])) == 1
    burn_in = Row("burn_in", "burn_in supervised", Measured(), Spread(3, 4, 5), tflop=1.0)
    assert "at 0.25 TFLOP/s, the rate of the first burn-in" in conditions(MACHINE, [burn_in])[1]
    busy = conditions(MACHINE | {"load": 0.75 * (os.cpu_count() or 1)}, [])
    assert busy[1].startswith("This machine was busy (load ")


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
    assert "its process was killed" in killed.fault
    assert killed.lacks == "host"


def test_table_and_what_would_not_fit():
    params = small_params(runtime={"grad_checkpointing": True})
    one, two = Spread(1, 2, 3), Spread(2, 3, 5)
    ok = Measured(seconds=1.0, host_gib=9.0, gpu_gib=20.0)
    rows = [
        Row("propose", "propose sam", ok, processes=4),
        Row("burn_in", "burn_in supervised", ok, one, 1.0, hours=one, disk_gib=40.0),
        Row("mutual", "mutual cpi-u", Measured(gpu_gib=24.0, fault="a | b", lacks="gpu"),
            hours=two, disk_gib=1.0),
    ]  # fmt: skip
    table = render(rows).splitlines()
    assert table[3] == "| burn_in supervised | ok | 2 (1 to 3) | 2 | 9 | 20 | 2 (1 to 3) | 40 |"
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
    project, place = tmp_path / "project", tmp_path / "place"
    project.mkdir()
    place.mkdir()
    monkeypatch.chdir(project)
    temporary = contextlib.nullcontext(str(place))
    monkeypatch.setattr(tempfile, "TemporaryDirectory", lambda prefix: temporary)
    monkeypatch.setattr(synthetic, "published_counts", lambda place: SMALL)
    monkeypatch.setattr(synthetic, "HEIGHT", 96)
    monkeypatch.setattr(synthetic, "WIDTH", 128)
    stages = ("propose", "labels", "mutual", "evaluation") if invented else ("propose",)
    options = Options(
        stages=stages, steps=2, pictures=1, random_weights=invented, synthetic_data=True
    )
    code = rehearse.rehearse(refcoco_params(), options)
    said = capsys.readouterr().out
    rows = {line.split("|")[1].strip(): line.split("|")[2:] for line in said.splitlines()
            if line.startswith("| ")}  # fmt: skip
    assert list(project.iterdir()) == []  # nothing touches the project
    if not invented:
        assert code == 1
        assert "nowhere.safetensors: no such file" in rows["sam"][0]
        assert rows["propose sam"][0].strip() == "needs sam"
        assert "unfinished training" not in said
        return
    assert code == 0, said
    trained = ["burn_in supervised", "mutual cpi-u", "mutual cpi-u+sam-prompts"]
    named = ["sam", "propose sam", "propose sam-prompts", "labels", *trained]
    assert set(rows) >= {"prepare", "split", *named, "evaluation supervised", "the study"}
    assert all(rows[name][0].strip() == "ok" for name in named)
    assert all(rows[name][5].strip() != "–" for name in named)  # hours
    predicted = {name: float(rows[name][2]) for name in (*named[1:], "evaluation supervised")}
    assert min(predicted.values()) > 0  # seconds
    assert predicted["mutual cpi-u+sam-prompts"] > predicted["mutual cpi-u"]
    seconds, hours = (float(rows["labels"][i].split()[0]) for i in (1, 5))
    assert hours == pytest.approx(seconds * (12 + 6) / 3600, rel=0.02)  # val, correction_refs
    assert "no GPU" in said or "GiB)" in said
    # The weights of finished runs that no other stage reads are deleted.
    kept = (place / "few/runs").rglob("model.safetensors")
    assert [path.parts[-3] for path in kept] == ["supervised"]
    with np.load(place / "few/runs/refcoco/25/cpi-u+sam-prompts/seed0/panels.npz") as panels:
        assert panels["atoms"].max() > 0  # SAM was prompted


def test_random_weights_of_every_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Networks of equal sizes share a file; sources of the hub can be used."""
    monkeypatch.chdir(tmp_path)
    swin = {"image_size": 64, "embed_dim": 8, "depths": [1] * 4, "num_heads": [1] * 4,
            "window_size": 4, "out_features": [f"stage{i}" for i in (1, 2, 3, 4)]}  # fmt: skip
    decoder = {"hidden_dim": 32, "mask_feature_size": 32, "feature_size": 32, "num_queries": 9,
               "encoder_layers": 1, "encoder_feedforward_dim": 32, "decoder_layers": 2,
               "dim_feedforward": 32, "num_attention_heads": 2, "num_labels": 5}  # fmt: skip
    sam = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_dim": 64,
           "global_attn_indexes": [0]}  # fmt: skip
    sides = {"MASK2FORMER_IMAGE": {"height": 64, "width": 64}, "SAM_SIDE": 64}
    sizes = {"SWIN_LARGE": swin, "MASK2FORMER": decoder, "SAM_VISION": sam, **sides}
    for name, value in sizes.items():
        monkeypatch.setattr(weights, name, value)
    tree = refcoco_params().model_dump()
    (block,) = tree["study"]["runs"]
    block["sources"] = ["mask2former", "sam-hub"]
    tree["study"]["runs"].append({**block, "model": "rela"})
    tree["models"]["rela"]["model"]["swin"]["pretrained"] = "elsewhere.safetensors"
    tree["proposals"]["sources"]["mask2former"].update(model="owner/mask2former", threshold=0.0)
    tree["proposals"]["sources"]["sam-hub"] = {
        "kind": "transformers", "model": "owner/sam", "points_per_side": 2, "points_per_batch": 4,
        "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0,
    }  # fmt: skip
    made = validate(weights.random_weights(validate(tree)))
    first, second = made.model.swin, made.models["rela"].model.swin
    assert (first.pretrained, first) == (second.pretrained, second)
    assert len(list(Path("random").glob("swin*"))) == 1
    for name in ("mask2former", "sam-hub"):
        source = made.proposals.sources[name]
        assert Path(source.model).is_dir()
        found = build_source(source).propose(np.zeros((48, 64, 3), np.uint8))
        assert found.masks.shape[1:] == (48, 64)


def test_options_are_checked():
    for options, match in (
        (Options(stages=("train",)), "--stages: 'train' is not a key of `the stages`"),
        (Options(steps=1), "--steps: 1 is less than 2"),
        (Options(dataset="other"), "the study has no run on other"),
    ):
        with pytest.raises(ConfigError, match=match):
            rehearse.rehearse(small_params(), options)
    assert list(NEEDS)[-1] == "report"
