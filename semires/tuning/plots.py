"""Plots of a search as PNG: history, response curves, plane, slices, importances."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semires.tuning.refined import replaced_quality
from semires.tuning.results import PARTS, value_of

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from semires.tuning.results import Result

COLOURS = {"seen": "tab:blue", "held_out": "tab:orange"}
PAPER = {"color": "tab:red", "ls": "--", "lw": 1, "label": "params.yaml (paper)"}
BEST = {"color": "tab:green", "lw": 1, "label": "best"}


def draw(result: Result, folder: Path) -> None:
    """Write the plots.

    ``history.png``, ``curves.png`` and ``importances.png`` always; ``plane.png`` for a strategy
    with two thresholds; ``front.png`` for two objectives; ``slices.png`` for the objective
    ``training``.
    """
    import matplotlib as mpl

    style = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    with mpl.rc_context(style):
        for name, figure in _plots(result):
            # Without the metadata, equal content has equal bytes.
            figure.savefig(folder / f"{name}.png", metadata={"Software": None})


def _plots(result: Result) -> Iterator[tuple[str, Figure]]:
    yield "history", _history(result)
    names = PARTS[result.params.tune.on]
    given, best = result.at(result.given), result.at(result.best)
    if len(result.curves):
        yield "curves", curves_figure(result.curves, names, given, best)
    if any((shares := importances(result)).values()):
        yield "importances", _importances(shares)
    if result.plane is not None:
        trials = [result.at(trial.params) for trial in result.trials]
        yield "plane", plane_figure(result.plane, _unit(result), given, best, trials)
    if result.front is not None:
        yield "front", _front(result, result.front)
    if result.params.tune.objective == "training":
        yield "slices", _slices(result)


def _unit(result: Result) -> str:
    """What the values of the trials are."""
    part = PARTS[result.params.tune.on]["seen"]
    training = result.params.tune.objective == "training"
    return f"val oIoU, {part} (%)" if training else f"oIoU of refined labels, {part} (%)"


def _figure(columns: int = 1, rows: int = 1) -> tuple[Figure, Any]:
    """A figure without pyplot, so that no display or global state is involved."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * columns, 3.1 * rows), layout="constrained", dpi=120)
    return figure, figure.subplots(rows, columns, squeeze=False).ravel()


def _history(result: Result) -> Figure:
    """The value of every trial, and the best one so far."""
    figure, (axes,) = _figure()
    table = result.trial_table.dropna(subset=["value"])
    axes.plot(table["number"], table["value"], ".", color="tab:gray", label="trial")
    best = table["value"].cummax()
    axes.step(table["number"], best, where="post", color="tab:blue", label="best")
    if result.params.tune.objective != "training":
        axes.axhline(result.summary["seen"]["paper"]["oIoU"], **PAPER)
    axes.set(xlabel="trial", ylabel=_unit(result))
    axes.legend(frameon=False)
    return figure


def curves_figure(
    curves: pd.DataFrame,
    names: Mapping[str, str],
    given: Mapping[str, float],
    best: Mapping[str, float],
    students: pd.DataFrame | None = None,
) -> Figure:
    """A row for each threshold: the labels' oIoU with its interval over images, and their mIoU.

    Args:
        curves: see `curves.response_curves`.
        names: of both parts of the labels.
        given: the thresholds of params.yaml (the paper's).
        best: the best thresholds.
        students: trainings to show in a third column: threshold, value, oIoU, low, high.
    """
    thresholds = list(dict.fromkeys(curves["threshold"]))
    columns = 2 if students is None else 3
    figure, panels = _figure(columns, len(thresholds))
    for i, name in enumerate(thresholds):
        row = panels[i * columns : (i + 1) * columns]
        for half, colour in COLOURS.items():
            table = curves[(curves["half"] == half) & (curves["threshold"] == name)]
            row[0].fill_between(
                table["value"], table["low"], table["high"], color=colour, alpha=0.15, lw=0
            )
            for panel, metric in zip(row, ("oIoU", "mIoU"), strict=False):
                panel.plot(table["value"], table[metric], color=colour, label=names[half])
                panel.set_ylabel(f"{metric} of refined labels (%)")
        if students is not None:
            _students(row[2], students[students["threshold"] == name])
        for panel in row:
            for values, style in ((given, PAPER), (best, BEST)):
                marked = {values[name]} if name in values else set(values.values())
                if len(marked) == 1:  # of ALL_EQUAL, only if they are equal
                    panel.axvline(marked.pop(), **style)
            panel.set(xlabel=name, xlim=(0, 1))
    panels[0].legend(frameon=False, fontsize=7)
    return figure


def _students(panel: Any, trainings: pd.DataFrame) -> None:
    """Val oIoU of trainings with their intervals, or an empty panel."""
    values = trainings["oIoU"]
    errors = [values - trainings["low"], trainings["high"] - values]
    panel.errorbar(trainings["value"], values, errors, fmt="ko", ms=4, capsize=2)
    panel.set_ylabel("val oIoU of students (%)")
    if not len(trainings):
        panel.text(0.5, 0.5, "no training", ha="center", transform=panel.transAxes)


def plane_figure(
    plane: pd.DataFrame,
    unit: str,
    given: Mapping[str, float],
    best: Mapping[str, float],
    trials: Sequence[Mapping[str, float]],
) -> Figure:
    """The oIoU of the refined labels over two thresholds, with the trials on it."""
    figure, (axes,) = _figure()
    first, second = best
    surface = plane.pivot_table(index=second, columns=first, values="oIoU")
    drawn = axes.contourf(surface.columns, surface.index, surface, levels=20, cmap="viridis")
    figure.colorbar(drawn, ax=axes, label=unit)
    axes.plot([t[first] for t in trials], [t[second] for t in trials], ".", color="white", ms=2)
    for label, values, style in ((PAPER["label"], given, "rs"), ("best", best, "g*")):
        axes.plot(values[first], values[second], style, ms=8, label=label)
    axes.set(xlabel=first, ylabel=second, xlim=(0, 1), ylim=(0, 1))
    axes.legend(fontsize=7)
    return figure


def _front(result: Result, front: pd.DataFrame) -> Figure:
    """Quality and share of the replaced labels: every trial, and the front on both parts."""
    figure, (axes,) = _figure()
    table = result.trial_table
    axes.plot(table["matched"], table["replaced_oIoU"], ".", color="tab:gray", ms=3, label="trial")
    for half, colour in COLOURS.items():
        name = f"front, {PARTS[result.params.tune.on][half]}"
        values = front[f"{half}_share"], front[f"{half}_oIoU"]
        axes.plot(*values, ".-", color=colour, ms=4, label=name)
    for label, point, style in ((PAPER["label"], result.given, "rs"), ("best", result.best, "g*")):
        quality, share = replaced_quality(result.tables["seen"].outcome(result.at(point)))
        axes.plot(share, quality, style, ms=8, label=label)
    axes.set(xlabel="labels that are replaced (%)", ylabel="oIoU of replaced labels (%)")
    axes.legend(frameon=False, fontsize=7)
    return figure


def _slices(result: Result) -> Figure:
    """The trials' values over each parameter."""
    columns = min(len(result.axes), 3)
    figure, panels = _figure(columns, math.ceil(len(result.axes) / columns))
    table = result.trial_table.dropna(subset=["value"])
    for panel, (name, axis) in zip(panels, result.axes.items(), strict=False):
        points = table[f"params_{name}"], table["value"]
        panel.plot(*points, ".", color="tab:gray", ms=3, label="trial")
        panel.axvline(axis.given, **PAPER)
        panel.axvline(result.best[name], **BEST)
        panel.set(xlabel=name, ylabel=_unit(result))
        panel.set_xscale("log" if axis.log else "linear")
    panels[0].legend(frameon=False, fontsize=7)
    for panel in panels[len(result.axes) :]:
        panel.set_visible(False)
    return figure


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
    for t in completed:
        given = {"params": t.params, "distributions": t.distributions, "value": value_of(t)}
        study.add_trial(optuna.trial.create_trial(**given))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return {**unknown, **optuna.importance.get_param_importances(study)}
        except (ValueError, RuntimeError):
            return unknown


def _importances(shares: Mapping[str, float]) -> Figure:
    figure, (axes,) = _figure()
    names = sorted(shares, key=lambda name: shares[name])
    axes.barh(names, [shares[name] for name in names], color="tab:blue")
    axes.set(xlabel="importance (PED-ANOVA)", xlim=(0, 1))
    return figure
