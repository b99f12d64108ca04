"""Claim: training steps wait for samples less than 5 % of the time.

    python benchmarks/input_pipeline.py [--images 24] [--steps 60] [--repeats 5]

The first part uses the paper's size: 640x480 photos resized to 480x480, with weak and strong views.
Plain: decode and resize image and mask for every sample. Ours: cache the resized images. Both use
one thread and give equal tensors. The limit is the time of the views, which every sample needs.

The second part runs two short trainings of demo.yaml. Their provenance contains the share of the
step time that was spent waiting for samples (`data_wait`).
"""

from __future__ import annotations

import argparse
import contextlib
import io
from pathlib import Path
from typing import Any

import common
import numpy as np
import pandas as pd
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from semires.config.schema import Params
from semires.data.scenes import render, sample_scene
from semires.data.tables import Tables
from semires.models.text import Tokenizer
from semires.refine.partition import Partition
from semires.runs.key import RunKey
from semires.runs.record import Provenance
from semires.samples.augment import normalise, strong_view, weak_view
from semires.samples.dataset import ImageStore, UnlabelledDataset

HEIGHT, WIDTH, SIZE = 480, 640, 480
BOUND = 5


def make_dataset(folder: Path, images: int, params: Params) -> UnlabelledDataset:
    """Make a data set of JPEG images, each with one reference and a blob as its mask."""
    names = [f"{i}.jpg" for i in range(images)]
    for i, name in enumerate(names):
        picture = render(sample_scene(np.random.default_rng(i), WIDTH)).image[:HEIGHT]
        Image.fromarray(np.ascontiguousarray(picture)).save(folder / name, quality=90)
    masks = common.blobs(HEIGHT, WIDTH, images, seed=0).astype(np.uint8)
    table = pd.DataFrame({"file_name": names, "height": HEIGHT, "width": WIDTH})
    refs = pd.DataFrame(
        {
            "ref_id": range(images),
            "image_id": range(images),
            "sentences": [["the red circle on the left"]] * images,
            "mask": [coco_mask.encode(np.asfortranarray(m))["counts"].decode() for m in masks],
        }
    )
    tables = Tables(table, refs)
    store = ImageStore(tables, folder, SIZE)
    tokenizer = Tokenizer.from_config(params.model)
    partitions = {
        i: Partition.from_masks(np.zeros((0, HEIGHT, WIDTH), bool)) for i in range(images)
    }
    return UnlabelledDataset(
        refs, tables, store, tokenizer, 20, partitions=partitions, augment=params.augment
    )


def plain_sample(dataset: UnlabelledDataset, folder: Path, i: int, params: Params) -> Any:
    """Make one sample without any cache."""
    rng = np.random.default_rng([dataset.seed, i])
    with Image.open(folder / f"{i}.jpg") as file:
        squashed = file.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    mask = coco_mask.decode({"size": [HEIGHT, WIDTH], "counts": dataset.refs["mask"][i].encode()})
    mask = np.asarray(Image.fromarray(mask).resize((SIZE, SIZE), Image.Resampling.NEAREST))
    weak = weak_view(np.asarray(squashed), params.augment, rng)
    strong = strong_view(weak, params.augment, rng)
    return {
        "image": normalise(weak),
        "strong": normalise(strong),
        "hidden_truth": torch.from_numpy(mask > 0),
    }


def compare(images: int, repeats: int) -> None:
    with common.workspace() as params:
        folder = Path("pictures")
        folder.mkdir()
        dataset = make_dataset(folder, images, params)
        plain = [plain_sample(dataset, folder, i, params) for i in range(images)]
        for i, wanted in enumerate(plain):
            for key, value in wanted.items():
                assert torch.equal(getattr(dataset[i], key)[0], value), f"sample {i}: another {key}"

        def views() -> None:
            for i in range(images):
                rng = np.random.default_rng([dataset.seed, i])
                weak = weak_view(dataset.images[i], params.augment, rng)
                normalise(weak), normalise(strong_view(weak, params.augment, rng))

        times = common.in_turn(
            {
                "plain": lambda: [plain_sample(dataset, folder, i, params) for i in range(images)],
                "ours": lambda: [dataset[i] for i in range(images)],
                "limit": views,
            },
            repeats,
        )
    each = {way: times.ms(way) / images for way in times}
    print(
        f"a sample of the input pipeline, {WIDTH}x{HEIGHT} to {SIZE}x{SIZE}: {times.ratio():.2f}x "
        f"(no target); plain {each['plain']:.1f} ms, ours {each['ours']:.1f} ms, equal tensors; "
        f"limit: its views take {each['limit']:.1f} ms"
    )


def waits(steps: int) -> dict[str, float]:
    """Return the share of step time that each training waits for samples, percent."""
    from semires.data.prepare import prepare
    from semires.data.refscenes import generate
    from semires.data.splits import make_split
    from semires.proposals.propose import propose
    from semires.training.burn_in import burn_in
    from semires.training.mutual import mutual

    short = {"steps": steps, "evaluations": 3}
    with common.workspace(
        scenes={"train": 400, "val": 10, "testA": 2, "testB": 2},
        proposals={"source": "felzenszwalb"},
        burn_in=short, mutual=short, evaluation={"correction_refs": 2},
    ) as params, contextlib.redirect_stdout(io.StringIO()):  # fmt: skip
        generate(params, "refscenes")
        prepare(params, "refscenes")
        make_split(params, "refscenes", 10)
        propose(params, "refscenes", "felzenszwalb")
        supervised, refined = (RunKey("refscenes", 10, m, 0) for m in ("supervised", "cpi-u"))
        burn_in(params, supervised)
        mutual(params, refined)
        shares = {}
        for key, name in ((supervised, "burn-in"), (refined, "mutual learning")):
            provenance = Provenance.read(key.folder)
            assert provenance is not None
            assert provenance.data_wait is not None
            shares[name] = 100 * provenance.data_wait
    return shares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    compare(options.images, options.repeats)
    for name, share in waits(options.steps).items():
        common.within(f"a step's wait for its samples, {name}", share, BOUND, "%")


if __name__ == "__main__":
    main()
