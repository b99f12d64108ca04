"""Tables filled from run records: values, confidence intervals, paired differences, footnotes.

A table has one section per data set and labelled fraction, one row per method, one column per
split. Numbers stay unrounded here; `render.py` rounds when it writes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from semires.config.grid import expand
from semires.config.schema import Params
from semires.evaluation.bootstrap import ImageSums, confidence_interval, paired_difference
from semires.reporting.definitions import (
    PaperValues,
    TableDefinition,
    TableRow,
    display_name,
    fractions_of,
    paper_name,
)
from semires.reporting.records import Records, Run
from semires.runs.key import RunKey, fraction_name


@dataclass(frozen=True)
class Value:
    """A number of the table (percent or percentage points), its interval and what it is from."""

    value: float
    low: float
    high: float
    sd: float | None
    seeds: int
    images: int
    expressions: int


@dataclass(frozen=True)
class Row:
    """One row: values by split, the paper's values by split, and why it is empty if it is."""

    label: str
    method: str
    fraction: str
    marks: tuple[bool, ...] = ()
    values: dict[str, Value] = field(default_factory=dict)
    paper: dict[str, float] | None = None
    footnote: int | None = None


@dataclass(frozen=True)
class Section:
    """The rows of one data set at one labelled fraction (None: the rows state it)."""

    title: str
    dataset: str
    fraction: str
    comparable: bool
    rows: list[Row]


@dataclass(frozen=True)
class Table:
    """A filled table. ``footnotes`` are for empty cells, ``notes`` say what the numbers are."""

    name: str
    title: str
    claim: str
    where: str
    splits: list[str]
    marks: list[str]
    sections: list[Section]
    notes: list[str]
    footnotes: list[str]
    metric: str = "oIoU"
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
        records: all run records.
        paper: the paper's values.
    """

    def __init__(self, params: Params, records: Records, paper: PaperValues) -> None:
        self.params, self.records, self.paper = params, records, paper
        self.samples = params.evaluation.bootstrap_samples

    def build(self, name: str, definition: TableDefinition) -> Table:
        """Fill one table."""
        missing = _Missing(self.params)
        sections, notes = [], dict[str, None]()
        for dataset in self.params.study.datasets:
            spans_rows = all(row.fraction is not None for row in definition.rows)
            for fraction in fractions_of(self.params, definition)[: 1 if spans_rows else None]:
                title = display_name(self.params, dataset)
                if not spans_rows:
                    title += f", {fraction_name(fraction)} % labelled"
                shown = self._rows(definition, fraction)
                notes.update(dict.fromkeys(row.note for row in shown if row.note is not None))
                rows = [self._row(row, dataset, fraction, missing) for row in shown]
                comparable = paper_name(self.params, dataset) is not None
                sections.append(Section(title, dataset, fraction_name(fraction), comparable, rows))
        splits = _unique(
            split
            for dataset in self.params.study.datasets
            for split in self.params.datasets[dataset].splits
            if split != "train" and split in (definition.splits or [split])
        )
        table = Table(
            name=name, title=definition.title, claim=definition.claim, where=definition.where,
            splits=splits, marks=definition.marks, sections=sections, notes=[],
            footnotes=missing.footnotes(), in_paper=definition.in_paper,
        )  # fmt: skip
        table.notes.extend([*definition.notes, *notes, *_standard_notes(table, self.samples)])
        return table

    def differences(self, table: Table, definition: TableDefinition) -> Table | None:
        """Paired bootstrap differences of each pair of a table's rows; None if there are none."""
        sections = []
        for section in table.sections:
            defined = {row.label: row for row in self._rows(definition, float(section.fraction))}
            filled = [row for row in section.rows if row.values]
            rows = [
                self._difference(defined[first.label], defined[second.label], section)
                for first, second in combinations(filled, 2)
                if defined[first.label].smallest == defined[second.label].smallest
            ]
            rows = [row for row in rows if row.values]
            if rows:
                sections.append(
                    Section(section.title, section.dataset, section.fraction, False, rows)
                )
        if not sections:
            return None
        notes = [
            "Percentage points of oIoU, on the seeds that both methods have. Brackets: 95 % "
            "confidence interval of the difference by paired bootstrap over images "
            f"({self.samples:,} resamples, the same for both); * marks those that exclude 0."
        ]
        if any(v.sd is not None for s in sections for row in s.rows for v in row.values.values()):
            notes.append("Mean ± standard deviation of the seeds' differences.")
        return Table(
            name=f"{table.name}_differences", title=f"{table.title}: paired differences",
            claim="", where="", splits=table.splits, marks=[],
            sections=sections, notes=notes, footnotes=[], metric="difference of oIoU",
        )  # fmt: skip

    def _rows(self, definition: TableDefinition, fraction: float) -> list[TableRow]:
        if not definition.from_study:
            return definition.rows
        study = self.params.study
        methods = ["supervised", *study.methods]
        methods += [
            key.method
            for key in expand(self.params)
            if key.fraction == fraction
            and key.method not in methods
            and self.params.refine[key.method].thresholds == "tuned"
        ]
        rows = [row for row in definition.rows if row.method in methods]
        known = {row.method for row in definition.rows}
        new = [m for m in dict.fromkeys(methods) if m not in known]
        return rows + [TableRow(label=m, method=m) for m in new]

    def _row(self, row: TableRow, dataset: str, fraction: float, missing: _Missing) -> Row:
        fraction = row.fraction or fraction
        cell = self._cell(row, dataset, fraction)
        values: dict[str, Value] = {}
        if row.needs is None:
            runs = self.records.find(dataset, fraction, cell.label)
            for split in self.params.datasets[dataset].splits:
                sums = _sums(runs, split, row)
                if sums:
                    values[split] = self._value(sums)
        name = paper_name(self.params, dataset)
        return Row(
            label=row.label,
            method=cell.label,
            fraction=fraction_name(fraction),
            marks=tuple(row.marks),
            values=values,
            paper=self.paper.row(row, name, fraction_name(fraction)),
            footnote=None if values else missing.add(cell, row.needs),
        )

    def _cell(self, row: TableRow, dataset: str, fraction: float) -> RunKey:
        source = None if row.source == self.params.proposals.source else row.source
        return RunKey(dataset, fraction, row.method, self.params.study.seeds[0], source)

    def _value(self, sums: list[ImageSums]) -> Value:
        interval = confidence_interval(sums, self.samples)
        each = [s.oiou for s in sums]
        sd = float(np.std(each, ddof=1)) if len(each) > 1 else None
        return Value(
            interval.value, interval.low, interval.high, sd, len(each),
            len(sums[0].images), sums[0].n_expressions,
        )  # fmt: skip

    def _difference(self, first: TableRow, second: TableRow, section: Section) -> Row:
        values: dict[str, Value] = {}
        for split in self.params.datasets[section.dataset].splits:
            pair = self._paired_sums(first, second, section, split)
            if not pair[0]:
                continue
            try:
                interval = paired_difference(pair[1], pair[0], self.samples)
            except ValueError:  # evaluated on different expressions: nothing to pair
                continue
            each = [b.oiou - a.oiou for a, b in zip(*pair, strict=True)]
            sd = float(np.std(each, ddof=1)) if len(each) > 1 else None
            values[split] = Value(
                interval.value, interval.low, interval.high, sd, len(each),
                len(pair[0][0].images), pair[0][0].n_expressions,
            )  # fmt: skip
        methods = f"{second.method} - {first.method}"
        fraction = section.fraction
        if first.fraction != second.fraction and first.fraction and second.fraction:
            fraction = f"{fraction_name(second.fraction)} - {fraction_name(first.fraction)}"
        return Row(f"{second.label} − {first.label}", methods, fraction, values=values)

    def _paired_sums(
        self, first: TableRow, second: TableRow, section: Section, split: str
    ) -> tuple[list[ImageSums], list[ImageSums]]:
        by_seed: list[dict[int, Run]] = []
        for row in (first, second):
            fraction = row.fraction or float(section.fraction)
            label = self._cell(row, section.dataset, fraction).label
            runs = self.records.find(section.dataset, fraction, label)
            by_seed.append({run.cell.seed: run for run in runs})
        seeds = sorted(by_seed[0].keys() & by_seed[1].keys())
        one = _sums([by_seed[0][s] for s in seeds], split, first)
        two = _sums([by_seed[1][s] for s in seeds], split, second)
        return (one, two) if len(one) == len(two) else ([], [])


def _sums(runs: list[Run], split: str, row: TableRow) -> list[ImageSums]:
    name = f"{split}_shuffled" if row.shuffled else split
    found = (run.sums(name, row.smallest) for run in runs)
    return [sums for sums in found if sums is not None]


class _Missing:
    """Collects empty rows and says, in one footnote per reason, which command fills them."""

    def __init__(self, params: Params) -> None:
        self._params = params
        self._reasons: list[str] = []
        self._cells: dict[str, list[RunKey]] = {}

    def add(self, cell: RunKey, needs: str | None) -> int:
        """Note an empty row; returns the position of its footnote."""
        if needs is not None:
            reason = f"no run: needs {needs}."
        else:
            reason = "study" if self._in_study(cell) else "beyond"
        if reason not in self._reasons:
            self._reasons.append(reason)
        self._cells.setdefault(reason, []).append(cell)
        return self._reasons.index(reason)

    def footnotes(self) -> list[str]:
        """The text of each footnote, commands in backticks."""
        return [self._text(reason) for reason in self._reasons]

    def _in_study(self, cell: RunKey) -> bool:
        """Whether the study has a run of the cell, with any seed."""
        return _cell_of(cell) in map(_cell_of, expand(self._params))

    def _text(self, reason: str) -> str:
        if reason == "study":
            return "no run yet: `dvc repro` fills it."
        if reason == "beyond":
            blocks = ", ".join(
                f"`- {text}`" for text in fill_blocks(self._cells[reason], self._params.study.seeds)
            )
            return f"no run: add {blocks} to `study.runs` in params.yaml, then `make repro`."
        return reason


def fill_blocks(cells: list[RunKey], seeds: list[int]) -> list[str]:
    """Blocks of ``study.runs`` whose runs fill the cells, each as YAML on one line."""
    methods: dict[tuple[str, str | None, float], list[str]] = {}
    for cell in cells:
        listed = methods.setdefault((cell.dataset, cell.source, cell.fraction), [])
        if cell.method not in listed:
            listed.append(cell.method)
    fractions: dict[tuple[str, str | None, tuple[str, ...]], list[float]] = {}
    for (dataset, source, fraction), listed in methods.items():
        fractions.setdefault((dataset, source, tuple(listed)), []).append(fraction)
    return [
        f"{{datasets: [{dataset}], fractions: [{', '.join(map(fraction_name, values))}], "
        f"methods: [{', '.join(listed)}], seeds: {seeds}"
        + (f", sources: [{source}]}}" if source else "}")
        for (dataset, source, listed), values in fractions.items()
    ]


def _cell_of(key: RunKey) -> tuple[str, float, str]:
    return (key.dataset, key.fraction, key.label)


def _unique(values: object) -> list[str]:
    return list(dict.fromkeys(values))  # type: ignore[call-overload]


def _standard_notes(table: Table, samples: int) -> list[str]:
    values = [v for s in table.sections for row in s.rows for v in row.values.values()]
    notes = [
        "oIoU: overall IoU in percent, the sum of intersections over the sum of unions of all "
        "expressions of a split. Brackets: 95 % confidence interval by bootstrap over images "
        f"({samples:,} resamples)."
    ]
    counts = sorted({v.seeds for v in values})
    if counts and counts[-1] > 1:
        several = f"{counts[-1]} seeds" if counts == counts[-1:] else "the seeds that a cell has"
        notes.append(f"Mean ± standard deviation over {several}; the CSV has their number.")
    elif counts:
        notes.append("One seed: the interval does not cover the variation between trainings.")
    if table.has_paper and not table.comparable:
        notes.append(
            f"The paper's values ({' / '.join(table.splits)}) are on RefCOCO with Swin-B, "
            "BERT-base and SAM ViT-H: they stand here for reference and are not comparable "
            "with the values beside them."
        )
    elif table.comparable and not all(section.comparable for section in table.sections):
        notes.append("The paper's values are comparable on its own data sets only.")
    return notes
