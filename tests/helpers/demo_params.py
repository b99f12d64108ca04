"""The parameters of experiments/demo.yaml with one key or one method changed."""

from __future__ import annotations

import copy
from typing import Any

from helpers import ROOT
from semires.config.schema import Params
from semires.config.validate import read_yaml, validate

DEMO = read_yaml(ROOT / "experiments/demo.yaml")


def changed(key: str, value: Any) -> dict[str, Any]:
    """The demo's parameters with one dotted key changed (or added)."""
    tree = copy.deepcopy(DEMO)
    *folders, name = key.split("/")
    node = tree
    for folder in folders:
        node = node[int(folder) if isinstance(node, list) else folder]
    node[name] = value
    return tree


def with_method(**entry: Any) -> Params:
    """The demo's parameters with one more method, ``mine``."""
    return validate(changed("refine/mine", {"strategy": "none", "pwa": False, **entry}))
