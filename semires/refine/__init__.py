"""Refine pseudo-labels with proposals: matching (IOM, CPI) and weighting (PWA).

The classes that need torch are imported on first access. Loading params.yaml imports the strategies
from this package and stays fast without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from semires.refine.batch import PartitionBatch
    from semires.refine.refiner import PseudoLabelRefiner, RefinedLabels

__all__ = ["PartitionBatch", "PseudoLabelRefiner", "RefinedLabels"]

_MODULES = {
    "PartitionBatch": "semires.refine.batch",
    "PseudoLabelRefiner": "semires.refine.refiner",
    "RefinedLabels": "semires.refine.refiner",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
