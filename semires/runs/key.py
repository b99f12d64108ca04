"""The name of a training: data set, labelled fraction, method, seed, source of proposals."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

RUNS = Path("runs")
SUPERVISED = "supervised"  # the method of burn-in, the paper's Supervised row


def fraction_name(fraction: float) -> str:
    """``0.1``, ``1``, ``5``: a percentage as params.yaml and DVC spell it."""
    return f"{fraction:g}"


@dataclass(frozen=True)
class RunKey:
    """One training: data set, labelled fraction (percent), method (`supervised` = burn-in), seed.

    ``source`` is set if the proposals are not the study's default ones; the method's name then
    contains it (``cpi-u+felzenszwalb``).
    """

    dataset: str
    fraction: float
    method: str
    seed: int
    source: str | None = None

    def relative_to(self, default_source: str | None) -> RunKey:
        """The same run as a study names it: ``source`` is None if it is the study's default."""
        return replace(self, source=None) if self.source == default_source else self

    @property
    def label(self) -> str:
        """The method, with its source of proposals if that is not the default."""
        return f"{self.method}+{self.source}" if self.source else self.method

    @property
    def name(self) -> str:
        """The MLflow run's name, ``M-F-seedS``."""
        return f"{self.label}-{fraction_name(self.fraction)}-seed{self.seed}"

    @property
    def folder(self) -> Path:
        """``runs/D/F/M/seedS``."""
        fraction = fraction_name(self.fraction)
        return RUNS / self.dataset / fraction / self.label / f"seed{self.seed}"
