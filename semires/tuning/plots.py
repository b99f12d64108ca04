"""Plots of a search as PNG: history, slices, contour of CPI's two thresholds, importances.

For the objective ``labels`` the curves and the contour are the objective itself, computed on a
grid, not an interpolation of trials: it costs a second.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from semires.tuning.results import Result

UNIT = {"labels": "oIoU of refined labels, seen half (%)", "training": "val oIoU (%)"}
CURVE_POINTS = 101
CONTOUR_POINTS = 41


def draw(result: Result, folder: Path) -> None:
    """Write ``history.png``, ``slices.png``, ``importances.png`` and, for CPI, ``contour.png``."""
    import matplotlib as mpl

    style = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    with mpl.rc_context(style):
        _history(result, folder / "history.png")
        _slices(result, folder / "slices.png")
        _importances(result, folder / "importances.png")
        if {"threshold_u", "threshold_o"} <= set(result.axes):
            _contour(result, folder / "contour.png")


def _figure(columns: int = 1, rows: int = 1) -> tuple[Any, Any]:
    """A figure without pyplot, so that no display or global state is involved."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * columns, 3.1 * rows), layout="constrained", dpi=120)
    return figure, figure.subplots(rows, columns, squeeze=False).ravel()


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, metadata={"Software": None})  # the same bytes for the same content


def _value(result: Result, half: str, values: Mapping[str, float]) -> float:
    from semires.tuning.objective import summarise

    table = result.tables[half]
    return summarise(table.outcome(values), table.labels)["oIoU"]


def _history(result: Result, path: Path) -> None:
    figure, (axes,) = _figure()
    table = result.trial_table.dropna(subset=["value"])
    axes.plot(table["number"], table["value"], ".", color="tab:gray", label="trial")
    axes.step(
        table["number"], table["value"].cummax(), where="post", color="tab:blue", label="best"
    )
    if result.params.tune.objective == "labels":
        given = _value(result, "seen", result.given)
        axes.axhline(given, color="tab:red", ls="--", lw=1, label="params.yaml (paper)")
    axes.set(xlabel="trial", ylabel=UNIT[result.params.tune.objective])
    axes.legend(frameon=False)
    _save(figure, path)


def _slices(result: Result, path: Path) -> None:
    columns = min(len(result.axes), 3)
    figure, panels = _figure(columns, math.ceil(len(result.axes) / columns))
    table = result.trial_table.dropna(subset=["value"])
    for panel, (name, axis) in zip(panels, result.axes.items(), strict=False):
        panel.plot(
            table[f"params_{name}"], table["value"], ".", color="tab:gray", ms=3, label="trial"
        )
        panel.axvline(axis.given, color="tab:red", ls="--", lw=1, label="params.yaml (paper)")
        panel.axvline(result.best[name], color="tab:green", lw=1, label="best")
        if result.params.tune.objective == "labels":
            grid = np.linspace(axis.low, axis.high, CURVE_POINTS)
            for half, style in (("seen", "-"), ("held_out", ":")):
                curve = [_value(result, half, {**result.best, name: float(x)}) for x in grid]
                label = f"{half.replace('_', ' ')} half"
                panel.plot(grid, curve, style, color="tab:blue", label=label)
        panel.set(xlabel=name, ylabel=UNIT[result.params.tune.objective])
        panel.set_xscale("log" if axis.log else "linear")
    panels[0].legend(frameon=False, fontsize=7)
    for panel in panels[len(result.axes) :]:
        panel.set_visible(False)
    _save(figure, path)


def _contour(result: Result, path: Path) -> None:
    """Overall IoU of the refined labels over both thresholds, on the half that trials saw."""
    figure, (axes,) = _figure()
    grid = np.linspace(0.0, 1.0, CONTOUR_POINTS)
    surface = [
        [_value(result, "seen", {"threshold_u": float(u), "threshold_o": float(o)}) for u in grid]
        for o in grid
    ]
    drawn = axes.contourf(grid, grid, surface, levels=20, cmap="viridis")
    figure.colorbar(drawn, ax=axes, label=UNIT["labels"])
    table = result.trial_table
    axes.plot(table["params_threshold_u"], table["params_threshold_o"], ".", color="white", ms=2)
    for values, marker, label in (
        (result.given, "rs", "params.yaml (paper)"),
        (result.best, "g*", "best"),
    ):
        axes.plot(values["threshold_u"], values["threshold_o"], marker, ms=8, label=label)
    axes.set(xlabel="threshold_u (CPI-U)", ylabel="threshold_o (CPI-O)", xlim=(0, 1), ylim=(0, 1))
    axes.legend(fontsize=7)
    _save(figure, path)


def importances(result: Result) -> dict[str, float]:
    """Share of the value's variation among good trials that each parameter explains (PED-ANOVA).

    All zeros where it cannot be told: one parameter, or hardly any differing trials.
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
