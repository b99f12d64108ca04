"""Swin fused with BERT's words: the encoder that LAVT and ReLA share.

After each Swin stage PWAM fuses the words into the tokens. The fused map is an output of the stage,
and a gated copy is added to the tokens that enter the next stage. Inputs and outputs are those of
`SegmentationModel`.
"""

from __future__ import annotations

import re
from typing import Any, Self

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from semires.config.model import Bert, FusedSection
from semires.config.schema import Optimizer
from semires.errors import WeightsError
from semires.models import swin as swin_ops
from semires.models.base import SegmentationModel
from semires.models.fusion import PWAM, LanguageGate, additive_mask
from semires.models.pretrained import load_bert, load_swin
from semires.models.text import Tokenizer

_BACKBONE = re.compile(r"(swin|norms|fusions|gates)\b")
_UNDECAYED = re.compile(r"norm|relative_position_bias|position_embed")


def new_bert(settings: Bert, vocab_size: int, positions: int = 512) -> Any:
    """A `BertModel` of the given sizes with random weights, without pooler."""
    from transformers import BertConfig, BertModel

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


class FusedEncoder(SegmentationModel):
    """Base of the models on Swin, BERT and PWAM.

    A model implements :meth:`from_config` and :meth:`decode`.

    Args:
        swin: a `SwinModel`.
        bert: a `BertModel`, or None where text states are given to :meth:`segment` directly.
        text_dim: channels D of the text states.
        fusion_heads: PWAM's attention heads, per stage.
        fusion_dropout: PWAM's dropout.
        gates: number of language gates. The first three feed stages 2 to 4; LAVT has an unused
            fourth one.

    Attributes:
        dims: channels of the four stages.
        text_is_pretrained: whether BERT's embeddings are pretrained, and therefore frozen.
    """

    def __init__(
        self,
        swin: Any,
        bert: Any,
        text_dim: int,
        fusion_heads: list[int],
        fusion_dropout: float,
        gates: int,
    ) -> None:
        super().__init__()
        self.swin: Any = swin
        self.bert: Any = bert
        self.dims = [swin.config.embed_dim * 2**i for i in range(4)]
        self.fusions = nn.ModuleList(
            PWAM(dim, text_dim, heads, fusion_dropout)
            for dim, heads in zip(self.dims, fusion_heads, strict=True)
        )
        self.gates = nn.ModuleList(LanguageGate(dim) for dim in self.dims[:gates])
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for dim in self.dims)
        # SwinModel's final norm and a fourth gate are unused; DDP waits for all gradients.
        swin.layernorm = nn.Identity()
        self.gates[3:].requires_grad_(False)
        self.grad_checkpointing = False
        self.text_is_pretrained = False

    @classmethod
    def from_config(cls, model: Any, vocab_size: int) -> Self:
        """A model of the given sizes, a `model` section, with random weights everywhere."""
        raise NotImplementedError

    @classmethod
    def build(cls, model: FusedSection, tokenizer: Tokenizer, pretrained: bool = True) -> Self:
        """A model of the given sizes; Swin and BERT are loaded if ``model`` names weights.

        Args:
            model: the `model` section.
            tokenizer: gives the size of the vocabulary.
            pretrained: False gives random weights, for a caller that loads all weights afterwards.

        Raises:
            WeightsError: the weights are missing, damaged or of other sizes than ``model`` says.
        """
        built, swin, bert = cls.from_config(model, tokenizer.vocab_size), model.swin, model.bert
        built.text_is_pretrained = bert.pretrained is not None
        if pretrained and swin.pretrained is not None:
            load_swin(built.swin, swin.pretrained)
        if pretrained and bert.pretrained is not None:
            load_bert(built.bert, bert.pretrained)
        return built

    def decode(
        self, maps: list[torch.Tensor], text_states: torch.Tensor, size: tuple[int, int]
    ) -> torch.Tensor:
        """Logits (B,2,*size), float32, of the stages' maps (finest first) and the text states."""
        raise NotImplementedError

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
                "this checkpoint holds no text encoder: give the loader a BERT (`bert=`), or call "
                f"{type(self).__name__}.segment with text states"
            )
        out = self.bert(input_ids=input_ids, attention_mask=attention_mask)
        states: torch.Tensor = out.last_hidden_state
        return states

    def segment(
        self, pixel_values: torch.Tensor, text_states: torch.Tensor, attention_mask: torch.Tensor
    ) -> torch.Tensor:
        """Pixels (B,3,H,W), text states (B,L,D) and their mask (B,L) to logits (B,2,H,W)."""
        height, width = pixel_values.shape[-2:]
        maps = self.stage_maps(*self.encode_image(pixel_values), text_states, attention_mask)
        return self.decode(maps, text_states, (height, width))

    def forward_shared(
        self,
        pixel_values: torch.Tensor,
        image_of: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
    ) -> torch.Tensor:
        """As the base class; the first stage is computed once per image."""
        height, width = pixel_values.shape[-2:]
        tokens, grid = self.encode_image(pixel_values)
        text_states = self.encode_text(input_ids, attention_mask)
        maps = self.stage_maps(tokens[image_of], grid, text_states, attention_mask)
        return self.decode(maps, text_states, (height, width))

    def encode_image(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, swin_ops.Grid]:
        """The text-independent part: tokens (B,L,C) after the blocks of stage 1, and their grid."""
        tokens, grid = swin_ops.embed(self.swin, pixel_values)
        return self._blocks(0, tokens, grid), grid

    def stage_maps(
        self,
        tokens: torch.Tensor,
        grid: swin_ops.Grid,
        text_states: torch.Tensor,
        attention_mask: torch.Tensor,
    ) -> list[torch.Tensor]:
        """The rest of the encoder: fused, normalised maps (B,C_i,H_i,W_i), finest first."""
        mask = additive_mask(attention_mask, text_states.dtype)
        maps = []
        for i, stage in enumerate(self.swin.encoder.layers):
            if i > 0:
                tokens = self._blocks(i, tokens, grid)
            fused = self.fusions[i](tokens, text_states, mask)
            maps.append(self.norms[i](fused).view(len(fused), *grid, -1).permute(0, 3, 1, 2))
            if i < 3:
                tokens, grid = swin_ops.downsample(stage, tokens + self.gates[i](fused), grid)
        return self.drop_channels(maps)

    def _blocks(self, i: int, tokens: torch.Tensor, grid: swin_ops.Grid) -> torch.Tensor:
        for block in self.swin.encoder.layers[i].blocks:
            if self.grad_checkpointing and self.training:
                tokens = checkpoint(swin_ops.run_block, block, tokens, grid, use_reentrant=False)
            else:
                tokens = swin_ops.run_block(block, tokens, grid)
        return tokens

    def parameter_options(self, name: str, settings: Optimizer) -> tuple[float, float]:
        """As published, no decay on the backbone's norm layers and position tables.

        Swin's learning rate is multiplied by ``swin_lr_scale``, except for its absolute position
        embeddings, from which words like "left" are learned.
        """
        undecayed = _BACKBONE.match(name) is not None and _UNDECAYED.search(name) is not None
        slow = name.startswith("swin.") and "position_embeddings" not in name
        decay = 0.0 if undecayed else settings.weight_decay
        return decay, settings.swin_lr_scale if slow else 1.0

    def freeze(self, settings: Optimizer) -> None:
        """Freeze the parts of BERT that the published code does not train.

        The first ``bert_layers_trained`` layers train and later ones do not. Pretrained embeddings
        are frozen. Random ones train, because frozen random embeddings do not represent words.
        """
        if self.bert is not None:
            layers, trained = self.bert.encoder.layer, settings.bert_layers_trained
            self.bert.embeddings.requires_grad_(not self.text_is_pretrained)
            layers[:trained].requires_grad_(True)
            layers[trained:].requires_grad_(False)

    def set_grad_checkpointing(self, on: bool) -> None:
        """Recompute the blocks of Swin and BERT in the backward pass."""
        self.grad_checkpointing = on
        if self.bert is not None and on:
            self.bert.config.use_cache = False  # transformers warns otherwise
            self.bert.gradient_checkpointing_enable({"use_reentrant": False})
        elif self.bert is not None:
            self.bert.gradient_checkpointing_disable()
