"""Counts of the labelled images, for a search that does not use val's ground truth.

The labelled images are divided into folds. The pseudo-labels of a fold come from a burn-in teacher
that was trained on the other folds, because a teacher that has seen an image labels it too well.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from semires.config.schema import Params
from semires.errors import DataError
from semires.files import fingerprint
from semires.models.weights import load_weights
from semires.proposals.cache import open_proposals
from semires.runs.key import RunKey
from semires.training.burn_in import SECTIONS, train_burn_in
from semires.training.context import RunContext
from semires.training.record import save_model
from semires.tuning.counts import (
    Counts,
    PseudoLabel,
    cached,
    count,
    counts_of,
    counts_path,
    halves,
    pseudo_labels,
    sources,
)


def parts_of(params: Params, key: RunKey) -> dict[str, Counts]:
    """The labels that trials use (``seen``) and those that they do not (``held_out``).

    With ``tune.on: val`` these are two halves of val. With ``labelled`` they are the labelled
    images and all of val.
    """
    val = counts_of(params, key)
    if params.tune.on == "labelled":
        return {"seen": labelled_counts(params, key), "held_out": val}
    seen, held_out = halves(val.image_ids, params.tune.seed)
    return {"seen": val.take(seen), "held_out": val.take(held_out)}


def labelled_counts(params: Params, key: RunKey) -> Counts:
    """The counts of the labelled references, from the cache or made by the teachers of all folds.

    An interrupted call keeps the teachers that are finished and the state of the unfinished one.

    Raises:
        DataError: fewer than two images are labelled.
        Interrupted: a signal arrived; the next call continues.
    """
    open_proposals(params, key)  # complete and of these parameters, or an error
    made_from = fingerprint(sources(params, key))
    path = counts_path(params, key, "folds", made_from)

    def make() -> Counts:
        partitions = RunContext(params, key, SECTIONS).partitions
        return count(_labels(params, key, path.parent), partitions)

    counts = cached(path, made_from, make)
    for weights in path.parent.glob("fold*.safetensors*"):
        weights.unlink()
    return counts


def folds(images: list[int], number: int, seed: int) -> list[tuple[int, ...]]:
    """Divide images at random into ``number`` folds whose sizes differ by one at most.

    There are fewer folds if there are fewer images.

    Raises:
        DataError: there are fewer than two images.
    """
    if len(images) < 2:
        raise DataError(
            "tune.on: labelled needs two labelled images or more, so that a teacher can be trained "
            "on some and label the others; label more, or search on val"
        )
    drawn = np.random.default_rng(seed).permutation(np.unique(images))
    parts = np.array_split(drawn, min(number, len(drawn)))
    return [tuple(sorted(map(int, part))) for part in parts]


def _labels(params: Params, key: RunKey, folder: Path) -> Iterator[PseudoLabel]:
    """The pseudo-labels of all labelled references, each from the teacher without its fold."""
    burn_in = key.burn_in
    # Val must not choose a teacher's best step: one evaluation, after the last one.
    settings = params.burn_in.model_copy(update={"evaluations": 1})
    params = params.model_copy(update={"burn_in": settings})
    images = RunContext(params, burn_in, SECTIONS).labelled_refs["image_id"].unique().tolist()
    for number, fold in enumerate(folds(images, params.tune.folds, params.tune.seed)):
        rest = tuple(sorted(set(images) - set(fold)))
        context = RunContext(params, burn_in, SECTIONS, labelled_images=rest)
        teacher = context.build_model()
        weights = folder / f"fold{number}.safetensors"
        with context.lock():
            if not weights.is_file():
                print(f"{key.name}: teacher of fold {number + 1}, on {len(rest)} labelled images")
                save_model(train_burn_in(context, lambda *_: None).load_best(), weights)
                shutil.rmtree(context.work, ignore_errors=True)
            load_weights(teacher, weights)
        refs = context.tables.part("train")
        chosen = refs[refs["image_id"].isin(fold)].reset_index(drop=True)
        yield from pseudo_labels(context, teacher, chosen)
