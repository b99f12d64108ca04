"""The networks: a registry of builders by name. LAVT is the paper's; a new model is one entry."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from semires.config.schema import Model
from semires.errors import ConfigError
from semires.models.lavt import LAVT
from semires.models.official import load_official_lavt
from semires.models.pretrained import pretrained_lavt
from semires.models.text import Tokenizer

__all__ = ["LAVT", "MODELS", "build_model", "load_official_lavt"]

# A builder takes the `model` parameters, the tokenizer, and whether to load pretrained parts.
# Its module has forward(pixel_values, input_ids, attention_mask) -> logits (B,2,H,W) and
# set_grad_checkpointing(bool).
MODELS: dict[str, Callable[[Model, Tokenizer, bool], nn.Module]] = {"lavt": pretrained_lavt}


def build_model(model: Model, tokenizer: Tokenizer, *, pretrained: bool = True) -> nn.Module:
    """The network that ``model.name`` names.

    Args:
        model: the `model` section of params.yaml.
        tokenizer: gives the size of the vocabulary.
        pretrained: load Swin's and BERT's pretrained weights; not needed where all weights follow.

    Raises:
        ConfigError: no model has this name.
        WeightsError: pretrained weights are missing or do not fit.
    """
    if model.name not in MODELS:
        raise ConfigError(f"model.name: {model.name!r} is unknown; there is {', '.join(MODELS)}")
    return MODELS[model.name](model, tokenizer, pretrained)
