"""How good proposals are: the best IoU that any of them reaches with each object (diagnostic).

In: a `ProposalCache` and references with their ground-truth masks (COCO compressed RLE, (H,W));
out: means over references. Nothing trains on it.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from semires.errors import DataError
from semires.proposals.cache import ProposalCache
from semires.refine.partition import Partition


def best_ious(partition: Partition, truths: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Largest IoU (R,) of any proposal with each of the R masks (R,H,W); 0 without proposals."""
    best = []
    for truth in truths:
        common = partition.sums(partition.count(truth))
        union = partition.areas + truth.sum() - common
        best.append((common / np.maximum(union, 1)).max(initial=0.0))
    return np.array(best, dtype=np.float64)


def proposal_quality(cache: ProposalCache, refs: pd.DataFrame) -> dict[str, float]:
    """Best IoU per object over ``refs`` (columns image_id, mask; at least one row).

    Returns:
        ``best_iou`` and ``over_half`` (share of objects over 0.5) in 0..1, and
        ``proposals_per_image`` over the images of ``refs``.
    """
    best: list[float] = []
    counts: list[int] = []
    for image_id, group in refs.groupby("image_id", sort=False):
        partition = cache[int(image_id)]
        height, width = np.asarray(partition.atoms).shape
        counts.append(len(partition.members))
        truths = [_decode(counts_, height, width, int(image_id)) for counts_ in group["mask"]]
        best.extend(best_ious(partition, np.stack(truths)).tolist())
    values = np.array(best)
    return {
        "best_iou": float(values.mean()),
        "over_half": float((values > 0.5).mean()),
        "proposals_per_image": float(np.mean(counts)),
    }


def _decode(counts: str, height: int, width: int, image_id: int) -> NDArray[np.bool_]:
    mask = coco_mask.decode({"size": [height, width], "counts": counts.encode("ascii")})
    if mask.shape != (height, width):
        raise DataError(f"image {image_id}: a mask of {mask.shape} for {height}x{width} proposals")
    return np.asarray(mask, dtype=bool)
