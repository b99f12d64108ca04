"""Calibration of the teacher's probability: its error, and a temperature that lowers it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

BINS = 15  # as in Guo et al. 2017


def reliability(probability: NDArray[np.floating], truth: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Sums over pixels by the confidence of the prediction, (BINS,3) float64.

    The confidence max(p, 1 - p) of two classes lies in 0.5..1, which is divided into BINS equal
    bins. Columns: pixels, sum of the confidence, pixels that are predicted correctly.

    Args:
        probability: of the foreground, 0..1, any shape.
        truth: of the same shape.
    """
    p = np.asarray(probability, dtype=np.float64).ravel()
    confidence = np.maximum(p, 1 - p)
    bins = np.minimum(((confidence - 0.5) * (2 * BINS)).astype(np.int64), BINS - 1)
    columns = (np.ones_like(p), confidence, (p > 0.5) == np.asarray(truth).ravel())
    return np.stack([np.bincount(bins, column, BINS) for column in columns], axis=1)


def expected_calibration_error(sums: NDArray[np.float64]) -> float:
    """ECE in percent (Guo et al. 2017): |confidence - accuracy| of the bins, weighted by pixels.

    Args:
        sums: of :func:`reliability`, added up over images.
    """
    pixels = max(float(sums[:, 0].sum()), 1.0)
    return float(100 * np.abs(sums[:, 1] - sums[:, 2]).sum() / pixels)


def calibration_sums(probability: torch.Tensor, truth: torch.Tensor) -> dict[str, torch.Tensor]:
    """Sums of a batch for the training log, for :func:`calibration_of`; they stay on the device.

    ``pseudo_pixels``, and ``pseudo_gap_I`` for each bin I of :func:`reliability`: the confidence
    minus the number of correct pixels. Sums over bins are deterministic on a GPU too.

    Args:
        probability: of the foreground, 0..1, any shape.
        truth: bool of the same shape.
    """
    p = probability.double().flatten()
    confidence = torch.maximum(p, 1 - p)
    bins = ((confidence - 0.5) * (2 * BINS)).long().clamp(max=BINS - 1)
    gap = confidence - ((p > 0.5) == truth.flatten()).double()
    sums = {f"pseudo_gap_{i}": torch.where(bins == i, gap, 0.0).sum() for i in range(BINS)}
    return {"pseudo_pixels": torch.ones_like(p).sum(), **sums}


def calibration_of(sums: Mapping[str, float]) -> dict[str, float]:
    """The ECE in percent as ``pseudo/ece``, of added :func:`calibration_sums`; empty without."""
    pixels = sums.get("pseudo_pixels", 0.0)
    if pixels == 0:
        return {}
    gaps = sum(abs(sums[f"pseudo_gap_{i}"]) for i in range(BINS))
    return {"pseudo/ece": 100 * gaps / pixels}


def fit_temperature(difference: torch.Tensor, truth: torch.Tensor) -> float:
    """The temperature with the smallest cross-entropy of pixels (Guo et al. 2017).

    The cross-entropy is convex in the inverse of the temperature; bisection finds the zero of its
    derivative between the temperatures 0.05 and 20.

    Args:
        difference: foreground logit minus background logit, any shape.
        truth: bool of the same shape.
    """
    margin = difference.double().flatten() * (2 * truth.double().flatten() - 1)
    low, high = 0.05, 20.0
    for _ in range(40):
        inverse = (low + high) / 2
        slope = -(margin * torch.sigmoid(-inverse * margin)).mean()
        low, high = (inverse, high) if slope < 0 else (low, inverse)
    return 2 / (low + high)
