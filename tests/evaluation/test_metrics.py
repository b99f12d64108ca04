"""Overall IoU, mean IoU and precision against hand-computed numbers and plain loops."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semires.evaluation import segmentation_metrics
from semires.evaluation.metrics import iou_per_expression

pairs = st.lists(
    st.integers(0, 5000).flatmap(lambda u: st.tuples(st.integers(0, u), st.just(u))),
    min_size=1,
    max_size=40,
)


def test_hand_computed_values():
    got = segmentation_metrics([50, 30, 0, 9], [100, 40, 20, 10])
    assert got["oIoU"] == pytest.approx(100 * 89 / 170)
    assert got["mIoU"] == pytest.approx(100 * (0.5 + 0.75 + 0 + 0.9) / 4)
    assert [got[f"P@{t}"] for t in (0.5, 0.6, 0.7, 0.8, 0.9)] == [75, 50, 50, 25, 25]
    assert list(got) == ["oIoU", "mIoU", "P@0.5", "P@0.6", "P@0.7", "P@0.8", "P@0.9"]


def test_the_threshold_itself_counts():
    for numerator in (5, 6, 7, 8, 9):
        got = segmentation_metrics([numerator], [10])
        assert got[f"P@0.{numerator}"] == 100.0


def test_an_empty_union_is_an_iou_of_zero_and_counts():
    got = segmentation_metrics([0, 10], [0, 10])
    assert got["mIoU"] == 50.0
    assert got["oIoU"] == 100.0
    assert segmentation_metrics([0], [0])["oIoU"] == 0.0


@given(pairs)
def test_agrees_with_a_plain_loop(rows):
    got = segmentation_metrics(*zip(*rows, strict=True))
    ious = [i / u if u else 0.0 for i, u in rows]
    union = sum(u for _, u in rows)
    assert got["oIoU"] == pytest.approx(100 * sum(i for i, _ in rows) / union if union else 0.0)
    assert got["mIoU"] == pytest.approx(100 * sum(ious) / len(ious))
    for t in (0.5, 0.7, 0.9):
        hits = sum(iou >= t for iou in ious)
        assert got[f"P@{t}"] == pytest.approx(100 * hits / len(ious))
    assert all(0.0 <= v <= 100.0 for v in got.values())


def test_values_do_not_depend_on_the_integer_type():
    inter = np.array([200, 250], dtype=np.uint8)
    union = np.array([255, 255], dtype=np.uint8)
    assert segmentation_metrics(inter, union)["oIoU"] == pytest.approx(100 * 450 / 510)


@pytest.mark.parametrize(
    ("inter", "union"),
    [([], []), ([1, 2], [3]), ([5], [4]), ([-1], [4]), ([float("nan")], [4])],
)
def test_what_is_no_result_is_refused(inter, union):
    with pytest.raises(ValueError, match=r"expression|unions|intersection"):
        segmentation_metrics(inter, union)


def test_iou_per_expression_keeps_the_order():
    assert iou_per_expression([1, 3, 0], [2, 3, 0]).tolist() == [0.5, 1.0, 0.0]
