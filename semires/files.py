"""Files that appear whole or not at all, with checksums, and locks.

Every file the harness writes goes through :func:`atomic_path`: written beside its final place,
flushed to disk, then renamed. Parquet carries page checksums, which are verified on reading.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semires.errors import BusyError, CorruptCacheError, SemiresError

if TYPE_CHECKING:
    import pandas as pd

_ENVIRONMENT_ERRNOS = {
    errno.ENOSPC: "no space left",
    errno.EDQUOT: "disk quota exceeded",
    errno.EROFS: "read-only file system",
    errno.EACCES: "permission denied",
    errno.EPERM: "operation not permitted",
}


@contextlib.contextmanager
def _explain_os_error(path: Path) -> Iterator[None]:
    """Turn a full disk or a read-only folder into one line that names the path."""
    try:
        yield
    except OSError as error:
        reason = _ENVIRONMENT_ERRNOS.get(error.errno or 0)
        if reason is None:
            raise
        raise SemiresError(
            f"{path}: cannot be written: {reason}; the previous file, if any, is intact. "
            "Free space or choose another folder, then run the same command again."
        ) from error


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success flush it and rename it into place.

    Raises:
        SemiresError: the disk is full or the folder read-only; ``path`` is as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    with _explain_os_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            descriptor = os.open(temporary, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Like :func:`atomic_path` for a whole folder, which replaces any earlier one."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    with _explain_os_error(path):
        try:
            temporary.mkdir(parents=True)
            yield temporary
            if path.exists():
                shutil.rmtree(path)
            os.replace(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write ``data`` to ``path``, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 ``text`` to ``path``, whole or not at all."""
    write_bytes(path, text.encode())


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented JSON with a final newline; NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Parse a JSON file.

    Raises:
        SemiresError: it is missing or not JSON; the text names the file.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SemiresError(f"{path}: no such file") from error
    except (ValueError, RecursionError) as error:
        raise CorruptCacheError(f"{path}: not valid JSON ({error})") from error


def write_parquet(path: str | Path, table: pd.DataFrame) -> None:
    """Write a table as Parquet with zstd and page checksums, whole or not at all."""
    with atomic_path(path) as temporary:
        table.to_parquet(
            temporary, index=False, compression="zstd", engine="pyarrow", write_page_checksum=True
        )


def read_parquet(path: str | Path, columns: list[str] | None = None) -> pd.DataFrame:
    """Read a Parquet table, verifying its page checksums.

    Raises:
        SemiresError: the file is missing.
        CorruptCacheError: it is damaged or no Parquet file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(path)
    if not path.is_file():
        raise SemiresError(f"{path}: no such file")
    try:
        table = pq.read_table(path, columns=columns, page_checksum_verification=True)
        return table.to_pandas()
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CorruptCacheError(f"{path}: damaged Parquet file ({first_line})") from error


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


@contextlib.contextmanager
def lock(path: str | Path, what: str) -> Iterator[None]:
    """Hold the lock file ``path`` or refuse at once.

    Raises:
        BusyError: another process holds it; the text says ``what`` is being made.
    """
    from filelock import FileLock, Timeout

    path = Path(path)
    with _explain_os_error(path):
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
