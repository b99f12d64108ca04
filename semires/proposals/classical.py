"""Proposals without weights: Felzenszwalb segments at several scales (compare paper Table 8).

Input: RGB uint8 (H,W,3). Output: each distinct segment of each scale as a mask (N,H,W). On photos
the segments follow edges and are smaller than objects.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from skimage.segmentation import felzenszwalb

from semires.config.sources import FelzenszwalbSource
from semires.proposals.base import Proposals


class FelzenszwalbMasks:
    """Segments of `skimage.segmentation.felzenszwalb` at each of ``scales``, without duplicates."""

    def __init__(self, settings: FelzenszwalbSource) -> None:
        self.settings = settings

    def propose(self, image: NDArray[np.uint8]) -> Proposals:
        """Return the masks, ordered by scale and then by label. All scores are NaN."""
        pixels = image.astype(np.float64) / 255  # scikit-image smooths integer images differently
        seen: dict[bytes, NDArray[np.bool_]] = {}
        for scale in self.settings.scales:
            labels = felzenszwalb(
                pixels,
                scale=scale,
                sigma=self.settings.sigma,
                min_size=self.settings.min_size_px,
                channel_axis=-1,
            )
            masks = labels[None] == np.arange(labels.max() + 1)[:, None, None]
            for key, mask in zip(
                np.packbits(masks.reshape(len(masks), -1), axis=1), masks, strict=True
            ):
                seen.setdefault(key.tobytes(), mask)
        masks = np.stack(list(seen.values()))
        none = np.full(len(masks), np.nan, np.float32)
        return Proposals(masks, none, none)
