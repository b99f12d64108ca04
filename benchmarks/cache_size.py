"""Claim: a partition takes at most 1/4 of the bytes of JSON run-lengths, and 1.3x COCO's strings.

    python benchmarks/cache_size.py [--quick]

The masks are overlapping blobs (several numbers and sizes), and Felzenszwalb segments of a
photograph at four scales.
"""

from __future__ import annotations

import common
import numpy as np
from pycocotools import mask as coco

from semires.refine.partition import Partition

OF_JSON, OF_COCO = 1 / 4, 1.3


def segments() -> common.Masks:
    """Return Felzenszwalb segments (N,H,W) of a photograph that is part of scikit-image."""
    from skimage import data, segmentation

    image = data.astronaut()[:480]
    maps = [
        segmentation.felzenszwalb(image, scale=scale, sigma=0.8, min_size=100)
        for scale in (50, 100, 200, 400)
    ]
    return np.concatenate([labels == np.arange(labels.max() + 1)[:, None, None] for labels in maps])


def main() -> None:
    options = common.options(__doc__)
    images = {
        "100 blobs, 640x480": common.blobs(480, 640, 100, seed=0),
        "40 blobs, 640x480": common.blobs(480, 640, 40, seed=1),
        "10 blobs, 640x480": common.blobs(480, 640, 10, seed=2),
        "35 blobs, 64x64": common.blobs(64, 64, 35, seed=3),
    }
    if not options.quick:
        images["300 blobs, 640x480"] = common.blobs(480, 640, 300, seed=4)
        images["Felzenszwalb, photograph"] = segments()
    for name, masks in images.items():
        partition = Partition.from_masks(masks)
        data = partition.to_bytes()
        np.testing.assert_array_equal(Partition.from_bytes(data).masks(), masks)
        strings = [coco.encode(np.asfortranarray(m.astype(np.uint8)))["counts"] for m in masks]
        json_size, coco_size = len(common.to_json(masks)), sum(map(len, strings))
        of_json, of_coco = len(data) / json_size, len(data) / coco_size
        reached = "reached" if of_json <= OF_JSON and of_coco <= OF_COCO else "MISSED"
        print(
            f"cache size, {name}: {of_json:.2f} of JSON, {of_coco:.2f} of COCO's strings "
            f"(targets {OF_JSON:.2f} and {OF_COCO}, {reached}); "
            f"{partition.members.shape[1]} atoms, {len(data)} bytes against "
            f"{json_size} and {coco_size}"
        )


if __name__ == "__main__":
    main()
