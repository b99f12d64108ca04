"""A very small study in a Git and DVC repository of its own, driven as a user would."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from semires.config.grid import write_grid
from semires.config.validate import read_yaml, validate

ROOT = Path(__file__).parent.parent.parent
SMALL: dict[str, dict[str, Any]] = {
    "study": {
        "runs": [{"datasets": ["refscenes"], "fractions": [10], "methods": ["baseline", "cpi-u"],
                  "seeds": [0]}],
        "tune": [{"datasets": ["refscenes"], "fractions": [10], "methods": ["cpi-u"],
                  "seeds": [0]}],
    },
    "scenes": {"train": 30, "val": 8, "testA": 4, "testB": 4},
    "proposals": {"shard_images": 8},
    "burn_in": {"steps": 12, "epochs": None, "evaluations": 2},
    "mutual": {"steps": 8, "epochs": None, "evaluations": 2},
    "evaluation": {"bootstrap_samples": 50, "correction_refs": 20},
    "tune": {"trials": 8, "objective": "labels", "sampler": "tpe"},
    "runtime": {"threads": 1, "processes": 1, "workers": 0, "checkpoint_every_s": 0},
}  # fmt: skip


class Study:
    """The repository's folder, and commands in it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.tracked = folder, True
        for name in ("dvc.yaml", ".dvcignore", ".gitignore"):
            shutil.copy(ROOT / name, folder / name)
        for name in (".dvc/config", ".dvc/plots", "experiments/claims.yaml"):
            (folder / name).parent.mkdir(exist_ok=True)
            copy_any(ROOT / name, folder / name)
        for name in ("experiments/tables", "semires"):
            shutil.copytree(
                ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        self.params = copy.deepcopy(read_yaml(ROOT / "experiments/demo.yaml"))
        for section, values in SMALL.items():
            self.params[section].update(values)
        self.write_params()
        self.run("git", "init", "--quiet")
        self.commit()

    def write_params(self) -> None:
        """Write params.yaml as it is in memory, and the grid of its runs."""
        with open(self.folder / "params.yaml", "w", encoding="utf-8") as file:
            YAML(typ="safe", pure=True).dump(self.params, file)
        write_grid(validate(self.params), self.folder)

    def commit(self) -> None:
        """Commit everything that Git does not ignore."""
        self.run("git", "add", "--all")
        who = ("-c", "user.name=test", "-c", "user.email=test@example.org")
        self.run("git", *who, "commit", "--quiet", "--message", "state")

    @property
    def environment(self) -> dict[str, str]:
        """This interpreter's tools first; with a sender for each run if ``tracked``."""
        mine = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        for name in ("SEMIRES_TRACKING", "MLFLOW_TRACKING_URI", "DVC_ROOT", "DVC_STAGE"):
            mine.pop(name, None)
        return mine if self.tracked else {**mine, "SEMIRES_TRACKING": "off"}

    def run(self, *command: str, code: int = 0) -> str:
        """Run a command to its end; its standard output."""
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == code, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        return done.stdout

    def failed(self, *command: str) -> str:
        """Run a command that must fail; all that it prints."""
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, text=True, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert done.returncode != 0, done.stdout
        return done.stdout

    def repro(self, *options: str) -> list[str]:
        """`dvc repro`; the stages that ran, in order."""
        out = self.run("dvc", "repro", *options)
        return [line.split("'")[1] for line in out.splitlines() if line.startswith("Running stage")]

    def changed_stages(self) -> set[str]:
        """The stages that `dvc status` would run."""
        status: dict[str, Any] = json.loads(self.run("dvc", "status", "--json"))
        return set(status)


def copy_any(source: Path, target: Path) -> None:
    """Copy a file or a folder."""
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy(source, target)
