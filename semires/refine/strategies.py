"""Strategies: the rules that choose proposals for a pseudo-label. IOM and CPI are paper Eq. 6-8.

To add a rule, add one entry to ``STRATEGIES``. params.yaml, mutual learning on CPU and GPU, and the
threshold search then accept it. ``c`` is the hard pseudo-label, ``m`` a proposal, ``pi`` the
teacher's foreground probability. All comparisons of the paper's rules are strict, as in the
published code. The rules use only operations that NumPy and PyTorch share, so that one function
works for a single label on the CPU and for a batch on an accelerator. This module does not import
NumPy or PyTorch, because loading params.yaml imports it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Array = Any  # numpy.ndarray or torch.Tensor

EPSILON = 1e-9  # of the published code, in the denominator of Eq. 7
#: Probabilities are rounded to multiples of 1 / PROBABILITY_STEPS before they are summed. Sums in
#: float64 are then exact, so they do not depend on the order of summation or on the device.
PROBABILITY_STEPS = 2**16
# Limits on iterations, so that a batch on an accelerator needs no synchronisation.
DINKELBACH_STEPS = 16
GREEDY_STEPS = 16


def rounded(probability: Array) -> Array:
    """Round probabilities in 0..1, any shape, to multiples of 1 / PROBABILITY_STEPS."""
    return (probability * PROBABILITY_STEPS).round() / PROBABILITY_STEPS


@dataclass(frozen=True)
class Overlaps:
    """Pixel counts of labels and of the N proposals of their images, whole numbers as float64.

    The last two are given to rules that are ``soft``, as float64.

    Args:
        intersections: (..., N), ``|m and c|``.
        areas: (..., N), ``|m|``.
        label_area: a number or (..., 1), ``|c|``.
        probability: (..., N), the sum of pi over the proposal's pixels.
        total_probability: a number or (..., 1), the sum of pi over the image.
    """

    intersections: Array
    areas: Array
    label_area: Array
    probability: Array = None
    total_probability: Array = None

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

    @property
    def probability_coverage(self) -> Array:
        """Eq. 7 with pi in place of the label: the proposal's share of the sum of pi."""
        return self.probability / (self.total_probability + EPSILON)

    @property
    def expected_iou(self) -> Array:
        """The ratio of the expected intersection with the object to the expected union."""
        return expected_iou(self.probability, self.areas, self.total_probability)

    @property
    def mean_probability(self) -> Array:
        """Eq. 8 with pi in place of the label: the mean of pi in the proposal."""
        return self.probability / self.areas.clip(min=1)


@dataclass(frozen=True)
class Atoms:
    """The atoms of an image with N proposals, and the pixels of a label in each atom.

    Args:
        members: bool (..., N, A), which proposal contains which atom.
        areas: (..., A), pixels of every atom, whole numbers as float64; 0 for padding.
        label: (..., A), pixels of the label in every atom, whole numbers as float64.
        probability: (..., A), the sum of pi over every atom's pixels, float64; for rules that are
            ``soft``.
    """

    members: Array
    areas: Array
    label: Array
    probability: Array = None

    @property
    def outside(self) -> Array:
        """The atoms that lie in no proposal, bool (..., A)."""
        return ~self.members.any(-2)


Score = Callable[[Overlaps], Array]


@dataclass(frozen=True)
class Strategy:
    """A rule that chooses proposals.

    The union of the chosen proposals replaces the label. If none is chosen, the label does not
    change. A rule is defined by ``scores``, ``choose`` or ``cover``; without any of them it never
    chooses a proposal. With ``scores``, a proposal is chosen if at least one score exceeds the
    threshold of the same name.

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
        soft: the rule uses the sums of pi.
        keeps_outside: a refined label also contains the label's pixels that lie in no proposal.

    Raises:
        ValueError: more than one of the three is given, or the names of the scores are not those
            of the thresholds.
    """

    thresholds: Mapping[str, float] = field(default_factory=dict)
    scores: Mapping[str, Score] = field(default_factory=dict)
    choose: Callable[..., Array] | None = None
    cover: Callable[..., Array] | None = None
    best_alone: bool = False
    soft: bool = False
    keeps_outside: bool = False

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
            exceeds = overlaps.areas < 0
            for name, score in self.scores.items():
                exceeds = exceeds | (score(overlaps) > thresholds[name])
            chosen = chosen & exceeds
        return chosen & first_largest(overlaps.iou) if self.best_alone else chosen

    def covered(self, atoms: Atoms, thresholds: Mapping[str, float]) -> Array:
        """Return the atoms of the refined label, bool (..., A), for a rule defined by ``cover``.

        Atoms without pixels are never covered. If no atom is covered, the label does not change.
        """
        assert self.cover is not None
        return self.cover(atoms, **thresholds) & (atoms.areas > 0)

    def filled(self, given: Mapping[str, float]) -> dict[str, float]:
        """Return a value for every threshold: the given value, or else the paper's.

        Raises:
            ValueError: ``given`` has a name that the strategy does not declare.
        """
        if unknown := sorted(set(given) - set(self.thresholds)):
            names = ", ".join(self.thresholds) or "no threshold"
            raise ValueError(f"unknown threshold {unknown[0]!r}; the strategy takes {names}")
        return {**self.thresholds, **given}


def first_largest(scores: Array) -> Array:
    """The first of the largest scores (..., N), each at least 0, as bool (..., N)."""
    positions = (scores >= 0).cumsum(-1) - 1
    return positions == scores.argmax(-1)[..., None] if scores.shape[-1] else positions < 0


def best_f_beta(overlaps: Overlaps, threshold: float, alpha: float) -> Array:
    """The first proposal with the largest F-beta, if that exceeds the threshold; bool (..., N).

    ``alpha`` = 1 / (1 + beta^2) is the weight of precision ``|m and c| / |m|``, 1 - alpha that of
    recall ``|m and c| / |c|`` (van Rijsbergen 1979). With alpha 0.5 the rule orders like the IoU.
    """
    denominator = alpha * overlaps.areas + (1 - alpha) * overlaps.label_area
    score = overlaps.intersections / denominator.clip(min=EPSILON)
    return first_largest(score) & (score > threshold)


def sepl(overlaps: Overlaps, precision: float, recall: float) -> Array:
    """SEPL (SAM-enhanced pseudo-labels for weak supervision): bool (..., N)."""
    label_area = overlaps.label_area + (overlaps.label_area == 0)
    share = overlaps.intersections / label_area  # exact at the bound, unlike Eq. 7 with its epsilon
    return (overlaps.proposal_coverage > precision) | (share >= recall)


def majority_vote(atoms: Atoms, threshold: float) -> Array:
    """The atoms whose smallest proposal has more than this share inside the label; bool (..., A).

    The same as painting the proposals from large to small, each as wholly inside or outside
    (Semantic-Segment-Anything, for two classes). Of proposals of equal area the last one decides.
    """
    areas = (atoms.members * atoms.areas[..., None, :]).sum(-1)
    inside = (atoms.members * atoms.label[..., None, :]).sum(-1)
    order = (areas >= 0).cumsum(-1) - 1
    count = areas.shape[-1]
    if not count:
        return atoms.areas < 0
    # Whole numbers that order by area first, and by position among equal areas.
    rank = areas * count + (count - 1 - order)
    beyond = (atoms.areas.sum(-1)[..., None, None] + 1) * count
    ranks = rank[..., None] + beyond * ~atoms.members
    smallest = ranks.argmin(-2)[..., None, :] == order[..., :, None]
    wins = (inside > threshold * areas)[..., None] & atoms.members
    return (wins & smallest).any(-2)


def expected_iou(probability: Array, area: Array, total: Array) -> Array:
    """J(S), the ratio of the expected intersection of a set S with the object to that of the union.

    Args:
        probability: sum of pi over S.
        area: pixels of S.
        total: sum of pi over the image.
    """
    return probability / (area + total - probability).clip(min=EPSILON)


def expected_iou_atoms(atoms: Atoms) -> Array:
    """The union of atoms inside proposals with the largest expected IoU J; bool (..., A).

    The optimum consists of the atoms whose mean of pi exceeds J / (1 + J), J its own expected IoU.
    Dinkelbach's iteration finds it: J grows until the set no longer changes. Both sides of the
    comparison are multiplied out, so that it is exact for small images.
    """
    total = atoms.probability.sum(-1)[..., None]
    inside = ~atoms.outside
    covered = inside & (atoms.probability > 0)
    for _ in range(DINKELBACH_STEPS):
        gained = (covered * atoms.probability).sum(-1)[..., None]
        area = (covered * atoms.areas).sum(-1)[..., None]
        covered = inside & ((area + total) * atoms.probability > gained * atoms.areas)
    return covered


def expected_iou_union(atoms: Atoms) -> Array:
    """The atoms of a greedy union of proposals with large expected IoU; bool (..., A).

    In each step, the proposal (the first one of equals) that raises the expected IoU most is added,
    at most GREEDY_STEPS in all.
    """
    total = atoms.probability.sum(-1)[..., None]
    covered = atoms.areas < 0
    count = atoms.members.shape[-2]
    for _ in range(min(count, GREEDY_STEPS)):
        joined = atoms.members | covered[..., None, :]
        inside = (joined * atoms.probability[..., None, :]).sum(-1)
        area = (joined * atoms.areas[..., None, :]).sum(-1)
        now = expected_iou(
            (covered * atoms.probability).sum(-1)[..., None],
            (covered * atoms.areas).sum(-1)[..., None],
            total,
        )
        gains = expected_iou(inside, area, total)
        chosen = first_largest(gains) & (gains > now)
        covered = covered | (atoms.members & chosen[..., None]).any(-2)
    return covered


def gated_union(atoms: Atoms, gate: float) -> Array:
    """:func:`expected_iou_union` where its expected IoU exceeds the gate, else no atom."""
    covered = expected_iou_union(atoms)
    inside = (covered * atoms.probability).sum(-1)
    area = (covered * atoms.areas).sum(-1)
    sure = expected_iou(inside, area, atoms.probability.sum(-1)) > gate
    return covered & sure[..., None]


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
    # Rules beyond the paper (docs/beyond.md)
    "f-beta": Strategy({"threshold": 0.5, "alpha": 0.2}, choose=best_f_beta),
    "sepl": Strategy({"precision": 0.5, "recall": 0.85}, choose=sepl, keeps_outside=True),
    "majority": Strategy({"threshold": 0.5}, cover=majority_vote, keeps_outside=True),
    "mean-score": Strategy(
        {"threshold": 0.5},
        scores={"threshold": lambda overlaps: overlaps.mean_probability},
        soft=True,
    ),
    "soft-cpi": Strategy(
        {"threshold_u": 0.7, "threshold_o": 0.7},
        scores={
            "threshold_u": lambda overlaps: overlaps.probability_coverage,
            "threshold_o": lambda overlaps: overlaps.mean_probability,
        },
        soft=True,
    ),
    "soft-cpi-u": Strategy(
        {"threshold_u": 0.7},
        scores={"threshold_u": lambda overlaps: overlaps.probability_coverage},
        soft=True,
    ),
    "expected-iou-atoms": Strategy(cover=expected_iou_atoms, soft=True),
    "expected-iou": Strategy(cover=expected_iou_union, soft=True),
    "expected-iou-one": Strategy(
        choose=lambda overlaps: first_largest(overlaps.expected_iou) & (overlaps.probability > 0),
        soft=True,
    ),
    "expected-iou-gated": Strategy({"gate": 0.5}, cover=gated_union, soft=True),
}
