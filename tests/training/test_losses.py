"""Losses against the published code's numbers, plain loops and finite differences."""

from pathlib import Path

import numpy as np
import pytest
import torch

from semires.proposals import Partition
from semires.refine import PseudoLabelRefiner, RefinedLabels
from semires.training.losses import supervised_loss, unsupervised_loss

GOLDEN = Path(__file__).parents[1] / "golden" / "refine_dev.npz"


@pytest.mark.golden
@pytest.mark.parametrize("strategy", ["iom", "cpi"])
def test_unsupervised_loss_of_the_published_code(strategy):
    with np.load(GOLDEN, allow_pickle=False) as golden:
        for i in sorted({name.split("/")[0] for name in golden.files}):
            ends = np.cumsum(golden[f"{i}/n_proposals"])[:-1]
            masks = np.split(golden[f"{i}/proposals"].astype(bool), ends)
            partitions = [Partition.from_masks(m) for m in masks]
            teacher = torch.from_numpy(golden[f"{i}/teacher_logits"])
            student = torch.from_numpy(golden[f"{i}/student_logits"])
            targets = PseudoLabelRefiner(strategy=strategy)(teacher, partitions)
            loss = unsupervised_loss(student, targets)
            assert loss.item() == pytest.approx(float(golden[f"{i}/{strategy}_loss"]), rel=1e-5)


def draw(count, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, 2, 4, 5, generator=generator, dtype=dtype)
    labels = torch.randint(0, 2, (count, 4, 5), generator=generator)
    weights = torch.rand(count, 4, 5, generator=generator)
    return logits, labels, weights


def plain_pixel(logits, label):
    return -torch.log_softmax(logits, 0)[label]


def plain_sample(logits, labels, weight_of):
    terms = [
        plain_pixel(logits[:, y, x], labels[y, x]) * weight_of(y, x)
        for y in range(4)
        for x in range(5)
    ]
    return sum(terms) / len(terms)


def plain_unsupervised(logits, labels, weights, matched):
    groups = {True: [], False: []}
    for b, is_matched in enumerate(matched):

        def weight(y, x, b=b, is_matched=is_matched):
            return (0.9, 1.1)[labels[b, y, x]] if is_matched else weights[b, y, x]

        groups[is_matched].append(plain_sample(logits[b], labels[b], weight))
    means = [sum(group) / len(group) for group in groups.values() if group]
    return sum(means) / len(means)


@pytest.mark.parametrize("pattern", ["1", "0", "10", "01", "110", "001", "1111", "000", "10110"])
def test_unsupervised_loss_equals_loops_over_pixels(pattern):
    matched = [letter == "1" for letter in pattern]
    logits, labels, weights = draw(len(matched))
    targets = RefinedLabels(labels, weights, torch.tensor(matched))
    wanted = plain_unsupervised(logits, labels, weights, matched)
    assert unsupervised_loss(logits, targets).item() == pytest.approx(wanted.item(), rel=1e-6)


def test_supervised_loss_is_a_plain_mean_of_weighted_pixels():
    logits, labels, _ = draw(3)
    samples = [
        plain_sample(logits[b], labels[b], lambda y, x, b=b: (0.9, 1.1)[labels[b, y, x]])
        for b in range(3)
    ]
    got = supervised_loss(logits, labels).item()
    assert got == pytest.approx((sum(samples) / 3).item(), rel=1e-6)
    weighted_mean = torch.nn.functional.cross_entropy(
        logits, labels, torch.tensor([0.9, 1.1], dtype=torch.float64)
    )
    assert got != pytest.approx(weighted_mean.item(), rel=1e-6)


def test_class_weights_reach_only_matched_samples():
    logits, labels, weights = draw(2)
    for matched, scale in ((True, 2.0), (False, 1.0)):
        targets = RefinedLabels(labels, weights, torch.tensor([matched] * 2))
        once = unsupervised_loss(logits, targets, (1.0, 1.5)).item()
        twice = unsupervised_loss(logits, targets, (2.0, 3.0)).item()
        assert twice == pytest.approx(scale * once)


def test_gradients():
    logits, labels, weights = draw(3)
    logits.requires_grad_()
    targets = RefinedLabels(labels, weights, torch.tensor([True, False, False]))
    assert torch.autograd.gradcheck(lambda x: unsupervised_loss(x, targets), logits)
    assert torch.autograd.gradcheck(lambda x: supervised_loss(x, labels), logits)
    unsupervised_loss(logits, targets).backward()
    assert (logits.grad.abs().sum((1, 2, 3)) > 0).all()


def test_no_sample_kept_is_a_loss_of_zero_with_a_gradient():
    logits, labels, weights = draw(2)
    logits.requires_grad_()
    nothing = torch.zeros(2, dtype=torch.bool)
    targets = RefinedLabels(labels, weights, nothing).select(nothing)
    loss = unsupervised_loss(logits[nothing], targets)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_a_broken_logit_is_not_hidden():
    logits, labels, weights = draw(2)
    logits[1, 0, 2, 2] = float("nan")
    for matched in ([True, True], [True, False], [False, False]):
        targets = RefinedLabels(labels, weights, torch.tensor(matched))
        assert unsupervised_loss(logits, targets).isnan()
