"""Refine all pseudo-labels of a search by arithmetic on counts: one call per trial.

A table holds everything that depends only on pseudo-labels and proposals, so that a trial only
applies the strategy's own definition in ``semires/refine/strategies.py``. The result equals
refining the pixels, to the last digit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from semires.evaluation.metrics import iou_per_expression, overall_iou
from semires.refine.strategies import (
    PROBABILITY_STEPS,
    STRATEGIES,
    Atoms,
    Overlaps,
    Strategy,
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
class Table:
    """R pseudo-labels, and the data to refine them with any thresholds of a strategy."""

    labels: Labels
    strategy: Strategy
    references: list[Reference]

    def outcome(self, thresholds: Mapping[str, float]) -> Outcome:
        """Refine all labels. Thresholds lie in [0, 1]."""
        if self.strategy.cover:
            parts = [self.strategy.covered(r.atoms, thresholds) for r in self.references]
            covered = np.concatenate(parts)
        elif self.strategy.scores:
            exceeds = [scores > thresholds[name] for name, scores in self._atom_scores.items()]
            covered = np.any(exceeds, axis=0)
        else:
            overlaps, real, members = self._proposals
            chosen = self.strategy.select(overlaps, thresholds)[real]
            covered = members @ chosen.astype(np.int16) > 0
        firsts, *pixels = self._pixels
        area, overlap = (np.add.reduceat(part * covered, firsts) for part in pixels)
        return self.labels.replaced(area > 0, area, overlap)

    @cached_property
    def _atom_scores(self) -> dict[str, Floats]:
        """Of a rule given by scores: each atom's largest score of the proposals that contain it.

        An atom is in the union of the chosen proposals if one of its scores exceeds its threshold.
        Proposals that no threshold chooses count as 0, which exceeds none.
        """
        overlaps, real, members = self._proposals
        able = self.strategy.select(overlaps, dict.fromkeys(self.strategy.scores, -1.0))
        found = {}
        for name, score in self.strategy.scores.items():
            of_proposals = np.where(able, score(overlaps), 0)[real]
            scores = members.multiply(of_proposals)
            if scores.shape[1]:  # SciPy has no largest value of no columns
                found[name] = scores.max(axis=1).toarray().ravel()
            else:
                found[name] = np.zeros(scores.shape[0])
        return found

    @cached_property
    def _pixels(self) -> tuple[Ints, Ints, Ints]:
        """The place of every reference's first atom, (R,); area and truth of all atoms in turn."""
        area, truth = (
            np.concatenate([getattr(r, name) for r in self.references])
            for name in ("area", "truth")
        )
        lengths = [len(reference.area) for reference in self.references]
        return np.cumsum([0, *lengths[:-1]]), area, truth

    @cached_property
    def _proposals(self) -> tuple[Overlaps, Bools, Any]:
        """All overlaps, padded to one number N of proposals (R,N), and which of them are real.

        The third is a sparse matrix: which atom lies in which real proposal of its reference.
        """
        overlaps = [reference.overlaps for reference in self.references]
        n = max(len(each.areas) for each in overlaps)
        real = np.arange(n) < np.array([[len(each.areas)] for each in overlaps])
        columns = zip(*((o.intersections, o.areas, o.probability) for o in overlaps), strict=True)
        intersections, areas, probability = (
            np.stack([np.pad(part, (0, n - len(part))) for part in column]) for column in columns
        )
        label_area = self.labels.area[:, None].astype(np.float64)
        total = np.array([[o.total_probability] for o in overlaps])
        parts = [sparse.csr_array(r.members.T, dtype=np.int16) for r in self.references]
        members = sparse.block_diag(parts, format="csr")
        return Overlaps(intersections, areas, label_area, probability, total), real, members


def thresholds_of(strategy: str) -> tuple[str, ...]:
    """The names of a strategy's thresholds."""
    return tuple(STRATEGIES[strategy].thresholds)


def make_table(counts: Counts, strategy: str, references: list[Reference] | None = None) -> Table:
    """Compute the table for the trials of a strategy; without a rule it changes no label.

    Args:
        counts: of the pseudo-labels.
        strategy: its name.
        references: :func:`references_of` the counts, if the caller makes tables of several
            strategies; None computes them.
    """
    rule = STRATEGIES[strategy]
    if references is None:
        references = references_of(counts)
    return Table(_labels(counts, references, rule.keeps_outside), rule, references)


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
