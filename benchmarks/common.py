"""Helpers of the benchmarks: test masks, the published mask format, timing and result lines."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from semires.config.load import load_params
from semires.config.model import Lavt
from semires.config.schema import Params
from semires.config.validate import validate

ROOT = Path(__file__).parent.parent
Masks = NDArray[np.bool_]


def options(claim: str | None) -> argparse.Namespace:
    """Parse ``--quick``, which runs fewer repeats for a rough result."""
    parser = argparse.ArgumentParser(description=(claim or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="5 repeats instead of 15")
    found = parser.parse_args()
    found.repeats = 5 if found.quick else 15
    return found


def blobs(height: int, width: int, number: int, seed: int) -> Masks:
    """Make overlapping wavy blobs (N,H,W), similar to SAM's masks, up to a third of the image."""
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
    """Encode masks in the published format: start/length pairs in column order, counted from 1."""
    rows = []
    for mask in masks:
        edges = np.flatnonzero(np.diff(mask.T.ravel().astype(np.int8), prepend=0, append=0)) + 1
        edges[1::2] -= edges[::2]
        rows.append({"counts": edges.tolist(), "size": list(mask.shape)})
    return json.dumps(rows)


def from_json(text: str) -> NDArray[np.uint8]:
    """Decode the published format run by run to masks (N,H,W)."""
    rows = json.loads(text)
    masks = np.zeros((len(rows), *rows[0]["size"]), dtype=np.uint8)
    for row, mask in zip(rows, masks, strict=True):
        runs, flat = np.array(row["counts"]), np.zeros(mask.size, dtype=np.uint8)
        for start, length in zip(runs[::2], runs[1::2], strict=True):
            flat[start - 1 : start - 1 + length] = 1
        mask[...] = flat.reshape(mask.shape, order="F")
    return masks


class Turns(dict[str, list[float]]):
    """Times in seconds of several implementations, measured alternately.

    Alternation spreads the load of other processes evenly over the implementations.
    """

    def seconds(self, way: str) -> float:
        """Return the median time of one implementation in seconds."""
        return statistics.median(self[way])

    def ms(self, way: str) -> float:
        """Return the median time of one implementation in milliseconds."""
        return 1e3 * self.seconds(way)

    def ratio(self, plain: str = "plain", ours: str = "ours") -> float:
        """Return the median of the time ratios ``plain / ours``, one ratio per repeat."""
        return statistics.median(p / o for p, o in zip(self[plain], self[ours], strict=True))


def in_turn(ways: dict[str, Callable[[], Any]], repeats: int) -> Turns:
    """Time each implementation ``repeats`` times, alternately, after one warm-up call of each."""
    times = Turns({name: [] for name in ways})
    for way in ways.values():  # warm up caches and load libraries
        way()
    for _ in range(repeats):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - started)
    return times


def verdict(what: str, ratio: float, target: float, detail: str) -> None:
    """Print one line: the subject, the speed-up, its target and the measured numbers."""
    reached = "reached" if ratio >= target else "MISSED"
    print(f"{what}: {ratio:.2f}x (target {target:g}x, {reached}); {detail}", flush=True)


def within(what: str, value: float, bound: float, unit: str, detail: str = "") -> None:
    """Print one line for a number with an upper bound."""
    reached = "reached" if value <= bound else "MISSED"
    print(f"{what}: {value:.2f} {unit} (bound {bound:g} {unit}, {reached}){detail}", flush=True)


@contextlib.contextmanager
def workspace(**changes: dict[str, Any]) -> Iterator[Params]:
    """Change to a temporary folder and yield the parameters of demo.yaml, with changes by section.

    MLflow tracking is off, and the caller's workspace is not changed.
    """
    tree = load_params(ROOT / "experiments/demo.yaml").model_dump()
    tree["sam"]["checkpoint"] = str(ROOT / tree["sam"]["checkpoint"])
    for block in (*tree["study"]["runs"], *tree["study"]["tune"]):
        block.update(fractions=[10])
    for section, values in changes.items():
        tree[section].update(values)
    os.environ["SEMIRES_TRACKING"] = "off"
    os.environ.pop("DVC_ROOT", None)
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield validate(tree)
        finally:
            os.chdir(before)


def lavt(name: str) -> tuple[Lavt, int]:
    """Return the `model` section and image size (pixels) of LAVT.

    Args:
        name: ``tiny`` (the model of demo.yaml) or ``swin-t``.
    """
    params = load_params(ROOT / "experiments/demo.yaml")
    if name == "tiny":
        return params.model, params.data.image_size
    swin = {
        "patch_size": 4, "embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24],
        "window_size": 7, "absolute_embeddings": False,
    }  # fmt: skip
    bert = {"hidden_size": 256, "num_layers": 4, "intermediate_size": 1024}
    changes = {
        "swin": params.model.swin.model_copy(update=swin),
        "bert": params.model.bert.model_copy(update=bert),
        "decoder_width": None,
    }
    return params.model.model_copy(update=changes), 224


def expressions(count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Make token ids and attention masks (count,20) of expressions with 4 to 12 tokens."""
    lengths = torch.randint(4, 13, (count, 1), generator=generator)
    attention = (torch.arange(20) < lengths).long()
    return torch.randint(5, 100, (count, 20), generator=generator) * attention, attention


def network_limit(step: Callable[[], Any], repeats: int) -> tuple[float, float, float]:
    """Measure the operations and the time of a step, and the peak rate of the machine.

    Returns:
        GFLOP of all matrix products and convolutions in the step; seconds of the step; GFLOP/s of
        a product of two 2048 x 2048 matrices.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        step()
    a, b = torch.randn(2, 2048, 2048)
    times = in_turn({"step": step, "product": lambda: a @ b}, repeats)
    rate = 2 * 2048**3 / times.seconds("product") / 1e9
    return counter.get_total_flops() / 1e9, times.seconds("step"), rate
