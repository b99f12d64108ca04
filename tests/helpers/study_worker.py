"""Runs one study in a process of its own: `study_worker.py URL TOTAL LOG [--slow]`."""

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np

from semires.refine.strategies import STRATEGIES
from semires.tuning import storage
from semires.tuning import study as studies
from semires.tuning.objective import Axis, suggest
from semires.tuning.refined import Labels, Reference, Table, summarise

AXES = {"threshold_u": Axis(0, 1, 0.7), "threshold_o": Axis(0, 1, 0.7)}


def make_table(refs: int = 60, atoms: int = 12) -> Table:
    """Labels of ``refs`` images, each with ``atoms`` proposals that do not overlap."""
    rng = np.random.default_rng(5)
    area = rng.integers(1, 50, (refs, atoms))
    truth = rng.binomial(area, rng.beta(0.3, 0.3, (refs, atoms)))
    share = np.clip(truth / area + rng.normal(0, 0.2, (refs, atoms)), 0.01, 1)
    label = rng.binomial(area, share)
    none = np.zeros(refs, int)
    overlap = np.minimum(label, truth).sum(1)
    labels = Labels(np.arange(refs) // 3, label.sum(1), truth.sum(1), overlap, none, none)
    members = np.eye(atoms)
    references = [
        Reference(members, *each, each[1].astype(float))
        for each in zip(area, label, truth, strict=True)
    ]
    return Table(labels, STRATEGIES["cpi"], references)


def make_search(url: str, total: int, sampler: str = "tpe"):
    first = ({"threshold_u": 0.7, "threshold_o": 0.7},)
    return studies.Search(f"demo-{sampler}", AXES, sampler, 0, total, url, first)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("total", type=int)
    parser.add_argument("log", type=Path)
    parser.add_argument("--slow", action="store_true")
    parser.add_argument("--sampler", default="tpe")
    options = parser.parse_args()
    table = make_table()

    def objective(trial) -> float:
        values = suggest(trial, AXES)
        with open(options.log, "a") as file:
            file.write(json.dumps([os.getpid(), trial.number, values]) + "\n")
        if options.slow:
            time.sleep(0.15)
        return summarise(table.outcome(values), table.labels)["oIoU"]

    storage.HEARTBEAT_S, storage.GRACE_S = 1, 2
    search = make_search(options.url, options.total, options.sampler)
    study = studies.open_study(search)
    run = studies.run_in_storage if options.slow else studies.run_in_memory
    run(study, search, objective)


if __name__ == "__main__":
    main()
