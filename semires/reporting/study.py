"""Which methods and runs the study has, and the commands that make missing ones."""

from __future__ import annotations

from collections.abc import Iterable

from semires.config.grid import expand, search_of
from semires.config.schema import Params
from semires.runs.key import SUPERVISED, RunKey, fraction_name


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
    blocks = ", ".join(f"`- {text}`" for text in fill_blocks(keys, params.study.seeds))
    return f"add {blocks} to `study.runs` in params.yaml, then `make repro`"


def fill_blocks(keys: list[RunKey], seeds: list[int]) -> list[str]:
    """Blocks of ``study.runs`` whose runs are the given ones, each as YAML on one line."""
    methods: dict[tuple[str, str, float], list[str]] = {}
    for key in keys:
        options = {"sources": f"[{key.source}]" if key.source else None, "model": key.model}
        more = "".join(f", {name}: {value}" for name, value in options.items() if value)
        listed = methods.setdefault((key.dataset, more, key.fraction), [])
        if key.method not in listed:
            listed.append(key.method)
    fractions: dict[tuple[str, str, tuple[str, ...]], list[float]] = {}
    for (dataset, more, fraction), listed in methods.items():
        fractions.setdefault((dataset, more, tuple(listed)), []).append(fraction)
    return [
        f"{{datasets: [{dataset}], fractions: [{', '.join(map(fraction_name, values))}], "
        f"methods: [{', '.join(listed)}], seeds: {seeds}{more}}}"
        for (dataset, more, listed), values in fractions.items()
    ]
