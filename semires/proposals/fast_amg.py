"""Segment-everything with SAM (paper 3.2: the proposals), the same masks in less time.

In: one RGB image (H,W,3) uint8 and a `segment_anything` model; out: bool masks (N,H,W) with SAM's
predicted IoU and stability (N,). Every step does the arithmetic of `SamAutomaticMaskGenerator`
bit for bit, but in another order: what does not depend on the point is computed once, points
whose masks all fail the predicted IoU are dropped before their masks are made, the rest is
enlarged in small blocks, and run-lengths are never made. B points, K masks, T tokens, C channels.
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

from semires.proposals.base import Proposals

BLOCK_BYTES = 2 * 2**20  # enlarged logits of one block: they should stay in the cache


class AutomaticMasks:
    """`SamAutomaticMaskGenerator` by its own parameter names; ``propose`` instead of ``generate``.

    Crops (``crop_n_layers``) and ``min_mask_region_area`` go to upstream's own generator.
    """

    def __init__(self, sam: Sam, **settings: Any) -> None:
        self.upstream = SamAutomaticMaskGenerator(sam, **settings)
        self.predictor = SamPredictor(sam)
        self.sam = sam
        self.whole_image_only = (
            self.upstream.crop_n_layers == 0 and self.upstream.min_mask_region_area == 0
        )

    @torch.no_grad()
    def propose(self, image: NDArray[np.uint8]) -> Proposals:
        """Masks of a uint8 RGB image (H,W,3), in upstream's order (best predicted IoU first)."""
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
        """The masks of one batch of points (B,2) that pass both thresholds."""
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
        """Low-resolution logits (B',M,h,w) and predicted IoU (B',M), M masks a point (SAM: 3).

        Of the B points those stay of which a mask passes the predicted IoU.
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
        """Mask logits (B,M,h,w) from the transformer's output (B,T,C) and (B,hw/16,C)."""
        decoder = self.sam.mask_decoder
        if len(tokens) == 0:
            return tokens.new_zeros((0, 1, 1, 1))
        height, width = self.sam.prompt_encoder.image_embedding_size
        # A view, not a copy: the channels-last layout decides which kernel runs, hence the bits.
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
        """Logits at the image's size in blocks (k,H,W), with their predicted IoU (k,)."""
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
    """Enlarge (1,k,h,w) to the model's ``side`` and cut to ``inner``, without what is cut off."""
    height, width = logits.shape[2:]
    factor = side // height
    if factor * height == side and factor * width == side:
        # One row and column more than needed, so that the last ones still see their neighbours.
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
    """Bool ``logits > level``; on the CPU NumPy compares several times faster."""
    if logits.device.type != "cpu":
        return logits > level
    return torch.from_numpy(logits.numpy() > np.float32(level))


def _count(masks: Tensor) -> Tensor:
    """True pixels of each mask (K,H,W) as int32 (K,)."""
    if masks.device.type != "cpu":
        return masks.flatten(1).sum(dim=1, dtype=torch.int32)
    counts = [int(np.count_nonzero(mask)) for mask in masks.numpy()]
    return torch.tensor(counts, dtype=torch.int32)


def _boxes(masks: Tensor) -> Tensor:
    """Boxes (K,4) around masks (K,H,W): left, top, right, bottom; zeros for an empty mask."""
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
    """`TwoWayTransformer.forward` for one image under many prompts.

    tokens (B,T,C), image and its place code (1,N,C) contiguous; returns (B,T,C) and (B,N,C). The
    image is the same for all prompts until the end of the first layer, so its projections there
    are made once.
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
    """`Attention.forward` in which query or key and value may have a batch of one."""
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
