"""COCO segmentations: what they cover, and what is refused before C code sees it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from semires.data.segmentation import SegmentationError, to_rle, whole

SQUARE = [2.0, 2.0, 8.0, 2.0, 8.0, 8.0, 2.0, 8.0]


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_run_lengths_come_back(height: int, width: int, seed: int, share: float):
    mask = (np.random.default_rng(seed).random((height, width)) < share).astype(np.uint8)
    rle = coco_mask.encode(np.asfortranarray(mask))
    flat = mask.T.ravel()
    bounds = [0, *(np.flatnonzero(np.diff(np.concatenate([[0], flat]))).tolist()), flat.size]
    runs = np.diff(bounds).tolist()
    for counts in (rle["counts"].decode(), runs):
        read = to_rle({"size": [height, width], "counts": counts}, height, width)
        if not mask.any():
            assert read is None
        else:
            assert read is not None
            assert (coco_mask.decode(read) == mask).all()


def test_long_runs_come_back():
    mask = np.zeros((4000, 3000), dtype=np.uint8, order="F")
    mask[:, 2000:] = 1
    rle = coco_mask.encode(mask)
    read = to_rle({"size": [4000, 3000], "counts": rle["counts"].decode()}, 4000, 3000)
    assert read is not None
    assert coco_mask.area(read) == 4_000_000


@pytest.mark.parametrize("empty", [[], [[]], [[1.0, 1.0, 2.0, 2.0]], [[3.0, 3.0] * 4]])
def test_no_pixel_is_none(empty: Any):
    assert to_rle(empty, 12, 16) is None


def test_a_polygon_may_leave_its_image_a_little():
    rle = to_rle([[-3.0, -3.0, 20.0, -3.0, 20.0, 6.0, -3.0, 6.0]], 12, 16)
    assert rle is not None
    assert coco_mask.area(rle) == 16 * 6


@pytest.mark.parametrize(
    ("segmentation", "line"),
    [
        (None, "neither polygons nor run-lengths"),
        ("abcdef", "neither polygons nor run-lengths"),
        ([[0, 0, 1e9, 0, 1e9, 1e9]], "far outside"),
        ([[0, 0, math.inf, 3, 3, 3]], "far outside"),
        ([[math.nan] * 6], "far outside"),
        (["abcdefgh"], "not a list of numbers"),
        ([SQUARE, 3], "not a list of numbers"),
        ([[[1, 2]] * 6], "not a list of numbers"),
        ([{str(i): 1 for i in range(7)}], "another size"),
        ([{"size": [12, 16], "counts": [0, 192]}, [0.0, 0.0, 4.0, 0.0, 4.0, 4.0]], "both"),
        ({"size": [5, 5], "counts": [0, 25]}, "another size"),
        ({"counts": [0, 192]}, "another size"),
        ({"size": [12, 16]}, "neither a string"),
        ({"size": [12, 16], "counts": [0, 1.5]}, "neither a string"),
        ({"size": [12, 16], "counts": [0, 20]}, "do not add up"),
        ({"size": [12, 16], "counts": [0, 20_000]}, "do not add up"),
        ({"size": [12, 16], "counts": [-1, 193]}, "do not add up"),
        ({"size": [12, 16], "counts": ""}, "do not add up"),
        ({"size": [12, 16], "counts": "0d0"}, "do not add up"),
        ({"size": [12, 16], "counts": "\xe9"}, "damaged"),
        ({"size": [12, 16], "counts": "o" * 40}, "damaged"),
        ({"size": [12, 16], "counts": "0o"}, "truncated"),
    ],
)
def test_what_is_refused(segmentation: Any, line: str):
    with pytest.raises(SegmentationError, match=line):
        to_rle(segmentation, 12, 16)


@given(st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=12))
def test_compressed_garbage_is_refused_or_decodes(counts: str):
    try:
        rle = to_rle({"size": [4, 5], "counts": counts}, 4, 5)
    except SegmentationError:
        return
    if rle is not None:
        assert coco_mask.decode(rle).sum() == coco_mask.area(rle) <= 20


def test_whole_numbers():
    assert [whole(v) for v in (3, 3.0, -(2**63))] == [3, 3, -(2**63)]
    for value in (2**63, 10**400, 1.5, math.inf, math.nan, True, "3", None, [3]):
        with pytest.raises(ValueError, match="expected a whole number"):
            whole(value)
