"""Stage `prepare`: annotation files to images, refs and summary tables."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from PIL import Image

from semires import layout
from semires.config import Params
from semires.data.refer import Faults, read_refer
from semires.files import atomic_folder, write_json, write_parquet

JPEG_END = b"\xff\xd9"
# References and images per split as published (TFDS' counts of objects; paper's totals agree).
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


def prepare(params: Params, dataset: str, check_images: bool = True) -> None:
    """Read a data set, check it, and write its tables to ``data/prepared/D``.

    Args:
        params: all parameters.
        dataset: a key of ``params.datasets``.
        check_images: also look at every image file's size and end.

    Raises:
        DataError: anything missing or contradictory; every kind of fault listed in one line.
    """
    place = params.datasets[dataset]
    images, refs = read_refer(place.root, place.dataset, place.split_by)
    faults = Faults(f"{place.root}/{place.dataset}")
    for split in place.splits:
        if not (refs["split"] == split).any():
            known = ", ".join(sorted(set(refs["split"])))
            faults.add("a split with no refs", f"{split} (there is {known})")
    if check_images:
        _check_images(images, Path(place.images), faults)
    faults.raise_any()
    counts = summarise(refs)
    print(compare(counts, PUBLISHED.get((place.dataset, place.split_by))))
    with atomic_folder(layout.prepared(dataset)) as folder:
        write_parquet(folder / "images.parquet", images)
        write_parquet(folder / "refs.parquet", refs)
        write_json(folder / "summary.json", counts)


def summarise(refs: pd.DataFrame) -> dict[str, dict[str, int]]:
    """References, images and expressions of each split, in order of appearance."""
    return {
        str(split): {
            "refs": len(part),
            "images": int(part["image_id"].nunique()),
            "expressions": int(part["sentences"].map(len).sum()),
        }
        for split, part in refs.groupby("split", sort=False)
    }


def compare(counts: dict[str, dict[str, int]], published: dict[str, tuple[int, int]] | None) -> str:
    """A table of the counts, with the published ones and where they differ."""
    lines = [f"{'split':8}{'refs':>10}{'images':>10}{'expressions':>14}"]
    for split, row in counts.items():
        line = f"{split:8}{row['refs']:>10,}{row['images']:>10,}{row['expressions']:>14,}"
        if published is not None:
            wanted = published.get(split)
            if wanted is None:
                line += "   not a published split"
            elif wanted == (row["refs"], row["images"]):
                line += "   as published"
            else:
                line += f"   DIFFERS: published {wanted[0]:,} refs on {wanted[1]:,} images"
        lines.append(line)
    for split in published or {}:
        if split not in counts:
            lines.append(f"{split:8}   DIFFERS: published, but not here")
    return "\n".join(lines)


def _check_images(images: pd.DataFrame, folder: Path, faults: Faults) -> None:
    from tqdm import tqdm

    rows = images[["file_name", "height", "width"]].itertuples(index=False)
    for name, height, width in tqdm(rows, total=len(images), desc="images", disable=None):
        path = folder / name
        try:
            with Image.open(path) as file:
                size, kind = (file.height, file.width), file.format
            with open(path, "rb") as file:
                file.seek(-min(64, path.stat().st_size), 2)
                ends = JPEG_END in file.read()
        except FileNotFoundError:
            faults.add("missing image", path)
            continue
        except (OSError, ValueError, Image.DecompressionBombError):
            faults.add("not an image", path)
            continue
        if kind == "JPEG" and not ends:
            faults.add("truncated JPEG", path)
        if size != (height, width):
            faults.add(
                "image size differs from the annotation's",
                f"{path} is {size[1]}x{size[0]}, not {width}x{height}",
            )
