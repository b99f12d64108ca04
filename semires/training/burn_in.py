"""Burn-in: supervised training on the labelled part (paper Eq. 1-2).

The result is the paper's *Supervised* row. Teacher and student start from its weights.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from semires import tracking
from semires.config.resolve import resolve
from semires.config.schema import Params
from semires.errors import ConfigError
from semires.evaluation.calibration import (
    expected_calibration_error,
    fit_temperature,
    reliability,
)
from semires.evaluation.evaluate import predict_masks
from semires.models import SegmentationModel
from semires.runs import layout
from semires.runs.key import RunKey
from semires.samples.batch import LabelledBatch
from semires.training.context import RunContext
from semires.training.loop import Loop, Sums, total_steps
from semires.training.losses import supervised_loss
from semires.training.record import write_run

SECTIONS = ("data", "model", "loss", "optimizer", "burn_in", "evaluation")


def burn_in(params: Params, key: RunKey, profile: bool = False) -> None:
    """Train on the labelled part and write the run's folder. The run's model is resolved here.

    Args:
        params: all parameters.
        key: data set, fraction and seed; its method is ``supervised``.
        profile: also write a trace of ten steps that opens in Perfetto.

    Raises:
        Interrupted: a signal arrived; the next call continues from the saved state.
        NonFiniteLossError: training diverged.
    """
    started, params = time.time(), resolve(params, key)
    context = RunContext(params, key, SECTIONS)
    with (
        context.lock(),
        tracking.track_run(key, params, context.sections, context.fingerprints) as run,
    ):
        loop = train_burn_in(context, run.log_metrics, profile)
        _, held_out = hold_out(context.labelled_refs, params.burn_in.held_out, key.seed)
        calibration = calibrate(context, loop.load_best(), held_out) if len(held_out) else None
        write_run(context, loop, started, calibration=calibration)


def train_burn_in(
    context: RunContext, log: Callable[[dict[str, float], int], None], profile: bool = False
) -> Loop:
    """Train on the labelled part of a context, whose lock the caller holds; see :func:`burn_in`.

    ``log`` receives the metrics of each evaluation and its step.
    """
    params, settings, group = context.params, context.params.burn_in, context.group
    model = context.build_model()
    trained = context.trainable(model)
    refs, _ = hold_out(context.labelled_refs, settings.held_out, context.key.seed)
    labelled = context.labelled_dataset(
        refs, sentences=params.data.sentences, seed=context.key.seed
    )
    context.check_batch(settings.batch_size, len(labelled), "burn_in.batch_size")
    samples_per_step = settings.batch_size * params.runtime.accumulate * group.world
    steps = total_steps(settings, len(labelled), samples_per_step)

    def compute_loss(batch: LabelledBatch) -> tuple[torch.Tensor, Sums]:
        with context.autocast():
            outputs = trained(*batch.inputs)
        loss_sup = supervised_loss(outputs.logits.float(), batch.mask, params.loss.class_weights)
        loss = sum(model.extra_losses(outputs, batch.mask).values(), loss_sup)
        sums = {"loss": loss.detach(), "loss_sup": loss_sup.detach()}
        return loss * settings.supervised_loss_scale, sums

    loop = Loop(context, settings, steps, {"model": model}, "model", log)
    batches = context.loader(labelled, settings.batch_size, loop.remaining_batches)
    path = layout.root() / ".work" / f"trace-{context.key.name}.json"
    with trace_steps(path if profile and group.is_main_process else None) as stepped:
        loop.run(batches, compute_loss, after_step=stepped)
    return loop


def hold_out(refs: pd.DataFrame, share: float, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The references to train on, and those of a share of the images, drawn by seed.

    Raises:
        ConfigError: no image would be left to train on.
    """
    images = np.unique(refs["image_id"])
    count = math.ceil(share * len(images))
    if count >= len(images) > 0:
        raise ConfigError(
            f"burn_in.held_out: {share:g} of {len(images)} labelled images leaves none to train on"
        )
    drawn = np.random.default_rng(seed).permutation(images)[:count]
    chosen = refs["image_id"].isin(drawn)
    return refs[~chosen].reset_index(drop=True), refs[chosen].reset_index(drop=True)


def calibrate(
    context: RunContext, model: SegmentationModel, refs: pd.DataFrame
) -> dict[str, float]:
    """Fit the temperature of a model on references that it was not trained on.

    Returns:
        ``temperature``, the expected calibration error in percent before and after (``ece_before``,
        ``ece_after``), and the number of expressions.
    """
    dataset = context.labelled_dataset(refs)
    size, precision = context.params.evaluation.batch_size, context.params.runtime.precision
    differences, truths = [], []
    for batch, logits in predict_masks(
        model, dataset, size, context.group.device, precision=precision
    ):
        differences.append((logits[:, 1] - logits[:, 0]).cpu())
        truths.append(batch.mask.bool())
    difference, truth = torch.cat(differences), torch.cat(truths)
    temperature = fit_temperature(difference, truth)
    before, after = (
        expected_calibration_error(
            reliability(torch.sigmoid(difference / t).numpy(), truth.numpy())
        )
        for t in (1.0, temperature)
    )
    found = {"temperature": temperature, "ece_before": before, "ece_after": after}
    return {**found, "expressions": len(dataset)}


@contextlib.contextmanager
def trace_steps(path: Path | None) -> Iterator[Callable[[], None]]:
    """Yield a function to call after each step. Steps 8 to 17 are written.

    Args:
        path: the file of the trace; None disables profiling.
    """
    if path is None:
        yield lambda: None
        return
    from torch.profiler import profile, schedule

    path.parent.mkdir(parents=True, exist_ok=True)

    def write(profiler: profile) -> None:
        profiler.export_chrome_trace(str(path))
        print(f"{path}: trace of ten steps; open it in ui.perfetto.dev")

    with profile(
        schedule=schedule(wait=5, warmup=2, active=10, repeat=1), on_trace_ready=write
    ) as profiler:
        yield profiler.step
