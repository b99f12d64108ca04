"""Two strong views, complementary dropout, held-out temperature: formulas, then real trainings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.small_study import small_params
from hypothesis import given
from hypothesis import strategies as st

from semires.config.schema import Params
from semires.errors import ConfigError, Interrupted
from semires.evaluation.calibration import (
    BINS,
    calibration_of,
    calibration_sums,
    expected_calibration_error,
    fit_temperature,
    reliability,
)
from semires.files import read_json, sha256_file
from semires.models import SegmentationModel
from semires.refine import PseudoLabelRefiner, RefinedLabels
from semires.runs.key import RunKey
from semires.tracking import TrackedRun
from semires.training.burn_in import burn_in, hold_out
from semires.training.context import RunContext
from semires.training.losses import unsupervised_loss
from semires.training.mutual import MutualStep, mutual, training_datasets

RIVALS: dict[str, dict[str, Any]] = {
    "fixmatch": {"strategy": "none", "weighting": "confidence", "confidence": 0.95},
    "softmatch": {"strategy": "cpi-u", "threshold_u": 0.7, "weighting": "softmatch"},
    "corrmatch": {"strategy": "none", "weighting": "corrmatch"},
    "unimatch": {"strategy": "none", "weighting": "confidence", "views": 2},
    "weighted": {"strategy": "expected-iou", "pwa": True, "matched_weight": "expected-iou"},
    "calibrated": {"strategy": "expected-iou-gated", "gate": 0.3, "pwa": True,
                   "temperature": "fitted"},
}  # fmt: skip


def rivals(**changes: Any) -> Params:
    short = {"steps": 4, "evaluations": 1}
    return small_params(refine=RIVALS, mutual=short, **changes)


def key_of(method: str, seed: int = 0) -> RunKey:
    return RunKey("refscenes", 25, method, seed)


@pytest.fixture(scope="module")
def burned(small_study: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEMIRES_TRACKING", "off")
        burn_in(rivals(burn_in={"held_out": 0.3}), key_of("supervised"))
    return key_of("supervised").folder


# Complementary dropout


@given(st.integers(0, 2**32), st.integers(1, 6), st.integers(0, 3))
def test_paired_views_keep_complementary_channels(seed, pairs, before):
    torch.manual_seed(seed)
    model = SegmentationModel()
    model.paired = pairs
    maps = [torch.ones(before + 2 * pairs, c, 2, 3) for c in (4, 8)]
    unchanged = []
    for found, old in zip(model.drop_channels(maps), maps, strict=True):
        assert torch.equal(found[:before], old[:before])
        first, second = found[before : before + pairs], found[before + pairs :]
        assert torch.equal(first + second, torch.full_like(first, 2))
        assert torch.equal(first, first[:, :, :1, :1].expand_as(first))  # whole channels
        same = (first == 1).flatten(1).all(1)
        assert (((first == 0) | (first == 2)).flatten(1).all(1) | same).all()
        unchanged.append(same.tolist())
    assert unchanged[0] == unchanged[1]
    assert sum(unchanged[0]) == pairs // 2


def test_without_pairs_nothing_is_dropped():
    maps = [torch.rand(3, 4, 2, 2)]
    assert SegmentationModel().drop_channels(maps) is maps


def test_half_of_the_channels_are_dropped():
    torch.manual_seed(0)
    model = SegmentationModel()
    model.paired = 2
    (found,) = model.drop_channels([torch.ones(4, 10_000, 1, 1)])
    changed = found[:2][(found[:2] != 1).flatten(1).any(1)]
    assert changed.mean().item() == pytest.approx(1, abs=0.05)


# Two views


def test_a_second_view_differs_and_the_first_stays(burned: Path):
    samples = {}
    for method in ("fixmatch", "unimatch"):
        params = rivals()
        context = RunContext(params, key_of(method), ("data", "model"))
        _, unlabelled = training_datasets(context, params.refine[method])
        samples[method] = unlabelled[(5, 2)]
    one, two = samples["fixmatch"], samples["unimatch"]
    assert one.second is None
    assert torch.equal(one.image, two.image)
    assert torch.equal(one.strong, two.strong)
    assert two.second.shape == two.strong.shape
    assert not torch.equal(two.second, two.strong)
    images, ids, mask = two.strong_inputs
    assert (len(images), len(ids), len(mask)) == (2, 2, 2)
    assert torch.equal(images[1:], two.second)


def test_the_loss_of_two_views_is_their_mean(burned: Path, monkeypatch: pytest.MonkeyPatch):
    """With a student that answers each view from its pixels, without dropout."""
    params = rivals()
    context = RunContext(params, key_of("unimatch"), ("data", "model"))
    labelled, unlabelled = training_datasets(context, params.refine["unimatch"])
    from semires.refine.filtering import ConfidenceFilter
    from semires.samples.batch import MutualBatch, collate

    class Pixels(SegmentationModel):
        def forward(self, pixel_values, input_ids, attention_mask):
            return pixel_values[:, :2] * 3

    model = Pixels()
    seen = []

    def student(*inputs):
        seen.append(model.paired)
        return model.training_outputs(*inputs)

    refiner = PseudoLabelRefiner("none")
    step = MutualStep(context, model, student, model, refiner, ConfidenceFilter(1.0))
    first = collate([labelled[(i, i)] for i in range(2)])
    second = collate([unlabelled[(i, i)] for i in range(3)])
    loss, sums = step.compute_loss(MutualBatch(first, second))
    assert (seen, model.paired) == ([3], 0)
    targets = refiner(second.image[:, :2] * 3, second.partitions)
    views = [unsupervised_loss(v[:, :2] * 3, targets) for v in (second.strong, second.second)]
    assert sums["loss_unsup"].item() == pytest.approx((sum(views) / 2).item(), rel=1e-5)
    assert loss.item() == pytest.approx((sums["loss_sup"] + sums["loss_unsup"]).item(), rel=1e-5)


def test_quality_scales_the_loss_of_matched_samples():
    logits = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    labels, weights = torch.ones(2, 4, 4, dtype=torch.int64), torch.full((2, 4, 4), 0.3)
    for matched, scale in ((True, 0.25), (False, 1.0)):
        plain = RefinedLabels(labels, weights, torch.tensor([matched] * 2))
        half = RefinedLabels(labels, weights, plain.matched, torch.full((2,), 0.25))
        found = unsupervised_loss(logits, half).item()
        assert found == pytest.approx(scale * unsupervised_loss(logits, plain).item())


# Calibration


@given(st.integers(0, 2**32))
def test_ece_by_hand(seed):
    rng = np.random.default_rng(seed)
    probability, truth = rng.random(200), rng.random(200) < 0.5
    bins: dict[int, list[tuple[float, bool]]] = {}
    for p, t in zip(probability.tolist(), truth.tolist(), strict=True):
        c = max(p, 1 - p)
        bins.setdefault(min(int((c - 0.5) * 2 * BINS), BINS - 1), []).append((c, (p > 0.5) == t))
    gaps = [abs(sum(c for c, _ in b) - sum(right for _, right in b)) for b in bins.values()]
    sums = reliability(probability[:90], truth[:90]) + reliability(probability[90:], truth[90:])
    assert expected_calibration_error(sums) == pytest.approx(100 * sum(gaps) / 200)
    p, t = torch.from_numpy(probability), torch.from_numpy(truth)
    first, second = (calibration_sums(p[part], t[part]) for part in (slice(90), slice(90, None)))
    logged = calibration_of({name: float(first[name] + second[name]) for name in first})
    assert logged == {"pseudo/ece": pytest.approx(100 * sum(gaps) / 200)}
    assert calibration_of({}) == {}


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_the_temperature_of_overconfident_logits_is_found(temperature):
    """Truth drawn from sigmoid(d) and logits temperature * d."""
    generator = torch.Generator().manual_seed(1)
    difference = torch.randn(60_000, generator=generator) * 2
    truth = torch.rand(60_000, generator=generator) < torch.sigmoid(difference)
    found = fit_temperature(difference * temperature, truth)
    assert found == pytest.approx(temperature, rel=0.03)
    scaled = difference * temperature
    losses = [
        torch.nn.functional.binary_cross_entropy_with_logits(scaled / t, truth.float()).item()
        for t in (found, found * 1.05, found / 1.05)
    ]
    assert losses[0] < min(losses[1:])


def test_whole_images_are_held_out():
    refs = pd.DataFrame({"image_id": np.repeat(np.arange(10), 3), "ref_id": np.arange(30)})
    kept, held = hold_out(refs, 0.25, seed=0)
    assert held["image_id"].nunique() == 3
    assert not set(kept["image_id"]) & set(held["image_id"])
    assert sorted([*kept["ref_id"], *held["ref_id"]]) == list(range(30))
    assert hold_out(refs, 0.25, seed=0)[1].equals(held)
    assert not hold_out(refs, 0.25, seed=1)[1].equals(held)
    assert hold_out(refs, 0.0, seed=0)[0].equals(refs)
    with pytest.raises(ConfigError, match=r"burn_in\.held_out: .* leaves none"):
        hold_out(refs[:3], 0.5, seed=0)


def test_burn_in_writes_its_temperature(burned: Path):
    found = read_json(burned / "calibration.json")
    assert 0.05 <= found["temperature"] <= 20
    assert found["expressions"] > 0
    record = read_json(burned / "run.json")
    assert record["files"]["calibration.json"] == sha256_file(burned / "calibration.json")
    assert record["params"]["burn_in"]["held_out"] == 0.3
    context = RunContext(rivals(), key_of("calibrated"), ("data", "model"))
    assert context.fitted_temperature() == found["temperature"]


def test_a_temperature_that_was_not_fitted_is_named(burned: Path):
    context = RunContext(rivals(), key_of("calibrated", seed=7), ("data", "model"))
    assert context.fitted_temperature() == 1.0
    with pytest.raises(ConfigError, match=r"refine\.calibrated\.temperature: .*calibration\.json"):
        context.fitted_temperature(required=True)


# Trainings


@pytest.mark.parametrize("method", RIVALS)
def test_every_rival_trains(burned: Path, monkeypatch: pytest.MonkeyPatch, method: str):
    logged: list[dict[str, float]] = []
    monkeypatch.setattr(TrackedRun, "log_metrics", lambda run, values, step: logged.append(values))
    mutual(rivals(), key_of(method))
    assert all(0 <= values["pseudo/ece"] <= 50 for values in logged)
    assert "pseudo/ece" not in pd.read_csv(key_of(method).folder / "history.csv")
    metrics = read_json(key_of(method).folder / "metrics.json")
    assert 0 <= metrics["val"]["oIoU"] <= 100
    record = read_json(key_of(method).folder / "run.json")
    assert record["params"]["refine"].items() >= RIVALS[method].items()


def test_an_interrupted_run_keeps_the_state_of_its_weighting(
    burned: Path, monkeypatch: pytest.MonkeyPatch
):
    from semires import process

    folder = key_of("softmatch").folder
    before = sha256_file(folder / "model.safetensors")
    polls = iter(range(1, 10_000))
    with monkeypatch.context() as patch:
        patch.setattr(process, "stop_requested", lambda: 143 if next(polls) == 3 else None)
        with pytest.raises(Interrupted):
            mutual(rivals(), key_of("softmatch"))
    mutual(rivals(), key_of("softmatch"))
    assert sha256_file(folder / "model.safetensors") == before
