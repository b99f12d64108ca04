"""Datasets of referring expressions: one sample is an image, an expression and a mask.

:class:`LabelledDataset` serves supervised training and evaluation, :class:`UnlabelledDataset` the
unlabelled part of mutual learning. Every sample is a batch of one.
"""

from __future__ import annotations

import copy
import functools
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Protocol, Self

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from numpy.typing import NDArray
from pandas.api.extensions import ExtensionArray
from PIL import Image
from pycocotools import mask as coco_mask
from torch.utils.data import Dataset

from semires.config.schema import Augment
from semires.data.pictures import open_picture, to_rgb
from semires.data.tables import Tables
from semires.errors import DataError
from semires.refine.partition import Partition
from semires.refine.refiner import Promptable
from semires.samples.augment import normalise, renormalise, strong_view, weak_view
from semires.samples.batch import B, Batch, LabelledBatch, UnlabelledBatch

if TYPE_CHECKING:
    from semires.models.text import Tokenizer

# Memory of a process for decoded images, masks and partitions.
IMAGE_CACHE_BYTES = 2 * 2**30
MASK_CACHE_BYTES = PARTITION_CACHE_BYTES = 2**29
TEXTS_AT_ONCE = 10_000


class ImageStore:
    """Decoded images, resized to ``size`` x ``size``; the first 2 GiB are cached in memory."""

    def __init__(self, tables: Tables, folder: str | Path, size: int) -> None:
        self._names = tables.images["file_name"].to_dict()
        self._folder = Path(folder)
        self.size = size
        self._capacity = IMAGE_CACHE_BYTES // (size * size * 3)
        self._cache: dict[int, NDArray[np.uint8]] = {}

    def __getitem__(self, image_id: int) -> NDArray[np.uint8]:
        """Uint8 RGB (size, size, 3).

        Raises:
            DataError: the file is missing or not an image.
        """
        if image_id in self._cache:
            return self._cache[image_id]
        path = self._folder / self._names[image_id]
        with open_picture(path) as picture:
            square = (self.size, self.size)
            image = np.asarray(to_rgb(picture).resize(square, Image.Resampling.BILINEAR))
        if len(self._cache) < self._capacity:
            self._cache[image_id] = image
        return image


def decode_mask(counts: str, height: int, width: int, size: int) -> NDArray[np.bool_]:
    """COCO compressed RLE to bool (size, size), nearest neighbour as the published code does."""
    mask = coco_mask.decode({"size": [height, width], "counts": counts.encode("ascii")})
    return np.asarray(Image.fromarray(mask).resize((size, size), Image.Resampling.NEAREST)) > 0


def _encode(
    tokenizer: Tokenizer, texts: ExtensionArray, max_tokens: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens of all expressions: ids int32 and attention mask bool (len(texts),max_tokens).

    A training holds them in memory, so they are encoded in parts and have small dtypes.
    """
    starts = range(0, len(texts), TEXTS_AT_ONCE) or [0]  # without texts, one empty part
    parts = [tokenizer.encode(list(texts[at : at + TEXTS_AT_ONCE]), max_tokens) for at in starts]
    return torch.cat([ids.int() for ids, _ in parts]), torch.cat([mask.bool() for _, mask in parts])


class ExpressionDataset(Dataset[B], ABC, Generic[B]):
    """One sample per expression (``sentences='all'``) or per reference (``'one'``, random).

    Indexed by ``(place, index)``; with ``seed``, ``place`` in the stream seeds every random choice
    of the sample.

    Args:
        refs: the references, rows of ``tables.refs``.
        tables: the prepared tables of the data set.
        images: the images at the model's size.
        tokenizer: of the model's text encoder.
        max_tokens: longer expressions are truncated.
        text: the column of the expressions: ``sentences`` (normalised) or ``raw``.
        sentences: ``all`` or ``one``.
        seed: of the random choices.
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
    ) -> None:
        groups = refs[text].astype(pd.ArrowDtype(pa.list_(pa.string())))
        counts = groups.list.len().to_numpy(dtype=np.int64)
        self.ref_of = np.repeat(np.arange(len(refs)), counts)
        self._first = np.concatenate([[0], np.cumsum(counts)])
        self.sentence_of = np.arange(self._first[-1]) - self._first[self.ref_of]
        self.texts = groups.list.flatten().array
        self.input_ids, self.attention_mask = _encode(tokenizer, self.texts, max_tokens)
        self.refs = refs
        self._sizes = tables.images.loc[refs["image_id"], ["height", "width"]].to_numpy()
        self._image_ids, self._ref_ids = refs["image_id"].to_numpy(), refs["ref_id"].to_numpy()
        self._counts = refs["mask"].array
        self.images, self.sentences, self.seed = images, sentences, seed
        self.mask_of = functools.lru_cache(MASK_CACHE_BYTES // images.size**2)(self._mask_of)
        # The samples of an evaluation are grouped by image.
        self._pixels_of = functools.lru_cache(1)(lambda image: normalise(self.images[image]))

    def __len__(self) -> int:
        return len(self.refs) if self.sentences == "one" else len(self.texts)

    @property
    def image_ids(self) -> NDArray[np.int64]:
        """The image of every sample (len(self),)."""
        ids: NDArray[np.int64] = self._image_ids
        return ids if self.sentences == "one" else ids[self.ref_of]

    def __getitem__(self, item: int | tuple[int, int]) -> B:
        """A batch of one sample."""
        place, index = item if isinstance(item, tuple) else (item, item)
        rng = np.random.default_rng([self.seed, place])
        if self.sentences == "one":
            index = int(rng.integers(self._first[index], self._first[index + 1]))
        return self._sample(index, rng)

    @abstractmethod
    def _sample(self, index: int, rng: np.random.Generator) -> B:
        """The sample of expression ``index``, with random choices from ``rng``."""

    def _batch(self, index: int, image: torch.Tensor) -> Batch:
        """The part of a sample that both types of batch have; ``image`` is (3,S,S)."""
        return Batch(
            image=image[None],
            input_ids=self.input_ids[index][None].long(),
            attention_mask=self.attention_mask[index][None].long(),
            indices=[index],
            ref_ids=[int(self._ref_ids[self.ref_of[index]])],
        )

    def shuffled(self, seed: int = 0) -> Self:
        """The same samples, each with an expression of another reference (order drawn by seed).

        Raises:
            DataError: there are fewer than two references.
        """
        if len(self.refs) < 2:
            raise DataError("expressions of fewer than two references cannot be shuffled")
        order = np.random.default_rng(seed).permutation(len(self.refs))
        lender = np.empty_like(order)
        lender[order] = np.roll(order, 1)  # a cycle: no reference keeps its own expressions
        spans = np.diff(self._first)[lender[self.ref_of]]
        source = self._first[lender[self.ref_of]] + self.sentence_of % spans
        other = copy.copy(self)
        other.input_ids, other.attention_mask = self.input_ids[source], self.attention_mask[source]
        other.texts = self.texts.take(source)
        return other

    def _mask_of(self, ref: int) -> torch.Tensor:
        """The ground truth of a reference, bool (S,S)."""
        height, width = (int(v) for v in self._sizes[ref])
        mask = decode_mask(self._counts[ref], height, width, self.images.size)
        return torch.from_numpy(mask)


class LabelledDataset(ExpressionDataset[LabelledBatch]):
    """Samples with their ground truth, for supervised training and for evaluation."""

    def _sample(self, index: int, rng: np.random.Generator) -> LabelledBatch:
        ref = int(self.ref_of[index])
        batch = self._batch(index, self._pixels_of(int(self._image_ids[ref])))
        return LabelledBatch(**vars(batch), mask=self.mask_of(ref).long()[None])


class PartitionSource(Protocol):
    """Gives the proposals of an image by its id: ``ProposalCache`` or ``PromptedImages``."""

    def __getitem__(self, image_id: int, /) -> Partition | Promptable: ...


class UnlabelledDataset(ExpressionDataset[UnlabelledBatch]):
    """Samples with a weak and a strong view, the image's proposals and the hidden ground truth.

    Args:
        partitions: the proposals of every image, at any size, or images to be prompted.
        augment: settings of the views; None leaves both views as the image is.
        strong: False makes the strong view equal to the weak one.
        views: 1, or 2 for a second strong view of the same weak view.
        refs, tables, images, tokenizer, max_tokens, sentences, seed: as `ExpressionDataset`.
    """

    def __init__(
        self,
        refs: pd.DataFrame,
        tables: Tables,
        images: ImageStore,
        tokenizer: Tokenizer,
        max_tokens: int,
        *,
        partitions: PartitionSource,
        augment: Augment | None = None,
        strong: bool = True,
        views: int = 1,
        sentences: str = "all",
        seed: int = 0,
    ) -> None:
        super().__init__(
            refs, tables, images, tokenizer, max_tokens, sentences=sentences, seed=seed
        )
        self.partitions, self.augment, self.strong = partitions, augment, strong
        self.views = views
        # Two bytes per pixel for the atoms, about as much again for the members.
        self.partition_of = functools.lru_cache(PARTITION_CACHE_BYTES // (4 * images.size**2))(
            self._partition_of
        )

    def _sample(self, index: int, rng: np.random.Generator) -> UnlabelledBatch:
        ref = int(self.ref_of[index])
        image_id = int(self._image_ids[ref])
        image, strong, *second = self._views(image_id, rng)
        return UnlabelledBatch(
            **vars(self._batch(index, image)),
            strong=strong[None],
            partitions=[self.partition_of(image_id)],
            hidden_truth=self.mask_of(ref)[None],
            second=second[0][None] if second else None,
        )

    def _views(self, image_id: int, rng: np.random.Generator) -> list[torch.Tensor]:
        """The weak view and one or two strong views, float32 (3,S,S)."""
        if self.augment is None:
            return [self._pixels_of(image_id)] * (1 + self.views)
        weak = weak_view(self.images[image_id], self.augment, rng)
        found = [normalise(weak)]
        for _ in range(self.views):
            strong = normalise(strong_view(weak, self.augment, rng) if self.strong else weak)
            found.append(renormalise(strong) if self.augment.double_normalise else strong)
        return found

    def _partition_of(self, image_id: int) -> Partition | Promptable:
        return self.partitions[image_id].resize(self.images.size, self.images.size)
