"""Weightings of rival methods against their formulas in plain loops, and in the refiner."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from semires.proposals import Partition
from semires.refine import PseudoLabelRefiner
from semires.refine.refiner import foreground
from semires.refine.weighting import CorrMatch, SoftMatch, make_weighting, pwa_weight
from semires.refine.weightings import WEIGHTINGS


def batch(seed, count=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 4, 5, generator=generator)


def confidences(probability):
    return [max(p, 1 - p) for p in probability.flatten().tolist()]


@given(st.integers(0, 2**32), st.floats(0.5, 1))
def test_fixmatch_keeps_the_pixels_at_or_above_the_threshold(seed, threshold):
    probability = batch(seed)
    weights = make_weighting("confidence", confidence=threshold)(probability)
    wanted = [float(c >= np.float32(threshold)) for c in confidences(probability)]
    assert weights.flatten().tolist() == wanted
    exact = make_weighting("confidence", confidence=0.75)(torch.tensor([[[0.25, 0.75, 0.7]]]))
    assert exact.tolist() == [[[1, 1, 0]]]


@given(st.integers(0, 2**32))
def test_softmatch_is_its_formula_over_three_batches(seed):
    weighting, mean, variance = SoftMatch(momentum=0.9), 0.5, 1.0
    for step in range(3):
        probability = batch(seed + step)
        found = weighting(probability).flatten().tolist()
        c = confidences(probability)
        now = sum(c) / len(c)
        mean = 0.9 * mean + 0.1 * now
        variance = 0.9 * variance + 0.1 * sum((x - now) ** 2 for x in c) / (len(c) - 1)
        wanted = [math.exp(-(min(x - mean, 0) ** 2) / (2 * variance / 4)) for x in c]
        assert found == pytest.approx(wanted, abs=1e-5)
    assert weighting.mean.item() == pytest.approx(mean, abs=1e-6)
    assert weighting.variance.item() == pytest.approx(variance, abs=1e-6)


@given(st.integers(0, 2**32))
def test_corrmatch_moves_its_threshold(seed):
    weighting, threshold = CorrMatch(start=0.85, momentum=0.9), 0.85
    for step in range(3):
        probability = batch(seed + step)
        if step == 1:
            probability = probability / 2  # only background is predicted
        found = weighting(probability).flatten().tolist()
        classes = {}
        for p in probability.flatten().tolist():
            classes[p > 0.5] = max(classes.get(p > 0.5, 0), max(p, 1 - p))
        threshold = 0.9 * threshold + 0.1 * sum(classes.values()) / len(classes)
        assert weighting.threshold.item() == pytest.approx(threshold, abs=1e-6)
        assert found == [float(c >= weighting.threshold.item()) for c in confidences(probability)]


@pytest.mark.parametrize("name", ["softmatch", "corrmatch"])
def test_two_processes_have_the_state_of_one_that_sees_both_batches(name):
    first, second = batch(1), batch(2)
    alone = make_weighting(name, momentum=0.5)
    alone(torch.cat([first, second]))
    both = {}

    def concat(tensor):
        """What the other process gives: the same statistic of its batch."""
        probe = make_weighting(name, momentum=0.5, concat=lambda x: both.setdefault("x", x))
        both.clear()
        probe(second)
        return torch.cat([tensor, both["x"]])

    shared = make_weighting(name, momentum=0.5, concat=concat)
    shared(first)
    for key, value in alone.state_dict().items():
        torch.testing.assert_close(shared.state_dict()[key], value)


@pytest.mark.parametrize("name", ["softmatch", "corrmatch"])
def test_evaluation_leaves_the_state_alone(name):
    weighting = make_weighting(name).eval()
    before = {key: value.clone() for key, value in weighting.state_dict().items()}
    weighting(batch(0))
    assert all(torch.equal(weighting.state_dict()[key], before[key]) for key in before)
    weighting.train()(batch(0)[:0])  # an empty batch
    assert all(torch.equal(weighting.state_dict()[key], before[key]) for key in before)
    assert not make_weighting("pwa").state_dict()


def logits_and_partitions(seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(4, 2, 6, 6, generator=generator) * 3
    labels = (logits[:, 1] > logits[:, 0]).numpy()
    masks = [label[None] if i % 2 else np.zeros((0, 6, 6), bool) for i, label in enumerate(labels)]
    return logits, [Partition.from_masks(mask) for mask in masks]


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_every_weighting_composes_with_a_rule(name):
    logits, partitions = logits_and_partitions()
    out = PseudoLabelRefiner("cpi-u", weighting=make_weighting(name))(logits, partitions)
    assert out.matched.tolist() == [False, True, False, True]
    assert (out.weights[out.matched] == 1).all()
    wanted = make_weighting(name)(foreground(logits))
    assert torch.equal(out.weights[~out.matched], wanted[~out.matched])


def test_pwa_by_name_and_by_argument_is_the_same():
    logits, partitions = logits_and_partitions()
    values = {"pwa_mean": 0.4, "pwa_variance": 0.2, "pwa_offset": 1.5}
    old = PseudoLabelRefiner("cpi-u", **values)
    new = PseudoLabelRefiner("cpi-u", weighting=make_weighting("pwa", **values))
    assert torch.equal(old(logits, partitions).weights, new(logits, partitions).weights)


def test_a_temperature_changes_weights_and_soft_rules_but_not_the_label():
    logits, partitions = logits_and_partitions()
    plain = PseudoLabelRefiner("none")(logits, partitions)
    warm = PseudoLabelRefiner("none", temperature=2.0)(logits, partitions)
    assert torch.equal(plain.labels, warm.labels)
    torch.testing.assert_close(warm.weights, pwa_weight(foreground(logits / 2)))
    by_hand = PseudoLabelRefiner("mean-score")(logits / 2, partitions)
    warm = PseudoLabelRefiner("mean-score", temperature=2.0)(logits, partitions)
    assert torch.equal(by_hand.labels, warm.labels)


@given(st.integers(0, 2**32))
def test_the_weight_of_a_matched_sample_is_its_expected_iou(seed):
    logits, partitions = logits_and_partitions(seed)
    refiner = PseudoLabelRefiner("cpi-u", matched_weight="expected-iou")
    out = refiner(logits, partitions)
    p = foreground(logits).double()
    for label, probability, quality in zip(out.labels, p, out.quality, strict=True):
        inside = (label * probability).sum()
        wanted = inside / (label.sum() + probability.sum() - inside).clamp(min=1e-9)
        assert quality.item() == pytest.approx(wanted.item(), abs=1e-3)
    some = out.select(torch.tensor([True, False, False, True]))
    assert torch.equal(some.quality, out.quality[[0, 3]])
    assert PseudoLabelRefiner("cpi-u")(logits, partitions).quality is None
