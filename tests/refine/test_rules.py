"""The rules beyond the paper against plain implementations, pixel by pixel in exact fractions."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from semires.proposals import Partition
from semires.refine import PartitionBatch
from semires.refine.batch import match_batch
from semires.refine.matching import match
from semires.refine.strategies import STRATEGIES

EIGHTHS = st.integers(0, 8).map(lambda n: Fraction(n, 8))


@st.composite
def samples(draw):
    """Proposals (N,H,W), a label near some of them, and a probability in sixteenths."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    masks = np.zeros((draw(st.integers(0, 6)), *shape), dtype=bool)
    label = rng.random(shape) < draw(st.sampled_from([0, 0.2, 0.6, 1]))
    for mask in masks:
        noise = rng.random(shape)
        mask[...] = [label & (noise < 0.8), label | (noise < 0.2), noise < 0.4, label, noise < 0][
            int(rng.integers(5))
        ]
    steps = np.where(label, rng.integers(9, 17, shape), rng.integers(0, 9, shape))
    return masks, label, steps / 16


def pixels(mask):
    return {(int(y), int(x)) for y, x in np.argwhere(mask)}


def ratio(part, whole):
    return Fraction(part) / Fraction(whole) if whole else Fraction(0)


def mass(points, probability):
    return sum((Fraction(float(probability[p])) for p in points), Fraction(0))


def expected(points, probability):
    """Sum of pi inside over pixels plus sum of pi outside."""
    inside, total = mass(points, probability), mass(np.ndindex(probability.shape), probability)
    return ratio(inside, len(points) + total - inside)


def painted(masks, label, limit):
    """Majority vote: from large to small, each proposal is painted with its majority."""
    painting = np.zeros(label.shape, dtype=bool)
    order = sorted(range(len(masks)), key=lambda i: -int(masks[i].sum()))
    for i in order:
        if masks[i].any():
            painting[masks[i]] = ratio(int((masks[i] & label).sum()), int(masks[i].sum())) > limit
    return pixels(painting)


def largest_f(masks, label, threshold, alpha):
    best, kept = Fraction(0), None
    for mask in masks:
        weighted = alpha * int(mask.sum()) + (1 - alpha) * int(label.sum())
        score = ratio(int((mask & label).sum()), weighted)
        if score > best:
            best, kept = score, mask
    return pixels(kept) if kept is not None and best > threshold else set()


def prefix(masks, probability):
    """Of all prefixes of the atoms ordered by mean pi, the smallest with the largest J."""
    atoms = {}
    for point in np.ndindex(probability.shape):
        inside = tuple(bool(mask[point]) for mask in masks)
        if any(inside):
            atoms.setdefault(inside, set()).add(point)
    mean = {key: mass(points, probability) / len(points) for key, points in atoms.items()}
    best, kept, current = Fraction(0), set(), set()
    for level in sorted(set(mean.values()), reverse=True):
        current = current.union(*(atoms[key] for key in atoms if mean[key] == level))
        if expected(current, probability) > best:
            best, kept = expected(current, probability), current
    return kept


def greedy(masks, probability):
    kept = set()
    while True:
        options = [kept | pixels(mask) for mask in masks]
        values = [expected(option, probability) for option in options]
        if not values or max(values) <= expected(kept, probability):
            return kept
        kept = options[values.index(max(values))]


def union_of(masks, chosen):
    return set().union(*(pixels(m) for m, wanted in zip(masks, chosen, strict=True) if wanted))


def plain(name, masks, label, probability, t):
    """The refined label as a set of pixels; None if no pixel of a proposal belongs to it."""
    total = mass(np.ndindex(label.shape), probability)
    rows = [
        (ratio(int((m & label).sum()), int(m.sum())), ratio(int((m & label).sum()), label.sum()),
         ratio(mass(pixels(m), probability), int(m.sum())),
         mass(pixels(m), probability) / (total + Fraction(1, 10**9)), m.any())
        for m in masks
    ]  # fmt: skip
    if name == "f-beta":
        found = largest_f(masks, label, t["threshold"], t["alpha"])
    elif name == "majority":
        found = painted(masks, label, t["threshold"])
    elif name == "expected-iou-atoms":
        found = prefix(masks, probability)
    elif name == "expected-iou":
        found = greedy(masks, probability)
    elif name == "expected-iou-gated":
        found = greedy(masks, probability)
        found = found if expected(found, probability) > t["gate"] else set()
    elif name == "expected-iou-one":
        values = [expected(pixels(mask), probability) for mask in masks]
        best = values.index(max(values)) if values and max(values) else None
        found = set() if best is None else pixels(masks[best])
    else:
        found = union_of(masks, [
            any_pixel and {
                "sepl": lambda p, r, mean, share: p > t["precision"] or r >= t["recall"],
                "mean-score": lambda p, r, mean, share: mean > t["threshold"],
                "soft-cpi": lambda p, r, mean, share: (
                    share > t["threshold_u"] or mean > t["threshold_o"]
                ),
                "soft-cpi-u": lambda p, r, mean, share: share > t["threshold_u"],
            }[name](p, r, mean, share)
            for p, r, mean, share, any_pixel in rows
        ])  # fmt: skip
    if found and name in ("sepl", "majority"):
        found = found | (pixels(label) - union_of(masks, [True] * len(masks)))
    return found or None


BEYOND = [
    *("f-beta", "sepl", "majority", "mean-score", "soft-cpi", "soft-cpi-u"),
    *("expected-iou-atoms", "expected-iou", "expected-iou-one", "expected-iou-gated"),
]


@pytest.mark.parametrize("name", BEYOND)
@given(sample=samples(), limits=st.tuples(EIGHTHS, EIGHTHS))
def test_equals_a_plain_implementation_on_both_paths(name, sample, limits):
    masks, label, probability = sample
    rule, partition = STRATEGIES[name], Partition.from_masks(masks)
    limits = dict(zip(rule.thresholds, limits, strict=False))
    thresholds = {key: float(value) for key, value in limits.items()}
    wanted = plain(name, masks, label, probability, limits)
    found = match(rule, partition, label, thresholds, probability)
    assert (found is None) == (wanted is None)
    if found is not None:
        assert pixels(found) == wanted
    batch = PartitionBatch.of([Partition.from_masks(label[None] ^ [[[True]]]), partition])
    labels, matched = match_batch(
        rule, batch, torch.from_numpy(np.stack([label, label])), thresholds,
        torch.from_numpy(np.stack([probability, probability])).float(),
    )  # fmt: skip
    assert bool(matched[1]) == (wanted is not None)
    assert pixels(labels[1].numpy()) == (pixels(label) if wanted is None else wanted)


def test_the_defaults_are_those_of_the_sources():
    assert STRATEGIES["sepl"].thresholds == {"precision": 0.5, "recall": 0.85}
    assert STRATEGIES["majority"].thresholds == {"threshold": 0.5}
    assert STRATEGIES["soft-cpi"].thresholds == STRATEGIES["cpi"].thresholds
    assert not STRATEGIES["expected-iou"].thresholds


def test_a_union_by_hand():
    """One row of five pixels. Two proposals cover the likely ones, a third the unlikely ones."""
    probability = np.array([[1.0, 1.0, 0.5, 0.0, 0.0]])
    masks = np.array([[[1, 1, 0, 0, 0]], [[0, 0, 1, 0, 0]], [[0, 0, 0, 1, 1]]], dtype=bool)
    # J: 2 / 2.5 with the first, 2.5 / 3 with the first two, 2.5 / 5 with all.
    for name in ("expected-iou", "expected-iou-atoms"):
        found = match(STRATEGIES[name], Partition.from_masks(masks), masks[0], {}, probability)
        assert found.tolist() == [[True, True, True, False, False]]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32))
def test_the_union_over_atoms_is_the_best_of_all_unions_of_atoms(seed):
    """Exhaustive search; the greedy union of proposals is never better."""
    rng = np.random.default_rng(seed)
    masks = rng.random((3, 4, 4)) < 0.5
    probability = rng.integers(0, 17, (4, 4)) / 16
    partition = Partition.from_masks(masks)
    inside = np.flatnonzero(partition.members.any(axis=0))
    parts = [pixels(partition.atoms == atom) for atom in inside]
    subsets = (
        set().union(*chosen)
        for size in range(len(parts) + 1)
        for chosen in itertools.combinations(parts, size)
    )
    best = max(expected(subset, probability) for subset in subsets)
    label = probability > 0.5
    values = {}
    for name in ("expected-iou-atoms", "expected-iou"):
        found = match(STRATEGIES[name], partition, label, {}, probability)
        values[name] = expected(set() if found is None else pixels(found), probability)
    assert values["expected-iou-atoms"] == best
    assert values["expected-iou"] <= best
