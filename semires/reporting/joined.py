"""Joined tables: the data sets beside each other, as in the paper's Table 1.

A joined table has a section for each data set and fraction, which its CSV keeps. Its readable forms
have one section for each fraction, and a column for each split of each data set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from semires.reporting.records import METRICS
from semires.reporting.tables import FilledRow, FilledTable, TableSection

T = TypeVar("T")
Groups = Sequence[tuple[str, list[str]]]  # name of a data set, names of its splits


def groups_of(table: FilledTable) -> Groups:
    """The data sets of a joined table with their splits as the paper names them; else none."""
    if not table.joined:
        return ()
    return list({s.dataset: (s.name, list(s.splits.values())) for s in table.sections}.values())


def side_by_side(table: FilledTable) -> FilledTable:
    """A joined table with one section for each fraction; any other table as it is.

    Its splits are named after data set and split, as ``RefScenes-g val(U)``.
    """
    if not table.joined:
        return table
    columns = [f"{name} {split}" for name, splits in groups_of(table) for split in splits]
    fractions = dict.fromkeys(section.fraction for section in table.sections)
    sections = []
    for fraction in fractions:
        parts = [section for section in table.sections if section.fraction == fraction]
        rows = [_row(parts, i) for i in range(len(parts[0].rows))]
        sections.append(
            TableSection(
                f"{fraction} % labelled", "", fraction, all(s.comparable for s in parts), rows,
                dict(zip(columns, columns, strict=True)),
            )
        )  # fmt: skip
    return replace(table, splits=columns, sections=sections)


def _row(parts: list[TableSection], index: int) -> FilledRow:
    """The rows at one place of all data sets' sections as one row."""
    rows = [(part, part.rows[index]) for part in parts]
    paper = {c: v for part, row in rows for c, v in _columns(part, row.paper or {}).items()}
    footnotes = {
        column: row.footnote
        for part, row in rows
        if row.footnote is not None
        for column in _columns(part, part.splits)
    }
    values = {
        metric: {c: v for part, row in rows for c, v in _columns(part, row.of(metric)).items()}
        for metric in METRICS
    }
    return replace(
        rows[0][1],
        values=values[METRICS[0]],
        others={metric: values[metric] for metric in METRICS[1:]},
        paper=paper or None,
        footnote=None,
        footnotes=footnotes,
        runs=tuple(key for _, row in rows for key in row.runs),
    )


def _columns(part: TableSection, by_split: dict[str, T]) -> dict[str, T]:
    """Values by column in place of split."""
    return {
        f"{part.name} {part.splits[split]}": value
        for split, value in by_split.items()
        if split in part.splits
    }
