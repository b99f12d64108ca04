"""Figures of the searches: response curves with the trainings beside them, and planes."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pandas as pd

from semires.evaluation.bootstrap import Interval
from semires.reporting.searches import Search
from semires.reporting.style import fix_style
from semires.reporting.thresholds import Thresholds
from semires.tuning.curves import ALL_EQUAL
from semires.tuning.plots import curves_figure, plane_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def threshold_figures(results: Thresholds) -> dict[str, Figure]:
    """File stem to figure, for the searches on val at one fraction of each data set.

    The fraction is that with the most trainings to show, of equal ones the first.
    """
    fix_style()
    counts = Counter(
        (t.search.key.dataset, t.search.key.fraction) for t in results.trained if t.students
    )
    searches = [c.search for c in results.comparisons if c.search is not None]
    searches = [s for s in searches if s.on_val and s.of_labels]
    drawn: dict[str, Figure] = {}
    datasets = list(dict.fromkeys(search.key.dataset for search in searches))
    for position, dataset in enumerate(datasets):
        here = [search for search in searches if search.key.dataset == dataset]
        fractions = dict.fromkeys(search.key.fraction for search in here)
        fraction = max(fractions, key=lambda f: counts[dataset, f])
        for search in (s for s in here if s.key.fraction == fraction):
            stem = f"thresholds-{search.key.label}" + (f"-{dataset}" if position else "")
            drawn[stem] = curves_figure(
                search.curves, search.parts, search.given, search.best, _students(results, search)
            )
            if (plane := search.plane) is not None:
                unit = f"oIoU of refined labels, {search.parts['seen']} (%)"
                names = {f"params_{name}": name for name in search.best}
                trials = search.trials[list(names)].rename(columns=names).to_dict("records")
                drawn[f"{stem}-plane"] = plane_figure(
                    plane, unit, search.given, search.best, trials
                )
    return drawn


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
