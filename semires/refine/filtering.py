"""Confidence filtering: drop the least confident pseudo-labels (the paper's Table 4)."""

from __future__ import annotations

import torch
from torch import nn

WINDOW = 512  # the latest pseudo-labels, whose quantile is the bar


class ConfidenceFilter(nn.Module):
    """Keeps about the share ``keep`` of pseudo-labels with the highest confidence.

    A label's confidence is the mean over its pixels of the teacher's larger class probability. The
    bar is a quantile of the latest labels' confidences, which are the module's state.
    """

    recent: torch.Tensor
    seen: torch.Tensor

    def __init__(self, keep: float) -> None:
        super().__init__()
        self.keep = keep
        self.register_buffer("recent", torch.zeros(WINDOW))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def forward(self, teacher_logits: torch.Tensor) -> torch.Tensor:
        """Which of the samples (B,) to keep, bool, for teacher logits (B,2,H,W)."""
        if self.keep >= 1:
            return torch.ones(len(teacher_logits), dtype=torch.bool, device=teacher_logits.device)
        confidence = teacher_logits.softmax(1).amax(1).mean((1, 2))
        places = (self.seen + torch.arange(len(confidence), device=confidence.device)) % WINDOW
        self.recent[places] = confidence
        self.seen += len(confidence)
        known = self.recent[: min(int(self.seen), WINDOW)]
        return confidence >= torch.quantile(known, 1 - self.keep)
