"""Does tuning the thresholds help? The searches beside the trainings with what they found.

Three tables. *Thresholds*: each search, its best values, the labels on the images that the trials
used and on others, and students trained with the paper's and with the best values. *Transfer*:
thresholds that one search found, on the labels of another. *Trained values*: the trainings of the
paper's Table 3 beside the labels with the same thresholds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from semires.config.grid import search_of
from semires.config.method import Method
from semires.config.schema import Params
from semires.evaluation.bootstrap import Interval, confidence_interval, paired_difference
from semires.reporting.claims import NOT_RUN, verdict_of
from semires.reporting.definitions import TableRow, evaluated
from semires.reporting.records import Records
from semires.reporting.searches import Search, label_sums, read_searches
from semires.reporting.selection import Selection, Value
from semires.runs.key import RunKey, fraction_name

METRICS = ("oIoU", "mIoU")


@dataclass(frozen=True)
class Change:
    """A metric with the paper's values, with the best ones, and the paired difference.

    None where a run is missing.
    """

    paper: Interval | None = None
    best: Interval | None = None
    difference: Interval | None = None


@dataclass(frozen=True)
class Comparison:
    """One search: ``labels`` by part and metric, ``students`` by split and metric.

    ``tuned`` is the method that is trained with the result, None if there is none. ``judged`` is
    the split of the verdict: one that the search has not seen.
    """

    key: RunKey
    search: Search | None
    labels: dict[tuple[str, str], Change]
    students: dict[tuple[str, str], Change]
    tuned: str | None
    judged: str

    def verdict(self, metric: str = "oIoU") -> str:
        """The verdict on "tuning helps": the students' difference on ``judged``."""
        difference = self.students.get((self.judged, metric), Change()).difference
        if difference is None:
            return NOT_RUN
        return verdict_of(difference.low, difference.high)


@dataclass(frozen=True)
class Transfer:
    """Thresholds of ``origin`` (None: the paper's) on the held-out labels of ``target``."""

    origin: Search | None
    target: Search
    value: Interval
    difference: Interval


@dataclass(frozen=True)
class Trained:
    """A training with the thresholds ``value`` beside the labels of all of val with the same.

    ``labels`` and ``students`` hold a number for each metric; a missing one has no run.
    """

    search: Search
    method: str
    value: float
    labels: dict[str, Interval]
    students: dict[str, Value]


@dataclass(frozen=True)
class Thresholds:
    """Everything that the report says about the searches."""

    comparisons: list[Comparison]
    transfers: list[Transfer]
    trained: list[Trained]


def compare_thresholds(params: Params, records: Records) -> Thresholds:
    """Read the study's searches and the trainings that belong to them."""
    found = read_searches(params)
    selection = Selection(params, records)
    done = [search for search in found.values() if search is not None]
    return Thresholds(
        [_comparison(params, selection, key, search) for key, search in found.items()],
        list(_transfers(selection, done)),
        [trained for search in done for trained in _trained(params, selection, search)],
    )


def _comparison(
    params: Params, selection: Selection, key: RunKey, search: Search | None
) -> Comparison:
    labels = {}
    if search is not None:
        for (part, table), metric in product(search.tables.items(), METRICS):
            paper, best = (label_sums([table], at, metric) for at in (search.given, search.best))
            labels[part, metric] = Change(
                confidence_interval([paper], selection.samples),
                confidence_interval([best], selection.samples),
                paired_difference([best], [paper], selection.samples),
            )
    tuned = next(iter(_tuned_methods(params, key)), None)
    names = (_paper_method(params, key.method), tuned)
    splits = evaluated(params, key.dataset)
    students = {
        (split, metric): _students(selection, key, names, split, metric)
        for split, metric in product(splits, METRICS)
    }
    judged = next((split for split in splits if split != "val"), "val")
    return Comparison(key, search, labels, students, tuned, judged)


def _students(
    selection: Selection, key: RunKey, names: tuple[str | None, str | None], split: str, metric: str
) -> Change:
    """Trainings of two methods, with the paper's and with the best thresholds."""
    paper, best = (
        TableRow(label=name, method=name, source=key.source) if name else None for name in names
    )
    at = (key.dataset, key.fraction, split, metric)
    return Change(
        selection.value(paper, *at) if paper else None,
        selection.value(best, *at) if best else None,
        selection.difference((best, paper), *at) if paper and best else None,
    )


def _tuned_methods(params: Params, key: RunKey) -> list[str]:
    """The methods that are trained with a search's thresholds."""
    runs = {name: dataclasses.replace(key, method=name) for name in params.refine}
    return [name for name, run in runs.items() if search_of(params, run) == key]


def _paper_method(params: Params, name: str) -> str | None:
    """The method with the same settings and the thresholds of params.yaml."""
    wanted = _settings(params.refine[name])
    return next(
        (
            other
            for other, method in params.refine.items()
            if method.thresholds == "paper" and _settings(method) == wanted
        ),
        None,
    )


def _settings(method: Method, thresholds: bool = True) -> dict[str, object]:
    """What a training depends on, without the origin of its thresholds."""
    values = method.model_dump(exclude={"thresholds", "overrides"})
    if not thresholds:
        values = {k: v for k, v in values.items() if k not in method.threshold_values}
    kept = {k: v for k, v in method.overrides.items() if not k.startswith("tune.")}
    return {**values, "overrides": kept}


def _transfers(selection: Selection, done: list[Search]) -> Iterator[Transfer]:
    """Every search's thresholds on the held-out half of val of every search of the strategy.

    A search with two objectives has the same labels as one without the share, and is left out.
    """
    origins = [search for search in done if search.summary["objective"] == "labels"]
    for target in (search for search in origins if search.on_val):
        table = target.tables["held_out"]
        paper = label_sums([table], target.given, "oIoU")
        for origin in (None, *(s for s in origins if s.strategy == target.strategy)):
            sums = label_sums([table], origin.best if origin else target.given, "oIoU")
            value = confidence_interval([sums], selection.samples)
            difference = paired_difference([sums], [paper], selection.samples)
            yield Transfer(origin, target, value, difference)


def _trained(params: Params, selection: Selection, search: Search) -> Iterator[Trained]:
    """The methods that differ from the searched one in their thresholds alone, all equal.

    None for a search that is not one of the labels of val.
    """
    if not (search.on_val and search.of_labels):
        return
    key, wanted = search.key, _settings(params.refine[search.key.method], thresholds=False)
    tables = list(search.tables.values())
    found = []
    for name, method in params.refine.items():
        values = set(method.threshold_values.values())
        same = _settings(method, thresholds=False) == wanted
        same &= not method.overrides  # an override makes an entry for another search
        if same and method.thresholds == "paper" and len(values) == 1:
            found.append((next(iter(values)), name))
    for value, name in sorted(found):
        at = dict.fromkeys(search.given, value)
        row = TableRow(label=name, method=name, source=key.source)
        labels, students = {}, {}
        for metric in METRICS:
            sums = label_sums(tables, at, metric)
            labels[metric] = confidence_interval([sums], selection.samples)
            number = selection.value(row, key.dataset, key.fraction, "val", metric)
            if number is not None:
                students[metric] = number
        yield Trained(search, name, value, labels, students)


def where(search: Search) -> str:
    """A search's fraction and, if they are not the default ones, its model, source and images."""
    key, images = search.key, "" if search.on_val else search.parts["seen"]
    parts = (f"{fraction_name(key.fraction)} %", key.model, key.source, images)
    return ", ".join(part for part in parts if part)
