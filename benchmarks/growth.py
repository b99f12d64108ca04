"""Claim: CPU time and memory of the stages and of one training epoch grow at most as data^1.1.

    python benchmarks/growth.py [--train 40] [--val 20] [--trials 40] [--factors 1,2,4,8]

Each stage of demo.yaml runs on RefScenes with 1, 2, 4 and 8 times the images. Each stage has a new
process that is forked after all imports, so the imports and the memory of other stages are not
measured. The exponent is fitted over all sizes. The exponent of the last doubling is also reported,
because fixed costs lower the fitted exponent. The figure is written to reports/growth.svg.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import multiprocessing
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import numpy as np

from semires.config.schema import Params
from semires.data.prepare import prepare
from semires.data.refscenes import generate
from semires.data.splits import make_split
from semires.files import atomic_path
from semires.proposals.checkpoint import prepare_checkpoint
from semires.proposals.propose import propose
from semires.runs.key import RunKey
from semires.training.burn_in import burn_in
from semires.training.mutual import mutual
from semires.tuning.study import tune

BOUND = 1.1
DATASET, FRACTION = "refscenes", 10.0
CELL = RunKey(DATASET, FRACTION, "cpi-u", 0)
Stages = dict[str, Callable[[Params], Any]]

# Stages with a dash prepare the input of later stages and are not measured.
STAGES: Stages = {
    "- generate": lambda params: generate(params, DATASET),
    "prepare": lambda params: prepare(params, DATASET),
    "- split": lambda params: make_split(params, DATASET, FRACTION),
    "- sam": prepare_checkpoint,
    "propose": lambda params: propose(params, DATASET, params.proposals.source),
    "- burn-in": lambda params: burn_in(params, RunKey(DATASET, FRACTION, "supervised", 0)),
    "tune": lambda params: tune(params, CELL),
    "training epoch": lambda params: mutual(params, CELL),
}


def measure(stage: Callable[[Params], Any], params: Params) -> tuple[float, float]:
    """Run a stage in a forked process; return its CPU seconds and peak memory in MiB.

    CPU seconds include those of its workers. Other programs change them little. The peak is the
    larger of that of the process and that of its largest worker.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def child() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            stage(params)
        used = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        seconds = sum(u.ru_utime + u.ru_stime for u in used)
        sender.send((seconds, max(u.ru_maxrss for u in used) / 2**10))

    process = context.Process(target=child)
    process.start()
    sender.close()
    try:
        found: tuple[float, float] = receiver.recv()
    except EOFError:
        raise SystemExit("a stage failed; see its message above") from None
    finally:
        process.join()
    return found


def grow(options: argparse.Namespace, factors: list[int]) -> dict[str, list[tuple[float, float]]]:
    """Return seconds and MiB of every measured stage at every size."""
    found: dict[str, list[tuple[float, float]]] = {
        name: [] for name in STAGES if not name.startswith("-")
    }
    for factor in factors:
        with common.workspace(
            scenes={
                "train": options.train * factor, "val": options.val * factor,
                "testA": 2, "testB": 2,
            },
            burn_in={"steps": 2, "evaluations": 1},
            mutual={"steps": None, "epochs": 1, "evaluations": 1},
            evaluation={"correction_refs": None},
            tune={"trials": options.trials},
        ) as params:  # fmt: skip
            for name, stage in STAGES.items():
                numbers = measure(stage, params)
                if name in found:
                    found[name].append(numbers)
    return found


def exponent(factors: list[int], values: list[float]) -> float:
    """Return the slope of a line fitted to the logarithms."""
    return float(np.polyfit(np.log(factors), np.log(values), 1)[0])


def draw(factors: list[int], found: dict[str, list[tuple[float, float]]], path: Path) -> None:
    """Plot CPU time and memory against data size on logarithmic axes, with a line of slope 1."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    for axis, column, label in zip(axes, (0, 1), ("CPU time, s", "peak memory, MiB"), strict=True):
        for name, numbers in found.items():
            values = [n[column] for n in numbers]
            axis.loglog(factors, values, marker="o", label=name)
        first = min(numbers[0][column] for numbers in found.values())
        axis.loglog(factors, [first * f for f in factors], "k:", label="as the data")
        axis.set(xlabel="data, x", ylabel=label, xticks=factors, xticklabels=map(str, factors))
        axis.minorticks_off()
    axes[0].legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", type=int, default=40, help="images at 1x")
    parser.add_argument("--val", type=int, default=20, help="images at 1x; tune reads them")
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--factors", default="1,2,4,8")
    parser.add_argument("--figure", type=Path, default=common.ROOT / "reports/growth.svg")
    options = parser.parse_args()
    factors = [int(f) for f in options.factors.split(",")]
    found = grow(options, factors)
    for name, numbers in found.items():
        for what, column, unit in (("CPU time", 0, "s"), ("memory", 1, "MiB")):
            values = [n[column] for n in numbers]
            last = np.log(values[-1] / values[-2]) / np.log(factors[-1] / factors[-2])
            common.within(
                f"{name}: {what} ~ data^", exponent(factors, values), BOUND, "",
                f"; last doubling {last:.2f}; {', '.join(f'{v:.1f}' for v in values)} {unit}",
            )  # fmt: skip
    draw(factors, found, options.figure.absolute())


if __name__ == "__main__":
    main()
