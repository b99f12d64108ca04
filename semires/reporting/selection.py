"""The numbers of a table row: its runs, its value, its difference from another row.

Tables and claims both use this module, so that a claim's difference is the one that the table of
differences shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from semires.config.resolve import proposals_of
from semires.config.schema import Params
from semires.evaluation.bootstrap import (
    ImageSums,
    Interval,
    confidence_interval,
    paired_difference,
)
from semires.reporting.definitions import Column, TableRow
from semires.reporting.plan import run_of
from semires.reporting.records import Records, Run


@dataclass(frozen=True)
class Value(Interval):
    """A number (percent or percentage points), its 95 % interval and its sources.

    ``sd`` is the standard deviation over seeds, None for one seed.
    """

    sd: float | None
    seeds: int
    images: int
    expressions: int


class Selection:
    """Finds and compares the runs of table rows.

    Args:
        params: the active parameters.
        records: all runs.
    """

    def __init__(self, params: Params, records: Records) -> None:
        self.params, self.records = params, records
        self.samples = params.evaluation.bootstrap_samples

    def runs(self, row: TableRow, dataset: str, fraction: float) -> list[Run]:
        """The row's runs by seed; empty if there are none."""
        key = run_of(self.params, row, dataset, fraction)
        return self.records.find(dataset, key.fraction, key.label)

    def value(
        self, row: TableRow, dataset: str, fraction: float, split: str, metric: str
    ) -> Value | None:
        """Mean over seeds with its interval over images; None without runs."""
        sums = list(self._sums(row, dataset, fraction, split, metric).values())
        if not sums:
            return None
        each = [s.percent for s in sums]
        return _value(confidence_interval(sums, self.samples), each, sums[0])

    def columns(self, row: TableRow, dataset: str, fraction: float) -> dict[Column, float]:
        """The values of COLUMNS that are known: of the proposals on val, and of the labels.

        A method without matching has no proposals. Labels: means over seeds, percent.
        """
        found: dict[Column, float] = {}
        key = run_of(self.params, row, dataset, fraction)
        method = self.params.refine.get(key.method)
        if method is not None and method.strategy != "none":
            place = proposals_of(self.params, key)
            quality = self.records.quality.get((place.parent.name, place.name), {}).get("val", {})
            count = quality.get("proposals_per_label", quality.get("proposals_per_image"))
            if count is not None:
                found |= {"proposals": count, "best_iou": 100 * quality["best_iou"]}
        labels = [run.labels for run in self.runs(row, dataset, fraction)]
        measured = [values for values in labels if values is not None]
        if measured and len(measured) == len(labels):
            oiou, miou = np.mean(measured, axis=0)
            found |= {"labels": float(oiou), "labels_miou": float(miou)}
        return found

    def difference(
        self,
        rows: tuple[TableRow, TableRow],
        dataset: str,
        fraction: float,
        split: str,
        metric: str,
    ) -> Value | None:
        """First row minus second row on the seeds that both have, over images and seeds.

        None if they share no seed or were evaluated on different expressions.
        """
        first, second = (self._sums(row, dataset, fraction, split, metric) for row in rows)
        seeds = sorted(first.keys() & second.keys())
        if not seeds:
            return None
        pair = [first[s] for s in seeds], [second[s] for s in seeds]
        try:
            interval = paired_difference(*pair, self.samples)
        except ValueError:  # evaluated on different expressions
            return None
        each = [a.percent - b.percent for a, b in zip(*pair, strict=True)]
        return _value(interval, each, pair[0][0])

    def _sums(
        self, row: TableRow, dataset: str, fraction: float, split: str, metric: str
    ) -> dict[int, ImageSums]:
        name = f"{split}_shuffled" if row.shuffled else split
        found = {
            run.key.seed: run.sums(name, metric, row.smallest)
            for run in self.runs(row, dataset, fraction)
        }
        return {seed: sums for seed, sums in found.items() if sums is not None}


def _value(interval: Interval, each: Sequence[float], sums: ImageSums) -> Value:
    sd = float(np.std(each, ddof=1)) if len(each) > 1 else None
    return Value(
        interval.value, interval.low, interval.high, sd, len(each),
        len(sums.images), sums.n_expressions,
    )  # fmt: skip
