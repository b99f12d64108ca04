"""Confidence filtering: drop the least confident pseudo-labels (the paper's Table 4)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

WINDOW = 512  # number of recent confidences that determine the threshold


class ConfidenceFilter(nn.Module):
    """Select about the share ``keep`` of pseudo-labels with the highest confidence.

    The confidence of a label is the mean over all pixels of the teacher's larger class probability.
    The threshold is a running quantile of recent confidences, which are the module's state.

    Args:
        keep: share in (0, 1].
        concat: a function that concatenates a tensor (B,) with those of the other processes, in
            order of rank, so that all processes have the same threshold and state.
    """

    recent: torch.Tensor
    seen: torch.Tensor

    def __init__(
        self, keep: float, concat: Callable[[torch.Tensor], torch.Tensor] = lambda x: x
    ) -> None:
        super().__init__()
        self.keep, self.concat = keep, concat
        self.register_buffer("recent", torch.zeros(WINDOW))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def forward(self, teacher_logits: torch.Tensor) -> torch.Tensor:
        """Return the selected samples, bool (B,), for teacher logits (B,2,H,W)."""
        if self.keep >= 1:
            return torch.ones(len(teacher_logits), dtype=torch.bool, device=teacher_logits.device)
        confidence = teacher_logits.softmax(1).amax(1).mean((1, 2))
        news = self.concat(confidence)
        places = (self.seen + torch.arange(len(news), device=news.device)) % WINDOW
        self.recent[places] = news
        self.seen += len(news)
        known = self.recent[: min(int(self.seen), WINDOW)]
        return confidence >= torch.quantile(known, 1 - self.keep)
