"""Where a study is kept, and how several processes share it without losing or repeating a trial.

A trial is claimed under an exclusive lock and holds a shared one while it runs. Whoever gets that
one exclusively knows that no process is at work, so that a trial still marked as running was left
by a killed one: it is failed and queued again with the same parameters. Both locks are the
kernel's, so a killed process holds none. Storages on other hosts use Optuna's heartbeat instead.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy.event
import sqlalchemy.exc
from filelock import FileLock, Timeout

from semires.errors import BusyError, ConfigError, CorruptCacheError, SemiresError
from semires.runs import layout

HEARTBEAT_S = 10
GRACE_S = 60
CREATION_TIMEOUT_S = 60
SQLITE_TIMEOUT_S = 60
SLOT = "slot"  # the place in the sequence of trials that a trial takes over from a failed one


class Gate:
    """Admits one process at a time to claim a trial (see the module's text).

    ``local``: all workers of the study share this file system, so ``alone`` may be believed.
    """

    def __init__(self, stem: Path, local: bool) -> None:
        stem.parent.mkdir(parents=True, exist_ok=True)
        self.local = local
        flags = os.O_RDWR | os.O_CREAT
        self._claim = os.open(stem.with_name(stem.name + ".claim"), flags)
        self._running = os.open(stem.with_name(stem.name + ".running"), flags)

    def claim(self) -> None:
        """Wait for the right to claim a trial."""
        fcntl.flock(self._claim, fcntl.LOCK_EX)

    def alone(self) -> bool:
        """Whether no process runs a trial; call it between ``claim`` and ``start``."""
        if not self.local:
            return False
        try:
            fcntl.flock(self._running, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        fcntl.flock(self._running, fcntl.LOCK_UN)
        return True

    def start(self) -> None:
        """A trial was claimed and runs now: let the next process claim one."""
        fcntl.flock(self._running, fcntl.LOCK_SH)
        fcntl.flock(self._claim, fcntl.LOCK_UN)

    def stop(self) -> None:
        """The trial is told, or there was none."""
        fcntl.flock(self._running, fcntl.LOCK_UN)
        fcntl.flock(self._claim, fcntl.LOCK_UN)

    def close(self) -> None:
        """Give up both locks."""
        os.close(self._claim)
        os.close(self._running)


def default_url() -> str:
    """The sqlite file that holds all studies of this workspace."""
    return f"sqlite:///{layout.root() / '.work' / 'optuna' / 'studies.db'}"


def sqlite_path(url: str) -> Path | None:
    """The file of an sqlite URL, or None for any other storage."""
    scheme, _, rest = url.partition("://")
    if scheme.partition("+")[0] != "sqlite" or not rest.strip("/"):
        return None
    return Path(rest.partition("?")[0].removeprefix("/"))


def hidden(url: str) -> str:
    """The URL without its password."""
    head, at, tail = url.rpartition("@")
    scheme, _, user = head.partition("://")
    return f"{scheme}://{user.partition(':')[0]}:***@{tail}" if at else url


@contextlib.contextmanager
def explained(url: str) -> Iterator[None]:
    """Turn what a storage can do wrong into one line that names it.

    Raises:
        SemiresError: the storage is locked, damaged, unreachable or its URL makes no sense.
    """
    broken = (
        optuna.exceptions.StorageInternalError,
        sqlalchemy.exc.SQLAlchemyError,
        ImportError,
        ConnectionError,
    )
    try:
        yield
    except broken as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        text = (str(cause).splitlines() or [type(cause).__name__])[0]
        raise SemiresError(
            f"tune.storage {hidden(url)}: locked, damaged or unreachable ({text}); free or mend "
            "it, or give another storage, then run the same command again"
        ) from error


def open_storage(url: str) -> optuna.storages.BaseStorage:
    """Open an Optuna storage; sqlite is made under a lock and set up for many small commits.

    Raises:
        SemiresError: it cannot be opened (:func:`explained`).
        CorruptCacheError: an sqlite file is damaged.
        BusyError: another process has been creating it for a minute.
        ConfigError: the URL is of no database that other processes can share.
    """
    path = sqlite_path(url)
    if url.startswith("redis"):
        raise ConfigError(f"tune.storage: {hidden(url)}: Optuna has no Redis; give an SQL database")
    if url.startswith("sqlite") and (path is None or path.name == ":memory:"):
        raise ConfigError(f"tune.storage: {url} names no file; write sqlite:///FOLDER/FILE.db")
    with explained(url), warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if path is not None:
            verify_sqlite(path)
            return _open_sqlite(url, path)
        return optuna.storages.RDBStorage(
            url,
            heartbeat_interval=HEARTBEAT_S,
            grace_period=GRACE_S,
            heartbeat_stale_trial_callback=requeue,
        )


def _open_sqlite(url: str, path: Path) -> optuna.storages.RDBStorage:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(path.name + ".lock"), timeout=CREATION_TIMEOUT_S):
            arguments = {"connect_args": {"timeout": SQLITE_TIMEOUT_S}}
            storage = optuna.storages.RDBStorage(url, engine_kwargs=arguments)
            # No flush to disk at each commit: a killed process loses nothing, and a trial takes
            # milliseconds. Set on every later connection; the journal's mode stays in the file.
            sqlalchemy.event.listen(storage.engine, "connect", _set_pragmas)
            storage.engine.dispose()
            storage.scoped_session.remove()
            with storage.engine.connect():
                return storage
    except Timeout as error:
        raise BusyError(f"{path}: another process is creating this storage") from error
    except OSError as error:
        raise SemiresError(f"{path}: cannot be created: {error.strerror}") from error


def _set_pragmas(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.close()


def open_gate(url: str, study_name: str) -> Gate:
    """The gate of a study: beside an sqlite file, else in the work folder."""
    path = sqlite_path(url)
    if path is not None:
        return Gate(path.parent / "gates" / f"{path.name}-{study_name}", local=True)
    return Gate(layout.root() / ".work" / "optuna" / "gates" / study_name, local=False)


def requeue(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
    """Queue a failed trial again: same parameters, same place in the sequence of trials."""
    place = slot(study, trial)
    study.enqueue_trial(trial.params, user_attrs={**trial.user_attrs, SLOT: place})


def slot(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> int:
    """A trial's place in the sequence of trials, in which a trial run again counts once."""
    if SLOT in trial.user_attrs:
        return int(trial.user_attrs[SLOT])
    # With the cache that samplers use within a trial: reading the storage is what costs time.
    # Of all trials: with Hyperband, samplers are given a study that shows one bracket's alone.
    every = optuna.Study._get_trials(study, deepcopy=False, use_cache=True)
    earlier = every[: trial.number]
    return int(trial.number) - sum(SLOT in other.user_attrs for other in earlier)


def verify_sqlite(path: str | Path) -> None:
    """Read a whole SQLite database, if there is one; it carries no checksums, but much order.

    Raises:
        CorruptCacheError: it is damaged or no database.
    """
    path = Path(path)
    if not path.is_file() or path.stat().st_size == 0:
        return
    try:
        with contextlib.closing(sqlite3.connect(path)) as database:
            found = str(database.execute("PRAGMA integrity_check(1)").fetchone()[0])
            names = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            for (name,) in names.fetchall():
                quoted = str(name).replace('"', '""')
                for _ in database.execute(f'SELECT * FROM "{quoted}"'):
                    pass
    except (sqlite3.DatabaseError, UnicodeError, OverflowError) as error:
        found = str(error)
    if found != "ok" and "locked" not in found:  # whoever uses it waits better than this
        raise CorruptCacheError(
            f"{path}: damaged database ({' '.join(found.split())}); move it away to start anew, "
            "or restore it"
        )
