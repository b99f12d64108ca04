"""RefScenes and its relatives: each expression names exactly one object, by an independent rule."""

import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from semires.config.load import load_params
from semires.config.schema import Params
from semires.data.expressions import STYLES
from semires.data.kinds import kind_of
from semires.data.refer import read_refer
from semires.data.refscenes import generate
from semires.data.scenes import FIGURES, sample_scene
from semires.errors import DataError
from semires.files import sha256_file, sha256_tree
from semires.models.text import Tokenizer

COLOURS = "red|green|blue|yellow|purple|orange"
SHAPES = "circle|square|triangle|star|cross|house|mushroom|person|boat|object"
PART_COLOURS = "white|black|brown"
PART = rf"(?: with the ({PART_COLOURS}) (?:roof|stem|head|sail))?"
NOUN = rf"((?:small|large) )?((?:{COLOURS}) )?({SHAPES}){PART}"
SIDES = ("left", "right", "top", "bottom")
FAMILY = {"refscenes": "unc", "refscenes+": "unc", "refscenes-g": "umd"}
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
    text = re.sub(r"^the | that is(?= )| side$", "", text)  # a sentence of RefScenes-g
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
    changes = {"root": str(folder), "images": str(folder / "images")}
    places = {name: params.datasets[name].model_copy(update=changes) for name in FAMILY}
    counts = {"train": 120, "val": 30, "testA": 30, "testB": 30, **scenes}
    return params.model_copy(
        update={
            "datasets": places,
            "scenes": params.scenes.model_copy(update=counts),
        }
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("refscenes")
    for name in FAMILY:
        generate(small(load_params(), folder), name)
    return folder


def refs_of(made: Path, name: str) -> list[dict]:
    return pickle.loads((made / name / f"refs({FAMILY[name]}).p").read_bytes())


def texts_of(refs: list[dict]) -> list[str]:
    return [sentence["sent"] for ref in refs for sentence in ref["sentences"]]


@pytest.fixture(scope="module")
def tables(made: Path) -> tuple[list[dict], dict, dict]:
    refs = refs_of(made, "refscenes")
    instances = json.loads((made / "refscenes/instances.json").read_text())
    lines = (made / "refscenes/scenes.jsonl").read_text().splitlines()
    return refs, instances, {s["image_id"]: s for s in map(json.loads, lines)}


@pytest.mark.parametrize("name", FAMILY)
def test_every_expression_names_exactly_its_referent(made, tables, name):
    _, _, scenes = tables
    checked = 0
    for ref in refs_of(made, name):
        scene = scenes[ref["image_id"]]
        referent = scene["objects"][scene["annotation_ids"].index(ref["ann_id"])]
        for text in texts_of([ref]):
            assert resolve(text, scene["objects"]) == [referent], text
            checked += 1
    assert checked > 1200


def test_all_kinds_of_expression_occur(made, tables):
    for pattern in ("from the", " left of ", " above ", "^top ", " on the ", "with the"):
        assert sum(bool(re.search(pattern, t)) for t in texts_of(tables[0])) > 10, pattern
    kinds = {name: {kind_of(t) for t in texts_of(refs_of(made, name))} for name in FAMILY}
    assert kinds["refscenes"] == kinds["refscenes-g"] == set(STYLES["refscenes"].weights)


def test_refscenes_plus_has_no_absolute_location(made):
    texts = texts_of(refs_of(made, "refscenes+"))
    assert {kind_of(text) for text in texts} == {"attribute", "relation"}
    relation = r" (left of|right of|above|below) the "
    places = rf"\b({'|'.join([*SIDES, *WORD_ORDER])})\b"
    assert not [text for text in texts if re.search(places, re.sub(relation, " ", text))]
    assert sum(bool(re.search(relation, text)) for text in texts) > 100


def test_refscenes_g_has_sentences_of_about_eight_words(made):
    refs = refs_of(made, "refscenes-g")
    lengths = [len(text.split()) for text in texts_of(refs)]
    assert 7.5 < np.mean(lengths) < 8.5
    params = load_params()
    tokenizer = Tokenizer.from_config(params.model)
    tokenizer.encode(texts_of(refs), params.data.max_tokens)
    assert tokenizer.truncated == 0
    assert {len(ref["sentences"]) for ref in refs} <= {1, 2}


@pytest.mark.parametrize("name", ["refscenes+", "refscenes-g"])
def test_relatives_have_the_images_and_objects_of_refscenes(made, tables, name):
    refs, splits = refs_of(made, name), {r["ann_id"]: r["split"] for r in tables[0]}
    to_test = {"testA": "test", "testB": "test"} if name == "refscenes-g" else {}
    assert all(r["split"] == to_test.get(s := splits[r["ann_id"]], s) for r in refs)
    assert len(refs) > 0.9 * len(splits)
    assert not list((made / name).rglob("*.jpg"))
    images, table = read_refer(made, name, FAMILY[name])
    owner, _ = read_refer(made, "refscenes", "unc")
    assert set(images["sha256"]) <= set(owner["sha256"])
    assert set(table["split"]) == set(load_params().datasets[name].splits)
    assert set(images["split"]) == set(table["split"])


def test_relatives_need_the_scenes(tmp_path: Path):
    with pytest.raises(DataError, match=r"run `semires generate --dataset refscenes`"):
        generate(small(load_params(), tmp_path), "refscenes+")


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
        for name in FAMILY:
            generate(params.model_copy(update={"runtime": runtime}), name)
        digests.append(sha256_tree(tmp_path))
    assert digests[0] == digests[1]


def test_the_references_of_refscenes_keep_their_bytes(tmp_path: Path):
    """Trained results depend on them."""
    generate(small(load_params(), tmp_path, train=20, val=4, testA=4, testB=4), "refscenes")
    assert sha256_file(tmp_path / "refscenes/refs(unc).p").startswith("82c6c35edbe8")


def test_scenes_change_with_the_seed():
    first, second = (sample_scene(np.random.default_rng([s, 0]), 96) for s in (1, 2))
    assert first != second
