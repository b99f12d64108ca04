"""The effect of refinement on pseudo-labels: better, worse or unchanged (paper Figures 3, 6, 8).

Measured with the burn-in teacher on unlabelled references, one expression per reference, against
their hidden ground truth. The results are logged and shown; no training uses them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from semires.config.schema import Params
from semires.dist import Group
from semires.evaluation.evaluate import predict_masks
from semires.evaluation.metrics import gains
from semires.files import npz_bytes, write_bytes, write_parquet
from semires.models import SegmentationModel
from semires.refine import PseudoLabelRefiner, RefinedLabels
from semires.refine.refiner import resolve_partitions
from semires.samples.batch import B, UnlabelledBatch
from semires.samples.dataset import ExpressionDataset, UnlabelledDataset

PANELS_PER_RULE = 3
Predict = Callable[..., Iterator[tuple[UnlabelledBatch, torch.Tensor]]]


@dataclass(frozen=True)
class Corrections:
    """The measured corrections of a run.

    Args:
        table: one row per reference: ids, ``matched``, and the intersection and union with the
            hidden ground truth before and after refinement, in pixels.
        panels: arrays of the samples that a qualitative figure shows.
    """

    table: pd.DataFrame
    panels: dict[str, NDArray[Any]]

    def write(self, folder: Path) -> None:
        """Write ``corrections.parquet`` and ``panels.npz`` into a run's folder."""
        write_parquet(folder / "corrections.parquet", self.table)
        write_bytes(folder / "panels.npz", npz_bytes(self.panels))


def overlap_sums(
    teacher_logits: torch.Tensor, targets: RefinedLabels, hidden_truth: torch.Tensor
) -> dict[str, torch.Tensor | float]:
    """Sums over a batch for the training log; tensors stay on the device.

    Args:
        teacher_logits: float32 (B,2,H,W).
        targets: the refined labels of the batch.
        hidden_truth: bool (B,H,W).
    """
    raw = teacher_logits[:, 1] > teacher_logits[:, 0]
    sums: dict[str, torch.Tensor | float] = {
        "pseudo_matched": targets.matched.sum(),
        "pseudo_seen": len(hidden_truth),
    }
    for name, label in (("raw", raw), ("refined", targets.labels.bool())):
        sums[f"pseudo_{name}_intersection"] = (label & hidden_truth).sum()
        sums[f"pseudo_{name}_union"] = (label | hidden_truth).sum()
    return sums


def measure_corrections(
    params: Params,
    group: Group,
    seed: int,
    dataset: UnlabelledDataset,
    refiner: PseudoLabelRefiner,
    *,
    teacher: SegmentationModel,
    final: SegmentationModel,
) -> Corrections:
    """Refine the burn-in teacher's labels on a sample of unlabelled references.

    Args:
        params: the sections ``evaluation`` and ``runtime`` are used.
        group: the processes that share the work; each returns the whole result.
        seed: of the draw of references and panels.
        dataset: the unlabelled part, without augmentation.
        refiner: the method's refiner.
        teacher: the model with the weights of burn-in.
        final: the trained model, for the panels.
    """
    settings = params.evaluation
    predict: Predict = functools.partial(
        predict_masks, dataset=dataset, device=group.device, precision=params.runtime.precision
    )
    chosen = sample_refs(dataset, settings.correction_refs, seed)
    mine = group.share(chosen, settings.batch_size)
    outputs = predict(teacher, indices=mine, batch_size=settings.batch_size)
    rows = [_correct(batch, logits, refiner, dataset) for batch, logits in outputs]
    parts = [table for tables in group.gather(rows) for table in tables]
    table = pd.concat(parts).sort_values("sample").reset_index(drop=True)
    panels = _panels(predict, teacher, final, refiner, dataset, choose_panels(table, seed))
    return Corrections(table.drop(columns="sample"), panels)


def sample_refs(dataset: ExpressionDataset[B], limit: int | None, seed: int) -> list[int]:
    """The first expression of each reference, of at most ``limit`` references drawn by seed."""
    firsts = np.flatnonzero(dataset.sentence_of == 0)
    if limit is not None and limit < len(firsts):
        firsts = np.sort(np.random.default_rng(seed).permutation(firsts)[:limit])
    return [int(i) for i in firsts]


def shares(table: pd.DataFrame) -> dict[str, float]:
    """Overall IoU before and after refinement, and the shares corrected, in percent.

    The section ``pseudo`` of ``metrics.json``.
    """
    gain, matched, count = gains(table), table["matched"], max(len(table), 1)
    return {
        "raw_oIoU": _percent(table["intersection_before"].sum(), table["union_before"].sum()),
        "refined_oIoU": _percent(table["intersection_after"].sum(), table["union_after"].sum()),
        "matched": _percent(matched.sum(), count),
        "better": _percent((gain > 0).sum(), count),
        "worse": _percent((gain < 0).sum(), count),
        "unmatched": _percent((~matched).sum(), count),
    }


def _percent(part: float, whole: float) -> float:
    return float(100 * part / whole) if whole else 0.0


def _correct(
    batch: UnlabelledBatch,
    logits: torch.Tensor,
    refiner: PseudoLabelRefiner,
    dataset: UnlabelledDataset,
) -> pd.DataFrame:
    """Pixel counts of the labels before and after refinement, one row per reference."""
    targets = refiner(logits, resolve_partitions(batch.partitions, logits))
    truth = batch.hidden_truth.to(logits.device)
    refs = dataset.ref_of[batch.indices]
    columns: dict[str, Any] = {
        "sample": batch.indices,
        "ref_id": dataset.refs["ref_id"].to_numpy()[refs],
        "image_id": dataset.refs["image_id"].to_numpy()[refs],
        "matched": targets.matched.cpu().numpy(),
    }
    for name, label in (("before", logits.argmax(1).bool()), ("after", targets.labels.bool())):
        columns[f"intersection_{name}"] = (label & truth).sum((1, 2)).cpu().numpy()
        columns[f"union_{name}"] = (label | truth).sum((1, 2)).cpu().numpy()
    return pd.DataFrame(columns)


def choose_panels(table: pd.DataFrame, seed: int) -> dict[str, list[int]]:
    """Samples to show, by rule: the largest gains, the largest losses, and random ones."""
    gain = (
        table["intersection_after"] / table["union_after"].clip(lower=1)
        - table["intersection_before"] / table["union_before"].clip(lower=1)
    ).to_numpy()
    samples, order = table["sample"].to_numpy(), np.argsort(gain, kind="stable")
    rng = np.random.default_rng(seed)
    count = min(PANELS_PER_RULE, len(table))
    return {
        "best": samples[order[::-1][:count]].tolist(),
        "worst": samples[order[:count]].tolist(),
        "random": rng.permutation(samples)[:count].tolist(),
    }


def _panels(
    predict: Predict,
    teacher: SegmentationModel,
    final: SegmentationModel,
    refiner: PseudoLabelRefiner,
    dataset: UnlabelledDataset,
    rules: dict[str, list[int]],
) -> dict[str, NDArray[Any]]:
    """Everything that a qualitative figure shows, as arrays (see ``reporting/figures.py``)."""
    indices = [i for chosen in rules.values() for i in chosen]
    batch, logits = next(predict(teacher, indices=indices, batch_size=len(indices)))
    _, final_logits = next(predict(final, indices=indices, batch_size=len(indices)))
    partitions = resolve_partitions(batch.partitions, logits)
    targets = refiner(logits, partitions)
    refs = dataset.ref_of[indices]
    return {
        "image": np.stack([dataset.images[int(dataset.refs["image_id"].iloc[r])] for r in refs]),
        "truth": batch.hidden_truth.numpy(),
        "pseudo": logits.argmax(1).bool().cpu().numpy(),
        "refined": targets.labels.bool().cpu().numpy(),
        "prediction": final_logits.argmax(1).bool().cpu().numpy(),
        "atoms": np.stack([p.atoms for p in partitions]).astype(np.int32),
        "matched": targets.matched.cpu().numpy(),
        "rule": np.array([rule for rule, chosen in rules.items() for _ in chosen]),
        "expression": np.array([dataset.texts[i] for i in indices]),
        "ref_id": dataset.refs["ref_id"].to_numpy()[refs],
    }
