"""The order of training samples: an endless, seeded sequence, resumable at any step.

A *stream* is a sequence of sample indices, epoch after epoch; each epoch is a permutation. A batch
is a consecutive part of the stream. A resumed run needs only its position in the stream, and every
random choice of a sample derives from that position. Results do not depend on the number of loader
processes or on interruptions.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from semires.errors import DataError
from semires.samples.batch import B, collate
from semires.samples.dataset import ExpressionDataset


class Stream:
    """Batches ``first_step .. steps - 1`` of the stream, as lists of ``(place, index)``.

    Step ``k`` takes ``world * batch`` consecutive places, and rank ``r`` takes the ``r``-th part of
    them. Several processes together use the same samples as one process with the larger batch.

    Args:
        dataset: gives the length and the seed of the order.
        batch: samples per batch and process.
        steps: end of the range of batches.
        first_step: start of the range of batches.
        rank: of this process.
        world: number of processes.

    Raises:
        DataError: the dataset is empty.
    """

    def __init__(
        self,
        dataset: ExpressionDataset[B],
        batch: int,
        steps: int,
        first_step: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if len(dataset) == 0:
            raise DataError("a part of the train split contains no expressions")
        self.length, self.seed, self.batch = len(dataset), dataset.seed, batch
        self.first_step, self.steps, self.rank, self.world = first_step, steps, rank, world
        self._order = functools.lru_cache(maxsize=2)(self._permutation)

    def _permutation(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng([self.seed, epoch]).permutation(self.length)

    def __len__(self) -> int:
        return self.steps - self.first_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in range(self.first_step, self.steps):
            start = (step * self.world + self.rank) * self.batch
            yield [
                (place, int(self._order(place // self.length)[place % self.length]))
                for place in range(start, start + self.batch)
            ]


def stream_loader(dataset: ExpressionDataset[B], stream: Stream, workers: int) -> Iterator[B]:
    """Load the stream's batches, in order, in ``workers`` processes ahead of time."""
    loader: DataLoader[B] = DataLoader(
        dataset,
        batch_sampler=stream,
        num_workers=workers,
        collate_fn=collate,
        prefetch_factor=4 if workers else None,
        pin_memory=torch.cuda.is_available(),
    )
    return iter(loader)
