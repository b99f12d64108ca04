"""The label quality of every rule: labels.md, labels.csv and a figure, from `semires labels`.

Without any `labels/D/F/seedS/`, nothing is written.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pandas as pd

from semires.config.grid import expand
from semires.config.schema import Params
from semires.errors import CorruptCacheError
from semires.reporting.definitions import section_title
from semires.reporting.formats import pipe_table
from semires.reporting.style import name_of, new_axes
from semires.runs import layout
from semires.runs.key import SUPERVISED
from semires.tuning.labels import BEST, COLUMNS, MEASURES, TEACHER

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NAMES = {TEACHER: "teacher's label", BEST: "best possible on atoms"}
# The measures of the tables by group, by title.
_PAIRS = {"oIoU / mIoU": ["oIoU", "mIoU"], "Better / worse": ["better", "worse"]}
_SHARES = ("better", "worse", "unmatched")
_NOTE = """\
oIoU and mIoU of the pseudo-labels of the burn-in teacher, and the shares of labels that a rule
made better or worse or left as they were, all in percent, against the ground truth. Every rule has
its default thresholds. Unlabelled: references whose ground truth is hidden from training. Best
possible: the unions of atoms of the proposals that have the largest IoU with each object.
"""


def read_labels(params: Params) -> pd.DataFrame:
    """The results of `semires labels` for the study's burn-ins; without any, a table without rows.

    Raises:
        CorruptCacheError: a file is not what the command writes.
    """
    tables = []
    burn_ins = (key for key in expand(params) if key.method == SUPERVISED and key.model is None)
    paths = (layout.labels_folder(key) / "labels.csv" for key in burn_ins)
    for path in sorted(path for path in paths if path.is_file()):
        try:
            table = pd.read_csv(path, dtype={"fraction": str, "dataset": str})[list(COLUMNS)]
            tables.append(table.astype(dict.fromkeys(("references", *MEASURES, "ece"), float)))
        except (ValueError, KeyError) as error:
            raise CorruptCacheError(f"{path}: damaged; run `semires labels` again") from error
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=list(COLUMNS))


def to_csv(table: pd.DataFrame) -> str:
    """All rows; percentages with two decimals."""
    return str(table.to_csv(index=False, float_format="%.2f", lineterminator="\n"))


def markdown(params: Params, table: pd.DataFrame) -> str:
    """One section for each data set and fraction, with means over seeds.

    Args:
        params: names the data sets.
        table: the columns of :data:`COLUMNS`.
    """
    out = io.StringIO()
    out.write(f"# Label quality of every rule\n\n{_NOTE}")
    for (dataset, fraction), rows in _sections(table):
        seeds = sorted(set(rows["seed"]))
        of = f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
        out.write(f"\n## {section_title(params, dataset, fraction)}, {of}\n\n")
        parts = list(dict.fromkeys(rows["part"]))
        whole = {part: _means(rows, part, "all") for part in parts}
        measures = ("oIoU", "mIoU", *_SHARES)
        titles = [f"{part} {measure}" for part in parts for measure in measures]
        columns = [whole[part][[measure]] for part in parts for measure in measures]
        out.write(_table(titles, columns))
        errors = (f"{part} {whole[part]['ece'].iloc[0]:.2f} %" for part in parts)
        out.write(f"\nExpected calibration error of the teacher: {', '.join(errors)}.\n")
        last = rows[rows["part"] == parts[-1]]
        groups = [group for group in dict.fromkeys(last["group"]) if group != "all"]
        means = {group: _means(rows, parts[-1], group) for group in groups}
        titles = [f"{g} (n = {mean['references'].iloc[0]:.0f})" for g, mean in means.items()]
        of = f"on {parts[-1]} references by object size and kind of expression"
        for title, pair in _PAIRS.items():
            out.write(f"\n{title} {of}:\n\n")
            out.write(_table(titles, [mean[pair] for mean in means.values()]))
    return out.getvalue()


def figure(params: Params, table: pd.DataFrame) -> Figure:
    """The labels' oIoU and mIoU on the unlabelled part after every rule; a panel per fraction."""
    sections = _sections(table)
    drawn, axes = new_axes(len(sections), height=3.2, width=4.2)
    for axis, ((dataset, fraction), rows) in zip(axes, sections, strict=True):
        mean = _means(rows, rows["part"].iloc[-1], "all").drop(index=BEST).iloc[::-1]
        names = [_name(rule) for rule in mean.index]
        for metric, colour, marker in (("oIoU", "#0072B2", "s"), ("mIoU", "#D55E00", "o")):
            axis.plot(mean[metric], names, marker, color=colour, label=metric, ls="none", ms=5)
        axis.set_title(section_title(params, dataset, fraction))
        axis.set_xlabel("IoU of the labels (%)")
    drawn.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return drawn


def _sections(table: pd.DataFrame) -> list[tuple[tuple[str, str], pd.DataFrame]]:
    """The rows of every data set and fraction, by data set and size of the fraction."""
    found = [((str(d), str(f)), rows) for (d, f), rows in table.groupby(["dataset", "fraction"])]
    return sorted(found, key=lambda item: (item[0][0], float(item[0][1])))


def _name(rule: str) -> str:
    return _NAMES.get(rule) or name_of(rule)


def _means(rows: pd.DataFrame, part: str, group: str) -> pd.DataFrame:
    """Means over seeds by rule, of one part and one group of references."""
    chosen = rows[(rows["part"] == part) & (rows["group"] == group)]
    return chosen.groupby("rule", sort=False).mean(numeric_only=True)


def _table(titles: list[str], columns: list[pd.DataFrame]) -> str:
    """A Markdown table with one row per rule, the index of every column.

    A cell has the measures of its column, with a slash between them.
    """
    rows = (
        [_name(rule), *(" / ".join(f"{v:.1f}" for v in column.loc[rule]) for column in columns)]
        for rule in columns[0].index
    )
    return "\n".join(pipe_table(["Rule", *titles], rows)) + "\n"
