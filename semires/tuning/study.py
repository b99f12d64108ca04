"""The threshold search of one or several methods with Optuna (paper Table 3).

In: the counts of val's pseudo-labels (or short trainings). Out: ``tune/D/F/M/seedS/`` with the best
values, all trials, response curves, a summary on both halves of the val images and plots, and
``experiments/tuned/D-F-M.yaml`` for methods with ``thresholds: tuned``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import optuna
from optuna.study import MaxTrialsCallback
from optuna.trial import TrialState

from semires import process
from semires.config.resolve import resolve
from semires.config.schema import Params
from semires.config.validate import validate
from semires.errors import Interrupted
from semires.files import fingerprint
from semires.progress import progress
from semires.runs import layout
from semires.runs.key import RunKey
from semires.tuning.counts import sources
from semires.tuning.labelled import parts_of
from semires.tuning.objective import (
    Axis,
    Objective,
    Point,
    first_points,
    labels_objective,
    paper_grid,
    space,
    training_objective,
)
from semires.tuning.publish import comparison, publish
from semires.tuning.refined import Table, make_table
from semires.tuning.results import Result, value_of
from semires.tuning.samplers import SeededSampler
from semires.tuning.storage import default_url, explained, locked, open_storage, sqlite_path

DONE = (TrialState.COMPLETE, TrialState.PRUNED)
PRUNERS: dict[str, Callable[[], optuna.pruners.BasePruner]] = {
    "none": optuna.pruners.NopPruner,
    "median": optuna.pruners.MedianPruner,
    "hyperband": optuna.pruners.HyperbandPruner,
}


@dataclass(frozen=True)
class Search:
    """Everything that identifies a study and decides its trials.

    Args:
        name: of the study: the method's key, and digests of the settings and of teacher and data.
        axes: the space.
        sampler: as in ``tune.sampler``.
        seed: of the sampler.
        total: number of trials.
        url: the storage.
        first: the points of the first trials.
        directions: of Optuna, one for each value of a trial.
        trains: a trial is a training, so that trials of several processes overlap.
    """

    name: str
    axes: Mapping[str, Axis]
    sampler: str
    seed: int
    total: int
    url: str
    first: Sequence[Point]
    directions: Sequence[str] = ("maximize",)
    trains: bool = False


def tune_all(params: Params, keys: Iterable[RunKey], on: str | None = None) -> None:
    """Search several methods in this process, then print one table of all results.

    Raises:
        SemiresError: as :func:`tune`; the earlier searches are complete and are kept.
    """
    print(comparison([tune(params, key, report=False, on=on) for key in keys]))


def tune(params: Params, key: RunKey, report: bool = True, on: str | None = None) -> Result:
    """Search a method's thresholds (``tune`` in params.yaml) and write the result.

    A search that was stopped is continued: ``tune.trials`` is the number of trials in all. Several
    processes may call this for one search at the same time.

    Args:
        params: all parameters, before `resolve`.
        key: the method, and the burn-in whose teacher is used.
        report: print the summary.
        on: in place of the method's ``tune.on``. A search on other images than in params.yaml has a
            folder of its own, and no method trains with its result.

    Raises:
        ConfigError: the method has nothing to search, or the sampler cannot search it.
        SemiresError: burn-in or proposals are missing, or the storage cannot be used.
        Interrupted, Stopped: a signal arrived; the next call continues.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    planned = resolve(params, key, tuned=False)
    params = planned if on is None else _searched_on(planned, on)
    axes = space(params, key)
    parts = parts_of(params, key)
    strategy = params.refine[key.method].strategy
    tables = {name: make_table(counts, strategy) for name, counts in parts.items()}
    search = plan(params, key, axes, tables["seen"])
    study = open_study(search, params.tune.pruner)
    if search.trains:
        objective = training_objective(params, key, tables["seen"])
    else:
        fixed = params.refine[key.method].threshold_values
        objective = labels_objective(axes, tables["seen"], fixed, share=len(search.directions) == 2)
    # A storage on a server may have workers on other machines.
    quick = not search.trains and sqlite_path(search.url) is not None
    (run_in_memory if quick else run_in_storage)(study, search, objective)
    with explained(search.url, Exception):
        trials = finished(study)[: search.total]
    name = key if params.tune.on == planned.tune.on else layout.unplanned(key, params.tune.on)
    result = Result(params, key, axes, parts, tables, trials, search.name, search.url, name)
    publish(result, report)
    return result


def _searched_on(params: Params, on: str) -> Params:
    """The parameters with another ``tune.on``."""
    tree = params.model_dump()
    tree["tune"]["on"] = on
    return validate(tree, "--on")


def plan(params: Params, key: RunKey, axes: Mapping[str, Axis], seen: Table) -> Search:
    """The study that the parameters describe: its name, storage, first trials and their number."""
    settings = params.tune
    identity: dict[str, Any] = {
        "axes": {name: asdict(axis) for name, axis in axes.items()},
        "tune": settings.model_dump(include={"objective", "sampler", "seed"}),
        "strategy": params.refine[key.method].strategy,
    }
    if settings.on == "labelled":
        identity["on"] = [settings.on, settings.folds]
    if trains := settings.objective == "training":
        values = params.model_dump()
        sections = ("optimizer", "augment", "loss", "mutual", "evaluation")
        valued_on = "seen half"  # of val
        identity["training"] = [settings.pruner, settings.steps, valued_on]
        identity["training"] += [values[section] for section in sections]
    grid = settings.sampler == "grid"
    points = paper_grid(params, key, axes) if grid else first_points(params, key, axes, seen)
    digests = (fingerprint(part)[:8] for part in (identity, sources(params, key)))
    return Search(
        "-".join([*key.folder.parts[1:], *digests]),
        axes,
        settings.sampler,
        settings.seed,
        min(settings.trials, len(points)) if grid else settings.trials,
        settings.storage or default_url(),
        points,
        ["maximize"] * (2 if settings.objective == "labels-and-share" else 1),
        trains,
    )


def open_study(search: Search, pruner: str = "none") -> optuna.Study:
    """Load the study, or make it.

    Raises:
        SemiresError: the storage cannot be used.
    """
    sampler = SeededSampler(search.sampler, search.seed, search.axes, search.trains)
    storage = open_storage(search.url)
    with explained(search.url, Exception), locked(search.url, "open"):
        return optuna.create_study(
            storage=storage,
            study_name=search.name,
            directions=search.directions,
            sampler=sampler,
            pruner=PRUNERS[pruner](),
            load_if_exists=True,
        )


def run_in_memory(study: optuna.Study, search: Search, objective: Objective) -> None:
    """Run trials that take less time than a storage needs to record them.

    They run in memory and are recorded together. Other processes of the same search wait. A killed
    process leaves nothing behind, and the next one runs the same trials.

    Raises:
        Stopped: a signal arrived; the trials that ended are recorded.
    """
    process.stop_at_once()
    with locked(search.url, search.name):
        with explained(search.url, Exception):
            known = study.get_trials(deepcopy=False, states=DONE)
        memory = optuna.create_study(directions=search.directions, sampler=study.sampler)
        memory.add_trials(known)
        try:
            optimize(memory, search, objective)
        finally:
            new = memory.get_trials(deepcopy=False, states=DONE)[len(known) :]
            with explained(search.url, Exception):
                study.add_trials(new)


def run_in_storage(study: optuna.Study, search: Search, objective: Objective) -> None:
    """Run trials together with any other process of this search.

    Raises:
        Interrupted: a signal arrived. A trial that it interrupted is queued again.
    """

    def requeued(trial: optuna.Trial) -> float | tuple[float, ...]:
        try:
            return objective(trial)
        except (KeyboardInterrupt, Interrupted):
            trial.study.enqueue_trial(trial.params, user_attrs=trial.user_attrs)
            raise

    with explained(search.url):
        optimize(study, search, requeued)


def optimize(study: optuna.Study, search: Search, objective: Objective) -> None:
    """Run trials until ``search.total`` are done."""
    done = len(finished(study))
    if done:
        print(f"{search.name}: resuming from trial {done} of {search.total}")
    with locked(search.url, "open"):
        for point in search.first[: search.total]:
            study.enqueue_trial(point, skip_if_exists=True)
    with progress(name=search.name, total=search.total, unit="trial") as bar:

        def show(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
            trials = finished(study)
            values = [value_of(t) for t in trials if t.state == TrialState.COMPLETE]
            if values:
                bar.set_postfix_str(f"best {max(values):.2f}", refresh=False)
            bar.update(min(len(trials), search.total) - bar.n)

        limit = MaxTrialsCallback(search.total, states=DONE)
        while len(finished(study)) < search.total:
            # A trial whose heartbeat was late was queued again for another process.
            with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
                study.optimize(objective, callbacks=[show, limit])


def finished(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """The trials that are done, by number."""
    return sorted(study.get_trials(deepcopy=False, states=DONE), key=lambda trial: trial.number)
