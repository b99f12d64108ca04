"""The paper's tables and figures as data: `experiments/tables/*.yaml` and the paper's values.

A definition states the claim, its place in the paper, which runs fill it and where the paper's
numbers are in `paper.json`. A new table is a new file.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError, field_validator, model_validator

from semires.config.schema import Params
from semires.config.types import Name, Percent, Section
from semires.config.validate import read_yaml
from semires.errors import ConfigError, CorruptCacheError
from semires.files import read_json
from semires.runs import layout
from semires.runs.key import fraction_name

Fractions = list[Percent] | Literal["study"]
Column = Literal["proposals", "best_iou", "labels", "labels_miou"]

#: Columns that a table can have before its splits, and their titles.
COLUMNS: dict[Column, str] = {
    "proposals": "Proposals", "best_iou": "Best IoU", "labels": "Labels' oIoU",
    "labels_miou": "Labels' mIoU",
}  # fmt: skip

#: `datasets.D.dataset` of params.yaml -> the name in the paper's tables.
PAPER_NAMES = {"refcoco": "RefCOCO", "refcoco+": "RefCOCO+", "refcocog": "G-Ref(UMD)"}
#: Data sets and splits that the paper spells differently.
_FIGURE_NAMES = {"G-Ref(UMD)": "RefCOCOg"}
_SPLIT_NAMES = {"val(U)": "val", "test(U)": "test"}
DISPLAY_NAMES = {
    **PAPER_NAMES, "refcocog": "G-Ref (UMD)", "refscenes": "RefScenes", "refscenes+": "RefScenes+",
    "refscenes-g": "RefScenes-g",
}  # fmt: skip
#: The paper's data sets that generated ones are modelled on; RefScenes and all others: RefCOCO.
_MODELLED_ON = {"refscenes+": "RefCOCO+", "refscenes-g": "G-Ref(UMD)"}


class TableRow(Section):
    """One row: the runs that fill it and the path of the paper's values.

    ``method`` is a key of `refine` or ``supervised`` (burn-in). ``model`` is a
    key of `models`, null for the section `model`. ``smallest`` is the share of
    references, those with the smallest masks, that the row uses; ``shuffled`` uses the evaluation
    with every expression given to another reference. ``paper`` is a path in paper.json, with
    ``{dataset}`` and ``{fraction}`` filled in, or one path per fraction; a path without
    ``{dataset}`` is RefCOCO's. ``note`` is added to the table's notes.
    """

    label: str
    method: Name
    fraction: Percent | None = None
    source: Name | None = None
    model: Name | None = None
    smallest: Annotated[float, Field(gt=0, le=1)] | None = None
    shuffled: bool = False
    marks: list[bool] = Field(default_factory=list)
    paper: str | dict[str, str] | None = None
    note: str | None = None

    @field_validator("paper")
    @classmethod
    def _paths_are_whole(cls, paper: str | dict[str, str] | None) -> str | dict[str, str] | None:
        for path in [paper] if isinstance(paper, str) else (paper or {}).values():
            try:
                path.format(dataset="", fraction="")
            except (LookupError, ValueError) as error:
                raise ValueError(f"{path!r} takes {{dataset}} and {{fraction}} only") from error
        return paper


class _Definition(Section):
    """``in_paper`` is false for what the paper does not have; ``where`` then says what it is."""

    title: str
    claim: str
    where: str
    in_paper: bool = True
    fractions: Fractions = "study"
    notes: list[str] = Field(default_factory=list)


class TableDefinition(_Definition):
    """A table: one section per data set and fraction, one row per method, one column per split.

    ``from_study``: rows whose method is not in the study are left out, and methods of the study
    without a row are appended. ``joined``: a section for each fraction, in which the data sets
    are adjacent columns, as in the paper's Table 1. ``splits``: the columns, None for all.
    ``against``: the method that all paired differences are to; None compares each pair of rows.
    ``columns``: further columns before the splits, see :data:`COLUMNS`.
    """

    kind: Literal["table"]
    from_study: bool = False
    joined: bool = False
    marks: list[str] = Field(default_factory=list)
    splits: list[Name] | None = None
    columns: list[Column] = Field(default_factory=list)
    against: Name | None = None
    rows: list[TableRow] = Field(min_length=1)

    @model_validator(mode="after")
    def _marks_fit(self) -> TableDefinition:
        for row in self.rows:
            if len(row.marks) != len(self.marks):
                raise ValueError(
                    f"row {row.label!r} has {len(row.marks)} of {len(self.marks)} marks"
                )
        return self


class FigureDefinition(_Definition):
    """A figure, drawn by the function of `figures.py` that ``kind`` names.

    ``against``: the method that the values of the kind ``quality`` are differences to; None: the
    first one.
    """

    kind: Literal["curves", "corrections", "panels", "cost", "quality"]
    methods: list[Name] = Field(min_length=1)
    against: Name | None = None
    paper: str | None = None


Definition = Annotated[TableDefinition | FigureDefinition, Field(discriminator="kind")]
_ADAPTER: TypeAdapter[TableDefinition | FigureDefinition] = TypeAdapter(Definition)


def load_definitions(
    folder: Path = layout.TABLES,
) -> tuple[dict[str, TableDefinition], dict[str, FigureDefinition]]:
    """Read every `*.yaml` of ``folder``: tables (`main` first) and figures, by file name.

    Raises:
        ConfigError: a file is no valid definition; the text names the file and the key.
    """
    tables: dict[str, TableDefinition] = {}
    figures: dict[str, FigureDefinition] = {}
    paths = sorted(folder.glob("*.yaml"), key=lambda p: (p.stem != "main", p.stem))
    if not paths:
        raise ConfigError(f"{folder}: holds no table definitions (*.yaml)")
    for path in paths:
        try:
            definition = _ADAPTER.validate_python(read_yaml(path))
        except ValidationError as error:
            faults = (f"{'.'.join(map(str, e['loc'][1:]))}: {e['msg']}" for e in error.errors())
            raise ConfigError(f"{path}: {'; '.join(faults)}") from None
        if isinstance(definition, TableDefinition):
            tables[path.stem] = definition
        else:
            figures[path.stem] = definition
    return tables, figures


class PaperValues:
    """The paper's numbers (`experiments/tables/paper.json`), looked up by path.

    Raises:
        CorruptCacheError: a value is not a number; the text names its path.
    """

    def __init__(self, folder: Path = layout.TABLES) -> None:
        self._path = folder / "paper.json"
        self._values: Any = read_json(self._path)

    def row(self, row: TableRow, dataset: str, fraction: str) -> dict[str, float] | None:
        """The paper's oIoU of a row by split, or None.

        Args:
            row: the table row.
            dataset: the paper's data set, see :func:`counterpart`.
            fraction: as params.yaml spells it, in percent.
        """
        path = row.paper.get(fraction) if isinstance(row.paper, dict) else row.paper
        return self.values(path, dataset, fraction)

    def values(self, path: str | None, dataset: str, fraction: str) -> dict[str, float] | None:
        """The paper's oIoU by split at a path that may hold ``{dataset}`` and ``{fraction}``."""
        if path is None or ("{dataset}" not in path and dataset != "RefCOCO"):
            return None
        found = self.at(path.format(dataset=dataset, fraction=fraction))
        if found is None:
            return None
        return {_SPLIT_NAMES.get(k, k): v for k, v in self._numbers(found, path).items()}

    def at(self, path: str) -> Any:
        """The value at a path of keys joined by ``/`` (a key may contain one), or None."""
        return _descend(self._values, path)

    def corrections(self, dataset: str) -> dict[str, dict[str, int]]:
        """Figure 6's counts of one of the paper's data sets by method."""
        name = _FIGURE_NAMES.get(dataset, dataset)
        found = self.at(f"fig6_counts/{name}") or {}
        if not isinstance(found, dict):
            raise self._damaged(f"fig6_counts/{name}")
        return {k: self._numbers(v, f"fig6_counts/{name}/{k}") for k, v in found.items()}

    def _numbers(self, found: Any, where: str) -> dict[str, Any]:
        values: list[Any] = list(found.values()) if isinstance(found, dict) else [None]
        if not all(type(value) in (int, float) and math.isfinite(value) for value in values):
            raise self._damaged(where)
        return dict(found)

    def _damaged(self, where: str) -> CorruptCacheError:
        return CorruptCacheError(f"{self._path}: {where}: no numbers; restore it with git checkout")


def _descend(node: Any, path: str) -> Any:
    if not path:
        return node
    if not isinstance(node, dict):
        return None
    keys = (key for key in node if f"{path}/".startswith(f"{key}/"))
    found = (_descend(node[key], path[len(key) + 1 :]) for key in keys)
    return next((value for value in found if value is not None), None)


def paper_name(params: Params, dataset: str) -> str | None:
    """The paper's name of a data set of params.yaml; None if the paper does not use it."""
    entry = params.datasets[dataset]
    if entry.dataset == "refcocog" and entry.split_by != "umd":
        return None
    return PAPER_NAMES.get(entry.dataset)


def counterpart(params: Params, dataset: str) -> str:
    """The paper's data set whose numbers are shown beside those of ``dataset``.

    It is the data set itself, if the paper uses it, or the one that a generated data set is
    modelled on, or RefCOCO.
    """
    modelled_on = _MODELLED_ON.get(params.datasets[dataset].dataset, "RefCOCO")
    return paper_name(params, dataset) or modelled_on


def display_name(params: Params, dataset: str) -> str:
    """The display name of a data set."""
    return DISPLAY_NAMES.get(params.datasets[dataset].dataset, dataset)


def evaluated(params: Params, dataset: str) -> list[str]:
    """The splits of a data set that have numbers: all but train."""
    return [split for split in params.datasets[dataset].splits if split != "train"]


def section_title(params: Params, dataset: str, fraction: float | str) -> str:
    """The title of results on a data set at a labelled fraction (percent)."""
    name = fraction if isinstance(fraction, str) else fraction_name(fraction)
    return f"{display_name(params, dataset)}, {name} % labelled"


def fractions_of(params: Params, definition: TableDefinition | FigureDefinition) -> list[float]:
    """The labelled fractions (percent) that a definition spans."""
    chosen = definition.fractions
    return params.study.fractions if chosen == "study" else chosen
