"""Where proposals come from (paper 3.2 and Table 8): a registry of sources by ``kind``.

In: an RGB image uint8 (H,W,3); out: `Proposals`, N bool masks (N,H,W) with scores. A new source
is a class with ``propose`` and one line in `SOURCES`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from semires import layout
from semires.config import FelzenszwalbSource, SegmentAnythingSource, TransformersSource
from semires.data.pictures import read_picture
from semires.errors import DataError

if TYPE_CHECKING:
    import torch

MIN_SIDE = 8
MAX_PIXELS = 4096 * 4096  # larger pictures are refused rather than exhausting memory


@dataclass(frozen=True)
class Proposals:
    """The proposals of one image.

    masks: bool (N,H,W); predicted_iou and stability: float32 (N,), NaN where a source has none.
    """

    masks: NDArray[np.bool_]
    predicted_iou: NDArray[np.float32]
    stability: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.masks)


class ProposalSource(Protocol):
    """Anything that proposes masks for an image."""

    def propose(self, image: NDArray[np.uint8]) -> Proposals:
        """Masks (N,H,W) with scores for a uint8 RGB image (H,W,3)."""
        ...


def _segment_anything(settings: SegmentAnythingSource, sam_folder: Path) -> ProposalSource:
    from semires.proposals.automatic import AutomaticMasks
    from semires.proposals.checkpoint import load_sam

    sam = load_sam(sam_folder).to(device())
    return AutomaticMasks(sam, **settings.model_dump(exclude={"kind"}))


def _transformers(settings: TransformersSource, sam_folder: Path) -> ProposalSource:
    from semires.proposals.hub import TransformersMasks

    return TransformersMasks(settings, device())


def _felzenszwalb(settings: FelzenszwalbSource, sam_folder: Path) -> ProposalSource:
    from semires.proposals.classical import FelzenszwalbMasks

    return FelzenszwalbMasks(settings)


SOURCES: dict[str, Callable[[Any, Path], ProposalSource]] = {
    "segment_anything": _segment_anything,
    "transformers": _transformers,
    "felzenszwalb": _felzenszwalb,
}


def build_source(settings: Any, sam_folder: str | Path = layout.SAM) -> ProposalSource:
    """The source that an entry of ``proposals.sources`` describes, ready to propose."""
    return SOURCES[settings.kind](settings, Path(sam_folder))


def device() -> torch.device:
    """The GPU if there is one: under torchrun, the one of this process's local rank."""
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def as_rgb(image: NDArray[Any], name: str = "image") -> NDArray[np.uint8]:
    """Grey (H,W), (H,W,1), RGB or RGBA uint8 to contiguous RGB uint8 (H,W,3).

    Raises:
        DataError: another type or shape, or a side below 8 pixels, which SAM cannot take.
    """
    if image.dtype != np.uint8:
        raise DataError(f"{name}: pixels must be 0..255 as uint8, not {image.dtype}")
    if image.ndim == 2:
        image = image[:, :, None]
    if image.ndim != 3 or image.shape[2] not in (1, 3, 4):
        raise DataError(f"{name}: shape {image.shape} is neither grey, RGB nor RGBA")
    height, width, channels = image.shape
    if min(height, width) < MIN_SIDE or height * width > MAX_PIXELS:
        raise DataError(
            f"{name}: {width}x{height} pixels; sides from {MIN_SIDE} and at most "
            f"{MAX_PIXELS} pixels can be segmented"
        )
    rgb = np.repeat(image, 3, axis=2) if channels == 1 else image[:, :, :3]
    return np.ascontiguousarray(rgb)


def read_image(path: str | Path) -> NDArray[np.uint8]:
    """Decode an image file to RGB uint8 (H,W,3).

    Raises:
        DataError: it is missing, damaged, too small or too large.
    """
    return as_rgb(read_picture(path, MAX_PIXELS), str(path))
