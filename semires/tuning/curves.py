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
from semires.tuning.refined import Table, summarise

CURVE_POINTS = 101
PLANE_POINTS = 41
SAMPLES = 200  # resamples for the interval of a point


def response_curves(
    tables: Mapping[str, Table], given: Mapping[str, float], best: Mapping[str, float]
) -> pd.DataFrame:
    """The labels' oIoU and mIoU over each threshold, with the others at their best values.

    Args:
        tables: by the name of the half of val.
        given: the thresholds of params.yaml (the paper's).
        best: the best thresholds.

    Returns:
        Columns half, threshold, value, mark, oIoU, low, high, mIoU. ``mark`` is ``paper`` or
        ``best`` in the rows of these values, otherwise empty. ``low`` to ``high`` is the 95 %
        interval of the oIoU over images. IoU in percent.
    """
    rows: list[dict[str, Any]] = []
    for half, table in tables.items():
        for name in best:
            points = {float(value): "" for value in np.linspace(0.0, 1.0, CURVE_POINTS)}
            for value, mark in sorted({**points, given[name]: "paper", best[name]: "best"}.items()):
                outcome = table.outcome({**best, name: value})
                metrics = summarise(outcome, table.labels)
                sums = image_sums(table.labels.image_ids, outcome.intersection, outcome.union)
                band = confidence_interval([sums], SAMPLES)
                row = {"half": half, "threshold": name, "value": value, "mark": mark}
                bounds = {"low": band.low, "high": band.high}
                rows.append({**row, "oIoU": metrics["oIoU"], **bounds, "mIoU": metrics["mIoU"]})
    return pd.DataFrame(rows)


def response_plane(table: Table, names: tuple[str, str]) -> pd.DataFrame:
    """The labels' oIoU (percent) over two thresholds: a column for each of them, and oIoU."""
    grid = [float(value) for value in np.linspace(0.0, 1.0, PLANE_POINTS)]
    rows = []
    for first in grid:
        for second in grid:
            outcome = table.outcome(dict(zip(names, (first, second), strict=True)))
            rows.append((first, second, overall_iou(outcome.intersection, outcome.union)))
    return pd.DataFrame(rows, columns=[*names, "oIoU"])
