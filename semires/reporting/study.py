"""Which methods and runs the study has, and the commands that make missing ones."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from semires.config.grid import block_text, blocks_of, expand, search_of
from semires.config.schema import Params
from semires.reporting.definitions import TableRow
from semires.runs.key import SUPERVISED, RunKey


def methods(params: Params, dataset: str, fraction: float) -> list[str]:
    """The methods of the main table that the study has for a data set and a fraction.

    Burn-in (`supervised`) is first. Methods with tuned thresholds have a row wherever the study
    trains them.
    """
    at = (dataset, fraction, None)
    keys = [key for key in expand(params) if (key.dataset, key.fraction, key.model) == at]
    there = {key.method for key in keys}
    tuned = [key.method for key in keys if search_of(params, key) is not None]
    wanted = dict.fromkeys([SUPERVISED, *params.study.methods, *tuned])
    return [method for method in wanted if method in there]


def run_of(params: Params, row: TableRow, dataset: str, fraction: float) -> RunKey:
    """A row's run of the study's first seed; a row's fixed fraction replaces ``fraction``."""
    seed = params.study.seeds[0]
    key = RunKey(dataset, row.fraction or fraction, row.method, seed, row.source, row.model)
    return key.relative_to(params.proposals.source)


def is_planned(key: RunKey, params: Params) -> bool:
    """Whether the study has the run with any seed, so that `dvc repro` makes it."""
    return _without_seed(key) in map(_without_seed, expand(params))


def _without_seed(key: RunKey) -> tuple[str, float, str]:
    return (key.dataset, key.fraction, key.label)


def fill_command(keys: Iterable[RunKey], params: Params) -> str:
    """Instructions to make the given runs, with commands in backticks."""
    keys = list(keys)
    if all(is_planned(key, params) for key in keys):
        return "`dvc repro`"
    every = (replace(key, seed=seed) for key in keys for seed in params.study.seeds)
    blocks = ", ".join(f"`- {block_text(block)}`" for block in blocks_of(every))
    return f"add {blocks} to `study.runs` in params.yaml, then `make repro`"
