"""Turn teacher outputs into training targets (paper Algorithm 1, inner part).

Proposals of a source that is prompted with each label are made here as well, from the label.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from semires.refine.batch import PartitionBatch, match_batch
from semires.refine.matching import match
from semires.refine.partition import Partition
from semires.refine.strategies import expected_iou, get_strategy, rounded
from semires.refine.weighting import Pwa, Weighting


@dataclass(frozen=True)
class RefinedLabels:
    """Targets of B samples.

    labels: int64 (B,H,W), the refined label of matched samples, the teacher's label of others.
    weights: float32 (B,H,W), 1 for matched samples, the weights of PWA or another weighting for
        others.
    matched: bool (B,).
    quality: float32 (B,), the weights of matched samples; None means 1.
    """

    labels: torch.Tensor
    weights: torch.Tensor
    matched: torch.Tensor
    quality: torch.Tensor | None = None

    def select(self, chosen: torch.Tensor) -> RefinedLabels:
        """Return the samples where ``chosen``, bool (B,), is True."""
        quality = None if self.quality is None else self.quality[chosen]
        return RefinedLabels(
            self.labels[chosen], self.weights[chosen], self.matched[chosen], quality
        )


class PseudoLabelRefiner:
    """Refine hard pseudo-labels with proposals, and weight the pixels of unmatched samples.

    A threshold of None has the strategy's default, the paper's value: 0.5 for IOM, and 0.7 for both
    thresholds of CPI.

    Args:
        strategy: ``iom`` (Eq. 6), ``cpi`` (Eq. 7 or 8), ``cpi-u`` (Eq. 7), ``cpi-o`` (Eq. 8),
            ``none``, or another key of ``STRATEGIES``.
        iom_threshold: ``threshold`` of ``iom``: the IoU must exceed it.
        cpi_threshold_u: ``threshold_u`` of CPI: the share of the label that lies in a proposal
            must exceed it.
        cpi_threshold_o: ``threshold_o`` of CPI: the share of a proposal that lies in the label
            must exceed it.
        pwa: weight the pixels of unmatched samples by Eq. 9.
        pwa_mean: mean of Eq. 9.
        pwa_variance: variance of Eq. 9.
        pwa_offset: gamma of Eq. 9.
        thresholds: values by the names that the strategy declares. They override the arguments
            above, which are ignored where the strategy has no such threshold.
        weighting: weighs the pixels of unmatched samples; it replaces ``pwa`` and its parameters.
        matched_weight: ``one``, or ``expected-iou``: the weight of a matched sample is the expected
            IoU of its refined label under the teacher's probability.
        temperature: the teacher's logits are divided by it.

    Raises:
        ValueError: an unknown strategy, or a threshold that the strategy does not declare.
    """

    def __init__(
        self,
        strategy: str = "cpi-u",
        iom_threshold: float | None = None,
        cpi_threshold_u: float | None = None,
        cpi_threshold_o: float | None = None,
        pwa: bool = True,
        pwa_mean: float = 0.5,
        pwa_variance: float = 0.1,
        pwa_offset: float = 1.3,
        thresholds: Mapping[str, float] | None = None,
        weighting: Weighting | None = None,
        matched_weight: str = "one",
        temperature: float = 1.0,
    ) -> None:
        self.strategy = get_strategy(strategy)
        named = {
            "threshold": iom_threshold,
            "threshold_u": cpi_threshold_u,
            "threshold_o": cpi_threshold_o,
        }
        declared = self.strategy.thresholds
        given = {k: v for k, v in named.items() if k in declared and v is not None}
        self.thresholds = self.strategy.filled({**given, **(thresholds or {})})
        own = Pwa(pwa_mean, pwa_variance, pwa_offset) if pwa else Weighting()
        self.weighting = own if weighting is None else weighting
        self.matched_weight, self.temperature = matched_weight, temperature

    @torch.no_grad()
    def __call__(
        self, teacher_logits: torch.Tensor, partitions: Sequence[Partition] | PartitionBatch
    ) -> RefinedLabels:
        """Compute the targets for teacher logits (B,2,H,W) and B partitions of size (H,W).

        On the CPU, samples are matched one by one in NumPy. On an accelerator, the whole batch is
        matched at once without synchronisation. The targets are on the device of the logits.

        Raises:
            ValueError: the number or the size of the partitions differs from that of the logits.
        """
        logits = teacher_logits.float()
        if self.temperature != 1:
            logits = logits / self.temperature
        probability = foreground(logits)
        labels = logits[:, 1] > logits[:, 0]  # argmax; a tie is background
        if not self.strategy.uses_proposals:
            matched = torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
        else:
            _check_sizes(labels, partitions)
            soft = rounded(probability) if self.strategy.soft else None
            labels, matched = self._match(labels, partitions, soft)
        weights = self.weighting(probability).masked_fill(matched[:, None, None], 1)
        quality = _quality(probability, labels) if self.matched_weight != "one" else None
        return RefinedLabels(labels.long(), weights, matched, quality)

    def _match(
        self,
        labels: torch.Tensor,
        partitions: Sequence[Partition] | PartitionBatch,
        soft: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Refined labels, bool (B,H,W), and matched, bool (B,).

        ``soft``: the rounded foreground probability, float32 (B,H,W), if the strategy is soft.
        """
        if isinstance(partitions, PartitionBatch) or labels.device.type != "cpu":
            if not isinstance(partitions, PartitionBatch):
                partitions = PartitionBatch.of(partitions)
            batch = partitions.to(labels.device)
            return match_batch(self.strategy, batch, labels, self.thresholds, soft)
        refined, matched = labels.numpy(), torch.zeros(len(labels), dtype=torch.bool)
        for i, partition in enumerate(partitions):
            probability = None if soft is None else soft[i].numpy()
            union = match(self.strategy, partition, refined[i], self.thresholds, probability)
            if union is not None:
                refined[i], matched[i] = union, True
        return labels, matched


def _quality(probability: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The expected IoU of labels, bool (B,H,W), under the foreground probability; float32 (B,)."""
    mass = rounded(probability).double()
    inside = (mass * labels).sum((1, 2))
    quality: torch.Tensor = expected_iou(inside, labels.sum((1, 2)), mass.sum((1, 2)))
    return quality.float()


def foreground(logits: torch.Tensor) -> torch.Tensor:
    """The foreground probability (B,H,W) of logits (B,2,H,W): softmax over two classes."""
    return torch.sigmoid(logits[:, 1] - logits[:, 0])


def _check_sizes(labels: torch.Tensor, partitions: Sequence[Partition] | PartitionBatch) -> None:
    if isinstance(partitions, PartitionBatch):
        sizes = {tuple(partitions.atoms.shape[1:])}
    else:
        sizes = {partition.shape for partition in partitions}
    if len(partitions) != len(labels) or sizes - {tuple(labels.shape[1:])}:
        raise ValueError(
            f"{len(partitions)} partitions of sizes {sorted(sizes)} for logits of "
            f"{len(labels)} samples of {tuple(labels.shape[1:])}; resize the partitions"
        )


class Promptable(Protocol):
    """An image whose proposals depend on the label, such as ``PromptedImage``."""

    def resize(self, height: int, width: int) -> Promptable:
        """The same for labels of this size."""
        ...

    def prompt(self, label: NDArray[np.bool_], probability: NDArray[np.floating]) -> Partition:
        """The proposals for a label, bool (H,W), with the foreground probability, float (H,W)."""
        ...


def resolve_partitions(
    images: Sequence[Partition | Promptable], teacher_logits: torch.Tensor
) -> list[Partition]:
    """The partitions of B samples; images are prompted with the teacher's label.

    Args:
        images: B partitions, or images to be prompted.
        teacher_logits: (B,2,H,W), of which the label is the argmax.
    """
    ready = [image for image in images if isinstance(image, Partition)]
    if len(ready) == len(images):
        return ready
    logits = teacher_logits.float()
    labels = (logits[:, 1] > logits[:, 0]).cpu().numpy()
    probability = foreground(logits).cpu().numpy()
    return [
        image if isinstance(image, Partition) else image.prompt(*about)
        for image, *about in zip(images, labels, probability, strict=True)
    ]
