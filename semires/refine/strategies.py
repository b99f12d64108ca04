"""The ways to choose proposals for a pseudo-label: IOM and CPI (paper Eq. 6-8). Add yours below.

``c`` is the hard pseudo-label, ``m`` a proposal. All comparisons are strict, as published. Choices
are written with what NumPy and PyTorch have in common, so one function serves a single label on the
CPU and a batch on an accelerator. No heavy import here: params.yaml is checked against this file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Array = Any  # numpy.ndarray or torch.Tensor, float64

EPSILON = 1e-9
FIELDS = {"threshold": "iom", "threshold_u": "cpi_u", "threshold_o": "cpi_o"}


@dataclass(frozen=True)
class Thresholds:
    """IoU for IOM; overlap over the label's area (u) and over the proposal's (o) for CPI."""

    iom: float = 0.5
    cpi_u: float = 0.7
    cpi_o: float = 0.7

    @staticmethod
    def of(values: Mapping[str, float]) -> Thresholds:
        """From names as under ``refine`` in params.yaml; the others keep the paper's values."""
        return Thresholds(**{FIELDS[name]: value for name, value in values.items()})


@dataclass(frozen=True)
class Overlaps:
    """Pixel counts of labels and their images' N proposals, whole numbers as float64.

    intersections (..., N): |m and c|; areas (..., N): |m|; label_area, a number or (..., 1): |c|.
    """

    intersections: Array
    areas: Array
    label_area: Array

    @property
    def iou(self) -> Array:
        """IoU(m, c), Eq. 6; 0 where both are empty."""
        return self.intersections / (self.areas + self.label_area - self.intersections).clip(min=1)

    @property
    def of_label(self) -> Array:
        """The share of the label that a proposal holds, Eq. 7; 0 for an empty label."""
        return self.intersections / (self.label_area + EPSILON)

    @property
    def of_proposal(self) -> Array:
        """The share of a proposal that the label holds, Eq. 8; 0 for an empty proposal."""
        return self.intersections / self.areas.clip(min=1)


@dataclass(frozen=True)
class Strategy:
    """How a label's proposals are chosen; their union replaces it, and without any it stays.

    Args:
        thresholds: the keys of a method that uses it, of ``FIELDS``.
        choose: bool (..., N) from overlaps and thresholds. Empty proposals are never chosen.
        best_alone: of those chosen keep the first one with the largest IoU, if it is among them.
    """

    thresholds: tuple[str, ...]
    choose: Callable[[Overlaps, Thresholds], Array]
    best_alone: bool = False


STRATEGIES: dict[str, Strategy] = {
    "none": Strategy((), lambda found, at: found.areas < 0),
    "iom": Strategy(("threshold",), lambda found, at: found.iou > at.iom, best_alone=True),
    "cpi": Strategy(
        ("threshold_u", "threshold_o"),
        lambda found, at: (found.of_label > at.cpi_u) | (found.of_proposal > at.cpi_o),
    ),
    "cpi-u": Strategy(("threshold_u",), lambda found, at: found.of_label > at.cpi_u),
    "cpi-o": Strategy(("threshold_o",), lambda found, at: found.of_proposal > at.cpi_o),
}
