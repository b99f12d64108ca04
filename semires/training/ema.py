"""The teacher: a moving average of the student (paper Eq. 5), over parameters and buffers."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


def make_teacher(student: M) -> M:
    """A copy of the student in eval mode that no gradient reaches."""
    teacher = copy.deepcopy(student).eval()
    return teacher.requires_grad_(False)


@torch.no_grad()
def update_ema(teacher: nn.Module, student: nn.Module, decay: float) -> None:
    """``teacher = decay * teacher + (1 - decay) * student`` in place; integers are copied."""
    averaged: list[torch.Tensor] = []
    sources: list[torch.Tensor] = []
    pairs = zip(_tensors(teacher), _tensors(student), strict=True)
    for mine, its in pairs:
        if mine.is_floating_point():
            averaged.append(mine)
            sources.append(its)
        else:
            mine.copy_(its)
    torch._foreach_lerp_(averaged, sources, 1 - decay)


def _tensors(module: nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]
