"""The weightings of unmatched samples by name, with the parameters that a search varies.

To add a weighting, write its class (:mod:`semires.refine.weighting`) and add one entry to
``WEIGHTINGS``. params.yaml, mutual learning and the search by short trainings then accept it. This
module does not import PyTorch, because loading params.yaml imports it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

PWA = "pwa_"  # the parameters with this prefix are those of the section `loss.pwa`


@dataclass(frozen=True)
class Parameter:
    """A parameter of a weighting: its source's value, and the range and scale of a search."""

    default: float
    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class WeightingRule:
    """A weighting.

    Args:
        module: its class as ``MODULE:CLASS``, derived from ``Weighting``.
        parameters: the arguments of the class, in order. A method in params.yaml can have these
            keys, each in [0, 1]; PWA's are in `loss.pwa`.
    """

    module: str
    parameters: Mapping[str, Parameter] = field(default_factory=dict)


_HERE = "semires.refine.weighting"
_MOMENTUM = Parameter(0.999, 0.9, 0.9999)

WEIGHTINGS: dict[str, WeightingRule] = {
    "none": WeightingRule(f"{_HERE}:Weighting"),
    "pwa": WeightingRule(  # paper Eq. 9; the ranges keep the weight positive
        f"{_HERE}:Pwa",
        {
            f"{PWA}mean": Parameter(0.5, 0.3, 0.7),
            f"{PWA}variance": Parameter(0.1, 0.1, 1.0, log=True),
            f"{PWA}offset": Parameter(1.3, 1.27, 2.0),
        },
    ),
    "confidence": WeightingRule(  # FixMatch, UniMatch
        f"{_HERE}:Confidence", {"confidence": Parameter(0.95, 0.5, 0.99)}
    ),
    "softmatch": WeightingRule(f"{_HERE}:SoftMatch", {"momentum": _MOMENTUM}),
    "corrmatch": WeightingRule(
        f"{_HERE}:CorrMatch",
        {"confidence": Parameter(0.85, 0.5, 0.99), "momentum": _MOMENTUM},
    ),
}
