"""Process setup: signals, parent death, threads, locks, timing.

On SIGTERM or SIGINT a training finishes its step and saves its state. Under DVC a stage ends when
its parent dies. ``runtime`` in params.yaml configures torch.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from semires import numerics
from semires.errors import BusyError
from semires.files import explain_os_error

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor

    import torch


PR_SET_PDEATHSIG = 1
STAGE_TIMES = Path(".work/stages.jsonl")
GRACE_S = 5.0  # for the tasks of a pool that is stopped
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """A signal arrived and there is no state to save. ``exit_code`` is 128 + the signal number."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number


class _State:
    """The process that installed the handlers, the received signal, and whether a loop polls."""

    owner: int | None = None
    started = 0.0
    received: int | None = None
    polled = False


_state = _State()


def stage_process() -> None:
    """Install the signal handlers of a stage. Call it once, before any work.

    Before the first call of :func:`stop_requested`, a signal raises :class:`Stopped`. After that
    call a first signal is only recorded, so that the training loop can save between two steps; a
    second signal raises.
    """
    _state.owner, _state.received, _state.polled = os.getpid(), None, False
    _state.started = time.monotonic()
    # OpenMP threads spin while they wait. Unbounded spinning makes a step 30x slower on shared
    # cores; no spinning makes it 1.6x slower on dedicated cores. This value is a compromise. torch
    # reads it when it is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    if "DVC_STAGE" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ:
        die_with_parent()
    for number in _SIGNALS:
        signal.signal(number, _on_signal)


def note_duration() -> None:
    """Under DVC, append the stage's name, duration and peak memory to ``.work/stages.jsonl``."""
    if "DVC_STAGE" in os.environ:
        line = {
            "stage": os.environ["DVC_STAGE"],
            "seconds": round(time.monotonic() - _state.started, 2),
            "peak_rss_mb": round(peak_rss_mb(), 1),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        STAGE_TIMES.parent.mkdir(parents=True, exist_ok=True)
        with open(STAGE_TIMES, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def die_with_parent() -> None:
    """Send this process a SIGTERM when its parent dies (Linux only).

    Without it, a stage would continue after `dvc repro` was killed and run beside the next one.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


@contextlib.contextmanager
def worker_pool(
    processes: int, start: Callable[[], object] | None = None
) -> Iterator[ProcessPoolExecutor]:
    """A pool of workers that end with this process. On an error they have ``GRACE_S`` to end.

    ``start`` is called in each new worker.
    """
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(processes, initializer=_start_worker, initargs=(start,)) as pool:
        try:
            yield pool
        except BaseException:
            # A worker that is killed while it sends a result leaves the pool waiting for the rest
            # of it. Short tasks therefore end by themselves.
            closing = threading.Thread(target=pool.shutdown, kwargs={"cancel_futures": True})
            closing.start()
            closing.join(GRACE_S)
            for worker in multiprocessing.active_children():
                worker.terminate()  # a task may take minutes
            # A pool that is still closing when the interpreter exits may write to a closed pipe
            # and print a traceback (Python 3.11).
            closing.join()
            raise


def _start_worker(start: Callable[[], object] | None) -> None:
    die_with_parent()
    if start is not None:
        start()


def _on_signal(number: int, frame: FrameType | None) -> None:
    if os.getpid() != _state.owner:
        os._exit(128 + number)  # a forked worker exits silently; its parent prints the message
    again = _state.received is not None
    _state.received = number
    if again or not _state.polled:
        raise Stopped(number)


def stop_requested() -> int | None:
    """Return the exit code (130 or 143) if SIGINT or SIGTERM arrived, else None.

    Training loops poll this function between steps.
    """
    _state.polled = True
    return None if _state.received is None else 128 + _state.received


def stop_at_once() -> None:
    """Let a signal raise :class:`Stopped` again instead of only being recorded.

    Raises:
        Stopped: SIGINT or SIGTERM was recorded before this call.
    """
    _state.polled = False
    if _state.received is not None:
        raise Stopped(_state.received)


def configure_torch(threads: int | None, deterministic: bool) -> None:
    """Set torch's threads and determinism. Call it before the first GPU tensor is created.

    Args:
        threads: number of threads; None is torch's default, one per core.
        deterministic: use only deterministic algorithms; False allows faster ones.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    torch.backends.mkldnn.enabled = numerics.active() != "plain"  # type: ignore[assignment]
    torch.use_deterministic_algorithms(deterministic)
    # Filling uninitialised tensors costs time and does not change any result.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not deterministic
    if not deterministic:
        torch.set_float32_matmul_precision("high")


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """Return the context of ``runtime.precision``: autocast, or no change for ``fp32``."""
    import torch

    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, {"bf16": torch.bfloat16, "fp16": torch.float16}[precision])


def git(*command: str) -> str | None:
    """Return the output of a git command, or None if it failed or git is not installed."""
    try:
        done = subprocess.run(
            ["git", "-c", "core.quotePath=false", *command], capture_output=True, check=False
        )
    except FileNotFoundError:
        return None
    return done.stdout.decode("utf-8", errors="replace") if done.returncode == 0 else None


def git_commit() -> str | None:
    """Return the commit of the working tree, or None outside a Git repository."""
    return (git("rev-parse", "HEAD") or "").strip() or None


def peak_rss_mb() -> float:
    """Return the peak resident memory of this process so far, MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


@contextlib.contextmanager
def lock(path: str | Path, what: str, timeout: float = 0) -> Iterator[None]:
    """Hold a lock file; raise BusyError if another process has held it for ``timeout`` seconds."""
    from filelock import FileLock, Timeout

    path = Path(path)
    with explain_os_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file_lock = FileLock(path, timeout=timeout)
        try:
            file_lock.acquire()
        except Timeout:
            message = f"{path}: another process is making {what}; wait for it, or stop it"
            raise BusyError(message) from None
    try:
        yield
    finally:
        file_lock.release()
