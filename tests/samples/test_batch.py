"""Batches: joined in order, moved whole, and without a way from hidden truth to a loss."""

import dataclasses

import numpy as np
import pytest
import torch

from semires.refine.partition import Partition
from semires.samples.batch import Batch, LabelledBatch, MutualBatch, UnlabelledBatch, collate
from semires.training.losses import supervised_loss

SIZE, TOKENS = 4, 3


def inputs(index: int) -> dict[str, object]:
    return {
        "image": torch.full((1, 3, SIZE, SIZE), float(index)),
        "input_ids": torch.full((1, TOKENS), index),
        "attention_mask": torch.ones(1, TOKENS, dtype=torch.int64),
        "indices": [index],
        "ref_ids": [10 * index],
    }


def labelled(index: int) -> LabelledBatch:
    return LabelledBatch(**inputs(index), mask=torch.full((1, SIZE, SIZE), index % 2))


def unlabelled(index: int) -> UnlabelledBatch:
    return UnlabelledBatch(
        **inputs(index),
        strong=torch.full((1, 3, SIZE, SIZE), -float(index)),
        partitions=[Partition.from_masks(np.ones((index, SIZE, SIZE), dtype=bool))],
        hidden_truth=torch.full((1, SIZE, SIZE), index % 2 == 1),
    )


def tensors(batch: Batch) -> dict[str, torch.Tensor]:
    return {n: v for n, v in vars(batch).items() if isinstance(v, torch.Tensor)}


def test_samples_are_joined_in_order():
    batch = collate([unlabelled(2), unlabelled(1), unlabelled(3)])
    assert isinstance(batch, UnlabelledBatch)
    assert len(batch) == 3
    assert batch.indices == [2, 1, 3]
    assert batch.ref_ids == [20, 10, 30]
    assert [len(p) for p in batch.partitions] == [2, 1, 3]
    assert all(len(tensor) == 3 for tensor in tensors(batch).values())
    assert batch.image[:, 0, 0, 0].tolist() == [2, 1, 3]
    assert batch.strong_inputs[0][:, 0, 0, 0].tolist() == [-2, -1, -3]
    assert batch.hidden_truth[:, 0, 0].tolist() == [False, True, True]


def test_every_tensor_moves_and_nothing_else_changes():
    batch = MutualBatch(labelled(1), unlabelled(2))
    moved = batch.to(torch.device("meta"))
    assert moved.ref_ids == batch.ref_ids == [10, 20]
    assert len(moved) == 2
    assert moved.unlabelled is not None
    assert moved.unlabelled.partitions is batch.unlabelled.partitions  # type: ignore[union-attr]
    for part in (moved.labelled, moved.unlabelled):
        assert {tensor.device.type for tensor in tensors(part).values()} == {"meta"}
    alone = MutualBatch(labelled(1), None).to(torch.device("meta"))
    assert (alone.ref_ids, len(alone), alone.unlabelled) == ([10], 1, None)


def test_no_loss_takes_hidden_truth():
    batch, logits = unlabelled(1), torch.zeros(1, 2, SIZE, SIZE)
    supervised_loss(logits, labelled(1).mask)
    assert "mask" not in {field.name for field in dataclasses.fields(UnlabelledBatch)}
    assert not issubclass(UnlabelledBatch, LabelledBatch)
    with pytest.raises(RuntimeError, match="Bool"):
        supervised_loss(logits, batch.hidden_truth)
