"""The losses of ReLA beside the mask's: the minimap's and the no-target output's.

The published loss is ``5 * (mask + 0.1 * minimap + 0.1 * no-target)`` of the last layer, each part
a :func:`weighted_cross_entropy`. Here the mask loss is the training's own, and the factor 5, which
AdamW cancels, is left out.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch.nn import functional as F

from semires.errors import ConfigError

CLASS_WEIGHTS = (0.9, 1.1)  # of both outputs, as published


def weighted_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy with class weights, divided by the sum of the weights (PyTorch's mean).

    Zero for an empty batch.

    Args:
        logits: float (B,2,...).
        labels: int64 (B,...) of 0 and 1.
    """
    weights = logits.new_tensor(CLASS_WEIGHTS)
    total = F.cross_entropy(logits, labels, weights, reduction="sum")
    return total / weights[labels].sum().clamp(min=torch.finfo(logits.dtype).tiny)


def minimap_target(
    labels: torch.Tensor, regions: int, kind: Literal["truncated", "majority"]
) -> torch.Tensor:
    """Which cells of the square grid of regions belong to the object.

    ``truncated``, the published target, resizes the mask bilinearly without antialiasing and cuts
    off to integers: a cell is 1 if the pixels at its centre are all 1, whatever the rest.
    ``majority``: a cell is 1 if at least half of its pixels are.

    Args:
        labels: int64 (B,H,W) of 0 and 1.
        regions: number of cells Q, a square number.
        kind: which of the two.

    Returns:
        int64 (B,Q), row by row.

    Raises:
        ConfigError: the number of regions is not a square.
    """
    side = math.isqrt(regions)
    if side**2 != regions:
        raise ConfigError(f"a model of {regions} regions cannot be trained: no square number")
    mask = labels[:, None].float()
    if kind == "truncated":
        cells = F.interpolate(mask, (side, side), mode="bilinear", align_corners=False)
    else:
        cells = F.adaptive_avg_pool2d(mask, side) * 2
    return cells.long().clamp(max=1).flatten(1)
