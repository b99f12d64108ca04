"""A very small study made by the real stages, for tests of the trainings."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from helpers import ROOT
from semires.config.load import load_params
from semires.config.schema import Params
from semires.config.validate import validate


def small_params(**changes: Any) -> Params:
    """demo.yaml cut down to seconds; `changes` are ``section={key: value}``."""
    tree = load_params(ROOT / "experiments/demo.yaml").model_dump()
    tree["scenes"].update(train=24, val=4, testA=3, testB=3)
    tree["data"].update(image_size=64)
    tree["model"]["swin"].update(
        pretrained=None, patch_size=2, embed_dim=16, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2],
        window_size=4, position_grid=32, drop_path_rate=0.0,
    )  # fmt: skip
    tree["model"].update(decoder_width=16, fusion_dropout=0.0)
    tree["model"]["bert"].update(num_layers=1, hidden_size=32, intermediate_size=32, dropout=0.0)
    tree["models"]["rela"]["model"].update(
        swin=tree["model"]["swin"], bert=tree["model"]["bert"], fusion_dropout=0.0, width=32,
        num_heads=2, pixel_layers=1, pixel_feedforward=32, regions=16, region_layers=2,
        region_feedforward=32,
    )  # fmt: skip
    tree["proposals"].update(source="felzenszwalb")
    for block in (*tree["study"]["runs"], *tree["study"]["tune"]):
        block.update(fractions=[25])
    tree["burn_in"].update(steps=6, steps_by_fraction={}, batch_size=4, evaluations=2)
    tree["mutual"].update(steps=6, labelled_batch=3, unlabelled_batch=3, evaluations=2)
    tree["evaluation"].update(correction_refs=6)
    tree["runtime"].update(threads=1, processes=2, checkpoint_every_s=0)
    for section, values in changes.items():
        tree[section].update(values)
    return validate(tree)


@contextlib.contextmanager
def made_study(folder: Path) -> Iterator[Params]:
    """Scenes, tables, split and proposals in ``folder``, the current folder meanwhile."""
    from semires.data.prepare import prepare
    from semires.data.refscenes import generate
    from semires.data.splits import make_split
    from semires.proposals.propose import propose

    before = Path.cwd()
    os.chdir(folder)
    try:
        params = small_params()
        generate(params, "refscenes")
        prepare(params, "refscenes")
        make_split(params, "refscenes", 25)
        propose(params, "refscenes", "felzenszwalb")
        yield params
    finally:
        os.chdir(before)
