"""What a search found, on the half of val that trials saw and on the one that they did not.

The best trial, the values in params.yaml (the paper's) and the untouched pseudo-label stand side by
side with confidence intervals over images; differences are paired.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from semires.config.grid import searches
from semires.config.schema import Params
from semires.errors import SemiresError
from semires.evaluation.bootstrap import (
    ImageSums,
    Interval,
    confidence_interval,
    image_sums,
    paired_difference,
)
from semires.files import atomic_folder, write_json, write_text
from semires.runs import layout
from semires.runs.key import RunKey, fraction_name
from semires.tuning.objective import Axis, Outcome, Table, summarise, untouched
from semires.tuning.storage import hidden

ROWS = ("untouched", "paper", "best")


@dataclass(frozen=True)
class Result:
    """A finished search. ``tables``: both halves of val; ``trials``: done, in order."""

    params: Params
    cell: RunKey
    axes: Mapping[str, Axis]
    tables: Mapping[str, Table]
    trials: list[Any]
    study: str
    storage: str

    @cached_property
    def best(self) -> dict[str, float]:
        """The values of the best trial; of equal ones the first.

        Raises:
            SemiresError: no trial was completed.
        """
        completed = [t for t in self.trials if t.state.name == "COMPLETE"]
        if not completed:
            raise SemiresError(f"{self.study}: no trial was completed, all were pruned")
        params = max(completed, key=lambda trial: trial.value).params
        return {name: float(params[name]) for name in self.axes}

    @property
    def given(self) -> dict[str, float]:
        """The values in params.yaml: the paper's."""
        return {name: axis.given for name, axis in self.axes.items()}

    def outcomes(self, half: str) -> dict[str, Outcome]:
        """The labels of one half of val as in each of ``ROWS``."""
        table = self.tables[half]
        return {
            "untouched": untouched(table.labels),
            "paper": table.outcome(self.given),
            "best": table.outcome(self.best),
        }

    @cached_property
    def trial_table(self) -> pd.DataFrame:
        """One row per trial: number, state, value, ``params_*`` and label metrics (percent)."""
        seen = self.tables["seen"]
        rows = []
        for number, trial in enumerate(self.trials):
            values = {name: trial.params.get(name) for name in self.axes}
            metrics: dict[str, float] = {}
            if None not in values.values():
                metrics = summarise(seen.outcome(values), seen.labels)
            row = {"number": number, "state": trial.state.name, "value": trial.value}
            named = {f"params_{name}": value for name, value in values.items()}
            rows.append({**row, **named, **metrics})
        return pd.DataFrame(rows)

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Metrics, intervals and differences per half, the best values, and what was searched."""
        summary: dict[str, Any] = {"trials": len(self.trials), "values": self.best}
        for half, table in self.tables.items():
            outcomes = self.outcomes(half)
            sums = {name: _sums(table, outcome) for name, outcome in outcomes.items()}
            n = self.params.evaluation.bootstrap_samples
            summary[half] = {
                "refs": len(table.labels),
                "images": len(sums["best"].images),
                **{
                    name: {
                        **summarise(outcome, table.labels),
                        "oIoU_interval": _bounds(confidence_interval([sums[name]], n)),
                    }
                    for name, outcome in outcomes.items()
                },
                "best_minus_paper": _told(paired_difference([sums["best"]], [sums["paper"]], n)),
                "best_minus_untouched": _told(
                    paired_difference([sums["best"]], [sums["untouched"]], n)
                ),
            }
        return summary


def _sums(table: Table, outcome: Outcome) -> ImageSums:
    return image_sums(table.labels.image_ids, outcome.intersection, outcome.union)


def _bounds(interval: Interval) -> dict[str, float]:
    return {"low": interval.low, "high": interval.high}


def _told(interval: Interval) -> dict[str, float]:
    return {"value": interval.value, **_bounds(interval)}


def publish(result: Result) -> None:
    """Write the outputs, log the study once, and print a summary table."""
    from semires import tracking
    from semires.tuning import plots

    folder = layout.tune_folder(result.cell)
    with atomic_folder(folder) as temporary:
        write_text(temporary / "best.yaml", best_yaml(result))
        result.trial_table.to_csv(temporary / "trials.csv", index=False)
        write_json(temporary / "summary.json", result.summary)
        plots.draw(result, temporary)
    path = tuned_file(result.cell)
    planned = searches(result.params)
    seeds = [key.seed for key in planned if tuned_file(key) == path] or [k.seed for k in planned]
    if not seeds or result.cell.seed in seeds:
        write_text(path, best_yaml(result, thresholds_only=True))
    else:
        print(f"{path}: not changed, since the seed of study.tune is {seeds[0]}")
    tracking.log_study(result.cell, without_password(result.params), result.trial_table, folder)
    print(text_table(result))


def without_password(params: Params) -> Params:
    """Parameters to show to others: the storage's URL holds no password."""
    storage = params.tune.storage and hidden(params.tune.storage)
    return params.model_copy(update={"tune": params.tune.model_copy(update={"storage": storage})})


def tuned_file(cell: RunKey) -> Path:
    """Where methods with ``thresholds: tuned`` find them (in git), whatever their own seed.

    One search speaks for a method, so its seed is not in the name: ``study.tune_seeds`` holds one
    seed at most, and `semires tune` with another one does not write here.
    """
    fraction = fraction_name(cell.fraction)
    return layout.TUNED / f"{cell.dataset}-{fraction}-{cell.label}.yaml"


def best_yaml(result: Result, thresholds_only: bool = False) -> str:
    """The best values as YAML, with a comment that says where they come from."""
    held_out = result.summary["held_out"]
    difference = held_out["best_minus_paper"]
    lines = [
        f"# Best of {len(result.trials)} trials, objective {result.params.tune.objective}, "
        f"{result.cell.dataset}, {fraction_name(result.cell.fraction)} % labelled, "
        f"{result.cell.label}, seed {result.cell.seed}.",
        f"# Pseudo-labels' oIoU on the held-out half of val: {held_out['best']['oIoU']:.2f}, "
        f"with params.yaml's thresholds {held_out['paper']['oIoU']:.2f} (difference "
        f"{difference['value']:+.2f}, 95 % interval {difference['low']:+.2f} to "
        f"{difference['high']:+.2f}).",
    ]
    values = {
        name: value
        for name, value in result.best.items()
        if name.startswith("threshold") or not thresholds_only
    }
    return "\n".join([*lines, *(f"{name}: {value!r}" for name, value in values.items()), ""])


def text_table(result: Result) -> str:
    """The summary as a table for the terminal."""
    from tabulate import tabulate

    rows = []
    for half in result.tables:
        for name in ROWS:
            found = result.summary[half][name]
            bounds = found["oIoU_interval"]
            values = {"paper": result.given, "best": result.best}.get(name, {})
            rows.append(
                [
                    half.replace("_", " "),
                    name,
                    ", ".join(f"{k} {v:.3f}" for k, v in values.items()),
                    f"{found['oIoU']:.2f} [{bounds['low']:.2f}, {bounds['high']:.2f}]",
                    *(f"{found[k]:.1f}" for k in ("mIoU", "matched", "better", "worse")),
                ]
            )
    head = ["half of val", "labels", "values", "oIoU", "mIoU", "matched %", "better %", "worse %"]
    told = result.summary["held_out"]["best_minus_paper"]
    text: str = (
        f"{result.study}: {len(result.trials)} trials in {hidden(result.storage)}\n"
        + tabulate(rows, headers=head, disable_numparse=True)
        + f"\nbest minus paper, held out: {told['value']:+.2f} "
        f"[{told['low']:+.2f}, {told['high']:+.2f}]"
        f"\nlook at it with `optuna-dashboard {hidden(result.storage)}` (docs/tuning.md)"
    )
    return text
