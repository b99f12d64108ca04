"""The prepared tables of a data set, as the stage ``prepare`` wrote them."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from semires.errors import CorruptCacheError
from semires.files import read_json, read_parquet
from semires.runs import layout

IMAGE_COLUMNS = ["image_id", "file_name", "height", "width", "split"]
REF_COLUMNS = ["ref_id", "image_id", "split", "mask", "sentences", "raw"]


@dataclass(frozen=True)
class Tables:
    """The prepared tables of a data set: ``images`` (index: image_id) and ``refs``."""

    images: pd.DataFrame
    refs: pd.DataFrame

    @staticmethod
    def load(dataset: str) -> Tables:
        """Read ``data/prepared/D``."""
        folder = layout.prepared(dataset)
        images = read_parquet(folder / "images.parquet", IMAGE_COLUMNS).set_index("image_id")
        return Tables(images, read_parquet(folder / "refs.parquet", REF_COLUMNS))

    def part(self, split: str) -> pd.DataFrame:
        """References of one split, in order."""
        return self.refs[self.refs["split"] == split].reset_index(drop=True)

    def labelled_and_unlabelled(
        self, dataset: str, fraction: float
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The train split's references, by the images that the split stage drew.

        Raises:
            CorruptCacheError: the split's file is none, or of other data; the text names it.
        """
        train, path = self.part("train"), layout.split_file(dataset, fraction)
        split = read_json(path)
        drawn = split.get("labelled_images") if isinstance(split, dict) else None
        if not isinstance(drawn, list) or not all(type(i) is int for i in drawn):
            raise CorruptCacheError(f"{path}: holds no labelled images; run the stage split again")
        unknown = sorted(set(drawn) - set(train["image_id"]))
        if unknown:
            raise CorruptCacheError(
                f"{path}: made from other data: image {unknown[0]} is not in the train split; run "
                "the stage split again"
            )
        labelled = train["image_id"].isin(drawn)
        return train[labelled].reset_index(drop=True), train[~labelled].reset_index(drop=True)
