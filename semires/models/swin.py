"""Swin's forward pass over the modules of transformers' `SwinModel`, one stage at a time.

LAVT needs the tokens between a stage's blocks and its downsampling. The weights are those of
`SwinModel`. The arithmetic equals its blocks called with ``always_partition=True``, with two
differences: shift masks are cached by grid, and stochastic depth also acts on the MLP branch, as
in the published Swin. Tokens are (B,L,C) with L = H * W.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch.nn import functional as F

from semires.config.model import Swin

Grid = tuple[int, int]


def new_swin(settings: Swin) -> Any:
    """A `SwinModel` of the given sizes with random weights."""
    from transformers import SwinConfig, SwinModel

    return SwinModel(
        SwinConfig(
            # The image size only determines the grid of absolute positions.
            image_size=settings.patch_size * settings.position_grid,
            patch_size=settings.patch_size,
            embed_dim=settings.embed_dim,
            depths=settings.depths,
            num_heads=settings.num_heads,
            window_size=settings.window_size,
            mlp_ratio=settings.mlp_ratio,
            drop_path_rate=settings.drop_path_rate,
            use_absolute_embeddings=settings.absolute_embeddings,
        ),
        add_pooling_layer=False,
    )


def embed(swin: Any, pixel_values: torch.Tensor) -> tuple[torch.Tensor, Grid]:
    """Pixels (B,3,H,W) to patch tokens and their grid.

    Absolute positions are resized (bicubic) to the grid of the image.
    """
    embeddings = swin.embeddings
    tokens, grid = embeddings.patch_embeddings(pixel_values)
    tokens = embeddings.norm(tokens)
    if embeddings.position_embeddings is not None:
        tokens = tokens + resize_positions(embeddings.position_embeddings, grid)
    tokens = embeddings.dropout(tokens)
    return tokens, grid


def resize_positions(positions: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Absolute positions (1,N,C) of a square grid to (1,H*W,C)."""
    side = int(positions.shape[1] ** 0.5)
    if grid == (side, side):
        return positions
    square = positions.view(1, side, side, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(square, size=grid, mode="bicubic", align_corners=False)
    return resized.flatten(2).transpose(1, 2)


def run_block(block: Any, tokens: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Window attention and MLP, each with its residual."""
    attended = window_attention(block, block.layernorm_before(tokens), grid)
    tokens = tokens + block.drop_path(attended)
    out: torch.Tensor = tokens + block.drop_path(block.mlp(block.layernorm_after(tokens)))
    return out


def window_attention(block: Any, tokens: torch.Tensor, grid: Grid) -> torch.Tensor:
    """(Shifted) window attention over (B,L,C): pad, roll, cut into windows, and back."""
    height, width = grid
    side, shift = block.window_size, block.shift_size
    batch, _, channels = tokens.shape
    x = tokens.view(batch, height, width, channels)
    below, right = -height % side, -width % side
    if below or right:
        x = F.pad(x, (0, 0, 0, right, 0, below))
    if shift:
        x = torch.roll(x, (-shift, -shift), (1, 2))
    rows, columns = (height + below) // side, (width + right) // side
    x = x.view(batch, rows, side, columns, side, channels).transpose(2, 3)
    x = _attend(block.attention, x.reshape(-1, side * side, channels), rows, columns, shift)
    x = x.view(batch, rows, columns, side, side, channels).transpose(2, 3)
    x = x.reshape(batch, height + below, width + right, channels)
    if shift:
        x = torch.roll(x, (shift, shift), (1, 2))
    if below or right:
        x = x[:, :height, :width]
    return x.reshape(batch, height * width, channels)


def _attend(
    attention: Any, windows: torch.Tensor, rows: int, columns: int, shift: int
) -> torch.Tensor:
    """Multi-head self-attention in each window; (B*rows*columns, side^2, C)."""
    heads = attention.num_attention_heads
    query, key, value = (
        layer(windows).view(*windows.shape[:2], heads, -1).transpose(1, 2)
        for layer in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    table = attention.relative_position_bias
    bias = F.embedding(table.relative_position_index, table.relative_position_bias_table)
    bias = bias.view(table.window_area, table.window_area, -1).permute(2, 0, 1).unsqueeze(0)
    if shift:
        side = table.window_size[0]
        # The compiler stores the mask as a constant.
        make = shift_mask if torch.compiler.is_compiling() else _cached_shift_mask
        mask = make(rows, columns, side, shift, str(windows.device))
        batch = len(windows) // len(mask)
        bias = (bias + mask[:, None]).repeat(batch, 1, 1, 1)
    dropout = attention.attention_dropout if attention.training else 0.0
    out = F.scaled_dot_product_attention(
        query, key, value, bias.to(query.dtype), dropout_p=dropout, scale=attention.scaling
    )
    return attention.o_proj(out.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def shift_mask(rows: int, columns: int, side: int, shift: int, device: str) -> torch.Tensor:
    """Attention mask (rows*columns, side^2, side^2) of shifted windows.

    It is -100 between pixels that are neighbours only because of the roll, and 0 elsewhere.
    """
    height, width = rows * side, columns * side
    y, x = torch.arange(height, device=device), torch.arange(width, device=device)
    y_region = (y >= height - side).long() + (y >= height - shift).long()
    x_region = (x >= width - side).long() + (x >= width - shift).long()
    region = (3 * y_region[:, None] + x_region).view(rows, side, columns, side)
    region = region.transpose(1, 2).reshape(rows * columns, side * side)
    return -100.0 * (region[:, None] != region[:, :, None]).float()


@functools.lru_cache(maxsize=64)
def _cached_shift_mask(rows: int, columns: int, side: int, shift: int, device: str) -> torch.Tensor:
    with torch.inference_mode(False):  # training reuses masks made in evaluation
        return shift_mask(rows, columns, side, shift, device)


def downsample(stage: Any, tokens: torch.Tensor, grid: Grid) -> tuple[torch.Tensor, Grid]:
    """Patch merging to half the grid, rounded up; the last stage has none."""
    if stage.downsample is None:
        return tokens, grid
    merged: torch.Tensor = stage.downsample(tokens, grid)
    return merged, ((grid[0] + 1) // 2, (grid[1] + 1) // 2)
