"""Proposals by models of `transformers` from a hub id or a folder.

`TransformersMasks`: mask generation (SAM, SAM-HQ, SAM 2). `PanopticMasks`: panoptic segmentation
(Mask2Former, OneFormer). Input: RGB uint8 (H,W,3). Output: masks (N,H,W) with predicted IoU, or the
score of the segment. Stability is NaN, because the library does not return it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from semires.config.sources import PanopticSource, TransformersSource
from semires.models.weights import from_transformers, weights_errors
from semires.proposals.base import Proposals, device

WHERE = "the source's `model`"


class TransformersMasks:
    """The mask-generation pipeline of `transformers` with the parameters of one source.

    Raises:
        WeightsError: the model is missing, damaged or incomplete, or does not generate masks.
    """

    def __init__(self, settings: TransformersSource) -> None:
        from transformers import AutoImageProcessor, AutoModelForMaskGeneration, pipeline

        self.settings = settings
        model = from_transformers(AutoModelForMaskGeneration, settings.model, WHERE)
        folder = model.name_or_path
        with weights_errors(f"{WHERE}: {folder}", "not a mask-generation model"):
            processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
            self.pipeline = pipeline(
                "mask-generation", model=model, image_processor=processor, device=device()
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


class PanopticMasks:
    """The segments of a universal segmentation model. They do not overlap.

    Raises:
        WeightsError: the model is missing, damaged or incomplete, or is of another kind.
    """

    def __init__(self, settings: PanopticSource) -> None:
        from transformers import AutoModelForUniversalSegmentation

        self.settings, self.device = settings, device()
        model = from_transformers(AutoModelForUniversalSegmentation, settings.model, WHERE)
        self.model = model.eval().to(self.device)
        with weights_errors(f"{WHERE}: {model.name_or_path}", "not a panoptic model"):
            self.processor, self.inputs = _processor(model)

    @torch.no_grad()
    def propose(self, image: NDArray[np.uint8]) -> Proposals:
        """Return the segments in the order of the model's queries."""
        settings, size = self.settings, image.shape[:2]
        picture = Image.fromarray(image)
        inputs = {**self.processor(images=picture, return_tensors="pt"), **self.inputs}
        found = self.processor.post_process_panoptic_segmentation(
            self.model(**{name: value.to(self.device) for name, value in inputs.items()}),
            threshold=settings.threshold,
            mask_threshold=settings.mask_threshold,
            overlap_mask_area_threshold=settings.overlap_mask_area_threshold,
            label_ids_to_fuse=set(),
            target_sizes=[size],
        )[0]
        numbers = np.array([segment["id"] for segment in found["segments_info"]], dtype=np.int64)
        masks = found["segmentation"].cpu().numpy() == numbers[:, None, None]
        scores = np.array([segment["score"] for segment in found["segments_info"]], np.float32)
        return Proposals(masks.reshape(-1, *size), scores, np.full(len(masks), np.nan, np.float32))


def _processor(model: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """The image processor of a model's folder, and the model's inputs that are the same for all.

    OneFormer's task is an input. The names of its classes, which are at another place of the hub,
    are not read, because only its training uses them.
    """
    from transformers import AutoImageProcessor, AutoTokenizer

    folder, config = model.name_or_path, model.config
    if config.model_type != "oneformer":
        return AutoImageProcessor.from_pretrained(folder, local_files_only=True), {}
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    task = tokenizer(
        "the task is panoptic", padding="max_length", max_length=config.task_seq_len,
        return_tensors="pt",
    )  # fmt: skip
    processor = AutoImageProcessor.from_pretrained(
        folder, local_files_only=True, class_info_file=None
    )
    return processor, {"task_inputs": task["input_ids"] * task["attention_mask"]}
