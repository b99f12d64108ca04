"""A small study has the same bytes in one lane and in two, wherever and for whomever it runs.

The interrupted, resumed and repeated cases are in test_pipeline.py and training/test_training.py.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest
from helpers import ROOT
from helpers.small_study import small_params

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

#: Runs subcommands, one per argument, in one process.
PROGRAM = """
import shlex, sys
from semires.cli import main
for line in sys.argv[1:]:
    if main(shlex.split(line)):
        sys.exit(f"{line} failed")
"""
DATA = [
    "generate --dataset refscenes", "prepare --dataset refscenes",
    "split --dataset refscenes --fraction 25", "propose --dataset refscenes",
]  # fmt: skip
LANES = [
    [
        f"burn-in --dataset refscenes --fraction 25 --seed {seed}",
        f"mutual --dataset refscenes --fraction 25 --seed {seed} --method cpi-u",
    ]
    for seed in (0, 1)
]


def project(folder: Path) -> Path:
    """A folder with the parameters and definitions of the small study."""
    (folder / "experiments").mkdir(parents=True)
    shutil.copytree(ROOT / "experiments/tables", folder / "experiments/tables")
    shutil.copy(ROOT / "experiments/claims.yaml", folder / "experiments")
    params = small_params(evaluation={"correction_refs": 6, "bootstrap_samples": 50})
    (folder / "params.yaml").write_text(json.dumps(params.model_dump(mode="json")))
    return folder


def start(
    folder: Path, commands: list[str], environment: dict[str, str], umask: int = 0o022
) -> subprocess.Popen[str]:
    """Start a process that runs the commands in a project."""
    variables = {**os.environ, **environment, "PYTHONPATH": str(ROOT), "SEMIRES_TRACKING": "off"}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *commands], cwd=folder, env=variables, umask=umask,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
    )  # fmt: skip


def end(process: subprocess.Popen[str]) -> None:
    said = process.communicate(timeout=600)[0]
    assert process.returncode == 0, said


def other_home(folder: Path) -> dict[str, str]:
    """A home with its own settings of matplotlib, and another font under the name of ours."""
    fonts = Path(matplotlib.get_data_path()) / "fonts/ttf"
    (folder / ".fonts").mkdir(parents=True)
    shutil.copy(fonts / "cmr10.ttf", folder / ".fonts/DejaVuSans.ttf")
    (folder / "matplotlibrc").write_text("font.size: 20\nfont.family: serif\n")
    return {"HOME": str(folder), "MPLCONFIGDIR": str(folder)}


def test_another_place_user_and_number_of_lanes_give_the_same_bytes(tmp_path: Path):
    plain = project(tmp_path / "plain")
    environment = {"LC_ALL": "C", "TZ": "UTC", "PYTHONHASHSEED": "1"}
    end(start(plain, [*DATA, *LANES[0], *LANES[1], "report"], environment))

    other = project(tmp_path / "bir klasör – ığİŞ 1")
    environment = {"LC_ALL": "tr_TR.UTF-8", "TZ": "Asia/Kathmandu", "PYTHONHASHSEED": "2"}
    environment |= other_home(tmp_path / "home")
    for together in ([DATA], LANES, [["report"]]):
        lanes = [start(other, commands, environment, umask=0o077) for commands in together]
        for lane in lanes:
            end(lane)

    first, second = contents(plain), contents(other)
    assert list(first) == list(second)
    assert [name for name in first if first[name] != second[name]] == []
    made = {"data/splits/refscenes/25.json", "reports/figure1.png", "reports/index.html"}
    made |= {f"runs/refscenes/25/cpi-u/seed{seed}/model.safetensors" for seed in (0, 1)}
    assert made <= set(first)


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a study by name, without the records of when and where they were made."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "provenance.json" and ".work" not in path.parts
    }
