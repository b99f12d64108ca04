"""The threshold searches that the report reads: `tune/D/F/M/seedS/`, as `semires tune` writes them.

A search keeps the counts of its labels, so that any thresholds can be evaluated exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from semires.config.grid import searches
from semires.config.resolve import resolve
from semires.config.schema import Params
from semires.errors import CorruptCacheError
from semires.evaluation.bootstrap import ImageSums, image_sums
from semires.files import read_json
from semires.reporting.records import ratio
from semires.runs import layout
from semires.runs.key import RunKey
from semires.tuning.counts import load
from semires.tuning.objective import Axis, space
from semires.tuning.plots import Trials, unit_of
from semires.tuning.refined import Table, make_table
from semires.tuning.results import PARTS

_FILES = ("summary.json", "trials.csv", "curves.csv", "seen.npz", "held_out.npz")


@dataclass(frozen=True)
class Search:
    """A finished search: its key, strategy, ``summary.json``, folder and parameters."""

    key: RunKey
    strategy: str
    summary: Mapping[str, Any]
    folder: Path
    axes: Mapping[str, Axis]

    @property
    def best(self) -> dict[str, float]:
        """The best thresholds, by name."""
        return dict(self.summary["thresholds"])

    @property
    def given(self) -> dict[str, float]:
        """The thresholds of params.yaml: the paper's."""
        return dict(self.summary["paper_thresholds"])

    @property
    def parts(self) -> dict[str, str]:
        """The names of the ``seen`` and the ``held_out`` labels."""
        return PARTS[self.summary["on"]]

    @property
    def on_val(self) -> bool:
        """Whether both parts of the labels are halves of val."""
        return str(self.summary["on"]) == "val"

    @property
    def of_labels(self) -> bool:
        """Whether it searched the thresholds that are best for the labels."""
        return str(self.summary["objective"]) != "training"

    @cached_property
    def tables(self) -> dict[str, Table]:
        """The tables of the ``seen`` and the ``held_out`` labels."""
        return {
            name: make_table(load(self.folder / f"{name}.npz", made_from=""), self.strategy)
            for name in ("seen", "held_out")
        }

    @cached_property
    def curves(self) -> pd.DataFrame:
        """See `tuning.curves.response_curves`."""
        return self._csv("curves.csv")

    @cached_property
    def trials(self) -> pd.DataFrame:
        """One row per trial."""
        return self._csv("trials.csv")

    @property
    def plane(self) -> pd.DataFrame | None:
        """See `tuning.curves.response_plane`; None for one threshold."""
        return self._csv("plane.csv") if (self.folder / "plane.csv").is_file() else None

    @property
    def front(self) -> pd.DataFrame | None:
        """See `tuning.curves.front_of`; None for one objective."""
        return self._csv("front.csv") if (self.folder / "front.csv").is_file() else None

    @property
    def drawn(self) -> Trials:
        """The trials for the plots."""
        paper = float(self.summary["seen"]["paper"]["oIoU"]) if self.of_labels else None
        unit = unit_of(str(self.summary["objective"]), self.parts["seen"])
        return Trials(self.trials, self.axes, self.summary["values"], unit, paper)

    def _csv(self, name: str) -> pd.DataFrame:
        path = self.folder / name
        try:
            return pd.read_csv(path, float_precision="round_trip")
        except (OSError, ValueError, pd.errors.ParserError) as error:
            raise CorruptCacheError(f"{path}: no readable table ({error})") from error


def read_searches(params: Params) -> dict[RunKey, Search | None]:
    """All searches of the study, in order; None for one that has not been run.

    A search of an earlier version, without all files, counts as not run.

    Raises:
        CorruptCacheError: a file is damaged; the text names it.
    """
    return {key: _read(params, key) for key in searches(params)}


def _read(params: Params, key: RunKey) -> Search | None:
    folder = layout.tune_folder(key)
    if not all((folder / name).is_file() for name in _FILES):
        return None
    summary = read_json(folder / "summary.json")
    needed = {"values", "thresholds", "paper_thresholds", "on"}
    if not isinstance(summary, dict) or not needed <= summary.keys():
        raise CorruptCacheError(f"{folder}/summary.json: no summary; run `semires tune` again")
    axes = space(resolve(params, key, tuned=False), key)
    if axes.keys() != summary["values"].keys():
        return None  # it searched other parameters
    return Search(key, params.refine[key.method].strategy, summary, folder, axes)


def label_sums(tables: Sequence[Table], thresholds: Mapping[str, float], metric: str) -> ImageSums:
    """Sums by image of a metric (oIoU or mIoU) of the labels, refined with these thresholds."""
    outcomes = [table.outcome(thresholds) for table in tables]
    inter = np.concatenate([outcome.intersection for outcome in outcomes])
    union = np.concatenate([outcome.union for outcome in outcomes])
    images = np.concatenate([table.labels.image_ids for table in tables])
    return image_sums(images, *ratio(inter, union, metric))
