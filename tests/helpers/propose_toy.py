"""A toy data set of rectangles, its parameters, and the stage `propose` as a command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from pycocotools import mask as coco_mask

from helpers import ROOT
from semires.config.load import load_params
from semires.config.schema import Params
from semires.config.validate import read_yaml
from semires.data.tables import write_tables

N_IMAGES = 14


def rectangle(index: int) -> tuple[slice, slice]:
    """The place of the object of an image."""
    return slice(8 + index, 30 + index), slice(10, 40 + index)


def make_data_set(n_images: int = N_IMAGES) -> None:
    """Pictures of one rectangle each; every second image is of split val."""
    Path("pictures").mkdir()
    images, refs = [], []
    for index in range(n_images):
        height, width = (64, 72) if index % 3 else (56, 64)
        rng = np.random.default_rng(index)
        pixels = rng.normal(100, 4, (height, width, 3))
        pixels[rectangle(index)] += 90
        name = f"{index:03d}.png"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(Path("pictures", name))
        truth = np.zeros((height, width), np.uint8, order="F")
        truth[rectangle(index)] = 1
        split = ("train", "val")[index % 2]
        images.append((500 + index, name, height, width, split))
        counts = coco_mask.encode(truth)["counts"].decode()
        refs.append((index, 500 + index, split, counts))
    table = pd.DataFrame(images, columns=["image_id", "file_name", "height", "width", "split"])
    types = {"image_id": np.int64, "height": np.int32, "width": np.int32}
    columns = ["ref_id", "image_id", "split", "mask"]
    write_tables("toy", table.astype(types), pd.DataFrame(refs, columns=columns))


def write_params(processes: int, **settings: object) -> Params:
    """Write and load params.yaml; ``settings`` are those of felzenszwalb."""
    values = read_yaml(ROOT / "params.yaml")
    values["datasets"]["toy"] = {
        **values["datasets"]["refscenes"], "dataset": "toy", "images": "pictures"
    }  # fmt: skip
    values["proposals"]["shard_images"] = 3
    values["proposals"]["sources"]["sam"].update(
        points_per_side=3, points_per_batch=4, pred_iou_thresh=0.0, stability_score_thresh=0.0
    )
    values["proposals"]["sources"]["felzenszwalb"].update(settings)
    values["sam"].update(model="tiny", checkpoint="tiny.safetensors", sha256=None)
    values["runtime"]["processes"] = processes
    Path("params.yaml").write_text(json.dumps(values))
    return load_params("params.yaml")


def load() -> Params:
    """The parameters of the last :func:`write_params`."""
    return load_params("params.yaml")


def start(
    source: str, *options: str, folder: str = ".", **environment: str
) -> subprocess.Popen[str]:
    """Start `semires propose` in ``folder``."""
    path = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **environment}
    line = [sys.executable, "-m", "semires", "propose", "--dataset", "toy", "--source", source]
    return subprocess.Popen(
        [*line, *options], env=env, cwd=folder, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip
