"""The record of a finished run: the only writer and reader of ``run.json`` and ``provenance.json``.

``run.json`` says what the run is: two equal runs have the same bytes. ``provenance.json`` says
when, where and how fast it was made. It differs between equal runs, so DVC ignores it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from semires.errors import CorruptCacheError
from semires.files import read_json, sha256_file, write_json
from semires.runs.key import RUNS, RunKey

RECORD = "run.json"
PROVENANCE = "provenance.json"


@dataclass(frozen=True)
class RunRecord:
    """What a run is.

    Args:
        key: which training.
        params: the resolved sections that the result depends on.
        metrics: by split, in percent, and ``pseudo``; the content of ``metrics.json``.
        best_step: the optimizer step whose weights were kept.
        fingerprints: digests of the inputs: params, data, split, weights, proposals, burn_in.
        numerics: what decides the last bits: device, threads, precision, library versions.
        n_refs_labelled: labelled references.
        n_parameters: parameters of the model.
        truncated_expressions: expressions longer than ``data.max_tokens``.
        files: SHA-256 of every other file of the folder, by name.
    """

    key: RunKey
    params: dict[str, Any]
    metrics: dict[str, dict[str, float]]
    best_step: int
    fingerprints: dict[str, str]
    numerics: dict[str, Any]
    n_refs_labelled: int
    n_parameters: int
    truncated_expressions: int
    files: dict[str, str]

    def write(self, folder: Path) -> None:
        """Write ``run.json`` into a run's folder."""
        write_json(folder / RECORD, asdict(self), seal=True)

    @staticmethod
    def read(folder: Path) -> RunRecord:
        """Read a run's folder.

        Raises:
            CorruptCacheError: ``run.json`` is damaged or lacks a field; the text names the file.
        """
        path = folder / RECORD
        values = read_json(path)
        try:
            return RunRecord(**{**values, "key": RunKey(**values["key"])})
        except (KeyError, TypeError) as error:
            raise CorruptCacheError(
                f"{path}: not a run record of this version ({error}); make the run again"
            ) from error

    def verified(self, folder: Path, name: str) -> Path:
        """A file of the run, after comparing its bytes with the digest in ``run.json``.

        Raises:
            CorruptCacheError: it is missing or its SHA-256 differs.
        """
        path, stated = folder / name, self.files.get(name)
        if stated is not None and not (path.is_file() and sha256_file(path) == stated):
            raise CorruptCacheError(
                f"{path}: missing or damaged: its SHA-256 is not the one in {RECORD}; run "
                "`dvc checkout`, or make the run again"
            )
        return path


@dataclass(frozen=True)
class Provenance:
    """When, where and by which code a run was made, and how long it took.

    Args:
        started: ISO 8601, UTC.
        finished: ISO 8601, UTC.
        duration_s: wall-clock time from start to record, seconds.
        peak_rss_mb: largest resident memory of the process, MiB.
        platform: operating system and machine.
        git_commit: commit of the working tree, or None outside git.
        code: SHA-256 over the package's source files.
    """

    started: str
    finished: str
    duration_s: float
    peak_rss_mb: float
    platform: str
    git_commit: str | None
    code: str

    def write(self, folder: Path) -> None:
        """Write ``provenance.json`` into a run's folder."""
        write_json(folder / PROVENANCE, asdict(self))

    @staticmethod
    def read(folder: Path) -> Provenance | None:
        """Read a run's folder; None where DVC restored the run from its cache.

        Raises:
            CorruptCacheError: ``provenance.json`` is damaged.
        """
        path = folder / PROVENANCE
        if not path.is_file():
            return None
        try:
            return Provenance(**read_json(path))
        except TypeError as error:
            raise CorruptCacheError(f"{path}: not a provenance record; delete it") from error


def run_folders(runs: Path = RUNS) -> Iterator[Path]:
    """The folders of all finished runs below ``runs``, in order of their names."""
    return (path.parent for path in sorted(runs.glob(f"*/*/*/seed*/{RECORD}")))
