"""What a training needs before its first step: data, model, device, and where its state lives.

A task's *fingerprint* covers everything the run is made from (parameters, split, data, proposals,
weights, vocabulary, format of the state), so that work left by another task is never continued.
"""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from semires.config.resolve import source_of
from semires.config.schema import Params
from semires.data.tables import Tables
from semires.dist import Group, join_group
from semires.errors import ConfigError
from semires.files import fingerprint, lock, read_json, sha256_file, sha256_tree
from semires.models import SegmentationModel, build_model
from semires.models.base import TrainingForward
from semires.models.sources import shipped
from semires.models.text import Tokenizer
from semires.process import autocast, configure_torch
from semires.runs import layout
from semires.runs.key import RunKey
from semires.samples.dataset import ExpressionDataset, ImageStore

STATE_FORMAT = 2  # raised when the content of a training state changes its meaning


@dataclass
class RunContext:
    """One training's inputs. ``sections`` names the parameters that its result depends on."""

    params: Params
    cell: RunKey
    sections: tuple[str, ...]
    group: Group = field(default_factory=join_group)
    val_images: tuple[int, ...] | None = None  # evaluate val on these alone

    def __post_init__(self) -> None:
        configure_torch(self.params.runtime.threads, self.params.runtime.deterministic)
        torch.manual_seed(self.cell.seed)
        self.tables = Tables.load(self.cell.dataset)
        place = self.params.datasets[self.cell.dataset]
        self.images = ImageStore(self.tables, place.images, self.params.data.image_size)
        self.tokenizer = Tokenizer.from_config(self.params.model)
        self.labelled, self.unlabelled = self.tables.labelled_and_unlabelled(
            self.cell.dataset, self.cell.fraction
        )

    @functools.cached_property
    def fingerprints(self) -> dict[str, str]:
        """Digests of what the run is made from."""
        prepared = layout.prepared(self.cell.dataset)
        values = self.params.model_dump()
        sections = {name: values[name] for name in self.sections}
        prints = {
            "params": fingerprint([sections, values["refine"].get(self.cell.method)]),
            "data": fingerprint([sha256_file(p) for p in sorted(prepared.glob("*.parquet"))]),
            "split": sha256_file(layout.split_file(self.cell.dataset, self.cell.fraction)),
            "weights": fingerprint(self._weights()),
        }
        if self.cell.method != "supervised":
            folder = layout.proposals(self.cell.dataset, source_of(self.params, self.cell))
            prints["proposals"] = str(read_json(folder / "manifest.json")["fingerprint"])
            prints["burn_in"] = sha256_file(self.burn_in_folder / "model.safetensors")
        return prints

    def _weights(self) -> list[str]:
        """Digests of pretrained weights and vocabulary that are here; a hub id has none."""
        places = [shipped(source) for source in self.params.model.files().values()]
        return [sha256_tree(place) for place in places if place.exists()]

    @property
    def burn_in_folder(self) -> Path:
        """The run folder of this cell's burn-in."""
        cell = self.cell
        return RunKey(cell.dataset, cell.fraction, "supervised", cell.seed).folder

    @property
    def work(self) -> Path:
        """Where the state of the unfinished run is kept."""
        batches = self.group.world * self.params.runtime.accumulate  # a step's: they say what it is
        identity = [self.fingerprints, self.cell.__dict__, self.val_images, batches, STATE_FORMAT]
        return layout.work("-".join(self.cell.folder.parts), fingerprint(identity))

    def other_states(self) -> list[Path]:
        """States of this cell's unfinished runs that were made from something else."""
        name = "-".join(self.cell.folder.parts)
        return sorted(p.parent for p in self.work.parent.glob(f"{name}-*/last.pt"))

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Held by the one group of processes that makes this run; others are refused.

        Raises:
            BusyError: on entry, another process makes the same run.
        """
        if not self.group.leads:
            return contextlib.nullcontext()
        place = self.work.parent / "locks" / f"{self.work.name}.lock"
        return lock(place, f"the run {self.cell.folder}")

    def check_batch(self, size: int, labelled: int, key: str) -> None:
        """Refuse a batch that holds each labelled sample more than once.

        Raises:
            ConfigError: it is larger, over all processes, than ``labelled`` expressions.
        """
        if size * self.group.world > labelled:
            raise ConfigError(
                f"{key}: a batch of {size * self.group.world} is more than the {labelled} labelled "
                f"expressions of {self.cell.dataset} at {self.cell.fraction:g} %"
            )

    def dataset(self, refs: pd.DataFrame, **options: Any) -> ExpressionDataset:
        """Samples of ``refs`` at the model's image size."""
        return ExpressionDataset(
            refs, self.tables, self.images, self.tokenizer, self.params.data.max_tokens, **options
        )

    def evaluation_sets(self, splits: list[str]) -> dict[str, ExpressionDataset]:
        """The evaluation splits, with the expressions as written (``raw``)."""
        sentences = self.params.evaluation.sentences
        parts = {split: self.tables.part(split) for split in splits}
        if self.val_images is not None and "val" in parts:
            seen = parts["val"]["image_id"].isin(self.val_images)
            parts["val"] = parts["val"][seen].reset_index(drop=True)
        return {
            split: self.dataset(part, text="raw", sentences=sentences)
            for split, part in parts.items()
        }

    def build_model(self, pretrained: bool = True) -> SegmentationModel:
        """A new model on this task's device, the same for the same seed."""
        torch.manual_seed(self.cell.seed)
        model = build_model(self.params.model, self.tokenizer, pretrained=pretrained)
        if self.params.runtime.grad_checkpointing:
            model.set_grad_checkpointing(True)
        return model.to(self.group.device)

    def trainable(self, model: SegmentationModel) -> nn.Module:
        """The module to call in a training step; it returns `Outputs`.

        Parameters are frozen, and the forward pass compiled and wrapped, as the parameters say.
        """
        model.freeze(self.params.optimizer)
        forward = TrainingForward(model)
        if self.params.runtime.compile:
            forward.compile()
        return self.group.wrap(forward)

    def optimizer(self, model: SegmentationModel, lr: float) -> torch.optim.Optimizer:
        """AdamW over the model's parameter groups (paper section 4.2)."""
        settings = self.params.optimizer
        groups = model.parameter_groups(settings)
        return torch.optim.AdamW(groups, lr=lr, weight_decay=settings.weight_decay, fused=True)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Mixed precision as ``runtime.precision`` says."""
        return autocast(self.group.device, self.params.runtime.precision)

    def to_device(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Move a batch's tensors to the device."""
        device = self.group.device
        return {
            k: v.to(device, non_blocking=True) if isinstance(v, torch.Tensor) else v
            for k, v in batch.items()
        }
