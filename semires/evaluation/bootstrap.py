"""Confidence intervals by bootstrap over images and seeds, and paired differences of methods.

The expressions of an image share its pixels, so images are resampled, not expressions. Every
metric is a ratio of two sums over images (overall IoU: intersections over unions; mean IoU: IoUs
over expressions), so each resample is a weighted sum: one matrix product for all resamples. Every
call with the same number of images and resamples uses the same resamples, which makes differences
paired. The value of several seeds is their mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from collections.abc import Sequence

Floats = NDArray[np.float64]
LEVEL = 0.95  # of all intervals
SEED = 0  # of all resamples


@dataclass(frozen=True)
class ImageSums:
    """Numerators and denominators of a metric, summed per image.

    Args:
        images: (I,) image ids, sorted and unique.
        numerators: (I,) intersections in pixels for overall IoU.
        denominators: (I,) unions in pixels for overall IoU.
        n_expressions: how many expressions were summed.
    """

    images: NDArray[np.int64]
    numerators: Floats
    denominators: Floats
    n_expressions: int

    @property
    def percent(self) -> float:
        """The metric on all images, in percent; 0 if the denominators are 0."""
        total = float(self.denominators.sum())
        return 100.0 * float(self.numerators.sum()) / total if total else 0.0

    def on(self, images: NDArray[np.int64]) -> tuple[Floats, Floats]:
        """Both sums for ``images`` (sorted, a superset); 0 for images that are absent here."""
        position = np.searchsorted(images, self.images)
        over, under = np.zeros(len(images)), np.zeros(len(images))
        over[position], under[position] = self.numerators, self.denominators
        return over, under


@dataclass(frozen=True)
class Interval:
    """A value with its confidence interval, percent or percentage points."""

    value: float
    low: float
    high: float


def image_sums(image_ids: ArrayLike, numerators: ArrayLike, denominators: ArrayLike) -> ImageSums:
    """Sum per image; the three arrays are (E,), one entry per expression."""
    images, index = np.unique(np.asarray(image_ids, dtype=np.int64), return_inverse=True)
    over, under = (
        np.bincount(index, np.asarray(values, np.float64), len(images)).astype(np.float64)
        for values in (numerators, denominators)
    )
    return ImageSums(images, over, under, int(index.size))


@lru_cache(maxsize=32)
def resample_weights(n_images: int, samples: int, seed: int) -> Floats:
    """(samples, n_images): how often each image was drawn, with replacement, in each resample."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, n_images, size=(samples, n_images))
    flat = (drawn + np.arange(samples)[:, None] * n_images).ravel()
    counts = np.bincount(flat, minlength=samples * n_images)
    weights: Floats = counts.reshape(samples, n_images).astype(np.float64)
    weights.setflags(write=False)  # shared by all callers through the cache
    return weights


def resampled(runs: Sequence[ImageSums], images: NDArray[np.int64], samples: int) -> Floats:
    """(samples, runs): the metric (percent) of every run on every resample of the images."""
    weights = resample_weights(len(images), samples, SEED)
    laid_out = [run.on(images) for run in runs]
    over = weights @ np.stack([o for o, _ in laid_out], axis=1)
    under = weights @ np.stack([u for _, u in laid_out], axis=1)
    return 100.0 * np.divide(over, under, out=np.zeros_like(over), where=under > 0)


def confidence_interval(runs: Sequence[ImageSums], samples: int = 1000) -> Interval:
    """Mean metric of ``runs`` (seeds of one method), percentile interval over images only.

    Raises:
        ValueError: no run, or runs without an expression.
    """
    images = _all_images(runs)
    value = float(np.mean([run.percent for run in runs]))
    return percentiles(value, resampled(runs, images, samples).mean(axis=1))


def paired_difference(
    first: Sequence[ImageSums], second: Sequence[ImageSums], samples: int = 1000
) -> Interval:
    """Metric of ``first`` minus ``second`` (percentage points), interval over images and seeds.

    Entry i of both is one seed. Each resample draws images with replacement, the same ones for
    both methods, and seeds with replacement (:func:`seed_deviations`). With one seed, the interval
    covers images only.

    Raises:
        ValueError: the numbers of seeds, the images or the expressions differ.
    """
    images = _all_images([*first, *second])
    counts = {(len(run.images), run.n_expressions) for run in (*first, *second)}
    if len(counts) > 1 or len(images) != next(iter(counts))[0]:
        raise ValueError("the runs were evaluated on different expressions")
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} seeds cannot be paired")
    by_seed = np.array([a.percent - b.percent for a, b in zip(first, second, strict=True)])
    drawn = resampled(first, images, samples) - resampled(second, images, samples)
    shifted = drawn.mean(axis=1) + seed_deviations(by_seed, samples)
    return percentiles(float(by_seed.mean()), shifted)


def seed_mean(runs: Sequence[ImageSums], samples: int = 1000) -> Interval:
    """Mean metric of ``runs`` (seeds), interval over images and seeds.

    Like :func:`paired_difference`, for a metric that is a difference itself. The runs may have
    been evaluated on different images.

    Raises:
        ValueError: no run, or runs without an expression.
    """
    by_seed = np.array([run.percent for run in runs])
    drawn = resampled(runs, _all_images(runs), samples).mean(axis=1)
    shifted = drawn + seed_deviations(by_seed, samples)
    return percentiles(float(by_seed.mean()), shifted)


def seed_deviations(by_seed: Floats, samples: int = 1000) -> Floats:
    """How far the mean over resampled seeds is from the mean over all seeds, per resample.

    A bootstrap over few values gives too narrow intervals. For n values its variance is (n - 1) / n
    times that of their mean, and its tails are normal. One factor corrects both,
    sqrt(n / (n - 1)) t / z, with Student's t of n - 1 degrees of freedom. For three seeds it is
    2.7; without it, a 95 % interval covers the truth in about 74 % of all cases.

    Args:
        by_seed: (S,) one value per seed, or (S, K) several.
        samples: number of resamples; their random numbers are independent of those of the images.

    Returns:
        (samples,) or (samples, K); zeros for a single seed.
    """
    count = len(by_seed)
    if count < 2:
        return np.zeros((samples, *by_seed.shape[1:]))
    from scipy.special import ndtri, stdtrit  # here: a slow import

    tail = (1.0 + LEVEL) / 2.0
    factor = np.sqrt(count / (count - 1)) * stdtrit(count - 1, tail) / ndtri(tail)
    drawn = np.random.default_rng([SEED, count]).integers(0, count, size=(samples, count))
    deviations: Floats = factor * (by_seed[drawn].mean(axis=1) - by_seed.mean(axis=0))
    return deviations


def percentiles(value: float, drawn: Floats) -> Interval:
    """The interval between the percentiles of a value's resamples (samples,)."""
    tail = (1.0 - LEVEL) / 2.0
    low, high = np.quantile(drawn, [tail, 1.0 - tail])
    return Interval(value, float(low), float(high))


def _all_images(runs: Sequence[ImageSums]) -> NDArray[np.int64]:
    if not runs:
        raise ValueError("no run to resample")
    images = np.unique(np.concatenate([run.images for run in runs]))
    if not len(images):
        raise ValueError("no expression to resample")
    return images
