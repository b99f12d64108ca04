"""What the benchmarks share: proposals of the paper's size, the published way of keeping them,
two ways timed in turn, and one line of result."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Masks = NDArray[np.bool_]


def options(claim: str | None) -> argparse.Namespace:
    """``--quick``: fewer repeats, for a look rather than a figure to report."""
    parser = argparse.ArgumentParser(description=(claim or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="5 repeats instead of 15")
    found = parser.parse_args()
    found.repeats = 5 if found.quick else 15
    return found


def blobs(height: int, width: int, number: int, seed: int) -> Masks:
    """Overlapping wavy blobs (N,H,W), from small to a third of the image, as SAM's masks lie."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    masks = np.empty((number, height, width), dtype=bool)
    for mask in masks:
        dy, dx = y - rng.uniform(0, height), x - rng.uniform(0, width)
        angle, size = np.arctan2(dy, dx), np.exp(rng.uniform(np.log(12), np.log(height / 3)))
        radius = size * rng.uniform(0.7, 1.4)
        for wave in range(2, 9):
            swing = rng.uniform(0, 0.5 / wave)
            radius = radius + size * swing * np.cos(wave * angle + rng.uniform(0, 6.3))
        mask[...] = (dx**2 * rng.uniform(0.5, 2) + dy**2) < np.maximum(radius, 3) ** 2
    return masks


def to_json(masks: Masks) -> str:
    """Start/length run-lengths down the columns, counted from 1: the published way of keeping."""
    rows = []
    for mask in masks:
        edges = np.flatnonzero(np.diff(mask.T.ravel().astype(np.int8), prepend=0, append=0)) + 1
        edges[1::2] -= edges[::2]
        rows.append({"counts": edges.tolist(), "size": list(mask.shape)})
    return json.dumps(rows)


def from_json(text: str) -> NDArray[np.uint8]:
    """Masks (N,H,W), decoded run by run."""
    rows = json.loads(text)
    masks = np.zeros((len(rows), *rows[0]["size"]), dtype=np.uint8)
    for row, mask in zip(rows, masks, strict=True):
        runs, flat = np.array(row["counts"]), np.zeros(mask.size, dtype=np.uint8)
        for start, length in zip(runs[::2], runs[1::2], strict=True):
            flat[start - 1 : start - 1 + length] = 1
        mask[...] = flat.reshape(mask.shape, order="F")
    return masks


def in_turn(ways: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each way; they take turns, so that a busy machine slows all alike."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():  # caches warm, libraries loaded
        way()
    for _ in range(repeats):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def verdict(what: str, ratio: float, target: float, detail: str) -> None:
    """One line: what, the ratio, its target, and the figures behind it."""
    reached = "reached" if ratio >= target else "MISSED"
    print(f"{what}: {ratio:.1f}x (target {target:g}x, {reached}); {detail}")
