"""A trial on counts equals refining the pixels, to the last digit of the integer counts."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.fake_searches import ellipses
from hypothesis import example, given, settings
from hypothesis import strategies as st

from semires.config.load import load_params
from semires.config.validate import validate
from semires.errors import ConfigError
from semires.refine import PartitionBatch, PseudoLabelRefiner
from semires.refine.partition import Partition
from semires.refine.strategies import STRATEGIES, Strategy
from semires.refine.weighting import Weighting
from semires.refine.weightings import WEIGHTINGS, Parameter, WeightingRule
from semires.runs.key import RunKey
from semires.training.mutual import make_refiner
from semires.tuning.counts import PseudoLabel, count
from semires.tuning.objective import Axis, space, with_values
from semires.tuning.refined import make_table, summarise, thresholds_of

PARAMS = Path(__file__).parents[2] / "params.yaml"
SIZE = 10
RADII = (1, SIZE / 2)
SEARCHED = (*(name for name in STRATEGIES if name != "none"), "both", "largest", "share")
LOGITS = torch.linspace(-4, 4, 33)


@pytest.fixture(autouse=True, scope="module")
def another_strategy():
    """Rules without scores: both of CPI's comparisons; IOM by a choice; a rule over atoms."""
    both = Strategy(
        {"threshold_u": 0.7, "threshold_o": 0.7},
        choose=lambda overlaps, threshold_u, threshold_o: (
            (overlaps.label_coverage > threshold_u) & (overlaps.proposal_coverage > threshold_o)
        ),
    )
    largest = Strategy(
        {"threshold": 0.5},
        choose=lambda overlaps, threshold: overlaps.iou > threshold,
        best_alone=True,
    )
    share = Strategy(
        {"threshold": 0.5},
        cover=lambda atoms, threshold: (
            (atoms.label > threshold * atoms.areas) & atoms.members.any(-2)
        ),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(STRATEGIES, "share", share)
        patch.setitem(STRATEGIES, "both", both)
        patch.setitem(STRATEGIES, "largest", largest)
        yield


def world(seed, images=3, refs=3, most=6):
    """Proposals, pseudo-labels near some of them, and ground truths; empty ones included.

    The probabilities are those of LOGITS.
    """
    rng = np.random.default_rng(seed)
    masks = {i: ellipses(rng, int(rng.integers(0, most + 1)), SIZE, RADII) for i in range(images)}
    labels = []
    for image in masks:
        for ref in range(refs):
            truth = ellipses(rng, 1, SIZE, RADII)[0]
            label = np.roll(truth, rng.integers(-2, 3, 2), (0, 1)) & (
                rng.random((SIZE, SIZE)) < 0.9
            )
            if rng.random() < 0.1:
                label = np.zeros_like(label)
            # The middle one of LOGITS is 0: background.
            places = np.where(label, *(rng.integers(a, a + 16, label.shape) for a in (17, 1)))
            probability = torch.sigmoid(LOGITS).numpy()[places]
            labels.append(PseudoLabel(image * 10 + ref, image, 0, label, truth, probability))
    order = rng.permutation(len(labels))
    return masks, [labels[i] for i in order]


def refine_pixels(strategy, thresholds, labels, partitions, as_batch):
    """As in training, on the path of the CPU or of the accelerator; then pixels are counted."""
    refiner = PseudoLabelRefiner(strategy=strategy, pwa=False, thresholds=thresholds)
    probability = np.stack([item.probability for item in labels])
    foreground = LOGITS[np.searchsorted(torch.sigmoid(LOGITS).numpy(), probability)]
    logits = torch.stack([torch.zeros_like(foreground), foreground], dim=1)
    parts = [partitions[item.image_id] for item in labels]
    out = refiner(logits, PartitionBatch.of(parts) if as_batch else parts)
    refined = out.labels.bool().numpy()
    truth = np.stack([item.truth for item in labels])
    return (
        (refined & truth).sum((1, 2)),
        (refined | truth).sum((1, 2)),
        out.matched.bool().numpy(),
    )


@pytest.mark.parametrize("strategy", SEARCHED)
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), values=st.tuples(*[st.floats(0, 1)] * 2), exact=st.booleans())
@example(seed=11203, values=(0.0, 0.0), exact=False)  # no image has a proposal
def test_trial_equals_pixels(strategy, seed, values, exact):
    masks, labels = world(seed)
    partitions = {i: Partition.from_masks(m) for i, m in masks.items()}
    table = make_table(count(labels, partitions), strategy)
    assert torch.sigmoid(LOGITS).diff().min() > 0
    names = thresholds_of(strategy)
    if exact:  # thresholds that some proposal meets exactly: strict comparison decides
        values = [round(v * 4) / 4 for v in values]
    thresholds = dict(zip(names, values, strict=False))
    outcome = table.outcome(thresholds)
    for as_batch in (False, True):
        found = refine_pixels(strategy, thresholds, labels, partitions, as_batch)
        for ours, wanted in zip(
            (outcome.intersection, outcome.union, outcome.matched), found, strict=True
        ):
            assert ours.tolist() == wanted.tolist()


@pytest.mark.parametrize("strategy", SEARCHED)
def test_part_of_a_table_is_the_table_of_a_part(strategy):
    masks, labels = world(3, images=6)
    partitions = {i: Partition.from_masks(m) for i, m in masks.items()}
    counts = count(labels, partitions)
    table = make_table(counts, strategy)
    keep = np.random.default_rng(1).random(len(labels)) < 0.5
    kept = [item for item, k in zip(labels, keep, strict=True) if k]
    alone = make_table(count(kept, partitions), strategy)
    thresholds = dict.fromkeys(thresholds_of(strategy), 0.4)
    for part in (make_table(counts.take(keep), strategy), alone):
        outcome = part.outcome(thresholds)
        whole = table.outcome(thresholds)
        assert outcome.intersection.tolist() == whole.intersection[keep].tolist()
        assert outcome.union.tolist() == whole.union[keep].tolist()
        assert part.labels.image_ids.tolist() == [item.image_id for item in kept]


def test_summary_of_known_labels():
    """Four pixels in a row; the proposal is the truth of the first label, not of the second."""
    row = np.array([[1, 1, 1, 0]], bool)
    partitions = {1: Partition.from_masks(row[None])}
    truths = row, np.array([[1, 1, 0, 0]], bool), np.array([[0, 0, 0, 1]], bool)
    masks = np.array([[1, 1, 0, 0]], bool), np.array([[1, 1, 0, 0]], bool), truths[2]
    labels = [
        PseudoLabel(i, 1, 0, c, g) for i, (c, g) in enumerate(zip(masks, truths, strict=True))
    ]
    table = make_table(count(labels, partitions), "iom")
    before = summarise(table.labels.untouched(), table.labels)
    assert before["oIoU"] == pytest.approx(100 * 5 / 6)
    assert before["unmatched"] == 100
    found = summarise(table.outcome({"threshold": 0.5}), table.labels)
    assert found["oIoU"] == pytest.approx(100 * 6 / 7)
    assert found["mIoU"] == pytest.approx(100 * (1 + 2 / 3 + 1) / 3)
    shares = [found[k] for k in ("matched", "better", "worse", "unmatched")]
    assert shares == pytest.approx([200 / 3, 100 / 3, 100 / 3, 100 / 3])
    # 2/3 is the IoU of both, and comparisons are strict.
    assert summarise(table.outcome({"threshold": 2 / 3}), table.labels)["matched"] == 0


def test_strategies_without_a_rule():
    masks, labels = world(0)
    counts = count(labels, {i: Partition.from_masks(m) for i, m in masks.items()})
    table = make_table(counts, "none")
    outcome, untouched = table.outcome({}), table.labels.untouched()
    assert outcome.intersection.tolist() == untouched.intersection.tolist()
    assert outcome.union.tolist() == untouched.union.tolist()
    assert not outcome.matched.any()


def test_space_of_labels_and_of_training():
    params = load_params(PARAMS)
    cell = RunKey("refscenes", 1, "cpi-u", 0)
    assert list(space(params, cell)) == ["threshold_u"]
    for method, reason in {
        "baseline": "the strategy `none` has no thresholds; .* `tune.objective: training`",
        "expected-iou-one": "the strategy `expected-iou-one` has no thresholds",
        "nonesuch": "no such method",
    }.items():
        with pytest.raises(ConfigError, match=f"refine.{method}: {reason}"):
            space(params, RunKey("refscenes", 1, method, 0))
    tune = params.tune.model_copy(update={"objective": "training"})
    training = params.model_copy(update={"tune": tune})
    axes = space(training, cell)
    assert set(axes) == {
        "threshold_u", "pwa_mean", "pwa_variance", "pwa_offset", "lambda_unsup", "ema",
    }  # fmt: skip
    assert all(axis.low <= axis.given <= axis.high for axis in axes.values())
    only = tune.model_copy(update={"parameters": ["pwa_offset", "threshold_u"]})
    chosen = space(params.model_copy(update={"tune": only}), cell)
    assert chosen == {name: axes[name] for name in ("threshold_u", "pwa_offset")}
    wrong = params.tune.model_copy(update={"parameters": ["pwa_offset"]})
    with pytest.raises(ConfigError, match=r"tune\.parameters: 'pwa_offset' .* threshold_u$"):
        space(params.model_copy(update={"tune": wrong}), cell)
    # Eq. 9 stays positive all over the space.
    lowest = axes["pwa_offset"].low - 1 / np.sqrt(2 * np.pi * axes["pwa_variance"].low)
    assert lowest > 0


def test_every_weighting_is_searched_by_trainings(monkeypatch):
    """One entry in WEIGHTINGS: its parameters are searched, and a trial's values reach it."""
    monkeypatch.setattr("semires.refine.weighting.Sharp", Sharp, raising=False)
    rule = WeightingRule(
        "semires.refine.weighting:Sharp", {"sharpness": Parameter(0.5, 0.1, 1.0, log=True)}
    )
    monkeypatch.setitem(WEIGHTINGS, "sharp", rule)
    tree = load_params(PARAMS).model_dump()
    tree["tune"]["objective"] = "training"
    tree["refine"]["mine"] = {"strategy": "none", "weighting": "sharp", "sharpness": 0.25}
    tree["study"]["tune"][0]["methods"] += ["fixmatch", "mine"]
    params, always = validate(tree), {"lambda_unsup", "ema"}
    searched = {
        "baseline": set(),
        "baseline-pwa": {"pwa_mean", "pwa_variance", "pwa_offset"},
        "fixmatch": {"confidence"},
        "softmatch": {"momentum"},
        "corrmatch": {"confidence", "momentum"},
        "cpi-u-softmatch": {"threshold_u", "momentum"},
        "expected-iou-one": {"pwa_mean", "pwa_variance", "pwa_offset"},
        "mine": {"sharpness"},
    }
    for method, names in searched.items():
        axes = space(params, RunKey("refscenes", 1, method, 0))
        assert set(axes) == names | always
        assert all(axis.low <= axis.given <= axis.high for axis in axes.values())
    assert space(params, RunKey("refscenes", 1, "corrmatch", 0))["confidence"].given == 0.85
    found = space(params, RunKey("refscenes", 1, "mine", 0))["sharpness"]
    assert found == Axis(0.1, 1.0, 0.25, log=True)
    changed = with_values(params, RunKey("refscenes", 1, "mine", 0), {"sharpness": 0.75})
    assert make_refiner(changed, changed.refine["mine"]).weighting.power == 0.75
    fixmatch = RunKey("refscenes", 1, "fixmatch", 0)
    changed = with_values(params, fixmatch, {"confidence": 0.6})
    assert make_refiner(changed, changed.refine["fixmatch"]).weighting.threshold == 0.6


class Sharp(Weighting):
    """A weighting of one's own."""

    def __init__(self, power):
        super().__init__()
        self.power = power

    def forward(self, probability):
        return probability**self.power


def test_trial_values_reach_the_parameters():
    params, cell = load_params(PARAMS), RunKey("refscenes", 1, "cpi", 0)
    values = {
        "threshold_u": 0.61, "threshold_o": 0.62, "pwa_mean": 0.4, "pwa_variance": 0.2,
        "pwa_offset": 1.5, "lambda_unsup": 0.3, "ema": 0.97,
    }  # fmt: skip
    changed = with_values(params, cell, values)
    method = changed.refine["cpi"]
    assert (method.threshold_u, method.threshold_o) == (0.61, 0.62)
    assert changed.loss.pwa.model_dump() == {"mean": 0.4, "variance": 0.2, "offset": 1.5}
    assert (changed.mutual.lambda_unsup, changed.mutual.ema) == (0.3, 0.97)
    assert (changed.mutual.steps, changed.mutual.epochs) == (params.tune.steps, None)
    assert changed.refine["cpi-u"] == params.refine["cpi-u"]
