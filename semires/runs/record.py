"""The record of a finished run: the only writer and reader of ``run.json`` and ``provenance.json``.

``run.json`` describes the run; equal runs have equal bytes. ``provenance.json`` records when, where
and how fast it was made. It differs between equal runs, so DVC does not track it.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from semires.errors import CorruptCacheError
from semires.files import fingerprint, read_json, sha256_file, sha256_tree, write_json
from semires.numerics import cpu_model
from semires.process import git_commit, peak_rss_mb
from semires.runs.key import RUNS, RunKey

RECORD = "run.json"
PROVENANCE = "provenance.json"


@dataclass(frozen=True)
class RunRecord:
    """The description of a run.

    Args:
        key: which training.
        params: the resolved parameter sections that the result depends on.
        metrics: by split, in percent, and ``pseudo``; the content of ``metrics.json``.
        best_step: the optimizer step of the best evaluation, whose weights the folder holds.
        fingerprints: digests of the inputs: params, data, split, weights, proposals, burn_in.
        numerics: influences on the last bits: device, threads, precision, library versions.
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
        write_json(folder / RECORD, {**asdict(self), "key": self.key.values()}, seal=True)

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
            CorruptCacheError: it is missing, or its SHA-256 differs.
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
    """When, where and by which code a run was made, and how fast.

    Args:
        started: ISO 8601, UTC.
        finished: ISO 8601, UTC.
        duration_s: wall-clock time of the process that finished the run, in seconds.
        peak_rss_mb: largest resident memory of the process, MiB.
        platform: operating system and machine.
        python: full version of Python.
        cpu: vendor, family, model and name of the CPU.
        git_commit: commit of the working tree, or None outside git.
        code: SHA-256 over the package's source files.
        samples_per_s: samples per second of the training steps, over all processes and attempts.
        data_wait: share (0..1) of the time of these steps that was spent waiting for samples.
    """

    started: str
    finished: str
    duration_s: float
    peak_rss_mb: float
    platform: str
    python: str
    cpu: dict[str, str]
    git_commit: str | None
    code: str
    samples_per_s: float | None = None
    data_wait: float | None = None

    @staticmethod
    def of_process(started: float, samples_per_s: float, data_wait: float) -> Provenance:
        """The provenance of a run that this process finishes now.

        Args:
            started: when it started, seconds since the epoch.
            samples_per_s: as the attribute.
            data_wait: as the attribute.
        """
        return Provenance(
            started=datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            duration_s=round(time.time() - started, 2),
            peak_rss_mb=round(peak_rss_mb(), 1),
            platform=platform.platform(),
            python=platform.python_version(),
            cpu=cpu_model(),
            git_commit=git_commit(),
            code=code_fingerprint(),
            samples_per_s=round(samples_per_s, 3),
            data_wait=round(data_wait, 6),
        )

    def write(self, folder: Path) -> None:
        """Write ``provenance.json`` into a run's folder."""
        write_json(folder / PROVENANCE, asdict(self))

    @staticmethod
    def read(folder: Path) -> Provenance | None:
        """Read a run's folder; None if the file does not exist (DVC restored the run).

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


def code_fingerprint() -> str:
    """SHA-256 over the package's source files."""
    package = Path(__file__).parent.parent
    files = sorted(package.rglob("*.py"))
    return fingerprint([[str(f.relative_to(package)), sha256_tree(f)] for f in files])


def run_folders(runs: Path = RUNS) -> Iterator[Path]:
    """The folders of all finished runs below ``runs``, ordered by path."""
    return (path.parent for path in sorted(runs.glob(f"*/*/*/seed*/{RECORD}")))


def flatten(values: Any, separator: str = ".") -> dict[str, Any]:
    """The leaves of a tree of mappings by their joined names; lists are leaves."""
    if not isinstance(values, Mapping):
        return {"": values}
    return {
        f"{name}{separator}{rest}" if rest else str(name): leaf
        for name, value in values.items()
        for rest, leaf in flatten(value, separator).items()
    }
