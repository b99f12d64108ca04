"""Claim: `semires --help` < 0.3 s, a stage with nothing to do < 3 s, imports < 15 % of `dvc repro`.

    python benchmarks/startup.py [--repeats 5]

The stage with nothing to do is `dvc repro prepare@refscenes` in a small temporary study. The share
of imports is computed from the records under runs/, which give the time of each stage after its
imports. Without records, run `make repro` first. The limit is the start of Python without imports.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import common

from semires.runs.record import Provenance, RunRecord, run_folders

sys.path.insert(0, str(common.ROOT / "tests"))
from helpers.dvc_study import Study

MODULES = {"supervised": "semires.training.burn_in", "mutual": "semires.training.mutual"}


def seconds(command: list[str], repeats: int) -> float:
    """Return the median wall-clock time of a command in seconds."""

    def run() -> None:
        subprocess.run(command, check=True, capture_output=True)

    return common.in_turn({"command": run}, repeats).seconds("command")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    bare = seconds([sys.executable, "-c", "pass"], repeats)
    help_s = seconds([sys.executable, "-m", "semires", "--help"], repeats)
    common.within("semires --help", help_s, 0.3, "s", f"; limit: a bare Python takes {bare:.2f} s")
    with tempfile.TemporaryDirectory() as folder:
        study = Study(Path(folder))
        study.repro("prepare@refscenes")
        idle = common.in_turn({"dvc": lambda: study.repro("prepare@refscenes")}, repeats)
    common.within("a stage with nothing to do", idle.seconds("dvc"), 3, "s")
    imports = {
        kind: seconds([sys.executable, "-c", f"import {module}"], repeats) - bare
        for kind, module in MODULES.items()
    }
    made = [(RunRecord.read(folder), Provenance.read(folder)) for folder in run_folders()]
    runs = [(record.key.method, provenance) for record, provenance in made if provenance]
    if not runs:
        print(f"no records under runs/; a training's imports take {imports['mutual']:.1f} s")
        return
    importing = sum(imports.get(method, imports["mutual"]) for method, _ in runs)
    working = sum(provenance.duration_s for _, provenance in runs)
    share = 100 * importing / (importing + working)
    common.within(f"imports' share of {len(runs)} trainings", share, 15, "%")


if __name__ == "__main__":
    main()
