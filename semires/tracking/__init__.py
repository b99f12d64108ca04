"""MLflow: every run of the study in a tracking store, without ever holding a run up.

A stage writes a journal (`runs`, `journal`), a process of its own sends it (`sender`, `store`),
``semires track sync`` replays what the store lacks (`replay`).
Only `store` imports mlflow, and no stage imports `store`.
"""

from semires.tracking.runs import TrackedRun, log_report, log_study, track_run

__all__ = ["TrackedRun", "log_report", "log_study", "pending", "sync", "track_run"]


def sync() -> str:
    """Bring the store up to date with journals and run records; returns a line that says what."""
    from semires.tracking.replay import sync as replay

    return replay()


def pending() -> int:
    """How many runs wait in journals for a store that takes them."""
    from semires.tracking.journal import Journal

    return len(Journal.all())
