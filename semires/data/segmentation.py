"""COCO segmentations to compressed run-lengths of one mask, checked before C code sees them.

pycocotools trusts its input: a coordinate of 1e9 ends the process, and run-lengths that do not
add up to the image decode to whatever lay in memory.
"""

from __future__ import annotations

from typing import Any

from pycocotools import mask as coco_mask

_MAX_STEPS = 2**24  # pycocotools takes 5 points a pixel of outline, 24 bytes each
MAX_PIXELS = 2**26  # a bound for images, too: far above COCO's, below what would fill the memory
_MAX_RUN_CHARACTERS = 7  # 5 bits each: more than a count of MAX_PIXELS takes


class SegmentationError(ValueError):
    """A segmentation that describes no mask of its image; the text says why."""


def to_rle(segmentation: Any, height: int, width: int) -> dict[str, Any] | None:
    """The union of an annotation's polygons or run-lengths as one compressed RLE.

    Args:
        segmentation: a list of polygons (x, y in turn, pixels); or a dict of ``size`` and
            ``counts``, a list of run-lengths or COCO's compressed string; or a list of such dicts.
        height: of the image, pixels.
        width: of the image, pixels.

    Returns:
        ``{"size": [height, width], "counts": bytes}``, or None where the mask has no pixel.

    Raises:
        SegmentationError: no segmentation, or not one of an image of this size.
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
            raise SegmentationError("a polygon that is no list of numbers")
        if len(polygon) < 6:
            continue  # a point or a line covers no pixel
        if not all(-reach <= v <= reach for v in polygon):  # NaN fails as well
            raise SegmentationError("a polygon far outside its image")
        if len(polygon) % 2:
            raise SegmentationError("a polygon of an odd number of coordinates")
        kept.append([float(v) for v in polygon])
        if len(polygon) * reach > _MAX_STEPS and _outline(kept[-1]) > _MAX_STEPS:
            raise SegmentationError("a polygon of too long an outline")
    if not kept:
        return None
    return dict(coco_mask.merge(coco_mask.frPyObjects(kept, height, width)))


def _outline(polygon: list[float]) -> float:
    """Pixels that a polygon's sides step over, the longer way of each."""
    xs, ys = polygon[::2], polygon[1::2]
    ends = zip(xs, ys, [*xs[1:], xs[0]], [*ys[1:], ys[0]], strict=True)
    return sum(max(abs(a - c), abs(b - d)) for a, b, c, d in ends)


def _from_runs(segmentation: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    if segmentation.get("size") != [height, width]:
        raise SegmentationError("run-lengths of another size than the image's")
    counts = segmentation.get("counts")
    if isinstance(counts, str):
        runs = _decompress(counts)
    elif isinstance(counts, list) and all(type(c) is int for c in counts):
        runs = counts
    else:
        raise SegmentationError("run-lengths that are neither a string nor whole numbers")
    if min(runs, default=-1) < 0 or sum(runs) != height * width:
        raise SegmentationError("run-lengths that do not add up to the image")
    if isinstance(counts, str):
        return {"size": [height, width], "counts": counts.encode("ascii")}
    return dict(coco_mask.frPyObjects({"size": [height, width], "counts": runs}, height, width))


def _from_several_runs(parts: list[Any], height: int, width: int) -> dict[str, Any]:
    """The union of several run-length masks, REFER's second form (RefCLEF, RRSIS-D)."""
    if not all(isinstance(part, dict) for part in parts):
        raise SegmentationError("a list of both run-lengths and polygons")
    return dict(coco_mask.merge([_from_runs(part, height, width) for part in parts]))


def _decompress(counts: str) -> list[int]:
    """Run-lengths of COCO's compressed string: 5 bits a character, differences to two before."""
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift >= 5 * _MAX_RUN_CHARACTERS:
            raise SegmentationError("compressed run-lengths that are damaged")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:  # more bits follow
            continue
        if code & 16:  # negative
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    if shift:
        raise SegmentationError("compressed run-lengths that are cut off")
    return runs


def whole(value: Any) -> int:
    """A whole number that fits 64 bits.

    Raises:
        ValueError: anything else; its text holds no more of the value than its type.
    """
    if type(value) not in (int, float) or not -(2**63) <= value < 2**63 or value != int(value):
        raise ValueError(f"expected a whole number, not {type(value).__name__}")
    return int(value)
