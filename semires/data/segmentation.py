"""Convert COCO segmentations to compressed run-lengths, after checks that pycocotools lacks.

The C code of pycocotools does not validate its input. A coordinate of 1e9 crashes the process, and
run-lengths whose sum differs from the image's pixels decode to uninitialised memory.
"""

from __future__ import annotations

from typing import Any

from pycocotools import mask as coco_mask

# Maximum outline in pixels; pycocotools allocates 5 points of 24 bytes per pixel of outline.
_MAX_STEPS = 2**24
MAX_PIXELS = 2**26  # maximum image size; COCO's images are far smaller
_MAX_RUN_CHARACTERS = 7  # 5 bits per character; a run of MAX_PIXELS needs fewer


class SegmentationError(ValueError):
    """A segmentation is not a valid mask of its image; the text gives the reason."""


def to_rle(segmentation: Any, height: int, width: int) -> dict[str, Any] | None:
    """Merge an annotation's polygons or run-lengths into one compressed RLE (their union).

    Args:
        segmentation: a list of polygons, each a list of alternating x and y in pixels; or a dict
            with ``size`` and ``counts`` (a list of run-lengths, or COCO's compressed string); or
            a list of such dicts.
        height: image height, pixels.
        width: image width, pixels.

    Returns:
        ``{"size": [height, width], "counts": bytes}``, or None if the mask is empty.

    Raises:
        SegmentationError: the value is not a segmentation, or does not fit an image of this size.
    """
    rle: dict[str, Any] | None
    if isinstance(segmentation, list) and any(isinstance(part, dict) for part in segmentation):
        rle = _from_several_runs(segmentation, height, width)
    elif isinstance(segmentation, list):
        rle = _from_polygons(segmentation, height, width)
    elif isinstance(segmentation, dict):
        rle = _from_runs(segmentation, height, width)
    else:
        raise SegmentationError("neither polygons nor run-lengths")
    return rle if rle is not None and int(coco_mask.area(rle)) > 0 else None


def _from_polygons(polygons: list[Any], height: int, width: int) -> dict[str, Any] | None:
    reach = 2 * max(height, width)
    kept = []
    for polygon in polygons:
        if not isinstance(polygon, list) or not all(type(v) in (int, float) for v in polygon):
            raise SegmentationError("a polygon is not a list of numbers")
        if len(polygon) < 6:
            continue  # a point or a line covers no pixel
        if not all(-reach <= v <= reach for v in polygon):  # NaN fails as well
            raise SegmentationError("a polygon lies far outside its image")
        if len(polygon) % 2:
            raise SegmentationError("a polygon has an odd number of coordinates")
        kept.append([float(v) for v in polygon])
        if len(polygon) * reach > _MAX_STEPS and _outline(kept[-1]) > _MAX_STEPS:
            raise SegmentationError("the outline of a polygon is too long")
    if not kept:
        return None
    return dict(coco_mask.merge(coco_mask.frPyObjects(kept, height, width)))


def _outline(polygon: list[float]) -> float:
    """Return the length of a polygon's outline: per side, the larger of |dx| and |dy|, pixels."""
    xs, ys = polygon[::2], polygon[1::2]
    ends = zip(xs, ys, [*xs[1:], xs[0]], [*ys[1:], ys[0]], strict=True)
    return sum(max(abs(a - c), abs(b - d)) for a, b, c, d in ends)


def _from_runs(segmentation: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    if segmentation.get("size") != [height, width]:
        raise SegmentationError("the run-lengths have another size than the image")
    counts = segmentation.get("counts")
    if isinstance(counts, str):
        runs = _decompress(counts)
    elif isinstance(counts, list) and all(type(c) is int for c in counts):
        runs = counts
    else:
        raise SegmentationError("the run-lengths are neither a string nor whole numbers")
    if min(runs, default=-1) < 0 or sum(runs) != height * width:
        raise SegmentationError("the run-lengths are negative or do not add up to the image size")
    if isinstance(counts, str):
        return {"size": [height, width], "counts": counts.encode("ascii")}
    return dict(coco_mask.frPyObjects({"size": [height, width], "counts": runs}, height, width))


def _from_several_runs(parts: list[Any], height: int, width: int) -> dict[str, Any]:
    """Merge a list of run-length masks, the second form in REFER (RefCLEF, RRSIS-D)."""
    if not all(isinstance(part, dict) for part in parts):
        raise SegmentationError("the list contains both run-lengths and polygons")
    return dict(coco_mask.merge([_from_runs(part, height, width) for part in parts]))


def _decompress(counts: str) -> list[int]:
    """Decode COCO's compressed string: 5 bits per character.

    From the fourth on, a run-length is stored as the difference to the one two positions before.
    """
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift >= 5 * _MAX_RUN_CHARACTERS:
            raise SegmentationError("the compressed run-lengths are damaged")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:  # more bits follow
            continue
        if code & 16:  # negative
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    if shift:
        raise SegmentationError("the compressed run-lengths are truncated")
    return runs


def whole(value: Any) -> int:
    """Convert a number to an int of at most 64 bits.

    Raises:
        ValueError: the value is not such a whole number; the text gives only its type.
    """
    if type(value) not in (int, float) or not -(2**63) <= value < 2**63 or value != int(value):
        raise ValueError(f"expected a whole number, not {type(value).__name__}")
    return int(value)
