"""LAVT, the segmentation network of the paper's section 4.2: the fused encoder and a decoder.

The decoder goes from the maps of four stages to two classes on the finest stage's grid. In: maps
(B,C_i,H_i,W_i), finest first, C_i = C_1 * 2^i. Out: logits (B,2,H_1,W_1); channel 0 is background,
channel 1 the object. Memory is channels-last, as the tokens of the stages are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from semires.config.model import Lavt
from semires.models import swin as swin_ops
from semires.models.encoder import FusedEncoder, new_bert


class LAVT(FusedEncoder):
    """Language-Aware Vision Transformer (Yang et al., CVPR 2022) on transformers' Swin and BERT.

    The arguments are those of `FusedEncoder`, and:

    Args:
        decoder_width: channels of the decoder; None is the published 4 x embed_dim.
    """

    def __init__(
        self,
        swin: Any,
        bert: Any,
        text_dim: int,
        fusion_heads: list[int],
        fusion_dropout: float = 0.0,
        decoder_width: int | None = None,
    ) -> None:
        super().__init__(swin, bert, text_dim, fusion_heads, fusion_dropout, gates=4)
        self.decoder = Decoder(self.dims, decoder_width)

    @classmethod
    def from_config(cls, model: Lavt, vocab_size: int) -> LAVT:
        """A LAVT of the given sizes with random weights everywhere."""
        return cls(
            swin_ops.new_swin(model.swin),
            new_bert(model.bert, vocab_size),
            model.bert.hidden_size,
            model.fusion_heads,
            model.fusion_dropout,
            model.decoder_width,
        )

    def decode(
        self, maps: list[torch.Tensor], text_states: torch.Tensor, size: tuple[int, int]
    ) -> torch.Tensor:
        """Logits (B,2,*size), float32, of the stages' maps; the text states are not used again."""
        # Upsampling is done in float32, also under mixed precision.
        return resize(self.decoder(maps).float(), *size)


def resize(x: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Bilinear resize of (B,C,H,W) with aligned corners, as published; no-op at equal size."""
    if x.shape[-2:] == (height, width):
        return x
    return F.interpolate(x, size=(height, width), mode="bilinear", align_corners=True)


class Merge(nn.Module):
    """Upsample, concatenate with the finer map, and convolve twice (3x3, batch norm, ReLU)."""

    def __init__(self, coarse: int, fine: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(coarse + fine, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, coarse: torch.Tensor, fine: torch.Tensor) -> torch.Tensor:
        """Maps (B,C,h,w) and (B,c,H,W) to (B,width,H,W)."""
        height, width = fine.shape[-2:]
        x = torch.cat([resize(coarse, height, width), fine], dim=1)
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(x)), inplace=True)


class Decoder(nn.Module):
    """Three merges from stage 4 up to stage 1 and a 1x1 classifier.

    Args:
        dims: channels of the four maps, finest first.
        width: channels of the convolutions; None is half of the coarsest map's, as published.
    """

    def __init__(self, dims: list[int], width: int | None) -> None:
        super().__init__()
        width = width or dims[3] // 2
        self.merge4 = Merge(dims[3], dims[2], width)
        self.merge3 = Merge(width, dims[1], width)
        self.merge2 = Merge(width, dims[0], width)
        self.classifier = nn.Conv2d(width, 2, 1)
        self.to(memory_format=torch.channels_last)

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """Maps, finest first, to logits (B,2,H_1,W_1)."""
        fine1, fine2, fine3, coarse = maps
        x = self.merge4(coarse, fine3)
        x = self.merge3(x, fine2)
        x = self.merge2(x, fine1)
        logits: torch.Tensor = self.classifier(x)
        return logits
