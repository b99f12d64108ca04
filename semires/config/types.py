"""The base class of all sections of params.yaml, and the number types that they share."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from semires.config.messages import nearest

Unit = Annotated[float, Field(ge=0, le=1)]
# The upper bounds prevent overflow and excessive memory use.
Positive = Annotated[int, Field(ge=1, lt=2**31)]
Small = Annotated[int, Field(ge=1, le=1024)]
Width = Annotated[int, Field(ge=1, le=2**14)]
PositiveFloat = Annotated[float, Field(gt=0, le=1e9)]
NonNegative = Annotated[float, Field(ge=0, le=1e9)]
Dropout = Annotated[float, Field(ge=0, lt=1)]
Radius = Annotated[float, Field(ge=0, le=100)]
Percent = Annotated[float, Field(gt=0, le=100)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$")]


class Section(BaseModel):
    """A section of params.yaml: frozen, without unknown keys or implicit type conversions."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, values: Any) -> Any:
        if isinstance(values, dict) and cls.model_config["extra"] == "forbid":
            refuse_unknown(values, cls.model_fields)
        return values


def refuse_unknown(values: dict[Any, Any], known: Collection[str]) -> None:
    """Refuse keys that are not in ``known``.

    Raises:
        ValidationError: one error for each such key, with the nearest known one.
    """
    faults = [
        InitErrorDetails(
            type=PydanticCustomError(
                "value_error", "unknown key{hint}", {"hint": nearest(key, known)}
            ),
            loc=(str(key),),
            input=None,
        )
        for key in values
        if key not in known
    ]
    if faults:
        raise ValidationError.from_exception_data("params", faults)
