"""Proposals by `transformers`' mask generation: SAM, SAM-HQ, SAM 2 from a hub id or a folder.

In: RGB uint8 (H,W,3); out: masks (N,H,W) with predicted IoU. The library does not hand out the
stability that it filters by, hence NaN.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from semires.config.schema import TransformersSource
from semires.errors import WeightsError
from semires.proposals.base import Proposals


class TransformersMasks:
    """The library's mask-generation pipeline with the parameters of one source.

    Raises:
        WeightsError: the model cannot be had or is no mask generator.
    """

    def __init__(self, settings: TransformersSource, device: torch.device) -> None:
        from transformers import logging, pipeline

        logging.disable_progress_bar()
        self.settings = settings
        try:
            self.pipeline = pipeline("mask-generation", model=settings.model, device=device)
        except (OSError, ValueError, KeyError) as error:
            raise WeightsError(_explain(settings.model, error)) from error

    def propose(self, image: NDArray[np.uint8]) -> Proposals:
        """Masks in the library's order (best predicted IoU first)."""
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


def _explain(model: str, error: Exception) -> str:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if Path(model).is_dir():
        return f"{model}: no model that generates masks ({reason})"
    return (
        f"{model}: neither a folder nor to be had from the Hugging Face hub ({reason}); download "
        "the repository on a machine with access and set the source's `model` to its folder"
    )
