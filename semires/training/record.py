"""The record of a finished run: one folder, written once, whole.

Everything that tables, figures and MLflow show of a run is read from here.
"""

from __future__ import annotations

import errno
import platform
import re
import shutil
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import transformers
from torch import nn

from semires.evaluation.evaluate import evaluate_shared, summarise
from semires.files import (
    atomic_folder,
    atomic_path,
    fingerprint,
    sha256_file,
    sha256_tree,
    write_json,
    write_parquet,
    write_text,
)
from semires.models import SegmentationModel
from semires.process import git_commit, peak_rss_mb
from semires.runs.record import Provenance, RunRecord
from semires.samples.dataset import ExpressionDataset
from semires.training.context import RunContext
from semires.training.loop import Loop

SHUFFLED = "_shuffled"
HISTORY_START = ["step", "train/loss", "train/lr", "val/oIoU", "val/mIoU"]


def evaluate_split(
    task: RunContext, model: SegmentationModel, dataset: ExpressionDataset
) -> pd.DataFrame:
    """Predictions over a split, shared out over the group's processes."""
    batch_size, runtime = task.params.evaluation.batch_size, task.params.runtime
    return evaluate_shared(
        task.group, model, dataset, batch_size, runtime.workers, runtime.precision
    )


def write_run(
    task: RunContext,
    loop: Loop,
    started: float,
    pseudo: dict[str, float] | None = None,
    write_more: Callable[[Path], None] | None = None,
) -> dict[str, dict[str, float]]:
    """Evaluate the loop's best weights on every split and write ``runs/D/F/M/seedS``.

    ``val_shuffled`` is val with every expression given to another reference: what a model reaches
    that does not listen.

    Returns:
        The content of ``metrics.json``: metrics by split, percent.
    """
    splits = [s for s in task.params.datasets[task.cell.dataset].splits if s != "train"]
    sets = task.evaluation_sets(splits)
    if "val" in sets and len(sets["val"].refs) > 1:
        sets[f"val{SHUFFLED}"] = sets["val"].shuffled()
    model = loop.load_best()
    known = {"val": loop.best_val}
    tables = {}
    for split, dataset in sets.items():
        table = known.get(split)
        tables[split] = evaluate_split(task, model, dataset) if table is None else table
    metrics = {split: summarise(table) for split, table in tables.items()}
    if pseudo is not None:
        metrics["pseudo"] = pseudo
    if task.group.leads:
        predictions = pd.concat([t.assign(split=s) for s, t in tables.items()], ignore_index=True)
        with atomic_folder(task.cell.folder) as folder:
            save_model(model, folder / "model.safetensors")
            write_json(folder / "metrics.json", metrics)
            write_history(loop.history, folder / "history.csv")
            write_parquet(folder / "predictions.parquet", predictions)
            if write_more is not None:
                write_more(folder)
            _record(task, loop, model, metrics, folder).write(folder)
            _provenance(started).write(folder)
        shutil.rmtree(task.work, ignore_errors=True)
    task.group.barrier()
    return metrics


def save_model(model: nn.Module, path: Path) -> None:
    """Weights as safetensors, with their SHA-256 beside them."""
    from safetensors import SafetensorError
    from safetensors.torch import save_model as save

    size = sum(v.numel() * v.element_size() for v in model.state_dict().values())
    with atomic_path(path, size) as temporary:
        try:
            save(model, str(temporary))
        except SafetensorError as error:  # it has no errno of its own
            code = re.search(r"os error (\d+)", str(error))
            raise OSError(int(code[1]) if code else errno.EIO, str(error)) from error
    write_text(path.with_name(path.name + ".sha256"), sha256_file(path) + "\n")


def write_history(history: list[dict[str, float]], path: Path) -> None:
    """One row per evaluation."""
    table = pd.DataFrame(history)
    first = [name for name in HISTORY_START if name in table]
    table[first + [name for name in table if name not in first]].to_csv(path, index=False)


def _record(
    task: RunContext, loop: Loop, model: nn.Module, metrics: dict[str, Any], folder: Path
) -> RunRecord:
    key, values = task.cell, task.params.model_dump()
    sections = {name: values[name] for name in task.sections}
    if key.method in values["refine"]:
        sections["refine"] = values["refine"][key.method]
    return RunRecord(
        key=key,
        params=sections,
        metrics=metrics,
        best_step=loop.best["step"],
        fingerprints=task.fingerprints,
        numerics=_numerics(task),
        n_refs_labelled=len(task.labelled),
        n_parameters=sum(p.numel() for p in model.parameters()),
        truncated_expressions=task.tokenizer.truncated,
        files={path.name: sha256_file(path) for path in sorted(folder.iterdir())},
    )


def _numerics(task: RunContext) -> dict[str, Any]:
    """What decides the last bits of a result."""
    device = task.group.device
    return {
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "threads": torch.get_num_threads(),
        "processes": task.group.world,
        "accumulate": task.params.runtime.accumulate,
        "precision": task.params.runtime.precision,
    }


def _provenance(started: float) -> Provenance:
    return Provenance(
        started=datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        duration_s=round(time.time() - started, 2),
        peak_rss_mb=round(peak_rss_mb(), 1),
        platform=platform.platform(),
        git_commit=git_commit(),
        code=code_fingerprint(),
    )


def code_fingerprint() -> str:
    """SHA-256 over the package's source files."""
    package = Path(__file__).parent.parent
    files = sorted(package.rglob("*.py"))
    return fingerprint([[str(f.relative_to(package)), sha256_tree(f)] for f in files])
