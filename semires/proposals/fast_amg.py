"""Segment-everything with SAM (paper 3.2: the proposals), faster and with the same masks.

Input: one RGB image (H,W,3) uint8 and a `segment_anything` model. Output: bool masks (N,H,W) with
SAM's predicted IoU and stability (N,). The results are bit-identical to those of
`SamAutomaticMaskGenerator`. It is faster because the point-independent part is computed once,
points without any mask above the predicted IoU threshold are dropped before their masks are
computed, the remaining masks are upsampled in small blocks, and no run-lengths are computed.

Shapes: B points, K masks, T tokens, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from segment_anything import SamAutomaticMaskGenerator, SamPredictor
from segment_anything.modeling import Sam
from segment_anything.utils.amg import batched_mask_to_box, build_point_grid
from torch import Tensor
from torch.nn import functional
from torchvision.ops import batched_nms

from semires.config.sources import SegmentAnythingSource
from semires.proposals.base import Proposals, device
from semires.proposals.checkpoint import load_sam

BLOCK_BYTES = 2 * 2**20  # upsampled logits of one block; they should fit in the CPU cache


class AutomaticMasks:
    """A faster `SamAutomaticMaskGenerator` with the same parameters.

    With crops (``crop_n_layers``) or ``min_mask_region_area`` the original generator is used.
    """

    def __init__(self, sam: Sam, **settings: Any) -> None:
        self.upstream = SamAutomaticMaskGenerator(sam, **settings)
        self.predictor = SamPredictor(sam)
        self.sam = sam
        self.whole_image_only = (
            self.upstream.crop_n_layers == 0 and self.upstream.min_mask_region_area == 0
        )

    @classmethod
    def from_settings(cls, settings: SegmentAnythingSource) -> AutomaticMasks:
        """The source with the checkpoint of the stage `sam`."""
        return cls(load_sam().to(device()), **settings.model_dump(exclude={"kind"}))

    @torch.no_grad()
    def propose(self, image: NDArray[np.uint8]) -> Proposals:
        """Return the masks of a uint8 RGB image (H,W,3), the highest predicted IoU first."""
        if not self.whole_image_only:
            return self._upstream(image)
        height, width = image.shape[:2]
        self.predictor.set_image(image)
        grid = build_point_grid(math.isqrt(len(self.upstream.point_grids[0])))
        points = grid * np.array([[width, height]])
        step = self.upstream.points_per_batch
        batches = [
            self._batch(points[first : first + step], (height, width))
            for first in range(0, len(points), step)
        ]
        self.predictor.reset_image()
        found = _Found.join(batches)
        keep = batched_nms(
            found.boxes.float(),
            found.predicted_iou,
            torch.zeros(len(found.boxes), device=found.boxes.device),
            iou_threshold=self.upstream.box_nms_thresh,
        ).cpu()
        packed = found.packed[keep.numpy()]
        masks = np.unpackbits(packed, axis=1, count=height * width).astype(bool)
        return Proposals(
            masks.reshape(-1, height, width),
            found.predicted_iou.cpu()[keep].numpy(),
            found.stability.cpu()[keep].numpy(),
        )

    def _upstream(self, image: NDArray[np.uint8]) -> Proposals:
        records = self.upstream.generate(image)
        masks = [record["segmentation"] for record in records]
        return Proposals(
            np.stack(masks) if masks else np.zeros((0, *image.shape[:2]), bool),
            np.array([record["predicted_iou"] for record in records], np.float32),
            np.array([record["stability_score"] for record in records], np.float32),
        )

    def _batch(self, points: NDArray[np.float64], size: tuple[int, int]) -> _Found:
        """Return the masks of one batch of points (B,2) that pass both thresholds."""
        settings = self.upstream
        logits, predicted_iou = self._decode(points, size)
        logits, predicted_iou = logits.flatten(0, 1), predicted_iou.flatten()
        if settings.pred_iou_thresh > 0.0:
            passes = predicted_iou > settings.pred_iou_thresh
            logits, predicted_iou = logits[passes], predicted_iou[passes]
        threshold, offset = self.sam.mask_threshold, settings.stability_score_offset
        found = []
        for block, iou in self._enlarged(logits, predicted_iou, size):
            high = _count(_above(block, threshold + offset))
            stability = high / _count(_above(block, threshold - offset))
            if settings.stability_score_thresh > 0.0:
                stable = stability >= settings.stability_score_thresh
                if not stable.all():
                    block, iou, stability = block[stable], iou[stable], stability[stable]
            masks = _above(block, threshold)
            packed = np.packbits(masks.flatten(1).cpu().numpy(), axis=1)
            found.append(_Found(packed, _boxes(masks), iou, stability))
        empty = _Found(
            np.zeros((0, (size[0] * size[1] + 7) // 8), np.uint8),
            torch.zeros((0, 4), dtype=torch.int64, device=self.sam.device),
            predicted_iou[:0],
            predicted_iou[:0],
        )
        return _Found.join([empty, *found])

    def _decode(self, points: NDArray[np.float64], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return low-resolution logits (B',M,h,w) and predicted IoU (B',M), M masks per point.

        Only the B' of B points with a mask above the predicted IoU threshold are returned. SAM has
        M = 3.
        """
        sam, decoder = self.sam, self.sam.mask_decoder
        inputs = self.predictor.transform.apply_coords(points, size)
        places = torch.as_tensor(inputs, device=sam.device)[:, None, :]
        labels = torch.ones((len(points), 1), dtype=torch.int, device=sam.device)
        sparse, dense = sam.prompt_encoder(points=(places, labels), boxes=None, masks=None)
        own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        tokens = torch.cat([own[None].expand(len(points), -1, -1), sparse], dim=1)
        image = (self.predictor.features + dense[:1]).flatten(2).transpose(1, 2).contiguous()
        place_code = sam.prompt_encoder.get_dense_pe().flatten(2).transpose(1, 2).contiguous()
        tokens, image = two_way(decoder.transformer, tokens, image, place_code)
        predicted_iou = decoder.iou_prediction_head(tokens[:, 0])[:, 1:]
        if self.upstream.pred_iou_thresh > 0.0:
            useful = (predicted_iou > self.upstream.pred_iou_thresh).any(dim=1)
            if not useful.all():
                tokens, image, predicted_iou = tokens[useful], image[useful], predicted_iou[useful]
        return self._logits(tokens, image), predicted_iou

    def _logits(self, tokens: Tensor, image: Tensor) -> Tensor:
        """Compute mask logits (B,M,h,w) from the transformer's output (B,T,C) and (B,hw/16,C)."""
        decoder = self.sam.mask_decoder
        if len(tokens) == 0:
            return tokens.new_zeros((0, 1, 1, 1))
        height, width = self.sam.prompt_encoder.image_embedding_size
        # Do not copy this view. Its channels-last layout selects the kernel, and other kernels give
        # other last bits.
        enlarged = decoder.output_upscaling(
            image.transpose(1, 2).view(len(image), image.shape[2], height, width)
        )
        count = decoder.num_mask_tokens
        weights = torch.stack(
            [decoder.output_hypernetworks_mlps[i](tokens[:, 1 + i]) for i in range(count)], dim=1
        )
        batch, channels, height, width = enlarged.shape
        flat = enlarged.view(batch, channels, height * width)
        logits: Tensor = (weights @ flat).view(batch, -1, height, width)[:, 1:]
        return logits

    def _enlarged(
        self, logits: Tensor, predicted_iou: Tensor, size: tuple[int, int]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Upsample logits to the image's size; yield blocks (k,H,W) and predicted IoU (k,)."""
        side = self.sam.image_encoder.img_size
        inner = self.predictor.input_size
        largest = 4 * max(side * side, size[0] * size[1])
        step = max(1, BLOCK_BYTES // largest) if logits.device.type == "cpu" else 64
        for first in range(0, len(logits), step):
            block = logits[None, first : first + step]
            block = _to_model_size(block, side, inner)
            if inner != tuple(size):
                block = functional.interpolate(block, size, mode="bilinear")
            yield block[0], predicted_iou[first : first + step]


def _to_model_size(logits: Tensor, side: int, inner: tuple[int, int]) -> Tensor:
    """Upsample (1,k,h,w) to the model's ``side`` and crop to ``inner``.

    If ``side`` is a multiple of h and w, the cropped part is not computed.
    """
    height, width = logits.shape[2:]
    factor = side // height
    if factor * height == side and factor * width == side:
        # One extra row and column, because bilinear interpolation uses the next pixel.
        rows, columns = -(-inner[0] // factor) + 1, -(-inner[1] // factor) + 1
        logits = functional.interpolate(
            logits[:, :, :rows, :columns],
            scale_factor=factor,
            mode="bilinear",
            recompute_scale_factor=False,
        )
    else:
        logits = functional.interpolate(logits, (side, side), mode="bilinear")
    return logits[..., : inner[0], : inner[1]]


@dataclass(frozen=True)
class _Found:
    """Masks as packed bits (K,HW/8) with boxes (K,4), predicted IoU (K,) and stability (K,)."""

    packed: NDArray[np.uint8]
    boxes: Tensor
    predicted_iou: Tensor
    stability: Tensor

    @staticmethod
    def join(parts: list[_Found]) -> _Found:
        return _Found(
            np.concatenate([part.packed for part in parts]),
            torch.cat([part.boxes for part in parts]),
            torch.cat([part.predicted_iou for part in parts]),
            torch.cat([part.stability for part in parts]),
        )


def _above(logits: Tensor, level: float) -> Tensor:
    """Return ``logits > level``. On the CPU, NumPy compares several times faster than torch."""
    if logits.device.type != "cpu":
        return logits > level
    return torch.from_numpy(logits.numpy() > np.float32(level))


def _count(masks: Tensor) -> Tensor:
    """Count the True pixels of each mask (K,H,W); returns int32 (K,)."""
    if masks.device.type != "cpu":
        return masks.flatten(1).sum(dim=1, dtype=torch.int32)
    counts = [int(np.count_nonzero(mask)) for mask in masks.numpy()]
    return torch.tensor(counts, dtype=torch.int32)


def _boxes(masks: Tensor) -> Tensor:
    """Return the boxes (K,4) of masks (K,H,W): left, top, right, bottom; zeros for empty masks."""
    if masks.device.type != "cpu":
        boxes: Tensor = batched_mask_to_box(masks)
        return boxes
    pixels: NDArray[np.bool_] = masks.numpy()
    height, width = pixels.shape[1:]
    rows, columns = np.any(pixels, axis=2), np.any(pixels, axis=1)
    edges = [
        columns.argmax(axis=1),
        rows.argmax(axis=1),
        width - 1 - columns[:, ::-1].argmax(axis=1),
        height - 1 - rows[:, ::-1].argmax(axis=1),
    ]
    return torch.from_numpy(np.stack(edges, axis=1) * rows.any(axis=1)[:, None])


def two_way(
    transformer: Any, tokens: Tensor, image: Tensor, place: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute `TwoWayTransformer.forward` for one image with many prompts.

    In the first layer the image tokens are the same for all prompts, so their projections are
    computed once.

    Args:
        transformer: the transformer of SAM's mask decoder.
        tokens: prompt tokens (B,T,C).
        image: image tokens (1,N,C), contiguous.
        place: positional encoding of the image tokens (1,N,C), contiguous.

    Returns:
        The new tokens (B,T,C) and image tokens (B,N,C).
    """
    prompt = tokens
    for layer in transformer.layers:
        if layer.skip_first_layer_pe:
            tokens = layer.self_attn(q=tokens, k=tokens, v=tokens)
        else:
            placed = tokens + prompt
            tokens = tokens + layer.self_attn(q=placed, k=placed, v=tokens)
        tokens = layer.norm1(tokens)
        placed_image = image + place
        attention = layer.cross_attn_token_to_image
        tokens = layer.norm2(tokens + _attend(attention, tokens + prompt, placed_image, image))
        tokens = layer.norm3(tokens + layer.mlp(tokens))
        attention = layer.cross_attn_image_to_token
        image = layer.norm4(image + _attend(attention, placed_image, tokens + prompt, tokens))
    attention = transformer.final_attn_token_to_image
    tokens = tokens + _attend(attention, tokens + prompt, image + place, image)
    return transformer.norm_final_attn(tokens), image


def _attend(attention: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Compute `Attention.forward`; the query, or the key and value, may have batch size 1."""
    heads = attention.num_heads
    q, k, v = (
        projection(x).unflatten(2, (heads, -1)).transpose(1, 2)
        for projection, x in (
            (attention.q_proj, query),
            (attention.k_proj, key),
            (attention.v_proj, value),
        )
    )
    weights = torch.softmax((q @ k.transpose(2, 3)).div_(math.sqrt(q.shape[-1])), dim=-1)
    out: Tensor = attention.out_proj((weights @ v).transpose(1, 2).flatten(2))
    return out
