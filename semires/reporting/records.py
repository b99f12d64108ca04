"""Run records as the report reads them: `runs/D/F/M/seedS/` and `proposals/D/S/quality.json`.

Nothing else is an input of the tables. Files are read when asked for and kept; a record that
contradicts its own predictions is refused rather than shown.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from semires.errors import CorruptCacheError
from semires.evaluation.bootstrap import ImageSums, image_sums
from semires.files import read_json, read_parquet
from semires.runs.key import RUNS, SUPERVISED, RunKey, fraction_name
from semires.runs.record import RunRecord, run_folders

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

_PREDICTION_COLUMNS = [
    *("split", "ref_id", "image_id", "sentence", "intersection", "union", "object_area")
]
_TOLERANCE = 0.01  # percentage points between metrics.json and predictions.parquet


@dataclass(eq=False)
class Run:
    """One run folder and its record."""

    folder: Path
    record: RunRecord
    _sums: dict[tuple[str, float | None], ImageSums | None] = field(default_factory=dict)

    @cached_property
    def made_with(self) -> dict[str, Any]:
        """What seeds of one cell share: the parameters that decide numbers, data and split."""
        params, prints = self.record.params, self.record.fingerprints
        sentences = params.get("evaluation", {}).get("sentences")
        inputs = [prints.get(name) for name in ("data", "split")]
        return {**params, "evaluation": sentences, "inputs": inputs}

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """metrics.json: per split the metrics in percent, and `pseudo`."""
        path = self.record.verified(self.folder, "metrics.json")
        values = read_json(path)
        if not isinstance(values, dict) or not all(isinstance(v, dict) for v in values.values()):
            raise CorruptCacheError(f"{path}: no metrics by split; make the run again")
        return values

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """One row per expression, without the expressions' text."""
        return read_parquet(
            self.record.verified(self.folder, "predictions.parquet"), columns=_PREDICTION_COLUMNS
        )

    @cached_property
    def history(self) -> pd.DataFrame:
        """history.csv, one row per evaluation."""
        import pandas as pd

        path = self.record.verified(self.folder, "history.csv")
        try:
            return pd.read_csv(path)
        except (OSError, ValueError, pd.errors.ParserError) as error:
            raise CorruptCacheError(f"{path}: no readable history ({error})") from error

    @cached_property
    def corrections(self) -> pd.DataFrame | None:
        """corrections.parquet, or None where the run has none (burn-in, control)."""
        path = self.record.verified(self.folder, "corrections.parquet")
        return read_parquet(path) if path.is_file() else None

    @cached_property
    def panels(self) -> dict[str, NDArray[Any]] | None:
        """panels.npz as arrays, or None where the run has none."""
        path = self.record.verified(self.folder, "panels.npz")
        if not path.is_file():
            return None
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
        except Exception as error:  # zipfile, zlib and numpy each have errors of their own
            raise CorruptCacheError(f"{path}: damaged panels ({error})") from error

    @property
    def cell(self) -> RunKey:
        """Which run."""
        return self.record.key

    def sums(self, split: str, smallest: float | None = None) -> ImageSums | None:
        """Per-image sums of a split, or None if the run has no such split.

        Args:
            split: `val`, `testA`, ...
            smallest: keep only this share of references, those with the smallest objects.

        Raises:
            CorruptCacheError: metrics.json states another overall IoU than the predictions.
        """
        key = (split, smallest)
        if key not in self._sums:
            self._sums[key] = self._compute_sums(split, smallest)
        return self._sums[key]

    def _compute_sums(self, split: str, smallest: float | None) -> ImageSums | None:
        rows = self.predictions[self.predictions["split"] == split]
        if not len(rows):
            return None
        if smallest is not None:
            rows = smallest_objects(rows, smallest)
        sums = image_sums(rows["image_id"], rows["intersection"], rows["union"])
        stated = self.metrics.get(split, {}).get("oIoU")
        if smallest is None and stated is not None and abs(stated - sums.oiou) > _TOLERANCE:
            raise CorruptCacheError(
                f"{self.folder}: metrics.json states {split} oIoU {stated:.2f}, "
                f"predictions.parquet gives {sums.oiou:.2f}; make the run again"
            )
        return sums

    @property
    def splits(self) -> list[str]:
        """The evaluated splits, in the order of metrics.json."""
        return [name for name in self.metrics if name != "pseudo"]


def smallest_objects(predictions: pd.DataFrame, share: float) -> pd.DataFrame:
    """Expressions of the ``share`` of references with the smallest masks (at least one).

    References are ranked by `object_area` (pixels), ties by `ref_id`.
    """
    refs = predictions.drop_duplicates("ref_id").sort_values(["object_area", "ref_id"])
    kept = refs["ref_id"].head(max(1, math.floor(share * len(refs) + 1e-9)))
    return predictions[predictions["ref_id"].isin(kept)]


class Records:
    """All runs under a folder, found by data set, fraction and method label.

    Seeds that were trained otherwise than the first of ``seeds`` (the study's) are in ``left_out``
    and nowhere else: a mean is of one thing. So are runs that started from such a burn-in.
    """

    def __init__(
        self,
        runs: list[Run],
        quality: dict[tuple[str, str], dict[str, Any]],
        seeds: Sequence[int] = (),
    ) -> None:
        runs = sorted(runs, key=_order)
        self.left_out = _other_trainings(runs, seeds)
        self.all = [run for run in runs if run not in self.left_out]
        self.quality = quality
        self._by_key: dict[tuple[str, str, str], list[Run]] = {}
        for run in self.all:
            self._by_key.setdefault(_key(run), []).append(run)

    def find(self, dataset: str, fraction: float, label: str) -> list[Run]:
        """The runs of one cell of the grid, by seed; empty if there are none."""
        return self._by_key.get((dataset, fraction_name(fraction), label), [])


def _other_trainings(runs: list[Run], seeds: Sequence[int]) -> list[Run]:
    leaders: dict[tuple[str, str, str], Run] = {}
    for run in sorted(runs, key=lambda run: run.cell.seed not in seeds):
        leaders.setdefault(_key(run), run)
    other = [run for run in runs if run.made_with != leaders[_key(run)].made_with]
    burn_ins = {_burn_in(run) for run in other if run.cell.method == SUPERVISED}
    return [run for run in runs if run in other or _burn_in(run) in burn_ins]


def _key(run: Run) -> tuple[str, str, str]:
    return (run.cell.dataset, fraction_name(run.cell.fraction), run.cell.label)


def _burn_in(run: Run) -> tuple[str, float, int]:
    return (run.cell.dataset, run.cell.fraction, run.cell.seed)


def _order(run: Run) -> tuple[str, float, str, int]:
    cell = run.cell
    return (cell.dataset, cell.fraction, cell.label, cell.seed)


def load_records(
    runs: Path = RUNS,
    proposals: Path = Path("proposals"),
    default_source: str | None = None,
    seeds: Sequence[int] = (),
) -> Records:
    """Read every run.json and quality.json; the larger files follow when needed.

    Args:
        runs: the folder that holds D/F/M/seedS/.
        proposals: the folder that holds D/S/quality.json.
        default_source: a cell whose source is this one is stored without it.
        seeds: the study's, see :class:`Records`.

    Raises:
        SemiresError: a record is missing parts or damaged; the text names the file.
    """
    found = [_read_run(folder, default_source) for folder in run_folders(runs)]
    quality = {
        (path.parent.parent.name, path.parent.name): read_json(path)
        for path in sorted(proposals.glob("*/*/quality.json"))
    }
    records = Records(found, quality, seeds)
    if left := records.left_out:
        print(
            f"{len(left)} runs were trained with other parameters or data than this study's seeds "
            f"and are left out: {', '.join(str(run.folder) for run in left[:3])}"
            f"{' ...' if len(left) > 3 else ''}"
        )
    return records


def _read_run(folder: Path, default_source: str | None) -> Run:
    record = RunRecord.read(folder)
    if record.key.source == default_source:
        record = dataclasses.replace(record, key=dataclasses.replace(record.key, source=None))
    return Run(folder, record)
