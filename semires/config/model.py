"""The `model` section of params.yaml: one section class per model, selected by ``model.name``.

To add the parameters of a model, derive a class from `ModelSection` and add it to `MODEL_SECTIONS`.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from semires.config.messages import nearest
from semires.config.types import Dropout, NonNegative, Section, Small, Width

GROUPS = 32  # of the group norms in ReLA's pixel decoder
FourSmall = Annotated[list[Small], Field(min_length=4, max_length=4)]


class ModelSection(Section):
    """Base class of the sections of all models, with the methods that other modules call.

    A derived class adds fields. Its ``name`` is a `Literal` of its key in `MODEL_SECTIONS`.
    """

    name: str

    def vocabulary_source(self) -> tuple[str, str]:
        """Return the source of the BERT vocabulary.

        Returns:
            The key of the parameter (for messages) and its value: a file, a folder or a hub id.

        Raises:
            ValueError: the parameters do not name a vocabulary.
        """
        raise NotImplementedError

    def files(self) -> dict[str, str]:
        """Return the files, folders and hub ids that the model reads, by parameter key.

        Runs depend on their content, and `semires doctor` checks that they exist.
        """
        return {}

    def check(self, image_size: int) -> None:
        """Validate parameters across fields; the default checks nothing.

        Args:
            image_size: ``data.image_size``, pixels.

        Raises:
            ValueError: two parameters contradict each other; the text begins with a key.
        """


class Swin(Section):
    """The sizes of Swin and its pretrained weights (a file, a folder or a hub id)."""

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
    """The sizes of BERT, its vocabulary and its pretrained weights (a folder or a hub id)."""

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
    """Check that the attention heads of each Swin stage divide the stage's channels.

    ``embed_dim`` is None if it was invalid; then nothing is checked.

    Raises:
        ValueError: the number of heads does not divide the number of channels.
    """
    for stage, count in enumerate(heads):
        if embed_dim is not None and embed_dim * 2**stage % count:
            raise ValueError(
                f"{count} heads do not divide stage {stage + 1}'s width of "
                f"{embed_dim * 2**stage} (embed_dim {embed_dim} x {2**stage})"
            )
    return heads


class FusedSection(ModelSection):
    """The parameters that models on Swin, BERT and PWAM share."""

    swin: Swin
    bert: Bert
    fusion_heads: FourSmall
    fusion_dropout: Dropout

    @field_validator("fusion_heads")
    @classmethod
    def _heads_divide_widths(cls, heads: list[int], info: ValidationInfo) -> list[int]:
        swin = info.data.get("swin")
        return _dividing(heads, swin.embed_dim if swin is not None else None)

    def vocabulary_source(self) -> tuple[str, str]:
        """Return ``bert.vocabulary`` if given, else ``bert.pretrained``."""
        for key in ("vocabulary", "pretrained"):
            source: str | None = getattr(self.bert, key)
            if source:
                return f"model.bert.{key}", source
        raise ValueError("model.bert: give `vocabulary` or `pretrained`, both are null")

    def files(self) -> dict[str, str]:
        """Return the pretrained Swin, the pretrained BERT and the vocabulary, if given."""
        named = {
            "model.swin.pretrained": self.swin.pretrained,
            "model.bert.pretrained": self.bert.pretrained,
            "model.bert.vocabulary": self.bert.vocabulary,
        }
        return {key: source for key, source in named.items() if source is not None}

    def check(self, image_size: int) -> None:
        """Check that a vocabulary is given and the image is large enough for Swin's four stages."""
        self.vocabulary_source()
        patch = self.swin.patch_size
        if image_size < 8 * patch:
            raise ValueError(
                f"data.image_size: {image_size} is less than 8 patches of {patch} pixels, which "
                "Swin's four stages need"
            )


class Lavt(FusedSection):
    """The parameters of LAVT."""

    name: Literal["lavt"]
    decoder_width: Width | None


class Rela(FusedSection):
    """The parameters of ReLA (GRES).

    ``pixel_width`` and ``mask_width`` are the channels of the pixel decoder and of the mask
    features; null is ``width``. ``project_levels`` projects the pixel decoder's maps for the
    regions also where the channels are equal. Published models use these three defaults.

    ``minimap_target`` makes the regions' target from a mask: ``truncated`` is bilinear and cut off
    to an integer, as published; ``majority`` is 1 where half of the region's pixels are the
    object's. ``empty_is_no_target``: an empty label means "no target" (gRefCOCO).
    """

    name: Literal["rela"]
    zero_gates: bool
    width: Width
    num_heads: Small
    pixel_layers: Small
    pixel_feedforward: Width
    regions: Annotated[int, Field(ge=1, le=2**14)]
    region_layers: Small
    region_feedforward: Width
    language_scale: float
    minimap_weight: NonNegative
    minimap_target: Literal["truncated", "majority"]
    no_target_weight: NonNegative
    empty_is_no_target: bool
    pixel_width: Width | None = None
    mask_width: Width | None = None
    project_levels: bool = False

    @model_validator(mode="after")
    def _widths_fit(self) -> Rela:
        for key, width in (("width", self.width), ("pixel_width", self.pixel_width or self.width)):
            if width % self.num_heads:
                raise ValueError(f"num_heads: {self.num_heads} do not divide {key} {width}")
        if (self.pixel_width or self.width) % GROUPS:
            raise ValueError(
                f"width: {self.pixel_width or self.width} is no multiple of {GROUPS}, the number "
                "of groups of the pixel decoder's norms"
            )
        if self.width % 2:
            raise ValueError(f"width: {self.width} is odd; sine positions need pairs of channels")
        return self

    def check(self, image_size: int) -> None:
        """As the base class; also, the regions must form a square that the image covers."""
        super().check(image_size)
        side = math.isqrt(self.regions)
        if side**2 != self.regions or side > image_size:
            raise ValueError(
                f"model.regions: {self.regions} is not the square of a number up to "
                f"data.image_size {image_size}; the regions are the cells of a square grid"
            )


MODEL_SECTIONS: dict[str, type[ModelSection]] = {"lavt": Lavt, "rela": Rela}


def parse_model(values: Any) -> ModelSection:
    """Validate a `model` section with the class that its ``name`` selects.

    Args:
        values: a mapping, or a validated section.

    Raises:
        ValidationError: the model is unknown, or a parameter is invalid. This class of pydantic is
            a ValueError.
    """
    if isinstance(values, ModelSection):
        return values
    if not isinstance(values, dict):
        return ModelSection.model_validate(values)
    name = values.get("name")
    if not isinstance(name, str):  # pydantic reports that `name` is missing or not a string
        only_name = {k: v for k, v in values.items() if k == "name"}
        return ModelSection.model_validate(only_name)
    if name not in MODEL_SECTIONS:
        text = f"no model is named {name!r}{nearest(name, MODEL_SECTIONS)}"
        fault = PydanticCustomError("value_error", "{text}", {"text": text})
        details = InitErrorDetails(type=fault, loc=("name",), input=name)
        raise ValidationError.from_exception_data("model", [details])
    return MODEL_SECTIONS[name].model_validate(values)


# The type of a field for any registered section. All fields of the derived class are validated and
# serialised.
Model = Annotated[SerializeAsAny[ModelSection], BeforeValidator(parse_model)]
