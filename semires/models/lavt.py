"""LAVT, the segmentation network of the paper's section 4.2: Swin whose stages listen to BERT.

After each Swin stage PWAM fuses the words into the tokens; the fused map goes to the decoder, and
a gated copy joins the tokens that enter the next stage. In: pixels (B,3,H,W) normalised with
ImageNet's mean and deviation, ``input_ids`` and ``attention_mask`` int64 (B,L) of BERT's tokens.
Out: logits (B,2,H,W); channel 1 is the object.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from semires.config.schema import Bert, Model
from semires.errors import ConfigError, WeightsError
from semires.models import swin as swin_ops
from semires.models.decoder import Decoder, resize
from semires.models.fusion import PWAM, LanguageGate, additive_mask


def new_bert(settings: Bert, vocab_size: int, positions: int = 512) -> Any:
    """A `BertModel` of the given sizes with random weights, without pooler.

    Raises:
        ConfigError: the heads do not divide the channels.
    """
    from transformers import BertConfig, BertModel

    if settings.hidden_size % settings.num_heads:
        raise ConfigError(
            f"model.bert.num_heads: {settings.num_heads} heads do not divide "
            f"{settings.hidden_size} channels"
        )
    return BertModel(
        BertConfig(
            vocab_size=vocab_size,
            hidden_size=settings.hidden_size,
            num_hidden_layers=settings.num_layers,
            num_attention_heads=settings.num_heads,
            intermediate_size=settings.intermediate_size,
            max_position_embeddings=positions,
            hidden_dropout_prob=settings.dropout,
            attention_probs_dropout_prob=settings.dropout,
        ),
        add_pooling_layer=False,
    )


class LAVT(nn.Module):
    """Language-Aware Vision Transformer (Yang et al., CVPR 2022) on transformers' Swin and BERT.

    Args:
        swin: a `SwinModel`.
        bert: a `BertModel`, or None where text states are given to :meth:`segment` directly.
        text_dim: channels D of the text states.
        fusion_heads: PWAM's attention heads, per stage.
        fusion_dropout: PWAM's dropout.
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
        super().__init__()
        self.swin: Any = swin
        self.bert: Any = bert
        dims = [swin.config.embed_dim * 2**i for i in range(4)]
        self.fusions = nn.ModuleList(
            PWAM(dim, text_dim, heads, fusion_dropout)
            for dim, heads in zip(dims, fusion_heads, strict=True)
        )
        self.gates = nn.ModuleList(LanguageGate(dim) for dim in dims)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for dim in dims)
        self.decoder = Decoder(dims, decoder_width)
        # SwinModel's final norm and the last gate feed nothing: trained, they would stall DDP.
        swin.layernorm = nn.Identity()
        self.gates[3].requires_grad_(False)
        self.grad_checkpointing = False
        self.text_is_pretrained = False

    @classmethod
    def from_config(cls, model: Model, vocab_size: int) -> LAVT:
        """A LAVT of the given sizes with random weights everywhere."""
        return cls(
            swin_ops.new_swin(model.swin),
            new_bert(model.bert, vocab_size),
            model.bert.hidden_size,
            model.fusion_heads,
            model.fusion_dropout,
            model.decoder_width,
        )

    def forward(
        self, pixel_values: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> torch.Tensor:
        """Pixels (B,3,H,W) and tokens (B,L) to logits (B,2,H,W)."""
        text_states = self.encode_text(input_ids, attention_mask)
        return self.segment(pixel_values, text_states, attention_mask)

    def encode_text(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """BERT's last hidden states (B,L,D).

        Raises:
            WeightsError: the model was loaded without a text encoder.
        """
        if self.bert is None:
            raise WeightsError(
                "this checkpoint holds no text encoder: give load_official_lavt a BERT (`bert=`), "
                "or call LAVT.segment with text states"
            )
        out = self.bert(input_ids=input_ids, attention_mask=attention_mask)
        states: torch.Tensor = out.last_hidden_state
        return states

    def segment(
        self, pixel_values: torch.Tensor, text_states: torch.Tensor, attention_mask: torch.Tensor
    ) -> torch.Tensor:
        """Pixels (B,3,H,W), text states (B,L,D) and their mask (B,L) to logits (B,2,H,W)."""
        height, width = pixel_values.shape[-2:]
        begun = self.begin(pixel_values)
        return self.finish(begun, text_states, attention_mask, (height, width))

    def begin(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
        """What no expression touches: tokens (B,L,C) after the blocks of stage 1, and their grid.

        Computed once, it serves every expression of an image.
        """
        tokens, grid = swin_ops.embed(self.swin, pixel_values)
        return self._blocks(0, tokens, grid), grid

    def finish(
        self,
        begun: tuple[torch.Tensor, tuple[int, int]],
        text_states: torch.Tensor,
        attention_mask: torch.Tensor,
        size: tuple[int, int],
    ) -> torch.Tensor:
        """Everything after :meth:`begin`: logits (B,2,*size), float32."""
        tokens, grid = begun
        mask = additive_mask(attention_mask, text_states.dtype)
        maps = []
        for i, stage in enumerate(self.swin.encoder.layers):
            if i > 0:
                tokens = self._blocks(i, tokens, grid)
            fused = self.fusions[i](tokens, text_states, mask)
            maps.append(self.norms[i](fused).view(len(fused), *grid, -1).permute(0, 3, 1, 2))
            if i < 3:
                tokens, grid = swin_ops.downsample(stage, tokens + self.gates[i](fused), grid)
        # Upsampling and everything after it in float32, under mixed precision too.
        return resize(self.decoder(maps).float(), *size)

    def _blocks(self, i: int, tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        for block in self.swin.encoder.layers[i].blocks:
            if self.grad_checkpointing and self.training:
                tokens = checkpoint(swin_ops.run_block, block, tokens, grid, use_reentrant=False)
            else:
                tokens = swin_ops.run_block(block, tokens, grid)
        return tokens

    def set_grad_checkpointing(self, on: bool) -> None:
        """Trade time for memory: recompute Swin's and BERT's blocks in the backward pass."""
        self.grad_checkpointing = on
        if self.bert is not None and on:
            self.bert.gradient_checkpointing_enable({"use_reentrant": False})
        elif self.bert is not None:
            self.bert.gradient_checkpointing_disable()
