"""Bootstrap intervals against scipy's, coverage on a known population, and pairing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from semires.evaluation.bootstrap import (
    confidence_interval,
    image_sums,
    paired_difference,
    resample_weights,
    resampled,
    seed_deviations,
)


def draw(rng, n_images=150, quality=0.6, per_image=4):
    images = np.repeat(np.arange(n_images) * 7 + 3, per_image)
    union = rng.integers(50, 400, len(images))
    iou = np.clip(rng.beta(6 * quality, 6 * (1 - quality), len(images)), 0, 1)
    return images, np.floor(iou * union), union


def test_sums_per_image():
    sums = image_sums([5, 2, 5, 9], [1, 2, 3, 4], [10, 20, 30, 40])
    assert sums.images.tolist() == [2, 5, 9]
    assert sums.numerators.tolist() == [2, 4, 4]
    assert sums.denominators.tolist() == [20, 40, 40]
    assert sums.n_expressions == 4
    assert sums.percent == 10.0


def test_each_resample_draws_as_many_images_as_there_are():
    weights = resample_weights(37, 200, 1)
    assert weights.shape == (200, 37)
    assert set(weights.sum(axis=1)) == {37.0}
    assert weights.mean() == pytest.approx(1.0)
    # Poisson-like: an image is left out of a resample with probability (1 - 1/n)^n
    assert (weights == 0).mean() == pytest.approx((1 - 1 / 37) ** 37, abs=0.02)


def test_interval_agrees_with_scipys_percentile_bootstrap():
    sums = image_sums(*draw(np.random.default_rng(0)))
    ours = confidence_interval([sums], samples=8000)
    scipys = stats.bootstrap(
        (sums.numerators, sums.denominators),
        lambda i, u, axis=-1: 100 * i.sum(axis=axis) / u.sum(axis=axis),
        paired=True,
        n_resamples=8000,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert ours.low == pytest.approx(scipys.low, abs=0.15)
    assert ours.high == pytest.approx(scipys.high, abs=0.15)
    assert ours.low < ours.value < ours.high


def test_interval_covers_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(3)
    _, inter, union = draw(rng, n_images=60_000, per_image=2)
    truth = 100 * inter.sum() / union.sum()
    inter, union = inter.reshape(-1, 2), union.reshape(-1, 2)
    covered = 0
    for _ in range(200):
        chosen = rng.integers(0, len(inter), 120)
        ids = np.repeat(np.arange(120), 2)
        sums = image_sums(ids, inter[chosen].ravel(), union[chosen].ravel())
        interval = confidence_interval([sums], samples=400)
        covered += interval.low <= truth <= interval.high
    assert 176 <= covered <= 199


def test_resampling_images_is_wider_than_resampling_expressions():
    """Expressions of an image agree with each other: the interval must know it."""
    rng = np.random.default_rng(4)
    quality = rng.beta(2, 2, 100)
    images = np.repeat(np.arange(100), 10)
    union = np.full(1000, 100)
    inter = np.floor(100 * quality[images])
    by_image = confidence_interval([image_sums(images, inter, union)])
    by_expression = confidence_interval([image_sums(np.arange(1000), inter, union)])
    assert by_image.high - by_image.low > 2 * (by_expression.high - by_expression.low)


def test_several_seeds_are_averaged():
    rng = np.random.default_rng(5)
    runs = [image_sums(*draw(rng, quality=q)) for q in (0.5, 0.6, 0.7)]
    interval = confidence_interval(runs)
    assert interval.value == pytest.approx(np.mean([r.percent for r in runs]))
    assert interval.low < interval.value < interval.high


def test_a_method_does_not_differ_from_itself():
    sums = image_sums(*draw(np.random.default_rng(6)))
    difference = paired_difference([sums], [sums])
    assert (difference.value, difference.low, difference.high) == (0.0, 0.0, 0.0)


def test_pairing_narrows_the_interval_and_is_antisymmetric():
    rng = np.random.default_rng(7)
    images, inter, union = draw(rng)
    better = image_sums(images, np.minimum(inter + 8, union), union)
    worse = image_sums(images, inter, union)
    difference = paired_difference([better], [worse])
    alone = confidence_interval([worse])
    assert 0 < difference.low < difference.value < difference.high
    assert difference.high - difference.low < 0.5 * (alone.high - alone.low)
    back = paired_difference([worse], [better])
    assert back.value == pytest.approx(-difference.value)
    assert back.low == pytest.approx(-difference.high)


def trained(rng, n_seeds, n_images=80, method=0.0, image=0.0, seed=0.0, both=0.0):
    """Runs of two methods by seed: percent points of deviation by image, by seed and by both."""
    ids, union = np.arange(n_images), np.full(n_images, 1000.0)
    level = 500 + 100 * rng.normal(size=n_images)  # difficulty of the images: common to both
    gain = 10 * (method + image * rng.normal(size=n_images))
    worse, better = [], []
    for _ in range(n_seeds):
        noise = 10 * (seed * rng.normal() + both * rng.normal(size=n_images))
        worse.append(image_sums(ids, level, union))
        better.append(image_sums(ids, level + gain + noise, union))
    return better, worse


@pytest.mark.parametrize(
    "source",
    [{"image": 5}, {"seed": 1}, {"both": 5}, {"image": 5, "seed": 0.5, "both": 3}],
    ids=["images", "seeds", "interaction", "all"],
)
@pytest.mark.parametrize("n_seeds", [3, 5])
def test_paired_interval_covers_the_truth_at_least_95_times_in_100(source, n_seeds):
    """Whatever the methods' difference varies with. 600 studies: +- 2.6 is three deviations."""
    rng = np.random.default_rng(11)
    covered = 0
    for _ in range(600):
        interval = paired_difference(*trained(rng, n_seeds, method=1.5, **source), samples=300)
        covered += interval.low <= 1.5 <= interval.high
    assert covered / 600 >= 0.95 - 0.026


def test_images_alone_do_not_cover_what_seeds_vary():
    """What the bootstrap over seeds is for: without it, the interval is far too narrow."""
    rng = np.random.default_rng(12)
    covered = 0
    for _ in range(200):
        better, worse = trained(rng, 3, method=1.5, image=1, seed=1)
        drawn = resampled(better, better[0].images, 300) - resampled(worse, worse[0].images, 300)
        low, high = np.quantile(drawn.mean(axis=1), [0.025, 0.975])
        covered += low <= 1.5 <= high
    assert covered / 200 < 0.5


def test_with_equal_seeds_or_one_seed_the_interval_is_that_of_images():
    better, worse = trained(np.random.default_rng(13), 1, image=5)
    one = paired_difference(better, worse)
    three = paired_difference(better * 3, worse * 3)
    assert (three.low, three.high) == (pytest.approx(one.low), pytest.approx(one.high))
    drawn = resampled(better, better[0].images, 1000) - resampled(worse, worse[0].images, 1000)
    assert [one.low, one.high] == pytest.approx(np.quantile(drawn[:, 0], [0.025, 0.975]))


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=6), st.floats(-3, 3))
def test_deviations_of_seeds_move_with_no_shift_and_grow_with_their_spread(values, shift):
    values = np.array(values)
    drawn = seed_deviations(values, 200)
    np.testing.assert_allclose(seed_deviations(values + shift, 200), drawn, atol=1e-9)
    np.testing.assert_allclose(seed_deviations(-2 * values, 200), -2 * drawn, atol=1e-9)
    assert np.all(np.abs(drawn) <= 13 * np.ptp(values) + 1e-9)
    assert not seed_deviations(values[:1], 200).any()


@pytest.mark.parametrize("n_seeds", [3, 5, 10])
def test_deviations_of_seeds_are_as_wide_as_students_interval(n_seeds):
    rng = np.random.default_rng(14)
    ratios = []
    for _ in range(100):
        values = rng.normal(size=n_seeds)
        low, high = np.quantile(seed_deviations(values, 1000), [0.025, 0.975])
        half = stats.t.ppf(0.975, n_seeds - 1) * values.std(ddof=1) / np.sqrt(n_seeds)
        ratios.append((high - low) / (2 * half))
    assert np.mean(ratios) == pytest.approx(1, abs=0.06)


def test_seeds_that_cannot_be_paired_are_refused():
    better, worse = trained(np.random.default_rng(15), 2)
    with pytest.raises(ValueError, match="2 and 1 seeds"):
        paired_difference(better, worse[:1])


def test_runs_on_other_expressions_are_not_compared():
    sums = image_sums([1, 2, 3], [1, 1, 1], [2, 2, 2])
    fewer = image_sums([1, 2], [1, 1], [2, 2])
    twice = image_sums([1, 2, 3, 3], [1, 1, 1, 1], [2, 2, 2, 2])
    for other in (fewer, twice):
        with pytest.raises(ValueError, match="different expressions"):
            paired_difference([sums], [other])


@given(st.integers(0, 2**31), st.integers(1, 30))
def test_interval_is_ordered_bounded_and_repeatable(seed, n_images):
    sums = image_sums(*draw(np.random.default_rng(seed), n_images=n_images))
    first = confidence_interval([sums], samples=50)
    assert 0 <= first.low <= first.high <= 100
    assert confidence_interval([sums], samples=50) == first


def test_nothing_to_resample_is_refused():
    with pytest.raises(ValueError, match="no run"):
        confidence_interval([])
    with pytest.raises(ValueError, match="no expression"):
        confidence_interval([image_sums([], [], [])])
