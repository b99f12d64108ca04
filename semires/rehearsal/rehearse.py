"""`semires rehearse`: every stage of the study for a few items at full size, and one table.

All work is done in a temporary folder. The real outputs, caches and MLflow experiments are neither
read nor written; real data and weights are read through links.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from semires.config.compose import link_raw_data
from semires.config.grid import searches, sources_of, uses_sam
from semires.config.messages import require
from semires.config.resolve import resolve, source_of
from semires.config.schema import Params
from semires.config.sources import SAM_KINDS
from semires.config.validate import validate
from semires.data.prepare import prepare
from semires.data.refscenes import generate
from semires.errors import ConfigError
from semires.proposals.checkpoint import prepare_checkpoint
from semires.proposals.workers import process_count
from semires.rehearsal import forecast, projects, stages, synthetic
from semires.rehearsal.forecast import Counts, Spread
from semires.rehearsal.measure import demand, machine, measure
from semires.rehearsal.operations import Operations, count_network, count_sam, count_training
from semires.rehearsal.table import NEEDS, Ledger, Row, conditions, misfits, render, with_needs
from semires.rehearsal.weights import random_weights
from semires.runs import layout
from semires.runs.key import SUPERVISED, RunKey
from semires.training.burn_in import burn_in
from semires.training.mutual import mutual
from semires.tuning.study import tune


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
    require(options.stages or [], NEEDS, "--stages", "the stages")
    if not forecast.runs_of(params, dataset):
        raise ConfigError(f"--dataset: the study has no run on {dataset}")
    with tempfile.TemporaryDirectory(prefix="semires-rehearsal-") as folder:
        rehearsal = Rehearsal(params, dataset, options, Path(folder))
        rehearsal.run()
        print(f"\n{rehearsal.summary()}")
    return int(any(row.measured.fault for row in rehearsal.book.rows))


class Rehearsal:
    """One rehearsal in the temporary folder ``place``; `run` fills ``book``.

    ``counts`` exist once the stage `split` has succeeded.
    """

    counts: Counts

    def __init__(self, params: Params, dataset: str, options: Options, place: Path) -> None:
        self.real, self.dataset, self.options = params, dataset, options
        self.params = projects.own_images(params, dataset)
        self.workspace = Path.cwd()
        self.whole, self.pictures, self.few = (place / n for n in ("whole", "pictures", "few"))
        for folder in (self.whole, self.pictures, self.few):
            folder.mkdir()
        self.runs = forecast.runs_of(params, dataset)
        self.searches = [key for key in searches(params) if key.dataset == dataset]
        self.prompts = any(map(self._prompted_by, [*self.runs, *self.searches]))
        mixed = [key for key in self.runs if key.method != SUPERVISED]
        first = (mixed or self.runs)[0]
        self.fraction, self.seed = first.fraction, first.seed
        self.machine: dict[str, Any] = demand(place, machine)
        wanted = set(options.stages or NEEDS)
        if self.prompts and wanted & {"labels", "mutual", "tune"}:
            wanted.add("propose")  # other sources have a stand-in
        self.book = Ledger(with_needs(wanted))
        self.operations: dict[RunKey, Operations | None] = {}  # by burn-in
        self.sam_operations: dict[str | None, float] = {None: 0.0}  # by source
        self.scratch_gib = 0.0

    def run(self) -> None:
        """Rehearse all wanted stages; a stage whose needs failed is not started."""
        self._set_up()
        self._tables()
        self._cut()
        self._proposals()
        self._trainings()

    def summary(self) -> str:
        """The table, the machine, and what would not fit."""
        facts, rows, scratch = self.machine, self.book.rows, self.scratch_gib
        free = shutil.disk_usage(self.workspace).free / 2**30
        disk = f"Disk: {free:.0f} GiB are free"
        if scratch:
            disk += f"; an unfinished training takes up to {scratch:.2g} GiB more"
        lines = [render(rows), "", *conditions(facts, self.book.rows), f"{disk}."]
        bad = misfits(self.real, rows, facts, scratch, free)
        return "\n".join([*lines, *(f"would not fit: {line}" for line in bad)])

    # Set-up

    def _set_up(self) -> None:
        """Synthetic data and random weights where asked; links to the real ones otherwise."""
        options = self.options
        if options.synthetic_data:
            counts = synthetic.published_counts(self.params.datasets[self.dataset])
            self.params = projects.synthetic(self.params, self.dataset)
            place = self.params.datasets[self.dataset]
            demand(self.whole, synthetic.write_annotations, place, counts)
        if options.random_weights:
            self.params = validate(demand(self.whole, random_weights, self.params))
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

    def _operations(self, key: RunKey) -> Operations | None:
        """The operations of the network of a run; None if they cannot be counted."""
        start = self._start_of(key)
        if start not in self.operations:
            self.operations[start] = measure(self.few, count_network, self._resolved(start)).value
        return self.operations[start]

    # Stages

    def _tables(self) -> None:
        """Generate, prepare and split the whole data set."""
        params, dataset, whole = self.params, self.dataset, self.whole
        fractions = list(dict.fromkeys([key.fraction for key in self.runs]))
        check_images = not self.options.synthetic_data
        rows = []
        if dataset in params.study.generated and not self.options.synthetic_data:
            for name in dict.fromkeys([self.real.owner(dataset), dataset]):
                rows.append(self.book.run("generate", whole, generate, self.real, name))
        rows.append(self.book.run("prepare", whole, prepare, params, dataset, check_images))
        rows.append(self.book.run("split", whole, stages.split_all, params, dataset, fractions))
        for row in filter(None, rows):
            row.forecast_whole(
                projects.size_gib(whole / "data") if row.stage == "prepare" else None
            )
        if rows[-1] is not None:
            self.counts = demand(whole, forecast.count_samples, params, dataset, fractions)

    def _cut(self) -> None:
        """Make the small projects from the whole tables."""
        dataset, invented = self.dataset, self.options.synthetic_data
        if not self.book.is_good("split"):
            return
        propose = "propose" in self.book.wanted
        if propose:
            given = self.params, dataset, self.whole, self.options.pictures, invented
            self._link(self.pictures, self.whole)
            demand(self.pictures, projects.cut_pictures, *given)
        if "burn_in" in self.book.wanted or (propose and self.prompts):
            some = self._few, dataset, self.fraction, self.whole, invented
            self._link(self.few, self.whole)
            demand(self.few, projects.cut_few, *some)

    def _proposals(self) -> None:
        """Verify SAM's checkpoint, and make the proposals of some pictures with every source.

        A source that is prompted with labels is prompted with those of val in the project ``few``.
        """
        params, dataset = self.params, self.dataset
        if uses_sam(params):
            if row := self.book.run("sam", self.pictures, prepare_checkpoint, params):
                row.forecast_whole()
            if (made := self.pictures / layout.SAM).exists():
                (self.few / layout.SAM).symlink_to(made)
        one = params.runtime.model_copy(update={"processes": 1})
        alone = params.model_copy(update={"runtime": one})
        for source in sources_of(params):
            settings = params.proposals.sources[source]
            prompted = settings.kind == "sam_prompts"
            folder, given = (self.few, self._few) if prompted else (self.pictures, alone)
            row = self.book.run(
                f"propose {source}", folder, stages.propose_some, given, dataset, source
            )
            if row is None:
                continue
            items = self.counts.val_refs
            if not prompted:
                row.processes = measure(self.pictures, process_count, params, settings).value
                items = self.counts.images
            row.forecast(row.measured.value["seconds"], items / row.processes)
            row.disk_gib = row.measured.value["gib"] * self.counts.images
            if settings.kind in SAM_KINDS:
                row.tflop = self._sam_operations(source)

    def _sam_operations(self, source: str | None) -> float:
        """TFLOP of SAM for an image or a label; 0 without a source or if they cannot be counted."""
        if source not in self.sam_operations:
            counted = measure(self.few, count_sam, self.params, source).value
            self.sam_operations[source] = sum(counted or (0.0,))
        return self.sam_operations[source]

    @property
    def _few(self) -> Params:
        return projects.few_items(self.params, self.dataset, self.fraction, self.options.steps)

    def _resolved(self, key: RunKey) -> Params:
        """The real parameters of a run, with the overrides of its model and method."""
        return resolve(self.params, key, tuned=False)

    def _start_of(self, key: RunKey) -> RunKey:
        """The rehearsed burn-in that represents the one of ``key``."""
        return replace(key, method=SUPERVISED, source=None, fraction=self.fraction, seed=self.seed)

    def _prompted_by(self, key: RunKey) -> str | None:
        """The source of a run that prompts SAM with each label; None for other kinds."""
        source = source_of(self.params, key)
        return source if self.params.proposals.sources[source].kind == "sam_prompts" else None

    def _proposals_of(self, key: RunKey) -> tuple[str, ...]:
        """The row of the proposals that a run needs if they are no stand-in."""
        source = self._prompted_by(key)
        return () if source is None else (f"propose {source}",)

    def _group_of(self, key: RunKey) -> tuple[object, ...]:
        """Runs of one group do the same work in a step."""
        method, start = self.params.refine[key.method], self._start_of(key)
        work = (method.strategy, method.unlabelled, method.views)
        return (*work, self._prompted_by(key), start)

    def _trainings(self) -> None:
        """Burn-in, mutual learning with each strategy, evaluation, a search and the report."""
        if "burn_in" not in self.book.wanted:
            return
        params, few = self._few, self.few
        starts = dict.fromkeys(self._start_of(key) for key in self.runs)
        for key in starts:
            own = [r for r in self.runs if r.method == SUPERVISED and self._start_of(r) == key]
            row = self.book.run(
                f"burn_in {key.label}", few, stages.train_some, params, key, burn_in
            )
            batch = resolve(params, key).burn_in.batch_size
            self._trained(row, key, own, forecast.burn_in_samples, batch)
        if fractions := forecast.labels_fractions(self.params, self.dataset):
            self._labels(self._start_of(replace(self.runs[0], model=None)), fractions)
        mixed = [key for key in self.runs if key.method != SUPERVISED]
        samples: list[Spread | None] = []
        for group in dict.fromkeys(map(self._group_of, mixed)):
            own = [run for run in mixed if self._group_of(run) == group]
            key = replace(own[0], fraction=self.fraction, seed=self.seed)
            row = self.book.run(
                f"mutual {key.label}", few, stages.train_some, params, key, mutual,
                needs=self._proposals_of(key),
            )  # fmt: skip
            per_step = forecast.samples_per_step(resolve(params, key), key.method)
            per_step //= params.runtime.accumulate
            samples.append(self._trained(row, key, own, forecast.mutual_samples, per_step))
        self._after_training(list(starts), next(filter(None, samples), None))

    def _trained(
        self, row: Row | None, key: RunKey, runs: list[RunKey],
        count: Callable[[Params, Counts, RunKey], int], batch: int,
    ) -> Spread | None:  # fmt: skip
        """The forecast of a training that stands for ``runs``; the seconds of a sample."""
        if row is None:
            return None
        per_step = batch * self.params.runtime.accumulate
        total = sum(count(self._resolved(run), self.counts, run) for run in runs)
        row.forecast([s / per_step for s in row.measured.value], total)
        folder = self.few / key.folder
        weights = (folder / "model.safetensors").stat().st_size / 2**30
        self.scratch_gib = max(self.scratch_gib, weights * forecast.STATE_COPIES[row.stage])
        row.disk_gib = projects.size_gib(folder) * len(runs)
        if (counted := self._operations(key)) is not None:
            prompt = self._sam_operations(self._prompted_by(key))
            row.tflop = count_training(resolve(self._few, key), key, counted, prompt)
        if key.method != SUPERVISED:
            (folder / "model.safetensors").unlink()  # no other stage reads it
        return row.per_sample

    def _labels(self, key: RunKey, fractions: list[float]) -> None:
        """The quality of the pseudo-labels of every rule, after the burn-in ``key``."""
        needs = self._proposals_of(key)
        row = self.book.run("labels", self.few, stages.label_some, self._few, key, needs=needs)
        if row is None:
            return
        total = sum(forecast.labels_refs(self.params, self.counts, each) for each in fractions)
        row.forecast(row.measured.value, total)
        if (counted := self._operations(key)) is not None:
            row.tflop = counted.forward + self._sam_operations(self._prompted_by(key))

    def _after_training(self, starts: list[RunKey], sample: Spread | None) -> None:
        params, few = self._few, self.few
        expression: Spread | None = None
        for key in starts:
            row = self.book.run(f"evaluation {key.label}", few, stages.evaluate_some, params, key)
            if row is None:
                continue
            own = [run for run in self.runs if self._start_of(run) == key]
            total = sum(
                forecast.evaluated_samples(self._resolved(run), self.counts, run) for run in own
            )
            row.forecast(row.measured.value, total)
            expression = row.per_sample
            if (counted := self._operations(key)) is not None:
                row.tflop = counted.forward
        if found := self.searches:
            key = replace(found[0], fraction=self.fraction, seed=self.seed)
            needs = self._proposals_of(key)
            row = self.book.run(f"tune {key.label}", few, tune, params, key, False, needs=needs)
            if row is not None and expression is not None:
                row.hours = forecast.tune_hours(
                    self._resolved(found[0]), self.counts, len(found), expression, sample
                )
        self.book.run("report", few, stages.report_some, params, self.workspace)
