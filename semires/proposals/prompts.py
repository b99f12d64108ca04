"""Prompts for SAM, drawn from a pseudo-label: points inside it, and its box.

Input: a label, bool (H,W), and the teacher's foreground probability, float (H,W). Coordinates are
pixels as x, y; x to the right, y down. The rules draw nothing at random. They follow the idea of
S4M and SAMRefiner, which prompt SAM with a label instead of matching the label with all masks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from semires.config.sources import SamPromptsSource
from semires.refine.strategies import rounded

Bools = NDArray[np.bool_]
Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Prompt:
    """Foreground points int64 (K,2) as x, y; ``box`` int64 (4,) as left, top, right, bottom."""

    points: NDArray[np.int64]
    box: NDArray[np.int64] | None


def inner_points(label: Bools, probability: Floats, count: int) -> NDArray[np.int64]:
    """Up to ``count`` points of a label (H,W), far from its border and from each other.

    A point is the pixel with the largest product of the probability and the distance to the nearest
    pixel that is outside the label or an earlier point, the first in row-major order of equals.
    Outside the image is outside the label.

    Returns:
        int64 (K,2) as x, y, the first one deepest in the label. K is less than ``count`` if the
        label has fewer pixels, and 0 for an empty label.
    """
    free = np.pad(label, 1)
    weight = np.pad(rounded(np.asarray(probability, np.float32)).astype(np.float64), 1)
    points: list[tuple[int, int]] = []
    for _ in range(min(count, int(label.sum()))):
        # The smallest step keeps a pixel of zero probability above the pixels outside the label.
        score = distance_transform_edt(free) * (weight + 1e-9)
        y, x = np.unravel_index(int(score.argmax()), score.shape)
        free[y, x] = False
        points.append((int(x) - 1, int(y) - 1))
    return np.array(points, dtype=np.int64).reshape(-1, 2)


def label_box(label: Bools, margin: float) -> NDArray[np.int64]:
    """The box of a label (H,W) that is not empty, with each side moved outwards.

    Args:
        label: bool (H,W).
        margin: share of the box's width and height by which its sides move, at least 0.

    Returns:
        int64 (4,): left, top, right, bottom, inside the image; the last two are pixels of the box.
    """
    found = []
    for axis in (0, 1):  # columns give x, rows give y
        inside = np.flatnonzero(label.any(axis))
        first, last = int(inside[0]), int(inside[-1])
        reach = round(margin * (last - first + 1))
        found.append((max(first - reach, 0), min(last + reach, label.shape[1 - axis] - 1)))
    (left, right), (top, bottom) = found
    return np.array([left, top, right, bottom], dtype=np.int64)


def draw_prompt(label: Bools, probability: Floats, settings: SamPromptsSource) -> Prompt | None:
    """The prompt for a label (H,W) with the teacher's probability (H,W); None if it is empty."""
    if not label.any():
        return None
    box = label_box(label, settings.box_margin) if settings.box else None
    return Prompt(inner_points(label, probability, settings.points), box)
