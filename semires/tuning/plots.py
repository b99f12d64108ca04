"""Plots of a search as PNG: history, response curves, plane, slices, importances."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semires.tuning.objective import Axis
from semires.tuning.refined import Table, replaced_quality
from semires.tuning.results import PARTS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from semires.tuning.results import Result

COLOURS = {"seen": "tab:blue", "held_out": "tab:orange"}
PAPER = {"color": "tab:red", "ls": "--", "lw": 1, "label": "params.yaml (paper)"}
BEST = {"color": "tab:green", "lw": 1, "label": "best"}


@dataclass(frozen=True)
class Trials:
    """The trials of a search, for the plots.

    Args:
        table: one row per trial: number, state, value, ``params_*``.
        axes: the parameters.
        best: the best values.
        unit: what ``value`` is.
        paper: the value with params.yaml's parameters; None if it is not known.
    """

    table: pd.DataFrame
    axes: Mapping[str, Axis]
    best: Mapping[str, float]
    unit: str
    paper: float | None = None


def draw(result: Result, folder: Path) -> None:
    """Write the plots.

    ``history.png`` always; ``curves.png`` for a strategy with thresholds, ``plane.png`` for one
    with two; ``importances.png`` with two parameters or more; ``front.png`` for two objectives;
    ``slices.png`` for the objective ``training``.
    """
    import matplotlib as mpl

    style = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    with mpl.rc_context(style):
        for name, figure in _plots(result):
            # Without the metadata, equal content has equal bytes.
            figure.savefig(folder / f"{name}.png", metadata={"Software": None})


def _plots(result: Result) -> Iterator[tuple[str, Figure]]:
    settings = result.params.tune
    names, training = PARTS[settings.on], settings.objective == "training"
    paper = None if training else float(result.summary["seen"]["paper"]["oIoU"])
    unit = unit_of(settings.objective, names["seen"])
    trials = Trials(result.trial_table, result.axes, result.best, unit, paper)
    yield "history", history_figure({"": trials})
    given, best = result.at(result.given), result.at(result.best)
    if len(result.curves):
        yield "curves", curves_figure(result.curves, names, given, best)
    if shares := importances(trials):
        yield "importances", importances_figure({"": shares})
    if result.plane is not None:
        points = [result.at(trial.params) for trial in result.trials]
        yield "plane", plane_figure(result.plane, unit, given, best, points)
    if result.front is not None:
        yield (
            "front",
            front_figure(result.trial_table, result.front, names, result.tables, given, best),
        )
    if training:
        yield "slices", slices_figure(trials)


def unit_of(objective: str, part: str) -> str:
    """What the values of the trials are; ``part``: the name of the seen labels."""
    training = objective == "training"
    return f"val oIoU, {part} (%)" if training else f"oIoU of refined labels, {part} (%)"


def _figure(columns: int = 1, rows: int = 1) -> tuple[Figure, Any]:
    """A figure without pyplot, so that no display or global state is involved."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * columns, 3.1 * rows), layout="constrained", dpi=120)
    return figure, figure.subplots(rows, columns, squeeze=False).ravel()


def _panels(names: Iterable[str]) -> tuple[Figure, list[Any]]:
    """A figure with a titled panel for each name, in rows of three at most."""
    names = list(names)
    columns = min(len(names), 3)
    figure, panels = _figure(columns, math.ceil(len(names) / columns))
    for panel, name in zip(panels, names, strict=False):
        panel.set_title(name)
    for panel in panels[len(names) :]:
        panel.remove()
    return figure, list(panels[: len(names)])


def history_figure(searches: Mapping[str, Trials]) -> Figure:
    """By title of the panel: the value of every trial of a search, and the best one so far."""
    figure, panels = _panels(searches)
    for panel, trials in zip(panels, searches.values(), strict=True):
        table = trials.table.dropna(subset=["value"])
        panel.plot(table["number"], table["value"], ".", color="tab:gray", label="trial")
        best = table["value"].cummax()
        panel.step(table["number"], best, where="post", color="tab:blue", label="best")
        if trials.paper is not None:
            panel.axhline(trials.paper, **PAPER)
        panel.set(xlabel="trial", ylabel=trials.unit)
    panels[0].legend(frameon=False, fontsize=7)
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
        for panel in (panel for panel in row if panel.get_visible()):
            for values, style in ((given, PAPER), (best, BEST)):
                marked = {values[name]} if name in values else set(values.values())
                if len(marked) == 1:  # of ALL_EQUAL, only if they are equal
                    panel.axvline(marked.pop(), **style)
            panel.set(xlabel=name, xlim=(0, 1))
    panels[0].legend(frameon=False, fontsize=7)
    return figure


def _students(panel: Any, trainings: pd.DataFrame) -> None:
    """Val oIoU of trainings with their intervals; without any, no panel."""
    panel.set_visible(len(trainings) > 0)
    values = trainings["oIoU"]
    errors = [values - trainings["low"], trainings["high"] - values]
    panel.errorbar(trainings["value"], values, errors, fmt="ko", ms=4, capsize=2)
    panel.set_ylabel("val oIoU of students (%)")


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


def front_figure(
    trials: pd.DataFrame,
    front: pd.DataFrame,
    names: Mapping[str, str],
    tables: Mapping[str, Table],
    given: Mapping[str, float],
    best: Mapping[str, float],
) -> Figure:
    """Quality and share of the replaced labels: every trial, and the front on both parts.

    Trials that replace no label are left out.

    Args:
        trials: one row per trial: ``matched``, ``replaced_oIoU``.
        front: see `curves.front_of`.
        names: of both parts of the labels.
        tables: of both parts.
        given: the thresholds of params.yaml (the paper's).
        best: the best thresholds.
    """
    figure, (axes,) = _figure()
    replacing = trials[trials["matched"] > 0]
    points = replacing["matched"], replacing["replaced_oIoU"]
    axes.plot(*points, ".", color="tab:gray", ms=3, label="trial")
    for half, colour in COLOURS.items():
        values = front[f"{half}_share"], front[f"{half}_oIoU"]
        axes.plot(*values, ".-", color=colour, ms=4, label=f"front, {names[half]}")
    for label, at, style in ((PAPER["label"], given, "rs"), ("best", best, "g*")):
        quality, share = replaced_quality(tables["seen"].outcome(at))
        axes.plot(share, quality, style, ms=8, label=label)
    axes.set(xlabel="labels that are replaced (%)", ylabel="oIoU of replaced labels (%)")
    axes.legend(frameon=False, fontsize=7)
    return figure


def slices_figure(trials: Trials) -> Figure:
    """The trials' values over each parameter."""
    from matplotlib.ticker import LogLocator, NullLocator

    figure, panels = _panels(trials.axes)
    table = trials.table.dropna(subset=["value"])
    for panel, (name, axis) in zip(panels, trials.axes.items(), strict=True):
        points = table[f"params_{name}"], table["value"]
        panel.plot(*points, ".", color="tab:gray", ms=3, label="trial")
        panel.axvline(axis.given, **PAPER)
        panel.axvline(trials.best[name], **BEST)
        panel.set_ylabel(trials.unit)
        if axis.log:
            panel.set_xscale("log")
            panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.xaxis.set_major_formatter("{x:g}")
            panel.xaxis.set_minor_locator(NullLocator())
    panels[0].legend(frameon=False, fontsize=7)
    return figure


def importances(trials: Trials) -> dict[str, float]:
    """Share of the value's variation among good trials that each parameter explains (PED-ANOVA).

    Empty if it is undefined: with one parameter, or too few different trials.
    """
    import optuna

    completed = trials.table[trials.table["state"] == "COMPLETE"]
    if len(trials.axes) < 2 or len(completed) < 10:
        return {}
    distributions = {
        name: optuna.distributions.FloatDistribution(axis.low, axis.high, log=axis.log)
        for name, axis in trials.axes.items()
    }
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for row in completed.to_dict("records"):
                params = {name: row[f"params_{name}"] for name in trials.axes}
                given = {"params": params, "distributions": distributions, "value": row["value"]}
                study.add_trial(optuna.trial.create_trial(**given))
            found = optuna.importance.get_param_importances(study)
        except (ValueError, RuntimeError):
            return {}
    return {**dict.fromkeys(trials.axes, 0.0), **found} if any(found.values()) else {}


def importances_figure(searches: Mapping[str, Mapping[str, float]]) -> Figure:
    """By title of the panel: :func:`importances` of a search."""
    figure, panels = _panels(searches)
    for panel, shares in zip(panels, searches.values(), strict=True):
        names = sorted(shares, key=lambda name: shares[name])
        panel.barh(names, [shares[name] for name in names], color="tab:blue")
        panel.set(xlabel="importance (PED-ANOVA)", xlim=(0, 1))
    return figure
