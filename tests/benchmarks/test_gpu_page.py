"""`make gpu` with a Python that has nothing installed: one line, or a page that says what lacks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

TORCH = """
class cuda:
    is_available = staticmethod(lambda: {gpu})
    device_count = staticmethod(lambda: 1)
    get_device_name = staticmethod(lambda: "a GPU")
class version:
    cuda = "13"
__version__ = "3"
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The files that the script needs; `-S` hides the packages of this environment."""
    (tmp_path / "benchmarks").mkdir()
    shutil.copy(ROOT / "benchmarks/gpu.py", tmp_path / "benchmarks")
    for name in ("semires", "experiments"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def gpu(clone: Path, torch: str | None) -> subprocess.CompletedProcess[str]:
    """Run the script from another folder; ``torch`` is the source of its package torch."""
    packages = clone / "packages"
    packages.mkdir()
    if torch is not None:
        (packages / "torch.py").write_text(torch)
    # The parts are started without `-S`.
    (packages / "pydantic.py").write_text("raise ModuleNotFoundError('no pydantic')")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    environment |= {"PYTHONPATH": str(packages), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-S", str(clone / "benchmarks/gpu.py"), "--only", "matching"]
    return subprocess.run(
        command, cwd=packages, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("torch", "reason"),
    [
        (None, "cannot import torch (No module named 'torch'); nothing was run"),
        (TORCH.format(gpu=False), "torch finds no GPU on this machine; nothing was run"),
    ],
    ids=["no torch", "no GPU"],
)
def test_without_torch_or_a_gpu_it_says_so(clone: Path, torch: str | None, reason: str):
    done = gpu(clone, torch)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("gpu: ")
    assert done.stdout.endswith(f"{reason}\n")
    assert done.stdout.count("\n") == 1
    assert not (clone / "reports").exists()


def test_the_page_names_a_missing_package(clone: Path):
    done = gpu(clone, TORCH.format(gpu=True))
    assert done.returncode == 1, done.stderr
    page = (clone / "reports/gpu.md").read_text()
    assert "`make gpu` on 1 x a GPU, torch 3, CUDA 13" in page
    assert "FAILED: ModuleNotFoundError: no pydantic" in page
