"""Overall IoU, mean IoU and precision at IoU thresholds (paper section 4.2; LAVT's definitions).

In: one intersection and one union (pixels) per expression. Out: percentages. An expression is
the unit: a reference with three expressions counts three times, as in the published evaluation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

PRECISION_THRESHOLDS: Sequence[float] = (0.5, 0.6, 0.7, 0.8, 0.9)


def iou_per_expression(intersections: ArrayLike, unions: ArrayLike) -> NDArray[np.float64]:
    """IoU of every expression, in 0..1.

    A union of 0 (both masks are empty) gives 0, as in LAVT's evaluation.

    Args:
        intersections: (E,) pixels in both masks.
        unions: (E,) pixels in either mask.

    Raises:
        ValueError: the shapes differ, or an intersection is negative or exceeds its union.
    """
    inter = np.asarray(intersections, dtype=np.float64).ravel()
    union = np.asarray(unions, dtype=np.float64).ravel()
    if inter.shape != union.shape:
        raise ValueError(f"{inter.size} intersections but {union.size} unions")
    if not (np.all(inter >= 0) and np.all(inter <= union)):
        raise ValueError("an intersection is negative, not a number or larger than its union")
    return np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)


def overall_iou(intersections: ArrayLike, unions: ArrayLike) -> float:
    """Sum of intersections over sum of unions of all expressions (E,), percent; 0 if all are 0."""
    total = float(np.sum(np.asarray(unions, dtype=np.float64)))
    inter = float(np.sum(np.asarray(intersections, dtype=np.float64)))
    return 100.0 * inter / total if total else 0.0


def segmentation_metrics(intersections: ArrayLike, unions: ArrayLike) -> dict[str, float]:
    """The metrics of a set of expressions, in percent, unrounded.

    ``oIoU`` is the sum of intersections over the sum of unions (0 if all unions are 0), ``mIoU``
    the mean of the expressions' IoU, ``P@t`` the share of expressions with IoU >= t; the bound
    is included, as in LAVT's ``this_iou >= eval_seg_iou``.

    Args:
        intersections: (E,) pixels in both masks, E >= 1.
        unions: (E,) pixels in either mask.

    Raises:
        ValueError: no expression, or arrays that are not intersections and unions.
    """
    iou = iou_per_expression(intersections, unions)
    if iou.size == 0:
        raise ValueError("no expression to evaluate")
    values = {
        "oIoU": overall_iou(intersections, unions),
        "mIoU": 100.0 * float(iou.mean()),
    }
    for threshold in PRECISION_THRESHOLDS:
        values[f"P@{threshold:g}"] = 100.0 * float(np.mean(iou >= threshold))
    return values


def gains(table: pd.DataFrame) -> NDArray[np.int64]:
    """(R,) effect of refinement on each pseudo-label: 1 better, -1 worse, 0 equal or not matched.

    By IoU with the hidden ground truth, compared exactly: i1/u1 > i0/u0 is i1*u0 > i0*u1, and an
    empty union counts as IoU 0.
    """
    inter0, union0 = (table[f"{n}_before"] for n in ("intersection", "union"))
    inter1, union1 = (table[f"{n}_after"] for n in ("intersection", "union"))
    gain = np.sign(inter1 * union0.clip(lower=1) - inter0 * union1.clip(lower=1))
    return np.where(table["matched"].to_numpy(bool), gain, 0).astype(np.int64)
