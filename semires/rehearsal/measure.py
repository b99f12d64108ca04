"""Run a stage in a process of its own; measure its time and its peak memory.

A stage that fails, or that the system kills, ends its own process only. Nothing is sent to MLflow.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from semires import process
from semires.errors import SemiresError

GIB = 2**30
# Variables that a real run may have set and that would connect the rehearsal with it.
FOREIGN = ("DVC_ROOT", "DVC_STAGE", "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
_NO_HOST_MEMORY = ("can't allocate memory", "Cannot allocate memory")


@dataclass(frozen=True)
class Measured:
    """The result of one stage.

    Args:
        value: what the stage's function returned; None if it failed.
        seconds: wall-clock time.
        host_gib: peak resident memory of the process, or of its largest worker, GiB.
        gpu_gib: peak memory that torch reserved on the GPU, GiB; None without a GPU.
        fault: why the stage failed, one line; empty if it succeeded.
        lacks: the memory that ran out, if that was the reason.
    """

    value: Any = None
    seconds: float = 0.0
    host_gib: float = 0.0
    gpu_gib: float | None = None
    fault: str = ""
    lacks: Literal["", "host", "gpu"] = field(default="")


def measure(folder: Path, work: Callable[..., Any], *arguments: Any) -> Measured:
    """Call ``work(*arguments)`` in a new process whose current folder is ``folder``.

    The process is a fork on Linux, so that it does not import torch again. The caller must not use
    torch before, because the threads of torch do not survive a fork.
    """
    try:
        with process.worker_pool(1, functools.partial(_start, folder)) as pool:
            return pool.submit(_measured, work, arguments).result()
    except BrokenProcessPool:
        fault = "its process was killed, probably because the memory of this machine ran out"
        return Measured(fault=fault, lacks="host")


def demand(folder: Path, work: Callable[..., Any], *arguments: Any) -> Any:
    """The value of a step that is no stage of the study; else as :func:`measure`.

    Raises:
        SemiresError: it failed.
    """
    found = measure(folder, work, *arguments)
    if found.fault:
        raise SemiresError(f"rehearse: {found.fault}")
    return found.value


def _start(folder: Path) -> None:
    process.stage_process()
    os.chdir(folder)
    for name in FOREIGN:
        os.environ.pop(name, None)
    os.environ["SEMIRES_TRACKING"] = "off"


def _measured(work: Callable[..., Any], arguments: tuple[Any, ...]) -> Measured:
    value, fault, lacks = None, "", ""
    started = time.perf_counter()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            value = work(*arguments)
    except Exception as error:
        fault, lacks = _explain(error)
    seconds = time.perf_counter() - started
    return Measured(value, seconds, _host_gib(), _gpu_gib(), fault, lacks)  # type: ignore[arg-type]


def _explain(error: Exception) -> tuple[str, str]:
    """One line for the table, and the memory that ran out. An unexpected error is also traced."""
    line = " ".join(str(error).split())
    if isinstance(error, SemiresError):
        return line, ""
    if type(error).__name__ == "OutOfMemoryError":  # of torch, which may not be imported
        return "the memory of the GPU ran out", "gpu"
    if isinstance(error, MemoryError) or any(text in line for text in _NO_HOST_MEMORY):
        return "the memory of this machine ran out", "host"
    traceback.print_exc()
    return f"{type(error).__name__}: {line[:200]}", ""


def _host_gib() -> float:
    workers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    unit = 1 if sys.platform == "darwin" else 2**10
    return max(process.peak_rss_mb() * 2**20, workers * unit) / GIB


def _gpu_gib() -> float | None:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    return float(torch.cuda.max_memory_reserved()) / GIB


def machine() -> dict[str, Any]:
    """The first GPU (name, GiB) or None, the memory of the host (GiB), threads, and the load."""
    import torch

    load = os.getloadavg()[0]  # before this process adds to it
    facts: dict[str, Any] = {"gpu": None, "gpu_gib": None}
    if torch.cuda.is_available():
        about = torch.cuda.get_device_properties(0)
        facts = {"gpu": about.name, "gpu_gib": about.total_memory / GIB}
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    threads = torch.get_num_threads()
    return {**facts, "host_gib": pages / GIB, "threads": threads, "load": load}
