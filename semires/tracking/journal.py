"""Events of one tracked run, kept on disk before anything is sent to the tracking store.

A journal is a file of JSON lines in ``.work/tracking``: the training appends, a process of its own
sends (`semires.tracking`). So a store that hangs, fails or is away costs the training nothing, and
what could not be sent is there on the next occasion.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semires.files import read_json, write_json
from semires.runs import layout

Event = dict[str, Any]


def folder() -> Path:
    """Where journals lie; absolute, so that the sender may run anywhere."""
    return (layout.root() / ".work" / "tracking").absolute()


@dataclass(frozen=True)
class Journal:
    """One run's events, how many bytes of them were sent, and whether its writer lives."""

    path: Path

    @classmethod
    def new(cls, key: str) -> Journal:
        """A journal for one attempt at the run with this key."""
        return cls(folder() / f"{key[:20]}-{time.time_ns()}.jsonl")

    @classmethod
    def all(cls, key: str = "") -> list[Journal]:
        """Journals of all attempts at a run, or at every run, the oldest first."""
        paths = folder().glob(f"{key[:20]}*.jsonl")
        return [cls(path) for path in sorted(paths, key=lambda p: p.stem.rpartition("-")[2])]

    @property
    def key(self) -> str:
        """The beginning of the run's key."""
        return self.path.stem.partition("-")[0]

    @property
    def progress_path(self) -> Path:
        """What was sent: offset (bytes), MLflow's run id, last step."""
        return self.path.with_suffix(".sent")

    @property
    def alive_path(self) -> Path:
        """Locked for as long as the run's process lives."""
        return self.path.with_suffix(".alive")

    @property
    def sending_path(self) -> Path:
        """Locked by whoever sends."""
        return self.path.with_suffix(".sending")

    def append(self, event: Event) -> None:
        """Add one event; a line is whole or absent for a reader."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"time_ms": int(time.time() * 1000), **event}, allow_nan=False)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(line + "\n")

    def read(self, offset: int) -> tuple[list[Event], int]:
        """Whole events from byte ``offset`` on, and the offset behind them.

        A damaged line is skipped: a log is worth less than what comes after it.
        """
        if not self.path.is_file():
            return [], offset
        with open(self.path, "rb") as file:
            file.seek(offset)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        events = []
        for line in whole.splitlines():
            with contextlib.suppress(ValueError):
                event = json.loads(line)
                if isinstance(event, dict) and "event" in event:
                    events.append(event)
        return events, offset + len(whole)

    def progress(self) -> dict[str, Any]:
        """What was sent so far; from the start where nothing readable says so."""
        try:
            found = read_json(self.progress_path)
            return {"offset": int(found["offset"]), **found}
        except Exception:
            return {"offset": 0}

    def save_progress(self, progress: Mapping[str, Any]) -> None:
        """Remember what was sent."""
        write_json(self.progress_path, dict(progress))

    def discard(self) -> None:
        """Remove the journal: all of it is in the store."""
        for path in (self.path, self.progress_path, self.sending_path, self.alive_path):
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def try_lock(path: Path, wait_s: float = 0.0) -> Iterator[bool]:
    """Hold a lock file if it is or becomes free; yields whether it is ours."""
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(path, timeout=wait_s)
    try:
        held.acquire()
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        held.release()


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a mapping, under names that MLflow takes (`P@0.5`: `prec_0.5`)."""
    return {
        name.replace("P@", "prec_"): float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """A tree of mappings as dotted names; lists stay whole."""
    if not isinstance(values, Mapping):
        return {prefix: values}
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat.update(flatten(value, f"{prefix}.{name}" if prefix else str(name)))
    return flat
