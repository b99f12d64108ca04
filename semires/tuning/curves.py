"""Response curves and the front of a search: the quality of the refined labels, from counts.

All values are exact. They are not an interpolation of trials. A search with the objective
``labels-and-share`` has a front: the trials for which no other one is better in both the oIoU of
the replaced labels and their share. A stricter threshold replaces fewer labels, and better ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from semires.evaluation.bootstrap import confidence_interval, image_sums
from semires.evaluation.metrics import overall_iou
from semires.tuning.refined import Outcome, Table, replaced_quality, summarise

COLUMNS = ("half", "threshold", "value", "mark", "oIoU", "low", "high", "mIoU")
ALL_EQUAL = "all thresholds equal"  # the diagonal of the paper's Table 3
CURVE_POINTS = 101
PLANE_POINTS = 41
SAMPLES = 200  # resamples for the interval of a point
SHOWN = 12  # points of the front that the terminal shows


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


def front_of(
    trials: pd.DataFrame, held_out: Table, at: Callable[[Mapping[str, float]], Mapping[str, float]]
) -> pd.DataFrame:
    """The trials on the front, by falling share: number, ``params_*``, and percentages.

    These are ``seen_oIoU``, ``seen_share``, ``held_out_oIoU`` and ``held_out_share``, of the labels
    that the rule replaces. The seen labels decide which trials are on the front.

    Args:
        trials: one row per trial: number, ``params_*``, ``matched``, ``replaced_oIoU``.
        held_out: the held-out labels.
        at: from the parameters of a trial to the thresholds.
    """
    chosen = trials[on_front(trials["replaced_oIoU"], trials["matched"])]
    chosen = chosen.sort_values("matched", ascending=False)
    params = chosen.filter(like="params_")
    points = params.rename(columns=lambda name: name.removeprefix("params_")).to_dict("records")
    values = [replaced_quality(held_out.outcome(at(point))) for point in points]
    front = pd.concat([chosen["number"], params], axis=1)
    front[["seen_oIoU", "seen_share"]] = chosen[["replaced_oIoU", "matched"]].to_numpy()
    front[["held_out_oIoU", "held_out_share"]] = values
    return front


def on_front(first: pd.Series[float], second: pd.Series[float]) -> pd.Series[bool]:
    """Where no other point is as large in both values (0..100) and larger in one.

    Of equal points only the first is on the front.
    """
    pairs = pd.DataFrame({"first": first, "second": second})
    ordered = pairs.sort_values(["second", "first"], ascending=False, kind="stable")["first"]
    return (ordered > ordered.cummax().shift(fill_value=-1.0)).reindex(first.index)


def front_table(front: pd.DataFrame, trials: int) -> str:
    """The front for the terminal: its ends, and SHOWN - 2 points between them.

    Args:
        front: see :func:`front_of`.
        trials: number of trials of the search.
    """
    from tabulate import tabulate

    rows = np.unique(np.linspace(0, len(front) - 1, SHOWN).round().astype(int))
    text: str = tabulate(front.iloc[rows].round(3), headers="keys", showindex=False)
    head = f"front: {len(front)} of {trials} trials"
    return f"{head}; oIoU and share of the labels that the rule replaces, percent\n{text}"
