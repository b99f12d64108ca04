"""Claim: our segment-everything is 1.3x (96x96) and 4x (640x427) as fast as the original.

    python benchmarks/segment_everything.py [--repeats 5] [--images 3]

Plain: `SamAutomaticMaskGenerator.generate`. Ours: `AutomaticMasks.propose`. Both use the tiny SAM
with the parameters of params.yaml and one thread, and give equal masks.
"""

import argparse
import time
from pathlib import Path

import common
import numpy as np
import torch
from safetensors.torch import load_file
from segment_anything import SamAutomaticMaskGenerator, SamPredictor

from semires.config.load import load_params
from semires.data.scenes import render, sample_scene
from semires.proposals.fast_amg import AutomaticMasks
from semires.proposals.tiny_sam import build_tiny_sam

TARGETS = {"96x96": 1.3, "640x427": 4.0}


def scene(seed: int, height: int, width: int) -> np.ndarray:
    """Render a scene and crop it to height x width."""
    side = max(height, width)
    picture = render(sample_scene(np.random.default_rng(seed), side)).image
    return np.ascontiguousarray(picture[:height, :width])


def seconds(function, *arguments):
    start = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - start, result


def equal(records, found) -> bool:
    return len(records) == len(found) and all(
        np.array_equal(record["segmentation"], mask)
        and np.float32(record["predicted_iou"]) == iou
        and np.float32(record["stability_score"]) == stability
        for record, mask, iou, stability in zip(
            records, found.masks, found.predicted_iou, found.stability, strict=True
        )
    )


def encode(sam, image: np.ndarray) -> None:
    """Run the prompt-independent part of SAM, the lower bound of any implementation."""
    predictor = SamPredictor(sam)
    predictor.set_image(image)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--images", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    params = load_params()
    settings = params.proposals.sources["sam"].model_dump(exclude={"kind"})
    sam = build_tiny_sam()
    if Path(params.sam.checkpoint).is_file():
        sam.load_state_dict(load_file(params.sam.checkpoint))
    else:
        print("no trained weights: using random weights, without thresholds before NMS")
        settings.update(pred_iou_thresh=0.0, stability_score_thresh=0.0)
    upstream, ours = SamAutomaticMaskGenerator(sam, **settings), AutomaticMasks(sam, **settings)
    for name, size in {"96x96": (96, 96), "640x427": (427, 640)}.items():
        plain, fast, kept = [], [], 0
        for repeat in range(options.repeats):
            for seed in range(options.images):
                image = scene(seed, *size)
                plain_s, records = seconds(upstream.generate, image)
                fast_s, found = seconds(ours.propose, image)
                assert equal(records, found), f"{name}, scene {seed}: other masks than upstream"
                kept += len(found)
                plain.append(plain_s)
                fast.append(fast_s)
            if repeat == 0:  # the first repeat is the warm-up
                plain, fast, kept = [], [], 0
        ratio = np.median(np.divide(plain, fast))
        encoder = [seconds(encode, sam, scene(seed, *size))[0] for seed in range(5)]
        common.verdict(
            f"segment everything, {name}",
            float(ratio),
            TARGETS[name],
            f"upstream {1e3 * np.median(plain):.0f} ms, ours {1e3 * np.median(fast):.0f} ms, "
            f"{kept / max(len(fast), 1):.0f} masks an image, equal masks and scores; "
            f"limit: the image encoder alone takes {1e3 * np.median(encoder):.0f} ms",
        )


if __name__ == "__main__":
    main()
