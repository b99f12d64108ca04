"""Make the proposals of images in parallel processes, in order, with constant memory.

A worker reads its images itself and returns compressed partitions. The number of chunks in progress
is bounded. Each worker uses one thread, so the output does not depend on the number of workers or
cores.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semires.config.schema import Params
from semires.errors import DataError, SemiresError

CHUNK = 8  # images per task of a worker


@dataclass(frozen=True)
class ImageJob:
    """One image to segment, with its size in pixels from the data set's table."""

    image_id: int
    file_name: str
    height: int
    width: int


@dataclass(frozen=True)
class Recipe:
    """The input of all workers: the source's settings, and the folders of SAM and the images."""

    settings: Any
    sam_folder: Path
    images: Path


_source: Any = None  # the proposal source of this process, built once
_recipe: Recipe | None = None


def process_count(params: Params, settings: Any) -> int:
    """Return the number of worker processes.

    This is ``runtime.processes`` if set, else 1 with a GPU, else the number of cores per rank.
    """
    if params.runtime.processes is not None:
        return params.runtime.processes
    if _uses_torch(settings):
        import torch

        if torch.cuda.is_available():
            return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, (cores or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def propose_rows(
    recipe: Recipe, jobs: list[ImageJob], processes: int
) -> Generator[Any, None, None]:
    """Yield the `Row` of every image, in order.

    Raises:
        SemiresError: an image is invalid, or a worker was killed.
    """
    chunks = [jobs[first : first + CHUNK] for first in range(0, len(jobs), CHUNK)]
    if processes == 1 or len(chunks) < 2:
        with _one_thread(recipe.settings):
            _prepare(recipe)
            for chunk in chunks:
                yield from _rows(chunk)
        return
    context = multiprocessing.get_context("forkserver" if sys.platform != "win32" else "spawn")
    if hasattr(context, "set_forkserver_preload"):
        sam = "segment_anything" if _uses_torch(recipe.settings) else "semires.proposals.classical"
        context.set_forkserver_preload([sam, "semires.proposals.cache"])
    with _environment(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1"):
        pool = ProcessPoolExecutor(
            min(processes, len(chunks)), context, initializer=_start, initargs=(recipe,)
        )
        try:
            yield from _in_order(pool, chunks, ahead=4 * processes)
        except BrokenProcessPool as error:
            raise SemiresError(
                "a process making proposals was killed, perhaps because memory ran out; finished "
                "shards are kept: lower runtime.processes and run the same command again"
            ) from error
        finally:
            _stop(pool)


def _in_order(pool: ProcessPoolExecutor, chunks: list[list[ImageJob]], ahead: int) -> Iterator[Any]:
    waiting: deque[Future[list[Any]]] = deque()
    for chunk in chunks:
        waiting.append(pool.submit(_rows, chunk))
        if len(waiting) >= ahead:
            yield from waiting.popleft().result()
    while waiting:
        yield from waiting.popleft().result()


def _stop(pool: ProcessPoolExecutor) -> None:
    """Terminate the workers at once, because a running chunk may take minutes."""
    pool.shutdown(wait=False, cancel_futures=True)
    workers = multiprocessing.active_children()
    for worker in workers:
        worker.terminate()
    for worker in workers:
        worker.join(10)


def _start(recipe: Recipe) -> None:
    """Set up a worker. It ignores Ctrl-C, which its parent handles, and exits with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if _uses_torch(recipe.settings):
        import torch

        torch.set_num_threads(1)
    global _recipe, _source
    _recipe, _source = recipe, None


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _uses_torch(settings: Any) -> bool:
    return bool(settings.kind != "felzenszwalb")


def _prepare(recipe: Recipe) -> None:
    global _recipe, _source
    from semires.proposals.registry import build_source

    _recipe, _source = recipe, build_source(recipe.settings, recipe.sam_folder)


def _rows(jobs: list[ImageJob]) -> list[Any]:
    from semires.data.pictures import read_image
    from semires.proposals.cache import Row
    from semires.refine.partition import Partition

    assert _recipe is not None
    if _source is None:  # not in the initializer, because errors there only break the pool
        _prepare(_recipe)
    rows = []
    for job in jobs:
        path = _recipe.images / job.file_name
        image = read_image(path)
        if image.shape[:2] != (job.height, job.width):
            raise DataError(
                f"{path}: is {image.shape[1]}x{image.shape[0]} pixels, "
                f"but the annotation says {job.width}x{job.height}"
            )
        found = _source.propose(image)
        partition = Partition.from_masks(found.masks).to_bytes()
        rows.append(
            Row(job.image_id, job.height, job.width, len(found), partition,
                found.predicted_iou, found.stability)
        )  # fmt: skip
    return rows


@contextlib.contextmanager
def _one_thread(settings: Any) -> Iterator[None]:
    if not _uses_torch(settings):
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
