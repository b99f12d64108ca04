"""One trial of the threshold search: refine all pseudo-labels by arithmetic on counts.

Whether a proposal is taken depends on the thresholds only through comparisons (paper Eq. 6-8), so
what is compared is computed once: for IOM the best proposal of each reference, for CPI the largest
s1 and s2 among the proposals that hold an atom. A trial is then a few comparisons and sums per
reference, and equals refining the pixels to the last digit (tests/tuning/test_objective.py).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from semires.errors import ConfigError
from semires.evaluation.metrics import iou_per_expression, overall_iou
from semires.refine.matching import select
from semires.refine.strategies import STRATEGIES, Overlaps, Thresholds
from semires.tuning.counts import Counts

if TYPE_CHECKING:
    import optuna

    from semires.config.schema import Params
    from semires.runs.key import RunKey

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]

NEVER = 2.0  # above every overlap score
CPI = ("cpi", "cpi-u", "cpi-o")
PAPER_GRID = (0.5, 0.6, 0.7)  # paper Table 3


@dataclass(frozen=True)
class Labels:
    """R pseudo-labels: area, ground truth's area and their overlap, pixels (R,) int64."""

    image_ids: Ints
    area: Ints
    truth: Ints
    overlap: Ints

    def __len__(self) -> int:
        return len(self.area)

    def take(self, keep: Bools) -> Labels:
        """The labels that the mask ``keep`` (R,) selects."""
        return Labels(*(getattr(self, field.name)[keep] for field in fields(self)))

    @cached_property
    def iou(self) -> Floats:
        """IoU of each label with the ground truth (R,), in 0..1; every trial compares with it."""
        return iou_per_expression(self.overlap, self.area + self.truth - self.overlap)


@dataclass(frozen=True)
class Outcome:
    """All labels after refinement: intersection and union with the ground truth (R,), matched."""

    intersection: Ints
    union: Ints
    matched: Bools


class Table(Protocol):
    """Everything that trials of one strategy need."""

    @property
    def labels(self) -> Labels:
        """The pseudo-labels."""
        ...

    def outcome(self, thresholds: Mapping[str, float]) -> Outcome:
        """Refine all labels with these thresholds."""
        ...

    def take(self, keep: Bools) -> Table:
        """The part of the table for the references that the mask (R,) selects."""
        ...


@dataclass(frozen=True)
class IomTable:
    """Per reference the proposal with the largest IoU: its IoU, area and overlap with the truth."""

    labels: Labels
    best: Floats
    area: Ints
    overlap: Ints

    def outcome(self, thresholds: Mapping[str, float]) -> Outcome:
        """Paper Eq. 6: the best proposal replaces the label where its IoU exceeds the threshold."""
        matched = self.best > check(thresholds["threshold"], "threshold")
        return _replace(self.labels, matched, self.area, self.overlap)

    def take(self, keep: Bools) -> IomTable:
        """See :class:`Table`."""
        return IomTable(
            self.labels.take(keep), self.best[keep], self.area[keep], self.overlap[keep]
        )


@dataclass(frozen=True)
class CpiTable:
    """Per atom the largest s1 and s2 of the proposals that hold it, its area and truth pixels.

    ``offsets`` (R+1,): where each reference's atoms begin. An atom is in the union of the selected
    proposals if and only if one of its two maxima exceeds its threshold.
    """

    labels: Labels
    offsets: Ints
    s1: Floats
    s2: Floats
    area: Ints
    truth: Ints

    def outcome(self, thresholds: Mapping[str, float]) -> Outcome:
        """Paper Eq. 7 and 8; a strategy without one of the two thresholds never uses it."""
        under = check(thresholds.get("threshold_u", NEVER), "threshold_u", NEVER)
        over = check(thresholds.get("threshold_o", NEVER), "threshold_o", NEVER)
        chosen = (self.s1 > under) | (self.s2 > over)
        area, overlap = (self._sum(np.where(chosen, part, 0)) for part in (self.area, self.truth))
        return _replace(self.labels, area > 0, area, overlap)

    def _sum(self, values: Ints) -> Ints:
        """Sums over each reference's atoms, exact; references may have none."""
        running = np.concatenate([[0], np.cumsum(values)])
        return cast(Ints, running[self.offsets[1:]] - running[self.offsets[:-1]])

    def take(self, keep: Bools) -> CpiTable:
        """See :class:`Table`."""
        lengths = np.diff(self.offsets)
        atoms = np.repeat(keep, lengths)
        offsets = np.concatenate([[0], np.cumsum(lengths[keep])])
        return replace(
            self,
            labels=self.labels.take(keep),
            offsets=offsets,
            **{name: getattr(self, name)[atoms] for name in ("s1", "s2", "area", "truth")},
        )


@dataclass(frozen=True)
class AnyTable:
    """Of another strategy: each reference's overlaps, and what holds which atoms, asked per trial.

    ``references``: (overlaps, members (N,A), areas (A,), truth pixels (A,)) each.
    """

    labels: Labels
    strategy: str
    references: list[tuple[Overlaps, Floats, Ints, Ints]]

    def outcome(self, thresholds: Mapping[str, float]) -> Outcome:
        """As `matching.select` chooses."""
        values = {name: check(value, name) for name, value in thresholds.items()}
        at, pixels = Thresholds.of(values), []
        for found, members, area, truth in self.references:
            held = members[select(self.strategy, found, at)].any(axis=0)
            pixels.append((area[held].sum(), truth[held].sum()))
        areas, overlaps = np.array(pixels, dtype=np.int64).reshape(-1, 2).T
        return _replace(self.labels, areas > 0, areas, overlaps)

    def take(self, keep: Bools) -> AnyTable:
        """See :class:`Table`."""
        kept = [part for part, k in zip(self.references, keep, strict=True) if k]
        return replace(self, labels=self.labels.take(keep), references=kept)


def check(value: float, name: str, exempt: float | None = None) -> float:
    """Return a threshold.

    Raises:
        ConfigError: it is outside [0, 1] or not a number.
    """
    if value != exempt and not 0 <= value <= 1:
        raise ConfigError(f"{name}: a threshold lies in [0, 1], not {value}")
    return value


def thresholds_of(strategy: str) -> tuple[str, ...]:
    """The names of a strategy's thresholds; none for an unknown one."""
    rule = STRATEGIES.get(strategy)
    return rule.thresholds if rule else ()


def make_table(counts: Counts, strategy: str) -> Table:
    """Precompute what a strategy's trials need.

    Raises:
        ConfigError: the strategy has no threshold or is unknown.
    """
    if not thresholds_of(strategy):
        raise ConfigError(f"strategy {strategy!r}: has no thresholds to search")
    begins = counts.offsets[:-1]
    label, truth = (np.add.reduceat(part, begins) for part in (counts.label, counts.truth))
    labels = Labels(counts.image_ids, label, truth, counts.overlaps)
    if strategy == "iom":
        best, *pixels = zip(*_per_reference(counts, _best_proposal), strict=True)
        return IomTable(labels, np.array(best), *(np.array(p, dtype=np.int64) for p in pixels))
    if strategy not in CPI:
        return AnyTable(labels, strategy, _per_reference(counts, _everything))
    parts = _per_reference(counts, _atom_scores)
    offsets = np.concatenate([[0], np.cumsum([len(part[0]) for part in parts])])
    return CpiTable(
        labels, offsets, *(np.concatenate(column) for column in zip(*parts, strict=True))
    )


def _per_reference(counts: Counts, function: Callable[..., Any]) -> list[Any]:
    """``function(members (N,A), area (A,), label (A,), truth (A,))`` for each reference."""
    members = [m.astype(np.float64) for m in counts.members()]  # exact, and fast to multiply
    return [
        function(members[image], counts.area[a:b], counts.label[a:b], counts.truth[a:b])
        for image, a, b in zip(
            counts.image_index, counts.offsets[:-1], counts.offsets[1:], strict=True
        )
    ]


def _everything(
    members: Floats, area: Ints, label: Ints, truth: Ints
) -> tuple[Overlaps, Floats, Ints, Ints]:
    return Overlaps(members @ label, members @ area, float(label.sum())), members, area, truth


def _best_proposal(members: Floats, area: Ints, label: Ints, truth: Ints) -> tuple[float, int, int]:
    """IoU, area and truth pixels of the first proposal with the largest IoU; IoU 0 if none."""
    if not len(members):
        return 0.0, 0, 0
    found = Overlaps(members @ label, members @ area, float(label.sum()))
    first = int(found.iou.argmax())
    return float(found.iou[first]), int(found.areas[first]), int(members[first] @ truth)


def _atom_scores(
    members: Floats, area: Ints, label: Ints, truth: Ints
) -> tuple[Floats, Floats, Ints, Ints]:
    """s1, s2, area and truth pixels of the atoms that some threshold can select."""
    found = Overlaps(members @ label, members @ area, float(label.sum()))
    s1, s2 = (
        (members * score[:, None]).max(axis=0, initial=0.0)
        for score in (found.of_label, found.of_proposal)
    )
    kept = ((s1 > 0) | (s2 > 0)) & (area > 0)  # thresholds are at least 0, and comparisons strict
    return s1[kept], s2[kept], area[kept], truth[kept]


def _replace(labels: Labels, matched: Bools, area: Ints, overlap: Ints) -> Outcome:
    """Matched labels become masks of ``area`` and ``overlap``; the others stay as they are."""
    overlap = np.where(matched, overlap, labels.overlap)
    union = np.where(matched, area, labels.area) + labels.truth - overlap
    return Outcome(overlap, union, matched)


def untouched(labels: Labels) -> Outcome:
    """The pseudo-labels as the teacher made them."""
    nothing = np.zeros(len(labels), dtype=np.int64)
    return _replace(labels, nothing.astype(bool), nothing, nothing)


def summarise(outcome: Outcome, labels: Labels) -> dict[str, float]:
    """Overall and mean IoU after refinement, and the shares of references, all in percent.

    ``matched`` were replaced; of these ``better`` gained IoU and ``worse`` lost some; ``unmatched``
    were left as they are (paper Figure 6: positive, negative, none).
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


@dataclass(frozen=True)
class Axis:
    """One parameter of a search: its range, its scale, and the value that stands in params.yaml."""

    low: float
    high: float
    given: float
    log: bool = False


def space(params: Params, cell: RunKey) -> dict[str, Axis]:
    """What ``tune.objective`` searches for a method, by name.

    ``labels`` searches the method's thresholds; ``training`` also what labels cannot tell: PWA
    (its ranges keep the weight of Eq. 9 positive), lambda and EMA.

    Raises:
        ConfigError: there is no such method, or it has no thresholds.
    """
    method = params.refine.get(cell.method)
    if method is None or not thresholds_of(method.strategy):
        reason = "no such method" if method is None else f"strategy {method.strategy} has none"
        raise ConfigError(f"refine.{cell.method}: thresholds cannot be searched: {reason}")
    axes = {name: Axis(0, 1, getattr(method, name)) for name in thresholds_of(method.strategy)}
    if params.tune.objective == "labels":
        return axes
    if method.pwa:
        pwa = params.loss.pwa
        axes["pwa_mean"] = Axis(0.3, 0.7, pwa.mean)
        axes["pwa_variance"] = Axis(0.1, 1.0, pwa.variance, log=True)
        axes["pwa_offset"] = Axis(1.27, 2.0, pwa.offset)
    axes["lambda_unsup"] = Axis(0.1, 10.0, params.mutual.lambda_unsup, log=True)
    axes["ema"] = Axis(0.9, 0.9999, params.mutual.ema)
    return {name: _holding(axis) for name, axis in axes.items()}


def _holding(axis: Axis) -> Axis:
    """Widen a range so that it holds the given value."""
    return replace(axis, low=min(axis.low, axis.given), high=max(axis.high, axis.given))


def suggest(trial: optuna.Trial, axes: Mapping[str, Axis]) -> dict[str, float]:
    """One value for every axis."""
    return {n: trial.suggest_float(n, a.low, a.high, log=a.log) for n, a in axes.items()}


def with_values(params: Params, cell: RunKey, values: Mapping[str, float]) -> Params:
    """Parameters with a trial's values and ``tune.steps`` steps of mutual learning."""
    from semires.config.validate import validate

    tree = params.model_dump()
    for name, value in values.items():
        if name.startswith("pwa_"):
            tree["loss"]["pwa"][name.removeprefix("pwa_")] = value
        elif name in ("lambda_unsup", "ema"):
            tree["mutual"][name] = value
        else:
            tree["refine"][cell.method][name] = value
    tree["refine"][cell.method]["thresholds"] = "paper"  # the trial's own, not the tuned ones
    tree["mutual"].update(steps=params.tune.steps, epochs=None)
    return validate(tree, "tune")


def training_objective(
    trial: optuna.Trial, params: Params, cell: RunKey, val_images: tuple[int, ...]
) -> float:
    """Best oIoU (percent) on ``val_images`` of a short mutual learning; the pruner sees each one.

    Nothing of it stays on disk, unless it is stopped: the trial is then queued again and goes on.

    Raises:
        optuna.TrialPruned: the pruner gave up on the trial, or its loss diverged.
        Interrupted: a signal arrived.
    """
    import optuna

    from semires.errors import NonFiniteLossError
    from semires.training.context import RunContext
    from semires.training.mutual import SECTIONS, train_mutual

    def on_evaluation(metrics: dict[str, float], step: int) -> None:
        trial.report(metrics["val/oIoU"], step)
        if trial.should_prune():
            raise optuna.TrialPruned

    changed = with_values(params, cell, suggest(trial, space(params, cell)))
    work = RunContext(changed, cell, SECTIONS, val_images=val_images).work
    try:
        value = train_mutual(changed, cell, on_evaluation, val_images)["val"]["oIoU"]
    except (optuna.TrialPruned, NonFiniteLossError) as error:
        shutil.rmtree(work, ignore_errors=True)
        raise optuna.TrialPruned(str(error)) from error
    shutil.rmtree(work, ignore_errors=True)
    return value
