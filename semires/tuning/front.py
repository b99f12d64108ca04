"""The front of a search with the objective ``labels-and-share``.

A stricter threshold leaves more labels as they were, and those that the rule replaces are better.
The front holds the trials for which no other one is better in both: the oIoU of the replaced labels
and their share.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

from semires.tuning.refined import Table, replaced_quality

SHOWN = 12  # points of the front that the terminal shows


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
