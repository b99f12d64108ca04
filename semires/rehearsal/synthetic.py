"""Generated data in RefCOCO's format with the published counts, for a machine without RefCOCO.

``ROOT/DATASET/refs(SPLIT_BY).p`` and ``instances.json`` are as large as the published ones. Images
are declared as 640x480. Only the pictures that are asked for get pixels.
"""

from __future__ import annotations

import json
import math
import pickle
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from semires.config.schema import Dataset
from semires.data.prepare import PUBLISHED
from semires.errors import ConfigError

HEIGHT, WIDTH = 480, 640
ANNOTATIONS_PER_REF = 4  # COCO has more objects than expressions describe
CATEGORIES = 80
WORDS = (
    *("left", "right", "middle", "front", "back", "top", "bottom", "second", "near", "the", "of"),
    *("man", "woman", "girl", "dog", "cup", "chair", "car", "zebra", "red", "blue", "white"),
)


@dataclass(frozen=True)
class SplitCounts:
    """The size of one split: references, images, expressions."""

    refs: int
    images: int
    expressions: int


def published_counts(place: Dataset) -> dict[str, SplitCounts]:
    """The published counts of a data set, by split.

    Where expressions are published in total only, each split gets its share by references.

    Raises:
        ConfigError: the data set has no published counts.
    """
    key = (place.dataset, place.split_by)
    if key not in PUBLISHED:
        known = ", ".join(f"{dataset} ({split_by})" for dataset, split_by in PUBLISHED)
        raise ConfigError(
            f"--synthetic-data: {place.dataset} ({place.split_by}) has no published counts, as "
            f"{known} have; rehearse it with its own data"
        )
    total = PUBLISHED[key].get("all", {"refs": 1, "expressions": 2})
    share = total["expressions"] / total["refs"]
    return {
        split: SplitCounts(
            row["refs"], row["images"], row.get("expressions", round(row["refs"] * share))
        )
        for split, row in PUBLISHED[key].items()
        if split != "all"
    }


def write_annotations(place: Dataset, counts: dict[str, SplitCounts], seed: int = 0) -> None:
    """Write both annotation files of ``place`` with these counts, deterministic by ``seed``."""
    draw = random.Random(seed)
    images: list[dict[str, Any]] = []
    refs: list[dict[str, Any]] = []
    for split, count in counts.items():
        own = [_image(len(images) + i) for i in range(count.images)]
        texts = _sentences(draw, count)
        for i in range(count.refs):
            refs.append(_reference(len(refs), own[i % len(own)], split, next(texts)))
        images += own
    annotations = [
        _annotation(draw, ref["ann_id"] + extra, ref)
        for ref in refs
        for extra in range(ANNOTATIONS_PER_REF)
    ]
    folder = Path(place.annotations)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"refs({place.split_by}).p").write_bytes(pickle.dumps(refs, protocol=2))
    categories = [{"id": i, "name": f"thing {i}"} for i in range(1, CATEGORIES + 1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(content), encoding="utf-8")


def image_name(number: int) -> str:
    """The file name of an image, by its id."""
    return f"COCO_train2014_{number:012d}.jpg"


def _image(number: int) -> dict[str, Any]:
    return {"id": number, "file_name": image_name(number), "height": HEIGHT, "width": WIDTH}


def _reference(
    number: int, image: dict[str, Any], split: str, sentences: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "ref_id": number, "ann_id": ANNOTATIONS_PER_REF * number, "image_id": image["id"],
        "category_id": 1 + number % CATEGORIES, "split": split, "file_name": image["file_name"],
        "sent_ids": [0], "sentences": sentences,
    }  # fmt: skip


def _annotation(draw: random.Random, number: int, ref: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": number, "image_id": ref["image_id"], "category_id": ref["category_id"], "iscrowd": 0,
        "area": 1.0, "bbox": [0.0, 0.0, 1.0, 1.0], "segmentation": [_polygon(draw)],
    }  # fmt: skip


def _polygon(draw: random.Random, corners: int = 24) -> list[float]:
    """An ellipse inside the image, as x and y in turn."""
    x, y = (draw.uniform(0.2, 0.8) * side for side in (WIDTH, HEIGHT))
    wide, high = (draw.uniform(0.04, 0.19) * side for side in (WIDTH, HEIGHT))
    flat = []
    for corner in range(corners):
        angle = 2 * math.pi * corner / corners
        flat += [round(x + wide * math.cos(angle), 2), round(y + high * math.sin(angle), 2)]
    return flat


def _sentences(draw: random.Random, count: SplitCounts) -> Iterator[list[dict[str, Any]]]:
    """The expressions of each reference; they add up to ``count.expressions``."""
    base, more = divmod(count.expressions, max(count.refs, 1))
    for i in range(count.refs):
        texts = [" ".join(draw.choices(WORDS, k=4)) for _ in range(base + (i < more))]
        yield [{"tokens": t.split(), "raw": t, "sent": t, "sent_id": 0} for t in texts]


def write_pictures(folder: Path, names: Iterable[str]) -> None:
    """Write a JPEG of 640x480 for each name: soft areas of colour, with edges and noise."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        Image.fromarray(_pixels(number)).save(folder / name, quality=90)


def _pixels(seed: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    image = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)).astype(np.float32)
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    for _ in range(12):
        cy, cx = rng.uniform(0, HEIGHT), rng.uniform(0, WIDTH)
        ry, rx = rng.uniform(15, 120, 2)
        image[((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1] = rng.uniform(0, 255, 3)
    image += rng.normal(0, 6, image.shape)
    clean = Image.fromarray(image.clip(0, 255).astype(np.uint8))
    return np.asarray(clean.filter(ImageFilter.GaussianBlur(1)))
