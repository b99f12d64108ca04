"""`semires verify`: this machine's runs, tables and claims against the committed ones.

Runs first: **identical** if the digests of weights, predictions and evaluated samples are equal,
**equal** if all metrics are, at two decimals, **within** or **outside**. Then the numbers of the
tables: equal, within or outside. Within: inside the committed 95 % interval over images, widened
by the 95 % prediction interval for other seeds where several seeds are committed, since another
machine changes a training about as much as another seed does. Then the claims: with the same
number of seeds, a verdict must equal the committed one.

The command fails if something is outside or a verdict changed. Results that only one side has are
counted and are no failure, so part of the runs can be verified.
"""

from __future__ import annotations

import csv
import io
import math
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from semires.config.schema import Params
from semires.errors import CorruptCacheError, SemiresError
from semires.process import git
from semires.reporting.claims import NOT_RUN
from semires.reporting.claims_render import CLAIM_COLUMNS
from semires.reporting.report import build, write_data
from semires.reporting.runs_table import DIGEST_COLUMNS, KEY_COLUMNS, NUMERICS
from semires.runs import layout
from semires.runs.key import RUNS

Line = dict[str, str]
_TABLE_KEY = ("table", "dataset", "fraction", "row", "split")
_CLASS = f"{NUMERICS}class"
_CLAIM_KEY = tuple(CLAIM_COLUMNS[:7])
_VERDICTS = (
    *("identical", "equal", "unchanged", "within", "outside", "changed", "other seeds"),
    *("not run here", "not committed"),
)
_FAILS = ("outside", "changed")
_SHOWN = ("within", "outside", "changed")


@dataclass(frozen=True)
class Compared:
    """One run, number or claim on both sides: its name, its verdict, and the compared values.

    ``classes`` are the numerics classes of a run here and as committed, if they differ.
    """

    key: tuple[str, ...]
    verdict: str
    detail: str = ""
    classes: tuple[str, str] | None = None


def verify(params: Params, output: Path = layout.REPORTS, against: str = "HEAD") -> int:
    """Compare and print; returns 0, or 1 if something is outside or a verdict changed.

    Args:
        params: the active parameters.
        output: the report's folder, whose committed files are compared with.
        against: the commit that has them.

    Raises:
        SemiresError: there is nothing to compare, or a committed file is damaged.
    """
    results = build(params)
    if not results.records.all:
        raise SemiresError(f"{RUNS}: holds no run to verify; run `make repro` first")
    _require_commit(against)
    with tempfile.TemporaryDirectory() as temporary:
        write_data(params, results, Path(temporary))
        ours = {p.name: p.read_text(encoding="utf-8") for p in Path(temporary).glob("*.csv")}
    committed = {name: committed_text(output / name, against) for name in sorted(ours)}
    if not any(committed.values()):
        raise SemiresError(f"{output}: no committed results to compare with in {against}")
    compared: dict[str, list[Compared]] = {"runs": [], "numbers": [], "claims": []}
    for name, text in committed.items():
        # a file that is not committed counts as empty
        before, now = ours[name].partition("\n")[0] if text is None else text, ours[name]
        if name == "runs.csv":
            compared["runs"] = compare_runs(before, now, name)
        elif name == "claims.csv":
            compared["claims"] = compare_claims(before, now, name)
        else:
            compared["numbers"] += compare(before, now, name)
    for kind, found in compared.items():
        _print(kind, found)
    failed = any(c.verdict in _FAILS for found in compared.values() for c in found)
    return 1 if failed else 0


def _require_commit(revision: str) -> None:
    """Refuse a revision that git does not know; HEAD may be absent (no commit, no repository)."""
    if revision == "HEAD":
        return
    commit = f"{revision}^{{commit}}"
    if git("rev-parse", "--verify", "--quiet", "--end-of-options", commit) is None:
        raise SemiresError(f"--against {revision}: no such commit in git")


def committed_text(path: Path, revision: str = "HEAD") -> str | None:
    """A file as a commit has it; of HEAD, if untracked or outside git, as it is on disk."""
    text = git("show", f"{revision}:./{path.as_posix()}")
    if text is not None:
        return text
    if revision != "HEAD" or not path.is_file():
        return None
    return path.read_text(encoding="utf-8", errors="replace")


def read_lines(
    text: str, name: str, key: Iterable[str], needed: Iterable[str]
) -> dict[tuple[str, ...], Line]:
    """Lines of a CSV file by the columns of ``key``.

    Raises:
        CorruptCacheError: a required column is missing or the text is not CSV.
    """
    key = tuple(key)
    reader = csv.DictReader(io.StringIO(text))
    if not {*key, *needed} <= set(reader.fieldnames or ()):
        raise CorruptCacheError(
            f"{name}: not a results file of this version; restore it with git checkout"
        )
    try:
        return {tuple(line[k] or "" for k in key): line for line in reader}
    except csv.Error as error:
        raise CorruptCacheError(f"{name}: no CSV ({error}); use git checkout") from error


def _pairs(
    committed: str, ours: str, name: str, key: Iterable[str], needed: Iterable[str]
) -> list[tuple[tuple[str, ...], Line, Line]]:
    """The lines of both files by key, in our order; a line that a side lacks is empty."""
    before, now = (read_lines(text, name, key, needed) for text in (committed, ours))
    return [(k, before.get(k, {}), now.get(k, {})) for k in dict.fromkeys([*now, *before])]


def compare_runs(committed: str, ours: str, name: str) -> list[Compared]:
    """Compare two files as `runs_csv` writes them, in the order of the pipeline.

    Raises:
        CorruptCacheError: the committed text is no such file.
    """
    pairs = _pairs(committed, ours, name, KEY_COLUMNS, DIGEST_COLUMNS)
    result = []
    for key, old, new in pairs:
        if not old or not new:
            result.append(Compared(key, "not run here" if old else "not committed"))
            continue
        seeds = [line for other, line, _ in pairs if line and other[:3] == key[:3]]
        try:
            verdict, detail = _run_verdict(old, new, seeds)
        except ValueError as error:
            raise CorruptCacheError(f"{name}: a metric is not a number ({error})") from error
        here, there = (line.get(_CLASS) or "unknown" for line in (new, old))
        result.append(Compared(key, verdict, detail, (here, there) if here != there else None))
    return result


def _run_verdict(old: Line, new: Line, seeds: list[Line]) -> tuple[str, str]:
    digests = [(old[c], new[c]) for c in DIGEST_COLUMNS]
    if all(a == b and a for a, b in digests):
        return "identical", ""
    metrics = [c for c in old if "/" in c and not c.endswith(("_low", "_high")) and old[c]]
    metrics = [c for c in metrics if new.get(c)]
    if all(f"{float(old[c]):.2f}" == f"{float(new[c]):.2f}" for c in metrics):
        return "equal", ""
    details, outside = [], False
    for column in (c for c in metrics if c.endswith("/oIoU") and old.get(f"{c}_low")):
        value, centre = float(new[column]), float(old[column])
        each = [float(line[column]) for line in seeds if line.get(column)]
        sd = float(np.std(each, ddof=1)) if len(each) > 1 else 0.0
        bounds = (float(old[f"{column}_low"]), float(old[f"{column}_high"]))
        low, high = _widened(centre, *bounds, _seed_margin(sd, len(each), 1))
        details.append(f"{column} {value:.2f}, committed {centre:.2f} [{low:.2f}, {high:.2f}]")
        outside |= not low <= value <= high
    for column in (c for c in dict.fromkeys([*old, *new]) if c.startswith(NUMERICS)):
        ours, theirs = (line.get(column) or "-" for line in (new, old))
        details += [f"{column} {ours}, committed {theirs}"] * (ours != theirs)
    return "outside" if outside else "within", "; ".join(details)


def compare(committed: str, ours: str, name: str) -> list[Compared]:
    """Compare two CSV tables as `render.to_csv` writes them.

    Raises:
        CorruptCacheError: the committed text is no such table.
    """
    needed = ("value", "ci_low", "ci_high", "sd", "seeds")
    return [
        Compared(key, *_verdict(old, new, name))
        for key, old, new in _pairs(committed, ours, name, _TABLE_KEY, needed)
        if old.get("value") or new.get("value")
    ]


def _verdict(old: Line, new: Line, name: str) -> tuple[str, str]:
    """The verdict on one number of a table, and both sides with the interval."""
    if not new.get("value"):
        return "not run here", ""
    if not old.get("value"):
        return "not committed", ""
    try:
        value, centre, low, high = (
            float(number) for number in (new["value"], old["value"], old["ci_low"], old["ci_high"])
        )
        margin = _seed_margin(float(old["sd"] or 0), int(old["seeds"]), int(new["seeds"]))
    except ValueError as error:
        raise CorruptCacheError(f"{name}: a cell is not a number ({error})") from error
    low, high = _widened(centre, low, high, margin)
    verdict = "within" if low <= value <= high else "outside"
    if f"{value:.2f}" == f"{centre:.2f}":
        verdict = "equal"
    return verdict, f"{new['value']}, committed {old['value']} [{low:.2f}, {high:.2f}]"


def _widened(centre: float, low: float, high: float, margin: float) -> tuple[float, float]:
    return centre - math.hypot(centre - low, margin), centre + math.hypot(high - centre, margin)


def _seed_margin(sd: float, committed: int, here: int) -> float:
    """Half of the 95 % prediction interval of a mean over ``here`` seeds (Student's t)."""
    if committed < 2 or not sd:
        return 0.0
    from scipy.special import stdtrit  # here: a slow import

    quantile = float(stdtrit(committed - 1, 0.975))
    return quantile * sd * math.sqrt(1 / committed + 1 / max(here, 1))


def compare_claims(committed: str, ours: str, name: str) -> list[Compared]:
    """Compare two files as `claims_csv` writes them; verdicts must be equal for equal seeds.

    Raises:
        CorruptCacheError: the committed text is no such file.
    """
    return [
        Compared(key, *_claim_verdict(old, new))
        for key, old, new in _pairs(committed, ours, name, _CLAIM_KEY, CLAIM_COLUMNS)
        if {NOT_RUN} != {line.get("verdict", NOT_RUN) for line in (old, new)}
    ]


def _claim_verdict(old: Line, new: Line) -> tuple[str, str]:
    for line, verdict in ((new, "not run here"), (old, "not committed")):
        if line.get("verdict", NOT_RUN) == NOT_RUN:
            return verdict, ""
    if old["seeds"] != new["seeds"]:
        return "other seeds", ""
    if old["verdict"] == new["verdict"]:
        return "unchanged", ""
    sides = (f"{s['verdict']} ({s['ours']} [{s['low']}, {s['high']}])" for s in (new, old))
    return "changed", ", committed ".join(sides)


def _print(kind: str, compared: list[Compared]) -> None:
    counts = Counter(c.verdict for c in compared)
    for c in compared:
        if c.verdict in _SHOWN:
            print(f"{c.verdict:8} {', '.join(c.key)}: {c.detail}")
    parts = [f"{counts[verdict]} {verdict}" for verdict in _VERDICTS if counts[verdict]]
    print(f"{len(compared)} {kind}{': ' if parts else ''}{', '.join(parts)}")
    for (ours, theirs), count in Counter(c.classes for c in compared if c.classes).items():
        print(f"{count} {kind} of another numerics class: {ours} here, {theirs} committed")
