"""Proposal sources (paper 3.2 and Table 8): their interface, and the registry by ``kind``.

Input: an RGB image uint8 (H,W,3). Output: `Proposals`, N bool masks (N,H,W) with scores. To add a
source, write a class with ``propose`` (see `ProposalSource`) and add it to `SOURCES`.
"""

from __future__ import annotations

import os
import pkgutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Proposals:
    """The proposals of one image.

    masks: bool (N,H,W). predicted_iou and stability: float32 (N,), NaN if the source has no such
    score.
    """

    masks: NDArray[np.bool_]
    predicted_iou: NDArray[np.float32]
    stability: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.masks)


class ProposalSource(Protocol):
    """Anything that proposes masks for an image."""

    def propose(self, image: NDArray[np.uint8]) -> Proposals:
        """Return masks (N,H,W) with scores for a uint8 RGB image (H,W,3)."""
        ...


def device() -> torch.device:
    """Return the GPU of this process's local rank (0 without torchrun), or the CPU."""
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


# For each kind, what makes the source of its settings, as ``MODULE:NAME``.
SOURCES = {
    "segment_anything": "semires.proposals.fast_amg:AutomaticMasks.from_settings",
    "transformers": "semires.proposals.hub:TransformersMasks",
    "panoptic": "semires.proposals.hub:PanopticMasks",
    "sam_prompts": "semires.proposals.prompted:NoMasks",
    "felzenszwalb": "semires.proposals.classical:FelzenszwalbMasks",
}


def build_source(settings: Any) -> ProposalSource:
    """Build the proposal source that an entry of ``proposals.sources`` describes."""
    source: ProposalSource = pkgutil.resolve_name(SOURCES[settings.kind])(settings)
    return source
