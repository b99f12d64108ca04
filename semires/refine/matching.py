"""Matching a pseudo-label with proposals on counts of pixels (paper Eq. 6-8).

Counts are whole numbers in float64, so that no quotient depends on the order of sums.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from semires.refine.partition import Partition
from semires.refine.strategies import STRATEGIES, Overlaps, Thresholds


def overlaps(partition: Partition, label: NDArray[np.bool_]) -> Overlaps:
    """Count a label (H,W) against every proposal of a partition of its size."""
    counts = partition.count(label)
    return Overlaps(partition.sums(counts), partition.areas, float(counts.sum()))


def select(strategy: str, found: Overlaps, thresholds: Thresholds) -> NDArray[np.bool_]:
    """Which proposals (N,) replace the label; none of them where it stays.

    Raises:
        ValueError: an unknown strategy.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"unknown strategy {strategy!r}; there is {', '.join(STRATEGIES)}")
    rule = STRATEGIES[strategy]
    chosen: NDArray[np.bool_] = rule.choose(found, thresholds) & (found.areas > 0)
    if rule.best_alone and len(chosen):
        best = int(found.iou.argmax())
        chosen[:best] = chosen[best + 1 :] = False
    return chosen


def match(
    strategy: str, partition: Partition, label: NDArray[np.bool_], thresholds: Thresholds
) -> NDArray[np.bool_] | None:
    """The refined label (H,W): the union of the selected proposals, or None without a match."""
    chosen = select(strategy, overlaps(partition, label), thresholds)
    return partition.union(chosen) if chosen.any() else None
