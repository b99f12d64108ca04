"""The training loop that burn-in and mutual learning share: steps, schedule, evaluation, state.

A method gives :meth:`Loop.run` its batches and a function from a batch to a loss.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

import numpy as np
import pandas as pd
import torch
from torch import nn

from semires import process
from semires.config.schema import BurnIn, Mutual
from semires.errors import Interrupted, NonFiniteLossError
from semires.evaluation.calibration import calibration_of
from semires.evaluation.evaluate import summarise
from semires.models import SegmentationModel
from semires.progress import progress
from semires.samples.batch import LabelledBatch, MutualBatch
from semires.training.context import RunContext
from semires.training.state import load_state, save_state

TrainingBatch = TypeVar("TrainingBatch", LabelledBatch, MutualBatch)
Sums = Mapping[str, torch.Tensor | float]


@dataclass
class Timing:
    """Time of training steps, without evaluation and saving.

    Args:
        samples: samples trained on, of all processes.
        seconds: wall-clock time of the steps.
        data_wait_s: the part of ``seconds`` spent waiting for samples.
    """

    samples: int = 0
    seconds: float = 0.0
    data_wait_s: float = 0.0

    def since(self, earlier: Timing) -> Timing:
        """The difference from an earlier state of the same counters."""
        pairs = zip(astuple(self), astuple(earlier), strict=True)
        return Timing(*(now - then for now, then in pairs))

    def rates(self) -> dict[str, float]:
        """``samples_per_s``, and ``data_wait`` as a share of the time (0..1)."""
        seconds = max(self.seconds, 1e-9)
        return {
            "samples_per_s": self.samples / seconds,
            "data_wait": self.data_wait_s / seconds,
        }


class Loop:
    """Runs one training to its last step and remembers the best evaluation on val.

    A saved state of the same run is loaded at construction.

    Args:
        context: the inputs of the run.
        schedule: learning rate and number of evaluations.
        steps: total number of optimizer steps.
        modules: every module with a state, by name; the optimizer works on ``modules['model']``.
        evaluated: the name of the module that is evaluated and whose best weights are kept.
        log: called with a dict of metrics and the step after each evaluation.
    """

    def __init__(
        self,
        context: RunContext,
        schedule: BurnIn | Mutual,
        steps: int,
        modules: dict[str, nn.Module],
        evaluated: str,
        log: Callable[[dict[str, float], int], None],
    ) -> None:
        self.context, self.schedule, self.total, self.log = context, schedule, steps, log
        self.modules = modules
        self.model = cast(SegmentationModel, modules["model"])
        self.evaluated = cast(SegmentationModel, modules[evaluated])
        self.val = context.evaluation_sets(["val"])["val"]
        self.group, self.accumulate = context.group, context.params.runtime.accumulate
        self.optimizer = context.optimizer(self.model, schedule.lr)
        self.scaler = torch.amp.GradScaler(
            self.group.device.type, enabled=context.params.runtime.precision == "fp16"
        )
        self.step = 0
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Any] = {"val/oIoU": -1.0, "step": -1, "state": {}}
        self.best_val: pd.DataFrame | None = None  # its predictions; None after a resume
        self.timing = Timing()
        self._sums: dict[str, torch.Tensor] = {}  # on the device, so that a step need not wait
        self._saved = time.monotonic()
        self._resume()
        self._logged_timing = replace(self.timing)

    @property
    def remaining_batches(self) -> range:
        """Batches that are left to train on; a step takes ``accumulate`` of them."""
        return range(self.step * self.accumulate, self.total * self.accumulate)

    @property
    def evaluation_steps(self) -> set[int]:
        """Steps after which the model is evaluated: evenly spread, the last one included."""
        count = min(self.schedule.evaluations, self.total)
        return {math.ceil(self.total * (i + 1) / count) for i in range(count)}

    def run(
        self,
        batches: Iterator[TrainingBatch],
        compute_loss: Callable[[TrainingBatch], tuple[torch.Tensor, Sums]],
        after_step: Callable[[], object] = lambda: None,
    ) -> None:
        """Train for the remaining steps; evaluate and save in between.

        Args:
            batches: the :attr:`remaining_batches` of this process.
            compute_loss: returns the scalar loss of a batch and the values to log. Every process
                must return the same names.
            after_step: called after each optimizer step.

        Raises:
            Interrupted: a signal arrived; the state was saved.
            NonFiniteLossError: the loss is NaN or infinite; the last finite state is kept.
        """
        evaluation_steps = self.evaluation_steps
        with progress(
            name=self.context.key.name,
            total=self.total,
            unit="step",
            initial=self.step,
            shown=self.group.is_main_process,
        ) as bar:
            while self.step < self.total and not self._out_of_patience():
                started = time.monotonic()
                self._train_step(batches, compute_loss)
                after_step()
                self.timing.seconds += time.monotonic() - started
                self.step += 1
                bar.update()
                if self.step in evaluation_steps:
                    self._evaluate()
                    bar.set_postfix_str(f"val oIoU {self.history[-1]['val/oIoU']:.2f}", False)
                self._save_if_due_or_stopped()
        self.save()  # the final evaluations may take long, and only they remain
        process.stop_at_once()

    def _train_step(
        self,
        batches: Iterator[TrainingBatch],
        compute_loss: Callable[[TrainingBatch], tuple[torch.Tensor, Sums]],
    ) -> None:
        """One optimizer step over ``accumulate`` batches."""
        self._set_lr()
        if not self.model.training:
            self.model.train()
        logged = []
        for micro in range(self.accumulate):
            waiting_since = time.monotonic()
            batch = next(batches)
            self.timing.data_wait_s += time.monotonic() - waiting_since
            self.timing.samples += len(batch) * self.group.world
            self._seed(micro)
            loss, sums = compute_loss(batch.to(self.group.device))
            self.backward(loss, batch.ref_ids)
            logged.append(sums)
        self._step_optimizer()
        for sums in logged:
            self.log_sums(**sums)

    def backward(self, loss: torch.Tensor, ref_ids: list[int]) -> None:
        """Add the gradient of a batch's loss.

        Raises:
            NonFiniteLossError: the loss is NaN or infinite; the text names the references.
        """
        if any(self.group.any(not torch.isfinite(loss))):
            self._refuse(float(loss.detach()), ref_ids)
        self.scaler.scale(loss / self.accumulate).backward()  # type: ignore[no-untyped-call]

    def _step_optimizer(self) -> None:
        clip = self.context.params.optimizer.clip_grad_norm
        if clip is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def _refuse(self, loss: float, ref_ids: list[int]) -> NoReturn:
        tensors = [t for m in self.modules.values() for t in m.state_dict().values()]
        broken = not all(bool(t.isfinite().all()) for t in tensors if t.is_floating_point())
        if not any(self.group.any(broken)):  # otherwise the state saved earlier is the finite one
            self.save()
        saved = self.group.is_main_process and self._path.is_file()
        where = f"the state before it is in {self.context.work}" if saved else "no state was saved"
        losses = self.group.gather((loss, sorted(set(ref_ids))))
        bad, refs = next(each for each in losses if not math.isfinite(each[0]))
        raise NonFiniteLossError(
            f"{self.context.key.name}: the loss is {bad} at step {self.step}, for a batch of the "
            f"references {', '.join(map(str, refs))}; {where}; "
            "lower the learning rate or inspect these references"
        )

    def log_sums(self, **sums: float | torch.Tensor) -> None:
        """Add values of a batch; their means over batches are logged at the next evaluation.

        Every process must log the same names.
        """
        for name, value in sums.items():
            if name not in self._sums:
                self._sums[name] = self._sum(0.0)
            self._sums[name] += value

    def _sum(self, value: float) -> torch.Tensor:
        return torch.tensor(value, dtype=torch.float64, device=self.group.device)

    def _totals(self) -> dict[str, float]:
        """The sums so far over the group's processes, read from the device in one transfer."""
        if not self._sums:
            return {}
        totals = self.group.sum(torch.stack([*self._sums.values()])).tolist()
        return dict(zip(self._sums, totals, strict=True))

    def _seed(self, micro: int) -> None:
        """Seed dropout by run, step, batch and process, so that no random state need be saved."""
        place = [self.context.key.seed, self.step, micro, self.group.rank]
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0]))

    def _set_lr(self) -> None:
        rate = self._lr()
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]

    def _lr(self) -> float:
        """Polynomial decay to zero over all steps."""
        power = self.context.params.optimizer.poly_power
        return float(self.schedule.lr * (1 - self.step / self.total) ** power)

    def _evaluate(self) -> None:
        table = self.context.evaluate(self.evaluated, self.val)
        # MLflow accepts no @ in a name: `P@0.5` is `val/prec_0.5`.
        metrics = {f"val/{k.replace('P@', 'prec_')}": v for k, v in summarise(table).items()}
        since = self.step - int(self.history[-1]["step"]) if self.history else self.step
        batches = since * self.accumulate * self.group.world
        totals = self._totals()
        row = {**means(totals, batches), **metrics, "train/lr": self._lr()}
        self._sums = {}
        self.history.append({"step": self.step, **row})
        rates = self.timing.since(self._logged_timing).rates()
        self._logged_timing = replace(self.timing)
        timing = {f"time/{name}": value for name, value in rates.items()}
        self.log({**row, **calibration_of(totals), **timing}, self.step)
        if row["val/oIoU"] > self.best["val/oIoU"]:
            state = {k: v.detach().clone() for k, v in self.evaluated.state_dict().items()}
            self.best = {"val/oIoU": row["val/oIoU"], "step": self.step, "state": state}
            self.best_val = table

    def _out_of_patience(self) -> bool:
        patience = getattr(self.schedule, "patience", None)
        if patience is None:
            return False
        since_best = sum(row["step"] > self.best["step"] for row in self.history)
        return bool(since_best >= patience)

    def _save_if_due_or_stopped(self) -> None:
        """Save when the interval has passed. If any process received a signal, save and stop."""
        code = process.stop_requested()
        late = time.monotonic() - self._saved > self.context.params.runtime.checkpoint_every_s
        stop, due = self.group.any(code is not None, late)
        if stop or due:
            self.save()
            self._saved = time.monotonic()
        if stop:
            raise Interrupted(
                f"{self.context.key.name}: stopped at step {self.step} of {self.total}, state "
                "saved; run the same command to continue",
                code or 143,
            )

    @property
    def _path(self) -> Path:
        return self.context.work / "last.pt"

    def save(self) -> None:
        """Save everything that the rest of the run depends on.

        Every process must call this; the main process writes.
        """
        totals = self._totals()
        if not self.group.is_main_process:
            return
        save_state(
            self._path,
            {
                "step": self.step,
                "modules": {name: module.state_dict() for name, module in self.modules.items()},
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "history": self.history,
                "best": self.best,
                "sums": totals,
                "timing": asdict(self.timing),
            },
        )

    def _resume(self) -> None:
        name, state = self.context.key.name, load_state(self._path)
        if state is None:
            if self.group.is_main_process and (others := self.context.other_states()):
                print(
                    f"{name}: starts again from step 0: {others[0]} was made with other "
                    "parameters, data or weights; that state is left unchanged"
                )
            return
        for part, module in self.modules.items():
            module.load_state_dict(state["modules"][part])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.step, self.history, self.best = state["step"], state["history"], state["best"]
        self.timing = Timing(**state["timing"])
        share = 1 if self.group.is_main_process else 0  # the saved sums are those of all processes
        self._sums = {k: self._sum(share * value) for k, value in state["sums"].items()}
        if self.group.is_main_process:
            print(f"{name}: resuming from step {self.step} of {self.total}")

    def load_best(self) -> SegmentationModel:
        """The evaluated module with the weights of its best evaluation."""
        self.evaluated.load_state_dict(self.best["state"])
        return self.evaluated


def means(sums: dict[str, float], batches: int) -> dict[str, float]:
    """Means over batches; sums of ``overlap_sums`` become percentages ``pseudo/...``."""
    row = {f"train/{k}": v / max(batches, 1) for k, v in sums.items() if not k.startswith("pseudo")}
    for name in ("raw", "refined"):
        union = sums.get(f"pseudo_{name}_union", 0.0)
        if union > 0:
            row[f"pseudo/{name}_oIoU"] = 100 * sums[f"pseudo_{name}_intersection"] / union
    if "pseudo_seen" in sums:
        row["pseudo/matched"] = 100 * sums["pseudo_matched"] / max(sums["pseudo_seen"], 1)
    return row


def total_steps(schedule: BurnIn | Mutual, samples: int, batch: int) -> int:
    """The number of optimizer steps: ``steps``, or ``epochs`` passes over ``samples``.

    The smaller one where both are set. An epoch takes ``ceil(samples / batch)`` steps.
    """
    lengths = [schedule.steps] if schedule.steps else []
    if schedule.epochs:
        lengths.append(schedule.epochs * max(1, math.ceil(samples / batch)))
    return min(lengths)
