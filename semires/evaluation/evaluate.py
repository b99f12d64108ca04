"""Evaluation: every expression of every reference on its own, at the model's image size.

The ground truth is resized by nearest neighbour to the model's square, as published. Prediction
is ``argmax`` over the two classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.utils.data import DataLoader

from semires.data.dataset import ExpressionDataset, collate
from semires.evaluation.metrics import segmentation_metrics


def batches(
    dataset: ExpressionDataset, batch_size: int, indices: list[int], workers: int = 0
) -> Iterator[dict[str, Any]]:
    """Batches of the samples ``indices`` in order."""
    groups = [
        [(i, i) for i in indices[first : first + batch_size]]
        for first in range(0, len(indices), batch_size)
    ]
    return iter(DataLoader(dataset, batch_sampler=groups, num_workers=workers, collate_fn=collate))


@torch.inference_mode()
def predict_masks(
    model: nn.Module,
    dataset: ExpressionDataset,
    batch_size: int,
    device: torch.device,
    indices: list[int] | None = None,
    workers: int = 0,
) -> Iterator[tuple[dict[str, Any], torch.Tensor]]:
    """Yield ``(batch, logits (B,2,S,S))`` over the samples ``indices`` (default: all)."""
    model.eval()
    indices = list(range(len(dataset))) if indices is None else indices
    for batch in batches(dataset, batch_size, indices, workers):
        logits = model(
            batch["image"].to(device),
            batch["input_ids"].to(device),
            batch["attention_mask"].to(device),
        )
        yield batch, logits


def evaluate(
    model: nn.Module,
    dataset: ExpressionDataset,
    batch_size: int,
    device: torch.device,
    indices: list[int] | None = None,
    workers: int = 0,
) -> pd.DataFrame:
    """One row per expression: ``predictions.parquet``'s columns without ``split``."""
    rows = []
    for batch, logits in predict_masks(model, dataset, batch_size, device, indices, workers):
        predicted = logits.argmax(1).bool().flatten(1)
        truth = batch["mask"].to(device).bool().flatten(1)
        counts = torch.stack(
            [
                (predicted & truth).sum(1),
                (predicted | truth).sum(1),
                truth.sum(1),
                predicted.sum(1),
            ],
            dim=1,
        )
        rows.append((batch["sample"], counts.cpu().numpy()))
    samples = np.concatenate([np.asarray(s) for s, _ in rows] or [np.zeros(0, int)])
    numbers = np.concatenate([n for _, n in rows] or [np.zeros((0, 4), int)])
    refs = dataset.ref_of[samples]
    return pd.DataFrame(
        {
            "ref_id": dataset.refs["ref_id"].to_numpy()[refs],
            "image_id": dataset.refs["image_id"].to_numpy()[refs],
            "sentence": dataset.sentence_of[samples],
            "expression": [dataset.texts[s] for s in samples],
            "intersection": numbers[:, 0],
            "union": numbers[:, 1],
            "object_area": numbers[:, 2],
            "predicted_area": numbers[:, 3],
        }
    )


def summarise(predictions: pd.DataFrame) -> dict[str, float]:
    """oIoU, mIoU and precisions of a table of predictions, percent."""
    return segmentation_metrics(
        predictions["intersection"].to_numpy(), predictions["union"].to_numpy()
    )
