"""Confidence intervals by bootstrap over images, and paired differences of methods.

The expressions of an image share its pixels, so images are resampled, not expressions: per image
the intersections and unions are summed once, and each resample is a weighted sum (one matrix
product for all resamples). Every call with the same number of images, resamples and seed uses
the same resamples, which makes differences paired. Several seeds of a method: their mean.
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


@dataclass(frozen=True)
class ImageSums:
    """Intersections and unions (pixels) summed per image; ``images`` is sorted and unique."""

    images: NDArray[np.int64]
    intersections: Floats
    unions: Floats
    n_expressions: int

    @property
    def oiou(self) -> float:
        """Overall IoU in percent; 0 if all unions are 0."""
        union = float(self.unions.sum())
        return 100.0 * float(self.intersections.sum()) / union if union else 0.0

    def on(self, images: NDArray[np.int64]) -> tuple[Floats, Floats]:
        """Both sums laid out over ``images`` (sorted, a superset); 0 where an image is absent."""
        position = np.searchsorted(images, self.images)
        inter, union = np.zeros(len(images)), np.zeros(len(images))
        inter[position], union[position] = self.intersections, self.unions
        return inter, union


@dataclass(frozen=True)
class Interval:
    """A value with its confidence interval, percent or percentage points."""

    value: float
    low: float
    high: float


def image_sums(image_ids: ArrayLike, intersections: ArrayLike, unions: ArrayLike) -> ImageSums:
    """Sum per image; the three arrays are (E,), one entry per expression."""
    images, index = np.unique(np.asarray(image_ids, dtype=np.int64), return_inverse=True)
    inter, union = (
        np.bincount(index, np.asarray(pixels, np.float64), len(images)).astype(np.float64)
        for pixels in (intersections, unions)
    )
    return ImageSums(images, inter, union, int(index.size))


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


def resampled_oiou(
    runs: Sequence[ImageSums], images: NDArray[np.int64], samples: int, seed: int = 0
) -> Floats:
    """(samples,): overall IoU (percent) of every resample, averaged over ``runs`` (seeds)."""
    weights = resample_weights(len(images), samples, seed)
    laid_out = [run.on(images) for run in runs]
    inter = weights @ np.stack([i for i, _ in laid_out], axis=1)
    union = weights @ np.stack([u for _, u in laid_out], axis=1)
    ratio = np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)
    return 100.0 * np.asarray(ratio.mean(axis=1), dtype=np.float64)


def confidence_interval(
    runs: Sequence[ImageSums], samples: int = 1000, seed: int = 0, level: float = 0.95
) -> Interval:
    """Mean overall IoU of ``runs`` (seeds of one method) with its percentile interval.

    Raises:
        ValueError: no run, or runs without an expression.
    """
    images = _all_images(runs)
    value = float(np.mean([run.oiou for run in runs]))
    return _percentiles(value, resampled_oiou(runs, images, samples, seed), level)


def paired_difference(
    first: Sequence[ImageSums],
    second: Sequence[ImageSums],
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Overall IoU of ``first`` minus ``second`` (percentage points), on the same resamples.

    Raises:
        ValueError: the two were evaluated on different images or numbers of expressions.
    """
    images = _all_images([*first, *second])
    counts = {(len(run.images), run.n_expressions) for run in (*first, *second)}
    if len(counts) > 1 or len(images) != next(iter(counts))[0]:
        raise ValueError("the runs were evaluated on different expressions")
    value = float(np.mean([r.oiou for r in first]) - np.mean([r.oiou for r in second]))
    drawn = resampled_oiou(first, images, samples, seed)
    drawn = drawn - resampled_oiou(second, images, samples, seed)
    return _percentiles(value, drawn, level)


def _all_images(runs: Sequence[ImageSums]) -> NDArray[np.int64]:
    if not runs:
        raise ValueError("no run to resample")
    images = np.unique(np.concatenate([run.images for run in runs]))
    if not len(images):
        raise ValueError("no expression to resample")
    return images


def _percentiles(value: float, drawn: Floats, level: float) -> Interval:
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(drawn, [tail, 1.0 - tail])
    return Interval(value, float(low), float(high))
