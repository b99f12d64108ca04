"""`python -m semires.tracking.sender JOURNAL`: sends a run's journal while the run writes it.

Ends when the run has ended and all is sent, with exit code 0; with 1 where the store took not all.
Afterwards it sends what earlier runs left.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from pathlib import Path

from semires.tracking.journal import Journal, try_lock
from semires.tracking.store import Store

POLL_S = 0.2
RETRY_S = 5.0
EARLIER_S = 60.0


def follow(journal: Journal) -> bool:
    """Send until the run's end; whether everything was sent."""
    with try_lock(journal.sending_path) as ours:
        if not ours:
            return True  # another sender is at it
        store: Store | None = None
        while True:
            over = is_over(journal)
            try:
                store = store or Store()
                if send(store, journal, abandoned=over):
                    journal.discard()
                    return True
                wait_s = POLL_S
            except Exception:  # whatever a store may do must not matter
                traceback.print_exc()
                if over:
                    return False
                store, wait_s = None, RETRY_S
            wait(journal, wait_s)


def wait(journal: Journal, seconds: float) -> None:
    """Sleep, but not past the run's end."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not is_over(journal):
        time.sleep(POLL_S)


def send(store: Store, journal: Journal, abandoned: bool = False) -> bool:
    """Send what is new; whether the run has ended and all of it is in the store.

    Where the run's process is gone without a word (``abandoned``), the run is closed as KILLED.
    """
    progress = journal.progress()
    events, offset = journal.read(progress["offset"])
    if abandoned and not any(event["event"] == "end" for event in events):
        if "run_id" not in progress and not events:
            return True
        events.append({"event": "end", "status": "KILLED", "time_ms": int(time.time() * 1000)})
    if events:
        store.apply(events, progress)
        journal.save_progress({**progress, "offset": offset})
    return "ended" in progress


def is_over(journal: Journal) -> bool:
    """Whether the run's process no longer holds the journal."""
    with try_lock(journal.alive_path) as free:
        return free


def drain(store: Store, key: str = "", wait_s: float = 0.0) -> int:
    """Send what attempts of the past left, of one run or all; returns how many journals."""
    sent = 0
    for journal in Journal.all(key):
        with try_lock(journal.alive_path) as dead:
            if not dead:
                continue
            with try_lock(journal.sending_path, wait_s) as ours:
                if ours:
                    send(store, journal, abandoned=True)
                    journal.discard()
                    sent += 1
    return sent


def main(path: str) -> int:
    """The process's whole life."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends with its run, by itself
    os.nice(10)
    journal = Journal(Path(path))
    try:
        drain(Store(), journal.key, EARLIER_S)  # the same run's earlier attempt comes first
    except Exception:
        traceback.print_exc()
    if not follow(journal):
        return 1
    try:
        drain(Store())
    except Exception:
        traceback.print_exc()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
