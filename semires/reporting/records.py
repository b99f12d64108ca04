"""The runs that the report reads: `runs/D/F/M/seedS/` and `proposals/D/S/quality.json`.

Tables, figures and claims have no other input. Files are read on first use and kept in memory. A
record whose metrics contradict its predictions is refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from semires.errors import CorruptCacheError, SemiresError
from semires.evaluation.bootstrap import ImageSums, image_sums
from semires.evaluation.metrics import iou_per_expression, segmentation_metrics
from semires.files import read_json, read_parquet
from semires.runs.key import RUNS, SUPERVISED, RunKey, fraction_name
from semires.runs.record import RunRecord, run_folders

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import ArrayLike, NDArray

_PREDICTION_COLUMNS = [
    *("split", "ref_id", "image_id", "sentence", "intersection", "union", "object_area")
]
#: The metrics that the report shows: overall IoU, mean IoU, share of expressions with IoU >= 0.5.
METRICS = ("oIoU", "mIoU", "P@0.5")
_TOLERANCE = 0.01  # percentage points between metrics.json and predictions.parquet


@dataclass(eq=False)
class Run:
    """One run folder and its record."""

    folder: Path
    record: RunRecord
    _sums: dict[tuple[str, str, float | None], ImageSums | None] = field(default_factory=dict)

    @cached_property
    def made_with(self) -> dict[str, Any]:
        """Settings that all seeds of a method share: parameters of the numbers, data, split."""
        params, prints = self.record.params, self.record.fingerprints
        sentences = params.get("evaluation", {}).get("sentences")
        inputs = [prints.get(name) for name in ("data", "split")]
        return {**params, "evaluation": sentences, "inputs": inputs}

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """metrics.json: per split the metrics in percent, and `pseudo`."""
        values = self._read("metrics.json", read_json)
        if not isinstance(values, dict) or not all(isinstance(v, dict) for v in values.values()):
            raise CorruptCacheError(
                f"{self.folder}/metrics.json: no metrics by split; make the run again"
            )
        return values

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """One row per expression, without the expressions' text."""
        return self._read("predictions.parquet", read_parquet, columns=_PREDICTION_COLUMNS)

    @cached_property
    def history(self) -> pd.DataFrame:
        """history.csv, one row per evaluation."""
        import pandas as pd

        return self._read("history.csv", pd.read_csv)

    @cached_property
    def corrections(self) -> pd.DataFrame | None:
        """corrections.parquet, or None if the run has none (burn-in, control)."""
        name = "corrections.parquet"
        return self._read(name, read_parquet) if name in self.record.files else None

    @cached_property
    def labels(self) -> tuple[float, float] | None:
        """Percent oIoU and mIoU of the refined labels of unlabelled references, or None."""
        table = self.corrections
        if table is None or not len(table):
            return None
        metrics = segmentation_metrics(table["intersection_after"], table["union_after"])
        return metrics["oIoU"], metrics["mIoU"]

    @cached_property
    def panels(self) -> dict[str, NDArray[Any]] | None:
        """panels.npz as arrays, or None if the run has none."""
        name = "panels.npz"
        return self._read(name, _read_arrays) if name in self.record.files else None

    def _read(self, name: str, read: Callable[..., Any], **options: Any) -> Any:
        """The content of a file of the run, after comparing its digest."""
        path = self.record.verified(self.folder, name)
        try:
            return read(path, **options)
        except SemiresError:
            raise
        except Exception as error:  # pandas, numpy and zipfile raise different exceptions
            raise CorruptCacheError(f"{path}: damaged ({error}); make the run again") from error

    @property
    def key(self) -> RunKey:
        """The key of the run."""
        return self.record.key

    @cached_property
    def samples_sha256(self) -> str:
        """SHA-256 of the list of evaluated samples: split, reference, image, sentence."""
        table = self.predictions[["split", "ref_id", "image_id", "sentence"]]
        text = table.to_csv(index=False, header=False, lineterminator="\n")
        return hashlib.sha256(text.encode()).hexdigest()

    def sums(
        self, split: str, metric: str = "oIoU", smallest: float | None = None
    ) -> ImageSums | None:
        """Per-image sums of a metric on a split, or None if the run has no such split.

        Args:
            split: `val`, `testA`, ...
            metric: one of METRICS.
            smallest: use only this share of references, those with the smallest objects.

        Raises:
            CorruptCacheError: metrics.json states another value than the predictions give.
        """
        key = (split, metric, smallest)
        if key not in self._sums:
            self._sums[key] = self._compute_sums(*key)
        return self._sums[key]

    def _compute_sums(self, split: str, metric: str, smallest: float | None) -> ImageSums | None:
        rows = self.predictions[self.predictions["split"] == split]
        if not len(rows):
            return None
        if smallest is not None:
            rows = smallest_objects(rows, smallest)
        sums = image_sums(rows["image_id"], *ratio(rows["intersection"], rows["union"], metric))
        stated = self.metrics.get(split, {}).get(metric)
        if smallest is None and stated is not None and abs(stated - sums.percent) > _TOLERANCE:
            raise CorruptCacheError(
                f"{self.folder}: metrics.json states {split} {metric} {stated:.2f}, "
                f"predictions.parquet gives {sums.percent:.2f}; make the run again"
            )
        return sums


def _read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def ratio(inter: ArrayLike, union: ArrayLike, metric: str) -> tuple[ArrayLike, ArrayLike]:
    """Numerator and denominator (E,) of one of METRICS, whose sums' ratio is its value.

    ``inter``, ``union``: pixels (E,) of each expression.
    """
    if metric == "oIoU":
        return inter, union
    iou = iou_per_expression(inter, union)
    if metric.startswith("P@"):
        iou = (iou >= float(metric[2:])).astype(np.float64)
    return iou, np.ones(len(iou))


def smallest_objects(predictions: pd.DataFrame, share: float) -> pd.DataFrame:
    """Expressions of the ``share`` of references with the smallest masks (at least one).

    References are ranked by `object_area` (pixels), ties by `ref_id`.
    """
    refs = predictions.drop_duplicates("ref_id").sort_values(["object_area", "ref_id"])
    kept = refs["ref_id"].head(max(1, math.floor(share * len(refs) + 1e-9)))
    return predictions[predictions["ref_id"].isin(kept)]


class Records:
    """All runs under a folder, found by data set, fraction and method label.

    Only runs with equal settings are averaged: ``left_out`` holds the runs whose settings differ
    from those of the study's first seed, and the runs that started from such a burn-in.
    """

    def __init__(
        self,
        runs: list[Run],
        quality: dict[tuple[str, str], dict[str, Any]],
        seeds: Sequence[int] = (),
    ) -> None:
        runs = sorted(runs, key=lambda r: (r.key.dataset, r.key.fraction, r.key.label, r.key.seed))
        self.left_out = _other_trainings(runs, seeds)
        self.all = [run for run in runs if run not in self.left_out]
        self.quality = quality
        self._by_group: dict[tuple[str, str, str], list[Run]] = {}
        for run in self.all:
            self._by_group.setdefault(_group(run), []).append(run)

    @property
    def by_stage(self) -> list[Run]:
        """All runs in the order of the pipeline: at each fraction, burn-in first."""
        return sorted(
            self.all, key=lambda r: (r.key.dataset, r.key.fraction, r.key.method != SUPERVISED)
        )

    def find(self, dataset: str, fraction: float, label: str) -> list[Run]:
        """The runs of one method by seed; empty if there are none."""
        return self._by_group.get((dataset, fraction_name(fraction), label), [])


def _other_trainings(runs: list[Run], seeds: Sequence[int]) -> list[Run]:
    first: dict[tuple[str, str, str], Run] = {}
    for run in sorted(runs, key=lambda run: run.key.seed not in seeds):
        first.setdefault(_group(run), run)
    other = [run for run in runs if run.made_with != first[_group(run)].made_with]
    burn_ins = {run.key.burn_in for run in other if run.key.method == SUPERVISED}
    return [run for run in runs if run in other or run.key.burn_in in burn_ins]


def _group(run: Run) -> tuple[str, str, str]:
    return (run.key.dataset, fraction_name(run.key.fraction), run.key.label)


def load_records(
    runs: Path = RUNS,
    proposals: Path = Path("proposals"),
    default_source: str | None = None,
    seeds: Sequence[int] = (),
    study: Collection[RunKey] | None = None,
) -> Records:
    """Read the records of a study's runs and quality.json; larger files are read on first use.

    Args:
        runs: the folder that holds D/F/M/seedS/.
        proposals: the folder that holds D/S/quality.json.
        default_source: the study's source of proposals, see :meth:`RunKey.relative_to`.
        seeds: the study's, see :class:`Records`.
        study: its runs, relative to ``default_source``; None: all runs of the folder.

    Raises:
        SemiresError: a record is missing parts or damaged; the text names the file.
    """
    found, others = [], 0
    for folder in run_folders(runs):
        record = RunRecord.read(folder)
        key = record.key.relative_to(default_source)
        if study is None or key in study:
            found.append(Run(folder, dataclasses.replace(record, key=key)))
        else:
            others += 1
    quality = {
        (path.parent.parent.name, path.parent.name): read_json(path)
        for path in sorted(proposals.glob("*/*/quality.json"))
    }
    records = Records(found, quality, seeds)
    if others:
        print(f"{others} runs are in no block of study.runs and are left out")
    if left := records.left_out:
        print(
            f"{len(left)} runs have other parameters or data than the study's first seed and are "
            f"left out: {', '.join(str(run.folder) for run in left[:3])}"
            f"{' ...' if len(left) > 3 else ''}"
        )
    return records
