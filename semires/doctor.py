"""`semires doctor`: check the environment, the files that the parameters name, and the numerics."""

from __future__ import annotations

import csv
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from semires.config.compose import missing_files, untracked_inputs
from semires.config.grid import check_grid
from semires.config.load import load_params
from semires.config.schema import Params
from semires.errors import SemiresError
from semires.reporting.runs_table import NUMERICS, numerics_differences
from semires.reporting.verify import committed_text
from semires.training.probe import STEPS, measure

TOOLS = {"git": "records which code made a run", "dvc": "runs the study"}


def doctor(path: str | Path = "params.yaml") -> int:
    """Print the versions, the hardware and what is missing; return 1 if anything is missing.

    If nothing is missing, print also the numerics class and the digest of a short training, and
    whether the committed results can be expected to the byte.
    """
    import torch

    missing, hints, params = list(_missing_tools()), list[str](), None
    print(f"Python {sys.version.split()[0]}, torch {torch.__version__}")
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    print(f"GPUs: {', '.join(gpus) or 'none'}; CPU threads: {torch.get_num_threads()}")
    free = shutil.disk_usage(".").free / 2**30
    print(f"free disk here: {free:.0f} GiB")
    try:
        params = load_params(path)
        missing += missing_files(params)
        hints += untracked_inputs(params)
        check_grid(params)
    except SemiresError as error:
        missing.append(str(error))
    for line in missing:
        print(f"missing: {line}")
    for line in hints:
        print(f"hint: {line}")
    if params is None or missing:
        return 1
    for line in _numerics(params):
        print(line)
    return 0


def _numerics(params: Params) -> Iterator[str]:
    """Yield the numerics class, the CPU, the digest, and what differs from the committed runs."""
    import torch

    from semires.training.record import execution

    probe = measure(params.runtime.numerics)
    yield f"numerics class: {probe.numerics['class']}; CPU: {probe.cpu['name']}"
    steps = f"{STEPS} steps of burn-in and {STEPS} of mutual learning"
    yield f"digest of {steps}: {probe.digests[f'mutual_{STEPS}']}"
    runs = Path(params.study.reports) / "runs.csv"
    text = committed_text(runs)
    if text is None:
        yield f"committed results: none ({runs})"
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    here = {**probe.numerics, **execution(device, params.runtime)}
    line = {f"{NUMERICS}{name}": str(value) for name, value in here.items()}
    machine, expected = "this machine is", "expected to reproduce them byte for byte"
    different = numerics_differences(csv.DictReader(io.StringIO(text)), [line])
    if different:
        yield f"committed results: {machine} not {expected}: {'; '.join(different)}"
    else:
        yield f"committed results: {machine} {expected}"


def _missing_tools() -> Iterator[str]:
    """Yield the commands that are not on PATH, and a python3 of another environment.

    The stages of dvc.yaml call git, dvc and python3.
    """
    activate = f"activate this environment: . {sys.prefix}/bin/activate"
    for name, why in TOOLS.items():
        if shutil.which(name) is None:
            installed = (Path(sys.prefix) / "bin" / name).is_file()
            yield f"{name}, {why}" + (f"; {activate}" if installed else "")
    python = shutil.which("python3")
    if python is None:
        yield f"python3, runs the stages; {activate}"
    else:
        command = [python, "-c", "import sys; print(sys.prefix)"]
        prefix = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        if os.path.realpath(prefix.strip()) != os.path.realpath(sys.prefix):
            yield f"{python} is not the python3 of this environment; {activate}"
