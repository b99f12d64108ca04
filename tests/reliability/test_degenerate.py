"""Data at its limits: a training goes on with finite numbers, or refuses and says why."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.small_study import small_params
from PIL import Image

from semires import files
from semires.data.prepare import prepare
from semires.data.splits import make_split
from semires.errors import BusyError, ConfigError, CorruptCacheError, DataError, NonFiniteLossError
from semires.proposals.cache import Row, write_shard
from semires.proposals.propose import propose
from semires.refine.partition import Partition
from semires.runs import layout
from semires.runs.key import RunKey
from semires.training import burn_in as burn_in_module
from semires.training.burn_in import burn_in
from semires.training.mutual import mutual
from semires.training.state import load_state

SIDES = [(96, 96), (1, 1), (2, 3), (3, 1), (5, 200), (96, 96), (40, 30), (7, 7)]
WORDS = ["zyx qwv", "\U0001f436", "of of of", "x" * 300, "\u05db\u05dc\u05d1", "red", "?!", "a b c"]
SUPERVISED = RunKey("refscenes", 10, "supervised", 0)


def small(**changes: Any) -> Any:
    return small_params(**changes)


def limits(splits: list[str]) -> None:
    """A data set of tiny pictures and one-pixel objects, with words that no vocabulary has."""
    params = small()
    place = params.datasets["refscenes"]
    folder, pictures = Path(place.root) / place.dataset, Path(place.images)
    folder.mkdir(parents=True)
    pictures.mkdir(parents=True)
    rng = np.random.default_rng(0)
    images, annotations, refs = [], [], []
    for i, split in enumerate(splits):
        height, width = SIDES[i % len(SIDES)]
        name = f"{i}.png"
        Image.fromarray(rng.integers(0, 255, (height, width, 3), np.uint8)).save(pictures / name)
        images.append({"id": i, "file_name": name, "height": height, "width": width})
        runs = [height * width - 1, 1]  # the last pixel alone
        rle = {"size": [height, width], "counts": runs}
        annotations.append({"id": i, "image_id": i, "category_id": 1, "segmentation": rle,
                            "bbox": [0, 0, 1, 1]})  # fmt: skip
        text = WORDS[i % len(WORDS)]
        refs.append({"ref_id": i, "ann_id": i, "image_id": i, "category_id": 1, "split": split,
                     "sentences": [{"sent": text, "raw": text}]})  # fmt: skip
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "x"}]}
    (folder / "instances.json").write_text(json.dumps(content))
    (folder / f"refs({place.split_by}).p").write_bytes(pickle.dumps(refs, protocol=2))


def no_proposals(params: Any) -> None:
    """A cache in which every image has none."""
    folder = layout.proposals("refscenes", "felzenszwalb")
    table = files.read_parquet(layout.prepared("refscenes") / "images.parquet")
    rows = [
        Row(int(r.image_id), int(r.height), int(r.width), 0,
            Partition.from_masks(np.zeros((0, r.height, r.width), bool)).to_bytes(),
            np.zeros(0, np.float32), np.zeros(0, np.float32))
        for r in table.itertuples()
    ]  # fmt: skip
    digest = write_shard(folder / "shard-00000.parquet", rows)
    shard = {"file": "shard-00000.parquet", "first": 0, "n": len(rows), "sha256": digest}
    settings = params.proposals.sources["felzenszwalb"].model_dump()
    manifest = {"format": 1, "fingerprint": "x", "params": settings, "n_images": len(rows),
                "shards": [shard]}  # fmt: skip
    files.write_json(folder / "manifest.json", manifest, seal=True)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    limits(["train"] * 12 + ["val"] * 4 + ["testA"] * 3 + ["testB"] * 2)
    prepare(small(), "refscenes")
    make_split(small(), "refscenes", 10)  # one labelled image with one expression
    return tmp_path


def numbers(tree: Any) -> list[float]:
    if isinstance(tree, dict):
        return [n for value in tree.values() for n in numbers(value)]
    return [float(tree)] if isinstance(tree, int | float) else []


def test_one_labelled_image_tiny_pictures_no_proposals_unknown_words(project: Path):
    params = small(burn_in={"batch_size": 1}, mutual={"labelled_batch": 1})
    with pytest.raises(DataError, match=r"png: .* pixels; .* at least 8 pixels"):
        propose(params, "refscenes", "felzenszwalb")
    no_proposals(params)
    burn_in(params, SUPERVISED)
    for method in ("baseline", "iom", "cpi", "cpi-u"):
        cell = RunKey("refscenes", 10, method, 0)
        mutual(params, cell)
        metrics = files.read_json(cell.folder / "metrics.json")
        assert all(map(math.isfinite, numbers(metrics)))
        assert metrics["pseudo"]["matched"] == 0
        weights = files.sha256_file(cell.folder / "model.safetensors")
        assert len(weights) == 64


def test_all_background_pseudo_labels_have_a_finite_loss_and_gradient():
    from semires.refine import PseudoLabelRefiner
    from semires.training.losses import unsupervised_loss

    teacher = torch.stack([torch.full((3, 8, 8), 60.0), torch.full((3, 8, 8), -60.0)], dim=1)
    whole, none = np.ones((1, 8, 8), bool), np.zeros((0, 8, 8), bool)
    empty = np.zeros((1, 8, 8), bool)
    for strategy in ("none", "iom", "cpi", "cpi-u", "cpi-o"):
        refine = PseudoLabelRefiner(strategy=strategy)
        targets = refine(teacher, [Partition.from_masks(m) for m in (whole, none, empty)])
        assert not targets.matched.any()
        student = torch.zeros(3, 2, 8, 8, requires_grad=True)
        loss = unsupervised_loss(student, targets)
        loss.backward()
        assert torch.isfinite(loss)
        assert student.grad is not None
        assert torch.isfinite(student.grad).all()


def test_a_batch_larger_than_the_labelled_set_is_refused_before_any_step(project: Path):
    with pytest.raises(ConfigError, match=r"burn_in\.batch_size: a batch of 2 is more than the 1 "):
        burn_in(small(burn_in={"batch_size": 2}), SUPERVISED)
    params = small(burn_in={"batch_size": 1}, mutual={"labelled_batch": 2})
    no_proposals(params)
    burn_in(params, SUPERVISED)
    with pytest.raises(ConfigError, match=r"mutual\.labelled_batch: a batch of 2 is more than "):
        mutual(params, RunKey("refscenes", 10, "cpi-u", 0))
    assert not list(Path(".work").glob("runs-*"))


def test_stale_inputs_are_refused(project: Path):
    """Proposals of other parameters or of fewer images; a split of other data."""
    params = small(burn_in={"batch_size": 1}, mutual={"labelled_batch": 1})
    cell = RunKey("refscenes", 10, "iom", 0)
    no_proposals(params)
    burn_in(params, SUPERVISED)
    other = params.model_dump()
    other["proposals"]["sources"]["felzenszwalb"]["sigma"] = 0.9
    from semires.config.validate import validate

    with pytest.raises(CorruptCacheError, match=r"made with other parameters than proposals\.sou"):
        mutual(validate(other), cell)
    images = layout.prepared("refscenes") / "images.parquet"
    table, whole = files.read_parquet(images), images.read_bytes()
    files.write_parquet(images, table.head(5))  # proposals of these alone
    no_proposals(params)
    images.write_bytes(whole)
    with pytest.raises(CorruptCacheError, match=r"has no proposals for \d+ images.*stage propose"):
        mutual(params, cell)
    split = layout.split_file("refscenes", 10)
    files.write_json(split, {**files.read_json(split), "labelled_images": [999]}, seal=True)
    with pytest.raises(CorruptCacheError, match=r"10\.json: made from other data: image 999"):
        burn_in(params, SUPERVISED)


def test_a_loss_that_diverges_names_its_references_and_keeps_the_state(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    """Weights become infinite at the third step, as with a learning rate that is too high."""
    params = small(burn_in={"batch_size": 1})
    calls = iter(range(1000))
    original = burn_in_module.supervised_loss

    def diverging(logits: torch.Tensor, *others: Any) -> torch.Tensor:
        factor = math.inf if next(calls) == 2 else 1.0
        return original(logits * factor, *others)

    with monkeypatch.context() as patch:
        patch.setattr(burn_in_module, "supervised_loss", diverging)
        with pytest.raises(NonFiniteLossError) as caught:
            burn_in(params, SUPERVISED)
    train = files.read_parquet(layout.prepared("refscenes") / "refs.parquet")
    drawn = files.read_json(layout.split_file("refscenes", 10))["labelled_images"]
    (ref_id,) = train.loc[train["image_id"].isin(drawn), "ref_id"]
    said = str(caught.value)
    assert f"at step 2, for a batch of the references {ref_id};" in said
    (state,) = Path(".work").glob("runs-*/last.pt")
    assert str(state.parent) in said
    burn_in(params, SUPERVISED)
    assert "resuming from step 2 of 6" in capsys.readouterr().out


def test_the_control_needs_no_unlabelled_image(project: Path):
    make_split(small(), "refscenes", 100)
    burn_in(small(), RunKey("refscenes", 100, "supervised", 0))
    control = RunKey("refscenes", 100, "control", 0)
    no_proposals(small())
    mutual(small(), control)
    assert "pseudo" not in files.read_json(control.folder / "metrics.json")


def test_a_forward_pass_that_breaks_the_model_is_not_saved(
    project: Path, monkeypatch: pytest.MonkeyPatch
):
    """Batch norm's statistics become infinite with the logits: the saved state stays finite."""
    original = burn_in_module.Loop.backward

    def backward(self: Any, loss: torch.Tensor, ref_ids: list[int]) -> None:
        if self.step == 1:
            self.save()
        if self.step == 2:
            buffers = self.modules["model"].named_buffers()
            next(b for name, b in buffers if name.endswith("running_var")).fill_(math.inf)
            loss = torch.tensor(math.nan)
        original(self, loss, ref_ids)

    monkeypatch.setattr(burn_in_module.Loop, "backward", backward)
    with pytest.raises(NonFiniteLossError, match=r"the state before it is in \.work"):
        burn_in(small(burn_in={"batch_size": 1}), SUPERVISED)
    (path,) = Path(".work").glob("runs-*/last.pt")
    state = load_state(path)
    assert state is not None
    assert state["step"] in (1, 2)
    assert all(t.isfinite().all() for t in state["modules"]["model"].values())


def test_another_state_is_left_alone_and_named(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    from semires import process
    from semires.errors import Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(process, "stop_requested", lambda: 143)
        with pytest.raises(Interrupted):
            burn_in(small(burn_in={"batch_size": 1}), SUPERVISED)
    burn_in(small(burn_in={"batch_size": 1, "lr": 0.002}), SUPERVISED)
    said = capsys.readouterr().out
    assert "starts again from step 0: .work/runs-refscenes-10-supervised-seed0-" in said
    assert len(list(Path(".work").glob("runs-*/last.pt"))) == 1


def test_one_process_makes_a_run(project: Path):
    from semires.training.context import RunContext

    params = small(burn_in={"batch_size": 1})
    with (
        RunContext(params, SUPERVISED, burn_in_module.SECTIONS).lock(),
        pytest.raises(BusyError, match=r"another process is making the run runs/refscenes/10/sup"),
    ):
        burn_in(params, SUPERVISED)
    burn_in(params, SUPERVISED)


@pytest.mark.parametrize("workers", [1, 3])
def test_loader_processes_change_nothing_in_mutual_learning(project: Path, workers: int):
    params = small(burn_in={"batch_size": 1}, mutual={"labelled_batch": 1, "steps": 3})
    no_proposals(params)
    burn_in(params, SUPERVISED)
    cell = RunKey("refscenes", 10, "cpi-u", 0)
    digests = []
    for count in (0, workers):
        runtime = params.runtime.model_copy(update={"workers": count})
        mutual(params.model_copy(update={"runtime": runtime}), cell)
        digests.append(files.sha256_file(cell.folder / "model.safetensors"))
    assert digests[0] == digests[1]
