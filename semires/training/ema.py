"""The teacher: an exponential moving average of the student (paper Eq. 5)."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

M = TypeVar("M", bound=nn.Module)


def make_teacher(student: M) -> M:
    """A copy of the student in eval mode, without gradients."""
    teacher = copy.deepcopy(student).eval()
    return teacher.requires_grad_(False)


@torch.no_grad()
def update_ema(teacher: nn.Module, student: nn.Module, decay: float) -> None:
    """``teacher = decay * teacher + (1 - decay) * student``, in place.

    Applies to parameters and floating-point buffers; integer buffers are copied.
    """
    averaged: list[torch.Tensor] = []
    sources: list[torch.Tensor] = []
    for target, source in zip(_tensors(teacher), _tensors(student), strict=True):
        if target.is_floating_point():
            averaged.append(target)
            sources.append(source)
        else:
            target.copy_(source)
    get_ema_multi_avg_fn(decay)(averaged, sources, 0)  # type: ignore[no-untyped-call]


def _tensors(module: nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]
