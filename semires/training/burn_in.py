"""Burn-in: supervised training on the labelled part (paper Eq. 1-2).

The result is the paper's *Supervised* row and the start of both teacher and student.
"""

from __future__ import annotations

import time

from semires import tracking
from semires.config.schema import Params
from semires.runs import layout
from semires.runs.key import RunKey
from semires.samples.stream import Stream, stream_loader
from semires.training.context import RunContext
from semires.training.loop import Loop, total_steps
from semires.training.losses import supervised_loss
from semires.training.profile import trace_steps
from semires.training.record import evaluate_split, write_run

SECTIONS = ("data", "model", "loss", "optimizer", "burn_in", "evaluation")


def burn_in(params: Params, cell: RunKey, profile: bool = False) -> None:
    """Train on the labelled part and write the run's folder.

    Args:
        params: all parameters.
        cell: data set, fraction and seed; its method is ``supervised``.
        profile: also write a trace of ten steps that opens in Perfetto.

    Raises:
        Interrupted: a signal arrived; the next call goes on from the saved state.
        NonFiniteLossError: training diverged.
    """
    started = time.time()
    task = RunContext(params, cell, SECTIONS)
    settings = params.burn_in
    model = task.build_model()
    trained = task.trainable(model)
    labelled = task.dataset(task.labelled, sentences=params.data.sentences, seed=cell.seed)
    task.check_batch(settings.batch_size, len(labelled), "burn_in.batch_size")
    val = task.evaluation_sets(["val"])["val"]
    group, accumulate = task.group, params.runtime.accumulate
    global_batch = settings.batch_size * accumulate * group.world
    steps = total_steps(settings, len(labelled), global_batch)

    def loaders(first: int, last: int):  # type: ignore[no-untyped-def]
        stream = Stream(labelled, settings.batch_size, last, first, group.rank, group.world)
        return stream_loader(labelled, stream, params.runtime.workers)

    with task.lock(), tracking.track_run(cell, params, task.sections, task.fingerprints) as run:
        loop = Loop(
            task,
            settings,
            steps,
            modules={"model": model},
            evaluated=model,
            evaluate=lambda: evaluate_split(task, model, val),
            log=run.log_metrics,
        )
        path = layout.root() / ".work" / f"trace-{cell.name}.json"
        with trace_steps(path if profile and group.leads else None) as stepped:
            for batch in loop.steps(loaders):
                batch = task.to_device(batch)
                with task.autocast():
                    logits = trained(batch["image"], batch["input_ids"], batch["attention_mask"])
                loss = supervised_loss(logits.float(), batch["mask"], params.loss.class_weights)
                loop.optimise(loss * settings.supervised_loss_scale)
                found = loss.detach()
                loop.record(samples=len(logits), loss=found, loss_sup=found)
                stepped()
        write_run(task, loop, started)
