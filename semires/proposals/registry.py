"""The registry of proposal sources, by their ``kind`` in params.yaml.

To add a source, write a class with ``propose`` (see `ProposalSource`) and add it to `SOURCES`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from semires.config.sources import (
    FelzenszwalbSource,
    PanopticSource,
    SamPromptsSource,
    SegmentAnythingSource,
    TransformersSource,
)
from semires.proposals.base import ProposalSource, device
from semires.runs import layout


def _segment_anything(settings: SegmentAnythingSource, sam_folder: Path) -> ProposalSource:
    from semires.proposals.checkpoint import load_sam
    from semires.proposals.fast_amg import AutomaticMasks

    sam = load_sam(sam_folder).to(device())
    return AutomaticMasks(sam, **settings.model_dump(exclude={"kind"}))


def _transformers(settings: TransformersSource, sam_folder: Path) -> ProposalSource:
    from semires.proposals.hub import TransformersMasks

    return TransformersMasks(settings, device())


def _panoptic(settings: PanopticSource, sam_folder: Path) -> ProposalSource:
    from semires.proposals.hub import PanopticMasks

    return PanopticMasks(settings, device())


def _sam_prompts(settings: SamPromptsSource, sam_folder: Path) -> ProposalSource:
    from semires.proposals.prompted import NoMasks

    return NoMasks()


def _felzenszwalb(settings: FelzenszwalbSource, sam_folder: Path) -> ProposalSource:
    from semires.proposals.classical import FelzenszwalbMasks

    return FelzenszwalbMasks(settings)


SOURCES: dict[str, Callable[[Any, Path], ProposalSource]] = {
    "segment_anything": _segment_anything,
    "transformers": _transformers,
    "panoptic": _panoptic,
    "sam_prompts": _sam_prompts,
    "felzenszwalb": _felzenszwalb,
}


def build_source(settings: Any, sam_folder: str | Path = layout.SAM) -> ProposalSource:
    """Build the proposal source that an entry of ``proposals.sources`` describes."""
    return SOURCES[settings.kind](settings, Path(sam_folder))
