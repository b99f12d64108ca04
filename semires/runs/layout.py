"""All paths of a project, relative to its root.

DVC runs each stage from the root. Its outputs are in ``data/``, ``sam/``, ``proposals/``,
``runs/``, ``tune/`` and ``labels/``. State that must survive an interrupted stage is in ``.work/``,
which git ignores.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

from semires.runs.key import RUNS, RunKey, fraction_name

REPORTS = Path("reports")
TABLES = Path("experiments/tables")
TUNED = Path("experiments/tuned")
LABELS = Path("labels")
GRID = Path("experiments/grid.yaml")
SAM = Path("sam")


def prepared(dataset: str) -> Path:
    """Folder of ``images.parquet``, ``refs.parquet`` and ``summary.json``."""
    return Path("data/prepared") / dataset


def split_file(dataset: str, fraction: float) -> Path:
    """JSON with the labelled image ids of one fraction."""
    return Path("data/splits") / dataset / f"{fraction_name(fraction)}.json"


def proposals(dataset: str, source: str) -> Path:
    """Folder of one source's Parquet shards and their ``manifest.json``."""
    return Path("proposals") / dataset / source


def tune_folder(cell: RunKey) -> Path:
    """Folder of one threshold search's ``best.yaml``, ``trials.csv`` and plots."""
    return Path("tune") / cell.folder.relative_to(RUNS)


def tuned_file(key: RunKey) -> Path:
    """YAML with the thresholds that a search found; all seeds share it."""
    return TUNED / f"{key.dataset}-{fraction_name(key.fraction)}-{key.label}.yaml"


def unplanned(key: RunKey, on: str) -> RunKey:
    """The name of a search of ``key`` on other images (``tune.on``) than params.yaml states.

    No method in params.yaml can have this name.
    """
    return replace(key, method=f"{key.method}@{on}")


def labels_folder(key: RunKey) -> Path:
    """Folder of ``labels.csv``, the label quality of every rule."""
    return LABELS / key.dataset / fraction_name(key.fraction) / f"seed{key.seed}"


def work(name: str, fingerprint: str) -> Path:
    """Folder for state that must survive an interruption; its name depends on all inputs."""
    return root() / ".work" / f"{name}-{fingerprint[:16]}"


def root() -> Path:
    """The real workspace: under ``dvc exp run --temp`` the current folder is a copy of it."""
    return Path(os.environ.get("DVC_ROOT", "."))


def project_above(files: tuple[str, ...]) -> Path | None:
    """The folder of the project that the current folder is in, or None.

    It is the nearest parent folder that contains all ``files``. The result is None if the current
    folder contains one of them: it is a project's own folder.
    """
    here = Path.cwd()
    if any((here / name).is_file() for name in files):
        return None
    return next((p for p in here.parents if all((p / name).is_file() for name in files)), None)


def sqlite_url(path: str | Path) -> str:
    """The SQLAlchemy URL of an SQLite file; characters with a meaning in URLs are escaped."""
    return "sqlite:///" + quote(str(path), safe="/ ")
