"""The sections of `proposals.sources` in params.yaml, by ``kind``."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from semires.config.types import Positive, PositiveFloat, Radius, Section, Small, Unit


class SegmentAnythingSource(Section):
    """The parameters of `SamAutomaticMaskGenerator`, with the same names."""

    kind: Literal["segment_anything"]
    points_per_side: Small
    points_per_batch: Positive
    pred_iou_thresh: Unit
    stability_score_thresh: Unit
    stability_score_offset: float
    box_nms_thresh: Unit
    crop_n_layers: Annotated[int, Field(ge=0, le=8)]
    crop_nms_thresh: Unit
    crop_overlap_ratio: Unit
    crop_n_points_downscale_factor: Positive
    min_mask_region_area: Annotated[int, Field(ge=0)]


class TransformersSource(Section):
    """Mask generation through `transformers` (SAM, SAM-HQ, SAM 2) from a hub id or a folder."""

    kind: Literal["transformers"]
    model: str
    points_per_side: Small
    points_per_batch: Positive
    pred_iou_thresh: Unit
    stability_score_thresh: Unit


class PanopticSource(Section):
    """Panoptic segmentation through `transformers` (Mask2Former, OneFormer).

    It gives few segments that do not overlap, as SEEM's promptless mode (paper Table 8). ``model``
    is a hub id or a folder. The thresholds are those of `post_process_panoptic_segmentation`: the
    score of a segment, the probability of its pixels, and the share of them that it keeps where
    segments compete.
    """

    kind: Literal["panoptic"]
    model: str
    threshold: Unit
    mask_threshold: Unit
    overlap_mask_area_threshold: Unit


class SamPromptsSource(Section):
    """SAM with prompts that are drawn from each pseudo-label.

    Training makes the masks, and stage `propose` none. ``points``: foreground points in the label.
    ``box``: also its box, each side moved outwards by ``box_margin`` of its length. ``masks``: how
    many of SAM's masks are kept, those with the largest predicted IoU.
    """

    kind: Literal["sam_prompts"]
    points: Annotated[int, Field(ge=0, le=16)]
    box: bool
    box_margin: Unit
    masks: Annotated[int, Field(ge=1, le=3)]

    @model_validator(mode="after")
    def _has_a_prompt(self) -> SamPromptsSource:
        if not (self.points or self.box):
            raise ValueError("without points and box there is no prompt")
        return self


class FelzenszwalbSource(Section):
    """Felzenszwalb-Huttenlocher segments at several scales, without weights."""

    kind: Literal["felzenszwalb"]
    scales: list[PositiveFloat] = Field(min_length=1)
    sigma: Radius
    min_size_px: Positive


_SamSource = SegmentAnythingSource | SamPromptsSource
HubSource = TransformersSource | PanopticSource  # `model` is a hub id or a folder
_Any = _SamSource | HubSource | FelzenszwalbSource
ProposalSource = Annotated[_Any, Field(discriminator="kind")]
KINDS = [get_args(source.model_fields["kind"].annotation)[0] for source in get_args(_Any)]
SAM_KINDS = ("segment_anything", "sam_prompts")  # sources that use the checkpoint of `sam`
