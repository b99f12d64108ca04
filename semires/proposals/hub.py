"""Proposals by mask generation in `transformers`: SAM, SAM-HQ, SAM 2 from a hub id or a folder.

Input: RGB uint8 (H,W,3). Output: masks (N,H,W) with predicted IoU. Stability is NaN, because the
library does not return it.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from semires.config.schema import TransformersSource
from semires.proposals.base import Proposals


class TransformersMasks:
    """The mask-generation pipeline of `transformers` with the parameters of one source.

    Raises:
        WeightsError: the model is missing, damaged or incomplete, or does not generate masks.
    """

    def __init__(self, settings: TransformersSource, device: torch.device) -> None:
        from transformers import AutoImageProcessor, AutoModelForMaskGeneration, pipeline

        from semires.models.weights import from_transformers, weights_errors

        self.settings = settings
        where = "the source's `model`"
        model = from_transformers(AutoModelForMaskGeneration, settings.model, where)
        folder = model.name_or_path
        with weights_errors(f"{where}: {folder}", "not a mask-generation model"):
            processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
            self.pipeline = pipeline(
                "mask-generation", model=model, image_processor=processor, device=device
            )

    def propose(self, image: NDArray[np.uint8]) -> Proposals:
        """Return the masks, the highest predicted IoU first."""
        settings = self.settings
        with torch.no_grad():
            found = self.pipeline(
                Image.fromarray(image),
                points_per_crop=settings.points_per_side,
                points_per_batch=settings.points_per_batch,
                pred_iou_thresh=settings.pred_iou_thresh,
                stability_score_thresh=settings.stability_score_thresh,
            )
        masks = [np.asarray(torch.as_tensor(mask).cpu(), dtype=bool) for mask in found["masks"]]
        return Proposals(
            np.stack(masks) if masks else np.zeros((0, *image.shape[:2]), bool),
            found["scores"].float().cpu().numpy(),
            np.full(len(masks), np.nan, np.float32),
        )
