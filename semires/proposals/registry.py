"""The registry of proposal sources, by their ``kind`` in params.yaml.

To add a source, write a class with ``propose`` (see `ProposalSource`) and add it to `SOURCES`.
"""

from __future__ import annotations

import pkgutil
from typing import Any

from semires.proposals.base import ProposalSource

# For each kind, what makes the source of its settings, as ``MODULE:NAME``.
SOURCES = {
    "segment_anything": "semires.proposals.fast_amg:AutomaticMasks.from_settings",
    "transformers": "semires.proposals.hub:TransformersMasks",
    "panoptic": "semires.proposals.hub:PanopticMasks",
    "sam_prompts": "semires.proposals.prompted:NoMasks",
    "felzenszwalb": "semires.proposals.classical:FelzenszwalbMasks",
}


def build_source(settings: Any) -> ProposalSource:
    """Build the proposal source that an entry of ``proposals.sources`` describes."""
    source: ProposalSource = pkgutil.resolve_name(SOURCES[settings.kind])(settings)
    return source
