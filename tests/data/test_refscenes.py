"""RefScenes: every expression names exactly one object, by an independent rule."""

import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from semires.config.load import load_params
from semires.config.schema import Params
from semires.data.refer import read_refer
from semires.data.refscenes import generate
from semires.data.scenes import FIGURES, sample_scene
from semires.files import sha256_file, sha256_tree

COLOURS = "red|green|blue|yellow|purple|orange"
SHAPES = "circle|square|triangle|star|cross|house|mushroom|person|boat|object"
PART_COLOURS = "white|black|brown"
PART = rf"(?: with the ({PART_COLOURS}) (?:roof|stem|head|sail))?"
NOUN = rf"((?:small|large) )?((?:{COLOURS}) )?({SHAPES}){PART}"
SIDES = ("left", "right", "top", "bottom")
WORD_ORDER = ["first", "second", "third", "fourth"]


def members(noun: str, objects: list[dict]) -> list[dict]:
    found = re.fullmatch(NOUN, noun)
    assert found, f"no noun phrase: {noun!r}"
    size, colour, shape, part = (g.strip() if g else None for g in found.groups())
    return [
        o
        for o in objects
        if (size is None or o["size"] == size)
        and (colour is None or o["colour"] == colour)
        and (shape == "object" or o["shape"] == shape)
        and (part is None or o["part_colour"] == part)
    ]


def further(a: dict, b: dict, side: str) -> bool:
    """Is a strictly further to that side of the picture than b?"""
    return {
        "left": a["x"] < b["x"], "right": a["x"] > b["x"],
        "top": a["y"] < b["y"], "bottom": a["y"] > b["y"],
    }[side]  # fmt: skip


def resolve(text: str, objects: list[dict]) -> list[dict]:
    """The objects that an expression can mean, from its words and the description alone."""
    if found := re.fullmatch(r"(\w+) (.+) from the (left|right)", text):
        group, side = members(found[2], objects), found[3]
        place = WORD_ORDER.index(found[1])
        return [o for o in group if sum(further(p, o, side) for p in group) == place]
    if found := re.fullmatch(r"(.+) (left of|right of|above|below) the (.+)", text):
        side = {"left of": "left", "right of": "right", "above": "top", "below": "bottom"}[found[2]]
        anchors = members(found[3], objects)
        assert len(anchors) == 1, f"ambiguous anchor in {text!r}"
        return [
            o
            for o in members(found[1], objects)
            if o is not anchors[0] and further(o, anchors[0], side)
        ]
    if (found := re.fullmatch(r"(\w+) (.+)", text)) and found[1] in SIDES:
        group, side = members(found[2], objects), found[1]
        return [o for o in group if not any(further(p, o, side) for p in group)]
    if found := re.fullmatch(r"(.+) (?:on|at) the (left|right|top|bottom)", text):
        group, side = members(found[1], objects), found[2]
        return [o for o in group if not any(further(p, o, side) for p in group)]
    return members(text, objects)


def small(params: Params, folder: Path, **scenes: int) -> Params:
    place = params.datasets["refscenes"].model_copy(
        update={"root": str(folder), "images": str(folder / "images")}
    )
    counts = {"train": 120, "val": 30, "testA": 30, "testB": 30, **scenes}
    return params.model_copy(
        update={
            "datasets": {"refscenes": place},
            "scenes": params.scenes.model_copy(update=counts),
        }
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("refscenes")
    generate(small(load_params(), folder), "refscenes")
    return folder


@pytest.fixture(scope="module")
def tables(made: Path) -> tuple[list[dict], dict, dict]:
    refs = pickle.loads((made / "refscenes/refs(unc).p").read_bytes())
    instances = json.loads((made / "refscenes/instances.json").read_text())
    lines = (made / "refscenes/scenes.jsonl").read_text().splitlines()
    return refs, instances, {s["image_id"]: s for s in map(json.loads, lines)}


def test_every_expression_names_exactly_its_referent(tables):
    refs, _, scenes = tables
    checked = 0
    for ref in refs:
        scene = scenes[ref["image_id"]]
        referent = scene["objects"][scene["annotation_ids"].index(ref["ann_id"])]
        for sentence in ref["sentences"]:
            assert resolve(sentence["sent"], scene["objects"]) == [referent], sentence["sent"]
            checked += 1
    assert checked > 1500


def test_all_kinds_of_expression_occur(tables):
    texts = [s["sent"] for ref in tables[0] for s in ref["sentences"]]
    for pattern in ("from the", " left of ", " above ", "^top ", " on the ", "with the"):
        assert sum(bool(re.search(pattern, t)) for t in texts) > 10, pattern


def test_test_splits_differ_in_kind(tables):
    refs, instances, _ = tables
    names = {c["id"]: c["name"] for c in instances["categories"]}
    for split, wanted in (("testA", True), ("testB", False)):
        kinds = {names[r["category_id"]] in FIGURES for r in refs if r["split"] == split}
        assert kinds == {wanted}


def test_masks_are_the_visible_pixels(tables):
    _, instances, _ = tables
    by_image: dict[int, np.ndarray] = {}
    for annotation in instances["annotations"]:
        mask = coco_mask.decode(annotation["segmentation"])
        assert mask.sum() == annotation["area"] > 0
        assert not (by_image.get(annotation["image_id"], np.zeros_like(mask)) & mask).any()
        by_image[annotation["image_id"]] = by_image.get(annotation["image_id"], 0) | mask


def test_the_tables_tell_one_picture_from_another(made: Path):
    """DVC hands the tables on, not the pictures: another colour must change them."""
    images, _ = read_refer(made, "refscenes", "unc")
    assert images["sha256"].tolist() == [
        sha256_file(made / "images" / name) for name in images["file_name"]
    ]


def test_same_seed_same_bytes_whatever_the_processes(tmp_path: Path):
    params = small(load_params(), tmp_path, train=20, val=4, testA=4, testB=4)
    digests = []
    for processes in (1, 2):
        runtime = params.runtime.model_copy(update={"processes": processes})
        generate(params.model_copy(update={"runtime": runtime}), "refscenes")
        digests.append(sha256_tree(tmp_path))
    assert digests[0] == digests[1]


def test_scenes_change_with_the_seed():
    first, second = (sample_scene(np.random.default_rng([s, 0]), 96) for s in (1, 2))
    assert first != second
