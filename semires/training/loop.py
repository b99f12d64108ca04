"""The part of training that every method shares: steps, schedule, evaluation, state, resume.

A method is written as one loop over ``loop.steps(...)`` that computes a loss and calls
``loop.optimise(loss)``; everything around it happens here, between two steps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from semires import process
from semires.config import BurnIn, Mutual
from semires.errors import Interrupted, NonFiniteLossError
from semires.training.state import load_state, save_state
from semires.training.task import Task

Batch = dict[str, Any]
Evaluate = Callable[[], dict[str, float]]


class Loop:
    """Drives one training to its last step and remembers the best evaluation.

    Args:
        task: what is trained, on which device, where the unfinished state is kept.
        schedule: learning rate and number of evaluations.
        steps: number of optimizer steps in all.
        modules: everything with a state, by name; the optimizer works on ``modules['model']``.
        evaluated: the module whose weights are kept at the best val oIoU.
        evaluate: returns the metrics of one evaluation, ``val/oIoU`` among them.
        log: called with a dict of metrics and the step.
    """

    def __init__(
        self,
        task: Task,
        schedule: BurnIn | Mutual,
        steps: int,
        modules: dict[str, nn.Module],
        evaluated: nn.Module,
        evaluate: Evaluate,
        log: Callable[[dict[str, float], int], None],
    ) -> None:
        self.task, self.schedule, self.total = task, schedule, steps
        self.modules, self.evaluated, self.evaluate, self.log = modules, evaluated, evaluate, log
        self.optimizer = task.optimizer(modules["model"], schedule.lr)
        self.scaler = torch.amp.GradScaler(
            task.group.device.type, enabled=task.params.runtime.precision == "fp16"
        )
        self.accumulate = task.params.runtime.accumulate
        self.step = 0
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Any] = {"val/oIoU": -1.0, "step": -1, "state": {}}
        self._sums: dict[str, torch.Tensor] = {}  # on the device: a step waits for no number
        self._samples = 0
        self._micro = 0
        self._batch: Any = None
        self._waited_s = 0.0
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
        saved = started = time.monotonic()
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
                    yield batch
                self.step += 1
                bar.update()
                if self.step in evaluation_steps:
                    self._evaluate(started)
                    bar.set_postfix(val_oIoU=f"{self.history[-1]['val/oIoU']:.2f}")
                    started = time.monotonic()
                self._poll_stop()
                if time.monotonic() - saved > self.task.params.runtime.checkpoint_every_s:
                    self.save()
                    saved = time.monotonic()
        self.save()  # the last evaluations may take long, and are all that is left to do
        process.stop_at_once()

    def optimise(self, loss: torch.Tensor) -> bool:
        """Backpropagate; on the last micro-batch of a step, step the optimizer and say so.

        Raises:
            NonFiniteLossError: the loss is NaN or infinite; the state before it was saved.
        """
        if not torch.isfinite(loss):
            self.save()
            raise NonFiniteLossError(
                f"{self.task.cell.name}: the loss is {loss.item()} at step {self.step}, of a batch "
                f"of the references {', '.join(map(str, ref_ids(self._batch)))}; the state before "
                f"it is in {self.task.work}; lower the learning rate or look at them"
            )
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

    def record(self, samples: int, **sums: float | torch.Tensor) -> None:
        """Add a step's sums; their means over steps are logged at the next evaluation."""
        self._samples += samples
        for name, value in sums.items():
            if name not in self._sums:
                self._sums[name] = self._sum(0.0)
            self._sums[name] += value

    def _sum(self, value: float) -> torch.Tensor:
        return torch.tensor(value, dtype=torch.float64, device=self.task.group.device)

    def _totals(self) -> dict[str, float]:
        """The sums so far, read from the device at once."""
        totals = torch.stack([*self._sums.values()]).tolist() if self._sums else []
        return dict(zip(self._sums, totals, strict=True))

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
        metrics = self.evaluate()
        since = self.step - int(self.history[-1]["step"]) if self.history else self.step
        row: dict[str, float] = {"step": self.step, **means(self._totals(), since), **metrics}
        row["train/lr"] = self._lr()
        row["time/samples_per_s"] = self._samples / max(seconds, 1e-9)
        row["time/data_wait"] = self._waited_s / max(seconds, 1e-9)
        self._sums, self._samples, self._waited_s = {}, 0, 0.0
        self.history.append(row)
        self.log({k: v for k, v in row.items() if k != "step"}, self.step)
        if row["val/oIoU"] > self.best["val/oIoU"]:
            state = {k: v.detach().clone() for k, v in self.evaluated.state_dict().items()}
            self.best = {"val/oIoU": row["val/oIoU"], "step": self.step, "state": state}

    def _out_of_patience(self) -> bool:
        patience = getattr(self.schedule, "patience", None)
        if patience is None:
            return False
        since_best = sum(row["step"] > self.best["step"] for row in self.history)
        return bool(since_best >= patience)

    def _poll_stop(self) -> None:
        code = process.stop_requested()
        if self.task.group.any(code is not None):
            self.save()
            raise Interrupted(
                f"{self.task.cell.name}: stopped at step {self.step} of {self.total}, state saved; "
                "run the same command to go on",
                code or 143,
            )

    @property
    def _path(self) -> Path:
        return self.task.work / "last.pt"

    def save(self) -> None:
        """Keep everything that the rest of the run depends on (rank 0 writes)."""
        if not self.task.group.leads:
            return
        save_state(
            self._path,
            {
                "step": self.step,
                "modules": {name: module.state_dict() for name, module in self.modules.items()},
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "torch_rng": torch.get_rng_state(),
                "history": self.history,
                "best": self.best,
                "sums": self._totals(),
                "samples": self._samples,
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
        torch.set_rng_state(state["torch_rng"].cpu())
        self.step, self.history, self.best = state["step"], state["history"], state["best"]
        self._sums = {name: self._sum(value) for name, value in state["sums"].items()}
        self._samples = state["samples"]
        if self.task.group.leads:
            print(f"{self.task.cell.name}: going on from step {self.step} of {self.total}")

    def load_best(self) -> nn.Module:
        """The evaluated module with the weights of its best evaluation."""
        self.evaluated.load_state_dict(self.best["state"])
        return self.evaluated


def ref_ids(batch: Any) -> list[int]:
    """The references of a batch, or of several side by side, in order."""
    parts = batch if isinstance(batch, tuple) else (batch,)
    return sorted({ref for part in parts if part is not None for ref in part["ref_id"]})


def means(sums: dict[str, float], steps: int) -> dict[str, float]:
    """Means over steps; pseudo-label sums become percentages (see ``mutual.py``)."""
    row = {f"train/{k}": v / max(steps, 1) for k, v in sums.items() if not k.startswith("pseudo")}
    for name in ("raw", "refined"):
        union = sums.get(f"pseudo_{name}_union", 0.0)
        if union > 0:
            row[f"pseudo/{name}_oIoU"] = 100 * sums[f"pseudo_{name}_intersection"] / union
    if "pseudo_seen" in sums:
        row["pseudo/matched"] = 100 * sums["pseudo_matched"] / max(sums["pseudo_seen"], 1)
    return row


def total_steps(schedule: BurnIn | Mutual, samples: int, batch: int) -> int:
    """Optimizer steps in all: as given, or passes over ``samples`` in batches of ``batch``."""
    if schedule.steps is not None:
        return schedule.steps
    assert schedule.epochs is not None
    return schedule.epochs * max(1, math.ceil(samples / batch))
