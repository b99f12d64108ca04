"""`reports/curves.csv`: val oIoU by step of every run, for `dvc plots show` and `dvc plots diff`.

Drawn by the template `.dvc/plots/curves.json`: per data set and fraction a panel for burn-in and
one for mutual learning, whose steps are not the same; one line per method, dashed by revision.
"""

from __future__ import annotations

import pandas as pd

from semires.reporting.records import Records, Run
from semires.reporting.render import csv_of
from semires.runs.key import SUPERVISED, fraction_name

COLUMNS = ("panel", "method", "step", "val/oIoU")


def curves_csv(records: Records) -> str:
    """Long table of COLUMNS; several seeds of a method are averaged by step."""
    points = [_points(run) for run in records.by_stage if "val/oIoU" in run.history]
    if not points:
        return csv_of(COLUMNS, [])
    table = pd.concat(points).groupby(list(COLUMNS[:3]), sort=False, as_index=False).mean()
    return str(table.to_csv(index=False, float_format="%.4f", lineterminator="\n"))


def _points(run: Run) -> pd.DataFrame:
    part = "burn-in" if run.key.method == SUPERVISED else "mutual learning"
    panel = f"{run.key.dataset} {fraction_name(run.key.fraction)} %, {part}"
    points = run.history[["step", "val/oIoU"]].dropna()
    return points.assign(panel=panel, method=run.key.label)[list(COLUMNS)]
