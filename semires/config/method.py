"""The entries of `refine` in params.yaml: how a method treats pseudo-labels."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from semires.config.messages import nearest
from semires.config.types import PositiveFloat, Section, Unit, refuse_unknown
from semires.refine.strategies import STRATEGIES
from semires.refine.weightings import PWA, WEIGHTINGS

Overrides = dict[str, bool | int | float | str | list[float] | list[str] | None]


def _optional(default: Any, **limits: Any) -> Any:
    """A key that is left out of run records and fingerprints where it has its default value."""
    return Field(default=default, exclude_if=lambda value: value == default, **limits)


class Method(Section):
    """The treatment of pseudo-labels by one method.

    A method also has one key for each threshold of its strategy, such as ``threshold`` of ``iom``
    (``semires/refine/strategies.py``). ``unlabelled: false`` trains only on the labelled images (a
    control for longer training). ``keep`` is the share of pseudo-labels that is used, the most
    confident ones (paper Table 4). ``thresholds: tuned`` reads the thresholds that the method's
    search found from ``experiments/tuned``; ``tuned:METHOD`` reads those of another method's
    search. ``overrides`` maps dotted keys of ``mutual``, ``augment``, ``loss`` or ``tune`` to
    values, for ablations and for searches with other settings.

    ``weighting`` names the weight of the pixels of unmatched samples, a key of ``WEIGHTINGS``
    (``semires/refine/weightings.py``); ``pwa: true`` is short for ``pwa``, and ``pwa: false`` for
    ``none``. ``confidence`` is the threshold of ``confidence`` (FixMatch) and the first threshold
    of ``corrmatch``; ``momentum`` is that of ``softmatch`` and ``corrmatch``. ``matched_weight:
    expected-iou`` weighs a matched sample by the expected IoU of its refined label. ``views: 2``
    trains on two strong views with complementary dropout (UniMatch). The teacher's logits are
    divided by ``temperature``; ``fitted`` is the value that burn-in fitted on held-out images.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Unit]

    strategy: str
    pwa: bool
    weighting: str | None = _optional(None)
    confidence: Unit | None = _optional(None)
    momentum: Unit | None = _optional(None)
    matched_weight: Literal["one", "expected-iou"] = _optional("one")
    views: Literal[1, 2] = _optional(1)
    temperature: PositiveFloat | Literal["fitted"] = _optional(1.0)
    unlabelled: bool = True
    keep: Annotated[float, Field(gt=0, le=1)] = 1.0
    strong: bool = True
    thresholds: Annotated[str, Field(pattern=r"^(paper|tuned|tuned:.+)$")] = "paper"
    overrides: Overrides = Field(default={})

    @property
    def threshold_values(self) -> dict[str, float]:
        """The values of the thresholds, by name."""
        declared = STRATEGIES[self.strategy].thresholds
        return {k: v for k, v in self.__pydantic_extra__.items() if k in declared}

    @property
    def weight_rule(self) -> str:
        """The weighting of unmatched samples, a key of ``WEIGHTINGS``."""
        return self.weighting or ("pwa" if self.pwa else "none")

    @field_validator("weighting")
    @classmethod
    def _known_weighting(cls, name: str | None) -> str | None:
        if name is not None and name not in WEIGHTINGS:
            raise ValueError(f"no weighting {name!r}{nearest(name, WEIGHTINGS)}")
        return name

    @model_validator(mode="before")
    @classmethod
    def _weighting_implies_pwa(cls, values: Any) -> Any:
        """Fill in ``pwa`` where ``weighting`` is given."""
        if isinstance(values, dict) and values.get("weighting") is not None:
            implied = values["weighting"] == "pwa"
            if values.get("pwa", implied) != implied:
                raise ValueError("`pwa` contradicts `weighting`; give one of them")
            return {**values, "pwa": implied}
        return values

    @model_validator(mode="before")
    @classmethod
    def _thresholds_match_strategy(cls, values: Any) -> Any:
        """Require the thresholds of the strategy, and reject any other additional key.

        The parameters of the weighting may be given, except PWA's, which are in `loss.pwa`.
        """
        name = values.get("strategy") if isinstance(values, dict) else None
        if not isinstance(name, str):
            return values  # pydantic reports the error
        if name not in STRATEGIES:
            raise ValueError(f"no strategy {name!r}{nearest(name, STRATEGIES)}")
        declared = STRATEGIES[name].thresholds
        rule = WEIGHTINGS.get(str(values.get("weighting")), WEIGHTINGS["none"])
        own = (name for name in rule.parameters if not name.startswith(PWA))
        refuse_unknown(values, [*cls.model_fields, *declared, *own])
        if any(values.get(key) is None for key in declared):
            raise ValueError(f"strategy {name} takes {', '.join(sorted(declared))}")
        return values
