"""A trace of ten training steps that opens in Perfetto or Chrome (`semires burn-in --profile`)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def trace_steps(path: Path | None) -> Iterator[Callable[[], None]]:
    """Yield a function to call after each step. Steps 8 to 17 are written.

    Args:
        path: the file of the trace; None disables profiling.
    """
    if path is None:
        yield lambda: None
        return
    from torch.profiler import profile, schedule

    path.parent.mkdir(parents=True, exist_ok=True)

    def write(profiler: profile) -> None:
        profiler.export_chrome_trace(str(path))
        print(f"{path}: trace of ten steps; open it in ui.perfetto.dev")

    with profile(
        schedule=schedule(wait=5, warmup=2, active=10, repeat=1), on_trace_ready=write
    ) as profiler:
        yield profiler.step
