"""Finished shards at a URL, for a stage `propose` that is distributed over machines.

A shard has two objects: the Parquet file and its record, which is written last. Shards made from
other inputs are in other folders, so that they are never mixed. Any URL of fsspec works: S3, Google
Cloud, Azure, SSH, HDFS or a folder. It may need a package such as ``s3fs``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from semires.errors import ConfigError, CorruptCacheError, SemiresError
from semires.files import atomic_path, read_json, sha256_file


class RemoteShards:
    """The shards below ``url/name``.

    Args:
        url: a URL of fsspec, or a folder.
        name: a name that depends on all inputs of the shards.

    Raises:
        ConfigError: the protocol is unknown, or its package is not installed.
    """

    def __init__(self, url: str, name: str) -> None:
        import fsspec

        self.place = f"{url.rstrip('/')}/{name}"
        try:
            self._files, self._root = fsspec.url_to_fs(self.place)
        except (ImportError, ValueError) as error:
            raise ConfigError(f"--output: {url}: {error}") from error

    def put(self, shard: Path, record: Path) -> None:
        """Upload a shard and then its record; the local files are removed.

        Raises:
            SemiresError: the place cannot be written.
        """
        with self._explained("written"):
            self._files.makedirs(self._root, exist_ok=True)
            for path in (shard, record):
                self._files.put_file(str(path), f"{self._root}/{path.name}")
        for path in (shard, record):
            path.unlink()

    def finished(self) -> set[str]:
        """The names of all records.

        Raises:
            SemiresError: the place cannot be read.
        """
        with self._explained("read"):
            self._files.invalidate_cache()
            if not self._files.exists(self._root):
                return set()
            found: list[str] = self._files.ls(self._root, detail=False)
        return {name for name in (path.rsplit("/", 1)[-1] for path in found) if ".json" in name}

    def get(self, shard: Path, record: Path) -> None:
        """Download a shard and its record to these paths.

        Raises:
            SemiresError: the place cannot be read.
            CorruptCacheError: the shard is damaged; the text says how to make it again.
        """
        with self._explained("read"):
            for path in (shard, record):
                with atomic_path(path) as temporary:
                    self._files.get_file(f"{self._root}/{path.name}", str(temporary))
        content: Any = read_json(record)
        if not isinstance(content, dict) or content.get("sha256") != sha256_file(shard):
            for path in (shard, record):
                path.unlink()
            raise CorruptCacheError(
                f"{self.place}/{shard.name}: damaged: its SHA-256 is not the recorded one; delete "
                f"{record.name} there and make the shard again"
            )

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """Turn an error of the storage into one line."""
        try:
            yield
        except SemiresError:
            raise
        except Exception as error:  # every backend of fsspec has its own errors
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise SemiresError(f"{self.place}: cannot be {what}: {reason}") from error
