"""The networks. `MODELS` maps ``model.name`` to a builder: LAVT, and ReLA of the paper's Table 7.

A new model is a class that derives from `SegmentationModel`, an entry of `MODELS`, and a section
class in `semires.config.model`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from semires.config.model import ModelSection
from semires.errors import ConfigError
from semires.models.base import Outputs, SegmentationModel
from semires.models.lavt import LAVT
from semires.models.official import load_official, load_official_lavt, load_official_rela
from semires.models.rela import ReLA
from semires.models.text import Tokenizer

__all__ = [
    "LAVT",
    "MODELS",
    "Outputs",
    "ReLA",
    "SegmentationModel",
    "build_model",
    "load_official",
    "load_official_lavt",
    "load_official_rela",
]

# A builder takes the model's section, the tokenizer, and whether to load pretrained parts.
MODELS: dict[str, Callable[[Any, Tokenizer, bool], SegmentationModel]] = {
    "lavt": LAVT.build,
    "rela": ReLA.build,
}


def build_model(
    model: ModelSection, tokenizer: Tokenizer, *, pretrained: bool = True
) -> SegmentationModel:
    """Build the network named by ``model.name``.

    Args:
        model: the `model` section of params.yaml.
        tokenizer: gives the size of the vocabulary.
        pretrained: load the pretrained parts; not needed if all weights are loaded afterwards.

    Raises:
        ConfigError: no network has this name.
        WeightsError: pretrained weights are missing or do not fit.
    """
    if model.name not in MODELS:
        raise ConfigError(f"model.name: {model.name!r} is unknown; there is {', '.join(MODELS)}")
    return MODELS[model.name](model, tokenizer, pretrained)
