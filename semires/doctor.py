"""`semires doctor`: check the environment and the files that the parameters name."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from semires.config.compose import missing_files
from semires.config.load import load_params
from semires.errors import SemiresError

TOOLS = {"git": "records which code made a run", "dvc": "runs the study"}


def doctor(path: str | Path = "params.yaml") -> int:
    """Print what this machine and this checkout have and lack; 1 if something is lacking."""
    import torch

    lacking = []
    print(f"Python {sys.version.split()[0]}, torch {torch.__version__}")
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    print(f"GPUs: {', '.join(gpus) or 'none'}; CPU threads: {torch.get_num_threads()}")
    free = shutil.disk_usage(".").free / 2**30
    print(f"free disk here: {free:.0f} GiB")
    lacking += [f"{name}, {why}" for name, why in TOOLS.items() if shutil.which(name) is None]
    try:
        lacking += missing_files(load_params(path))
    except SemiresError as error:
        lacking.append(str(error))
    for line in lacking:
        print(f"missing: {line}")
    return 1 if lacking else 0
