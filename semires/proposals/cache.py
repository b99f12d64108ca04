"""The proposals of a data set on disk: one partition per image in Parquet shards.

``manifest.json`` contains the SHA-256 of every shard. A damaged, truncated or empty shard raises a
`CorruptCacheError` that names it; it never yields a wrong partition.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from semires import files
from semires.config.resolve import proposals_of, source_of
from semires.config.schema import Params
from semires.errors import CorruptCacheError, SemiresError
from semires.refine.partition import Partition
from semires.runs.key import RunKey

FORMAT = 1
MEMORY_BYTES = 2 * 2**30  # maximum size of the compressed partitions in memory


@dataclass(frozen=True)
class Row:
    """The entry of one image: its partition of ``n`` masks as bytes, and scores float32 (n,)."""

    image_id: int
    height: int
    width: int
    n: int
    partition: bytes
    predicted_iou: np.ndarray
    stability: np.ndarray


def write_shard(path: str | Path, rows: list[Row]) -> str:
    """Write one shard atomically and return its SHA-256."""
    table = pd.DataFrame(map(vars, rows), columns=[field.name for field in fields(Row)])
    numbers = {"image_id": np.int64, "height": np.int32, "width": np.int32, "n": np.int32}
    files.write_parquet(path, table.astype(numbers))
    return files.sha256_file(path)


def read_shard(path: Path, sha256: str, columns: list[str] | None = None) -> pd.DataFrame:
    """Read a shard and check its SHA-256.

    Raises:
        CorruptCacheError: the shard is missing, or its bytes have changed since it was written.
    """
    if not path.is_file():
        raise CorruptCacheError(f"{path}: shard is missing; run the stage propose again")
    if files.sha256_file(path) != sha256:
        raise CorruptCacheError(
            f"{path}: shard is damaged (SHA-256 differs from manifest.json); run `dvc checkout`, "
            "or delete the folder and run the stage propose again"
        )
    return files.read_parquet(path, columns)


class ProposalCache:
    """A mapping from image id to `Partition`. Shards are read when they are first needed.

    Raises:
        SemiresError: the folder contains no proposals.
        CorruptCacheError: the manifest or a shard is damaged; the text names it.
    """

    def __init__(self, folder: str | Path, memory_bytes: int = MEMORY_BYTES) -> None:
        self.folder = Path(folder)
        manifest = self.folder / "manifest.json"
        if not manifest.is_file():
            raise SemiresError(f"{manifest}: no such file; run the stage propose for it first")
        self.manifest: dict[str, Any] = _checked_manifest(manifest)
        self._memory_bytes = memory_bytes
        self._shards: OrderedDict[int, dict[int, bytes]] = OrderedDict()
        self._shard_of: dict[int, int] = {}
        for index, shard in enumerate(self.manifest["shards"]):
            ids = read_shard(self.folder / shard["file"], shard["sha256"], ["image_id"])["image_id"]
            if len(ids) != shard["n"]:
                raise CorruptCacheError(
                    f"{manifest}: {shard['file']} contains {len(ids)} images, not {shard['n']}"
                )
            self._shard_of.update(dict.fromkeys(ids.tolist(), index))
        if len(self._shard_of) != self.manifest["n_images"]:
            raise CorruptCacheError(
                f"{manifest}: the shards contain {len(self._shard_of)} images, not "
                f"{self.manifest['n_images']}"
            )

    def __len__(self) -> int:
        return len(self._shard_of)

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._shard_of

    def __iter__(self) -> Iterator[int]:
        return iter(self._shard_of)

    def __getitem__(self, image_id: int) -> Partition:
        index = self._shard_of.get(int(image_id))
        if index is None:
            raise SemiresError(f"{self.folder}: contains no proposals for image {image_id}")
        try:
            return Partition.from_bytes(self._partitions(index)[int(image_id)])
        except CorruptCacheError as error:
            name = self.manifest["shards"][index]["file"]
            raise CorruptCacheError(f"{self.folder / name}: image {image_id}: {error}") from error

    def _partitions(self, index: int) -> dict[int, bytes]:
        """Return the compressed partitions of one shard.

        The least recently used shards are removed from memory when the limit is exceeded.
        """
        if index in self._shards:
            self._shards.move_to_end(index)
            return self._shards[index]
        shard = self.manifest["shards"][index]
        table = read_shard(self.folder / shard["file"], shard["sha256"], ["image_id", "partition"])
        found = dict(zip(table["image_id"].tolist(), table["partition"].tolist(), strict=True))
        self._shards[index] = found
        size = sum(len(part) for shard in self._shards.values() for part in shard.values())
        while len(self._shards) > 1 and size > self._memory_bytes:
            _, oldest = self._shards.popitem(last=False)
            size -= sum(map(len, oldest.values()))
        return found


def _checked_manifest(path: Path) -> dict[str, Any]:
    manifest = files.read_json(path)
    try:
        if manifest["format"] != FORMAT:
            raise CorruptCacheError(
                f"{path}: format {manifest['format']}, but this version reads format {FORMAT}; "
                "run the stage propose again"
            )
        shards = manifest["shards"]
        well_formed = isinstance(manifest["n_images"], int) and all(
            isinstance(s["file"], str)
            and Path(s["file"]).name == s["file"]
            and isinstance(s["n"], int)
            and isinstance(s["sha256"], str)
            for s in shards
        )
    except (KeyError, TypeError, IndexError) as error:
        raise CorruptCacheError(f"{path}: not a manifest of proposals ({error!r})") from error
    if not well_formed:
        raise CorruptCacheError(f"{path}: not a manifest of proposals")
    return dict(manifest)


def open_proposals(params: Params, cell: RunKey) -> ProposalCache:
    """Open the proposals of the source that a run uses.

    Raises:
        SemiresError: the proposals do not exist.
        CorruptCacheError: the proposals are damaged, or were made with other parameters.
    """
    source = source_of(params, cell)
    cache = ProposalCache(proposals_of(params, cell))
    made_with, wanted = cache.manifest.get("params"), params.proposals.sources[source].model_dump()
    if made_with is not None and made_with != wanted:
        raise CorruptCacheError(
            f"{cache.folder}: made with other parameters than proposals.sources.{source} has now; "
            "run the stage propose again"
        )
    return cache
