"""Reader of RefCOCO's on-disk format (REFER): RefCOCO, RefCOCO+, G-Ref and RefScenes alike.

``ROOT/DATASET/refs(SPLIT_BY).p`` lists references with their expressions, ``instances.json`` holds
COCO annotations (polygons or run-lengths). Every fault of a kind is listed in one line.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
from pycocotools import mask as coco_mask

from semires.data.segmentation import MAX_PIXELS, SegmentationError, to_rle, whole
from semires.data.unpickle import read_plain_pickle
from semires.errors import DataError

SHOWN = 5
MAX_CHARACTERS = 2**28  # of all expressions; RefCOCO's have some four million
Record = dict[str, Any]
Entries = dict[int, Any]


class Faults:
    """Collects faults by kind, so that one error lists them all."""

    def __init__(self, where: str) -> None:
        self.where = where
        self._found: dict[str, list[str]] = {}

    def add(self, kind: str, what: object) -> None:
        """Note one fault."""
        self._found.setdefault(kind, []).append(str(what))

    def raise_any(self) -> None:
        """Raise a DataError with a part per kind, if there was any fault."""
        if not self._found:
            return
        parts = []
        for kind, items in self._found.items():
            more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
            parts.append(f"{kind}: {', '.join(items[:SHOWN])}{more}")
        raise DataError(f"{self.where}: " + "; ".join(parts))


def read_refer(root: str | Path, dataset: str, split_by: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read a data set's annotations.

    Masks are the union of all polygons of an annotation. (The published code sums them and keeps
    pixels that are 1, so that what two polygons both cover is lost; that is not reproduced.)

    Returns:
        ``images``: image_id, file_name, height, width, split, sha256 (of the picture as stated, ''
        where it is not); ``refs``: ref_id, image_id, ann_id, category, split, area (mask pixels),
        bbox_x/y/w/h, mask (COCO compressed RLE), sentences, raw. In the order of the pickle.

    Entries of ``instances.json`` that no reference names are not looked at.

    Raises:
        DataError: files are missing, damaged, hostile or contradict each other.
    """
    folder = Path(root) / dataset
    refs = read_plain_pickle(folder / f"refs({split_by}).p")
    instances = _read_instances(folder / "instances.json")
    if not isinstance(refs, list) or not all(isinstance(r, dict) for r in refs):
        raise DataError(f"{folder / f'refs({split_by}).p'}: is no list of references")
    faults = Faults(str(folder))
    try:
        images = {i["id"]: i for i in instances["images"]}
        annotations = {a["id"]: a for a in instances["annotations"]}
        categories = {c["id"]: str(c["name"]) for c in instances["categories"]}
        rows = [_row(ref, images, annotations, categories, faults) for ref in refs]
        repeated = [i for i, n in Counter(whole(r["ref_id"]) for r in refs).items() if n > 1]
        for kind, key in (("images", "image_id"), ("annotations", "ann_id")):
            _note_duplicates(instances[kind], {whole(ref[key]) for ref in refs}, kind, faults)
        table = pd.DataFrame(_bounded([row for row in rows if row is not None]))
        shown = _images(table, images, faults)
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"{folder}: annotations lack a field of RefCOCO's format: {reason}"
        ) from error
    for ref_id in repeated:
        faults.add("duplicate ref id", ref_id)
    faults.raise_any()
    if table.empty:
        raise DataError(f"{folder}: holds no references")
    return shown, table


def _note_duplicates(entries: list[Any], wanted: set[int], kind: str, faults: Faults) -> None:
    """Ids that stand twice, of those that references name: which one is meant?"""
    for entry_id, count in Counter(entry["id"] for entry in entries).items():
        if count > 1 and entry_id in wanted:
            faults.add(f"duplicate id in {kind}", entry_id)


def _bounded(rows: list[Record]) -> list[Record]:
    """The rows, of expressions that fit: a pickle may name one long text a million times."""
    size = sum(len(text) for row in rows for text in row["sentences"] + row["raw"])
    if size > MAX_CHARACTERS:
        raise ValueError(f"expressions of more than {MAX_CHARACTERS:,} characters in all")
    return rows


def _read_instances(path: Path) -> Record:
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(content, dict) or not {"images", "annotations", "categories"} <= set(content):
        raise DataError(f"{path}: lacks images, annotations or categories")
    return content


def _row(
    ref: Record, images: Entries, annotations: Entries, categories: Entries, faults: Faults
) -> Record | None:
    """One reference as a row, or None after noting why there is none."""
    ref_id, ann_id, image_id = (whole(ref[key]) for key in ("ref_id", "ann_id", "image_id"))
    category_id = whole(ref["category_id"])
    sentences = [_text(s["sent"]) for s in ref["sentences"]]
    wordless = not sentences or any(not s.strip() for s in sentences)
    if wordless:
        faults.add("empty expression", f"ref {ref_id}")
    annotation, image = annotations.get(ann_id), images.get(image_id)
    if annotation is None or image is None:
        kind = "missing annotation" if annotation is None else "missing image entry"
        faults.add(kind, f"ref {ref_id}")
        return None
    height, width = whole(image["height"]), whole(image["width"])
    what = f"annotation {ann_id} of ref {ref_id}"
    if not (height > 0 and width > 0 and height * width <= MAX_PIXELS):
        faults.add("impossible image size", f"{width}x{height} of image {image_id}")
        return None
    try:
        rle = to_rle(annotation["segmentation"], height, width)
    except SegmentationError as error:
        faults.add("damaged mask", f"{what} ({error})")
        return None
    if rle is None:
        faults.add("empty polygon", what)
        return None
    if wordless:
        return None
    raw = [_text(s.get("raw", "")) for s in ref["sentences"]]
    x, y, w, h = (float(v) for v in annotation["bbox"])
    if not all(map(math.isfinite, (x, y, w, h))):
        raise ValueError(f"the bbox of {what} is not finite")
    return {
        "ref_id": ref_id,
        "image_id": image_id,
        "ann_id": ann_id,
        "category": categories.get(category_id, str(category_id)),
        "split": _text(ref["split"]),
        "area": int(coco_mask.area(rle)),
        "bbox_x": x,
        "bbox_y": y,
        "bbox_w": w,
        "bbox_h": h,
        "mask": rle["counts"].decode("ascii"),
        "sentences": sentences,
        "raw": [own if own.strip() else s for own, s in zip(raw, sentences, strict=True)],
    }


def _text(value: Any) -> str:
    """A string; a byte string, as Python 2 left some, as latin-1."""
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if not isinstance(value, str):  # str() of a container that shares its parts may never end
        raise ValueError(f"text is due, not a {type(value).__name__}")
    if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
        raise ValueError("text is due, not half of a surrogate pair")
    return value


def _images(refs: pd.DataFrame, images: Entries, faults: Faults) -> pd.DataFrame:
    """The images that references name, in order of appearance."""
    if refs.empty:
        return refs
    first = refs.drop_duplicates("image_id")
    rows = []
    for image_id, split in zip(first["image_id"], first["split"], strict=True):
        entry = images[image_id]
        name = _text(entry["file_name"])
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\\" in name:
            faults.add("file name leaves the images' folder", repr(name))
        digest = _text(entry.get("sha256", ""))
        rows.append((image_id, name, whole(entry["height"]), whole(entry["width"]), split, digest))
    columns = ["image_id", "file_name", "height", "width", "split", "sha256"]
    table = pd.DataFrame(rows, columns=columns)
    return table.astype({"height": np.int32, "width": np.int32})
