"""Choose the labelled images (paper section 4.1, rule of the published code)."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

from semires.config.schema import Params
from semires.data.tables import read_table
from semires.errors import ConfigError, DataError
from semires.files import read_json, write_json
from semires.runs import layout
from semires.runs.key import fraction_name


def labelled_images(
    image_ids: Iterable[int], fraction: float | str | Fraction, seed: int = 0
) -> list[int]:
    """Draw ``floor(fraction * n)`` of the n unique ids with ``random.Random(seed).sample``.

    Args:
        image_ids: ids in order of appearance; repeated ids are ignored.
        fraction: a number in 0..1 (0.01 is 1 %). It is converted from its decimal notation, so
            that 0.01 of 300 is exactly 3.
        seed: random seed.

    Returns:
        The labelled ids in the order of the draw.

    Raises:
        ValueError: the fraction is not in 0..1.
    """
    share = fraction if isinstance(fraction, Fraction) else Fraction(str(fraction))
    if not 0 <= share <= 1:
        raise ValueError(f"a fraction is between 0 and 1, not {fraction}")
    unique = list(dict.fromkeys(image_ids))
    return random.Random(seed).sample(unique, int(share * len(unique)))


def make_split(params: Params, dataset: str, fraction: float) -> None:
    """Write ``data/splits/D/F.json`` for a labelled ``fraction`` in percent.

    Raises:
        ConfigError: the fraction of the images is less than one image.
        DataError: an explicit list contains images that are not in the train split.
    """
    refs = read_table(dataset, "refs", ["image_id", "split"])
    train = refs.loc[refs["split"] == "train", "image_id"]
    unique = [int(i) for i in dict.fromkeys(train)]
    name = fraction_name(fraction)
    listed = params.datasets[dataset].labelled_lists.get(name)
    if listed is None:
        chosen = labelled_images(unique, Fraction(str(fraction)) / 100, params.split.seed)
    else:
        chosen = read_labelled_list(listed)
        unknown = sorted(set(chosen) - set(unique))
        if unknown:
            raise DataError(
                f"{listed}: {len(unknown)} images are not in the train split of {dataset}, "
                f"{unknown[0]} the first"
            )
    if not chosen:
        raise ConfigError(
            f"study.runs, fractions: {name} % of the {len(unique)} train images of {dataset} is "
            f"less than one image; the minimum is {100 / max(len(unique), 1):.3g} %"
        )
    write_json(
        layout.split_file(dataset, fraction),
        {
            "dataset": dataset,
            "fraction": fraction,
            "seed": params.split.seed,
            "source": listed or "draw",
            "n_images": len(unique),
            "n_labelled": len(chosen),
            "n_refs_labelled": int(train.isin(chosen).sum()),
            "labelled_images": chosen,
        },
        seal=True,
    )
    print(f"{dataset} {name} %: {len(chosen)} of {len(unique)} train images are labelled")


def read_labelled_list(path: str | Path) -> list[int]:
    """Read image ids from a JSON list, or from a published SemiRES annotation file.

    From a SemiRES file, the unique ``iid`` values of its ``train`` entries are read.

    Raises:
        DataError: the file has neither format.
    """
    content: Any = read_json(path)
    try:
        if isinstance(content, dict):
            content = [entry["iid"] for entry in content["train"]]
        if not isinstance(content, list):
            raise ValueError("no list")
        ids = [json.loads(i) if isinstance(i, str) else i for i in content]
        if not ids or not all(type(i) is int for i in ids):
            raise ValueError("no whole numbers")
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: neither a list of image ids nor a SemiRES annotation file ({error})"
        ) from error
    return list(dict.fromkeys(ids))
