"""The model protocol: what training, evaluation and prediction call on a network.

A model derives from `SegmentationModel` and implements ``forward``. Everything else has a default.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

from semires.config.schema import Optimizer
from semires.errors import ConfigError


class Outputs(NamedTuple):
    """What a model returns in training for B samples.

    Attributes:
        logits: (B,2,H,W); channel 0 is background, channel 1 the object.
        extra: further outputs by name, each (B,...), for :meth:`SegmentationModel.extra_losses`.
    """

    logits: torch.Tensor
    extra: dict[str, torch.Tensor]

    def select(self, index: slice | torch.Tensor) -> Outputs:
        """The outputs of some of the samples; ``index`` is a slice or a bool mask (B,)."""
        extra = {name: value[index] for name, value in self.extra.items()}
        return Outputs(self.logits[index], extra)


class SegmentationModel(nn.Module):
    """Base class of the networks in `semires.models.MODELS`.

    Inputs are the same everywhere: ``pixel_values`` float32 (B,3,H,W), normalised with ImageNet's
    mean and deviation; ``input_ids`` and ``attention_mask`` int64 (B,L), BERT tokens padded with 0.

    Attributes:
        paired: the last 2 * paired samples of a training batch are pairs of views, first all first
            views; :meth:`drop_channels` acts on them.
    """

    paired: int = 0

    def forward(
        self, pixel_values: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> torch.Tensor:
        """Logits (B,2,H,W) at the size of the input."""
        raise NotImplementedError

    def forward_shared(
        self,
        pixel_values: torch.Tensor,
        image_of: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
    ) -> torch.Tensor:
        """Logits of B expressions over U images, for evaluation.

        Override it to compute the text-independent part once per image. The default repeats each
        image for each of its expressions.

        Args:
            pixel_values: float32 (U,3,H,W).
            image_of: int64 (B,), the image of each expression.
            input_ids: int64 (B,L).
            attention_mask: int64 (B,L).

        Returns:
            Logits (B,2,H,W).
        """
        logits: torch.Tensor = self(pixel_values[image_of], input_ids, attention_mask)
        return logits

    def training_outputs(
        self, pixel_values: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> Outputs:
        """The forward pass of a training step; override it to return extra outputs."""
        return Outputs(self(pixel_values, input_ids, attention_mask), {})

    def extra_losses(self, outputs: Outputs, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Losses beside the mask's cross-entropy; none by default.

        They are added to the mask loss of the same samples: to the supervised loss with the ground
        truth, and to the unsupervised loss with the refined pseudo-labels. PWA weights the mask
        loss only. The number of samples may be 0.

        Args:
            outputs: of :meth:`training_outputs`, for B samples.
            labels: int64 (B,H,W) of 0 (background) and 1 (object).

        Returns:
            Scalar losses by name, each multiplied by its own weight.
        """
        return {}

    def drop_channels(self, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        """Apply complementary dropout to the feature maps of paired views (UniMatch V2).

        The two views of a pair keep complementary halves of the channels, doubled. Half of the
        pairs, drawn at random, are unchanged. A model calls this on the maps that its decoder gets.

        Args:
            maps: feature maps (B,C_i,H_i,W_i); every map has its own channels.
        """
        if not self.paired:
            return maps
        unchanged = torch.randperm(self.paired)[: self.paired // 2]
        return [self._drop(each, unchanged) for each in maps]

    def _drop(self, features: torch.Tensor, unchanged: torch.Tensor) -> torch.Tensor:
        first = 2 * torch.bernoulli(torch.full((self.paired, features.shape[1]), 0.5))
        first[unchanged] = 1
        others = torch.ones(len(features) - 2 * self.paired, features.shape[1])
        factors = torch.cat([others, first, 2 - first]).to(features)
        return features * factors[:, :, None, None]

    def parameter_options(self, name: str, settings: Optimizer) -> tuple[float, float]:
        """Weight decay and learning-rate multiplier of a parameter.

        Args:
            name: its name in ``named_parameters()``.
            settings: the `optimizer` section of params.yaml.
        """
        return settings.weight_decay, 1.0

    def parameter_groups(self, settings: Optimizer) -> list[dict[str, Any]]:
        """AdamW's groups of the parameters that train, in the order of ``named_parameters()``.

        Each has ``params``, ``weight_decay`` and ``lr_scale``.
        """
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                groups.setdefault(self.parameter_options(name, settings), []).append(parameter)
        return [
            {"params": parameters, "weight_decay": decay, "lr_scale": scale}
            for (decay, scale), parameters in groups.items()
        ]

    def freeze(self, settings: Optimizer) -> None:
        """Switch off the gradients of parameters that do not train; none by default."""

    def set_grad_checkpointing(self, on: bool) -> None:
        """Recompute activations in the backward pass to save memory (`runtime.grad_checkpointing`).

        Raises:
            ConfigError: the model does not implement it.
        """
        if on:
            raise ConfigError(
                f"runtime.grad_checkpointing: {type(self).__name__} does not implement it; "
                "set it to false"
            )


class TrainingForward(nn.Module):
    """A model whose forward pass is :meth:`SegmentationModel.training_outputs`.

    DDP and `torch.compile` wrap the forward pass of a module, so training calls the model
    through this one. It has no state of its own.
    """

    def __init__(self, model: SegmentationModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, pixel_values: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> Outputs:
        """Logits (B,2,H,W) and the model's extra outputs."""
        return self.model.training_outputs(pixel_values, input_ids, attention_mask)
