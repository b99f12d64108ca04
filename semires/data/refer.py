"""Read data sets in RefCOCO's on-disk format (REFER): RefCOCO, RefCOCO+, G-Ref and RefScenes.

``ROOT/DATASET/refs(SPLIT_BY).p`` lists the references with their expressions. ``instances.json``
contains the COCO annotations (polygons or run-lengths). One error lists all faults by kind.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
from pycocotools import mask as coco_mask

from semires.data.segmentation import MAX_PIXELS, SegmentationError, to_rle, whole
from semires.data.unpickle import read_plain_pickle
from semires.errors import DataError

SHOWN = 5
Record = dict[str, Any]
Entries = dict[int, Any]


class Faults:
    """Collects faults by kind, so that one error lists all of them."""

    def __init__(self, where: str) -> None:
        self.where = where
        self._found: dict[str, list[str]] = {}

    def add(self, kind: str, what: object) -> None:
        """Add one fault."""
        self._found.setdefault(kind, []).append(str(what))

    def raise_any(self) -> None:
        """Raise a DataError that lists the faults by kind; do nothing without faults."""
        if not self._found:
            return
        parts = []
        for kind, items in self._found.items():
            more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
            parts.append(f"{kind}: {', '.join(items[:SHOWN])}{more}")
        raise DataError(f"{self.where}: " + "; ".join(parts))


def read_refer(root: str | Path, dataset: str, split_by: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read a data set's annotations.

    A mask is the union of all polygons of its annotation. The published code adds the polygons and
    uses the pixels with value 1, which loses the overlap of two polygons. This error is not
    reproduced. Entries of ``instances.json`` that no reference names are ignored.

    Returns:
        Two tables in the order of the pickle. ``images``: image_id, file_name, height, width,
        split, sha256 (the image's hash as stated in ``instances.json``, else ''). ``refs``:
        ref_id, image_id, ann_id, category, split, area (mask pixels), bbox_x/y/w/h, mask (COCO
        compressed RLE), sentences, raw.

    Raises:
        DataError: files are missing, damaged or unsafe, or contradict each other.
    """
    folder = Path(root) / dataset
    refs = read_plain_pickle(folder / f"refs({split_by}).p")
    instances = _read_instances(folder / "instances.json")
    if not isinstance(refs, list) or not all(isinstance(r, dict) for r in refs):
        raise DataError(f"{folder / f'refs({split_by}).p'}: not a list of references")
    faults = Faults(str(folder))
    images, annotations, categories = (
        _by_id(instances, kind) for kind in ("images", "annotations", "categories")
    )
    rows = []
    for place, ref in enumerate(refs):
        try:
            row = _row(ref, images, annotations, categories, faults)
        except FieldError as error:
            faults.add("wrong value", f"{_name(ref, place)}, {error}")
            continue
        if row is not None:
            rows.append(row)
    for ref_id, count in Counter(row["ref_id"] for row in rows).items():
        if count > 1:
            faults.add("duplicate ref id", ref_id)
    for kind, key in (("images", "image_id"), ("annotations", "ann_id")):
        _note_duplicates(instances[kind], {row[key] for row in rows}, kind, faults)
    table = pd.DataFrame(rows)
    shown = _images(table, images, faults)
    faults.raise_any()
    if table.empty:
        raise DataError(f"{folder}: contains no references")
    return shown, table


class FieldError(ValueError):
    """A field is absent or has a wrong type; the text names the entry and the field."""


def _field(entry: Any, name: str, convert: Callable[[Any], Any], where: str = "") -> Any:
    """Return ``convert(entry[name])``.

    Raises:
        FieldError: the field is absent or null, or has another type.
    """
    try:
        value = entry[name]
    except (KeyError, TypeError, IndexError):
        raise FieldError(f"{where}{name} is absent") from None
    if value is None:
        raise FieldError(f"{where}{name} is null")
    try:
        return convert(value)
    except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
        if isinstance(error, FieldError):
            raise
        shown = " " + repr(value)[:40] if isinstance(value, str | int | float | bool) else ""
        if isinstance(value, list) and name in ("ann_id", "category_id"):
            raise FieldError(
                f"{where}{name} is a list: references to several objects or none (gRefCOCO) are "
                "not supported"
            ) from None
        raise FieldError(f"{where}{name}{shown}: {error}") from None


def _name(ref: Record, place: int) -> str:
    """Return the name of a reference for messages: its id, or else its position in the list."""
    ref_id = ref.get("ref_id")
    return f"ref {ref_id}" if isinstance(ref_id, int | float | str) else f"the ref at index {place}"


def _by_id(instances: Record, kind: str) -> Entries:
    """Index a list of instances.json by id. Entries without a numeric id are left out."""
    entries = instances[kind]
    if not isinstance(entries, list):
        return {}
    return {
        e["id"]: e for e in entries if isinstance(e, dict) and isinstance(e.get("id"), int | float)
    }


def _note_duplicates(entries: list[Any], wanted: set[int], kind: str, faults: Faults) -> None:
    """Add a fault for each id that references name and that occurs more than once."""
    ids = Counter(e["id"] for e in entries if isinstance(e, dict) and isinstance(e.get("id"), int))
    for entry_id, count in ids.items():
        if count > 1 and entry_id in wanted:
            faults.add(f"duplicate id in {kind}", entry_id)


def _read_instances(path: Path) -> Record:
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(content, dict) or not {"images", "annotations", "categories"} <= set(content):
        raise DataError(f"{path}: lacks images, annotations or categories")
    return content


def _row(
    ref: Record, images: Entries, annotations: Entries, categories: Entries, faults: Faults
) -> Record | None:
    """Return one reference as a row, or None after adding the fault that prevents it."""
    ref_id, ann_id, image_id, category_id = (
        _field(ref, name, whole) for name in ("ref_id", "ann_id", "image_id", "category_id")
    )
    split = _field(ref, "split", _text)
    entries = _field(ref, "sentences", _list)
    sentences = [_field(s, "sent", _text, f"sentences[{i}]: ") for i, s in enumerate(entries)]
    wordless = not sentences or any(not s.strip() for s in sentences)
    if wordless:
        faults.add("empty expression", f"ref {ref_id}")
    annotation, image = annotations.get(ann_id), images.get(image_id)
    if annotation is None or image is None:
        kind = "missing annotation" if annotation is None else "missing image entry"
        faults.add(kind, f"ref {ref_id}")
        return None
    rle = _mask(annotation, image, f"annotation {ann_id} of ref {ref_id}", image_id, faults)
    if rle is None or wordless:
        return None
    raw = [
        _field({"raw": "", **s}, "raw", _text, f"sentences[{i}]: ") for i, s in enumerate(entries)
    ]
    x, y, w, h = _field(annotation, "bbox", _box, f"annotation {ann_id}: ")
    return {
        "ref_id": ref_id,
        "image_id": image_id,
        "ann_id": ann_id,
        "category": _category(categories, category_id),
        "split": split,
        "area": int(coco_mask.area(rle)),
        "bbox_x": x,
        "bbox_y": y,
        "bbox_w": w,
        "bbox_h": h,
        "mask": rle["counts"].decode("ascii"),
        "sentences": sentences,
        "raw": [own if own.strip() else s for own, s in zip(raw, sentences, strict=True)],
    }


def _mask(
    annotation: Record, image: Record, what: str, image_id: int, faults: Faults
) -> Record | None:
    """Return the mask in COCO's compressed encoding, or None after adding a fault."""
    height, width = (_field(image, n, whole, f"image {image_id}: ") for n in ("height", "width"))
    if not (height > 0 and width > 0 and height * width <= MAX_PIXELS):
        faults.add("impossible image size", f"{width}x{height} of image {image_id}")
        return None
    try:
        rle = to_rle(annotation.get("segmentation"), height, width)
    except SegmentationError as error:
        faults.add("damaged mask", f"{what} ({error})")
        return None
    if rle is None:
        faults.add("empty polygon", what)
    return rle


def _category(categories: Entries, category_id: int) -> str:
    entry = categories.get(category_id)
    where = f"category {category_id}: "
    return str(category_id) if entry is None else str(_field(entry, "name", _text, where))


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"expected a list, not {type(value).__name__}")
    return list(value)


def _box(value: Any) -> tuple[float, float, float, float]:
    numbers = [float(v) for v in _list(value) if type(v) in (int, float)]
    if len(numbers) != 4 or len(value) != 4 or not all(map(math.isfinite, numbers)):
        raise ValueError("expected four finite numbers")
    return numbers[0], numbers[1], numbers[2], numbers[3]


def _text(value: Any) -> str:
    """Return a string; a byte string of Python 2 is decoded as latin-1."""
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if not isinstance(value, str):  # str() of nested shared containers can take forever
        raise ValueError(f"expected text, not {type(value).__name__}")
    if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
        raise ValueError("expected text, not half of a surrogate pair")
    return value


def _images(refs: pd.DataFrame, images: Entries, faults: Faults) -> pd.DataFrame:
    """Return the table of the images that references name, in order of appearance."""
    if refs.empty:
        return refs
    first = refs.drop_duplicates("image_id")
    rows = []
    for image_id, split in zip(first["image_id"], first["split"], strict=True):
        entry, where = images[image_id], f"image {image_id}: "
        try:
            name = _field(entry, "file_name", _text, where)
            digest = _field({"sha256": "", **entry}, "sha256", _text, where)
        except FieldError as error:
            faults.add("wrong value", error)
            continue
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\\" in name:
            faults.add("file name leaves the images' folder", repr(name))
        rows.append((image_id, name, whole(entry["height"]), whole(entry["width"]), split, digest))
    columns = ["image_id", "file_name", "height", "width", "split", "sha256"]
    table = pd.DataFrame(rows, columns=columns)
    return table.astype({"height": np.int32, "width": np.int32})
