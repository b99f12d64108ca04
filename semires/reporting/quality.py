"""The figure of label quality against student quality, one point for each method.

Both are differences to one method, on the seeds that the two share. Equal seeds start from the same
burn-in and are evaluated on the same images, so that methods with other seeds are compared fairly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from semires.config.schema import Params
from semires.evaluation.bootstrap import Interval, paired_difference
from semires.reporting.definitions import FigureDefinition, evaluated, fractions_of, section_title
from semires.reporting.formats import signed
from semires.reporting.records import Records, Run
from semires.reporting.style import distinct_styles, name_of, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Point:
    """A method minus another one on the seeds that both have, in percentage points.

    ``label``: oIoU of the refined labels of the burn-in teacher, on unlabelled references.
    ``student``: oIoU of the trained teacher, with its 95 % interval over images and seeds.
    """

    label: float
    student: Interval
    seeds: tuple[int, ...]


def points(
    records: Records,
    place: tuple[str, float],
    methods: list[str],
    against: str,
    split: str,
    samples: int,
) -> dict[str, Point]:
    """The point of each method that shares a seed with ``against``, which is one of them at 0.

    Args:
        records: all runs.
        place: data set and labelled fraction (percent).
        methods: the methods, in order.
        against: the method that is subtracted.
        split: the split of the students' evaluation.
        samples: resamples of the bootstrap.
    """
    by_seed = {run.key.seed: run for run in _runs(records, place, against, split)}
    found = {}
    for method in methods:
        runs = _runs(records, place, method, split)
        pairs = [(run, by_seed[run.key.seed]) for run in runs if run.key.seed in by_seed]
        if pairs and (point := _difference(pairs, split, samples)) is not None:
            found[method] = point
    return found


def _runs(records: Records, place: tuple[str, float], method: str, split: str) -> list[Run]:
    """The runs with labels and an evaluation on the split."""
    return [run for run in records.find(*place, method) if run.labels and run.sums(split)]


def _difference(pairs: list[tuple[Run, Run]], split: str, samples: int) -> Point | None:
    ours, theirs = zip(*pairs, strict=True)
    first, second = ([s for run in runs if (s := run.sums(split))] for runs in (ours, theirs))
    labels = [np.mean([v[0] for run in runs if (v := run.labels)]) for runs in (ours, theirs)]
    try:
        student = paired_difference(first, second, samples)
    except ValueError:  # evaluated on different expressions
        return None
    return Point(float(labels[0] - labels[1]), student, tuple(run.key.seed for run in ours))


def rank_correlation(found: Mapping[str, Point]) -> float | None:
    """Spearman's rank correlation of labels and students.

    None for less than three methods, or if one of the two does not vary.
    """
    pairs = [(point.label, point.student.value) for point in found.values()]
    value = float(pd.DataFrame(pairs).corr(method="spearman", min_periods=3).iloc[0, 1])
    return None if np.isnan(value) else value


def figure(
    params: Params, records: Records, definition: FigureDefinition, dataset: str
) -> Figure | None:
    """Students against labels, a panel for each fraction; None where less than two methods ran.

    Args:
        params: the active parameters.
        records: all runs.
        definition: the figure's methods and fractions, and the method to compare with.
        dataset: a data set of the study.
    """
    against = definition.against or definition.methods[0]
    split = evaluated(params, dataset)[0]
    samples = params.evaluation.bootstrap_samples
    found = {
        fraction: points(records, (dataset, fraction), definition.methods, against, split, samples)
        for fraction in fractions_of(params, definition)
    }
    found = {fraction: each for fraction, each in found.items() if len(each) > 1}
    if not found:
        return None
    shown = [m for m in definition.methods if any(m in each for each in found.values())]
    styles = distinct_styles(shown)
    columns = min(4, 2 * len(found))
    height = 3.2 + 0.2 * -(-len(shown) // columns)  # of the panels, and of the legend's lines
    drawn, axes = new_axes(len(found), height, width=3.6)
    for axis, (fraction, each) in zip(axes, found.items(), strict=True):
        draw(axis, each, styles, each[against].seeds)
        title = section_title(params, dataset, fraction)
        axis.set_title(f"{title}\n{summary(each, each[against].seeds)}")
    name = name_of(against)
    for axis in axes:
        axis.set_xlabel(f"oIoU of the labels − {name}'s (points)")
    axes[0].set_ylabel(f"{split} oIoU of the student − {name}'s (points)")
    _legend(drawn, styles, columns)
    return drawn


def summary(found: Mapping[str, Point], seeds: tuple[int, ...]) -> str:
    """The rank correlation and the seeds of the points, in one line."""
    value = rank_correlation(found)
    others = dict.fromkeys(point.seeds for point in found.values() if point.seeds != seeds)
    text = f"{_seeds(seeds)}" + (f"; hollow: {' or '.join(map(_seeds, others))}" if others else "")
    return text if value is None else f"Spearman's ρ {signed(value)} of {len(found)}; {text}"


def _seeds(seeds: tuple[int, ...]) -> str:
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def draw(
    axis: Axes,
    found: Mapping[str, Point],
    styles: Mapping[str, tuple[str, str]],
    seeds: tuple[int, ...],
) -> None:
    """The points of one fraction with their intervals; hollow ones have other seeds than these."""
    axis.axhline(0, color="#999999", lw=0.8)
    axis.axvline(0, color="#999999", lw=0.8)
    for method, point in found.items():
        colour, marker = styles[method]
        axis.plot([point.label] * 2, [point.student.low, point.student.high], color=colour, lw=0.8)
        inside = colour if point.seeds == seeds else "white"
        axis.plot(point.label, point.student.value, marker, color=colour, mfc=inside, ms=6)
    axis.margins(x=0.1, y=0.1)


def _legend(drawn: Figure, styles: Mapping[str, tuple[str, str]], columns: int) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=colour, marker=marker, ls="none", ms=6)
        for colour, marker in styles.values()
    ]
    names = [name_of(method) for method in styles]
    drawn.legend(handles, names, loc="outside lower center", ncols=columns, frameon=False)
