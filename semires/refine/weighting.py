"""Pixel-Wise Adaptive weighting (PWA, paper Eq. 9): lower weights for uncertain pixels."""

from __future__ import annotations

import math

import torch


def pwa_weight(
    probability: torch.Tensor, mean: float = 0.5, variance: float = 0.1, offset: float = 1.3
) -> torch.Tensor:
    """Return ``offset`` minus the normal density of the foreground probability, elementwise.

    With the paper's values, the weight is 0.0384 at p = 0.5, and 0.9386 at p = 0 and p = 1.

    Args:
        probability: foreground probability in 0..1, any shape.
        mean: mean of the normal density.
        variance: variance of the normal density.
        offset: gamma of Eq. 9.
    """
    density = torch.exp(-((probability - mean) ** 2) / (2 * variance))
    return offset - density / (math.sqrt(2 * math.pi) * math.sqrt(variance))
