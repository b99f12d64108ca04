"""Measure this machine's numerics: `python experiments/numerics/digest.py [PROFILE ...] [--idle]`.

For each profile (default: all), the probe of `semires.training.probe` runs in a process of its own.
Its digests become a row of `digests.csv`, one per CPU, profile and version of torch. Its losses
become `tests/golden/losses/CLASS-torchVERSION.txt`. `--idle` states that nothing else runs on the
machine, so that the time of a step can be compared. `make readme` copies the table into README.md.
"""

from __future__ import annotations

import argparse
import csv
import io
from pathlib import Path

from semires.files import write_text
from semires.numerics import PROFILES
from semires.training.probe import Probe, measure

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "experiments/numerics/digests.csv"
GOLDEN = ROOT / "tests/golden/losses"
KEY = ("cpu", "profile", "torch")


def row_of(probe: Probe, profile: str, idle: bool) -> dict[str, str]:
    """One line of the table."""
    cpu, versions = probe.cpu, dict(probe.numerics)
    name = f"{cpu['name']}, family {cpu['family']} model {cpu['model']}"
    first = {"cpu": name, "profile": profile, "class": versions.pop("class")}
    time = {"ms_per_step": str(probe.ms_per_step), "machine": "idle" if idle else "busy"}
    return {**first, **versions, **probe.digests, **time}


def add(row: dict[str, str], path: Path = TABLE) -> None:
    """Add a line, or replace the one with the same CPU, profile and version of torch."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    rows = {tuple(line[k] for k in KEY): line for line in csv.DictReader(io.StringIO(text))}
    rows[tuple(row[k] for k in KEY)] = row
    out = io.StringIO()
    writer = csv.DictWriter(out, list(row), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows.values())
    write_text(path, out.getvalue())


def main() -> None:
    """Measure the profiles of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("profiles", nargs="*", metavar="PROFILE", help=f"of {', '.join(PROFILES)}")
    parser.add_argument("--idle", action="store_true", help="nothing else runs on the machine")
    options = parser.parse_args()
    for profile in options.profiles or PROFILES:
        probe = measure(profile)
        add(row_of(probe, profile, options.idle))
        write_text(GOLDEN / f"{probe.name}.txt", probe.losses_text())
        print(f"{profile}: {probe.name}, {probe.digests}, {probe.ms_per_step} ms a step")


if __name__ == "__main__":
    main()
