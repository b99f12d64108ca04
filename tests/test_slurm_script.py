"""The script table1.sh of docs/paper.md, with stand-ins for SLURM, torchrun, DVC and semires."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from helpers import ROOT
from ruamel.yaml import YAML

PAGE = (ROOT / "docs/paper.md").read_text()
SCRIPT = re.search(r"^# table1\.sh\n.*?(?=^```)", PAGE, re.M | re.S)

# A job is written to jobs/N.sh with its options in jobs/N; `--wrap` makes a script of sh.
SBATCH = r"""
mkdir -p jobs; n=$(($(ls jobs | grep -c sh$) + 1)); echo "$@" >jobs/$n
if [[ $* == *--wrap* ]]; then printf '#!/bin/sh\n%s\n' "${@: -1}"; else cat; fi >jobs/$n.sh
chmod +x jobs/$n.sh; echo $n
"""
# `burn-in` and `cpi-u` finish at once. `baseline` needs 10 s, and saves its state on SIGTERM.
TORCHRUN = r"""
echo torchrun "$@" >>log
while [[ $1 != semires ]]; do shift; done
name=supervised; [[ $2 != mutual ]] || name=$4
finish() { mkdir -p runs/refcoco/1/$name/seed0; echo >runs/refcoco/1/$name/seed0/run.json; }
[[ $name == baseline && ! -f state ]] || { finish; exit 0; }
trap 'sleep 0.3; touch state; echo saved >>log; exit 143' TERM
touch started; for _ in {1..200}; do sleep 0.05; done
"""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the clone, after table1.sh has submitted its jobs."""
    log = 'echo $(basename $0) "$@" >>log'
    stand_ins = {"sbatch": SBATCH, "torchrun": TORCHRUN, "dvc": log, "semires": log,
                 "scontrol": log}  # fmt: skip
    for name, text in stand_ins.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    monkeypatch.chdir(tmp_path)
    assert SCRIPT is not None
    Path("table1.sh").write_text(SCRIPT[0])
    subprocess.run(["bash", "-n", "table1.sh"], check=True)
    subprocess.run(["bash", "table1.sh"], check=True, stdin=subprocess.DEVNULL)
    return tmp_path


def logged() -> list[str]:
    """The calls since the last question."""
    lines = Path("log").read_text().splitlines()
    Path("log").unlink()
    return lines


def test_jobs_wait_for_each_other_and_have_their_gpus(cluster: Path):
    splits = " ".join(f"split@refcoco-{f}" for f in ("0.5", "1", "2", "5"))
    assert logged() == [f"dvc repro sam prepare@refcoco {splits}"]
    options = [(cluster / "jobs" / str(n)).read_text() for n in (1, 2, 3, 4)]
    assert "--array 0-78 --gres gpu:1" in options[0]
    assert "--dependency afterok:1 " in options[1]
    assert "--dependency afterok:2 --array 0-3 --gres gpu:4 --requeue" in options[2]
    assert "--dependency afterok:3 --gres gpu:1" in options[3]
    for n in (1, 2, 4):
        subprocess.run([cluster / f"jobs/{n}.sh"], check=True)
    shard, merge, commit, *after = logged()
    assert shard == "semires propose --dataset refcoco --shards 1:2"
    assert merge == "semires propose --dataset refcoco --merge"
    assert after == ["dvc repro", "semires summary"]
    # Without targets `dvc commit` fails at the first stage that no job has run.
    groups = commit.removeprefix("dvc commit -f ").split()
    stages = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
    assert groups == [name for name in stages if name in ("propose", "burn_in", "mutual")]


def test_a_training_saves_its_state_and_the_job_is_requeued(cluster: Path):
    logged()
    job = subprocess.Popen([cluster / "jobs/3.sh"])
    while not Path("started").exists():
        assert job.poll() is None
        time.sleep(0.02)
    job.send_signal(signal.SIGTERM)
    assert job.wait(10) != 0
    runs = [line for line in logged() if not line.startswith("torchrun")]
    assert runs == ["saved", "scontrol requeue 42"]  # in this order
    subprocess.run([cluster / "jobs/3.sh"], check=True)
    commands = [line.partition("-m ")[2] for line in logged()]
    rest = "--dataset refcoco --fraction 1 --seed 0"
    assert commands == [f"semires mutual --method {name} {rest}" for name in ("baseline", "cpi-u")]
    subprocess.run([cluster / "jobs/3.sh"], check=True)
    assert not Path("log").exists()  # all is finished
