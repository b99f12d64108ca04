"""The base class of all sections of params.yaml, and the number types that they share."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

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
