"""`semires doctor`: check the environment and the files that the parameters name."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from semires.config.compose import missing_files, untracked_inputs
from semires.config.grid import check_grid
from semires.config.load import load_params
from semires.errors import SemiresError

TOOLS = {"git": "records which code made a run", "dvc": "runs the study"}


def doctor(path: str | Path = "params.yaml") -> int:
    """Print the versions, the hardware and what is missing; return 1 if anything is missing."""
    import torch

    missing, hints = list(_missing_tools()), list[str]()
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
    return 1 if missing else 0


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
