"""Match a pseudo-label with proposals by pixel counts (paper Eq. 6-8).

Counts are whole numbers in float64, so the scores do not depend on the order of summation.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from semires.refine.partition import Partition
from semires.refine.strategies import Atoms, Overlaps, Strategy


def overlaps(partition: Partition, label: NDArray[np.bool_]) -> Overlaps:
    """Count the overlap of a label (H,W) with every proposal of a partition of the same size."""
    counts = partition.count(label)
    return Overlaps(partition.sums(counts), partition.areas, float(counts.sum()))


def count_atoms(partition: Partition, label: NDArray[np.bool_]) -> Atoms:
    """Count the pixels of a label (H,W) in every atom of a partition of the same size."""
    areas, inside = partition.count().astype(np.float64), partition.count(label).astype(np.float64)
    return Atoms(partition.members, areas, inside)


def match(
    strategy: Strategy,
    partition: Partition,
    label: NDArray[np.bool_],
    thresholds: Mapping[str, float],
) -> NDArray[np.bool_] | None:
    """Return the refined label, bool (H,W), or None if no proposal matches."""
    if strategy.cover is not None:
        covered = strategy.covered(count_atoms(partition, label), thresholds)
        return covered.take(partition.atoms) if covered.any() else None
    chosen = strategy.select(overlaps(partition, label), thresholds)
    return partition.union(chosen) if chosen.any() else None
