"""The part of training that every method shares: steps, schedule, evaluation, state, resume.

A method is written as one loop over ``loop.steps(...)`` that computes a loss and calls
``loop.optimise(loss)``; everything around it happens here, between two steps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, cast

import numpy as np
import pandas as pd
import torch
from torch import nn

from semires import process
from semires.config.schema import BurnIn, Mutual
from semires.errors import Interrupted, NonFiniteLossError
from semires.evaluation.evaluate import summarise
from semires.models import SegmentationModel
from semires.training.context import RunContext
from semires.training.state import load_state, save_state

Batch = dict[str, Any]


class Loop:
    """Drives one training to its last step and remembers the best evaluation.

    Args:
        task: what is trained, on which device, where the unfinished state is kept.
        schedule: learning rate and number of evaluations.
        steps: number of optimizer steps in all.
        modules: everything with a state, by name; the optimizer works on ``modules['model']``.
        evaluated: the module whose weights are kept at the best val oIoU.
        evaluate: returns the predictions of ``evaluated`` on val.
        log: called with a dict of metrics and the step.
    """

    def __init__(
        self,
        task: RunContext,
        schedule: BurnIn | Mutual,
        steps: int,
        modules: dict[str, nn.Module],
        evaluated: SegmentationModel,
        evaluate: Callable[[], pd.DataFrame],
        log: Callable[[dict[str, float], int], None],
    ) -> None:
        self.task, self.schedule, self.total = task, schedule, steps
        self.modules, self.evaluated, self.evaluate, self.log = modules, evaluated, evaluate, log
        self.optimizer = task.optimizer(cast(SegmentationModel, modules["model"]), schedule.lr)
        self.scaler = torch.amp.GradScaler(
            task.group.device.type, enabled=task.params.runtime.precision == "fp16"
        )
        self.accumulate = task.params.runtime.accumulate
        self.step = 0
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Any] = {"val/oIoU": -1.0, "step": -1, "state": {}}
        self.best_val: pd.DataFrame | None = None  # its predictions, unless made before a resume
        self._sums: dict[str, torch.Tensor] = {}  # on the device: a step waits for no number
        self._micro = 0
        self._batch: Any = None
        self._earlier_samples = 0.0  # since the last evaluation, before a resume
        self._waited_s = self._saved = 0.0
        self._resume()

    @property
    def evaluation_steps(self) -> set[int]:
        """Steps after which the model is evaluated: evenly spread, the last one included."""
        count = min(self.schedule.evaluations, self.total)
        return {math.ceil(self.total * (i + 1) / count) for i in range(count)}

    def steps(self, loaders: Callable[[int, int], Iterator[Any]]) -> Iterator[Any]:
        """Yield the batches of the remaining steps, evaluating and saving in between.

        ``loaders(first, last)`` makes the iterator over micro-batches ``first .. last - 1``.

        Raises:
            Interrupted: a signal arrived; the state was saved.
        """
        from tqdm import tqdm

        evaluation_steps = self.evaluation_steps
        first, last = self.step * self.accumulate, self.total * self.accumulate
        started = self._saved = time.monotonic()
        batches = loaders(first, last)
        bar = tqdm(
            total=self.total,
            initial=self.step,
            desc=self.task.cell.name,
            unit="step",
            disable=None if self.task.group.leads else True,
        )
        with bar:
            while self.step < self.total and not self._out_of_patience():
                self._set_lr()
                self._set_training()
                for micro in range(self.accumulate):
                    self._micro = micro
                    asked = time.monotonic()
                    batch = next(batches)
                    self._waited_s += time.monotonic() - asked
                    self._batch = batch
                    self._seed()
                    yield batch
                self.step += 1
                bar.update()
                if self.step in evaluation_steps:
                    self._evaluate(started)
                    bar.set_postfix(val_oIoU=f"{self.history[-1]['val/oIoU']:.2f}")
                    started = time.monotonic()
                self._poll()
        self.save()  # the last evaluations may take long, and are all that is left to do
        process.stop_at_once()

    def optimise(self, loss: torch.Tensor) -> bool:
        """Backpropagate; on the last micro-batch of a step, step the optimizer and say so.

        Raises:
            NonFiniteLossError: the loss is NaN or infinite; a sound state is kept.
        """
        if any(self.task.group.any(not torch.isfinite(loss))):
            self._refuse(float(loss))
        self.scaler.scale(loss / self.accumulate).backward()  # type: ignore[no-untyped-call]
        if self._micro < self.accumulate - 1:
            return False
        clip = self.task.params.optimizer.clip_grad_norm
        if clip is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.modules["model"].parameters(), clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return True

    def _refuse(self, loss: float) -> NoReturn:
        broken = not all(is_finite(module) for module in self.modules.values())
        if not any(self.task.group.any(broken)):  # otherwise what was saved before is sound
            self.save()
        kept = self.task.group.leads and self._path.is_file()
        where = f"the state before it is in {self.task.work}" if kept else "no state was kept"
        found = self.task.group.gather((loss, ref_ids(self._batch)))
        bad, refs = next(each for each in found if not math.isfinite(each[0]))
        raise NonFiniteLossError(
            f"{self.task.cell.name}: the loss is {bad} at step {self.step}, of a batch of the "
            f"references {', '.join(map(str, refs))}; {where}; "
            "lower the learning rate or look at them"
        )

    def record(self, **sums: float | torch.Tensor) -> None:
        """Add a batch's sums; their means over batches are logged at the next evaluation.

        ``samples`` counts what was trained on; every process must record the same names.
        """
        for name, value in sums.items():
            if name not in self._sums:
                self._sums[name] = self._sum(0.0)
            self._sums[name] += value

    def _sum(self, value: float) -> torch.Tensor:
        return torch.tensor(value, dtype=torch.float64, device=self.task.group.device)

    def _totals(self) -> dict[str, float]:
        """The sums so far over the group's processes, read from the device at once."""
        if not self._sums:
            return {}
        totals = self.task.group.sum(torch.stack([*self._sums.values()])).tolist()
        return dict(zip(self._sums, totals, strict=True))

    def _seed(self) -> None:
        """Seed dropout by run, micro-batch and process, so that no random state need be kept."""
        place = [self.task.cell.seed, self.step, self._micro, self.task.group.rank]
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0]))

    def _set_lr(self) -> None:
        """Polynomial decay to zero over all steps."""
        rate = self._lr()
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]

    def _lr(self) -> float:
        power = self.task.params.optimizer.poly_power
        return float(self.schedule.lr * (1 - self.step / self.total) ** power)

    def _set_training(self) -> None:
        model = self.modules["model"]
        if not model.training:
            model.train()

    def _evaluate(self, started: float) -> None:
        seconds = time.monotonic() - started
        table = self.evaluate()
        metrics = tracked(summarise(table), "val")
        since = self.step - int(self.history[-1]["step"]) if self.history else self.step
        totals, batches = self._totals(), since * self.accumulate * self.task.group.world
        samples = totals.pop("samples", 0.0) - self._earlier_samples
        row: dict[str, float] = {"step": self.step, **means(totals, batches), **metrics}
        row["train/lr"] = self._lr()
        row["time/samples_per_s"] = samples / max(seconds, 1e-9)
        row["time/data_wait"] = self._waited_s / max(seconds, 1e-9)
        self._sums, self._waited_s, self._earlier_samples = {}, 0.0, 0.0
        self.history.append(row)
        self.log({k: v for k, v in row.items() if k != "step"}, self.step)
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

    def _poll(self) -> None:
        """Save if it is time or if a signal arrived, in any process; in the latter case leave."""
        code = process.stop_requested()
        late = time.monotonic() - self._saved > self.task.params.runtime.checkpoint_every_s
        stop, due = self.task.group.any(code is not None, late)
        if stop or due:
            self.save()
            self._saved = time.monotonic()
        if stop:
            raise Interrupted(
                f"{self.task.cell.name}: stopped at step {self.step} of {self.total}, state saved; "
                "run the same command to go on",
                code or 143,
            )

    @property
    def _path(self) -> Path:
        return self.task.work / "last.pt"

    def save(self) -> None:
        """Keep everything that the rest of the run depends on: all call this, rank 0 writes."""
        totals = self._totals()
        if not self.task.group.leads:
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
            },
        )

    def _resume(self) -> None:
        state = load_state(self._path)
        if state is None:
            if self.task.group.leads and (others := self.task.other_states()):
                print(
                    f"{self.task.cell.name}: starts anew: {others[0]} was made with other "
                    "parameters, data or weights, and is left there"
                )
            return
        for name, module in self.modules.items():
            module.load_state_dict(state["modules"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.step, self.history, self.best = state["step"], state["history"], state["best"]
        self._earlier_samples = state["sums"].get("samples", 0.0)
        mine = 1 if self.task.group.leads else 0  # they are the group's
        self._sums = {name: self._sum(mine * value) for name, value in state["sums"].items()}
        if self.task.group.leads:
            print(f"{self.task.cell.name}: going on from step {self.step} of {self.total}")

    def load_best(self) -> SegmentationModel:
        """The evaluated module with the weights of its best evaluation."""
        self.evaluated.load_state_dict(self.best["state"])
        return self.evaluated


def is_finite(module: nn.Module) -> bool:
    """Whether all numbers of a module, its statistics included, are finite."""
    tensors = module.state_dict().values()
    return all(bool(torch.isfinite(t).all()) for t in tensors if t.is_floating_point())


def ref_ids(batch: Any) -> list[int]:
    """The references of a batch, or of several side by side, in order."""
    parts = batch if isinstance(batch, tuple) else (batch,)
    return sorted({ref for part in parts if part is not None for ref in part["ref_id"]})


def tracked(metrics: dict[str, float], prefix: str) -> dict[str, float]:
    """Names as MLflow takes them: ``P@0.5`` becomes ``val/prec_0.5``."""
    return {f"{prefix}/{name.replace('P@', 'prec_')}": value for name, value in metrics.items()}


def means(sums: dict[str, float], batches: int) -> dict[str, float]:
    """Means over batches; pseudo-label sums become percentages (see ``mutual.py``)."""
    row = {f"train/{k}": v / max(batches, 1) for k, v in sums.items() if not k.startswith("pseudo")}
    for name in ("raw", "refined"):
        union = sums.get(f"pseudo_{name}_union", 0.0)
        if union > 0:
            row[f"pseudo/{name}_oIoU"] = 100 * sums[f"pseudo_{name}_intersection"] / union
    if "pseudo_seen" in sums:
        row["pseudo/matched"] = 100 * sums["pseudo_matched"] / max(sums["pseudo_seen"], 1)
    return row


def total_steps(schedule: BurnIn | Mutual, samples: int, batch: int) -> int:
    """Optimizer steps in all: as given or as many passes over ``samples``, the fewer of the two.

    An epoch takes ``ceil(samples / batch)`` steps.
    """
    lengths = [schedule.steps] if schedule.steps else []
    if schedule.epochs:
        lengths.append(schedule.epochs * max(1, math.ceil(samples / batch)))
    return min(lengths)
