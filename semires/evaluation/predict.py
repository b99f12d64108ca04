"""`semires predict`: a picture and an expression (or a table of them) to masks and overlays."""

from __future__ import annotations

import csv
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from semires.config.schema import Params
from semires.data.pictures import MAX_SEGMENTED_PIXELS, read_picture
from semires.errors import DataError
from semires.evaluation.checkpoint import Trained, open_checkpoint
from semires.files import atomic_path
from semires.samples.augment import normalise

OVERLAY_RGB = (230, 159, 0)  # Okabe-Ito orange


@dataclass(frozen=True)
class Prediction:
    """``mask`` bool (H,W) at the picture's own size; ``confidence`` in 0..1.

    Confidence is the mean foreground probability over the mask, 0 for an empty mask.
    """

    mask: NDArray[np.bool_]
    confidence: float


@torch.inference_mode()
def segment(trained: Trained, image: NDArray[np.uint8], expression: str) -> Prediction:
    """The mask of the object that ``expression`` names in ``image`` (uint8 RGB (H,W,3))."""
    size = trained.data.image_size
    squashed = Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)
    ids, attention = trained.tokenizer.encode([expression], trained.data.max_tokens)
    logits = trained.model(normalise(np.asarray(squashed))[None], ids, attention)
    full = torch.nn.functional.interpolate(
        logits.float(), image.shape[:2], mode="bilinear", align_corners=False
    )[0]
    probability = full.softmax(0)[1].numpy()
    mask = probability > 0.5
    confidence = float(probability[mask].mean()) if mask.any() else 0.0
    return Prediction(mask, confidence)


def overlay(image: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The picture with the mask tinted and everything else dimmed, uint8 (H,W,3)."""
    tint = np.array(OVERLAY_RGB, dtype=np.float32)
    shown = np.where(mask[..., None], 0.45 * image + 0.55 * tint, 0.65 * image)
    return shown.astype(np.uint8)


def predict(
    params: Params | None,
    checkpoint: str | Path,
    image: str | Path,
    expression: str | None = None,
    output: str | Path | None = None,
    expressions: str | Path | None = None,
) -> None:
    """Predict for one picture, or for a folder and a CSV with columns ``image,expression``.

    Writes ``OUTPUT`` (overlay) and ``OUTPUT-mask.png`` for one picture; for a table, both for each
    row into the folder ``OUTPUT``. Prints one line per row. For an expression that is cut to the
    model's ``max_tokens`` it prints a warning to stderr.

    Raises:
        DataError: a picture or the table cannot be read; nothing was written.
    """
    trained, image = open_checkpoint(checkpoint, params), Path(image)
    if expressions is None:
        if not expression or not expression.strip():
            raise DataError("give --expression TEXT, or --expressions CSV with a folder of images")
        if any("\ud800" <= c <= "\udfff" for c in expression):
            raise DataError("--expression: is not UTF-8 text")
        if not image.name or image.is_dir():
            raise DataError(
                f"{image}: is a folder, not a picture; a folder needs --expressions CSV"
            )
        target = Path(output) if output else image.with_name(f"{image.stem}-semires.png")
        jobs = [(image, expression, target)]
    else:
        folder = Path(output) if output else image / "semires"
        jobs = [
            (image / name, text, folder / f"{i:05d}-{Path(name).stem}.png")
            for i, (name, text) in enumerate(read_expressions(Path(expressions)))
        ]
    for path, _, target in jobs:
        if not target.name or target.is_dir():
            raise DataError(f"--output {target}: is a folder; give the name of a picture")
        if path.resolve() in (target.resolve(), _mask_of(target).resolve()):
            raise DataError(f"{path}: --output would replace the picture; give another name")
    for path in dict.fromkeys(path for path, _, _ in jobs):
        read_picture(path, MAX_SEGMENTED_PIXELS)  # every fault is found before the first output
    for path, text, target in jobs:
        _predict_one(trained, path, text, target)


def _predict_one(trained: Trained, path: Path, text: str, target: Path) -> None:
    """Write the overlay and the mask of one expression and print a line."""
    picture = read_picture(path, MAX_SEGMENTED_PIXELS)
    truncated = trained.tokenizer.truncated
    prediction = segment(trained, picture, text)
    if trained.tokenizer.truncated > truncated:
        print(
            f"{path}: {text!r} is longer than {trained.data.max_tokens} tokens and is cut",
            file=sys.stderr,
        )
    _save(overlay(picture, prediction.mask), target)
    _save(prediction.mask.astype(np.uint8) * 255, _mask_of(target))
    share = 100 * prediction.mask.mean()
    print(
        f"{path}: {text!r}: {share:.1f} % of the picture, "
        f"confidence {prediction.confidence:.2f} -> {target}"
    )


def read_expressions(path: Path) -> list[tuple[str, str]]:
    """The pairs of a CSV with columns ``image`` (a name in the folder) and ``expression``.

    Raises:
        DataError: no such table, a line is incomplete, or a name leaves the folder.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
        pairs = [(row["image"], row["expression"]) for row in rows]
    except (OSError, KeyError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: no CSV with columns image,expression ({error})") from error
    if not pairs:
        raise DataError(f"{path}: holds no line below a header with columns image,expression")
    if any(None in row or None in row.values() for row in rows):
        raise DataError(f"{path}: a line has other columns than its header; quote commas")
    if not all(value.strip() for pair in pairs for value in pair):
        raise DataError(f"{path}: a line has no image or no expression")
    for name, _ in pairs:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise DataError(f"{path}: {name!r} leaves the folder of images")
    return pairs


def _mask_of(target: Path) -> Path:
    return target.with_name(f"{target.stem}-mask.png")


def _save(pixels: NDArray[np.uint8], path: Path) -> None:
    with atomic_path(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")
