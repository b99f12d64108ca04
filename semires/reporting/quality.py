"""The figure of label quality against student quality, one point for each method."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from semires.reporting.records import Records, Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def points(
    records: Records, dataset: str, fraction: float, methods: list[str], split: str
) -> dict[str, tuple[float, float]]:
    """For each method with runs: oIoU of its refined labels and of its student, percent.

    The labels are those of the burn-in teacher on unlabelled references (`pseudo` in metrics.json).
    Both numbers are means over seeds.
    """
    found = {}
    for method in methods:
        runs = records.find(dataset, fraction, method)
        pairs = [pair for run in runs if (pair := _pair(run, split)) is not None]
        if pairs:
            label, student = np.mean(pairs, axis=0)
            found[method] = (float(label), float(student))
    return found


def _pair(run: Run, split: str) -> tuple[float, float] | None:
    label, sums = run.metrics.get("pseudo", {}).get("refined_oIoU"), run.sums(split)
    return None if label is None or sums is None else (float(label), sums.percent)


def draw(axis: Axes, found: dict[str, tuple[float, float]], title: str) -> None:
    """Draw the points of one fraction, each with the name of its method."""
    from semires.reporting.style import style_of

    for method, (label, student) in found.items():
        colour, marker, _, name = style_of(method)
        axis.plot(label, student, marker, color=colour, ms=6)
        axis.annotate(name, (label, student), (4, 3), textcoords="offset points", fontsize=6)
    axis.margins(x=0.2, y=0.1)
    axis.set_title(title)
    axis.set_xlabel("oIoU of the labels (%)")
