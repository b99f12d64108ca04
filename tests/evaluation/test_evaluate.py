"""Evaluation: expressions that share an image share its first stage, and nothing else changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from pycocotools import mask as coco_mask

from semires.config.load import load_params
from semires.data.tables import Tables
from semires.dist import Group
from semires.evaluation.evaluate import evaluate, predict_masks
from semires.models import LAVT, SegmentationModel
from semires.models.text import Tokenizer
from semires.samples import dataset as dataset_module
from semires.samples.dataset import ImageStore, LabelledDataset

SIZE, CPU = 32, torch.device("cpu")
ALONE = Group(0, 1, CPU)
WORDS = ["red", "circle", "left object", "blue square at the top", "the small green mushroom"]


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> LabelledDataset:
    """Five references of three images, in an order that goes back and forth between them."""
    from PIL import Image

    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for i in range(3):
        noise = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{i}.png")
    images = pd.DataFrame(
        {"file_name": [f"{i}.png" for i in range(3)], "height": 40, "width": 48},
        index=pd.Index([7, 8, 9], name="image_id"),
    )
    masks = np.zeros((5, 40, 48), dtype=np.uint8)
    for i, mask in enumerate(masks):
        mask[4 + i : 20 + 4 * i, 6:30] = 1
    refs = pd.DataFrame(
        {
            "ref_id": range(5),
            "image_id": [7, 9, 7, 8, 9],
            "raw": [WORDS[: 1 + i % 3] for i in range(5)],
            "mask": [coco_mask.encode(np.asfortranarray(m))["counts"].decode() for m in masks],
        }
    )
    tables = Tables(images, refs)
    tokenizer = Tokenizer("semires/weights/vocab.txt")
    store = ImageStore(tables, folder, SIZE)
    return LabelledDataset(refs, tables, store, tokenizer, 20, text="raw")


@pytest.fixture(scope="module")
def model() -> LAVT:
    torch.manual_seed(0)
    lavt = LAVT.from_config(load_params("experiments/demo.yaml").model, 200).eval()
    for parameter in lavt.fusions.parameters():  # words must matter
        torch.nn.init.normal_(parameter, std=0.3)
    return lavt


class Plain(SegmentationModel):
    """A model that only has a forward."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.inner(*inputs)
        return out


def logits_of(model: torch.nn.Module, samples: LabelledDataset, size: int) -> torch.Tensor:
    return torch.cat([logits for _, logits in predict_masks(model, samples, size, CPU)])


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_sharing_the_first_stage_changes_no_logit(samples, model, batch_size):
    shared = logits_of(model, samples, batch_size)
    alone = logits_of(Plain(model), samples, batch_size)
    assert shared.shape == (len(samples), 2, SIZE, SIZE)
    torch.testing.assert_close(shared, alone, rtol=1e-5, atol=1e-5)
    one_by_one = [model(*samples[i].inputs) for i in range(len(samples))]
    torch.testing.assert_close(shared, torch.cat(one_by_one), rtol=1e-4, atol=1e-4)


def test_an_image_is_begun_once_however_many_its_expressions(samples, model, monkeypatch):
    begun: list[int] = []
    original = model.encode_image
    monkeypatch.setattr(
        model, "encode_image", lambda images: begun.append(len(images)) or original(images)
    )
    evaluate(ALONE, model, samples, 32)
    assert begun == [3]


def test_rows_are_ordered_by_reference_and_sentence(samples, model):
    table = evaluate(ALONE, model, samples, 4)
    keys = [samples.refs["ref_id"].to_numpy()[samples.ref_of], samples.sentence_of]
    order = np.lexsort(keys[::-1])
    assert table["ref_id"].tolist() == keys[0][order].tolist()
    assert table["sentence"].tolist() == keys[1][order].tolist()
    assert table["expression"].tolist() == [samples.texts[i] for i in order]
    pd.testing.assert_frame_equal(evaluate(ALONE, Plain(model), samples, 4), table)


def test_counts_are_those_of_the_masks(samples, model):
    table = evaluate(ALONE, model, samples, 32)
    for i, row in table.iterrows():
        predicted = logits_of(model, samples, 32)[i].argmax(0).bool()
        truth = samples[i].mask[0].bool()
        assert row["intersection"] == int((predicted & truth).sum())
        assert row["union"] == int((predicted | truth).sum())
        assert (row["object_area"], row["predicted_area"]) == (truth.sum(), predicted.sum())


class Idle(Group):
    """One process of many, whose work is not collected."""

    def gather(self, value: Any) -> list[Any]:
        return [value]


def test_a_process_without_work_has_an_empty_table(samples, model):
    assert evaluate(Idle(99, 100, CPU), model, samples, 4).empty


def test_a_model_without_the_first_stage_gets_whole_images():
    class Mean(SegmentationModel):
        def forward(
            self, pixel_values: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor
        ) -> torch.Tensor:
            return pixel_values.mean((2, 3)) + input_ids + attention_mask

    images = torch.rand(2, 3, 4, 4)
    which, ids = torch.tensor([1, 0, 1]), torch.arange(9).view(3, 3)
    found = Mean().forward_shared(images, which, ids, torch.ones_like(ids))
    torch.testing.assert_close(found, images[which].mean((2, 3)) + ids + 1)


def test_caches_are_bounded_by_bytes_and_lose_nothing(samples, monkeypatch):
    monkeypatch.setattr(dataset_module, "MASK_CACHE_BYTES", 2 * SIZE * SIZE)

    def copy(**options: Any) -> LabelledDataset:
        tables = Tables(pd.DataFrame({"height": 40, "width": 48}, index=[7, 8, 9]), samples.refs)
        return LabelledDataset(
            samples.refs, tables, samples.images, Tokenizer("semires/weights/vocab.txt"), 20,
            text="raw", **options,
        )  # fmt: skip

    small = copy()
    for i in [*range(len(samples)), 0]:
        assert torch.equal(small[i].mask, samples[i].mask)
        assert small[i].mask.dtype == torch.int64
    held = small.mask_of.cache_info()
    assert (held.maxsize, held.currsize) == (2, 2)
    assert copy(sentences="one").image_ids.tolist() == samples.refs["image_id"].tolist()
