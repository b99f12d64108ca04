"""Refine all pseudo-labels of a search by arithmetic on counts: one call per trial.

A table holds everything that depends only on pseudo-labels and proposals, so that a trial only
applies its thresholds. Both kinds of table apply the strategy's own definition in
``semires/refine/strategies.py``, and the result equals refining the pixels, to the last digit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import cast

import numpy as np
from numpy.typing import NDArray

from semires.errors import ConfigError
from semires.evaluation.metrics import iou_per_expression, overall_iou
from semires.refine.strategies import (
    PROBABILITY_STEPS,
    STRATEGIES,
    Atoms,
    Overlaps,
    Strategy,
    first_largest,
)
from semires.tuning.counts import Counts

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Labels:
    """R pseudo-labels: area, ground truth's area and their overlap, pixels (R,) int64.

    ``kept_area`` and ``kept_overlap`` are the label's pixels that a refined label also contains,
    and those of them in the ground truth; 0 unless the rule ``keeps_outside``.
    """

    image_ids: Ints
    area: Ints
    truth: Ints
    overlap: Ints
    kept_area: Ints
    kept_overlap: Ints

    def __len__(self) -> int:
        return len(self.area)

    def take(self, chosen: Bools) -> Labels:
        """The labels where ``chosen`` (R,) is true."""
        return Labels(*(getattr(self, field.name)[chosen] for field in fields(self)))

    @cached_property
    def iou(self) -> Floats:
        """IoU of each label with the ground truth, (R,), in 0..1."""
        return iou_per_expression(self.overlap, self.area + self.truth - self.overlap)

    def replaced(self, matched: Bools, area: Ints, overlap: Ints) -> Outcome:
        """Replace the matched labels by masks of this area and overlap with the truth, (R,)."""
        overlap = np.where(matched, overlap + self.kept_overlap, self.overlap)
        union = np.where(matched, area + self.kept_area, self.area) + self.truth - overlap
        return Outcome(overlap, union, matched)

    def untouched(self) -> Outcome:
        """The pseudo-labels without any refinement."""
        nothing = np.zeros(len(self), dtype=np.int64)
        return self.replaced(nothing.astype(bool), nothing, nothing)


@dataclass(frozen=True)
class Outcome:
    """All labels after refinement: intersection and union with the ground truth (R,), matched."""

    intersection: Ints
    union: Ints
    matched: Bools


@dataclass(frozen=True)
class ScoreTable:
    """Table for a strategy that is defined by scores.

    A unit is a set of pixels that enters the refined label as a whole: an atom, or, if the
    strategy is ``best_alone``, the proposal with the largest IoU. Its score is the largest score of
    the proposals that contain it. It belongs to the refined label if and only if one of its
    scores exceeds its threshold. Reference r has the units ``offsets[r]`` to ``offsets[r + 1]``.

    Args:
        labels: the R pseudo-labels.
        offsets: (R+1,).
        scores: by the threshold's name, (U,).
        area: pixels of every unit, (U,).
        truth: pixels of the ground truth in every unit, (U,).
    """

    labels: Labels
    offsets: Ints
    scores: Mapping[str, Floats]
    area: Ints
    truth: Ints

    def outcome(self, thresholds: Mapping[str, float]) -> Outcome:
        """Refine all labels.

        Raises:
            ConfigError: a threshold is outside [0, 1].
        """
        taken = np.zeros(len(self.area), dtype=bool)
        for name, score in self.scores.items():
            taken |= score > checked(thresholds[name], name)
        area, overlap = (self._sum(np.where(taken, part, 0)) for part in (self.area, self.truth))
        return self.labels.replaced(area > 0, area, overlap)

    def _sum(self, values: Ints) -> Ints:
        """Exact sums over each reference's units; a reference may have none."""
        running = np.concatenate([[0], np.cumsum(values)])
        return cast(Ints, running[self.offsets[1:]] - running[self.offsets[:-1]])


@dataclass(frozen=True)
class Reference:
    """One pseudo-label of an image with N proposals and A atoms.

    Args:
        members: which proposal contains which atom, 0 or 1 as float64 (N,A): exact, and fast to
            multiply.
        area: pixels of every atom, (A,) int64.
        label: pixels of the pseudo-label in every atom, (A,) int64.
        truth: pixels of the ground truth in every atom, (A,) int64.
        probability: the sum of the teacher's probability over every atom, (A,).
    """

    members: Floats
    area: Ints
    label: Ints
    truth: Ints
    probability: Floats

    @cached_property
    def atoms(self) -> Atoms:
        """The atoms, counted against the pseudo-label."""
        areas, label = (part.astype(np.float64) for part in (self.area, self.label))
        return Atoms(self.members > 0, areas, label, self.probability)

    @cached_property
    def overlaps(self) -> Overlaps:
        """The pseudo-label's overlaps with the proposals, (N,)."""
        parts = (self.label, self.area, self.probability)
        intersections, areas, probability = (self.members @ part for part in parts)
        total = float(self.probability.sum())
        return Overlaps(intersections, areas, float(self.label.sum()), probability, total)


@dataclass(frozen=True)
class ChoiceTable:
    """Table for any other strategy: every trial evaluates the strategy's rule again."""

    labels: Labels
    strategy: Strategy
    references: list[Reference]

    @cached_property
    def _padded(self) -> Overlaps:
        """The overlaps of all references, padded with empty proposals to one number N, (R,N)."""
        overlaps = [reference.overlaps for reference in self.references]
        n = max((len(each.areas) for each in overlaps), default=0)
        columns = zip(*((o.intersections, o.areas, o.probability) for o in overlaps), strict=True)
        intersections, areas, probability = (
            np.stack([np.pad(part, (0, n - len(part))) for part in column]) for column in columns
        )
        label_area = self.labels.area[:, None].astype(np.float64)
        total = np.array([[o.total_probability] for o in overlaps])
        return Overlaps(intersections, areas, label_area, probability, total)

    def outcome(self, thresholds: Mapping[str, float]) -> Outcome:
        """As :meth:`ScoreTable.outcome`."""
        values = {name: checked(value, name) for name, value in thresholds.items()}
        covered = self._covered_atoms if self.strategy.cover else self._atoms_of_chosen
        pixels = np.zeros((2, len(self.labels)), dtype=np.int64)
        for r, atoms in covered(values):
            reference = self.references[r]
            pixels[:, r] = reference.area[atoms].sum(), reference.truth[atoms].sum()
        return self.labels.replaced(pixels[0] > 0, *pixels)

    def _atoms_of_chosen(self, thresholds: Mapping[str, float]) -> Iterator[tuple[int, Bools]]:
        """The atoms in the union of the chosen proposals, for every reference with a match."""
        chosen = self.strategy.select(self._padded, thresholds)
        for r in map(int, np.flatnonzero(chosen.any(axis=1))):
            members = self.references[r].members
            yield r, members[chosen[r, : len(members)]].any(axis=0)

    def _covered_atoms(self, thresholds: Mapping[str, float]) -> Iterator[tuple[int, Bools]]:
        for r, reference in enumerate(self.references):
            yield r, self.strategy.covered(reference.atoms, thresholds)


Table = ScoreTable | ChoiceTable  # pseudo-labels and the data to refine them with any thresholds


def checked(value: float, name: str) -> float:
    """Return a threshold.

    Raises:
        ConfigError: it is outside [0, 1] or not a number.
    """
    if not 0 <= value <= 1:
        raise ConfigError(f"{name}: a threshold lies in [0, 1], not {value}")
    return value


def thresholds_of(strategy: str) -> tuple[str, ...]:
    """The names of a strategy's thresholds; none for an unknown strategy."""
    return tuple(STRATEGIES[strategy].thresholds) if strategy in STRATEGIES else ()


def make_table(counts: Counts, strategy: str, references: list[Reference] | None = None) -> Table:
    """Compute the table for the trials of a strategy; without a rule it changes no label.

    Args:
        counts: of the pseudo-labels.
        strategy: its name.
        references: :func:`references_of` the counts, if the caller makes tables of several
            strategies; None computes them.

    Raises:
        ConfigError: the strategy is unknown.
    """
    if strategy not in STRATEGIES:
        raise ConfigError(f"no strategy {strategy!r}")
    rule = STRATEGIES[strategy]
    if references is None:
        references = references_of(counts)
    labels = _labels(counts, references, rule.keeps_outside)
    if not rule.scores:
        return ChoiceTable(labels, rule, references)
    units = [(_best_proposal if rule.best_alone else _atoms)(rule, r) for r in references]
    scores = np.concatenate([part[0] for part in units], axis=1)
    offsets = np.concatenate([[0], np.cumsum([len(part[1]) for part in units])])
    area, pixels = (np.concatenate([part[i] for part in units]) for i in (1, 2))
    return ScoreTable(labels, offsets, dict(zip(rule.scores, scores, strict=True)), area, pixels)


def references_of(counts: Counts) -> list[Reference]:
    """The R pseudo-labels, each with the proposals of its image."""
    members = [m.astype(np.float64) for m in counts.members()]
    probability = counts.probability / PROBABILITY_STEPS
    area, label, truth = counts.area, counts.label, counts.truth
    return [
        Reference(members[image], area[a:b], label[a:b], truth[a:b], probability[a:b])
        for image, a, b in zip(
            counts.image_index, counts.offsets[:-1], counts.offsets[1:], strict=True
        )
    ]


def _labels(counts: Counts, references: list[Reference], keeps_outside: bool) -> Labels:
    """The pseudo-labels; with ``keeps_outside`` also what remains of them outside proposals."""
    kept = np.zeros(len(counts.area), dtype=np.int64)
    if keeps_outside:
        kept[:] = np.concatenate([~(r.members > 0).any(axis=0) for r in references])
    parts = (
        *(counts.label, counts.truth, counts.overlap),
        *(counts.label * kept, counts.overlap * kept),
    )
    return Labels(counts.image_ids, *(np.add.reduceat(p, counts.offsets[:-1]) for p in parts))


Units = tuple[Floats, Ints, Ints]  # scores (T,U), area (U,), truth (U,)


def _best_proposal(rule: Strategy, reference: Reference) -> Units:
    """The only unit of a reference: its first proposal with the largest IoU."""
    overlaps = reference.overlaps
    chosen = first_largest(overlaps.iou) & (overlaps.areas > 0)
    scores = np.stack([score(overlaps)[chosen] for score in rule.scores.values()])
    truth = reference.members[chosen] @ reference.truth
    return scores, overlaps.areas[chosen].astype(np.int64), truth.astype(np.int64)


def _atoms(rule: Strategy, reference: Reference) -> Units:
    """The atoms that some threshold can select: thresholds are at least 0, comparisons strict."""
    scores = np.stack([
        (reference.members * score(reference.overlaps)[:, None]).max(axis=0, initial=0.0)
        for score in rule.scores.values()
    ])  # fmt: skip
    useful = (scores > 0).any(axis=0) & (reference.area > 0)
    return scores[:, useful], reference.area[useful], reference.truth[useful]


def replaced_quality(outcome: Outcome) -> tuple[float, float]:
    """The oIoU of the labels that the rule replaced, and their share, in percent; 0, 0 for none."""
    chosen = outcome.matched
    quality = overall_iou(outcome.intersection[chosen], outcome.union[chosen])
    return quality, 100.0 * float(np.mean(chosen))


def summarise(outcome: Outcome, labels: Labels) -> dict[str, float]:
    """Overall and mean IoU after refinement, and the shares of references, all in percent.

    ``matched`` labels were replaced. ``better`` of them gained IoU and ``worse`` lost some.
    ``unmatched`` labels stay as they were (paper Figure 6: positive, negative, none).
    """
    now = iou_per_expression(outcome.intersection, outcome.union)
    shares = {
        "matched": outcome.matched,
        "better": outcome.matched & (now > labels.iou),
        "worse": outcome.matched & (now < labels.iou),
        "unmatched": ~outcome.matched,
    }
    return {
        "oIoU": overall_iou(outcome.intersection, outcome.union),
        "mIoU": 100.0 * float(now.mean()),
        **{name: 100.0 * float(np.mean(chosen)) for name, chosen in shares.items()},
    }
