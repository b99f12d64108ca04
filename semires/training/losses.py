"""The losses of burn-in and mutual learning (paper Eq. 1, 3 and 10; class weights as published).

Logits are (B,2,H,W), labels int64 (B,H,W) of 0 (background) and 1 (object).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from semires.refine import RefinedLabels

CLASS_WEIGHTS = (0.9, 1.1)


def supervised_loss(
    logits: torch.Tensor, labels: torch.Tensor, class_weights: Sequence[float] = CLASS_WEIGHTS
) -> torch.Tensor:
    """Class-weighted cross-entropy, plain mean over pixels (not PyTorch's weighted mean)."""
    weight = torch.where(labels == 1, class_weights[1], class_weights[0])
    return (F.cross_entropy(logits, labels, reduction="none") * weight).mean()


def unsupervised_loss(
    student_logits: torch.Tensor,
    targets: RefinedLabels,
    class_weights: Sequence[float] = CLASS_WEIGHTS,
) -> torch.Tensor:
    """Loss of the matched samples plus that of the others, halved where the batch has both.

    Matched: class-weighted cross-entropy with the refined label. Not matched: cross-entropy with
    the teacher's label, times PWA's weight of the pixel (Eq. 10), without class weights. Zero for
    a batch of no samples. Nothing waits for the device.
    """
    labels, matched = targets.labels, targets.matched
    by_class = torch.where(labels == 1, class_weights[1], class_weights[0])
    weight = torch.where(matched[:, None, None], by_class, targets.weights)
    loss = F.cross_entropy(student_logits, labels, reduction="none") * weight
    count_matched = matched.sum()
    count_others = len(matched) - count_matched
    # each group's mean over its samples; with both groups, the mean of the two
    share = torch.where(matched, count_matched, count_others).clamp(min=1)
    both = (count_matched > 0) & (count_others > 0)
    return (loss.mean((1, 2)) / share).sum() / (1 + both.to(loss.dtype))
