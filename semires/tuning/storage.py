"""Open the Optuna storage of the searches; every fault of it is reported in one line.

A worker that is killed leaves its trial marked as running. Optuna's heartbeat then fails the trial
and queues the same parameters again.
"""

from __future__ import annotations

import contextlib
import functools
import sqlite3
import warnings
from collections.abc import Iterator
from pathlib import Path

import optuna
import sqlalchemy
import sqlalchemy.exc
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback

from semires.errors import ConfigError, SemiresError
from semires.process import lock
from semires.runs import layout

HEARTBEAT_S = 10
GRACE_S = 60
LOCK_TIMEOUT_S = 60
SQLITE_TIMEOUT_S = 60


def default_url() -> str:
    """The SQLite file with all searches of this workspace."""
    return layout.sqlite_url(layout.root() / ".work" / "optuna" / "studies.db")


def sqlite_path(url: str) -> Path | None:
    """The file of an SQLite URL, or None for any other storage (and for SQLite's own URIs)."""
    try:
        parsed = sqlalchemy.make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        return None
    name = parsed.database or ":memory:"
    local = parsed.get_backend_name() == "sqlite" and not name.startswith((":memory:", "file:"))
    return Path(name) if local else None


def hidden(url: str) -> str:
    """The URL without its password."""
    head, at, tail = url.rpartition("@")
    scheme, _, user = head.partition("://")
    return f"{scheme}://{user.partition(':')[0]}:***@{tail}" if at else url


@contextlib.contextmanager
def explained(url: str, *errors: type[Exception]) -> Iterator[None]:
    """Convert an error of the storage into one line that names it.

    Args:
        url: the storage.
        errors: further exceptions that only the storage raises.

    Raises:
        SemiresError: the storage is locked, damaged, unreachable or its URL is wrong.
    """
    database = (optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError)
    try:
        yield
    except SemiresError:
        raise
    except (*database, ConnectionError, *errors) as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        text = (str(cause).splitlines() or [type(cause).__name__])[0]
        if "no longer compatible" not in text:  # Optuna's text then says how to update it
            text = f"locked, damaged or unreachable ({text}); free or repair it"
        raise SemiresError(
            f"tune.storage {hidden(url)}: {text.rstrip('.')}, or give another storage, then run "
            "the same command again"
        ) from error


def locked(url: str, name: str) -> contextlib.AbstractContextManager[None]:
    """Exclude the other processes of this machine that work on the same search.

    Raises:
        BusyError: another process has had the lock for a minute.
        SemiresError: the lock's file cannot be made.
    """
    path = sqlite_path(url) or layout.root() / ".work" / "optuna" / "study"
    return lock(path.with_name(f"{path.name}-{name}.lock"), "trials", LOCK_TIMEOUT_S)


def open_storage(url: str) -> RDBStorage:
    """Open an Optuna storage, or make it.

    Raises:
        SemiresError: it cannot be opened (:func:`explained`), or is another program's database.
        BusyError: another process has been making it for a minute.
        ConfigError: the URL names no database that other processes can share.
    """
    path = sqlite_path(url)
    if url.startswith("redis"):
        raise ConfigError(f"tune.storage: {hidden(url)}: Optuna has no Redis; give an SQL database")
    if url.startswith("sqlite") and path is None and "file:" not in url:
        raise ConfigError(f"tune.storage: {url} names no file; write sqlite:///FOLDER/FILE.db")
    with explained(url, Exception), warnings.catch_warnings(), locked(url, "open"):
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        _refuse_foreign(url)
        return RDBStorage(
            url,
            engine_kwargs={} if path is None else {"creator": functools.partial(_connect, path)},
            heartbeat_interval=HEARTBEAT_S,
            grace_period=GRACE_S,
            heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(),
        )


def _connect(path: Path) -> sqlite3.Connection:
    """A connection that does not flush each commit to disk: a killed process loses nothing."""
    connection = sqlite3.connect(path, timeout=SQLITE_TIMEOUT_S, check_same_thread=False)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    return connection


def _refuse_foreign(url: str) -> None:
    """Refuse the database of another program before Optuna adds tables to it.

    Raises:
        SemiresError: it holds tables of another program that uses Alembic, such as MLflow.
    """
    path = sqlite_path(url)
    if path is not None and not path.exists():
        return
    engine = sqlalchemy.create_engine(url)
    try:
        tables = set(sqlalchemy.inspect(engine).get_table_names())
    finally:
        engine.dispose()
    if "alembic_version" in tables and "version_info" not in tables:
        raise SemiresError(
            f"tune.storage {hidden(url)}: is the database of another program, such as MLflow; use "
            f"a separate database, such as {default_url()}, or null"
        )
