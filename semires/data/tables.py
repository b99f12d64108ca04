"""Write and read the prepared tables of a data set (output of the stage ``prepare``)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from semires.errors import CorruptCacheError
from semires.files import (
    atomic_folder,
    read_json,
    read_parquet,
    sha256_file,
    write_json,
    write_parquet,
)
from semires.runs import layout

IMAGE_COLUMNS = ["image_id", "file_name", "height", "width", "split"]
REF_COLUMNS = ["ref_id", "image_id", "split", "mask", "sentences", "raw"]
SUMMARY = "summary.json"


def write_tables(
    dataset: str, images: pd.DataFrame, refs: pd.DataFrame, counts: dict[str, Any] | None = None
) -> None:
    """Write ``data/prepared/D``: both tables, and a summary with their SHA-256 hashes."""
    with atomic_folder(layout.prepared(dataset)) as folder:
        write_parquet(folder / "images.parquet", images)
        write_parquet(folder / "refs.parquet", refs)
        digests = {path.name: sha256_file(path) for path in sorted(folder.iterdir())}
        write_json(folder / SUMMARY, {"counts": counts or {}, "files": digests}, seal=True)


def read_table(dataset: str, name: str, columns: list[str]) -> pd.DataFrame:
    """Read ``images`` or ``refs`` of a prepared data set.

    Raises:
        SemiresError: the stage ``prepare`` has not run.
        CorruptCacheError: the file differs from the file that ``prepare`` wrote.
    """
    folder, file = layout.prepared(dataset), f"{name}.parquet"
    digests = read_json(folder / SUMMARY, sealed=True)["files"]
    return read_parquet(folder / file, columns, sha256=digests[file])


@dataclass(frozen=True)
class Tables:
    """The prepared tables of a data set: ``images`` (index: image_id) and ``refs``."""

    images: pd.DataFrame
    refs: pd.DataFrame

    @staticmethod
    def load(dataset: str) -> Tables:
        """Read ``data/prepared/D``."""
        images = read_table(dataset, "images", IMAGE_COLUMNS).set_index("image_id")
        return Tables(images, read_table(dataset, "refs", REF_COLUMNS))

    def part(self, split: str) -> pd.DataFrame:
        """Return the references of one split, in order."""
        return self.refs[self.refs["split"] == split].reset_index(drop=True)

    def labelled_and_unlabelled(
        self, dataset: str, fraction: float
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Divide the train references by the labelled images that the stage ``split`` chose.

        Raises:
            CorruptCacheError: the split file is damaged, or was made from other data; the text
                names it.
        """
        train, path = self.part("train"), layout.split_file(dataset, fraction)
        drawn = read_json(path, sealed=True)["labelled_images"]
        unknown = sorted(set(drawn) - set(train["image_id"]))
        if unknown:
            raise CorruptCacheError(
                f"{path}: made from other data: image {unknown[0]} is not in the train split; run "
                "the stage split again"
            )
        labelled = train["image_id"].isin(drawn)
        return train[labelled].reset_index(drop=True), train[~labelled].reset_index(drop=True)
