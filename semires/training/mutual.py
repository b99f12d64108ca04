"""Mutual learning: a teacher's pseudo-labels, refined by proposals, teach a student (Alg. 1).

Each step takes as many labelled as unlabelled samples. The teacher sees the weak view and its hard
pseudo-labels are refined (IOM, CPI) or weighted (PWA); the student learns from labelled images and
strong views in one batch; the teacher follows the student as a moving average (paper Eq. 3-5, 10).
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import nn

from semires import tracking
from semires.config.resolve import resolve
from semires.config.schema import Method, Params
from semires.evaluation.corrections import measure_corrections, overlap_sums
from semires.models.pretrained import load_weights
from semires.proposals.cache import open_proposals
from semires.refine import PseudoLabelRefiner, RefinedLabels
from semires.refine.filtering import ConfidenceFilter
from semires.runs.key import RunKey
from semires.samples.dataset import ExpressionDataset
from semires.samples.stream import Stream, stream_loader
from semires.training.context import RunContext
from semires.training.ema import make_teacher, update_ema
from semires.training.loop import Loop, total_steps
from semires.training.losses import supervised_loss, unsupervised_loss
from semires.training.record import evaluate_split, write_run

Batch = dict[str, Any]
SECTIONS = ("data", "model", "augment", "loss", "optimizer", "mutual", "evaluation")


def make_refiner(params: Params, method: Method) -> PseudoLabelRefiner:
    """The refiner that a method describes; thresholds it does not use keep the paper's values."""
    given = {
        "iom_threshold": method.threshold,
        "cpi_threshold_u": method.threshold_u,
        "cpi_threshold_o": method.threshold_o,
    }
    pwa = params.loss.pwa
    return PseudoLabelRefiner(
        strategy=method.strategy,
        pwa=method.pwa,
        pwa_mean=pwa.mean,
        pwa_variance=pwa.variance,
        pwa_offset=pwa.offset,
        **{name: value for name, value in given.items() if value is not None},
    )


def mutual(params: Params, cell: RunKey) -> None:
    """Train with the cell's method, from its burn-in, and write the run's folder.

    The method's overrides and tuned thresholds are applied here, once.
    """
    train_mutual(resolve(params, cell), cell)


def train_mutual(
    params: Params,
    cell: RunKey,
    on_evaluation: Callable[[dict[str, float], int], None] | None = None,
    val_images: tuple[int, ...] | None = None,
) -> dict[str, dict[str, float]]:
    """Mutual learning; returns ``metrics.json``'s content.

    Args:
        params: all parameters as `resolve` (or a trial of the search) made them for this method.
        cell: which run.
        on_evaluation: called with the metrics and the step of each evaluation on val; where it is
            given (a trial of the threshold search) no run folder is written.
        val_images: evaluate val on these images alone (the half that trials see).

    Raises:
        Interrupted: a signal arrived; the next call goes on from the saved state.
        NonFiniteLossError: training diverged.
    """
    started = time.time()
    task = RunContext(params, cell, SECTIONS, val_images=val_images)
    settings, method = params.mutual, params.refine[cell.method]
    student = task.build_model(pretrained=False)
    load_weights(student, task.burn_in_folder / "model.safetensors")
    teacher, trained = make_teacher(student), task.trainable(student)
    parts = _parts(task, method)
    refiner, weights = make_refiner(params, method), params.loss.class_weights
    keep = ConfidenceFilter(method.keep, task.group.concat).to(task.group.device)
    alone = task.lock() if on_evaluation is None else contextlib.nullcontext()
    with alone, tracking.track_run(cell, params, task.sections, task.fingerprints) as run:
        modules = {"model": student, "teacher": teacher, "filter": keep}
        loop = _teacher_loop(task, parts, modules, on_evaluation or run.log_metrics)
        for sure, unsure in loop.steps(lambda a, b: _pairs(task, *parts, a, b)):
            # 1. The teacher labels the weak view; proposals refine its labels.
            targets = None
            if unsure is not None:
                teacher_logits = _teach(task, teacher, unsure)
                targets = refiner(teacher_logits, unsure["partition"])
                loop.record(**overlap_sums(teacher_logits, targets, unsure["mask"]))
            # 2. The student sees labelled images and strong views in one batch.
            logits = _study(task, trained, sure, unsure)
            # 3. Loss, Eq. 4.
            count = len(sure["image"])
            loss_sup = supervised_loss(logits[:count], sure["mask"], weights)
            loss = settings.supervised_loss_scale * loss_sup
            if targets is not None:
                strong, targets = _kept(keep, teacher_logits, logits[count:], targets)
                loss_unsup = unsupervised_loss(strong, targets, weights)
                loss = loss + settings.lambda_unsup * loss_unsup
                loop.record(loss_unsup=loss_unsup.detach())
            # 4. The teacher follows the student, Eq. 5.
            if loop.optimise(loss):
                update_ema(teacher, student, settings.ema)
            loop.record(samples=len(logits), loss=loss.detach(), loss_sup=loss_sup.detach())
        if on_evaluation is not None:
            shutil.rmtree(task.work, ignore_errors=True)
            return {"val": {"oIoU": loop.best["val/oIoU"]}}
        metrics = _finish(task, loop, refiner, started)
    return metrics


def _finish(
    task: RunContext, loop: Loop, refiner: PseudoLabelRefiner, started: float
) -> dict[str, dict[str, float]]:
    """Count what refinement corrects, if anything, and write the run's folder; its metrics."""
    if not task.params.refine[task.cell.method].unlabelled:
        return write_run(task, loop, started)
    pseudo, write_more = measure_corrections(task, refiner, loop.load_best())
    return write_run(task, loop, started, pseudo, write_more)


def _kept(
    keep: ConfidenceFilter,
    teacher_logits: torch.Tensor,
    strong: torch.Tensor,
    targets: RefinedLabels,
) -> tuple[torch.Tensor, RefinedLabels]:
    """The samples that confidence filtering keeps; without it nothing is copied or waited for."""
    if keep.keep >= 1:
        return strong, targets
    kept = keep(teacher_logits)
    return strong[kept], targets.select(kept)


def _teacher_loop(
    task: RunContext,
    parts: tuple[ExpressionDataset, ExpressionDataset],
    modules: dict[str, nn.Module],
    log: Callable[[dict[str, float], int], None],
) -> Loop:
    """A loop that evaluates the teacher on val and keeps its best weights."""
    teacher, val = modules["teacher"], task.evaluation_sets(["val"])["val"]
    steps = _total_steps(task, *map(len, parts))
    return Loop(
        task, task.params.mutual, steps, modules, teacher,
        evaluate=lambda: evaluate_split(task, teacher, val), log=log,
    )  # fmt: skip


@torch.no_grad()
def _teach(task: RunContext, teacher: nn.Module, unsure: Batch) -> torch.Tensor:
    """The teacher's logits (B,2,H,W) on the weak view."""
    with task.autocast():
        logits = teacher(unsure["image"], unsure["input_ids"], unsure["attention_mask"])
    return cast(torch.Tensor, logits.float())


def _study(task: RunContext, student: nn.Module, sure: Batch, unsure: Batch | None) -> torch.Tensor:
    """The student's logits, labelled samples first, then the strong views."""
    parts = [(sure["image"], sure["input_ids"], sure["attention_mask"])]
    if unsure is not None:
        parts.append((unsure["strong"], unsure["input_ids"], unsure["attention_mask"]))
    with task.autocast():
        logits = student(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))
    return cast(torch.Tensor, logits.float())


def _parts(task: RunContext, method: Method) -> tuple[ExpressionDataset, ExpressionDataset]:
    """Labelled samples as they are; unlabelled ones with weak and strong views and proposals."""
    params, seed = task.params, task.cell.seed
    labelled = task.dataset(task.labelled, sentences=params.data.sentences, seed=seed)
    unlabelled = task.dataset(
        task.unlabelled,
        sentences=params.data.sentences,
        seed=seed + 1_000_003,  # another stream than the labelled one
        augment=params.augment,
        strong=method.strong,
        proposals=open_proposals(params, task.cell),
    )
    task.check_batch(params.mutual.labelled_batch, len(labelled), "mutual.labelled_batch")
    return labelled, unlabelled


def _total_steps(task: RunContext, labelled: int, unlabelled: int) -> int:
    """An epoch is one pass over the longer of the two parts, the other one cycling."""
    settings, repeat = task.params.mutual, task.params.runtime.accumulate * task.group.world
    passes = max(
        (labelled, settings.labelled_batch), (unlabelled, settings.unlabelled_batch),
        key=lambda part: part[0] / part[1],
    )  # fmt: skip
    return total_steps(settings, passes[0], passes[1] * repeat)


def _pairs(
    task: RunContext,
    labelled: ExpressionDataset,
    unlabelled: ExpressionDataset,
    first: int,
    last: int,
) -> Iterator[tuple[Batch, Batch | None]]:
    """Labelled and unlabelled batches of micro-steps ``first .. last - 1``, side by side.

    Where the method is the control (``unlabelled: false``) the second one is None.
    """
    settings, group, workers = task.params.mutual, task.group, task.params.runtime.workers

    def load(part: ExpressionDataset, size: int) -> Iterator[Batch]:
        stream = Stream(part, size, last, first, group.rank, group.world)
        return map(task.to_device, stream_loader(part, stream, workers))

    sure = load(labelled, settings.labelled_batch)
    if not task.params.refine[task.cell.method].unlabelled:
        return zip(sure, itertools.repeat(None), strict=False)
    return zip(sure, load(unlabelled, settings.unlabelled_batch), strict=True)
