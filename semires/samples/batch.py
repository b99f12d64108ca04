"""Typed batches of samples; hidden ground truth is separate from the supervised target.

A labelled and an unlabelled batch have different types. Only :class:`LabelledBatch` has a ``mask``,
the target of the supervised loss. The ground truth of an unlabelled sample is ``hidden_truth``, a
bool tensor that metrics may read; the losses require int64 labels.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Self, TypeVar

import torch

from semires.refine.partition import Partition
from semires.refine.refiner import Promptable

Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Batch:
    """The model's input for B samples of size S x S with L tokens.

    Args:
        image: float32 (B,3,S,S), normalised; the weak view if the samples are augmented.
        input_ids: int64 (B,L), the tokens of the expressions.
        attention_mask: int64 (B,L), 1 for tokens and 0 for padding.
        indices: B indices of samples in their dataset.
        ref_ids: B ids of references.
    """

    image: torch.Tensor
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    indices: list[int]
    ref_ids: list[int]

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def inputs(self) -> Inputs:
        """The model's arguments: image, tokens, attention mask."""
        return self.image, self.input_ids, self.attention_mask

    def to(self, device: torch.device) -> Self:
        """The same batch with its tensors on ``device``; partitions stay on the CPU."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Self:
        """The same batch in page-locked memory. `DataLoader` calls this."""
        return self._map(torch.Tensor.pin_memory)

    def _map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        changed: dict[str, Any] = {
            name: change(value)
            for name, value in vars(self).items()
            if isinstance(value, torch.Tensor)
        }
        return replace(self, **changed)


@dataclass(frozen=True)
class LabelledBatch(Batch):
    """Samples whose ground truth is known to the method.

    Args:
        mask: int64 (B,S,S) of 0 (background) and 1 (object).
    """

    mask: torch.Tensor


@dataclass(frozen=True)
class UnlabelledBatch(Batch):
    """Samples whose ground truth is hidden from the method.

    Args:
        strong: float32 (B,3,S,S), the student's strong view; equal to ``image`` where the samples
            are not augmented.
        partitions: B partitions of size (S,S), the proposals of the images; or images that are
            prompted with the label, see :func:`semires.refine.refiner.resolve_partitions`.
        hidden_truth: bool (B,S,S), for metrics only.
        second: float32 (B,3,S,S), another strong view, or None for one view.
    """

    strong: torch.Tensor
    partitions: list[Partition | Promptable]
    hidden_truth: torch.Tensor
    second: torch.Tensor | None = None

    @property
    def strong_inputs(self) -> Inputs:
        """The student's arguments: strong view, tokens, attention mask; the samples of each view.

        The samples of a second view follow those of the first one.
        """
        if self.second is None:
            return self.strong, self.input_ids, self.attention_mask
        views = torch.cat([self.strong, self.second])
        return views, self.input_ids.repeat(2, 1), self.attention_mask.repeat(2, 1)


@dataclass(frozen=True)
class MutualBatch:
    """The labelled and unlabelled samples of one step of mutual learning.

    ``unlabelled`` is None where the method uses labelled samples only.
    """

    labelled: LabelledBatch
    unlabelled: UnlabelledBatch | None

    def __len__(self) -> int:
        return len(self.labelled) + len(self.unlabelled or ())

    @property
    def ref_ids(self) -> list[int]:
        """The references of both parts."""
        hidden = [] if self.unlabelled is None else self.unlabelled.ref_ids
        return self.labelled.ref_ids + hidden

    def to(self, device: torch.device) -> MutualBatch:
        """Both parts on ``device``."""
        unlabelled = None if self.unlabelled is None else self.unlabelled.to(device)
        return MutualBatch(self.labelled.to(device), unlabelled)


B = TypeVar("B", bound=Batch)


def collate(samples: list[B]) -> B:
    """Join batches of one type, for example single samples, in order."""
    joined: dict[str, Any] = {}
    for field in fields(samples[0]):
        values = [getattr(sample, field.name) for sample in samples]
        if values[0] is None:
            joined[field.name] = None
        elif isinstance(values[0], torch.Tensor):
            joined[field.name] = torch.cat(values)
        else:
            joined[field.name] = [*itertools.chain(*values)]
    return replace(samples[0], **joined)
