"""From the seconds of a few samples to the hours and the disk of the whole study.

The counts of samples come from the whole tables, and the numbers of steps from the functions that
the trainings call. Hours are those of one process with one GPU.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from semires.config.grid import expand, stages
from semires.config.schema import Params
from semires.data.tables import Tables
from semires.runs.key import SUPERVISED, RunKey
from semires.training.loop import total_steps
from semires.training.mutual import mutual_steps

# Tensors of the model's size in a saved state: the model, its best copy and AdamW's two moments; in
# mutual learning also the teacher. The state before the newest one is kept.
STATE_COPIES = {"burn_in": 2 * 4, "mutual": 2 * 5}


@dataclass(frozen=True)
class Spread:
    """A quantity with its range: the lowest, the median and the highest measurement."""

    low: float
    middle: float
    high: float

    @staticmethod
    def of(values: Iterable[float]) -> Spread | None:
        """The spread of some measurements; None if there are none."""
        found = list(values)
        return Spread(min(found), statistics.median(found), max(found)) if found else None

    def times(self, factor: float) -> Spread:
        """The spread of a multiple."""
        return Spread(self.low * factor, self.middle * factor, self.high * factor)

    def plus(self, other: Spread) -> Spread:
        """The sum; the ends are those at which both quantities are at their ends."""
        return Spread(self.low + other.low, self.middle + other.middle, self.high + other.high)


@dataclass(frozen=True)
class Counts:
    """The samples of a whole data set.

    Args:
        images: number of images.
        labelled: samples of an epoch and references of the labelled part, by fraction.
        unlabelled: the same of the unlabelled part.
        evaluated: expressions that an evaluation predicts, by split.
        val_refs: references of val.
    """

    images: int
    labelled: dict[float, tuple[int, int]]
    unlabelled: dict[float, tuple[int, int]]
    evaluated: dict[str, int]
    val_refs: int


def count_samples(params: Params, dataset: str, fractions: list[float]) -> Counts:
    """Count the samples of the prepared data set in the current project."""
    tables = Tables.load(dataset)

    def samples(refs: object, sentences: str) -> int:
        texts = refs["sentences"]  # type: ignore[index]
        return len(texts) if sentences == "one" else int(texts.map(len).sum())

    labelled, unlabelled = {}, {}
    for fraction in fractions:
        parts = tables.labelled_and_unlabelled(dataset, fraction)
        sizes = [(samples(part, params.data.sentences), len(part)) for part in parts]
        labelled[fraction], unlabelled[fraction] = sizes
    evaluated = {
        split: samples(tables.part(split), params.evaluation.sentences)
        for split in params.datasets[dataset].splits
        if split != "train"
    }
    return Counts(len(tables.images), labelled, unlabelled, evaluated, len(tables.part("val")))


def runs_of(params: Params, dataset: str) -> list[RunKey]:
    """The runs of the study on one data set."""
    return [key for key in expand(params) if key.dataset == dataset]


def burn_in_samples(params: Params, counts: Counts, key: RunKey) -> int:
    """Samples that a whole burn-in trains on."""
    batch = params.burn_in.batch_size * params.runtime.accumulate
    return total_steps(params.burn_in, counts.labelled[key.fraction][0], batch) * batch


def samples_per_step(params: Params, method: str) -> int:
    """Samples of a step of mutual learning, labelled and unlabelled together."""
    settings = params.mutual
    unlabelled = settings.unlabelled_batch if params.refine[method].unlabelled else 0
    return (settings.labelled_batch + unlabelled) * params.runtime.accumulate


def mutual_samples(params: Params, counts: Counts, key: RunKey) -> int:
    """Samples that a whole mutual learning trains on."""
    parts = counts.labelled[key.fraction][0], counts.unlabelled[key.fraction][0]
    return mutual_steps(params, *parts) * samples_per_step(params, key.method)


def evaluated_samples(params: Params, counts: Counts, key: RunKey) -> int:
    """Expressions that a whole run predicts: on val, at its end, and to measure corrections."""
    schedule = params.burn_in if key.method == SUPERVISED else params.mutual
    during = schedule.evaluations * counts.evaluated.get("val", 0)
    final = sum(counts.evaluated.values())  # val with shuffled expressions, and the tests
    if key.method == SUPERVISED or not params.refine[key.method].unlabelled:
        return during + final
    return during + final + _measured_refs(params, counts, key.fraction)


def labels_fractions(params: Params, dataset: str) -> list[float]:
    """The fractions of the stages `labels` of a data set."""
    items = stages(params)["labels"].values()
    return [float(item["fraction"]) for item in items if item["dataset"] == dataset]


def labels_refs(params: Params, counts: Counts, fraction: float) -> int:
    """References that a stage `labels` predicts: val's, and those of the unlabelled part."""
    return counts.val_refs + _measured_refs(params, counts, fraction)


def _measured_refs(params: Params, counts: Counts, fraction: float) -> int:
    """Unlabelled references on which the quality of pseudo-labels is measured."""
    refs = counts.unlabelled[fraction][1]
    return min(params.evaluation.correction_refs or refs, refs)


def tune_hours(
    params: Params, counts: Counts, searches: int, expression: Spread, sample: Spread | None
) -> Spread | None:
    """Hours of the threshold searches: val's pseudo-labels and, if trials train, the trainings.

    None if it is not known: a search on labelled images trains burn-ins of its own.
    """
    if params.tune.on != "val":
        return None
    labels = expression.times(searches * counts.val_refs / 3600)
    if params.tune.objective != "training":
        return labels
    if sample is None:
        return None
    settings = params.mutual
    batch = (settings.labelled_batch + settings.unlabelled_batch) * params.runtime.accumulate
    trained = searches * params.tune.trials * params.tune.steps * batch
    return labels.plus(sample.times(trained / 3600))
