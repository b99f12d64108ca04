"""The temporary projects of a rehearsal: the whole tables, and few items at full size.

``whole`` has the tables and splits of the whole data set. ``pictures`` has a few images, for the
proposal sources. ``few`` has the images, references and expressions of a few steps of training.
"""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd

from semires.config.grid import sources_of
from semires.config.schema import Params
from semires.config.validate import validate
from semires.data.splits import make_split
from semires.data.tables import write_tables
from semires.files import read_parquet, write_json
from semires.proposals.propose import propose
from semires.rehearsal.synthetic import write_pictures
from semires.runs import layout
from semires.runs.key import fraction_name

TRIALS = 8
LENGTHS = ("steps", "epochs", "evaluations", "patience", "trials", "storage")
LABELLED = "labelled.json"
# The proposals of the trainings, so that they need no weights; about as many per image as SAM's.
STAND_IN = {"kind": "felzenszwalb", "scales": [100, 300, 1000], "sigma": 0.8, "min_size_px": 200}


def synthetic(params: Params, dataset: str) -> Params:
    """The parameters with the files of ``dataset`` in folders that no real project uses."""
    tree = params.model_dump()
    tree["datasets"][dataset].update(
        root="synthetic", images="synthetic/images", labelled_lists={}
    )  # fmt: skip
    return validate(tree)


def own_images(params: Params, dataset: str) -> Params:
    """The parameters without ``images_of`` of ``dataset``: its proposals are its own."""
    place = params.datasets[dataset].model_copy(update={"images_of": None})
    return params.model_copy(update={"datasets": {**params.datasets, dataset: place}})


def few_items(params: Params, dataset: str, fraction: float, steps: int) -> Params:
    """The parameters of the project ``few``: every size is kept, every length is cut."""
    tree = params.model_dump()
    tree["study"]["generated"] = []
    tree["datasets"][dataset].update(
        splits=["train", "val"], labelled_lists={fraction_name(fraction): LABELLED}
    )
    for name, source in params.proposals.sources.items():
        if source.kind != "sam_prompts":
            tree["proposals"]["sources"][name] = STAND_IN
    for section in ("burn_in", "mutual"):
        tree[section].update(steps=steps, epochs=None, evaluations=1)
    tree["burn_in"].pop("steps_by_fraction", None)
    tree["mutual"]["patience"] = None
    tree["evaluation"]["correction_refs"] = params.evaluation.batch_size
    tree["tune"].update(trials=min(TRIALS, params.tune.trials), steps=steps, storage=None)
    tree["runtime"].update(processes=1, checkpoint_every_s=1e9)
    for method in tree["refine"].values():
        method["thresholds"] = "paper"
    for changed in (*tree["refine"].values(), *tree["models"].values()):
        changed["overrides"] = {
            key: value for key, value in changed["overrides"].items()
            if key.rpartition(".")[2] not in LENGTHS
        }  # fmt: skip
    return validate(tree)


def cut_pictures(params: Params, dataset: str, whole: Path, count: int, invented: bool) -> None:
    """Write the tables of the first ``count`` images of train to the current project."""
    images, refs = _whole_tables(dataset, whole)
    chosen = refs.loc[refs["split"] == "train", "image_id"].unique()[:count]
    _write(params, dataset, images, refs[refs["image_id"].isin(chosen)], invented)


def cut_few(params: Params, dataset: str, fraction: float, whole: Path, invented: bool) -> None:
    """Write tables, split and stand-in proposals of a few steps to the current project.

    A source that prompts SAM with each label has no stand-in.

    Labelled and unlabelled images have enough expressions for a batch, and val for a batch of
    evaluation.
    """
    images, refs = _whole_tables(dataset, whole)
    train = refs[refs["split"] == "train"]
    labelled_batch = max(params.burn_in.batch_size, params.mutual.labelled_batch)
    labelled = _first(train, labelled_batch)
    others = train[~train["image_id"].isin(labelled["image_id"])]
    unlabelled = _first(others, params.mutual.unlabelled_batch)
    val = _first(refs[refs["split"] == "val"], params.evaluation.batch_size)
    write_json(LABELLED, [int(i) for i in labelled["image_id"].unique()])
    _write(params, dataset, images, pd.concat([labelled, unlabelled, val]), invented)
    make_split(params, dataset, fraction)
    for source in sources_of(params):
        if params.proposals.sources[source].kind != "sam_prompts":
            propose(params, dataset, source)


def _whole_tables(dataset: str, whole: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    folder = whole / layout.prepared(dataset)
    return read_parquet(folder / "images.parquet"), read_parquet(folder / "refs.parquet")


def _first(refs: pd.DataFrame, expressions: int) -> pd.DataFrame:
    """All references of the first images that have this many expressions; at least two images."""
    if refs.empty:
        return refs
    counts = refs["sentences"].map(len).groupby(refs["image_id"], sort=False).sum().cumsum()
    needed = max(2, int((counts < expressions).sum()) + 1)
    return refs[refs["image_id"].isin(counts.index[:needed])]


def _write(
    params: Params, dataset: str, images: pd.DataFrame, refs: pd.DataFrame, invented: bool
) -> None:
    """Write the tables of ``refs`` and their images; ``invented`` images get pixels first."""
    kept = images[images["image_id"].isin(refs["image_id"])].reset_index(drop=True)
    if invented:
        folder = Path(params.datasets[dataset].images)
        write_pictures(folder, [n for n in kept["file_name"] if not (folder / n).exists()])
    write_tables(dataset, kept, refs.reset_index(drop=True))


def link_report(workspace: Path) -> None:
    """Link the report's definitions of ``workspace`` into the current project."""
    for path in (layout.TABLES, layout.TABLES.parent / "claims.yaml"):
        if (workspace / path).exists() and not path.exists():
            path.parent.mkdir(exist_ok=True)
            os.symlink(workspace / path, path)


def size_gib(*folders: Path) -> float:
    """The size of all files in folders, GiB."""
    files = [p for folder in folders for p in folder.rglob("*") if p.is_file()]
    return float(sum(p.stat().st_size for p in files)) / 2**30
