"""The losses of burn-in and mutual learning (paper Eq. 1, 3 and 10; class weights as published).

Logits are (B,2,H,W), labels int64 (B,H,W) of 0 (background) and 1 (object).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from semires.refine import RefinedLabels

CLASS_WEIGHTS = (0.9, 1.1)


def _class_weighted(
    logits: torch.Tensor, labels: torch.Tensor, class_weights: Sequence[float]
) -> torch.Tensor:
    """Cross-entropy per pixel (B,H,W), times the weight of the pixel's class."""
    weights = torch.tensor(list(class_weights), dtype=logits.dtype, device=logits.device)
    return F.cross_entropy(logits, labels, weight=weights, reduction="none")


def supervised_loss(
    logits: torch.Tensor, labels: torch.Tensor, class_weights: Sequence[float] = CLASS_WEIGHTS
) -> torch.Tensor:
    """Class-weighted cross-entropy, plain mean over pixels (not PyTorch's weighted mean)."""
    return _class_weighted(logits, labels, class_weights).mean()


def unsupervised_loss(
    student_logits: torch.Tensor,
    targets: RefinedLabels,
    class_weights: Sequence[float] = CLASS_WEIGHTS,
) -> torch.Tensor:
    """Loss of the matched samples plus that of the others, halved where the batch has both.

    Matched: class-weighted cross-entropy with the refined label. Not matched: cross-entropy with
    the teacher's label, times PWA's weight of the pixel (Eq. 10), without class weights.
    """
    matched = targets.matched.to(student_logits.dtype)
    others = 1 - matched
    refined = _class_weighted(student_logits, targets.labels, class_weights).mean((1, 2))
    plain = F.cross_entropy(student_logits, targets.labels, reduction="none")
    weighed = (plain * targets.weights).mean((1, 2))
    loss_matched = (matched * refined).sum() / matched.sum().clamp(min=1)
    loss_others = (others * weighed).sum() / others.sum().clamp(min=1)
    both = (matched.sum() > 0) & (others.sum() > 0)
    return (loss_matched + loss_others) / (1 + both.to(student_logits.dtype))
