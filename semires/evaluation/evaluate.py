"""Evaluation of every expression of every reference, at the model's image size.

The ground truth is resized to the model's square by nearest neighbour, as in the published code.
The prediction is the ``argmax`` over the two classes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader

from semires.dist import Group
from semires.evaluation.metrics import segmentation_metrics
from semires.models import SegmentationModel
from semires.process import autocast
from semires.samples.batch import B, collate
from semires.samples.dataset import ExpressionDataset, LabelledDataset


@torch.inference_mode()
def predict_masks(
    model: SegmentationModel,
    dataset: ExpressionDataset[B],
    batch_size: int,
    device: torch.device,
    indices: list[int] | None = None,
    workers: int = 0,
    precision: str = "fp32",
) -> Iterator[tuple[B, torch.Tensor]]:
    """Yield ``(batch, logits)`` over the samples ``indices`` (default: all), in order.

    The batch is on the CPU; the logits are float32 (B,2,S,S) on ``device`` for every
    ``precision`` (as ``runtime.precision``). Expressions of one image in a batch share the model's
    text-independent part.
    """
    model.eval()
    indices = list(range(len(dataset))) if indices is None else indices
    starts = range(0, len(indices), batch_size)
    batches = [[(i, i) for i in indices[start : start + batch_size]] for start in starts]
    loader: DataLoader[B] = DataLoader(
        dataset, batch_sampler=batches, num_workers=workers, collate_fn=collate
    )
    for batch in loader:
        refs = dataset.ref_of[batch.indices]
        _, first, image_of = np.unique(
            dataset.refs["image_id"].to_numpy()[refs], return_index=True, return_inverse=True
        )
        with autocast(device, precision):
            logits = model.forward_shared(
                batch.image[first].to(device),
                torch.from_numpy(image_of).to(device),
                batch.input_ids.to(device),
                batch.attention_mask.to(device),
            )
        yield batch, logits.float()


def evaluate(
    group: Group,
    model: SegmentationModel,
    dataset: LabelledDataset,
    batch_size: int,
    workers: int = 0,
    precision: str = "fp32",
) -> pd.DataFrame:
    """One row per expression: the columns of ``predictions.parquet`` except ``split``.

    The processes of ``group`` share the work, and each returns the whole table. Rows are ordered by
    ``ref_id`` and ``sentence``, so they do not depend on the number of processes.
    """
    order = np.argsort(dataset.image_ids, kind="stable").tolist()  # group expressions by image
    mine, device = group.share(order, batch_size), group.device
    samples: list[int] = []
    counts = [torch.zeros((0, 4), dtype=torch.int64, device=device)]
    outputs = predict_masks(model, dataset, batch_size, device, mine, workers, precision)
    for batch, logits in outputs:
        predicted = (logits[:, 1] > logits[:, 0]).flatten(1)
        truth = batch.mask.to(device).bool().flatten(1)
        overlaps = (predicted & truth, predicted | truth, truth, predicted)
        counts.append(torch.stack([pixels.sum(1) for pixels in overlaps], dim=1))
        samples += batch.indices
    numbers = torch.cat(counts).cpu().numpy()  # a single transfer from the device
    chosen = np.asarray(samples, dtype=np.int64)
    refs = dataset.ref_of[chosen]
    part = pd.DataFrame(
        {
            "ref_id": dataset.refs["ref_id"].to_numpy()[refs],
            "image_id": dataset.refs["image_id"].to_numpy()[refs],
            "sentence": dataset.sentence_of[chosen],
            "expression": [dataset.texts[s] for s in samples],
            "intersection": numbers[:, 0],
            "union": numbers[:, 1],
            "object_area": numbers[:, 2],
            "predicted_area": numbers[:, 3],
        }
    )
    parts = [each for each in group.gather(part) if len(each)]  # empty columns lose their dtype
    table = pd.concat(parts or [part])
    return table.sort_values(["ref_id", "sentence"], kind="stable").reset_index(drop=True)


def summarise(predictions: pd.DataFrame) -> dict[str, float]:
    """Overall IoU, mean IoU and precisions of a table of predictions, in percent."""
    return segmentation_metrics(
        predictions["intersection"].to_numpy(), predictions["union"].to_numpy()
    )
