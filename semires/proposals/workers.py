"""Make the proposals of images in parallel processes, in order, with constant memory.

A worker reads its images itself and returns compressed partitions. The number of images in progress
is bounded. Each worker uses one thread, so the output does not depend on the number of workers or
cores.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from semires.config.schema import Params
from semires.data.pictures import read_image
from semires.errors import DataError, SemiresError
from semires.process import worker_pool
from semires.proposals import base
from semires.proposals.cache import Row
from semires.refine.partition import Partition

AHEAD = 32  # images per process that are in progress or wait to be written


@dataclass(frozen=True)
class ImageJob:
    """One image to segment, with its size in pixels from the data set's table."""

    image_id: int
    file_name: str
    height: int
    width: int


@dataclass(frozen=True)
class Recipe:
    """The input of all workers: the source's settings, and the folder of the images."""

    settings: Any
    images: Path

    @functools.cached_property
    def source(self) -> base.ProposalSource:
        """The proposal source, built once per process."""
        return base.build_source(self.settings)

    def row(self, job: ImageJob) -> Row:
        """Segment one image.

        Raises:
            SemiresError: the image is invalid, or the source cannot be built.
        """
        path = self.images / job.file_name
        image = read_image(path)
        if image.shape[:2] != (job.height, job.width):
            raise DataError(
                f"{path}: is {image.shape[1]}x{image.shape[0]} pixels, "
                f"but the annotation says {job.width}x{job.height}"
            )
        found = self.source.propose(image)
        partition = Partition.from_masks(found.masks).to_bytes()
        return Row(
            job.image_id, job.height, job.width, len(found), partition,
            found.predicted_iou, found.stability,
        )  # fmt: skip


def process_count(params: Params, settings: Any) -> int:
    """Return the number of worker processes.

    This is ``runtime.processes`` if set, else 1 with a GPU, else the number of cores per rank.
    """
    if params.runtime.processes is not None:
        return params.runtime.processes
    if settings.kind != "felzenszwalb" and torch.cuda.is_available():
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, (cores or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def propose_rows(
    recipe: Recipe, jobs: list[ImageJob], processes: int
) -> Generator[Row, None, None]:
    """Yield the `Row` of every image, in order.

    Raises:
        SemiresError: an image is invalid, or a worker was killed.
    """
    if processes == 1:
        with _one_thread():
            yield from map(recipe.row, jobs)
        return
    waiting: deque[Future[Row]] = deque()
    try:
        with worker_pool(min(processes, len(jobs)), functools.partial(_start, recipe)) as pool:
            for job in jobs:
                waiting.append(pool.submit(_row, job))
                if len(waiting) >= AHEAD * processes:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise SemiresError(
            "a process making proposals was killed, perhaps because memory ran out; finished "
            "shards are kept: lower runtime.processes and run the same command again"
        ) from error


_recipe: Recipe  # of a worker


def _start(recipe: Recipe) -> None:
    """Set up a worker."""
    global _recipe
    _recipe = recipe
    torch.set_num_threads(1)


def _row(job: ImageJob) -> Row:
    return _recipe.row(job)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
