"""Figures from run records: curves, corrections, cost of labels, qualitative panels.

The same records give the same bytes (`semires.reporting.style`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from semires.config.schema import Params
from semires.evaluation.metrics import gains
from semires.reporting import quality
from semires.reporting.definitions import (
    FigureDefinition,
    PaperValues,
    counterpart,
    display_name,
    evaluated,
    fractions_of,
    section_title,
)
from semires.reporting.panels import panel_figure
from semires.reporting.plan import Plan
from semires.reporting.records import Records, Run
from semires.reporting.style import fix_style, name_of, new_axes, plot_method
from semires.runs.key import RunKey, fraction_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SECONDS_PER_MASK = 79.1  # paper, appendix A: one mask drawn by hand
Point = tuple[float, float, str]  # hours of labelling, val oIoU, labelled fraction


class FigureMaker:
    """Draws definitions from records; every drawing method gives {file stem: Figure}."""

    def __init__(self, params: Params, records: Records, paper: PaperValues) -> None:
        fix_style()
        self.params, self.records, self.paper = params, records, paper
        self.plan = Plan(params, paper)

    def draw(self, name: str, definition: FigureDefinition) -> dict[str, Figure]:
        """The figures of one definition, one or more per data set; empty without runs."""
        draw_kind: Callable[..., dict[str, Figure]] = getattr(self, definition.kind)
        drawn: dict[str, Figure] = {}
        for position, dataset in enumerate(self.params.study.datasets):
            stem = name if position == 0 else f"{name}-{dataset}"
            for suffix, figure in draw_kind(definition, dataset).items():
                drawn[stem + suffix] = figure
        return drawn

    def curves(self, definition: FigureDefinition, dataset: str) -> dict[str, Figure]:
        """Val oIoU by step of mutual learning; one panel per fraction, and the paper's curves."""
        wanted = fractions_of(self.params, definition)
        fractions = [f for f in wanted if self._has_run(definition, dataset, f)]
        if not fractions:
            return {}
        paper = self.paper.at(definition.paper) if definition.paper else None
        figure, axes = new_axes(len(fractions) + (1 if paper else 0), height=2.3)
        handles: dict[str, Any] = {}
        for axis, fraction in zip(axes, fractions, strict=False):
            starts = self._oious(dataset, fraction, "supervised")
            for method in definition.methods:
                runs = self.records.find(dataset, fraction, method)
                line = _curve(axis, method, runs, starts)
                if line is not None:
                    handles.setdefault(name_of(method), line)
            if starts:
                start = float(np.mean(list(starts.values())))
                line = axis.axhline(start, color="black", ls=":", lw=1)
                handles.setdefault("after burn-in", line)
            axis.set_title(section_title(self.params, dataset, fraction))
            axis.set_xlabel("step of mutual learning")
        if paper:
            _paper_curves(axes[len(fractions)], paper)
        for axis in axes:
            place = axis.get_subplotspec()
            if place is not None and place.is_first_col():
                axis.set_ylabel("val oIoU (%)")
        _legend(figure, handles)
        return {"": figure}

    def corrections(self, definition: FigureDefinition, dataset: str) -> dict[str, Figure]:
        """Shares of pseudo-labels that refinement made better, worse, or did not change."""
        fraction = self._filled(definition, dataset)[0]
        found = {
            method: _change_counts(runs)
            for method in definition.methods
            if (runs := self.records.find(dataset, fraction, method))
            and any(run.corrections is not None for run in runs)
        }
        if not found:
            return {}
        name = counterpart(self.params, dataset)
        theirs = {
            method.lower(): [v["positive"], v["negative"], 0, v["none(PWA)"]]
            for method, v in self.paper.corrections(name).items()
        }
        figure, axes = new_axes(2 if theirs else 1, height=2.5, width=3.6)
        handles = _stacked(axes[0], found, section_title(self.params, dataset, fraction))
        if theirs:
            _stacked(axes[1], theirs, f"Paper: {name}, 1 %")
        axes[0].set_ylabel("pseudo-labels (%)")
        _legend(figure, handles)
        return {"": figure}

    def cost(self, definition: FigureDefinition, dataset: str) -> dict[str, Figure]:
        """Val oIoU against hours of labelling, at the paper's 79.1 s per mask."""
        ours: dict[str, list[Point]] = {}
        fractions = self.plan.fractions(
            definition, lambda f: [RunKey(dataset, f, name, 0) for name in definition.methods]
        )
        for method, fraction in product(definition.methods, fractions):
            values = list(self._oious(dataset, fraction, method).values())
            if values:
                run = self.records.find(dataset, fraction, method)[0]
                hours = run.record.n_refs_labelled * SECONDS_PER_MASK / 3600
                point = (hours, float(np.mean(values)), f"{fraction_name(fraction)} %")
                ours.setdefault(method, []).append(point)
        if not ours:
            return {}
        name = counterpart(self.params, dataset)
        theirs = self._paper_cost(definition, name) if name == "RefCOCO" else {}
        figure, axes = new_axes(2 if theirs else 1, height=2.7, width=3.6)
        handles = _cost_lines(axes[0], ours, display_name(self.params, dataset))
        if theirs:
            _cost_lines(axes[1], theirs, f"Paper: {name}")
            axes[1].set_facecolor("#f4f4f4")
        axes[0].set_ylabel("val oIoU (%)")
        _legend(figure, handles)
        return {"": figure}

    def quality(self, definition: FigureDefinition, dataset: str) -> dict[str, Figure]:
        """The student's oIoU against the oIoU of its labels, both as differences to one method."""
        figure = quality.figure(self.params, self.records, definition, dataset)
        return {} if figure is None else {"": figure}

    def _oious(self, dataset: str, fraction: float, method: str) -> dict[int, float]:
        """Val oIoU by seed."""
        split = evaluated(self.params, dataset)[0]
        runs = self.records.find(dataset, fraction, method)
        return {run.key.seed: s.percent for run in runs if (s := run.sums(split)) is not None}

    def _paper_cost(self, definition: FigureDefinition, name: str) -> dict[str, list[Point]]:
        days = self.paper.at(definition.paper or "") or {}
        rows = {"supervised": "Supervised", "baseline": "Baseline", "cpi-u": "SemiRES"}
        lines = {}
        for method, row in rows.items():
            values = self.paper.at(f"table1/{name}/{row}") or {}
            points = [
                (float(days[fraction]) * 24, float(v["val"]), fraction.replace("%", " %"))
                for fraction, v in values.items()
                if fraction in days
            ]
            if points and method in definition.methods:
                lines[method] = points
        return lines

    def panels(self, definition: FigureDefinition, dataset: str) -> dict[str, Figure]:
        """Qualitative figures, one per method that has panels."""
        several = len(self._filled(definition, dataset)) > 1
        drawn: dict[str, Figure] = {}
        for run, panels in self._panels(definition, dataset):
            more = f"-{fraction_name(run.key.fraction)}" if several else ""
            drawn[f"-{run.key.method}{more}"] = panel_figure(panels, self._title(run))
        return drawn

    def overview(self, definition: FigureDefinition) -> Figure | None:
        """A short qualitative figure: one best, one worst and two random samples."""
        for run, panels in self._panels(definition, self.params.study.datasets[0]):
            rules = [str(rule) for rule in panels["rule"]]
            first = [rules.index(rule) for rule in dict.fromkeys(rules)]
            rest = [i for i in range(len(rules)) if i not in first]
            rows = first + [i for i in rest if rules[i] == rules[first[-1]]][:1]
            chosen = {name: array[rows] for name, array in panels.items()}
            return panel_figure(chosen, self._title(run))
        return None

    def _panels(
        self, definition: FigureDefinition, dataset: str
    ) -> Iterator[tuple[Run, dict[str, Any]]]:
        """The first seed's run of each fraction and method, with its panels, if it has any."""
        for at in product(self._filled(definition, dataset), definition.methods):
            runs = self.records.find(dataset, *at)
            if runs and (panels := runs[0].panels):
                yield runs[0], panels

    def _title(self, run: Run) -> str:
        """The title of a figure that shows one run."""
        shown = section_title(self.params, run.key.dataset, run.key.fraction)
        return f"{name_of(run.key.method)} on {shown}, seed {run.key.seed}"

    def _filled(self, definition: FigureDefinition, dataset: str) -> list[float]:
        """The definition's fractions; where none has a run, the study's largest that has one."""
        wanted = fractions_of(self.params, definition)
        if any(self._has_run(definition, dataset, f) for f in wanted):
            return wanted
        others = reversed(self.params.study.fractions)
        return [f for f in others if self._has_run(definition, dataset, f)][:1] or wanted

    def _has_run(self, definition: FigureDefinition, dataset: str, fraction: float) -> bool:
        return any(self.records.find(dataset, fraction, m) for m in definition.methods)


def _legend(figure: Figure, handles: dict[str, Any]) -> None:
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower center",
        ncols=min(len(handles), 6), frameon=False, handlelength=2.6,
    )  # fmt: skip


def _curve(axis: Axes, method: str, runs: list[Run], starts: dict[int, float]) -> Any:
    """Mean over seeds, starting at burn-in, and the deviation of the gain since burn-in."""
    import pandas as pd

    curves = {run.key.seed: run.history.set_index("step")["val/oIoU"].dropna() for run in runs}
    if not any(len(curve) for curve in curves.values()):
        return None
    by_step = pd.concat(curves, axis=1)
    by_step.loc[0] = pd.Series(starts, dtype=float)
    by_step = by_step.dropna(how="all").sort_index()
    steps, mean = by_step.index.to_numpy(), by_step.mean(axis=1).to_numpy()
    line = plot_method(axis, method, steps, mean, ms=4, lw=1.4)
    if len(runs) > 1:
        spread = (by_step - by_step.iloc[0]).std(axis=1).to_numpy()
        band = (mean - spread, mean + spread)
        axis.fill_between(steps, *band, color=line.get_color(), alpha=0.15, lw=0)
    return line


def _cost_lines(axis: Axes, lines: dict[str, list[Point]], title: str) -> dict[str, Any]:
    handles: dict[str, Any] = {}
    for method, points in lines.items():
        hours, values, _ = zip(*points, strict=True)
        handles[name_of(method)] = plot_method(axis, method, hours, values, ms=5)
    for hour, value, text in points:
        axis.annotate(
            text, (hour, value), (0, 7), textcoords="offset points", ha="center", fontsize=8
        )
    axis.set_xscale("log")
    axis.margins(x=0.1, y=0.16)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.xaxis.set_minor_formatter(lambda value, _: "")
    if points[-1][0] / points[0][0] < 30:
        axis.set_xticks([hour for hour, _, _ in points])
    axis.set_xlabel("hours of labelling (79.1 s per mask)")
    axis.set_title(title)
    return handles


def _paper_curves(axis: Axes, values: dict[str, list[float]]) -> None:
    for name, curve in values.items():
        epochs = range(1, len(curve) + 1)
        plot_method(axis, name.lower(), epochs, curve, ms=4, lw=1.4)
    axis.set_title("Paper: RefCOCO, 1 % labelled")
    axis.set_xlabel("epoch")
    axis.set_xticks(range(2, max(map(len, values.values())) + 1, 2))
    axis.set_facecolor("#f4f4f4")


def _change_counts(runs: list[Run]) -> list[int]:
    """[better, worse, same, not matched] over all seeds, by IoU with the hidden ground truth."""
    counts = np.zeros(4, np.int64)
    for table in (run.corrections for run in runs if run.corrections is not None):
        gain, matched = gains(table), table["matched"].to_numpy(bool)
        kinds = (*(matched & (gain == sign) for sign in (1, -1, 0)), ~matched)
        counts += [np.count_nonzero(kind) for kind in kinds]
    return [int(count) for count in counts]


def _stacked(axis: Axes, counts: dict[str, list[int]], title: str) -> dict[str, Any]:
    kinds = [
        ("better", "#0072B2", "white"),
        ("worse", "#D55E00", "black"),
        ("same", "#999999", "black"),
        ("not matched (PWA)", "#E5E5E5", "black"),
    ]
    handles: dict[str, Any] = {}
    names = [name_of(method) for method in counts]
    bottom = np.zeros(len(names))
    shares = np.array([np.array(c) * 100 / max(1, sum(c)) for c in counts.values()])
    for i, (label, colour, ink) in enumerate(kinds):
        bars = axis.bar(names, shares[:, i], 0.62, bottom=bottom, color=colour, ec="white")
        for x, (share, base) in enumerate(zip(shares[:, i], bottom, strict=True)):
            if share >= 6:
                text = f"{share:.0f}"
                height = base + share / 2
                axis.text(x, height, text, color=ink, ha="center", va="center_baseline", fontsize=8)
        bottom = bottom + shares[:, i]
        handles[label] = bars
    totals = {sum(c) for c in counts.values()}
    axis.set_title(title + (f" (n = {totals.pop():,})" if len(totals) == 1 else ""))
    axis.set_ylim(0, 100)
    axis.grid(visible=False)
    return handles
