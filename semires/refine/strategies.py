"""Strategies: the rules that choose proposals for a pseudo-label. IOM and CPI are paper Eq. 6-8.

To add a rule, add one entry to ``STRATEGIES``. params.yaml, mutual learning on CPU and GPU, and the
threshold search then accept it. ``c`` is the hard pseudo-label, ``m`` a proposal. All comparisons
are strict, as in the published code. The rules use only operations that NumPy and PyTorch share, so
that one function works for a single label on the CPU and for a batch on an accelerator. This module
does not import NumPy or PyTorch, because loading params.yaml imports it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Array = Any  # numpy.ndarray or torch.Tensor

EPSILON = 1e-9  # of the published code, in the denominator of Eq. 7


@dataclass(frozen=True)
class Overlaps:
    """Pixel counts of labels and of the N proposals of their images, whole numbers as float64.

    Args:
        intersections: (..., N), ``|m and c|``.
        areas: (..., N), ``|m|``.
        label_area: a number or (..., 1), ``|c|``.
    """

    intersections: Array
    areas: Array
    label_area: Array

    @property
    def iou(self) -> Array:
        """IoU(m, c), Eq. 6; 0 if both are empty."""
        return self.intersections / (self.areas + self.label_area - self.intersections).clip(min=1)

    @property
    def label_coverage(self) -> Array:
        """The share of the label that lies in the proposal, Eq. 7; 0 for an empty label."""
        return self.intersections / (self.label_area + EPSILON)

    @property
    def proposal_coverage(self) -> Array:
        """The share of the proposal that lies in the label, Eq. 8; 0 for an empty proposal."""
        return self.intersections / self.areas.clip(min=1)


@dataclass(frozen=True)
class Atoms:
    """The atoms of an image with N proposals, and the pixels of a label in each atom.

    Args:
        members: bool (..., N, A), which proposal contains which atom.
        areas: (..., A), pixels of every atom, whole numbers as float64; 0 for padding.
        label: (..., A), pixels of the label in every atom, whole numbers as float64.
    """

    members: Array
    areas: Array
    label: Array


Score = Callable[[Overlaps], Array]


@dataclass(frozen=True)
class Strategy:
    """A rule that chooses proposals.

    The union of the chosen proposals replaces the label. If none is chosen, the label does not
    change. A rule is defined by ``scores``, ``choose`` or ``cover``; without any of them it never
    chooses a proposal. With ``scores``, a proposal is chosen if at least one score exceeds the
    threshold of the same name. The threshold search is much faster for such rules, because it
    computes the scores only once.

    Args:
        thresholds: the names of the thresholds, each in [0, 1], with the paper's values. A method
            in params.yaml that uses the strategy has these keys.
        scores: for every threshold, a function that maps the overlaps to scores (..., N) in [0, 1].
        choose: a function that maps the overlaps, and one keyword argument per threshold, to the
            chosen proposals, bool (..., N).
        cover: a function that maps the :class:`Atoms`, and one keyword argument per threshold, to
            the atoms of the refined label, bool (..., A). It is for refined labels that are not a
            union of proposals.
        best_alone: choose only the image's proposal with the largest IoU (the first one if several
            are equal), and only if the rule chooses it.

    Raises:
        ValueError: more than one of the three is given, or the names of the scores are not those
            of the thresholds.
    """

    thresholds: Mapping[str, float] = field(default_factory=dict)
    scores: Mapping[str, Score] = field(default_factory=dict)
    choose: Callable[..., Array] | None = None
    cover: Callable[..., Array] | None = None
    best_alone: bool = False

    def __post_init__(self) -> None:
        rules = [rule for rule in (self.choose, self.cover) if rule]
        if len(rules) > 1 or set(self.scores) != (set() if rules else set(self.thresholds)):
            raise ValueError("a strategy needs `choose`, `cover` or one score for each threshold")

    @property
    def uses_proposals(self) -> bool:
        """Whether any proposal can be chosen."""
        return bool(self.choose or self.cover or self.scores)

    def select(self, overlaps: Overlaps, thresholds: Mapping[str, float]) -> Array:
        """Return the chosen proposals, bool (..., N). Empty proposals are never chosen.

        Args:
            overlaps: counts of one label, or of a batch of labels with padded proposals.
            thresholds: a value for each of the strategy's thresholds.
        """
        chosen = overlaps.areas > 0
        if self.choose is not None:
            chosen = chosen & self.choose(overlaps, **thresholds)
        else:
            chosen = chosen & self._exceeds(overlaps, thresholds)
        return chosen & best(overlaps) if self.best_alone else chosen

    def covered(self, atoms: Atoms, thresholds: Mapping[str, float]) -> Array:
        """Return the atoms of the refined label, bool (..., A), for a rule defined by ``cover``.

        Atoms without pixels are never covered. If no atom is covered, the label does not change.

        Raises:
            ValueError: the rule is not defined by ``cover``.
        """
        if self.cover is None:
            raise ValueError("the strategy chooses proposals, not atoms")
        return self.cover(atoms, **thresholds) & (atoms.areas > 0)

    def _exceeds(self, overlaps: Overlaps, thresholds: Mapping[str, float]) -> Array:
        exceeds = overlaps.areas < 0
        for name, score in self.scores.items():
            exceeds = exceeds | (score(overlaps) > thresholds[name])
        return exceeds

    def filled(self, given: Mapping[str, float]) -> dict[str, float]:
        """Return a value for every threshold: the given value, or else the paper's.

        Raises:
            ValueError: ``given`` has a name that the strategy does not declare.
        """
        if unknown := sorted(set(given) - set(self.thresholds)):
            names = ", ".join(self.thresholds) or "no threshold"
            raise ValueError(f"unknown threshold {unknown[0]!r}; the strategy takes {names}")
        return {**self.thresholds, **given}


def best(overlaps: Overlaps) -> Array:
    """Return the first proposal with the largest IoU for each label, as bool (..., N)."""
    iou = overlaps.iou
    positions = (overlaps.areas >= 0).cumsum(-1) - 1
    return positions == iou.argmax(-1)[..., None] if iou.shape[-1] else positions < 0


def get_strategy(name: str) -> Strategy:
    """Return the strategy of this name.

    Raises:
        ValueError: there is no strategy of this name.
    """
    if name not in STRATEGIES:
        raise ValueError(f"unknown strategy {name!r}; choose one of {', '.join(STRATEGIES)}")
    return STRATEGIES[name]


STRATEGIES: dict[str, Strategy] = {
    "none": Strategy(),
    "iom": Strategy(
        {"threshold": 0.5},
        scores={"threshold": lambda overlaps: overlaps.iou},
        best_alone=True,
    ),
    "cpi": Strategy(
        {"threshold_u": 0.7, "threshold_o": 0.7},
        scores={
            "threshold_u": lambda overlaps: overlaps.label_coverage,
            "threshold_o": lambda overlaps: overlaps.proposal_coverage,
        },
    ),
    "cpi-u": Strategy(
        {"threshold_u": 0.7}, scores={"threshold_u": lambda overlaps: overlaps.label_coverage}
    ),
    "cpi-o": Strategy(
        {"threshold_o": 0.7}, scores={"threshold_o": lambda overlaps: overlaps.proposal_coverage}
    ),
}
