"""Figures of the searches: response curves with trainings, planes, slices, fronts, histories."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pandas as pd

from semires.evaluation.bootstrap import Interval
from semires.reporting.searches import Search
from semires.reporting.style import fix_style
from semires.reporting.thresholds import Thresholds
from semires.runs.key import fraction_name
from semires.tuning.curves import ALL_EQUAL
from semires.tuning.plots import (
    curves_figure,
    front_figure,
    history_figure,
    importances,
    importances_figure,
    plane_figure,
    slices_figure,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


CAPTIONS = {
    "plane": "overall IoU of the labels over both thresholds, with the trials on it.",
    "history": "the value of every trial, and the best one so far.",
    "importances": "share of the variation among good trials that each parameter explains "
    "(PED-ANOVA).",
    "slices": "short trainings over each parameter.",
    "front": "quality and share of the labels that the rule replaces: all trials, and those for "
    "which no other one is better in both, on the seen and on unseen labels.",
    "curves": "response of the refined labels to each threshold, the others at their best values; "
    "bands are 95 % intervals over images. Points, if any: students trained with these thresholds.",
}


def caption(stem: str) -> str:
    """The caption of a figure of :func:`threshold_figures`."""
    if stem.startswith("thresholds-"):
        return CAPTIONS["plane" if stem.endswith("-plane") else "curves"]
    return CAPTIONS[next(part for part in stem.split("-") if part in CAPTIONS)]


def threshold_figures(results: Thresholds) -> dict[str, Figure]:
    """File stem to figure, for the searches on val at one fraction of each data set.

    The fraction is that with the most trainings to show, of equal ones the first. Searches by short
    trainings, at any fraction, have slices in place of curves.
    """
    fix_style()
    shown = _shown(results)
    drawn: dict[str, Figure] = {}
    for name, search in shown.items():
        if not search.of_labels:
            drawn[f"search-slices-{name}"] = slices_figure(search.drawn)
            continue
        drawn[f"thresholds-{name}"] = curves_figure(
            search.curves, search.parts, search.given, search.best, _students(results, search)
        )
        if (plane := search.plane) is not None:
            names = {f"params_{name}": name for name in search.best}
            trials = search.trials[list(names)].rename(columns=names).to_dict("records")
            drawn[f"thresholds-{name}-plane"] = plane_figure(
                plane, search.drawn.unit, search.given, search.best, trials
            )
    fronts = {name: front for name, s in shown.items() if (front := s.front) is not None}
    for name, front in fronts.items():
        search = shown[name]
        parts = (search.parts, search.tables, search.given, search.best)
        stem = "front" if len(fronts) == 1 else f"front-{name}"
        drawn[stem] = front_figure(search.trials, front, *parts)
    if shown:
        drawn["search-history"] = history_figure({n: s.drawn for n, s in shown.items()})
    shares = {name: found for name, s in shown.items() if (found := importances(s.drawn))}
    if shares:
        drawn["search-importances"] = importances_figure(shares)
    return drawn


def _shown(results: Thresholds) -> dict[str, Search]:
    """The searches of the figures, by name: the method and, after the first one, the data set."""
    counts = Counter(
        (t.search.key.dataset, t.search.key.fraction) for t in results.trained if t.students
    )
    searches = [c.search for c in results.comparisons if c.search is not None]
    labels = [s for s in searches if s.on_val and s.of_labels and s.best]
    found: dict[str, Search] = {}
    for position, dataset in enumerate(dict.fromkeys(s.key.dataset for s in searches)):
        here = [search for search in labels if search.key.dataset == dataset]
        fractions = dict.fromkeys(search.key.fraction for search in here)
        fraction = max(fractions, key=lambda f: counts[dataset, f], default=None)
        chosen = [search for search in here if search.key.fraction == fraction]
        chosen += [s for s in searches if s.key.dataset == dataset and not s.of_labels]
        suffix = f"-{dataset}" if position else ""
        for search in chosen:
            name = search.key.label + suffix
            if name in found:
                name += f"-{fraction_name(search.key.fraction)}"
            found[name] = search
    return found


def _students(results: Thresholds, search: Search) -> pd.DataFrame | None:
    """Val oIoU of the trainings whose thresholds lie on a curve of the search."""
    name = ALL_EQUAL if len(search.best) > 1 else next(iter(search.best))
    points: list[tuple[float, Interval]] = [
        (t.value, t.students["oIoU"]) for t in results.trained if t.search is search and t.students
    ]
    tuned = next(c.students["val", "oIoU"].best for c in results.comparisons if c.search is search)
    if tuned is not None and len(search.best) == 1:
        points.append((search.best[name], tuned))
    rows = [
        {"threshold": name, "value": at, "oIoU": v.value, "low": v.low, "high": v.high}
        for at, v in points
    ]
    return pd.DataFrame(rows) if rows else None
