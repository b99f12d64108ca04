"""Claim: a threshold trial on counts is at least 300x as fast as a loop over masks.

    python benchmarks/tune.py [--refs 500] [--repeats 5]

Both evaluate the same thresholds on the same pseudo-labels, and must give the same pixel counts.
The time of counting, and the trials per second with Optuna's SQLite storage, are also reported.
The proposals are those of the study if `dvc repro` has made them, else about 35 ellipses per image.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import common
import numpy as np

from semires.config.load import load_params
from semires.refine.partition import Partition
from semires.runs import layout
from semires.runs.layout import sqlite_url
from semires.tuning.counts import PseudoLabel, count
from semires.tuning.objective import Axis, labels_objective
from semires.tuning.refined import make_table, summarise, thresholds_of

TARGET = 300
TOGETHER = 20  # trials per measurement, because one trial is too short to time
SIZE = load_params().data.image_size


def ellipses(rng: np.random.Generator, number: int) -> Any:
    yy, xx = np.mgrid[:SIZE, :SIZE]
    centre = rng.uniform(0, SIZE, (2, number, 1, 1))
    radius = rng.uniform(SIZE / 16, SIZE / 4, (2, number, 1, 1))
    return ((yy - centre[0]) / radius[0]) ** 2 + ((xx - centre[1]) / radius[1]) ** 2 <= 1


def proposals(refs: int) -> dict[int, Any]:
    """Return the partitions of the images of `refs` references, three references per image."""
    folder = layout.proposals("refscenes", load_params().proposals.source)
    images = -(-refs // 3)
    if (folder / "manifest.json").exists():
        from semires.data.tables import Tables
        from semires.proposals.cache import ProposalCache

        cache, tables = ProposalCache(folder), Tables.load("refscenes")
        ids = list(dict.fromkeys(tables.part("val")["image_id"]))[:images]
        return {int(i): cache[int(i)].resize(SIZE, SIZE) for i in ids}
    rng = np.random.default_rng(0)
    return {i: Partition.from_masks(ellipses(rng, 35)) for i in range(images)}


def pseudo_labels(partitions: dict[int, Any], refs: int) -> Iterator[PseudoLabel]:
    """Yield pseudo-labels. The truth is a proposal; the label is a shifted copy with noise."""
    rng = np.random.default_rng(1)
    ids = list(partitions)
    for ref in range(refs):
        image = ids[ref % len(ids)]
        masks = partitions[image].masks()
        truth = masks[rng.integers(len(masks))] if len(masks) else ellipses(rng, 1)[0]
        label = np.roll(truth, rng.integers(-4, 5, 2), (0, 1)) & (rng.random(truth.shape) < 0.9)
        yield PseudoLabel(ref, image, 0, label, truth)


def plain(
    strategy: str, thresholds: dict[str, float], labels: list[PseudoLabel], masks: dict[int, Any]
) -> tuple[list[int], list[int]]:
    """Refine each pseudo-label by a loop over the masks of its image, then count pixels."""
    intersections, unions = [], []
    for item in labels:
        c, refined = item.label, None
        best = thresholds.get("threshold", 0.0)
        for m in masks[item.image_id]:
            inter = int((m & c).sum())
            if strategy == "iom":
                union = int((m | c).sum())
                if union and inter / union > best:
                    best, refined = inter / union, m
                continue
            under = inter / (c.sum() + 1e-9) > thresholds.get("threshold_u", 2)
            over = inter and inter / m.sum() > thresholds.get("threshold_o", 2)
            if under or over:
                refined = m if refined is None else refined | m
        label = c if refined is None else refined
        intersections.append(int((label & item.truth).sum()))
        unions.append(int((label | item.truth).sum()))
    return intersections, unions


def with_optuna(table: Any, strategy: str, trials: int) -> float:
    """Return the trials per second of a search with its SQLite file, sampler and locks."""
    import optuna

    from semires.tuning import study as studies

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    axes = {name: Axis(0, 1, 0.7) for name in thresholds_of(strategy)}
    first = (dict.fromkeys(axes, 0.7),)
    objective = labels_objective(axes, table, {})
    with tempfile.TemporaryDirectory() as folder:
        url = sqlite_url(Path(folder) / "study.db")
        search = studies.Search(f"benchmark-{strategy}", axes, "tpe", 0, trials, url, first)
        study = studies.open_study(search)
        studies.run_in_memory(study, replace(search, total=20), objective)  # imports
        started = time.perf_counter()
        studies.run_in_memory(study, search, objective)
        return (trials - 20) / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--refs", type=int, default=500)
    parser.add_argument("--trials", type=int, default=220)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    partitions = proposals(options.refs)
    labels = list(pseudo_labels(partitions, options.refs))
    masks = {i: list(p.masks()) for i, p in partitions.items()}
    started = time.perf_counter()
    counts = count(labels, partitions)
    print(f"{len(labels)} references, {SIZE} px, {np.mean([len(m) for m in masks.values()]):.0f} "
          f"proposals an image; counted in {time.perf_counter() - started:.2f} s")  # fmt: skip
    for strategy in ("iom", "cpi", "cpi-u", "cpi-o"):
        names = thresholds_of(strategy)
        thresholds = dict.fromkeys(names, 0.6)
        table = make_table(counts, strategy)
        outcome = table.outcome(thresholds)
        found = outcome.intersection.tolist(), outcome.union.tolist()
        assert found == plain(strategy, thresholds, labels, masks), f"{strategy}: counts differ"

        def loop(strategy: str = strategy, at: dict[str, float] = thresholds) -> None:
            plain(strategy, at, labels, masks)

        def trials(table: Any = table, at: dict[str, float] = thresholds) -> None:
            for _ in range(TOGETHER):
                summarise(table.outcome(at), table.labels)

        times = common.in_turn({"plain": loop, "ours": trials}, options.repeats)
        times["ours"] = [seconds / TOGETHER for seconds in times["ours"]]
        rate = with_optuna(table, strategy, options.trials)
        common.verdict(
            f"a threshold trial, {strategy}",
            times.ratio(),
            TARGET,
            f"per-mask loop {times.ms('plain'):.1f} ms, counts "
            f"{times.ms('ours'):.3f} ms, equal counts; limit: with Optuna's storage "
            f"{rate:.0f} trials/s",
        )


if __name__ == "__main__":
    main()
