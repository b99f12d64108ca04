"""Tables filled from run records: values, intervals, paired differences, footnotes.

A table has one section per data set and labelled fraction, one row per method, one column per
split. Numbers stay unrounded here; `render.py` rounds when it writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import combinations, product

from semires.config.schema import Params
from semires.reporting import study
from semires.reporting.definitions import (
    PaperValues,
    TableDefinition,
    TableRow,
    display_name,
    fractions_of,
    paper_name,
)
from semires.reporting.records import METRICS, Records
from semires.reporting.selection import Selection, Value
from semires.runs.key import RunKey, fraction_name


@dataclass(frozen=True)
class FilledRow:
    """One row: values by metric and split, the paper's by split, the reason if it is empty.

    ``values`` holds overall IoU, ``others`` mean IoU and P@0.5. ``runs`` are its sources.
    """

    label: str
    method: str
    fraction: str
    marks: tuple[bool, ...] = ()
    values: dict[str, Value] = field(default_factory=dict)
    paper: dict[str, float] | None = None
    footnote: int | None = None
    others: dict[str, dict[str, Value]] = field(default_factory=dict)
    runs: tuple[RunKey, ...] = ()

    def of(self, metric: str) -> dict[str, Value]:
        """Values of one of METRICS by split."""
        return self.values if metric == METRICS[0] else self.others.get(metric, {})


@dataclass(frozen=True)
class TableSection:
    """The rows of one data set at one labelled fraction.

    ``comparable``: whether the paper uses this data set.
    """

    title: str
    dataset: str
    fraction: str
    comparable: bool
    rows: list[FilledRow]


@dataclass(frozen=True)
class FilledTable:
    """A filled table. ``footnotes`` explain empty rows, ``notes`` explain the numbers.

    ``is_difference``: the numbers are differences of two methods, in percentage points.
    """

    name: str
    title: str
    claim: str
    where: str
    splits: list[str]
    marks: list[str]
    sections: list[TableSection]
    notes: list[str]
    footnotes: list[str]
    is_difference: bool = False
    in_paper: bool = True

    @property
    def has_paper(self) -> bool:
        """Whether any row has a value of the paper."""
        return any(row.paper for section in self.sections for row in section.rows)

    @property
    def comparable(self) -> bool:
        """Whether any section is on a data set of the paper."""
        return any(section.comparable for section in self.sections)


class TableBuilder:
    """Fills definitions from records.

    Args:
        params: the active parameters; their study says which rows and fractions there are.
        records: all runs.
        paper: the paper's values.
    """

    def __init__(self, params: Params, records: Records, paper: PaperValues) -> None:
        self.params, self.paper = params, paper
        self.selection = Selection(params, records)

    def build(self, name: str, definition: TableDefinition) -> FilledTable:
        """Fill one table."""
        missing = _Missing(self.params)
        sections, notes = [], dict[str, None]()
        for dataset in study.datasets(self.params):
            spans_rows = all(row.fraction is not None for row in definition.rows)
            for fraction in fractions_of(self.params, definition)[: 1 if spans_rows else None]:
                title = display_name(self.params, dataset)
                if not spans_rows:
                    title += f", {fraction_name(fraction)} % labelled"
                shown = self._rows(definition, fraction)
                notes.update(dict.fromkeys(row.note for row in shown if row.note is not None))
                rows = [self._row(row, dataset, fraction, missing) for row in shown]
                sections.append(
                    TableSection(
                        title, dataset, fraction_name(fraction),
                        paper_name(self.params, dataset) is not None, rows,
                    )
                )  # fmt: skip
        splits = dict.fromkeys(
            split
            for dataset in study.datasets(self.params)
            for split in self._splits(dataset)
            if split in (definition.splits or [split])
        )
        table = FilledTable(
            name=name, title=definition.title, claim=definition.claim, where=definition.where,
            splits=list(splits), marks=definition.marks, sections=sections, notes=[],
            footnotes=missing.footnotes(), in_paper=definition.in_paper,
        )  # fmt: skip
        standard = _standard_notes(table, self.selection.samples)
        table.notes.extend([*definition.notes, *notes, *standard])
        return table

    def differences(self, table: FilledTable, definition: TableDefinition) -> FilledTable | None:
        """Paired differences of each pair of a table's rows, or of all rows to ``against``.

        None if there are none.
        """
        sections = []
        for section in table.sections:
            defined = {row.label: row for row in self._rows(definition, float(section.fraction))}
            filled = [defined[row.label] for row in section.rows if row.values]
            pairs = [
                self._difference(first, second, section)
                for first, second in _pairs(filled, definition.against)
                if first.smallest == second.smallest
            ]
            rows = [row for row in pairs if row.values]
            if rows:
                sections.append(
                    TableSection(section.title, section.dataset, section.fraction, False, rows)
                )
        if not sections:
            return None
        return FilledTable(
            name=f"{table.name}_differences", title=f"{table.title}: paired differences",
            claim="", where="", splits=table.splits, marks=[], sections=sections,
            notes=_difference_notes(sections, self.selection.samples), footnotes=[],
            is_difference=True,
        )  # fmt: skip

    def _splits(self, dataset: str) -> list[str]:
        return [split for split in self.params.datasets[dataset].splits if split != "train"]

    def _rows(self, definition: TableDefinition, fraction: float) -> list[TableRow]:
        if not definition.from_study:
            return definition.rows
        methods = study.methods(self.params, fraction)
        rows = [row for row in definition.rows if row.method in methods]
        known = {row.method for row in definition.rows}
        return rows + [TableRow(label=m, method=m) for m in methods if m not in known]

    def _row(self, row: TableRow, dataset: str, fraction: float, missing: _Missing) -> FilledRow:
        key = self.selection.key(row, dataset, fraction)
        values = self._values(
            dataset, lambda *at: self.selection.value(row, dataset, fraction, *at)
        )
        return FilledRow(
            label=row.label,
            method=key.label,
            fraction=fraction_name(key.fraction),
            marks=tuple(row.marks),
            values=values[METRICS[0]],
            paper=self.paper.row(
                row, paper_name(self.params, dataset), fraction_name(key.fraction)
            ),
            footnote=None if values[METRICS[0]] else missing.add(key, row.needs),
            others={metric: values[metric] for metric in METRICS[1:]},
            runs=tuple(run.key for run in self.selection.runs(row, dataset, fraction)),
        )

    def _difference(self, first: TableRow, second: TableRow, section: TableSection) -> FilledRow:
        """The later row minus the earlier one."""
        dataset, fraction = section.dataset, section.fraction
        at_fraction = float(fraction)
        values = self._values(
            dataset,
            lambda *at: self.selection.difference((second, first), dataset, at_fraction, *at),
        )
        if first.fraction != second.fraction and first.fraction and second.fraction:
            fraction = f"{fraction_name(second.fraction)} - {fraction_name(first.fraction)}"
        return FilledRow(
            f"{second.label} − {first.label}", f"{second.method} - {first.method}", fraction,
            values=values[METRICS[0]], others={metric: values[metric] for metric in METRICS[1:]},
        )  # fmt: skip

    def _values(
        self, dataset: str, compute: Callable[[str, str], Value | None]
    ) -> dict[str, dict[str, Value]]:
        """The values that exist, by metric and split."""
        found = {
            metric: {split: compute(split, metric) for split in self._splits(dataset)}
            for metric in METRICS
        }
        return {
            metric: {split: value for split, value in by_split.items() if value is not None}
            for metric, by_split in found.items()
        }


class _Missing:
    """Collects empty rows and states, in one footnote per reason, which command fills them."""

    def __init__(self, params: Params) -> None:
        self._params = params
        self._keys: dict[str, list[RunKey]] = {}

    def add(self, key: RunKey, needs: str | None) -> int:
        """Note an empty row; returns the position of its footnote."""
        if needs is not None:
            reason = f"no run: needs {needs}."
        else:
            reason = "planned" if study.is_planned(key, self._params) else "unplanned"
        self._keys.setdefault(reason, []).append(key)
        return list(self._keys).index(reason)

    def footnotes(self) -> list[str]:
        """The text of each footnote, commands in backticks."""
        return [self._text(reason, keys) for reason, keys in self._keys.items()]

    def _text(self, reason: str, keys: list[RunKey]) -> str:
        if reason == "planned":
            return "no run yet: `dvc repro` fills it."
        if reason == "unplanned":
            return f"no run: {study.fill_command(keys, self._params)}."
        return reason


def _pairs(rows: list[TableRow], against: str | None) -> Iterable[tuple[TableRow, TableRow]]:
    if against is None:
        return combinations(rows, 2)
    return product(
        [r for r in rows if r.method == against], [r for r in rows if r.method != against]
    )


def _difference_notes(sections: Iterable[TableSection], samples: int) -> list[str]:
    values = [v for s in sections for row in s.rows for v in row.values.values()]
    notes = [
        "Percentage points, on the seeds that both methods have. Brackets: 95 % confidence "
        "interval of the difference by paired bootstrap over images and seeds "
        f"({samples:,} resamples, the same for both methods); * marks those that exclude 0."
    ]
    if any(v.sd is not None for v in values):
        notes.append("Mean ± standard deviation of the seeds' differences.")
    if any(v.seeds == 1 for v in values):
        notes.append("With one seed, the interval covers images only.")
    return notes


def _standard_notes(table: FilledTable, samples: int) -> list[str]:
    values = [v for s in table.sections for row in s.rows for v in row.values.values()]
    notes = [
        "oIoU: overall IoU in percent, the sum of intersections over the sum of unions of all "
        "expressions of a split. mIoU: the mean of the expressions' IoU. P@0.5: the share of "
        "expressions with an IoU of at least 0.5. Brackets: 95 % confidence interval by bootstrap "
        f"over images ({samples:,} resamples)."
    ]
    counts = sorted({v.seeds for v in values})
    if counts and counts[-1] > 1:
        several = f"{counts[-1]} seeds" if counts == counts[-1:] else "the seeds that were run"
        notes.append(f"Mean ± standard deviation over {several}; the CSV has their number.")
    elif counts:
        notes.append("One seed: the interval does not cover the variation between trainings.")
    if table.has_paper and not table.comparable:
        notes.append(
            f"Paper: overall IoU ({' / '.join(table.splits)}) on RefCOCO with Swin-B, BERT-base "
            "and SAM ViT-H, for reference. It is not comparable with the values beside it."
        )
    elif table.comparable and not all(section.comparable for section in table.sections):
        notes.append("The paper's values are comparable on its own data sets only.")
    return notes
