"""Stage `propose`: one partition of proposals per image of a data set (paper 3.2).

Input: ``data/prepared/D/images.parquet``, the image files and a proposal source. Output:
``proposals/D/SOURCE`` with Parquet shards, ``manifest.json`` and ``quality.json``. After an
interruption, finished shards are reused from the work folder. The output does not depend on the
number of processes, ranks, machines or interruptions.

Machines that share nothing but a URL each make a range of shards (:func:`propose_shards`). One of
them then collects all shards (:func:`merge_shards`).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semires import files
from semires.config.schema import Params
from semires.config.sources import SAM_KINDS, HubSource
from semires.data.pictures import read_image
from semires.data.tables import read_table
from semires.errors import ConfigError, CorruptCacheError, DataError, SemiresError
from semires.models.sources import shipped
from semires.process import lock
from semires.progress import progress
from semires.proposals.cache import FORMAT, ProposalCache, Row, write_shard
from semires.proposals.checkpoint import checkpoint_sha256
from semires.proposals.prompted import PromptedImages
from semires.proposals.quality import proposal_quality
from semires.proposals.remote import RemoteShards
from semires.proposals.workers import ImageJob, Recipe, process_count, propose_rows
from semires.runs import layout

POLL_S = 0.5


@dataclass(frozen=True)
class Shard:
    """One file of the output with its images, in the order of the table."""

    index: int
    tasks: list[ImageJob]

    @property
    def file(self) -> str:
        """The name of the shard's file."""
        return f"shard-{self.index:05d}.parquet"

    @property
    def record(self) -> str:
        """The name of its record, which is written last."""
        return f"shard-{self.index:05d}.json"


@dataclass(frozen=True)
class Job:
    """The inputs of one call of :func:`propose`, and where unfinished work is.

    ``work`` is a local folder; ``remote`` the place of finished shards, if it is elsewhere.
    """

    dataset: str
    source: str
    recipe: Recipe
    shards: list[Shard]
    fingerprint: str
    work: Path
    remote: RemoteShards | None
    processes: int

    @property
    def what(self) -> str:
        """The name of the output, for messages."""
        return f"the proposals of {self.dataset} by {self.source}"


def propose(params: Params, dataset: str, source: str) -> None:
    """Make the proposals of a data set with one proposal source.

    Under torchrun the shards are distributed over the ranks, and rank 0 publishes them. After an
    interruption, finished shards are reused.

    Args:
        params: all parameters.
        dataset: a key of ``datasets``.
        source: a key of ``proposals.sources``.

    Raises:
        SemiresError: the input is invalid, or another process makes the same proposals.
    """
    job = _plan(params, dataset, source)
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    what = job.what
    if _is_published(job):
        print(f"propose: {what} exist already and were made from the same inputs")
        return
    if rank == 0 and layout.proposals(dataset, source).exists():
        print(f"propose: {what} are damaged or were made from other inputs; making them again")
    with lock(job.work / f"rank{rank}.lock", what):
        _make(job, job.shards[rank::world], shown=rank == 0)
        if rank != 0:
            return
        while any(not _is_finished(job, shard) for shard in job.shards):
            time.sleep(POLL_S)
        _publish(job)
    shutil.rmtree(job.work, ignore_errors=True)


def propose_shards(
    params: Params, dataset: str, source: str, first: int, end: int, output: str | None
) -> None:
    """Make the shards ``first`` to ``end - 1`` of a data set's proposals, and publish nothing.

    No coordinator is needed. Processes with other ranges may run at the same time, on any machine.
    After an interruption, the same call makes the shards that are missing.

    Args:
        params: all parameters, the same in all processes.
        dataset: a key of ``datasets``. All image files must be visible, for their names and sizes.
        source: a key of ``proposals.sources``.
        first: number of the first shard.
        end: number after the last shard; a number beyond the last shard means all.
        output: a URL of fsspec for the finished shards; None is the work folder, for machines that
            share a file system.

    Raises:
        ConfigError: there is no shard in the range.
        SemiresError: the input is invalid, or the output cannot be written.
    """
    job = _plan(params, dataset, source, output)
    mine, count = job.shards[first:end], len(job.shards)
    if not 0 <= first < end or not mine:
        raise ConfigError(f"--shards: {first}:{end} has none of the {count} shards 0:{count}")
    with lock(job.work / f"shards{first}-{end}.lock", job.what):
        _make(job, mine)
    print(f"propose: shards {first}:{first + len(mine)} of {count} are finished")


def merge_shards(params: Params, dataset: str, source: str, output: str | None) -> None:
    """Check the shards of all processes and publish ``proposals/D/SOURCE``.

    The result has the same bytes as that of :func:`propose`. The arguments are those of
    :func:`propose_shards`.

    Raises:
        SemiresError: shards are missing; the text lists them.
        CorruptCacheError: a shard is damaged.
    """
    job = _plan(params, dataset, source, output)
    with lock(job.work / "merge.lock", job.what):
        there = job.remote.finished() if job.remote else set()
        elsewhere = [shard for shard in job.shards if not _is_finished(job, shard, mend=True)]
        absent = [shard for shard in elsewhere if shard.record not in there]
        if absent:
            numbers = " ".join(f"{s.index}:{s.index + 1}" for s in absent[:8])
            more = " ..." if len(absent) > 8 else ""
            raise SemiresError(
                f"{job.what}: {len(absent)} of {len(job.shards)} shards are missing; make them "
                f"with `semires propose --shards A:B`: {numbers}{more}"
            )
        if job.remote:
            for shard in elsewhere:
                job.remote.get(job.work / shard.file, job.work / shard.record)
        _publish(job)
    shutil.rmtree(job.work, ignore_errors=True)


def _plan(params: Params, dataset: str, source: str, output: str | None = None) -> Job:
    if (owner := params.owner(dataset)) != dataset:
        raise ConfigError(
            f"datasets.{dataset}.images_of: {dataset} uses the proposals of {owner}; run `semires "
            f"propose --dataset {owner}`"
        )
    settings = params.proposals.sources[source]
    images = Path(params.datasets[dataset].images)
    tasks = _image_jobs(dataset, images)
    per_shard = params.proposals.shard_images
    shards = [
        Shard(i, tasks[first : first + per_shard])
        for i, first in enumerate(range(0, len(tasks), per_shard))
    ]
    fingerprint = _fingerprint(settings, tasks, images, per_shard)
    work = layout.work(f"propose-{dataset}-{source}", fingerprint)
    return Job(
        dataset=dataset,
        source=source,
        recipe=Recipe(settings, images),
        shards=shards,
        fingerprint=fingerprint,
        work=work,
        remote=None if output is None else RemoteShards(output, work.name),
        processes=process_count(params, settings),
    )


def _image_jobs(dataset: str, folder: Path) -> list[ImageJob]:
    table = read_table(dataset, "images", ["image_id", "file_name", "height", "width"])
    tasks = [
        ImageJob(int(row.image_id), str(row.file_name), int(row.height), int(row.width))
        for row in table.itertuples(index=False)
    ]
    missing = [task.file_name for task in tasks if not (folder / task.file_name).is_file()]
    if missing:
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise DataError(f"{folder}: {len(missing)} of {len(tasks)} images are missing: {shown}")
    return tasks


def _fingerprint(settings: Any, tasks: list[ImageJob], folder: Path, per_shard: int) -> str:
    """Return the fingerprint of all inputs. Image files are identified by name and size."""
    made_from: dict[str, Any] = {
        "format": FORMAT,
        "source": settings.model_dump(),
        "shard_images": per_shard,
        "images": [
            [t.image_id, t.file_name, t.height, t.width, (folder / t.file_name).stat().st_size]
            for t in tasks
        ],
    }
    if settings.kind in SAM_KINDS:
        made_from["sam"] = checkpoint_sha256()
    if isinstance(settings, HubSource) and (model := shipped(settings.model)).is_dir():
        made_from["model"] = files.sha256_tree(model)
    return files.fingerprint(made_from)


def _make(job: Job, mine: list[Shard], shown: bool = True) -> None:
    """Make the unfinished ones of ``mine``; each is written as soon as its last image is done."""
    if job.remote:
        there = job.remote.finished()
        todo = [shard for shard in mine if shard.record not in there]
    else:
        todo = [shard for shard in mine if not _is_finished(job, shard, mend=True)]
    if len(todo) < len(mine):
        print(f"propose: resuming from shard {len(mine) - len(todo)} of {len(mine)}")
    tasks = [task for shard in todo for task in shard.tasks]
    if not tasks:
        return
    total = sum(len(shard.tasks) for shard in mine)
    rows = propose_rows(job.recipe, tasks, job.processes)
    with (
        contextlib.closing(rows),
        progress(
            name=f"propose {job.dataset} {job.source}",
            total=total,
            unit="image",
            initial=total - len(tasks),
            shown=shown,
        ) as bar,
    ):
        for shard in todo:
            done: list[Row] = []
            for _ in shard.tasks:
                done.append(next(rows))
                bar.update()
            _write(job, shard, done)
            if job.remote:
                job.remote.put(job.work / shard.file, job.work / shard.record)


def _write(job: Job, shard: Shard, rows: list[Row]) -> None:
    sha256 = write_shard(job.work / shard.file, rows)
    record = {
        "file": shard.file,
        "first": sum(len(s.tasks) for s in job.shards[: shard.index]),
        "n": len(rows),
        "sha256": sha256,
        "n_proposals": sum(row.n for row in rows),
    }
    files.write_json(job.work / shard.record, record, seal=True)


def _is_published(job: Job) -> bool:
    """Return whether the output exists, is undamaged and was made from the same inputs."""
    folder = layout.proposals(job.dataset, job.source)
    try:
        manifest = files.read_json(folder / "manifest.json")
        return (folder / "quality.json").is_file() and (
            manifest["fingerprint"] == job.fingerprint
            and all(
                files.sha256_file(folder / s["file"]) == s["sha256"] for s in manifest["shards"]
            )
        )
    except (SemiresError, OSError, KeyError, TypeError):
        return False


def _is_finished(job: Job, shard: Shard, mend: bool = False) -> bool:
    """Return whether the work folder has the complete shard; ``mend`` renames a damaged one."""
    path, record = job.work / shard.file, job.work / shard.record
    if not (path.is_file() and record.is_file()):
        return False
    try:
        if files.read_json(record)["sha256"] == files.sha256_file(path):
            return True
    except (CorruptCacheError, KeyError, TypeError):
        pass
    if mend:
        aside = path.with_suffix(".damaged")
        os.replace(path, aside)
        record.unlink()
        print(f"{path}: damaged since it was written; moved to {aside.name}; making it again")
    return False


def _publish(job: Job) -> None:
    """Write ``proposals/D/SOURCE`` atomically: the finished shards, manifest and quality."""
    records = [files.read_json(job.work / shard.record) for shard in job.shards]
    n_images = sum(record["n"] for record in records)
    n_proposals = sum(record.pop("n_proposals") for record in records)
    manifest = {
        "format": FORMAT,
        "fingerprint": job.fingerprint,
        "dataset": job.dataset,
        "source": job.source,
        "params": job.recipe.settings.model_dump(),
        "n_images": n_images,
        "proposals_per_image": n_proposals / max(n_images, 1),
        "shards": records,
    }
    with files.atomic_folder(layout.proposals(job.dataset, job.source)) as folder:
        for record in records:
            with files.atomic_path(folder / record["file"]) as path:
                shutil.copyfile(job.work / record["file"], path)
        files.write_json(folder / "manifest.json", manifest, seal=True)
        quality = _quality(job, ProposalCache(folder))
        files.write_json(folder / "quality.json", quality, seal=True)
    line = f"propose {job.dataset} {job.source}: {n_images} images, "
    line += f"{manifest['proposals_per_image']:.1f} proposals each"
    if val := quality.get("val"):
        line += f"; val: best IoU {val['best_iou']:.3f}, {100 * val['over_half']:.1f} % over 0.5"
    print(line)


def _quality(job: Job, cache: ProposalCache) -> dict[str, dict[str, float]]:
    refs = read_table(job.dataset, "refs", ["image_id", "split", "mask"])
    refs = refs[refs["split"] == "val"]
    if not len(refs):
        return {}
    settings = job.recipe.settings
    prompted = settings.kind == "sam_prompts"
    images = PromptedImages(_Originals(job), settings) if prompted else cache
    return {"val": proposal_quality(images, refs)}


class _Originals:
    """The pixels of an image by its id, uint8 (H,W,3), at the size of its file."""

    def __init__(self, job: Job) -> None:
        self._files = {t.image_id: t.file_name for shard in job.shards for t in shard.tasks}
        self._folder = job.recipe.images

    def __getitem__(self, image_id: int) -> NDArray[np.uint8]:
        return read_image(self._folder / self._files[image_id])
