"""Searches on made-up pseudo-labels: real trials and real output folders, without a teacher."""

from __future__ import annotations

from typing import Any

import numpy as np
import optuna

from semires.config.resolve import resolve
from semires.config.schema import Params
from semires.refine.partition import Partition
from semires.runs.key import RunKey
from semires.tuning.counts import PseudoLabel, count, halves
from semires.tuning.objective import labels_objective, space, suggest
from semires.tuning.publish import publish
from semires.tuning.refined import make_table
from semires.tuning.results import Result

SIZE = 24


def ellipses(
    rng: np.random.Generator, number: int, size: int = SIZE, radii: tuple[float, float] = (2, 9)
) -> Any:
    """Masks (number, size, size) of ellipses with half-axes in the range ``radii``."""
    yy, xx = np.mgrid[:size, :size]
    shape = (2, number, 1, 1)
    centre, radius = rng.uniform(0, size, shape), rng.uniform(*radii, shape)
    return ((yy - centre[0]) / radius[0]) ** 2 + ((xx - centre[1]) / radius[1]) ** 2 <= 1


def pseudo_labels(
    seed: int = 0, images: int = 30, refs: int = 2
) -> tuple[list[PseudoLabel], dict[int, Partition]]:
    """Labels that are shifted and thinned proposals, and the partitions of their images."""
    rng = np.random.default_rng(seed)
    partitions, labels = {}, []
    for image in range(images):
        masks = ellipses(rng, 8)
        partitions[image] = Partition.from_masks(masks)
        for ref in range(refs):
            truth = masks[rng.integers(8)]
            label = np.roll(truth, rng.integers(-3, 4, 2), (0, 1))
            label = label & (rng.random((SIZE, SIZE)) < 0.8)
            labels.append(PseudoLabel(image * refs + ref, image, 0, label, truth))
    return labels, partitions


def write_search(params: Params, key: RunKey, seed: int = 0, trials: int = 8) -> Result:
    """Run a search on made-up labels of this seed and write its folder and tuned file."""
    params = resolve(params, key, tuned=False)
    counts = count(*pseudo_labels(seed))
    parts = dict(zip(("seen", "held_out"), halves(counts.image_ids, 0), strict=True))
    taken = {name: counts.take(chosen) for name, chosen in parts.items()}
    if params.tune.on == "labelled":
        taken = {"seen": count(*pseudo_labels(seed + 100)), "held_out": counts}
    strategy = params.refine[key.method].strategy
    tables = {name: make_table(part, strategy) for name, part in taken.items()}
    axes = space(params, key)
    share = params.tune.objective == "labels-and-share"
    objective = labels_objective(axes, tables["seen"], {}, share=share)
    if params.tune.objective == "training":
        objective = lambda trial: 50 + sum(suggest(trial, axes).values())  # noqa: E731
    study = optuna.create_study(
        directions=["maximize"] * (1 + share), sampler=optuna.samplers.RandomSampler(seed=seed)
    )
    study.enqueue_trial({name: axis.given for name, axis in axes.items()})
    study.optimize(objective, n_trials=trials)
    names = ("fake", "sqlite:///fake.db", key)
    result = Result(params, key, axes, taken, tables, study.trials, *names)
    publish(result, report=False)
    return result
