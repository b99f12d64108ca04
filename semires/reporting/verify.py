"""`semires verify`: tables regenerated from outputs against the committed ones, cell by cell.

Equal: the same number at two decimals. Within: inside the committed interval, that is the 95 %
interval over images and, where several seeds were run, the 95 % prediction interval of as many
seeds as are here: another machine changes a training as much as another seed does. Outside:
neither, and the command fails. A cell that only one side has is counted and does not fail.
"""

from __future__ import annotations

import csv
import io
import math
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from semires.config.schema import Params
from semires.errors import CorruptCacheError, SemiresError
from semires.files import atomic_folder
from semires.reporting.records import load_records
from semires.reporting.report import build_tables, write_tables
from semires.runs import layout
from semires.runs.key import RUNS

_KEY = ("table", "dataset", "fraction", "row", "split")
_VERDICTS = ("equal", "within", "outside", "not run here", "not committed")


@dataclass(frozen=True)
class Compared:
    """One cell on both sides; ``ours`` is the regenerated number."""

    key: tuple[str, ...]
    committed: str
    ours: str
    verdict: str
    interval: str = ""


def verify(params: Params) -> int:
    """Compare and print; returns 0, or 1 if a cell is outside the committed interval.

    Raises:
        SemiresError: there is nothing to compare, or a committed table is damaged.
    """
    records = load_records(default_source=params.proposals.source, seeds=params.study.seeds)
    if not records.all:
        raise SemiresError(f"{RUNS}: holds no run to verify; run `make repro` first")
    with tempfile.TemporaryDirectory() as temporary:
        fresh = Path(temporary) / "reports"
        with atomic_folder(fresh) as folder:
            write_tables(build_tables(params, records), folder)
        texts = {path.name: path.read_text(encoding="utf-8") for path in fresh.glob("*.csv")}
    old = {name: committed_text(layout.REPORTS / name) for name in sorted(texts)}
    if not any(old.values()):
        raise SemiresError(f"{layout.REPORTS}: no committed tables to compare with")
    compared: list[Compared] = []
    for name, committed in old.items():
        header = texts[name].partition("\n")[0]  # of a table that is not committed: no cells
        compared += compare(header if committed is None else committed, texts[name], name)
    counts = Counter(cell.verdict for cell in compared)
    _print(compared, counts)
    return 1 if counts["outside"] else 0


def committed_text(path: Path) -> str | None:
    """A file as the last commit has it; outside git, or untracked, as it lies there."""
    done = subprocess.run(
        ["git", "show", f"HEAD:./{path.as_posix()}"], capture_output=True, check=False
    )
    if done.returncode == 0:
        return done.stdout.decode("utf-8", errors="replace")
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None


def compare(committed: str, ours: str, name: str) -> list[Compared]:
    """Compare two CSV tables as `render.to_csv` writes them.

    Raises:
        CorruptCacheError: the committed text is no such table.
    """
    before, now = read_cells(committed, name), read_cells(ours, name)
    result = []
    for key in dict.fromkeys([*before, *now]):
        old, new = before.get(key, {}), now.get(key, {})
        if not old.get("value") and not new.get("value"):
            continue
        result.append(
            Compared(key, old.get("value", ""), new.get("value", ""), *_verdict(old, new, name))
        )
    return result


def read_cells(text: str, name: str) -> dict[tuple[str, ...], dict[str, str]]:
    """Lines of a CSV table by cell."""
    reader = csv.DictReader(io.StringIO(text))
    needed = {*_KEY, "value", "ci_low", "ci_high", "sd", "seeds"}
    if not needed <= set(reader.fieldnames or ()):
        raise CorruptCacheError(f"{name}: no table of this project; restore it with git checkout")
    try:
        return {tuple(line[k] or "" for k in _KEY): line for line in reader}
    except csv.Error as error:
        raise CorruptCacheError(f"{name}: no table of this project ({error})") from error


def _verdict(old: dict[str, str], new: dict[str, str], name: str) -> tuple[str, str]:
    """The verdict, and the interval that it was made by."""
    if not new.get("value"):
        return "not run here", ""
    if not old.get("value"):
        return "not committed", ""
    try:
        value, centre, low, high = (
            float(number) for number in (new["value"], old["value"], old["ci_low"], old["ci_high"])
        )
        seeds = _seed_margin(float(old["sd"] or 0), int(old["seeds"]), int(new["seeds"]))
    except ValueError as error:
        raise CorruptCacheError(f"{name}: a cell is no number ({error})") from error
    low = centre - math.hypot(centre - low, seeds)
    high = centre + math.hypot(high - centre, seeds)
    verdict = "within" if low <= value <= high else "outside"
    if f"{value:.2f}" == f"{centre:.2f}":
        verdict = "equal"
    return verdict, f"[{low:.2f}, {high:.2f}]"


def _seed_margin(sd: float, committed: int, here: int) -> float:
    """Half of the 95 % prediction interval of a mean over ``here`` seeds (Student's t)."""
    if committed < 2 or not sd:
        return 0.0
    from scipy.stats import t  # here: a slow import

    return float(t.ppf(0.975, committed - 1)) * sd * math.sqrt(1 / committed + 1 / max(here, 1))


def _print(compared: list[Compared], counts: Counter[str]) -> None:
    for cell in compared:
        if cell.verdict in ("outside", "within"):
            where = ", ".join(cell.key)
            print(f"{cell.verdict:8} {where}: {cell.ours}, committed {cell.committed}"
                  f" {cell.interval}")  # fmt: skip
    total = sum(counts.values())
    parts = (f"{counts[verdict]} {verdict}" for verdict in _VERDICTS if counts[verdict])
    print(f"{total} cells: {', '.join(parts)}")
