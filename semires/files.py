"""Files that appear whole or not at all, with checksums.

Every writer goes through :func:`atomic_path` or :func:`atomic_folder`: the new content is written
beside its final place, flushed to disk, then renamed. A JSON file can contain a seal, a digest of
its content, which the reader verifies.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import io
import json
import os
import re
import shutil
import time
import uuid
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semires.errors import CorruptCacheError, SemiresError

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

# Errors of the machine, not of this program: they end in one line without a traceback.
_ENVIRONMENT_ERRNOS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG),
}
_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{8}\.tmp")
_STALE_S = 3600.0
JSON_SEAL = "seal"
_RESTORE = "its digest is not the recorded one; run `dvc checkout`, or make it again"


@contextlib.contextmanager
def explain_os_error(path: Path) -> Iterator[None]:
    """Turn a full disk, a read-only folder and the like into a SemiresError naming ``path``."""
    try:
        yield
    except OSError as error:
        if error.errno not in _ENVIRONMENT_ERRNOS or not _concerns(error, path):
            raise
        folder = next((p for p in path.absolute().parents if p.is_dir()), Path("/"))
        free = shutil.disk_usage(folder).free / 10**6
        named = [m[1] if (m := _TEMPORARY.fullmatch(part)) else part for part in path.parts]
        raise SemiresError(
            f"{Path(*named)}: cannot be written: {os.strerror(error.errno).lower()} ({free:.1f} MB "
            "free); the previous file, if any, is intact. Free space or choose another folder, "
            "then run the same command again."
        ) from error


def _concerns(error: OSError, path: Path) -> bool:
    """Whether the error is about writing ``path``, not about another file read meanwhile."""
    named = Path(error.filename) if isinstance(error.filename, str) else path
    return path.parent in (named.parent, *named.parents) or named in path.parents


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success flush it and rename it into place.

    Raises:
        SemiresError: the disk is full or the folder read-only; ``path`` is unchanged.
    """
    path = Path(path)
    with explain_os_error(path):
        temporary = _temporary(path)
        try:
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Like :func:`atomic_path` for a whole folder, which replaces any earlier one."""
    path = Path(path)
    with explain_os_error(path):
        temporary, former = _temporary(path), _temporary(path)
        try:
            temporary.mkdir()
            yield temporary
            if path.exists():
                os.replace(path, former)
            os.replace(temporary, path)
        except BaseException:
            if former.exists():
                os.replace(former, path)
            raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(former, ignore_errors=True)


def _temporary(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent.absolute())
    return path.with_name(f".{path.name[:200]}.{uuid.uuid4().hex[:8]}.tmp")


@functools.cache
def sweep(folder: Path) -> None:
    """Remove temporary files of an hour's age that killed processes left; once per process."""
    for place in folder.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            newest = max(p.stat().st_mtime for p in (place, *place.rglob("*")))
            if _TEMPORARY.fullmatch(place.name) and time.time() - newest > _STALE_S:
                shutil.rmtree(place) if place.is_dir() else place.unlink()


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write ``data`` to ``path``, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 ``text`` to ``path``, whole or not at all."""
    write_bytes(path, text.encode())


def write_json(path: str | Path, value: Any, seal: bool = False) -> None:
    """Write ``value`` as indented JSON; NaN and infinity are refused.

    ``seal`` adds a key to a dict: the digest of the rest, which :func:`read_json` verifies.
    """
    if seal:
        value = {**value, JSON_SEAL: fingerprint(json.loads(json.dumps(value)))}
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: str | Path, *, sealed: bool = False) -> Any:
    """Parse a JSON file (a byte order mark is accepted); verify and drop its seal, if it has one.

    ``sealed``: also refuse a file without a seal.

    Raises:
        SemiresError: it is missing or cannot be read; the text names the file.
        CorruptCacheError: it is not JSON, or its content differs from the sealed one.
    """
    path = Path(path)
    try:
        if path.is_fifo():  # reading would block
            raise CorruptCacheError(f"{path}: not a file")
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise SemiresError(f"{path}: no such file") from error
    except OSError as error:
        raise SemiresError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CorruptCacheError(f"{path}: not valid JSON ({error})") from error
    has_seal = isinstance(value, dict) and JSON_SEAL in value
    damaged = value.pop(JSON_SEAL) != fingerprint(value) if has_seal else sealed
    if damaged:
        raise CorruptCacheError(f"{path}: damaged: {_RESTORE}")
    return value


def write_parquet(path: str | Path, table: pd.DataFrame) -> None:
    """Write a table as Parquet with zstd and page checksums, whole or not at all."""
    with atomic_path(path) as temporary:
        table.to_parquet(temporary, index=False, compression="zstd", write_page_checksum=True)


def read_parquet(
    path: str | Path, columns: list[str] | None = None, sha256: str | None = None
) -> pd.DataFrame:
    """Read a Parquet table, or some columns; verify its page checksums and, if given, ``sha256``.

    Columns of lists have pandas' ArrowDtype: a tenth of the memory of a column of objects.

    Raises:
        SemiresError: the file is missing.
        CorruptCacheError: it is damaged, no Parquet file, or lacks one of ``columns``.
    """
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(path)
    if not path.is_file():
        raise SemiresError(f"{path}: no such file; run the stage that makes it again")
    if sha256 is not None and sha256_file(path) != sha256:
        raise CorruptCacheError(f"{path}: damaged: {_RESTORE}")
    try:
        table = pq.read_table(path, columns=columns, page_checksum_verification=True)
        return table.to_pandas(
            ignore_metadata=True,  # pandas does not understand its own name of an Arrow type
            types_mapper=lambda kind: pd.ArrowDtype(kind) if pa.types.is_list(kind) else None,
        )
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CorruptCacheError(f"{path}: damaged Parquet file ({reason})") from error


def npz_bytes(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Arrays in NumPy's npz format, uncompressed.

    The bytes depend only on the content. Those of `numpy.savez_compressed` also depend on the
    versions of Python and zlib.
    """
    import numpy as np

    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.save(member, array, allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), member.getvalue())
    return content.getvalue()


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
    files = [p for p in sorted(path.rglob("*")) if p.is_file()]
    lines = [f"{p.relative_to(path)} {sha256_file(p)}" for p in files]
    return sha256_bytes("\n".join(lines).encode())


def fingerprint(value: Any) -> str:
    """Hex SHA-256 of a JSON-like value, independent of the order of keys."""
    return sha256_bytes(json.dumps(value, sort_keys=True, default=str).encode())
