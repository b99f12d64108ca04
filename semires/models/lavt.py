"""LAVT, the segmentation network of the paper's section 4.2: the fused encoder and a decoder."""

from __future__ import annotations

from typing import Any

import torch

from semires.config.model import Lavt
from semires.models import swin as swin_ops
from semires.models.decoder import Decoder, resize
from semires.models.encoder import FusedEncoder, load_encoders, new_bert
from semires.models.text import Tokenizer


def build_lavt(model: Lavt, tokenizer: Tokenizer, pretrained: bool = True) -> LAVT:
    """Build a LAVT; Swin and BERT are loaded if ``model`` names pretrained weights.

    Args:
        model: the `model` section.
        tokenizer: gives the size of the vocabulary.
        pretrained: False gives random weights, for a caller that loads all weights afterwards.

    Raises:
        WeightsError: the weights are missing, damaged or of other sizes than ``model`` says.
    """
    return load_encoders(LAVT.from_config(model, tokenizer.vocab_size), model, pretrained)


class LAVT(FusedEncoder):
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
