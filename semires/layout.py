"""Where everything lies, relative to the project's root: the one list of paths.

DVC runs each stage from the root. What DVC owns stands under ``data/``, ``sam/``, ``proposals/``,
``runs/`` and ``tune/``; what must survive an interrupted stage under the git-ignored ``.work/``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from semires.config import Params

REPORTS = Path("reports")
RUNS = Path("runs")
TABLES = Path("experiments/tables")
TUNED = Path("experiments/tuned")
SAM = Path("sam")
STAGE_TIMES = Path(".work/stages.jsonl")


def fraction_name(fraction: float) -> str:
    """``0.1``, ``1``, ``5``: a percentage as params.yaml and DVC spell it."""
    return f"{fraction:g}"


@dataclass(frozen=True)
class Cell:
    """One training: data set, labelled fraction (percent), method (`supervised` = burn-in), seed.

    ``source`` is set where the proposals are not the study's default ones; the method's name then
    carries it (``cpi-u+felzenszwalb``).
    """

    dataset: str
    fraction: float
    method: str
    seed: int
    source: str | None = None

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


def prepared(dataset: str) -> Path:
    """Folder of ``images.parquet``, ``refs.parquet`` and ``summary.json``."""
    return Path("data/prepared") / dataset


def split_file(dataset: str, fraction: float) -> Path:
    """JSON with the labelled image ids of one fraction."""
    return Path("data/splits") / dataset / f"{fraction_name(fraction)}.json"


def proposals(dataset: str, source: str) -> Path:
    """Folder of one source's Parquet shards and their ``manifest.json``."""
    return Path("proposals") / dataset / source


def tune_folder(cell: Cell) -> Path:
    """Folder of one threshold search's ``best.yaml``, ``trials.csv`` and plots."""
    return Path("tune") / cell.folder.relative_to(RUNS)


def work(name: str, fingerprint: str) -> Path:
    """Folder for what must survive an interruption, keyed by everything it is made from."""
    return root() / ".work" / f"{name}-{fingerprint[:16]}"


def root() -> Path:
    """The real workspace: under ``dvc exp run --temp`` the current folder is a copy of it."""
    return Path(os.environ.get("DVC_ROOT", "."))


def source_of(params: Params, cell: Cell) -> str:
    """The proposal source that a cell uses."""
    return cell.source or params.proposals.source
