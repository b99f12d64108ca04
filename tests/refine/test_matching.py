"""Matching against a plain loop over masks, in exact fractions, and by hand at the thresholds."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semires.proposals import Partition
from semires.refine.matching import match, overlaps
from semires.refine.strategies import STRATEGIES, Overlaps, Strategy, get_strategy

PAPER = ["iom", "cpi", "cpi-u", "cpi-o"]


@st.composite
def samples(draw):
    """Proposals that often lie near the label: shifted, cut, joined; some empty or equal."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    height, width, count = (
        draw(st.integers(1, 14)),
        draw(st.integers(1, 14)),
        draw(st.integers(0, 9)),
    )
    label = rng.random((height, width)) < draw(st.sampled_from([0, 0.1, 0.5, 0.9, 1]))
    masks = np.zeros((count, height, width), dtype=bool)
    for mask in masks:
        noise = rng.random((height, width))
        mask[...] = {
            0: label & (noise < 0.7), 1: label | (noise < 0.3), 2: noise < 0.5, 3: label,
            4: np.zeros_like(label), 5: np.roll(label, 1, axis=1),
        }[int(rng.integers(6))]  # fmt: skip
    return masks, label


@st.composite
def thresholds(draw):
    tenths = st.integers(0, 10)
    return [Fraction(draw(tenths), 10) for _ in range(3)]


def select(name, found, **thresholds):
    strategy = STRATEGIES[name]
    return strategy.select(found, strategy.filled(thresholds))


def plain(strategy, masks, label, iom, u, o):
    """The published rule mask by mask in fractions: the refined label or None."""
    c, scores = int(label.sum()), []
    for mask in masks:
        both, m = int((mask & label).sum()), int(mask.sum())
        iou = Fraction(both, m + c - both) if m + c - both else Fraction(0)
        s1 = Fraction(both) / (c + Fraction(1, 10**9))
        s2 = Fraction(both, m) if m else Fraction(0)
        scores.append((iou, s1, s2))
    if strategy == "iom":
        best = max((iou for iou, _, _ in scores), default=Fraction(0))
        first = [i for i, (iou, _, _) in enumerate(scores) if iou == best][:1]
        chosen = first if best > iom else []
    else:
        take = {
            "cpi": lambda s1, s2: s1 > u or s2 > o,
            "cpi-u": lambda s1, s2: s1 > u,
            "cpi-o": lambda s1, s2: s2 > o,
        }[strategy]
        chosen = [i for i, (_, s1, s2) in enumerate(scores) if take(s1, s2)]
    return masks[chosen].any(axis=0) if chosen else None


@pytest.mark.parametrize("strategy", PAPER)
@given(sample=samples(), limits=thresholds())
def test_equals_a_loop_over_masks(strategy, sample, limits):
    masks, label = sample
    rule = STRATEGIES[strategy]
    values = dict(zip(("threshold", "threshold_u", "threshold_o"), map(float, limits), strict=True))
    own = {name: values[name] for name in rule.thresholds}
    found = match(rule, Partition.from_masks(masks), label, own)
    wanted = plain(strategy, masks, label, *limits)
    assert (found is None) == (wanted is None)
    if wanted is not None:
        np.testing.assert_array_equal(found, wanted)


@given(samples())
def test_overlaps_are_whole_numbers(sample):
    masks, label = sample
    found = overlaps(Partition.from_masks(masks), label)
    np.testing.assert_array_equal(found.intersections, (masks & label).sum((1, 2)))
    np.testing.assert_array_equal(found.areas, masks.sum((1, 2)))
    assert found.label_area == label.sum()
    for score in (found.iou, found.label_coverage, found.proposal_coverage):
        assert np.isfinite(score).all()
        assert ((score >= 0) & (score <= 1)).all()


@pytest.mark.parametrize("tenths", range(1, 10))
@pytest.mark.parametrize("scale", [1, 3, 7, 23039])
def test_exactly_the_threshold_is_no_match_and_one_pixel_more_is(tenths, scale):
    limit, area = tenths / 10, 10 * scale
    for extra in (0, 1):
        shared = float(tenths * scale + extra)
        # a proposal inside the label: IoU and s1 are shared / area, s2 is 1
        inside = Overlaps(np.array([shared]), np.array([shared]), float(area))
        assert select("iom", inside, threshold=limit).tolist() == [bool(extra)]
        assert select("cpi-u", inside, threshold_u=limit).tolist() == [bool(extra)]
        # the label inside a proposal: s2 is shared / area
        around = Overlaps(np.array([shared]), np.array([float(area)]), shared)
        assert select("cpi-o", around, threshold_o=limit).tolist() == [bool(extra)]


def test_iom_takes_the_first_of_equals_and_cpi_all():
    found = Overlaps(np.array([4.0, 9, 9, 8]), np.array([9.0, 10, 10, 8]), 10.0)
    assert select("iom", found).tolist() == [False, True, False, False]
    assert select("cpi-u", found).tolist() == [False, True, True, True]
    assert select("cpi", found, threshold_u=0.95).tolist() == [False, True, True, True]
    assert select("cpi-o", found).tolist() == [False, True, True, True]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_nothing_matches_an_empty_label_or_no_proposals(strategy):
    masks = np.stack([np.eye(5, dtype=bool), np.zeros((5, 5), dtype=bool)])
    rule = STRATEGIES[strategy]
    empty, full = np.zeros((5, 5), bool), np.ones((5, 5), bool)
    assert match(rule, Partition.from_masks(masks), empty, rule.thresholds, empty) is None
    none = Partition.from_masks(np.zeros((0, 5, 5), dtype=bool))
    assert match(rule, none, full, rule.thresholds, full) is None


def test_an_unknown_strategy_is_named():
    with pytest.raises(ValueError, match=r"'ciou'.*cpi-u"):
        get_strategy("ciou")


def test_a_rule_has_a_choice_or_a_score_for_each_threshold():
    score = {"threshold": lambda overlaps: overlaps.iou}
    with pytest.raises(ValueError, match="`choose`, `cover` or one score"):
        Strategy({"threshold": 0.5})
    with pytest.raises(ValueError, match="`choose`, `cover` or one score"):
        Strategy({"threshold": 0.5, "threshold_u": 0.7}, scores=score)
    with pytest.raises(ValueError, match="`choose`, `cover` or one score"):
        Strategy({"threshold": 0.5}, scores=score, choose=lambda overlaps, threshold: ...)
    with pytest.raises(ValueError, match=r"unknown threshold 'threshold_u'; .* takes threshold$"):
        STRATEGIES["iom"].filled({"threshold_u": 0.5})
