"""The RefCOCO reader: formats as distributed, and one clear line for every fault."""

from __future__ import annotations

import contextlib
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from semires.config.load import load_params
from semires.data.pictures import read_picture
from semires.data.prepare import compare, prepare, summarise
from semires.data.refer import read_refer
from semires.data.unpickle import read_plain_pickle
from semires.errors import DataError

SQUARE = [2.0, 2.0, 8.0, 2.0, 8.0, 8.0, 2.0, 8.0]


def ref(ref_id: int, image_id: int = 1, ann_id: int = 1, split: str = "train", **more: Any) -> dict:
    sentence = {
        "sent": "left thing",
        "raw": "Left thing!",
        "tokens": ["left", "thing"],
        "sent_id": 0,
    }
    return {
        "ref_id": ref_id, "image_id": image_id, "ann_id": ann_id, "category_id": 1,
        "split": split, "sentences": [sentence], "file_name": "x", "sent_ids": [0], **more,
    }  # fmt: skip


def write(
    folder: Path, refs: list[dict], segmentations: list[Any] | None = None, protocol: int = 2
) -> Path:
    root = folder / "refcoco"
    root.mkdir(parents=True, exist_ok=True)
    (root / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=protocol))
    annotations = [
        {"id": i + 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "area": 1.0,
         "bbox": [2, 2, 6, 6], "segmentation": s}
        for i, s in enumerate(segmentations or [[SQUARE]])
    ]  # fmt: skip
    instances = {
        "images": [{"id": 1, "file_name": "one.jpg", "height": 12, "width": 16}],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "thing"}],
    }
    (root / "instances.json").write_text(json.dumps(instances))
    return folder


@contextlib.contextmanager
def changed_instances(folder: Path) -> Iterator[Any]:
    path = folder / "refcoco/instances.json"
    content = json.loads(path.read_text())
    yield content
    path.write_text(json.dumps(content))


def read(folder: Path) -> Any:
    return read_refer(folder, "refcoco", "unc")


def decode(refs: Any, row: int = 0) -> np.ndarray:
    return coco_mask.decode({"size": [12, 16], "counts": refs["mask"][row].encode()})


def test_reads_what_is_distributed(tmp_path: Path):
    images, refs = read(write(tmp_path, [ref(7), ref(8, split="val")]))
    assert images[["image_id", "file_name", "height", "width"]].values.tolist() == [
        [1, "one.jpg", 12, 16]
    ]
    assert images["sha256"].tolist() == [""], "COCO states none"
    assert refs["ref_id"].tolist() == [7, 8]
    assert refs["sentences"][0] == ["left thing"]
    assert refs["raw"][0] == ["Left thing!"]
    assert refs["category"][0] == "thing"
    assert decode(refs).sum() == refs["area"][0] == 36


def test_pixels_of_two_polygons_are_kept(tmp_path: Path):
    shifted = [4.0, 4.0, 10.0, 4.0, 10.0, 10.0, 4.0, 10.0]
    _, refs = read(write(tmp_path, [ref(1)], [[SQUARE, shifted]]))
    assert refs["area"][0] == 36 + 36 - 16
    assert decode(refs)[5, 5] == 1, "the published code loses pixels covered twice"


def test_run_lengths_of_both_kinds(tmp_path: Path):
    mask = np.zeros((12, 16), dtype=np.uint8)
    mask[3:6, 4:9] = 1
    compressed = coco_mask.encode(np.asfortranarray(mask))
    compressed["counts"] = compressed["counts"].decode()
    runs, flat = [], mask.T.ravel()
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [0]])))
    bounds = [0, *edges.tolist(), flat.size]
    runs = np.diff(bounds).tolist()
    plain = {"size": [12, 16], "counts": runs}
    _, refs = read(write(tmp_path, [ref(1), ref(2, ann_id=2)], [compressed, plain]))
    assert (decode(refs, 0) == mask).all()
    assert (decode(refs, 1) == mask).all()


def test_pickles_of_python_2(tmp_path: Path):
    write(tmp_path, [ref(1)])
    # protocol 1 with a byte string beyond ASCII, as Python 2 wrote str
    raw = b"(lp0\n(dp1\nS'sent'\np2\nS'caf\\xe9'\np3\nsa."
    (tmp_path / "two.p").write_bytes(raw)
    assert read_plain_pickle(tmp_path / "two.p") == [{"sent": "caf\xe9"}]


class Attack:
    def __reduce__(self) -> Any:
        return (Path("pwned").write_text, ("x",))


def test_a_hostile_pickle_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, [ref(1)])
    attacks = {
        "os": b"cos\nsystem\n(S'touch pwned'\ntR.",
        "builtins": b'c__builtin__\neval\n(S\'open("pwned","w")\'\ntR.',
        "getattr": pickle.dumps([Attack()]),
    }
    for data in attacks.values():
        (tmp_path / "refcoco/refs(unc).p").write_bytes(data)
        with pytest.raises(DataError, match=r"refused: it names the class"):
            read(tmp_path)
        assert not Path("pwned").exists()


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_damage_is_one_line(tmp_path: Path, data: st.DataObject):
    write(tmp_path, [ref(1), ref(2)])
    name = data.draw(st.sampled_from(["refs(unc).p", "instances.json"]))
    path = tmp_path / "refcoco" / name
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(bytes(content))
    with contextlib.suppress(DataError):  # anything else is a traceback
        read(tmp_path)


@pytest.mark.parametrize(
    ("refs", "segmentations", "line"),
    [
        ([ref(1), ref(1)], None, "duplicate ref id: 1"),
        ([ref(1, ann_id=9)], None, "missing annotation: ref 1"),
        ([ref(1, image_id=9)], None, "missing image entry: ref 1"),
        ([ref(1)], [[]], "empty polygon: annotation 1 of ref 1"),
        ([ref(1)], [[[1.0, 1.0]]], "empty polygon"),
        ([ref(1, sentences=[{"sent": " "}])], None, "empty expression: ref 1"),
        ([ref(1, sentences=[])], None, "empty expression: ref 1"),
        ([ref(1, sentences=[])], [[]], "empty expression: ref 1; empty polygon: annotation 1"),
        ([ref(1)], [[[*SQUARE, 5.0]]], "an odd number of coordinates"),
        ([ref(1)], [[[-32.0, 0.0, 32.0, 0.0] * 140_000]], "outline of a polygon is too long"),
        ([{"ref_id": 1}], None, "wrong value: ref 1, ann_id is absent"),
        ([], None, "contains no references"),
    ],
)
def test_each_fault_is_named(tmp_path: Path, refs: Any, segmentations: Any, line: str):
    with pytest.raises(DataError, match=line):
        read(write(tmp_path, refs, segmentations))


def test_faults_of_a_kind_are_listed_together(tmp_path: Path):
    refs = [ref(i, ann_id=90 + i) for i in range(8)] + [ref(20), ref(20)]
    with pytest.raises(DataError) as caught:
        read(write(tmp_path, refs))
    assert "ref 0, ref 1, ref 2, ref 3, ref 4 and 3 more" in str(caught.value)
    assert "duplicate ref id: 20" in str(caught.value)


def test_a_blank_raw_text_is_the_cleaned_one(tmp_path: Path):
    texts = [{"sent": "left", "raw": " "}, {"sent": "thing", "raw": "Thing!"}, {"sent": "blue"}]
    _, refs = read(write(tmp_path, [ref(1, sentences=texts)]))
    assert list(refs["raw"][0]) == ["left", "Thing!", "blue"]


def test_grey_of_16_bits_keeps_its_shades(tmp_path: Path):
    ramp = np.linspace(0, 65_535, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    assert (read_picture(tmp_path / "ramp.png")[..., 1].ravel() == np.arange(256)).all()


def test_an_id_that_stands_twice_is_named(tmp_path: Path):
    write(tmp_path, [ref(1)], [[SQUARE], [SQUARE]])
    with changed_instances(tmp_path) as content:
        content["annotations"][1]["id"] = 1
        content["images"] *= 2
    with pytest.raises(DataError, match="id in images: 1; duplicate id in annotations: 1"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["../one.jpg", "/etc/passwd", "a/../../b.jpg"])
def test_file_names_stay_inside(tmp_path: Path, name: str):
    write(tmp_path, [ref(1)])
    with changed_instances(tmp_path) as content:
        content["images"][0]["file_name"] = name
    with pytest.raises(DataError, match="leaves the images' folder"):
        read(tmp_path)


@pytest.mark.parametrize("value", [None, 1, ["ab"], {"ab": "cd"}, "\ud800"])
def test_a_digest_that_is_no_text_is_refused(tmp_path: Path, value: Any):
    write(tmp_path, [ref(1)])
    with changed_instances(tmp_path) as content:
        content["images"][0]["sha256"] = value
    with pytest.raises(DataError, match=r"image 1: sha256.*(expected text|is null)"):
        read(tmp_path)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    params = load_params()
    place = params.datasets["refscenes"].model_copy(
        update={"root": ".", "dataset": "refcoco", "images": "images", "splits": ["train", "val"]}
    )
    monkeypatch.chdir(tmp_path)
    write(tmp_path, [ref(1), ref(2, split="val")])
    Path("images").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(noise).save("images/one.jpg", quality=95)
    return params.model_copy(update={"datasets": {"refcoco": place}})


def test_prepare_writes_tables(project: Any, capsys: pytest.CaptureFixture[str]):
    prepare(project, "refcoco")
    assert sorted(p.name for p in Path("data/prepared/refcoco").iterdir()) == [
        "images.parquet", "refs.parquet", "summary.json",
    ]  # fmt: skip
    assert "DIFFERS: published 42,404 refs" in capsys.readouterr().out


def test_prepare_names_bad_images(project: Any):
    whole = Path("images/one.jpg").read_bytes()
    for kept in (len(whole) - 40, 300, 20):  # the last two end within the header
        Path("images/one.jpg").write_bytes(whole[:kept])
        with pytest.raises(DataError, match=r"truncated .*: images/one\.jpg"):
            prepare(project, "refcoco")
    Image.new("RGB", (9, 9)).save("images/one.jpg")
    with pytest.raises(DataError, match="is 9x9, not 16x12"):
        prepare(project, "refcoco")
    Path("images/one.jpg").unlink()
    with pytest.raises(DataError, match="missing image"):
        prepare(project, "refcoco")
    assert not Path("data/prepared/refcoco").exists()


def test_prepare_names_a_split_without_refs(project: Any, tmp_path: Path):
    write(tmp_path, [ref(1)])
    with pytest.raises(DataError, match=r"a split with no refs: val \(the file has train\)"):
        prepare(project, "refcoco")


def test_counts_beside_the_published_ones(tmp_path: Path):
    _, refs = read(write(tmp_path, [ref(1), ref(2, split="val")]))
    counts = summarise(refs)
    assert counts["train"] == {"refs": 1, "images": 1, "expressions": 1}
    one, five = ({"refs": count, "images": count} for count in (1, 5))
    text = compare(counts, {"train": one, "val": five, "testA": one})
    assert "as published" in text
    assert "DIFFERS: published 5 refs on 5 images" in text
    assert "published, but not in this data set" in text


@pytest.mark.parametrize(
    ("field", "value", "line"),
    [
        ("ref_id", "7", "ref 7, ref_id '7': expected a whole number, not str"),
        ("ann_id", "103", "ref 1, ann_id '103': expected a whole number"),
        ("ann_id", [1, 2], r"ref 1, ann_id is a list: .*gRefCOCO.* are not supported"),
        ("image_id", None, "ref 1, image_id is null"),
        ("category_id", 1.5, "ref 1, category_id 1.5: expected a whole number"),
        ("split", 3, "ref 1, split 3: expected text, not int"),
        ("sentences", None, "ref 1, sentences is null"),
        ("sentences", ["red"], r"ref 1, sentences\[0\]: sent is absent"),
        ("sentences", [{"sent": "red", "raw": 1}], r"ref 1, sentences\[0\]: raw 1: expected text"),
    ],
)
def test_a_wrong_value_names_the_reference_and_the_field(
    tmp_path: Path, field: str, value: Any, line: str
):
    with pytest.raises(DataError, match=line):
        read(write(tmp_path, [{**ref(1), field: value}, ref(2)]))


@pytest.mark.parametrize(
    ("kind", "field", "value", "line"),
    [
        ("images", "height", "12", "ref 1, image 1: height '12': expected a whole number"),
        ("images", "file_name", None, "image 1: file_name is null"),
        ("annotations", "bbox", None, "ref 1, annotation 1: bbox is null"),
        ("annotations", "bbox", [1, 2, 3], "annotation 1: bbox: expected four finite numbers"),
        ("annotations", "bbox", [1, 2, 3, "4"], "annotation 1: bbox: expected four finite"),
        ("annotations", "segmentation", None, "damaged mask: annotation 1 of ref 1"),
        ("categories", "name", 5, "ref 1, category 1: name 5: expected text"),
    ],
)
def test_a_wrong_value_of_instances_names_its_entry(
    tmp_path: Path, kind: str, field: str, value: Any, line: str
):
    write(tmp_path, [ref(1)])
    with changed_instances(tmp_path) as content:
        content[kind][0][field] = value
    with pytest.raises(DataError, match=line):
        read(tmp_path)


def test_a_byte_order_mark_is_accepted(tmp_path: Path):
    write(tmp_path, [ref(1)])
    path = tmp_path / "refcoco/instances.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(read(tmp_path)[1]) == 1
