"""Tables filled from run records: values, intervals, paired differences, footnotes.

A table has one section per data set and labelled fraction, one row per method, one column per
split. Numbers stay unrounded here; `grids.py` rounds when it writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, product

from semires.config.schema import Params
from semires.reporting.definitions import (
    Column,
    PaperValues,
    TableDefinition,
    TableRow,
    counterpart,
    display_name,
    evaluated,
    paper_name,
    section_title,
)
from semires.reporting.plan import Plan, run_of, spans_rows
from semires.reporting.records import METRICS, Records
from semires.reporting.selection import Selection, Value
from semires.runs.key import RunKey, fraction_name

Missing = dict[bool, list[RunKey]]  # the runs of empty rows, by whether the study has them


@dataclass(frozen=True)
class FilledRow:
    """One row: values by metric and split, the paper's by split, the footnote if it is empty.

    ``columns`` has keys of COLUMNS. ``runs`` are its sources.
    """

    label: str
    method: str
    fraction: str
    marks: tuple[bool, ...] = ()
    metrics: dict[str, dict[str, Value]] = field(default_factory=dict)
    paper: dict[str, float] | None = None
    footnote: int | None = None
    columns: dict[Column, float] = field(default_factory=dict)
    runs: tuple[RunKey, ...] = ()

    @property
    def values(self) -> dict[str, Value]:
        """Overall IoU by split."""
        return self.metrics.get(METRICS[0], {})


@dataclass(frozen=True)
class TableSection:
    """The rows of one data set at one labelled fraction.

    ``comparable``: whether the paper uses this data set. ``splits``: its splits, each with its name
    in the paper. ``name``: the data set's display name. ``paper_name``: the paper's data set whose
    values the rows show.
    """

    title: str
    dataset: str
    fraction: str
    comparable: bool
    rows: list[FilledRow]
    splits: dict[str, str]
    name: str = ""
    paper_name: str = "RefCOCO"


@dataclass(frozen=True)
class FilledTable:
    """A filled table. ``footnotes`` explain empty rows, ``notes`` explain the numbers.

    ``is_difference``: the numbers are differences of two methods, in percentage points. ``joined``:
    readable forms show the data sets beside each other (`grids.py`). ``columns``: those of COLUMNS
    that the rows have.
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
    joined: bool = False
    columns: Sequence[Column] = ()

    @property
    def has_paper(self) -> bool:
        """Whether any row has a value of the paper."""
        return bool(self.paper_names)

    @property
    def paper_names(self) -> list[str]:
        """The paper's data sets whose values the table shows."""
        shown = (s.paper_name for s in self.sections if any(row.paper for row in s.rows))
        return list(dict.fromkeys(shown))

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
        self.params, self.plan = params, Plan(params, paper)
        self.selection = Selection(params, records)

    def build(self, name: str, definition: TableDefinition) -> FilledTable:
        """Fill one table."""
        missing: Missing = {}
        sections, notes = [], dict[str, None]()
        for dataset, fraction, rows in self.plan.sections(definition):
            notes.update(dict.fromkeys(row.note for row in rows if row.note is not None))
            sections.append(self._section(definition, rows, dataset, fraction, missing))
        splits = dict.fromkeys(split for section in sections for split in section.splits)
        if definition.splits is not None:
            splits = {split: None for split in splits if split in definition.splits}
        table = FilledTable(
            name=name, title=definition.title, claim=definition.claim, where=definition.where,
            splits=list(splits), marks=definition.marks, sections=sections, notes=[],
            footnotes=self._footnotes(missing), in_paper=definition.in_paper,
            joined=definition.joined, columns=definition.columns,
        )  # fmt: skip
        shown = {section.dataset for section in sections}
        left_out = (d for d in self.params.study.datasets if d not in shown)
        names = ", ".join(display_name(self.params, dataset) for dataset in left_out)
        more = [f"Left out: {names}, because the study lacks runs of this table."] if names else []
        standard = _standard_notes(table, self.selection.samples)
        table.notes.extend([*definition.notes, *notes, *more, *standard])
        return table

    def _section(
        self,
        definition: TableDefinition,
        rows: list[TableRow],
        dataset: str,
        fraction: float,
        missing: Missing,
    ) -> TableSection:
        name = display_name(self.params, dataset)
        spans = spans_rows(definition)
        mark = "(U)" if self.params.datasets[dataset].split_by == "umd" else ""
        return TableSection(
            title=name if spans else section_title(self.params, dataset, fraction),
            dataset=dataset,
            fraction=fraction_name(fraction),
            comparable=paper_name(self.params, dataset) is not None,
            rows=[self._row(row, dataset, fraction, missing) for row in rows],
            splits={split: f"{split}{mark}" for split in evaluated(self.params, dataset)},
            name=name,
            paper_name=counterpart(self.params, dataset),
        )

    def differences(self, table: FilledTable, definition: TableDefinition) -> FilledTable | None:
        """Paired differences of each pair of a table's rows, or of all rows to ``against``.

        None if there are none.
        """
        sections = []
        for section in table.sections:
            rows_of_study = self.plan.rows(definition, section.dataset, float(section.fraction))
            defined = {row.label: row for row in rows_of_study}
            filled = [defined[row.label] for row in section.rows if row.values]
            pairs = [
                self._difference(first, second, section)
                for first, second in _pairs(filled, definition.against)
                if first.smallest == second.smallest
            ]
            rows = [row for row in pairs if row.values]
            if rows:
                sections.append(replace(section, comparable=False, rows=rows))
        if not sections:
            return None
        return FilledTable(
            name=f"{table.name}_differences", title=f"{table.title}: paired differences",
            claim="", where="", splits=table.splits, marks=[], sections=sections,
            notes=_difference_notes(sections, self.selection.samples), footnotes=[],
            is_difference=True,
        )  # fmt: skip

    def _row(self, row: TableRow, dataset: str, fraction: float, missing: Missing) -> FilledRow:
        key = run_of(self.params, row, dataset, fraction)
        values = self._values(
            dataset, lambda *at: self.selection.value(row, dataset, fraction, *at)
        )
        footnote = None
        if not values[METRICS[0]]:
            planned = self.plan.makes_all([key])
            missing.setdefault(planned, []).append(key)
            footnote = list(missing).index(planned)
        return FilledRow(
            label=row.label,
            method=key.label,
            fraction=fraction_name(key.fraction),
            marks=tuple(row.marks),
            metrics=values,
            paper=self.plan.paper_values(row, dataset, fraction),
            footnote=footnote,
            columns=self.selection.columns(row, dataset, fraction),
            runs=tuple(run.key for run in self.selection.runs(row, dataset, fraction)),
        )

    def _footnotes(self, missing: Missing) -> list[str]:
        """One for each reason, with the commands that fill the rows in backticks."""
        return [
            "no run yet: `dvc repro` fills it."
            if planned
            else f"no run: {self.plan.fill_command(keys)}."
            for planned, keys in missing.items()
        ]

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
            metrics=values,
        )  # fmt: skip

    def _values(
        self, dataset: str, compute: Callable[[str, str], Value | None]
    ) -> dict[str, dict[str, Value]]:
        """The values that exist, by metric and split."""
        splits = evaluated(self.params, dataset)
        return {
            metric: {s: value for s in splits if (value := compute(s, metric)) is not None}
            for metric in METRICS
        }


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


_COLUMN_NOTES = {
    ("proposals", "best_iou"): (
        "Proposals: their mean number per image, or per pseudo-label where SAM is prompted "
        "with it. Best IoU: mean over the objects of val of the largest IoU of any proposal, "
        "in percent; where SAM is prompted, with prompts from the ground truth."
    ),
    ("labels", "labels_miou"): (
        "Labels: those of the burn-in teacher after refinement, on unlabelled references."
    ),
}


def _joined_note(table: FilledTable) -> str:
    pairs = {s.name: s.paper_name for s in table.sections if s.name != s.paper_name}
    names = ", ".join(f"{theirs} for {ours}" for ours, theirs in pairs.items())
    return (
        "Small print under a value: its interval, then the paper's oIoU with Swin-B, BERT-base and "
        f"SAM ViT-H{f', on {names}' if names else ''}. In parentheses: ours − paper's, where the "
        "two are comparable."
    )


def _standard_notes(table: FilledTable, samples: int) -> list[str]:
    values = [v for s in table.sections for row in s.rows for v in row.values.values()]
    notes = [
        "oIoU: overall IoU in percent, the sum of intersections over the sum of unions of all "
        "expressions of a split. mIoU: the mean of the expressions' IoU. P@0.5: the share of "
        "expressions with an IoU of at least 0.5. Brackets: 95 % confidence interval by bootstrap "
        f"over images ({samples:,} resamples)."
    ]
    notes += [note for columns, note in _COLUMN_NOTES.items() if set(columns) & set(table.columns)]
    counts = sorted({v.seeds for v in values})
    if counts and counts[-1] > 1:
        several = f"{counts[-1]} seeds" if counts == counts[-1:] else "the seeds that were run"
        notes.append(f"Mean ± standard deviation over {several}; the CSV has their number.")
    elif counts:
        notes.append("One seed: the interval does not cover the variation between trainings.")
    if table.joined and table.has_paper:
        notes.append(_joined_note(table))
    elif table.has_paper and not table.comparable:
        orders = dict.fromkeys(" / ".join(section.splits.values()) for section in table.sections)
        notes.append(
            f"Paper: overall IoU ({'; '.join(orders)}) on {', '.join(table.paper_names)} with "
            "Swin-B, BERT-base and SAM ViT-H, for reference. It is not comparable with the values "
            "beside it."
        )
    elif table.comparable and not all(section.comparable for section in table.sections):
        notes.append("Only values on the paper's data sets are comparable with the paper.")
    return notes
