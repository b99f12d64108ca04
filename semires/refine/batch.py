"""Match a batch of pseudo-labels on the accelerator, without synchronisation.

The partitions of B images are padded to one size. Atoms are numbered across the batch, so that one
scatter counts all labels and one gather writes all unions. The results equal those of
``matching.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch

from semires.refine.partition import Partition
from semires.refine.strategies import PROBABILITY_STEPS, Atoms, Overlaps, Strategy


@dataclass(frozen=True)
class PartitionBatch:
    """B partitions of (H,W) pixels, padded to N proposals and A atoms each, both at least 1.

    atoms: int32 (B,H,W); atom a of sample b has the number b * A + a.
    members: bool (B,N,A); padded proposals are empty, and padded atoms have no pixels.
    areas: float64 (B,N), pixels of every proposal.
    """

    atoms: torch.Tensor
    members: torch.Tensor
    areas: torch.Tensor

    @staticmethod
    def of(partitions: Sequence[Partition]) -> PartitionBatch:
        """Pad and stack partitions of equal (H,W), on the CPU."""
        rows = max([1, *(len(p) for p in partitions)])
        columns = max([1, *(p.members.shape[1] for p in partitions)])
        members = np.zeros((len(partitions), rows, columns), dtype=bool)
        areas = np.zeros((len(partitions), rows), dtype=np.float64)
        for partition, rows_of, area in zip(partitions, members, areas, strict=True):
            rows_of[: len(partition), : partition.members.shape[1]] = partition.members
            area[: len(partition)] = partition.areas
        atoms = [p.atoms.astype(np.int32) + i * columns for i, p in enumerate(partitions)]
        stacked = np.stack(atoms) if atoms else np.zeros((0, 0, 0), dtype=np.int32)
        return PartitionBatch(*map(torch.from_numpy, (stacked, members, areas)))

    def __len__(self) -> int:
        return len(self.atoms)

    def to(self, device: torch.device | str) -> PartitionBatch:
        """Copy to a device. Copies to CUDA use pinned memory and do not block."""
        device = torch.device(device)
        tensors = [getattr(self, field.name) for field in fields(self)]
        if device.type == "cuda":
            tensors = [t if t.is_cuda else t.pin_memory() for t in tensors]
        return PartitionBatch(*(t.to(device, non_blocking=True) for t in tensors))


def match_batch(
    strategy: Strategy,
    batch: PartitionBatch,
    labels: torch.Tensor,
    thresholds: Mapping[str, float],
    probability: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Refine a batch of labels.

    Args:
        strategy: the matching rule.
        batch: the partitions of the B images.
        labels: hard pseudo-labels, bool (B,H,W), on the same device.
        thresholds: a value for each of the strategy's thresholds.
        probability: float (B,H,W) as :func:`rounded` returns it; used if the strategy is soft.

    Returns:
        The labels, bool (B,H,W), refined where a proposal was matched and unchanged elsewhere; and
        ``matched``, bool (B,).
    """
    atoms = batch.atoms.flatten().long()
    counts = _count(batch, atoms, labels.flatten())
    sums = None if probability is None else _total(batch, atoms, probability.flatten())
    if strategy.cover is None:
        overlaps = _overlaps(batch, counts, sums)
        chosen = strategy.select(overlaps, thresholds)
        covered, matched = (batch.members & chosen[..., None]).any(1), chosen.any(1)
    else:
        areas = _count(batch, atoms, torch.ones_like(labels).flatten())
        covered = strategy.covered(Atoms(batch.members, areas, counts, sums), thresholds)
        matched = covered.any(1)
    unions = covered.flatten()[atoms].view_as(labels)
    if strategy.keeps_outside:
        unions = unions | (labels & ~batch.members.any(1).flatten()[atoms].view_as(labels))
    return torch.where(matched[:, None, None], unions, labels), matched


def _overlaps(batch: PartitionBatch, counts: torch.Tensor, sums: torch.Tensor | None) -> Overlaps:
    """The overlaps (B,N) from the pixels and, if given, the sums of pi in every atom (B,A)."""
    # float64 is exact, and neither autocast nor TF32 changes it.
    members = batch.members.double()
    intersections = torch.bmm(members, counts[..., None])[..., 0]
    found = Overlaps(intersections, batch.areas, counts.sum(1, keepdim=True))
    if sums is None:
        return found
    probability = torch.bmm(members, sums[..., None])[..., 0]
    return replace(found, probability=probability, total_probability=sums.sum(1, keepdim=True))


def _count(batch: PartitionBatch, atoms: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Count the True ``pixels``, bool (B*H*W,), in every atom; returns float64 (B,A)."""
    count, _, columns = batch.members.shape
    counts = torch.zeros(count * columns, dtype=torch.int32, device=pixels.device)
    return counts.scatter_add_(0, atoms, pixels.int()).view(count, columns).double()


def _total(batch: PartitionBatch, atoms: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Sum multiples of 1 / PROBABILITY_STEPS (B*H*W,) in every atom; returns float64 (B,A)."""
    count, _, columns = batch.members.shape
    sums = torch.zeros(count * columns, dtype=torch.int64, device=values.device)
    sums.scatter_add_(0, atoms, (values * PROBABILITY_STEPS).long())
    return sums.view(count, columns).double() / PROBABILITY_STEPS
