"""The last lines of `make repro`: whether runs and reports equal the committed ones, byte for byte.

`dvc.lock` has the digest of every output of a stage, and `git status` names each result whose bytes
differ from those of the last commit. Where something differs, the first difference in
the order of the pipeline and the known reasons are named.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from semires.config.validate import read_yaml
from semires.process import git
from semires.reporting.report import KEPT
from semires.reporting.runs_table import numerics_differences
from semires.runs import layout

LOCK, PIPELINE = Path("dvc.lock"), Path("dvc.yaml")
_RUN_STAGES = ("burn_in", "mutual")
#: What results are made from, for git.
_INPUTS = (
    *("params.yaml", "dvc.yaml", "semires", "requirements.lock"),
    *("experiments/tables", "experiments/claims.yaml"),
)
Stages = dict[str, dict[str, Any]]


def closing(output: Path = layout.REPORTS) -> str:
    """One or two lines about this project's results and those of its last commit.

    Args:
        output: the report's folder.
    """
    if git("rev-parse", "--verify", "--quiet", "HEAD") is None:
        return "The results were not compared: the project is no git repository or has no commit."
    committed, here = _stages(git("show", f"HEAD:./{LOCK}")), _stages(_read(LOCK))
    if not committed or not here:
        where = "here" if committed else "committed"
        return f"The results were not compared: no stage of {LOCK} is {where}."
    changed = _changed_files()
    tracked = map(Path, _lines("ls-tree", "-r", "--name-only", "HEAD", f"{output}/"))
    reports = {path for path in changed if _is_report(path, output)}
    all_reports = reports | {path for path in tracked if _is_report(path, output)}
    names = _stages_of_study({**committed, **here})
    other = [name for name in names if not _is_equal(name, committed, here)]
    runs = [name for name in names if name.partition("@")[0] in _RUN_STAGES]
    counts = len(runs), len(all_reports)
    if not other and not reports:
        clean = "" if changed else "; `git status` is clean"
        return (
            f"All {counts[0]} runs and {counts[1]} reports equal the committed ones, byte for "
            f"byte{clean}."
        )
    first = other[0] if other else str(min(reports))
    inputs = _changed_inputs(first, committed, here) if other else ()
    reasons = [*inputs, *_numerics(output), *_changed_code()]
    return (
        f"{len(set(other) & set(runs))} of {counts[0]} runs and {len(reports)} of {counts[1]} "
        f"reports differ from the committed ones; first in the pipeline: {first}.\n"
        f"Reason: {'; '.join(reasons) or 'unknown; parameters, code and versions are equal'}."
    )


def _stages(lock: str | None) -> Stages:
    """The stages of a dvc.lock by name; empty without one."""
    content = YAML(typ="safe", pure=True).load(lock) if lock else None
    return dict(content["stages"]) if isinstance(content, dict) else {}


def _stages_of_study(locked: Iterable[str]) -> list[str]:
    """All stages of the study, in the order of dvc.yaml.

    Those of the grid come from its file, since dvc.lock also keeps those of earlier studies.
    """
    kinds, grid = list(read_yaml(PIPELINE)["stages"]), read_yaml(layout.GRID)["grid"]
    others = [name for name in locked if name.partition("@")[0] in {*kinds} - {*grid}]
    names = [*others, *(f"{kind}@{item}" for kind, items in grid.items() for item in items)]
    return sorted(names, key=lambda name: kinds.index(name.partition("@")[0]))


def _is_equal(name: str, committed: Stages, here: Stages) -> bool:
    """Whether the outputs of a stage exist here and have the committed digests."""
    outs = _digests(here, name)
    return bool(outs) and outs == _digests(committed, name) and not _missing(outs)


def _digests(stages: Stages, name: str, kind: str = "outs") -> dict[str, str]:
    """Digests of a stage's outputs or inputs ("deps") by path; empty without the stage."""
    return {file["path"]: file.get("md5", "") for file in stages.get(name, {}).get(kind, ())}


def _different(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return [key for key in {**before, **now} if before.get(key) != now.get(key)]


def _missing(outs: Iterable[str]) -> list[str]:
    return [path for path in outs if not Path(path).exists()]


def _changed_inputs(name: str, committed: Stages, here: Stages) -> Iterator[str]:
    """Why a stage differs: missing outputs, its own parameters, files that no stage makes."""
    if name not in committed or name not in here:
        yield f"{name} {'is not committed' if name in here else 'did not run here'}"
        return
    if missing := _missing(_digests(here, name)):
        yield f"{missing[0]} is not here"
    before, now = (
        {key: value for values in stage.get("params", {}).values() for key, value in values.items()}
        for stage in (committed[name], here[name])
    )
    if parameters := _different(before, now):
        yield f"other parameters ({', '.join(parameters)})"
    made = {path for stage in here for path in _digests(here, stage)}
    files = _different(_digests(committed, name, "deps"), _digests(here, name, "deps"))
    if files := [path for path in files if path not in made]:
        yield f"other inputs ({', '.join(files)})"


def _numerics(output: Path) -> Iterator[str]:
    """Differences of numerics class and versions, from both versions of runs.csv."""
    texts = git("show", f"HEAD:./{output / 'runs.csv'}"), _read(output / "runs.csv")
    if all(texts):
        yield from numerics_differences(*(csv.DictReader(io.StringIO(t or "")) for t in texts))


def _changed_code() -> Iterator[str]:
    """Files that changed after the commit that has the results."""
    commit = git("log", "-1", "--format=%h", "--", str(LOCK))
    names = _lines("diff", "--name-only", "--relative", str(commit).strip(), "--", *_INPUTS)
    if names:
        more = f" and {len(names) - 3} more" * (len(names) > 3)
        yield f"changed since commit {str(commit).strip()}: {', '.join(names[:3])}{more}"


def _changed_files() -> set[Path]:
    """The files that `git status` lists, relative to the project."""
    top = (git("rev-parse", "--show-prefix") or "").strip()
    status = git("status", "--porcelain", "-z", "--no-renames", "--untracked-files=all") or ""
    names = (entry[3:] for entry in status.split("\0") if entry)
    return {Path(name.removeprefix(top)) for name in names if name.startswith(top)}


def _is_report(path: Path, output: Path) -> bool:
    """Whether the report writes this file; other commands write those of `KEPT`."""
    kept = any(path.is_relative_to(output / name) for name in KEPT)
    return path.is_relative_to(output) and not kept


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _lines(*command: str) -> list[str]:
    return (git(*command) or "").splitlines()
