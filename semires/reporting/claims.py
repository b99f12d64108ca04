"""The paper's claims (`experiments/claims.yaml`), each judged from the runs on every data set.

A claim is an inequality, left > right, by more than a margin. Its verdict follows from the 95 %
interval of the difference by paired bootstrap over images and seeds (`evaluation/bootstrap.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter, ValidationError

from semires.config.schema import Params
from semires.config.types import Name, Percent, Section
from semires.config.validate import read_yaml
from semires.errors import ConfigError
from semires.evaluation.bootstrap import (
    Interval,
    image_sums,
    percentiles,
    seed_deviations,
    seed_mean,
)
from semires.evaluation.metrics import gains
from semires.reporting.definitions import (
    FigureDefinition,
    PaperValues,
    TableDefinition,
    TableRow,
    counterpart,
    fractions_of,
)
from semires.reporting.plan import Plan, run_of
from semires.reporting.records import METRICS, Records, Run
from semires.reporting.selection import Selection
from semires.reporting.style import name_of
from semires.runs import layout
from semires.runs.key import RunKey, fraction_name

CLAIMS = Path("experiments/claims.yaml")
SUPPORTED, CONTRADICTED, UNDECIDED, NOT_RUN = "supported", "contradicted", "undecided", "not run"
VERDICTS = (SUPPORTED, CONTRADICTED, UNDECIDED, NOT_RUN)


class _Claim(Section):
    """Fields of every claim: ``margin`` in percentage points, ``where`` its place in the paper."""

    id: Name
    claim: str
    where: str
    in_paper: bool = True
    margin: float = 0.0
    fractions: list[Percent] | None = None


class Pair(Section):
    """Where the paper's two numbers are in paper.json, or the names of two of its curves."""

    left: str
    right: str


class RowsClaim(_Claim):
    """Row ``left`` of a table is above each of the rows ``right``, on each of ``splits``."""

    kind: Literal["rows"]
    table: str
    left: str
    right: list[str] = Field(min_length=1)
    metric: Literal["oIoU", "mIoU", "P@0.5"] = "oIoU"
    splits: list[str] = Field(default_factory=lambda: ["val"], min_length=1)
    paper: Pair | None = None


class CorrectionsClaim(_Claim):
    """Each method of a figure makes more pseudo-labels better than worse."""

    kind: Literal["corrections"]
    figure: str


class CurvesClaim(_Claim):
    """Method ``left`` is above ``right`` at every evaluation of mutual learning."""

    kind: Literal["curves"]
    figure: str
    left: Name
    right: Name
    paper: Pair | None = None


Claim = RowsClaim | CorrectionsClaim | CurvesClaim
_ADAPTER: TypeAdapter[list[Claim]] = TypeAdapter(
    list[Annotated[Claim, Field(discriminator="kind")]]
)


@dataclass(frozen=True)
class Judgement:
    """One inequality on one data set, fraction and split, with its verdict.

    Numbers are percentage points. ``paper`` and ``ours`` are left - right there and here, ``low``
    and ``high`` the bounds of the 95 % interval; None if there is no number. ``link`` names the
    table or figure of the report that shows it; ``reason`` explains a missing verdict. ``planned``
    is false if the study lacks runs for it.
    """

    id: str
    dataset: str
    fraction: str
    split: str
    metric: str
    left: str
    right: str
    claim: Claim
    link: str
    paper: float | None = None
    ours: float | None = None
    low: float | None = None
    high: float | None = None
    seeds: int = 0
    verdict: str = NOT_RUN
    reason: str = ""
    planned: bool = True

    def judged(self, ours: Interval, seeds: int) -> Judgement:
        """With our difference and its interval, from which the verdict follows."""
        verdict = verdict_of(ours.low, ours.high, self.claim.margin)
        return replace(
            self, ours=ours.value, low=ours.low, high=ours.high, seeds=seeds, verdict=verdict
        )


def verdict_of(low: float | None, high: float | None, margin: float = 0.0) -> str:
    """The verdict on "left - right > margin" from the difference's interval, None without one."""
    if low is None or high is None:
        return UNDECIDED
    if low > margin:
        return SUPPORTED
    return CONTRADICTED if high < margin else UNDECIDED


def load_claims(
    tables: dict[str, TableDefinition],
    figures: dict[str, FigureDefinition],
    path: Path = CLAIMS,
) -> list[Claim]:
    """Read the claims; none if there is no such file.

    Raises:
        ConfigError: a claim is not valid, or names a table, row or figure that does not exist.
    """
    if not path.is_file():
        return []
    try:
        claims = _ADAPTER.validate_python(read_yaml(path))
    except ValidationError as error:
        faults = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"{path}: {'; '.join(faults)}") from None
    ids = [claim.id for claim in claims]
    for claim in claims:
        fault = "" if ids.count(claim.id) == 1 else "two claims have this id"
        if fault := fault or _unknown(claim, tables, figures):
            raise ConfigError(f"{path}: {claim.id}: {fault}")
    return claims


def _unknown(
    claim: Claim,
    tables: dict[str, TableDefinition],
    figures: dict[str, FigureDefinition],
) -> str:
    """A missing table, row or figure that a claim names; empty if all exist."""
    wanted: list[str] = []
    name = claim.table if isinstance(claim, RowsClaim) else claim.figure
    known = {name: figure.methods for name, figure in figures.items()}
    if isinstance(claim, RowsClaim):
        known = {name: [row.label for row in table.rows] for name, table in tables.items()}
        wanted = [claim.left, *claim.right]
    elif isinstance(claim, CurvesClaim):
        wanted = [claim.left, claim.right]
    file = f"{layout.TABLES}/{name}.yaml"
    if name not in known:
        return f"{file} is not there; there are {', '.join(known)}"
    for label in wanted:
        if label not in known[name]:
            return f"{label!r} is not in {file}; there are {', '.join(map(repr, known[name]))}"
    return ""


class Judge:
    """Judges claims from records.

    Args:
        params: the active parameters; their study says which data sets and fractions there are.
        records: all runs.
        paper: the paper's values.
        tables: the tables' definitions.
        figures: the figures' definitions.
    """

    def __init__(
        self,
        params: Params,
        records: Records,
        paper: PaperValues,
        tables: dict[str, TableDefinition],
        figures: dict[str, FigureDefinition],
    ) -> None:
        self.params, self.records, self.paper = params, records, paper
        self.tables, self.figures = tables, figures
        self.plan, self.selection = Plan(params, paper), Selection(params, records)

    def judge(self, claims: list[Claim]) -> list[Judgement]:
        """One judgement for each claim, data set, fraction, split and right-hand side.

        Where the study lacks the runs: the paper's claims alone, and of the data sets after the
        study's first one only those for which the paper has numbers.
        """
        datasets = self.params.study.datasets
        judge_kind: dict[str, Callable[[Any, str], Iterator[Judgement]]] = {
            "rows": self._rows, "corrections": self._corrections, "curves": self._curves
        }  # fmt: skip
        return [
            judgement
            for claim in claims
            for dataset in datasets
            for judgement in judge_kind[claim.kind](claim, dataset)
            if judgement.planned
            or (claim.in_paper and (dataset == datasets[0] or judgement.paper is not None))
        ]

    def _rows(self, claim: RowsClaim, dataset: str) -> Iterator[Judgement]:
        definition = self.tables[claim.table]
        rows = {row.label: row for row in definition.rows}
        left = rows[claim.left]
        labels = (claim.left, *claim.right)
        fractions = claim.fractions or self.plan.fractions(
            definition, lambda f: [run_of(self.params, rows[n], dataset, f) for n in labels]
        )
        fractions = fractions[:1] if left.fraction else fractions
        for fraction, label, split in product(fractions, claim.right, claim.splits):
            pair = (left, rows[label])
            start = Judgement(
                claim.id, dataset, fraction_name(left.fraction or fraction), split, claim.metric,
                left.label, label, claim, claim.table,
                paper=self._paper_rows(claim, pair, dataset, fraction, split),
            )  # fmt: skip
            value = self.selection.difference(pair, dataset, fraction, split, claim.metric)
            empty = [row for row in pair if not self.selection.runs(row, dataset, fraction)]
            if value is not None:
                yield start.judged(value, value.seeds)
            elif empty:
                keys = [run_of(self.params, row, dataset, fraction) for row in empty]
                yield self._to_run(start, keys)
            else:
                yield replace(start, reason="no seed in common, or other evaluated expressions")

    def _to_run(self, start: Judgement, keys: list[RunKey]) -> Judgement:
        planned, reason = self.plan.makes_all(keys), self.plan.fill_command(keys)
        return replace(start, reason=reason, planned=planned)

    def _paper_rows(
        self,
        claim: RowsClaim,
        pair: tuple[TableRow, TableRow],
        dataset: str,
        fraction: float,
        split: str,
    ) -> float | None:
        if claim.metric != METRICS[0]:  # the paper states overall IoU only
            return None
        if claim.paper is None:
            values = [self.plan.paper_values(row, dataset, fraction) for row in pair]
        else:
            name, at = counterpart(self.params, dataset), fraction_name(fraction)
            paths = (claim.paper.left, claim.paper.right)
            values = [self.paper.values(path, name, at) for path in paths]
        left, right = ((value or {}).get(split) for value in values)
        return None if left is None or right is None else left - right

    def _corrections(self, claim: CorrectionsClaim, dataset: str) -> Iterator[Judgement]:
        definition = self.figures[claim.figure]
        counts = self.paper.corrections(counterpart(self.params, dataset))
        theirs = {method.lower(): values for method, values in counts.items()}
        for fraction in claim.fractions or fractions_of(self.params, definition):
            for method in definition.methods:
                paper, name = None, name_of(method)
                if (stated := theirs.get(method)) is not None:
                    paper = 100 * (stated["positive"] - stated["negative"]) / sum(stated.values())
                start = Judgement(
                    claim.id, dataset, fraction_name(fraction), "unlabelled", "pseudo-labels",
                    f"{name}: better", f"{name}: worse", claim, claim.figure, paper=paper,
                )  # fmt: skip
                sums = [
                    image_sums(table["image_id"], gains(table), np.ones(len(table)))
                    for run in self.records.find(dataset, fraction, method)
                    if (table := run.corrections) is not None and len(table)
                ]
                if sums:
                    yield start.judged(seed_mean(sums, self.selection.samples), len(sums))
                else:
                    yield self._to_run(start, [RunKey(dataset, fraction, method, 0)])

    def _curves(self, claim: CurvesClaim, dataset: str) -> Iterator[Judgement]:
        definition = self.figures[claim.figure]
        for fraction in claim.fractions or fractions_of(self.params, definition):
            left, right = (name_of(method) for method in (claim.left, claim.right))
            start = Judgement(
                claim.id, dataset, fraction_name(fraction), "val", "oIoU, smallest difference",
                left, right, claim, claim.figure,
                paper=self._paper_curves(claim, definition, dataset),
            )  # fmt: skip
            runs = {m: self.records.find(dataset, fraction, m) for m in (claim.left, claim.right)}
            missing = [RunKey(dataset, fraction, m, 0) for m, found in runs.items() if not found]
            if missing:
                yield self._to_run(start, missing)
                continue
            by_seed = _curve_differences(runs[claim.left], runs[claim.right])
            if not by_seed.size:
                yield replace(start, reason="no seed or evaluation in common")
                continue
            ours, seeds = float(by_seed.mean(axis=0).min()), len(by_seed)
            if seeds < 2:  # evaluations during training are recorded by their mean, not by image
                reason = "one seed gives no interval here"
                yield replace(start, ours=ours, seeds=seeds, verdict=UNDECIDED, reason=reason)
                continue
            moved = by_seed.mean(axis=0) + seed_deviations(by_seed, self.selection.samples)
            yield start.judged(percentiles(ours, moved.min(axis=1)), seeds)

    def _paper_curves(
        self, claim: CurvesClaim, definition: FigureDefinition, dataset: str
    ) -> float | None:
        curves = self.paper.at(definition.paper or "") or {}
        if claim.paper is None or counterpart(self.params, dataset) != "RefCOCO":
            return None
        left, right = (curves.get(name) for name in (claim.paper.left, claim.paper.right))
        if not left or not right:
            return None
        return float(min(a - b for a, b in zip(left, right, strict=False)))


def _curve_differences(left: list[Run], right: list[Run]) -> NDArray[np.float64]:
    """(S, K): val oIoU of left minus right, by seed and evaluation that all runs have."""
    first, second = (
        pd.DataFrame({run.key.seed: run.history.set_index("step")["val/oIoU"] for run in runs})
        for runs in (left, right)
    )
    seeds = sorted(first.columns.intersection(second.columns))
    return np.asarray((first[seeds] - second[seeds]).dropna(), dtype=np.float64).T
