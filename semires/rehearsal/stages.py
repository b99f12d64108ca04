"""What a rehearsal calls, stage by stage: the stages' own functions, and the clocks around them.

Each function runs in a process of its own in a temporary project, see :mod:`.measure`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.optim.optimizer import register_optimizer_step_post_hook

from semires import files
from semires.config.resolve import resolve
from semires.config.schema import Params
from semires.data.splits import make_split
from semires.models.weights import load_weights
from semires.proposals import base
from semires.proposals.prompted import PromptedImage
from semires.proposals.propose import propose
from semires.rehearsal.projects import link_report, size_gib
from semires.runs import layout
from semires.runs.key import RunKey
from semires.training.burn_in import SECTIONS
from semires.training.context import RunContext
from semires.tuning import counts, labels


def split_all(params: Params, dataset: str, fractions: list[float]) -> None:
    """The stage `split` for every fraction."""
    for fraction in fractions:
        make_split(params, dataset, fraction)


def _timed(work: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    """The function; it also notes the seconds of each call."""

    def call(*arguments: Any) -> Any:
        started = time.perf_counter()
        found = work(*arguments)
        seconds.append(time.perf_counter() - started)
        return found

    return call


def propose_some(params: Params, dataset: str, source: str) -> dict[str, Any]:
    """The stage `propose` for the images of the current project, in this process.

    Returns:
        ``seconds`` of each image, or of each label of val that a source is prompted with, without
        the first one; ``gib`` of disk per image.
    """
    seconds: list[float] = []
    kind = params.proposals.sources[source].kind
    if kind == "sam_prompts":
        prompt = _timed(PromptedImage.prompt, seconds)
        PromptedImage.prompt = prompt  # type: ignore[method-assign]
    else:
        build = base.build_source

        def build_timed(settings: Any) -> base.ProposalSource:
            made: Any = build(settings)
            made.propose = _timed(made.propose, seconds)
            return made  # type: ignore[no-any-return]

        base.build_source = build_timed
    propose(params, dataset, source)
    folder = layout.proposals(dataset, source)
    manifest = files.read_json(folder / "manifest.json")
    some = seconds[1:] if kind == "sam_prompts" else seconds  # the first prompt loads SAM
    return {"seconds": some, "gib": size_gib(folder) / manifest["n_images"]}


def _fill_empty_labels() -> None:
    """Prompt SAM also for empty labels, which a burn-in of few steps gives, with a square."""
    prompt = PromptedImage.prompt

    def always(image: PromptedImage, label: NDArray[np.bool_], probability: Any) -> Any:
        if not label.any():
            label = label.copy()
            label[tuple(slice(side // 4, 3 * side // 4) for side in label.shape)] = True
        return prompt(image, label, probability)

    PromptedImage.prompt = always  # type: ignore[assignment,method-assign]


def train_some(params: Params, key: RunKey, stage: Callable[[Params, RunKey], Any]) -> list[float]:
    """The stage `burn-in` or `mutual`; the seconds of each step after the first, the warm-up."""
    ends: list[float] = []

    def note(*_: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        ends.append(time.perf_counter())

    _fill_empty_labels()
    register_optimizer_step_post_hook(note)
    stage(params, key)
    return [float(s) for s in np.diff(ends)]


def evaluate_some(params: Params, key: RunKey) -> list[float]:
    """Evaluate val of the current project three times; seconds of an expression, without the first.

    The samples are loaded in this process: starting workers would take longer than a few samples.
    """
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


def label_some(params: Params, key: RunKey) -> list[float]:
    """The stage `labels`, and its work on val two more times; the seconds of a reference there."""
    _fill_empty_labels()
    labels.write_labels(params, key, params.evaluation.correction_refs)
    partitions = RunContext(params, key, ("data", "model")).partitions
    seconds = []
    for _ in range(2):
        pseudo_labels = counts.labels_of(params, key)
        started = time.perf_counter()
        counted = counts.count(pseudo_labels, partitions)
        for _row in labels.measure(counted, labels.groups(counted, {})):
            pass
        seconds.append((time.perf_counter() - started) / len(counted))
    return seconds


def report_some(params: Params, workspace: Path) -> None:
    """The stage `report` on the runs of the current project."""
    from semires.reporting.report import report

    link_report(workspace)
    report(params, layout.REPORTS)
