"""Claim: from RefCOCO to ten times its size, CPU time and memory without pixels grow as data^1.1.

    python benchmarks/growth_refcoco.py [--factors 1,2,5,10] [--masks 8] [--every 10]

The data have RefCOCO's format and its counts times each factor (10: 1.4 million expressions on
200,000 images). Images are links to one JPEG that is never decoded, and `propose` gets the same
``--masks`` masks for each image. Measured in a new process each:

- `prepare` without decoding, `split` of 1 %, and `propose` with given masks (planning, writing,
  publishing, quality);
- reading every tenth partition of the cache, in order;
- the samples of a training: tables, tokens, labelled and unlabelled part, 20 samples of each;
- `tune`: the table of val's counts and 40 trials;
- `report` on three runs with predictions of all evaluation splits.

Factor 10 needs about 15 GB of disk and 10 GB of memory. The folder is that of TMPDIR.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import common
import numpy as np
import pandas as pd
from growth import BOUND, exponent, measure

from semires import files
from semires.config.schema import Params
from semires.config.validate import validate
from semires.data.prepare import prepare
from semires.data.splits import make_split
from semires.evaluation.calibration import BINS
from semires.evaluation.evaluate import summarise
from semires.models.text import Tokenizer
from semires.proposals import propose as stage
from semires.proposals.cache import ProposalCache, Row
from semires.refine.partition import Partition
from semires.refine.strategies import PROBABILITY_STEPS
from semires.rehearsal import synthetic
from semires.rehearsal.projects import link_report
from semires.rehearsal.synthetic import HEIGHT, WIDTH, SplitCounts
from semires.reporting.report import report
from semires.runs import layout
from semires.runs.key import RunKey
from semires.runs.record import Provenance, RunRecord
from semires.training.burn_in import SECTIONS
from semires.training.context import RunContext
from semires.tuning import counts as tuning_counts
from semires.tuning.objective import labels_objective, space
from semires.tuning.refined import make_table

DATASET, FRACTION, SOURCE = "refcoco", 1.0, "felzenszwalb"
KEY = RunKey(DATASET, FRACTION, "cpi-u", 0)
TRIALS, SAMPLES, ATOMS = 40, 20, 20
EVERY = 10
MASKS = 8


def refcoco(params: Params) -> Params:
    """The parameters of demo.yaml on RefCOCO, with the stand-in source as the default one."""
    tree = params.model_dump()
    tree["datasets"] = {DATASET: {
        "root": "data/raw", "dataset": DATASET, "split_by": "unc", "images": "images",
        "splits": ["train", "val", "testA", "testB"], "labelled_lists": {},
    }}  # fmt: skip
    tree["study"]["generated"] = []
    for block in (*tree["study"]["runs"], *tree["study"]["tune"]):
        block.update(datasets=[DATASET], fractions=[FRACTION])
    tree["proposals"]["source"] = SOURCE
    return validate(tree)


def counts_at(params: Params, factor: float) -> dict[str, SplitCounts]:
    """The published counts times a factor."""
    published = synthetic.published_counts(params.datasets[DATASET])
    return {
        split: SplitCounts(*(max(4, round(n * factor)) for n in vars(count).values()))
        for split, count in published.items()
    }


def write_data(params: Params, factor: float) -> None:
    """Annotations, and a link for each image."""
    counts = counts_at(params, factor)
    synthetic.write_annotations(params.datasets[DATASET], counts)
    folder = Path(params.datasets[DATASET].images)
    synthetic.write_pictures(folder, ["one.jpg"])
    for number in range(sum(count.images for count in counts.values())):
        os.symlink("one.jpg", folder / synthetic.image_name(number))


def given_masks(recipe: Any, jobs: list[Any], processes: int) -> Iterator[Row]:
    """The same partition for every image, instead of a source's."""
    masks = common.blobs(HEIGHT, WIDTH, MASKS, seed=0)
    data, scores = Partition.from_masks(masks).to_bytes(), np.ones(MASKS, np.float32)
    for job in jobs:
        yield Row(job.image_id, HEIGHT, WIDTH, MASKS, data, scores, scores)


def propose_given(params: Params) -> None:
    stage.propose_rows = given_masks  # this process only
    stage.propose(params, DATASET, SOURCE)


def read_cache(params: Params) -> None:
    cache = ProposalCache(layout.proposals(DATASET, SOURCE))
    for image in list(cache)[::EVERY]:
        assert len(cache[image]) == MASKS


def training_samples(params: Params) -> None:
    """What a training loads before its first step, and some samples."""
    context = RunContext(params, KEY, SECTIONS)
    labelled = context.labelled_dataset(context.labelled_refs)
    unlabelled = context.unlabelled_dataset(augment=params.augment)
    for place in range(SAMPLES):
        labelled[place % len(labelled)]
        unlabelled[place * 7 % len(unlabelled)]


def search(params: Params) -> None:
    """Trials of the threshold search on counts of val's size."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    refs = files.read_parquet(layout.prepared(DATASET) / "refs.parquet", ["image_id", "split"])
    counts = random_counts(refs.loc[refs["split"] == "val", "image_id"])
    seen, _ = tuning_counts.halves(counts.image_ids, 0)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
    table = make_table(counts.take(seen), "cpi-u")
    study.optimize(labels_objective(space(params, KEY), table, {}), n_trials=TRIALS)


def random_counts(image_ids: pd.Series) -> tuning_counts.Counts:
    """Counts of a pseudo-label per reference, with 20 atoms and 8 proposals per image."""
    rng, images = np.random.default_rng(0), np.unique(image_ids)
    size = len(image_ids) * ATOMS
    area = rng.integers(1, 2000, size)
    label, truth = rng.binomial(area, rng.random(size)), rng.binomial(area, rng.random(size))
    rows = [np.packbits(rng.random((MASKS, ATOMS)) < 0.3) for _ in images]
    numbers = np.arange(len(image_ids))
    overlap = np.maximum(label + truth - area, np.minimum(label, truth) // 2)
    return tuning_counts.Counts(
        ref_ids=numbers, image_ids=image_ids.to_numpy(), sentences=numbers * 0,
        image_index=np.searchsorted(images, image_ids),
        offsets=np.arange(len(image_ids) + 1) * ATOMS, area=area, label=label, truth=truth,
        overlap=overlap, probability=label * PROBABILITY_STEPS, reliability=np.zeros((BINS, 3)),
        shapes=np.tile([MASKS, ATOMS], (len(images), 1)), bits=np.concatenate(rows),
    )  # fmt: skip


def write_runs(params: Params) -> None:
    """Three run folders with predictions of all expressions of the evaluation splits."""
    columns = ["ref_id", "image_id", "split", "sentences"]
    refs = files.read_parquet(layout.prepared(DATASET) / "refs.parquet", columns)
    table = refs[refs["split"] != "train"].explode("sentences")
    table = table.rename(columns={"sentences": "expression"})
    table["sentence"] = table.groupby("ref_id").cumcount()
    for seed, method in enumerate(("supervised", "baseline", "cpi-u")):
        rng, area = np.random.default_rng(seed), 900
        table["intersection"] = rng.integers(0, area, len(table))
        table["union"], table["object_area"] = area + 12, area
        table["predicted_area"] = table["intersection"] + 12
        write_run(RunKey(DATASET, FRACTION, method, 0), table.reset_index(drop=True))


def write_run(key: RunKey, table: pd.DataFrame) -> None:
    key.folder.mkdir(parents=True)
    files.write_parquet(key.folder / "predictions.parquet", table)
    files.write_bytes(key.folder / "model.safetensors", key.method.encode())
    metrics = {str(split): summarise(rows) for split, rows in table.groupby("split", sort=False)}
    files.write_json(key.folder / "metrics.json", metrics)
    files.write_text(key.folder / "history.csv", "step,val/oIoU\n1,50\n")
    RunRecord(
        key=key, params={"data": {"image_size": 480}}, metrics=metrics, best_step=1,
        fingerprints={"split": "ab" * 32}, numerics={"device": "cpu", "threads": 1},
        n_refs_labelled=1, n_parameters=1, truncated_expressions=0,
        files={p.name: files.sha256_file(p) for p in sorted(key.folder.iterdir())},
    ).write(key.folder)  # fmt: skip
    times = "2026-01-01T00:00:00+00:00"
    Provenance(times, times, 1.0, 1.0, "Linux", "3.11", {}, None, "0" * 64).write(key.folder)


def write_report(params: Params) -> None:
    link_report(common.ROOT)
    report(params)


# Stages with a dash prepare the input of later stages and are not measured.
STAGES: dict[str, Any] = {
    "prepare": lambda params: prepare(params, DATASET, check_images=False),
    "split": lambda params: make_split(params, DATASET, FRACTION),
    "propose": propose_given,
    "cache": read_cache,
    "samples of training": training_samples,
    "tune": search,
    "- runs": write_runs,
    "report": write_report,
}


def grow(factors: list[float]) -> dict[str, list[tuple[float, float]]]:
    """Return seconds and MiB of every measured stage at every size."""
    found: dict[str, list[tuple[float, float]]] = {n: [] for n in STAGES if n[0] != "-"}
    for factor in factors:
        with common.workspace() as demo:
            params = refcoco(demo)
            write_data(params, factor)
            Tokenizer.from_config(params.model)  # imports transformers before the forks
            for name, work in STAGES.items():
                numbers = measure(work, params)
                if name in found:
                    found[name].append(numbers)
                    print(f"{factor:g}x {name}: {numbers[0]:.1f} s", file=sys.stderr, flush=True)
    return found


def main() -> None:
    global MASKS, EVERY
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--factors", default="1,2,5,10", help="times RefCOCO's size")
    parser.add_argument("--masks", type=int, default=MASKS, help="masks per image")
    parser.add_argument("--every", type=int, default=EVERY, help="read every n-th partition")
    options = parser.parse_args()
    factors = [float(f) for f in options.factors.split(",")]
    MASKS, EVERY = options.masks, options.every
    for name, numbers in grow(factors).items():
        for what, column, unit in (("CPU time", 0, "s"), ("memory", 1, "MiB")):
            values = [n[column] for n in numbers]
            slope = exponent(factors, values)  # type: ignore[arg-type]
            common.within(
                f"{name}: {what} ~ data^", slope, BOUND, "",
                f"; {', '.join(f'{v:.1f}' for v in values)} {unit} at "
                f"{', '.join(f'{f:g}x' for f in factors)}",
            )  # fmt: skip


if __name__ == "__main__":
    main()
