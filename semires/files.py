"""Files that appear whole or not at all, with checksums, and locks.

Every file the harness writes goes through :func:`atomic_path`: written beside its final place,
flushed to disk, then renamed. Parquet carries a seal, a SHA-256 in front of its footer, where
readers look for nothing; JSON may carry one as a key. Seals are verified on reading.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import io
import json
import os
import re
import shutil
import sqlite3
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from semires.errors import BusyError, CorruptCacheError, SemiresError

if TYPE_CHECKING:
    import pandas as pd

_ENVIRONMENT_ERRNOS = {
    errno.ENOSPC: "no space left",
    errno.EDQUOT: "disk quota exceeded",
    errno.EFBIG: "larger than a file may be here",
    errno.EROFS: "read-only file system",
    errno.EACCES: "permission denied",
    errno.EPERM: "operation not permitted",
    errno.EEXIST: "a file is where a folder should be",
    errno.ENOTDIR: "a file is where a folder should be",
    errno.EISDIR: "a folder is where the file should be",
    errno.ENAMETOOLONG: "the name is too long",
}
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{8}\.tmp")
FORMER = ".former"  # marks a folder that is set aside for its successor
_STALE_S = 10.0  # a temporary file this old that nobody holds was left by a killed process
PARQUET_END = 8  # bytes behind a Parquet footer: its length and the magic
SEAL = b"semires-sha256:"
JSON_SEAL = "seal"


@contextlib.contextmanager
def explain_os_error(
    path: Path, temporary: Path | None = None, needed: int | None = None
) -> Iterator[None]:
    """Turn a full disk or a read-only folder into one line that names the path.

    Args:
        path: what was to be written.
        temporary: where it grew until then; its size says how much space it took at least.
        needed: its size in bytes, if that is known.
    """
    try:
        yield
    except OSError as error:
        reason = _ENVIRONMENT_ERRNOS.get(error.errno or 0)
        if reason is None or not _concerns(error, path):
            raise
        if error.errno in _FULL:
            reason += f"; {_space(path, temporary, needed)}"
        raise SemiresError(
            f"{_final(path)}: cannot be written: {reason}; the previous file, if any, is intact. "
            "Free space or choose another folder, then run the same command again."
        ) from error


def _concerns(error: OSError, path: Path) -> bool:
    """Whether the error is of writing ``path``, not of reading something else meanwhile."""
    if not isinstance(error.filename, str):
        return True
    named = Path(error.filename)
    return path.parent == named.parent or path.parent in named.parents or named in path.parents


def _final(path: Path) -> Path:
    """The path as it will be, where it lies in a folder that is still a temporary one."""
    return Path(*(m[1] if (m := _TEMPORARY.fullmatch(part)) else part for part in path.parts))


def _space(path: Path, temporary: Path | None, needed: int | None) -> str:
    folder = next((p for p in path.absolute().parents if p.is_dir()), Path("/"))
    free = shutil.disk_usage(folder).free
    if needed is None:
        parts = [temporary] if temporary else []
        if temporary and temporary.is_dir():
            parts = list(temporary.rglob("*"))
        written = sum(p.stat().st_size for p in parts if p.is_file())
        return f"it needs more than the {megabytes(max(written, free))} that there was"
    return f"it needs {megabytes(needed)}, {megabytes(free)} are free"


def megabytes(size: int) -> str:
    """``1.5 MB``; small sizes in bytes."""
    return f"{size} bytes" if size < 10**5 else f"{size / 10**6:.1f} MB"


@contextlib.contextmanager
def atomic_path(path: str | Path, needed: int | None = None) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success flush it and rename it into place.

    Args:
        path: the file's final place; its folder is made if need be.
        needed: its size in bytes, if known, for the message about a full disk.

    Raises:
        SemiresError: the disk is full or the folder read-only; ``path`` is as it was.
    """
    path = Path(path)
    temporary = _temporary(path)
    with explain_os_error(path, temporary, needed):
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent.absolute())
        held = os.open(temporary, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _hold(held)
            with explain_os_error(path, temporary, needed):  # its size, before it is removed
                yield temporary
                os.fsync(held)
            os.replace(temporary, path)
        finally:
            os.close(held)
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Like :func:`atomic_path` for a whole folder, which replaces any earlier one."""
    path = Path(path)
    temporary, former = _temporary(path), _temporary(path, FORMER)
    with explain_os_error(path, temporary):
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent.absolute())
        temporary.mkdir()
        held = os.open(temporary, os.O_RDONLY)
        try:
            _hold(held)
            with explain_os_error(path, temporary):
                yield temporary
            _exchange(temporary, path, former)
        finally:
            os.close(held)
            shutil.rmtree(temporary, ignore_errors=True)
            if former.exists():
                _put_back_or_remove(former, path.name + FORMER)


def _exchange(new: Path, path: Path, former: Path) -> None:
    """Put a folder in the place of another, which is set aside.

    After a kill between the two steps :func:`sweep` puts it back.
    """
    if not path.exists():
        os.replace(new, path)
        return
    held = os.open(path, os.O_RDONLY)
    try:
        _hold(held)
        os.replace(path, former)
        os.replace(new, path)
    finally:
        os.close(held)


def _temporary(path: Path, mark: str = "") -> Path:
    return path.with_name(f".{path.name[:200]}{mark}.{uuid.uuid4().hex[:8]}.tmp")


def _hold(descriptor: int) -> bool:
    """Lock a temporary file for as long as this process lives; whether it was free."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@functools.cache
def sweep(folder: Path) -> None:
    """Remove what killed processes left half made in a folder; once per folder and process.

    A folder that was set aside and whose successor never came is put back.
    """
    for place in folder.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            found = _TEMPORARY.fullmatch(place.name)
            if found and time.time() - place.stat().st_mtime > _STALE_S:
                held = os.open(place, os.O_RDONLY)
                try:
                    if _hold(held):
                        _put_back_or_remove(place, found[1])
                finally:
                    os.close(held)


def _put_back_or_remove(place: Path, name: str) -> None:
    target = place.with_name(name.removesuffix(FORMER))
    if name.endswith(FORMER) and not target.exists():
        os.replace(place, target)
    else:
        _remove(place)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write ``data`` to ``path``, whole or not at all."""
    with atomic_path(path, len(data)) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 ``text`` to ``path``, whole or not at all."""
    write_bytes(path, text.encode())


def write_json(path: str | Path, value: Any, seal: bool = False) -> None:
    """Write ``value`` as indented JSON with a final newline; NaN and infinity are refused.

    Args:
        path: the file.
        value: JSON types; with ``seal`` a dict.
        seal: add a key with the digest of the rest, which :func:`read_json` verifies.
    """
    if seal:
        value = {**value, JSON_SEAL: fingerprint(json.loads(json.dumps(value)))}
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Parse a JSON file and verify its seal, if it has one (which is left out of the value).

    Raises:
        SemiresError: it is missing or cannot be read; the text names the file.
        CorruptCacheError: it is not JSON, or no longer what was sealed.
    """
    path = Path(path)
    try:
        if path.is_fifo():  # reading would wait for ever
            raise CorruptCacheError(f"{path}: is no file")
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SemiresError(f"{path}: no such file") from error
    except OSError as error:
        raise SemiresError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CorruptCacheError(f"{path}: not valid JSON ({error})") from error
    if isinstance(value, dict) and JSON_SEAL in value:
        stated = value.pop(JSON_SEAL)
        if stated != fingerprint(value):
            raise CorruptCacheError(
                f"{path}: damaged: its content is not what was sealed; run the stage that makes it"
            )
    return value


def write_parquet(path: str | Path, table: pd.DataFrame) -> None:
    """Write a table as Parquet with zstd, page checksums and a seal, whole or not at all."""
    buffer = io.BytesIO()
    table.to_parquet(
        buffer, index=False, compression="zstd", engine="pyarrow", write_page_checksum=True
    )
    data = buffer.getvalue()
    footer = _footer_start(data)
    digest = hashlib.sha256(data).digest()
    write_bytes(path, data[:footer] + SEAL + digest + data[footer:])


def read_parquet(path: str | Path, columns: list[str] | None = None) -> pd.DataFrame:
    """Read a Parquet table, verifying its seal (if it has one) and its page checksums.

    Raises:
        SemiresError: the file is missing.
        CorruptCacheError: it is damaged, no Parquet file, or lacks one of ``columns``.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(path)
    if not path.is_file():
        raise SemiresError(f"{path}: no such file")
    try:
        data = path.read_bytes()
        _verify_seal(data)
        reader = pa.BufferReader(data)
        return pq.read_table(reader, columns=columns, page_checksum_verification=True).to_pandas()
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CorruptCacheError(f"{path}: damaged Parquet file ({first_line})") from error


def _footer_start(data: bytes) -> int:
    """Where the footer begins; 0 or less where there is none."""
    return len(data) - PARQUET_END - int.from_bytes(data[-PARQUET_END:-4], "little")


def _verify_seal(data: bytes) -> None:
    """Compare what stands before and behind the seal with it, if there is one."""
    footer = _footer_start(data)
    start = footer - len(SEAL) - hashlib.sha256().digest_size
    if start < 0 or data[start : start + len(SEAL)] != SEAL:
        return  # written by others
    if hashlib.sha256(data[:start] + data[footer:]).digest() != data[start + len(SEAL) : footer]:
        raise ValueError("its SHA-256 is not the one it was sealed with")


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


def sha256_bytes(data: bytes) -> str:
    """Hex SHA-256 of ``data``."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: str | Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_tree(path: str | Path) -> str:
    """Hex SHA-256 of a file, or of a folder's relative names and bytes in sorted order."""
    path = Path(path)
    if path.is_file():
        return sha256_file(path)
    lines = [
        f"{p.relative_to(path)} {sha256_file(p)}" for p in sorted(path.rglob("*")) if p.is_file()
    ]
    return sha256_bytes("\n".join(lines).encode())


def fingerprint(value: Any) -> str:
    """Hex SHA-256 of a JSON-like value, independent of the order of keys."""
    return sha256_bytes(json.dumps(value, sort_keys=True, default=str).encode())


def flatten(values: Any, separator: str = ".") -> dict[str, Any]:
    """The leaves of a tree of mappings by their joined names; lists are leaves."""
    if not isinstance(values, Mapping):
        return {"": values}
    return {
        f"{name}{separator}{rest}" if rest else str(name): leaf
        for name, value in values.items()
        for rest, leaf in flatten(value, separator).items()
    }


def sqlite_url(path: str | Path) -> str:
    """SQLAlchemy's URL of an SQLite file; characters with a meaning in URLs are quoted."""
    return f"sqlite:///{quote(str(Path(path).absolute()))}"


@contextlib.contextmanager
def lock(path: str | Path, what: str) -> Iterator[None]:
    """Hold the lock file ``path`` or refuse at once.

    Raises:
        BusyError: another process holds it; the text says ``what`` is being made.
    """
    from filelock import FileLock, Timeout

    path = Path(path)
    with explain_os_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(path, timeout=0)
        try:
            held.acquire()
        except Timeout as error:
            raise BusyError(
                f"{path}: another process is making {what}; wait for it or stop it, then try again"
            ) from error
    try:
        yield
    finally:
        held.release()
