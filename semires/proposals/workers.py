"""Images to proposal rows in parallel processes, in order, with flat memory.

A worker reads its images itself and returns compressed partitions; at most a few chunks are on
their way at any time. Each works with one thread, so that neither their number nor the machine's
changes a bit of the output.
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

CHUNK = 8  # images per task


@dataclass(frozen=True)
class Task:
    """One image to segment; size in pixels as the data set's table has it."""

    image_id: int
    file_name: str
    height: int
    width: int


@dataclass(frozen=True)
class Recipe:
    """What every worker needs: the source's settings, where SAM and the images lie."""

    settings: Any
    sam_folder: Path
    images: Path


_source: Any = None  # this process's source, built once
_recipe: Recipe | None = None


def process_count(params: Params, settings: Any) -> int:
    """Worker processes: as the parameters say, else one per core, or one with a GPU."""
    if params.runtime.processes is not None:
        return params.runtime.processes
    if _uses_torch(settings):
        import torch

        if torch.cuda.is_available():
            return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, (cores or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def propose_rows(recipe: Recipe, tasks: list[Task], processes: int) -> Generator[Any, None, None]:
    """`Row` of every task, in order.

    Raises:
        SemiresError: an image is bad, or a worker was killed.
    """
    chunks = [tasks[first : first + CHUNK] for first in range(0, len(tasks), CHUNK)]
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
                "a process making proposals was killed, perhaps for want of memory; finished "
                "shards are kept: lower runtime.processes and run the same command again"
            ) from error
        finally:
            _stop(pool)


def _in_order(pool: ProcessPoolExecutor, chunks: list[list[Task]], ahead: int) -> Iterator[Any]:
    waiting: deque[Future[list[Any]]] = deque()
    for chunk in chunks:
        waiting.append(pool.submit(_rows, chunk))
        if len(waiting) >= ahead:
            yield from waiting.popleft().result()
    while waiting:
        yield from waiting.popleft().result()


def _stop(pool: ProcessPoolExecutor) -> None:
    # After an interrupt nothing that is still running matters: a chunk may take minutes.
    running = list((getattr(pool, "_processes", None) or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for process in running:
        process.terminate()
    for process in running:
        process.join(10)


def _start(recipe: Recipe) -> None:
    """Set up a worker: Ctrl-C is its parent's business, and it dies with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    if _uses_torch(recipe.settings):
        import torch

        torch.set_num_threads(1)
    global _recipe, _source
    _recipe, _source = recipe, None


def _die_with_parent() -> None:
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


def _rows(tasks: list[Task]) -> list[Any]:
    from semires.data.pictures import read_image
    from semires.proposals.cache import Row
    from semires.refine.partition import Partition

    assert _recipe is not None
    if _source is None:  # here, not in the initialiser, whose errors only break the pool
        _prepare(_recipe)
    rows = []
    for task in tasks:
        path = _recipe.images / task.file_name
        image = read_image(path)
        if image.shape[:2] != (task.height, task.width):
            raise DataError(
                f"{path}: is {image.shape[1]}x{image.shape[0]} pixels, "
                f"the annotation says {task.width}x{task.height}"
            )
        found = _source.propose(image)
        partition = Partition.from_masks(found.masks).to_bytes()
        rows.append(
            Row(task.image_id, task.height, task.width, len(found), partition,
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
