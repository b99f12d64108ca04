"""SAM as a source that is prompted with each pseudo-label, instead of once with a grid per image.

Stage `propose` makes no masks for this source. Where other sources give the `Partition` of an
image, it gives a `PromptedImage`, which becomes a partition when the teacher's label is known
(:func:`semires.refine.refiner.resolve_partitions`). SAM embeds the image anew for each label.

Prompts are points inside the label, and its box, drawn by fixed rules without randomness.
Coordinates are pixels as x, y; x to the right, y down. The rules follow the idea of S4M and
SAMRefiner, which prompt SAM with a label instead of matching the label with all masks.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from semires.config.sources import SamPromptsSource
from semires.proposals.base import Proposals, device
from semires.proposals.checkpoint import checkpoint_sha256, load_sam
from semires.refine.partition import Partition
from semires.refine.strategies import rounded

if TYPE_CHECKING:
    from segment_anything import SamPredictor


Bools = NDArray[np.bool_]
Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Prompt:
    """Foreground points int64 (K,2) as x, y; ``box`` int64 (4,) as left, top, right, bottom."""

    points: NDArray[np.int64]
    box: NDArray[np.int64] | None


def inner_points(label: Bools, probability: Floats, count: int) -> NDArray[np.int64]:
    """Up to ``count`` points of a label (H,W), far from its border and from each other.

    A point is the pixel with the largest product of the probability and the distance to the nearest
    pixel that is outside the label or an earlier point, the first in row-major order of equals.
    Outside the image is outside the label.

    Returns:
        int64 (K,2) as x, y, the first one deepest in the label. K is less than ``count`` if the
        label has fewer pixels, and 0 for an empty label.
    """
    free = np.pad(label, 1)
    weight = np.pad(rounded(np.asarray(probability, np.float32)).astype(np.float64), 1)
    points: list[tuple[int, int]] = []
    for _ in range(min(count, int(label.sum()))):
        # The smallest step keeps a pixel of zero probability above the pixels outside the label.
        score = distance_transform_edt(free) * (weight + 1e-9)
        y, x = np.unravel_index(int(score.argmax()), score.shape)
        free[y, x] = False
        points.append((int(x) - 1, int(y) - 1))
    return np.array(points, dtype=np.int64).reshape(-1, 2)


def label_box(label: Bools, margin: float) -> NDArray[np.int64]:
    """The box of a label (H,W) that is not empty, with each side moved outwards.

    Args:
        label: bool (H,W).
        margin: share of the box's width and height by which its sides move, at least 0.

    Returns:
        int64 (4,): left, top, right, bottom, inside the image; the last two are pixels of the box.
    """
    found = []
    for axis in (0, 1):  # columns give x, rows give y
        inside = np.flatnonzero(label.any(axis))
        first, last = int(inside[0]), int(inside[-1])
        reach = round(margin * (last - first + 1))
        found.append((max(first - reach, 0), min(last + reach, label.shape[1 - axis] - 1)))
    (left, right), (top, bottom) = found
    return np.array([left, top, right, bottom], dtype=np.int64)


def draw_prompt(label: Bools, probability: Floats, settings: SamPromptsSource) -> Prompt | None:
    """The prompt for a label (H,W) with the teacher's probability (H,W); None if it is empty."""
    if not label.any():
        return None
    box = label_box(label, settings.box_margin) if settings.box else None
    return Prompt(inner_points(label, probability, settings.points), box)


class Pictures(Protocol):
    """Gives the pixels of an image by its id, uint8 (H,W,3), such as ``ImageStore``."""

    def __getitem__(self, image_id: int, /) -> NDArray[np.uint8]: ...


class NoMasks:
    """The source in stage `propose`: no pseudo-label exists there, so it returns no masks."""

    def __init__(self, settings: SamPromptsSource) -> None: ...

    def propose(self, image: NDArray[np.uint8]) -> Proposals:
        """Return no mask for a uint8 RGB image (H,W,3)."""
        none = np.zeros(0, np.float32)
        return Proposals(np.zeros((0, *image.shape[:2]), bool), none, none)


@dataclass(frozen=True)
class PromptedSam:
    """How SAM is prompted: the settings, and the SHA-256 of the checkpoint of stage `sam`."""

    settings: SamPromptsSource
    sha256: str


@dataclass(frozen=True, eq=False)
class PromptedImage:
    """An image, uint8 RGB (H,W,3), whose proposals depend on the pseudo-label.

    It does not contain the model, so that data-loader processes can send it.
    """

    pixels: NDArray[np.uint8]
    sam: PromptedSam

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.pixels.shape[0], self.pixels.shape[1]

    def resize(self, height: int, width: int) -> PromptedImage:
        """The same image, which has the size of the labels already.

        Raises:
            ValueError: it has another size.
        """
        if (height, width) != self.shape:
            raise ValueError(f"a prompted image of {self.shape} for labels of {(height, width)}")
        return self

    def prompt(self, label: Bools, probability: Floats) -> Partition:
        """SAM's masks for a label, bool (H,W), with the teacher's probability, float (H,W).

        They are the 1 to ``masks`` masks with the largest predicted IoU; none for an empty label.
        """
        settings = self.sam.settings
        prompt = draw_prompt(label, probability, settings)
        if prompt is None:
            return Partition.from_masks(np.zeros((0, *self.shape), bool))
        some = len(prompt.points) > 0
        predictor = _predictor(self.sam)
        predictor.set_image(self.pixels)
        masks, predicted_iou, _ = predictor.predict(
            point_coords=prompt.points.astype(np.float64) if some else None,
            point_labels=np.ones(len(prompt.points), np.int64) if some else None,
            box=prompt.box,
            multimask_output=True,
        )
        best = np.argsort(-predicted_iou, kind="stable")[: settings.masks]
        return Partition.from_masks(masks[best])


class PromptedImages:
    """The images of a data set by id, in place of their partitions.

    Args:
        pictures: the images at the size of the labels.
        settings: the source.

    Raises:
        WeightsError: stage `sam` has not run.
    """

    def __init__(self, pictures: Pictures, settings: SamPromptsSource) -> None:
        self.pictures = pictures
        self.sam = PromptedSam(settings, checkpoint_sha256())

    def __getitem__(self, image_id: int) -> PromptedImage:
        return PromptedImage(self.pictures[image_id], self.sam)


@functools.lru_cache(1)
def _predictor(sam: PromptedSam) -> SamPredictor:
    """The one SAM of this process; several datasets share it."""
    from segment_anything import SamPredictor

    return SamPredictor(load_sam().to(device()))
