"""SAM as a source that is prompted with each pseudo-label, instead of once with a grid per image.

Stage `propose` makes no masks for this source. Where other sources give the `Partition` of an
image, it gives a `PromptedImage`, which becomes a partition when the teacher's label is known
(:func:`semires.refine.prompting.resolve_partitions`). SAM embeds the image anew for each label.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from semires.config.sources import SamPromptsSource
from semires.proposals.base import Proposals, device
from semires.proposals.checkpoint import checkpoint_sha256, load_sam
from semires.proposals.prompts import Bools, Floats, draw_prompt
from semires.refine.partition import Partition

if TYPE_CHECKING:
    from segment_anything import SamPredictor


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
