"""Burn-in and mutual learning on a small study: repeatable, resumable, clear about failures."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from helpers import ROOT
from helpers.small_study import small_params
from safetensors.torch import load_file

from semires import process
from semires.config.schema import Params
from semires.config.validate import validate
from semires.errors import Interrupted, NonFiniteLossError
from semires.files import read_json, sha256_file
from semires.proposals.checkpoint import prepare_checkpoint
from semires.proposals.propose import propose
from semires.runs.key import RunKey
from semires.training.burn_in import burn_in
from semires.training.context import RunContext
from semires.training.loop import Loop, total_steps
from semires.training.mutual import mutual
from semires.tuning.counts import counts_of
from semires.tuning.refined import make_table, summarise

BURN_IN = RunKey("refscenes", 25, "supervised", 0)
MODELS = [None, "rela"]  # None: the section `model`, LAVT


def key_of(method: str, model: str | None = None) -> RunKey:
    return RunKey("refscenes", 25, method, 0, model=model)


def train(params: Params, which: RunKey) -> None:
    burn_in(params, which) if which.method == "supervised" else mutual(params, which)


@pytest.fixture(scope="module")
def burned(small_study: Path) -> Path:
    import os

    os.environ["SEMIRES_TRACKING"] = "off"
    for model in MODELS:
        burn_in(small_params(), key_of("supervised", model))
    return BURN_IN.folder


def digests(folder: Path) -> dict[str, str]:
    """Of all files of a run but provenance.json, which holds times."""
    return {p.name: sha256_file(p) for p in folder.iterdir() if p.name != "provenance.json"}


def stop_at(monkeypatch: pytest.MonkeyPatch, poll: int) -> None:
    """Behave as if a signal arrived before the ``poll``-th poll."""
    polls = iter(range(1, 10_000))
    monkeypatch.setattr(process, "stop_requested", lambda: 143 if next(polls) == poll else None)


def test_the_run_folder_is_whole(burned: Path):
    names = {p.name for p in burned.iterdir()}
    assert names >= {
        "model.safetensors", "model.safetensors.sha256", "run.json", "metrics.json",
        "history.csv", "predictions.parquet", "provenance.json",
    }  # fmt: skip
    assert set(read_json(burned / "metrics.json")) == {"val", "testA", "testB", "val_shuffled"}
    table = pd.read_parquet(burned / "predictions.parquet")
    assert (table["intersection"] <= table["union"]).all()
    assert set(table["split"]) == {"val", "testA", "testB", "val_shuffled"}
    assert pd.read_csv(burned / "history.csv")["step"].tolist() == [3, 6]
    assert not list(Path(".work").glob("runs-*25-supervised*")), "the state of a finished run stays"


@pytest.mark.parametrize("source", ["swin.pretrained", "bert.pretrained", "bert.vocabulary"])
def test_replaced_weights_make_another_run(small_study: Path, tmp_path: Path, source: str):
    """Same path, other bytes: a state made from the earlier weights is not used."""
    words = (ROOT / "semires/weights/vocab.txt").read_text()
    part, key = source.split(".")
    path = file = tmp_path / "given"
    if source == "bert.pretrained":
        path.mkdir()
        file = path / "model.safetensors"
    tree = small_params().model_dump()
    tree["model"][part][key] = str(path)
    work = []
    for content in (words, words, words + "another\n"):
        file.write_text(content)
        work.append(RunContext(validate(tree), BURN_IN, ("model",)).work)
    assert work[0] == work[1] != work[2]


@pytest.mark.parametrize(
    ("method", "model"),
    [("supervised", None), ("cpi-u", None), ("control", None), ("cpi-u", "rela")],
)
def test_an_interrupted_run_has_the_bytes_of_the_unbroken_one(
    burned: Path, method: str, model: str | None, monkeypatch: pytest.MonkeyPatch
):
    """Every file but provenance.json, which differs; no step is made twice."""
    which = key_of(method, model)
    train(small_params(), which)
    unbroken, provenance = digests(which.folder), read_json(which.folder / "provenance.json")
    assert {"model.safetensors", "run.json", "history.csv"} < set(unbroken)
    if method != "supervised":
        shutil.rmtree(which.folder)
    stop_at(monkeypatch, 4)
    with pytest.raises(Interrupted, match="step 4 of 6") as caught:
        train(small_params(), which)
    assert caught.value.exit_code == 143
    monkeypatch.undo()
    monkeypatch.setenv("SEMIRES_TRACKING", "off")
    steps = []
    original = Loop.backward
    monkeypatch.setattr(Loop, "backward", lambda *args: steps.append(1) or original(*args))
    train(small_params(), which)
    assert len(steps) == 2, "work before the saved state was repeated"
    assert digests(which.folder) == unbroken
    again = read_json(which.folder / "provenance.json")
    assert again["samples_per_s"] > 0
    assert 0 < again["data_wait"] < 1
    assert again != provenance


def test_a_profile_is_a_chrome_trace(burned: Path):
    before = digests(burned)
    burn_in(small_params(burn_in={"steps": 20}), BURN_IN, profile=True)
    assert "traceEvents" in read_json(f".work/trace-{BURN_IN.name}.json")
    burn_in(small_params(), BURN_IN)
    assert digests(burned) == before


def test_loader_processes_change_nothing(burned: Path):
    before = digests(burned)
    burn_in(small_params(runtime={"workers": 2}), BURN_IN)
    assert digests(burned) == before


@pytest.fixture(scope="module")
def plain_losses(burned: Path) -> dict[str | None, list[float]]:
    """The losses of an ordinary burn-in, by model."""
    losses = {}
    for model in MODELS:
        which = RunKey("refscenes", 25, "supervised", 1, model=model)
        burn_in(small_params(), which)
        losses[model] = pd.read_csv(which.folder / "history.csv")["train/loss"].tolist()
    return losses


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("runtime", "tolerance"),
    [
        ({"compile": True}, 1e-4),
        ({"precision": "bf16"}, 0.05),
        ({"grad_checkpointing": True}, 1e-6),
    ],
)
def test_a_cheaper_way_learns_the_same(
    plain_losses: dict[str | None, list[float]],
    monkeypatch: pytest.MonkeyPatch,
    runtime: dict[str, Any],
    tolerance: float,
    model: str | None,
):
    """Compiled (traced only, as generating code takes minutes), half precision, checkpointed."""
    compile_, compiled = torch.nn.Module.compile, []

    def traced(module: torch.nn.Module) -> None:
        compiled.append(module)
        # The pixel decoder of transformers reads a value of a tensor, which breaks the graph.
        compile_(module, backend="eager", fullgraph=model is None)

    monkeypatch.setattr(torch.nn.Module, "compile", traced)
    which = RunKey("refscenes", 25, "supervised", 1, model=model)
    burn_in(small_params(runtime=runtime), which)
    losses = pd.read_csv(which.folder / "history.csv")["train/loss"]
    assert losses.tolist() == pytest.approx(plain_losses[model], rel=tolerance)
    assert len(compiled) == int(runtime.get("compile", False))


def test_changed_parameters_never_continue_another_state(
    burned: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    stop_at(monkeypatch, 3)
    with pytest.raises(Interrupted):
        mutual(small_params(), key_of("baseline"))
    monkeypatch.undo()
    monkeypatch.setenv("SEMIRES_TRACKING", "off")
    mutual(small_params(mutual={"ema": 0.5}), key_of("baseline"))
    assert "going on" not in capsys.readouterr().out


def test_a_damaged_state_falls_back_on_the_one_before(
    burned: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    mutual(small_params(), key_of("iom"))
    unbroken = digests(key_of("iom").folder)
    stop_at(monkeypatch, 4)
    with pytest.raises(Interrupted):
        mutual(small_params(), key_of("iom"))
    monkeypatch.undo()
    monkeypatch.setenv("SEMIRES_TRACKING", "off")
    (state,) = Path(".work").glob("*25-iom*/last.pt")
    data = bytearray(state.read_bytes())
    data[len(data) // 2] ^= 1
    state.write_bytes(bytes(data))
    mutual(small_params(), key_of("iom"))
    assert "damaged" in capsys.readouterr().out
    assert digests(key_of("iom").folder) == unbroken


def test_a_loss_that_is_no_number_stops_the_run(burned: Path, monkeypatch: pytest.MonkeyPatch):
    from semires.training import burn_in as module

    monkeypatch.setattr(module, "supervised_loss", lambda *_: torch.tensor(float("nan")))
    with pytest.raises(NonFiniteLossError, match="step 0"):
        burn_in(small_params(burn_in={"lr": 0.5}), BURN_IN)


def test_mutual_learning_starts_from_burn_in_and_moves(burned: Path):
    mutual(small_params(), key_of("cpi"))
    start = load_file(burned / "model.safetensors")
    end = load_file(key_of("cpi").folder / "model.safetensors")
    assert start.keys() == end.keys()
    moved = [not torch.equal(start[k], end[k]) for k in start if start[k].is_floating_point()]
    assert sum(moved) > len(moved) / 2


def test_corrections_and_panels_are_written(burned: Path):
    import numpy as np

    mutual(small_params(), key_of("cpi-o"))
    folder = key_of("cpi-o").folder
    table = pd.read_parquet(folder / "corrections.parquet")
    assert len(table) == 6
    unmatched = table[~table["matched"]]
    assert (unmatched["intersection_before"] == unmatched["intersection_after"]).all()
    with np.load(folder / "panels.npz", allow_pickle=False) as panels:
        assert set(panels["rule"]) == {"best", "worst", "random"}
        assert panels["truth"].dtype == bool
    pseudo = read_json(folder / "metrics.json")["pseudo"]
    assert pseudo["matched"] + pseudo["unmatched"] == pytest.approx(100)


def test_shuffled_expressions_are_anothers(burned: Path):
    sets = RunContext(small_params(), BURN_IN, ()).evaluation_sets(["val"])
    plain, shuffled = sets["val"], sets["val"].shuffled()
    lent = plain.refs["raw"].map(set)
    assert len(shuffled) == len(plain)
    for index, text in enumerate(shuffled.texts):
        ref = int(plain.ref_of[index])
        owners = {i for i, texts in enumerate(lent) if text in texts}
        assert owners - {ref}, text
    assert (shuffled.input_ids != plain.input_ids).any()
    evaluated = pd.read_parquet(burned / "predictions.parquet")
    assert set(evaluated["split"]) == {"val", "testA", "testB", "val_shuffled"}


def test_sums_stay_on_the_device_and_are_numbers_in_the_state(
    burned: Path, monkeypatch: pytest.MonkeyPatch
):
    """Means over all steps, read back where a run stops and where it is evaluated."""
    from semires.training.state import load_state

    mutual(small_params(), key_of("iom-60"))
    unbroken = pd.read_csv(key_of("iom-60").folder / "history.csv")
    shutil.rmtree(key_of("iom-60").folder)
    stop_at(monkeypatch, 2)
    with pytest.raises(Interrupted):
        mutual(small_params(), key_of("iom-60"))
    monkeypatch.undo()
    monkeypatch.setenv("SEMIRES_TRACKING", "off")
    (path,) = Path(".work").glob("*25-iom-60*/last.pt")
    state = load_state(path)
    assert state is not None
    assert all(type(value) is float for value in state["sums"].values())
    assert state["sums"]["pseudo_seen"] == 2 * 3
    assert 0 < state["sums"]["pseudo_raw_union"] <= 2 * 3 * 64 * 64
    mutual(small_params(), key_of("iom-60"))
    again = pd.read_csv(key_of("iom-60").folder / "history.csv")
    pd.testing.assert_frame_equal(again, unbroken)


@pytest.mark.parametrize(
    ("epochs", "steps", "wanted"), [(3, None, 15), (None, 9, 9), (3, 9, 9), (1, 9, 5)]
)
def test_the_shorter_of_epochs_and_steps_counts(epochs: Any, steps: Any, wanted: int):
    schedule = small_params(burn_in={"epochs": epochs, "steps": steps}).burn_in
    assert total_steps(schedule, samples=33, batch=8) == wanted


def test_sam_is_prompted_about_the_labels_of_a_training(burned: Path):
    """The source without masks of its own: propose, mutual learning, label quality."""
    weights = str(ROOT / "semires/weights/tiny_sam.safetensors")
    params = small_params(sam={"checkpoint": weights}, evaluation={"correction_refs": 12})
    prepare_checkpoint(params)
    propose(params, "refscenes", "sam-prompts")
    quality = read_json(Path("proposals/refscenes/sam-prompts/quality.json"))["val"]
    assert quality["best_iou"] > 0.8  # prompted with the ground truth
    assert 1 < quality["proposals_per_label"] <= 2
    # A burn-in of six steps labels nothing well; CPI without thresholds takes any overlap.
    tree = params.model_dump()
    tree["refine"]["cpi-u"]["threshold_u"] = 0.0
    params = validate(tree)
    key = RunKey("refscenes", 25, "cpi-u", 0, source="sam-prompts")
    mutual(params, key)
    pseudo = read_json(key.folder / "metrics.json")["pseudo"]
    assert pseudo["matched"] > 0
    assert pseudo["raw_oIoU"] != pseudo["refined_oIoU"]
    prompted = counts_of(params, key, "unlabelled", 12)
    assert prompted.image_index.tolist() == list(range(len(prompted)))
    assert 100 * (prompted.shapes[:, 0] > 0).mean() >= pseudo["matched"]
    table = make_table(prompted, "cpi-u")
    found = summarise(table.outcome({"threshold_u": 0.0}), table.labels)
    assert found["matched"] == pytest.approx(pseudo["matched"])
    assert found["oIoU"] == pytest.approx(pseudo["refined_oIoU"])
