"""The inputs of a training: data, model, device, and the folder of its unfinished state.

The *fingerprints* of a run cover all its inputs: parameters, split, data,
proposals, weights and vocabulary. A saved state is used only by a run with equal fingerprints.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from semires.config.resolve import proposals_of, source_of
from semires.config.schema import Augment, Params
from semires.data.tables import Tables
from semires.dist import Group, join_group
from semires.errors import ConfigError, CorruptCacheError
from semires.evaluation.evaluate import evaluate
from semires.files import fingerprint, read_json, sha256_file, sha256_tree
from semires.models import SegmentationModel, build_model
from semires.models.base import TrainingForward
from semires.models.sources import shipped
from semires.models.text import Tokenizer
from semires.process import autocast, configure_torch, lock
from semires.proposals.cache import ProposalCache, open_proposals
from semires.proposals.prompted import PromptedImages
from semires.runs import layout
from semires.runs.key import SUPERVISED, RunKey
from semires.samples.batch import B
from semires.samples.dataset import (
    ExpressionDataset,
    ImageStore,
    LabelledDataset,
    PartitionSource,
    UnlabelledDataset,
)
from semires.samples.stream import Stream, stream_loader

CALIBRATION = "calibration.json"  # of a burn-in with held-out images
STATE_FORMAT = 3  # increase it when the content of a training state changes its meaning


@dataclass
class RunContext:
    """The inputs of one training.

    Args:
        params: all parameters, resolved for the run's method.
        key: which run.
        sections: the parameter sections that its result depends on.
        group: the processes that share the training.
        val_images: evaluate val on these images only; None uses all.
        labelled_images: the labelled part consists of these images only; None uses all of the
            split's. The unlabelled part does not change.
    """

    params: Params
    key: RunKey
    sections: tuple[str, ...]
    group: Group = field(default_factory=join_group)
    val_images: tuple[int, ...] | None = None
    labelled_images: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        configure_torch(self.params.runtime.threads, self.params.runtime.deterministic)
        torch.manual_seed(self.key.seed)
        self.tables = Tables.load(self.key.dataset)
        place = self.params.datasets[self.key.dataset]
        self.images = ImageStore(self.tables, place.images, self.params.data.image_size)
        self.tokenizer = Tokenizer.from_config(self.params.model)
        self.labelled_refs, self.unlabelled_refs = self.tables.labelled_and_unlabelled(
            self.key.dataset, self.key.fraction
        )
        if self.labelled_images is not None:
            kept = self.labelled_refs["image_id"].isin(self.labelled_images)
            self.labelled_refs = self.labelled_refs[kept].reset_index(drop=True)

    # Files

    @functools.cached_property
    def fingerprints(self) -> dict[str, str]:
        """Digests of all inputs of the run."""
        prepared = layout.prepared(self.key.dataset)
        values = self.params.model_dump()
        sections = {name: values[name] for name in self.sections}
        prints = {
            "params": fingerprint([sections, values["refine"].get(self.key.method)]),
            "data": fingerprint([sha256_file(p) for p in sorted(prepared.glob("*.parquet"))]),
            "split": sha256_file(layout.split_file(self.key.dataset, self.key.fraction)),
            "weights": fingerprint(self._weights()),
        }
        if self.key.method != SUPERVISED:
            folder = proposals_of(self.params, self.key)
            prints["proposals"] = str(
                read_json(folder / "manifest.json", sealed=True)["fingerprint"]
            )
            prints["burn_in"] = sha256_file(self.burn_in_folder / "model.safetensors")
        return prints

    def _weights(self) -> list[str]:
        """Digests of the local files of pretrained weights and vocabulary; hub ids have none."""
        places = [shipped(source) for source in self.params.model.files().values()]
        return [sha256_tree(place) for place in places if place.exists()]

    @property
    def burn_in_folder(self) -> Path:
        """The run folder of the burn-in that this run starts from."""
        return self.key.burn_in.folder

    def fitted_temperature(self, required: bool = False) -> float:
        """The temperature that the run's burn-in fitted on held-out images; 1 if it fitted none.

        Raises:
            ConfigError: ``required``, and the burn-in fitted none.
        """
        path = self.burn_in_folder / CALIBRATION
        if path.is_file():
            return float(read_json(path)["temperature"])
        if required:
            raise ConfigError(
                f"refine.{self.key.method}.temperature: fitted, but {path} does not exist; make "
                "the burn-in with `burn_in.held_out` above 0"
            )
        return 1.0

    @property
    def work(self) -> Path:
        """The folder of the unfinished run's state."""
        batches_per_step = self.group.world * self.params.runtime.accumulate
        identity: list[Any] = [
            self.fingerprints, self.key.values(), self.val_images, batches_per_step, STATE_FORMAT,
        ]  # fmt: skip
        if self.labelled_images is not None:
            identity.append(self.labelled_images)
        return layout.work("-".join(self.key.folder.parts), fingerprint(identity))

    def other_states(self) -> list[Path]:
        """States of unfinished runs with the same key and other fingerprints."""
        name = "-".join(self.key.folder.parts)
        return sorted(p.parent for p in self.work.parent.glob(f"{name}-*/last.pt"))

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """A lock that one group of processes holds while it makes this run.

        Raises:
            BusyError: on entry, if another process is making the same run.
        """
        if not self.group.is_main_process:
            return contextlib.nullcontext()
        place = self.work.parent / "locks" / f"{self.work.name}.lock"
        return lock(place, f"the run {self.key.folder}")

    # Samples

    def labelled_dataset(
        self, refs: pd.DataFrame, *, text: str = "sentences", sentences: str = "all", seed: int = 0
    ) -> LabelledDataset:
        """Samples of ``refs`` with their ground truth, at the model's image size."""
        return LabelledDataset(
            refs, self.tables, self.images, self.tokenizer, self.params.data.max_tokens,
            text=text, sentences=sentences, seed=seed,
        )  # fmt: skip

    def unlabelled_dataset(
        self,
        *,
        augment: Augment | None = None,
        strong: bool = True,
        views: int = 1,
        sentences: str = "all",
        seed: int = 0,
    ) -> UnlabelledDataset:
        """The unlabelled part with proposals, at the model's image size.

        Raises:
            CorruptCacheError: an image has no proposals.
        """
        images = self.unlabelled_refs["image_id"].unique().tolist()
        lacking = [image for image in images if image not in self.proposals]
        if lacking:
            raise CorruptCacheError(
                f"{self.proposals.folder}: has no proposals for {len(lacking)} images, "
                f"{lacking[0]} the first; run the stage propose again"
            )
        return UnlabelledDataset(
            self.unlabelled_refs, self.tables, self.images, self.tokenizer,
            self.params.data.max_tokens, partitions=self.partitions, augment=augment, strong=strong,
            views=views, sentences=sentences, seed=seed,
        )  # fmt: skip

    @functools.cached_property
    def proposals(self) -> ProposalCache:
        """The proposals of the run's source."""
        return open_proposals(self.params, self.key)

    @property
    def partitions(self) -> PartitionSource:
        """The proposals by image id; for a source that is prompted with labels, the images."""
        settings = self.params.proposals.sources[source_of(self.params, self.key)]
        if settings.kind != "sam_prompts":
            return self.proposals
        return PromptedImages(self.images, settings)

    def evaluation_sets(self, splits: list[str]) -> dict[str, LabelledDataset]:
        """The evaluation splits, with the expressions as written (``raw``)."""
        sentences = self.params.evaluation.sentences
        parts = {split: self.tables.part(split) for split in splits}
        if self.val_images is not None and "val" in parts:
            seen = parts["val"]["image_id"].isin(self.val_images)
            parts["val"] = parts["val"][seen].reset_index(drop=True)
        return {
            split: self.labelled_dataset(part, text="raw", sentences=sentences)
            for split, part in parts.items()
        }

    def check_batch(self, size: int, labelled: int, name: str) -> None:
        """Refuse a batch that contains every labelled sample more than once.

        Raises:
            ConfigError: the batch of all processes is larger than ``labelled``. The text names
                the parameter ``name``.
        """
        if size * self.group.world > labelled:
            raise ConfigError(
                f"{name}: a batch of {size * self.group.world} is more than the {labelled} "
                f"labelled expressions of {self.key.dataset} at {self.key.fraction:g} %"
            )

    def loader(self, dataset: ExpressionDataset[B], batch_size: int, batches: range) -> Iterator[B]:
        """This process's part of the given batches of the dataset's stream."""
        stream = Stream(
            dataset, batch_size, batches.stop, batches.start, self.group.rank, self.group.world
        )
        return stream_loader(dataset, stream, self.params.runtime.workers)

    # Model

    def build_model(self, pretrained: bool = True) -> SegmentationModel:
        """A new model on the group's device, equal for equal seeds."""
        torch.manual_seed(self.key.seed)
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

    def evaluate(self, model: SegmentationModel, dataset: LabelledDataset) -> pd.DataFrame:
        """Predictions of ``model`` for every sample, made by all processes together."""
        batch_size, runtime = self.params.evaluation.batch_size, self.params.runtime
        return evaluate(self.group, model, dataset, batch_size, runtime.workers, runtime.precision)
