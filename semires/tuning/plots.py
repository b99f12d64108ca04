"""Plots of a search as PNG: history, response curves, plane, slices, importances."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from semires.tuning.results import Result

UNIT = {"labels": "oIoU of refined labels, seen half (%)", "training": "val oIoU, seen half (%)"}
HALVES = {"seen": "tab:blue", "held_out": "tab:orange"}
PAPER = {"color": "tab:red", "ls": "--", "lw": 1, "label": "params.yaml (paper)"}
BEST = {"color": "tab:green", "lw": 1, "label": "best"}


def draw(result: Result, folder: Path) -> None:
    """Write the plots.

    ``history.png``, ``curves.png`` and ``importances.png`` always; ``plane.png`` for a strategy
    with two thresholds; ``slices.png`` for the objective ``training``.
    """
    import matplotlib as mpl

    style = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    with mpl.rc_context(style):
        _history(result, folder / "history.png")
        _curves(result, folder / "curves.png")
        _importances(result, folder / "importances.png")
        if result.plane is not None:
            _plane(result, result.plane, folder / "plane.png")
        if result.params.tune.objective == "training":
            _slices(result, folder / "slices.png")


def _figure(columns: int = 1, rows: int = 1) -> tuple[Any, Any]:
    """A figure without pyplot, so that no display or global state is involved."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * columns, 3.1 * rows), layout="constrained", dpi=120)
    return figure, figure.subplots(rows, columns, squeeze=False).ravel()


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, metadata={"Software": None})  # the same bytes for the same content


def _history(result: Result, path: Path) -> None:
    """The value of every trial, and the best one so far."""
    figure, (axes,) = _figure()
    table = result.trial_table.dropna(subset=["value"])
    axes.plot(table["number"], table["value"], ".", color="tab:gray", label="trial")
    best = table["value"].cummax()
    axes.step(table["number"], best, where="post", color="tab:blue", label="best")
    if result.params.tune.objective == "labels":
        axes.axhline(result.summary["seen"]["paper"]["oIoU"], **PAPER)
    axes.set(xlabel="trial", ylabel=UNIT[result.params.tune.objective])
    axes.legend(frameon=False)
    _save(figure, path)


def _curves(result: Result, path: Path) -> None:
    """The oIoU with its interval over images (first row) and the mIoU of the labels."""
    figure, panels = _figure(len(result.thresholds), 2)
    for i, name in enumerate(result.thresholds):
        upper, lower = panels[i], panels[i + len(result.thresholds)]
        for half, colour in HALVES.items():
            table = result.curves.query("half == @half and threshold == @name")
            label = f"{half.replace('_', ' ')} half"
            upper.fill_between(
                table["value"], table["low"], table["high"], color=colour, alpha=0.15, lw=0
            )
            upper.plot(table["value"], table["oIoU"], color=colour, label=label)
            lower.plot(table["value"], table["mIoU"], color=colour, label=label)
        for panel, metric in ((upper, "oIoU"), (lower, "mIoU")):
            panel.axvline(result.at(result.given)[name], **PAPER)
            panel.axvline(result.at(result.best)[name], **BEST)
            panel.set(xlabel=name, ylabel=f"{metric} of refined labels (%)", xlim=(0, 1))
    panels[0].legend(frameon=False, fontsize=7)
    _save(figure, path)


def _plane(result: Result, plane: pd.DataFrame, path: Path) -> None:
    """The oIoU of the refined labels over both thresholds, on the half that the trials used."""
    figure, (axes,) = _figure()
    first, second = result.thresholds
    surface = plane.pivot_table(index=second, columns=first, values="oIoU")
    drawn = axes.contourf(surface.columns, surface.index, surface, levels=20, cmap="viridis")
    figure.colorbar(drawn, ax=axes, label=UNIT["labels"])
    trials = [result.at(trial.params) for trial in result.trials]
    axes.plot([t[first] for t in trials], [t[second] for t in trials], ".", color="white", ms=2)
    for label, point, style in ((PAPER["label"], result.given, "rs"), ("best", result.best, "g*")):
        values = result.at(point)
        axes.plot(values[first], values[second], style, ms=8, label=label)
    axes.set(xlabel=first, ylabel=second, xlim=(0, 1), ylim=(0, 1))
    axes.legend(fontsize=7)
    _save(figure, path)


def _slices(result: Result, path: Path) -> None:
    """The trials' values over each parameter."""
    columns = min(len(result.axes), 3)
    figure, panels = _figure(columns, math.ceil(len(result.axes) / columns))
    table = result.trial_table.dropna(subset=["value"])
    for panel, (name, axis) in zip(panels, result.axes.items(), strict=False):
        points = table[f"params_{name}"], table["value"]
        panel.plot(*points, ".", color="tab:gray", ms=3, label="trial")
        panel.axvline(axis.given, **PAPER)
        panel.axvline(result.best[name], **BEST)
        panel.set(xlabel=name, ylabel=UNIT[result.params.tune.objective])
        panel.set_xscale("log" if axis.log else "linear")
    panels[0].legend(frameon=False, fontsize=7)
    for panel in panels[len(result.axes) :]:
        panel.set_visible(False)
    _save(figure, path)


def importances(result: Result) -> dict[str, float]:
    """Share of the value's variation among good trials that each parameter explains (PED-ANOVA).

    All zeros if it is undefined: with one parameter, or too few different trials.
    """
    import optuna

    unknown = dict.fromkeys(result.axes, 0.0)
    completed = [t for t in result.trials if t.state.name == "COMPLETE"]
    if len(result.axes) < 2 or len(completed) < 10:
        return unknown
    study = optuna.create_study(direction="maximize")
    study.add_trials(
        [
            optuna.trial.create_trial(params=t.params, distributions=t.distributions, value=t.value)
            for t in completed
        ]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return {**unknown, **optuna.importance.get_param_importances(study)}
        except (ValueError, RuntimeError):
            return unknown


def _importances(result: Result, path: Path) -> None:
    figure, (axes,) = _figure()
    shares = importances(result)
    names = sorted(shares, key=lambda name: shares[name])
    axes.barh(names, [shares[name] for name in names], color="tab:blue")
    axes.set(xlabel="importance (PED-ANOVA)", xlim=(0, 1))
    if not any(shares.values()):
        axes.text(
            0.5, 0.5, "one parameter, or too few trials", ha="center", transform=axes.transAxes
        )
    _save(figure, path)
