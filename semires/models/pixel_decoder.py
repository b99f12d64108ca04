"""ReLA's pixel decoder: multi-scale deformable attention over the stages at strides 8, 16 and 32.

The module is `transformers`' `Mask2FormerPixelDecoder`, the pixel decoder of Mask2Former that GRES
uses too. In: the encoder's maps, finest first. Out: mask features at stride 4 and three maps,
coarsest first. Sampling points (4 a level) and levels (3) are fixed there.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

POINTS_PER_HEAD = 3 * 4  # levels x sampling points


def new_pixel_decoder(
    dims: list[int], width: int, mask_width: int, layers: int, heads: int, feedforward: int
) -> Any:
    """A `Mask2FormerPixelDecoder` with random weights.

    Args:
        dims: channels of the four maps, finest first.
        width: channels inside, a multiple of 32 and of ``heads``.
        mask_width: channels of the mask features.
        layers: deformable layers.
        heads: attention heads.
        feedforward: channels of the feed-forward parts.
    """
    from transformers import Mask2FormerConfig
    from transformers.models.mask2former.modeling_mask2former import Mask2FormerPixelDecoder

    decoder = Mask2FormerPixelDecoder(
        Mask2FormerConfig(
            feature_size=width,
            mask_feature_size=mask_width,
            encoder_layers=layers,
            encoder_feedforward_dim=feedforward,
            num_attention_heads=heads,
            dropout=0.0,
            feature_strides=[4, 8, 16, 32],
            common_stride=4,
        ),
        feature_channels=dims,
    )
    initialise(decoder)
    return decoder


@torch.no_grad()
def initialise(decoder: Any) -> None:
    """Initial weights as published: Xavier; each head samples along a direction of its own."""
    # The library makes it with `torch.Tensor`, which ignores `torch.device("meta")`.
    decoder.level_embed = nn.Parameter(torch.randn(decoder.level_embed.shape))
    for projection in decoder.input_projections:
        nn.init.xavier_uniform_(projection[0].weight)
        nn.init.zeros_(projection[0].bias)
    for layer in decoder.encoder.layers:
        for parameter in layer.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        attention = layer.self_attn
        for linear in (attention.sampling_offsets, attention.attention_weights):
            nn.init.zeros_(linear.weight)
        for linear in (attention.attention_weights, attention.value_proj, attention.output_proj):
            nn.init.zeros_(linear.bias)
        attention.sampling_offsets.bias.copy_(
            _directions(attention.n_heads, attention.n_levels, attention.n_points)
        )


def _directions(heads: int, levels: int, points: int) -> torch.Tensor:
    """Offsets in cells: point i of head h lies i + 1 steps along the direction 2 pi h / heads."""
    angles = torch.arange(heads) * (2 * math.pi / heads)
    steps = torch.stack([angles.cos(), angles.sin()], dim=-1)
    steps = steps / steps.abs().amax(dim=-1, keepdim=True)
    lengths = torch.arange(1, points + 1)[:, None]
    offsets = steps[:, None, None] * lengths  # (heads, 1, points, 2)
    return offsets.expand(-1, levels, -1, -1).flatten()
