"""Match a pseudo-label with proposals by pixel counts (paper Eq. 6-8).

Counts are whole numbers in float64, so the scores do not depend on the order of summation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from semires.refine.partition import Partition
from semires.refine.strategies import Atoms, Overlaps, Strategy

Probability = NDArray[np.floating]


def overlaps(
    partition: Partition, label: NDArray[np.bool_], probability: Probability | None = None
) -> Overlaps:
    """Count the overlap of a label (H,W) with every proposal of a partition of the same size.

    With ``probability``, float (H,W) as :func:`rounded` returns it, also sum it in every proposal.
    """
    counts = partition.count(label)
    found = Overlaps(partition.sums(counts), partition.areas, float(counts.sum()))
    if probability is None:
        return found
    sums = partition.total(probability)
    return replace(found, probability=partition.members @ sums, total_probability=float(sums.sum()))


def count_atoms(
    partition: Partition, label: NDArray[np.bool_], probability: Probability | None = None
) -> Atoms:
    """Count the pixels of a label (H,W) in every atom of a partition of the same size.

    ``probability``: as for :func:`overlaps`, summed in every atom.
    """
    areas, inside = partition.count().astype(np.float64), partition.count(label).astype(np.float64)
    sums = None if probability is None else partition.total(probability)
    return Atoms(partition.members, areas, inside, sums)


def match(
    strategy: Strategy,
    partition: Partition,
    label: NDArray[np.bool_],
    thresholds: Mapping[str, float],
    probability: Probability | None = None,
) -> NDArray[np.bool_] | None:
    """Return the refined label, bool (H,W), or None if no proposal matches.

    ``probability``, float (H,W) as :func:`rounded` returns it, is used if the strategy is soft.
    """
    if strategy.cover is not None:
        covered = strategy.covered(count_atoms(partition, label, probability), thresholds)
    else:
        chosen = strategy.select(overlaps(partition, label, probability), thresholds)
        covered = partition.members[chosen].any(axis=0)
    if not covered.any():
        return None
    refined: NDArray[np.bool_] = covered.take(partition.atoms)
    if strategy.keeps_outside:
        refined |= label & ~partition.members.any(axis=0).take(partition.atoms)
    return refined
