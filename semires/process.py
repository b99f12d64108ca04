"""What every stage's process does about signals, orphans and threads, and says of itself.

A stage under DVC ends with its parent, finishes its step and saves on SIGTERM or SIGINT, and runs
torch as ``runtime`` in params.yaml says.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor

    import torch


PR_SET_PDEATHSIG = 1
STAGE_TIMES = Path(".work/stages.jsonl")
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """A signal arrived where nothing has to be saved. ``exit_code`` is 128 + the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number


class _State:
    """Of this process: who installed the handlers, which signal came, whether someone polls."""

    owner: int | None = None
    started = 0.0
    received: int | None = None
    polled = False


_state = _State()


def stage_process() -> None:
    """Make this process a well-behaved stage: call once, before any work.

    Until :func:`stop_requested` is first asked, a signal raises :class:`Stopped`; from then on it
    is only noted, for the training loop to save between two steps. A second one raises.
    """
    _state.owner, _state.received, _state.polled = os.getpid(), None, False
    _state.started = time.monotonic()
    # OpenMP's threads spin while they wait: for ever, a step takes 30 times as long where cores are
    # shared; never, 1.6 times as long where they are not. Read when torch is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    if "DVC_STAGE" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ:
        die_with_parent()
    for number in _SIGNALS:
        signal.signal(number, _on_signal)


def note_duration() -> None:
    """Under DVC, append this stage's name, seconds and memory to ``.work/stages.jsonl``."""
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
    """Ask Linux for a SIGTERM when the parent dies; elsewhere nothing happens.

    A killed `dvc repro` would otherwise leave its stage running, beside the next one.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


@contextlib.contextmanager
def worker_pool(processes: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of forked workers that end with this process and drop their queue on an error."""
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(processes, initializer=die_with_parent) as pool:
        try:
            yield pool
        except BaseException:
            # Waits for what is being made: at the interpreter's end a pool that is still closing
            # may write to a pipe that is closed already (Python 3.11), with a traceback.
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _on_signal(number: int, frame: FrameType | None) -> None:
    if os.getpid() != _state.owner:
        _leave(number)  # a forked worker: its parent says what is to be said
    again = _state.received is not None
    _state.received = number
    if again or not _state.polled:
        raise Stopped(number)


def _leave(number: int) -> NoReturn:
    os._exit(128 + number)


def stop_requested() -> int | None:
    """The exit code (130 or 143) if SIGINT or SIGTERM arrived, else None. Loops poll this."""
    _state.polled = True
    return None if _state.received is None else 128 + _state.received


def stop_at_once() -> None:
    """From now on a signal ends the process again; so does one that was only noted meanwhile.

    Raises:
        Stopped: SIGINT or SIGTERM arrived already.
    """
    _state.polled = False
    if _state.received is not None:
        raise Stopped(_state.received)


def configure_torch(threads: int | None, deterministic: bool) -> None:
    """Set torch's threads and determinism. Call it before the first tensor on a GPU is made.

    Args:
        threads: number of threads; None keeps torch's default, one per core.
        deterministic: use deterministic algorithms only; False allows faster ones.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)
    # Filling new tensors costs time and decides nothing.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not deterministic
    if not deterministic:
        torch.set_float32_matmul_precision("high")


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """Mixed precision on a device, as ``runtime.precision`` says."""
    import torch

    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, {"bf16": torch.bfloat16, "fp16": torch.float16}[precision])


def git_commit() -> str | None:
    """The commit of the working tree, or None outside git."""
    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def peak_rss_mb() -> float:
    """Largest resident memory of this process so far, MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
