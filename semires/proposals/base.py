"""The interface of a source of proposals (paper 3.2 and Table 8).

In: an RGB image uint8 (H,W,3). Out: `Proposals`, N bool masks (N,H,W) with scores.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch


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


def device() -> torch.device:
    """The GPU if there is one: under torchrun, the one of this process's local rank."""
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
