"""The `model` section of params.yaml: one section class per model, selected by ``model.name``.

To add a model's parameters, derive a class from `ModelSection` and enter it in `MODEL_SECTIONS`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from semires.config.messages import nearest
from semires.config.types import Dropout, Section, Small, Width

FourSmall = Annotated[list[Small], Field(min_length=4, max_length=4)]


class ModelSection(Section):
    """Base of a model's section: what the rest of the program needs from any model's parameters.

    A derived class adds its own fields; ``name`` is a `Literal` of its key in `MODEL_SECTIONS`.
    """

    name: str

    def vocabulary_source(self) -> tuple[str, str]:
        """Where the BERT vocabulary comes from.

        Returns:
            The key of the parameter (for messages) and its value: a file, a folder or a hub id.

        Raises:
            ValueError: the parameters name no vocabulary.
        """
        raise NotImplementedError

    def files(self) -> dict[str, str]:
        """Everything that the model reads, by parameter key: files, folders and hub ids.

        Runs depend on their content, and `semires doctor` checks that they exist.
        """
        return {}

    def check(self, image_size: int) -> None:
        """Cross-field checks that need ``data.image_size`` (pixels); none by default.

        Raises:
            ValueError: a parameter contradicts another one; the text begins with its key.
        """


class Swin(Section):
    """Swin's sizes, and its pretrained weights (a file, a folder or a hub id)."""

    pretrained: str | None
    patch_size: Small
    embed_dim: Small
    depths: FourSmall
    num_heads: FourSmall
    window_size: Small
    mlp_ratio: Annotated[float, Field(gt=0, le=64)]
    drop_path_rate: Dropout
    absolute_embeddings: bool
    position_grid: Small = 16  # side of the grid of absolute positions, patches

    @field_validator("num_heads")
    @classmethod
    def _heads_divide_widths(cls, heads: list[int], info: ValidationInfo) -> list[int]:
        return _dividing(heads, info.data.get("embed_dim"))


class Bert(Section):
    """BERT's sizes, vocabulary, and pretrained weights (a folder or a hub id)."""

    pretrained: str | None
    vocabulary: str | None
    hidden_size: Width
    num_layers: Small
    num_heads: Small
    intermediate_size: Width
    dropout: Dropout

    @field_validator("num_heads")
    @classmethod
    def _heads_divide_width(cls, heads: int, info: ValidationInfo) -> int:
        width = info.data.get("hidden_size")
        if width is not None and width % heads:
            raise ValueError(f"{heads} do not divide hidden_size {width}")
        return heads


def _dividing(heads: list[int], embed_dim: int | None) -> list[int]:
    """Attention heads of Swin's four stages, each of which divides the stage's channels.

    ``embed_dim`` is None where it was itself invalid; then nothing is checked.

    Raises:
        ValueError: a stage's heads do not divide its channels.
    """
    for stage, count in enumerate(heads):
        if embed_dim is not None and embed_dim * 2**stage % count:
            raise ValueError(
                f"{count} heads do not divide stage {stage + 1}'s width of "
                f"{embed_dim * 2**stage} (embed_dim {embed_dim} x {2**stage})"
            )
    return heads


class Lavt(ModelSection):
    """LAVT on Swin and BERT."""

    name: Literal["lavt"]
    swin: Swin
    bert: Bert
    fusion_heads: FourSmall
    fusion_dropout: Dropout
    decoder_width: Width | None

    @field_validator("fusion_heads")
    @classmethod
    def _heads_divide_widths(cls, heads: list[int], info: ValidationInfo) -> list[int]:
        swin = info.data.get("swin")
        return _dividing(heads, swin.embed_dim if swin is not None else None)

    def vocabulary_source(self) -> tuple[str, str]:
        """``bert.vocabulary`` if given, else the vocabulary of ``bert.pretrained``."""
        for key in ("vocabulary", "pretrained"):
            source: str | None = getattr(self.bert, key)
            if source:
                return f"model.bert.{key}", source
        raise ValueError("model.bert: give `vocabulary` or `pretrained`, both are null")

    def files(self) -> dict[str, str]:
        """Pretrained Swin, pretrained BERT and the vocabulary, where they are given."""
        named = {
            "model.swin.pretrained": self.swin.pretrained,
            "model.bert.pretrained": self.bert.pretrained,
            "model.bert.vocabulary": self.bert.vocabulary,
        }
        return {key: source for key, source in named.items() if source is not None}

    def check(self, image_size: int) -> None:
        """A vocabulary is named, and the image is large enough for Swin's four stages."""
        self.vocabulary_source()
        patch = self.swin.patch_size
        if image_size < 8 * patch:
            raise ValueError(
                f"data.image_size: {image_size} is less than 8 patches of {patch} pixels, which "
                "Swin's four stages need"
            )


MODEL_SECTIONS: dict[str, type[ModelSection]] = {"lavt": Lavt}


def parse_model(values: Any) -> ModelSection:
    """Validate a `model` section with the class that its ``name`` selects.

    Args:
        values: a mapping, or a section that was validated before.

    Raises:
        ValidationError: no such model, or a wrong parameter (a ValueError of pydantic's).
    """
    if isinstance(values, ModelSection):
        return values
    if not isinstance(values, dict):
        return ModelSection.model_validate(values)
    name = values.get("name")
    if not isinstance(name, str):  # says what is missing or of a wrong type
        only_name = {k: v for k, v in values.items() if k == "name"}
        return ModelSection.model_validate(only_name)
    if name not in MODEL_SECTIONS:
        text = f"no model is named {name!r}{nearest(name, MODEL_SECTIONS)}"
        fault = PydanticCustomError("value_error", "{text}", {"text": text})
        details = InitErrorDetails(type=fault, loc=("name",), input=name)
        raise ValidationError.from_exception_data("model", [details])
    return MODEL_SECTIONS[name].model_validate(values)


# As a field's type: any registered section, validated and written with all its own fields.
Model = Annotated[SerializeAsAny[ModelSection], BeforeValidator(parse_model)]
