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
from collections.abc import Callable, Iterable, Sequence
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
_CLASS = f"{NUMERICS}class"
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
    compared: dict[str, list[Compared]] = {kind.name: [] for kind in (_RUNS, _NUMBERS, _CLAIMS)}
    for name, text in committed.items():
        # a file that is not committed counts as empty
        before = ours[name].partition("\n")[0] if text is None else text
        compared[_kind(name).name] += compare(before, ours[name], name)
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


@dataclass(frozen=True)
class _Kind:
    """How the lines of a file are compared.

    ``key``: the columns that name a line. ``needed``: further columns that it must have.
    ``is_there``: whether a line has a result. ``verdict``: of the committed line and ours, among
    all committed lines, with both sides as text.
    """

    name: str
    key: Sequence[str]
    needed: Sequence[str]
    is_there: Callable[[Line], bool]
    verdict: Callable[[Line, Line, Iterable[Line]], tuple[str, str]]


def compare(committed: str, ours: str, name: str) -> list[Compared]:
    """Compare two versions of runs.csv, claims.csv or a table, line by line in our order.

    Raises:
        CorruptCacheError: the committed text is no such file.
    """
    kind = _kind(name)
    before, now = (_read_lines(text, name, kind) for text in (committed, ours))
    result = []
    for key in dict.fromkeys([*now, *before]):
        old, new = before.get(key, {}), now.get(key, {})
        if not (kind.is_there(old) and kind.is_there(new)):
            if kind.is_there(old) or kind.is_there(new):
                verdict = "not run here" if kind.is_there(old) else "not committed"
                result.append(Compared(key, verdict))
            continue
        try:
            verdict, detail = kind.verdict(old, new, before.values())
        except ValueError as error:
            raise CorruptCacheError(f"{name}: a cell is not a number ({error})") from error
        here, there = (line.get(_CLASS) or "unknown" for line in (new, old))
        result.append(Compared(key, verdict, detail, (here, there) if here != there else None))
    return result


def _read_lines(text: str, name: str, kind: _Kind) -> dict[tuple[str, ...], Line]:
    reader = csv.DictReader(io.StringIO(text))
    if not {*kind.key, *kind.needed} <= set(reader.fieldnames or ()):
        raise CorruptCacheError(
            f"{name}: not a results file of this version; restore it with git checkout"
        )
    try:
        return {tuple(line[k] or "" for k in kind.key): line for line in reader}
    except csv.Error as error:
        raise CorruptCacheError(f"{name}: no CSV ({error}); use git checkout") from error


def _run_verdict(old: Line, new: Line, committed: Iterable[Line]) -> tuple[str, str]:
    digests = [(old[c], new[c]) for c in DIGEST_COLUMNS]
    if all(a == b and a for a, b in digests):
        return "identical", ""
    metrics = [c for c in old if "/" in c and not c.endswith(("_low", "_high")) and old[c]]
    metrics = [c for c in metrics if new.get(c)]
    if all(f"{float(old[c]):.2f}" == f"{float(new[c]):.2f}" for c in metrics):
        return "equal", ""
    seeds = [line for line in committed if all(line[c] == old[c] for c in KEY_COLUMNS[:3])]
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


def _number_verdict(old: Line, new: Line, _: Iterable[Line]) -> tuple[str, str]:
    value, centre, low, high = (
        float(number) for number in (new["value"], old["value"], old["ci_low"], old["ci_high"])
    )
    margin = _seed_margin(float(old["sd"] or 0), int(old["seeds"]), int(new["seeds"]))
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


def _claim_verdict(old: Line, new: Line, _: Iterable[Line]) -> tuple[str, str]:
    """With equal seeds, the verdicts must be equal."""
    if old["seeds"] != new["seeds"]:
        return "other seeds", ""
    if old["verdict"] == new["verdict"]:
        return "unchanged", ""
    sides = (f"{s['verdict']} ({s['ours']} [{s['low']}, {s['high']}])" for s in (new, old))
    return "changed", ", committed ".join(sides)


_RUNS = _Kind("runs", KEY_COLUMNS, DIGEST_COLUMNS, bool, _run_verdict)
_CLAIMS = _Kind(
    "claims", CLAIM_COLUMNS[:7], CLAIM_COLUMNS,
    lambda line: line.get("verdict", NOT_RUN) != NOT_RUN, _claim_verdict,
)  # fmt: skip
_NUMBERS = _Kind(
    "numbers", ("table", "dataset", "fraction", "row", "split"),
    ("value", "ci_low", "ci_high", "sd", "seeds"),
    lambda line: bool(line.get("value")), _number_verdict,
)  # fmt: skip


def _kind(name: str) -> _Kind:
    return {"runs.csv": _RUNS, "claims.csv": _CLAIMS}.get(name, _NUMBERS)


def _print(kind: str, compared: list[Compared]) -> None:
    counts = Counter(c.verdict for c in compared)
    for c in compared:
        if c.verdict in _SHOWN:
            print(f"{c.verdict:8} {', '.join(c.key)}: {c.detail}")
    parts = [f"{counts[verdict]} {verdict}" for verdict in _VERDICTS if counts[verdict]]
    print(f"{len(compared)} {kind}{': ' if parts else ''}{', '.join(parts)}")
    for (ours, theirs), count in Counter(c.classes for c in compared if c.classes).items():
        print(f"{count} {kind} of another numerics class: {ours} here, {theirs} committed")
