"""Samples for training and evaluation: image, expression, mask and, for mutual learning, views.

A *stream* is an endless, seeded sequence of sample indices: epoch after epoch, each a permutation.
A batch is a stretch of it, so the place in the stream is all that a resumed run needs to know, and
every random choice of a sample derives from that place: neither the number of loader processes nor
an interruption changes anything.
"""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from torch.utils.data import Dataset

from semires.config.schema import Augment
from semires.data.pictures import open_picture, to_rgb
from semires.data.tables import Tables
from semires.errors import CorruptCacheError, DataError
from semires.samples.augment import normalise, renormalise, strong_view, weak_view

if TYPE_CHECKING:
    from semires.models.text import Tokenizer
    from semires.proposals.cache import ProposalCache
    from semires.refine.partition import Partition

# Decoded images, masks and partitions are kept while they fit.
IMAGE_CACHE_BYTES = 2 * 2**30
MASK_CACHE_BYTES = PARTITION_CACHE_BYTES = 2**29


class ImageStore:
    """Decoded images, squashed to ``size`` x ``size``; kept in memory while they fit."""

    def __init__(self, tables: Tables, folder: str | Path, size: int) -> None:
        self._names = tables.images["file_name"].to_dict()
        self._folder = Path(folder)
        self.size = size
        self._room = IMAGE_CACHE_BYTES // (size * size * 3)
        self._kept: dict[int, NDArray[np.uint8]] = {}

    def __getitem__(self, image_id: int) -> NDArray[np.uint8]:
        """Uint8 RGB (size, size, 3).

        Raises:
            DataError: the file is missing or no image.
        """
        if image_id in self._kept:
            return self._kept[image_id]
        path = self._folder / self._names[image_id]
        with open_picture(path) as picture:
            square = (self.size, self.size)
            image = np.asarray(to_rgb(picture).resize(square, Image.Resampling.BILINEAR))
        if len(self._kept) < self._room:
            self._kept[image_id] = image
        return image


def decode_mask(counts: str, height: int, width: int, size: int) -> NDArray[np.bool_]:
    """COCO compressed RLE to bool (size, size), nearest neighbour as the published code does."""
    mask = coco_mask.decode({"size": [height, width], "counts": counts.encode("ascii")})
    return np.asarray(Image.fromarray(mask).resize((size, size), Image.Resampling.NEAREST)) > 0


class ExpressionDataset(Dataset[dict[str, Any]]):
    """One sample per expression (``sentences='all'``) or per reference (``'one'``, drawn anew).

    Indexed by ``(place, index)``: ``place`` in the stream seeds the sample's choices. A sample
    holds ``image`` float32 (3,S,S), ``input_ids`` and ``attention_mask`` int64 (L,), ``mask``
    int64 (S,S), ``sample`` (its index), ``ref_id``; with ``augment`` also ``strong`` float32
    (3,S,S), and with ``proposals`` also ``partition`` at (S,S).
    """

    def __init__(
        self,
        refs: pd.DataFrame,
        tables: Tables,
        images: ImageStore,
        tokenizer: Tokenizer,
        max_tokens: int,
        *,
        text: str = "sentences",
        sentences: str = "all",
        seed: int = 0,
        augment: Augment | None = None,
        strong: bool = True,
        proposals: ProposalCache | None = None,
    ) -> None:
        counts = refs[text].map(len).to_numpy(dtype=np.int64)
        self.ref_of = np.repeat(np.arange(len(refs)), counts)
        self.sentence_of = np.concatenate([np.arange(c) for c in counts] or [np.zeros(0, int)])
        self._first = np.concatenate([[0], np.cumsum(counts)])
        self.texts: list[str] = [str(s) for group in refs[text] for s in group]
        self.input_ids, self.attention_mask = tokenizer.encode(self.texts, max_tokens)
        self.refs = refs
        self._sizes = tables.images.loc[refs["image_id"], ["height", "width"]].to_numpy()
        self._image_ids, self._ref_ids = refs["image_id"].to_numpy(), refs["ref_id"].to_numpy()
        self._counts = refs["mask"].tolist()
        self.images, self.sentences, self.seed = images, sentences, seed
        self.augment, self.strong, self.proposals = augment, strong, proposals
        if proposals is not None:
            lacking = [i for i in dict.fromkeys(self._image_ids.tolist()) if i not in proposals]
            if lacking:
                raise CorruptCacheError(
                    f"{proposals.folder}: has no proposals for {len(lacking)} images, "
                    f"{lacking[0]} the first; run the stage propose again"
                )
        area = images.size**2
        self.mask_of = functools.lru_cache(MASK_CACHE_BYTES // area)(self._mask_of)
        # Two bytes a pixel for the atoms' numbers, as much again for the members.
        self.partition_of = functools.lru_cache(PARTITION_CACHE_BYTES // (4 * area))(
            self._partition_of
        )
        # The expressions of an image follow each other in an evaluation.
        self._pixels_of = functools.lru_cache(1)(lambda image: normalise(self.images[image]))

    def __len__(self) -> int:
        return len(self.refs) if self.sentences == "one" else len(self.texts)

    @property
    def image_ids(self) -> NDArray[np.int64]:
        """The image of every sample (len(self),)."""
        ids: NDArray[np.int64] = self._image_ids
        return ids if self.sentences == "one" else ids[self.ref_of]

    def __getitem__(self, item: int | tuple[int, int]) -> dict[str, Any]:
        place, index = item if isinstance(item, tuple) else (item, item)
        rng = np.random.default_rng([self.seed, place])
        if self.sentences == "one":
            first, last = self._first[index], self._first[index + 1]
            index = int(rng.integers(first, last))
        ref = int(self.ref_of[index])
        image_id = int(self._image_ids[ref])
        sample = {
            "sample": index,
            "ref_id": int(self._ref_ids[ref]),
            "input_ids": self.input_ids[index],
            "attention_mask": self.attention_mask[index],
            "mask": self.mask_of(ref).long(),
        }
        if self.augment is None:
            sample["image"] = self._pixels_of(image_id)
        else:
            weak = weak_view(self.images[image_id], self.augment, rng)
            strong = strong_view(weak, self.augment, rng) if self.strong else weak
            view = normalise(strong)
            sample["strong"] = renormalise(view) if self.augment.double_normalise else view
            sample["image"] = normalise(weak)
        if self.proposals is not None:
            sample["partition"] = self.partition_of(image_id)
        return sample

    def shuffled(self, seed: int = 0) -> ExpressionDataset:
        """The same samples, each with an expression of another reference (order drawn by seed).

        Raises:
            DataError: there are fewer than two references.
        """
        if len(self.refs) < 2:
            raise DataError("expressions of fewer than two references cannot be shuffled")
        order = np.random.default_rng(seed).permutation(len(self.refs))
        lender = np.empty_like(order)
        lender[order] = np.roll(order, 1)  # nobody keeps its own
        spans = np.diff(self._first)[lender[self.ref_of]]
        source = self._first[lender[self.ref_of]] + self.sentence_of % spans
        other = copy.copy(self)
        other.input_ids, other.attention_mask = self.input_ids[source], self.attention_mask[source]
        other.texts = [self.texts[i] for i in source]
        return other

    def _mask_of(self, ref: int) -> torch.Tensor:
        height, width = (int(v) for v in self._sizes[ref])
        mask = decode_mask(self._counts[ref], height, width, self.images.size)
        return torch.from_numpy(mask)

    def _partition_of(self, image_id: int) -> Partition:
        assert self.proposals is not None
        return self.proposals[image_id].resize(self.images.size, self.images.size)
