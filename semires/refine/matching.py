"""Matching a pseudo-label with proposals: IOM and CPI (paper Eq. 6-8), on counts of pixels.

``c`` is the hard pseudo-label, ``m`` a proposal. All comparisons are strict, as published. Counts
are whole numbers in float64, so that no quotient depends on the order of sums.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from semires.proposals.partition import Partition

EPSILON = 1e-9
STRATEGIES = ("none", "iom", "cpi", "cpi-u", "cpi-o")


@dataclass(frozen=True)
class Thresholds:
    """IoU for IOM; overlap over the label's area (u) and over the proposal's (o) for CPI."""

    iom: float = 0.5
    cpi_u: float = 0.7
    cpi_o: float = 0.7


@dataclass(frozen=True)
class Overlaps:
    """Pixel counts of one label and its image's N proposals, whole numbers as float64.

    intersections (N,): |m and c|; areas (N,): |m|; label_area: |c|.
    """

    intersections: NDArray[np.float64]
    areas: NDArray[np.float64]
    label_area: float

    @property
    def iou(self) -> NDArray[np.float64]:
        """IoU(m, c), Eq. 6; 0 where both are empty."""
        unions = self.areas + self.label_area - self.intersections
        return self.intersections / np.maximum(unions, 1)

    @property
    def of_label(self) -> NDArray[np.float64]:
        """The share of the label that a proposal holds, Eq. 7; 0 for an empty label."""
        return self.intersections / (self.label_area + EPSILON)

    @property
    def of_proposal(self) -> NDArray[np.float64]:
        """The share of a proposal that the label holds, Eq. 8; 0 for an empty proposal."""
        return self.intersections / np.maximum(self.areas, 1)


def overlaps(partition: Partition, label: NDArray[np.bool_]) -> Overlaps:
    """Count a label (H,W) against every proposal of a partition of its size."""
    counts = partition.count(label)
    return Overlaps(partition.sums(counts), partition.areas, float(counts.sum()))


def select(strategy: str, found: Overlaps, thresholds: Thresholds) -> NDArray[np.bool_]:
    """Which proposals (N,) replace the label; none of them where it stays.

    Raises:
        ValueError: an unknown strategy.
    """
    if strategy == "none":
        return np.zeros(len(found.areas), dtype=bool)
    if strategy == "iom":
        return select_best(found.iou, thresholds.iom)
    if strategy == "cpi-u":
        return found.of_label > thresholds.cpi_u
    if strategy == "cpi-o":
        return found.of_proposal > thresholds.cpi_o
    if strategy == "cpi":
        under, over = found.of_label > thresholds.cpi_u, found.of_proposal > thresholds.cpi_o
        return under | over
    raise ValueError(f"unknown strategy {strategy!r}; there is {', '.join(STRATEGIES)}")


def select_best(iou: NDArray[np.float64], threshold: float) -> NDArray[np.bool_]:
    """The first of the proposals (N,) with the largest IoU, if that exceeds the threshold."""
    chosen = np.zeros(len(iou), dtype=bool)
    if len(iou):
        best = int(iou.argmax())
        chosen[best] = iou[best] > threshold
    return chosen


def match(
    strategy: str, partition: Partition, label: NDArray[np.bool_], thresholds: Thresholds
) -> NDArray[np.bool_] | None:
    """The refined label (H,W): the union of the selected proposals, or None without a match."""
    chosen = select(strategy, overlaps(partition, label), thresholds)
    return partition.union(chosen) if chosen.any() else None
