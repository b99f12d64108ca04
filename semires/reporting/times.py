"""`semires summary --times`: the hours of the study's trainings by table, from their provenance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tabulate import tabulate

from semires.config.grid import expand
from semires.config.schema import Params
from semires.reporting.definitions import PaperValues, load_definitions
from semires.reporting.plan import Plan
from semires.runs.key import RunKey
from semires.runs.record import Provenance

TITLES = ("table", "runs", "hours", "runs alone", "hours alone", "no time")
NOTE = """\
The runs of a table are those of its rows, with the burn-ins from which they start. Alone: runs that
no other table needs. Hours: the wall-clock time of the process that finished each run, added up;
processes that run beside each other need less time. No time: runs that are not made here, or that
DVC restored from its cache."""


def times(params: Params) -> str:
    """A Markdown table of the runs and hours of each table of the study, of no table, and of all.

    Raises:
        SemiresError: a definition, or the provenance of a run, is damaged; its path is named.
    """
    plan, every = Plan(params, PaperValues()), expand(params)
    tables = {
        f"{name}: {definition.title}": plan.runs(definition)
        for name, definition in load_definitions()[0].items()
        if plan.makes(definition)
    }
    hours = {
        key: made.duration_s / 3600
        for key in every
        if (made := Provenance.read(key.folder)) is not None
    }
    uses = Counter(key for keys in tables.values() for key in keys)
    rows = [
        _row(title, keys, [key for key in keys if uses[key] == 1], hours)
        for title, keys in tables.items()
    ]
    others = [key for key in every if key not in uses]
    rows += [_row("no table", others, (), hours), _row("all, each once", every, (), hours)]
    align = ["left", *["right"] * (len(TITLES) - 1)]
    table = tabulate(rows, TITLES, "pipe", disable_numparse=True, colalign=align)
    return f"{table}\n\n{NOTE}"


def _row(
    title: str, keys: Sequence[RunKey], alone: Sequence[RunKey], hours: dict[RunKey, float]
) -> list[str]:
    """The cells of TITLES; empty ones for no runs alone."""
    cells = [title]
    for some in (keys, alone):
        spent = sum(hours.get(key, 0) for key in some)
        cells += [str(len(some)), f"{spent:.2f}"] if some or some is keys else ["", ""]
    return [*cells, str(sum(key not in hours for key in keys))]
