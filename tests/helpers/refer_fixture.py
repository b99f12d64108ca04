"""Writes annotations of any size in REFER's layout, without pixels."""

from __future__ import annotations

import json
import math
import pickle
import random
from pathlib import Path

WORDS = ["left", "right", "red", "man", "the", "cup", "near", "window", "second", "dog"]


def write_refer(root: Path, images: int, objects: int, expressions: int, protocol: int = 2) -> Path:
    """``root/refcoco/{refs(unc).p,instances.json}``; every object is one reference.

    A tenth of the images is val, the others are train; there are four annotations for each
    reference's one, as COCO has more objects than anybody described.
    """
    draw = random.Random(0)
    entries = [
        {"id": 9 + 29 * i, "file_name": f"COCO_{i:012d}.jpg", "height": 480, "width": 640}
        for i in range(images)
    ]
    annotations = [
        {"id": i, "image_id": entries[i % images]["id"], "category_id": 1 + i % 80,
         "iscrowd": 0, "area": 1.0, "bbox": [1.5, 2.5, 30.0, 40.0],
         "segmentation": [_polygon(draw) for _ in range(1 + (i % 7 == 0))]}
        for i in range(4 * objects)
    ]  # fmt: skip
    base, rest = divmod(expressions, objects)
    refs = []
    for i in range(objects):
        entry = entries[i % images]
        sentences = [_sentence(draw) for _ in range(base + (i < rest))]
        refs.append(
            {"ref_id": i, "ann_id": 4 * i, "image_id": entry["id"], "category_id": 1 + i % 80,
             "split": "val" if i % images < images // 10 else "train",
             "file_name": entry["file_name"], "sent_ids": [0], "sentences": sentences}
        )  # fmt: skip
    folder = root / "refcoco"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=protocol))
    categories = [{"id": i, "name": f"thing {i}"} for i in range(1, 81)]
    content = {"images": entries, "annotations": annotations, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(content))
    return root


def _polygon(draw: random.Random, corners: int = 30) -> list[float]:
    x, y, radius = draw.uniform(100, 540), draw.uniform(100, 380), draw.uniform(20, 90)
    flat = []
    for corner in range(corners):
        angle = 2 * math.pi * corner / corners
        flat += [round(x + radius * math.cos(angle), 2), round(y + radius * math.sin(angle), 2)]
    return flat


def _sentence(draw: random.Random) -> dict[str, object]:
    tokens = draw.choices(WORDS, k=4)
    return {"tokens": tokens, "raw": " ".join(tokens), "sent": " ".join(tokens), "sent_id": 0}
