"""The result of a search, on the labels that the trials used and on held-out labels.

It compares the untouched pseudo-labels, the values in params.yaml (the paper's) and the best trial,
with confidence intervals over images. Differences are paired.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from semires.config.schema import Params
from semires.errors import SemiresError
from semires.evaluation.bootstrap import (
    Interval,
    confidence_interval,
    image_sums,
    paired_difference,
)
from semires.runs.key import RunKey
from semires.tuning.counts import Counts
from semires.tuning.curves import front_of, response_curves, response_plane
from semires.tuning.objective import Axis
from semires.tuning.refined import Outcome, Table, summarise, thresholds_of

ROWS = ("untouched", "paper", "best")
PARTS = {  # the names of both parts of the labels, by `tune.on`
    "val": {"seen": "seen half of val", "held_out": "held-out half of val"},
    "labelled": {"seen": "labelled images", "held_out": "val"},
}


def value_of(trial: Any) -> Any:
    """The value that the best trial maximises; None if the trial has no value.

    With one objective it is the trial's value, with two the oIoU (percent) of all labels.
    """
    if trial.values is None or len(trial.values) == 1:
        return trial.value
    return trial.user_attrs["metrics"]["oIoU"]


@dataclass(frozen=True)
class Result:
    """A finished search.

    ``parts``: the counts of ``seen`` and ``held_out`` labels, see `labelled.parts_of`; ``tables``:
    their tables; ``trials``: those that are done, by number; ``name``: the key in the names of
    the outputs.
    """

    params: Params
    key: RunKey
    axes: Mapping[str, Axis]
    parts: Mapping[str, Counts]
    tables: Mapping[str, Table]
    trials: list[Any]
    study: str
    storage: str
    name: RunKey

    @cached_property
    def best(self) -> dict[str, float]:
        """The values of the best trial by :func:`value_of`; of equal ones the first.

        Raises:
            SemiresError: no trial was completed.
        """
        completed = [t for t in self.trials if t.state.name == "COMPLETE"]
        if not completed:
            raise SemiresError(f"{self.study}: no trial was completed, all were pruned")
        params = max(completed, key=value_of).params
        return {name: float(params[name]) for name in self.axes}

    @property
    def thresholds(self) -> tuple[str, ...]:
        """The names of the strategy's thresholds."""
        return thresholds_of(self.params.refine[self.key.method].strategy)

    @property
    def given(self) -> dict[str, float]:
        """The values in params.yaml: the paper's."""
        return {name: axis.given for name, axis in self.axes.items()}

    def at(self, point: Mapping[str, float]) -> dict[str, float]:
        """The strategy's thresholds at a point of the search; the others as in params.yaml."""
        fixed = self.params.refine[self.key.method].threshold_values
        return {name: point.get(name, fixed[name]) for name in self.thresholds}

    def outcomes(self, half: str) -> dict[str, Outcome]:
        """The labels of one part as in each of ``ROWS``."""
        table = self.tables[half]
        return {
            "untouched": table.labels.untouched(),
            "paper": table.outcome(self.at(self.given)),
            "best": table.outcome(self.at(self.best)),
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
                metrics = summarise(seen.outcome(self.at(values)), seen.labels)
            if self.params.tune.objective == "labels-and-share":
                metrics["replaced_oIoU"] = trial.values[0]
            row = {"number": number, "state": trial.state.name, "value": value_of(trial)}
            named = {f"params_{name}": value for name, value in values.items()}
            rows.append({**row, **named, **metrics})
        return pd.DataFrame(rows)

    @cached_property
    def curves(self) -> pd.DataFrame:
        """The labels' response to each threshold; see `curves.response_curves`."""
        return response_curves(self.tables, self.at(self.given), self.at(self.best))

    @cached_property
    def plane(self) -> pd.DataFrame | None:
        """The labels' oIoU on the seen half over both thresholds of a strategy with two."""
        if len(self.thresholds) != 2:
            return None
        return response_plane(self.tables["seen"], (self.thresholds[0], self.thresholds[1]))

    @cached_property
    def front(self) -> pd.DataFrame | None:
        """The front of a search with two objectives; see `curves.front_of`."""
        if self.params.tune.objective != "labels-and-share":
            return None
        return front_of(self.trial_table, self.tables["held_out"], self.at)

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Metrics, intervals and differences per half, the best values, and the settings."""
        summary: dict[str, Any] = {"trials": len(self.trials), "values": self.best}
        summary |= {"given": self.given, "thresholds": self.at(self.best)}
        summary |= {"paper_thresholds": self.at(self.given)}
        summary |= self.params.tune.model_dump(include={"objective", "on", "sampler", "seed"})
        for half, table in self.tables.items():
            outcomes = self.outcomes(half)
            images = table.labels.image_ids
            sums = {n: image_sums(images, o.intersection, o.union) for n, o in outcomes.items()}
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
                **{
                    f"best_minus_{name}": asdict(paired_difference([sums["best"]], [sums[name]], n))
                    for name in ("paper", "untouched")
                },
            }
        return summary


def _bounds(interval: Interval) -> dict[str, float]:
    return {"low": interval.low, "high": interval.high}
