"""Resolve the parameters of one method: its overrides, its tuned thresholds, its colour.

The stages `mutual` and `tune` run with the parameters that :func:`resolve` returns. Run records,
fingerprints and MLflow therefore show the values that were used.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from semires.config.grid import search_of
from semires.config.messages import nearest
from semires.config.schema import Params
from semires.config.validate import read_yaml, validate
from semires.errors import ConfigError
from semires.runs import layout
from semires.runs.key import RunKey, fraction_name

COLOURS = {  # of methods in figures and MLflow; the colour-blind safe palette of Okabe and Ito
    "supervised": "#000000",
    "control": "#999999",
    "baseline": "#E69F00",
    "iom": "#56B4E9",
    "cpi": "#009E73",
    "cpi-u": "#D55E00",
    "cpi-o": "#CC79A7",
}
OVERRIDABLE = ("mutual", "augment", "loss", "tune")  # sections that a method's overrides change


def resolve(params: Params, key: RunKey, tuned: bool = True) -> Params:
    """Return the parameters of one run, with the overrides of ``refine[key.method]`` applied.

    Args:
        params: all parameters.
        key: the run; its method is a key of ``refine``.
        tuned: read the thresholds of a method with tuned thresholds from ``experiments/tuned``.
            A threshold search sets this to False.

    Raises:
        ConfigError: an override or a tuned threshold is invalid, or the search has not been run.
    """
    method = params.refine[key.method]
    tree = params.model_dump()
    for dotted, value in method.overrides.items():
        override(tree, dotted, value, f"refine.{key.method}.overrides")
    search = search_of(params, key)
    if tuned and search is not None:
        tree["refine"][key.method].update(tuned_thresholds(search, method.threshold_values))
    return validate(tree, f"refine.{key.method}")


def check_overrides(params: Params) -> None:
    """Check the overrides of all methods before any work starts.

    Raises:
        ConfigError: an override is invalid.
    """
    for name, method in params.refine.items():
        if method.overrides:
            resolve(params, RunKey(params.study.datasets[0], 1, name, 0), tuned=False)


def override(tree: dict[str, Any], key: str, value: Any, where: str) -> None:
    """Set the dotted ``key`` of one of ``OVERRIDABLE`` in a tree of parameters.

    Raises:
        ConfigError: the key does not exist.
    """
    *folders, name = key.split(".")
    node: Any = tree
    for folder in folders:
        node = node.get(folder) if isinstance(node, dict) else None
    if not folders or folders[0] not in OVERRIDABLE or not isinstance(node, dict):
        raise ConfigError(f"{where}: {key!r} is not a dotted key of {', '.join(OVERRIDABLE)}")
    if name not in node:
        raise ConfigError(
            f"{where}: {key!r}: {'.'.join(folders)} has no {name!r}{nearest(name, node)}"
        )
    node[name] = value


def tuned_thresholds(search: RunKey, names: Iterable[str]) -> dict[str, float]:
    """Read the thresholds of these names that a search found.

    Raises:
        ConfigError: the search has no result file, or a name is missing in it.
    """
    path = layout.tuned_file(search)
    if not path.is_file():
        raise ConfigError(
            f"{path}: no such file; the method has tuned thresholds: run `semires tune --dataset "
            f"{search.dataset} --fraction {fraction_name(search.fraction)} --method "
            f"{search.method}`"
        )
    values = read_yaml(path)
    if not isinstance(values, dict) or not set(names) <= set(values):
        raise ConfigError(
            f"{path}: does not contain {', '.join(names)}; make it again with `semires tune`"
        )
    return {name: values[name] for name in names}


def source_of(params: Params, key: RunKey) -> str:
    """Return the proposal source that a run uses: its ``source``, or else ``proposals.source``."""
    return key.source or params.proposals.source
