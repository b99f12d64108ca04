"""Full disks, bounded files and read-only folders, really so: what was there before stays whole."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from helpers import HELPERS, ROOT
from helpers.small_study import small_params

from semires import files

NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]


@cache
def may_mount() -> bool:
    """Whether this process may have a mount namespace of its own."""
    if shutil.which("unshare") is None:
        return False
    line = [*NAMESPACE, "mount", "-t", "tmpfs", "-o", "size=1m", "x", "/tmp"]
    return subprocess.run(line, capture_output=True, check=False).returncode == 0


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "SEMIRES_TRACKING": "off"}


@pytest.mark.parametrize("mode", ["full", "read-only", "limited"])
def test_what_cannot_be_written_leaves_what_was_there(tmp_path: Path, mode: str):
    if mode != "limited" and not may_mount():
        pytest.skip("no mount namespaces here; `limited` does the same with a bound on files")
    line = [sys.executable, str(HELPERS / "small_disk.py"), str(tmp_path), mode]
    done = subprocess.run(
        line if mode == "limited" else [*NAMESPACE, *line],
        capture_output=True, text=True, env=environment(), check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    attempts = [json.loads(each) for each in done.stdout.splitlines() if each.startswith("{")]
    assert len(attempts) == 10
    reason = {"full": "no space left", "read-only": "read-only file system",
              "limited": "file too large"}[mode]  # fmt: skip
    for each in attempts:
        said = each["said"]
        assert reason in said, each
        assert str(tmp_path / each["writer"]) in said, each
        assert ".tmp" not in said
        assert "\n" not in said
        assert "MB free" in said, each
        assert each["whole"], each
        assert each["left"] == [], each


STAGES = {
    "generate": "generate --dataset refscenes",
    "propose": "propose --dataset refscenes --source felzenszwalb",
    "burn-in": "burn-in --dataset refscenes --fraction 25",
    "tune": "tune --dataset refscenes --fraction 25 --method cpi-u",
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_on_a_full_disk_is_one_line(small_study: Path, tmp_path: Path, stage: str):
    """The study on a disk that it fills: what the stage had made before is still there."""
    if not may_mount():
        pytest.skip("no mount namespaces here")
    tree = small_params(mutual={"lr": 0.002}).model_dump()
    tree["proposals"]["sources"]["felzenszwalb"]["sigma"] = 0.7 if stage == "propose" else 0.6
    files.write_json(tmp_path / "params.json", tree)
    (tmp_path / "disk").mkdir()
    command = [sys.executable, "-m", "semires", "--params", str(tmp_path / "params.json")]
    helper = [sys.executable, str(HELPERS / "on_full_disk.py"), str(small_study)]
    done = subprocess.run(
        [*NAMESPACE, *helper, str(tmp_path / "disk"), *command, *STAGES[stage].split()],
        capture_output=True, text=True, env=environment(), check=False,
    )  # fmt: skip
    assert done.returncode == 2, (done.stdout, done.stderr)
    said = [line for line in done.stderr.splitlines() if line.startswith("semires: ")]
    assert len(said) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "no space left" in said[0] or "disk is full" in said[0] or "I/O error" in said[0]
