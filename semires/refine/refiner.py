"""From a batch of teacher outputs to training targets (paper Algorithm 1, inner part)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from semires.proposals.partition import Partition
from semires.refine.matching import STRATEGIES, Thresholds, match
from semires.refine.weighting import pwa_weight


@dataclass(frozen=True)
class RefinedLabels:
    """Targets of B samples.

    labels: int64 (B,H,W), the refined label where matched, else the teacher's.
    weights: float32 (B,H,W), PWA's weight where not matched, else 1.
    matched: bool (B,).
    """

    labels: torch.Tensor
    weights: torch.Tensor
    matched: torch.Tensor

    def select(self, kept: torch.Tensor) -> RefinedLabels:
        """The samples that ``kept`` (B,), bool, names."""
        return RefinedLabels(self.labels[kept], self.weights[kept], self.matched[kept])


class PseudoLabelRefiner:
    """Refines hard pseudo-labels by proposals and weighs what found no match.

    Args:
        strategy: ``iom`` (Eq. 6), ``cpi`` (Eq. 7 or 8), ``cpi-u`` (Eq. 7), ``cpi-o`` (Eq. 8) or
            ``none``.
        iom_threshold: least IoU, exclusive.
        cpi_threshold_u: least share of the label in a proposal, exclusive.
        cpi_threshold_o: least share of a proposal in the label, exclusive.
        pwa: weigh the pixels of unmatched samples by Eq. 9.
        pwa_mean: mean of Eq. 9.
        pwa_variance: variance of Eq. 9.
        pwa_offset: gamma of Eq. 9.

    Raises:
        ValueError: an unknown strategy.
    """

    def __init__(
        self,
        strategy: str = "cpi-u",
        iom_threshold: float = 0.5,
        cpi_threshold_u: float = 0.7,
        cpi_threshold_o: float = 0.7,
        pwa: bool = True,
        pwa_mean: float = 0.5,
        pwa_variance: float = 0.1,
        pwa_offset: float = 1.3,
    ) -> None:
        if strategy not in STRATEGIES:
            raise ValueError(f"unknown strategy {strategy!r}; there is {', '.join(STRATEGIES)}")
        self.strategy = strategy
        self.thresholds = Thresholds(iom_threshold, cpi_threshold_u, cpi_threshold_o)
        self.pwa = pwa
        self.mean, self.variance, self.offset = pwa_mean, pwa_variance, pwa_offset

    @torch.no_grad()
    def __call__(self, teacher_logits: torch.Tensor, partitions: list[Partition]) -> RefinedLabels:
        """Targets for teacher logits (B,2,H,W) and B partitions of size (H,W)."""
        labels = teacher_logits.argmax(1)
        matched = torch.zeros(len(labels), dtype=torch.bool)
        refined = labels.cpu().numpy().astype(np.int64)
        if self.strategy != "none":
            for i, partition in enumerate(partitions):
                found = match(self.strategy, partition, refined[i] > 0, self.thresholds)
                if found is not None:
                    refined[i], matched[i] = found, True
            labels = torch.from_numpy(refined).to(teacher_logits.device)
        matched = matched.to(teacher_logits.device)
        return RefinedLabels(labels, self._weights(teacher_logits, matched), matched)

    def _weights(self, teacher_logits: torch.Tensor, matched: torch.Tensor) -> torch.Tensor:
        probability = teacher_logits.softmax(1)[:, 1]
        if not self.pwa:
            return torch.ones_like(probability)
        weights = pwa_weight(probability, self.mean, self.variance, self.offset)
        return torch.where(matched[:, None, None], torch.ones_like(weights), weights)
