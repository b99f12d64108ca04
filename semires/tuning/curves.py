"""Response curves: the quality of the refined labels over the thresholds, computed on counts.

All values are exact. They are not an interpolation of trials.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from semires.evaluation.bootstrap import confidence_interval, image_sums
from semires.evaluation.metrics import overall_iou
from semires.tuning.refined import Outcome, Table, summarise

COLUMNS = ("half", "threshold", "value", "mark", "oIoU", "low", "high", "mIoU")
ALL_EQUAL = "all thresholds equal"  # the diagonal of the paper's Table 3
CURVE_POINTS = 101
PLANE_POINTS = 41
SAMPLES = 200  # resamples for the interval of a point


def response_curves(
    tables: Mapping[str, Table], given: Mapping[str, float], best: Mapping[str, float]
) -> pd.DataFrame:
    """The labels' oIoU and mIoU over each threshold, with the others at their best values.

    With several thresholds, the curve ``ALL_EQUAL`` gives all of them the same value.

    Args:
        tables: by the name of the part, ``seen`` or ``held_out``.
        given: the thresholds of params.yaml (the paper's).
        best: the best thresholds.

    Returns:
        A table with the columns ``COLUMNS``; no row without thresholds. ``mark`` is ``paper`` or
        ``best`` in the rows of these values, otherwise empty. ``low`` to ``high`` is the 95 %
        interval of the oIoU over images. IoU in percent.
    """
    rows: list[dict[str, Any]] = []
    points = {float(value): "" for value in np.linspace(0.0, 1.0, CURVE_POINTS)}
    marked = {name: {**points, given[name]: "paper", best[name]: "best"} for name in best}
    if len(best) > 1:
        same = len(set(given.values())) == 1
        marked[ALL_EQUAL] = points | ({next(iter(given.values())): "paper"} if same else {})
    for half, table in tables.items():
        for name, values in marked.items():
            for value, mark in sorted(values.items()):
                changed = best if name == ALL_EQUAL else [name]
                outcome = table.outcome({**best, **dict.fromkeys(changed, value)})
                row = {"half": half, "threshold": name, "value": value, "mark": mark}
                rows.append({**row, **_point(table, outcome)})
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _point(table: Table, outcome: Outcome) -> dict[str, float]:
    metrics = summarise(outcome, table.labels)
    sums = image_sums(table.labels.image_ids, outcome.intersection, outcome.union)
    band = confidence_interval([sums], SAMPLES)
    return {"oIoU": metrics["oIoU"], "low": band.low, "high": band.high, "mIoU": metrics["mIoU"]}


def response_plane(table: Table, names: tuple[str, str]) -> pd.DataFrame:
    """The labels' oIoU (percent) over two thresholds: a column for each of them, and oIoU."""
    grid = [float(value) for value in np.linspace(0.0, 1.0, PLANE_POINTS)]
    rows = []
    for first in grid:
        for second in grid:
            outcome = table.outcome(dict(zip(names, (first, second), strict=True)))
            rows.append((first, second, overall_iou(outcome.intersection, outcome.union)))
    return pd.DataFrame(rows, columns=[*names, "oIoU"])
