"""Measure the quality of proposals: the best IoU of any proposal with each object.

Input: a `ProposalCache`, or the images of a source that is prompted with labels, and references
with their ground-truth masks (COCO compressed RLE, (H,W)).
Output: means over references. This is a diagnostic; training does not use it.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from semires.proposals.cache import ProposalCache
from semires.proposals.prompted import PromptedImages
from semires.refine.partition import Partition


def best_ious(partition: Partition, truths: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the largest IoU (R,) of any proposal with each of R masks (R,H,W).

    The value is 0 if there are no proposals.
    """
    best = []
    for truth in truths:
        common = partition.sums(partition.count(truth))
        union = partition.areas + truth.sum() - common
        best.append((common / np.maximum(union, 1)).max(initial=0.0))
    return np.array(best, dtype=np.float64)


def proposal_quality(
    images: ProposalCache | PromptedImages, refs: pd.DataFrame
) -> dict[str, float]:
    """Average the best IoU per object over references.

    A source that is prompted with labels gets its prompts from the ground truth: an upper bound,
    because a pseudo-label gives worse prompts.

    Args:
        images: by image id, of the size of the masks.
        refs: columns image_id, mask; at least one row.

    Returns:
        ``best_iou`` (mean) and ``over_half`` (share of objects with a best IoU above 0.5), both in
        0..1. ``proposals_per_image``, the mean over the images of ``refs``; of prompted images
        ``proposals_per_label``, the mean number of masks that SAM gives for an object.
    """
    best: list[float] = []
    counts: list[int] = []
    for image_id, group in refs.groupby("image_id", sort=False):
        image = images[int(image_id)]
        truths = [_decode(counts_, *image.shape) for counts_ in group["mask"]]
        if isinstance(image, Partition):
            counts.append(len(image))
            best += best_ious(image, np.stack(truths)).tolist()
            continue
        for truth in truths:
            partition = image.prompt(truth, truth.astype(np.float32))
            counts.append(len(partition))
            best += best_ious(partition, truth[None]).tolist()
    values, each = np.array(best), "image" if isinstance(images, ProposalCache) else "label"
    return {
        "best_iou": float(values.mean()),
        "over_half": float((values > 0.5).mean()),
        f"proposals_per_{each}": float(np.mean(counts)),
    }


def _decode(counts: str, height: int, width: int) -> NDArray[np.bool_]:
    mask = coco_mask.decode({"size": [height, width], "counts": counts.encode("ascii")})
    return np.asarray(mask, dtype=bool)
