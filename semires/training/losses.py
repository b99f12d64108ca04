"""The losses of burn-in and mutual learning (paper Eq. 1, 3 and 10).

The class weights are those of the published code.
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
    """Class-weighted cross-entropy with a plain mean over pixels (not PyTorch's weighted mean).

    Args:
        logits: float (B,2,H,W).
        labels: int64 (B,H,W) of 0 and 1.
        class_weights: of background and object.

    Raises:
        RuntimeError: the labels are not int64.
    """
    weight = torch.where(labels == 1, class_weights[1], class_weights[0])
    return (F.cross_entropy(logits, labels, reduction="none") * weight).mean()


def unsupervised_loss(
    student_logits: torch.Tensor,
    targets: RefinedLabels,
    class_weights: Sequence[float] = CLASS_WEIGHTS,
) -> torch.Tensor:
    """Loss of the matched samples plus that of the others, halved if the batch has both.

    Matched samples: class-weighted cross-entropy with the refined label. Unmatched samples:
    cross-entropy with the teacher's label times the pixel's weight (PWA, Eq. 10), without class
    weights. Zero for an empty batch. The host does not wait for the device. ``targets.quality``
    multiplies the loss of each matched sample; the paper has none.

    Args:
        student_logits: float (B,2,H,W).
        targets: the refined labels of the same samples.
        class_weights: of background and object.
    """
    labels, matched = targets.labels, targets.matched
    by_class = torch.where(labels == 1, class_weights[1], class_weights[0])
    if targets.quality is not None:
        by_class = by_class * targets.quality[:, None, None]
    weight = torch.where(matched[:, None, None], by_class, targets.weights)
    loss = F.cross_entropy(student_logits, labels, reduction="none") * weight
    count_matched = matched.sum()
    count_others = len(matched) - count_matched
    # The mean over each group's samples; with two groups, the mean of both.
    share = torch.where(matched, count_matched, count_others).clamp(min=1)
    both = (count_matched > 0) & (count_others > 0)
    return (loss.mean((1, 2)) / share).sum() / (1 + both.to(loss.dtype))
