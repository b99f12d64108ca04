"""Stage `prepare`: convert annotation files to the tables images and refs, and a summary."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from semires.config.schema import Params
from semires.data.pictures import open_picture, upright_size
from semires.data.refer import Faults, read_refer
from semires.data.tables import write_tables
from semires.errors import DataError
from semires.progress import progress

Row = dict[str, int]
# Published numbers of each split (references and images from TFDS), and the paper's of all splits.
# The paper gives 142,209 expressions for RefCOCO, one less than the sum of the splits; the sum is
# used here.
PUBLISHED: dict[tuple[str, str], dict[str, Row]] = {
    ("refcoco", "unc"): {
        "train": {"refs": 42_404, "images": 16_994, "expressions": 120_624},
        "val": {"refs": 3_811, "images": 1_500, "expressions": 10_834},
        "testA": {"refs": 1_975, "images": 750, "expressions": 5_657},
        "testB": {"refs": 1_810, "images": 750, "expressions": 5_095},
        "all": {"refs": 50_000, "images": 19_994, "expressions": 142_210},
    },
    ("refcoco+", "unc"): {
        "train": {"refs": 42_278, "images": 16_992},
        "val": {"refs": 3_805, "images": 1_500},
        "testA": {"refs": 1_975, "images": 750},
        "testB": {"refs": 1_798, "images": 750},
        "all": {"refs": 49_856, "images": 19_992, "expressions": 141_564},
    },
    ("refcocog", "umd"): {
        "train": {"refs": 42_226, "images": 21_899},
        "val": {"refs": 2_573, "images": 1_300},
        "test": {"refs": 5_023, "images": 2_600},
        "all": {"refs": 54_822, "images": 26_711, "expressions": 104_560},
    },
    ("refcocog", "google"): {
        "train": {"refs": 44_822, "images": 24_698},
        "val": {"refs": 5_000, "images": 4_650},
    },
}


def prepare(params: Params, dataset: str, check_images: bool = True) -> None:
    """Read a data set, check it, and write its tables to ``data/prepared/D``.

    Args:
        params: all parameters.
        dataset: a key of ``params.datasets``.
        check_images: also decode every image file and compare its size with the annotation.

    Raises:
        DataError: data is missing or contradictory; the text lists the faults by kind.
    """
    place = params.datasets[dataset]
    images, refs = read_refer(place.root, place.dataset, place.split_by)
    faults = Faults(place.annotations)
    for split in place.splits:
        if not (refs["split"] == split).any():
            known = ", ".join(sorted(set(refs["split"])))
            faults.add("a split with no refs", f"{split} (the file has {known})")
    if check_images:
        _check_images(images, Path(place.images), faults)
    faults.raise_any()
    counts = summarise(refs)
    total = {name: sum(row[name] for row in counts.values()) for name in ("refs", "expressions")}
    shown = {**counts, "all": {**total, "images": len(images)}}
    print(compare(shown, PUBLISHED.get((place.dataset, place.split_by), {})))
    write_tables(dataset, images, refs, counts)


def summarise(refs: pd.DataFrame) -> dict[str, Row]:
    """Count the references, images and expressions of each split, in order of appearance."""
    return {
        str(split): {
            "refs": len(part),
            "images": int(part["image_id"].nunique()),
            "expressions": int(part["sentences"].map(len).sum()),
        }
        for split, part in refs.groupby("split", sort=False)
    }


def compare(counts: dict[str, Row], published: dict[str, Row]) -> str:
    """Return a table of the counts, with the published counts and the differences.

    Args:
        counts: counts of each split, as returned by :func:`summarise`, and of ``all``.
        published: the published counts, as in `PUBLISHED`; empty if unknown.
    """
    lines = [f"{'split':8}{'refs':>10}{'images':>10}{'expressions':>14}"]
    for split, row in counts.items():
        line = f"{split:8}{row['refs']:>10,}{row['images']:>10,}{row['expressions']:>14,}"
        if split in published:
            line += _verdict(row, published[split])
        elif published and split != "all":
            line += "   not a published split"
        lines.append(line)
    for split in published:
        if split not in counts:
            lines.append(f"{split:8}   DIFFERS: published, but not in this data set")
    return "\n".join(lines)


def _verdict(row: Row, wanted: Row) -> str:
    text = f"{wanted['refs']:,} refs on {wanted['images']:,} images"
    if "expressions" in wanted:
        text += f", {wanted['expressions']:,} expressions"
    same = all(row[name] == count for name, count in wanted.items())
    return f"   {'as published:' if same else 'DIFFERS: published'} {text}"


def _check_images(images: pd.DataFrame, folder: Path, faults: Faults) -> None:
    rows = images[["file_name", "height", "width"]].itertuples(index=False)
    for name, height, width in progress(rows, name="prepare", total=len(images), unit="image"):
        path = folder / name
        if not path.is_file():
            faults.add("missing image", path)
            continue
        try:
            with open_picture(path) as picture:
                size, stored = upright_size(picture), (picture.height, picture.width)
                # A JPEG decodes faster at 1/8 of its size, and the whole file is still read.
                picture.draft("RGB", (1, 1))
                picture.load()
        except DataError as error:
            reason = str(error).removeprefix(f"{path}: ")
            faults.add(_unreadable(path, reason), f"{path} ({reason})")
            continue
        if size != (height, width):
            turned = stored == (height, width)
            faults.add(
                "image size differs from the annotation's",
                f"{path} is {size[1]}x{size[0]}, not {width}x{height}"
                + (" (its EXIF orientation turns it; save it upright)" if turned else ""),
            )


def _unreadable(path: Path, reason: str) -> str:
    """Return the kind of fault for a file that cannot be decoded."""
    if "truncat" in reason.lower():
        return "truncated image"
    with open(path, "rb") as file:
        jpeg = file.read(3) == b"\xff\xd8\xff"
    return "truncated or damaged JPEG" if jpeg else "not a readable image"
