"""PWAM, LAVT's pixel-word attention, and the language gate, used after every Swin stage.

Published as `lib/backbone.py` of LAVT. In: tokens ``x`` (B,L,C) of one stage and text states
(B,T,D) with the mask of :func:`additive_mask`. Out: tokens (B,L,C). The published 1x1 convolutions
over channel-first tokens are linear layers here, which is the same arithmetic.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

MASKED = -1e4  # added to the score of padding, as published; its softmax is zero


def additive_mask(attention_mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Attention mask int (B,T), 1 for words, to a bias (B,1,1,T): 0 for words, -1e4 for padding."""
    return (1 - attention_mask[:, None, None, :].to(dtype)) * MASKED


def instance_norm(x: torch.Tensor) -> torch.Tensor:
    """Normalise every channel of (B,L,C) over the tokens of its image, without parameters."""
    # With tokens last, layer norm is one fast kernel; on a 1x1 grid it gives 0.
    last = x.transpose(1, 2)
    return F.layer_norm(last, last.shape[-1:]).transpose(1, 2)


class PixelWordAttention(nn.Module):
    """Cross-attention with pixel queries and word keys and values.

    Queries and output are instance-normalised. Scores are divided by sqrt(C) for any number of
    heads, as published. ``heads`` must divide ``dim``.
    """

    def __init__(self, dim: int, text_dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(text_dim, dim)
        self.value = nn.Linear(text_dim, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor, text: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Attended words (B,L,C) for tokens (B,L,C), text (B,T,D) and mask (B,1,1,T)."""
        batch, _, dim = x.shape
        query, key, value = (
            t.view(batch, -1, self.heads, dim // self.heads).transpose(1, 2)
            for t in (instance_norm(self.query(x)), self.key(text), self.value(text))
        )
        attended = F.scaled_dot_product_attention(
            query.to(value.dtype), key, value, mask.to(value.dtype), scale=dim**-0.5
        )
        return instance_norm(self.out(attended.transpose(1, 2).flatten(2)))


class PWAM(nn.Module):
    """Pixel-Word Attention Module: attended words times projected pixels, projected again."""

    def __init__(self, dim: int, text_dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.visual = nn.Linear(dim, dim)
        self.attention = PixelWordAttention(dim, text_dim, heads)
        self.project = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, text: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Fused tokens (B,L,C), LAVT's F_i."""
        visual = self.dropout(F.gelu(self.visual(x)))
        fused: torch.Tensor = visual * self.attention(x, text, mask)
        out: torch.Tensor = self.dropout(F.gelu(self.project(fused)))
        return out


class LanguageGate(nn.Module):
    """Gate on the fused tokens that are added to the next stage's input: tanh(W relu(V f)) * f."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.inner = nn.Linear(dim, dim, bias=False)
        self.outer = nn.Linear(dim, dim, bias=False)

    def forward(self, fused: torch.Tensor) -> torch.Tensor:
        """Tokens (B,L,C) to gated tokens (B,L,C)."""
        return torch.tanh(self.outer(F.relu(self.inner(fused)))) * fused
