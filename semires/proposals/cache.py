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
        self.manifest: dict[str, Any] = files.read_json(manifest, sealed=True)
        if (found := self.manifest["format"]) != FORMAT:
            raise CorruptCacheError(
                f"{manifest}: format {found}, but this version reads format {FORMAT}; run the "
                "stage propose again"
            )
        self._memory_bytes = memory_bytes
        self._shards: OrderedDict[int, dict[int, bytes]] = OrderedDict()
        self._shard_of: dict[int, int] = {}
        for index in range(len(self.manifest["shards"])):
            ids = self._read_shard(index, ["image_id"])["image_id"]
            self._shard_of.update(dict.fromkeys(ids.tolist(), index))

    def _read_shard(self, index: int, columns: list[str]) -> pd.DataFrame:
        shard = self.manifest["shards"][index]
        return files.read_parquet(self.folder / shard["file"], columns, sha256=shard["sha256"])

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
        return Partition.from_bytes(self._partitions(index)[int(image_id)])

    def _partitions(self, index: int) -> dict[int, bytes]:
        """Return the compressed partitions of one shard.

        The least recently used shards are removed from memory when the limit is exceeded.
        """
        if index in self._shards:
            self._shards.move_to_end(index)
            return self._shards[index]
        table = self._read_shard(index, ["image_id", "partition"])
        found = dict(zip(table["image_id"].tolist(), table["partition"].tolist(), strict=True))
        self._shards[index] = found
        size = sum(len(part) for shard in self._shards.values() for part in shard.values())
        while len(self._shards) > 1 and size > self._memory_bytes:
            _, oldest = self._shards.popitem(last=False)
            size -= sum(map(len, oldest.values()))
        return found


def open_proposals(params: Params, cell: RunKey) -> ProposalCache:
    """Open the proposals of the source that a run uses.

    Raises:
        SemiresError: the proposals do not exist.
        CorruptCacheError: the proposals are damaged, or were made with other parameters.
    """
    source = source_of(params, cell)
    cache = ProposalCache(proposals_of(params, cell))
    if cache.manifest["params"] != params.proposals.sources[source].model_dump():
        raise CorruptCacheError(
            f"{cache.folder}: made with other parameters than proposals.sources.{source} has now; "
            "run the stage propose again"
        )
    return cache
