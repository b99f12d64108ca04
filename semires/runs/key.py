"""The name of a training: data set, labelled fraction, method, seed, source of proposals."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

RUNS = Path("runs")
SUPERVISED = "supervised"  # the method of burn-in, the paper's Supervised row


def fraction_name(fraction: float) -> str:
    """``0.1``, ``1``, ``5``: a percentage as params.yaml and DVC spell it."""
    return f"{fraction:g}"


@dataclass(frozen=True)
class RunKey:
    """One training: data set, labelled fraction (percent), method (`supervised` = burn-in), seed.

    ``source`` is set if the proposals are not the study's default ones; the method's label then
    contains it (``cpi-u+felzenszwalb``). ``model`` is set if the network is not that of the section
    `model`, but of a section of `models`; the label then begins with it (``rela.cpi-u``).
    """

    dataset: str
    fraction: float
    method: str
    seed: int
    source: str | None = None
    model: str | None = None

    @staticmethod
    def of_folder(folder: Path) -> RunKey:
        """The key of a folder that ends with ``D/F/M/seedS``, as of :attr:`folder`."""
        dataset, fraction, label, seed = folder.parts[-4:]
        model, _, label = label.rpartition(".")
        method, _, source = label.partition("+")
        number = int(seed.removeprefix("seed"))
        return RunKey(dataset, float(fraction), method, number, source or None, model or None)

    def values(self) -> dict[str, Any]:
        """The fields for records and fingerprints, which omit ``model`` if it is not set."""
        return {k: v for k, v in asdict(self).items() if k != "model" or v is not None}

    def relative_to(self, default_source: str | None) -> RunKey:
        """The same run as a study names it: ``source`` is None if it is the study's default."""
        return replace(self, source=None) if self.source == default_source else self

    @property
    def label(self) -> str:
        """The method, with its model and its source of proposals if they are not the default."""
        method = f"{self.method}+{self.source}" if self.source else self.method
        return f"{self.model}.{method}" if self.model else method

    @property
    def option(self) -> str:
        """The option of the `semires` command that selects the model, with a leading space."""
        return f" --model {self.model}" if self.model else ""

    @property
    def burn_in(self) -> RunKey:
        """The burn-in that the run starts from."""
        return replace(self, method=SUPERVISED, source=None)

    @property
    def name(self) -> str:
        """The MLflow run's name, ``M-F-seedS``."""
        return f"{self.label}-{fraction_name(self.fraction)}-seed{self.seed}"

    @property
    def folder(self) -> Path:
        """``runs/D/F/M/seedS``."""
        fraction = fraction_name(self.fraction)
        return RUNS / self.dataset / fraction / self.label / f"seed{self.seed}"
