"""Proposals that depend on the pseudo-label: a source that is prompted with each label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from semires.refine.partition import Partition
from semires.refine.refiner import foreground


class Promptable(Protocol):
    """An image whose proposals depend on the label, such as ``PromptedImage``."""

    def resize(self, height: int, width: int) -> Promptable:
        """The same for labels of this size."""
        ...

    def prompt(self, label: NDArray[np.bool_], probability: NDArray[np.floating]) -> Partition:
        """The proposals for a label, bool (H,W), with the foreground probability, float (H,W)."""
        ...


def resolve_partitions(
    images: Sequence[Partition | Promptable], teacher_logits: torch.Tensor
) -> list[Partition]:
    """The partitions of B samples; images are prompted with the teacher's label.

    Args:
        images: B partitions, or images to be prompted.
        teacher_logits: (B,2,H,W), of which the label is the argmax.
    """
    ready = [image for image in images if isinstance(image, Partition)]
    if len(ready) == len(images):
        return ready
    logits = teacher_logits.float()
    labels = (logits[:, 1] > logits[:, 0]).cpu().numpy()
    probability = foreground(logits).cpu().numpy()
    return [
        image if isinstance(image, Partition) else image.prompt(*about)
        for image, *about in zip(images, labels, probability, strict=True)
    ]
