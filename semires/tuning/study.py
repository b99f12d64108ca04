"""The threshold search of a cell, paper Table 3 by Optuna: ``tune`` is the stage's function.

In: the counts of val's pseudo-labels (or short trainings). Out: ``tune/D/F/M/seedS/`` with the best
values, all trials, a summary on both halves of the val images and plots, and
``experiments/tuned/D-F-M.yaml`` for methods with ``thresholds: tuned``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState

from semires.config.schema import Params
from semires.errors import Interrupted, SemiresError
from semires.files import fingerprint
from semires.runs.key import RunKey
from semires.tuning.counts import counts_of, halves, sources
from semires.tuning.objective import (
    Axis,
    Table,
    make_table,
    space,
    suggest,
    summarise,
    training_objective,
)
from semires.tuning.samplers import PlacedSampler, grid
from semires.tuning.storage import (
    Gate,
    default_url,
    explained,
    open_gate,
    open_storage,
    requeue,
    slot,
)

Objective = Callable[[optuna.Trial], float]
Stop = Callable[[], int | None]  # the exit code of a signal that arrived, if any

DONE = (TrialState.COMPLETE, TrialState.PRUNED)
WAIT_S = 0.05
BATCH = 20
MADE_FROM = "made_from"  # the study's attribute that says which teacher and data it is of


@dataclass(frozen=True)
class Search:
    """Everything that identifies one study and decides its trials."""

    cell: RunKey
    axes: Mapping[str, Axis]
    sampler: str
    seed: int
    total: int
    url: str
    explicit: bool  # the storage was given by the user
    made_from: Mapping[str, Any]
    identity: Mapping[str, Any]
    first: tuple[dict[str, float], ...]

    @property
    def stem(self) -> str:
        """The study's name without the digest of teacher and data."""
        parts = self.cell.folder.parts[1:]
        return "-".join([*parts, fingerprint(self.identity)[:8]])

    @property
    def name(self) -> str:
        """The study's name: cell, space, teacher and data."""
        return f"{self.stem}-{fingerprint(self.made_from)[:8]}"


def tune(params: Params, cell: RunKey) -> None:
    """Search a cell's thresholds (``tune`` in params.yaml) and write what was found.

    A study goes on where it was: ``tune.trials`` is the number of trials in all. Several processes
    may call this for one study at once.

    Raises:
        ConfigError: the method has no thresholds, or the sampler's package is missing.
        SemiresError: burn-in or proposals are missing, or the storage cannot be used.
        Interrupted: a signal arrived between two trials; the next call goes on.
    """
    from semires import process
    from semires.tuning.results import Result, publish

    optuna.logging.set_verbosity(optuna.logging.ERROR)  # what stops a trial is said in one line
    axes = space(params, cell)
    counts = counts_of(params, cell)
    table = make_table(counts, params.refine[cell.method].strategy)
    seen, held_out = halves(counts.image_ids, params.tune.seed)
    tables = {"seen": table.take(seen), "held_out": table.take(held_out)}
    search = plan(params, cell, axes, tables["seen"])
    objective = make_objective(params, cell, axes, tables["seen"])
    with explained(search.url):
        study = open_study(search, params.tune.pruner)
        gate = open_gate(search.url, search.name)
        if done := len(finished(study)):
            print(f"{search.name}: going on from trial {done} of {search.total}")
        try:
            run = run_batches if objective_is_quick(params, gate, study) else run_trials
            run(study, gate, objective, search.total, process.stop_requested)
        finally:
            gate.close()
        trials = finished(study)[: search.total]
    publish(Result(params, cell, axes, tables, trials, search.name, search.url))


def plan(params: Params, cell: RunKey, axes: Mapping[str, Axis], seen: Table) -> Search:
    """The study that the parameters describe: its name, storage, first trials and their number."""
    settings = params.tune
    made_from = sources(params, cell)
    identity: dict[str, Any] = {
        "axes": {name: asdict(axis) for name, axis in axes.items()},
        "tune": settings.model_dump(include={"objective", "sampler", "seed"}),
        "strategy": params.refine[cell.method].strategy,
    }
    if settings.objective == "training":
        values = params.model_dump()
        sections = ("optimizer", "augment", "loss", "mutual", "evaluation")
        valued_on = "seen half"  # of val
        identity["training"] = [settings.pruner, settings.steps, valued_on]
        identity["training"] += [values[section] for section in sections]
    points = grid(axes) if settings.sampler == "grid" else first_trials(params, axes, seen)
    total = min(settings.trials, len(points)) if settings.sampler == "grid" else settings.trials
    return Search(
        cell,
        axes,
        settings.sampler,
        settings.seed,
        total,
        settings.storage or default_url(),
        settings.storage is not None,
        made_from,
        identity,
        tuple(points),
    )


def first_trials(params: Params, axes: Mapping[str, Axis], seen: Table) -> list[dict[str, float]]:
    """The paper's values; before trainings also the thresholds that are best for the labels."""
    given = {name: axis.given for name, axis in axes.items()}
    if params.tune.objective == "labels":
        return [given]
    names = [name for name in axes if name.startswith("threshold")]
    steps = np.linspace(0.0, 1.0, 41)
    points = np.stack(np.meshgrid(*[steps] * len(names)), axis=-1).reshape(-1, len(names))
    thresholds = [dict(zip(names, map(float, point), strict=True)) for point in points]
    best = max(thresholds, key=lambda t: summarise(seen.outcome(t), seen.labels)["oIoU"])
    return [given, {**given, **best}]


def make_objective(
    params: Params, cell: RunKey, axes: Mapping[str, Axis], seen: Table
) -> Objective:
    """The function of a trial: oIoU (percent) of refined labels, or of a short training."""
    if params.tune.objective == "training":
        val_images = tuple(int(image) for image in np.unique(seen.labels.image_ids))
        return lambda trial: training_objective(trial, params, cell, val_images)

    def labels_objective(trial: optuna.Trial) -> float:
        metrics = summarise(seen.outcome(suggest(trial, axes)), seen.labels)
        trial.set_user_attr("metrics", metrics)
        return metrics["oIoU"]

    return labels_objective


def open_study(search: Search, pruner: str = "none") -> optuna.Study:
    """Load the study, or make it, once for all processes.

    Raises:
        SemiresError: the storage holds this cell's study for another teacher or data set.
    """
    storage = open_storage(search.url)
    gate = open_gate(search.url, search.name)
    gate.claim()
    try:
        if search.explicit:
            refuse_other(storage, search)
        study = optuna.create_study(
            storage=storage,
            study_name=search.name,
            direction="maximize",
            sampler=make_sampler(search),
            pruner=PRUNERS[pruner](),
            load_if_exists=True,
        )
        if MADE_FROM not in study.user_attrs:
            study.set_user_attr(MADE_FROM, dict(search.made_from))
        return study
    finally:
        gate.stop()
        gate.close()


def make_sampler(search: Search) -> PlacedSampler:
    """The search's sampler; only trainings last long enough to overlap."""
    parallel = "training" in search.identity
    return PlacedSampler(search.sampler, search.seed, search.axes, search.first, parallel)


PRUNERS: dict[str, Callable[[], Any]] = {
    "none": optuna.pruners.NopPruner,
    "median": optuna.pruners.MedianPruner,
    "hyperband": optuna.pruners.HyperbandPruner,
}


def refuse_other(storage: Any, search: Search) -> None:
    """Refuse a storage given by the user that holds this search for other inputs."""
    for summary in optuna.get_all_study_summaries(storage=storage):
        other = summary.user_attrs.get(MADE_FROM)
        if other is None or not summary.study_name.startswith(search.stem + "-"):
            continue
        changed = [k for k, v in search.made_from.items() if other.get(k) != v]
        if changed:
            told = "; ".join(
                f"{k} {short(other.get(k))} there, {short(search.made_from[k])} here"
                for k in changed
            )
            raise SemiresError(
                f"tune.storage: study {summary.study_name} is of other inputs ({told}); give "
                "another storage, or remove it with `optuna delete-study`"
            )


def short(value: Any) -> str:
    """A digest's first characters, or a digest's of anything else."""
    return (value if isinstance(value, str) else fingerprint(value))[:12]


def objective_is_quick(params: Params, gate: Gate, study: optuna.Study) -> bool:
    """Whether trials take less time than a storage needs to record that they began.

    An unfinished trial in the study is another tool's: the usual way handles it.
    """
    trials = study.get_trials(deepcopy=False)
    finished = all(t.state.is_finished() for t in trials)
    return params.tune.objective == "labels" and gate.local and finished


def run_batches(
    study: optuna.Study,
    gate: Gate,
    objective: Objective,
    total: int,
    stop: Stop = lambda: None,
) -> None:
    """Like :func:`run_trials` for trials of microseconds: record them only when they are done.

    Under the study's lock a process reads what others found, runs some trials in memory and
    records them. A killed process leaves nothing behind, and as a trial's choice depends on its
    place and on the trials before it alone, the next one runs just the same trials.

    Raises:
        Interrupted: a signal arrived between two batches.
    """
    from tqdm import tqdm

    mirror = optuna.create_study(direction="maximize", sampler=study.sampler)
    known = 0
    with tqdm(total=total, desc=study.study_name, unit="trial", disable=None) as bar:
        while True:
            gate.claim()
            try:
                trials = study.get_trials(deepcopy=False)
                mirror.add_trials(trials[known:])
                done = [t for t in trials if t.state in DONE]
                show(bar, done)
                if len(done) >= total:
                    return
                stop_if_asked(study, stop, len(done), total)
                mirror.optimize(objective, n_trials=min(BATCH, total - len(done)))
                study.add_trials(mirror.get_trials(deepcopy=False)[len(trials) :])
                known = len(mirror.trials)
            finally:
                gate.stop()


def stop_if_asked(study: optuna.Study, stop: Stop, done: int, total: int) -> None:
    """Leave between two trials where a signal arrived.

    Raises:
        Interrupted: one did.
    """
    code = stop()
    if code is not None:
        raise Interrupted(
            f"{study.study_name}: stopped after {done} of {total} trials; "
            "run the same command to go on",
            code,
        )


def run_trials(
    study: optuna.Study,
    gate: Gate,
    objective: Objective,
    total: int,
    stop: Stop = lambda: None,
) -> None:
    """Run trials until ``total`` are done, together with any other process of this study.

    Raises:
        Interrupted: a signal arrived between two trials.
    """
    from tqdm import tqdm

    with tqdm(total=total, desc=study.study_name, unit="trial", disable=None) as bar:
        while True:
            gate.claim()
            try:
                trials = study.get_trials(deepcopy=False)
                if any(t.state == TrialState.RUNNING for t in trials) and gate.alone():
                    restart_abandoned(study)
                    trials = study.get_trials(deepcopy=False)
                done = [t for t in trials if t.state in DONE]
                show(bar, done)
                if len(done) >= total:
                    return
                stop_if_asked(study, stop, len(done), total)
                running = sum(t.state == TrialState.RUNNING for t in trials)
                if len(done) + running < total:
                    run_one(study, gate, objective)
                    continue
            finally:
                gate.stop()
            wait_for_others(study)


def run_one(study: optuna.Study, gate: Gate, objective: Objective) -> None:
    """Claim the next trial and run it; one that is cut short is queued again."""
    started: list[int] = []

    def run(trial: optuna.Trial) -> float:
        gate.start()
        started.append(trial.number)
        return objective(trial)

    try:
        study.optimize(run, n_trials=1)
    except optuna.exceptions.UpdateFinishedTrialError:
        pass  # its heartbeat was late, and it was queued again for another process
    except BaseException:
        if started:
            requeue(study, study.get_trials(deepcopy=False)[started[0]])
        raise


def restart_abandoned(study: optuna.Study) -> None:
    """Fail trials that a killed process left running, and queue them again."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
        requeue(study, trial)


def wait_for_others(study: optuna.Study) -> None:
    """The last trials run elsewhere: give them time, and find out whether they still do."""
    time.sleep(WAIT_S)
    if optuna.storages._heartbeat.is_heartbeat_enabled(study._storage):
        optuna.storages.fail_stale_trials(study)


def show(bar: Any, done: list[optuna.trial.FrozenTrial]) -> None:
    """The live line: trials, rate and time left are tqdm's, the best value is ours."""
    values = [t.value for t in done if t.state == TrialState.COMPLETE and t.value is not None]
    if values:
        bar.set_postfix(best=f"{max(values):.2f}", refresh=False)
    bar.update(min(len(done), bar.total) - bar.n)


def finished(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """Trials that are done, in the order of their places."""
    trials = study.get_trials(deepcopy=False, states=DONE)
    return sorted(trials, key=lambda trial: slot(study, trial))
