"""ReLA, GRES's segmentation network (Liu et al., CVPR 2023), the second network of Table 7.

The fused encoder of LAVT, a pixel decoder, and regions that predict masks. Beside the mask ReLA
predicts a minimap (the regions that contain the target) and whether there is no target at all.
Evaluation uses the mask only, because every expression of RefCOCO has a target.

The published loss is ``5 * (mask + 0.1 * minimap + 0.1 * no-target)`` of the last layer, each part
a :func:`weighted_cross_entropy`. Here the mask loss is the training's own, and the factor 5, which
AdamW cancels, is left out.
"""

from __future__ import annotations

import contextlib
import math
import re
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from semires.config.model import Rela
from semires.config.schema import Optimizer
from semires.errors import ConfigError
from semires.models import swin as swin_ops
from semires.models.base import Outputs
from semires.models.encoder import FusedEncoder, new_bert
from semires.models.pixel_decoder import new_pixel_decoder
from semires.models.regions import RegionDecoder

# Norm layers and embeddings outside BERT, which the published code does not decay.
_UNDECAYED = re.compile(
    r"pixel_decoder\.(input_projections\.\d|adapter_1|layer_1)\.1\.|pixel_decoder\..*layer_norm"
    r"|regions\.(features|positions|level_embed)\.|regions\..*norm\."
)

CLASS_WEIGHTS = (0.9, 1.1)  # of the minimap and the no-target output, as published


class ReLA(FusedEncoder):
    """ReLA on transformers' Swin, BERT and `Mask2FormerPixelDecoder`.

    Args:
        settings: the sizes, and the options of the extra losses.
        bert: a `BertModel`, or None where text states are given to :meth:`segment` directly.
    """

    def __init__(self, settings: Rela, bert: Any) -> None:
        text_dim = settings.bert.hidden_size
        super().__init__(
            swin_ops.new_swin(settings.swin), bert, text_dim,
            settings.fusion_heads, settings.fusion_dropout, gates=3,
        )  # fmt: skip
        self.settings = settings
        if settings.zero_gates:
            for parameter in self.gates.parameters():
                nn.init.zeros_(parameter)
        width = settings.width
        self.pixel_decoder: Any = new_pixel_decoder(
            self.dims, settings.pixel_width or width, settings.mask_width or width,
            settings.pixel_layers, settings.num_heads, settings.pixel_feedforward,
        )  # fmt: skip
        self.regions = RegionDecoder(settings, text_dim)

    @classmethod
    def from_config(cls, model: Rela, vocab_size: int) -> ReLA:
        """A ReLA of the given sizes with random weights everywhere."""
        return cls(model, new_bert(model.bert, vocab_size))

    def decode(
        self, maps: list[torch.Tensor], text_states: torch.Tensor, size: tuple[int, int]
    ) -> torch.Tensor:
        """Logits (B,2,*size), float32, of the stages' maps and the text states."""
        return _enlarge(self.decode_heads(maps, text_states)["target_logits"], size)

    def heads(
        self, pixel_values: torch.Tensor, text_states: torch.Tensor, attention_mask: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """All outputs before upsampling.

        Args:
            pixel_values: (B,3,H,W).
            text_states: (B,L,D).
            attention_mask: (B,L), 1 for words.

        Returns:
            ``target_logits`` (B,2,H/4,W/4), ``minimap`` (B,2,Q) and ``no_target`` (B,2): logits
            with channel 1 for the target, for the regions of the target, and for no target.
        """
        maps = self.stage_maps(*self.encode_image(pixel_values), text_states, attention_mask)
        return self.decode_heads(maps, text_states)

    def decode_heads(
        self, maps: list[torch.Tensor], text_states: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """The outputs of :meth:`heads` from the encoder's maps."""
        mask_features, scales = self.decode_pixels(maps)
        outputs: dict[str, torch.Tensor] = self.regions(scales, mask_features, text_states)
        return outputs

    def decode_pixels(
        self, maps: list[torch.Tensor]
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Mask features (B,C,H/4,W/4) and three maps, coarsest first.

        Computed in float32 under mixed precision, as published.
        """
        decoder = self.pixel_decoder

        def run(*maps: torch.Tensor) -> tuple[torch.Tensor, ...]:
            device = maps[0].device.type
            known = torch.amp.is_autocast_available(device)  # not of the meta device
            with torch.autocast(device, enabled=False) if known else contextlib.nullcontext():
                dtype = decoder.level_embed.dtype
                # Contiguous as in the published code: other layouts round in another way.
                out = decoder([each.contiguous().to(dtype) for each in maps])
            return out.mask_features, *out.multi_scale_features

        if self.grad_checkpointing and self.training:
            mask_features, *scales = checkpoint(run, *maps, use_reentrant=False)
        else:
            mask_features, *scales = run(*maps)
        return mask_features, tuple(scales)

    def training_outputs(
        self, pixel_values: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> Outputs:
        """Logits (B,2,H,W), and as extra outputs the minimap and the no-target logits.

        Raises:
            ConfigError: deterministic algorithms are required on a GPU, where deformable attention
                has no deterministic backward pass.
        """
        if pixel_values.is_cuda and torch.are_deterministic_algorithms_enabled():
            raise ConfigError(
                "runtime.deterministic: ReLA has no deterministic backward pass on a GPU "
                "(grid_sample); set it to false"
            )
        text_states = self.encode_text(input_ids, attention_mask)
        heads = self.heads(pixel_values, text_states, attention_mask)
        height, width = pixel_values.shape[-2:]
        logits = _enlarge(heads.pop("target_logits"), (height, width))
        return Outputs(logits, {name: value.float() for name, value in heads.items()})

    def extra_losses(self, outputs: Outputs, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """The losses of the minimap and of the no-target output, with their weights.

        The no-target label is 0, or with ``empty_is_no_target`` 1 for an empty label.
        """
        settings = self.settings
        minimap, no_target = outputs.extra["minimap"], outputs.extra["no_target"]
        regions = minimap_target(labels, minimap.shape[-1], settings.minimap_target)
        empty = ~labels.flatten(1).any(dim=1) & settings.empty_is_no_target
        losses = {
            "minimap": settings.minimap_weight * weighted_cross_entropy(minimap, regions),
            "no_target": settings.no_target_weight
            * weighted_cross_entropy(no_target, empty.long()),
        }
        return losses

    def parameter_options(self, name: str, settings: Optimizer) -> tuple[float, float]:
        """As LAVT; also no decay on the decoders' norm layers and embeddings, as published."""
        decay, scale = super().parameter_options(name, settings)
        return 0.0 if _UNDECAYED.match(name) else decay, scale

    def set_grad_checkpointing(self, on: bool) -> None:
        """Recompute the blocks of Swin and BERT, the pixel decoder and the region layers."""
        super().set_grad_checkpointing(on)
        self.regions.grad_checkpointing = on


def _enlarge(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bilinear upsampling in float32, without aligned corners, as published."""
    return F.interpolate(logits.float(), size=size, mode="bilinear", align_corners=False)


def weighted_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy with class weights, divided by the sum of the weights (PyTorch's mean).

    Zero for an empty batch.

    Args:
        logits: float (B,2,...).
        labels: int64 (B,...) of 0 and 1.
    """
    weights = logits.new_tensor(CLASS_WEIGHTS)
    total = F.cross_entropy(logits, labels, weights, reduction="sum")
    return total / weights[labels].sum().clamp(min=torch.finfo(logits.dtype).tiny)


def minimap_target(
    labels: torch.Tensor, regions: int, kind: Literal["truncated", "majority"]
) -> torch.Tensor:
    """Which cells of the square grid of regions belong to the object.

    ``truncated``, the published target, resizes the mask bilinearly without antialiasing and cuts
    off to integers: a cell is 1 if the pixels at its centre are all 1, whatever the rest.
    ``majority``: a cell is 1 if at least half of its pixels are.

    Args:
        labels: int64 (B,H,W) of 0 and 1.
        regions: number of cells Q, a square number.
        kind: which of the two.

    Returns:
        int64 (B,Q), row by row.
    """
    side = math.isqrt(regions)
    mask = labels[:, None].float()
    if kind == "truncated":
        cells = F.interpolate(mask, (side, side), mode="bilinear", align_corners=False)
    else:
        cells = F.adaptive_avg_pool2d(mask, side) * 2
    return cells.long().clamp(max=1).flatten(1)
