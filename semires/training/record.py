"""Write the folder of a finished run; it appears complete or not at all."""

from __future__ import annotations

import errno
import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from semires.config.schema import Runtime
from semires.evaluation.corrections import Corrections, shares
from semires.evaluation.evaluate import summarise
from semires.files import (
    atomic_folder,
    atomic_path,
    sha256_file,
    write_json,
    write_parquet,
    write_text,
)
from semires.numerics import software
from semires.runs.record import Provenance, RunRecord
from semires.training.context import CALIBRATION, RunContext
from semires.training.loop import Loop

SHUFFLED = "_shuffled"
HISTORY_START = ["step", "train/loss", "train/lr", "val/oIoU", "val/mIoU"]


def write_run(
    context: RunContext,
    loop: Loop,
    started: float,
    corrections: Corrections | None = None,
    calibration: dict[str, float] | None = None,
) -> dict[str, dict[str, float]]:
    """Evaluate the loop's best weights on every split and write ``runs/D/F/M/seedS``.

    The split ``val_shuffled`` is val with every expression given to another reference. It measures
    how much of the result does not depend on the expression.

    Args:
        context: the inputs of the run.
        loop: the finished training.
        started: when the run started, seconds since the epoch.
        corrections: the measured corrections, None if the method does not refine.
        calibration: the content of ``calibration.json``, None if nothing was fitted.

    Returns:
        The content of ``metrics.json``: metrics by split, in percent.
    """
    splits = [s for s in context.params.datasets[context.key.dataset].splits if s != "train"]
    sets = context.evaluation_sets(splits)
    if "val" in sets and len(sets["val"].refs) > 1:
        sets[f"val{SHUFFLED}"] = sets["val"].shuffled()
    model = loop.load_best()
    known = {} if loop.best_val is None else {"val": loop.best_val}
    tables = {
        split: known[split] if split in known else context.evaluate(model, dataset)
        for split, dataset in sets.items()
    }
    metrics = {split: summarise(table) for split, table in tables.items()}
    if corrections is not None:
        metrics["pseudo"] = shares(corrections.table)
    if context.group.is_main_process:
        predictions = pd.concat([t.assign(split=s) for s, t in tables.items()], ignore_index=True)
        with atomic_folder(context.key.folder) as folder:
            save_model(model, folder / "model.safetensors")
            write_json(folder / "metrics.json", metrics)
            write_history(loop.history, folder / "history.csv")
            write_parquet(folder / "predictions.parquet", predictions)
            if corrections is not None:
                corrections.write(folder)
            if calibration is not None:
                write_json(folder / CALIBRATION, calibration)
            _record(context, loop, model, metrics, folder).write(folder)
            Provenance.of_process(started, **loop.timing.rates()).write(folder)
        shutil.rmtree(context.work, ignore_errors=True)
    context.group.barrier()
    return metrics


def save_model(model: nn.Module, path: Path) -> None:
    """Weights as safetensors, and their SHA-256 in a file beside them."""
    from safetensors import SafetensorError
    from safetensors.torch import save_model as save

    with atomic_path(path) as temporary:
        try:
            save(model, str(temporary))
        except SafetensorError as error:  # it has no errno attribute
            code = re.search(r"os error (\d+)", str(error))
            raise OSError(int(code[1]) if code else errno.EIO, str(error)) from error
    write_text(path.with_name(path.name + ".sha256"), sha256_file(path) + "\n")


def write_history(history: list[dict[str, float]], path: Path) -> None:
    """One row per evaluation."""
    table = pd.DataFrame(history)
    first = [name for name in HISTORY_START if name in table]
    table[first + [name for name in table if name not in first]].to_csv(path, index=False)


def _record(
    context: RunContext, loop: Loop, model: nn.Module, metrics: dict[str, Any], folder: Path
) -> RunRecord:
    key, values = context.key, context.params.model_dump()
    sections = {name: values[name] for name in context.sections}
    if key.method in values["refine"]:
        sections["refine"] = values["refine"][key.method]
    return RunRecord(
        key=key,
        params=sections,
        metrics=metrics,
        best_step=loop.best["step"],
        fingerprints=context.fingerprints,
        numerics={
            **software(),
            **execution(context.group.device, context.params.runtime, context.group.world),
        },
        n_refs_labelled=len(context.labelled_refs),
        n_parameters=sum(p.numel() for p in model.parameters()),
        truncated_expressions=context.tokenizer.truncated,
        files={path.name: sha256_file(path) for path in sorted(folder.iterdir())},
    )


def execution(device: torch.device, runtime: Runtime, processes: int = 1) -> dict[str, Any]:
    """The device and the settings outside the run's parameters that can change its last bits."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "threads": runtime.threads or torch.get_num_threads(),
        "processes": processes,
        "accumulate": runtime.accumulate,
        "precision": runtime.precision,
    }
