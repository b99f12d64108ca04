"""The order of training samples: an endless, seeded sequence, resumable at any step.

A *stream* is a sequence of sample indices, epoch after epoch, each epoch a permutation. A batch is
a stretch of the stream. A resumed run needs only its position in the stream, and every random
choice of a sample derives from that position. The number of loader processes and interruptions
change nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from semires.errors import DataError
from semires.samples.dataset import ExpressionDataset


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack tensors, keep partitions and indices as lists."""
    return {
        key: torch.stack([s[key] for s in samples])
        if isinstance(samples[0][key], torch.Tensor)
        else [s[key] for s in samples]
        for key in samples[0]
    }


class Stream:
    """Batches ``first_step .. steps - 1`` of the stream, as lists of ``(place, index)``.

    Step ``k`` takes ``world * batch`` consecutive places, rank ``r`` the ``r``-th part of them, so
    that several processes see together what one process with the larger batch sees.
    """

    def __init__(
        self,
        dataset: ExpressionDataset,
        batch: int,
        steps: int,
        first_step: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if len(dataset) == 0:
            raise DataError("a part of the train split has no expression to learn from")
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


def stream_loader(
    dataset: ExpressionDataset, stream: Stream, workers: int
) -> Iterator[dict[str, Any]]:
    """Load the stream's batches, in order, in ``workers`` processes ahead of time."""
    loader = DataLoader(
        dataset,
        batch_sampler=stream,
        num_workers=workers,
        collate_fn=collate,
        prefetch_factor=4 if workers else None,
        pin_memory=torch.cuda.is_available(),
    )
    return iter(loader)
