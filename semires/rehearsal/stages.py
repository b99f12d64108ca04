"""What a rehearsal calls, stage by stage: the stages' own functions, and the clocks around them.

Each function runs in a process of its own in a temporary project, see :mod:`.measure`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from semires.config.resolve import resolve
from semires.config.schema import Params
from semires.rehearsal.projects import link_report, size_gib
from semires.runs import layout
from semires.runs.key import RunKey

if TYPE_CHECKING:
    from semires.proposals.base import Proposals, ProposalSource


def split_all(params: Params, dataset: str, fractions: list[float]) -> None:
    """The stage `split` for every fraction."""
    from semires.data.splits import make_split

    for fraction in fractions:
        make_split(params, dataset, fraction)


class _TimedSource:
    """A proposal source that notes the seconds of each image."""

    def __init__(self, source: ProposalSource, seconds: list[float]) -> None:
        self.source, self.seconds = source, seconds

    def propose(self, image: NDArray[np.uint8]) -> Proposals:
        """The masks of the source."""
        started = time.perf_counter()
        found = self.source.propose(image)
        self.seconds.append(time.perf_counter() - started)
        return found


def propose_some(params: Params, dataset: str, source: str) -> dict[str, Any]:
    """The stage `propose` for the images of the current project, in this process.

    Returns:
        ``seconds`` of each image, ``gib`` of disk per image.
    """
    from semires import files
    from semires.proposals.propose import propose
    from semires.proposals.registry import SOURCES

    seconds: list[float] = []
    kind = params.proposals.sources[source].kind
    build = SOURCES[kind]
    SOURCES[kind] = lambda settings, folder: _TimedSource(build(settings, folder), seconds)
    propose(params, dataset, source)
    folder = layout.proposals(dataset, source)
    manifest = files.read_json(folder / "manifest.json")
    return {"seconds": seconds, "gib": size_gib(folder) / manifest["n_images"]}


@contextlib.contextmanager
def _step_ends() -> Iterator[list[float]]:
    """The times at which optimizer steps of this process end, in seconds."""
    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook

    ends: list[float] = []

    def note(*_: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        ends.append(time.perf_counter())

    handle = register_optimizer_step_post_hook(note)
    try:
        yield ends
    finally:
        handle.remove()


def train_some(params: Params, key: RunKey, stage: Callable[[Params, RunKey], Any]) -> list[float]:
    """The stage `burn-in` or `mutual`; the seconds of each step after the first, the warm-up."""
    with _step_ends() as ends:
        stage(params, key)
    return [float(s) for s in np.diff(ends)]


def evaluate_some(params: Params, key: RunKey) -> list[float]:
    """Evaluate val of the current project three times; seconds of an expression, without the first.

    The samples are loaded in this process: starting workers would take longer than a few samples.
    """
    from semires.models.weights import load_weights
    from semires.training.burn_in import SECTIONS
    from semires.training.context import RunContext

    params = resolve(params, key, tuned=False)
    own = params.runtime.model_copy(update={"workers": 0})
    context = RunContext(params.model_copy(update={"runtime": own}), key, SECTIONS)
    model = context.build_model(pretrained=False)
    load_weights(model, key.folder / "model.safetensors")
    samples = context.evaluation_sets(["val"])["val"]
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        table = context.evaluate(model, samples)
        seconds.append((time.perf_counter() - started) / len(table))
    return seconds[1:]


def report_some(params: Params, workspace: Path) -> None:
    """The stage `report` on the runs of the current project."""
    from semires.reporting.report import report

    link_report(workspace)
    report(params, layout.REPORTS)
