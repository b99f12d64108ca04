"""ReLA's regions: learned queries that attend to the image, to the words and to each other.

Q queries represent the cells of a square grid (the *minimap*). Each layer has cross-attention to
one map of the pixel decoder (RIA), self-attention (RLA, whose language part acts in the first layer
only) and a feed-forward part, all post-norm. A query attends where its own region mask is
foreground.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from semires.config.model import Rela

LEVELS = 3  # maps of the pixel decoder


class Attention(nn.Module):
    """Multi-head attention with residual and norm, without dropout."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm = nn.LayerNorm(width)

    def forward(
        self,
        x: torch.Tensor,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        masked: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """``norm(x + attention)``, (B,Q,C).

        Args:
            x: (B,Q,C), the residual.
            query: (B,Q,C).
            key: (B,K,C).
            value: (B,K,C).
            masked: bool (B,Q,K), True where a query may not attend; the same for all heads.
        """
        if masked is not None:
            masked = masked.repeat_interleave(self.heads, dim=0)
        out, _ = self.attention(query, key, value, attn_mask=masked, need_weights=False)
        return self.norm(x + out)  # type: ignore[no-any-return]


class RegionLayer(nn.Module):
    """RIA, RLA among the regions, and the feed-forward part."""

    def __init__(self, width: int, heads: int, feedforward: int) -> None:
        super().__init__()
        self.image = Attention(width, heads)
        self.regions = Attention(width, heads)
        self.linear1 = nn.Linear(width, feedforward)
        self.linear2 = nn.Linear(feedforward, width)
        self.norm = nn.LayerNorm(width)

    def attend_image(
        self,
        queries: torch.Tensor,
        positions: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        masked: torch.Tensor,
    ) -> torch.Tensor:
        """RIA: queries (B,Q,C) over the pixels of one map, keys and values (B,K,C)."""
        out: torch.Tensor = self.image(queries, queries + positions, key, value, masked)
        return out

    def forward(self, queries: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """The rest of the layer: self-attention and feed-forward, (B,Q,C)."""
        placed = queries + positions
        queries = self.regions(queries, placed, placed, queries)
        out: torch.Tensor = self.norm(queries + self.linear2(F.relu(self.linear1(queries))))
        return out


class Mlp(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., first width) to (..., last width)."""
        for i, layer in enumerate(self.layers):
            x = layer(F.relu(x) if i else x)
        return x


class RegionDecoder(nn.Module):
    """From the pixel decoder's maps and the words to target logits, minimap and no-target logits.

    Args:
        settings: the sizes.
        text_dim: channels D of the text states.
    """

    def __init__(self, settings: Rela, text_dim: int) -> None:
        super().__init__()
        from transformers.models.mask2former.modeling_mask2former import (
            Mask2FormerSinePositionEmbedding,
        )

        width, heads = settings.width, settings.num_heads
        pixel_width = settings.pixel_width or width
        self.sine: Any = Mask2FormerSinePositionEmbedding(width // 2, normalize=True)
        self.features = nn.Embedding(settings.regions, width)
        self.positions = nn.Embedding(settings.regions, width)
        self.level_embed = nn.Embedding(LEVELS, width)
        projects = settings.project_levels or pixel_width != width
        self.project = nn.ModuleList(
            nn.Conv2d(pixel_width, width, 1) if projects else nn.Identity() for _ in range(LEVELS)
        )
        self.layers = nn.ModuleList(
            RegionLayer(width, heads, settings.region_feedforward)
            for _ in range(settings.region_layers)
        )
        self.language_scale = settings.language_scale
        self.language_weight = nn.Parameter(torch.zeros(()))
        self.language_project = nn.Linear(text_dim, width, bias=False)
        self.language = Attention(width, heads)
        self.norm = nn.LayerNorm(width)
        self.mask_embed = Mlp([width, width, width, settings.mask_width or width])
        self.minimap = nn.Linear(width, 2)
        self.no_target = Mlp([width, width, 2])
        self.grad_checkpointing = False
        self._initialise()

    def _initialise(self) -> None:
        """Xavier for attention and feed-forward parts; the words' part starts at zero."""
        for part in (*self.layers, self.language):
            for parameter in part.parameters():
                if parameter.dim() > 1:
                    nn.init.xavier_uniform_(parameter)
        nn.init.zeros_(self.language_project.weight)

    def forward(
        self, maps: tuple[torch.Tensor, ...], mask_features: torch.Tensor, words: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """All outputs.

        Args:
            maps: three of (B,C,h,w), coarsest first.
            mask_features: (B,C,H/4,W/4).
            words: text states (B,L,D).

        Returns:
            ``target_logits`` (B,2,H/4,W/4), ``minimap`` (B,2,Q) and ``no_target`` (B,2).
        """
        queries = self.norm(self.queries(maps, mask_features, words))
        minimap = self.minimap(queries)
        # Target logits are the regions' masks, summed with the minimap as weights.
        kernels = minimap.transpose(1, 2) @ self.mask_embed(queries)
        return {
            "target_logits": torch.einsum("bkc,bchw->bkhw", kernels, mask_features),
            "minimap": minimap.transpose(1, 2),
            "no_target": self.no_target(queries).mean(dim=1),
        }

    def queries(
        self, maps: tuple[torch.Tensor, ...], mask_features: torch.Tensor, words: torch.Tensor
    ) -> torch.Tensor:
        """The queries (B,Q,C) after the last layer, before the final norm."""
        memory = [self._memory(level, values) for level, values in enumerate(maps)]
        queries = self.features.weight.expand(len(mask_features), -1, -1)
        positions = self.positions.weight.expand_as(queries)
        for i, layer in enumerate(self.layers):
            key, value = memory[i % LEVELS]
            masked = self.masked(queries, mask_features, maps[i % LEVELS].shape[-2:])
            queries = self._run(layer.attend_image, queries, positions, key, value, masked)
            if i == 0:
                queries = queries + self._of_words(queries, words)
            queries = self._run(layer, queries, positions)
        return queries

    def _run(self, function: Any, *inputs: torch.Tensor) -> torch.Tensor:
        if self.grad_checkpointing and self.training:
            return checkpoint(function, *inputs, use_reentrant=False)  # type: ignore[no-any-return]
        return function(*inputs)  # type: ignore[no-any-return]

    def _memory(self, level: int, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values (B,h*w,C) of one map; positions are added to the keys only."""
        value = self.project[level](values).flatten(2).transpose(1, 2)
        value = value + self.level_embed.weight[level]
        sine = self.sine(values.shape, values.device, value.dtype)
        return value + sine.flatten(2).transpose(1, 2), value

    def _of_words(self, queries: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        """RLA's language part; as published, padding is not masked."""
        projected = self.language_project(words)
        out: torch.Tensor = self.language(queries, queries, projected, projected)
        return self.language_scale * torch.sigmoid(self.language_weight) * out

    @torch.no_grad()
    def masked(
        self, queries: torch.Tensor, mask_features: torch.Tensor, size: torch.Size
    ) -> torch.Tensor:
        """Where the queries' region masks, resized to ``size``, are background; bool (B,Q,h*w).

        A query whose mask has no foreground attends everywhere.
        """
        logits = self.region_masks(queries, mask_features)
        logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        masked = logits.flatten(2) < 0  # sigmoid below 0.5
        return masked & ~masked.all(dim=-1, keepdim=True)

    def region_masks(self, queries: torch.Tensor, mask_features: torch.Tensor) -> torch.Tensor:
        """Logits (B,Q,H/4,W/4) of the queries' masks."""
        embedded = self.mask_embed(self.norm(queries))
        return torch.einsum("bqc,bchw->bqhw", embedded, mask_features)
