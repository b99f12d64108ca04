"""Mutual learning: a teacher's pseudo-labels, refined by proposals, train a student (Algorithm 1).

A step takes a labelled and an unlabelled batch. The teacher predicts hard pseudo-labels on the weak
view; matching (IOM, CPI) refines them and PWA weighs the pixels of unmatched ones. The student
learns from the labelled images and the strong views in one batch. The teacher is the moving average
of the student (paper Eq. 3-5 and 10).
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from semires import tracking
from semires.config.method import Method
from semires.config.resolve import resolve, weight_values
from semires.config.schema import Params
from semires.evaluation.calibration import calibration_sums
from semires.evaluation.corrections import measure_corrections, overlap_sums
from semires.models import Outputs, SegmentationModel
from semires.models.weights import load_weights
from semires.refine import PseudoLabelRefiner, RefinedLabels
from semires.refine.filtering import ConfidenceFilter
from semires.refine.refiner import foreground, resolve_partitions
from semires.refine.weighting import Concat, make_weighting
from semires.runs.key import RunKey
from semires.samples.batch import LabelledBatch, MutualBatch, UnlabelledBatch
from semires.samples.dataset import LabelledDataset, UnlabelledDataset
from semires.training.context import RunContext
from semires.training.ema import make_teacher, update_ema
from semires.training.loop import Loop, Sums, total_steps
from semires.training.losses import supervised_loss, unsupervised_loss
from semires.training.record import write_run

SECTIONS = ("data", "model", "augment", "loss", "optimizer", "mutual", "evaluation")
UNLABELLED_SEED = 1_000_003  # added to the seed, so that the two parts have different streams


def make_refiner(
    params: Params,
    method: Method,
    concat: Concat = lambda x: x,
    fitted_temperature: float = 1.0,
) -> PseudoLabelRefiner:
    """The refiner that a method describes.

    Args:
        params: all parameters.
        method: an entry of ``refine``.
        concat: joins tensors of all processes, see :mod:`semires.refine.weighting`.
        fitted_temperature: of the burn-in, for ``temperature: fitted``.
    """
    temperature = method.temperature if method.temperature != "fitted" else fitted_temperature
    return PseudoLabelRefiner(
        strategy=method.strategy,
        thresholds=method.threshold_values,
        weighting=make_weighting(
            method.weight_rule, concat=concat, **weight_values(params, method)
        ),
        matched_weight=method.matched_weight,
        temperature=temperature,
    )


@dataclass(frozen=True)
class MutualStep:
    """One step of mutual learning: from a batch to the loss of the student (Algorithm 1).

    Args:
        context: the inputs of the run.
        model: the student.
        student: the student as training calls it: frozen, compiled and wrapped.
        teacher: the moving average of the student, in eval mode.
        refiner: turns teacher logits into targets.
        confidence_filter: selects the pseudo-labels that the loss uses.
    """

    context: RunContext
    model: SegmentationModel
    student: nn.Module
    teacher: SegmentationModel
    refiner: PseudoLabelRefiner
    confidence_filter: ConfidenceFilter

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The modules that a saved state contains, by name."""
        modules = {"model": self.model, "teacher": self.teacher, "filter": self.confidence_filter}
        weighting = self.refiner.weighting
        return modules | ({"weighting": weighting} if weighting.state_dict() else {})

    def compute_loss(self, batch: MutualBatch) -> tuple[torch.Tensor, Sums]:
        """The loss, a scalar, and the values to log."""
        labelled, unlabelled = batch.labelled, batch.unlabelled
        settings, weights = self.context.params.mutual, self.context.params.loss.class_weights
        if unlabelled is None:
            loss, loss_sup = self._labelled_loss(self._forward(*labelled.inputs), labelled)
            return loss, {"loss": loss.detach(), "loss_sup": loss_sup.detach()}
        # 1. The teacher labels the weak view; proposals refine its labels.
        teacher_logits = self.teacher_forward(unlabelled)
        partitions = resolve_partitions(unlabelled.partitions, teacher_logits)
        targets = self.refiner(teacher_logits, partitions)
        quality = self._quality(teacher_logits, targets, unlabelled.hidden_truth)  # logged only
        # 2. The student predicts on labelled images and strong views, in one batch.
        on_labelled, *on_views = self.student_forward(labelled, unlabelled)
        # 3. The loss, Eq. 4; with two strong views, their mean.
        loss, loss_sup = self._labelled_loss(on_labelled, labelled)
        on_views, targets = self._confident(teacher_logits, on_views, targets)
        losses_unsup = [unsupervised_loss(view.logits, targets, weights) for view in on_views]
        loss_unsup = torch.stack(losses_unsup).mean()
        for loss_view, view in zip(losses_unsup, on_views, strict=True):
            total = self._total(loss_view, view, targets.labels)
            loss += settings.lambda_unsup / len(on_views) * total
        losses = {"loss": loss, "loss_sup": loss_sup, "loss_unsup": loss_unsup}
        return loss, {**{name: value.detach() for name, value in losses.items()}, **quality}

    def _quality(
        self, teacher_logits: torch.Tensor, targets: RefinedLabels, hidden_truth: torch.Tensor
    ) -> dict[str, torch.Tensor | float]:
        """Sums for the quality of the labels and the calibration of the teacher."""
        probability = foreground(teacher_logits / self.refiner.temperature)
        overlaps = overlap_sums(teacher_logits, targets, hidden_truth)
        return {**overlaps, **calibration_sums(probability, hidden_truth)}

    def _labelled_loss(
        self, outputs: Outputs, labelled: LabelledBatch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The part of the loss of the labelled samples, and their mask loss alone."""
        params = self.context.params
        loss_sup = supervised_loss(outputs.logits, labelled.mask, params.loss.class_weights)
        total = self._total(loss_sup, outputs, labelled.mask)
        return params.mutual.supervised_loss_scale * total, loss_sup

    @torch.no_grad()
    def teacher_forward(self, unlabelled: UnlabelledBatch) -> torch.Tensor:
        """The teacher's logits (B,2,S,S) on the weak view."""
        with self.context.autocast():
            logits = self.teacher(*unlabelled.inputs)
        return cast(torch.Tensor, logits.float())

    def student_forward(
        self, labelled: LabelledBatch, unlabelled: UnlabelledBatch
    ) -> list[Outputs]:
        """The student's outputs on the labelled images, and on each strong view."""
        pairs = zip(labelled.inputs, unlabelled.strong_inputs, strict=True)
        self.model.paired = 0 if unlabelled.second is None else len(unlabelled)
        outputs = self._forward(*map(torch.cat, pairs))
        self.model.paired = 0
        first, count = len(labelled), len(unlabelled)
        starts = range(first, len(outputs.logits), count)
        views = [outputs.select(slice(start, start + count)) for start in starts]
        return [outputs.select(slice(first)), *views]

    def _forward(self, *inputs: torch.Tensor) -> Outputs:
        with self.context.autocast():
            outputs = self.student(*inputs)
        return Outputs(outputs.logits.float(), outputs.extra)

    def _total(self, loss: torch.Tensor, outputs: Outputs, labels: torch.Tensor) -> torch.Tensor:
        """The mask loss plus the model's extra losses."""
        return sum(self.model.extra_losses(outputs, labels).values(), loss)

    def _confident(
        self, teacher_logits: torch.Tensor, views: list[Outputs], targets: RefinedLabels
    ) -> tuple[list[Outputs], RefinedLabels]:
        """The samples that confidence filtering selects. No-op if filtering is disabled."""
        if self.confidence_filter.keep >= 1:
            return views, targets
        selected = self.confidence_filter(teacher_logits)
        return [view.select(selected) for view in views], targets.select(selected)


def make_step(context: RunContext) -> MutualStep:
    """A student and a teacher with the weights of burn-in, and the refinement of the method."""
    params, group = context.params, context.group
    method = params.refine[context.key.method]
    student = context.build_model(pretrained=False)
    load_weights(student, context.burn_in_folder / "model.safetensors")
    teacher, trained = make_teacher(student), context.trainable(student)
    confidence_filter = ConfidenceFilter(method.keep, group.concat).to(group.device)
    fitted = context.fitted_temperature(required=True) if method.temperature == "fitted" else 1.0
    refiner = make_refiner(params, method, group.concat, fitted)
    refiner.weighting.to(group.device)
    return MutualStep(context, student, trained, teacher, refiner, confidence_filter)


def mutual(params: Params, key: RunKey) -> None:
    """Train with the method of ``key``, starting from its burn-in, and write the run's folder.

    The method's overrides and tuned thresholds are applied here, once.
    """
    train_mutual(resolve(params, key), key)


def train_mutual(
    params: Params,
    key: RunKey,
    on_evaluation: Callable[[dict[str, float], int], None] | None = None,
    val_images: tuple[int, ...] | None = None,
) -> dict[str, dict[str, float]]:
    """Mutual learning; returns the content of ``metrics.json``.

    Args:
        params: all parameters, set for this method by `resolve` or by a trial of the search.
        key: which run.
        on_evaluation: called with the metrics and the step of each evaluation on val. A trial of
            the threshold search passes it; no run folder is then written.
        val_images: evaluate val on these images only (the half that trials see).

    Raises:
        Interrupted: a signal arrived; the next call continues from the saved state.
        NonFiniteLossError: training diverged.
    """
    started = time.time()
    context = RunContext(params, key, SECTIONS, val_images=val_images)
    step = make_step(context)
    labelled, unlabelled = training_datasets(context, params.refine[key.method])
    lock = context.lock() if on_evaluation is None else contextlib.nullcontext()
    with lock, tracking.track_run(key, params, context.sections, context.fingerprints) as run:
        loop = Loop(
            context,
            params.mutual,
            mutual_steps(params, len(labelled), len(unlabelled), context.group.world),
            modules=step.modules,
            evaluated="teacher",
            log=on_evaluation or run.log_metrics,
        )
        loop.run(
            _batches(context, labelled, unlabelled, loop.remaining_batches),
            step.compute_loss,
            after_step=lambda: update_ema(step.teacher, step.model, params.mutual.ema),  # Eq. 5
        )
        if on_evaluation is not None:
            shutil.rmtree(context.work, ignore_errors=True)
            return {"val": {"oIoU": loop.best["val/oIoU"]}}
        step.refiner.weighting.eval()
        metrics = _finish(context, loop, step.refiner, started)
    return metrics


def _finish(
    context: RunContext, loop: Loop, refiner: PseudoLabelRefiner, started: float
) -> dict[str, dict[str, float]]:
    """Measure the corrections if the method refines, and write the run's folder."""
    params, key = context.params, context.key
    if not params.refine[key.method].unlabelled:
        return write_run(context, loop, started)
    teacher = context.build_model(pretrained=False)
    load_weights(teacher, context.burn_in_folder / "model.safetensors")
    corrections = measure_corrections(
        params, context.group, key.seed, context.unlabelled_dataset(), refiner,
        teacher=teacher, final=loop.load_best(),
    )  # fmt: skip
    return write_run(context, loop, started, corrections)


def training_datasets(
    context: RunContext, method: Method
) -> tuple[LabelledDataset, UnlabelledDataset]:
    """Labelled samples without augmentation; unlabelled ones with both views and proposals."""
    params, seed = context.params, context.key.seed
    sentences = params.data.sentences
    labelled = context.labelled_dataset(context.labelled_refs, sentences=sentences, seed=seed)
    unlabelled = context.unlabelled_dataset(
        augment=params.augment,
        strong=method.strong,
        views=method.views,
        sentences=sentences,
        seed=seed + UNLABELLED_SEED,
    )
    context.check_batch(params.mutual.labelled_batch, len(labelled), "mutual.labelled_batch")
    return labelled, unlabelled


def mutual_steps(params: Params, labelled: int, unlabelled: int, world: int = 1) -> int:
    """The number of optimizer steps for a data set of this many samples.

    An epoch is one pass over the longer of the two parts, while the other one repeats.
    """
    settings = params.mutual
    samples, batch = max(
        (labelled, settings.labelled_batch), (unlabelled, settings.unlabelled_batch),
        key=lambda part: part[0] / part[1],
    )  # fmt: skip
    return total_steps(settings, samples, batch * params.runtime.accumulate * world)


def _batches(
    context: RunContext, labelled: LabelledDataset, unlabelled: UnlabelledDataset, batches: range
) -> Iterator[MutualBatch]:
    """Labelled and unlabelled batches, side by side.

    The unlabelled ones are None if the method sets ``unlabelled: false``.
    """
    settings = context.params.mutual
    first = context.loader(labelled, settings.labelled_batch, batches)
    if not context.params.refine[context.key.method].unlabelled:
        return map(MutualBatch, first, itertools.repeat(None))
    second = context.loader(unlabelled, settings.unlabelled_batch, batches)
    return map(MutualBatch, first, second)
