"""The progress of a loop: a bar on a terminal, else a line every 30 s and at the end.

A loop that ends within 30 s writes no line.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

LINES = "SEMIRES_PROGRESS"  # the value "lines" gives lines on a terminal too
INTERVAL_S = 30.0


class Lines(tqdm):  # type: ignore[misc]
    """Writes whole lines, so that processes which share a terminal or a log stay readable."""

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Called by tqdm: at the start, every INTERVAL_S, and with an empty ``msg`` at the end."""
        now = self.format_dict
        done = now["n"] >= now["total"]
        spent = now["elapsed"]
        if now["n"] == now["initial"] or spent < self.mininterval or done != (msg is not None):
            return
        left = (now["total"] - now["n"]) * spent / (now["n"] - now["initial"])
        time = f"{clock(spent)} in all" if done else f"{clock(left)} left"
        best = f", {self.postfix}" if self.postfix else ""
        line = f"{self.desc}: {self.unit} {now['n']} of {now['total']}, {time}{best}"
        sys.stderr.write(f"{line}\n")  # one write, so that lines of two processes stay whole


def clock(seconds: float) -> str:
    """A duration as ``40 s`` or ``12 min``."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def progress(
    items: Iterable[Any] | None = None,
    *,
    name: str,
    total: int,
    unit: str,
    initial: int = 0,
    shown: bool = True,
) -> Any:
    """Show the progress on stderr; the object of tqdm, which is a context and may be iterated.

    Args:
        items: what to iterate over, if anything.
        name: of the loop; lines begin with the name of DVC's stage if there is one.
        total: number of units in all.
        unit: what is counted, in the singular.
        initial: units that were done by an earlier process.
        shown: whether this process shows anything.
    """
    settings: dict[str, Any] = {"total": total, "unit": unit, "initial": initial}
    if sys.stderr.isatty() and os.environ.get(LINES) != "lines":
        return tqdm(items, desc=name, disable=not shown, **settings)
    stage = os.environ.get("DVC_STAGE", name)
    timing = {"mininterval": INTERVAL_S, "miniters": 1, "leave": False}
    return Lines(items, desc=stage, disable=not shown, **timing, **settings)
