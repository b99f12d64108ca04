"""Writes RefScenes in RefCOCO's own on-disk format, so that one reader reads both.

``ROOT/refscenes/instances.json`` and ``refs(unc).p`` hold the annotations, ``images`` the JPEG
files, and ``ROOT/refscenes/scenes.jsonl`` each scene's description. RefScenes+ and RefScenes-g
describe objects of the same images in other words: their ``instances.json`` is a copy, and
``refs(SPLIT_BY).p`` has the references of RefScenes that their expressions can name. The result
depends only on the seed.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from semires.config.schema import Params
from semires.data.expressions import REFSCENES, STYLES, draw_expressions
from semires.data.scenes import FIGURES, THINGS, Scene, SceneObject, render, sample_scene
from semires.data.unpickle import read_plain_pickle
from semires.errors import DataError
from semires.files import atomic_folder, sha256_file
from semires.process import worker_pool

SPLITS = ("train", "val", "testA", "testB")
# testA refers to figures only, testB to things only (as RefCOCO's to people and to other objects).
FIGURE_SHARE = {"train": 0.4, "val": 0.4, "testA": 0.75, "testB": 0.25}
MAX_REFS = 4
MIN_AREA_PX = 40
JPEG_QUALITY = 95

Record = dict[str, Any]


def generate(params: Params, dataset: str) -> None:
    """Generate the data set that ``params.datasets[dataset]`` describes.

    With ``images_of``, only its expressions are new; else its images too, in parallel processes.

    Raises:
        DataError: the data set of ``images_of`` has not been generated.
    """
    if params.owner(dataset) == dataset:
        _make_scenes(params, dataset)
    else:
        _express(params, dataset)


def _make_scenes(params: Params, dataset: str) -> None:
    from tqdm import tqdm

    settings, place = params.scenes, params.datasets[dataset]
    splits = [split for split in SPLITS for _ in range(getattr(settings, split))]
    root = Path(place.root) / place.dataset
    processes = params.runtime.processes or os.cpu_count() or 1
    with atomic_folder(place.images) as images, atomic_folder(root) as annotations:
        jobs = [
            (i, split, settings.seed, settings.size_px, images) for i, split in enumerate(splits)
        ]
        with worker_pool(processes) as pool:
            made = pool.map(_make_scene, jobs, chunksize=32)
            scenes = list(tqdm(made, total=len(jobs), desc="generate", unit="scene", disable=None))
        _write_annotations(scenes, place.split_by, annotations)


def _express(params: Params, dataset: str) -> None:
    """Write the annotations of a data set whose images are another one's."""
    place, owner = params.datasets[dataset], params.datasets[params.owner(dataset)]
    source = Path(owner.root) / owner.dataset
    described = source / "scenes.jsonl"
    if not described.is_file():
        raise DataError(
            f"{described}: no such file; run `semires generate --dataset {params.owner(dataset)}`"
        )
    scenes = {s["image_id"]: s for s in map(json.loads, described.read_text().splitlines())}
    style = STYLES.get(place.dataset, REFSCENES)
    refs: list[Record] = []
    sentence_id = 0
    for ref in read_plain_pickle(source / f"refs({owner.split_by}).p"):
        line = scenes[ref["image_id"]]
        objects = tuple(SceneObject(**item) for item in line["objects"])
        scene = Scene(line["size_px"], objects, line["seed"])
        rng = np.random.default_rng([params.scenes.seed, ref["image_id"], ref["ann_id"]])
        texts = draw_expressions(rng, scene, line["annotation_ids"].index(ref["ann_id"]), style)
        if not texts:
            continue
        split = ref["split"] if ref["split"] in place.splits else place.splits[-1]
        sentences = _sentences(texts, sentence_id)
        sentence_id += len(texts)
        refs.append({**ref, "ref_id": len(refs), "split": split, **sentences})
    with atomic_folder(Path(place.root) / place.dataset) as folder:
        shutil.copyfile(source / "instances.json", folder / "instances.json")
        _write_refs(refs, place.split_by, folder)


def _sentences(texts: list[str], first: int) -> Record:
    """The fields of a reference that hold its expressions; ids count from ``first``."""
    sentences = [
        {"sent_id": number, "sent": text, "raw": text, "tokens": text.split()}
        for number, text in enumerate(texts, first)
    ]
    return {"sentences": sentences, "sent_ids": [s["sent_id"] for s in sentences]}


def _write_refs(refs: list[Record], split_by: str, folder: Path) -> None:
    (folder / f"refs({split_by}).p").write_bytes(pickle.dumps(refs, protocol=2))


def _make_scene(job: tuple[int, str, int, int, Path]) -> Record:
    """Sample, render and save one scene; returns its annotations without global ids."""
    image_id, split, seed, size_px, folder = job
    rng = np.random.default_rng([seed, image_id])
    scene = sample_scene(rng, size_px, FIGURE_SHARE[split])
    rendering = render(scene)
    name = f"REFSCENES_{image_id:08d}.jpg"
    picture = Image.fromarray(rendering.image)
    picture.save(folder / name, quality=JPEG_QUALITY, subsampling=0)
    wanted = [
        i
        for i, item in enumerate(scene.objects)
        if rendering.masks[i].sum() >= MIN_AREA_PX and _may_refer(split, item.is_figure)
    ]
    chosen = sorted(rng.permutation(wanted)[:MAX_REFS].tolist())
    sentences = {i: texts for i in chosen if (texts := draw_expressions(rng, scene, i))}
    objects = []
    for mask in rendering.masks:
        rle = coco_mask.encode(np.asfortranarray(mask))
        area, box = int(coco_mask.area(rle)), [float(v) for v in coco_mask.toBbox(rle)]
        rle["counts"] = rle["counts"].decode("ascii")
        objects.append({"segmentation": rle, "area": area, "bbox": box})
    return {
        "image_id": image_id,
        "split": split,
        "file_name": name,
        "sha256": sha256_file(folder / name),
        "scene": scene,
        "objects": objects,
        "sentences": sentences,
    }


def _may_refer(split: str, is_figure: bool) -> bool:
    return {"testA": is_figure, "testB": not is_figure}.get(split, True)


def _write_annotations(scenes: list[Record], split_by: str, folder: Path) -> None:
    """Give global ids and write ``instances.json``, ``refs(split_by).p`` and ``scenes.jsonl``."""
    categories = {name: i + 1 for i, name in enumerate(THINGS + FIGURES)}
    images: list[Record] = []
    annotations: list[Record] = []
    refs: list[Record] = []
    lines: list[str] = []
    sentence_id = 0
    for record in scenes:
        scene: Scene = record["scene"]
        side = scene.size_px
        images.append(
            {
                "id": record["image_id"],
                "file_name": record["file_name"],
                "height": side,
                "width": side,
                "sha256": record["sha256"],  # so that DVC detects changed images
            }
        )
        for index, (item, drawn) in enumerate(zip(scene.objects, record["objects"], strict=True)):
            annotation_id = len(annotations) + 1
            category = categories[item.shape]
            annotations.append(
                {"id": annotation_id, "image_id": record["image_id"], "category_id": category,
                 "iscrowd": 0, **drawn}
            )  # fmt: skip
            texts = record["sentences"].get(index, [])
            if not texts:
                continue
            refs.append(
                {"ref_id": len(refs), "ann_id": annotation_id, "image_id": record["image_id"],
                 "category_id": category, "split": record["split"],
                 "file_name": record["file_name"], **_sentences(texts, sentence_id)}
            )  # fmt: skip
            sentence_id += len(texts)
        lines.append(
            json.dumps({"image_id": record["image_id"], "annotation_ids":
                        [a["id"] for a in annotations[-len(scene.objects):]], **asdict(scene)})
        )  # fmt: skip
    instances = {
        "info": {"description": "RefScenes: generated scenes for semires"},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": n, "supercategory": "figure" if n in FIGURES else "thing"}
                       for n, i in categories.items()],
    }  # fmt: skip
    (folder / "instances.json").write_text(json.dumps(instances))
    _write_refs(refs, split_by, folder)
    (folder / "scenes.jsonl").write_text("\n".join(lines) + "\n")
