"""Weights of the pixels of unmatched samples: PWA (paper Eq. 9), and those of other methods.

A weighting is a module from the teacher's foreground probability (B,H,W) to weights float32
(B,H,W). Its state, if it has one, consists of buffers; it changes in training mode only. Under
several processes, ``concat`` joins tensors (B,...) of all processes in order of rank, so that all
have the same state. ``WEIGHTINGS`` (:mod:`semires.refine.weightings`) has an entry for each.
"""

from __future__ import annotations

import math
import pkgutil
from collections.abc import Callable

import torch
from torch import nn

from semires.refine.weightings import WEIGHTINGS

Concat = Callable[[torch.Tensor], torch.Tensor]


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


class Weighting(nn.Module):
    """Weight 1 for every pixel: no weighting, and the base class of the others."""

    concat: Concat = staticmethod(lambda tensor: tensor)

    def forward(self, probability: torch.Tensor) -> torch.Tensor:
        """Weights float32 (B,H,W) for the foreground probability (B,H,W)."""
        return torch.ones_like(probability)


class Pwa(Weighting):
    """:func:`pwa_weight` with fixed parameters."""

    def __init__(self, mean: float = 0.5, variance: float = 0.1, offset: float = 1.3) -> None:
        super().__init__()
        self.mean, self.variance, self.offset = mean, variance, offset

    def forward(self, probability: torch.Tensor) -> torch.Tensor:
        """See :class:`Weighting`."""
        return pwa_weight(probability, self.mean, self.variance, self.offset)


class Confidence(Weighting):
    """FixMatch: 1 where the larger class probability is at least the threshold, else 0."""

    def __init__(self, threshold: float = 0.95) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, probability: torch.Tensor) -> torch.Tensor:
        """See :class:`Weighting`."""
        return (confidence_of(probability) >= self.threshold).to(probability.dtype)


class SoftMatch(Weighting):
    """SoftMatch (Chen et al. 2023): a Gaussian of the confidence below its mean, 1 above.

    Mean and variance of the confidence are moving averages over batches, updated before use. They
    start at 1/2 and 1. The width of the Gaussian is half of the standard deviation.
    """

    mean: torch.Tensor
    variance: torch.Tensor

    def __init__(self, momentum: float = 0.999) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.tensor(0.5))
        self.register_buffer("variance", torch.tensor(1.0))

    def forward(self, probability: torch.Tensor) -> torch.Tensor:
        """See :class:`Weighting`."""
        confidence = confidence_of(probability)
        if self.training and len(confidence):
            everywhere = self.concat(confidence.flatten(1)).double()
            self.mean.lerp_(everywhere.mean().to(self.mean.dtype), 1 - self.momentum)
            self.variance.lerp_(everywhere.var().to(self.mean.dtype), 1 - self.momentum)
        below = (confidence - self.mean).clamp(max=0)
        return torch.exp(-(below**2) / (2 * self.variance / 4))


class CorrMatch(Weighting):
    """CorrMatch (Sun et al. 2024): 1 where the confidence is at least a moving threshold, else 0.

    The threshold is the moving average of the mean, over the classes predicted in the batch, of
    the class's largest confidence. It is updated before use.
    """

    threshold: torch.Tensor

    def __init__(self, start: float = 0.85, momentum: float = 0.999) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("threshold", torch.tensor(start))

    def forward(self, probability: torch.Tensor) -> torch.Tensor:
        """See :class:`Weighting`."""
        confidence = confidence_of(probability)
        if self.training and len(confidence):
            object_class = probability > 0.5
            classes = [confidence * (object_class == c) for c in (False, True)]
            largest = torch.stack([each.flatten(1).amax(1) for each in classes], dim=1)  # (B,2)
            largest = self.concat(largest).amax(0)
            mean = largest.sum() / (largest > 0).sum()
            self.threshold.lerp_(mean, 1 - self.momentum)
        return (confidence >= self.threshold).to(probability.dtype)


def confidence_of(probability: torch.Tensor) -> torch.Tensor:
    """The larger one of the two class probabilities, for the foreground probability."""
    return torch.maximum(probability, 1 - probability)


def make_weighting(name: str, *, concat: Concat | None = None, **given: float | None) -> Weighting:
    """The weighting of this name.

    Args:
        name: a key of ``WEIGHTINGS``.
        concat: see above; None for one process.
        given: values by parameter; without a value, or with None, a parameter has that of its
            source. Those of other weightings are ignored.
    """
    rule = WEIGHTINGS[name]
    values = {key: parameter.default for key, parameter in rule.parameters.items()}
    values |= {key: value for key, value in given.items() if key in values and value is not None}
    weighting: Weighting = pkgutil.resolve_name(rule.module)(*values.values())
    weighting.concat = concat or weighting.concat
    return weighting
