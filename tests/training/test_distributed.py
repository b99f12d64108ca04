"""Two processes on CPUs (gloo) against one: the same training, written once."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from helpers import HELPERS, ROOT
from helpers.small_study import small_params
from safetensors.torch import load_file

from semires.config.resolve import resolve
from semires.config.schema import Params
from semires.config.validate import validate
from semires.files import read_json, sha256_file, sha256_tree, write_json, write_parquet
from semires.models.weights import load_weights
from semires.runs.key import RunKey
from semires.samples import augment, dataset
from semires.samples.batch import MutualBatch, collate
from semires.samples.stream import Stream
from semires.training.burn_in import burn_in
from semires.training.context import RunContext
from semires.training.losses import supervised_loss, unsupervised_loss
from semires.training.mutual import SECTIONS, make_refiner, mutual, training_datasets

BURN_IN = RunKey("refscenes", 25, "supervised", 0)
SAME = {"model.safetensors", "metrics.json", "predictions.parquet", "corrections.parquet"}
THRESHOLD = 0.4  # of IOM: one of the first three pseudo-labels of rank 0 matches, two of rank 1
RANK = str(HELPERS / "rank.py")


def params_of(**changes: Any) -> Params:
    """A small study whose BERT has a frozen layer: DDP must not wait for its gradient."""
    tree = small_params(**changes).model_dump()
    tree["model"]["bert"]["num_layers"] = 2
    tree["models"]["rela"]["model"]["bert"]["num_layers"] = 2
    tree["optimizer"]["bert_layers_trained"] = 1
    return validate(tree)


def together(*words: str, params: Params, code: int = 0, module: bool = False) -> str:
    """Run rank.py in two processes, or semires itself under torchrun; return what they print."""
    write_json("params.json", params.model_dump())
    if not module:
        return forked(words, code)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
         "-m", "semires", "--params", "params.json", *words],
        env=environment, capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    return done.stdout + done.stderr


def forked(words: tuple[str, ...], code: int) -> str:
    """Run rank.py in two forks of this process, which has imported torch already."""
    context, output = multiprocessing.get_context("fork"), Path("output.txt").absolute()
    output.write_text("")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [context.Process(target=rank, args=(r, port, words, output)) for r in range(2)]
    for each in ranks:
        each.start()
    for each in ranks:
        each.join(300)
        each.kill()
    said = output.read_text()
    output.unlink()
    assert [each.exitcode for each in ranks] == [code, code], said[-4000:]
    return said


def rank(number: int, port: int, words: tuple[str, ...], output: Path) -> None:
    """Run rank.py in this process as one of two, with torchrun's environment."""
    os.environ |= {
        "RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    sys.argv = [RANK, *words]
    with open(output, "a") as sys.stdout:
        sys.stderr = sys.stdout
        runpy.run_path(RANK, run_name="__main__")


@pytest.fixture(scope="module")
def burned(small_study: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEMIRES_TRACKING", "off")
        burn_in(params_of(), BURN_IN)
        burn_in(params_of(), replace(BURN_IN, model="rela"))
    shutil.copytree(BURN_IN.folder, "kept")
    return small_study


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Float64 in this process and in those that :func:`together` starts (see rank.py)."""
    monkeypatch.setenv("DOUBLE", "1")
    monkeypatch.setattr(dataset, "normalise", lambda image: augment.normalise(image).double())
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def start(burned: Path) -> Path:
    """The burn-in's folder as the fixture made it, whatever a test before did to it."""
    shutil.rmtree(BURN_IN.folder, ignore_errors=True)
    shutil.copytree("kept", BURN_IN.folder)
    return BURN_IN.folder


def history(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "history.csv")


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest relative difference of two tensors of the same name; zeros may be rounding."""
    assert one.keys() == other.keys()
    return max(
        float((value - other[name]).double().norm() / value.double().norm().clamp(1e-4))
        for name, value in one.items()
    )


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("evaluations", [5, 1])
def test_burn_in_by_two_is_burn_in_with_twice_the_batch(start: Path, evaluations: int):
    """Losses of every step; with one evaluation the kept weights are those after five steps."""
    length = {"steps": 5, "evaluations": evaluations}
    burn_in(params_of(burn_in={"batch_size": 4, **length}), BURN_IN)
    alone, weights = history(start), load_file(start / "model.safetensors")
    together("train", "supervised", params=params_of(burn_in={"batch_size": 2, **length}))
    assert read_json(start / "run.json")["numerics"]["processes"] == 2
    pd.testing.assert_frame_equal(history(start), alone, rtol=1e-6)
    assert distance(weights, load_file(start / "model.safetensors")) < 1e-9


@pytest.mark.usefixtures("double", "start")
@pytest.mark.parametrize("name", [None, "rela"])
def test_mutual_learning_by_two_takes_the_mean_of_the_halves_gradients(name: str | None):
    """Batch statistics are those of all samples; matched and unmatched mix within a process."""
    params = params_of(refine={"mixed": {"strategy": "iom", "threshold": THRESHOLD, "pwa": True}})
    which = RunKey("refscenes", 25, "mixed", 0, model=name)
    together("gradients", which.label, "gradients.pt", params=params)
    found = torch.load("gradients.pt", weights_only=True)

    params = resolve(params, which)
    context = RunContext(params, which, SECTIONS)
    model = context.build_model(pretrained=False)
    model.freeze(params.optimizer.model_copy(update={"bert_layers_trained": 1}))
    load_weights(model, which.burn_in.folder / "model.safetensors")
    datasets = training_datasets(context, params.refine["mixed"])

    def half_of(rank: int) -> MutualBatch:
        places = [next(iter(Stream(part, 3, 1, 0, rank, 2))) for part in datasets]
        (labelled, unlabelled), (first, second) = datasets, places
        return MutualBatch(
            collate([labelled[i] for i in first]), collate([unlabelled[i] for i in second])
        )

    halves = [half_of(rank) for rank in range(2)]
    refiner, targets = make_refiner(params, params.refine["mixed"]), []
    for half in halves:
        with torch.no_grad():
            logits = model.eval()(*half.unlabelled.inputs)
        targets.append(refiner(logits.float(), half.unlabelled.partitions))
    inputs = [i for half in halves for i in (half.labelled.inputs, half.unlabelled.strong_inputs)]
    outputs = model.train().training_outputs(*map(torch.cat, zip(*inputs, strict=True)))
    losses = []
    for half, at in enumerate((0, 6)):
        sure, strong = outputs.select(slice(at, at + 3)), outputs.select(slice(at + 3, at + 6))
        mask, refined = halves[half].labelled.mask, targets[half]
        losses += [
            supervised_loss(sure.logits.float(), mask)
            + unsupervised_loss(strong.logits.float(), refined)
            + sum(model.extra_losses(sure, mask).values())
            + sum(model.extra_losses(strong, refined.labels).values())
        ]
    loss = (losses[0] + losses[1]) / 2
    loss.backward()
    wanted = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}

    assert name or len({int(t.matched.sum()) for t in targets}) == 2, "halves of the same mixture"
    assert found["loss"].item() == pytest.approx(loss.item(), rel=1e-6)
    assert distance(wanted, found["gradients"]) < 1e-5


def test_a_run_by_two_goes_on_as_the_unbroken_one(start: Path):
    """Dropout, moving average and the filter's window come back; a signal reaches one of them."""
    method = {"strategy": "iom", "threshold": THRESHOLD, "pwa": True, "keep": 0.6}
    params = params_of(refine={"sure": method}, model={"fusion_dropout": 0.2})
    folder = RunKey("refscenes", 25, "sure", 0).folder
    together("train", "sure", params=params)
    unbroken = {p.name: sha256_file(p) for p in folder.iterdir() if p.name in SAME}
    wanted = history(folder)
    shutil.rmtree(folder)
    said = together("train", "sure", "4", params=params, code=143)
    assert "stopped at step 4 of 6, state saved" in said
    assert not folder.exists()

    said = together("train", "sure", params=params)
    assert "resuming from step 4 of 6" in said
    assert {p.name: sha256_file(p) for p in folder.iterdir() if p.name in SAME} == unbroken
    assert set(unbroken) == SAME
    pd.testing.assert_frame_equal(history(folder), wanted)


def test_a_state_is_continued_only_by_as_many_samples_a_step(
    start: Path, capsys: pytest.CaptureFixture[str]
):
    key = RunKey("refscenes", 25.0, "baseline", 0)  # a float, as rank.py reads it
    said = together("train", "baseline", "4", params=params_of(), code=143)
    assert "state saved" in said
    mutual(params_of(), key)
    assert "starts again from step 0" in capsys.readouterr().out
    mutual(params_of(runtime={"accumulate": 2}), key)
    assert "resuming from step 4 of 6" in capsys.readouterr().out


def test_predictions_are_the_same_bytes(start: Path):
    """Small batches of shared images, and a split that leaves one process without any."""
    for size in (2, 64):
        params = params_of(evaluation={"batch_size": size})
        context = RunContext(params, BURN_IN, SECTIONS)
        model = context.build_model(pretrained=False)
        load_weights(model, start / "model.safetensors")
        table = context.evaluate(model, context.evaluation_sets(["testA"])["testA"])
        write_parquet("alone.parquet", table)
        together("evaluate", "both.parquet", params=params)
        assert sha256_file("both.parquet") == sha256_file("alone.parquet")


def test_the_command_evaluates_and_proposes_by_two(start: Path):
    words = ("--dataset", "refscenes", "--checkpoint", str(start), "--split", "testB")
    lines = together("evaluate", *words, params=params_of(), module=True)
    metrics = read_json(start / "metrics.json")["testB"]
    assert lines.count("27 expressions, percent") == 1, "one process speaks"
    assert f"oIoU   {metrics['oIoU']:6.2f}" in lines

    folder = Path("proposals/refscenes/felzenszwalb")
    alone = sha256_tree(folder)
    folder.rename("put aside")
    params = params_of()
    words = ("--dataset", "refscenes", "--source", "felzenszwalb")
    together("propose", *words, params=params, module=True)
    assert sha256_tree(folder) == alone
