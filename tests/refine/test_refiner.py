"""The refiner: the published code's labels and weights, both paths alike, and odd batches."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from semires.proposals import Partition
from semires.refine import PartitionBatch, PseudoLabelRefiner
from semires.refine.strategies import STRATEGIES
from semires.refine.weighting import pwa_weight

GOLDEN = Path(__file__).parents[1] / "golden" / "refine_dev.npz"


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def batches(golden):
    for i in sorted({name.split("/")[0] for name in golden}):
        ends = np.cumsum(golden[f"{i}/n_proposals"])[:-1]
        masks = np.split(golden[f"{i}/proposals"].astype(bool), ends)
        yield (
            {key.split("/")[1]: value for key, value in golden.items() if key[0] == i},
            [Partition.from_masks(m) for m in masks],
        )


@pytest.mark.golden
@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("strategy", ["iom", "cpi"])
def test_labels_matches_and_weights_of_the_published_code(golden, strategy, on_device):
    refiner, seen = PseudoLabelRefiner(strategy=strategy), 0
    for batch, partitions in batches(golden):
        given_partitions = PartitionBatch.of(partitions) if on_device else partitions
        out = refiner(torch.from_numpy(batch["teacher_logits"]), given_partitions)
        assert (out.labels.dtype, out.weights.dtype, out.matched.dtype) == (
            torch.int64, torch.float32, torch.bool,
        )  # fmt: skip
        np.testing.assert_array_equal(out.labels.numpy(), batch[f"{strategy}_label"])
        unmatched = np.flatnonzero(~out.matched.numpy())
        np.testing.assert_array_equal(unmatched, batch[f"{strategy}_unmatched"])
        weights = out.weights.numpy()
        np.testing.assert_allclose(
            weights[unmatched], batch["pwa_weight"][unmatched], rtol=0, atol=1e-5
        )
        assert (weights[out.matched.numpy()] == 1).all()
        seen += len(unmatched)
    assert seen >= 5


def random_batch(seed, count, height, width):
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(size=(count, 2, height, width)).astype(np.float32))
    partitions = []
    for label in (logits[:, 1] > logits[:, 0]).numpy():
        masks = rng.random((int(rng.integers(0, 8)), height, width)) < 0.5
        for mask in masks[::2]:  # half of the proposals resemble the label
            mask[...] = label ^ (mask & (rng.random(label.shape) < 0.4))
        partitions.append(Partition.from_masks(masks))
    return logits, partitions


@pytest.mark.parametrize("strategy", STRATEGIES)
@given(st.integers(0, 2**32), st.integers(0, 4), st.integers(1, 9), st.integers(1, 9))
def test_a_batch_at_once_equals_sample_by_sample(strategy, seed, count, height, width):
    logits, partitions = random_batch(seed, count, height, width)
    refiner = PseudoLabelRefiner(strategy=strategy)
    single = refiner(logits, partitions)
    at_once = refiner(logits, PartitionBatch.of(partitions) if partitions else [])
    for name in ("labels", "weights", "matched"):
        assert torch.equal(getattr(single, name), getattr(at_once, name))


def test_inputs_stay_as_they_are():
    logits, partitions = random_batch(0, 3, 6, 7)
    before, atoms = logits.clone(), [p.atoms.copy() for p in partitions]
    PseudoLabelRefiner(strategy="cpi")(logits, partitions)
    assert torch.equal(logits, before)
    for partition, kept in zip(partitions, atoms, strict=True):
        np.testing.assert_array_equal(partition.atoms, kept)


def test_strategy_none_matches_nothing_and_weighs_all():
    logits, partitions = random_batch(1, 2, 5, 5)
    out = PseudoLabelRefiner(strategy="none")(logits, partitions)
    assert not out.matched.any()
    assert torch.equal(out.labels, logits.argmax(1))
    expected = pwa_weight(logits.softmax(1)[:, 1])
    torch.testing.assert_close(out.weights, expected, rtol=0, atol=1e-6)


def test_without_pwa_all_weights_are_one():
    logits, partitions = random_batch(2, 3, 6, 6)
    out = PseudoLabelRefiner(strategy="iom", iom_threshold=0.99, pwa=False)(logits, partitions)
    assert not out.matched.all()
    assert torch.equal(out.weights, torch.ones(3, 6, 6))


def test_a_tie_is_background_and_half_precision_is_taken():
    logits = torch.zeros(1, 2, 3, 3, dtype=torch.bfloat16)
    logits[0, 1, 0] = 1
    out = PseudoLabelRefiner(strategy="none")(logits, [])
    assert out.labels[0].sum(1).tolist() == [3, 0, 0]
    assert out.weights.dtype == torch.float32


def test_an_empty_pseudo_label_is_unmatched_and_finite():
    logits = torch.stack([torch.full((4, 4), 9.0), torch.full((4, 4), -9.0)])[None]
    masks = np.zeros((2, 4, 4), dtype=bool)
    masks[0, 1] = True
    for strategy in STRATEGIES:
        out = PseudoLabelRefiner(strategy=strategy)(logits, [Partition.from_masks(masks)])
        assert not out.matched.any()
        assert out.labels.sum() == 0
        assert torch.isfinite(out.weights).all()


def test_partitions_of_another_size_or_number_are_refused():
    logits, partitions = random_batch(3, 2, 6, 6)
    refiner = PseudoLabelRefiner(strategy="iom")
    for wrong in (partitions[:1], [p.resize(6, 5) for p in partitions]):
        for given_partitions in (wrong, PartitionBatch.of(wrong)):
            with pytest.raises(ValueError, match="resize the partitions"):
                refiner(logits, given_partitions)


def test_an_unknown_strategy_is_refused():
    with pytest.raises(ValueError, match="unknown strategy 'sam'"):
        PseudoLabelRefiner(strategy="sam")


def test_thresholds_by_argument_and_by_name():
    """The paper's values where none is given; arguments of other strategies are ignored."""
    assert PseudoLabelRefiner("iom").thresholds == {"threshold": 0.5}
    assert PseudoLabelRefiner("cpi").thresholds == {"threshold_u": 0.7, "threshold_o": 0.7}
    assert PseudoLabelRefiner("iom", 0.6, 0.2, 0.3).thresholds == {"threshold": 0.6}
    cpi = PseudoLabelRefiner("cpi", cpi_threshold_u=0.6, thresholds={"threshold_o": 0.4})
    assert cpi.thresholds == {"threshold_u": 0.6, "threshold_o": 0.4}
    with pytest.raises(ValueError, match="unknown threshold 'threshold'"):
        PseudoLabelRefiner("cpi", thresholds={"threshold": 0.4})


def test_selecting_samples():
    logits, partitions = random_batch(4, 3, 6, 6)
    out = PseudoLabelRefiner(strategy="cpi")(logits, partitions)
    some = out.select(torch.tensor([True, False, True]))
    assert torch.equal(some.labels, out.labels[[0, 2]])
    assert torch.equal(some.weights, out.weights[[0, 2]])
    assert torch.equal(some.matched, out.matched[[0, 2]])


def test_pwa_by_hand():
    p = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    assert pwa_weight(p).tolist() == pytest.approx([0.938555, 0.038434, 0.938555], abs=1e-6)
    got = pwa_weight(p, mean=0.2, variance=0.04, offset=3.0)
    peak = 1 / math.sqrt(2 * math.pi * 0.04)
    expected = [3 - peak * math.exp(-((x - 0.2) ** 2) / 0.08) for x in (0, 0.5, 1)]
    assert got.tolist() == pytest.approx(expected, rel=1e-12)
