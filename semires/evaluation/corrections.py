"""What refinement does to pseudo-labels: better, worse or left alone (paper Figures 3, 6 and 8).

Measured on unlabelled references with the burn-in teacher, one expression a reference, against
their hidden ground truth. Logged and shown, never trained on.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from semires.evaluation.evaluate import predict_masks
from semires.files import atomic_path, write_parquet
from semires.models import SegmentationModel
from semires.models.weights import load_weights
from semires.proposals.cache import open_proposals
from semires.refine import PseudoLabelRefiner, RefinedLabels
from semires.samples.dataset import ExpressionDataset
from semires.training.context import RunContext

PANELS_PER_RULE = 3


def overlap_sums(
    teacher_logits: torch.Tensor, targets: RefinedLabels, truth: torch.Tensor
) -> dict[str, torch.Tensor | float]:
    """Sums over a batch for the training log, left on the device.

    Args:
        teacher_logits: (B,2,H,W).
        targets: the refined labels of the batch.
        truth: hidden ground truth, (B,H,W) of 0 and 1.
    """
    truth = truth.bool()
    raw = teacher_logits[:, 1] > teacher_logits[:, 0]
    sums: dict[str, torch.Tensor | float] = {
        "pseudo_matched": targets.matched.sum(),
        "pseudo_seen": len(truth),
    }
    for name, label in (("raw", raw), ("refined", targets.labels.bool())):
        sums[f"pseudo_{name}_intersection"] = (label & truth).sum()
        sums[f"pseudo_{name}_union"] = (label | truth).sum()
    return sums


def measure_corrections(
    task: RunContext, refiner: PseudoLabelRefiner, final: SegmentationModel
) -> tuple[dict[str, float], Callable[[Path], None]]:
    """Refine the burn-in teacher's labels on a sample of unlabelled references.

    Returns:
        Percentages for ``metrics.json`` and a function that writes ``corrections.parquet`` and
        ``panels.npz`` into a run's folder.
    """
    dataset = task.dataset(task.unlabelled, proposals=open_proposals(task.params, task.cell))
    chosen = sample_refs(dataset, task.params.evaluation.correction_refs, task.cell.seed)
    teacher = task.build_model(pretrained=False)
    load_weights(teacher, task.burn_in_folder / "model.safetensors")
    mine = task.group.share(chosen, task.params.evaluation.batch_size)
    parts = task.group.gather(_correct(task, teacher, refiner, dataset, mine))
    table = pd.concat(itertools.chain(*parts)).sort_values("sample").reset_index(drop=True)
    panels = _panels(task, teacher, final, refiner, dataset, choose_panels(table, task.cell.seed))

    def write(folder: Path) -> None:
        write_parquet(folder / "corrections.parquet", table.drop(columns="sample"))
        with atomic_path(folder / "panels.npz") as path, open(path, "wb") as file:
            np.savez_compressed(file, allow_pickle=False, **panels)

    return shares(table), write


def sample_refs(dataset: ExpressionDataset, limit: int | None, seed: int) -> list[int]:
    """The first expression of each reference, of at most ``limit`` references drawn by seed."""
    firsts = np.flatnonzero(dataset.sentence_of == 0)
    if limit is not None and limit < len(firsts):
        firsts = np.sort(np.random.default_rng(seed).permutation(firsts)[:limit])
    return [int(i) for i in firsts]


def shares(table: pd.DataFrame) -> dict[str, float]:
    """Overall IoU before and after refinement, and the shares corrected, in percent."""
    before = table["intersection_before"] / table["union_before"].clip(lower=1)
    after = table["intersection_after"] / table["union_after"].clip(lower=1)
    matched = table["matched"]
    count = max(len(table), 1)
    return {
        "raw_oIoU": _percent(table["intersection_before"].sum(), table["union_before"].sum()),
        "refined_oIoU": _percent(table["intersection_after"].sum(), table["union_after"].sum()),
        "matched": _percent(matched.sum(), count),
        "better": _percent((matched & (after > before)).sum(), count),
        "worse": _percent((matched & (after < before)).sum(), count),
        "unmatched": _percent((~matched).sum(), count),
    }


def _percent(part: float, whole: float) -> float:
    return float(100 * part / whole) if whole else 0.0


def _correct(
    task: RunContext,
    teacher: SegmentationModel,
    refiner: PseudoLabelRefiner,
    dataset: ExpressionDataset,
    indices: list[int],
) -> list[pd.DataFrame]:
    """Pixel counts of the label before and after refinement by batch, one row a reference."""
    parts = []
    size, device = task.params.evaluation.batch_size, task.group.device
    precision = task.params.runtime.precision
    outputs = predict_masks(teacher, dataset, size, device, indices, precision=precision)
    for batch, logits in outputs:
        targets = refiner(logits, batch["partition"])
        truth = batch["mask"].to(device).bool()
        raw, refined = logits.argmax(1).bool(), targets.labels.bool()
        refs = dataset.ref_of[batch["sample"]]
        columns: dict[str, Any] = {
            "sample": batch["sample"],
            "ref_id": dataset.refs["ref_id"].to_numpy()[refs],
            "image_id": dataset.refs["image_id"].to_numpy()[refs],
            "matched": targets.matched.cpu().numpy(),
        }
        for name, label in (("before", raw), ("after", refined)):
            columns[f"intersection_{name}"] = (label & truth).sum((1, 2)).cpu().numpy()
            columns[f"union_{name}"] = (label | truth).sum((1, 2)).cpu().numpy()
        parts.append(pd.DataFrame(columns))
    return parts


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
    task: RunContext,
    teacher: SegmentationModel,
    final: SegmentationModel,
    refiner: PseudoLabelRefiner,
    dataset: ExpressionDataset,
    rules: dict[str, list[int]],
) -> dict[str, NDArray[Any]]:
    """Everything that a qualitative figure shows, as arrays (see ``reporting/figures.py``)."""
    indices = [i for chosen in rules.values() for i in chosen]
    (batch, logits), (_, final_logits) = (
        next(predict_masks(model, dataset, len(indices), task.group.device, indices,
                           precision=task.params.runtime.precision))
        for model in (teacher, final)
    )  # fmt: skip
    targets = refiner(logits, batch["partition"])
    refs = dataset.ref_of[indices]
    return {
        "image": np.stack([dataset.images[int(dataset.refs["image_id"].iloc[r])] for r in refs]),
        "truth": batch["mask"].bool().numpy(),
        "pseudo": logits.argmax(1).bool().cpu().numpy(),
        "refined": targets.labels.bool().cpu().numpy(),
        "prediction": final_logits.argmax(1).bool().cpu().numpy(),
        "atoms": np.stack([p.atoms for p in batch["partition"]]).astype(np.int32),
        "matched": targets.matched.cpu().numpy(),
        "rule": np.array([rule for rule, chosen in rules.items() for _ in chosen]),
        "expression": np.array([dataset.texts[i] for i in indices]),
        "ref_id": dataset.refs["ref_id"].to_numpy()[refs],
    }
