"""`semires rehearse`: every stage of the study for a few items at full size, and one table.

All work is done in a temporary folder. The real outputs, caches and MLflow experiments are neither
read nor written; real data and weights are read through links.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from semires.config.compose import link_raw_data
from semires.config.grid import searches, sources_of, uses_sam
from semires.config.messages import require
from semires.config.resolve import resolve
from semires.config.schema import Params
from semires.config.validate import validate
from semires.data.prepare import prepare
from semires.data.refscenes import generate
from semires.errors import ConfigError, SemiresError
from semires.proposals.checkpoint import prepare_checkpoint
from semires.proposals.workers import process_count
from semires.rehearsal import forecast, projects, stages, synthetic
from semires.rehearsal.forecast import Counts, Spread
from semires.rehearsal.measure import Measured, machine, measure
from semires.rehearsal.operations import (
    UTILISATION,
    Operations,
    count_network,
    count_sam,
    count_training,
)
from semires.rehearsal.table import Row, conditions, misfits, render
from semires.rehearsal.weights import random_weights
from semires.runs.key import SUPERVISED, RunKey
from semires.training.burn_in import burn_in
from semires.training.mutual import mutual
from semires.tuning.study import tune

# The stages, in order, with those that they need.
NEEDS: dict[str, tuple[str, ...]] = {
    "generate": (),
    "prepare": ("generate",),
    "split": ("prepare",),
    "sam": (),
    "propose": ("split", "sam"),
    "burn_in": ("split",),
    "mutual": ("burn_in",),
    "evaluation": ("burn_in",),
    "tune": ("burn_in",),
    "report": ("burn_in",),
}


@dataclass(frozen=True)
class Options:
    """What to rehearse.

    Args:
        dataset: a key of ``datasets``; None is the first of the study.
        stages: keys of `NEEDS`; the stages that they need are added. None is all.
        steps: optimizer steps of each training, at least 2; the first one is a warm-up.
        pictures: images for each proposal source.
        random_weights: use random weights of the published sizes.
        synthetic_data: use generated data with the published counts.
    """

    dataset: str | None = None
    stages: tuple[str, ...] | None = None
    steps: int = 4
    pictures: int = 2
    random_weights: bool = False
    synthetic_data: bool = False


def rehearse(params: Params, options: Options) -> int:
    """Rehearse the study, print the table, and return 1 if a stage failed.

    Raises:
        ConfigError: an option is invalid.
        SemiresError: the synthetic data or the random weights cannot be written.
    """
    dataset = options.dataset or params.study.datasets[0]
    for name, value, least in (("steps", options.steps, 2), ("pictures", options.pictures, 1)):
        if value < least:
            raise ConfigError(f"--{name}: {value} is less than {least}")
    try:
        require(options.stages or [], NEEDS, "--stages", "the stages")
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if not forecast.runs_of(params, dataset):
        raise ConfigError(f"--dataset: the study has no run on {dataset}")
    with tempfile.TemporaryDirectory(prefix="semires-rehearsal-") as folder:
        rehearsal = Rehearsal(params, dataset, options, Path(folder))
        rehearsal.run()
        print(f"\n{rehearsal.summary()}")
    return int(any(row.measured.fault for row in rehearsal.rows))


class Rehearsal:
    """One rehearsal in the temporary folder ``place``; `run` fills ``rows``."""

    def __init__(self, params: Params, dataset: str, options: Options, place: Path) -> None:
        self.real, self.dataset, self.options = params, dataset, options
        self.params = projects.own_images(params, dataset)
        self.workspace, self.rows = Path.cwd(), list[Row]()
        self.whole, self.pictures, self.few = (place / n for n in ("whole", "pictures", "few"))
        for folder in (self.whole, self.pictures, self.few):
            folder.mkdir()
        self.wanted = _with_needs(options.stages or NEEDS)
        self.runs = forecast.runs_of(params, dataset)
        mixed = [key for key in self.runs if key.method != SUPERVISED]
        first = (mixed or self.runs)[0]
        self.fraction, self.seed = first.fraction, first.seed
        precision = params.runtime.precision
        self.machine: dict[str, Any] = _require(measure(place, machine, precision)).value
        self.operations: dict[RunKey, Operations | None] = {}  # by burn-in
        self.counts: Counts | None = None
        self.scratch_gib = 0.0

    def run(self) -> None:
        """Rehearse all wanted stages; a stage whose needs failed is not started."""
        self._set_up()
        self._tables()
        self._proposals()
        self._trainings()

    def summary(self) -> str:
        """The table, the machine, and what would not fit."""
        facts = self.machine
        free = shutil.disk_usage(self.workspace).free / 2**30
        lines = [
            render(self.rows),
            "",
            *conditions(facts),
            f"Disk: {free:.0f} GiB are free; an unfinished training takes up to "
            f"{self.scratch_gib:.2g} GiB more.",
        ]
        bad = misfits(self.real, self.rows, facts, self.scratch_gib, free)
        return "\n".join([*lines, *(f"would not fit: {line}" for line in bad)])

    # Set-up

    def _set_up(self) -> None:
        """Synthetic data and random weights where asked; links to the real ones otherwise."""
        options = self.options
        if options.synthetic_data:
            counts = synthetic.published_counts(self.params.datasets[self.dataset])
            self.params = projects.synthetic(self.params, self.dataset)
            place = self.params.datasets[self.dataset]
            _require(measure(self.whole, synthetic.write_annotations, place, counts))
        if options.random_weights:
            made = _require(measure(self.whole, random_weights, self.params, uses_sam(self.params)))
            self.params = validate(made.value)
        self._link(self.whole, self.workspace)
        for folder in (self.pictures, self.few):
            self._link(folder, self.whole)

    def _link(self, folder: Path, source: Path) -> None:
        """Link data and weights; the small projects read also generated data from ``whole``."""
        params = self.params
        if source == self.whole:
            study = params.study.model_copy(update={"generated": []})
            params = params.model_copy(update={"study": study})
        with contextlib.chdir(folder):
            link_raw_data(params, source)

    def _run(
        self, label: str, folder: Path, work: Callable[..., Any], *arguments: Any
    ) -> Row | None:
        """Rehearse one stage; ``label`` begins with its name. None if it is not wanted."""
        stage = label.split()[0]
        if stage not in self.wanted:
            return None
        unmet = [need for need in NEEDS[stage] if not self._is_good(need)]
        needs = Measured(fault=f"needs {', '.join(unmet)}")
        found = needs if unmet else measure(folder, work, *arguments)
        print(f"rehearse: {label}: {found.fault or f'ok, {found.seconds:.1f} s'}", flush=True)
        row = Row(stage, label, found)
        self.rows.append(row)
        return row

    def _predict(self, row: Row, tflop: float | None) -> None:
        """Add the seconds that the counted operations of a sample predict."""
        if tflop:
            rate = UTILISATION * float(self.machine["tflops"])
            self._fill(row, predicted=tflop / rate)

    def _operations(self, key: RunKey) -> Operations | None:
        """The operations of the network of a run; None if they cannot be counted."""
        start = self._start_of(key)
        if start not in self.operations:
            self.operations[start] = measure(self.few, count_network, self._resolved(start)).value
        return self.operations[start]

    def _is_good(self, stage: str) -> bool:
        return not any(row.measured.fault for row in self.rows if row.stage == stage)

    def _fill(self, row: Row | None, **values: Any) -> None:
        """Add the forecast of a row that succeeded."""
        if row is not None and not row.measured.fault:
            place = [each.label for each in self.rows].index(row.label)
            self.rows[place] = replace(self.rows[place], **values)

    # Stages

    def _tables(self) -> None:
        """Generate, prepare and split the whole data set."""
        params, dataset, whole = self.params, self.dataset, self.whole
        fractions = list(dict.fromkeys([key.fraction for key in self.runs]))
        check_images = not self.options.synthetic_data
        rows = []
        if dataset in params.study.generated and not self.options.synthetic_data:
            for name in dict.fromkeys([self.real.owner(dataset), dataset]):
                rows.append(self._run("generate", whole, generate, self.real, name))
        rows.append(self._run("prepare", whole, prepare, params, dataset, check_images))
        rows.append(self._run("split", whole, stages.split_all, params, dataset, fractions))
        for row in rows:
            disk = projects.size_gib(whole / "data") if row and row.stage == "prepare" else None
            self._whole(row, disk)
        if rows[-1] is not None and self._is_good("split"):
            counted = measure(whole, forecast.count_samples, params, dataset, fractions)
            self.counts = _require(counted).value

    def _whole(self, row: Row | None, disk_gib: float | None = None) -> None:
        """The forecast of a stage that ran as a whole: what was measured."""
        if row is not None:
            hours = Spread.of([row.measured.seconds / 3600])
            self._fill(row, hours=hours, disk_gib=disk_gib)

    def _proposals(self) -> None:
        """Verify SAM's checkpoint, and make the proposals of some pictures with every source."""
        params, dataset, options = self.params, self.dataset, self.options
        if "propose" in self.wanted and self._is_good("split"):
            self._cut(self.pictures, projects.cut_pictures, self.whole, options.pictures)
        if uses_sam(self.params):
            self._whole(self._run("sam", self.pictures, prepare_checkpoint, params))
        one = params.runtime.model_copy(update={"processes": 1})
        alone = params.model_copy(update={"runtime": one})
        for source in sources_of(params):
            row = self._run(
                f"propose {source}", self.pictures, stages.propose_some, alone, dataset, source
            )
            if row is None or row.measured.fault or self.counts is None:
                continue
            settings, images = params.proposals.sources[source], self.counts.images
            processes = measure(self.pictures, process_count, params, settings).value
            seconds = Spread.of(row.measured.value["seconds"])
            hours = seconds and seconds.times(images / processes / 3600)
            disk = row.measured.value["gib"] * images
            self._fill(row, per_sample=seconds, hours=hours, disk_gib=disk, processes=processes)
            if settings.kind == "segment_anything":
                counted = measure(self.pictures, count_sam, params, source).value
                self._predict(row, counted and sum(counted))

    def _cut(self, folder: Path, cut: Callable[..., None], *arguments: Any) -> None:
        """Make one of the small projects from the whole tables."""
        params = self._few if folder == self.few else self.params
        self._link(folder, self.whole)
        invented = self.options.synthetic_data
        _require(measure(folder, cut, params, self.dataset, *arguments, invented))

    @property
    def _few(self) -> Params:
        return projects.few_items(self.params, self.dataset, self.fraction, self.options.steps)

    def _resolved(self, key: RunKey) -> Params:
        """The real parameters of a run, with the overrides of its model and method."""
        return resolve(self.params, key, tuned=False)

    def _start_of(self, key: RunKey) -> RunKey:
        """The rehearsed burn-in that stands for the one of ``key``."""
        return replace(key, method=SUPERVISED, source=None, fraction=self.fraction, seed=self.seed)

    def _group_of(self, key: RunKey) -> tuple[object, ...]:
        """Methods of one group do the same work in a step."""
        method = self.params.refine[key.method]
        return (method.strategy, method.unlabelled, method.views, self._start_of(key))

    def _trainings(self) -> None:
        """Burn-in, mutual learning with each strategy, evaluation, a search and the report."""
        if "burn_in" not in self.wanted:
            return
        if self._is_good("split"):
            self._cut(self.few, projects.cut_few, self.fraction, self.whole)
        params, few = self._few, self.few
        starts = dict.fromkeys(self._start_of(key) for key in self.runs)
        for key in starts:
            own = [r for r in self.runs if r.method == SUPERVISED and self._start_of(r) == key]
            row = self._run(f"burn_in {key.label}", few, stages.train_some, params, key, burn_in)
            batch = resolve(params, key).burn_in.batch_size
            self._trained(row, key, own, forecast.burn_in_samples, batch)
        mixed = [key for key in self.runs if key.method != SUPERVISED]
        samples: list[Spread | None] = []
        for group in dict.fromkeys(map(self._group_of, mixed)):
            own = [run for run in mixed if self._group_of(run) == group]
            key = replace(own[0], fraction=self.fraction, seed=self.seed, source=None)
            row = self._run(f"mutual {key.label}", few, stages.train_some, params, key, mutual)
            per_step = forecast.samples_per_step(resolve(params, key), key.method)
            per_step //= params.runtime.accumulate
            samples.append(self._trained(row, key, own, forecast.mutual_samples, per_step))
        self._after_training(list(starts), next(filter(None, samples), None))

    def _trained(
        self, row: Row | None, key: RunKey, runs: list[RunKey],
        count: Callable[[Params, Counts, RunKey], int], batch: int,
    ) -> Spread | None:  # fmt: skip
        """The forecast of a training that stands for ``runs``; the seconds of a sample."""
        if row is None or row.measured.fault or self.counts is None:
            return None
        per_step = batch * self.params.runtime.accumulate
        seconds = Spread.of([s / per_step for s in row.measured.value])
        total = sum(count(self._resolved(run), self.counts, run) for run in runs)
        hours = seconds and seconds.times(total / 3600)
        folder = self.few / key.folder
        weights = (folder / "model.safetensors").stat().st_size / 2**30
        self.scratch_gib = max(self.scratch_gib, weights * forecast.STATE_COPIES[row.stage])
        disk = projects.size_gib(folder) * len(runs)
        self._fill(row, per_sample=seconds, hours=hours, disk_gib=disk)
        counted = self._operations(key)
        if counted is not None:
            self._predict(row, count_training(resolve(self._few, key), key, counted))
        return seconds

    def _after_training(self, starts: list[RunKey], sample: Spread | None) -> None:
        params, few, counts = self._few, self.few, self.counts
        expression: Spread | None = None
        for key in starts:
            row = self._run(f"evaluation {key.label}", few, stages.evaluate_some, params, key)
            if row is None or row.measured.fault or counts is None:
                continue
            expression = Spread.of(row.measured.value)
            own = [run for run in self.runs if self._start_of(run) == key]
            total = sum(forecast.evaluated_samples(self._resolved(run), counts, run) for run in own)
            hours = expression and expression.times(total / 3600)
            self._fill(row, per_sample=expression, hours=hours)
            counted = self._operations(key)
            self._predict(row, counted.forward if counted else None)
        found = [key for key in searches(self.params) if key.dataset == self.dataset]
        if found:
            key = replace(found[0], fraction=self.fraction, seed=self.seed, source=None)
            row = self._run(f"tune {key.label}", few, tune, params, key, False)
            if counts is not None and expression is not None:
                tuned = forecast.tune_hours(
                    self._resolved(found[0]), counts, len(found), expression, sample
                )
                self._fill(row, hours=tuned)
        self._run("report", few, stages.report_some, params, self.workspace)


def _require(found: Measured) -> Measured:
    """The result of a step that is no stage of the study.

    Raises:
        SemiresError: it failed.
    """
    if found.fault:
        raise SemiresError(f"rehearse: {found.fault}")
    return found


def _with_needs(names: Iterable[str]) -> set[str]:
    """The stages and all stages that they need."""
    wanted = set(names)
    for stage in reversed(NEEDS):
        if stage in wanted:
            wanted.update(NEEDS[stage])
    return wanted
