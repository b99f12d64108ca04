"""Refining pseudo-labels by proposals: matching (IOM, CPI) and weighting (PWA)."""

from semires.refine.batch import PartitionBatch
from semires.refine.refiner import PseudoLabelRefiner, RefinedLabels

__all__ = ["PartitionBatch", "PseudoLabelRefiner", "RefinedLabels"]
