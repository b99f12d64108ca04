"""Figures from run records: curves, corrections, cost of labels, qualitative panels.

The same records give the same bytes (`semires.reporting.style`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from semires.config.schema import Params
from semires.files import read_json
from semires.reporting import quality, study
from semires.reporting.definitions import (
    FigureDefinition,
    PaperValues,
    counterpart,
    display_name,
    fractions_of,
)
from semires.reporting.panels import panel_figure
from semires.reporting.records import Records, Run, gains
from semires.reporting.style import fix_style, new_axes, style_of
from semires.runs.key import fraction_name
from semires.runs.layout import split_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SECONDS_PER_MASK = 79.1  # paper, appendix A: one mask drawn by hand
_BETTER, _WORSE, _SAME, _NONE = "#0072B2", "#D55E00", "#999999", "#E5E5E5"


class FigureMaker:
    """Draws definitions from records; every drawing method gives {file stem: Figure}."""

    def __init__(self, params: Params, records: Records, paper: PaperValues) -> None:
        fix_style()
        self.params, self.records, self.paper = params, records, paper

    def draw(self, name: str, definition: FigureDefinition) -> dict[str, Figure]:
        """The figures of one definition, one or more per data set; empty without runs."""
        kinds: dict[str, Callable[[FigureDefinition, str], dict[str, Figure]]] = {
            "curves": self.curves,
            "corrections": self.corrections,
            "panels": self.panels,
            "cost": self.cost,
            "quality": self.quality,
        }
        drawn: dict[str, Figure] = {}
        for position, dataset in enumerate(study.datasets(self.params)):
            stem = name if position == 0 else f"{name}-{dataset}"
            for suffix, figure in kinds[definition.kind](definition, dataset).items():
                drawn[stem + suffix] = figure
        return drawn

    def curves(self, definition: FigureDefinition, dataset: str) -> dict[str, Figure]:
        """Val oIoU by step of mutual learning; one panel per fraction, and the paper's curves."""
        fractions = [
            fraction
            for fraction in fractions_of(self.params, definition)
            if any(self.records.find(dataset, fraction, m) for m in definition.methods)
        ]
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
                    handles.setdefault(style_of(method)[3], line)
            if starts:
                start = float(np.mean(list(starts.values())))
                line = axis.axhline(start, color="black", ls=":", lw=1)
                handles.setdefault("after burn-in", line)
            axis.set_title(
                f"{display_name(self.params, dataset)}, {fraction_name(fraction)} % labelled"
            )
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
        theirs = {
            method.lower(): [v["positive"], v["negative"], 0, v["none(PWA)"]]
            for method, v in self.paper.corrections(counterpart(self.params, dataset)).items()
        }
        figure, axes = new_axes(2 if theirs else 1, height=2.5, width=3.6)
        title = f"{display_name(self.params, dataset)}, {fraction_name(fraction)} % labelled"
        handles = _stacked(axes[0], found, title)
        if theirs:
            name = counterpart(self.params, dataset) or "RefCOCO"
            _stacked(axes[1], theirs, f"Paper: {name}, 1 %")
        axes[0].set_ylabel("pseudo-labels (%)")
        _legend(figure, handles)
        return {"": figure}

    def cost(self, definition: FigureDefinition, dataset: str) -> dict[str, Figure]:
        """Val oIoU against hours of labelling, at the paper's 79.1 s per mask."""
        fractions = fractions_of(self.params, definition)
        ours: dict[str, list[tuple[float, float, str]]] = {}
        for method in definition.methods:
            for fraction in fractions:
                values = list(self._oious(dataset, fraction, method).values())
                refs = labelled_refs(
                    self.records.find(dataset, fraction, method), dataset, fraction
                )
                if values and refs:
                    hours = refs * SECONDS_PER_MASK / 3600
                    point = (hours, float(np.mean(values)), f"{fraction_name(fraction)} %")
                    ours.setdefault(method, []).append(point)
        if not ours:
            return {}
        name = counterpart(self.params, dataset) or "RefCOCO"
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
        """Val oIoU of the student against the oIoU of its labels; one panel per fraction."""
        split = next(s for s in self.params.datasets[dataset].splits if s != "train")
        found = {
            fraction: points
            for fraction in fractions_of(self.params, definition)
            if (points := quality.points(
                self.records, dataset, fraction, definition.methods, split
            ))
        }  # fmt: skip
        if not found:
            return {}
        figure, axes = new_axes(len(found), height=3.4, width=3.6)
        for axis, (fraction, points) in zip(axes, found.items(), strict=True):
            quality.draw(axis, points, display_name(self.params, dataset), fraction)
        axes[0].set_ylabel(f"{split} oIoU of the student (%)")
        return {"": figure}

    def _oious(self, dataset: str, fraction: float, method: str) -> dict[int, float]:
        """Val oIoU by seed."""
        split = next(s for s in self.params.datasets[dataset].splits if s != "train")
        runs = self.records.find(dataset, fraction, method)
        return {run.key.seed: s.percent for run in runs if (s := run.sums(split)) is not None}

    def _paper_cost(
        self, definition: FigureDefinition, name: str
    ) -> dict[str, list[tuple[float, float, str]]]:
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
        fractions = self._filled(definition, dataset)
        drawn: dict[str, Figure] = {}
        for fraction in fractions:
            for method in definition.methods:
                runs = self.records.find(dataset, fraction, method)
                if runs and runs[0].panels:
                    more = f"-{fraction_name(fraction)}" if len(fractions) > 1 else ""
                    drawn[f"-{method}{more}"] = panel_figure(runs[0].panels, self._title(runs[0]))
        return drawn

    def overview(self, definition: FigureDefinition) -> Figure | None:
        """A short qualitative figure: one best, one worst and two random samples."""
        dataset = study.datasets(self.params)[0]
        for fraction in self._filled(definition, dataset):
            for method in definition.methods:
                runs = self.records.find(dataset, fraction, method)
                if runs and (panels := runs[0].panels):
                    rules = [str(rule) for rule in panels["rule"]]
                    first = [rules.index(rule) for rule in dict.fromkeys(rules)]
                    rest = [i for i in range(len(rules)) if i not in first]
                    rows = first + [i for i in rest if rules[i] == rules[first[-1]]][:1]
                    chosen = {name: array[rows] for name, array in panels.items()}
                    return panel_figure(chosen, self._title(runs[0]))
        return None

    def _title(self, run: Run) -> str:
        """The title of a figure that shows one run."""
        dataset, fraction = run.key.dataset, fraction_name(run.key.fraction)
        return (
            f"{style_of(run.key.method)[3]} on {display_name(self.params, dataset)}, "
            f"{fraction} % labelled, seed {run.key.seed}"
        )

    def _filled(self, definition: FigureDefinition, dataset: str) -> list[float]:
        """The definition's fractions; where none has a run, the study's largest that has one."""
        wanted = fractions_of(self.params, definition)

        def has_run(fraction: float) -> bool:
            return any(self.records.find(dataset, fraction, m) for m in definition.methods)

        others = [f for f in reversed(study.fractions(self.params)) if has_run(f)]
        return wanted if any(map(has_run, wanted)) or not others else others[:1]


def labelled_refs(runs: list[Run], dataset: str, fraction: float) -> int | None:
    """Number of labelled references: from the run record, else from the versioned split."""
    for run in runs:
        stated = run.record.n_refs_labelled
        if stated:
            return int(stated)
    path = split_file(dataset, fraction)
    return int(read_json(path)["n_refs_labelled"]) if path.is_file() else None


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
    colour, marker, dash, _ = style_of(method)
    (line,) = axis.plot(steps, mean, color=colour, marker=marker, ls=dash, ms=4, lw=1.4)
    if len(runs) > 1:
        spread = (by_step - by_step.iloc[0]).std(axis=1).to_numpy()
        axis.fill_between(steps, mean - spread, mean + spread, color=colour, alpha=0.15, lw=0)
    return line


def _cost_lines(
    axis: Axes, lines: dict[str, list[tuple[float, float, str]]], title: str
) -> dict[str, Any]:
    handles: dict[str, Any] = {}
    for method, points in lines.items():
        colour, marker, dash, label = style_of(method)
        hours, values, _ = zip(*points, strict=True)
        (handles[label],) = axis.plot(hours, values, color=colour, marker=marker, ls=dash, ms=5)
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
        colour, marker, dash, _ = style_of(name.lower())
        epochs = range(1, len(curve) + 1)
        axis.plot(epochs, curve, color=colour, marker=marker, ls=dash, ms=4, lw=1.4)
    axis.set_title("Paper: RefCOCO, 1 % labelled")
    axis.set_xlabel("epoch")
    axis.set_xticks(range(2, max(map(len, values.values())) + 1, 2))
    axis.set_facecolor("#f4f4f4")


def _change_counts(runs: list[Run]) -> list[int]:
    """[better, worse, same, not matched] over all seeds, by IoU with the hidden ground truth."""
    counts = np.zeros(4, np.int64)
    for run in runs:
        table = run.corrections
        if table is None:
            continue
        gain, matched = gains(table), table["matched"].to_numpy(bool)
        counts += [int((matched & (gain == s)).sum()) for s in (1, -1, 0)] + [int((~matched).sum())]
    return [int(c) for c in counts]


def _stacked(axis: Axes, counts: dict[str, list[int]], title: str) -> dict[str, Any]:
    kinds = [
        ("better", _BETTER, "white"),
        ("worse", _WORSE, "black"),
        ("same", _SAME, "black"),
        ("not matched (PWA)", _NONE, "black"),
    ]
    handles: dict[str, Any] = {}
    names = [style_of(method)[3] for method in counts]
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
    count = f" (n = {totals.pop():,})" if len(totals) == 1 else ""
    axis.set_title(title + count)
    axis.set_ylim(0, 100)
    axis.grid(visible=False)
    return handles
