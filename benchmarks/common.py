"""What the benchmarks share: proposals of the paper's size, the published way of keeping them,
two ways timed in turn, and one line of result."""

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


class Turns(dict[str, list[float]]):
    """Seconds of several ways that took turns, so that a busy machine slows all alike."""

    def seconds(self, way: str) -> float:
        """The median of one way."""
        return statistics.median(self[way])

    def ms(self, way: str) -> float:
        """The median of one way in milliseconds."""
        return 1e3 * self.seconds(way)

    def ratio(self, plain: str = "plain", ours: str = "ours") -> float:
        """The median of the turns' ratios."""
        return statistics.median(p / o for p, o in zip(self[plain], self[ours], strict=True))


def in_turn(ways: dict[str, Callable[[], Any]], repeats: int) -> Turns:
    """Time each way ``repeats`` times, in turn, after one turn to warm up."""
    times = Turns({name: [] for name in ways})
    for way in ways.values():  # caches warm, libraries loaded
        way()
    for _ in range(repeats):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - started)
    return times


def verdict(what: str, ratio: float, target: float, detail: str) -> None:
    """One line: what, the ratio, its target, and the figures behind it."""
    reached = "reached" if ratio >= target else "MISSED"
    print(f"{what}: {ratio:.2f}x (target {target:g}x, {reached}); {detail}", flush=True)


def within(what: str, value: float, bound: float, unit: str, detail: str = "") -> None:
    """One line for a figure that must stay below a bound."""
    reached = "reached" if value <= bound else "MISSED"
    print(f"{what}: {value:.2f} {unit} (bound {bound:g} {unit}, {reached}){detail}", flush=True)


@contextlib.contextmanager
def workspace(**changes: dict[str, Any]) -> Iterator[Params]:
    """A temporary folder as the current one, and demo.yaml's parameters for it, changed by section.

    Nothing is tracked, and the caller's workspace is not touched.
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
    """The `model` section and the image size of ``tiny`` (demo.yaml's) or ``swin-t`` LAVT."""
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
    """Ids and attention mask (count,20) of expressions of 4 to 12 tokens."""
    lengths = torch.randint(4, 13, (count, 1), generator=generator)
    attention = (torch.arange(20) < lengths).long()
    return torch.randint(5, 100, (count, 20), generator=generator) * attention, attention


def network_limit(step: Callable[[], Any], repeats: int) -> tuple[float, float, float]:
    """What arithmetic allows: a step's operations, its seconds, and the machine's rate.

    Returns:
        GFLOP of all products and convolutions, seconds, and the GFLOP/s that a product of two
        2048 x 2048 matrices reaches in the same run.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        step()
    a, b = torch.randn(2, 2048, 2048)
    times = in_turn({"step": step, "product": lambda: a @ b}, repeats)
    rate = 2 * 2048**3 / times.seconds("product") / 1e9
    return counter.get_total_flops() / 1e9, times.seconds("step"), rate
