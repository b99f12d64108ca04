"""The parameters of a search, and the value of one trial."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from semires.config.checks import no_thresholds
from semires.config.messages import require
from semires.config.resolve import set_values, weight_values
from semires.errors import ConfigError
from semires.refine.weightings import WEIGHTINGS
from semires.tuning.refined import Table, replaced_quality, summarise, thresholds_of

if TYPE_CHECKING:
    import optuna

    from semires.config.method import Method
    from semires.config.schema import Params
    from semires.runs.key import RunKey

Objective = Callable[["optuna.Trial"], float | tuple[float, ...]]
Point = dict[str, float]

PAPER_GRID = (0.5, 0.6, 0.7)  # paper Table 3
WARM_START_POINTS = 1681  # at most, on a grid over the thresholds


@dataclass(frozen=True)
class Axis:
    """One parameter of a search: its range, its scale, and its value in params.yaml."""

    low: float
    high: float
    given: float
    log: bool = False


def space(params: Params, key: RunKey) -> dict[str, Axis]:
    """The parameters that ``tune`` searches for a method, by name.

    The objectives on labels search the thresholds of the method's strategy. ``training`` also
    searches parameters that do not change the labels: those of the weighting, lambda and EMA.
    ``tune.parameters`` selects some of them.

    Raises:
        ConfigError: there is no such method, it has nothing to search, or ``tune.parameters`` names
            a parameter that cannot be searched.
    """
    if key.method not in params.refine:
        raise ConfigError(f"refine.{key.method}: no such method")
    axes = _axes(params, params.refine[key.method])
    if not axes:
        strategy = params.refine[key.method].strategy
        raise ConfigError(f"refine.{key.method}: {no_thresholds(strategy)}")
    chosen = params.tune.parameters or list(axes)
    require(chosen, axes, "tune.parameters", f"the parameters of {key.method}'s search")
    return {name: axis for name, axis in axes.items() if name in chosen}


def _axes(params: Params, method: Method) -> dict[str, Axis]:
    """All parameters that can be searched; each range contains the given value."""
    axes = {
        name: Axis(0, 1, method.threshold_values[name]) for name in thresholds_of(method.strategy)
    }
    if params.tune.objective != "training":
        return axes
    declared = WEIGHTINGS[method.weight_rule].parameters
    for name, given in weight_values(params, method).items():
        parameter = declared[name]
        axes[name] = Axis(parameter.low, parameter.high, given, parameter.log)
    axes["lambda_unsup"] = Axis(0.1, 10.0, params.mutual.lambda_unsup, log=True)
    axes["ema"] = Axis(0.9, 0.9999, params.mutual.ema)
    return {
        name: replace(axis, low=min(axis.low, axis.given), high=max(axis.high, axis.given))
        for name, axis in axes.items()
    }


def suggest(trial: optuna.Trial, axes: Mapping[str, Axis]) -> Point:
    """One value for every axis."""
    return {n: trial.suggest_float(n, a.low, a.high, log=a.log) for n, a in axes.items()}


def paper_grid(params: Params, key: RunKey, axes: Mapping[str, Axis]) -> list[Point]:
    """The grid of the paper's Table 3 over the thresholds; other axes have their given values."""
    thresholds = thresholds_of(params.refine[key.method].strategy)
    choices = [PAPER_GRID if name in thresholds else (axis.given,) for name, axis in axes.items()]
    return [dict(zip(axes, point, strict=True)) for point in itertools.product(*choices)]


def first_points(params: Params, key: RunKey, axes: Mapping[str, Axis], seen: Table) -> list[Point]:
    """The given values; before trainings also the thresholds that are best for the labels."""
    given = {name: axis.given for name, axis in axes.items()}
    if params.tune.objective != "training":
        return [given]
    fixed = params.refine[key.method].threshold_values
    names = [name for name in fixed if name in axes]
    if not names:
        return [given]
    steps = np.linspace(0.0, 1.0, min(41, round(WARM_START_POINTS ** (1 / len(names)))))
    points = itertools.product(map(float, steps), repeat=len(names))
    thresholds = [dict(zip(names, point, strict=True)) for point in points]
    best = max(
        thresholds, key=lambda t: summarise(seen.outcome({**fixed, **t}), seen.labels)["oIoU"]
    )
    return [given, {**given, **best}]


def labels_objective(
    axes: Mapping[str, Axis],
    seen: Table,
    fixed: Mapping[str, float],
    share: bool = False,
) -> Objective:
    """A trial's value is the oIoU (percent) of the refined pseudo-labels.

    Args:
        axes: the thresholds that are searched.
        seen: the labels.
        fixed: the thresholds that are not searched.
        share: the values are the oIoU of the labels that the rule replaces, and their share, both
            in percent.
    """

    def value(trial: optuna.Trial) -> float | tuple[float, float]:
        outcome = seen.outcome({**fixed, **suggest(trial, axes)})
        metrics = summarise(outcome, seen.labels)
        trial.set_user_attr("metrics", metrics)
        return replaced_quality(outcome) if share else metrics["oIoU"]

    return value


def with_values(params: Params, key: RunKey, values: Mapping[str, float]) -> Params:
    """Parameters with a trial's values and ``tune.steps`` steps of mutual learning."""
    from semires.config.validate import validate

    tree = params.model_dump()
    set_values(tree, key.method, values)
    tree["refine"][key.method]["thresholds"] = "paper"  # those of the trial, not the tuned ones
    tree["mutual"].update(steps=params.tune.steps, epochs=None)
    return validate(tree, "tune")


def training_objective(params: Params, key: RunKey, seen: Table) -> Objective:
    """A trial's value is the best oIoU (percent) of a short mutual learning.

    The training is evaluated on the seen images of val, and each evaluation is reported to the
    pruner. A finished trial leaves no files. An interrupted one keeps its state and continues when
    it is run again. The trial raises ``optuna.TrialPruned`` if it is pruned or its loss diverges,
    and ``Interrupted`` if a signal arrived.
    """
    import optuna

    from semires.errors import NonFiniteLossError
    from semires.training.context import RunContext
    from semires.training.mutual import SECTIONS, train_mutual

    axes = space(params, key)
    val_images = tuple(int(image) for image in np.unique(seen.labels.image_ids))

    def value(trial: optuna.Trial) -> float:
        """Train with a trial's values and return the best oIoU on the seen half of val."""

        def on_evaluation(metrics: dict[str, float], step: int) -> None:
            trial.report(metrics["val/oIoU"], step)
            if trial.should_prune():
                raise optuna.TrialPruned

        changed = with_values(params, key, suggest(trial, axes))
        work = RunContext(changed, key, SECTIONS, val_images=val_images).work
        try:
            result = train_mutual(changed, key, on_evaluation, val_images)["val"]["oIoU"]
        except (optuna.TrialPruned, NonFiniteLossError) as error:
            shutil.rmtree(work, ignore_errors=True)
            raise optuna.TrialPruned(str(error)) from error
        shutil.rmtree(work, ignore_errors=True)
        return result

    return value
