"""What the tables need of a study: sections, runs of rows, missing runs, a part of the study."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from semires.config.grid import block_text, blocks_of, expand, search_of, searches
from semires.config.messages import nearest
from semires.config.schema import Block, Params, Study
from semires.errors import ConfigError
from semires.reporting.definitions import (
    FigureDefinition,
    PaperValues,
    TableDefinition,
    TableRow,
    counterpart,
    fractions_of,
    load_definitions,
)
from semires.runs import layout
from semires.runs.key import SUPERVISED, RunKey, fraction_name

#: The folder of the report of a part of a study.
PART = "reports/part"


def run_of(params: Params, row: TableRow, dataset: str, fraction: float) -> RunKey:
    """A row's run of the study's first seed; a row's fixed fraction replaces ``fraction``."""
    seed = params.study.seeds[0]
    key = RunKey(dataset, row.fraction or fraction, row.method, seed, row.source, row.model)
    return key.relative_to(params.proposals.source)


class Plan:
    """The tables of a study before any run.

    Args:
        params: the active parameters; their study says which data sets, fractions and runs exist.
        paper: the paper's values.
    """

    def __init__(self, params: Params, paper: PaperValues) -> None:
        self.params, self.paper = params, paper
        self._planned: dict[RunKey, list[RunKey]] = {}  # by the key of seed 0
        for key in expand(params):
            self._planned.setdefault(replace(key, seed=0), []).append(key)

    def planned(self, row: TableRow, dataset: str, fraction: float) -> list[RunKey]:
        """The study's runs of a row, one for each seed; empty if it has none."""
        key = run_of(self.params, row, dataset, fraction)
        return self._planned.get(replace(key, seed=0), [])

    def makes_all(self, keys: Iterable[RunKey]) -> bool:
        """Whether the study has the runs with any seed, so that `dvc repro` makes them."""
        return all(replace(key, seed=0) in self._planned for key in keys)

    def fill_command(self, keys: Sequence[RunKey]) -> str:
        """Instructions to make the given runs, with commands in backticks."""
        if self.makes_all(keys):
            return "`dvc repro`"
        every = (replace(key, seed=seed) for key in keys for seed in self.params.study.seeds)
        blocks = ", ".join(f"`- {block_text(block)}`" for block in blocks_of(every))
        return f"add {blocks} to `study.runs` in params.yaml, then `make repro`"

    def fractions(
        self,
        definition: TableDefinition | FigureDefinition,
        keys_at: Callable[[float], Iterable[RunKey]],
    ) -> list[float]:
        """The labelled fractions (percent) of a table or figure.

        If it spans the study, these are the fractions of the main table, and all others at which
        the study makes every run of ``keys_at(fraction)``.
        """
        chosen = fractions_of(self.params, definition)
        if definition.fractions != "study":
            return chosen
        every = {fraction for block in self.params.study.runs for fraction in block.fractions}
        return sorted({*chosen, *(f for f in every if self.makes_all(keys_at(f)))})

    def paper_values(self, row: TableRow, dataset: str, fraction: float) -> dict[str, float] | None:
        """The paper's oIoU of a row by split, or None."""
        name = counterpart(self.params, dataset)
        return self.paper.row(row, name, fraction_name(row.fraction or fraction))

    def makes(self, definition: TableDefinition) -> bool:
        """Whether the study's report has a table.

        A table that the paper does not have is left out if the study has none of the runs that
        distinguish it from the main table.
        """
        shared = {SUPERVISED, *self.params.study.methods}
        own = [r for r in definition.rows if r.method not in shared or r.source or r.model]
        return (
            definition.in_paper
            or not own
            or any(
                self.planned(row, dataset, fraction)
                for dataset, fraction in self._places(definition)
                for row in own
            )
        )

    def sections(self, definition: TableDefinition) -> Iterator[tuple[str, float, list[TableRow]]]:
        """The data sets and fractions for which a table has a section, each with its rows.

        The study's first data set has all sections. Another one has those for which the paper has
        numbers of its counterpart, or the study all runs. A joined table has a section for each
        fraction at which the study has all runs on some data set.
        """
        for dataset, fraction in self._places(definition):
            rows = self.rows(definition, dataset, fraction)
            if self._is_shown(definition, rows, dataset, fraction):
                yield dataset, fraction, rows

    def rows(self, definition: TableDefinition, dataset: str, fraction: float) -> list[TableRow]:
        """The rows of a section."""
        if not definition.from_study:
            return definition.rows
        methods = self._methods(dataset, fraction)
        rows = [row for row in definition.rows if row.method in methods]
        known = {row.method for row in definition.rows}
        return rows + [TableRow(label=m, method=m) for m in methods if m not in known]

    def _methods(self, dataset: str, fraction: float) -> list[str]:
        """The methods of the main table that the study has for a data set and a fraction.

        Burn-in (`supervised`) is first. Methods with tuned thresholds have a row wherever the study
        trains them.
        """
        at = (dataset, fraction, None)
        keys = [key for key in self._planned if (key.dataset, key.fraction, key.model) == at]
        there = {key.method for key in keys}
        tuned = [key.method for key in keys if search_of(self.params, key) is not None]
        wanted = dict.fromkeys([SUPERVISED, *self.params.study.methods, *tuned])
        return [method for method in wanted if method in there]

    def runs(self, definition: TableDefinition) -> list[RunKey]:
        """The study's runs that a table needs, with the burn-ins from which they start."""
        found = [
            key
            for dataset, fraction, rows in self.sections(definition)
            for row in rows
            for key in self.planned(row, dataset, fraction)
        ]
        return list(dict.fromkeys(each for key in found for each in (key.burn_in, key)))

    def _places(self, definition: TableDefinition) -> Iterator[tuple[str, float]]:
        """All data sets and fractions; one fraction if each row has a fraction of its own."""
        fractions = fractions_of(self.params, definition)
        for dataset in self.params.study.datasets:
            for fraction in fractions[:1] if spans_rows(definition) else fractions:
                yield dataset, fraction

    def _is_shown(
        self, definition: TableDefinition, rows: list[TableRow], dataset: str, fraction: float
    ) -> bool:
        datasets = self.params.study.datasets
        if definition.joined:
            return any(self._all_planned(rows, name, fraction) for name in datasets)
        return bool(rows) and (
            dataset == datasets[0]
            or self._all_planned(rows, dataset, fraction)
            or any(self.paper_values(row, dataset, fraction) for row in rows)
        )

    def _all_planned(self, rows: list[TableRow], dataset: str, fraction: float) -> bool:
        return all(self.planned(row, dataset, fraction) for row in rows)


def spans_rows(definition: TableDefinition) -> bool:
    """Whether each row has a fraction of its own, so that one section spans the fractions."""
    return all(row.fraction is not None for row in definition.rows)


def part_of(params: Params, names: Iterable[str]) -> Study:
    """The part of a study that some tables need: their runs, and the searches of tuned methods.

    Args:
        params: all parameters.
        names: tables, as ``7`` for `table7.yaml` or as the name of a file such as ``main``.

    Raises:
        ConfigError: a table does not exist, or the study has no run for it.
    """
    definitions, _ = load_definitions()
    plan = Plan(params, PaperValues())
    known = {re.sub(r"^table(?=\d)", "", n): d for n, d in definitions.items() if plan.makes(d)}
    wanted: dict[RunKey, None] = {}
    for name in names:
        definition = known.get(re.sub(r"^table(?=\d)", "", name))
        if definition is None:
            raise ConfigError(
                f"--tables: {name!r} is no table of the study in {layout.TABLES}"
                f"{nearest(name, known)}"
            )
        runs = plan.runs(definition)
        if not runs:
            raise ConfigError(f"--tables: the study has no run for table {name!r}")
        wanted |= dict.fromkeys(runs)
    if not wanted:
        raise ConfigError("--tables: names no table")
    tuned = {replace(s, seed=0) for key in wanted if (s := search_of(params, key)) is not None}
    searched = [key for key in searches(params) if replace(key, seed=0) in tuned]
    wanted |= dict.fromkeys(key.burn_in for key in searched)
    return _narrowed(params, wanted, searched)


def _narrowed(params: Params, runs: Iterable[RunKey], searched: Iterable[RunKey]) -> Study:
    """The study with these runs and searches only, in the order of its blocks."""
    runs = set(runs)
    implied = {key.burn_in for key in runs if key.method != SUPERVISED}
    left = runs - implied
    blocks: list[Block] = []
    for block in params.study.runs:
        kept = [key for key in expand(params, [block]) if key in left]
        blocks += blocks_of(kept)
        left.difference_update(kept)
    datasets = {key.dataset for key in runs}
    read = datasets | set(map(params.owner, datasets))
    return params.study.model_copy(
        update={
            "reports": PART,
            "generated": [name for name in params.study.generated if name in read],
            "runs": blocks,
            "tune": blocks_of(searched),
        }
    )
