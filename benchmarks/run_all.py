"""Run all benchmarks one after another and write their output to reports/benchmarks.md.

Command: make bench
"""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from tqdm import tqdm

from semires.files import write_text
from semires.process import git_commit

HERE = Path(__file__).parent
SCRIPTS = [
    "load_proposals.py", "matching.py", "cache_size.py", "segment_everything.py",
    "propose_scaling.py", "training_step.py", "ema.py", "input_pipeline.py", "evaluation.py",
    "tune.py", "startup.py", "growth.py", "operations.py",
]  # fmt: skip


def main() -> int:
    """Run all benchmarks; return 1 if one failed. The page then has its last line of stderr."""
    today = datetime.datetime.now(datetime.UTC).date()
    place = f"{platform.platform()}, {os.cpu_count()} cores"
    made_with = f"torch {version('torch')}, commit {str(git_commit())[:12]}"
    lines = ["# Benchmarks", "", f"`make bench` on {today}: {place}, {made_with}.", ""]
    failed = False
    for name in tqdm(SCRIPTS, desc="benchmarks", disable=None):
        command = [sys.executable, str(HERE / name)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        text = done.stdout.strip()
        if done.returncode:
            failed, text = True, f"{text}\nFAILED: {done.stderr.strip().splitlines()[-1:]}"
        lines += [f"## `python benchmarks/{name}`", "", "```", text, "```", ""]
        if name == "growth.py":
            lines += ["![Seconds and memory against the data](growth.svg)", ""]
    write_text("reports/benchmarks.md", "\n".join(lines))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
