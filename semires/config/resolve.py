"""A method's own: its overrides, the thresholds that a search found for it, its colour.

The stages `mutual` and `tune` run with the parameters that :func:`resolve` returns, so that run
records, fingerprints and MLflow show what was really used.
"""

from __future__ import annotations

from typing import Any

from semires.config.messages import nearest
from semires.config.schema import Params
from semires.config.validate import read_yaml, validate
from semires.errors import ConfigError
from semires.runs import layout
from semires.runs.key import RunKey, fraction_name

COLOURS = {  # of a method in figures and in MLflow: Okabe and Ito's, told apart by every eye
    "supervised": "#000000",
    "control": "#999999",
    "baseline": "#E69F00",
    "iom": "#56B4E9",
    "cpi": "#009E73",
    "cpi-u": "#D55E00",
    "cpi-o": "#CC79A7",
}


def resolve(params: Params, cell: RunKey, tuned: bool = True) -> Params:
    """Parameters as ``refine[cell.method]`` changes them.

    Args:
        params: all parameters.
        cell: its method is a key of ``refine``.
        tuned: where the method asks for tuned thresholds, take them from ``experiments/tuned``.

    Raises:
        ConfigError: an override or a tuned threshold is no valid parameter, or the search has not
            been made.
    """
    method = params.refine[cell.method]
    tree = params.model_dump()
    for key, value in method.overrides.items():
        override(tree, key, value, f"refine.{cell.method}.overrides")
    if tuned and method.thresholds == "tuned":
        tree["refine"][cell.method].update(tuned_thresholds(cell))
    return validate(tree, f"refine.{cell.method}")


def check_overrides(params: Params) -> None:
    """Refuse wrong overrides before any work.

    Raises:
        ConfigError: as :func:`resolve`.
    """
    for name, method in params.refine.items():
        if method.overrides:
            resolve(params, RunKey(params.study.datasets[0], 1, name, 0), tuned=False)


def override(tree: dict[str, Any], key: str, value: Any, where: str) -> None:
    """Set the dotted ``key`` of ``mutual``, ``augment`` or ``loss`` in a tree of parameters.

    Raises:
        ConfigError: there is no such key.
    """
    *folders, name = key.split(".")
    node: Any = tree
    for folder in folders:
        node = node.get(folder) if isinstance(node, dict) else None
    if not folders or folders[0] not in ("mutual", "augment", "loss") or not isinstance(node, dict):
        raise ConfigError(f"{where}: {key!r} is no dotted key of mutual, augment or loss")
    if name not in node:
        raise ConfigError(
            f"{where}: {key!r}: {'.'.join(folders)} has no {name!r}{nearest(name, node)}"
        )
    node[name] = value


def tuned_thresholds(cell: RunKey) -> dict[str, float]:
    """The thresholds that `semires tune` found for this cell's method."""
    fraction = fraction_name(cell.fraction)
    path = layout.TUNED / f"{cell.dataset}-{fraction}-{cell.label}.yaml"
    if not path.is_file():
        raise ConfigError(
            f"{path}: no such file; {cell.method} has `thresholds: tuned`: run "
            f"`semires tune --dataset {cell.dataset} --fraction {fraction} --method {cell.method}`"
        )
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds no thresholds; make it again with `semires tune`")
    return {str(k): v for k, v in values.items() if str(k).startswith("threshold")}


def source_of(params: Params, key: RunKey) -> str:
    """The proposal source that a run uses: its own, or the study's default one."""
    return key.source or params.proposals.source
