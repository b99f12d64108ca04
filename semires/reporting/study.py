"""What the report asks of `study` in params.yaml: the only module of the report that reads it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from semires.config.schema import Params, Study
from semires.runs.key import SUPERVISED, RunKey, fraction_name


def datasets(params: Params) -> list[str]:
    """The study's data sets, keys of `datasets`."""
    return list(params.study.datasets)


def fractions(params: Params) -> list[float]:
    """The labelled fractions (percent) of the main table."""
    return list(params.study.fractions)


def methods(params: Params, fraction: float) -> list[str]:
    """The methods of the main table at a fraction, burn-in (`supervised`) first."""
    study = params.study
    tuned = study.tuned_methods if fraction in study.tune_fractions else []
    return [SUPERVISED, *study.methods, *tuned]


def seeds(params: Params) -> list[int]:
    """The study's seeds."""
    return list(params.study.seeds)


def is_planned(key: RunKey, params: Params) -> bool:
    """Whether the study holds a run, so that `dvc repro` makes it."""
    return not _additions([key], params.study)


def fill_command(keys: Iterable[RunKey], params: Params) -> str:
    """The command that makes some runs: the study with what it lacks for them."""
    settings = []
    for name, values in _additions(keys, params.study).items():
        texts = (fraction_name(v) if isinstance(v, float) else str(v) for v in values)
        settings.append(f"-S 'study.{name}=[{','.join(texts)}]'")
    return " ".join(["dvc exp run", *settings]) if settings else "dvc repro"


def _additions(keys: Iterable[RunKey], study: Study) -> dict[str, list[Any]]:
    """The lists of the study that must grow to hold the runs, by name, with their new content."""
    lists: dict[str, list[Any]] = {name: list(v) for name, v in study if isinstance(v, list)}

    def need(name: str, value: Any, *others: str) -> None:
        if not any(value in lists[other] for other in (name, *others)):
            lists[name].append(value)

    for key in keys:
        need("supervised_fractions", key.fraction, "fractions")
        if key.source is not None:
            need("sources", key.source)
            need("other_sources", key.source)
            need("source_methods", key.method)
            need("ablation_fractions", key.fraction)
        elif key.method != SUPERVISED and not _made(key, lists):
            new = key.method not in study.methods
            need("ablations" if new else "more_methods", key.method)
            need("ablation_fractions" if new else "more_fractions", key.fraction)
    return {name: all_ for name, all_ in lists.items() if all_ != getattr(study, name)}


def _made(key: RunKey, lists: dict[str, list[Any]]) -> bool:
    """Whether a stage of mutual learning has the run's fraction and method."""
    return any(
        key.fraction in lists[fractions] and key.method in lists[methods]
        for fractions, methods in (
            ("fractions", "methods"),
            ("ablation_fractions", "ablations"),
            ("more_fractions", "more_methods"),
            ("tune_fractions", "tuned_methods"),
        )
    )
