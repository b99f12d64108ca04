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
# Published numbers of references and images per split (from TFDS; the paper's totals agree).
PUBLISHED: dict[tuple[str, str], dict[str, tuple[int, int]]] = {
    ("refcoco", "unc"): {
        "train": (42404, 16994), "val": (3811, 1500), "testA": (1975, 750), "testB": (1810, 750),
    },
    ("refcoco+", "unc"): {
        "train": (42278, 16992), "val": (3805, 1500), "testA": (1975, 750), "testB": (1798, 750),
    },
    ("refcocog", "umd"): {"train": (42226, 21899), "val": (2573, 1300), "test": (5023, 2600)},
    ("refcocog", "google"): {"train": (44822, 24698), "val": (5000, 4650)},
}  # fmt: skip
# Published numbers of expressions per split, and the paper's totals over all splits. The paper
# gives 142,209 expressions for RefCOCO, one less than the sum of the splits; the sum is used here.
EXPRESSIONS: dict[tuple[str, str], dict[str, int]] = {
    ("refcoco", "unc"): {"train": 120_624, "val": 10_834, "testA": 5_657, "testB": 5_095},
}
TOTALS: dict[tuple[str, str], Row] = {
    ("refcoco", "unc"): {"refs": 50_000, "images": 19_994, "expressions": 142_210},
    ("refcoco+", "unc"): {"refs": 49_856, "images": 19_992, "expressions": 141_564},
    ("refcocog", "umd"): {"refs": 54_822, "images": 26_711, "expressions": 104_560},
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
    key = (place.dataset, place.split_by)
    print(compare(counts, PUBLISHED.get(key), EXPRESSIONS.get(key)))
    total: Row = {
        name: sum(row[name] for row in counts.values()) for name in ("refs", "expressions")
    }
    print(compare_total({**total, "images": len(images)}, TOTALS.get(key)))
    write_tables(dataset, images, refs, counts)


def summarise(refs: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Count the references, images and expressions of each split, in order of appearance."""
    return {
        str(split): {
            "refs": len(part),
            "images": int(part["image_id"].nunique()),
            "expressions": int(part["sentences"].map(len).sum()),
        }
        for split, part in refs.groupby("split", sort=False)
    }


def compare(
    counts: dict[str, Row],
    published: dict[str, tuple[int, int]] | None,
    expressions: dict[str, int] | None = None,
) -> str:
    """Return a table of the counts, with the published counts and the differences.

    Args:
        counts: counts of each split, as returned by :func:`summarise`.
        published: published numbers of references and images of each split, if known.
        expressions: published number of expressions of each split, if known.
    """
    lines = [f"{'split':8}{'refs':>10}{'images':>10}{'expressions':>14}"]
    for split, row in counts.items():
        line = _line(split, row)
        if published is not None:
            wanted = published.get(split)
            if wanted is None:
                line += "   not a published split"
            else:
                known = {"refs": wanted[0], "images": wanted[1]}
                if expressions and split in expressions:
                    known["expressions"] = expressions[split]
                line += _verdict(row, known)
        lines.append(line)
    for split in published or {}:
        if split not in counts:
            lines.append(f"{split:8}   DIFFERS: published, but not in this data set")
    return "\n".join(lines)


def compare_total(counts: Row, published: Row | None) -> str:
    """Return the line for all splits together, with the paper's totals if known."""
    return _line("all", counts) + ("" if published is None else _verdict(counts, published))


def _line(split: str, row: Row) -> str:
    return f"{split:8}{row['refs']:>10,}{row['images']:>10,}{row['expressions']:>14,}"


def _verdict(row: Row, wanted: Row) -> str:
    text = f"{wanted['refs']:,} refs on {wanted['images']:,} images"
    if "expressions" in wanted:
        text += f", {wanted['expressions']:,} expressions"
    if all(row[name] == count for name, count in wanted.items()):
        return f"   as published: {text}"
    return f"   DIFFERS: published {text}"


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
