"""Resolve the parameters of one run: its model, overrides and tuned values.

The stages `burn-in`, `mutual` and `tune` run with the parameters that :func:`resolve` returns. Run
records, fingerprints and MLflow therefore show the values that were used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from semires.config.grid import search_of
from semires.config.messages import nearest
from semires.config.method import Method
from semires.config.schema import Params
from semires.config.validate import read_yaml, validate
from semires.errors import ConfigError
from semires.refine.weightings import PWA, WEIGHTINGS
from semires.runs import layout
from semires.runs.key import SUPERVISED, RunKey, fraction_name

COLOURS = {  # of methods in figures and MLflow; the colour-blind safe palette of Okabe and Ito
    "supervised": "#000000",
    "control": "#999999",
    "baseline": "#E69F00",
    "iom": "#56B4E9",
    "cpi": "#009E73",
    "cpi-u": "#D55E00",
    "cpi-o": "#CC79A7",
}
# Sections that the overrides of a method and of a further model change.
OF_METHODS = ("mutual", "augment", "loss", "tune")
OF_MODELS = ("optimizer", "burn_in", "mutual")


def resolve(params: Params, key: RunKey, tuned: bool = True) -> Params:
    """Return the parameters of one run: its model, and the overrides of model and method.

    The section of ``key.model`` in ``models`` replaces the section ``model``. The value of the
    fraction in ``burn_in.steps_by_fraction`` replaces ``burn_in.steps``.

    Args:
        params: all parameters.
        key: the run; its method is `supervised` or a key of ``refine``.
        tuned: read the values of a method with tuned thresholds from ``experiments/tuned``.
            A threshold search sets this to False.

    Raises:
        ConfigError: an override or a tuned threshold is invalid, or the search has not been run.
    """
    tree, where = params.model_dump(), "params"
    burn_in = tree["burn_in"]
    steps = burn_in.pop("steps_by_fraction", {})
    burn_in["steps"] = steps.get(fraction_name(key.fraction), burn_in["steps"])
    if key.model is not None:
        other, where = params.models[key.model], f"models.{key.model}"
        tree["model"] = other.model.model_dump()
        for dotted, value in other.overrides.items():
            override(tree, dotted, value, f"{where}.overrides", OF_MODELS)
    if key.method != SUPERVISED:
        method, where = params.refine[key.method], f"refine.{key.method}"
        for dotted, value in method.overrides.items():
            override(tree, dotted, value, f"{where}.overrides", OF_METHODS)
        search = search_of(params, key)
        if tuned and search is not None:
            set_values(tree, key.method, tuned_values(search, method.threshold_values))
    return validate(tree, where)


def check_overrides(params: Params) -> None:
    """Check the overrides of all methods and the sections of all models before any work starts.

    Raises:
        ConfigError: an override or a model is invalid.
    """
    for name in params.models:
        resolve(params, RunKey(params.study.datasets[0], 1, SUPERVISED, 0, model=name))
    for name, method in params.refine.items():
        if method.overrides:
            resolve(params, RunKey(params.study.datasets[0], 1, name, 0), tuned=False)


def override(
    tree: dict[str, Any], key: str, value: Any, where: str, sections: tuple[str, ...]
) -> None:
    """Set the dotted ``key`` of one of ``sections`` in a tree of parameters.

    Raises:
        ConfigError: the key does not exist.
    """
    *folders, name = key.split(".")
    node: Any = tree
    for folder in folders:
        node = node.get(folder) if isinstance(node, dict) else None
    if not folders or folders[0] not in sections or not isinstance(node, dict):
        raise ConfigError(f"{where}: {key!r} is not a dotted key of {', '.join(sections)}")
    if name not in node:
        raise ConfigError(
            f"{where}: {key!r}: {'.'.join(folders)} has no {name!r}{nearest(name, node)}"
        )
    node[name] = value


def set_values(tree: dict[str, Any], method: str, values: Mapping[str, float]) -> None:
    """Set the values of a search in a tree of parameters.

    Args:
        tree: all parameters.
        method: a key of ``refine``.
        values: by name: thresholds and parameters of the weighting of the method; ``pwa_mean``,
            ``pwa_variance`` and ``pwa_offset`` of ``loss.pwa``; ``lambda_unsup`` and ``ema`` of
            ``mutual``.
    """
    for name, value in values.items():
        if name.startswith(PWA):
            tree["loss"]["pwa"][name.removeprefix(PWA)] = value
        elif name in ("lambda_unsup", "ema"):
            tree["mutual"][name] = value
        else:
            tree["refine"][method][name] = value


def weight_values(params: Params, method: Method) -> dict[str, float]:
    """The parameters of a method's weighting, by the names of `WEIGHTINGS`."""
    pwa = {f"{PWA}{name}": value for name, value in params.loss.pwa.model_dump().items()}
    values = {}
    for name, parameter in WEIGHTINGS[method.weight_rule].parameters.items():
        value = pwa.get(name, getattr(method, name, None))
        values[name] = parameter.default if value is None else float(value)
    return values


def tuned_values(search: RunKey, thresholds: Iterable[str]) -> dict[str, float]:
    """Read the values that a search found.

    Raises:
        ConfigError: the search has no result file, or one of ``thresholds`` is missing in it.
    """
    path = layout.tuned_file(search)
    if not path.is_file():
        raise ConfigError(
            f"{path}: no such file; the method has tuned thresholds: run `semires tune --dataset "
            f"{search.dataset} --fraction {fraction_name(search.fraction)} --method "
            f"{search.method}{search.option}`"
        )
    values = read_yaml(path)
    if not isinstance(values, dict) or not set(thresholds) <= set(values):
        raise ConfigError(
            f"{path}: does not contain {', '.join(thresholds)}; make it again with `semires tune`"
        )
    return values


def source_of(params: Params, key: RunKey) -> str:
    """Return the proposal source that a run uses: its ``source``, or else ``proposals.source``."""
    return key.source or params.proposals.source


def proposals_of(params: Params, key: RunKey) -> Path:
    """Return the folder of the proposals that a run uses."""
    return layout.proposals(params.owner(key.dataset), source_of(params, key))
